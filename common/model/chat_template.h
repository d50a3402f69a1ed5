/* chat_template.h - turning a conversation into the text a model was trained on.
 *
 * Model folders describe this with a Jinja template, run by common/model/jinja.h. Read from
 * chat_template.jinja where there is one (and additional_chat_templates/tool_use.jinja), else from
 * tokenizer_config.json: a string, or a list of named ones of which "tool_use" is taken when tools
 * are given, "default" otherwise. The template sees what transformers' apply_chat_template gives
 * it: messages, tools, documents, add_generation_prompt, the special tokens by their names
 * (bos_token, ...), and whatever a client adds. A template that cannot be read is refused when chat
 * is asked for, not when the model is opened, since completions need none.
 *
 * Threads: open and close from one thread; the rest only reads. */
#ifndef MR_MODEL_CHAT_TEMPLATE_H
#define MR_MODEL_CHAT_TEMPLATE_H
#include "common/base/json.h"
#include "common/model/tokenizer.h"

typedef struct mr_chat_template mr_chat_template;

/* Fails only where a file is there and cannot be read or is not JSON. */
mr_status mr_chat_template_open(mr_chat_template **out, const char *directory, mr_err *err);
/* From the template's text, without special tokens; NULL: there is none. */
mr_chat_template *mr_chat_template_of(const char *text);
void mr_chat_template_close(mr_chat_template *chat); /* NULL is fine */

/* MR_ERR_UNSUPPORTED and the reason when chat cannot be served. */
mr_status mr_chat_template_check(const mr_chat_template *chat, mr_err *err);

typedef struct {
    const json_t *messages;  /* an array of objects with a role each, see below */
    const json_t *tools;     /* an array of objects, or NULL */
    const json_t *documents; /* an array of objects, or NULL */
    const json_t *variables; /* an object: more for the template (enable_thinking), or NULL */
    bool generation;         /* end with the beginning of the assistant's turn */
    bool continues;          /* end within the last message, which is to be gone on with */
    int64_t now;             /* Unix time, for templates that print the date (in UTC) */
} mr_chat_input;             /* all borrowed */

/* A message for such an array; bytes that are not UTF-8 stay as they are. */
void mr_chat_message_add(json_t *messages, const char *role, const char *content, size_t bytes);

/* What to encode, with the parts in which special tokens are plain text: whatever comes from the
 * messages, but for the roles, from tools, documents and variables, so that nobody can close a turn
 * from inside it. The template writes the special tokens itself: encode without adding any. */
typedef struct {
    mr_text text;
    mr_text_span *literal; /* [literal_count] */
    uint32_t literal_count;
} mr_chat_prompt; /* owned; mr_chat_prompt_free */

/* What the template is given differs from `in` in this: fields of messages that are null are left
 * out, as by transformers; a content of text parts becomes one text unless the template goes over
 * the parts; arguments of tool_calls that are JSON in a string become objects, unless it fails with
 * them; role "developer" becomes "system" for a template that does not know it; reasoning_content,
 * reasoning and thinking stand for each other, as in transformers.
 * MR_ERR_ARGUMENT: a role that is no word, a message that is no object, or what the template says
 * by raise_exception(). MR_ERR_UNSUPPORTED, _FORMAT, _LIMIT: the template cannot render this. */
mr_status mr_chat_template_render(mr_chat_prompt *out, const mr_chat_template *chat,
                                  const mr_chat_input *in, mr_err *err);
void mr_chat_prompt_free(mr_chat_prompt *prompt);

#endif
