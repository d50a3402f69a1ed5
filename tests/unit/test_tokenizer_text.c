/* Goal: text comes out of ids piece by piece as it would at once, and what normalizers do to a text
 * is bounded, linear and never opens a way to name special tokens.
 * Method: hand-made tokenizers small enough to know the answer; hostile texts under a clock. */
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LOW "\xe2\x96\x81" /* U+2581 */

/* Characters, <s> and </s> as special tokens, the bytes E4 B8 AD FF. */
#define VOCAB                                                                                      \
    "\"<unk>\":0,\"<s>\":1,\"</s>\":2,\"a\":3,\"b\":4,\"" LOW "\":5,\"" LOW "a\":6,\"<0xE4>\":7,"  \
    "\"<0xB8>\":8,\"<0xAD>\":9,\"<0xFF>\":10,\"aa\":11,\"<\":12,\"s\":13,\">\":14,\"/\":15,"       \
    "\"\xe4\xb8\xad\":16,\"A\":17"
enum { UNK, BOS, EOS, A, B, LOW_ID, LOW_A, E4, B8, AD, FF, AA };
#define ADDED(normalized)                                                                          \
    "\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":" normalized  \
    "},{\"id\":2,\"content\":\"</s>\",\"special\":true,\"normalized\":false}]"
#define MODEL(options)                                                                             \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\"," options "\"vocab\":{" VOCAB "},"        \
    "\"merges\":[\"" LOW " a\",\"a a\"]}"
#define DECODERS(list) "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" list "]}"
#define REPLACE(from, to)                                                                          \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"
#define STRIP(what, start, stop)                                                                   \
    "{\"type\":\"Strip\",\"content\":\"" what "\",\"start\":" start ",\"stop\":" stop "}"
#define LLAMA                                                                                      \
    DECODERS(REPLACE(LOW, " ") ",{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}," STRIP(" ", "1", \
                                                                                         "0"))
#define LEGACY                                                                                     \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"    \
    "\"" LOW "\"}," REPLACE(" ", LOW) "]}"
#define NORMAL(type) "\"normalizer\":{\"type\":\"" type "\"}"

static mr_tokenizer *parse(const char *json) {
    mr_tokenizer *t;
    mr_err err = {{0}};
    if (mr_tokenizer_parse(&t, json, strlen(json), "t.json", &err) != MR_OK)
        fail_msg("%s", err.text);
    return t;
}

static void decodes(const char *json, const mr_decode_options *options, const int32_t *ids,
                    size_t count, const char *wanted) {
    mr_tokenizer *t = parse(json);
    mr_decoder *d = mr_decoder_open(t, options);
    for (int again = 0; again < 2; again++) { /* flush begins a new text */
        mr_text text = {0};
        for (size_t i = 0; i < count; i++) {
            const size_t before = text.bytes;
            mr_decoder_push(d, ids[i], &text);
            assert_true(mr_utf8_valid(mr_text_string(&text) + before, text.bytes - before));
        }
        mr_decoder_flush(d, &text);
        assert_string_equal(mr_text_string(&text), wanted);
        mr_text_free(&text);
        if (options && options->continues) break;
    }
    mr_decoder_close(d);
    mr_tokenizer_close(t);
}
#define DECODES(json, options, wanted, ...)                                                        \
    decodes(json, options, (const int32_t[]){__VA_ARGS__},                                         \
            sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t), wanted)

