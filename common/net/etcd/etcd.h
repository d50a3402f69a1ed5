/* etcd.h - a client of etcd v3: keys, transactions, leases, watches, elections.
 *
 * A library of its own (libetcd.a, CMake target `etcd`): it needs common/base and the rpc layer,
 * and nothing else of Memrack. docs/LIBETCD.md is its manual.
 *
 * Every call that asks etcd takes a deadline, a reading of mr_now_ns(). Until then calls that only
 * read are repeated, on other endpoints and with growing pauses. A call that changes something is
 * repeated only while etcd has certainly not seen it; when it may have, the call fails with
 * MR_ERR_UNAVAILABLE or MR_ERR_TIMEOUT, and only reading tells whether it was done.
 *
 * Threads: everything may be called from any thread. Watches and leases have threads inside, whose
 * callbacks come one at a time for each client; a callback may call everything here except close.
 * Memory: what is passed in is borrowed for the call; results are owned by the caller. */
#ifndef MR_NET_ETCD_ETCD_H
#define MR_NET_ETCD_ETCD_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct etcd_client etcd_client;

/* Keys and values are bytes; they may hold zeros. */
typedef struct {
    const void *data;
    size_t bytes;
} etcd_bytes;
etcd_bytes etcd_text(const char *text); /* without the terminator; NULL: no bytes */

typedef struct {
    const char *endpoints;                      /* "host:port,host:port,..." */
    const char *ca_file, *cert_file, *key_file; /* TLS; ca_file NULL: plain */
    const char *server_name; /* that the servers' certificates carry; NULL: the endpoint's host */
    size_t message_bytes;    /* largest answer; 0: 16 MiB */
} etcd_options;

/* Does not connect yet. */
mr_status etcd_open(etcd_client **out, const etcd_options *options, mr_err *err);
/* After its watches and leases are closed. Calls under way in other threads must have ended; see
 * etcd_interrupt. NULL is fine. */
void etcd_close(etcd_client *client);
/* Every call under way and every later one fails with MR_ERR_CANCELLED; close comes next. */
void etcd_interrupt(etcd_client *client);

/* ---- keys ---- */

typedef struct {
    char *key, *value; /* each with an extra zero behind it */
    size_t key_bytes, value_bytes;
    int64_t create_revision, mod_revision;
    int64_t version; /* 1 after it was created, one more with each put */
    int64_t lease;   /* 0: none */
} etcd_kv;

typedef struct {
    int64_t revision;    /* of the store when it was read */
    uint64_t cluster_id; /* another one: another store under the same address */
    etcd_kv *kvs;        /* [count] by key */
    size_t count;
    int64_t total; /* keys that match, also beyond the limit */
    bool has_more;
} etcd_list;
void etcd_list_free(etcd_list *list); /* NULL is fine */

typedef struct {
    etcd_bytes key;
    bool is_prefix;   /* all keys that begin with key; an empty key: all there are */
    etcd_bytes after; /* of a prefix only keys behind this one: the next page; empty: all */
    int64_t limit;    /* 0: none */
    int64_t revision; /* of the past; 0: now */
    bool keys_only;
    bool is_local; /* from the endpoint's own copy, perhaps a little old: quicker */
} etcd_query;

/* A revision that was compacted away is MR_ERR_RANGE. */
mr_status etcd_get(etcd_client *client, const etcd_query *query, int64_t deadline_ns,
                   etcd_list **out, mr_err *err);
/* lease 0: none. An unknown lease is MR_ERR_ARGUMENT. revision (NULL: not wanted). */
mr_status etcd_put(etcd_client *client, etcd_bytes key, etcd_bytes value, int64_t lease,
                   int64_t deadline_ns, int64_t *revision, mr_err *err);
mr_status etcd_delete(etcd_client *client, etcd_bytes key, bool is_prefix, int64_t deadline_ns,
                      int64_t *deleted, mr_err *err);
/* History before the revision is forgotten. */
mr_status etcd_compact(etcd_client *client, int64_t revision, int64_t deadline_ns, mr_err *err);

/* ---- transactions ---- */

typedef enum { ETCD_VERSION, ETCD_CREATE, ETCD_MOD, ETCD_VALUE, ETCD_LEASE } etcd_target;
typedef enum { ETCD_EQUAL, ETCD_GREATER, ETCD_LESS, ETCD_NOT_EQUAL } etcd_relation;
typedef struct {
    etcd_bytes key;
    etcd_target target;
    etcd_relation relation; /* of what the store has to: */
    int64_t number;         /* for all targets but ETCD_VALUE; of an absent key it is 0 */
    etcd_bytes value;       /* for ETCD_VALUE; an absent key equals nothing */
} etcd_compare;

typedef enum { ETCD_OP_GET, ETCD_OP_PUT, ETCD_OP_DELETE } etcd_op_kind;
typedef struct {
    etcd_op_kind kind;
    etcd_bytes key, value;
    bool is_prefix; /* get, delete */
    int64_t lease;  /* put */
} etcd_op;

/* All compares hold: everything of `then` is done, at one revision; else everything of `otherwise`.
 */
typedef struct {
    const etcd_compare *compares;
    size_t compare_count;
    const etcd_op *then;
    size_t then_count;
    const etcd_op *otherwise;
    size_t otherwise_count;
} etcd_txn;

