/* Alive, stopped, frozen or merely slow: the judge by hand-made samples, the reader by real processes. */
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "launcher/life.h"
#include "tests/t.h"

#define MS BASE_NS_PER_MS
enum { LOOKS_S = 10 };

static const struct launch_life_sample asleep = {.cpu_ns = 0}, stopped = {.stopped = true};

/* Looks every 250 ms for ten seconds; returns when (in ms) a verdict other than well came, 0: never. */
static uint64_t first_verdict(struct launch_life *life, uint64_t (*progress)(uint64_t ms), bool excused, struct launch_life_sample (*sample)(uint64_t ms), enum launch_verdict *verdict)
{
    for (uint64_t ms = 250; ms <= LOOKS_S * 1000; ms += LAUNCH_LOOK_MS) {
        const struct launch_life_sample s = sample(ms);
        uint64_t silent_ms = 0;
        *verdict = launch_life_judge(life, progress(ms), excused, &s, ms * MS, &silent_ms);
        if (*verdict != LAUNCH_WELL) {
            assert_true(silent_ms >= LAUNCH_SILENCE_MS && silent_ms <= ms);
            return ms;
        }
    }
    return 0;
}

static uint64_t none(uint64_t ms) { return (void)ms, 7; }
static uint64_t until_2s(uint64_t ms) { return ms < 2000 ? ms : 2000; }
static uint64_t every_4s(uint64_t ms) { return ms / 4000; }
static struct launch_life_sample sleeps(uint64_t ms) { return (void)ms, asleep; }
static struct launch_life_sample spins(uint64_t ms) { return (struct launch_life_sample){.runnable = true, .cpu_ns = ms * MS}; }
static struct launch_life_sample half(uint64_t ms) { return (struct launch_life_sample){.runnable = true, .cpu_ns = ms * MS / 2}; }
static struct launch_life_sample starves(uint64_t ms) { return (struct launch_life_sample){.runnable = true, .cpu_ns = ms * MS / 30}; }
static struct launch_life_sample reads_disk(uint64_t ms) { return (struct launch_life_sample){.blocked = true, .cpu_ns = ms / 100}; }
static struct launch_life_sample stops_at_3s(uint64_t ms) { return ms < 3000 ? asleep : stopped; }
static struct launch_life_sample stops_for_4s(uint64_t ms) { return ms < 1000 || ms >= 5000 ? asleep : stopped; }

static void work_keeps_alive(void **state)
{
    (void)state;
    enum launch_verdict v;
    struct launch_life life = {0};
    assert_int_equal(first_verdict(&life, every_4s, false, sleeps, &v), 0);
}

static void who_sleeps_or_spins_without_work_is_frozen(void **state)
{
    (void)state;
    struct launch_life_sample (*const samples[])(uint64_t) = {sleeps, spins, half};
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        enum launch_verdict v;
        struct launch_life life = {0};
        const uint64_t at = first_verdict(&life, until_2s, false, samples[i], &v);
        assert_int_equal(v, LAUNCH_FROZEN);
        assert_in_range(at, 2000 + LAUNCH_SILENCE_MS, 2000 + LAUNCH_SILENCE_MS + 2 * LAUNCH_LOOK_MS);
    }
}

static void who_starves_or_reads_is_slow(void **state)
{
    (void)state;
    enum launch_verdict v;
    struct launch_life life = {0};
    assert_int_equal(first_verdict(&life, none, false, starves, &v), 0);
    memset(&life, 0, sizeof life);
    assert_int_equal(first_verdict(&life, none, false, reads_disk, &v), 0);
}

static void who_waits_is_excused_but_not_when_stopped(void **state)
{
    (void)state;
    enum launch_verdict v;
    struct launch_life life = {0};
    assert_int_equal(first_verdict(&life, none, true, sleeps, &v), 0);
    memset(&life, 0, sizeof life);
    const uint64_t at = first_verdict(&life, none, true, stops_at_3s, &v);
    assert_int_equal(v, LAUNCH_STOPPED);
    assert_in_range(at, 3000 + LAUNCH_SILENCE_MS, 3000 + LAUNCH_SILENCE_MS + 2 * LAUNCH_LOOK_MS);
}

static void a_short_stop_counts_for_nothing(void **state)
{
    (void)state;
    enum launch_verdict v;
    struct launch_life life = {0};
    const uint64_t at = first_verdict(&life, none, false, stops_for_4s, &v); /* only the silence after it counts */
    assert_int_equal(v, LAUNCH_FROZEN);
    assert_true(at >= 4750 + LAUNCH_SILENCE_MS);
}

static void real_processes(void **state)
{
    (void)state;
    struct launch_life_sample s;
    assert_true(launch_life_read(getpid(), &s));
    assert_true(s.runnable && !s.stopped);
    const pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    kill(child, SIGSTOP);
    int status;
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(launch_life_read(child, &s));
    assert_true(s.stopped && !s.runnable);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    assert_false(launch_life_read(child, &s));

    const pid_t busy = fork();
    if (busy == 0)
        for (;;)
            ;
    usleep(200000);
    assert_true(launch_life_read(busy, &s));
    assert_true(s.runnable && s.cpu_ns > 0);
    kill(busy, SIGKILL);
    waitpid(busy, &status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work_keeps_alive),           cmocka_unit_test(who_sleeps_or_spins_without_work_is_frozen), cmocka_unit_test(who_starves_or_reads_is_slow),
        cmocka_unit_test(who_waits_is_excused_but_not_when_stopped), cmocka_unit_test(a_short_stop_counts_for_nothing), cmocka_unit_test(real_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
