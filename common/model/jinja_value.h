/* jinja_value.h - values of a template: Python's, immutable but for namespaces and iterators.
 *
 * All of it lives in an arena that goes away as a whole. An error leaves by longjmp to the one
 * place that began the parse or the render (jinja.c): nothing but the arena is held in between, so
 * there is nothing to undo on the way.
 * Threads: a state, and every value made with it, belongs to one thread; the constants of a parsed
 * template are shared and never written. */
#ifndef MR_MODEL_JINJA_VALUE_H
#define MR_MODEL_JINJA_VALUE_H
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/model/jinja_unicode.h"

#include <setjmp.h>

/* --- state ------------------------------------------------------------------------------------ */

typedef struct jinja_block {
    struct jinja_block *next;
    size_t used, room;
    _Alignas(16) char data[];
} jinja_block;

typedef struct {
    jinja_block *blocks;
    size_t bytes; /* of all blocks */
    jmp_buf escape;
    mr_status status;
    mr_err *err;
    uint32_t line;             /* where we are, for sentences */
    uint32_t depth;            /* of recursion */
    uint64_t steps, steps_max; /* done so far, and at most */
    /* of a render */
    struct jinja_activation *frame; /* variables of the function we are in */
    struct jinja_builder *out;      /* where text goes */
    const struct jinja_dict *variables;
    const struct jinja_string *block_text; /* what a filter block or set block made */
    int64_t now;
} jinja_state;

