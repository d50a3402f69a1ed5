/* route.c - routes as plain values: made of addresses, copied, freed. Made of a view:
 * route_view.c. */
#include "worker/route.h"

#include "common/base/mem.h"

#include <stdlib.h>

static char *copy_text(const char *text) {
    return text ? mr_strdup(text) : NULL;
}

void mr_route_peer_copy(mr_route_peer *out, const mr_route_peer *peer) {
    *out = (mr_route_peer){.id = copy_text(peer->id),
                           .address = copy_text(peer->address),
                           .ucx = copy_text(peer->ucx),
                           .control = copy_text(peer->control),
                           .machine = copy_text(peer->machine),
                           .has_verbs = peer->has_verbs};
}

void mr_route_peer_free(mr_route_peer *peer) {
    free(peer->id);
    free(peer->address);
    free(peer->ucx);
    free(peer->control);
    free(peer->machine);
    *peer = (mr_route_peer){0};
}

void mr_route_of_addresses(mr_route *out, const char *const *addresses, uint32_t count,
                           mr_grid grid, const mr_digest *digest) {
    const uint32_t cells = grid.row_groups * grid.width_slices;
    *out = (mr_route){.digest = *digest,
                      .grid = grid,
                      .peers = mr_alloc_array(count, sizeof(*out->peers)),
                      .peer_count = count,
                      .replica_first = mr_alloc_array(cells + 1ull, sizeof(uint32_t)),
                      .replicas = mr_alloc_array(cells, sizeof(uint32_t))};
    for (uint32_t i = 0; i < count; i++)
        out->peers[i] = (mr_route_peer){.id = mr_format("%u", i),
                                        .address = addresses ? copy_text(addresses[i]) : NULL};
    for (uint32_t c = 0; c < cells; c++) {
        out->replica_first[c + 1] = c + 1;
        out->replicas[c] = c % count;
    }
}

void mr_route_free(mr_route *route) {
    for (uint32_t i = 0; i < route->peer_count; i++) mr_route_peer_free(&route->peers[i]);
    free(route->peers);
    free(route->replica_first);
    free(route->replicas);
    *route = (mr_route){0};
}
