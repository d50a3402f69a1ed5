/* Goal: what a GGUF file holds comes out as it went in, and a bad file gets one sentence.
 * Method: every block type against the values the gguf package gives; tiny models that the
 * transformers package made, written as llama.cpp's converter does, whose every tensor and field
 * must come back; headers spoiled one thing at a time. tests/gguf/make_expected.py made the files.
 */
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/gguf.h"
#include "common/model/gguf_import_impl.h"
#include "common/model/safetensors.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FOLDER MR_SOURCE_DIR "/tests/gguf/"

static char folder[64]; /* of this process, for outputs */

static uint8_t *tensor_bytes(const char *path, const mr_tensor *t) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    uint8_t *data = mr_alloc(t->bytes + 1);
    assert_int_equal(fseek(file, (long)t->offset, SEEK_SET), 0);
    assert_int_equal(fread(data, 1, t->bytes, file), t->bytes);
    fclose(file);
    return data;
}

static const mr_tensor *find(const mr_safetensors *file, const char *name) {
    for (uint32_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

/* --- blocks ----------------------------------------------------------------------------------- */

static void test_blocks_have_the_values_of_the_format(void **state) {
    (void)state;
    mr_gguf *file;
    mr_safetensors expected;
    mr_err err = {{0}};
    const char *path = FOLDER "blocks.expected.safetensors";
    assert_int_equal(mr_gguf_open(&file, FOLDER "blocks.gguf", &err), MR_OK);
    assert_int_equal(mr_safetensors_open(&expected, path, NULL, &err), MR_OK);
    assert_int_equal(mr_gguf_tensor_count(file), 17);
    for (uint32_t i = 0; i < mr_gguf_tensor_count(file); i++) {
        const mr_gguf_tensor *t = mr_gguf_tensor_at(file, i);
        const mr_tensor *e = find(&expected, t->name);
        assert_non_null(e);
        assert_string_equal(t->format->name, t->name);
        const uint64_t blocks = t->bytes / t->format->bytes, count = blocks * t->format->elements;
        assert_int_equal(e->bytes, count * 4);
        uint8_t *raw = mr_alloc(t->bytes), *wanted = tensor_bytes(path, e);
        float *values = mr_alloc(count * 4);
        assert_int_equal(mr_gguf_read(file, t, 0, raw, t->bytes, &err), MR_OK);
        mr_block_decode(values, t->format, raw, blocks);
        for (uint64_t k = 0; k < count; k++)
            if (memcmp(values + k, wanted + 4 * k, 4) != 0)
                fail_msg("%s: element %llu is %a", t->name, (unsigned long long)k, values[k]);
        free(values);
        free(wanted);
        free(raw);
    }
    mr_safetensors_free(&expected);
    mr_gguf_close(file);
}

/* --- models ----------------------------------------------------------------------------------- */

static mr_status import(const char *name, const char *out, mr_import_dtype dtype, bool tokenizer,
                        mr_import_report *report, mr_err *err) {
    char *file = mr_format(FOLDER "%s.gguf", name);
    const mr_import_options options = {
        .file = file, .directory = out, .dtype = dtype, .no_tokenizer = !tokenizer};
    const mr_status status = mr_gguf_import(&options, report, err);
    free(file);
    return status;
}

static json_t *load_json(const char *directory, const char *name) {
    json_t *root;
    mr_err err = {{0}};
    char *path = mr_format("%s/%s", directory, name);
    if (mr_json_load(&root, path, 64 << 20, &err) != MR_OK) fail_msg("%s", err.text);
    free(path);
    return root;
}

/* As f32, if it is a float tensor. *bytes: of what comes back. */
static uint8_t *as_f32(uint8_t *data, const mr_tensor *t, uint64_t *bytes) {
    *bytes = t->bytes;
    if (t->dtype == MR_DTYPE_F32 || t->dtype == MR_DTYPE_U8) return data;
    const mr_block_format *format = mr_block_find(t->dtype == MR_DTYPE_F16 ? 1 : 30);
    float *values = mr_alloc(t->bytes * 2);
    mr_block_decode(values, format, data, t->bytes / 2);
    free(data);
    *bytes = t->bytes * 2;
    return (uint8_t *)values;
}

static void check_tensor(const char *model, const char *path, const mr_tensor *t,
                         const json_t *expected, bool kept) {
    char text[MR_DIGEST_TEXT_BYTES];
    uint64_t bytes;
    const json_t *shape = json_object_get(expected, "shape");
    if (kept &&
        strcmp(mr_dtype_name(t->dtype), json_string_value(json_object_get(expected, "dtype"))) != 0)
        fail_msg("%s: %s is %s", model, t->name, mr_dtype_name(t->dtype));
    assert_int_equal(t->dims, json_array_size(shape));
    for (uint32_t i = 0; i < t->dims; i++)
        if ((json_int_t)t->shape[i] != json_integer_value(json_array_get(shape, i)))
            fail_msg("%s: %s: dimension %u is %llu", model, t->name, i,
                     (unsigned long long)t->shape[i]);
    uint8_t *data = as_f32(tensor_bytes(path, t), t, &bytes);
    const mr_digest digest = mr_sha256_of(data, bytes);
    free(data);
    mr_digest_text(&digest, text);
    if (strcmp(text, json_string_value(json_object_get(expected, "sha256"))) != 0)
        fail_msg("%s: %s has other values", model, t->name);
}

static void check_config(const char *model, const json_t *config, const json_t *expected) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)expected, key, value) {
        const json_t *found = json_object_get(config, key);
        if (strcmp(key, "max_position_embeddings") == 0) assert_non_null(found);
        bool same = found && json_equal(found, value);
        if (json_is_number(value) && json_is_number(found))
            same = fabs(json_number_value(value) - json_number_value(found)) <=
                   1e-6 * fabs(json_number_value(value));
        if (json_is_object(value) && json_is_object(found)) {
            check_config(model, found, value);
            same = json_object_size(found) == json_object_size(value);
        }
        if (!same) fail_msg("%s: config.json: %s differs", model, key);
    }
}

