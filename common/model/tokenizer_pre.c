/* tokenizer_pre.c - pre-tokenizers: cutting text into the words that merging never crosses.
 *
 * A stage reports the matches of its pattern and what lies between them, in order and without a
 * gap; its behavior says which of these become one part. Every part goes through the next stage at
 * once, the last stage's parts are merged: no list of words is ever kept. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

static const char byte_level_expression[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* --- reading ---------------------------------------------------------------------------------- */

static mr_status read_behavior(tokenizer_behavior *out, const json_t *item, const char *type,
                               mr_err *err) {
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    const char *behavior = "Isolated"; /* the reference's default, of Punctuation only */
    const mr_status status = mr_json_string(&behavior, item, "behavior", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "pre_tokenizer %s", type);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(behavior, names[i]) != 0) continue;
        *out = (tokenizer_behavior)i;
        return MR_OK;
    }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "pre_tokenizer: %s behavior '%.40s' is not supported",
                   type, behavior);
}

static mr_status read_split(tokenizer_stage *stage, const json_t *item, mr_err *err) {
    mr_status status = read_behavior(&stage->behavior, item, "Split", err);
    if (status == MR_OK) status = mr_json_bool(&stage->invert, item, "invert", err);
    if (status != MR_OK) return status;
    return tokenizer_pattern_read(&stage->pattern, item, "pre_tokenizer Split", err);
}

mr_status tokenizer_read_metaspace(const json_t *item, const char *what, char replacement[4],
                                   size_t *bytes, tokenizer_prepend *prepend, mr_err *err) {
    const char *scheme = "always";
    bool prefix = true;
    mr_status status = tokenizer_read_character(replacement, bytes, item, "replacement", what, err);
    if (status == MR_OK) status = mr_json_string(&scheme, item, "prepend_scheme", err);
    if (status == MR_OK) status = mr_json_bool(&prefix, item, "add_prefix_space", err);
    if (status != MR_OK) return status;
    *prepend = PREPEND_ALWAYS;
    if (strcmp(scheme, "first") == 0)
        *prepend = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        *prepend = PREPEND_NEVER;
    else if (strcmp(scheme, "always") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: prepend_scheme '%.40s' is not supported", what,
                       scheme);
    if (!prefix && *prepend != PREPEND_NEVER)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: add_prefix_space is false, but prepend_scheme is '%s'", what, scheme);
    return MR_OK;
}

static mr_status read_metaspace(mr_tokenizer *t, tokenizer_stage *stage, const json_t *item,
                                mr_err *err) {
    stage->kind = STAGE_METASPACE;
    stage->split = true;
    const mr_status status =
        tokenizer_read_metaspace(item, "pre_tokenizer Metaspace", stage->replacement,
                                 &stage->replacement_bytes, &stage->prepend, err);
    t->prepends_first = t->prepends_first || stage->prepend == PREPEND_FIRST;
    return status == MR_OK ? mr_json_bool(&stage->split, item, "split", err) : status;
}

static mr_status read_byte_level(tokenizer_stage *stage, const json_t *item, mr_err *err) {
    bool use_regex = true;
    stage->kind = STAGE_BYTE_LEVEL;
    stage->prefix_space = true; /* the reference's default */
    mr_status status = mr_json_bool(&stage->prefix_space, item, "add_prefix_space", err);
    if (status == MR_OK) status = mr_json_bool(&use_regex, item, "use_regex", err);
    if (status != MR_OK || !use_regex) return status;
    return tokenizer_pattern_compile(&stage->pattern, byte_level_expression,
                                     sizeof(byte_level_expression) - 1, "pre_tokenizer", err);
}

