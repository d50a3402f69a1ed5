/* control.h - the control service: orders to members and requests passed between coordinators, as C
 * structs over the rpc layer (rpc.h). The messages are those of proto/control.proto.
 *
 * Everything received is checked before a callback or a caller sees it: digests, ranges, counts,
 * texts, epochs. Memory for one message is bounded by its size.
 *
 * Who may do what: with TLS, both sides have a certificate of the cluster's authority. A
 * certificate that carries a name ROLE.ID ("coordinator.c0", as common name or DNS name) speaks for
 * that member only; "client.NAME" for an operator; one with none of these is trusted as any member.
 * Orders (join, load, unload) come from coordinators; drain from coordinators and operators;
 * session keys are given only over TLS and only to the member they are for. Plain connections
 * exist where they are asked for by name; there everybody may do everything but get keys.
 *
 * An order carries the epoch of the leader who gives it; one below the highest seen is refused with
 * MR_ERR_STALE. Epoch 0 is an operator's in a cluster without a leader.
 *
 * Without gRPC or protobuf-c every open is refused with MR_ERR_UNSUPPORTED.
 *
 * Threads: everything may be called from any thread unless said otherwise. */
#ifndef MR_NET_CONTROL_H
#define MR_NET_CONTROL_H
#include "common/net/rpc.h"
#include "common/net/view.h"

#include <stdatomic.h>
#include <stdio.h>

enum {
    MR_CONTROL_JOBS = 16,        /* loads, unloads and drains at a time */
    MR_CONTROL_PEERS = 64,       /* of a load */
    MR_CONTROL_COUNTERS = 256,   /* of a status */
    MR_CONTROL_TOKENS = 4 << 20, /* of one generation: prompts and answers so far */
    MR_CONTROL_STOP_IDS = 32,
    MR_CONTROL_LOGPROBS = 20,    /* alternatives of one token */
    MR_CONTROL_TEXT_BYTES = 256, /* "loading cells 3 to 5 from peer" */
    MR_CONTROL_KEY_BYTES = 32,
};

/* --- epochs of leaders ------------------------------------------------------------------------ */

/* Remembers the highest epoch; zero-initialised. Lock-free. */
typedef struct {
    atomic_ullong highest;
} mr_fence;
/* MR_ERR_STALE below the highest; else it is the highest now. */
mr_status mr_fence_check(mr_fence *fence, uint64_t epoch, mr_err *err);
uint64_t mr_fence_highest(const mr_fence *fence);

/* --- messages --------------------------------------------------------------------------------- */

/* A memshard loads cells beside what it has; a worker loads a stage of a group. */
typedef struct {
    uint64_t leader_epoch;
    const char *name; /* of the model */
    mr_digest digest;
    const char *source;
    uint32_t grid_rows, grid_columns;
    const uint32_t *cells; /* [cell_count] ascending, none twice; none: a worker's load */
    uint32_t cell_count;
    const char *group; /* "" for a memshard */
    uint32_t stage, stages;
    const char *const *peers; /* [peer_count] data addresses of replicas that hold the cells */
    uint32_t peer_count;
} mr_control_load_order;

typedef struct {
    uint64_t leader_epoch;
    mr_digest digest;
    const uint32_t *cells; /* ascending; none: all of the model */
    uint32_t cell_count;
} mr_control_unload_order;

typedef struct {
    uint32_t timeout_s; /* 0: the process's own */
    bool ends;          /* the process ends once drained */
} mr_drain_order;

typedef struct {
    char name[64]; /* as ids */
    double value;
} mr_control_counter;

typedef struct {
    uint64_t requests, bytes_held, map_epoch, degraded;
    double requests_per_s;
    uint32_t p50_us, p99_us;
    bool etcd_is_up;
    char transport[32]; /* "tcp", "shm", ..; may be empty */
    mr_control_counter counters[MR_CONTROL_COUNTERS];
    uint32_t counter_count;
} mr_control_status;

/* Adds a counter to a status; dropped where there is no room. */
static inline void mr_control_count(mr_control_status *status, const char *name, double value) {
    if (status->counter_count == MR_CONTROL_COUNTERS) return;
    mr_control_counter *c = &status->counters[status->counter_count++];
    snprintf(c->name, sizeof(c->name), "%s", name);
    c->value = value;
}

