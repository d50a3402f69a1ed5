/* jinja_compare.c - equality, order, hashes and sorting, as Python has them. */
#include "common/model/jinja_value.h"

#include <math.h>
#include <string.h>

enum { UNORDERED = 2 };

static bool is_number(const jinja_value *v) {
    return v->kind == JINJA_BOOL || v->kind == JINJA_INT || v->kind == JINJA_FLOAT;
}

static bool is_whole(double f, int64_t *out) {
    if (!(f >= -0x1p63 && f < 0x1p63) || f != floor(f)) return false;
    *out = (int64_t)f;
    return true;
}

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93ull;
    return x ^ x >> 32;
}

uint64_t jinja_hash(jinja_state *s, const jinja_value *v) {
    uint64_t hash = 0xcbf29ce484222325ull;
    int64_t i;
    double f;
    switch (v->kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return v->kind;
    case JINJA_BOOL:
    case JINJA_INT:
    case JINJA_FLOAT:
        jinja_as_number(v, &f);
        if (jinja_as_int(v, &i) || is_whole(f, &i)) return mix((uint64_t)i);
        memcpy(&hash, &f, sizeof(f));
        return mix(hash);
    case JINJA_STRING:
        for (size_t at = 0; at < v->s->bytes; at++)
            hash = (hash ^ (uint8_t)v->s->data[at]) * 0x100000001b3ull;
        return mix(hash);
    case JINJA_TUPLE:
        jinja_enter(s);
        for (size_t at = 0; at < v->list->count; at++)
            hash = mix(hash ^ jinja_hash(s, &v->list->items[at]));
        jinja_leave(s);
        return hash;
    case JINJA_LIST:
    case JINJA_DICT:
        jinja_fail(s, MR_ERR_FORMAT, "unhashable type: '%s'", jinja_type_name(v));
    default:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "a %s as a key is not supported", jinja_type_name(v));
    }
}

static int compare_int_float(int64_t i, double f) {
    if (isnan(f)) return UNORDERED;
    if (f >= 0x1p63) return -1;
    if (f < -0x1p63) return 1;
    const double whole = trunc(f);
    if (i != (int64_t)whole) return i < (int64_t)whole ? -1 : 1;
    return f > whole ? -1 : f < whole;
}

static int compare_numbers(const jinja_value *a, const jinja_value *b) {
    int64_t i, j;
    const bool a_is_int = jinja_as_int(a, &i), b_is_int = jinja_as_int(b, &j);
    if (a_is_int && b_is_int) return i < j ? -1 : i > j;
    if (a_is_int) return compare_int_float(i, b->f);
    if (b_is_int) {
        const int order = compare_int_float(j, a->f);
        return order == UNORDERED ? UNORDERED : -order;
    }
    if (isnan(a->f) || isnan(b->f)) return UNORDERED;
    return a->f < b->f ? -1 : a->f > b->f;
}

static bool equal_dicts(jinja_state *s, const jinja_dict *a, const jinja_dict *b) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++) {
        const jinja_value *other = jinja_dict_get(s, b, &a->keys[i]);
        if (!other || !jinja_equal(s, &a->values[i], other)) return false;
    }
    return true;
}

static bool equal_ranges(const jinja_object *a, const jinja_object *b) {
    if (a->count != b->count) return false;
    return a->count == 0 || (a->start == b->start && (a->count == 1 || a->step == b->step));
}

static bool equal_lists(jinja_state *s, const jinja_list *a, const jinja_list *b) {
    if (a->count != b->count) return false;
    jinja_spend(s, a->count);
    for (size_t i = 0; i < a->count; i++)
        if (!jinja_equal(s, &a->items[i], &b->items[i])) return false;
    return true;
}

bool jinja_equal(jinja_state *s, const jinja_value *a, const jinja_value *b) {
    bool equal = false;
    if (is_number(a) && is_number(b)) return compare_numbers(a, b) == 0;
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return true;
    case JINJA_STRING:
        if (s) jinja_spend_bytes(s, a->s->bytes == b->s->bytes ? a->s->bytes : 0);
        return jinja_string_equal(a->s, b->s);
    case JINJA_FUNCTION:
        return a->number == b->number;
    case JINJA_VIEW:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "comparing keys(), values() or items() is not supported");
    case JINJA_METHOD:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "comparing methods is not supported");
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
        jinja_enter(s);
        equal = a->kind == JINJA_DICT ? equal_dicts(s, a->dict, b->dict)
                                      : equal_lists(s, a->list, b->list);
        jinja_leave(s);
        return equal;
    case JINJA_RANGE:
        return equal_ranges(a->object, b->object);
    case JINJA_NAMESPACE:
        return a->dict == b->dict;
    case JINJA_LOOP:
        return a->loop == b->loop;
    case JINJA_MACRO:
        return a->macro == b->macro;
    default:
        return a->object == b->object;
    }
}

