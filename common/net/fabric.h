/* fabric.h - frames between peers: one link type, three homes.
 *
 *   stream (fabric_stream.c): TCP, Unix sockets and socket pairs; non-blocking, many frames a read
 *                             and a write.
 *   loop   (fabric_loop.c):   in this process: flushing runs the other side's handler at once, in
 *                             the caller's thread. No system call, no hand-off.
 *   UCX    (fabric_ucx.c):    shared memory within a host, RDMA verbs; fabric_choice.h says when.
 *                             Only flush, receive and mr_links_wait move anything.
 *
 * A link carries frames both ways. Sending is begin (room for a payload in the output buffer),
 * fill, end, then flush; receiving hands out frames that lie in the input buffer. Nothing here
 * blocks except mr_link_connect and mr_links_wait, and both take a deadline.
 * Threads: a link belongs to one thread at a time.
 * Memory: the buffers grow to MR_MAX_LINK_BACKLOG_BYTES at most and are kept, so that a warm link
 * allocates nothing. */
#ifndef MR_NET_FABRIC_H
#define MR_NET_FABRIC_H
#include "common/base/hash.h"
#include "common/base/status.h"
#include "proto/wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mr_link mr_link;

typedef struct {
    const mr_wire_header *header; /* checked: magic, version, size, flags */
    const uint8_t *payload;       /* 8-byte aligned, header->payload_bytes long */
} mr_frame;

/* Handles one frame on the listening side; answers are begun, ended (not flushed) on reply. */
typedef void (*mr_frame_handler)(void *context, mr_link *reply, const mr_frame *frame);

/* address: "host:port", "unix:PATH" or "ucx:host:port". deadline_ns is on mr_now_ns()'s clock. */
mr_status mr_link_connect(mr_link **out, const char *address, int64_t deadline_ns, mr_err *err);
mr_link *mr_link_from_fd(int fd, const char *peer); /* takes the connected socket over */
/* The handler sees every frame sent on the link; what it answers is received from the link. */
mr_link *mr_link_loop(mr_frame_handler handler, void *context, const char *peer);
void mr_link_close(mr_link *link); /* NULL is fine */

/* Room for payload_bytes (<= MR_MAX_FRAME_BYTES), 8-byte aligned, contents undefined; valid until
 * mr_link_end. NULL when the backlog is full: flush, receive and try again. header gives type,
 * request, epoch, budget_us and status; the rest is filled in here. */
void *mr_link_begin(mr_link *link, const mr_wire_header *header, uint32_t payload_bytes);
void mr_link_end(mr_link *link);
void mr_link_abandon(mr_link *link); /* instead of end: as if it had never been begun */
mr_status mr_link_flush(mr_link *link, mr_err *err); /* MR_ERR_AGAIN: some is left to write */

/* MR_ERR_AGAIN: no whole frame yet (bytes that came since the last read may be seen by the next
 * call only: mr_links_wait tells). Any other failure is final for the link. The frame is borrowed
 * until the next receive; on a loop link until the next flush, too. */
mr_status mr_link_receive(mr_link *link, mr_frame *out, mr_err *err);

int mr_link_fd(const mr_link *link); /* -1: it has none (loop, UCX): use mr_links_wait */
/* "tcp", "unix", "loop", "shm", "rdma" or "ucx-tcp": what really carries the bytes. */
const char *mr_link_transport(mr_link *link);
bool mr_link_wants_write(const mr_link *link);
const char *mr_link_peer(const mr_link *link);
/* Of the open session: in version 1 nothing may be sent that wire.h marks (2); a frame that is ends
 * the link. 0 before it is open. */
uint16_t mr_link_version(const mr_link *link);
uint64_t mr_link_bytes_sent(const mr_link *link);
uint64_t mr_link_bytes_received(const mr_link *link);
/* In a server's handler: the model the session was opened for (zero before, and on loop links); the
 * serving thread, by a number that no other of the process has (or MR_LANE_NONE); when it last
 * looked at its links (0 on loop links); whether more frames wait for that thread, so that
 * round_over() of server.h comes after them. */
const mr_digest *mr_link_digest(const mr_link *link);
#define MR_LANE_NONE UINT32_MAX
uint32_t mr_link_lane(const mr_link *link);
int64_t mr_link_seen_ns(const mr_link *link);
bool mr_link_is_crowded(const mr_link *link);

/* Waits until one of the links can be received from or written on, or the deadline. NULL entries
 * are skipped. MR_ERR_TIMEOUT at the deadline. Looks for mr_fabric_spin() before it sleeps. */
mr_status mr_links_wait(mr_link **links, uint32_t count, int64_t deadline_ns);

/* The cluster simulation (tests/sim) waits in its own way, beside its own clock (clock.h); NULL
 * everywhere else. Set before anything runs. */
extern mr_status (*mr_wait_source)(mr_link **links, uint32_t count, int64_t deadline_ns);

/* Convenience for a short answer: begin, copy, end. Drops the frame when the backlog is full. */
void mr_link_send(mr_link *link, const mr_wire_header *header, const void *payload,
                  uint32_t payload_bytes);
void mr_link_send_error(mr_link *link, uint64_t request, mr_status status, const char *sentence);

/* --- session opening -------------------------------------------------------------------------- */

typedef struct {
    mr_role role, role_wanted;
    mr_digest digest; /* all zero: any model */
} mr_session_hello;

/* Before mr_session_open: the grid that is wanted of a memshard, which may hold a model in two
 * while a cluster is cut anew. On the listening side: the grid the session was opened for; 0, 0:
 * any. */
typedef struct {
    uint32_t rows, columns;
} mr_link_grid;
void mr_link_set_grid(mr_link *link, mr_link_grid grid);
mr_link_grid mr_link_get_grid(const mr_link *link);

/* Sends HELLO and waits for WELCOME. welcome_bytes receives at most room bytes of the payload
 * (mr_wire_welcome and its tail), *bytes how many came. MR_ERR_MISMATCH with the peer's sentence
 * when refused. */
mr_status mr_session_open(mr_link *link, const mr_session_hello *hello, int64_t deadline_ns,
                          void *welcome_bytes, size_t room, size_t *bytes, mr_err *err);

#endif
