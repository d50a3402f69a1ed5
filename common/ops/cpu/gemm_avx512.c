/* gemm_avx512.c - products with packed weights for AVX-512 (F, BW, DQ, VL).
 *
 * 8 rows x 32 columns of y in 16 registers, one fused multiply-add chain over all of K; for one
 * row, four panels side by side give eight independent chains. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512F__)
#include "common/ops/packed.h"

#include <immintrin.h>

/* Weights of input k and outputs [16 * half, + 16) of a panel: bf16 lie in pairs of k. */
static inline __m512 weights16(const uint8_t *panel, uint32_t k, uint32_t half,
                               mr_element element) {
    if (element == MR_F32) return _mm512_loadu_ps(panel + ((size_t)k * MR_PANEL + half * 16) * 4);
    const __m512i pairs = _mm512_loadu_si512(panel + ((size_t)(k / 2) * MR_PANEL + half * 16) * 4);
    return _mm512_castsi512_ps(k & 1 ? _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000))
                                     : _mm512_slli_epi32(pairs, 16));
}

/* ROWS rows x PANELS panels of y at one go. */
static inline __attribute__((always_inline)) void
gemm_tile(float *y, size_t y_stride, const float *x, size_t x_stride, const mr_packed *w,
          uint32_t panel, const int rows, const int panels, mr_element element) {
    const size_t panel_bytes = mr_packed_panel_bytes(element, w->k);
    const uint8_t *b = (const uint8_t *)w->data + panel * panel_bytes;
    __m512 sum[8][2];
    for (int i = 0; i < rows * panels; i++) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < w->k; k++) {
        for (int p = 0; p < panels; p++) {
            const uint8_t *at = b + (size_t)p * panel_bytes;
            const __m512 b0 = weights16(at, k, 0, element), b1 = weights16(at, k, 1, element);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                const __m512 a = _mm512_set1_ps(x[(size_t)i * x_stride + k]);
                sum[i * panels + p][0] = _mm512_fmadd_ps(a, b0, sum[i * panels + p][0]);
                sum[i * panels + p][1] = _mm512_fmadd_ps(a, b1, sum[i * panels + p][1]);
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) {
            const uint32_t column = (panel + (uint32_t)p) * MR_PANEL;
            const uint32_t left = w->n - column;
            const uint32_t mask = left >= 32 ? 0xffffffffu : (1u << left) - 1;
            float *out = y + (size_t)i * y_stride + column;
            _mm512_mask_storeu_ps(out, (__mmask16)mask, sum[i * panels + p][0]);
            _mm512_mask_storeu_ps(out + 16, (__mmask16)(mask >> 16), sum[i * panels + p][1]);
        }
}

static inline __attribute__((always_inline)) void
gemm_any(float *y, size_t y_stride, const float *x, size_t x_stride, uint32_t m, const mr_packed *w,
         uint32_t panel_first, uint32_t panel_count, mr_element element) {
    const uint32_t last = panel_first + panel_count;
    if (m == 1) {
        uint32_t p = panel_first;
        for (; p + 4 <= last; p += 4) gemm_tile(y, y_stride, x, x_stride, w, p, 1, 4, element);
        for (; p < last; p++) gemm_tile(y, y_stride, x, x_stride, w, p, 1, 1, element);
        return;
    }
    for (uint32_t p = panel_first; p < last; p++) {
        uint32_t i = 0;
        for (; i + 8 <= m; i += 8)
            gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, 8, 1, element);
        for (; i + 4 <= m; i += 4)
            gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, 4, 1, element);
        for (; i + 2 <= m; i += 2)
            gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, 2, 1, element);
        for (; i < m; i++)
            gemm_tile(y + i * y_stride, y_stride, x + i * x_stride, x_stride, w, p, 1, 1, element);
    }
}

void mr_avx512_gemm(float *y, size_t y_stride, const float *x, size_t x_stride,
                    const void *prepared, uint32_t m, const mr_packed *w, uint32_t panel_first,
                    uint32_t panel_count) {
    if (w->element == MR_F32)
        gemm_any(y, y_stride, x, x_stride, m, w, panel_first, panel_count, MR_F32);
    else if (w->element == MR_BF16)
        gemm_any(y, y_stride, x, x_stride, m, w, panel_first, panel_count, MR_BF16);
    else
        mr_ops_ref.gemm(y, y_stride, x, x_stride, prepared, m, w, panel_first, panel_count);
}

size_t mr_avx512_prepared_bytes(const mr_packed *w) {
    return mr_ops_ref.prepared_bytes(w);
}

void mr_avx512_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w) {
    mr_ops_ref.prepare(out, x, x_stride, m, w);
}
#endif
