/* parity.c - every operation of the CUDA module against the plain loops, bit for bit.
 *
 *   parity [--module memrack-cuda.so] [--device N]
 *
 * Goal: the module is the reference. Method: shapes that straddle every boundary the kernels have
 * (lanes, warps, tiles, cores, slots, alignment), values of all magnitudes the contract allows,
 * both storage types. Without --module: the kernels as a C compiler built them, thread by thread
 * (emulator.h), which checks what they compute and where threads meet, not a GPU. */
#include "common/ops/cuda/api.h"
#include "common/ops/gate.h"
#include "common/ops/packed.h"
#include "common/ops/philox.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* MR_MODULE_ONLY: built without the emulated module. */
#ifdef MR_MODULE_ONLY
static const mr_cuda_api *emulated(void) {
    fprintf(stderr, "parity: --module FILE is needed\n");
    exit(2);
}
#else
const mr_cuda_api *mr_cuda_module(void);
#define emulated mr_cuda_module
#endif

static const mr_cuda_api *api;
static void *device, *stream;
static uint32_t state = 1, failures, checks;

static void need(int failed, const char *what) {
    if (!failed) return;
    fprintf(stderr, "%s: %s\n", what, api ? api->error() : "");
    exit(1);
}

static void check(int good, const char *what, uint32_t a, uint32_t b, uint32_t c) {
    checks++;
    if (good) return;
    if (failures++ < 20) printf("FAIL  %s (%u, %u, %u)\n", what, a, b, c);
}

static uint32_t next_u32(void) {
    const uint32_t counter[4] = {state++, 0, 0, 0}, key[2] = {3, 5};
    uint32_t out[4];
    mr_philox(out, counter, key);
    return out[0];
}
static float next_float(void) {
    return (float)(int32_t)next_u32() * 0x1p-31f;
}
static uint32_t below(uint32_t n) {
    return next_u32() % n;
}

/* A copy on the device; freed with the rest at the end of a case. */
static void *copies[64];
static uint32_t copy_count;
static void *on_device(const void *from, size_t bytes) {
    void *to;
    need(api->alloc(device, &to, bytes + 64), "alloc");
    if (from) need(api->upload(stream, to, from, bytes), "upload");
    return copies[copy_count++] = to;
}
static void *back(const void *from, size_t bytes) {
    void *to = malloc(bytes + 1);
    need(api->download(stream, to, from, bytes), "download");
    need(api->sync(stream), "sync");
    return to;
}
static void free_copies(void) {
    need(api->sync(stream), "sync");
    while (copy_count) api->release(device, copies[--copy_count]);
}

typedef struct {
    mr_rows rows;
    mr_cuda_rows there;
    uint8_t *data;
} table;

/* A slice with a stride of its own; `odd`: a beginning that allows no wide loads. */
static table make_table(mr_element element, uint32_t rows, uint32_t columns, uint32_t pad,
                        uint32_t odd) {
    const size_t size = mr_element_bytes(element), stride = (columns + pad) * size;
    const size_t bytes = rows * stride + odd * size;
    table t = {.data = malloc(bytes)};
    for (size_t i = 0; i < bytes / size; i++) {
        const float value = next_float();
        const uint16_t half = mr_f32_to_bf16(value);
        memcpy(t.data + i * size, element == MR_F32 ? (const void *)&value : (const void *)&half,
               size);
    }
    t.rows = (mr_rows){.data = t.data + odd * size,
                       .storage = {element, 0},
                       .row_first = 100,
                       .row_count = rows,
                       .stride = stride,
                       .columns = columns};
    t.there = (mr_cuda_rows){.data = (uint8_t *)on_device(t.data, bytes) + odd * size,
                             .row_first = 100,
                             .stride_bytes = stride,
                             .columns = columns,
                             .is_bf16 = element == MR_BF16};
    return t;
}

typedef struct {
    uint32_t tokens, entries, *count, *first, *row;
    uint8_t *slot;
} asked;

static asked make_asked(uint32_t tokens, uint32_t most, uint32_t rows, uint32_t slots) {
    asked q = {.tokens = tokens,
               .count = malloc(tokens * sizeof(uint32_t)),
               .first = malloc((tokens + 1) * sizeof(uint32_t))};
    for (uint32_t t = 0; t < tokens; t++) {
        q.first[t] = q.entries;
        q.entries += q.count[t] = t % 5 == 3 ? 0 : below(most + 1);
    }
    q.first[tokens] = q.entries;
    q.row = malloc((q.entries + 1) * sizeof(uint32_t));
    q.slot = malloc(q.entries + 1);
    for (uint32_t j = 0; j < q.entries; j++) {
        q.row[j] = 100 + below(rows);
        q.slot[j] = (uint8_t)below(slots);
    }
    return q;
}

