/* gpu.c - see gpu.h: opens the module, and brings a request's arrays to the device and its sums
 * back. What goes up is put together in pinned memory first, so that it is one copy. */
#include "common/ops/gpu.h"

#include "common/base/mem.h"
#include "common/ops/cuda/api.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct mr_gpu {
    void *library;
    const mr_cuda_api *api;
    void *device;
    mr_cuda_facts facts;
};

struct mr_gpu_rows {
    mr_gpu *gpu;
    void *data;
    mr_cuda_rows rows;
};

struct mr_gpu_lane {
    mr_gpu *gpu;
    void *stream;
    uint8_t *staged, *room; /* pinned, and as much on the device */
    uint64_t bytes;
};

static mr_status fail(const mr_gpu *gpu, mr_err *err) {
    return mr_fail(err, MR_ERR_IO, "%s", gpu->api->error());
}

/* --- the module ------------------------------------------------------------------------------- */

static char *module_path(void) {
    const char *given = getenv("MEMRACK_CUDA_MODULE");
    char program[4096];
    if (given && *given) return mr_strdup(given);
    const ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (length <= 0) return mr_strdup("memrack-cuda.so");
    program[length] = '\0';
    *strrchr(program, '/') = '\0';
    return mr_format("%s/memrack-cuda.so", program);
}

static mr_status open_module(mr_gpu *gpu, mr_err *err) {
    char *path = module_path();
    mr_cuda_module_function find = NULL;
    mr_status status = MR_OK;
    gpu->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = gpu->library ? dlsym(gpu->library, MR_CUDA_SYMBOL) : NULL;
    memcpy(&find, &symbol, sizeof(find)); /* a function behind an object pointer */
    if (!find)
        status = mr_fail(err, MR_ERR_UNSUPPORTED,
                         "the CUDA module cannot be opened (%.200s): build it with -DMR_CUDA=ON, "
                         "or name it in MEMRACK_CUDA_MODULE",
                         dlerror());
    else {
        gpu->api = find();
        if (gpu->api->abi != MR_CUDA_ABI)
            status = mr_fail(err, MR_ERR_UNSUPPORTED,
                             "%.200s is of version %u of the module, this program needs %d", path,
                             gpu->api->abi, MR_CUDA_ABI);
    }
    free(path);
    return status;
}

mr_status mr_gpu_open(mr_gpu **out, uint32_t index, mr_err *err) {
    mr_gpu *gpu = mr_alloc(sizeof(*gpu));
    *out = NULL;
    mr_status status = open_module(gpu, err);
    if (status == MR_OK && (gpu->api->open(&gpu->device, (int)index) != 0 ||
                            gpu->api->describe(gpu->device, &gpu->facts) != 0))
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "%s", gpu->api->error());
    if (status != MR_OK) {
        mr_gpu_close(gpu);
        return status;
    }
    *out = gpu;
    return MR_OK;
}

void mr_gpu_close(mr_gpu *gpu) {
    if (!gpu) return;
    if (gpu->device) gpu->api->close(gpu->device);
    if (gpu->library) dlclose(gpu->library);
    free(gpu);
}

const char *mr_gpu_name(const mr_gpu *gpu) {
    return gpu->facts.name;
}

uint64_t mr_gpu_free_bytes(const mr_gpu *gpu) {
    mr_cuda_facts facts;
    return gpu->api->describe(gpu->device, &facts) == 0 ? facts.free_bytes : 0;
}

/* --- rows ------------------------------------------------------------------------------------- */

bool mr_gpu_takes(const mr_rows *rows) {
    return rows->storage.block == 0 &&
           (rows->storage.element == MR_F32 || rows->storage.element == MR_BF16);
}

/* Through pinned memory, piece by piece: mapped files are brought in on the way. */
static int upload_rows(mr_gpu *gpu, void *to, const uint8_t *from, uint64_t bytes) {
    enum { PIECE_BYTES = 16 << 20 };
    void *stream = NULL, *staged = NULL;
    int failed = gpu->api->stream_open(gpu->device, &stream) ||
                 gpu->api->alloc_host(gpu->device, &staged, PIECE_BYTES);
    for (uint64_t at = 0; at < bytes && !failed; at += PIECE_BYTES) {
        const uint64_t piece = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        memcpy(staged, from + at, piece);
        failed =
            gpu->api->upload(stream, (uint8_t *)to + at, staged, piece) || gpu->api->sync(stream);
    }
    gpu->api->release_host(gpu->device, staged);
    gpu->api->stream_close(stream);
    return failed;
}

