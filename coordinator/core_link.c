/* core_link.c - the link to a group's first stage: frames in, frames out, and connecting again.
 *
 * Connecting and opening a session wait (with deadlines), so a helper thread does it and posts the
 * open link to the inbox; the loop itself never waits for a peer. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/frames.h"

#include <stdlib.h>
#include <string.h>

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
    if (info->stage != 0 || info->stages > MR_MAX_STAGES)
        return mr_fail(err, MR_ERR_MISMATCH, "this is stage %u of %u, not the first of at most %d",
                       info->stage, info->stages, MR_MAX_STAGES);
    return MR_OK;
}

mr_status core_open_session(const core_group *group, mr_link *link, mr_wire_worker_info *info,
                            uint16_t *version, int64_t deadline_ns, mr_err *err) {
    _Alignas(8) uint8_t bytes[sizeof(mr_wire_welcome) + sizeof(mr_wire_worker_info)];
    size_t count;
    mr_welcome_view view;
    const mr_session_hello hello = {
        .role = MR_ROLE_COORDINATOR, .role_wanted = MR_ROLE_WORKER, .digest = group->digest};
    mr_status status =
        mr_session_open(link, &hello, deadline_ns, bytes, sizeof(bytes), &count, err);
    if (status != MR_OK) return status;
    if (count > sizeof(bytes))
        return mr_fail(err, MR_ERR_FORMAT, "the worker's WELCOME has %zu bytes", count);
    status = mr_welcome_check(&view, bytes, count, err);
    if (status != MR_OK) return status;
    memcpy(info, view.worker_info, sizeof(*info));
    *version = view.fixed->version;
    return check_info(info, err);
}

static mr_status on_answer(mr_core *core, core_group *group, const mr_frame *frame, mr_err *err) {
    core_step *step = core_find_step(group, frame->header->request);
    if (!step) return MR_OK; /* of a step that is not waited for any more */
    group->progress_ns = group->heard_ns;
    switch (frame->header->type) {
    case MR_FRAME_SAMPLED:
        return core_sampled(group, step, frame, err);
    case MR_FRAME_LOGITS:
        return core_logits(group, step, frame, err);
    case MR_FRAME_DONE:
        return core_done(core, group, step, frame, err);
    default:
        core_step_failed(core, group, step, mr_frame_error(frame, err), err->text);
        return MR_OK;
    }
}

static void on_frame(mr_core *core, core_group *group, const mr_frame *frame) {
    mr_err err = {{0}};
    mr_status status = MR_OK;
    switch (frame->header->type) {
    case MR_FRAME_SAMPLED:
    case MR_FRAME_LOGITS:
    case MR_FRAME_DONE:
    case MR_FRAME_ERROR:
        status = on_answer(core, group, frame, &err);
        break;
    case MR_FRAME_PONG:
        break;
    case MR_FRAME_REFUSE:
        status = mr_frame_error(frame, &err);
        break;
    default:
        status = mr_fail(&err, MR_ERR_FORMAT, "an unexpected %s frame from the worker",
                         mr_frame_name(frame->header->type));
    }
    if (status != MR_OK) core_group_lost(core, group, status, err.text);
}

/* The event's context: libevent has room for one pointer. */
typedef struct {
    mr_core *core;
    core_group *group;
} door;

static void on_readable(evutil_socket_t fd, short what, void *context) {
    const door d = *(door *)context; /* it goes with the link */
    mr_frame frame;
    mr_err err = {{0}};
    (void)fd;
    (void)what;
    while (d.group->link) {
        const mr_status status = mr_link_receive(d.group->link, &frame, &err);
        if (status == MR_ERR_AGAIN) break;
        if (status != MR_OK) {
            core_group_lost(d.core, d.group, status, err.text);
            break;
        }
        d.group->heard_ns = mr_now_ns();
        on_frame(d.core, d.group, &frame);
    }
    core_pump_all(d.core); /* requests may have moved */
}

static void on_writable(evutil_socket_t fd, short what, void *context) {
    const door d = *(door *)context;
    (void)fd;
    (void)what;
    core_flush(d.core, d.group);
}

void core_flush(mr_core *core, core_group *group) {
    mr_err err = {{0}};
    if (!group->link) return;
    const mr_status status = mr_link_flush(group->link, &err);
    if (status == MR_ERR_AGAIN)
        event_add(group->write_event, NULL);
    else if (status != MR_OK)
        core_group_lost(core, group, status, err.text);
}

void core_ping(mr_core *core, core_group *group) {
    const mr_wire_header ping = {.type = MR_FRAME_PING};
    mr_link_send(group->link, &ping, NULL, 0);
    core_flush(core, group);
}

