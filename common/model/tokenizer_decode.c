/* tokenizer_decode.c - decoders: ids -> text, as the reference decodes the whole sequence at once.
 *
 * The reference hands a list of strings from decoder to decoder. Three kinds of step follow from
 * that here:
 *   - ahead: what depends on nothing but the string itself (Replace, Strip and ByteLevel in front)
 *     is done once per token of the vocabulary, at load;
 *   - by string: Metaspace drops the first string's spaces; ByteFallback turns a run of <0xE2>
 *     strings into text, or into one U+FFFD each where the run as a whole is not UTF-8, so that a
 *     run can only come out at its end;
 *   - on the text: behind Fuse and ByteLevel there is one string, which passes as a stream. What
 *     may still be stripped or replaced is remembered as a count, never as text. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { NOWHERE = UINT32_MAX };

/* --- reading ---------------------------------------------------------------------------------- */

typedef struct {
    uint32_t fallback; /* where ByteFallback is; NOWHERE */
    uint64_t growth;   /* by the Replaces that run while decoding */
} reading;

static mr_status refuse_place(const char *type, const char *after, mr_err *err) {
    return mr_fail(err, MR_ERR_UNSUPPORTED, "decoder: '%.40s' after %s is not supported", type,
                   after);
}

/* By character: what is given up half-way must still be whole characters. */
static void build_next(tokenizer_decoder *d) {
    const char *text = d->pattern.string;
    d->letters = mr_alloc_array(d->pattern.bytes, sizeof(*d->letters));
    d->next = mr_alloc_array(d->pattern.bytes + 1, sizeof(*d->next));
    for (size_t at = 0, length; at < d->pattern.bytes; at += length) {
        length = tokenizer_character_bytes(text[at]);
        d->letters[d->letter_count++] = tokenizer_character(text + at, length);
    }
    for (uint32_t i = 1, k = 0; i < d->letter_count; i++) {
        while (k > 0 && d->letters[i] != d->letters[k]) k = d->next[k];
        if (d->letters[i] == d->letters[k]) k++;
        d->next[i + 1] = k;
    }
}

static mr_status read_replace(mr_tokenizer *t, tokenizer_decoder *d, const json_t *item, reading *r,
                              mr_err *err) {
    d->kind = DECODER_REPLACE;
    mr_status status = tokenizer_pattern_read(&d->pattern, item, "decoder Replace", err);
    if (status == MR_OK)
        status = tokenizer_read_content(&d->content, &d->content_bytes, item, "content",
                                        "decoder Replace", err);
    const bool ahead = t->decoders_ahead == t->decoder_count && t->fuse_at > t->decoder_count;
    if (status != MR_OK || ahead) return status;
    if (d->pattern.code)
        return refuse_place("Replace with a Regex", "decoders that look at more than one token",
                            err);
    r->growth *= 1 + d->content_bytes / d->pattern.bytes;
    if (r->growth > MR_MAX_NORMALIZED_GROWTH)
        return mr_fail(err, MR_ERR_LIMIT, "decoder: Replace makes more than %d times the text",
                       MR_MAX_NORMALIZED_GROWTH);
    build_next(d);
    return MR_OK;
}

static mr_status read_count(uint64_t *out, const json_t *item, const char *key, mr_err *err) {
    int64_t count = 0;
    const mr_status status = mr_json_int(&count, item, key, 0, INT32_MAX, err);
    *out = (uint64_t)count;
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "decoder Strip");
}

static mr_status read_strip(tokenizer_decoder *d, const json_t *item, mr_err *err) {
    d->kind = DECODER_STRIP;
    mr_status status = tokenizer_read_character(d->character, &d->character_bytes, item, "content",
                                                "decoder Strip", err);
    if (status == MR_OK) status = read_count(&d->start, item, "start", err);
    return status == MR_OK ? read_count(&d->stop, item, "stop", err) : status;
}

static mr_status read_metaspace(tokenizer_decoder *d, const json_t *item, mr_err *err) {
    tokenizer_prepend prepend = PREPEND_ALWAYS;
    d->kind = DECODER_METASPACE;
    const mr_status status = tokenizer_read_metaspace(item, "decoder Metaspace", d->character,
                                                      &d->character_bytes, &prepend, err);
    d->drops_first = prepend != PREPEND_NEVER;
    return status;
}

