/* jinja_json.c - values from jansson's trees, and the tojson filter: Python's json.dumps(). */
#include "common/model/jinja_value.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- in --------------------------------------------------------------------------------------- */

static jinja_value list_from_json(jinja_state *s, const json_t *json, bool user) {
    const size_t count = json_array_size(json);
    jinja_value *items = jinja_alloc_array(s, count, sizeof(*items));
    for (size_t i = 0; i < count; i++) items[i] = jinja_from_json(s, json_array_get(json, i), user);
    return jinja_list_of(s, items, count);
}

static jinja_value dict_from_json(jinja_state *s, const json_t *json, bool user) {
    const char *key;
    json_t *value;
    jinja_dict *dict = jinja_dict_new(s, json_object_size(json));
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
        jinja_dict_set(s, dict, jinja_text(jinja_string_of(s, key, strlen(key), user)),
                       jinja_from_json(s, value, user));
    return (jinja_value){.kind = JINJA_DICT, .dict = dict};
}

jinja_value jinja_from_json(jinja_state *s, const json_t *json, bool user) {
    jinja_value out = jinja_none();
    jinja_spend(s, 1);
    switch (json_typeof(json)) {
    case JSON_TRUE:
    case JSON_FALSE:
        return jinja_bool(json_is_true(json));
    case JSON_INTEGER:
        return jinja_int(json_integer_value(json));
    case JSON_REAL:
        return jinja_float(json_real_value(json));
    case JSON_STRING:
        return jinja_text(
            jinja_string_of(s, json_string_value(json), json_string_length(json), user));
    case JSON_ARRAY:
    case JSON_OBJECT:
        jinja_enter(s);
        out = json_is_array(json) ? list_from_json(s, json, user) : dict_from_json(s, json, user);
        jinja_leave(s);
        return out;
    default:
        return out;
    }
}

jinja_value jinja_messages_from_json(jinja_state *s, const json_t *json) {
    static const char role[] = "role";
    const jinja_string *key = jinja_string_of(s, role, sizeof(role) - 1, false);
    const jinja_value list = jinja_from_json(s, json, true);
    for (size_t i = 0; list.kind == JINJA_LIST && i < list.list->count; i++) {
        const jinja_value *message = &list.list->items[i];
        const json_t *given = json_object_get(json_array_get(json, i), role);
        if (message->kind == JINJA_DICT && json_is_string(given))
            jinja_dict_set(s, message->dict, jinja_text(key), jinja_from_json(s, given, false));
    }
    return list;
}

/* --- out -------------------------------------------------------------------------------------- */

static void add_unicode(jinja_state *s, jinja_builder *b, uint32_t unit, bool user) {
    char text[8];
    snprintf(text, sizeof(text), "\\u%04x", unit & 0xffff);
    jinja_add(s, b, text, 6, user);
}

/* A character that JSON must or, with ensure_ascii, shall escape. */
static void add_escape(jinja_state *s, jinja_builder *b, uint32_t c, bool user) {
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    const char *known = c < 0x80 && c != 0 ? strchr(from, (int)c) : NULL;
    if (known) {
        const char escaped[2] = {'\\', to[known - from]};
        jinja_add(s, b, escaped, 2, user);
    } else if (c >= JINJA_BAD_BYTE)
        add_unicode(s, b, 0xdc00 + (c - JINJA_BAD_BYTE), user);
    else if (c >= 0x10000) {
        add_unicode(s, b, 0xd800 + ((c - 0x10000) >> 10), user);
        add_unicode(s, b, 0xdc00 + ((c - 0x10000) & 0x3ff), user);
    } else
        add_unicode(s, b, c, user);
}

static void add_json_string(jinja_state *s, jinja_builder *b, const jinja_string *string,
                            bool ascii) {
    size_t plain = 0; /* where what needs no escape begins */
    jinja_spend_walk(s, string->bytes);
    jinja_add_text(s, b, "\"");
    for (size_t at = 0; at < string->bytes;) {
        const uint8_t byte = (uint8_t)string->data[at];
        uint32_t c = byte;
        const size_t bytes =
            byte < 0x80 ? 1 : jinja_char_at(string->data + at, string->bytes - at, &c);
        if (byte < 0x20 || byte == '"' || byte == '\\' || (ascii && byte >= 0x7f)) {
            jinja_add_part(s, b, string, plain, at - plain);
            add_escape(s, b, c, jinja_user_wrote(string, at));
            plain = at + bytes;
        }
        at += bytes;
    }
    jinja_add_part(s, b, string, plain, string->bytes - plain);
    jinja_add_text(s, b, "\"");
}

