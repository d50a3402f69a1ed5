/* quant_config.h - "quantization_config" of config.json: how the tensors of a model are stored.
 *
 *   "quantization_config": {"quant_method": "memrack", "weights": T, "tables": T,
 *                           "overrides": {TENSOR: T, ..}}
 *
 * T is a name of mr_storage_type. A tensor of F32, BF16 or F16 is what its file says. Numbers with
 * scales are U8 tensors, [rows][mr_storage_bytes(T, columns)]: what T is stands here, in overrides
 * under the tensor's name, else in "tables" for the tables of memory layers (mr_tensor_is_table)
 * and in "weights" for all others. A config.json without the field has no such tensors.
 *
 * Of other people's methods two are read: "fp8" and compressed-tensors' "float-quantized", F8_E4M3
 * tensors with their scales in a tensor beside them (rows.h). Anything else is refused by name.
 *
 *   "memrack_pack": {"version": 1}
 *
 * says that matrices are stored as panels (panels.h), T under their names in the same way. */
#ifndef MR_MODEL_QUANT_CONFIG_H
#define MR_MODEL_QUANT_CONFIG_H
#include "common/base/json.h"
#include "common/model/dtype.h"

typedef struct {
    char *name; /* owned */
    mr_storage_type type;
} mr_quant_override;

typedef struct {
    mr_storage_type weights, tables; /* MR_STORE_COUNT: not given */
    mr_quant_override *overrides;    /* [override_count], owned, by name */
    uint32_t override_count;
    bool has_fp8;   /* F8_E4M3 tensors have their scales beside them */
    bool is_packed; /* memrack_pack */
} mr_quant_config;

/* root: all of config.json. *out is empty after a failure. */
mr_status mr_quant_config_parse(mr_quant_config *out, const json_t *root, mr_err *err);
void mr_quant_config_free(mr_quant_config *config);

/* Value and pre-value tables of every kind of memory layer, by the end of their name. */
bool mr_tensor_is_table(const char *name);

/* How a tensor is stored. Types that numbers are not stored as are MR_ERR_UNSUPPORTED, a U8 tensor
 * that config.json says nothing of MR_ERR_FORMAT. */
mr_status mr_quant_config_storage(mr_storage *out, const mr_quant_config *config, const char *name,
                                  mr_dtype dtype, mr_err *err);

#endif
