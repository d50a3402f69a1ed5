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

mr_status mr_pack_rows(mr_packed *out, const mr_model *model, const char *name, uint64_t row_first,
                       uint32_t n, mr_err *err) {
    const mr_tensor *t = mr_model_find(model, name);
    mr_element element;
    mr_mapping map;
    assert(t && t->dims == 2 && mr_dtype_element(&element, t->dtype) == 0);
    assert(row_first + n <= t->shape[0]);
    const uint32_t k = (uint32_t)t->shape[1];
    const size_t size = mr_element_bytes(element), row_bytes = k * size;
    mr_status status = mr_tensor_map(&map, model, t, row_first * row_bytes, n * row_bytes, err);
    if (status != MR_OK) return status;
    status = alloc_packed(out, element, n, k, name, err);
    if (status == MR_OK)
        for (uint32_t row = 0; row < n; row++)
            mr_packed_put_row(out, row, map.data + row * row_bytes, (mr_storage){element, 0});
    mr_mapping_close(&map);
    return status;
}

mr_status mr_pack_transposed(mr_packed *out, const mr_model *model, const char *name,
                             uint64_t row_first, uint32_t k, mr_err *err) {
    const mr_tensor *t = mr_model_find(model, name);
    mr_element element;
    mr_mapping map;
    assert(t && t->dims == 2 && mr_dtype_element(&element, t->dtype) == 0);
    assert(row_first + k <= t->shape[0]);
    const uint32_t n = (uint32_t)t->shape[1];
    const size_t size = mr_element_bytes(element), row_bytes = n * size;
    mr_status status = mr_tensor_map(&map, model, t, row_first * row_bytes, k * row_bytes, err);
    if (status != MR_OK) return status;
    status = alloc_packed(out, element, n, k, name, err);
    if (status == MR_OK)
        for (uint32_t i = 0; i < k; i++)
            for (uint32_t c = 0; c < n; c++)
                mr_packed_put(out, c, i, map.data + i * row_bytes + c * size);
    mr_mapping_close(&map);
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

mr_status mr_load_floats(float **out, const mr_model *model, const char *name, mr_err *err) {
    const mr_tensor *t = mr_model_find(model, name);
    mr_element element;
    mr_mapping map;
    void *data;
    assert(t && mr_dtype_element(&element, t->dtype) == 0);
    const uint64_t count = t->bytes / mr_element_bytes(element);
    *out = NULL;
    mr_status status = mr_tensor_map(&map, model, t, 0, t->bytes, err);
    if (status != MR_OK) return status;
    status = mr_try_alloc(&data, (size_t)count, sizeof(float), name, err);
    if (status == MR_OK) {
        *out = data;
        for (uint64_t i = 0; i < count; i++) (*out)[i] = mr_element_at(map.data, element, i);
    }
    mr_mapping_close(&map);
    return status;
}
