/* retrieval.h - the worker's side of a memory layer's table: ask the shards, add up what they
 * answer.
 *
 * begin sends, finish waits and adds: what the caller computes in between hides the trip. One
 * retrieval is under way at a time. Answers are integers, so the order in which they come, which
 * replica gave them, the number of shards and the grid never show in the result
 * (docs/ARCHITECTURE.md).
 *
 * A cell is asked from one of its replicas: the one with the least outstanding work x latency. One
 * that is late is asked for again elsewhere (hedged: at most 5 % of all requests); one that is
 * silent for too long is suspected, and what it owes is asked elsewhere at once. Peers are
 * connected in the background; a dead one never holds up a step that has another replica.
 * Threads: the step thread only; it works the links itself inside begin, progress and finish. A few
 * helper threads connect peers; they share nothing with it but a mailbox (peers_connect.c).
 * Deadlines: the step's, and timeout_ms without any answer. Time is mr_now_ns, waiting is
 * mr_links_wait, chance is a generator seeded by the options: a simulation may drive all of it. */
#ifndef MR_WORKER_RETRIEVAL_H
#define MR_WORKER_RETRIEVAL_H
#include "common/model/grid.h"
#include "common/model/manifest.h"
#include "common/net/fabric.h"
#include "common/ops/ops.h"
#include "worker/route.h"

typedef struct mr_retrieval mr_retrieval;

/* Connects and opens a session; welcome gets the fixed part of the answer. The default one blocks
 * until its deadline, in a helper thread. One given by the caller is called in the step thread and
 * must not block. */
typedef mr_status (*mr_peer_connect)(void *context, mr_link **out, mr_wire_welcome *welcome,
                                     const mr_route_peer *peer, const mr_session_hello *hello,
                                     mr_grid grid, int64_t deadline_ns, mr_err *err);

/* Reaches a peer, over the fabric and with the key that suit; called in a helper thread by the
 * default connect, which then opens the session. */
typedef mr_status (*mr_peer_dial)(void *context, mr_link **out, const mr_route_peer *peer,
                                  int64_t deadline_ns, mr_err *err);

typedef struct {
    const mr_route *route; /* copied; or NULL: a route is made of what follows */
    mr_link **links;       /* [count], to the peers of the route, in order; taken over on success;
                            * NULL (or NULL entries): connected in the background */
    const char *const *addresses; /* [count] or NULL (loop links: never reconnected); copied */
    uint32_t count;               /* without a route: cell c is asked from link c mod count */
    mr_grid grid;                 /* without a route */
    mr_digest digest;
    uint32_t timeout_ms; /* without an answer for so long a retrieval fails */
    uint32_t tokens_max, entries_max, cores_max, slots_width_max; /* of any layer: buffer sizes */
    uint32_t layers, tables;                                      /* of the model; 0: 1024 */
    uint32_t cached_tables; /* tables the row cache is shared by: without a gate; 0: all */
    uint64_t seed;
    int64_t spin_ns;          /* poll for so long before waiting; 0: wait at once */
    uint64_t row_cache_bytes; /* 0: none */
    const mr_ops *ops;        /* of the row cache; NULL: the best there is */
    mr_peer_connect connect;  /* NULL: the default */
    void *connect_context;
    mr_peer_dial dial; /* of the default connect; NULL: over the best fabric, without a key */
    void *dial_context;
    /* A shard said that our route is old: returns a route of a higher epoch, or NULL while there is
     * none. Borrowed until the next call. Called in the step thread; never waits. May be NULL. */
    const mr_route *(*newer_route)(void *context, uint64_t epoch);
    void *newer_context;
} mr_retrieval_options;

