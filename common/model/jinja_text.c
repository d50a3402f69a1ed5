/* jinja_text.c - what methods and filters do with strings. Every piece keeps who wrote it. */
#include "common/model/jinja_eval.h"

#include <stdlib.h>
#include <string.h>

static const jinja_string *built_like(jinja_state *s, const jinja_builder *b,
                                      const jinja_string *from) {
    const jinja_string *plain = jinja_built(s, b);
    if (!from->markup) return plain;
    jinja_string *out = jinja_alloc(s, sizeof(*out));
    *out = *plain;
    out->markup = true;
    return out;
}

static bool is_ascii(const jinja_string *string) {
    for (size_t i = 0; i < string->bytes; i++)
        if ((uint8_t)string->data[i] >= 0x80) return false;
    return true;
}

/* --- case ------------------------------------------------------------------------------------- */

/* A sigma at `at` ends a word: something cased before it, nothing cased after it, but for what has
 * no say in it. */
static bool ends_word(jinja_state *s, const jinja_string *string, size_t at, size_t bytes) {
    bool follows = false;
    uint32_t c;
    for (size_t i = at; i > 0 && !follows;) {
        jinja_spend(s, 1);
        i = jinja_char_before(string->data, i);
        jinja_char_at(string->data + i, at - i, &c);
        const uint32_t flags = jinja_char_flags(c);
        if (flags & JINJA_CASE_IGNORABLE) continue;
        if (!(flags & JINJA_CASED)) return false;
        follows = true;
    }
    for (size_t i = at + bytes; follows && i < string->bytes;) {
        jinja_spend(s, 1);
        i += jinja_char_at(string->data + i, string->bytes - i, &c);
        const uint32_t flags = jinja_char_flags(c);
        if (!(flags & JINJA_CASE_IGNORABLE)) return !(flags & JINJA_CASED);
    }
    return follows;
}

static void add_converted(jinja_state *s, jinja_builder *b, const jinja_string *string, size_t at,
                          size_t bytes, uint32_t c, jinja_case to) {
    enum { SIGMA = 0x3a3, FINAL_SIGMA = 0x3c2 };
    uint32_t out[3] = {FINAL_SIGMA};
    size_t count = 1;
    if (c >= JINJA_BAD_BYTE) {
        jinja_add_part(s, b, string, at, bytes);
        return;
    }
    if (c != SIGMA || to != JINJA_TO_LOWER || !ends_word(s, string, at, bytes))
        count = jinja_char_convert(out, c, to);
    for (size_t i = 0; i < count; i++) jinja_add_char(s, b, out[i], jinja_user_wrote(string, at));
}

/* Plain ASCII of one origin: in one go. */
static const jinja_string *convert_ascii(jinja_state *s, const jinja_string *string,
                                         jinja_case to) {
    jinja_string *out = jinja_alloc(s, sizeof(*out));
    char *data = jinja_alloc_raw(s, string->bytes);
    for (size_t i = 0; i < string->bytes; i++) {
        uint32_t c[3];
        jinja_char_convert(c, (uint8_t)string->data[i], to);
        data[i] = (char)c[0];
    }
    *out = *string;
    out->data = data;
    out->store = NULL;
    return out;
}

const jinja_string *jinja_convert(jinja_state *s, const jinja_string *string, jinja_case to) {
    jinja_builder b = {0};
    jinja_spend_walk(s, 2 * string->bytes);
    if (is_ascii(string)) return convert_ascii(s, string, to);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        const size_t bytes = jinja_char_at(string->data + at, string->bytes - at, &c);
        add_converted(s, &b, string, at, bytes, c, to);
        at += bytes;
    }
    return built_like(s, &b, string);
}

const jinja_string *jinja_capitalize(jinja_state *s, const jinja_string *string) {
    jinja_builder b = {0};
    jinja_spend_lookups(s, string->bytes);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        const size_t bytes = jinja_char_at(string->data + at, string->bytes - at, &c);
        add_converted(s, &b, string, at, bytes, c, at == 0 ? JINJA_TO_TITLE : JINJA_TO_LOWER);
        at += bytes;
    }
    return built_like(s, &b, string);
}

