/* Is the model the same on every host? Asked before ranks start: RT_MODEL goes to an agent with the path that its ranks will open, and comes back with the digest of what lies there (headers
 * and sizes, not the numbers), or the sentence of why nothing can be read. The hello of the ranks compares it again. */
#ifndef LAUNCHER_SAME_MODEL_H
#define LAUNCHER_SAME_MODEL_H

#include "launcher/outbox.h"
#include "launcher/remote.h"
#include "partition/checkpoint.h"

/* The agent's answer. Blocks as long as headers take to read. */
enum st launch_model_tell(const void *path, size_t bytes, struct launch_outbox *out, struct err *e);

struct launch_model_here {
    const char *host; /* this one, as typed; NULL: it is none of the hosts */
    const char *path; /* as ranks open it: absolute, or a name in the hub's cache */
    const struct checkpoint *ck;
};
/* ST_OK: the answer is what we have. Else both hosts are named, and the line that makes it the same. */
enum st launch_model_compare(const struct launch_model_here *here, const struct launch_target *there, const void *answer, size_t bytes, struct err *e);

#endif