mr_status mr_gpu_rows_open(mr_gpu_rows **out, mr_gpu *gpu, const mr_rows *rows, mr_err *err) {
    const uint64_t bytes = rows->row_count * rows->stride;
    *out = NULL;
    mr_gpu_rows *made = mr_alloc(sizeof(*made));
    made->gpu = gpu;
    if (gpu->api->alloc(gpu->device, &made->data, bytes) != 0) {
        const mr_status status = mr_fail(
            err, MR_ERR_NOMEM, "%s (%llu bytes of rows, %llu are free on %s)", gpu->api->error(),
            (unsigned long long)bytes, (unsigned long long)mr_gpu_free_bytes(gpu), gpu->facts.name);
        mr_gpu_rows_close(made);
        return status;
    }
    if (upload_rows(gpu, made->data, rows->data, bytes)) {
        mr_gpu_rows_close(made);
        return fail(gpu, err);
    }
    made->rows = (mr_cuda_rows){.data = made->data,
                                .row_first = rows->row_first,
                                .stride_bytes = rows->stride,
                                .columns = rows->columns,
                                .is_bf16 = rows->storage.element == MR_BF16};
    *out = made;
    return MR_OK;
}

void mr_gpu_rows_close(mr_gpu_rows *rows) {
    if (!rows) return;
    rows->gpu->api->release(rows->gpu->device, rows->data);
    free(rows);
}

/* --- requests --------------------------------------------------------------------------------- */

mr_status mr_gpu_lane_open(mr_gpu_lane **out, mr_gpu *gpu, mr_err *err) {
    mr_gpu_lane *lane = mr_alloc(sizeof(*lane));
    *out = NULL;
    lane->gpu = gpu;
    if (gpu->api->stream_open(gpu->device, &lane->stream) != 0) {
        free(lane);
        return fail(gpu, err);
    }
    *out = lane;
    return MR_OK;
}

static void free_room(mr_gpu_lane *lane) {
    lane->gpu->api->release_host(lane->gpu->device, lane->staged);
    lane->gpu->api->release(lane->gpu->device, lane->room);
    lane->staged = lane->room = NULL;
    lane->bytes = 0;
}

void mr_gpu_lane_close(mr_gpu_lane *lane) {
    if (!lane) return;
    free_room(lane);
    lane->gpu->api->stream_close(lane->stream);
    free(lane);
}

/* Room grows to the largest request and is kept. */
static mr_status make_room(mr_gpu_lane *lane, uint64_t bytes, mr_err *err) {
    const mr_cuda_api *api = lane->gpu->api;
    void *staged = NULL, *room = NULL;
    if (lane->bytes >= bytes) return MR_OK;
    bytes += bytes / 2;
    free_room(lane);
    if (api->alloc_host(lane->gpu->device, &staged, bytes) != 0) return fail(lane->gpu, err);
    lane->staged = staged;
    if (api->alloc(lane->gpu->device, &room, bytes) != 0) return fail(lane->gpu, err);
    lane->room = room;
    lane->bytes = bytes;
    return MR_OK;
}

/* Arrays laid out one after the other, each on a line of its own. */
typedef struct {
    mr_gpu_lane *lane;
    uint64_t used;
} layout;

static uint64_t place(layout *l, uint64_t bytes) {
    const uint64_t at = l->used;
    l->used += (bytes + 255) / 256 * 256;
    return at;
}

static const void *put(const layout *l, uint64_t at, const void *from, uint64_t bytes) {
    if (bytes) memcpy(l->lane->staged + at, from, bytes);
    return l->lane->room + at;
}

static const uint32_t *put_firsts(const layout *l, uint64_t at, const uint32_t *count,
                                  uint32_t tokens) {
    uint32_t *first = (uint32_t *)(void *)(l->lane->staged + at), sum = 0;
    for (uint32_t t = 0; t < tokens; t++) {
        first[t] = sum;
        sum += count[t];
    }
    first[tokens] = sum;
    return (const uint32_t *)(const void *)(l->lane->room + at);
}

