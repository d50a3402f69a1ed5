/* server.c - see server.h.
 *
 * Thread 0 owns the listening socket besides links of its own: it accepts and passes each socket to
 * the thread with the fewest links through that thread's pipe, which is a bounded mailbox of file
 * descriptors. A link then stays with its thread for life. One eventfd ends all threads: it is
 * never read, so every epoll set sees it. */
#include "common/net/server.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/address.h"
#include "common/net/fabric_choice.h"
#include "common/net/fabric_ucx.h"
#include "common/net/frames.h"
#include "common/net/link.h"
#include "common/net/session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    EVENTS_AT_ONCE = 64,
    FRAMES_AT_ONCE = 128,    /* of one link before the others have their turn */
    FLUSH_BYTES = 128 << 10, /* answers wait for each other up to so much */
    HELLO_BYTES_MAX = 4096,  /* the largest frame before the session is open */
    TICK_MS = 100,           /* how often deadlines are looked at while there are any */
    STALL_SECONDS = 30,      /* answers that nobody reads are kept so long */
    IDLE_MS_DEFAULT = 5000,
    LISTEN_BACKLOG = 512,
    DRAIN_READS_MAX = 64,
    UNARMED_REST_NS = 50000,
    UNARMED_LOOKS = 64, /* at an engine that cannot be slept on, before it is looked at rarely */
};

typedef struct {
    mr_link *link;
    bool is_open;        /* its session */
    bool has_more;       /* frames may lie in its input: do not wait for the socket */
    uint32_t events;     /* armed in epoll */
    int64_t accepted_ns; /* until the session is open */
    int64_t moved_ns;    /* when output last moved while some was waiting */
    uint64_t moved_bytes;
    uint32_t index; /* in its thread's list */
} client;

typedef struct {
    mr_server *server;
    pthread_t thread;
    bool started;
    int epoll, wake;   /* wake: an eventfd, read by this thread */
    int mail[2];       /* sockets come out of mail[0]; thread 0 writes mail[1] */
    atomic_uint links; /* that it has or will have; read by thread 0 */
    client **clients;  /* [count], this thread's own */
    uint32_t count, room;
    uint32_t more;     /* clients with has_more */
    uint32_t lane;     /* a number no other serving thread of the process has */
    int64_t seen_ns;   /* when this round began */
    bool is_ending;    /* its frames were handed over: what comes now is answered at once */
    bool is_crowded;   /* links behind the one being served have frames too */
    mr_engine *engine; /* of its links over UCX; NULL: none */
    uint16_t ucx_port; /* at which it listens; 0: it does not */
} serving;

struct mr_server {
    mr_server_options options;
    mr_session_offer offer;
    char *address, *ucx;
    void *tail;
    int listener, stop;
    bool is_deaf; /* out of descriptors: the listener is disarmed until the next tick; thread 0 */
    serving *threads;
    uint32_t thread_count;
    _Atomic int64_t heard_ns; /* from an open session */
};

/* Lanes in use; a thread beyond them shares the last number, which is no lane (MR_LANE_NONE). */
static _Atomic uint64_t lanes_taken[4];

static uint32_t take_lane(void) {
    for (uint32_t i = 0; i < 256; i++) {
        const uint64_t bit = 1ull << (i % 64);
        if (!(atomic_fetch_or(&lanes_taken[i / 64], bit) & bit)) return i;
    }
    return MR_LANE_NONE;
}

static void give_lane(uint32_t lane) {
    if (lane != MR_LANE_NONE) atomic_fetch_and(&lanes_taken[lane / 64], ~(1ull << (lane % 64)));
}

/* What epoll hands back for the descriptors that are no client's. */
static char mark_listener, mark_stop, mark_wake, mark_mail, mark_engine;

/* --- one client ------------------------------------------------------------------------------- */

static mr_status watch(int epoll, int operation, int fd, uint32_t events, void *mark) {
    struct epoll_event event = {.events = events, .data.ptr = mark};
    return epoll_ctl(epoll, operation, fd, &event) == 0 ? MR_OK : MR_ERR_IO;
}

