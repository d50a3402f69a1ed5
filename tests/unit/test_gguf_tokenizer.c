/* Goal: a tokenizer that travelled in GGUF keys is the tokenizer it was.
 * Method: tokenizers trained with the sentencepiece and tokenizers packages, their GGUF keys, and
 * what those packages make of them: the same tokenizer.json has to come out, and through our own
 * reader the same ids. Then keys spoiled one at a time. tests/gguf/make_tokenizers.py made them. */
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/gguf_import_impl.h"
#include "common/model/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FOLDER MR_SOURCE_DIR "/tests/gguf/"

static const gguf_model model = {.vocab = 512, .context = 100};

static const char *const names[] = {"gpt-2", "llama-bpe", "tekken", "smollm",
                                    "qwen2", "olmo",      "spm",    "spm_bare"};
enum { NAMES = sizeof(names) / sizeof(names[0]) };

static mr_status read_file(const char *name, gguf_tokenizer *out, mr_err *err) {
    char *path = mr_format(FOLDER "tokenizer_%s.gguf", name);
    mr_gguf *file;
    if (mr_gguf_open(&file, path, err) != MR_OK) fail_msg("%s", err->text);
    const mr_status status = gguf_tokenizer_read(out, file, &model, false, err);
    mr_gguf_close(file);
    free(path);
    return status;
}

static json_t *load_expected(const char *name) {
    char *path = mr_format(FOLDER "tokenizer_%s.expected.json", name);
    json_t *root;
    mr_err err = {{0}};
    if (mr_json_load(&root, path, 1 << 20, &err) != MR_OK) fail_msg("%s", err.text);
    free(path);
    return root;
}

static void test_the_same_tokenizer_comes_out(void **state) {
    (void)state;
    for (int i = 0; i < NAMES; i++) {
        gguf_tokenizer made;
        mr_err err = {{0}};
        if (read_file(names[i], &made, &err) != MR_OK) fail_msg("%s", err.text);
        json_t *expected = load_expected(names[i]), *value;
        const json_t *wanted = json_object_get(expected, "tokenizer");
        const char *key;
        json_object_foreach((json_t *)(uintptr_t)wanted, key, value) {
            if (json_equal(json_object_get(made.tokenizer, key), value)) continue;
            char *text = json_dumps(json_object_get(made.tokenizer, key), JSON_ENCODE_ANY);
            fail_msg("%s: %s is %.1500s", names[i], key, text);
        }
        assert_int_equal(json_object_size(made.tokenizer), json_object_size(wanted));
        json_decref(expected);
        gguf_tokenizer_free(&made);
    }
}

static void check_ids(const char *name, const mr_tokenizer *tokenizer, const json_t *pair) {
    const char *text = json_string_value(json_array_get(pair, 0));
    const json_t *wanted = json_array_get(pair, 1);
    const mr_encode_options options = {.add_template = true};
    mr_token_list list = {0};
    mr_err err = {{0}};
    if (mr_tokenizer_encode(tokenizer, text, strlen(text), &options, &list, &err) != MR_OK)
        fail_msg("%s: '%s': %s", name, text, err.text);
    bool same = list.count == json_array_size(wanted);
    for (size_t i = 0; same && i < list.count; i++)
        same = list.items[i] == json_integer_value(json_array_get(wanted, i));
    if (!same) fail_msg("%s: '%s' has other ids", name, text);
    mr_token_list_free(&list);
}

static void test_texts_have_the_same_ids(void **state) {
    (void)state;
    for (int i = 0; i < NAMES; i++) {
        gguf_tokenizer made;
        mr_tokenizer *tokenizer;
        mr_err err = {{0}};
        if (read_file(names[i], &made, &err) != MR_OK) fail_msg("%s", err.text);
        char *text = json_dumps(made.tokenizer, JSON_COMPACT);
        if (mr_tokenizer_parse(&tokenizer, text, strlen(text), names[i], &err) != MR_OK)
            fail_msg("%s", err.text);
        json_t *expected = load_expected(names[i]), *pair;
        size_t at;
        assert_true(json_array_size(json_object_get(expected, "texts")) > 10);
        json_array_foreach(json_object_get(expected, "texts"), at, pair)
            check_ids(names[i], tokenizer, pair);
        json_decref(expected);
        mr_tokenizer_close(tokenizer);
        free(text);
        gguf_tokenizer_free(&made);
    }
}

