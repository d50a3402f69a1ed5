/* registry.c - see registry.h. */
#include "tests/sim/registry.h"

#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEASE_MS = 3000, LOOK_MS = 60, TICK_MS = 200, SLOTS = 256, KEY_BYTES = 112 };

typedef enum { KIND_MEMBER, KIND_MODEL, KIND_MAP, KIND_NEXT, KIND_OWNER } record_kind;

typedef struct {
    record_kind kind;
    mr_role role;
    char key[KEY_BYTES];
    char *text; /* NULL: not there */
    uint64_t epoch, revision;
    sim_client *holder; /* of its lease; NULL: none */
} slot;

struct sim_client {
    sim_client *next;
    sim_process *process;
    char id[MR_ID_BYTES_MAX + 1];
    bool is_candidate, has_left, was_up;
    int64_t heard_ns;
    const mr_view *view;
    char *own; /* its member record's text */
    mr_role role;
    uint64_t seen, generation;
};

static struct {
    slot slots[SLOTS], kept[SLOTS];
    uint32_t count, kept_count;
    uint64_t revision, generation;
    bool is_up;
    sim_client *clients, *leader;
    char leader_id[MR_ID_BYTES_MAX + 1];
    uint64_t leader_epoch;
    mr_map_record *asked; /* the last that sim_store_map gave */
    mr_model_record *asked_model;
} store;

static slot *find(record_kind kind, mr_role role, const char *key) {
    for (uint32_t i = 0; i < store.count; i++) {
        slot *at = &store.slots[i];
        if (at->kind == kind && at->role == role && strcmp(at->key, key) == 0) return at;
    }
    return NULL;
}

static slot *find_or_add(record_kind kind, mr_role role, const char *key) {
    slot *at = find(kind, role, key);
    if (at) return at;
    if (store.count == SLOTS) sim_fail("the store is full");
    at = &store.slots[store.count++];
    *at = (slot){.kind = kind, .role = role};
    snprintf(at->key, sizeof(at->key), "%s", key);
    return at;
}

static void put(record_kind kind, mr_role role, const char *key, char *text, uint64_t epoch,
                sim_client *holder) {
    slot *at = find_or_add(kind, role, key);
    if (!text) sim_fail("a record %s cannot be written", key);
    free(at->text);
    at->text = text;
    at->epoch = epoch;
    at->holder = holder;
    at->revision = ++store.revision;
}

static void delete (slot *at) {
    if (!at || !at->text) return;
    free(at->text);
    at->text = NULL;
    at->holder = NULL;
    at->revision = ++store.revision;
}

static const char *key_of(const mr_digest *digest, char text[MR_DIGEST_TEXT_BYTES]) {
    mr_digest_text(digest, text);
    return text;
}

/* --- views ------------------------------------------------------------------------------------ */

/* Refusals leave what was there, as in the real home. */
static void take_slot(sim_client *c, mr_view_builder *b, const slot *at) {
    mr_err err = {{0}};
    mr_member *member;
    mr_model_record *model;
    mr_map_record *map;
    mr_owner_record *owner;
    const size_t bytes = strlen(at->text);
    mr_status status = MR_OK;
    switch (at->kind) {
    case KIND_MEMBER:
        status = mr_member_parse(&member, at->text, bytes, at->key, &err);
        if (status != MR_OK) break;
        member->is_listed = true;
        status = mr_view_put_member(b, member, &err);
        break;
    case KIND_MODEL:
        status = mr_model_record_parse(&model, at->text, bytes, at->key, &err);
        if (status == MR_OK) status = mr_view_put_model(b, model, &err);
        break;
    case KIND_MAP:
    case KIND_NEXT:
        status = mr_map_record_parse(&map, at->text, bytes, at->key, &err);
        if (status != MR_OK) break;
        status = at->kind == KIND_MAP ? mr_view_put_map(b, map, &err)
                                      : mr_view_put_next_map(b, map, &err);
        break;
    case KIND_OWNER:
        status = mr_owner_record_parse(&owner, at->text, bytes, at->key, &err);
        if (status == MR_OK) status = mr_view_put_owner(b, owner, &err);
        break;
    }
    if (status != MR_OK && status != MR_ERR_STALE && status != MR_ERR_MISMATCH)
        sim_fail("%s cannot read the record %s: %s", c->id, at->key, err.text);
}

