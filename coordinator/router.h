/* router.h - which worker group a request goes to. Pure.
 *
 * The group that has the longest prefix of the prompt in its cache takes it, unless it has so much
 * more to do than the least busy one that computing the prefix again elsewhere is sooner done.
 * Without a cached prefix the least queued tokens decide; equal ones take turns. */
#ifndef MR_COORDINATOR_ROUTER_H
#define MR_COORDINATOR_ROUTER_H
#include <stdint.h>

typedef struct {
    uint64_t queued_tokens; /* still to be computed there */
    uint32_t cached_tokens; /* of the prompt */
} mr_route_choice;

/* count >= 1; turn: grows with every request. Returns the index of the group. */
uint32_t mr_router_choose(const mr_route_choice *groups, uint32_t count, uint64_t turn);

#endif
