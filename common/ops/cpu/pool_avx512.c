/* pool_avx512.c - pooling and gate dots for AVX-512 (F, BW, DQ, VL).
 *
 * Rows are far apart in memory, so the work is to keep many cache lines on their way. Entries of
 * one slot are taken four at a time (the sum stays in registers, the accumulator is touched once
 * for four rows), and for every line that is added one line of a later row is asked for. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512F__)
#include "common/ops/cpu/pool_loop.h"

#include <immintrin.h>
#include <math.h>

/* The first `left` of 16 lanes. */
static inline __mmask16 lanes(uint32_t left) {
    const uint32_t mask = left >= 16 ? 0xffffu : (1u << left) - 1u;
    return (__mmask16)mask;
}

static inline __m512 load16(const uint8_t *at, mr_storage_type type) {
    if (type == MR_STORE_F32) return _mm512_loadu_ps(at);
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline __m512 load16_masked(const uint8_t *at, mr_storage_type type, __mmask16 mask) {
    if (type == MR_STORE_F32) return _mm512_maskz_loadu_ps(mask, at);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* --- rows with scales, and f16: 16 columns at a time, where they lie in the row ----------------
 */

/* Where column 16 * k of a row lies, and the scale of its block. */
static inline const uint8_t *codes_at(const uint8_t *row, mr_storage_type type, uint32_t k,
                                      const uint8_t **scale) {
    *scale = row;
    switch (type) {
    case MR_STORE_INT8_BLOCK:
        *scale = row + (size_t)(k / 2) * 34;
        return *scale + 2 + k % 2 * 16;
    case MR_STORE_INT4: /* low bits first, then the high bits of the same bytes */
        *scale = row + (size_t)(k / 2) * 18;
        return *scale + 2;
    case MR_STORE_FP8_BLOCK:
        *scale = row + (size_t)(k / 8) * 132;
        return *scale + 4 + k % 8 * 16;
    case MR_STORE_INT8:
    case MR_STORE_FP8:
        return row + 4 + (size_t)k * 16;
    default: /* f16 */
        return row + (size_t)k * 32;
    }
}

/* E4M3 as f16, 2^8 too small: sign and magnitude move apart by a bit. */
static inline __m512 from_e4m3(__m128i codes) {
    const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8);
    const __m256i half =
        _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16((int16_t)0xbfff));
    return _mm512_cvtph_ps(half);
}

/* fl32(code * scale) of such codes. 2^8 goes to the scale, which is exact where it can. */
static inline __m512 scale_e4m3(__m512 codes, const uint8_t *scale) {
    float whole;
    memcpy(&whole, scale, sizeof(whole));
    if (__builtin_expect(!(whole < 0x1p119f), 0))
        return _mm512_mul_ps(_mm512_mul_ps(codes, _mm512_set1_ps(256)), _mm512_set1_ps(whole));
    return _mm512_mul_ps(codes, _mm512_set1_ps(whole * 256));
}

static inline __m512 half_scale(const uint8_t *scale) {
    int16_t half;
    memcpy(&half, scale, sizeof(half));
    return _mm512_cvtph_ps(_mm256_set1_epi16(half));
}

/* What the 16 codes of int4 stand for in a block. */
static inline __m512 int4_values(const uint8_t *scale) {
    const __m512 codes = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    return _mm512_mul_ps(codes, half_scale(scale));
}

static inline __m128i load_bytes(const uint8_t *at) {
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

static inline __m512 from_i8(__m128i codes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
}

static inline __m512 row_scale(const uint8_t *scale) {
    float whole;
    memcpy(&whole, scale, sizeof(whole));
    return _mm512_set1_ps(whole);
}

/* Columns [32 * u, + 32) of a row, all there. */
static inline __attribute__((always_inline)) void decode32(__m512 out[2], const uint8_t *row,
                                                           mr_storage_type type, uint32_t u) {
    const uint8_t *scale, *at = codes_at(row, type, 2 * u, &scale);
    if (type == MR_STORE_F16) {
        out[0] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
        out[1] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(at + 32)));
    } else if (type == MR_STORE_INT4) {
        const __m512 values = int4_values(scale); /* picked by the low 4 bits */
        const __m512i pairs = _mm512_cvtepu8_epi32(load_bytes(at));
        out[0] = _mm512_permutexvar_ps(pairs, values);
        out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), values);
    } else if (type == MR_STORE_FP8 || type == MR_STORE_FP8_BLOCK) {
        out[0] = scale_e4m3(from_e4m3(load_bytes(at)), scale);
        out[1] = scale_e4m3(from_e4m3(load_bytes(at + 16)), scale);
    } else {
        const __m512 s = type == MR_STORE_INT8 ? row_scale(scale) : half_scale(scale);
        out[0] = _mm512_mul_ps(from_i8(load_bytes(at)), s);
        out[1] = _mm512_mul_ps(from_i8(load_bytes(at + 16)), s);
    }
}

