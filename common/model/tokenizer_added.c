/* tokenizer_added.c - added tokens and the post-processor's template, from tokenizer.json. */
#include "common/model/tokenizer_impl.h"

#include "common/base/mem.h"

#include <string.h>

static uint32_t add_node(tokenizer_trie *trie, uint8_t byte) {
    if (trie->count == trie->room) {
        trie->room = trie->room ? 2 * trie->room : 64;
        trie->nodes = mr_realloc_array(trie->nodes, trie->room, sizeof(*trie->nodes));
        if (trie->count == 0) trie->nodes[trie->count++] = (tokenizer_node){0}; /* 0 is no node */
    }
    trie->nodes[trie->count] = (tokenizer_node){.byte = byte};
    return trie->count++;
}

static uint32_t child_of(tokenizer_trie *trie, uint32_t node, uint8_t byte) {
    uint32_t child = trie->nodes[node].child;
    while (child != 0 && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
    if (child != 0) return child;
    child = add_node(trie, byte);
    trie->nodes[child].sibling = trie->nodes[node].child;
    trie->nodes[node].child = child;
    return child;
}

static mr_status insert(tokenizer_trie *trie, const char *content, uint32_t added, mr_err *err) {
    const uint8_t *bytes = (const uint8_t *)content;
    if (*content == '\0')
        return mr_fail(err, MR_ERR_FORMAT, "the normalizers leave nothing of an added token");
    if (trie->count + strlen(content) > MR_MAX_ADDED_TRIE_NODES)
        return mr_fail(err, MR_ERR_LIMIT, "the added tokens are longer than %d bytes together",
                       MR_MAX_ADDED_TRIE_NODES);
    if (trie->root[bytes[0]] == 0) trie->root[bytes[0]] = add_node(trie, bytes[0]);
    uint32_t node = trie->root[bytes[0]];
    for (size_t i = 1; bytes[i] != 0; i++) node = child_of(trie, node, bytes[i]);
    if (trie->nodes[node].added != 0)
        return mr_fail(err, MR_ERR_FORMAT, "added token '%.40s' appears twice", content);
    trie->nodes[node].added = added + 1;
    return MR_OK;
}

/* The content as it is looked for: in normalized text, where the token says so. */
static mr_status normal_form(mr_tokenizer *t, const char *content, char **form, mr_err *err) {
    tokenizer_run run = {.tokenizer = t, .err = err};
    tokenizer_normalized normal;
    mr_status status = tokenizer_run_open(&run, strlen(content));
    if (status == MR_OK)
        status = tokenizer_normalize(&run, content, strlen(content), 0, false, &normal);
    if (status == MR_OK &&
        (normal.bytes != strlen(content) || memcmp(normal.text, content, normal.bytes) != 0))
        *form = mr_strndup(normal.bytes ? normal.text : "", normal.bytes);
    tokenizer_run_close(&run);
    return status;
}

static mr_status read_token(mr_tokenizer *t, const json_t *item, char **forms, mr_err *err) {
    const char *content = json_string_value(json_object_get(item, "content"));
    tokenizer_added added = {.id = (uint32_t)json_integer_value(json_object_get(item, "id"))};
    mr_status status = mr_json_bool(&added.special, item, "special", err);
    added.normalized = !added.special; /* the reference's default */
    if (status == MR_OK) status = mr_json_bool(&added.single_word, item, "single_word", err);
    if (status == MR_OK) status = mr_json_bool(&added.lstrip, item, "lstrip", err);
    if (status == MR_OK) status = mr_json_bool(&added.rstrip, item, "rstrip", err);
    if (status == MR_OK) status = mr_json_bool(&added.normalized, item, "normalized", err);
    if (status == MR_OK && added.normalized && !forms[added.id])
        status = normal_form(t, content, &forms[added.id], err);
    if (status != MR_OK) return status;
    tokenizer_trie *trie = &t->tries[added.normalized ? 1 : 0];
    const char *form = added.normalized && forms[added.id] ? forms[added.id] : content;
    trie->has_special = trie->has_special || added.special;
    t->special[added.id] = added.special;
    t->added[t->added_count] = added;
    return insert(trie, form, t->added_count++, err);
}

mr_status tokenizer_read_added(mr_tokenizer *t, const json_t *list, char **forms, mr_err *err) {
    size_t i;
    json_t *item;
    t->added = mr_alloc_array(json_array_size(list), sizeof(*t->added));
    json_array_foreach(list, i, item) {
        const mr_status status = read_token(t, item, forms, err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "added_tokens[%zu]", i);
    }
    return MR_OK;
}

/* The ids of one special token of the template. */
static mr_status read_special(mr_tokenizer *t, const json_t *table, const char *name, bool after,
                              mr_err *err) {
    const json_t *ids = json_object_get(json_object_get(table, name), "ids");
    int32_t *out = after ? t->after : t->before;
    uint32_t *count = after ? &t->after_count : &t->before_count;
    size_t i;
    json_t *value;
    if (!json_is_array(ids))
        return mr_fail(err, MR_ERR_FORMAT, "post_processor: special_tokens has no ids for '%.40s'",
                       name);
    json_array_foreach(ids, i, value) {
        const json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= (json_int_t)t->count)
            return mr_fail(err, MR_ERR_RANGE,
                           "post_processor: '%.40s' has an id outside the vocabulary", name);
        if (*count == MR_MAX_TEMPLATE_TOKENS)
            return mr_fail(err, MR_ERR_LIMIT, "post_processor: more than %d special tokens",
                           MR_MAX_TEMPLATE_TOKENS);
        out[(*count)++] = (int32_t)id;
    }
    return MR_OK;
}

