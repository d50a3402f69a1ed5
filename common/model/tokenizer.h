/* tokenizer.h - text to token ids and back: BPE from tokenizer.json, id by id and byte by byte as
 * the `tokenizers` package does it.
 *
 * What is read, alone or in a Sequence; anything else is refused by its name:
 *   model          BPE: merges as "a b" or pairs, unk_token, fuse_unk, byte_fallback, ignore_merges
 *   added_tokens   with all their flags
 *   normalizer     NFC NFD NFKC NFKD Lowercase StripAccents Strip Prepend Replace
 *   pre_tokenizer  ByteLevel (last), Split with every behavior, Metaspace, Digits, Punctuation,
 *                  Whitespace, WhitespaceSplit
 *   post_processor ByteLevel, TemplateProcessing (single)
 *   decoder        ByteLevel Replace ByteFallback Fuse Strip Metaspace, in orders that stream
 * truncation and padding are left aside: a server never cuts a prompt.
 * Ids run from 0 without a gap: a gap would be an id the model can sample and nobody can spell.
 *
 * Text that is not UTF-8 is encoded too: each longest run of bytes that belongs to no character is
 * a word of its own, merged byte-wise, and the text around it is normalized and split as if it
 * stood alone.
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
/* The bytes an id stands for where nothing is around it; none for an id that is not there. Added
 * tokens give their name. Text comes from mr_decoder: it depends on what was before. */
const char *mr_tokenizer_bytes(const mr_tokenizer *tokenizer, int32_t id, size_t *bytes);
bool mr_tokenizer_is_special(const mr_tokenizer *tokenizer, int32_t id);
/* The id whose bytes are exactly these, added tokens first; -1 when there is none. Slow: start-up.
 */
int32_t mr_tokenizer_find(const mr_tokenizer *tokenizer, const char *bytes, size_t count);

/* Ids to text, one by one. All that push and flush append is, put together, what the package's
 * decode makes of the whole sequence (where keep_special is false, every special token is left out,
 * also one whose normalized name the package does not recognise). What cannot be told yet is held
 * back: the beginning of a character, a run of byte tokens until it ends.
 * Threads: one owner. Memory: borrows the tokenizer. */
typedef struct mr_decoder mr_decoder;
typedef struct {
    bool keep_special; /* special tokens give their name */
    bool continues;    /* there is text before: nothing is dropped as the beginning of one */
} mr_decode_options;
mr_decoder *mr_decoder_open(const mr_tokenizer *tokenizer, const mr_decode_options *options);
void mr_decoder_close(mr_decoder *decoder); /* NULL is fine */
/* Appends to out; an id that is not there has no text. Returns how many of the appended bytes
 * belong to tokens before this one. */
size_t mr_decoder_push(mr_decoder *decoder, int32_t id, mr_text *out);
/* The end; what is pushed next begins a new text. */
void mr_decoder_flush(mr_decoder *decoder, mr_text *out);

#endif
