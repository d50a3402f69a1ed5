/* core.c - see core.h and core_impl.h. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    STEP_TIMEOUT_MS = 60000,
    SILENCE_TIMEOUT_MS = 1000,
    WORKER_WAIT_MS = 5000,
    LOST_WAIT_MS = 2000,
    HELLO_TIMEOUT_MS = 10000
};

/* --- the inbox -------------------------------------------------------------------------------- */

static void post_locked(mr_core *core, core_message *message) {
    const uint64_t one = 1;
    message->next = NULL;
    *core->inbox_end = message;
    core->inbox_end = &message->next;
    const ssize_t put = write(core->wake_fd, &one, sizeof(one));
    (void)put; /* full means that the thread is awake already */
}

void core_post(mr_core *core, core_message *message) {
    pthread_mutex_lock(&core->lock);
    post_locked(core, message);
    pthread_mutex_unlock(&core->lock);
}

/* A request leaves the waiting ones, once, and at its end the live ones. */
void core_count_out(mr_core *core, core_live *live, bool has_ended) {
    pthread_mutex_lock(&core->lock);
    if (!live->is_started) {
        core->waiting_requests--;
        core->waiting_tokens -= live->request->tokens.count;
    }
    if (has_ended) core->live_requests--;
    pthread_mutex_unlock(&core->lock);
    live->is_started = true;
}

static void cancel(mr_core *core, uint64_t id) {
    core_live *live = core->first;
    while (live && live->id != id) live = live->next;
    if (live) core_end(core, live, MR_ERR_CANCELLED, "the client went away");
}

static void handle(mr_core *core, core_message *message) {
    switch (message->kind) {
    case CORE_SUBMIT:
        core_take(core, message);
        break;
    case CORE_CANCEL:
        cancel(core, message->id);
        break;
    case CORE_LINK:
        core_group_linked(core, message);
        break;
    case CORE_GROUPS:
        core_take_groups(core, message->groups);
        break;
    case CORE_FORWARDED:
        core_take_forwarded(core, message->event);
        free(message->event);
        break;
    case CORE_STOP:
        core->is_stopping = true;
        event_base_loopbreak(core->base);
        break;
    }
}

static core_message *take_inbox(mr_core *core) {
    pthread_mutex_lock(&core->lock);
    core_message *list = core->inbox;
    core->inbox = NULL;
    core->inbox_end = &core->inbox;
    pthread_mutex_unlock(&core->lock);
    return list;
}

static void on_wake(evutil_socket_t fd, short what, void *context) {
    mr_core *core = context;
    uint64_t count;
    (void)what;
    const ssize_t got = read((int)fd, &count, sizeof(count));
    (void)got;
    core_message *list = take_inbox(core);
    while (list) {
        core_message *message = list;
        list = list->next;
        handle(core, message);
        free(message);
    }
    core_pump_all(core);
}

