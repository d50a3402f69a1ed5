/* lease.c - libetcd: leases, and the thread that keeps one alive.
 *
 * Three keep-alives per time to live: two may be lost. Each must be answered before the next one is
 * due, else the stream is given up and another endpoint is tried. Only etcd's own word - a time to
 * live of zero - ends a lease for us; its silence may be an outage that we outlive, and etcd gives
 * leases their full time again after an election. */
#include "common/net/etcd/etcd_impl.h"

#include <stdlib.h>

static const etcd_method grant_method = {"/etcdserverpb.Lease/LeaseGrant",
                                         &etcdserverpb__lease_grant_response__descriptor, false};
static const etcd_method revoke_method = {"/etcdserverpb.Lease/LeaseRevoke",
                                          &etcdserverpb__lease_revoke_response__descriptor, false};

struct etcd_lease {
    etcd_client *client;
    etcd_worker worker;
    int64_t id, ttl_s;
    void (*gone)(void *context);
    void *context;
    atomic_bool is_gone;
    _Atomic int64_t runs_out_ns;
};

mr_status etcd_lease_grant(etcd_client *client, int64_t ttl_s, int64_t deadline_ns, int64_t *id,
                           int64_t *granted_ttl_s, mr_err *err) {
    Etcdserverpb__LeaseGrantRequest request = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    ProtobufCMessage *answer;

    request.ttl = ttl_s;
    mr_status status =
        etcd_ask(client, &grant_method, &request.base, deadline_ns, &answer, NULL, err);
    if (status != MR_OK) return status;
    const Etcdserverpb__LeaseGrantResponse *grant =
        (const Etcdserverpb__LeaseGrantResponse *)answer;
    if (grant->id == 0 || grant->ttl <= 0)
        status = mr_fail(err, MR_ERR_UNAVAILABLE, "etcd grants no lease: %.200s", grant->error);
    *id = grant->id;
    if (granted_ttl_s != NULL) *granted_ttl_s = grant->ttl;
    etcd_free_message(answer);
    return status;
}

mr_status etcd_lease_revoke(etcd_client *client, int64_t id, int64_t deadline_ns, mr_err *err) {
    Etcdserverpb__LeaseRevokeRequest request = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    ProtobufCMessage *answer;

    request.id = id;
    const mr_status status =
        etcd_ask(client, &revoke_method, &request.base, deadline_ns, &answer, NULL, err);
    etcd_free_message(answer);
    return status;
}

/* One keep-alive and its answer, whose time to live comes out. */
static mr_status keep_alive(etcd_lease *lease, int64_t deadline_ns, int64_t *ttl_s, mr_err *err) {
    Etcdserverpb__LeaseKeepAliveRequest request = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    size_t bytes;

    request.id = lease->id;
    uint8_t *data = etcd_pack(&request.base, &bytes);
    mr_status status = mr_rpc_stream_write(lease->worker.stream, data, bytes, deadline_ns, err);
    free(data);
    if (status != MR_OK) return status;
    status = mr_rpc_stream_read(lease->worker.stream, &data, &bytes, deadline_ns, NULL, err);
    if (status != MR_OK) return status;
    if (data == NULL) return mr_fail(err, MR_ERR_UNAVAILABLE, "etcd ended the stream");
    Etcdserverpb__LeaseKeepAliveResponse *answer =
        etcdserverpb__lease_keep_alive_response__unpack(NULL, bytes, data);
    free(data);
    if (answer == NULL) return mr_fail(err, MR_ERR_FORMAT, "etcd's keep-alive cannot be read");
    *ttl_s = answer->ttl;
    etcd_free_message(answer);
    return MR_OK;
}

static void *run_lease(void *context) {
    etcd_lease *lease = context;
    etcd_worker *worker = &lease->worker;
    const int64_t every_ms = lease->ttl_s * 1000 / 3;
    uint32_t failures = 0;
    bool goes_on = etcd_worker_sleep(worker, every_ms);

    while (goes_on) {
        mr_err err;
        int64_t ttl_s = 0;
        const int64_t now = mr_now_ns();
        mr_status status = MR_OK;
        if (worker->stream == NULL)
            status = etcd_worker_open_stream(worker, lease->client,
                                             "/etcdserverpb.Lease/LeaseKeepAlive", &err);
        if (status == MR_OK)
            status = keep_alive(lease, now + every_ms * ETCD_NS_OF_MS, &ttl_s, &err);
        if (status != MR_OK) {
            etcd_worker_close_stream(worker);
            if (status == MR_ERR_TIMEOUT) mr_rpc_channel_rotate(lease->client->channel);
            goes_on = etcd_worker_pause(worker, failures++);
            continue;
        }
        failures = 0;
        if (ttl_s <= 0) {
            atomic_store(&lease->is_gone, true);
            pthread_mutex_lock(&lease->client->callbacks);
            if (lease->gone != NULL) lease->gone(lease->context);
            pthread_mutex_unlock(&lease->client->callbacks);
            break;
        }
        atomic_store(&lease->runs_out_ns, now + ttl_s * 1000 * ETCD_NS_OF_MS);
        goes_on = etcd_worker_sleep(worker, every_ms);
    }
    etcd_worker_close_stream(worker);
    return NULL;
}

mr_status etcd_lease_open(etcd_lease **out, etcd_client *client, int64_t ttl_s,
                          void (*gone)(void *context), void *context, int64_t deadline_ns,
                          mr_err *err) {
    int64_t id, granted_s;
    const int64_t now = mr_now_ns();

    *out = NULL;
    const mr_status status = etcd_lease_grant(client, ttl_s, deadline_ns, &id, &granted_s, err);
    if (status != MR_OK) return status;
    etcd_lease *lease = mr_alloc(sizeof(*lease));
    *lease = (etcd_lease){
        .client = client, .id = id, .ttl_s = granted_s, .gone = gone, .context = context};
    atomic_init(&lease->is_gone, false);
    atomic_init(&lease->runs_out_ns, now + granted_s * 1000 * ETCD_NS_OF_MS);
    etcd_worker_start(&lease->worker, run_lease, lease);
    *out = lease;
    return MR_OK;
}

void etcd_lease_close(etcd_lease *lease, int64_t deadline_ns) {
    if (lease == NULL) return;
    etcd_worker_stop(&lease->worker);
    if (deadline_ns != 0 && !atomic_load(&lease->is_gone))
        etcd_lease_revoke(lease->client, lease->id, deadline_ns, NULL); /* else it runs out */
    free(lease);
}

int64_t etcd_lease_id(const etcd_lease *lease) {
    return lease->id;
}

bool etcd_lease_is_gone(etcd_lease *lease) {
    return atomic_load(&lease->is_gone);
}

double etcd_lease_left_s(etcd_lease *lease) {
    return (double)(atomic_load(&lease->runs_out_ns) - mr_now_ns()) * 1e-9;
}
