/* jinja_parse_expr.c - expressions, with the precedences of jinja2's parser. */
#include "common/model/jinja_ast.h"

#include <stdio.h>
#include <string.h>

static jinja_node *parse_unary(jinja_parser *p, bool with_filter);
static jinja_node *parse_condition(jinja_parser *p);

/* --- nodes and tokens ------------------------------------------------------------------------- */

void jinja_nodes_add(jinja_state *s, jinja_nodes *list, jinja_node *node) {
    if (list->count == list->room) {
        list->room = list->room ? 2 * list->room : 4;
        jinja_node **items = jinja_alloc_array(s, list->room, sizeof(*items));
        if (list->count > 0) memcpy(items, list->items, list->count * sizeof(*items));
        list->items = items;
    }
    list->items[list->count++] = node;
}

jinja_node *jinja_node_new(jinja_parser *p, jinja_node_kind kind) {
    jinja_node *node = jinja_alloc(p->s, sizeof(*node));
    node->kind = kind;
    node->line = p->at->line;
    return node;
}

static uint32_t deepest(jinja_node *const *items, uint32_t count, uint32_t depth) {
    for (uint32_t i = 0; i < count; i++)
        if (items[i] && items[i]->depth > depth) depth = items[i]->depth;
    return depth;
}

jinja_node *jinja_node_seal(jinja_parser *p, jinja_node *node) {
    jinja_node *const single[] = {node->a, node->b, node->c, node->d, node->star, node->star_star};
    uint32_t depth = deepest(single, sizeof(single) / sizeof(single[0]), 0);
    depth = deepest(node->items, node->count, depth);
    depth = deepest(node->keywords, node->keyword_count, depth);
    depth = deepest(node->body, node->body_count, depth);
    node->depth = deepest(node->other, node->other_count, depth) + 1;
    p->s->line = node->line;
    if (node->depth > 2 * MR_MAX_JINJA_NESTING)
        jinja_fail(p->s, MR_ERR_LIMIT, "it is nested more than %d levels deep",
                   2 * MR_MAX_JINJA_NESTING);
    return node;
}

void jinja_nest(jinja_parser *p) {
    p->s->line = p->at->line;
    if (p->nesting >= MR_MAX_JINJA_NESTING)
        jinja_fail(p->s, MR_ERR_LIMIT, "it is nested more than %d levels deep",
                   MR_MAX_JINJA_NESTING);
    p->nesting++;
}

void jinja_parse_fail(jinja_parser *p, const char *expected) {
    p->s->line = p->at->line;
    if (p->at->kind == JINJA_T_NAME)
        jinja_fail(p->s, MR_ERR_FORMAT, "expected %s, found '%.*s'", expected,
                   (int)(p->at->value.s->bytes < 40 ? p->at->value.s->bytes : 40),
                   p->at->value.s->data);
    jinja_fail(p->s, MR_ERR_FORMAT, "expected %s, found '%s'", expected, jinja_token_name(p->at));
}

bool jinja_at_name(const jinja_parser *p, const char *name) {
    return p->at->kind == JINJA_T_NAME && jinja_string_is(p->at->value.s, name);
}

static void next(jinja_parser *p) {
    if (p->at->kind != JINJA_T_END) p->at++;
}

bool jinja_skip(jinja_parser *p, jinja_token_kind kind) {
    if (p->at->kind != kind) return false;
    next(p);
    return true;
}

bool jinja_skip_name(jinja_parser *p, const char *name) {
    if (!jinja_at_name(p, name)) return false;
    next(p);
    return true;
}

const jinja_token *jinja_expect(jinja_parser *p, jinja_token_kind kind) {
    const jinja_token *token = p->at;
    const jinja_token wanted = {.kind = kind};
    if (token->kind != kind) {
        char text[40];
        snprintf(text, sizeof(text), "'%s'", jinja_token_name(&wanted));
        jinja_parse_fail(p, text);
    }
    next(p);
    return token;
}

/* --- primary ---------------------------------------------------------------------------------- */

static jinja_node *constant(jinja_parser *p, jinja_value value) {
    jinja_node *node = jinja_node_new(p, JINJA_N_CONST);
    node->constant = value;
    return jinja_node_seal(p, node);
}

