/* pool_avx2.c - pooling and gate dots for AVX2; see pool_avx512.c for the ideas. AVX2 has no
 * conversion from fp32 to int64: above 2^31 a float is already whole, so its mantissa is shifted
 * into place.
 */
#include "common/ops/cpu/backends.h"

#if defined(__AVX2__)
#include "common/ops/cpu/pool_loop.h"

#include <immintrin.h>
#include <math.h>

static inline __m256 load8(const uint8_t *at, mr_storage_type type) {
    if (type == MR_STORE_F32) return _mm256_loadu_ps((const float *)(const void *)at);
    const __m128i half = _mm_loadu_si128((const __m128i *)(const void *)at);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* Four floats of a 128-bit half to int64, to nearest even; |p| < 2^63. */
static inline __m256i to_int64(__m128 p) {
    const __m256i small = _mm256_cvtepi32_epi64(_mm_cvtps_epi32(p));
    const __m256i bits = _mm256_cvtepi32_epi64(_mm_castps_si128(p)); /* sign-extended */
    const __m256i exponent =
        _mm256_and_si256(_mm256_srli_epi64(bits, 23), _mm256_set1_epi64x(0xff));
    const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x(0x7fffff)),
                                             _mm256_set1_epi64x(0x800000));
    const __m256i shifted =
        _mm256_sllv_epi64(mantissa, _mm256_sub_epi64(exponent, _mm256_set1_epi64x(150)));
    const __m256i sign = _mm256_cmpgt_epi64(_mm256_setzero_si256(), bits);
    const __m256i large = _mm256_sub_epi64(_mm256_xor_si256(shifted, sign), sign);
    const __m256i is_large = _mm256_cmpgt_epi64(exponent, _mm256_set1_epi64x(156)); /* >= 2^30 */
    return _mm256_blendv_epi8(small, large, is_large);
}

/* 16 bf16 as two vectors of floats: the even elements and the odd ones. */
static inline void split_bf16(const uint8_t *at, __m256 *even, __m256 *odd) {
    const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)at);
    *even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    *odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}

static inline __m256i product32(__m256 w, __m256 v) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(w, v));
}

static inline void add_to(int32_t *acc, __m256i sum) {
    __m256i *at = (__m256i *)(void *)acc;
    _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), sum));
}

/* acc[c] += sum over `rows` rows, for columns [from, to) that one core weighs. */
static inline __attribute__((always_inline)) void quad_add32(int32_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t skip,
                                                             uint32_t from, uint32_t to,
                                                             mr_storage_type type) {
    (void)skip; /* only rows of blocks have one */
    const mr_element element = type == MR_STORE_F32 ? MR_F32 : MR_BF16;
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    __m256 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm256_set1_ps(q->weight[i][core_at]);
    uint32_t c = from;
    for (; type == MR_STORE_BF16 && c + 16 <= to; c += 16) {
        __m256i even = _mm256_setzero_si256(), odd = even;
        for (int i = 0; i < rows; i++) {
            __m256 a, b;
            ask(q->next[i] + c * size);
            split_bf16(q->row[i] + c * size, &a, &b);
            even = _mm256_add_epi32(even, product32(w[i], a));
            odd = _mm256_add_epi32(odd, product32(w[i], b));
        }
        const __m256i low = _mm256_unpacklo_epi32(even, odd);  /* 0..3, 8..11 */
        const __m256i high = _mm256_unpackhi_epi32(even, odd); /* 4..7, 12..15 */
        add_to(acc + c, _mm256_permute2x128_si256(low, high, 0x20));
        add_to(acc + c + 8, _mm256_permute2x128_si256(low, high, 0x31));
    }
    for (; c + 8 <= to; c += 8) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            sum = _mm256_add_epi32(sum, product32(w[i], load8(q->row[i] + c * size, type)));
        }
        add_to(acc + c, sum);
    }
    for (; c < to; c++)
        for (int i = 0; i < rows; i++) {
            const float product = q->weight[i][core_at] * mr_element_at(q->row[i], element, c);
            acc[c] = (int32_t)((uint32_t)acc[c] + (uint32_t)_mm_cvtss_si32(_mm_set_ss(product)));
        }
}

