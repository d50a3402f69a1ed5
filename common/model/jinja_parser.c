/* jinja_parser.c - statements. */
#include "common/model/jinja_ast.h"

#include <string.h>

static void parse_statements(jinja_parser *p, jinja_nodes *out, const char *const *ends);

static jinja_node *new_statement(jinja_parser *p, jinja_node_kind kind) {
    jinja_node *node = jinja_node_new(p, kind);
    p->at++; /* its name */
    return node;
}

static void put_body(jinja_node *node, const jinja_nodes *body) {
    node->body = body->items;
    node->body_count = body->count;
}

static void put_other(jinja_node *node, const jinja_nodes *other) {
    node->other = other->items;
    node->other_count = other->count;
}

/* From behind the name of a tag to its end tag, which is taken, too. */
static void parse_body(jinja_parser *p, jinja_node *node, const char *end) {
    const char *const ends[] = {end, NULL};
    jinja_nodes body = {0};
    parse_statements(p, &body, ends);
    p->at++;
    put_body(node, &body);
}

/* The body of what becomes a function: loops around it do not reach in. */
static void parse_function_body(jinja_parser *p, jinja_node *node, const char *end) {
    const uint32_t loops = p->loops;
    p->loops = 0;
    parse_body(p, node, end);
    p->loops = loops;
}

static jinja_node *parse_set(jinja_parser *p) {
    jinja_node *node = new_statement(p, JINJA_N_SET);
    node->a = jinja_parse_target(p, true, NULL);
    if (jinja_skip(p, JINJA_T_ASSIGN)) {
        node->b = jinja_parse_tuple(p, true, NULL);
        return jinja_node_seal(p, node);
    }
    node->kind = JINJA_N_SET_BLOCK;
    node->b = jinja_parse_filters(p, NULL, false);
    parse_body(p, node, "endset");
    return jinja_node_seal(p, node);
}

static void refuse_loop_target(jinja_parser *p, const jinja_node *target) {
    if (target->kind == JINJA_N_TUPLE)
        for (uint32_t i = 0; i < target->count; i++) refuse_loop_target(p, target->items[i]);
    if (target->kind != JINJA_N_NAME || !jinja_string_is(target->name, "loop")) return;
    p->s->line = target->line;
    jinja_fail(p->s, MR_ERR_FORMAT, "the variable 'loop' of a for loop cannot be assigned to");
}

static jinja_node *parse_for(jinja_parser *p) {
    static const char *const body_ends[] = {"endfor", "else", NULL};
    static const char *const other_ends[] = {"endfor", NULL};
    jinja_node *node = new_statement(p, JINJA_N_FOR);
    jinja_nodes body = {0}, other = {0};
    node->a = jinja_parse_target(p, false, "in");
    refuse_loop_target(p, node->a);
    if (!jinja_skip_name(p, "in")) jinja_parse_fail(p, "'in'");
    node->b = jinja_parse_tuple(p, false, "recursive");
    if (jinja_skip_name(p, "if")) node->c = jinja_parse_expression(p, true);
    if (jinja_at_name(p, "recursive")) {
        p->s->line = p->at->line;
        jinja_fail(p->s, MR_ERR_UNSUPPORTED, "a recursive for loop is not supported");
    }
    p->loops++;
    parse_statements(p, &body, body_ends);
    p->loops--;
    if (jinja_skip_name(p, "else")) parse_statements(p, &other, other_ends);
    p->at++;
    put_body(node, &body);
    put_other(node, &other);
    return jinja_node_seal(p, node);
}

static jinja_node *parse_if(jinja_parser *p) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const last[] = {"endif", NULL};
    jinja_node *first = NULL;
    jinja_nodes elifs = {0}, other = {0};
    do {
        jinja_node *node = new_statement(p, JINJA_N_IF);
        jinja_nodes body = {0};
        node->a = jinja_parse_tuple(p, false, NULL);
        parse_statements(p, &body, ends);
        put_body(node, &body);
        if (first)
            jinja_nodes_add(p->s, &elifs, jinja_node_seal(p, node));
        else
            first = node;
    } while (jinja_at_name(p, "elif"));
    if (jinja_skip_name(p, "else")) parse_statements(p, &other, last);
    p->at++;
    first->items = elifs.items;
    first->count = elifs.count;
    put_other(first, &other);
    return jinja_node_seal(p, first);
}

