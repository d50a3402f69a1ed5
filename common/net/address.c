/* address.c - see address.h.
 *
 * Names are looked up with getaddrinfo_a, the only resolver call of the C library that can be
 * waited for with a deadline; addresses in digits never get there. */
#include "common/net/address.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { HOST_BYTES = 256, PORT_BYTES = 8, LOOKUP_NS = 5000000 };

typedef struct {
    char host[HOST_BYTES]; /* without brackets */
    char port[PORT_BYTES];
    const char *path; /* of a Unix socket, else NULL; borrowed from the text */
} place;

static mr_status parse(place *out, const char *text, mr_err *err) {
    *out = (place){0};
    if (strncmp(text, "unix:", 5) == 0) {
        const size_t bytes = strlen(text + 5);
        if (bytes == 0 || bytes >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
            return mr_fail(err, MR_ERR_ARGUMENT,
                           "address '%.300s': a Unix socket's path has 1 to %zu bytes", text,
                           sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1);
        out->path = text + 5;
        return MR_OK;
    }
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text)
        return mr_fail(err, MR_ERR_ARGUMENT, "address '%.300s' is neither host:port nor unix:PATH",
                       text);
    const char *first = text;
    size_t bytes = (size_t)(colon - text);
    if (*first == '[' && bytes > 2 && first[bytes - 1] == ']') {
        first++;
        bytes -= 2;
    } else if (memchr(first, ':', bytes) || *first == '[')
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "address '%.300s': write an IPv6 address as [host]:port", text);
    if (bytes >= HOST_BYTES)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "address '%.60s...' has a host name of more than %d bytes", text,
                       HOST_BYTES - 1);
    memcpy(out->host, first, bytes);
    char *end;
    errno = 0;
    const long port = strtol(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end || errno || port < 0 || port > 65535)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "address '%.300s': the port must be a number from 0 to 65535", text);
    snprintf(out->port, sizeof(out->port), "%ld", port);
    return MR_OK;
}

mr_status mr_address_check(const char *address, mr_err *err) {
    place p;
    if (strncmp(address, "ucx:", 4) != 0) return parse(&p, address, err);
    const mr_status status = parse(&p, address + 4, err);
    if (status != MR_OK || !p.path) return status;
    return mr_fail(err, MR_ERR_ARGUMENT, "address '%.300s': UCX needs host:port", address);
}

/* The request outlives this call when the look-up cannot be cancelled: it is then left to the
 * resolver's thread, which still writes to it. */
static int look_up(struct addrinfo **out, const place *p, int flags, int64_t deadline_ns) {
    typedef struct {
        struct gaicb request;
        struct addrinfo hints;
        place where;
    } job;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = flags | AI_NUMERICHOST | AI_NUMERICSERV};
    if (getaddrinfo(p->host, p->port, &hints, out) == 0) return 0;
    job *j = mr_alloc(sizeof(*j));
    j->where = *p;
    j->hints = hints;
    j->hints.ai_flags = flags | AI_NUMERICSERV;
    j->request = (struct gaicb){
        .ar_name = j->where.host, .ar_service = j->where.port, .ar_request = &j->hints};
    struct gaicb *list[1] = {&j->request};
    int code = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL);
    if (code != 0) {
        free(j);
        return code;
    }
    while ((code = gai_error(&j->request)) == EAI_INPROGRESS) {
        const int64_t left = deadline_ns - mr_now_ns();
        if (left <= 0) {
            const int cancelled = gai_cancel(&j->request);
            if (cancelled == EAI_ALLDONE) continue; /* it came in just now */
            if (cancelled == EAI_CANCELED) free(j);
            return EAI_INPROGRESS;
        }
        const struct timespec slice = {.tv_nsec = left < LOOKUP_NS ? (long)left : LOOKUP_NS};
        gai_suspend((const struct gaicb *const *)list, 1, &slice);
    }
    if (code == 0) *out = j->request.ar_result;
    free(j);
    return code;
}

