/* fuzz_safetensors.c - any bytes as a safetensors file: accepted whole or refused with a sentence.
 *
 * Input: 4 bytes (how many bytes of data follow those that are here, so that headers of large files
 * can be reached without large inputs), then the file's beginning. */
#include "common/model/safetensors.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    uint32_t more;
    mr_safetensors file;
    mr_err err = {{0}};
    if (bytes < sizeof(more)) return 0;
    memcpy(&more, data, sizeof(more));
    data += sizeof(more);
    bytes -= sizeof(more);
    const uint64_t file_bytes = (uint64_t)bytes + more;
    if (mr_safetensors_parse(&file, data, bytes, file_bytes, "input", &err) != MR_OK) {
        assert(strlen(err.text) > 0 && !file.tensors);
        return 0;
    }
    uint64_t at = file.data_start;
    for (uint32_t i = 0; i < file.count; i++) { /* no gap, no overlap, nothing outside */
        const mr_tensor *tensor = &file.tensors[i];
        uint64_t size = mr_dtype_bytes(tensor->dtype);
        assert(tensor->dims <= MR_MAX_TENSOR_DIMS);
        for (uint32_t d = 0; d < tensor->dims; d++) size *= tensor->shape[d];
        assert(tensor->offset == at && tensor->bytes == size);
        at += size;
    }
    assert(at == file_bytes);
    mr_safetensors_free(&file);
    return 0;
}