static mr_status read_characters(tokenizer_stage *stage, const json_t *item, const char *type,
                                 mr_err *err) {
    bool individual = false;
    stage->kind = STAGE_CHARACTERS;
    if (strcmp(type, "Punctuation") == 0) {
        stage->is_match = tokenizer_is_punctuation;
        return read_behavior(&stage->behavior, item, type, err);
    }
    if (strcmp(type, "WhitespaceSplit") == 0) {
        stage->is_match = tokenizer_is_space;
        stage->behavior = CUT_REMOVED;
        return MR_OK;
    }
    const mr_status status = mr_json_bool(&individual, item, "individual_digits", err);
    stage->is_match = tokenizer_is_digit;
    stage->behavior = individual ? CUT_ISOLATED : CUT_CONTIGUOUS;
    return status;
}

static mr_status read_item(mr_tokenizer *t, const json_t *item, mr_err *err) {
    const char *type = "";
    const mr_status status = mr_json_string(&type, item, "type", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "pre_tokenizer");
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(item, "pretokenizers");
        size_t i;
        json_t *part;
        if (!json_is_array(list))
            return mr_fail(err, MR_ERR_FORMAT, "pre_tokenizer: a Sequence without pretokenizers");
        json_array_foreach(list, i, part) {
            const mr_status inner = read_item(t, part, err);
            if (inner != MR_OK) return inner;
        }
        return MR_OK;
    }
    if (t->byte_level)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "pre_tokenizer: '%.40s' after ByteLevel", type);
    if (t->stage_count == MR_MAX_PRE_TOKENIZERS)
        return mr_fail(err, MR_ERR_LIMIT, "pre_tokenizer: more than %d of them in a Sequence",
                       MR_MAX_PRE_TOKENIZERS);
    tokenizer_stage *stage = &t->stages[t->stage_count++];
    if (strcmp(type, "Split") == 0) return read_split(stage, item, err);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(t, stage, item, err);
    if (strcmp(type, "Digits") == 0 || strcmp(type, "Punctuation") == 0 ||
        strcmp(type, "WhitespaceSplit") == 0)
        return read_characters(stage, item, type, err);
    if (strcmp(type, "Whitespace") == 0) {
        stage->kind = STAGE_WORDS;
        stage->behavior = CUT_REMOVED;
        return MR_OK;
    }
    if (strcmp(type, "ByteLevel") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "pre_tokenizer '%.40s' is not supported", type);
    t->byte_level = true;
    const mr_status inner = read_byte_level(stage, item, err);
    if (!stage->pattern.code && !stage->prefix_space) t->stage_count--; /* it has nothing to do */
    return inner;
}

mr_status tokenizer_read_pre(mr_tokenizer *t, const json_t *root, mr_err *err) {
    const json_t *pre = json_object_get(root, "pre_tokenizer");
    if (!pre || json_is_null(pre)) return MR_OK;
    if (!json_is_object(pre))
        return mr_fail(err, MR_ERR_FORMAT, "pre_tokenizer must be an object, not %s",
                       mr_json_type_name(pre));
    return read_item(t, pre, err);
}

/* --- cutting ---------------------------------------------------------------------------------- */

typedef struct {
    tokenizer_run *run;
    uint32_t stage;
    tokenizer_behavior behavior;
    tokenizer_piece whole;
    size_t first, end; /* the part that may still grow */
    bool is_open;      /* there is one */
    bool was_match;
} cutter;

static mr_status run_stage(tokenizer_run *run, uint32_t stage, tokenizer_piece piece);

static mr_status pass_on(const cutter *c, size_t first, size_t end) {
    const size_t zero = c->whole.zero;
    if (first == end) return MR_OK;
    const tokenizer_piece part = {c->whole.text + first, end - first,
                                  first < zero ? (zero < end ? zero : end) - first : 0};
    if (c->stage + 1 == c->run->tokenizer->stage_count)
        return tokenizer_merge_word(c->run, part.text, part.bytes);
    return run_stage(c->run, c->stage + 1, part);
}

static mr_status close_part(cutter *c) {
    if (!c->is_open) return MR_OK;
    c->is_open = false;
    return pass_on(c, c->first, c->end);
}

