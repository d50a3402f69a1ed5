/* watch.c - libetcd: watches, each with a stream and a thread of its own.
 *
 * A watch knows the revision up to which it has told everything. After a broken stream it goes on
 * from the next one. Where that cannot be - compacted away, or the store is another one or has
 * gone back in time - it lists everything anew and says so by calling `listed`. A store that was
 * wiped would otherwise let us wait for a revision it reaches only in years. */
#include "common/net/etcd/etcd_impl.h"

#include <stdlib.h>
#include <string.h>

enum { CREATE_MS = 3000, LIST_MS = 5000 };

struct etcd_watch {
    etcd_client *client;
    etcd_worker worker;
    etcd_watch_options options; /* key is owned */
    ProtobufCBinaryData end;    /* owned */
    /* of the thread */
    int64_t told; /* everything up to this revision was told; -1: list first */
    uint64_t cluster_id;
    bool is_connected;
};

static void tell_connected(etcd_watch *watch, bool is_connected) {
    if (watch->is_connected == is_connected) return;
    watch->is_connected = is_connected;
    if (watch->options.connected == NULL) return;
    pthread_mutex_lock(&watch->client->callbacks);
    watch->options.connected(watch->options.context, is_connected);
    pthread_mutex_unlock(&watch->client->callbacks);
}

static mr_status list_all(etcd_watch *watch, mr_err *err) {
    const etcd_query query = {.key = watch->options.key, .is_prefix = watch->options.is_prefix};
    const int64_t deadline_ns = mr_now_ns() + (int64_t)LIST_MS * ETCD_NS_OF_MS;
    etcd_list *list;

    const mr_status status = etcd_get(watch->client, &query, deadline_ns, &list, err);
    if (status != MR_OK) return status;
    pthread_mutex_lock(&watch->client->callbacks);
    watch->options.listed(watch->options.context, list);
    pthread_mutex_unlock(&watch->client->callbacks);
    watch->told = list->revision;
    watch->cluster_id = list->cluster_id;
    etcd_list_free(list);
    return MR_OK;
}

static mr_status next_response(etcd_watch *watch, int64_t deadline_ns,
                               Etcdserverpb__WatchResponse **out, mr_err *err) {
    uint8_t *data;
    size_t bytes;

    *out = NULL;
    const mr_status status =
        mr_rpc_stream_read(watch->worker.stream, &data, &bytes, deadline_ns, NULL, err);
    if (status != MR_OK) return status;
    if (data == NULL) return mr_fail(err, MR_ERR_UNAVAILABLE, "etcd ended the watch");
    *out = etcdserverpb__watch_response__unpack(NULL, bytes, data);
    free(data);
    if (*out == NULL) return mr_fail(err, MR_ERR_FORMAT, "etcd's watch cannot be read");
    return MR_OK;
}

/* The stream, and etcd's word that the watch is there. MR_ERR_STALE: list first. */
static mr_status create(etcd_watch *watch, mr_err *err) {
    const int64_t deadline_ns = mr_now_ns() + (int64_t)CREATE_MS * ETCD_NS_OF_MS;
    Etcdserverpb__WatchRequest request = ETCDSERVERPB__WATCH_REQUEST__INIT;
    Etcdserverpb__WatchCreateRequest made = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    static uint8_t zero[1];
    size_t bytes;

    mr_status status =
        etcd_worker_open_stream(&watch->worker, watch->client, "/etcdserverpb.Watch/Watch", err);
    if (status != MR_OK) return status;
    made.key = watch->options.key.bytes > 0 ? etcd_binary(watch->options.key)
                                            : (ProtobufCBinaryData){1, zero};
    made.range_end = watch->end;
    made.start_revision = watch->told + 1;
    made.progress_notify = 1;
    request.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    request.create_request = &made;
    uint8_t *data = etcd_pack(&request.base, &bytes);
    status = mr_rpc_stream_write(watch->worker.stream, data, bytes, deadline_ns, err);
    free(data);
    if (status != MR_OK) return status;
    Etcdserverpb__WatchResponse *response;
    status = next_response(watch, deadline_ns, &response, err);
    if (status != MR_OK) return status;
    const Etcdserverpb__ResponseHeader *header = response->header;
    if (!response->created || header == NULL)
        status = mr_fail(err, MR_ERR_FORMAT, "etcd did not create the watch");
    else if (response->canceled)
        status =
            mr_fail(err, MR_ERR_STALE, "etcd refuses the watch: %.200s", response->cancel_reason);
    else if ((watch->cluster_id != 0 && header->cluster_id != watch->cluster_id) ||
             header->revision < watch->told)
        status = mr_fail(err, MR_ERR_STALE, "this is another store, or an older one");
    if (status == MR_OK) watch->cluster_id = header->cluster_id;
    etcd_free_message(response);
    return status;
}

