/* fabric_ucx.c - links over UCX: shared memory within a host, RDMA verbs where there is a device,
 * TCP for finding each other. The one home of UCX.
 *
 * A link is a stream of bytes here too: what lies in the output queue leaves in active messages of
 * up to SLICE_BYTES, each with the offset of its first byte and with how much of the other
 * direction has been taken. So many small frames travel in one message, frames need not fit one,
 * and a message that is lost, doubled or overtaken ends the link. The sender never has more than
 * WINDOW_BYTES on the way that the receiver's owner has not taken: a peer that does not read costs
 * nobody memory.
 *
 * The library and its settings: fabric_ucx_library.c. A peer that dies is reported by UCX within
 * milliseconds; one that is stopped
 * is not, so every wait here has a deadline, and closing never waits for the peer's consent.
 * Rendezvous is switched off: it stripes over every network device it finds and needs permission to
 * read the peer's memory; frames are small enough without it. */
#include "common/net/fabric_ucx.h"

#include "common/base/log.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

#ifndef MR_HAVE_UCX

mr_status mr_ucx_check(mr_err *err) {
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "this build has no UCX: shared memory and RDMA need libucx-dev at build time");
}
mr_status mr_ucx_connect(mr_link **out, const char *place, int64_t deadline_ns, mr_err *err) {
    (void)place, (void)deadline_ns;
    *out = NULL;
    return mr_ucx_check(err);
}
mr_status mr_ucx_listen(mr_engine **out, char **bound, const char *place, mr_err *err) {
    (void)place;
    *out = NULL;
    *bound = NULL;
    return mr_ucx_check(err);
}
void mr_ucx_close(mr_engine *engine) {
    (void)engine;
}
mr_link *mr_ucx_accept(mr_engine *engine) {
    (void)engine;
    return NULL;
}
void mr_ucx_place(mr_link *link, uint16_t port) {
    (void)link, (void)port;
}
const char *mr_ucx_transport(mr_link *link) {
    (void)link;
    return "none";
}
void mr_ucx_set_devices(const char *devices) {
    (void)devices;
}

#else

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/net/address.h"
#include "common/net/fabric_ucx_library.h"

#include <assert.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

enum {
    AM_BYTES = 1,
    AM_CONTROL = 2,
    SLICE_BYTES = MR_UCX_SEGMENT_BYTES - 256,
    WINDOW_BYTES = 2 << 20, /* on the way and not taken; the largest frame fits several times */
    CREDIT_BYTES = WINDOW_BYTES / 4,
    ARRIVED_BYTES_MAX = WINDOW_BYTES + (1 << 20),
    ACCEPTED_MAX = 64,
    PROGRESS_MAX = 256, /* calls before others have their turn */
    MOVES_MAX = 4,      /* redirections of one connect */
};
#define CLOSE_NS 50000000ll /* for what is still queued when a link is closed */
#define FORCE_NS 1000000000ll

/* --- engines ---------------------------------------------------------------------------------- */

typedef struct ucx_link ucx_link;

typedef struct {
    mr_engine base; /* first: the rest of common/net sees only this */
    ucp_worker_h worker;
    ucp_listener_h listener; /* NULL: of one link that connects */
    ucx_link **links;        /* [count], in no order */
    uint32_t count, room;
    ucx_link *latest; /* of the message before this one */
    mr_link *accepted[ACCEPTED_MAX];
    uint32_t accepted_count;
} ucx_engine;

typedef struct {
    uint64_t offset;   /* of the first byte in its direction */
    uint64_t consumed; /* bytes of the other direction that were taken */
} bytes_header;

typedef enum { HERE = 1, ELSEWHERE = 2, CREDIT = 3 } control_kind;
typedef struct {
    uint64_t kind, value; /* ELSEWHERE: a port; CREDIT: bytes taken */
} control_header;

struct ucx_link {
    mr_link *link;
    ucx_engine *engine;
    ucp_ep_h ep;
    mr_queue sending, arrived; /* left out and not yet gone; come and not yet in the link's input */
    bytes_header header;       /* of the message on its way */
    size_t posted;             /* its bytes; 0: none is on its way */
    control_header control;    /* the same */
    bool has_control;
    uint64_t sent, received, peer_consumed, told_consumed;
    control_header placed; /* connecting: what the other side said */
    mr_status failure;     /* found inside a callback */
    mr_err why;
};

static void break_link(ucx_link *u, mr_status status, const char *what, const char *more) {
    if (u->failure != MR_OK) return;
    u->failure = mr_fail(&u->why, status, "%s%s%s", what, more ? ": " : "", more ? more : "");
}