/* Columns [16 * k, + 16) of a row; those outside of mask are not read. */
static inline __m512 decode16(const uint8_t *row, mr_storage_type type, uint32_t k,
                              __mmask16 mask) {
    const uint8_t *scale, *at = codes_at(row, type, k, &scale);
    if (type == MR_STORE_F16) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at));
    if (type == MR_STORE_INT4) {
        const __m512i pairs = _mm512_cvtepu8_epi32(load_bytes(at));
        return _mm512_permutexvar_ps(k % 2 ? _mm512_srli_epi32(pairs, 4) : pairs,
                                     int4_values(scale));
    }
    const __m128i bytes = _mm_maskz_loadu_epi8(mask, at);
    if (type == MR_STORE_FP8 || type == MR_STORE_FP8_BLOCK)
        return scale_e4m3(from_e4m3(bytes), scale);
    return _mm512_mul_ps(from_i8(bytes),
                         type == MR_STORE_INT8 ? row_scale(scale) : half_scale(scale));
}

static inline __m512i product32(__m512 w, __m512 v) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(w, v));
}

/* A walk over columns [from, to) of a slice in steps of 16 columns of the row. */
typedef struct {
    uint32_t k;
    ptrdiff_t column; /* of the slice, of lane 0: -15 at least */
    __mmask16 mask;   /* the lanes in [from, to) */
} step16;

static inline step16 step_at(uint32_t k, uint32_t skip, uint32_t from, uint32_t to) {
    const uint32_t first = k * 16, begin = skip + from, end = skip + to;
    uint32_t mask = lanes(end - first);
    if (first < begin) mask &= ~((1u << (begin - first)) - 1u);
    return (step16){k, (ptrdiff_t)first - (ptrdiff_t)skip, (__mmask16)mask};
}

/* One line of each row to come, whenever the walk enters another line. */
static inline void ask_on(const quad *q, int rows, size_t at, size_t *asked) {
    if (at < *asked) return;
    for (int i = 0; i < rows; i++) ask(q->next[i] + *asked);
    *asked += 64;
}

static inline size_t place_in(const uint8_t *row, mr_storage_type type, uint32_t k) {
    const uint8_t *scale;
    return (size_t)(codes_at(row, type, k, &scale) - row);
}

/* Some of 16 columns. */
static inline __attribute__((always_inline)) void
part_add32(int32_t *acc, const quad *q, int rows, const __m512 *w, step16 s, mr_storage_type type) {
    int32_t *out = acc + s.column;
    __m512i sum = _mm512_maskz_loadu_epi32(s.mask, out);
    for (int i = 0; i < rows; i++)
        sum = _mm512_add_epi32(sum, product32(w[i], decode16(q->row[i], type, s.k, s.mask)));
    _mm512_mask_storeu_epi32(out, s.mask, sum);
}

static inline __attribute__((always_inline)) void quad_decode32(int32_t *acc, const quad *q,
                                                                int rows, size_t core_at,
                                                                uint32_t skip, uint32_t from,
                                                                uint32_t to, mr_storage_type type) {
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(q->weight[i][core_at]);
    uint32_t k = (skip + from) / 16;
    size_t asked = k == 0 ? 0 : place_in(q->row[0], type, k) / 64 * 64;
    while (k * 16 < skip + to) {
        ask_on(q, rows, place_in(q->row[0], type, k), &asked);
        if (k % 2 || k * 16 < skip + from || (k + 2) * 16 > skip + to) {
            part_add32(acc, q, rows, w, step_at(k, skip, from, to), type);
            k++;
            continue;
        }
        int32_t *out = acc + ((ptrdiff_t)(k * 16) - (ptrdiff_t)skip);
        __m512i sum0 = _mm512_loadu_si512(out), sum1 = _mm512_loadu_si512(out + 16);
        for (int i = 0; i < rows; i++) {
            __m512 v[2];
            decode32(v, q->row[i], type, k / 2);
            sum0 = _mm512_add_epi32(sum0, product32(w[i], v[0]));
            sum1 = _mm512_add_epi32(sum1, product32(w[i], v[1]));
        }
        _mm512_storeu_si512(out, sum0);
        _mm512_storeu_si512(out + 16, sum1);
        k += 2;
    }
}

