/* pool_avx512.c - pooling and gate dots for AVX-512 (F, BW, DQ, VL).
 *
 * Rows are far apart in memory, so the work is to keep many cache lines on their way. Entries of
 * one slot are taken four at a time (the sum stays in registers, the accumulator is touched once
 * for four rows), and for every line that is added one line of a later row is asked for. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512F__)
#include "common/ops/cpu/pool_loop.h"

#include <math.h>

/* The first `left` of 16 lanes. */
static inline __mmask16 lanes(uint32_t left) {
    const uint32_t mask = left >= 16 ? 0xffffu : (1u << left) - 1u;
    return (__mmask16)mask;
}

static inline __m512 load16(const uint8_t *at, mr_element element) {
    if (element == MR_F32) return _mm512_loadu_ps(at);
    const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline __m512 load16_masked(const uint8_t *at, mr_element element, __mmask16 mask) {
    if (element == MR_F32) return _mm512_maskz_loadu_ps(mask, at);
    const __m256i half = _mm256_maskz_loadu_epi16(mask, at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* 32 bf16 as two vectors of floats: the even elements and the odd ones. */
static inline void split_bf16(const uint8_t *at, __m512 *even, __m512 *odd) {
    const __m512i pairs = _mm512_loadu_si512(at);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

static inline __m512i product32(__m512 w, __m512 v) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(w, v));
}

/* acc[c] += sum over `rows` rows, for columns [from, to) that one core weighs. */
static inline __attribute__((always_inline)) void quad_add32(int32_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t from,
                                                             uint32_t to, mr_element element) {
    const size_t size = element == MR_F32 ? 4 : 2;
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(q->weight[i][core_at]);
    uint32_t c = from;
    if (element == MR_BF16) {
        const __m512i low =
            _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512i high =
            _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
        for (; c + 32 <= to; c += 32) { /* a cache line of each row */
            __m512i even = _mm512_setzero_si512(), odd = even;
            for (int i = 0; i < rows; i++) {
                __m512 a, b;
                _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
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
            _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
            sum = _mm512_add_epi32(sum, product32(w[i], load16(q->row[i] + c * size, element)));
        }
        _mm512_storeu_si512(acc + c, sum);
    }
    if (c < to) {
        const __mmask16 mask = lanes(to - c);
        __m512i sum = _mm512_maskz_loadu_epi32(mask, acc + c);
        for (int i = 0; i < rows; i++) {
            _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
            sum = _mm512_add_epi32(
                sum, product32(w[i], load16_masked(q->row[i] + c * size, element, mask)));
        }
        _mm512_mask_storeu_epi32(acc + c, mask, sum);
    }
}

static inline __attribute__((always_inline)) void quad_add64(int64_t *acc, const quad *q, int rows,
                                                             size_t core_at, uint32_t from,
                                                             uint32_t to, mr_element element) {
    const size_t size = element == MR_F32 ? 4 : 2;
    __m512 w[4];
    for (int i = 0; i < rows; i++) w[i] = _mm512_set1_ps(q->weight[i][core_at]);
    for (uint32_t c = from; c < to; c += 16) {
        const __mmask16 mask = lanes(to - c);
        const __mmask8 low = (__mmask8)mask, high = (__mmask8)(mask >> 8);
        __m512i sum0 = _mm512_maskz_loadu_epi64(low, acc + c);
        __m512i sum1 = _mm512_maskz_loadu_epi64(high, acc + c + 8);
        for (int i = 0; i < rows; i++) {
            _mm_prefetch((const char *)q->next[i] + c * size, _MM_HINT_T1);
            const __m512 p =
                _mm512_mul_ps(w[i], load16_masked(q->row[i] + c * size, element, mask));
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

void mr_avx512_pool32(int32_t *acc, const mr_pool_args *a) {
    if (a->rows.storage.element == MR_F32)
        pool_any32(acc, a, MR_F32);
    else if (a->rows.storage.element == MR_BF16)
        pool_any32(acc, a, MR_BF16);
    else
        mr_ops_ref.pool32(acc, a);
}

void mr_avx512_pool64(int64_t *acc, const mr_pool_args *a) {
    if (a->rows.storage.element == MR_F32)
        pool_any64(acc, a, MR_F32);
    else if (a->rows.storage.element == MR_BF16)
        pool_any64(acc, a, MR_BF16);
    else
        mr_ops_ref.pool64(acc, a);
}

void mr_avx512_gate_dot(int64_t *dot, const mr_gate_args *a) {
    if (a->rows.storage.element != MR_F32 && a->rows.storage.element != MR_BF16) {
        mr_ops_ref.gate_dot(dot, a);
        return;
    }
    const size_t size = mr_element_bytes(a->rows.storage.element);
    const size_t row_bytes = a->rows.columns * size;
    uint32_t j = 0;
    for (uint32_t t = 0; t < a->tokens; t++) {
        const float *x = a->x + t * a->x_stride;
        for (const uint32_t end = j + a->count[t]; j < end; j++) {
            const uint8_t *row = row_at(&a->rows, a->row[j]);
            if (j + AHEAD < a->entries)
                prefetch_row(row_at(&a->rows, a->row[j + AHEAD]), row_bytes);
            __m512i sum0 = _mm512_setzero_si512(), sum1 = sum0;
            for (uint32_t c = 0; c < a->rows.columns; c += 16) {
                const __mmask16 mask = lanes(a->rows.columns - c);
                const __m512 p =
                    _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + c),
                                  load16_masked(row + c * size, a->rows.storage.element, mask));
                sum0 = _mm512_add_epi64(sum0, _mm512_cvtps_epi64(_mm512_castps512_ps256(p)));
                sum1 = _mm512_add_epi64(sum1, _mm512_cvtps_epi64(_mm512_extractf32x8_ps(p, 1)));
            }
            dot[j] = _mm512_reduce_add_epi64(_mm512_add_epi64(sum0, sum1));
        }
    }
}
#endif
