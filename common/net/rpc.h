/* rpc.h - calls between processes: a thin layer over the C core of gRPC, which is included nowhere
 * else. Payloads are bytes; whoever calls packs and unpacks them.
 *
 * A server answers unary and server-streaming methods. A channel asks unary methods, and opens
 * streams in both directions. Both ends prove who they are by mutual TLS, whose files are read
 * again when they change; plain connections exist only where is_plain asks for them by name.
 *
 * Without gRPC (MR_HAVE_GRPC not defined) every open is refused with MR_ERR_UNSUPPORTED.
 *
 * Failures cross the wire as a gRPC status, one sentence, and our own status beside them, so that
 * two Memrack processes see the same mr_status; a foreign peer's status is mapped.
 *
 * Deadlines are readings of mr_now_ns(); MR_RPC_NO_DEADLINE waits for ever and is for streams only.
 * Threads: everything may be called from any thread unless said otherwise. fork() must come before
 * the first open of a process. */
#ifndef MR_NET_RPC_H
#define MR_NET_RPC_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MR_RPC_NO_DEADLINE INT64_MAX

enum {
    MR_RPC_MESSAGE_BYTES = 4 << 20,      /* largest message where no option says otherwise */
    MR_RPC_MESSAGE_BYTES_MAX = 64 << 20, /* largest that an option may say */
    MR_RPC_BACKLOG_BYTES = 1 << 20,      /* queued on one server stream: beyond, senders wait */
    MR_RPC_BACKLOG_MESSAGES = 256,
    MR_RPC_CALLS = 1024, /* open at a server, all clients together */
    MR_RPC_TARGETS = 16, /* of one channel */
    MR_RPC_NAMES = 64,   /* of one certificate */
};

/* Either all three files or is_plain; a client may leave out cert and key together (a server that
 * asks for a client certificate then refuses it). */
typedef struct {
    const char *ca_file, *cert_file, *key_file; /* PEM; borrowed for the call that takes them */
    bool is_plain;
} mr_rpc_security;

/* ---- server ---- */

typedef struct mr_rpc_server mr_rpc_server;
typedef struct mr_rpc_call mr_rpc_call; /* one call under way at a server */

/* Runs in a thread of the server and must not block for long; request is borrowed until it returns.
 * The handler, or whoever it passes the call to, ends it exactly once, with mr_rpc_answer or
 * mr_rpc_finish, whether or not the client is still there; the handle is gone with that. */
typedef void (*mr_rpc_handler)(void *context, mr_rpc_call *call, const uint8_t *request,
                               size_t bytes);

typedef struct {
    const char *path; /* "/package.Service/Method"; must live as long as the server */
    bool is_stream;   /* many answers to one request */
    mr_rpc_handler handle;
    void *context;
} mr_rpc_method;

typedef struct {
    const char *address; /* "host:port"; port 0 lets the system choose */
    mr_rpc_security security;
    const mr_rpc_method *methods; /* copied */
    size_t method_count;
    size_t message_bytes;  /* largest request; 0: MR_RPC_MESSAGE_BYTES */
    uint32_t threads;      /* 0: 2 */
    uint32_t calls;        /* 0: MR_RPC_CALLS; more are refused with MR_ERR_LIMIT */
    uint32_t keepalive_ms; /* a client silent for so long is probed, then dropped; 0: 10 s */
} mr_rpc_server_options;

mr_status mr_rpc_server_open(mr_rpc_server **out, const mr_rpc_server_options *options,
                             mr_err *err);
/* Ends all calls as cancelled. Handles still held stay valid until they are ended. */
void mr_rpc_server_close(mr_rpc_server *server); /* NULL is fine */
int mr_rpc_server_port(const mr_rpc_server *server);

/* Who asks, as the client's certificate says; without TLS only the address. Borrowed from call. */
typedef struct {
    const char *address;      /* "ipv4:127.0.0.1:4711" */
    bool is_verified;         /* by a certificate that our CA signed */
    const char *common_name;  /* "" without one */
    const char *const *names; /* [name_count] subject alternative names: DNS, URI, IP */
    size_t name_count;
} mr_rpc_peer;
mr_rpc_peer mr_rpc_call_peer(mr_rpc_call *call);
bool mr_rpc_peer_has_name(const mr_rpc_peer *peer, const char *name); /* common or alternative */

int64_t mr_rpc_call_deadline_ns(const mr_rpc_call *call); /* the client's; may be NO_DEADLINE */
bool mr_rpc_call_is_cancelled(mr_rpc_call *call);         /* client gone, late, or server closed */

