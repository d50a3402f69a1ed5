/* jinja_filter.c - filters of sequences, and the search of a filter by its name.
 *
 * What jinja2 gives out as a generator is worked out as a whole when its first item is asked for,
 * and still runs only once. */
#include "common/model/jinja_eval.h"

#include <string.h>

static bool is_missing(const jinja_value *v) {
    return v->kind == JINJA_MISSING;
}

static jinja_value or_none(const jinja_value *v) {
    return is_missing(v) ? jinja_none() : *v;
}

static void no_arguments(jinja_state *s, const jinja_args *args) {
    jinja_bind(s, "the filter", NULL, 0, 0, args, NULL);
}

typedef jinja_items (*generator)(jinja_state *s, const jinja_value *in, const jinja_args *args);

typedef struct {
    generator run;
    jinja_value in;
    jinja_args args;
} generator_plan;

static void begin_generator(jinja_state *s, jinja_object *iterator) {
    const generator_plan *plan = iterator->plan;
    jinja_enter(s);
    const jinja_items items = plan->run(s, &plan->in, &plan->args);
    jinja_leave(s);
    iterator->items = items.items;
    iterator->count = items.count;
}

static jinja_value generate(jinja_state *s, generator run, const jinja_value *in,
                            const jinja_args *args) {
    const jinja_value out = jinja_iterator(s, NULL, 0);
    generator_plan *plan = jinja_alloc(s, sizeof(*plan));
    *plan = (generator_plan){run, *in, *args};
    out.object->begin = begin_generator;
    out.object->plan = plan;
    return out;
}

static jinja_value copied_list(jinja_state *s, jinja_sequence all) {
    jinja_spend(s, all.count);
    jinja_value *items = jinja_alloc_array(s, all.count, sizeof(*items));
    if (all.count > 0) memcpy(items, all.items, all.count * sizeof(*items));
    return jinja_list_of(s, items, all.count);
}

/* --- ends ------------------------------------------------------------------------------------- */

static jinja_value f_first(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    if (in->kind == JINJA_ITERATOR) jinja_begin(s, in->object);
    if (in->kind == JINJA_ITERATOR && in->object->at < in->object->count)
        return in->object->items[in->object->at++];
    if (in->kind == JINJA_STRING && in->s->bytes > 0) {
        const jinja_value zero = jinja_int(0);
        return jinja_item(s, in, &zero);
    }
    const jinja_sequence all = jinja_iterate(s, in);
    if (all.count == 0) return jinja_undefined_hint(s, "No first item, sequence was empty.");
    return all.items[0];
}

static jinja_value f_last(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    if (in->kind == JINJA_ITERATOR)
        jinja_fail(s, MR_ERR_FORMAT, "a generator has no last item: put | list before | last");
    if (in->kind == JINJA_STRING && in->s->bytes > 0) {
        const jinja_value end = jinja_int(-1);
        return jinja_item(s, in, &end);
    }
    const jinja_sequence all = jinja_iterate(s, in);
    if (all.count == 0) return jinja_undefined_hint(s, "No last item, sequence was empty.");
    return all.items[all.count - 1];
}

static jinja_value f_list(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    return copied_list(s, jinja_iterate(s, in));
}

static jinja_value f_reverse(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    if (in->kind == JINJA_STRING) {
        const jinja_value bounds[3] = {jinja_none(), jinja_none(), jinja_int(-1)};
        return jinja_slice(s, in, bounds);
    }
    const jinja_value copy = copied_list(s, jinja_iterate(s, in));
    jinja_value *items = copy.list->items;
    for (size_t i = 0; i < copy.list->count / 2; i++) {
        const jinja_value value = items[i];
        items[i] = items[copy.list->count - 1 - i];
        items[copy.list->count - 1 - i] = value;
    }
    return in->kind == JINJA_ITERATOR ? copy : jinja_iterator(s, items, copy.list->count);
}

static jinja_value f_join(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"d", "attribute"};
    jinja_value got[2];
    JINJA_BIND(s, "join", names, 0, args, got);
    const jinja_value nothing = jinja_string_literal(s, "");
    const jinja_string *separator = jinja_str(s, is_missing(&got[0]) ? &nothing : &got[0]);
    jinja_sequence all = jinja_iterate(s, in);
    if (!is_missing(&got[1]) && !jinja_is_none(&got[1])) {
        jinja_items items = {0};
        for (size_t i = 0; i < all.count; i++)
            jinja_push(s, &items, jinja_attribute_path(s, &all.items[i], &got[1], NULL));
        all = (jinja_sequence){items.items, items.count};
    }
    return jinja_text(jinja_join(s, separator, all, true));
}

