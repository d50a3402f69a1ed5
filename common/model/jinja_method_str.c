/* jinja_method_str.c - the methods of str. */
#include "common/model/jinja_eval.h"

#include <string.h>

static const jinja_string *own(const jinja_value *self) {
    return self->s;
}

static void no_arguments(jinja_state *s, const jinja_args *args) {
    jinja_bind(s, "the method", NULL, 0, 0, args, NULL);
}

static bool is_given(const jinja_value *v) {
    return v->kind != JINJA_MISSING && v->kind != JINJA_NONE;
}

/* --- case and padding ------------------------------------------------------------------------- */

static jinja_value str_upper(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_convert(s, own(self), JINJA_TO_UPPER));
}

static jinja_value str_lower(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_convert(s, own(self), JINJA_TO_LOWER));
}

static jinja_value str_title(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_title_case(s, own(self)));
}

static jinja_value str_capitalize(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_capitalize(s, own(self)));
}

static jinja_value str_swapcase(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_text(jinja_swap_case(s, own(self)));
}

static jinja_value pad(jinja_state *s, const jinja_value *self, const jinja_args *args, int sides) {
    static const char *const names[] = {"width", "fillchar"};
    jinja_value got[2];
    JINJA_BIND(s, "the method", names, 1, args, got);
    const int64_t width = jinja_want_int(s, &got[0], "the width");
    const jinja_value blank = jinja_string_literal(s, " ");
    const jinja_value *fill = got[1].kind == JINJA_MISSING ? &blank : &got[1];
    return jinja_text(
        jinja_center(s, own(self), width, jinja_want_string(s, fill, "the fill character"), sides));
}

static jinja_value str_center(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return pad(s, self, args, JINJA_LEFT | JINJA_RIGHT);
}

static jinja_value str_ljust(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return pad(s, self, args, JINJA_RIGHT);
}

static jinja_value str_rjust(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return pad(s, self, args, JINJA_LEFT);
}

static jinja_value str_zfill(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"width"};
    jinja_value got[1];
    JINJA_BIND(s, "zfill()", names, 1, args, got);
    const int64_t width = jinja_want_int(s, &got[0], "the width");
    const jinja_string *in = own(self), *zero = jinja_string_of(s, "0", 1, false);
    const bool has_sign = in->bytes > 0 && (in->data[0] == '-' || in->data[0] == '+');
    if (!has_sign) return jinja_text(jinja_center(s, in, width, zero, JINJA_LEFT));
    const jinja_string *rest = jinja_string_part(s, in, 1, in->bytes - 1);
    rest = jinja_center(s, rest, width > 0 ? width - 1 : 0, zero, JINJA_LEFT);
    return jinja_text(jinja_concat(s, jinja_string_part(s, in, 0, 1), rest));
}

/* --- stripping and splitting ------------------------------------------------------------------ */

static jinja_value strip(jinja_state *s, const jinja_value *self, const jinja_args *args,
                         int sides) {
    static const char *const names[] = {"chars"};
    jinja_value got[1];
    JINJA_BIND(s, "strip()", names, 0, args, got);
    const jinja_string *chars =
        is_given(&got[0]) ? jinja_want_string(s, &got[0], "what is stripped") : NULL;
    return jinja_text(jinja_strip(s, own(self), chars, sides));
}

static jinja_value str_strip(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return strip(s, self, args, JINJA_LEFT | JINJA_RIGHT);
}

static jinja_value str_lstrip(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return strip(s, self, args, JINJA_LEFT);
}

static jinja_value str_rstrip(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return strip(s, self, args, JINJA_RIGHT);
}

static jinja_value split(jinja_state *s, const jinja_value *self, const jinja_args *args,
                         bool from_right) {
    static const char *const names[] = {"sep", "maxsplit"};
    jinja_value got[2];
    JINJA_BIND(s, "split()", names, 0, args, got);
    const jinja_string *separator =
        is_given(&got[0]) ? jinja_want_string(s, &got[0], "the separator") : NULL;
    const int64_t most = got[1].kind == JINJA_MISSING ? -1 : jinja_want_int(s, &got[1], "maxsplit");
    const jinja_items items = jinja_split(s, own(self), separator, most, from_right);
    return jinja_list_of(s, items.items, items.count);
}

