/* setup.h - a memshard as its options want it: a tier, a scrubber, where cells come from, and what
 * happens to one that is found bad.
 *
 * A bad cell answers errors from the moment it is found; here it is taken away, so that it answers
 * MR_ERR_STALE and other replicas are asked, and, in a static shard, loaded again. In a cluster the
 * leader sees that it is missing and orders the same.
 * Threads: open and close from the main thread; one thread of its own deals with bad cells. */
#ifndef MR_MEMSHARD_SETUP_H
#define MR_MEMSHARD_SETUP_H
#include "memshard/store_source.h"
#include "memshard/tier.h"

typedef struct mr_setup mr_setup;

typedef struct {
    const mr_ops *ops;
    uint64_t tier_bytes; /* memory for hot rows, which then stay in their files; 0: all in memory */
    mr_gpu *gpu;         /* borrowed until close: rows go there too; or NULL */
    bool no_verify;
    uint64_t scrub_bytes_s; /* 0: the default; UINT64_MAX: no scrubbing */
    mr_store_opener opener; /* texts borrowed until close */
    /* Cells were taken away or have come back; in the setup's thread; may be NULL. */
    void (*changed)(void *context);
    void *context;
} mr_setup_options;

mr_status mr_setup_open(mr_setup **out, const mr_setup_options *options, mr_err *err);
void mr_setup_close(mr_setup *setup); /* closes the shard; NULL is fine */
mr_memshard *mr_setup_shard(mr_setup *setup);

/* Loads the cells of a static shard and seals it. The order is copied. */
mr_status mr_setup_load(mr_setup *setup, const mr_load_order *order, mr_progress progress,
                        void *context, mr_err *err);

void mr_setup_count(mr_setup *setup, mr_scrub_counters *scrub, mr_tier_counters *tier);

#endif
