/* agent.c - see agent.h. */
#include "common/net/agent.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/fabric_choice.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_VIEW_MS = 10000, KEY_VALID_S = 3600, TICK_MS = 1000, LEAVE_MS = 250 };

struct mr_agent {
    mr_cluster *cluster;
    mr_control_server *control;
    mr_keys *keys;
    mr_control_handlers role;
    void (*changed)(void *context, const mr_view *view);
    void *context;
    uint32_t tick_ms;
    char *id, *advertise;
    mr_rpc_security security;
    char *files[3]; /* of security */

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t woken;
    bool is_woken, is_ending, is_started;
    mr_member self;
};

/* --- the record ------------------------------------------------------------------------------- */

static void put_text(char **field, const char *text) {
    free(*field);
    *field = text ? mr_strdup(text) : NULL;
}

/* With the lock held. */
static void announce(mr_agent *a) {
    if (a->is_started) mr_cluster_announce(a->cluster, &a->self);
}

static bool same_text(const char *a, const char *b) {
    return a == b || (a && b && strcmp(a, b) == 0);
}

void mr_agent_set_state(mr_agent *a, mr_member_state state) {
    pthread_mutex_lock(&a->lock);
    if (a->self.state != state) {
        a->self.state = state;
        announce(a);
    }
    pthread_mutex_unlock(&a->lock);
}

/* "0.0.0.0:7001" as "node1:7001", where an advertised host is given. Owned. */
static char *advertised(const mr_agent *a, const char *address) {
    if (!address || !a->advertise || strncmp(address, "unix:", 5) == 0)
        return address ? mr_strdup(address) : NULL;
    const char *colon = strrchr(address, ':');
    const bool is_v6 = strchr(a->advertise, ':') && a->advertise[0] != '[';
    return mr_format(is_v6 ? "[%s]%s" : "%s%s", a->advertise, colon ? colon : "");
}

void mr_agent_set_address(mr_agent *a, const char *address, const char *ucx) {
    pthread_mutex_lock(&a->lock);
    free(a->self.address);
    free(a->self.ucx);
    a->self.address = advertised(a, address);
    a->self.ucx = advertised(a, ucx);
    announce(a);
    pthread_mutex_unlock(&a->lock);
}

void mr_agent_set_http(mr_agent *a, const char *address) {
    pthread_mutex_lock(&a->lock);
    free(a->self.http);
    a->self.http = advertised(a, address);
    announce(a);
    pthread_mutex_unlock(&a->lock);
}

void mr_agent_set_capacity(mr_agent *a, uint64_t bytes) {
    pthread_mutex_lock(&a->lock);
    a->self.capacity_bytes = bytes;
    announce(a);
    pthread_mutex_unlock(&a->lock);
}

void mr_agent_set_class(mr_agent *a, const char *numeric_class) {
    pthread_mutex_lock(&a->lock);
    if (!same_text(a->self.numeric_class, numeric_class)) {
        put_text(&a->self.numeric_class, numeric_class);
        announce(a);
    }
    pthread_mutex_unlock(&a->lock);
}

void mr_agent_set_map_epoch(mr_agent *a, uint64_t epoch) {
    pthread_mutex_lock(&a->lock);
    if (a->self.map_epoch != epoch) {
        a->self.map_epoch = epoch;
        announce(a);
    }
    pthread_mutex_unlock(&a->lock);
}

static void free_holdings(mr_member *m) {
    for (uint32_t i = 0; i < m->holding_count; i++) free(m->holdings[i].cells);
    free(m->holdings);
    m->holdings = NULL;
    m->holding_count = 0;
}

static void free_stages(mr_member *m) {
    for (uint32_t i = 0; i < m->stage_count; i++) free(m->stages[i].group);
    free(m->stages);
    m->stages = NULL;
    m->stage_count = 0;
}

void mr_agent_set_holdings(mr_agent *a, const mr_holding *holdings, uint32_t count) {
    pthread_mutex_lock(&a->lock);
    free_holdings(&a->self);
    a->self.holdings = mr_alloc_array(count, sizeof(*holdings));
    a->self.holding_count = count;
    for (uint32_t i = 0; i < count; i++) {
        mr_holding *to = &a->self.holdings[i];
        *to = holdings[i];
        to->cells = mr_alloc_array(to->cell_count, sizeof(*to->cells));
        memcpy(to->cells, holdings[i].cells, to->cell_count * sizeof(*to->cells));
    }
    announce(a);
    pthread_mutex_unlock(&a->lock);
}

