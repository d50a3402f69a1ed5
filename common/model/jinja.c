/* jinja.c - see jinja.h: the doors of the interpreter, behind which errors leave by longjmp. */
#include "common/model/jinja.h"

#include "common/base/mem.h"
#include "common/model/jinja_eval.h"

#include <stdlib.h>
#include <string.h>

struct mr_jinja {
    jinja_state *state; /* owns the tree */
    jinja_tree tree;
};

/* The one place that errors come to. What changes meanwhile lies behind the pointers. */
static mr_status guard(jinja_state *s, void (*run)(jinja_state *s, void *with), void *with) {
    s->status = MR_OK;
    if (setjmp(s->escape) == 0) run(s, with);
    return s->status;
}

static jinja_state *open_state(mr_err *err) {
    jinja_state *s = mr_alloc(sizeof(*s));
    s->err = err;
    s->line = 1;
    s->steps_max = UINT64_MAX; /* a parse is bounded by its source */
    return s;
}

static void close_state(jinja_state *s) {
    if (!s) return;
    jinja_state_free(s);
    free(s);
}

/* --- parsing ---------------------------------------------------------------------------------- */

typedef struct {
    jinja_tree *tree;
    const char *source;
    size_t bytes;
} parse_task;

static void run_parse(jinja_state *s, void *with) {
    const parse_task *task = with;
    jinja_parse(s, task->tree, jinja_tokenize(s, task->source, task->bytes));
    jinja_find_variables(s, task->tree);
}

mr_status mr_jinja_parse(mr_jinja **out, const char *source, size_t bytes, mr_err *err) {
    *out = NULL;
    if (bytes > MR_MAX_JINJA_SOURCE_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "the chat template has %zu bytes; at most %d are taken",
                       bytes, MR_MAX_JINJA_SOURCE_BYTES);
    if (!mr_utf8_valid(source, bytes))
        return mr_fail(err, MR_ERR_FORMAT, "the chat template is not UTF-8");
    mr_jinja *jinja = mr_alloc(sizeof(*jinja));
    jinja->state = open_state(err);
    parse_task task = {&jinja->tree, source, bytes};
    const mr_status status = guard(jinja->state, run_parse, &task);
    jinja->state->err = NULL;
    if (status != MR_OK) {
        mr_jinja_close(jinja);
        return status;
    }
    *out = jinja;
    return MR_OK;
}

void mr_jinja_close(mr_jinja *jinja) {
    if (!jinja) return;
    close_state(jinja->state);
    free(jinja);
}

/* --- looking into the tree -------------------------------------------------------------------- */

typedef bool (*node_question)(const jinja_node *node, const void *with);

static bool any_node(const jinja_node *node, node_question ask, const void *with);

static bool any_of(jinja_node *const *nodes, uint32_t count, node_question ask, const void *with) {
    for (uint32_t i = 0; i < count; i++)
        if (any_node(nodes[i], ask, with)) return true;
    return false;
}

static bool any_node(const jinja_node *node, node_question ask, const void *with) {
    if (!node) return false;
    return ask(node, with) || any_node(node->a, ask, with) || any_node(node->b, ask, with) ||
           any_node(node->c, ask, with) || any_node(node->d, ask, with) ||
           any_node(node->star, ask, with) || any_node(node->star_star, ask, with) ||
           any_of(node->items, node->count, ask, with) ||
           any_of(node->keywords, node->keyword_count, ask, with) ||
           any_of(node->body, node->body_count, ask, with) ||
           any_of(node->other, node->other_count, ask, with);
}

static bool is_this_string(const jinja_node *node, const void *with) {
    return node->kind == JINJA_N_CONST && node->constant.kind == JINJA_STRING &&
           jinja_string_is(node->constant.s, with);
}

bool mr_jinja_has_string(const mr_jinja *jinja, const char *text) {
    return any_of(jinja->tree.body, jinja->tree.body_count, is_this_string, text);
}

static bool is_this_name(const jinja_node *node, const void *with) {
    return node->kind == JINJA_N_NAME && jinja_string_is(node->name, with);
}

bool mr_jinja_reads(const mr_jinja *jinja, const char *name) {
    return any_of(jinja->tree.body, jinja->tree.body_count, is_this_name, name);
}

