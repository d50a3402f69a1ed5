/* bare_pair.h - a ping-pong of so many bytes each way that does nothing else, over TCP's loopback,
 * a Unix socket or a shared page: what a round trip is compared with. The other end is a child
 * process. For the bench programs, each of which is one file; so all of it lies here. */
#ifndef MR_BENCH_BARE_PAIR_H
#define MR_BENCH_BARE_PAIR_H
#include "common/base/clock.h"
#include "common/base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
    const char *fabric; /* "tcp", "unix" or "shm" */
    size_t up, down;
    bool spins;
    int fd; /* sockets */
    pid_t child;
    struct {
        atomic_uint turn; /* even: the asker's */
        uint8_t data[2 << 20];
    } * page; /* shm */
    uint8_t *mine;
} bare_pair;

static bool move_all(const bare_pair *p, int fd, size_t bytes, bool out) {
    uint8_t *data = p->mine;
    while (bytes > 0) {
        const ssize_t done = out ? send(fd, data, bytes, MSG_NOSIGNAL)
                                 : recv(fd, data, bytes, p->spins ? MSG_DONTWAIT : 0);
        if (done < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (done <= 0) return false;
        data += done;
        bytes -= (size_t)done;
    }
    return true;
}

/* Waits until the turn is odd or even, as wanted. */
static void await_turn(bare_pair *p, uint32_t odd) {
    for (uint32_t i = 1; (atomic_load_explicit(&p->page->turn, memory_order_acquire) & 1) != odd;
         i++)
        if (i % 4096 == 0) sched_yield();
}

static bool ask_bare(bare_pair *p) {
    if (!p->page) return move_all(p, p->fd, p->up, true) && move_all(p, p->fd, p->down, false);
    memcpy(p->page->data, p->mine, p->up);
    atomic_fetch_add_explicit(&p->page->turn, 1, memory_order_release);
    await_turn(p, 0);
    memcpy(p->mine, p->page->data, p->down);
    return true;
}

static void answer_bare(bare_pair *p, int fd) {
    for (;;) {
        if (!p->page) {
            if (!move_all(p, fd, p->up, false) || !move_all(p, fd, p->down, true)) _exit(0);
            continue;
        }
        await_turn(p, 1);
        memcpy(p->mine, p->page->data, p->up);
        memcpy(p->page->data, p->mine, p->down);
        atomic_fetch_add_explicit(&p->page->turn, 1, memory_order_release);
    }
}

/* A connected pair over TCP's loopback. */
static bool tcp_pair(int fds[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    const int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || fds[0] < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0 ||
        connect(fds[0], (struct sockaddr *)&address, sizeof(address)) != 0)
        return false;
    fds[1] = accept(listener, NULL, NULL);
    close(listener);
    for (int i = 0; i < 2; i++) setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fds[1] >= 0;
}

static mr_status open_bare(bare_pair *p, mr_err *err) {
    int fds[2] = {-1, -1};
    p->fd = -1;
    p->mine = mr_alloc(p->up > p->down ? p->up : p->down);
    if (!strcmp(p->fabric, "shm")) {
        p->page =
            mmap(NULL, sizeof(*p->page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p->page == MAP_FAILED) return mr_fail(err, MR_ERR_NOMEM, "no shared page");
    } else if (!strcmp(p->fabric, "unix") ? socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0
                                          : !tcp_pair(fds))
        return mr_fail(err, MR_ERR_IO, "bare socket: %s", strerror(errno));
    p->child = fork();
    if (p->child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (fds[0] >= 0) close(fds[0]);
        answer_bare(p, fds[1]);
    }
    if (fds[1] >= 0) close(fds[1]);
    p->fd = fds[0];
    return p->child > 0 ? MR_OK : mr_fail(err, MR_ERR_IO, "fork: %s", strerror(errno));
}

static void close_bare(bare_pair *p) {
    if (p->fd >= 0) close(p->fd);
    if (p->child > 0) {
        kill(p->child, SIGKILL);
        waitpid(p->child, NULL, 0);
    }
    free(p->mine);
}

#endif
