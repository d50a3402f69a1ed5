/* gemm_neon.c - products with packed weights for AArch64: gemm_loop.h at 4 lanes (gemm_vneon.h).
 * Codes (int8, int4) are multiplied by SDOT where the processor has it (gemm_neondot.c), else by
 * widening multiplies; both are exact. */
#include "common/ops/cpu/backends.h"

#if defined(__aarch64__)
#include "common/ops/cpu/gemm_vneon.h"

#include <sys/auxv.h>

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

void mr_neon_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
                        uint32_t panel_first, uint32_t panel_count) {
    gemm_codes(y, y_stride, x, m, w, panel_first, panel_count);
}

size_t mr_neon_prepared_bytes(const mr_packed *w) {
    return mr_ops_ref.prepared_bytes(w);
}

void mr_neon_prepare(void *out, const float *x, size_t x_stride, uint32_t m, const mr_packed *w) {
    if (w->element == MR_I8 || w->element == MR_I4) quantize(out, x, x_stride, m, w->k);
}

void mr_neon_gemm(float *y, size_t y_stride, const float *x, size_t x_stride, const void *prepared,
                  uint32_t m, const mr_packed *w, uint32_t panel_first, uint32_t panel_count) {
    if (w->element != MR_I8 && w->element != MR_I4)
        gemm_floats(y, y_stride, x, x_stride, m, w, panel_first, panel_count);
    else if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
        mr_neondot_gemm_codes(y, y_stride, prepared, m, w, panel_first, panel_count);
    else
        mr_neon_gemm_codes(y, y_stride, prepared, m, w, panel_first, panel_count);
}
#endif
