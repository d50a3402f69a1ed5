/* jinja_lexer.c - see jinja_lexer.h. The cases follow the regular expressions of jinja2's lexer
 * with trim_blocks and lstrip_blocks, without line statements. */
#include "common/model/jinja_lexer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    jinja_state *s;
    jinja_tokens out;
    const char *text;
    size_t bytes, at;
    bool line_starting; /* what was read last ends with a line break */
} lexer;

static void emit(lexer *l, jinja_token_kind kind, jinja_value value) {
    jinja_tokens *t = &l->out;
    if (t->count == t->room) {
        t->room = t->room ? 2 * t->room : 256;
        jinja_token *items = jinja_alloc_array(l->s, t->room, sizeof(*items));
        if (t->count > 0) memcpy(items, t->items, t->count * sizeof(*items));
        t->items = items;
    }
    t->items[t->count++] = (jinja_token){kind, l->s->line, value};
}

static char peek(const lexer *l, size_t ahead) {
    return l->at + ahead < l->bytes ? l->text[l->at + ahead] : '\0';
}

static bool starts(const lexer *l, size_t at, const char *with) {
    const size_t n = strlen(with);
    return l->bytes - at >= n && memcmp(l->text + at, with, n) == 0;
}

/* Goes on to `to`, counting lines. */
static void advance(lexer *l, size_t to) {
    for (size_t i = l->at; i < to; i++) l->s->line += l->text[i] == '\n';
    if (to > l->at) l->line_starting = l->text[to - 1] == '\n';
    l->at = to;
}

static size_t skip_space(const lexer *l, size_t at) {
    while (at < l->bytes) {
        uint32_t c;
        const size_t bytes = jinja_char_at(l->text + at, l->bytes - at, &c);
        if (!(jinja_char_flags(c) & JINJA_SPACE)) break;
        at += bytes;
    }
    return at;
}

static bool all_space(const lexer *l, size_t first, size_t end) {
    return first < end && skip_space(l, first) >= end;
}

static size_t strip_right(const lexer *l, size_t first, size_t end) {
    while (end > first) {
        uint32_t c;
        const size_t before = first + jinja_char_before(l->text + first, end - first);
        jinja_char_at(l->text + before, end - before, &c);
        if (!(jinja_char_flags(c) & JINJA_SPACE)) break;
        end = before;
    }
    return end;
}

static void emit_data(lexer *l, size_t first, size_t end) {
    if (end > first)
        emit(l, JINJA_T_DATA,
             jinja_text(jinja_string_of(l->s, l->text + first, end - first, false)));
}

/* Text before a tag: what of it stays. sign: of the tag, '-', '+' or anything else. */
static size_t text_end(const lexer *l, size_t first, size_t end, char sign, bool is_variable) {
    if (sign == '-') return strip_right(l, first, end);
    if (sign == '+' || is_variable) return end;
    size_t line = end;
    while (line > first && l->text[line - 1] != '\n') line--;
    if ((line > first || l->line_starting) && all_space(l, line, end)) return line;
    return end;
}

static char sign_at(const lexer *l, size_t at) {
    return at < l->bytes && (l->text[at] == '-' || l->text[at] == '+') ? l->text[at] : '\0';
}

/* The end of a block or comment at `at` ("%}" or "#}"): where it goes on; 0: it is not there. */
static size_t tag_end(const lexer *l, size_t at, const char *mark) {
    const char sign = sign_at(l, at);
    const size_t end = at + (sign ? 1 : 0);
    if (!starts(l, end, mark)) return 0;
    if (sign == '-') return skip_space(l, end + 2);
    return end + 2 + (!sign && end + 2 < l->bytes && l->text[end + 2] == '\n');
}

