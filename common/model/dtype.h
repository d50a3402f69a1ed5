/* dtype.h - storage types of tensors, under safetensors' names. */
#ifndef MR_MODEL_DTYPE_H
#define MR_MODEL_DTYPE_H
#include "common/ops/element.h"

/* Everything a safetensors file may declare; rows.h has what numbers are stored as. */
typedef enum {
    MR_DTYPE_BOOL,
    MR_DTYPE_U8,
    MR_DTYPE_I8,
    MR_DTYPE_I16,
    MR_DTYPE_U16,
    MR_DTYPE_F16,
    MR_DTYPE_BF16,
    MR_DTYPE_I32,
    MR_DTYPE_U32,
    MR_DTYPE_F32,
    MR_DTYPE_F64,
    MR_DTYPE_I64,
    MR_DTYPE_U64,
    MR_DTYPE_F8_E4M3,
    MR_DTYPE_F8_E5M2,
    MR_DTYPE_COUNT
} mr_dtype;

const char *mr_dtype_name(mr_dtype dtype);
uint32_t mr_dtype_bytes(mr_dtype dtype);
int mr_dtype_parse(mr_dtype *out, const char *name);   /* 0, or -1 when unknown */
int mr_dtype_element(mr_element *out, mr_dtype dtype); /* 0, or -1: no float */

#endif
