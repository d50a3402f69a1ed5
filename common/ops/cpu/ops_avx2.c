/* ops_avx2.c - the backend for AVX2 and FMA: pool_avx2.c and gemm_avx2.c; select is here. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX2__)
#include "common/ops/packed.h"

#include <immintrin.h>

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
            if (key > scratch[0]) mr_select_sift(scratch, k, 0, key);
        }
        threshold = _mm256_set1_ps(mr_select_threshold(scratch));
    }
    for (; i < n; i++) {
        if (score[i] != score[i]) return false;
        const uint64_t key = mr_select_key(score[i], i);
        if (key > scratch[0]) mr_select_sift(scratch, k, 0, key);
    }
    mr_select_finish(out_index, scratch, k);
    return true;
}

const mr_ops mr_ops_avx2 = {.name = "avx2",
                            .pool32 = mr_avx2_pool32,
                            .pool64 = mr_avx2_pool64,
                            .gate_dot = mr_avx2_gate_dot,
                            .prepared_bytes = mr_avx2_prepared_bytes,
                            .prepare = mr_avx2_prepare,
                            .gemm = mr_avx2_gemm,
                            .attend = mr_avx2_attend,
                            .select = avx2_select};
#else
const mr_ops mr_ops_avx2 = {0}; /* not an x86-64: never picked */
#endif
