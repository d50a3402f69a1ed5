/* http.h - an HTTP/1.1 server for few routes and many slow streams, on libevent.
 *
 * libevent's own evhttp is not used: version 2.1 can neither limit connections, nor the bytes of
 * all bodies together, nor the whole time a head or a body may take, which is what keeps hostile
 * clients from holding a server. Sockets, buffers and timers are still libevent's.
 *
 * One thread runs the server (mr_http_run) and every call on an exchange is made there; only
 * mr_http_wake and mr_http_stop may be called from anywhere. A handler gets a whole request and
 * answers it now or later, in one piece or as a stream. If the client goes first, `gone` is called
 * and the exchange is no more.
 *
 * Bounds: connections, head, body, all bodies together, time for a head, for a body and between
 * requests, unsent bytes of a stream, time for a client to take its answer. */
#ifndef MR_COORDINATOR_HTTP_H
#define MR_COORDINATOR_HTTP_H
#include "common/base/status.h"
#include "coordinator/http_parse.h"
#include "coordinator/metrics.h"

typedef struct mr_http mr_http;
typedef struct mr_exchange mr_exchange; /* one request and its answer */

typedef struct {
    const char *host;          /* numeric or a name of this machine; NULL: 127.0.0.1 */
    uint16_t port;             /* 0: any */
    uint32_t connections_max;  /* 0: 1024; at most MR_MAX_HTTP_CONNECTIONS */
    uint32_t head_timeout_ms;  /* from the first byte of a head to its last; 0: 20 s */
    uint32_t body_timeout_ms;  /* the same for bodies; 0: 120 s */
    uint32_t idle_timeout_ms;  /* between requests; 0: 75 s */
    uint32_t stall_timeout_ms; /* a client that takes nothing of its answer; 0: 60 s */
    void (*handler)(void *context, mr_exchange *exchange);
    void (*woken)(void *context); /* after mr_http_wake, on the server's thread */
    void (*tick)(void *context);  /* about once a second */
    void *context;
    mr_metrics *metrics; /* borrowed */
} mr_http_options;

mr_status mr_http_open(mr_http **out, const mr_http_options *options, mr_err *err);
void mr_http_hang_up(mr_http *http); /* after run has returned: closes all connections */
void mr_http_close(mr_http *http);   /* after run has returned; closes what is open; NULL is fine */
const char *mr_http_address(const mr_http *http); /* "127.0.0.1:8080", with the real port */
void mr_http_run(mr_http *http);                  /* until stopped */
void mr_http_wake(mr_http *http);
/* Takes no more connections; run returns once the ones with an answer under way are done, or at
 * once when now is set. Safe in a signal handler. */
void mr_http_stop(mr_http *http, bool now);
uint32_t mr_http_connections(const mr_http *http);

/* --- one exchange ----------------------------------------------------------------------------- */

const mr_http_head *mr_exchange_head(const mr_exchange *exchange);
const char *mr_exchange_body(const mr_exchange *exchange, size_t *bytes); /* zero-terminated */
/* gone(context) when the client leaves before the answer is complete. */
void mr_exchange_on_gone(mr_exchange *exchange, void (*gone)(void *context), void *context);

/* A whole answer; ends the exchange. extra: more header lines ("A: b\r\n") or NULL. */
void mr_exchange_reply(mr_exchange *exchange, int code, const char *type, const char *extra,
                       const char *body, size_t bytes);
/* The same with bytes that are freed when sent; head comes first and is copied. */
void mr_exchange_reply_large(mr_exchange *exchange, const char *type, const void *head,
                             size_t head_bytes, void *body, size_t bytes);
/* An answer in pieces. */
void mr_exchange_begin_stream(mr_exchange *exchange, const char *type);
/* false: too many bytes are unsent; the connection was closed (gone is not called). */
bool mr_exchange_send(mr_exchange *exchange, const char *data, size_t bytes);
void mr_exchange_end_stream(mr_exchange *exchange);

#endif
