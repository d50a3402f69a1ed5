/* retrieval_choose.c - which replica is asked, and who else when it is late, suspected or gone.
 *
 * Replicas are ranked first by health (takes work; breaker open; suspected), then by cost. Costs
 * within a quarter of the least count as equal and are told apart by rendezvous hashing of the
 * cell, so that two equal replicas share the cells between them and a cell stays with one. */
#include "worker/retrieval_impl.h"

#include "common/base/clock.h"
#include "common/net/frames.h"

#include <stdio.h>
#include <string.h>

enum {
    MS = 1000000,
    HEDGE_PRICE = 20,       /* requests that pay for one more: 5 % */
    HEDGE_CREDIT_MAX = 200, /* what a quiet time may save up */
    QUEUE_US_MAX = 2000,    /* a replica whose requests wait longer is not hedged to */
    HOPE_FRESH_MS = 300,    /* how long a step waits for a connection that never failed, */
    HOPE_FAILED_MS = 20,    /* and for one that did */
    NEWER_EVERY_MS = 1,
    DEGRADE_PATIENCE = 2, /* times the suspicion, before rows count as zero */
};

typedef enum { LEVEL_GOOD, LEVEL_OPEN, LEVEL_SUSPECTED, LEVEL_NONE } level;

static level level_of(const mr_peer *p, int64_t now) {
    if (!p->link) return LEVEL_NONE;
    if (mr_peer_takes_work(p, now)) return LEVEL_GOOD;
    return p->is_suspected ? LEVEL_SUSPECTED : LEVEL_OPEN;
}

