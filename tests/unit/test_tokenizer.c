/* Goal: the tokenizer agrees with the `tokenizers` package id by id, and no text or file breaks it.
 * Method: committed expectations of that package (tests/tokenizer/make_expected.py) over the
 * pipelines of published families; hostile texts checked by decoding them back; hostile files by
 * their one sentence. */
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *path_of(const char *name) {
    return mr_format("%s/tests/tokenizer/%s.json", MR_SOURCE_DIR, name);
}

static mr_tokenizer *open_named(const char *name) {
    mr_tokenizer *t;
    mr_err err = {{0}};
    char *path = path_of(name);
    if (mr_tokenizer_open(&t, path, &err) != MR_OK) fail_msg("%s", err.text);
    free(path);
    return t;
}

static void expect_ids(const json_t *wanted, const mr_token_list *got, const char *text) {
    size_t i;
    json_t *id;
    json_array_foreach(wanted, i, id) {
        if (i >= got->count || got->items[i] != (int32_t)json_integer_value(id))
            fail_msg("'%s': id %zu is %d, expected %lld", text, i,
                     i < got->count ? got->items[i] : -1, (long long)json_integer_value(id));
    }
    assert_int_equal(got->count, json_array_size(wanted));
}

static void encode(const mr_tokenizer *t, const char *text, size_t bytes,
                   const mr_encode_options *options, mr_token_list *ids) {
    mr_err err = {{0}};
    ids->count = 0;
    if (mr_tokenizer_encode(t, text, bytes, options, ids, &err) != MR_OK) fail_msg("%s", err.text);
}

/* Through the decoder one by one, each part whole characters. */
static void decode(const mr_tokenizer *t, const mr_token_list *ids, bool keep, mr_text *out) {
    mr_decoder *d = mr_decoder_open(t, &(mr_decode_options){.keep_special = keep});
    mr_text_clear(out);
    for (size_t i = 0; i < ids->count; i++) {
        const size_t before = out->bytes;
        const size_t owed = mr_decoder_push(d, ids->items[i], out);
        assert_true(owed <= out->bytes - before);
        assert_true(mr_utf8_valid(mr_text_string(out) + before, out->bytes - before));
    }
    mr_decoder_flush(d, out);
    mr_decoder_close(d);
}

static void expect_decoded(const mr_tokenizer *t, const mr_token_list *ids, bool keep,
                           const json_t *wanted) {
    mr_text back = {0};
    decode(t, ids, keep, &back);
    if (back.bytes != json_string_length(wanted) ||
        memcmp(mr_text_string(&back), json_string_value(wanted), back.bytes) != 0)
        fail_msg("decoded '%s', expected '%s'", mr_text_string(&back), json_string_value(wanted));
    mr_text_free(&back);
}

static void check_case(const mr_tokenizer *t, const json_t *row) {
    const json_t *text = json_object_get(row, "text");
    const json_t *decoded = json_object_get(row, "decoded");
    const json_t *skipped = json_object_get(row, "skipped");
    const json_t *plain = json_object_get(row, "plain");
    const json_t *full = json_object_get(row, "template");
    const char *bytes = json_string_value(text);
    const size_t count = json_string_length(text);
    mr_token_list ids = {0};
    encode(t, bytes, count, NULL, &ids);
    expect_ids(json_object_get(row, "ids"), &ids, bytes);
    expect_decoded(t, &ids, true, decoded);
    expect_decoded(t, &ids, false, skipped ? skipped : decoded);
    encode(t, bytes, count, &(mr_encode_options){.no_special = true}, &ids);
    expect_ids(plain ? plain : json_object_get(row, "ids"), &ids, bytes);
    const mr_text_span everything = {0, count};
    encode(t, bytes, count, &(mr_encode_options){.literal = &everything, .literal_count = 1}, &ids);
    expect_ids(plain ? plain : json_object_get(row, "ids"), &ids, bytes);
    encode(t, bytes, count, &(mr_encode_options){.add_template = true}, &ids);
    expect_ids(full ? full : json_object_get(row, "ids"), &ids, bytes);
    mr_token_list_free(&ids);
}

