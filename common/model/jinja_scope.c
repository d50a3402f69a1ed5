/* jinja_scope.c - finds, for every name in a template, the variable it means.
 *
 * The rules are jinja2's (its idtracking): a scope has a variable of its own for each name it
 * assigns, which begins as a copy of the outer one where there is one; a name it only reads is the
 * outer one, else a variable of the render. What if-branches assign may also keep the value from
 * before. As there, a first walk collects what a scope assigns and reads without going into inner
 * scopes, and a second one goes into these, with all names of the outer ones known. */
#include "common/model/jinja_ast.h"

#include <string.h>

typedef struct function {
    struct function *outer;
    uint32_t slots;
} function;

typedef struct name_entry {
    const jinja_string *name;
    uint32_t slot;
    uint32_t load; /* place in the scope's loads */
    bool stored;
    struct name_entry *next;
} name_entry;

enum { BUCKETS = 16 };

typedef struct frame {
    jinja_state *s;
    struct frame *outer;
    function *in;
    jinja_scope *scope;
    name_entry *names[BUCKETS];
    uint32_t branches; /* if-branches around, within this scope */
} frame;

/* --- names of one scope ----------------------------------------------------------------------- */

static uint32_t bucket(const jinja_string *name) {
    const jinja_value key = jinja_text(name);
    return (uint32_t)jinja_hash(NULL, &key) % BUCKETS;
}

static name_entry *find_own(const frame *f, const jinja_string *name) {
    name_entry *entry = f->names[bucket(name)];
    while (entry && !jinja_string_equal(entry->name, name)) entry = entry->next;
    return entry;
}

static bool find(const frame *f, const jinja_string *name, jinja_place *out) {
    uint32_t up = 0;
    for (const frame *at = f; at; at = at->outer) {
        const name_entry *entry = find_own(at, name);
        if (entry) {
            *out = (jinja_place){up, entry->slot};
            return true;
        }
        up += at->outer && at->outer->in != at->in;
    }
    return false;
}

static name_entry *define(frame *f, const jinja_string *name) {
    jinja_scope *scope = f->scope;
    name_entry *entry = jinja_alloc(f->s, sizeof(*entry));
    if (scope->count == scope->room) {
        scope->room = scope->room ? 2 * scope->room : 8;
        jinja_load *loads = jinja_alloc_array(f->s, scope->room, sizeof(*loads));
        if (scope->count > 0) memcpy(loads, scope->loads, scope->count * sizeof(*loads));
        scope->loads = loads;
    }
    const uint32_t at = bucket(name);
    *entry = (name_entry){
        .name = name, .slot = f->in->slots++, .load = scope->count, .next = f->names[at]};
    f->names[at] = entry;
    scope->loads[scope->count++] = (jinja_load){.slot = entry->slot, .name = name};
    return entry;
}

/* What the variable is when the scope is entered: the outer one, or otherwise. */
static void begin_as_outer(frame *f, const name_entry *entry, int otherwise) {
    jinja_load *load = &f->scope->loads[entry->load];
    jinja_place outer;
    if (f->outer && find(f->outer, entry->name, &outer)) {
        load->kind = JINJA_LOAD_ALIAS;
        load->outer = outer;
        load->outer.up += f->outer->in != f->in;
    } else if (otherwise == JINJA_LOAD_RESOLVE)
        load->kind = JINJA_LOAD_RESOLVE;
    else
        load->kind = JINJA_LOAD_UNDEFINED;
}

static void store(frame *f, const jinja_string *name) {
    name_entry *entry = find_own(f, name);
    const bool is_new = !entry;
    if (is_new) entry = define(f, name);
    if (!entry->stored && f->branches > 0)
        begin_as_outer(f, entry, JINJA_LOAD_RESOLVE);
    else if (is_new)
        begin_as_outer(f, entry, JINJA_LOAD_UNDEFINED);
    entry->stored = true;
}

static void load(frame *f, const jinja_string *name) {
    jinja_place place;
    if (find(f, name, &place)) return;
    const name_entry *entry = define(f, name);
    f->scope->loads[entry->load].kind = JINJA_LOAD_RESOLVE;
}

static jinja_place parameter(frame *f, const jinja_string *name) {
    name_entry *entry = find_own(f, name);
    if (!entry) entry = define(f, name);
    f->scope->loads[entry->load].kind = JINJA_LOAD_PARAM;
    entry->stored = true;
    return (jinja_place){0, entry->slot};
}

