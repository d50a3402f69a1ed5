/* server.h - the listening side of the data plane: threads that accept links, open sessions and
 * hand frames to a handler. Used by memshard (N threads) and worker (one thread beside the step
 * thread).
 *
 * PING and, in sessions of version 2, ECHO are answered here. A peer that sends garbage gets REFUSE
 * with a sentence, one logged line and a closed link; the other links do not notice. A peer that
 * does not read its answers is not read from either once 4 MiB wait for it, and dropped when they
 * have waited 30 seconds. Threads: each serving thread has its own epoll set and its own links; the
 * callbacks are called in that thread and must be safe to run in several at once. open/close from
 * one thread; mr_server_wake from any. */
#ifndef MR_NET_SERVER_H
#define MR_NET_SERVER_H
#include "common/net/session.h"

typedef struct mr_server mr_server;

typedef struct {
    const char *address; /* "host:port" (port 0: any), or "unix:PATH" */
    uint32_t threads;    /* 0: 1 */
    const char *ucx;     /* also listen on UCX at this "host:port" (port 0: any); NULL: do not */
    mr_role role;
    mr_digest digest;
    const void *welcome_tail; /* after mr_wire_welcome: cells or worker info; copied */
    uint32_t welcome_tail_bytes;
    uint32_t cell_count, grid_rows, grid_columns; /* for mr_wire_welcome */
    mr_frame_handler handler;                     /* frames after the session is open */
    /* Optional: what a HELLO is answered with where that depends on what it asks for. *out comes
     * filled from the fields above, its grid being the one asked for; out->tail is borrowed until
     * this thread's next call. A failure refuses the session with its sentence. */
    mr_status (*offer)(void *context, const mr_wire_hello *hello, mr_session_offer *out,
                       mr_err *err);
    /* Optional: all that had come on the links of serving thread `lane` was handed to the handler,
     * which may have put frames aside while mr_link_is_crowded(): now they are to be answered. */
    void (*round_over)(void *context, uint32_t lane);
    /* Optional: after mr_server_wake, and whenever a link has room for more answers: begins and
     * ends those that were made outside the handler (not flushed). */
    void (*writable)(void *context, mr_link *link);
    void (*link_closed)(void *context, mr_link *link); /* optional; of open sessions, before the
                                                        * link is freed */
    void *context;
    uint32_t idle_timeout_ms; /* for a session that never says HELLO; 0: 5000 */
    struct mr_keys *keys;     /* of keyed sessions (keys.h); borrowed; NULL: none are taken */
    bool is_key_required;     /* sessions without a key are refused */
} mr_server_options;

mr_status mr_server_open(mr_server **out, const mr_server_options *options, mr_err *err);
const char *mr_server_address(const mr_server *server); /* with the real port */
/* "host:port", as a member record has it; NULL: it does not listen on UCX. Every serving thread
 * listens at a port of its own; this one sends links on to the thread with the fewest. */
const char *mr_server_ucx(const mr_server *server);
void mr_server_wake(mr_server *server); /* has writable called for every link, soon */
uint32_t mr_server_links(const mr_server *server);
int64_t mr_server_heard_ns(const mr_server *server); /* when any open session last sent; 0: never */
void mr_server_close(mr_server *server); /* ends the threads and closes all links; NULL is fine */

#endif
