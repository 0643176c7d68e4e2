/* --link: a preset's name or figures. */
#ifndef LAUNCHER_LINK_H
#define LAUNCHER_LINK_H

#include "comm/comm.h"

/* "cx7", "cx7,jitter=1us", "200gbit,2.5us,jitter=500ns". ST_INVALID with a sentence that names the presets and shows the form. */
enum st launch_link_parse(const char *text, struct comm_link *link, struct err *e);

#endif