static void free_asked(asked *q) {
    free(q->count);
    free(q->first);
    free(q->row);
    free(q->slot);
}

static void check_pool(mr_element element, uint32_t columns, uint32_t pad, uint32_t odd,
                       uint32_t column_first, uint32_t core_columns, uint32_t slots, int bits) {
    enum { ROWS = 40 };
    table t = make_table(element, ROWS, columns, pad, odd);
    asked q = make_asked(1 + below(9), 90, ROWS, slots);
    const uint32_t core_first = column_first / core_columns;
    const uint32_t cores = (column_first + columns - 1) / core_columns - core_first + 1;
    const uint64_t stride = q.entries + 3;
    float *weight = malloc((cores * stride + 1) * sizeof(float));
    for (uint64_t i = 0; i < cores * stride; i++)
        weight[i] = next_float() * (bits == 32 ? 0x1p23f : 0x1p54f) * (below(3) ? 1 : 0x1p-20f);
    const size_t sums = (size_t)q.tokens * slots * columns, bytes = sums * (size_t)bits / 8;
    uint8_t *acc = malloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++) acc[i] = (uint8_t)next_u32();
    const mr_pool_args args = {.rows = t.rows,
                               .tokens = q.tokens,
                               .entries = q.entries,
                               .count = q.count,
                               .row = q.row,
                               .slot = slots > 1 ? q.slot : NULL,
                               .weight = weight,
                               .weight_stride = stride,
                               .slots = slots,
                               .column_first = column_first,
                               .core_columns = core_columns,
                               .core_first = core_first};
    const size_t list = q.entries * sizeof(uint32_t);
    void *there = on_device(acc, bytes);
    const mr_cuda_pool work = {.rows = t.there,
                               .tokens = q.tokens,
                               .slots = slots,
                               .first = on_device(q.first, (q.tokens + 1) * sizeof(uint32_t)),
                               .row = on_device(q.row, list),
                               .slot = slots > 1 ? on_device(q.slot, q.entries) : NULL,
                               .weight = on_device(weight, cores * stride * sizeof(float)),
                               .weight_stride = stride,
                               .column_first = column_first,
                               .core_columns = core_columns,
                               .core_first = core_first,
                               .acc32 = bits == 32 ? there : NULL,
                               .acc64 = bits == 64 ? there : NULL};
    need(api->pool(stream, &work), "pool");
    void *got = back(there, bytes);
    if (bits == 32)
        mr_ops_ref.pool32((int32_t *)(void *)acc, &args);
    else
        mr_ops_ref.pool64((int64_t *)(void *)acc, &args);
    check(memcmp(acc, got, bytes) == 0, bits == 32 ? "pool32" : "pool64", columns, core_columns,
          slots);
    free_copies();
    free(got);
    free(acc);
    free(weight);
    free(t.data);
    free_asked(&q);
}

