/* registry.h - what the processes of a simulated cluster know of each other: a store as etcd is one
 * (linear, with revisions, leases, an election), and each process's view of it, built with the real
 * builder out of texts that are read by the real parsers.
 *
 * A view follows the store with a delay; where the store is away, or the way to it is cut, it stays
 * as it is. A record that vanishes with its lease, or because the store was wiped, leaves its
 * member in the view as not listed; maps, models and owners that a view has and a wiped or restored
 * store lacks are put again by the leader. */
#ifndef MR_TESTS_SIM_REGISTRY_H
#define MR_TESTS_SIM_REGISTRY_H
#include "common/net/view.h"
#include "tests/sim/sim.h"

enum { SIM_STORE_HOST = 0 };

typedef struct sim_client sim_client;

void sim_store_open(void);
void sim_store_close(void); /* all clients have left */
void sim_store_set_up(bool is_up);
bool sim_store_is_known(void); /* every coordinator that lives has all of it in its view */
void sim_store_keep(void);     /* a backup */
void sim_store_wipe(bool restores);
void sim_store_put_model(const mr_model_record *model);      /* an operator's */
const mr_model_record *sim_store_model(const char *name);    /* as the next one */
const mr_map_record *sim_store_map(const mr_digest *digest); /* owned by the store; NULL: none */

/* Begins with the last view of an earlier client of this id, which is kept on disk. is_candidate:
 * for the leader. */
sim_client *sim_client_join(sim_process *process, const char *id, bool is_candidate);
void sim_client_leave(sim_client *client); /* its records stay until their lease is over */
const mr_view *sim_client_view(const sim_client *client); /* borrowed until the next wait */
bool sim_client_is_up(const sim_client *client);
bool sim_client_leads(const sim_client *client); /* as far as its view knows */
void sim_client_announce(sim_client *client, const mr_member *self);
void sim_client_report_dead(sim_client *client, mr_role role, const char *id);
/* (fiber) As in cluster.h. A change may be made though its answer is lost. */
mr_status sim_client_put_next_map(sim_client *client, const mr_map_record *map);
mr_status sim_client_switch_map(sim_client *client, const mr_digest *digest, uint64_t epoch);
mr_status sim_client_delete_map(sim_client *client, const mr_digest *digest);
mr_status sim_client_claim(sim_client *client, const char *group, uint64_t epoch);

#endif
