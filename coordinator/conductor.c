/* conductor.c - see conductor.h. */
#include "coordinator/conductor.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/source.h"
#include "coordinator/controller.h"
#include "coordinator/forward_remote.h"
#include "coordinator/gateway.h"
#include "coordinator/orders.h"
#include "coordinator/ownership.h"
#include "coordinator/prober.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    TICK_MS = 250,
    PUT_MS = 2000,
    REOPEN_MS = 5000,
    ACT_AGAIN_MS = 1000,
    RECLAIM_MS = 1000,
    COMPLAIN_EVERY_MS = 30000
};

/* A version whose files we have opened: its size for placement, what the front needs of it. */
typedef struct {
    mr_digest digest;
    char *source;
    uint64_t table_bytes;
    mr_source *files; /* NULL: could not be opened: */
    const mr_model *model;
    int64_t next_try_ns;
    mr_serving *serving; /* of the name below; NULL: not asked for yet */
    char *name, *version;
    bool is_seen;
} opened;

struct mr_conductor {
    mr_agent *agent;
    mr_prober *prober;
    mr_orders *orders;
    mr_remote *remote;
    mr_controller *controller;
    mr_core *core;
    mr_core *_Atomic gate; /* the same while it takes requests of others */
    mr_front *front;
    void (*drain)(void *context, bool ends);
    void *context;

    /* the agent's thread only */
    opened *versions;
    uint32_t version_count;
    uint64_t models_hash;  /* of what the front was told last */
    uint64_t joined_epoch; /* that `joined` has heard of */
    char **joined;         /* member ids, with their role before them */
    uint32_t joined_count;
    int64_t reclaimed_ns;
    bool was_leader;
    uint64_t acted_number; /* of the view we changed maps on: */
    int64_t acted_ns;      /* not again before a newer one, or a second, has come */
    char *complaint;
    int64_t complained_ns;
};

static int64_t soon(void) {
    return mr_now_ns() + PUT_MS * 1000000ll;
}

/* --- versions --------------------------------------------------------------------------------- */

static void free_opened(opened *v) {
    mr_serving_release(v->serving);
    mr_source_close(v->files);
    free(v->source);
    free(v->name);
    free(v->version);
}

static uint64_t table_bytes_of(const mr_model *model) {
    uint64_t bytes = 0;
    for (uint32_t t = 0; t < mr_model_table_count(model); t++) {
        const mr_table_shape *shape = mr_model_table(model, t);
        bytes += shape->values->bytes + (shape->pre_values ? shape->pre_values->bytes : 0);
    }
    return bytes;
}

static void open_version(opened *v) {
    mr_err err;
    if (v->model || mr_now_ns() < v->next_try_ns) return;
    v->next_try_ns = mr_now_ns() + REOPEN_MS * 1000000ll;
    const mr_source_options options = {.digest = v->digest, .with_texts = true};
    if (mr_source_open(&v->files, v->source, &options, &err) != MR_OK) {
        mr_log_warn("model %s %s: %s", v->name, v->version, err.text);
        return;
    }
    v->model = mr_source_model(v->files);
    v->table_bytes = table_bytes_of(v->model);
}

static opened *version_of(mr_conductor *c, const char *name, const mr_model_version *version) {
    for (uint32_t i = 0; i < c->version_count; i++) {
        opened *v = &c->versions[i];
        if (memcmp(&v->digest, &version->digest, sizeof(v->digest)) == 0 &&
            strcmp(v->source, version->source) == 0 && strcmp(v->name, name) == 0)
            return v;
    }
    c->versions = mr_realloc_array(c->versions, c->version_count + 1, sizeof(*c->versions));
    opened *v = &c->versions[c->version_count++];
    *v = (opened){.digest = version->digest,
                  .source = mr_strdup(version->source),
                  .name = mr_strdup(name),
                  .version = mr_strdup(version->version)};
    return v;
}

static void open_versions(mr_conductor *c, const mr_view *view) {
    for (uint32_t i = 0; i < c->version_count; i++) c->versions[i].is_seen = false;
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t k = 0; k < view->models[i]->version_count; k++) {
            opened *v = version_of(c, view->models[i]->name, &view->models[i]->versions[k]);
            v->is_seen = true;
            open_version(v);
        }
    for (uint32_t i = 0; i < c->version_count;) {
        if (c->versions[i].is_seen) {
            i++;
            continue;
        }
        free_opened(&c->versions[i]);
        c->versions[i] = c->versions[--c->version_count];
    }
}

