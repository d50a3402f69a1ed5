/* gemm_neondot.c - products with int8 and int4 weights by SDOT; see gemm_neon.c. Built for
 * Armv8.2-A with the dot products, and reached only where the processor says that it has them. */
#include "common/ops/cpu/backends.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include "common/ops/cpu/gemm_vneon.h"

void mr_neondot_gemm_codes(float *y, size_t y_stride, const void *x, uint32_t m, const mr_packed *w,
                           uint32_t panel_first, uint32_t panel_count) {
    gemm_codes(y, y_stride, x, m, w, panel_first, panel_count);
}
#endif
