/* jinja_unicode.h - characters as Python's str sees them: UTF-8, classes, upper and lower case.
 *
 * A byte that belongs to no character is one of its own, of no class, so that text which is not
 * UTF-8 goes through unharmed. Threads: everything here only reads. */
#ifndef MR_MODEL_JINJA_UNICODE_H
#define MR_MODEL_JINJA_UNICODE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    JINJA_ALPHA = 1 << 0,
    JINJA_DECIMAL = 1 << 1,
    JINJA_DIGIT = 1 << 2,
    JINJA_NUMERIC = 1 << 3,
    JINJA_SPACE = 1 << 4,
    JINJA_PRINTABLE = 1 << 5,
    JINJA_UPPER = 1 << 6,
    JINJA_LOWER = 1 << 7,
    JINJA_TITLE = 1 << 8,
    JINJA_CASED = 1 << 9,
    JINJA_CASE_IGNORABLE = 1 << 10,
    JINJA_ALNUM = JINJA_ALPHA | JINJA_DECIMAL | JINJA_DIGIT | JINJA_NUMERIC,
    JINJA_BAD_BYTE = 0x110000, /* and the byte: what jinja_char_at says of one outside UTF-8 */
};

/* jinja_unicode_table.c */
typedef struct {
    uint32_t first, last;
    int32_t distance;
    uint32_t step;
} jinja_case_run;
typedef struct {
    uint32_t from, to[3]; /* ends with 0 where shorter */
} jinja_case_special;
extern const uint16_t jinja_ascii_flags[128];
extern const uint16_t jinja_char_kinds[];
extern const uint32_t jinja_char_ranges[];
extern const size_t jinja_char_ranges_count;
extern const jinja_case_run jinja_upper[], jinja_lower[], jinja_title[];
extern const size_t jinja_upper_count, jinja_lower_count, jinja_title_count;
extern const jinja_case_special jinja_upper_special[], jinja_lower_special[], jinja_title_special[];
extern const size_t jinja_upper_special_count, jinja_lower_special_count, jinja_title_special_count;

/* The character at the start of text, bytes >= 1; returns its length. */
size_t jinja_char_at(const char *text, size_t bytes, uint32_t *character);
/* Where the character before text + end begins; end >= 1. */
size_t jinja_char_before(const char *text, size_t end);
size_t jinja_char_put(char out[4], uint32_t character); /* returns its length */
size_t jinja_char_count(const char *text, size_t bytes);
/* Byte offset of a character; bytes when there are fewer. */
size_t jinja_char_offset(const char *text, size_t bytes, size_t index);

uint32_t jinja_char_flags(uint32_t character);
typedef enum { JINJA_TO_UPPER, JINJA_TO_LOWER, JINJA_TO_TITLE } jinja_case;
/* Returns how many characters it becomes, 1 to 3. */
size_t jinja_char_convert(uint32_t out[3], uint32_t character, jinja_case to);

#endif
