/* jinja_filter_text.c - filters of strings, numbers and single values. */
#include "common/model/jinja_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_missing(const jinja_value *v) {
    return v->kind == JINJA_MISSING;
}

static bool is_absent(const jinja_value *v) {
    return v->kind == JINJA_MISSING || v->kind == JINJA_NONE;
}

static void no_arguments(jinja_state *s, const jinja_args *args) {
    jinja_bind(s, "the filter", NULL, 0, 0, args, NULL);
}

static const jinja_string *joined(jinja_state *s, const jinja_string *a, const jinja_string *b) {
    return jinja_concat(s, a, b);
}

static const jinja_string *plain(jinja_state *s, const jinja_string *in) {
    if (!in->markup) return in;
    jinja_string *out = jinja_alloc(s, sizeof(*out));
    *out = *in;
    out->markup = false;
    return out;
}

static jinja_value markup(jinja_state *s, const jinja_string *in) {
    jinja_string *out = jinja_alloc(s, sizeof(*out));
    *out = *in;
    out->markup = true;
    return jinja_text(out);
}

/* --- strings ---------------------------------------------------------------------------------- */

static jinja_value f_upper(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_convert(s, jinja_str(s, in), JINJA_TO_UPPER));
}

static jinja_value f_lower(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_convert(s, jinja_str(s, in), JINJA_TO_LOWER));
}

static jinja_value f_capitalize(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_capitalize(s, jinja_str(s, in)));
}

static bool parts_words(uint32_t c) {
    return jinja_char_flags(c) & JINJA_SPACE || (c < 0x80 && c && strchr("-({[<", (int)c));
}

/* Words between blanks and opening brackets, not those of Python's title(). */
static jinja_value f_title(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    const jinja_string *text = jinja_str(s, in);
    jinja_builder b = {0};
    no_arguments(s, args);
    jinja_spend_lookups(s, text->bytes);
    for (size_t at = 0; at < text->bytes;) {
        uint32_t c;
        size_t first = jinja_char_at(text->data + at, text->bytes - at, &c), end = at + first;
        const bool parts = parts_words(c);
        while (end < text->bytes) {
            const size_t n = jinja_char_at(text->data + end, text->bytes - end, &c);
            if (parts_words(c) != parts) break;
            end += n;
        }
        const jinja_string *head = jinja_string_part(s, text, at, first);
        const jinja_string *tail = jinja_string_part(s, text, at + first, end - at - first);
        jinja_add_string(s, &b, jinja_convert(s, head, JINJA_TO_UPPER));
        jinja_add_string(s, &b, jinja_convert(s, tail, JINJA_TO_LOWER));
        at = end;
    }
    return jinja_text(jinja_built(s, &b));
}

static jinja_value f_trim(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"chars"};
    jinja_value got[1];
    JINJA_BIND(s, "trim", names, 0, args, got);
    const jinja_string *chars =
        is_absent(&got[0]) ? NULL : jinja_want_string(s, &got[0], "what is trimmed");
    return jinja_text(jinja_strip(s, jinja_str(s, in), chars, JINJA_LEFT | JINJA_RIGHT));
}

static jinja_value f_replace(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"old", "new", "count"};
    jinja_value got[3];
    JINJA_BIND(s, "replace", names, 2, args, got);
    const int64_t most = is_absent(&got[2]) ? -1 : jinja_want_int(s, &got[2], "count");
    return jinja_text(jinja_replace(s, plain(s, jinja_str(s, in)), jinja_str(s, &got[0]),
                                    jinja_str(s, &got[1]), most));
}

static const jinja_string *indentation(jinja_state *s, const jinja_value *width) {
    jinja_builder b = {0};
    if (width->kind == JINJA_STRING) return width->s;
    const int64_t count = is_missing(width) ? 4 : jinja_want_int(s, width, "the width of indent");
    jinja_add_repeated(s, &b, jinja_string_of(s, " ", 1, false), count > 0 ? (size_t)count : 0);
    return jinja_built(s, &b);
}

static jinja_value f_indent(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"width", "first", "blank"};
    jinja_value got[3];
    jinja_builder b = {0};
    JINJA_BIND(s, "indent", names, 0, args, got);
    const jinja_string *text = jinja_want_string(s, in, "what is indented");
    const jinja_string *by = indentation(s, &got[0]);
    const bool blank = jinja_truth(s, &got[2]);
    const jinja_string *end = jinja_string_of(s, "\n", 1, false);
    const jinja_items lines = jinja_split_lines(s, joined(s, text, end), false);
    if (jinja_truth(s, &got[1])) jinja_add_string(s, &b, by);
    for (size_t i = 0; i < lines.count; i++) {
        if (i > 0) jinja_add_string(s, &b, end);
        if (i > 0 && (blank || lines.items[i].s->bytes > 0)) jinja_add_string(s, &b, by);
        jinja_add_string(s, &b, lines.items[i].s);
    }
    return jinja_text(jinja_built(s, &b));
}

