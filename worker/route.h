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
 * keeps none (asking for it fails, or degrades). MR_ERR_UNAVAILABLE: the view has no map of this
 * digest. */
mr_status mr_route_of_view(mr_route *out, const mr_view *view, const mr_digest *digest,
                           mr_err *err);
/* Cell c is on peer c mod count; the peers are called "0", "1", ..; addresses may be NULL. */
void mr_route_of_addresses(mr_route *out, const char *const *addresses, uint32_t count,
                           mr_grid grid, const mr_digest *digest);
/* Copies of everything but the cells. */
void mr_route_peer_copy(mr_route_peer *out, const mr_route_peer *peer);
void mr_route_peer_free(mr_route_peer *peer);
void mr_route_free(mr_route *route); /* leaves it empty */

static inline uint32_t mr_route_cells(const mr_route *route) {
    return route->grid.row_groups * route->grid.width_slices;
}

#endif
