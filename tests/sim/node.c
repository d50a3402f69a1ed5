/* node.c - see node.h: what all kinds share. */
#include "tests/sim/node.h"

#include "common/base/mem.h"

#include <stdio.h>
#include <string.h>

struct sim_cluster sim_cluster;

sim_node *sim_node_find(mr_role role, const char *id) {
    for (uint32_t i = 0; i < sim_cluster.node_count; i++) {
        sim_node *n = &sim_cluster.nodes[i];
        if (n->role == role && strcmp(n->id, id) == 0) return n;
    }
    return NULL;
}

bool sim_node_answers(const sim_node *from, const sim_node *to) {
    return from && to && to->process && sim_process_runs(to->process) && from->process &&
           sim_process_runs(from->process) && !sim_net_is_cut(from->host, to->host) &&
           !sim_net_is_cut(to->host, from->host);
}

static void run(void *context) {
    sim_node *node = context;
    switch (node->role) {
    case MR_ROLE_MEMSHARD:
        sim_shard_run(node);
        break;
    case MR_ROLE_WORKER:
        sim_worker_run(node);
        break;
    default:
        sim_coordinator_run(node);
    }
    sim_cluster.open_count--;
}

void sim_node_start(sim_node *node) {
    char name[32];
    snprintf(name, sizeof(name), "%s.%u", node->id, ++node->incarnation);
    node->process = sim_process_new(name, node->host);
    sim_cluster.open_count++;
    sim_trace("%s starts", name);
    sim_spawn(node->process, run, node);
}

void sim_node_kill(sim_node *node, bool is_silent) {
    if (!node->process) return;
    sim_trace("%s is killed%s", sim_process_name(node->process),
              is_silent ? ", its host, too" : "");
    sim_process_kill(node->process, is_silent);
    node->process = NULL;
    node->shard = NULL;
    node->worker = NULL;
    node->coordinator = NULL;
    node->fallen_ns = sim_now();
}

mr_member sim_node_member(sim_node *node) {
    static char hosts[SIM_NODES_MAX][16], empty[] = "", class[] = "sim/f32", address[128];
    char *host = hosts[node - sim_cluster.nodes];
    snprintf(host, sizeof(hosts[0]), "h%u", node->host);
    snprintf(address, sizeof(address), "unix:%s", node->path ? node->path : "");
    return (mr_member){.id = node->id,
                       .role = node->role,
                       .state = node->is_draining ? MR_MEMBER_DRAINING : MR_MEMBER_READY,
                       .is_listed = true,
                       .address = node->path ? address : NULL,
                       .machine = host,
                       .host = host,
                       .zone = empty,
                       .set = empty,
                       .numeric_class = node->role == MR_ROLE_WORKER ? class : empty,
                       .capacity_bytes = node->role == MR_ROLE_MEMSHARD ? 1u << 30 : 0,
                       .incarnation = 1000 + node->incarnation,
                       .wire_min = MR_WIRE_VERSION_MIN,
                       .wire_max = MR_WIRE_VERSION};
}
