/* cluster.h - a process's part in a cluster: what it sees (views), what it says of itself (its
 * member record), and the few changes that must be agreed on (maps, models, owners, the leader).
 *
 * Two homes: a static file (read once; nothing can be changed) and etcd (registry_etcd.c).
 *
 * Losing etcd stops membership changes, never service. While etcd cannot be reached the last view
 * stays; it is also kept on disk (state_folder) so that a process may even start without etcd. A
 * member whose record vanishes - lease lost, mass delete, a wiped or restored etcd - stays in the
 * view as not listed until its owner says through mr_cluster_report_dead that it does not answer
 * either; our own record, when it vanishes, is put again. Records with a lower epoch than one seen
 * before are refused (a restored etcd), with one log line, and put again by the leader.
 *
 * Threads: open and close from one thread; everything else from any. One thread inside talks to
 * etcd. Callbacks run in that thread and must not block.
 * Deadlines: every call that talks to etcd takes one. */
#ifndef MR_NET_CLUSTER_H
#define MR_NET_CLUSTER_H
#include "common/net/view.h"

typedef struct mr_cluster mr_cluster;

typedef struct {
    /* "etcd:host:port,host:port" (plain), "etcds:host:port,.." (TLS), or the path of a static file
     */
    const char *where;
    const char *name;                           /* of the cluster; NULL: "default" */
    const char *ca_file, *cert_file, *key_file; /* of TLS to etcd; NULL: none */
    const char *state_folder;                   /* last good view; NULL: not kept */
    uint32_t lease_s;                           /* 0: 30 */
    void (*changed)(void *context);             /* a new view is there; may be NULL */
    void *context;
} mr_cluster_options;

/* Waits at most until the deadline for the first view; with a kept view on disk it does not fail
 * when etcd is away. */
mr_status mr_cluster_open(mr_cluster **out, const mr_cluster_options *options, int64_t deadline_ns,
                          mr_err *err);
void mr_cluster_close(mr_cluster *cluster); /* takes our record away; NULL is fine */

const mr_view *mr_cluster_view(mr_cluster *cluster); /* retained for the caller; never NULL */
bool mr_cluster_is_static(const mr_cluster *cluster);
/* For metrics and status: whether etcd answers, seconds since it last did, records refused. */
typedef struct {
    bool is_up;
    double silent_s, lease_ttl_s;
    uint64_t refused_records, reconnects;
} mr_cluster_health;
mr_cluster_health mr_cluster_look(mr_cluster *cluster);

/* Says what we are, now and after every change; kept alive and put again for as long as the cluster
 * is open. The member is copied. Never waits. */
void mr_cluster_announce(mr_cluster *cluster, const mr_member *self);

/* A member that neither answers heartbeats nor is listed leaves the view. */
void mr_cluster_report_dead(mr_cluster *cluster, mr_role role, const char *id);

/* Takes part in the election as coordinator `id`; view->leader tells who won. Ends with close. */
void mr_cluster_campaign(mr_cluster *cluster, const char *id);

/* Compare-and-put. MR_ERR_STALE: somebody else was first; the next view shows what. Leader only
 * (checked in the same transaction): maps and models. */
mr_status mr_cluster_put_next_map(mr_cluster *c, const mr_map_record *map, int64_t deadline_ns,
                                  mr_err *err);
/* The next map of this digest becomes the current one. */
mr_status mr_cluster_switch_map(mr_cluster *c, const mr_digest *digest, uint64_t epoch,
                                int64_t deadline_ns, mr_err *err);
mr_status mr_cluster_delete_map(mr_cluster *c, const mr_digest *digest, int64_t deadline_ns,
                                mr_err *err);
/* epoch 1 creates; epoch n + 1 replaces n. Anyone (operators through `memrack`). */
mr_status mr_cluster_put_model(mr_cluster *c, const mr_model_record *model, int64_t deadline_ns,
                               mr_err *err);
mr_status mr_cluster_delete_model(mr_cluster *c, const char *name, int64_t deadline_ns,
                                  mr_err *err);
/* Takes a group over: owner->epoch must be one more than the current owner's (1: there is none). */
mr_status mr_cluster_claim(mr_cluster *c, const mr_owner_record *owner, int64_t deadline_ns,
                           mr_err *err);

/* A view as one JSON object: what a static file is, and what state_folder keeps.
 *
 *   {"cluster": NAME, "members": [record, ...], "models": [...], "maps": [...], "owners": [...],
 *    "next_maps": [...], "leader": ID, "leader_epoch": N, "unlisted": ["worker/w1", ...]}
 *
 * All but "cluster" may be missing; unknown keys are refused. Every record is read by the parsers
 * of view.h, and one that is not good refuses the whole file. *out has one reference. */
mr_status mr_view_load(const mr_view **out, const char *path, mr_err *err);
mr_status mr_view_save(const mr_view *view, const char *path, mr_err *err);

#endif
