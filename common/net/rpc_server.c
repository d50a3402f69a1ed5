/* rpc_server.c - the answering side: one completion queue, a few threads that wait on it.
 *
 * A call is shared by the library (tags under way), the handler (its handle) and the server; the
 * last one frees it. Its mutex guards everything in it that changes. Answers may come from any
 * thread: they start a batch at once, or wait in the call's bounded queue, since the library takes
 * one message of a call at a time; its completion is the credit for the next.
 *
 * Closing: after the server has been shut down no batch may start on its queue. `gate` is held for
 * reading around every start and for writing by close. */
#include "common/net/rpc_impl.h"

#ifdef MR_HAVE_GRPC
#include "common/base/log.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REQUESTED_OF_METHOD = 8,
    REQUESTED_UNKNOWN = 2,
    THREADS_MAX = 16,
    METADATA_BYTES = 16 << 10
};

typedef enum { TAG_NEW, TAG_UNKNOWN, TAG_CLOSE, TAG_SEND, TAG_STATUS, TAG_SHUTDOWN } tag_kind;

/* call is atomic so that kind, written before it, is seen by whoever gets the tag back: gRPC passes
 * both on in order, but a tool that looks at our code only cannot know. */
typedef struct {
    tag_kind kind;
    mr_rpc_call *_Atomic call;
} tag;

typedef struct {
    mr_rpc_method method;
    void *registered;
} method_entry;

struct mr_rpc_server {
    grpc_server *server;
    grpc_completion_queue *queue;
    mr_rpc_files files;
    pthread_mutex_t files_lock; /* guards files: handshakes come from several threads */
    method_entry *methods;
    size_t method_count, message_bytes;
    pthread_t threads[THREADS_MAX];
    uint32_t thread_count, calls_max;
    int port;
    pthread_rwlock_t gate; /* guards is_closed against starting batches */
    bool is_closed;
    atomic_uint calls, refs; /* refs: calls, and the opener */
};

typedef struct message {
    struct message *next;
    grpc_byte_buffer *buffer;
    size_t bytes;
} message;

struct mr_rpc_call {
    mr_rpc_server *server;
    const mr_rpc_method *method; /* NULL: an unknown one */
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata, trailing;
    gpr_timespec deadline;
    grpc_byte_buffer *request;
    tag new_tag, close_tag, send_tag, status_tag;
    int was_cancelled; /* written by the library before close_tag comes */
    bool is_counted;
    atomic_uint refs;

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    bool is_cancelled, has_begun, is_sending, is_ended, is_full, is_notifying;
    pthread_t notifier;
    void (*notify)(void *context);
    void *notify_context;
    message *first, **last;
    size_t queued_bytes, queued_messages;
    grpc_status_code final_code;
    mr_status final_status;
    grpc_slice final_details;
    grpc_metadata final_own;

    char *address, *common_name; /* of the peer, once asked for; by the handle's holder only */
    char **names;
    size_t name_count;
    bool is_verified, is_peer_known;
};

/* ---- calls ---- */

static mr_rpc_call *new_call(mr_rpc_server *server, const mr_rpc_method *method, tag_kind kind) {
    mr_rpc_call *call = mr_alloc(sizeof(*call));
    pthread_condattr_t clock;

    call->server = server;
    call->method = method;
    const tag_kind kinds[4] = {kind, TAG_CLOSE, TAG_SEND, TAG_STATUS};
    tag *const tags[4] = {&call->new_tag, &call->close_tag, &call->send_tag, &call->status_tag};
    for (int i = 0; i < 4; i++) {
        tags[i]->kind = kinds[i];
        atomic_store(&tags[i]->call, call);
    }
    call->last = &call->first;
    call->final_details = grpc_empty_slice();
    grpc_metadata_array_init(&call->metadata);
    grpc_call_details_init(&call->details);
    pthread_mutex_init(&call->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&call->changed, &clock);
    pthread_condattr_destroy(&clock);
    atomic_init(&call->refs, 1);
    atomic_fetch_add(&server->refs, 1);
    return call;
}

static void release_server(mr_rpc_server *server) {
    if (atomic_fetch_sub(&server->refs, 1) != 1) return;
    mr_rpc_files_close(&server->files);
    pthread_mutex_destroy(&server->files_lock);
    pthread_rwlock_destroy(&server->gate);
    free(server->methods);
    free(server);
    mr_rpc_library_close();
}

