/* jinja_test.c - the tests that follow `is`. */
#include "common/model/jinja_eval.h"

#include <math.h>

typedef bool (*test_function)(jinja_state *s, const jinja_value *in, const jinja_value *argument);

static bool t_defined(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return !jinja_is_undefined(in);
}

static bool t_undefined(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return !t_defined(s, in, argument);
}

static bool t_none(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_NONE;
}

static bool t_boolean(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_BOOL;
}

static bool t_true(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return t_boolean(s, in, argument) && in->is;
}

static bool t_false(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return t_boolean(s, in, argument) && !in->is;
}

static bool t_integer(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_INT;
}

static bool t_float(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_FLOAT;
}

static bool t_number(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_INT || in->kind == JINJA_FLOAT || in->kind == JINJA_BOOL;
}

static bool t_string(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_STRING;
}

static bool t_mapping(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_DICT;
}

static bool t_iterable(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return jinja_is_iterable(in);
}

static bool t_sequence(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    switch (in->kind) {
    case JINJA_UNDEFINED: /* it has a length, and would have items */
    case JINJA_STRING:
    case JINJA_LIST:
    case JINJA_TUPLE:
    case JINJA_DICT:
    case JINJA_RANGE:
        return true;
    default:
        return false;
    }
}

static bool t_callable(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    switch (in->kind) {
    case JINJA_UNDEFINED:
    case JINJA_LOOP:
    case JINJA_MACRO:
    case JINJA_FUNCTION:
    case JINJA_METHOD:
    case JINJA_JOINER:
        return true;
    default:
        return false;
    }
}

static bool t_lower(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)argument;
    return jinja_is_cased(s, jinja_str(s, in), false);
}

static bool t_upper(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)argument;
    return jinja_is_cased(s, jinja_str(s, in), true);
}

static bool t_escaped(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    (void)s, (void)argument;
    return in->kind == JINJA_STRING && in->s->markup;
}

static bool t_filter(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    uint32_t which;
    (void)s, (void)argument;
    return in->kind == JINJA_STRING && jinja_filter_find(in->s, &which);
}

static bool t_test(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    uint32_t which;
    (void)s, (void)argument;
    return in->kind == JINJA_STRING && jinja_test_find(in->s, &which);
}

static bool remainder_is(jinja_state *s, const jinja_value *in, const jinja_value *divisor,
                         int64_t wanted) {
    const jinja_value rest = jinja_binary(s, JINJA_T_MOD, in, divisor), value = jinja_int(wanted);
    return jinja_equal(s, &rest, &value);
}

static bool t_odd(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    const jinja_value two = jinja_int(2);
    (void)argument;
    return remainder_is(s, in, &two, 1);
}

static bool t_even(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    const jinja_value two = jinja_int(2);
    (void)argument;
    return remainder_is(s, in, &two, 0);
}

static bool t_divisibleby(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return remainder_is(s, in, argument, 0);
}

static bool t_eq(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_compare(s, JINJA_T_EQ, in, argument);
}

static bool t_ne(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_compare(s, JINJA_T_NE, in, argument);
}

static bool t_lt(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_compare(s, JINJA_T_LT, in, argument);
}

static bool t_le(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_compare(s, JINJA_T_LTEQ, in, argument);
}

static bool t_gt(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_compare(s, JINJA_T_GT, in, argument);
}

static bool t_ge(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_compare(s, JINJA_T_GTEQ, in, argument);
}

static bool t_in(jinja_state *s, const jinja_value *in, const jinja_value *argument) {
    return jinja_contains(s, argument, in);
}

/* Identity: of small values it is an accident of Python's, so only what is one of a kind. */
static bool t_sameas(jinja_state *s, const jinja_value *in, const jinja_value *other) {
    if (in->kind != other->kind) return false;
    switch (in->kind) {
    case JINJA_NONE:
        return true;
    case JINJA_BOOL:
        return in->is == other->is;
    case JINJA_NAMESPACE:
    case JINJA_DICT:
        return in->dict == other->dict;
    default:
        jinja_fail(s, MR_ERR_UNSUPPORTED, "sameas with a %s is not supported", jinja_type_name(in));
    }
}

static const struct {
    const char *name;
    uint32_t arguments; /* how many, all required */
    test_function is;
} tests[] = {
    {"odd", 0, t_odd},
    {"even", 0, t_even},
    {"divisibleby", 1, t_divisibleby},
    {"defined", 0, t_defined},
    {"undefined", 0, t_undefined},
    {"filter", 0, t_filter},
    {"test", 0, t_test},
    {"none", 0, t_none},
    {"boolean", 0, t_boolean},
    {"false", 0, t_false},
    {"true", 0, t_true},
    {"integer", 0, t_integer},
    {"float", 0, t_float},
    {"lower", 0, t_lower},
    {"upper", 0, t_upper},
    {"string", 0, t_string},
    {"mapping", 0, t_mapping},
    {"number", 0, t_number},
    {"sequence", 0, t_sequence},
    {"iterable", 0, t_iterable},
    {"callable", 0, t_callable},
    {"sameas", 1, t_sameas},
    {"escaped", 0, t_escaped},
    {"in", 1, t_in},
    {"==", 1, t_eq},
    {"eq", 1, t_eq},
    {"equalto", 1, t_eq},
    {"!=", 1, t_ne},
    {"ne", 1, t_ne},
    {">", 1, t_gt},
    {"gt", 1, t_gt},
    {"greaterthan", 1, t_gt},
    {"ge", 1, t_ge},
    {">=", 1, t_ge},
    {"<", 1, t_lt},
    {"lt", 1, t_lt},
    {"lessthan", 1, t_lt},
    {"<=", 1, t_le},
    {"le", 1, t_le},
};

bool jinja_test_find(const jinja_string *name, uint32_t *out) {
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
        if (jinja_string_is(name, tests[i].name)) {
            *out = (uint32_t)i;
            return true;
        }
    return false;
}

bool jinja_apply_test(jinja_state *s, uint32_t which, const jinja_value *in,
                      const jinja_args *args) {
    static const char *const names[] = {"other"};
    jinja_value argument = jinja_none();
    jinja_spend(s, 1);
    jinja_bind(s, tests[which].name, names, tests[which].arguments, tests[which].arguments, args,
               &argument);
    return tests[which].is(s, in, &argument);
}
