/* gguf_tokenizer.c - tokenizer.json, tokenizer_config.json and generation_config.json from the
 * tokenizer.* keys of a GGUF file.
 *
 * Two kinds are known: "gpt2", byte-level BPE with merges and a named pre-tokenizer, and "llama",
 * SentencePiece BPE with scores and byte fallback. Any other kind or name is refused, with the
 * option that imports the model alone. Where the file leaves a question open (does a beginning
 * token come first?), the answer is that of the program the format belongs to. */
#include "common/model/gguf_import_impl.h"
#include "common/model/gguf_tokenizer_impl.h"

#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/tokenizer_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY "tokenizer.ggml."
#define NO_TOKENIZER "; --no-tokenizer imports the model without it"
enum { NO_ID = -1 };

typedef struct {
    mr_gguf *file;
    const gguf_model *model;
    char kind[16], pre_name[64];
    const gguf_pre_tokenizer *pre;
    gguf_vocabulary vocabulary;
    json_t *ids; /* text -> id, of all tokens */
    int64_t bos, eos, unknown, pad;
    bool add_bos, add_eos, add_space;
} reader;

static mr_status read_text(reader *r, char *out, size_t room, const char *key, mr_err *err) {
    char *text = NULL;
    out[0] = '\0';
    const mr_status status = mr_gguf_text(&text, r->file, key, room - 1, err);
    if (status == MR_OK && text) snprintf(out, room, "%s", text);
    free(text);
    return status;
}

static mr_status read_id(reader *r, int64_t *out, const char *key, mr_err *err) {
    uint64_t id = UINT64_MAX;
    const uint64_t most = r->vocabulary.count ? r->vocabulary.count - 1 : MR_MAX_VOCAB;
    const mr_status status = mr_gguf_u64(&id, r->file, key, 0, most, err);
    if (status == MR_OK && id != UINT64_MAX) *out = (int64_t)id;
    return status;
}

/* --- the vocabulary --------------------------------------------------------------------------- */

static mr_status find_array(const reader *r, const mr_gguf_value **out, const char *key,
                            uint64_t count, mr_err *err) {
    *out = mr_gguf_find(r->file, key);
    if (!*out) return MR_OK;
    if ((*out)->kind != MR_GGUF_ARRAY || (*out)->count < count)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %s must be an array of %llu items",
                       mr_gguf_name(r->file), key, (unsigned long long)count);
    return MR_OK;
}

static mr_status read_numbers(reader *r, const char *key, mr_err *err) {
    gguf_vocabulary *v = &r->vocabulary;
    const mr_gguf_value *array;
    mr_gguf_cursor cursor;
    const bool types = strcmp(key, KEY "token_type") == 0;
    mr_status status = find_array(r, &array, key, v->count, err);
    if (status != MR_OK || !array) return status;
    mr_gguf_items_begin(&cursor, r->file, array);
    for (uint32_t i = 0; i < v->count && status == MR_OK; i++) {
        double number = 0;
        status = mr_gguf_next_number(&cursor, &number, err);
        if (status == MR_OK && !isfinite(number))
            status = mr_fail(err, MR_ERR_RANGE, "%s: %s: item %u is not finite",
                             mr_gguf_name(r->file), key, i);
        if (types)
            v->type[i] = number >= 1 && number <= 6 ? (uint8_t)number : GGUF_TOKEN_NORMAL;
        else
            v->score[i] = (float)number;
    }
    mr_gguf_items_end(&cursor);
    return status;
}

/* Text of token i to the arena's end; an empty one gets a name that no text can hold. */
static mr_status add_token(reader *r, uint32_t i, const char *text, size_t bytes, size_t *room,
                           mr_err *err) {
    gguf_vocabulary *v = &r->vocabulary;
    char empty[32];
    if (bytes == 0) {
        bytes = (size_t)snprintf(empty, sizeof(empty), "[EMPTY_%u]", i);
        text = empty;
    }
    const uint64_t at = v->offset[i], end = at + bytes + 1;
    if (strlen(text) != bytes || !mr_utf8_valid(text, bytes))
        return mr_fail(err, MR_ERR_FORMAT, "%s: token %u is not UTF-8 text", mr_gguf_name(r->file),
                       i);
    if (end > MR_MAX_TOKENIZER_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: the tokens have more than %d bytes",
                       mr_gguf_name(r->file), MR_MAX_TOKENIZER_BYTES);
    if (end > *room) {
        *room = 2 * (size_t)end + 4096;
        v->arena = mr_realloc_array(v->arena, *room, 1);
    }
    memcpy(v->arena + at, text, bytes + 1);
    v->offset[i + 1] = end;
    if (json_object_get(r->ids, text))
        return mr_fail(err, MR_ERR_FORMAT, "%s: tokens %lld and %u are both '%.40s'",
                       mr_gguf_name(r->file),
                       (long long)json_integer_value(json_object_get(r->ids, text)), i, text);
    json_object_set_new_nocheck(r->ids, text, json_integer(i));
    return MR_OK;
}

