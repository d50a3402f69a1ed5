/* jinja_global.c - the functions a template may call: those of jinja2's sandbox and those that
 * transformers adds. */
#include "common/model/jinja_eval.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* --- range ------------------------------------------------------------------------------------ */

static jinja_value g_range(jinja_state *s, const jinja_args *args) {
    jinja_object *range = jinja_alloc(s, sizeof(*range));
    int64_t given[3];
    if (args->named > 0 || args->count == 0 || args->count > 3)
        jinja_fail(s, MR_ERR_FORMAT, "range() takes 1 to 3 positional arguments");
    for (size_t i = 0; i < args->count; i++)
        given[i] = jinja_want_int(s, &args->items[i], "an argument of range()");
    range->start = args->count > 1 ? given[0] : 0;
    range->stop = args->count > 1 ? given[1] : given[0];
    range->step = args->count > 2 ? given[2] : 1;
    if (range->step == 0) jinja_fail(s, MR_ERR_FORMAT, "range() arg 3 must not be zero");
    const bool up = range->step > 0;
    if (up ? range->stop > range->start : range->stop < range->start) {
        const uint64_t size = up ? (uint64_t)range->stop - (uint64_t)range->start
                                 : (uint64_t)range->start - (uint64_t)range->stop;
        const uint64_t step = up ? (uint64_t)range->step : 0 - (uint64_t)range->step;
        range->count = (size - 1) / step + 1;
    }
    if (range->count > MR_MAX_JINJA_RANGE)
        jinja_fail(s, MR_ERR_LIMIT, "range() makes more than %d items", MR_MAX_JINJA_RANGE);
    return (jinja_value){.kind = JINJA_RANGE, .object = range};
}

/* --- dict, namespace -------------------------------------------------------------------------- */

static void add_pairs(jinja_state *s, jinja_dict *dict, const jinja_value *from) {
    if (from->kind == JINJA_DICT) {
        for (size_t i = 0; i < from->dict->count; i++)
            jinja_dict_set(s, dict, from->dict->keys[i], from->dict->values[i]);
        return;
    }
    const jinja_sequence all = jinja_iterate(s, from);
    for (size_t i = 0; i < all.count; i++) {
        const jinja_sequence pair = jinja_iterate(s, &all.items[i]);
        if (pair.count != 2)
            jinja_fail(s, MR_ERR_FORMAT, "a dict is made of pairs, not of %zu values", pair.count);
        jinja_dict_set(s, dict, pair.items[0], pair.items[1]);
    }
}

static jinja_dict *dict_of(jinja_state *s, const jinja_args *args) {
    jinja_dict *dict = jinja_dict_new(s, args->named);
    if (args->count > 1) jinja_fail(s, MR_ERR_FORMAT, "dict() takes at most 1 positional argument");
    if (args->count == 1) add_pairs(s, dict, &args->items[0]);
    for (size_t i = 0; i < args->named; i++)
        jinja_dict_set(s, dict, jinja_text(args->names[i]), args->values[i]);
    return dict;
}

static jinja_value g_dict(jinja_state *s, const jinja_args *args) {
    return (jinja_value){.kind = JINJA_DICT, .dict = dict_of(s, args)};
}

static jinja_value g_namespace(jinja_state *s, const jinja_args *args) {
    jinja_dict *dict = dict_of(s, args);
    for (size_t i = 0; i < dict->count; i++)
        if (dict->keys[i].kind == JINJA_STRING && dict->keys[i].s->bytes > 0 &&
            dict->keys[i].s->data[0] == '_')
            jinja_fail(s, MR_ERR_FORMAT, "a namespace keeps no name that begins with _");
    return (jinja_value){.kind = JINJA_NAMESPACE, .dict = dict};
}

/* --- what transformers adds ------------------------------------------------------------------- */

static jinja_value g_raise_exception(jinja_state *s, const jinja_args *args) {
    static const char *const names[] = {"message"};
    jinja_value got[1];
    JINJA_BIND(s, "raise_exception()", names, 1, args, got);
    const jinja_string *message = jinja_str(s, &got[0]);
    char *text = jinja_alloc(s, message->bytes + 1);
    memcpy(text, message->data, message->bytes);
    jinja_fail_bare(s, MR_ERR_ARGUMENT, text);
}

static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                   "Thursday", "Friday", "Saturday"};
static const char *const months[] = {"January",   "February", "March",    "April",
                                     "May",       "June",     "July",     "August",
                                     "September", "October",  "November", "December"};

/* A number of so many digits; %-d and the like: of as many as it needs. */
static bool spell_number(char *out, size_t room, char directive, bool bare, const struct tm *t) {
    const int hour = t->tm_hour % 12 == 0 ? 12 : t->tm_hour % 12;
    int value, digits = 2;
    switch (directive) {
    case 'd':
        value = t->tm_mday;
        break;
    case 'm':
        value = t->tm_mon + 1;
        break;
    case 'H':
        value = t->tm_hour;
        break;
    case 'I':
        value = hour;
        break;
    case 'M':
        value = t->tm_min;
        break;
    case 'S':
        value = t->tm_sec;
        break;
    case 'y':
        value = (t->tm_year + 1900) % 100;
        break;
    case 'j':
        value = t->tm_yday + 1;
        digits = 3;
        break;
    case 'U': /* weeks that begin on Sundays */
        value = (t->tm_yday + 7 - t->tm_wday) / 7;
        break;
    case 'W':
        value = (t->tm_yday + 7 - (t->tm_wday + 6) % 7) / 7;
        break;
    default:
        return false;
    }
    snprintf(out, room, "%0*d", bare ? 1 : digits, value);
    return true;
}

