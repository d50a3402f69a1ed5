/* attend_neon.c - attention over one block of keys and values for AArch64. A dot is the 16 lanes
 * and the tree of dense.c, as four registers for each of four keys; e^x is mr_exp in lanes.h: the
 * bits are those of ops_ref.c. */
#include "common/ops/cpu/backends.h"

#if defined(__aarch64__)
#include "common/ops/lanes.h"
#include "common/ops/math.h"

#include <arm_neon.h>

#define INLINE MR_LANES_INLINE
enum { KEYS = 4 }; /* side by side */

/* Lanes 0, 1, .. of the 16: i and i + 8 are added, then i and i + 4, i + 2, i + 1. */
INLINE float tree(const float32x4_t lane[4]) {
    const float32x4_t four = vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE void add_products(float32x4_t sum[4], const float *query, const float *key) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
        sum[v] = vaddq_f32(sum[v], vmulq_f32(vld1q_f32(query + 4 * v), vld1q_f32(key + 4 * v)));
}

/* Dots of a query with so many keys. */
INLINE void dot_keys(float *score, const float *query, const float *keys, const uint32_t count,
                     uint32_t dim) {
    float32x4_t sum[KEYS][4];
    uint32_t i = 0;
#pragma GCC unroll 4
    for (uint32_t j = 0; j < count; j++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sum[j][v] = vdupq_n_f32(0);
    for (; i + 16 <= dim; i += 16)
#pragma GCC unroll 4
        for (uint32_t j = 0; j < count; j++)
            add_products(sum[j], query + i, keys + (size_t)j * dim + i);
    if (i < dim) {
        float q[16] = {0}, key[16] = {0};
        memcpy(q, query + i, (dim - i) * sizeof(float));
#pragma GCC unroll 4
        for (uint32_t j = 0; j < count; j++) {
            memcpy(key, keys + (size_t)j * dim + i, (dim - i) * sizeof(float));
            add_products(sum[j], q, key);
        }
    }
#pragma GCC unroll 4
    for (uint32_t j = 0; j < count; j++) score[j] = tree(sum[j]);
}

/* out = out * shrink + sum over j of p[j] * values[j], in order. */
INLINE void add_values(float *out, const float *values, const float *p, float shrink,
                       uint32_t count, uint32_t dim) {
    uint32_t i = 0;
    for (; i + 32 <= dim; i += 32) {
        float32x4_t sum[8];
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) sum[v] = vmulq_n_f32(vld1q_f32(out + i + 4 * v), shrink);
        for (uint32_t j = 0; j < count; j++) {
            const float *value = values + (size_t)j * dim + i;
#pragma GCC unroll 8
            for (int v = 0; v < 8; v++)
                sum[v] = vaddq_f32(sum[v], vmulq_n_f32(vld1q_f32(value + 4 * v), p[j]));
        }
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) vst1q_f32(out + i + 4 * v, sum[v]);
    }
    for (; i < dim; i++) {
        float sum = out[i] * shrink;
        for (uint32_t j = 0; j < count; j++) sum = sum + p[j] * values[(size_t)j * dim + i];
        out[i] = sum;
    }
}

void mr_neon_attend(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                    const float *keys, const float *values, uint32_t count, uint32_t dim,
                    float scale) {
    for (uint32_t h = 0; h < heads; h++, query += dim, out += dim) {
        float score[MR_ATTEND_KEYS] = {0}, p[MR_ATTEND_KEYS], largest = state[h].largest;
        uint32_t j = 0;
        for (; j + KEYS <= count; j += KEYS)
            dot_keys(score + j, query, keys + (size_t)j * dim, KEYS, dim);
        for (; j < count; j++) dot_keys(score + j, query, keys + (size_t)j * dim, 1, dim);
        for (j = 0; j < count; j++) {
            score[j] = score[j] * scale;
            if (score[j] > largest) largest = score[j];
        }
        lanes less, power;
        load_lanes(&less, score);
        less = less - largest;
        exp_lanes(&power, &less);
        memcpy(p, &power, sizeof(p));
        const float shrink = mr_exp(state[h].largest - largest);
        state[h].sum = state[h].sum * shrink;
        for (j = 0; j < count; j++) state[h].sum = state[h].sum + p[j];
        state[h].largest = largest;
        add_values(out, values, p, shrink, count, dim);
    }
}
#endif
