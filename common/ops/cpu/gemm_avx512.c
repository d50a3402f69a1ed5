/* gemm_avx512.c - products with packed weights for AVX-512 (F, BW, DQ, VL): gemm_loop.h at 16
 * lanes.
 *
 * A tile is 12 rows x 32 columns of y in 24 registers; for one row, four panels side by side give
 * eight independent chains. Codes (int8, int4) are multiplied by VNNI where the processor has it
 * (gemm_avx512vnni.c), else as widened pairs. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512F__)
#include "common/ops/cpu/gemm_v512.h"

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

void mr_avx512_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
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

size_t mr_avx512_prepared_bytes(const mr_packed *w) {
    return mr_ops_ref.prepared_bytes(w);
}

void mr_avx512_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w) {
    if (w->element == MR_I8 || w->element == MR_I4) quantize(out, x, x_stride, m, w->k);
}

void mr_avx512_gemm(float *y, size_t y_stride, const float *x, size_t x_stride,
                    const void *prepared, uint32_t m, const mr_packed *w, uint32_t panel_first,
                    uint32_t panel_count) {
    if (w->element != MR_I8 && w->element != MR_I4)
        gemm_floats(y, y_stride, x, x_stride, m, w, panel_first, panel_count);
    else if (__builtin_cpu_supports("avx512vnni"))
        mr_avx512vnni_gemm_codes(y, y_stride, prepared, m, w, panel_first, panel_count);
    else
        mr_avx512_gemm_codes(y, y_stride, prepared, m, w, panel_first, panel_count);
}
#endif
