/* tokenizer_pre.c - pre-tokenizers: cutting text into the words that merging never crosses.
 *
 * The expressions in tokenizer.json are written for Oniguruma; PCRE2 reads nearly all of them the
 * same way. The differences that matter are translated: white space and word characters are spelled
 * out as Unicode's properties (PCRE2 counts U+180E as space), \uXXXX becomes \x{XXXX}, ^ and $
 * match at lines. Sets within sets and && are refused, since PCRE2 would quietly read them
 * otherwise. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define SPACES                                                                                     \
    "\\t-\\r "                                                                                     \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define WORDS "\\p{Alphabetic}\\p{M}\\p{N}\\p{Pc}"

static const char byte_level_expression[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

size_t tokenizer_space(const char *text, size_t bytes) {
    size_t length;
    if (bytes == 0 || mr_utf8_step(text, bytes, &length) != MR_UTF8_VALID) return 0;
    const uint8_t *u = (const uint8_t *)text;
    if (length == 1) return (u[0] >= 9 && u[0] <= 13) || u[0] == ' ' ? 1 : 0;
    if (length == 2) return u[0] == 0xc2 && (u[1] == 0x85 || u[1] == 0xa0) ? 2 : 0;
    if (length != 3) return 0;
    const uint32_t c = (u[0] & 15u) << 12 | (u[1] & 63u) << 6 | (u[2] & 63u);
    const bool space = c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
                       c == 0x202f || c == 0x205f || c == 0x3000;
    return space ? 3 : 0;
}

/* One escape of the source, at[0] = '\\'; returns how many bytes it took. */
static size_t translate_escape(mr_text *out, const char *at, size_t bytes, bool in_set) {
    if (bytes < 2) {
        mr_text_add(out, at, bytes);
        return bytes;
    }
    const char *set = at[1] == 's' || at[1] == 'S' ? SPACES : WORDS;
    switch (at[1]) {
    case 's':
    case 'w':
        mr_text_format(out, in_set ? "%s" : "[%s]", set);
        return 2;
    case 'S':
    case 'W':
        if (in_set) break; /* PCRE2's own meaning: it differs in U+180E and a few marks */
        mr_text_format(out, "[^%s]", set);
        return 2;
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

static mr_status translate(mr_text *out, const char *source, size_t bytes, mr_err *err) {
    bool in_set = false;
    for (size_t at = 0; at < bytes;) {
        const char c = source[at];
        const char next = at + 1 < bytes ? source[at + 1] : '\0';
        if (c == '\\') {
            at += translate_escape(out, source + at, bytes - at, in_set);
            continue;
        }
        if (in_set && ((c == '[' && next != ':') || (c == '&' && next == '&')))
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "pre_tokenizer: the expression uses sets within sets ([..[..]] or &&)");
        mr_text_add(out, &c, 1);
        at++;
        if (!in_set && c == '[') {
            in_set = true;
            if (at < bytes && source[at] == '^') mr_text_add(out, &source[at++], 1);
            if (at < bytes && source[at] == ']') mr_text_add(out, &source[at++], 1);
        } else if (in_set && c == '[') { /* a POSIX class, to its end */
            while (at < bytes && source[at] != ']') mr_text_add(out, &source[at++], 1);
            if (at < bytes) mr_text_add(out, &source[at++], 1);
        } else if (in_set && c == ']')
            in_set = false;
    }
    return MR_OK;
}

static mr_status compile(pcre2_code **out, const char *source, size_t bytes, bool literal,
                         mr_err *err) {
    mr_text text = {0};
    int code;
    PCRE2_SIZE where;
    *out = NULL;
    if (bytes == 0 || bytes > MR_MAX_REGEX_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "pre_tokenizer: an expression of %zu bytes (1 to %d)",
                       bytes, MR_MAX_REGEX_BYTES);
    mr_status status = MR_OK;
    if (literal)
        mr_text_add(&text, source, bytes);
    else
        status = translate(&text, source, bytes, err);
    if (status != MR_OK) goto free_text;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(context, 100);
    }
    const uint32_t flags = literal
                               ? PCRE2_UTF | PCRE2_LITERAL
                               : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    *out =
        pcre2_compile((PCRE2_SPTR)mr_text_string(&text), text.bytes, flags, &code, &where, context);
    pcre2_compile_context_free(context);
    if (!*out) {
        PCRE2_UCHAR reason[128] = {0};
        pcre2_get_error_message(code, reason, sizeof(reason));
        status = mr_fail(err, MR_ERR_FORMAT, "pre_tokenizer: the expression is not understood: %s",
                         (const char *)reason);
        goto free_text;
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* where it fails, matching is interpreted */
free_text:
    mr_text_free(&text);
    return status;
}

static mr_status read_pattern(tokenizer_stage *stage, const json_t *item, mr_err *err) {
    const json_t *pattern = json_object_get(item, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *string = json_object_get(pattern, "String");
    if (json_is_string(regex))
        return compile(&stage->code, json_string_value(regex), json_string_length(regex), false,
                       err);
    if (json_is_string(string))
        return compile(&stage->code, json_string_value(string), json_string_length(string), true,
                       err);
    return mr_fail(err, MR_ERR_FORMAT,
                   "pre_tokenizer: Split needs a pattern with a Regex or a String");
}

static mr_status read_split(tokenizer_stage *stage, const json_t *item, mr_err *err) {
    const char *behavior = "";
    mr_status status = mr_json_string(&behavior, item, "behavior", err);
    if (status == MR_OK) status = mr_json_bool(&stage->invert, item, "invert", err);
    if (status != MR_OK) return status;
    if (strcmp(behavior, "Removed") == 0)
        stage->remove = true;
    else if (strcmp(behavior, "Isolated") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "pre_tokenizer: Split behavior '%.40s' is not supported", behavior);
    return read_pattern(stage, item, err);
}

static mr_status read_byte_level(tokenizer_stage *stage, const json_t *item, mr_err *err) {
    bool use_regex = true;
    stage->prefix_space = true; /* the reference's default */
    mr_status status = mr_json_bool(&stage->prefix_space, item, "add_prefix_space", err);
    if (status == MR_OK) status = mr_json_bool(&use_regex, item, "use_regex", err);
    if (status != MR_OK || !use_regex) return status;
    return compile(&stage->code, byte_level_expression, sizeof(byte_level_expression) - 1, false,
                   err);
}

static mr_status read_item(mr_tokenizer *t, const json_t *item, bool *ended, mr_err *err) {
    const char *type = "";
    const mr_status status = mr_json_string(&type, item, "type", err);
    if (status != MR_OK) return status;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(item, "pretokenizers");
        size_t i;
        json_t *part;
        if (!json_is_array(list))
            return mr_fail(err, MR_ERR_FORMAT, "pre_tokenizer: a Sequence without pretokenizers");
        json_array_foreach(list, i, part) {
            const mr_status inner = read_item(t, part, ended, err);
            if (inner != MR_OK) return inner;
        }
        return MR_OK;
    }
    if (*ended)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "pre_tokenizer: '%.40s' after ByteLevel", type);
    if (t->stage_count == MR_MAX_PRE_TOKENIZERS)
        return mr_fail(err, MR_ERR_LIMIT, "pre_tokenizer: more than %d of them in a Sequence",
                       MR_MAX_PRE_TOKENIZERS);
    tokenizer_stage *stage = &t->stages[t->stage_count++];
    if (strcmp(type, "Split") == 0) return read_split(stage, item, err);
    if (strcmp(type, "Digits") == 0) {
        bool individual = false;
        const mr_status inner = mr_json_bool(&individual, item, "individual_digits", err);
        const char *digits = individual ? "\\p{N}" : "\\p{N}+";
        return inner != MR_OK ? inner : compile(&stage->code, digits, strlen(digits), false, err);
    }
    if (strcmp(type, "ByteLevel") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "pre_tokenizer '%.40s' is not supported", type);
    *ended = true;
    return read_byte_level(stage, item, err);
}