void mr_agent_set_stages(mr_agent *a, const mr_stage_record *stages, uint32_t count) {
    pthread_mutex_lock(&a->lock);
    free_stages(&a->self);
    a->self.stages = mr_alloc_array(count, sizeof(*stages));
    a->self.stage_count = count;
    for (uint32_t i = 0; i < count; i++) {
        a->self.stages[i] = stages[i];
        a->self.stages[i].group = mr_strdup(stages[i].group);
    }
    announce(a);
    pthread_mutex_unlock(&a->lock);
}

/* --- the control service ---------------------------------------------------------------------- */

static mr_status on_join(void *context, const char *leader, uint64_t leader_epoch, mr_err *err) {
    (void)context, (void)err;
    mr_log_info("leader %s (epoch %llu) is here", leader, (unsigned long long)leader_epoch);
    return MR_OK;
}

static mr_member *on_describe(void *context) {
    mr_agent *a = context;
    mr_member *copy = NULL;
    pthread_mutex_lock(&a->lock);
    mr_member_copy(&copy, &a->self, NULL);
    pthread_mutex_unlock(&a->lock);
    return copy;
}

static mr_status on_session_key(void *context, mr_role role, const char *id, mr_control_key *out,
                                mr_err *err) {
    mr_agent *a = context;
    mr_session_key key;
    (void)role, (void)id;
    mr_status status = mr_key_make(&key, err);
    if (status == MR_OK)
        status = mr_keys_add(a->keys, &key, mr_now_ns() + KEY_VALID_S * 1000000000ll, err);
    if (status == MR_OK) {
        out->key_id = key.id;
        memcpy(out->key, key.bytes, sizeof(out->key));
        out->valid_s = KEY_VALID_S;
    }
    mr_key_wipe(&key);
    return status;
}

/* The role's callbacks, with the role's context. */
static void on_status(void *context, mr_control_status *out) {
    const mr_agent *a = context;
    const mr_cluster_health health = mr_cluster_look(a->cluster);
    if (a->role.status) a->role.status(a->role.context, out);
    out->etcd_is_up = health.is_up;
}
static mr_status on_load(void *context, mr_control_job *job, const mr_control_load_order *order,
                         mr_err *err) {
    const mr_agent *a = context;
    return a->role.load(a->role.context, job, order, err);
}
static mr_status on_unload(void *context, mr_control_job *job, const mr_control_unload_order *order,
                           mr_err *err) {
    const mr_agent *a = context;
    return a->role.unload(a->role.context, job, order, err);
}
static mr_status on_drain(void *context, mr_control_job *job, const mr_drain_order *order,
                          mr_err *err) {
    const mr_agent *a = context;
    return a->role.drain(a->role.context, job, order, err);
}
static mr_status on_generate(void *context, mr_control_stream *stream, const mr_generation *request,
                             mr_err *err) {
    const mr_agent *a = context;
    return a->role.generate(a->role.context, stream, request, err);
}

static mr_status open_control(mr_agent *a, const mr_agent_options *o, mr_err *err) {
    const char *address = o->settings->control ? o->settings->control : "127.0.0.1:0";
    const mr_control_server_options options = {
        .address = address,
        .cluster = o->settings->name ? o->settings->name : "default",
        .security = a->security,
        .handlers = {.join = on_join,
                     .describe = on_describe,
                     .status = on_status,
                     .session_key = on_session_key,
                     .load = a->role.load ? on_load : NULL,
                     .unload = a->role.unload ? on_unload : NULL,
                     .drain = a->role.drain ? on_drain : NULL,
                     .generate = a->role.generate ? on_generate : NULL,
                     .context = a}};
    const mr_status status = mr_control_server_open(&a->control, &options, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "the control service");
    char *bound = mr_format("%.*s:%d", (int)(strrchr(address, ':') - address), address,
                            mr_control_server_port(a->control));
    free(a->self.control);
    a->self.control = advertised(a, bound);
    free(bound);
    return MR_OK;
}

