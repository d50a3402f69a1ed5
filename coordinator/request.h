/* request.h - one request as the core takes it, and the events that come back.
 *
 * A request is one or more prompts as token ids, each answered `choices` times; answer number
 * prompt * choices + choice. It carries its own copy of everything, so that nobody has to outlive
 * anybody. A request with `logits` set samples nothing: it fills a buffer with the logits of every
 * position of every prompt (all of one length) instead.
 * Memory: owned by its maker until submitted, by the core afterwards. */
#ifndef MR_COORDINATOR_REQUEST_H
#define MR_COORDINATOR_REQUEST_H
#include "common/base/hash.h"
#include "coordinator/stream.h"

/* What speculation did for a request: steps that verified something, tokens drafted in them, and of
 * these, accepted. */
typedef struct {
    uint64_t steps, drafted, accepted;
} mr_speculation;

typedef enum { MR_FINISH_NONE, MR_FINISH_STOP, MR_FINISH_LENGTH } mr_finish;

typedef struct {
    bool is_end; /* the last event of the request, exactly one; else: something of one answer */

    uint32_t answer;
    int32_t token;    /* that was sampled; -1: none, only text held back until now */
    const char *text; /* what became safe */
    size_t bytes;
    const mr_token_entry *entries; /* [entry_count] where logprobs are asked for */
    uint32_t entry_count;
    mr_finish finish; /* not NONE: the answer is complete */

    mr_status status; /* of the end: MR_OK, or why it failed, with one sentence */
    const char *sentence;
    uint64_t prompt_tokens, generated_tokens; /* of the whole request */
    uint64_t cached_tokens;                   /* prompt tokens that were in the cache already */
    mr_speculation speculation;
    bool is_degraded; /* some rows counted as zero so far; of finishing events and of the end */
    float *logits;    /* [prompts][tokens][columns]: taken over by the sink; free() */
    uint32_t logit_columns;
} mr_event;

/* Called in the core's thread (at mr_core_close in the closing one); must not block. Everything in
 * the event is borrowed for the call. false: the reader cannot keep up; the request is cancelled
 * (an end still follows). */
typedef bool (*mr_sink)(void *context, const mr_event *event);

enum { MR_MAX_STOP_IDS = 32 };

/* What happens to a step that needs a partition of the tables nobody serves at the moment. */
typedef enum {
    MR_LOST_DEFAULT, /* as the server is set up */
    MR_LOST_FAIL,    /* the request ends */
    MR_LOST_WAIT,    /* the step is run again until it works or lost_wait_ms are over */
    MR_LOST_DEGRADE, /* the missing rows count as zero, and the answer says so */
} mr_lost_policy;

typedef struct mr_serving mr_serving; /* models.h */

typedef struct {
    mr_token_list tokens;    /* of all prompts, one after the other */
    uint32_t *prompt_tokens; /* [prompt_count] how many each has */
    uint32_t prompt_count, choices;
    uint32_t new_tokens; /* most tokens of an answer; cut where the context ends */
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t seed;
    bool logprobs;
    uint32_t top_logprobs;
    mr_stop_set *stops; /* owned; NULL: none */
    int32_t stop_ids[MR_MAX_STOP_IDS];
    uint32_t stop_id_count;

    bool has_speculate; /* else the server's, which is the most in any case */
    uint32_t speculate; /* most tokens drafted in a step */
    bool continues; /* answers go on with their prompt's text (else they begin one of their own) */

    bool logits;
    uint32_t chunk_tokens, single_from; /* as mr_sequence_spec's */

    mr_lost_policy lost;
    bool has_lost_wait; /* else the server's */
    uint32_t lost_wait_ms;

    mr_serving *model; /* the version it began with, held; NULL: the core's only one */
    /* Answers begun elsewhere go on behind these tokens, which are not told again. */
    mr_token_list resumed;
    uint32_t *resumed_tokens; /* [prompt_count * choices] owned; NULL: none */
    bool *is_complete;        /* the same: not wanted any more; NULL: all are */

    /* From another coordinator: pinned to `digest` without a model of its own; tokens without text
     * come back, the one that ends an answer too; never forwarded again. */
    bool is_forwarded;
    mr_digest digest;

    mr_sink sink;
    void *context;
} mr_request;

mr_request *mr_request_new(void); /* one choice, greedy, nothing else */
/* Adds a prompt; its tokens are copied. */
void mr_request_add_prompt(mr_request *request, const int32_t *tokens, size_t count);
void mr_request_free(mr_request *request); /* NULL is fine */

#endif
