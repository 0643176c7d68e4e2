/* Where the loader of this machine finds a shared library, without loading it (its constructors would run in us).
 *
 * Looked up in the order: what this process has loaded already, the run path of whoever needs it, LD_LIBRARY_PATH, /etc/ld.so.cache, the system's folders. Copies that only some
 * processors can run (glibc-hwcaps) are passed over: what is found may go to another machine.
 * For another machine's program: in the folders that hold that machine's libraries, and nowhere else. */
#ifndef LAUNCHER_LIBRARIES_H
#define LAUNCHER_LIBRARIES_H

#include <stdbool.h>
#include <stddef.h>

#include "launcher/elf.h"

/* PATH_MAX bytes at path. by: who needs it; only a file of its machine is taken. folders, with colons between: another machine's; NULL: this one's. */
bool launch_library_find(const char *name, const struct launch_elf *by, const char *folders, char *path, size_t path_bytes);

/* Always the host's: parts of glibc, of the RDMA stack (which must fit the kernel's drivers), of the GPU's driver. */
bool launch_library_is_hosts(const char *name);

#endif