static inline void add64(__m512i sum[2], __m512 p) {
    sum[0] = _mm512_add_epi64(sum[0], _mm512_cvtps_epi64(_mm512_castps512_ps256(p)));
    sum[1] = _mm512_add_epi64(sum[1], _mm512_cvtps_epi64(_mm512_extractf32x8_ps(p, 1)));
}

static inline __attribute__((always_inline)) void
part_add64(int64_t *acc, const quad *q, int rows, const __m512 *w, step16 s, mr_storage_type type) {
    const __mmask8 low = (__mmask8)s.mask, high = (__mmask8)(s.mask >> 8);
    int64_t *out = acc + s.column;
    __m512i sum[2] = {_mm512_maskz_loadu_epi64(low, out), _mm512_maskz_loadu_epi64(high, out + 8)};
    for (int i = 0; i < rows; i++)
        add64(sum, _mm512_mul_ps(w[i], decode16(q->row[i], type, s.k, s.mask)));
    _mm512_mask_storeu_epi64(out, low, sum[0]);
    _mm512_mask_storeu_epi64(out + 8, high, sum[1]);
}

static inline __attribute__((always_inline)) void quad_decode64(int64_t *acc, const quad *q,
                                                                int rows, size_t core_at,
                                                                uint32_t skip, uint32_t from,
                                                                uint32_t to, mr_storage_type type) {
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(q->weight[i][core_at]);
    uint32_t k = (skip + from) / 16;
    size_t asked = k == 0 ? 0 : place_in(q->row[0], type, k) / 64 * 64;
    while (k * 16 < skip + to) {
        ask_on(q, rows, place_in(q->row[0], type, k), &asked);
        if (k % 2 || k * 16 < skip + from || (k + 2) * 16 > skip + to) {
            part_add64(acc, q, rows, w, step_at(k, skip, from, to), type);
            k++;
            continue;
        }
        int64_t *out = acc + ((ptrdiff_t)(k * 16) - (ptrdiff_t)skip);
        __m512i sum[4];
        for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_si512(out + 8 * i);
        for (int i = 0; i < rows; i++) {
            __m512 v[2];
            decode32(v, q->row[i], type, k / 2);
            add64(sum, _mm512_mul_ps(w[i], v[0]));
            add64(sum + 2, _mm512_mul_ps(w[i], v[1]));
        }
        for (int i = 0; i < 4; i++) _mm512_storeu_si512(out + 8 * i, sum[i]);
        k += 2;
    }
}

/* --- rows of f32 and bf16 -----------------------------------------------------------------------
 */

/* 32 bf16 as two vectors of floats: the even elements and the odd ones. */
static inline void split_bf16(const uint8_t *at, __m512 *even, __m512 *odd) {
    const __m512i pairs = _mm512_loadu_si512(at);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* acc[c] += sum over `rows` rows, for columns [from, to) that one core weighs. */
static inline __attribute__((always_inline)) void quad_add32(int32_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t skip,
                                                             uint32_t from, uint32_t to,
                                                             mr_storage_type type) {
    if (type != MR_STORE_F32 && type != MR_STORE_BF16) {
        quad_decode32(acc, q, rows, core_at, skip, from, to, type);
        return;
    }
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(q->weight[i][core_at]);
    uint32_t c = from;
    if (type == MR_STORE_BF16) {
        const __m512i low =
            _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512i high =
            _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
        for (; c + 32 <= to; c += 32) { /* a cache line of each row */
            __m512i even = _mm512_setzero_si512(), odd = even;
            for (int i = 0; i < rows; i++) {
                __m512 a, b;
                ask(q->next[i] + c * size);
                split_bf16(q->row[i] + c * size, &a, &b);
                even = _mm512_add_epi32(even, product32(w[i], a));
                odd = _mm512_add_epi32(odd, product32(w[i], b));
            }
            const __m512i first = _mm512_permutex2var_epi32(even, low, odd);
            const __m512i second = _mm512_permutex2var_epi32(even, high, odd);
            _mm512_storeu_si512(acc + c, _mm512_add_epi32(_mm512_loadu_si512(acc + c), first));
            _mm512_storeu_si512(acc + c + 16,
                                _mm512_add_epi32(_mm512_loadu_si512(acc + c + 16), second));
        }
    }
    for (; c + 16 <= to; c += 16) {
        __m512i sum = _mm512_loadu_si512(acc + c);
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            sum = _mm512_add_epi32(sum, product32(w[i], load16(q->row[i] + c * size, type)));
        }
        _mm512_storeu_si512(acc + c, sum);
    }
    if (c < to) {
        const __mmask16 mask = lanes(to - c);
        __m512i sum = _mm512_maskz_loadu_epi32(mask, acc + c);
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            sum = _mm512_add_epi32(
                sum, product32(w[i], load16_masked(q->row[i] + c * size, type, mask)));
        }
        _mm512_mask_storeu_epi32(acc + c, mask, sum);
    }
}

