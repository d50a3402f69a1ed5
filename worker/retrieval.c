/* retrieval.c - see retrieval.h. A gated layer makes one trip where every cell holds whole rows,
 * else two: partial dots first, then the pool with weights the worker made of them. Everything that
 * happens while something is owed happens in advance(): read, judge, place, hedge, rescue, write.
 */
#include "worker/retrieval_impl.h"

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/frames.h"
#include "common/ops/gate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MS = 1000000,
    LAYERS_DEFAULT = 1024,
    WAIT_MS_MAX = 50,
    STRANDED_WAIT_MS = 1, /* nobody can be waited for: look again soon */
    HEDGE_CREDIT_FIRST = 40,
};

/* --- open and close --------------------------------------------------------------------------- */

static mr_status allocate(mr_retrieval *r, const mr_retrieval_options *o, mr_err *err) {
    const size_t entries = (size_t)o->tokens_max * o->entries_max;
    const struct {
        void **at;
        size_t count, bytes;
        const char *what;
    } all[] = {
        {(void **)&r->acc, (size_t)o->tokens_max * o->slots_width_max, 8, "retrieval sums"},
        {(void **)&r->dots, entries, 8, "gate dots"},
        {(void **)&r->weight, entries * o->cores_max, 4, "retrieval weights"},
        {(void **)&r->skip, entries, 1, "retrieval marks"},
        {(void **)&r->exponent, o->tokens_max, 2, "exponents"},
        {(void **)&r->is_exponent_known, o->tokens_max, 1, "exponents"},
        {(void **)&r->layer_wait_ns, r->layers, 8, "layer times"},
    };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        void *memory;
        const mr_status status =
            mr_try_alloc(&memory, all[i].count, all[i].bytes, all[i].what, err);
        if (status != MR_OK) return status;
        memcpy((void *)all[i].at, &memory, sizeof(memory));
    }
    return MR_OK;
}

/* The links are the caller's until all has gone well. */
static void disown_links(mr_retrieval *r, const mr_retrieval_options *o) {
    for (uint32_t i = 0; i < r->peer_count; i++)
        for (uint32_t j = 0; o->links && j < r->peer_count; j++)
            if (r->peers[i]->link == o->links[j]) r->peers[i]->link = NULL;
}

mr_status mr_retrieval_open(mr_retrieval **out, const mr_retrieval_options *o, mr_err *err) {
    mr_route made = {0};
    mr_retrieval *r = mr_alloc(sizeof(*r));
    *out = NULL;
    r->digest = o->digest;
    r->timeout_ns = (int64_t)o->timeout_ms * MS;
    r->spin_ns = o->spin_ns;
    r->newer_route = o->newer_route;
    r->newer_context = o->newer_context;
    r->random = o->seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    r->first_request = 1;
    r->hedge_credit = HEDGE_CREDIT_FIRST;
    r->layers = o->layers ? o->layers : LAYERS_DEFAULT;
    r->polled_ns = r->seen_ns = mr_now_ns();
    r->connector =
        mr_connector_open(o->digest, o->connect, o->connect_context, o->dial, o->dial_context);
    mr_status status = allocate(r, o, err);
    if (status == MR_OK) status = mr_cache_open(r, o, err);
    if (status == MR_OK) {
        if (!o->route) mr_route_of_addresses(&made, o->addresses, o->count, o->grid, &o->digest);
        status = mr_peers_take_route(r, o->route ? o->route : &made, o->links, err);
        mr_route_free(&made);
    }
    if (status != MR_OK) {
        disown_links(r, o);
        mr_retrieval_close(r);
        return status;
    }
    mr_peers_reconnect(r, mr_now_ns());
    *out = r;
    return MR_OK;
}

void mr_retrieval_close(mr_retrieval *r) {
    if (!r) return;
    mr_connector_close(r->connector);
    for (uint32_t i = 0; i < r->peer_count; i++) mr_peer_free(r->peers[i]);
    mr_cache_close(r);
    free(r->peers);
    free(r->replica_first);
    free(r->replicas);
    free(r->wait_set);
    free(r->asks);
    free(r->acc);
    free(r->dots);
    free(r->weight);
    free(r->skip);
    free(r->exponent);
    free(r->is_exponent_known);
    free(r->layer_wait_ns);
    free(r);
}

/* --- routes ----------------------------------------------------------------------------------- */

mr_status mr_retrieval_set_route(mr_retrieval *r, const mr_route *route, mr_err *err) {
    assert(r->phase == MR_IDLE);
    if (route->epoch < r->epoch) return MR_OK;
    const mr_status status = mr_peers_take_route(r, route, NULL, err);
    if (status != MR_OK) return status;
    mr_peers_sweep(r);
    mr_peers_reconnect(r, mr_now_ns());
    return MR_OK;
}

