/* faults.c - what goes wrong in a seed, when, and for how long. Each fault mends itself after a
 * while; healing mends them all at once. */
#include "tests/sim/world.h"

#include <string.h>

typedef enum {
    FAULT_KILL,
    FAULT_STOP,
    FAULT_CUT,
    FAULT_BREAK,
    FAULT_SLOW,
    FAULT_FAR,
    FAULT_STORE_AWAY,
    FAULT_STORE_WIPED,
    FAULT_CUT_FROM_STORE,
    FAULT_DRAIN,    /* no fault, but cells move: a memshard is emptied */
    FAULT_REPLICAS, /* and so they do when others are wanted */
    FAULT_KINDS
} fault_kind;

bool sim_stages_die_alone, sim_wipes_at_any_time;

static struct {
    bool is_healed;
    uint32_t count;
} f;

static sim_node *any_node(void) {
    return &sim_cluster.nodes[sim_roll(sim_cluster.node_count)];
}

static uint64_t pair(uint32_t a, uint32_t b) {
    return (uint64_t)a << 32 | b;
}

static void start_again(void *context, uint64_t number) {
    sim_node *node = context;
    (void)number;
    if (!node->process && !f.is_healed) sim_node_start(node);
}

static void go_on(void *context, uint64_t incarnation) {
    sim_node *node = context;
    if (!node->process || node->incarnation != incarnation) return;
    sim_trace("%s goes on", node->id);
    sim_process_continue(node->process);
    node->fallen_ns = sim_now();
}

static void hurry(void *context, uint64_t incarnation) {
    sim_node *node = context;
    if (node->process && node->incarnation == incarnation)
        sim_process_set_slowness(node->process, 1);
}

static void mend(void *context, uint64_t hosts) {
    (void)context;
    sim_net_cut((uint32_t)(hosts >> 32), (uint32_t)hosts, false);
}

static void come_near(void *context, uint64_t host) {
    (void)context;
    sim_net_set_latency((uint32_t)host, 0);
}

static void end_drain(void *context, uint64_t number) {
    sim_node *node = context;
    (void)number;
    node->is_draining = false;
}

static void store_back(void *context, uint64_t number) {
    (void)context, (void)number;
    sim_trace("the store is back");
    sim_store_set_up(true);
}

/* What a wiped store had is known by whoever may lead next. Where it is not, an old epoch comes
 * back, and nobody may go beyond the one that workers have seen. */
static bool is_store_safe(void) {
    for (uint32_t i = 0; i < sim_cluster.node_count; i++)
        if (sim_cluster.nodes[i].role == MR_ROLE_COORDINATOR && !sim_cluster.nodes[i].process)
            return false;
    return sim_store_is_known();
}

static void kill_one(sim_node *node, bool is_silent) {
    const int64_t down = sim_chance(0.4) ? sim_between(5000, 14000) : sim_between(100, 3000);
    sim_node_kill(node, is_silent);
    sim_at(sim_now() + down * SIM_MS, start_again, node, 0);
}

/* A stage takes those before it along: they do not notice that a later one has begun anew with
 * nothing in its KV cache. --lone-stages lets them live. */
static void kill(sim_node *node) {
    const bool is_silent = sim_chance(0.3);
    kill_one(node, is_silent);
    for (uint32_t i = 0; !sim_stages_die_alone && i < sim_cluster.node_count; i++) {
        sim_node *n = &sim_cluster.nodes[i];
        if (node->role == MR_ROLE_WORKER && n->role == MR_ROLE_WORKER && n->process &&
            n->stage < node->stage && strcmp(n->group, node->group) == 0)
            kill_one(n, is_silent);
    }
}

static void cut(uint32_t a, uint32_t b) {
    const int64_t until = sim_now() + sim_between(50, 5000) * SIM_MS;
    const bool both = sim_chance(0.5);
    if (a == b) return;
    sim_trace("the way from host %u to %u is cut%s", a, b, both ? ", and back" : "");
    sim_net_cut(a, b, true);
    sim_at(until, mend, NULL, pair(a, b));
    if (!both) return;
    sim_net_cut(b, a, true);
    sim_at(until, mend, NULL, pair(b, a));
}