/* --- map, select ------------------------------------------------------------------------------ */

static uint32_t filter_named(jinja_state *s, const jinja_value *name) {
    uint32_t which;
    const jinja_string *text = jinja_want_string(s, name, "the name of a filter");
    if (!jinja_filter_find(text, &which))
        jinja_fail(s, MR_ERR_UNSUPPORTED, "the filter '%.*s' is not supported",
                   (int)(text->bytes < 60 ? text->bytes : 60), text->data);
    return which;
}

static uint32_t test_named(jinja_state *s, const jinja_value *name) {
    uint32_t which;
    const jinja_string *text = jinja_want_string(s, name, "the name of a test");
    if (!jinja_test_find(text, &which))
        jinja_fail(s, MR_ERR_UNSUPPORTED, "the test '%.*s' is not supported",
                   (int)(text->bytes < 60 ? text->bytes : 60), text->data);
    return which;
}

static jinja_items map_attribute(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"attribute", "default"};
    jinja_value got[2];
    jinja_items out = {0};
    JINJA_BIND(s, "map", names, 1, args, got);
    const bool has_default = !is_missing(&got[1]) && !jinja_is_none(&got[1]);
    const jinja_sequence all = jinja_iterate(s, in);
    for (size_t i = 0; i < all.count; i++)
        jinja_push(s, &out,
                   jinja_attribute_path(s, &all.items[i], &got[0], has_default ? &got[1] : NULL));
    return out;
}

static jinja_items run_map(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    jinja_items out = {0};
    if (!jinja_truth(s, in)) return out;
    if (args->count == 0) {
        for (size_t i = 0; i < args->named; i++)
            if (jinja_string_is(args->names[i], "attribute")) return map_attribute(s, in, args);
        jinja_fail(s, MR_ERR_FORMAT, "map requires a filter argument");
    }
    const uint32_t which = filter_named(s, &args->items[0]);
    jinja_args rest = *args;
    rest.items++;
    rest.count--;
    const jinja_sequence all = jinja_iterate(s, in);
    for (size_t i = 0; i < all.count; i++)
        jinja_push(s, &out, jinja_apply_filter(s, which, &all.items[i], &rest));
    return out;
}

static jinja_items choose(jinja_state *s, const jinja_value *in, const jinja_args *args,
                          bool of_attribute, bool wanted) {
    jinja_items out = {0};
    jinja_args rest = *args;
    jinja_value path = jinja_none();
    uint32_t which = 0;
    if (!jinja_truth(s, in)) return out;
    if (of_attribute) {
        if (rest.count == 0) jinja_fail(s, MR_ERR_FORMAT, "the name of an attribute is missing");
        path = *rest.items++;
        rest.count--;
    }
    const bool has_test = rest.count > 0;
    if (has_test) {
        which = test_named(s, rest.items++);
        rest.count--;
    }
    const jinja_sequence all = jinja_iterate(s, in);
    for (size_t i = 0; i < all.count; i++) {
        const jinja_value value = jinja_attribute_path(s, &all.items[i], &path, NULL);
        const bool is =
            has_test ? jinja_apply_test(s, which, &value, &rest) : jinja_truth(s, &value);
        if (is == wanted) jinja_push(s, &out, all.items[i]);
    }
    return out;
}

static jinja_items run_select(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return choose(s, in, args, false, true);
}

static jinja_items run_reject(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return choose(s, in, args, false, false);
}

static jinja_items run_selectattr(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return choose(s, in, args, true, true);
}

static jinja_items run_rejectattr(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return choose(s, in, args, true, false);
}

/* --- order ------------------------------------------------------------------------------------ */

static jinja_value without_case(jinja_state *s, jinja_value v) {
    return v.kind == JINJA_STRING ? jinja_text(jinja_convert(s, v.s, JINJA_TO_LOWER)) : v;
}