static mr_status read_plain(mr_tokenizer *t, tokenizer_decoder *d, const char *type, reading *r,
                            mr_err *err) {
    const uint32_t index = t->decoder_count;
    if (strcmp(type, "Fuse") == 0) {
        d->kind = DECODER_FUSE;
        if (t->fuse_at > index) t->fuse_at = index;
        return MR_OK;
    }
    if (t->fuse_at <= index) return refuse_place(type, "a decoder that makes one text", err);
    if (r->fallback != NOWHERE) return refuse_place(type, "ByteFallback", err);
    if (strcmp(type, "ByteFallback") == 0) {
        d->kind = DECODER_BYTE_FALLBACK;
        r->fallback = index;
        return MR_OK;
    }
    d->kind = DECODER_BYTE_LEVEL;
    t->decodes_bytes = true;
    t->fuse_at = index + 1;
    return MR_OK;
}

static mr_status read_one(mr_tokenizer *t, const json_t *item, const char *type, reading *r,
                          mr_err *err) {
    if (t->decoder_count == MR_MAX_DECODERS)
        return mr_fail(err, MR_ERR_LIMIT, "decoder: more than %d of them", MR_MAX_DECODERS);
    tokenizer_decoder *d = &t->decoders[t->decoder_count];
    mr_status status;
    if (strcmp(type, "Replace") == 0)
        status = read_replace(t, d, item, r, err);
    else if (strcmp(type, "Strip") == 0)
        status = read_strip(d, item, err);
    else if (strcmp(type, "Metaspace") == 0)
        status = read_metaspace(d, item, err);
    else if (strcmp(type, "ByteFallback") == 0 || strcmp(type, "Fuse") == 0 ||
             strcmp(type, "ByteLevel") == 0)
        status = read_plain(t, d, type, r, err);
    else
        return mr_fail(err, MR_ERR_UNSUPPORTED, "decoder '%.40s' is not supported", type);
    const bool alone =
        d->kind == DECODER_REPLACE || d->kind == DECODER_STRIP || d->kind == DECODER_BYTE_LEVEL;
    const bool one_text = t->fuse_at < t->decoder_count + (d->kind != DECODER_BYTE_LEVEL);
    if (alone && !one_text && t->decoders_ahead == t->decoder_count) t->decoders_ahead++;
    t->decoder_count++; /* counted also where it failed, so that it is freed */
    return status;
}