/* What a layer wants for a batch. All arrays are borrowed until finish. */
typedef struct {
    uint32_t layer, tokens;
    uint32_t entries; /* K, per token */
    uint32_t cores, slots, width, pre_width;
    uint64_t table_rows;
    uint32_t accumulator_bits;
    bool gated, gelu, two_trips;
    uint32_t table; /* index of the table, and its storage type: for the row cache */
    mr_storage storage; /* of the table's rows */
    const uint32_t *row;           /* [tokens][entries] */
    const uint8_t *slot;           /* [tokens][entries]; all 0 where slots is 1 */
    const float *score;            /* [cores][tokens * entries], raw */
    const float *x;                /* [tokens][pre_width]; gated */
    const int16_t *value_exponent; /* e [tokens] */
    const int16_t *dot_exponent;   /* d [tokens]; gated */
    /* Where the shards select (TOPK): the normed queries, and none of row, slot, score and the
     * exponents. */
    const float *query; /* [tokens][query_columns]; NULL: ids are sent */
    uint32_t query_columns;
} mr_retrieval_request;

mr_status mr_retrieval_open(mr_retrieval **out, const mr_retrieval_options *options, mr_err *err);
void mr_retrieval_close(mr_retrieval *retrieval); /* NULL is fine */

/* Between steps. Peers with the same id and address keep their links. Copied. A route of another
 * grid or digest is refused; one of a lower epoch is left alone. */
mr_status mr_retrieval_set_route(mr_retrieval *r, const mr_route *route, mr_err *err);
uint64_t mr_retrieval_epoch(const mr_retrieval *r); /* of the route in use */
/* Waits until every cell has a replica that is connected. */
mr_status mr_retrieval_reach(mr_retrieval *r, int64_t deadline_ns, mr_err *err);

/* Whether the shards could select for a layer: a gate needs whole pre-value rows. */
bool mr_retrieval_can_topk(const mr_retrieval *r, bool gated);

/* What binds all retrievals that follow, until the next call. */
typedef struct {
    int64_t deadline_ns; /* 0: none but timeout_ms */
    bool may_degrade;    /* rows of a cell without a live replica count as zero */
} mr_retrieval_step;
void mr_retrieval_start_step(mr_retrieval *r, const mr_retrieval_step *step);

mr_status mr_retrieval_begin(mr_retrieval *r, const mr_retrieval_request *request, mr_err *err);
mr_status mr_retrieval_progress(mr_retrieval *r,
                                mr_err *err); /* takes what has come; never waits */
/* out: [tokens][slots][width] fp32, each the one rounding of an exact sum. dot: [tokens][entries]
 * the gate's dots as fp32 (two trips only), or NULL.
 * MR_ERR_UNAVAILABLE names the cell and its peers; MR_ERR_STALE: the route is too old;
 * MR_ERR_UNSUPPORTED: a shard does not select (only where queries were sent): ask by ids. */
mr_status mr_retrieval_finish(mr_retrieval *r, float *out, float *dot, mr_err *err);
/* Forgets a retrieval under way; late answers are dropped. */
void mr_retrieval_abandon(mr_retrieval *r);

typedef struct {
    uint64_t wait_ns, bytes_up, bytes_down;
    uint64_t requests; /* cells asked, each once */
    uint32_t hedges, resends, degraded;
    uint32_t suspicions, losses; /* of peers */
    uint64_t cache_hits, cache_misses;
    const uint64_t *layer_wait_ns; /* [layers] exposed wait; borrowed until the next retrieval */
    uint32_t layers;
} mr_retrieval_stats;
mr_retrieval_stats mr_retrieval_take_stats(mr_retrieval *r); /* since the last call */

/* For metrics and status. Texts are borrowed until the next call of any function. */
typedef struct {
    const char *id, *address;
    bool is_connected, is_suspected;
    uint32_t outstanding, failures;
    int64_t latency_ns, p95_ns, p99_ns; /* of small requests; 0: not known */
    uint64_t requests, answers;
} mr_retrieval_peer;
uint32_t mr_retrieval_peer_count(const mr_retrieval *r);
mr_retrieval_peer mr_retrieval_peer_look(const mr_retrieval *r, uint32_t index);

#endif
