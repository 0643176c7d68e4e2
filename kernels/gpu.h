/* Is there a GPU? Asked of NVIDIA's driver, whose library is opened for the question and closed again. */
#ifndef KERNELS_GPU_H
#define KERNELS_GPU_H

#include <stdbool.h>
#include <stddef.h>

/* The first one's name, as its driver has it; false: there is no driver, or no GPU. */
bool kern_gpu_find(char *name, size_t bytes);

#endif