/* Takes the link over. One with an engine is not in the epoll set: the engine is. */
static void add_client(serving *t, mr_link *link) {
    client *c = mr_alloc(sizeof(*c));
    c->link = link;
    c->link->payload_max = HELLO_BYTES_MAX;
    c->link->lane = t->lane;
    c->accepted_ns = c->moved_ns = mr_now_ns();
    c->events = EPOLLIN;
    if (!link->engine && watch(t->epoll, EPOLL_CTL_ADD, link->fd, c->events, c) != MR_OK) {
        mr_log_warn("%s: cannot be watched: %s", mr_link_peer(c->link), strerror(errno));
        mr_link_close(c->link);
        free(c);
        atomic_fetch_sub(&t->links, 1);
        return;
    }
    if (t->count == t->room) {
        t->room = t->room ? 2 * t->room : 16;
        t->clients = mr_realloc_array(t->clients, t->room, sizeof(client *));
    }
    c->index = t->count;
    t->clients[t->count++] = c;
}

static void set_more(serving *t, client *c, bool more) {
    if (c->has_more == more) return;
    c->has_more = more;
    if (more)
        t->more++;
    else
        t->more--;
}

static void drop_client(serving *t, client *c) {
    const mr_server_options *o = &t->server->options;
    set_more(t, c, false);
    if (o->link_closed && c->is_open) o->link_closed(o->context, c->link);
    t->clients[c->index] = t->clients[--t->count];
    t->clients[c->index]->index = c->index;
    /* Closing alone would leave it in the epoll set while a child that was just forked still holds
     * the descriptor, and its events would find c freed. */
    if (!c->link->engine) watch(t->epoll, EPOLL_CTL_DEL, c->link->fd, 0, NULL);
    mr_link_close(c->link);
    free(c);
    atomic_fetch_sub(&t->links, 1);
}

static mr_status answer_hello(serving *t, client *c, const mr_frame *frame, mr_err *err) {
    const mr_server_options *o = &t->server->options;
    mr_session_offer offer = t->server->offer;
    const mr_wire_hello *hello;
    if (o->offer && frame->header->type == MR_FRAME_HELLO &&
        mr_hello_check(&hello, frame, err) == MR_OK) {
        offer.grid_rows = (uint32_t)(frame->header->epoch >> 32);
        offer.grid_columns = (uint32_t)frame->header->epoch;
        const mr_status status = o->offer(o->context, hello, &offer, err);
        if (status != MR_OK) {
            mr_session_refuse(c->link, frame->header->request, status, err->text);
            return status;
        }
    }
    return mr_session_answer(c->link, frame, &offer, err);
}

/* What the server answers itself: that it is there, and bytes for those who measure. */
static void answer_frame(mr_link *link, const mr_frame *frame) {
    const bool is_echo = frame->header->type == MR_FRAME_ECHO;
    const mr_wire_header header = {.type = is_echo ? MR_FRAME_ECHOED : MR_FRAME_PONG,
                                   .request = frame->header->request};
    const uint32_t bytes =
        is_echo ? ((const mr_wire_echo *)(const void *)frame->payload)->reply_bytes : 0;
    void *room = mr_link_begin(link, &header, bytes);
    if (!room) return; /* cannot be: a link that is backlogged is not read from */
    memset(room, 0, bytes);
    mr_link_end(link);
}

static void take_frame(serving *t, client *c, const mr_frame *frame) {
    const mr_server_options *o = &t->server->options;
    mr_err err;
    if (!c->is_open) {
        if (answer_hello(t, c, frame, &err) != MR_OK) {
            mr_log_warn("%s is refused: %s", mr_link_peer(c->link), err.text);
            return;
        }
        c->is_open = true;
        c->link->payload_max = MR_MAX_FRAME_BYTES;
        return;
    }
    const uint16_t type = frame->header->type;
    atomic_store_explicit(&t->server->heard_ns, t->seen_ns, memory_order_relaxed);
    if (type != MR_FRAME_PING && type != MR_FRAME_HELLO && type != MR_FRAME_ECHO) {
        c->link->is_crowded = o->round_over && !t->is_ending &&
                              (t->is_crowded || mr_queue_bytes(&c->link->in) > c->link->handed);
        c->link->seen_ns = t->seen_ns;
        o->handler(o->context, c->link, frame);
        return;
    }
    mr_status status = mr_frame_check(frame, &err);
    if (status == MR_OK && type == MR_FRAME_HELLO)
        status = mr_fail(&err, MR_ERR_FORMAT, "a second HELLO in one session");
    if (status != MR_OK) {
        mr_log_warn("%s is refused: %s", mr_link_peer(c->link), err.text);
        mr_session_refuse(c->link, frame->header->request, status, err.text);
        return;
    }
    answer_frame(c->link, frame);
}

