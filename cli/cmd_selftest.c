/* cmd_selftest.c - `memrack selftest`: proves on the operator's own machines what the documents
 * promise. Each part has a file of its own (selftest_*.c). */
#include "cli/cli.h"
#include "cli/selftest.h"

#include "common/base/limits.h"

#include <stdbool.h>
#include <stddef.h>

int mr_cmd_selftest(int argc, char **argv) {
    bool fabric = false;
    mr_selftest_fabric_options f = {.seconds = 0.3, .spin_us = -1};
    const char *addresses[MR_MAX_MEMBERS];
    int count = 0;
    const mr_option options[] = {
        {"fabric", 0, MR_OPT_FLAG, &fabric, 0, 0, NULL,
         "round trips over every fabric, beside the prediction"},
        {"seconds", 0, MR_OPT_DOUBLE, &f.seconds, 0.02, 60, "S", "length of one measurement (0.3)"},
        {"spin-us", 0, MR_OPT_INT, &f.spin_us, 0, 1000000, "N",
         "look so long before sleeping (50 where a core is to spare, else 0)"},
        {"session-key-file", 0, MR_OPT_TEXT, &f.key_file, 0, 0, "FILE",
         "64 hex digits: measure keyed sessions"},
        {"require-rdma", 0, MR_OPT_FLAG, &f.require_rdma, 0, 0, NULL,
         "fail unless RDMA was measured"},
        {"latency-us", 0, MR_OPT_DOUBLE, &f.latency_us, 0, 1e6, "N",
         "of the prediction: an empty round trip (by transport)"},
        {"gigabytes-s", 0, MR_OPT_DOUBLE, &f.gigabytes_s, 0, 1e4, "N",
         "of the prediction: bandwidth (by transport)"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack selftest --fabric [ADDR..] [options]",
        .summary =
            "Measures the data plane. ADDR is a running worker's or memshard's: host:port,\n"
            "unix:PATH or ucx:host:port. Without one an echo server of its own is started on\n"
            "this machine. Example: memrack selftest --fabric 10.0.0.2:7600",
        .options = options,
        .positional_max = MR_MAX_MEMBERS};
    mr_err err = {{0}};
    const int done = mr_cli_parse(&spec, argc, argv, addresses, &count);
    if (done >= 0) return done;
    mr_status status = MR_OK;
    if (!fabric) status = mr_fail(&err, MR_ERR_ARGUMENT, "say what to test: --fabric; try --help");
    f.addresses = addresses;
    f.address_count = count;
    if (status == MR_OK) status = mr_selftest_fabric(&f, &err);
    return status == MR_OK ? 0 : mr_cli_fail(argv[0], status, &err);
}
