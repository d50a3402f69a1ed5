/* stream.h - the text of one answer as it grows: tokens in, safe text out.
 *
 * Safe means: whole characters only, and never a character that may turn out to belong to a stop
 * string. Stop strings are followed byte by byte with Knuth-Morris-Pratt automata, so a token costs
 * its bytes times the number of stop strings, whatever they are. The stop string that ends first
 * wins (the longest of those that end together); it and all behind it are dropped. Special tokens
 * spell nothing.
 * Where log probabilities are wanted, each token's entry comes out once all the characters it
 * completed are out; entries of dropped text are dropped.
 * Threads: one owner. Memory: everything is owned by the stream; results borrow until the next
 * call. */
#ifndef MR_COORDINATOR_STREAM_H
#define MR_COORDINATOR_STREAM_H
#include "common/base/limits.h"
#include "common/model/tokenizer.h"
#include "proto/wire.h"

/* Stop strings compiled once per request, shared by its streams. */
typedef struct mr_stop_set mr_stop_set;
/* strings: valid UTF-8, 1 .. MR_MAX_STOP_BYTES bytes each. */
mr_stop_set *mr_stop_set_open(const char *const *strings, const size_t *bytes, uint32_t count);
void mr_stop_set_close(mr_stop_set *set); /* NULL is fine */

typedef struct {
    int32_t token;
    float logprob;
    uint32_t top_count;
    mr_wire_logprob top[MR_MAX_LOGPROBS];
    uint64_t text_offset;          /* characters of the answer before this token */
    uint64_t first_byte, end_byte; /* the characters it completed, in bytes of the answer */
} mr_token_entry;

typedef struct mr_stream mr_stream;

/* tokenizer NULL: tokens have no text. stops may be NULL; borrowed, as is the tokenizer. continues:
 * the answer goes on where other text ended, so that a space at its beginning is kept. */
mr_stream *mr_stream_open(const mr_tokenizer *tokenizer, const mr_stop_set *stops, bool logprobs,
                          bool continues);
void mr_stream_close(mr_stream *stream); /* NULL is fine */

typedef struct {
    const char *text; /* newly safe text */
    size_t bytes;
    const mr_token_entry *entries; /* of tokens whose text is out now */
    uint32_t entry_count;
    bool stopped; /* a stop string appeared: nothing more may be pushed */
} mr_stream_part;

/* entry: the token; offsets are filled in here. */
mr_stream_part mr_stream_push(mr_stream *stream, const mr_token_entry *entry);
/* The end for another reason: hands out what was held back. Harmless after a stop. */
mr_stream_part mr_stream_finish(mr_stream *stream);

#endif