static const char *text_of(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static void test_the_other_files(void **state) {
    (void)state;
    gguf_tokenizer made;
    mr_err err = {{0}};
    assert_int_equal(read_file("gpt-2", &made, &err), MR_OK);
    const json_t *templates = json_object_get(made.tokenizer_config, "chat_template");
    assert_int_equal(json_array_size(templates), 2);
    assert_string_equal(text_of(json_array_get(templates, 0), "template"), "{{ messages }}");
    assert_string_equal(text_of(json_array_get(templates, 1), "name"), "tool_use");
    assert_string_equal(text_of(made.tokenizer_config, "eos_token"), "<|end|>");
    const json_t *ends = json_object_get(made.generation_config, "eos_token_id");
    assert_int_equal(json_array_size(ends), 2); /* the end, and the end of a turn */
    assert_string_equal(made.name, "gpt2 (gpt-2)");
    gguf_tokenizer_free(&made);
    assert_int_equal(read_file("tekken", &made, &err), MR_OK);
    assert_non_null(strstr(text_of(made.tokenizer_config, "chat_template"), "endfor %} \xc3\xa9"));
    assert_true(json_is_true(json_object_get(made.tokenizer_config, "add_bos_token")));
    gguf_tokenizer_free(&made);
    assert_int_equal(read_file("spm", &made, &err), MR_OK);
    assert_int_equal(json_integer_value(json_object_get(made.generation_config, "eos_token_id")),
                     2);
    assert_null(json_object_get(made.tokenizer_config, "pad_token"));
    assert_string_equal(text_of(made.tokenizer_config, "unk_token"), "<unk>");
    gguf_tokenizer_free(&made);
}

/* The file with one run of bytes changed must be refused with a sentence that has these words. */
static void refused(const char *name, const void *from, const void *to, size_t length,
                    const char *words) {
    char *data, *path = mr_format(FOLDER "tokenizer_%s.gguf", name);
    size_t count;
    mr_gguf *file;
    gguf_tokenizer made;
    mr_err err = {{0}};
    assert_int_equal(mr_file_read(&data, &count, path, 1 << 20, &err), MR_OK);
    char *at = memmem(data, count, from, length);
    assert_non_null(at);
    memcpy(at, to, length);
    if (mr_gguf_parse(&file, (const uint8_t *)data, count, count, "input", &err) == MR_OK) {
        if (gguf_tokenizer_read(&made, file, &model, false, &err) == MR_OK)
            fail_msg("accepted, not refused with '%s'", words);
        assert_null(made.tokenizer);
        mr_gguf_close(file);
    }
    if (!strstr(err.text, words)) fail_msg("'%s' does not say '%s'", err.text, words);
    free(data);
    free(path);
}

static void test_bad_keys_are_refused(void **state) {
    (void)state;
    refused("qwen2", "ggml.pre\10\0\0\0\5\0\0\0\0\0\0\0qwen2",
            "ggml.pre\10\0\0\0\5\0\0\0\0\0\0\0qwen8", 25,
            "pre-tokenizer 'qwen8' is not known; --no-tokenizer");
    refused("qwen2", "ggml.pre", "ggml.prf", 8, "pre-tokenizer '(none)' is not known");
    refused("spm", "\5\0\0\0\0\0\0\0llama\x15", "\5\0\0\0\0\0\0\0plamo\x15", 14,
            "tokenizer 'plamo' is not supported");
    refused("spm", "ggml.model", "ggml.mudel", 10, "has no tokenizer");
    refused("spm", "ggml.tokens", "ggml.tukens", 11, "0 tokens");
    refused("qwen2", "ggml.merges", "ggml.murges", 11, "merges is missing");
    refused("qwen2", "<|begin|>", "<|beg\xffn|>", 9, "token 330 is not UTF-8");
    refused("qwen2", "<|begin|>", "<|beg\0n|>", 9, "token 330 is not UTF-8");
    refused("spm", "<0x41>", "<0x40>", 6, "are both '<0x40>'");
    refused("qwen2", "\3\0\0\0\0\0\0\0t h", "\3\0\0\0\0\0\0\0txh", 11, "is not a pair");
    refused("qwen2", "\3\0\0\0\0\0\0\0t h", "\3\0\0\0\0\0\0\0t \1", 11, "is no token");
}

static void test_huge_numbers_are_refused(void **state) {
    (void)state;
    refused("llama-bpe", "bos_token_id\4\0\0\0\x4a\1", "bos_token_id\4\0\0\0\x4a\x7f", 18,
            "bos_token_id is");
    refused("spm", "eos_token_id\4\0\0\0\2\0", "eos_token_id\4\0\0\0\2\x80", 18, "eos_token_id is");
    refused("spm", "ggml.scores\11\0\0\0\6\0\0\0", "ggml.scores\11\0\0\0\10\0\0\0", 19, "");
    refused("spm", "token_type\11\0\0\0\5\0\0\0", "token_type\4\0\0\0\5\0\0\0", 18, "");
}

static void test_no_tokenizer_leaves_the_ends(void **state) {
    (void)state;
    mr_gguf *file;
    gguf_tokenizer made;
    mr_err err = {{0}};
    assert_int_equal(mr_gguf_open(&file, FOLDER "llama2.gguf", &err), MR_OK);
    assert_int_equal(gguf_tokenizer_read(&made, file, &model, false, &err), MR_ERR_FORMAT);
    assert_non_null(strstr(err.text, "--no-tokenizer"));
    assert_int_equal(gguf_tokenizer_read(&made, file, &model, true, &err), MR_OK);
    assert_null(made.tokenizer);
    assert_int_equal(json_integer_value(json_object_get(made.generation_config, "eos_token_id")),
                     2);
    gguf_tokenizer_free(&made);
    mr_gguf_close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_tokenizer_comes_out),
        cmocka_unit_test(test_texts_have_the_same_ids),
        cmocka_unit_test(test_the_other_files),
        cmocka_unit_test(test_bad_keys_are_refused),
        cmocka_unit_test(test_huge_numbers_are_refused),
        cmocka_unit_test(test_no_tokenizer_leaves_the_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
