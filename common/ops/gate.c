/* gate.c - see gate.h. */
#include "common/ops/gate.h"

#include "common/ops/math.h"

#include <math.h>
#include <string.h>

bool mr_exponent_of(int *out, double bound) {
    int exponent;
    *out = MR_EXPONENT_MIN;
    if (!(bound >= 0) || isinf(bound)) return false;
    if (bound == 0) return true;
    frexp(bound, &exponent);
    if (exponent > MR_EXPONENT_MAX) return false;
    if (exponent > MR_EXPONENT_MIN) *out = exponent;
    return true;
}

/* 2^power for power in [-126, 127]. */
static float power_of_two(int power) {
    const uint32_t bits = (uint32_t)(power + 127) << 23;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

float mr_scale_exact(float x, int power) {
    return x * power_of_two(power);
}

float mr_dot_to_float(int64_t dot, int d) {
    return (float)dot * power_of_two(d - 62);
}

float mr_gelu(float x) {
    const double y = 0.5 * (double)x * (1.0 + mr_erf((double)x * 0.70710678118654752));
    return (float)y;
}

float mr_gate_weight(float dot, float score, bool gelu) {
    const float gate = gelu ? mr_gelu(dot) : dot;
    return gate * score;
}
