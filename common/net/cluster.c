/* cluster.c - what both homes of a cluster share: the published view. A static file is read once;
 * all else is in registry_etcd.c. */
#include "common/net/cluster_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

void mr_cluster_publish(mr_cluster *cluster, const mr_view *view) {
    pthread_mutex_lock(&cluster->lock);
    const mr_view *old = cluster->view;
    cluster->view = view;
    pthread_mutex_unlock(&cluster->lock);
    mr_view_release(old);
    if (cluster->changed != NULL) cluster->changed(cluster->context);
}

static mr_status open_static(mr_cluster *cluster, const mr_cluster_options *options, mr_err *err) {
    const mr_status status = mr_view_load(&cluster->view, options->where, err);
    if (status != MR_OK) return status;
    if (options->name != NULL && strcmp(options->name, cluster->view->cluster) != 0)
        return mr_fail(err, MR_ERR_MISMATCH, "%s describes cluster %s, not %s", options->where,
                       cluster->view->cluster, options->name);
    return MR_OK;
}

static mr_status open_home(mr_cluster *cluster, const mr_cluster_options *options,
                           int64_t deadline_ns, mr_err *err) {
    const bool is_plain = strncmp(options->where, "etcd:", 5) == 0;
    const bool is_tls = strncmp(options->where, "etcds:", 6) == 0;

    if (!is_plain && !is_tls) return open_static(cluster, options, err);
    const mr_status status = mr_id_check(cluster->name, "the cluster's name", err);
    if (status != MR_OK) return status;
#ifdef MR_HAVE_ETCD
    return mr_etcd_home_open(&cluster->etcd, cluster, options, options->where + (is_tls ? 6 : 5),
                             is_tls, deadline_ns, err);
#else
    (void)deadline_ns;
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "this build has no etcd client (Debian: libgrpc-dev, libprotobuf-c-dev, "
                   "protobuf-c-compiler): only static clusters work");
#endif
}

mr_status mr_cluster_open(mr_cluster **out, const mr_cluster_options *options, int64_t deadline_ns,
                          mr_err *err) {
    mr_cluster *cluster = mr_alloc(sizeof(*cluster));

    *out = NULL;
    cluster->name = mr_strdup(options->name != NULL ? options->name : "default");
    cluster->changed = options->changed;
    cluster->context = options->context;
    pthread_mutex_init(&cluster->lock, NULL);
    const mr_status status = open_home(cluster, options, deadline_ns, err);
    if (status != MR_OK) {
        mr_cluster_close(cluster);
        return status;
    }
    *out = cluster;
    return MR_OK;
}

void mr_cluster_close(mr_cluster *cluster) {
    if (cluster == NULL) return;
#ifdef MR_HAVE_ETCD
    mr_etcd_home_close(cluster->etcd);
#endif
    mr_view_release(cluster->view);
    pthread_mutex_destroy(&cluster->lock);
    free(cluster->name);
    free(cluster);
}

const mr_view *mr_cluster_view(mr_cluster *cluster) {
    pthread_mutex_lock(&cluster->lock);
    const mr_view *view = mr_view_retain(cluster->view);
    pthread_mutex_unlock(&cluster->lock);
    return view;
}

bool mr_cluster_is_static(const mr_cluster *cluster) {
    return cluster->etcd == NULL;
}

#ifdef MR_HAVE_ETCD
#define AT_HOME(call)                                                                              \
    if (cluster->etcd != NULL) return call;
#else
#define AT_HOME(call) (void)cluster;
#endif

mr_cluster_health mr_cluster_look(mr_cluster *cluster) {
    AT_HOME(mr_etcd_home_look(cluster->etcd))
    (void)cluster;
    return (mr_cluster_health){.is_up = true};
}

/* A static cluster is what its file says: nothing to announce, to report or to win. */
void mr_cluster_announce(mr_cluster *cluster, const mr_member *self) {
    AT_HOME(mr_etcd_home_announce(cluster->etcd, self))
    (void)self;
}

void mr_cluster_report_dead(mr_cluster *cluster, mr_role role, const char *id) {
    AT_HOME(mr_etcd_home_report(cluster->etcd, role, id))
    (void)role, (void)id;
}

void mr_cluster_campaign(mr_cluster *cluster, const char *id) {
    AT_HOME(mr_etcd_home_campaign(cluster->etcd, id))
    (void)id;
}

static mr_status refuse(const mr_cluster *cluster, int64_t deadline_ns, mr_err *err) {
    (void)deadline_ns;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "cluster %s is a static file: nothing in it can change",
                   cluster->name);
}

mr_status mr_cluster_put_next_map(mr_cluster *cluster, const mr_map_record *map,
                                  int64_t deadline_ns, mr_err *err) {
    AT_HOME(mr_etcd_home_put_next_map(cluster->etcd, map, deadline_ns, err))
    (void)map;
    return refuse(cluster, deadline_ns, err);
}

mr_status mr_cluster_switch_map(mr_cluster *cluster, const mr_digest *digest, uint64_t epoch,
                                int64_t deadline_ns, mr_err *err) {
    AT_HOME(mr_etcd_home_switch_map(cluster->etcd, digest, epoch, deadline_ns, err))
    (void)digest, (void)epoch;
    return refuse(cluster, deadline_ns, err);
}

mr_status mr_cluster_delete_map(mr_cluster *cluster, const mr_digest *digest, int64_t deadline_ns,
                                mr_err *err) {
    AT_HOME(mr_etcd_home_delete_map(cluster->etcd, digest, deadline_ns, err))
    (void)digest;
    return refuse(cluster, deadline_ns, err);
}

mr_status mr_cluster_put_model(mr_cluster *cluster, const mr_model_record *model,
                               int64_t deadline_ns, mr_err *err) {
    AT_HOME(mr_etcd_home_put_model(cluster->etcd, model, deadline_ns, err))
    (void)model;
    return refuse(cluster, deadline_ns, err);
}

mr_status mr_cluster_delete_model(mr_cluster *cluster, const char *name, int64_t deadline_ns,
                                  mr_err *err) {
    AT_HOME(mr_etcd_home_delete_model(cluster->etcd, name, deadline_ns, err))
    (void)name;
    return refuse(cluster, deadline_ns, err);
}

mr_status mr_cluster_claim(mr_cluster *cluster, const mr_owner_record *owner, int64_t deadline_ns,
                           mr_err *err) {
    AT_HOME(mr_etcd_home_claim(cluster->etcd, owner, deadline_ns, err))
    (void)owner;
    return refuse(cluster, deadline_ns, err);
}
