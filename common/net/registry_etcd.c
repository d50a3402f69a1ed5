/* registry_etcd.c - the etcd home of a cluster: one thread that keeps the view, our own record, the
 * leadership and the copy on disk.
 *
 * A watch brings changes quickly, but is only a hint: every ten seconds, and whenever it broke,
 * everything is read again at one revision and compared. What vanished is not believed dead: a
 * member stays in the view as not listed, everything else stays as it is and is put again by the
 * leader. So an etcd that lost a lease, its data or its mind changes nothing for who answers. */
#ifdef MR_HAVE_ETCD
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/registry_etcd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SYNC_MS = 10000,
    ASK_MS = 3000,
    BACKOFF_MS_MIN = 200,
    BACKOFF_MS_MAX = 5000,
    KEEP_MS = 1000,
    PAGE_KEYS = 256, /* of the largest values sixteen would be too much: then smaller pages */
    KEYS_MAX = 65536,
    EVENTS_MAX = 8192,
    EVENT_BYTES_MAX = 64 << 20,
    REPAIRS_MAX = 64, /* in one round */
};

static int64_t after_ms(int64_t ms) {
    return mr_now_ns() + ms * 1000000;
}

static const mr_view *view_of(mr_etcd_home *home) {
    return mr_cluster_view(home->cluster);
}

/* --- other threads ---------------------------------------------------------------------------- */

void mr_home_poke(mr_etcd_home *home) {
    pthread_mutex_lock(&home->lock);
    home->is_poked = true;
    pthread_cond_broadcast(&home->changed);
    pthread_mutex_unlock(&home->lock);
}

void mr_home_note(mr_etcd_home *home, mr_status status, const mr_err *err) {
    if (status == MR_ERR_CANCELLED) return; /* we are closing */
    pthread_mutex_lock(&home->lock);
    if (status == MR_ERR_UNAVAILABLE || status == MR_ERR_TIMEOUT) {
        if (err != NULL) home->last_err = *err;
        if (home->is_up)
            mr_log_warn("cluster: etcd is away, the last view stays: %s", home->last_err.text);
        home->is_up = false;
        pthread_cond_broadcast(&home->changed);
    } else {
        if (!home->is_up) mr_log_info("cluster: etcd answers");
        home->is_up = true;
        home->answered_ns = mr_now_ns();
    }
    pthread_mutex_unlock(&home->lock);
}

static void drop_events(mr_etcd_home *home) {
    while (home->first_event != NULL) {
        mr_home_event *event = home->first_event;
        home->first_event = event->next;
        free(event->key);
        free(event->value);
        free(event);
    }
    home->last_event = &home->first_event;
    home->event_count = home->event_bytes = 0;
}

static void on_listed(void *context, const etcd_list *list) {
    mr_etcd_home *home = context;
    (void)list; /* reading everything again is the thread's work */
    mr_home_poke(home);
}

static void on_changed(void *context, const etcd_event *events, size_t count, int64_t revision) {
    mr_etcd_home *home = context;
    (void)revision;
    pthread_mutex_lock(&home->lock);
    for (size_t i = 0; i < count; i++) {
        const etcd_kv *kv = &events[i].kv;
        if (home->event_count >= EVENTS_MAX || home->event_bytes > EVENT_BYTES_MAX) {
            drop_events(home); /* more than one reading of everything costs */
            home->is_poked = home->has_lost_events = true;
        }
        if (home->has_lost_events || kv->key_bytes < home->prefix_bytes) continue;
        mr_home_event *event = mr_alloc(sizeof(*event));
        *event = (mr_home_event){.key = mr_strdup(kv->key + home->prefix_bytes),
                                 .value = mr_strndup(kv->value, kv->value_bytes),
                                 .value_bytes = kv->value_bytes,
                                 .mod_revision = kv->mod_revision,
                                 .lease = kv->lease,
                                 .is_delete = events[i].is_delete};
        *home->last_event = event;
        home->last_event = &event->next;
        home->event_count++;
        home->event_bytes += kv->value_bytes;
    }
    pthread_cond_broadcast(&home->changed);
    pthread_mutex_unlock(&home->lock);
}

