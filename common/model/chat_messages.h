/* chat_messages.h - messages as clients send them, made into what templates are written for. */
#ifndef MR_MODEL_CHAT_MESSAGES_H
#define MR_MODEL_CHAT_MESSAGES_H
#include "common/model/chat_template.h"

/* Stands at the end of the last message that is to be gone on with; transformers uses one, too. */
#define MR_CHAT_CONTINUE_TAG "CONTINUE_FINAL_MESSAGE_TAG "

typedef struct {
    bool keep_parts;     /* the template goes over the parts of a content */
    bool keep_developer; /* it knows the role developer */
    bool keep_arguments; /* of tool_calls: strings stay strings */
    bool continues;      /* put the tag to the last content */
    bool *had_arguments; /* set where a string became an object */
} mr_chat_changes;

/* *out is owned. MR_ERR_ARGUMENT names the message that is wrong. */
mr_status mr_chat_messages_prepare(json_t **out, const json_t *messages,
                                   const mr_chat_changes *changes, mr_err *err);

#endif