/* Takes frames until there are none, answers pile up, or others should have their turn. */
static mr_status take_frames(serving *t, client *c, mr_err *err) {
    set_more(t, c, false);
    for (int i = 0; i < FRAMES_AT_ONCE; i++) {
        mr_frame frame;
        if (c->link->is_refused || mr_link_is_backlogged(c->link)) return MR_OK;
        const mr_status status = mr_link_receive(c->link, &frame, err);
        if (status == MR_ERR_AGAIN) return MR_OK;
        if (status != MR_OK) return status;
        take_frame(t, c, &frame);
        if (mr_queue_bytes(&c->link->out) >= FLUSH_BYTES) {
            const mr_status flushed = mr_link_flush(c->link, err);
            if (flushed != MR_OK && flushed != MR_ERR_AGAIN) return flushed;
        }
    }
    set_more(t, c, true);
    return MR_OK;
}

/* What the peer sent was no frame: it is told so if it can still be told. Leaving between two
 * frames is the usual end of a link, and connecting without a word that of a port scan: neither is
 * worth a line. */
static void refuse_garbage(client *c, mr_status status, const mr_err *err) {
    mr_link *link = c->link;
    if (status == MR_ERR_UNAVAILABLE) {
        if (mr_queue_bytes(&link->in) > 0 || (!c->is_open && link->bytes_received > 0))
            mr_log_info("%s", err->text);
        return;
    }
    mr_log_warn("link refused: %s", err->text);
    link->failure = MR_OK;
    mr_session_refuse(link, 0, status, err->text);
    mr_link_flush(link, NULL);
}

/* Closing a socket that holds unread bytes resets the connection, and the peer loses the sentence
 * that was to explain it. So what came is read away first, up to a bound. */
static void drain(const mr_link *link) {
    static _Thread_local char sink[16 << 10];
    if (link->engine) return;
    shutdown(link->fd, SHUT_WR);
    for (int i = 0; i < DRAIN_READS_MAX; i++)
        if (recv(link->fd, sink, sizeof(sink), MSG_DONTWAIT) <= 0) return;
}

/* One turn of a client. false: it was dropped. */
static bool serve_client(serving *t, client *c) {
    const mr_server_options *o = &t->server->options;
    mr_link *link = c->link;
    mr_err err = {{0}};
    mr_status status = mr_link_flush(link, &err);
    if (status == MR_OK || status == MR_ERR_AGAIN) status = take_frames(t, c, &err);
    if (status == MR_OK && o->writable && c->is_open && !mr_link_is_backlogged(link))
        o->writable(o->context, link);
    if (status == MR_OK) {
        const bool was_backlogged = mr_link_is_backlogged(link);
        status = mr_link_flush(link, &err);
        if (status == MR_ERR_AGAIN) status = MR_OK;
        /* Input that was left because of the backlog will not wake us by itself. */
        if (was_backlogged && !mr_link_is_backlogged(link)) set_more(t, c, true);
    }
    const bool waits = mr_link_wants_write(link);
    if (status != MR_OK || (link->is_refused && !waits)) {
        if (status != MR_OK) refuse_garbage(c, status, &err);
        if (link->is_refused) drain(link);
        drop_client(t, c);
        return false;
    }
    if (link->bytes_sent != c->moved_bytes || !waits || !(c->events & EPOLLOUT)) {
        c->moved_bytes = link->bytes_sent;
        c->moved_ns = mr_now_ns();
    }
    const bool reads = !link->is_refused && !mr_link_is_backlogged(link);
    const uint32_t events = (reads ? EPOLLIN : 0u) | (waits ? EPOLLOUT : 0u);
    if (events != c->events &&
        (link->engine || watch(t->epoll, EPOLL_CTL_MOD, link->fd, events, c) == MR_OK))
        c->events = events;
    return true;
}