uint64_t mr_retrieval_epoch(const mr_retrieval *r) {
    return r->epoch;
}

bool mr_retrieval_can_topk(const mr_retrieval *r, bool gated) {
    return !gated || r->grid.width_slices == 1;
}

/* The first cell that nobody connected holds; the number of cells when there is none. */
static uint32_t find_unreached(const mr_retrieval *r) {
    const uint32_t cells = r->grid.row_groups * r->grid.width_slices;
    for (uint32_t c = 0; c < cells; c++) {
        bool is_reached = false;
        for (uint32_t i = 0; i < mr_replica_count(r, c); i++)
            is_reached |= mr_replicas_of(r, c)[i]->link != NULL;
        if (!is_reached) return c;
    }
    return cells;
}

mr_status mr_retrieval_reach(mr_retrieval *r, int64_t deadline_ns, mr_err *err) {
    const uint32_t cells = r->grid.row_groups * r->grid.width_slices;
    char name[MR_ERR_TEXT_BYTES];
    for (;;) {
        const int64_t now = mr_now_ns();
        mr_peers_collect(r);
        mr_peers_reconnect(r, now);
        const uint32_t cell = find_unreached(r);
        if (cell == cells) return MR_OK;
        if (now < deadline_ns) {
            mr_links_wait(NULL, 0, now + STRANDED_WAIT_MS * (int64_t)MS);
            continue;
        }
        if (mr_replica_count(r, cell) == 0)
            return mr_fail(err, MR_ERR_UNAVAILABLE, "no memshard holds cell %u", cell);
        const mr_peer *p = mr_replicas_of(r, cell)[0];
        return mr_fail(err, MR_ERR_UNAVAILABLE, "cell %u cannot be reached: %s: %s", cell,
                       mr_peer_name(p, name), p->why.text[0] ? p->why.text : "no connection yet");
    }
}

/* --- the loop --------------------------------------------------------------------------------- */

void mr_retrieval_start_step(mr_retrieval *r, const mr_retrieval_step *step) {
    r->step = *step;
}

/* Nobody has answered anything for too long: those who owe are not waited for any more. */
static void give_up(mr_retrieval *r) {
    char name[MR_ERR_TEXT_BYTES];
    mr_err err;
    const mr_ask *late = r->asks;
    while (!late->is_open) late++;
    if (late->attempt_count > 0)
        mr_fail(&err, MR_ERR_TIMEOUT, "%s (memory layer %u): no answer for %lld ms",
                mr_peer_name(late->attempts[0].peer, name), r->q.layer,
                (long long)(r->timeout_ns / MS));
    else
        mr_fail(&err, MR_ERR_TIMEOUT, "memory layer %u: cell %u could not be asked for %lld ms",
                r->q.layer, late->cell, (long long)(r->timeout_ns / MS));
    const bool may_degrade = r->step.may_degrade;
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (r->peers[i]->outstanding > 0) mr_peer_lose(r, r->peers[i], &err);
    if (!may_degrade) mr_retrieval_fail(r, MR_ERR_TIMEOUT, &err);
    for (uint32_t i = 0; may_degrade && i < r->ask_count; i++)
        if (r->asks[i].is_open) mr_ask_degrade(r, &r->asks[i]);
}

static void check_time(mr_retrieval *r) {
    mr_err err;
    if (r->failure != MR_OK || r->open_count == 0) return;
    if (r->idle_ns >= r->timeout_ns) {
        give_up(r);
        return;
    }
    if (r->step.deadline_ns == 0 || mr_now_ns() < r->step.deadline_ns) return;
    mr_fail(&err, MR_ERR_TIMEOUT,
            "memory layer %u: the step's deadline passed while %u of %u "
            "requests were unanswered",
            r->q.layer, r->open_count, r->ask_count);
    mr_retrieval_fail(r, MR_ERR_TIMEOUT, &err);
}

static void advance(mr_retrieval *r, bool is_fresh) {
    mr_peers_collect(r);
    mr_peers_pump(r, is_fresh);
    if (r->failure != MR_OK) return;
    const int64_t now = mr_now_ns();
    mr_asks_rescue(r, now);
    mr_asks_place(r, now);
    mr_asks_hedge(r, now);
    mr_peers_flush(r);
    check_time(r);
}