static const jinja_string *first_chars(jinja_state *s, const jinja_string *in, int64_t count) {
    const jinja_value text = jinja_text(in);
    const jinja_value bounds[3] = {jinja_none(), jinja_int(count), jinja_none()};
    return jinja_slice(s, &text, bounds).s;
}

static jinja_value f_truncate(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"length", "killwords", "end", "leeway"};
    jinja_value got[4];
    size_t length, end_length;
    JINJA_BIND(s, "truncate", names, 0, args, got);
    const jinja_value dots = jinja_string_literal(s, "...");
    const jinja_value end = is_missing(&got[2]) ? dots : got[2];
    jinja_want_string(s, &end, "the end of truncate");
    const int64_t most = is_missing(&got[0]) ? 255 : jinja_want_int(s, &got[0], "the length");
    const int64_t leeway = is_absent(&got[3]) ? 5 : jinja_want_int(s, &got[3], "the leeway");
    if (!jinja_length(s, in, &length))
        jinja_fail(s, MR_ERR_FORMAT, "object of type '%s' has no len()", jinja_type_name(in));
    jinja_length(s, &end, &end_length);
    if (most < (int64_t)end_length || leeway < 0)
        jinja_fail(s, MR_ERR_FORMAT, "truncate: the length is too small, or the leeway negative");
    if (leeway > INT64_MAX - most || (int64_t)length <= most + leeway) return *in;
    const jinja_string *text = jinja_want_string(s, in, "what is truncated");
    const jinja_string *head = first_chars(s, text, most - (int64_t)end_length);
    if (!jinja_truth(s, &got[1])) {
        const jinja_string *blank = jinja_string_of(s, " ", 1, false);
        head = jinja_split(s, head, blank, 1, true).items[0].s;
    }
    return jinja_text(joined(s, head, end.s));
}

static jinja_value f_wordcount(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    const jinja_string *text = jinja_str(s, in);
    bool in_word = false;
    int64_t count = 0;
    no_arguments(s, args);
    jinja_spend_lookups(s, text->bytes);
    for (size_t at = 0; at < text->bytes;) {
        uint32_t c;
        at += jinja_char_at(text->data + at, text->bytes - at, &c);
        const bool is_word = c == '_' || (jinja_char_flags(c) & JINJA_ALNUM);
        count += is_word && !in_word;
        in_word = is_word;
    }
    return jinja_int(count);
}

static jinja_value f_center(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"width"};
    jinja_value got[1];
    JINJA_BIND(s, "center", names, 0, args, got);
    const int64_t width = is_missing(&got[0]) ? 80 : jinja_want_int(s, &got[0], "the width");
    return jinja_text(jinja_center(s, jinja_str(s, in), width, jinja_string_of(s, " ", 1, false),
                                   JINJA_LEFT | JINJA_RIGHT));
}

static jinja_value f_format(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    if (args->count > 0 && args->named > 0)
        jinja_fail(s, MR_ERR_FORMAT, "format takes positional or named arguments, not both");
    jinja_value values;
    if (args->named > 0) {
        jinja_dict *dict = jinja_dict_new(s, args->named);
        for (size_t i = 0; i < args->named; i++)
            jinja_dict_set(s, dict, jinja_text(args->names[i]), args->values[i]);
        values = (jinja_value){.kind = JINJA_DICT, .dict = dict};
    } else
        values = jinja_tuple_of(s, (jinja_value *)(uintptr_t)args->items, args->count);
    return jinja_percent(s, jinja_str(s, in), &values);
}

static jinja_value f_string(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_str(s, in));
}

static jinja_value f_safe(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    return markup(s, jinja_str(s, in));
}

static jinja_value f_escape(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    const jinja_string *text = jinja_str(s, in);
    jinja_builder b = {0};
    no_arguments(s, args);
    if (text->markup) return jinja_text(text);
    size_t plain_from = 0;
    jinja_spend_walk(s, text->bytes);
    for (size_t at = 0; at < text->bytes; at++) {
        const char *known = text->data[at] ? strchr(from, text->data[at]) : NULL;
        if (!known) continue;
        jinja_add_part(s, &b, text, plain_from, at - plain_from);
        const char *entity = to[known - from];
        jinja_add(s, &b, entity, strlen(entity), jinja_user_wrote(text, at));
        plain_from = at + 1;
    }
    jinja_add_part(s, &b, text, plain_from, text->bytes - plain_from);
    return markup(s, jinja_built(s, &b));
}

