/* jinja_exec.c - statements: loops, branches, assignments, macros. */
#include "common/model/jinja_eval.h"

#include <stdio.h>
#include <string.h>

typedef enum { GOES_ON, BREAKS, CONTINUES } outcome;

static outcome run_body(jinja_state *s, jinja_node *const *nodes, uint32_t count);

static void enter_scope(jinja_state *s, const jinja_scope *scope) {
    for (uint32_t i = 0; i < scope->count; i++) {
        const jinja_load *load = &scope->loads[i];
        jinja_value *slot = &s->frame->slots[load->slot];
        const jinja_value *given;
        switch (load->kind) {
        case JINJA_LOAD_PARAM:
            break;
        case JINJA_LOAD_UNDEFINED:
            slot->kind = JINJA_MISSING;
            break;
        case JINJA_LOAD_ALIAS:
            *slot = *jinja_slot(s, load->outer);
            break;
        case JINJA_LOAD_RESOLVE:
            given = jinja_dict_find(s->variables, load->name);
            *slot = given ? *given : jinja_global(load->name);
            break;
        }
    }
}

static jinja_activation *activate(jinja_state *s, jinja_activation *outer, uint32_t slots) {
    jinja_activation *frame = jinja_alloc(s, sizeof(*frame));
    frame->outer = outer;
    frame->slots = jinja_alloc_array(s, slots, sizeof(*frame->slots));
    return frame;
}

/* --- loops ------------------------------------------------------------------------------------ */

/* The next item that passes the loop's test. */
static bool fetch(jinja_state *s, jinja_loop *loop, jinja_value *out) {
    const jinja_node *node = loop->node;
    while (loop->from->at < loop->from->count) {
        *out = loop->from->items[loop->from->at++];
        jinja_spend(s, 1);
        if (!node->c) return true;
        jinja_assign(s, node->d, out);
        const jinja_value test = jinja_eval(s, node->c);
        if (jinja_truth(s, &test)) return true;
    }
    return false;
}

static bool peek(jinja_state *s, jinja_loop *loop) {
    if (!loop->has_after) loop->has_after = fetch(s, loop, &loop->after);
    return loop->has_after;
}

static bool advance(jinja_state *s, jinja_loop *loop) {
    jinja_value item;
    if (loop->has_after)
        item = loop->after;
    else if (!fetch(s, loop, &item))
        return false;
    loop->has_after = false;
    loop->index0++;
    loop->before = loop->current;
    loop->current = item;
    return true;
}

/* Where only trying tells, all that is left is tried now. */
static size_t loop_length(jinja_state *s, jinja_loop *loop) {
    if (loop->knows_length) return loop->length;
    loop->knows_length = true;
    if (loop->has_length) {
        loop->length = loop->from->count;
        return loop->length;
    }
    jinja_items left = {0};
    jinja_value item;
    while (fetch(s, loop, &item)) jinja_push(s, &left, item);
    jinja_object *from = jinja_alloc(s, sizeof(*from));
    from->items = left.items;
    from->count = left.count;
    loop->length = left.count + (size_t)(loop->index0 + 1) + loop->has_after;
    loop->from = from;
    jinja_node *untested = jinja_alloc(s, sizeof(*untested));
    *untested = *loop->node;
    untested->c = NULL;
    loop->node = untested;
    return loop->length;
}

static jinja_value bound_method(jinja_state *s, const jinja_value *self, const jinja_string *name) {
    jinja_object *method = jinja_alloc(s, sizeof(*method));
    method->self = *self;
    method->name = name;
    return (jinja_value){.kind = JINJA_METHOD, .object = method};
}

