/* cmd_model.c - `memrack load`, `unload`, `switch`, `rollback`: what a cluster serves.
 *
 * Each command reads the model's record, changes it, and puts it back with the next epoch in one
 * compare-and-put: two operators at once cannot lose each other's change. The leader does the
 * rest; `memrack status` shows how far it is. */
#include "cli/cli.h"

#include "cli/cluster_find.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/grid.h"
#include "common/model/manifest.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PUT_S = 10, SHOW_MS = 200 };

typedef struct {
    mr_agent_settings where;
    const char *model, *name, *version, *grid, *source;
    int64_t replicas, wait_s;
    bool is_forced;
} settings;

typedef struct {
    mr_cluster *cluster;
    const mr_view *view;
    const mr_model_record *old; /* NULL: not there */
} place;

static mr_status find_place(place *p, const settings *s, const char *name, mr_err *err) {
    const mr_status status = mr_cluster_find(&p->cluster, &s->where, NULL, err);
    if (status != MR_OK) return status;
    p->view = mr_cluster_view(p->cluster);
    p->old = mr_view_model(p->view, name);
    return MR_OK;
}

static void leave_place(place *p) {
    mr_view_release(p->view);
    mr_cluster_close(p->cluster);
}

static mr_status put(place *p, const mr_model_record *record, mr_err *err) {
    return mr_cluster_put_model(p->cluster, record, mr_now_ns() + PUT_S * 1000000000ll, err);
}

static const mr_model_version *version_of(const mr_model_record *r, const char *version) {
    for (uint32_t i = 0; r && i < r->version_count; i++)
        if (strcmp(r->versions[i].version, version) == 0) return &r->versions[i];
    return NULL;
}

/* The next epoch of a record, its versions borrowed from the old one: free versions only. */
static mr_model_record next_of(const mr_model_record *old, const char *name, uint32_t extra) {
    mr_model_record next = {.name = (char *)(uintptr_t)name, .epoch = 1};
    const uint32_t count = old ? old->version_count : 0;
    next.versions = mr_alloc_array(count + extra, sizeof(*next.versions));
    if (old) {
        next.epoch = old->epoch + 1;
        next.active = old->active;
        next.previous = old->previous;
        memcpy(next.versions, old->versions, count * sizeof(*next.versions));
    }
    next.version_count = count;
    return next;
}

/* --- load ------------------------------------------------------------------------------------- */

static bool is_loaded(const mr_view *view, const mr_digest *digest) {
    return mr_view_map(view, digest) != NULL && !mr_view_next_map(view, digest);
}

/* Shows progress until every cell is held, or the time is over. */
static mr_status wait_loaded(place *p, const mr_digest *digest, int64_t seconds, mr_err *err) {
    const int64_t deadline = mr_now_ns() + seconds * 1000000000;
    while (mr_now_ns() < deadline) {
        const mr_view *view = mr_cluster_view(p->cluster);
        const mr_map_record *map = mr_view_next_map(view, digest);
        const bool done = is_loaded(view, digest);
        if (map || !done) {
            const uint64_t cells = map ? (uint64_t)map->grid_rows * map->grid_columns : 0;
            uint64_t held = 0, wanted = map ? map->replica_first[cells] : 1;
            for (uint32_t m = 0; m < view->member_count; m++)
                for (uint32_t h = 0; h < view->members[m]->holding_count; h++)
                    if (memcmp(&view->members[m]->holdings[h].digest, digest, sizeof(*digest)) == 0)
                        held += view->members[m]->holdings[h].cell_count;
            mr_cli_progress(NULL, "loading on the memshards",
                            wanted > held ? (double)held / (double)wanted : 0.99);
        }
        mr_view_release(view);
        if (done) {
            mr_cli_progress(NULL, "loading on the memshards", 1.0);
            return MR_OK;
        }
        const struct timespec pause = {.tv_nsec = SHOW_MS * 1000000};
        nanosleep(&pause, NULL);
    }
    return mr_fail(err, MR_ERR_TIMEOUT,
                   "not loaded within %lld s; the cluster goes on: see `memrack status`",
                   (long long)seconds);
}

/* Tables are cut in one grid at a time, whatever models they belong to. */
static mr_status check_grid(const mr_view *view, const mr_digest *digest, mr_grid grid,
                            uint32_t replicas, mr_err *err) {
    const mr_map_record *map = mr_view_next_map(view, digest);
    if (!map) map = mr_view_map(view, digest);
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t v = 0; v < view->models[i]->version_count; v++) {
            const mr_model_version *other = &view->models[i]->versions[v];
            if (memcmp(&other->digest, digest, sizeof(*digest)) != 0) continue;
            if (other->grid_rows == grid.row_groups && other->grid_columns == grid.width_slices &&
                other->replicas == replicas)
                return MR_OK;
            return mr_fail(err, MR_ERR_ARGUMENT,
                           "%s %s has the same tables: --grid %ux%u --replicas %u as there",
                           view->models[i]->name, other->version, other->grid_rows,
                           other->grid_columns, other->replicas);
        }
    if (!map || (map->grid_rows == grid.row_groups && map->grid_columns == grid.width_slices))
        return MR_OK;
    return mr_fail(err, MR_ERR_UNAVAILABLE,
                   "these tables are still there in grid %ux%u, from before: try again in a moment",
                   map->grid_rows, map->grid_columns);
}

