/* fuzz_tokenizer.c - any bytes as tokenizer.json, and any bytes as text for two good ones.
 *
 * An input that begins with '{' is a file; when it opens, a few awkward texts go through it and
 * back. Any other input is a text, its first byte choosing options and the tokenizer: a byte-level
 * one with added tokens, or one of characters with all that Llama 2 has. What comes out must spell
 * the text again. */
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static mr_tokenizer *fixed, *pieces;

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

/* <unk>, <s>, the 256 bytes, a few pieces. */
static void open_pieces(void) {
    mr_text json = {0};
    mr_err err;
    mr_text_add_string(
        &json,
        "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true,\"normalized\":true}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
        "\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":"
        "\"\xe2\x96\x81\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":"
        "\"Replace\","
        "\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},"
        "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
        "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"fuse_unk\":true,\"unk_token\":\"<unk>"
        "\","
        "\"vocab\":{\"<unk>\":0,\"<s>\":1,");
    for (uint32_t b = 0; b < 256; b++) mr_text_format(&json, "\"<0x%02X>\":%u,", b, b + 2);
    mr_text_add_string(&json, "\"\xe2\x96\x81\":258,\"a\":259,\"\xe2\x96\x81"
                              "a\":260,\"aa\":261,\"\xc3\xa9\":262},\"merges\":[\"\xe2\x96\x81 a\","
                              "\"a a\"]}}");
    if (mr_tokenizer_parse(&pieces, json.data, json.bytes, "pieces", &err) != MR_OK) abort();
    mr_text_free(&json);
}

/* Whole characters at every step. */
static void decode(const mr_tokenizer *t, const mr_token_list *ids, bool keep, mr_text *out) {
    mr_decoder *d = mr_decoder_open(t, &(mr_decode_options){.keep_special = keep});
    for (size_t i = 0; i < ids->count; i++) {
        const size_t before = out->bytes;
        const size_t owed = mr_decoder_push(d, ids->items[i], out);
        assert(owed <= out->bytes - before);
        assert(mr_utf8_valid(mr_text_string(out) + before, out->bytes - before));
    }
    mr_decoder_flush(d, out);
    assert(mr_utf8_valid(mr_text_string(out), out->bytes));
    mr_decoder_close(d);
}

static void use(const mr_tokenizer *t) {
    static const char *const texts[] = {"the  quick 123\n\n", "\xff\xfe<s> \xe2\x80",
                                        "aaaaaaaaaaaaa"};
    const mr_text_span span = {3, 9};
    mr_token_list ids = {0};
    mr_text text = {0};
    mr_err err;
    for (size_t i = 0; i < 3; i++)
        mr_tokenizer_encode(
            t, texts[i], strlen(texts[i]),
            &(mr_encode_options){.add_template = true, .literal = &span, .literal_count = i & 1},
            &ids, &err);
    for (size_t i = 0; i < ids.count; i++)
        assert(ids.items[i] >= 0 && (uint32_t)ids.items[i] < mr_tokenizer_count(t));
    for (int32_t id = -1; id <= (int32_t)mr_tokenizer_count(t) && id < 300; id++)
        mr_token_list_add(&ids, id);
    decode(t, &ids, true, &text);
    mr_text_free(&text);
    mr_token_list_free(&ids);
}

static void encode_pieces(uint8_t how, const char *text, size_t bytes) {
    const mr_encode_options options = {.no_special = how & 1};
    mr_token_list ids = {0};
    mr_text shown = {0};
    mr_err err;
    if (mr_tokenizer_encode(pieces, text, bytes, &options, &ids, &err) != MR_OK) abort();
    decode(pieces, &ids, true, &shown);
    /* a space is put before each part around special tokens and bytes that are no text */
    if (bytes > 0 && mr_utf8_valid(text, bytes) && !memchr(text, '<', bytes) &&
        !memmem(text, bytes, "\xe2\x96\x81", 3))
        assert(shown.bytes == bytes && memcmp(shown.data, text, bytes) == 0);
    mr_text_free(&shown);
    mr_token_list_free(&ids);
}

static void encode_text(uint8_t how, const char *text, size_t bytes) {
    const mr_text_span span = {bytes / 3, bytes / 3};
    const mr_encode_options options = {
        .no_special = how & 1, .literal = &span, .literal_count = how >> 1 & 1};
    mr_token_list ids = {0};
    mr_text raw = {0}, shown = {0};
    mr_err err;
    if (mr_tokenizer_encode(fixed, text, bytes, &options, &ids, &err) != MR_OK) abort();
    for (size_t i = 0; i < ids.count; i++) {
        size_t count;
        const char *token = mr_tokenizer_bytes(fixed, ids.items[i], &count);
        mr_text_add(&raw, token, count);
    }
    decode(fixed, &ids, true, &shown);
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
    if (!fixed) {
        open_fixed();
        open_pieces();
    }
    if (bytes == 0) return 0;
    if (data[0] != '{') {
        if (data[0] & 4)
            encode_pieces(data[0], (const char *)data + 1, bytes - 1);
        else
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
