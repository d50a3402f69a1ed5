/* tokenizer_load.c - tokenizer.json: the model section, and opening the whole.
 *
 * The file is hostile until proven otherwise: every id, name and count is checked before it sizes
 * or indexes anything. jansson's objects serve as the map from a token's spelling to its id while
 * loading; afterwards only bytes and ids remain. */
#include "common/model/tokenizer_impl.h"

#include "common/base/file.h"
#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t tokenizer_byte_character(uint8_t byte) {
    if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad)) return byte;
    if (byte <= 0x20) return 256u + byte;
    if (byte <= 0xa0) return 256u + 33u + (byte - 0x7fu);
    return 256u + 67u; /* 0xad */
}

int tokenizer_character_byte(uint32_t c) {
    if (c >= 256 + 68) return -1;
    if (c >= 256 + 67) return 0xad;
    if (c >= 256 + 33) return (int)(c - 256 - 33 + 0x7f);
    if (c >= 256) return (int)(c - 256);
    return tokenizer_byte_character((uint8_t)c) == c ? (int)c : -1;
}

size_t tokenizer_spelled_bytes(char *out, const char *spelling, size_t bytes, bool *byte_level) {
    size_t used = 0;
    *byte_level = true;
    for (size_t at = 0, length; at < bytes; at += length) {
        length = tokenizer_character_bytes(spelling[at]);
        const int byte = tokenizer_character_byte(tokenizer_character(spelling + at, length));
        if (byte < 0) {
            memcpy(out, spelling, bytes);
            *byte_level = false;
            return bytes;
        }
        out[used++] = (char)byte;
    }
    return used;
}

void tokenizer_strings_open(tokenizer_strings *s, uint32_t count, size_t bytes) {
    s->data = mr_alloc(bytes + 1);
    s->offset = mr_alloc_array((size_t)count + 1, sizeof(*s->offset));
}

void tokenizer_strings_free(tokenizer_strings *s) {
    free(s->data);
    free(s->offset);
    *s = (tokenizer_strings){0};
}

/* --- vocabulary ------------------------------------------------------------------------------- */

/* spelling[id] for all of vocab; refuses duplicates and ids that do not fit. */
static mr_status list_vocabulary(const char **spelling, uint32_t count, const json_t *vocab,
                                 mr_err *err) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)vocab, name, value) {
        if (!json_is_integer(value))
            return mr_fail(err, MR_ERR_FORMAT, "vocab: the id of '%.40s' is %s, not an integer",
                           name, mr_json_type_name(value));
        const json_int_t id = json_integer_value(value);
        if (id < 0 || id >= (json_int_t)count)
            return mr_fail(err, MR_ERR_RANGE,
                           "vocab: '%.40s' has id %lld; the %u tokens have ids 0 to %u without a "
                           "gap",
                           name, (long long)id, count, count - 1);
        if (spelling[id])
            return mr_fail(err, MR_ERR_FORMAT, "vocab: '%.40s' and '%.40s' both have id %lld",
                           spelling[id], name, (long long)id);
        if (strlen(name) > MR_MAX_TOKEN_BYTES)
            return mr_fail(err, MR_ERR_LIMIT, "vocab: token %lld has %zu bytes; at most %d",
                           (long long)id, strlen(name), MR_MAX_TOKEN_BYTES);
        spelling[id] = name;
    }
    return MR_OK;
}

/* Added tokens that are not in the vocabulary extend it. */
static mr_status list_added(const char **spelling, uint32_t count, const json_t *added,
                            const json_t *vocab, mr_err *err) {
    size_t i;
    json_t *item;
    json_array_foreach(added, i, item) {
        int64_t id = -1;
        const char *content = "";
        mr_status status = mr_json_int(&id, item, "id", 0, (int64_t)count - 1, err);
        if (status == MR_OK) status = mr_json_string(&content, item, "content", err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "added_tokens[%zu]", i);
        if (id < 0 || *content == '\0')
            return mr_fail(err, MR_ERR_FORMAT, "added_tokens[%zu] needs an id and a content", i);
        if (strlen(content) > MR_MAX_ADDED_TOKEN_BYTES)
            return mr_fail(err, MR_ERR_LIMIT, "added_tokens[%zu] has %zu bytes; at most %d", i,
                           strlen(content), MR_MAX_ADDED_TOKEN_BYTES);
        const json_t *known = json_object_get(vocab, content);
        if (known ? json_integer_value(known) != id : spelling[id] != NULL)
            return mr_fail(err, MR_ERR_FORMAT,
                           "added_tokens[%zu] '%.40s' has id %lld, which is '%.40s' in vocab", i,
                           content, (long long)id, spelling[id] ? spelling[id] : "nothing");
        spelling[id] = content;
    }
    return MR_OK;
}

