#include "launcher/interrupt.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static atomic_int came;
static int fd = -1;

static void on_signal(int signo)
{
    const int saved = errno;
    came = signo;
    (void)!write(fd, &(uint64_t){1}, sizeof(uint64_t));
    errno = saved;
}

void launch_interrupt_heed(void)
{
    if (fd >= 0)
        return;
    fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return; /* then a signal ends us as it always does */
    const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction old, act = {.sa_handler = on_signal, .sa_flags = SA_RESTART | (int)SA_RESETHAND};
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_DFL)
            sigaction(signals[i], &act, NULL);
    }
}

int launch_interrupted(void) { return came; }
int launch_interrupt_fd(void) { return fd; }

void launch_interrupt_settle(void)
{
    if (!came)
        return;
    signal(came, SIG_DFL);
    raise(came);
}
