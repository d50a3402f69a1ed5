/* rows.c - see rows.h. */
#include "common/model/rows.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const mr_tensor *find(const mr_tensor *tensors, uint32_t count, const char *name) {
    for (uint32_t low = 0, high = count; low < high;) {
        const uint32_t middle = low + (high - low) / 2;
        const int order = strcmp(name, tensors[middle].name);
        if (order == 0) return &tensors[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static uint64_t tiles(uint64_t count) {
    return (count + MR_TILE_BLOCK - 1) / MR_TILE_BLOCK;
}

/* How the scales of an F8_E4M3 tensor lie; the tensors tell. */
static mr_status find_scales(mr_tensor *t, const mr_tensor *tensors, uint32_t count, mr_err *err) {
    char name[MR_MAX_TENSOR_NAME_BYTES + 16];
    mr_element element;
    snprintf(name, sizeof(name), "%s_scale_inv", t->name);
    const mr_tensor *s = find(tensors, count, name);
    if (!s) {
        snprintf(name, sizeof(name), "%s_scale", t->name);
        s = find(tensors, count, name);
    }
    if (!s || t->dims != 2)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "tensor %.200s has type F8_E4M3 and no tensor %.200s_scale_inv or _scale "
                       "with its scales",
                       t->name, t->name);
    const uint64_t n = t->shape[0], k = t->shape[1];
    if (mr_dtype_element(&element, s->dtype) != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "tensor %.200s has type %s; scales are floats",
                       s->name, mr_dtype_name(s->dtype));
    const bool one = s->dims == 0 || (s->dims == 1 && s->shape[0] == 1);
    const bool a_row = (s->dims == 1 && s->shape[0] == n) ||
                       (s->dims == 2 && s->shape[0] == n && s->shape[1] == 1);
    const bool a_tile = s->dims == 2 && s->shape[0] == tiles(n) && s->shape[1] == tiles(k);
    if (!one && !a_row && !a_tile)
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %.200s fits neither the rows nor the 128 x 128 tiles of its weights",
                       s->name);
    t->storage = mr_storage_of(one || a_row ? MR_STORE_FP8 : MR_STORE_FP8_BLOCK);
    t->scales = s;
    t->columns = k;
    return MR_OK;
}

mr_status mr_tensors_classify(mr_tensor *tensors, uint32_t count, const mr_quant_config *q,
                              mr_err *err) {
    for (uint32_t i = 0; i < count; i++) {
        mr_tensor *t = &tensors[i];
        mr_storage format;
        t->storage = (mr_storage){MR_F32, 0};
        t->scales = NULL;
        t->columns = 0;
        if (mr_dtype_element(&t->storage.element, t->dtype) == 0)
            t->columns = t->dims ? t->shape[t->dims - 1] : 1;
        else if (t->dtype == MR_DTYPE_F8_E4M3 && q->has_fp8) {
            const mr_status status = find_scales(t, tensors, count, err);
            if (status != MR_OK) return status;
        } else if (t->dtype == MR_DTYPE_U8 &&
                   mr_quant_config_storage(&format, q, t->name, t->dtype, NULL) == MR_OK)
            t->storage = format; /* columns: once the architecture says how many */
    }
    return MR_OK;
}

uint64_t mr_tensor_numbers(const mr_tensor *t) {
    static const char *const ends[] = {".scales", "_scale", "_scale_inv"};
    const size_t bytes = strlen(t->name);
    for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++)
        if (bytes > strlen(ends[i]) && !strcmp(t->name + bytes - strlen(ends[i]), ends[i]))
            return 0;
    if (t->dtype != MR_DTYPE_U8) return t->bytes / mr_dtype_bytes(t->dtype);
    return t->columns ? t->shape[0] * t->columns
                      : t->bytes * 8 / mr_element_bits(t->storage.element);
}

mr_status mr_tensor_rows_open(mr_tensor_rows *out, const mr_model *model, const mr_tensor *t,
                              uint64_t first, uint64_t count, mr_err *err) {
    assert(t->dims == 2 && t->columns > 0 && first <= t->shape[0] && count <= t->shape[0] - first);
    *out = (mr_tensor_rows){.tensor = t,
                            .storage = t->storage,
                            .first = first,
                            .count = count,
                            .columns = (uint32_t)t->columns,
                            .row_bytes = (size_t)mr_storage_bytes(t->storage, t->columns)};
    out->stride = t->scales ? out->columns : out->row_bytes;
    mr_status status =
        mr_tensor_map(&out->data, model, t, first * out->stride, count * out->stride, err);
    if (status == MR_OK && t->scales)
        status = mr_tensor_map(&out->scales, model, t->scales, 0, t->scales->bytes, err);
    if (status != MR_OK) mr_tensor_rows_close(out);
    return status;
}