static inline __attribute__((always_inline)) void quad_add64(int64_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t skip,
                                                             uint32_t from, uint32_t to,
                                                             mr_storage_type type) {
    (void)skip; /* only rows of blocks have one */
    const mr_element element = type == MR_STORE_F32 ? MR_F32 : MR_BF16;
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    uint32_t c = from;
    for (; c + 8 <= to; c += 8) {
        __m256i *at = (__m256i *)(void *)(acc + c);
        __m256i sum0 = _mm256_loadu_si256(at), sum1 = _mm256_loadu_si256(at + 1);
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            const __m256 w = _mm256_set1_ps(q->weight[i][core_at]);
            const __m256 p = _mm256_mul_ps(w, load8(q->row[i] + c * size, type));
            sum0 = _mm256_add_epi64(sum0, to_int64(_mm256_castps256_ps128(p)));
            sum1 = _mm256_add_epi64(sum1, to_int64(_mm256_extractf128_ps(p, 1)));
        }
        _mm256_storeu_si256(at, sum0);
        _mm256_storeu_si256(at + 1, sum1);
    }
    for (; c < to; c++)
        for (int i = 0; i < rows; i++) {
            const float product = q->weight[i][core_at] * mr_element_at(q->row[i], element, c);
            acc[c] = (int64_t)((uint64_t)acc[c] + (uint64_t)llrintf(product));
        }
}

/* --- rows with scales, and f16: decoded a piece at a time, then added like f32 ------------------
 */

static inline void decode_i8(float *out, const uint8_t *codes, float scale, uint32_t count) {
    const __m256 s = _mm256_set1_ps(scale);
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(codes + i));
        _mm256_storeu_ps(out + i,
                         _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), s));
    }
    for (; i < count; i++) out[i] = (float)(int8_t)codes[i] * scale;
}

/* E4M3 as f16 is 2^8 too small: exact, and so is the way back. */
static inline void decode_f8(float *out, const uint8_t *codes, float scale, uint32_t count) {
    const __m256 s = _mm256_set1_ps(scale);
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i wide =
            _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)(codes + i)));
        const __m128i half =
            _mm_or_si128(_mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x80)), 8),
                         _mm_slli_epi16(_mm_and_si128(wide, _mm_set1_epi16(0x7f)), 7));
        const __m256 code = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(code, s));
    }
    for (; i < count; i++) out[i] = mr_f8_to_f32(codes[i]) * scale;
}

static inline void decode_f16(float *out, const uint8_t *at, uint32_t count) {
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(
            out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(at + 2 * i))));
    for (; i < count; i++) out[i] = mr_element_at(at, MR_F16, i);
}

/* A whole block of 32. */
static inline void decode_i4(float *out, const uint8_t *codes, float scale) {
    const __m256 s = _mm256_set1_ps(scale);
    const __m128i pairs = _mm_loadu_si128((const __m128i *)(const void *)codes);
    const __m128i eight = _mm_set1_epi8(8), low4 = _mm_set1_epi8(15);
    const __m128i half[2] = {_mm_sub_epi8(_mm_and_si128(pairs, low4), eight),
                             _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(pairs, 4), low4), eight)};
    for (int h = 0; h < 2; h++) {
        const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half[h]));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(half[h], 8)));
        _mm256_storeu_ps(out + 16 * h, _mm256_mul_ps(a, s));
        _mm256_storeu_ps(out + 16 * h + 8, _mm256_mul_ps(b, s));
    }
}

static inline float from_f16(uint16_t half) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16((int16_t)half)));
}

/* --- gate dots ----------------------------------------------------------------------------------
 */

/* Columns of f32 or bf16. */
static inline __attribute__((always_inline)) uint64_t
dot_plain(const float *x, const uint8_t *row, uint32_t columns, mr_storage_type type) {
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    __m256i sum = _mm256_setzero_si256();
    uint32_t c = 0;
    for (; c + 8 <= columns; c += 8) {
        const __m256 p = _mm256_mul_ps(_mm256_loadu_ps(x + c), load8(row + c * size, type));
        sum = _mm256_add_epi64(sum, to_int64(_mm256_castps256_ps128(p)));
        sum = _mm256_add_epi64(sum, to_int64(_mm256_extractf128_ps(p, 1)));
    }
    uint64_t lanes[4], total;
    _mm256_storeu_si256((__m256i *)(void *)lanes, sum);
    total = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    for (; c < columns; c++) {
        const float product = x[c] * mr_element_at(row, type == MR_STORE_F32 ? MR_F32 : MR_BF16, c);
        total += (uint64_t)llrintf(product);
    }
    return total;
}

#include "common/ops/cpu/pool_pieces.h"

MR_POOL_TYPES(mr_avx2_pool32, int32_t, pool_any32)
MR_POOL_TYPES(mr_avx2_pool64, int64_t, pool_any64)
MR_GATE_TYPES(mr_avx2_gate_dot, gate_any)
#endif