/* When something is to be done even if nothing comes. */
static int64_t next_event(const mr_retrieval *r, int64_t now) {
    int64_t at = now + WAIT_MS_MAX * (int64_t)MS;
    if (r->next_hedge_ns < at) at = r->next_hedge_ns;
    if (r->step.deadline_ns && r->step.deadline_ns < at) at = r->step.deadline_ns;
    if (r->stranded_count > 0 && now + STRANDED_WAIT_MS * (int64_t)MS < at)
        at = now + STRANDED_WAIT_MS * (int64_t)MS;
    const int64_t left = r->timeout_ns - r->idle_ns;
    if (now + left < at) at = now + left;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const mr_peer *p = r->peers[i];
        if (!p->link || !mr_peer_owes(p) || !mr_peer_is_remote(p)) continue;
        const int64_t look = now + p->suspect_ns / 4;
        if (!p->is_suspected && look < at) at = look;
    }
    return at;
}

static mr_status wait_spinning(mr_retrieval *r, uint32_t count, int64_t until) {
    const int64_t spin_until = mr_now_ns() + r->spin_ns;
    while (r->spin_ns > 0 && mr_now_ns() < spin_until)
        if (mr_links_wait(r->wait_set, count, 0) == MR_OK) return MR_OK;
    return mr_links_wait(r->wait_set, count, until);
}

static void wait_some(mr_retrieval *r) {
    const int64_t began = mr_now_ns();
    uint32_t count = 0;
    mr_err err;
    for (uint32_t i = 0; i < r->peer_count && count < MR_MAX_LINKS_PER_SERVER; i++) {
        mr_peer *p = r->peers[i];
        if (p->link && (mr_peer_owes(p) || mr_link_wants_write(p->link)))
            r->wait_set[count++] = p->link;
    }
    const mr_status waited = wait_spinning(r, count, next_event(r, began));
    r->seen_ns = mr_now_ns();
    const uint64_t took = (uint64_t)(r->seen_ns - began);
    r->stats.wait_ns += took;
    if (r->q.layer < r->layers) r->layer_wait_ns[r->q.layer] += took;
    if (waited == MR_OK || waited == MR_ERR_TIMEOUT) return;
    mr_fail(&err, waited, "waiting for memshards failed");
    mr_retrieval_fail(r, waited, &err);
}

/* --- one retrieval ---------------------------------------------------------------------------- */

static void forget_asks(mr_retrieval *r) {
    for (uint32_t i = 0; i < r->ask_count && r->open_count > 0; i++)
        if (r->asks[i].is_open) mr_ask_close(r, &r->asks[i]);
    r->first_request += r->ask_count;
    r->ask_count = 0;
    assert(r->open_count == 0 && r->stranded_count == 0);
    r->next_hedge_ns = INT64_MAX;
}

void mr_retrieval_abandon(mr_retrieval *r) {
    if (!r) return;
    const bool was_open = r->open_count > 0;
    forget_asks(r);
    r->phase = MR_IDLE;
    if (was_open) mr_peers_flush(r);
    r->failure = MR_OK;
    mr_peers_sweep(r);
}

static mr_status leave(mr_retrieval *r, mr_err *err) {
    const mr_status status = r->failure;
    mr_fail(err, status, "%s", r->why.text);
    mr_retrieval_abandon(r);
    return status;
}

/* The pool's weights: scores (times the gate) scaled to the token's exponent. */
static mr_status make_weights(mr_retrieval *r, mr_err *err) {
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    const int base = r->q.accumulator_bits == 32 ? 30 : 62;
    for (size_t j = 0; j < all; j++) {
        const size_t t = j / r->q.entries;
        float dot = 0;
        if (r->q.gated) dot = mr_dot_to_float(r->dots[j], r->q.dot_exponent[t]);
        for (uint32_t m = 0; m < r->q.cores; m++) {
            float weight = r->q.score[m * all + j];
            if (r->q.gated) weight = mr_gate_weight(dot, weight, r->q.gelu);
            weight = mr_scale_exact(weight, base - r->q.value_exponent[t]);
            if (!isfinite(weight) && !(r->has_skips && r->skip[j]))
                return mr_fail(err, MR_ERR_RANGE,
                               "memory layer %u: a retrieval weight is not finite", r->q.layer);
            r->weight[m * all + j] = weight;
        }
    }
    return MR_OK;
}

static mr_status start_pool(mr_retrieval *r, mr_err *err) {
    const mr_status status = make_weights(r, err);
    if (status != MR_OK) return status;
    forget_asks(r);
    r->phase = MR_POOLING;
    if (!r->q.gated && r->cache) mr_cache_pool(r);
    return mr_asks_make(r, MR_RETRIEVE_POOL, err);
}

static void clear(mr_retrieval *r) {
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    memset(r->acc, 0, (size_t)r->q.tokens * r->q.slots * r->q.width * sizeof(*r->acc));
    if (r->q.gated && !r->q.query) memset(r->dots, 0, all * sizeof(*r->dots));
    if (r->has_skips || r->cache || r->step.may_degrade) memset(r->skip, 0, all);
    r->has_skips = false;
    if (!r->q.query) return;
    memset(r->exponent, 0, r->q.tokens * sizeof(*r->exponent));
    memset(r->is_exponent_known, 0, r->q.tokens * sizeof(*r->is_exponent_known));
    r->q.value_exponent = r->exponent;
}

