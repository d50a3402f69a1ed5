/* openai.h - request bodies of the OpenAI-shaped endpoints: JSON text to mr_request, or one
 * sentence.
 *
 * A field of OpenAI's API (or of the common extensions top_k, min_p, ignore_eos, stop_token_ids, or
 * our own, memrack) is honoured, or refused by its name with 400 when its value would change the
 * answer in a way we do not implement; fields nobody documents are ignored and counted. Pure: no
 * I/O, no threads; fuzzed by tests/fuzz/fuzz_http_body.c. */
#ifndef MR_COORDINATOR_OPENAI_H
#define MR_COORDINATOR_OPENAI_H
#include "coordinator/models.h"

#include "common/base/json.h"

enum { MR_FIELD_NAME_BYTES = 64 };

/* What a refusal tells the client. */
typedef struct {
    int http;                        /* 400, 404, ... */
    const char *type;                /* "invalid_request_error" */
    const char *code;                /* "context_length_exceeded", or NULL */
    char param[MR_FIELD_NAME_BYTES]; /* the field, or empty */
    mr_err message;
} mr_api_error;

typedef struct {
    bool is_chat, is_stream, include_usage, echo;
    bool logprobs;
    bool tells_speculation; /* memrack.speculate is given: the usage says what came of it */
    mr_request *request;    /* without sink, with its model; owned until taken (set NULL then) */
    mr_text *prompt_text;   /* [prompt_count] for echo, else NULL */
    uint32_t prompt_count;
    uint32_t unknown_fields;
    char unknown_name[MR_FIELD_NAME_BYTES]; /* of one of them, made printable */
} mr_api_call;

/* body: of POST /v1/completions or, is_chat, /v1/chat/completions. false: *error is filled, and
 * *out holds nothing. */
bool mr_openai_parse(mr_api_call *out, mr_models *models, bool is_chat, const char *body,
                     size_t bytes, mr_api_error *error);
/* body: of POST /memrack/v1/logits: {"input_ids": [[..]..], "prefill_chunk": N, "decode_from": N,
 * "model": NAME}. */
bool mr_logits_parse(mr_api_call *out, mr_models *models, const char *body, size_t bytes,
                     mr_api_error *error);
void mr_api_call_free(mr_api_call *call);

/* Words a failed submission or request for the client; returns the HTTP code. */
int mr_api_error_of(mr_api_error *out, mr_status status, const char *sentence);

#endif
