/* serve.h - the worker's door: STEP frames in, SAMPLED, LOGITS and DONE (or ERROR) frames out.
 *
 * Two ways in. mr_worker_serve_link runs steps for one link in the caller's thread: the embedded
 * cluster gives it one end of a socket pair. mr_worker_open listens: a serving thread accepts
 * links, answers pings and queues steps; one step thread owns the engine and takes them in order.
 * HELLO is answered with mr_wire_worker_info. A step's frames come in the order of the engine's
 * reports and end with DONE or ERROR; after ERROR nothing of that step counts.
 * Bounds: MR_WORKER_STEPS_QUEUED steps wait; one more is answered with MR_ERR_LIMIT. A coordinator
 * that does not read its answers for ten seconds loses the rest of them. */
#ifndef MR_WORKER_SERVE_H
#define MR_WORKER_SERVE_H
#include "worker/engine.h"

#include <stdatomic.h>

enum { MR_WORKER_STEPS_QUEUED = 64 };

/* Serves until *stop is true (looked at every 50 ms) or the other side closes; both are MR_OK. link
 * is borrowed, the engine belongs to this thread meanwhile. digest: of the model, for HELLO. */
mr_status mr_worker_serve_link(mr_engine *engine, mr_digest digest, mr_link *link,
                               const atomic_bool *stop, mr_err *err);

typedef struct mr_worker mr_worker;

/* engine is borrowed until close. address as in server.h. */
mr_status mr_worker_open(mr_worker **out, mr_engine *engine, mr_digest digest, const char *address,
                         mr_err *err);
const char *mr_worker_address(const mr_worker *worker); /* with the real port */
/* Ends after the step under way; steps that wait are dropped with their links. NULL is fine. */
void mr_worker_close(mr_worker *worker);

#endif