/* --- accepting (thread 0) --------------------------------------------------------------------- */

static void turn_away(int fd, const char *sentence) {
    char *peer = mr_address_of_peer(fd);
    mr_link *link = mr_link_from_fd(fd, peer);
    mr_log_warn("%s is refused: %s", peer, sentence);
    mr_session_refuse(link, 0, MR_ERR_LIMIT, sentence);
    mr_link_flush(link, NULL);
    mr_link_close(link);
    free(peer);
}

static const char too_many[] = "there are too many links to this server already";

/* The thread with the fewest links; NULL: all together have as many as they may. */
static serving *idlest(mr_server *server) {
    serving *best = &server->threads[0];
    uint32_t all = 0;
    for (uint32_t i = 0; i < server->thread_count; i++) {
        serving *t = &server->threads[i];
        all += atomic_load(&t->links);
        if (atomic_load(&t->links) < atomic_load(&best->links)) best = t;
    }
    return all < MR_MAX_LINKS_PER_SERVER ? best : NULL;
}

static void hand_over(mr_server *server, int fd) {
    serving *best = idlest(server);
    if (!best) {
        turn_away(fd, too_many);
        return;
    }
    atomic_fetch_add(&best->links, 1);
    if (write(best->mail[1], &fd, sizeof(fd)) != sizeof(fd)) {
        atomic_fetch_sub(&best->links, 1);
        turn_away(fd, "too many links are being opened at once");
    }
}

static void accept_links(serving *t) {
    mr_server *server = t->server;
    for (int i = 0; i < EVENTS_AT_ONCE; i++) {
        const int fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            hand_over(server, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED) continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK) return;
        mr_log_warn("accept on %s: %s", server->address, strerror(errno));
        server->is_deaf =
            watch(t->epoll, EPOLL_CTL_MOD, server->listener, 0, &mark_listener) == MR_OK;
        return;
    }
}

/* --- links over UCX --------------------------------------------------------------------------- */

/* A link that comes to the first thread may be sent on; it stays a client here until its peer,
 * which opens another, closes it, or for as long as one that never says HELLO. */
static void accept_ucx(serving *t) {
    mr_link *link;
    while ((link = mr_ucx_accept(t->engine)) != NULL) {
        serving *best = idlest(t->server);
        const bool stays = !best || best == t || t != t->server->threads;
        mr_ucx_place(link, stays ? 0 : best->ucx_port);
        if (!best) {
            mr_log_warn("%s is refused: %s", mr_link_peer(link), too_many);
            mr_session_refuse(link, 0, MR_ERR_LIMIT, too_many);
            mr_link_close(link);
            continue;
        }
        atomic_fetch_add(&t->links, 1);
        add_client(t, link);
    }
}

static bool has_news(const client *c) {
    const mr_link *link = c->link;
    if (!link->engine) return false;
    return link->home->has_news(link, !link->is_refused && !mr_link_is_backlogged(link));
}

/* Moves what there is. true: some link is to be served. */
static bool look_at_engine(serving *t) {
    if (!t->engine) return false;
    t->engine->progress(t->engine);
    accept_ucx(t);
    for (uint32_t i = 0; i < t->count; i++)
        if (has_news(t->clients[i])) return true;
    return false;
}

/* others: links with sockets wait behind these. */
static void serve_engine(serving *t, bool others) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < t->count; i++) left += has_news(t->clients[i]);
    for (uint32_t i = t->count; i-- > 0;) {
        if (!has_news(t->clients[i])) continue;
        if (left > 0) left--;
        t->is_crowded = left > 0 || others;
        serve_client(t, t->clients[i]);
    }
}

/* --- a serving thread ------------------------------------------------------------------------- */

