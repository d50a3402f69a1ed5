/* core.c - see core.h and core_impl.h. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { STEP_TIMEOUT_MS = 60000, SILENCE_TIMEOUT_MS = 5000, HELLO_TIMEOUT_MS = 10000 };

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

void core_set_state(mr_core *core, bool is_up, const mr_wire_worker_info *info,
                    const char *reason) {
    pthread_mutex_lock(&core->lock);
    core->is_up = is_up;
    if (info) core->info = *info;
    mr_fail(&core->down_reason, MR_ERR_UNAVAILABLE, "%s", reason);
    pthread_cond_broadcast(&core->changed);
    pthread_mutex_unlock(&core->lock);
    mr_gauge(&core->metrics.worker_up, is_up);
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
        if (core->has_connector) pthread_join(core->connector, NULL);
        core->has_connector = false;
        if (core->is_stopping)
            mr_link_close(message->link);
        else if (message->link) {
            if (core->scheduler) mr_count(&core->metrics.reconnects, 1);
            core_use_link(core, message->link, &message->info);
        }
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
    core_pump(core);
}

static void *run(void *context) {
    mr_core *core = context;
    event_base_dispatch(core->base);
    return NULL;
}

static void free_core(mr_core *core) {
    core_message *list = core->inbox;
    while (list) { /* posted after the thread had gone */
        core_message *next = list->next;
        mr_request_free(list->request);
        mr_link_close(list->link);
        free(list);
        list = next;
    }
    core_drop_link(core);
    mr_scheduler_close(core->scheduler);
    if (core->wake_event) event_free(core->wake_event);
    if (core->watchdog) event_free(core->watchdog);
    if (core->heartbeat) event_free(core->heartbeat);
    if (core->base) event_base_free(core->base);
    if (core->wake_fd >= 0) close(core->wake_fd);
    pthread_cond_destroy(&core->changed);
    pthread_mutex_destroy(&core->lock);
    free(core->address);
    free(core);
}

static mr_core *new_core(const mr_core_options *o) {
    pthread_condattr_t monotonic;
    mr_core *core = mr_alloc(sizeof(*core));
    core->tokenizer = o->tokenizer;
    core->address = o->worker_address ? mr_strdup(o->worker_address) : NULL;
    core->digest = o->digest;
    core->context_tokens = o->context_tokens;
    core->queue_max = o->queue_max ? o->queue_max : MR_MAX_QUEUED_REQUESTS;
    core->step_timeout_ms = o->step_timeout_ms ? o->step_timeout_ms : STEP_TIMEOUT_MS;
    core->silence_timeout_ms = o->silence_timeout_ms ? o->silence_timeout_ms : SILENCE_TIMEOUT_MS;
    core->inbox_end = &core->inbox;
    core->next_id = core->next_answer_id = 1;
    pthread_mutex_init(&core->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&core->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    core->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return core;
}

static void on_watchdog(evutil_socket_t fd, short what, void *context) {
    mr_core *core = context;
    mr_err err;
    (void)fd;
    (void)what;
    mr_fail(&err, MR_ERR_TIMEOUT, "the worker %s has not gone on with its step for %.1f s",
            mr_link_peer(core->link), core->step_timeout_ms / 1000.0);
    core_link_failed(core, MR_ERR_TIMEOUT, err.text);
}

static mr_status make_events(mr_core *core, mr_err *err) {
    core->base = event_base_new();
    if (core->base && core->wake_fd >= 0) {
        core->wake_event =
            event_new(core->base, core->wake_fd, EV_READ | EV_PERSIST, on_wake, core);
        core->watchdog = event_new(core->base, -1, 0, on_watchdog, core);
        core->heartbeat = event_new(core->base, -1, EV_PERSIST, core_on_heartbeat, core);
    }
    if (core->wake_event && core->watchdog && core->heartbeat &&
        event_add(core->wake_event, NULL) == 0)
        return MR_OK;
    return mr_fail(err, MR_ERR_IO, "no event loop for the coordinator: %s", strerror(errno));
}

mr_status mr_core_open(mr_core **out, const mr_core_options *options, mr_err *err) {
    mr_core *core = new_core(options);
    mr_wire_worker_info info;
    mr_link *link = options->link;
    *out = NULL;
    mr_status status = make_events(core, err);
    if (status == MR_OK && link) {
        status =
            core_open_session(core, link, &info, mr_now_ns() + HELLO_TIMEOUT_MS * 1000000ll, err);
        if (status == MR_OK) {
            core_use_link(core, link, &info);
            link = NULL;
        }
    } else if (status == MR_OK) {
        core_set_state(core, false, NULL, "the worker is not connected yet");
        core_connect(core);
    }
    if (status == MR_OK && pthread_create(&core->thread, NULL, run, core) != 0) {
        status = mr_fail(err, MR_ERR_IO, "no thread for the coordinator's loop");
        core->is_closing = true;
        if (core->has_connector) pthread_join(core->connector, NULL);
    }
    if (status != MR_OK) {
        mr_link_close(link);
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
    if (core->has_connector) pthread_join(core->connector, NULL);
    core->is_stopping = true;
    for (core_message *list = take_inbox(core), *next; list; list = next) {
        next = list->next;
        if (list->kind == CORE_SUBMIT)
            core_take(core, list); /* so that it gets its end */
        else
            mr_link_close(list->link);
        free(list);
    }
    core_end_all(core, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
    free_core(core);
}

mr_status mr_core_submit(mr_core *core, mr_request *request, uint64_t *id, mr_err *err) {
    mr_status status = MR_OK;
    const uint64_t tokens = request->tokens.count;
    core_message *message = mr_alloc(sizeof(*message));
    pthread_mutex_lock(&core->lock);
    if (core->is_closing || core->is_draining)
        status = mr_fail(err, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
    else if (!core->is_up)
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

mr_status mr_core_health(mr_core *core, mr_err *err) {
    pthread_mutex_lock(&core->lock);
    const mr_status status =
        core->is_up ? MR_OK : mr_fail(err, MR_ERR_UNAVAILABLE, "%s", core->down_reason.text);
    pthread_mutex_unlock(&core->lock);
    return status;
}

mr_status mr_core_wait_ready(mr_core *core, int64_t deadline_ns, mr_err *err) {
    const struct timespec until = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                                   .tv_nsec = (long)(deadline_ns % 1000000000)};
    int waited = 0;
    pthread_mutex_lock(&core->lock);
    while (!core->is_up && waited == 0)
        waited = pthread_cond_timedwait(&core->changed, &core->lock, &until);
    const mr_status status =
        core->is_up ? MR_OK : mr_fail(err, MR_ERR_TIMEOUT, "%s", core->down_reason.text);
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

uint32_t mr_core_live_requests(mr_core *core) {
    pthread_mutex_lock(&core->lock);
    const uint32_t live = core->live_requests;
    pthread_mutex_unlock(&core->lock);
    return live;
}

mr_metrics *mr_core_metrics(mr_core *core) {
    return &core->metrics;
}