static jinja_node *parse_name(jinja_parser *p, bool with_namespace) {
    const jinja_string *name = p->at->value.s;
    jinja_node *node = NULL;
    if (jinja_string_is(name, "true") || jinja_string_is(name, "True"))
        node = constant(p, jinja_bool(true));
    else if (jinja_string_is(name, "false") || jinja_string_is(name, "False"))
        node = constant(p, jinja_bool(false));
    else if (jinja_string_is(name, "none") || jinja_string_is(name, "None"))
        node = constant(p, jinja_none());
    if (node) {
        next(p);
        return node;
    }
    node = jinja_node_new(p, JINJA_N_NAME);
    node->name = name;
    next(p);
    if (with_namespace && jinja_skip(p, JINJA_T_DOT)) {
        node->kind = JINJA_N_NSREF;
        node->constant = jinja_expect(p, JINJA_T_NAME)->value;
    }
    return jinja_node_seal(p, node);
}

/* "a" "b" is one string. */
static jinja_node *parse_strings(jinja_parser *p) {
    jinja_node *node = jinja_node_new(p, JINJA_N_CONST);
    node->constant = p->at->value;
    next(p);
    for (; p->at->kind == JINJA_T_STRING; next(p))
        node->constant = jinja_text(jinja_concat(p->s, node->constant.s, p->at->value.s));
    return jinja_node_seal(p, node);
}

static jinja_node *parse_list(jinja_parser *p) {
    jinja_node *node = jinja_node_new(p, JINJA_N_LIST);
    jinja_nodes items = {0};
    next(p);
    while (p->at->kind != JINJA_T_RBRACKET) {
        if (items.count > 0) jinja_expect(p, JINJA_T_COMMA);
        if (p->at->kind == JINJA_T_RBRACKET) break;
        jinja_nodes_add(p->s, &items, jinja_parse_expression(p, true));
    }
    jinja_expect(p, JINJA_T_RBRACKET);
    node->items = items.items;
    node->count = items.count;
    return jinja_node_seal(p, node);
}

static jinja_node *parse_dict(jinja_parser *p) {
    jinja_node *node = jinja_node_new(p, JINJA_N_DICT);
    jinja_nodes items = {0};
    next(p);
    while (p->at->kind != JINJA_T_RBRACE) {
        if (items.count > 0) jinja_expect(p, JINJA_T_COMMA);
        if (p->at->kind == JINJA_T_RBRACE) break;
        jinja_nodes_add(p->s, &items, jinja_parse_expression(p, true));
        jinja_expect(p, JINJA_T_COLON);
        jinja_nodes_add(p->s, &items, jinja_parse_expression(p, true));
    }
    jinja_expect(p, JINJA_T_RBRACE);
    node->items = items.items;
    node->count = items.count;
    return jinja_node_seal(p, node);
}

static jinja_node *tuple_of(jinja_parser *p, uint32_t line, const jinja_nodes *items) {
    jinja_node *node = jinja_node_new(p, JINJA_N_TUPLE);
    node->line = line;
    node->items = items->items;
    node->count = items->count;
    return jinja_node_seal(p, node);
}

static bool at_tuple_end(const jinja_parser *p, const char *stop) {
    return p->at->kind == JINJA_T_VARIABLE_END || p->at->kind == JINJA_T_BLOCK_END ||
           p->at->kind == JINJA_T_RPAREN || (stop && jinja_at_name(p, stop));
}

static jinja_node *parse_primary(jinja_parser *p, bool with_namespace) {
    jinja_node *node;
    switch (p->at->kind) {
    case JINJA_T_NAME:
        return parse_name(p, with_namespace);
    case JINJA_T_STRING:
        return parse_strings(p);
    case JINJA_T_INTEGER:
    case JINJA_T_FLOAT:
        node = constant(p, p->at->value);
        next(p);
        return node;
    case JINJA_T_LPAREN:
        next(p);
        if (p->at->kind == JINJA_T_RPAREN)
            node = tuple_of(p, p->at->line, &(jinja_nodes){0});
        else
            node = jinja_parse_tuple(p, true, NULL);
        jinja_expect(p, JINJA_T_RPAREN);
        return node;
    case JINJA_T_LBRACKET:
        return parse_list(p);
    case JINJA_T_LBRACE:
        return parse_dict(p);
    default:
        jinja_parse_fail(p, "an expression");
    }
}