static void read_mail(serving *t) {
    int fds[64];
    const ssize_t got = read(t->mail[0], fds, sizeof(fds)); /* whole ints: writes are atomic */
    for (ssize_t i = 0; i < got / (ssize_t)sizeof(int); i++) {
        char *peer = mr_address_of_peer(fds[i]);
        add_client(t, mr_link_from_fd(fds[i], peer));
        free(peer);
    }
}

/* Deadlines of clients: HELLO in time, and answers that are read. */
static void tick(serving *t) {
    mr_server *server = t->server;
    const int64_t now = mr_now_ns();
    const int64_t idle_ns = (int64_t)server->options.idle_timeout_ms * 1000000;
    if (t == &server->threads[0] && server->is_deaf)
        server->is_deaf =
            watch(t->epoll, EPOLL_CTL_MOD, server->listener, EPOLLIN, &mark_listener) != MR_OK;
    for (uint32_t i = t->count; i-- > 0;) {
        client *c = t->clients[i];
        if (!c->is_open && now - c->accepted_ns > idle_ns) {
            mr_log_info("%s is dropped: no HELLO within %u ms", mr_link_peer(c->link),
                        server->options.idle_timeout_ms);
            drop_client(t, c);
        } else if (mr_link_wants_write(c->link) &&
                   now - c->moved_ns > STALL_SECONDS * 1000000000ll) {
            mr_log_warn("%s is dropped: it has not read its answers for %d s",
                        mr_link_peer(c->link), STALL_SECONDS);
            drop_client(t, c);
        }
    }
}

static bool needs_ticks(const serving *t) {
    if (t == &t->server->threads[0] && t->server->is_deaf) return true;
    for (uint32_t i = 0; i < t->count; i++)
        if (!t->clients[i]->is_open || mr_link_wants_write(t->clients[i]->link)) return true;
    return false;
}

static void wake_up(serving *t) {
    uint64_t count;
    const ssize_t got = read(t->wake, &count, sizeof(count));
    (void)got; /* nothing there: another event was first */
    for (uint32_t i = t->count; i-- > 0;) serve_client(t, t->clients[i]);
}

/* Returns false when the server ends. A client dropped here cannot come later in the same batch:
 * epoll reports each descriptor once. wake_up() may drop any, so it runs after the others. */
static bool handle_events(serving *t, const struct epoll_event *events, int count) {
    bool is_woken = false;
    if (t->engine) serve_engine(t, count > 0);
    for (int i = 0; i < count; i++) {
        void *mark = events[i].data.ptr;
        if (mark == &mark_stop) return false;
        if (mark == &mark_listener)
            accept_links(t);
        else if (mark == &mark_mail)
            read_mail(t);
        else if (mark == &mark_wake)
            is_woken = true;
        else if (mark != &mark_engine) {
            t->is_crowded = i + 1 < count;
            serve_client(t, mark);
        }
    }
    t->is_crowded = false;
    if (is_woken) wake_up(t);
    if (t->more > 0)
        for (uint32_t i = t->count; i-- > 0;)
            if (t->clients[i]->has_more) serve_client(t, t->clients[i]);
    return true;
}

/* What the handler put aside is answered now, and the answers leave. */
static void end_round(serving *t) {
    const mr_server_options *o = &t->server->options;
    if (!o->round_over) return;
    t->is_ending = true;
    o->round_over(o->context, t->lane);
    for (uint32_t i = t->count; i-- > 0;) {
        client *c = t->clients[i];
        if (mr_link_wants_write(c->link) && !(c->events & EPOLLOUT)) serve_client(t, c);
    }
    t->is_ending = false;
}