static void tell_events(etcd_watch *watch, const Etcdserverpb__WatchResponse *response) {
    etcd_event *events = mr_alloc_array(response->n_events + 1, sizeof(*events));
    size_t count = 0;
    int64_t last = watch->told;

    for (size_t i = 0; i < response->n_events; i++) {
        const Etcdserverpb__Event *from = response->events[i];
        /* told already: a server that repeats itself is not believed twice */
        if (from->kv == NULL || from->kv->mod_revision <= watch->told) continue;
        events[count].is_delete = from->type == ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE;
        etcd_kv_take(&events[count++].kv, from->kv);
        if (from->kv->mod_revision > last) last = from->kv->mod_revision;
    }
    if (count > 0) {
        pthread_mutex_lock(&watch->client->callbacks);
        watch->options.changed(watch->options.context, events, count, last);
        pthread_mutex_unlock(&watch->client->callbacks);
    }
    watch->told = last;
    for (size_t i = 0; i < count; i++) etcd_kv_clear(&events[i].kv);
    free(events);
}

/* Follows the stream until it breaks. MR_ERR_STALE: list first. */
static mr_status follow(etcd_watch *watch, mr_err *err) {
    for (;;) {
        Etcdserverpb__WatchResponse *response;
        mr_status status = next_response(watch, MR_RPC_NO_DEADLINE, &response, err);
        if (status != MR_OK) return status;
        if (response->compact_revision > 0)
            status = mr_fail(err, MR_ERR_STALE, "compacted at revision %lld",
                             (long long)response->compact_revision);
        else if (response->canceled)
            status = mr_fail(err, MR_ERR_UNAVAILABLE, "etcd ended the watch: %.200s",
                             response->cancel_reason);
        else
            tell_events(watch, response);
        if (status == MR_OK && response->n_events == 0 && response->header != NULL &&
            response->header->revision > watch->told)
            watch->told = response->header->revision; /* progress: nothing for us up to there */
        etcd_free_message(response);
        if (status != MR_OK) return status;
    }
}

static void *run_watch(void *context) {
    etcd_watch *watch = context;
    etcd_worker *worker = &watch->worker;
    uint32_t failures = 0;

    do {
        mr_err err = {{0}};
        mr_status status = watch->told < 0 ? list_all(watch, &err) : MR_OK;
        if (status == MR_OK) status = create(watch, &err);
        if (status == MR_OK) {
            failures = 0;
            tell_connected(watch, true);
            status = follow(watch, &err);
        }
        if (status == MR_ERR_TIMEOUT) mr_rpc_channel_rotate(watch->client->channel);
        etcd_worker_close_stream(worker);
        tell_connected(watch, false);
        if (status == MR_ERR_STALE) watch->told = -1;
    } while (etcd_worker_pause(worker, failures++));
    return NULL;
}

mr_status etcd_watch_open(etcd_watch **out, etcd_client *client, const etcd_watch_options *options,
                          mr_err *err) {
    *out = NULL;
    if (options->listed == NULL || options->changed == NULL)
        return mr_fail(err, MR_ERR_ARGUMENT, "a watch needs both callbacks");
    if (options->from_revision < 0) return mr_fail(err, MR_ERR_RANGE, "revisions begin with 1");
    etcd_watch *watch = mr_alloc(sizeof(*watch));
    watch->client = client;
    watch->options = *options;
    watch->options.key.data =
        mr_strndup(options->key.data != NULL ? options->key.data : "", options->key.bytes);
    if (options->is_prefix) watch->end = etcd_prefix_end(options->key);
    watch->told = options->from_revision > 0 ? options->from_revision - 1 : -1;
    etcd_worker_start(&watch->worker, run_watch, watch);
    *out = watch;
    return MR_OK;
}

void etcd_watch_close(etcd_watch *watch) {
    if (watch == NULL) return;
    etcd_worker_stop(&watch->worker);
    free((void *)(uintptr_t)watch->options.key.data);
    free(watch->end.data);
    free(watch);
}
