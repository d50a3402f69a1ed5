/* ops.h - the arithmetic as one struct of function pointers, picked once in main().
 *
 * Every backend gives the same bits for the retrieval kernels (pool, gate_dot) and for select: they
 * work on integers and comparisons. The dense kernels keep one order over K whatever the batch:
 * y[m][n] is one chain of fused multiply-adds k = 0, 1, .., K-1, so M = 1 and M = 512 agree, and
 * since a fused multiply-add is exact before its one rounding all backends agree here too. Threads:
 * all kernels only read their inputs and write what the caller owns; splitting over rows or columns
 * of the output is the caller's business (team.h). */
#ifndef MR_OPS_OPS_H
#define MR_OPS_OPS_H
#include "common/ops/element.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of a table slice in memory. */
typedef struct {
    const void *data; /* first element of row row_first */
    mr_element element;
    uint64_t row_first, row_count;
    size_t stride;    /* elements from one row to the next */
    uint32_t columns; /* elements of a row that belong to the slice */
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

/* Weights packed for gemm: panels of MR_PANEL output columns, [panels][K][MR_PANEL], zero padded.
 */
typedef struct {
    const void *data; /* 64-byte aligned */
    mr_element element;
    uint32_t n, k;
} mr_packed;

typedef struct {
    const char *name; /* "ref", "avx2", "avx512" */
    void (*pool32)(int32_t *acc,
                   const mr_pool_args *a); /* acc [tokens][slots][columns], added to */
    void (*pool64)(int64_t *acc, const mr_pool_args *a);
    void (*gate_dot)(int64_t *dot, const mr_gate_args *a);
    /* y[m][y_stride] = x[m][x_stride] . w^T for panels [panel_first, panel_first + panel_count);
     * columns of y beyond w->n are not written. */
    void (*gemm)(float *y, size_t y_stride, const float *x, size_t x_stride, uint32_t m,
                 const mr_packed *w, uint32_t panel_first, uint32_t panel_count);
    /* The k best of score[0..n): descending, ties to the lower index; -0 equals +0.
     * out_index[k]; n >= k >= 1. false if a score is NaN. scratch: k + 32 uint64. */
    bool (*select)(uint32_t *out_index, const float *score, uint32_t n, uint32_t k,
                   uint64_t *scratch);
} mr_ops;

extern const mr_ops mr_ops_ref;
/* "ref", "avx2", "avx512" or NULL for the best this processor has; NULL when it has not. */
const mr_ops *mr_ops_find(const char *name);

#endif