/* --- opening ---------------------------------------------------------------------------------- */

static void on_view(void *context) {
    mr_agent_wake(context);
}

void mr_agent_wake(mr_agent *a) {
    pthread_mutex_lock(&a->lock);
    a->is_woken = true;
    pthread_cond_signal(&a->woken);
    pthread_mutex_unlock(&a->lock);
}

static void *run(void *context) {
    mr_agent *a = context;
    for (;;) {
        const int64_t end = mr_now_ns() + a->tick_ms * 1000000ll;
        const struct timespec until = {.tv_sec = (time_t)(end / 1000000000),
                                       .tv_nsec = (long)(end % 1000000000)};
        int waited = 0;
        pthread_mutex_lock(&a->lock);
        while (!a->is_woken && !a->is_ending && waited == 0)
            waited = pthread_cond_timedwait(&a->woken, &a->lock, &until);
        a->is_woken = false;
        const bool is_ending = a->is_ending;
        pthread_mutex_unlock(&a->lock);
        if (is_ending) return NULL;
        const mr_view *view = mr_cluster_view(a->cluster);
        a->changed(a->context, view);
        mr_view_release(view);
    }
}

static mr_status check_settings(const mr_agent_settings *s, mr_err *err) {
    if (!s->plain && (!s->ca || !s->cert || !s->key))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "a member of a cluster needs --tls-ca, --tls-cert and --tls-key, or "
                       "--plain-control by name");
    if (s->plain && (s->cert || s->key))
        return mr_fail(err, MR_ERR_ARGUMENT, "--plain-control and --tls-cert do not go together");
    if (s->control && !strrchr(s->control, ':'))
        return mr_fail(err, MR_ERR_ARGUMENT, "--control %s is not HOST:PORT", s->control);
    return MR_OK;
}

static void fill_self(mr_agent *a, const mr_agent_options *o) {
    char host[256] = "localhost";
    struct timespec now;
    const mr_agent_settings *s = o->settings;
    gethostname(host, sizeof(host) - 1);
    for (char *at = host; *at; at++) /* ids and labels are plain */
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", *at))
            *at = '-';
    clock_gettime(CLOCK_REALTIME, &now);
    a->id = s->id ? mr_strdup(s->id) : mr_format("%.40s-%ld", host, (long)getpid());
    a->self = (mr_member){
        .id = mr_strdup(a->id),
        .role = o->role,
        .state = MR_MEMBER_LOADING,
        .is_listed = true,
        .machine = mr_strdup(mr_machine_id()),
        .host = mr_strdup(s->host_label ? s->host_label : host),
        .zone = mr_strdup(s->zone ? s->zone : ""),
        .set = mr_strdup(s->set ? s->set : ""),
        .numeric_class = mr_strdup(""),
        .has_verbs = mr_fabric_has_verbs(),
        .incarnation = (uint64_t)now.tv_sec * 1000u + (uint64_t)(now.tv_nsec / 1000000),
        .wire_min = MR_WIRE_VERSION_MIN,
        .wire_max = MR_WIRE_VERSION,
    };
}

static mr_agent *new_agent(const mr_agent_options *o) {
    pthread_condattr_t monotonic;
    mr_agent *a = mr_alloc(sizeof(*a));
    const mr_agent_settings *s = o->settings;
    const char *const files[3] = {s->ca, s->cert, s->key};
    for (int i = 0; i < 3; i++) a->files[i] = files[i] ? mr_strdup(files[i]) : NULL;
    a->security = (mr_rpc_security){a->files[0], a->files[1], a->files[2], s->plain};
    a->advertise = s->advertise ? mr_strdup(s->advertise) : NULL;
    a->role = o->handlers;
    a->changed = o->changed;
    a->context = o->context;
    a->tick_ms = o->tick_ms ? o->tick_ms : TICK_MS;
    a->keys = mr_keys_open();
    pthread_mutex_init(&a->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&a->woken, &monotonic);
    pthread_condattr_destroy(&monotonic);
    fill_self(a, o);
    return a;
}