static void test_llama_decoding(void **state) {
    (void)state;
    static const char json[] = "{" LEGACY "," LLAMA "," ADDED("false") "," MODEL("") "}";
    static const mr_decode_options keep = {.keep_special = true}, on = {.continues = true};
    DECODES(json, NULL, "a a", LOW_A, LOW_A);
    DECODES(json, &on, " a a", LOW_A, LOW_A);
    DECODES(json, NULL, "a", BOS, LOW_A, EOS, -1, 1 << 30);
    DECODES(json, &keep, "<s> a</s>", BOS, LOW_A, EOS);
    DECODES(json, NULL, " a", LOW_ID, LOW_A);
    DECODES(json, NULL,
            "a\xe4\xb8\xad"
            "b",
            A, E4, B8, AD, B);
    DECODES(json, NULL,
            "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
            "b",
            E4, B8, AD, FF, B); /* a run is text as a whole or not at all */
    DECODES(json, NULL, "\xef\xbf\xbd\xef\xbf\xbd", E4, B8);
    DECODES(json, NULL, "\xe4\xb8\xad", E4, BOS, B8, EOS, AD); /* skipped tokens end no run */
    DECODES(json, &keep, "\xef\xbf\xbd<s>\xef\xbf\xbd", E4, BOS, B8);
}

static void test_a_run_is_owed_to_its_tokens(void **state) {
    (void)state;
    mr_tokenizer *t = parse("{" LEGACY "," LLAMA "," ADDED("false") "," MODEL("") "}");
    mr_decoder *d = mr_decoder_open(t, NULL);
    mr_text text = {0};
    size_t bytes;
    assert_int_equal(mr_decoder_push(d, E4, &text), 0);
    assert_int_equal(mr_decoder_push(d, B8, &text), 0);
    assert_int_equal(mr_decoder_push(d, AD, &text), 0);
    assert_int_equal(text.bytes, 0);
    assert_int_equal(mr_decoder_push(d, LOW_A, &text), 3);
    assert_string_equal(mr_text_string(&text), "\xe4\xb8\xad a");
    assert_int_equal(mr_tokenizer_bytes(t, LOW_A, &bytes)[0], ' ');
    assert_int_equal(bytes, 2);
    assert_int_equal(mr_tokenizer_bytes(t, FF, &bytes)[0], '\xff');
    assert_int_equal(bytes, 1);
    assert_int_equal(mr_tokenizer_find(t, "</s>", 4), EOS);
    mr_text_free(&text);
    mr_decoder_close(d);
    mr_tokenizer_close(t);
}

static void test_decoders_on_the_whole_text(void **state) {
    (void)state;
#define FUSED(list) "{" DECODERS("{\"type\":\"Fuse\"}," list) "," MODEL("") "}"
    DECODES(FUSED(STRIP("a", "1", "2")), NULL, "ab", AA, B, AA);
    DECODES(FUSED(STRIP("a", "1", "2")), NULL, "aaba", AA, A, B, A, AA);
    DECODES(FUSED(STRIP("a", "9", "9")), NULL, "", AA, AA);
    DECODES(FUSED(STRIP("a", "0", "1")), NULL, "aab", AA, B, A);
    DECODES(FUSED(REPLACE("aab", "x")), NULL, "axb", AA, A, B, B);
    DECODES(FUSED(REPLACE("aab", "x")), NULL, "aa", AA);
    DECODES(FUSED(REPLACE("aab", "")), NULL, "aba", A, B, A);
    DECODES(FUSED(REPLACE("\xe4\xb8\xad"
                          "a",
                          "\xe4\xb8\xad") "," STRIP("\xe4\xb8\xad", "1", "0")),
            NULL, "\xe4\xb8\xad", 16, 16, A);
    DECODES(FUSED("{\"type\":\"Metaspace\",\"replacement\":\"" LOW "\"}"), NULL, "aa", LOW_A,
            LOW_A);
    DECODES("{" DECODERS("{\"type\":\"Metaspace\",\"replacement\":\"" LOW "\"}") "," MODEL("") "}",
            NULL, "a a", LOW_A, LOW_A);
    DECODES("{" DECODERS("{\"type\":\"Metaspace\",\"replacement\":\"" LOW
                         "\",\"prepend_scheme\":\"never\"}") "," MODEL("") "}",
            NULL, " a a", LOW_A, LOW_A);
    DECODES("{" DECODERS(STRIP("a", "0", "3")) "," MODEL("") "}", NULL, LOW "b", LOW_A, AA, B);
}

