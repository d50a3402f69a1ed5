/* core_link.c - the link to the worker: frames in, frames out, silence, and connecting again.
 *
 * Connecting and opening a session wait (with deadlines), so a helper thread does it and posts the
 * open link to the inbox; the loop itself never waits for a peer. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/frames.h"

#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

enum { ATTEMPT_MS = 2000, PAUSE_MIN_MS = 100, PAUSE_MAX_MS = 2000 };

static mr_status check_info(const mr_wire_worker_info *info, mr_err *err) {
    if (info->kv_block_tokens != MR_KV_BLOCK_TOKENS)
        return mr_fail(err, MR_ERR_MISMATCH, "the worker has KV blocks of %u tokens; ours have %d",
                       info->kv_block_tokens, MR_KV_BLOCK_TOKENS);
    if (info->kv_blocks == 0 || info->kv_blocks > 1u << 24 || info->step_tokens_max == 0 ||
        info->step_tokens_max > MR_MAX_STEP_TOKENS || info->step_sequences_max == 0 ||
        info->step_sequences_max > MR_MAX_STEP_SEQUENCES || info->context_tokens == 0 ||
        info->context_tokens > MR_MAX_CONTEXT || info->vocab_size == 0 ||
        info->logit_columns < info->vocab_size || info->logit_columns > 2 * MR_MAX_VOCAB)
        return mr_fail(err, MR_ERR_RANGE,
                       "the worker states impossible limits (%u KV blocks, steps of %u tokens and "
                       "%u sequences, context %u, %u of %u logits)",
                       info->kv_blocks, info->step_tokens_max, info->step_sequences_max,
                       info->context_tokens, info->vocab_size, info->logit_columns);
    return MR_OK;
}

mr_status core_open_session(mr_core *core, mr_link *link, mr_wire_worker_info *info,
                            int64_t deadline_ns, mr_err *err) {
    _Alignas(8) uint8_t bytes[sizeof(mr_wire_welcome) + sizeof(mr_wire_worker_info)];
    size_t count;
    mr_welcome_view view;
    const mr_session_hello hello = {
        .role = MR_ROLE_COORDINATOR, .role_wanted = MR_ROLE_WORKER, .digest = core->digest};
    mr_status status =
        mr_session_open(link, &hello, deadline_ns, bytes, sizeof(bytes), &count, err);
    if (status != MR_OK) return status;
    if (count > sizeof(bytes))
        return mr_fail(err, MR_ERR_FORMAT, "the worker's WELCOME has %zu bytes", count);
    status = mr_welcome_check(&view, bytes, count, err);
    if (status != MR_OK) return status;
    memcpy(info, view.worker_info, sizeof(*info));
    return check_info(info, err);
}

static void on_frame(mr_core *core, const mr_frame *frame) {
    mr_err err = {{0}};
    mr_status status = MR_OK;
    const bool is_current = core->step && frame->header->request == core->step_id &&
                            frame->header->type != MR_FRAME_PONG;
    if (is_current) core_arm_watchdog(core, true); /* the step goes on */
    switch (frame->header->type) {
    case MR_FRAME_SAMPLED:
        if (is_current) status = core_sampled(core, frame, &err);
        break;
    case MR_FRAME_LOGITS:
        if (is_current) status = core_logits(core, frame, &err);
        break;
    case MR_FRAME_DONE:
        if (is_current) status = core_done(core, frame, &err);
        break;
    case MR_FRAME_ERROR: {
        const mr_status reported = mr_frame_error(frame, &err);
        if (is_current) core_step_failed(core, reported, err.text);
        break;
    }
    case MR_FRAME_PONG:
        break;
    case MR_FRAME_REFUSE:
        status = mr_frame_error(frame, &err);
        break;
    default:
        status = mr_fail(&err, MR_ERR_FORMAT, "an unexpected %s frame from the worker",
                         mr_frame_name(frame->header->type));
    }
    if (status != MR_OK) core_link_failed(core, status, err.text);
}

static void on_readable(evutil_socket_t fd, short what, void *context) {
    mr_core *core = context;
    mr_frame frame;
    mr_err err = {{0}};
    (void)fd;
    (void)what;
    while (core->link) {
        const mr_status status = mr_link_receive(core->link, &frame, &err);
        if (status == MR_ERR_AGAIN) break;
        if (status != MR_OK) {
            core_link_failed(core, status, err.text);
            return;
        }
        core->heard_ns = mr_now_ns();
        on_frame(core, &frame);
    }
    core_pump(core);
}

static void on_writable(evutil_socket_t fd, short what, void *context) {
    (void)fd;
    (void)what;
    core_flush(context);
}

void core_flush(mr_core *core) {
    mr_err err = {{0}};
    if (!core->link) return;
    const mr_status status = mr_link_flush(core->link, &err);
    if (status == MR_ERR_AGAIN)
        event_add(core->write_event, NULL);
    else if (status != MR_OK)
        core_link_failed(core, status, err.text);
}

void core_arm_watchdog(mr_core *core, bool on) {
    if (!on) {
        event_del(core->watchdog);
        return;
    }
    const struct timeval wait = {.tv_sec = core->step_timeout_ms / 1000,
                                 .tv_usec = (core->step_timeout_ms % 1000) * 1000};
    event_add(core->watchdog, &wait); /* moves the deadline where it was armed already */
}

