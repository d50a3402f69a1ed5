/* panels.c - see panels.h. */
#include "common/model/panels.h"

#include <stdio.h>

static mr_dtype float_type(mr_element element) {
    return element == MR_F32 ? MR_DTYPE_F32 : element == MR_BF16 ? MR_DTYPE_BF16 : MR_DTYPE_F16;
}

mr_panel_shape mr_panel_shape_of(mr_storage format, uint32_t n, uint32_t k) {
    const uint64_t panels = ((uint64_t)n + MR_PANEL - 1) / MR_PANEL;
    const uint64_t bytes = mr_packed_panel_bytes(format.element, k);
    mr_panel_shape shape = {.data = {panels, bytes}, .data_type = MR_DTYPE_U8};
    if (bytes % 64 != 0) shape.data[0] += panels % 2; /* fp8 with an odd K */
    if (format.block == 0) {
        shape.data_type = float_type(format.element);
        shape.data[1] /= mr_element_bytes(format.element);
        return shape;
    }
    shape.scale_type = format.block == MR_QUANT_BLOCK ? MR_DTYPE_F16 : MR_DTYPE_F32;
    shape.scales[0] = panels;
    shape.scales[1] = (uint64_t)mr_packed_scale_blocks(format.block, k) * MR_PANEL;
    return shape;
}

static mr_status need(const mr_tensor **out, const mr_model *model, const char *name,
                      mr_dtype dtype, const uint64_t shape[2], mr_err *err) {
    const mr_tensor *t = mr_model_find(model, name);
    if (!t) return mr_fail(err, MR_ERR_FORMAT, "tensor %s is missing", name);
    if (t->dtype != dtype || t->dims != 2 || t->shape[0] != shape[0] || t->shape[1] != shape[1])
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %s has type %s and %llu bytes, expected panels of type %s [%llu, "
                       "%llu]",
                       name, mr_dtype_name(t->dtype), (unsigned long long)t->bytes,
                       mr_dtype_name(dtype), (unsigned long long)shape[0],
                       (unsigned long long)shape[1]);
    if (t->offset % 64 != 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %s begins at byte %llu of its file, which is no multiple of 64",
                       name, (unsigned long long)t->offset);
    *out = t;
    return MR_OK;
}

mr_status mr_panels_find(mr_storage *format, const mr_tensor **data, const mr_tensor **scales,
                         const mr_model *model, const mr_matrix *matrix, mr_err *err) {
    char name[sizeof(matrix->name) + 8];
    const mr_tensor *t = mr_model_find(model, matrix->name);
    *scales = NULL;
    if (!t) return mr_fail(err, MR_ERR_FORMAT, "tensor %s is missing", matrix->name);
    mr_status status = mr_quant_config_storage(format, &mr_model_config(model)->quant, matrix->name,
                                               t->dtype, err);
    if (status != MR_OK) return status;
    const mr_panel_shape shape = mr_panel_shape_of(*format, matrix->n, matrix->k);
    status = need(data, model, matrix->name, shape.data_type, shape.data, err);
    if (status != MR_OK || shape.scales[0] == 0) return status;
    snprintf(name, sizeof(name), "%s.scales", matrix->name);
    return need(scales, model, name, shape.scale_type, shape.scales, err);
}

mr_status mr_panels_open(mr_packed *out, const mr_model *model, const mr_matrix *matrix,
                         mr_err *err) {
    const mr_tensor *data, *scales;
    mr_storage format;
    mr_packed packed = {.n = matrix->n, .k = matrix->k, .is_borrowed = true};
    *out = (mr_packed){0};
    mr_status status = mr_panels_find(&format, &data, &scales, model, matrix, err);
    if (status == MR_OK) status = mr_tensor_borrow(&packed.data, model, data, err);
    if (status == MR_OK && scales) status = mr_tensor_borrow(&packed.scales, model, scales, err);
    if (status != MR_OK) return status;
    packed.element = format.element;
    packed.block = format.block;
    *out = packed;
    return MR_OK;
}