/* The front serves the active version of every model that can be opened. */
static void tell_models(mr_conductor *c, const mr_view *view) {
    mr_serving *servings[MR_MAX_MODELS];
    uint32_t count = 0;
    uint64_t hash = 1469598103934665603ull;
    for (uint32_t i = 0; i < view->model_count && count < MR_MAX_MODELS; i++) {
        const mr_model_record *model = view->models[i];
        for (uint32_t k = 0; k < model->version_count; k++) {
            if (strcmp(model->versions[k].version, model->active) != 0) continue;
            opened *v = version_of(c, model->name, &model->versions[k]);
            mr_served *served;
            mr_err err;
            if (!v->model) continue;
            if (!v->serving) {
                if (mr_served_open(&served, v->model, model->name, &err) != MR_OK) {
                    mr_log_warn("model %s %s: %s", v->name, v->version, err.text);
                    continue;
                }
                v->serving = mr_serving_new(model->name, v->version, &v->digest, served);
            }
            servings[count++] = v->serving;
            hash = (hash ^ (uint64_t)(uintptr_t)v->serving) * 1099511628211ull;
        }
    }
    hash ^= count;
    if (hash == c->models_hash) return;
    c->models_hash = hash;
    mr_front_set_models(c->front, servings, count);
}

/* --- groups ----------------------------------------------------------------------------------- */

static double silent_s(void *context, const mr_member *member) {
    mr_conductor *c = context;
    if (member->role == MR_ROLE_COORDINATOR && strcmp(member->id, mr_agent_id(c->agent)) == 0)
        return 0;
    return mr_prober_silent_s(c->prober, member->role, member->id);
}

static double owner_silent_s(void *context, const mr_member *worker) {
    mr_conductor *c = context;
    double ms;
    return mr_prober_counter(c->prober, worker->role, worker->id, "owner_silent_ms", &ms)
               ? ms / 1000.0
               : -1;
}

static void claim(mr_conductor *c, const mr_group_place *g) {
    mr_err err;
    const mr_owner_record owner = {.group = (char *)(uintptr_t)g->name,
                                   .coordinator = (char *)(uintptr_t)mr_agent_id(c->agent),
                                   .epoch = g->epoch + 1};
    const mr_status status = mr_cluster_claim(mr_agent_cluster(c->agent), &owner, soon(), &err);
    if (status == MR_OK)
        mr_log_info("group %s is ours, epoch %llu", g->name, (unsigned long long)owner.epoch);
    else if (status != MR_ERR_STALE)
        mr_log_warn("claiming group %s: %s", g->name, err.text);
}

/* Our own group refuses us for an older epoch than it has seen, though nobody else is its owner:
 * etcd was wiped or restored. A higher epoch settles it; once a second, until it is high enough. */
static bool is_refused(mr_conductor *c, const mr_group_place *g) {
    static _Thread_local mr_group_look looks[MR_MAX_GROUPS];
    const uint32_t count = mr_core_groups(c->core, looks, MR_MAX_GROUPS);
    if (!g->is_mine || mr_now_ns() - c->reclaimed_ns < RECLAIM_MS * 1000000ll) return false;
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(looks[i].name, g->name) == 0 && looks[i].state == MR_GROUP_STALE &&
            looks[i].epoch == g->epoch) {
            c->reclaimed_ns = mr_now_ns();
            return true;
        }
    return false;
}

static void tell_groups(mr_conductor *c, const mr_view *view) {
    static _Thread_local mr_group_place places[MR_MAX_GROUPS];
    mr_group_spec specs[MR_MAX_GROUPS];
    uint32_t count = 0;
    const bool is_draining = mr_agent_state(c->agent) == MR_MEMBER_DRAINING;
    const mr_ownership_input input = {.view = view,
                                      .self = mr_agent_id(c->agent),
                                      .is_etcd_up =
                                          mr_cluster_look(mr_agent_cluster(c->agent)).is_up,
                                      .silent_s = silent_s,
                                      .owner_silent_s = owner_silent_s,
                                      .context = c};
    const uint32_t all = mr_ownership_decide(places, &input);
    const bool is_static = mr_cluster_is_static(mr_agent_cluster(c->agent));
    for (uint32_t i = 0; i < all; i++) {
        if (!is_static && !is_draining &&
            (places[i].is_claimable || (input.is_etcd_up && is_refused(c, &places[i]))))
            claim(c, &places[i]);
        if (!places[i].is_mine && !(is_static && places[i].epoch == 0)) continue;
        specs[count++] = (mr_group_spec){.name = places[i].name,
                                         .address = places[i].first->address,
                                         .digest = places[i].digest,
                                         .epoch = places[i].epoch,
                                         .stages = places[i].stages};
    }
    mr_core_set_groups(c->core, specs, count);
}

/* --- leading ---------------------------------------------------------------------------------- */

static uint64_t table_bytes(void *context, const mr_model_version *version) {
    const mr_conductor *c = context;
    for (uint32_t i = 0; i < c->version_count; i++)
        if (memcmp(&c->versions[i].digest, &version->digest, sizeof(version->digest)) == 0)
            return c->versions[i].model ? c->versions[i].table_bytes : UINT64_MAX;
    return UINT64_MAX;
}

