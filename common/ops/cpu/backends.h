/* backends.h - the CPU backends that may be there, and the helpers they share. */
#ifndef MR_OPS_CPU_BACKENDS_H
#define MR_OPS_CPU_BACKENDS_H
#include "common/ops/ops.h"

extern const mr_ops mr_ops_avx2, mr_ops_avx512, mr_ops_avx512bf16, mr_ops_neon;

/* pool_*.c */
void mr_avx2_pool32(int32_t *acc, const mr_pool_args *a);
void mr_avx2_pool64(int64_t *acc, const mr_pool_args *a);
void mr_avx2_gate_dot(int64_t *dot, const mr_gate_args *a);
void mr_avx512_pool32(int32_t *acc, const mr_pool_args *a);
void mr_avx512_pool64(int64_t *acc, const mr_pool_args *a);
void mr_avx512_gate_dot(int64_t *dot, const mr_gate_args *a);
void mr_neon_pool32(int32_t *acc, const mr_pool_args *a);
void mr_neon_pool64(int64_t *acc, const mr_pool_args *a);
void mr_neon_gate_dot(int64_t *dot, const mr_gate_args *a);

/* gemm_*.c: as the functions of mr_ops. */
size_t mr_avx2_prepared_bytes(const mr_packed *w);
void mr_avx2_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w);
void mr_avx2_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, const void *prepared,
                  uint32_t m, const mr_packed *w, uint32_t panel_first, uint32_t panel_count);
size_t mr_neon_prepared_bytes(const mr_packed *w);
void mr_neon_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w);
void mr_neon_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, const void *prepared,
                  uint32_t m, const mr_packed *w, uint32_t panel_first, uint32_t panel_count);
size_t mr_avx512_prepared_bytes(const mr_packed *w);
void mr_avx512_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w);
void mr_avx512_gemm(float *y, size_t y_stride, const float *x, size_t x_stride,
                    const void *prepared, uint32_t m, const mr_packed *w, uint32_t panel_first,
                    uint32_t panel_count);

size_t mr_avx512bf16_prepared_bytes(const mr_packed *w);
void mr_avx512bf16_prepare(void *out, const float *x, size_t x_stride, uint32_t m,
                           const mr_packed *w);
void mr_avx512bf16_gemm(float *y, size_t y_stride, const float *x, size_t x_stride,
                        const void *prepared, uint32_t m, const mr_packed *w, uint32_t panel_first,
                        uint32_t panel_count);
void mr_avx2_attend(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                    const float *keys, const float *values, uint32_t count, uint32_t dim,
                    float scale);
void mr_avx512_attend(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                      const float *keys, const float *values, uint32_t count, uint32_t dim,
                      float scale);
void mr_neon_attend(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                    const float *keys, const float *values, uint32_t count, uint32_t dim,
                    float scale);
/* Products with int8 and int4 weights; avx512vnni and neondot for processors that have these. */
void mr_avx512_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
                          uint32_t panel_first, uint32_t panel_count);
void mr_avx512vnni_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m,
                              const mr_packed *w, uint32_t panel_first, uint32_t panel_count);
void mr_neon_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
                        uint32_t panel_first, uint32_t panel_count);
void mr_neondot_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
                           uint32_t panel_first, uint32_t panel_count);

/* A score and its index as one integer that orders as select does: larger is better, equal scores
 * by lower index. The sign trick makes fp32 bits ordered integers; adding 0 turns -0 into +0. */
static inline uint64_t mr_select_key(float score, uint32_t index) {
    const float canonical = score + 0.0f;
    uint32_t bits;
    memcpy(&bits, &canonical, sizeof(bits));
    bits ^= (uint32_t)((int32_t)bits >> 31) | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~index;
}

/* A min-heap of k keys: heap[0] is the worst kept. Puts key at place `at` or below. */
static inline void mr_select_sift(uint64_t *heap, uint32_t k, uint32_t at, uint64_t key) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= k) break;
        if (child + 1 < k && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

/* Fills the heap with the first k scores. false: a NaN. */
static inline bool mr_select_start(uint64_t *heap, const float *score, uint32_t k) {
    for (uint32_t i = 0; i < k; i++) {
        if (score[i] != score[i]) return false;
        heap[i] = mr_select_key(score[i], i);
    }
    for (uint32_t i = k / 2; i-- > 0;) mr_select_sift(heap, k, i, heap[i]);
    return true;
}

/* Takes the heap apart: worst first into the end of the output. */
static inline void mr_select_finish(uint32_t *out_index, uint64_t *heap, uint32_t k) {
    for (uint32_t left = k; left > 0; left--) {
        out_index[left - 1] = ~(uint32_t)heap[0];
        const uint64_t last = heap[left - 1];
        mr_select_sift(heap, left - 1, 0, last);
    }
}

/* The score of the worst kept key: others must be strictly better, as ties go to the lower index.
 */
static inline float mr_select_threshold(const uint64_t *heap) {
    uint32_t bits = (uint32_t)(heap[0] >> 32);
    bits ^= (bits & 0x80000000u) ? 0x80000000u : 0xffffffffu;
    float score;
    memcpy(&score, &bits, sizeof(score));
    return score;
}

#endif
