/* pool_pieces.h - pooling and gate dots of rows with scales, and of f16, for vector backends
 * without masked loads: decoded a piece at a time, then added like f32. A file that includes it has
 * defined quad_add32, quad_add64 and dot_plain for f32 and bf16, and decode_i8, decode_f8,
 * decode_f16, decode_i4 and from_f16. */
#ifndef MR_OPS_CPU_POOL_PIECES_H
#define MR_OPS_CPU_POOL_PIECES_H
#include "common/ops/cpu/pool_loop.h"

enum { PIECE = 256 };

static inline float scale_of(const uint8_t *at, mr_storage_type type) {
    float whole;
    uint16_t half;
    if (type == MR_STORE_INT8_BLOCK || type == MR_STORE_INT4) {
        memcpy(&half, at, sizeof(half));
        return from_f16(half);
    }
    memcpy(&whole, at, sizeof(whole));
    return whole;
}

/* Columns [first, first + count) of a row. */
static inline __attribute__((always_inline)) void
decode_piece(float *out, const uint8_t *row, mr_storage_type type, uint32_t first, uint32_t count) {
    if (type == MR_STORE_F16) {
        decode_f16(out, row + (size_t)first * 2, count);
        return;
    }
    if (type == MR_STORE_INT8 || type == MR_STORE_FP8) {
        const float scale = scale_of(row, type);
        if (type == MR_STORE_INT8)
            decode_i8(out, row + 4 + first, scale, count);
        else
            decode_f8(out, row + 4 + first, scale, count);
        return;
    }
    const uint32_t block = type == MR_STORE_FP8_BLOCK ? MR_TILE_BLOCK : MR_QUANT_BLOCK;
    const size_t block_bytes = type == MR_STORE_FP8_BLOCK ? 132 : type == MR_STORE_INT4 ? 18 : 34;
    for (uint32_t i = 0; i < count;) {
        const uint32_t at = (first + i) % block;
        const uint32_t take = block - at < count - i ? block - at : count - i;
        const uint8_t *start = row + (first + i) / block * block_bytes;
        const float scale = scale_of(start, type);
        float whole[MR_QUANT_BLOCK];
        if (type == MR_STORE_FP8_BLOCK)
            decode_f8(out + i, start + 4 + at, scale, take);
        else if (type == MR_STORE_INT8_BLOCK)
            decode_i8(out + i, start + 2 + at, scale, take);
        else if (take == MR_QUANT_BLOCK)
            decode_i4(out + i, start + 2, scale);
        else {
            decode_i4(whole, start + 2, scale);
            memcpy(out + i, whole + at, take * sizeof(float));
        }
        i += take;
    }
}

/* The rows to come are asked for in step with the columns. */
static inline void ask_on(const quad *q, int rows, uint32_t done, uint32_t all, size_t bytes,
                          size_t *asked) {
    const size_t until = done >= all ? bytes : bytes * done / all;
    for (; *asked < until; *asked += 64)
        for (int i = 0; i < rows; i++) ask(q->next[i] + *asked);
}

#define DECODED_ROWS(NAME, TYPE, ADD, MR_ROWS_PLAIN)                                               \
    static inline __attribute__((always_inline)) void NAME(                                        \
        TYPE *acc, const mr_pool_args *a, const quad *q, int rows, mr_storage_type type) {         \
        const uint32_t columns = a->rows.columns;                                                  \
        const size_t bytes = touched_bytes(&a->rows);                                              \
        size_t asked = 0;                                                                          \
        float piece[4][PIECE];                                                                     \
        if (type == MR_STORE_F32 || type == MR_STORE_BF16) {                                       \
            MR_ROWS_PLAIN(acc, a, q, rows, type);                                                  \
            return;                                                                                \
        }                                                                                          \
        for (uint32_t from = 0; from < columns;) {                                                 \
            const uint32_t core = (a->column_first + from) / a->core_columns;                      \
            uint32_t to = (core + 1) * a->core_columns - a->column_first;                          \
            if (to > columns) to = columns;                                                        \
            if (to - from > PIECE) to = from + PIECE;                                              \
            ask_on(q, rows, to, columns, bytes, &asked);                                           \
            quad p = *q;                                                                           \
            for (int i = 0; i < rows; i++) {                                                       \
                decode_piece(piece[i], q->row[i], type, a->rows.skip + from, to - from);           \
                p.row[i] = p.next[i] = (const uint8_t *)piece[i];                                  \
            }                                                                                      \
            ADD(acc + from, &p, rows, (core - a->core_first) * a->weight_stride, 0, 0, to - from,  \
                MR_STORE_F32);                                                                     \
            from = to;                                                                             \
        }                                                                                          \
    }

MR_POOL_ROWS(plain_rows32, int32_t, quad_add32)
MR_POOL_ROWS(plain_rows64, int64_t, quad_add64)
DECODED_ROWS(pool_rows32, int32_t, quad_add32, plain_rows32)
DECODED_ROWS(pool_rows64, int64_t, quad_add64, plain_rows64)
MR_POOL(pool_any32, int32_t, pool_rows32)
MR_POOL(pool_any64, int64_t, pool_rows64)

static inline __attribute__((always_inline)) int64_t
dot_row(const float *x, const uint8_t *row, const mr_rows *r, mr_storage_type type) {
    float piece[PIECE];
    uint64_t total = 0;
    if (type == MR_STORE_F32 || type == MR_STORE_BF16)
        return (int64_t)dot_plain(x, row, r->columns, type);
    for (uint32_t c = 0; c < r->columns; c += PIECE) {
        const uint32_t take = r->columns - c < PIECE ? r->columns - c : PIECE;
        decode_piece(piece, row, type, r->skip + c, take);
        total += dot_plain(x + c, (const uint8_t *)piece, take, MR_STORE_F32);
    }
    return (int64_t)total;
}

MR_GATE(gate_any, dot_row)
#endif
