#include "launcher/life.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

/* Of the time that passed: who had less of it than a twentieth, and wanted more, was starved. */
#define STARVED_SHARE 20

/* state, utime and stime out of /proc/PID/task/TID/stat: the command's name, in parentheses, may hold anything, but the last ')' ends it. */
static bool parse_stat(char *text, char *state, uint64_t *ticks)
{
    const char *at = strrchr(text, ')');
    if (!at || at[1] != ' ' || !at[2])
        return false;
    *state = at[2];
    at += 3;
    unsigned long long utime = 0, stime = 0;
    for (int field = 4; field <= 13 && at; field++)
        at = strchr(at + 1, ' ');
    if (!at || sscanf(at, " %llu %llu", &utime, &stime) != 2)
        return false;
    *ticks = utime + stime;
    return true;
}

bool launch_life_read(pid_t pid, struct launch_life_sample *sample)
{
    char path[300];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *dir = opendir(path);
    if (!dir)
        return false;
    *sample = (struct launch_life_sample){.stopped = true};
    uint64_t ticks = 0;
    int n_threads = 0;
    for (struct dirent *d; (d = readdir(dir));) {
        if (d->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)pid, d->d_name);
        FILE *f = fopen(path, "re");
        char text[1024], state = '?';
        const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
        if (f)
            fclose(f);
        text[n] = 0;
        uint64_t own = 0;
        if (!parse_stat(text, &state, &own))
            continue; /* it just ended */
        n_threads++;
        ticks += own;
        sample->runnable |= state == 'R';
        sample->blocked |= state == 'D';
        sample->stopped &= state == 'T';
    }
    closedir(dir);
    sample->stopped &= n_threads > 0;
    sample->cpu_ns = ticks * (BASE_NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
    return n_threads > 0;
}

enum launch_verdict launch_life_judge(struct launch_life *life, uint64_t progress, bool excused, const struct launch_life_sample *sample, uint64_t now_ns, uint64_t *silent_ms)
{
    const uint64_t limit_ns = LAUNCH_SILENCE_MS * BASE_NS_PER_MS;
    if (!sample->stopped)
        life->stopped_ns = 0;
    else if (!life->stopped_ns)
        life->stopped_ns = now_ns;
    if (life->stopped_ns && now_ns - life->stopped_ns >= limit_ns) {
        *silent_ms = (now_ns - life->stopped_ns) / BASE_NS_PER_MS;
        return LAUNCH_STOPPED;
    }
    if (progress != life->progress || excused || !life->unchanged_ns || life->stopped_ns) {
        life->progress = progress;
        life->unchanged_ns = now_ns;
        life->cpu_ns = sample->cpu_ns;
        return LAUNCH_WELL;
    }
    const uint64_t silent_ns = now_ns - life->unchanged_ns;
    if (silent_ns < limit_ns)
        return LAUNCH_WELL;
    const bool starved = sample->runnable && (sample->cpu_ns - life->cpu_ns) < silent_ns / STARVED_SHARE;
    if (starved || sample->blocked) {
        life->unchanged_ns = now_ns;
        life->cpu_ns = sample->cpu_ns;
        return LAUNCH_WELL;
    }
    *silent_ms = silent_ns / BASE_NS_PER_MS;
    return LAUNCH_FROZEN;
}

const char *launch_life_who(int first_rank, int n_ranks, char text[LAUNCH_WHO_TEXT])
{
    if (n_ranks == 1)
        snprintf(text, LAUNCH_WHO_TEXT, "rank %d was", first_rank);
    else
        snprintf(text, LAUNCH_WHO_TEXT, "ranks %d-%d were", first_rank, first_rank + n_ranks - 1);
    return text;
}
