/* logits_io.c - see logits_io.h. */
#include "cli/logits_io.h"

#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/safetensors.h"

#include <stdlib.h>
#include <string.h>

static const mr_tensor *find(const mr_safetensors *file, const char *name) {
    for (uint32_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

static mr_status check_ids(mr_id_matrix *ids, const char *path, uint32_t id_count, mr_err *err) {
    const size_t count = (size_t)ids->batch * ids->tokens;
    for (size_t i = 0; id_count && i < count; i++)
        if (ids->ids[i] < 0 || ids->ids[i] >= id_count)
            return mr_fail(err, MR_ERR_RANGE, "%s: input_ids[%zu][%zu] is %lld, outside [0, %u)",
                           path, i / ids->tokens, i % ids->tokens, (long long)ids->ids[i],
                           id_count);
    return MR_OK;
}

mr_status mr_ids_read(mr_id_matrix *out, const char *path, uint32_t id_count, uint32_t context,
                      mr_err *err) {
    mr_safetensors file;
    mr_file_map map = {0};
    *out = (mr_id_matrix){0};
    mr_status status = mr_safetensors_open(&file, path, NULL, err);
    if (status != MR_OK) return status;
    const mr_tensor *t = find(&file, "input_ids");
    if (!t)
        status = mr_fail(err, MR_ERR_FORMAT, "%s holds no tensor input_ids", path);
    else if (t->dtype != MR_DTYPE_I64 || t->dims != 2)
        status = mr_fail(err, MR_ERR_FORMAT,
                         "%s: input_ids is %s with %u dimensions, expected I64 [B,T]", path,
                         mr_dtype_name(t->dtype), t->dims);
    else if (t->shape[0] < 1 || t->shape[1] < 1 || t->shape[0] > 1u << 20)
        status = mr_fail(err, MR_ERR_RANGE,
                         "%s: input_ids has shape [%llu, %llu]: nothing to compute, or too much",
                         path, (unsigned long long)t->shape[0], (unsigned long long)t->shape[1]);
    else if (t->shape[1] > context)
        status = mr_fail(err, MR_ERR_RANGE,
                         "%s: input_ids has %llu tokens a row; the model's context is %u", path,
                         (unsigned long long)t->shape[1], context);
    if (status == MR_OK) status = mr_file_map_open(&map, path, err);
    if (status == MR_OK && map.bytes < t->offset + t->bytes)
        status = mr_fail(err, MR_ERR_IO, "%s became shorter while being read", path);
    if (status == MR_OK) {
        out->batch = (uint32_t)t->shape[0];
        out->tokens = (uint32_t)t->shape[1];
        out->ids = mr_alloc((size_t)t->bytes);
        memcpy(out->ids, map.data + t->offset, (size_t)t->bytes);
        status = check_ids(out, path, id_count, err);
    }
    mr_file_map_close(&map);
    mr_safetensors_free(&file);
    if (status != MR_OK) mr_ids_free(out);
    return status;
}

void mr_ids_free(mr_id_matrix *ids) {
    free(ids->ids);
    *ids = (mr_id_matrix){0};
}

mr_status mr_tensor_digest(mr_digest *out, const char *path, const char *tensor, mr_err *err) {
    mr_safetensors file;
    mr_file_map map;
    mr_status status = mr_safetensors_open(&file, path, NULL, err);
    if (status != MR_OK) return status;
    const mr_tensor *t = find(&file, tensor);
    if (!t)
        status = mr_fail(err, MR_ERR_FORMAT, "%s holds no tensor %s", path, tensor);
    else
        status = mr_file_map_open(&map, path, err);
    if (status == MR_OK) {
        *out = mr_sha256_of(map.data + t->offset, (size_t)t->bytes);
        mr_file_map_close(&map);
    }
    mr_safetensors_free(&file);
    return status;
}
