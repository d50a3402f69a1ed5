/* registry_etcd_change.c - the changes that must be agreed on: each reads what is there, and writes
 * in one transaction that holds only if that is still there, and, for maps, if we still lead. */
#ifdef MR_HAVE_ETCD
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/registry_etcd.h"

#include <stdlib.h>
#include <string.h>

/* One key as it is in etcd now. */
typedef struct {
    char *key;   /* whole; owned */
    char *value; /* owned; NULL: absent or a tombstone */
    size_t bytes;
    int64_t mod_revision; /* 0: absent */
} found;

static void found_free(found *f) {
    free(f->key);
    free(f->value);
}

static mr_status look_up(mr_etcd_home *home, const char *kind, const char *name,
                         int64_t deadline_ns, found *out, mr_err *err) {
    etcd_list *list;

    *out = (found){.key = mr_format("%s%s/%s", home->prefix, kind, name)};
    const etcd_query query = {.key = etcd_text(out->key)};
    const mr_status status = etcd_get(home->client, &query, deadline_ns, &list, err);
    mr_home_note(home, status, err);
    if (status != MR_OK) return status;
    if (list->count > 0) {
        out->mod_revision = list->kvs[0].mod_revision;
        if (strcmp(list->kvs[0].value, MR_TOMBSTONE) != 0) {
            out->value = mr_strndup(list->kvs[0].value, list->kvs[0].value_bytes);
            out->bytes = list->kvs[0].value_bytes;
        }
    }
    etcd_list_free(list);
    return MR_OK;
}

static etcd_compare unchanged(const found *f) {
    return (etcd_compare){.key = etcd_text(f->key), .target = ETCD_MOD, .number = f->mod_revision};
}

/* Commits; a transaction that did not hold is MR_ERR_STALE. */
static mr_status commit(mr_etcd_home *home, const etcd_compare *compares, size_t compare_count,
                        const etcd_op *ops, size_t op_count, int64_t deadline_ns, mr_err *err) {
    const etcd_txn txn = {compares, compare_count, ops, op_count, NULL, 0};
    bool has_succeeded;

    mr_status status = etcd_commit(home->client, &txn, deadline_ns, &has_succeeded, NULL, err);
    mr_home_note(home, status, err);
    if (status == MR_OK && !has_succeeded)
        status = mr_fail(err, MR_ERR_STALE, "somebody else was first, or we lead no more");
    mr_home_poke(home);
    return status;
}

static mr_status fence(mr_etcd_home *home, etcd_compare *out, mr_err *err) {
    pthread_mutex_lock(&home->lock);
    const int64_t lease = home->lead_lease;
    pthread_mutex_unlock(&home->lock);
    *out = etcd_leader_fence(home->leader, lease);
    return lease != 0 ? MR_OK : mr_fail(err, MR_ERR_STALE, "we do not lead this cluster");
}

/* A record that cannot be read counts as none: it may be written over. */
static uint64_t map_epoch(const found *f) {
    mr_map_record *record;
    if (f->value == NULL || mr_map_record_parse(&record, f->value, f->bytes, "map", NULL) != MR_OK)
        return 0;
    const uint64_t epoch = record->epoch;
    mr_map_record_free(record);
    return epoch;
}

/* Both keys of a map. */
typedef struct {
    found current, next;
    etcd_compare compares[3];
} map_keys;

static mr_status look_up_map(mr_etcd_home *home, const mr_digest *digest, int64_t deadline_ns,
                             map_keys *out, mr_err *err) {
    char name[MR_DIGEST_TEXT_BYTES];

    *out = (map_keys){0};
    mr_digest_text(digest, name);
    mr_status status = fence(home, &out->compares[0], err);
    if (status == MR_OK) status = look_up(home, "maps", name, deadline_ns, &out->current, err);
    if (status == MR_OK) status = look_up(home, "next", name, deadline_ns, &out->next, err);
    if (status != MR_OK) return status;
    out->compares[1] = unchanged(&out->current);
    out->compares[2] = unchanged(&out->next);
    return MR_OK;
}

static void map_keys_free(map_keys *keys) {
    found_free(&keys->current);
    found_free(&keys->next);
}

mr_status mr_etcd_home_put_next_map(mr_etcd_home *home, const mr_map_record *map,
                                    int64_t deadline_ns, mr_err *err) {
    char *text = mr_map_record_dump(map);
    map_keys keys;

    if (text == NULL) return mr_fail(err, MR_ERR_ARGUMENT, "the map cannot be written");
    mr_status status = look_up_map(home, &map->digest, deadline_ns, &keys, err);
    const bool is_there =
        status == MR_OK && keys.next.value != NULL && strcmp(keys.next.value, text) == 0;
    if (status == MR_OK && !is_there &&
        (map->epoch <= map_epoch(&keys.current) || map->epoch <= map_epoch(&keys.next)))
        status = mr_fail(err, MR_ERR_STALE, "a map of epoch %llu where etcd has one as new",
                         (unsigned long long)map->epoch);
    if (status == MR_OK && !is_there) {
        const etcd_op put = {
            .kind = ETCD_OP_PUT, .key = etcd_text(keys.next.key), .value = etcd_text(text)};
        status = commit(home, keys.compares, 3, &put, 1, deadline_ns, err);
    }
    map_keys_free(&keys);
    free(text);
    return status;
}

