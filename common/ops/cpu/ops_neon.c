/* ops_neon.c - the backend for AArch64: pool_neon.c, gemm_neon.c and attend_neon.c; select is here.
 * Every AArch64 processor that runs Linux has Advanced SIMD, so this is the default there; only
 * SDOT is asked for at run time (gemm_neon.c). */
#include "common/ops/cpu/backends.h"

#if defined(__aarch64__)
#include <arm_neon.h>

/* 16 scores at a time: is one of them better than the worst kept, or no number? */
static bool neon_select(uint32_t *out_index, const float *score, uint32_t n, uint32_t k,
                        uint64_t *scratch) {
    if (!mr_select_start(scratch, score, k)) return false;
    uint32_t i = k;
    while (i < n) {
        const float32x4_t threshold = vdupq_n_f32(mr_select_threshold(scratch));
        for (; i + 16 <= n; i += 16) {
            uint32x4_t no_better = vdupq_n_u32(~0u);
            for (uint32_t v = 0; v < 16; v += 4) /* false for what is no number */
                no_better = vandq_u32(no_better, vcleq_f32(vld1q_f32(score + i + v), threshold));
            if (vminvq_u32(no_better) == 0) break;
        }
        for (const uint32_t end = n - i < 16 ? n : i + 16; i < end; i++) {
            if (score[i] != score[i]) return false;
            const uint64_t key = mr_select_key(score[i], i);
            if (key > scratch[0]) mr_select_sift(scratch, k, 0, key);
        }
    }
    mr_select_finish(out_index, scratch, k);
    return true;
}

const mr_ops mr_ops_neon = {.name = "neon",
                            .pool32 = mr_neon_pool32,
                            .pool64 = mr_neon_pool64,
                            .gate_dot = mr_neon_gate_dot,
                            .prepared_bytes = mr_neon_prepared_bytes,
                            .prepare = mr_neon_prepare,
                            .gemm = mr_neon_gemm,
                            .attend = mr_neon_attend,
                            .select = neon_select};
#else
const mr_ops mr_ops_neon = {0}; /* not an AArch64: never picked */
#endif