jinja_node *jinja_parse_tuple(jinja_parser *p, bool with_condition, const char *stop) {
    const uint32_t line = p->at->line;
    jinja_nodes items = {0};
    bool is_tuple = false;
    jinja_nest(p);
    while (true) {
        if (items.count > 0) jinja_expect(p, JINJA_T_COMMA);
        if (at_tuple_end(p, stop)) break;
        jinja_nodes_add(p->s, &items, jinja_parse_expression(p, with_condition));
        if (p->at->kind != JINJA_T_COMMA) break;
        is_tuple = true;
    }
    p->nesting--;
    if (is_tuple) return tuple_of(p, line, &items);
    if (items.count == 0) jinja_parse_fail(p, "an expression");
    return items.items[0];
}

/* --- targets ---------------------------------------------------------------------------------- */

static void check_target(jinja_parser *p, const jinja_node *node) {
    if (node->kind == JINJA_N_TUPLE) {
        for (uint32_t i = 0; i < node->count; i++) check_target(p, node->items[i]);
        return;
    }
    if (node->kind != JINJA_N_NAME && node->kind != JINJA_N_NSREF) {
        p->s->line = node->line;
        jinja_fail(p->s, MR_ERR_FORMAT, "only names can be assigned to");
    }
}

/* Names, also within parentheses, and attributes of namespaces. */
jinja_node *jinja_parse_target(jinja_parser *p, bool with_namespace, const char *stop) {
    const uint32_t line = p->at->line;
    jinja_nodes items = {0};
    bool is_tuple = false;
    while (true) {
        if (items.count > 0) jinja_expect(p, JINJA_T_COMMA);
        if (at_tuple_end(p, stop)) break;
        jinja_nodes_add(p->s, &items, parse_primary(p, with_namespace));
        if (p->at->kind != JINJA_T_COMMA) break;
        is_tuple = true;
    }
    if (items.count == 0) jinja_parse_fail(p, "a name");
    jinja_node *node = is_tuple ? tuple_of(p, line, &items) : items.items[0];
    check_target(p, node);
    return node;
}

/* --- postfix ---------------------------------------------------------------------------------- */

static jinja_node *parse_keyword(jinja_parser *p) {
    jinja_node *node = jinja_node_new(p, JINJA_N_KEYWORD);
    node->name = p->at->value.s;
    next(p);
    next(p);
    node->a = jinja_parse_expression(p, true);
    return jinja_node_seal(p, node);
}

static void ensure(jinja_parser *p, bool good) {
    if (!good) jinja_parse_fail(p, "another order of arguments");
}

static void refuse_repeated(jinja_parser *p, const jinja_nodes *keywords) {
    const jinja_string *last = keywords->items[keywords->count - 1]->name;
    for (uint32_t i = 0; i + 1 < keywords->count; i++)
        if (jinja_string_equal(keywords->items[i]->name, last))
            jinja_fail(p->s, MR_ERR_FORMAT, "a call gives the argument '%.*s' twice",
                       (int)(last->bytes < 60 ? last->bytes : 60), last->data);
}

/* (a, b, c=d, *e, **f), put into node. */
static void parse_arguments(jinja_parser *p, jinja_node *node) {
    jinja_nodes items = {0}, keywords = {0};
    bool wants_comma = false;
    jinja_expect(p, JINJA_T_LPAREN);
    while (p->at->kind != JINJA_T_RPAREN) {
        if (wants_comma) jinja_expect(p, JINJA_T_COMMA);
        if (p->at->kind == JINJA_T_RPAREN) break;
        wants_comma = true;
        if (jinja_skip(p, JINJA_T_MUL)) {
            ensure(p, !node->star && !node->star_star);
            node->star = jinja_parse_expression(p, true);
        } else if (jinja_skip(p, JINJA_T_POW)) {
            ensure(p, !node->star_star);
            node->star_star = jinja_parse_expression(p, true);
        } else if (p->at->kind == JINJA_T_NAME && p->at[1].kind == JINJA_T_ASSIGN) {
            ensure(p, !node->star_star);
            jinja_nodes_add(p->s, &keywords, parse_keyword(p));
            refuse_repeated(p, &keywords);
        } else {
            ensure(p, !node->star && !node->star_star && keywords.count == 0);
            jinja_nodes_add(p->s, &items, jinja_parse_expression(p, true));
        }
    }
    jinja_expect(p, JINJA_T_RPAREN);
    node->items = items.items;
    node->count = items.count;
    node->keywords = keywords.items;
    node->keyword_count = keywords.count;
}

