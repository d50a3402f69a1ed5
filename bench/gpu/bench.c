/* bench.c - how fast the CUDA module is, each figure beside the copy bandwidth of the same run.
 *
 *   bench --module memrack-cuda.so [--device N] [--table-mib N]
 *
 * Prints CSV: what, storage, row bytes, bytes that had to be read, ms, GB/s, ratio to the copy
 * bandwidth (bytes read and written over time). Rows are drawn at random from a table that no cache
 * holds, at least 64 MiB of them a launch; every figure is the best of several launches between two
 * marks of the stream. bench/gpu/run starts it. */
#include "common/ops/cuda/api.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 12, ENTRIES = 84, LAUNCH_MIB = 256, PIECE_MIB = 64 };

static const mr_cuda_api *api;
static void *device, *stream;
static double copy_rate;

static void need(int failed, const char *what) {
    if (!failed) return;
    fprintf(stderr, "bench: %s: %s\n", what, api ? api->error() : dlerror());
    exit(1);
}

static uint64_t random_state = 88172645463325252ull;
static uint32_t next_u32(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static void *on_device(const void *from, uint64_t bytes) {
    void *to;
    need(api->alloc(device, &to, bytes), "alloc");
    if (from) need(api->upload(stream, to, from, bytes), "upload");
    need(api->sync(stream), "sync");
    return to;
}

typedef int (*launch)(void *work);

/* Milliseconds of the fastest of ROUNDS launches. */
static float fastest(launch run, void *work) {
    float best = 1e30f, ms;
    for (int i = 0; i < ROUNDS; i++) {
        need(api->mark(stream, 0) || run(work) || api->mark(stream, 1), "launch");
        need(api->elapsed(stream, &ms), "time");
        if (i > 1 && ms < best) best = ms;
    }
    return best;
}

static void report(const char *what, const char *storage, uint32_t row_bytes, double bytes,
                   float ms) {
    const double rate = bytes / (double)ms / 1e6;
    printf("%s,%s,%u,%.0f,%.4f,%.1f,%.3f\n", what, storage, row_bytes, bytes, (double)ms, rate,
           copy_rate > 0 ? rate / copy_rate : 1.0);
    fflush(stdout);
}

typedef struct {
    void *to, *from;
    uint64_t bytes;
} copy_work;
static int run_copy(void *work) {
    const copy_work *w = work;
    return api->copy(stream, w->to, w->from, w->bytes);
}

static int run_pool(void *work) {
    return api->pool(stream, work);
}
static int run_dot(void *work) {
    return api->dot(stream, work);
}
static int run_scores(void *work) {
    return api->scores(stream, work);
}
static int run_select(void *work) {
    return api->select(stream, work);
}

/* Random numbers, never zeros, over the whole table. */
static uint8_t *make_table(uint64_t bytes) {
    const uint64_t piece = (uint64_t)PIECE_MIB << 20;
    uint8_t *pattern = malloc(piece), *table = on_device(NULL, bytes);
    for (uint64_t i = 0; i < piece / 2; i++) { /* as bf16 and as the upper half of f32: [1, 2) */
        const uint16_t half = (uint16_t)(0x3f80u | (next_u32() & 0x7fu));
        memcpy(pattern + 2 * i, &half, 2);
    }
    need(api->upload(stream, table, pattern, piece) || api->sync(stream), "upload");
    for (uint64_t at = piece; at < bytes; at += piece)
        need(api->copy(stream, table + at, table, bytes - at < piece ? bytes - at : piece), "copy");
    need(api->sync(stream), "sync");
    free(pattern);
    return table;
}

static void measure_rows(const uint8_t *table, uint64_t table_bytes, int is_bf16, uint32_t columns,
                         uint32_t slots, int bits) {
    const uint32_t row_bytes = columns * (is_bf16 ? 2u : 4u);
    const uint64_t rows = table_bytes / row_bytes;
    const uint32_t tokens = (uint32_t)(((uint64_t)LAUNCH_MIB << 20) / row_bytes / ENTRIES) + 1;
    const uint64_t entries = (uint64_t)tokens * ENTRIES;
    uint32_t *row = malloc(entries * 4), *first = malloc((tokens + 1ull) * 4);
    uint8_t *slot = malloc(entries);
    float *weight = malloc(entries * 4), *x = malloc((uint64_t)tokens * columns * 4);
    for (uint64_t i = 0; i < entries; i++) {
        row[i] = (uint32_t)(next_u32() % rows);
        slot[i] = (uint8_t)(next_u32() % slots);
        weight[i] = (float)(next_u32() & 0xffff);
    }
    for (uint32_t t = 0; t <= tokens; t++) first[t] = t * ENTRIES;
    for (uint64_t i = 0; i < (uint64_t)tokens * columns; i++) x[i] = (float)(next_u32() & 0xffff);
    const uint64_t sums = (uint64_t)tokens * slots * columns * ((uint32_t)bits / 8);
    void *acc = on_device(NULL, sums);
    need(api->clear(stream, acc, sums), "clear");
    mr_cuda_pool pool = {.rows = {table, 0, row_bytes, columns, is_bf16},
                         .tokens = tokens,
                         .slots = slots,
                         .first = on_device(first, (tokens + 1ull) * 4),
                         .row = on_device(row, entries * 4),
                         .slot = slots > 1 ? on_device(slot, entries) : NULL,
                         .weight = on_device(weight, entries * 4),
                         .weight_stride = entries,
                         .core_columns = columns,
                         .acc32 = bits == 32 ? acc : NULL,
                         .acc64 = bits == 64 ? acc : NULL};
    char name[64];
    snprintf(name, sizeof(name), "pool%d slots %u", bits, slots);
    report(name, is_bf16 ? "bf16" : "f32", row_bytes, (double)entries * row_bytes,
           fastest(run_pool, &pool));
    if (slots == 1 && bits == 64) {
        mr_cuda_dot dot = {.rows = pool.rows,
                           .tokens = tokens,
                           .entries = (uint32_t)entries,
                           .first = pool.first,
                           .row = pool.row,
                           .x = on_device(x, (uint64_t)tokens * columns * 4),
                           .x_stride = columns,
                           .dot = on_device(NULL, entries * 8)};
        report("gate dot", is_bf16 ? "bf16" : "f32", row_bytes, (double)entries * row_bytes,
               fastest(run_dot, &dot));
        api->release(device, (void *)(uintptr_t)dot.x);
        api->release(device, dot.dot);
    }
    const void *made[] = {acc, pool.first, pool.row, pool.slot, pool.weight};
    for (int i = 0; i < 5; i++) api->release(device, (void *)(uintptr_t)made[i]);
    free(row);
    free(first);
    free(slot);
    free(weight);
    free(x);
}

/* Key scores of a 1.6B layer's side (1792 keys, rank 2, 512 deep), and selections among them. */
static void measure_keys(uint32_t tokens) {
    enum { KEYS = 3584, DEPTH = 512, CANDIDATES = 1792, BEST = 42 };
    float *x = malloc((uint64_t)tokens * DEPTH * 4);
    float *keys = malloc((uint64_t)KEYS * DEPTH * 4);
    uint32_t zero = 0;
    for (uint64_t i = 0; i < (uint64_t)tokens * DEPTH; i++) x[i] = (float)(next_u32() & 0xff) - 128;
    for (uint64_t i = 0; i < (uint64_t)KEYS * DEPTH; i++)
        keys[i] = (float)(next_u32() & 0xff) - 128;
    mr_cuda_scores scores = {.keys = on_device(keys, (uint64_t)KEYS * DEPTH * 4),
                             .n = KEYS,
                             .k = DEPTH,
                             .m = tokens,
                             .x = on_device(x, (uint64_t)tokens * DEPTH * 4),
                             .y = on_device(NULL, (uint64_t)tokens * KEYS * 4),
                             .x_stride = DEPTH,
                             .y_stride = KEYS};
    const float ms = fastest(run_scores, &scores);
    printf("key scores %u tokens,f32,%d,%.0f,%.4f,%.1f GFLOP/s,\n", tokens, DEPTH * 4,
           2.0 * KEYS * DEPTH * tokens, (double)ms, 2.0 * KEYS * DEPTH * tokens / (double)ms / 1e6);
    mr_cuda_select select = {.score = scores.y,
                             .stride = KEYS,
                             .rows = tokens,
                             .n = CANDIDATES,
                             .k = BEST,
                             .index = on_device(NULL, (uint64_t)tokens * BEST * 4),
                             .bad = on_device(&zero, 4)};
    char name[64];
    snprintf(name, sizeof(name), "best %d of %d, %u rows", BEST, CANDIDATES, tokens);
    report(name, "f32", CANDIDATES * 4, (double)tokens * CANDIDATES * 4,
           fastest(run_select, &select));
    const void *made[] = {scores.keys, scores.x, scores.y, select.index, select.bad};
    for (int i = 0; i < 5; i++) api->release(device, (void *)(uintptr_t)made[i]);
    free(x);
    free(keys);
}

static void measure_copy(void) {
    copy_work w = {.bytes = (uint64_t)1 << 30};
    w.to = on_device(NULL, w.bytes);
    w.from = make_table(w.bytes);
    const float ms = fastest(run_copy, &w);
    copy_rate = 2.0 * (double)w.bytes / (double)ms / 1e6;
    report("copy", "bytes", 0, 2.0 * (double)w.bytes, ms);
    api->release(device, w.to);
    api->release(device, w.from);
}

int main(int argc, char **argv) {
    const char *path = "memrack-cuda.so";
    int index = 0;
    uint64_t table_bytes = (uint64_t)8192 << 20;
    mr_cuda_module_function find = NULL;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--module") == 0) path = argv[i + 1];
        if (strcmp(argv[i], "--device") == 0) index = atoi(argv[i + 1]);
        if (strcmp(argv[i], "--table-mib") == 0)
            table_bytes = strtoull(argv[i + 1], NULL, 10) << 20;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, MR_CUDA_SYMBOL) : NULL;
    memcpy(&find, &symbol, sizeof(find));
    need(!find, "opening the module");
    api = find();
    need(api->abi != MR_CUDA_ABI, "another version of the module");
    need(api->open(&device, index) || api->stream_open(device, &stream), "open");
    printf("what,storage,row_bytes,bytes,ms,gb_s,ratio_to_copy\n");
    measure_copy();
    const uint8_t *table = make_table(table_bytes);
    static const uint32_t row_bytes[] = {256, 384, 512, 1024, 2048};
    for (int i = 0; i < 5; i++)
        for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
            const uint32_t columns = row_bytes[i] / (is_bf16 ? 2 : 4);
            measure_rows(table, table_bytes, is_bf16, columns, 1, 32);
            measure_rows(table, table_bytes, is_bf16, columns, 4, 32);
            measure_rows(table, table_bytes, is_bf16, columns, 1, 64);
        }
    for (uint32_t tokens = 1; tokens <= 1024; tokens *= 32) measure_keys(tokens);
    measure_copy(); /* again: what drifted in between */
    return 0;
}
