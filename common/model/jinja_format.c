/* jinja_format.c - "..." % values and "...".format(): Python's two ways to fill in texts. */
#include "common/model/jinja_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 10000, PRECISION_MAX = 300, NUMBER_BYTES = 1024 };

typedef struct {
    jinja_state *s;
    const jinja_string *format;
    size_t at;
    jinja_builder out;
    const jinja_args *args; /* of format(); of %: items */
    const jinja_value *mapping;
    size_t next; /* argument */
    bool named, numbered;
} filler;

/* How one value is to be spelled, in both languages. */
typedef struct {
    const jinja_string *fill; /* NULL: a blank */
    char align;               /* '<', '>', '^', '=' or 0 */
    char sign;                /* '+', ' ' or 0 */
    bool alternate, zero, comma, underscore;
    int64_t width, precision; /* precision -1: none */
    char type;                /* 0: none */
} style;

static char peek(const filler *f) {
    return f->at < f->format->bytes ? f->format->data[f->at] : '\0';
}

static int64_t read_count(filler *f) {
    int64_t value = 0;
    while (peek(f) >= '0' && peek(f) <= '9') {
        value = 10 * value + (f->format->data[f->at++] - '0');
        if (value > WIDTH_MAX)
            jinja_fail(f->s, MR_ERR_LIMIT, "a width or precision of more than %d", WIDTH_MAX);
    }
    return value;
}

/* --- padding ---------------------------------------------------------------------------------- */

static void add_padding(filler *f, const style *st, int64_t count) {
    const jinja_string *blank = jinja_string_of(f->s, st->fill ? "" : " ", st->fill ? 0 : 1, false);
    if (count > 0) jinja_add_repeated(f->s, &f->out, st->fill ? st->fill : blank, (size_t)count);
}

/* prefix (a sign, 0x) goes before padding of '='. */
static void add_padded(filler *f, const style *st, const char *prefix, const jinja_string *body,
                       char align) {
    jinja_spend_walk(f->s, body->bytes);
    const int64_t length = (int64_t)(strlen(prefix) + jinja_char_count(body->data, body->bytes));
    const int64_t missing = st->width > length ? st->width - length : 0;
    const int64_t left = align == '<' || align == '=' ? 0 : align == '^' ? missing / 2 : missing;
    if (align != '=') add_padding(f, st, left);
    jinja_add(f->s, &f->out, prefix, strlen(prefix), false);
    if (align == '=') add_padding(f, st, missing);
    jinja_add_string(f->s, &f->out, body);
    if (align == '<' || align == '^') add_padding(f, st, missing - left);
}

static void add_string(filler *f, const style *st, const jinja_string *string, char align) {
    if (st->precision >= 0) {
        const size_t bytes = jinja_char_offset(string->data, string->bytes, (size_t)st->precision);
        string = jinja_string_part(f->s, string, 0, bytes);
    }
    add_padded(f, st, "", string, st->align ? st->align : align);
}

/* --- numbers ---------------------------------------------------------------------------------- */

static void make_prefix(char out[8], bool is_negative, const style *st, const char *base) {
    const char sign = is_negative ? '-' : st->sign;
    snprintf(out, 8, "%.*s%s", sign ? 1 : 0, &sign, base);
}

/* Underscores or commas between groups of three or four digits. */
static void add_groups(char *text, const style *st, size_t group) {
    char grouped[NUMBER_BYTES];
    const char mark = st->comma ? ',' : '_';
    const size_t digits = strspn(text, "0123456789abcdefABCDEF");
    size_t n = 0;
    for (size_t i = 0; text[i] && n + 2 < sizeof(grouped); i++) {
        if (i > 0 && i < digits && (digits - i) % group == 0) grouped[n++] = mark;
        grouped[n++] = text[i];
    }
    grouped[n] = '\0';
    memcpy(text, grouped, n + 1);
}