static mr_status open_part(cutter *c, size_t first, size_t end) {
    const mr_status status = close_part(c);
    c->first = first;
    c->end = end;
    c->is_open = true;
    return status;
}

/* The next match, or what lies before it; empty ones count too. */
static mr_status cut(cutter *c, size_t first, size_t end, bool is_match) {
    const bool was_match = c->was_match;
    c->was_match = is_match;
    switch (c->behavior) {
    case CUT_ISOLATED:
        return pass_on(c, first, end);
    case CUT_REMOVED:
        return is_match ? MR_OK : pass_on(c, first, end);
    case CUT_CONTIGUOUS:
        if (!c->is_open || is_match != was_match) return open_part(c, first, end);
        break;
    case CUT_MERGED_WITH_PREVIOUS:
        if (!c->is_open || !is_match || was_match) return open_part(c, first, end);
        break;
    case CUT_MERGED_WITH_NEXT:
        if (is_match || !c->is_open) {
            if (is_match) return open_part(c, first, end);
            return pass_on(c, first, end);
        }
        c->is_open = false;
        return pass_on(c, c->first, end);
    }
    c->end = end;
    return MR_OK;
}

static mr_status cut_by_pattern(cutter *c, const tokenizer_stage *s) {
    const tokenizer_piece *w = &c->whole;
    tokenizer_finder f = tokenizer_finder_open(c->run, &s->pattern, w->text, w->bytes);
    size_t done = 0, start, end;
    mr_status status = MR_OK;
    while (status == MR_OK && tokenizer_finder_next(&f, &start, &end)) {
        if (start > done) status = cut(c, done, start, s->invert);
        if (status == MR_OK) status = cut(c, start, end, !s->invert);
        done = end;
    }
    if (status == MR_OK) status = f.status;
    if (status == MR_OK && done < w->bytes) status = cut(c, done, w->bytes, s->invert);
    return status;
}

static mr_status cut_by_characters(cutter *c, const tokenizer_stage *s) {
    const tokenizer_piece *w = &c->whole;
    size_t done = 0;
    mr_status status = MR_OK;
    for (size_t at = 0, length; at < w->bytes && status == MR_OK; at += length) {
        length = tokenizer_character_bytes(w->text[at]);
        if (!s->is_match(tokenizer_character(w->text + at, length))) continue;
        if (at > done) status = cut(c, done, at, false);
        done = at + length;
        if (status == MR_OK) status = cut(c, at, done, true);
    }
    if (status == MR_OK && done < w->bytes) status = cut(c, done, w->bytes, false);
    return status;
}

static int kind_of(uint32_t c) {
    return tokenizer_is_word(c) ? 2 : tokenizer_is_space(c) ? 0 : 1;
}

/* Words and runs of other signs are what stays: the matches are the spaces. */
static mr_status cut_words(cutter *c) {
    const tokenizer_piece *w = &c->whole;
    size_t first = 0;
    int kind = -1;
    mr_status status = MR_OK;
    for (size_t at = 0, length; at < w->bytes && status == MR_OK; at += length) {
        length = tokenizer_character_bytes(w->text[at]);
        const int now = kind_of(tokenizer_character(w->text + at, length));
        if (now == kind) continue;
        if (at > first) status = cut(c, first, at, kind == 0);
        first = at;
        kind = now;
    }
    if (status == MR_OK && first < w->bytes) status = cut(c, first, w->bytes, kind == 0);
    return status;
}

/* --- stages that change the text -------------------------------------------------------------- */

static bool starts_with(tokenizer_piece piece, const char *text, size_t bytes) {
    return piece.bytes >= bytes && memcmp(piece.text, text, bytes) == 0;
}

static size_t count_spaces(tokenizer_piece piece) {
    size_t count = 0;
    for (size_t i = 0; i < piece.bytes; i++) count += piece.text[i] == ' ';
    return count;
}

