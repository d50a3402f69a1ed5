/* module.cu - the CUDA module: memory, streams, launches. It is a library of its own that is opened
 * at run time; see api.h. Built without contraction (-fmad=false) and with denormals, so that the
 * arithmetic is the CPU's.
 *
 * Every CUDA error becomes a status and a sentence, and is cleared, so that one bad call does not
 * spoil the next. Threads: a device may be used by all; a stream by one at a time. */
#define MR_HOST_DEVICE __host__ __device__
#include "common/ops/cuda/device.h"
#ifdef __cplusplus
extern "C" {
#endif
#include "common/ops/math.h"
#ifdef __cplusplus
}
#endif

#include "common/ops/cuda/keys.cuh"
#include "common/ops/cuda/pool.cuh"

#include <stdio.h>
#include <stdlib.h>

typedef struct {
    int index;
    double *erf_value, *erf_slope; /* device */
} device_state;

typedef struct {
    device_state *device;
    cudaStream_t stream;
    cudaEvent_t mark[2];
} stream_state;

static __thread char last_error[256];

static const char *module_error(void) {
    return last_error;
}

static int refuse(const char *what) {
    snprintf(last_error, sizeof(last_error), "CUDA: %s", what);
    return 1;
}

/* 0, or the error's sentence kept and the error cleared. */
static int check(cudaError_t code, const char *doing) {
    if (code == cudaSuccess) return 0;
    snprintf(last_error, sizeof(last_error), "CUDA could not %s: %s", doing,
             cudaGetErrorString(code));
    (void)cudaGetLastError();
    return 1;
}

static int use(const device_state *device) {
    return check(cudaSetDevice(device->index), "select the device");
}

/* --- devices and memory ----------------------------------------------------------------------- */

static void module_close(void *handle) {
    device_state *device = (device_state *)handle;
    if (!device) return;
    if (!use(device)) {
        (void)cudaFree(device->erf_value);
        (void)cudaFree(device->erf_slope);
    }
    free(device);
}

static int fill_tables(device_state *device, const double *value, const double *slope) {
    const size_t bytes = MR_ERF_POINTS * sizeof(double);
    return check(cudaMalloc((void **)&device->erf_value, bytes), "allocate tables") ||
           check(cudaMalloc((void **)&device->erf_slope, bytes), "allocate tables") ||
           check(cudaMemcpy(device->erf_value, value, bytes, cudaMemcpyHostToDevice),
                 "copy tables") ||
           check(cudaMemcpy(device->erf_slope, slope, bytes, cudaMemcpyHostToDevice),
                 "copy tables");
}

static int module_open(void **out, int index) {
    int count = 0;
    const double *value, *slope;
    *out = NULL;
    if (check(cudaGetDeviceCount(&count), "count devices")) return 1;
    if (index < 0 || index >= count) {
        snprintf(last_error, sizeof(last_error), "CUDA device %d: there are %d", index, count);
        return 1;
    }
    device_state *device = (device_state *)calloc(1, sizeof(*device));
    if (!device) return refuse("no memory");
    device->index = index;
    mr_erf_tables(&value, &slope);
    if (use(device) || fill_tables(device, value, slope)) {
        module_close(device);
        return 1;
    }
    *out = device;
    return 0;
}

static int module_describe(void *handle, mr_cuda_facts *out) {
    const device_state *device = (const device_state *)handle;
    struct cudaDeviceProp facts;
    size_t available = 0, total = 0;
    if (use(device) ||
        check(cudaGetDeviceProperties(&facts, device->index), "describe the device") ||
        check(cudaMemGetInfo(&available, &total), "ask for free memory"))
        return 1;
    memset(out, 0, sizeof(*out));
    snprintf(out->name, sizeof(out->name), "%.127s", facts.name);
    out->memory_bytes = total;
    out->free_bytes = available;
    out->processors = (uint32_t)facts.multiProcessorCount;
    out->major = (uint32_t)facts.major;
    out->minor = (uint32_t)facts.minor;
    return 0;
}

static int module_alloc(void *handle, void **out, uint64_t bytes) {
    *out = NULL;
    return use((const device_state *)handle) ||
           check(cudaMalloc(out, (size_t)(bytes ? bytes : 1)), "allocate device memory");
}

static void module_release(void *handle, void *memory) {
    if (memory && !use((const device_state *)handle))
        (void)check(cudaFree(memory), "free device memory");
}

static int module_alloc_host(void *handle, void **out, uint64_t bytes) {
    *out = NULL;
    return use((const device_state *)handle) ||
           check(cudaMallocHost(out, (size_t)(bytes ? bytes : 1)), "allocate pinned memory");
}

static void module_release_host(void *handle, void *memory) {
    if (memory && !use((const device_state *)handle))
        (void)check(cudaFreeHost(memory), "free pinned memory");
}

/* --- streams ---------------------------------------------------------------------------------- */

static void module_stream_close(void *handle) {
    stream_state *s = (stream_state *)handle;
    if (!s) return;
    if (!use(s->device)) {
        for (int i = 0; i < 2; i++)
            if (s->mark[i]) (void)cudaEventDestroy(s->mark[i]);
        if (s->stream) (void)cudaStreamDestroy(s->stream);
    }
    free(s);
}

