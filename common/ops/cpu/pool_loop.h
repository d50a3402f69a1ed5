/* pool_loop.h - the walk over entries that the vector backends share; each brings its own
 * arithmetic for one to four rows, and is built with the flags of its instruction set. */
#ifndef MR_OPS_CPU_POOL_LOOP_H
#define MR_OPS_CPU_POOL_LOOP_H
#include "common/ops/cpu/backends.h"

#include <assert.h>

static inline const uint8_t *row_at(const mr_rows *r, uint32_t row) {
    return (const uint8_t *)r->data + (row - r->row_first) * r->stride;
}

/* Entries between asking for a row and using it: enough lines on their way to cover memory's
 * latency, few enough to stay in the second-level cache. Of 4 to 24 and both cache levels, 12 rows
 * into the second level came out best for rows of 384 to 2048 bytes (bench/pool.c, Zen 4). */
enum { AHEAD = 12 };

/* For reading, into the second-level cache: PREFETCHT1, PRFM PLDL2KEEP. */
static inline __attribute__((always_inline)) void ask(const uint8_t *at) {
    __builtin_prefetch(at, 0, 2);
}

static inline __attribute__((always_inline)) void prefetch_row(const uint8_t *row, size_t bytes) {
    for (size_t b = 0; b < bytes; b += 64) ask(row + b);
}

/* From the first byte of a row to the last one that is read. */
static inline size_t touched_bytes(const mr_rows *r) {
    return (size_t)mr_storage_bytes(r->storage, r->skip + r->columns);
}

typedef struct {
    const uint8_t *row[4], *next[4]; /* to add, and to ask for meanwhile */
    const float *weight[4];          /* [core * weight_stride] */
} quad;

/* All columns of one to four rows, core by core. */
#define MR_POOL_ROWS(NAME, TYPE, ADD)                                                              \
    static inline __attribute__((always_inline)) void NAME(                                        \
        TYPE *acc, const mr_pool_args *a, const quad *q, int rows, mr_storage_type type) {         \
        uint32_t from = 0;                                                                         \
        while (from < a->rows.columns) {                                                           \
            const uint32_t core = (a->column_first + from) / a->core_columns;                      \
            uint32_t to = (core + 1) * a->core_columns - a->column_first;                          \
            if (to > a->rows.columns) to = a->rows.columns;                                        \
            ADD(acc, q, rows, (core - a->core_first) * a->weight_stride, a->rows.skip, from, to,   \
                type);                                                                             \
            from = to;                                                                             \
        }                                                                                          \
    }
enum { WINDOW = 128 }; /* entries put in order of their slot at a time */

/* order[i]: the entries [first, first + count), those of one slot side by side. Sums are exact, so
 * the order is free; it lets four rows share one pass over the accumulator. */
static inline void order_by_slot(uint32_t *order, const mr_pool_args *a, uint32_t first,
                                 uint32_t count) {
    uint32_t start[257] = {0};
    if (!a->slot) {
        for (uint32_t i = 0; i < count; i++) order[i] = first + i;
        return;
    }
    for (uint32_t i = 0; i < count; i++) start[a->slot[first + i] + 1u]++;
    for (uint32_t s = 0; s < a->slots; s++) start[s + 1] += start[s];
    for (uint32_t i = 0; i < count; i++) order[start[a->slot[first + i]]++] = first + i;
}

/* A row to ask for while others are added: `ahead` places on, in the window or after it. */
static inline const uint8_t *row_ahead(const mr_pool_args *a, const uint32_t *order, uint32_t at,
                                       uint32_t count, uint32_t end) {
    if (at < count) return row_at(&a->rows, a->row[order[at]]);
    const uint32_t entry = end + (at - count);
    return row_at(&a->rows, a->row[entry < a->entries ? entry : a->entries - 1]);
}

