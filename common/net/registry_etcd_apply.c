/* registry_etcd_apply.c - what one key of etcd means for a view.
 *
 * Everything in etcd may have been written by anybody. A value is checked by the parsers of view.h,
 * must say the same name as its key, and may not be older than what was seen; otherwise it is
 * counted, told in one line, and the last good one stays. */
#ifdef MR_HAVE_ETCD
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/registry_etcd.h"

#include <stdlib.h>
#include <string.h>

enum { REFUSALS_LOGGED_MAX = 20 };

static const char *const role_names[] = {[MR_ROLE_COORDINATOR] = "coordinator",
                                         [MR_ROLE_WORKER] = "worker",
                                         [MR_ROLE_MEMSHARD] = "memshard"};

/* --- known keys ------------------------------------------------------------------------------- */

static size_t lower_bound(const mr_known_keys *known, const char *key) {
    size_t low = 0, high = known->count;
    if (high > 0 && strcmp(known->items[high - 1].key, key) < 0) return high; /* lists ascend */
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (strcmp(known->items[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

mr_known_key *mr_known_find(const mr_known_keys *known, const char *key) {
    const size_t at = lower_bound(known, key);
    return at < known->count && strcmp(known->items[at].key, key) == 0 ? &known->items[at] : NULL;
}

static uint64_t sum_of(const etcd_kv *kv) { /* FNV-1a: against accidents, not against enemies */
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < kv->value_bytes; i++)
        sum = (sum ^ (unsigned char)kv->value[i]) * 0x100000001b3u;
    return sum;
}

mr_known_key *mr_known_put(mr_known_keys *known, const char *key, int64_t mod_revision,
                           const etcd_kv *kv) {
    const size_t at = lower_bound(known, key);
    if (at == known->count || strcmp(known->items[at].key, key) != 0) {
        if (known->count == known->room) {
            known->room = known->room * 2 + 64;
            known->items = mr_realloc_array(known->items, known->room, sizeof(*known->items));
        }
        memmove(known->items + at + 1, known->items + at,
                (known->count - at) * sizeof(*known->items));
        known->count++;
        known->items[at] = (mr_known_key){.key = mr_strdup(key)};
    }
    known->items[at].mod_revision = mod_revision;
    known->items[at].sum = sum_of(kv);
    known->items[at].is_good = false;
    return &known->items[at];
}

void mr_known_remove(mr_known_keys *known, const char *key) {
    mr_known_key *found = mr_known_find(known, key);
    if (found == NULL) return;
    free(found->key);
    known->count--;
    memmove(found, found + 1,
            (known->count - (size_t)(found - known->items)) * sizeof(*known->items));
}

void mr_known_clear(mr_known_keys *known) {
    for (size_t i = 0; i < known->count; i++) free(known->items[i].key);
    free(known->items);
    *known = (mr_known_keys){0};
}

/* --- values ----------------------------------------------------------------------------------- */

char *mr_home_member_key(mr_role role, const char *id) {
    return mr_format("members/%s/%s", role_names[role], id);
}

/* "KIND/REST" -> REST, or NULL. */
static const char *rest_of(const char *key, const char *kind) {
    const size_t bytes = strlen(kind);
    return strncmp(key, kind, bytes) == 0 ? key + bytes : NULL;
}

static mr_status other_name(const char *name, mr_err *err) {
    return mr_fail(err, MR_ERR_MISMATCH, "the record under it is of %s", name);
}

static mr_status take_member(mr_view_builder *b, const mr_view *view, const char *key,
                             const etcd_kv *kv, mr_err *err) {
    mr_member *member;
    mr_status status = mr_member_parse(&member, kv->value, kv->value_bytes, "its value", err);
    if (status != MR_OK) return status;
    char *expected = mr_home_member_key(member->role, member->id);
    const mr_member *old = mr_view_member(view, member->role, member->id);
    if (strcmp(expected, key) != 0)
        status = other_name(expected, err);
    else if (old != NULL && member->incarnation < old->incarnation)
        status = mr_fail(err, MR_ERR_STALE, "it is older than one seen before");
    free(expected);
    if (status == MR_OK) return mr_view_put_member(b, member, err);
    mr_member_free(member);
    return status;
}

static mr_status take_model(mr_view_builder *b, const char *name, const etcd_kv *kv, mr_err *err) {
    mr_model_record *record;
    if (strcmp(kv->value, MR_TOMBSTONE) == 0) {
        mr_view_remove_model(b, name);
        return MR_OK;
    }
    mr_status status = mr_model_record_parse(&record, kv->value, kv->value_bytes, "its value", err);
    if (status != MR_OK) return status;
    if (strcmp(record->name, name) == 0) return mr_view_put_model(b, record, err);
    status = other_name(record->name, err);
    mr_model_record_free(record);
    return status;
}

static mr_status take_map(mr_view_builder *b, const char *name, bool is_next, const etcd_kv *kv,
                          mr_err *err) {
    mr_map_record *record;
    mr_digest digest;
    char text[MR_DIGEST_TEXT_BYTES];
    if (mr_digest_parse(&digest, name) != 0)
        return mr_fail(err, MR_ERR_FORMAT, "its name is no digest");
    if (strcmp(kv->value, MR_TOMBSTONE) == 0) {
        if (!is_next) mr_view_remove_map(b, &digest);
        mr_view_remove_next_map(b, &digest);
        return MR_OK;
    }
    mr_status status = mr_map_record_parse(&record, kv->value, kv->value_bytes, "its value", err);
    if (status != MR_OK) return status;
    mr_digest_text(&record->digest, text);
    if (strcmp(text, name) == 0)
        return is_next ? mr_view_put_next_map(b, record, err) : mr_view_put_map(b, record, err);
    status = other_name(text, err);
    mr_map_record_free(record);
    return status;
}

static mr_status take_owner(mr_view_builder *b, const char *group, const etcd_kv *kv, mr_err *err) {
    mr_owner_record *record;
    mr_status status = mr_owner_record_parse(&record, kv->value, kv->value_bytes, "its value", err);
    if (status != MR_OK) return status;
    if (strcmp(record->group, group) == 0) return mr_view_put_owner(b, record, err);
    status = other_name(record->group, err);
    mr_owner_record_free(record);
    return status;
}

static mr_status take_leader(mr_view_builder *b, const mr_view *view, const etcd_kv *kv,
                             mr_err *err) {
    etcd_leader leader;
    mr_status status = etcd_leader_parse(&leader, kv, err);
    if (status == MR_OK) status = mr_id_check(leader.value, "the leader", err);
    if (status == MR_OK && leader.token < view->leader_epoch)
        status = mr_fail(err, MR_ERR_STALE, "token %llu where %llu was seen",
                         (unsigned long long)leader.token, (unsigned long long)view->leader_epoch);
    if (status == MR_OK)
        mr_view_set_leader(b, leader.value, leader.token);
    else
        mr_view_set_leader(b, NULL, view->leader_epoch);
    etcd_leader_clear(&leader);
    return status;
}

static void note_refused(mr_etcd_home *home, const char *key, const mr_err *err) {
    pthread_mutex_lock(&home->lock);
    home->refused++;
    pthread_mutex_unlock(&home->lock);
    if (++home->refusals < REFUSALS_LOGGED_MAX)
        mr_log_warn("cluster: %s is refused: %s", key, err->text);
    else if (home->refusals == REFUSALS_LOGGED_MAX)
        mr_log_warn("cluster: more records are refused; see the counter");
}

bool mr_home_apply_put(mr_etcd_home *home, mr_view_builder *b, const mr_view *view, const char *key,
                       const etcd_kv *kv, bool *is_good) {
    mr_err err = {{0}};
    mr_status status;
    const char *name;

    *is_good = false;
    if (strlen(kv->value) != kv->value_bytes && kv->value_bytes <= MR_MAX_RECORD_BYTES)
        status = mr_fail(&err, MR_ERR_FORMAT, "there are zero bytes in its value");
    else if (kv->value_bytes > MR_MAX_RECORD_BYTES)
        status = mr_fail(&err, MR_ERR_LIMIT, "%zu bytes, at most %d", kv->value_bytes,
                         MR_MAX_RECORD_BYTES);
    else if (rest_of(key, "members/") != NULL)
        status = take_member(b, view, key, kv, &err);
    else if ((name = rest_of(key, "models/")) != NULL)
        status = take_model(b, name, kv, &err);
    else if ((name = rest_of(key, "maps/")) != NULL)
        status = take_map(b, name, false, kv, &err);
    else if ((name = rest_of(key, "next/")) != NULL)
        status = take_map(b, name, true, kv, &err);
    else if ((name = rest_of(key, "owners/")) != NULL)
        status = take_owner(b, name, kv, &err);
    else if (strcmp(key, "leader") == 0)
        status = take_leader(b, view, kv, &err);
    else
        return false; /* not ours, or of a newer version */
    if (status != MR_OK) {
        note_refused(home, key, &err);
        return strcmp(key, "leader") == 0;
    }
    *is_good = true;
    return true;
}

bool mr_home_apply_delete(mr_view_builder *b, const mr_view *view, const char *key) {
    if (strcmp(key, "leader") == 0) {
        mr_view_set_leader(b, NULL, view->leader_epoch);
        return view->leader != NULL;
    }
    const char *name = rest_of(key, "members/");
    const char *id = name != NULL ? strchr(name, '/') : NULL;
    if (id == NULL) return false; /* lost, not deleted: see MR_TOMBSTONE */
    for (int role = MR_ROLE_COORDINATOR; role <= MR_ROLE_MEMSHARD; role++) {
        const size_t bytes = strlen(role_names[role]);
        if (bytes != (size_t)(id - name) || memcmp(role_names[role], name, bytes) != 0) continue;
        return mr_view_set_listed(b, (mr_role)role, id + 1, false);
    }
    return false;
}

#else
typedef int mr_registry_etcd_apply_is_not_built;
#endif
