/* worker.c - a worker's process: one stage of a group, with a real engine behind the real door. It
 * follows its view: routes to memshards, the next stage's address. */
#include "common/base/mem.h"
#include "tests/sim/node.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sim_worker {
    sim_node *node;
    sim_client *client;
    mr_engine *engine;
    mr_worker *worker;
    mr_route newest;
    uint64_t epoch; /* of the route that was given last */
    int64_t owner_heard_ns;
};

static const mr_digest *digest_of_all(void) {
    return &sim_cluster.model->manifest.digest;
}

static const mr_route *newer_route(void *context, uint64_t epoch) {
    sim_worker *w = context;
    mr_err err;
    mr_route_free(&w->newest);
    if (mr_route_of_view(&w->newest, sim_client_view(w->client), digest_of_all(), &err) == MR_OK &&
        w->newest.epoch > epoch)
        return &w->newest;
    return NULL;
}

static mr_status open_engine(sim_worker *w, const mr_route *route, mr_err *err) {
    const sim_node *node = w->node;
    const mr_engine_options options = {.model = sim_cluster.model->model,
                                       .manifest = &sim_cluster.model->manifest,
                                       .threads = 1,
                                       .kv_blocks = sim_cluster.kv_blocks,
                                       .step_tokens_max = 48,
                                       .step_sequences_max = 8,
                                       .two_trips = sim_cluster.two_trips,
                                       .route = route,
                                       .newer_route = newer_route,
                                       .newer_context = w,
                                       .row_cache_bytes = sim_cluster.row_cache_bytes,
                                       .seed = sim_draw(),
                                       .stage = node->stage,
                                       .stages = node->stages};
    return mr_engine_open(&w->engine, &options, err);
}

/* Waits for a map. false: the process ends. */
static bool find_route(sim_worker *w, mr_route *out) {
    mr_err err;
    while (!sim_process_is_dead(sim_own())) {
        if (mr_route_of_view(out, sim_client_view(w->client), digest_of_all(), &err) == MR_OK) {
            bool is_whole = true;
            for (uint32_t c = 0; c < mr_route_cells(out); c++)
                is_whole &= out->replica_first[c + 1] > out->replica_first[c];
            if (is_whole) return true;
        }
        mr_route_free(out);
        sim_sleep(50 * SIM_MS);
    }
    return false;
}

static void follow_next(sim_worker *w) {
    mr_err err;
    const mr_view *view = sim_client_view(w->client);
    if (w->node->stage + 1 == w->node->stages) return;
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        for (uint32_t k = 0; m->role == MR_ROLE_WORKER && k < m->stage_count; k++) {
            if (strcmp(m->stages[k].group, w->node->group) != 0 ||
                m->stages[k].stage != w->node->stage + 1)
                continue;
            if (mr_worker_set_next(w->worker, *digest_of_all(), m->address, &err) != MR_OK)
                sim_fail("%s", err.text);
        }
    }
}

static void follow_route(sim_worker *w) {
    mr_route route;
    mr_err err;
    if (!sim_cluster.model->tables) return;
    if (mr_route_of_view(&route, sim_client_view(w->client), digest_of_all(), &err) == MR_OK &&
        mr_worker_set_route(w->worker, *digest_of_all(), &route, &err) != MR_OK)
        sim_fail("%s", err.text);
    mr_route_free(&route);
}

/* Coordinators' heartbeats come here. */
static void hear_owner(sim_worker *w) {
    const mr_owner_record *owner = mr_view_owner(sim_client_view(w->client), w->node->group);
    const sim_node *at = owner ? sim_node_find(MR_ROLE_COORDINATOR, owner->coordinator) : NULL;
    if (at && sim_node_answers(at, w->node)) w->owner_heard_ns = sim_now();
}

double sim_worker_owner_silent_s(sim_node *node) {
    const sim_worker *w = node->worker;
    if (!w || w->owner_heard_ns == 0) return -1;
    return (double)(sim_now() - w->owner_heard_ns) / 1e9;
}

static void announce(sim_worker *w) {
    mr_worker_state state;
    mr_err err;
    mr_member self = sim_node_member(w->node);
    const mr_engine_part *part = mr_engine_get_part(w->engine);
    mr_stage_record stage = {.digest = *digest_of_all(),
                             .group = w->node->group,
                             .stage = part->stage,
                             .stages = part->stages,
                             .block_first = part->blocks.first,
                             .block_count = part->blocks.count};
    if (mr_worker_look(w->worker, *digest_of_all(), &state, &err) != MR_OK)
        sim_fail("%s", err.text);
    self.map_epoch = state.map_epoch;
    self.stages = &stage;
    self.stage_count = 1;
    sim_client_announce(w->client, &self);
}

static void serve(sim_worker *w) {
    uint64_t number = 0;
    while (!sim_process_is_dead(sim_own())) {
        const mr_view *view = sim_client_view(w->client);
        if (view->number != number) {
            number = view->number;
            follow_next(w);
            follow_route(w);
        }
        hear_owner(w);
        announce(w);
        sim_sleep(sim_between(40, 100) * SIM_MS);
    }
}

void sim_worker_run(sim_node *node) {
    char address[128];
    mr_err err = {{0}};
    mr_route route = {0};
    sim_process *process = sim_own();
    sim_worker *w = mr_alloc(sizeof(*w));
    *w = (sim_worker){.node = node};
    snprintf(address, sizeof(address), "unix:%s", sim_net_listen(process, node->path));
    w->client = sim_client_join(process, node->id, false);
    if (!sim_cluster.model->tables || find_route(w, &route)) {
        if (open_engine(w, sim_cluster.model->tables ? &route : NULL, &err) != MR_OK ||
            mr_worker_open(&w->worker, w->engine, *digest_of_all(), address, &err) != MR_OK)
            sim_fail("%s", err.text);
        if (!sim_process_is_dead(process)) node->worker = w;
        serve(w);
    }
    sim_client_leave(w->client);
    mr_worker_close(w->worker);
    mr_engine_close(w->engine);
    mr_route_free(&route);
    mr_route_free(&w->newest);
    free(w);
}
