/* gemm_avx2.c - products with packed weights for AVX2, FMA and F16C: gemm_loop.h at 8 lanes. A tile
 * is 6 rows x 16 columns of y in 12 registers. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX2__)
#include <immintrin.h>

typedef __m256 vf;
typedef __m256i vi;
#define LANES 8
enum {
    TILE_VECTORS = 2,
    SUMS = 12,
    CODE_SUMS = 6,
    FLOAT_ROWS = 6,
    CODE_ROWS = 2,
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
    return _mm256_set1_ps(x);
}
static inline vf v_load(const float *at) {
    return _mm256_loadu_ps(at);
}
static inline vi first_lanes(uint32_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count),
                              _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
static inline vf v_load_first(const float *at, uint32_t count) {
    return count >= 8 ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, first_lanes(count));
}
static inline void v_store_first(float *at, uint32_t count, vf x) {
    if (count >= 8)
        _mm256_storeu_ps(at, x);
    else
        _mm256_maskstore_ps(at, first_lanes(count), x);
}
static inline vf v_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf v_mul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}
static inline vf v_widen_f16(const uint16_t *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}
static inline vf v_widen_f8(const uint8_t *at) {
    const vi code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)at));
    const vi size = _mm256_and_si256(_mm256_slli_epi32(code, 20), _mm256_set1_epi32(0x07f00000));
    const vi sign = _mm256_and_si256(_mm256_slli_epi32(code, 24), _mm256_set1_epi32(INT32_MIN));
    const vf x =
        _mm256_mul_ps(_mm256_castsi256_ps(_mm256_or_si256(size, sign)), _mm256_set1_ps(0x1p120f));
    const vi nan = _mm256_cmpeq_epi32(size, _mm256_set1_epi32(0x07f00000));
    return _mm256_blendv_ps(x, _mm256_set1_ps(__builtin_nanf("")), _mm256_castsi256_ps(nan));
}
static inline void v_split_bf16(vf *even, vf *odd, const uint8_t *at) {
    const vi pairs = _mm256_loadu_si256((const __m256i *)(const void *)at);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}
static inline void v_ask(const uint8_t *at) {
    _mm_prefetch((const char *)at, _MM_HINT_T0);
}
static inline vi v_set_i(int32_t x) {
    return _mm256_set1_epi32(x);
}
static inline vi v_load_i(const uint8_t *at) {
    return _mm256_loadu_si256((const __m256i *)(const void *)at);
}
static inline vi v_load_i8(const uint8_t *at) {
    return v_load_i(at);
}
static inline vi v_low_nibbles(vi x) {
    return _mm256_and_si256(x, _mm256_set1_epi8(15));
}
static inline vi v_high_nibbles(vi x) {
    return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
}
static inline vi v_sub_i(vi a, vi b) {
    return _mm256_sub_epi32(a, b);
}
static inline vi v_offset(int32_t sum, mr_element element) {
    return _mm256_sllv_epi32(v_set_i(sum), _mm256_set1_epi32(element == MR_I8 ? 7 : 3));
}
static inline vf v_to_float(vi x) {
    return _mm256_cvtepi32_ps(x);
}
/* sum + the four products of unsigned bytes of w and signed ones of x, as widened pairs. */
static inline vi v_dot4(vi sum, vi w, vi x) {
    const vi w_even = _mm256_and_si256(w, _mm256_set1_epi16(255));
    const vi w_odd = _mm256_srli_epi16(w, 8);
    const vi x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8),
             x_odd = _mm256_srai_epi16(x, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w_even, x_even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w_odd, x_odd));
}

/* mr_quantize_block of 32 numbers; false: one of them is not finite, or all are next to nothing. */
static inline bool v_quantize(int8_t *codes, float *d, int32_t *sum, const float *x) {
    const vf sign = _mm256_set1_ps(-0.0f);
    vf a[4], largest = _mm256_setzero_ps();
    int odd = 0;
    for (int i = 0; i < 4; i++) {
        a[i] = _mm256_loadu_ps(x + 8 * i);
        odd |= _mm256_movemask_ps(_mm256_cmp_ps(a[i], a[i], _CMP_UNORD_Q));
        largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, a[i]));
    }
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    const float most = _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    if (odd || !(most > 0x1p-100f && most < 0x1p126f)) return false;
    *d = most / 127.0f;
    const vf inverse = _mm256_set1_ps(1.0f / *d);
    vi code[4], all = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        const vf low = _mm256_min_ps(_mm256_mul_ps(a[i], inverse), _mm256_set1_ps(127));
        code[i] = _mm256_cvtps_epi32(_mm256_max_ps(low, _mm256_set1_ps(-127)));
        all = _mm256_add_epi32(all, code[i]);
    }
    const vi bytes = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                        _mm256_packs_epi32(code[2], code[3]));
    const vi order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    _mm256_storeu_si256((__m256i *)(void *)codes, _mm256_permutevar8x32_epi32(bytes, order));
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    *sum = _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
    return true;
}

#define MR_CODE_SIZES(X, TILE, ELEMENT)                                                            \
    X(1, TILE, ELEMENT)                                                                            \
    X(2, TILE, ELEMENT)
#define MR_FLOAT_SIZES(X, TILE, ELEMENT)                                                           \
    MR_CODE_SIZES(X, TILE, ELEMENT)                                                                \
    X(3, TILE, ELEMENT)                                                                            \
    X(4, TILE, ELEMENT)                                                                            \
    X(5, TILE, ELEMENT)                                                                            \
    X(6, TILE, ELEMENT)

#include "common/ops/cpu/gemm_loop.h"

MR_FLOAT_TILES(MR_F32)
MR_FLOAT_TILES(MR_BF16)
MR_FLOAT_TILES(MR_F16)
MR_FLOAT_TILES(MR_F8)

static void gemm_floats(float *y, size_t y_stride, const float *x, size_t x_stride, uint32_t m,
                        const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    static const tile_function tiles[] = {tile_MR_F32, tile_MR_BF16, tile_MR_F16, tile_MR_F8};
    static const tile_function wides[] = {wide_MR_F32, wide_MR_BF16, wide_MR_F16, wide_MR_F8};
    walk k = make_walk(y, y_stride, m, w, panel_first, panel_count);
    k.t.x = (const uint8_t *)x;
    k.t.x_bytes = x_stride * sizeof(float);
    k.rows_most = FLOAT_ROWS;
    k.copies = true;
    k.chunk = w->block == MR_TILE_BLOCK ? MR_TILE_BLOCK : m == 1 ? w->k : CHUNK;
    run_walk(&k, FLOAT_WIDE, wides[w->element], tiles[w->element]);
}

MR_CODE_TILES(MR_I8)
MR_CODE_TILES(MR_I4)

static void gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
                       uint32_t panel_first, uint32_t panel_count) {
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

size_t mr_avx2_prepared_bytes(const mr_packed *w) {
    return mr_ops_ref.prepared_bytes(w);
}

void mr_avx2_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w) {
    if (w->element == MR_I8 || w->element == MR_I4) quantize(out, x, x_stride, m, w->k);
}

void mr_avx2_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, const void *prepared,
                  uint32_t m, const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    if (w->element == MR_I8 || w->element == MR_I4)
        gemm_codes(y, y_stride, prepared, m, w, panel_first, panel_count);
    else
        gemm_floats(y, y_stride, x, x_stride, m, w, panel_first, panel_count);
}
#endif