typedef struct {
    uint64_t key_id; /* 0: none; sessions are not keyed */
    uint8_t key[MR_CONTROL_KEY_BYTES];
    uint32_t valid_s;
    bool is_required;
} mr_control_key;

typedef enum { /* as mr_lost_policy of coordinator/request.h */
               MR_CONTROL_LOST_DEFAULT,
               MR_CONTROL_LOST_FAIL,
               MR_CONTROL_LOST_WAIT,
               MR_CONTROL_LOST_DEGRADE,
} mr_control_lost;

/* A request that goes on behind `generated`, and asks for what is not complete. */
typedef struct {
    const char *model;
    bool has_digest;
    mr_digest digest;      /* the version it began with */
    const int32_t *tokens; /* of all prompts, one after the other */
    size_t token_count;
    const uint32_t *prompt_tokens; /* [prompt_count], each >= 1 */
    uint32_t prompt_count, choices;
    const int32_t *generated; /* of all answers (prompt * choices + choice), one after the other */
    size_t generated_count;
    const uint32_t *generated_tokens; /* [prompt_count * choices]; NULL: none so far */
    const bool *is_complete;          /* the same; NULL: none is */
    uint32_t new_tokens;              /* most of an answer, those generated so far included */
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t seed;
    bool logprobs;
    uint32_t top_logprobs;
    int32_t stop_ids[MR_CONTROL_STOP_IDS];
    uint32_t stop_id_count;
    mr_control_lost lost;
    bool has_lost_wait;
    uint32_t lost_wait_ms;
    bool has_speculate;
    uint32_t speculate; /* most tokens drafted in a step */
} mr_generation;

/* One token of one answer; or the end of the whole, which is the last. */
typedef struct {
    bool is_end;
    uint32_t answer;
    int32_t token;    /* -1: only is_complete is said */
    bool is_complete; /* the answer ends with this token: nothing more of it is asked for */
    float logprob;
    uint32_t top_count;
    int32_t top_tokens[MR_CONTROL_LOGPROBS];
    float top_logprobs[MR_CONTROL_LOGPROBS];
    bool is_degraded;
    mr_status status; /* of the end; a failure's sentence with it */
    char sentence[MR_ERR_TEXT_BYTES];
} mr_generation_event;

/* --- serving ---------------------------------------------------------------------------------- */

typedef struct mr_control_server mr_control_server;
typedef struct mr_control_job mr_control_job;       /* a load, unload or drain under way */
typedef struct mr_control_stream mr_control_stream; /* a generation under way */

/* NULL callbacks are refused as MR_ERR_UNSUPPORTED. What a callback is given is borrowed until it
 * returns. */
typedef struct {
    /* Quick ones, in a thread of the rpc layer. */
    mr_status (*join)(void *context, const char *leader, uint64_t leader_epoch, mr_err *err);
    mr_member *(*describe)(void *context); /* our record, owned by the caller; of join and status */
    void (*status)(void *context, mr_control_status *out); /* zeroed before */
    mr_status (*session_key)(void *context, mr_role role, const char *id, mr_control_key *out,
                             mr_err *err);
    /* Long ones, each in a thread of its own. They return soon once mr_control_job_is_cancelled:
     * the one who ordered is gone, or the server closes. */
    mr_status (*load)(void *context, mr_control_job *job, const mr_control_load_order *order,
                      mr_err *err);
    mr_status (*unload)(void *context, mr_control_job *job, const mr_control_unload_order *order,
                        mr_err *err);
    mr_status (*drain)(void *context, mr_control_job *job, const mr_drain_order *order,
                       mr_err *err);
    /* Coordinators. In a thread of the rpc layer; must not wait. On MR_OK the stream is the
     * callee's until mr_control_stream_end; else it ends with the sentence. */
    mr_status (*generate)(void *context, mr_control_stream *stream, const mr_generation *request,
                          mr_err *err);
    void *context;
} mr_control_handlers;

typedef struct {
    const char *address; /* "host:port"; port 0: any */
    const char *cluster; /* a join for another one is refused */
    mr_rpc_security security;
    mr_control_handlers handlers;
} mr_control_server_options;

mr_status mr_control_server_open(mr_control_server **out, const mr_control_server_options *options,
                                 mr_err *err);
