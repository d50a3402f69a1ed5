/* jinja_value.c - lists, dicts, what can be iterated, and what is true. */
#include "common/model/jinja_value.h"

#include <string.h>

enum { FIRST_ITEMS = 8, LARGEST_PLAIN_DICT = 8 };

/* --- kinds ------------------------------------------------------------------------------------ */

jinja_value jinja_undefined(jinja_state *s, const jinja_value *self, const jinja_string *name) {
    jinja_object *object = jinja_alloc(s, sizeof(*object));
    if (self) object->self = *self;
    object->name = name;
    return (jinja_value){.kind = JINJA_UNDEFINED, .object = object};
}

jinja_value jinja_undefined_hint(jinja_state *s, const char *hint) {
    jinja_object *object = jinja_alloc(s, sizeof(*object));
    object->hint = hint;
    return (jinja_value){.kind = JINJA_UNDEFINED, .object = object};
}

void jinja_fail_undefined(jinja_state *s, const jinja_value *v) {
    const jinja_object *o = v->object;
    const int bytes = o->name ? (int)(o->name->bytes < 80 ? o->name->bytes : 80) : 0;
    if (o->hint) jinja_fail(s, MR_ERR_FORMAT, "%s", o->hint);
    if (o->self.kind == JINJA_MISSING)
        jinja_fail(s, MR_ERR_FORMAT, "'%.*s' is undefined", bytes, o->name->data);
    if (!o->name)
        jinja_fail(s, MR_ERR_FORMAT, "'%s object' has no such element", jinja_type_name(&o->self));
    jinja_fail(s, MR_ERR_FORMAT, "'%s object' has no attribute '%.*s'", jinja_type_name(&o->self),
               bytes, o->name->data);
}

const char *jinja_type_name(const jinja_value *v) {
    static const char *const names[] = {
        [JINJA_MISSING] = "missing",
        [JINJA_UNDEFINED] = "Undefined",
        [JINJA_NONE] = "NoneType",
        [JINJA_BOOL] = "bool",
        [JINJA_INT] = "int",
        [JINJA_FLOAT] = "float",
        [JINJA_STRING] = "str",
        [JINJA_LIST] = "list",
        [JINJA_TUPLE] = "tuple",
        [JINJA_DICT] = "dict",
        [JINJA_VIEW] = "dict view",
        [JINJA_RANGE] = "range",
        [JINJA_ITERATOR] = "generator",
        [JINJA_NAMESPACE] = "Namespace",
        [JINJA_LOOP] = "LoopContext",
        [JINJA_MACRO] = "Macro",
        [JINJA_FUNCTION] = "function",
        [JINJA_METHOD] = "builtin_function_or_method",
        [JINJA_CYCLER] = "Cycler",
        [JINJA_JOINER] = "Joiner",
    };
    return names[v->kind];
}

bool jinja_truth(jinja_state *s, const jinja_value *v) {
    size_t length;
    switch (v->kind) {
    case JINJA_MISSING:
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v->is;
    case JINJA_INT:
        return v->i != 0;
    case JINJA_FLOAT:
        return v->f != 0;
    default:
        return !jinja_length(s, v, &length) || length > 0;
    }
}

bool jinja_as_int(const jinja_value *v, int64_t *out) {
    if (v->kind == JINJA_INT)
        *out = v->i;
    else if (v->kind == JINJA_BOOL)
        *out = v->is;
    return v->kind == JINJA_INT || v->kind == JINJA_BOOL;
}

bool jinja_as_number(const jinja_value *v, double *out) {
    int64_t i;
    if (v->kind == JINJA_FLOAT)
        *out = v->f;
    else if (jinja_as_int(v, &i))
        *out = (double)i;
    else
        return false;
    return true;
}

int64_t jinja_want_int(jinja_state *s, const jinja_value *v, const char *what) {
    int64_t out;
    if (jinja_is_undefined(v)) jinja_fail_undefined(s, v);
    if (!jinja_as_int(v, &out))
        jinja_fail(s, MR_ERR_FORMAT, "%s must be an int, not %s", what, jinja_type_name(v));
    return out;
}

const jinja_string *jinja_want_string(jinja_state *s, const jinja_value *v, const char *what) {
    if (jinja_is_undefined(v)) jinja_fail_undefined(s, v);
    if (v->kind != JINJA_STRING)
        jinja_fail(s, MR_ERR_FORMAT, "%s must be a str, not %s", what, jinja_type_name(v));
    return v->s;
}

/* --- lists ------------------------------------------------------------------------------------ */

static jinja_value list_value(jinja_state *s, jinja_kind kind, jinja_value *items, size_t count) {
    jinja_list *list = jinja_alloc(s, sizeof(*list));
    list->items = items;
    list->count = count;
    return (jinja_value){.kind = kind, .list = list};
}

