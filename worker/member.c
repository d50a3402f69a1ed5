/* member.c - see member.h. */
#include "worker/member.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "worker/stage.h"
#include "common/model/source.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOOK_MS = 100, DRAIN_S = 60, REMOVE_S = 60, IDLE_MS = 1500 };

/* A model this worker serves a stage of. */
typedef struct {
    mr_source *files; /* owns the model */
    const mr_model *model;
    const mr_manifest *manifest;
    mr_engine *engine;
    bool reads_memory;
    mr_stage_record record; /* group owned */
    char *source;
    char *next;         /* address last given to the worker; NULL: none */
    uint64_t view_seen; /* number of the view the route was made of */
} loaded;

struct mr_worker_member {
    mr_agent *agent;
    mr_worker *worker;
    mr_engine_options engine;
    mr_fabric_policy fabric;
    const char *_Atomic transport; /* of the last memshard that was reached */
    bool is_keyed, has_static_key;
    mr_session_key static_key;
    int64_t connect_timeout_ms;
    void (*leave)(void *context);
    void *context;
    pthread_mutex_t lock; /* guards models; held while one is loaded or removed */
    loaded *models[MR_MAX_MODELS];
    uint32_t count;
};

/* --- following the cluster -------------------------------------------------------------------- */

/* The grid is known before the map is: a worker need not wait for the memshards. */
static bool grid_of(const mr_view *view, const mr_digest *digest, mr_grid *out) {
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t v = 0; v < view->models[i]->version_count; v++) {
            const mr_model_version *version = &view->models[i]->versions[v];
            if (memcmp(&version->digest, digest, sizeof(*digest)) != 0) continue;
            *out = (mr_grid){version->grid_rows, version->grid_columns};
            return true;
        }
    return false;
}

/* A route without a peer: every cell is waited for. */
static void empty_route(mr_route *out, mr_grid grid, const mr_digest *digest) {
    *out = (mr_route){.digest = *digest, .grid = grid};
    out->replica_first =
        mr_alloc_array((uint64_t)grid.row_groups * grid.width_slices + 1, sizeof(uint32_t));
}

static bool route_now(mr_route *out, const mr_view *view, const mr_digest *digest) {
    mr_grid grid;
    if (mr_route_of_view(out, view, digest, NULL) == MR_OK) return true;
    mr_route_free(out);
    if (!grid_of(view, digest, &grid)) return false;
    empty_route(out, grid, digest);
    return true;
}

static const char *next_address(const mr_view *view, const mr_stage_record *mine) {
    for (uint32_t m = 0; m < view->member_count; m++)
        for (uint32_t s = 0; s < view->members[m]->stage_count; s++) {
            const mr_stage_record *stage = &view->members[m]->stages[s];
            if (stage->stage == mine->stage + 1 && stage->stages == mine->stages &&
                strcmp(stage->group, mine->group) == 0 &&
                memcmp(&stage->digest, &mine->digest, sizeof(mine->digest)) == 0)
                return view->members[m]->address;
        }
    return NULL;
}

static void follow_next(mr_worker_member *w, loaded *l, const mr_view *view) {
    const char *address = next_address(view, &l->record);
    mr_err err;
    if (l->record.stage + 1 >= l->record.stages || !address) return;
    if (l->next && strcmp(l->next, address) == 0) return;
    if (mr_worker_set_next(w->worker, l->record.digest, address, &err) != MR_OK) {
        mr_log_warn("next stage at %s: %s", address, err.text);
        return;
    }
    free(l->next);
    l->next = mr_strdup(address);
}

static void follow_map(mr_worker_member *w, loaded *l, const mr_view *view) {
    mr_route route;
    mr_err err;
    if (!l->reads_memory || view->number == l->view_seen ||
        !route_now(&route, view, &l->record.digest))
        return;
    l->view_seen = view->number;
    if (mr_worker_set_route(w->worker, l->record.digest, &route, &err) != MR_OK)
        mr_log_warn("map %llu: %s", (unsigned long long)route.epoch, err.text);
    mr_route_free(&route);
}