mr_status mr_etcd_home_switch_map(mr_etcd_home *home, const mr_digest *digest, uint64_t epoch,
                                  int64_t deadline_ns, mr_err *err) {
    map_keys keys;

    mr_status status = look_up_map(home, digest, deadline_ns, &keys, err);
    const bool is_done = status == MR_OK && map_epoch(&keys.current) == epoch;
    if (status == MR_OK && !is_done && map_epoch(&keys.next) != epoch)
        status = mr_fail(err, MR_ERR_STALE, "the next map has epoch %llu, not %llu",
                         (unsigned long long)map_epoch(&keys.next), (unsigned long long)epoch);
    if (status == MR_OK && !is_done) {
        const etcd_op ops[] = {{.kind = ETCD_OP_PUT,
                                .key = etcd_text(keys.current.key),
                                .value = {keys.next.value, keys.next.bytes}},
                               {.kind = ETCD_OP_DELETE, .key = etcd_text(keys.next.key)}};
        status = commit(home, keys.compares, 3, ops, 2, deadline_ns, err);
    }
    map_keys_free(&keys);
    return status;
}

mr_status mr_etcd_home_delete_map(mr_etcd_home *home, const mr_digest *digest, int64_t deadline_ns,
                                  mr_err *err) {
    map_keys keys;

    mr_status status = look_up_map(home, digest, deadline_ns, &keys, err);
    if (status == MR_OK) {
        const etcd_op ops[] = {{.kind = ETCD_OP_PUT,
                                .key = etcd_text(keys.current.key),
                                .value = etcd_text(MR_TOMBSTONE)},
                               {.kind = ETCD_OP_DELETE, .key = etcd_text(keys.next.key)}};
        status = commit(home, keys.compares, 3, ops, 2, deadline_ns, err);
    }
    map_keys_free(&keys);
    return status;
}

/* Puts the text if its epoch is the one after what is there, in etcd or in our view (an etcd that
 * was restored has less than we know). */
static mr_status put_after(mr_etcd_home *home, const found *f, const char *text, uint64_t epoch,
                           uint64_t etcd_epoch, uint64_t view_epoch, int64_t deadline_ns,
                           mr_err *err) {
    const uint64_t last = etcd_epoch > view_epoch ? etcd_epoch : view_epoch;
    const etcd_compare compare = unchanged(f);
    const etcd_op put = {.kind = ETCD_OP_PUT, .key = etcd_text(f->key), .value = etcd_text(text)};

    if (f->value != NULL && strcmp(f->value, text) == 0) return MR_OK; /* done before */
    if (epoch != last + 1)
        return mr_fail(err, MR_ERR_STALE, "epoch %llu, expected %llu", (unsigned long long)epoch,
                       (unsigned long long)last + 1);
    return commit(home, &compare, 1, &put, 1, deadline_ns, err);
}

mr_status mr_etcd_home_put_model(mr_etcd_home *home, const mr_model_record *model,
                                 int64_t deadline_ns, mr_err *err) {
    char *text = mr_model_record_dump(model);
    mr_model_record *there = NULL;
    found f;

    if (text == NULL) return mr_fail(err, MR_ERR_ARGUMENT, "the model's record cannot be written");
    mr_status status = mr_model_record_copy(&there, model, err); /* as a reader would check it */
    mr_model_record_free(there);
    there = NULL;
    if (status != MR_OK) {
        free(text);
        return status;
    }
    status = look_up(home, "models", model->name, deadline_ns, &f, err);
    if (status == MR_OK) {
        const mr_view *view = mr_cluster_view(home->cluster);
        const mr_model_record *seen = mr_view_model(view, model->name);
        /* a tombstone may be newer than our view: then it begins anew */
        const bool is_deleted = f.mod_revision > 0 && f.value == NULL;
        if (f.value != NULL &&
            mr_model_record_parse(&there, f.value, f.bytes, "model", NULL) != MR_OK)
            there = NULL;
        status = put_after(home, &f, text, model->epoch, there != NULL ? there->epoch : 0,
                           seen != NULL && !is_deleted ? seen->epoch : 0, deadline_ns, err);
        mr_view_release(view);
    }
    mr_model_record_free(there);
    found_free(&f);
    free(text);
    return status;
}

mr_status mr_etcd_home_delete_model(mr_etcd_home *home, const char *name, int64_t deadline_ns,
                                    mr_err *err) {
    found f;

    mr_status status = mr_id_check(name, "a model's name", err);
    if (status != MR_OK) return status;
    status = look_up(home, "models", name, deadline_ns, &f, err);
    if (status == MR_OK) {
        const etcd_compare compare = unchanged(&f);
        const etcd_op put = {
            .kind = ETCD_OP_PUT, .key = etcd_text(f.key), .value = etcd_text(MR_TOMBSTONE)};
        status = commit(home, &compare, 1, &put, 1, deadline_ns, err);
    }
    found_free(&f);
    return status;
}

mr_status mr_etcd_home_claim(mr_etcd_home *home, const mr_owner_record *owner, int64_t deadline_ns,
                             mr_err *err) {
    char *text = mr_owner_record_dump(owner);
    mr_owner_record *there = NULL;
    found f;

    if (text == NULL) return mr_fail(err, MR_ERR_ARGUMENT, "the owner's record cannot be written");
    mr_status status = look_up(home, "owners", owner->group, deadline_ns, &f, err);
    if (status == MR_OK) {
        const mr_view *view = mr_cluster_view(home->cluster);
        const mr_owner_record *seen = mr_view_owner(view, owner->group);
        if (f.value != NULL &&
            mr_owner_record_parse(&there, f.value, f.bytes, "owner", NULL) != MR_OK)
            there = NULL;
        status = put_after(home, &f, text, owner->epoch, there != NULL ? there->epoch : 0,
                           seen != NULL ? seen->epoch : 0, deadline_ns, err);
        mr_view_release(view);
    }
    mr_owner_record_free(there);
    found_free(&f);
    free(text);
    return status;
}

#else
typedef int mr_registry_etcd_change_is_not_built;
#endif
