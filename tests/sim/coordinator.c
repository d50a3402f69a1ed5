/* coordinator.c - a coordinator's process: the real core, the real decisions on ownership and,
 * where it leads, placement; and heartbeats. What the conductor of a real one does, over the
 * registry. */
#include "common/base/mem.h"
#include "coordinator/controller.h"
#include "coordinator/ownership.h"
#include "tests/sim/forward.h"
#include "tests/sim/node.h"

#include <stdlib.h>
#include <string.h>

enum {
    TICK_MS = 250,
    ACT_AGAIN_MS = 1000, /* on the same view */
    REPLACE_AFTER_MS = 4000,
    UNLOAD_AFTER_MS = 1500,
    BLAMELESS_MS = 9000, /* so long nobody need have noticed what befell a memshard */
};

bool sim_stale_records_count;

struct sim_coordinator {
    sim_node *node;
    sim_client *client;
    mr_core *core;
    mr_controller *controller;
    sim_forwarder *forwarder;
    int64_t heard_ns[SIM_NODES_MAX];      /* of its heartbeats; 0: not asked yet */
    double owner_silent_s[SIM_NODES_MAX]; /* what a worker said last */
    uint64_t acted_number;
    int64_t acted_ns;
};

mr_core *sim_coordinator_core(sim_node *node) {
    return node->coordinator ? node->coordinator->core : NULL;
}

sim_client *sim_coordinator_client(sim_node *node) {
    return node->coordinator ? node->coordinator->client : NULL;
}

/* --- heartbeats ------------------------------------------------------------------------------- */

static void listen_to_all(sim_coordinator *c) {
    for (uint32_t i = 0; i < sim_cluster.node_count; i++) {
        sim_node *n = &sim_cluster.nodes[i];
        const bool is_known = mr_view_member(sim_client_view(c->client), n->role, n->id) != NULL;
        if (c->heard_ns[i] == 0 && is_known) c->heard_ns[i] = sim_now(); /* asked first */
        if (!sim_node_answers(c->node, n)) continue;
        c->heard_ns[i] = sim_now();
        if (n->role == MR_ROLE_WORKER) c->owner_silent_s[i] = sim_worker_owner_silent_s(n);
    }
}

static double silent_s(void *context, const mr_member *member) {
    const sim_coordinator *c = context;
    const sim_node *n = sim_node_find(member->role, member->id);
    const int64_t heard = n ? c->heard_ns[n - sim_cluster.nodes] : 0;
    return heard == 0 ? -1 : (double)(sim_now() - heard) / 1e9;
}

static double owner_silent_s(void *context, const mr_member *worker) {
    const sim_coordinator *c = context;
    const sim_node *n = sim_node_find(worker->role, worker->id);
    return n ? c->owner_silent_s[n - sim_cluster.nodes] : -1;
}

/* --- groups ----------------------------------------------------------------------------------- */

static void tell_groups(sim_coordinator *c, const mr_view *view) {
    static mr_group_place all[MR_MAX_GROUPS];
    mr_group_place places[SIM_WORKERS_MAX]; /* others decide while we wait */
    mr_group_spec specs[SIM_WORKERS_MAX];
    uint32_t mine = 0;
    const mr_ownership_input input = {.view = view,
                                      .self = c->node->id,
                                      .is_etcd_up = sim_client_is_up(c->client),
                                      .silent_s = silent_s,
                                      .owner_silent_s = owner_silent_s,
                                      .context = c};
    const uint32_t count = mr_ownership_decide(all, &input);
    memcpy(places, all, count * sizeof(*places));
    for (uint32_t i = 0; i < count; i++) {
        if (places[i].is_claimable)
            sim_client_claim(c->client, places[i].name, places[i].epoch + 1);
        if (!places[i].is_mine) continue;
        specs[mine++] = (mr_group_spec){.name = places[i].name,
                                        .address = places[i].first->address,
                                        .digest = places[i].digest,
                                        .epoch = places[i].epoch,
                                        .stages = places[i].stages};
    }
    mr_core_set_groups(c->core, specs, mine);
}

/* --- leading ---------------------------------------------------------------------------------- */

static uint64_t table_bytes(void *context, const mr_model_version *version) {
    (void)context, (void)version;
    return sim_cluster.model->table_bytes;
}

/* Whoever the next map names has the cell, unless it fell too lately to be noticed. */
static void check_switch(const mr_view *view, const mr_action *a) {
    const mr_map_record *next = mr_view_next_map(view, &a->digest);
    if (!next || next->epoch != a->epoch) sim_fail("a switch to a map that is not the next one");
    for (uint32_t cell = 0; cell < next->grid_rows * next->grid_columns; cell++)
        for (uint32_t r = next->replica_first[cell]; r < next->replica_first[cell + 1]; r++) {
            sim_node *n = sim_node_find(MR_ROLE_MEMSHARD, next->replicas[r]);
            const bool fell =
                !n->process || !sim_process_runs(n->process) ||
                (n->fallen_ns != 0 && sim_now() - n->fallen_ns < BLAMELESS_MS * SIM_MS);
            /* A record that cannot be renewed still names what was unloaded meanwhile. */
            const mr_member *m = mr_view_member(view, MR_ROLE_MEMSHARD, n->id);
            const bool is_stale = m && mr_member_holds(m, &a->digest, cell) &&
                                  n->unloaded_ns != 0 &&
                                  sim_now() - n->unloaded_ns < BLAMELESS_MS * SIM_MS;
            if (is_stale && !sim_stale_records_count) continue;
            if (!fell && !sim_shard_holds(n, &a->digest, cell))
                sim_fail("a switch to map %llu, where %s lacks cell %u",
                         (unsigned long long)a->epoch, n->id, cell);
        }
}