/* {% raw %} at `at`: where its text begins; 0: it is not one. */
static size_t raw_begin(const lexer *l, size_t at) {
    size_t to = skip_space(l, at + 2 + (sign_at(l, at + 2) ? 1 : 0));
    if (!starts(l, to, "raw")) return 0;
    to = skip_space(l, to + 3);
    if (starts(l, to, "-%}")) return skip_space(l, to + 3);
    return starts(l, to, "%}") ? to + 2 : 0;
}

static size_t raw_end(const lexer *l, size_t at) {
    const size_t to = skip_space(l, at + 2 + (sign_at(l, at + 2) ? 1 : 0));
    return starts(l, to, "endraw") ? tag_end(l, skip_space(l, to + 6), "%}") : 0;
}

static void read_raw(lexer *l, size_t from) {
    advance(l, from);
    for (size_t at = l->at; at + 1 < l->bytes; at++) {
        if (l->text[at] != '{' || l->text[at + 1] != '%') continue;
        const size_t end = raw_end(l, at);
        if (!end) continue;
        emit_data(l, l->at, text_end(l, l->at, at, sign_at(l, at + 2), false));
        advance(l, end);
        return;
    }
    jinja_fail(l->s, MR_ERR_FORMAT, "the raw block has no end");
}

static void read_comment(lexer *l) {
    for (size_t at = l->at; at < l->bytes; at++) {
        const size_t end = tag_end(l, at, "#}");
        if (!end) continue;
        advance(l, end);
        return;
    }
    jinja_fail(l->s, MR_ERR_FORMAT, "the comment has no end");
}

/* --- literals --------------------------------------------------------------------------------- */

static uint32_t hex_digits(lexer *l, size_t at, size_t count) {
    uint32_t value = 0;
    for (size_t i = 0; i < count; i++) {
        const char c = at + i < l->bytes ? l->text[at + i] : '\0';
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0) jinja_fail(l->s, MR_ERR_FORMAT, "a string has an escape that is cut short");
        value = value << 4 | (uint32_t)digit;
    }
    if (value >= 0x110000) jinja_fail(l->s, MR_ERR_FORMAT, "a string escapes what no character is");
    if (value >= 0xd800 && value < 0xe000)
        jinja_fail(l->s, MR_ERR_UNSUPPORTED, "a surrogate in a string is not supported");
    return value;
}

/* After a backslash at `at` - 1; returns where it goes on. */
static size_t read_escape(lexer *l, jinja_builder *b, size_t at) {
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char c = l->text[at];
    const char *known = c ? strchr(from, c) : NULL;
    uint32_t value = 0;
    if (c == '\n') return at + 1;
    if (known) {
        jinja_add(l->s, b, &to[known - from], 1, false);
        return at + 1;
    }
    if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        jinja_add_char(l->s, b, hex_digits(l, at + 1, digits), false);
        return at + 1 + digits;
    }
    if (c >= '0' && c <= '7') {
        size_t i = 0;
        for (; i < 3 && l->text[at + i] >= '0' && l->text[at + i] <= '7'; i++)
            value = value << 3 | (uint32_t)(l->text[at + i] - '0');
        jinja_add_char(l->s, b, value, false);
        return at + i;
    }
    if (c == 'N')
        jinja_fail(l->s, MR_ERR_UNSUPPORTED, "the escape \\N in a string is not supported");
    jinja_add(l->s, b, "\\", 1, false);
    if ((uint8_t)c < 0x80) return at;
    /* jinja2 spells the character as an escape first, and so breaks it */
    char text[16];
    const size_t bytes = jinja_char_at(l->text + at, l->bytes - at, &value);
    const int width = value < 0x100 ? 2 : value < 0x10000 ? 4 : 8;
    snprintf(text, sizeof(text), "%c%0*x", width == 2 ? 'x' : width == 4 ? 'u' : 'U', width, value);
    jinja_add(l->s, b, text, (size_t)width + 1, false);
    return at + bytes;
}