/* From now on `notify` runs, in a thread of the server, when the client has left and when a full
 * backlog has room again. Never after the call was ended: ending waits for a running one, except
 * from within it. */
void mr_rpc_call_watch(mr_rpc_call *call, void (*notify)(void *context), void *context);

/* Unary methods: the one answer, which ends the call. */
void mr_rpc_answer(mr_rpc_call *call, const void *data, size_t bytes);
/* Streaming methods: one more answer; copied. Waits for room until the deadline; 0 never waits:
 * MR_ERR_AGAIN when there is none. MR_ERR_CANCELLED: the client is gone. */
mr_status mr_rpc_send(mr_rpc_call *call, const void *data, size_t bytes, int64_t deadline_ns,
                      mr_err *err);
/* Ends the call, after all that was sent: MR_OK for streams; err, or its text, may be empty. */
void mr_rpc_finish(mr_rpc_call *call, mr_status status, const mr_err *err);

/* ---- client ---- */

typedef struct mr_rpc_channel mr_rpc_channel;

typedef struct {
    const char *targets; /* "host:port" or "host:port,host:port,..": one is used, others stand by */
    mr_rpc_security security;
    const char *server_name; /* must be in the server's certificate; NULL: the target's host */
    size_t message_bytes;    /* largest answer and request; 0: MR_RPC_MESSAGE_BYTES */
    uint32_t keepalive_ms;   /* a server silent for so long in a call is probed; 0: 10 s */
    uint32_t connect_ms;     /* one attempt at one target; 0: 2 s */
    const char *header_name; /* sent with every call, lower case; NULL: none */
    const char *header_value;
} mr_rpc_channel_options;

/* Connects when it is first used. */
mr_status mr_rpc_channel_open(mr_rpc_channel **out, const mr_rpc_channel_options *options,
                              mr_err *err);
/* Every call under way, and every later one, ends with MR_ERR_CANCELLED. */
void mr_rpc_channel_cancel(mr_rpc_channel *channel);
/* After all calls have returned and all streams are closed. NULL is fine. */
void mr_rpc_channel_close(mr_rpc_channel *channel);
/* The next call uses the next target: for callers who find this one useless. */
void mr_rpc_channel_rotate(mr_rpc_channel *channel);
size_t mr_rpc_channel_target(mr_rpc_channel *channel); /* index of the one in use */

typedef struct {
    uint8_t *data; /* owned: free(); NULL on failure */
    size_t bytes;
    int code;      /* the gRPC status, for what mr_status does not tell apart */
    bool was_sent; /* false: the server cannot have seen the request */
} mr_rpc_reply;

/* Asks and waits. A target that cannot be reached is passed over for the next one as long as the
 * request was certainly not sent; beyond that a request is never repeated. When no target can be
 * reached it fails after connect_ms, not at once: one may be about to return. reply may be NULL. */
mr_status mr_rpc_ask(mr_rpc_channel *channel, const char *path, const void *request, size_t bytes,
                     int64_t deadline_ns, mr_rpc_reply *reply, mr_err *err);

typedef struct mr_rpc_stream mr_rpc_stream; /* one reader and one writer at a time */

/* Does not wait; deadline_ns is that of the whole stream. */
mr_status mr_rpc_stream_open(mr_rpc_stream **out, mr_rpc_channel *channel, const char *path,
                             int64_t deadline_ns, mr_err *err);
/* The first write waits for the connection, at most connect_ms: then MR_ERR_UNAVAILABLE.
 * MR_ERR_TIMEOUT: not written out yet; the same message must not be written again. */
mr_status mr_rpc_stream_write(mr_rpc_stream *stream, const void *data, size_t bytes,
                              int64_t deadline_ns, mr_err *err);
mr_status mr_rpc_stream_end_writes(mr_rpc_stream *stream, int64_t deadline_ns, mr_err *err);
/* *data is owned by the caller. MR_OK with *data NULL: the server ended the stream well.
 * MR_ERR_TIMEOUT: nothing came until the deadline of the read; read again, unless the stream's own
 * deadline has passed. Other failures are final. code (NULL: not wanted) as in mr_rpc_reply. */
mr_status mr_rpc_stream_read(mr_rpc_stream *stream, uint8_t **data, size_t *bytes,
                             int64_t deadline_ns, int *code, mr_err *err);
void mr_rpc_stream_cancel(mr_rpc_stream *stream); /* any thread, before close */
size_t mr_rpc_stream_target(const mr_rpc_stream *stream);
void mr_rpc_stream_close(mr_rpc_stream *stream); /* cancels what is under way; NULL is fine */

#endif
