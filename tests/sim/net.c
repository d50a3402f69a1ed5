/* net.c - the network: every connection is two socket pairs with the simulation between them.
 *
 * What one side writes is taken at once and reaches the other after a latency, in order. A cut way
 * holds it back (TCP would send it again) until it is whole again. A connection ends for both
 * sides when it is broken or one of them is killed; where a host went down nobody is told until
 * something is sent to it after it is up again. A listener of a stopped process is connected to all
 * the same, as the kernel would do; behind a cut way a connection stays without any answer. */
#include "tests/sim/sim.h"

#include "common/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    WINDOW_BYTES = 1 << 20, /* under way in one direction; more stays with its sender */
    READ_BYTES = 64 << 10,
    RESEND_MS = 25, /* after a cut way is whole again, at most */
};

typedef struct segment {
    struct segment *next;
    int64_t arrives_ns;
    size_t bytes, taken;
    bool is_end;
    uint8_t data[];
} segment;

typedef struct connection connection;

/* One way of a connection. */
typedef struct {
    connection *connection;
    int from_fd, to_fd; /* our ends */
    sim_process *from, *to;
    segment *first, **last;
    size_t under_way;
    int64_t last_ns;
    bool has_event, is_full, is_over;
} way;

struct connection {
    connection *next;
    uint64_t number;
    uint32_t hosts[2];
    way ways[2];
    bool is_closed, is_hole; /* hole: nobody is there who could answer */
    uint32_t events;         /* that name it */
};

typedef struct door {
    struct door *next;
    char path[96], real[96];
    sim_process *process; /* NULL: nobody listens there now */
    uint32_t host;
} door;

static struct {
    char folder[64];
    int hub, epoll;
    connection *connections;
    door *doors;
    uint64_t next_number, next_path;
    bool is_cut[SIM_HOSTS][SIM_HOSTS], is_down[SIM_HOSTS];
    int64_t latency_ns[SIM_HOSTS], usual_ns;
} n;

/* --- paths ------------------------------------------------------------------------------------ */

static struct sockaddr_un name_of(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    return name;
}

static door *find_door(const char *path) {
    for (door *d = n.doors; d; d = d->next)
        if (strcmp(d->path, path) == 0) return d;
    return NULL;
}

const char *sim_net_folder(void) {
    return n.folder;
}

const char *sim_net_path(const char *name) {
    door *d = mr_alloc(sizeof(*d));
    snprintf(d->path, sizeof(d->path), "%.60s/%.30s", n.folder, name);
    d->next = n.doors;
    n.doors = d;
    return d->path;
}

static void wake_holes(void);

const char *sim_net_listen(sim_process *process, const char *public_path) {
    door *d = find_door(public_path);
    d->process = process;
    d->host = sim_process_host(process);
    n.is_down[d->host] = false;
    wake_holes();
    snprintf(d->real, sizeof(d->real), "%.60s/%llu", n.folder, (unsigned long long)n.next_path++);
    return d->real;
}

/* --- connections ------------------------------------------------------------------------------ */

static void watch(way *w, bool is_wanted) {
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = w};
    epoll_ctl(n.epoll, is_wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, w->from_fd, &e);
}

static void close_both(connection *c) {
    if (c->is_closed) return;
    c->is_closed = true;
    for (int i = 0; i < 2; i++) {
        if (c->ways[i].from_fd >= 0) close(c->ways[i].from_fd);
        c->ways[i].from_fd = c->ways[i].to_fd = -1;
        if (c->ways[i].from) sim_process_touch(c->ways[i].from);
        while (c->ways[i].first) {
            segment *gone = c->ways[i].first;
            c->ways[i].first = gone->next;
            free(gone);
        }
        c->ways[i].last = &c->ways[i].first;
    }
}

static int64_t latency(const way *w) {
    int64_t ns = n.usual_ns / 2 + sim_between(0, n.usual_ns);
    ns += n.latency_ns[sim_process_host(w->from)];
    if (w->to) ns += n.latency_ns[sim_process_host(w->to)];
    return sim_chance(0.01) ? ns + sim_between(0, 5 * SIM_MS) : ns;
}

static bool is_held(const way *w) {
    return n.is_cut[sim_process_host(w->from)][sim_process_host(w->to)];
}

static void deliver(void *context, uint64_t number);

static void plan(way *w, int64_t when_ns) {
    if (w->has_event) return;
    w->has_event = true;
    w->connection->events++;
    sim_at(when_ns, deliver, w, w->connection->number);
}