static void drop_slot(sim_client *c, mr_view_builder *b, const slot *at) {
    mr_digest digest;
    switch (at->kind) {
    case KIND_MEMBER:
        mr_view_set_listed(b, at->role, at->key, false);
        break;
    case KIND_MAP:
    case KIND_NEXT:
        if (at->kind == KIND_MAP && c->generation != store.generation) break;
        if (mr_digest_parse(&digest, at->key) != 0) sim_fail("no digest: %s", at->key);
        if (at->kind == KIND_MAP)
            mr_view_remove_map(b, &digest);
        else
            mr_view_remove_next_map(b, &digest);
        break;
    default:
        break; /* never deleted but by a wipe: they stay */
    }
}

static void follow(sim_client *c) {
    mr_view_builder *b = mr_view_builder_open(c->view, "sim");
    for (uint32_t i = 0; i < store.count; i++) {
        const slot *at = &store.slots[i];
        if (at->revision <= c->seen && c->generation == store.generation) continue;
        if (at->text)
            take_slot(c, b, at);
        else
            drop_slot(c, b, at);
    }
    mr_view_set_leader(b, store.leader ? store.leader_id : NULL, store.leader_epoch);
    mr_view_set_revision(b, (int64_t)store.revision);
    mr_view_release(c->view);
    c->view = mr_view_publish(b);
    c->seen = store.revision;
    c->generation = store.generation;
    sim_process_touch(c->process);
}

/* The leader knows better than a store that was wiped or restored. */
static void put_again(sim_client *c) {
    char key[MR_DIGEST_TEXT_BYTES];
    for (uint32_t i = 0; i < c->view->model_count; i++) {
        const mr_model_record *m = c->view->models[i];
        const slot *at = find(KIND_MODEL, 0, m->name);
        if (!at || !at->text || at->epoch < m->epoch)
            put(KIND_MODEL, 0, m->name, mr_model_record_dump(m), m->epoch, NULL);
    }
    for (uint32_t i = 0; i < c->view->map_count; i++) {
        const mr_map_record *m = c->view->maps[i];
        const slot *at = find(KIND_MAP, 0, key_of(&m->digest, key));
        if (!at || !at->text || at->epoch < m->epoch)
            put(KIND_MAP, 0, key, mr_map_record_dump(m), m->epoch, NULL);
    }
    for (uint32_t i = 0; i < c->view->owner_count; i++) {
        const mr_owner_record *o = c->view->owners[i];
        const slot *at = find(KIND_OWNER, 0, o->group);
        if (!at || !at->text || at->epoch < o->epoch)
            put(KIND_OWNER, 0, o->group, mr_owner_record_dump(o), o->epoch, NULL);
    }
}

static bool reaches(const sim_client *c) {
    const uint32_t host = sim_process_host(c->process);
    return store.is_up && sim_process_runs(c->process) && !sim_net_is_cut(host, SIM_STORE_HOST) &&
           !sim_net_is_cut(SIM_STORE_HOST, host);
}

static void look(void *context, uint64_t number) {
    sim_client *c = context;
    (void)number;
    if (c->has_left) return;
    c->was_up = reaches(c);
    if (c->was_up) {
        c->heard_ns = sim_now();
        const slot *own = c->own ? find(KIND_MEMBER, c->role, c->id) : NULL;
        if (c->own && (!own || !own->text || strcmp(own->text, c->own) != 0))
            put(KIND_MEMBER, c->role, c->id, mr_strdup(c->own), 0, c);
        if (c->is_candidate && !store.leader) {
            store.leader = c;
            snprintf(store.leader_id, sizeof(store.leader_id), "%s", c->id);
            store.leader_epoch++;
            store.revision++;
            sim_trace("%s leads, epoch %llu", c->id, (unsigned long long)store.leader_epoch);
        }
        if (c->seen != store.revision || c->generation != store.generation) follow(c);
        if (store.leader == c) put_again(c);
    }
    const int64_t late = sim_chance(0.03) ? sim_between(0, 600) : 0;
    sim_at(sim_now() + (sim_between(LOOK_MS / 3, LOOK_MS) + late) * SIM_MS, look, c, 0);
}

/* Leases that nobody keeps alive. */
static void tick(void *context, uint64_t number) {
    (void)context, (void)number;
    const int64_t now = sim_now();
    for (uint32_t i = 0; store.is_up && i < store.count; i++) {
        slot *at = &store.slots[i];
        if (at->text && at->holder && now - at->holder->heard_ns > LEASE_MS * SIM_MS) {
            sim_trace("the lease of %s is over", at->key);
            delete (at);
        }
    }
    if (store.is_up && store.leader && now - store.leader->heard_ns > LEASE_MS * SIM_MS) {
        store.leader = NULL;
        store.revision++;
    }
    sim_at(now + TICK_MS * SIM_MS, tick, NULL, 0);
}

