/* element.c - see element.h: conversions bit by bit, and rows of blocks. Plain loops: vector
 * backends have their own for the hot paths and are compared with these. */
#include "common/ops/element.h"

#include <math.h>

float mr_f16_to_f32(uint16_t value) {
    const uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t exponent = (value >> 10) & 0x1fu, mantissa = value & 0x3ffu, bits;
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent > 0)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else if (mantissa == 0)
        bits = sign;
    else {
        exponent = 113;
        for (; !(mantissa & 0x400u); mantissa <<= 1) exponent--;
        bits = sign | exponent << 23 | (mantissa & 0x3ffu) << 13;
    }
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

/* |x| in units of the last place of a small float type, to nearest even; scaling by powers of two
 * is exact in double. */
static uint32_t round_magnitude(double magnitude, int least_exponent, int mantissa_bits) {
    int exponent;
    frexp(magnitude, &exponent); /* magnitude in [2^(exponent-1), 2^exponent) */
    exponent--;
    if (exponent < least_exponent) exponent = least_exponent;
    const double units = nearbyint(ldexp(magnitude, mantissa_bits - exponent));
    /* The units of a normal number are 2^m .. 2^(m+1): adding them carries into the exponent. */
    return (uint32_t)units + ((uint32_t)(exponent - least_exponent) << mantissa_bits);
}

uint16_t mr_f32_to_f16(float value) {
    const uint16_t sign = signbit(value) ? 0x8000u : 0;
    if (value != value) return sign | 0x7e00u;
    const double magnitude = fabs((double)value);
    if (magnitude >= 65520.0) return sign | 0x7c00u;
    if (magnitude == 0) return sign;
    return (uint16_t)(sign | round_magnitude(magnitude, -14, 10));
}

float mr_f8_to_f32(uint8_t value) {
    const int exponent = (value >> 3) & 0xf, mantissa = value & 7;
    if ((value & 0x7f) == 0x7f) return NAN;
    const float magnitude =
        exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return value & 0x80 ? -magnitude : magnitude;
}

uint8_t mr_f32_to_f8(float value) {
    const uint8_t sign = signbit(value) ? 0x80u : 0;
    if (value != value) return 0x7f;
    const double magnitude = fabs((double)value);
    if (magnitude >= 448.0) return sign | 0x7e;
    if (magnitude == 0) return sign;
    const uint32_t code = round_magnitude(magnitude, -6, 3);
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}

/* --- formats ---------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    mr_storage storage;
} stores[MR_STORE_COUNT] = {
    {"f32", {MR_F32, 0}},
    {"bf16", {MR_BF16, 0}},
    {"f16", {MR_F16, 0}},
    {"int8", {MR_I8, MR_WHOLE_ROW}},
    {"int8-block", {MR_I8, MR_QUANT_BLOCK}},
    {"int4", {MR_I4, MR_QUANT_BLOCK}},
    {"fp8", {MR_F8, MR_WHOLE_ROW}},
    {"fp8-block", {MR_F8, MR_TILE_BLOCK}},
};

const char *mr_storage_name(mr_storage_type type) {
    return stores[type].name;
}

int mr_storage_parse(mr_storage_type *out, const char *name) {
    for (int i = 0; i < MR_STORE_COUNT; i++) {
        if (strcmp(name, stores[i].name) != 0) continue;
        *out = (mr_storage_type)i;
        return 0;
    }
    return -1;
}

mr_storage mr_storage_of(mr_storage_type type) {
    return stores[type].storage;
}

mr_storage_type mr_storage_type_of(mr_storage format) {
    for (int i = 0; i < MR_STORE_COUNT; i++)
        if (mr_storage_same(format, stores[i].storage)) return (mr_storage_type)i;
    return MR_STORE_COUNT;
}

uint64_t mr_code_bytes(mr_element element, uint64_t count) {
    if (element == MR_I4)
        return (count + MR_QUANT_BLOCK - 1) / MR_QUANT_BLOCK * (MR_QUANT_BLOCK / 2);
    return count * (mr_element_bits(element) / 8);
}

uint64_t mr_storage_bytes(mr_storage format, uint64_t columns) {
    if (format.block == 0) return mr_code_bytes(format.element, columns);
    if (columns == 0) return 0;
    const uint64_t blocks =
        format.block == MR_WHOLE_ROW ? 1 : (columns + format.block - 1) / format.block;
    return blocks * mr_storage_scale_bytes(format) + mr_code_bytes(format.element, columns);
}

static float code_at(const uint8_t *codes, mr_element element, uint32_t i) {
    if (element == MR_I8) return (float)(int8_t)codes[i];
    if (element == MR_F8) return mr_f8_to_f32(codes[i]);
    const uint8_t pair = codes[i % 16];
    return (float)((i < 16 ? pair & 15 : pair >> 4) - 8);
}

static float scale_at(const uint8_t *at, mr_storage format) {
    uint16_t half;
    float whole;
    if (mr_storage_scale_bytes(format) == 2) {
        memcpy(&half, at, sizeof(half));
        return mr_f16_to_f32(half);
    }
    memcpy(&whole, at, sizeof(whole));
    return whole;
}

void mr_storage_decode(float *out, const void *row, mr_storage format, uint32_t columns,
                       uint32_t first, uint32_t count) {
    if (format.block == 0) {
        for (uint32_t i = 0; i < count; i++)
            out[i] = mr_element_at(row, format.element, (uint64_t)first + i);
        return;
    }
    const uint32_t block = format.block == MR_WHOLE_ROW ? columns : format.block;
    const uint64_t block_bytes = mr_storage_bytes(format, block);
    for (uint32_t i = 0; i < count;) {
        const uint32_t at = (first + i) % block;
        const uint32_t take = block - at < count - i ? block - at : count - i;
        const uint8_t *start = (const uint8_t *)row + (first + i) / block * block_bytes;
        const float scale = scale_at(start, format);
        const uint8_t *codes = start + mr_storage_scale_bytes(format);
        for (uint32_t j = 0; j < take; j++)
            out[i + j] = code_at(codes, format.element, at + j) * scale;
        i += take;
    }
}
