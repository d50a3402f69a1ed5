/* jinja_method.c - the methods of lists, tuples, dicts and cyclers. */
#include "common/model/jinja_eval.h"

static bool is_missing(const jinja_value *v) {
    return v->kind == JINJA_MISSING;
}

/* --- list, tuple, range ----------------------------------------------------------------------- */

static jinja_value seq_count(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"value"};
    jinja_value got[1];
    int64_t count = 0;
    JINJA_BIND(s, "count()", names, 1, args, got);
    const jinja_sequence all = jinja_iterate(s, self);
    for (size_t i = 0; i < all.count; i++) {
        jinja_spend(s, 1);
        count += jinja_equal(s, &all.items[i], &got[0]);
    }
    return jinja_int(count);
}

static size_t index_bound(jinja_state *s, const jinja_value *v, size_t count, size_t otherwise) {
    if (is_missing(v)) return otherwise;
    int64_t at = jinja_want_int(s, v, "a bound of index()");
    if (at < 0 && (at += (int64_t)count) < 0) at = 0;
    return at > (int64_t)count ? count : (size_t)at;
}

static jinja_value seq_index(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"value", "start", "stop"};
    jinja_value got[3];
    JINJA_BIND(s, "index()", names, 1, args, got);
    const jinja_sequence all = jinja_iterate(s, self);
    const size_t stop = index_bound(s, &got[2], all.count, all.count);
    for (size_t i = index_bound(s, &got[1], all.count, 0); i < stop; i++) {
        jinja_spend(s, 1);
        if (jinja_equal(s, &all.items[i], &got[0])) return jinja_int((int64_t)i);
    }
    jinja_fail(s, MR_ERR_FORMAT, "index(): the %s has no such item", jinja_type_name(self));
}

static jinja_value same(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    jinja_bind(s, "copy()", NULL, 0, 0, args, NULL);
    return *self; /* what cannot be changed needs no copy */
}

/* --- dict ------------------------------------------------------------------------------------- */

static jinja_value view(jinja_state *s, const jinja_value *self, const jinja_args *args,
                        uint32_t which) {
    jinja_bind(s, "the method", NULL, 0, 0, args, NULL);
    return (jinja_value){.kind = JINJA_VIEW, .number = which, .dict = self->dict};
}

static jinja_value dict_keys(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return view(s, self, args, JINJA_VIEW_KEYS);
}

static jinja_value dict_values(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return view(s, self, args, JINJA_VIEW_VALUES);
}

static jinja_value dict_items(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return view(s, self, args, JINJA_VIEW_ITEMS);
}

static jinja_value dict_get(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"key", "default"};
    jinja_value got[2];
    JINJA_BIND(s, "get()", names, 1, args, got);
    const jinja_value *found = jinja_dict_get(s, self->dict, &got[0]);
    if (found) return *found;
    return is_missing(&got[1]) ? jinja_none() : got[1];
}

/* --- cycler ----------------------------------------------------------------------------------- */

static jinja_value cycler_next(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    jinja_object *o = self->object;
    jinja_bind(s, "next()", NULL, 0, 0, args, NULL);
    const jinja_value now = o->items[o->at];
    o->at = (o->at + 1) % o->count;
    return now;
}

static jinja_value cycler_reset(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    jinja_bind(s, "reset()", NULL, 0, 0, args, NULL);
    self->object->at = 0;
    return jinja_none();
}

/* --- the table -------------------------------------------------------------------------------- */

enum {
    OF_LIST = 1u << JINJA_LIST,
    OF_TUPLE = 1u << JINJA_TUPLE,
    OF_RANGE = 1u << JINJA_RANGE,
    OF_DICT = 1u << JINJA_DICT,
    OF_VIEW = 1u << JINJA_VIEW,
    OF_INT = 1u << JINJA_INT | 1u << JINJA_BOOL,
    OF_FLOAT = 1u << JINJA_FLOAT,
    OF_MACRO = 1u << JINJA_MACRO,
    OF_CYCLER = 1u << JINJA_CYCLER,
};

/* run NULL: Python's only. */
static const struct {
    const char *name;
    uint32_t kinds;
    bool mutates;
    jinja_method run;
} methods[] = {
    {"count", OF_LIST | OF_TUPLE | OF_RANGE, false, seq_count},
    {"index", OF_LIST | OF_TUPLE | OF_RANGE, false, seq_index},
    {"copy", OF_LIST | OF_DICT, false, same},
    {"append", OF_LIST, true, NULL},
    {"clear", OF_LIST | OF_DICT, true, NULL},
    {"extend", OF_LIST, true, NULL},
    {"insert", OF_LIST, true, NULL},
    {"pop", OF_LIST | OF_DICT, true, NULL},
    {"remove", OF_LIST, true, NULL},
    {"reverse", OF_LIST, true, NULL},
    {"sort", OF_LIST, true, NULL},
    {"popitem", OF_DICT, true, NULL},
    {"setdefault", OF_DICT, true, NULL},
    {"update", OF_DICT, true, NULL},
    {"get", OF_DICT, false, dict_get},
    {"items", OF_DICT, false, dict_items},
    {"keys", OF_DICT, false, dict_keys},
    {"values", OF_DICT, false, dict_values},
    {"fromkeys", OF_DICT, false, NULL},
    {"mapping", OF_VIEW, false, NULL},
    {"isdisjoint", OF_VIEW, false, NULL},
    {"next", OF_CYCLER, false, cycler_next},
    {"reset", OF_CYCLER, false, cycler_reset},
    {"items", OF_CYCLER, false, NULL},
    {"arguments", OF_MACRO, false, NULL},
    {"caller", OF_MACRO, false, NULL},
    {"catch_kwargs", OF_MACRO, false, NULL},
    {"catch_varargs", OF_MACRO, false, NULL},
    {"explicit_caller", OF_MACRO, false, NULL},
    {"as_integer_ratio", OF_INT | OF_FLOAT, false, NULL},
    {"bit_count", OF_INT, false, NULL},
    {"bit_length", OF_INT, false, NULL},
    {"conjugate", OF_INT | OF_FLOAT, false, NULL},
    {"denominator", OF_INT, false, NULL},
    {"from_bytes", OF_INT, false, NULL},
    {"fromhex", OF_FLOAT, false, NULL},
    {"hex", OF_FLOAT, false, NULL},
    {"imag", OF_INT | OF_FLOAT, false, NULL},
    {"is_integer", OF_FLOAT, false, NULL},
    {"numerator", OF_INT, false, NULL},
    {"real", OF_INT | OF_FLOAT, false, NULL},
    {"to_bytes", OF_INT, false, NULL},
};
enum { METHODS = sizeof(methods) / sizeof(methods[0]) };

static size_t find(jinja_kind kind, const jinja_string *name) {
    size_t i = 0;
    while (i < METHODS &&
           !((methods[i].kinds >> kind & 1) && jinja_string_is(name, methods[i].name)))
        i++;
    return i;
}

jinja_method jinja_object_method(jinja_kind kind, const jinja_string *name, bool *known) {
    const size_t i = find(kind, name);
    *known = i < METHODS;
    return *known ? methods[i].run : NULL;
}

bool jinja_method_mutates(jinja_kind kind, const jinja_string *name) {
    const size_t i = find(kind, name);
    return i < METHODS && methods[i].mutates;
}