static void check_model(const char *name, mr_import_dtype dtype) {
    char *out = mr_format("%s/%s-%d", folder, name, dtype);
    char *path = mr_format("%s/model.safetensors", out);
    char *expected_name = mr_format("%s.expected.json", name);
    mr_import_report report;
    mr_err err = {{0}};
    mr_safetensors file;
    if (import(name, out, dtype, false, &report, &err) != MR_OK) fail_msg("%s", err.text);
    json_t *expected = load_json(FOLDER, expected_name);
    const json_t *tensors = json_object_get(expected, "tensors");
    assert_int_equal(mr_safetensors_open(&file, path, NULL, &err), MR_OK);
    assert_int_equal(file.count, json_object_size(tensors));
    assert_int_equal(report.tensors, file.count);
    assert_int_equal(report.rounded_tensors, 0);
    for (uint32_t i = 0; i < file.count; i++) {
        const json_t *entry = json_object_get(tensors, file.tensors[i].name);
        if (!entry) fail_msg("%s: %s is not a tensor of it", name, file.tensors[i].name);
        check_tensor(name, path, &file.tensors[i], entry, dtype == MR_IMPORT_KEEP);
    }
    json_t *config = load_json(out, "config.json");
    check_config(name, config, json_object_get(expected, "config"));
    json_decref(config);
    json_decref(expected);
    mr_safetensors_free(&file);
    free(expected_name);
    free(path);
    free(out);
}

static void test_models_come_back_as_they_were(void **state) {
    (void)state;
    static const char *const names[] = {
        "llama2", "llama3", "llama_linear_bias", "mistral", "mixtral", "qwen2", "qwen3", "olmo",
        "olmo2",  "olmoe",  "qwen2moe",          "qwen3moe"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        check_model(names[i], MR_IMPORT_KEEP);
        check_model(names[i], MR_IMPORT_F32);
    }
}

static void test_block_rows_are_kept(void **state) {
    (void)state;
    static const char *const cases[][2] = {{"llama_q8_0", "int8-block"}, {"llama_q4_0", "int4"}};
    for (int i = 0; i < 2; i++) {
        check_model(cases[i][0], MR_IMPORT_KEEP);
        char *out = mr_format("%s/%s-0", folder, cases[i][0]);
        json_t *config = load_json(out, "config.json");
        json_t *wanted = json_pack("{s:s, s:s, s:{}}", "quant_method", "memrack", "weights",
                                   cases[i][1], "overrides");
        assert_true(json_equal(json_object_get(config, "quantization_config"), wanted));
        json_decref(wanted);
        json_decref(config);
        free(out);
    }
}

