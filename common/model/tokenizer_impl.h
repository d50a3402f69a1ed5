/* tokenizer_impl.h - what the tokenizer's own files share: the loaded tables and one encoding.
 *
 *   tokenizer_load.c    tokenizer.json -> vocabulary, merges
 *   tokenizer_added.c   added tokens, the post-processor's template
 *   tokenizer_regex.c   patterns: strings and regular expressions
 *   tokenizer_norm.c    normalizers: text -> the text that is split
 *   tokenizer_unicode.c normal forms, kinds of characters
 *   tokenizer_pre.c     pre-tokenizers: text -> words
 *   tokenizer_bpe.c     merging: a word -> ids
 *   tokenizer_decode.c  decoders: ids -> text
 *   tokenizer.c         cutting added tokens out, encoding */
#ifndef MR_MODEL_TOKENIZER_IMPL_H
#define MR_MODEL_TOKENIZER_IMPL_H
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/model/tokenizer.h"
#include "common/model/tokenizer_unicode.h"

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

/* The model's spelling of a token -> its id; slots hold id + 1. */
typedef struct {
    uint32_t *slots;
    uint64_t mask, seed;
} tokenizer_vocab;

/* One string per id, one after the other. */
typedef struct {
    char *data;
    uint64_t *offset; /* [count + 1] */
} tokenizer_strings;

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
    bool has_special;
} tokenizer_trie;

typedef struct {
    pcre2_code *code;  /* of a Regex */
    pcre2_code *exact; /* for texts with young characters; NULL: the same */
    char *string;      /* of a String: `bytes` of it */
    size_t bytes;
} tokenizer_pattern; /* both NULL: none */

typedef enum {
    NORMALIZER_FORM,
    NORMALIZER_LOWERCASE,
    NORMALIZER_STRIP,
    NORMALIZER_STRIP_ACCENTS,
    NORMALIZER_PREPEND,
    NORMALIZER_REPLACE,
} tokenizer_normalizer_kind;

typedef struct {
    tokenizer_normalizer_kind kind;
    tokenizer_form *form;
    bool left, right; /* STRIP */
    tokenizer_pattern pattern;
    char *content; /* PREPEND and REPLACE */
    size_t bytes;
} tokenizer_normalizer;

typedef enum {
    STAGE_SPLIT,      /* by a pattern */
    STAGE_CHARACTERS, /* by a kind of character */
    STAGE_WORDS,      /* Whitespace: words and runs of other signs, without the spaces */
    STAGE_METASPACE,
    STAGE_BYTE_LEVEL, /* the last one, and only where it does something */
} tokenizer_stage_kind;

typedef enum {
    CUT_ISOLATED,
    CUT_REMOVED,
    CUT_CONTIGUOUS,
    CUT_MERGED_WITH_PREVIOUS,
    CUT_MERGED_WITH_NEXT,
} tokenizer_behavior;

typedef enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } tokenizer_prepend;

typedef struct {
    tokenizer_stage_kind kind;
    tokenizer_behavior behavior;
    tokenizer_pattern pattern; /* BYTE_LEVEL: none where it does not split */
    bool (*is_match)(uint32_t c);
    bool invert;
    bool prefix_space;         /* BYTE_LEVEL */
    tokenizer_prepend prepend; /* METASPACE */
    bool split;                /* METASPACE */
    char replacement[4];       /* METASPACE: the bytes of one character */
    size_t replacement_bytes;
} tokenizer_stage;

typedef enum {
    DECODER_REPLACE,
    DECODER_STRIP,
    DECODER_METASPACE,
    DECODER_BYTE_FALLBACK,
    DECODER_FUSE,
    DECODER_BYTE_LEVEL,
} tokenizer_decoder_kind;