static void on_connected(void *context, bool is_connected) {
    mr_etcd_home *home = context;
    pthread_mutex_lock(&home->lock);
    home->connects += is_connected;
    pthread_mutex_unlock(&home->lock);
    mr_home_poke(home);
}

static void on_lease_gone(void *context) {
    mr_home_poke(context);
}

void mr_etcd_home_announce(mr_etcd_home *home, const mr_member *self) {
    char *text = mr_member_dump(self);
    if (text == NULL) {
        mr_log_error("cluster: our own record cannot be written and stays as it was");
        return;
    }
    pthread_mutex_lock(&home->lock);
    if (home->self_text == NULL || strcmp(home->self_text, text) != 0) {
        free(home->self_text);
        free(home->self_key);
        free(home->self_id);
        home->self_text = mr_strdup(text);
        home->self_key = mr_home_member_key(self->role, self->id);
        home->self_id = mr_strdup(self->id);
        home->self_role = self->role;
        home->self_incarnation = self->incarnation;
        home->self_version++;
        pthread_cond_broadcast(&home->changed);
    }
    pthread_mutex_unlock(&home->lock);
    free(text);
}

void mr_etcd_home_report(mr_etcd_home *home, mr_role role, const char *id) {
    pthread_mutex_lock(&home->lock);
    for (const mr_home_report *r = home->reports; r != NULL; r = r->next)
        if (r->role == role && strcmp(r->id, id) == 0) goto out; /* said already */
    mr_home_report *report = mr_alloc(sizeof(*report));
    *report = (mr_home_report){home->reports, role, mr_strdup(id)};
    home->reports = report;
    pthread_cond_broadcast(&home->changed);
out:
    pthread_mutex_unlock(&home->lock);
}

void mr_etcd_home_campaign(mr_etcd_home *home, const char *id) {
    pthread_mutex_lock(&home->lock);
    free(home->candidate);
    home->candidate = mr_strdup(id);
    home->is_poked = true;
    pthread_cond_broadcast(&home->changed);
    pthread_mutex_unlock(&home->lock);
}

mr_cluster_health mr_etcd_home_look(mr_etcd_home *home) {
    const int64_t now = mr_now_ns();
    pthread_mutex_lock(&home->lock);
    const mr_cluster_health health = {
        .is_up = home->is_up,
        .silent_s = home->is_up ? 0 : (double)(now - home->answered_ns) * 1e-9,
        .lease_ttl_s = home->lease_left_s > 0
                           ? home->lease_left_s - (double)(now - home->lease_read_ns) * 1e-9
                           : 0,
        .refused_records = home->refused,
        .reconnects = home->connects > 0 ? home->connects - 1 : 0};
    pthread_mutex_unlock(&home->lock);
    return health;
}

/* --- reading ---------------------------------------------------------------------------------- */

typedef struct {
    mr_view_builder *builder;
    const mr_view *view; /* that the builder began with */
    mr_known_keys known;
    bool is_changed, is_same_store;
    int64_t revision;
    uint64_t cluster_id;
    size_t keys;
} reading;

static void read_key(mr_etcd_home *home, reading *r, const etcd_kv *kv) {
    const char *key = kv->key + home->prefix_bytes;
    const mr_known_key *before = r->is_same_store ? mr_known_find(&home->known, key) : NULL;
    mr_known_key *now = mr_known_put(&r->known, key, kv->mod_revision, kv);

    if (before != NULL && before->mod_revision == now->mod_revision && before->sum == now->sum)
        now->is_good = before->is_good;
    else if (mr_home_apply_put(home, r->builder, r->view, key, kv, &now->is_good))
        r->is_changed = true;
}

