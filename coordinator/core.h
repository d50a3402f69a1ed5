/* core.h - the one loop that owns requests: queue, steps, answers.
 *
 * One thread owns every request, the scheduler and the link to the worker. Other threads only post
 * to its inbox (submit, cancel) and read what it publishes (health, limits, metrics). A step is one
 * STEP frame and the frames that answer it; one step is out at a time. Its results count when DONE
 * has come: a step that ends in ERROR fails the requests that were in it, with the worker's
 * sentence, and the others go on. A worker whose link breaks, whose step makes no progress for
 * step_timeout_ms, or that (being a process of its own) answers no ping for silence_timeout_ms,
 * fails every request at once; where an address is known a helper thread connects again, less and
 * less often, and until then requests are refused.
 *
 * Every submitted request gets exactly one end event, whatever happens. */
#ifndef MR_COORDINATOR_CORE_H
#define MR_COORDINATOR_CORE_H
#include "common/net/fabric.h"
#include "coordinator/metrics.h"
#include "coordinator/request.h"

typedef struct mr_core mr_core;

typedef struct {
    mr_link *link;                 /* to an embedded worker: taken over, also on failure; or NULL */
    const char *worker_address;    /* else: where to connect; copied */
    mr_digest digest;              /* of the model; zero: any */
    const mr_tokenizer *tokenizer; /* borrowed until close; NULL: answers have tokens but no text */
    uint32_t context_tokens;       /* of the model; the worker's own limit counts too */
    uint32_t queue_max;            /* requests that may wait; 0: MR_MAX_QUEUED_REQUESTS */
    uint32_t step_timeout_ms;      /* 0: 60 s */
    uint32_t silence_timeout_ms;   /* 0: 5 s; only with worker_address */
} mr_core_options;

/* With a link the session is open on return; with an address the core connects in the background.
 */
mr_status mr_core_open(mr_core **out, const mr_core_options *options, mr_err *err);
void mr_core_close(mr_core *core); /* ends what is left with an error; NULL is fine */

/* Any thread. The request is taken over on MR_OK only. MR_ERR_LIMIT: the queue is full.
 * MR_ERR_UNAVAILABLE: no worker, or draining. *id names it for mr_core_cancel. */
mr_status mr_core_submit(mr_core *core, mr_request *request, uint64_t *id, mr_err *err);
/* Any thread; harmless for a request that has ended. */
void mr_core_cancel(mr_core *core, uint64_t id);

/* Any thread. MR_OK, or MR_ERR_UNAVAILABLE and why. */
mr_status mr_core_health(mr_core *core, mr_err *err);
/* Waits until the worker is there. MR_ERR_TIMEOUT or the last reason. */
mr_status mr_core_wait_ready(mr_core *core, int64_t deadline_ns, mr_err *err);
/* What the worker said of itself; all zero before it is there the first time. */
mr_wire_worker_info mr_core_worker(mr_core *core);
/* From now on submit refuses; what is there is finished. */
void mr_core_drain(mr_core *core);
uint32_t mr_core_live_requests(mr_core *core); /* submitted and not ended */
mr_metrics *mr_core_metrics(mr_core *core);

#endif
