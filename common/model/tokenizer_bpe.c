/* tokenizer_bpe.c - merging a word: always the earliest merge of the file first, leftmost among
 * equals, as the reference does.
 *
 * A word begins as the tokens of its bytes (byte-level vocabularies) or of its characters; what has
 * none becomes tokens of bytes (<0xE2>) or the unknown token.
 * Symbols form a linked list over the word; a heap holds every neighbouring pair that merges. A
 * pair that was overtaken by another merge stays in the heap and is recognised when it comes out:
 * either its left symbol is gone, or the pair there now merges into something else. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { NONE = UINT32_MAX };

typedef struct tokenizer_symbol {
    uint32_t id, next, previous; /* id NONE: merged away */
} symbol;

typedef struct tokenizer_pending {
    uint32_t rank, at, merged;
} pending;

uint64_t tokenizer_random(void) {
    uint64_t seed = 0;
    const ssize_t got = getrandom(&seed, sizeof(seed), GRND_NONBLOCK);
    (void)got; /* without entropy an unseeded table is still correct */
    return seed | 1;
}

static uint64_t fold(uint64_t a, uint64_t b) {
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_bytes(uint64_t seed, const char *bytes, size_t count) {
    uint64_t hash = seed ^ count;
    for (size_t at = 0; at < count; at += 8) {
        uint64_t word = 0;
        memcpy(&word, bytes + at, count - at < 8 ? count - at : 8);
        hash = fold(hash ^ word, 0x9e3779b97f4a7c15u ^ seed);
    }
    return fold(hash, 0xd6e8feb86659fd93u);
}

static uint64_t table_size(size_t count) {
    uint64_t size = 16;
    while (size < 2 * (uint64_t)count + 2) size *= 2;
    return size;
}

void tokenizer_merges_open(tokenizer_merges *m, size_t count) {
    const uint64_t size = table_size(count);
    m->slots = mr_alloc_array(size, sizeof(*m->slots));
    for (uint64_t i = 0; i < size; i++) m->slots[i].pair = UINT64_MAX;
    m->mask = size - 1;
    m->seed = tokenizer_random();
}

static tokenizer_merge *merge_slot(const tokenizer_merges *m, uint64_t pair) {
    uint64_t at = fold(pair ^ m->seed, 0x9e3779b97f4a7c15u) & m->mask;
    while (m->slots[at].pair != pair && m->slots[at].pair != UINT64_MAX) at = (at + 1) & m->mask;
    return &m->slots[at];
}

void tokenizer_merges_put(tokenizer_merges *m, uint32_t left, uint32_t right, uint32_t rank,
                          uint32_t merged) {
    const uint64_t pair = (uint64_t)left << 32 | right;
    *merge_slot(m, pair) = (tokenizer_merge){pair, rank, merged};
}

const tokenizer_merge *tokenizer_merges_find(const tokenizer_merges *m, uint32_t left,
                                             uint32_t right) {
    const tokenizer_merge *slot = merge_slot(m, (uint64_t)left << 32 | right);
    return slot->pair == UINT64_MAX ? NULL : slot;
}

static uint32_t *vocab_slot(const mr_tokenizer *t, const char *word, size_t bytes) {
    const tokenizer_vocab *v = &t->vocab;
    uint64_t at = hash_bytes(v->seed, word, bytes) & v->mask;
    for (;; at = (at + 1) & v->mask) {
        const uint32_t stored = v->slots[at];
        if (stored == 0) return &v->slots[at];
        size_t have;
        const char *text = tokenizer_strings_at(&t->spelled, stored - 1, &have);
        if (have == bytes && memcmp(text, word, bytes) == 0) return &v->slots[at];
    }
}

void tokenizer_vocab_open(mr_tokenizer *t) {
    const uint64_t size = table_size(t->count);
    t->vocab.slots = mr_alloc_array(size, sizeof(*t->vocab.slots));
    t->vocab.mask = size - 1;
    t->vocab.seed = tokenizer_random();
}

void tokenizer_vocab_put(mr_tokenizer *t, uint32_t id) {
    size_t bytes;
    const char *text = tokenizer_strings_at(&t->spelled, id, &bytes);
    *vocab_slot(t, text, bytes) = id + 1;
}

int32_t tokenizer_vocab_find(const mr_tokenizer *t, const char *word, size_t bytes) {
    if (bytes > MR_MAX_TOKEN_BYTES) return -1;
    return (int32_t)*vocab_slot(t, word, bytes) - 1;
}

static bool earlier(const pending *a, const pending *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void sift_down(pending *heap, size_t count, size_t at) {
    const pending moved = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && earlier(&heap[child + 1], &heap[child])) child++;
        if (!earlier(&heap[child], &moved)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moved;
}

static void heap_push(tokenizer_run *run, pending entry) {
    assert(run->heap_count < run->heap_room);
    size_t at = run->heap_count++;
    while (at > 0 && earlier(&entry, &run->heap[(at - 1) / 2])) {
        run->heap[at] = run->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    run->heap[at] = entry;
}

static bool pair_at(const tokenizer_run *run, uint32_t at, pending *out) {
    const symbol *left = &run->symbols[at];
    if (left->next == NONE) return false;
    const tokenizer_merge *merge =
        tokenizer_merges_find(&run->tokenizer->merges, left->id, run->symbols[left->next].id);
    if (!merge) return false;
    *out = (pending){merge->rank, at, merge->merged};
    return true;
}

/* At most one pair per symbol to begin with; a merge takes one out and puts at most two in. Pages
 * that are never touched cost nothing. */
static mr_status reserve(tokenizer_run *run, size_t bytes) {
    if (run->symbol_room >= bytes) return MR_OK;
    const size_t room = bytes < 256 ? 256 : bytes;
    free(run->symbols);
    free(run->heap);
    run->symbols = malloc(room * sizeof(*run->symbols));
    run->heap = malloc(2 * room * sizeof(*run->heap));
    run->symbol_room = room;
    run->heap_room = 2 * room;
    if (run->symbols && run->heap) return MR_OK;
    run->symbol_room = run->heap_room = 0;
    return mr_fail(run->err, MR_ERR_NOMEM, "no memory to tokenize a word of %zu bytes", bytes);
}

/* The symbols of a word while they are laid out. */
typedef struct {
    tokenizer_run *run;
    uint32_t used;
    bool unknown; /* one waits: it comes before the next token that is in the vocabulary */
} layout;

static void add_symbol(layout *l, int32_t id) {
    l->run->symbols[l->used] = (symbol){(uint32_t)id, l->used + 1, l->used - 1}; /* 0 - 1: NONE */
    l->used++;
}

static void add_known(layout *l, int32_t id) {
    if (l->unknown) add_symbol(l, l->run->tokenizer->unknown_id);
    l->unknown = false;
    add_symbol(l, id);
}

/* A character without a token. As in the reference, its bytes overtake an unknown token that still
 * waits. */
static mr_status add_missing(layout *l, const char *text, size_t bytes, uint8_t byte) {
    const mr_tokenizer *t = l->run->tokenizer;
    bool has_bytes = t->byte_fallback;
    for (size_t i = 0; i < bytes && has_bytes; i++)
        has_bytes = t->fallback_id[(uint8_t)text[i]] >= 0;
    if (has_bytes) {
        for (size_t i = 0; i < bytes; i++) add_symbol(l, t->fallback_id[(uint8_t)text[i]]);
        return MR_OK;
    }
    if (t->unknown_id < 0)
        return mr_fail(l->run->err, MR_ERR_ARGUMENT,
                       "the vocabulary has no token for byte 0x%02x of the text", (unsigned)byte);
    if (l->unknown && !t->fuse_unknown) add_symbol(l, t->unknown_id);
    l->unknown = true;
    return MR_OK;
}

static mr_status lay_out_bytes(layout *l, const char *word, size_t bytes) {
    const mr_tokenizer *t = l->run->tokenizer;
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t byte = (uint8_t)word[i];
        char spelling[4];
        if (t->byte_id[byte] >= 0) {
            add_known(l, t->byte_id[byte]);
            continue;
        }
        const size_t length = tokenizer_put_character(spelling, tokenizer_byte_character(byte));
        const mr_status status = add_missing(l, spelling, length, byte);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

static mr_status lay_out_characters(layout *l, const char *word, size_t bytes) {
    const mr_tokenizer *t = l->run->tokenizer;
    for (size_t at = 0, length; at < bytes; at += length) {
        const uint8_t byte = (uint8_t)word[at];
        const bool valid = mr_utf8_step(word + at, bytes - at, &length) == MR_UTF8_VALID;
        if (!valid) length = 1;
        const int32_t id = byte < 0x80 ? t->ascii_id[byte]
                           : valid     ? tokenizer_vocab_find(t, word + at, length)
                                       : -1;
        if (id >= 0) {
            add_known(l, id);
            continue;
        }
        const mr_status status = add_missing(l, word + at, length, byte);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

static mr_status lay_out(tokenizer_run *run, const char *word, size_t bytes, uint32_t *count) {
    layout l = {.run = run};
    const mr_status status = run->tokenizer->byte_level ? lay_out_bytes(&l, word, bytes)
                                                        : lay_out_characters(&l, word, bytes);
    if (status != MR_OK) return status;
    if (l.unknown) add_symbol(&l, run->tokenizer->unknown_id);
    run->symbols[l.used - 1].next = NONE;
    *count = l.used;
    return MR_OK;
}

static void merge_at(tokenizer_run *run, uint32_t at, uint32_t merged) {
    symbol *left = &run->symbols[at];
    symbol *right = &run->symbols[left->next];
    pending entry;
    left->id = merged;
    left->next = right->next;
    right->id = NONE;
    if (left->next != NONE) run->symbols[left->next].previous = at;
    if (left->previous != NONE && pair_at(run, left->previous, &entry)) heap_push(run, entry);
    if (pair_at(run, at, &entry)) heap_push(run, entry);
}

mr_status tokenizer_merge_word(tokenizer_run *run, const char *word, size_t bytes) {
    const mr_tokenizer *t = run->tokenizer;
    uint32_t count = 0;
    const int32_t whole = t->ignore_merges ? tokenizer_vocab_find(t, word, bytes) : -1;
    if (whole >= 0) {
        mr_token_list_add(run->out, whole);
        return MR_OK;
    }
    mr_status status = reserve(run, t->byte_level && t->byte_fallback ? 2 * bytes : bytes);
    if (status == MR_OK) status = lay_out(run, word, bytes, &count);
    if (status != MR_OK) return status;

    run->heap_count = 0;
    for (uint32_t i = 0; i + 1 < count; i++)
        if (pair_at(run, i, &run->heap[run->heap_count])) run->heap_count++;
    for (size_t i = run->heap_count / 2; i-- > 0;) sift_down(run->heap, run->heap_count, i);

    while (run->heap_count > 0) {
        const pending top = run->heap[0];
        pending now;
        run->heap[0] = run->heap[--run->heap_count];
        if (run->heap_count > 0) sift_down(run->heap, run->heap_count, 0);
        if (run->symbols[top.at].id == NONE || !pair_at(run, top.at, &now)) continue;
        if (now.merged == top.merged) merge_at(run, top.at, top.merged);
    }
    for (uint32_t at = 0; at != NONE; at = run->symbols[at].next)
        mr_token_list_add(run->out, (int32_t)run->symbols[at].id);
    return MR_OK;
}