static uint64_t rendezvous(const mr_peer *p, uint32_t cell) {
    uint64_t x = p->hash ^ (cell + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
}

/* The best replica of cell outside of the mask, no worse than `worst`; -1: there is none. */
static int32_t choose(const mr_retrieval *r, uint32_t cell, uint32_t mask, level worst,
                      int64_t now) {
    mr_peer **all = mr_replicas_of(r, cell);
    const uint32_t count = mr_replica_count(r, cell);
    level best_level = worst;
    int64_t least = INT64_MAX;
    for (uint32_t i = 0; i < count; i++) {
        if (mask & 1u << i) continue;
        const level l = level_of(all[i], now);
        if (l > best_level || l == LEVEL_NONE) continue;
        const int64_t cost = mr_peer_cost_ns(all[i], now);
        if (l < best_level || cost < least) least = cost;
        best_level = l;
    }
    int32_t chosen = -1;
    if (least == INT64_MAX) return chosen;
    for (uint32_t i = 0; i < count; i++) {
        if ((mask & 1u << i) || level_of(all[i], now) != best_level ||
            mr_peer_cost_ns(all[i], now) > least + least / 4)
            continue;
        if (chosen < 0 || rendezvous(all[i], cell) > rendezvous(all[chosen], cell))
            chosen = (int32_t)i;
    }
    return chosen;
}

mr_peer *mr_choose_idle(mr_retrieval *r, uint32_t cell, int64_t now) {
    const int32_t i = choose(r, cell, 0, LEVEL_GOOD, now);
    return i < 0 ? NULL : mr_replicas_of(r, cell)[i];
}

static uint32_t owing(const mr_retrieval *r, const mr_ask *a) {
    mr_peer **all = mr_replicas_of(r, a->cell);
    uint32_t mask = 0;
    for (uint32_t i = 0; i < mr_replica_count(r, a->cell); i++)
        for (uint32_t j = 0; j < a->attempt_count; j++)
            if (a->attempts[j].peer == all[i]) mask |= 1u << i;
    return mask;
}

/* --- sending ---------------------------------------------------------------------------------- */

static void arm_hedge(mr_retrieval *r, mr_ask *a, const mr_peer *p, int64_t now) {
    a->hedge_at_ns = INT64_MAX;
    if (mr_replica_count(r, a->cell) < 2 || !mr_peer_is_remote(p)) return;
    a->hedge_at_ns = now + mr_peer_hedge_ns(p, p->outstanding_bytes);
    if (a->hedge_at_ns < r->next_hedge_ns) r->next_hedge_ns = a->hedge_at_ns;
}

/* Sends to replica i. MR_ERR_AGAIN: its link is full. Any other failure: not to this one. */
static mr_status send_to(mr_retrieval *r, mr_ask *a, int32_t i) {
    mr_peer *p = mr_replicas_of(r, a->cell)[i];
    mr_err err;
    const mr_status status = mr_ask_put(r, a, p);
    if (status == MR_OK) {
        a->tried |= (uint16_t)(1u << i);
        return MR_OK;
    }
    if (status != MR_ERR_AGAIN) {
        a->refused |= (uint16_t)(1u << i);
        mr_fail(&p->why, status,
                status == MR_ERR_UNSUPPORTED ? "speaks only version 1" : "was asked too often");
        return status;
    }
    const mr_status flushed = mr_link_flush(p->link, &err);
    if (flushed == MR_OK || flushed == MR_ERR_AGAIN) return MR_ERR_AGAIN;
    mr_peer_lose(r, p, &err);
    return flushed;
}

/* --- nobody to ask ---------------------------------------------------------------------------- */

/* Whether waiting may help: somebody is being connected. Those that are down are tried at once. */
static bool is_hopeful(mr_retrieval *r, const mr_ask *a, int64_t now) {
    mr_peer **all = mr_replicas_of(r, a->cell);
    bool hope = false;
    for (uint32_t i = 0; i < mr_replica_count(r, a->cell); i++) {
        mr_peer *p = all[i];
        if ((a->refused & 1u << i) || p->link) continue;
        mr_peer_reconnect_now(r, p, now);
        const int64_t patience = p->connect_failures == 0 ? HOPE_FRESH_MS : HOPE_FAILED_MS;
        hope |= p->is_connecting && now - a->stranded_at_ns < patience * MS;
    }
    return hope;
}

/* Every replica says that the map is old: somebody must know a newer one, sooner or later. */
static bool awaits_route(mr_retrieval *r, const mr_ask *a, int64_t now) {
    mr_err err;
    if (!a->is_stale || !r->newer_route) return false;
    if (now - r->newer_asked_ns < NEWER_EVERY_MS * (int64_t)MS) return true;
    r->newer_asked_ns = now;
    const mr_route *newer = r->newer_route(r->newer_context, r->epoch);
    if (!newer || newer->epoch <= r->epoch) return true;
    const mr_status status = mr_peers_take_route(r, newer, NULL, &err);
    if (status == MR_OK) {
        mr_peers_reconnect(r, now);
        return true;
    }
    mr_retrieval_fail(r, status, &err);
    return false;
}

static void lament(mr_retrieval *r, const mr_ask *a) {
    mr_peer **all = mr_replicas_of(r, a->cell);
    const uint32_t count = mr_replica_count(r, a->cell);
    char list[MR_ERR_TEXT_BYTES] = "", name[MR_ERR_TEXT_BYTES];
    size_t used = 0;
    mr_err err;
    for (uint32_t i = 0; i < count && used < sizeof(list) - 1; i++)
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%s: %.120s", i ? "; " : "",
                                 mr_peer_name(all[i], name),
                                 all[i]->why.text[0] ? all[i]->why.text : "not connected");
    const bool old = a->is_stale;
    mr_status status = old ? MR_ERR_STALE : MR_ERR_UNAVAILABLE;
    for (uint32_t i = 0; i < count; i++)
        if (a->mode == MR_ASK_TOPK && all[i]->version < 2) status = MR_ERR_UNSUPPORTED;
    mr_fail(&err, status, "memory layer %u: %s for cell %u%s%s", r->q.layer,
            old ? "the route is too old" : "no memshard answers", a->cell, count ? ": " : "", list);
    mr_retrieval_fail(r, status, &err);
}

void mr_ask_degrade(mr_retrieval *r, mr_ask *a) {
    r->stats.degraded++;
    if (a->mode == MR_RETRIEVE_DOT) { /* without its gate a row weighs nothing, in every slice */
        const mr_part part = mr_part_of(r, a->cell);
        const size_t first = (size_t)a->token_first * r->q.entries;
        for (size_t j = first; j < first + (size_t)a->tokens * r->q.entries; j++)
            if (r->q.row[j] - part.rows.first < part.rows.count) r->skip[j] = MR_SKIP_LOST;
        r->has_skips = true;
    }
    mr_ask_close(r, a);
}

/* --- placing ---------------------------------------------------------------------------------- */

