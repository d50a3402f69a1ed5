/* controller.c - see controller.h. */
#include "coordinator/controller.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/placement.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REPLACE_AFTER_MS = 30000,
    UNLOAD_AFTER_MS = 5000,
    SETTLE_MS = 1500, /* members come in bunches: places are found when no more do */
    DEAD_AFTER_MS = 3000,
    UNKNOWN_AFTER_MS = 600000,
};

/* What a view does not remember. */
typedef struct {
    char *id;
    mr_role role;
    int64_t lost_since_ns; /* 0: it answers */
    bool is_seen;          /* in the last view */
} memory;

typedef struct {
    mr_digest digest;
    uint64_t epoch;
    int64_t since_ns; /* when this epoch was first seen as the current one */
} switched;

/* A model that was wanted once. What nobody here ever wanted may be of a model that a wiped etcd
 * has forgotten: it is not taken away before UNKNOWN_AFTER_MS. */
struct mr_controller {
    mr_digest *known;
    uint32_t known_count;
    int64_t began_ns;
    mr_controller_options options;
    memory *memories;
    uint32_t memory_count;
    switched *switches;
    uint32_t switch_count;
    uint64_t members_hash; /* of ids, states and capacities: */
    int64_t settled_ns;    /* when it last changed */
    mr_action *actions;
    char **complaints;
    mr_actions list;
    const mr_controller_input *in; /* during decide */
};

mr_controller *mr_controller_open(const mr_controller_options *options) {
    mr_controller *c = mr_alloc(sizeof(*c));
    c->options = *options;
    if (c->options.replace_after_ms == 0) c->options.replace_after_ms = REPLACE_AFTER_MS;
    if (c->options.unload_after_ms == 0) c->options.unload_after_ms = UNLOAD_AFTER_MS;
    return c;
}

static void clear_list(mr_controller *c) {
    for (uint32_t i = 0; i < c->list.count; i++) {
        mr_map_record_free(c->actions[i].map);
        free(c->actions[i].member);
        free(c->actions[i].cells);
    }
    for (uint32_t i = 0; i < c->list.complaint_count; i++) free(c->complaints[i]);
    c->list = (mr_actions){0};
}

void mr_controller_close(mr_controller *c) {
    if (!c) return;
    clear_list(c);
    for (uint32_t i = 0; i < c->memory_count; i++) free(c->memories[i].id);
    free(c->memories);
    free(c->switches);
    free(c->known);
    free(c->actions);
    free(c->complaints);
    free(c);
}

/* --- the list --------------------------------------------------------------------------------- */

static mr_action *act(mr_controller *c, mr_action_kind kind, const mr_digest *digest) {
    c->actions = mr_realloc_array(c->actions, c->list.count + 1, sizeof(*c->actions));
    mr_action *a = &c->actions[c->list.count++];
    *a = (mr_action){.kind = kind};
    if (digest) a->digest = *digest;
    c->list.items = c->actions;
    return a;
}

