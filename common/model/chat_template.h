/* chat_template.h - turning a conversation into the text a model was trained on.
 *
 * Model folders describe this with a Jinja template, which is a program. We run no such programs: a
 * template is known when its text is exactly one of a short list (the demo model's, and ChatML as
 * several families write it), and refused by name otherwise. The refusal comes when chat is asked
 * for, not when the model is opened, since completions need no template.
 * Read from chat_template.jinja where there is one, else from tokenizer_config.json (a string, or a
 * list of which "default" is taken).
 * Threads: open and close from one thread; the rest only reads. */
#ifndef MR_MODEL_CHAT_TEMPLATE_H
#define MR_MODEL_CHAT_TEMPLATE_H
#include "common/model/tokenizer.h"

typedef struct mr_chat_template mr_chat_template;

/* Fails only where a file is there and cannot be read or is not JSON. */
mr_status mr_chat_template_open(mr_chat_template **out, const char *directory, mr_err *err);
/* From the template's text; NULL: there is none. */
mr_chat_template *mr_chat_template_of(const char *text);
void mr_chat_template_close(mr_chat_template *chat); /* NULL is fine */

/* MR_ERR_UNSUPPORTED and the reason when chat cannot be served. */
mr_status mr_chat_template_check(const mr_chat_template *chat, mr_err *err);

typedef struct {
    const char *role; /* "system", "user" or "assistant" */
    const char *content;
    size_t content_bytes;
} mr_chat_message;

/* What to encode, with the parts in which special tokens are plain text: the messages' contents, so
 * that nobody can close a turn from inside it. */
typedef struct {
    mr_text text;
    mr_text_span *literal; /* [literal_count] */
    uint32_t literal_count;
} mr_chat_prompt; /* owned; mr_chat_prompt_free */

/* generation: end with the beginning of the assistant's turn. MR_ERR_ARGUMENT: an unknown role. */
mr_status mr_chat_template_render(mr_chat_prompt *out, const mr_chat_template *chat,
                                  const mr_chat_message *messages, uint32_t message_count,
                                  bool generation, mr_err *err);
void mr_chat_prompt_free(mr_chat_prompt *prompt);

#endif