void mr_address_tune(int fd) {
    const int yes = 1, idle_s = 30, every_s = 10, count = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes,
               sizeof(yes)); /* fails harmlessly on Unix sockets */
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof(yes));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}

/* Connecting to a free port of this host's own range may meet itself and succeed. */
static bool is_own_echo(int fd) {
    struct sockaddr_storage own = {0}, peer = {0};
    socklen_t own_bytes = sizeof(own), peer_bytes = sizeof(peer);
    if (getsockname(fd, (struct sockaddr *)&own, &own_bytes) != 0) return false;
    if (getpeername(fd, (struct sockaddr *)&peer, &peer_bytes) != 0) return false;
    return own.ss_family != AF_UNIX && own_bytes == peer_bytes &&
           memcmp(&own, &peer, own_bytes) == 0;
}

/* Returns 0, ETIMEDOUT at the deadline, or the system's error. */
static int finish_connect(int fd, int64_t deadline_ns) {
    for (;;) {
        const int64_t left = deadline_ns - mr_now_ns();
        if (left <= 0) return ETIMEDOUT;
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        const struct timespec time = {.tv_sec = (time_t)(left / 1000000000),
                                      .tv_nsec = (long)(left % 1000000000)};
        const int ready = ppoll(&wait, 1, &time, NULL);
        if (ready < 0 && errno != EINTR) return errno;
        if (ready <= 0) continue;
        int code = 0;
        socklen_t bytes = sizeof(code);
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &bytes) != 0) return errno;
        return code;
    }
}

static int connect_one(int *out_fd, const struct sockaddr *name, socklen_t name_bytes,
                       int64_t deadline_ns) {
    const int fd = socket(name->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return errno;
    int code = 0;
    if (connect(fd, name, name_bytes) != 0) {
        code = errno;
        if (code == EINPROGRESS || code == EINTR) code = finish_connect(fd, deadline_ns);
    }
    if (code == 0 && is_own_echo(fd)) code = ECONNREFUSED;
    if (code != 0) {
        close(fd);
        return code;
    }
    mr_address_tune(fd);
    *out_fd = fd;
    return 0;
}

static struct sockaddr_un unix_name(const char *path) {
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    memcpy(name.sun_path, path, strlen(path) + 1); /* parse() checked the length */
    return name;
}

mr_status mr_address_resolve(struct sockaddr_storage *out, socklen_t *bytes, const char *address,
                             int64_t deadline_ns, mr_err *err) {
    place p;
    struct addrinfo *found = NULL;
    *out = (struct sockaddr_storage){0};
    *bytes = 0;
    const mr_status status = parse(&p, address, err);
    if (status != MR_OK) return status;
    if (p.path) return mr_fail(err, MR_ERR_ARGUMENT, "address '%.300s' is no host:port", address);
    const int looked = look_up(&found, &p, 0, deadline_ns);
    if (looked == EAI_INPROGRESS)
        return mr_fail(err, MR_ERR_TIMEOUT, "look up %s: no answer in time", address);
    if (looked != 0)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "look up %s: %s", address, gai_strerror(looked));
    memcpy(out, found->ai_addr, found->ai_addrlen);
    *bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return MR_OK;
}

