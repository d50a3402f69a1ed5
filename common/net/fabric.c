/* fabric.c - what all homes of a link share: the byte queues, framing, waiting, short answers.
 *
 * Frames lie in the queues as they travel: header, payload, the next header, with no padding. A
 * payload is promised 8-byte aligned, so a frame that follows one of odd length is moved down by up
 * to seven bytes, into the room of a frame that was handed out before. Frames of the data plane are
 * multiples of eight bytes, so this costs nothing where it would matter. */
#include "common/net/link.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/fabric_choice.h"
#include "common/net/fabric_ucx.h"
#include "common/net/frames.h"
#include "common/net/keys.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { QUEUE_BYTES_MIN = 64 << 10, HEADER_BYTES = sizeof(mr_wire_header) };

/* --- queues ----------------------------------------------------------------------------------- */

bool mr_queue_reserve(mr_queue *queue, size_t bytes, size_t limit_bytes) {
    const size_t held = mr_queue_bytes(queue);
    if (queue->room - queue->tail >= bytes) return true;
    if (held + bytes > limit_bytes) return false;
    /* Moving down is cheap while a third of the room is free; else the queue grows, to half as much
     * again as it may ever hold, so that no byte is moved more than a few times. */
    if (queue->room >= held + bytes && held <= queue->room / 3 * 2) {
        if (held > 0) memmove(queue->data, queue->data + queue->head, held);
        queue->head = 0;
        queue->tail = held;
        return true;
    }
    const size_t room_max = (limit_bytes / 2 * 3 + 127) / 64 * 64;
    size_t room = queue->room ? 2 * queue->room : QUEUE_BYTES_MIN;
    while (room < held + bytes) room *= 2;
    if (room > room_max) room = room_max;
    uint8_t *data = aligned_alloc(64, room);
    if (!data) return false;
    if (held > 0) memcpy(data, queue->data + queue->head, held);
    free(queue->data);
    *queue = (mr_queue){.data = data, .room = room, .head = 0, .tail = held};
    return true;
}

void mr_queue_drop(mr_queue *queue, size_t bytes) {
    queue->head += bytes;
    assert(queue->head <= queue->tail);
    if (queue->head == queue->tail) queue->head = queue->tail = 0;
}

/* skip: bytes at the head that were handed out already. */
static mr_status peek(const mr_queue *queue, size_t skip, const mr_link *link,
                      mr_wire_header *header, size_t *missing, mr_err *err) {
    const size_t have = mr_queue_bytes(queue) - skip;
    const uint32_t magic = MR_WIRE_MAGIC;
    *missing = 0;
    if (have < HEADER_BYTES) {
        /* A scanner that sends less than a header and waits is told off at once. */
        if (have > 0 && memcmp(queue->data + queue->head + skip, &magic, have < 4 ? have : 4) != 0)
            return mr_fail(err, MR_ERR_FORMAT, "not a Memrack frame: it starts with other bytes");
        *missing = HEADER_BYTES - have;
        return MR_ERR_AGAIN;
    }
    memcpy(header, queue->data + queue->head + skip, HEADER_BYTES);
    const mr_status status = mr_frame_check_header(header, link->version, err);
    if (status != MR_OK) return status;
    if (header->payload_bytes > link->payload_max)
        return mr_fail(err, MR_ERR_LIMIT, "a %s frame of %u bytes before the session is open",
                       mr_frame_name(header->type), header->payload_bytes);
    const size_t need = HEADER_BYTES + (size_t)header->payload_bytes;
    if (have < need) {
        *missing = need - have;
        return MR_ERR_AGAIN;
    }
    return MR_OK;
}

mr_status mr_queue_frame(mr_queue *queue, const mr_link *link, mr_frame *out, size_t *missing,
                         mr_err *err) {
    mr_wire_header header;
    const mr_status status = peek(queue, 0, link, &header, missing, err);
    if (status != MR_OK) return status;
    uint8_t *at = queue->data + queue->head;
    const size_t down = queue->head & 7u;
    if (down > 0) {
        memmove(at - down, at, HEADER_BYTES + (size_t)header.payload_bytes);
        at -= down;
    }
    *out = (mr_frame){(const mr_wire_header *)(const void *)at, at + HEADER_BYTES};
    return MR_OK;
}

