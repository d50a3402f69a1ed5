/* gemm_vneon.h - the vectors of gemm_loop.h for AArch64's Advanced SIMD (NEON), 4 lanes; with SDOT
 * where the file is built for it.
 *
 * A tile is 5 rows x 16 columns of y: 20 sums, the weights of two inputs and one number of x are 29
 * of the 32 registers. For codes it is 3 rows x 16 columns. Sized by counting, not by measuring. */
#ifndef MR_OPS_CPU_GEMM_VNEON_H
#define MR_OPS_CPU_GEMM_VNEON_H
#include "common/ops/ops.h"

#include <arm_neon.h>

typedef float32x4_t vf;
typedef int32x4_t vi;
#define LANES 4
enum {
    TILE_VECTORS = 4,
    SUMS = 20,
    CODE_SUMS = 12,
    FLOAT_ROWS = 5,
    CODE_ROWS = 3,
    FLOAT_WIDE = 8,
    CODE_WIDE = 4,
    CHUNK = 256,
    CODE_CHUNK = 512,
    GROUP_PANELS = 8,
    AHEAD = 4096,
    SLAB_ROWS = 96,
    SLAB_FLOATS = 1 << 16,
    X_BYTES_MOST = 1 << 19,
    SLAB_COLUMNS = CHUNK + 16
};

static inline vf v_set(float x) {
    return vdupq_n_f32(x);
}
static inline vf v_load(const float *at) {
    return vld1q_f32(at);
}
static inline vf v_load_first(const float *at, uint32_t count) {
    if (count >= LANES) return vld1q_f32(at);
    float some[LANES] = {0};
    for (uint32_t i = 0; i < count; i++) some[i] = at[i];
    return vld1q_f32(some);
}
static inline void v_store_first(float *at, uint32_t count, vf x) {
    float some[LANES];
    if (count >= LANES) {
        vst1q_f32(at, x);
        return;
    }
    vst1q_f32(some, x);
    for (uint32_t i = 0; i < count; i++) at[i] = some[i];
}
static inline vf v_fma(vf a, vf b, vf c) {
    return vfmaq_f32(c, a, b);
}
static inline vf v_mul(vf a, vf b) {
    return vmulq_f32(a, b);
}
static inline vf v_widen_f16(const uint16_t *at) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
}
/* The bits put into a float with the exponent too small by 120; 0x7f is no number. */
static inline vf v_widen_f8(const uint8_t *at) {
    uint32_t four;
    memcpy(&four, at, sizeof(four));
    const uint32x4_t code = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
    const uint32x4_t size = vandq_u32(vshlq_n_u32(code, 20), vdupq_n_u32(0x07f00000));
    const uint32x4_t sign = vandq_u32(vshlq_n_u32(code, 24), vdupq_n_u32(0x80000000u));
    const vf x = vmulq_f32(vreinterpretq_f32_u32(vorrq_u32(size, sign)), vdupq_n_f32(0x1p120f));
    const uint32x4_t nan = vceqq_u32(size, vdupq_n_u32(0x07f00000));
    return vbslq_f32(nan, vdupq_n_f32(__builtin_nanf("")), x);
}
static inline void v_split_bf16(vf *even, vf *odd, const uint8_t *at) {
    const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(at));
    *even = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    *odd = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
}
static inline void v_ask(const uint8_t *at) {
    __builtin_prefetch(at, 0, 3);
}
static inline vi v_set_i(int32_t x) {
    return vdupq_n_s32(x);
}
static inline vi v_load_i(const uint8_t *at) {
    return vreinterpretq_s32_u8(vld1q_u8(at));
}
/* Both factors of SDOT and SMULL are signed: the offset of 128 goes before, not after. */
static inline vi v_load_i8(const uint8_t *at) {
    return vreinterpretq_s32_u8(veorq_u8(vld1q_u8(at), vdupq_n_u8(0x80)));
}
static inline vi v_offset(int32_t sum, mr_element element) {
    return vdupq_n_s32(element == MR_I8 ? 0 : sum * 8);
}
static inline vi v_low_nibbles(vi x) {
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(15)));
}
static inline vi v_high_nibbles(vi x) {
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4));
}
static inline vi v_sub_i(vi a, vi b) {
    return vsubq_s32(a, b);
}
static inline vf v_to_float(vi x) {
    return vcvtq_f32_s32(x);
}
/* sum + the four products of bytes of w and x. Without SDOT: products of 16 bits, added in pairs;
 * codes of x are at least -127, so that two products are at most 2 * 127 * 128 < 2^15. */
static inline vi v_dot4(vi sum, vi w, vi x) {
    const int8x16_t a = vreinterpretq_s8_s32(w), b = vreinterpretq_s8_s32(x);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, a, b);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(a, b)));
#endif
}

/* mr_quantize_block of 32 numbers; false: one of them is not finite, or all are next to nothing. */
static inline bool v_quantize(int8_t *codes, float *d, int32_t *sum, const float *x) {
    vf a[8], largest = vdupq_n_f32(0);
    uint32x4_t numbers = vdupq_n_u32(~0u);
    for (int i = 0; i < 8; i++) {
        a[i] = vld1q_f32(x + 4 * i);
        numbers = vandq_u32(numbers, vceqq_f32(a[i], a[i]));
        largest = vmaxq_f32(largest, vabsq_f32(a[i]));
    }
    const float most = vmaxvq_f32(largest);
    if (vminvq_u32(numbers) == 0 || !(most > 0x1p-100f && most < 0x1p126f)) return false;
    *d = most / 127.0f;
    const vf inverse = vdupq_n_f32(1.0f / *d), limit = vdupq_n_f32(127);
    vi code[8], all = vdupq_n_s32(0);
    for (int i = 0; i < 8; i++) {
        const vf low = vminq_f32(vmulq_f32(a[i], inverse), limit);
        code[i] = vcvtnq_s32_f32(vmaxq_f32(low, vnegq_f32(limit)));
        all = vaddq_s32(all, code[i]);
    }
    for (int i = 0; i < 4; i++) {
        const int16x8_t half = vcombine_s16(vmovn_s32(code[2 * i]), vmovn_s32(code[2 * i + 1]));
        vst1_s8(codes + 8 * i, vmovn_s16(half));
    }
    *sum = vaddvq_s32(all);
    return true;
}

#define MR_CODE_SIZES(X, TILE, ELEMENT)                                                            \
    X(1, TILE, ELEMENT)                                                                            \
    X(2, TILE, ELEMENT)                                                                            \
    X(3, TILE, ELEMENT)
#define MR_FLOAT_SIZES(X, TILE, ELEMENT)                                                           \
    MR_CODE_SIZES(X, TILE, ELEMENT)                                                                \
    X(4, TILE, ELEMENT)                                                                            \
    X(5, TILE, ELEMENT)

#include "common/ops/cpu/gemm_loop.h"

MR_CODE_TILES(MR_I8)
MR_CODE_TILES(MR_I4)

static inline void gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m,
                              const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    walk k = make_walk(y, y_stride, m, w, panel_first, panel_count);
    k.t.x = x;
    k.t.x_bytes = mr_quantized_bytes(w->k);
    k.rows_most = CODE_ROWS;
    k.chunk = m == 1 ? k.end : CODE_CHUNK;
    if (w->element == MR_I8)
        run_walk(&k, CODE_WIDE, wide_MR_I8, tile_MR_I8);
    else
        run_walk(&k, CODE_WIDE, wide_MR_I4, tile_MR_I4);
}
#endif
