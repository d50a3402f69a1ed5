/* jinja_eval.c - expressions. */
#include "common/model/jinja_eval.h"

#include <string.h>

jinja_value *jinja_slot(jinja_state *s, jinja_place place) {
    jinja_activation *frame = s->frame;
    for (uint32_t i = 0; i < place.up; i++) frame = frame->outer;
    return &frame->slots[place.slot];
}

/* --- arguments -------------------------------------------------------------------------------- */

static size_t find_parameter(const char *const *names, size_t total, const jinja_string *name) {
    for (size_t i = 0; i < total; i++)
        if (jinja_string_is(name, names[i])) return i;
    return SIZE_MAX;
}

void jinja_bind(jinja_state *s, const char *what, const char *const *names, size_t required,
                size_t total, const jinja_args *args, jinja_value *out) {
    for (size_t i = 0; i < total; i++) out[i].kind = JINJA_MISSING;
    if (args->count > total)
        jinja_fail(s, MR_ERR_FORMAT, "%s takes at most %zu arguments, not %zu", what, total,
                   args->count);
    for (size_t i = 0; i < args->count; i++) out[i] = args->items[i];
    for (size_t i = 0; i < args->named; i++) {
        const jinja_string *name = args->names[i];
        const size_t at = find_parameter(names, total, name);
        const int bytes = (int)(name->bytes < 60 ? name->bytes : 60);
        if (at == SIZE_MAX)
            jinja_fail(s, MR_ERR_FORMAT, "%s takes no argument '%.*s'", what, bytes, name->data);
        if (out[at].kind != JINJA_MISSING)
            jinja_fail(s, MR_ERR_FORMAT, "%s got two values for '%.*s'", what, bytes, name->data);
        out[at] = args->values[i];
    }
    for (size_t i = 0; i < required; i++)
        if (out[i].kind == JINJA_MISSING)
            jinja_fail(s, MR_ERR_FORMAT, "%s misses its argument '%s'", what, names[i]);
}

static void add_star(jinja_state *s, jinja_items *items, const jinja_node *node) {
    const jinja_value star = jinja_eval(s, node);
    if (!jinja_is_iterable(&star))
        jinja_fail(s, MR_ERR_FORMAT, "what follows * in a call must be iterable, not %s",
                   jinja_type_name(&star));
    const jinja_sequence all = jinja_iterate(s, &star);
    for (size_t i = 0; i < all.count; i++) jinja_push(s, items, all.items[i]);
}

static void add_star_star(jinja_state *s, jinja_items *names, jinja_items *values,
                          const jinja_node *node) {
    const jinja_value star = jinja_eval(s, node);
    if (star.kind != JINJA_DICT)
        jinja_fail(s, MR_ERR_FORMAT, "what follows ** in a call must be a mapping, not %s",
                   jinja_type_name(&star));
    for (size_t i = 0; i < star.dict->count; i++) {
        const jinja_value *key = &star.dict->keys[i];
        jinja_want_string(s, key, "a name of an argument");
        for (size_t j = 0; j < names->count; j++)
            if (jinja_string_equal(names->items[j].s, key->s))
                jinja_fail(s, MR_ERR_FORMAT, "a call gives an argument twice");
        jinja_push(s, names, *key);
        jinja_push(s, values, star.dict->values[i]);
    }
}

/* caller: for a call block, else NULL. */
static jinja_args evaluate_arguments(jinja_state *s, const jinja_node *node,
                                     const jinja_value *caller) {
    jinja_items items = {0}, names = {0}, values = {0};
    for (uint32_t i = 0; i < node->count; i++) jinja_push(s, &items, jinja_eval(s, node->items[i]));
    if (node->star) add_star(s, &items, node->star);
    for (uint32_t i = 0; i < node->keyword_count; i++) {
        jinja_push(s, &names, jinja_text(node->keywords[i]->name));
        jinja_push(s, &values, jinja_eval(s, node->keywords[i]->a));
    }
    if (caller) {
        jinja_push(s, &names, jinja_string_literal(s, "caller"));
        jinja_push(s, &values, *caller);
    }
    if (node->star_star) add_star_star(s, &names, &values, node->star_star);
    const jinja_string **all = NULL;
    if (names.count > 0) all = jinja_alloc_array(s, names.count, sizeof(const jinja_string *));
    for (size_t i = 0; i < names.count; i++) all[i] = names.items[i].s;
    return (jinja_args){.items = items.items,
                        .count = items.count,
                        .names = all,
                        .values = values.items,
                        .named = values.count};
}

/* --- calls ------------------------------------------------------------------------------------ */