static void drop_messages(mr_rpc_call *call) {
    while (call->first != NULL) {
        message *gone = call->first;
        call->first = gone->next;
        grpc_byte_buffer_destroy(gone->buffer);
        free(gone);
    }
    call->last = &call->first;
    call->queued_bytes = call->queued_messages = 0;
}

static void release_call(mr_rpc_call *call) {
    mr_rpc_server *server = call->server;

    if (atomic_fetch_sub(&call->refs, 1) != 1) return;
    drop_messages(call);
    if (call->request != NULL) grpc_byte_buffer_destroy(call->request);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    grpc_slice_unref(call->final_details);
    if (call->call != NULL) grpc_call_unref(call->call);
    pthread_mutex_destroy(&call->lock);
    pthread_cond_destroy(&call->changed);
    for (size_t i = 0; i < call->name_count; i++) free(call->names[i]);
    free(call->names);
    free(call->common_name);
    gpr_free(call->address);
    if (call->is_counted) atomic_fetch_sub(&server->calls, 1);
    free(call);
    release_server(server);
}

/* Starts a batch that ends with `end`. False: the server is closed. */
static bool start(mr_rpc_call *call, const grpc_op *ops, size_t count, tag *end) {
    mr_rpc_server *server = call->server;
    bool is_started = false;

    pthread_rwlock_rdlock(&server->gate);
    if (!server->is_closed) {
        atomic_fetch_add(&call->refs, 1);
        is_started = grpc_call_start_batch(call->call, ops, count, end, NULL) == GRPC_CALL_OK;
        if (!is_started) atomic_fetch_sub(&call->refs, 1); /* the caller still holds one */
    }
    pthread_rwlock_unlock(&server->gate);
    return is_started;
}

static void request_more(mr_rpc_server *server, method_entry *entry) {
    mr_rpc_call *call =
        new_call(server, entry != NULL ? &entry->method : NULL, entry ? TAG_NEW : TAG_UNKNOWN);
    grpc_call_error error = GRPC_CALL_ERROR;

    atomic_fetch_add(&call->refs, 0); /* see serve() */
    pthread_rwlock_rdlock(&server->gate);
    if (!server->is_closed && entry != NULL)
        error = grpc_server_request_registered_call(
            server->server, entry->registered, &call->call, &call->deadline, &call->metadata,
            &call->request, server->queue, server->queue, &call->new_tag);
    else if (!server->is_closed)
        error =
            grpc_server_request_call(server->server, &call->call, &call->details, &call->metadata,
                                     server->queue, server->queue, &call->new_tag);
    pthread_rwlock_unlock(&server->gate);
    if (error != GRPC_CALL_OK) release_call(call);
}

/* ---- answering; all of these hold call->lock ---- */

static size_t begin_ops(mr_rpc_call *call, grpc_op *ops) {
    if (call->has_begun) return 0;
    call->has_begun = true;
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    return 1;
}

static void start_status(mr_rpc_call *call) {
    grpc_op ops[2] = {{0}};
    char own[8];

    if (call->is_cancelled) return;
    size_t count = begin_ops(call, ops);
    snprintf(own, sizeof(own), "%d", (int)call->final_status);
    call->final_own.key = grpc_slice_from_static_string(MR_RPC_STATUS_KEY);
    call->final_own.value = grpc_slice_from_copied_string(own);
    ops[count].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[count].data.send_status_from_server.status = call->final_code;
    ops[count].data.send_status_from_server.status_details = &call->final_details;
    if (call->final_status != MR_OK) {
        ops[count].data.send_status_from_server.trailing_metadata_count = 1;
        ops[count].data.send_status_from_server.trailing_metadata = &call->final_own;
    }
    start(call, ops, count + 1, &call->status_tag);
    grpc_slice_unref(call->final_own.value);
}

/* Sends what is first in the queue, or the final status behind the last. */
static void pump(mr_rpc_call *call) {
    grpc_op ops[2] = {{0}};

    if (call->is_sending) return;
    if (call->is_cancelled) {
        drop_messages(call);
        return;
    }
    if (call->first == NULL) {
        if (call->is_ended) start_status(call);
        return;
    }
    message *next = call->first;
    size_t count = begin_ops(call, ops);
    ops[count].op = GRPC_OP_SEND_MESSAGE;
    ops[count].data.send_message.send_message = next->buffer;
    call->is_sending = start(call, ops, count + 1, &call->send_tag);
    if (!call->is_sending) call->is_cancelled = true;
    call->first = next->next;
    if (call->first == NULL) call->last = &call->first;
    call->queued_bytes -= next->bytes;
    call->queued_messages--;
    grpc_byte_buffer_destroy(next->buffer); /* the batch has its own reference */
    free(next);
}