typedef struct {
    tokenizer_decoder_kind kind;
    tokenizer_pattern pattern; /* REPLACE */
    uint32_t *letters, *next;  /* REPLACE of a String on the text: its characters [letter_count],
                                * Knuth-Morris-Pratt's table [letter_count + 1] */
    uint32_t letter_count;
    char *content; /* REPLACE: what is put in its place */
    size_t content_bytes;
    char character[4]; /* STRIP and METASPACE */
    size_t character_bytes;
    uint64_t start, stop; /* STRIP: at most so many of them */
    bool drops_first;     /* METASPACE: the first string loses them */
} tokenizer_decoder;

struct mr_tokenizer {
    uint32_t count;
    size_t longest;
    tokenizer_strings spelled; /* as the model knows them; bytes, where it is byte-level */
    tokenizer_strings shown;   /* what an id stands for where nothing is around it */
    tokenizer_strings decoded; /* what the decoder begins with; data NULL: as shown */
    uint8_t *special;          /* [count] */

    bool byte_level, byte_fallback, fuse_unknown, ignore_merges;
    int32_t byte_id[256];     /* of a byte-level vocabulary; -1: no such token */
    int32_t fallback_id[256]; /* <0x00> .. <0xFF>; -1: no such token */
    int32_t ascii_id[128];    /* of a vocabulary of characters; -1: no such token */
    int32_t unknown_id;       /* -1: none */
    tokenizer_merges merges;
    tokenizer_vocab vocab; /* empty for a byte-level vocabulary without ignore_merges */

    tokenizer_added *added;
    uint32_t added_count;
    tokenizer_trie tries[2]; /* [0]: normalized false, looked for first; [1]: normalized true */
    tokenizer_normalizer normalizers[MR_MAX_NORMALIZERS];
    uint32_t normalizer_count;
    tokenizer_stage stages[MR_MAX_PRE_TOKENIZERS];
    uint32_t stage_count;
    bool prepends_first; /* a Metaspace asks where its text began */
    tokenizer_decoder decoders[MR_MAX_DECODERS];
    uint32_t decoder_count, decoders_ahead; /* the first ones are applied to all tokens at load */
    uint32_t fuse_at;     /* decoders from here on see one text; decoder_count: none does */
    uint32_t fallback_at; /* where ByteFallback is; UINT32_MAX: there is none */
    bool decodes_bytes;   /* ByteLevel is among them */
    int32_t before[MR_MAX_TEMPLATE_TOKENS], after[MR_MAX_TEMPLATE_TOKENS];
    uint32_t before_count, after_count;
};

/* One call of encode: its output and the scratch it reuses from word to word. */
typedef struct {
    const mr_tokenizer *tokenizer;
    mr_token_list *out;
    mr_err *err;
    pcre2_match_data *match;
    pcre2_match_context *limits; /* of backtracking, by the size of the text */
    bool has_young;              /* the text at hand has characters PCRE2 does not know */
    tokenizer_buffer normal[2];
    struct tokenizer_symbol *symbols;
    struct tokenizer_pending *heap;
    size_t symbol_room, heap_room, heap_count;
} tokenizer_run;
mr_status tokenizer_run_open(tokenizer_run *run, size_t bytes);
void tokenizer_run_close(tokenizer_run *run);

/* A part of the text on its way to words. */
typedef struct {
    const char *text;
    size_t bytes;
    size_t zero; /* how many of its first bytes came from the very beginning of the whole text */
} tokenizer_piece;

/* The parts of tokenizer.json, by section. what: how a pattern is called in the sentence. */
mr_status tokenizer_read_normalizers(mr_tokenizer *t, const json_t *root, mr_err *err);
mr_status tokenizer_read_pre(mr_tokenizer *t, const json_t *root, mr_err *err);
mr_status tokenizer_read_decoders(mr_tokenizer *t, const json_t *root, mr_err *err);
/* forms[id] becomes the normalized content (owned, freed by the caller) where it differs. */
mr_status tokenizer_read_added(mr_tokenizer *t, const json_t *list, char **forms, mr_err *err);
mr_status tokenizer_read_post(mr_tokenizer *t, const json_t *root, mr_err *err);
/* spelling and form: of each id. */
mr_status tokenizer_index_decoded(mr_tokenizer *t, const char **spelling, char **forms,
                                  mr_err *err);