static void add_number(filler *f, const style *st, const char *prefix, char *text) {
    style own = *st;
    if (st->comma || st->underscore) {
        if (st->zero)
            jinja_fail(f->s, MR_ERR_UNSUPPORTED, "a format with groups and zeros is not supported");
        add_groups(text, st, strchr("xXob", st->type ? st->type : 'd') ? 4 : 3);
    }
    if (st->zero && !own.align) {
        own.fill = jinja_string_of(f->s, "0", 1, false);
        own.align = '=';
    }
    char *copy = jinja_alloc_raw(f->s, strlen(text) + 1);
    memcpy(copy, text, strlen(text) + 1);
    add_padded(f, &own, prefix, jinja_string_of(f->s, copy, strlen(copy), false),
               own.align ? own.align : '>');
}

static void add_int(filler *f, const style *st, int64_t value) {
    char text[NUMBER_BYTES], digits[72], prefix[8];
    uint64_t left = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    const uint64_t base = strchr("xX", st->type) && st->type ? 16
                          : st->type == 'o'                  ? 8
                          : st->type == 'b'                  ? 2
                                                             : 10;
    const char *alphabet = st->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
    const char base_prefix[3] = {'0', st->type, '\0'};
    size_t n = sizeof(digits);
    do {
        digits[--n] = alphabet[left % base];
        left /= base;
    } while (left > 0);
    const int zeros = st->precision > (int64_t)(sizeof(digits) - n)
                          ? (int)(st->precision - (int64_t)(sizeof(digits) - n))
                          : 0;
    if (zeros > PRECISION_MAX)
        jinja_fail(f->s, MR_ERR_LIMIT, "a precision of more than %d", PRECISION_MAX);
    memset(text, '0', (size_t)zeros);
    memcpy(text + zeros, digits + n, sizeof(digits) - n);
    text[(size_t)zeros + sizeof(digits) - n] = '\0';
    make_prefix(prefix, value < 0, st, st->alternate && base != 10 ? base_prefix : "");
    add_number(f, st, prefix, text);
}

static void add_float(filler *f, const style *st, double value) {
    char text[NUMBER_BYTES], prefix[8];
    const int precision = st->precision < 0 ? 6 : (int)st->precision;
    double size = fabs(value);
    jinja_spend(f->s, JINJA_FLOAT_STEPS);
    char type = st->type;
    if (precision > PRECISION_MAX)
        jinja_fail(f->s, MR_ERR_LIMIT, "a precision of more than %d", PRECISION_MAX);
    if (st->alternate) jinja_fail(f->s, MR_ERR_UNSUPPORTED, "# with a float is not supported");
    if (type == '%') {
        size *= 100;
        type = 'f';
    }
    if (!isfinite(size))
        snprintf(text, sizeof(text), "%s", isnan(size) ? "nan" : "inf");
    else if (type == 'e')
        snprintf(text, sizeof(text), "%.*e", precision, size);
    else if (type == 'E')
        snprintf(text, sizeof(text), "%.*E", precision, size);
    else if (type == 'g')
        snprintf(text, sizeof(text), "%.*g", precision, size);
    else if (type == 'G')
        snprintf(text, sizeof(text), "%.*G", precision, size);
    else
        snprintf(text, sizeof(text), "%.*f", precision, size);
    make_prefix(prefix, signbit(value) && !isnan(value), st, "");
    const size_t n = strlen(text);
    if (st->type == '%') memcpy(text + n, "%", 2);
    add_number(f, st, prefix, text);
}

/* --- % ---------------------------------------------------------------------------------------- */

static const jinja_value *take(filler *f) {
    if (f->mapping && f->next == 0 && f->args->count == 1) {
        f->next = 1;
        return &f->args->items[0];
    }
    if (f->next >= f->args->count)
        jinja_fail(f->s, MR_ERR_FORMAT, "not enough arguments for format string");
    return &f->args->items[f->next++];
}

/* %(name): the value of that key. */
static const jinja_value *take_named(filler *f) {
    const size_t first = ++f->at;
    size_t depth = 1;
    for (; f->at < f->format->bytes && depth > 0; f->at++)
        depth += (size_t)(peek(f) == '(') - (size_t)(peek(f) == ')');
    if (depth > 0) jinja_fail(f->s, MR_ERR_FORMAT, "incomplete format key");
    if (!f->mapping || f->mapping->kind != JINJA_DICT)
        jinja_fail(f->s, MR_ERR_FORMAT, "format requires a mapping");
    const jinja_string *name = jinja_string_part(f->s, f->format, first, f->at - 1 - first);
    const jinja_value *value = jinja_dict_find(f->mapping->dict, name);
    if (!value) jinja_fail(f->s, MR_ERR_FORMAT, "a format string names a key that is not there");
    f->named = true;
    return value;
}

