/* registry_etcd.h - inside of the etcd home of a cluster: its state, shared by the thread that
 * follows etcd (registry_etcd.c), what it makes of keys (registry_etcd_apply.c) and the changes
 * that callers ask for (registry_etcd_change.c).
 *
 * Keys, all under /memrack/CLUSTER/: members/ROLE/ID, models/NAME, maps/DIGEST, next/DIGEST,
 * owners/GROUP, leader (and leader.token). A map or model that is deleted on purpose leaves a
 * tombstone in place of its record; one that just vanishes was lost, and stays in every view. */
#ifndef MR_NET_REGISTRY_ETCD_H
#define MR_NET_REGISTRY_ETCD_H
#include "common/net/cluster_impl.h"
#include "common/net/etcd/etcd.h"

#include <stdatomic.h>

#define MR_TOMBSTONE "{\"deleted\":true}"

/* A key as it was last seen, so that the same value is read, and refused, only once. */
typedef struct {
    char *key; /* behind the prefix */
    int64_t mod_revision;
    uint64_t sum; /* of the value: a restored store may have another one at the same revision */
    bool is_good; /* taken into the view */
} mr_known_key;

typedef struct {
    mr_known_key *items; /* [count] by key */
    size_t count, room;
} mr_known_keys;
mr_known_key *mr_known_find(const mr_known_keys *known, const char *key); /* or NULL */
mr_known_key *mr_known_put(mr_known_keys *known, const char *key, int64_t mod_revision,
                           const etcd_kv *kv);
void mr_known_remove(mr_known_keys *known, const char *key);
void mr_known_clear(mr_known_keys *known);

typedef struct mr_home_event {
    struct mr_home_event *next;
    char *key, *value;
    size_t value_bytes;
    int64_t mod_revision, lease;
    bool is_delete;
} mr_home_event;

typedef struct mr_home_report {
    struct mr_home_report *next;
    mr_role role;
    char *id;
} mr_home_report;

struct mr_etcd_home {
    mr_cluster *cluster;
    etcd_client *client;
    char *prefix;    /* "/memrack/CLUSTER/" */
    char *leader;    /* PREFIX + "leader" */
    char *kept_path; /* of the view kept on disk; NULL: not kept */
    size_t prefix_bytes;
    int64_t lease_s;
    pthread_t thread;
    bool has_thread;

    /* of the thread only */
    etcd_watch *watch;
    etcd_lease *lease;
    mr_known_keys known;
    uint64_t cluster_id;               /* of the store that known describes */
    int64_t revision;                  /* everything up to here is in the view */
    uint32_t seed, failures, refusals; /* refusals: logged in this round */
    int64_t sync_at_ns, keep_at_ns;
    bool is_keep_due, is_rivalled;
    uint64_t put_version; /* of self, as it lies in etcd */
    int64_t put_mod;

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    bool is_stopping, is_poked, has_synced, has_lost_events;
    mr_home_event *first_event, **last_event;
    size_t event_count, event_bytes;
    mr_home_report *reports;
    char *self_key, *self_text; /* NULL: nothing announced */
    mr_role self_role;
    char *self_id;
    uint64_t self_version, self_incarnation;
    char *candidate;    /* NULL: takes no part */
    int64_t lead_lease; /* ours, while we lead; else 0 */
    mr_err last_err;
    bool is_up;
    int64_t answered_ns;
    double lease_left_s;
    int64_t lease_read_ns;
    uint64_t refused, connects;
};

/* Wakes the thread; it reads everything again. */
void mr_home_poke(mr_etcd_home *home);
/* What a call told about etcd's being there. */
void mr_home_note(mr_etcd_home *home, mr_status status, const mr_err *err);

/* True: the view changes. Key without the prefix. */
bool mr_home_apply_put(mr_etcd_home *home, mr_view_builder *b, const mr_view *view, const char *key,
                       const etcd_kv *kv, bool *is_good);
bool mr_home_apply_delete(mr_view_builder *b, const mr_view *view, const char *key);
char *mr_home_member_key(mr_role role, const char *id); /* "members/ROLE/ID", owned */

#endif
