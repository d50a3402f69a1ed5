/* config_common.c - see config_impl.h; and names and frequencies that follow from a configuration.
 */
#include "common/model/config_impl.h"

#include "common/ops/dense.h"
#include "common/ops/math.h"

#include <string.h>

bool mr_config_is_named(const char *name, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, list[i]) == 0) return true;
    return false;
}

mr_status mr_config_need_u32(uint32_t *out, const json_t *root, const char *key, uint32_t min,
                             uint32_t max, mr_err *err) {
    const json_t *value = json_object_get(root, key);
    if (!value || json_is_null(value))
        return mr_fail(err, MR_ERR_FORMAT, "field '%s' is missing", key);
    return mr_json_u32(out, root, key, min, max, err);
}

mr_status mr_config_check_unknown(const json_t *root, bool (*is_known)(const char *name),
                                  mr_err *err) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)root, name, value) {
        if (is_known(name) || json_is_null(value) || json_is_false(value)) continue;
        return mr_fail(
            err, MR_ERR_UNSUPPORTED,
            "field '%.100s' is not known here and might change the answers; remove it if "
            "it does not",
            name);
    }
    return MR_OK;
}

/* --- rotary frequencies ----------------------------------------------------------------------- */

/* In fp32, operation by operation as torch does it: a number divided by a tensor is the tensor's
 * reciprocal times the number. */
static float plain_frequency(uint32_t j, uint32_t dim, double log_theta) {
    const float exponent = (float)(2 * j) / (float)dim;
    const float power = (float)mr_exp_double((double)exponent * log_theta);
    return 1.0f / power;
}

static float llama3_frequency(float plain, const mr_rope_scaling *s) {
    const float factor = (float)s->factor;
    const float wavelength = 1.0f / plain * (float)6.283185307179586;
    if (wavelength > (float)(s->original_context / s->low)) return plain / factor;
    if (wavelength < (float)(s->original_context / s->high)) return plain;
    const float smooth = (1.0f / wavelength * (float)s->original_context - (float)s->low) /
                         (float)(s->high - s->low);
    return (1.0f - smooth) * plain / factor + smooth * plain;
}

void mr_config_rope(float *frequency, const mr_config *c) {
    if (c->family == MR_FAMILY_OFFICIAL) {
        mr_rope_frequencies(frequency, c->head_dim, c->rope_theta);
        return;
    }
    const double log_theta = mr_ln((double)(float)c->rope_theta);
    for (uint32_t j = 0; j < c->head_dim / 2; j++) {
        frequency[j] = plain_frequency(j, c->head_dim, log_theta);
        if (c->rope_scaling.kind == MR_ROPE_LINEAR)
            frequency[j] = frequency[j] / (float)c->rope_scaling.factor;
        if (c->rope_scaling.kind == MR_ROPE_LLAMA3)
            frequency[j] = llama3_frequency(frequency[j], &c->rope_scaling);
    }
}