/* A worker process answers pings beside its steps; the embedded one is busy with them. */
void core_on_heartbeat(evutil_socket_t fd, short what, void *context) {
    mr_core *core = context;
    mr_err err;
    const mr_wire_header ping = {.type = MR_FRAME_PING};
    (void)fd;
    (void)what;
    if (!core->link) return;
    if (mr_now_ns() - core->heard_ns > core->silence_timeout_ms * 1000000ll) {
        mr_fail(&err, MR_ERR_TIMEOUT, "%s has been silent for %.1f s", mr_link_peer(core->link),
                core->silence_timeout_ms / 1000.0);
        core_link_failed(core, MR_ERR_TIMEOUT, err.text);
        return;
    }
    mr_link_send(core->link, &ping, NULL, 0);
    core_flush(core);
}

static void start_heartbeat(mr_core *core) {
    const uint32_t ms = core->silence_timeout_ms / 5;
    const struct timeval period = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};
    core->heard_ns = mr_now_ns();
    if (core->address) event_add(core->heartbeat, &period);
}

void core_use_link(mr_core *core, mr_link *link, const mr_wire_worker_info *info) {
    mr_scheduler_close(core->scheduler); /* nothing is in it: the last link's end ended all */
    core->scheduler = mr_scheduler_open(&(mr_scheduler_options){
        .kv_blocks = info->kv_blocks,
        .step_tokens = info->step_tokens_max,
        .step_sequences = info->step_sequences_max,
        .frame_bytes = MR_MAX_FRAME_BYTES,
    });
    const int fd = mr_link_fd(link);
    core->link = link;
    core->read_event = event_new(core->base, fd, EV_READ | EV_PERSIST, on_readable, core);
    core->write_event = event_new(core->base, fd, EV_WRITE, on_writable, core);
    if (!core->read_event || !core->write_event || event_add(core->read_event, NULL) != 0) {
        core_link_failed(core, MR_ERR_IO, "no event for the worker's link");
        return;
    }
    start_heartbeat(core);
    mr_gauge(&core->metrics.kv_blocks, info->kv_blocks);
    core_set_state(core, true, info, "");
}

void core_drop_link(mr_core *core) {
    if (core->read_event) event_free(core->read_event);
    if (core->write_event) event_free(core->write_event);
    core->read_event = core->write_event = NULL;
    mr_link_close(core->link);
    core->link = NULL;
}

void core_link_failed(mr_core *core, mr_status status, const char *sentence) {
    mr_err reason;
    mr_fail(&reason, status, "lost the worker: %s", sentence);
    mr_log_error("%s", reason.text);
    core_arm_watchdog(core, false);
    event_del(core->heartbeat);
    core_set_state(core, false, NULL, reason.text);
    core_drop_link(core);
    if (core->step) {
        mr_count(&core->metrics.step_failures, 1);
        mr_scheduler_abandon(core->scheduler, core->step);
        core->step = NULL;
    }
    core_end_all(core, MR_ERR_UNAVAILABLE, reason.text);
    if (core->address && !core->is_stopping) core_connect(core);
}

/* --- the helper thread ------------------------------------------------------------------------ */

/* false: the core is closing. */
static bool pause_for(mr_core *core, int ms) {
    const int64_t end = mr_now_ns() + ms * 1000000ll;
    const struct timespec until = {.tv_sec = (time_t)(end / 1000000000),
                                   .tv_nsec = (long)(end % 1000000000)};
    int waited = 0;
    pthread_mutex_lock(&core->lock);
    while (!core->is_closing && waited == 0)
        waited = pthread_cond_timedwait(&core->changed, &core->lock, &until);
    const bool go_on = !core->is_closing;
    pthread_mutex_unlock(&core->lock);
    return go_on;
}

static void *connect_in_background(void *context) {
    mr_core *core = context;
    core_message *message = mr_alloc(sizeof(*message));
    int pause_ms = PAUSE_MIN_MS;
    message->kind = CORE_LINK;
    for (;;) {
        mr_link *link;
        mr_err err = {{0}};
        const int64_t deadline = mr_now_ns() + ATTEMPT_MS * 1000000ll;
        mr_status status = mr_link_connect(&link, core->address, deadline, &err);
        if (status == MR_OK) status = core_open_session(core, link, &message->info, deadline, &err);
        if (status == MR_OK) {
            message->link = link;
            break;
        }
        mr_link_close(link);
        core_set_state(core, false, NULL, err.text);
        if (pause_ms == PAUSE_MIN_MS)
            mr_log_info("waiting for the worker at %s: %s", core->address, err.text);
        if (!pause_for(core, pause_ms)) break;
        pause_ms = pause_ms * 2 < PAUSE_MAX_MS ? pause_ms * 2 : PAUSE_MAX_MS;
    }
    core_post(core, message);
    return NULL;
}

void core_connect(mr_core *core) {
    if (core->has_connector) return;
    core->has_connector = pthread_create(&core->connector, NULL, connect_in_background, core) == 0;
    if (!core->has_connector) mr_log_error("no thread to connect to the worker: %s", core->address);
}
