/* world.h - one seed: a cluster of chance, requests, faults, and what must hold. */
#ifndef MR_TESTS_SIM_WORLD_H
#define MR_TESTS_SIM_WORLD_H
#include "tests/sim/node.h"

typedef struct {
    uint64_t hash;
    uint32_t requests, exact, failed, lost, degraded, faults;
    uint64_t map_epoch, switches, loads, unloads, drafted, accepted;
    double seconds; /* simulated */
} sim_outcome;

/* Returns when all is well; sim_fail ends the program otherwise. */
sim_outcome sim_world_run(uint64_t seed);

/* requests.c */
void sim_requests_open(void);
void sim_requests_close(void); /* all have ended */
void sim_request_make(sim_node *at, mr_lost_policy lost, bool must_succeed);
void sim_requests_cancel_one(void);
void sim_requests_check(void); /* none is under way for longer than it may be */
uint32_t sim_requests_open_count(void);
void sim_requests_note_fault(void); /* from now on requests may fail as their policy says */
void sim_requests_count(sim_outcome *out);

/* world.c */
void sim_world_put_model(uint32_t replicas); /* an operator's wish */

/* faults.c */
extern bool sim_stages_die_alone, sim_wipes_at_any_time; /* known weak spots */
void sim_faults_plan(int64_t from_ns, int64_t until_ns, uint32_t count);
void sim_faults_heal(void); /* all is whole and runs */
uint32_t sim_faults_count(void);

#endif
