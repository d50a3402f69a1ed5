/* lanes.h - vectors of 16 floats that the compiler maps to what a file is built for, with the same
 * bits everywhere: element by element, nothing is contracted. Passed by pointer, as the registers
 * they lie in differ. */
#ifndef MR_OPS_LANES_H
#define MR_OPS_LANES_H
#include <stdint.h>

#define MR_LANES_INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(64)));
typedef int32_t whole_lanes __attribute__((vector_size(64)));
typedef float loose_lanes __attribute__((vector_size(64), aligned(4))); /* of any address */

MR_LANES_INLINE void load_lanes(lanes *to, const float *from) {
    *to = *(const loose_lanes *)(const void *)from;
}

/* The first `count` of 16, then zeros: adding 0 x 0 to a sum that began at 0 changes nothing. */
MR_LANES_INLINE void load_some(lanes *to, const float *from, uint32_t count) {
    float part[16] = {0};
    for (uint32_t i = 0; i < count; i++) part[i] = from[i];
    load_lanes(to, part);
}

/* mr_exp of each lane. */
MR_LANES_INLINE void exp_lanes(lanes *y, const lanes *at) {
    const lanes x = *at, low = (lanes){0} - 87.33654f, high = (lanes){0} + 88.72283f;
    const whole_lanes is_low = x<low, is_high = x> high, is_number = x == x;
    const lanes clamped = (lanes)(((whole_lanes)low & is_low) | ((whole_lanes)high & is_high) |
                                  ((whole_lanes)x & ~(is_low | is_high)));
    const lanes shifted = clamped * 1.44269504f + 12582912.0f;
    const lanes n = shifted - 12582912.0f;
    lanes r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    lanes p = (lanes){0} + 1.98412698e-4f;
    p = p * r + 1.38888889e-3f;
    p = p * r + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const whole_lanes whole = ((whole_lanes)shifted << 9) >> 9;
    const whole_lanes half = (whole + (whole_lanes)((whole >> 31) & 1)) >> 1; /* towards zero */
    const lanes first = (lanes)((half + 127) << 23), second = (lanes)((whole - half + 127) << 23);
    const whole_lanes value = (whole_lanes)(p * first * second);
    const whole_lanes infinite = (whole_lanes)((lanes){0} + __builtin_inff());
    const whole_lanes inside = (value & is_number) | ((whole_lanes)x & ~is_number);
    *y = (lanes)((infinite & is_high) | (inside & ~(is_low | is_high)));
}

#endif
