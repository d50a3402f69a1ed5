/* config_impl.h - what the readers of the official and of Hugging Face configurations share.
 * Internal to common/model/config*.c. */
#ifndef MR_MODEL_CONFIG_IMPL_H
#define MR_MODEL_CONFIG_IMPL_H
#include "common/base/json.h"
#include "common/model/config.h"

bool mr_config_is_named(const char *name, const char *const *list, size_t count);
/* The field must be there and not null. */
mr_status mr_config_need_u32(uint32_t *out, const json_t *root, const char *key, uint32_t min,
                             uint32_t max, mr_err *err);
/* Refuses by name what is set and not known. */
mr_status mr_config_check_unknown(const json_t *root, bool (*is_known)(const char *name),
                                  mr_err *err);
/* config_hf.c: a configuration with model_type. */
mr_status mr_config_read_hf(mr_config *c, const json_t *root, mr_err *err);

#endif
