/* conductor.h - a coordinator's part in its cluster: follows views, takes worker groups over, tells
 * the core which groups and models there are, and, where it is the leader, has the controller's
 * decisions carried out.
 *
 * Threads: open, start and close from the main thread. The agent's thread does the work; it is the
 * only one that changes the core's groups and models. */
#ifndef MR_COORDINATOR_CONDUCTOR_H
#define MR_COORDINATOR_CONDUCTOR_H
#include "common/net/agent.h"
#include "coordinator/core.h"
#include "coordinator/front.h"
#include "coordinator/models.h"

typedef struct mr_conductor mr_conductor;

typedef struct {
    const mr_agent_settings *agent;          /* borrowed until close */
    bool allow_same_host;                    /* replicas may share a machine */
    int64_t replace_after_s;                 /* 0: 30 */
    void (*drain)(void *context, bool ends); /* the control service asks for it */
    void *context;
} mr_conductor_options;

/* Joins the cluster; nothing is announced yet. */
mr_status mr_conductor_open(mr_conductor **out, const mr_conductor_options *options, mr_err *err);
/* From now on the core's groups and the front's models follow the cluster. */
void mr_conductor_start(mr_conductor *conductor, mr_core *core, mr_front *front);
/* The core is told nothing more, neither by the cluster nor by other coordinators' answers: before
 * it is closed. NULL is fine. */
void mr_conductor_stop(mr_conductor *conductor);
void mr_conductor_close(mr_conductor *conductor); /* after the core; NULL is fine */

/* For the core's options: requests for groups of other coordinators. */
mr_forwarder mr_conductor_forwarder(mr_conductor *conductor);

#endif
