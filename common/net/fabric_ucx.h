/* fabric_ucx.h - inside of common/net: links over UCX, for fabric.c and server.c.
 *
 * An engine is one UCX worker: it moves the bytes of all links made on it, and only when somebody
 * calls its progress. Links made by mr_ucx_connect in one thread share that thread's engine, so
 * they move between threads all together or not at all; a serving thread has an engine of its own.
 * Without UCX (at build time, or its libraries at run time) all of this is refused with a sentence.
 * Threads: an engine and its links belong to one thread at a time. */
#ifndef MR_NET_FABRIC_UCX_H
#define MR_NET_FABRIC_UCX_H
#include "common/net/link.h"

/* place: "host:port". Waits until the other side has taken the link. */
mr_status mr_ucx_connect(mr_link **out, const char *place, int64_t deadline_ns, mr_err *err);

/* An engine that listens; *bound (owned) is "host:port" with the real port. */
mr_status mr_ucx_listen(mr_engine **out, char **bound, const char *place, mr_err *err);
void mr_ucx_close(mr_engine *engine); /* after its links; NULL is fine */

/* The next link that somebody opened, or NULL. It is told where it is served: here (port 0), or at
 * another port of this host, after which the link is only to be closed. */
mr_link *mr_ucx_accept(mr_engine *engine);
void mr_ucx_place(mr_link *link, uint16_t port);

/* "shm", "rdma" or "ucx-tcp": what the endpoint says it uses. */
const char *mr_ucx_transport(mr_link *link);

/* MR_OK where links over UCX can be made; else why not. Loads the library the first time. */
mr_status mr_ucx_check(mr_err *err);
void mr_ucx_set_devices(const char *devices);

#endif