static mr_status load(const settings *s, const mr_manifest *manifest, const char *name,
                      const char *source, bool has_tables, mr_err *err) {
    mr_grid grid;
    place p = {0};
    char digest[MR_DIGEST_TEXT_BYTES], short_digest[13];
    mr_digest_text(&manifest->digest, digest);
    snprintf(short_digest, sizeof(short_digest), "%.12s", digest);
    const char *version = s->version ? s->version : short_digest;
    mr_status status = mr_grid_parse(&grid, s->grid ? s->grid : "1x1", err);
    if (status == MR_OK) status = find_place(&p, s, name, err);
    if (status != MR_OK) return status;
    mr_model_record next = next_of(p.old, name, 1);
    if (has_tables)
        status = check_grid(p.view, &manifest->digest, grid, (uint32_t)s->replicas, err);
    if (status == MR_OK && version_of(p.old, version))
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has a version %s already", name, version);
    else if (status == MR_OK) {
        next.versions[next.version_count++] =
            (mr_model_version){.version = (char *)(uintptr_t)version,
                               .digest = manifest->digest,
                               .source = (char *)(uintptr_t)source,
                               .grid_rows = grid.row_groups,
                               .grid_columns = grid.width_slices,
                               .replicas = (uint32_t)s->replicas};
        if (!next.active) next.active = (char *)(uintptr_t)version;
        status = put(&p, &next, err);
    }
    free(next.versions);
    if (status == MR_OK) {
        printf("%s %s: digest %s, grid %ux%u, %lld replicas\n", name, version, short_digest,
               grid.row_groups, grid.width_slices, (long long)s->replicas);
        if (s->wait_s > 0 && has_tables)
            status = wait_loaded(&p, &manifest->digest, s->wait_s, err);
    }
    leave_place(&p);
    return status;
}

int mr_cmd_load(int argc, char **argv) {
    settings s = {.replicas = 1, .wait_s = 600};
    const mr_option options[] = {
        MR_CLUSTER_FIND_OPTIONS(&s.where),
        {"name", 0, MR_OPT_TEXT, &s.name, 0, 0, "NAME", "model name for clients (the folder's)"},
        {"version", 0, MR_OPT_TEXT, &s.version, 0, 0, "V", "name of this version (its digest)"},
        {"grid", 'g', MR_OPT_TEXT, &s.grid, 0, 0, "GxW", "row groups x width slices (1x1)"},
        {"replicas", 'r', MR_OPT_INT, &s.replicas, 1, MR_MAX_REPLICAS, "R",
         "memshards that hold each cell (1)"},
        {"source", 0, MR_OPT_TEXT, &s.source, 0, 0, "SOURCE",
         "where members read it: a folder or URL they all reach (MODEL)"},
        {"wait", 0, MR_OPT_INT, &s.wait_s, 0, 86400, "S",
         "wait until the memshards hold it; 0: return at once (600)"},
        {0}};
    const mr_command_spec spec = {
        "memrack load MODEL [options]",
        "Adds a model, or a version of one, to a running cluster: the memshards load its tables.\n"
        "The first version becomes active; for a later one see `memrack switch`.\n"
        "Workers that serve it are started with --model and --group.\n"
        "Example: memrack load models/demo --grid 2x2 --replicas 2",
        options, 1, 1};
    mr_err err = {{0}};
    mr_model *model = NULL;
    mr_manifest manifest = {0};
    char full[PATH_MAX];
    int count;
    const int done = mr_cli_parse(&spec, argc, argv, &s.model, &count);
    if (done >= 0) return done;
    mr_status status = mr_model_open(&model, s.model, &err);
    if (status == MR_OK) status = mr_manifest_load(&manifest, model, mr_cli_progress, NULL, &err);
    if (status == MR_OK)
        status = load(&s, &manifest, s.name ? s.name : mr_model_name(model),
                      s.source                  ? s.source
                      : realpath(s.model, full) ? full
                                                : s.model,
                      mr_model_table_count(model) > 0, &err);
    mr_manifest_free(&manifest);
    mr_model_close(model);
    return status == MR_OK ? 0 : mr_cli_fail("load", status, &err);
}

/* --- unload ----------------------------------------------------------------------------------- */

static mr_status drop_version(place *p, const settings *s, const char *name, mr_err *err) {
    mr_model_record next = next_of(p->old, name, 0);
    mr_status status = MR_OK;
    if (!version_of(p->old, s->version))
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has no version %s", name, s->version);
    else if (strcmp(p->old->active, s->version) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "%s is the active version of %s: switch to another one first", s->version,
                         name);
    else {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < next.version_count; i++)
            if (strcmp(next.versions[i].version, s->version) != 0)
                next.versions[kept++] = next.versions[i];
        next.version_count = kept;
        if (next.previous && strcmp(next.previous, s->version) == 0) next.previous = NULL;
        status = put(p, &next, err);
    }
    free(next.versions);
    return status;
}