static style read_percent_style(filler *f) {
    style st = {.precision = -1};
    for (;; f->at++) {
        const char c = peek(f);
        if (c == '-')
            st.align = '<';
        else if (c == '+')
            st.sign = '+';
        else if (c == ' ')
            st.sign = st.sign ? st.sign : ' ';
        else if (c == '#')
            st.alternate = true;
        else if (c == '0')
            st.zero = true;
        else
            break;
    }
    if (peek(f) == '*')
        jinja_fail(f->s, MR_ERR_UNSUPPORTED, "* in a format string is not supported");
    st.width = read_count(f);
    if (peek(f) == '.') {
        f->at++;
        if (peek(f) == '*')
            jinja_fail(f->s, MR_ERR_UNSUPPORTED, "* in a format string is not supported");
        st.precision = read_count(f);
    }
    while (peek(f) == 'h' || peek(f) == 'l' || peek(f) == 'L') f->at++;
    st.type = peek(f);
    f->at++;
    if (st.align == '<') st.zero = false;
    return st;
}

static void add_percent_number(filler *f, style *st, const jinja_value *v) {
    int64_t i;
    double d;
    if (jinja_is_undefined(v)) jinja_fail_undefined(f->s, v);
    if (strchr("eEfFgG", st->type)) {
        if (!jinja_as_number(v, &d))
            jinja_fail(f->s, MR_ERR_FORMAT, "must be real number, not %s", jinja_type_name(v));
        add_float(f, st, d);
        return;
    }
    const bool is_decimal = strchr("diu", st->type) != NULL;
    if (is_decimal && v->kind == JINJA_FLOAT)
        i = jinja_float_to_int(f->s, v->f);
    else if (!jinja_as_int(v, &i))
        jinja_fail(f->s, MR_ERR_FORMAT, "%%%c format: an integer is required, not %s", st->type,
                   jinja_type_name(v));
    if (is_decimal) st->type = 'd';
    add_int(f, st, i);
}

static void add_percent_char(filler *f, const style *st, const jinja_value *v) {
    int64_t i;
    if (v->kind == JINJA_STRING && jinja_char_count(v->s->data, v->s->bytes) == 1) {
        add_string(f, st, v->s, '>');
        return;
    }
    if (!jinja_as_int(v, &i) || i < 0 || i >= JINJA_BAD_BYTE || (i >= 0xd800 && i < 0xe000))
        jinja_fail(f->s, MR_ERR_FORMAT, "%%c requires int or char");
    jinja_builder b = {0};
    jinja_add_char(f->s, &b, (uint32_t)i, false);
    add_string(f, st, jinja_built(f->s, &b), '>');
}

static void fill_percent(filler *f) {
    const jinja_value *value = NULL;
    f->at++;
    if (peek(f) == '(') value = take_named(f);
    if (f->at >= f->format->bytes) jinja_fail(f->s, MR_ERR_FORMAT, "incomplete format");
    style st = read_percent_style(f);
    if (f->at > f->format->bytes) jinja_fail(f->s, MR_ERR_FORMAT, "incomplete format");
    if (st.type == '%') {
        jinja_add_text(f->s, &f->out, "%");
        return;
    }
    if (!strchr("srdiuoxXeEfFgGc", st.type) || st.type == '\0')
        jinja_fail(f->s, MR_ERR_UNSUPPORTED, "%%%c in a format string is not supported", st.type);
    if (!value) value = take(f);
    if (st.type == 's')
        add_string(f, &st, jinja_str(f->s, value), '>');
    else if (st.type == 'r') {
        jinja_builder b = {0};
        jinja_repr(f->s, &b, value);
        add_string(f, &st, jinja_built(f->s, &b), '>');
    } else if (st.type == 'c')
        add_percent_char(f, &st, value);
    else
        add_percent_number(f, &st, value);
}