/* All keys at one revision, page by page. */
static mr_status read_pages(mr_etcd_home *home, reading *r, mr_err *err) {
    etcd_query query = {.key = etcd_text(home->prefix), .is_prefix = true, .limit = PAGE_KEYS};
    char *last = NULL;
    bool has_more = true;
    mr_status status = MR_OK;

    while (has_more && status == MR_OK) {
        etcd_list *list;
        status = etcd_get(home->client, &query, after_ms(ASK_MS), &list, err);
        if (status == MR_ERR_LIMIT && query.limit > 1) { /* large values: fewer at once */
            query.limit /= 4;
            status = MR_OK;
            continue;
        }
        if (status != MR_OK) break;
        if (query.revision == 0) {
            query.revision = r->revision = list->revision;
            r->cluster_id = list->cluster_id;
            r->is_same_store =
                list->cluster_id == home->cluster_id && list->revision >= home->revision;
        }
        for (size_t i = 0; i < list->count; i++) read_key(home, r, &list->kvs[i]);
        r->keys += list->count;
        has_more = list->has_more && list->count > 0;
        if (list->count > 0) {
            free(last);
            last = mr_strndup(list->kvs[list->count - 1].key, list->kvs[list->count - 1].key_bytes);
            query.after = (etcd_bytes){last, list->kvs[list->count - 1].key_bytes};
        }
        etcd_list_free(list);
        if (r->keys > KEYS_MAX)
            status =
                mr_fail(err, MR_ERR_LIMIT, "more than %d keys under %s", KEYS_MAX, home->prefix);
    }
    free(last);
    return status;
}

/* What is in the view and not in etcd. */
static void sweep(reading *r) {
    for (uint32_t i = 0; i < r->view->member_count; i++) {
        const mr_member *m = r->view->members[i];
        char *key = mr_home_member_key(m->role, m->id);
        if (m->is_listed && mr_known_find(&r->known, key) == NULL &&
            mr_home_apply_delete(r->builder, r->view, key))
            r->is_changed = true;
        free(key);
    }
    if (mr_known_find(&r->known, "leader") == NULL &&
        mr_home_apply_delete(r->builder, r->view, "leader"))
        r->is_changed = true;
}

/* Publishes what a builder has, or drops it. */
static void finish(mr_etcd_home *home, mr_view_builder *builder, bool is_changed,
                   int64_t revision) {
    if (!is_changed) {
        mr_view_builder_close(builder);
        return;
    }
    mr_view_set_revision(builder, revision);
    mr_cluster_publish(home->cluster, mr_view_publish(builder));
    home->is_keep_due = true;
}

static mr_status sync_all(mr_etcd_home *home, mr_err *err) {
    reading r = {.view = view_of(home)};

    r.builder = mr_view_builder_open(r.view, home->cluster->name);
    home->refusals = 0;
    pthread_mutex_lock(&home->lock);
    home->is_poked = home->has_lost_events = false;
    pthread_mutex_unlock(&home->lock);
    const mr_status status = read_pages(home, &r, err);
    mr_home_note(home, status, err);
    if (status != MR_OK) {
        mr_view_builder_close(r.builder);
        mr_known_clear(&r.known);
        mr_view_release(r.view);
        return status;
    }
    sweep(&r);
    mr_known_clear(&home->known);
    home->known = r.known;
    if (home->cluster_id != 0 && !r.is_same_store)
        mr_log_warn("cluster: etcd has other data than before; nobody is taken for dead");
    if (!r.is_same_store) home->put_version = 0; /* our record is put again */
    home->cluster_id = r.cluster_id;
    home->revision = r.revision;
    finish(home, r.builder, r.is_changed || r.view->number == 0, r.revision);
    mr_view_release(r.view);
    pthread_mutex_lock(&home->lock);
    home->has_synced = true;
    pthread_cond_broadcast(&home->changed);
    pthread_mutex_unlock(&home->lock);
    return MR_OK;
}

