/* serve_impl.h - a memshard's parts, shared by its own files.
 *
 * serve.c takes frames and answers them, serve_queue.c lets a round's frames wait for each other,
 * serve_stats.c counts, serve_pool.c does RETRIEVE, topk.c does TOPK, holdings.c changes what is
 * held. A request in work has a seat: it pins the snapshot of what is held, and has room that grows
 * to the largest request and is kept. */
#ifndef MR_MEMSHARD_SERVE_IMPL_H
#define MR_MEMSHARD_SERVE_IMPL_H
#include "common/base/latency.h"
#include "common/model/product_keys.h"
#include "common/net/frames.h"
#include "memshard/holdings.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    MR_SEATS = 64,
    MR_SEAT_BYTES_MAX = 1 << 29,
    MR_LANES = 256, /* serving threads that may let frames wait */
    MR_LATENCY_WINDOW_S = 10,
};

/* --- what is held ----------------------------------------------------------------------------- */

/* Where cells of one model and grid come from. Counted under shard->changes. */
typedef struct mr_home {
    struct mr_home *next;
    uint32_t uses; /* a snapshot, and loads under way */
    mr_grid grid;
    mr_table_source source;
    mr_product_keys *keys; /* [layer_count] or NULL; set once, before they are published */
    uint64_t key_bytes;
} mr_home;

/* The cells of one model and grid: a part of a snapshot. */
typedef struct {
    mr_home *home;
    const mr_store_source *tables;
    mr_digest digest;
    mr_grid grid;
    const mr_product_keys *keys; /* [layer_count], all of them; or NULL */
    uint32_t cell_count;
    uint32_t *cell_ids; /* [cell_count], ascending */
    mr_held **by_cell;  /* [cells of the grid]; NULL: not held */
    uint64_t bytes;
} mr_model_held;

typedef struct {
    uint32_t count;
    mr_model_held *models[]; /* oldest first */
} mr_snapshot;

/* --- requests --------------------------------------------------------------------------------- */

typedef struct {
    _Alignas(64) atomic_bool is_taken;
    _Atomic(const mr_snapshot *) pinned; /* not freed while it stands here */
    void *memory;
    size_t bytes;
    mr_fetch_scratch fetched[2]; /* values, pre-values */
    mr_gpu_lane *gpu;            /* made when first needed */
    /* Answers by latency, in two windows that take turns. Written by who has the seat. */
    _Atomic int64_t window[2]; /* its number */
    _Atomic uint32_t latency[2][MR_LATENCY_STEPS];
    _Atomic uint64_t requests;
} mr_seat;

typedef struct mr_lane mr_lane; /* serve_queue.c */

struct mr_memshard {
    const mr_ops *ops;
    mr_team *team; /* borrowed; NULL: the calling thread alone */
    _Atomic(mr_snapshot *) held;
    atomic_bool is_static;          /* opened with all it will hold */
    mr_seat *seats;                 /* [MR_SEATS] */
    mr_lane *lanes[MR_LANES];       /* each its serving thread's */
    _Atomic int64_t quiet_until_ns; /* refusals are logged once a second at most */
    struct {
        _Atomic uint64_t refused, stale, expired, cancelled, together, prefetched;
        _Atomic uint64_t loads, unloads, failed_loads;
        _Atomic uint32_t queue_depth;
    } counts;
    /* holdings.c */
    mr_source_opener opener;
    void *opener_context;
    mr_cell_options cell_options;
    mr_scrub *scrub;         /* borrowed; NULL: none */
    pthread_mutex_t loading; /* one load at a time */
    pthread_mutex_t changes; /* guards homes, mapped_bytes and who replaces `held` */
    mr_home *homes;
    uint64_t mapped_bytes; /* of files; they count as free memory until they are read */
    atomic_bool is_closing;
    struct mr_loader *loader; /* NULL until the first load in the background */
};

