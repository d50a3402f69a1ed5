/* packed.c - see packed.h and the table of layouts at mr_packed in ops.h. */
#include "common/ops/packed.h"

#include <assert.h>
#include <math.h>

static uint8_t *panel_of(const mr_packed *p, uint32_t n) {
    return (uint8_t *)(uintptr_t)p->data + n / MR_PANEL * mr_packed_panel_bytes(p->element, p->k);
}

/* Byte of element (n, k) within its panel. */
static size_t place(const mr_packed *p, uint32_t n, uint32_t k) {
    const size_t c = n % MR_PANEL;
    switch (p->element) {
    case MR_F32:
        return ((size_t)k * MR_PANEL + c) * 4;
    case MR_F16:
        return ((size_t)k * MR_PANEL + c) * 2;
    case MR_BF16:
        return ((size_t)(k / 2) * MR_PANEL + c) * 4 + (k & 1) * 2;
    case MR_I8:
        return ((size_t)(k / 4) * MR_PANEL + c) * 4 + k % 4;
    case MR_I4:
        return (((size_t)(k / 32) * 4 + k % 16 / 4) * MR_PANEL + c) * 4 + k % 4;
    default:
        return (size_t)k * MR_PANEL + c;
    }
}

void mr_packed_clear(const mr_packed *p) {
    const int zero = p->element == MR_I8 ? 0x80 : p->element == MR_I4 ? 0x88 : 0;
    memset((void *)(uintptr_t)p->data, zero, mr_packed_data_bytes(p->element, p->n, p->k));
    if (p->block)
        memset((void *)(uintptr_t)p->scales, 0, mr_packed_scale_bytes(p->block, p->n, p->k));
}

void mr_packed_put(const mr_packed *p, uint32_t n, uint32_t k, const void *element) {
    memcpy(panel_of(p, n) + place(p, n, k), element, mr_element_bytes(p->element));
}

static void put_code(const mr_packed *p, uint32_t n, uint32_t k, const uint8_t *codes, uint32_t i) {
    uint8_t *to = panel_of(p, n) + place(p, n, k);
    if (p->element == MR_I8)
        *to = (uint8_t)(codes[i] ^ 0x80);
    else if (p->element == MR_F8)
        *to = codes[i];
    else {
        const uint8_t code = (uint8_t)(i < 16 ? codes[i] & 15 : codes[i - 16] >> 4);
        *to = (uint8_t)(k % 32 < 16 ? (*to & 0xf0) | code : (*to & 15) | code << 4);
    }
}

void mr_packed_put_row(const mr_packed *p, uint32_t n, const void *row, mr_storage format) {
    const uint8_t *from = row;
    assert(format.element == p->element && format.block == p->block);
    if (format.block == 0) {
        const size_t size = mr_element_bytes(format.element);
        for (uint32_t k = 0; k < p->k; k++) mr_packed_put(p, n, k, from + k * size);
        return;
    }
    const uint32_t block = format.block == MR_WHOLE_ROW ? p->k : format.block;
    const uint32_t blocks = mr_packed_scale_blocks(p->block, p->k);
    const uint32_t scale_bytes = mr_storage_scale_bytes(format);
    uint8_t *scales =
        (uint8_t *)(uintptr_t)p->scales + (size_t)(n / MR_PANEL) * blocks * MR_PANEL * scale_bytes;
    for (uint32_t b = 0; b < blocks; b++) {
        const uint32_t first = b * block, left = p->k - first;
        memcpy(scales + ((size_t)b * MR_PANEL + n % MR_PANEL) * scale_bytes, from, scale_bytes);
        for (uint32_t i = 0; i < block && i < left; i++)
            put_code(p, n, first + i, from + scale_bytes, i);
        from += mr_storage_bytes(format, block);
    }
}

float mr_packed_scale(const mr_packed *p, uint32_t n, uint32_t k) {
    const uint32_t blocks = mr_packed_scale_blocks(p->block, p->k);
    const uint32_t b = p->block == MR_WHOLE_ROW ? 0 : k / p->block;
    const size_t at = ((size_t)(n / MR_PANEL) * blocks + b) * MR_PANEL + n % MR_PANEL;
    return mr_element_at(p->scales, p->block == MR_QUANT_BLOCK ? MR_F16 : MR_F32, at);
}

float mr_packed_code(const mr_packed *p, uint32_t n, uint32_t k) {
    const uint8_t *at = panel_of(p, n) + place(p, n, k);
    if (p->element == MR_F8) return mr_f8_to_f32(*at);
    if (p->element == MR_I8) return (float)((int)*at - 128);
    return (float)((int)(k % 32 < 16 ? *at & 15 : *at >> 4) - 8);
}

float mr_packed_at(const mr_packed *p, uint32_t n, uint32_t k) {
    if (p->block == 0) return mr_element_at(panel_of(p, n) + place(p, n, k), p->element, 0);
    return mr_packed_code(p, n, k) * mr_packed_scale(p, n, k);
}

size_t mr_quantized_bytes(uint32_t k) {
    const size_t depth = mr_packed_depth(MR_I8, k);
    return ((depth + depth / 32 * 8 + 63) / 64 | 1) * 64;
}

void mr_quantize_block(int8_t *codes, float *d, int32_t *sum, const float *x, uint32_t count) {
    float largest = 0;
    for (uint32_t j = 0; j < count; j++) {
        const float magnitude = fabsf(x[j]);
        largest = magnitude > largest || magnitude != magnitude ? magnitude : largest;
    }
    *d = largest / 127.0f;
    *sum = 0;
    const float inverse = *d > 0 ? 1.0f / *d : 0;
    for (uint32_t j = 0; j < 32; j++) {
        const float scaled = j < count ? x[j] * inverse : 0;
        const float code = scaled > 127 ? 127 : scaled < -127 ? -127 : scaled;
        codes[j] = code == code ? (int8_t)nearbyintf(code) : 0;
        *sum += codes[j];
    }
}

void mr_quantize_rows(void *out, const float *x, size_t x_stride, uint32_t m, uint32_t k) {
    const size_t depth = mr_packed_depth(MR_I8, k), bytes = mr_quantized_bytes(k);
    for (uint32_t i = 0; i < m; i++, x += x_stride) {
        int8_t *codes = (int8_t *)out + i * bytes;
        uint8_t *d_at = (uint8_t *)codes + depth, *sum_at = d_at + depth / 32 * 4;
        for (uint32_t first = 0; first < depth; first += 32, d_at += 4, sum_at += 4) {
            float d;
            int32_t sum;
            mr_quantize_block(codes + first, &d, &sum, x + first, k - first < 32 ? k - first : 32);
            memcpy(d_at, &d, sizeof(d));
            memcpy(sum_at, &sum, sizeof(sum));
        }
    }
}