static void apply_events(mr_etcd_home *home, mr_home_event *first) {
    const mr_view *view = view_of(home);
    mr_view_builder *builder = mr_view_builder_open(view, home->cluster->name);
    bool is_changed = false, is_repair_due = false;

    home->refusals = 0;
    while (first != NULL) {
        mr_home_event *event = first;
        first = event->next;
        if (event->mod_revision > home->revision) {
            const etcd_kv kv = {
                .value = event->value, .value_bytes = event->value_bytes, .lease = event->lease};
            if (event->is_delete) {
                mr_known_remove(&home->known, event->key);
                is_changed |= mr_home_apply_delete(builder, view, event->key);
                is_repair_due = true;
            } else {
                mr_known_key *known =
                    mr_known_put(&home->known, event->key, event->mod_revision, &kv);
                is_changed |=
                    mr_home_apply_put(home, builder, view, event->key, &kv, &known->is_good);
            }
        }
        if (first == NULL && event->mod_revision > home->revision)
            home->revision = event->mod_revision;
        free(event->key);
        free(event->value);
        free(event);
    }
    finish(home, builder, is_changed, home->revision);
    mr_view_release(view);
    pthread_mutex_lock(&home->lock);
    if (is_repair_due && home->lead_lease != 0) home->is_poked = true; /* see repair_all */
    pthread_mutex_unlock(&home->lock);
}

static void apply_reports(mr_etcd_home *home, mr_home_report *first) {
    const mr_view *view = view_of(home);
    mr_view_builder *builder = mr_view_builder_open(view, home->cluster->name);
    bool is_changed = false;

    while (first != NULL) {
        mr_home_report *report = first;
        first = report->next;
        const mr_member *member = mr_view_member(view, report->role, report->id);
        if (member != NULL && !member->is_listed) {
            mr_log_info("cluster: %s is neither listed nor answering and leaves the view",
                        report->id);
            is_changed |= mr_view_remove_member(builder, report->role, report->id);
        }
        free(report->id);
        free(report);
    }
    finish(home, builder, is_changed, view->revision);
    mr_view_release(view);
}

/* --- saying ----------------------------------------------------------------------------------- */

static mr_status keep_lease(mr_etcd_home *home, mr_err *err) {
    mr_status status = MR_OK;

    if (home->lease != NULL && etcd_lease_is_gone(home->lease)) {
        mr_log_warn("cluster: etcd ended our lease; we ask for another one");
        etcd_lease_close(home->lease, 0);
        home->lease = NULL;
        home->put_version = 0;
    }
    if (home->lease == NULL)
        status = etcd_lease_open(&home->lease, home->client, home->lease_s, on_lease_gone, home,
                                 after_ms(ASK_MS), err);
    pthread_mutex_lock(&home->lock);
    if (home->lease != NULL) home->lease_left_s = etcd_lease_left_s(home->lease);
    home->lease_read_ns = mr_now_ns();
    pthread_mutex_unlock(&home->lock);
    return status;
}

/* Somebody newer writes under our name: two would fight over it for ever. */
static bool is_rivalled(mr_etcd_home *home, mr_role role, const char *id, uint64_t incarnation) {
    const mr_view *view = view_of(home);
    const mr_member *there = mr_view_member(view, role, id);
    const bool yes = there != NULL && there->incarnation > incarnation;

    mr_view_release(view);
    if (yes && !home->is_rivalled)
        mr_log_error("cluster: another process announces itself as %s; this one stays silent", id);
    home->is_rivalled = yes;
    return yes;
}

