/* tokenizer_regex.c - the patterns of tokenizer.json: strings and regular expressions.
 *
 * The expressions are written for Oniguruma; PCRE2 reads nearly all of them the same way. The
 * differences that matter are translated: white space, word characters and the usual properties
 * become sets with the members of the reference's Unicode version (PCRE2's scripts are wider),
 * \uXXXX becomes \x{XXXX}, ^ and $ match at lines. Sets within sets and && are
 * refused, since PCRE2 would quietly read them otherwise. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define SPACES                                                                                     \
    "\\t-\\r "                                                                                     \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

static const tokenizer_property *find_property(const char *name, size_t bytes) {
    for (size_t i = 0; i < tokenizer_properties_count; i++) {
        const tokenizer_property *p = &tokenizer_properties[i];
        if (strlen(p->name) == bytes && memcmp(p->name, name, bytes) == 0) return p;
    }
    return NULL;
}

/* How an expression is being written. */
typedef struct {
    mr_text *out;
    bool in_set;
    bool exact; /* with the younger members */
} writing;

static void add_members(const writing *w, const tokenizer_property *p, bool negated) {
    const char *more = w->exact ? p->more : "";
    if (w->in_set)
        mr_text_format(w->out, "%s%s", p->inner, more);
    else if (!negated && *more == '\0' && strchr(p->inner, '}')[1] == '\0')
        mr_text_add_string(w->out, p->inner); /* the property itself: the fastest */
    else
        mr_text_format(w->out, "[%s%s%s]", negated ? "^" : "", p->inner, more);
}

/* \p{NAME}, \P{NAME} and \p{^NAME}; 0: not one that needs translating. */
static size_t translate_property(const writing *w, const char *at, size_t bytes) {
    bool negated = at[1] == 'P';
    const char *end = bytes > 3 && at[2] == '{' ? memchr(at, '}', bytes) : NULL;
    if (!end) return 0;
    const char *name = at + 3;
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    const tokenizer_property *p = find_property(name, (size_t)(end - name));
    if (!p || (w->in_set && negated)) return 0; /* a set cannot take away: PCRE2's own meaning */
    add_members(w, p, negated);
    return (size_t)(end - at) + 1;
}

/* One escape of the source, at[0] = '\\'; returns how many bytes it took. */
static size_t translate_escape(const writing *w, const char *at, size_t bytes) {
    mr_text *out = w->out;
    const bool in_set = w->in_set;
    if (bytes < 2) {
        mr_text_add(out, at, bytes);
        return bytes;
    }
    const bool negated = at[1] == 'S' || at[1] == 'W' || at[1] == 'D';
    const char lower[] = {(char)(at[1] | 32), '\0'};
    switch (at[1]) {
    case 's':
    case 'S':
        if (in_set && negated) break; /* PCRE2's own meaning: it differs in U+180E and U+0085 */
        mr_text_format(out, in_set ? "%.0s%s" : "[%s%s]", negated ? "^" : "", SPACES);
        return 2;
    case 'w':
    case 'W':
    case 'd':
    case 'D':
        if (in_set && negated) break;
        add_members(w, find_property(lower, 1), negated);
        return 2;
    case 'p':
    case 'P': {
        const size_t taken = translate_property(w, at, bytes);
        if (taken > 0) return taken;
        break;
    }
    case 'u':
        if (bytes < 6) break;
        mr_text_format(out, "\\x{%.4s}", at + 2);
        return 6;
    default:
        break;
    }
    mr_text_add(out, at, 2);
    return 2;
}

static mr_status translate(mr_text *out, const char *source, size_t bytes, bool exact,
                           const char *what, mr_err *err) {
    writing w = {.out = out, .exact = exact};
    for (size_t at = 0; at < bytes;) {
        const char c = source[at];
        const char next = at + 1 < bytes ? source[at + 1] : '\0';
        if (c == '\\') {
            at += translate_escape(&w, source + at, bytes - at);
            continue;
        }
        if (w.in_set && ((c == '[' && next != ':') || (c == '&' && next == '&')))
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "%s: the expression uses sets within sets ([..[..]] or &&)", what);
        mr_text_add(out, &c, 1);
        at++;
        if (!w.in_set && c == '[') {
            w.in_set = true;
            if (at < bytes && source[at] == '^') mr_text_add(out, &source[at++], 1);
            if (at < bytes && source[at] == ']') mr_text_add(out, &source[at++], 1);
        } else if (w.in_set && c == '[') { /* a POSIX class, to its end */
            while (at < bytes && source[at] != ']') mr_text_add(out, &source[at++], 1);
            if (at < bytes) mr_text_add(out, &source[at++], 1);
        } else if (w.in_set && c == ']')
            w.in_set = false;
    }
    return MR_OK;
}

