/* dlopen beside /proc/self/exe. The library takes what it needs of ours from the binary itself, so there is one base_tick_at, and one `ref`. */
#include "kernels/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TEXT_OF(symbol) #symbol
#define TEXT(symbol) TEXT_OF(symbol)

enum st kern_plugin_open(const char *name, const struct kern_backend **backend, struct err *e) {
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(e, ST_IO, "the binary's own path cannot be read");
    path[n] = 0;
    char *file = strrchr(path, '/') + 1;
    size_t room = sizeof path - (size_t)(file - path);
    int used = snprintf(file, room, "libtandem-%s.so", name);
    if (used < 0 || (size_t)used >= room)
        return err_set(e, ST_IO, "the binary's own path is too long");
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return err_set(e, ST_NOT_FOUND, "the kernels of device %s are not there: %s (make builds them beside the binary, where there is g++)", name, dlerror());
    const struct kern_backend *found = dlsym(library, TEXT(KERN_PLUGIN_SYMBOL));
    if (!found) {
        dlclose(library);
        return err_set(e, ST_NOT_FOUND, "%s is no library of kernels", path);
    }
    *backend = found;
    return ST_OK;
}
