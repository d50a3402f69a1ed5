/* retrieval_impl.h - the parts of a retrieval, shared by the files of worker/retrieval_* only.
 *
 *   retrieval.c         open, close, begin, progress, finish: the one loop
 *   retrieval_ask.c     what is asked: a layer cut into asks, an ask laid out as a frame
 *   retrieval_answer.c  what is answered: frames checked and added up
 *   retrieval_peers.c   links: connecting, losing, silence and suspicion, routes
 *   retrieval_choose.c  which replica; hedges and resends; what is lost
 *   retrieval_cache.c   the row cache: local pooling and fetching
 *
 * An ask is one cell and range of tokens. It is stranded until it is sent, open until it is
 * answered (or counts as zero), and may be owed by several peers at once: first answer wins. */
#ifndef MR_WORKER_RETRIEVAL_IMPL_H
#define MR_WORKER_RETRIEVAL_IMPL_H
#include "common/base/limits.h"
#include "worker/peers.h"
#include "worker/rowcache.h"

enum {
    MR_ASK_TOPK = 100, /* beside mr_retrieve_mode */
    MR_ASK_ATTEMPTS = 4,
    MR_ASK_SENDS_MAX = 32, /* of one ask, all told */
};
/* Requests that are no ask: PINGs, and GATHERs of the row cache. */
#define MR_REQUEST_PING (1ull << 63)
#define MR_REQUEST_FETCH (1ull << 62)

typedef struct {
    mr_peer *peer;
    int64_t sent_ns;
    uint64_t work_bytes; /* the peer's, this ask included: what it is measured by */
} mr_attempt;

typedef struct {
    uint32_t cell, token_first, tokens;
    uint32_t mode;
    uint32_t answer_bytes;
    uint16_t answer_type;
    uint16_t tried, refused; /* replicas of the cell, a bit each */
    bool is_open, is_stranded, is_stale;
    uint8_t attempt_count, sends;
    mr_attempt attempts[MR_ASK_ATTEMPTS];
    uint64_t work_bytes;
    int64_t hedge_at_ns, stranded_at_ns;
} mr_ask;

typedef enum { MR_IDLE, MR_DOTTING, MR_POOLING } mr_retrieval_phase;

typedef struct mr_row_fetch mr_row_fetch;

struct mr_retrieval {
    mr_digest digest;
    mr_grid grid;
    uint64_t epoch;
    int64_t timeout_ns, spin_ns;
    const mr_route *(*newer_route)(void *context, uint64_t epoch);
    void *newer_context;
    uint64_t random;
    /* route */
    mr_peer **peers; /* [peer_count], those leaving too */
    uint32_t peer_count, peer_room;
    uint32_t *replica_first; /* [cells + 1] */
    mr_peer **replicas;
    mr_connector *connector;
    uint64_t last_number; /* of a peer */
    bool has_leaving;
    /* the step */
    mr_retrieval_step step;
    /* the retrieval under way */
    mr_retrieval_phase phase;
    mr_retrieval_request q;
    mr_ask *asks;
    uint32_t ask_count, ask_room, open_count, stranded_count;
    uint64_t first_request; /* number of asks[0]; only grows, so late answers are told apart */
    mr_status failure;      /* final for this retrieval, with its sentence */
    mr_err why;
    /* clocks */
    int64_t seen_ns;   /* when we last looked at the links or waited for them */
    int64_t polled_ns; /* when the last pump began */
    bool was_blind;    /* a pause lies before this pump: times of answers are not known */
    int64_t idle_ns;   /* without any answer, of the time we were polling */
    int64_t next_hedge_ns, newer_asked_ns;
    bool needs_rescue; /* asks may be owed by suspected peers only */
    uint32_t hedge_credit;
    uint32_t answers_taken; /* in the pump under way */
    /* buffers */
    int64_t *acc;  /* [tokens][slots][width] */
    int64_t *dots; /* [tokens][entries] */
    float *weight; /* [cores][tokens * entries] */
    uint8_t *skip; /* [tokens * entries] mr_skip: not to be asked for */
    bool has_skips;
    int16_t *exponent; /* [tokens] of TOPK answers */
    bool *is_exponent_known;
    mr_link **wait_set; /* [peer_room] */
    mr_rowcache *cache; /* NULL: none */
    mr_row_fetch *fetch;
    const mr_ops *ops;
    mr_retrieval_stats stats;
    uint64_t *layer_wait_ns;
    uint32_t layers;
    bool is_told; /* figures were taken: the next retrieval starts new ones */
};

typedef enum { MR_SKIP_NOT = 0, MR_SKIP_CACHED = 1, MR_SKIP_LOST = 2 } mr_skip;

