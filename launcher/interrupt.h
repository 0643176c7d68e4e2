/* Ctrl-C and SIGTERM: the first is an event that a job's owner sees between two frames, so that it can stop the ranks in peace; the second ends the process at once. */
#ifndef LAUNCHER_INTERRUPT_H
#define LAUNCHER_INTERRUPT_H

/* From now on SIGINT, SIGTERM and SIGHUP are caught, once each, unless they are ignored. May be called again. */
void launch_interrupt_heed(void);
/* The signal that came, or 0. */
int launch_interrupted(void);
/* Readable once one came; -1 before launch_interrupt_heed. */
int launch_interrupt_fd(void);
/* At a command's end, everything cleaned up: ends the process by the signal that came, as shells expect; returns where none came. */
void launch_interrupt_settle(void);

#endif