static jinja_node *parse_call(jinja_parser *p, jinja_node *of) {
    jinja_node *node = jinja_node_new(p, JINJA_N_CALL);
    node->a = of;
    parse_arguments(p, node);
    return jinja_node_seal(p, node);
}

static bool at_slice_end(const jinja_parser *p) {
    return p->at->kind == JINJA_T_COLON || p->at->kind == JINJA_T_RBRACKET ||
           p->at->kind == JINJA_T_COMMA;
}

/* What stands in brackets: one expression, or up to three around colons. */
static void parse_subscribed(jinja_parser *p, jinja_node *node) {
    if (p->at->kind != JINJA_T_COLON) node->b = jinja_parse_expression(p, true);
    if (!jinja_skip(p, JINJA_T_COLON)) return;
    node->kind = JINJA_N_SLICE;
    if (!at_slice_end(p)) node->c = jinja_parse_expression(p, true);
    if (jinja_skip(p, JINJA_T_COLON) && !at_slice_end(p)) node->d = jinja_parse_expression(p, true);
}

static jinja_node *parse_subscript(jinja_parser *p, jinja_node *of) {
    jinja_node *node = jinja_node_new(p, JINJA_N_ITEM);
    node->a = of;
    if (jinja_skip(p, JINJA_T_DOT)) {
        if (p->at->kind == JINJA_T_NAME) {
            node->kind = JINJA_N_ATTR;
            node->name = p->at->value.s;
        } else if (p->at->kind == JINJA_T_INTEGER)
            node->b = constant(p, p->at->value);
        else
            jinja_parse_fail(p, "a name or number");
        next(p);
        return jinja_node_seal(p, node);
    }
    jinja_expect(p, JINJA_T_LBRACKET);
    if (p->at->kind == JINJA_T_RBRACKET) jinja_parse_fail(p, "an expression");
    parse_subscribed(p, node);
    if (p->at->kind == JINJA_T_COMMA) {
        if (node->kind == JINJA_N_SLICE)
            jinja_fail(p->s, MR_ERR_UNSUPPORTED, "several slices at once are not supported");
        jinja_nodes items = {0};
        jinja_nodes_add(p->s, &items, node->b);
        while (jinja_skip(p, JINJA_T_COMMA)) {
            if (p->at->kind == JINJA_T_RBRACKET) break;
            jinja_nodes_add(p->s, &items, jinja_parse_expression(p, true));
        }
        node->b = tuple_of(p, node->line, &items);
    }
    jinja_expect(p, JINJA_T_RBRACKET);
    return jinja_node_seal(p, node);
}

static jinja_node *parse_postfix(jinja_parser *p, jinja_node *node) {
    while (true) {
        if (p->at->kind == JINJA_T_DOT || p->at->kind == JINJA_T_LBRACKET)
            node = parse_subscript(p, node);
        else if (p->at->kind == JINJA_T_LPAREN)
            node = parse_call(p, node);
        else
            return node;
    }
}

/* --- filters and tests ------------------------------------------------------------------------ */

static const jinja_string *parse_dotted_name(jinja_parser *p) {
    const jinja_string *name = jinja_expect(p, JINJA_T_NAME)->value.s;
    while (jinja_skip(p, JINJA_T_DOT)) {
        const jinja_string *dot = jinja_string_of(p->s, ".", 1, false);
        name = jinja_concat(p->s, name, dot);
        name = jinja_concat(p->s, name, jinja_expect(p, JINJA_T_NAME)->value.s);
    }
    return name;
}

static _Noreturn void refuse(jinja_parser *p, const jinja_node *node, const char *what) {
    p->s->line = node->line;
    jinja_fail(p->s, MR_ERR_UNSUPPORTED, "the %s '%.*s' is not supported", what,
               (int)(node->name->bytes < 60 ? node->name->bytes : 60), node->name->data);
}

