/* world.c - see world.h: the course of one seed. A cluster of chance comes up; requests and faults;
 * the faults end; the cluster must be whole again within a bound, and answer; all is closed. */
#include "tests/sim/world.h"

#include "common/base/mem.h"
#include "tests/sim/forward.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    UP_MS = 20000,     /* a new cluster is whole by then */
    HEALED_MS = 25000, /* and one whose faults have ended */
    CLOSED_MS = 120000,
    LOOK_MS = 200,
};

/* --- the cluster ------------------------------------------------------------------------------ */

static sim_node *add_node(mr_role role, char letter, uint32_t index) {
    sim_node *n = &sim_cluster.nodes[sim_cluster.node_count++];
    *n = (sim_node){.role = role, .host = sim_cluster.node_count};
    snprintf(n->id, sizeof(n->id), "%c%u", letter, index);
    if (role != MR_ROLE_COORDINATOR) n->path = sim_net_path(n->id);
    return n;
}

static void make_cluster(uint64_t seed) {
    static const mr_grid grids[] = {{2, 1}, {4, 1}, {2, 2}, {4, 2}, {1, 2}, {3, 1}};
    sim_model *model = sim_model_at(sim_chance(0.1) ? SIM_MODELS - 1 : sim_roll(SIM_MODELS - 1));
    memset(&sim_cluster, 0, sizeof(sim_cluster));
    sim_cluster.model = model;
    sim_cluster.grid = grids[sim_roll(6)];
    sim_cluster.replicas = 1 + sim_roll(2);
    sim_cluster.lost = sim_chance(0.2) ? MR_LOST_FAIL : MR_LOST_WAIT;
    sim_cluster.kv_blocks = 16 + sim_roll(48);
    sim_cluster.row_cache_bytes = sim_chance(0.3) ? 64 << 10 : 0;
    sim_cluster.two_trips = sim_chance(0.2);
    sim_cluster.speculate = seed % 2 == 0 ? 0 : 1 + (uint32_t)(seed / 2 % 8);
    const uint32_t shards = model->tables ? sim_cluster.replicas + 1 + sim_roll(3) : 0;
    const uint32_t groups = 1 + sim_roll(2), coordinators = 1 + sim_roll(3);
    for (uint32_t i = 0; i < shards; i++) add_node(MR_ROLE_MEMSHARD, 'm', i);
    for (uint32_t g = 0; g < groups; g++) {
        const uint32_t stages = 1 + sim_roll(3) % 2;
        for (uint32_t k = 0; k < stages; k++) {
            sim_node *n = add_node(MR_ROLE_WORKER, 'w', 2 * g + k);
            snprintf(n->group, sizeof(n->group), "g%u", g);
            n->stage = k;
            n->stages = stages;
        }
    }
    for (uint32_t i = 0; i < coordinators; i++) add_node(MR_ROLE_COORDINATOR, 'c', i);
    sim_trace("model %s, grid %ux%u, %u replicas, %u memshards, %u groups, %u coordinators",
              model->name, sim_cluster.grid.row_groups, sim_cluster.grid.width_slices,
              sim_cluster.replicas, shards, groups, coordinators);
}

void sim_world_put_model(uint32_t replicas) {
    char version_name[] = "v1", source[] = "/models/sim", name[] = "sim";
    const mr_model_record *now = sim_store_model(name);
    if (!sim_cluster.model->tables) return;
    mr_model_version version = {.version = version_name,
                                .digest = sim_cluster.model->manifest.digest,
                                .source = source,
                                .grid_rows = sim_cluster.grid.row_groups,
                                .grid_columns = sim_cluster.grid.width_slices,
                                .replicas = replicas};
    const mr_model_record record = {.name = name,
                                    .epoch = now ? now->epoch + 1 : 1,
                                    .active = version_name,
                                    .versions = &version,
                                    .version_count = 1};
    sim_store_put_model(&record);
}

static void start_node(void *context, uint64_t number) {
    (void)number;
    sim_node_start(context);
}

/* --- whole or not ----------------------------------------------------------------------------- */

/* Every cell is held by as many live memshards as asked for. NULL: so it is. */
static const char *why_map_is_bad(void) {
    static char why[200];
    if (!sim_cluster.model->tables) return NULL;
    const mr_digest *digest = &sim_cluster.model->manifest.digest;
    const mr_map_record *map = sim_store_map(digest);
    const mr_model_record *model = sim_store_model("sim");
    if (!map || !model) return "there is no map, or no model";
    for (uint32_t c = 0; c < map->grid_rows * map->grid_columns; c++) {
        if (map->replica_first[c + 1] - map->replica_first[c] != model->versions[0].replicas)
            return "a cell has too few or too many replicas";
        for (uint32_t r = map->replica_first[c]; r < map->replica_first[c + 1]; r++) {
            sim_node *n = sim_node_find(MR_ROLE_MEMSHARD, map->replicas[r]);
            if (n->process && sim_shard_holds(n, digest, c)) continue;
            snprintf(why, sizeof(why), "%s lacks cell %u of map %llu", n->id, c,
                     (unsigned long long)map->epoch);
            return why;
        }
    }
    return NULL;
}

static uint32_t count_up(mr_core *core, const char *group) {
    mr_group_look looks[SIM_WORKERS_MAX];
    uint32_t up = 0;
    const uint32_t count = mr_core_groups(core, looks, SIM_WORKERS_MAX);
    for (uint32_t k = 0; k < count; k++)
        up += looks[k].state == MR_GROUP_UP && strncmp(looks[k].name, group, 16) == 0;
    return up;
}

static bool is_group_up(const sim_node *first) {
    uint32_t up = 0;
    for (uint32_t i = 0; i < sim_cluster.node_count; i++) {
        mr_core *core = sim_coordinator_core(&sim_cluster.nodes[i]);
        if (core) up += count_up(core, first->group);
    }
    return up == 1;
}