static jinja_value key_of(jinja_state *s, const jinja_value *item, const jinja_value *path,
                          bool case_sensitive) {
    const jinja_value key = jinja_attribute_path(s, item, path, NULL);
    return case_sensitive ? key : without_case(s, key);
}

/* "a,b": several keys. Always a list, as in jinja2: so equal keys need no order. */
static jinja_value sort_key(jinja_state *s, const jinja_value *item, const jinja_value *path,
                            bool case_sensitive) {
    jinja_items keys = {0}, parts = {0};
    if (path->kind == JINJA_STRING)
        parts = jinja_split(s, path->s, jinja_string_of(s, ",", 1, false), -1, false);
    else
        jinja_push(s, &parts, *path);
    for (size_t i = 0; i < parts.count; i++)
        jinja_push(s, &keys, key_of(s, item, &parts.items[i], case_sensitive));
    return jinja_list_of(s, keys.items, keys.count);
}

static jinja_value f_sort(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"reverse", "case_sensitive", "attribute"};
    jinja_value got[3];
    jinja_items keys = {0};
    JINJA_BIND(s, "sort", names, 0, args, got);
    const jinja_value path = or_none(&got[2]);
    const jinja_value sorted = copied_list(s, jinja_iterate(s, in));
    for (size_t i = 0; i < sorted.list->count; i++)
        jinja_push(s, &keys, sort_key(s, &sorted.list->items[i], &path, jinja_truth(s, &got[1])));
    jinja_sort(s, keys.items, sorted.list->items, keys.count, jinja_truth(s, &got[0]));
    return sorted;
}

static jinja_value f_dictsort(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"case_sensitive", "by", "reverse"};
    jinja_value got[3];
    jinja_items keys = {0}, pairs = {0};
    bool by_value = false;
    JINJA_BIND(s, "dictsort", names, 0, args, got);
    if (jinja_is_undefined(in)) jinja_fail_undefined(s, in);
    if (in->kind != JINJA_DICT)
        jinja_fail(s, MR_ERR_FORMAT, "dictsort sorts a dict, not a %s", jinja_type_name(in));
    if (!is_missing(&got[1])) {
        const jinja_string *by = jinja_want_string(s, &got[1], "by");
        by_value = jinja_string_is(by, "value");
        if (!by_value && !jinja_string_is(by, "key"))
            jinja_fail(s, MR_ERR_FORMAT, "dictsort sorts by either 'key' or 'value'");
    }
    for (size_t i = 0; i < in->dict->count; i++) {
        const jinja_value key = by_value ? in->dict->values[i] : in->dict->keys[i];
        jinja_push(s, &pairs, jinja_pair(s, in->dict->keys[i], in->dict->values[i]));
        jinja_push(s, &keys, jinja_truth(s, &got[0]) ? key : without_case(s, key));
    }
    jinja_sort(s, keys.items, pairs.items, keys.count, jinja_truth(s, &got[2]));
    return jinja_list_of(s, pairs.items, pairs.count);
}

static jinja_items run_unique(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"case_sensitive", "attribute"};
    jinja_value got[2];
    jinja_items out = {0};
    JINJA_BIND(s, "unique", names, 0, args, got);
    const jinja_value path = or_none(&got[1]);
    jinja_dict *seen = jinja_dict_new(s, 0);
    const jinja_sequence all = jinja_iterate(s, in);
    for (size_t i = 0; i < all.count; i++) {
        const jinja_value key = key_of(s, &all.items[i], &path, jinja_truth(s, &got[0]));
        if (jinja_dict_get(s, seen, &key)) continue;
        jinja_dict_set(s, seen, key, jinja_none());
        jinja_push(s, &out, all.items[i]);
    }
    return out;
}

static jinja_value extreme(jinja_state *s, const jinja_value *in, const jinja_args *args,
                           int wanted) {
    static const char *const names[] = {"case_sensitive", "attribute"};
    jinja_value got[2];
    JINJA_BIND(s, "the filter", names, 0, args, got);
    const jinja_value path = or_none(&got[1]);
    const bool sensitive = jinja_truth(s, &got[0]);
    const jinja_sequence all = jinja_iterate(s, in);
    if (all.count == 0) return jinja_undefined_hint(s, "No aggregated item, sequence was empty.");
    size_t best = 0;
    jinja_value best_key = key_of(s, &all.items[0], &path, sensitive);
    for (size_t i = 1; i < all.count; i++) {
        const jinja_value key = key_of(s, &all.items[i], &path, sensitive);
        if (jinja_order(s, &key, &best_key) != wanted) continue;
        best = i;
        best_key = key;
    }
    return all.items[best];
}

