/* control_server.c - the serving half of the control service; see control.h.
 *
 * Requests are read and judged in a thread of the rpc layer. What may take long (loads, unloads,
 * drains) then gets a thread of its own, MR_CONTROL_JOBS at most; one more thread tells the leaders
 * of all loads twice a second that we are still at it.
 *
 * Threads: `lock` guards the list of jobs and what they last said; nothing waits while it is held.
 */
#include "common/net/control_impl.h"

#include "common/base/mem.h"

/* --- epochs of leaders, whatever the build -----------------------------------------------------
 */

mr_status mr_fence_check(mr_fence *fence, uint64_t epoch, mr_err *err) {
    unsigned long long seen = atomic_load(&fence->highest);
    while (epoch > seen)
        if (atomic_compare_exchange_weak(&fence->highest, &seen, epoch)) return MR_OK;
    if (epoch == seen) return MR_OK;
    return mr_fail(err, MR_ERR_STALE, "an order of leader epoch %llu; %llu was seen already",
                   (unsigned long long)epoch, seen);
}

uint64_t mr_fence_highest(const mr_fence *fence) {
    return atomic_load(&((mr_fence *)(uintptr_t)fence)->highest);
}

#ifdef MR_HAVE_CONTROL
#include "common/base/clock.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { BEAT_MS = 500, LAST_WORD_NS = 2000000000 };

typedef enum { LOAD, UNLOAD, DRAIN } job_kind;

struct mr_control_job {
    mr_control_server *server;
    mr_rpc_call *call;
    job_kind kind;
    mr_message message;
    union {
        mr_control_load_order load;
        mr_control_unload_order unload;
        mr_drain_order drain;
    } order;
    char what[MR_CONTROL_TEXT_BYTES];
    double fraction;
    mr_control_job *next;
};

struct mr_control_stream {
    mr_rpc_call *call;
};

struct mr_control_server {
    mr_rpc_server *rpc;
    char *cluster;
    bool is_plain;
    mr_control_handlers handlers;
    mr_fence fence;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a job ended, or the server closes */
    pthread_t beat;
    mr_control_job *jobs;
    uint32_t job_count;
    bool is_closing;
};

/* --- who asks --------------------------------------------------------------------------------- */

static bool is_name_of(const char *name, mr_role role, const char *id) {
    const char *prefix = mr_control_role_name(role);
    const size_t bytes = strlen(prefix);
    return strncmp(name, prefix, bytes) == 0 && name[bytes] == '.' &&
           (!id || strcmp(name + bytes + 1, id) == 0);
}

static bool has_name(const mr_rpc_peer *peer, mr_role role, const char *id) {
    bool found = is_name_of(peer->common_name, role, id);
    for (size_t i = 0; i < peer->name_count && !found; i++)
        found = is_name_of(peer->names[i], role, id);
    return found;
}

/* Whether the one who asks may speak for the role (and id, where it is not NULL). */
static bool speaks_for(const mr_control_server *s, mr_rpc_call *call, mr_role role,
                       const char *id) {
    if (s->is_plain) return true;
    const mr_rpc_peer peer = mr_rpc_call_peer(call);
    if (!peer.is_verified) return false;
    bool is_bound = false;
    for (mr_role r = MR_ROLE_CLIENT; r <= MR_ROLE_MEMSHARD; r++)
        is_bound |= has_name(&peer, r, NULL);
    return !is_bound || has_name(&peer, role, id);
}

static mr_status check_orderer(mr_control_server *s, mr_rpc_call *call, const char *what,
                               uint64_t epoch, mr_err *err) {
    if (!speaks_for(s, call, MR_ROLE_COORDINATOR, NULL))
        return mr_fail(err, MR_ERR_ARGUMENT, "%s: %s is no coordinator by its certificate", what,
                       mr_rpc_call_peer(call).address);
    const mr_status status = mr_fence_check(&s->fence, epoch, err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "%s", what);
}

static void answer(mr_rpc_call *call, mr_status status, mr_packed packed, mr_err *err) {
    if (status == MR_OK)
        mr_rpc_answer(call, packed.data, packed.bytes);
    else
        mr_rpc_finish(call, status, err);
    free(packed.data);
}

static mr_status unsupported(mr_err *err, const char *what) {
    return mr_fail(err, MR_ERR_UNSUPPORTED, "this process does not take %s", what);
}

/* --- quick ones ------------------------------------------------------------------------------- */

/* Our record as text; owned. */
static mr_status describe(mr_control_server *s, char **text, mr_err *err) {
    *text = NULL;
    mr_member *member = s->handlers.describe ? s->handlers.describe(s->handlers.context) : NULL;
    if (!member) return mr_fail(err, MR_ERR_UNAVAILABLE, "this process has no record yet");
    *text = mr_member_dump(member);
    mr_member_free(member);
    return *text ? MR_OK : mr_fail(err, MR_ERR_FORMAT, "this process's record cannot be written");
}

