/* etcd_impl.h - inside of libetcd: the client, and how its parts ask. */
#ifndef MR_NET_ETCD_ETCD_IMPL_H
#define MR_NET_ETCD_ETCD_IMPL_H
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/etcd/etcd.h"
#include "common/net/rpc.h"
#include "proto/etcd.pb-c.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    ETCD_NS_OF_MS = 1000000,
    ETCD_ATTEMPT_MS = 1500, /* one attempt of several: then another endpoint is asked */
    ETCD_PAUSE_MS_MIN = 30,
    ETCD_PAUSE_MS_MAX = 1000,
};

struct etcd_client {
    mr_rpc_channel *channel;
    pthread_mutex_t callbacks; /* held while a callback runs: they come one at a time */
    atomic_bool is_interrupted;
};

/* Of one unary method: how its answer is read. */
typedef struct {
    const char *path;
    const ProtobufCMessageDescriptor *answer;
    bool is_read; /* may be repeated */
} etcd_method;

/* *out is owned: protobuf_c_message_free_unpacked. code (NULL: not wanted): gRPC's. */
mr_status etcd_ask(etcd_client *client, const etcd_method *method, const ProtobufCMessage *request,
                   int64_t deadline_ns, ProtobufCMessage **out, int *code, mr_err *err);
void etcd_free_message(void *message); /* NULL is fine */

uint8_t *etcd_pack(const ProtobufCMessage *message, size_t *bytes); /* owned */

/* The end of all keys that begin with key; owned data. */
ProtobufCBinaryData etcd_prefix_end(etcd_bytes key);
ProtobufCBinaryData etcd_binary(etcd_bytes bytes); /* borrows */
void etcd_kv_take(etcd_kv *out, const Etcdserverpb__KeyValue *kv);
void etcd_kv_clear(etcd_kv *kv);
etcd_list *etcd_list_of(const Etcdserverpb__RangeResponse *response);

/* A thread that sleeps, and can be told to stop: watches and leases have one each. */
typedef struct {
    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool is_stopping;
    mr_rpc_stream *stream; /* that it waits on, for being cancelled */
    uint32_t seed;         /* of its pauses */
} etcd_worker;
void etcd_worker_start(etcd_worker *worker, void *(*run)(void *context), void *context);
void etcd_worker_stop(etcd_worker *worker);              /* cancels, joins, frees what start made */
bool etcd_worker_sleep(etcd_worker *worker, int64_t ms); /* false: it shall stop */
/* Longer with every failure in a row, and never the same for two processes. */
bool etcd_worker_pause(etcd_worker *worker, uint32_t failures);
mr_status etcd_worker_open_stream(etcd_worker *worker, etcd_client *client, const char *path,
                                  mr_err *err);
void etcd_worker_close_stream(etcd_worker *worker);

#endif
