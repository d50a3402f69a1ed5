/* http.c - see http.h. A connection is its exchange: requests on it come one after the other.
 *
 *   HEAD -> BODY -> HANDLING -> (STREAMING ->) FLUSHING -> HEAD ...
 *                                                       -> LINGER -> closed
 *
 * LINGER: after an answer that ends the connection the client gets a moment to read it; closing
 * with its bytes unread would reset the connection and destroy the answer on its way. A connection
 * that ends inside a callback is put on a list and freed by the next tick, so that whoever is on
 * the stack may still look at it. */
#include "coordinator/http.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/tokenizer_text.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    READ_AHEAD_BYTES = 64 << 10,
    TICK_MS = 250,
    LINGER_MS = 2000,
    SLOWEST_BYTES_PER_S = 64 << 10, /* a client that takes its answer slower is cut off */
    BACKLOG = 1024
};

typedef enum { HEAD, BODY, HANDLING, STREAMING, FLUSHING, LINGER, CLOSED } phase;

struct mr_exchange {
    mr_exchange *next, *previous; /* all open ones; next also links the closed ones */
    mr_http *http;
    struct bufferevent *bev;
    phase phase;
    mr_http_head head;
    mr_http_chunks chunks;
    mr_text body;
    int64_t deadline_ns; /* of the phase; INT64_MAX: none */
    bool has_begun;      /* bytes of a head have come */
    bool ends;           /* the connection, with this answer */
    bool is_processing;
    void (*gone)(void *context);
    void *gone_context;
};

struct mr_http {
    mr_http_options options;
    struct event_base *base;
    struct evconnlistener *listener;
    struct event *wake_event, *tick_event;
    int wake_fd;
    atomic_int stop; /* 1: drain, 2: now */
    mr_exchange *first, *closed;
    uint32_t connections;
    uint64_t body_bytes; /* held for requests being received or handled */
    bool is_paused;      /* the listener ran out of file descriptors */
    char *address;
};

/* --- connections ------------------------------------------------------------------------------ */

static void set_deadline(mr_exchange *x, int64_t ms) {
    x->deadline_ns = ms < 0 ? INT64_MAX : mr_now_ns() + ms * 1000000;
}

static void drop_body(mr_exchange *x) {
    x->http->body_bytes -= x->body.bytes;
    mr_text_free(&x->body);
}

static void close_connection(mr_exchange *x) {
    mr_http *http = x->http;
    if (x->phase == CLOSED) return;
    x->phase = CLOSED;
    drop_body(x);
    bufferevent_free(x->bev);
    x->bev = NULL;
    if (x->previous)
        x->previous->next = x->next;
    else
        http->first = x->next;
    if (x->next) x->next->previous = x->previous;
    x->next = http->closed;
    http->closed = x;
    http->connections--;
    if (http->options.metrics)
        mr_gauge(&http->options.metrics->connections_open, http->connections);
}

/* The client left, or is made to leave. */
static void lose(mr_exchange *x) {
    void (*gone)(void *) = x->gone;
    x->gone = NULL;
    if ((x->phase == HANDLING || x->phase == STREAMING) && gone) gone(x->gone_context);
    close_connection(x);
}

static void free_closed(mr_http *http) {
    while (http->closed) {
        mr_exchange *x = http->closed;
        http->closed = x->next;
        free(x);
    }
}

static void begin_request(mr_exchange *x) {
    x->phase = HEAD;
    x->has_begun = false;
    x->gone = NULL;
    x->chunks = (mr_http_chunks){0};
    drop_body(x);
    set_deadline(x, x->http->options.idle_timeout_ms);
}

static void refuse(mr_exchange *x, int code, const char *reason) {
    mr_text json = {0};
    x->ends = true;
    x->head.keeps_alive = false;
    x->phase = HANDLING;
    mr_text_format(&json,
                   "{\"error\":{\"message\":\"%s\",\"type\":\"%s\",\"param\":null,\"code\":null}}",
                   reason, code < 500 ? "invalid_request_error" : "server_error");
    mr_exchange_reply(x, code, "application/json", NULL, json.data, json.bytes);
    mr_text_free(&json);
}

/* --- reading ---------------------------------------------------------------------------------- */

static void dispatch(mr_exchange *x) {
    x->phase = HANDLING;
    set_deadline(x, -1);
    x->http->options.handler(x->http->options.context, x);
}