/* Everything before `result` goes up, the work runs, the result comes back. */
static mr_status finish(mr_gpu_lane *lane, int failed, void *to, uint64_t result, uint64_t bytes,
                        mr_err *err) {
    const mr_cuda_api *api = lane->gpu->api;
    failed = failed ||
             api->download(lane->stream, lane->staged + result, lane->room + result, bytes) ||
             api->sync(lane->stream);
    if (failed) return fail(lane->gpu, err);
    memcpy(to, lane->staged + result, bytes);
    return MR_OK;
}

mr_status mr_gpu_pool(mr_gpu_lane *lane, const mr_gpu_rows *rows, void *acc, uint32_t bits,
                      const mr_pool_args *a, mr_err *err) {
    const mr_cuda_api *api = lane->gpu->api;
    const uint32_t cores =
        (a->column_first + a->rows.columns - 1) / a->core_columns - a->core_first + 1;
    const uint64_t list = a->entries * sizeof(uint32_t);
    const uint64_t sums = (uint64_t)a->tokens * a->slots * a->rows.columns * (bits / 8);
    if (sums == 0) return MR_OK;
    layout l = {.lane = lane};
    const uint64_t first = place(&l, (a->tokens + 1ull) * sizeof(uint32_t));
    const uint64_t row = place(&l, list), slot = place(&l, a->slot ? a->entries : 0);
    const uint64_t weight = place(&l, cores * list), result = place(&l, sums);
    const mr_status status = make_room(lane, l.used, err);
    if (status != MR_OK) return status;
    for (uint32_t core = 0; core < cores; core++)
        put(&l, weight + core * list, a->weight + core * a->weight_stride, list);
    mr_cuda_pool work = {.rows = rows->rows,
                         .tokens = a->tokens,
                         .slots = a->slots,
                         .first = put_firsts(&l, first, a->count, a->tokens),
                         .row = put(&l, row, a->row, list),
                         .slot = a->slot ? put(&l, slot, a->slot, a->entries) : NULL,
                         .weight = (const float *)(const void *)(lane->room + weight),
                         .weight_stride = a->entries,
                         .column_first = a->column_first,
                         .core_columns = a->core_columns,
                         .core_first = a->core_first};
    if (bits == 32)
        work.acc32 = (int32_t *)(void *)(lane->room + result);
    else
        work.acc64 = (int64_t *)(void *)(lane->room + result);
    const int failed = api->upload(lane->stream, lane->room, lane->staged, result) ||
                       api->clear(lane->stream, lane->room + result, sums) ||
                       api->pool(lane->stream, &work);
    return finish(lane, failed, acc, result, sums, err);
}

mr_status mr_gpu_gate_dot(mr_gpu_lane *lane, const mr_gpu_rows *rows, int64_t *dot,
                          const mr_gate_args *a, mr_err *err) {
    const mr_cuda_api *api = lane->gpu->api;
    const uint64_t list = a->entries * sizeof(uint32_t), dots = a->entries * sizeof(int64_t);
    const uint64_t row_bytes = a->rows.columns * sizeof(float);
    if (dots == 0) return MR_OK;
    layout l = {.lane = lane};
    const uint64_t first = place(&l, (a->tokens + 1ull) * sizeof(uint32_t));
    const uint64_t row = place(&l, list), x = place(&l, a->tokens * row_bytes);
    const uint64_t result = place(&l, dots);
    const mr_status status = make_room(lane, l.used, err);
    if (status != MR_OK) return status;
    for (uint32_t t = 0; t < a->tokens; t++)
        put(&l, x + t * row_bytes, a->x + t * a->x_stride, row_bytes);
    const mr_cuda_dot work = {.rows = rows->rows,
                              .tokens = a->tokens,
                              .entries = a->entries,
                              .first = put_firsts(&l, first, a->count, a->tokens),
                              .row = put(&l, row, a->row, list),
                              .x = (const float *)(const void *)(lane->room + x),
                              .x_stride = a->rows.columns,
                              .dot = (int64_t *)(void *)(lane->room + result)};
    const int failed = api->upload(lane->stream, lane->room, lane->staged, result) ||
                       api->dot(lane->stream, &work);
    return finish(lane, failed, dot, result, dots, err);
}