/* (a, b=1): parameters and their defaults, which belong to the last of them. */
static void parse_signature(jinja_parser *p, jinja_node *node) {
    jinja_nodes names = {0}, defaults = {0};
    jinja_expect(p, JINJA_T_LPAREN);
    while (p->at->kind != JINJA_T_RPAREN) {
        if (names.count > 0) jinja_expect(p, JINJA_T_COMMA);
        jinja_node *name = jinja_node_new(p, JINJA_N_NAME);
        name->name = jinja_expect(p, JINJA_T_NAME)->value.s;
        jinja_nodes_add(p->s, &names, jinja_node_seal(p, name));
        if (jinja_skip(p, JINJA_T_ASSIGN))
            jinja_nodes_add(p->s, &defaults, jinja_parse_expression(p, true));
        else if (defaults.count > 0)
            jinja_fail(p->s, MR_ERR_FORMAT, "a parameter without default follows one with");
    }
    jinja_expect(p, JINJA_T_RPAREN);
    node->items = names.items;
    node->count = names.count;
    node->keywords = defaults.items;
    node->keyword_count = defaults.count;
    for (uint32_t i = 0; i < names.count; i++)
        for (uint32_t j = 0; j < i; j++)
            if (jinja_string_equal(names.items[i]->name, names.items[j]->name))
                jinja_fail(p->s, MR_ERR_FORMAT, "a macro has two parameters of one name");
}

static jinja_node *parse_macro(jinja_parser *p) {
    jinja_node *node = new_statement(p, JINJA_N_MACRO);
    node->name = jinja_expect(p, JINJA_T_NAME)->value.s;
    parse_signature(p, node);
    parse_function_body(p, node, "endmacro");
    return jinja_node_seal(p, node);
}

static jinja_node *parse_call_block(jinja_parser *p) {
    jinja_node *node = new_statement(p, JINJA_N_CALL_BLOCK);
    if (p->at->kind == JINJA_T_LPAREN) parse_signature(p, node);
    node->b = jinja_parse_expression(p, true);
    if (node->b->kind != JINJA_N_CALL) jinja_parse_fail(p, "a call");
    parse_function_body(p, node, "endcall");
    return jinja_node_seal(p, node);
}

static jinja_node *parse_filter_block(jinja_parser *p) {
    jinja_node *node = new_statement(p, JINJA_N_FILTER_BLOCK);
    node->b = jinja_parse_filters(p, NULL, true);
    parse_body(p, node, "endfilter");
    return jinja_node_seal(p, node);
}

static jinja_node *parse_with(jinja_parser *p) {
    jinja_node *node = new_statement(p, JINJA_N_WITH);
    jinja_nodes targets = {0}, values = {0};
    while (p->at->kind != JINJA_T_BLOCK_END) {
        if (targets.count > 0) jinja_expect(p, JINJA_T_COMMA);
        jinja_nodes_add(p->s, &targets, jinja_parse_target(p, false, NULL));
        jinja_expect(p, JINJA_T_ASSIGN);
        jinja_nodes_add(p->s, &values, jinja_parse_expression(p, true));
    }
    node->items = targets.items;
    node->count = targets.count;
    node->keywords = values.items;
    node->keyword_count = values.count;
    parse_body(p, node, "endwith");
    return jinja_node_seal(p, node);
}

static jinja_node *parse_generation(jinja_parser *p) {
    jinja_node *node = new_statement(p, JINJA_N_GENERATION);
    parse_function_body(p, node, "endgeneration");
    return jinja_node_seal(p, node);
}

