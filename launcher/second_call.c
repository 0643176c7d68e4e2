#include "launcher/second_call.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

extern char **environ;

/* In a session of its own: neither Ctrl-C nor our end is meant for it. */
static bool spawn(char *const *argv, pid_t *child)
{
    posix_spawnattr_t how;
    posix_spawn_file_actions_t files;
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_init(&how);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&how, &none);
    for (int fd = 0; fd < 3; fd++)
        posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_addclosefrom_np(&files, 3); /* what our caller handed to us is not for it: a lock, a pipe */
    const bool is_started = posix_spawn(child, "/proc/self/exe", &files, &how, argv, environ) == 0;
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    return is_started;
}

enum st launch_second_call(const struct launch_remote_options *options, pid_t pid, const char *nonce, int wait_ms)
{
    char number[16];
    snprintf(number, sizeof number, "%ld", (long)pid);
    const char *argv[10] = {"tandem", "host-kill", "--pid", number, "--nonce", nonce, options->host->typed};
    if (options->ssh) {
        argv[7] = "--ssh";
        argv[8] = options->ssh;
    }
    pid_t child;
    if (!spawn((char *const *)(uintptr_t)argv, &child))
        return ST_IO;
    const uint64_t until = base_now_ns(base_clock_real()) + (uint64_t)wait_ms * BASE_NS_PER_MS;
    while (waitpid(child, NULL, WNOHANG) == 0) {
        if (base_now_ns(base_clock_real()) >= until)
            return ST_AGAIN;
        usleep(5000);
    }
    return ST_OK;
}
