/* tokenizer_norm.c - normalizers: what the text becomes before it is split.
 *
 * Each one reads one buffer and writes the other; one that would change nothing is passed over, so
 * that text in normal form is not even copied. Where somebody asks for it, every byte keeps the
 * place in the whole text it came from. What a text may grow to is bounded. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

/* --- reading ---------------------------------------------------------------------------------- */

mr_status tokenizer_read_content(char **out, size_t *bytes, const json_t *item, const char *key,
                                 const char *what, mr_err *err) {
    const json_t *value = json_object_get(item, key);
    if (!json_is_string(value))
        return mr_fail(err, MR_ERR_FORMAT, "%s: %s must be a string, not %s", what, key,
                       mr_json_type_name(value));
    *bytes = json_string_length(value);
    if (*bytes > MR_MAX_REPLACEMENT_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: %s has %zu bytes; at most %d", what, key, *bytes,
                       MR_MAX_REPLACEMENT_BYTES);
    *out = mr_strndup(json_string_value(value), *bytes);
    return MR_OK;
}

mr_status tokenizer_read_character(char out[4], size_t *bytes, const json_t *item, const char *key,
                                   const char *what, mr_err *err) {
    const json_t *value = json_object_get(item, key);
    const char *text = json_string_value(value);
    if (!text || *text == '\0' || tokenizer_character_bytes(*text) != strlen(text))
        return mr_fail(err, MR_ERR_FORMAT, "%s: %s must be one character", what, key);
    *bytes = strlen(text);
    memcpy(out, text, *bytes);
    return MR_OK;
}

static mr_status read_form(tokenizer_normalizer *n, const char *type) {
    n->kind = NORMALIZER_FORM;
    n->form = tokenizer_form_open(type[2] == 'K', type[strlen(type) - 1] == 'C');
    return MR_OK;
}

static mr_status read_one(tokenizer_normalizer *n, const json_t *item, const char *type,
                          mr_err *err) {
    mr_status status;
    if (strcmp(type, "NFC") == 0 || strcmp(type, "NFD") == 0 || strcmp(type, "NFKC") == 0 ||
        strcmp(type, "NFKD") == 0)
        return read_form(n, type);
    if (strcmp(type, "Lowercase") == 0) {
        n->kind = NORMALIZER_LOWERCASE;
        return MR_OK;
    }
    if (strcmp(type, "StripAccents") == 0) {
        n->kind = NORMALIZER_STRIP_ACCENTS;
        return MR_OK;
    }
    if (strcmp(type, "Strip") == 0) {
        n->kind = NORMALIZER_STRIP;
        status = mr_json_bool(&n->left, item, "strip_left", err);
        return status == MR_OK ? mr_json_bool(&n->right, item, "strip_right", err) : status;
    }
    if (strcmp(type, "Prepend") == 0) {
        n->kind = NORMALIZER_PREPEND;
        return tokenizer_read_content(&n->content, &n->bytes, item, "prepend", "normalizer Prepend",
                                      err);
    }
    if (strcmp(type, "Replace") == 0) {
        n->kind = NORMALIZER_REPLACE;
        status = tokenizer_pattern_read(&n->pattern, item, "normalizer Replace", err);
        if (status != MR_OK) return status;
        return tokenizer_read_content(&n->content, &n->bytes, item, "content", "normalizer Replace",
                                      err);
    }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "normalizer '%.40s' is not supported", type);
}

static mr_status read_item(mr_tokenizer *t, const json_t *item, mr_err *err) {
    const char *type = "";
    mr_status status = mr_json_string(&type, item, "type", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "normalizer");
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(item, "normalizers");
        size_t i;
        json_t *part;
        if (!json_is_array(list))
            return mr_fail(err, MR_ERR_FORMAT, "normalizer: a Sequence without normalizers");
        json_array_foreach(list, i, part) {
            status = read_item(t, part, err);
            if (status != MR_OK) return status;
        }
        return MR_OK;
    }
    if (t->normalizer_count == MR_MAX_NORMALIZERS)
        return mr_fail(err, MR_ERR_LIMIT, "normalizer: more than %d of them", MR_MAX_NORMALIZERS);
    return read_one(&t->normalizers[t->normalizer_count++], item, type, err);
}

mr_status tokenizer_read_normalizers(mr_tokenizer *t, const json_t *root, mr_err *err) {
    const json_t *normalizer = json_object_get(root, "normalizer");
    if (!normalizer || json_is_null(normalizer)) return MR_OK;
    return read_item(t, normalizer, err);
}

void tokenizer_normalizer_free(tokenizer_normalizer *n) {
    tokenizer_form_close(n->form);
    tokenizer_pattern_free(&n->pattern);
    free(n->content);
}

/* --- applying --------------------------------------------------------------------------------- */

static const uint32_t *origin_at(const tokenizer_normalized *in, size_t at) {
    return in->origin ? in->origin + at : NULL;
}

static void apply_lowercase(const tokenizer_normalized *in, tokenizer_buffer *out) {
    for (size_t at = 0, length; at < in->bytes; at += length) {
        uint32_t lower[2];
        char text[8];
        length = tokenizer_character_bytes(in->text[at]);
        const size_t count =
            tokenizer_lower_case(lower, tokenizer_character(in->text + at, length));
        size_t bytes = tokenizer_put_character(text, lower[0]);
        if (count > 1) bytes += tokenizer_put_character(text + bytes, lower[1]);
        tokenizer_buffer_add(out, text, bytes, NULL, in->origin ? in->origin[at] : 0);
    }
}