void *jinja_alloc(jinja_state *s, size_t bytes);     /* zeroed, aligned to 16 */
void *jinja_alloc_raw(jinja_state *s, size_t bytes); /* not zeroed */
void *jinja_alloc_array(jinja_state *s, size_t count, size_t bytes);
void jinja_state_free(jinja_state *s);
/* "line N of the chat template: " and the sentence. */
_Noreturn void jinja_fail(jinja_state *s, mr_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void jinja_fail_bare(jinja_state *s, mr_status status, const char *text);
void jinja_spend(jinja_state *s, uint64_t steps); /* beyond the maximum: MR_ERR_LIMIT */
/* Work on so many bytes: copied or compared, gone through, or looked up one by one. */
static inline void jinja_spend_bytes(jinja_state *s, size_t bytes) {
    jinja_spend(s, 1 + bytes / 32);
}
static inline void jinja_spend_walk(jinja_state *s, size_t bytes) {
    jinja_spend(s, 1 + bytes / 8);
}
static inline void jinja_spend_lookups(jinja_state *s, size_t bytes) {
    jinja_spend(s, 1 + bytes / 2);
}
enum { JINJA_FLOAT_STEPS = 100 };  /* to spell a float */
void jinja_enter(jinja_state *s); /* one level of recursion; beyond the maximum: MR_ERR_LIMIT */
static inline void jinja_leave(jinja_state *s) {
    s->depth--;
}

/* --- values ----------------------------------------------------------------------------------- */

typedef enum {
    JINJA_MISSING, /* no value at all; never seen by a template */
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST,
    JINJA_TUPLE,
    JINJA_DICT,
    JINJA_VIEW, /* keys(), values() or items() of a dict */
    JINJA_RANGE,
    JINJA_ITERATOR, /* a generator: runs once */
    JINJA_NAMESPACE,
    JINJA_LOOP,
    JINJA_MACRO,
    JINJA_FUNCTION, /* a global one */
    JINJA_METHOD,
    JINJA_CYCLER,
    JINJA_JOINER,
} jinja_kind;

typedef enum { JINJA_OURS, JINJA_USER, JINJA_MIXED } jinja_origin;

/* Where concatenations grow: what comes after used is free for whoever appends first. */
typedef struct {
    char *data;
    uint8_t *marks; /* NULL: all of one origin */
    size_t used, room;
} jinja_store;

typedef struct jinja_string {
    const char *data;
    const uint8_t *marks; /* JINJA_MIXED: [bytes], 1 where a user wrote; else NULL */
    size_t bytes;
    jinja_store *store; /* NULL: data is anywhere else */
    uint8_t origin;
    bool markup; /* went through safe or escape */
} jinja_string;

struct jinja_list;
struct jinja_dict;
struct jinja_loop;
struct jinja_macro;
struct jinja_object;

typedef struct jinja_value {
    jinja_kind kind;
    uint32_t number; /* of a function, or what kind of view */
    union {
        bool is;
        int64_t i;
        double f;
        const jinja_string *s;
        const struct jinja_list *list; /* of a tuple, too */
        struct jinja_dict *dict;       /* of a view and a namespace, too */
        struct jinja_loop *loop;
        const struct jinja_macro *macro;
        struct jinja_object *object; /* range, iterator, method, cycler, joiner, undefined */
    };
} jinja_value;

typedef struct {
    jinja_value *items;
    size_t used, room;
} jinja_list_store;

typedef struct jinja_list {
    jinja_value *items;
    size_t count;
    jinja_list_store *store;          /* as of strings */
    const jinja_string *const *names; /* [count] of a named tuple (groupby), else NULL */
} jinja_list;

typedef struct jinja_dict {
    jinja_value *keys, *values; /* in the order of insertion */
    size_t count, room;
    uint32_t *index; /* [index_room] places in it plus 1, 0: free; NULL while small */
    size_t index_room;
} jinja_dict;

enum { JINJA_VIEW_KEYS, JINJA_VIEW_VALUES, JINJA_VIEW_ITEMS };

typedef struct jinja_object {
    /* range */
    int64_t start, stop, step;
    size_t count; /* of an iterator and a cycler, too */
    /* iterator: what is left is [at, count); cycler, joiner */
    const jinja_value *items;
    size_t at;
    bool used;
    /* iterator: not begun yet; puts its items here */
    void (*begin)(jinja_state *s, struct jinja_object *iterator);
    const void *plan;
    /* method: of self; undefined: the name, and of what */
    jinja_value self;
    const jinja_string *name;
    const char *hint; /* undefined: a whole sentence, or NULL */
} jinja_object;

static inline jinja_value jinja_none(void) {
    return (jinja_value){.kind = JINJA_NONE};
}
static inline jinja_value jinja_bool(bool is) {
    return (jinja_value){.kind = JINJA_BOOL, .is = is};
}
static inline jinja_value jinja_int(int64_t i) {
    return (jinja_value){.kind = JINJA_INT, .i = i};
}
static inline jinja_value jinja_float(double f) {
    return (jinja_value){.kind = JINJA_FLOAT, .f = f};
}
static inline jinja_value jinja_text(const jinja_string *string) {
    return (jinja_value){.kind = JINJA_STRING, .s = string};
}
static inline bool jinja_is_undefined(const jinja_value *v) {
    return v->kind == JINJA_UNDEFINED;
}
static inline bool jinja_is_none(const jinja_value *v) {
    return v->kind == JINJA_NONE;
}

/* self: NULL for a variable. */
jinja_value jinja_undefined(jinja_state *s, const jinja_value *self, const jinja_string *name);
jinja_value jinja_undefined_hint(jinja_state *s, const char *hint); /* hint is not copied */
_Noreturn void jinja_fail_undefined(jinja_state *s, const jinja_value *v);
const char *jinja_type_name(const jinja_value *v); /* Python's */
bool jinja_truth(jinja_state *s, const jinja_value *v);
/* An int, or a bool as one; false: v is something else. */
bool jinja_as_int(const jinja_value *v, int64_t *out);
bool jinja_as_number(const jinja_value *v, double *out); /* also floats */
/* Wants an int, and says whose it is where it is not. */
int64_t jinja_want_int(jinja_state *s, const jinja_value *v, const char *what);
const jinja_string *jinja_want_string(jinja_state *s, const jinja_value *v, const char *what);

/* --- strings ---------------------------------------------------------------------------------- */

jinja_string *jinja_string_of(jinja_state *s, const char *data, size_t bytes, bool user); /* data
                                                                                 is borrowed */
jinja_value jinja_string_literal(jinja_state *s, const char *text); /* text is not copied */
const jinja_string *jinja_string_part(jinja_state *s, const jinja_string *from, size_t first,
                                      size_t bytes);
bool jinja_string_is(const jinja_string *string, const char *text);
bool jinja_string_equal(const jinja_string *a, const jinja_string *b);
int jinja_string_compare(const jinja_string *a, const jinja_string *b); /* by characters */
const jinja_string *jinja_concat(jinja_state *s, const jinja_string *a, const jinja_string *b);
/* Byte offset of the first occurrence at or after from; SIZE_MAX: none. */
size_t jinja_string_find(jinja_state *s, const jinja_string *in, const jinja_string *what,
                         size_t from);

/* A string in the making. */
typedef struct jinja_builder {
    jinja_store store;
    jinja_origin origin; /* of what is in it, once it is not empty */
} jinja_builder;         /* starts as {0} */
void jinja_add(jinja_state *s, jinja_builder *b, const char *data, size_t bytes, bool user);
void jinja_add_text(jinja_state *s, jinja_builder *b, const char *text); /* ours */
void jinja_add_string(jinja_state *s, jinja_builder *b, const jinja_string *string);
void jinja_add_part(jinja_state *s, jinja_builder *b, const jinja_string *string, size_t first,
                    size_t bytes);
void jinja_add_char(jinja_state *s, jinja_builder *b, uint32_t character, bool user);
void jinja_add_repeated(jinja_state *s, jinja_builder *b, const jinja_string *string, size_t count);
static inline bool jinja_user_wrote(const jinja_string *string, size_t at) {
    return string->marks ? string->marks[at] != 0 : string->origin == JINJA_USER;
}
const jinja_string *jinja_built(jinja_state *s, const jinja_builder *b);

/* --- containers ------------------------------------------------------------------------------- */

/* items are borrowed. */
jinja_value jinja_list_of(jinja_state *s, jinja_value *items, size_t count);
jinja_value jinja_tuple_of(jinja_state *s, jinja_value *items, size_t count);
jinja_value jinja_pair(jinja_state *s, jinja_value first, jinja_value second);
jinja_value jinja_list_concat(jinja_state *s, const jinja_value *a, const jinja_value *b);
jinja_value jinja_iterator(jinja_state *s, const jinja_value *items, size_t count);
/* What a generator yields is worked out when the first item is asked for. */
static inline void jinja_begin(jinja_state *s, jinja_object *iterator) {
    void (*begin)(jinja_state *, jinja_object *) = iterator->begin;
    iterator->begin = NULL;
    if (begin) begin(s, iterator);
}
/* A list in the making. */
typedef struct {
    jinja_value *items;
    size_t count, room;
} jinja_items; /* starts as {0} */
void jinja_push(jinja_state *s, jinja_items *list, jinja_value value);

jinja_dict *jinja_dict_new(jinja_state *s, size_t expected);
void jinja_dict_set(jinja_state *s, jinja_dict *dict, jinja_value key, jinja_value value);
/* NULL: not there. A key that has no hash is an error. */
const jinja_value *jinja_dict_get(jinja_state *s, const jinja_dict *dict, const jinja_value *key);
const jinja_value *jinja_dict_find(const jinja_dict *dict, const jinja_string *key);

/* What iterating gives, at once; an iterator is used up. MR_ERR_FORMAT where it cannot be. */
typedef struct {
    const jinja_value *items;
    size_t count;
} jinja_sequence;
bool jinja_is_iterable(const jinja_value *v);
jinja_sequence jinja_iterate(jinja_state *s, const jinja_value *v);
/* Python's len(); false where there is none. */
bool jinja_length(jinja_state *s, const jinja_value *v, size_t *out);
jinja_value jinja_range_item(const jinja_object *range, size_t index);

/* --- comparing, jinja_compare.c --------------------------------------------------------------- */

uint64_t jinja_hash(jinja_state *s, const jinja_value *v); /* MR_ERR_FORMAT: not hashable */
bool jinja_equal(jinja_state *s, const jinja_value *a, const jinja_value *b);
/* < 0, 0, > 0; MR_ERR_FORMAT where Python has no order. 2: unordered (a NaN). */
int jinja_order(jinja_state *s, const jinja_value *a, const jinja_value *b);
bool jinja_contains(jinja_state *s, const jinja_value *in, const jinja_value *what);
/* Stable; keys and values change places together (values may be NULL). */
void jinja_sort(jinja_state *s, jinja_value *keys, jinja_value *values, size_t count, bool reverse);

/* --- spelling, jinja_spell.c ------------------------------------------------------------------ */

const jinja_string *jinja_str(jinja_state *s, const jinja_value *v); /* Python's str() */
void jinja_repr(jinja_state *s, jinja_builder *b, const jinja_value *v);
void jinja_add_str(jinja_state *s, jinja_builder *b, const jinja_value *v);
size_t jinja_spell_float(char out[32], double value); /* Python's repr(); returns its length */

/* --- JSON, jinja_json.c ----------------------------------------------------------------------- */

/* Strings are borrowed from json. role_is_ours: of a message. */
jinja_value jinja_from_json(jinja_state *s, const json_t *json, bool user);
jinja_value jinja_messages_from_json(jinja_state *s, const json_t *json);
typedef struct {
    bool ensure_ascii, sort_keys;
    const jinja_string *indent; /* NULL: one line */
    const jinja_string *item_separator, *key_separator;
} jinja_json_style;
void jinja_to_json(jinja_state *s, jinja_builder *b, const jinja_value *v,
                   const jinja_json_style *style);

#endif
