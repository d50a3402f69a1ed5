/* ops_ref.c - the contract of ops.h as plain loops: what every other backend is compared with. It
 * is not optimised and stays so. Sums wrap as unsigned integers, so that even nonsense is defined.
 */
#include "common/ops/cpu/backends.h"

#include <math.h>

static void ref_pool32(int32_t *acc, const mr_pool_args *a) {
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++)
        for (uint32_t end = j + a->count[t]; j < end; j++) {
            const uint64_t row = (a->row[j] - a->rows.row_first) * a->rows.stride;
            const uint32_t slot = a->slot ? a->slot[j] : 0;
            int32_t *out = acc + ((size_t)t * a->slots + slot) * a->rows.columns;
            for (uint32_t c = 0; c < a->rows.columns; c++) {
                const uint32_t core = (a->column_first + c) / a->core_columns - a->core_first;
                const float value = mr_element_at(a->rows.data, a->rows.element, row + c);
                const float product = a->weight[core * a->weight_stride + j] * value;
                out[c] = (int32_t)((uint32_t)out[c] + (uint32_t)(int32_t)lrintf(product));
            }
        }
}

static void ref_pool64(int64_t *acc, const mr_pool_args *a) {
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++)
        for (uint32_t end = j + a->count[t]; j < end; j++) {
            const uint64_t row = (a->row[j] - a->rows.row_first) * a->rows.stride;
            const uint32_t slot = a->slot ? a->slot[j] : 0;
            int64_t *out = acc + ((size_t)t * a->slots + slot) * a->rows.columns;
            for (uint32_t c = 0; c < a->rows.columns; c++) {
                const uint32_t core = (a->column_first + c) / a->core_columns - a->core_first;
                const float value = mr_element_at(a->rows.data, a->rows.element, row + c);
                const float product = a->weight[core * a->weight_stride + j] * value;
                out[c] = (int64_t)((uint64_t)out[c] + (uint64_t)llrintf(product));
            }
        }
}

static void ref_gate_dot(int64_t *dot, const mr_gate_args *a) {
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++)
        for (uint32_t end = j + a->count[t]; j < end; j++) {
            const uint64_t row = (a->row[j] - a->rows.row_first) * a->rows.stride;
            uint64_t sum = 0;
            for (uint32_t c = 0; c < a->rows.columns; c++) {
                const float value = mr_element_at(a->rows.data, a->rows.element, row + c);
                const float product = a->x[t * a->x_stride + c] * value;
                sum += (uint64_t)llrintf(product);
            }
            dot[j] = (int64_t)sum;
        }
}

static void ref_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, uint32_t m,
                     const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    const uint32_t last = panel_first + panel_count;
    for (uint32_t panel = panel_first; panel < last; panel++)
        for (uint32_t c = 0; c < MR_PANEL && panel * MR_PANEL + c < w->n; c++)
            for (uint32_t i = 0; i < m; i++) {
                float sum = 0;
                for (uint32_t k = 0; k < w->k; k++) {
                    const uint64_t at = ((uint64_t)panel * w->k + k) * MR_PANEL + c;
                    sum = fmaf(x[i * x_stride + k], mr_element_at(w->data, w->element, at), sum);
                }
                y[i * y_stride + panel * MR_PANEL + c] = sum;
            }
}

static bool ref_select(uint32_t *out_index, const float *score, uint32_t n, uint32_t k,
                       uint64_t *scratch) {
    if (!mr_select_start(scratch, score, k)) return false;
    for (uint32_t i = k; i < n; i++) {
        if (score[i] != score[i]) return false;
        const uint64_t key = mr_select_key(score[i], i);
        if (key > scratch[0]) mr_select_sift(scratch, k, 0, key);
    }
    mr_select_finish(out_index, scratch, k);
    return true;
}

const mr_ops mr_ops_ref = {"ref", ref_pool32, ref_pool64, ref_gate_dot, ref_gemm, ref_select};