/* That the shards do not select is for finish to say: its caller asks by ids then. */
static mr_status leave_early(mr_retrieval *r, mr_err *err) {
    if (r->failure == MR_OK || (r->failure == MR_ERR_UNSUPPORTED && r->q.query)) return MR_OK;
    return leave(r, err);
}

mr_status mr_retrieval_begin(mr_retrieval *r, const mr_retrieval_request *request, mr_err *err) {
    mr_status status;
    assert(r->phase == MR_IDLE && r->failure == MR_OK);
    r->q = *request;
    if (r->is_told) memset(r->layer_wait_ns, 0, r->layers * sizeof(*r->layer_wait_ns));
    r->is_told = false;
    clear(r);
    r->idle_ns = 0;
    r->polled_ns = r->seen_ns = mr_now_ns();
    mr_peers_reconnect(r, r->polled_ns);
    r->phase = MR_POOLING;
    if (r->q.query)
        status = mr_asks_make(r, MR_ASK_TOPK, err);
    else if (!r->q.gated)
        status = start_pool(r, err);
    else if (r->grid.width_slices == 1 && !r->q.two_trips)
        status = mr_asks_make(r, MR_RETRIEVE_GATED_POOL, err);
    else {
        r->phase = MR_DOTTING;
        status = mr_asks_make(r, MR_RETRIEVE_DOT, err);
    }
    if (status != MR_OK) {
        mr_retrieval_abandon(r);
        return status;
    }
    advance(r, true);
    return leave_early(r, err);
}

mr_status mr_retrieval_progress(mr_retrieval *r, mr_err *err) {
    if (r->phase == MR_IDLE || r->failure != MR_OK) return MR_OK;
    advance(r, false);
    if (r->failure == MR_OK && r->phase == MR_DOTTING && r->open_count == 0) {
        const mr_status status = start_pool(r, err);
        if (status != MR_OK) {
            mr_retrieval_abandon(r);
            return status;
        }
        advance(r, false);
    }
    return leave_early(r, err);
}

mr_status mr_retrieval_finish(mr_retrieval *r, float *out, float *dot, mr_err *err) {
    assert(r->phase != MR_IDLE);
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    for (;;) {
        const mr_status status = mr_retrieval_progress(r, err);
        if (status != MR_OK) return status;
        if (r->failure != MR_OK) return leave(r, err);
        if (r->phase == MR_POOLING && r->open_count == 0) break;
        if (r->open_count > 0) wait_some(r);
        if (r->failure != MR_OK) return leave(r, err);
    }
    const int base = r->q.accumulator_bits == 32 ? 30 : 62;
    const size_t row = (size_t)r->q.slots * r->q.width;
    for (size_t t = 0; t < r->q.tokens; t++) {
        const float scale = mr_scale_exact(1.0f, r->q.value_exponent[t] - base);
        for (size_t c = 0; c < row; c++) out[t * row + c] = (float)r->acc[t * row + c] * scale;
    }
    if (dot)
        for (size_t j = 0; j < all; j++)
            dot[j] = mr_dot_to_float(r->dots[j], r->q.dot_exponent[j / r->q.entries]);
    if (r->cache) mr_cache_fetch(r, mr_now_ns());
    mr_retrieval_abandon(r);
    return MR_OK;
}

/* --- figures ---------------------------------------------------------------------------------- */

mr_retrieval_stats mr_retrieval_take_stats(mr_retrieval *r) {
    mr_peers_count_bytes(r);
    mr_retrieval_stats stats = r->stats;
    stats.layer_wait_ns = r->layer_wait_ns;
    stats.layers = r->layers;
    r->stats = (mr_retrieval_stats){0};
    r->is_told = true;
    return stats;
}

uint32_t mr_retrieval_peer_count(const mr_retrieval *r) {
    return r->peer_count;
}

mr_retrieval_peer mr_retrieval_peer_look(const mr_retrieval *r, uint32_t index) {
    const mr_peer *p = r->peers[index];
    return (mr_retrieval_peer){.id = p->where.id,
                               .address = p->where.address,
                               .is_connected = p->link != NULL,
                               .is_suspected = p->is_suspected,
                               .outstanding = p->outstanding,
                               .failures = p->failures,
                               .latency_ns = p->latency_ns,
                               .p95_ns = p->latency[0].p95_ns,
                               .p99_ns = p->latency[0].p99_ns,
                               .requests = p->requests,
                               .answers = p->answers};
}
