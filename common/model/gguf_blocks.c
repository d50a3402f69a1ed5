/* gguf_blocks.c - see gguf_blocks.h.
 *
 * One function per format, in the words of its layout: d and m are f16 scales and minima, q codes.
 * "sub" counts the sub-blocks of a super-block of 256 that have a scale of their own. */
#include "common/model/gguf_blocks.h"

#include "common/ops/element.h"

#include <stddef.h>
#include <string.h>

/* The 16 values of the nonlinear 4-bit types, and of e2m1 (doubled). */
static const int8_t nonlinear_codes[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                           1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint16_t u16_at(const uint8_t *at) {
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t u32_at(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

float mr_block_half(const uint8_t *at) {
    return mr_f16_to_f32(u16_at(at));
}

static void decode_f32(float *out, const uint8_t *b) {
    *out = from_bits(u32_at(b));
}

static void decode_f16(float *out, const uint8_t *b) {
    *out = mr_block_half(b);
}

static void decode_bf16(float *out, const uint8_t *b) {
    *out = mr_bf16_to_f32(u16_at(b));
}

/* --- blocks of 32 ----------------------------------------------------------------------------- */

static void decode_q4_0(float *out, const uint8_t *b) {
    const float d = mr_block_half(b);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)((b[2 + j] & 15) - 8);
        out[16 + j] = d * (float)((b[2 + j] >> 4) - 8);
    }
}

static void decode_q4_1(float *out, const uint8_t *b) {
    const float d = mr_block_half(b), m = mr_block_half(b + 2);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)(b[4 + j] & 15) + m;
        out[16 + j] = d * (float)(b[4 + j] >> 4) + m;
    }
}

/* Code j of the five-bit types: its low four bits, and bit j of high. */
static int five_bits(const uint8_t *low, uint32_t high, int j) {
    const int nibble = j < 16 ? low[j] & 15 : low[j - 16] >> 4;
    return nibble | (int)(high >> j & 1) << 4;
}

static void decode_q5_0(float *out, const uint8_t *b) {
    const float d = mr_block_half(b);
    const uint32_t high = u32_at(b + 2);
    for (int j = 0; j < 32; j++) out[j] = d * (float)(five_bits(b + 6, high, j) - 16);
}

static void decode_q5_1(float *out, const uint8_t *b) {
    const float d = mr_block_half(b), m = mr_block_half(b + 2);
    const uint32_t high = u32_at(b + 4);
    for (int j = 0; j < 32; j++) out[j] = d * (float)five_bits(b + 8, high, j) + m;
}

static void decode_q8_0(float *out, const uint8_t *b) {
    const float d = mr_block_half(b);
    for (int j = 0; j < 32; j++) out[j] = d * (float)(int8_t)b[2 + j];
}

static void decode_iq4_nl(float *out, const uint8_t *b) {
    const float d = mr_block_half(b);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)nonlinear_codes[b[2 + j] & 15];
        out[16 + j] = d * (float)nonlinear_codes[b[2 + j] >> 4];
    }
}

static void decode_mxfp4(float *out, const uint8_t *b) {
    /* half of 2^(e-127), since the codes are doubled; the two smallest are subnormal */
    const float d = from_bits(b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23);
    for (int j = 0; j < 16; j++) {
        out[j] = d * (float)e2m1_doubled[b[1 + j] & 15];
        out[16 + j] = d * (float)e2m1_doubled[b[1 + j] >> 4];
    }
}

/* --- super-blocks of 256 ---------------------------------------------------------------------- */

static void decode_q2_k(float *out, const uint8_t *b) {
    const uint8_t *scales = b, *codes = b + 16;
    const float d = mr_block_half(b + 80), least = mr_block_half(b + 82);
    for (int i = 0; i < 256; i++) {
        const int sub = i / 16, q = codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        const float scale = d * (float)(scales[sub] & 15), m = least * (float)(scales[sub] >> 4);
        out[i] = scale * (float)q - m;
    }
}

static void decode_q3_k(float *out, const uint8_t *b) {
    const uint8_t *high = b, *codes = b + 32, *scales = b + 96;
    const float d = mr_block_half(b + 108);
    float sub_scale[16];
    for (int s = 0; s < 16; s++) {
        const int low = scales[s % 8] >> (s / 8 * 4) & 15;
        const int top = scales[8 + s % 4] >> (s / 4 * 2) & 3;
        sub_scale[s] = d * (float)((low | top << 4) - 32);
    }
    for (int i = 0; i < 256; i++) {
        const int low = codes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        const int missing = high[i % 32] >> (i / 32) & 1 ? 0 : 4;
        out[i] = sub_scale[i / 16] * (float)(low - missing);
    }
}

/* The eight six-bit scales and minima of Q4_K and Q5_K, packed in twelve bytes. */
static void unpack_scales(float scale[8], float least[8], float d, float m, const uint8_t *p) {
    for (int j = 0; j < 4; j++) {
        scale[j] = d * (float)(p[j] & 63);
        least[j] = m * (float)(p[4 + j] & 63);
        scale[4 + j] = d * (float)((p[8 + j] & 15) | (p[j] >> 6) << 4);
        least[4 + j] = m * (float)((p[8 + j] >> 4) | (p[4 + j] >> 6) << 4);
    }
}

