/* view.c - views: sorted lists of counted records, built by one thread and then never changed.
 *
 * A builder holds one reference to every record in its lists; publishing moves the lists into the
 * view. Equality of records is equality of their texts: every text is written in one way only. */
#include "common/net/view.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

typedef enum { MEMBERS, MODELS, MAPS, NEXT_MAPS, OWNERS, KINDS } kind;

typedef struct {
    void **items; /* [count] ascending */
    uint32_t count, room;
} list;

struct mr_view_builder {
    list lists[KINDS];
    char *cluster, *leader;
    uint64_t number, leader_epoch;
    int64_t revision;
};

/* --- what the kinds have in common ------------------------------------------------------------ */

static int compare_members(const void *a, const void *b) {
    const mr_member *x = a, *y = b;
    return x->role != y->role ? (x->role < y->role ? -1 : 1) : strcmp(x->id, y->id);
}
static int compare_models(const void *a, const void *b) {
    return strcmp(((const mr_model_record *)a)->name, ((const mr_model_record *)b)->name);
}
static int compare_maps(const void *a, const void *b) {
    return memcmp(&((const mr_map_record *)a)->digest, &((const mr_map_record *)b)->digest,
                  sizeof(mr_digest));
}
static int compare_owners(const void *a, const void *b) {
    return strcmp(((const mr_owner_record *)a)->group, ((const mr_owner_record *)b)->group);
}

static void free_record(kind k, void *record) {
    if (k == MEMBERS)
        mr_member_free(record);
    else if (k == MODELS)
        mr_model_record_free(record);
    else if (k == OWNERS)
        mr_owner_record_free(record);
    else
        mr_map_record_free(record);
}

static const void *retain_record(kind k, const void *record) {
    if (k == MEMBERS) return mr_member_retain(record);
    if (k == MODELS) return mr_model_record_retain(record);
    if (k == OWNERS) return mr_owner_record_retain(record);
    return mr_map_record_retain(record);
}

static uint64_t epoch_of(kind k, const void *record) {
    if (k == MODELS) return ((const mr_model_record *)record)->epoch;
    if (k == OWNERS) return ((const mr_owner_record *)record)->epoch;
    return ((const mr_map_record *)record)->epoch;
}

static char *text_of(kind k, const void *record) {
    if (k == MODELS) return mr_model_record_dump(record);
    if (k == OWNERS) return mr_owner_record_dump(record);
    return mr_map_record_dump(record);
}

static const struct {
    int (*compare)(const void *, const void *);
    uint32_t count_max;
    const char *name;
} kinds[KINDS] = {
    [MEMBERS] = {compare_members, MR_MAX_MEMBERS, "member"},
    [MODELS] = {compare_models, MR_MAX_MODELS, "model"},
    [MAPS] = {compare_maps, MR_MAX_MODELS, "map"},
    [NEXT_MAPS] = {compare_maps, MR_MAX_MODELS, "next map"},
    [OWNERS] = {compare_owners, MR_MAX_GROUPS, "owner"},
};