static int module_stream_open(void *handle, void **out) {
    *out = NULL;
    stream_state *s = (stream_state *)calloc(1, sizeof(*s));
    if (!s) return refuse("no memory");
    s->device = (device_state *)handle;
    if (use(s->device) ||
        check(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "make a stream") ||
        check(cudaEventCreate(&s->mark[0]), "make an event") ||
        check(cudaEventCreate(&s->mark[1]), "make an event")) {
        module_stream_close(s);
        return 1;
    }
    *out = s;
    return 0;
}

static int module_sync(void *handle) {
    stream_state *s = (stream_state *)handle;
    return use(s->device) || check(cudaStreamSynchronize(s->stream), "finish the work");
}

static int move(void *handle, void *to, const void *from, uint64_t bytes, cudaMemcpyKind kind) {
    stream_state *s = (stream_state *)handle;
    if (bytes == 0) return 0;
    return use(s->device) ||
           check(cudaMemcpyAsync(to, from, (size_t)bytes, kind, s->stream), "copy");
}

static int module_upload(void *handle, void *to, const void *from, uint64_t bytes) {
    return move(handle, to, from, bytes, cudaMemcpyHostToDevice);
}

static int module_download(void *handle, void *to, const void *from, uint64_t bytes) {
    return move(handle, to, from, bytes, cudaMemcpyDeviceToHost);
}

static int module_copy(void *handle, void *to, const void *from, uint64_t bytes) {
    return move(handle, to, from, bytes, cudaMemcpyDeviceToDevice);
}

static int module_clear(void *handle, void *memory, uint64_t bytes) {
    stream_state *s = (stream_state *)handle;
    if (bytes == 0) return 0;
    return use(s->device) ||
           check(cudaMemsetAsync(memory, 0, (size_t)bytes, s->stream), "clear memory");
}

static int module_mark(void *handle, int which) {
    stream_state *s = (stream_state *)handle;
    return use(s->device) || check(cudaEventRecord(s->mark[which != 0], s->stream), "mark time");
}

static int module_elapsed(void *handle, float *ms) {
    stream_state *s = (stream_state *)handle;
    return use(s->device) || check(cudaEventSynchronize(s->mark[1]), "finish the work") ||
           check(cudaEventElapsedTime(ms, s->mark[0], s->mark[1]), "read the clock");
}

/* --- work ------------------------------------------------------------------------------------- */

static int module_pool(void *handle, const mr_cuda_pool *w) {
    stream_state *s = (stream_state *)handle;
    if (!w->acc32 == !w->acc64) return refuse("a pool has one accumulator");
    if (w->slots == 0 || w->core_columns == 0) return refuse("a pool without slots or cores");
    if ((uint64_t)w->tokens * w->slots > 0x7fffffffu) return refuse("a pool of too many tokens");
    if (w->tokens == 0 || w->rows.columns == 0) return 0;
    if (use(s->device)) return 1;
    launch_pool(s->stream, w);
    return check(cudaGetLastError(), "start pooling");
}

static int module_dot(void *handle, const mr_cuda_dot *w) {
    stream_state *s = (stream_state *)handle;
    if (w->entries == 0) return 0;
    if (use(s->device)) return 1;
    launch_dot(s->stream, w);
    return check(cudaGetLastError(), "start gate dots");
}

static int module_gate(void *handle, const mr_cuda_gate *w) {
    stream_state *s = (stream_state *)handle;
    if (w->entries == 0) return 0;
    if (use(s->device)) return 1;
    launch_gate(s->stream, w, s->device->erf_value, s->device->erf_slope);
    return check(cudaGetLastError(), "start gating");
}

static int module_scores(void *handle, const mr_cuda_scores *w) {
    stream_state *s = (stream_state *)handle;
    if (w->m > 65535u * SCORE_TOKENS) return refuse("scores of too many tokens at once");
    if (w->m == 0 || w->n == 0) return 0;
    if (use(s->device)) return 1;
    launch_scores(s->stream, w);
    return check(cudaGetLastError(), "start scoring");
}

static int module_select(void *handle, const mr_cuda_select *w) {
    stream_state *s = (stream_state *)handle;
    if (w->k == 0 || w->k > w->n || w->k > SELECT_MAX)
        return refuse("a selection takes 1 to 1024 scores, and not more than there are");
    if (w->rows == 0) return 0;
    if (use(s->device)) return 1;
    launch_select(s->stream, w);
    return check(cudaGetLastError(), "start selecting");
}

static const mr_cuda_api api = {
    MR_CUDA_ABI,         module_error,   module_open,       module_close,        module_describe,
    module_alloc,        module_release, module_alloc_host, module_release_host, module_stream_open,
    module_stream_close, module_sync,    module_upload,     module_download,     module_clear,
    module_copy,         module_pool,    module_dot,        module_gate,         module_scores,
    module_select,       module_mark,    module_elapsed};

#ifdef __cplusplus
extern "C"
#endif
    __attribute__((visibility("default"))) const mr_cuda_api *
    mr_cuda_module(void);

const mr_cuda_api *mr_cuda_module(void) {
    return &api;
}
