/* jinja_access.c - attributes, items and slices, tried in the order of jinja2's sandbox. */
#include "common/model/jinja_eval.h"

#include <string.h>

/* --- attributes ------------------------------------------------------------------------------- */

static jinja_value method_of(jinja_state *s, const jinja_value *self, const jinja_string *name) {
    jinja_object *method = jinja_alloc(s, sizeof(*method));
    method->self = *self;
    method->name = name;
    return (jinja_value){.kind = JINJA_METHOD, .object = method};
}

static jinja_value unsafe(jinja_state *s) {
    return jinja_undefined_hint(s, "access to an attribute that is unsafe");
}

/* Python objects have attributes of such names; a template must not see them. */
static bool is_internal(const jinja_string *name) {
    return name->bytes > 4 && memcmp(name->data, "__", 2) == 0 &&
           memcmp(name->data + name->bytes - 2, "__", 2) == 0;
}

static bool range_attribute(const jinja_object *range, const jinja_string *name, jinja_value *out) {
    if (jinja_string_is(name, "start"))
        *out = jinja_int(range->start);
    else if (jinja_string_is(name, "stop"))
        *out = jinja_int(range->stop);
    else if (jinja_string_is(name, "step"))
        *out = jinja_int(range->step);
    else
        return false;
    return true;
}

static bool cycler_attribute(const jinja_value *of, const jinja_string *name, jinja_value *out) {
    const jinja_object *o = of->object;
    if (of->kind == JINJA_CYCLER && jinja_string_is(name, "current"))
        *out = o->items[o->at];
    else if (of->kind == JINJA_CYCLER && jinja_string_is(name, "pos"))
        *out = jinja_int((int64_t)o->at);
    else if (of->kind == JINJA_JOINER && jinja_string_is(name, "used"))
        *out = jinja_bool(o->used);
    else if (of->kind == JINJA_JOINER && jinja_string_is(name, "sep"))
        *out = o->self;
    else
        return false;
    return true;
}

static bool named_field(const jinja_list *list, const jinja_string *name, jinja_value *out) {
    for (size_t i = 0; list->names && i < list->count; i++)
        if (jinja_string_equal(list->names[i], name)) {
            *out = list->items[i];
            return true;
        }
    return false;
}

/* Python's getattr(); false: there is none, and an item may be tried. */
static bool get_attribute(jinja_state *s, const jinja_value *of, const jinja_string *name,
                          jinja_value *out) {
    const jinja_value *found;
    bool known = false;
    switch (of->kind) {
    case JINJA_UNDEFINED:
        jinja_fail_undefined(s, of);
    case JINJA_NAMESPACE:
        found = jinja_dict_find(of->dict, name);
        if (found) *out = *found;
        return found != NULL;
    case JINJA_LOOP:
        *out = jinja_loop_attribute(s, of, name);
        return !jinja_is_undefined(out) || out->object->hint;
    case JINJA_RANGE:
        if (range_attribute(of->object, name, out)) return true;
        break;
    case JINJA_TUPLE:
        if (named_field(of->list, name, out)) return true;
        break;
    case JINJA_CYCLER:
    case JINJA_JOINER:
        if (cycler_attribute(of, name, out)) return true;
        break;
    case JINJA_MACRO:
        if (!jinja_string_is(name, "name")) break;
        *out = of->macro->node->name ? jinja_text(of->macro->node->name) : jinja_none();
        return true;
    default:
        break;
    }
    if (is_internal(name)) {
        *out = unsafe(s);
        return true;
    }
    if (of->kind == JINJA_STRING)
        jinja_string_method(name, &known);
    else
        jinja_object_method(of->kind, name, &known);
    if (!known) return false;
    *out = jinja_method_mutates(of->kind, name) ? unsafe(s) : method_of(s, of, name);
    return true;
}

/* Python's of[key]; false: there is no such item, or there are no items at all. */
static bool get_item(jinja_state *s, const jinja_value *of, const jinja_value *key,
                     jinja_value *out) {
    const jinja_value *found;
    size_t count;
    int64_t index;
    switch (of->kind) {
    case JINJA_UNDEFINED:
        jinja_fail_undefined(s, of);
    case JINJA_DICT:
        if (key->kind == JINJA_LIST || key->kind == JINJA_DICT) return false;
        found = jinja_dict_get(s, of->dict, key);
        if (found) *out = *found;
        return found != NULL;
    case JINJA_STRING:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        break;
    default:
        return false;
    }
    if (!jinja_as_int(key, &index) || !jinja_length(s, of, &count)) return false;
    if (index < 0) index += (int64_t)count;
    if (index < 0 || index >= (int64_t)count) return false;
    if (of->kind == JINJA_RANGE)
        *out = jinja_range_item(of->object, (size_t)index);
    else if (of->kind == JINJA_STRING) {
        uint32_t c;
        const size_t at = jinja_char_offset(of->s->data, of->s->bytes, (size_t)index);
        jinja_spend(s, at / 8);
        const size_t bytes = jinja_char_at(of->s->data + at, of->s->bytes - at, &c);
        *out = jinja_text(jinja_string_part(s, of->s, at, bytes));
    } else
        *out = of->list->items[index];
    return true;
}

jinja_value jinja_attribute(jinja_state *s, const jinja_value *of, const jinja_string *name) {
    jinja_value out;
    const jinja_value key = jinja_text(name);
    if (get_attribute(s, of, name, &out) || get_item(s, of, &key, &out)) return out;
    return jinja_undefined(s, of, name);
}

jinja_value jinja_item(jinja_state *s, const jinja_value *of, const jinja_value *key) {
    jinja_value out;
    if (get_item(s, of, key, &out)) return out;
    if (key->kind != JINJA_STRING) return jinja_undefined(s, of, NULL);
    if (get_attribute(s, of, key->s, &out)) return out;
    return jinja_undefined(s, of, key->s);
}