static void agrees(const char *name) {
    json_t *expected, *row;
    mr_err err = {{0}};
    size_t i;
    mr_tokenizer *t = open_named(name);
    char *path = mr_format("%s/tests/tokenizer/%s.expected.json", MR_SOURCE_DIR, name);
    if (mr_json_load(&expected, path, MR_MAX_CONFIG_BYTES, &err) != MR_OK) fail_msg("%s", err.text);
    const json_t *cases = json_object_get(expected, "cases");
    assert_true(json_array_size(cases) > 50);
    json_array_foreach(cases, i, row) check_case(t, row);
    json_decref(expected);
    free(path);
    mr_tokenizer_close(t);
}

#define AGREES(name)                                                                               \
    static void test_agrees_##name(void **state) {                                                 \
        (void)state;                                                                               \
        agrees(#name);                                                                             \
    }
AGREES(gpt2)
AGREES(prefix)
AGREES(llama)
AGREES(deepseek)
AGREES(split)
AGREES(added)
AGREES(qwen)
AGREES(tekken)
AGREES(neox)
AGREES(llama2)
AGREES(llama2old)
AGREES(mistral)
AGREES(gemma)
AGREES(metaspace)
AGREES(unknown)
AGREES(splits)

static void round_trip(const mr_tokenizer *t, const char *text, size_t bytes) {
    mr_token_list ids = {0};
    mr_text raw = {0};
    const int64_t start = mr_now_ns();
    encode(t, text, bytes, NULL, &ids);
    for (size_t i = 0; i < ids.count; i++) {
        size_t count;
        const char *token = mr_tokenizer_bytes(t, ids.items[i], &count);
        mr_text_add(&raw, token, count);
    }
    assert_int_equal(raw.bytes, bytes);
    assert_memory_equal(mr_text_string(&raw), text, bytes);
    assert_true(mr_now_ns() - start < 60ll * 1000000000);
    mr_text_free(&raw);
    mr_token_list_free(&ids);
}

static void test_hostile_texts_come_back_whole(void **state) {
    (void)state;
    enum { BYTES = 1 << 20 };
    static const char *const fillings[] = {"a",        " ", "\n", "\xff", "\x80",
                                           "\xcc\x81", "'", "<",  "0"};
    static const char *const names[] = {"gpt2", "llama", "deepseek", "added"};
    char *text = mr_alloc(BYTES);
    for (size_t n = 0; n < 4; n++) {
        mr_tokenizer *t = open_named(names[n]);
        for (size_t f = 0; f < sizeof(fillings) / sizeof(fillings[0]); f++) {
            const size_t unit = strlen(fillings[f]), bytes = n == 0 ? BYTES : BYTES / 8;
            for (size_t i = 0; i < bytes; i++) text[i] = fillings[f][i % unit];
            round_trip(t, text, bytes);
        }
        memset(text, 0, 4096);
        round_trip(t, text, 4096);
        uint32_t random = 12345;
        for (size_t i = 0; i < 100000; i++)
            text[i] = (char)((random = random * 1664525u + 1013904223u) >> 24);
        round_trip(t, text, 100000);
        mr_tokenizer_close(t);
    }
    free(text);
}

static void test_invalid_bytes_stand_alone(void **state) {
    (void)state;
    mr_tokenizer *t = open_named("gpt2");
    mr_token_list whole = {0}, parts = {0};
    encode(t,
           "ab\xff\xfe"
           "cd\xed\xa0\x80"
           "e\xc3",
           10, NULL, &whole);
    static const struct {
        const char *text;
        size_t bytes;
    } piece[] = {{"ab", 2}, {"\xff\xfe", 2}, {"cd", 2}, {"\xed\xa0\x80", 3}, {"e", 1}};
    for (size_t i = 0; i < 5; i++) {
        mr_err err;
        assert_int_equal(mr_tokenizer_encode(t, piece[i].text, piece[i].bytes, NULL, &parts, &err),
                         MR_OK);
    }
    assert_int_equal(whole.count, parts.count);
    assert_memory_equal(whole.items, parts.items, whole.count * sizeof(int32_t));
    mr_token_list_free(&whole);
    mr_token_list_free(&parts);
    mr_tokenizer_close(t);
}

