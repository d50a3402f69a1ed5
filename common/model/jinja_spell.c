/* jinja_spell.c - str() and repr() of values, as Python spells them. */
#include "common/model/jinja_eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The fewest digits that give the same double back; exponent: of the first digit. */
static size_t shortest_digits(char digits[24], int *exponent, double value) {
    char text[40];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof(text), "%.*e", precision, value);
        if (strtod(text, NULL) == value) break;
    }
    size_t count = 0;
    const char *at = text;
    for (; *at && *at != 'e'; at++)
        if (*at != '.') digits[count++] = *at;
    *exponent = atoi(at + 1);
    while (count > 1 && digits[count - 1] == '0') count--;
    digits[count] = '\0';
    return count;
}

size_t jinja_spell_float(char out[32], double value) {
    char digits[24];
    int exponent;
    const char *sign = signbit(value) ? "-" : "";
    if (isnan(value)) return (size_t)snprintf(out, 32, "nan");
    if (isinf(value)) return (size_t)snprintf(out, 32, "%sinf", sign);
    if (value == 0) return (size_t)snprintf(out, 32, "%s0.0", sign);
    const int count = (int)shortest_digits(digits, &exponent, fabs(value));
    if (exponent < -4 || exponent >= 16)
        return (size_t)snprintf(out, 32, "%s%c%s%se%c%02d", sign, digits[0], count > 1 ? "." : "",
                                digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    if (exponent < 0)
        return (size_t)snprintf(out, 32, "%s0.%.*s%s", sign, -exponent - 1, "000", digits);
    if (count <= exponent + 1)
        return (size_t)snprintf(out, 32, "%s%s%.*s.0", sign, digits, exponent + 1 - count,
                                "0000000000000000");
    return (size_t)snprintf(out, 32, "%s%.*s.%s", sign, exponent + 1, digits,
                            digits + exponent + 1);
}

/* --- repr of strings -------------------------------------------------------------------------- */

static void escape_char(jinja_state *s, jinja_builder *b, uint32_t c, bool user) {
    char text[16];
    if (c >= JINJA_BAD_BYTE) /* as Python spells a byte that surrogateescape kept */
        snprintf(text, sizeof(text), "\\udc%02x", c - JINJA_BAD_BYTE);
    else if (c < 0x100)
        snprintf(text, sizeof(text), "\\x%02x", c);
    else if (c < 0x10000)
        snprintf(text, sizeof(text), "\\u%04x", c);
    else
        snprintf(text, sizeof(text), "\\U%08x", c);
    jinja_add(s, b, text, strlen(text), user);
}

static const char *short_escape(uint32_t c) {
    return c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
}

static void repr_string(jinja_state *s, jinja_builder *b, const jinja_string *string) {
    const bool has_single = memchr(string->data, '\'', string->bytes) != NULL;
    const bool has_double = memchr(string->data, '"', string->bytes) != NULL;
    const char quote = has_single && !has_double ? '"' : '\'';
    jinja_spend_lookups(s, string->bytes);
    if (string->markup) jinja_add_text(s, b, "Markup(");
    jinja_add(s, b, &quote, 1, false);
    for (size_t at = 0; at < string->bytes;) {
        uint32_t c;
        const size_t bytes = jinja_char_at(string->data + at, string->bytes - at, &c);
        const bool user = jinja_user_wrote(string, at);
        const char *known = short_escape(c);
        if (known)
            jinja_add(s, b, known, 2, user);
        else if (c == (uint8_t)quote)
            jinja_add(s, b, quote == '"' ? "\\\"" : "\\'", 2, user);
        else if (jinja_char_flags(c) & JINJA_PRINTABLE)
            jinja_add(s, b, string->data + at, bytes, user);
        else
            escape_char(s, b, c, user);
        at += bytes;
    }
    jinja_add(s, b, &quote, 1, false);
    if (string->markup) jinja_add_text(s, b, ")");
}

/* --- the rest --------------------------------------------------------------------------------- */

static void repr_items(jinja_state *s, jinja_builder *b, const jinja_value *items, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (i > 0) jinja_add_text(s, b, ", ");
        jinja_repr(s, b, &items[i]);
    }
}