mr_status mr_address_connect(int *out_fd, const char *address, int64_t deadline_ns, mr_err *err) {
    place p;
    int code = 0;
    *out_fd = -1;
    const mr_status status = parse(&p, address, err);
    if (status != MR_OK) return status;
    if (p.path) {
        const struct sockaddr_un name = unix_name(p.path);
        code = connect_one(out_fd, (const struct sockaddr *)&name, sizeof(name), deadline_ns);
    } else {
        struct addrinfo *found = NULL;
        const int looked = look_up(&found, &p, 0, deadline_ns);
        if (looked == EAI_INPROGRESS)
            return mr_fail(err, MR_ERR_TIMEOUT, "look up %s: no answer in time", address);
        if (looked != 0)
            return mr_fail(err, MR_ERR_UNAVAILABLE, "look up %s: %s", address,
                           gai_strerror(looked));
        for (const struct addrinfo *a = found; a && *out_fd < 0; a = a->ai_next)
            code = connect_one(out_fd, a->ai_addr, a->ai_addrlen, deadline_ns);
        freeaddrinfo(found);
    }
    if (*out_fd >= 0) return MR_OK;
    if (code == ETIMEDOUT)
        return mr_fail(err, MR_ERR_TIMEOUT, "connect to %s: no answer in time", address);
    return mr_fail(err, MR_ERR_UNAVAILABLE, "connect to %s: %s", address, strerror(code));
}

/* A socket file that refuses connections is left over from a process that was killed. */
static void remove_stale(const struct sockaddr_un *name) {
    struct stat st;
    if (lstat(name->sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) return;
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    if (connect(fd, (const struct sockaddr *)name, sizeof(*name)) != 0 && errno == ECONNREFUSED)
        unlink(name->sun_path);
    close(fd);
}

static int listen_one(int *out_fd, const struct sockaddr *name, socklen_t name_bytes, int backlog) {
    const int yes = 1;
    const int fd = socket(name->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return errno;
    if (name->sa_family != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (bind(fd, name, name_bytes) != 0 || listen(fd, backlog) != 0) {
        const int code = errno;
        close(fd);
        return code;
    }
    *out_fd = fd;
    return 0;
}

static char *bound_address(int fd, const place *p) {
    struct sockaddr_storage own = {0};
    socklen_t bytes = sizeof(own);
    char port[PORT_BYTES];
    if (getsockname(fd, (struct sockaddr *)&own, &bytes) != 0 ||
        getnameinfo((struct sockaddr *)&own, bytes, NULL, 0, port, sizeof(port), NI_NUMERICSERV) !=
            0)
        snprintf(port, sizeof(port), "%s", p->port);
    return mr_format(strchr(p->host, ':') ? "[%s]:%s" : "%s:%s", p->host, port);
}

mr_status mr_address_listen(int *out_fd, char **bound, const char *address, int backlog,
                            mr_err *err) {
    place p;
    int code = 0;
    *out_fd = -1;
    *bound = NULL;
    const mr_status status = parse(&p, address, err);
    if (status != MR_OK) return status;
    if (p.path) {
        const struct sockaddr_un name = unix_name(p.path);
        remove_stale(&name);
        code = listen_one(out_fd, (const struct sockaddr *)&name, sizeof(name), backlog);
        if (code == 0) *bound = mr_strdup(address);
    } else {
        struct addrinfo *found = NULL;
        const int looked = look_up(&found, &p, AI_PASSIVE, mr_now_ns() + 1000ll * LOOKUP_NS);
        if (looked != 0)
            return mr_fail(err, MR_ERR_UNAVAILABLE, "look up %s: %s", address,
                           gai_strerror(looked));
        for (const struct addrinfo *a = found; a && *out_fd < 0; a = a->ai_next)
            code = listen_one(out_fd, a->ai_addr, a->ai_addrlen, backlog);
        freeaddrinfo(found);
        if (*out_fd >= 0) *bound = bound_address(*out_fd, &p);
    }
    if (*out_fd >= 0) return MR_OK;
    return mr_fail(err, MR_ERR_IO, "listen on %s: %s", address, strerror(code));
}

char *mr_address_of_peer(int fd) {
    struct sockaddr_storage peer = {0};
    socklen_t bytes = sizeof(peer);
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getpeername(fd, (struct sockaddr *)&peer, &bytes) != 0) return mr_strdup("a closed peer");
    if (peer.ss_family == AF_UNIX) return mr_strdup("a local peer");
    if (getnameinfo((struct sockaddr *)&peer, bytes, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return mr_strdup("an unknown peer");
    return mr_format(peer.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}
