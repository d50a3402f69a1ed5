/* compare.c - what the tokenizer makes of cases, against what somebody else made of them.
 *
 *   tokenizer_compare TOKENIZER.json <CASES
 *
 * CASES is one JSON object a line, as tests/tokenizer/make_expected.py writes them: text with ids,
 * template and plain; ids with decoded and skipped (special tokens left out). Each difference is
 * printed; the last line counts. Exit status 1 if there is any. */
#include "common/base/mem.h"
#include "common/model/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mr_tokenizer *tokenizer;

static json_t *encode(const json_t *text, const mr_encode_options *options) {
    mr_token_list ids = {0};
    mr_err err = {{0}};
    json_t *out = json_array();
    const mr_status status = mr_tokenizer_encode(tokenizer, json_string_value(text),
                                                 json_string_length(text), options, &ids, &err);
    if (status != MR_OK) json_array_append_new(out, json_string(err.text));
    for (size_t i = 0; i < ids.count; i++) json_array_append_new(out, json_integer(ids.items[i]));
    mr_token_list_free(&ids);
    return out;
}

static json_t *decode(const json_t *ids, bool keep_special) {
    mr_decoder *decoder =
        mr_decoder_open(tokenizer, &(mr_decode_options){.keep_special = keep_special});
    mr_text text = {0};
    size_t i;
    json_t *id;
    json_array_foreach(ids, i, id) mr_decoder_push(decoder, (int32_t)json_integer_value(id), &text);
    mr_decoder_flush(decoder, &text);
    json_t *out = json_stringn(mr_text_string(&text), text.bytes);
    if (!out) out = json_string("(not UTF-8)");
    mr_text_free(&text);
    mr_decoder_close(decoder);
    return out;
}

/* Prints the difference and says whether there is one; takes `got` over. */
static bool differs(const json_t *row, const char *key, json_t *got) {
    const json_t *wanted = json_object_get(row, key);
    const bool different = wanted && !json_equal(wanted, got);
    if (different) {
        json_t *shown = json_pack("{s:s, s:O, s:O, s:O*}", "what", key, "expected", wanted, "got",
                                  got, "text", json_object_get(row, "text"));
        char *line = json_dumps(shown, JSON_COMPACT | JSON_ENSURE_ASCII);
        puts(line ? line : key);
        free(line);
        json_decref(shown);
    }
    json_decref(got);
    return different;
}

static int check(const json_t *row) {
    const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
    const mr_text_span all = {0, json_string_length(text)};
    int bad = 0;
    if (text) {
        bad += differs(row, "ids", encode(text, NULL));
        bad += differs(row, "plain", encode(text, &(mr_encode_options){.no_special = true}));
        bad += differs(row, "plain",
                       encode(text, &(mr_encode_options){.literal = &all, .literal_count = 1}));
        bad += differs(row, "template", encode(text, &(mr_encode_options){.add_template = true}));
    }
    bad += differs(row, "decoded", decode(ids, true));
    return bad + differs(row, "skipped", decode(ids, false));
}

int main(int argc, char **argv) {
    mr_err err = {{0}};
    unsigned long cases = 0, bad = 0;
    char *line = NULL;
    size_t room = 0;
    if (argc != 2) {
        fprintf(stderr, "usage: tokenizer_compare TOKENIZER.json <CASES\n");
        return 2;
    }
    if (mr_tokenizer_open(&tokenizer, argv[1], &err) != MR_OK) {
        printf("refused: %s\n", err.text);
        return 1;
    }
    for (ssize_t bytes; (bytes = getline(&line, &room, stdin)) > 0; cases++) {
        json_t *row = json_loadb(line, (size_t)bytes, JSON_ALLOW_NUL, NULL);
        if (!row) {
            fprintf(stderr, "line %lu is not JSON\n", cases + 1);
            return 2;
        }
        bad += check(row) > 0;
        json_decref(row);
    }
    free(line);
    mr_tokenizer_close(tokenizer);
    printf("%lu cases, %lu differ\n", cases, bad);
    return bad > 0;
}