/* A cell's part of the table under way. */
typedef struct {
    mr_span rows, columns, pre_columns;
    bool every_row; /* one row group: all entries belong to the cell */
} mr_part;
mr_part mr_part_of(const mr_retrieval *r, uint32_t cell);
mr_span mr_part_columns(const mr_retrieval *r, uint32_t cell, uint32_t width);

static inline uint32_t mr_replica_count(const mr_retrieval *r, uint32_t cell) {
    return r->replica_first[cell + 1] - r->replica_first[cell];
}
static inline mr_peer **mr_replicas_of(const mr_retrieval *r, uint32_t cell) {
    return r->replicas + r->replica_first[cell];
}
double mr_retrieval_chance(mr_retrieval *r); /* [0, 1) */

/* --- retrieval_ask.c -------------------------------------------------------------------------- */

/* Cuts the request into asks, all stranded. */
mr_status mr_asks_make(mr_retrieval *r, uint32_t mode, mr_err *err);
/* MR_OK: queued on the peer's link. MR_ERR_AGAIN: no room now. Else: the peer cannot be asked. */
mr_status mr_ask_put(mr_retrieval *r, mr_ask *ask, mr_peer *peer);
/* Takes a's attempt at peer off the books; false: it has none there. */
bool mr_ask_withdraw(mr_retrieval *r, mr_ask *ask, const mr_peer *peer, mr_attempt *out);
void mr_ask_strand(mr_retrieval *r, mr_ask *ask); /* nobody owes it any more */
/* The ask is settled: whoever still owes it is told so. */
void mr_ask_close(mr_retrieval *r, mr_ask *ask);
static inline uint64_t mr_ask_request(const mr_retrieval *r, const mr_ask *ask) {
    return r->first_request + (uint64_t)(ask - r->asks);
}

/* --- retrieval_answer.c ----------------------------------------------------------------------- */

/* One frame from peer. May lose the peer; what ends the retrieval is left in r->failure. */
void mr_answer_take(mr_retrieval *r, mr_peer *peer, const mr_frame *frame);
void mr_retrieval_fail(mr_retrieval *r, mr_status status, const mr_err *why);

/* --- retrieval_peers.c ------------------------------------------------------------------------ */

mr_status mr_peers_take_route(mr_retrieval *r, const mr_route *route, mr_link **links, mr_err *err);
void mr_peers_sweep(mr_retrieval *r);   /* frees peers that left; only while idle */
void mr_peers_collect(mr_retrieval *r); /* connections that were made */
void mr_peers_reconnect(mr_retrieval *r, int64_t now_ns);
void mr_peer_reconnect_now(mr_retrieval *r, mr_peer *peer, int64_t now_ns);
void mr_peer_lose(mr_retrieval *r, mr_peer *peer, const mr_err *why);
void mr_peer_ping(mr_retrieval *r, mr_peer *peer);
/* Something is asked of it that work_bytes describe. */
void mr_peer_owes_more(const mr_retrieval *r, mr_peer *peer, uint64_t work_bytes, int64_t now_ns);
/* Writes and reads what goes without waiting. is_fresh: also looks at links that owe nothing. */
void mr_peers_pump(mr_retrieval *r, bool is_fresh);
void mr_peers_flush(mr_retrieval *r);
void mr_peers_count_bytes(mr_retrieval *r);
/* "memshard 3 at 10.0.0.7:7001" */
const char *mr_peer_name(const mr_peer *peer, char text[MR_ERR_TEXT_BYTES]);

/* --- retrieval_choose.c ----------------------------------------------------------------------- */

void mr_asks_place(mr_retrieval *r, int64_t now_ns);  /* those stranded */
void mr_asks_hedge(mr_retrieval *r, int64_t now_ns);  /* those that are late */
void mr_asks_rescue(mr_retrieval *r, int64_t now_ns); /* those owed by suspected peers only */
void mr_ask_degrade(mr_retrieval *r, mr_ask *ask);
/* The replica for a request outside of any ask, or NULL. */
mr_peer *mr_choose_idle(mr_retrieval *r, uint32_t cell, int64_t now_ns);

/* --- retrieval_cache.c ------------------------------------------------------------------------ */

/* Pools what is in the cache into r->acc and marks it as not to be asked for. */
void mr_cache_pool(mr_retrieval *r);
void mr_cache_fetch(mr_retrieval *r, int64_t now_ns); /* asks for rows that are wanted */
void mr_cache_take(mr_retrieval *r, mr_peer *peer, const mr_frame *frame);
mr_status mr_cache_open(mr_retrieval *r, const mr_retrieval_options *o, mr_err *err);
void mr_cache_close(mr_retrieval *r);

#endif
