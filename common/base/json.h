/* json.h - reading untrusted JSON with jansson: depth bounded before parsing, duplicate keys
 * refused, and typed getters whose error names the key, what was found and what was expected.
 *
 * Conventions of the getters: a missing key, or null where the word "default" applies, leaves *out
 * at its previous value and returns MR_OK; a wrong type or a number outside [min, max] is
 * MR_ERR_FORMAT / MR_ERR_RANGE with a sentence. Integers must be JSON integers (5.0 is refused). */
#ifndef MR_BASE_JSON_H
#define MR_BASE_JSON_H
#include "common/base/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* what: how the text is called in the sentence ("config.json"). *out is owned: json_decref. */
mr_status mr_json_parse(json_t **out, const char *text, size_t bytes, const char *what,
                        mr_err *err);
mr_status mr_json_load(json_t **out, const char *path, size_t bytes_max, mr_err *err);

mr_status mr_json_int(int64_t *out, const json_t *object, const char *key, int64_t min, int64_t max,
                      mr_err *err);
mr_status mr_json_u32(uint32_t *out, const json_t *object, const char *key, uint32_t min,
                      uint32_t max, mr_err *err);
mr_status mr_json_double(double *out, const json_t *object, const char *key, double min, double max,
                         mr_err *err); /* integers are welcome too; never NaN or infinite */
mr_status mr_json_bool(bool *out, const json_t *object, const char *key, mr_err *err);
mr_status mr_json_string(const char **out, const json_t *object, const char *key,
                         mr_err *err); /* borrowed from object */

const char *mr_json_type_name(const json_t *value); /* "a string", "null", ... */

#endif
