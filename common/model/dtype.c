/* dtype.c - one row per storage type. */
#include "common/model/dtype.h"

static const struct {
    const char *name;
    uint32_t bytes;
} types[MR_DTYPE_COUNT] = {
    [MR_DTYPE_BOOL] = {"BOOL", 1},       [MR_DTYPE_U8] = {"U8", 1},
    [MR_DTYPE_I8] = {"I8", 1},           [MR_DTYPE_I16] = {"I16", 2},
    [MR_DTYPE_U16] = {"U16", 2},         [MR_DTYPE_F16] = {"F16", 2},
    [MR_DTYPE_BF16] = {"BF16", 2},       [MR_DTYPE_I32] = {"I32", 4},
    [MR_DTYPE_U32] = {"U32", 4},         [MR_DTYPE_F32] = {"F32", 4},
    [MR_DTYPE_F64] = {"F64", 8},         [MR_DTYPE_I64] = {"I64", 8},
    [MR_DTYPE_U64] = {"U64", 8},         [MR_DTYPE_F8_E4M3] = {"F8_E4M3", 1},
    [MR_DTYPE_F8_E5M2] = {"F8_E5M2", 1},
};

const char *mr_dtype_name(mr_dtype dtype) {
    return types[dtype].name;
}
uint32_t mr_dtype_bytes(mr_dtype dtype) {
    return types[dtype].bytes;
}

int mr_dtype_parse(mr_dtype *out, const char *name) {
    for (int i = 0; i < MR_DTYPE_COUNT; i++)
        if (strcmp(types[i].name, name) == 0) {
            *out = (mr_dtype)i;
            return 0;
        }
    return -1;
}

int mr_dtype_element(mr_element *out, mr_dtype dtype) {
    if (dtype == MR_DTYPE_F32)
        *out = MR_F32;
    else if (dtype == MR_DTYPE_BF16)
        *out = MR_BF16;
    else if (dtype == MR_DTYPE_F16)
        *out = MR_F16;
    else
        return -1;
    return 0;
}