/* pool32, pool64 and gate_dot, compiled once for each storage type. */
#define MR_POOL_TYPES(NAME, TYPE, ANY) MR_BY_TYPE(NAME, TYPE, mr_pool_args, ANY)
#define MR_GATE_TYPES(NAME, ANY) MR_BY_TYPE(NAME, int64_t, mr_gate_args, ANY)
#define MR_BY_TYPE(NAME, TYPE, ARGS, ANY)                                                          \
    void NAME(TYPE *acc, const ARGS *a) {                                                          \
        switch (mr_storage_type_of(a->rows.storage)) {                                             \
        case MR_STORE_F32:                                                                         \
            ANY(acc, a, MR_STORE_F32);                                                             \
            break;                                                                                 \
        case MR_STORE_BF16:                                                                        \
            ANY(acc, a, MR_STORE_BF16);                                                            \
            break;                                                                                 \
        case MR_STORE_F16:                                                                         \
            ANY(acc, a, MR_STORE_F16);                                                             \
            break;                                                                                 \
        case MR_STORE_INT8:                                                                        \
            ANY(acc, a, MR_STORE_INT8);                                                            \
            break;                                                                                 \
        case MR_STORE_INT8_BLOCK:                                                                  \
            ANY(acc, a, MR_STORE_INT8_BLOCK);                                                      \
            break;                                                                                 \
        case MR_STORE_INT4:                                                                        \
            ANY(acc, a, MR_STORE_INT4);                                                            \
            break;                                                                                 \
        case MR_STORE_FP8:                                                                         \
            ANY(acc, a, MR_STORE_FP8);                                                             \
            break;                                                                                 \
        case MR_STORE_FP8_BLOCK:                                                                   \
            ANY(acc, a, MR_STORE_FP8_BLOCK);                                                       \
            break;                                                                                 \
        case MR_STORE_COUNT:                                                                       \
            assert(0 && "a storage type");                                                         \
        }                                                                                          \
    }

#define MR_POOL(NAME, TYPE, ROWS)                                                                  \
    static inline __attribute__((always_inline)) void NAME(TYPE *acc, const mr_pool_args *a,       \
                                                           mr_storage_type type) {                 \
        const uint32_t columns = a->rows.columns;                                                  \
        uint32_t entry = 0, order[WINDOW];                                                         \
        for (uint32_t p = 0; p < AHEAD && p < a->entries; p++)                                     \
            prefetch_row(row_at(&a->rows, a->row[p]), touched_bytes(&a->rows));                    \
        for (uint32_t t = 0; t < a->tokens; t++) {                                                 \
            TYPE *token = acc + (size_t)t * a->slots * columns;                                    \
            const uint32_t last = entry + a->count[t];                                             \
            while (entry < last) {                                                                 \
                const uint32_t count = last - entry < WINDOW ? last - entry : WINDOW;              \
                const uint32_t end = entry + count;                                                \
                order_by_slot(order, a, entry, count);                                             \
                for (uint32_t i = 0; i < count;) {                                                 \
                    quad q;                                                                        \
                    const uint32_t slot = a->slot ? a->slot[order[i]] : 0;                         \
                    int rows = 0;                                                                  \
                    for (; rows < 4 && i < count && (!a->slot || a->slot[order[i]] == slot);       \
                         i++) {                                                                    \
                        q.row[rows] = row_at(&a->rows, a->row[order[i]]);                          \
                        q.next[rows] = row_ahead(a, order, i + AHEAD, count, end);                 \
                        q.weight[rows++] = a->weight + order[i];                                   \
                    }                                                                              \
                    TYPE *out = token + (size_t)slot * columns;                                    \
                    switch (rows) {                                                                \
                    case 1:                                                                        \
                        ROWS(out, a, &q, 1, type);                                                 \
                        break;                                                                     \
                    case 2:                                                                        \
                        ROWS(out, a, &q, 2, type);                                                 \
                        break;                                                                     \
                    case 3:                                                                        \
                        ROWS(out, a, &q, 3, type);                                                 \
                        break;                                                                     \
                    default:                                                                       \
                        ROWS(out, a, &q, 4, type);                                                 \
                        break;                                                                     \
                    }                                                                              \
                }                                                                                  \
                entry = end;                                                                       \
            }                                                                                      \
        }                                                                                          \
    }

/* One row after the other, each whole row asked for ahead of its time. */
#define MR_GATE(NAME, DOT)                                                                         \
    static inline __attribute__((always_inline)) void NAME(int64_t *dot, const mr_gate_args *a,    \
                                                           mr_storage_type type) {                 \
        const size_t bytes = touched_bytes(&a->rows);                                              \
        uint32_t j = 0;                                                                            \
        for (uint32_t t = 0; t < a->tokens; t++) {                                                 \
            const float *x = a->x + t * a->x_stride;                                               \
            for (const uint32_t end = j + a->count[t]; j < end; j++) {                             \
                if (j + AHEAD < a->entries)                                                        \
                    prefetch_row(row_at(&a->rows, a->row[j + AHEAD]), bytes);                      \
                dot[j] = DOT(x, row_at(&a->rows, a->row[j]), &a->rows, type);                      \
            }                                                                                      \
        }                                                                                          \
    }
#endif
