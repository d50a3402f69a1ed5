/* pool_avx2.c - pooling and gate dots for AVX2; see pool_avx512.c for the ideas. AVX2 has no
 * conversion from fp32 to int64: above 2^31 a float is already whole, so its mantissa is shifted
 * into place.
 */
#include "common/ops/cpu/backends.h"

#if defined(__AVX2__)
#include "common/ops/cpu/pool_loop.h"

#include <math.h>

static inline __m256 load8(const uint8_t *at, mr_element element) {
    if (element == MR_F32) return _mm256_loadu_ps((const float *)(const void *)at);
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
                                                             size_t core_at, uint32_t from,
                                                             uint32_t to, mr_element element) {
    const size_t size = element == MR_F32 ? 4 : 2;
    __m256 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm256_set1_ps(q->weight[i][core_at]);
    uint32_t c = from;
    for (; element == MR_BF16 && c + 16 <= to; c += 16) {
        __m256i even = _mm256_setzero_si256(), odd = even;
        for (int i = 0; i < rows; i++) {
            __m256 a, b;
            _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
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
            _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
            sum = _mm256_add_epi32(sum, product32(w[i], load8(q->row[i] + c * size, element)));
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
                                                             size_t core_at, uint32_t from,
                                                             uint32_t to, mr_element element) {
    const size_t size = element == MR_F32 ? 4 : 2;
    uint32_t c = from;
    for (; c + 8 <= to; c += 8) {
        __m256i *at = (__m256i *)(void *)(acc + c);
        __m256i sum0 = _mm256_loadu_si256(at), sum1 = _mm256_loadu_si256(at + 1);
        for (int i = 0; i < rows; i++) {
            _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
            const __m256 w = _mm256_set1_ps(q->weight[i][core_at]);
            const __m256 p = _mm256_mul_ps(w, load8(q->row[i] + c * size, element));
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

MR_POOL_ROWS(pool_rows32, int32_t, quad_add32)
MR_POOL_ROWS(pool_rows64, int64_t, quad_add64)
MR_POOL(pool_any32, int32_t, pool_rows32)
MR_POOL(pool_any64, int64_t, pool_rows64)

void mr_avx2_pool32(int32_t *acc, const mr_pool_args *a) {
    if (a->rows.storage.element == MR_F32)
        pool_any32(acc, a, MR_F32);
    else if (a->rows.storage.element == MR_BF16)
        pool_any32(acc, a, MR_BF16);
    else
        mr_ops_ref.pool32(acc, a);
}

void mr_avx2_pool64(int64_t *acc, const mr_pool_args *a) {
    if (a->rows.storage.element == MR_F32)
        pool_any64(acc, a, MR_F32);
    else if (a->rows.storage.element == MR_BF16)
        pool_any64(acc, a, MR_BF16);
    else
        mr_ops_ref.pool64(acc, a);
}

void mr_avx2_gate_dot(int64_t *dot, const mr_gate_args *a) {
    if (a->rows.storage.element != MR_F32 && a->rows.storage.element != MR_BF16) {
        mr_ops_ref.gate_dot(dot, a);
        return;
    }
    const mr_element element = a->rows.storage.element;
    const size_t size = mr_element_bytes(element);
    const uint32_t columns = a->rows.columns;
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *x = a->x + t * a->x_stride;
        for (const uint32_t end = j + a->count[t]; j < end; j++) {
            const uint8_t *row = row_at(&a->rows, a->row[j]);
            if (j + AHEAD < a->entries)
                prefetch_row(row_at(&a->rows, a->row[j + AHEAD]), columns * size);
            __m256i sum = _mm256_setzero_si256();
            uint32_t c = 0;
            for (; c + 8 <= columns; c += 8) {
                const __m256 p =
                    _mm256_mul_ps(_mm256_loadu_ps(x + c), load8(row + c * size, element));
                sum = _mm256_add_epi64(sum, to_int64(_mm256_castps256_ps128(p)));
                sum = _mm256_add_epi64(sum, to_int64(_mm256_extractf128_ps(p, 1)));
            }
            uint64_t lanes[4], total;
            _mm256_storeu_si256((__m256i *)(void *)lanes, sum);
            total = lanes[0] + lanes[1] + lanes[2] + lanes[3];
            for (; c < columns; c++) {
                const float product = x[c] * mr_element_at(row, element, c);
                total += (uint64_t)llrintf(product);
            }
            dot[j] = (int64_t)total;
        }
    }
}
#endif
