/* forward.h - requests for worker groups that other coordinators own.
 *
 * The core hands such a request to a forwarder, which brings it to an owner (gRPC Gateway.Generate)
 * and posts what comes back with mr_core_forwarded(). The core goes on as with a local group: text,
 * stop strings and lengths are its own business, and a forwarded request whose owner is lost goes
 * on elsewhere behind the tokens it has. */
#ifndef MR_COORDINATOR_FORWARD_H
#define MR_COORDINATOR_FORWARD_H
#include "coordinator/request.h"

#include "common/base/hash.h"

/* One try. Everything is borrowed for the call. */
typedef struct {
    uint64_t id; /* of this try; what events and cancel name */
    mr_digest digest;
    const mr_request *request;    /* prompts, sampling, choices, policy */
    const mr_token_list *answers; /* [prompt_count * choices] tokens so far */
    uint32_t answer_count;
    const bool *is_complete; /* [answer_count] those are not asked for any more */
} mr_forward_job;

typedef struct {
    /* Any thread: whether another coordinator has groups of this model. digest NULL: of any. */
    bool (*reaches)(void *context, const mr_digest *digest);
    /* In the core's thread; must not wait. MR_OK: events follow, the last one an end. */
    mr_status (*submit)(void *context, const mr_forward_job *job, mr_err *err);
    /* In the core's thread. No event of this try is waited for any more. */
    void (*cancel)(void *context, uint64_t id);
    void *context;
} mr_forwarder;

typedef struct {
    uint64_t id;
    bool is_end;
    uint32_t answer;
    mr_token_entry entry; /* token, logprob, top */
    mr_status status;     /* of the end */
    mr_err sentence;
    bool is_degraded;
} mr_forward_event;

#endif
