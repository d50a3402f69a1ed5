/* served.c - see served.h. */
#include "coordinator/served.h"

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void add_stop_id(mr_served *s, int64_t id) {
    if (id < 0 || id >= s->vocab_size || s->stop_id_count == MR_MAX_STOP_IDS) return;
    for (uint32_t i = 0; i < s->stop_id_count; i++)
        if (s->stop_ids[i] == id) return;
    s->stop_ids[s->stop_id_count++] = (int32_t)id;
}

/* The file if it is there; *out stays NULL if not. */
static mr_status load_optional(json_t **out, const char *directory, const char *name, mr_err *err) {
    char *path = mr_format("%s/%s", directory, name);
    mr_status status = MR_OK;
    *out = NULL;
    if (access(path, F_OK) == 0) status = mr_json_load(out, path, MR_MAX_CONFIG_BYTES, err);
    free(path);
    return status;
}

static mr_status read_sampling(mr_served *s, const json_t *root, mr_err *err) {
    bool samples = true;
    int64_t top_k = s->top_k;
    mr_status status = mr_json_double(&s->temperature, root, "temperature", 0, 100, err);
    if (status == MR_OK) status = mr_json_double(&s->top_p, root, "top_p", 0, 1, err);
    if (status == MR_OK) status = mr_json_int(&top_k, root, "top_k", -1, MR_MAX_VOCAB, err);
    if (status == MR_OK) status = mr_json_bool(&samples, root, "do_sample", err);
    s->top_k = top_k > 0 ? (uint32_t)top_k : 0;
    s->has_sampling = json_object_get(root, "temperature") || json_object_get(root, "top_p") ||
                      json_object_get(root, "top_k") || json_object_get(root, "do_sample");
    if (!samples) s->temperature = 0;
    return status;
}

static mr_status read_generation_config(mr_served *s, const char *directory, mr_err *err) {
    json_t *root, *item;
    size_t i;
    mr_status status = load_optional(&root, directory, "generation_config.json", err);
    if (status != MR_OK || !root) return status;
    const json_t *eos = json_object_get(root, "eos_token_id");
    if (json_is_integer(eos)) add_stop_id(s, json_integer_value(eos));
    json_array_foreach(eos, i, item) if (json_is_integer(item))
        add_stop_id(s, json_integer_value(item));
    status = read_sampling(s, root, err);
    json_decref(root);
    return status == MR_OK ? MR_OK
                           : mr_fail_prefix(err, status, "%s/generation_config.json", directory);
}

/* eos_token: a string, or an object with the string as content. */
static mr_status read_tokenizer_config(mr_served *s, const char *directory, mr_err *err) {
    json_t *root;
    const mr_status status = load_optional(&root, directory, "tokenizer_config.json", err);
    if (status != MR_OK || !root) return status;
    const json_t *eos = json_object_get(root, "eos_token");
    if (json_is_object(eos)) eos = json_object_get(eos, "content");
    if (json_is_string(eos) && s->tokenizer)
        add_stop_id(
            s, mr_tokenizer_find(s->tokenizer, json_string_value(eos), json_string_length(eos)));
    json_decref(root);
    return MR_OK;
}

static mr_status read_tokenizer(mr_served *s, const char *directory, mr_err *err) {
    mr_status status = MR_OK;
    char *path = mr_format("%s/tokenizer.json", directory);
    if (access(path, F_OK) == 0)
        status = mr_tokenizer_open(&s->tokenizer, path, err);
    else
        mr_log_warn("%s has no tokenizer.json: only token ids are taken, answers have no text",
                    directory);
    if (status == MR_OK && s->tokenizer && mr_tokenizer_count(s->tokenizer) > s->vocab_size)
        status = mr_fail(err, MR_ERR_MISMATCH, "%s has %u tokens, but the model's vocab_size is %u",
                         path, mr_tokenizer_count(s->tokenizer), s->vocab_size);
    free(path);
    return status;
}

mr_status mr_served_open(mr_served **out, const mr_model *model, const char *name, mr_err *err) {
    const mr_config *config = mr_model_config(model);
    const char *directory = mr_model_directory(model);
    mr_served *s = mr_alloc(sizeof(*s));
    *out = NULL;
    s->name = mr_strdup(name ? name : mr_model_name(model));
    s->context_tokens = config->context_tokens;
    s->vocab_size = config->vocab_size;
    s->created = (int64_t)time(NULL);
    s->temperature = s->top_p = 1;
    for (uint32_t i = 0; i < config->eos_count; i++) add_stop_id(s, config->eos_tokens[i]);
    mr_status status = read_tokenizer(s, directory, err);
    if (status == MR_OK) status = mr_chat_template_open(&s->chat, directory, err);
    if (status == MR_OK) status = read_generation_config(s, directory, err);
    if (status == MR_OK) status = read_tokenizer_config(s, directory, err);
    if (status != MR_OK) {
        mr_served_close(s);
        return status;
    }
    *out = s;
    return MR_OK;
}

void mr_served_close(mr_served *s) {
    if (!s) return;
    mr_chat_template_close(s->chat);
    mr_tokenizer_close(s->tokenizer);
    free(s->name);
    free(s);
}

static mr_status encode(const mr_served *s, const char *text, size_t bytes,
                        const mr_encode_options *options, mr_token_list *out, mr_err *err) {
    if (!s->tokenizer)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "this model has no tokenizer.json: send token ids instead of text");
    const size_t least = bytes / mr_tokenizer_longest_token(s->tokenizer);
    if (least >= s->context_tokens)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "the prompt has at least %zu tokens; this model's context has %u", least,
                       s->context_tokens);
    const size_t before = out->count;
    const mr_status status = mr_tokenizer_encode(s->tokenizer, text, bytes, options, out, err);
    if (status != MR_OK) return status;
    if (out->count - before >= s->context_tokens)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "the prompt has %zu tokens; this model's context has %u, of which one must "
                       "be left for the answer",
                       out->count - before, s->context_tokens);
    return MR_OK;
}

mr_status mr_served_encode(const mr_served *s, const char *text, size_t bytes, mr_token_list *out,
                           mr_err *err) {
    return encode(s, text, bytes, &(mr_encode_options){.add_template = true}, out, err);
}

mr_status mr_served_encode_chat(const mr_served *s, const mr_chat_input *input, mr_token_list *out,
                                mr_err *err) {
    mr_chat_prompt prompt;
    mr_status status = mr_chat_template_render(&prompt, s->chat, input, err);
    if (status != MR_OK) return status;
    const mr_encode_options options = {.literal = prompt.literal,
                                       .literal_count = prompt.literal_count};
    status = encode(s, mr_text_string(&prompt.text), prompt.text.bytes, &options, out, err);
    mr_chat_prompt_free(&prompt);
    return status;
}