static void on_changed(void *context, const mr_view *view) {
    mr_worker_member *w = context;
    mr_worker_state state;
    uint64_t epoch = 0;
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0; i < w->count; i++) {
        loaded *l = w->models[i];
        follow_next(w, l, view);
        follow_map(w, l, view);
        if (mr_worker_look(w->worker, l->record.digest, &state, NULL) == MR_OK && state.map_epoch &&
            (epoch == 0 || state.map_epoch < epoch))
            epoch = state.map_epoch;
    }
    pthread_mutex_unlock(&w->lock);
    mr_agent_set_map_epoch(w->agent, epoch);
}

/* --- reaching memshards ----------------------------------------------------------------------- */

/* A key for one peer, asked for over its control service: only where that is under TLS. */
static mr_status fetch_key(const mr_worker_member *w, const mr_route_peer *peer,
                           mr_session_key *out, int64_t deadline_ns, mr_err *err) {
    mr_control_client *client;
    mr_control_key key = {0};
    const mr_control_client_options options = {.address = peer->control,
                                               .security = mr_agent_security(w->agent),
                                               .role = MR_ROLE_MEMSHARD,
                                               .id = peer->id};
    mr_status status = mr_control_client_open(&client, &options, err);
    if (status != MR_OK) return status;
    status = mr_control_session_key(client, MR_ROLE_WORKER, mr_agent_id(w->agent), &key,
                                    deadline_ns, err);
    mr_control_client_close(client);
    if (status != MR_OK) return status;
    out->id = key.key_id;
    memcpy(out->bytes, key.key, sizeof(out->bytes));
    explicit_bzero(&key, sizeof(key));
    return MR_OK;
}

/* In a helper thread of a retrieval. */
static mr_status dial(void *context, mr_link **out, const mr_route_peer *peer, int64_t deadline_ns,
                      mr_err *err) {
    mr_worker_member *w = context;
    const mr_fabric_peer where = {.tcp = peer->address,
                                  .ucx = peer->ucx,
                                  .machine = peer->machine,
                                  .has_verbs = peer->has_verbs};
    mr_session_key key = {0};
    mr_status status = MR_OK;
    if (w->is_keyed) status = fetch_key(w, peer, &key, deadline_ns, err);
    if (status == MR_OK) status = mr_link_connect_best(out, &where, &w->fabric, deadline_ns, err);
    if (status == MR_OK && w->is_keyed) mr_link_set_key(*out, &key);
    if (status == MR_OK && w->has_static_key) mr_link_set_key(*out, &w->static_key);
    mr_key_wipe(&key);
    if (status != MR_OK) return status;
    atomic_store(&w->transport, mr_link_transport(*out));
    mr_log_info("memshard %s over %s", peer->id, mr_link_transport(*out));
    return MR_OK;
}

/* --- loading ---------------------------------------------------------------------------------- */

static void free_loaded(loaded *l) {
    mr_engine_close(l->engine);
    mr_source_close(l->files);
    free(l->record.group);
    free(l->source);
    free(l->next);
    free(l);
}

/* With the lock held. */
static void say_stages(mr_worker_member *w) {
    mr_stage_record stages[MR_MAX_MODELS];
    for (uint32_t i = 0; i < w->count; i++) stages[i] = w->models[i]->record;
    mr_agent_set_stages(w->agent, stages, w->count);
    if (w->count > 0) mr_agent_set_class(w->agent, mr_engine_numeric_class(w->models[0]->engine));
}