/* Where the record of this key is or would be. */
static uint32_t lower_bound(kind k, void *const *items, uint32_t count, const void *key) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (kinds[k].compare(items[middle], key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void *find(kind k, void *const *items, uint32_t count, const void *key) {
    const uint32_t at = lower_bound(k, items, count, key);
    return at < count && kinds[k].compare(items[at], key) == 0 ? items[at] : NULL;
}

/* --- views ------------------------------------------------------------------------------------ */

const mr_view *mr_view_retain(const mr_view *view) {
    mr_view *v = (mr_view *)(uintptr_t)view;
    atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
    return view;
}

void mr_view_release(const mr_view *view) {
    mr_view *v = (mr_view *)(uintptr_t)view;
    if (!v || atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) > 0) return;
    for (uint32_t i = 0; i < v->member_count; i++) mr_member_free(v->members[i]);
    for (uint32_t i = 0; i < v->model_count; i++) mr_model_record_free(v->models[i]);
    for (uint32_t i = 0; i < v->map_count; i++) mr_map_record_free(v->maps[i]);
    for (uint32_t i = 0; i < v->next_map_count; i++) mr_map_record_free(v->next_maps[i]);
    for (uint32_t i = 0; i < v->owner_count; i++) mr_owner_record_free(v->owners[i]);
    free(v->members);
    free(v->models);
    free(v->maps);
    free(v->next_maps);
    free(v->owners);
    free(v->cluster);
    free(v->leader);
    free(v);
}

const mr_member *mr_view_member(const mr_view *view, mr_role role, const char *id) {
    const mr_member key = {.role = role, .id = (char *)(uintptr_t)id};
    return find(MEMBERS, (void *const *)view->members, view->member_count, &key);
}

const mr_map_record *mr_view_map(const mr_view *view, const mr_digest *digest) {
    const mr_map_record key = {.digest = *digest};
    return find(MAPS, (void *const *)view->maps, view->map_count, &key);
}

const mr_map_record *mr_view_next_map(const mr_view *view, const mr_digest *digest) {
    const mr_map_record key = {.digest = *digest};
    return find(NEXT_MAPS, (void *const *)view->next_maps, view->next_map_count, &key);
}

const mr_model_record *mr_view_model(const mr_view *view, const char *name) {
    const mr_model_record key = {.name = (char *)(uintptr_t)name};
    return find(MODELS, (void *const *)view->models, view->model_count, &key);
}

const mr_owner_record *mr_view_owner(const mr_view *view, const char *group) {
    const mr_owner_record key = {.group = (char *)(uintptr_t)group};
    return find(OWNERS, (void *const *)view->owners, view->owner_count, &key);
}

/* --- building --------------------------------------------------------------------------------- */

static void copy_list(mr_view_builder *b, kind k, void *const *items, uint32_t count) {
    list *l = &b->lists[k];
    l->items = mr_alloc_array(count + 1u, sizeof(*l->items));
    l->room = count + 1;
    l->count = count;
    for (uint32_t i = 0; i < count; i++)
        l->items[i] = (void *)(uintptr_t)retain_record(k, items[i]);
}

mr_view_builder *mr_view_builder_open(const mr_view *from, const char *cluster) {
    mr_view_builder *b = mr_alloc(sizeof(*b));
    b->cluster = mr_strdup(cluster);
    if (!from) return b;
    b->number = from->number;
    b->revision = from->revision;
    b->leader = from->leader ? mr_strdup(from->leader) : NULL;
    b->leader_epoch = from->leader_epoch;
    copy_list(b, MEMBERS, (void *const *)from->members, from->member_count);
    copy_list(b, MODELS, (void *const *)from->models, from->model_count);
    copy_list(b, MAPS, (void *const *)from->maps, from->map_count);
    copy_list(b, NEXT_MAPS, (void *const *)from->next_maps, from->next_map_count);
    copy_list(b, OWNERS, (void *const *)from->owners, from->owner_count);
    return b;
}

void mr_view_builder_close(mr_view_builder *b) {
    if (!b) return;
    for (kind k = MEMBERS; k < KINDS; k++) {
        for (uint32_t i = 0; i < b->lists[k].count; i++) free_record(k, b->lists[k].items[i]);
        free(b->lists[k].items);
    }
    free(b->cluster);
    free(b->leader);
    free(b);
}

const mr_view *mr_view_publish(mr_view_builder *b) {
    mr_view *v = mr_alloc(sizeof(*v));
    v->number = b->number + 1;
    v->revision = b->revision;
    v->cluster = b->cluster;
    v->leader = b->leader;
    v->leader_epoch = b->leader_epoch;
    v->members = (mr_member **)b->lists[MEMBERS].items;
    v->member_count = b->lists[MEMBERS].count;
    v->models = (mr_model_record **)b->lists[MODELS].items;
    v->model_count = b->lists[MODELS].count;
    v->maps = (mr_map_record **)b->lists[MAPS].items;
    v->map_count = b->lists[MAPS].count;
    v->next_maps = (mr_map_record **)b->lists[NEXT_MAPS].items;
    v->next_map_count = b->lists[NEXT_MAPS].count;
    v->owners = (mr_owner_record **)b->lists[OWNERS].items;
    v->owner_count = b->lists[OWNERS].count;
    free(b);
    return v;
}

static bool remove_record(mr_view_builder *b, kind k, const void *key) {
    list *l = &b->lists[k];
    const uint32_t at = lower_bound(k, l->items, l->count, key);
    if (at == l->count || kinds[k].compare(l->items[at], key) != 0) return false;
    free_record(k, l->items[at]);
    l->count--;
    memmove(l->items + at, l->items + at + 1, (l->count - at) * sizeof(*l->items));
    return true;
}

/* Takes the reference over, also on failure. */
static mr_status put_record(mr_view_builder *b, kind k, void *record, mr_err *err) {
    list *l = &b->lists[k];
    const uint32_t at = lower_bound(k, l->items, l->count, record);
    if (at < l->count && kinds[k].compare(l->items[at], record) == 0) {
        free_record(k, l->items[at]);
        l->items[at] = record;
        return MR_OK;
    }
    if (l->count == kinds[k].count_max) {
        free_record(k, record);
        return mr_fail(err, MR_ERR_LIMIT, "the cluster has %u %s records already; no room for more",
                       l->count, kinds[k].name);
    }
    if (l->count == l->room) {
        l->room = l->room * 2 + 8;
        l->items = mr_realloc_array(l->items, l->room, sizeof(*l->items));
    }
    memmove(l->items + at + 1, l->items + at, (l->count - at) * sizeof(*l->items));
    l->items[at] = record;
    l->count++;
    return MR_OK;
}

/* An older record than the one that is there, or another one of the same age, is refused. */
static mr_status put_newer(mr_view_builder *b, kind k, void *record, mr_err *err) {
    list *l = &b->lists[k];
    const void *old = find(k, l->items, l->count, record);
    const uint64_t had = old ? epoch_of(k, old) : 0, has = epoch_of(k, record);
    mr_status status = MR_OK;
    if (has < had)
        status = mr_fail(err, MR_ERR_STALE, "a %s record of epoch %llu where %llu was seen",
                         kinds[k].name, (unsigned long long)has, (unsigned long long)had);
    else if (old && has == had) {
        char *before = text_of(k, old), *now = text_of(k, record);
        if (!before || !now || strcmp(before, now) != 0)
            status = mr_fail(err, MR_ERR_MISMATCH, "two different %s records of epoch %llu",
                             kinds[k].name, (unsigned long long)has);
        free(before);
        free(now);
    }
    if (status == MR_OK) return put_record(b, k, record, err);
    free_record(k, record);
    return status;
}

mr_status mr_view_put_member(mr_view_builder *b, mr_member *member, mr_err *err) {
    return put_record(b, MEMBERS, member, err);
}

mr_status mr_view_put_model(mr_view_builder *b, mr_model_record *record, mr_err *err) {
    return put_newer(b, MODELS, record, err);
}

mr_status mr_view_put_map(mr_view_builder *b, mr_map_record *record, mr_err *err) {
    const uint64_t epoch = record->epoch;
    const mr_map_record key = {.digest = record->digest};
    const mr_status status = put_newer(b, MAPS, record, err);
    if (status != MR_OK) return status;
    const list *l = &b->lists[NEXT_MAPS];
    const mr_map_record *next = find(NEXT_MAPS, l->items, l->count, &key);
    if (next && next->epoch <= epoch) remove_record(b, NEXT_MAPS, &key);
    return MR_OK;
}

mr_status mr_view_put_next_map(mr_view_builder *b, mr_map_record *record, mr_err *err) {
    const list *l = &b->lists[MAPS];
    const mr_map_record *current = find(MAPS, l->items, l->count, record);
    if (current && record->epoch <= current->epoch) {
        const uint64_t epoch = record->epoch;
        mr_map_record_free(record);
        return mr_fail(err, MR_ERR_STALE, "a next map of epoch %llu where the current one has %llu",
                       (unsigned long long)epoch, (unsigned long long)current->epoch);
    }
    return put_newer(b, NEXT_MAPS, record, err);
}

mr_status mr_view_put_owner(mr_view_builder *b, mr_owner_record *record, mr_err *err) {
    return put_newer(b, OWNERS, record, err);
}

bool mr_view_remove_member(mr_view_builder *b, mr_role role, const char *id) {
    const mr_member key = {.role = role, .id = (char *)(uintptr_t)id};
    return remove_record(b, MEMBERS, &key);
}

bool mr_view_remove_model(mr_view_builder *b, const char *name) {
    const mr_model_record key = {.name = (char *)(uintptr_t)name};
    return remove_record(b, MODELS, &key);
}

bool mr_view_remove_map(mr_view_builder *b, const mr_digest *digest) {
    const mr_map_record key = {.digest = *digest};
    return remove_record(b, MAPS, &key);
}

bool mr_view_remove_next_map(mr_view_builder *b, const mr_digest *digest) {
    const mr_map_record key = {.digest = *digest};
    return remove_record(b, NEXT_MAPS, &key);
}

bool mr_view_remove_owner(mr_view_builder *b, const char *group) {
    const mr_owner_record key = {.group = (char *)(uintptr_t)group};
    return remove_record(b, OWNERS, &key);
}

bool mr_view_set_listed(mr_view_builder *b, mr_role role, const char *id, bool is_listed) {
    const mr_member key = {.role = role, .id = (char *)(uintptr_t)id};
    const mr_member *old = find(MEMBERS, b->lists[MEMBERS].items, b->lists[MEMBERS].count, &key);
    if (!old) return false;
    if (old->is_listed == is_listed) return true;
    mr_member *changed; /* others may read the old one */
    if (mr_member_copy(&changed, old, NULL) != MR_OK) return false;
    changed->is_listed = is_listed;
    return put_record(b, MEMBERS, changed, NULL) == MR_OK;
}

void mr_view_set_leader(mr_view_builder *b, const char *id, uint64_t epoch) {
    free(b->leader);
    b->leader = id ? mr_strdup(id) : NULL;
    b->leader_epoch = epoch;
}

void mr_view_set_revision(mr_view_builder *b, int64_t revision) {
    b->revision = revision;
}