static jinja_value f_forceescape(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    const jinja_value bare = jinja_text(plain(s, jinja_str(s, in)));
    return f_escape(s, &bare, args);
}

/* --- numbers ---------------------------------------------------------------------------------- */

static jinja_value f_int(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"default", "base"};
    jinja_value got[2];
    int64_t out;
    double value;
    JINJA_BIND(s, "int", names, 0, args, got);
    if (jinja_is_undefined(in)) jinja_fail_undefined(s, in);
    const jinja_value otherwise = is_missing(&got[0]) ? jinja_int(0) : got[0];
    if (jinja_as_int(in, &out)) return jinja_int(out);
    if (in->kind == JINJA_FLOAT && isnan(in->f)) return otherwise;
    if (in->kind == JINJA_FLOAT) return jinja_int(jinja_float_to_int(s, in->f));
    if (in->kind != JINJA_STRING) return otherwise;
    const int64_t base = is_missing(&got[1]) ? 10 : jinja_want_int(s, &got[1], "the base");
    if (jinja_parse_int(s, in->s, base, &out)) return jinja_int(out);
    if (!jinja_parse_float(s, in->s, &value) || !isfinite(value)) return otherwise;
    return jinja_int(jinja_float_to_int(s, value));
}

static jinja_value f_float(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"default"};
    jinja_value got[1];
    double out;
    JINJA_BIND(s, "float", names, 0, args, got);
    if (jinja_is_undefined(in)) jinja_fail_undefined(s, in);
    if (jinja_as_number(in, &out)) return jinja_float(out);
    if (in->kind == JINJA_STRING && jinja_parse_float(s, in->s, &out)) return jinja_float(out);
    return is_missing(&got[0]) ? jinja_float(0) : got[0];
}

static jinja_value f_abs(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    int64_t i;
    if (in->kind == JINJA_FLOAT) return jinja_float(fabs(in->f));
    if (jinja_as_int(in, &i)) {
        const jinja_value value = jinja_int(i);
        return jinja_negate(s, &value, i < 0);
    }
    if (jinja_is_undefined(in)) jinja_fail_undefined(s, in);
    jinja_fail(s, MR_ERR_FORMAT, "bad operand type for abs(): '%s'", jinja_type_name(in));
}

enum { ROUND_DIGITS_MAX = 300, EXACT_POWER = 18 };

/* To tens, hundreds, ...: halves go to the even one. */
static jinja_value round_int(jinja_state *s, int64_t value, int64_t digits) {
    int64_t unit = 1;
    if (digits >= 0) return jinja_int(value);
    if (digits < -EXACT_POWER) return jinja_int(0);
    while (digits++ < 0) unit *= 10;
    const int64_t rest = ((value % unit) + unit) % unit, half = unit / 2;
    const int64_t below = (value - rest) / unit; /* fits: value - rest is checked just below */
    int64_t floor_value;
    if (__builtin_sub_overflow(value, rest, &floor_value))
        jinja_fail(s, MR_ERR_UNSUPPORTED, "an integer of more than 64 bits is not supported");
    const bool up = rest > half || (rest == half && unit > 1 && below % 2 != 0);
    if (up && __builtin_add_overflow(floor_value, unit, &floor_value))
        jinja_fail(s, MR_ERR_UNSUPPORTED, "an integer of more than 64 bits is not supported");
    return jinja_int(floor_value);
}

static double round_float(jinja_state *s, double value, int64_t digits) {
    char text[700];
    jinja_spend(s, JINJA_FLOAT_STEPS);
    if (!isfinite(value) || digits > ROUND_DIGITS_MAX) return value;
    if (digits >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)digits, value);
        return strtod(text, NULL);
    }
    if (digits < -EXACT_POWER)
        jinja_fail(s, MR_ERR_UNSUPPORTED, "rounding to so few digits is not supported");
    const double unit = pow(10, (double)-digits), size = fabs(value);
    const double rest = fmod(size, unit);
    double whole = size - rest;
    if (rest > unit / 2 || (rest == unit / 2 && fmod(whole / unit, 2) != 0)) whole += unit;
    return copysign(whole, value);
}