jinja_node *jinja_parse_filters(jinja_parser *p, jinja_node *of, bool starts_at_name) {
    while (starts_at_name || jinja_skip(p, JINJA_T_PIPE)) {
        jinja_node *node = jinja_node_new(p, JINJA_N_FILTER);
        node->a = of;
        node->name = parse_dotted_name(p);
        if (!jinja_filter_find(node->name, &node->op)) refuse(p, node, "filter");
        if (p->at->kind == JINJA_T_LPAREN) parse_arguments(p, node);
        of = jinja_node_seal(p, node);
        starts_at_name = false;
    }
    return of;
}

static bool starts_argument(const jinja_parser *p) {
    switch (p->at->kind) {
    case JINJA_T_STRING:
    case JINJA_T_INTEGER:
    case JINJA_T_FLOAT:
    case JINJA_T_LBRACKET:
    case JINJA_T_LBRACE:
        return true;
    case JINJA_T_NAME:
        return !jinja_at_name(p, "else") && !jinja_at_name(p, "or") && !jinja_at_name(p, "and");
    default:
        return false;
    }
}

static jinja_node *parse_test(jinja_parser *p, jinja_node *of) {
    jinja_node *node = jinja_node_new(p, JINJA_N_TEST), *negated = NULL;
    next(p);
    if (jinja_at_name(p, "not")) {
        negated = jinja_node_new(p, JINJA_N_NOT);
        next(p);
    }
    node->a = of;
    node->name = parse_dotted_name(p);
    if (!jinja_test_find(node->name, &node->op)) refuse(p, node, "test");
    if (p->at->kind == JINJA_T_LPAREN)
        parse_arguments(p, node);
    else if (starts_argument(p)) {
        jinja_nodes items = {0};
        if (jinja_at_name(p, "is")) jinja_parse_fail(p, "no second test");
        jinja_nest(p);
        jinja_nodes_add(p->s, &items, parse_postfix(p, parse_primary(p, false)));
        p->nesting--;
        node->items = items.items;
        node->count = items.count;
    }
    node = jinja_node_seal(p, node);
    if (!negated) return node;
    negated->a = node;
    return jinja_node_seal(p, negated);
}

static jinja_node *parse_filter_expr(jinja_parser *p, jinja_node *node) {
    while (true) {
        if (p->at->kind == JINJA_T_PIPE)
            node = jinja_parse_filters(p, node, false);
        else if (jinja_at_name(p, "is"))
            node = parse_test(p, node);
        else if (p->at->kind == JINJA_T_LPAREN)
            node = parse_call(p, node);
        else
            return node;
    }
}

/* --- operators -------------------------------------------------------------------------------- */

static jinja_node *parse_unary(jinja_parser *p, bool with_filter) {
    jinja_node *node;
    jinja_nest(p);
    if (p->at->kind == JINJA_T_SUB || p->at->kind == JINJA_T_ADD) {
        node = jinja_node_new(p, p->at->kind == JINJA_T_SUB ? JINJA_N_NEG : JINJA_N_POS);
        next(p);
        node->a = parse_unary(p, false);
        node = jinja_node_seal(p, node);
    } else
        node = parse_primary(p, false);
    node = parse_postfix(p, node);
    if (with_filter) node = parse_filter_expr(p, node);
    p->nesting--;
    return node;
}

static jinja_node *binary(jinja_parser *p, jinja_node_kind kind, jinja_node *a) {
    jinja_node *node = jinja_node_new(p, kind);
    node->op = p->at->kind;
    node->a = a;
    next(p);
    return node;
}

static jinja_node *parse_pow(jinja_parser *p) {
    jinja_node *left = parse_unary(p, true);
    while (p->at->kind == JINJA_T_POW) {
        left = binary(p, JINJA_N_BINARY, left);
        left->b = parse_unary(p, true);
        left = jinja_node_seal(p, left);
    }
    return left;
}

static jinja_node *parse_product(jinja_parser *p) {
    jinja_node *left = parse_pow(p);
    while (p->at->kind == JINJA_T_MUL || p->at->kind == JINJA_T_DIV ||
           p->at->kind == JINJA_T_FLOORDIV || p->at->kind == JINJA_T_MOD) {
        left = binary(p, JINJA_N_BINARY, left);
        left->b = parse_pow(p);
        left = jinja_node_seal(p, left);
    }
    return left;
}

