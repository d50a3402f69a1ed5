/* jinja_ast.h - a parsed template: a tree of nodes, and where each of its variables lives.
 *
 * Variables are found when the template is parsed, as jinja2 does: a scope is what it calls a
 * frame, a function is what becomes one Python function (the template, a macro, the body of a call
 * or generation block). All variables of a function live in one activation, in places. */
#ifndef MR_MODEL_JINJA_AST_H
#define MR_MODEL_JINJA_AST_H
#include "common/model/jinja_lexer.h"

typedef enum {
    /* expressions */
    JINJA_N_CONST,   /* constant */
    JINJA_N_NAME,    /* place; name */
    JINJA_N_LIST,    /* items */
    JINJA_N_TUPLE,   /* items; as a target, too */
    JINJA_N_DICT,    /* items: key, value, key, value */
    JINJA_N_BINARY,  /* a op b; op: a token kind */
    JINJA_N_NEG,     /* a */
    JINJA_N_POS,     /* a */
    JINJA_N_NOT,     /* a */
    JINJA_N_AND,     /* a, b */
    JINJA_N_OR,      /* a, b */
    JINJA_N_CONCAT,  /* items */
    JINJA_N_COMPARE, /* a, items: operands (a, op) */
    JINJA_N_OPERAND,
    JINJA_N_COND,    /* a if b else c; c may be NULL */
    JINJA_N_ATTR,    /* a.name */
    JINJA_N_ITEM,    /* a[b] */
    JINJA_N_SLICE,   /* a[b:c:d], each of the three may be NULL */
    JINJA_N_CALL,    /* a(items, keywords, *star, **star_star) */
    JINJA_N_FILTER,  /* a | name(...); a is NULL: the text of the block around it. op: which */
    JINJA_N_TEST,    /* a is name(...). op: which */
    JINJA_N_KEYWORD, /* name = a */
    JINJA_N_NSREF,   /* place of name, attribute: constant; a target only */
    /* statements */
    JINJA_N_TEXT,         /* constant */
    JINJA_N_PRINT,        /* a */
    JINJA_N_SET,          /* a: target, b: value */
    JINJA_N_SET_BLOCK,    /* a: target, b: filter or NULL, body, scope */
    JINJA_N_FOR,          /* a: target, b: what, c: test or NULL (d: its target) */
    JINJA_N_IF,           /* a: test, body, items: elifs (IF), other */
    JINJA_N_MACRO,        /* name, items: parameters (NAME), keywords: defaults, body */
    JINJA_N_CALL_BLOCK,   /* as macro, b: the call */
    JINJA_N_GENERATION,   /* body, scope: a function of its own */
    JINJA_N_FILTER_BLOCK, /* b: filter, body, scope */
    JINJA_N_WITH,         /* items: targets, keywords: values, body, scope */
    JINJA_N_BREAK,
    JINJA_N_CONTINUE,
} jinja_node_kind;

/* Operands of a comparison that no token stands for. */
enum { JINJA_OP_IN = 1000, JINJA_OP_NOT_IN };

typedef struct {
    uint32_t up;   /* how many functions outwards */
    uint32_t slot; /* in its activation */
} jinja_place;

/* What a scope's variables are when it is entered. */
typedef struct {
    enum { JINJA_LOAD_UNDEFINED, JINJA_LOAD_ALIAS, JINJA_LOAD_RESOLVE, JINJA_LOAD_PARAM } kind;
    uint32_t slot;
    jinja_place outer;        /* alias */
    const jinja_string *name; /* resolve: a variable of the render, or a global function */
} jinja_load;

typedef struct {
    jinja_load *loads;
    uint32_t count, room;
} jinja_scope;

typedef struct jinja_node {
    jinja_node_kind kind;
    uint32_t op;
    uint32_t line;
    uint32_t depth; /* of the tree below */
    jinja_value constant;
    const jinja_string *name;
    jinja_place place;
    struct jinja_node *a, *b, *c, *d;
    struct jinja_node **items, **keywords;
    uint32_t count, keyword_count;
    struct jinja_node *star, *star_star;
    struct jinja_node **body, **other;
    uint32_t body_count, other_count;
    /* for: its body, its else, its test; others: scope only */
    jinja_scope scope, other_scope, test_scope;
    jinja_place loop; /* for: the variable loop. macro: caller, kwargs, varargs */
    jinja_place caller, kwargs, varargs;
    bool has_caller, has_kwargs, has_varargs;
    uint32_t slots; /* macro, call block, generation: places of its activation */
} jinja_node;

typedef struct {
    jinja_node **items;
    uint32_t count, room;
} jinja_nodes; /* starts as {0} */
void jinja_nodes_add(jinja_state *s, jinja_nodes *list, jinja_node *node);

typedef struct {
    jinja_node **body;
    uint32_t body_count;
    jinja_scope scope;
    uint32_t slots;
} jinja_tree;

typedef struct {
    jinja_state *s;
    const jinja_token *at;
    uint32_t nesting;
    uint32_t loops; /* for loops around, within the same function */
} jinja_parser;

/* jinja_parse_expr.c */
jinja_node *jinja_node_new(jinja_parser *p, jinja_node_kind kind);
/* Once all below it is there; what is too deep is refused. */
jinja_node *jinja_node_seal(jinja_parser *p, jinja_node *node);
void jinja_nest(jinja_parser *p); /* one level; undone by p->nesting-- */
_Noreturn void jinja_parse_fail(jinja_parser *p, const char *expected);
bool jinja_at_name(const jinja_parser *p, const char *name);
bool jinja_skip(jinja_parser *p, jinja_token_kind kind);
bool jinja_skip_name(jinja_parser *p, const char *name);
const jinja_token *jinja_expect(jinja_parser *p, jinja_token_kind kind);
jinja_node *jinja_parse_expression(jinja_parser *p, bool with_condition);
/* stop: a name that ends it ("in"), or NULL. */
jinja_node *jinja_parse_tuple(jinja_parser *p, bool with_condition, const char *stop);
jinja_node *jinja_parse_target(jinja_parser *p, bool with_namespace, const char *stop);
jinja_node *jinja_parse_filters(jinja_parser *p, jinja_node *of, bool starts_at_name);

/* jinja_parser.c */
void jinja_parse(jinja_state *s, jinja_tree *out, jinja_tokens tokens);
/* jinja_scope.c */
void jinja_find_variables(jinja_state *s, jinja_tree *tree);

/* Places in the tables of filters and tests; false: refused. jinja_filter.c, jinja_test.c */
bool jinja_filter_find(const jinja_string *name, uint32_t *out);
bool jinja_test_find(const jinja_string *name, uint32_t *out);

#endif
