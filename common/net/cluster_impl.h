/* cluster_impl.h - inside of common/net: a cluster and its two homes. */
#ifndef MR_NET_CLUSTER_IMPL_H
#define MR_NET_CLUSTER_IMPL_H
#include "common/net/cluster.h"

#include <pthread.h>

typedef struct mr_etcd_home mr_etcd_home; /* registry_etcd.c */

struct mr_cluster {
    char *name;
    void (*changed)(void *context);
    void *context;
    mr_etcd_home *etcd;   /* NULL: static */
    pthread_mutex_t lock; /* guards view */
    const mr_view *view;
};

/* Takes the reference over and tells the owner of the cluster. */
void mr_cluster_publish(mr_cluster *cluster, const mr_view *view);

mr_status mr_etcd_home_open(mr_etcd_home **out, mr_cluster *cluster,
                            const mr_cluster_options *options, const char *endpoints, bool is_tls,
                            int64_t deadline_ns, mr_err *err);
void mr_etcd_home_close(mr_etcd_home *home); /* NULL is fine */
void mr_etcd_home_announce(mr_etcd_home *home, const mr_member *self);
void mr_etcd_home_report(mr_etcd_home *home, mr_role role, const char *id);
void mr_etcd_home_campaign(mr_etcd_home *home, const char *id);
mr_cluster_health mr_etcd_home_look(mr_etcd_home *home);

mr_status mr_etcd_home_put_next_map(mr_etcd_home *home, const mr_map_record *map,
                                    int64_t deadline_ns, mr_err *err);
mr_status mr_etcd_home_switch_map(mr_etcd_home *home, const mr_digest *digest, uint64_t epoch,
                                  int64_t deadline_ns, mr_err *err);
mr_status mr_etcd_home_delete_map(mr_etcd_home *home, const mr_digest *digest, int64_t deadline_ns,
                                  mr_err *err);
mr_status mr_etcd_home_put_model(mr_etcd_home *home, const mr_model_record *model,
                                 int64_t deadline_ns, mr_err *err);
mr_status mr_etcd_home_delete_model(mr_etcd_home *home, const char *name, int64_t deadline_ns,
                                    mr_err *err);
mr_status mr_etcd_home_claim(mr_etcd_home *home, const mr_owner_record *owner, int64_t deadline_ns,
                             mr_err *err);

#endif
