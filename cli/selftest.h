/* selftest.h - parts of `memrack selftest`, one for each thing it proves on the operator's hosts.
 */
#ifndef MR_CLI_SELFTEST_H
#define MR_CLI_SELFTEST_H
#include "common/base/status.h"
#include "common/net/agent.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *const *addresses; /* [address_count]; none: an echo server of its own */
    int address_count;
    const char *key_file;           /* of keyed sessions; NULL: none */
    double seconds;                 /* of one measurement */
    int64_t spin_us;                /* -1: where a core is to spare */
    double latency_us, gigabytes_s; /* of the prediction; 0: the transport's usual ones */
    bool require_rdma;
} mr_selftest_fabric_options;

/* Measures round trips and prints them beside what the byte model predicts. */
mr_status mr_selftest_fabric(const mr_selftest_fabric_options *options, mr_err *err);

typedef struct {
    mr_agent_settings where;    /* of a cluster, as cluster_find.h has it */
    const char *const *servers; /* [server_count] instead: "http://HOST:PORT" */
    int server_count;
    const char *model; /* folder: an engine in this process answers too; NULL: none */
    const char *name;  /* of the model, for the servers; NULL: the only one */
    int64_t rounds, tokens, threads;
    int64_t vocabulary; /* ids of prompts are below; 0: the folder's, else 256 */
    int64_t timeout_s;  /* of one answer */
} mr_selftest_cluster_options;

/* Asks every coordinator the same and compares tokens and log probabilities. MR_ERR_MISMATCH: two
 * differ; the sentence says where first. */
mr_status mr_selftest_cluster(const mr_selftest_cluster_options *options, mr_err *err);

#endif
