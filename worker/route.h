/* route.h - where the cells of a model's tables are asked for: peers, and which of them hold each
 * cell. Made from the cluster's map (or from a list of addresses), given to a retrieval between two
 * steps.
 * Threads: plain values. Memory: all owned; mr_route_free. */
#ifndef MR_WORKER_ROUTE_H
#define MR_WORKER_ROUTE_H
#include "common/base/status.h"
#include "common/model/grid.h"
#include "common/net/view.h"

typedef struct {
    char *id;      /* member id; for sentences and metrics */
    char *address; /* TCP or Unix socket; NULL: a link is there already (loop) */
    char *ucx;     /* or NULL */
    char *control; /* or NULL: where session keys come from */
    char *machine; /* as mr_member's; NULL: unknown */
    bool has_verbs;
} mr_route_peer;

typedef struct {
    mr_digest digest;
    uint64_t epoch; /* of the map; 0: static */
    mr_grid grid;
    mr_route_peer *peers; /* [peer_count] */
    uint32_t peer_count;
    uint32_t *replica_first; /* [cells + 1] */
    uint32_t *replicas;      /* [replica_first[cells]] indices into peers, in the map's order */
} mr_route;

/* The route of a map. A replica whose member is not in the view is left out; a cell without any
 * keeps none (asking for it fails, or degrades). */
mr_status mr_route_of_view(mr_route *out, const mr_view *view, const mr_digest *digest,
                           mr_err *err);
void mr_route_free(mr_route *route);

#endif