/* false: more bytes are needed. */
static bool read_head(mr_exchange *x, struct evbuffer *input) {
    const char *reason;
    size_t head_bytes, have = evbuffer_get_length(input);
    if (have == 0) return false;
    if (have > MR_MAX_HTTP_HEADER_BYTES + 8) have = MR_MAX_HTTP_HEADER_BYTES + 8;
    const char *data = (const char *)evbuffer_pullup(input, (ev_ssize_t)have);
    const int code = mr_http_parse_head(&x->head, data, have, &head_bytes, &reason);
    if (code == 0) {
        if (!x->has_begun) set_deadline(x, x->http->options.head_timeout_ms);
        x->has_begun = true;
        return false;
    }
    if (code != 200) {
        refuse(x, code, reason);
        return true;
    }
    evbuffer_drain(input, head_bytes);
    x->ends = !x->head.keeps_alive;
    if (x->head.content_bytes > MR_MAX_HTTP_BODY_BYTES) {
        refuse(x, 413, "the body is too large: at most 8 MiB are taken");
        return true;
    }
    if (!x->head.is_chunked && x->head.content_bytes == 0) {
        dispatch(x);
        return true;
    }
    if (x->head.expects_continue) bufferevent_write(x->bev, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    x->phase = BODY;
    set_deadline(x, x->http->options.body_timeout_ms);
    return true;
}

static bool keep_body(mr_exchange *x, const char *data, size_t bytes) {
    if (x->body.bytes + bytes > MR_MAX_HTTP_BODY_BYTES) {
        refuse(x, 413, "the body is too large: at most 8 MiB are taken");
        return false;
    }
    if (x->http->body_bytes + bytes > MR_MAX_HTTP_BUFFERED_BYTES) {
        refuse(x, 503, "too many large requests at once: try again in a moment");
        return false;
    }
    mr_text_add(&x->body, data, bytes);
    x->http->body_bytes += bytes;
    return true;
}

static bool read_body(mr_exchange *x, struct evbuffer *input) {
    const size_t have = evbuffer_get_contiguous_space(input);
    if (have == 0) return false;
    const char *data = (const char *)evbuffer_pullup(input, (ev_ssize_t)have), *piece = data;
    size_t bytes, used;
    if (x->head.is_chunked)
        used = mr_http_read_chunk(&x->chunks, data, have, &piece, &bytes);
    else {
        const uint64_t left = x->head.content_bytes - x->body.bytes;
        used = bytes = have < left ? have : (size_t)left;
    }
    if (!keep_body(x, piece, bytes)) return true;
    evbuffer_drain(input, used);
    if (x->head.is_chunked ? x->chunks.state == MR_CHUNK_DONE
                           : x->body.bytes == x->head.content_bytes)
        dispatch(x);
    else if (x->chunks.state == MR_CHUNK_BAD)
        refuse(x, 400, "the chunked body is malformed");
    return true;
}

static void process(mr_exchange *x) {
    bool go_on = true;
    if (x->is_processing) return;
    x->is_processing = true;
    while (go_on && (x->phase == HEAD || x->phase == BODY)) {
        struct evbuffer *input = bufferevent_get_input(x->bev);
        go_on = x->phase == HEAD ? read_head(x, input) : read_body(x, input);
    }
    x->is_processing = false;
}

static void on_read(struct bufferevent *bev, void *context) {
    mr_exchange *x = context;
    if (x->phase == LINGER) {
        struct evbuffer *input = bufferevent_get_input(bev);
        evbuffer_drain(input, evbuffer_get_length(input));
        return;
    }
    process(x);
}

/* All that was written is out. */
static void on_written(struct bufferevent *bev, void *context) {
    mr_exchange *x = context;
    if (x->phase != FLUSHING) return;
    if (!x->ends) {
        begin_request(x);
        process(x);
        return;
    }
    shutdown(bufferevent_getfd(bev), SHUT_WR);
    x->phase = LINGER;
    set_deadline(x, LINGER_MS);
    on_read(bev, x);
}

static void on_event(struct bufferevent *bev, short what, void *context) {
    mr_exchange *x = context;
    if ((what & BEV_EVENT_EOF) && (what & BEV_EVENT_READING) && x->phase == FLUSHING &&
        evbuffer_get_length(bufferevent_get_output(bev)) > 0) {
        x->ends = true; /* it said all it had to say, and still reads */
        return;
    }
    lose(x);
}

static void answer_full(evutil_socket_t fd) {
    static const char full[] = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"
                               "Retry-After: 1\r\nContent-Length: 26\r\n\r\n"
                               "too many open connections\n";
    const ssize_t put = send((int)fd, full, sizeof(full) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)put;
    close((int)fd);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *from,
                      int from_bytes, void *context) {
    mr_http *http = context;
    const int on = 1;
    (void)listener;
    (void)from;
    (void)from_bytes;
    if (http->connections >= http->options.connections_max) {
        if (http->options.metrics) mr_count(&http->options.metrics->connections_refused, 1);
        answer_full(fd);
        return;
    }
    setsockopt((int)fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    mr_exchange *x = mr_alloc(sizeof(*x));
    x->http = http;
    x->bev = bufferevent_socket_new(http->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!x->bev) {
        close((int)fd);
        free(x);
        return;
    }
    const struct timeval stall = {.tv_sec = http->options.stall_timeout_ms / 1000,
                                  .tv_usec = (http->options.stall_timeout_ms % 1000) * 1000};
    bufferevent_setcb(x->bev, on_read, on_written, on_event, x);
    bufferevent_setwatermark(x->bev, EV_READ, 0, READ_AHEAD_BYTES);
    bufferevent_set_timeouts(x->bev, NULL, &stall);
    x->next = http->first;
    if (http->first) http->first->previous = x;
    http->first = x;
    http->connections++;
    if (http->options.metrics) {
        mr_count(&http->options.metrics->connections, 1);
        mr_gauge(&http->options.metrics->connections_open, http->connections);
    }
    begin_request(x);
    bufferevent_enable(x->bev, EV_READ | EV_WRITE);
}

/* --- answering -------------------------------------------------------------------------------- */

const mr_http_head *mr_exchange_head(const mr_exchange *x) {
    return &x->head;
}

const char *mr_exchange_body(const mr_exchange *x, size_t *bytes) {
    *bytes = x->body.bytes;
    return mr_text_string(&x->body);
}

void mr_exchange_on_gone(mr_exchange *x, void (*gone)(void *context), void *context) {
    x->gone = gone;
    x->gone_context = context;
}

static const char *phrase(int code) {
    static const struct {
        int code;
        const char *text;
    } known[] = {{200, "OK"},
                 {400, "Bad Request"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {408, "Request Timeout"},
                 {413, "Content Too Large"},
                 {414, "URI Too Long"},
                 {415, "Unsupported Media Type"},
                 {417, "Expectation Failed"},
                 {429, "Too Many Requests"},
                 {431, "Request Header Fields Too Large"},
                 {500, "Internal Server Error"},
                 {501, "Not Implemented"},
                 {503, "Service Unavailable"},
                 {504, "Gateway Timeout"},
                 {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (known[i].code == code) return known[i].text;
    return "Answer";
}

static void add_head(mr_exchange *x, struct evbuffer *out, int code, const char *type,
                     const char *extra) {
    if (x->http->options.metrics && code / 100 < 6)
        mr_count(&x->http->options.metrics->http_responses[code / 100], 1);
    if (atomic_load(&x->http->stop)) x->ends = true;
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n%s%s", code, phrase(code), type,
                        x->ends ? "Connection: close\r\n" : "", extra ? extra : "");
}

/* The answer is whole; what is left is to get it out. */
static void flush_answer(mr_exchange *x) {
    const size_t bytes = evbuffer_get_length(bufferevent_get_output(x->bev));
    drop_body(x);
    x->gone = NULL;
    x->phase = FLUSHING;
    set_deadline(x,
                 x->http->options.stall_timeout_ms + (int64_t)(bytes / SLOWEST_BYTES_PER_S) * 1000);
}

void mr_exchange_reply(mr_exchange *x, int code, const char *type, const char *extra,
                       const char *body, size_t bytes) {
    struct evbuffer *out = bufferevent_get_output(x->bev);
    add_head(x, out, code, type, extra);
    evbuffer_add_printf(out, "Content-Length: %zu\r\n\r\n", bytes);
    if (x->head.method != MR_HTTP_HEAD) evbuffer_add(out, body, bytes);
    flush_answer(x);
}

static void free_sent(const void *data, size_t bytes, void *context) {
    (void)bytes;
    (void)context;
    free((void *)(uintptr_t)data);
}

void mr_exchange_reply_large(mr_exchange *x, const char *type, const void *head, size_t head_bytes,
                             void *body, size_t bytes) {
    struct evbuffer *out = bufferevent_get_output(x->bev);
    add_head(x, out, 200, type, NULL);
    evbuffer_add_printf(out, "Content-Length: %zu\r\n\r\n", head_bytes + bytes);
    evbuffer_add(out, head, head_bytes);
    if (evbuffer_add_reference(out, body, bytes, free_sent, NULL) != 0) {
        free(body);
        close_connection(x); /* the promised length cannot be kept */
        return;
    }
    flush_answer(x);
}

void mr_exchange_begin_stream(mr_exchange *x, const char *type) {
    struct evbuffer *out = bufferevent_get_output(x->bev);
    if (!x->head.keeps_alive) x->ends = true;
    x->head.is_chunked = !x->ends || x->head.keeps_alive;
    add_head(x, out, 200, type, "Cache-Control: no-cache\r\n");
    evbuffer_add_printf(out, "%s\r\n", x->head.is_chunked ? "Transfer-Encoding: chunked\r\n" : "");
    drop_body(x);
    x->phase = STREAMING;
}

bool mr_exchange_send(mr_exchange *x, const char *data, size_t bytes) {
    struct evbuffer *out = bufferevent_get_output(x->bev);
    if (bytes == 0) return true;
    if (evbuffer_get_length(out) + bytes > MR_MAX_STREAM_BACKLOG_BYTES) {
        x->gone = NULL;
        close_connection(x);
        return false;
    }
    if (x->head.is_chunked) evbuffer_add_printf(out, "%zx\r\n", bytes);
    evbuffer_add(out, data, bytes);
    if (x->head.is_chunked) evbuffer_add(out, "\r\n", 2);
    return true;
}

void mr_exchange_end_stream(mr_exchange *x) {
    struct evbuffer *out = bufferevent_get_output(x->bev);
    if (x->head.is_chunked) evbuffer_add(out, "0\r\n\r\n", 5);
    flush_answer(x);
    if (evbuffer_get_length(out) == 0) on_written(x->bev, x); /* nothing left that would call it */
}

/* --- the server ------------------------------------------------------------------------------- */

/* Ends the loop once nobody is being answered any more. */
static void check_stop(mr_http *http) {
    const int stop = atomic_load(&http->stop);
    bool is_busy = false;
    if (stop == 0) return;
    if (http->listener) evconnlistener_free(http->listener);
    http->listener = NULL;
    for (mr_exchange *x = http->first, *next; x; x = next) {
        next = x->next;
        if (x->phase == HEAD || x->phase == LINGER)
            close_connection(x);
        else
            is_busy = true;
    }
    if (stop > 1 || !is_busy) event_base_loopbreak(http->base);
}

static void on_tick(evutil_socket_t fd, short what, void *context) {
    mr_http *http = context;
    const int64_t now = mr_now_ns();
    (void)fd;
    (void)what;
    free_closed(http);
    for (mr_exchange *x = http->first, *next; x; x = next) {
        next = x->next;
        if (now < x->deadline_ns) continue;
        if (x->phase == BODY || (x->phase == HEAD && x->has_begun))
            refuse(x, 408, "the request took too long to arrive");
        else
            close_connection(x);
    }
    if (http->is_paused && http->listener) {
        http->is_paused = false;
        evconnlistener_enable(http->listener);
    }
    if (http->options.tick) http->options.tick(http->options.context);
    check_stop(http);
}

static void on_wake(evutil_socket_t fd, short what, void *context) {
    mr_http *http = context;
    uint64_t count;
    (void)what;
    const ssize_t got = read((int)fd, &count, sizeof(count));
    (void)got;
    if (http->options.woken) http->options.woken(http->options.context);
    check_stop(http);
}

static void on_accept_error(struct evconnlistener *listener, void *context) {
    mr_http *http = context;
    mr_log_warn("accepting a connection: %s", strerror(errno));
    evconnlistener_disable(listener); /* the tick tries again */
    http->is_paused = true;
}

static mr_status bind_listener(mr_http *http, mr_err *err) {
    const char *host = http->options.host ? http->options.host : "127.0.0.1";
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                                   .ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    char port[8];
    snprintf(port, sizeof(port), "%u", http->options.port);
    const int failed = getaddrinfo(host, port, &hints, &list);
    if (failed) return mr_fail(err, MR_ERR_IO, "address %s: %s", host, gai_strerror(failed));
    for (struct addrinfo *a = list; a && !http->listener; a = a->ai_next)
        http->listener = evconnlistener_new_bind(http->base, on_accept, http,
                                                 LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC |
                                                     LEV_OPT_REUSEABLE,
                                                 BACKLOG, a->ai_addr, (int)a->ai_addrlen);
    const int code = errno;
    freeaddrinfo(list);
    if (!http->listener)
        return mr_fail(err, MR_ERR_IO, "listen on %s:%s: %s", host, port, strerror(code));
    evconnlistener_set_error_cb(http->listener, on_accept_error);

    struct sockaddr_storage real;
    socklen_t bytes = sizeof(real);
    char name[NI_MAXHOST];
    if (getsockname(evconnlistener_get_fd(http->listener), (struct sockaddr *)&real, &bytes) != 0 ||
        getnameinfo((struct sockaddr *)&real, bytes, name, sizeof(name), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return mr_fail(err, MR_ERR_IO, "the listening socket has no address");
    http->address = mr_format(real.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", name, port);
    return MR_OK;
}

static void set_defaults(mr_http_options *o) {
    if (o->connections_max == 0) o->connections_max = 1024;
    if (o->connections_max > MR_MAX_HTTP_CONNECTIONS) o->connections_max = MR_MAX_HTTP_CONNECTIONS;
    if (o->head_timeout_ms == 0) o->head_timeout_ms = 20000;
    if (o->body_timeout_ms == 0) o->body_timeout_ms = 120000;
    if (o->idle_timeout_ms == 0) o->idle_timeout_ms = 75000;
    if (o->stall_timeout_ms == 0) o->stall_timeout_ms = 60000;
}

mr_status mr_http_open(mr_http **out, const mr_http_options *options, mr_err *err) {
    mr_http *http = mr_alloc(sizeof(*http));
    const struct timeval period = {.tv_usec = TICK_MS * 1000};
    *out = NULL;
    http->options = *options;
    set_defaults(&http->options);
    http->base = event_base_new();
    http->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (http->base && http->wake_fd >= 0) {
        http->wake_event =
            event_new(http->base, http->wake_fd, EV_READ | EV_PERSIST, on_wake, http);
        http->tick_event = event_new(http->base, -1, EV_PERSIST, on_tick, http);
    }
    mr_status status = MR_OK;
    if (!http->wake_event || !http->tick_event || event_add(http->wake_event, NULL) != 0 ||
        event_add(http->tick_event, &period) != 0)
        status = mr_fail(err, MR_ERR_IO, "no event loop for HTTP: %s", strerror(errno));
    if (status == MR_OK) status = bind_listener(http, err);
    if (status != MR_OK) {
        mr_http_close(http);
        return status;
    }
    *out = http;
    return MR_OK;
}

void mr_http_close(mr_http *http) {
    if (!http) return;
    mr_http_hang_up(http);
    free_closed(http);
    if (http->wake_event) event_free(http->wake_event);
    if (http->tick_event) event_free(http->tick_event);
    if (http->base) event_base_free(http->base);
    if (http->wake_fd >= 0) close(http->wake_fd);
    free(http->address);
    free(http);
}

const char *mr_http_address(const mr_http *http) {
    return http->address;
}

void mr_http_run(mr_http *http) {
    event_base_dispatch(http->base);
}

void mr_http_hang_up(mr_http *http) {
    if (http->listener) evconnlistener_free(http->listener);
    http->listener = NULL;
    while (http->first) lose(http->first);
    if (http->wake_event) event_del(http->wake_event);
    if (http->tick_event) event_del(http->tick_event);
    /* libevent closes the sockets of freed bufferevents on the loop's next round */
    if (http->base) event_base_loop(http->base, EVLOOP_NONBLOCK);
}

void mr_http_wake(mr_http *http) {
    const uint64_t one = 1;
    const ssize_t put = write(http->wake_fd, &one, sizeof(one));
    (void)put; /* full means that it is awake already */
}

void mr_http_stop(mr_http *http, bool now) {
    int wanted = now ? 2 : 1;
    if (wanted > atomic_load(&http->stop)) atomic_store(&http->stop, wanted);
    mr_http_wake(http);
}

uint32_t mr_http_connections(const mr_http *http) {
    return http->connections;
}
