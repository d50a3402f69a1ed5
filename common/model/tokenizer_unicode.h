/* tokenizer_unicode.h - what the tokenizer asks of Unicode: kinds of characters, lower case, normal
 * forms, in the versions its reference knows.
 *
 * The data of the normal forms is utf8proc's, but for characters that are younger than the
 * reference's own (tokenizer_unicode_data.c). Composing and ordering are done here: utf8proc orders
 * marks in quadratic time and cannot say where a character came from.
 * Threads: a form is read-only once opened. */
#ifndef MR_MODEL_TOKENIZER_UNICODE_H
#define MR_MODEL_TOKENIZER_UNICODE_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t first, last;
} tokenizer_range;
typedef struct {
    uint32_t first, last;
    int32_t distance;
} tokenizer_lower;
typedef struct {
    const char *name, *inner, *more;
} tokenizer_property;

extern const tokenizer_range tokenizer_words[], tokenizer_digits[], tokenizer_punctuation[],
    tokenizer_accents[], tokenizer_inert[], tokenizer_young[];
extern const size_t tokenizer_words_count, tokenizer_digits_count, tokenizer_punctuation_count,
    tokenizer_accents_count, tokenizer_inert_count, tokenizer_young_count;
extern const tokenizer_lower tokenizer_lowers[];
extern const size_t tokenizer_lowers_count;
extern const tokenizer_property tokenizer_properties[];
extern const size_t tokenizer_properties_count;

/* The code point of one valid character, and back (returns its bytes). */
uint32_t tokenizer_character(const char *text, size_t length);
size_t tokenizer_put_character(char *out, uint32_t c);
/* Bytes of the character that begins with this byte of valid UTF-8. */
size_t tokenizer_character_bytes(char first);

bool tokenizer_is_word(uint32_t c);
bool tokenizer_is_digit(uint32_t c);
bool tokenizer_is_punctuation(uint32_t c);
bool tokenizer_is_accent(uint32_t c);
bool tokenizer_is_space(uint32_t c);
/* Whether valid text has a character that the reference's expressions know and PCRE2 does not. */
bool tokenizer_has_young(const char *text, size_t bytes);
/* The lower case: one or two characters. */
size_t tokenizer_lower_case(uint32_t out[2], uint32_t c);

/* Text that grows up to a limit; origin[i] is where the character of byte i came from. */
typedef struct {
    char *data;
    uint32_t *origin; /* [bytes] NULL unless tracked */
    size_t bytes, room, bytes_max;
    bool is_tracked;
    mr_status status; /* MR_ERR_LIMIT or MR_ERR_NOMEM: what was added since is lost */
} tokenizer_buffer;
void tokenizer_buffer_clear(tokenizer_buffer *buffer, size_t bytes_max);
void tokenizer_buffer_free(tokenizer_buffer *buffer);
/* origin: of each byte, or NULL: origin_of_all for all of them. */
void tokenizer_buffer_add(tokenizer_buffer *buffer, const char *data, size_t bytes,
                          const uint32_t *origin, uint32_t origin_of_all);

typedef struct tokenizer_form tokenizer_form;
tokenizer_form *tokenizer_form_open(bool compatible, bool compose);
void tokenizer_form_close(tokenizer_form *form); /* NULL is fine */
/* Whether valid text is in this form already; false only costs time. */
bool tokenizer_form_is_clean(const tokenizer_form *form, const char *text, size_t bytes);
/* Appends text in this form to out; origin as in tokenizer_buffer, NULL where out tracks none. */
void tokenizer_form_apply(const tokenizer_form *form, const char *text, size_t bytes,
                          const uint32_t *origin, tokenizer_buffer *out);

#endif