static void complain(mr_controller *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void complain(mr_controller *c, const char *format, ...) {
    char text[MR_ERR_TEXT_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    c->complaints =
        mr_realloc_array(c->complaints, c->list.complaint_count + 1, sizeof(*c->complaints));
    c->complaints[c->list.complaint_count++] = mr_strdup(text);
    c->list.complaints = (const char *const *)c->complaints;
}

/* --- who is there ----------------------------------------------------------------------------- */

static memory *recall(mr_controller *c, mr_role role, const char *id) {
    for (uint32_t i = 0; i < c->memory_count; i++)
        if (c->memories[i].role == role && strcmp(c->memories[i].id, id) == 0)
            return &c->memories[i];
    c->memories = mr_realloc_array(c->memories, c->memory_count + 1, sizeof(*c->memories));
    memory *m = &c->memories[c->memory_count++];
    *m = (memory){.id = mr_strdup(id), .role = role};
    return m;
}

static void notice_members(mr_controller *c) {
    const mr_view *view = c->in->view;
    const int64_t now = c->in->now_ns;
    uint64_t hash = 1469598103934665603ull;
    for (uint32_t i = 0; i < c->memory_count; i++) c->memories[i].is_seen = false;
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *member = view->members[i];
        memory *m = recall(c, member->role, member->id);
        const double silent = c->in->silent_s(c->in->context, member);
        const bool is_lost = silent > DEAD_AFTER_MS / 1000.0 || (silent < 0 && !member->is_listed);
        m->is_seen = true;
        if (!is_lost)
            m->lost_since_ns = 0;
        else if (m->lost_since_ns == 0)
            m->lost_since_ns = now;
        const int64_t patience =
            (member->role == MR_ROLE_MEMSHARD ? c->options.replace_after_ms : DEAD_AFTER_MS) *
            1000000ll;
        if (is_lost && !member->is_listed && now - m->lost_since_ns > patience) {
            mr_action *a = act(c, MR_ACT_REPORT_DEAD, NULL);
            a->role = member->role;
            a->member = mr_strdup(member->id);
        }
        if (member->role != MR_ROLE_MEMSHARD) continue;
        for (const char *at = member->id; *at; at++)
            hash = (hash ^ (uint8_t)*at) * 1099511628211ull;
        hash = (hash ^ member->state ^ member->capacity_bytes) * 1099511628211ull;
    }
    /* One that has left the view is lost since the first time it was missed. */
    for (uint32_t i = 0; i < c->memory_count; i++)
        if (!c->memories[i].is_seen && c->memories[i].lost_since_ns == 0)
            c->memories[i].lost_since_ns = now;
    if (hash != c->members_hash || c->settled_ns == 0) {
        c->members_hash = hash;
        c->settled_ns = now;
    }
}

static bool is_settled(const mr_controller *c) {
    return c->in->now_ns - c->settled_ns > SETTLE_MS * 1000000ll;
}

/* --- maps ------------------------------------------------------------------------------------- */

static uint32_t cells_of(const mr_map_record *map) {
    return map->grid_rows * map->grid_columns;
}

/* The cells a map gives to a member, ascending; owned. */
static uint32_t *cells_for(const mr_map_record *map, const char *id, uint32_t *count) {
    uint32_t *cells = mr_alloc_array(map ? cells_of(map) : 0, sizeof(*cells));
    *count = 0;
    for (uint32_t cell = 0; map && cell < cells_of(map); cell++)
        for (uint32_t i = map->replica_first[cell]; i < map->replica_first[cell + 1]; i++)
            if (strcmp(map->replicas[i], id) == 0) cells[(*count)++] = cell;
    return cells;
}

static const mr_holding *holding_of(const mr_member *member, const mr_map_record *map) {
    for (uint32_t i = 0; member && i < member->holding_count; i++)
        if (memcmp(&member->holdings[i].digest, &map->digest, sizeof(map->digest)) == 0 &&
            member->holdings[i].grid_rows == map->grid_rows &&
            member->holdings[i].grid_columns == map->grid_columns)
            return &member->holdings[i];
    return NULL;
}

static bool holds(const mr_holding *holding, uint32_t cell) {
    for (uint32_t i = 0; holding && i < holding->cell_count; i++)
        if (holding->cells[i] == cell) return true;
    return false;
}

static void unload(mr_controller *c, const mr_member *member, const mr_holding *holding,
                   uint32_t *cells, uint32_t count) {
    mr_action *a = act(c, MR_ACT_UNLOAD, &holding->digest);
    a->member = mr_strdup(member->id);
    a->grid_rows = holding->grid_rows;
    a->grid_columns = holding->grid_columns;
    a->cells = cells;
    a->cell_count = count;
}

/* Cells of the same tables cut in another grid, which no map is in: left from before. A record has
 * a digest once, so they go before cells of this grid come. */
static bool order_old_grid_away(mr_controller *c, const mr_member *member,
                                const mr_map_record *map) {
    const mr_map_record *current = mr_view_map(c->in->view, &map->digest);
    for (uint32_t i = 0; i < member->holding_count; i++) {
        const mr_holding *h = &member->holdings[i];
        if (memcmp(&h->digest, &map->digest, sizeof(map->digest)) != 0 ||
            (h->grid_rows == map->grid_rows && h->grid_columns == map->grid_columns) ||
            (current && h->grid_rows == current->grid_rows &&
             h->grid_columns == current->grid_columns))
            continue;
        uint32_t *cells = mr_alloc_array(h->cell_count, sizeof(*cells));
        memcpy(cells, h->cells, h->cell_count * sizeof(*cells));
        unload(c, member, h, cells, h->cell_count);
        return true;
    }
    return false;
}

/* Orders what members of a map lack; returns how many cells that is. A cell of a member that is
 * away counts too: nobody is told to switch to a map with a hole. */
static uint32_t order_loads(mr_controller *c, const mr_map_record *map,
                            const mr_model_version *version) {
    uint32_t missing = 0;
    for (uint32_t m = 0; m < c->in->view->member_count; m++) {
        const mr_member *member = c->in->view->members[m];
        if (member->role != MR_ROLE_MEMSHARD) continue;
        const bool is_lost = recall(c, MR_ROLE_MEMSHARD, member->id)->lost_since_ns != 0;
        const mr_holding *holding = is_lost ? NULL : holding_of(member, map);
        uint32_t count, kept = 0;
        uint32_t *cells = cells_for(map, member->id, &count);
        for (uint32_t i = 0; i < count; i++)
            if (!holds(holding, cells[i])) cells[kept++] = cells[i];
        missing += kept;
        if (kept == 0 || is_lost || order_old_grid_away(c, member, map)) {
            free(cells);
            continue;
        }
        mr_action *a = act(c, MR_ACT_LOAD, &map->digest);
        a->member = mr_strdup(member->id);
        a->version = version;
        a->grid_rows = map->grid_rows;
        a->grid_columns = map->grid_columns;
        a->cells = cells;
        a->cell_count = kept;
    }
    for (uint32_t i = 0; i < map->replica_first[cells_of(map)]; i++)
        missing += mr_view_member(c->in->view, MR_ROLE_MEMSHARD, map->replicas[i]) == NULL;
    return missing;
}

/* All versions that share the memshards, and which of them is the one of `digest`. *out is owned;
 * false while the size of one is not known. */
static bool models_of(mr_controller *c, const mr_digest *digest, mr_placement_model **out,
                      uint32_t *count, uint32_t *which) {
    const mr_view *view = c->in->view;
    *out = NULL;
    *count = 0;
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t v = 0; v < view->models[i]->version_count; v++) {
            const mr_model_version *version = &view->models[i]->versions[v];
            const uint64_t bytes = c->in->table_bytes(c->in->context, version);
            if (bytes == 0) continue;
            if (bytes == UINT64_MAX) return false;
            if (memcmp(&version->digest, digest, sizeof(*digest)) == 0) *which = *count;
            *out = mr_realloc_array(*out, *count + 1, sizeof(**out));
            (*out)[(*count)++] = (mr_placement_model){.digest = version->digest,
                                                      .grid_rows = version->grid_rows,
                                                      .grid_columns = version->grid_columns,
                                                      .replicas = version->replicas,
                                                      .table_bytes = bytes};
        }
    return true;
}

