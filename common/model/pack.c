/* pack.c - see pack.h. */
#include "common/model/pack.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static mr_status alloc_packed(mr_packed *out, mr_element element, uint32_t n, uint32_t k,
                              const char *what, mr_err *err) {
    void *data;
    *out = (mr_packed){0};
    const mr_status status =
        mr_try_alloc(&data, (size_t)mr_packed_data_bytes(element, n, k), 1, what, err);
    if (status != MR_OK) return status;
    *out = (mr_packed){.data = data, .element = element, .n = n, .k = k};
    mr_packed_clear(out);
    return MR_OK;
}

/* Rows of a part that are outputs n_first, n_first + 1, .. of the matrix. */
static mr_status put_part(const mr_packed *out, const mr_model *model, const mr_matrix_part *part,
                          uint32_t n_first, mr_err *err) {
    const uint64_t row_bytes = part->tensor->bytes / part->tensor->shape[0];
    const size_t size = mr_element_bytes(out->element);
    const mr_storage format = {out->element, 0};
    mr_mapping map;
    const mr_status status = mr_tensor_map(&map, model, part->tensor, part->row_first * row_bytes,
                                           part->rows * row_bytes, err);
    if (status != MR_OK) return status;
    for (uint32_t row = 0; row < part->rows; row++) {
        const uint8_t *at = map.data + row * row_bytes;
        if (!part->transposed)
            mr_packed_put_row(out, n_first + row, at, format);
        else
            for (uint32_t c = 0; c < row_bytes / size; c++)
                mr_packed_put(out, n_first + c, row, at + c * size);
    }
    mr_mapping_close(&map);
    return MR_OK;
}

mr_status mr_pack_matrix(mr_packed *out, const mr_model *model, const mr_matrix *matrix,
                         mr_err *err) {
    mr_element element = MR_F32;
    uint32_t n = 0;
    const bool known = mr_dtype_element(&element, matrix->parts[0].tensor->dtype) == 0;
    assert(known && matrix->part_count > 0);
    mr_status status =
        alloc_packed(out, element, matrix->n, matrix->k, matrix->parts[0].tensor->name, err);
    for (uint32_t i = 0; i < matrix->part_count && status == MR_OK; i++) {
        const mr_matrix_part *part = &matrix->parts[i];
        assert(part->tensor->dtype == matrix->parts[0].tensor->dtype);
        status = put_part(out, model, part, n, err);
        n += part->transposed ? (uint32_t)part->tensor->shape[1] : part->rows;
    }
    if (status != MR_OK) mr_packed_free(out);
    return status;
}

mr_status mr_pack_floats(mr_packed *out, uint32_t n, uint32_t k, mr_pack_source source,
                         const void *context, const char *what, mr_err *err) {
    const mr_status status = alloc_packed(out, MR_F32, n, k, what, err);
    if (status != MR_OK) return status;
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t i = 0; i < k; i++) {
            const float value = source(context, row, i);
            mr_packed_put(out, row, i, &value);
        }
    return MR_OK;
}

void mr_packed_free(mr_packed *packed) {
    free((void *)(uintptr_t)packed->data);
    *packed = (mr_packed){0};
}

static mr_status add_floats(float *out, const mr_model *model, const mr_tensor *t, mr_err *err) {
    mr_element element;
    mr_mapping map;
    const bool known = mr_dtype_element(&element, t->dtype) == 0;
    assert(known);
    const mr_status status = mr_tensor_map(&map, model, t, 0, t->bytes, err);
    if (status != MR_OK) return status;
    const uint64_t count = t->bytes / mr_element_bytes(element);
    for (uint64_t i = 0; i < count; i++) out[i] = mr_element_at(map.data, element, i);
    mr_mapping_close(&map);
    return MR_OK;
}

static mr_status load_parts(float **out, const mr_model *model, const mr_tensor *const *parts,
                            uint32_t part_count, mr_err *err) {
    uint64_t count = 0, at = 0;
    void *data;
    *out = NULL;
    for (uint32_t i = 0; i < part_count; i++)
        count += parts[i]->bytes / mr_dtype_bytes(parts[i]->dtype);
    mr_status status = mr_try_alloc(&data, (size_t)count, sizeof(float), parts[0]->name, err);
    if (status != MR_OK) return status;
    *out = data;
    for (uint32_t i = 0; i < part_count && status == MR_OK; i++) {
        status = add_floats(*out + at, model, parts[i], err);
        at += parts[i]->bytes / mr_dtype_bytes(parts[i]->dtype);
    }
    return status;
}

mr_status mr_load_floats(float **out, const mr_model *model, const char *name, mr_err *err) {
    const mr_tensor *t = mr_model_find(model, name);
    assert(t);
    return load_parts(out, model, &t, 1, err);
}

mr_status mr_load_vector(float **out, const mr_model *model, mr_vector_role role, uint32_t index,
                         mr_err *err) {
    const mr_tensor *parts[MR_VECTOR_PARTS_MAX];
    const uint32_t count = mr_vector_of(parts, model, role, index);
    *out = NULL;
    return count ? load_parts(out, model, parts, count, err) : MR_OK;
}