const jinja_string *jinja_title_case(jinja_state *s, const jinja_string *string) {
    jinja_builder b = {0};
    bool in_word = false;
    jinja_spend_lookups(s, string->bytes);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        const size_t bytes = jinja_char_at(string->data + at, string->bytes - at, &c);
        add_converted(s, &b, string, at, bytes, c, in_word ? JINJA_TO_LOWER : JINJA_TO_TITLE);
        in_word = jinja_char_flags(c) & JINJA_CASED;
        at += bytes;
    }
    return built_like(s, &b, string);
}

const jinja_string *jinja_swap_case(jinja_state *s, const jinja_string *string) {
    jinja_builder b = {0};
    jinja_spend_lookups(s, string->bytes);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        const size_t bytes = jinja_char_at(string->data + at, string->bytes - at, &c);
        const uint32_t flags = jinja_char_flags(c);
        if (flags & (JINJA_UPPER | JINJA_LOWER))
            add_converted(s, &b, string, at, bytes, c,
                          flags & JINJA_UPPER ? JINJA_TO_LOWER : JINJA_TO_UPPER);
        else
            jinja_add_part(s, &b, string, at, bytes);
        at += bytes;
    }
    return built_like(s, &b, string);
}

/* --- stripping -------------------------------------------------------------------------------- */

static bool is_stripped(const jinja_string *chars, const char *data, size_t bytes, uint32_t c) {
    if (!chars) return jinja_char_flags(c) & JINJA_SPACE;
    for (size_t at = 0; at < chars->bytes;) {
        uint32_t other;
        const size_t n = jinja_char_at(chars->data + at, chars->bytes - at, &other);
        if (n == bytes && memcmp(chars->data + at, data, n) == 0) return true;
        at += n;
    }
    return false;
}

const jinja_string *jinja_strip(jinja_state *s, const jinja_string *string,
                                const jinja_string *chars, int sides) {
    size_t first = 0, end = string->bytes;
    uint32_t c;
    while ((sides & JINJA_LEFT) && first < end) {
        const size_t bytes = jinja_char_at(string->data + first, end - first, &c);
        if (!is_stripped(chars, string->data + first, bytes, c)) break;
        first += bytes;
    }
    while ((sides & JINJA_RIGHT) && end > first) {
        const size_t before = first + jinja_char_before(string->data + first, end - first);
        jinja_char_at(string->data + before, end - before, &c);
        if (!is_stripped(chars, string->data + before, end - before, c)) break;
        end = before;
    }
    const size_t each = chars ? 1 + chars->bytes : 1;
    jinja_spend_lookups(s, (string->bytes - (end - first)) * each);
    return jinja_string_part(s, string, first, end - first);
}

/* --- replacing -------------------------------------------------------------------------------- */

/* Between all characters. */
static void replace_nothing(jinja_state *s, jinja_builder *b, const jinja_string *in,
                            const jinja_string *to, int64_t most) {
    size_t at = 0;
    for (int64_t done = 0; most < 0 || done < most; done++) {
        jinja_add_string(s, b, to);
        if (at == in->bytes) return;
        uint32_t c;
        const size_t bytes = jinja_char_at(in->data + at, in->bytes - at, &c);
        jinja_add_part(s, b, in, at, bytes);
        at += bytes;
    }
    jinja_add_part(s, b, in, at, in->bytes - at);
}

const jinja_string *jinja_replace(jinja_state *s, const jinja_string *in, const jinja_string *old,
                                  const jinja_string *to, int64_t most) {
    jinja_builder b = {0};
    size_t at = 0, found = jinja_string_find(s, in, old, 0);
    if (found == SIZE_MAX || most == 0) return in;
    if (old->bytes == 0) {
        replace_nothing(s, &b, in, to, most);
        return jinja_built(s, &b);
    }
    for (int64_t done = 0; found != SIZE_MAX && (most < 0 || done < most); done++) {
        jinja_add_part(s, &b, in, at, found - at);
        jinja_add_string(s, &b, to);
        at = found + old->bytes;
        found = jinja_string_find(s, in, old, at);
    }
    jinja_add_part(s, &b, in, at, in->bytes - at);
    return jinja_built(s, &b);
}