static void order(sim_coordinator *c, const mr_view *view, const mr_action *a) {
    sim_order o = {.leader_epoch = view->leader_epoch,
                   .digest = a->digest,
                   .grid = {a->grid_rows, a->grid_columns},
                   .cell_count = a->cell_count,
                   .kind = a->kind == MR_ACT_LOAD ? SIM_LOAD : SIM_UNLOAD};
    sim_node *to = sim_node_find(MR_ROLE_MEMSHARD, a->member);
    if (a->kind == MR_ACT_UNLOAD) o.grid = (mr_grid){0, 0};
    if (a->cell_count > sizeof(o.cells) / sizeof(*o.cells)) sim_fail("too many cells");
    if (a->cell_count > 0) memcpy(o.cells, a->cells, a->cell_count * sizeof(*o.cells));
    sim_shard_order(c->node, to, &o);
}

static void carry_out(sim_coordinator *c, const mr_view *view, const mr_action *a) {
    switch (a->kind) {
    case MR_ACT_PUT_NEXT_MAP:
        sim_client_put_next_map(c->client, a->map);
        break;
    case MR_ACT_SWITCH_MAP:
        check_switch(view, a);
        if (sim_client_switch_map(c->client, &a->digest, a->epoch) == MR_OK) sim_cluster.switches++;
        break;
    case MR_ACT_DELETE_MAP:
        sim_client_delete_map(c->client, &a->digest);
        break;
    case MR_ACT_LOAD:
    case MR_ACT_UNLOAD:
        order(c, view, a);
        break;
    case MR_ACT_REPORT_DEAD:
        sim_trace("%s reports %s dead", c->node->id, a->member);
        sim_client_report_dead(c->client, a->role, a->member);
        break;
    }
}

static void lead(sim_coordinator *c, const mr_view *view) {
    if (!sim_client_leads(c->client)) return;
    if (view->number == c->acted_number && sim_now() - c->acted_ns < ACT_AGAIN_MS * SIM_MS) return;
    const mr_controller_input input = {.view = view,
                                       .now_ns = sim_now(),
                                       .silent_s = silent_s,
                                       .table_bytes = table_bytes,
                                       .context = c};
    const mr_actions *list = mr_controller_decide(c->controller, &input);
    for (uint32_t i = 0; i < list->complaint_count; i++)
        sim_trace("%s complains: %s", c->node->id, list->complaints[i]);
    for (uint32_t i = 0; i < list->count; i++) {
        carry_out(c, view, &list->items[i]);
        if (list->items[i].kind > MR_ACT_DELETE_MAP) continue;
        c->acted_number = view->number;
        c->acted_ns = sim_now();
    }
}

/* --- the process ------------------------------------------------------------------------------ */

static void open_core(sim_coordinator *c) {
    mr_err err = {{0}};
    const mr_forwarder forwarder = sim_forwarder_of(c->forwarder);
    const mr_core_options options = {.context_tokens = 128,
                                     .step_timeout_ms = 4000,
                                     .lost = sim_cluster.lost,
                                     .lost_wait_ms = 3000,
                                     .forwarder = &forwarder,
                                     .draft = {.tokens_max = sim_cluster.speculate}};
    if (mr_core_open(&c->core, &options, &err) != MR_OK) sim_fail("%s", err.text);
    sim_forwarder_set_core(c->forwarder, c->core);
}

static void serve(sim_coordinator *c) {
    uint64_t number = 0;
    int64_t ticked_ns = 0;
    while (!sim_process_is_dead(sim_own())) {
        listen_to_all(c);
        if (sim_client_view(c->client)->number != number ||
            sim_now() - ticked_ns >= TICK_MS * SIM_MS) {
            const mr_view *view = mr_view_retain(sim_client_view(c->client));
            number = view->number;
            ticked_ns = sim_now();
            tell_groups(c, view);
            lead(c, view);
            mr_view_release(view);
        }
        sim_sleep(sim_between(20, 60) * SIM_MS);
    }
}

void sim_coordinator_run(sim_node *node) {
    sim_process *process = sim_own();
    sim_coordinator *c = mr_alloc(sizeof(*c));
    *c = (sim_coordinator){.node = node};
    for (uint32_t i = 0; i < SIM_NODES_MAX; i++) c->owner_silent_s[i] = -1;
    c->client = sim_client_join(process, node->id, true);
    c->controller = mr_controller_open(&(mr_controller_options){
        .replace_after_ms = REPLACE_AFTER_MS, .unload_after_ms = UNLOAD_AFTER_MS});
    c->forwarder = sim_forwarder_open(node, c->client);
    open_core(c);
    const mr_member self = sim_node_member(node);
    sim_client_announce(c->client, &self);
    if (!sim_process_is_dead(process)) node->coordinator = c;
    serve(c);
    sim_client_leave(c->client);
    sim_forwarder_stop(c->forwarder);
    sim_cluster.drafted += mr_core_metrics(c->core)->drafted_tokens;
    sim_cluster.accepted += mr_core_metrics(c->core)->accepted_tokens;
    mr_core_close(c->core);
    sim_forwarder_close(c->forwarder);
    mr_controller_close(c->controller);
    free(c);
}