/* --- links ------------------------------------------------------------------------------------ */

mr_link *mr_link_new(const mr_link_home *home, int fd, const char *peer) {
    mr_link *link = mr_alloc(sizeof(*link));
    link->home = home;
    link->fd = fd;
    link->input = &link->in;
    link->payload_max = MR_MAX_FRAME_BYTES;
    link->peer = mr_strdup(peer);
    return link;
}

void mr_link_close(mr_link *link) {
    if (!link) return;
    link->home->close(link);
    mr_link_set_key(link, NULL);
    mr_seal_close(link->seal);
    free(link->out.data);
    free(link->in.data);
    free(link->peer);
    free(link);
}

static mr_status fail_link(mr_link *link, mr_status status, mr_err *err) {
    link->failure = status;
    mr_fail(err, status, "%s", link->why.text);
    return status;
}

void *mr_link_begin(mr_link *link, const mr_wire_header *header, uint32_t payload_bytes) {
    mr_queue *out = &link->out;
    assert(!link->is_begun && payload_bytes <= MR_MAX_FRAME_BYTES);
    const size_t bytes = HEADER_BYTES + (size_t)payload_bytes;
    if (link->failure != MR_OK) return NULL;
    if (link->held_bytes >= MR_MAX_LINK_BACKLOG_BYTES ||
        !mr_queue_reserve(out, bytes + 8, MR_MAX_LINK_BACKLOG_BYTES - link->held_bytes))
        return NULL;
    link->begun_at = (out->tail + 7) & ~(size_t)7;
    link->begun_bytes = bytes;
    link->is_begun = true;
    const mr_wire_header full = {
        .magic = MR_WIRE_MAGIC,
        .version = link->version ? link->version : MR_WIRE_VERSION,
        .type = header->type,
        .payload_bytes = payload_bytes,
        .request = header->request,
        .epoch = header->epoch,
        .budget_us = header->budget_us,
        .status = header->status,
    };
    memcpy(out->data + link->begun_at, &full, HEADER_BYTES);
    return out->data + link->begun_at + HEADER_BYTES;
}

void mr_link_abandon(mr_link *link) {
    assert(link->is_begun);
    link->is_begun = false;
}

/* What version 1 has no room for: answers of retrieval do not say how long they waited, and a frame
 * of a type it does not know would end the session at the other side, so it ends here. */
static bool suits_version_1(mr_link *link, mr_wire_header *header) {
    if (mr_frame_version(header->type) == 1) {
        if (header->type >= MR_FRAME_POOLED && header->type <= MR_FRAME_ROWS) header->budget_us = 0;
        return true;
    }
    link->failure = mr_fail(&link->why, MR_ERR_UNSUPPORTED,
                            "%s: a %s frame cannot be sent in a session of version 1", link->peer,
                            mr_frame_name(header->type));
    return false;
}

void mr_link_end(mr_link *link) {
    mr_queue *out = &link->out;
    assert(link->is_begun);
    mr_wire_header *header = (void *)(out->data + link->begun_at);
    if (link->version == 1 && !suits_version_1(link, header)) {
        link->is_begun = false;
        return;
    }
    if (link->seal) mr_seal_sign(link->seal, header, header + 1);
    if (link->begun_at != out->tail)
        memmove(out->data + out->tail, out->data + link->begun_at, link->begun_bytes);
    out->tail += link->begun_bytes;
    link->is_begun = false;
}

mr_status mr_link_flush(mr_link *link, mr_err *err) {
    if (link->failure != MR_OK) return fail_link(link, link->failure, err);
    if (!mr_link_wants_write(link)) return MR_OK;
    const mr_status status = link->home->flush(link, &link->why);
    return status == MR_OK || status == MR_ERR_AGAIN ? status : fail_link(link, status, err);
}

mr_status mr_link_admit(mr_link *link, const mr_frame *frame, mr_err *err) {
    if (link->seal) return mr_seal_check(link->seal, frame, err);
    if (link->version == 0 || !(frame->header->flags & MR_FRAME_HAS_MAC)) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "a %s frame with a MAC in a session without keys",
                   mr_frame_name(frame->header->type));
}