/* --- first walk ------------------------------------------------------------------------------- */

static void collect(frame *f, jinja_node *node);

static void collect_all(frame *f, jinja_node *const *nodes, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) collect(f, nodes[i]);
}

typedef enum { STORE, PARAMETER } target_kind;

static void collect_target(frame *f, jinja_node *target, target_kind kind) {
    if (target->kind == JINJA_N_TUPLE) {
        for (uint32_t i = 0; i < target->count; i++) collect_target(f, target->items[i], kind);
    } else if (target->kind == JINJA_N_NSREF)
        load(f, target->name);
    else if (kind == STORE)
        store(f, target->name);
    else
        parameter(f, target->name);
}

static void collect_branches(frame *f, jinja_node *node) {
    collect(f, node->a);
    f->branches++;
    collect_all(f, node->body, node->body_count);
    collect_all(f, node->items, node->count);
    collect_all(f, node->other, node->other_count);
    f->branches--;
}

/* An expression, or a statement without what is inside its own scope. */
static void collect(frame *f, jinja_node *node) {
    if (!node) return;
    switch (node->kind) {
    case JINJA_N_NAME:
        load(f, node->name);
        return;
    case JINJA_N_SET:
        collect(f, node->b);
        collect_target(f, node->a, STORE);
        return;
    case JINJA_N_SET_BLOCK:
        collect_target(f, node->a, STORE);
        return;
    case JINJA_N_FOR:
        collect(f, node->b);
        return;
    case JINJA_N_IF:
        collect_branches(f, node);
        return;
    case JINJA_N_MACRO:
        store(f, node->name);
        return;
    case JINJA_N_CALL_BLOCK:
    case JINJA_N_FILTER_BLOCK:
        collect(f, node->b);
        return;
    case JINJA_N_WITH:
        collect_all(f, node->keywords, node->keyword_count);
        return;
    case JINJA_N_GENERATION:
        return;
    default:
        collect(f, node->a);
        collect(f, node->b);
        collect(f, node->c);
        collect(f, node->d);
        collect_all(f, node->items, node->count);
        collect_all(f, node->keywords, node->keyword_count);
        collect(f, node->star);
        collect(f, node->star_star);
    }
}

/* --- second walk ------------------------------------------------------------------------------ */

static void resolve(frame *f, jinja_node *node);

static void resolve_all(frame *f, jinja_node *const *nodes, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) resolve(f, nodes[i]);
}

static frame inner(frame *f, jinja_scope *scope, function *in) {
    return (frame){.s = f->s, .outer = f, .in = in ? in : f->in, .scope = scope};
}

static const jinja_string *word(frame *f, const char *text) {
    return jinja_string_of(f->s, text, strlen(text), false);
}

/* The same names, for places of their own. */
static jinja_node *copy_target(frame *f, const jinja_node *target) {
    jinja_node *copy = jinja_alloc(f->s, sizeof(*copy));
    *copy = *target;
    if (target->kind != JINJA_N_TUPLE) return copy;
    copy->items = jinja_alloc_array(f->s, target->count, sizeof(*copy->items));
    for (uint32_t i = 0; i < target->count; i++) copy->items[i] = copy_target(f, target->items[i]);
    return copy;
}

static void resolve_for(frame *f, jinja_node *node) {
    frame body = inner(f, &node->scope, NULL), other = inner(f, &node->other_scope, NULL);
    frame test = inner(f, &node->test_scope, NULL);
    resolve(f, node->b);
    node->loop = parameter(&body, word(f, "loop"));
    collect_target(&body, node->a, PARAMETER);
    collect_all(&body, node->body, node->body_count);
    collect_all(&other, node->other, node->other_count);
    if (node->c) {
        node->d = copy_target(f, node->a);
        collect_target(&test, node->d, PARAMETER);
        collect(&test, node->c);
        resolve(&test, node->d);
        resolve(&test, node->c);
    }
    resolve(&body, node->a);
    resolve_all(&body, node->body, node->body_count);
    resolve_all(&other, node->other, node->other_count);
}

/* The body reads this name of its own accord. */
static bool reads(const jinja_node *node, const char *name);

static bool any_reads(jinja_node *const *nodes, uint32_t count, const char *name) {
    for (uint32_t i = 0; i < count; i++)
        if (reads(nodes[i], name)) return true;
    return false;
}