/* --- the store's faults ----------------------------------------------------------------------- */

void sim_store_set_up(bool is_up) {
    store.is_up = is_up;
    for (sim_client *c = store.clients; c; c = c->next)
        if (is_up && !c->has_left) c->heard_ns = sim_now(); /* leases begin anew */
}

bool sim_store_is_known(void) {
    uint32_t current = 0, all = 0;
    for (const sim_client *c = store.clients; c; c = c->next) {
        if (!c->is_candidate || c->has_left) continue;
        all++;
        current += reaches(c) && c->seen == store.revision && c->generation == store.generation;
    }
    return all > 0 && current == all;
}

static void free_slots(slot *slots, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        free(slots[i].text);
        slots[i].text = NULL;
    }
}

void sim_store_keep(void) {
    free_slots(store.kept, store.kept_count);
    memcpy(store.kept, store.slots, sizeof(store.kept));
    store.kept_count = store.count;
    for (uint32_t i = 0; i < store.count; i++)
        if (store.kept[i].text) store.kept[i].text = mr_strdup(store.kept[i].text);
}

void sim_store_wipe(bool restores) {
    for (uint32_t i = 0; i < store.count; i++) delete (&store.slots[i]);
    for (uint32_t i = 0; restores && i < store.kept_count; i++) {
        const slot *old = &store.kept[i];
        if (old->text && !old->holder)
            put(old->kind, old->role, old->key, mr_strdup(old->text), old->epoch, NULL);
    }
    store.leader = NULL;
    store.generation++;
}

void sim_store_put_model(const mr_model_record *model) {
    if (!store.is_up) return;
    put(KIND_MODEL, 0, model->name, mr_model_record_dump(model), model->epoch, NULL);
}

const mr_model_record *sim_store_model(const char *name) {
    mr_err err;
    const slot *at = find(KIND_MODEL, 0, name);
    if (!at || !at->text) return NULL;
    mr_model_record_free(store.asked_model);
    if (mr_model_record_parse(&store.asked_model, at->text, strlen(at->text), name, &err) != MR_OK)
        sim_fail("%s", err.text);
    return store.asked_model;
}

const mr_map_record *sim_store_map(const mr_digest *digest) {
    char key[MR_DIGEST_TEXT_BYTES];
    mr_err err;
    const slot *at = find(KIND_MAP, 0, key_of(digest, key));
    if (!at || !at->text) return NULL;
    mr_map_record_free(store.asked);
    if (mr_map_record_parse(&store.asked, at->text, strlen(at->text), key, &err) != MR_OK)
        sim_fail("%s", err.text);
    return store.asked;
}

/* --- clients ---------------------------------------------------------------------------------- */

static const mr_view *kept_view(const char *id) {
    for (const sim_client *c = store.clients; c; c = c->next) /* the latest first */
        if (strcmp(c->id, id) == 0) return c->view;
    return NULL;
}

sim_client *sim_client_join(sim_process *process, const char *id, bool is_candidate) {
    sim_client *c = mr_alloc(sizeof(*c));
    *c = (sim_client){.next = store.clients,
                      .process = process,
                      .is_candidate = is_candidate,
                      .heard_ns = sim_now(),
                      .generation = UINT64_MAX}; /* of a kept view nothing is known to be true */
    mr_view_builder *b = mr_view_builder_open(kept_view(id), "sim");
    mr_view_set_leader(b, NULL, 0);
    snprintf(c->id, sizeof(c->id), "%s", id);
    c->view = mr_view_publish(b);
    store.clients = c;
    sim_at(sim_now() + sim_between(1, LOOK_MS) * SIM_MS, look, c, 0);
    return c;
}

void sim_client_leave(sim_client *c) {
    c->has_left = true;
    free(c->own);
    c->own = NULL;
}

const mr_view *sim_client_view(const sim_client *c) {
    return c->view;
}
bool sim_client_is_up(const sim_client *c) {
    return c->was_up;
}
bool sim_client_leads(const sim_client *c) {
    return c->view->leader && strcmp(c->view->leader, c->id) == 0;
}

void sim_client_announce(sim_client *c, const mr_member *self) {
    free(c->own);
    c->own = mr_member_dump(self);
    c->role = self->role;
    if (!c->own) sim_fail("the record of %s cannot be written", c->id);
}