/* Publishes a next map where the present one is not as it should be. */
static bool find_places(mr_controller *c, const char *name, const mr_model_version *version) {
    mr_placement_model *models;
    uint32_t count, which = 0;
    mr_placement found = {0};
    mr_err err;
    const mr_placement_options options = {.allow_same_host = c->options.allow_same_host};
    if (models_of(c, &version->digest, &models, &count, &which)) {
        mr_status status =
            mr_placement_compute(&found, c->in->view, models, count, which, &options, &err);
        if (status != MR_OK) complain(c, "model %s %s: %s", name, version->version, err.text);
        if (found.map) {
            mr_action *a = act(c, MR_ACT_PUT_NEXT_MAP, &version->digest);
            a->epoch = found.map->epoch;
            a->map = found.map;
            found.map = NULL;
        }
    }
    const bool is_new =
        c->list.count > 0 && c->actions[c->list.count - 1].kind == MR_ACT_PUT_NEXT_MAP &&
        memcmp(&c->actions[c->list.count - 1].digest, &version->digest, sizeof(version->digest)) ==
            0;
    mr_placement_free(&found);
    free(models);
    return is_new;
}

/* A next map is carried through unless one of its members has left or drains, or the grid or the
 * number of replicas that is wanted has changed: then it is replaced by a better one. */