static ucx_link *find_link(ucx_engine *engine, ucp_ep_h ep) {
    if (engine->latest && engine->latest->ep == ep) return engine->latest;
    for (uint32_t i = 0; i < engine->count; i++)
        if (engine->links[i]->ep == ep) return engine->latest = engine->links[i];
    return NULL;
}

static ucx_link *receiver(void *argument, const ucp_am_recv_param_t *param) {
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP)) return NULL;
    return find_link(argument, param->reply_ep);
}

static void take_credit(ucx_link *u, uint64_t consumed) {
    if (consumed > u->sent || consumed < u->peer_consumed)
        break_link(u, MR_ERR_FORMAT, "a credit for bytes that were not sent", NULL);
    else
        u->peer_consumed = consumed;
}

static ucs_status_t on_bytes(void *argument, const void *header, size_t header_bytes, void *data,
                             size_t bytes, const ucp_am_recv_param_t *param) {
    ucx_link *u = receiver(argument, param);
    bytes_header h;
    if (!u) return UCS_OK; /* closed here while this was on its way */
    if (header_bytes != sizeof(h) || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
        break_link(u, MR_ERR_FORMAT, "a UCX message of another kind", NULL);
        return UCS_OK;
    }
    memcpy(&h, header, sizeof(h));
    if (h.offset != u->received)
        break_link(u, MR_ERR_FORMAT, "a UCX message that is lost, doubled or out of order", NULL);
    take_credit(u, h.consumed);
    if (u->failure != MR_OK || bytes == 0) return UCS_OK;
    if (!mr_queue_reserve(&u->arrived, bytes, ARRIVED_BYTES_MAX)) {
        break_link(u, MR_ERR_LIMIT, "more bytes than it was allowed to send", NULL);
        return UCS_OK;
    }
    memcpy(u->arrived.data + u->arrived.tail, data, bytes);
    u->arrived.tail += bytes;
    u->received += bytes;
    u->link->bytes_received += bytes;
    return UCS_OK;
}

static ucs_status_t on_control(void *argument, const void *header, size_t header_bytes, void *data,
                               size_t bytes, const ucp_am_recv_param_t *param) {
    ucx_link *u = receiver(argument, param);
    control_header h;
    (void)data, (void)bytes;
    if (!u || header_bytes != sizeof(h)) return UCS_OK;
    memcpy(&h, header, sizeof(h));
    if (h.kind == CREDIT)
        take_credit(u, h.value);
    else
        u->placed = h;
    return UCS_OK;
}

static void on_error(void *argument, ucp_ep_h ep, ucs_status_t status) {
    ucx_link *u = argument;
    (void)ep;
    break_link(u, MR_ERR_UNAVAILABLE, "the connection was closed",
               mr_ucx.ucs_status_string(status));
}

static bool progress(mr_engine *base) {
    const ucx_engine *engine = (const ucx_engine *)base;
    bool moved = false;
    for (int i = 0; i < PROGRESS_MAX && mr_ucx.ucp_worker_progress(engine->worker); i++)
        moved = true;
    return moved;
}

static mr_status arm(mr_engine *base) {
    const ucx_engine *engine = (const ucx_engine *)base;
    return mr_ucx.ucp_worker_arm(engine->worker) == UCS_OK ? MR_OK : MR_ERR_AGAIN;
}

static mr_status set_handler(ucp_worker_h worker, unsigned id, ucp_am_recv_callback_t call,
                             void *argument) {
    const ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
        .id = id,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = call,
        .arg = argument};
    return mr_ucx.ucp_worker_set_am_recv_handler(worker, &handler) == UCS_OK ? MR_OK : MR_ERR_IO;
}

static void close_engine(ucx_engine *engine) {
    if (engine->listener) mr_ucx.ucp_listener_destroy(engine->listener);
    if (engine->worker) mr_ucx.ucp_worker_destroy(engine->worker);
    mr_ucx_release();
    free(engine->links);
    free(engine);
}