static int run_on_model(const settings *s, const char *command, const char *name,
                        mr_status (*change)(place *, const settings *, const char *, mr_err *)) {
    place p = {0};
    mr_err err = {{0}};
    mr_status status = find_place(&p, s, name, &err);
    if (status == MR_OK) {
        status = p.old ? change(&p, s, name, &err)
                       : mr_fail(&err, MR_ERR_ARGUMENT, "this cluster has no model %s", name);
        leave_place(&p);
    }
    return status == MR_OK ? 0 : mr_cli_fail(command, status, &err);
}

static mr_status unload(place *p, const settings *s, const char *name, mr_err *err) {
    if (s->version) return drop_version(p, s, name, err);
    return mr_cluster_delete_model(p->cluster, name, mr_now_ns() + PUT_S * 1000000000ll, err);
}

int mr_cmd_unload(int argc, char **argv) {
    settings s = {0};
    const mr_option options[] = {
        MR_CLUSTER_FIND_OPTIONS(&s.where),
        {"version", 0, MR_OPT_TEXT, &s.version, 0, 0, "V", "this version only, not the active one"},
        {0}};
    const mr_command_spec spec = {
        "memrack unload NAME [options]",
        "Takes a model, or one version of it, out of a cluster. Requests under way are finished.\n"
        "Example: memrack unload demo --version v1",
        options, 1, 1};
    int count;
    const int done = mr_cli_parse(&spec, argc, argv, &s.name, &count);
    return done >= 0 ? done : run_on_model(&s, "unload", s.name, unload);
}

/* --- switch and rollback ---------------------------------------------------------------------- */

static mr_status activate(place *p, const char *name, const char *version, mr_err *err) {
    const mr_model_version *to = version_of(p->old, version);
    if (!to) return mr_fail(err, MR_ERR_ARGUMENT, "%s has no version %s", name, version);
    if (strcmp(p->old->active, version) == 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "%s is the active version of %s already", version,
                       name);
    mr_model_record next = next_of(p->old, name, 0);
    next.previous = p->old->active;
    next.active = to->version;
    const mr_status status = put(p, &next, err);
    if (status == MR_OK) printf("%s: %s -> %s\n", name, next.previous, next.active);
    free(next.versions);
    return status;
}

/* Not before all of it is there: a switch to a version nobody serves would fail every request. */
static mr_status switch_version(place *p, const settings *s, const char *name, mr_err *err) {
    const mr_model_version *to = version_of(p->old, s->version);
    bool has_worker = false;
    for (uint32_t m = 0; to && m < p->view->member_count; m++)
        for (uint32_t i = 0; i < p->view->members[m]->stage_count; i++)
            has_worker |= memcmp(&p->view->members[m]->stages[i].digest, &to->digest,
                                 sizeof(to->digest)) == 0 &&
                          p->view->members[m]->state == MR_MEMBER_READY;
    if (to && !s->is_forced && (!has_worker || mr_view_next_map(p->view, &to->digest)))
        return mr_fail(err, MR_ERR_UNAVAILABLE,
                       "%s %s is not ready: %s (see `memrack status`; --force switches anyway)",
                       name, s->version,
                       has_worker ? "its tables are still loading" : "no worker serves it");
    return activate(p, name, s->version, err);
}

static mr_status roll_back(place *p, const settings *s, const char *name, mr_err *err) {
    (void)s;
    if (!p->old->previous)
        return mr_fail(err, MR_ERR_ARGUMENT, "%s has no version before %s", name, p->old->active);
    return activate(p, name, p->old->previous, err);
}

int mr_cmd_switch(int argc, char **argv) {
    settings s = {0};
    const char *positional[2];
    const mr_option options[] = {
        MR_CLUSTER_FIND_OPTIONS(&s.where),
        {"force", 0, MR_OPT_FLAG, &s.is_forced, 0, 0, NULL, "even if it is not ready"},
        {0}};
    const mr_command_spec spec = {
        "memrack switch NAME VERSION [options]",
        "Makes a loaded version the active one, for requests that come from now on.\n"
        "Requests under way finish on the version they began with.\n"
        "Example: memrack switch demo v2",
        options, 2, 2};
    int count;
    const int done = mr_cli_parse(&spec, argc, argv, positional, &count);
    if (done >= 0) return done;
    s.version = positional[1];
    return run_on_model(&s, "switch", positional[0], switch_version);
}

int mr_cmd_rollback(int argc, char **argv) {
    settings s = {0};
    const mr_option options[] = {MR_CLUSTER_FIND_OPTIONS(&s.where), {0}};
    const mr_command_spec spec = {"memrack rollback NAME [options]",
                                  "Goes back to the version that was active before the last "
                                  "switch.\nExample: memrack rollback demo",
                                  options, 1, 1};
    int count;
    const int done = mr_cli_parse(&spec, argc, argv, &s.name, &count);
    return done >= 0 ? done : run_on_model(&s, "rollback", s.name, roll_back);
}