/* The expression is that attribute or item, perhaps filtered or one of two. */
static bool is_of_name(const jinja_node *node, const char *name) {
    if (!node) return false;
    switch (node->kind) {
    case JINJA_N_FILTER:
        return is_of_name(node->a, name);
    case JINJA_N_COND:
        return is_of_name(node->a, name) || is_of_name(node->c, name);
    case JINJA_N_ATTR:
        return jinja_string_is(node->name, name);
    case JINJA_N_ITEM:
        return is_this_string(node->b, name);
    case JINJA_N_NAME:
        return jinja_string_is(node->name, name);
    default:
        return false;
    }
}

typedef struct {
    const mr_jinja *jinja;
    const char *name;
    const jinja_string *variable;
} loop_question;

static bool sets_variable(const jinja_node *node, const void *with) {
    const loop_question *q = with;
    return node->kind == JINJA_N_SET && node->a->kind == JINJA_N_NAME &&
           jinja_string_equal(node->a->name, q->variable) && is_of_name(node->b, q->name);
}

static bool loops_over(const jinja_node *node, const void *with) {
    loop_question q = *(const loop_question *)with;
    if (node->kind != JINJA_N_FOR) return false;
    if (is_of_name(node->b, q.name)) return true;
    if (node->b->kind != JINJA_N_NAME) return false;
    q.variable = node->b->name;
    return any_of(q.jinja->tree.body, q.jinja->tree.body_count, sets_variable, &q);
}

bool mr_jinja_loops_over(const mr_jinja *jinja, const char *name) {
    const loop_question q = {.jinja = jinja, .name = name};
    return any_of(jinja->tree.body, jinja->tree.body_count, loops_over, &q);
}

/* --- rendering -------------------------------------------------------------------------------- */

typedef struct {
    const mr_jinja *jinja;
    const mr_jinja_variable *variables;
    size_t count;
    jinja_builder out;
} render_task;

static void run_render(jinja_state *s, void *with) {
    render_task *task = with;
    jinja_dict *variables = jinja_dict_new(s, task->count);
    for (size_t i = 0; i < task->count; i++) {
        const mr_jinja_variable *v = &task->variables[i];
        if (!v->value) continue;
        const jinja_value value = v->origin == MR_JINJA_MESSAGES
                                      ? jinja_messages_from_json(s, v->value)
                                      : jinja_from_json(s, v->value, v->origin == MR_JINJA_USER);
        jinja_dict_set(s, variables, jinja_string_literal(s, v->name), value);
    }
    s->variables = variables;
    s->out = &task->out;
    jinja_run(s, &task->jinja->tree);
}

static void add_span(mr_jinja_output *out, size_t *room, size_t first, size_t bytes) {
    if (out->span_count == *room) {
        *room = *room ? 2 * *room : 16;
        out->spans = mr_realloc_array(out->spans, *room, sizeof(*out->spans));
    }
    out->spans[out->span_count++] = (mr_text_span){first, bytes};
}

static void find_spans(mr_jinja_output *out, const jinja_builder *text) {
    size_t room = 0, first = 0;
    const size_t bytes = text->store.used;
    if (bytes == 0 || text->origin == JINJA_OURS) return;
    if (text->origin == JINJA_USER) {
        add_span(out, &room, 0, bytes);
        return;
    }
    for (size_t at = 0; at < bytes; at++) {
        const bool user = text->store.marks[at];
        if (user && (at == 0 || !text->store.marks[at - 1])) first = at;
        if (user && (at + 1 == bytes || !text->store.marks[at + 1]))
            add_span(out, &room, first, at + 1 - first);
    }
}

mr_status mr_jinja_render(mr_jinja_output *out, const mr_jinja *jinja,
                          const mr_jinja_variable *variables, size_t count, int64_t now,
                          uint64_t steps, mr_err *err) {
    *out = (mr_jinja_output){0};
    jinja_state *s = open_state(err);
    s->now = now;
    s->steps_max = steps;
    render_task task = {.jinja = jinja, .variables = variables, .count = count};
    const mr_status status = guard(s, run_render, &task);
    if (status == MR_OK) {
        mr_text_add(&out->text, task.out.store.data ? task.out.store.data : "",
                    task.out.store.used);
        find_spans(out, &task.out);
    }
    close_state(s);
    return status;
}

void mr_jinja_output_free(mr_jinja_output *output) {
    mr_text_free(&output->text);
    free(output->spans);
    *output = (mr_jinja_output){0};
}