void mr_tensor_rows_close(mr_tensor_rows *rows) {
    mr_mapping_close(&rows->data);
    mr_mapping_close(&rows->scales);
}

/* The scale of block b of a row whose scales lie in a tensor of their own. */
static float outer_scale(const mr_tensor_rows *r, uint64_t row, uint64_t b) {
    const mr_tensor *s = r->tensor->scales;
    mr_element element = MR_F32;
    const int known = mr_dtype_element(&element, s->dtype);
    assert(known == 0);
    const uint64_t at = r->storage.block == MR_TILE_BLOCK
                            ? (r->first + row) / MR_TILE_BLOCK * s->shape[1] + b
                        : s->bytes == mr_element_bytes(element) ? 0
                                                                : r->first + row;
    return mr_element_at(r->scales.data, element, at);
}

const uint8_t *mr_tensor_rows_at(const mr_tensor_rows *r, uint64_t row, uint8_t *room) {
    const uint8_t *from = r->data.data + row * r->stride;
    if (!r->tensor->scales) return from;
    const uint32_t block = r->storage.block == MR_WHOLE_ROW ? r->columns : r->storage.block;
    uint8_t *to = room;
    for (uint32_t at = 0; at < r->columns; at += block) {
        const uint32_t count = r->columns - at < block ? r->columns - at : block;
        const float scale = outer_scale(r, row, at / block);
        memcpy(to, &scale, sizeof(scale));
        memcpy(to + sizeof(scale), from + at, count);
        to += sizeof(scale) + count;
    }
    return room;
}

void mr_tensor_rows_floats(float *out, const mr_tensor_rows *r, uint64_t row) {
    const uint8_t *from = r->data.data + row * r->stride;
    if (!r->tensor->scales) {
        mr_storage_decode(out, from, r->storage, r->columns, 0, r->columns);
        return;
    }
    const uint32_t block = r->storage.block == MR_WHOLE_ROW ? r->columns : r->storage.block;
    for (uint32_t at = 0; at < r->columns; at += block) {
        const float scale = outer_scale(r, row, at / block);
        for (uint32_t i = at; i < r->columns && i < at + block; i++)
            out[i] = mr_f8_to_f32(from[i]) * scale;
    }
}

/* --- one format for several ------------------------------------------------------------------- */

mr_storage mr_storage_common(mr_storage a, mr_storage b) {
    if (mr_storage_same(a, b)) return a;
    const mr_storage wide = mr_storage_of(MR_STORE_INT8_BLOCK);
    const mr_storage narrow = mr_storage_of(MR_STORE_INT4);
    if ((mr_storage_same(a, wide) && mr_storage_same(b, narrow)) ||
        (mr_storage_same(a, narrow) && mr_storage_same(b, wide)))
        return wide;
    return mr_storage_of(MR_STORE_F32);
}

/* int4 as int8-block: the same scales, the same codes. */
static void widen_codes(uint8_t *to, const uint8_t *from, uint32_t columns) {
    for (uint32_t at = 0; at < columns; at += MR_QUANT_BLOCK) {
        const uint32_t count = columns - at < MR_QUANT_BLOCK ? columns - at : MR_QUANT_BLOCK;
        memcpy(to, from, 2);
        for (uint32_t i = 0; i < count; i++) {
            const uint8_t pair = from[2 + i % 16];
            to[2 + i] = (uint8_t)(int8_t)((i < 16 ? pair & 15 : pair >> 4) - 8);
        }
        to += 2 + count;
        from += 2 + MR_QUANT_BLOCK / 2;
    }
}

void mr_row_widen(void *out, mr_storage to, const void *row, mr_storage from, uint32_t columns,
                  float *floats) {
    if (mr_storage_same(to, from))
        memcpy(out, row, (size_t)mr_storage_bytes(from, columns));
    else if (to.element == MR_I8)
        widen_codes(out, row, columns);
    else {
        mr_storage_decode(floats, row, from, columns, 0, columns);
        memcpy(out, floats, columns * sizeof(float));
    }
}