static mr_status put_self(mr_etcd_home *home, mr_err *err) {
    pthread_mutex_lock(&home->lock);
    const uint64_t version = home->self_version, incarnation = home->self_incarnation;
    const mr_role role = home->self_role;
    char *key = version > 0 ? mr_format("%s%s", home->prefix, home->self_key) : NULL;
    char *text = version > 0 ? mr_strdup(home->self_text) : NULL;
    char *id = version > 0 ? mr_strdup(home->self_id) : NULL;
    pthread_mutex_unlock(&home->lock);
    mr_status status = MR_OK;

    if (version > 0) {
        const mr_known_key *known = mr_known_find(&home->known, key + home->prefix_bytes);
        /* Once everything up to our last put was read, it must be there as we put it. */
        const bool is_lost = home->revision >= home->put_mod &&
                             (known == NULL || known->mod_revision != home->put_mod);
        const bool is_due = version != home->put_version || is_lost;
        if (is_due && !is_rivalled(home, role, id, incarnation)) {
            status = etcd_put(home->client, etcd_text(key), etcd_text(text),
                              etcd_lease_id(home->lease), after_ms(ASK_MS), &home->put_mod, err);
            home->put_version = status == MR_OK ? version : 0;
        }
    }
    free(key);
    free(text);
    free(id);
    return status;
}

static mr_status lead(mr_etcd_home *home, mr_err *err) {
    const mr_view *view = view_of(home);
    const int64_t lease = etcd_lease_id(home->lease);
    uint64_t token = 0;

    pthread_mutex_lock(&home->lock);
    char *id = home->candidate != NULL ? mr_strdup(home->candidate) : NULL;
    const int64_t led_by = home->lead_lease;
    pthread_mutex_unlock(&home->lock);
    mr_status status = MR_OK;
    const bool is_ours =
        id != NULL && led_by == lease && view->leader != NULL && strcmp(view->leader, id) == 0;
    if (id != NULL && !is_ours) {
        pthread_mutex_lock(&home->lock);
        home->lead_lease = 0;
        pthread_mutex_unlock(&home->lock);
        if (view->leader == NULL || strcmp(view->leader, id) == 0) {
            status = etcd_campaign(home->client, home->leader, etcd_text(id), lease,
                                   view->leader_epoch, 0, &token, err);
            if (status == MR_OK) {
                mr_log_info("cluster: %s leads with epoch %llu", id, (unsigned long long)token);
                pthread_mutex_lock(&home->lock);
                home->lead_lease = lease;
                home->is_poked = true;
                pthread_mutex_unlock(&home->lock);
            } else if (status == MR_ERR_STALE) {
                status = MR_OK; /* somebody was quicker */
            }
        }
    }
    free(id);
    mr_view_release(view);
    return status;
}

/* One record that etcd lost or was made to forget. Takes text over. */
static int repair(mr_etcd_home *home, const char *kind, const char *name, char *text) {
    char *key = mr_format("%s%s/%s", home->prefix, kind, name);
    const mr_known_key *known = mr_known_find(&home->known, key + home->prefix_bytes);
    int repaired = 0;

    if (text != NULL && (known == NULL || !known->is_good)) {
        const etcd_compare compares[] = {
            {.key = etcd_text(key),
             .target = ETCD_MOD,
             .number = known != NULL ? known->mod_revision : 0},
            etcd_leader_fence(home->leader, etcd_lease_id(home->lease))};
        const etcd_op put = {.kind = ETCD_OP_PUT, .key = etcd_text(key), .value = etcd_text(text)};
        const etcd_txn txn = {compares, 2, &put, 1, NULL, 0};
        bool has_succeeded;
        if (etcd_commit(home->client, &txn, after_ms(ASK_MS), &has_succeeded, NULL, NULL) ==
                MR_OK &&
            has_succeeded)
            mr_log_info("cluster: %s is put again: etcd had lost it", key + home->prefix_bytes);
        repaired = 1;
    }
    free(key);
    free(text);
    return repaired;
}