/* As strftime() in the C locale; false: not supported. */
static bool spell_directive(char *out, size_t room, char directive, const struct tm *t) {
    const char *day = days[t->tm_wday], *month = months[t->tm_mon];
    const int year = t->tm_year + 1900;
    if (spell_number(out, room, directive, false, t)) return true;
    switch (directive) {
    case 'a':
        snprintf(out, room, "%.3s", day);
        return true;
    case 'A':
        snprintf(out, room, "%s", day);
        return true;
    case 'b':
    case 'h':
        snprintf(out, room, "%.3s", month);
        return true;
    case 'B':
        snprintf(out, room, "%s", month);
        return true;
    case 'Y':
        snprintf(out, room, "%d", year);
        return true;
    case 'e':
        snprintf(out, room, "%2d", t->tm_mday);
        return true;
    case 'p':
        snprintf(out, room, "%s", t->tm_hour < 12 ? "AM" : "PM");
        return true;
    case 'w':
        snprintf(out, room, "%d", t->tm_wday);
        return true;
    case 'u':
        snprintf(out, room, "%d", t->tm_wday == 0 ? 7 : t->tm_wday);
        return true;
    case 'F':
        snprintf(out, room, "%d-%02d-%02d", year, t->tm_mon + 1, t->tm_mday);
        return true;
    case 'D':
    case 'x':
        snprintf(out, room, "%02d/%02d/%02d", t->tm_mon + 1, t->tm_mday, year % 100);
        return true;
    case 'R':
        snprintf(out, room, "%02d:%02d", t->tm_hour, t->tm_min);
        return true;
    case 'T':
    case 'X':
        snprintf(out, room, "%02d:%02d:%02d", t->tm_hour, t->tm_min, t->tm_sec);
        return true;
    case 'c':
        snprintf(out, room, "%.3s %.3s %2d %02d:%02d:%02d %d", day, month, t->tm_mday, t->tm_hour,
                 t->tm_min, t->tm_sec, year);
        return true;
    case 'Z': /* a time without zone, as transformers asks for it */
    case 'z':
        out[0] = '\0';
        return true;
    case 'n':
    case 't':
    case '%':
        snprintf(out, room, "%c", directive == 'n' ? '\n' : directive == 't' ? '\t' : '%');
        return true;
    default:
        return false;
    }
}

static jinja_value g_strftime_now(jinja_state *s, const jinja_args *args) {
    static const char *const names[] = {"format"};
    jinja_value got[1];
    jinja_builder b = {0};
    struct tm when;
    const time_t now = (time_t)s->now;
    JINJA_BIND(s, "strftime_now()", names, 1, args, got);
    const jinja_string *format = jinja_want_string(s, &got[0], "the format of strftime_now()");
    if (!gmtime_r(&now, &when)) jinja_fail(s, MR_ERR_FORMAT, "the time is beyond any year");
    for (size_t at = 0; at < format->bytes; at++) {
        char text[128];
        if (format->data[at] != '%') {
            jinja_add_part(s, &b, format, at, 1);
            continue;
        }
        const size_t first = at++;
        const bool bare = at < format->bytes && format->data[at] == '-';
        at += bare;
        const char directive = at < format->bytes ? format->data[at] : '\0';
        if (bare ? !spell_number(text, sizeof(text), directive, true, &when)
                 : !spell_directive(text, sizeof(text), directive, &when))
            jinja_fail(s, MR_ERR_UNSUPPORTED, "%%%s%c in strftime_now() is not supported",
                       bare ? "-" : "", directive);
        jinja_add(s, &b, text, strlen(text), jinja_user_wrote(format, first));
    }
    return jinja_text(jinja_built(s, &b));
}

/* --- helpers of loops ------------------------------------------------------------------------- */

static jinja_value g_cycler(jinja_state *s, const jinja_args *args) {
    jinja_object *object = jinja_alloc(s, sizeof(*object));
    if (args->named > 0 || args->count == 0)
        jinja_fail(s, MR_ERR_FORMAT, "cycler() takes at least one item");
    object->items = args->items;
    object->count = args->count;
    return (jinja_value){.kind = JINJA_CYCLER, .object = object};
}

static jinja_value g_joiner(jinja_state *s, const jinja_args *args) {
    static const char *const names[] = {"sep"};
    jinja_value got[1];
    jinja_object *object = jinja_alloc(s, sizeof(*object));
    JINJA_BIND(s, "joiner()", names, 0, args, got);
    object->self = got[0].kind == JINJA_MISSING ? jinja_string_literal(s, ", ") : got[0];
    return (jinja_value){.kind = JINJA_JOINER, .object = object};
}

static jinja_value g_lipsum(jinja_state *s, const jinja_args *args) {
    (void)args;
    jinja_fail(s, MR_ERR_UNSUPPORTED, "the function 'lipsum' is not supported");
}

static const struct {
    const char *name;
    jinja_value (*call)(jinja_state *s, const jinja_args *args);
} functions[] = {
    {"range", g_range},
    {"dict", g_dict},
    {"namespace", g_namespace},
    {"raise_exception", g_raise_exception},
    {"strftime_now", g_strftime_now},
    {"cycler", g_cycler},
    {"joiner", g_joiner},
    {"lipsum", g_lipsum},
};

jinja_value jinja_global(const jinja_string *name) {
    for (uint32_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
        if (jinja_string_is(name, functions[i].name))
            return (jinja_value){.kind = JINJA_FUNCTION, .number = i};
    return (jinja_value){.kind = JINJA_MISSING};
}

jinja_value jinja_call_global(jinja_state *s, uint32_t which, const jinja_args *args) {
    return functions[which].call(s, args);
}
