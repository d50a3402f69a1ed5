/* fuzz_tokenizer.c - any bytes as tokenizer.json, and any bytes as text for a good one.
 *
 * An input that begins with '{' is a file; when it opens, a few awkward texts go through it. Any
 * other input is a text for a small byte-level tokenizer with added tokens, its first byte choosing
 * options; what comes out must spell the text again. */
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static mr_tokenizer *fixed;

/* All 256 bytes, a few merges, an added token of each kind. */
static void open_fixed(void) {
    mr_text json = {0};
    mr_err err;
    mr_text_add_string(&json,
                       "{\"added_tokens\":[{\"id\":260,\"content\":\"<s>\",\"special\":true},"
                       "{\"id\":261,\"content\":\"<t>\",\"lstrip\":true,\"rstrip\":true},"
                       "{\"id\":262,\"content\":\"ab\",\"single_word\":true}],"
                       "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                       "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    uint32_t moved = 0;
    for (uint32_t b = 0; b < 256; b++) {
        const bool stays = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
        mr_text_format(&json, "\"\\u%04x\":%u,", stays ? b : 256 + moved, b);
        moved += !stays;
    }
    mr_text_add_string(&json, "\"th\":256,\"the\":257,\"aa\":258,\"aaaa\":259},"
                              "\"merges\":[\"t h\",\"th e\",\"a a\",\"aa aa\"]}}");
    if (mr_tokenizer_parse(&fixed, json.data, json.bytes, "fixed", &err) != MR_OK) abort();
    mr_text_free(&json);
}

static void use(const mr_tokenizer *t) {
    static const char *const texts[] = {"the  quick 123\n\n", "\xff\xfe<s> \xe2\x80",
                                        "aaaaaaaaaaaaa"};
    mr_token_list ids = {0};
    mr_err err;
    for (size_t i = 0; i < 3; i++)
        mr_tokenizer_encode(t, texts[i], strlen(texts[i]),
                            &(mr_encode_options){.add_template = true}, &ids, &err);
    for (size_t i = 0; i < ids.count; i++)
        assert(ids.items[i] >= 0 && (uint32_t)ids.items[i] < mr_tokenizer_count(t));
    mr_token_list_free(&ids);
}

static void encode_text(uint8_t how, const char *text, size_t bytes) {
    const mr_text_span span = {bytes / 3, bytes / 3};
    const mr_encode_options options = {
        .no_special = how & 1, .literal = &span, .literal_count = how >> 1 & 1};
    mr_token_list ids = {0};
    mr_text raw = {0}, shown = {0};
    mr_detokenizer state = {0};
    mr_err err;
    if (mr_tokenizer_encode(fixed, text, bytes, &options, &ids, &err) != MR_OK) abort();
    for (size_t i = 0; i < ids.count; i++) {
        size_t count;
        const char *token = mr_tokenizer_bytes(fixed, ids.items[i], &count);
        mr_text_add(&raw, token, count);
        mr_detokenizer_push(&state, token, count, &shown);
    }
    mr_detokenizer_finish(&state, &shown);
    assert(mr_utf8_valid(mr_text_string(&shown), shown.bytes));
    /* only the token that strips spaces around it may lose bytes */
    if (memmem(text, bytes, "<t>", 3) == NULL)
        assert(raw.bytes == bytes && memcmp(mr_text_string(&raw), text, bytes) == 0);
    mr_text_free(&raw);
    mr_text_free(&shown);
    mr_token_list_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    mr_tokenizer *t;
    mr_err err = {{0}};
    if (!fixed) open_fixed();
    if (bytes == 0) return 0;
    if (data[0] != '{') {
        encode_text(data[0], (const char *)data + 1, bytes - 1);
        return 0;
    }
    if (mr_tokenizer_parse(&t, (const char *)data, bytes, "tokenizer.json", &err) == MR_OK)
        use(t);
    else
        assert(t == NULL && strstr(err.text, "tokenizer.json"));
    mr_tokenizer_close(t);
    return 0;
}
