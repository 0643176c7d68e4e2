/* On what a model's programs run: which backend of kernels, and whether it has all that they want. */
#ifndef RUNTIME_DEVICE_H
#define RUNTIME_DEVICE_H

#include "runtime/settings.h"

enum rt_device { RT_DEVICE_AUTO, RT_DEVICE_CPU, RT_DEVICE_CUDA, RT_DEVICE_SIMT };

/* settings->device for what a user asked for: a GPU by itself only where there is one whose backend has every step of the model's programs; where there is one that has not, one line
 * says what is missing first. ST_UNSUPPORTED: asked for by name, and has not. */
enum st rt_device_choose(enum rt_device wanted, const struct part_model *m, struct rt_settings *settings, struct err *e);

/* ST_UNSUPPORTED, with the first step that the backend lacks. m: whole or of one rank. */
enum st rt_device_check(const struct kern_backend *backend, const struct part_model *m, const struct rt_settings *settings, struct err *e);

#endif
