/* prober.h - heartbeats: asks every member's control service for its status, over and over, and
 * remembers when each last answered.
 *
 * A lease in etcd says who is listed; this says who is alive. A few threads share the members out;
 * one that does not answer holds up one thread for half a second at most.
 * Threads: everything may be called from any thread. */
#ifndef MR_COORDINATOR_PROBER_H
#define MR_COORDINATOR_PROBER_H
#include "common/net/control.h"

typedef struct mr_prober mr_prober;

/* Without gRPC: MR_ERR_UNSUPPORTED when the first member is asked, which then counts as silent. */
mr_prober *mr_prober_open(const mr_rpc_security *security); /* copied */
void mr_prober_close(mr_prober *prober);                    /* NULL is fine */

/* From now on these are the members; self (of role) is not asked. */
void mr_prober_follow(mr_prober *prober, const mr_view *view, mr_role role, const char *self);

/* Seconds since it last answered, or since it was first asked in vain; negative: not asked yet. */
double mr_prober_silent_s(mr_prober *prober, mr_role role, const char *id);
/* A counter of its last status; false: not known. */
bool mr_prober_counter(mr_prober *prober, mr_role role, const char *id, const char *name,
                       double *out);

#endif
