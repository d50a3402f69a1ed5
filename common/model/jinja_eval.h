/* jinja_eval.h - the walk over a parsed template, and what it calls: operators, attributes,
 * methods, filters, tests and functions. Errors leave through the state (jinja_value.h). */
#ifndef MR_MODEL_JINJA_EVAL_H
#define MR_MODEL_JINJA_EVAL_H
#include "common/model/jinja_ast.h"

/* The variables of a function that runs, or ran and is remembered by a macro. */
typedef struct jinja_activation {
    struct jinja_activation *outer;
    jinja_value *slots;
} jinja_activation;

typedef struct jinja_macro {
    const jinja_node *node; /* macro or call block */
    jinja_activation *outer;
} jinja_macro;

typedef struct jinja_loop {
    const jinja_node *node;
    jinja_object *from; /* what is left: an iterator */
    bool has_length;    /* from has one in Python: nothing needs to be tested to know it */
    size_t length;      /* once known */
    bool knows_length, has_after, has_changed;
    int64_t index0;
    jinja_value after, current, before, changed;
} jinja_loop;

typedef struct {
    const jinja_value *items;
    size_t count;
    const jinja_string *const *names;
    const jinja_value *values;
    size_t named;
} jinja_args;

/* --- jinja_eval.c --- */
jinja_value jinja_eval(jinja_state *s, const jinja_node *node);
void jinja_assign(jinja_state *s, const jinja_node *target, const jinja_value *value);
jinja_value *jinja_slot(jinja_state *s, jinja_place place);
jinja_value jinja_call(jinja_state *s, const jinja_value *callee, const jinja_args *args);
/* The call of a call block, whose body is caller. */
jinja_value jinja_call_block(jinja_state *s, const jinja_node *call, const jinja_value *caller);
/* Positional and named arguments into out[total], by name; what is not given is JINJA_MISSING.
 * The first `required` must be there. what: whose they are, for the sentence. */
void jinja_bind(jinja_state *s, const char *what, const char *const *names, size_t required,
                size_t total, const jinja_args *args, jinja_value *out);
#define JINJA_BIND(s, what, names, required, args, out)                                            \
    jinja_bind(s, what, names, required, sizeof(names) / sizeof((names)[0]), args, out)

/* --- jinja_exec.c --- */
void jinja_run(jinja_state *s, const jinja_tree *tree);
jinja_value jinja_call_macro(jinja_state *s, const jinja_macro *macro, const jinja_args *args);
jinja_value jinja_loop_attribute(jinja_state *s, const jinja_value *loop, const jinja_string *name);
jinja_value jinja_loop_call(jinja_state *s, jinja_loop *loop, const jinja_string *name,
                            const jinja_args *args);
void jinja_repr_macro(jinja_state *s, jinja_builder *b, const jinja_value *v);
void jinja_repr_loop(jinja_state *s, jinja_builder *b, const jinja_value *v);

/* --- jinja_ops.c --- */
jinja_value jinja_binary(jinja_state *s, uint32_t op, const jinja_value *a, const jinja_value *b);
jinja_value jinja_negate(jinja_state *s, const jinja_value *a, bool is_minus);
bool jinja_compare(jinja_state *s, uint32_t op, const jinja_value *a, const jinja_value *b);
/* Python's int(float): MR_ERR_LIMIT where it needs more than 64 bits. */
int64_t jinja_float_to_int(jinja_state *s, double value);

/* --- jinja_access.c --- */
jinja_value jinja_attribute(jinja_state *s, const jinja_value *of, const jinja_string *name);
jinja_value jinja_item(jinja_state *s, const jinja_value *of, const jinja_value *key);
jinja_value jinja_slice(jinja_state *s, const jinja_value *of, const jinja_value bounds[3]);
/* The value of "a.b.0" within an item, as the filters' attribute: a str, an int or None. otherwise:
 * in place of what is undefined, or NULL. */
jinja_value jinja_attribute_path(jinja_state *s, const jinja_value *of, const jinja_value *path,
                                 const jinja_value *otherwise);

/* --- jinja_format.c --- */
jinja_value jinja_percent(jinja_state *s, const jinja_string *format, const jinja_value *args);
jinja_value jinja_format(jinja_state *s, const jinja_string *format, const jinja_args *args);

/* --- methods: NULL where the kind has none of that name --- */
typedef jinja_value (*jinja_method)(jinja_state *s, const jinja_value *self,
                                    const jinja_args *args);
/* known: Python has it, whether we do or not. jinja_method_str.c and jinja_method.c */
jinja_method jinja_string_method(const jinja_string *name, bool *known);
jinja_method jinja_object_method(jinja_kind kind, const jinja_string *name, bool *known);
/* What list, dict, ... methods would change something, which the sandbox refuses. */
bool jinja_method_mutates(jinja_kind kind, const jinja_string *name);

/* --- strings: jinja_text.c, what methods and filters share --- */
const jinja_string *jinja_convert(jinja_state *s, const jinja_string *string, jinja_case to);
const jinja_string *jinja_capitalize(jinja_state *s, const jinja_string *string);
enum { JINJA_LEFT = 1, JINJA_RIGHT = 2 };
const jinja_string *jinja_title_case(jinja_state *s, const jinja_string *string);
const jinja_string *jinja_swap_case(jinja_state *s, const jinja_string *string);
size_t jinja_string_find_last(jinja_state *s, const jinja_string *in, const jinja_string *what);
/* chars: NULL: white space. */
const jinja_string *jinja_strip(jinja_state *s, const jinja_string *string,
                                const jinja_string *chars, int sides);
const jinja_string *jinja_replace(jinja_state *s, const jinja_string *in, const jinja_string *old,
                                  const jinja_string *to, int64_t most);
/* separator NULL: white space. most < 0: all. */
jinja_items jinja_split(jinja_state *s, const jinja_string *in, const jinja_string *separator,
                        int64_t most, bool from_right);
jinja_items jinja_split_lines(jinja_state *s, const jinja_string *in, bool keep_ends);
const jinja_string *jinja_join(jinja_state *s, const jinja_string *separator, jinja_sequence items,
                               bool convert);
const jinja_string *jinja_center(jinja_state *s, const jinja_string *in, int64_t width,
                                 const jinja_string *fill, int sides);
bool jinja_all_are(jinja_state *s, const jinja_string *string, uint32_t flags);
bool jinja_is_cased(jinja_state *s, const jinja_string *string, bool upper);
/* Python's int(str) and float(str); false: it is none. */
bool jinja_parse_int(jinja_state *s, const jinja_string *string, int64_t base, int64_t *out);
bool jinja_parse_float(jinja_state *s, const jinja_string *string, double *out);

/* --- filters, tests, functions --- */
jinja_value jinja_apply_filter(jinja_state *s, uint32_t which, const jinja_value *in,
                               const jinja_args *args);
typedef jinja_value (*jinja_filter)(jinja_state *s, const jinja_value *in, const jinja_args *args);
typedef struct {
    const char *name;
    jinja_filter apply;
} jinja_filter_row;
extern const jinja_filter_row jinja_text_filters[], jinja_sequence_filters[];
extern const size_t jinja_text_filter_count, jinja_sequence_filter_count;
bool jinja_apply_test(jinja_state *s, uint32_t which, const jinja_value *in,
                      const jinja_args *args);
/* jinja_global.c: range, namespace, ...; JINJA_MISSING: there is none of this name */
jinja_value jinja_global(const jinja_string *name);
jinja_value jinja_call_global(jinja_state *s, uint32_t which, const jinja_args *args);
jinja_value jinja_dict_from(jinja_state *s, const jinja_args *args, const char *what);

#endif
