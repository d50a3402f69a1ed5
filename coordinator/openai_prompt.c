/* openai_prompt.c - prompts and messages of request bodies becoming token ids. */
#include "coordinator/openai_impl.h"

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool add_ids(mr_api_call *call, const mr_served *served, const json_t *ids,
                    const char *param, size_t index, size_t room, mr_api_error *error) {
    mr_token_list list = {0};
    size_t i;
    json_t *id;
    if (json_array_size(ids) == 0)
        return openai_refuse(error, param, "%s[%zu] has no tokens", param, index);
    if (json_array_size(ids) > room) {
        openai_refuse(error, param, "%s[%zu] has %zu tokens; this model's context has %u%s", param,
                      index, json_array_size(ids), served->context_tokens,
                      room < served->context_tokens ? ", of which one must be left for the answer"
                                                    : "");
        error->code = "context_length_exceeded";
        return false;
    }
    json_array_foreach(ids, i, id) {
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= (json_int_t)served->vocab_size) {
            mr_token_list_free(&list);
            if (json_is_integer(id))
                return openai_refuse(error, param,
                                     "%s[%zu] has token %lld, which is not in the vocabulary of %u",
                                     param, index, (long long)value, served->vocab_size);
            return openai_refuse(error, param, "%s[%zu][%zu] must be a token id, not %s", param,
                                 index, i, mr_json_type_name(id));
        }
        mr_token_list_add(&list, (int32_t)value);
    }
    mr_request_add_prompt(call->request, list.items, list.count);
    mr_token_list_free(&list);
    return true;
}

static bool add_text(mr_api_call *call, const mr_served *served, const json_t *text,
                     mr_api_error *error) {
    mr_token_list list = {0};
    mr_err err;
    if (json_string_length(text) == 0) return openai_refuse(error, "prompt", "the prompt is empty");
    const mr_status status =
        mr_served_encode(served, json_string_value(text), json_string_length(text), &list, &err);
    const bool good = status == MR_OK && list.count > 0;
    if (good) mr_request_add_prompt(call->request, list.items, list.count);
    mr_token_list_free(&list);
    if (status != MR_OK) return openai_refuse_as(error, "prompt", &err);
    return good || openai_refuse(error, "prompt", "the prompt has no tokens");
}

/* What echo puts before an answer: the prompt's text, or that of its tokens. */
static void keep_text(mr_api_call *call, const mr_served *served, const json_t *item) {
    mr_text *text = &call->prompt_text[call->prompt_count++];
    size_t i;
    json_t *id;
    if (json_is_string(item)) {
        mr_text_add(text, json_string_value(item), json_string_length(item));
        return;
    }
    if (!served->tokenizer) return;
    mr_decoder *decoder = mr_decoder_open(served->tokenizer, NULL);
    json_array_foreach(item, i, id) mr_decoder_push(decoder, (int32_t)json_integer_value(id), text);
    mr_decoder_flush(decoder, text);
    mr_decoder_close(decoder);
}

static bool add_prompt(mr_api_call *call, const mr_served *served, const json_t *item, size_t index,
                       mr_api_error *error) {
    const size_t room = served->context_tokens - 1;
    if (json_is_string(item)) {
        if (!add_text(call, served, item, error)) return false;
    } else if (!json_is_array(item)) {
        return openai_refuse(error, "prompt",
                             "prompt[%zu] must be a string or an array of token ids, not %s", index,
                             mr_json_type_name(item));
    } else if (!add_ids(call, served, item, "prompt", index, room, error))
        return false;
    if (call->echo) keep_text(call, served, item);
    return true;
}

bool openai_read_prompt(mr_api_call *call, const mr_served *served, const json_t *root,
                        mr_api_error *error) {
    const json_t *prompt = json_object_get(root, "prompt");
    if (!prompt || json_is_null(prompt)) return openai_refuse(error, "prompt", "prompt is missing");
    if (!json_is_string(prompt) && !json_is_array(prompt))
        return openai_refuse(error, "prompt", "prompt must be a string or an array, not %s",
                             mr_json_type_name(prompt));
    if (!served->tokenizer)
        return openai_refuse(error, "prompt",
                             "this model has no tokenizer.json, so its answers have no text");
    const json_t *first = json_array_get(prompt, 0);
    const bool is_one = json_is_string(prompt) || json_is_integer(first);
    const size_t count = is_one ? 1 : json_array_size(prompt);
    if (count == 0) return openai_refuse(error, "prompt", "the prompt is empty");
    if (count > MR_MAX_PROMPTS)
        return openai_refuse(error, "prompt", "prompt has %zu prompts; at most %d are taken", count,
                             MR_MAX_PROMPTS);
    if (call->echo) call->prompt_text = mr_alloc_array(count, sizeof(*call->prompt_text));
    for (size_t i = 0; i < count; i++)
        if (!add_prompt(call, served, is_one ? prompt : json_array_get(prompt, i), i, error))
            return false;
    return true;
}

/* --- messages --------------------------------------------------------------------------------- */

static bool has_items(const json_t *list) {
    return json_array_size(list) > 0;
}

/* content: a string, or parts of type text; an assistant's may be missing beside tool_calls. */
static bool check_content(const json_t *message, size_t index, mr_api_error *error) {
    const json_t *content = json_object_get(message, "content");
    size_t i;
    json_t *part;
    if (json_is_string(content)) return true;
    if ((!content || json_is_null(content)) && has_items(json_object_get(message, "tool_calls")))
        return true;
    if (!json_is_array(content))
        return openai_refuse(error, "messages",
                             "messages[%zu].content must be a string or an array of parts, not %s",
                             index, mr_json_type_name(content));
    json_array_foreach(content, i, part) {
        const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 ||
            !json_is_string(text))
            return openai_refuse(error, "messages",
                                 "messages[%zu].content[%zu] is not a part of type text: only text "
                                 "is supported",
                                 index, i);
    }
    return true;
}