void sim_client_report_dead(sim_client *c, mr_role role, const char *id) {
    const mr_member *m = mr_view_member(c->view, role, id);
    if (!m || m->is_listed) return;
    mr_view_builder *b = mr_view_builder_open(c->view, "sim");
    mr_view_remove_member(b, role, id);
    mr_view_release(c->view);
    c->view = mr_view_publish(b);
}

/* --- changes ---------------------------------------------------------------------------------- */

/* The way there and back. false: the change is not made. */
static bool go_there(sim_client *c) {
    sim_sleep(sim_between(200, 4000) * 1000);
    return reaches(c);
}

static mr_status come_back(sim_client *c, mr_status status) {
    sim_sleep(sim_between(200, 4000) * 1000);
    return reaches(c) && !sim_chance(0.03) ? status : MR_ERR_UNAVAILABLE;
}

mr_status sim_client_put_next_map(sim_client *c, const mr_map_record *map) {
    char key[MR_DIGEST_TEXT_BYTES];
    char *text = mr_map_record_dump(map);
    const uint64_t epoch = map->epoch;
    key_of(&map->digest, key);
    if (!go_there(c)) {
        free(text);
        return MR_ERR_UNAVAILABLE;
    }
    const slot *now = find(KIND_MAP, 0, key), *next = find(KIND_NEXT, 0, key);
    if (store.leader != c || (now && now->text && now->epoch >= epoch) ||
        (next && next->text && next->epoch >= epoch)) {
        free(text);
        return come_back(c, MR_ERR_STALE);
    }
    put(KIND_NEXT, 0, key, text, epoch, NULL);
    sim_trace("%s puts next map %llu", c->id, (unsigned long long)epoch);
    return come_back(c, MR_OK);
}

mr_status sim_client_switch_map(sim_client *c, const mr_digest *digest, uint64_t epoch) {
    char key[MR_DIGEST_TEXT_BYTES];
    key_of(digest, key);
    if (!go_there(c)) return MR_ERR_UNAVAILABLE;
    slot *next = find(KIND_NEXT, 0, key);
    if (store.leader != c || !next || !next->text || next->epoch != epoch)
        return come_back(c, MR_ERR_STALE);
    put(KIND_MAP, 0, key, mr_strdup(next->text), epoch, NULL);
    delete (find(KIND_NEXT, 0, key));
    sim_trace("%s switches to map %llu", c->id, (unsigned long long)epoch);
    return come_back(c, MR_OK);
}

mr_status sim_client_delete_map(sim_client *c, const mr_digest *digest) {
    char key[MR_DIGEST_TEXT_BYTES];
    key_of(digest, key);
    if (!go_there(c)) return MR_ERR_UNAVAILABLE;
    if (store.leader != c) return come_back(c, MR_ERR_STALE);
    delete (find(KIND_NEXT, 0, key));
    delete (find(KIND_MAP, 0, key));
    return come_back(c, MR_OK);
}

mr_status sim_client_claim(sim_client *c, const char *group, uint64_t epoch) {
    if (!go_there(c)) return MR_ERR_UNAVAILABLE;
    const slot *now = find(KIND_OWNER, 0, group);
    const mr_owner_record *seen = mr_view_owner(c->view, group);
    uint64_t last = now && now->text ? now->epoch : 0;
    if (seen && seen->epoch > last) last = seen->epoch; /* a store may have been restored */
    if (epoch != last + 1) return come_back(c, MR_ERR_STALE);
    const mr_owner_record owner = {
        .group = (char *)(uintptr_t)group, .coordinator = c->id, .epoch = epoch};
    put(KIND_OWNER, 0, group, mr_owner_record_dump(&owner), epoch, NULL);
    sim_trace("%s owns %s, epoch %llu", c->id, group, (unsigned long long)epoch);
    return come_back(c, MR_OK);
}

/* --- open and close --------------------------------------------------------------------------- */

void sim_store_open(void) {
    memset(&store, 0, sizeof(store));
    store.is_up = true;
    sim_at(sim_now(), tick, NULL, 0);
}

void sim_store_close(void) {
    free_slots(store.slots, store.count);
    free_slots(store.kept, store.kept_count);
    mr_map_record_free(store.asked);
    mr_model_record_free(store.asked_model);
    while (store.clients) {
        sim_client *c = store.clients;
        store.clients = c->next;
        mr_view_release(c->view);
        free(c->own);
        free(c);
    }
}