static void keep_version(mr_controller *c, const char *name, const mr_model_version *version) {
    const mr_view *view = c->in->view;
    const mr_map_record *current = mr_view_map(view, &version->digest);
    const mr_map_record *next = mr_view_next_map(view, &version->digest);
    if (c->in->table_bytes(c->in->context, version) == 0) return;
    if (current && !next) order_loads(c, current, version); /* somebody came back empty */
    if (is_settled(c) && find_places(c, name, version)) return;
    if (!next || order_loads(c, next, version) > 0) return;
    mr_action *a = act(c, MR_ACT_SWITCH_MAP, &next->digest);
    a->epoch = next->epoch;
}

/* --- what is no longer wanted ----------------------------------------------------------------- */

static bool is_wanted(const mr_view *view, const mr_digest *digest) {
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t v = 0; v < view->models[i]->version_count; v++)
            if (memcmp(&view->models[i]->versions[v].digest, digest, sizeof(*digest)) == 0)
                return true;
    return false;
}

static bool is_known(const mr_controller *c, const mr_digest *digest) {
    for (uint32_t i = 0; i < c->known_count; i++)
        if (memcmp(&c->known[i], digest, sizeof(*digest)) == 0) return true;
    return false;
}

static void remember_models(mr_controller *c) {
    const mr_view *view = c->in->view;
    if (c->began_ns == 0) c->began_ns = c->in->now_ns;
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t v = 0; v < view->models[i]->version_count; v++) {
            const mr_digest *digest = &view->models[i]->versions[v].digest;
            if (is_known(c, digest)) continue;
            c->known = mr_realloc_array(c->known, c->known_count + 1, sizeof(*c->known));
            c->known[c->known_count++] = *digest;
        }
}

static bool may_forget(const mr_controller *c, const mr_digest *digest) {
    return is_known(c, digest) || c->in->now_ns - c->began_ns > UNKNOWN_AFTER_MS * 1000000ll;
}

/* Since when a map's epoch has been the current one, as far as we saw. */
static int64_t current_since(mr_controller *c, const mr_digest *digest, uint64_t epoch) {
    for (uint32_t i = 0; i < c->switch_count; i++) {
        switched *s = &c->switches[i];
        if (memcmp(&s->digest, digest, sizeof(*digest)) != 0) continue;
        if (s->epoch != epoch) *s = (switched){*digest, epoch, c->in->now_ns};
        return s->since_ns;
    }
    c->switches = mr_realloc_array(c->switches, c->switch_count + 1, sizeof(*c->switches));
    c->switches[c->switch_count++] = (switched){*digest, epoch, c->in->now_ns};
    return c->in->now_ns;
}

/* No worker has a step under way on an older map. */
static bool is_epoch_left_behind(const mr_view *view, const mr_digest *digest, uint64_t epoch) {
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        if (m->role != MR_ROLE_WORKER || m->map_epoch == 0 || m->map_epoch >= epoch) continue;
        for (uint32_t s = 0; s < m->stage_count; s++)
            if (memcmp(&m->stages[s].digest, digest, sizeof(*digest)) == 0) return false;
    }
    return true;
}