static void *run(void *context) {
    mr_core *core = context;
    event_base_dispatch(core->base);
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

/* What is left in the inbox when nobody handles it any more: ends and closings only. */
static void drop_inbox(mr_core *core) {
    for (core_message *list = take_inbox(core), *next; list; list = next) {
        next = list->next;
        if (list->kind == CORE_SUBMIT) core_take(core, list); /* so that it gets its end */
        if (list->kind == CORE_LINK) core_group_linked(core, list);
        while (list->groups) {
            core_group *group = list->groups;
            list->groups = group->next;
            core_group_free(core, group);
        }
        free(list->event);
        free(list);
    }
}

static void free_core(mr_core *core) {
    core->is_stopping = true;
    for (core_group *g = core->groups; g; g = g->next)
        if (g->has_connector) pthread_join(g->connector, NULL);
    for (core_group *g = core->leaving; g; g = g->next) pthread_join(g->connector, NULL);
    for (core_group *g = core->groups; g; g = g->next) g->has_connector = false;
    for (core_group *g = core->leaving; g; g = g->next) g->has_connector = false;
    drop_inbox(core);
    while (core->first)
        core_end(core, core->first, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
    for (int i = 0; i < 2; i++)
        for (core_group *g = i ? core->leaving : core->groups, *next; g; g = next) {
            next = g->next;
            core_group_free(core, g);
        }
    mr_drafts_close(core->drafts);
    if (core->wake_event) event_free(core->wake_event);
    if (core->timer) event_free(core->timer);
    if (core->base) event_base_free(core->base);
    if (core->wake_fd >= 0) close(core->wake_fd);
    pthread_cond_destroy(&core->changed);
    pthread_mutex_destroy(&core->lock);
    free(core);
}

static uint32_t or_else(uint32_t value, uint32_t other) {
    return value ? value : other;
}

static mr_core *new_core(const mr_core_options *o) {
    pthread_condattr_t monotonic;
    mr_core *core = mr_alloc(sizeof(*core));
    core->tokenizer = o->tokenizer;
    core->digest = o->digest;
    core->context_tokens = o->context_tokens;
    core->queue_max = or_else(o->queue_max, MR_MAX_QUEUED_REQUESTS);
    core->step_timeout_ms = or_else(o->step_timeout_ms, STEP_TIMEOUT_MS);
    core->silence_timeout_ms = or_else(o->silence_timeout_ms, SILENCE_TIMEOUT_MS);
    core->worker_wait_ms = or_else(o->worker_wait_ms, WORKER_WAIT_MS);
    core->lost = o->lost == MR_LOST_DEFAULT ? MR_LOST_WAIT : o->lost;
    core->lost_wait_ms = or_else(o->lost_wait_ms, LOST_WAIT_MS);
    core->has_forwarder = o->forwarder != NULL;
    if (o->forwarder) core->forwarder = *o->forwarder;
    core->speculate = o->draft.tokens_max;
    if (core->speculate > 0) core->drafts = mr_drafts_open(&o->draft);
    const ssize_t got = getrandom(&core->hash_seed, sizeof(core->hash_seed), GRND_NONBLOCK);
    (void)got;
    core->inbox_end = &core->inbox;
    core->timer_ns = INT64_MAX;
    core->next_id = core->next_answer_id = core->next_forward_id = 1;
    mr_fail(&core->down_reason, MR_ERR_UNAVAILABLE, "no worker group is known yet");
    pthread_mutex_init(&core->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&core->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    core->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return core;
}

static mr_status make_events(mr_core *core, mr_err *err) {
    core->base = event_base_new();
    if (core->base && core->wake_fd >= 0) {
        core->wake_event =
            event_new(core->base, core->wake_fd, EV_READ | EV_PERSIST, on_wake, core);
        core->timer = event_new(core->base, -1, 0, core_on_timer, core);
    }
    if (core->wake_event && core->timer && event_add(core->wake_event, NULL) == 0) return MR_OK;
    return mr_fail(err, MR_ERR_IO, "no event loop for the coordinator: %s", strerror(errno));
}

/* The group that the options name; takes options->link over. */
static mr_status open_first(mr_core *core, const mr_core_options *o, mr_err *err) {
    mr_wire_worker_info info;
    uint16_t version;
    if (!o->link && !o->worker_address) return MR_OK;
    core_group *group = core_group_new(&(mr_group_spec){
        .name = o->link ? "embedded" : "worker",
        .address = o->link ? NULL : o->worker_address,
        .digest = o->digest,
    });
    core_group_add(core, group);
    if (!o->link) {
        core_group_say(core, group, MR_GROUP_CONNECTING, "the worker is not connected yet");
        core_connect(core, group);
        return MR_OK;
    }
    const int64_t deadline = mr_now_ns() + HELLO_TIMEOUT_MS * 1000000ll;
    const mr_status status = core_open_session(group, o->link, &info, &version, deadline, err);
    if (status == MR_OK) return core_use_link(core, group, o->link, version, &info, err);
    mr_link_close(o->link);
    return status;
}

mr_status mr_core_open(mr_core **out, const mr_core_options *options, mr_err *err) {
    mr_core *core = new_core(options);
    *out = NULL;
    mr_status status = make_events(core, err);
    if (status == MR_OK)
        status = open_first(core, options, err);
    else
        mr_link_close(options->link);
    if (status == MR_OK && pthread_create(&core->thread, NULL, run, core) != 0)
        status = mr_fail(err, MR_ERR_IO, "no thread for the coordinator's loop");
    if (status != MR_OK) {
        pthread_mutex_lock(&core->lock);
        core->is_closing = true;
        pthread_cond_broadcast(&core->changed);
        pthread_mutex_unlock(&core->lock);
        free_core(core);
        return status;
    }
    *out = core;
    return MR_OK;
}

void mr_core_close(mr_core *core) {
    if (!core) return;
    core_message *stop = mr_alloc(sizeof(*stop));
    stop->kind = CORE_STOP;
    pthread_mutex_lock(&core->lock);
    core->is_closing = true;
    post_locked(core, stop);
    pthread_cond_broadcast(&core->changed);
    pthread_mutex_unlock(&core->lock);
    pthread_join(core->thread, NULL);
    free_core(core);
}

/* --- what other threads call ------------------------------------------------------------------ */

mr_status mr_core_submit(mr_core *core, mr_request *request, uint64_t *id, mr_err *err) {
    mr_status status = MR_OK;
    const uint64_t tokens = request->tokens.count;
    core_message *message = mr_alloc(sizeof(*message));
    pthread_mutex_lock(&core->lock);
    if (core->is_closing || core->is_draining)
        status = mr_fail(err, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
    else if (core->groups_up + core->groups_hoped == 0 && !core->has_forwarder)
        status = mr_fail(err, MR_ERR_UNAVAILABLE, "%s", core->down_reason.text);
    else if (core->waiting_requests >= core->queue_max ||
             core->waiting_tokens + tokens > MR_MAX_QUEUED_TOKENS)
        status =
            mr_fail(err, MR_ERR_LIMIT, "%u requests are waiting already: try again in a moment",
                    core->waiting_requests);
    else {
        core->waiting_requests++;
        core->live_requests++;
        core->waiting_tokens += tokens;
        *message = (core_message){.kind = CORE_SUBMIT,
                                  .id = *id = core->next_id++,
                                  .request = request,
                                  .submitted_ns = mr_now_ns()};
        post_locked(core, message);
        message = NULL;
    }
    pthread_mutex_unlock(&core->lock);
    free(message);
    return status;
}

void mr_core_cancel(mr_core *core, uint64_t id) {
    core_message *message = mr_alloc(sizeof(*message));
    *message = (core_message){.kind = CORE_CANCEL, .id = id};
    core_post(core, message);
}

void mr_core_forwarded(mr_core *core, const mr_forward_event *event) {
    core_message *message = mr_alloc(sizeof(*message));
    *message = (core_message){.kind = CORE_FORWARDED, .event = mr_alloc(sizeof(*event))};
    *message->event = *event;
    core_post(core, message);
}

void mr_core_set_groups(mr_core *core, const mr_group_spec *groups, uint32_t count) {
    core_message *message = mr_alloc(sizeof(*message));
    assert(count <= MR_MAX_GROUPS);
    *message = (core_message){.kind = CORE_GROUPS};
    for (uint32_t i = count; i-- > 0;) {
        core_group *group = core_group_new(&groups[i]);
        group->next = message->groups;
        message->groups = group;
    }
    core_post(core, message);
}

static uint64_t get(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

static void look_at(mr_group_look *out, const core_group *group) {
    const core_face *f = &group->face;
    *out = (mr_group_look){
        .state = group->state,
        .epoch = group->epoch,
        .stages = group->stages,
        .outstanding = (uint32_t)get(&f->outstanding),
        .waiting = get(&f->waiting),
        .running = get(&f->running),
        .queued_tokens = get(&f->queued_tokens),
        .kv_blocks = get(&f->kv_blocks),
        .kv_blocks_used = get(&f->kv_blocks_used),
        .kv_blocks_idle = get(&f->kv_blocks_idle),
        .steps = get(&f->steps),
        .step_failures = get(&f->step_failures),
        .losses = get(&f->losses),
        .reason = group->reason,
    };
    snprintf(out->name, sizeof(out->name), "%s", group->name);
    snprintf(out->version, sizeof(out->version), "%s", group->version);
}

uint32_t mr_core_groups(mr_core *core, mr_group_look *out, uint32_t max) {
    uint32_t count = 0;
    pthread_mutex_lock(&core->lock);
    for (const core_group *g = core->groups; g && count < max; g = g->next)
        look_at(&out[count++], g);
    pthread_mutex_unlock(&core->lock);
    return count;
}

mr_status mr_core_health(mr_core *core, mr_err *err) {
    if (core->has_forwarder && core->forwarder.reaches(core->forwarder.context, NULL)) return MR_OK;
    pthread_mutex_lock(&core->lock);
    const mr_status status = core->groups_up > 0
                                 ? MR_OK
                                 : mr_fail(err, MR_ERR_UNAVAILABLE, "%s", core->down_reason.text);
    pthread_mutex_unlock(&core->lock);
    return status;
}

mr_status mr_core_wait_ready(mr_core *core, int64_t deadline_ns, mr_err *err) {
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                                   .tv_nsec = (long)(deadline_ns % 1000000000)};
    int waited = 0;
    pthread_mutex_lock(&core->lock);
    while (core->groups_up == 0 && waited == 0)
        waited = pthread_cond_timedwait(&core->changed, &core->lock, &until);
    const mr_status status =
        core->groups_up > 0 ? MR_OK : mr_fail(err, MR_ERR_TIMEOUT, "%s", core->down_reason.text);
    pthread_mutex_unlock(&core->lock);
    return status;
}

mr_wire_worker_info mr_core_worker(mr_core *core) {
    pthread_mutex_lock(&core->lock);
    const mr_wire_worker_info info = core->info;
    pthread_mutex_unlock(&core->lock);
    return info;
}

void mr_core_drain(mr_core *core) {
    pthread_mutex_lock(&core->lock);
    core->is_draining = true;
    pthread_mutex_unlock(&core->lock);
}

bool mr_core_is_draining(mr_core *core) {
    pthread_mutex_lock(&core->lock);
    const bool is_draining = core->is_draining || core->is_closing;
    pthread_mutex_unlock(&core->lock);
    return is_draining;
}

uint32_t mr_core_live_requests(mr_core *core) {
    pthread_mutex_lock(&core->lock);
    const uint32_t live = core->live_requests;
    pthread_mutex_unlock(&core->lock);
    return live;
}

mr_metrics *mr_core_metrics(mr_core *core) {
    return &core->metrics;
}