static void enqueue(mr_rpc_call *call, const void *data, size_t bytes) {
    message *added = mr_alloc(sizeof(*added));
    added->buffer = mr_rpc_pack(data, bytes);
    added->bytes = bytes;
    *call->last = added;
    call->last = &added->next;
    call->queued_bytes += bytes;
    call->queued_messages++;
}

static bool is_backlog_full(const mr_rpc_call *call, size_t bytes) {
    return call->queued_messages > 0 && (call->queued_messages >= MR_RPC_BACKLOG_MESSAGES ||
                                         call->queued_bytes + bytes > MR_RPC_BACKLOG_BYTES);
}

/* Wakes senders and runs the callback, outside the lock. */
static void tell(mr_rpc_call *call) {
    pthread_cond_broadcast(&call->changed);
    if (call->notify == NULL || call->is_ended) return;
    while (call->is_notifying) { /* by another thread of the server: one at a time */
        pthread_cond_wait(&call->changed, &call->lock);
        if (call->notify == NULL || call->is_ended) return;
    }
    call->is_notifying = true;
    call->notifier = pthread_self();
    void (*notify)(void *) = call->notify;
    void *context = call->notify_context;
    pthread_mutex_unlock(&call->lock);
    notify(context);
    pthread_mutex_lock(&call->lock);
    call->is_notifying = false;
    pthread_cond_broadcast(&call->changed);
}

/* Ends the call for its holder. */
static void end_call(mr_rpc_call *call, mr_status status, const char *sentence) {
    pthread_mutex_lock(&call->lock);
    assert(!call->is_ended);
    call->is_ended = true;
    call->final_status = status;
    call->final_code = mr_rpc_code_of(status);
    call->final_details = grpc_slice_from_copied_string(sentence);
    pump(call);
    pthread_cond_broadcast(&call->changed);
    while (call->is_notifying && !pthread_equal(call->notifier, pthread_self()))
        pthread_cond_wait(&call->changed, &call->lock);
    pthread_mutex_unlock(&call->lock);
    release_call(call);
}

void mr_rpc_finish(mr_rpc_call *call, mr_status status, const mr_err *err) {
    end_call(call, status, status != MR_OK && err != NULL ? err->text : "");
}

void mr_rpc_answer(mr_rpc_call *call, const void *data, size_t bytes) {
    pthread_mutex_lock(&call->lock);
    enqueue(call, data, bytes);
    pthread_mutex_unlock(&call->lock);
    end_call(call, MR_OK, "");
}

mr_status mr_rpc_send(mr_rpc_call *call, const void *data, size_t bytes, int64_t deadline_ns,
                      mr_err *err) {
    mr_status status = MR_OK;
    const struct timespec until = {deadline_ns / 1000000000, deadline_ns % 1000000000};

    if (bytes > call->server->message_bytes)
        return mr_fail(err, MR_ERR_LIMIT, "an answer of %zu bytes, at most %zu", bytes,
                       call->server->message_bytes);
    pthread_mutex_lock(&call->lock);
    while (!call->is_cancelled && is_backlog_full(call, bytes) && status == MR_OK) {
        call->is_full = true;
        if (deadline_ns == 0)
            status = mr_fail(err, MR_ERR_AGAIN, "the client has not read what was sent before");
        else if (pthread_cond_timedwait(&call->changed, &call->lock, &until) != 0)
            status = mr_fail(err, MR_ERR_TIMEOUT, "the client did not read on in time");
    }
    if (call->is_cancelled) status = mr_fail(err, MR_ERR_CANCELLED, "the client has gone");
    if (status == MR_OK) {
        enqueue(call, data, bytes);
        pump(call);
    }
    pthread_mutex_unlock(&call->lock);
    return status;
}

void mr_rpc_call_watch(mr_rpc_call *call, void (*notify)(void *context), void *context) {
    pthread_mutex_lock(&call->lock);
    call->notify = notify;
    call->notify_context = context;
    if (call->is_cancelled) tell(call); /* it left before anybody asked */
    pthread_mutex_unlock(&call->lock);
}