static void on_join(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    mr_control_server *s = context;
    mr_err err = {{0}};
    mr_message m = {0};
    const char *cluster, *leader;
    uint64_t epoch;
    char *text = NULL;
    mr_status status = mr_unpack_join(&m, &cluster, &leader, &epoch, data, bytes, &err);
    if (status == MR_OK && strcmp(cluster, s->cluster) != 0)
        status = mr_fail(&err, MR_ERR_MISMATCH, "join: this is cluster '%s', not '%s'", s->cluster,
                         cluster);
    if (status == MR_OK && !speaks_for(s, call, MR_ROLE_COORDINATOR, leader))
        status = mr_fail(&err, MR_ERR_ARGUMENT,
                         "join: %s is not coordinator '%s' by its "
                         "certificate",
                         mr_rpc_call_peer(call).address, leader);
    if (status == MR_OK) status = check_orderer(s, call, "join", epoch, &err);
    if (status == MR_OK && s->handlers.join)
        status = s->handlers.join(s->handlers.context, leader, epoch, &err);
    if (status == MR_OK) status = describe(s, &text, &err);
    answer(call, status, status == MR_OK ? mr_pack_join_reply(text) : (mr_packed){0}, &err);
    free(text);
    mr_message_free(&m);
}

static void on_status(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    mr_control_server *s = context;
    mr_err err = {{0}};
    char *text = NULL;
    mr_control_status *figures = mr_alloc(sizeof(*figures));
    mr_status status = mr_unpack_empty(data, bytes, &err);
    if (status == MR_OK) status = describe(s, &text, &err);
    if (status == MR_OK && s->handlers.status) s->handlers.status(s->handlers.context, figures);
    answer(call, status, status == MR_OK ? mr_pack_status(figures, text) : (mr_packed){0}, &err);
    free(figures);
    free(text);
}

static void on_session_key(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    mr_control_server *s = context;
    mr_err err = {{0}};
    mr_message m = {0};
    mr_role role;
    const char *id;
    mr_control_key key = {0};
    mr_status status = mr_unpack_key_request(&m, &role, &id, data, bytes, &err);
    if (status == MR_OK && s->is_plain)
        status = mr_fail(&err, MR_ERR_UNSUPPORTED, "session keys are given over TLS only");
    if (status == MR_OK && !speaks_for(s, call, role, id))
        status = mr_fail(&err, MR_ERR_ARGUMENT, "session key: %s is not %s '%s' by its certificate",
                         mr_rpc_call_peer(call).address, mr_control_role_name(role), id);
    if (status == MR_OK)
        status = s->handlers.session_key
                     ? s->handlers.session_key(s->handlers.context, role, id, &key, &err)
                     : unsupported(&err, "requests for session keys");
    const mr_packed packed = status == MR_OK ? mr_pack_key(&key) : (mr_packed){0};
    if (status == MR_OK)
        mr_rpc_answer(call, packed.data, packed.bytes);
    else
        mr_rpc_finish(call, status, &err);
    if (packed.data) explicit_bzero(packed.data, packed.bytes);
    explicit_bzero(&key, sizeof(key));
    free(packed.data);
    mr_message_free(&m);
}

/* --- long ones -------------------------------------------------------------------------------- */

bool mr_control_job_is_cancelled(mr_control_job *job) {
    pthread_mutex_lock(&job->server->lock);
    const bool is_closing = job->server->is_closing;
    pthread_mutex_unlock(&job->server->lock);
    return is_closing || mr_rpc_call_is_cancelled(job->call);
}

/* Lock held. A leader that does not read misses it. */
static void say_progress(mr_control_job *job) {
    const mr_packed packed = mr_pack_progress(job->what, job->fraction, false);
    mr_rpc_send(job->call, packed.data, packed.bytes, 0, NULL);
    free(packed.data);
}

void mr_control_job_progress(mr_control_job *job, const char *what, double fraction) {
    if (job->kind != LOAD) return;
    pthread_mutex_lock(&job->server->lock);
    const size_t bytes = strnlen(what, sizeof(job->what) - 1);
    memcpy(job->what, what, bytes);
    job->what[bytes] = '\0';
    job->fraction = fraction;
    say_progress(job);
    pthread_mutex_unlock(&job->server->lock);
}

