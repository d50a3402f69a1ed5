/* Goal: readers see whole characters, never any part of a stop string, and the right entries.
 * Method: the gpt2 test tokenizer's single-byte tokens, so that a test can cut text anywhere;
 * random texts against a plain search for the stop strings. */
#include "common/base/mem.h"
#include "coordinator/stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static mr_tokenizer *tokenizer;
static int32_t byte_token[256];

static int setup(void **state) {
    (void)state;
    mr_err err = {{0}};
    if (mr_tokenizer_open(&tokenizer, MR_SOURCE_DIR "/tests/tokenizer/gpt2.json", &err) != MR_OK)
        return -1;
    for (int i = 0; i < 256; i++) {
        const char c = (char)i;
        byte_token[i] = mr_tokenizer_find(tokenizer, &c, 1);
    }
    return 0;
}

static int teardown(void **state) {
    (void)state;
    mr_tokenizer_close(tokenizer);
    return 0;
}

static mr_stop_set *stops_of(const char *const *strings, uint32_t count) {
    size_t bytes[MR_MAX_STOP_STRINGS];
    for (uint32_t i = 0; i < count; i++) bytes[i] = strlen(strings[i]);
    return mr_stop_set_open(strings, bytes, count);
}

typedef struct {
    mr_text text;
    uint32_t entries;
    bool stopped;
    uint64_t last_offset;
} collected;

static void collect(collected *c, mr_stream_part part) {
    assert_true(mr_utf8_valid(part.text, part.bytes));
    mr_text_add(&c->text, part.text, part.bytes);
    for (uint32_t i = 0; i < part.entry_count; i++) c->last_offset = part.entries[i].text_offset;
    c->entries += part.entry_count;
    c->stopped = part.stopped;
}

static collected run(const char *text, size_t bytes, const char *const *stops, uint32_t count) {
    collected c = {0};
    mr_stop_set *set = count ? stops_of(stops, count) : NULL;
    mr_stream *stream = mr_stream_open(tokenizer, set, true, false);
    for (size_t i = 0; i < bytes && !c.stopped; i++) {
        const mr_token_entry entry = {.token = byte_token[(uint8_t)text[i]]};
        collect(&c, mr_stream_push(stream, &entry));
    }
    collect(&c, mr_stream_finish(stream));
    mr_stream_close(stream);
    mr_stop_set_close(set);
    return c;
}

static void expect(const char *text, const char *const *stops, uint32_t count, const char *wanted,
                   bool stopped) {
    collected c = run(text, strlen(text), stops, count);
    assert_string_equal(mr_text_string(&c.text), wanted);
    assert_int_equal(c.stopped, stopped);
    mr_text_free(&c.text);
}

static void test_stop_strings(void **state) {
    (void)state;
    static const char *const ab[] = {"ab"}, *const two[] = {"bcd", "abcdef"};
    static const char *const nested[] = {"c", "abc"}, *const again[] = {"aab"};
    static const char *const e[] = {"\xc3\xa9"};
    expect("xxaabyy", ab, 1, "xxa", true);
    expect("xxa", ab, 1, "xxa", false);
    expect("abcdef", two, 2, "a", true);
    expect("xabc", nested, 2, "x", true); /* both end together: the longest wins */
    expect("aaab", again, 1, "a", true);
    expect("caf\xc3\xa9!", e, 1, "caf", true);
    expect("caf\xc3\xa8!", e, 1, "caf\xc3\xa8!", false);
    expect("ab", ab, 1, "", true);
    expect("", ab, 1, "", false);
}

static void test_stop_text_is_held_back(void **state) {
    (void)state;
    static const char *const stops[] = {"END"};
    mr_stop_set *set = stops_of(stops, 1);
    mr_stream *stream = mr_stream_open(tokenizer, set, false, false);
    static const char text[] = "aENxEND";
    static const size_t safe[] = {1, 0, 0, 3, 0, 0, 0};
    for (size_t i = 0; i < 7; i++) {
        const mr_token_entry entry = {.token = byte_token[(uint8_t)text[i]]};
        const mr_stream_part part = mr_stream_push(stream, &entry);
        assert_int_equal(part.bytes, safe[i]);
        assert_int_equal(part.stopped, i == 6);
    }
    assert_int_equal(mr_stream_finish(stream).bytes, 0);
    mr_stream_close(stream);
    mr_stop_set_close(set);
}

static void test_entries_follow_their_text(void **state) {
    (void)state;
    static const char *const stops[] = {"END"};
    collected c = run("ab\xc3\xa9"
                      "ENDx",
                      8, stops, 1);
    assert_string_equal(mr_text_string(&c.text), "ab\xc3\xa9");
    assert_int_equal(c.entries, 4); /* two of them make one character */
    assert_int_equal(c.last_offset, 2);
    mr_text_free(&c.text);
    c = run("abEN", 4, stops, 1);
    assert_int_equal(c.entries, 4);
    assert_int_equal(c.last_offset, 3);
    mr_text_free(&c.text);
    c = run("\xff\xff"
            "a",
            3, NULL, 0);
    assert_string_equal(mr_text_string(&c.text), "\xef\xbf\xbd\xef\xbf\xbd"
                                                 "a");
    assert_int_equal(c.entries, 3);
    assert_int_equal(c.last_offset, 2);
    mr_text_free(&c.text);
}

