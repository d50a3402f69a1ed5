/* keys.cuh - scores of product keys, and the best of them.
 *
 * Scores: a warp makes one panel of 32 keys for eight tokens; a lane is a key, so that a step of K
 * reads one line of the panel. Every sum is one chain of fused multiply-adds over K, as on the CPU.
 * Selection: a score and its index become one 64-bit key that orders as ops.h wants (better first,
 * ties to the lower index), all different; the k-th largest is found by counting eight bits at a
 * time, and whoever is not below it gets the rank that the number of larger ones gives. */
#ifndef MR_OPS_CUDA_KEYS_CUH
#define MR_OPS_CUDA_KEYS_CUH
#include "common/ops/cuda/device.h"

enum {
    SCORE_PANEL = 32, /* MR_PANEL of ops.h */
    SCORE_TOKENS = 8,
    SCORE_WARPS = 4,
    SCORE_THREADS = SCORE_WARPS * MR_WARP,
    SCORE_DEPTH = 64 /* of K in shared memory at a time; even */
};

MR_KERNEL(score_keys, mr_cuda_scores) {
    __shared__ float x[SCORE_TOKENS][SCORE_DEPTH];
    const uint32_t lane = threadIdx.x % MR_WARP, warp = threadIdx.x / MR_WARP;
    const uint32_t panel = blockIdx.x * SCORE_WARPS + warp, first = blockIdx.y * SCORE_TOKENS;
    const uint32_t panels = (a.n + SCORE_PANEL - 1) / SCORE_PANEL;
    const uint64_t depth = a.is_bf16 ? (a.k + 1) / 2 : a.k; /* words of a key */
    const uint32_t *words = (const uint32_t *)a.keys + panel * depth * SCORE_PANEL + lane;
    float sum[SCORE_TOKENS];
    for (int i = 0; i < SCORE_TOKENS; i++) sum[i] = 0;
    for (uint32_t from = 0; from < a.k; from += SCORE_DEPTH) {
        const uint32_t count = a.k - from < SCORE_DEPTH ? a.k - from : SCORE_DEPTH;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < SCORE_TOKENS * SCORE_DEPTH; i += SCORE_THREADS) {
            const uint32_t token = first + i / SCORE_DEPTH, k = i % SCORE_DEPTH;
            x[i / SCORE_DEPTH][k] =
                token < a.m && k < count ? a.x[token * a.x_stride + from + k] : 0;
        }
        __syncthreads();
        if (panel >= panels) continue;
        for (uint32_t k = 0; k < count; k++) {
            float key;
            if (a.is_bf16) {
                const uint32_t pair = words[(uint64_t)((from + k) / 2) * SCORE_PANEL];
                key = mr_float_of_bits(k & 1 ? pair & 0xffff0000u : pair << 16);
            } else
                key = mr_float_of_bits(words[(uint64_t)(from + k) * SCORE_PANEL]);
            for (int i = 0; i < SCORE_TOKENS; i++) sum[i] = __fmaf_rn(x[i][k], key, sum[i]);
        }
    }
    const uint32_t column = panel * SCORE_PANEL + lane;
    if (column >= a.n) return;
    for (uint32_t i = 0; i < SCORE_TOKENS && first + i < a.m; i++)
        a.y[(first + i) * a.y_stride + column] = sum[i];
}

/* --- selection -------------------------------------------------------------------------------- */

enum { SELECT_THREADS = 256, SELECT_MAX = 1024, RADIX = 256 };

/* As mr_select_key: larger is better; adding 0 turns -0 into +0. */
static __device__ __forceinline__ uint64_t select_key(float score, uint32_t index) {
    uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0f));
    bits ^= (uint32_t)((int32_t)bits >> 31) | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~index;
}

MR_KERNEL(select_rows, mr_cuda_select) {
    __shared__ uint32_t histogram[RADIX];
    __shared__ uint64_t threshold, chosen[SELECT_MAX];
    __shared__ uint32_t wanted, is_found, taken;
    const float *score = a.score + blockIdx.x * a.stride;
    uint32_t *index = a.index + (uint64_t)blockIdx.x * a.k;
    if (threadIdx.x == 0) {
        threshold = 0;
        wanted = a.k;
        is_found = taken = 0;
    }
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < RADIX; i += SELECT_THREADS) histogram[i] = 0;
        __syncthreads();
        if (is_found) break; /* the same for all: nobody writes it before the next barrier */
        for (uint32_t i = threadIdx.x; i < a.n; i += SELECT_THREADS) {
            const uint64_t key = select_key(score[i], i);
            if (shift == 56 && score[i] != score[i]) *a.bad = 1;
            if (shift == 56 || (key >> (shift + 8)) == (threshold >> (shift + 8)))
                atomicAdd(&histogram[(key >> shift) & (RADIX - 1)], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t digit = RADIX - 1;
            while (histogram[digit] < wanted) wanted -= histogram[digit--];
            threshold |= (uint64_t)digit << shift;
            is_found = histogram[digit] == wanted;
        }
        __syncthreads();
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.n; i += SELECT_THREADS) {
        const uint64_t key = select_key(score[i], i);
        if (key < threshold) continue;
        const uint32_t at = atomicAdd(&taken, 1u);
        if (at < SELECT_MAX) chosen[at] = key; /* k of them: keys are all different */
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.k; i += SELECT_THREADS) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < a.k; j++) rank += chosen[j] > chosen[i];
        index[rank] = ~(uint32_t)chosen[i];
    }
}

static void launch_scores(cudaStream_t stream, const mr_cuda_scores *w) {
    const uint32_t panels = (w->n + SCORE_PANEL - 1) / SCORE_PANEL;
    MR_LAUNCH(score_keys, mr_cuda_scores, (panels + SCORE_WARPS - 1) / SCORE_WARPS,
              (w->m + SCORE_TOKENS - 1) / SCORE_TOKENS, SCORE_THREADS, stream, *w);
}

static void launch_select(cudaStream_t stream, const mr_cuda_select *w) {
    MR_LAUNCH(select_rows, mr_cuda_select, w->rows, 1, SELECT_THREADS, stream, *w);
}

#endif