static mr_status open_engine(ucx_engine **out, mr_err *err) {
    ucp_context_h context;
    *out = NULL;
    const mr_status status = mr_ucx_acquire(&context, err);
    if (status != MR_OK) return status;
    ucx_engine *engine = mr_alloc(sizeof(*engine));
    engine->base = (mr_engine){.fd = -1, .progress = progress, .arm = arm};
    const ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                        .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t made = mr_ucx.ucp_worker_create(context, &params, &engine->worker);
    if (made == UCS_OK) made = mr_ucx.ucp_worker_get_efd(engine->worker, &engine->base.fd);
    if (made != UCS_OK || set_handler(engine->worker, AM_BYTES, on_bytes, engine) != MR_OK ||
        set_handler(engine->worker, AM_CONTROL, on_control, engine) != MR_OK) {
        close_engine(engine);
        return mr_fail(err, MR_ERR_UNSUPPORTED, "UCX gives no worker: %s",
                       mr_ucx.ucs_status_string(made));
    }
    *out = engine;
    return MR_OK;
}

void mr_ucx_close(mr_engine *engine) {
    if (!engine) return;
    mr_link *left;
    while ((left = mr_ucx_accept(engine)) != NULL) mr_link_close(left);
    close_engine((ucx_engine *)engine);
}

/* --- sending ---------------------------------------------------------------------------------- */

static void on_sent(void *request, ucs_status_t status, void *argument) {
    ucx_link *u = argument;
    mr_queue_drop(&u->sending, u->posted);
    u->posted = 0;
    if (status != UCS_OK)
        break_link(u, MR_ERR_UNAVAILABLE, "send", mr_ucx.ucs_status_string(status));
    mr_ucx.ucp_request_free(request);
}

static void on_control_sent(void *request, ucs_status_t status, void *argument) {
    ucx_link *u = argument;
    (void)status; /* a link that broke says so itself */
    u->has_control = false;
    mr_ucx.ucp_request_free(request);
}

/* true: it is on its way or gone. */
static bool send_message(ucx_link *u, unsigned id, const void *header, size_t header_bytes,
                         const void *data, size_t bytes, ucp_send_nbx_callback_t done,
                         bool *is_gone) {
    const ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                       UCP_OP_ATTR_FIELD_USER_DATA |
                                                       UCP_OP_ATTR_FIELD_FLAGS,
                                       .flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
                                       .cb.send = done,
                                       .user_data = u};
    const ucs_status_ptr_t request =
        mr_ucx.ucp_am_send_nbx(u->ep, id, header, header_bytes, data, bytes, &param);
    *is_gone = request == NULL;
    if (!UCS_PTR_IS_ERR(request)) return true;
    break_link(u, MR_ERR_UNAVAILABLE, "send", mr_ucx.ucs_status_string(UCS_PTR_STATUS(request)));
    return false;
}

static void send_control(ucx_link *u, control_kind kind, uint64_t value) {
    bool is_gone;
    if (u->has_control || u->failure != MR_OK) return;
    u->control = (control_header){kind, value};
    u->has_control = true;
    if (!send_message(u, AM_CONTROL, &u->control, sizeof(u->control), NULL, 0, on_control_sent,
                      &is_gone) ||
        is_gone)
        u->has_control = false;
}

/* What the owner has taken out of its input. */
static uint64_t consumed(const ucx_link *u) {
    return u->received - mr_queue_bytes(&u->arrived) - mr_queue_bytes(&u->link->in);
}

static size_t window(const ucx_link *u) {
    const uint64_t on_the_way = u->sent - u->peer_consumed;
    return on_the_way < WINDOW_BYTES ? (size_t)(WINDOW_BYTES - on_the_way) : 0;
}

/* Sends slices until one stays on its way, the window is full or nothing is left. */
static void send_slices(ucx_link *u) {
    while (u->posted == 0 && u->failure == MR_OK && mr_queue_bytes(&u->sending) > 0) {
        size_t bytes = mr_queue_bytes(&u->sending);
        if (bytes > SLICE_BYTES) bytes = SLICE_BYTES;
        if (bytes > window(u)) bytes = window(u);
        if (bytes == 0) return;
        bool is_gone;
        u->header = (bytes_header){u->sent, consumed(u)};
        u->told_consumed = u->header.consumed;
        u->posted = bytes;
        if (!send_message(u, AM_BYTES, &u->header, sizeof(u->header),
                          u->sending.data + u->sending.head, bytes, on_sent, &is_gone))
            return;
        u->sent += bytes;
        u->link->bytes_sent += bytes;
        if (is_gone) {
            mr_queue_drop(&u->sending, bytes);
            u->posted = 0;
        }
    }
}

static mr_status report(const ucx_link *u, mr_err *err) {
    return mr_fail(err, u->failure, "%s: %s", u->link->peer, u->why.text);
}