/* The leader gives back what etcd has not, out of the view. */
static void repair_all(mr_etcd_home *home) {
    const mr_view *view = view_of(home);
    char digest[MR_DIGEST_TEXT_BYTES];
    int done = 0;

    pthread_mutex_lock(&home->lock);
    const bool is_leading = home->lead_lease != 0 && home->lead_lease == etcd_lease_id(home->lease);
    pthread_mutex_unlock(&home->lock);
    for (uint32_t i = 0; is_leading && i < view->model_count && done < REPAIRS_MAX; i++)
        done +=
            repair(home, "models", view->models[i]->name, mr_model_record_dump(view->models[i]));
    for (uint32_t i = 0; is_leading && i < view->map_count && done < REPAIRS_MAX; i++) {
        mr_digest_text(&view->maps[i]->digest, digest);
        done += repair(home, "maps", digest, mr_map_record_dump(view->maps[i]));
    }
    for (uint32_t i = 0; is_leading && i < view->next_map_count && done < REPAIRS_MAX; i++) {
        mr_digest_text(&view->next_maps[i]->digest, digest);
        done += repair(home, "next", digest, mr_map_record_dump(view->next_maps[i]));
    }
    for (uint32_t i = 0; is_leading && i < view->owner_count && done < REPAIRS_MAX; i++)
        done +=
            repair(home, "owners", view->owners[i]->group, mr_owner_record_dump(view->owners[i]));
    mr_view_release(view);
}

static void keep_view(mr_etcd_home *home, bool is_last) {
    mr_err err;
    if (home->kept_path == NULL || !home->is_keep_due) return;
    if (!is_last && mr_now_ns() < home->keep_at_ns) return;
    const mr_view *view = view_of(home);
    if (mr_view_save(view, home->kept_path, &err) != MR_OK)
        mr_log_warn("cluster: the view is not kept: %s", err.text);
    mr_view_release(view);
    home->is_keep_due = false;
    home->keep_at_ns = after_ms(KEEP_MS);
}

/* --- the thread ------------------------------------------------------------------------------- */

static void plan_next(mr_etcd_home *home, bool is_good) {
    int64_t ms = SYNC_MS;
    if (is_good) {
        home->failures = 0;
    } else {
        ms = (int64_t)BACKOFF_MS_MIN << (home->failures < 5 ? home->failures : 5);
        if (ms > BACKOFF_MS_MAX) ms = BACKOFF_MS_MAX;
        home->failures++;
    }
    home->sync_at_ns = after_ms(ms * 3 / 4 + rand_r(&home->seed) % (ms / 2 + 1));
}

static void open_watch(mr_etcd_home *home) {
    mr_err err;
    const etcd_watch_options options = {.key = etcd_text(home->prefix),
                                        .is_prefix = true,
                                        .from_revision = home->revision + 1,
                                        .listed = on_listed,
                                        .changed = on_changed,
                                        .connected = on_connected,
                                        .context = home};
    if (home->watch != NULL) return;
    if (etcd_watch_open(&home->watch, home->client, &options, &err) != MR_OK)
        mr_log_error("cluster: no watch: %s", err.text);
}

/* Everything that asks etcd; false: it is away, or did not take what we say. */
static bool talk(mr_etcd_home *home, bool is_sync_due) {
    mr_err err = {{0}};
    mr_status status = is_sync_due ? sync_all(home, &err) : MR_OK;

    if (status != MR_OK && status != MR_ERR_UNAVAILABLE && status != MR_ERR_TIMEOUT &&
        status != MR_ERR_CANCELLED)
        mr_log_warn("cluster: etcd cannot be read: %s", err.text);
    if (status != MR_OK) return false;
    open_watch(home);
    pthread_mutex_lock(&home->lock);
    const bool needs_lease = home->self_version > 0 || home->candidate != NULL;
    pthread_mutex_unlock(&home->lock);
    if (!needs_lease) return true;
    status = keep_lease(home, &err);
    if (status == MR_OK) status = put_self(home, &err);
    if (status == MR_OK) status = lead(home, &err);
    if (status == MR_OK && is_sync_due) repair_all(home);
    if (status == MR_ERR_ARGUMENT && home->lease != NULL) { /* it knows our lease no more */
        etcd_lease_close(home->lease, 0);
        home->lease = NULL;
    }
    mr_home_note(home, status, &err);
    if (status != MR_OK && status != MR_ERR_UNAVAILABLE && status != MR_ERR_TIMEOUT &&
        status != MR_ERR_CANCELLED)
        mr_log_warn("cluster: etcd refuses what we say: %s", err.text);
    return status == MR_OK;
}

