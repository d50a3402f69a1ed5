/* json.c - see json.h. jansson itself bounds nesting at 2048 and checks UTF-8; our own bound is
 * smaller, since nothing we read nests deeply. */
#include "common/base/json.h"

#include "common/base/file.h"
#include "common/base/limits.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool too_deep(const char *text, size_t bytes) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"')
            in_string = true;
        else if (c == '{' || c == '[') {
            if (++depth > MR_MAX_JSON_DEPTH) return true;
        } else if (c == '}' || c == ']')
            depth--;
    }
    return false;
}

mr_status mr_json_parse(json_t **out, const char *text, size_t bytes, const char *what,
                        mr_err *err) {
    json_error_t problem;
    *out = NULL;
    if (too_deep(text, bytes))
        return mr_fail(err, MR_ERR_FORMAT, "%s nests deeper than %d levels", what,
                       MR_MAX_JSON_DEPTH);
    *out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (!*out)
        return mr_fail(err, MR_ERR_FORMAT, "%s is not valid JSON: %s (line %d, column %d)", what,
                       problem.text, problem.line, problem.column);
    return MR_OK;
}

mr_status mr_json_load(json_t **out, const char *path, size_t bytes_max, mr_err *err) {
    char *text;
    size_t bytes;
    *out = NULL;
    mr_status status = mr_file_read(&text, &bytes, path, bytes_max, err);
    if (status != MR_OK) return status;
    status = mr_json_parse(out, text, bytes, path, err);
    free(text);
    return status;
}

const char *mr_json_type_name(const json_t *value) {
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number with a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

mr_status mr_json_int(int64_t *out, const json_t *object, const char *key, int64_t min, int64_t max,
                      mr_err *err) {
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return MR_OK;
    if (!json_is_integer(value))
        return mr_fail(err, MR_ERR_FORMAT, "%s must be an integer, not %s", key,
                       mr_json_type_name(value));
    const int64_t number = json_integer_value(value);
    if (number < min || number > max)
        return mr_fail(err, MR_ERR_RANGE, "%s is %lld; it must lie in [%lld, %lld]", key,
                       (long long)number, (long long)min, (long long)max);
    *out = number;
    return MR_OK;
}

mr_status mr_json_u32(uint32_t *out, const json_t *object, const char *key, uint32_t min,
                      uint32_t max, mr_err *err) {
    int64_t number = *out;
    const mr_status status = mr_json_int(&number, object, key, min, max, err);
    if (status == MR_OK) *out = (uint32_t)number;
    return status;
}

mr_status mr_json_double(double *out, const json_t *object, const char *key, double min, double max,
                         mr_err *err) {
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return MR_OK;
    if (!json_is_number(value))
        return mr_fail(err, MR_ERR_FORMAT, "%s must be a number, not %s", key,
                       mr_json_type_name(value));
    const double number = json_number_value(value);
    if (!(number >= min && number <= max))
        return mr_fail(err, MR_ERR_RANGE, "%s is %g; it must lie in [%g, %g]", key, number, min,
                       max);
    *out = number;
    return MR_OK;
}

mr_status mr_json_bool(bool *out, const json_t *object, const char *key, mr_err *err) {
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return MR_OK;
    if (!json_is_boolean(value))
        return mr_fail(err, MR_ERR_FORMAT, "%s must be true or false, not %s", key,
                       mr_json_type_name(value));
    *out = json_is_true(value);
    return MR_OK;
}

mr_status mr_json_string(const char **out, const json_t *object, const char *key, mr_err *err) {
    const json_t *value = json_object_get(object, key);
    if (!value || json_is_null(value)) return MR_OK;
    if (!json_is_string(value))
        return mr_fail(err, MR_ERR_FORMAT, "%s must be a string, not %s", key,
                       mr_json_type_name(value));
    if (strlen(json_string_value(value)) != json_string_length(value))
        return mr_fail(err, MR_ERR_FORMAT, "%s holds a NUL character", key);
    *out = json_string_value(value);
    return MR_OK;
}