/* A map of this model is about to change: what is extra can be told next time. */
static bool is_changing(const mr_controller *c, const mr_digest *digest) {
    for (uint32_t i = 0; i < c->list.count; i++)
        if ((c->actions[i].kind == MR_ACT_PUT_NEXT_MAP || c->actions[i].kind == MR_ACT_SWITCH_MAP ||
             c->actions[i].kind == MR_ACT_DELETE_MAP) &&
            memcmp(&c->actions[i].digest, digest, sizeof(*digest)) == 0)
            return true;
    return false;
}

static void tidy_holding(mr_controller *c, const mr_member *member, const mr_holding *holding) {
    const mr_view *view = c->in->view;
    const mr_map_record *current = mr_view_map(view, &holding->digest);
    const mr_map_record *next = mr_view_next_map(view, &holding->digest);
    const uint64_t epoch = current ? current->epoch : UINT64_MAX;
    const int64_t since = current_since(c, &holding->digest, epoch);
    if (is_changing(c, &holding->digest)) return;
    if (!is_wanted(view, &holding->digest) && !may_forget(c, &holding->digest)) return;
    if (c->in->now_ns - since < c->options.unload_after_ms * 1000000ll) return;
    if (!current && (next || is_wanted(view, &holding->digest))) return;
    if (current && !is_epoch_left_behind(view, &holding->digest, epoch)) return;
    uint32_t *extra = mr_alloc_array(holding->cell_count, sizeof(*extra)), count = 0;
    const mr_map_record *maps[2] = {current, next};
    for (uint32_t i = 0; i < holding->cell_count; i++) {
        bool is_needed = false;
        for (int k = 0; k < 2; k++) {
            const mr_map_record *map = maps[k];
            if (!map || map->grid_rows != holding->grid_rows ||
                map->grid_columns != holding->grid_columns)
                continue;
            const uint32_t cell = holding->cells[i];
            for (uint32_t r = map->replica_first[cell]; r < map->replica_first[cell + 1]; r++)
                is_needed |= strcmp(map->replicas[r], member->id) == 0;
        }
        if (!is_needed) extra[count++] = holding->cells[i];
    }
    if (count > 0)
        unload(c, member, holding, extra, count);
    else
        free(extra);
}

static void tidy_up(mr_controller *c) {
    const mr_view *view = c->in->view;
    for (uint32_t i = 0; i < view->map_count; i++)
        if (!is_wanted(view, &view->maps[i]->digest) && may_forget(c, &view->maps[i]->digest))
            act(c, MR_ACT_DELETE_MAP, &view->maps[i]->digest);
    for (uint32_t i = 0; i < view->next_map_count; i++)
        if (!is_wanted(view, &view->next_maps[i]->digest) &&
            may_forget(c, &view->next_maps[i]->digest) &&
            !mr_view_map(view, &view->next_maps[i]->digest))
            act(c, MR_ACT_DELETE_MAP, &view->next_maps[i]->digest);
    for (uint32_t m = 0; m < view->member_count; m++) {
        const mr_member *member = view->members[m];
        if (recall(c, member->role, member->id)->lost_since_ns != 0) continue;
        for (uint32_t h = 0; h < member->holding_count; h++)
            tidy_holding(c, member, &member->holdings[h]);
    }
}

const mr_actions *mr_controller_decide(mr_controller *c, const mr_controller_input *input) {
    clear_list(c);
    c->in = input;
    remember_models(c);
    notice_members(c);
    for (uint32_t i = 0; i < input->view->model_count; i++) {
        const mr_model_record *model = input->view->models[i];
        for (uint32_t v = 0; v < model->version_count; v++)
            keep_version(c, model->name, &model->versions[v]);
    }
    tidy_up(c);
    c->in = NULL;
    return &c->list;
}
