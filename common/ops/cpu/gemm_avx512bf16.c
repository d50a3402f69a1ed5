/* gemm_avx512bf16.c - products with bf16 weights by VDPBF16PS: a numeric class of its own (ops.h).
 *
 * x is rounded to bf16 first. One instruction takes two inputs of 16 outputs: sum = fma(x[2i],
 * w[2i], fma(x[2i + 1], w[2i + 1], sum)), the odd input first, each step rounded to nearest even
 * with denormals taken and left as zero. All other weights are multiplied as by avx512. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512BF16__)
#include "common/ops/cpu/gemm_v512.h"

INLINE void pair_tile(const tile *t, const uint32_t rows, const uint32_t vectors,
                      const mr_element element) {
    const size_t pair_bytes = (size_t)MR_PANEL * 4;
    const uint8_t *at[8];
    vf sum[SUMS], kept[SUMS];
    (void)element;
#pragma GCC unroll 8
    for (uint32_t v = 0; v < vectors; v++) at[v] = vector_at(t, v, 4);
    load_sums(kept, t, rows, vectors, false);
#pragma GCC unroll 24
    for (uint32_t i = 0; i < rows * vectors; i++) sum[i] = kept[i];
    for (uint32_t pair = t->begin / 2; pair < (t->end + 1) / 2; pair++) {
        __m512bh w[8];
        ask_ahead(t, at, vectors, pair, pair_bytes);
#pragma GCC unroll 8
        for (uint32_t v = 0; v < vectors; v++) w[v] = (__m512bh)v_load_i(at[v] + pair * pair_bytes);
#pragma GCC unroll 12
        for (uint32_t i = 0; i < rows; i++) {
            const __m512bh x = (__m512bh)v_set_i(word_at(t->x + i * t->x_bytes + (size_t)pair * 4));
#pragma GCC unroll 8
            for (uint32_t v = 0; v < vectors; v++)
                sum[i * vectors + v] = _mm512_dpbf16_ps(sum[i * vectors + v], x, w[v]);
        }
    }
#pragma GCC unroll 24
    for (uint32_t i = 0; i < rows * vectors; i++) kept[i] = sum[i];
    keep_chains(t, rows, vectors, kept); /* no scales: as they are */
}

MR_FLOAT_SIZES(MR_TILE_FUNCTION, pair_tile, MR_BF16)

static void tile_pairs(const tile *t, uint32_t rows) {
    switch (rows) { MR_FLOAT_SIZES(MR_TILE_CASE, pair_tile, MR_BF16) }
}

static void wide_pairs(const tile *t, uint32_t rows) {
    (void)rows;
    pair_tile(t, 1, FLOAT_WIDE, MR_BF16);
}

/* An odd number of lines: rows do not share cache sets. */
static size_t row_bytes(uint32_t k) {
    return ((2ull * k + 63) / 64 | 1) * 64;
}

size_t mr_avx512bf16_prepared_bytes(const mr_packed *w) {
    return w->element == MR_BF16 ? row_bytes(w->k) : mr_avx512_prepared_bytes(w);
}

/* As mr_f32_to_bf16; the instruction for it would flush denormals. */
static void round_row(uint16_t *to, const float *x, uint32_t k) {
    const vi one = v_set_i(1), half = v_set_i(0x7fff), quiet = v_set_i(0x400000);
    uint32_t i = 0;
    for (; i + 16 <= k; i += 16) {
        const vf value = v_load(x + i);
        const vi bits = _mm512_castps_si512(value);
        const vi odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        const vi up = _mm512_add_epi32(bits, _mm512_add_epi32(half, odd));
        const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        const vi all = _mm512_mask_or_epi32(up, nan, bits, quiet);
        const __m256i out = _mm512_cvtepi32_epi16(_mm512_srli_epi32(all, 16));
        _mm256_storeu_si256((__m256i *)(void *)(to + i), out);
    }
    for (; i < k; i++) to[i] = mr_f32_to_bf16(x[i]);
    if (k % 2) to[k] = 0;
}

void mr_avx512bf16_prepare(void *out, const float *x, size_t x_stride, uint32_t m,
                           const mr_packed *w) {
    if (w->element != MR_BF16) {
        mr_avx512_prepare(out, x, x_stride, m, w);
        return;
    }
    for (uint32_t i = 0; i < m; i++)
        round_row((uint16_t *)(void *)((uint8_t *)out + i * row_bytes(w->k)), x + i * x_stride,
                  w->k);
}

void mr_avx512bf16_gemm(float *y, size_t y_stride, const float *x, size_t x_stride,
                        const void *prepared, uint32_t m, const mr_packed *w, uint32_t panel_first,
                        uint32_t panel_count) {
    if (w->element != MR_BF16) {
        mr_avx512_gemm(y, y_stride, x, x_stride, prepared, m, w, panel_first, panel_count);
        return;
    }
    walk k = make_walk(y, y_stride, m, w, panel_first, panel_count);
    k.t.x = prepared;
    k.t.x_bytes = row_bytes(w->k);
    k.rows_most = FLOAT_ROWS;
    k.chunk = m == 1 ? w->k : CHUNK;
    run_walk(&k, FLOAT_WIDE, wide_pairs, tile_pairs);
}
#endif
