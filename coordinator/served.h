/* served.h - what is served: a model's name, its tokenizer and chat template, where answers end.
 *
 * A model folder without tokenizer.json can be served too: then only token ids go in, and answers
 * have no text, which the text endpoints refuse by name.
 * Threads: open and close from one thread; the fields are read-only in between. */
#ifndef MR_COORDINATOR_SERVED_H
#define MR_COORDINATOR_SERVED_H
#include "common/model/chat_template.h"
#include "common/model/model.h"
#include "coordinator/request.h"

typedef struct {
    char *name;
    mr_tokenizer *tokenizer; /* NULL: the folder has none */
    mr_chat_template *chat;
    uint32_t context_tokens, vocab_size;
    int64_t created; /* Unix time of the start */

    /* ids that end an answer, from config.json, generation_config.json and tokenizer_config.json */
    int32_t stop_ids[MR_MAX_STOP_IDS];
    uint32_t stop_id_count;

    /* what generation_config.json asks for where a request says nothing; else 1, 1, 0 and greedy
     * only where it says do_sample false */
    double temperature, top_p;
    uint32_t top_k;
    bool has_sampling; /* generation_config.json says something of the three */
} mr_served;

/* name: NULL: the model folder's. */
mr_status mr_served_open(mr_served **out, const mr_model *model, const char *name, mr_err *err);
void mr_served_close(mr_served *served); /* NULL is fine */

/* The text of a prompt as tokens, with the template's tokens. MR_ERR_ARGUMENT where it is longer
 * than the context, found without tokenizing all of it where its size alone tells. */
mr_status mr_served_encode(const mr_served *served, const char *text, size_t bytes,
                           mr_token_list *out, mr_err *err);
/* A conversation: the template writes its special tokens itself. */
mr_status mr_served_encode_chat(const mr_served *served, const mr_chat_input *input,
                                mr_token_list *out, mr_err *err);

#endif