bool mr_rpc_call_is_cancelled(mr_rpc_call *call) {
    pthread_mutex_lock(&call->lock);
    const bool is_cancelled = call->is_cancelled;
    pthread_mutex_unlock(&call->lock);
    return is_cancelled;
}

int64_t mr_rpc_call_deadline_ns(const mr_rpc_call *call) {
    const gpr_timespec now = gpr_now(GPR_CLOCK_MONOTONIC);
    const gpr_timespec end = gpr_convert_clock_type(call->deadline, GPR_CLOCK_MONOTONIC);
    if (gpr_time_cmp(end, gpr_inf_future(GPR_CLOCK_MONOTONIC)) == 0) return MR_RPC_NO_DEADLINE;
    const gpr_timespec left = gpr_time_sub(end, now);
    if (left.tv_sec > 86400 * 3650ll) return MR_RPC_NO_DEADLINE;
    return mr_now_ns() + left.tv_sec * 1000000000 + left.tv_nsec;
}

/* ---- the peer ---- */

static void add_names(mr_rpc_call *call, const grpc_auth_context *auth, const char *property) {
    grpc_auth_property_iterator all = grpc_auth_context_find_properties_by_name(auth, property);
    const grpc_auth_property *one;
    while ((one = grpc_auth_property_iterator_next(&all)) != NULL &&
           call->name_count < MR_RPC_NAMES)
        call->names[call->name_count++] = mr_strndup(one->value, one->value_length);
}

mr_rpc_peer mr_rpc_call_peer(mr_rpc_call *call) {
    if (!call->is_peer_known) {
        grpc_auth_context *auth = grpc_call_auth_context(call->call);
        call->is_peer_known = true;
        call->address = grpc_call_get_peer(call->call);
        call->names = mr_alloc_array(MR_RPC_NAMES, sizeof(char *));
        if (auth != NULL && grpc_auth_context_peer_is_authenticated(auth)) {
            call->is_verified = true;
            add_names(call, auth, GRPC_X509_CN_PROPERTY_NAME);
            if (call->name_count > 0) call->common_name = call->names[--call->name_count];
            add_names(call, auth, GRPC_X509_SAN_PROPERTY_NAME);
        }
        if (auth != NULL) grpc_auth_context_release(auth);
    }
    return (mr_rpc_peer){.address = call->address,
                         .is_verified = call->is_verified,
                         .common_name = call->common_name != NULL ? call->common_name : "",
                         .names = (const char *const *)call->names,
                         .name_count = call->name_count};
}

bool mr_rpc_peer_has_name(const mr_rpc_peer *peer, const char *name) {
    if (!peer->is_verified || name[0] == 0) return false;
    if (strcmp(peer->common_name, name) == 0) return true;
    for (size_t i = 0; i < peer->name_count; i++)
        if (strcmp(peer->names[i], name) == 0) return true;
    return false;
}

/* ---- the threads ---- */

static void watch_close(mr_rpc_call *call) {
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &call->was_cancelled;
    start(call, &op, 1, &call->close_tag);
}

static void refuse(mr_rpc_call *call, mr_status status, const char *sentence) {
    mr_err err = {{0}};
    mr_fail(&err, status, "%s", sentence);
    mr_rpc_finish(call, status, &err);
}

static void begin_call(mr_rpc_call *call) {
    mr_rpc_server *server = call->server;
    size_t bytes;

    call->is_counted = true;
    const unsigned open = atomic_fetch_add(&server->calls, 1);
    watch_close(call);
    if (call->method == NULL) {
        refuse(call, MR_ERR_UNSUPPORTED, "this server has no such method");
        return;
    }
    if (open >= server->calls_max) {
        refuse(call, MR_ERR_LIMIT, "too many calls are open at this server");
        return;
    }
    if (call->request == NULL) {
        refuse(call, MR_ERR_FORMAT, "a call without a request");
        return;
    }
    uint8_t *request = mr_rpc_unpack(call->request, &bytes);
    grpc_byte_buffer_destroy(call->request);
    call->request = NULL;
    if (request == NULL) {
        refuse(call, MR_ERR_UNSUPPORTED, "the request is compressed");
        return;
    }
    call->method->handle(call->method->context, call, request, bytes);
    free(request);
}

