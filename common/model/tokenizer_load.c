/* tokenizer_load.c - tokenizer.json: the model section, and opening the whole.
 *
 * The file is hostile until proven otherwise: every id, name and count is checked before it sizes
 * or indexes anything. jansson's objects serve as the map from a token's spelling to its id while
 * loading; afterwards only bytes and ids remain. */
#include "common/model/tokenizer_impl.h"

#include "common/base/file.h"
#include "common/base/mem.h"

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

static uint32_t decode_character(const char *text, size_t length) {
    const uint8_t *u = (const uint8_t *)text;
    if (length == 1) return u[0];
    if (length == 2) return (u[0] & 31u) << 6 | (u[1] & 63u);
    if (length == 3) return (u[0] & 15u) << 12 | (u[1] & 63u) << 6 | (u[2] & 63u);
    return (u[0] & 7u) << 18 | (u[1] & 63u) << 12 | (u[2] & 63u) << 6 | (u[3] & 63u);
}

/* The bytes a spelling stands for: by the byte alphabet if all of it is in there, else itself.
 * out has room for strlen(spelling). */
static size_t spelled_bytes(char *out, const char *spelling, bool *byte_level) {
    const size_t bytes = strlen(spelling);
    size_t used = 0;
    *byte_level = true;
    for (size_t at = 0, length; at < bytes; at += length) {
        if (mr_utf8_step(spelling + at, bytes - at, &length) != MR_UTF8_VALID) length = 1;
        const int byte = tokenizer_character_byte(decode_character(spelling + at, length));
        if (byte < 0) {
            memcpy(out, spelling, bytes);
            *byte_level = false;
            return bytes;
        }
        out[used++] = (char)byte;
    }
    return used;
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

/* Lays all tokens' bytes out in the arena. */
static void build_arena(mr_tokenizer *t, const char **spelling, const json_t *vocab) {
    uint64_t total = 0, used = 0;
    for (uint32_t id = 0; id < t->count; id++) total += strlen(spelling[id]);
    t->arena = mr_alloc((size_t)total + 1);
    t->offset = mr_alloc_array((size_t)t->count + 1, sizeof(*t->offset));
    t->special = mr_alloc_array(t->count, 1);
    t->longest = 1;
    for (uint32_t id = 0; id < t->count; id++) {
        bool byte_level = false;
        size_t bytes = strlen(spelling[id]);
        if (json_object_get(vocab, spelling[id]))
            bytes = spelled_bytes(t->arena + used, spelling[id], &byte_level);
        else
            memcpy(t->arena + used, spelling[id], bytes);
        used += bytes;
        t->offset[id + 1] = used;
        if (bytes > t->longest) t->longest = bytes;
    }
}

static void index_words(mr_tokenizer *t, const char **spelling) {
    char scratch[MR_MAX_TOKEN_BYTES];
    bool byte_level;
    tokenizer_words_open(t);
    for (uint32_t id = 0; id < t->count; id++) {
        spelled_bytes(scratch, spelling[id], &byte_level);
        if (byte_level && t->offset[id + 1] > t->offset[id]) tokenizer_words_put(t, id);
    }
}

static void index_bytes(mr_tokenizer *t, const json_t *vocab) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        const uint32_t c = tokenizer_byte_character((uint8_t)byte);
        char name[3] = {(char)c, '\0', '\0'};
        if (c >= 0x80) {
            name[0] = (char)(0xc0 | c >> 6);
            name[1] = (char)(0x80 | (c & 63));
        }
        const json_t *id = json_object_get(vocab, name);
        t->byte_id[byte] = id ? (int32_t)json_integer_value(id) : -1;
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
                                          "end_of_word_suffix", "byte_fallback"};
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
    if (status != MR_OK) return status;
    const json_t *id = unknown ? json_object_get(vocab, unknown) : NULL;
    t->unknown_id = id ? (int32_t)json_integer_value(id) : -1;
    return MR_OK;
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
        build_arena(t, spelling, vocab);
        index_bytes(t, vocab);
        if (t->ignore_merges) index_words(t, spelling);
        status = read_merges(t, json_object_get(model, "merges"), vocab, err);
    }
    free(spelling);
    if (status == MR_OK) status = tokenizer_read_added(t, added, err);
    return status;
}

static mr_status check_ends(const json_t *root, mr_err *err) {
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *decoder = json_object_get(root, "decoder");
    const char *type = "";
    if (normalizer && !json_is_null(normalizer)) {
        const json_t *parts = json_object_get(normalizer, "normalizers");
        const mr_status status = mr_json_string(&type, normalizer, "type", err);
        if (status != MR_OK) return status;
        if (strcmp(type, "Sequence") != 0 || !json_is_array(parts) || json_array_size(parts) > 0)
            return mr_fail(err, MR_ERR_UNSUPPORTED, "normalizer '%.40s' is not supported", type);
    }
    if (!decoder || json_is_null(decoder)) return MR_OK; /* ByteLevel follows from pre_tokenizer */
    const mr_status status = mr_json_string(&type, decoder, "type", err);
    if (status != MR_OK) return status;
    if (strcmp(type, "ByteLevel") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "decoder '%.40s' is not supported", type);
    return MR_OK;
}

static mr_status read_all(mr_tokenizer *t, const json_t *root, mr_err *err) {
    if (!json_is_object(root))
        return mr_fail(err, MR_ERR_FORMAT, "the file must hold an object, not %s",
                       mr_json_type_name(root));
    mr_status status = check_ends(root, err);
    if (status == MR_OK) status = tokenizer_read_pre(t, root, err);
    if (status == MR_OK) status = read_model(t, root, err);
    if (status == MR_OK) status = tokenizer_read_post(t, root, err);
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
    for (uint32_t i = 0; i < t->stage_count; i++) pcre2_code_free(t->stages[i].code);
    pcre2_code_free(t->word_character);
    for (int i = 0; i < 2; i++) free(t->tries[i].nodes);
    free(t->added);
    free(t->merges.slots);
    free(t->words.slots);
    free(t->special);
    free(t->offset);
    free(t->arena);
    free(t);
}