mr_status mr_link_receive(mr_link *link, mr_frame *out, mr_err *err) {
    size_t missing;
    if (link->failure != MR_OK) return fail_link(link, link->failure, err);
    if (link->handed > 0) {
        mr_queue_drop(link->input, link->handed);
        link->handed = 0;
    }
    for (;;) {
        mr_status status = mr_queue_frame(link->input, link, out, &missing, &link->why);
        if (status == MR_OK) status = mr_link_admit(link, out, &link->why);
        if (status == MR_OK) {
            link->handed = HEADER_BYTES + (size_t)out->header->payload_bytes;
            return MR_OK;
        }
        if (status == MR_ERR_AGAIN) {
            status = link->home->fill(link, missing, &link->why);
            if (status == MR_OK) continue;
            if (status == MR_ERR_AGAIN) return status;
        }
        mr_fail_prefix(&link->why, status, "%s", link->peer);
        return fail_link(link, status, err);
    }
}

int mr_link_fd(const mr_link *link) {
    return link->fd;
}
bool mr_link_wants_write(const mr_link *link) {
    return mr_queue_bytes(&link->out) + link->held_bytes > 0;
}
const char *mr_link_transport(mr_link *link) {
    /* What UCX says before anything came may change while the two sides find each other. */
    if (!link->engine) return link->transport;
    const char *now = link->transport ? link->transport : mr_ucx_transport(link);
    if (link->bytes_received > 0) link->transport = now;
    return now;
}
const mr_digest *mr_link_digest(const mr_link *link) {
    return &link->digest;
}
uint32_t mr_link_lane(const mr_link *link) {
    return link->lane;
}
void mr_link_set_grid(mr_link *link, mr_link_grid grid) {
    link->grid = grid;
}
mr_link_grid mr_link_get_grid(const mr_link *link) {
    return link->grid;
}
int64_t mr_link_seen_ns(const mr_link *link) {
    return link->seen_ns;
}
bool mr_link_is_crowded(const mr_link *link) {
    return link->is_crowded;
}
const char *mr_link_peer(const mr_link *link) {
    return link->peer;
}
uint16_t mr_link_version(const mr_link *link) {
    return link->version;
}
uint64_t mr_link_bytes_sent(const mr_link *link) {
    return link->bytes_sent;
}
uint64_t mr_link_bytes_received(const mr_link *link) {
    return link->bytes_received;
}

void mr_link_send(mr_link *link, const mr_wire_header *header, const void *payload,
                  uint32_t payload_bytes) {
    void *room = mr_link_begin(link, header, payload_bytes);
    if (!room) return;
    if (payload_bytes > 0) memcpy(room, payload, payload_bytes);
    mr_link_end(link);
}