/* Cancels all jobs and waits until their callbacks have returned. Streams still held are ended by
 * their holders, before or after. */
void mr_control_server_close(mr_control_server *server); /* NULL is fine */
int mr_control_server_port(const mr_control_server *server);
uint64_t mr_control_server_leader_epoch(const mr_control_server *server); /* highest seen */

bool mr_control_job_is_cancelled(mr_control_job *job);
/* Tells a load's progress, 0 to 1; dropped where the leader does not read. The end is told by the
 * callback's return. */
void mr_control_job_progress(mr_control_job *job, const char *what, double fraction);

/* Copied; never waits: MR_ERR_AGAIN where the other coordinator does not keep up (watch tells when
 * it does again), MR_ERR_CANCELLED where it has left. */
mr_status mr_control_stream_send(mr_control_stream *stream, const mr_generation_event *event,
                                 mr_err *err);
bool mr_control_stream_is_cancelled(mr_control_stream *stream);
/* As mr_rpc_call_watch: when the other side has left, and when there is room again. */
void mr_control_stream_watch(mr_control_stream *stream, void (*notify)(void *context),
                             void *context);
/* The end: the event with is_end, and the stream is gone. Always delivered behind what was sent. */
void mr_control_stream_end(mr_control_stream *stream, mr_status status, bool is_degraded,
                           const mr_err *err);

/* --- asking ----------------------------------------------------------------------------------- */

/* A member's control service; connects when first used, and again when lost. */
typedef struct mr_control_client mr_control_client;

typedef struct {
    const char *address; /* "host:port" */
    mr_rpc_security security;
    mr_role role; /* with id: the server's certificate must carry ROLE.ID; 0: the host's name */
    const char *id;
} mr_control_client_options;

mr_status mr_control_client_open(mr_control_client **out, const mr_control_client_options *options,
                                 mr_err *err);
void mr_control_client_cancel(mr_control_client *client); /* all calls, now and later */
void mr_control_client_close(mr_control_client *client);  /* no call under way; NULL is fine */

/* All of them wait, until the deadline at most. *member (NULL: not wanted) is owned. */
mr_status mr_control_join(mr_control_client *client, const char *cluster, const char *leader,
                          uint64_t leader_epoch, mr_member **member, int64_t deadline_ns,
                          mr_err *err);
/* Returns when the load is ready. progress (NULL: not wanted) runs in this thread; false stops
 * asking, with MR_ERR_CANCELLED. silence_ms: so long without any progress is a failure; 0: never
 * before the deadline. Servers send something at least every second. */
typedef bool (*mr_load_progress)(void *context, const char *what, double fraction);
mr_status mr_control_load(mr_control_client *client, const mr_control_load_order *order,
                          mr_load_progress progress, void *context, uint32_t silence_ms,
                          int64_t deadline_ns, mr_err *err);
mr_status mr_control_unload(mr_control_client *client, const mr_control_unload_order *order,
                            int64_t deadline_ns, mr_err *err);
mr_status mr_control_drain(mr_control_client *client, const mr_drain_order *order,
                           int64_t deadline_ns, mr_err *err);
mr_status mr_control_look(mr_control_client *client, mr_control_status *out, mr_member **member,
                          int64_t deadline_ns, mr_err *err);
mr_status mr_control_session_key(mr_control_client *client, mr_role role, const char *id,
                                 mr_control_key *out, int64_t deadline_ns, mr_err *err);

/* A generation at another coordinator. One thread reads. */
typedef struct mr_control_reader mr_control_reader;
/* deadline_ns: for sending the request; the generation itself has none. */
mr_status mr_control_generate(mr_control_reader **out, mr_control_client *client,
                              const mr_generation *request, int64_t deadline_ns, mr_err *err);
/* MR_OK: an event; after the one with is_end nothing more is read. MR_ERR_TIMEOUT: nothing until
 * the deadline: read again. Others: the stream is lost. */
mr_status mr_control_read(mr_control_reader *reader, mr_generation_event *event,
                          int64_t deadline_ns, mr_err *err);
void mr_control_reader_cancel(mr_control_reader *reader); /* any thread, before close */
void mr_control_reader_close(mr_control_reader *reader);  /* NULL is fine */

#endif