static void *beat(void *context) {
    mr_control_server *s = context;
    pthread_mutex_lock(&s->lock);
    while (!s->is_closing) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += BEAT_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&s->changed, &s->lock, &until) == 0) continue;
        for (mr_control_job *job = s->jobs; job; job = job->next)
            if (job->kind == LOAD) say_progress(job);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static mr_status work(mr_control_job *job, mr_err *err) {
    const mr_control_handlers *h = &job->server->handlers;
    if (job->kind == LOAD) return h->load(h->context, job, &job->order.load, err);
    if (job->kind == UNLOAD) return h->unload(h->context, job, &job->order.unload, err);
    return h->drain(h->context, job, &job->order.drain, err);
}

static void take_off_list(mr_control_job *job) {
    mr_control_server *s = job->server;
    pthread_mutex_lock(&s->lock);
    mr_control_job **at = &s->jobs;
    while (*at != job) at = &(*at)->next;
    *at = job->next;
    pthread_mutex_unlock(&s->lock);
}

static void end_job(mr_control_job *job) {
    mr_control_server *s = job->server;
    mr_message_free(&job->message);
    free(job);
    pthread_mutex_lock(&s->lock);
    s->job_count--; /* the last touch: close waits for it */
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void *run_job(void *context) {
    mr_control_job *job = context;
    mr_err err = {{0}};
    mr_status status = work(job, &err);
    take_off_list(job);
    if (status == MR_OK && job->kind == LOAD) {
        const mr_packed packed = mr_pack_progress("ready", 1, true);
        status =
            mr_rpc_send(job->call, packed.data, packed.bytes, mr_now_ns() + LAST_WORD_NS, &err);
        free(packed.data);
    }
    if (status == MR_OK && job->kind != LOAD)
        answer(job->call, MR_OK, mr_pack_empty(), &err);
    else
        mr_rpc_finish(job->call, status, &err);
    end_job(job);
    return NULL;
}

/* Takes the job over. */
static void start_job(mr_control_server *s, mr_control_job *job) {
    mr_err err = {{0}};
    mr_status status = MR_OK;
    pthread_mutex_lock(&s->lock);
    if (s->is_closing)
        status = mr_fail(&err, MR_ERR_UNAVAILABLE, "this process is ending");
    else if (s->job_count == MR_CONTROL_JOBS)
        status =
            mr_fail(&err, MR_ERR_LIMIT, "%d orders are being carried out already", MR_CONTROL_JOBS);
    else {
        s->job_count++;
        job->next = s->jobs;
        s->jobs = job;
    }
    pthread_mutex_unlock(&s->lock);
    if (status != MR_OK) {
        mr_rpc_finish(job->call, status, &err);
        mr_message_free(&job->message);
        free(job);
        return;
    }
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the main thread's */
    const int code = pthread_create(&thread, NULL, run_job, job);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code == 0) {
        pthread_detach(thread);
        return;
    }
    take_off_list(job);
    mr_fail(&err, MR_ERR_NOMEM, "no thread for an order: %s", strerror(code));
    mr_rpc_finish(job->call, MR_ERR_NOMEM, &err);
    end_job(job);
}

static mr_status read_order(mr_control_job *job, const uint8_t *data, size_t bytes, mr_err *err) {
    mr_control_server *s = job->server;
    mr_status status;
    switch (job->kind) {
    case LOAD:
        if (!s->handlers.load) return unsupported(err, "loads");
        status = mr_unpack_load(&job->message, &job->order.load, data, bytes, err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "load");
        return check_orderer(s, job->call, "load", job->order.load.leader_epoch, err);
    case UNLOAD:
        if (!s->handlers.unload) return unsupported(err, "unloads");
        status = mr_unpack_unload(&job->message, &job->order.unload, data, bytes, err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "unload");
        return check_orderer(s, job->call, "unload", job->order.unload.leader_epoch, err);
    case DRAIN:
        break;
    }
    if (!s->handlers.drain) return unsupported(err, "drains");
    if (!speaks_for(s, job->call, MR_ROLE_COORDINATOR, NULL) &&
        !speaks_for(s, job->call, MR_ROLE_CLIENT, NULL))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "drain: %s is neither a coordinator nor an operator by its certificate",
                       mr_rpc_call_peer(job->call).address);
    return mr_unpack_drain(&job->order.drain, data, bytes, err);
}

static void on_order(mr_control_server *s, job_kind kind, mr_rpc_call *call, const uint8_t *data,
                     size_t bytes) {
    mr_err err = {{0}};
    mr_control_job *job = mr_alloc(sizeof(*job));
    job->server = s;
    job->call = call;
    job->kind = kind;
    const mr_status status = read_order(job, data, bytes, &err);
    if (status == MR_OK) {
        start_job(s, job);
        return;
    }
    mr_rpc_finish(call, status, &err);
    mr_message_free(&job->message);
    free(job);
}