void mr_link_send_error(mr_link *link, uint64_t request, mr_status status, const char *sentence) {
    const mr_wire_header header = {.type = MR_FRAME_ERROR, .request = request, .status = status};
    mr_link_send(link, &header, sentence, (uint32_t)strnlen(sentence, MR_ERR_TEXT_BYTES - 1));
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* A frame that lies in the input already will not make the socket readable again. One that is
 * broken counts as well: receiving it reports what is wrong. */
static bool is_ready(const mr_link *link) {
    mr_wire_header header;
    size_t missing;
    return link->failure != MR_OK ||
           peek(link->input, link->handed, link, &header, &missing, NULL) != MR_ERR_AGAIN;
}

/* What one wait looks at. Engines first in `set`, so that the rest of it is links that have a
 * descriptor each. */
enum { ENGINES_MAX = 512 };
typedef struct {
    mr_engine *engines[ENGINES_MAX];
    uint32_t engine_count;
    struct pollfd set[ENGINES_MAX + MR_MAX_LINKS_PER_SERVER];
    nfds_t used;
} wait_set;

static bool add_engine(wait_set *w, mr_engine *engine) {
    for (uint32_t i = 0; i < w->engine_count; i++)
        if (w->engines[i] == engine) return true;
    if (w->engine_count == ENGINES_MAX) return false;
    w->set[w->engine_count] = (struct pollfd){.fd = engine->fd, .events = POLLIN};
    w->engines[w->engine_count++] = engine;
    return true;
}

/* false: some link is ready as it is, or there are more engines than one wait can look at. */
static bool gather(wait_set *w, mr_link **links, uint32_t count) {
    w->engine_count = 0;
    for (uint32_t i = 0; i < count; i++)
        if (links[i] && links[i]->engine && !add_engine(w, links[i]->engine)) return false;
    w->used = w->engine_count;
    for (uint32_t i = 0; i < count; i++) {
        const mr_link *link = links[i];
        if (!link) continue;
        if (is_ready(link)) return false;
        if (link->engine) continue;
        if (link->fd < 0) {
            if (mr_link_wants_write(link)) return false; /* flushing runs the other side */
            continue;
        }
        w->set[w->used++] = (struct pollfd){
            .fd = link->fd,
            .events = (short)(POLLIN | (mr_link_wants_write(link) ? POLLOUT : 0)),
        };
    }
    return true;
}

static bool have_news(const wait_set *w, mr_link **links, uint32_t count) {
    for (uint32_t i = 0; i < w->engine_count; i++) w->engines[i]->progress(w->engines[i]);
    for (uint32_t i = 0; w->engine_count > 0 && i < count; i++)
        if (links[i] && links[i]->engine && links[i]->home->has_news(links[i], true)) return true;
    return false;
}

static bool arm_all(const wait_set *w) {
    for (uint32_t i = 0; i < w->engine_count; i++)
        if (w->engines[i]->arm(w->engines[i]) != MR_OK) return false;
    return true;
}

/* An engine that has messages for a peer which does not take them cannot be armed: it would have
 * to be looked at all the time. After a few looks it is looked at every so often instead. */
enum { UNARMED_LOOKS = 64, UNARMED_SLICE_NS = 50000, SPINS_A_YIELD = 4 };

static int64_t sleep_ns(bool spins, bool is_armed, uint32_t looks, int64_t left_ns) {
    if (spins || left_ns <= 0 || (!is_armed && looks < UNARMED_LOOKS)) return 0;
    return is_armed || left_ns < UNARMED_SLICE_NS ? left_ns : UNARMED_SLICE_NS;
}

mr_status (*mr_wait_source)(mr_link **links, uint32_t count, int64_t deadline_ns);

mr_status mr_links_wait(mr_link **links, uint32_t count, int64_t deadline_ns) {
    wait_set w;
    if (mr_wait_source) return mr_wait_source(links, count, deadline_ns);
    assert(count <= MR_MAX_LINKS_PER_SERVER);
    if (!gather(&w, links, count)) return MR_OK;
    int64_t now = mr_now_ns();
    const int64_t spin_until = now + (int64_t)mr_fabric_spin() * 1000;
    for (uint32_t looks = 0, turns = 0;; now = mr_now_ns()) {
        if (have_news(&w, links, count)) return MR_OK;
        const bool spins = now < spin_until && now < deadline_ns;
        /* Who is to answer may wait for this very core. */
        if (spins && ++turns % SPINS_A_YIELD == 0) sched_yield();
        const bool is_armed = spins || arm_all(&w);
        if (!is_armed) looks++;
        const int64_t wait = sleep_ns(spins, is_armed, looks, deadline_ns - now);
        if (wait == 0 && w.used == w.engine_count && now < deadline_ns) continue; /* only engines */
        const struct timespec time = {.tv_sec = (time_t)(wait / 1000000000),
                                      .tv_nsec = (long)(wait % 1000000000)};
        const int ready = ppoll(w.set, w.used, &time, NULL);
        for (nfds_t i = w.engine_count; ready > 0 && i < w.used; i++)
            if (w.set[i].revents) return MR_OK;
        if (ready < 0 && errno != EINTR && errno != EAGAIN) return MR_ERR_IO;
        if (mr_now_ns() >= deadline_ns) return have_news(&w, links, count) ? MR_OK : MR_ERR_TIMEOUT;
    }
}
