/* tokenizer.h - text to token ids and back: byte-level BPE from tokenizer.json.
 *
 * What is read: model BPE (merges as "a b" or pairs, ignore_merges, unk_token, fuse_unk);
 * added_tokens with all their flags; pre_tokenizer ByteLevel, alone or last in a Sequence after
 * Split (Regex or String, Isolated or Removed, invert) and Digits; post_processor null, ByteLevel,
 * TemplateProcessing (single) or a Sequence of these; decoder ByteLevel; normalizer null. Anything
 * else is refused by its name. truncation and padding are left aside: a server never cuts a prompt.
 * Ids run from 0 without a gap: a gap would be an id the model can sample and nobody can spell.
 *
 * Text that is not UTF-8 is encoded too: each longest run of bytes that belongs to no character is
 * a word of its own, merged byte-wise, and the text around it is split as if it stood alone.
 * Encoding costs O(n log n) for a word of n bytes, so 10 MB of one letter is slow, not quadratic.
 *
 * Threads: open and close from one thread; everything else only reads and may run anywhere.
 * Memory: returned token bytes borrow from the tokenizer. */
#ifndef MR_MODEL_TOKENIZER_H
#define MR_MODEL_TOKENIZER_H
#include "common/base/status.h"
#include "common/model/tokenizer_text.h"

typedef struct mr_tokenizer mr_tokenizer;

/* On failure *out is NULL and err holds one sentence that begins with the file. */
mr_status mr_tokenizer_open(mr_tokenizer **out, const char *path, mr_err *err);
/* what: how the text is called in the sentence. */
mr_status mr_tokenizer_parse(mr_tokenizer **out, const char *json, size_t bytes, const char *what,
                             mr_err *err);
void mr_tokenizer_close(mr_tokenizer *tokenizer); /* NULL is fine */

typedef struct {
    size_t first, bytes;
} mr_text_span;

typedef struct {
    bool add_template; /* add what the post-processor adds (beginning and end tokens) */
    bool no_special;   /* special tokens in the text are plain text */
    /* Parts of the text, ascending, in which special tokens are plain text: what a user wrote. */
    const mr_text_span *literal;
    uint32_t literal_count;
} mr_encode_options;

typedef struct {
    int32_t *items; /* owned; mr_token_list_free */
    size_t count, room;
} mr_token_list; /* starts as {0} */
void mr_token_list_add(mr_token_list *list, int32_t id);
void mr_token_list_free(mr_token_list *list);

/* Appends to out. MR_ERR_LIMIT: more than MR_MAX_TEXT_BYTES, or a split expression that needs too
 * many steps. MR_ERR_ARGUMENT: the vocabulary has no token for a byte of the text.
 * options may be NULL: special tokens are recognised, no template. */
mr_status mr_tokenizer_encode(const mr_tokenizer *tokenizer, const char *text, size_t bytes,
                              const mr_encode_options *options, mr_token_list *out, mr_err *err);

uint32_t mr_tokenizer_count(const mr_tokenizer *tokenizer);       /* ids are 0 .. count-1 */
size_t mr_tokenizer_longest_token(const mr_tokenizer *tokenizer); /* in bytes, >= 1 */
/* The bytes an id stands for; none for an id that is not there. Special tokens give their name. */
const char *mr_tokenizer_bytes(const mr_tokenizer *tokenizer, int32_t id, size_t *bytes);
bool mr_tokenizer_is_special(const mr_tokenizer *tokenizer, int32_t id);
/* The id whose bytes are exactly these, added tokens first; -1 when there is none. Slow: start-up.
 */
int32_t mr_tokenizer_find(const mr_tokenizer *tokenizer, const char *bytes, size_t count);

#endif