static int order_lists(jinja_state *s, const jinja_list *a, const jinja_list *b) {
    const size_t least = a->count < b->count ? a->count : b->count;
    jinja_spend(s, least);
    for (size_t i = 0; i < least; i++)
        if (!jinja_equal(s, &a->items[i], &b->items[i]))
            return jinja_order(s, &a->items[i], &b->items[i]);
    return a->count < b->count ? -1 : a->count > b->count;
}

int jinja_order(jinja_state *s, const jinja_value *a, const jinja_value *b) {
    if (is_number(a) && is_number(b)) return compare_numbers(a, b);
    if (jinja_is_undefined(a)) jinja_fail_undefined(s, a);
    if (jinja_is_undefined(b)) jinja_fail_undefined(s, b);
    if (a->kind == b->kind && a->kind == JINJA_STRING) {
        jinja_spend_bytes(s, a->s->bytes < b->s->bytes ? a->s->bytes : b->s->bytes);
        return jinja_string_compare(a->s, b->s);
    }
    if (a->kind == b->kind && (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE)) {
        jinja_enter(s);
        const int order = order_lists(s, a->list, b->list);
        jinja_leave(s);
        return order;
    }
    jinja_fail(s, MR_ERR_FORMAT, "'%s' and '%s' have no order", jinja_type_name(a),
               jinja_type_name(b));
}

static bool contains_item(jinja_state *s, const jinja_value *items, size_t count,
                          const jinja_value *what) {
    for (size_t i = 0; i < count; i++) {
        jinja_spend(s, 1);
        if (jinja_equal(s, &items[i], what)) return true;
    }
    return false;
}

/* An iterator is used up to the place where it was found. */
static bool contains_left(jinja_state *s, jinja_object *iterator, const jinja_value *what) {
    jinja_begin(s, iterator);
    while (iterator->at < iterator->count) {
        jinja_spend(s, 1);
        if (jinja_equal(s, &iterator->items[iterator->at++], what)) return true;
    }
    return false;
}

bool jinja_contains(jinja_state *s, const jinja_value *in, const jinja_value *what) {
    jinja_sequence all;
    switch (in->kind) {
    case JINJA_STRING:
        if (what->kind != JINJA_STRING)
            jinja_fail(s, MR_ERR_FORMAT, "'in <string>' requires string as left operand, not %s",
                       jinja_type_name(what));
        return jinja_string_find(s, in->s, what->s, 0) != SIZE_MAX;
    case JINJA_DICT:
        return jinja_dict_get(s, in->dict, what) != NULL;
    case JINJA_VIEW:
        if (in->number == JINJA_VIEW_KEYS) return jinja_dict_get(s, in->dict, what) != NULL;
        all = jinja_iterate(s, in);
        return contains_item(s, all.items, all.count, what);
    case JINJA_ITERATOR:
        return contains_left(s, in->object, what);
    case JINJA_UNDEFINED:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_RANGE:
        all = jinja_iterate(s, in);
        return contains_item(s, all.items, all.count, what);
    default:
        jinja_fail(s, MR_ERR_FORMAT, "argument of type '%s' is not iterable", jinja_type_name(in));
    }
}

/* --- sorting ---------------------------------------------------------------------------------- */

/* Merges keys[0, half) and keys[half, count) through the spare space. */
static void merge(jinja_state *s, jinja_value *keys, jinja_value *values, size_t half, size_t count,
                  jinja_value *spare, bool reverse) {
    jinja_value *spare_values = spare + count;
    size_t a = 0, b = half;
    for (size_t i = 0; i < count; i++) {
        bool take_b = a == half;
        if (a < half && b < count) {
            jinja_spend(s, 1);
            const int order =
                reverse ? jinja_order(s, &keys[a], &keys[b]) : jinja_order(s, &keys[b], &keys[a]);
            take_b = order == -1;
        }
        const size_t from = take_b ? b++ : a++;
        spare[i] = keys[from];
        if (values) spare_values[i] = values[from];
    }
    memcpy(keys, spare, count * sizeof(*keys));
    if (values) memcpy(values, spare_values, count * sizeof(*values));
}

static void sort_part(jinja_state *s, jinja_value *keys, jinja_value *values, size_t count,
                      jinja_value *spare, bool reverse) {
    if (count < 2) return;
    const size_t half = count / 2;
    sort_part(s, keys, values, half, spare, reverse);
    sort_part(s, keys + half, values ? values + half : NULL, count - half, spare, reverse);
    merge(s, keys, values, half, count, spare, reverse);
}

void jinja_sort(jinja_state *s, jinja_value *keys, jinja_value *values, size_t count,
                bool reverse) {
    jinja_value *spare = jinja_alloc_array(s, 2 * count, sizeof(*spare));
    sort_part(s, keys, values, count, spare, reverse);
}
