/* quant_config.c - see quant_config.h. */
#include "common/model/quant_config.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

static mr_status read_type(mr_storage_type *out, const json_t *value, const char *what,
                           mr_err *err) {
    const char *name = json_string_value(value);
    if (!name)
        return mr_fail(err, MR_ERR_FORMAT, "field 'quantization_config': %.100s is %s, not a name",
                       what, mr_json_type_name(value));
    if (mr_storage_parse(out, name) == 0) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "field 'quantization_config': %.100s is '%.40s'; f32, bf16, f16, int8, "
                   "int8-block, int4, fp8 and fp8-block are implemented",
                   what, name);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const mr_quant_override *)a)->name, ((const mr_quant_override *)b)->name);
}

static mr_status read_overrides(mr_quant_config *c, json_t *object, mr_err *err) {
    const char *name;
    json_t *value;
    if (json_is_null(object)) return MR_OK;
    if (!json_is_object(object))
        return mr_fail(err, MR_ERR_FORMAT,
                       "field 'quantization_config': overrides is %s, not an object",
                       mr_json_type_name(object));
    if (json_object_size(object) > MR_MAX_TENSORS)
        return mr_fail(err, MR_ERR_LIMIT, "field 'quantization_config': at most %d overrides",
                       MR_MAX_TENSORS);
    c->overrides = mr_alloc_array(json_object_size(object) + 1, sizeof(*c->overrides));
    json_object_foreach(object, name, value) {
        mr_storage_type type;
        const mr_status status = read_type(&type, value, name, err);
        if (status != MR_OK) return status;
        c->overrides[c->override_count++] = (mr_quant_override){mr_strdup(name), type};
    }
    qsort(c->overrides, c->override_count, sizeof(*c->overrides), by_name);
    return MR_OK;
}

static mr_status read_all(mr_quant_config *c, json_t *object, mr_err *err) {
    const char *name, *method = "";
    json_t *value;
    if (!json_is_object(object))
        return mr_fail(err, MR_ERR_FORMAT, "field 'quantization_config' is %s, not an object",
                       mr_json_type_name(object));
    mr_status status = mr_json_string(&method, object, "quant_method", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "field 'quantization_config'");
    if (strcmp(method, "memrack") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': quant_method is '%.40s'; only 'memrack' is "
                       "implemented",
                       method);
    json_object_foreach(object, name, value) {
        if (strcmp(name, "weights") == 0)
            status = json_is_null(value) ? MR_OK : read_type(&c->weights, value, name, err);
        else if (strcmp(name, "tables") == 0)
            status = json_is_null(value) ? MR_OK : read_type(&c->tables, value, name, err);
        else if (strcmp(name, "overrides") == 0)
            status = read_overrides(c, value, err);
        else if (strcmp(name, "quant_method") != 0 && name[0] != '_')
            status = mr_fail(err, MR_ERR_UNSUPPORTED,
                             "field 'quantization_config': '%.100s' is not known here", name);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

mr_status mr_quant_config_parse(mr_quant_config *out, const json_t *root, mr_err *err) {
    json_t *object = json_object_get(root, "quantization_config");
    *out = (mr_quant_config){.weights = MR_STORE_COUNT, .tables = MR_STORE_COUNT};
    if (!object || json_is_null(object)) return MR_OK;
    const mr_status status = read_all(out, object, err);
    if (status != MR_OK) mr_quant_config_free(out);
    return status;
}

void mr_quant_config_free(mr_quant_config *config) {
    for (uint32_t i = 0; i < config->override_count; i++) free(config->overrides[i].name);
    free(config->overrides);
    *config = (mr_quant_config){.weights = MR_STORE_COUNT, .tables = MR_STORE_COUNT};
}

bool mr_tensor_is_table(const char *name) {
    static const char *const ends[] = {".values_for_look_up", ".pre_values_for_look_up",
                                       ".values.weight"};
    const size_t bytes = strlen(name);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        const size_t end = strlen(ends[i]);
        if (bytes > end && strcmp(name + bytes - end, ends[i]) == 0) return true;
    }
    return false;
}

mr_status mr_quant_config_storage(mr_storage *out, const mr_quant_config *config, const char *name,
                                  mr_dtype dtype, mr_err *err) {
    const mr_quant_override key = {.name = (char *)(uintptr_t)name};
    *out = (mr_storage){.element = MR_F32};
    switch (dtype) {
    case MR_DTYPE_F32:
        return MR_OK;
    case MR_DTYPE_BF16:
        out->element = MR_BF16;
        return MR_OK;
    case MR_DTYPE_F16:
        out->element = MR_F16;
        return MR_OK;
    case MR_DTYPE_U8:
        break;
    default:
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "tensor %.200s has type %s; F32, BF16, F16 and, with a "
                       "quantization_config, U8 are implemented",
                       name, mr_dtype_name(dtype));
    }
    const mr_quant_override *found =
        config->override_count
            ? bsearch(&key, config->overrides, config->override_count, sizeof(key), by_name)
            : NULL;
    const mr_storage_type type = found                      ? found->type
                                 : mr_tensor_is_table(name) ? config->tables
                                                            : config->weights;
    if (type == MR_STORE_COUNT)
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %.200s has type U8, but config.json's quantization_config does not "
                       "say how it is stored",
                       name);
    *out = mr_storage_of(type);
    if (out->block == 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %.200s has type U8, but config.json's quantization_config says %s",
                       name, mr_storage_name(type));
    return MR_OK;
}