static int nibble_of_32s(const uint8_t *codes, int i) {
    return codes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
}

static void decode_q4_k(float *out, const uint8_t *b) {
    float scale[8], least[8];
    unpack_scales(scale, least, mr_block_half(b), mr_block_half(b + 2), b + 4);
    for (int i = 0; i < 256; i++)
        out[i] = scale[i / 32] * (float)nibble_of_32s(b + 16, i) - least[i / 32];
}

static void decode_q5_k(float *out, const uint8_t *b) {
    const uint8_t *high = b + 16, *codes = b + 48;
    float scale[8], least[8];
    unpack_scales(scale, least, mr_block_half(b), mr_block_half(b + 2), b + 4);
    for (int i = 0; i < 256; i++) {
        const int q = nibble_of_32s(codes, i) | (high[i % 32] >> (i / 32) & 1) << 4;
        out[i] = scale[i / 32] * (float)q - least[i / 32];
    }
}

static void decode_q6_k(float *out, const uint8_t *b) {
    const uint8_t *low = b, *high = b + 128, *scales = b + 192;
    const float d = mr_block_half(b + 208);
    for (int i = 0; i < 256; i++) {
        const int four = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
        const int two = high[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        out[i] = d * (float)(int8_t)scales[i / 16] * (float)((four | two << 4) - 32);
    }
}

static void decode_q8_k(float *out, const uint8_t *b) {
    const float d = from_bits(u32_at(b));
    for (int i = 0; i < 256; i++) out[i] = d * (float)(int8_t)b[4 + i];
}

static void decode_iq4_xs(float *out, const uint8_t *b) {
    const float d = mr_block_half(b);
    const uint32_t high = u16_at(b + 2);
    for (int i = 0; i < 256; i++) {
        const int sub = i / 32;
        const int low = b[4 + sub / 2] >> (sub % 2 * 4) & 15;
        const int scale = (low | (int)(high >> 2 * sub & 3) << 4) - 32;
        const int code = b[8 + sub * 16 + i % 16] >> (i / 16 % 2 * 4) & 15;
        out[i] = d * (float)scale * (float)nonlinear_codes[code];
    }
}

/* --- all of them ------------------------------------------------------------------------------ */

static const mr_block_format formats[] = {
    {MR_BLOCK_F32, "F32", 1, 4, decode_f32},
    {MR_BLOCK_F16, "F16", 1, 2, decode_f16},
    {MR_BLOCK_Q4_0, "Q4_0", 32, 18, decode_q4_0},
    {3, "Q4_1", 32, 20, decode_q4_1},
    {6, "Q5_0", 32, 22, decode_q5_0},
    {7, "Q5_1", 32, 24, decode_q5_1},
    {MR_BLOCK_Q8_0, "Q8_0", 32, 34, decode_q8_0},
    {9, "Q8_1", 32, 36, NULL},
    {10, "Q2_K", 256, 84, decode_q2_k},
    {11, "Q3_K", 256, 110, decode_q3_k},
    {12, "Q4_K", 256, 144, decode_q4_k},
    {13, "Q5_K", 256, 176, decode_q5_k},
    {14, "Q6_K", 256, 210, decode_q6_k},
    {15, "Q8_K", 256, MR_BLOCK_BYTES_MAX, decode_q8_k},
    {16, "IQ2_XXS", 256, 66, NULL},
    {17, "IQ2_XS", 256, 74, NULL},
    {18, "IQ3_XXS", 256, 98, NULL},
    {19, "IQ1_S", 256, 50, NULL},
    {20, "IQ4_NL", 32, 18, decode_iq4_nl},
    {21, "IQ3_S", 256, 110, NULL},
    {22, "IQ2_S", 256, 82, NULL},
    {23, "IQ4_XS", 256, 136, decode_iq4_xs},
    {24, "I8", 1, 1, NULL},
    {25, "I16", 1, 2, NULL},
    {26, "I32", 1, 4, NULL},
    {27, "I64", 1, 8, NULL},
    {28, "F64", 1, 8, NULL},
    {29, "IQ1_M", 256, 56, NULL},
    {MR_BLOCK_BF16, "BF16", 1, 2, decode_bf16},
    {34, "TQ1_0", 256, 54, NULL},
    {35, "TQ2_0", 256, 66, NULL},
    {39, "MXFP4", 32, 17, decode_mxfp4},
    {40, "NVFP4", 64, 36, NULL},
    {41, "Q1_0", 128, 18, NULL},
};

const mr_block_format *mr_block_find(uint32_t type) {
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (formats[i].type == type) return &formats[i];
    return NULL;
}

void mr_block_decode(float *out, const mr_block_format *format, const uint8_t *blocks,
                     uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        format->decode(out + i * format->elements, blocks + i * format->bytes);
}