/* true: sent, or settled otherwise; false: it waits. */
static bool place(mr_retrieval *r, mr_ask *a, int64_t now) {
    const level worst = r->step.may_degrade ? LEVEL_OPEN : LEVEL_SUSPECTED;
    for (;;) {
        const bool is_first = a->sends == 0;
        const int32_t i = choose(r, a->cell, a->refused, worst, now);
        if (i < 0) break;
        const mr_status status = send_to(r, a, i);
        if (status == MR_ERR_AGAIN) return false;
        if (status != MR_OK) continue;
        if (is_first && r->hedge_credit < HEDGE_CREDIT_MAX) r->hedge_credit++;
        if (!is_first) r->stats.resends++;
        arm_hedge(r, a, mr_replicas_of(r, a->cell)[i], now);
        return true;
    }
    if (is_hopeful(r, a, now) || awaits_route(r, a, now)) return false;
    if (r->failure != MR_OK) return true;
    if (r->step.may_degrade)
        mr_ask_degrade(r, a);
    else
        lament(r, a);
    return true;
}

void mr_asks_place(mr_retrieval *r, int64_t now) {
    for (uint32_t i = 0; i < r->ask_count && r->stranded_count > 0 && r->failure == MR_OK; i++)
        if (r->asks[i].is_stranded) place(r, &r->asks[i], now);
}

/* --- hedging ---------------------------------------------------------------------------------- */

static bool hedge(mr_retrieval *r, mr_ask *a, int64_t now) {
    const uint32_t mask = (uint32_t)(a->refused | a->tried) | owing(r, a);
    if (r->hedge_credit < HEDGE_PRICE) return false;
    const int32_t i = choose(r, a->cell, mask, LEVEL_GOOD, now);
    if (i < 0 || mr_replicas_of(r, a->cell)[i]->queue_us > QUEUE_US_MAX) return false;
    if (send_to(r, a, i) != MR_OK) return false;
    r->hedge_credit -= HEDGE_PRICE;
    r->stats.hedges++;
    return true;
}

void mr_asks_hedge(mr_retrieval *r, int64_t now) {
    if (now < r->next_hedge_ns) return;
    r->next_hedge_ns = INT64_MAX;
    for (uint32_t i = 0; i < r->ask_count && r->open_count > 0; i++) {
        mr_ask *a = &r->asks[i];
        if (!a->is_open || a->is_stranded || a->hedge_at_ns == INT64_MAX) continue;
        if (now >= a->hedge_at_ns) {
            const mr_attempt *first = &a->attempts[0];
            const int64_t again = mr_peer_hedge_ns(first->peer, first->work_bytes);
            a->hedge_at_ns = hedge(r, a, now) ? INT64_MAX : now + again;
        }
        if (a->hedge_at_ns < r->next_hedge_ns) r->next_hedge_ns = a->hedge_at_ns;
    }
}

/* --- rescuing --------------------------------------------------------------------------------- */

static bool is_owed_by_suspects(const mr_ask *a) {
    for (uint32_t i = 0; i < a->attempt_count; i++)
        if (!a->attempts[i].peer->is_suspected) return false;
    return true;
}

static bool is_given_up(const mr_ask *a) {
    for (uint32_t i = 0; i < a->attempt_count; i++) {
        const mr_peer *p = a->attempts[i].peer;
        if (p->silent_ns < DEGRADE_PATIENCE * p->suspect_ns) return false;
    }
    return true;
}

void mr_asks_rescue(mr_retrieval *r, int64_t now) {
    if (!r->needs_rescue) return;
    r->needs_rescue = false;
    for (uint32_t i = 0; i < r->ask_count && r->open_count > 0 && r->failure == MR_OK; i++) {
        mr_ask *a = &r->asks[i];
        if (!a->is_open || a->is_stranded || !is_owed_by_suspects(a)) continue;
        const int32_t other = choose(r, a->cell, a->refused | owing(r, a), LEVEL_OPEN, now);
        if (other >= 0 && send_to(r, a, other) == MR_OK) {
            r->stats.resends++;
            a->hedge_at_ns = INT64_MAX;
        } else if (r->step.may_degrade) {
            if (is_given_up(a))
                mr_ask_degrade(r, a);
            else
                r->needs_rescue = true; /* again after the next pump */
        }
    }
}