static void test_special_tokens_have_no_text(void **state) {
    (void)state;
    mr_stream *stream = mr_stream_open(tokenizer, NULL, true, false);
    mr_stream_part part = mr_stream_push(stream, &(mr_token_entry){.token = 2});
    assert_int_equal(part.bytes, 0);
    assert_int_equal(part.entry_count, 1);
    part = mr_stream_push(stream, &(mr_token_entry){.token = 1 << 30}); /* padding rows */
    assert_int_equal(part.bytes, 0);
    mr_stream_close(stream);
    stream = mr_stream_open(NULL, NULL, false, false);
    assert_int_equal(mr_stream_push(stream, &(mr_token_entry){.token = 7}).bytes, 0);
    mr_stream_close(stream);
}

/* A vocabulary of characters: a run of byte tokens is text only when it ends, and belongs to them;
 * the first space stays where other text stood before. */
static void test_pieces_and_runs_of_bytes(void **state) {
    (void)state;
    static const char *const stops[] = {"\xf0\x9f\x99\x82!"};
    mr_tokenizer *pieces;
    mr_err err = {{0}};
    mr_token_list ids = {0};
    if (mr_tokenizer_open(&pieces, MR_SOURCE_DIR "/tests/tokenizer/llama2.json", &err) != MR_OK)
        fail_msg("%s", err.text);
    const char *text = "a \xf0\x9f\x98\x80 b\xf0\x9f\x99\x82!x";
    assert_int_equal(mr_tokenizer_encode(pieces, text, strlen(text), NULL, &ids, &err), MR_OK);
    for (int continues = 0; continues < 2; continues++) {
        mr_stop_set *set = stops_of(stops, 1);
        mr_stream *stream = mr_stream_open(pieces, set, true, continues);
        collected c = {0};
        uint64_t offset = 0;
        for (size_t i = 0; i < ids.count && !c.stopped; i++) {
            const mr_stream_part part =
                mr_stream_push(stream, &(mr_token_entry){.token = ids.items[i]});
            for (uint32_t e = 0; e < part.entry_count; e++) {
                assert_true(part.entries[e].text_offset >= offset);
                offset = part.entries[e].text_offset;
            }
            collect(&c, part);
        }
        assert_true(c.stopped);
        const char *wanted = &" a \xf0\x9f\x98\x80 b"[continues ? 0 : 1];
        assert_string_equal(mr_text_string(&c.text), wanted);
        mr_text_free(&c.text);
        mr_stream_close(stream);
        mr_stop_set_close(set);
    }
    mr_token_list_free(&ids);
    mr_tokenizer_close(pieces);
}

/* Where a plain search finds the first stop string to end; SIZE_MAX: nowhere. */
static size_t cut_of(const char *text, size_t bytes, const char *const *stops, uint32_t count) {
    for (size_t end = 1; end <= bytes; end++) {
        size_t longest = 0;
        for (uint32_t s = 0; s < count; s++) {
            const size_t length = strlen(stops[s]);
            if (length <= end && memcmp(text + end - length, stops[s], length) == 0 &&
                length > longest)
                longest = length;
        }
        if (longest > 0) return end - longest;
    }
    return SIZE_MAX;
}

static void test_random_texts_against_a_plain_search(void **state) {
    (void)state;
    static const char *const stops[] = {"abab", "bba", "aaaa", "babb", "cc", "abcab"};
    uint32_t random = 99;
    for (int round = 0; round < 3000; round++) {
        char text[24];
        for (size_t i = 0; i < sizeof(text); i++)
            text[i] = "aabbc"[((random = random * 1664525u + 1013904223u) >> 24) % 5];
        const uint32_t count = 1 + (random >> 16) % 6;
        const size_t cut = cut_of(text, sizeof(text), stops, count);
        collected c = run(text, sizeof(text), stops, count);
        assert_int_equal(c.stopped, cut != SIZE_MAX);
        assert_int_equal(c.text.bytes, cut != SIZE_MAX ? cut : sizeof(text));
        assert_int_equal(c.entries, c.text.bytes);
        assert_memory_equal(mr_text_string(&c.text), text, c.text.bytes);
        mr_text_free(&c.text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_stop_text_is_held_back),
        cmocka_unit_test(test_entries_follow_their_text),
        cmocka_unit_test(test_special_tokens_have_no_text),
        cmocka_unit_test(test_pieces_and_runs_of_bytes),
        cmocka_unit_test(test_random_texts_against_a_plain_search),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