/* --- splitting -------------------------------------------------------------------------------- */

static void push_part(jinja_state *s, jinja_items *out, const jinja_string *in, size_t first,
                      size_t end) {
    jinja_spend(s, 1);
    jinja_push(s, out, jinja_text(jinja_string_part(s, in, first, end - first)));
}

static size_t skip(const jinja_string *in, size_t at, bool space) {
    while (at < in->bytes) {
        uint32_t c;
        const size_t bytes = jinja_char_at(in->data + at, in->bytes - at, &c);
        if (((jinja_char_flags(c) & JINJA_SPACE) != 0) != space) break;
        at += bytes;
    }
    return at;
}

static size_t skip_back(const jinja_string *in, size_t end, bool space) {
    while (end > 0) {
        uint32_t c;
        const size_t before = jinja_char_before(in->data, end);
        jinja_char_at(in->data + before, end - before, &c);
        if (((jinja_char_flags(c) & JINJA_SPACE) != 0) != space) break;
        end = before;
    }
    return end;
}

static void split_words(jinja_state *s, jinja_items *out, const jinja_string *in, int64_t most) {
    size_t at = skip(in, 0, true);
    while (at < in->bytes) {
        const bool is_last = most >= 0 && (int64_t)out->count >= most;
        const size_t end = is_last ? in->bytes : skip(in, at, false);
        push_part(s, out, in, at, end);
        at = skip(in, end, true);
    }
}

static void split_words_back(jinja_state *s, jinja_items *out, const jinja_string *in,
                             int64_t most) {
    size_t end = skip_back(in, in->bytes, true);
    while (end > 0) {
        const bool is_last = most >= 0 && (int64_t)out->count >= most;
        const size_t first = is_last ? 0 : skip_back(in, end, false);
        push_part(s, out, in, first, end);
        end = skip_back(in, first, true);
    }
}

static size_t find_back(jinja_state *s, const jinja_string *in, const jinja_string *what,
                        size_t end) {
    if (what->bytes > end) return SIZE_MAX;
    for (size_t at = end - what->bytes;; at--) {
        if (at % 32 == 0) jinja_spend_bytes(s, what->bytes); /* each place may need all of it */
        if (memcmp(in->data + at, what->data, what->bytes) == 0) return at;
        if (at == 0) return SIZE_MAX;
    }
}

size_t jinja_string_find_last(jinja_state *s, const jinja_string *in, const jinja_string *what) {
    return find_back(s, in, what, in->bytes);
}

static void split_back(jinja_state *s, jinja_items *out, const jinja_string *in,
                       const jinja_string *separator, int64_t most) {
    size_t end = in->bytes;
    while (most < 0 || (int64_t)out->count < most) {
        const size_t found = find_back(s, in, separator, end);
        if (found == SIZE_MAX) break;
        push_part(s, out, in, found + separator->bytes, end);
        end = found;
    }
    push_part(s, out, in, 0, end);
}

static void turn_round(jinja_items *items) {
    for (size_t i = 0; i < items->count / 2; i++) {
        const jinja_value value = items->items[i];
        items->items[i] = items->items[items->count - 1 - i];
        items->items[items->count - 1 - i] = value;
    }
}

jinja_items jinja_split(jinja_state *s, const jinja_string *in, const jinja_string *separator,
                        int64_t most, bool from_right) {
    jinja_items out = {0};
    size_t at = 0;
    if (separator && separator->bytes == 0) jinja_fail(s, MR_ERR_FORMAT, "empty separator");
    if (!separator) jinja_spend_lookups(s, in->bytes);
    if (from_right) {
        if (separator)
            split_back(s, &out, in, separator, most);
        else
            split_words_back(s, &out, in, most);
        turn_round(&out);
        return out;
    }
    if (!separator) {
        split_words(s, &out, in, most);
        return out;
    }
    while (most < 0 || (int64_t)out.count < most) {
        const size_t found = jinja_string_find(s, in, separator, at);
        if (found == SIZE_MAX) break;
        push_part(s, &out, in, at, found);
        at = found + separator->bytes;
    }
    push_part(s, &out, in, at, in->bytes);
    return out;
}