static jinja_node *parse_jump(jinja_parser *p) {
    const bool is_break = jinja_at_name(p, "break");
    jinja_node *node = new_statement(p, is_break ? JINJA_N_BREAK : JINJA_N_CONTINUE);
    p->s->line = node->line;
    if (p->loops == 0)
        jinja_fail(p->s, MR_ERR_FORMAT, "'%s' stands outside of a loop",
                   is_break ? "break" : "continue");
    return jinja_node_seal(p, node);
}

/* {% print a, b %} */
static void parse_print(jinja_parser *p, jinja_nodes *out) {
    bool wants_comma = false;
    for (p->at++; p->at->kind != JINJA_T_BLOCK_END; wants_comma = true) {
        if (wants_comma) jinja_expect(p, JINJA_T_COMMA);
        jinja_node *node = jinja_node_new(p, JINJA_N_PRINT);
        node->a = jinja_parse_expression(p, true);
        jinja_nodes_add(p->s, out, jinja_node_seal(p, node));
    }
}

static const struct {
    const char *name;
    jinja_node *(*parse)(jinja_parser *p);
} tags[] = {
    {"set", parse_set},         {"for", parse_for},
    {"if", parse_if},           {"macro", parse_macro},
    {"call", parse_call_block}, {"filter", parse_filter_block},
    {"with", parse_with},       {"generation", parse_generation},
    {"break", parse_jump},      {"continue", parse_jump},
};

static void parse_statement(jinja_parser *p, jinja_nodes *out) {
    const jinja_token *name = p->at;
    if (name->kind != JINJA_T_NAME) jinja_parse_fail(p, "the name of a tag");
    jinja_nest(p);
    if (jinja_at_name(p, "print")) {
        parse_print(p, out);
        p->nesting--;
        return;
    }
    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++)
        if (jinja_string_is(name->value.s, tags[i].name)) {
            jinja_nodes_add(p->s, out, tags[i].parse(p));
            p->nesting--;
            return;
        }
    jinja_fail(p->s, MR_ERR_UNSUPPORTED, "the tag '%.*s' is not supported here",
               (int)(name->value.s->bytes < 60 ? name->value.s->bytes : 60), name->value.s->data);
}

static bool at_end_tag(const jinja_parser *p, const char *const *ends) {
    for (; ends && *ends; ends++)
        if (jinja_at_name(p, *ends)) return true;
    return false;
}

/* Text, prints and tags up to one of the end tags, of which the name is next. */
static void subparse(jinja_parser *p, jinja_nodes *out, const char *const *ends) {
    while (p->at->kind != JINJA_T_END) {
        jinja_node *node;
        switch (p->at->kind) {
        case JINJA_T_DATA:
            node = jinja_node_new(p, JINJA_N_TEXT);
            node->constant = p->at->value;
            p->at++;
            jinja_nodes_add(p->s, out, jinja_node_seal(p, node));
            break;
        case JINJA_T_VARIABLE_BEGIN:
            node = jinja_node_new(p, JINJA_N_PRINT);
            p->at++;
            node->a = jinja_parse_tuple(p, true, NULL);
            jinja_expect(p, JINJA_T_VARIABLE_END);
            jinja_nodes_add(p->s, out, jinja_node_seal(p, node));
            break;
        default:
            jinja_expect(p, JINJA_T_BLOCK_BEGIN);
            if (at_end_tag(p, ends)) return;
            parse_statement(p, out);
            jinja_expect(p, JINJA_T_BLOCK_END);
        }
    }
    if (!ends) return;
    p->s->line = p->at->line;
    jinja_fail(p->s, MR_ERR_FORMAT, "the template ends where '%s' is missing", *ends);
}

static void parse_statements(jinja_parser *p, jinja_nodes *out, const char *const *ends) {
    jinja_skip(p, JINJA_T_COLON); /* as in Python */
    jinja_expect(p, JINJA_T_BLOCK_END);
    subparse(p, out, ends);
}

void jinja_parse(jinja_state *s, jinja_tree *out, jinja_tokens tokens) {
    jinja_parser p = {.s = s, .at = tokens.items};
    jinja_nodes body = {0};
    subparse(&p, &body, NULL);
    *out = (jinja_tree){.body = body.items, .body_count = body.count};
}