static jinja_node *parse_concat(jinja_parser *p) {
    jinja_node *first = parse_product(p);
    if (p->at->kind != JINJA_T_TILDE) return first;
    jinja_node *node = jinja_node_new(p, JINJA_N_CONCAT);
    jinja_nodes items = {0};
    jinja_nodes_add(p->s, &items, first);
    while (jinja_skip(p, JINJA_T_TILDE)) jinja_nodes_add(p->s, &items, parse_product(p));
    node->items = items.items;
    node->count = items.count;
    return jinja_node_seal(p, node);
}

static jinja_node *parse_sum(jinja_parser *p) {
    jinja_node *left = parse_concat(p);
    while (p->at->kind == JINJA_T_ADD || p->at->kind == JINJA_T_SUB) {
        left = binary(p, JINJA_N_BINARY, left);
        left->b = parse_concat(p);
        left = jinja_node_seal(p, left);
    }
    return left;
}

/* The operator of a comparison; 0: there is none. */
static uint32_t comparison(jinja_parser *p) {
    const jinja_token *token = p->at;
    switch (token->kind) {
    case JINJA_T_EQ:
    case JINJA_T_NE:
    case JINJA_T_LT:
    case JINJA_T_LTEQ:
    case JINJA_T_GT:
    case JINJA_T_GTEQ:
        next(p);
        return token->kind;
    default:
        break;
    }
    if (jinja_skip_name(p, "in")) return JINJA_OP_IN;
    if (!jinja_at_name(p, "not") || token[1].kind != JINJA_T_NAME ||
        !jinja_string_is(token[1].value.s, "in"))
        return 0;
    next(p);
    next(p);
    return JINJA_OP_NOT_IN;
}

static jinja_node *parse_comparison(jinja_parser *p) {
    jinja_node *first = parse_sum(p);
    jinja_node *node = jinja_node_new(p, JINJA_N_COMPARE);
    jinja_nodes items = {0};
    uint32_t op;
    while ((op = comparison(p)) != 0) {
        jinja_node *operand = jinja_node_new(p, JINJA_N_OPERAND);
        operand->op = op;
        operand->a = parse_sum(p);
        jinja_nodes_add(p->s, &items, jinja_node_seal(p, operand));
    }
    if (items.count == 0) return first;
    node->a = first;
    node->items = items.items;
    node->count = items.count;
    return jinja_node_seal(p, node);
}

static jinja_node *parse_not(jinja_parser *p) {
    if (!jinja_at_name(p, "not")) return parse_comparison(p);
    jinja_node *node = jinja_node_new(p, JINJA_N_NOT);
    jinja_nest(p);
    next(p);
    node->a = parse_not(p);
    p->nesting--;
    return jinja_node_seal(p, node);
}

static jinja_node *parse_and(jinja_parser *p) {
    jinja_node *left = parse_not(p);
    while (jinja_at_name(p, "and")) {
        left = binary(p, JINJA_N_AND, left);
        left->b = parse_not(p);
        left = jinja_node_seal(p, left);
    }
    return left;
}

static jinja_node *parse_or(jinja_parser *p) {
    jinja_node *left = parse_and(p);
    while (jinja_at_name(p, "or")) {
        left = binary(p, JINJA_N_OR, left);
        left->b = parse_and(p);
        left = jinja_node_seal(p, left);
    }
    return left;
}

static jinja_node *parse_condition(jinja_parser *p) {
    jinja_node *value = parse_or(p);
    while (jinja_at_name(p, "if")) {
        jinja_node *node = jinja_node_new(p, JINJA_N_COND);
        next(p);
        node->a = value;
        node->b = parse_or(p);
        if (jinja_skip_name(p, "else")) {
            jinja_nest(p);
            node->c = parse_condition(p);
            p->nesting--;
        }
        value = jinja_node_seal(p, node);
    }
    return value;
}

jinja_node *jinja_parse_expression(jinja_parser *p, bool with_condition) {
    jinja_nest(p);
    jinja_node *node = with_condition ? parse_condition(p) : parse_or(p);
    p->nesting--;
    return node;
}