static void check_gated(mr_element element, uint32_t columns, uint32_t pad, int gelu) {
    enum { ROWS = 30 };
    table t = make_table(element, ROWS, columns, pad, 0);
    asked q = make_asked(1 + below(6), 40, ROWS, 1);
    const uint32_t cores = 1 + below(3);
    float *x = malloc(q.tokens * columns * sizeof(float));
    float *score = malloc((cores * q.entries + 1) * sizeof(float));
    int64_t *dot = calloc(q.entries + 1, sizeof(int64_t));
    int16_t *dot_exponent = malloc(q.tokens * sizeof(int16_t)),
            *value_exponent = malloc(q.tokens * sizeof(int16_t));
    for (uint32_t t1 = 0; t1 < q.tokens; t1++) {
        dot_exponent[t1] = (int16_t)(6 + below(3));
        value_exponent[t1] = (int16_t)((int)below(60) - 30);
        for (uint32_t c = 0; c < columns; c++)
            x[t1 * columns + c] = mr_scale_exact(next_float() * 2, 62 - dot_exponent[t1]);
    }
    for (uint32_t i = 0; i < cores * q.entries; i++) score[i] = next_float() * 3;
    const mr_gate_args args = {.rows = t.rows,
                               .tokens = q.tokens,
                               .entries = q.entries,
                               .count = q.count,
                               .row = q.row,
                               .x = x,
                               .x_stride = columns};
    mr_ops_ref.gate_dot(dot, &args);
    const uint32_t *first = on_device(q.first, (q.tokens + 1) * sizeof(uint32_t));
    const size_t dots = q.entries * sizeof(int64_t), weights = cores * q.entries * sizeof(float);
    const mr_cuda_dot work = {.rows = t.there,
                              .tokens = q.tokens,
                              .entries = q.entries,
                              .first = first,
                              .row = on_device(q.row, q.entries * sizeof(uint32_t)),
                              .x = on_device(x, q.tokens * columns * sizeof(float)),
                              .x_stride = columns,
                              .dot = on_device(NULL, dots)};
    need(api->dot(stream, &work), "dot");
    int64_t *got = back(work.dot, dots);
    check(memcmp(dot, got, dots) == 0, "gate dots", columns, q.tokens, q.entries);
    const mr_cuda_gate gate = {.tokens = q.tokens,
                               .entries = q.entries,
                               .cores = cores,
                               .first = first,
                               .dot = work.dot,
                               .dot_exponent = on_device(dot_exponent, q.tokens * 2),
                               .value_exponent = on_device(value_exponent, q.tokens * 2),
                               .score = on_device(score, weights),
                               .weight = on_device(NULL, weights),
                               .is_gelu = gelu};
    need(api->gate(stream, &gate), "gate");
    float *weight = back(gate.weight, weights);
    int same = 1;
    for (uint32_t t1 = 0; t1 < q.tokens; t1++)
        for (uint32_t j = q.first[t1]; j < q.first[t1 + 1]; j++)
            for (uint32_t core = 0; core < cores; core++) {
                const float want =
                    mr_scale_exact(mr_gate_weight(mr_dot_to_float(dot[j], dot_exponent[t1]),
                                                  score[core * q.entries + j], gelu),
                                   62 - value_exponent[t1]);
                same &= memcmp(&want, &weight[core * q.entries + j], sizeof(want)) == 0;
            }
    check(same, "gates", columns, cores, (uint32_t)gelu);
    void *const made[] = {weight, got, dot, x, score, dot_exponent, value_exponent, t.data};
    for (int i = 0; i < 8; i++) free(made[i]);
    free_copies();
    free_asked(&q);
}

static void check_scores(mr_element element, uint32_t m, uint32_t n, uint32_t k) {
    const size_t bytes = mr_packed_data_bytes(element, n, k), y_stride = n + 3, x_stride = k + 1;
    mr_packed keys = {
        .data = aligned_alloc(64, (bytes + 63) / 64 * 64), .element = element, .n = n, .k = k};
    float *x = malloc(m * x_stride * sizeof(float)), *y = calloc(m * y_stride, sizeof(float));
    mr_packed_clear(&keys);
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t i = 0; i < k; i++) {
            const float value = next_float();
            const uint16_t half = mr_f32_to_bf16(value);
            mr_packed_put(&keys, row, i,
                          element == MR_F32 ? (const void *)&value : (const void *)&half);
        }
    for (size_t i = 0; i < m * x_stride; i++) x[i] = next_float();
    const mr_cuda_scores work = {.keys = on_device(keys.data, bytes),
                                 .is_bf16 = element == MR_BF16,
                                 .n = n,
                                 .k = k,
                                 .m = m,
                                 .x = on_device(x, m * x_stride * sizeof(float)),
                                 .y = on_device(y, m * y_stride * sizeof(float)),
                                 .x_stride = x_stride,
                                 .y_stride = y_stride};
    need(api->scores(stream, &work), "scores");
    float *got = back(work.y, m * y_stride * sizeof(float));
    mr_ops_ref.gemm(y, y_stride, x, x_stride, NULL, m, &keys, 0, mr_packed_panels(&keys));
    check(memcmp(y, got, m * y_stride * sizeof(float)) == 0, "key scores", m, n, k);
    free_copies();
    free(got);
    free(y);
    free(x);
    free((void *)(uintptr_t)keys.data);
}