static mr_status read_item(mr_tokenizer *t, const json_t *item, reading *r, mr_err *err) {
    const char *type = "";
    mr_status status = mr_json_string(&type, item, "type", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "decoder");
    if (strcmp(type, "Sequence") != 0) return read_one(t, item, type, r, err);
    const json_t *list = json_object_get(item, "decoders");
    size_t i;
    json_t *part;
    if (!json_is_array(list))
        return mr_fail(err, MR_ERR_FORMAT, "decoder: a Sequence without decoders");
    json_array_foreach(list, i, part) {
        status = read_item(t, part, r, err);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

mr_status tokenizer_read_decoders(mr_tokenizer *t, const json_t *root, mr_err *err) {
    const json_t *decoder = json_object_get(root, "decoder");
    reading r = {.fallback = NOWHERE, .growth = 1};
    mr_status status = MR_OK;
    t->fuse_at = UINT32_MAX;
    if (decoder && !json_is_null(decoder))
        status = read_item(t, decoder, &r, err);
    else if (t->byte_level) /* nothing else could be meant */
        status = read_one(t, NULL, "ByteLevel", &r, err);
    else
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "decoder is missing: without ByteLevel in pre_tokenizer one is needed");
    t->fallback_at = r.fallback == NOWHERE ? UINT32_MAX : r.fallback;
    if (t->fuse_at > t->decoder_count) t->fuse_at = t->decoder_count;
    return status;
}

void tokenizer_decoder_free(tokenizer_decoder *d) {
    tokenizer_pattern_free(&d->pattern);
    free(d->letters);
    free(d->next);
    free(d->content);
}

/* --- one string ------------------------------------------------------------------------------- */

static bool has_character(const tokenizer_decoder *d, const char *text, size_t bytes) {
    return bytes >= d->character_bytes && memcmp(text, d->character, d->character_bytes) == 0;
}

static void strip_string(const tokenizer_decoder *d, const char *text, size_t bytes, mr_text *out) {
    const size_t unit = d->character_bytes;
    for (uint64_t i = 0; i < d->start && has_character(d, text, bytes); i++) {
        text += unit;
        bytes -= unit;
    }
    for (uint64_t i = 0; i < d->stop && bytes >= unit; i++) {
        if (!has_character(d, text + bytes - unit, unit)) break;
        bytes -= unit;
    }
    mr_text_add(out, text, bytes);
}

static void replace_metaspace(const tokenizer_decoder *d, const char *text, size_t bytes,
                              bool is_first, mr_text *out) {
    for (size_t at = 0, length; at < bytes; at += length) {
        length = tokenizer_character_bytes(text[at]);
        if (!has_character(d, text + at, bytes - at))
            mr_text_add(out, text + at, length);
        else if (!is_first || !d->drops_first)
            mr_text_add(out, " ", 1);
    }
}

static mr_status replace_string(tokenizer_run *run, const tokenizer_decoder *d, const char *text,
                                size_t bytes, mr_text *out) {
    if (d->pattern.exact) run->has_young = tokenizer_has_young(text, bytes);
    tokenizer_finder f = tokenizer_finder_open(run, &d->pattern, text, bytes);
    size_t done = 0, start, end;
    while (out->bytes <= MR_MAX_TEXT_BYTES && tokenizer_finder_next(&f, &start, &end)) {
        mr_text_add(out, text + done, start - done);
        mr_text_add(out, d->content, d->content_bytes);
        done = end;
    }
    mr_text_add(out, text + done, bytes - done);
    return f.status;
}

/* Decoders first .. end-1 on one string, text[0], which is replaced by what they make of it;
 * text[1] is scratch. run: only needed by expressions. */
static mr_status by_string(const mr_tokenizer *t, tokenizer_run *run, uint32_t first, uint32_t end,
                           bool is_first, mr_text *text, size_t bytes_max) {
    for (uint32_t i = first; i < end; i++) {
        const tokenizer_decoder *d = &t->decoders[i];
        const char *in = mr_text_string(&text[0]);
        const size_t bytes = text[0].bytes;
        bool byte_level;
        mr_text_clear(&text[1]);
        if (d->kind == DECODER_REPLACE) {
            const mr_status status = replace_string(run, d, in, bytes, &text[1]);
            if (status != MR_OK) return status;
        } else if (d->kind == DECODER_STRIP)
            strip_string(d, in, bytes, &text[1]);
        else if (d->kind == DECODER_METASPACE)
            replace_metaspace(d, in, bytes, is_first, &text[1]);
        else if (d->kind == DECODER_BYTE_LEVEL) {
            mr_text_add(&text[1], in, bytes);
            if (bytes)
                text[1].bytes = tokenizer_spelled_bytes(text[1].data, in, bytes, &byte_level);
        } else
            continue;
        const mr_text made = text[1];
        text[1] = text[0];
        text[0] = made;
        if (made.bytes > bytes_max)
            return mr_fail(run->err, MR_ERR_LIMIT, "decoder: makes more than %zu bytes of a token",
                           bytes_max);
    }
    return MR_OK;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* The byte a string like <0x0A> names; -1: it names none. */
static int named_byte(const char *text, size_t bytes) {
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const int high = text[3] == '+' ? 0 : hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* --- the vocabulary --------------------------------------------------------------------------- */

static bool same_strings(const tokenizer_strings *a, const tokenizer_strings *b, uint32_t count) {
    return memcmp(a->offset, b->offset, ((size_t)count + 1) * sizeof(*a->offset)) == 0 &&
           memcmp(a->data, b->data, (size_t)a->offset[count]) == 0;
}

typedef struct {
    tokenizer_run run;
    mr_text text[2];        /* one string and scratch */
    mr_text decoded, shown; /* of all tokens so far */
    uint64_t *decoded_offset, *shown_offset;
} indexing;

static mr_status index_token(indexing *x, uint32_t id, const char *spelling, const char *form,
                             bool is_added) {
    const mr_tokenizer *t = x->run.tokenizer;
    const char *string = form ? form : spelling;
    const size_t bytes_max = MR_MAX_TOKEN_BYTES;
    mr_text_clear(&x->text[0]);
    mr_text_add(&x->text[0], string, strlen(string));
    mr_status status = by_string(t, &x->run, 0, t->decoders_ahead, false, x->text, bytes_max);
    if (status != MR_OK) return status;
    mr_text_add(&x->decoded, mr_text_string(&x->text[0]), x->text[0].bytes);
    const uint32_t fallback = t->fallback_at < t->fuse_at ? t->fallback_at : t->fuse_at;
    status = by_string(t, &x->run, t->decoders_ahead, fallback, false, x->text, SIZE_MAX);
    const int byte = t->fallback_at < t->fuse_at
                         ? named_byte(mr_text_string(&x->text[0]), x->text[0].bytes)
                         : -1;
    if (byte >= 0) {
        mr_text_clear(&x->text[0]);
        mr_text_add(&x->text[0], &(char){(char)byte}, 1);
    } else if (status == MR_OK)
        status = by_string(t, &x->run, fallback, t->fuse_at, false, x->text, SIZE_MAX);
    if (is_added) /* its name, whatever the decoders make of it */
        mr_text_add(&x->shown, spelling, strlen(spelling));
    else
        mr_text_add(&x->shown, mr_text_string(&x->text[0]), x->text[0].bytes);
    x->decoded_offset[id + 1] = x->decoded.bytes;
    x->shown_offset[id + 1] = x->shown.bytes;
    if (x->decoded.bytes > MR_MAX_TOKENIZER_BYTES || x->shown.bytes > MR_MAX_TOKENIZER_BYTES)
        return mr_fail(x->run.err, MR_ERR_LIMIT,
                       "the decoder makes more than %d bytes of all tokens",
                       MR_MAX_TOKENIZER_BYTES);
    return status;
}

static char *give_data(mr_text *text) {
    if (!text->data) mr_text_add(text, "", 0);
    char *data = text->data;
    *text = (mr_text){0};
    return data;
}

mr_status tokenizer_index_decoded(mr_tokenizer *t, const char **spelling, char **forms,
                                  mr_err *err) {
    indexing x = {.run = {.tokenizer = t, .err = err}};
    uint8_t *is_added = mr_alloc_array(t->count, 1);
    for (uint32_t i = 0; i < t->added_count; i++) is_added[t->added[i].id] = 1;
    x.decoded_offset = mr_alloc_array((size_t)t->count + 1, sizeof(uint64_t));
    x.shown_offset = mr_alloc_array((size_t)t->count + 1, sizeof(uint64_t));
    mr_status status = tokenizer_run_open(&x.run, MR_MAX_TOKEN_BYTES);
    for (uint32_t id = 0; id < t->count && status == MR_OK; id++) {
        status = index_token(&x, id, spelling[id], forms[id], is_added[id]);
        if (status != MR_OK) status = mr_fail_prefix(err, status, "token %u", id);
    }
    t->decoded = (tokenizer_strings){give_data(&x.decoded), x.decoded_offset};
    t->shown = (tokenizer_strings){give_data(&x.shown), x.shown_offset};
    if (status == MR_OK && same_strings(&t->decoded, &t->shown, t->count))
        tokenizer_strings_free(&t->decoded);
    tokenizer_run_close(&x.run);
    for (int i = 0; i < 2; i++) mr_text_free(&x.text[i]);
    free(is_added);
    return status;
}

/* --- a sequence ------------------------------------------------------------------------------- */

/* What a decoder behind Fuse remembers. */
typedef struct {
    uint64_t count; /* REPLACE: characters of the pattern seen; STRIP: characters held at the end */
    uint64_t dropped; /* STRIP: at the start */
    bool begun;       /* STRIP: something else came */
} streaming;

struct mr_decoder {
    const mr_tokenizer *tokenizer;
    bool keep_special;
    uint64_t strings[2]; /* seen before and behind ByteFallback */
    mr_text run;         /* bytes of a run, until it ends */
    mr_text text[2], lossy_text;
    mr_detokenizer lossy;
    streaming state[MR_MAX_DECODERS];
    mr_text *out;
};

mr_decoder *mr_decoder_open(const mr_tokenizer *tokenizer, const mr_decode_options *options) {
    mr_decoder *d = mr_alloc(sizeof(*d));
    d->tokenizer = tokenizer;
    d->keep_special = options && options->keep_special;
    if (!options || !options->continues) return d;
    d->strings[0] = d->strings[1] = 1;
    for (uint32_t i = 0; i < MR_MAX_DECODERS; i++) d->state[i].begun = true;
    return d;
}

void mr_decoder_close(mr_decoder *d) {
    if (!d) return;
    mr_text_free(&d->run);
    mr_text_free(&d->text[0]);
    mr_text_free(&d->text[1]);
    mr_text_free(&d->lossy_text);
    free(d);
}

static void stream_text(mr_decoder *d, uint32_t at, const char *text, size_t bytes);

static void stream_letters(mr_decoder *d, uint32_t at, uint32_t first, uint32_t count) {
    char text[4];
    for (uint32_t i = first; i < first + count; i++) {
        const size_t bytes = tokenizer_put_character(text, d->tokenizer->decoders[at].letters[i]);
        stream_text(d, at + 1, text, bytes);
    }
}

static void stream_replace(mr_decoder *d, uint32_t at, const char *text, size_t bytes) {
    const tokenizer_decoder *r = &d->tokenizer->decoders[at];
    uint32_t k = (uint32_t)d->state[at].count;
    for (size_t i = 0, length; i < bytes; i += length) {
        length = tokenizer_character_bytes(text[i]);
        const uint32_t c = tokenizer_character(text + i, length);
        while (k > 0 && c != r->letters[k]) { /* what can no longer be part of a match is out */
            stream_letters(d, at, 0, k - r->next[k]);
            k = r->next[k];
        }
        if (c != r->letters[k])
            stream_text(d, at + 1, text + i, length);
        else if (++k == r->letter_count) {
            stream_text(d, at + 1, r->content, r->content_bytes);
            k = 0;
        }
    }
    d->state[at].count = k;
}

static void release(mr_decoder *d, uint32_t at, uint64_t keep) {
    const tokenizer_decoder *s = &d->tokenizer->decoders[at];
    for (; d->state[at].count > keep; d->state[at].count--)
        stream_text(d, at + 1, s->character, s->character_bytes);
}

static void stream_strip(mr_decoder *d, uint32_t at, const char *text, size_t bytes) {
    const tokenizer_decoder *s = &d->tokenizer->decoders[at];
    streaming *state = &d->state[at];
    for (size_t i = 0, length; i < bytes; i += length) {
        length = tokenizer_character_bytes(text[i]);
        const bool is_character = has_character(s, text + i, bytes - i);
        if (is_character && !state->begun && state->dropped < s->start) {
            state->dropped++;
            continue;
        }
        state->begun = true;
        if (is_character) {
            state->count++;
            release(d, at, s->stop);
            continue;
        }
        release(d, at, 0);
        stream_text(d, at + 1, text + i, length);
    }
}

/* Whole characters through decoder `at` and those behind it. */
static void stream_text(mr_decoder *d, uint32_t at, const char *text, size_t bytes) {
    const mr_tokenizer *t = d->tokenizer;
    while (at < t->decoder_count && t->decoders[at].kind == DECODER_FUSE) at++;
    if (bytes == 0) return;
    if (at >= t->decoder_count) {
        mr_text_add(d->out, text, bytes);
        return;
    }
    const tokenizer_decoder *decoder = &t->decoders[at];
    if (decoder->kind == DECODER_REPLACE) {
        stream_replace(d, at, text, bytes);
        return;
    }
    if (decoder->kind == DECODER_STRIP) {
        stream_strip(d, at, text, bytes);
        return;
    }
    for (size_t i = 0, length; i < bytes; i += length) { /* METASPACE: all is the first string */
        length = tokenizer_character_bytes(text[i]);
        if (!has_character(decoder, text + i, bytes - i))
            stream_text(d, at + 1, text + i, length);
        else if (!decoder->drops_first)
            stream_text(d, at + 1, " ", 1);
    }
}

static void stream_end(mr_decoder *d) {
    const mr_tokenizer *t = d->tokenizer;
    for (uint32_t i = t->fuse_at; i < t->decoder_count; i++) {
        const tokenizer_decoder *decoder = &t->decoders[i];
        if (decoder->kind == DECODER_REPLACE) stream_letters(d, i, 0, (uint32_t)d->state[i].count);
    }
    memset(d->state, 0, sizeof(d->state));
}

/* A string behind all that looks at single ones. */
static void put_string(mr_decoder *d, const char *text, size_t bytes) {
    const mr_tokenizer *t = d->tokenizer;
    if (!t->decodes_bytes) {
        stream_text(d, t->fuse_at, text, bytes);
        return;
    }
    if (t->fuse_at == t->decoder_count) {
        mr_detokenizer_push(&d->lossy, text, bytes, d->out);
        return;
    }
    mr_text_clear(&d->lossy_text);
    mr_detokenizer_push(&d->lossy, text, bytes, &d->lossy_text);
    stream_text(d, t->fuse_at, mr_text_string(&d->lossy_text), d->lossy_text.bytes);
}

static void put_behind_fallback(mr_decoder *d, const char *text, size_t bytes) {
    const mr_tokenizer *t = d->tokenizer;
    if (t->fallback_at + 1 >= t->fuse_at) {
        put_string(d, text, bytes);
        return;
    }
    if (text != d->text[0].data) {
        mr_text_clear(&d->text[0]);
        mr_text_add(&d->text[0], text, bytes);
    }
    by_string(t, NULL, t->fallback_at + 1, t->fuse_at, d->strings[1]++ == 0, d->text, SIZE_MAX);
    put_string(d, mr_text_string(&d->text[0]), d->text[0].bytes);
}

static void end_run(mr_decoder *d) {
    const size_t bytes = d->run.bytes;
    if (bytes == 0) return;
    if (mr_utf8_valid(d->run.data, bytes))
        put_behind_fallback(d, d->run.data, bytes);
    else
        for (size_t i = 0; i < bytes; i++) put_behind_fallback(d, "\xef\xbf\xbd", 3);
    mr_text_clear(&d->run);
}

size_t mr_decoder_push(mr_decoder *d, int32_t id, mr_text *out) {
    const mr_tokenizer *t = d->tokenizer;
    const size_t before = out->bytes;
    size_t bytes;
    if (id < 0 || (uint32_t)id >= t->count || (t->special[id] && !d->keep_special)) return 0;
    const char *text =
        tokenizer_strings_at(t->decoded.data ? &t->decoded : &t->shown, (uint32_t)id, &bytes);
    d->out = out;
    const bool falls_back = t->fallback_at < t->fuse_at;
    const uint32_t end = falls_back ? t->fallback_at : t->fuse_at;
    if (t->decoders_ahead < end) {
        mr_text_clear(&d->text[0]);
        mr_text_add(&d->text[0], text, bytes);
        by_string(t, NULL, t->decoders_ahead, end, d->strings[0]++ == 0, d->text, SIZE_MAX);
        text = mr_text_string(&d->text[0]);
        bytes = d->text[0].bytes;
    }
    if (!falls_back) {
        put_string(d, text, bytes);
        return 0;
    }
    const int byte = named_byte(text, bytes);
    if (byte >= 0) {
        mr_text_add(&d->run, &(char){(char)byte}, 1);
        return 0;
    }
    mr_text kept = {0};
    if (text == d->text[0].data && d->run.bytes > 0) { /* the run needs the scratch first */
        mr_text_add(&kept, text, bytes);
        text = kept.data;
    }
    end_run(d);
    const size_t owed = out->bytes - before;
    put_behind_fallback(d, text, bytes);
    mr_text_free(&kept);
    return owed;
}

void mr_decoder_flush(mr_decoder *d, mr_text *out) {
    d->out = out;
    end_run(d);
    if (d->tokenizer->decodes_bytes) {
        mr_text_clear(&d->lossy_text);
        mr_detokenizer_finish(&d->lossy, &d->lossy_text);
        stream_text(d, d->tokenizer->fuse_at, mr_text_string(&d->lossy_text), d->lossy_text.bytes);
    }
    stream_end(d);
    d->strings[0] = d->strings[1] = 0;
}
