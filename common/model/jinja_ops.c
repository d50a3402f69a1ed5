/* jinja_ops.c - arithmetic and comparisons. Python's ints have no bounds, ours have 64 bits: what
 * needs more is refused. */
#include "common/model/jinja_eval.h"

#include <math.h>
#include <string.h>

static _Noreturn void overflow(jinja_state *s) {
    jinja_fail(s, MR_ERR_UNSUPPORTED, "an integer of more than 64 bits is not supported");
}

static const char *op_name(uint32_t op) {
    return jinja_token_name(&(jinja_token){.kind = (jinja_token_kind)op});
}

static _Noreturn void wrong_types(jinja_state *s, uint32_t op, const jinja_value *a,
                                  const jinja_value *b) {
    if (jinja_is_undefined(a)) jinja_fail_undefined(s, a);
    if (jinja_is_undefined(b)) jinja_fail_undefined(s, b);
    jinja_fail(s, MR_ERR_FORMAT, "unsupported operand types for %s: '%s' and '%s'", op_name(op),
               jinja_type_name(a), jinja_type_name(b));
}

int64_t jinja_float_to_int(jinja_state *s, double value) {
    if (isnan(value) || isinf(value))
        jinja_fail(s, MR_ERR_FORMAT, "a float that is not finite has no int");
    if (!(value >= -0x1p63 && value < 0x1p63)) overflow(s);
    return (int64_t)value;
}

/* --- ints ------------------------------------------------------------------------------------- */

static int64_t floor_divide(jinja_state *s, int64_t a, int64_t b) {
    if (b == 0) jinja_fail(s, MR_ERR_FORMAT, "integer division or modulo by zero");
    if (b == -1) {
        if (a == INT64_MIN) overflow(s);
        return -a;
    }
    const int64_t quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

static jinja_value int_power(jinja_state *s, int64_t base, int64_t exponent) {
    int64_t result = 1;
    if (exponent < 0) {
        if (base == 0) jinja_fail(s, MR_ERR_FORMAT, "0 cannot be raised to a negative power");
        return jinja_float(pow((double)base, (double)exponent));
    }
    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) overflow(s);
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) overflow(s);
    }
    return jinja_int(result);
}

/* Correctly rounded, as Python's: both ints may have more bits than a double. */
static jinja_value divide_ints(jinja_state *s, int64_t a, int64_t b) {
    if (b == 0) jinja_fail(s, MR_ERR_FORMAT, "division by zero");
    const int64_t exact = INT64_C(1) << 53;
    if (a >= -exact && a <= exact && b >= -exact && b <= exact)
        return jinja_float((double)a / (double)b);
    if (b != -1 && a % b == 0) return jinja_float((double)(a / b));
    jinja_fail(s, MR_ERR_UNSUPPORTED, "/ of integers of more than 53 bits is not supported");
}

static jinja_value int_operation(jinja_state *s, uint32_t op, int64_t a, int64_t b) {
    int64_t out;
    bool is_over = false;
    switch (op) {
    case JINJA_T_ADD:
        is_over = __builtin_add_overflow(a, b, &out);
        break;
    case JINJA_T_SUB:
        is_over = __builtin_sub_overflow(a, b, &out);
        break;
    case JINJA_T_MUL:
        is_over = __builtin_mul_overflow(a, b, &out);
        break;
    case JINJA_T_DIV:
        return divide_ints(s, a, b);
    case JINJA_T_FLOORDIV:
        out = floor_divide(s, a, b);
        break;
    case JINJA_T_MOD:
        out = b == -1 ? 0 : a - floor_divide(s, a, b) * b;
        break;
    default:
        return int_power(s, a, b);
    }
    if (is_over) overflow(s);
    return jinja_int(out);
}

/* --- floats ----------------------------------------------------------------------------------- */

/* Python's divmod(): the remainder has the divisor's sign. */
static void float_divmod(double a, double b, double *floor_quotient, double *modulo) {
    double mod = fmod(a, b), div = (a - mod) / b;
    if (mod != 0) {
        if ((b < 0) != (mod < 0)) {
            mod += b;
            div -= 1;
        }
    } else
        mod = copysign(0, b);
    double whole = 0;
    if (div != 0) {
        whole = floor(div);
        if (div - whole > 0.5) whole += 1;
    } else
        whole = copysign(0, a / b);
    *floor_quotient = whole;
    *modulo = mod;
}

static jinja_value float_power(jinja_state *s, double a, double b) {
    if (a == 0 && b < 0) jinja_fail(s, MR_ERR_FORMAT, "0.0 cannot be raised to a negative power");
    if (a < 0 && isfinite(a) && isfinite(b) && b != floor(b))
        jinja_fail(s, MR_ERR_UNSUPPORTED, "a complex number is not supported");
    const double power = pow(a, b);
    if (isinf(power) && isfinite(a) && isfinite(b))
        jinja_fail(s, MR_ERR_FORMAT, "a power is larger than any float");
    return jinja_float(power);
}