static inline __attribute__((always_inline)) void quad_add64(int64_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t skip,
                                                             uint32_t from, uint32_t to,
                                                             mr_storage_type type) {
    if (type != MR_STORE_F32 && type != MR_STORE_BF16) {
        quad_decode64(acc, q, rows, core_at, skip, from, to, type);
        return;
    }
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(q->weight[i][core_at]);
    for (uint32_t c = from; c < to; c += 16) {
        const __mmask16 mask = lanes(to - c);
        const __mmask8 low = (__mmask8)mask, high = (__mmask8)(mask >> 8);
        __m512i sum0 = _mm512_maskz_loadu_epi64(low, acc + c);
        __m512i sum1 = _mm512_maskz_loadu_epi64(high, acc + c + 8);
        for (int i = 0; i < rows; i++) {
            ask(q->next[i] + c * size);
            const __m512 p = _mm512_mul_ps(w[i], load16_masked(q->row[i] + c * size, type, mask));
            sum0 = _mm512_add_epi64(sum0, _mm512_cvtps_epi64(_mm512_castps512_ps256(p)));
            sum1 = _mm512_add_epi64(sum1, _mm512_cvtps_epi64(_mm512_extractf32x8_ps(p, 1)));
        }
        _mm512_mask_storeu_epi64(acc + c, low, sum0);
        _mm512_mask_storeu_epi64(acc + c + 8, high, sum1);
    }
}

MR_POOL_ROWS(pool_rows32, int32_t, quad_add32)
MR_POOL_ROWS(pool_rows64, int64_t, quad_add64)

MR_POOL(pool_any32, int32_t, pool_rows32)
MR_POOL(pool_any64, int64_t, pool_rows64)

MR_POOL_TYPES(mr_avx512_pool32, int32_t, pool_any32)
MR_POOL_TYPES(mr_avx512_pool64, int64_t, pool_any64)

/* --- gate dots ----------------------------------------------------------------------------------
 */

static inline __attribute__((always_inline)) void
dot_part(__m512i sum[2], const float *x, const uint8_t *row, step16 s, mr_storage_type type) {
    const uint32_t k = s.k;
    const __m512 v = type == MR_STORE_F32    ? load16_masked(row + k * 64, type, s.mask)
                     : type == MR_STORE_BF16 ? load16_masked(row + k * 32, type, s.mask)
                                             : decode16(row, type, k, s.mask);
    const __m512 p = _mm512_mul_ps(_mm512_maskz_loadu_ps(s.mask, x + s.column), v);
    const __mmask8 low = (__mmask8)s.mask, high = (__mmask8)(s.mask >> 8);
    sum[0] = _mm512_add_epi64(sum[0], _mm512_maskz_cvtps_epi64(low, _mm512_castps512_ps256(p)));
    sum[1] = _mm512_add_epi64(sum[1], _mm512_maskz_cvtps_epi64(high, _mm512_extractf32x8_ps(p, 1)));
}

static inline __attribute__((always_inline)) int64_t
dot_row(const float *x, const uint8_t *row, const mr_rows *r, mr_storage_type type) {
    const bool is_plain = type == MR_STORE_F32 || type == MR_STORE_BF16;
    const size_t size = type == MR_STORE_F32 ? 4 : 2;
    const uint32_t skip = r->skip, end = skip + r->columns;
    __m512i sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm512_setzero_si512();
    for (uint32_t k = skip / 16; k * 16 < end;) {
        if (k % 2 || k * 16 < skip || (k + 2) * 16 > end) {
            dot_part(sum, x, row, step_at(k, skip, 0, r->columns), type);
            k++;
            continue;
        }
        const float *at = x + (k * 16 - skip);
        __m512 v[2];
        if (is_plain) {
            v[0] = load16(row + k * 16 * size, type);
            v[1] = load16(row + (k + 1) * 16 * size, type);
        } else
            decode32(v, row, type, k / 2);
        add64(sum, _mm512_mul_ps(_mm512_loadu_ps(at), v[0]));
        add64(sum + 2, _mm512_mul_ps(_mm512_loadu_ps(at + 16), v[1]));
        k += 2;
    }
    const __m512i all =
        _mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), _mm512_add_epi64(sum[2], sum[3]));
    return _mm512_reduce_add_epi64(all);
}

MR_GATE(gate_any, dot_row)
MR_GATE_TYPES(mr_avx512_gate_dot, gate_any)
#endif