static bool reads(const jinja_node *node, const char *name) {
    if (!node) return false;
    if (node->kind == JINJA_N_NAME) return jinja_string_is(node->name, name);
    return reads(node->a, name) || reads(node->b, name) || reads(node->c, name) ||
           reads(node->d, name) || reads(node->star, name) || reads(node->star_star, name) ||
           any_reads(node->items, node->count, name) ||
           any_reads(node->keywords, node->keyword_count, name) ||
           any_reads(node->body, node->body_count, name) ||
           any_reads(node->other, node->other_count, name);
}

static bool has_parameter(const jinja_node *node, const char *name) {
    for (uint32_t i = 0; i < node->count; i++)
        if (jinja_string_is(node->items[i]->name, name)) return true;
    return false;
}

static void special(frame *f, jinja_node *node, const char *name, bool *has, jinja_place *place) {
    *has = !has_parameter(node, name) && any_reads(node->body, node->body_count, name);
    if (*has) *place = parameter(f, word(f, name));
}

static void resolve_function(frame *f, jinja_node *node) {
    function in = {.outer = f->in};
    frame body = inner(f, &node->scope, &in);
    if (node->kind == JINJA_N_CALL_BLOCK) resolve(f, node->b);
    if (node->kind != JINJA_N_GENERATION) {
        for (uint32_t i = 0; i < node->count; i++)
            node->items[i]->place = parameter(&body, node->items[i]->name);
        special(&body, node, "caller", &node->has_caller, &node->caller);
        special(&body, node, "kwargs", &node->has_kwargs, &node->kwargs);
        special(&body, node, "varargs", &node->has_varargs, &node->varargs);
    }
    collect_all(&body, node->keywords, node->keyword_count);
    collect_all(&body, node->body, node->body_count);
    resolve_all(&body, node->keywords, node->keyword_count);
    resolve_all(&body, node->body, node->body_count);
    node->slots = in.slots;
}

static void resolve_block(frame *f, jinja_node *node) {
    frame body = inner(f, &node->scope, NULL);
    if (node->kind == JINJA_N_SET_BLOCK) {
        resolve(f, node->a);
    } else if (node->kind == JINJA_N_WITH) {
        resolve_all(f, node->keywords, node->keyword_count);
        for (uint32_t i = 0; i < node->count; i++) collect_target(&body, node->items[i], PARAMETER);
    }
    collect_all(&body, node->body, node->body_count);
    if (node->kind == JINJA_N_FILTER_BLOCK || node->kind == JINJA_N_SET_BLOCK)
        collect(&body, node->b);
    resolve_all(&body, node->items, node->count);
    resolve(&body, node->b);
    resolve_all(&body, node->body, node->body_count);
}

static void resolve(frame *f, jinja_node *node) {
    if (!node) return;
    switch (node->kind) {
    case JINJA_N_NAME:
    case JINJA_N_NSREF:
        if (!find(f, node->name, &node->place)) { /* a read that the first walk did not see */
            load(f, node->name);
            find(f, node->name, &node->place);
        }
        return;
    case JINJA_N_FOR:
        resolve_for(f, node);
        return;
    case JINJA_N_MACRO:
        find(f, node->name, &node->place);
        resolve_function(f, node);
        return;
    case JINJA_N_CALL_BLOCK:
    case JINJA_N_GENERATION:
        resolve_function(f, node);
        return;
    case JINJA_N_SET_BLOCK:
    case JINJA_N_FILTER_BLOCK:
    case JINJA_N_WITH:
        resolve_block(f, node);
        return;
    default:
        resolve(f, node->a);
        resolve(f, node->b);
        resolve(f, node->c);
        resolve(f, node->d);
        resolve_all(f, node->items, node->count);
        resolve_all(f, node->keywords, node->keyword_count);
        resolve(f, node->star);
        resolve(f, node->star_star);
        resolve_all(f, node->body, node->body_count);
        resolve_all(f, node->other, node->other_count);
    }
}

void jinja_find_variables(jinja_state *s, jinja_tree *tree) {
    function root = {0};
    frame f = {.s = s, .in = &root, .scope = &tree->scope};
    collect_all(&f, tree->body, tree->body_count);
    resolve_all(&f, tree->body, tree->body_count);
    tree->slots = root.slots;
}
