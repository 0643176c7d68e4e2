/* Backends in libraries of their own, opened when somebody asks for them: what they are made of (C++ here) is then no part of the binary. */
#ifndef KERNELS_PLUGIN_H
#define KERNELS_PLUGIN_H

#include "kernels/kernels.h"

/* The library's only symbol. */
#define KERN_PLUGIN_SYMBOL tandem_kernel_backend

/* name "simt": libtandem-simt.so in the binary's directory. It stays open. ST_NOT_FOUND where it is not there or does not fit. */
enum st kern_plugin_open(const char *name, const struct kern_backend **backend, struct err *e);

#endif