static void test_literal_spans_keep_special_tokens_out(void **state) {
    (void)state;
    mr_tokenizer *t = open_named("gpt2");
    mr_token_list ids = {0};
    const char *text = "<|user|>x<|end|>y<|end|>";
    const mr_text_span spans[] = {{8, 9}};
    encode(t, text, strlen(text), &(mr_encode_options){.literal = spans, .literal_count = 1}, &ids);
    int users = 0, ends = 0;
    for (size_t i = 0; i < ids.count; i++) {
        users += ids.items[i] == 1;
        ends += ids.items[i] == 2;
    }
    assert_int_equal(users, 1);
    assert_int_equal(ends, 1);
    assert_int_equal(ids.items[ids.count - 1], 2);
    mr_token_list_free(&ids);
    mr_tokenizer_close(t);
}

static void test_finding_and_naming_tokens(void **state) {
    (void)state;
    mr_tokenizer *t = open_named("gpt2");
    size_t bytes;
    assert_int_equal(mr_tokenizer_find(t, "<|end|>", 7), 2);
    assert_true(mr_tokenizer_is_special(t, 2));
    assert_false(mr_tokenizer_is_special(t, 100));
    assert_false(mr_tokenizer_is_special(t, -1));
    assert_false(mr_tokenizer_is_special(t, INT32_MAX));
    assert_int_equal(mr_tokenizer_find(t, "not a token at all", 18), -1);
    mr_tokenizer_bytes(t, -1, &bytes);
    assert_int_equal(bytes, 0);
    mr_tokenizer_bytes(t, (int32_t)mr_tokenizer_count(t), &bytes);
    assert_int_equal(bytes, 0);
    for (int byte = 0; byte < 256; byte++) {
        const char c = (char)byte;
        assert_true(mr_tokenizer_find(t, &c, 1) >= 0);
    }
    mr_tokenizer_close(t);
}

#define PRE "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define AB "\"a\":0,\"b\":1,\"ab\":2"
#define GOOD_MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{" AB "},\"merges\":[\"a b\"]}"