typedef struct {
    bool has_succeeded; /* `then` was done */
    int64_t revision;
    etcd_list **lists; /* [count]: of each op its keys; NULL for puts and deletes */
    size_t count;
} etcd_txn_result;
void etcd_txn_result_free(etcd_txn_result *result); /* NULL is fine */

/* result (NULL: not wanted); a transaction that took `otherwise` is MR_OK. */
mr_status etcd_commit(etcd_client *client, const etcd_txn *txn, int64_t deadline_ns,
                      bool *has_succeeded, etcd_txn_result **result, mr_err *err);

/* ---- leases ---- */

typedef struct etcd_lease etcd_lease;

/* Asks for a lease and keeps it alive from a thread of its own until it is closed. gone (may be
 * NULL) runs once, when etcd says that the lease is no more; silence of etcd is never taken for
 * that. */
mr_status etcd_lease_open(etcd_lease **out, etcd_client *client, int64_t ttl_s,
                          void (*gone)(void *context), void *context, int64_t deadline_ns,
                          mr_err *err);
/* Revoked, and its keys with it, if that works by the deadline; deadline 0: left to run out. */
void etcd_lease_close(etcd_lease *lease, int64_t deadline_ns); /* NULL is fine */
int64_t etcd_lease_id(const etcd_lease *lease);
bool etcd_lease_is_gone(etcd_lease *lease);
/* Until it runs out as far as we know; negative: etcd has been silent for longer than that. */
double etcd_lease_left_s(etcd_lease *lease);

/* The same by hand. An unknown lease is MR_ERR_ARGUMENT. */
mr_status etcd_lease_grant(etcd_client *client, int64_t ttl_s, int64_t deadline_ns, int64_t *id,
                           int64_t *granted_ttl_s, mr_err *err);
mr_status etcd_lease_revoke(etcd_client *client, int64_t id, int64_t deadline_ns, mr_err *err);

/* ---- watches ---- */

typedef struct etcd_watch etcd_watch;

typedef struct {
    bool is_delete;
    etcd_kv kv; /* of a delete only key and mod_revision */
} etcd_event;

typedef struct {
    etcd_bytes key; /* copied */
    bool is_prefix;
    /* Events from this revision on; 0: first `listed` tells what is there, then what changes. */
    int64_t from_revision;
    /* All that is there now. Comes again whenever events may have been missed: they were compacted
     * away while we were cut off, or the store was wiped or restored. May not be NULL. */
    void (*listed)(void *context, const etcd_list *list);
    /* What happened after that, in order, each once. All events of one revision come together.
     * May not be NULL. */
    void (*changed)(void *context, const etcd_event *events, size_t count, int64_t revision);
    /* The stream to etcd was opened or lost; the watch goes on by itself. May be NULL. */
    void (*connected)(void *context, bool is_connected);
    void *context;
} etcd_watch_options;

/* Does not wait: while etcd is away the watch tries again by itself, for ever. */
mr_status etcd_watch_open(etcd_watch **out, etcd_client *client, const etcd_watch_options *options,
                          mr_err *err);
void etcd_watch_close(etcd_watch *watch); /* no callback after it; NULL is fine */

/* ---- elections ----
 * One key names the leader for as long as the leader's lease lives. Every election hands out a
 * token higher than all before it; whoever takes orders refuses those with a lower token than one
 * seen before. No lock can promise more: a leader may lose its lease and not know it yet. */

typedef struct {
    bool is_led;
    char *value; /* what the leader said of itself, with a zero behind it; owned */
    size_t bytes;
    uint64_t token;
    int64_t lease;
} etcd_leader;
void etcd_leader_clear(etcd_leader *leader);

/* MR_OK: we lead (or led already with this lease and value). MR_ERR_STALE: another one does, and
 * did until the deadline; a deadline of 0 asks once, within five seconds. floor: the token will be
 * higher than this, even when the store was wiped. */
mr_status etcd_campaign(etcd_client *client, const char *name, etcd_bytes value, int64_t lease,
                        uint64_t floor, int64_t deadline_ns, uint64_t *token, mr_err *err);
/* Gives it up; MR_ERR_STALE: it was not ours any more. */
mr_status etcd_resign(etcd_client *client, const char *name, uint64_t token, int64_t deadline_ns,
                      mr_err *err);
mr_status etcd_leader_get(etcd_client *client, const char *name, int64_t deadline_ns,
                          etcd_leader *out, mr_err *err);
/* The value of the leader's key, as watches and lists of a prefix find it. */
mr_status etcd_leader_parse(etcd_leader *out, const etcd_kv *kv, mr_err *err);
/* Compares true as long as the leader with this token and lease leads: the fence of a transaction.
 * Its key is borrowed from name. */
etcd_compare etcd_leader_fence(const char *name, int64_t lease);

typedef struct etcd_observer etcd_observer;
/* The leader now, and after every change. */
mr_status etcd_observe(etcd_observer **out, etcd_client *client, const char *name,
                       void (*changed)(void *context, const etcd_leader *leader), void *context,
                       mr_err *err);
void etcd_observer_close(etcd_observer *observer); /* NULL is fine */

#endif