static void test_lost_bits_are_counted(void **state) {
    (void)state;
    mr_import_report report;
    mr_err err = {{0}};
    char *out = mr_format("%s/bf16", folder);
    assert_int_equal(import("llama_q8_0", out, MR_IMPORT_BF16, false, &report, &err), MR_OK);
    assert_int_equal(report.block_tensors, 0);
    assert_int_equal(report.rounded_tensors, 9);
    assert_string_equal(report.rounded_types, "Q8_0");
    assert_true(report.rounded_most > 1e-4 && report.rounded_most <= 0x1p-8);
    free(out);
}

/* --- rope ------------------------------------------------------------------------------------- */

static void make_factors(float *out, uint32_t count, double theta, double factor, double low,
                         double high, double original) {
    for (uint32_t i = 0; i < count; i++) {
        const double wave = 2 * acos(-1) * pow(theta, (double)i / count);
        const double smooth = (original / wave - low) / (high - low);
        out[i] = (float)(wave < original / high  ? 1
                         : wave > original / low ? factor
                                                 : 1 / ((1 - smooth) / factor + smooth));
    }
}

static void test_llama3_parameters_are_found_again(void **state) {
    (void)state;
    static const struct {
        double theta, factor, low, high, original;
    } cases[] = {{5e5, 8, 1, 4, 8192},  {5e5, 32, 1, 4, 8192},   {1e4, 4, 1, 4, 2048},
                 {5e5, 16, 1, 2, 5000}, {1e6, 8, 1, 9.5, 12345}, {5e5, 8, 2, 8, 16384}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        float factors[64], again[64];
        json_t *found;
        mr_err err = {{0}};
        make_factors(factors, 64, cases[i].theta, cases[i].factor, cases[i].low, cases[i].high,
                     cases[i].original);
        if (gguf_rope_from_factors(&found, factors, 64, cases[i].theta, &err) != MR_OK)
            fail_msg("case %zu: %s", i, err.text);
        const double low = json_number_value(json_object_get(found, "low_freq_factor"));
        make_factors(
            again, 64, cases[i].theta, json_number_value(json_object_get(found, "factor")), low,
            json_number_value(json_object_get(found, "high_freq_factor")),
            (double)json_integer_value(json_object_get(found, "original_max_position_embeddings")));
        for (int k = 0; k < 64; k++)
            assert_true(fabsf(again[k] - factors[k]) <= 1e-4f * factors[k]);
        if (i == 0) assert_int_equal(low, 1);
        json_decref(found);
    }
}

static void test_other_factors_are_refused(void **state) {
    (void)state;
    float factors[32];
    json_t *found = NULL;
    mr_err err = {{0}};
    for (int i = 0; i < 32; i++) factors[i] = 1;
    assert_int_equal(gguf_rope_from_factors(&found, factors, 32, 1e4, &err), MR_OK);
    assert_null(found);
    for (int i = 0; i < 32; i++) factors[i] = 1 + (float)i * 0.3f; /* longrope has such */
    assert_int_equal(gguf_rope_from_factors(&found, factors, 32, 1e4, &err), MR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "llama3"));
    factors[3] = NAN;
    assert_int_equal(gguf_rope_from_factors(&found, factors, 32, 1e4, &err), MR_ERR_RANGE);
}

/* --- bad headers ------------------------------------------------------------------------------ */

typedef struct {
    uint8_t data[4096];
    size_t used;
} bytes;

static void put(bytes *b, const void *data, size_t count) {
    assert_true(b->used + count <= sizeof(b->data));
    memcpy(b->data + b->used, data, count);
    b->used += count;
}
static void put_u32(bytes *b, uint32_t value) {
    put(b, &value, sizeof(value));
}
static void put_u64(bytes *b, uint64_t value) {
    put(b, &value, sizeof(value));
}
static void put_text(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static void start(bytes *b, uint32_t version, uint64_t tensors, uint64_t keys) {
    b->used = 0;
    put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, tensors);
    put_u64(b, keys);
}