static void sent(mr_rpc_call *call, bool is_good) {
    pthread_mutex_lock(&call->lock);
    call->is_sending = false;
    if (!is_good) call->is_cancelled = true;
    pump(call);
    const bool has_room = call->queued_messages <= MR_RPC_BACKLOG_MESSAGES / 2 &&
                          call->queued_bytes <= MR_RPC_BACKLOG_BYTES / 2;
    if (call->is_full && (has_room || call->is_cancelled)) {
        call->is_full = false;
        tell(call);
    }
    pthread_mutex_unlock(&call->lock);
}

static void closed(mr_rpc_call *call) {
    pthread_mutex_lock(&call->lock);
    if (call->was_cancelled != 0 || !call->is_ended) {
        call->is_cancelled = true;
        pump(call);
        tell(call);
    }
    pthread_mutex_unlock(&call->lock);
}

static void *serve(void *context) {
    mr_rpc_server *server = context;
    for (;;) {
        const grpc_event event =
            grpc_completion_queue_next(server->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        tag *of = event.tag;
        mr_rpc_call *call = atomic_load(&of->call);
        /* What was written before the batch began: pairs with start() and request_more(). */
        if (call) (void)atomic_load(&call->refs);
        if (of->kind == TAG_NEW || of->kind == TAG_UNKNOWN) {
            if (event.success == 0) {
                release_call(call);
                continue;
            }
            if (call->method == NULL) call->deadline = call->details.deadline;
            method_entry *entry = NULL;
            for (size_t i = 0; i < server->method_count; i++)
                if (&server->methods[i].method == call->method) entry = &server->methods[i];
            request_more(server, entry);
            begin_call(call); /* passes the first reference on to the handler */
        } else if (of->kind == TAG_CLOSE) {
            closed(call);
            release_call(call);
        } else if (of->kind == TAG_SEND) {
            sent(call, event.success != 0);
            release_call(call);
        } else if (of->kind == TAG_STATUS) {
            release_call(call);
        } else { /* all calls have ended as far as the library goes */
            pthread_rwlock_wrlock(&server->gate);
            server->is_closed = true;
            pthread_rwlock_unlock(&server->gate);
            grpc_completion_queue_shutdown(server->queue);
        }
    }
}

/* ---- opening and closing ---- */

static grpc_ssl_server_certificate_config *make_config(const mr_rpc_files *files) {
    const grpc_ssl_pem_key_cert_pair pair = {files->key, files->cert};
    return grpc_ssl_server_certificate_config_create(files->ca, &pair, 1);
}

/* Called by the library at every handshake, the first time when the port is opened. */
static grpc_ssl_certificate_config_reload_status
fetch_config(void *context, grpc_ssl_server_certificate_config **config) {
    mr_rpc_server *server = context;
    grpc_ssl_certificate_config_reload_status status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;

    pthread_mutex_lock(&server->files_lock);
    const bool is_first = server->port == 0;
    if (mr_rpc_files_renew(&server->files) || is_first) {
        *config = make_config(&server->files);
        status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
    }
    pthread_mutex_unlock(&server->files_lock);
    return status;
}

static grpc_server_credentials *make_credentials(mr_rpc_server *server) {
    if (server->files.is_plain) return grpc_insecure_server_credentials_create();
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, fetch_config, server));
}

static grpc_server *make_server(const mr_rpc_server *server, uint32_t keepalive_ms) {
    grpc_resource_quota *quota = grpc_resource_quota_create("memrack rpc server");
    const int message_bytes = (int)server->message_bytes;
    grpc_arg args[] = {
        INTEGER_ARG(GRPC_ARG_ALLOW_REUSEPORT, 0),
        INTEGER_ARG(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        INTEGER_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, message_bytes),
        INTEGER_ARG(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, message_bytes),
        INTEGER_ARG(GRPC_ARG_MAX_METADATA_SIZE, METADATA_BYTES),
        INTEGER_ARG(GRPC_ARG_MAX_CONCURRENT_STREAMS, (int)server->calls_max),
        INTEGER_ARG(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000),
        INTEGER_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, (int)keepalive_ms),
        INTEGER_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, (int)keepalive_ms / 2),
        INTEGER_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        INTEGER_ARG(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 200),
        INTEGER_ARG(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        INTEGER_ARG(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        {.type = GRPC_ARG_POINTER,
         .key = (char *)GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {quota, grpc_resource_quota_arg_vtable()}},
    };
    const grpc_channel_args all = {sizeof(args) / sizeof(args[0]), args};

    grpc_resource_quota_resize(quota, 4 * server->message_bytes + (64 << 20));
    grpc_server *made = grpc_server_create(&all, NULL);
    grpc_resource_quota_unref(quota);
    return made;
}

