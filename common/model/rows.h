/* rows.h - rows of a tensor whatever it is stored as: as a row format (element.h), or as floats.
 *
 * A tensor is f32, bf16 or f16; or U8 [rows][mr_storage_bytes], a row format that config.json names
 * (quant_config.h); or F8_E4M3 [rows][columns] with a tensor of scales beside it, as Hugging Face
 * checkpoints have it: NAME_scale_inv or NAME_scale, [rows / 128][columns / 128], [rows][1],
 * [rows] or a single one. Here they all look alike. Threads: reading may go on anywhere. */
#ifndef MR_MODEL_ROWS_H
#define MR_MODEL_ROWS_H
#include "common/model/model.h"

/* Sets storage and scales of tensors[0, count), which are sorted by name: what their types and the
 * quantization say. A tensor of a type that holds no numbers here keeps columns 0. */
mr_status mr_tensors_classify(mr_tensor *tensors, uint32_t count, const mr_quant_config *q,
                              mr_err *err);
/* How many numbers a tensor of a checked model holds: none where it has the scales of another. */
uint64_t mr_tensor_numbers(const mr_tensor *tensor);

typedef struct {
    mr_mapping data, scales; /* scales: of an F8_E4M3 tensor, all of them */
    const mr_tensor *tensor;
    mr_storage storage; /* the format of the rows given out */
    uint64_t first, count;
    uint32_t columns;
    size_t stride; /* bytes from row to row in data */
    size_t row_bytes;
} mr_tensor_rows;

/* Rows [first, first + count) of a 2-D tensor that the model was checked to have. */
mr_status mr_tensor_rows_open(mr_tensor_rows *out, const mr_model *model, const mr_tensor *tensor,
                              uint64_t first, uint64_t count, mr_err *err);
void mr_tensor_rows_close(mr_tensor_rows *rows);
/* Row `row` (counted from first) in its row format: in the mapping, or put together in room
 * [row_bytes]. */
const uint8_t *mr_tensor_rows_at(const mr_tensor_rows *rows, uint64_t row, uint8_t *room);
/* The same as floats [columns]. */
void mr_tensor_rows_floats(float *out, const mr_tensor_rows *rows, uint64_t row);

/* The format that rows of both formats fit into with not a bit lost: the same; int8-block for int4
 * and int8-block; else f32. */
mr_storage mr_storage_common(mr_storage a, mr_storage b);
/* A row of one format in another that mr_storage_common gave for it; floats: room [columns]. */
void mr_row_widen(void *out, mr_storage to, const void *row, mr_storage from, uint32_t columns,
                  float *floats);

#endif
