/* chat_messages.c - see chat_messages.h. What is changed is copied; what is inside of it and stays
 * is shared with the original. */
#include "common/model/chat_messages.h"

#include "common/base/limits.h"

#include <stdio.h>
#include <string.h>

/* --- roles ------------------------------------------------------------------------------------ */

/* Roles become part of special tokens, so they must not be able to end one. */
static bool is_word(const json_t *role) {
    const char *text = json_string_value(role);
    const size_t bytes = json_string_length(role);
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '-'))
            return false;
    }
    return bytes > 0 && bytes <= MR_MAX_ROLE_BYTES;
}

static mr_status read_role(json_t *message, size_t index, const mr_chat_changes *changes,
                           mr_err *err) {
    const json_t *role = json_object_get(message, "role");
    if (!json_is_string(role))
        return mr_fail(err, MR_ERR_ARGUMENT, "messages[%zu].role must be a string, not %s", index,
                       mr_json_type_name(role));
    if (!is_word(role))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "messages[%zu] has role '%.40s'; a role is 1 to %d letters, digits, _ and -",
                       index, json_string_value(role), MR_MAX_ROLE_BYTES);
    if (!changes->keep_developer && strcmp(json_string_value(role), "developer") == 0)
        json_object_set_new(message, "role", json_string("system"));
    return MR_OK;
}

/* --- content ---------------------------------------------------------------------------------- */

static bool is_text_part(const json_t *part) {
    const char *type = json_string_value(json_object_get(part, "type"));
    return type && strcmp(type, "text") == 0 && json_is_string(json_object_get(part, "text"));
}

/* Text parts become one text; where there are others, the template has to know. */
static void join_parts(json_t *message) {
    const json_t *content = json_object_get(message, "content");
    mr_text all = {0};
    size_t i;
    json_t *part;
    if (!json_is_array(content)) return;
    json_array_foreach(content, i, part) {
        if (!is_text_part(part)) {
            mr_text_free(&all);
            return;
        }
        const json_t *text = json_object_get(part, "text");
        mr_text_add(&all, json_string_value(text), json_string_length(text));
    }
    json_object_set_new(message, "content", json_stringn_nocheck(mr_text_string(&all), all.bytes));
    mr_text_free(&all);
}

static json_t *with_tag(const json_t *text) {
    mr_text all = {0};
    mr_text_add(&all, json_string_value(text), json_string_length(text));
    mr_text_add_string(&all, MR_CHAT_CONTINUE_TAG);
    json_t *tagged = json_stringn_nocheck(mr_text_string(&all), all.bytes);
    mr_text_free(&all);
    return tagged;
}

/* At the end of the last text of the last message. */
static mr_status add_tag(json_t *message, mr_err *err) {
    const json_t *content = json_object_get(message, "content");
    if (json_is_string(content)) {
        json_object_set_new(message, "content", with_tag(content));
        return MR_OK;
    }
    for (size_t i = json_array_size(content); i-- > 0;) {
        const json_t *text = json_object_get(json_array_get(content, i), "text");
        if (!json_is_string(text)) continue;
        json_t *parts = json_copy((json_t *)(uintptr_t)content);
        json_t *part = json_copy(json_array_get(content, i));
        json_object_set_new(part, "text", with_tag(text));
        json_array_set_new(parts, i, part);
        json_object_set_new(message, "content", parts);
        return MR_OK;
    }
    return mr_fail(err, MR_ERR_ARGUMENT, "the last message has no text to continue");
}

/* --- the rest of a message -------------------------------------------------------------------- */

/* A copy of a call with its arguments as an object; NULL: they are none in a string. */
static json_t *with_arguments(const json_t *call) {
    const json_t *function = json_object_get(call, "function");
    const json_t *arguments = json_object_get(function, "arguments");
    json_t *parsed;
    if (!json_is_string(arguments) ||
        mr_json_parse(&parsed, json_string_value(arguments), json_string_length(arguments),
                      "arguments", NULL) != MR_OK)
        return NULL;
    if (!json_is_object(parsed)) {
        json_decref(parsed);
        return NULL;
    }
    json_t *copy = json_copy((json_t *)(uintptr_t)call);
    json_t *own = json_copy((json_t *)(uintptr_t)function);
    json_object_set_new(own, "arguments", parsed);
    json_object_set_new(copy, "function", own);
    return copy;
}

static void read_arguments(json_t *message, const mr_chat_changes *changes) {
    json_t *calls = json_object_get(message, "tool_calls");
    size_t i;
    json_t *call;
    if (!json_is_array(calls) || changes->keep_arguments) return;
    calls = json_copy(calls);
    json_array_foreach(calls, i, call) {
        json_t *parsed = with_arguments(call);
        if (!parsed) continue;
        if (changes->had_arguments) *changes->had_arguments = true;
        json_array_set_new(calls, i, parsed);
    }
    json_object_set_new(message, "tool_calls", calls);
}

/* As transformers does: all names of the reasoning, from the first one that is there. */
static void alias_reasoning(json_t *message) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        json_t *value = json_object_get(message, names[i]);
        if (!value) continue;
        json_incref(value);
        if (!json_object_get(message, "thinking")) json_object_set(message, "thinking", value);
        json_object_set_new(message, "reasoning_content", value);
        return;
    }
}

static json_t *copy_present(const json_t *message) {
    json_t *copy = json_object(), *value;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)message, key, value) if (!json_is_null(value))
        json_object_set_nocheck(copy, key, value);
    return copy;
}

mr_status mr_chat_messages_prepare(json_t **out, const json_t *messages,
                                   const mr_chat_changes *changes, mr_err *err) {
    json_t *all = json_array(), *message;
    const size_t count = json_array_size(messages);
    mr_status status = MR_OK;
    size_t i;
    *out = NULL;
    if (count == 0) status = mr_fail(err, MR_ERR_ARGUMENT, "there are no messages");
    if (count > MR_MAX_MESSAGES)
        status = mr_fail(err, MR_ERR_ARGUMENT, "%zu messages; at most %d are taken", count,
                         MR_MAX_MESSAGES);
    for (i = 0; i < count && status == MR_OK; i++) {
        message = json_array_get(messages, i);
        if (!json_is_object(message)) {
            status = mr_fail(err, MR_ERR_ARGUMENT, "messages[%zu] must be an object, not %s", i,
                             mr_json_type_name(message));
            break;
        }
        json_t *copy = copy_present(message);
        json_array_append_new(all, copy);
        status = read_role(copy, i, changes, err);
        if (!changes->keep_parts) join_parts(copy);
        read_arguments(copy, changes);
        alias_reasoning(copy);
        if (status == MR_OK && changes->continues && i + 1 == count) status = add_tag(copy, err);
    }
    if (status != MR_OK)
        json_decref(all);
    else
        *out = all;
    return status;
}

void mr_chat_message_add(json_t *messages, const char *role, const char *content, size_t bytes) {
    json_t *message = json_object();
    json_object_set_new(message, "role", json_string(role));
    json_object_set_new(message, "content", json_stringn_nocheck(content, bytes));
    json_array_append_new(messages, message);
}