static jinja_value f_min(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return extreme(s, in, args, -1);
}

static jinja_value f_max(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return extreme(s, in, args, 1);
}

static jinja_value f_sum(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"attribute", "start"};
    jinja_value got[2];
    JINJA_BIND(s, "sum", names, 0, args, got);
    const jinja_value path = or_none(&got[0]);
    jinja_value sum = is_missing(&got[1]) ? jinja_int(0) : got[1];
    if (sum.kind == JINJA_STRING)
        jinja_fail(s, MR_ERR_FORMAT, "sum cannot add strings: use join instead");
    const jinja_sequence all = jinja_iterate(s, in);
    for (size_t i = 0; i < all.count; i++) {
        const jinja_value value = jinja_attribute_path(s, &all.items[i], &path, NULL);
        jinja_spend(s, 1);
        sum = jinja_binary(s, JINJA_T_ADD, &sum, &value);
    }
    return sum;
}

/* --- groups ----------------------------------------------------------------------------------- */

static jinja_items run_items(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    no_arguments(s, args);
    if (jinja_is_undefined(in)) return (jinja_items){0};
    if (in->kind != JINJA_DICT)
        jinja_fail(s, MR_ERR_FORMAT, "Can only get item pairs from a mapping.");
    const jinja_value view = {.kind = JINJA_VIEW, .number = JINJA_VIEW_ITEMS, .dict = in->dict};
    const jinja_value pairs = copied_list(s, jinja_iterate(s, &view));
    return (jinja_items){pairs.list->items, pairs.list->count, pairs.list->count};
}

static jinja_items run_batch(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"linecount", "fill_with"};
    jinja_value got[2];
    jinja_items out = {0}, row = {0};
    JINJA_BIND(s, "batch", names, 1, args, got);
    const int64_t width = jinja_want_int(s, &got[0], "linecount");
    const jinja_value fill = or_none(&got[1]);
    const jinja_sequence all = jinja_iterate(s, in);
    for (size_t i = 0; i < all.count; i++) {
        jinja_spend(s, 1);
        if ((int64_t)row.count == width) {
            jinja_push(s, &out, jinja_list_of(s, row.items, row.count));
            row = (jinja_items){0};
        }
        jinja_push(s, &row, all.items[i]);
    }
    if (row.count > 0) {
        while (!jinja_is_none(&fill) && (int64_t)row.count < width) {
            jinja_spend(s, 1);
            jinja_push(s, &row, fill);
        }
        jinja_push(s, &out, jinja_list_of(s, row.items, row.count));
    }
    return out;
}

static jinja_items run_slice(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"slices", "fill_with"};
    jinja_value got[2];
    jinja_items out = {0};
    JINJA_BIND(s, "slice", names, 1, args, got);
    const int64_t given = jinja_want_int(s, &got[0], "slices");
    const jinja_value fill = or_none(&got[1]);
    if (given == 0) jinja_fail(s, MR_ERR_FORMAT, "slice: integer division or modulo by zero");
    const jinja_sequence all = jinja_iterate(s, in);
    const size_t slices = given > 0 ? (size_t)given : 0;
    size_t at = 0;
    for (size_t i = 0; i < slices; i++) {
        const size_t extra = i < all.count % slices;
        const size_t end = at + all.count / slices + extra;
        jinja_items row = {0};
        jinja_spend(s, 1 + end - at);
        for (; at < end; at++) jinja_push(s, &row, all.items[at]);
        if (!jinja_is_none(&fill) && !extra) jinja_push(s, &row, fill);
        jinja_push(s, &out, jinja_list_of(s, row.items, row.count));
    }
    return out;
}

