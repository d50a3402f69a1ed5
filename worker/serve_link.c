/* serve_link.c - mr_worker_serve_link of serve.h: one link, one thread, no queue.
 *
 * The peer is the other half of the same process. HELLO and pings are answered at any time, but not
 * during a step: nobody else is there to do it. */
#include "worker/serve.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/net/session.h"
#include "common/ops/team.h"
#include "worker/answers.h"

#include <poll.h>

enum { LOOK_EVERY_MS = 50, STUCK_MS = 10000 };

typedef struct {
    mr_link *link;
    const atomic_bool *stop;
} door;

/* Waits for room while the peer reads; gives up when it does not for STUCK_MS, or at the end. */
static void *begin(void *context, const mr_wire_header *header, uint32_t payload_bytes) {
    door *d = context;
    uint64_t moved = mr_link_bytes_sent(d->link);
    int64_t deadline = mr_now_ns() + STUCK_MS * 1000000ll;
    for (;;) {
        void *room = mr_link_begin(d->link, header, payload_bytes);
        if (room) return room;
        const mr_status status = mr_link_flush(d->link, NULL);
        if ((status != MR_OK && status != MR_ERR_AGAIN) || atomic_load(d->stop)) return NULL;
        if (mr_link_bytes_sent(d->link) != moved) {
            moved = mr_link_bytes_sent(d->link);
            deadline = mr_now_ns() + STUCK_MS * 1000000ll;
            continue;
        }
        if (mr_now_ns() >= deadline) return NULL;
        struct pollfd writable = {.fd = mr_link_fd(d->link), .events = POLLOUT};
        poll(&writable, 1, LOOK_EVERY_MS);
    }
}

static void end(void *context, bool urgent) {
    door *d = context;
    mr_link_end(d->link);
    if (urgent) mr_link_flush(d->link, NULL); /* a failure shows at the next receive */
}

/* MR_ERR_AGAIN: go on. Anything else ends the link. */
static mr_status take(mr_engine *engine, const mr_session_offer *offer, door *d,
                      const mr_frame *frame, mr_err *err) {
    const mr_answer_sink sink = {begin, end, d};
    mr_step_view view;
    int64_t deadline;
    mr_status status = mr_frame_check(frame, err);
    if (status != MR_OK) return status;
    switch (frame->header->type) {
    case MR_FRAME_HELLO:
        status = mr_session_answer(d->link, frame, offer, err);
        if (status != MR_OK) return status;
        break;
    case MR_FRAME_PING:
        mr_link_send(d->link,
                     &(mr_wire_header){.type = MR_FRAME_PONG, .request = frame->header->request},
                     NULL, 0);
        break;
    case MR_FRAME_STEP:
        status = mr_step_check(&view, frame, err);
        if (status != MR_OK) return status;
        deadline = frame->header->budget_us ? mr_now_ns() + frame->header->budget_us * 1000ll : 0;
        mr_answer_step(engine,
                       &(mr_answer_task){.request = frame->header->request,
                                         .version = frame->header->version,
                                         .deadline_ns = deadline,
                                         .view = &view},
                       &sink);
        break;
    default:
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a worker does not answer %s frames",
                       mr_frame_name(frame->header->type));
    }
    return MR_ERR_AGAIN;
}

mr_status mr_worker_serve_link(mr_engine *engine, mr_digest digest, mr_link *link,
                               const atomic_bool *stop, mr_err *err) {
    mr_wire_worker_info info;
    door d = {link, stop};
    mr_float_environment();
    mr_engine_info(engine, &info);
    const mr_session_offer offer = {
        .role = MR_ROLE_WORKER, .digest = digest, .tail = &info, .tail_bytes = sizeof(info)};
    while (!atomic_load(stop)) {
        mr_frame frame;
        mr_status status = mr_link_receive(link, &frame, err);
        if (status == MR_OK) {
            status = take(engine, &offer, &d, &frame, err);
            if (status != MR_ERR_AGAIN) {
                mr_log_warn("%s: refused: %s", mr_link_peer(link), err->text);
                mr_session_refuse(link, 0, status, err->text);
                mr_link_flush(link, NULL);
                return status;
            }
        } else if (status == MR_ERR_AGAIN) {
            mr_links_wait(&link, 1, mr_now_ns() + LOOK_EVERY_MS * 1000000ll);
        } else
            return status == MR_ERR_UNAVAILABLE ? MR_OK : status;
        status = mr_link_flush(link, err);
        if (status != MR_OK && status != MR_ERR_AGAIN)
            return status == MR_ERR_UNAVAILABLE ? MR_OK : status;
    }
    return MR_OK;
}