static void read_string(lexer *l) {
    const char quote = peek(l, 0);
    size_t end = l->at + 1;
    while (end < l->bytes && l->text[end] != quote) end += l->text[end] == '\\' ? 2 : 1;
    if (end >= l->bytes) jinja_fail(l->s, MR_ERR_FORMAT, "a string has no end");
    jinja_builder b = {0};
    const size_t line = l->s->line;
    for (size_t at = l->at + 1; at < end;) {
        const char *escape = memchr(l->text + at, '\\', end - at);
        const size_t plain = escape ? (size_t)(escape - l->text) : end;
        jinja_add(l->s, &b, l->text + at, plain - at, false);
        at = escape ? read_escape(l, &b, plain + 1) : end;
    }
    l->s->line = (uint32_t)line;
    emit(l, JINJA_T_STRING, jinja_text(jinja_built(l->s, &b)));
    advance(l, end + 1);
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* (digits "_")* digits at `at`: where they end; at itself: there are none. */
static size_t skip_digits(const lexer *l, size_t at) {
    if (at >= l->bytes || !is_digit(l->text[at])) return at;
    while (at < l->bytes && (is_digit(l->text[at]) || (l->text[at] == '_' && at + 1 < l->bytes &&
                                                       is_digit(l->text[at + 1]))))
        at++;
    return at;
}

/* The digits without underscores, for strtod and strtoull. */
static void copy_number(lexer *l, char *out, size_t room, size_t end) {
    size_t n = 0;
    for (size_t at = l->at; at < end; at++) {
        if (l->text[at] == '_') continue;
        if (n + 1 == room) jinja_fail(l->s, MR_ERR_UNSUPPORTED, "a number is too long");
        out[n++] = l->text[at];
    }
    out[n] = '\0';
}

static bool read_float(lexer *l) {
    char text[128];
    if (l->at > 0 && l->text[l->at - 1] == '.') return false;
    size_t end = skip_digits(l, l->at);
    bool is_float = false;
    if (end < l->bytes && l->text[end] == '.' && skip_digits(l, end + 1) > end + 1) {
        end = skip_digits(l, end + 1);
        is_float = true;
    }
    if (end < l->bytes && (l->text[end] == 'e' || l->text[end] == 'E')) {
        size_t digits = end + 1;
        if (digits < l->bytes && (l->text[digits] == '+' || l->text[digits] == '-')) digits++;
        if (skip_digits(l, digits) > digits) {
            end = skip_digits(l, digits);
            is_float = true;
        }
    }
    if (!is_float) return false;
    copy_number(l, text, sizeof(text), end);
    emit(l, JINJA_T_FLOAT, jinja_float(strtod(text, NULL)));
    advance(l, end);
    return true;
}

static bool is_digit_of(char c, int base) {
    if (base == 16) return is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'f');
    return c >= '0' && c < '0' + base;
}

/* 0x1_f and the like, or decimal digits, which begin with 0 only where all are 0. */
static void read_integer(lexer *l) {
    char text[128];
    const char mark = (char)(peek(l, 1) | 32);
    const int base = peek(l, 0) != '0' ? 10
                     : mark == 'x'     ? 16
                     : mark == 'o'     ? 8
                     : mark == 'b'     ? 2
                                       : 1;
    size_t end = l->at + 1;
    if (base == 2 || base == 8 || base == 16) {
        size_t at = l->at + 2;
        if (at < l->bytes && l->text[at] == '_') at++;
        while (at < l->bytes && is_digit_of(l->text[at], base)) {
            end = ++at;
            if (at < l->bytes && l->text[at] == '_') at++;
        }
    } else {
        for (size_t at = end; at < l->bytes; end = ++at) {
            if (l->text[at] == '_') at++;
            if (at >= l->bytes || !is_digit_of(l->text[at], base)) break;
        }
    }
    copy_number(l, text, sizeof(text), end);
    const bool prefixed = base != 10 && base != 1 && end > l->at + 1;
    const uint64_t value = strtoull(prefixed ? text + 2 : text, NULL, prefixed ? base : 10);
    if (value > INT64_MAX)
        jinja_fail(l->s, MR_ERR_UNSUPPORTED, "the number %.40s has more than 63 bits", text);
    emit(l, JINJA_T_INTEGER, jinja_int((int64_t)value));
    advance(l, end);
}

