/* safetensors.h - the header of a safetensors file, read as hostile input.
 *
 * A file is: u64 header length, a JSON object {name: {dtype, shape, data_offsets}}, data. As in the
 * official reader the tensors must cover the data exactly: no gap, no overlap, nothing left over.
 * All sizes are 64-bit and every sum and product is checked before it is used. */
#ifndef MR_MODEL_SAFETENSORS_H
#define MR_MODEL_SAFETENSORS_H
#include "common/model/model.h"

typedef struct {
    mr_tensor *tensors; /* [count], sorted by offset; names owned; .file is 0 */
    uint32_t count;
    uint64_t data_start; /* where the data begins in the file */
} mr_safetensors;

/* head: the first head_bytes bytes of a file of file_bytes bytes; must hold the whole header (8 +
 * the length in it). what names the file in sentences. */
mr_status mr_safetensors_parse(mr_safetensors *out, const uint8_t *head, uint64_t head_bytes,
                               uint64_t file_bytes, const char *what, mr_err *err);
/* Reads the header of a file and parses it; header_digest (may be NULL) adds the header's bytes. */
mr_status mr_safetensors_open(mr_safetensors *out, const char *path, mr_sha256 *header_digest,
                              mr_err *err);
void mr_safetensors_free(mr_safetensors *file);

#endif
