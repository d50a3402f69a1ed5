/* fabric_loop.c - the link within one process: flushing calls the other side's handler.
 *
 * Two ends, each with an output queue: the link, which is the asker's, and its twin, on which the
 * handler answers. What the twin has in its output queue is what the link receives: nothing is
 * copied. The peer is trusted code, but its frames go through the same checks, so that a test over
 * loop links proves the same code as one over sockets. */
#include "common/net/link.h"

#include "common/base/limits.h"
#include "common/net/keys.h"

#include <stdlib.h>

/* Stops while the answers pile up: the caller receives some and flushes again. */
static mr_status loop_flush(mr_link *link, mr_err *err) {
    while (mr_queue_bytes(&link->out) > 0) {
        mr_frame frame;
        size_t missing;
        if (mr_link_is_backlogged(link->twin)) return MR_ERR_AGAIN;
        mr_status status = mr_queue_frame(&link->out, link, &frame, &missing, err);
        if (status == MR_OK) status = mr_link_admit(link->twin, &frame, err);
        if (status != MR_OK) return status == MR_ERR_AGAIN ? MR_ERR_FORMAT : status;
        const size_t bytes = sizeof(mr_wire_header) + (size_t)frame.header->payload_bytes;
        const size_t answered = mr_queue_bytes(&link->twin->out);
        link->handler(link->context, link->twin, &frame);
        mr_queue_drop(&link->out, bytes);
        link->bytes_sent += bytes;
        link->bytes_received += mr_queue_bytes(&link->twin->out) - answered;
    }
    return MR_OK;
}

static mr_status loop_fill(mr_link *link, size_t missing, mr_err *err) {
    (void)link, (void)missing, (void)err;
    return MR_ERR_AGAIN; /* answers come with the next flush */
}

static void loop_close(mr_link *link) {
    if (!link->twin) return;
    mr_seal_close(link->twin->seal);
    free(link->twin->out.data);
    free(link->twin->peer);
    free(link->twin);
}

/* A handler may flush the end it answers on; there is nothing to do. */
static mr_status twin_flush(mr_link *link, mr_err *err) {
    (void)link, (void)err;
    return MR_OK;
}

static const mr_link_home loop_home = {loop_flush, loop_fill, loop_close, NULL};
static const mr_link_home twin_home = {twin_flush, loop_fill, loop_close, NULL};

mr_link *mr_link_loop(mr_frame_handler handler, void *context, const char *peer) {
    mr_link *link = mr_link_new(&loop_home, -1, peer);
    link->twin = mr_link_new(&twin_home, -1, peer);
    link->transport = link->twin->transport = "loop";
    link->input = &link->twin->out;
    link->handler = handler;
    link->context = context;
    return link;
}
