/* pool_neon.c - pooling and gate dots for AArch64's Advanced SIMD; see pool_avx512.c for the ideas.
 * Conversions to integers to nearest even are instructions of their own; for int64 by way of
 * double, which holds every fp32 number. */
#include "common/ops/cpu/backends.h"

#if defined(__aarch64__)
#include "common/ops/cpu/pool_loop.h"

#include <arm_neon.h>

/* 8 floats. */
static inline float32x4x2_t load8(const uint8_t *at, mr_storage_type type) {
    float32x4x2_t x;
    if (type == MR_STORE_F32) {
        x.val[0] = vreinterpretq_f32_u8(vld1q_u8(at));
        x.val[1] = vreinterpretq_f32_u8(vld1q_u8(at + 16));
        return x;
    }
    const uint16x8_t half = vreinterpretq_u16_u8(vld1q_u8(at));
    x.val[0] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16));
    x.val[1] = vreinterpretq_f32_u32(vshll_high_n_u16(half, 16));
    return x;
}

static inline int64x2_t low_to_int64(float32x4_t p) {
    return vcvtnq_s64_f64(vcvt_f64_f32(vget_low_f32(p)));
}

static inline int64x2_t high_to_int64(float32x4_t p) {
    return vcvtnq_s64_f64(vcvt_high_f64_f32(p));
}

static inline uint64_t scalar_to_int64(float p) {
    return (uint64_t)vcvtnd_s64_f64((double)p);
}

/* acc[c] += sum over `rows` rows, for columns [from, to) that one core weighs. */
static inline __attribute__((always_inline)) void quad_add32(int32_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t skip,
                                                             uint32_t from, uint32_t to,
                                                             mr_storage_type type) {
    (void)skip; /* only rows of blocks have one */
    const mr_element element = type == MR_STORE_F32 ? MR_F32 : MR_BF16;
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    float w[4];
    for (int i = 0; i < rows; i++) w[i] = q->weight[i][core_at];
    uint32_t c = from;
    for (; c + 8 <= to; c += 8) {
        int32x4_t sum0 = vld1q_s32(acc + c), sum1 = vld1q_s32(acc + c + 4);
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            const float32x4x2_t x = load8(q->row[i] + c * size, type);
            sum0 = vaddq_s32(sum0, vcvtnq_s32_f32(vmulq_n_f32(x.val[0], w[i])));
            sum1 = vaddq_s32(sum1, vcvtnq_s32_f32(vmulq_n_f32(x.val[1], w[i])));
        }
        vst1q_s32(acc + c, sum0);
        vst1q_s32(acc + c + 4, sum1);
    }
    for (; c < to; c++)
        for (int i = 0; i < rows; i++) {
            const float product = w[i] * mr_element_at(q->row[i], element, c);
            acc[c] = (int32_t)((uint32_t)acc[c] + (uint32_t)vcvtns_s32_f32(product));
        }
}

static inline __attribute__((always_inline)) void quad_add64(int64_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t skip,
                                                             uint32_t from, uint32_t to,
                                                             mr_storage_type type) {
    (void)skip; /* only rows of blocks have one */
    const mr_element element = type == MR_STORE_F32 ? MR_F32 : MR_BF16;
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    float w[4];
    for (int i = 0; i < rows; i++) w[i] = q->weight[i][core_at];
    uint32_t c = from;
    for (; c + 8 <= to; c += 8) {
        int64x2_t sum[4];
        for (int v = 0; v < 4; v++) sum[v] = vld1q_s64(acc + c + 2 * v);
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            const float32x4x2_t x = load8(q->row[i] + c * size, type);
            const float32x4_t a = vmulq_n_f32(x.val[0], w[i]), b = vmulq_n_f32(x.val[1], w[i]);
            sum[0] = vaddq_s64(sum[0], low_to_int64(a));
            sum[1] = vaddq_s64(sum[1], high_to_int64(a));
            sum[2] = vaddq_s64(sum[2], low_to_int64(b));
            sum[3] = vaddq_s64(sum[3], high_to_int64(b));
        }
        for (int v = 0; v < 4; v++) vst1q_s64(acc + c + 2 * v, sum[v]);
    }
    for (; c < to; c++)
        for (int i = 0; i < rows; i++) {
            const float product = w[i] * mr_element_at(q->row[i], element, c);
            acc[c] = (int64_t)((uint64_t)acc[c] + scalar_to_int64(product));
        }
}