static uint32_t count_tokens(const json_t *vocab, const json_t *added) {
    size_t count = json_object_size(vocab), i;
    json_t *item;
    json_array_foreach(added, i, item) {
        const char *content = json_string_value(json_object_get(item, "content"));
        if (content && !json_object_get(vocab, content)) count++;
    }
    return count > MR_MAX_VOCAB ? UINT32_MAX : (uint32_t)count;
}

/* The model's own strings: bytes where the vocabulary is of bytes, else as they are spelled. */
static void spell(mr_tokenizer *t, const char **spelling, const json_t *vocab) {
    uint64_t total = 0, used = 0;
    for (uint32_t id = 0; id < t->count; id++) total += strlen(spelling[id]);
    tokenizer_strings_open(&t->spelled, t->count, (size_t)total);
    const bool wanted = t->ignore_merges || !t->byte_level;
    if (wanted) tokenizer_vocab_open(t);
    for (uint32_t id = 0; id < t->count; id++) {
        const bool known = json_object_get(vocab, spelling[id]) != NULL;
        bool byte_level = false;
        size_t bytes = strlen(spelling[id]);
        if (known && t->byte_level)
            bytes =
                tokenizer_spelled_bytes(t->spelled.data + used, spelling[id], bytes, &byte_level);
        else
            memcpy(t->spelled.data + used, spelling[id], bytes);
        used += bytes;
        t->spelled.offset[id + 1] = used;
        if (wanted && known && bytes > 0 && byte_level == t->byte_level) tokenizer_vocab_put(t, id);
    }
}

static int32_t id_of(const json_t *vocab, const char *name) {
    const json_t *id = json_object_get(vocab, name);
    return id ? (int32_t)json_integer_value(id) : -1;
}

/* What a byte, or a character of one byte, begins as. */
static void index_bytes(mr_tokenizer *t, const json_t *vocab) {
    char name[8];
    for (uint32_t byte = 0; byte < 256; byte++) {
        const uint32_t c = tokenizer_byte_character((uint8_t)byte);
        name[tokenizer_put_character(name, c)] = '\0';
        t->byte_id[byte] = id_of(vocab, name);
        snprintf(name, sizeof(name), "<0x%02X>", byte);
        t->fallback_id[byte] = id_of(vocab, name);
        if (byte >= 128) continue;
        snprintf(name, sizeof(name), "%c", (char)byte);
        t->ascii_id[byte] = byte ? id_of(vocab, name) : -1;
    }
}

/* --- merges ----------------------------------------------------------------------------------- */

/* "a b", or ["a", "b"]: copies a and b to joined, one after the other. */
static mr_status read_merge(const json_t *item, size_t index, char *left, char *joined,
                            const char **right, mr_err *err) {
    const char *a = NULL, *b = NULL;
    size_t a_bytes = 0;
    if (json_is_string(item)) {
        const char *text = json_string_value(item), *space = strchr(text, ' ');
        if (space && !strchr(space + 1, ' ')) {
            a = text;
            a_bytes = (size_t)(space - text);
            b = space + 1;
        }
    } else if (json_is_array(item) && json_array_size(item) == 2) {
        a = json_string_value(json_array_get(item, 0));
        b = json_string_value(json_array_get(item, 1));
        if (a) a_bytes = strlen(a);
    }
    if (!a || !b) return mr_fail(err, MR_ERR_FORMAT, "merges[%zu] is not a pair of tokens", index);
    if (a_bytes == 0 || *b == '\0')
        return mr_fail(err, MR_ERR_FORMAT, "merges[%zu] has an empty side", index);
    if (a_bytes + strlen(b) > MR_MAX_TOKEN_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "merges[%zu] makes a token of %zu bytes; at most %d",
                       index, a_bytes + strlen(b), MR_MAX_TOKEN_BYTES);
    memcpy(left, a, a_bytes);
    left[a_bytes] = '\0';
    memcpy(joined, a, a_bytes);
    memcpy(joined + a_bytes, b, strlen(b) + 1);
    *right = b;
    return MR_OK;
}

