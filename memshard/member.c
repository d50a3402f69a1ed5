/* member.c - see member.h. */
#include "memshard/member.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DRAIN_S = 300, LOOK_MS = 100, CONFIRM_MS = 3000, CONFIRM_LOOK_MS = 10 };

struct mr_memshard_member {
    mr_agent *agent;
    mr_setup *setup;
    mr_memshard *shard;
    bool keys;
    void (*leave)(void *context);
    void *context;
};

static void say_holdings(mr_memshard_member *m) {
    mr_holding *holdings;
    uint32_t count;
    mr_memshard_describe(m->shard, &holdings, &count);
    mr_agent_set_holdings(m->agent, holdings, count);
    mr_holdings_free(holdings, count);
}

/* --- orders ----------------------------------------------------------------------------------- */

static void show_progress(void *context, const char *what, double fraction) {
    mr_control_job_progress(context, what, fraction);
}

/* "peer:A,B;SOURCE" where the order names replicas to copy from: each holds the cells. Owned. */
static char *source_of(const mr_control_load_order *order) {
    char *peers = mr_strdup("");
    for (uint32_t i = 0; i < order->peer_count; i++) {
        char *more = mr_format("%s%s%s", peers, i ? "," : "", order->peers[i]);
        free(peers);
        peers = more;
    }
    char *source = order->peer_count ? mr_format("peer:%s;%s", peers, order->source)
                                     : mr_strdup(order->source);
    free(peers);
    return source;
}

static mr_status on_load(void *context, mr_control_job *job, const mr_control_load_order *order,
                         mr_err *err) {
    mr_memshard_member *m = context;
    if (order->cell_count == 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "a memshard loads cells; none were named");
    char *source = source_of(order);
    const mr_load_order load = {.source = source,
                                .digest = order->digest,
                                .grid = {order->grid_rows, order->grid_columns},
                                .cells = order->cells,
                                .cell_count = order->cell_count,
                                .keys = m->keys};
    const int64_t began = mr_now_ns();
    const mr_status status = mr_memshard_load_now(m->shard, &load, show_progress, job, err);
    free(source);
    if (status == MR_OK)
        mr_log_info("loaded %u cells of %s in %.1f s", order->cell_count, order->name,
                    (double)(mr_now_ns() - began) / 1e9);
    say_holdings(m);
    return status;
}

/* What is held but for the cells of the order; owned. */
static mr_holding *without(const mr_memshard_member *m, const mr_control_unload_order *order,
                           uint32_t *count) {
    mr_holding *holdings;
    mr_memshard_describe(m->shard, &holdings, count);
    for (uint32_t i = 0; i < *count; i++) {
        mr_holding *h = &holdings[i];
        uint32_t kept = 0;
        if (memcmp(&h->digest, &order->digest, sizeof(h->digest)) != 0) continue;
        for (uint32_t c = 0; c < h->cell_count && order->cell_count > 0; c++) {
            bool goes = false;
            for (uint32_t k = 0; k < order->cell_count; k++) goes |= order->cells[k] == h->cells[c];
            if (!goes) h->cells[kept++] = h->cells[c];
        }
        h->cell_count = kept;
    }
    uint32_t used = 0; /* a holding of no cells is none */
    for (uint32_t i = 0; i < *count; i++) {
        if (holdings[i].cell_count > 0)
            holdings[used++] = holdings[i];
        else
            free(holdings[i].cells);
    }
    *count = used;
    return holdings;
}

static bool is_confirmed(mr_memshard_member *m, const mr_control_unload_order *order) {
    const mr_view *view = mr_agent_view(m->agent);
    const mr_member *self = mr_view_member(view, MR_ROLE_MEMSHARD, mr_agent_id(m->agent));
    bool is_listed = false;
    for (uint32_t i = 0; self && i < self->holding_count; i++) {
        const mr_holding *h = &self->holdings[i];
        if (memcmp(&h->digest, &order->digest, sizeof(h->digest)) != 0) continue;
        is_listed |= order->cell_count == 0 && h->cell_count > 0;
        for (uint32_t k = 0; k < order->cell_count; k++)
            is_listed |= mr_member_holds(self, &order->digest, order->cells[k]);
    }
    mr_view_release(view);
    return self && !is_listed;
}

/* The record says first that the cells are gone, and the cluster must have seen it: a leader that
 * reads an older one would switch to a map with a hole. */
static mr_status on_unload(void *context, mr_control_job *job, const mr_control_unload_order *order,
                           mr_err *err) {
    mr_memshard_member *m = context;
    const int64_t deadline = mr_now_ns() + CONFIRM_MS * 1000000ll;
    uint32_t count;
    mr_holding *left = without(m, order, &count);
    mr_agent_set_holdings(m->agent, left, count);
    mr_holdings_free(left, count);
    while (!is_confirmed(m, order)) {
        const struct timespec pause = {.tv_nsec = CONFIRM_LOOK_MS * 1000000};
        if (mr_now_ns() >= deadline || mr_control_job_is_cancelled(job)) {
            say_holdings(m);
            return mr_fail(err, MR_ERR_UNAVAILABLE,
                           "the cluster has not seen within %d ms that these cells go: they stay",
                           CONFIRM_MS);
        }
        nanosleep(&pause, NULL);
    }
    mr_memshard_unload(m->shard, &order->digest, (mr_grid){0, 0}, order->cells, order->cell_count);
    say_holdings(m);
    return MR_OK;
}