jinja_value jinja_list_of(jinja_state *s, jinja_value *items, size_t count) {
    return list_value(s, JINJA_LIST, items, count);
}

jinja_value jinja_tuple_of(jinja_state *s, jinja_value *items, size_t count) {
    return list_value(s, JINJA_TUPLE, items, count);
}

jinja_value jinja_pair(jinja_state *s, jinja_value first, jinja_value second) {
    jinja_value *items = jinja_alloc_array(s, 2, sizeof(*items));
    items[0] = first;
    items[1] = second;
    return jinja_tuple_of(s, items, 2);
}

jinja_value jinja_iterator(jinja_state *s, const jinja_value *items, size_t count) {
    jinja_object *object = jinja_alloc(s, sizeof(*object));
    object->items = items;
    object->count = count;
    return (jinja_value){.kind = JINJA_ITERATOR, .object = object};
}

void jinja_push(jinja_state *s, jinja_items *list, jinja_value value) {
    if (list->count == list->room) {
        const size_t room = list->room ? 2 * list->room : FIRST_ITEMS;
        jinja_value *items = jinja_alloc_array(s, room, sizeof(*items));
        if (list->count > 0) memcpy(items, list->items, list->count * sizeof(*items));
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = value;
}

jinja_value jinja_list_concat(jinja_state *s, const jinja_value *a, const jinja_value *b) {
    const jinja_list *x = a->list, *y = b->list;
    jinja_list_store *store = x->store;
    const size_t count = x->count + y->count;
    if (!store || x->items + x->count != store->items + store->used ||
        store->room - store->used < y->count) {
        store = jinja_alloc(s, sizeof(*store));
        store->room = count < FIRST_ITEMS ? count : 2 * count;
        store->items = jinja_alloc_array(s, store->room, sizeof(*store->items));
        if (x->count > 0) memcpy(store->items, x->items, x->count * sizeof(*x->items));
        store->used = x->count;
        jinja_spend(s, x->count);
    }
    const size_t first = store->used - x->count;
    jinja_spend(s, y->count);
    if (y->count > 0) memcpy(store->items + store->used, y->items, y->count * sizeof(*y->items));
    store->used += y->count;
    jinja_list *list = jinja_alloc(s, sizeof(*list));
    *list = (jinja_list){.items = store->items + first, .count = count, .store = store};
    return (jinja_value){.kind = a->kind, .list = list};
}

/* --- dicts ------------------------------------------------------------------------------------ */

static void index_key(jinja_state *s, jinja_dict *dict, size_t place) {
    size_t at = jinja_hash(s, &dict->keys[place]) & (dict->index_room - 1);
    for (; dict->index[at]; at = (at + 1) & (dict->index_room - 1)) jinja_spend(s, 1);
    dict->index[at] = (uint32_t)place + 1;
}

static void make_room(jinja_state *s, jinja_dict *dict, size_t room) {
    jinja_value *keys = jinja_alloc_array(s, room, sizeof(*keys));
    jinja_value *values = jinja_alloc_array(s, room, sizeof(*values));
    if (dict->count > 0) {
        memcpy(keys, dict->keys, dict->count * sizeof(*keys));
        memcpy(values, dict->values, dict->count * sizeof(*values));
    }
    dict->keys = keys;
    dict->values = values;
    dict->room = room;
    if (room <= LARGEST_PLAIN_DICT) return;
    dict->index_room = 32;
    while (dict->index_room < 2 * room) dict->index_room *= 2;
    dict->index = jinja_alloc_array(s, dict->index_room, sizeof(*dict->index));
    for (size_t i = 0; i < dict->count; i++) index_key(s, dict, i);
}

jinja_dict *jinja_dict_new(jinja_state *s, size_t expected) {
    jinja_dict *dict = jinja_alloc(s, sizeof(*dict));
    if (expected > 0) make_room(s, dict, expected);
    return dict;
}

static size_t find_place(jinja_state *s, const jinja_dict *dict, const jinja_value *key) {
    const uint64_t hash = jinja_hash(s, key);
    if (!dict->index) {
        for (size_t i = 0; i < dict->count; i++)
            if (jinja_equal(s, &dict->keys[i], key)) return i;
        return SIZE_MAX;
    }
    size_t at = hash & (dict->index_room - 1);
    for (; dict->index[at]; at = (at + 1) & (dict->index_room - 1))
        if (jinja_equal(s, &dict->keys[dict->index[at] - 1], key)) return dict->index[at] - 1;
    return SIZE_MAX;
}

void jinja_dict_set(jinja_state *s, jinja_dict *dict, jinja_value key, jinja_value value) {
    const size_t place = find_place(s, dict, &key);
    if (place != SIZE_MAX) {
        dict->values[place] = value;
        return;
    }
    if (dict->count == dict->room) make_room(s, dict, dict->room ? 2 * dict->room : 4);
    dict->keys[dict->count] = key;
    dict->values[dict->count++] = value;
    if (dict->index) index_key(s, dict, dict->count - 1);
}

const jinja_value *jinja_dict_get(jinja_state *s, const jinja_dict *dict, const jinja_value *key) {
    const size_t place = find_place(s, dict, key);
    return place == SIZE_MAX ? NULL : &dict->values[place];
}

const jinja_value *jinja_dict_find(const jinja_dict *dict, const jinja_string *key) {
    const jinja_value k = jinja_text(key);
    const size_t place = find_place(NULL, dict, &k); /* the hash of a string never fails */
    return place == SIZE_MAX ? NULL : &dict->values[place];
}

/* --- iterating -------------------------------------------------------------------------------- */

bool jinja_is_iterable(const jinja_value *v) {
    switch (v->kind) {
    case JINJA_UNDEFINED:
    case JINJA_STRING:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_VIEW:
    case JINJA_RANGE:
    case JINJA_ITERATOR:
    case JINJA_LOOP:
        return true;
    default:
        return false;
    }
}

jinja_value jinja_range_item(const jinja_object *range, size_t index) {
    return jinja_int((int64_t)((uint64_t)range->start + index * (uint64_t)range->step));
}

static jinja_sequence characters(jinja_state *s, const jinja_string *string) {
    jinja_spend_lookups(s, string->bytes);
    const size_t count = jinja_char_count(string->data, string->bytes);
    jinja_value *items = jinja_alloc_array(s, count, sizeof(*items));
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t character;
        const size_t bytes = jinja_char_at(string->data + at, string->bytes - at, &character);
        jinja_string *one = jinja_alloc(s, sizeof(*one));
        *one = *jinja_string_part(s, string, at, bytes);
        one->markup = false;
        items[i] = jinja_text(one);
        at += bytes;
    }
    return (jinja_sequence){items, count};
}

