/* chat_template.c - see chat_template.h. The texts below are compared after a line break in them
 * has become \n, since files write it either way inside Jinja's quotes. */
#include "common/model/chat_template.h"

#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHATML_TURN                                                                                \
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
#define CHATML_START "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
#define CHATML_GUARD                                                                               \
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% "      \
    "endif %}"
#define CHATML_SYSTEM(text)                                                                        \
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n" text        \
    "<|im_end|>\\n' }}{% endif %}"
#define EACH "{% for message in messages %}"
#define END "{% endfor %}"

typedef struct {
    const char *text;
    const char *before_role, *after_role, *after_content;
    const char *generation;     /* "": the template ignores add_generation_prompt */
    const char *default_system; /* NULL: none is added */
} known_template;

static const known_template known[] = {
    {EACH "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}" END
          "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
     "<|", "|>", "<|end|>", "<|assistant|>", NULL}, /* models/demo */
    {EACH CHATML_TURN END CHATML_START, "<|im_start|>", "\n", "<|im_end|>\n",
     "<|im_start|>assistant\n", NULL},
    {CHATML_GUARD EACH CHATML_TURN END CHATML_START, "<|im_start|>", "\n", "<|im_end|>\n",
     "<|im_start|>assistant\n", NULL},
    {EACH CHATML_TURN END, "<|im_start|>", "\n", "<|im_end|>\n", "", NULL},
    {EACH CHATML_SYSTEM("You are a helpful assistant") CHATML_TURN END CHATML_START, "<|im_start|>",
     "\n", "<|im_end|>\n", "<|im_start|>assistant\n", "You are a helpful assistant"},
    {EACH CHATML_SYSTEM("You are a helpful assistant.") CHATML_TURN END CHATML_START,
     "<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n",
     "You are a helpful assistant."},
};

struct mr_chat_template {
    const known_template *known; /* NULL: refused, for the reason in refusal */
    mr_err refusal;
};

static bool same_text(const char *text, const char *wanted) {
    for (; *text; text++) {
        if (*text == '\n') {
            if (wanted[0] != '\\' || wanted[1] != 'n') return false;
            wanted += 2;
        } else if (*text != *wanted++)
            return false;
    }
    return *wanted == '\0';
}

mr_chat_template *mr_chat_template_of(const char *text) {
    mr_chat_template *chat = mr_alloc(sizeof(*chat));
    char digest[MR_DIGEST_TEXT_BYTES];
    if (!text) {
        mr_fail(&chat->refusal, MR_ERR_UNSUPPORTED,
                "this model has no chat_template: use completions instead of chat");
        return chat;
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]) && !chat->known; i++)
        if (same_text(text, known[i].text)) chat->known = &known[i];
    if (chat->known) return chat;
    const mr_digest hash = mr_sha256_of(text, strlen(text));
    mr_digest_text(&hash, digest);
    mr_fail(&chat->refusal, MR_ERR_UNSUPPORTED,
            "the model's chat_template '%.48s...' (SHA-256 %.16s) is not one of those this version "
            "knows: use completions instead of chat",
            text, digest);
    return chat;
}

static mr_status from_config(mr_chat_template **out, const char *path, mr_err *err) {
    json_t *root, *item;
    size_t i;
    const char *text = NULL;
    const mr_status status = mr_json_load(&root, path, MR_MAX_CONFIG_BYTES, err);
    if (status != MR_OK) return status;
    const json_t *value = json_object_get(root, "chat_template");
    if (json_is_string(value)) text = json_string_value(value);
    json_array_foreach(value, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            text = json_string_value(json_object_get(item, "template"));
    }
    *out = mr_chat_template_of(text);
    json_decref(root);
    return MR_OK;
}

mr_status mr_chat_template_open(mr_chat_template **out, const char *directory, mr_err *err) {
    mr_status status = MR_OK;
    char *jinja = mr_format("%s/chat_template.jinja", directory);
    char *config = mr_format("%s/tokenizer_config.json", directory);
    *out = NULL;
    if (access(jinja, F_OK) == 0) {
        char *text;
        size_t bytes;
        status = mr_file_read(&text, &bytes, jinja, MR_MAX_CONFIG_BYTES, err);
        if (status == MR_OK) *out = mr_chat_template_of(text);
        free(text);
    } else if (access(config, F_OK) == 0)
        status = from_config(out, config, err);
    else
        *out = mr_chat_template_of(NULL);
    free(jinja);
    free(config);
    return status;
}

void mr_chat_template_close(mr_chat_template *chat) {
    free(chat);
}

mr_status mr_chat_template_check(const mr_chat_template *chat, mr_err *err) {
    return chat->known ? MR_OK : mr_fail(err, MR_ERR_UNSUPPORTED, "%s", chat->refusal.text);
}

static void add_turn(mr_chat_prompt *out, const known_template *k, const char *role,
                     const char *content, size_t bytes) {
    mr_text_add_string(&out->text, k->before_role);
    mr_text_add_string(&out->text, role);
    mr_text_add_string(&out->text, k->after_role);
    out->literal[out->literal_count++] = (mr_text_span){out->text.bytes, bytes};
    mr_text_add(&out->text, content, bytes);
    mr_text_add_string(&out->text, k->after_content);
}

mr_status mr_chat_template_render(mr_chat_prompt *out, const mr_chat_template *chat,
                                  const mr_chat_message *messages, uint32_t message_count,
                                  bool generation, mr_err *err) {
    *out = (mr_chat_prompt){0};
    mr_status status = mr_chat_template_check(chat, err);
    if (status != MR_OK) return status;
    for (uint32_t i = 0; i < message_count; i++) {
        const char *role = messages[i].role;
        if (strcmp(role, "system") && strcmp(role, "user") && strcmp(role, "assistant"))
            return mr_fail(err, MR_ERR_ARGUMENT,
                           "messages[%u] has role '%.40s'; it must be system, user or assistant", i,
                           role);
    }
    const known_template *k = chat->known;
    out->literal = mr_alloc_array((size_t)message_count + 1, sizeof(*out->literal));
    if (k->default_system && message_count > 0 && strcmp(messages[0].role, "system"))
        add_turn(out, k, "system", k->default_system, strlen(k->default_system));
    for (uint32_t i = 0; i < message_count; i++)
        add_turn(out, k, messages[i].role, messages[i].content, messages[i].content_bytes);
    if (generation) mr_text_add_string(&out->text, k->generation);
    return MR_OK;
}

void mr_chat_prompt_free(mr_chat_prompt *prompt) {
    mr_text_free(&prompt->text);
    free(prompt->literal);
    *prompt = (mr_chat_prompt){0};
}
