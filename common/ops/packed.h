/* packed.h - sizes and places of packed weights (ops.h), for those who pack and for kernels. */
#ifndef MR_OPS_PACKED_H
#define MR_OPS_PACKED_H
#include "common/ops/ops.h"

static inline uint32_t mr_packed_panels(const mr_packed *p) {
    return (p->n + MR_PANEL - 1) / MR_PANEL;
}
/* K as it is stored. */
static inline uint64_t mr_packed_depth(mr_element element, uint64_t k) {
    const uint64_t unit = element == MR_BF16 ? 2 : element == MR_I8 || element == MR_I4 ? 32 : 1;
    return (k + unit - 1) / unit * unit;
}
/* Blocks of K with a scale of their own. */
static inline uint32_t mr_packed_scale_blocks(uint32_t block, uint32_t k) {
    return block == 0 ? 0 : block == MR_WHOLE_ROW ? 1 : (k + block - 1) / block;
}
static inline uint64_t mr_packed_panel_bytes(mr_element element, uint64_t k) {
    return mr_packed_depth(element, k) * MR_PANEL * mr_element_bits(element) / 8;
}
static inline uint64_t mr_packed_data_bytes(mr_element element, uint64_t n, uint64_t k) {
    return (n + MR_PANEL - 1) / MR_PANEL * mr_packed_panel_bytes(element, k);
}
static inline uint64_t mr_packed_scale_bytes(uint32_t block, uint64_t n, uint32_t k) {
    return (n + MR_PANEL - 1) / MR_PANEL * MR_PANEL * mr_packed_scale_blocks(block, k) *
           (block == MR_QUANT_BLOCK ? 2u : 4u);
}

/* Output n of a matrix under way, from one row of k elements stored as `format` (the format's
 * element and block must be the matrix's). data and scales start as mr_packed_clear leaves them. */
void mr_packed_clear(const mr_packed *p);
void mr_packed_put_row(const mr_packed *p, uint32_t n, const void *row, mr_storage format);
/* Element (n, k) of an f32, bf16 or f16 matrix under way. */
void mr_packed_put(const mr_packed *p, uint32_t n, uint32_t k, const void *element);
/* One element: slow, for references and tests. Its code as a number (int8, int4, f8), its scale,
 * and fl32(code * scale). */
float mr_packed_code(const mr_packed *p, uint32_t n, uint32_t k);
float mr_packed_scale(const mr_packed *p, uint32_t n, uint32_t k);
float mr_packed_at(const mr_packed *p, uint32_t n, uint32_t k);

/* The form of x for int8 and int4 weights: [depth] codes, then f32 d[depth / 32], then int32
 * sum of codes [depth / 32]; then padding to an odd number of 64-byte lines, so that rows do not
 * share cache sets. Shared by all backends. */
size_t mr_quantized_bytes(uint32_t k);
void mr_quantize_block(int8_t *codes, float *d, int32_t *sum, const float *x, uint32_t count);
void mr_quantize_rows(void *out, const float *x, size_t x_stride, uint32_t m, uint32_t k);

#endif