static void on_load(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    on_order(context, LOAD, call, data, bytes);
}
static void on_unload(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    on_order(context, UNLOAD, call, data, bytes);
}
static void on_drain(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    on_order(context, DRAIN, call, data, bytes);
}

/* --- generations ------------------------------------------------------------------------------ */

static void on_generate(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    mr_control_server *s = context;
    mr_err err = {{0}};
    mr_message m = {0};
    mr_generation g;
    mr_control_stream *stream = NULL;
    mr_status status = s->handlers.generate ? MR_OK : unsupported(&err, "requests");
    if (status == MR_OK && !speaks_for(s, call, MR_ROLE_COORDINATOR, NULL))
        status = mr_fail(&err, MR_ERR_ARGUMENT, "generate: %s is no coordinator by its certificate",
                         mr_rpc_call_peer(call).address);
    if (status == MR_OK) status = mr_unpack_generation(&m, &g, data, bytes, &err);
    if (status == MR_OK) {
        stream = mr_alloc(sizeof(*stream));
        stream->call = call;
        status = s->handlers.generate(s->handlers.context, stream, &g, &err);
        if (status != MR_OK) free(stream);
    }
    if (status != MR_OK) mr_rpc_finish(call, status, &err);
    mr_message_free(&m);
}

mr_status mr_control_stream_send(mr_control_stream *stream, const mr_generation_event *event,
                                 mr_err *err) {
    const mr_packed packed = mr_pack_event(event);
    const mr_status status = mr_rpc_send(stream->call, packed.data, packed.bytes, 0, err);
    free(packed.data);
    return status;
}

bool mr_control_stream_is_cancelled(mr_control_stream *stream) {
    return mr_rpc_call_is_cancelled(stream->call);
}

void mr_control_stream_watch(mr_control_stream *stream, void (*notify)(void *context),
                             void *context) {
    mr_rpc_call_watch(stream->call, notify, context);
}

/* Where there is no room for one more event the call's own status says the same, but for
 * is_degraded, which the events had. */
void mr_control_stream_end(mr_control_stream *stream, mr_status status, bool is_degraded,
                           const mr_err *err) {
    mr_generation_event event = {.is_end = true, .is_degraded = is_degraded, .status = status};
    if (err && status != MR_OK) memcpy(event.sentence, err->text, sizeof(event.sentence));
    if (mr_control_stream_send(stream, &event, NULL) == MR_OK) status = MR_OK;
    mr_rpc_finish(stream->call, status, status == MR_OK ? NULL : err);
    free(stream);
}

/* --- opening ---------------------------------------------------------------------------------- */

mr_status mr_control_server_open(mr_control_server **out, const mr_control_server_options *o,
                                 mr_err *err) {
    *out = NULL;
    mr_control_server *s = mr_alloc(sizeof(*s));
    s->cluster = mr_strdup(o->cluster);
    s->is_plain = o->security.is_plain;
    s->handlers = o->handlers;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    const mr_rpc_method methods[] = {
        {MR_CONTROL_PATH "Join", false, on_join, s},
        {MR_CONTROL_PATH "Load", true, on_load, s},
        {MR_CONTROL_PATH "Unload", false, on_unload, s},
        {MR_CONTROL_PATH "Drain", false, on_drain, s},
        {MR_CONTROL_PATH "Status", false, on_status, s},
        {MR_CONTROL_PATH "SessionKey", false, on_session_key, s},
        {MR_GATEWAY_PATH, true, on_generate, s},
    };
    const mr_rpc_server_options options = {.address = o->address,
                                           .security = o->security,
                                           .methods = methods,
                                           .method_count = sizeof(methods) / sizeof(*methods),
                                           .message_bytes =
                                               o->handlers.generate ? MR_CONTROL_MESSAGE_BYTES : 0};
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    mr_status status = MR_OK;
    if (pthread_create(&s->beat, NULL, beat, s) != 0)
        status = mr_fail(err, MR_ERR_NOMEM, "control service: no thread for it");
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status != MR_OK) goto free_server;
    status = mr_rpc_server_open(&s->rpc, &options, err);
    if (status == MR_OK) {
        *out = s;
        return MR_OK;
    }
    pthread_mutex_lock(&s->lock);
    s->is_closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->beat, NULL);
free_server:
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s->cluster);
    free(s);
    return status;
}

void mr_control_server_close(mr_control_server *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->is_closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->beat, NULL);
    mr_rpc_server_close(s->rpc); /* after this no handler runs any more */
    pthread_mutex_lock(&s->lock);
    while (s->job_count > 0) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s->cluster);
    free(s);
}

int mr_control_server_port(const mr_control_server *server) {
    return mr_rpc_server_port(server->rpc);
}

uint64_t mr_control_server_leader_epoch(const mr_control_server *server) {
    return mr_fence_highest(&server->fence);
}
#endif