static jinja_value str_split(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return split(s, self, args, false);
}

static jinja_value str_rsplit(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return split(s, self, args, true);
}

static jinja_value str_splitlines(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"keepends"};
    jinja_value got[1];
    JINJA_BIND(s, "splitlines()", names, 0, args, got);
    const jinja_items items = jinja_split_lines(s, own(self), jinja_truth(s, &got[0]));
    return jinja_list_of(s, items.items, items.count);
}

static jinja_value partition(jinja_state *s, const jinja_value *self, const jinja_args *args,
                             bool from_right) {
    static const char *const names[] = {"sep"};
    jinja_value got[1];
    JINJA_BIND(s, "partition()", names, 1, args, got);
    const jinja_string *in = own(self), *sep = jinja_want_string(s, &got[0], "the separator");
    if (sep->bytes == 0) jinja_fail(s, MR_ERR_FORMAT, "empty separator");
    const size_t at =
        from_right ? jinja_string_find_last(s, in, sep) : jinja_string_find(s, in, sep, 0);
    const jinja_value empty = jinja_string_literal(s, "");
    jinja_value *items = jinja_alloc_array(s, 3, sizeof(*items));
    for (int i = 0; i < 3; i++) items[i] = empty;
    if (at == SIZE_MAX)
        items[from_right ? 2 : 0] = *self;
    else {
        const size_t end = at + sep->bytes;
        items[0] = jinja_text(jinja_string_part(s, in, 0, at));
        items[1] = jinja_text(sep);
        items[2] = jinja_text(jinja_string_part(s, in, end, in->bytes - end));
    }
    return jinja_tuple_of(s, items, 3);
}

static jinja_value str_partition(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return partition(s, self, args, false);
}

static jinja_value str_rpartition(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return partition(s, self, args, true);
}

static jinja_value str_replace(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"old", "new", "count"};
    jinja_value got[3];
    JINJA_BIND(s, "replace()", names, 2, args, got);
    const jinja_string *old = jinja_want_string(s, &got[0], "what is replaced");
    const jinja_string *to = jinja_want_string(s, &got[1], "the replacement");
    const int64_t most = got[2].kind == JINJA_MISSING ? -1 : jinja_want_int(s, &got[2], "count");
    return jinja_text(jinja_replace(s, own(self), old, to, most));
}

static jinja_value str_join(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    static const char *const names[] = {"iterable"};
    jinja_value got[1];
    JINJA_BIND(s, "join()", names, 1, args, got);
    return jinja_text(jinja_join(s, own(self), jinja_iterate(s, &got[0]), false));
}

static jinja_value remove_affix(jinja_state *s, const jinja_value *self, const jinja_args *args,
                                bool is_prefix) {
    static const char *const names[] = {"affix"};
    jinja_value got[1];
    JINJA_BIND(s, "the method", names, 1, args, got);
    const jinja_string *in = own(self), *affix = jinja_want_string(s, &got[0], "what is removed");
    if (affix->bytes > in->bytes) return *self;
    const size_t rest = in->bytes - affix->bytes;
    if (memcmp(in->data + (is_prefix ? 0 : rest), affix->data, affix->bytes) != 0) return *self;
    return jinja_text(jinja_string_part(s, in, is_prefix ? affix->bytes : 0, rest));
}

static jinja_value str_removeprefix(jinja_state *s, const jinja_value *self,
                                    const jinja_args *args) {
    return remove_affix(s, self, args, true);
}

static jinja_value str_removesuffix(jinja_state *s, const jinja_value *self,
                                    const jinja_args *args) {
    return remove_affix(s, self, args, false);
}

/* --- searching -------------------------------------------------------------------------------- */

/* self[start:end] of the arguments behind the first one; *first: in characters. false: start lies
 * beyond the end, where not even nothing is found. */
