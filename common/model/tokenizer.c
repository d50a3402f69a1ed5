/* tokenizer.c - cutting added tokens out, encoding.
 *
 * Added tokens are cut out of the text first, longest at each place, left to right: those with
 * normalized = false over the whole text, then the others in what the normalizers make of each part
 * that is left. As in the reference, a
 * match that a flag rules out is passed over whole, so a shorter token inside it is not found. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

void mr_token_list_add(mr_token_list *list, int32_t id) {
    if (list->count == list->room) {
        list->room = list->room ? 2 * list->room : 64;
        list->items = mr_realloc_array(list->items, list->room, sizeof(*list->items));
    }
    list->items[list->count++] = id;
}

void mr_token_list_free(mr_token_list *list) {
    free(list->items);
    *list = (mr_token_list){0};
}

/* The text being encoded, and which parts of it may not name special tokens. */
typedef struct {
    tokenizer_run run;
    const mr_encode_options *options;
    const char *text;
    bool track[2];          /* whether normalized text must know its origin: [0] at the front */
    uint32_t literal_at[2]; /* by pass: spans before this one end before the current place */
} encoding;

/* What one pass looks for added tokens in: the whole text, or normalized text. */
typedef struct {
    const char *text;
    size_t bytes;
    const uint32_t *origin; /* of each byte in the whole text; NULL: base and on */
    size_t base, base_end;  /* where all of it came from */
} view;

static size_t longest_match(const tokenizer_trie *trie, const char *text, size_t bytes,
                            uint32_t *added) {
    size_t best = 0;
    uint32_t node = trie->root[(uint8_t)text[0]];
    for (size_t depth = 1; node != 0; depth++) {
        const tokenizer_node *n = &trie->nodes[node];
        if (n->added != 0) {
            best = depth;
            *added = n->added - 1;
        }
        if (depth == bytes) break;
        node = n->child;
        while (node != 0 && trie->nodes[node].byte != (uint8_t)text[depth])
            node = trie->nodes[node].sibling;
    }
    return best;
}

static bool overlaps_literal(encoding *e, int pass, const view *v, size_t first, size_t end) {
    const mr_encode_options *o = e->options;
    if (o->literal_count == 0) return false;
    if (v->origin) {
        end = end < v->bytes ? v->origin[end] : v->base_end;
        first = v->origin[first];
        if (end <= first) end = first + 1;
    } else {
        first += v->base;
        end += v->base;
    }
    for (uint32_t i = e->literal_at[pass]; i < o->literal_count; i++) {
        const mr_text_span *span = &o->literal[i];
        if (span->first >= end) return false;
        if (span->first + span->bytes > first) return true;
        e->literal_at[pass] = i + 1;
    }
    return false;
}

static bool is_word_at(const char *text, size_t bytes) {
    size_t length;
    return bytes > 0 && mr_utf8_step(text, bytes, &length) == MR_UTF8_VALID &&
           tokenizer_is_word(tokenizer_character(text, length));
}

/* Bytes of the white space character at text; 0 where there is none. */
static size_t space_at(const char *text, size_t bytes) {
    size_t length;
    if (bytes == 0 || mr_utf8_step(text, bytes, &length) != MR_UTF8_VALID) return 0;
    return tokenizer_is_space(tokenizer_character(text, length)) ? length : 0;
}

static bool stands_alone(const view *v, size_t first, size_t end) {
    size_t before = first;
    while (before > 0 && first - before < 4 && ((uint8_t)v->text[--before] & 0xc0) == 0x80)
        ;
    const bool word_before = first > 0 && is_word_at(v->text + before, first - before);
    return !word_before && !is_word_at(v->text + end, v->bytes - end);
}

static size_t strip_left(const char *text, size_t first, size_t lower) {
    while (first > lower) {
        size_t before = first - 1;
        while (before > lower && first - before < 3 && ((uint8_t)text[before] & 0xc0) == 0x80)
            before--;
        if (space_at(text + before, first - before) != first - before) break;
        first = before;
    }
    return first;
}

static mr_status encode_gap(encoding *e, int pass, const view *v, size_t first, size_t end);

/* Cuts out the added tokens of one pass. */
static mr_status encode_view(encoding *e, int pass, const view *v) {
    const mr_tokenizer *t = e->run.tokenizer;
    const tokenizer_trie *trie = &t->tries[pass];
    size_t done = 0, at = trie->count == 0 ? v->bytes : 0;
    while (at < v->bytes) {
        uint32_t index = 0;
        const size_t length = longest_match(trie, v->text + at, v->bytes - at, &index);
        if (length == 0) {
            at++;
            continue;
        }
        const tokenizer_added *added = &t->added[index];
        size_t first = at, end = at + length;
        at = end;
        if (added->special && (e->options->no_special || overlaps_literal(e, pass, v, first, end)))
            continue;
        if (added->single_word && !stands_alone(v, first, end)) continue;
        if (added->lstrip) first = strip_left(v->text, first, done);
        if (added->rstrip)
            for (size_t space; (space = space_at(v->text + end, v->bytes - end)) > 0;) end += space;
        const mr_status status = encode_gap(e, pass, v, done, first);
        if (status != MR_OK) return status;
        mr_token_list_add(e->run.out, (int32_t)added->id);
        done = end;
    }
    return encode_gap(e, pass, v, done, v->bytes);
}