/* --- inside tags ------------------------------------------------------------------------------ */

static const struct {
    const char *text;
    jinja_token_kind kind;
} operators[] = {
    {"//", JINJA_T_FLOORDIV}, {"**", JINJA_T_POW},      {"==", JINJA_T_EQ},
    {"!=", JINJA_T_NE},       {">=", JINJA_T_GTEQ},     {"<=", JINJA_T_LTEQ},
    {"+", JINJA_T_ADD},       {"-", JINJA_T_SUB},       {"/", JINJA_T_DIV},
    {"*", JINJA_T_MUL},       {"%", JINJA_T_MOD},       {"~", JINJA_T_TILDE},
    {"[", JINJA_T_LBRACKET},  {"]", JINJA_T_RBRACKET},  {"(", JINJA_T_LPAREN},
    {")", JINJA_T_RPAREN},    {"{", JINJA_T_LBRACE},    {"}", JINJA_T_RBRACE},
    {">", JINJA_T_GT},        {"<", JINJA_T_LT},        {"=", JINJA_T_ASSIGN},
    {".", JINJA_T_DOT},       {":", JINJA_T_COLON},     {"|", JINJA_T_PIPE},
    {",", JINJA_T_COMMA},     {";", JINJA_T_SEMICOLON},
};
enum { OPERATORS = sizeof(operators) / sizeof(operators[0]) };

static void balance(lexer *l, jinja_token_kind kind, char *open, size_t *depth) {
    if (kind == JINJA_T_LBRACE || kind == JINJA_T_LPAREN || kind == JINJA_T_LBRACKET) {
        if (*depth == MR_MAX_JINJA_NESTING)
            jinja_fail(l->s, MR_ERR_LIMIT, "more than %d brackets are open", MR_MAX_JINJA_NESTING);
        open[(*depth)++] = kind == JINJA_T_LBRACE ? '}' : kind == JINJA_T_LPAREN ? ')' : ']';
    } else if (kind == JINJA_T_RBRACE || kind == JINJA_T_RPAREN || kind == JINJA_T_RBRACKET) {
        if (*depth == 0) jinja_fail(l->s, MR_ERR_FORMAT, "unexpected '%c'", l->text[l->at]);
        if (open[--*depth] != l->text[l->at])
            jinja_fail(l->s, MR_ERR_FORMAT, "unexpected '%c', expected '%c'", l->text[l->at],
                       open[*depth]);
    }
}

static bool is_name(char c) {
    return is_digit(c) || c == '_' || ((c | 32) >= 'a' && (c | 32) <= 'z');
}

static void read_name(lexer *l) {
    size_t end = l->at;
    while (end < l->bytes && is_name(l->text[end])) end++;
    emit(l, JINJA_T_NAME, jinja_text(jinja_string_of(l->s, l->text + l->at, end - l->at, false)));
    advance(l, end);
}

static void read_operator(lexer *l, char *open, size_t *depth) {
    for (size_t i = 0; i < OPERATORS; i++)
        if (starts(l, l->at, operators[i].text)) {
            balance(l, operators[i].kind, open, depth);
            emit(l, operators[i].kind, jinja_none());
            advance(l, l->at + strlen(operators[i].text));
            return;
        }
    uint32_t c;
    const size_t bytes = jinja_char_at(l->text + l->at, l->bytes - l->at, &c);
    jinja_fail(l->s, MR_ERR_FORMAT, "unexpected character '%.*s'", (int)bytes, l->text + l->at);
}

