/* dense.h - the element-wise and row-wise parts of a transformer block, in plain C with one fixed
 * order of operations: a row's result depends on that row only. All in fp32. */
#ifndef MR_OPS_DENSE_H
#define MR_OPS_DENSE_H
#include <stdint.h>

/* y = x / sqrt(mean(x^2) + eps) * w.  y may be x. */
void mr_rms_norm(float *y, const float *x, const float *w, uint32_t n, float eps);
/* LayerNorm with biased variance, weight only. y may be x. */
void mr_layer_norm(float *y, const float *x, const float *w, uint32_t n, float eps);
/* y[i] = silu(gate[i]) * value[i], silu(g) = g / (1 + e^-g). y may be value or gate. */
void mr_silu_multiply(float *y, const float *gate, const float *value, uint32_t n);
/* Halves layout: x[j], x[j + half] rotated by the angle of (cos[j], sin[j]). In place. */
void mr_rope(float *x, const float *cosine, const float *sine, uint32_t half);
/* cos and sin of position * frequency[j]; frequency from mr_rope_frequencies. */
void mr_rope_angles(float *cosine, float *sine, const float *frequency, uint32_t half,
                    uint32_t position);
/* frequency[j] = theta^(-2j/dim), rounded to fp32 as the official code stores it. */
void mr_rope_frequencies(float *frequency, uint32_t dim, double theta);
/* In place softmax of n scores; one order, so equal inputs give equal bits. */
void mr_softmax(float *x, uint32_t n);
float mr_dot(const float *a, const float *b, uint32_t n);
void mr_add(float *y, const float *x, uint32_t n); /* y += x */

#endif
