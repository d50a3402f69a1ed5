/* tokenizer_impl.h - what the tokenizer's own files share: the loaded tables and one encoding.
 *
 *   tokenizer_load.c   tokenizer.json -> vocabulary, merges, added tokens
 *   tokenizer_pre.c    pre-tokenizers: text -> words
 *   tokenizer_bpe.c    merging: a word's bytes -> ids
 *   tokenizer.c        added tokens, encode, decode */
#ifndef MR_MODEL_TOKENIZER_IMPL_H
#define MR_MODEL_TOKENIZER_IMPL_H
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/model/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* (left id, right id) -> what they merge into, and how early. Open addressing, at most half full.
 */
typedef struct {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank, merged;
} tokenizer_merge;
typedef struct {
    tokenizer_merge *slots;
    uint64_t mask, seed;
} tokenizer_merges;

/* Bytes -> id for ignore_merges; slots hold id + 1. */
typedef struct {
    uint32_t *slots;
    uint64_t mask, seed;
} tokenizer_words;

typedef struct {
    uint32_t id;
    bool special, single_word, lstrip, rstrip, normalized;
} tokenizer_added;

/* Added tokens by their bytes. Node 0 is the root; children are a linked list, but the root's are a
 * table, since every byte of a text is looked up there. */
typedef struct {
    uint32_t child, sibling; /* 0: none */
    uint32_t added;          /* index + 1 into the added tokens; 0: none ends here */
    uint8_t byte;
} tokenizer_node;
typedef struct {
    tokenizer_node *nodes;
    uint32_t count, room;
    uint32_t root[256];
} tokenizer_trie;

typedef struct {
    pcre2_code *code; /* NULL: no splitting (ByteLevel without its expression) */
    bool remove, invert;
    bool prefix_space; /* ByteLevel only */
} tokenizer_stage;

struct mr_tokenizer {
    uint32_t count;
    size_t longest;
    char *arena;          /* all tokens' bytes, one after the other */
    uint64_t *offset;     /* [count + 1] into the arena */
    uint8_t *special;     /* [count] */
    int32_t byte_id[256]; /* -1: no such token */
    int32_t unknown_id;   /* -1: none */
    bool fuse_unknown, ignore_merges;
    tokenizer_merges merges;
    tokenizer_words words; /* empty unless ignore_merges */
    tokenizer_added *added;
    uint32_t added_count;
    tokenizer_trie tries[2]; /* [0]: normalized false, looked for first; [1]: normalized true */
    tokenizer_stage stages[MR_MAX_PRE_TOKENIZERS]; /* the last one is ByteLevel */
    uint32_t stage_count;
    pcre2_code *word_character; /* for single_word */
    int32_t before[MR_MAX_TEMPLATE_TOKENS], after[MR_MAX_TEMPLATE_TOKENS];
    uint32_t before_count, after_count;
};

/* One call of encode: its output and the scratch it reuses from word to word. */
typedef struct {
    const mr_tokenizer *tokenizer;
    mr_token_list *out;
    mr_err *err;
    pcre2_match_data *match[MR_MAX_PRE_TOKENIZERS];
    pcre2_match_context *limits; /* of backtracking, by the size of the text */
    struct tokenizer_symbol *symbols;
    struct tokenizer_pending *heap;
    size_t symbol_room, heap_room, heap_count;
} tokenizer_run;

/* tokenizer_load.c's parts, by section of the file */
mr_status tokenizer_read_pre(mr_tokenizer *t, const json_t *root, mr_err *err);
mr_status tokenizer_read_added(mr_tokenizer *t, const json_t *list, mr_err *err);
mr_status tokenizer_read_post(mr_tokenizer *t, const json_t *root, mr_err *err);

uint64_t tokenizer_hash_bytes(uint64_t seed, const char *bytes, size_t count);
uint64_t tokenizer_random(void);
const tokenizer_merge *tokenizer_merges_find(const tokenizer_merges *m, uint32_t left,
                                             uint32_t right); /* NULL: they do not merge */
void tokenizer_merges_open(tokenizer_merges *m, size_t count);
void tokenizer_merges_put(tokenizer_merges *m, uint32_t left, uint32_t right, uint32_t rank,
                          uint32_t merged); /* the last one put wins */
void tokenizer_words_open(mr_tokenizer *t);
void tokenizer_words_put(mr_tokenizer *t, uint32_t id);

/* Ids of one word (bytes >= 1). */
mr_status tokenizer_merge_word(tokenizer_run *run, const char *word, size_t bytes);
/* Splits text (any bytes) by the pre-tokenizers and merges its words. */
mr_status tokenizer_split(tokenizer_run *run, const char *text, size_t bytes);
/* Whether the character at text is a letter, mark, digit or connector (\w). */
bool tokenizer_is_word_character(const mr_tokenizer *t, const char *text, size_t bytes);
/* Bytes of the white space character at text; 0 where there is none. */
size_t tokenizer_space(const char *text, size_t bytes);

/* The character a byte is written as in a byte-level vocabulary, and back (-1: not one of them). */
uint32_t tokenizer_byte_character(uint8_t byte);
int tokenizer_character_byte(uint32_t character);

#endif
