/* election.c - libetcd: who leads, out of one key, a lease and transactions.
 *
 *   NAME         "TOKEN VALUE", with the leader's lease: there for as long as it leads
 *   NAME.token   the highest token handed out; has no lease
 *
 * One transaction creates the first, if nobody leads, and moves the second on, if nobody else did:
 * so tokens grow from leader to leader. A wiped store would begin with 1 again; the floor of a
 * candidate, the highest token it has heard of, keeps it from that. */
#include "common/base/limits.h"
#include "common/net/etcd/etcd_impl.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS_MAX = 16, ONCE_MS = 5000, ASK_AGAIN_MS = 100 };

void etcd_leader_clear(etcd_leader *leader) {
    free(leader->value);
    *leader = (etcd_leader){0};
}

static bool parse_token(const char *text, uint64_t *token, size_t *used) {
    char *end;
    if (!isdigit((unsigned char)text[0])) return false;
    *token = strtoull(text, &end, 10);
    *used = (size_t)(end - text);
    return *used < 20 && *token > 0 && *token < UINT64_C(1) << 62; /* room to grow */
}

mr_status etcd_leader_parse(etcd_leader *out, const etcd_kv *kv, mr_err *err) {
    size_t used;

    *out = (etcd_leader){0};
    if (kv->lease == 0)
        return mr_fail(err, MR_ERR_FORMAT, "the leader's key has no lease: no leader put it");
    if (!parse_token(kv->value, &out->token, &used) || kv->value[used] != ' ')
        return mr_fail(err, MR_ERR_FORMAT, "the leader's key does not begin with a token: %.40s",
                       kv->value);
    out->is_led = true;
    out->lease = kv->lease;
    out->bytes = kv->value_bytes - used - 1;
    out->value = mr_strndup(kv->value + used + 1, out->bytes);
    return MR_OK;
}

mr_status etcd_leader_get(etcd_client *client, const char *name, int64_t deadline_ns,
                          etcd_leader *out, mr_err *err) {
    const etcd_query query = {.key = etcd_text(name)};
    etcd_list *list;

    *out = (etcd_leader){0};
    mr_status status = etcd_get(client, &query, deadline_ns, &list, err);
    if (status != MR_OK) return status;
    if (list->count > 0) status = etcd_leader_parse(out, &list->kvs[0], err);
    etcd_list_free(list);
    return status;
}

etcd_compare etcd_leader_fence(const char *name, int64_t lease) {
    return (etcd_compare){.key = etcd_text(name), .target = ETCD_LEASE, .number = lease};
}

/* What one candidate knows and wants. */
typedef struct {
    etcd_client *client;
    const char *name;
    char *token_name;
    etcd_bytes value;
    int64_t lease;
    uint64_t floor;
    int64_t token_mod;  /* revision of the token's key as last seen; 0: it is not there */
    int64_t leader_mod; /* of the leader's key, where what it holds is no leader; else 0 */
    uint64_t token;     /* on success: ours */
} candidate;

/* The transaction failed: somebody leads, or the token was another one. MR_ERR_AGAIN: try again. */
static mr_status learn(candidate *c, const etcd_txn_result *result, mr_err *err) {
    const etcd_list *leaders = result->count == 2 ? result->lists[0] : NULL;
    const etcd_list *tokens = result->count == 2 ? result->lists[1] : NULL;
    uint64_t token;
    size_t used;

    if (leaders == NULL || tokens == NULL)
        return mr_fail(err, MR_ERR_FORMAT, "etcd did not say who leads");
    c->token_mod = tokens->count > 0 ? tokens->kvs[0].mod_revision : 0;
    if (tokens->count > 0 && parse_token(tokens->kvs[0].value, &token, &used) && token > c->floor)
        c->floor = token; /* what is not a token is written over */
    c->leader_mod = 0;
    if (leaders->count > 0) {
        etcd_leader leader;
        mr_status status = etcd_leader_parse(&leader, &leaders->kvs[0], err);
        if (status != MR_OK) { /* whoever put that leads nobody: it is written over */
            c->leader_mod = leaders->kvs[0].mod_revision;
            return MR_ERR_AGAIN;
        }
        const bool is_us = leader.lease == c->lease && leader.bytes == c->value.bytes &&
                           memcmp(leader.value, c->value.data, leader.bytes) == 0;
        c->token = leader.token;
        status = is_us ? MR_OK : mr_fail(err, MR_ERR_STALE, "%.200s leads", leader.value);
        etcd_leader_clear(&leader);
        return status;
    }
    return MR_ERR_AGAIN;
}

