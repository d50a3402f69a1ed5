/* test_families.c - the Hugging Face families, below what the golden cases see.
 *
 * Goal: rotary frequencies are torch's; windows, end tokens and dense blocks are read as stated;
 * every tensor of a model is part of exactly one matrix or vector, whatever it is called, and what
 * is packed is what the file holds.
 * Method: numbers printed by transformers 5.23.0; every golden model. */
#include "common/base/mem.h"
#include "common/model/matrices.h"
#include "common/model/pack.h"
#include "common/model/rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZES                                                                                      \
    "\"hidden_size\": 32, \"intermediate_size\": 40, \"num_hidden_layers\": 3, "                   \
    "\"num_attention_heads\": 4, \"vocab_size\": 50, \"max_position_embeddings\": 131072, "

static mr_config parsed(const char *fields) {
    mr_config c;
    mr_err err = {{0}};
    char *json = mr_format("{" SIZES "%s}", fields);
    if (mr_config_parse(&c, json, strlen(json), "config.json", &err) != MR_OK)
        fail_msg("%s: %s", fields, err.text);
    free(json);
    return c;
}

static void refused(const char *fields, const char *word) {
    mr_config c;
    mr_err err = {{0}};
    char *json = mr_format("{" SIZES "%s}", fields);
    assert_int_not_equal(mr_config_parse(&c, json, strlen(json), "config.json", &err), MR_OK);
    if (!strstr(err.text, word)) fail_msg("'%s' lacks '%s'", err.text, word);
    free(json);
}

/* Every step-th frequency; one unit in the last place for torch's own power function. */
static void check_rope(const char *fields, uint32_t step, const float want[8]) {
    mr_config c = parsed(fields);
    float *found = mr_alloc_array(c.head_dim / 2, sizeof(*found));
    mr_config_rope(found, &c);
    for (uint32_t i = 0; i < 8; i++)
        if (fabsf(found[i * step] - want[i]) > want[i] * 1.2e-7f)
            fail_msg("frequency %u is %a, not %a", i * step, (double)found[i * step],
                     (double)want[i]);
    free(found);
    mr_config_free(&c);
}

static void test_rope(void **state) {
    (void)state;
    check_rope("\"model_type\": \"llama\", \"head_dim\": 16, \"rope_theta\": 500000.0", 1,
               (const float[8]){0x1p+0f, 0x1.8d276p-3f, 0x1.34119p-5f, 0x1.ddee9ep-8f,
                                0x1.72ba42p-10f, 0x1.1f91fp-12f, 0x1.be2188p-15f, 0x1.5a0f4ep-17f});
    check_rope("\"model_type\": \"llama\", \"head_dim\": 16, "
               "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 3.0}",
               1,
               (const float[8]){0x1.555556p-2f, 0x1.afc19ep-4f, 0x1.111112p-5f, 0x1.5967b2p-7f,
                                0x1.b4e81ap-9f, 0x1.1452f6p-10f, 0x1.5d867ep-12f, 0x1.ba1e56p-14f});
    check_rope("\"model_type\": \"llama\", \"head_dim\": 128, \"rope_parameters\": {\"rope_type\": "
               "\"llama3\", \"rope_theta\": 500000.0, \"factor\": 8.0, \"low_freq_factor\": 1.0, "
               "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}",
               8,
               (const float[8]){0x1p+0f, 0x1.8d276p-3f, 0x1.34119p-5f, 0x1.ddee9ep-8f,
                                0x1.132ba4p-11f, 0x1.1f91fp-15f, 0x1.be2188p-18f, 0x1.5a0f4ep-20f});
}

static void check_windows(const char *fields, const uint32_t want[3]) {
    mr_config c = parsed(fields);
    for (uint32_t b = 0; b < 3; b++) assert_int_equal(mr_config_window(&c, b), want[b]);
    mr_config_free(&c);
}

static void test_windows(void **state) {
    (void)state;
    check_windows("\"model_type\": \"mistral\", \"sliding_window\": 9",
                  (const uint32_t[]){9, 9, 9});
    check_windows("\"model_type\": \"mistral\", \"sliding_window\": null",
                  (const uint32_t[]){0, 0, 0});
    check_windows("\"model_type\": \"qwen2\", \"sliding_window\": 9, \"max_window_layers\": 1",
                  (const uint32_t[]){0, 0, 0});
    check_windows("\"model_type\": \"qwen2\", \"use_sliding_window\": true, \"sliding_window\": 9, "
                  "\"max_window_layers\": 1",
                  (const uint32_t[]){0, 9, 9});
    check_windows("\"model_type\": \"qwen3\", \"use_sliding_window\": true, \"sliding_window\": 9, "
                  "\"max_window_layers\": 1, \"layer_types\": [\"sliding_attention\", "
                  "\"full_attention\", \"sliding_attention\"]",
                  (const uint32_t[]){9, 0, 9});
    refused("\"model_type\": \"qwen2\", \"layer_types\": [\"full_attention\"]", "layer_types");
    refused("\"model_type\": \"llama\", \"sliding_window\": 9", "sliding_window");
    refused("\"model_type\": \"mistral\", \"sliding_window\": 0", "sliding_window");
}