static void check_select(uint32_t rows, uint32_t n, uint32_t k, uint32_t kinds) {
    const uint64_t stride = n + 2;
    float *score = malloc(rows * stride * sizeof(float));
    uint32_t *want = malloc(k * sizeof(uint32_t)), zero = 0;
    uint64_t *scratch = malloc((k + 32) * sizeof(uint64_t));
    for (uint64_t i = 0; i < rows * stride; i++) {
        score[i] = kinds ? (float)((int)below(kinds) - (int)kinds / 2) : next_float();
        if (score[i] == 0 && below(2)) score[i] = -0.0f;
    }
    const mr_cuda_select work = {.score = on_device(score, rows * stride * sizeof(float)),
                                 .stride = stride,
                                 .rows = rows,
                                 .n = n,
                                 .k = k,
                                 .index = on_device(NULL, (size_t)rows * k * sizeof(uint32_t)),
                                 .bad = on_device(&zero, sizeof(zero))};
    need(api->select(stream, &work), "select");
    uint32_t *got = back(work.index, (size_t)rows * k * sizeof(uint32_t));
    uint32_t *bad = back(work.bad, sizeof(zero));
    int same = *bad == 0;
    for (uint32_t r = 0; r < rows; r++) {
        mr_ops_ref.select(want, score + r * stride, n, k, scratch);
        same &= memcmp(want, got + (size_t)r * k, k * sizeof(uint32_t)) == 0;
    }
    check(same, "selection", rows, n, k);
    score[below(n)] = NAN;
    need(api->upload(stream, (void *)(uintptr_t)work.score, score, n * sizeof(float)), "upload");
    need(api->select(stream, &work), "select");
    uint32_t *worse = back(work.bad, sizeof(zero));
    check(*worse == 1, "a score that is no number", rows, n, k);
    free_copies();
    free(worse);
    free(bad);
    free(got);
    free(scratch);
    free(want);
    free(score);
}

static void check_all(void) {
    static const uint32_t widths[] = {1, 7, 32, 64, 96, 128, 200, 256, 264, 512};
    for (int element = 0; element < 2; element++)
        for (int bits = 32; bits <= 64; bits += 32)
            for (size_t w = 0; w < 10; w++) {
                const uint32_t n = widths[w];
                check_pool((mr_element)element, n, 0, 0, 0, n, 1, bits);
                check_pool((mr_element)element, n, 3, 1, 0, n, 1 + below(5), bits);
                check_pool((mr_element)element, n, 8, 0, 8 * below(5), 1 + below(40), 1 + below(4),
                           bits);
                check_pool((mr_element)element, n, 16, 0, 0, n % 16 ? n : n / 2, 4, bits);
            }
    for (int element = 0; element < 2; element++)
        for (size_t w = 0; w < 10; w++)
            for (int gelu = 0; gelu < 2; gelu++)
                check_gated((mr_element)element, widths[w], below(5), gelu);
    for (int element = 0; element < 2; element++)
        for (uint32_t m = 1; m < 20; m += 1 + below(6))
            check_scores((mr_element)element, m, 1 + below(300), 1 + below(200));
    for (int i = 0; i < 24; i++) {
        const uint32_t n = 1 + below(i < 12 ? 300 : 2000), k = 1 + below(n < 200 ? n : 200);
        check_select(1 + below(3), n, k, i % 3 ? 0 : 1 + below(9));
    }
    check_select(2, 1100, 1024, 5);
}

static const char *refuses(void) {
    mr_cuda_select select = {.rows = 1, .n = 4, .k = 5};
    mr_cuda_pool pool = {.tokens = 1, .slots = 1, .core_columns = 1};
    void *memory = NULL;
    if (!api->select(stream, &select)) return "a selection of more than there are";
    if (!api->pool(stream, &pool)) return "a pool without an accumulator";
    if (!api->alloc(device, &memory, UINT64_MAX / 4)) return "an allocation of everything";
    if (memory || !*api->error()) return "an error without a sentence";
    return NULL;
}

int main(int argc, char **argv) {
    int index = 0;
    const char *path = NULL;
    mr_cuda_facts facts;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--module") == 0) path = argv[i + 1];
        if (strcmp(argv[i], "--device") == 0) index = atoi(argv[i + 1]);
    }
    if (path) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        mr_cuda_module_function find = NULL;
        void *symbol = library ? dlsym(library, MR_CUDA_SYMBOL) : NULL;
        memcpy(&find, &symbol, sizeof(find));
        if (!find) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        api = find();
    } else
        api = emulated();
    need(api->abi != MR_CUDA_ABI, "another version of the module");
    need(api->open(&device, index), "open");
    need(api->describe(device, &facts), "describe");
    need(api->stream_open(device, &stream), "stream");
    printf("%s, %u.%u\n", facts.name, facts.major, facts.minor);
    check_all();
    const char *accepted = refuses();
    if (accepted) printf("FAIL  %s was not refused\n", accepted);
    api->stream_close(stream);
    api->close(device);
    printf("cuda parity: %u passed, %u failed\n", checks - failures, failures + !!accepted);
    return failures || accepted ? 1 : 0;
}
