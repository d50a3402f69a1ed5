/* chat_template.c - see chat_template.h. */
#include "common/model/chat_template.h"

#include "common/base/file.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/chat_messages.h"
#include "common/model/jinja.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VARIABLES_MAX = 256 };

typedef struct {
    mr_jinja *jinja; /* NULL: refused, for the reason in refusal */
    mr_err refusal;
    bool given; /* there is one of this name */
    bool keep_parts, keep_developer, takes_tools, takes_documents;
} one_template;

struct mr_chat_template {
    one_template plain, tool_use;
    json_t *special; /* an object: bos_token and so on */
};

/* --- opening ---------------------------------------------------------------------------------- */

static void read_template(one_template *t, const char *text, size_t bytes) {
    mr_jinja_close(t->jinja);
    *t = (one_template){.given = true};
    const mr_status status = mr_jinja_parse(&t->jinja, text, bytes, &t->refusal);
    if (status != MR_OK) {
        mr_fail_prefix(&t->refusal, status,
                       "chat is not served, as this model's template cannot be used");
        return;
    }
    t->keep_parts = mr_jinja_loops_over(t->jinja, "content");
    t->takes_tools = mr_jinja_reads(t->jinja, "tools");
    t->takes_documents = mr_jinja_reads(t->jinja, "documents");
    t->keep_developer = mr_jinja_has_string(t->jinja, "developer");
}

static mr_chat_template *new_template(void) {
    mr_chat_template *chat = mr_alloc(sizeof(*chat));
    chat->special = json_object();
    mr_fail(&chat->plain.refusal, MR_ERR_UNSUPPORTED,
            "this model has no chat_template: use completions instead of chat");
    return chat;
}

mr_chat_template *mr_chat_template_of(const char *text) {
    mr_chat_template *chat = new_template();
    if (text) read_template(&chat->plain, text, strlen(text));
    return chat;
}

void mr_chat_template_close(mr_chat_template *chat) {
    if (!chat) return;
    mr_jinja_close(chat->plain.jinja);
    mr_jinja_close(chat->tool_use.jinja);
    json_decref(chat->special);
    free(chat);
}

/* A special token: a string, or an object with it as content. */
static void add_special(mr_chat_template *chat, const json_t *config) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *token = json_object_get(config, names[i]);
        if (json_is_object(token)) token = json_object_get(token, "content");
        if (json_is_string(token) && !json_object_get(chat->special, names[i]))
            json_object_set(chat->special, names[i], token);
    }
}

static void add_named(mr_chat_template *chat, const json_t *list) {
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        if (!name || !json_is_string(text)) continue;
        if (strcmp(name, "default") == 0)
            read_template(&chat->plain, json_string_value(text), json_string_length(text));
        else if (strcmp(name, "tool_use") == 0)
            read_template(&chat->tool_use, json_string_value(text), json_string_length(text));
    }
}

static mr_status read_config(mr_chat_template *chat, const char *directory, const char *name,
                             mr_err *err) {
    char *path = mr_format("%s/%s", directory, name);
    json_t *root = NULL;
    mr_status status = MR_OK;
    if (access(path, F_OK) == 0) status = mr_json_load(&root, path, MR_MAX_CONFIG_BYTES, err);
    free(path);
    if (status != MR_OK || !root) return status;
    const json_t *template = json_object_get(root, "chat_template");
    if (json_is_string(template))
        read_template(&chat->plain, json_string_value(template), json_string_length(template));
    add_named(chat, template);
    add_special(chat, root);
    json_decref(root);
    return MR_OK;
}

static mr_status read_file(one_template *t, const char *directory, const char *name, mr_err *err) {
    char *path = mr_format("%s/%s", directory, name), *text = NULL;
    size_t bytes;
    mr_status status = MR_OK;
    if (access(path, F_OK) == 0) {
        status = mr_file_read(&text, &bytes, path, MR_MAX_CONFIG_BYTES, err);
        if (status == MR_OK) read_template(t, text, bytes);
    }
    free(text);
    free(path);
    return status;
}

mr_status mr_chat_template_open(mr_chat_template **out, const char *directory, mr_err *err) {
    mr_chat_template *chat = new_template();
    *out = NULL;
    mr_status status = read_config(chat, directory, "tokenizer_config.json", err);
    if (status == MR_OK) status = read_config(chat, directory, "special_tokens_map.json", err);
    if (status == MR_OK) status = read_file(&chat->plain, directory, "chat_template.jinja", err);
    if (status == MR_OK)
        status =
            read_file(&chat->tool_use, directory, "additional_chat_templates/tool_use.jinja", err);
    if (status != MR_OK)
        mr_chat_template_close(chat);
    else
        *out = chat;
    return status;
}

static mr_status check(const one_template *t, mr_err *err) {
    return t->jinja ? MR_OK : mr_fail(err, MR_ERR_UNSUPPORTED, "%s", t->refusal.text);
}

mr_status mr_chat_template_check(const mr_chat_template *chat, mr_err *err) {
    return check(&chat->plain, err);
}

/* --- rendering -------------------------------------------------------------------------------- */

typedef struct {
    mr_jinja_variable list[VARIABLES_MAX];
    size_t count;
} variables;

