/* fabric_stream.c - links over sockets: TCP, Unix sockets, socket pairs.
 *
 * Never blocks. One recv takes as many frames as fit, one send as many as are queued: at many
 * frames a second the system calls are what costs. The input queue holds at most one frame of the
 * largest size beside a read's worth of others, and grows only as bytes really come, so that a
 * header which promises a megabyte costs its sender a megabyte. */
#include "common/net/address.h"
#include "common/net/fabric_ucx.h"
#include "common/net/link.h"

#include "common/base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_BYTES_MIN = 16 << 10, /* room that makes a read worth its call */
    INPUT_BYTES_MAX = 4 * MR_MAX_FRAME_BYTES,
};

static mr_status stream_flush(mr_link *link, mr_err *err) {
    mr_queue *out = &link->out;
    while (mr_queue_bytes(out) > 0) {
        const ssize_t put =
            send(link->fd, out->data + out->head, mr_queue_bytes(out), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return MR_ERR_AGAIN;
        if (put < 0)
            return mr_fail(err, MR_ERR_UNAVAILABLE, "%s: send: %s", link->peer, strerror(errno));
        link->bytes_sent += (uint64_t)put;
        mr_queue_drop(out, (size_t)put);
    }
    return MR_OK;
}

static mr_status stream_fill(mr_link *link, size_t missing, mr_err *err) {
    mr_queue *in = &link->in;
    const size_t wanted = missing < READ_BYTES_MIN ? missing : READ_BYTES_MIN;
    if (in->room - in->tail < wanted && !mr_queue_reserve(in, READ_BYTES_MIN, INPUT_BYTES_MAX))
        return mr_fail(err, MR_ERR_NOMEM, "no memory for its frame");
    if (link->is_drained) { /* asking again at once would only cost a system call */
        link->is_drained = false;
        return MR_ERR_AGAIN;
    }
    for (;;) {
        const size_t room = in->room - in->tail;
        const ssize_t got = recv(link->fd, in->data + in->tail, room, MSG_DONTWAIT);
        if (got > 0) {
            link->is_drained = (size_t)got < room;
            link->bytes_received += (uint64_t)got;
            in->tail += (size_t)got;
            return MR_OK;
        }
        if (got == 0)
            return mr_fail(err, MR_ERR_UNAVAILABLE, "the connection was closed%s",
                           mr_queue_bytes(in) > 0 ? " in the middle of a frame" : "");
        if (errno == EINTR) continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK) return MR_ERR_AGAIN;
        return mr_fail(err, MR_ERR_UNAVAILABLE, "receive: %s", strerror(errno));
    }
}

static void stream_close(mr_link *link) {
    close(link->fd);
}

static const mr_link_home stream_home = {stream_flush, stream_fill, stream_close, NULL};

static mr_link *make_link(int fd, const char *peer) {
    struct sockaddr_storage own = {0};
    socklen_t bytes = sizeof(own);
    mr_link *link = mr_link_new(&stream_home, fd, peer);
    const bool is_local =
        getsockname(fd, (struct sockaddr *)&own, &bytes) == 0 && own.ss_family == AF_UNIX;
    link->transport = is_local ? "unix" : "tcp";
    return link;
}

mr_link *mr_link_from_fd(int fd, const char *peer) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK)) fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    mr_address_tune(fd);
    return make_link(fd, peer);
}

mr_status mr_link_connect(mr_link **out, const char *address, int64_t deadline_ns, mr_err *err) {
    int fd;
    *out = NULL;
    if (strncmp(address, "ucx:", 4) == 0) return mr_ucx_connect(out, address + 4, deadline_ns, err);
    const mr_status status = mr_address_connect(&fd, address, deadline_ns, err);
    if (status != MR_OK) return status;
    *out = make_link(fd, address);
    return MR_OK;
}