static void order_load(mr_conductor *c, const mr_view *view, const mr_action *a) {
    const mr_member *member = mr_view_member(view, MR_ROLE_MEMSHARD, a->member);
    const char *name = "";
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t k = 0; k < view->models[i]->version_count; k++)
            if (&view->models[i]->versions[k] == a->version) name = view->models[i]->name;
    const mr_control_load_order order = {.leader_epoch = view->leader_epoch,
                                         .name = name,
                                         .digest = a->digest,
                                         .source = a->version->source,
                                         .grid_rows = a->grid_rows,
                                         .grid_columns = a->grid_columns,
                                         .cells = a->cells,
                                         .cell_count = a->cell_count,
                                         .group = ""};
    if (member) mr_orders_load(c->orders, member, &order);
}

static void carry_out(mr_conductor *c, const mr_view *view, const mr_action *a) {
    mr_cluster *cluster = mr_agent_cluster(c->agent);
    mr_err err = {{0}};
    mr_status status = MR_OK;
    const mr_member *member;
    switch (a->kind) {
    case MR_ACT_PUT_NEXT_MAP:
        mr_log_info("map %llu of a model with %ux%u cells: loading",
                    (unsigned long long)a->map->epoch, a->map->grid_rows, a->map->grid_columns);
        status = mr_cluster_put_next_map(cluster, a->map, soon(), &err);
        break;
    case MR_ACT_SWITCH_MAP:
        status = mr_cluster_switch_map(cluster, &a->digest, a->epoch, soon(), &err);
        if (status == MR_OK)
            mr_log_info("map %llu is the current one", (unsigned long long)a->epoch);
        break;
    case MR_ACT_DELETE_MAP:
        status = mr_cluster_delete_map(cluster, &a->digest, soon(), &err);
        break;
    case MR_ACT_LOAD:
        order_load(c, view, a);
        break;
    case MR_ACT_UNLOAD:
        member = mr_view_member(view, MR_ROLE_MEMSHARD, a->member);
        if (member)
            mr_orders_unload(c->orders, member,
                             &(mr_control_unload_order){.leader_epoch = view->leader_epoch,
                                                        .digest = a->digest,
                                                        .cells = a->cells,
                                                        .cell_count = a->cell_count});
        break;
    case MR_ACT_REPORT_DEAD:
        mr_cluster_report_dead(cluster, a->role, a->member);
        break;
    }
    if (status != MR_OK && status != MR_ERR_STALE) mr_log_warn("%s", err.text);
}

static void say_complaints(mr_conductor *c, const mr_actions *list) {
    if (list->complaint_count == 0) return;
    const bool is_new = !c->complaint || strcmp(c->complaint, list->complaints[0]) != 0;
    if (!is_new && mr_now_ns() - c->complained_ns < COMPLAIN_EVERY_MS * 1000000ll) return;
    free(c->complaint);
    c->complaint = mr_strdup(list->complaints[0]);
    c->complained_ns = mr_now_ns();
    for (uint32_t i = 0; i < list->complaint_count; i++) mr_log_warn("%s", list->complaints[i]);
}

static void forget_joined(mr_conductor *c) {
    for (uint32_t i = 0; i < c->joined_count; i++) free(c->joined[i]);
    c->joined_count = 0;
}

/* Every member hears of a new leader before anything else, so that orders of an older one which
 * still come are refused. */
static void join_members(mr_conductor *c, const mr_view *view) {
    if (c->joined_epoch != view->leader_epoch) forget_joined(c);
    c->joined_epoch = view->leader_epoch;
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        if (m->role == MR_ROLE_COORDINATOR || !m->control) continue;
        char *key =
            mr_format("%d/%s/%llu", (int)m->role, m->id, (unsigned long long)m->incarnation);
        bool is_known = false;
        for (uint32_t k = 0; k < c->joined_count && !is_known; k++)
            is_known = strcmp(c->joined[k], key) == 0;
        if (is_known ||
            !mr_orders_join(c->orders, m, view->cluster, view->leader, view->leader_epoch)) {
            free(key);
            continue;
        }
        c->joined = mr_realloc_array(c->joined, c->joined_count + 1, sizeof(*c->joined));
        c->joined[c->joined_count++] = key;
    }
}