static mr_status add_all(variables *v, const json_t *object, mr_jinja_origin origin, mr_err *err) {
    static const char *const own[] = {"messages", "tools", "documents", "add_generation_prompt"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, name, value) {
        for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
            if (strcmp(name, own[i]) == 0)
                return mr_fail(err, MR_ERR_ARGUMENT, "chat_template_kwargs cannot set %s", name);
        if (v->count + sizeof(own) / sizeof(own[0]) >= VARIABLES_MAX)
            return mr_fail(err, MR_ERR_ARGUMENT, "chat_template_kwargs has too many fields");
        v->list[v->count++] = (mr_jinja_variable){name, value, origin};
    }
    return MR_OK;
}

/* NULL and empty lists are None, as where transformers is not given any. */
static const json_t *or_none(const json_t *list) {
    return json_array_size(list) > 0 ? list : json_null();
}

static mr_status render(mr_jinja_output *out, const mr_chat_template *chat, const one_template *t,
                        const mr_chat_input *in, const json_t *messages, mr_err *err) {
    variables v = {.count = 0};
    mr_status status = add_all(&v, chat->special, MR_JINJA_OURS, err);
    if (status == MR_OK) status = add_all(&v, in->variables, MR_JINJA_USER, err);
    if (status != MR_OK) return status;
    v.list[v.count++] = (mr_jinja_variable){"messages", messages, MR_JINJA_MESSAGES};
    v.list[v.count++] = (mr_jinja_variable){"tools", or_none(in->tools), MR_JINJA_USER};
    v.list[v.count++] = (mr_jinja_variable){"documents", or_none(in->documents), MR_JINJA_USER};
    v.list[v.count++] =
        (mr_jinja_variable){"add_generation_prompt", json_boolean(in->generation), MR_JINJA_OURS};
    return mr_jinja_render(out, t->jinja, v.list, v.count, in->now, MR_MAX_JINJA_STEPS, err);
}

/* What the template has no place for would be lost without a word. */
static mr_status check_input(const one_template *t, const mr_chat_input *in, mr_err *err) {
    if (in->continues && in->generation)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "continue_final_message and add_generation_prompt exclude each other");
    if (json_array_size(in->tools) > 0 && !t->takes_tools)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "this model's chat template has no place for tools: send none");
    if (json_array_size(in->documents) > 0 && !t->takes_documents)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "this model's chat template has no place for documents: send none");
    return MR_OK;
}

static mr_status prepare_and_render(mr_jinja_output *out, const mr_chat_template *chat,
                                    const one_template *t, const mr_chat_input *in,
                                    mr_chat_changes *changes, mr_err *err) {
    json_t *messages;
    mr_status status = mr_chat_messages_prepare(&messages, in->messages, changes, err);
    if (status != MR_OK) return status;
    status = render(out, chat, t, in, messages, err);
    json_decref(messages);
    return status;
}

/* Everything from the tag on goes away, and blanks before it where the template trimmed it. */
static mr_status cut_at_tag(mr_jinja_output *out, mr_err *err) {
    static const char tag[] = MR_CHAT_CONTINUE_TAG;
    const size_t word = sizeof(tag) - 2; /* without the blank at its end */
    char *data = out->text.data, *last = NULL;
    size_t left = out->text.bytes;
    for (char *at = data; at && (at = memmem(at, left, tag, word)); at++) {
        last = at;
        left = out->text.bytes - (size_t)(at + 1 - data);
    }
    if (!last)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "the template leaves the end of the last message out: it cannot be "
                       "continued");
    size_t end = (size_t)(last - data);
    const bool is_whole = out->text.bytes - end > word && data[end + word] == ' ';
    while (!is_whole && end > 0 && strchr(" \t\r\n\v\f", data[end - 1])) end--;
    data[end] = '\0';
    out->text.bytes = end;
    while (out->span_count > 0 && out->spans[out->span_count - 1].first >= end) out->span_count--;
    if (out->span_count > 0) {
        mr_text_span *span = &out->spans[out->span_count - 1];
        if (span->first + span->bytes > end) span->bytes = end - span->first;
    }
    return MR_OK;
}

mr_status mr_chat_template_render(mr_chat_prompt *out, const mr_chat_template *chat,
                                  const mr_chat_input *in, mr_err *err) {
    const bool has_tools = json_array_size(in->tools) > 0;
    const one_template *t = has_tools && chat->tool_use.given ? &chat->tool_use : &chat->plain;
    mr_jinja_output text = {0};
    bool had_arguments = false;
    mr_chat_changes changes = {.keep_parts = t->keep_parts,
                               .keep_developer = t->keep_developer,
                               .continues = in->continues,
                               .had_arguments = &had_arguments};
    *out = (mr_chat_prompt){0};
    mr_status status = check(t, err);
    if (status == MR_OK) status = check_input(t, in, err);
    if (status != MR_OK) return status;
    status = prepare_and_render(&text, chat, t, in, &changes, err);
    if (status == MR_ERR_FORMAT && had_arguments) { /* some templates are written for strings */
        mr_err second;
        changes.keep_arguments = true;
        if (prepare_and_render(&text, chat, t, in, &changes, &second) == MR_OK) status = MR_OK;
    }
    if (status == MR_OK && in->continues) status = cut_at_tag(&text, err);
    if (status != MR_OK) {
        mr_jinja_output_free(&text);
        return status;
    }
    *out = (mr_chat_prompt){text.text, text.spans, text.span_count};
    return MR_OK;
}

void mr_chat_prompt_free(mr_chat_prompt *prompt) {
    mr_text_free(&prompt->text);
    free(prompt->literal);
    *prompt = (mr_chat_prompt){0};
}
