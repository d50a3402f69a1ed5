/* shard.c - a memshard's process: real holdings behind a real server, which load and unload what
 * leaders order, in the memshard's own loading thread. */
#include "common/base/mem.h"
#include "common/net/control.h"
#include "tests/sim/node.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sim_shard {
    mr_memshard *memshard;
    mr_fence fence;
};

/* --- orders ----------------------------------------------------------------------------------- */

typedef struct {
    sim_node *to;
    uint32_t incarnation;
    sim_order order;
} envelope;

/* Nothing may be taken away that the cluster's map still gives to the memshard. */
static void check_unload(const sim_node *node, const sim_order *o) {
    const mr_map_record *map = sim_store_map(&o->digest);
    for (uint32_t i = 0; map && i < o->cell_count; i++) {
        const uint32_t cell = o->cells[i];
        for (uint32_t r = map->replica_first[cell]; r < map->replica_first[cell + 1]; r++)
            if (strcmp(map->replicas[r], node->id) == 0)
                sim_fail("%s unloads cell %u, which map %llu still gives to it", node->id, cell,
                         (unsigned long long)map->epoch);
    }
}

static void obey(void *context) {
    envelope *e = context;
    const sim_order *o = &e->order;
    sim_shard *s = e->to->incarnation == e->incarnation ? e->to->shard : NULL;
    mr_err err = {{0}};
    if (!s || sim_process_is_dead(sim_own()) ||
        mr_fence_check(&s->fence, o->leader_epoch, &err) != MR_OK) {
        free(e);
        return;
    }
    const mr_load_order load = {.source = "sim",
                                .digest = o->digest,
                                .grid = o->grid,
                                .cells = o->cells,
                                .cell_count = o->cell_count};
    const mr_load_watch watch = {0};
    if (o->kind == SIM_LOAD) {
        const mr_status status = mr_memshard_load(s->memshard, &load, &watch, &err);
        sim_cluster.loads++;
        sim_trace("%s loads %u cells: %d", e->to->id, o->cell_count, (int)status);
    } else if (o->kind == SIM_UNLOAD) {
        check_unload(e->to, o);
        mr_memshard_unload(s->memshard, &o->digest, o->grid, o->cells, o->cell_count);
        sim_cluster.unloads++;
        e->to->unloaded_ns = sim_now();
        sim_trace("%s unloads %u cells", e->to->id, o->cell_count);
    }
    free(e);
}

static void arrive(void *context, uint64_t number) {
    envelope *e = context;
    (void)number;
    if (e->to->process && sim_process_runs(e->to->process) && e->to->incarnation == e->incarnation)
        sim_spawn(e->to->process, obey, e);
    else
        free(e);
}

void sim_shard_order(sim_node *from, sim_node *to, const sim_order *order) {
    if (!sim_node_answers(from, to)) return;
    envelope *e = mr_alloc(sizeof(*e));
    *e = (envelope){.to = to, .incarnation = to->incarnation, .order = *order};
    const int64_t late = sim_chance(0.05) ? sim_between(0, 400) * SIM_MS : 0;
    sim_at(sim_now() + sim_between(200, 3000) * 1000 + late, arrive, e, 0);
}

bool sim_shard_holds(sim_node *node, const mr_digest *digest, uint32_t cell) {
    mr_holding *holdings = NULL;
    uint32_t count = 0;
    bool holds = false;
    if (!node->shard) return false;
    mr_memshard_describe(node->shard->memshard, &holdings, &count);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < holdings[i].cell_count; k++)
            holds |= memcmp(&holdings[i].digest, digest, sizeof(*digest)) == 0 &&
                     holdings[i].cells[k] == cell;
    mr_holdings_free(holdings, count);
    return holds;
}

/* --- the process ------------------------------------------------------------------------------ */

static void announce(sim_node *node, const sim_shard *s, sim_client *client) {
    mr_holding *holdings = NULL;
    mr_member self = sim_node_member(node);
    mr_memshard_describe(s->memshard, &holdings, &self.holding_count);
    self.holdings = holdings;
    sim_client_announce(client, &self);
    mr_holdings_free(holdings, self.holding_count);
}

void sim_shard_run(sim_node *node) {
    char address[128];
    mr_err err = {{0}};
    mr_server *server;
    sim_process *process = sim_own();
    sim_shard *s = mr_alloc(sizeof(*s));
    if (mr_memshard_open_empty(&s->memshard, NULL, &err) != MR_OK) sim_fail("%s", err.text);
    mr_memshard_set_opener(s->memshard, sim_open_tables, NULL);
    snprintf(address, sizeof(address), "unix:%s", sim_net_listen(process, node->path));
    mr_server_options options = {.address = address, .threads = 1 + node->host % 2};
    mr_memshard_serve_options(s->memshard, &options);
    if (mr_server_open(&server, &options, &err) != MR_OK) sim_fail("%s", err.text);
    sim_client *client = sim_client_join(process, node->id, false);
    if (!sim_process_is_dead(process)) node->shard = s;
    while (!sim_process_is_dead(process)) {
        announce(node, s, client);
        sim_sleep(sim_between(60, 120) * SIM_MS);
    }
    sim_client_leave(client);
    mr_server_close(server);
    mr_memshard_close(s->memshard);
    free(s);
}
