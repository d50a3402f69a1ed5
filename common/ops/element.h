/* element.h - how numbers are stored, and their conversions to float.
 *
 * bf16 is the upper half of a float; f16 is IEEE binary16; f8 is OCP E4M3 (no infinities, 0x7f and
 * 0xff are NaN, largest 448). All of them widen to f32 exactly; narrowing rounds to nearest even.
 * int8 and int4 are codes: a number is fl32(code * scale). */
#ifndef MR_OPS_ELEMENT_H
#define MR_OPS_ELEMENT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum {
    MR_F32 = 0,
    MR_BF16 = 1,
    MR_F16 = 2,
    MR_F8 = 3,
    MR_I8 = 4,
    MR_I4 = 5,
    MR_ELEMENT_COUNT
} mr_element;

/* Bits of one element. */
static inline uint32_t mr_element_bits(mr_element element) {
    static const uint8_t bits[MR_ELEMENT_COUNT] = {32, 16, 16, 8, 8, 4};
    return bits[element];
}

/* Of the types that are stored without scales: f32, bf16, f16. */
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

float mr_f16_to_f32(uint16_t value);
uint16_t mr_f32_to_f16(float value); /* beyond the largest: infinity */
float mr_f8_to_f32(uint8_t value);
uint8_t mr_f32_to_f8(float value); /* beyond the largest: +-448; NaN: 0x7f */

/* By memcpy: a mapped file need not be aligned to its elements. Types without scales only. */
static inline float mr_element_at(const void *data, mr_element element, uint64_t index) {
    const uint8_t *at = (const uint8_t *)data + index * mr_element_bytes(element);
    if (element == MR_F32) {
        float whole;
        memcpy(&whole, at, sizeof(whole));
        return whole;
    }
    uint16_t half;
    memcpy(&half, at, sizeof(half));
    return element == MR_BF16 ? mr_bf16_to_f32(half) : mr_f16_to_f32(half);
}

/* A row of numbers in memory or in a file: elements side by side where block is 0; else blocks of
 * `block` elements, each its scale followed by its codes, so that a row is one run of bytes. The
 * last block may be short (its codes end with the row). */
typedef struct {
    mr_element element;
    uint32_t block; /* 0, MR_QUANT_BLOCK, MR_TILE_BLOCK or MR_WHOLE_ROW */
} mr_storage;

enum {
    MR_QUANT_BLOCK = 32, /* scale: f16; int4 puts element j and j + 16 into byte j, low bits first,
                            as code + 8 */
    MR_TILE_BLOCK = 128, /* scale: f32, the same for 128 rows */
    MR_WHOLE_ROW = 1 << 30 /* scale: f32 */
};

/* The formats there are, by the names people type: */
typedef enum {
    MR_STORE_F32,
    MR_STORE_BF16,
    MR_STORE_F16,
    MR_STORE_INT8,       /* int8, a scale a row */
    MR_STORE_INT8_BLOCK, /* int8, a scale for 32 */
    MR_STORE_INT4,       /* int4, a scale for 32 */
    MR_STORE_FP8,        /* e4m3, a scale a row */
    MR_STORE_FP8_BLOCK,  /* e4m3, a scale for 128 x 128 */
    MR_STORE_COUNT
} mr_storage_type;
/* "f32", "bf16", "f16", "int8", "int8-block", "int4", "fp8", "fp8-block". */
const char *mr_storage_name(mr_storage_type type);
int mr_storage_parse(mr_storage_type *out, const char *name); /* 0, or -1 when unknown */
mr_storage mr_storage_of(mr_storage_type type);
mr_storage_type mr_storage_type_of(mr_storage format);

static inline bool mr_storage_same(mr_storage a, mr_storage b) {
    return a.element == b.element && a.block == b.block;
}
/* Bytes of a block's scale; 0 where there are none. */
static inline uint32_t mr_storage_scale_bytes(mr_storage format) {
    return format.block == 0 ? 0 : format.block == MR_QUANT_BLOCK ? 2 : 4;
}
/* Bytes of so many codes without their scale, and of a row of so many columns. int4 blocks are
 * always whole. */
uint64_t mr_code_bytes(mr_element element, uint64_t count);
uint64_t mr_storage_bytes(mr_storage format, uint64_t columns);
/* Elements [first, first + count) of a row of `columns`, as f32: fl32(code * scale). */
void mr_storage_decode(float *out, const void *row, mr_storage format, uint32_t columns,
                       uint32_t first, uint32_t count);
/* One row of finite numbers. Scales are max |x| / 127 (int8) or / 448 (f8), rounded to their type
 * (up where that would clip), for int4 the best of some that are tried (encode.c); codes are
 * rn(x / scale). Types without scales round. tile_scale: of a MR_TILE_BLOCK row, one for each
 * block, from all its 128 rows; else NULL. */
void mr_storage_encode(void *row, const float *x, mr_storage format, uint32_t columns,
                       const float *tile_scale);

#endif
