/* openai_reply.h - answers of the OpenAI-shaped endpoints as JSON text. Pure.
 *
 * Texts handed in are valid UTF-8 (mr_stream sees to it). A token that is not, by itself, is named
 * as OpenAI names it: bytes:\xe2\x80. A logarithm that is minus infinity is written -9999. */
#ifndef MR_COORDINATOR_OPENAI_REPLY_H
#define MR_COORDINATOR_OPENAI_REPLY_H
#include "coordinator/openai.h"

/* What all chunks of one answer begin with. */
typedef struct {
    const mr_serving *model; /* borrowed */
    char id[40];             /* "cmpl-..." or "chatcmpl-..." */
    int64_t created;
    bool is_chat, is_stream, include_usage, logprobs, tells_speculation;
} mr_reply_head;

void mr_reply_head_init(mr_reply_head *out, const mr_serving *model, const mr_api_call *call);

/* What a request came to. A degraded one is marked "memrack": {"degraded": true}; where it is asked
 * for, "speculation": {"steps": N, "drafted_tokens": N, "accepted_tokens": N} stands there. */
typedef struct {
    uint64_t prompt_tokens, generated_tokens, cached_tokens;
    mr_speculation speculation;
    bool is_degraded;
} mr_reply_figures;

/* One finished answer of a request that is not streamed. */
typedef struct {
    mr_text text;
    mr_token_entry *entries;
    uint32_t entry_count, entry_room;
    mr_finish finish;
} mr_reply_answer;

void mr_reply_whole(mr_text *out, const mr_reply_head *head, const mr_reply_answer *answers,
                    uint32_t count, const mr_reply_figures *figures);

/* Chunks of a stream, each one "data: {...}\n\n". */
void mr_reply_role(mr_text *out, const mr_reply_head *head, uint32_t answer); /* chat's first */
void mr_reply_part(mr_text *out, const mr_reply_head *head, uint32_t answer, const char *text,
                   size_t bytes, const mr_token_entry *entries, uint32_t entry_count,
                   mr_finish finish, bool is_degraded);
void mr_reply_usage(mr_text *out, const mr_reply_head *head, const mr_reply_figures *figures);

void mr_reply_error(mr_text *out, const mr_api_error *error); /* {"error": {...}} */
void mr_reply_model(mr_text *out, const mr_serving *model);
void mr_reply_models(mr_text *out, mr_serving *const *models, uint32_t count);

/* A JSON string with its quotes. */
void mr_reply_string(mr_text *out, const char *text, size_t bytes);

#endif