/* One request, resolved: everything points into the frame, the seat, the model or the store. */
typedef struct {
    mr_retrieve_view view;
    const mr_memory_layer *layer;
    const mr_table_shape *table;
    const mr_table_facts *facts;
    const mr_cell *cell;
    uint32_t core_columns;
    uint32_t answer_bytes;
    mr_rows values, pre_values; /* what to compute with, */
    const uint32_t *value_row;  /* and the ids in there, [entries] */
    const uint32_t *pre_row;
} mr_request;

/* Asked for with what came: the frame's header and where the answer goes. */
typedef struct {
    mr_memshard *shard;
    mr_seat *seat;
    const mr_model_held *model; /* of the session; NULL: not held */
    mr_link *reply;
    const mr_wire_header *header;
    uint32_t waited_us;
} mr_asked;

typedef union {
    mr_retrieve_view retrieve;
    mr_topk_view topk;
    mr_prefetch_view prefetch;
} mr_any_view;

/* A seat that pins what is held now. */
mr_seat *mr_seat_take(mr_memshard *shard, uint32_t lane, const mr_snapshot **held);
void mr_seat_give(mr_seat *seat);
/* Room for one request, contents undefined; NULL and a sentence when there is none. */
void *mr_seat_room(mr_seat *seat, size_t bytes, mr_err *err);
const mr_model_held *mr_snapshot_find(const mr_snapshot *held, const mr_digest *digest,
                                      mr_grid grid);

/* serve.c: a checked frame, worked on now. seen_ns: when it came, or 0. */
void mr_serve_now(mr_memshard *shard, mr_link *reply, const mr_wire_header *header,
                  const mr_any_view *view, int64_t seen_ns);
mr_status mr_serve_check(mr_any_view *view, const mr_frame *frame, mr_err *err);
void mr_serve_refuse(mr_memshard *shard, mr_link *reply, uint64_t request, mr_status status,
                     const mr_err *err);
void mr_serve_prefetch(mr_memshard *shard, mr_link *link, uint32_t layer, uint32_t cell,
                       const uint32_t *row, uint32_t rows, bool only_tiered);

/* serve_queue.c: false: not taken, to be worked on now. */
bool mr_queue_put(mr_memshard *shard, mr_link *link, const mr_frame *frame);
void mr_queue_cancel(mr_memshard *shard, const mr_link *link, uint64_t request);
void mr_queue_free(mr_memshard *shard);

/* serve_stats.c */
void mr_stats_note(mr_seat *seat, int64_t now_ns, int64_t latency_ns);

/* Begins the answer: all that may be refused was done before, but for rows that go bad under the
 * arithmetic: end takes that answer back. */
void *mr_answer_begin(const mr_asked *asked, uint16_t type, uint32_t bytes, mr_err *err);
mr_status mr_answer_end(const mr_asked *asked, const mr_request *q, mr_err *err);

/* Layer, table and, unless cell is MR_NO_CELL, the cell. */
#define MR_NO_CELL UINT32_MAX
mr_status mr_request_find(mr_request *q, const mr_asked *asked, uint32_t layer, uint32_t cell,
                          mr_err *err);
/* The cores whose columns the cell has: those weights are sent for. */
mr_status mr_request_cores(const mr_request *q, uint16_t *first, uint16_t *count, mr_err *err);
/* The rows a request needs, from wherever its cell keeps them. */
mr_status mr_request_fetch(mr_request *q, mr_seat *seat, bool values, bool pre_values, mr_err *err);
/* One trip: x gets its scale, the dots become gates, the gates and scores weights, in room. */
size_t mr_gate_bytes(const mr_wire_retrieve *f);
mr_status mr_request_gate(const mr_asked *asked, const mr_request *q, void *room,
                          const float **weight, mr_err *err);
mr_status mr_request_check_sums(const mr_request *q, const float *weight, mr_err *err);
/* On the GPU where the cell's rows are there too, else on the shard's team. */
mr_status mr_request_pool(const mr_asked *asked, const mr_request *q, const float *weight,
                          void *sums, size_t bytes, mr_err *err);

mr_status mr_answer_retrieve(const mr_asked *asked, mr_request *q, mr_err *err);
mr_status mr_answer_topk(const mr_asked *asked, const mr_topk_view *view, mr_err *err);

#endif
