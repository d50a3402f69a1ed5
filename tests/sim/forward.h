/* forward.h - requests that one simulated coordinator passes on to another: in the place of gRPC
 * between two real cores. */
#ifndef MR_TESTS_SIM_FORWARD_H
#define MR_TESTS_SIM_FORWARD_H
#include "coordinator/forward.h"
#include "tests/sim/node.h"

typedef struct sim_forwarder sim_forwarder;
sim_forwarder *sim_forwarder_open(sim_node *node, sim_client *client);
void sim_forwarder_set_core(sim_forwarder *forwarder, mr_core *core);
mr_forwarder sim_forwarder_of(sim_forwarder *forwarder);
void sim_forwarder_stop(sim_forwarder *forwarder);  /* nothing is passed on any more */
void sim_forwarder_close(sim_forwarder *forwarder); /* after its core */
bool sim_forwarders_are_idle(void);                 /* no try is under way anywhere */

#endif
