/* selftest.h - parts of `memrack selftest`, one for each thing it proves on the operator's hosts.
 */
#ifndef MR_CLI_SELFTEST_H
#define MR_CLI_SELFTEST_H
#include "common/base/status.h"

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

#endif