static void apply_strip_accents(const tokenizer_normalized *in, tokenizer_buffer *out) {
    size_t kept = 0;
    for (size_t at = 0, length; at < in->bytes; at += length) {
        length = tokenizer_character_bytes(in->text[at]);
        if (!tokenizer_is_accent(tokenizer_character(in->text + at, length))) continue;
        tokenizer_buffer_add(out, in->text + kept, at - kept, origin_at(in, kept), 0);
        kept = at + length;
    }
    tokenizer_buffer_add(out, in->text + kept, in->bytes - kept, origin_at(in, kept), 0);
}

static bool is_space_at(const tokenizer_normalized *in, size_t at, size_t end) {
    return tokenizer_is_space(tokenizer_character(in->text + at, end - at));
}

static void apply_strip(const tokenizer_normalizer *n, const tokenizer_normalized *in,
                        tokenizer_buffer *out) {
    size_t first = 0, end = in->bytes;
    while (n->left && first < end) {
        const size_t length = tokenizer_character_bytes(in->text[first]);
        if (!is_space_at(in, first, first + length)) break;
        first += length;
    }
    while (n->right && end > first) {
        size_t before = end - 1;
        while (before > first && ((uint8_t)in->text[before] & 0xc0) == 0x80) before--;
        if (!is_space_at(in, before, end)) break;
        end = before;
    }
    tokenizer_buffer_add(out, in->text + first, end - first, origin_at(in, first), 0);
}

static mr_status apply_replace(tokenizer_run *run, const tokenizer_normalizer *n,
                               const tokenizer_normalized *in, tokenizer_buffer *out) {
    run->has_young = n->pattern.exact && tokenizer_has_young(in->text, in->bytes);
    tokenizer_finder f = tokenizer_finder_open(run, &n->pattern, in->text, in->bytes);
    size_t start, end, copied = 0;
    while (out->status == MR_OK && tokenizer_finder_next(&f, &start, &end)) {
        const uint32_t origin = in->origin && end > 0 ? in->origin[end - 1] : 0;
        tokenizer_buffer_add(out, in->text + copied, start - copied, origin_at(in, copied), 0);
        tokenizer_buffer_add(out, n->content, n->bytes, NULL, origin);
        copied = end;
    }
    tokenizer_buffer_add(out, in->text + copied, in->bytes - copied, origin_at(in, copied), 0);
    return f.status;
}

static mr_status apply(tokenizer_run *run, const tokenizer_normalizer *n,
                       const tokenizer_normalized *in, tokenizer_buffer *out) {
    switch (n->kind) {
    case NORMALIZER_FORM:
        tokenizer_form_apply(n->form, in->text, in->bytes, in->origin, out);
        return MR_OK;
    case NORMALIZER_LOWERCASE:
        apply_lowercase(in, out);
        return MR_OK;
    case NORMALIZER_STRIP:
        apply_strip(n, in, out);
        return MR_OK;
    case NORMALIZER_STRIP_ACCENTS:
        apply_strip_accents(in, out);
        return MR_OK;
    case NORMALIZER_PREPEND:
        tokenizer_buffer_add(out, n->content, n->bytes, NULL, in->origin ? in->origin[0] : 0);
        tokenizer_buffer_add(out, in->text, in->bytes, in->origin, 0);
        return MR_OK;
    case NORMALIZER_REPLACE:
        break;
    }
    return apply_replace(run, n, in, out);
}

/* What a text of so many bytes may become: a bound on hostile replacements, far from any real one.
 */
static size_t grown_max(size_t bytes) {
    const size_t most = MR_MAX_NORMALIZED_BYTES + MR_MAX_NORMALIZED_GROWTH * bytes;
    return most < MR_MAX_TEXT_BYTES ? most : MR_MAX_TEXT_BYTES;
}

static mr_status failed(tokenizer_run *run, const tokenizer_buffer *buffer) {
    if (buffer->status == MR_ERR_NOMEM)
        return mr_fail(run->err, MR_ERR_NOMEM, "no memory to tokenize");
    return mr_fail(run->err, MR_ERR_LIMIT,
                   "the normalizers make more than %zu bytes of a piece of this text",
                   buffer->bytes_max);
}

mr_status tokenizer_normalize(tokenizer_run *run, const char *text, size_t bytes, size_t base,
                              bool track, tokenizer_normalized *out) {
    const mr_tokenizer *t = run->tokenizer;
    int used = 0;
    *out = (tokenizer_normalized){text, bytes, NULL};
    if (t->normalizer_count == 0 || bytes == 0) return MR_OK;
    for (int i = 0; i < 2; i++) {
        if (track != run->normal[i].is_tracked) tokenizer_buffer_free(&run->normal[i]);
        run->normal[i].is_tracked = track;
    }
    if (track) {
        tokenizer_buffer *b = &run->normal[0];
        tokenizer_buffer_clear(b, bytes);
        for (size_t at = 0, length; at < bytes && b->status == MR_OK; at += length) {
            length = tokenizer_character_bytes(text[at]);
            tokenizer_buffer_add(b, text + at, length, NULL, (uint32_t)(base + at));
        }
        if (b->status != MR_OK) return failed(run, b);
        *out = (tokenizer_normalized){b->data, b->bytes, b->origin};
        used = 1;
    }
    for (uint32_t i = 0; i < t->normalizer_count && out->bytes > 0; i++) {
        const tokenizer_normalizer *n = &t->normalizers[i];
        tokenizer_buffer *b = &run->normal[used];
        if (n->kind == NORMALIZER_FORM && tokenizer_form_is_clean(n->form, out->text, out->bytes))
            continue;
        tokenizer_buffer_clear(b, grown_max(bytes));
        const mr_status status = apply(run, n, out, b);
        if (status != MR_OK) return status;
        if (b->status != MR_OK) return failed(run, b);
        *out = (tokenizer_normalized){b->data, b->bytes, b->origin};
        used = 1 - used;
    }
    return MR_OK;
}