static bool ends_line(uint32_t c) {
    return (c >= '\n' && c <= '\r') || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

jinja_items jinja_split_lines(jinja_state *s, const jinja_string *in, bool keep_ends) {
    jinja_items out = {0};
    size_t first = 0;
    jinja_spend_walk(s, in->bytes);
    for (size_t at = 0; at < in->bytes;) {
        uint32_t c;
        const size_t bytes = jinja_char_at(in->data + at, in->bytes - at, &c);
        size_t end = at + bytes;
        if (ends_line(c)) {
            if (c == '\r' && end < in->bytes && in->data[end] == '\n') end++;
            push_part(s, &out, in, first, keep_ends ? end : at);
            first = end;
        }
        at = end;
    }
    if (first < in->bytes) push_part(s, &out, in, first, in->bytes);
    return out;
}

/* --- joining and padding ---------------------------------------------------------------------- */

const jinja_string *jinja_join(jinja_state *s, const jinja_string *separator, jinja_sequence items,
                               bool convert) {
    jinja_builder b = {0};
    for (size_t i = 0; i < items.count; i++) {
        jinja_spend(s, 1);
        if (i > 0) jinja_add_string(s, &b, separator);
        if (!convert && items.items[i].kind != JINJA_STRING)
            jinja_fail(s, MR_ERR_FORMAT, "sequence item %zu: expected str instance, %s found", i,
                       jinja_type_name(&items.items[i]));
        jinja_add_str(s, &b, &items.items[i]);
    }
    return jinja_built(s, &b);
}

const jinja_string *jinja_center(jinja_state *s, const jinja_string *in, int64_t width,
                                 const jinja_string *fill, int sides) {
    const jinja_value whole = jinja_text(in), filler = jinja_text(fill);
    size_t length, one;
    jinja_builder b = {0};
    jinja_length(s, &whole, &length);
    jinja_length(s, &filler, &one);
    if (one != 1)
        jinja_fail(s, MR_ERR_FORMAT, "the fill character must be exactly one character long");
    if (width <= (int64_t)length) return in;
    const size_t all = (size_t)width - length;
    size_t left = sides == JINJA_RIGHT ? 0 : sides == JINJA_LEFT ? all : all / 2;
    if (sides == (JINJA_LEFT | JINJA_RIGHT)) left += all & (size_t)width & 1;
    jinja_add_repeated(s, &b, fill, left);
    jinja_add_string(s, &b, in);
    jinja_add_repeated(s, &b, fill, all - left);
    return built_like(s, &b, in);
}

/* --- questions -------------------------------------------------------------------------------- */

bool jinja_all_are(jinja_state *s, const jinja_string *string, uint32_t flags) {
    jinja_spend_lookups(s, string->bytes);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        at += jinja_char_at(string->data + at, string->bytes - at, &c);
        if (!(jinja_char_flags(c) & flags)) return false;
    }
    return string->bytes > 0;
}

/* Python's isupper() and islower(). */
bool jinja_is_cased(jinja_state *s, const jinja_string *string, bool upper) {
    bool any = false;
    jinja_spend_lookups(s, string->bytes);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        at += jinja_char_at(string->data + at, string->bytes - at, &c);
        const uint32_t flags = jinja_char_flags(c);
        if (flags & (JINJA_TITLE | (upper ? JINJA_LOWER : JINJA_UPPER))) return false;
        any |= (flags & (upper ? JINJA_UPPER : JINJA_LOWER)) != 0;
    }
    return any;
}

/* --- numbers ---------------------------------------------------------------------------------- */

static int digit_of(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'z' ? c - 'a' + 10 : 99;
}

/* 0x and the like, where the base says so or is left to it. */
static size_t read_prefix(const char *text, size_t bytes, int64_t *base) {
    if (bytes > 1 && text[0] == '0') {
        const char mark = (char)(text[1] | 32);
        const int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
        if (marked && (*base == marked || *base == 0)) {
            *base = marked;
            return bytes > 2 && text[2] == '_' ? 3 : 2;
        }
    }
    if (*base == 0) *base = 10;
    return 0;
}

