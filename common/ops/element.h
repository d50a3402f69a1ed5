/* element.h - the element types kernels read, and their conversions to float.
 * bf16 is the upper half of a float; both conversions are exact up (to f32) and round to nearest
 * even down. */
#ifndef MR_OPS_ELEMENT_H
#define MR_OPS_ELEMENT_H
#include <stdint.h>
#include <string.h>

typedef enum { MR_F32 = 0, MR_BF16 = 1 } mr_element;

static inline uint32_t mr_element_bytes(mr_element element) {
    return element == MR_F32 ? 4 : 2;
}

static inline float mr_bf16_to_f32(uint16_t value) {
    const uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

static inline uint16_t mr_f32_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* By memcpy: a mapped file need not be aligned to its elements. */
static inline float mr_element_at(const void *data, mr_element element, uint64_t index) {
    const uint8_t *at = (const uint8_t *)data + index * mr_element_bytes(element);
    if (element == MR_BF16) {
        uint16_t half;
        memcpy(&half, at, sizeof(half));
        return mr_bf16_to_f32(half);
    }
    float whole;
    memcpy(&whole, at, sizeof(whole));
    return whole;
}

#endif
