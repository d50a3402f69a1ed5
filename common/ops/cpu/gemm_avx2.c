/* gemm_avx2.c - products with packed weights for AVX2 and FMA; see gemm_avx512.c for the ideas. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX2__)
#include "common/ops/packed.h"

#include <immintrin.h>

/* Weights of input k and outputs [8 * eighth, + 8) of a panel: bf16 lie in pairs of k. */
static inline __m256 weights8(const uint8_t *panel, uint32_t k, uint32_t eighth,
                              mr_element element) {
    if (element == MR_F32)
        return _mm256_loadu_ps((const float *)(const void *)panel + (size_t)k * MR_PANEL +
                               eighth * 8);
    const uint8_t *at = panel + ((size_t)(k / 2) * MR_PANEL + eighth * 8) * 4;
    const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)at);
    return _mm256_castsi256_ps(k & 1 ? _mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000))
                                     : _mm256_slli_epi32(pairs, 16));
}

/* ROWS rows x 16 columns (half a panel): at most 12 sums in registers. */
static inline __attribute__((always_inline)) void
gemm_tile(float *y, size_t y_stride, const float *x, size_t x_stride, const mr_packed *w,
          uint32_t panel, uint32_t half, const int rows, mr_element element) {
    const uint8_t *b = (const uint8_t *)w->data + panel * mr_packed_panel_bytes(element, w->k);
    __m256 sum[6][2];
    for (int i = 0; i < rows; i++) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < w->k; k++) {
        const __m256 b0 = weights8(b, k, half * 2, element),
                     b1 = weights8(b, k, half * 2 + 1, element);
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
    const uint8_t *b = (const uint8_t *)w->data + panel * mr_packed_panel_bytes(element, w->k);
    __m256 sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < w->k; k++) {
        const __m256 a = _mm256_set1_ps(x[k]);
        for (uint32_t i = 0; i < 4; i++)
            sum[i] = _mm256_fmadd_ps(a, weights8(b, k, i, element), sum[i]);
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

void mr_avx2_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, const void *prepared,
                  uint32_t m, const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    if (w->element == MR_F32)
        gemm_any(y, y_stride, x, x_stride, m, w, panel_first, panel_count, MR_F32);
    else if (w->element == MR_BF16)
        gemm_any(y, y_stride, x, x_stride, m, w, panel_first, panel_count, MR_BF16);
    else
        mr_ops_ref.gemm(y, y_stride, x, x_stride, prepared, m, w, panel_first, panel_count);
}

size_t mr_avx2_prepared_bytes(const mr_packed *w) {
    return mr_ops_ref.prepared_bytes(w);
}

void mr_avx2_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w) {
    mr_ops_ref.prepare(out, x, x_stride, m, w);
}
#endif
