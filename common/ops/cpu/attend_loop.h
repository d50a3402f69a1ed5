/* attend_loop.h - attention over one block of keys and values, in vectors of 16 lanes that the
 * compiler maps to what the file is built for. Sums run in the lanes and the tree of dense.c, e^x
 * is mr_exp step by step: the bits are those of ops_ref.c. */
#ifndef MR_OPS_CPU_ATTEND_LOOP_H
#define MR_OPS_CPU_ATTEND_LOOP_H
#include "common/ops/lanes.h"
#include "common/ops/math.h"
#include "common/ops/ops.h"

#define INLINE MR_LANES_INLINE

/* The tree of dense.c for two vectors at a time: lanes i and i + WIDTH of each are added; the sums
 * of `a` stay in the lower half of every group of 2 x WIDTH lanes, those of `b` go to the upper. */
#define MR_FOLD(NAME, A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, STEP)  \
    INLINE void NAME(lanes *to, const lanes *a, const lanes *b) {                                  \
        *to = __builtin_shufflevector(*a, *b, A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11,    \
                                      A12, A13, A14, A15) +                                        \
              __builtin_shufflevector(*a, *b, A0 + STEP, A1 + STEP, A2 + STEP, A3 + STEP,          \
                                      A4 + STEP, A5 + STEP, A6 + STEP, A7 + STEP, A8 + STEP,       \
                                      A9 + STEP, A10 + STEP, A11 + STEP, A12 + STEP, A13 + STEP,   \
                                      A14 + STEP, A15 + STEP);                                     \
    }
MR_FOLD(fold_8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 8)
MR_FOLD(fold_4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27, 4)
MR_FOLD(fold_2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29, 2)
MR_FOLD(fold_1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30, 1)

/* Dots of a query with 16 keys. Vector j's sum ends in lane j: the first fold pairs j with j + 8,
 * the next j with j + 4, as the groups of lanes lie. */
INLINE void dot_keys(lanes *score, const float *query, const float *keys, uint32_t count,
                     uint32_t dim) {
    lanes sum[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) sum[j] = (lanes){0};
    if (count == 16) {
        for (uint32_t i = 0; i + 16 <= dim; i += 16) {
            lanes q;
            load_lanes(&q, query + i);
#pragma GCC unroll 16
            for (uint32_t j = 0; j < 16; j++) {
                lanes key;
                load_lanes(&key, keys + (size_t)j * dim + i);
                sum[j] = sum[j] + q * key;
            }
        }
    } else {
        for (uint32_t j = 0; j < count; j++) {
            lanes q, key, one = {0};
            for (uint32_t i = 0; i + 16 <= dim; i += 16) {
                load_lanes(&q, query + i);
                load_lanes(&key, keys + (size_t)j * dim + i);
                one = one + q * key;
            }
            sum[j] = one;
        }
    }
    if (dim % 16)
        for (uint32_t j = 0; j < count; j++) {
            lanes q, key;
            load_some(&q, query + dim / 16 * 16, dim % 16);
            load_some(&key, keys + (size_t)j * dim + dim / 16 * 16, dim % 16);
            sum[j] = sum[j] + q * key;
        }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) fold_8(&sum[j], &sum[j], &sum[j + 8]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) fold_4(&sum[j], &sum[j], &sum[j + 4]);
    fold_2(&sum[0], &sum[0], &sum[2]);
    fold_2(&sum[1], &sum[1], &sum[3]);
    fold_1(score, &sum[0], &sum[1]);
}

/* out = out * shrink + sum over j of p[j] * values[j], in order. */
INLINE void add_values(float *out, const float *values, const float *p, float shrink,
                       uint32_t count, uint32_t dim) {
    uint32_t i = 0;
    for (; i + 64 <= dim; i += 64) {
        lanes sum[4];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++) {
            load_lanes(&sum[v], out + i + 16 * v);
            sum[v] = sum[v] * shrink;
        }
        for (uint32_t j = 0; j < count; j++)
#pragma GCC unroll 4
            for (uint32_t v = 0; v < 4; v++) {
                lanes value;
                load_lanes(&value, values + (size_t)j * dim + i + 16 * v);
                sum[v] = sum[v] + p[j] * value;
            }
#pragma GCC unroll 4
        for (uint32_t v = 0; v < 4; v++) *(loose_lanes *)(void *)(out + i + 16 * v) = sum[v];
    }
    for (; i < dim; i++) {
        float sum = out[i] * shrink;
        for (uint32_t j = 0; j < count; j++) sum = sum + p[j] * values[(size_t)j * dim + i];
        out[i] = sum;
    }
}

INLINE void attend_block(mr_attention_state *state, float *out, const float *query, uint32_t heads,
                         const float *keys, const float *values, uint32_t count, uint32_t dim,
                         float scale) {
    for (uint32_t h = 0; h < heads; h++, query += dim, out += dim) {
        lanes score, p_lanes;
        float p[16], largest = state[h].largest;
        dot_keys(&score, query, keys, count, dim);
        score = score * scale;
        for (uint32_t j = 0; j < count; j++)
            if (score[j] > largest) largest = score[j];
        const lanes less = score - largest;
        exp_lanes(&p_lanes, &less);
        memcpy(p, &p_lanes, sizeof(p));
        const float shrink = mr_exp(state[h].largest - largest);
        state[h].sum = state[h].sum * shrink;
        for (uint32_t j = 0; j < count; j++) state[h].sum = state[h].sum + p[j];
        state[h].largest = largest;
        add_values(out, values, p, shrink, count, dim);
    }
}
#endif