static mr_status read_template(mr_tokenizer *t, const json_t *post, mr_err *err) {
    const json_t *single = json_object_get(post, "single");
    const json_t *table = json_object_get(post, "special_tokens");
    bool after = false;
    size_t i;
    json_t *part;
    if (!json_is_array(single))
        return mr_fail(err, MR_ERR_FORMAT, "post_processor: TemplateProcessing without single");
    json_array_foreach(single, i, part) {
        const char *name = NULL;
        const json_t *special = json_object_get(part, "SpecialToken");
        const json_t *sequence = json_object_get(part, "Sequence");
        mr_status status = mr_json_string(&name, special ? special : sequence, "id", err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "post_processor");
        if (special && name) {
            status = read_special(t, table, name, after, err);
            if (status != MR_OK) return status;
        } else if (sequence && name && strcmp(name, "A") == 0 && !after)
            after = true;
        else
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "post_processor: single must be one text A among special tokens");
    }
    if (!after)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "post_processor: single does not contain the text");
    return MR_OK;
}

static mr_status read_processor(mr_tokenizer *t, const json_t *post, int depth, bool *have_template,
                                mr_err *err) {
    const char *type = "";
    mr_status status = mr_json_string(&type, post, "type", err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "post_processor");
    if (strcmp(type, "ByteLevel") == 0) return MR_OK; /* it moves offsets, never tokens */
    if (strcmp(type, "TemplateProcessing") == 0 && !*have_template) {
        *have_template = true;
        return read_template(t, post, err);
    }
    if (strcmp(type, "Sequence") == 0 && depth == 0) {
        size_t i;
        json_t *part;
        json_array_foreach(json_object_get(post, "processors"), i, part) {
            status = read_processor(t, part, 1, have_template, err);
            if (status != MR_OK) return status;
        }
        return MR_OK;
    }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "post_processor '%.40s' is not supported here", type);
}

mr_status tokenizer_read_post(mr_tokenizer *t, const json_t *root, mr_err *err) {
    bool have_template = false;
    const json_t *post = json_object_get(root, "post_processor");
    if (!post || json_is_null(post)) return MR_OK;
    return read_processor(t, post, 0, &have_template, err);
}
