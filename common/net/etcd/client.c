/* client.c - libetcd: the client, its calls and their repetition, and what its threads share. */
#include "common/net/etcd/etcd_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 16 << 20, KEEPALIVE_MS = 6000, CONNECT_MS = 1000 };

etcd_bytes etcd_text(const char *text) {
    return (etcd_bytes){text, text != NULL ? strlen(text) : 0};
}

mr_status etcd_open(etcd_client **out, const etcd_options *options, mr_err *err) {
    etcd_client *client = mr_alloc(sizeof(*client));
    const bool is_plain = options->ca_file == NULL && options->cert_file == NULL;
    /* hasleader: an endpoint cut off from the others says so, where it would let us wait. etcd
     * takes pings every five seconds at most. */
    const mr_rpc_channel_options channel = {
        .targets = options->endpoints,
        .security = {options->ca_file, options->cert_file, options->key_file, is_plain},
        .server_name = options->server_name,
        .message_bytes = options->message_bytes ? options->message_bytes : MESSAGE_BYTES,
        .keepalive_ms = KEEPALIVE_MS,
        .connect_ms = CONNECT_MS,
        .header_name = "hasleader",
        .header_value = "true"};

    *out = NULL;
    const mr_status status = mr_rpc_channel_open(&client->channel, &channel, err);
    if (status != MR_OK) {
        free(client);
        return mr_fail_prefix(err, status, "etcd");
    }
    pthread_mutex_init(&client->callbacks, NULL);
    atomic_init(&client->is_interrupted, false);
    *out = client;
    return MR_OK;
}

void etcd_interrupt(etcd_client *client) {
    atomic_store(&client->is_interrupted, true);
    mr_rpc_channel_cancel(client->channel);
}

void etcd_close(etcd_client *client) {
    if (client == NULL) return;
    mr_rpc_channel_close(client->channel);
    pthread_mutex_destroy(&client->callbacks);
    free(client);
}

/* ---- asking ---- */

uint8_t *etcd_pack(const ProtobufCMessage *message, size_t *bytes) {
    *bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *data = mr_alloc(*bytes + 1);
    protobuf_c_message_pack(message, data);
    return data;
}

void etcd_free_message(void *message) {
    if (message != NULL) protobuf_c_message_free_unpacked(message, NULL);
}

static int64_t pause_ms(uint32_t *seed, uint32_t failures) {
    int64_t longest = ETCD_PAUSE_MS_MIN << (failures < 6 ? failures : 6);
    if (longest > ETCD_PAUSE_MS_MAX) longest = ETCD_PAUSE_MS_MAX;
    return longest / 2 + rand_r(seed) % (longest / 2 + 1);
}

static uint32_t new_seed(void) {
    return (uint32_t)mr_now_ns() ^ ((uint32_t)getpid() << 16);
}

/* May the same request be sent once more after this failure? */
static bool may_repeat(const etcd_method *method, mr_status status, const mr_rpc_reply *reply,
                       const mr_err *err) {
    if (status != MR_ERR_UNAVAILABLE && status != MR_ERR_TIMEOUT) return false;
    if (method->is_read || !reply->was_sent) return true;
    /* refused at the door: see hasleader */
    return status == MR_ERR_UNAVAILABLE && strstr(err->text, "etcdserver: no leader") != NULL;
}

mr_status etcd_ask(etcd_client *client, const etcd_method *method, const ProtobufCMessage *request,
                   int64_t deadline_ns, ProtobufCMessage **out, int *code, mr_err *err) {
    size_t bytes;
    uint8_t *data = etcd_pack(request, &bytes);
    uint32_t seed = new_seed(), failures = 0;
    mr_rpc_reply reply;
    mr_err own;
    mr_status status;

    *out = NULL;
    if (err == NULL) err = &own;
    err->text[0] = 0;
    for (;;) {
        const int64_t attempt_ns = mr_now_ns() + (int64_t)ETCD_ATTEMPT_MS * ETCD_NS_OF_MS;
        const bool is_short = method->is_read && attempt_ns < deadline_ns;
        status = mr_rpc_ask(client->channel, method->path, data, bytes,
                            is_short ? attempt_ns : deadline_ns, &reply, err);
        if (status == MR_OK || !may_repeat(method, status, &reply, err)) break;
        const int64_t pause_ns = pause_ms(&seed, failures++) * ETCD_NS_OF_MS;
        if (mr_now_ns() + pause_ns >= deadline_ns || atomic_load(&client->is_interrupted)) break;
        nanosleep(&(struct timespec){pause_ns / 1000000000, pause_ns % 1000000000}, NULL);
    }
    free(data);
    if (code != NULL) *code = reply.code;
    if (status != MR_OK) return mr_fail_prefix(err, status, "etcd");
    *out = protobuf_c_message_unpack(method->answer, NULL, reply.bytes, reply.data);
    free(reply.data);
    if (*out == NULL)
        return mr_fail(err, MR_ERR_FORMAT, "etcd: the answer to %s cannot be read", method->path);
    return MR_OK;
}

/* ---- threads of watches and leases ---- */

void etcd_worker_start(etcd_worker *worker, void *(*run)(void *context), void *context) {
    pthread_condattr_t clock;

    pthread_mutex_init(&worker->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&worker->changed, &clock);
    pthread_condattr_destroy(&clock);
    worker->seed = new_seed() ^ (uint32_t)(uintptr_t)worker;
    if (pthread_create(&worker->thread, NULL, run, context) != 0) abort(); /* as mr_alloc */
}

void etcd_worker_stop(etcd_worker *worker) {
    pthread_mutex_lock(&worker->lock);
    worker->is_stopping = true;
    if (worker->stream != NULL) mr_rpc_stream_cancel(worker->stream);
    pthread_cond_broadcast(&worker->changed);
    pthread_mutex_unlock(&worker->lock);
    pthread_join(worker->thread, NULL);
    pthread_mutex_destroy(&worker->lock);
    pthread_cond_destroy(&worker->changed);
}

bool etcd_worker_sleep(etcd_worker *worker, int64_t ms) {
    const int64_t until_ns = mr_now_ns() + ms * ETCD_NS_OF_MS;
    const struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    int waited = 0;

    pthread_mutex_lock(&worker->lock);
    while (!worker->is_stopping && waited != ETIMEDOUT)
        waited = pthread_cond_timedwait(&worker->changed, &worker->lock, &until);
    const bool goes_on = !worker->is_stopping;
    pthread_mutex_unlock(&worker->lock);
    return goes_on;
}

bool etcd_worker_pause(etcd_worker *worker, uint32_t failures) {
    return etcd_worker_sleep(worker, pause_ms(&worker->seed, failures));
}

mr_status etcd_worker_open_stream(etcd_worker *worker, etcd_client *client, const char *path,
                                  mr_err *err) {
    mr_rpc_stream *stream;
    mr_status status = mr_rpc_stream_open(&stream, client->channel, path, MR_RPC_NO_DEADLINE, err);
    if (status != MR_OK) return status;
    pthread_mutex_lock(&worker->lock);
    worker->stream = stream;
    const bool is_stopping = worker->is_stopping;
    pthread_mutex_unlock(&worker->lock);
    if (is_stopping) {
        etcd_worker_close_stream(worker);
        status = mr_fail(err, MR_ERR_CANCELLED, "closed on our side");
    }
    return status;
}

void etcd_worker_close_stream(etcd_worker *worker) {
    pthread_mutex_lock(&worker->lock);
    mr_rpc_stream *stream = worker->stream;
    worker->stream = NULL;
    pthread_mutex_unlock(&worker->lock);
    mr_rpc_stream_close(stream);
}