mr_status mr_agent_open(mr_agent **out, const mr_agent_options *o, mr_err *err) {
    const mr_agent_settings *s = o->settings;
    *out = NULL;
    mr_status status = check_settings(s, err);
    if (status != MR_OK) return status;
    mr_agent *a = new_agent(o);
    status = mr_id_check(a->id, "--id", err);
    const mr_cluster_options cluster = {.where = s->cluster,
                                        .name = s->name,
                                        .ca_file = s->ca,
                                        .cert_file = s->cert,
                                        .key_file = s->key,
                                        .state_folder = s->state_folder,
                                        .lease_s = (uint32_t)s->lease_s,
                                        .changed = on_view,
                                        .context = a};
    if (status == MR_OK)
        status =
            mr_cluster_open(&a->cluster, &cluster, mr_now_ns() + FIRST_VIEW_MS * 1000000ll, err);
    if (status == MR_OK) status = open_control(a, o, err);
    if (status != MR_OK) {
        mr_agent_close(a);
        return status;
    }
    *out = a;
    return MR_OK;
}

void mr_agent_start(mr_agent *a) {
    pthread_mutex_lock(&a->lock);
    a->is_started = true;
    announce(a);
    a->is_woken = true;
    pthread_mutex_unlock(&a->lock);
    if (a->changed) a->has_thread = pthread_create(&a->thread, NULL, run, a) == 0;
    if (a->changed && !a->has_thread) mr_log_error("no thread to follow the cluster with");
}

void mr_agent_stop(mr_agent *a) {
    pthread_mutex_lock(&a->lock);
    a->is_ending = true;
    pthread_cond_signal(&a->woken);
    pthread_mutex_unlock(&a->lock);
    if (a->has_thread) pthread_join(a->thread, NULL);
    a->has_thread = false;
}

void mr_agent_leave(mr_agent *a) {
    mr_agent_stop(a);
    mr_control_server_close(a->control);
    a->control = NULL;
    pthread_mutex_lock(&a->lock);
    a->is_started = false;
    mr_cluster *cluster = a->cluster;
    a->cluster = NULL;
    pthread_mutex_unlock(&a->lock);
    mr_cluster_close(cluster);
}

void mr_agent_close(mr_agent *a) {
    if (!a) return;
    mr_agent_leave(a);
    mr_keys_close(a->keys);
    free_holdings(&a->self);
    free_stages(&a->self);
    char *texts[] = {a->self.id,   a->self.address,       a->self.ucx,  a->self.control,
                     a->self.http, a->self.machine,       a->self.host, a->self.zone,
                     a->self.set,  a->self.numeric_class, a->id,        a->advertise,
                     a->files[0],  a->files[1],           a->files[2]};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) free(texts[i]);
    pthread_cond_destroy(&a->woken);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* --- leaving ---------------------------------------------------------------------------------- */

typedef struct {
    void (*leave)(void *context);
    void *context;
} departure;

static void *run_departure(void *argument) {
    const departure d = *(departure *)argument;
    const struct timespec pause = {.tv_nsec = LEAVE_MS * 1000000};
    free(argument);
    nanosleep(&pause, NULL);
    d.leave(d.context);
    return NULL;
}

void mr_leave_soon(void (*leave)(void *context), void *context) {
    pthread_t thread;
    departure *d = mr_alloc(sizeof(*d));
    *d = (departure){leave, context};
    if (pthread_create(&thread, NULL, run_departure, d) == 0) {
        pthread_detach(thread);
        return;
    }
    free(d);
    leave(context);
}

/* --- looking ---------------------------------------------------------------------------------- */

const char *mr_agent_id(const mr_agent *a) {
    return a->id;
}
mr_member_state mr_agent_state(mr_agent *a) {
    pthread_mutex_lock(&a->lock);
    const mr_member_state state = a->self.state;
    pthread_mutex_unlock(&a->lock);
    return state;
}
mr_cluster *mr_agent_cluster(mr_agent *a) {
    return a->cluster;
}
const mr_view *mr_agent_view(mr_agent *a) {
    return mr_cluster_view(a->cluster);
}
mr_keys *mr_agent_keys(mr_agent *a) {
    return a->keys;
}
mr_rpc_security mr_agent_security(const mr_agent *a) {
    return a->security;
}
uint64_t mr_agent_leader_epoch(const mr_agent *a) {
    return mr_control_server_leader_epoch(a->control);
}
