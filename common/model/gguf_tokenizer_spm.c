/* gguf_tokenizer_spm.c - merges for a vocabulary that has scores instead.
 *
 * SentencePiece joins the neighbours whose union has the best score; a BPE with one merge for every
 * way to split a token in two, in the order of the tokens' scores, does the same. The order of
 * equal scores is that of the converter of the transformers package: longer sides first, then by
 * id. Tokens of control, unknown and byte kind are never made of others. */
#include "common/model/gguf_tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint32_t token, left_id, right_id;
    uint32_t left_bytes, left_length, right_length; /* lengths in characters */
    uint32_t order;                                 /* in which they were found */
    float score;
} merge;

typedef struct {
    const gguf_vocabulary *vocabulary;
    uint32_t *slots; /* id + 1, 0: free */
    uint64_t mask;
    uint64_t *prefix, *power; /* of the token at hand: hashes of its first i bytes, base^i */
    size_t room;
    merge *merges;
    uint32_t count, merge_room;
} splitter;

static const uint64_t base = 0x9e3779b97f4a7c15u;

static uint64_t mixed(uint64_t hash, size_t bytes) {
    hash ^= bytes * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
    return hash * 0xc4ceb9fe1a85ec53u >> 7;
}

static uint64_t hash_of(const char *text, size_t bytes) {
    uint64_t hash = 0;
    for (size_t i = 0; i < bytes; i++) hash = hash * base + (uint8_t)text[i] + 1;
    return hash;
}

static bool can_join(const gguf_vocabulary *v, uint32_t id) {
    return v->type[id] != GGUF_TOKEN_UNKNOWN && v->type[id] != GGUF_TOKEN_CONTROL &&
           v->type[id] != GGUF_TOKEN_BYTE;
}

static void index_tokens(splitter *s) {
    const gguf_vocabulary *v = s->vocabulary;
    uint64_t slots = 64;
    while (slots < 2 * (uint64_t)v->count) slots *= 2;
    s->slots = mr_alloc_array(slots, sizeof(*s->slots));
    s->mask = slots - 1;
    for (uint32_t id = 0; id < v->count; id++) {
        const size_t bytes = gguf_token_bytes(v, id);
        if (!can_join(v, id)) continue;
        uint64_t at = mixed(hash_of(gguf_token(v, id), bytes), bytes) & s->mask;
        while (s->slots[at]) at = (at + 1) & s->mask;
        s->slots[at] = id + 1;
    }
}

static int64_t find(const splitter *s, const char *text, size_t bytes, uint64_t hash) {
    const gguf_vocabulary *v = s->vocabulary;
    for (uint64_t at = mixed(hash, bytes) & s->mask; s->slots[at]; at = (at + 1) & s->mask) {
        const uint32_t id = s->slots[at] - 1;
        if (gguf_token_bytes(v, id) == bytes && memcmp(gguf_token(v, id), text, bytes) == 0)
            return id;
    }
    return -1;
}

static mr_status add(splitter *s, const merge *item, mr_err *err) {
    if (s->count >= MR_MAX_VOCAB)
        return mr_fail(err, MR_ERR_LIMIT, "the vocabulary implies more than %d merges",
                       MR_MAX_VOCAB);
    if (s->count == s->merge_room) {
        s->merge_room = s->merge_room ? 2 * s->merge_room : 1024;
        s->merges = mr_realloc_array(s->merges, s->merge_room, sizeof(*s->merges));
    }
    s->merges[s->count++] = *item;
    return MR_OK;
}

static int by_ids(const void *a, const void *b) {
    const merge *x = a, *y = b;
    if (x->left_id != y->left_id) return x->left_id < y->left_id ? -1 : 1;
    return (x->right_id > y->right_id) - (x->right_id < y->right_id);
}

static int by_score(const void *a, const void *b) {
    const merge *x = a, *y = b;
    if (x->score < y->score || x->score > y->score) return x->score > y->score ? -1 : 1;
    if (x->left_length != y->left_length) return x->left_length > y->left_length ? -1 : 1;
    if (x->right_length != y->right_length) return x->right_length > y->right_length ? -1 : 1;
    return (x->order > y->order) - (x->order < y->order);
}

static bool starts_character(char byte) {
    return ((uint8_t)byte & 0xc0) != 0x80;
}

/* All ways to split a token, in the order of the sides' ids. */
static mr_status split(splitter *s, uint32_t id, mr_err *err) {
    const gguf_vocabulary *v = s->vocabulary;
    const char *text = gguf_token(v, id);
    const size_t bytes = gguf_token_bytes(v, id);
    const uint32_t first = s->count;
    uint32_t length = 0, left_length = 0;
    if (bytes + 1 > s->room) {
        s->room = bytes + 256;
        s->prefix = mr_realloc_array(s->prefix, s->room, sizeof(*s->prefix));
        s->power = mr_realloc_array(s->power, s->room, sizeof(*s->power));
    }
    s->prefix[0] = 0;
    s->power[0] = 1;
    for (size_t i = 0; i < bytes; i++) {
        s->prefix[i + 1] = s->prefix[i] * base + (uint8_t)text[i] + 1;
        s->power[i + 1] = s->power[i] * base;
        length += starts_character(text[i]);
    }
    for (size_t at = 1; at < bytes; at++) {
        if (!starts_character(text[at])) continue;
        left_length++;
        const int64_t left = find(s, text, at, s->prefix[at]);
        if (left < 0) continue;
        const uint64_t hash = s->prefix[bytes] - s->prefix[at] * s->power[bytes - at];
        const int64_t right = find(s, text + at, bytes - at, hash);
        if (right < 0) continue;
        const merge item = {.token = id,
                            .left_id = (uint32_t)left,
                            .right_id = (uint32_t)right,
                            .left_bytes = (uint32_t)at,
                            .left_length = left_length,
                            .right_length = length - left_length,
                            .score = v->score[id]};
        const mr_status status = add(s, &item, err);
        if (status != MR_OK) return status;
    }
    if (s->count - first > 1)
        qsort(s->merges + first, s->count - first, sizeof(*s->merges), by_ids);
    for (uint32_t i = first; i < s->count; i++) s->merges[i].order = i;
    return MR_OK;
}

mr_status gguf_spm_merges(json_t **out, const gguf_vocabulary *v, mr_err *err) {
    splitter s = {.vocabulary = v};
    mr_status status = MR_OK;
    *out = NULL;
    index_tokens(&s);
    for (uint32_t id = 0; id < v->count && status == MR_OK; id++)
        if (can_join(v, id)) status = split(&s, id, err);
    if (status == MR_OK) {
        if (s.count > 1) qsort(s.merges, s.count, sizeof(*s.merges), by_score);
        *out = json_array();
        for (uint32_t i = 0; i < s.count; i++) {
            const merge *m = &s.merges[i];
            const char *text = gguf_token(v, m->token);
            json_array_append_new(
                *out, json_pack("[s#, s]", text, (int)m->left_bytes, text + m->left_bytes));
        }
    }
    free(s.merges);
    free(s.power);
    free(s.prefix);
    free(s.slots);
    return status;
}
