/* peers.c - see peers.h: latencies, health, cost. Nothing here does input or output. */
#include "worker/peers.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <stdlib.h>

enum {
    MS = 1000000,
    SAMPLES_MIN = 16,         /* before quantiles are believed */
    SAMPLES_FADE = 1024,      /* then all are halved */
    PRIOR_NS = 2 * MS,        /* a 99th percentile before there is one, */
    PRIOR_BYTES_PER_US = 500, /* and what larger requests add to it */
    HEDGE_NS_MIN = 200 * 1000,
    SUSPECT_NS_MIN = 5 * MS,
    SUSPECT_P99S = 10,
    FADE_NS = 1000 * MS, /* a latency nobody has seen for so long counts half */
    BREAKER_FAILURES = 3,
    BREAKER_NS = 100 * MS,
    BREAKER_DOUBLINGS = 6,
};

/* --- latency ---------------------------------------------------------------------------------- */

static uint32_t bucket_of(int64_t ns) {
    const uint64_t units = (uint64_t)(ns > 0 ? ns : 0) >> 13;
    if (units < 4) return (uint32_t)units;
    const uint32_t top = 63u - (uint32_t)__builtin_clzll(units);
    const uint32_t bucket = (top - 1) * 4 + (uint32_t)((units >> (top - 2)) & 3);
    return bucket < MR_LATENCY_BUCKETS ? bucket : MR_LATENCY_BUCKETS - 1;
}

static int64_t bucket_end_ns(uint32_t bucket) {
    if (bucket < 4) return (int64_t)(bucket + 1) << 13;
    const uint32_t top = bucket / 4 + 1;
    return (int64_t)((4ull + bucket % 4 + 1) << (top - 2)) << 13;
}

static int64_t quantile(const mr_latency *l, uint32_t per_mille) {
    const uint32_t rank = (uint32_t)(((uint64_t)l->total * per_mille + 999) / 1000);
    uint32_t seen = 0;
    for (uint32_t i = 0; i < MR_LATENCY_BUCKETS; i++) {
        seen += l->count[i];
        if (seen >= rank) return bucket_end_ns(i);
    }
    return bucket_end_ns(MR_LATENCY_BUCKETS - 1);
}

void mr_latency_add(mr_latency *l, int64_t ns) {
    l->count[bucket_of(ns)]++;
    l->total++;
    if (l->total >= SAMPLES_FADE) {
        l->total = 0;
        for (uint32_t i = 0; i < MR_LATENCY_BUCKETS; i++) l->total += l->count[i] /= 2;
    }
    if (++l->unread < SAMPLES_MIN) return;
    l->unread = 0;
    l->p95_ns = quantile(l, 950);
    l->p99_ns = quantile(l, 990);
}

uint32_t mr_latency_class(uint64_t work_bytes) {
    const uint64_t units = work_bytes >> 14;
    if (units == 0) return 0;
    const uint32_t class = 1 + (63u - (uint32_t)__builtin_clzll(units)) / 2;
    return class < MR_LATENCY_CLASSES ? class : MR_LATENCY_CLASSES - 1;
}

/* --- a peer ----------------------------------------------------------------------------------- */

mr_peer *mr_peer_new(const mr_route_peer *where) {
    mr_peer *p = mr_alloc(sizeof(*p));
    mr_route_peer_copy(&p->where, where);
    p->hash = 0xcbf29ce484222325u;
    for (const char *c = where->id; *c; c++) p->hash = (p->hash ^ (uint8_t)*c) * 0x100000001b3u;
    return p;
}

void mr_peer_free(mr_peer *peer) {
    if (!peer) return;
    mr_link_close(peer->link);
    mr_route_peer_free(&peer->where);
    free(peer);
}

static int64_t prior_ns(uint64_t work_bytes) {
    return PRIOR_NS + (int64_t)(work_bytes / PRIOR_BYTES_PER_US) * 1000;
}