mr_status tokenizer_read_pre(mr_tokenizer *t, const json_t *root, mr_err *err) {
    bool ended = false;
    static const char word_character[] = /* as Rust's regex, which the reference uses for it */
        "\\A[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]";
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    if (!json_is_object(pre))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "pre_tokenizer must be ByteLevel, not %s",
                       mr_json_type_name(pre));
    mr_status status = read_item(t, pre, &ended, err);
    if (status != MR_OK) return status;
    if (!ended)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "pre_tokenizer does not end with ByteLevel: this is not a byte-level "
                       "vocabulary");
    return compile(&t->word_character, word_character, sizeof(word_character) - 1, false, err);
}

bool tokenizer_is_word_character(const mr_tokenizer *t, const char *text, size_t bytes) {
    size_t length;
    if (bytes == 0 || mr_utf8_step(text, bytes, &length) != MR_UTF8_VALID) return false;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match) return false;
    const int found = pcre2_match(t->word_character, (PCRE2_SPTR)text, length, 0,
                                  PCRE2_NO_UTF_CHECK, match, NULL);
    pcre2_match_data_free(match);
    return found >= 0;
}

static mr_status run_stage(tokenizer_run *run, uint32_t stage, const char *text, size_t bytes);

static mr_status emit(tokenizer_run *run, uint32_t stage, const char *text, size_t bytes,
                      bool is_match) {
    const tokenizer_stage *s = &run->tokenizer->stages[stage];
    if (bytes == 0 || (s->remove && is_match != s->invert)) return MR_OK;
    if (stage + 1 == run->tokenizer->stage_count) return tokenizer_merge_word(run, text, bytes);
    return run_stage(run, stage + 1, text, bytes);
}

