/* gemm_avx512vnni.c - products with int8 and int4 weights by VPDPBUSD; see gemm_avx512.c. */
#include "common/ops/cpu/backends.h"

#if defined(__AVX512VNNI__)
#include "common/ops/cpu/gemm_v512.h"

MR_CODE_TILES(MR_I8)
MR_CODE_TILES(MR_I4)

void mr_avx512vnni_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m,
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