/* Waits until the cluster knows the model, and so its grid. */
static mr_status first_route(mr_worker_member *w, mr_route *out, const mr_digest *digest,
                             mr_err *err) {
    const int64_t deadline = mr_now_ns() + w->connect_timeout_ms * 1000000;
    for (;;) {
        const mr_view *view = mr_agent_view(w->agent);
        const bool found = route_now(out, view, digest);
        mr_view_release(view);
        if (found) return MR_OK;
        if (mr_now_ns() >= deadline) {
            char text[MR_DIGEST_TEXT_BYTES];
            mr_digest_text(digest, text);
            return mr_fail(err, MR_ERR_UNAVAILABLE,
                           "the cluster does not know a model of digest %.12s... after %lld s: "
                           "`memrack load` adds it",
                           text, (long long)(w->connect_timeout_ms / 1000));
        }
        const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
        nanosleep(&pause, NULL);
    }
}

static mr_status open_engine(mr_worker_member *w, loaded *l, const mr_worker_load *load,
                             mr_err *err) {
    mr_engine_options options = w->engine;
    mr_engine_memory m;
    mr_route route = {0};
    mr_block_range blocks;
    options.model = l->model;
    options.manifest = l->manifest;
    options.stage = load->stage;
    options.stages = load->stages;
    options.block_first = load->block_first;
    options.block_count = load->block_count;
    mr_status status = mr_stage_range(&blocks, l->model, &options, err);
    if (status != MR_OK) return status;
    if (mr_stage_reads_memory(l->model, blocks)) {
        status = first_route(w, &route, &l->manifest->digest, err);
        if (status != MR_OK) return status;
        l->reads_memory = true;
        options.route = &route;
        options.grid = route.grid;
    }
    status = mr_engine_plan(&m, &options, err);
    if (status == MR_OK) {
        mr_log_info("stage %u of %u: blocks %u to %u, %.1f MiB: weights %.1f, KV cache %.1f, "
                    "buffers %.1f, shuffle indices %.1f",
                    load->stage, load->stages, blocks.first, blocks.first + blocks.count - 1,
                    (double)(m.weight_bytes + m.kv_bytes + m.buffer_bytes + m.index_bytes) / 0x1p20,
                    (double)m.weight_bytes / 0x1p20, (double)m.kv_bytes / 0x1p20,
                    (double)m.buffer_bytes / 0x1p20, (double)m.index_bytes / 0x1p20);
        status = mr_engine_open(&l->engine, &options, err);
    }
    mr_route_free(&route);
    l->record.block_first = blocks.first;
    l->record.block_count = blocks.count;
    return status;
}

static mr_status check_digest(const loaded *l, const mr_worker_load *load, mr_err *err) {
    static const mr_digest none;
    char here[MR_DIGEST_TEXT_BYTES], there[MR_DIGEST_TEXT_BYTES];
    if (memcmp(&load->digest, &none, sizeof(none)) == 0 ||
        memcmp(&load->digest, &l->manifest->digest, sizeof(none)) == 0)
        return MR_OK;
    mr_digest_text(&l->manifest->digest, here);
    mr_digest_text(&load->digest, there);
    return mr_fail(err, MR_ERR_MISMATCH, "%s has digest %.12s..., asked for was %.12s...",
                   load->source, here, there);
}

static bool is_there(const mr_worker_member *w, const mr_worker_load *load) {
    for (uint32_t i = 0; i < w->count; i++) {
        const mr_stage_record *r = &w->models[i]->record;
        if (strcmp(r->group, load->group) == 0 && r->stage == load->stage &&
            r->stages == load->stages && strcmp(w->models[i]->source, load->source) == 0)
            return true;
    }
    return false;
}

