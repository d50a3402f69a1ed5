/* gguf_tokenizer_impl.h - a GGUF file's vocabulary in memory, and the two parts of tokenizer.json
 * that are made from knowledge rather than read. Internal to gguf_tokenizer*.c. */
#ifndef MR_MODEL_GGUF_TOKENIZER_IMPL_H
#define MR_MODEL_GGUF_TOKENIZER_IMPL_H
#include "common/base/json.h"
#include "common/model/gguf.h"

enum { /* token types of the file */
       GGUF_TOKEN_NORMAL = 1,
       GGUF_TOKEN_UNKNOWN = 2,
       GGUF_TOKEN_CONTROL = 3,
       GGUF_TOKEN_USER_DEFINED = 4,
       GGUF_TOKEN_UNUSED = 5,
       GGUF_TOKEN_BYTE = 6
};

typedef struct {
    uint32_t count;
    char *arena;      /* texts one after the other, each with a zero at its end */
    uint64_t *offset; /* [count + 1] */
    uint8_t *type;    /* [count] */
    float *score;     /* [count]; zeros where the file has none */
} gguf_vocabulary;

static inline const char *gguf_token(const gguf_vocabulary *v, uint32_t id) {
    return v->arena + v->offset[id];
}
static inline size_t gguf_token_bytes(const gguf_vocabulary *v, uint32_t id) {
    return (size_t)(v->offset[id + 1] - v->offset[id] - 1);
}

/* What a name under tokenizer.ggml.pre stands for. */
typedef struct {
    const char *names;     /* separated by spaces */
    const char *splits[6]; /* regular expressions, isolated, in order; NULL ends them */
    int digits;            /* 0: none, 1: runs of digits, 2: every digit */
    bool byte_regex;       /* the byte-level step splits by GPT-2's expression */
    bool nfc;              /* the text is normalised first */
    bool ignore_merges;    /* a word that is a token is taken whole */
} gguf_pre_tokenizer;

const gguf_pre_tokenizer *gguf_pre_find(const char *name); /* NULL: unknown */
json_t *gguf_pre_json(const gguf_pre_tokenizer *pre);      /* owned by the caller */

/* The merges that a SentencePiece vocabulary with scores implies, best first, as pairs of texts:
 * each token with each split into two tokens. *out is owned by the caller. */
mr_status gguf_spm_merges(json_t **out, const gguf_vocabulary *vocabulary, mr_err *err);

#endif