static int match_at(tokenizer_run *run, uint32_t stage, const char *text, size_t bytes,
                    size_t from) {
    pcre2_match_data *match = run->match[stage];
    const pcre2_code *code = run->tokenizer->stages[stage].code;
    int found =
        pcre2_match(code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK, match, run->limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its stack on the heap */
        found = pcre2_match(code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                            match, run->limits);
    return found;
}

static mr_status split_by_code(tokenizer_run *run, uint32_t stage, const char *text, size_t bytes) {
    size_t done = 0, from = 0, last_end = SIZE_MAX;
    while (from <= bytes) {
        const int found = match_at(run, stage, text, bytes, from);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0)
            return mr_fail(run->err, MR_ERR_LIMIT,
                           "the pre_tokenizer's expression needs too many steps for this text "
                           "(PCRE2 error %d)",
                           found);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(run->match[stage]);
        const size_t start = range[0], end = range[1];
        if (start > end || start < done) break; /* \K tricks: nothing sensible can follow */
        if (start == end && end == last_end) {  /* an empty match right after a match: step on */
            size_t length = 1;
            if (from < bytes) mr_utf8_step(text + from, bytes - from, &length);
            from += length;
            continue;
        }
        mr_status status = emit(run, stage, text + done, start - done, false);
        if (status == MR_OK) status = emit(run, stage, text + start, end - start, true);
        if (status != MR_OK) return status;
        done = from = last_end = end;
    }
    return emit(run, stage, text + done, bytes - done, false);
}

static mr_status run_stage(tokenizer_run *run, uint32_t stage, const char *text, size_t bytes) {
    const tokenizer_stage *s = &run->tokenizer->stages[stage];
    char *prefixed = NULL;
    mr_status status;
    if (s->prefix_space && text[0] != ' ') {
        prefixed = malloc(bytes + 1);
        if (!prefixed) return mr_fail(run->err, MR_ERR_NOMEM, "no memory to tokenize");
        prefixed[0] = ' ';
        memcpy(prefixed + 1, text, bytes);
        text = prefixed;
        bytes++;
    }
    if (s->code)
        status = split_by_code(run, stage, text, bytes);
    else
        status = emit(run, stage, text, bytes, false);
    free(prefixed);
    return status;
}

mr_status tokenizer_split(tokenizer_run *run, const char *text, size_t bytes) {
    size_t start = 0, at = 0, length;
    while (at < bytes) {
        while (at < bytes && mr_utf8_step(text + at, bytes - at, &length) == MR_UTF8_VALID)
            at += length;
        if (at > start) {
            const mr_status status = run_stage(run, 0, text + start, at - start);
            if (status != MR_OK) return status;
        }
        start = at;
        while (at < bytes && mr_utf8_step(text + at, bytes - at, &length) != MR_UTF8_VALID)
            at += length;
        if (at > start) {
            const mr_status status = tokenizer_merge_word(run, text + start, at - start);
            if (status != MR_OK) return status;
        }
        start = at;
    }
    return MR_OK;
}