/* Rows that only pad the embedding, named after their id, are no tokens. */
static void drop_padding(reader *r) {
    gguf_vocabulary *v = &r->vocabulary;
    char name[32];
    while (v->count > 1 && v->type[v->count - 1] == GGUF_TOKEN_UNUSED) {
        snprintf(name, sizeof(name), "[PAD%u]", v->count - 1);
        if (strcmp(name, gguf_token(v, v->count - 1)) != 0) return;
        json_object_del(r->ids, name);
        v->count--;
    }
}

static mr_status read_vocabulary(reader *r, mr_err *err) {
    gguf_vocabulary *v = &r->vocabulary;
    const mr_gguf_value *array;
    mr_gguf_cursor cursor;
    size_t room = 0;
    mr_status status = find_array(r, &array, KEY "tokens", 1, err);
    if (status != MR_OK) return status;
    if (!array || array->count > r->model->vocab)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: " KEY "tokens has %llu tokens, the embedding has "
                       "%llu",
                       mr_gguf_name(r->file), (unsigned long long)(array ? array->count : 0),
                       (unsigned long long)r->model->vocab);
    v->count = (uint32_t)array->count;
    v->offset = mr_alloc_array(v->count + (size_t)1, sizeof(*v->offset));
    v->type = mr_alloc_array(v->count, sizeof(*v->type));
    v->score = mr_alloc_array(v->count, sizeof(*v->score));
    memset(v->type, GGUF_TOKEN_NORMAL, v->count);
    mr_gguf_items_begin(&cursor, r->file, array);
    for (uint32_t i = 0; i < v->count && status == MR_OK; i++) {
        const char *text = "";
        size_t bytes = 0;
        status = mr_gguf_next_text(&cursor, &text, &bytes, MR_MAX_TOKEN_BYTES, err);
        if (status == MR_OK) status = add_token(r, i, text, bytes, &room, err);
    }
    mr_gguf_items_end(&cursor);
    if (status == MR_OK) status = read_numbers(r, KEY "token_type", err);
    if (status == MR_OK) status = read_numbers(r, KEY "scores", err);
    if (status == MR_OK) drop_padding(r);
    return status;
}

/* --- tokenizer.json --------------------------------------------------------------------------- */

static bool is_added(const reader *r, uint32_t id) {
    const uint8_t type = r->vocabulary.type[id];
    return type == GGUF_TOKEN_CONTROL || type == GGUF_TOKEN_USER_DEFINED ||
           type == GGUF_TOKEN_UNKNOWN;
}

static json_t *added_tokens(const reader *r) {
    json_t *added = json_array();
    for (uint32_t id = 0; id < r->vocabulary.count; id++) {
        if (!is_added(r, id)) continue;
        json_array_append_new(added,
                              json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (int)id,
                                        "content", gguf_token(&r->vocabulary, id), "single_word", 0,
                                        "lstrip", 0, "rstrip", 0, "normalized", 0, "special",
                                        r->vocabulary.type[id] != GGUF_TOKEN_USER_DEFINED));
    }
    return added;
}

static json_t *sequence(const char *name, int type) {
    return json_pack("{s:{s:s, s:i}}", "Sequence", "id", name, "type_id", type);
}

static void add_special(json_t *list, json_t *special, const char *text, int64_t id, int type) {
    json_array_append_new(list,
                          json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", text, "type_id", type));
    json_object_set_new_nocheck(
        special, text,
        json_pack("{s:s, s:[I], s:[s]}", "id", text, "ids", (json_int_t)id, "tokens", text));
}

/* Beginning and end as the file wants them, for one text and for two. */
static json_t *post_processor(const reader *r) {
    if (!r->add_bos && !r->add_eos) return json_null();
    json_t *lists[2] = {json_array(), json_array()}, *special = json_object();
    const char *bos = r->add_bos ? gguf_token(&r->vocabulary, (uint32_t)r->bos) : NULL;
    const char *eos = r->add_eos ? gguf_token(&r->vocabulary, (uint32_t)r->eos) : NULL;
    for (int pair = 0; pair < 2; pair++)
        for (int type = 0; type <= pair; type++) {
            if (bos) add_special(lists[pair], special, bos, r->bos, type);
            json_array_append_new(lists[pair], sequence(type ? "B" : "A", type));
            if (eos) add_special(lists[pair], special, eos, r->eos, type);
        }
    return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", lists[0],
                     "pair", lists[1], "special_tokens", special);
}

