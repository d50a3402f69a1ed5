/* serve.h - the worker's door: STEP frames in, SAMPLED, LOGITS and DONE (or ERROR) frames out.
 *
 * Two ways in. mr_worker_serve_link runs steps for one link in the caller's thread: the embedded
 * cluster gives it one end of a socket pair. mr_worker_open listens: a serving thread accepts
 * links, answers pings and queues steps; one step thread owns the engines and takes them in order.
 * HELLO is answered with mr_wire_worker_info of the model it asks for. A step's frames come in the
 * order of the engine's reports and end with DONE or ERROR; after ERROR nothing of that step
 * counts.
 *
 * A worker that is a pipeline stage but not the last keeps a link to the next one: after its own
 * blocks it sends STAGE and HIDDEN and goes on with the next step at once; the answers are passed
 * back to the one who asked, DONE with the counters of all stages. A next stage that is closed, or
 * does not answer pings for MR_WORKER_NEXT_LOST_MS, fails the steps it owes with an error that
 * names it, and is connected to again in the background.
 *
 * Owners: the highest epoch seen in a STEP or STAGE of a model is remembered; a lower one is
 * answered with MR_ERR_STALE, and so are steps of the older owner that still wait.
 * Bounds: MR_WORKER_STEPS_QUEUED steps wait; one more is answered with MR_ERR_LIMIT. A coordinator
 * that does not read its answers for ten seconds loses the rest of them. Hidden states that wait
 * for their step hold MR_MAX_STAGED_BYTES. Warm, a step allocates nothing here either. */
#ifndef MR_WORKER_SERVE_H
#define MR_WORKER_SERVE_H
#include "worker/engine.h"

#include <stdatomic.h>

enum {
    MR_WORKER_STEPS_QUEUED = 64,
    MR_WORKER_PING_MS = 250,      /* a next stage silent for so long is asked */
    MR_WORKER_NEXT_LOST_MS = 750, /* and lost after so long in all */
};

/* Serves until *stop is true (looked at every 50 ms) or the other side closes; both are MR_OK. link
 * is borrowed, the engine belongs to this thread meanwhile. digest: of the model, for HELLO. */
mr_status mr_worker_serve_link(mr_engine *engine, mr_digest digest, mr_link *link,
                               const atomic_bool *stop, mr_err *err);

typedef struct mr_worker mr_worker;

typedef struct {
    const char *address; /* as in server.h */
    mr_engine *engine;   /* the first model's; NULL: mr_worker_add brings some later */
    mr_digest digest;
    struct mr_keys *keys; /* as in server.h; borrowed */
    bool is_key_required;
    /* How a next stage is reached: connects, opens the session, leaves WELCOME in welcome as
     * mr_session_open does. Called in a thread of that model's own; ends by the deadline. NULL:
     * mr_link_connect and mr_session_open, without a key. The link has a descriptor. */
    mr_status (*connect)(void *context, mr_link **out, const char *address,
                         const mr_session_hello *hello, int64_t deadline_ns, void *welcome,
                         size_t room, size_t *bytes, mr_err *err);
    void *connect_context;
} mr_worker_options;

mr_status mr_worker_open_with(mr_worker **out, const mr_worker_options *options, mr_err *err);
/* The same with only these. */
mr_status mr_worker_open(mr_worker **out, mr_engine *engine, mr_digest digest, const char *address,
                         mr_err *err);
const char *mr_worker_address(const mr_worker *worker); /* with the real port */
/* Ends after the step under way; steps that wait are dropped with their links. NULL is fine. */
void mr_worker_close(mr_worker *worker);

/* The rest may be called from any thread while the worker is open.
 *
 * One more model beside the others, found by the digest of HELLO (an unset one gives the oldest).
 * The engine is borrowed until it was removed or the worker is closed. */
mr_status mr_worker_add(mr_worker *worker, mr_engine *engine, mr_digest digest, mr_err *err);
/* Takes no new steps of the model, waits until the last one is answered, and gives the engine back.
 * MR_ERR_TIMEOUT: steps are still under way, and the model goes on as before. */
mr_status mr_worker_remove(mr_worker *worker, mr_digest digest, int64_t deadline_ns, mr_err *err);

/* Where the next stage of a model's pipeline listens; NULL: nowhere for now. Copied; connects in
 * the background. MR_ERR_ARGUMENT: no such model, or its last stage is here. */
mr_status mr_worker_set_next(mr_worker *worker, mr_digest digest, const char *address, mr_err *err);
/* A newer route to the memshards for the steps that follow; its contents are taken over, *route is
 * left empty. Steps under way end on the route they began with. */
mr_status mr_worker_set_route(mr_worker *worker, mr_digest digest, mr_route *route, mr_err *err);

typedef struct {
    uint64_t owner_epoch; /* the highest seen; 0: none but static ones */
    uint64_t map_epoch; /* of the oldest route that a step under way uses, or the next one would */
    uint32_t steps;     /* that wait or are under way, here or behind */
    bool has_next, is_next_up;
    char next_why[MR_ERR_TEXT_BYTES]; /* why the next stage is not up */
} mr_worker_state;
/* MR_ERR_ARGUMENT: no such model. For the member record, readiness and metrics. */
mr_status mr_worker_look(mr_worker *worker, mr_digest digest, mr_worker_state *out, mr_err *err);

/* Of all models together: steps since open, latencies of the last 10 to 20 seconds. */
typedef struct {
    uint64_t steps, failures, degraded;
    double steps_per_s;
    uint32_t p50_us, p99_us; /* of computing a step here */
    uint64_t hedges, resends, cache_hits, cache_misses, retrieval_wait_ns;
    int64_t heard_ns; /* when any coordinator or stage before last sent something; 0: never */
    int64_t step_ns;  /* when the last step ended; 0: none has */
} mr_worker_stats;
void mr_worker_measure(mr_worker *worker, mr_worker_stats *out);

/* Waits until the next stage is connected. MR_ERR_TIMEOUT with the reason why it is not. */
mr_status mr_worker_wait_next(mr_worker *worker, mr_digest digest, int64_t deadline_ns,
                              mr_err *err);

#endif