static bool window(jinja_state *s, const jinja_string *in, const jinja_value bounds[2],
                   const jinja_string **out, size_t *first) {
    const jinja_value whole = jinja_text(in);
    size_t length;
    *first = 0;
    *out = in;
    if (!is_given(&bounds[0]) && !is_given(&bounds[1])) return true;
    jinja_length(s, &whole, &length);
    int64_t start = 0, end = (int64_t)length;
    if (is_given(&bounds[0])) start = jinja_want_int(s, &bounds[0], "start");
    if (is_given(&bounds[1])) end = jinja_want_int(s, &bounds[1], "end");
    if (start < 0 && (start += (int64_t)length) < 0) start = 0;
    if (end < 0 && (end += (int64_t)length) < 0) end = 0;
    if (end > (int64_t)length) end = (int64_t)length;
    if (start > end) return false;
    *first = (size_t)start;
    jinja_spend_walk(s, in->bytes);
    const size_t from = jinja_char_offset(in->data, in->bytes, (size_t)start);
    const size_t to = jinja_char_offset(in->data, in->bytes, (size_t)end);
    *out = jinja_string_part(s, in, from, to - from);
    return true;
}

static const char *const search_names[] = {"sub", "start", "end"};

static int64_t find(jinja_state *s, const jinja_value *self, const jinja_args *args, bool last) {
    jinja_value got[3];
    const jinja_string *in;
    size_t first;
    JINJA_BIND(s, "find()", search_names, 1, args, got);
    const jinja_string *what = jinja_want_string(s, &got[0], "what is searched");
    if (!window(s, own(self), &got[1], &in, &first)) return -1;
    const size_t at =
        last ? jinja_string_find_last(s, in, what) : jinja_string_find(s, in, what, 0);
    if (at == SIZE_MAX) return -1;
    jinja_spend_walk(s, at);
    return (int64_t)(first + jinja_char_count(in->data, at));
}

static jinja_value str_find(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return jinja_int(find(s, self, args, false));
}

static jinja_value str_rfind(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return jinja_int(find(s, self, args, true));
}

static jinja_value str_index(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    const int64_t at = find(s, self, args, false);
    if (at < 0) jinja_fail(s, MR_ERR_FORMAT, "substring not found");
    return jinja_int(at);
}

static jinja_value str_rindex(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    const int64_t at = find(s, self, args, true);
    if (at < 0) jinja_fail(s, MR_ERR_FORMAT, "substring not found");
    return jinja_int(at);
}

static jinja_value str_count(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    jinja_value got[3];
    const jinja_string *in;
    size_t first;
    int64_t count = 0;
    JINJA_BIND(s, "count()", search_names, 1, args, got);
    const jinja_string *what = jinja_want_string(s, &got[0], "what is counted");
    if (!window(s, own(self), &got[1], &in, &first)) return jinja_int(0);
    jinja_spend_walk(s, what->bytes == 0 ? in->bytes : 0);
    if (what->bytes == 0) return jinja_int((int64_t)jinja_char_count(in->data, in->bytes) + 1);
    for (size_t at = 0; (at = jinja_string_find(s, in, what, at)) != SIZE_MAX; at += what->bytes)
        count++;
    return jinja_int(count);
}

static bool has_affix(jinja_state *s, const jinja_string *in, const jinja_value *affix,
                      bool is_prefix) {
    const jinja_string *a = jinja_want_string(s, affix, "what it starts or ends with");
    return a->bytes <= in->bytes &&
           memcmp(in->data + (is_prefix ? 0 : in->bytes - a->bytes), a->data, a->bytes) == 0;
}

static jinja_value affix(jinja_state *s, const jinja_value *self, const jinja_args *args,
                         bool is_prefix) {
    jinja_value got[3];
    const jinja_string *in;
    size_t first;
    JINJA_BIND(s, is_prefix ? "startswith()" : "endswith()", search_names, 1, args, got);
    const bool inside = window(s, own(self), &got[1], &in, &first);
    if (got[0].kind != JINJA_TUPLE)
        return jinja_bool(has_affix(s, in, &got[0], is_prefix) && inside);
    bool any = false;
    for (size_t i = 0; i < got[0].list->count && !any; i++)
        any = has_affix(s, in, &got[0].list->items[i], is_prefix) && inside;
    return jinja_bool(any);
}

static jinja_value str_startswith(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return affix(s, self, args, true);
}

static jinja_value str_endswith(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return affix(s, self, args, false);
}

/* --- questions -------------------------------------------------------------------------------- */

