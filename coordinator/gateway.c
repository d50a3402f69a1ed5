/* gateway.c - see gateway.h. A visit is one generation under way: it belongs to the core's thread
 * once the core has the request; the rpc layer's notice only reads it, and never after its end. */
#include "coordinator/gateway.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    mr_core *core;
    mr_control_stream *stream;
    uint64_t id;
    pthread_mutex_t lock; /* held until all of it is set */
} visit;

/* In a thread of the rpc layer: the asker left, or has room again (which we do not wait for). */
static void on_notice(void *context) {
    visit *v = context;
    if (!mr_control_stream_is_cancelled(v->stream)) return;
    mr_core_cancel(v->core, v->id); /* set before the stream was watched */
}

static void end_visit(visit *v, const mr_event *e) {
    mr_err err;
    mr_fail(&err, e->status, "%s", e->sentence);
    pthread_mutex_lock(&v->lock); /* until mr_gateway_generate has let go of it */
    pthread_mutex_unlock(&v->lock);
    mr_control_stream_end(v->stream, e->status, e->is_degraded, &err); /* no notice after this */
    pthread_mutex_destroy(&v->lock);
    free(v);
}

static bool on_event(void *context, const mr_event *e) {
    visit *v = context;
    mr_generation_event event = {.answer = e->answer, .token = e->token};
    if (e->is_end) {
        end_visit(v, e);
        return true;
    }
    if (e->token < 0) return true; /* the asker knows itself where an answer ends */
    event.is_degraded = e->is_degraded;
    if (e->entry_count > 0) {
        const mr_token_entry *entry = &e->entries[e->entry_count - 1];
        event.logprob = entry->logprob;
        event.top_count = entry->top_count;
        for (uint32_t i = 0; i < entry->top_count; i++) {
            event.top_tokens[i] = entry->top[i].token;
            event.top_logprobs[i] = entry->top[i].logprob;
        }
    }
    return mr_control_stream_send(v->stream, &event, NULL) == MR_OK;
}

/* What was asked for, as the core takes it; counts and ranges were checked on the way in. */
static mr_request *make_request(const mr_generation *g) {
    const uint32_t answers = g->prompt_count * g->choices;
    mr_request *r = mr_request_new();
    const int32_t *at = g->tokens;
    for (uint32_t p = 0; p < g->prompt_count; at += g->prompt_tokens[p++])
        mr_request_add_prompt(r, at, g->prompt_tokens[p]);
    r->choices = g->choices;
    r->new_tokens = g->new_tokens;
    r->temperature = g->temperature;
    r->top_p = g->top_p;
    r->min_p = g->min_p;
    r->top_k = g->top_k;
    r->seed = g->seed;
    r->logprobs = g->logprobs;
    r->top_logprobs = g->top_logprobs;
    r->stop_id_count = g->stop_id_count;
    memcpy(r->stop_ids, g->stop_ids, g->stop_id_count * sizeof(int32_t));
    r->lost = (mr_lost_policy)g->lost;
    r->has_lost_wait = g->has_lost_wait;
    r->lost_wait_ms = g->lost_wait_ms;
    r->has_speculate = g->has_speculate;
    r->speculate = g->speculate;
    r->is_forwarded = true;
    r->digest = g->digest;
    r->resumed_tokens = mr_alloc_array(answers, sizeof(uint32_t));
    r->is_complete = mr_alloc_array(answers, sizeof(bool));
    for (uint32_t i = 0; i < answers; i++) {
        r->resumed_tokens[i] = g->generated_tokens ? g->generated_tokens[i] : 0;
        r->is_complete[i] = g->is_complete && g->is_complete[i];
    }
    for (size_t i = 0; i < g->generated_count; i++) mr_token_list_add(&r->resumed, g->generated[i]);
    return r;
}

_Static_assert((int)MR_CONTROL_LOST_DEGRADE == (int)MR_LOST_DEGRADE, "one order");
_Static_assert((int)MR_CONTROL_STOP_IDS <= (int)MR_MAX_STOP_IDS, "all fit");
_Static_assert((int)MR_CONTROL_LOGPROBS == (int)MR_MAX_LOGPROBS, "all fit");

mr_status mr_gateway_generate(void *core, mr_control_stream *stream, const mr_generation *g,
                              mr_err *err) {
    if (!g->has_digest)
        return mr_fail(err, MR_ERR_ARGUMENT, "a forwarded request must name its model's digest");
    if ((uint64_t)g->prompt_count * g->choices > MR_MAX_REQUEST_SEQUENCES)
        return mr_fail(err, MR_ERR_LIMIT, "%u prompts with %u choices; at most %d answers",
                       g->prompt_count, g->choices, MR_MAX_REQUEST_SEQUENCES);
    visit *v = mr_alloc(sizeof(*v));
    *v = (visit){.core = core, .stream = stream};
    pthread_mutex_init(&v->lock, NULL);
    mr_request *r = make_request(g);
    r->sink = on_event;
    r->context = v;
    pthread_mutex_lock(&v->lock); /* the end, which frees it, waits for us */
    const mr_status status = mr_core_submit(core, r, &v->id, err);
    if (status == MR_OK) mr_control_stream_watch(stream, on_notice, v);
    pthread_mutex_unlock(&v->lock);
    if (status == MR_OK) return MR_OK;
    mr_request_free(r);
    pthread_mutex_destroy(&v->lock);
    free(v);
    return status;
}