static jinja_sequence view_items(jinja_state *s, const jinja_value *v) {
    const jinja_dict *d = v->dict;
    if (v->number == JINJA_VIEW_KEYS) return (jinja_sequence){d->keys, d->count};
    if (v->number == JINJA_VIEW_VALUES) return (jinja_sequence){d->values, d->count};
    jinja_spend(s, d->count);
    jinja_value *items = jinja_alloc_array(s, d->count, sizeof(*items));
    for (size_t i = 0; i < d->count; i++) items[i] = jinja_pair(s, d->keys[i], d->values[i]);
    return (jinja_sequence){items, d->count};
}

jinja_sequence jinja_iterate(jinja_state *s, const jinja_value *v) {
    jinja_sequence left;
    jinja_value *items;
    switch (v->kind) {
    case JINJA_UNDEFINED:
        return (jinja_sequence){NULL, 0};
    case JINJA_STRING:
        return characters(s, v->s);
    case JINJA_LIST:
    case JINJA_TUPLE:
        return (jinja_sequence){v->list->items, v->list->count};
    case JINJA_DICT:
        return (jinja_sequence){v->dict->keys, v->dict->count};
    case JINJA_VIEW:
        return view_items(s, v);
    case JINJA_RANGE:
        jinja_spend(s, v->object->count);
        items = jinja_alloc_array(s, v->object->count, sizeof(*items));
        for (size_t i = 0; i < v->object->count; i++) items[i] = jinja_range_item(v->object, i);
        return (jinja_sequence){items, v->object->count};
    case JINJA_ITERATOR:
        jinja_begin(s, v->object);
        left = (jinja_sequence){v->object->items ? v->object->items + v->object->at : NULL,
                                v->object->count - v->object->at};
        v->object->at = v->object->count;
        return left;
    case JINJA_LOOP:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "iterating over 'loop' itself is not supported");
    default:
        jinja_fail(s, MR_ERR_FORMAT, "'%s' object is not iterable", jinja_type_name(v));
    }
}

bool jinja_length(jinja_state *s, const jinja_value *v, size_t *out) {
    switch (v->kind) {
    case JINJA_UNDEFINED:
        *out = 0;
        return true;
    case JINJA_STRING:
        if (v->s->bytes > 64) jinja_spend_walk(s, v->s->bytes);
        *out = jinja_char_count(v->s->data, v->s->bytes);
        return true;
    case JINJA_LIST:
    case JINJA_TUPLE:
        *out = v->list->count;
        return true;
    case JINJA_DICT:
    case JINJA_VIEW:
        *out = v->dict->count;
        return true;
    case JINJA_RANGE:
        *out = v->object->count;
        return true;
    default:
        return false;
    }
}
