/* panels.h - matrices that are stored as the panels kernels read (config.json: memrack_pack),
 * mapped read-only instead of packed at load: a process holds one copy of its weights, shared with
 * every other one that maps the same files.
 *
 * The matrix NAME (matrices.h) is the tensor NAME, [panels][bytes of a panel], of type F32, BF16 or
 * F16 (then counted in elements) or U8 for codes, whose format quantization_config says under that
 * name; and NAME.scales [panels][blocks of K * 32], F16 where the blocks are of 32, else F32. Both
 * begin at multiples of 64 bytes of their file. What the panels hold is in ops.h at mr_packed. The
 * tensors a matrix would otherwise be made of are not there: the model has names and shapes for
 * them, and no bytes (MR_NO_FILE). The embedding stays a tensor of rows.
 * Threads: as model.h. */
#ifndef MR_MODEL_PANELS_H
#define MR_MODEL_PANELS_H
#include "common/model/matrices.h"
#include "common/ops/packed.h"

/* Rows and elements of a row of NAME's tensor, the same of NAME.scales (0 where there is none). An
 * odd number of panels whose bytes are no multiple of 64 has one more, unused. */
typedef struct {
    uint64_t data[2], scales[2];
    mr_dtype data_type, scale_type;
} mr_panel_shape;
mr_panel_shape mr_panel_shape_of(mr_storage format, uint32_t n, uint32_t k);

/* How a matrix of a packed model is stored; refuses tensors that are not there or not as they
 * should be. data, scales: its tensors; *scales is NULL where there is none. */
mr_status mr_panels_find(mr_storage *format, const mr_tensor **data, const mr_tensor **scales,
                         const mr_model *model, const mr_matrix *matrix, mr_err *err);
/* *out borrows from the model's mapping of the file, which lasts as long as the model. */
mr_status mr_panels_open(mr_packed *out, const mr_model *model, const mr_matrix *matrix,
                         mr_err *err);

#endif
