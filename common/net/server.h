/* server.h - the listening side of the data plane: threads that accept links, open sessions and hand
 * frames to a handler. Used by memshard (N threads) and worker (one thread beside the step thread).
 *
 * Threads: each serving thread has its own epoll set and its own links; the handler is called in
 * that thread and must be safe to run in several at once. open/close from one thread. */
#ifndef MR_NET_SERVER_H
#define MR_NET_SERVER_H
#include "common/net/fabric.h"

typedef struct mr_server mr_server;

typedef struct {
    const char *address; /* "host:port" (port 0: any), or "unix:PATH" */
    uint32_t threads;
    mr_role role;
    mr_digest digest;
    const void *welcome_tail; /* after mr_wire_welcome: cells or worker info; copied */
    uint32_t welcome_tail_bytes;
    uint32_t cell_count, grid_rows, grid_columns; /* for mr_wire_welcome */
    mr_frame_handler handler;                     /* frames after the session is open */
    void (*link_closed)(void *context, mr_link *link); /* optional; before the link is freed */
    void *context;
    uint32_t idle_timeout_ms; /* for a session that never says HELLO */
} mr_server_options;

mr_status mr_server_open(mr_server **out, const mr_server_options *options, mr_err *err);
const char *mr_server_address(const mr_server *server); /* with the real port */
void mr_server_close(mr_server *server);                /* ends the threads and closes all links */

#endif