void tokenizer_normalizer_free(tokenizer_normalizer *normalizer);
void tokenizer_decoder_free(tokenizer_decoder *decoder);
/* A text of at most max bytes under `key` of item; empty where it is missing. Owned. */
mr_status tokenizer_read_content(char **out, size_t *bytes, const json_t *item, const char *key,
                                 const char *what, mr_err *err);
/* One character under `key`. */
mr_status tokenizer_read_character(char out[4], size_t *bytes, const json_t *item, const char *key,
                                   const char *what, mr_err *err);

/* What Metaspace as pre-tokenizer and as decoder have in common. */
mr_status tokenizer_read_metaspace(const json_t *item, const char *what, char replacement[4],
                                   size_t *bytes, tokenizer_prepend *prepend, mr_err *err);

void tokenizer_strings_open(tokenizer_strings *s, uint32_t count, size_t bytes);
void tokenizer_strings_free(tokenizer_strings *s);
static inline const char *tokenizer_strings_at(const tokenizer_strings *s, uint32_t id,
                                               size_t *bytes) {
    *bytes = (size_t)(s->offset[id + 1] - s->offset[id]);
    return s->data + s->offset[id];
}
/* The bytes a spelling stands for: by the byte alphabet if all of it is in there (*byte_level),
 * else itself. out has room for all of the spelling. */
size_t tokenizer_spelled_bytes(char *out, const char *spelling, size_t bytes, bool *byte_level);

mr_status tokenizer_pattern_compile(tokenizer_pattern *pattern, const char *source, size_t bytes,
                                    const char *what, mr_err *err);
mr_status tokenizer_pattern_read(tokenizer_pattern *pattern, const json_t *item, const char *what,
                                 mr_err *err);
void tokenizer_pattern_free(tokenizer_pattern *pattern);

/* All places of a pattern in valid text, left to right. */
typedef struct {
    tokenizer_run *run;
    const tokenizer_pattern *pattern;
    const char *text;
    size_t bytes, from, last_end;
    mr_status status; /* an error ends the search */
} tokenizer_finder;
tokenizer_finder tokenizer_finder_open(tokenizer_run *run, const tokenizer_pattern *pattern,
                                       const char *text, size_t bytes);
bool tokenizer_finder_next(tokenizer_finder *f, size_t *start, size_t *end);

/* Valid text through all normalizers. *out borrows from the text or the run; its origins (NULL
 * where not tracked) count from `base`. */
typedef struct {
    const char *text;
    size_t bytes;
    const uint32_t *origin;
} tokenizer_normalized;
mr_status tokenizer_normalize(tokenizer_run *run, const char *text, size_t bytes, size_t base,
                              bool track, tokenizer_normalized *out);

uint64_t tokenizer_random(void);
const tokenizer_merge *tokenizer_merges_find(const tokenizer_merges *m, uint32_t left,
                                             uint32_t right); /* NULL: they do not merge */
void tokenizer_merges_open(tokenizer_merges *m, size_t count);
void tokenizer_merges_put(tokenizer_merges *m, uint32_t left, uint32_t right, uint32_t rank,
                          uint32_t merged); /* the last one put wins */
void tokenizer_vocab_open(mr_tokenizer *t);
void tokenizer_vocab_put(mr_tokenizer *t, uint32_t id);
int32_t tokenizer_vocab_find(const mr_tokenizer *t, const char *word, size_t bytes); /* -1: none */

/* Ids of one word (bytes >= 1), by bytes or by characters as the vocabulary is. */
mr_status tokenizer_merge_word(tokenizer_run *run, const char *word, size_t bytes);
/* Splits valid text by the pre-tokenizers and merges its words. */
mr_status tokenizer_split(tokenizer_run *run, tokenizer_piece piece);

/* The character a byte is written as in a byte-level vocabulary, and back (-1: not one of them). */
uint32_t tokenizer_byte_character(uint8_t byte);
int tokenizer_character_byte(uint32_t character);

#endif