static mr_status ucx_flush(mr_link *link, mr_err *err) {
    ucx_link *u = link->inner;
    mr_queue *out = &link->out;
    for (;;) {
        if (mr_queue_bytes(&u->sending) == 0 && mr_queue_bytes(out) > 0) {
            const mr_queue empty = u->sending; /* the owner goes on filling the other buffer */
            u->sending = *out;
            *out = empty;
        }
        send_slices(u);
        if (u->failure != MR_OK) return report(u, err);
        link->held_bytes = mr_queue_bytes(&u->sending);
        if (link->held_bytes == 0 && mr_queue_bytes(out) == 0) return MR_OK;
        if (link->held_bytes == 0) continue;
        /* Try once what a progress call frees; then it is the caller's to wait. */
        const uint64_t sent = u->sent;
        const size_t posted = u->posted;
        mr_ucx.ucp_worker_progress(u->engine->worker);
        if (u->failure != MR_OK) return report(u, err);
        link->held_bytes = mr_queue_bytes(&u->sending);
        if (u->posted == posted && u->sent == sent && (posted > 0 || window(u) == 0))
            return MR_ERR_AGAIN;
    }
}

/* --- receiving -------------------------------------------------------------------------------- */

static mr_status ucx_fill(mr_link *link, size_t missing, mr_err *err) {
    ucx_link *u = link->inner;
    mr_queue *in = &link->in;
    (void)missing;
    const uint64_t taken = consumed(u);
    if (taken - u->told_consumed >= CREDIT_BYTES && !u->has_control) {
        u->told_consumed = taken;
        send_control(u, CREDIT, taken);
    }
    if (mr_queue_bytes(&u->arrived) == 0) mr_ucx.ucp_worker_progress(u->engine->worker);
    const size_t bytes = mr_queue_bytes(&u->arrived);
    if (bytes > 0) {
        if (mr_queue_bytes(in) == 0) { /* the usual case: nothing is copied */
            const mr_queue empty = *in;
            *in = u->arrived;
            u->arrived = empty;
        } else {
            if (!mr_queue_reserve(in, bytes, ARRIVED_BYTES_MAX))
                return mr_fail(err, MR_ERR_NOMEM, "no memory for its frame");
            memcpy(in->data + in->tail, u->arrived.data + u->arrived.head, bytes);
            in->tail += bytes;
            mr_queue_drop(&u->arrived, bytes);
        }
        return MR_OK;
    }
    if (u->failure != MR_OK) return mr_fail(err, u->failure, "%s", u->why.text);
    return MR_ERR_AGAIN;
}

static bool ucx_has_news(const mr_link *link, bool reads) {
    const ucx_link *u = link->inner;
    if (u->failure != MR_OK || (reads && mr_queue_bytes(&u->arrived) > 0)) return true;
    if (!mr_link_wants_write(link) || u->posted > 0) return false;
    return window(u) > 0 || mr_queue_bytes(&u->sending) + mr_queue_bytes(&link->out) == 0;
}

/* --- making and closing links ----------------------------------------------------------------- */

static void finish(ucx_link *u, ucs_status_ptr_t request, int64_t deadline_ns) {
    if (!UCS_PTR_IS_PTR(request)) return;
    while (mr_ucx.ucp_request_check_status(request) == UCS_INPROGRESS && mr_now_ns() < deadline_ns)
        mr_ucx.ucp_worker_progress(u->engine->worker);
    mr_ucx.ucp_request_free(request);
}

static void forget(ucx_link *u) {
    ucx_engine *engine = u->engine;
    engine->latest = NULL;
    for (uint32_t i = 0; i < engine->count; i++)
        if (engine->links[i] == u) engine->links[i] = engine->links[--engine->count];
}

/* What is queued leaves if the peer takes it soon; then the endpoint goes, whatever the peer says.
 */
static void ucx_close(mr_link *link) {
    ucx_link *u = link->inner;
    ucx_engine *engine = u->engine;
    const int64_t deadline_ns = mr_now_ns() + CLOSE_NS;
    const ucp_request_param_t plain = {0};
    const ucp_request_param_t force = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                       .flags = UCP_EP_CLOSE_FLAG_FORCE};
    if (u->ep) {
        while (link->failure == MR_OK && ucx_flush(link, NULL) == MR_ERR_AGAIN &&
               mr_now_ns() < deadline_ns)
            continue;
        if (u->failure == MR_OK && link->bytes_sent > 0)
            finish(u, mr_ucx.ucp_ep_flush_nbx(u->ep, &plain), deadline_ns);
        finish(u, mr_ucx.ucp_ep_close_nbx(u->ep, &force), mr_now_ns() + FORCE_NS);
    }
    forget(u);
    if (u->posted == 0 && !u->has_control) {
        free(u->sending.data);
        free(u->arrived.data);
        free(u);
    } else { /* UCX still points into it: better to leave it than to free it */
        mr_log_warn("%s: UCX did not give a message back", link->peer);
    }
    if (!engine->listener && engine->count == 0) {
        close_engine(engine);
    }
}

