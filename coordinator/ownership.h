/* ownership.h - which worker groups there are, who schedules each, and which this coordinator
 * takes.
 *
 * A group is a pipeline all of whose stages are there and ready. It has one owning coordinator,
 * fenced by an epoch; the others forward to it. A group without an owner goes to the live
 * coordinator that rendezvous hashing of its name prefers. An owner loses its group when it has
 * been silent towards us for OWNER_SILENT_S and the group's first worker has not heard of it
 * either: two witnesses, so that a cut between two coordinators alone moves nothing. Without etcd
 * nothing moves. Pure functions: the caller claims. Threads: any. Memory: groups borrow from the
 * view. */
#ifndef MR_COORDINATOR_OWNERSHIP_H
#define MR_COORDINATOR_OWNERSHIP_H
#include "common/base/limits.h"
#include "common/net/view.h"

#define MR_OWNER_SILENT_S 1.25

typedef struct {
    const char *name;
    mr_digest digest;
    const mr_member *first; /* stage 0 */
    uint32_t stages;
    const mr_member *owner; /* NULL: nobody, or one that has left the view */
    uint64_t epoch;         /* of the owner; 0: never had one */
    bool is_mine;
    bool is_claimable; /* by us, now, with epoch + 1 */
} mr_group_place;

typedef struct {
    const mr_view *view;
    const char *self; /* coordinator id */
    bool is_etcd_up;
    /* Seconds since a member last answered us; negative: never asked. */
    double (*silent_s)(void *context, const mr_member *member);
    /* Seconds since this worker last heard of its group's owner, as it says; negative: not known.
     */
    double (*owner_silent_s)(void *context, const mr_member *worker);
    void *context;
} mr_ownership_input;

/* Returns how many were written, by name; complete groups only. */
uint32_t mr_ownership_decide(mr_group_place out[MR_MAX_GROUPS], const mr_ownership_input *input);

#endif