jinja_value jinja_loop_attribute(jinja_state *s, const jinja_value *v, const jinja_string *name) {
    jinja_loop *loop = v->loop;
    if (jinja_string_is(name, "index0")) return jinja_int(loop->index0);
    if (jinja_string_is(name, "index")) return jinja_int(loop->index0 + 1);
    if (jinja_string_is(name, "first")) return jinja_bool(loop->index0 == 0);
    if (jinja_string_is(name, "last")) return jinja_bool(!peek(s, loop));
    if (jinja_string_is(name, "length")) return jinja_int((int64_t)loop_length(s, loop));
    if (jinja_string_is(name, "revindex"))
        return jinja_int((int64_t)loop_length(s, loop) - loop->index0);
    if (jinja_string_is(name, "revindex0"))
        return jinja_int((int64_t)loop_length(s, loop) - loop->index0 - 1);
    if (jinja_string_is(name, "depth")) return jinja_int(1);
    if (jinja_string_is(name, "depth0")) return jinja_int(0);
    if (jinja_string_is(name, "previtem"))
        return loop->index0 > 0 ? loop->before
                                : jinja_undefined_hint(s, "there is no previous item");
    if (jinja_string_is(name, "nextitem"))
        return peek(s, loop) ? loop->after : jinja_undefined_hint(s, "there is no next item");
    if (jinja_string_is(name, "cycle") || jinja_string_is(name, "changed"))
        return bound_method(s, v, name);
    return jinja_undefined(s, v, name);
}

jinja_value jinja_loop_call(jinja_state *s, jinja_loop *loop, const jinja_string *name,
                            const jinja_args *args) {
    if (args->named > 0) jinja_fail(s, MR_ERR_FORMAT, "loop methods take no named arguments");
    if (jinja_string_is(name, "cycle")) {
        if (args->count == 0) jinja_fail(s, MR_ERR_FORMAT, "no items for cycling given");
        return args->items[(size_t)loop->index0 % args->count];
    }
    jinja_value *items = jinja_alloc_array(s, args->count, sizeof(*items));
    if (args->count > 0) memcpy(items, args->items, args->count * sizeof(*items));
    const jinja_value now = jinja_tuple_of(s, items, args->count);
    if (loop->has_changed && jinja_equal(s, &loop->changed, &now)) return jinja_bool(false);
    loop->has_changed = true;
    loop->changed = now;
    return jinja_bool(true);
}

static bool has_length(const jinja_value *v) {
    return v->kind != JINJA_ITERATOR;
}

static jinja_loop *begin_loop(jinja_state *s, const jinja_node *node) {
    const jinja_value what = jinja_eval(s, node->b);
    s->line = node->line;
    jinja_loop *loop = jinja_alloc(s, sizeof(*loop));
    loop->node = node;
    loop->index0 = -1;
    loop->has_length = has_length(&what) && !node->c;
    if (what.kind == JINJA_ITERATOR) {
        jinja_begin(s, what.object);
        loop->from = what.object;
        return loop;
    }
    const jinja_sequence all = jinja_iterate(s, &what);
    loop->from = jinja_alloc(s, sizeof(*loop->from));
    loop->from->items = all.items;
    loop->from->count = all.count;
    return loop;
}

static outcome run_for(jinja_state *s, const jinja_node *node) {
    jinja_loop *loop = begin_loop(s, node);
    bool ended =
        false; /* some body came to its end: as in Python code, a jump out of it does not */
    if (node->c) enter_scope(s, &node->test_scope);
    while (advance(s, loop)) {
        *jinja_slot(s, node->loop) = (jinja_value){.kind = JINJA_LOOP, .loop = loop};
        jinja_assign(s, node->a, &loop->current);
        enter_scope(s, &node->scope);
        const outcome how = run_body(s, node->body, node->body_count);
        if (how == BREAKS) break;
        if (how == GOES_ON) ended = true;
    }
    if (ended || node->other_count == 0) return GOES_ON;
    enter_scope(s, &node->other_scope);
    return run_body(s, node->other, node->other_count);
}

void jinja_repr_loop(jinja_state *s, jinja_builder *b, const jinja_value *v) {
    char text[80];
    const size_t length = loop_length(s, v->loop);
    snprintf(text, sizeof(text), "<LoopContext %lld/%zu>", (long long)v->loop->index0 + 1, length);
    jinja_add(s, b, text, strlen(text), false);
}

/* --- macros ----------------------------------------------------------------------------------- */

/* Runs the body of a function, whose variables are in frame, into a string. */
static jinja_value run_function(jinja_state *s, const jinja_node *node) {
    jinja_builder text = {0}, *out = s->out;
    s->out = &text;
    run_body(s, node->body, node->body_count);
    s->out = out;
    return jinja_text(jinja_built(s, &text));
}