static void put_tensor(bytes *b, const char *name, uint64_t columns, uint64_t rows, uint32_t type,
                       uint64_t offset) {
    put_text(b, name);
    put_u32(b, 2);
    put_u64(b, columns);
    put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

/* The file must be refused with a sentence that has these words. */
static void refused(const bytes *b, uint64_t more, const char *words) {
    mr_gguf *file;
    mr_err err = {{0}};
    uint8_t *exact = mr_alloc(b->used); /* so that a read beyond it is seen */
    memcpy(exact, b->data, b->used);
    if (mr_gguf_parse(&file, exact, b->used, b->used + more, "input", &err) == MR_OK)
        fail_msg("accepted, not refused with '%s'", words);
    assert_null(file);
    if (!strstr(err.text, words)) fail_msg("'%s' does not say '%s'", err.text, words);
    free(exact);
}

static void test_bad_beginnings(void **state) {
    (void)state;
    bytes b;
    start(&b, 3, 0, 0);
    b.used = 20;
    refused(&b, 0, "too short");
    start(&b, 3, 0, 0);
    memcpy(b.data, "GGLF", 4);
    refused(&b, 0, "not a GGUF file");
    memcpy(b.data, "tjgg", 4);
    refused(&b, 0, "before GGUF");
    start(&b, 1, 0, 0);
    refused(&b, 0, "version 1");
    start(&b, 4, 0, 0);
    refused(&b, 0, "version 4");
    start(&b, 3u << 24, 0, 0);
    refused(&b, 0, "big-endian");
    start(&b, 3, 1ull << 63, 0);
    refused(&b, 0, "tensors");
    start(&b, 3, 1000, 0);
    refused(&b, 0, "more than the file can hold");
    start(&b, 3, 0, UINT64_MAX);
    refused(&b, 0, "keys, at most");
    start(&b, 3, 0, 1);
    refused(&b, 0, "ends inside a key");
}

static void test_bad_metadata(void **state) {
    (void)state;
    bytes b;
    start(&b, 3, 0, 1);
    put_u64(&b, UINT64_MAX); /* a key's length */
    refused(&b, 1 << 20, "a key has");
    start(&b, 3, 0, 1);
    put_u64(&b, 0);
    refused(&b, 100, "a key has 0 bytes");
    start(&b, 3, 0, 1);
    put_u64(&b, 3);
    put(&b, "a\0b", 3);
    put_u32(&b, 4);
    refused(&b, 100, "zero byte");
    start(&b, 3, 0, 1);
    put_text(&b, "k");
    put_u32(&b, 13);
    refused(&b, 100, "type 13");
    start(&b, 3, 0, 1);
    put_text(&b, "k");
    put_u32(&b, MR_GGUF_TEXT);
    put_u64(&b, 1ull << 62);
    refused(&b, 100, "ends inside k");
    start(&b, 3, 0, 1);
    put_text(&b, "k");
    put_u32(&b, MR_GGUF_TEXT);
    put_u64(&b, 1ull << 40);
    refused(&b, 1ull << 41, "the header is longer");
    start(&b, 3, 0, 1);
    put_text(&b, "k");
    put_u32(&b, MR_GGUF_ARRAY);
    put_u32(&b, MR_GGUF_ARRAY);
    put_u64(&b, 2);
    refused(&b, 100, "array of arrays");
    start(&b, 3, 0, 1);
    put_text(&b, "k");
    put_u32(&b, MR_GGUF_ARRAY);
    put_u32(&b, MR_GGUF_TEXT);
    put_u64(&b, 1ull << 61);
    refused(&b, 1000, "more than the file can hold");
    start(&b, 3, 0, 1);
    put_text(&b, "k");
    put_u32(&b, MR_GGUF_ARRAY);
    put_u32(&b, MR_GGUF_U64);
    put_u64(&b, UINT64_MAX / 8 + 2); /* its size in bytes would overflow */
    refused(&b, 1000, "more than the file can hold");
    start(&b, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_text(&b, "same");
        put_u32(&b, MR_GGUF_U8);
        put(&b, "x", 1);
    }
    refused(&b, 0, "same is there twice");
}

static void test_bad_alignment(void **state) {
    (void)state;
    static const uint32_t values[] = {0, 48, 1u << 31};
    bytes b;
    for (size_t i = 0; i < 3; i++) {
        start(&b, 3, 0, 1);
        put_text(&b, "general.alignment");
        put_u32(&b, MR_GGUF_U32);
        put_u32(&b, values[i]);
        refused(&b, 0, "general.alignment");
    }
    start(&b, 3, 0, 1);
    put_text(&b, "general.alignment");
    put_u32(&b, MR_GGUF_TEXT);
    put_text(&b, "32");
    refused(&b, 0, "not u32");
}

static void test_bad_tensors(void **state) {
    (void)state;
    static const struct {
        uint64_t columns, rows, offset, more;
        uint32_t type;
        const char *words;
    } cases[] = {
        {4, 4, 0, 0, 99, "type 99"},
        {0, 4, 0, 0, 0, "is empty"},
        {1ull << 33, 1ull << 33, 0, 0, 0, "overflows"},
        {1ull << 62, 1, 0, 0, 0, "overflows"},
        {33, 4, 0, 0, 2, "whole Q4_0 blocks"},
        {128, 4, 0, 0, 12, "whole Q4_K blocks"},
        {4, 4, 8, 200, 0, "multiple of the alignment"},
        {4, 4, 32, 200, 0, "belong to nothing"},
        {4, 4, 1ull << 63, 200, 0, "belong to nothing"},
        {4, 4, 0, 30, 0, "cut short"},
        {1ull << 40, 1ull << 20, 0, 1 << 20, 0, "cut short"},
        {4, 4, 0, 200, 0, "after the last tensor"},
    };
    bytes b;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        start(&b, 3, 1, 0);
        put_tensor(&b, "t", cases[i].columns, cases[i].rows, cases[i].type, cases[i].offset);
        refused(&b, cases[i].more, cases[i].words);
    }
    start(&b, 3, 2, 0);
    put_tensor(&b, "t", 4, 4, 0, 0);
    put_tensor(&b, "u", 4, 4, 0, 32);
    refused(&b, 200, "overlaps");
    start(&b, 3, 2, 0);
    put_tensor(&b, "t", 4, 4, 0, 0);
    put_tensor(&b, "t", 4, 4, 0, 64);
    refused(&b, 128 + 30, "t is there twice");
    start(&b, 3, 1, 0);
    put_text(&b, "t");
    put_u32(&b, 5);
    for (int i = 0; i < 5; i++) put_u64(&b, 1);
    refused(&b, 200, "5 dimensions");
}

