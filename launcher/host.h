/* What an agent tells of its host before anything is decided: the JSON of RT_HOST. */
#ifndef LAUNCHER_HOST_H
#define LAUNCHER_HOST_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct launch_host_facts {
    char name[64];       /* its own */
    char build[64];      /* of the sources */
    char machine[32];    /* "x86_64" */
    int n_cpus;          /* that may be kept busy */
    uint64_t available_bytes;
    char available_what[256];
};

/* Of this one; malloc'ed text. */
enum st launch_host_describe(char **json, struct err *e);
/* Of another: hostile. */
enum st launch_host_parse(const char *json, size_t bytes, struct launch_host_facts *h, struct err *e);

#endif
