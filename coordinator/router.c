/* router.c - see router.h. */
#include "coordinator/router.h"

#include <assert.h>

/* A prefix is worth twice its computing: it also saves cache blocks in the other group. */
enum { PREFIX_WORTH = 2 };

uint32_t mr_router_choose(const mr_route_choice *groups, uint32_t count, uint64_t turn) {
    uint32_t least = (uint32_t)(turn % count), longest = least;
    assert(count > 0);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = (uint32_t)((turn + i) % count);
        const mr_route_choice *g = &groups[at], *best = &groups[longest];
        if (g->queued_tokens < groups[least].queued_tokens) least = at;
        if (g->cached_tokens > best->cached_tokens ||
            (g->cached_tokens == best->cached_tokens && g->queued_tokens < best->queued_tokens))
            longest = at;
    }
    const uint64_t worth = (uint64_t)PREFIX_WORTH * groups[longest].cached_tokens;
    return groups[longest].queued_tokens <= groups[least].queued_tokens + worth ? longest : least;
}