static mr_status compile(pcre2_code **out, const mr_text *text, const char *what, mr_err *err) {
    int code;
    PCRE2_SIZE where;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(context, 100);
    }
    const uint32_t flags = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    *out =
        pcre2_compile((PCRE2_SPTR)mr_text_string(text), text->bytes, flags, &code, &where, context);
    pcre2_compile_context_free(context);
    if (!*out) {
        PCRE2_UCHAR reason[128] = {0};
        pcre2_get_error_message(code, reason, sizeof(reason));
        return mr_fail(err, MR_ERR_FORMAT, "%s: the expression is not understood: %s", what,
                       (const char *)reason);
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* where it fails, it is interpreted */
    return MR_OK;
}

mr_status tokenizer_pattern_compile(tokenizer_pattern *pattern, const char *source, size_t bytes,
                                    const char *what, mr_err *err) {
    mr_text text = {0}, exact = {0};
    if (bytes == 0 || bytes > MR_MAX_REGEX_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: an expression of %zu bytes (1 to %d)", what, bytes,
                       MR_MAX_REGEX_BYTES);
    mr_status status = translate(&text, source, bytes, false, what, err);
    if (status == MR_OK) status = compile(&pattern->code, &text, what, err);
    if (status == MR_OK) status = translate(&exact, source, bytes, true, what, err);
    if (status == MR_OK && exact.bytes != text.bytes)
        status = compile(&pattern->exact, &exact, what, err);
    mr_text_free(&text);
    mr_text_free(&exact);
    return status;
}

mr_status tokenizer_pattern_read(tokenizer_pattern *pattern, const json_t *item, const char *what,
                                 mr_err *err) {
    const json_t *value = json_object_get(item, "pattern");
    const json_t *regex = json_object_get(value, "Regex");
    const json_t *string = json_object_get(value, "String");
    if (json_is_string(regex))
        return tokenizer_pattern_compile(pattern, json_string_value(regex),
                                         json_string_length(regex), what, err);
    if (!json_is_string(string))
        return mr_fail(err, MR_ERR_FORMAT, "%s needs a pattern with a Regex or a String", what);
    const size_t bytes = json_string_length(string);
    if (bytes == 0 || bytes > MR_MAX_REGEX_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: a pattern of %zu bytes (1 to %d)", what, bytes,
                       MR_MAX_REGEX_BYTES);
    pattern->string = mr_strndup(json_string_value(string), bytes);
    pattern->bytes = bytes;
    return MR_OK;
}

void tokenizer_pattern_free(tokenizer_pattern *pattern) {
    pcre2_code_free(pattern->code);
    pcre2_code_free(pattern->exact);
    free(pattern->string);
    *pattern = (tokenizer_pattern){0};
}

static int match_at(const tokenizer_finder *f, size_t from) {
    pcre2_match_data *match = f->run->match;
    const pcre2_code *code =
        f->run->has_young && f->pattern->exact ? f->pattern->exact : f->pattern->code;
    int found = pcre2_match(code, (PCRE2_SPTR)f->text, f->bytes, from, PCRE2_NO_UTF_CHECK, match,
                            f->run->limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its stack on the heap */
        found = pcre2_match(code, (PCRE2_SPTR)f->text, f->bytes, from,
                            PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, f->run->limits);
    return found;
}

static bool next_string(tokenizer_finder *f, size_t *start, size_t *end) {
    const char *found =
        memmem(f->text + f->from, f->bytes - f->from, f->pattern->string, f->pattern->bytes);
    if (!found) return false;
    *start = (size_t)(found - f->text);
    *end = f->from = *start + f->pattern->bytes;
    return true;
}

tokenizer_finder tokenizer_finder_open(tokenizer_run *run, const tokenizer_pattern *pattern,
                                       const char *text, size_t bytes) {
    return (tokenizer_finder){run, pattern, text, bytes, 0, SIZE_MAX, MR_OK};
}

bool tokenizer_finder_next(tokenizer_finder *f, size_t *start, size_t *end) {
    if (f->bytes == 0) return false;
    if (f->pattern->string) return next_string(f, start, end);
    while (f->from <= f->bytes) {
        const int found = match_at(f, f->from);
        if (found == PCRE2_ERROR_NOMATCH) return false;
        if (found < 0) {
            f->status = mr_fail(f->run->err, MR_ERR_LIMIT,
                                "an expression of the tokenizer needs too many steps for this "
                                "text (PCRE2 error %d)",
                                found);
            return false;
        }
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(f->run->match);
        *start = range[0];
        *end = range[1];
        if (*start > *end || (f->last_end != SIZE_MAX && *start < f->last_end))
            return false;                            /* \K tricks: nothing sensible can follow */
        if (*start == *end && *end == f->last_end) { /* empty, right behind a match: step on */
            f->from += f->from < f->bytes ? tokenizer_character_bytes(f->text[f->from]) : 1;
            continue;
        }
        f->from = f->last_end = *end;
        return true;
    }
    return false;
}
