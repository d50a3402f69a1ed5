/* device.h - how kernels are written here, so that one text serves the CUDA compiler and, in tests,
 * a plain C compiler that plays the threads one after the other (tests/gpu/emulator.h).
 *
 * A kernel takes one struct by value: MR_KERNEL(name, type) { ... a.field ... }, and is started by
 * MR_LAUNCH(name, type, blocks_x, blocks_y, threads, stream, arguments). C as C++ reads it. */
#ifndef MR_OPS_CUDA_DEVICE_H
#define MR_OPS_CUDA_DEVICE_H
#include "common/ops/cuda/api.h"

#ifndef MR_CUDA_EMULATOR
#include <cuda_runtime.h>
#define MR_KERNEL(NAME, TYPE) static __global__ void NAME(const TYPE a)
#define MR_LAUNCH(NAME, TYPE, X, Y, THREADS, STREAM, ARGUMENTS)                                    \
    NAME<<<dim3((X), (Y)), (THREADS), 0, (STREAM)>>>(ARGUMENTS)
#endif

enum { MR_WARP = 32 };

static __device__ __forceinline__ float mr_float_of_bits(uint32_t bits) {
    return __uint_as_float(bits);
}

/* Element `column` of a row. */
static __device__ __forceinline__ float mr_row_element(const uint8_t *row, int is_bf16,
                                                       uint32_t column) {
    if (is_bf16) return mr_float_of_bits((uint32_t)((const uint16_t *)row)[column] << 16);
    return ((const float *)row)[column];
}

#endif