static bool is_in_a_map(const mr_view *view, const char *id) {
    for (uint32_t i = 0; i < view->map_count + view->next_map_count; i++) {
        const mr_map_record *map =
            i < view->map_count ? view->maps[i] : view->next_maps[i - view->map_count];
        const uint32_t count = map->replica_first[map->grid_rows * map->grid_columns];
        for (uint32_t r = 0; r < count; r++)
            if (strcmp(map->replicas[r], id) == 0) return true;
    }
    return false;
}

/* Nobody is told to come here any more, and nobody has for a while. */
static bool is_empty(mr_memshard_member *m) {
    const mr_view *view = mr_agent_view(m->agent);
    const bool is_wanted = is_in_a_map(view, mr_agent_id(m->agent));
    mr_view_release(view);
    return !is_wanted && mr_memshard_look(m->shard).cells == 0;
}

static mr_status on_drain(void *context, mr_control_job *job, const mr_drain_order *order,
                          mr_err *err) {
    mr_memshard_member *m = context;
    const int64_t seconds = order->timeout_s ? order->timeout_s : DRAIN_S;
    const int64_t deadline = mr_now_ns() + seconds * 1000000000;
    mr_log_info("draining");
    mr_agent_set_state(m->agent, MR_MEMBER_DRAINING);
    while (!is_empty(m)) {
        const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
        if (mr_control_job_is_cancelled(job))
            return mr_fail(err, MR_ERR_CANCELLED, "whoever asked for it has left");
        if (mr_now_ns() >= deadline)
            return mr_fail(err, MR_ERR_TIMEOUT,
                           "its cells have found no other place within %lld s: is there room?",
                           (long long)seconds);
        nanosleep(&pause, NULL);
    }
    mr_log_info("drained");
    if (order->ends && m->leave) mr_leave_soon(m->leave, m->context);
    return MR_OK;
}

static void on_status(void *context, mr_control_status *out) {
    mr_memshard_member *m = context;
    const mr_memshard_stats s = mr_memshard_look(m->shard);
    mr_scrub_counters scrub;
    mr_tier_counters tier;
    mr_setup_count(m->setup, &scrub, &tier);
    out->requests = s.requests;
    out->bytes_held = s.bytes_held;
    out->requests_per_s = s.window_s > 0 ? (double)s.window_requests / s.window_s : 0;
    out->p50_us = s.p50_us;
    out->p99_us = s.p99_us;
    mr_control_count(out, "refused", (double)s.refused);
    mr_control_count(out, "stale", (double)s.stale);
    mr_control_count(out, "expired", (double)s.expired);
    mr_control_count(out, "cancelled", (double)s.cancelled);
    mr_control_count(out, "together", (double)s.together);
    mr_control_count(out, "prefetched", (double)s.prefetched);
    mr_control_count(out, "loads", (double)s.loads);
    mr_control_count(out, "unloads", (double)s.unloads);
    mr_control_count(out, "failed_loads", (double)s.failed_loads);
    mr_control_count(out, "queue_depth", (double)s.queue_depth);
    mr_control_count(out, "scrub_chunks", (double)scrub.chunks);
    mr_control_count(out, "scrub_passes", (double)scrub.passes);
    mr_control_count(out, "scrub_failures", (double)scrub.failures);
    if (tier.budget_bytes == 0) return;
    mr_control_count(out, "tier_hits", (double)tier.hits);
    mr_control_count(out, "tier_misses", (double)tier.misses);
    mr_control_count(out, "tier_read_bytes", (double)tier.read_bytes);
    mr_control_count(out, "tier_evicted", (double)tier.evicted);
    mr_control_count(out, "tier_failures", (double)tier.failures);
    mr_control_count(out, "tier_resident_bytes", (double)tier.resident_bytes);
}

mr_status mr_memshard_member_open(mr_memshard_member **out, const mr_memshard_member_options *o,
                                  mr_err *err) {
    mr_memshard_member *m = mr_alloc(sizeof(*m));
    m->setup = o->setup;
    m->shard = mr_setup_shard(o->setup);
    m->keys = o->keys;
    m->leave = o->leave;
    m->context = o->context;
    const mr_agent_options agent = {.role = MR_ROLE_MEMSHARD,
                                    .settings = o->agent,
                                    .handlers = {.status = on_status,
                                                 .load = on_load,
                                                 .unload = on_unload,
                                                 .drain = on_drain,
                                                 .context = m},
                                    .context = m};
    *out = NULL;
    const mr_status status = mr_agent_open(&m->agent, &agent, err);
    if (status != MR_OK) {
        free(m);
        return status;
    }
    mr_agent_set_capacity(m->agent, o->capacity_bytes);
    *out = m;
    return MR_OK;
}

void mr_memshard_member_start(mr_memshard_member *m, const char *address, const char *ucx) {
    mr_agent_set_address(m->agent, address, ucx);
    say_holdings(m);
    mr_agent_set_state(m->agent, MR_MEMBER_READY);
    mr_agent_start(m->agent);
}

void mr_memshard_member_changed(mr_memshard_member *m) {
    if (m->agent) say_holdings(m);
}

void mr_memshard_member_leave(mr_memshard_member *m) {
    mr_agent_leave(m->agent);
}

void mr_memshard_member_close(mr_memshard_member *m) {
    if (!m) return;
    mr_agent_close(m->agent);
    free(m);
}

mr_agent *mr_memshard_member_agent(mr_memshard_member *m) {
    return m->agent;
}
