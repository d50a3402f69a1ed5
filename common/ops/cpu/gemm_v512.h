/* gemm_v512.h - the vectors of gemm_loop.h for AVX-512; with VNNI where the file is built for it.
 */
#ifndef MR_OPS_CPU_GEMM_V512_H
#define MR_OPS_CPU_GEMM_V512_H
#include "common/ops/ops.h"

#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vi;
#define LANES 16
enum {
    TILE_VECTORS = 2,
    SUMS = 24,
    CODE_SUMS = 12,
    FLOAT_ROWS = 12,
    CODE_ROWS = 6,
    FLOAT_WIDE = 8,
    CODE_WIDE = 4,
    CHUNK = 256,
    CODE_CHUNK = 512,
    GROUP_PANELS = 8,
    AHEAD = 4096,
    SLAB_ROWS = 96,
    SLAB_FLOATS = 1 << 16,
    X_BYTES_MOST = 1 << 19,
    SLAB_COLUMNS = CHUNK + 16 /* an odd number of lines */
};

static inline vf v_set(float x) {
    return _mm512_set1_ps(x);
}
static inline vf v_load(const float *at) {
    return _mm512_loadu_ps(at);
}
static inline __mmask16 first_lanes(uint32_t count) {
    const uint32_t mask = count >= 16 ? 0xffffu : (1u << count) - 1u;
    return (__mmask16)mask;
}
static inline vf v_load_first(const float *at, uint32_t count) {
    return count >= 16 ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(first_lanes(count), at);
}
static inline void v_store_first(float *at, uint32_t count, vf x) {
    if (count >= 16)
        _mm512_storeu_ps(at, x);
    else
        _mm512_mask_storeu_ps(at, first_lanes(count), x);
}
static inline vf v_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf v_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
static inline vf v_widen_f16(const uint16_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}
/* The bits put into a float with the exponent too small by 120; 0x7f is no number. */
static inline vf v_widen_f8(const uint8_t *at) {
    const vi code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)at));
    const vi size = _mm512_and_si512(_mm512_slli_epi32(code, 20), _mm512_set1_epi32(0x07f00000));
    const vi sign = _mm512_and_si512(_mm512_slli_epi32(code, 24), _mm512_set1_epi32(INT32_MIN));
    const vf x =
        _mm512_mul_ps(_mm512_castsi512_ps(_mm512_or_si512(size, sign)), _mm512_set1_ps(0x1p120f));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(size, _mm512_set1_epi32(0x07f00000));
    return _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(__builtin_nanf("")));
}
static inline void v_split_bf16(vf *even, vf *odd, const uint8_t *at) {
    const vi pairs = _mm512_loadu_si512(at);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}
static inline void v_ask(const uint8_t *at) {
    _mm_prefetch((const char *)at, _MM_HINT_T0);
}
static inline vi v_set_i(int32_t x) {
    return _mm512_set1_epi32(x);
}
static inline vi v_load_i(const uint8_t *at) {
    return _mm512_loadu_si512(at);
}
static inline vi v_load_i8(const uint8_t *at) {
    return v_load_i(at);
}
static inline vi v_low_nibbles(vi x) {
    return _mm512_and_si512(x, _mm512_set1_epi8(15));
}
static inline vi v_high_nibbles(vi x) {
    return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
}
static inline vi v_sub_i(vi a, vi b) {
    return _mm512_sub_epi32(a, b);
}
static inline vi v_offset(int32_t sum, mr_element element) {
    return _mm512_sllv_epi32(v_set_i(sum), _mm512_set1_epi32(element == MR_I8 ? 7 : 3));
}
static inline vf v_to_float(vi x) {
    return _mm512_cvtepi32_ps(x);
}
/* sum + the four products of unsigned bytes of w and signed ones of x. */
static inline vi v_dot4(vi sum, vi w, vi x) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(sum, w, x);
#else
    const vi w_even = _mm512_and_si512(w, _mm512_set1_epi16(255));
    const vi w_odd = _mm512_srli_epi16(w, 8);
    const vi x_even = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8),
             x_odd = _mm512_srai_epi16(x, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(w_even, x_even));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w_odd, x_odd));
#endif
}

/* mr_quantize_block of 32 numbers; false: one of them is not finite, or all are next to nothing. */
static inline bool v_quantize(int8_t *codes, float *d, int32_t *sum, const float *x) {
    const vf a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const vf largest = _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
    const __mmask16 odd =
        _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
    const float most = _mm512_reduce_max_ps(largest);
    if (odd || !(most > 0x1p-100f && most < 0x1p126f)) return false;
    *d = most / 127.0f;
    const vf inverse = _mm512_set1_ps(1.0f / *d), limit = _mm512_set1_ps(127);
    const vf low = _mm512_sub_ps(_mm512_setzero_ps(), limit);
    const vf sa = _mm512_max_ps(_mm512_min_ps(_mm512_mul_ps(a, inverse), limit), low);
    const vf sb = _mm512_max_ps(_mm512_min_ps(_mm512_mul_ps(b, inverse), limit), low);
    const vi ca = _mm512_cvtps_epi32(sa), cb = _mm512_cvtps_epi32(sb);
    _mm_storeu_si128((__m128i *)(void *)codes, _mm512_cvtepi32_epi8(ca));
    _mm_storeu_si128((__m128i *)(void *)(codes + 16), _mm512_cvtepi32_epi8(cb));
    *sum = _mm512_reduce_add_epi32(_mm512_add_epi32(ca, cb));
    return true;
}

#define MR_CODE_SIZES(X, TILE, ELEMENT)                                                            \
    X(1, TILE, ELEMENT)                                                                            \
    X(2, TILE, ELEMENT)                                                                            \
    X(3, TILE, ELEMENT)                                                                            \
    X(4, TILE, ELEMENT)                                                                            \
    X(5, TILE, ELEMENT)                                                                            \
    X(6, TILE, ELEMENT)
#define MR_FLOAT_SIZES(X, TILE, ELEMENT)                                                           \
    MR_CODE_SIZES(X, TILE, ELEMENT)                                                                \
    X(7, TILE, ELEMENT)                                                                            \
    X(8, TILE, ELEMENT)                                                                            \
    X(9, TILE, ELEMENT)                                                                            \
    X(10, TILE, ELEMENT)                                                                           \
    X(11, TILE, ELEMENT)                                                                           \
    X(12, TILE, ELEMENT)

#include "common/ops/cpu/gemm_loop.h"
#endif