static jinja_value call_method(jinja_state *s, const jinja_object *method, const jinja_args *args) {
    const jinja_value *self = &method->self;
    bool known;
    if (self->kind == JINJA_LOOP) return jinja_loop_call(s, self->loop, method->name, args);
    const jinja_method run = self->kind == JINJA_STRING
                                 ? jinja_string_method(method->name, &known)
                                 : jinja_object_method(self->kind, method->name, &known);
    if (!run)
        jinja_fail(s, MR_ERR_UNSUPPORTED, "the method '%.*s' of %s is not supported",
                   (int)method->name->bytes, method->name->data, jinja_type_name(self));
    return run(s, self, args);
}

jinja_value jinja_call(jinja_state *s, const jinja_value *callee, const jinja_args *args) {
    jinja_value out;
    jinja_spend(s, 1 + args->count);
    switch (callee->kind) {
    case JINJA_UNDEFINED:
        jinja_fail_undefined(s, callee);
    case JINJA_MACRO:
        jinja_enter(s);
        out = jinja_call_macro(s, callee->macro, args);
        jinja_leave(s);
        return out;
    case JINJA_FUNCTION:
        return jinja_call_global(s, callee->number, args);
    case JINJA_METHOD:
        return call_method(s, callee->object, args);
    case JINJA_JOINER:
        jinja_bind(s, "the joiner", NULL, 0, 0, args, NULL);
        out = callee->object->used ? callee->object->self : jinja_string_literal(s, "");
        callee->object->used = true;
        return out;
    case JINJA_LOOP:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "calling 'loop' is not supported");
    default:
        jinja_fail(s, MR_ERR_FORMAT, "'%s' object is not callable", jinja_type_name(callee));
    }
}

/* --- literals --------------------------------------------------------------------------------- */

static jinja_value eval_list(jinja_state *s, const jinja_node *node) {
    jinja_value *items = jinja_alloc_array(s, node->count, sizeof(*items));
    for (uint32_t i = 0; i < node->count; i++) items[i] = jinja_eval(s, node->items[i]);
    return node->kind == JINJA_N_LIST ? jinja_list_of(s, items, node->count)
                                      : jinja_tuple_of(s, items, node->count);
}

static jinja_value eval_dict(jinja_state *s, const jinja_node *node) {
    jinja_dict *dict = jinja_dict_new(s, node->count / 2);
    for (uint32_t i = 0; i < node->count; i += 2) {
        const jinja_value key = jinja_eval(s, node->items[i]);
        jinja_dict_set(s, dict, key, jinja_eval(s, node->items[i + 1]));
    }
    return (jinja_value){.kind = JINJA_DICT, .dict = dict};
}

/* --- the rest --------------------------------------------------------------------------------- */

static jinja_value eval_name(jinja_state *s, const jinja_node *node) {
    const jinja_value *slot = jinja_slot(s, node->place);
    return slot->kind == JINJA_MISSING ? jinja_undefined(s, NULL, node->name) : *slot;
}

static jinja_value eval_compare(jinja_state *s, const jinja_node *node) {
    jinja_value left = jinja_eval(s, node->a);
    for (uint32_t i = 0; i < node->count; i++) {
        const jinja_value right = jinja_eval(s, node->items[i]->a);
        if (!jinja_compare(s, node->items[i]->op, &left, &right)) return jinja_bool(false);
        left = right;
    }
    return jinja_bool(true);
}

static jinja_value eval_concat(jinja_state *s, const jinja_node *node) {
    jinja_value *items = jinja_alloc_array(s, node->count, sizeof(*items));
    for (uint32_t i = 0; i < node->count; i++) items[i] = jinja_eval(s, node->items[i]);
    const jinja_string *all = jinja_str(s, &items[0]);
    for (uint32_t i = 1; i < node->count; i++) all = jinja_concat(s, all, jinja_str(s, &items[i]));
    if (!all->markup) return jinja_text(all);
    jinja_string *plain = jinja_alloc(s, sizeof(*plain));
    *plain = *all;
    plain->markup = false;
    return jinja_text(plain);
}

static jinja_value eval_condition(jinja_state *s, const jinja_node *node) {
    const jinja_value test = jinja_eval(s, node->b);
    if (jinja_truth(s, &test)) return jinja_eval(s, node->a);
    if (node->c) return jinja_eval(s, node->c);
    return jinja_undefined_hint(
        s, "an inline if-expression evaluated to false and no else section was defined");
}

static jinja_value eval_slice(jinja_state *s, const jinja_node *node) {
    const jinja_value of = jinja_eval(s, node->a);
    const jinja_node *const parts[] = {node->b, node->c, node->d};
    jinja_value bounds[3];
    for (int i = 0; i < 3; i++) bounds[i] = parts[i] ? jinja_eval(s, parts[i]) : jinja_none();
    return jinja_slice(s, &of, bounds);
}

static jinja_value eval_filter(jinja_state *s, const jinja_node *node) {
    const jinja_value in = node->a ? jinja_eval(s, node->a) : jinja_text(s->block_text);
    const jinja_args args = evaluate_arguments(s, node, NULL);
    s->line = node->line;
    return jinja_apply_filter(s, node->op, &in, &args);
}

