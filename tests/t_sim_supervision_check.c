/* What must hold of a simulated job (t_sim_supervision.c), whatever happened to it. */
#include <string.h>

#include "tests/t_sim_supervision_priv.h"

/* From a fault to the launcher's story, beside what the weather adds: DESIGN's promises. */
#define DEATH_NS BASE_NS_PER_S
#define SILENCE_NS ((LAUNCH_SILENCE_HOST_MS + LAUNCH_LOOK_MS) * MS)
#define FREEZE_NS ((LAUNCH_SILENCE_MS + 2 * LAUNCH_LOOK_MS) * MS)
#define NEWS_NS ((LAUNCH_PULSE_SILENCE_MS + 2 * LAUNCH_PULSE_PERIOD_MS) * MS)
#define RETURN_NS (1500 * MS)   /* from the story until the launcher has left: 4 s after a host fell silent */
#define LAUNCHER_NS (10 * BASE_NS_PER_S + FREEZE_NS - LAUNCH_SILENCE_MS * MS) /* until an agent notices a silent launcher */
#define PEACE_NS (20 * BASE_NS_PER_S) /* PEACE_MS of launcher/warden.c: who has left in peace, and is not heard */
#define GET_OVER_NS (1700 * MS)     /* so much of harmless faults may be had together, and nobody may be taken as lost */

static uint64_t harmless_ns(void) {
    uint64_t sum = 0;
    for (int i = 0; i < job.weather.n_faults; i++)
        if (job.weather.faults[i].fired_ns && comm_sim_is_harmless(&job.weather.faults[i])) sum += job.weather.faults[i].for_ns;
    return sum;
}

/* What the weather may add to any answer. */
static uint64_t slack_ns(void) {
    const struct comm_sim_weather *w = &job.weather;
    uint64_t ns = 150 * MS + 20 * (w->delay_ns + w->jitter_ns);
    uint32_t slowest = 1;
    for (int i = 0; i <= job.n_agents; i++)
        if (w->slow[i] > slowest) slowest = w->slow[i];
    ns += slowest * 10 * MS + (job.paused_until_ns ? job.pause_for_ns + FREEZE_NS : 0);
    for (int i = 0; i < w->n_faults; i++)
        if (comm_sim_is_harmless(&w->faults[i]))
            ns += 2 * w->faults[i].for_ns + BASE_NS_PER_S / 2 + (w->faults[i].kind == COMM_SIM_FREEZE && w->faults[i].for_ns > 3 * LAUNCH_LOOK_MS * MS ? LAUNCHER_NS : 0); /* who was stopped begins anew with whom it listens to */
    return ns;
}

static const struct sim_agent *agent_of(int task) { return task >= FIRST_AGENT && task < FIRST_AGENT + job.n_agents ? &job.agents[task - FIRST_AGENT] : NULL; }

/* Until the launcher says so. */
static uint64_t limit_ns(const struct comm_sim_fault *f) {
    const struct sim_agent *a = agent_of(f->a ? f->a : f->b);
    bool has_news = false; /* from somebody who is there to miss it */
    for (int i = 0; i < job.n_agents; i++)
        has_news |= FIRST_AGENT + i != f->a && FIRST_AGENT + i != f->b && (!job.agents[i].end_ns || job.agents[i].end_ns > f->fired_ns + NEWS_NS);
    switch (f->kind) {
    case COMM_SIM_KILL:
    case COMM_SIM_RESET: return DEATH_NS;
    case COMM_SIM_FREEZE:
        if (!a || a->is_local) return FREEZE_NS; /* a rank's, or our child's */
        return !a->is_direct ? SILENCE_NS : has_news ? NEWS_NS : FREEZE_NS;
    case COMM_SIM_ONE_WAY:
        if (f->a == LAUNCHER) return LAUNCHER_NS; /* it hears that agent, which does not hear it */
        break;
    default: break;
    }
    if (f->kind != COMM_SIM_POWER_OFF && f->a != LAUNCHER && f->b != LAUNCHER) return NEWS_NS;
    if (a && a->is_direct && f->kind == COMM_SIM_POWER_OFF && has_news) return NEWS_NS;
    return a && a->is_direct ? FREEZE_NS : SILENCE_NS;
}

static bool ends_task(const struct comm_sim_fault *f, int task) {
    return f->a == task && (f->kind == COMM_SIM_KILL || f->kind == COMM_SIM_POWER_OFF || f->kind == COMM_SIM_FREEZE);
}

static bool complain(struct t_sim_outcome *out, const char *what) {
    snprintf(out->why, sizeof out->why, "%s (story at %.3f ms: %.200s; the launcher left at %.3f ms; %zu of %zu and %zu of %zu bytes)", what, (double)job.story_ns / (double)MS,
             job.has_story ? job.story.text : "none", (double)job.launcher_end_ns / (double)MS, job.down, job.n_down, job.up, job.n_up);
    return false;
}

/* By the only fault there was, in quiet weather. */
static bool names_cause(const struct comm_sim_fault *f, int failed_rank) {
    char text[64];
    const char *story = job.story.text;
    if (failed_rank >= 0 || f->a > FIRST_AGENT + job.n_agents - 1) {
        const int r = failed_rank >= 0 ? failed_rank : f->a - job.ranks[0].task;
        snprintf(text, sizeof text, failed_rank >= 0 ? "rank %d: no memory" : "rank %d (pid %d) ", r, FIRST_PID + job.ranks[r].task);
        return strstr(story, text) && (failed_rank >= 0 || strstr(story, f->kind == COMM_SIM_KILL ? "was killed by signal 9" : "gave no sign of life"));
    }
    if (!job.has_hosts) return strncmp(story, "the agent of this host (pid ", 28) == 0;
    for (int i = 0; i < job.n_agents; i++) {
        const bool is_meant = f->a == FIRST_AGENT + i || (f->kind <= COMM_SIM_RESET && f->b == FIRST_AGENT + i);
        snprintf(text, sizeof text, "host %s: ", job.agents[i].host);
        if (is_meant && strncmp(story, text, strlen(text)) == 0) return true;
    }
    return false;
}

