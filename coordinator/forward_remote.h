/* forward_remote.h - a forwarder (forward.h) over gRPC: finds who owns a group of the model in the
 * cluster's view and asks Gateway.Generate there.
 *
 * Each forwarded request has a thread that reads its events, since reading waits; there are at most
 * as many as requests may be live.
 * Threads: the forwarder's calls as forward.h says; open, close and set_core from one thread. */
#ifndef MR_COORDINATOR_FORWARD_REMOTE_H
#define MR_COORDINATOR_FORWARD_REMOTE_H
#include "common/net/control.h"
#include "coordinator/core.h"

typedef struct mr_remote mr_remote;

typedef struct {
    const char *self;                      /* our coordinator id; copied */
    const mr_view *(*view)(void *context); /* retained for the caller; any thread */
    void *context;
    mr_rpc_security security; /* copied */
} mr_remote_options;

mr_remote *mr_remote_open(const mr_remote_options *options);
mr_forwarder mr_remote_forwarder(mr_remote *remote);       /* for mr_core_options */
void mr_remote_set_core(mr_remote *remote, mr_core *core); /* before the first request */
/* Ends all tries and waits for their threads: before the core is closed, which must not be told
 * anything afterwards. From then on the forwarder reaches nobody. */
void mr_remote_stop(mr_remote *remote);
void mr_remote_close(mr_remote *remote); /* after the core; NULL is fine */

#endif
