/* pack.h - from tensors in files to what kernels read: packed panels and float vectors.
 * Tensor bytes are mapped for the copy only; storage types are kept (bf16 stays bf16). */
#ifndef MR_MODEL_PACK_H
#define MR_MODEL_PACK_H
#include "common/model/model.h"
#include "common/ops/packed.h"

/* Rows [row_first, row_first + n) of a tensor [rows][k] as a matrix of n outputs. Freed with
 * mr_packed_free. Missing tensors were refused when the model was opened: asserts. */
mr_status mr_pack_rows(mr_packed *out, const mr_model *model, const char *name, uint64_t row_first,
                       uint32_t n, mr_err *err);
/* Rows [row_first, row_first + k) of a tensor [rows][n], used transposed: n outputs, k inputs. */
mr_status mr_pack_transposed(mr_packed *out, const mr_model *model, const char *name,
                             uint64_t row_first, uint32_t k, mr_err *err);
/* From floats at(context, column n, input k); for matrices that are computed at load. */
typedef float (*mr_pack_source)(const void *context, uint32_t n, uint32_t k);
mr_status mr_pack_floats(mr_packed *out, uint32_t n, uint32_t k, mr_pack_source source,
                         const void *context, const char *what, mr_err *err);
void mr_packed_free(mr_packed *packed);

/* All elements of a tensor as fp32. */
mr_status mr_load_floats(float **out, const mr_model *model, const char *name, mr_err *err);

#endif