static const mr_link_home ucx_home = {ucx_flush, ucx_fill, ucx_close, ucx_has_news};

/* Makes the link and its endpoint; params lacks what is the same for both sides. */
static mr_status make_link(mr_link **out, ucx_engine *engine, ucp_ep_params_t params,
                           const char *peer, mr_err *err) {
    mr_link *link = mr_link_new(&ucx_home, -1, peer);
    ucx_link *u = mr_alloc(sizeof(*u));
    *u = (ucx_link){.link = link, .engine = engine};
    link->inner = u;
    link->engine = &engine->base;
    if (engine->count == engine->room) {
        engine->room = engine->room ? 2 * engine->room : 16;
        engine->links = mr_realloc_array(engine->links, engine->room, sizeof(*engine->links));
    }
    engine->links[engine->count++] = u;
    params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = (ucp_err_handler_t){on_error, u};
    const ucs_status_t made = mr_ucx.ucp_ep_create(engine->worker, &params, &u->ep);
    if (made == UCS_OK) {
        *out = link;
        return MR_OK;
    }
    u->ep = NULL;
    *out = NULL;
    const mr_status status = mr_fail(err, MR_ERR_UNAVAILABLE, "connect to %s over UCX: %s", peer,
                                     mr_ucx.ucs_status_string(made));
    mr_link_close(link);
    return status;
}

static mr_status wait_placed(ucx_link *u, const char *place, int64_t deadline_ns, mr_err *err) {
    ucx_engine *engine = u->engine;
    while (u->placed.kind == 0) {
        if (u->failure != MR_OK)
            return mr_fail(err, u->failure, "connect to %s over UCX: %s", place, u->why.text);
        const int64_t left = deadline_ns - mr_now_ns();
        if (left <= 0)
            return mr_fail(err, MR_ERR_TIMEOUT, "connect to %s over UCX: no answer in time", place);
        if (progress(&engine->base) || arm(&engine->base) != MR_OK) continue;
        struct pollfd wait = {.fd = engine->base.fd, .events = POLLIN};
        const struct timespec time = {.tv_sec = (time_t)(left / 1000000000),
                                      .tv_nsec = (long)(left % 1000000000)};
        ppoll(&wait, 1, &time, NULL);
    }
    return MR_OK;
}

/* A link that connects has an engine to itself, because it may be handed to another thread, and an
 * engine belongs to one thread. It dies with the link. */
static mr_status connect_once(mr_link **out, const struct sockaddr_storage *at, socklen_t bytes,
                              const char *place, int64_t deadline_ns, mr_err *err) {
    char *peer = mr_format("ucx:%s", place);
    const ucp_ep_params_t params = {.field_mask =
                                        UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
                                    .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
                                    .sockaddr = {(const struct sockaddr *)at, bytes}};
    ucx_engine *engine;
    mr_status status = open_engine(&engine, err);
    if (status == MR_OK) status = make_link(out, engine, params, peer, err);
    free(peer);
    if (status != MR_OK) return status;
    status = wait_placed((*out)->inner, place, deadline_ns, err);
    if (status == MR_OK) return MR_OK;
    mr_link_close(*out);
    *out = NULL;
    return status;
}

static void set_port(struct sockaddr_storage *at, uint16_t port) {
    if (at->ss_family == AF_INET6)
        ((struct sockaddr_in6 *)at)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)at)->sin_port = htons(port);
}

mr_status mr_ucx_connect(mr_link **out, const char *place, int64_t deadline_ns, mr_err *err) {
    struct sockaddr_storage at;
    socklen_t bytes;
    *out = NULL;
    mr_status status = mr_ucx_check(err);
    if (status == MR_OK) status = mr_address_resolve(&at, &bytes, place, deadline_ns, err);
    for (int i = 0; status == MR_OK && i < MOVES_MAX; i++) {
        status = connect_once(out, &at, bytes, place, deadline_ns, err);
        if (status != MR_OK) return status;
        const control_header placed = ((ucx_link *)(*out)->inner)->placed;
        if (placed.kind == HERE) return MR_OK;
        mr_link_close(*out);
        *out = NULL;
        set_port(&at, (uint16_t)placed.value);
    }
    if (status != MR_OK) return status;
    return mr_fail(err, MR_ERR_UNAVAILABLE, "connect to %s over UCX: it was sent on %d times",
                   place, MOVES_MAX);
}