static bool take_named(const jinja_args *args, bool *taken, const char *data, size_t bytes,
                       jinja_value *out) {
    for (size_t i = 0; i < args->named; i++)
        if (!taken[i] && args->names[i]->bytes == bytes &&
            memcmp(args->names[i]->data, data, bytes) == 0) {
            taken[i] = true;
            *out = args->values[i];
            return true;
        }
    return false;
}

static void take_rest(jinja_state *s, const jinja_node *node, const jinja_args *args,
                      const bool *taken) {
    jinja_dict *rest = jinja_dict_new(s, 0);
    for (size_t i = 0; i < args->named; i++) {
        if (taken[i]) continue;
        if (!node->has_kwargs)
            jinja_fail(s, MR_ERR_FORMAT, "the macro takes no argument '%.*s'",
                       (int)(args->names[i]->bytes < 60 ? args->names[i]->bytes : 60),
                       args->names[i]->data);
        jinja_dict_set(s, rest, jinja_text(args->names[i]), args->values[i]);
    }
    if (node->has_kwargs)
        s->frame->slots[node->kwargs.slot] = (jinja_value){.kind = JINJA_DICT, .dict = rest};
    const size_t extra = args->count > node->count ? args->count - node->count : 0;
    if (extra > 0 && !node->has_varargs)
        jinja_fail(s, MR_ERR_FORMAT, "the macro takes not more than %u arguments", node->count);
    if (!node->has_varargs) return;
    jinja_value *items = jinja_alloc_array(s, extra, sizeof(*items));
    if (extra > 0) memcpy(items, args->items + node->count, extra * sizeof(*items));
    s->frame->slots[node->varargs.slot] = jinja_tuple_of(s, items, extra);
}

static void take_arguments(jinja_state *s, const jinja_node *node, const jinja_args *args) {
    bool *taken = jinja_alloc_array(s, args->named, sizeof(*taken));
    for (uint32_t i = 0; i < node->count; i++) {
        const jinja_string *name = node->items[i]->name;
        jinja_value *slot = &s->frame->slots[node->items[i]->place.slot];
        if (i < args->count)
            *slot = args->items[i];
        else
            take_named(args, taken, name->data, name->bytes, slot);
    }
    if (node->has_caller) {
        jinja_value *slot = &s->frame->slots[node->caller.slot];
        *slot = jinja_undefined_hint(s, "No caller defined");
        take_named(args, taken, "caller", 6, slot);
    }
    take_rest(s, node, args, taken);
}

static void take_defaults(jinja_state *s, const jinja_node *node) {
    const uint32_t plain = node->count - node->keyword_count;
    for (uint32_t i = 0; i < node->count; i++) {
        jinja_value *slot = &s->frame->slots[node->items[i]->place.slot];
        if (slot->kind != JINJA_MISSING) continue;
        *slot = i < plain ? jinja_undefined_hint(s, "a parameter of a macro was not provided")
                          : jinja_eval(s, node->keywords[i - plain]);
    }
}

jinja_value jinja_call_macro(jinja_state *s, const jinja_macro *macro, const jinja_args *args) {
    const jinja_node *node = macro->node;
    jinja_activation *before = s->frame;
    s->frame = activate(s, macro->outer, node->slots);
    take_arguments(s, node, args);
    enter_scope(s, &node->scope);
    take_defaults(s, node);
    const jinja_value text = run_function(s, node);
    s->frame = before;
    return text;
}

static jinja_value macro_of(jinja_state *s, const jinja_node *node) {
    jinja_macro *macro = jinja_alloc(s, sizeof(*macro));
    *macro = (jinja_macro){node, s->frame};
    return (jinja_value){.kind = JINJA_MACRO, .macro = macro};
}

void jinja_repr_macro(jinja_state *s, jinja_builder *b, const jinja_value *v) {
    const jinja_string *name = v->macro->node->name;
    const jinja_value spelled = name ? jinja_text(name) : jinja_none();
    jinja_add_text(s, b, "<Macro ");
    if (name)
        jinja_repr(s, b, &spelled);
    else
        jinja_add_text(s, b, "anonymous");
    jinja_add_text(s, b, ">");
}

/* --- statements ------------------------------------------------------------------------------- */