static mr_status campaign_once(candidate *c, int64_t deadline_ns, mr_err *err) {
    for (int round = 0; round < ROUNDS_MAX; round++) {
        char *text = mr_format("%llu", (unsigned long long)c->floor + 1);
        char *full = mr_format("%s %.*s", text, (int)c->value.bytes, (const char *)c->value.data);
        const etcd_compare compares[] = {
            {.key = etcd_text(c->name), .target = ETCD_MOD, .number = c->leader_mod},
            {.key = etcd_text(c->token_name), .target = ETCD_MOD, .number = c->token_mod}};
        const etcd_op then[] = {
            {.kind = ETCD_OP_PUT,
             .key = etcd_text(c->name),
             .value = etcd_text(full),
             .lease = c->lease},
            {.kind = ETCD_OP_PUT, .key = etcd_text(c->token_name), .value = etcd_text(text)}};
        const etcd_op otherwise[] = {{.kind = ETCD_OP_GET, .key = etcd_text(c->name)},
                                     {.kind = ETCD_OP_GET, .key = etcd_text(c->token_name)}};
        const etcd_txn txn = {compares, 2, then, 2, otherwise, 2};
        etcd_txn_result *result;
        mr_status status = etcd_commit(c->client, &txn, deadline_ns, NULL, &result, err);
        free(text);
        free(full);
        if (status != MR_OK) return status;
        if (result->has_succeeded)
            c->token = c->floor + 1;
        else
            status = learn(c, result, err);
        etcd_txn_result_free(result);
        if (status != MR_ERR_AGAIN) return status;
    }
    return mr_fail(err, MR_ERR_UNAVAILABLE, "too many candidates at once for %s", c->name);
}

mr_status etcd_campaign(etcd_client *client, const char *name, etcd_bytes value, int64_t lease,
                        uint64_t floor, int64_t deadline_ns, uint64_t *token, mr_err *err) {
    candidate c = {.client = client, .name = name, .value = value, .lease = lease, .floor = floor};
    const bool is_once = deadline_ns == 0;
    mr_status status;

    if (lease == 0) return mr_fail(err, MR_ERR_ARGUMENT, "a candidate needs a lease");
    if (value.bytes > 4096 || (value.bytes > 0 && memchr(value.data, 0, value.bytes) != NULL))
        return mr_fail(err, MR_ERR_ARGUMENT, "what a candidate says of itself is a text");
    if (is_once) deadline_ns = mr_now_ns() + (int64_t)ONCE_MS * ETCD_NS_OF_MS;
    c.token_name = mr_format("%s.token", name);
    for (;;) {
        status = campaign_once(&c, deadline_ns, err);
        if (is_once || status == MR_OK || atomic_load(&client->is_interrupted)) break;
        if (status != MR_ERR_STALE && status != MR_ERR_UNAVAILABLE) break;
        if (mr_now_ns() + (int64_t)ASK_AGAIN_MS * ETCD_NS_OF_MS >= deadline_ns) break;
        nanosleep(&(struct timespec){0, (long)ASK_AGAIN_MS * ETCD_NS_OF_MS}, NULL);
    }
    free(c.token_name);
    if (status == MR_OK) *token = c.token;
    return status;
}

mr_status etcd_resign(etcd_client *client, const char *name, uint64_t token, int64_t deadline_ns,
                      mr_err *err) {
    const etcd_query query = {.key = etcd_text(name)};
    etcd_leader leader = {0};
    bool has_succeeded = false;
    etcd_list *list;

    mr_status status = etcd_get(client, &query, deadline_ns, &list, err);
    if (status != MR_OK) return status;
    if (list->count > 0) status = etcd_leader_parse(&leader, &list->kvs[0], err);
    if (status == MR_OK && leader.token == token) {
        const etcd_compare same = {
            .key = query.key, .target = ETCD_MOD, .number = list->kvs[0].mod_revision};
        const etcd_op away = {.kind = ETCD_OP_DELETE, .key = query.key};
        const etcd_txn txn = {&same, 1, &away, 1, NULL, 0};
        status = etcd_commit(client, &txn, deadline_ns, &has_succeeded, NULL, err);
    }
    if (status == MR_OK && !has_succeeded)
        status = mr_fail(err, MR_ERR_STALE, "%s is not led with token %llu any more", name,
                         (unsigned long long)token);
    etcd_leader_clear(&leader);
    etcd_list_free(list);
    return status;
}

/* ---- observing ---- */

struct etcd_observer {
    etcd_watch *watch;
    void (*changed)(void *context, const etcd_leader *leader);
    void *context;
};

static void tell(const etcd_observer *observer, const etcd_kv *kv) {
    etcd_leader leader = {0};
    if (kv == NULL || etcd_leader_parse(&leader, kv, NULL) != MR_OK) leader = (etcd_leader){0};
    observer->changed(observer->context, &leader);
    etcd_leader_clear(&leader);
}

static void observe_list(void *context, const etcd_list *list) {
    tell(context, list->count > 0 ? &list->kvs[0] : NULL);
}

static void observe_events(void *context, const etcd_event *events, size_t count,
                           int64_t revision) {
    const etcd_event *last = &events[count - 1];
    (void)revision;
    tell(context, last->is_delete ? NULL : &last->kv);
}

mr_status etcd_observe(etcd_observer **out, etcd_client *client, const char *name,
                       void (*changed)(void *context, const etcd_leader *leader), void *context,
                       mr_err *err) {
    etcd_observer *observer = mr_alloc(sizeof(*observer));
    const etcd_watch_options options = {.key = etcd_text(name),
                                        .listed = observe_list,
                                        .changed = observe_events,
                                        .context = observer};
    observer->changed = changed;
    observer->context = context;
    *out = NULL;
    const mr_status status = etcd_watch_open(&observer->watch, client, &options, err);
    if (status != MR_OK) {
        free(observer);
        return status;
    }
    *out = observer;
    return MR_OK;
}

void etcd_observer_close(etcd_observer *observer) {
    if (observer == NULL) return;
    etcd_watch_close(observer->watch);
    free(observer);
}