static json_t *new_bpe(const char *unknown, bool fuse, bool fallback, bool ignore_merges,
                       json_t *vocab, json_t *merges) {
    return json_pack("{s:s, s:n, s:s?, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE",
                     "dropout", "unk_token", unknown, "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", (int)fuse, "byte_fallback", (int)fallback,
                     "ignore_merges", (int)ignore_merges, "vocab", vocab, "merges", merges);
}

/* "a b" as two texts; all three must be tokens. An added token that merges make is one of vocab. */
static mr_status add_merge(const reader *r, json_t *merges, json_t *vocab, char *text, size_t bytes,
                           mr_err *err) {
    char *space = bytes > 1 ? strchr(text + 1, ' ') : NULL;
    const size_t index = json_array_size(merges);
    if (!space || space[1] == '\0' || strlen(text) != bytes || !mr_utf8_valid(text, bytes))
        return mr_fail(err, MR_ERR_FORMAT, "%s: merge %zu is not a pair of texts",
                       mr_gguf_name(r->file), index);
    *space = '\0';
    char *joined = mr_format("%s%s", text, space + 1);
    const char *parts[3] = {text, space + 1, joined};
    mr_status status = MR_OK;
    for (int i = 0; i < 3 && status == MR_OK; i++) {
        json_t *id = json_object_get(r->ids, parts[i]);
        if (!id)
            status = mr_fail(err, MR_ERR_FORMAT, "%s: merge %zu names '%.40s', which is no token",
                             mr_gguf_name(r->file), index, parts[i]);
        else if (!json_object_get(vocab, parts[i]))
            json_object_set_nocheck(vocab, parts[i], id);
    }
    if (status == MR_OK) json_array_append_new(merges, json_pack("[s, s]", text, space + 1));
    free(joined);
    return status;
}

static mr_status read_merges(reader *r, json_t *merges, json_t *vocab, mr_err *err) {
    const mr_gguf_value *array;
    mr_gguf_cursor cursor;
    mr_status status = find_array(r, &array, KEY "merges", 0, err);
    if (status == MR_OK && !array)
        status = mr_fail(err, MR_ERR_FORMAT, "%s: " KEY "merges is missing", mr_gguf_name(r->file));
    if (status == MR_OK && array->count > MR_MAX_VOCAB)
        status = mr_fail(err, MR_ERR_LIMIT, "%s: %llu merges, at most %d are read",
                         mr_gguf_name(r->file), (unsigned long long)array->count, MR_MAX_VOCAB);
    if (status != MR_OK) return status;
    mr_gguf_items_begin(&cursor, r->file, array);
    for (uint64_t i = 0; i < array->count && status == MR_OK; i++) {
        const char *text = "";
        size_t bytes = 0;
        status = mr_gguf_next_text(&cursor, &text, &bytes, MR_MAX_TOKEN_BYTES, err);
        if (status == MR_OK) status = add_merge(r, merges, vocab, cursor.text, bytes, err);
    }
    mr_gguf_items_end(&cursor);
    return status;
}

static json_t *vocab_of(const reader *r, bool with_added) {
    json_t *vocab = json_object();
    for (uint32_t id = 0; id < r->vocabulary.count; id++)
        if (with_added || !is_added(r, id))
            json_object_set_new_nocheck(vocab, gguf_token(&r->vocabulary, id), json_integer(id));
    return vocab;
}

static mr_status make_gpt2(reader *r, json_t *root, mr_err *err) {
    json_t *merges = json_array(), *vocab = vocab_of(r, false);
    const mr_status status = read_merges(r, merges, vocab, err);
    if (status != MR_OK) {
        json_decref(merges);
        json_decref(vocab);
        return status;
    }
    json_object_set_new(root, "normalizer",
                        r->pre->nfc ? json_pack("{s:s}", "type", "NFC") : json_null());
    json_object_set_new(root, "pre_tokenizer", gguf_pre_json(r->pre));
    json_object_set_new(root, "post_processor", post_processor(r));
    json_object_set_new(root, "decoder",
                        json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space",
                                  1, "trim_offsets", 1, "use_regex", 1));
    json_object_set_new(root, "model",
                        new_bpe(NULL, false, false, r->pre->ignore_merges, vocab, merges));
    return MR_OK;
}

