/* ops_avx512.c - the backend for AVX-512 (F, BW, DQ, VL): pool_avx512.c and gemm_avx512.c; select
 * is here. Built with those flags for these files only and reached through mr_ops_find(), so that
 * the program starts on any x86-64. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512F__)
#include "common/ops/packed.h"

#include <immintrin.h>

/* The first `left` of 16 lanes. */
static inline __mmask16 lanes(uint32_t left) {
    const uint32_t mask = left >= 16 ? 0xffffu : (1u << left) - 1u;
    return (__mmask16)mask;
}

static bool avx512_select(uint32_t *out_index, const float *score, uint32_t n, uint32_t k,
                          uint64_t *scratch) {
    if (!mr_select_start(scratch, score, k)) return false;
    __m512 threshold = _mm512_set1_ps(mr_select_threshold(scratch));
    __mmask16 nan = 0;
    for (uint32_t i = k; i < n; i += 16) {
        const __mmask16 in = lanes(n - i);
        const __m512 s = _mm512_maskz_loadu_ps(in, score + i);
        nan |= _mm512_mask_cmp_ps_mask(in, s, s, _CMP_UNORD_Q);
        unsigned better = _mm512_mask_cmp_ps_mask(in, s, threshold, _CMP_GT_OQ);
        if (!better) continue;
        for (; better; better &= better - 1) {
            const uint32_t at = i + (uint32_t)__builtin_ctz(better);
            const uint64_t key = mr_select_key(score[at], at);
            if (key > scratch[0]) mr_select_sift(scratch, k, 0, key);
        }
        threshold = _mm512_set1_ps(mr_select_threshold(scratch));
    }
    if (nan) return false;
    mr_select_finish(out_index, scratch, k);
    return true;
}

const mr_ops mr_ops_avx512 = {.name = "avx512",
                              .pool32 = mr_avx512_pool32,
                              .pool64 = mr_avx512_pool64,
                              .gate_dot = mr_avx512_gate_dot,
                              .prepared_bytes = mr_avx512_prepared_bytes,
                              .prepare = mr_avx512_prepare,
                              .gemm = mr_avx512_gemm,
                              .attend = mr_avx512_attend,
                              .select = avx512_select};
const mr_ops mr_ops_avx512bf16 = {.name = "avx512bf16",
                                  .pool32 = mr_avx512_pool32,
                                  .pool64 = mr_avx512_pool64,
                                  .gate_dot = mr_avx512_gate_dot,
                                  .prepared_bytes = mr_avx512bf16_prepared_bytes,
                                  .prepare = mr_avx512bf16_prepare,
                                  .gemm = mr_avx512bf16_gemm,
                                  .attend = mr_avx512_attend,
                                  .select = avx512_select};
#else
const mr_ops mr_ops_avx512 = {0}, mr_ops_avx512bf16 = {0}; /* not an x86-64: never picked */
#endif
