/* ops_avx2.c - the kernels for AVX2 and FMA; see ops_avx512.c for the ideas. AVX2 has no conversion
 * from fp32 to int64: above 2^31 a float is already whole, so its mantissa is shifted into place.
 */
#include "common/ops/cpu/backends.h"

#if defined(__AVX2__)
#include <immintrin.h>
#include <math.h>

enum { AHEAD_BYTES = 8192 };

static inline __m256 load8(const uint8_t *at, mr_element element) {
    if (element == MR_F32) return _mm256_loadu_ps((const float *)(const void *)at);
    const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

static inline void prefetch_row(const uint8_t *row, size_t bytes) {
    for (size_t b = 0; b < bytes; b += 64) _mm_prefetch((const char *)row + b, _MM_HINT_T0);
}

static inline const uint8_t *row_at(const mr_rows *r, uint32_t row) {
    return (const uint8_t *)r->data +
           (row - r->row_first) * r->stride * mr_element_bytes(r->element);
}

static inline uint32_t entries_ahead(const mr_rows *r) {
    const size_t bytes = (size_t)r->columns * mr_element_bytes(r->element);
    const size_t ahead = bytes ? AHEAD_BYTES / bytes : 0;
    return ahead < 4 ? 4 : ahead > 64 ? 64 : (uint32_t)ahead;
}

/* Four floats of a 128-bit half to int64, to nearest even; |p| < 2^63. */
static inline __m256i to_int64(__m128 p) {
    const __m256i small = _mm256_cvtepi32_epi64(_mm_cvtps_epi32(p));
    const __m256i bits = _mm256_cvtepi32_epi64(_mm_castps_si128(p)); /* sign-extended */
    const __m256i exponent =
        _mm256_and_si256(_mm256_srli_epi64(bits, 23), _mm256_set1_epi64x(0xff));
    const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x(0x7fffff)),
                                             _mm256_set1_epi64x(0x800000));
    const __m256i shifted =
        _mm256_sllv_epi64(mantissa, _mm256_sub_epi64(exponent, _mm256_set1_epi64x(150)));
    const __m256i sign = _mm256_cmpgt_epi64(_mm256_setzero_si256(), bits);
    const __m256i large = _mm256_sub_epi64(_mm256_xor_si256(shifted, sign), sign);
    const __m256i is_large = _mm256_cmpgt_epi64(exponent, _mm256_set1_epi64x(156)); /* >= 2^30 */
    return _mm256_blendv_epi8(small, large, is_large);
}

static inline void add32(int32_t *acc, const uint8_t *row, float weight, uint32_t from, uint32_t to,
                         mr_element element) {
    const size_t size = mr_element_bytes(element);
    const __m256 w = _mm256_set1_ps(weight);
    uint32_t c = from;
    for (; c + 8 <= to; c += 8) {
        __m256i *at = (__m256i *)(void *)(acc + c);
        const __m256i p = _mm256_cvtps_epi32(_mm256_mul_ps(w, load8(row + c * size, element)));
        _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), p));
    }
    for (; c < to; c++) {
        const float product = weight * mr_element_at(row, element, c);
        acc[c] = (int32_t)((uint32_t)acc[c] + (uint32_t)_mm_cvtss_si32(_mm_set_ss(product)));
    }
}

static inline void add64(int64_t *acc, const uint8_t *row, float weight, uint32_t from, uint32_t to,
                         mr_element element) {
    const size_t size = mr_element_bytes(element);
    const __m256 w = _mm256_set1_ps(weight);
    uint32_t c = from;
    for (; c + 8 <= to; c += 8) {
        __m256i *at = (__m256i *)(void *)(acc + c);
        const __m256 p = _mm256_mul_ps(w, load8(row + c * size, element));
        _mm256_storeu_si256(
            at, _mm256_add_epi64(_mm256_loadu_si256(at), to_int64(_mm256_castps256_ps128(p))));
        _mm256_storeu_si256(at + 1, _mm256_add_epi64(_mm256_loadu_si256(at + 1),
                                                     to_int64(_mm256_extractf128_ps(p, 1))));
    }
    for (; c < to; c++) {
        const float product = weight * mr_element_at(row, element, c);
        acc[c] = (int64_t)((uint64_t)acc[c] + (uint64_t)llrintf(product));
    }
}

