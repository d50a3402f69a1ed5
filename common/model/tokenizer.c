/* tokenizer.c - added tokens, encoding and decoding.
 *
 * Added tokens are cut out of the text first, longest at each place, left to right: those with
 * normalized = false over the whole text, then the others in what is left. As in the reference, a
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
    size_t bytes;
    uint32_t literal_at[2]; /* by pass: spans before this one end before the current place */
} encoding;

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

static bool overlaps_literal(encoding *e, int pass, size_t first, size_t end) {
    const mr_encode_options *o = e->options;
    for (uint32_t i = e->literal_at[pass]; i < o->literal_count; i++) {
        const mr_text_span *span = &o->literal[i];
        if (span->first >= end) return false;
        if (span->first + span->bytes > first) return true;
        e->literal_at[pass] = i + 1;
    }
    return false;
}

static bool stands_alone(const mr_tokenizer *t, const char *text, size_t first, size_t end,
                         size_t lower, size_t upper) {
    size_t before = first;
    while (before > lower && first - before < 4 && ((uint8_t)text[--before] & 0xc0) == 0x80)
        ;
    const bool word_before =
        first > lower && tokenizer_is_word_character(t, text + before, first - before);
    return !word_before && !tokenizer_is_word_character(t, text + end, upper - end);
}

static size_t strip_left(const char *text, size_t first, size_t lower) {
    while (first > lower) {
        size_t before = first - 1;
        while (before > lower && first - before < 3 && ((uint8_t)text[before] & 0xc0) == 0x80)
            before--;
        if (tokenizer_space(text + before, first - before) != first - before) break;
        first = before;
    }
    return first;
}

static mr_status encode_part(encoding *e, int pass, size_t lower, size_t upper);

static mr_status encode_plain(encoding *e, int pass, size_t lower, size_t upper) {
    if (lower >= upper) return MR_OK;
    if (pass == 0) return encode_part(e, 1, lower, upper);
    return tokenizer_split(&e->run, e->text + lower, upper - lower);
}

/* pass: which of the tries. Spans are [lower, upper) of the whole text. */
static mr_status encode_part(encoding *e, int pass, size_t lower, size_t upper) {
    const mr_tokenizer *t = e->run.tokenizer;
    const tokenizer_trie *trie = &t->tries[pass];
    size_t done = lower, at = lower;
    if (trie->count == 0) return encode_plain(e, pass, lower, upper);
    while (at < upper) {
        uint32_t index = 0;
        const size_t length = longest_match(trie, e->text + at, upper - at, &index);
        if (length == 0) {
            at++;
            continue;
        }
        const tokenizer_added *added = &t->added[index];
        size_t first = at, end = at + length;
        at = end;
        if (added->special && (e->options->no_special || overlaps_literal(e, pass, first, end)))
            continue;
        if (added->single_word && !stands_alone(t, e->text, first, end, lower, upper)) continue;
        if (added->lstrip) first = strip_left(e->text, first, done);
        if (added->rstrip)
            for (size_t space; (space = tokenizer_space(e->text + end, upper - end)) > 0;)
                end += space;
        const mr_status status = encode_plain(e, pass, done, first);
        if (status != MR_OK) return status;
        mr_token_list_add(e->run.out, (int32_t)added->id);
        done = end;
    }
    return encode_plain(e, pass, done, upper);
}

/* A sane expression takes a few steps for each byte it looks at; only one that tries the same bytes
 * over and over takes more. */
static mr_status open_run(tokenizer_run *run, size_t bytes) {
    const mr_tokenizer *t = run->tokenizer;
    const uint64_t steps = MR_MAX_REGEX_STEPS + 32ull * bytes;
    const uint32_t limit = steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX;
    run->limits = pcre2_match_context_create(NULL);
    if (!run->limits) return mr_fail(run->err, MR_ERR_NOMEM, "no memory to tokenize");
    pcre2_set_match_limit(run->limits, limit);
    pcre2_set_depth_limit(run->limits, limit);
    pcre2_set_heap_limit(run->limits, 256 << 10); /* KiB */
    for (uint32_t i = 0; i < t->stage_count; i++) {
        if (!t->stages[i].code) continue;
        run->match[i] = pcre2_match_data_create(1, NULL);
        if (!run->match[i]) return mr_fail(run->err, MR_ERR_NOMEM, "no memory to tokenize");
    }
    return MR_OK;
}

static void close_run(tokenizer_run *run) {
    for (uint32_t i = 0; i < run->tokenizer->stage_count; i++) pcre2_match_data_free(run->match[i]);
    pcre2_match_context_free(run->limits);
    free(run->symbols);
    free(run->heap);
}

mr_status mr_tokenizer_encode(const mr_tokenizer *t, const char *text, size_t bytes,
                              const mr_encode_options *options, mr_token_list *out, mr_err *err) {
    static const mr_encode_options plain = {0};
    encoding e = {.run = {.tokenizer = t, .out = out, .err = err},
                  .options = options ? options : &plain,
                  .text = text,
                  .bytes = bytes};
    if (bytes > MR_MAX_TEXT_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "a text of %zu bytes; at most %d are encoded", bytes,
                       MR_MAX_TEXT_BYTES);
    const size_t before = out->count;
    mr_status status = open_run(&e.run, bytes);
    if (status == MR_OK && e.options->add_template)
        for (uint32_t i = 0; i < t->before_count; i++) mr_token_list_add(out, t->before[i]);
    if (status == MR_OK) status = encode_part(&e, 0, 0, bytes);
    if (status == MR_OK && e.options->add_template)
        for (uint32_t i = 0; i < t->after_count; i++) mr_token_list_add(out, t->after[i]);
    if (status != MR_OK) out->count = before;
    close_run(&e.run);
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
    *bytes = (size_t)(t->offset[id + 1] - t->offset[id]);
    return t->arena + t->offset[id];
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
