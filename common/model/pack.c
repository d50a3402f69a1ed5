/* pack.c - see pack.h. */
#include "common/model/pack.h"

#include "common/base/mem.h"
#include "common/model/panels.h"
#include "common/model/rows.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static mr_status alloc_packed(mr_packed *out, mr_storage format, uint32_t n, uint32_t k,
                              const char *what, mr_err *err) {
    const uint64_t data_bytes = mr_packed_data_bytes(format.element, n, k);
    const uint64_t scale_bytes = mr_packed_scale_bytes(format.block, n, k);
    void *data, *scales = NULL;
    *out = (mr_packed){0};
    mr_status status = mr_try_alloc(&data, (size_t)data_bytes, 1, what, err);
    if (status == MR_OK && scale_bytes)
        status = mr_try_alloc(&scales, (size_t)scale_bytes, 1, what, err);
    if (status != MR_OK) {
        free(data);
        return status;
    }
    *out = (mr_packed){.data = data,
                       .scales = scales,
                       .element = format.element,
                       .n = n,
                       .k = k,
                       .block = format.block};
    mr_packed_clear(out);
    return MR_OK;
}

/* Rows of a part that are inputs of the matrix: floats only, as geometry.c has seen to. */
static void put_transposed(const mr_packed *out, const mr_tensor_rows *rows, uint32_t n_first,
                           mr_storage to, float *floats, uint8_t *room) {
    const size_t size = mr_element_bytes(out->element);
    for (uint32_t row = 0; row < rows->count; row++) {
        mr_row_widen(room, to, mr_tensor_rows_at(rows, row, room), rows->storage, rows->columns,
                     floats);
        for (uint32_t c = 0; c < rows->columns; c++)
            mr_packed_put(out, n_first + c, row, room + c * size);
    }
}

/* A part, whose rows are outputs n_first, n_first + 1, .. of the matrix. */
static mr_status put_part(const mr_packed *out, const mr_model *model, const mr_matrix_part *part,
                          uint32_t n_first, mr_err *err) {
    const mr_storage to = {out->element, out->block};
    mr_tensor_rows rows;
    const mr_status status =
        mr_tensor_rows_open(&rows, model, part->tensor, part->row_first, part->rows, err);
    if (status != MR_OK) return status;
    float *floats = mr_alloc_array(rows.columns, sizeof(*floats));
    uint8_t *joined = mr_alloc(rows.row_bytes);
    uint8_t *wide = mr_alloc((size_t)mr_storage_bytes(to, rows.columns));
    if (part->transposed)
        put_transposed(out, &rows, n_first, to, floats, wide);
    else
        for (uint32_t row = 0; row < rows.count; row++) {
            const uint8_t *at = mr_tensor_rows_at(&rows, row, joined);
            if (!mr_storage_same(rows.storage, to)) {
                mr_row_widen(wide, to, at, rows.storage, rows.columns, floats);
                at = wide;
            }
            mr_packed_put_row(out, n_first + row, at, to);
        }
    free(wide);
    free(joined);
    free(floats);
    mr_tensor_rows_close(&rows);
    return MR_OK;
}

mr_storage mr_matrix_storage(const mr_model *model, const mr_matrix *matrix) {
    mr_storage format = matrix->parts[0].tensor->storage;
    const mr_tensor *data, *scales;
    if (mr_model_config(model)->quant.is_packed) {
        const mr_status found = mr_panels_find(&format, &data, &scales, model, matrix, NULL);
        assert(found == MR_OK); /* seen when the model was opened */
        return format;
    }
    for (uint32_t i = 1; i < matrix->part_count; i++)
        format = mr_storage_common(format, matrix->parts[i].tensor->storage);
    return format;
}

mr_status mr_pack_matrix(mr_packed *out, const mr_model *model, const mr_matrix *matrix,
                         mr_err *err) {
    uint32_t n = 0;
    assert(matrix->part_count > 0);
    if (mr_model_config(model)->quant.is_packed) return mr_panels_open(out, model, matrix, err);
    mr_status status = alloc_packed(out, mr_matrix_storage(model, matrix), matrix->n, matrix->k,
                                    matrix->parts[0].tensor->name, err);
    for (uint32_t i = 0; i < matrix->part_count && status == MR_OK; i++) {
        const mr_matrix_part *part = &matrix->parts[i];
        status = put_part(out, model, part, n, err);
        n += part->transposed ? (uint32_t)part->tensor->columns : part->rows;
    }
    if (status != MR_OK) mr_packed_free(out);
    return status;
}

mr_status mr_pack_floats(mr_packed *out, uint32_t n, uint32_t k, mr_pack_source source,
                         const void *context, const char *what, mr_err *err) {
    const mr_status status = alloc_packed(out, (mr_storage){MR_F32, 0}, n, k, what, err);
    if (status != MR_OK) return status;
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t i = 0; i < k; i++) {
            const float value = source(context, row, i);
            mr_packed_put(out, row, i, &value);
        }
    return MR_OK;
}

void mr_packed_free(mr_packed *packed) {
    if (!packed->is_borrowed) {
        free((void *)(uintptr_t)packed->data);
        free((void *)(uintptr_t)packed->scales);
    }
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