static void test_getters_name_the_key(void **state) {
    (void)state;
    bytes b;
    mr_gguf *file;
    mr_err err = {{0}};
    uint64_t number = 7;
    double real = 0;
    bool flag = false;
    char *text = NULL;
    start(&b, 2, 0, 4);
    put_text(&b, "float");
    put_u32(&b, MR_GGUF_F32);
    put_u32(&b, 0x7fc00000); /* NaN */
    put_text(&b, "negative");
    put_u32(&b, MR_GGUF_I32);
    put_u32(&b, UINT32_MAX);
    put_text(&b, "flag");
    put_u32(&b, MR_GGUF_BOOL);
    put(&b, "\2", 1);
    put_text(&b, "layers");
    put_u32(&b, MR_GGUF_ARRAY);
    put_u32(&b, MR_GGUF_U16);
    put_u64(&b, 2);
    put(&b, "\5\0\6\0", 4);
    assert_int_equal(mr_gguf_parse(&file, b.data, b.used, b.used, "input", &err), MR_OK);
    assert_int_equal(mr_gguf_u64(&number, file, "absent", 0, 9, &err), MR_OK);
    assert_int_equal(number, 7);
    assert_int_equal(mr_gguf_double(&real, file, "float", 0, 9, &err), MR_ERR_RANGE);
    assert_non_null(strstr(err.text, "float is nan"));
    assert_int_equal(mr_gguf_u64(&number, file, "float", 0, 9, &err), MR_ERR_FORMAT);
    assert_int_equal(mr_gguf_u64(&number, file, "negative", 0, 9, &err), MR_ERR_RANGE);
    assert_non_null(strstr(err.text, "negative is -1"));
    assert_int_equal(mr_gguf_bool(&flag, file, "flag", &err), MR_ERR_FORMAT);
    assert_int_equal(mr_gguf_u64(&number, file, "layers", 0, 9, &err), MR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "differs between layers"));
    assert_int_equal(mr_gguf_text(&text, file, "layers", 9, &err), MR_ERR_FORMAT);
    assert_null(text);
    mr_gguf_close(file);
}