static mr_status load_locked(mr_worker_member *w, const mr_worker_load *load, mr_progress progress,
                             void *context, mr_err *err) {
    if (is_there(w, load)) return MR_OK;
    if (w->count == MR_MAX_MODELS)
        return mr_fail(err, MR_ERR_LIMIT, "this worker serves %d models already", MR_MAX_MODELS);
    loaded *l = mr_alloc(sizeof(*l));
    l->source = mr_strdup(load->source);
    l->record = (mr_stage_record){
        .group = mr_strdup(load->group), .stage = load->stage, .stages = load->stages};
    const mr_source_options files = {
        .digest = load->digest, .progress = progress, .progress_context = context};
    mr_status status = mr_source_open(&l->files, load->source, &files, err);
    if (status == MR_OK) {
        l->model = mr_source_model(l->files);
        l->manifest = mr_source_manifest(l->files);
    }
    if (status == MR_OK) status = check_digest(l, load, err);
    if (status == MR_OK) status = open_engine(w, l, load, err);
    if (status == MR_OK) status = mr_worker_add(w->worker, l->engine, l->manifest->digest, err);
    if (status != MR_OK) {
        free_loaded(l);
        return status;
    }
    l->record.digest = l->manifest->digest;
    w->models[w->count++] = l;
    say_stages(w);
    return MR_OK;
}

mr_status mr_worker_member_load(mr_worker_member *w, const mr_worker_load *load,
                                mr_progress progress, void *context, mr_err *err) {
    mr_status status = mr_id_check(load->group, "--group", err);
    if (status == MR_OK &&
        (load->stages == 0 || load->stages > MR_MAX_STAGES || load->stage >= load->stages))
        status = mr_fail(err, MR_ERR_ARGUMENT, "stage %u of %u", load->stage, load->stages);
    if (status != MR_OK) return status;
    pthread_mutex_lock(&w->lock);
    status = load_locked(w, load, progress, context, err);
    pthread_mutex_unlock(&w->lock);
    mr_agent_wake(w->agent);
    return status;
}

static void show_progress(void *context, const char *what, double fraction) {
    mr_control_job_progress(context, what, fraction);
}

static mr_status on_load(void *context, mr_control_job *job, const mr_control_load_order *order,
                         mr_err *err) {
    const mr_worker_load load = {.source = order->source,
                                 .group = order->group,
                                 .stage = order->stage,
                                 .stages = order->stages,
                                 .digest = order->digest};
    if (order->cell_count > 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "a worker loads a stage, not cells");
    return mr_worker_member_load(context, &load, show_progress, job, err);
}

/* --- unloading and leaving -------------------------------------------------------------------- */

static mr_status on_unload(void *context, mr_control_job *job, const mr_control_unload_order *order,
                           mr_err *err) {
    mr_worker_member *w = context;
    mr_status status = MR_OK;
    (void)job;
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0; i < w->count && status == MR_OK;) {
        loaded *l = w->models[i];
        if (memcmp(&l->record.digest, &order->digest, sizeof(order->digest)) != 0) {
            i++;
            continue;
        }
        status = mr_worker_remove(w->worker, l->record.digest,
                                  mr_now_ns() + REMOVE_S * 1000000000ll, err);
        if (status != MR_OK) break;
        w->models[i] = w->models[--w->count];
        say_stages(w);
        free_loaded(l);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* Until no step has ended for IDLE_MS. */
static bool is_busy(mr_worker_member *w, int64_t since_ns) {
    mr_worker_stats s;
    mr_worker_measure(w->worker, &s);
    const int64_t last = s.step_ns > since_ns ? s.step_ns : since_ns;
    return mr_now_ns() - last < IDLE_MS * 1000000ll;
}

/* Coordinators see the state and send no new steps; those who own our groups move their requests.
 * We go when no step has come for a while. */
static mr_status on_drain(void *context, mr_control_job *job, const mr_drain_order *order,
                          mr_err *err) {
    mr_worker_member *w = context;
    const int64_t seconds = order->timeout_s ? order->timeout_s : DRAIN_S;
    const int64_t deadline = mr_now_ns() + seconds * 1000000000;
    const int64_t began = mr_now_ns();
    mr_log_info("draining");
    mr_agent_set_state(w->agent, MR_MEMBER_DRAINING);
    while (is_busy(w, began)) {
        const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000};
        if (mr_control_job_is_cancelled(job))
            return mr_fail(err, MR_ERR_CANCELLED, "whoever asked for it has left");
        if (mr_now_ns() >= deadline)
            return mr_fail(err, MR_ERR_TIMEOUT, "steps still come after %lld s",
                           (long long)seconds);
        nanosleep(&pause, NULL);
    }
    mr_log_info("drained");
    if (order->ends && w->leave) mr_leave_soon(w->leave, w->context);
    return MR_OK;
}

