/* cluster_find.h - which cluster a command of `memrack` means: --cluster, else the environment's
 * MEMRACK_CLUSTER, else the one `memrack up` noted on this machine under its name.
 * Threads: one. */
#ifndef MR_CLI_CLUSTER_FIND_H
#define MR_CLI_CLUSTER_FIND_H
#include "common/net/agent.h"

/* Rows of an option table; the same names and meanings as those of the roles. */
/* clang-format off */
#define MR_CLUSTER_FIND_OPTIONS(a)                                                                 \
    {"cluster",                                                                                    \
     0,                                                                                            \
     MR_OPT_TEXT,                                                                                  \
     &(a)->cluster,                                                                                \
     0,                                                                                            \
     0,                                                                                            \
     "WHERE",                                                                                      \
     "etcd:HOST:PORT[,..], etcds:.. or a static file (MEMRACK_CLUSTER, or what `up` started)"},    \
        {"cluster-name", 0, MR_OPT_TEXT, &(a)->name, 0, 0, "NAME",                                 \
         "name of the cluster (default)"},                                                         \
        {"tls-ca", 0, MR_OPT_TEXT, &(a)->ca, 0, 0, "FILE", "authority that signs members"},        \
        {"tls-cert", 0, MR_OPT_TEXT, &(a)->cert, 0, 0, "FILE", "the operator's certificate"}, {    \
        "tls-key", 0, MR_OPT_TEXT, &(a)->key, 0, 0, "FILE", "its key"                              \
    }
/* clang-format on */

/* Opens it as an onlooker: nothing is announced. pid (may be NULL): of the `memrack up` that runs
 * it here, or 0. */
mr_status mr_cluster_find(mr_cluster **out, const mr_agent_settings *settings, int64_t *pid,
                          mr_err *err);

/* `memrack up` says what it started. Failing to is only logged. */
void mr_cluster_note_write(const char *name, const char *where);
void mr_cluster_note_remove(const char *name);

#endif
