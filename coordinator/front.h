/* front.h - the HTTP face of a core: routes, requests to and from the core, streams.
 *
 *   POST /v1/completions, /v1/chat/completions     plain and SSE
 *   GET  /v1/models, /v1/models/{id}, /health, /readyz, /metrics, /
 *   POST /memrack/v1/logits                        token ids in, u32 batch, tokens, columns and
 * then f32 [batch][tokens][columns] out
 *
 * The server's thread (mr_front_run) owns everything here; the core's thread only appends events to
 * an inbox. A client that leaves cancels its request; a stream that is not read is cut off at
 * MR_MAX_STREAM_BACKLOG_BYTES. A stream says ": ping" while it has nothing to say.
 *
 * Closing, in this order: mr_front_run returns, mr_core_close, mr_front_close. */
#ifndef MR_COORDINATOR_FRONT_H
#define MR_COORDINATOR_FRONT_H
#include "coordinator/core.h"
#include "coordinator/http.h"
#include "coordinator/served.h"

typedef struct mr_front mr_front;

typedef struct {
    const mr_served *served;   /* one model, borrowed until close; NULL: mr_front_set_models */
    mr_core *core;             /* borrowed until run has returned */
    mr_http_options http;      /* host, port, limits and times; the rest is set here */
    uint32_t drain_timeout_ms; /* after stop: how long answers under way may take; 0: 30 s */
} mr_front_options;

mr_status mr_front_open(mr_front **out, const mr_front_options *options, mr_err *err);
const char *mr_front_address(const mr_front *front); /* "127.0.0.1:8080" */
/* Any thread. From now on these are the models (held until they are replaced and nobody uses them
 * any more): a request goes on with the version it began with. */
void mr_front_set_models(mr_front *front, mr_serving *const *models, uint32_t count);
void mr_front_run(mr_front *front); /* serves until stopped */
/* Finishes what is under way, takes nothing new; a second call ends at once. Any thread, also in a
 * signal handler. */
void mr_front_stop(mr_front *front);
void mr_front_close(mr_front *front); /* NULL is fine */

#endif