typedef struct {
    int64_t p95_ns, p99_ns;
} quantiles;

/* Those of requests of this size; else of smaller ones, as many times as long as they are smaller;
 * else of larger ones; else a cautious guess, which what is derived never exceeds. A peer that owes
 * twice as much as ever before, because it hangs, is so judged by what it did before. */
static quantiles expect(const mr_peer *p, uint64_t work_bytes) {
    const uint32_t own = mr_latency_class(work_bytes);
    const int64_t prior = prior_ns(work_bytes);
    quantiles q = {prior, prior};
    for (uint32_t i = 0; i < MR_LATENCY_CLASSES; i++) {
        const uint32_t class = i <= own ? own - i : i; /* own, the smaller ones, the larger ones */
        const mr_latency *l = &p->latency[class];
        if (l->p99_ns == 0) continue;
        const uint32_t shift = class < own ? 2 * (own - class) : 0;
        q = (quantiles){l->p95_ns << shift, l->p99_ns << shift};
        if (class == own) return q;
        break;
    }
    if (q.p95_ns > prior) q.p95_ns = prior;
    if (q.p99_ns > prior) q.p99_ns = prior;
    return q;
}

int64_t mr_peer_hedge_ns(const mr_peer *p, uint64_t work_bytes) {
    const int64_t late = expect(p, work_bytes).p95_ns;
    return late > HEDGE_NS_MIN ? late : HEDGE_NS_MIN;
}

int64_t mr_peer_suspect_ns(const mr_peer *p, uint64_t work_bytes, int64_t timeout_ns) {
    int64_t silence = SUSPECT_P99S * expect(p, work_bytes).p99_ns;
    if (silence < SUSPECT_NS_MIN) silence = SUSPECT_NS_MIN;
    return silence < timeout_ns / 4 ? silence : timeout_ns / 4;
}

static void average(int64_t *mean_ns, int64_t took_ns) {
    *mean_ns = *mean_ns == 0 ? took_ns : *mean_ns + (took_ns - *mean_ns) / 8;
}

void mr_peer_answered(mr_peer *p, uint64_t work_bytes, int64_t took_ns, int64_t now_ns,
                      bool is_tight) {
    p->answers++;
    p->failures = 0;
    p->open_until_ns = 0;
    p->has_answered = true;
    if (!is_tight) return;
    mr_latency_add(&p->latency[mr_latency_class(work_bytes)], took_ns);
    average(&p->latency_ns, took_ns);
    p->latency_at_ns = now_ns;
}

void mr_peer_was_late(mr_peer *p, int64_t at_least_ns, int64_t now_ns) {
    if (at_least_ns <= p->latency_ns) return;
    average(&p->latency_ns, at_least_ns);
    p->latency_at_ns = now_ns;
}

int64_t mr_peer_cost_ns(const mr_peer *p, int64_t now_ns) {
    const int64_t halvings = (now_ns - p->latency_at_ns) / FADE_NS;
    const int64_t each = halvings < 30 ? p->latency_ns >> halvings : 0;
    return (each + 1000) * (int64_t)(p->outstanding + 1);
}

void mr_peer_failed(mr_peer *p, int64_t now_ns, double jitter) {
    p->failures++;
    if (p->failures < BREAKER_FAILURES) return;
    uint32_t doublings = p->failures - BREAKER_FAILURES;
    if (doublings > BREAKER_DOUBLINGS) doublings = BREAKER_DOUBLINGS;
    const int64_t pause = (int64_t)BREAKER_NS << doublings;
    p->open_until_ns = now_ns + pause / 2 + (int64_t)((double)pause / 2 * jitter);
}

bool mr_peer_takes_work(const mr_peer *p, int64_t now_ns) {
    if (!p->link || p->is_suspected || now_ns < p->open_until_ns) return false;
    return p->failures < BREAKER_FAILURES || p->outstanding == 0; /* half open: one at a time */
}