static jinja_value f_round(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"precision", "method"};
    jinja_value got[2];
    int64_t i;
    double f;
    JINJA_BIND(s, "round", names, 0, args, got);
    const int64_t digits = is_missing(&got[0]) ? 0 : jinja_want_int(s, &got[0], "the precision");
    const jinja_value common = jinja_string_literal(s, "common");
    const jinja_value *method = is_missing(&got[1]) ? &common : &got[1];
    jinja_want_string(s, method, "the method of round");
    if (jinja_is_undefined(in)) jinja_fail_undefined(s, in);
    if (!jinja_as_number(in, &f))
        jinja_fail(s, MR_ERR_FORMAT, "a %s cannot be rounded", jinja_type_name(in));
    if (jinja_string_is(method->s, "common"))
        return jinja_as_int(in, &i) ? round_int(s, i, digits)
                                    : jinja_float(round_float(s, f, digits));
    const bool up = jinja_string_is(method->s, "ceil");
    if (!up && !jinja_string_is(method->s, "floor"))
        jinja_fail(s, MR_ERR_FORMAT, "the method of round must be common, ceil or floor");
    if (digits > EXACT_POWER || digits < -EXACT_POWER)
        jinja_fail(s, MR_ERR_UNSUPPORTED, "rounding to so many digits is not supported");
    const double unit = pow(10, (double)digits);
    const double whole = up ? ceil(f * unit) : floor(f * unit);
    return jinja_float((double)jinja_float_to_int(s, whole) / unit);
}

/* --- any value -------------------------------------------------------------------------------- */

static jinja_value f_default(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"default_value", "boolean"};
    jinja_value got[2];
    JINJA_BIND(s, "default", names, 0, args, got);
    if (!jinja_is_undefined(in) && (!jinja_truth(s, &got[1]) || jinja_truth(s, in))) return *in;
    return is_missing(&got[0]) ? jinja_string_literal(s, "") : got[0];
}

static jinja_value f_length(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    size_t length;
    no_arguments(s, args);
    if (in->kind == JINJA_LOOP)
        return jinja_loop_attribute(s, in, jinja_string_of(s, "length", 6, false));
    if (!jinja_length(s, in, &length))
        jinja_fail(s, MR_ERR_FORMAT, "object of type '%s' has no len()", jinja_type_name(in));
    return jinja_int((int64_t)length);
}

static jinja_value f_attr(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"name"};
    jinja_value got[1];
    JINJA_BIND(s, "attr", names, 1, args, got);
    const jinja_string *name = jinja_want_string(s, &got[0], "the name of an attribute");
    if (in->kind == JINJA_DICT) {
        bool known;
        jinja_object_method(in->kind, name, &known);
        if (!known) return jinja_undefined(s, in, name); /* an item is no attribute */
    }
    return jinja_attribute(s, in, name);
}

static void read_separators(jinja_state *s, const jinja_value *given, jinja_json_style *style) {
    if (is_absent(given)) return;
    const jinja_sequence both = jinja_iterate(s, given);
    if (both.count != 2) jinja_fail(s, MR_ERR_FORMAT, "tojson: separators must be two strings");
    style->item_separator = jinja_want_string(s, &both.items[0], "a separator");
    style->key_separator = jinja_want_string(s, &both.items[1], "a separator");
}

static jinja_value f_tojson(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys"};
    jinja_value got[4];
    jinja_builder b = {0};
    JINJA_BIND(s, "tojson", names, 0, args, got);
    jinja_json_style style = {.ensure_ascii = jinja_truth(s, &got[0]),
                              .sort_keys = jinja_truth(s, &got[3])};
    if (!is_absent(&got[1])) style.indent = indentation(s, &got[1]);
    style.item_separator = jinja_string_of(s, ", ", style.indent ? 1 : 2, false);
    style.key_separator = jinja_string_of(s, ": ", 2, false);
    read_separators(s, &got[2], &style);
    jinja_to_json(s, &b, in, &style);
    return jinja_text(jinja_built(s, &b));
}

const jinja_filter_row jinja_text_filters[] = {
    {"abs", f_abs},
    {"attr", f_attr},
    {"capitalize", f_capitalize},
    {"center", f_center},
    {"count", f_length},
    {"d", f_default},
    {"default", f_default},
    {"e", f_escape},
    {"escape", f_escape},
    {"float", f_float},
    {"forceescape", f_forceescape},
    {"format", f_format},
    {"indent", f_indent},
    {"int", f_int},
    {"length", f_length},
    {"lower", f_lower},
    {"replace", f_replace},
    {"round", f_round},
    {"safe", f_safe},
    {"string", f_string},
    {"title", f_title},
    {"tojson", f_tojson},
    {"trim", f_trim},
    {"truncate", f_truncate},
    {"upper", f_upper},
    {"wordcount", f_wordcount},
};
const size_t jinja_text_filter_count = sizeof(jinja_text_filters) / sizeof(jinja_text_filters[0]);