static bool check_objects(const json_t *list, const char *param, const char *what,
                          mr_api_error *error) {
    size_t i;
    json_t *item;
    if (!list || json_is_null(list)) return true;
    if (!json_is_array(list))
        return openai_refuse(error, param, "%s must be an array, not %s", what,
                             mr_json_type_name(list));
    json_array_foreach(list, i, item) if (!json_is_object(item)) return openai_refuse(
        error, param, "%s[%zu] must be an object, not %s", what, i, mr_json_type_name(item));
    return true;
}

static bool check_message(const json_t *message, size_t index, mr_api_error *error) {
    char what[64];
    const json_t *role = json_object_get(message, "role");
    if (!json_is_object(message))
        return openai_refuse(error, "messages", "messages[%zu] must be an object, not %s", index,
                             mr_json_type_name(message));
    if (!json_is_string(role))
        return openai_refuse(error, "messages", "messages[%zu].role must be a string, not %s",
                             index, mr_json_type_name(role));
    snprintf(what, sizeof(what), "messages[%zu].tool_calls", index);
    return check_objects(json_object_get(message, "tool_calls"), "messages", what, error) &&
           check_content(message, index, error);
}

static bool read_flag(bool *out, const json_t *root, const char *name, mr_api_error *error) {
    mr_err err;
    return mr_json_bool(out, root, name, &err) == MR_OK || openai_refuse_as(error, name, &err);
}

/* What the template is given beside the messages. */
static bool read_extras(mr_chat_input *in, const json_t *root, mr_api_error *error) {
    const char *choice = json_string_value(json_object_get(root, "tool_choice"));
    const json_t *more = json_object_get(root, "chat_template_kwargs");
    in->tools = json_object_get(root, "tools");
    in->documents = json_object_get(root, "documents");
    if (!check_objects(in->tools, "tools", "tools", error) ||
        !check_objects(in->documents, "documents", "documents", error))
        return false;
    if (choice && strcmp(choice, "none") == 0) in->tools = NULL; /* none of them may be called */
    if (more && !json_is_null(more) && !json_is_object(more))
        return openai_refuse(error, "chat_template_kwargs",
                             "chat_template_kwargs must be an object, not %s",
                             mr_json_type_name(more));
    in->variables = more;
    if (!read_flag(&in->continues, root, "continue_final_message", error)) return false;
    in->generation = !in->continues;
    return read_flag(&in->generation, root, "add_generation_prompt", error);
}

static bool encode_messages(mr_api_call *call, const mr_served *served, const mr_chat_input *in,
                            mr_api_error *error) {
    mr_token_list list = {0};
    mr_err err;
    const mr_status status = mr_served_encode_chat(served, in, &list, &err);
    const bool good = status == MR_OK && list.count > 0;
    if (good) mr_request_add_prompt(call->request, list.items, list.count);
    mr_token_list_free(&list);
    if (status != MR_OK) return openai_refuse_as(error, "messages", &err);
    return good || openai_refuse(error, "messages", "the chat template makes an empty prompt");
}

bool openai_read_messages(mr_api_call *call, const mr_served *served, const json_t *root,
                          mr_api_error *error) {
    const json_t *list = json_object_get(root, "messages");
    const size_t count = json_array_size(list);
    mr_chat_input in = {.messages = list, .now = (int64_t)time(NULL)};
    if (!list) return openai_refuse(error, "messages", "messages is missing");
    if (!json_is_array(list))
        return openai_refuse(error, "messages", "messages must be an array, not %s",
                             mr_json_type_name(list));
    if (count == 0) return openai_refuse(error, "messages", "messages is empty");
    if (count > MR_MAX_MESSAGES)
        return openai_refuse(error, "messages", "%zu messages; at most %d are taken", count,
                             MR_MAX_MESSAGES);
    for (size_t i = 0; i < count; i++)
        if (!check_message(json_array_get(list, i), i, error)) return false;
    return read_extras(&in, root, error) && encode_messages(call, served, &in, error);
}

/* --- rows of token ids ------------------------------------------------------------------------ */

bool openai_read_rows(mr_api_call *call, const mr_served *served, const json_t *rows,
                      mr_api_error *error) {
    const size_t count = json_array_size(rows);
    const size_t width = json_array_size(json_array_get(rows, 0));
    if (!json_is_array(rows) || count == 0)
        return openai_refuse(error, "input_ids", "input_ids must be an array of arrays, not %s",
                             json_is_array(rows) ? "empty" : mr_json_type_name(rows));
    if (count > MR_MAX_REQUEST_SEQUENCES)
        return openai_refuse(error, "input_ids", "input_ids has %zu rows; at most %d are taken",
                             count, MR_MAX_REQUEST_SEQUENCES);
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(rows, i);
        if (!json_is_array(row))
            return openai_refuse(error, "input_ids", "input_ids[%zu] must be an array, not %s", i,
                                 mr_json_type_name(row));
        if (json_array_size(row) != width)
            return openai_refuse(error, "input_ids",
                                 "input_ids[%zu] has %zu tokens, the first row has %zu", i,
                                 json_array_size(row), width);
        if (!add_ids(call, served, row, "input_ids", i, served->context_tokens, error))
            return false;
    }
    return true;
}