/* false: the receiver's buffer is full, or the way is not there any more. */
static bool give(way *w, segment *first) {
    while (first->taken < first->bytes) {
        const ssize_t put = send(w->to_fd, first->data + first->taken, first->bytes - first->taken,
                                 MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
        if (put < 0) { /* the receiver has closed it: it answers with a reset */
            close_both(w->connection);
            return false;
        }
        first->taken += (size_t)put;
    }
    return true;
}

static void deliver(void *context, uint64_t number) {
    way *w = context;
    connection *c = w->connection;
    (void)number;
    w->has_event = false;
    c->events--;
    if (c->is_closed || c->is_hole) return;
    while (w->first && w->first->arrives_ns <= sim_now()) {
        segment *first = w->first;
        if (is_held(w)) {
            plan(w, sim_now() + sim_between(1, RESEND_MS) * SIM_MS);
            return;
        }
        sim_process_touch(w->to);
        if (!give(w, first)) {
            if (!c->is_closed) plan(w, sim_now() + SIM_MS);
            return;
        }
        w->under_way -= first->bytes;
        if (first->is_end) shutdown(w->to_fd, SHUT_WR);
        w->first = first->next;
        if (!w->first) w->last = &w->first;
        const bool is_end = first->is_end;
        free(first);
        if (is_end && c->ways[0].is_over && c->ways[1].is_over && !c->ways[0].first &&
            !c->ways[1].first) {
            close_both(c);
            return;
        }
    }
    if (w->is_full && w->under_way < WINDOW_BYTES / 2) {
        w->is_full = false;
        watch(w, true);
    }
    if (w->first) plan(w, w->first->arrives_ns);
}

static void put_under_way(way *w, const uint8_t *bytes, size_t count) {
    segment *new = mr_alloc(sizeof(*new) + count);
    *new = (segment){.bytes = count, .is_end = count == 0};
    if (count > 0) memcpy(new->data, bytes, count);
    new->arrives_ns = sim_now() + latency(w) + (int64_t)count; /* 1 GB/s */
    if (new->arrives_ns < w->last_ns) new->arrives_ns = w->last_ns;
    w->last_ns = new->arrives_ns;
    *w->last = new;
    w->last = &new->next;
    w->under_way += count;
    plan(w, new->arrives_ns);
}

/* Takes what a side has written. */
static void take(way *w) {
    static uint8_t bytes[READ_BYTES];
    connection *c = w->connection;
    if (c->is_closed || w->is_over || w->is_full) return;
    const ssize_t got = recv(w->from_fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    sim_process_touch(w->from);
    if (got > 0) {
        if (!c->is_hole) put_under_way(w, bytes, (size_t)got);
        if (w->under_way >= WINDOW_BYTES) {
            w->is_full = true;
            watch(w, false);
        }
        return;
    }
    w->is_over = true;
    watch(w, false);
    if (c->is_hole || got < 0) {
        close_both(c);
        return;
    }
    put_under_way(w, NULL, 0);
}

static int by_number(const void *a, const void *b) {
    const way *x = ((const struct epoll_event *)a)->data.ptr;
    const way *y = ((const struct epoll_event *)b)->data.ptr;
    const uint64_t i = 2 * x->connection->number + (x == &x->connection->ways[1]);
    const uint64_t k = 2 * y->connection->number + (y == &y->connection->ways[1]);
    return (i > k) - (i < k);
}

bool sim_net_pump(void) {
    struct epoll_event events[64];
    bool any = false;
    for (;;) {
        const int ready = (int)syscall(SYS_epoll_pwait, n.epoll, events, 64, 0, NULL, 8ul);
        if (ready <= 0) break;
        qsort(events, (size_t)ready, sizeof(*events), by_number);
        for (int i = 0; i < ready; i++) take(events[i].data.ptr);
        any = true;
    }
    for (connection **at = &n.connections; *at;) {
        connection *c = *at;
        if (!c->is_closed || c->events > 0) {
            at = &c->next;
            continue;
        }
        *at = c->next;
        free(c);
    }
    return any;
}

/* --- connecting ------------------------------------------------------------------------------- */

static int real_connect(int fd, const char *path) {
    const struct sockaddr_un name = name_of(path);
    return syscall(SYS_connect, fd, &name, sizeof(name)) == 0 ? 0 : errno;
}

static connection *new_connection(sim_process *from, sim_process *to, int fd) {
    char hub[96];
    connection *c = mr_alloc(sizeof(*c));
    snprintf(hub, sizeof(hub), "%s/hub", n.folder);
    const int code = real_connect(fd, hub);
    const int own = accept4(n.hub, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (code != 0 || own < 0) sim_fail("the hub does not take a connection: %d", code);
    *c = (connection){.next = n.connections, .number = n.next_number++};
    n.connections = c;
    for (int i = 0; i < 2; i++) {
        way *w = &c->ways[i];
        *w = (way){.connection = c, .from_fd = -1, .to_fd = -1, .last = &w->first};
        w->from = i ? to : from;
        w->to = i ? from : to;
        w->last_ns = sim_now();
    }
    c->ways[0].from_fd = c->ways[1].to_fd = own;
    return c;
}

static bool is_unreachable(uint32_t here, uint32_t there) {
    return n.is_cut[here][there] || n.is_cut[there][here] || n.is_down[there];
}

int sim_net_connect(int fd, const char *public_path) {
    sim_process *own = sim_own();
    const door *d = find_door(public_path);
    if (!d || sim_process_is_dead(own)) return ECONNREFUSED;
    sim_sleep(2 * n.usual_ns);
    sim_process *to = d->process;
    const uint32_t here = sim_process_host(own), there = d->host;
    if (sim_process_is_dead(own)) return ECONNREFUSED;
    const bool is_hole = is_unreachable(here, there);
    if (!is_hole && (!to || sim_process_is_dead(to))) return ECONNREFUSED;
    const int theirs =
        is_hole ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (!is_hole && real_connect(theirs, d->real) != 0) { /* it does not listen yet, or any more */
        close(theirs);
        return ECONNREFUSED;
    }
    connection *c = new_connection(own, to, fd);
    c->is_hole = is_hole;
    c->hosts[0] = here;
    c->hosts[1] = there;
    c->ways[0].to_fd = c->ways[1].from_fd = theirs;
    for (int i = 0; i < (is_hole ? 1 : 2); i++) watch(&c->ways[i], true);
    if (to) sim_process_touch(to);
    return 0;
}

/* --- faults ----------------------------------------------------------------------------------- */

void sim_net_drop(sim_process *process, bool is_silent) {
    for (door *d = n.doors; d; d = d->next)
        if (d->process == process) d->process = NULL;
    n.is_down[sim_process_host(process)] |= is_silent;
    for (connection *c = n.connections; c; c = c->next) {
        if (c->ways[0].from != process && c->ways[1].from != process) continue;
        if (c->ways[0].from == c->ways[1].from || !is_silent || c->is_hole) {
            close_both(c);
            continue;
        }
        way *out = &c->ways[c->ways[0].from == process ? 0 : 1];
        if (c->is_closed) continue;
        const int gone = out->from_fd; /* our end towards the dead one; the other hears nothing */
        close(gone);
        out->from_fd = c->ways[out == &c->ways[0]].to_fd = -1;
        out->is_over = true;
        c->is_hole = true;
    }
    sim_process_touch(process);
}

void sim_net_break(uint32_t which) {
    uint32_t count = 0;
    for (const connection *c = n.connections; c; c = c->next) count += !c->is_closed;
    if (count == 0) return;
    which %= count;
    for (connection *c = n.connections; c; c = c->next)
        if (!c->is_closed && which-- == 0) {
            sim_trace("the connection %s - %s breaks", sim_process_name(c->ways[0].from),
                      c->ways[0].to ? sim_process_name(c->ways[0].to) : "nobody");
            close_both(c);
            return;
        }
}

/* Connections into silence end when the way is whole: the host answers with a reset. */
static void wake_holes(void) {
    for (connection *c = n.connections; c; c = c->next) {
        if (c->is_closed || !c->is_hole) continue;
        const uint32_t a = c->hosts[0], b = c->hosts[1];
        if (!n.is_cut[a][b] && !n.is_cut[b][a] && !n.is_down[a] && !n.is_down[b]) close_both(c);
    }
}

void sim_net_cut(uint32_t from, uint32_t to, bool is_cut) {
    n.is_cut[from][to] = is_cut;
    if (!is_cut) wake_holes();
}

bool sim_net_is_cut(uint32_t from, uint32_t to) {
    return n.is_cut[from][to];
}

void sim_net_set_latency(uint32_t host, int64_t ns) {
    n.latency_ns[host] = ns;
}

/* --- open and close --------------------------------------------------------------------------- */

void sim_net_open(void) {
    char hub[96];
    memset(&n, 0, sizeof(n));
    snprintf(n.folder, sizeof(n.folder), "/tmp/memrack-sim.XXXXXX");
    if (!mkdtemp(n.folder)) sim_fail("no folder in /tmp: %s", strerror(errno));
    snprintf(hub, sizeof(hub), "%s/hub", n.folder);
    const struct sockaddr_un name = name_of(hub);
    n.hub = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    n.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (n.hub < 0 || n.epoll < 0 ||
        bind(n.hub, (const struct sockaddr *)&name, sizeof(name)) != 0 || listen(n.hub, 16) != 0)
        sim_fail("no hub for the network: %s", strerror(errno));
    n.usual_ns = sim_between(20, 200) * 1000;
}

void sim_net_close(void) {
    char hub[96];
    for (connection *c = n.connections, *next; c; c = next) {
        next = c->next;
        close_both(c);
        free(c);
    }
    for (door *d = n.doors, *next; d; d = next) {
        next = d->next;
        if (d->real[0]) unlink(d->real);
        free(d);
    }
    close(n.hub);
    close(n.epoll);
    snprintf(hub, sizeof(hub), "%s/hub", n.folder);
    unlink(hub);
    rmdir(n.folder);
    memset(&n, 0, sizeof(n));
}