static outcome run_if(jinja_state *s, const jinja_node *node) {
    jinja_value test = jinja_eval(s, node->a);
    if (jinja_truth(s, &test)) return run_body(s, node->body, node->body_count);
    for (uint32_t i = 0; i < node->count; i++) {
        test = jinja_eval(s, node->items[i]->a);
        if (jinja_truth(s, &test))
            return run_body(s, node->items[i]->body, node->items[i]->body_count);
    }
    return run_body(s, node->other, node->other_count);
}

/* The text of a set block or filter block is put through its filters. */
static outcome run_block(jinja_state *s, const jinja_node *node) {
    jinja_builder text = {0}, *out = s->out;
    enter_scope(s, &node->scope);
    s->out = &text;
    const outcome how = run_body(s, node->body, node->body_count);
    s->out = out;
    if (how != GOES_ON) return how;
    s->block_text = jinja_built(s, &text);
    const jinja_value value = node->b ? jinja_eval(s, node->b) : jinja_text(s->block_text);
    s->line = node->line;
    if (node->kind == JINJA_N_SET_BLOCK)
        jinja_assign(s, node->a, &value);
    else
        jinja_add_string(s, s->out, jinja_want_string(s, &value, "what a filter block prints"));
    return GOES_ON;
}

static outcome run_with(jinja_state *s, const jinja_node *node) {
    jinja_value *values = jinja_alloc_array(s, node->count, sizeof(*values));
    enter_scope(s, &node->scope);
    for (uint32_t i = 0; i < node->count; i++) {
        values[i] = jinja_eval(s, node->keywords[i]);
        jinja_assign(s, node->items[i], &values[i]);
    }
    return run_body(s, node->body, node->body_count);
}

static void run_call_block(jinja_state *s, const jinja_node *node) {
    const jinja_value caller = macro_of(s, node);
    const jinja_value text = jinja_call_block(s, node->b, &caller);
    jinja_add_string(s, s->out, jinja_want_string(s, &text, "what a call block prints"));
}

static void run_generation(jinja_state *s, const jinja_node *node) {
    const jinja_macro body = {node, s->frame};
    const jinja_value text = jinja_call_macro(s, &body, &(jinja_args){0});
    jinja_add_string(s, s->out, text.s);
}

static void run_set(jinja_state *s, const jinja_node *node) {
    const jinja_value value = jinja_eval(s, node->b);
    s->line = node->line;
    jinja_assign(s, node->a, &value);
}

static outcome run_node(jinja_state *s, const jinja_node *node) {
    jinja_value value;
    switch (node->kind) {
    case JINJA_N_TEXT:
        jinja_add_string(s, s->out, node->constant.s);
        return GOES_ON;
    case JINJA_N_PRINT:
        value = jinja_eval(s, node->a);
        jinja_add_str(s, s->out, &value);
        return GOES_ON;
    case JINJA_N_SET:
        run_set(s, node);
        return GOES_ON;
    case JINJA_N_FOR:
        return run_for(s, node);
    case JINJA_N_IF:
        return run_if(s, node);
    case JINJA_N_MACRO:
        *jinja_slot(s, node->place) = macro_of(s, node);
        return GOES_ON;
    case JINJA_N_CALL_BLOCK:
        run_call_block(s, node);
        return GOES_ON;
    case JINJA_N_GENERATION:
        run_generation(s, node);
        return GOES_ON;
    case JINJA_N_WITH:
        return run_with(s, node);
    case JINJA_N_BREAK:
        return BREAKS;
    case JINJA_N_CONTINUE:
        return CONTINUES;
    default:
        return run_block(s, node);
    }
}

static outcome run_body(jinja_state *s, jinja_node *const *nodes, uint32_t count) {
    outcome how = GOES_ON;
    jinja_enter(s);
    for (uint32_t i = 0; i < count && how == GOES_ON; i++) {
        jinja_spend(s, 1);
        s->line = nodes[i]->line;
        how = run_node(s, nodes[i]);
    }
    jinja_leave(s);
    return how;
}

void jinja_run(jinja_state *s, const jinja_tree *tree) {
    s->frame = activate(s, NULL, tree->slots);
    enter_scope(s, &tree->scope);
    run_body(s, tree->body, tree->body_count);
}
