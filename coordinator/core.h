/* core.h - the one loop that owns requests and worker groups: queue, steps, answers.
 *
 * One thread owns every request and, of each worker group, the link to its first stage and its
 * scheduler. Other threads only post to its inbox (submit, cancel, groups) and read what it
 * publishes (health, groups, metrics). A step is one STEP frame and the frames that answer it; a
 * group has as many out as it has stages, of disjoint sequences. A step's results count when its
 * DONE has come.
 *
 * A request is pinned to a model digest and goes to a group of that model (router.h). A group whose
 * link breaks, whose step makes no progress for step_timeout_ms, that answers no ping for
 * silence_timeout_ms or that has seen a newer owner is lost: its requests are computed again in
 * another one, from prompt and tokens so far, and go on with the same tokens. Where no group is
 * left they wait, as new ones do, for worker_wait_ms; a helper thread per lost group connects
 * again, less and less often. A link without an address cannot come back.
 *
 * A step that fails because rows cannot be had (UNAVAILABLE, TIMEOUT, STALE) is dealt with as each
 * of its requests says (mr_lost_policy); any other error ends the requests that were in it, with
 * the worker's sentence.
 *
 * Where speculation is on, a step of decoding answers brings guesses of their next tokens
 * (draft.h). The step samples at each of them what would have been sampled anyway, so answers, log
 * probabilities, events and their order are the same with and without. A step that fails with
 * guesses in it is run again without them first; none are made while steps may be degraded, nor for
 * a worker that speaks version 1.
 *
 * Every submitted request gets exactly one end event, whatever happens. */
#ifndef MR_COORDINATOR_CORE_H
#define MR_COORDINATOR_CORE_H
#include "common/net/fabric.h"
#include "coordinator/draft.h"
#include "coordinator/forward.h"
#include "coordinator/metrics.h"
#include "coordinator/request.h"

typedef struct mr_core mr_core;

typedef struct {
    mr_link *link;                 /* to an embedded worker: taken over, also on failure; or NULL */
    const char *worker_address;    /* or: one group, named "worker"; copied; NULL: set_groups */
    mr_digest digest;              /* of the model; zero: any */
    const mr_tokenizer *tokenizer; /* of requests without a model of their own; borrowed until
                                    * close; NULL: answers have tokens but no text */
    uint32_t context_tokens;       /* of the model; the worker's own limit counts too */
    uint32_t queue_max;            /* requests that may wait; 0: MR_MAX_QUEUED_REQUESTS */
    uint32_t step_timeout_ms;      /* 0: 60 s */
    uint32_t silence_timeout_ms;   /* 0: 1 s; only of groups with an address */
    uint32_t worker_wait_ms;       /* how long requests wait for a group to be there; 0: 5 s */
    mr_lost_policy lost;           /* default of requests; DEFAULT: wait */
    uint32_t lost_wait_ms;         /* 0: 2 s */
    const mr_forwarder *forwarder; /* copied; NULL: none */
    mr_draft_options draft;        /* tokens_max 0: no speculation */
} mr_core_options;

/* With a link the session is open on return; with an address the core connects in the background.
 */
mr_status mr_core_open(mr_core **out, const mr_core_options *options, mr_err *err);
void mr_core_close(mr_core *core); /* ends what is left with an error; NULL is fine */

/* A worker group that this coordinator owns. */
typedef struct {
    const char *name;    /* unique */
    const char *address; /* of stage 0 */
    mr_digest digest;
    const char *version; /* of the model, for people; may be NULL */
    uint64_t epoch;      /* of the owner; 0: static */
    uint32_t stages;     /* 0: what the worker says */
} mr_group_spec;

/* Any thread. From now on these are the groups, but for an embedded one, which stays: new ones are
 * connected, missing ones lost at once, those with another address, digest or number of stages
 * replaced, others get the epoch. Copied; at most MR_MAX_GROUPS. */
void mr_core_set_groups(mr_core *core, const mr_group_spec *groups, uint32_t count);

typedef enum { MR_GROUP_CONNECTING, MR_GROUP_UP, MR_GROUP_STALE } mr_group_state;

/* What a group looks like at the moment. */
typedef struct {
    char name[80], version[80];
    mr_group_state state;
    uint64_t epoch;
    uint32_t stages, outstanding; /* steps */
    uint64_t waiting, running, queued_tokens, kv_blocks, kv_blocks_used, kv_blocks_idle;
    uint64_t steps, step_failures, losses;
    mr_err reason; /* why it is not up */
} mr_group_look;

/* Any thread. Returns how many were written. */
uint32_t mr_core_groups(mr_core *core, mr_group_look *out, uint32_t max);
/* Their series for the metrics page, labelled by the groups' names. */
void mr_group_metrics_write(mr_text *out, const mr_group_look *groups, uint32_t count);

/* Any thread. The request is taken over on MR_OK only. MR_ERR_LIMIT: the queue is full.
 * MR_ERR_UNAVAILABLE: no group is there or could come back, or draining. *id names it for
 * mr_core_cancel. */
mr_status mr_core_submit(mr_core *core, mr_request *request, uint64_t *id, mr_err *err);
/* Any thread; harmless for a request that has ended. */
void mr_core_cancel(mr_core *core, uint64_t id);
/* Any thread: what a forwarder has to say. Copied. */
void mr_core_forwarded(mr_core *core, const mr_forward_event *event);

/* Any thread. MR_OK: a group is up, or another coordinator's can be reached; or
 * MR_ERR_UNAVAILABLE and why. */
mr_status mr_core_health(mr_core *core, mr_err *err);
/* Waits until a group is up. MR_ERR_TIMEOUT or the last reason. */
mr_status mr_core_wait_ready(mr_core *core, int64_t deadline_ns, mr_err *err);
/* What the last worker that came said of itself; all zero before. */
mr_wire_worker_info mr_core_worker(mr_core *core);
/* From now on submit refuses; what is there is finished. */
void mr_core_drain(mr_core *core);
bool mr_core_is_draining(mr_core *core);
uint32_t mr_core_live_requests(mr_core *core); /* submitted and not ended */
mr_metrics *mr_core_metrics(mr_core *core);

#endif