static jinja_value float_operation(jinja_state *s, uint32_t op, double a, double b) {
    double quotient, modulo;
    switch (op) {
    case JINJA_T_ADD:
        return jinja_float(a + b);
    case JINJA_T_SUB:
        return jinja_float(a - b);
    case JINJA_T_MUL:
        return jinja_float(a * b);
    case JINJA_T_POW:
        return float_power(s, a, b);
    default:
        break;
    }
    if (b == 0) jinja_fail(s, MR_ERR_FORMAT, "float division by zero");
    if (op == JINJA_T_DIV) return jinja_float(a / b);
    float_divmod(a, b, &quotient, &modulo);
    return jinja_float(op == JINJA_T_MOD ? modulo : quotient);
}

/* --- sequences -------------------------------------------------------------------------------- */

static const jinja_string *escaped(jinja_state *s, const jinja_string *string) {
    if (string->markup) return string;
    const jinja_value in = jinja_text(string);
    uint32_t escape;
    jinja_filter_find(jinja_string_of(s, "e", 1, false), &escape);
    return jinja_apply_filter(s, escape, &in, &(jinja_args){0}).s;
}

static jinja_value add_strings(jinja_state *s, const jinja_string *a, const jinja_string *b) {
    if (!a->markup && !b->markup) return jinja_text(jinja_concat(s, a, b));
    jinja_string *both = jinja_alloc(s, sizeof(*both));
    *both = *jinja_concat(s, escaped(s, a), escaped(s, b));
    both->markup = true;
    return jinja_text(both);
}

static jinja_value repeat(jinja_state *s, const jinja_value *what, int64_t times) {
    const size_t count = times > 0 ? (size_t)times : 0;
    if (what->kind == JINJA_STRING) {
        jinja_builder b = {0};
        jinja_add_repeated(s, &b, what->s, count);
        jinja_string *out = (jinja_string *)(uintptr_t)jinja_built(s, &b);
        out->markup = what->s->markup;
        return jinja_text(out);
    }
    jinja_items items = {0};
    for (size_t i = 0; i < count && what->list->count > 0; i++)
        for (size_t j = 0; j < what->list->count; j++) {
            jinja_spend(s, 1);
            jinja_push(s, &items, what->list->items[j]);
        }
    return what->kind == JINJA_LIST ? jinja_list_of(s, items.items, items.count)
                                    : jinja_tuple_of(s, items.items, items.count);
}

static bool is_repeatable(const jinja_value *v) {
    return v->kind == JINJA_STRING || v->kind == JINJA_LIST || v->kind == JINJA_TUPLE;
}

jinja_value jinja_binary(jinja_state *s, uint32_t op, const jinja_value *a, const jinja_value *b) {
    int64_t i, j;
    double x, y;
    if (jinja_as_int(a, &i) && jinja_as_int(b, &j)) return int_operation(s, op, i, j);
    if (jinja_as_number(a, &x) && jinja_as_number(b, &y)) return float_operation(s, op, x, y);
    if (jinja_is_undefined(a) || jinja_is_undefined(b)) {
        if (op == JINJA_T_MOD && a->kind == JINJA_STRING) return jinja_percent(s, a->s, b);
        wrong_types(s, op, a, b);
    }
    if (op == JINJA_T_ADD && a->kind == b->kind) {
        if (a->kind == JINJA_STRING) return add_strings(s, a->s, b->s);
        if (a->kind == JINJA_LIST || a->kind == JINJA_TUPLE) return jinja_list_concat(s, a, b);
    }
    if (op == JINJA_T_MUL && is_repeatable(a) && jinja_as_int(b, &j)) return repeat(s, a, j);
    if (op == JINJA_T_MUL && is_repeatable(b) && jinja_as_int(a, &i)) return repeat(s, b, i);
    if (op == JINJA_T_MOD && a->kind == JINJA_STRING) return jinja_percent(s, a->s, b);
    wrong_types(s, op, a, b);
}

jinja_value jinja_negate(jinja_state *s, const jinja_value *a, bool is_minus) {
    int64_t i;
    if (jinja_is_undefined(a)) jinja_fail_undefined(s, a);
    if (jinja_as_int(a, &i)) {
        if (is_minus && i == INT64_MIN) overflow(s);
        return jinja_int(is_minus ? -i : i);
    }
    if (a->kind == JINJA_FLOAT) return jinja_float(is_minus ? -a->f : a->f);
    jinja_fail(s, MR_ERR_FORMAT, "bad operand type for unary %c: '%s'", is_minus ? '-' : '+',
               jinja_type_name(a));
}

bool jinja_compare(jinja_state *s, uint32_t op, const jinja_value *a, const jinja_value *b) {
    switch (op) {
    case JINJA_T_EQ:
        return jinja_equal(s, a, b);
    case JINJA_T_NE:
        return !jinja_equal(s, a, b);
    case JINJA_OP_IN:
        return jinja_contains(s, b, a);
    case JINJA_OP_NOT_IN:
        return !jinja_contains(s, b, a);
    default:
        break;
    }
    const int order = jinja_order(s, a, b);
    switch (op) {
    case JINJA_T_LT:
        return order == -1;
    case JINJA_T_LTEQ:
        return order == -1 || order == 0;
    case JINJA_T_GT:
        return order == 1;
    default:
        return order == 0 || order == 1;
    }
}