static jinja_value eval_call(jinja_state *s, const jinja_node *node) {
    const jinja_value callee = jinja_eval(s, node->a);
    const jinja_args args = evaluate_arguments(s, node, NULL);
    s->line = node->line;
    return jinja_call(s, &callee, &args);
}

static jinja_value eval_pair(jinja_state *s, const jinja_node *node) {
    const jinja_value a = jinja_eval(s, node->a);
    jinja_value b;
    switch (node->kind) {
    case JINJA_N_AND:
        return jinja_truth(s, &a) ? jinja_eval(s, node->b) : a;
    case JINJA_N_OR:
        return jinja_truth(s, &a) ? a : jinja_eval(s, node->b);
    case JINJA_N_NOT:
        return jinja_bool(!jinja_truth(s, &a));
    case JINJA_N_NEG:
    case JINJA_N_POS:
        return jinja_negate(s, &a, node->kind == JINJA_N_NEG);
    case JINJA_N_ATTR:
        s->line = node->line;
        return jinja_attribute(s, &a, node->name);
    case JINJA_N_ITEM:
        b = jinja_eval(s, node->b);
        s->line = node->line;
        return jinja_item(s, &a, &b);
    default:
        b = jinja_eval(s, node->b);
        s->line = node->line;
        return jinja_binary(s, node->op, &a, &b);
    }
}

static jinja_value eval_test(jinja_state *s, const jinja_node *node) {
    const jinja_value in = jinja_eval(s, node->a);
    const jinja_args args = evaluate_arguments(s, node, NULL);
    s->line = node->line;
    return jinja_bool(jinja_apply_test(s, node->op, &in, &args));
}

static jinja_value eval_deep(jinja_state *s, const jinja_node *node) {
    switch (node->kind) {
    case JINJA_N_LIST:
    case JINJA_N_TUPLE:
        return eval_list(s, node);
    case JINJA_N_DICT:
        return eval_dict(s, node);
    case JINJA_N_CONCAT:
        return eval_concat(s, node);
    case JINJA_N_COMPARE:
        return eval_compare(s, node);
    case JINJA_N_COND:
        return eval_condition(s, node);
    case JINJA_N_SLICE:
        return eval_slice(s, node);
    case JINJA_N_CALL:
        return eval_call(s, node);
    case JINJA_N_FILTER:
        return eval_filter(s, node);
    case JINJA_N_TEST:
        return eval_test(s, node);
    default:
        return eval_pair(s, node);
    }
}

jinja_value jinja_eval(jinja_state *s, const jinja_node *node) {
    jinja_spend(s, 1);
    if (node->kind == JINJA_N_CONST) return node->constant;
    if (node->kind == JINJA_N_NAME) return eval_name(s, node);
    jinja_enter(s);
    s->line = node->line;
    const jinja_value value = eval_deep(s, node);
    jinja_leave(s);
    return value;
}

jinja_value jinja_call_block(jinja_state *s, const jinja_node *call, const jinja_value *caller) {
    const jinja_value callee = jinja_eval(s, call->a);
    const jinja_args args = evaluate_arguments(s, call, caller);
    s->line = call->line;
    return jinja_call(s, &callee, &args);
}

/* --- assigning -------------------------------------------------------------------------------- */

static void store_attribute(jinja_state *s, const jinja_node *target, const jinja_value *value) {
    const jinja_value *space = jinja_slot(s, target->place);
    const jinja_string *name = target->constant.s;
    if (space->kind != JINJA_NAMESPACE)
        jinja_fail(s, MR_ERR_FORMAT, "only a namespace's attributes can be assigned to, not '%.*s'",
                   (int)(name->bytes < 60 ? name->bytes : 60), name->data);
    if (name->data[0] == '_')
        jinja_fail(s, MR_ERR_FORMAT, "a namespace keeps no name that begins with _");
    jinja_dict_set(s, space->dict, target->constant, *value);
}

void jinja_assign(jinja_state *s, const jinja_node *target, const jinja_value *value) {
    if (target->kind == JINJA_N_NSREF) {
        store_attribute(s, target, value);
        return;
    }
    if (target->kind == JINJA_N_NAME) {
        *jinja_slot(s, target->place) = *value;
        return;
    }
    if (!jinja_is_iterable(value))
        jinja_fail(s, MR_ERR_FORMAT, "cannot unpack a %s", jinja_type_name(value));
    const jinja_sequence all = jinja_iterate(s, value);
    if (all.count != target->count)
        jinja_fail(s, MR_ERR_FORMAT, "%zu values cannot be unpacked to %u names", all.count,
                   target->count);
    for (uint32_t i = 0; i < target->count; i++) jinja_assign(s, target->items[i], &all.items[i]);
}
