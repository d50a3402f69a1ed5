/* ops_ref.c - the contract of ops.h as plain loops: what every other backend is compared with. It
 * is not optimised and stays so. Sums wrap as unsigned integers, so that even nonsense is defined.
 */
#include "common/ops/cpu/backends.h"
#include "common/ops/dense.h"
#include "common/ops/math.h"
#include "common/ops/packed.h"

#include <math.h>

static const uint8_t *row_of(const mr_rows *r, uint32_t row) {
    return (const uint8_t *)r->data + (row - r->row_first) * r->stride;
}

static float value_of(const mr_rows *r, const uint8_t *row, uint32_t column) {
    float value;
    mr_storage_decode(&value, row, r->storage, r->skip + r->columns, r->skip + column, 1);
    return value;
}

static void ref_pool32(int32_t *acc, const mr_pool_args *a) {
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++)
        for (uint32_t end = j + a->count[t]; j < end; j++) {
            const uint8_t *row = row_of(&a->rows, a->row[j]);
            const uint32_t slot = a->slot ? a->slot[j] : 0;
            int32_t *out = acc + ((size_t)t * a->slots + slot) * a->rows.columns;
            for (uint32_t c = 0; c < a->rows.columns; c++) {
                const uint32_t core = (a->column_first + c) / a->core_columns - a->core_first;
                const float value = value_of(&a->rows, row, c);
                const float product = a->weight[core * a->weight_stride + j] * value;
                out[c] = (int32_t)((uint32_t)out[c] + (uint32_t)(int32_t)lrintf(product));
            }
        }
}

static void ref_pool64(int64_t *acc, const mr_pool_args *a) {
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++)
        for (uint32_t end = j + a->count[t]; j < end; j++) {
            const uint8_t *row = row_of(&a->rows, a->row[j]);
            const uint32_t slot = a->slot ? a->slot[j] : 0;
            int64_t *out = acc + ((size_t)t * a->slots + slot) * a->rows.columns;
            for (uint32_t c = 0; c < a->rows.columns; c++) {
                const uint32_t core = (a->column_first + c) / a->core_columns - a->core_first;
                const float value = value_of(&a->rows, row, c);
                const float product = a->weight[core * a->weight_stride + j] * value;
                out[c] = (int64_t)((uint64_t)out[c] + (uint64_t)llrintf(product));
            }
        }
}

static void ref_gate_dot(int64_t *dot, const mr_gate_args *a) {
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++)
        for (uint32_t end = j + a->count[t]; j < end; j++) {
            const uint8_t *row = row_of(&a->rows, a->row[j]);
            uint64_t sum = 0;
            for (uint32_t c = 0; c < a->rows.columns; c++) {
                const float value = value_of(&a->rows, row, c);
                const float product = a->x[t * a->x_stride + c] * value;
                sum += (uint64_t)llrintf(product);
            }
            dot[j] = (int64_t)sum;
        }
}

/* One output of f32, bf16, f16 or f8 weights. */
static float chain(const float *x, const mr_packed *w, uint32_t n) {
    const uint32_t block = w->block == MR_TILE_BLOCK ? w->block : w->k;
    float y = 0;
    if (w->block == 0) {
        for (uint32_t k = 0; k < w->k; k++) y = fmaf(x[k], mr_packed_at(w, n, k), y);
        return y;
    }
    for (uint32_t first = 0; first < w->k; first += block) {
        float sum = 0;
        for (uint32_t k = first; k < first + block && k < w->k; k++)
            sum = fmaf(x[k], mr_packed_code(w, n, k), sum);
        const float scale = mr_packed_scale(w, n, first);
        y = w->block == MR_WHOLE_ROW ? sum * scale : fmaf(sum, scale, y);
    }
    return y;
}

/* One output of int8 or int4 weights; x as mr_quantize_rows left it. */
static float dot_blocks(const uint8_t *x, const mr_packed *w, uint32_t n) {
    const size_t depth = mr_packed_depth(w->element, w->k);
    float y = 0;
    for (uint32_t first = 0; first < depth; first += 32) {
        int32_t dot = 0;
        float d;
        for (uint32_t k = first; k < first + 32 && k < w->k; k++)
            dot += (int32_t)mr_packed_code(w, n, k) * (int8_t)x[k];
        memcpy(&d, x + depth + first / 8, sizeof(d));
        y = fmaf((float)dot, w->block == MR_WHOLE_ROW ? d : d * mr_packed_scale(w, n, first), y);
    }
    return w->block == MR_WHOLE_ROW ? y * mr_packed_scale(w, n, 0) : y;
}

static bool is_quantized(const mr_packed *w) {
    return w->element == MR_I8 || w->element == MR_I4;
}

static size_t ref_prepared_bytes(const mr_packed *w) {
    return is_quantized(w) ? mr_quantized_bytes(w->k) : 0;
}

static void ref_prepare(void *out, const float *x, size_t x_stride, uint32_t m,
                        const mr_packed *w) {
    if (is_quantized(w)) mr_quantize_rows(out, x, x_stride, m, w->k);
}

static void ref_gemm(float *y, size_t y_stride, const float *x, size_t x_stride,
                     const void *prepared, uint32_t m, const mr_packed *w, uint32_t panel_first,
                     uint32_t panel_count) {
    const uint32_t end = (panel_first + panel_count) * MR_PANEL;
    const size_t bytes = ref_prepared_bytes(w);
    for (uint32_t n = panel_first * MR_PANEL; n < end && n < w->n; n++)
        for (uint32_t i = 0; i < m; i++)
            y[i * y_stride + n] = is_quantized(w)
                                      ? dot_blocks((const uint8_t *)prepared + i * bytes, w, n)
                                      : chain(x + i * x_stride, w, n);
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

static void ref_attend(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                       const float *keys, const float *values, uint32_t count, uint32_t dim,
                       float scale) {
    for (uint32_t h = 0; h < heads; h++, query += dim, out += dim) {
        float score[MR_ATTEND_KEYS], largest = state[h].largest;
        for (uint32_t j = 0; j < count; j++) {
            score[j] = mr_dot(query, keys + (size_t)j * dim, dim) * scale;
            if (score[j] > largest) largest = score[j];
        }
        const float shrink = mr_exp(state[h].largest - largest);
        state[h].sum = state[h].sum * shrink;
        for (uint32_t i = 0; i < dim; i++) out[i] = out[i] * shrink;
        for (uint32_t j = 0; j < count; j++) {
            const float p = mr_exp(score[j] - largest);
            const float *value = values + (size_t)j * dim;
            state[h].sum = state[h].sum + p;
            for (uint32_t i = 0; i < dim; i++) out[i] = out[i] + p * value[i];
        }
        state[h].largest = largest;
    }
}

const mr_ops mr_ops_ref = {.name = "ref",
                           .pool32 = ref_pool32,
                           .pool64 = ref_pool64,
                           .gate_dot = ref_gate_dot,
                           .prepared_bytes = ref_prepared_bytes,
                           .prepare = ref_prepare,
                           .gemm = ref_gemm,
                           .attend = ref_attend,
                           .select = ref_select};
