/* encode.c - rows of numbers as codes and scales; see element.h.
 *
 * int8 and fp8 scales come from the largest magnitude. int4 has too few codes for that: several
 * scales are tried for each block, each with the best factor for the codes it gives, and the one of
 * the least squared error is taken. Errors of large numbers count more, since they meet more in a
 * product. The scale may be negative, so that the largest number is code -8 exactly. */
#include "common/ops/element.h"

#include <math.h>

static void put_code(uint8_t *codes, mr_element element, uint32_t i, float x) {
    if (element == MR_F8) {
        codes[i] = mr_f32_to_f8(x);
        return;
    }
    const float limit = element == MR_I8 ? 127.0f : 7.0f;
    const float least = element == MR_I8 ? -127.0f : -8.0f;
    const float rounded = nearbyintf(x);
    const int code = (int)(rounded > limit ? limit : rounded < least ? least : rounded);
    if (element == MR_I8)
        codes[i] = (uint8_t)(int8_t)code;
    else
        codes[i % 16] = (uint8_t)(codes[i % 16] | (code + 8) << (i < 16 ? 0 : 4));
}

/* The least f16 not below. */
static uint16_t f16_not_below(float x) {
    uint16_t half = mr_f32_to_f16(x);
    if (mr_f16_to_f32(half) < x && half < 0x7bff) half++;
    return half == 0x7c00 ? 0x7bff : half;
}

/* Sums of 32 in eight lanes. */
static float sum_of(const float *x) {
    float lane[8] = {0};
    for (int i = 0; i < MR_QUANT_BLOCK; i += 8)
        for (int l = 0; l < 8; l++) lane[l] += x[i + l];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* rn(x) for small x: adding 1.5 * 2^23 leaves no bits below one. */
static float round_small(float x) {
    const float big = 12582912.0f;
    return (x + big) - big;
}

/* A block of int4, padded with zeros. */
typedef struct {
    float x[MR_QUANT_BLOCK], weight[MR_QUANT_BLOCK];
    float error; /* of the best scale so far */
    float scale;
} int4_search;

static void try_int4(int4_search *s, float scale) {
    float code[MR_QUANT_BLOCK], xq[MR_QUANT_BLOCK], qq[MR_QUANT_BLOCK];
    const float inverse = 1.0f / scale;
    if (!isfinite(inverse)) return;
    for (int i = 0; i < MR_QUANT_BLOCK; i++) {
        float c = round_small(s->x[i] * inverse);
        c = c > 7 ? 7 : c;
        code[i] = c < -8 ? -8 : c;
        xq[i] = s->weight[i] * s->x[i] * code[i];
        qq[i] = s->weight[i] * code[i] * code[i];
    }
    const float length = sum_of(qq);
    if (!(length > 0)) return;
    const float best = mr_f16_to_f32(mr_f32_to_f16(sum_of(xq) / length));
    for (int i = 0; i < MR_QUANT_BLOCK; i++) {
        const float off = s->x[i] - best * code[i];
        qq[i] = s->weight[i] * off * off;
    }
    const float error = sum_of(qq);
    if (!(error < s->error) || best == 0 || !isfinite(best)) return;
    s->error = error;
    s->scale = best;
}

static uint16_t int4_scale(const float *x, uint32_t count, float largest) {
    int4_search s = {.error = INFINITY, .scale = 0};
    float square = 0, extreme = 0;
    if (largest == 0) return 0;
    const float unit = 1.0f / largest; /* squares of small numbers must not vanish */
    for (uint32_t i = 0; i < count; i++) {
        square += x[i] * unit * (x[i] * unit);
        if (fabsf(x[i]) == largest) extreme = x[i];
        s.x[i] = x[i];
    }
    for (uint32_t i = 0; i < count; i++)
        s.weight[i] = square / (float)count + x[i] * unit * (x[i] * unit);
    for (int step = -3; step <= 3; step++) {
        try_int4(&s, extreme / (-8.0f + 0.3f * (float)step));
        try_int4(&s, largest / (7.0f + 0.3f * (float)step));
    }
    return s.scale != 0 ? mr_f32_to_f16(s.scale) : f16_not_below(largest / 7);
}

static void encode_block(uint8_t *to, const float *x, mr_storage format, uint32_t count,
                         const float *tile_scale) {
    const float limit = format.element == MR_I8 ? 127 : format.element == MR_I4 ? 7 : 448;
    float largest = 0;
    for (uint32_t i = 0; i < count; i++)
        if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
    float scale = tile_scale ? *tile_scale : largest / limit;
    if (mr_storage_scale_bytes(format) == 2) {
        const uint16_t half =
            format.element == MR_I4 ? int4_scale(x, count, largest) : f16_not_below(scale);
        memcpy(to, &half, sizeof(half));
        scale = mr_f16_to_f32(half);
    } else
        memcpy(to, &scale, sizeof(scale));
    uint8_t *codes = to + mr_storage_scale_bytes(format);
    memset(codes, 0, (size_t)mr_code_bytes(format.element, count));
    for (uint32_t i = 0; i < count; i++)
        put_code(codes, format.element, i, scale != 0 ? x[i] / scale : 0);
    for (uint32_t i = count; format.element == MR_I4 && i < MR_QUANT_BLOCK; i++)
        put_code(codes, format.element, i, 0);
}

void mr_storage_encode(void *row, const float *x, mr_storage format, uint32_t columns,
                       const float *tile_scale) {
    uint8_t *to = row;
    if (format.block == 0) {
        for (uint32_t i = 0; i < columns; i++) {
            const uint16_t half =
                format.element == MR_BF16 ? mr_f32_to_bf16(x[i]) : mr_f32_to_f16(x[i]);
            if (format.element == MR_F32)
                memcpy(to + 4ull * i, &x[i], 4);
            else
                memcpy(to + 2ull * i, &half, 2);
        }
        return;
    }
    const uint32_t block = format.block == MR_WHOLE_ROW ? columns : format.block;
    const uint64_t block_bytes = mr_storage_bytes(format, block);
    for (uint32_t i = 0, b = 0; i < columns; i += block, b++, to += block_bytes)
        encode_block(to, x + i, format, columns - i < block ? columns - i : block,
                     tile_scale ? tile_scale + b : NULL);
}