static void act(fault_kind kind, sim_node *node) {
    const int64_t now = sim_now();
    switch (kind) {
    case FAULT_KILL:
        kill(node);
        break;
    case FAULT_STOP:
        sim_trace("%s is stopped", node->id);
        sim_process_stop(node->process);
        sim_at(now + sim_between(50, 3500) * SIM_MS, go_on, node, node->incarnation);
        break;
    case FAULT_CUT:
        cut(node->host, any_node()->host);
        break;
    case FAULT_BREAK:
        for (uint32_t i = 1 + sim_roll(4); i > 0; i--) sim_net_break(sim_roll(1000));
        break;
    case FAULT_SLOW:
        sim_trace("%s is slow", node->id);
        sim_process_set_slowness(node->process, 20 + sim_roll(280));
        sim_at(now + sim_between(300, 4000) * SIM_MS, hurry, node, node->incarnation);
        break;
    case FAULT_FAR:
        sim_trace("host %u is far away", node->host);
        sim_net_set_latency(node->host, sim_between(500, 40000) * 1000);
        sim_at(now + sim_between(300, 4000) * SIM_MS, come_near, NULL, node->host);
        break;
    case FAULT_STORE_AWAY:
        sim_trace("the store is away");
        sim_store_set_up(false);
        sim_at(now + sim_between(300, 6000) * SIM_MS, store_back, NULL, 0);
        break;
    case FAULT_STORE_WIPED: {
        const bool restores = sim_chance(0.5);
        if (!sim_wipes_at_any_time && !is_store_safe()) break;
        sim_trace("the store is %s", restores ? "restored" : "wiped");
        sim_store_wipe(restores);
        break;
    }
    case FAULT_DRAIN:
        if (!sim_cluster.model->tables) break;
        while (node->role != MR_ROLE_MEMSHARD) node = any_node();
        sim_trace("%s is drained", node->id);
        node->is_draining = true;
        sim_at(now + sim_between(2000, 9000) * SIM_MS, end_drain, node, 0);
        break;
    case FAULT_REPLICAS: {
        const uint32_t replicas = 1 + sim_roll(sim_cluster.replicas + 1);
        sim_trace("%u replicas are wanted", replicas);
        sim_world_put_model(replicas);
        break;
    }
    default:
        cut(node->host, SIM_STORE_HOST);
    }
}

static void strike(void *context, uint64_t number) {
    static const uint8_t weights[FAULT_KINDS] = {6, 5, 4, 4, 3, 3, 1, 1, 1, 4, 2};
    sim_node *node = any_node();
    uint32_t roll = sim_roll(34), kind = 0;
    (void)context, (void)number;
    if (f.is_healed) return;
    while (roll >= weights[kind]) roll -= weights[kind++];
    if (!node->process || !sim_process_runs(node->process)) return;
    sim_requests_note_fault();
    f.count++;
    act((fault_kind)kind, node);
}

static void keep(void *context, uint64_t number) {
    (void)context, (void)number;
    sim_store_keep();
}

void sim_faults_plan(int64_t from_ns, int64_t until_ns, uint32_t count) {
    memset(&f, 0, sizeof(f));
    sim_at(sim_between(from_ns, until_ns), keep, NULL, 0);
    for (uint32_t i = 0; i < count; i++) sim_at(sim_between(from_ns, until_ns), strike, NULL, 0);
}

void sim_faults_heal(void) {
    f.is_healed = true;
    for (uint32_t a = 0; a < SIM_HOSTS; a++) {
        sim_net_set_latency(a, 0);
        for (uint32_t b = 0; b < SIM_HOSTS; b++)
            if (sim_net_is_cut(a, b)) sim_net_cut(a, b, false);
    }
    sim_store_set_up(true);
    for (uint32_t i = 0; i < sim_cluster.node_count; i++) {
        sim_node *node = &sim_cluster.nodes[i];
        if (!node->process) {
            sim_node_start(node);
            continue;
        }
        if (!sim_process_runs(node->process)) go_on(node, node->incarnation);
        sim_process_set_slowness(node->process, 1);
        node->is_draining = false;
    }
    sim_trace("all is mended");
}

uint32_t sim_faults_count(void) {
    return f.count;
}
