/* agent.h - a process's seat in a cluster: its member record, its control service, its view. What
 * the three roles share, so that each main() only says what is particular to it.
 *
 * An agent opens the cluster (etcd or a static file), serves the control service (gRPC), keeps the
 * member record up to date, and hands session keys out. The role gives callbacks for orders.
 *
 * Threads: open and close from the main thread; everything else from any. changed runs in a thread
 * of the agent's own: after every new view and at least every tick_ms, one call at a time; it may
 * take its time. Memory: options are copied. */
#ifndef MR_NET_AGENT_H
#define MR_NET_AGENT_H
#include "common/base/options.h"
#include "common/net/cluster.h"
#include "common/net/control.h"
#include "common/net/keys.h"

typedef struct mr_agent mr_agent;

/* What an operator says; filled by the rows of MR_AGENT_OPTIONS. */
typedef struct {
    const char *cluster;   /* where; NULL: no cluster */
    const char *name;      /* of the cluster */
    const char *id;        /* of this member; NULL: made of host name and process id */
    const char *control;   /* address of the control service; NULL: "127.0.0.1:0" */
    const char *advertise; /* host others reach us by; NULL: as listened on */
    const char *host_label, *zone, *set;
    const char *ca, *cert, *key; /* TLS of the control service and of etcd */
    bool plain;                  /* control without TLS, asked for by name */
    const char *state_folder;
    int64_t lease_s;
} mr_agent_settings;

/* clang-format off */
#define MR_AGENT_OPTIONS(a)                                                                        \
    {"cluster",   0,                                                                               \
     MR_OPT_TEXT, &(a)->cluster,                                                                   \
     0,           0,                                                                               \
     "WHERE",     "join a cluster: etcd:HOST:PORT[,..], etcds:.. (TLS) or a static file"},         \
        {"cluster-name", 0, MR_OPT_TEXT, &(a)->name, 0, 0, "NAME",                                 \
         "name of the cluster (default)"},                                                         \
        {"id", 0, MR_OPT_TEXT, &(a)->id, 0, 0, "ID", "name of this member (HOST-PID)"},            \
        {"control", 0, MR_OPT_TEXT, &(a)->control,                                                 \
         0,         0, "ADDR",      "where the control service listens (127.0.0.1:0)"},            \
        {"advertise", 0,                                                                           \
         MR_OPT_TEXT, &(a)->advertise,                                                             \
         0,           0,                                                                           \
         "HOST",      "host name or address the others reach this member by (as listened on)"},    \
        {"host-label",                                                                             \
         0,                                                                                        \
         MR_OPT_TEXT,                                                                              \
         &(a)->host_label,                                                                         \
         0,                                                                                        \
         0,                                                                                        \
         "NAME",                                                                                   \
         "failure domain: the machine (its host name)"},                                           \
        {"zone", 0, MR_OPT_TEXT, &(a)->zone, 0, 0, "NAME", "failure domain: the zone or rack"},    \
        {"set", 0, MR_OPT_TEXT, &(a)->set, 0, 0, "NAME", "replica set this member belongs to"},    \
        {"tls-ca", 0, MR_OPT_TEXT, &(a)->ca, 0, 0, "FILE", "authority that signs members"},        \
        {"tls-cert", 0, MR_OPT_TEXT, &(a)->cert, 0, 0, "FILE", "this member's certificate"},       \
        {"tls-key", 0, MR_OPT_TEXT, &(a)->key,                                                     \
         0,         0, "FILE",      "its key; the files are read again when they change"},         \
        {"plain-control",                                                                          \
         0,                                                                                        \
         MR_OPT_FLAG,                                                                              \
         &(a)->plain,                                                                              \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "control service without TLS: for one machine or a trusted network"},                     \
        {"state-folder",                                                                           \
         0,                                                                                        \
         MR_OPT_TEXT,                                                                              \
         &(a)->state_folder,                                                                       \
         0,                                                                                        \
         0,                                                                                        \
         "DIR",                                                                                    \
         "keeps the last view, to start without etcd"},                                            \
    {                                                                                              \
        "lease", 0, MR_OPT_INT, &(a)->lease_s, 2, 3600, "S", "lease of the member record (30)"     \
    }
/* clang-format on */

typedef struct {
    mr_role role;
    const mr_agent_settings *settings;
    /* Those of the role. join, describe and session_key are the agent's own; the context is the
     * role's. */
    mr_control_handlers handlers;
    void (*changed)(void *context, const mr_view *view); /* may be NULL */
    uint32_t tick_ms;                                    /* 0: 1000 */
    void *context;
} mr_agent_options;

/* Nothing is announced before mr_agent_start. */
mr_status mr_agent_open(mr_agent **out, const mr_agent_options *options, mr_err *err);
/* The member's own fields are there: announces it and begins to call changed. */
void mr_agent_start(mr_agent *agent);
void mr_agent_stop(mr_agent *agent); /* changed is not called any more; orders still come */
/* Takes the record away and ends the control service: nobody is told to come here any more. Setters
 * still work, and announce nothing. */
void mr_agent_leave(mr_agent *agent);
void mr_agent_close(mr_agent *agent); /* takes the record away; NULL is fine */

/* Fields of the member record; each is announced at once, where it has changed. Copied. */
void mr_agent_set_state(mr_agent *agent, mr_member_state state);
void mr_agent_set_address(mr_agent *agent, const char *address, const char *ucx);
void mr_agent_set_http(mr_agent *agent, const char *address);
void mr_agent_set_capacity(mr_agent *agent, uint64_t bytes);
void mr_agent_set_class(mr_agent *agent, const char *numeric_class);
void mr_agent_set_map_epoch(mr_agent *agent, uint64_t epoch);
void mr_agent_set_holdings(mr_agent *agent, const mr_holding *holdings, uint32_t count);
void mr_agent_set_stages(mr_agent *agent, const mr_stage_record *stages, uint32_t count);

const char *mr_agent_id(const mr_agent *agent);
mr_member_state mr_agent_state(mr_agent *agent);
mr_cluster *mr_agent_cluster(mr_agent *agent);
const mr_view *mr_agent_view(mr_agent *agent); /* retained for the caller */
mr_keys *mr_agent_keys(mr_agent *agent);       /* of the sessions we listen for */
mr_rpc_security mr_agent_security(const mr_agent *agent);
uint64_t mr_agent_leader_epoch(const mr_agent *agent);
void mr_agent_wake(mr_agent *agent); /* has changed called soon */
/* Calls leave in a moment: once whoever ordered it has heard that it was done. It must not need
 * the agent any more. */
void mr_leave_soon(void (*leave)(void *context), void *context);

#endif