static void test_fields(void **state) {
    (void)state;
    mr_config c = parsed("\"model_type\": \"llama\", \"eos_token_id\": [7, 9, 3]");
    assert_int_equal(c.eos_count, 3);
    assert_int_equal(c.eos_token, 7);
    assert_int_equal(c.eos_tokens[2], 3);
    assert_false(c.tied || c.qkv_bias || c.norm_after);
    mr_config_free(&c);
    c = parsed("\"model_type\": \"qwen3\"");
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.query_width, 512);
    mr_config_free(&c);
    c = parsed(
        "\"model_type\": \"qwen3_moe\", \"num_local_experts\": 4, \"num_experts_per_tok\": 2, "
        "\"moe_intermediate_size\": 8, \"decoder_sparse_step\": 2");
    assert_true(mr_config_is_moe(&c, 1));
    assert_false(mr_config_is_moe(&c, 0) || mr_config_is_moe(&c, 2));
    mr_config_free(&c);
    refused("\"model_type\": \"gemma2\"", "gemma2");
    refused("\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2}",
            "yarn");
}

/* Packed numbers are the file's, at the corners of every part. */
static void check_packed(const mr_model *model, const mr_matrix *matrix) {
    mr_packed packed;
    mr_err err = {{0}};
    uint32_t n = 0;
    assert_int_equal(mr_pack_matrix(&packed, model, matrix, &err), MR_OK);
    assert_int_equal(packed.n, matrix->n);
    assert_int_equal(packed.k, matrix->k);
    for (uint32_t i = 0; i < matrix->part_count; i++) {
        const mr_matrix_part *part = &matrix->parts[i];
        const uint32_t columns = (uint32_t)part->tensor->columns;
        mr_tensor_rows rows;
        assert_int_equal(
            mr_tensor_rows_open(&rows, model, part->tensor, part->row_first, part->rows, &err),
            MR_OK);
        float *floats = mr_alloc_array(columns, sizeof(*floats));
        for (uint32_t row = 0; row<part->rows; row += part->rows> 1 ? part->rows - 1 : 1) {
            mr_tensor_rows_floats(floats, &rows, row);
            for (uint32_t c = 0; c < columns; c += columns - 1) {
                const float found = part->transposed ? mr_packed_at(&packed, n + c, row)
                                                     : mr_packed_at(&packed, n + row, c);
                if (found != floats[c]) fail_msg("%s: part %u differs", matrix->name, i);
            }
        }
        free(floats);
        mr_tensor_rows_close(&rows);
        n += part->transposed ? columns : part->rows;
    }
    mr_packed_free(&packed);
}

/* Rows of each tensor that some matrix or vector has. */
static uint64_t rows_used(const mr_model *model, const mr_tensor *t) {
    uint64_t rows = 0;
    for (mr_matrix_id id = {0}; mr_matrix_next(model, &id);) {
        mr_matrix matrix;
        mr_matrix_of(&matrix, model, id);
        for (uint32_t i = 0; i < matrix.part_count; i++)
            if (matrix.parts[i].tensor == t) rows += matrix.parts[i].rows;
    }
    for (mr_vector_role role = MR_VECTOR_ATTN_NORM; role <= MR_VECTOR_VALUE_BIAS; role++)
        for (uint32_t i = 0; i < mr_model_config(model)->n_layers; i++) {
            const mr_tensor *parts[MR_VECTOR_PARTS_MAX];
            const bool memory = role >= MR_VECTOR_QUERY_BIAS;
            const uint32_t most = memory                         ? mr_model_memory_count(model)
                                  : role == MR_VECTOR_FINAL_NORM ? 1
                                                                 : UINT32_MAX;
            const uint32_t count = i < most ? mr_vector_of(parts, model, role, i) : 0;
            for (uint32_t p = 0; p < count; p++)
                if (parts[p] == t) rows += t->shape[0];
        }
    return rows;
}

static void check_model(const char *name) {
    char *path = mr_format("%s/tests/golden/%s", MR_SOURCE_DIR, name);
    mr_model *model;
    mr_err err = {{0}};
    if (mr_model_open(&model, path, &err) != MR_OK) fail_msg("%s", err.text);
    for (mr_matrix_id id = {0}; mr_matrix_next(model, &id);) {
        mr_matrix matrix;
        mr_matrix_of(&matrix, model, id);
        check_packed(model, &matrix);
    }
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        const bool tied = mr_model_config(model)->tied;
        uint32_t index;
        bool is_memory;
        const mr_tensor_kind kind = mr_tensor_kind_of(&index, &is_memory, t->name);
        if (kind == MR_TENSOR_KEYS || kind == MR_TENSOR_SHUFFLE || mr_tensor_is_table(t->name) ||
            strstr(t->name, "tucker") || strstr(t->name, "keys_norm"))
            continue;
        const uint64_t want = kind == MR_TENSOR_EMBEDDING && !tied ? 0 : t->shape[0];
        if (rows_used(model, t) != want) fail_msg("%s: %s", name, t->name);
    }
    mr_model_close(model);
    free(path);
}

static void test_matrices(void **state) {
    (void)state;
    uint32_t count = 0;
    DIR *golden = opendir(MR_SOURCE_DIR "/tests/golden");
    assert_non_null(golden);
    for (struct dirent *entry; (entry = readdir(golden));) {
        if (strchr(entry->d_name, '.') || strcmp(entry->d_name, "__pycache__") == 0) continue;
        check_model(entry->d_name);
        count++;
    }
    closedir(golden);
    assert_true(count >= 26);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_matrices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