static mr_status read_merges(mr_tokenizer *t, const json_t *merges, const json_t *vocab,
                             mr_err *err) {
    char left[MR_MAX_TOKEN_BYTES + 1], joined[MR_MAX_TOKEN_BYTES + 1];
    size_t i;
    json_t *item;
    if (!json_is_array(merges))
        return mr_fail(err, MR_ERR_FORMAT, "merges must be an array, not %s",
                       mr_json_type_name(merges));
    if (json_array_size(merges) > MR_MAX_VOCAB)
        return mr_fail(err, MR_ERR_LIMIT, "%zu merges; at most %d", json_array_size(merges),
                       MR_MAX_VOCAB);
    tokenizer_merges_open(&t->merges, json_array_size(merges));
    json_array_foreach(merges, i, item) {
        const char *right = "";
        if (json_is_string(item) && strncmp(json_string_value(item), "#version", 8) == 0) continue;
        const mr_status status = read_merge(item, i, left, joined, &right, err);
        if (status != MR_OK) return status;
        const json_t *a = json_object_get(vocab, left), *b = json_object_get(vocab, right);
        const json_t *c = json_object_get(vocab, joined);
        if (!a || !b || !c)
            return mr_fail(err, MR_ERR_FORMAT, "merges[%zu] names '%.40s', which is not in vocab",
                           i,
                           !a   ? left
                           : !b ? right
                                : joined);
        tokenizer_merges_put(&t->merges, (uint32_t)json_integer_value(a),
                             (uint32_t)json_integer_value(b), (uint32_t)i,
                             (uint32_t)json_integer_value(c));
    }
    return MR_OK;
}

/* --- the model section ------------------------------------------------------------------------ */

static mr_status refuse_unless_empty(const json_t *model, const char *key, mr_err *err) {
    const json_t *value = json_object_get(model, key);
    const bool empty = !value || json_is_null(value) || json_is_false(value) ||
                       (json_is_string(value) && json_string_length(value) == 0) ||
                       (json_is_number(value) && json_number_value(value) == 0.0);
    if (empty) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "model.%s is set; this is not supported", key);
}

static mr_status read_options(mr_tokenizer *t, const json_t *model, const json_t *vocab,
                              mr_err *err) {
    static const char *const refused[] = {"dropout", "continuing_subword_prefix",
                                          "end_of_word_suffix"};
    const char *type = "BPE", *unknown = NULL;
    mr_status status = mr_json_string(&type, model, "type", err);
    if (status != MR_OK) return status;
    if (strcmp(type, "BPE") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "model type '%.40s' is not supported, only BPE",
                       type);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if ((status = refuse_unless_empty(model, refused[i], err)) != MR_OK) return status;
    status = mr_json_string(&unknown, model, "unk_token", err);
    if (status == MR_OK) status = mr_json_bool(&t->fuse_unknown, model, "fuse_unk", err);
    if (status == MR_OK) status = mr_json_bool(&t->ignore_merges, model, "ignore_merges", err);
    if (status == MR_OK) status = mr_json_bool(&t->byte_fallback, model, "byte_fallback", err);
    if (status != MR_OK) return status;
    t->unknown_id = unknown ? id_of(vocab, unknown) : -1;
    return MR_OK;
}

static mr_status read_added(mr_tokenizer *t, const json_t *added, const char **spelling,
                            mr_err *err) {
    char **forms = mr_alloc_array(t->count, sizeof(*forms));
    mr_status status = tokenizer_read_added(t, added, forms, err);
    if (status == MR_OK) status = tokenizer_index_decoded(t, spelling, forms, err);
    for (uint32_t id = 0; id < t->count; id++) free(forms[id]);
    free(forms);
    return status;
}