/* A tuple that also has its two parts by name. */
static jinja_value group_of(jinja_state *s, jinja_value grouper, jinja_value list) {
    const jinja_string **names = jinja_alloc_array(s, 2, sizeof(const jinja_string *));
    jinja_value *items = jinja_alloc_array(s, 2, sizeof(*items));
    jinja_list *group = jinja_alloc(s, sizeof(*group));
    names[0] = jinja_string_of(s, "grouper", 7, false);
    names[1] = jinja_string_of(s, "list", 4, false);
    items[0] = grouper;
    items[1] = list;
    *group = (jinja_list){.items = items, .count = 2, .names = names};
    return (jinja_value){.kind = JINJA_TUPLE, .list = group};
}

static jinja_value f_groupby(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    static const char *const names[] = {"attribute", "default", "case_sensitive"};
    jinja_value got[3];
    jinja_items keys = {0}, out = {0};
    JINJA_BIND(s, "groupby", names, 1, args, got);
    const jinja_value fill = or_none(&got[1]), *otherwise = jinja_is_none(&fill) ? NULL : &fill;
    const bool sensitive = jinja_truth(s, &got[2]);
    const jinja_value sorted = copied_list(s, jinja_iterate(s, in));
    jinja_value *items = sorted.list->items;
    for (size_t i = 0; i < sorted.list->count; i++) {
        const jinja_value key = jinja_attribute_path(s, &items[i], &got[0], otherwise);
        jinja_push(s, &keys, sensitive ? key : without_case(s, key));
    }
    jinja_sort(s, keys.items, items, keys.count, false);
    for (size_t first = 0, end; first < keys.count; first = end) {
        for (end = first + 1; end < keys.count; end++)
            if (!jinja_equal(s, &keys.items[first], &keys.items[end])) break;
        const jinja_value key = jinja_attribute_path(s, &items[first], &got[0], otherwise);
        jinja_push(s, &out, group_of(s, key, jinja_list_of(s, items + first, end - first)));
    }
    return jinja_list_of(s, out.items, out.count);
}

/* --- generators ------------------------------------------------------------------------------- */

static jinja_value f_batch(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_batch, in, args);
}

static jinja_value f_items(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_items, in, args);
}

static jinja_value f_map(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_map, in, args);
}

static jinja_value f_reject(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_reject, in, args);
}

static jinja_value f_rejectattr(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_rejectattr, in, args);
}

static jinja_value f_select(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_select, in, args);
}

static jinja_value f_selectattr(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_selectattr, in, args);
}

static jinja_value f_slice(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_slice, in, args);
}

static jinja_value f_unique(jinja_state *s, const jinja_value *in, const jinja_args *args) {
    return generate(s, run_unique, in, args);
}

/* --- the tables ------------------------------------------------------------------------------- */

const jinja_filter_row jinja_sequence_filters[] = {
    {"batch", f_batch},
    {"dictsort", f_dictsort},
    {"first", f_first},
    {"groupby", f_groupby},
    {"items", f_items},
    {"join", f_join},
    {"last", f_last},
    {"list", f_list},
    {"map", f_map},
    {"max", f_max},
    {"min", f_min},
    {"reject", f_reject},
    {"rejectattr", f_rejectattr},
    {"reverse", f_reverse},
    {"select", f_select},
    {"selectattr", f_selectattr},
    {"slice", f_slice},
    {"sort", f_sort},
    {"sum", f_sum},
    {"unique", f_unique},
};
const size_t jinja_sequence_filter_count =
    sizeof(jinja_sequence_filters) / sizeof(jinja_sequence_filters[0]);

bool jinja_filter_find(const jinja_string *name, uint32_t *out) {
    for (size_t i = 0; i < jinja_text_filter_count; i++)
        if (jinja_string_is(name, jinja_text_filters[i].name)) {
            *out = (uint32_t)i;
            return true;
        }
    for (size_t i = 0; i < jinja_sequence_filter_count; i++)
        if (jinja_string_is(name, jinja_sequence_filters[i].name)) {
            *out = (uint32_t)(jinja_text_filter_count + i);
            return true;
        }
    return false;
}

jinja_value jinja_apply_filter(jinja_state *s, uint32_t which, const jinja_value *in,
                               const jinja_args *args) {
    jinja_spend(s, 1);
    jinja_enter(s); /* map may call map */
    const jinja_filter_row *row = which < jinja_text_filter_count
                                      ? &jinja_text_filters[which]
                                      : &jinja_sequence_filters[which - jinja_text_filter_count];
    const jinja_value out = row->apply(s, in, args);
    jinja_leave(s);
    return out;
}