/* Waits for events: looks for as long as it may, then sleeps. */
static int wait_events(serving *t, struct epoll_event *events) {
    const int timeout_ms = t->more > 0 ? 0 : needs_ticks(t) ? TICK_MS : -1;
    const int64_t spin_ns = timeout_ms == 0 ? 0 : (int64_t)mr_fabric_spin() * 1000;
    const int64_t until = spin_ns > 0 ? mr_now_ns() + spin_ns : 0;
    for (uint32_t i = 0, unarmed = 0;; i++) {
        if (look_at_engine(t)) return epoll_wait(t->epoll, events, EVENTS_AT_ONCE, 0);
        const bool spins = until > 0 && mr_now_ns() < until;
        if (!spins && (!t->engine || timeout_ms == 0 || t->engine->arm(t->engine) == MR_OK)) break;
        /* An engine with messages that a peer does not take cannot be armed. */
        if (spins && i % 4 == 3) sched_yield(); /* who is to ask may wait for this very core */
        const bool rests = !spins && ++unarmed > UNARMED_LOOKS;
        if (t->engine && !rests && i % 16 != 0) continue; /* memory is looked at oftener */
        if (rests) nanosleep(&(struct timespec){.tv_nsec = UNARMED_REST_NS}, NULL);
        const int count = epoll_wait(t->epoll, events, EVENTS_AT_ONCE, 0);
        if (count != 0 || rests) return count;
    }
    return epoll_wait(t->epoll, events, EVENTS_AT_ONCE, timeout_ms);
}

static void *serve(void *argument) {
    serving *t = argument;
    struct epoll_event events[EVENTS_AT_ONCE];
    int64_t next_tick_ns = mr_now_ns();
    for (;;) {
        const int count = wait_events(t, events);
        if (count < 0 && errno != EINTR) {
            mr_log_error("epoll_wait: %s", strerror(errno));
            break;
        }
        t->seen_ns = mr_now_ns();
        if (!handle_events(t, events, count > 0 ? count : 0)) break;
        end_round(t);
        if (mr_now_ns() >= next_tick_ns) {
            tick(t);
            next_tick_ns = mr_now_ns() + TICK_MS * 1000000ll;
        }
    }
    while (t->count > 0) drop_client(t, t->clients[t->count - 1]);
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

static mr_status open_thread(serving *t, mr_server *server, mr_err *err) {
    t->server = server;
    t->lane = take_lane();
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    t->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pipe2(t->mail, O_CLOEXEC | O_NONBLOCK) != 0) t->mail[0] = t->mail[1] = -1;
    if (t->epoll < 0 || t->wake < 0 || t->mail[0] < 0 ||
        watch(t->epoll, EPOLL_CTL_ADD, server->stop, EPOLLIN, &mark_stop) != MR_OK ||
        watch(t->epoll, EPOLL_CTL_ADD, t->wake, EPOLLIN, &mark_wake) != MR_OK ||
        watch(t->epoll, EPOLL_CTL_ADD, t->mail[0], EPOLLIN, &mark_mail) != MR_OK ||
        (t == server->threads &&
         watch(t->epoll, EPOLL_CTL_ADD, server->listener, EPOLLIN, &mark_listener) != MR_OK))
        return mr_fail(err, MR_ERR_IO, "serve %s: %s", server->address, strerror(errno));
    return MR_OK;
}

/* Every thread listens for itself: at the address asked for, or at any port of the same host. */
static mr_status open_engine(serving *t, mr_err *err) {
    mr_server *server = t->server;
    const bool is_first = t == server->threads;
    const char *asked = server->options.ucx;
    const char *colon = strrchr(asked, ':');
    char *place =
        is_first || !colon ? mr_strdup(asked) : mr_format("%.*s:0", (int)(colon - asked), asked);
    char *bound = NULL;
    const mr_status status = mr_ucx_listen(&t->engine, &bound, place, err);
    free(place);
    if (status != MR_OK) return status;
    t->ucx_port = (uint16_t)strtoul(strrchr(bound, ':') + 1, NULL, 10);
    if (is_first)
        server->ucx = bound;
    else
        free(bound);
    if (watch(t->epoll, EPOLL_CTL_ADD, t->engine->fd, EPOLLIN, &mark_engine) == MR_OK) return MR_OK;
    return mr_fail(err, MR_ERR_IO, "serve %s over UCX: %s", asked, strerror(errno));
}