/* Every cut of a real header is refused: nothing is read beyond the end. */
static void test_every_cut_is_refused(void **state) {
    (void)state;
    char *data;
    size_t count;
    mr_err err = {{0}};
    assert_int_equal(mr_file_read(&data, &count, FOLDER "qwen2.gguf", 1 << 20, &err), MR_OK);
    for (size_t cut = 0; cut < count - 32; cut += cut < 2500 ? 1 : 97) {
        mr_gguf *file;
        uint8_t *part = mr_alloc(cut + 1);
        memcpy(part, data, cut);
        assert_int_not_equal(mr_gguf_parse(&file, part, cut, cut, "input", &err), MR_OK);
        free(part);
    }
    free(data);
}

/* --- imports that must not be ----------------------------------------------------------------- */

static bool folder_has(const char *part) {
    struct dirent *entry;
    bool found = false;
    DIR *directory = opendir(folder);
    assert_non_null(directory);
    while ((entry = readdir(directory))) found = found || strstr(entry->d_name, part);
    closedir(directory);
    return found;
}

/* Copies a model with a change of one run of bytes, which must be there. */
static void spoiled(const char *name, const void *from, const void *to, size_t length,
                    const char *words) {
    char *data, *path = mr_format(FOLDER "%s.gguf", name);
    char *bad = mr_format("%s/bad.gguf", folder), *out = mr_format("%s/refused", folder);
    size_t count;
    mr_err err = {{0}};
    mr_import_report report;
    assert_int_equal(mr_file_read(&data, &count, path, 1 << 20, &err), MR_OK);
    char *at = memmem(data, count, from, length);
    assert_non_null(at);
    memcpy(at, to, length);
    assert_int_equal(mr_file_write(bad, data, count, &err), MR_OK);
    const mr_import_options options = {.file = bad, .directory = out, .no_tokenizer = true};
    if (mr_gguf_import(&options, &report, &err) == MR_OK)
        fail_msg("accepted, not refused with '%s'", words);
    if (!strstr(err.text, words)) fail_msg("'%s' does not say '%s'", err.text, words);
    assert_false(folder_has("refused"));
    free(data);
    free(out);
    free(bad);
    free(path);
}

static void test_models_that_do_not_fit_are_refused(void **state) {
    (void)state;
    spoiled("qwen2", "\5\0\0\0\0\0\0\0qwen2", "\5\0\0\0\0\0\0\0qwen9", 13, "'qwen9'");
    spoiled("qwen2", "blk.1.attn_k.bias", "blk.1.attn_x.bias", 17, "attn_k.bias is missing");
    spoiled("qwen2", "qwen2.block_count", "qwen2.bluck_count", 17, "bluck_count is not known");
    spoiled("llama2", "blk.1.ffn_up.weight", "blk.1.ffn_ab.weight", 19, "ffn_up.weight is missing");
    spoiled("llama2", "context_length\4\0\0\0\x80", "context_length\4\0\0\0\0", 19, "must be 1 to");
    spoiled("llama2", "head_count_kv\4\0\0\0\2", "head_count_kv\4\0\0\0\3", 18, "not supported");
    spoiled("llama2", "feed_forward_length\4\0\0\0\x18", "feed_forward_length\4\0\0\0\x20", 24,
            "has the shape [ 24 16 ]; [ 32 16 ] is needed");
    spoiled("llama3", "rope_freqs.weight", "rope_frugs.weight", 17, "has no place");
    spoiled("llama_linear_bias", "linear", "dynami", 6, "rope scaling 'dynami'");
    spoiled("mixtral", "llama.expert_used_count\4\0\0\0\2", "llama.expert_used_count\4\0\0\0\x9",
            28, "must be 1 to 4");
    spoiled("olmo", "attention.clamp_kqv", "attention.clamp_xyz", 19, "clamp_xyz is not known");
}