static void repr_dict(jinja_state *s, jinja_builder *b, const jinja_dict *dict) {
    jinja_add_text(s, b, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0) jinja_add_text(s, b, ", ");
        jinja_repr(s, b, &dict->keys[i]);
        jinja_add_text(s, b, ": ");
        jinja_repr(s, b, &dict->values[i]);
    }
    jinja_add_text(s, b, "}");
}

static void repr_container(jinja_state *s, jinja_builder *b, const jinja_value *v) {
    static const char *const views[] = {"dict_keys([", "dict_values([", "dict_items(["};
    jinja_sequence all;
    switch (v->kind) {
    case JINJA_LIST:
        jinja_add_text(s, b, "[");
        repr_items(s, b, v->list->items, v->list->count);
        jinja_add_text(s, b, "]");
        return;
    case JINJA_TUPLE:
        jinja_add_text(s, b, "(");
        repr_items(s, b, v->list->items, v->list->count);
        jinja_add_text(s, b, v->list->count == 1 ? ",)" : ")");
        return;
    case JINJA_VIEW:
        all = jinja_iterate(s, v);
        jinja_add_text(s, b, views[v->number]);
        repr_items(s, b, all.items, all.count);
        jinja_add_text(s, b, "])");
        return;
    case JINJA_NAMESPACE:
        jinja_add_text(s, b, "<Namespace ");
        repr_dict(s, b, v->dict);
        jinja_add_text(s, b, ">");
        return;
    default:
        repr_dict(s, b, v->dict);
    }
}

static void repr_range(jinja_state *s, jinja_builder *b, const jinja_object *range) {
    char text[80];
    int bytes = snprintf(text, sizeof(text), "range(%lld, %lld", (long long)range->start,
                         (long long)range->stop);
    if (range->step != 1)
        bytes +=
            snprintf(text + bytes, sizeof(text) - (size_t)bytes, ", %lld", (long long)range->step);
    jinja_add(s, b, text, (size_t)bytes, false);
    jinja_add_text(s, b, ")");
}

void jinja_repr(jinja_state *s, jinja_builder *b, const jinja_value *v) {
    char text[32];
    jinja_spend(s, 1);
    switch (v->kind) {
    case JINJA_UNDEFINED:
        jinja_add_text(s, b, "Undefined");
        return;
    case JINJA_NONE:
        jinja_add_text(s, b, "None");
        return;
    case JINJA_BOOL:
        jinja_add_text(s, b, v->is ? "True" : "False");
        return;
    case JINJA_INT:
        jinja_add(s, b, text, (size_t)snprintf(text, sizeof(text), "%lld", (long long)v->i), false);
        return;
    case JINJA_FLOAT:
        jinja_spend(s, JINJA_FLOAT_STEPS);
        jinja_add(s, b, text, jinja_spell_float(text, v->f), false);
        return;
    case JINJA_STRING:
        repr_string(s, b, v->s);
        return;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_VIEW:
    case JINJA_NAMESPACE:
        jinja_enter(s);
        repr_container(s, b, v);
        jinja_leave(s);
        return;
    case JINJA_RANGE:
        repr_range(s, b, v->object);
        return;
    case JINJA_MACRO:
        jinja_repr_macro(s, b, v);
        return;
    case JINJA_LOOP:
        jinja_repr_loop(s, b, v);
        return;
    default:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "printing a %s is not supported", jinja_type_name(v));
    }
}

void jinja_add_str(jinja_state *s, jinja_builder *b, const jinja_value *v) {
    if (v->kind == JINJA_STRING)
        jinja_add_string(s, b, v->s);
    else if (!jinja_is_undefined(v))
        jinja_repr(s, b, v);
}

const jinja_string *jinja_str(jinja_state *s, const jinja_value *v) {
    jinja_builder b = {0};
    if (v->kind == JINJA_STRING) return v->s;
    jinja_add_str(s, &b, v);
    return jinja_built(s, &b);
}
