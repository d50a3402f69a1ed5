/* ops.h - the arithmetic as one struct of function pointers, picked once in main().
 *
 * Every backend gives the same bits for the retrieval kernels (pool, gate_dot) and for select: they
 * work on integers and comparisons. The dense kernels keep one order over K whatever the batch:
 * y[m][n] is one chain over k = 0, 1, .., K-1 (mr_packed says which), so M = 1 and M = 512 agree,
 * and since every operation of it is rounded once and alike all backends of one numeric class agree
 * here too. Threads: all kernels only read their inputs and write what the caller owns; splitting
 * over rows or columns of the output is the caller's business (team.h). */
#ifndef MR_OPS_OPS_H
#define MR_OPS_OPS_H
#include "common/ops/element.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of a table slice in memory. A slice of a format with MR_WHOLE_ROW is a row of its own: the
 * scale, then the slice's codes. One of a format with smaller blocks holds every block it has a
 * part in, whole; `skip` columns of the first one are not its own. */
typedef struct {
    const void *data; /* row row_first */
    mr_storage storage;
    uint64_t row_first, row_count;
    size_t stride;    /* bytes from one row to the next */
    uint32_t columns; /* elements of a row that belong to the slice */
    uint32_t skip;
} mr_rows;

/* Pool a slice of table rows in fixed point, entries in token order (CSR):
 *   acc[t][slot[j]][c] += rn(fl32(weight[core(c)][j] * row[j][c]))   for each entry j of token t
 * with core(c) = (column_first + c) / core_columns - core_first. Weights carry 2^(30-e) or 2^(62-e)
 * already. Products round to fp32, then to integer, both to nearest even. Integer addition is
 * exact, so any order, split or device gives the same bits. */
typedef struct {
    mr_rows rows;
    uint32_t tokens, entries;
    const uint32_t *count; /* [tokens] entries of each token */
    const uint32_t *row;   /* [entries] global ids, checked by the caller to lie in rows */
    const uint8_t *slot;   /* [entries] < slots, or NULL: all 0 */
    const float *weight;   /* [cores][weight_stride], the first `entries` of each core used */
    size_t weight_stride;  /* >= entries: a part of a request points into the whole */
    uint32_t slots;
    uint32_t column_first; /* of the slice within a whole row */
    uint32_t core_columns; /* columns a core weighs: width / M */
    uint32_t core_first;   /* core of weight[0] */
} mr_pool_args;

/* Gate dots in fixed point: dot[j] = sum over c of rn(fl32(x[t][c] * pre[j][c])), x scaled by
 * 2^(62-d). */
typedef struct {
    mr_rows rows; /* pre-values */
    uint32_t tokens, entries;
    const uint32_t *count; /* [tokens] */
    const uint32_t *row;   /* [entries] */
    const float *x;        /* [tokens][x_stride], columns used from 0 */
    size_t x_stride;
} mr_gate_args;

enum { MR_PANEL = 32 }; /* output columns of a packed weight panel */

/* Weights [n][k] packed for gemm in panels of MR_PANEL outputs c, zero padded to whole panels; K is
 * padded with zeros to pairs (bf16) or to 32 (int8, int4). In a panel:
 *
 *   f32, f16   [K][c]
 *   bf16       [K / 2][c][2]
 *   f8         [K][c]
 *   int8       [K / 4][c][4]        as code + 128
 *   int4       [K / 32][4][c][4]    byte j of quad q: low bits k = 4q + j, high bits k = 16 + 4q +
 * j of the 32, as code + 8
 *
 * What y is, x being fp32 and all operations fp32 rounded to nearest even:
 *   f32, bf16, f16   sum = fma(x[k], w[k], sum) over k
 *   f8, a scale for 128      in each 128 of K a chain like that one from 0, then
 *                            y = fma(chain, scale, y) in order; a scale a row: y = chain * scale
 *   int8, int4       x is cut in blocks of 32 of K: d = max |x| / 127, code = rn(x * (1 / d)); dot
 * is the exact integer sum; scales for 32: y = fma(dot, d * scale, y) in order; a scale a row: y =
 * fma(dot, d, y) in order, times the scale at the end.
 *
 * The backend avx512bf16 is a numeric class of its own: for bf16 weights x is rounded to bf16 as
 * well, and sum = fma(x[k], w[k], fma(x[k + 1], w[k + 1], sum)) over even k, denormals (of x, w,
 * sum and each step's result) taken as zero: what VDPBF16PS does. The same bits for every m. */
typedef struct {
    const void *data;   /* 64-byte aligned */
    const void *scales; /* [panels][blocks of K][MR_PANEL], f16 where block is MR_QUANT_BLOCK, else
                           f32; NULL where block is 0 */
    mr_element element;
    uint32_t n, k;
    uint32_t block;   /* inputs that share a scale: as in mr_storage */
    bool is_borrowed; /* data and scales are somebody else's memory */
} mr_packed;

/* A running softmax of one query: the largest score so far and the sum of e^(score - largest). */
typedef struct {
    float largest, sum;
} mr_attention_state;

enum { MR_ATTEND_KEYS = 16 }; /* at most, in a call */

typedef struct {
    const char *name; /* as mr_ops_find takes it */
    void (*pool32)(int32_t *acc,
                   const mr_pool_args *a); /* acc [tokens][slots][columns], added to */
    void (*pool64)(int64_t *acc, const mr_pool_args *a);
    void (*gate_dot)(int64_t *dot, const mr_gate_args *a);
    /* Bytes that prepare writes for one row of x, a multiple of 64; 0: gemm reads x itself. */
    size_t (*prepared_bytes)(const mr_packed *w);
    /* Rows of x in the form that gemm reads for such weights: out [m][prepared_bytes]. A row's form
     * depends on the row only, and on nothing of w but its type and k. */
    void (*prepare)(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w);
    /* y[m][y_stride] = x[m][x_stride] . w^T for panels [panel_first, panel_first + panel_count);
     * columns of y beyond w->n are not written. prepared: of these m rows; unused where
     * prepared_bytes is 0. */
    void (*gemm)(float *y, size_t y_stride, const float *x, size_t x_stride, const void *prepared,
                 uint32_t m, const mr_packed *w, uint32_t panel_first, uint32_t panel_count);
    /* Takes `count` keys and values [count][dim] into the softmaxes of `heads` queries
     * [heads][dim]: score = mr_dot(query, key) * scale; largest = their maximum and the one so far;
     *   sum = sum * e^(old largest - largest), then + e^(score - largest), key by key;
     *   out[heads][dim] likewise with the values. e^x is mr_exp. */
    void (*attend)(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                   const float *keys, const float *values, uint32_t count, uint32_t dim,
                   float scale);
    /* The k best of score[0..n): descending, ties to the lower index; -0 equals +0.
     * out_index[k]; n >= k >= 1. false if a score is NaN. scratch: k + 32 uint64. */
    bool (*select)(uint32_t *out_index, const float *score, uint32_t n, uint32_t k,
                   uint64_t *scratch);
} mr_ops;

extern const mr_ops mr_ops_ref;
/* "ref", "avx2", "avx512", "avx512bf16", "neon" or NULL for the best that this processor has, other
 * than avx512bf16; NULL when it has not. */
const mr_ops *mr_ops_find(const char *name);
/* What people ask for: numeric NULL or "exact" is mr_ops_find(isa), whose backends agree bit for
 * bit; "fast" is avx512bf16 where the processor has it and isa is NULL or "avx512", else as exact.
 * NULL: there is no such isa here, or numeric is another word. */
const mr_ops *mr_ops_choose(const char *isa, const char *numeric);

#endif