/* Waits for something to do. False: stop. */
static bool wait_for_work(mr_etcd_home *home, mr_home_event **events, mr_home_report **reports) {
    const bool is_keep_first =
        home->kept_path != NULL && home->is_keep_due && home->keep_at_ns < home->sync_at_ns;
    const int64_t until_ns = is_keep_first ? home->keep_at_ns : home->sync_at_ns;
    const struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    int waited = 0;

    pthread_mutex_lock(&home->lock);
    /* an etcd that is away is not asked more often because somebody pokes */
    while (!home->is_stopping && waited != ETIMEDOUT && home->first_event == NULL &&
           home->reports == NULL && (home->failures > 0 || !home->is_poked) &&
           (home->failures > 0 || home->self_version == home->put_version || home->is_rivalled))
        waited = pthread_cond_timedwait(&home->changed, &home->lock, &until);
    *events = home->first_event;
    *reports = home->reports;
    home->first_event = NULL;
    home->reports = NULL;
    drop_events(home); /* resets the counts of what was taken */
    const bool goes_on = !home->is_stopping;
    pthread_mutex_unlock(&home->lock);
    return goes_on;
}

static void *run(void *context) {
    mr_etcd_home *home = context;
    mr_home_event *events;
    mr_home_report *reports;
    bool is_poked, goes_on = true;

    while (goes_on) {
        goes_on = wait_for_work(home, &events, &reports);
        if (events != NULL) apply_events(home, events);
        if (reports != NULL) apply_reports(home, reports);
        if (!goes_on) break;
        pthread_mutex_lock(&home->lock);
        is_poked = home->is_poked;
        pthread_mutex_unlock(&home->lock);
        const bool is_due = mr_now_ns() >= home->sync_at_ns;
        if (home->failures == 0 || is_due) {
            const bool is_good = talk(home, is_due || is_poked);
            if (!is_good || is_due || is_poked) plan_next(home, is_good);
        }
        keep_view(home, false);
    }
    keep_view(home, true);
    return NULL;
}

/* --- opening and closing ---------------------------------------------------------------------- */

static const mr_view *first_view(const mr_etcd_home *home) {
    const mr_view *view = NULL;
    mr_err err;
    if (home->kept_path != NULL && access(home->kept_path, F_OK) == 0 &&
        mr_view_load(&view, home->kept_path, &err) != MR_OK)
        mr_log_warn("cluster: the view kept on disk is left: %s", err.text);
    if (view != NULL && strcmp(view->cluster, home->cluster->name) != 0) {
        mr_view_release(view);
        view = NULL;
    }
    return view;
}

static mr_status wait_for_view(mr_etcd_home *home, bool is_kept, int64_t deadline_ns, mr_err *err) {
    const struct timespec until = {deadline_ns / 1000000000, deadline_ns % 1000000000};
    int waited = 0;
    mr_status status = MR_OK;

    pthread_mutex_lock(&home->lock);
    while (!home->has_synced && waited != ETIMEDOUT && (home->is_up || !is_kept))
        waited = pthread_cond_timedwait(&home->changed, &home->lock, &until);
    if (!home->has_synced && !is_kept)
        status = mr_fail(err, MR_ERR_UNAVAILABLE,
                         "no view of cluster %s, neither from etcd nor kept on disk: %s",
                         home->cluster->name, home->last_err.text);
    if (!home->has_synced && is_kept)
        mr_log_warn("cluster: etcd is away; we begin with the view kept on disk");
    pthread_mutex_unlock(&home->lock);
    return status;
}