static void on_status(void *context, mr_control_status *out) {
    mr_worker_member *w = context;
    mr_worker_stats s;
    mr_worker_measure(w->worker, &s);
    out->requests = s.steps;
    out->requests_per_s = s.steps_per_s;
    out->p50_us = s.p50_us;
    out->p99_us = s.p99_us;
    out->degraded = s.degraded;
    const char *transport = atomic_load(&w->transport);
    if (transport) snprintf(out->transport, sizeof(out->transport), "%s", transport);
    if (s.heard_ns > 0)
        mr_control_count(out, "owner_silent_ms", (double)(mr_now_ns() - s.heard_ns) / 1e6);
    mr_control_count(out, "hedges", (double)s.hedges);
    mr_control_count(out, "resends", (double)s.resends);
    mr_control_count(out, "step_failures", (double)s.failures);
    mr_control_count(out, "cache_hits", (double)s.cache_hits);
    mr_control_count(out, "cache_misses", (double)s.cache_misses);
    mr_control_count(out, "retrieval_wait_us", (double)s.retrieval_wait_ns / 1e3);
}

/* --- opening ---------------------------------------------------------------------------------- */

mr_status mr_worker_member_open(mr_worker_member **out, const mr_worker_member_options *o,
                                mr_err *err) {
    mr_worker_member *w = mr_alloc(sizeof(*w));
    w->engine = o->engine;
    w->engine.dial = dial;
    w->engine.dial_context = w;
    w->fabric = o->fabric;
    w->is_keyed = o->is_keyed && !o->agent->plain;
    if (o->static_key) {
        w->has_static_key = true;
        w->static_key = *o->static_key;
    }
    w->connect_timeout_ms = o->connect_timeout_ms;
    w->leave = o->leave;
    w->context = o->context;
    pthread_mutex_init(&w->lock, NULL);
    const mr_agent_options agent = {.role = MR_ROLE_WORKER,
                                    .settings = o->agent,
                                    .handlers = {.status = on_status,
                                                 .load = on_load,
                                                 .unload = on_unload,
                                                 .drain = on_drain,
                                                 .context = w},
                                    .changed = on_changed,
                                    .tick_ms = 250,
                                    .context = w};
    *out = NULL;
    mr_status status = mr_worker_open(&w->worker, NULL, (mr_digest){{0}}, o->listen, err);
    if (status == MR_OK) status = mr_agent_open(&w->agent, &agent, err);
    if (status != MR_OK) {
        mr_worker_close(w->worker);
        pthread_mutex_destroy(&w->lock);
        free(w);
        return status;
    }
    mr_agent_set_address(w->agent, mr_worker_address(w->worker), NULL);
    *out = w;
    return MR_OK;
}

void mr_worker_member_start(mr_worker_member *w) {
    mr_agent_set_state(w->agent, MR_MEMBER_READY);
    mr_agent_start(w->agent);
}

void mr_worker_member_close(mr_worker_member *w) {
    if (!w) return;
    mr_agent_close(w->agent);
    mr_worker_close(w->worker);
    for (uint32_t i = 0; i < w->count; i++) free_loaded(w->models[i]);
    mr_key_wipe(&w->static_key);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

const char *mr_worker_member_id(const mr_worker_member *w) {
    return mr_agent_id(w->agent);
}
const char *mr_worker_member_address(mr_worker_member *w) {
    return mr_worker_address(w->worker);
}