static mr_status check_options(const mr_rpc_server_options *options, mr_err *err) {
    if (options->message_bytes > MR_RPC_MESSAGE_BYTES_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "messages of %zu bytes, at most %d",
                       options->message_bytes, MR_RPC_MESSAGE_BYTES_MAX);
    if (options->threads > THREADS_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "%u rpc threads, at most %d", options->threads,
                       THREADS_MAX);
    if (options->keepalive_ms > 3600 * 1000)
        return mr_fail(err, MR_ERR_LIMIT, "a keepalive of %u ms is more than an hour",
                       options->keepalive_ms);
    return MR_OK;
}

static mr_status listen_on(mr_rpc_server *server, const char *address, mr_err *err) {
    grpc_server_credentials *credentials = make_credentials(server);
    const int port = grpc_server_add_http2_port(server->server, address, credentials);

    grpc_server_credentials_release(credentials);
    if (port == 0)
        return mr_fail(err, MR_ERR_IO, "cannot listen on %s: no such address, or it is in use",
                       address);
    pthread_mutex_lock(&server->files_lock);
    server->port = port;
    pthread_mutex_unlock(&server->files_lock);
    return MR_OK;
}

mr_status mr_rpc_server_open(mr_rpc_server **out, const mr_rpc_server_options *options,
                             mr_err *err) {
    mr_rpc_files files;
    *out = NULL;
    mr_status status = check_options(options, err);
    if (status == MR_OK) status = mr_rpc_files_open(&files, &options->security, true, err);
    if (status != MR_OK) return status;

    mr_rpc_server *server = mr_alloc(sizeof(*server));
    mr_rpc_library_open();
    atomic_init(&server->refs, 1);
    server->files = files;
    pthread_mutex_init(&server->files_lock, NULL);
    pthread_rwlock_init(&server->gate, NULL);
    server->message_bytes = options->message_bytes ? options->message_bytes : MR_RPC_MESSAGE_BYTES;
    server->calls_max = options->calls ? options->calls : MR_RPC_CALLS;
    server->queue = grpc_completion_queue_create_for_next(NULL);
    server->server = make_server(server, options->keepalive_ms ? options->keepalive_ms : 10000);
    grpc_server_register_completion_queue(server->server, server->queue, NULL);
    server->method_count = options->method_count;
    server->methods = mr_alloc_array(options->method_count + 1, sizeof(*server->methods));
    for (size_t i = 0; i < options->method_count; i++) {
        server->methods[i].method = options->methods[i];
        server->methods[i].registered =
            grpc_server_register_method(server->server, options->methods[i].path, NULL,
                                        GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
        assert(server->methods[i].registered != NULL); /* a path given twice */
    }
    status = listen_on(server, options->address, err);
    if (status == MR_OK) {
        grpc_server_start(server->server);
        for (size_t i = 0; i < server->method_count; i++)
            for (int k = 0; k < REQUESTED_OF_METHOD; k++) request_more(server, &server->methods[i]);
        for (int k = 0; k < REQUESTED_UNKNOWN; k++) request_more(server, NULL);
    }
    server->thread_count = options->threads ? options->threads : 2;
    for (uint32_t i = 0; i < server->thread_count; i++)
        if (pthread_create(&server->threads[i], NULL, serve, server) != 0) abort();
    if (status != MR_OK) {
        mr_rpc_server_close(server);
        return status;
    }
    *out = server;
    return MR_OK;
}

void mr_rpc_server_close(mr_rpc_server *server) {
    if (server == NULL) return;
    tag shutdown = {TAG_SHUTDOWN, NULL};

    grpc_server_shutdown_and_notify(server->server, server->queue, &shutdown);
    grpc_server_cancel_all_calls(server->server);
    for (uint32_t i = 0; i < server->thread_count; i++) pthread_join(server->threads[i], NULL);
    grpc_server_destroy(server->server);
    grpc_completion_queue_destroy(server->queue);
    release_server(server);
}

int mr_rpc_server_port(const mr_rpc_server *server) {
    return server->port;
}

#else
typedef int mr_rpc_server_is_not_built;
#endif