/* --- rows with scales, and f16: decoded a piece at a time ---------------------------------------
 */

static inline void put8(float *out, int16x8_t codes, float scale) {
    vst1q_f32(out, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes))), scale));
    vst1q_f32(out + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(codes)), scale));
}

static inline void decode_i8(float *out, const uint8_t *codes, float scale, uint32_t count) {
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8)
        put8(out + i, vmovl_s8(vreinterpret_s8_u8(vld1_u8(codes + i))), scale);
    for (; i < count; i++) out[i] = (float)(int8_t)codes[i] * scale;
}

/* E4M3 as f16 is 2^8 too small: exact, and so is the way back. */
static inline void decode_f8(float *out, const uint8_t *codes, float scale, uint32_t count) {
    const uint16x8_t sign = vdupq_n_u16(0x8000), size = vdupq_n_u16(0x3f80);
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint16x8_t wide = vmovl_u8(vld1_u8(codes + i));
        const uint16x8_t half =
            vorrq_u16(vandq_u16(vshlq_n_u16(wide, 8), sign), vandq_u16(vshlq_n_u16(wide, 7), size));
        const float16x8_t x = vreinterpretq_f16_u16(half);
        vst1q_f32(out + i, vmulq_n_f32(vmulq_n_f32(vcvt_f32_f16(vget_low_f16(x)), 256), scale));
        vst1q_f32(out + i + 4, vmulq_n_f32(vmulq_n_f32(vcvt_high_f32_f16(x), 256), scale));
    }
    for (; i < count; i++) out[i] = mr_f8_to_f32(codes[i]) * scale;
}

static inline void decode_f16(float *out, const uint8_t *at, uint32_t count) {
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const float16x8_t x = vreinterpretq_f16_u8(vld1q_u8(at + 2 * i));
        vst1q_f32(out + i, vcvt_f32_f16(vget_low_f16(x)));
        vst1q_f32(out + i + 4, vcvt_high_f32_f16(x));
    }
    for (; i < count; i++) out[i] = mr_element_at(at, MR_F16, i);
}

/* A whole block of 32. */
static inline void decode_i4(float *out, const uint8_t *codes, float scale) {
    const uint8x16_t pairs = vld1q_u8(codes);
    const int8x16_t eight = vdupq_n_s8(8);
    const int8x16_t half[2] = {
        vsubq_s8(vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15))), eight),
        vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4)), eight)};
    for (int h = 0; h < 2; h++) {
        put8(out + 16 * h, vmovl_s8(vget_low_s8(half[h])), scale);
        put8(out + 16 * h + 8, vmovl_high_s8(half[h]), scale);
    }
}

static inline float from_f16(uint16_t half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}

/* --- gate dots ----------------------------------------------------------------------------------
 */

/* Columns of f32 or bf16. */
static inline __attribute__((always_inline)) uint64_t
dot_plain(const float *x, const uint8_t *row, uint32_t columns, mr_storage_type type) {
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    int64x2_t sum0 = vdupq_n_s64(0), sum1 = sum0;
    uint32_t c = 0;
    for (; c + 8 <= columns; c += 8) {
        const float32x4x2_t v = load8(row + c * size, type);
        const float32x4_t a = vmulq_f32(vld1q_f32(x + c), v.val[0]);
        const float32x4_t b = vmulq_f32(vld1q_f32(x + c + 4), v.val[1]);
        sum0 = vaddq_s64(vaddq_s64(sum0, low_to_int64(a)), low_to_int64(b));
        sum1 = vaddq_s64(vaddq_s64(sum1, high_to_int64(a)), high_to_int64(b));
    }
    uint64_t total = (uint64_t)vaddvq_s64(vaddq_s64(sum0, sum1));
    for (; c < columns; c++) {
        const float product = x[c] * mr_element_at(row, type == MR_STORE_F32 ? MR_F32 : MR_BF16, c);
        total += scalar_to_int64(product);
    }
    return total;
}

#include "common/ops/cpu/pool_pieces.h"

MR_POOL_TYPES(mr_neon_pool32, int32_t, pool_any32)
MR_POOL_TYPES(mr_neon_pool64, int64_t, pool_any64)
MR_GATE_TYPES(mr_neon_gate_dot, gate_any)
#endif
