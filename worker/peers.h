/* peers.h - what a retrieval knows of one memshard: its link, how fast it answers, whether it is to
 * be trusted with work; and the helper threads that connect.
 *
 * Health has three signs. A lost link: asked again at once elsewhere, reconnected in the background
 * with growing pauses. Suspicion: it owes something and has been silent, while we were polling, for
 * longer than ten times its 99th percentile; no new work until it says anything (a PING asks for
 * that). The breaker: three failures in a row keep work away for a while that doubles; then one
 * request at a time is let through until one is answered. All three only order the replicas of a
 * cell: the last one that is connected is asked whatever we think of it.
 * Threads: a peer belongs to its retrieval's thread; the connector takes copies. */
#ifndef MR_WORKER_PEERS_H
#define MR_WORKER_PEERS_H
#include "common/net/fabric_choice.h"
#include "worker/retrieval.h"

/* --- latency ---------------------------------------------------------------------------------- */

enum { MR_LATENCY_BUCKETS = 64, MR_LATENCY_CLASSES = 8 };

/* Four buckets to a doubling, from 8 us. Halved when full, so that old times fade. */
typedef struct {
    uint16_t count[MR_LATENCY_BUCKETS];
    uint32_t total;
    uint32_t unread; /* samples since the quantiles were taken */
    int64_t p95_ns, p99_ns;
} mr_latency;

void mr_latency_add(mr_latency *l, int64_t ns);
/* Requests of similar size are compared: bytes read and moved by four. */
uint32_t mr_latency_class(uint64_t work_bytes);

/* --- a peer ----------------------------------------------------------------------------------- */

typedef struct {
    mr_route_peer where;
    uint64_t number; /* of this object: tickets of the connector */
    uint64_t hash;   /* of the id: rendezvous */
    mr_link *link;   /* NULL: down */
    uint16_t version;
    bool is_connecting, is_suspected, is_leaving; /* leaving: not of this route; closed when idle */
    bool has_answered;                            /* on this link */
    uint32_t outstanding;
    uint64_t outstanding_bytes;
    /* silence */
    bool is_heard;        /* in the pump under way */
    int64_t owes_from_ns; /* since when there is something owed */
    int64_t silent_ns;    /* of that, witnessed by polling */
    int64_t suspect_ns;   /* silence that is too long, for what is owed */
    int64_t ping_ns;      /* when a PING went out that is not answered; 0: none */
    int64_t suspected_at_ns, polled_ns;
    /* failures */
    uint32_t failures, connect_failures; /* in a row */
    int64_t open_until_ns;               /* the breaker */
    int64_t next_try_ns, last_try_ns;    /* of connecting */
    mr_err why;                          /* the last failure */
    /* speed */
    int64_t latency_ns; /* moving average; 0: not known */
    int64_t latency_at_ns;
    uint32_t queue_us; /* moving average of what its answers say they waited */
    mr_latency latency[MR_LATENCY_CLASSES];
    uint64_t requests, answers;
    uint32_t rows_expected;                /* answers to GATHER that the row cache waits for */
    uint64_t sent_before, received_before; /* bytes counted already */
} mr_peer;

mr_peer *mr_peer_new(const mr_route_peer *where);
void mr_peer_free(mr_peer *peer); /* closes its link */

static inline bool mr_peer_owes(const mr_peer *p) {
    return p->outstanding > 0 || p->ping_ns != 0;
}
/* Loop links answer while they are flushed: they are neither pinged nor suspected. */
static inline bool mr_peer_is_remote(const mr_peer *p) {
    return p->where.address != NULL || (p->link && mr_link_fd(p->link) >= 0);
}

/* How late is late for a request of so much work: when it is hedged; when silence is suspect.
 * is_tight: the time was not blurred by a pause between two polls. */
int64_t mr_peer_hedge_ns(const mr_peer *p, uint64_t work_bytes);
int64_t mr_peer_suspect_ns(const mr_peer *p, uint64_t work_bytes, int64_t timeout_ns);
void mr_peer_answered(mr_peer *p, uint64_t work_bytes, int64_t took_ns, int64_t now_ns,
                      bool is_tight);
/* One that lost a race has taken at least so long. */
void mr_peer_was_late(mr_peer *p, int64_t at_least_ns, int64_t now_ns);
/* Expected time until it would answer one more: outstanding x latency, fading towards unknown. */
int64_t mr_peer_cost_ns(const mr_peer *p, int64_t now_ns);

/* A failure of any kind; jitter in [0, 1). */
void mr_peer_failed(mr_peer *p, int64_t now_ns, double jitter);
bool mr_peer_takes_work(const mr_peer *p, int64_t now_ns);

/* --- connecting ------------------------------------------------------------------------------- */

typedef struct mr_connector mr_connector;

typedef struct {
    uint64_t ticket;
    mr_link *link; /* NULL: failed */
    mr_wire_welcome welcome;
    mr_status status;
    mr_err err;
} mr_connected;

/* connect NULL: the default one, which dials (NULL: over the best fabric). */
mr_connector *mr_connector_open(mr_digest digest, mr_peer_connect connect, void *context,
                                mr_peer_dial dial, void *dial_context);
void mr_connector_close(mr_connector *c); /* waits for connects under way; NULL is fine */
/* Never waits. The result comes from take, in any order. */
void mr_connector_ask(mr_connector *c, uint64_t ticket, const mr_route_peer *where, mr_grid grid,
                      int64_t patience_ns);
bool mr_connector_take(mr_connector *c, mr_connected *out); /* false: nothing there */

#endif