/* --- listening -------------------------------------------------------------------------------- */

static char *name_of(const struct sockaddr_storage *at) {
    char host[NI_MAXHOST], port[NI_MAXSERV];
    const socklen_t bytes =
        at->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (getnameinfo((const struct sockaddr *)at, bytes, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return mr_strdup("an unknown peer");
    return mr_format(at->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

static void on_connect(ucp_conn_request_h request, void *argument) {
    ucx_engine *engine = argument;
    mr_err err;
    ucp_conn_request_attr_t who = {.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR};
    const bool is_known = mr_ucx.ucp_conn_request_query(request, &who) == UCS_OK;
    if (engine->accepted_count == ACCEPTED_MAX) {
        mr_ucx.ucp_listener_reject(engine->listener, request);
        return;
    }
    char *place = is_known ? name_of(&who.client_address) : mr_strdup("an unknown peer");
    char *peer = mr_format("ucx:%s", place);
    const ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
                                    .conn_request = request};
    mr_link *link;
    if (make_link(&link, engine, params, peer, &err) == MR_OK)
        engine->accepted[engine->accepted_count++] = link;
    else
        mr_log_warn("%s", err.text);
    free(place);
    free(peer);
}

mr_status mr_ucx_listen(mr_engine **out, char **bound, const char *place, mr_err *err) {
    struct sockaddr_storage at;
    socklen_t bytes;
    ucx_engine *engine;
    *out = NULL;
    *bound = NULL;
    mr_status status = mr_ucx_check(err);
    if (status == MR_OK)
        status = mr_address_resolve(&at, &bytes, place, mr_now_ns() + 5 * FORCE_NS, err);
    if (status == MR_OK) status = open_engine(&engine, err);
    if (status != MR_OK) return status;
    const ucp_listener_params_t params = {.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR |
                                                        UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
                                          .sockaddr = {(const struct sockaddr *)&at, bytes},
                                          .conn_handler = {on_connect, engine}};
    ucp_listener_attr_t is = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    ucs_status_t made = mr_ucx.ucp_listener_create(engine->worker, &params, &engine->listener);
    if (made != UCS_OK)
        engine->listener = NULL;
    else
        made = mr_ucx.ucp_listener_query(engine->listener, &is);
    if (made != UCS_OK) {
        status = mr_fail(err, MR_ERR_IO, "listen on %s over UCX: %s", place,
                         mr_ucx.ucs_status_string(made));
        close_engine(engine);
        return status;
    }
    *bound = name_of(&is.sockaddr);
    *out = &engine->base;
    return MR_OK;
}

mr_link *mr_ucx_accept(mr_engine *base) {
    ucx_engine *engine = (ucx_engine *)base;
    return engine->accepted_count > 0 ? engine->accepted[--engine->accepted_count] : NULL;
}

void mr_ucx_place(mr_link *link, uint16_t port) {
    send_control(link->inner, port ? ELSEWHERE : HERE, port);
}

/* --- what it uses ----------------------------------------------------------------------------- */

/* A line of the lane that carries active messages: "lane[0]: 5:posix/memory.0 ... am am_bw#0". */
const char *mr_ucx_transport(mr_link *link) {
    const ucx_link *u = link->inner;
    char *text = NULL, *rest, *line;
    size_t bytes;
    const char *found = "ucx-tcp";
    FILE *file = u->failure == MR_OK ? open_memstream(&text, &bytes) : NULL;
    if (!file) return found;
    mr_ucx.ucp_ep_print_info(u->ep, file);
    fclose(file);
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const char *lane = strstr(line, "lane["), *use = strstr(line, " am");
        const char *name = lane ? strchr(lane, ' ') : NULL;
        if (!name || !use || (use[3] != ' ' && use[3] != '\0')) continue;
        name += strspn(name, " 0123456789:");
        if (!strncmp(name, "posix", 5) || !strncmp(name, "sysv", 4))
            found = "shm";
        else if (!strncmp(name, "rc", 2) || !strncmp(name, "ud", 2) || !strncmp(name, "dc", 2))
            found = "rdma";
    }
    free(text);
    return found;
}

#endif