#define POOL(NAME, TYPE, ADD)                                                                      \
    static void NAME(TYPE *acc, const mr_pool_args *a) {                                           \
        const uint32_t ahead = entries_ahead(&a->rows), columns = a->rows.columns;                 \
        const mr_element element = a->rows.element;                                                \
        const size_t row_bytes = (size_t)columns * mr_element_bytes(element);                      \
        uint32_t j = 0;                                                                            \
        for (uint32_t t = 0; t < a->tokens; t++)                                                   \
            for (const uint32_t end = j + a->count[t]; j < end; j++) {                             \
                if (j + ahead < a->entries)                                                        \
                    prefetch_row(row_at(&a->rows, a->row[j + ahead]), row_bytes);                  \
                const uint8_t *row = row_at(&a->rows, a->row[j]);                                  \
                TYPE *out = acc + ((size_t)t * a->slots + (a->slot ? a->slot[j] : 0)) * columns;   \
                for (uint32_t from = 0; from < columns;) {                                         \
                    const uint32_t core = (a->column_first + from) / a->core_columns;              \
                    uint32_t to = (core + 1) * a->core_columns - a->column_first;                  \
                    if (to > columns) to = columns;                                                \
                    const float w = a->weight[(core - a->core_first) * a->weight_stride + j];      \
                    if (element == MR_F32)                                                         \
                        ADD(out, row, w, from, to, MR_F32);                                        \
                    else                                                                           \
                        ADD(out, row, w, from, to, MR_BF16);                                       \
                    from = to;                                                                     \
                }                                                                                  \
            }                                                                                      \
    }
POOL(avx2_pool32, int32_t, add32)
POOL(avx2_pool64, int64_t, add64)

static void avx2_gate_dot(int64_t *dot, const mr_gate_args *a) {
    const mr_element element = a->rows.element;
    const size_t size = mr_element_bytes(element);
    const uint32_t ahead = entries_ahead(&a->rows), columns = a->rows.columns;
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *x = a->x + t * a->x_stride;
        for (const uint32_t end = j + a->count[t]; j < end; j++) {
            const uint8_t *row = row_at(&a->rows, a->row[j]);
            if (j + ahead < a->entries)
                prefetch_row(row_at(&a->rows, a->row[j + ahead]), columns * size);
            __m256i sum = _mm256_setzero_si256();
            uint32_t c = 0;
            for (; c + 8 <= columns; c += 8) {
                const __m256 p =
                    _mm256_mul_ps(_mm256_loadu_ps(x + c), load8(row + c * size, element));
                sum = _mm256_add_epi64(sum, to_int64(_mm256_castps256_ps128(p)));
                sum = _mm256_add_epi64(sum, to_int64(_mm256_extractf128_ps(p, 1)));
            }
            uint64_t lanes[4], total;
            _mm256_storeu_si256((__m256i *)(void *)lanes, sum);
            total = lanes[0] + lanes[1] + lanes[2] + lanes[3];
            for (; c < columns; c++) {
                const float product = x[c] * mr_element_at(row, element, c);
                total += (uint64_t)llrintf(product);
            }
            dot[j] = (int64_t)total;
        }
    }
}

/* ROWS rows x 16 columns (half a panel): at most 12 sums in registers. */
static inline __attribute__((always_inline)) void
gemm_tile(float *y, size_t y_stride, const float *x, size_t x_stride, const mr_packed *w,
          uint32_t panel, uint32_t half, const int rows, mr_element element) {
    const size_t size = element == MR_F32 ? 4 : 2;
    const uint8_t *b =
        (const uint8_t *)w->data + ((size_t)panel * w->k * MR_PANEL + half * 16) * size;
    __m256 sum[6][2];
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < w->k; k++, b += MR_PANEL * size) {
        const __m256 b0 = load8(b, element), b1 = load8(b + 8 * size, element);
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const __m256 a = _mm256_set1_ps(x[(size_t)i * x_stride + k]);
            sum[i][0] = _mm256_fmadd_ps(a, b0, sum[i][0]);
            sum[i][1] = _mm256_fmadd_ps(a, b1, sum[i][1]);
        }
    }
    const uint32_t column = panel * MR_PANEL + half * 16;
    const uint32_t left = w->n > column ? w->n - column : 0;
    for (int i = 0; i < rows; i++) {
        float *out = y + (size_t)i * y_stride + column, whole[16];
        if (left >= 16) {
            _mm256_storeu_ps(out, sum[i][0]);
            _mm256_storeu_ps(out + 8, sum[i][1]);
            continue;
        }
        _mm256_storeu_ps(whole, sum[i][0]);
        _mm256_storeu_ps(whole + 8, sum[i][1]);
        for (uint32_t c = 0; c < left; c++) out[c] = whole[c];
    }
}