static void test_values_that_are_not_finite_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"llama_q8_0", "llama_q4_0", "llama2", "qwen2", "qwen3"};
    static const char *const tensors[] = {"blk.0.ffn_up.weight", "token_embd.weight",
                                          "blk.1.attn_q.weight", "blk.0.attn_v.weight",
                                          "blk.1.ffn_down.weight"};
    static const uint8_t nan[4] = {0, 0xfc, 0x80, 0x7f}; /* as f16, and ending as bf16 or f32 */
    for (size_t i = 0; i < 5; i++) {
        char *data, *path = mr_format(FOLDER "%s.gguf", names[i]);
        char *bad = mr_format("%s/bad.gguf", folder), *out = mr_format("%s/refused", folder);
        size_t count;
        mr_gguf *file;
        mr_err err = {{0}};
        mr_import_report report;
        assert_int_equal(mr_file_read(&data, &count, path, 1 << 20, &err), MR_OK);
        assert_int_equal(mr_gguf_open(&file, path, &err), MR_OK);
        const mr_gguf_tensor *t = mr_gguf_find_tensor(file, tensors[i]);
        assert_non_null(t);
        memcpy(data + t->offset + (uint64_t)t->format->bytes * 2, nan, sizeof(nan));
        mr_gguf_close(file);
        assert_int_equal(mr_file_write(bad, data, count, &err), MR_OK);
        const mr_import_options options = {.file = bad, .directory = out, .no_tokenizer = true};
        assert_int_equal(mr_gguf_import(&options, &report, &err), MR_ERR_RANGE);
        assert_non_null(strstr(err.text, "not finite"));
        assert_non_null(strstr(err.text, tensors[i]));
        assert_false(folder_has("refused"));
        free(data);
        free(out);
        free(bad);
        free(path);
    }
}

static void test_used_folders_and_interrupts(void **state) {
    (void)state;
    mr_import_report report;
    mr_err err = {{0}};
    char *out = mr_format("%s/used", folder), *inside = mr_format("%s/used/deep/er", folder);
    assert_int_equal(mr_make_directories(out, &err), MR_OK); /* there and empty is fine */
    assert_int_equal(import("llama2", out, MR_IMPORT_KEEP, false, &report, &err), MR_OK);
    assert_int_equal(import("llama2", out, MR_IMPORT_KEEP, false, &report, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "not empty"));
    assert_int_equal(import("llama2", inside, MR_IMPORT_KEEP, false, &report, &err), MR_OK);
    const volatile sig_atomic_t interrupted = 1;
    char *never = mr_format("%s/never", folder);
    const mr_import_options options = {.file = FOLDER "llama2.gguf",
                                       .directory = never,
                                       .no_tokenizer = true,
                                       .interrupted = &interrupted};
    assert_int_equal(mr_gguf_import(&options, &report, &err), MR_ERR_CANCELLED);
    assert_false(folder_has("never"));
    free(never);
    free(inside);
    free(out);
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/memrack-gguf-%ld", (long)getpid());
    return mr_make_directories(folder, NULL) == MR_OK ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char *command = mr_format("rm -rf '%s'", folder);
    const int result = system(command);
    free(command);
    return result;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_have_the_values_of_the_format),
        cmocka_unit_test(test_models_come_back_as_they_were),
        cmocka_unit_test(test_block_rows_are_kept),
        cmocka_unit_test(test_lost_bits_are_counted),
        cmocka_unit_test(test_llama3_parameters_are_found_again),
        cmocka_unit_test(test_other_factors_are_refused),
        cmocka_unit_test(test_bad_beginnings),
        cmocka_unit_test(test_bad_metadata),
        cmocka_unit_test(test_bad_alignment),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_getters_name_the_key),
        cmocka_unit_test(test_every_cut_is_refused),
        cmocka_unit_test(test_models_that_do_not_fit_are_refused),
        cmocka_unit_test(test_values_that_are_not_finite_are_refused),
        cmocka_unit_test(test_used_folders_and_interrupts),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