static void read_tag(lexer *l, bool is_variable) {
    char open[MR_MAX_JINJA_NESTING];
    size_t depth = 0;
    while (l->at < l->bytes) {
        if (depth == 0 && is_variable && (starts(l, l->at, "-}}") || starts(l, l->at, "}}"))) {
            emit(l, JINJA_T_VARIABLE_END, jinja_none());
            advance(l, peek(l, 0) == '-' ? skip_space(l, l->at + 3) : l->at + 2);
            return;
        }
        const size_t end = depth == 0 && !is_variable ? tag_end(l, l->at, "%}") : 0;
        if (end) {
            emit(l, JINJA_T_BLOCK_END, jinja_none());
            advance(l, end);
            return;
        }
        const size_t space = skip_space(l, l->at);
        if (space > l->at) {
            advance(l, space);
            continue;
        }
        const char c = peek(l, 0);
        if (is_digit(c)) {
            if (!read_float(l)) read_integer(l);
        } else if (is_name(c))
            read_name(l);
        else if (c == '\'' || c == '"')
            read_string(l);
        else
            read_operator(l, open, &depth);
    }
}

/* --- outside ---------------------------------------------------------------------------------- */

/* The next "{{", "{%" or "{#". */
static size_t find_tag(const lexer *l) {
    for (size_t at = l->at; at + 1 < l->bytes; at++)
        if (l->text[at] == '{' && memchr("{%#", l->text[at + 1], 3)) return at;
    return l->bytes;
}

static void read_all(lexer *l) {
    while (l->at < l->bytes) {
        const size_t tag = find_tag(l);
        if (tag == l->bytes) {
            emit_data(l, l->at, l->bytes);
            advance(l, l->bytes);
            return;
        }
        const char kind = l->text[tag + 1], sign = sign_at(l, tag + 2);
        emit_data(l, l->at, text_end(l, l->at, tag, sign, kind == '{'));
        const size_t raw = kind == '%' ? raw_begin(l, tag) : 0;
        advance(l, tag);
        if (raw) {
            read_raw(l, raw);
            continue;
        }
        if (kind != '#')
            emit(l, kind == '{' ? JINJA_T_VARIABLE_BEGIN : JINJA_T_BLOCK_BEGIN, jinja_none());
        advance(l, tag + 2 + (sign ? 1 : 0));
        if (kind == '#')
            read_comment(l);
        else
            read_tag(l, kind == '{');
    }
}

/* \r\n and \r become \n, and one at the end goes away. */
static size_t normalize(char *out, const char *source, size_t bytes) {
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\r') {
            out[n++] = '\n';
            i += i + 1 < bytes && source[i + 1] == '\n';
        } else
            out[n++] = source[i];
    }
    return n > 0 && out[n - 1] == '\n' ? n - 1 : n;
}

jinja_tokens jinja_tokenize(jinja_state *s, const char *source, size_t bytes) {
    char *text = jinja_alloc(s, bytes + 1);
    lexer l = {.s = s, .text = text, .line_starting = true};
    l.bytes = normalize(text, source, bytes);
    text[l.bytes] = '\0';
    s->line = 1;
    read_all(&l);
    emit(&l, JINJA_T_END, jinja_none());
    return l.out;
}

const char *jinja_token_name(const jinja_token *token) {
    static const char *const names[] = {
        [JINJA_T_END] = "end of the template",
        [JINJA_T_DATA] = "text",
        [JINJA_T_BLOCK_BEGIN] = "{%",
        [JINJA_T_BLOCK_END] = "%}",
        [JINJA_T_VARIABLE_BEGIN] = "{{",
        [JINJA_T_VARIABLE_END] = "}}",
        [JINJA_T_NAME] = "name",
        [JINJA_T_STRING] = "string",
        [JINJA_T_INTEGER] = "integer",
        [JINJA_T_FLOAT] = "float",
    };
    for (size_t i = 0; i < OPERATORS; i++)
        if (operators[i].kind == token->kind) return operators[i].text;
    return names[token->kind];
}