static mr_status open_client(mr_etcd_home *home, const mr_cluster_options *options,
                             const char *endpoints, bool is_tls, mr_err *err) {
    etcd_options etcd = {.endpoints = endpoints};
    if (is_tls) {
        if (options->ca_file == NULL)
            return mr_fail(err, MR_ERR_ARGUMENT, "etcds: needs a CA file");
        etcd.ca_file = options->ca_file;
        etcd.cert_file = options->cert_file;
        etcd.key_file = options->key_file;
    }
    mr_status status = etcd_open(&home->client, &etcd, err);
    if (status == MR_OK && options->state_folder != NULL) {
        status = mr_make_directories(options->state_folder, err);
        home->kept_path = mr_format("%s/view-%s.json", options->state_folder, home->cluster->name);
    }
    return status;
}

mr_status mr_etcd_home_open(mr_etcd_home **out, mr_cluster *cluster,
                            const mr_cluster_options *options, const char *endpoints, bool is_tls,
                            int64_t deadline_ns, mr_err *err) {
    mr_etcd_home *home = mr_alloc(sizeof(*home));
    pthread_condattr_t clock;

    *out = home; /* closed by the cluster, whatever comes */
    home->cluster = cluster;
    home->prefix = mr_format("/memrack/%s/", cluster->name);
    home->prefix_bytes = strlen(home->prefix);
    home->leader = mr_format("%sleader", home->prefix);
    home->lease_s = options->lease_s > 0 ? options->lease_s : 30;
    home->seed = (uint32_t)mr_now_ns() ^ (uint32_t)getpid();
    home->last_event = &home->first_event;
    home->answered_ns = mr_now_ns();
    home->is_up = true; /* until it fails to answer */
    pthread_mutex_init(&home->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&home->changed, &clock);
    pthread_condattr_destroy(&clock);
    const mr_status status = open_client(home, options, endpoints, is_tls, err);
    if (status != MR_OK) return status;
    const mr_view *kept = first_view(home);
    cluster->view =
        kept != NULL ? kept : mr_view_publish(mr_view_builder_open(NULL, cluster->name));
    if (pthread_create(&home->thread, NULL, run, home) != 0)
        return mr_fail(err, MR_ERR_NOMEM, "no thread to follow etcd with");
    home->has_thread = true;
    return wait_for_view(home, kept != NULL, deadline_ns, err);
}

void mr_etcd_home_close(mr_etcd_home *home) {
    if (home == NULL) return;
    pthread_mutex_lock(&home->lock);
    home->is_stopping = true;
    pthread_cond_broadcast(&home->changed);
    const bool is_up = home->is_up;
    pthread_mutex_unlock(&home->lock);
    if (!is_up && home->client != NULL) etcd_interrupt(home->client); /* nothing to wait for */
    if (home->has_thread) pthread_join(home->thread, NULL);
    etcd_lease_close(home->lease, is_up ? after_ms(1000) : 0); /* our record and the leadership */
    if (home->client != NULL) etcd_interrupt(home->client);
    etcd_watch_close(home->watch);
    etcd_close(home->client);
    drop_events(home);
    while (home->reports != NULL) {
        mr_home_report *report = home->reports;
        home->reports = report->next;
        free(report->id);
        free(report);
    }
    mr_known_clear(&home->known);
    pthread_mutex_destroy(&home->lock);
    pthread_cond_destroy(&home->changed);
    char *texts[] = {home->prefix,    home->leader,  home->kept_path, home->self_key,
                     home->self_text, home->self_id, home->candidate};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) free(texts[i]);
    free(home);
}

#else
typedef int mr_registry_etcd_is_not_built;
#endif