jinja_value jinja_attribute_path(jinja_state *s, const jinja_value *of, const jinja_value *path,
                                 const jinja_value *otherwise) {
    jinja_value at = *of;
    if (path->kind == JINJA_NONE) return at;
    if (path->kind != JINJA_STRING) {
        at = jinja_item(s, of, path);
        return otherwise && jinja_is_undefined(&at) ? *otherwise : at;
    }
    const jinja_string *dot = jinja_string_of(s, ".", 1, false);
    const jinja_items parts = jinja_split(s, path->s, dot, -1, false);
    for (size_t i = 0; i < parts.count; i++) {
        const jinja_string *part = parts.items[i].s;
        jinja_value key = parts.items[i];
        int64_t index;
        if (jinja_all_are(s, part, JINJA_DIGIT | JINJA_DECIMAL) &&
            jinja_parse_int(s, part, 10, &index))
            key = jinja_int(index);
        at = jinja_item(s, &at, &key);
        if (otherwise && jinja_is_undefined(&at)) at = *otherwise;
    }
    return at;
}

/* --- slices ----------------------------------------------------------------------------------- */

typedef struct {
    int64_t start, stop, step;
    size_t count;
} span;

static bool bound(jinja_state *s, const jinja_value *v, int64_t *out) {
    if (jinja_is_none(v)) return false;
    *out = jinja_want_int(s, v, "a bound of a slice");
    return true;
}

static int64_t clamp(int64_t at, int64_t count, int64_t low, int64_t high) {
    if (at < 0) at += count;
    return at < low ? low : at > high ? high : at;
}

static span find_span(jinja_state *s, const jinja_value bounds[3], size_t length) {
    const int64_t count = (int64_t)length;
    span out = {.step = 1};
    if (bound(s, &bounds[2], &out.step) && out.step == 0)
        jinja_fail(s, MR_ERR_FORMAT, "the step of a slice cannot be 0");
    if (out.step < -count - 1) out.step = -count - 1; /* as far as any step goes */
    if (out.step > count + 1) out.step = count + 1;
    const int64_t low = out.step < 0 ? -1 : 0, high = out.step < 0 ? count - 1 : count;
    out.start = out.step < 0 ? high : low;
    out.stop = out.step < 0 ? low : high;
    int64_t given;
    if (bound(s, &bounds[0], &given)) out.start = clamp(given, count, low, high);
    if (bound(s, &bounds[1], &given)) out.stop = clamp(given, count, low, high);
    if (out.step > 0 && out.stop > out.start)
        out.count = (size_t)((out.stop - out.start - 1) / out.step + 1);
    if (out.step < 0 && out.stop < out.start)
        out.count = (size_t)((out.start - out.stop - 1) / -out.step + 1);
    return out;
}

static jinja_value slice_string(jinja_state *s, const jinja_string *string, span part) {
    const char *data = string->data;
    if (part.count == 0) return jinja_text(jinja_string_part(s, string, 0, 0));
    if (part.step == 1) {
        const size_t first = jinja_char_offset(data, string->bytes, (size_t)part.start);
        const size_t bytes = jinja_char_offset(data + first, string->bytes - first, part.count);
        jinja_spend_walk(s, first + bytes);
        return jinja_text(jinja_string_part(s, string, first, bytes));
    }
    const jinja_value whole = jinja_text(string);
    const jinja_sequence all = jinja_iterate(s, &whole);
    jinja_builder b = {0};
    for (size_t i = 0; i < part.count; i++)
        jinja_add_string(s, &b, all.items[part.start + (int64_t)i * part.step].s);
    jinja_string *out = (jinja_string *)(uintptr_t)jinja_built(s, &b);
    out->markup = string->markup;
    return jinja_text(out);
}

static jinja_value slice_range(jinja_state *s, const jinja_object *range, span part) {
    jinja_object *out = jinja_alloc(s, sizeof(*out));
    const uint64_t start = (uint64_t)range->start, step = (uint64_t)range->step;
    out->start = (int64_t)(start + (uint64_t)part.start * step);
    out->stop = (int64_t)(start + (uint64_t)part.stop * step);
    out->step = (int64_t)(step * (uint64_t)part.step);
    out->count = part.count;
    return (jinja_value){.kind = JINJA_RANGE, .object = out};
}

jinja_value jinja_slice(jinja_state *s, const jinja_value *of, const jinja_value bounds[3]) {
    size_t length;
    if (jinja_is_undefined(of)) jinja_fail_undefined(s, of);
    if ((of->kind != JINJA_STRING && of->kind != JINJA_LIST && of->kind != JINJA_TUPLE &&
         of->kind != JINJA_RANGE) ||
        !jinja_length(s, of, &length))
        jinja_fail(s, MR_ERR_FORMAT, "a '%s' cannot be sliced", jinja_type_name(of));
    const span part = find_span(s, bounds, length);
    if (of->kind == JINJA_STRING) return slice_string(s, of->s, part);
    if (of->kind == JINJA_RANGE) return slice_range(s, of->object, part);
    jinja_spend(s, part.count);
    jinja_value *items = of->list->items ? of->list->items + part.start : NULL;
    if (part.step != 1) {
        items = jinja_alloc_array(s, part.count, sizeof(*items));
        for (size_t i = 0; i < part.count; i++)
            items[i] = of->list->items[part.start + (int64_t)i * part.step];
    }
    return of->kind == JINJA_LIST ? jinja_list_of(s, items, part.count)
                                  : jinja_tuple_of(s, items, part.count);
}