jinja_value jinja_percent(jinja_state *s, const jinja_string *format, const jinja_value *args) {
    jinja_args items = {.items = args, .count = 1};
    filler f = {.s = s, .format = format, .args = &items};
    if (format->markup)
        jinja_fail(s, MR_ERR_UNSUPPORTED, "%% on an escaped string is not supported");
    if (args->kind == JINJA_TUPLE) {
        items.items = args->list->items;
        items.count = args->list->count;
    } else if (args->kind == JINJA_DICT || args->kind == JINJA_LIST || args->kind == JINJA_RANGE ||
               jinja_is_undefined(args))
        f.mapping = args; /* what may be left over */
    while (f.at < format->bytes) {
        const char *percent = memchr(format->data + f.at, '%', format->bytes - f.at);
        const size_t end = percent ? (size_t)(percent - format->data) : format->bytes;
        jinja_add_part(s, &f.out, format, f.at, end - f.at);
        f.at = end;
        if (percent) fill_percent(&f);
    }
    if (!f.mapping && f.next < items.count)
        jinja_fail(s, MR_ERR_FORMAT, "not all arguments converted during string formatting");
    return jinja_text(jinja_built(s, &f.out));
}

/* --- format() --------------------------------------------------------------------------------- */

static bool is_align(char c) {
    return c == '<' || c == '>' || c == '^' || c == '=';
}

/* [[fill]align][sign][#][0][width][,|_][.precision][type] up to the closing brace. */
static style read_style(filler *f) {
    style st = {.precision = -1};
    uint32_t c;
    const size_t left = f->format->bytes - f->at;
    const size_t fill = left > 0 ? jinja_char_at(f->format->data + f->at, left, &c) : 0;
    if (fill > 0 && fill < left && is_align(f->format->data[f->at + fill])) {
        st.fill = jinja_string_part(f->s, f->format, f->at, fill);
        st.align = f->format->data[f->at + fill];
        f->at += fill + 1;
    } else if (is_align(peek(f)))
        st.align = f->format->data[f->at++];
    if (peek(f) == '+' || peek(f) == '-' || peek(f) == ' ') st.sign = f->format->data[f->at++];
    if (st.sign == '-') st.sign = 0;
    if (peek(f) == '#') st.alternate = f->at++ > 0;
    if (peek(f) == '0') st.zero = f->at++ > 0;
    st.width = read_count(f);
    if (peek(f) == ',') st.comma = f->at++ > 0;
    if (peek(f) == '_') st.underscore = f->at++ > 0;
    if (peek(f) == '.') {
        f->at++;
        st.precision = read_count(f);
    }
    if (peek(f) != '}') {
        st.type = peek(f);
        f->at++;
    }
    if (peek(f) != '}')
        jinja_fail(f->s, MR_ERR_UNSUPPORTED, "this format specifier is not supported");
    return st;
}

static void add_formatted(filler *f, style *st, const jinja_value *v) {
    int64_t i;
    double d;
    if (v->kind == JINJA_STRING) {
        if ((st->type && st->type != 's') || st->sign || st->alternate || st->comma ||
            st->underscore || st->align == '=')
            jinja_fail(f->s, MR_ERR_FORMAT, "this format does not fit a str");
        if (st->zero) jinja_fail(f->s, MR_ERR_UNSUPPORTED, "0 with a str is not supported");
        add_string(f, st, v->s, '<');
        return;
    }
    const bool is_int = jinja_as_int(v, &i);
    if (is_int && (!st->type || strchr("dxXob", st->type))) {
        if (st->precision >= 0)
            jinja_fail(f->s, MR_ERR_FORMAT, "precision does not fit an integer");
        add_int(f, st, i);
        return;
    }
    if (!jinja_as_number(v, &d))
        jinja_fail(f->s, MR_ERR_FORMAT, "this format does not fit a %s", jinja_type_name(v));
    if (!st->type || !strchr("eEfFgG%", st->type))
        jinja_fail(f->s, MR_ERR_UNSUPPORTED, "this format of a float is not supported");
    add_float(f, st, d);
}

