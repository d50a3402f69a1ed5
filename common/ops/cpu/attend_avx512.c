/* attend_avx512.c - attend_loop.h built for AVX-512. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512F__)
#include "common/ops/cpu/attend_loop.h"

void mr_avx512_attend(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                      const float *keys, const float *values, uint32_t count, uint32_t dim,
                      float scale) {
    attend_block(state, out, query, heads, keys, values, count, dim, scale);
}
#endif