/* Signals are for the main thread: threads of the server inherit none. */
static mr_status start_thread(serving *t, mr_err *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(&t->thread, NULL, serve, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    t->started = code == 0;
    if (code != 0) return mr_fail(err, MR_ERR_NOMEM, "start a serving thread: %s", strerror(code));
    return MR_OK;
}

static mr_session_offer make_offer(const mr_server_options *o, const void *tail) {
    return (mr_session_offer){
        .role = o->role,
        .digest = o->digest,
        .tail = tail,
        .tail_bytes = o->welcome_tail_bytes,
        .cell_count = o->cell_count,
        .grid_rows = o->grid_rows,
        .grid_columns = o->grid_columns,
        .keys = o->keys,
        .is_key_required = o->is_key_required,
    };
}

mr_status mr_server_open(mr_server **out, const mr_server_options *options, mr_err *err) {
    *out = NULL;
    mr_server *server = mr_alloc(sizeof(*server));
    server->options = *options;
    if (server->options.idle_timeout_ms == 0) server->options.idle_timeout_ms = IDLE_MS_DEFAULT;
    server->thread_count = options->threads ? options->threads : 1;
    server->threads = mr_alloc_array(server->thread_count, sizeof(serving));
    for (uint32_t i = 0; i < server->thread_count; i++)
        server->threads[i] =
            (serving){.epoll = -1, .wake = -1, .mail = {-1, -1}, .lane = MR_LANE_NONE};
    server->tail = mr_alloc(options->welcome_tail_bytes);
    if (options->welcome_tail_bytes > 0)
        memcpy(server->tail, options->welcome_tail, options->welcome_tail_bytes);
    server->offer = make_offer(options, server->tail);
    server->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->listener = -1;
    mr_status status = mr_address_listen(&server->listener, &server->address, options->address,
                                         LISTEN_BACKLOG, err);
    for (uint32_t i = 0; status == MR_OK && i < server->thread_count; i++)
        status = open_thread(&server->threads[i], server, err);
    for (uint32_t i = 0; status == MR_OK && options->ucx && i < server->thread_count; i++)
        status = open_engine(&server->threads[i], err);
    for (uint32_t i = 0; status == MR_OK && i < server->thread_count; i++)
        status = start_thread(&server->threads[i], err);
    if (status != MR_OK) {
        mr_server_close(server);
        return status;
    }
    *out = server;
    return MR_OK;
}

const char *mr_server_address(const mr_server *server) {
    return server->address;
}

const char *mr_server_ucx(const mr_server *server) {
    return server->ucx;
}

void mr_server_wake(mr_server *server) {
    const uint64_t one = 1;
    for (uint32_t i = 0; i < server->thread_count; i++) {
        const ssize_t put = write(server->threads[i].wake, &one, sizeof(one));
        (void)put; /* full: it is awake already */
    }
}

int64_t mr_server_heard_ns(const mr_server *server) {
    return atomic_load_explicit(&server->heard_ns, memory_order_relaxed);
}

uint32_t mr_server_links(const mr_server *server) {
    uint32_t all = 0;
    for (uint32_t i = 0; i < server->thread_count; i++)
        all += atomic_load(&server->threads[i].links);
    return all;
}

static void close_thread(serving *t) {
    int left;
    while (t->mail[0] >= 0 && read(t->mail[0], &left, sizeof(left)) == sizeof(left)) close(left);
    const int all[] = {t->epoll, t->wake, t->mail[0], t->mail[1]};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i] >= 0) close(all[i]);
    mr_ucx_close(t->engine);
    free(t->clients);
    give_lane(t->lane);
}

void mr_server_close(mr_server *server) {
    if (!server) return;
    const uint64_t one = 1;
    const ssize_t put = write(server->stop, &one, sizeof(one));
    (void)put;
    for (uint32_t i = 0; i < server->thread_count; i++)
        if (server->threads[i].started) pthread_join(server->threads[i].thread, NULL);
    for (uint32_t i = 0; i < server->thread_count; i++) close_thread(&server->threads[i]);
    if (server->listener >= 0) close(server->listener);
    if (server->address && strncmp(server->address, "unix:", 5) == 0) unlink(server->address + 5);
    close(server->stop);
    free(server->threads);
    free(server->tail);
    free(server->address);
    free(server->ucx);
    free(server);
}
