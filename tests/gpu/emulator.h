/* emulator.h - enough of CUDA for a C compiler to run the kernels of common/ops/cuda on a CPU.
 *
 * A block's threads are coroutines that run one after the other until they meet: at a barrier, a
 * ballot or a shuffle. So what is checked is what each thread computes and where they must meet;
 * memory orders, races and speed are not. Blocks run in order; shared memory is static.
 * One launch runs at a time, whoever asks. */
#ifndef MR_TESTS_GPU_EMULATOR_H
#define MR_TESTS_GPU_EMULATOR_H
#define MR_CUDA_EMULATOR 1

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static

typedef struct {
    uint32_t x, y;
} mr_emulated_index;
extern mr_emulated_index threadIdx, blockIdx, blockDim;

/* Runs kernel(arguments) for every thread of every block. */
void mr_emulate(void (*kernel)(const void *), const void *arguments, uint32_t blocks_x,
                uint32_t blocks_y, uint32_t threads);
void __syncthreads(void);
/* Each lane gives a value and gets that of lane `from`; all lanes of a warp that still run meet. */
uint64_t mr_emulate_exchange(uint64_t value, uint32_t from);
uint32_t mr_emulate_ballot(int taken);

#define MR_KERNEL(NAME, TYPE)                                                                      \
    static void NAME##_body(const TYPE a);                                                         \
    static void NAME(const void *arguments) {                                                      \
        NAME##_body(*(const TYPE *)arguments);                                                     \
    }                                                                                              \
    static void NAME##_body(const TYPE a)
#define MR_LAUNCH(NAME, TYPE, X, Y, THREADS, STREAM, ARGUMENTS)                                    \
    do {                                                                                           \
        const TYPE launched = (ARGUMENTS);                                                         \
        (void)(STREAM);                                                                            \
        mr_emulate(NAME, &launched, (X), (Y), (THREADS));                                          \
    } while (0)

#define __ballot_sync(MASK, TAKEN) mr_emulate_ballot(TAKEN)
static inline uint32_t __shfl_sync(uint32_t mask, uint32_t value, int from) {
    (void)mask;
    return (uint32_t)mr_emulate_exchange(value, (uint32_t)from);
}
static inline int64_t __shfl_xor_sync(uint32_t mask, int64_t value, int step) {
    (void)mask;
    return (int64_t)mr_emulate_exchange((uint64_t)value, threadIdx.x % 32 ^ (uint32_t)step);
}

static inline int __ffs(int x) {
    return __builtin_ffs(x);
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
static inline int32_t __float2int_rn(float x) {
    return (int32_t)lrintf(x);
}
static inline int64_t __float2ll_rn(float x) {
    return llrintf(x);
}
static inline float __ll2float_rn(int64_t x) {
    return (float)x;
}
static inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}
static inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
static inline uint32_t atomicAdd(uint32_t *at, uint32_t by) {
    const uint32_t before = *at;
    *at += by;
    return before;
}

/* --- the runtime's calls that the module makes ------------------------------------------------ */

typedef int cudaError_t;
typedef int cudaStream_t;
typedef int cudaEvent_t;
typedef int cudaMemcpyKind;
enum { cudaSuccess, cudaErrorMemoryAllocation };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking };
struct cudaDeviceProp {
    char name[256];
    int multiProcessorCount, major, minor;
};
static inline const char *cudaGetErrorString(cudaError_t code) {
    return code ? "out of memory" : "no error";
}
static inline cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int index) {
    (void)index;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int index) {
    (void)index;
    *out = (struct cudaDeviceProp){"emulated", 1, 0, 0};
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = (size_t)1 << 30;
    return cudaSuccess;
}
static inline cudaError_t cudaMalloc(void **out, size_t bytes) {
    *out = bytes < (size_t)1 << 30 ? aligned_alloc(256, (bytes + 255) / 256 * 256) : NULL;
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
#define cudaMallocHost cudaMalloc
static inline cudaError_t cudaFree(void *memory) {
    free(memory);
    return cudaSuccess;
}
#define cudaFreeHost cudaFree
static inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes,
                                     cudaMemcpyKind kind) {
    (void)kind;
    memcpy(to, from, bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                                          cudaMemcpyKind kind, cudaStream_t stream) {
    (void)stream;
    return cudaMemcpy(to, from, bytes, kind);
}
static inline cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes,
                                          cudaStream_t stream) {
    (void)stream;
    memset(memory, value, bytes);
    return cudaSuccess;
}
#define cudaStreamCreateWithFlags(STREAM, FLAGS) ((void)(FLAGS), *(STREAM) = 1, cudaSuccess)
#define cudaStreamDestroy(STREAM) ((void)(STREAM), cudaSuccess)
#define cudaStreamSynchronize(STREAM) ((void)(STREAM), cudaSuccess)
#define cudaEventCreate(EVENT) (*(EVENT) = 1, cudaSuccess)
#define cudaEventDestroy(EVENT) ((void)(EVENT), cudaSuccess)
#define cudaEventRecord(EVENT, STREAM) ((void)(EVENT), (void)(STREAM), cudaSuccess)
#define cudaEventSynchronize(EVENT) ((void)(EVENT), cudaSuccess)
#define cudaEventElapsedTime(MS, FROM, TO) ((void)(FROM), (void)(TO), *(MS) = 0, cudaSuccess)

#endif