/* One row: a whole panel, four chains. */
static inline __attribute__((always_inline)) void
gemv_tile(float *y, const float *x, const mr_packed *w, uint32_t panel, mr_element element) {
    const size_t size = element == MR_F32 ? 4 : 2;
    const uint8_t *b = (const uint8_t *)w->data + (size_t)panel * w->k * MR_PANEL * size;
    __m256 sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < w->k; k++, b += MR_PANEL * size) {
        const __m256 a = _mm256_set1_ps(x[k]);
        for (size_t i = 0; i < 4; i++)
            sum[i] = _mm256_fmadd_ps(a, load8(b + 8 * i * size, element), sum[i]);
    }
    float whole[MR_PANEL];
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(whole + 8 * i, sum[i]);
    const uint32_t left = w->n - panel * MR_PANEL;
    memcpy(y + panel * MR_PANEL, whole, (left < MR_PANEL ? left : MR_PANEL) * sizeof(float));
}

static inline __attribute__((always_inline)) void
gemm_any(float *y, size_t y_stride, const float *x, size_t x_stride, uint32_t m, const mr_packed *w,
         uint32_t panel_first, uint32_t panel_count, mr_element element) {
    for (uint32_t p = panel_first; p < panel_first + panel_count; p++) {
        if (m == 1) {
            gemv_tile(y, x, w, p, element);
            continue;
        }
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t i = 0;
            for (; i + 6 <= m; i += 6)
                gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, half, 6,
                          element);
            for (; i + 2 <= m; i += 2)
                gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, half, 2,
                          element);
            for (; i < m; i++)
                gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, half, 1,
                          element);
        }
    }
}

static void avx2_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, uint32_t m,
                      const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    if (w->element == MR_F32)
        gemm_any(y, y_stride, x, x_stride, m, w, panel_first, panel_count, MR_F32);
    else
        gemm_any(y, y_stride, x, x_stride, m, w, panel_first, panel_count, MR_BF16);
}

static bool avx2_select(uint32_t *out_index, const float *score, uint32_t n, uint32_t k,
                        uint64_t *scratch) {
    if (!mr_select_start(scratch, score, k)) return false;
    uint32_t i = k;
    __m256 threshold = _mm256_set1_ps(mr_select_threshold(scratch));
    for (; i + 8 <= n; i += 8) {
        const __m256 s = _mm256_loadu_ps(score + i);
        if (_mm256_movemask_ps(_mm256_cmp_ps(s, s, _CMP_UNORD_Q))) return false;
        unsigned better = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(s, threshold, _CMP_GT_OQ));
        if (!better) continue;
        for (; better; better &= better - 1) {
            const uint32_t at = i + (uint32_t)__builtin_ctz(better);
            const uint64_t key = mr_select_key(score[at], at);
            if (key > scratch[0]) mr_select_sift(scratch, k, key);
        }
        threshold = _mm256_set1_ps(mr_select_threshold(scratch));
    }
    for (; i < n; i++) {
        if (score[i] != score[i]) return false;
        const uint64_t key = mr_select_key(score[i], i);
        if (key > scratch[0]) mr_select_sift(scratch, k, key);
    }
    mr_select_finish(out_index, scratch, k);
    return true;
}

const mr_ops mr_ops_avx2 = {"avx2",        avx2_pool32, avx2_pool64,
                            avx2_gate_dot, avx2_gemm,   avx2_select};
#else
const mr_ops mr_ops_avx2 = {0}; /* not an x86-64: never picked */
#endif