static json_t *replacement(const char *from, const char *to) {
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content",
                     to);
}

static mr_status make_llama(reader *r, json_t *root, mr_err *err) {
    static const char space[] = "\xe2\x96\x81"; /* U+2581 */
    json_t *merges, *before = json_array(), *after = json_array();
    const char *unknown =
        r->unknown == NO_ID ? NULL : gguf_token(&r->vocabulary, (uint32_t)r->unknown);
    const mr_status status = gguf_spm_merges(&merges, &r->vocabulary, err);
    if (status != MR_OK) {
        json_decref(before);
        json_decref(after);
        return mr_fail_prefix(err, status, "%s", mr_gguf_name(r->file));
    }
    if (r->add_space)
        json_array_append_new(before, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", space));
    json_array_append_new(before, replacement(" ", space));
    json_array_append_new(after, replacement(space, " "));
    json_array_append_new(after, json_pack("{s:s}", "type", "ByteFallback"));
    json_array_append_new(after, json_pack("{s:s}", "type", "Fuse"));
    if (r->add_space)
        json_array_append_new(after, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content",
                                               " ", "start", 1, "stop", 0));
    json_object_set_new(root, "normalizer",
                        json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", before));
    json_object_set_new(root, "pre_tokenizer", json_null());
    json_object_set_new(root, "post_processor", post_processor(r));
    json_object_set_new(root, "decoder",
                        json_pack("{s:s, s:o}", "type", "Sequence", "decoders", after));
    json_object_set_new(root, "model",
                        new_bpe(unknown, true, true, false, vocab_of(r, true), merges));
    return MR_OK;
}

/* --- what kind, and its answers --------------------------------------------------------------- */

static mr_status find_kind(reader *r, mr_err *err) {
    const char *what = mr_gguf_name(r->file);
    mr_status status = read_text(r, r->kind, sizeof(r->kind), KEY "model", err);
    if (status == MR_OK) status = read_text(r, r->pre_name, sizeof(r->pre_name), KEY "pre", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "cannot read the tokenizer");
    if (strcmp(r->kind, "llama") == 0) return MR_OK;
    if (r->kind[0] == '\0')
        return mr_fail(err, MR_ERR_FORMAT, "%s has no tokenizer" NO_TOKENIZER, what);
    if (strcmp(r->kind, "gpt2") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s: tokenizer '%s' is not supported (gpt2 and "
                       "llama are)" NO_TOKENIZER,
                       what, r->kind);
    r->pre = gguf_pre_find(r->pre_name);
    if (r->pre) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: pre-tokenizer '%s' is not known" NO_TOKENIZER,
                   what, r->pre_name[0] ? r->pre_name : "(none)");
}

static mr_status read_answers(reader *r, mr_err *err) {
    const bool llama = strcmp(r->kind, "llama") == 0;
    bool strips = false;
    if (llama && r->vocabulary.count > 2) { /* the usual places */
        r->unknown = 0;
        r->bos = 1;
        r->eos = 2;
    }
    r->add_bos = llama || r->pre->ignore_merges; /* llama3 and tekken */
    r->add_space = true;
    mr_status status = read_id(r, &r->bos, KEY "bos_token_id", err);
    if (status == MR_OK) status = read_id(r, &r->eos, KEY "eos_token_id", err);
    if (read_id(r, &r->unknown, KEY "unknown_token_id", NULL) != MR_OK ||
        read_id(r, &r->pad, KEY "padding_token_id", NULL) != MR_OK)
        r->pad = NO_ID; /* files say "none" here with a number beyond the vocabulary */
    if (status == MR_OK) status = mr_gguf_bool(&r->add_bos, r->file, KEY "add_bos_token", err);
    if (status == MR_OK) status = mr_gguf_bool(&r->add_eos, r->file, KEY "add_eos_token", err);
    if (status == MR_OK) status = mr_gguf_bool(&r->add_space, r->file, KEY "add_space_prefix", err);
    if (status == MR_OK)
        status = mr_gguf_bool(&strips, r->file, KEY "remove_extra_whitespaces", err);
    if (status != MR_OK) return status;
    if (llama && (strips || mr_gguf_find(r->file, KEY "precompiled_charsmap")))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s: a llama tokenizer with "
                       "%s is not supported" NO_TOKENIZER,
                       mr_gguf_name(r->file),
                       strips ? "remove_extra_whitespaces" : "precompiled_charsmap");
    if ((r->add_bos && r->bos == NO_ID) || (r->add_eos && r->eos == NO_ID))
        return mr_fail(err, MR_ERR_FORMAT, "%s: %s is to be added, but has no id" NO_TOKENIZER,
                       mr_gguf_name(r->file),
                       r->add_bos && r->bos == NO_ID ? "a beginning token" : "an end token");
    return MR_OK;
}

