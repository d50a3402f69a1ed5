/* route_view.c - the route of a cluster's map: member ids become peers with addresses. */
#include "worker/route.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    mr_route *route;
    uint32_t room;
} building;

static char *copy_text(const char *text) {
    return text ? mr_strdup(text) : NULL;
}

/* Index of the peer with this id; it is added when it is new. UINT32_MAX: nobody we could ask. */
static uint32_t peer_of(building *b, const mr_view *view, const char *id) {
    mr_route *route = b->route;
    for (uint32_t i = 0; i < route->peer_count; i++)
        if (strcmp(route->peers[i].id, id) == 0) return i;
    const mr_member *m = mr_view_member(view, MR_ROLE_MEMSHARD, id);
    if (!m || !m->address) return UINT32_MAX;
    if (route->peer_count == b->room) {
        b->room = b->room ? 2 * b->room : 16;
        route->peers = mr_realloc_array(route->peers, b->room, sizeof(*route->peers));
    }
    route->peers[route->peer_count] = (mr_route_peer){.id = mr_strdup(id),
                                                      .address = mr_strdup(m->address),
                                                      .ucx = copy_text(m->ucx),
                                                      .control = copy_text(m->control),
                                                      .machine = copy_text(m->machine),
                                                      .has_verbs = m->has_verbs};
    return route->peer_count++;
}

mr_status mr_route_of_view(mr_route *out, const mr_view *view, const mr_digest *digest,
                           mr_err *err) {
    char text[MR_DIGEST_TEXT_BYTES];
    const mr_map_record *map = mr_view_map(view, digest);
    building b = {.route = out};
    *out = (mr_route){.digest = *digest};
    if (!map) {
        mr_digest_text(digest, text);
        return mr_fail(err, MR_ERR_UNAVAILABLE,
                       "the cluster has no table map for the model of digest %.12s...", text);
    }
    const uint32_t cells = map->grid_rows * map->grid_columns;
    out->epoch = map->epoch;
    out->grid = (mr_grid){map->grid_rows, map->grid_columns};
    out->replica_first = mr_alloc_array(cells + 1ull, sizeof(uint32_t));
    out->replicas = mr_alloc_array(map->replica_first[cells], sizeof(uint32_t));
    uint32_t used = 0;
    for (uint32_t c = 0; c < cells; c++) {
        const uint32_t first = used;
        for (uint32_t i = map->replica_first[c]; i < map->replica_first[c + 1]; i++) {
            const uint32_t peer = peer_of(&b, view, map->replicas[i]);
            if (peer != UINT32_MAX && used - first < MR_MAX_REPLICAS) out->replicas[used++] = peer;
        }
        out->replica_first[c + 1] = used;
    }
    return MR_OK;
}