static jinja_value ask(jinja_state *s, const jinja_value *self, const jinja_args *args,
                       uint32_t flags) {
    no_arguments(s, args);
    return jinja_bool(jinja_all_are(s, self->s, flags));
}

static jinja_value str_isalpha(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return ask(s, self, args, JINJA_ALPHA);
}

static jinja_value str_isalnum(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return ask(s, self, args, JINJA_ALNUM);
}

static jinja_value str_isdigit(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return ask(s, self, args, JINJA_DIGIT | JINJA_DECIMAL);
}

static jinja_value str_isdecimal(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return ask(s, self, args, JINJA_DECIMAL);
}

static jinja_value str_isnumeric(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return ask(s, self, args, JINJA_NUMERIC);
}

static jinja_value str_isspace(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return ask(s, self, args, JINJA_SPACE);
}

static jinja_value str_isprintable(jinja_state *s, const jinja_value *self,
                                   const jinja_args *args) {
    return jinja_bool(ask(s, self, args, JINJA_PRINTABLE).is || self->s->bytes == 0);
}

static jinja_value str_isascii(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    jinja_spend_walk(s, self->s->bytes);
    for (size_t i = 0; i < self->s->bytes; i++)
        if ((uint8_t)self->s->data[i] >= 0x80) return jinja_bool(false);
    return jinja_bool(true);
}

static jinja_value str_isupper(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_bool(jinja_is_cased(s, own(self), true));
}

static jinja_value str_islower(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    no_arguments(s, args);
    return jinja_bool(jinja_is_cased(s, own(self), false));
}

/* Every word begins with upper or title case and goes on in lower case. */
static jinja_value str_istitle(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    const jinja_string *in = own(self);
    bool in_word = false, any = false;
    no_arguments(s, args);
    jinja_spend_lookups(s, in->bytes);
    for (size_t at = 0; at < in->bytes;) {
        uint32_t c;
        at += jinja_char_at(in->data + at, in->bytes - at, &c);
        const uint32_t flags = jinja_char_flags(c);
        if (in_word ? flags & (JINJA_UPPER | JINJA_TITLE) : flags & JINJA_LOWER)
            return jinja_bool(false);
        in_word = (flags & (JINJA_UPPER | JINJA_TITLE | JINJA_LOWER)) != 0;
        any |= in_word;
    }
    return jinja_bool(any);
}

/* --- the table -------------------------------------------------------------------------------- */

static jinja_value str_format(jinja_state *s, const jinja_value *self, const jinja_args *args) {
    return jinja_format(s, own(self), args);
}

static const struct {
    const char *name;
    jinja_method run; /* NULL: Python's only */
} methods[] = {
    {"capitalize", str_capitalize},
    {"casefold", NULL},
    {"center", str_center},
    {"count", str_count},
    {"encode", NULL},
    {"endswith", str_endswith},
    {"expandtabs", NULL},
    {"find", str_find},
    {"format", str_format},
    {"format_map", NULL},
    {"index", str_index},
    {"isalnum", str_isalnum},
    {"isalpha", str_isalpha},
    {"isascii", str_isascii},
    {"isdecimal", str_isdecimal},
    {"isdigit", str_isdigit},
    {"isidentifier", NULL},
    {"islower", str_islower},
    {"isnumeric", str_isnumeric},
    {"isprintable", str_isprintable},
    {"isspace", str_isspace},
    {"istitle", str_istitle},
    {"isupper", str_isupper},
    {"join", str_join},
    {"ljust", str_ljust},
    {"lower", str_lower},
    {"lstrip", str_lstrip},
    {"maketrans", NULL},
    {"partition", str_partition},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"replace", str_replace},
    {"rfind", str_rfind},
    {"rindex", str_rindex},
    {"rjust", str_rjust},
    {"rpartition", str_rpartition},
    {"rsplit", str_rsplit},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"splitlines", str_splitlines},
    {"startswith", str_startswith},
    {"strip", str_strip},
    {"swapcase", str_swapcase},
    {"title", str_title},
    {"translate", NULL},
    {"upper", str_upper},
    {"zfill", str_zfill},
};

jinja_method jinja_string_method(const jinja_string *name, bool *known) {
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
        if (jinja_string_is(name, methods[i].name)) {
            *known = true;
            return methods[i].run;
        }
    *known = false;
    return NULL;
}