/* The name or number before any '.' or '['. */
static jinja_value first_field(filler *f, size_t first) {
    const jinja_string *name = jinja_string_part(f->s, f->format, first, f->at - first);
    int64_t index;
    if (name->bytes > 0 && !jinja_all_are(f->s, name, JINJA_DECIMAL)) {
        for (size_t i = 0; i < f->args->named; i++)
            if (jinja_string_equal(f->args->names[i], name)) return f->args->values[i];
        jinja_fail(f->s, MR_ERR_FORMAT, "a format string names '%.*s', which is not there",
                   (int)(name->bytes < 60 ? name->bytes : 60), name->data);
    }
    f->numbered |= name->bytes > 0;
    f->named |= name->bytes == 0;
    if (f->numbered && f->named)
        jinja_fail(f->s, MR_ERR_FORMAT, "a format string numbers some fields, but not all");
    if (name->bytes == 0)
        index = (int64_t)f->next++;
    else
        jinja_parse_int(f->s, name, 10, &index);
    if (index < 0 || (size_t)index >= f->args->count)
        jinja_fail(f->s, MR_ERR_FORMAT, "a format string has more fields than arguments");
    return f->args->items[index];
}

static jinja_value read_field(filler *f) {
    const size_t first = f->at;
    while (f->at < f->format->bytes && !strchr(".[!:}{", peek(f))) f->at++;
    jinja_value value = first_field(f, first);
    while (peek(f) == '.' || peek(f) == '[') {
        const bool is_item = peek(f) == '[';
        const size_t from = ++f->at;
        while (f->at < f->format->bytes && !strchr(is_item ? "]" : ".[!:}{", peek(f))) f->at++;
        const jinja_string *name = jinja_string_part(f->s, f->format, from, f->at - from);
        jinja_value key = jinja_text(name);
        if (name->bytes == 0) jinja_fail(f->s, MR_ERR_FORMAT, "empty attribute in format string");
        if (is_item && jinja_all_are(f->s, name, JINJA_DECIMAL) &&
            jinja_parse_int(f->s, name, 10, &key.i))
            key.kind = JINJA_INT;
        value = is_item ? jinja_item(f->s, &value, &key) : jinja_attribute(f->s, &value, name);
        if (is_item) f->at++;
    }
    return value;
}

static void fill_field(filler *f) {
    jinja_builder b = {0};
    jinja_value value = read_field(f);
    if (peek(f) == '!') {
        const char how = f->at + 1 < f->format->bytes ? f->format->data[f->at + 1] : '\0';
        f->at += 2;
        if (how != 's' && how != 'r')
            jinja_fail(f->s, MR_ERR_UNSUPPORTED, "!%c in a format string is not supported", how);
        if (how == 's')
            jinja_add_str(f->s, &b, &value);
        else
            jinja_repr(f->s, &b, &value);
        value = jinja_text(jinja_built(f->s, &b));
    }
    if (peek(f) == ':') {
        f->at++;
        if (peek(f) != '}') {
            style st = read_style(f);
            f->at++;
            add_formatted(f, &st, &value);
            return;
        }
    }
    if (f->at >= f->format->bytes || peek(f) != '}')
        jinja_fail(f->s, MR_ERR_FORMAT, "expected '}' in a format string");
    f->at++;
    jinja_add_str(f->s, &f->out, &value);
}

jinja_value jinja_format(jinja_state *s, const jinja_string *format, const jinja_args *args) {
    filler f = {.s = s, .format = format, .args = args};
    if (format->markup)
        jinja_fail(s, MR_ERR_UNSUPPORTED, "format() of an escaped string is not supported");
    while (f.at < format->bytes) {
        const char c = peek(&f);
        if (c != '{' && c != '}') {
            const size_t first = f.at;
            while (f.at < format->bytes && peek(&f) != '{' && peek(&f) != '}') f.at++;
            jinja_add_part(s, &f.out, format, first, f.at - first);
        } else if (f.at + 1 < format->bytes && format->data[f.at + 1] == c) {
            jinja_add_part(s, &f.out, format, f.at, 1);
            f.at += 2;
        } else if (c == '}')
            jinja_fail(s, MR_ERR_FORMAT, "Single '}' encountered in format string");
        else {
            f.at++;
            fill_field(&f);
        }
    }
    return jinja_text(jinja_built(s, &f.out));
}