static void refuse_digits(jinja_state *s, const jinja_string *string) {
    jinja_spend_lookups(s, string->bytes);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        at += jinja_char_at(string->data + at, string->bytes - at, &c);
        if (c >= 0x80 && (jinja_char_flags(c) & JINJA_DECIMAL))
            jinja_fail(s, MR_ERR_UNSUPPORTED, "digits other than 0 to 9 are not supported");
    }
}

bool jinja_parse_int(jinja_state *s, const jinja_string *string, int64_t base, int64_t *out) {
    const jinja_string *in = jinja_strip(s, string, NULL, JINJA_LEFT | JINJA_RIGHT);
    const char *text = in->data;
    size_t at = 0, digits = 0;
    uint64_t value = 0;
    if (base != 0 && (base < 2 || base > 36))
        jinja_fail(s, MR_ERR_FORMAT, "int() base must be >= 2 and <= 36, or 0");
    refuse_digits(s, in);
    const bool minus = in->bytes > 0 && text[0] == '-';
    if (in->bytes > 0 && (text[0] == '-' || text[0] == '+')) at++;
    const bool any_base = base == 0;
    const size_t prefix = read_prefix(text + at, in->bytes - at, &base);
    at += prefix;
    bool is_over = false, zero_first = false;
    for (; at < in->bytes; at++) {
        if (text[at] == '_' && digits > 0 && at + 1 < in->bytes && text[at + 1] != '_') continue;
        const int digit = digit_of(text[at]);
        if (digit >= base) return false;
        if (digits == 0) zero_first = digit == 0;
        digits++;
        is_over |= __builtin_mul_overflow(value, (uint64_t)base, &value) ||
                   __builtin_add_overflow(value, (uint64_t)digit, &value);
    }
    if (digits == 0) return false;
    if (any_base && prefix == 0 && zero_first && value != 0) return false; /* as in Python code */
    if (is_over || value > (uint64_t)INT64_MAX + minus)
        jinja_fail(s, MR_ERR_UNSUPPORTED, "an integer of more than 64 bits is not supported");
    *out = minus ? (int64_t)(0 - value) : (int64_t)value;
    return true;
}

static bool is_word(const char *text, size_t bytes) {
    static const char *const words[] = {"inf", "infinity", "nan"};
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strlen(words[i]) == bytes && strncasecmp(text, words[i], bytes) == 0) return true;
    return false;
}

/* digits with single underscores between them: where they end. */
static size_t digits_end(const char *text, size_t at, size_t bytes) {
    while (at < bytes && text[at] >= '0' && text[at] <= '9') {
        at++;
        if (at + 1 < bytes && text[at] == '_' && text[at + 1] >= '0' && text[at + 1] <= '9') at++;
    }
    return at;
}

static bool is_float(const char *text, size_t bytes) {
    size_t at = bytes > 0 && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    if (is_word(text + at, bytes - at)) return true;
    const size_t whole = digits_end(text, at, bytes);
    size_t digits = whole - at;
    at = whole;
    if (at < bytes && text[at] == '.') {
        const size_t end = digits_end(text, at + 1, bytes);
        digits += end - at - 1;
        at = end;
    }
    if (digits == 0) return false;
    if (at < bytes && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        if (at < bytes && (text[at] == '-' || text[at] == '+')) at++;
        const size_t end = digits_end(text, at, bytes);
        if (end == at) return false;
        at = end;
    }
    return at == bytes;
}

bool jinja_parse_float(jinja_state *s, const jinja_string *string, double *out) {
    const jinja_string *in = jinja_strip(s, string, NULL, JINJA_LEFT | JINJA_RIGHT);
    refuse_digits(s, in);
    if (!is_float(in->data, in->bytes)) return false;
    jinja_spend_bytes(s, in->bytes);
    char *text = jinja_alloc(s, in->bytes + 1);
    size_t count = 0;
    for (size_t i = 0; i < in->bytes; i++)
        if (in->data[i] != '_') text[count++] = in->data[i];
    *out = strtod(text, NULL);
    return true;
}