/* --- the files -------------------------------------------------------------------------------- */

static mr_status make_tokenizer(reader *r, json_t **out, mr_err *err) {
    *out = json_pack("{s:s, s:n, s:n, s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", added_tokens(r));
    return r->pre ? make_gpt2(r, *out, err) : make_llama(r, *out, err);
}

/* The template, or all of them with their names where there are several. */
static mr_status read_templates(reader *r, json_t **out, mr_err *err) {
    const mr_gguf_value *names = mr_gguf_find(r->file, "tokenizer.chat_templates");
    char *text = NULL;
    mr_gguf_cursor cursor;
    mr_status status =
        mr_gguf_text(&text, r->file, "tokenizer.chat_template", MR_MAX_CONFIG_BYTES / 4, err);
    if (status != MR_OK) return status;
    *out = text ? json_string(text) : NULL;
    if (!names || names->count == 0 || names->count > 64) goto done;
    json_t *list = json_array();
    if (text)
        json_array_append_new(list, json_pack("{s:s, s:s}", "name", "default", "template", text));
    mr_gguf_items_begin(&cursor, r->file, names);
    for (uint64_t i = 0; i < names->count && status == MR_OK; i++) {
        const char *name = "";
        size_t bytes = 0;
        char key[160], *other = NULL;
        status = mr_gguf_next_text(&cursor, &name, &bytes, 64, err);
        if (status != MR_OK) break;
        snprintf(key, sizeof(key), "tokenizer.chat_template.%s", name);
        status = mr_gguf_text(&other, r->file, key, MR_MAX_CONFIG_BYTES / 128, err);
        json_t *item = other ? json_pack("{s:s, s:s}", "name", name, "template", other) : NULL;
        if (item) json_array_append_new(list, item);
        free(other);
    }
    mr_gguf_items_end(&cursor);
    json_decref(*out);
    *out = list;
done:
    free(text);
    return status;
}

static void put_token(const reader *r, json_t *root, const char *key, int64_t id) {
    if (id != NO_ID)
        json_object_set_new(root, key, json_string(gguf_token(&r->vocabulary, (uint32_t)id)));
}

static mr_status make_tokenizer_config(reader *r, json_t **out, mr_err *err) {
    json_t *template = NULL;
    const mr_status status = read_templates(r, &template, err);
    if (status != MR_OK) {
        json_decref(template);
        return status;
    }
    json_t *root = json_pack("{s:b, s:b, s:b, s:I, s:s}", "add_bos_token", (int)r->add_bos,
                             "add_eos_token", (int)r->add_eos, "clean_up_tokenization_spaces", 0,
                             "model_max_length", (json_int_t)r->model->context, "tokenizer_class",
                             r->pre ? "PreTrainedTokenizerFast" : "LlamaTokenizerFast");
    put_token(r, root, "bos_token", r->bos);
    put_token(r, root, "eos_token", r->eos);
    put_token(r, root, "unk_token", r->unknown);
    put_token(r, root, "pad_token", r->pad);
    if (template) json_object_set_new(root, "chat_template", template);
    *out = root;
    return MR_OK;
}

