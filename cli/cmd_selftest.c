/* cmd_selftest.c - `memrack selftest`: proves on the operator's own machines what the documents
 * promise. Each part has a file of its own (selftest_*.c). */
#include "cli/cli.h"
#include "cli/selftest.h"

#include "common/base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

enum { HTTP_PREFIX_BYTES = 7 };

/* --cluster takes one address of a cluster, or any number of coordinators. */
static mr_status run_cluster(mr_selftest_cluster_options *c, const char *const *given, int count,
                             mr_err *err) {
    int servers = 0;
    for (int i = 0; i < count; i++) servers += !strncmp(given[i], "http://", HTTP_PREFIX_BYTES);
    if (servers != count && count > 1)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--cluster takes the address of one cluster, or http:// addresses of "
                       "coordinators");
    if (servers == 0 && count == 1) c->where.cluster = given[0];
    c->servers = given;
    c->server_count = servers;
    return mr_selftest_cluster(c, err);
}

static mr_status run(bool fabric, bool cluster, mr_selftest_fabric_options *f,
                     mr_selftest_cluster_options *c, const char *const *given, int count,
                     mr_err *err) {
    if (fabric == cluster)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "say what to test: --fabric or --cluster, one of them; try --help");
    if (cluster) return run_cluster(c, given, count, err);
    f->addresses = given;
    f->address_count = count;
    return mr_selftest_fabric(f, err);
}

int mr_cmd_selftest(int argc, char **argv) {
    bool fabric = false, cluster = false;
    mr_selftest_fabric_options f = {.seconds = 0.3, .spin_us = -1};
    mr_selftest_cluster_options c = {.rounds = 1, .tokens = 16, .timeout_s = 120};
    const char *given[MR_MAX_MEMBERS];
    int count = 0;
    const mr_option options[] = {
        {"fabric", 0, MR_OPT_FLAG, &fabric, 0, 0, NULL,
         "round trips over every fabric, beside the prediction"},
        {"cluster", 0, MR_OPT_FLAG, &cluster, 0, 0, NULL,
         "same answers from every coordinator of a running cluster"},
        {"seconds", 0, MR_OPT_DOUBLE, &f.seconds, 0.02, 60, "S",
         "fabric: length of one measurement (0.3)"},
        {"spin-us", 0, MR_OPT_INT, &f.spin_us, 0, 1000000, "N",
         "fabric: look so long before sleeping (50 where a core is to spare, else 0)"},
        {"session-key-file", 0, MR_OPT_TEXT, &f.key_file, 0, 0, "FILE",
         "fabric: 64 hex digits: measure keyed sessions"},
        {"require-rdma", 0, MR_OPT_FLAG, &f.require_rdma, 0, 0, NULL,
         "fabric: fail unless RDMA was measured"},
        {"latency-us", 0, MR_OPT_DOUBLE, &f.latency_us, 0, 1e6, "N",
         "fabric: of the prediction: an empty round trip (by transport)"},
        {"gigabytes-s", 0, MR_OPT_DOUBLE, &f.gigabytes_s, 0, 1e4, "N",
         "fabric: of the prediction: bandwidth (by transport)"},
        {"model", 'm', MR_OPT_TEXT, &c.model, 0, 0, "DIR",
         "cluster: compare with one process that has the model's folder, too"},
        {"model-name", 0, MR_OPT_TEXT, &c.name, 0, 0, "NAME",
         "cluster: which model, where it serves several"},
        {"rounds", 0, MR_OPT_INT, &c.rounds, 1, 1000000, "N", "cluster: ask so often (1)"},
        {"tokens", 0, MR_OPT_INT, &c.tokens, 1, 1024, "N", "cluster: length of an answer (16)"},
        {"threads", 't', MR_OPT_INT, &c.threads, 0, MR_MAX_THREADS, "N",
         "cluster: of the one process (0: one per core)"},
        {"vocabulary", 0, MR_OPT_INT, &c.vocabulary, 0, MR_MAX_VOCAB, "N",
         "cluster: prompts have token ids below N (the folder's, else 256)"},
        {"timeout", 0, MR_OPT_INT, &c.timeout_s, 1, 3600, "S", "cluster: of an answer (120)"},
        {"cluster-name", 0, MR_OPT_TEXT, &c.where.name, 0, 0, "NAME",
         "cluster: its name (default)"},
        {"tls-ca", 0, MR_OPT_TEXT, &c.where.ca, 0, 0, "FILE", "cluster: authority of its members"},
        {"tls-cert", 0, MR_OPT_TEXT, &c.where.cert, 0, 0, "FILE",
         "cluster: the operator's certificate"},
        {"tls-key", 0, MR_OPT_TEXT, &c.where.key, 0, 0, "FILE", "cluster: its key"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack selftest --fabric [ADDR..] | --cluster [WHERE | http://HOST:PORT ..]",
        .summary =
            "--fabric measures the data plane. ADDR is a running worker's or memshard's: "
            "host:port,\n"
            "unix:PATH or ucx:host:port. Without one an echo server of its own is started on\n"
            "this machine. Example: memrack selftest --fabric 10.0.0.2:7600\n"
            "--cluster proves that a cluster gives the answers of one process: the same prompts "
            "go\n"
            "to every coordinator, answers are compared token by token and digit by digit. WHERE "
            "is\n"
            "as in `memrack status`. Kill what you like meanwhile.\n"
            "Example: memrack selftest --cluster etcd:10.0.0.1:2379 --model models/demo --rounds "
            "20",
        .options = options,
        .positional_max = MR_MAX_MEMBERS};
    mr_err err = {{0}};
    const int done = mr_cli_parse(&spec, argc, argv, given, &count);
    if (done >= 0) return done;
    const mr_status status = run(fabric, cluster, &f, &c, given, count, &err);
    return status == MR_OK ? 0 : mr_cli_fail(argv[0], status, &err);
}