static mr_status read_model(mr_tokenizer *t, const json_t *root, mr_err *err) {
    const json_t *model = json_object_get(root, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return mr_fail(err, MR_ERR_FORMAT, "model.vocab must be an object of tokens, not %s",
                       json_is_object(vocab) ? "an empty one" : mr_json_type_name(vocab));
    if (added && !json_is_null(added) && !json_is_array(added))
        return mr_fail(err, MR_ERR_FORMAT, "added_tokens must be an array, not %s",
                       mr_json_type_name(added));
    if (json_array_size(added) > MR_MAX_ADDED_TOKENS)
        return mr_fail(err, MR_ERR_LIMIT, "%zu added tokens; at most %d", json_array_size(added),
                       MR_MAX_ADDED_TOKENS);
    t->count = count_tokens(vocab, added);
    if (t->count == UINT32_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "more than %d tokens", MR_MAX_VOCAB);

    const char **spelling = mr_alloc_array(t->count, sizeof(*spelling));
    mr_status status = list_vocabulary(spelling, t->count, vocab, err);
    if (status == MR_OK) status = list_added(spelling, t->count, added, vocab, err);
    for (uint32_t id = 0; status == MR_OK && id < t->count; id++)
        if (!spelling[id])
            status = mr_fail(err, MR_ERR_FORMAT, "no token has id %u (ids run from 0 to %u)", id,
                             t->count - 1);
    if (status == MR_OK) status = read_options(t, model, vocab, err);
    if (status == MR_OK) {
        t->special = mr_alloc_array(t->count, 1);
        spell(t, spelling, vocab);
        index_bytes(t, vocab);
        status = read_merges(t, json_object_get(model, "merges"), vocab, err);
    }
    if (status == MR_OK) status = read_added(t, added, spelling, err);
    free(spelling);
    return status;
}

/* --- the whole -------------------------------------------------------------------------------- */

/* Whether every text can be spelled, so that no token stands for a run of unknown characters. */
static bool is_complete(const mr_tokenizer *t) {
    for (int byte = 0; byte < 256; byte++)
        if ((t->byte_level ? t->byte_id[byte] : t->fallback_id[byte]) < 0) return false;
    return t->byte_level || t->byte_fallback;
}

/* How many bytes of a text a byte of a token may stand for; 0: there is no bound. */
static size_t shrinks_by(const mr_tokenizer *t) {
    size_t factor = 1;
    for (uint32_t i = 0; i < t->normalizer_count; i++) {
        const tokenizer_normalizer *n = &t->normalizers[i];
        if (n->kind == NORMALIZER_FORM)
            factor *= 16; /* four characters of four bytes that become one of one byte */
        else if (n->kind == NORMALIZER_LOWERCASE)
            factor *= 4;
        else if (n->kind == NORMALIZER_REPLACE &&
                 (!n->pattern.string || n->bytes < n->pattern.bytes))
            return 0;
        else if (n->kind == NORMALIZER_STRIP || n->kind == NORMALIZER_STRIP_ACCENTS)
            return 0;
    }
    for (uint32_t i = 0; i < t->stage_count; i++)
        if (t->stages[i].behavior == CUT_REMOVED) return 0;
    for (uint32_t i = 0; i < t->added_count; i++)
        if (t->added[i].lstrip || t->added[i].rstrip) return 0;
    if (t->unknown_id >= 0 && t->fuse_unknown && !is_complete(t)) return 0;
    return factor;
}

static void measure_longest(mr_tokenizer *t) {
    const size_t factor = shrinks_by(t);
    size_t longest = 4; /* an unknown character */
    for (uint32_t id = 0; id < t->count; id++) {
        size_t bytes;
        tokenizer_strings_at(&t->spelled, id, &bytes);
        if (bytes > longest) longest = bytes;
    }
    t->longest =
        factor && longest < MR_MAX_TEXT_BYTES / factor ? longest * factor : MR_MAX_TEXT_BYTES;
}

static mr_status read_all(mr_tokenizer *t, const json_t *root, mr_err *err) {
    if (!json_is_object(root))
        return mr_fail(err, MR_ERR_FORMAT, "the file must hold an object, not %s",
                       mr_json_type_name(root));
    mr_status status = tokenizer_read_normalizers(t, root, err);
    if (status == MR_OK) status = tokenizer_read_pre(t, root, err);
    if (status == MR_OK) status = tokenizer_read_decoders(t, root, err);
    if (status == MR_OK) status = read_model(t, root, err);
    if (status == MR_OK) status = tokenizer_read_post(t, root, err);
    if (status == MR_OK) measure_longest(t);
    return status;
}

mr_status mr_tokenizer_parse(mr_tokenizer **out, const char *json, size_t bytes, const char *what,
                             mr_err *err) {
    json_t *root;
    *out = NULL;
    mr_status status = mr_json_parse(&root, json, bytes, what, err);
    if (status != MR_OK) return status;
    mr_tokenizer *t = mr_alloc(sizeof(*t));
    status = read_all(t, root, err);
    json_decref(root);
    if (status != MR_OK) {
        mr_tokenizer_close(t);
        return mr_fail_prefix(err, status, "%s", what);
    }
    *out = t;
    return MR_OK;
}

mr_status mr_tokenizer_open(mr_tokenizer **out, const char *path, mr_err *err) {
    char *text;
    size_t bytes;
    *out = NULL;
    mr_status status = mr_file_read(&text, &bytes, path, MR_MAX_TOKENIZER_BYTES, err);
    if (status != MR_OK) return status;
    status = mr_tokenizer_parse(out, text, bytes, path, err);
    free(text);
    return status;
}

void mr_tokenizer_close(mr_tokenizer *t) {
    if (!t) return;
    for (uint32_t i = 0; i < t->normalizer_count; i++)
        tokenizer_normalizer_free(&t->normalizers[i]);
    for (uint32_t i = 0; i < t->stage_count; i++) tokenizer_pattern_free(&t->stages[i].pattern);
    for (uint32_t i = 0; i < t->decoder_count; i++) tokenizer_decoder_free(&t->decoders[i]);
    for (int i = 0; i < 2; i++) free(t->tries[i].nodes);
    tokenizer_strings_free(&t->spelled);
    tokenizer_strings_free(&t->shown);
    tokenizer_strings_free(&t->decoded);
    free(t->added);
    free(t->merges.slots);
    free(t->vocab.slots);
    free(t->special);
    free(t);
}
