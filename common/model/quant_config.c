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

static bool is_text(const json_t *object, const char *key, const char *wanted) {
    const char *text = json_string_value(json_object_get(object, key));
    return text && strcmp(text, wanted) == 0;
}

static bool is_unset(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value) || json_is_false(value);
}

/* Hugging Face's fine-grained fp8: tiles of 128 x 128. */
static mr_status read_fp8(mr_quant_config *c, json_t *object, mr_err *err) {
    static const char *const known[] = {"quant_method",      "fmt",       "activation_scheme",
                                        "weight_block_size", "scale_fmt", "modules_to_not_convert",
                                        "ignored_layers",    "dequantize"};
    const json_t *block = json_object_get(object, "weight_block_size");
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) {
        bool is_known = json_is_null(value);
        for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
            is_known |= strcmp(name, known[i]) == 0;
        if (!is_known)
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "field 'quantization_config': '%.100s' is not known here", name);
    }
    if (!is_unset(object, "fmt") && !is_text(object, "fmt", "e4m3"))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': of fp8 only the fmt e4m3 is implemented");
    if (!is_unset(object, "activation_scheme") && !is_text(object, "activation_scheme", "dynamic"))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': activation_scheme must be dynamic");
    if (!is_unset(object, "weight_block_size") &&
        (json_array_size(block) != 2 || json_integer_value(json_array_get(block, 0)) != 128 ||
         json_integer_value(json_array_get(block, 1)) != 128))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': weight_block_size must be [128, 128]");
    c->has_fp8 = true;
    return MR_OK;
}

/* Of compressed-tensors the floats of 8 bits with a scale a row, a tensor or a tile. */
static mr_status read_compressed(mr_quant_config *c, const json_t *object, mr_err *err) {
    json_t *groups = json_object_get(object, "config_groups"), *group;
    const char *name;
    if (!is_text(object, "format", "float-quantized"))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': of compressed-tensors only the format "
                       "float-quantized is implemented");
    if (!is_unset(object, "kv_cache_scheme"))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': kv_cache_scheme is set; the KV cache is fp32");
    json_object_foreach(groups, name, group) {
        const json_t *weights = json_object_get(group, "weights");
        const json_t *inputs = json_object_get(group, "input_activations");
        if (!is_text(weights, "type", "float") ||
            json_integer_value(json_object_get(weights, "num_bits")) != 8)
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "field 'quantization_config': weights of %.60s are not floats of 8 bits",
                           name);
        if (json_is_object(inputs) && !json_is_true(json_object_get(inputs, "dynamic")))
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "field 'quantization_config': %.60s has static scales of inputs", name);
    }
    c->has_fp8 = true;
    return MR_OK;
}

static mr_status read_pack(mr_quant_config *c, json_t *object, mr_err *err) {
    const json_t *version = json_object_get(object, "version");
    const char *name;
    json_t *value;
    if (!object || json_is_null(object)) return MR_OK;
    json_object_foreach(object, name, value) {
        if (strcmp(name, "version") != 0)
            return mr_fail(err, MR_ERR_UNSUPPORTED, "field 'memrack_pack': '%.100s' is not known",
                           name);
    }
    if (!json_is_integer(version) || json_integer_value(version) != 1)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'memrack_pack': only version 1 of the panel layout is implemented; "
                       "convert the model again");
    c->is_packed = true;
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
    if (strcmp(method, "fp8") == 0) return read_fp8(c, object, err);
    if (strcmp(method, "compressed-tensors") == 0) return read_compressed(c, object, err);
    if (strcmp(method, "memrack") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'quantization_config': quant_method is '%.40s'; 'memrack', 'fp8' and "
                       "'compressed-tensors' are implemented",
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
    mr_status status = read_pack(out, json_object_get(root, "memrack_pack"), err);
    if (status == MR_OK && object && !json_is_null(object)) status = read_all(out, object, err);
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
