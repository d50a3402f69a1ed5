/* pack.h - from tensors in files to what kernels read: packed panels and float vectors.
 * Tensor bytes are mapped for the copy only; storage types are kept (bf16 stays bf16). */
#ifndef MR_MODEL_PACK_H
#define MR_MODEL_PACK_H
#include "common/model/matrices.h"
#include "common/ops/packed.h"

/* What a matrix is packed as: its parts' format or, where they differ, one that has all of them
 * exactly (mr_storage_common). */
mr_storage mr_matrix_storage(const mr_model *model, const mr_matrix *matrix);
/* A whole matrix, its parts one after the other; of a packed model (panels.h) the panels as they
 * are mapped, until the model is closed. Freed with mr_packed_free. */
mr_status mr_pack_matrix(mr_packed *out, const mr_model *model, const mr_matrix *matrix,
                         mr_err *err);
/* From floats at(context, column n, input k); for matrices that are computed at load. */
typedef float (*mr_pack_source)(const void *context, uint32_t n, uint32_t k);
mr_status mr_pack_floats(mr_packed *out, uint32_t n, uint32_t k, mr_pack_source source,
                         const void *context, const char *what, mr_err *err);
void mr_packed_free(mr_packed *packed);

/* A vector as fp32; *out stays NULL where the model has no such vector. */
mr_status mr_load_vector(float **out, const mr_model *model, mr_vector_role role, uint32_t index,
                         mr_err *err);
/* All elements of a tensor as fp32. */
mr_status mr_load_floats(float **out, const mr_model *model, const char *name, mr_err *err);

#endif