static const char *why_not_whole(void) {
    static char why[200];
    const char *bad = why_map_is_bad();
    if (bad) return bad;
    for (uint32_t i = 0; i < sim_cluster.node_count; i++) {
        sim_node *n = &sim_cluster.nodes[i];
        mr_core *core = sim_coordinator_core(n);
        mr_err err;
        if (n->role == MR_ROLE_WORKER && n->stage == 0 && !is_group_up(n)) {
            snprintf(why, sizeof(why), "group %s is not up in exactly one coordinator", n->group);
            return why;
        }
        if (n->role != MR_ROLE_COORDINATOR) continue;
        if (core && mr_core_health(core, &err) == MR_OK) continue;
        snprintf(why, sizeof(why), "%s is not healthy: %.120s", n->id, core ? err.text : "down");
        return why;
    }
    return NULL;
}

static void wait_until_whole(int64_t bound_ms) {
    const int64_t until = sim_now() + bound_ms * SIM_MS;
    uint32_t times = 0;
    while (times < 3) { /* and stays so */
        const char *why = why_not_whole();
        times = why ? 0 : times + 1;
        if (why && sim_now() >= until)
            sim_fail("not whole after %lld s: %s", (long long)(bound_ms / 1000), why);
        sim_run_until(sim_now() + LOOK_MS * SIM_MS);
        sim_requests_check();
    }
}

/* --- the course ------------------------------------------------------------------------------- */

static mr_lost_policy any_policy(void) {
    static const mr_lost_policy policies[] = {MR_LOST_WAIT, MR_LOST_WAIT, MR_LOST_FAIL,
                                              MR_LOST_DEGRADE};
    return policies[sim_roll(4)];
}

static void ask_some(void *context, uint64_t until) {
    (void)context;
    sim_node *n = &sim_cluster.nodes[sim_roll(sim_cluster.node_count)];
    if (n->role == MR_ROLE_COORDINATOR && n->process && sim_process_runs(n->process))
        sim_request_make(n, any_policy(), false);
    if (sim_chance(0.04)) sim_requests_cancel_one();
    if ((uint64_t)sim_now() < until)
        sim_at(sim_now() + sim_between(5, 150) * SIM_MS, ask_some, NULL, until);
}

static void ask_all(void) {
    for (uint32_t i = 0; i < sim_cluster.node_count; i++)
        for (uint32_t k = 0; sim_cluster.nodes[i].role == MR_ROLE_COORDINATOR && k < 3; k++)
            sim_request_make(&sim_cluster.nodes[i], k == 0 ? MR_LOST_FAIL : MR_LOST_WAIT, true);
    const int64_t until = sim_now() + 10 * SIM_S;
    while (sim_requests_open_count() > 0 && sim_now() < until)
        sim_run_until(sim_now() + LOOK_MS * SIM_MS);
    if (sim_requests_open_count() > 0) sim_fail("requests to a whole cluster are not answered");
}

static void drain_requests(void) {
    while (sim_requests_open_count() > 0) {
        sim_run_until(sim_now() + LOOK_MS * SIM_MS);
        sim_requests_check();
    }
}

static void close_all(void) {
    for (uint32_t i = 0; i < sim_cluster.node_count; i++)
        sim_node_kill(&sim_cluster.nodes[i], false);
    const int64_t until = sim_now() + CLOSED_MS * SIM_MS;
    while ((sim_cluster.open_count > 0 || !sim_forwarders_are_idle()) && sim_now() < until)
        sim_run_until(sim_now() + LOOK_MS * SIM_MS);
    if (sim_cluster.open_count > 0) sim_fail("a process does not close");
    sim_run_until(sim_now() + SIM_S);
}

static void count_epochs(sim_outcome *out) {
    const mr_map_record *map =
        sim_cluster.model->tables ? sim_store_map(&sim_cluster.model->manifest.digest) : NULL;
    out->map_epoch = map ? map->epoch : 0;
    out->switches = sim_cluster.switches;
    out->loads = sim_cluster.loads;
    out->unloads = sim_cluster.unloads;
}

sim_outcome sim_world_run(uint64_t seed) {
    sim_outcome out = {0};
    sim_begin(seed);
    sim_store_open();
    sim_requests_open();
    make_cluster(seed);
    sim_world_put_model(sim_cluster.replicas);
    const int64_t began = sim_now();
    for (uint32_t i = 0; i < sim_cluster.node_count; i++)
        sim_at(began + sim_between(0, 800) * SIM_MS, start_node, &sim_cluster.nodes[i], 0);
    sim_run_until(began + SIM_S);
    wait_until_whole(UP_MS);
    const int64_t end = sim_now() + sim_between(6, 24) * SIM_S;
    sim_at(sim_now(), ask_some, NULL, (uint64_t)(end + 2 * SIM_S));
    sim_faults_plan(sim_now() + SIM_S, end, 2 + sim_roll(16));
    while (sim_now() < end) {
        sim_run_until(sim_now() + LOOK_MS * SIM_MS);
        sim_requests_check();
    }
    sim_faults_heal();
    wait_until_whole(HEALED_MS);
    drain_requests();
    wait_until_whole(HEALED_MS);
    ask_all();
    count_epochs(&out);
    sim_trace("all is closed");
    close_all();
    out.drafted = sim_cluster.drafted; /* as the coordinators said when they closed */
    out.accepted = sim_cluster.accepted;
    sim_requests_count(&out);
    out.faults = sim_faults_count();
    out.seconds = (double)(sim_now() - began) / 1e9;
    sim_requests_close();
    sim_store_close();
    sim_end();
    out.hash = sim_trace_hash();
    return out;
}
