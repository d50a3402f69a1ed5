/* holdings.h - what a memshard holds, and how that changes while it serves: cells of several models
 * (a digest and a grid each) are loaded and unloaded at run time.
 *
 * Serving threads see one immutable snapshot after another: a request keeps the one it began with,
 * and what a change took away is freed when the last such request has ended. They take no lock.
 * Loading is all or nothing: the memory for every cell is found before the first is opened, cells
 * that cannot be opened leave nothing behind, and a source of another digest is refused.
 * Threads: any but a serving thread's own handler; loads run one after another, unloads beside
 * them. Never from inside a callback of a load. */
#ifndef MR_MEMSHARD_HOLDINGS_H
#define MR_MEMSHARD_HOLDINGS_H
#include "common/net/view.h"
#include "memshard/scrub.h"
#include "memshard/serve.h"

/* A model's tables, opened. What is borrowed lives until close. */
typedef struct mr_table_source mr_table_source;
struct mr_table_source {
    const mr_store_source *tables;
    mr_digest digest;
    const mr_model *model;                  /* where product keys are read from; NULL: none */
    void (*close)(mr_table_source *source); /* of what own stands for; NULL: nothing */
    void *own;
};

typedef struct {
    const char *source; /* a directory, or whatever the opener understands */
    mr_digest digest;   /* all zero: whatever the source has */
    mr_grid grid;
    const uint32_t *cells; /* [cell_count] of the grid; those held already are skipped */
    uint32_t cell_count;
    bool keys; /* also all product keys, for TOPK */
} mr_load_order;

/* How sources are opened; the default knows model directories. Before the first load. */
typedef mr_status (*mr_source_opener)(void *context, mr_table_source *out,
                                      const mr_load_order *order, mr_progress progress,
                                      void *progress_context, mr_err *err);
void mr_memshard_set_opener(mr_memshard *shard, mr_source_opener opener, void *context);
/* How cells are opened: a tier, no checksums. Before the first load. */
void mr_memshard_set_cell_options(mr_memshard *shard, const mr_cell_options *options);

/* Every cell loaded from now on is scrubbed until it is unloaded. Borrowed until the shard closes.
 * What the scrubber calls for a bad cell must not unload it in that thread: post it elsewhere. */
void mr_memshard_set_scrub(mr_memshard *shard, mr_scrub *scrub);

/* All it will ever hold is there: what it lacks is then the asker's mistake, not a map's. false: a
 * cell is away for a while after all. Any thread. */
void mr_memshard_seal(mr_memshard *shard, bool is_sealed);

/* A shard that holds nothing yet. */
mr_status mr_memshard_open_empty(mr_memshard **out, const mr_ops *ops, mr_err *err);

/* From a source that is open already: taken over, closed here when this fails. */
mr_status mr_memshard_adopt(mr_memshard *shard, mr_table_source *source, const mr_load_order *order,
                            mr_progress progress, void *context, mr_err *err);
/* In this thread. progress may be NULL. */
mr_status mr_memshard_load_now(mr_memshard *shard, const mr_load_order *order, mr_progress progress,
                               void *context, mr_err *err);
/* In a thread of the shard's own, which calls progress and, last, done. The order is copied.
 * MR_ERR_LIMIT: too many wait. Closing the shard ends loads with MR_ERR_CANCELLED. */
typedef struct {
    mr_progress progress; /* may be NULL */
    void (*done)(void *context, mr_status status, const mr_err *err);
    void *context;
} mr_load_watch;
mr_status mr_memshard_load(mr_memshard *shard, const mr_load_order *order,
                           const mr_load_watch *watch, mr_err *err);

/* Takes cells of a model away; count 0: all; grid {0, 0}: of every grid. What is not held is
 * skipped. Returns when the memory is free. */
void mr_memshard_unload(mr_memshard *shard, const mr_digest *digest, mr_grid grid,
                        const uint32_t *cells, uint32_t count);

/* For the member's record: as it is now; *out is owned by the caller. */
void mr_memshard_describe(mr_memshard *shard, mr_holding **out, uint32_t *count);
void mr_holdings_free(mr_holding *holdings, uint32_t count);

/* Since open, but for the window: the last 10 to 20 seconds. */
typedef struct {
    uint64_t requests, refused;         /* answered in all; of those, with a sentence */
    uint64_t stale, expired, cancelled; /* not held here; too late; not waited for any more */
    uint64_t together;                  /* answered side by side with others that waited */
    uint64_t prefetched;                /* rows asked for ahead */
    uint64_t loads, unloads, failed_loads;
    uint64_t window_requests;
    double window_s;
    uint32_t p50_us, p99_us; /* from arrival to answer, of the window */
    uint32_t queue_depth;
    uint64_t bytes_held; /* rows and keys */
    uint32_t models, cells;
} mr_memshard_stats;
mr_memshard_stats mr_memshard_look(mr_memshard *shard);

#endif