static void encodes(const char *json, const char *text, size_t bytes, const int32_t *wanted,
                    size_t count) {
    mr_tokenizer *t = parse(json);
    mr_token_list ids = {0};
    mr_err err = {{0}};
    if (mr_tokenizer_encode(t, text, bytes, NULL, &ids, &err) != MR_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < count && i < ids.count; i++)
        if (ids.items[i] != wanted[i]) fail_msg("'%s': id %zu is %d", text, i, ids.items[i]);
    assert_int_equal(ids.count, count);
    mr_token_list_free(&ids);
    mr_tokenizer_close(t);
}
#define ENCODES(json, text, ...)                                                                   \
    encodes(json, text, sizeof(text) - 1, (const int32_t[]){__VA_ARGS__},                          \
            sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_characters_bytes_and_the_unknown(void **state) {
    (void)state;
#define PLAIN(options) "{" DECODERS("{\"type\":\"Fuse\"}") "," MODEL(options) "}"
    static const char json[] = PLAIN("\"byte_fallback\":true,\"fuse_unk\":true,");
    ENCODES(json,
            "a\xe4\xb8\xad"
            "b",
            A, 16, B);
    ENCODES(json, "\xe4\xb8\xb8", E4, B8, B8);
    ENCODES(json, "zza", UNK, A);
    ENCODES(json, "z\xe4\xb8\xb8za", E4, B8, B8, UNK, A); /* as the reference: bytes overtake */
    ENCODES(PLAIN(""), "zza", UNK, UNK, A);
    ENCODES(json,
            "a\xff\xff\xe4"
            "b",
            A, FF, FF, E4, B); /* not UTF-8: byte by byte */
    ENCODES(PLAIN("\"ignore_merges\":true,"), "aa", AA);
    ENCODES(PLAIN(""), "aaa", AA, A);
}

static void test_where_metaspace_prepends(void **state) {
    (void)state;
#define FIRST                                                                                      \
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"" LOW                             \
    "\",\"prepend_scheme\":\"first\",\"split\":false}"
    static const char json[] =
        "{" FIRST "," LLAMA "," ADDED("false") "," MODEL("\"byte_fallback\":true,") "}";
    ENCODES(json, "a", LOW_A);
    ENCODES(json, " a", LOW_A);
    ENCODES(json, "<s>a", BOS, A);
    ENCODES(json, "a<s>a", LOW_A, BOS, A);
    ENCODES(json,
            "\xff"
            "a",
            FF, A);
    ENCODES("{" FIRST "," NORMAL("NFD") "," LLAMA "," MODEL("") "}", "a", LOW_A);
    ENCODES("{" FIRST
            ",\"normalizer\":{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}," LLAMA
            "," MODEL("") "}",
            " a ", A); /* what it came from did not begin the text */
}

/* A user's text must not name a special token, also where the names are looked for in normalized
 * text, in which nothing stands where it stood. */
static void test_literal_spans_in_normalized_text(void **state) {
    (void)state;
    mr_tokenizer *t = parse(
        "{\"normalizer\":" REPLACE("b", "aaaa") "," LLAMA "," ADDED("true") "," MODEL("") "}");
    mr_token_list ids = {0};
    mr_err err = {{0}};
    const char *text = "bb<s>bb<s>bb</s><s>";
    const mr_text_span spans[] = {{5, 5}, {16, 1}};
    assert_int_equal(mr_tokenizer_encode(t, text, strlen(text),
                                         &(mr_encode_options){.literal = spans, .literal_count = 2},
                                         &ids, &err),
                     MR_OK);
    int begins = 0, ends = 0;
    for (size_t i = 0; i < ids.count; i++) {
        begins += ids.items[i] == BOS;
        ends += ids.items[i] == EOS;
    }
    assert_int_equal(begins, 1);
    assert_int_equal(ends, 1);
    assert_int_equal(ids.items[4], BOS); /* the first one: behind eight letters, two by two */
    mr_token_list_free(&ids);
    mr_tokenizer_close(t);
}

static void test_growth_is_bounded(void **state) {
    (void)state;
    mr_text json = {0};
    mr_err err = {{0}};
    mr_token_list ids = {0};
    char *content = mr_alloc(1025), *text = mr_alloc(100000);
    memset(content, 'a', 1024);
    memset(text, 'a', 100000);
    mr_text_add_string(&json, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 8; i++)
        mr_text_format(&json,
                       "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},"
                       "\"content\":\"%s\"}",
                       i ? "," : "", content);
    mr_text_add_string(&json, "]}," LLAMA "," MODEL("") "}");
    mr_tokenizer *t = parse(mr_text_string(&json));
    assert_int_equal(mr_tokenizer_encode(t, text, 100000, NULL, &ids, &err), MR_ERR_LIMIT);
    assert_non_null(strstr(err.text, "the normalizers make more than"));
    assert_int_equal(ids.count, 0);
    mr_tokenizer_close(t);
    content[0] = 'b';
    mr_text_clear(&json);
    mr_text_format(&json, "{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"%sa\"},%s", content,
                   LLAMA "," MODEL("") "}");
    assert_int_equal(mr_tokenizer_parse(&t, json.data, json.bytes, "t.json", &err), MR_ERR_LIMIT);
    assert_non_null(strstr(err.text, "prepend has 1025 bytes"));
    mr_text_free(&json);
    free(content);
    free(text);
}

static void run_for(const char *json, const char *unit, size_t bytes) {
    mr_tokenizer *t = parse(json);
    mr_token_list ids = {0};
    mr_err err = {{0}};
    mr_text text = {0}, back = {0};
    const int64_t start = mr_now_ns();
    while (text.bytes < bytes) mr_text_add_string(&text, unit);
    if (mr_tokenizer_encode(t, text.data, text.bytes, NULL, &ids, &err) != MR_OK)
        fail_msg("%s", err.text);
    mr_decoder *d = mr_decoder_open(t, NULL);
    for (size_t i = 0; i < ids.count; i++) mr_decoder_push(d, ids.items[i], &back);
    mr_decoder_flush(d, &back);
    assert_true(ids.count > 0 && back.bytes > 0);
    if (mr_now_ns() - start > 20ll * 1000000000) fail_msg("'%s' took more than 20 s", unit);
    mr_decoder_close(d);
    mr_text_free(&back);
    mr_text_free(&text);
    mr_token_list_free(&ids);
    mr_tokenizer_close(t);
}

/* Anything quadratic would take hours. */
static void test_long_runs_of_one_kind(void **state) {
    (void)state;
    static const char *const units[] = {"a",
                                        " ",
                                        "\xe4\xb8\xad",
                                        "z",
                                        "\xcc\x81\xcc\xa7",
                                        "\xff",
                                        "\xe1\x84\x80\xe1\x85\xa1",
                                        "<s",
                                        "e\xcc\x81",
                                        "\xf0\x9f\x99\x82"};
    enum { BYTES = 400000 };
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        run_for("{" LEGACY "," LLAMA "," ADDED("true") "," MODEL("\"byte_fallback\":true,"
                                                                 "\"fuse_unk\":true,") "}",
                units[i], BYTES);
        run_for("{" NORMAL("NFKC") "," FIRST "," LLAMA "," ADDED("false") "," MODEL("") "}",
                units[i], BYTES);
        run_for("{" NORMAL("NFD") ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{"
                                  "\"type\":\"Split\",\"pattern\":{\"Regex\":\"a|.\"},\"behavior\":"
                                  "\"MergedWithNext\"}"
                                  ",{\"type\":\"Punctuation\"},{\"type\":\"Digits\"}]}," LLAMA
                                  "," MODEL("") "}",
                units[i], BYTES);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_decoding),
        cmocka_unit_test(test_a_run_is_owed_to_its_tokens),
        cmocka_unit_test(test_decoders_on_the_whole_text),
        cmocka_unit_test(test_characters_bytes_and_the_unknown),
        cmocka_unit_test(test_where_metaspace_prepends),
        cmocka_unit_test(test_literal_spans_in_normalized_text),
        cmocka_unit_test(test_growth_is_bounded),
        cmocka_unit_test(test_long_runs_of_one_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
