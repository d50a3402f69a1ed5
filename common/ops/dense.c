/* dense.c - see dense.h. Sums run in 16 lanes that are folded in a fixed tree: the compiler may use
 * any vector width and still gives the same bits. */
#include "common/ops/dense.h"

#include "common/ops/lanes.h"
#include "common/ops/math.h"

#include <math.h>
#include <stddef.h>

enum { LANES = 16 };

static float fold(const float lane[LANES]) {
    float part[LANES];
    for (int i = 0; i < LANES; i++) part[i] = lane[i];
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) part[i] = part[i] + part[i + width];
    return part[0];
}

float mr_dot(const float *a, const float *b, uint32_t n) {
    float lane[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (uint32_t l = 0; l < LANES; l++) lane[l] = lane[l] + a[i + l] * b[i + l];
    for (uint32_t l = 0; i < n; i++, l++) lane[l] = lane[l] + a[i] * b[i];
    return fold(lane);
}

static float sum_of(const float *x, uint32_t n) {
    float lane[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (uint32_t l = 0; l < LANES; l++) lane[l] = lane[l] + x[i + l];
    for (uint32_t l = 0; i < n; i++, l++) lane[l] = lane[l] + x[i];
    return fold(lane);
}

void mr_rms_norm(float *y, const float *x, const float *w, uint32_t n, float eps) {
    const float scale = 1.0f / sqrtf(mr_dot(x, x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) y[i] = x[i] * scale * w[i];
}

void mr_layer_norm(float *y, const float *x, const float *w, uint32_t n, float eps) {
    const float mean = sum_of(x, n) / (float)n;
    float lane[LANES] = {0};
    for (uint32_t i = 0; i < n; i++) {
        const float d = x[i] - mean;
        lane[i % LANES] = lane[i % LANES] + d * d;
    }
    const float scale = 1.0f / sqrtf(fold(lane) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * w[i];
}

void mr_silu_multiply(float *y, const float *gate, const float *value, uint32_t n) {
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        lanes g, v, e;
        load_lanes(&g, gate + i);
        load_lanes(&v, value + i);
        const lanes negative = -g;
        exp_lanes(&e, &negative);
        *(loose_lanes *)(void *)(y + i) = g / (1.0f + e) * v;
    }
    for (; i < n; i++) y[i] = gate[i] / (1.0f + mr_exp(-gate[i])) * value[i];
}

void mr_rope(float *x, const float *cosine, const float *sine, uint32_t half) {
    for (uint32_t j = 0; j < half; j++) {
        const float a = x[j], b = x[j + half];
        x[j] = a * cosine[j] - b * sine[j];
        x[j + half] = b * cosine[j] + a * sine[j];
    }
}

void mr_rope_frequencies(float *frequency, uint32_t dim, double theta) {
    const double log_theta = mr_ln(theta);
    for (uint32_t j = 0; j < dim / 2; j++)
        frequency[j] = (float)mr_exp_double(-2.0 * j / dim * log_theta);
}

void mr_rope_angles(float *cosine, float *sine, const float *frequency, uint32_t half,
                    uint32_t position) {
    for (uint32_t j = 0; j < half; j++) {
        double s, c;
        const float angle = (float)position * frequency[j];
        mr_sin_cos((double)angle, &s, &c);
        cosine[j] = (float)c;
        sine[j] = (float)s;
    }
}

void mr_softmax(float *x, uint32_t n) {
    float largest = x[0], sum = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > largest) largest = x[i];
    for (uint32_t i = 0; i < n; i++) x[i] = mr_exp(x[i] - largest);
    sum = sum_of(x, n);
    for (uint32_t i = 0; i < n; i++) x[i] = x[i] / sum;
}

void mr_add(float *y, const float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) y[i] = y[i] + x[i];
}
