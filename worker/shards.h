/* shards.h - the worker finds its memshards: connects to all, opens sessions, and checks that their
 * cells are a whole grid with cell c on shard c mod M, in whatever order they were named.
 * Threads: open and close from one thread. */
#ifndef MR_WORKER_SHARDS_H
#define MR_WORKER_SHARDS_H
#include "common/model/grid.h"
#include "common/net/fabric.h"

typedef struct {
    mr_link **links;  /* [count], by shard index; owned until handed to an engine */
    char **addresses; /* [count] */
    uint32_t count;
    mr_grid grid; /* as all shards say */
} mr_shards;

/* A shard that refuses connections is asked again until the deadline: it may be starting. */
mr_status mr_shards_connect(mr_shards *out, const char *const *addresses, uint32_t count,
                            mr_digest digest, int64_t deadline_ns, mr_err *err);
void mr_shards_free(mr_shards *shards, bool close_links);

#endif