/* A copy of the piece with its replacements; owned by the caller. NULL: no memory. */
static char *replace_spaces(const tokenizer_stage *s, tokenizer_piece *piece) {
    const size_t spaces = count_spaces(*piece), unit = s->replacement_bytes;
    const bool starts = piece->text[0] == ' ' || starts_with(*piece, s->replacement, unit);
    const bool prefix = !starts && (s->prepend == PREPEND_ALWAYS ||
                                    (s->prepend == PREPEND_FIRST && piece->zero > 0));
    char *copy = malloc(piece->bytes + spaces * (unit - 1) + unit);
    size_t used = 0, zero = 0;
    if (!copy) return NULL;
    if (prefix) {
        memcpy(copy, s->replacement, unit);
        used = unit;
    }
    for (size_t i = 0; i < piece->bytes; i++) {
        if (piece->text[i] == ' ') {
            memcpy(copy + used, s->replacement, unit);
            used += unit;
        } else
            copy[used++] = piece->text[i];
        if (i + 1 == piece->zero) zero = used;
    }
    *piece = (tokenizer_piece){copy, used, zero};
    return copy;
}

static mr_status run_metaspace(cutter *c, const tokenizer_stage *s) {
    const size_t unit = s->replacement_bytes;
    char *copy = replace_spaces(s, &c->whole);
    if (!copy) return mr_fail(c->run->err, MR_ERR_NOMEM, "no memory to tokenize");
    const tokenizer_piece *w = &c->whole;
    size_t first = 0, at = s->split ? 0 : w->bytes;
    mr_status status = MR_OK;
    for (const char *found; at < w->bytes && status == MR_OK; at = (size_t)(found - copy) + unit) {
        found = memmem(copy + at, w->bytes - at, s->replacement, unit);
        if (!found) break;
        status = pass_on(c, first, (size_t)(found - copy)); /* merged with what follows it */
        first = (size_t)(found - copy);
    }
    if (status == MR_OK) status = pass_on(c, first, w->bytes);
    free(copy);
    return status;
}

static mr_status run_byte_level(cutter *c, const tokenizer_stage *s) {
    char *prefixed = NULL;
    mr_status status;
    if (s->prefix_space && c->whole.text[0] != ' ') {
        prefixed = malloc(c->whole.bytes + 1);
        if (!prefixed) return mr_fail(c->run->err, MR_ERR_NOMEM, "no memory to tokenize");
        prefixed[0] = ' ';
        memcpy(prefixed + 1, c->whole.text, c->whole.bytes);
        c->whole = (tokenizer_piece){prefixed, c->whole.bytes + 1, 0};
    }
    status = s->pattern.code ? cut_by_pattern(c, s) : pass_on(c, 0, c->whole.bytes);
    free(prefixed);
    return status;
}

static mr_status run_stage(tokenizer_run *run, uint32_t stage, tokenizer_piece piece) {
    const tokenizer_stage *s = &run->tokenizer->stages[stage];
    cutter c = {.run = run, .stage = stage, .behavior = s->behavior, .whole = piece};
    mr_status status = MR_OK;
    switch (s->kind) {
    case STAGE_SPLIT:
        status = cut_by_pattern(&c, s);
        break;
    case STAGE_CHARACTERS:
        status = cut_by_characters(&c, s);
        break;
    case STAGE_WORDS:
        status = cut_words(&c);
        break;
    case STAGE_METASPACE:
        return run_metaspace(&c, s);
    case STAGE_BYTE_LEVEL:
        return run_byte_level(&c, s);
    }
    return status == MR_OK ? close_part(&c) : status;
}

mr_status tokenizer_split(tokenizer_run *run, tokenizer_piece piece) {
    if (piece.bytes == 0) return MR_OK;
    if (run->tokenizer->stage_count == 0) return tokenizer_merge_word(run, piece.text, piece.bytes);
    run->has_young = tokenizer_has_young(piece.text, piece.bytes);
    return run_stage(run, 0, piece);
}