/* Where a reply ends: the end token, and those that end a turn or a message. */
static mr_status make_generation_config(reader *r, json_t **out, mr_err *err) {
    static const char *const ends[] = {KEY "eos_token_id", KEY "eot_token_id", KEY "eom_token_id"};
    json_t *root = json_object(), *list = json_array();
    double temperature = -1, top_p = -1;
    uint64_t top_k = 0;
    mr_status status = MR_OK;
    for (size_t i = 0; i < 3 && status == MR_OK; i++) {
        int64_t id = i == 0 ? r->eos : NO_ID;
        bool twice = false;
        status = read_id(r, &id, ends[i], err);
        for (size_t k = 0; k < json_array_size(list); k++)
            twice = twice || json_integer_value(json_array_get(list, k)) == id;
        if (id != NO_ID && !twice) json_array_append_new(list, json_integer(id));
    }
    if (status == MR_OK) status = read_id(r, &r->bos, KEY "bos_token_id", err);
    if (status == MR_OK)
        status = mr_gguf_double(&temperature, r->file, "general.sampling.temp", 0, 100, err);
    if (status == MR_OK)
        status = mr_gguf_double(&top_p, r->file, "general.sampling.top_p", 0, 1, err);
    if (status == MR_OK)
        status = mr_gguf_u64(&top_k, r->file, "general.sampling.top_k", 0, MR_MAX_VOCAB, err);
    if (r->bos != NO_ID) json_object_set_new(root, "bos_token_id", json_integer(r->bos));
    if (json_array_size(list) == 1)
        json_object_set(root, "eos_token_id", json_array_get(list, 0));
    else if (json_array_size(list) > 1)
        json_object_set(root, "eos_token_id", list);
    if (temperature >= 0) json_object_set_new(root, "temperature", json_real(temperature));
    if (top_p >= 0) json_object_set_new(root, "top_p", json_real(top_p));
    if (top_k > 0) json_object_set_new(root, "top_k", json_integer((json_int_t)top_k));
    json_decref(list);
    *out = root;
    return status;
}

static mr_status read_all(reader *r, gguf_tokenizer *out, bool no_tokenizer, mr_err *err) {
    mr_status status = MR_OK;
    if (!no_tokenizer) {
        status = find_kind(r, err);
        if (status == MR_OK) status = read_vocabulary(r, err);
        if (status == MR_OK) status = read_answers(r, err);
        if (status == MR_OK) status = make_tokenizer(r, &out->tokenizer, err);
        if (status == MR_OK) status = make_tokenizer_config(r, &out->tokenizer_config, err);
        if (r->pre)
            snprintf(out->name, sizeof(out->name), "%.8s (%.20s)", r->kind, r->pre_name);
        else
            snprintf(out->name, sizeof(out->name), "llama");
    }
    return status == MR_OK ? make_generation_config(r, &out->generation_config, err) : status;
}

mr_status gguf_tokenizer_read(gguf_tokenizer *out, mr_gguf *file, const gguf_model *model,
                              bool no_tokenizer, mr_err *err) {
    reader r = {.file = file,
                .model = model,
                .ids = json_object(),
                .bos = NO_ID,
                .eos = NO_ID,
                .unknown = NO_ID,
                .pad = NO_ID};
    *out = (gguf_tokenizer){0};
    const mr_status status = read_all(&r, out, no_tokenizer, err);
    if (status != MR_OK) gguf_tokenizer_free(out);
    json_decref(r.ids);
    free(r.vocabulary.arena);
    free(r.vocabulary.offset);
    free(r.vocabulary.type);
    free(r.vocabulary.score);
    return status;
}

static mr_status write_json(json_t *root, const char *directory, const char *name, size_t flags,
                            size_t bytes_max, mr_err *err) {
    if (!root) return MR_OK;
    char *text = json_dumps(root, flags), *path = mr_format("%s/%s", directory, name);
    mr_status status;
    if (!text || strlen(text) > bytes_max)
        status = mr_fail(err, MR_ERR_LIMIT, "%s would be larger than %zu bytes", name, bytes_max);
    else
        status = mr_file_write(path, text, strlen(text), err);
    free(text);
    free(path);
    return status;
}

mr_status gguf_tokenizer_write(const gguf_tokenizer *t, const char *directory, mr_err *err) {
    mr_status status = write_json(t->tokenizer, directory, "tokenizer.json", JSON_COMPACT,
                                  MR_MAX_TOKENIZER_BYTES, err);
    if (status == MR_OK)
        status = write_json(t->tokenizer_config, directory, "tokenizer_config.json", JSON_INDENT(2),
                            MR_MAX_CONFIG_BYTES, err);
    if (status == MR_OK)
        status = write_json(t->generation_config, directory, "generation_config.json",
                            JSON_INDENT(2), MR_MAX_CONFIG_BYTES, err);
    return status;
}

void gguf_tokenizer_free(gguf_tokenizer *t) {
    json_decref(t->tokenizer);
    json_decref(t->tokenizer_config);
    json_decref(t->generation_config);
    *t = (gguf_tokenizer){0};
}