static void lead(mr_conductor *c, const mr_view *view) {
    const bool is_leader = view->leader && strcmp(view->leader, mr_agent_id(c->agent)) == 0;
    if (is_leader != c->was_leader)
        mr_log_info(is_leader ? "leading, epoch %llu" : "not leading any more, epoch %llu",
                    (unsigned long long)view->leader_epoch);
    c->was_leader = is_leader;
    if (!is_leader) return;
    join_members(c, view);
    const mr_controller_input input = {.view = view,
                                       .now_ns = mr_now_ns(),
                                       .silent_s = silent_s,
                                       .table_bytes = table_bytes,
                                       .context = c};
    if (view->number == c->acted_number && mr_now_ns() - c->acted_ns < ACT_AGAIN_MS * 1000000ll)
        return;
    const mr_actions *list = mr_controller_decide(c->controller, &input);
    for (uint32_t i = 0; i < list->count; i++) {
        carry_out(c, view, &list->items[i]);
        if (list->items[i].kind > MR_ACT_DELETE_MAP) continue;
        c->acted_number = view->number;
        c->acted_ns = mr_now_ns();
    }
    say_complaints(c, list);
}

/* --- the agent's callbacks -------------------------------------------------------------------- */

static void on_changed(void *context, const mr_view *view) {
    mr_conductor *c = context;
    mr_prober_follow(c->prober, view, MR_ROLE_COORDINATOR, mr_agent_id(c->agent));
    open_versions(c, view);
    tell_models(c, view);
    tell_groups(c, view);
    lead(c, view);
}

static void on_order_done(void *context) {
    mr_conductor *c = context;
    mr_agent_wake(c->agent);
}

static void on_status(void *context, mr_control_status *out) {
    mr_conductor *c = context;
    if (c->core) out->requests = mr_core_live_requests(c->core);
}

static mr_status on_drain(void *context, mr_control_job *job, const mr_drain_order *order,
                          mr_err *err) {
    mr_conductor *c = context;
    (void)job, (void)err;
    mr_agent_set_state(c->agent, MR_MEMBER_DRAINING);
    if (c->drain) c->drain(c->context, order->ends);
    return MR_OK;
}

static mr_status on_generate(void *context, mr_control_stream *stream, const mr_generation *request,
                             mr_err *err) {
    mr_conductor *c = context;
    mr_core *core = atomic_load(&c->gate);
    if (!core) return mr_fail(err, MR_ERR_UNAVAILABLE, "this coordinator is not serving");
    return mr_gateway_generate(core, stream, request, err);
}

static const mr_view *remote_view(void *context) {
    mr_conductor *c = context;
    return mr_agent_view(c->agent);
}

mr_status mr_conductor_open(mr_conductor **out, const mr_conductor_options *o, mr_err *err) {
    mr_conductor *c = mr_alloc(sizeof(*c));
    c->drain = o->drain;
    c->context = o->context;
    const mr_agent_options agent = {
        .role = MR_ROLE_COORDINATOR,
        .settings = o->agent,
        .handlers = {.status = on_status, .drain = on_drain, .generate = on_generate, .context = c},
        .changed = on_changed,
        .tick_ms = TICK_MS,
        .context = c};
    *out = NULL;
    const mr_status status = mr_agent_open(&c->agent, &agent, err);
    if (status != MR_OK) {
        free(c);
        return status;
    }
    const mr_rpc_security security = mr_agent_security(c->agent);
    c->prober = mr_prober_open(&security);
    c->orders = mr_orders_open(&security, on_order_done, c);
    c->remote = mr_remote_open(&(mr_remote_options){
        .self = mr_agent_id(c->agent), .view = remote_view, .context = c, .security = security});
    c->controller = mr_controller_open(
        &(mr_controller_options){.allow_same_host = o->allow_same_host,
                                 .replace_after_ms = (uint32_t)o->replace_after_s * 1000u});
    *out = c;
    return MR_OK;
}

void mr_conductor_start(mr_conductor *c, mr_core *core, mr_front *front) {
    c->core = core;
    c->front = front;
    mr_remote_set_core(c->remote, core);
    atomic_store(&c->gate, core);
    mr_agent_set_http(c->agent, mr_front_address(front));
    mr_agent_set_state(c->agent, MR_MEMBER_READY);
    mr_cluster_campaign(mr_agent_cluster(c->agent), mr_agent_id(c->agent));
    mr_agent_start(c->agent);
}

void mr_conductor_stop(mr_conductor *c) {
    if (!c) return;
    atomic_store(&c->gate, NULL);
    mr_agent_stop(c->agent);
    mr_remote_stop(c->remote);
}

mr_forwarder mr_conductor_forwarder(mr_conductor *c) {
    return mr_remote_forwarder(c->remote);
}

void mr_conductor_close(mr_conductor *c) {
    if (!c) return;
    mr_conductor_stop(c);
    mr_remote_close(c->remote);
    mr_agent_close(c->agent);
    mr_orders_close(c->orders);
    mr_prober_close(c->prober);
    mr_controller_close(c->controller);
    for (uint32_t i = 0; i < c->version_count; i++) free_opened(&c->versions[i]);
    free(c->versions);
    forget_joined(c);
    free(c->joined);
    free(c->complaint);
    free(c);
}
