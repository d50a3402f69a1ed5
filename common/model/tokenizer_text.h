/* tokenizer_text.h - growing text, stepping over UTF-8, and bytes that become characters one by
 * one.
 *
 * Tokens of a byte-level vocabulary end anywhere, also inside a character. A reader of a stream
 * must only ever see whole characters, so mr_detokenizer keeps up to three bytes back. What can no
 * longer become a character turns into U+FFFD, one per maximal invalid part, as in Unicode's
 * recommended practice (and Python's errors="replace"): the stream put together equals the text
 * decoded at once. Threads: plain data, one owner. Memory: mr_text owns its bytes; mr_text_free. */
#ifndef MR_MODEL_TOKENIZER_TEXT_H
#define MR_MODEL_TOKENIZER_TEXT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *data; /* ends with a zero byte that is not counted; NULL while empty */
    size_t bytes, room;
} mr_text; /* starts as {0} */

void mr_text_add(mr_text *text, const char *data, size_t bytes);
void mr_text_add_string(mr_text *text, const char *string);
void mr_text_format(mr_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void mr_text_drop(mr_text *text, size_t bytes); /* from the front */
void mr_text_clear(mr_text *text);              /* keeps the room */
void mr_text_free(mr_text *text);
/* The bytes as a zero-terminated string, never NULL. */
const char *mr_text_string(const mr_text *text);

typedef enum {
    MR_UTF8_VALID,   /* *length bytes are one character */
    MR_UTF8_INVALID, /* *length bytes can never start or continue one */
    MR_UTF8_CUT,     /* all bytes are the beginning of one; *length = bytes */
} mr_utf8_kind;

/* Looks at the start of text; bytes >= 1. Surrogates and overlong forms are invalid. */
mr_utf8_kind mr_utf8_step(const char *text, size_t bytes, size_t *length);
bool mr_utf8_valid(const char *text, size_t bytes);

typedef struct {
    char pending[4];
    uint32_t count;
} mr_detokenizer; /* starts as {0} */

/* Adds bytes of a token; whole characters are appended to out. */
void mr_detokenizer_push(mr_detokenizer *state, const char *bytes, size_t count, mr_text *out);
/* The end: what is left pending becomes U+FFFD. */
void mr_detokenizer_finish(mr_detokenizer *state, mr_text *out);

#endif