/* A hostile file and a part of the sentence it gets. */
static const struct {
    const char *json, *sentence;
} hostile[] = {
    {"", "not valid JSON"},
    {"{", "not valid JSON"},
    {"[]", "must hold an object"},
    {"{}", "decoder is missing"},
    {"{" GOOD_MODEL ",\"pre_tokenizer\":7}", "pre_tokenizer must be an object"},
    {"{" PRE "}", "model.vocab"},
    {"{" PRE ",\"model\":{\"vocab\":[]}}", "model.vocab"},
    {"{" PRE ",\"model\":{\"vocab\":{}}}", "empty"},
    {"{" PRE ",\"model\":{\"type\":\"Unigram\",\"vocab\":{\"a\":0},\"merges\":[]}}", "Unigram"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "id -1"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":0,\"b\":2},\"merges\":[]}}", "id 2"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "both have id 0"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":9223372036854775807},\"merges\":[]}}",
     "id 9223372036854775807"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":99999999999999999999},\"merges\":[]}}",
     "not valid JSON"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "a string, not an integer"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "duplicate"},
    {"{" PRE ",\"model\":{\"vocab\":{\"a\":0}}}", "merges must be an array"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[\"a c\"]}}", "names 'c'"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[\"b a\"]}}", "names 'ba'"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[\"ab\"]}}", "not a pair"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[\"a b c\"]}}", "not a pair"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[\" b\"]}}", "empty side"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[[\"a\"]]}}", "not a pair"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[[\"a\",1]]}}", "not a pair"},
    {"{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[7]}}", "not a pair"},
    {"{" PRE ",\"model\":{\"dropout\":0.1,\"vocab\":{" AB "},\"merges\":[]}}", "model.dropout"},
    {"{" PRE ",\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{" AB "},\"merges\":[]}}",
     "model.end_of_word_suffix"},
    {"{" PRE ",\"model\":{\"continuing_subword_prefix\":\"##\",\"vocab\":{" AB "},\"merges\":[]}}",
     "model.continuing_subword_prefix"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":{}}", "added_tokens must be an array"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[7]}", "needs an id"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":3,\"content\":\"\"}]}", "added_tokens[0]"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":-3,\"content\":\"x\"}]}", "id is -3"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":9,\"content\":\"x\"}]}", "id is 9"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]}", "'a' in vocab"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":1,\"content\":\"a\"}]}", "added_tokens[0]"},
    {"{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":3,\"content\":\"x\",\"special\":1}]}",
     "special must be true"},
    {"{" PRE "," GOOD_MODEL ",\"normalizer\":{\"type\":\"Precompiled\"}}",
     "normalizer 'Precompiled'"},
    {"{" PRE "," GOOD_MODEL
     ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"BertNormalizer\"}]}}",
     "normalizer 'BertNormalizer'"},
    {"{" PRE "," GOOD_MODEL ",\"normalizer\":{\"type\":\"Prepend\"}}", "prepend must be a string"},
    {"{" PRE "," GOOD_MODEL
     ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"x\",\"pattern\":{\"String\":\"\"}}}",
     "pattern of 0 bytes"},
    {"{" PRE "," GOOD_MODEL
     ",\"normalizer\":{\"type\":\"Replace\",\"content\":7,\"pattern\":{\"String\":\"a\"}}}",
     "content must be a string"},
    {"{" PRE "," GOOD_MODEL
     ",\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\",\"pattern\":{\"Regex\":\"(\"}}}",
     "not understood"},
    {"{" PRE "," GOOD_MODEL ",\"normalizer\":{\"type\":\"StripAccents\"},\"added_tokens\":[{\"id\":"
     "3,\"content\":\"\\u0301\"}]}",
     "leave nothing"},
    {"{" PRE "," GOOD_MODEL ",\"normalizer\":{\"type\":\"Lowercase\"},\"added_tokens\":[{\"id\":3,"
     "\"content\":\"X\"},{\"id\":4,\"content\":\"x\"}]}",
     "appears twice"},
    {"{" PRE "," GOOD_MODEL ",\"decoder\":{\"type\":\"WordPiece\"}}", "decoder 'WordPiece'"},
    {"{" PRE "," GOOD_MODEL ",\"decoder\":{\"type\":\"BPEDecoder\"}}", "decoder 'BPEDecoder'"},
    {"{" PRE "," GOOD_MODEL ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},"
     "{\"type\":\"ByteFallback\"}]}}",
     "'ByteFallback' after"},
    {"{" PRE "," GOOD_MODEL ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":"
     "\"ByteFallback\"},{\"type\":\"ByteLevel\"}]}}",
     "'ByteLevel' after ByteFallback"},
    {"{" PRE "," GOOD_MODEL
     ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Replace\","
     "\"content\":\"\",\"pattern\":{\"Regex\":\"a\"}}]}}",
     "'Replace with a Regex' after"},
    {"{" PRE "," GOOD_MODEL
     ",\"decoder\":{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}}",
     "must be one character"},
    {"{" PRE "," GOOD_MODEL
     ",\"decoder\":{\"type\":\"Strip\",\"content\":\"a\",\"start\":-1,\"stop\":0}}",
     "start is -1"},
    {"{" PRE "," GOOD_MODEL ",\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"\"}}",
     "must be one character"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"Fuse\"},\"pre_tokenizer\":{\"type\":\"Metaspace\","
     "\"replacement\":\"_\",\"prepend_scheme\":\"last\"}}",
     "prepend_scheme 'last'"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"Fuse\"},\"pre_tokenizer\":{\"type\":\"Metaspace\","
     "\"replacement\":\"_\",\"add_prefix_space\":false}}",
     "add_prefix_space is false"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"Fuse\"},\"pre_tokenizer\":{\"type\":\"Sequence\","
     "\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}}",
     "'Digits' after ByteLevel"},
    {"{" PRE "," GOOD_MODEL ",\"post_processor\":{\"type\":\"BertProcessing\"}}", "BertProcessing"},
    {"{" PRE "," GOOD_MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
     "\"SpecialToken\":{\"id\":\"z\"}},{\"Sequence\":{\"id\":\"A\"}}]}}",
     "no ids for 'z'"},
    {"{" PRE "," GOOD_MODEL
     ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
     "\"z\"}}],\"special_tokens\":{\"z\":{\"ids\":[77]}}}}",
     "outside the vocabulary"},
    {"{" GOOD_MODEL ",\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"},\"decoder\":{\"type\":"
     "\"Fuse\"}}",
     "pre_tokenizer 'UnicodeScripts'"},
    {"{" GOOD_MODEL ",\"pre_tokenizer\":{\"type\":\"Digits\"}}", "decoder is missing"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":"
     "\"Sequence\",\"pretokenizers\":[{\"type\":"
     "\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}]}}",
     "not understood"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":"
     "\"Sequence\",\"pretokenizers\":[{\"type\":"
     "\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"behavior\":\"Isolated\"}]}}",
     "sets within sets"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":"
     "\"Sequence\",\"pretokenizers\":[{\"type\":"
     "\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithAll\"}]}}",
     "MergedWithAll"},
    {"{" GOOD_MODEL ",\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":"
     "\"Sequence\",\"pretokenizers\":[{\"type\":"
     "\"Split\",\"pattern\":7,\"behavior\":\"Isolated\"}]}}",
     "needs a pattern"},
};

static void test_hostile_files_get_one_sentence(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
        mr_tokenizer *t;
        mr_err err = {{0}};
        assert_int_not_equal(
            mr_tokenizer_parse(&t, hostile[i].json, strlen(hostile[i].json), "t.json", &err),
            MR_OK);
        assert_null(t);
        if (!strstr(err.text, hostile[i].sentence) || !strstr(err.text, "t.json"))
            fail_msg("%s\n gives '%s', expected '%s'", hostile[i].json, err.text,
                     hostile[i].sentence);
    }
}

static void expect_refused(mr_text *json, const char *sentence) {
    mr_tokenizer *t;
    mr_err err = {{0}};
    assert_int_not_equal(mr_tokenizer_parse(&t, json->data, json->bytes, "t.json", &err), MR_OK);
    if (!strstr(err.text, sentence)) fail_msg("'%s', expected '%s'", err.text, sentence);
    mr_text_free(json);
}

static void test_large_hostile_files(void **state) {
    (void)state;
    mr_text json = {0};
    char *megabyte = mr_alloc((1 << 20) + 1);
    memset(megabyte, 'x', 1 << 20);
    mr_text_format(&json, "{" PRE ",\"model\":{\"vocab\":{\"%s\":0},\"merges\":[]}}", megabyte);
    expect_refused(&json, "1048576 bytes");
    mr_text_format(&json,
                   "{" PRE "," GOOD_MODEL ",\"added_tokens\":[{\"id\":3,\"content\":\"%s\"}]}",
                   megabyte);
    expect_refused(&json, "1048576 bytes");
    mr_text_format(
        &json,
        "{" GOOD_MODEL
        ",\"decoder\":{\"type\":\"Fuse\"},\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":"
        "\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}}}",
        megabyte);
    expect_refused(&json, "expression of 1048576 bytes");
    free(megabyte);
    for (int i = 0; i < 100000; i++) mr_text_add_string(&json, "[");
    expect_refused(&json, "nests deeper");
    mr_text_add_string(&json, "{" GOOD_MODEL ",\"decoder\":{\"type\":\"ByteLevel\"}"
                              ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 20; i++) mr_text_add_string(&json, "{\"type\":\"Digits\"},");
    mr_text_add_string(&json, "{\"type\":\"ByteLevel\"}]}}");
    expect_refused(&json, "more than 16");
    mr_text_add_string(&json, "{" PRE ",\"model\":{\"vocab\":{" AB "},\"merges\":[");
    for (int i = 0; i < MR_MAX_VOCAB; i++) mr_text_add_string(&json, "0,");
    mr_text_add_string(&json, "0]}}");
    expect_refused(&json, "merges");
}

static void test_regex_blow_up_is_an_error_not_a_hang(void **state) {
    (void)state;
    static const char json[] =
        "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Sequence\","
        "\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":"
        "\"(?:a+a+)+(?:b|c)\"}},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}}";
    mr_tokenizer *t;
    mr_err err = {{0}};
    mr_token_list ids = {0};
    char text[4096];
    memset(text, 'a', sizeof(text));
    const int64_t start = mr_now_ns();
    assert_int_equal(mr_tokenizer_parse(&t, json, sizeof(json) - 1, "t.json", &err), MR_OK);
    assert_int_equal(mr_tokenizer_encode(t, text, sizeof(text), NULL, &ids, &err), MR_ERR_LIMIT);
    assert_non_null(strstr(err.text, "too many steps"));
    assert_true(mr_now_ns() - start < 30ll * 1000000000);
    assert_int_equal(ids.count, 0);
    assert_int_equal(mr_tokenizer_encode(t, "b", 1, NULL, &ids, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "byte 0x62"));
    mr_token_list_free(&ids);
    mr_tokenizer_close(t);
}

static void test_detokenizer_holds_characters_back(void **state) {
    (void)state;
    static const struct {
        const char *in;
        size_t bytes;
        const char *out;
    } rows[] = {{"abc", 3, "abc"},
                {"\xf0\x9f\x99\x82", 4, "\xf0\x9f\x99\x82"},
                {"\xf0\x9f\x99", 3, "\xef\xbf\xbd"},
                {"\xff", 1, "\xef\xbf\xbd"},
                {"\xe4\xb8x", 3, "\xef\xbf\xbdx"},
                {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xc0\x80", 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                {"\xe4\xe4\xb8\xad", 4, "\xef\xbf\xbd\xe4\xb8\xad"}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        mr_detokenizer d = {0};
        mr_text out = {0};
        for (size_t b = 0; b < rows[i].bytes; b++) {
            mr_detokenizer_push(&d, rows[i].in + b, 1, &out);
            assert_true(mr_utf8_valid(mr_text_string(&out), out.bytes));
        }
        mr_detokenizer_finish(&d, &out);
        assert_string_equal(mr_text_string(&out), rows[i].out);
        mr_text_free(&out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_gpt2),
        cmocka_unit_test(test_agrees_prefix),
        cmocka_unit_test(test_agrees_llama),
        cmocka_unit_test(test_agrees_deepseek),
        cmocka_unit_test(test_agrees_split),
        cmocka_unit_test(test_agrees_added),
        cmocka_unit_test(test_agrees_qwen),
        cmocka_unit_test(test_agrees_tekken),
        cmocka_unit_test(test_agrees_neox),
        cmocka_unit_test(test_agrees_llama2),
        cmocka_unit_test(test_agrees_llama2old),
        cmocka_unit_test(test_agrees_mistral),
        cmocka_unit_test(test_agrees_gemma),
        cmocka_unit_test(test_agrees_metaspace),
        cmocka_unit_test(test_agrees_unknown),
        cmocka_unit_test(test_agrees_splits),
        cmocka_unit_test(test_hostile_texts_come_back_whole),
        cmocka_unit_test(test_invalid_bytes_stand_alone),
        cmocka_unit_test(test_literal_spans_keep_special_tokens_out),
        cmocka_unit_test(test_finding_and_naming_tokens),
        cmocka_unit_test(test_hostile_files_get_one_sentence),
        cmocka_unit_test(test_large_hostile_files),
        cmocka_unit_test(test_regex_blow_up_is_an_error_not_a_hang),
        cmocka_unit_test(test_detokenizer_holds_characters_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