/* How many bytes of v at `first` came from the very beginning of the whole text. */
static size_t count_zero(const view *v, size_t first, size_t end) {
    size_t zero = 0;
    if (!v->origin) return v->base + first == 0 ? tokenizer_character_bytes(v->text[0]) : 0;
    while (first + zero < end && v->origin[first + zero] == 0) zero++;
    return zero;
}

/* Valid text without a token of the first pass: normalized, then searched for the others. */
static mr_status encode_valid(encoding *e, size_t first, size_t end) {
    tokenizer_normalized normal;
    const bool track = e->track[0] || (e->track[1] && first == 0);
    const mr_status status =
        tokenizer_normalize(&e->run, e->text + first, end - first, first, track, &normal);
    if (status != MR_OK) return status;
    const view v = {normal.text, normal.bytes, normal.origin, first, end};
    return encode_view(e, 1, &v);
}

/* What lies between two added tokens. Bytes that belong to no character are words of their own. */
static mr_status encode_gap(encoding *e, int pass, const view *v, size_t first, size_t end) {
    if (first >= end) return MR_OK;
    if (pass == 1) {
        const size_t zero = e->run.tokenizer->prepends_first ? count_zero(v, first, end) : 0;
        return tokenizer_split(&e->run, (tokenizer_piece){v->text + first, end - first, zero});
    }
    for (size_t start = first, at = first, length; at < end; start = at) {
        mr_status status = MR_OK;
        while (at < end && mr_utf8_step(v->text + at, end - at, &length) == MR_UTF8_VALID)
            at += length;
        if (at > start) status = encode_valid(e, start, at);
        if (status != MR_OK) return status;
        start = at;
        while (at < end && mr_utf8_step(v->text + at, end - at, &length) != MR_UTF8_VALID)
            at += length;
        if (at > start) status = tokenizer_merge_word(&e->run, v->text + start, at - start);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

/* A sane expression takes a few steps for each byte it looks at; only one that tries the same bytes
 * over and over takes more. */
mr_status tokenizer_run_open(tokenizer_run *run, size_t bytes) {
    const uint64_t steps = MR_MAX_REGEX_STEPS + 32ull * bytes;
    const uint32_t limit = steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX;
    run->limits = pcre2_match_context_create(NULL);
    run->match = pcre2_match_data_create(1, NULL);
    if (!run->limits || !run->match)
        return mr_fail(run->err, MR_ERR_NOMEM, "no memory to tokenize");
    pcre2_set_match_limit(run->limits, limit);
    pcre2_set_depth_limit(run->limits, limit);
    pcre2_set_heap_limit(run->limits, 256 << 10); /* KiB */
    return MR_OK;
}

void tokenizer_run_close(tokenizer_run *run) {
    pcre2_match_data_free(run->match);
    pcre2_match_context_free(run->limits);
    for (int i = 0; i < 2; i++) tokenizer_buffer_free(&run->normal[i]);
    free(run->symbols);
    free(run->heap);
}

mr_status mr_tokenizer_encode(const mr_tokenizer *t, const char *text, size_t bytes,
                              const mr_encode_options *options, mr_token_list *out, mr_err *err) {
    static const mr_encode_options plain = {0};
    const mr_encode_options *o = options ? options : &plain;
    encoding e = {.run = {.tokenizer = t, .out = out, .err = err}, .options = o, .text = text};
    const view whole = {text, bytes, NULL, 0, bytes};
    if (bytes > MR_MAX_TEXT_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "a text of %zu bytes; at most %d are encoded", bytes,
                       MR_MAX_TEXT_BYTES);
    e.track[0] = o->literal_count > 0 && t->tries[1].has_special;
    e.track[1] = t->prepends_first;
    const size_t before = out->count;
    mr_status status = tokenizer_run_open(&e.run, bytes);
    if (status == MR_OK && o->add_template)
        for (uint32_t i = 0; i < t->before_count; i++) mr_token_list_add(out, t->before[i]);
    if (status == MR_OK) status = encode_view(&e, 0, &whole);
    if (status == MR_OK && o->add_template)
        for (uint32_t i = 0; i < t->after_count; i++) mr_token_list_add(out, t->after[i]);
    if (status != MR_OK) out->count = before;
    tokenizer_run_close(&e.run);
    return status;
}

uint32_t mr_tokenizer_count(const mr_tokenizer *t) {
    return t->count;
}

size_t mr_tokenizer_longest_token(const mr_tokenizer *t) {
    return t->longest;
}

const char *mr_tokenizer_bytes(const mr_tokenizer *t, int32_t id, size_t *bytes) {
    *bytes = 0;
    if (id < 0 || (uint32_t)id >= t->count) return "";
    return tokenizer_strings_at(&t->shown, (uint32_t)id, bytes);
}

bool mr_tokenizer_is_special(const mr_tokenizer *t, int32_t id) {
    return id >= 0 && (uint32_t)id < t->count && t->special[id] != 0;
}

int32_t mr_tokenizer_find(const mr_tokenizer *t, const char *bytes, size_t count) {
    int32_t found = -1;
    for (uint32_t i = 0; i < t->added_count; i++) {
        size_t have;
        const int32_t id = (int32_t)t->added[i].id;
        const char *text = mr_tokenizer_bytes(t, id, &have);
        if (have == count && memcmp(text, bytes, count) == 0) return id;
    }
    for (uint32_t id = 0; id < t->count && found < 0; id++) {
        size_t have;
        const char *text = mr_tokenizer_bytes(t, (int32_t)id, &have);
        if (have == count && memcmp(text, bytes, count) == 0) found = (int32_t)id;
    }
    return found;
}
