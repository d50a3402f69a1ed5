/* fuzz_gguf.c - any bytes as a GGUF file: what is accepted can be walked, planned and described.
 *
 * Input: 4 bytes (how many bytes follow those that are here, so that the headers of large models
 * can be reached without large inputs), then the file's beginning. */
#include "common/model/gguf_import_impl.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void walk_values(mr_gguf *file) {
    for (uint32_t i = 0; i < mr_gguf_value_count(file); i++) {
        const mr_gguf_value *value = mr_gguf_value_at(file, i);
        mr_gguf_cursor cursor;
        assert(mr_gguf_find(file, value->key) == value);
        if (value->kind != MR_GGUF_ARRAY) continue;
        mr_gguf_items_begin(&cursor, file, value);
        for (uint64_t k = 0; k < value->count; k++) {
            const char *text;
            size_t length;
            double number;
            const mr_status status = value->item == MR_GGUF_TEXT
                                         ? mr_gguf_next_text(&cursor, &text, &length, 1 << 20, NULL)
                                         : mr_gguf_next_number(&cursor, &number, NULL);
            if (status != MR_OK) break; /* beyond the bytes that are here, or too long */
        }
        mr_gguf_items_end(&cursor);
    }
}

static void walk_tensors(mr_gguf *file, uint64_t file_bytes) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < mr_gguf_tensor_count(file); i++) { /* no overlap, nothing outside */
        const mr_gguf_tensor *t = mr_gguf_tensor_at(file, i);
        uint64_t elements = 1;
        for (uint32_t d = 0; d < t->dims; d++) elements *= t->shape[d];
        assert(t->dims >= 1 && elements % t->format->elements == 0);
        assert(t->bytes == elements / t->format->elements * t->format->bytes);
        assert(t->offset >= at && t->offset <= file_bytes && t->bytes <= file_bytes - t->offset);
        assert(mr_gguf_find_tensor(file, t->name) == t);
        at = t->offset + t->bytes;
    }
}

static void plan(mr_gguf *file) {
    gguf_model model;
    gguf_plan made;
    gguf_tokenizer tokenizer;
    mr_err err = {{0}};
    if (gguf_model_read(&model, file, &err) != MR_OK) {
        assert(strlen(err.text) > 0);
        model =
            (gguf_model){.vocab = 1 << 16, .context = 1}; /* the tokenizer is read all the same */
    } else if (gguf_plan_make(&made, &model, file, MR_IMPORT_KEEP, &err) == MR_OK) {
        json_t *config = gguf_model_config(&model, file);
        gguf_plan_describe(&made, config);
        json_decref(config);
        gguf_plan_free(&made);
    } else
        assert(strlen(err.text) > 0);
    if (gguf_tokenizer_read(&tokenizer, file, &model, false, &err) == MR_OK)
        assert(tokenizer.tokenizer && tokenizer.generation_config);
    gguf_tokenizer_free(&tokenizer);
    gguf_model_free(&model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    uint32_t more;
    mr_gguf *file;
    mr_err err = {{0}};
    if (bytes < sizeof(more)) return 0;
    memcpy(&more, data, sizeof(more));
    data += sizeof(more);
    bytes -= sizeof(more);
    if (mr_gguf_parse(&file, data, bytes, (uint64_t)bytes + more, "input", &err) != MR_OK) {
        assert(strlen(err.text) > 0 && !file);
        return 0;
    }
    walk_values(file);
    walk_tensors(file, (uint64_t)bytes + more);
    plan(file);
    mr_gguf_close(file);
    return 0;
}