static void add_json_float(jinja_state *s, jinja_builder *b, double value) {
    char text[32];
    jinja_spend(s, JINJA_FLOAT_STEPS);
    if (isnan(value))
        jinja_add_text(s, b, "NaN");
    else if (isinf(value))
        jinja_add_text(s, b, value > 0 ? "Infinity" : "-Infinity");
    else
        jinja_add(s, b, text, jinja_spell_float(text, value), false);
}

static void add_break(jinja_state *s, jinja_builder *b, const jinja_json_style *style,
                      size_t level) {
    if (!style->indent) return;
    jinja_add_text(s, b, "\n");
    jinja_add_repeated(s, b, style->indent, level);
}

static void to_json(jinja_state *s, jinja_builder *b, const jinja_value *v,
                    const jinja_json_style *style, size_t level);

static void add_key(jinja_state *s, jinja_builder *b, const jinja_value *key,
                    const jinja_json_style *style) {
    switch (key->kind) {
    case JINJA_STRING:
        add_json_string(s, b, key->s, style->ensure_ascii);
        return;
    case JINJA_NONE:
    case JINJA_BOOL:
    case JINJA_INT:
    case JINJA_FLOAT:
        jinja_add_text(s, b, "\"");
        to_json(s, b, key, style, 0);
        jinja_add_text(s, b, "\"");
        return;
    default:
        jinja_fail(s, MR_ERR_FORMAT,
                   "keys must be str, int, float, bool or None, not %s, to become JSON",
                   jinja_type_name(key));
    }
}

static void add_json_list(jinja_state *s, jinja_builder *b, const jinja_list *list,
                          const jinja_json_style *style, size_t level) {
    jinja_add_text(s, b, "[");
    for (size_t i = 0; i < list->count; i++) {
        if (i > 0) jinja_add_string(s, b, style->item_separator);
        add_break(s, b, style, level + 1);
        to_json(s, b, &list->items[i], style, level + 1);
    }
    if (list->count > 0) add_break(s, b, style, level);
    jinja_add_text(s, b, "]");
}

static void add_json_dict(jinja_state *s, jinja_builder *b, const jinja_dict *dict,
                          const jinja_json_style *style, size_t level) {
    const jinja_value *keys = dict->keys, *values = dict->values;
    if (style->sort_keys && dict->count > 1) {
        jinja_value *sorted = jinja_alloc_array(s, dict->count, sizeof(*sorted));
        jinja_value *along = jinja_alloc_array(s, dict->count, sizeof(*along));
        memcpy(sorted, keys, dict->count * sizeof(*sorted));
        memcpy(along, values, dict->count * sizeof(*along));
        jinja_sort(s, sorted, along, dict->count, false);
        keys = sorted;
        values = along;
    }
    jinja_add_text(s, b, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i > 0) jinja_add_string(s, b, style->item_separator);
        add_break(s, b, style, level + 1);
        add_key(s, b, &keys[i], style);
        jinja_add_string(s, b, style->key_separator);
        to_json(s, b, &values[i], style, level + 1);
    }
    if (dict->count > 0) add_break(s, b, style, level);
    jinja_add_text(s, b, "}");
}

static void to_json(jinja_state *s, jinja_builder *b, const jinja_value *v,
                    const jinja_json_style *style, size_t level) {
    jinja_spend(s, 1);
    switch (v->kind) {
    case JINJA_NONE:
        jinja_add_text(s, b, "null");
        return;
    case JINJA_BOOL:
        jinja_add_text(s, b, v->is ? "true" : "false");
        return;
    case JINJA_INT:
        jinja_add_str(s, b, v);
        return;
    case JINJA_FLOAT:
        add_json_float(s, b, v->f);
        return;
    case JINJA_STRING:
        add_json_string(s, b, v->s, style->ensure_ascii);
        return;
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
        jinja_enter(s);
        if (v->kind == JINJA_DICT)
            add_json_dict(s, b, v->dict, style, level);
        else
            add_json_list(s, b, v->list, style, level);
        jinja_leave(s);
        return;
    default:
        jinja_fail(s, MR_ERR_FORMAT, "Object of type %s is not JSON serializable",
                   jinja_type_name(v));
    }
}

void jinja_to_json(jinja_state *s, jinja_builder *b, const jinja_value *v,
                   const jinja_json_style *style) {
    to_json(s, b, v, style, 0);
}
