/* node.h - the processes of a simulated cluster. Each kind runs the real role: a memshard its
 * holdings behind a real server, a worker its engine behind the real door, a coordinator the real
 * core, with the real decisions about placement and ownership. What comes to them by gRPC in a real
 * cluster (orders, heartbeats, requests that are passed on) comes by calls after a delay. */
#ifndef MR_TESTS_SIM_NODE_H
#define MR_TESTS_SIM_NODE_H
#include "coordinator/core.h"
#include "memshard/holdings.h"
#include "tests/sim/registry.h"
#include "tests/sim/truth.h"
#include "worker/serve.h"

enum { SIM_SHARDS_MAX = 6, SIM_WORKERS_MAX = 6, SIM_COORDINATORS_MAX = 3, SIM_NODES_MAX = 16 };

typedef struct sim_node sim_node;
typedef struct sim_shard sim_shard;
typedef struct sim_worker sim_worker;
typedef struct sim_coordinator sim_coordinator;

/* A place where a process runs, again and again. */
struct sim_node {
    mr_role role;
    char id[16];
    uint32_t host;
    const char *path;     /* of its data plane */
    sim_process *process; /* of the present incarnation; NULL: down */
    uint32_t incarnation;
    int64_t fallen_ns;   /* when it was last killed, or came back to be heard; 0: never */
    bool is_draining;    /* memshards */
    int64_t unloaded_ns; /* the same: when it last did as an order to unload said */
    /* workers */
    char group[16];
    uint32_t stage, stages;
    /* of the present incarnation */
    sim_shard *shard;
    sim_worker *worker;
    sim_coordinator *coordinator;
};

/* The cluster of the seed. */
extern struct sim_cluster {
    sim_node nodes[SIM_NODES_MAX];
    uint32_t node_count;
    sim_model *model;
    mr_grid grid;
    uint32_t replicas;
    mr_lost_policy lost;
    uint32_t kv_blocks, row_cache_bytes;
    uint32_t speculate; /* tokens drafted for an answer in a step; 0: none */
    uint64_t drafted, accepted;
    bool two_trips;
    uint64_t switches, loads, unloads;
    uint32_t open_count; /* incarnations that have not closed everything */
} sim_cluster;

sim_node *sim_node_find(mr_role role, const char *id);
/* Whether a call from one to the other would be answered now. */
bool sim_node_answers(const sim_node *from, const sim_node *to);
void sim_node_start(sim_node *node);
void sim_node_kill(sim_node *node, bool is_silent);
mr_member sim_node_member(sim_node *node); /* borrows */

void sim_shard_run(sim_node *node); /* (fiber) until it is killed, for all three */
void sim_worker_run(sim_node *node);
void sim_coordinator_run(sim_node *node);

/* --- memshards -------------------------------------------------------------------------------- */

/* An order by a leader, as the control service would bring it. */
typedef struct {
    uint64_t leader_epoch;
    mr_digest digest;
    mr_grid grid;
    uint32_t cells[64], cell_count;
    enum { SIM_JOIN, SIM_LOAD, SIM_UNLOAD } kind;
} sim_order;
void sim_shard_order(sim_node *from, sim_node *to, const sim_order *order); /* copied */
bool sim_shard_holds(sim_node *node, const mr_digest *digest, uint32_t cell);

/* --- workers ---------------------------------------------------------------------------------- */

/* Seconds since it heard of its group's owner; negative: not known. */
double sim_worker_owner_silent_s(sim_node *node);

/* --- coordinators ----------------------------------------------------------------------------- */

extern bool sim_stale_records_count;           /* a known weak spot: see main.c */
mr_core *sim_coordinator_core(sim_node *node); /* NULL: not there yet, or down */
sim_client *sim_coordinator_client(sim_node *node);

#endif