bool t_sim_job_check(struct t_sim_outcome *out) {
    const struct comm_sim_fault *lethal[COMM_SIM_MAX_FAULTS];
    int n_lethal = 0, n_fired = 0, failed_rank = -1;
    bool launcher_is_hit = false;
    uint64_t until_ns = 0, last_ns = 0;
    for (int i = 0; i < job.weather.n_faults; i++) {
        const struct comm_sim_fault *f = &job.weather.faults[i];
        n_fired += f->fired_ns != 0;
        if (!f->fired_ns || comm_sim_is_harmless(f)) continue;
        lethal[n_lethal++] = f;
        launcher_is_hit |= ends_task(f, LAUNCHER);
        if (f->fired_ns > last_ns) last_ns = f->fired_ns;
        const uint64_t due_ns = f->fired_ns + limit_ns(f);
        if (due_ns > until_ns) until_ns = due_ns;
    }
    for (int r = 0; r < job.n_ranks; r++) {
        const struct sim_rank *k = &job.ranks[r];
        if (!k->fail_ns || !k->has_ended || k->end_ns < k->fail_ns || atomic_load(&job.agents[k->agent].vitals[r].failed) != ST_NO_MEMORY) continue;
        failed_rank = r;
        if (k->end_ns + DEATH_NS > until_ns) until_ns = k->end_ns + DEATH_NS;
    }
    if (job.was_starved) until_ns = until_ns ? until_ns + DEATH_NS : job.launcher_end_ns; /* when that was is not known */
    const int n_causes = n_lethal + (failed_rank >= 0) + job.was_starved;
    const uint64_t slack = slack_ns();
    const bool has_story = job.has_story && job.story_ns <= job.left_ns; /* later it is told to nobody */
    const bool has_left = job.leave_ns && !job.is_whole && job.is_front_through; /* the user has, before anything was said */
    out->is_lethal = n_causes > 0;
    out->n_reports = has_story;

    if (!n_causes && has_story && harmless_ns() <= GET_OVER_NS) return complain(out, "a story, and nothing has happened");
    if (!n_causes && !has_left && !has_story) {
        if (job.has_hosts && (!job.is_whole || job.is_unexplained)) return complain(out, "bytes were lost, and nobody says why");
        for (int i = 0; i < job.n_agents; i++)
            if (job.agents[i].status && job.agents[i].end_ns < job.left_ns) return complain(out, "an agent has failed, and nobody says why");
    }
    if (n_causes && !launcher_is_hit && !has_left) {
        const bool is_done = job.has_hosts ? job.is_whole && !job.is_unexplained : job.ranks_are_done;
        if (n_causes > 1 && until_ns < last_ns + FREEZE_NS) until_ns = last_ns + FREEZE_NS; /* who would have told may have been hit as well */
        const bool is_plain = n_causes == 1 && n_fired == n_lethal && !job.was_starved;
        if (!has_story && !is_done && (is_plain || !job.is_unexplained)) return complain(out, "nobody says why the job has ended");
        if (has_story && job.story_ns > until_ns + slack) return complain(out, "the story comes too late");
        const uint64_t behind_ns = (job.n_up / job.weather.window_bytes + 1) * 2 * (job.weather.delay_ns + job.weather.jitter_ns); /* what rank 0 has said goes before a story */
        if (has_story && is_plain && slack < 800 * MS && behind_ns < 100 * MS && !names_cause(n_lethal ? lethal[0] : NULL, failed_rank))
            return complain(out, "the story names another cause");
        if (has_story && n_causes == 1 && job.launcher_end_ns > job.story_ns + RETURN_NS + slack) return complain(out, "the launcher returns too late");
    }
    if (!launcher_is_hit && job.launcher_end_ns == 0) return complain(out, "the launcher has not returned");
    for (int i = 0; i < job.n_agents; i++) {
        const struct sim_agent *a = &job.agents[i];
        bool is_hit = false, is_blind = false; /* blind: it cannot see that the launcher has gone */
        uint64_t due_ns = job.launcher_end_ns + DEATH_NS;
        for (int k = 0; k < n_lethal; k++) {
            const struct comm_sim_fault *f = lethal[k];
            is_hit |= ends_task(f, a->task);
            is_blind |= (f->kind == COMM_SIM_FREEZE || f->kind == COMM_SIM_POWER_OFF) && f->a == LAUNCHER;
            is_blind |= (f->kind == COMM_SIM_PARTITION || f->kind == COMM_SIM_ONE_WAY) && (f->a == LAUNCHER || f->b == LAUNCHER);
            if (launcher_is_hit && f->fired_ns + DEATH_NS > due_ns) due_ns = f->fired_ns + DEATH_NS;
        }
        if (is_blind) due_ns = (last_ns > job.launcher_end_ns ? last_ns : job.launcher_end_ns) + (job.has_hosts ? LAUNCHER_NS : FREEZE_NS) + DEATH_NS;
        if (is_blind && !a->status) due_ns += PEACE_NS;
        if (!is_hit && a->end_ns > due_ns + slack) return complain(out, "an agent outlives its launcher");
    }
    return true;
}