mr_status core_use_link(mr_core *core, core_group *group, mr_link *link, uint16_t version,
                        const mr_wire_worker_info *info, mr_err *err) {
    const uint32_t stages = group->stages_wanted ? group->stages_wanted : info->stages;
    const int fd = mr_link_fd(link);
    door *d = mr_alloc(sizeof(*d));
    *d = (door){core, group};
    group->link = link;
    group->door = d;
    group->wire_version = version;
    group->info = *info;
    group->steps_max = stages == 0 ? 1 : stages;
    if (group->steps_max > MR_MAX_STAGES) group->steps_max = MR_MAX_STAGES;
    group->scheduler = mr_scheduler_open(&(mr_scheduler_options){
        .kv_blocks = info->kv_blocks,
        .step_tokens = info->step_tokens_max,
        .step_sequences = info->step_sequences_max,
        .frame_bytes = MR_MAX_FRAME_BYTES,
        .plans_max = group->steps_max,
        .hash_seed = core->hash_seed,
    });
    group->read_event = event_new(core->base, fd, EV_READ | EV_PERSIST, on_readable, d);
    group->write_event = event_new(core->base, fd, EV_WRITE, on_writable, d);
    if (!group->read_event || !group->write_event || event_add(group->read_event, NULL) != 0) {
        core_drop_link(group);
        return mr_fail(err, MR_ERR_IO, "no event for the worker's link");
    }
    core_group_up(core, group);
    return MR_OK;
}

void core_drop_link(core_group *group) {
    if (group->read_event) event_free(group->read_event);
    if (group->write_event) event_free(group->write_event);
    group->read_event = group->write_event = NULL;
    free(group->door);
    group->door = NULL;
    mr_link_close(group->link);
    group->link = NULL;
}

/* --- the helper thread ------------------------------------------------------------------------ */

typedef struct {
    mr_core *core;
    core_group *group;
} errand;

/* false: the core is closing, or the group has been removed. */
static bool pause_for(const errand *e, int ms) {
    const int64_t end = mr_now_ns() + ms * 1000000ll;
    const struct timespec until = {.tv_sec = (time_t)(end / 1000000000),
                                   .tv_nsec = (long)(end % 1000000000)};
    mr_core *core = e->core;
    int waited = 0;
    pthread_mutex_lock(&core->lock);
    while (!core->is_closing && !e->group->is_removed && waited == 0)
        waited = pthread_cond_timedwait(&core->changed, &core->lock, &until);
    const bool go_on = !core->is_closing && !e->group->is_removed;
    pthread_mutex_unlock(&core->lock);
    return go_on;
}

/* Why there is no session yet; a group that has been removed meanwhile is not spoken of. */
static void say_why(const errand *e, const mr_err *err) {
    pthread_mutex_lock(&e->core->lock);
    e->group->reason = *err;
    if (!e->group->is_removed) e->core->down_reason = *err;
    pthread_mutex_unlock(&e->core->lock);
}

static void *connect_in_background(void *context) {
    errand *e = context;
    core_message *message = mr_alloc(sizeof(*message));
    int pause_ms = PAUSE_MIN_MS;
    *message = (core_message){.kind = CORE_LINK, .group = e->group};
    while (pause_for(e, 0)) {
        mr_link *link;
        mr_err err = {{0}};
        const int64_t deadline = mr_now_ns() + ATTEMPT_MS * 1000000ll;
        mr_status status = mr_link_connect(&link, e->group->address, deadline, &err);
        if (status == MR_OK)
            status = core_open_session(e->group, link, &message->info, &message->wire_version,
                                       deadline, &err);
        if (status == MR_OK) {
            message->link = link;
            break;
        }
        mr_link_close(link);
        say_why(e, &err);
        if (pause_ms == PAUSE_MIN_MS)
            mr_log_info("waiting for the worker at %s: %s", e->group->address, err.text);
        if (!pause_for(e, pause_ms)) break;
        pause_ms = pause_ms * 2 < PAUSE_MAX_MS ? pause_ms * 2 : PAUSE_MAX_MS;
    }
    core_post(e->core, message);
    free(e);
    return NULL;
}

void core_connect(mr_core *core, core_group *group) {
    if (group->has_connector) return;
    errand *e = mr_alloc(sizeof(*e));
    *e = (errand){core, group};
    group->has_connector = pthread_create(&group->connector, NULL, connect_in_background, e) == 0;
    if (group->has_connector) return;
    mr_log_error("no thread to connect to the worker: %s", group->address);
    free(e);
}
