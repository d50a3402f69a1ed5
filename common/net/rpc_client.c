/* rpc_client.c - the asking side: channels over one or several targets, blocking calls, streams.
 *
 * There is no thread in here: every call has a completion queue of its own, and whoever waits on it
 * drives the library. A call first sends its headers alone. Only when these are on the wire does
 * the request follow, so that "the server cannot have seen it" is known and not guessed: such a
 * request may go to the next target, any other may not. */
#include "common/net/rpc_impl.h"

#ifdef MR_HAVE_GRPC
#include "common/base/log.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { RENEW_EVERY_MS = 1000, NS_OF_MS = 1000000 };

/* One call under way, linked into its channel so that it can be cancelled. */
typedef struct active {
    struct active *next, **link;
    grpc_call *call;
} active;

struct mr_rpc_channel {
    char *names[MR_RPC_TARGETS];
    size_t count, message_bytes;
    uint32_t keepalive_ms, connect_ms;
    char *server_name, *header_name, *header_value;
    pthread_mutex_t lock; /* guards all below, and starting and ending calls */
    grpc_channel *channels[MR_RPC_TARGETS];
    mr_rpc_files files;
    int64_t renew_at_ns;
    size_t current;
    bool is_cancelled;
    active *calls;
};

/* ---- channels ---- */

static grpc_channel_credentials *make_credentials(const mr_rpc_files *files) {
    const grpc_ssl_pem_key_cert_pair pair = {files->key, files->cert};
    if (files->is_plain) return grpc_insecure_credentials_create();
    /* the library asserts on an empty pair, and copies a given one */
    return grpc_ssl_credentials_create_ex(
        files->ca, files->cert != NULL ? (grpc_ssl_pem_key_cert_pair *)&pair : NULL, NULL, NULL);
}

static grpc_channel *make_channel(const mr_rpc_channel *channel, const char *target) {
    grpc_arg args[] = {
        INTEGER_ARG(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        INTEGER_ARG(GRPC_ARG_ENABLE_RETRIES, 0),
        INTEGER_ARG(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        INTEGER_ARG(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        INTEGER_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)channel->message_bytes),
        INTEGER_ARG(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, (int)channel->message_bytes),
        INTEGER_ARG(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10),
        INTEGER_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, (int)channel->keepalive_ms),
        INTEGER_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, (int)channel->keepalive_ms / 2),
        INTEGER_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0),
        INTEGER_ARG(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        INTEGER_ARG(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        INTEGER_ARG(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, (int)channel->connect_ms),
        INTEGER_ARG(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000),
        INTEGER_ARG(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        {.type = GRPC_ARG_STRING,
         .key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
         .value.string = channel->server_name},
    };
    const size_t count = sizeof(args) / sizeof(args[0]) - (channel->server_name == NULL);
    const grpc_channel_args all = {count, args};
    grpc_channel_credentials *credentials = make_credentials(&channel->files);
    grpc_channel *made = grpc_channel_create(target, credentials, &all);

    grpc_channel_credentials_release(credentials);
    return made;
}

static bool is_target(const char *text) {
    const char *colon = strrchr(text, ':');
    if (colon == NULL || colon == text || strlen(text) > 300) return false;
    if (strpbrk(text, "/ \t\r\n%?#@") != NULL) return false;
    char *end;
    const long port = strtol(colon + 1, &end, 10);
    return end != colon + 1 && *end == 0 && colon[1] != '+' && port > 0 && port < 65536;
}

static mr_status split_targets(mr_rpc_channel *channel, const char *targets, mr_err *err) {
    for (const char *at = targets; *at != 0;) {
        const size_t bytes = strcspn(at, ",");
        char *one = mr_strndup(at, bytes);
        if (!is_target(one) || channel->count == MR_RPC_TARGETS) {
            const mr_status status =
                channel->count == MR_RPC_TARGETS
                    ? mr_fail(err, MR_ERR_LIMIT, "more than %d targets", MR_RPC_TARGETS)
                    : mr_fail(err, MR_ERR_ARGUMENT, "\"%s\" is not HOST:PORT", one);
            free(one);
            return status;
        }
        channel->names[channel->count++] = one;
        at += bytes;
        at += *at == ',';
    }
    if (channel->count == 0) return mr_fail(err, MR_ERR_ARGUMENT, "no target is given");
    return MR_OK;
}

mr_status mr_rpc_channel_open(mr_rpc_channel **out, const mr_rpc_channel_options *options,
                              mr_err *err) {
    mr_rpc_channel *channel = mr_alloc(sizeof(*channel));

    *out = NULL;
    mr_rpc_library_open();
    pthread_mutex_init(&channel->lock, NULL);
    channel->message_bytes = options->message_bytes ? options->message_bytes : MR_RPC_MESSAGE_BYTES;
    channel->keepalive_ms = options->keepalive_ms ? options->keepalive_ms : 10000;
    channel->connect_ms = options->connect_ms ? options->connect_ms : 2000;
    if (options->server_name != NULL) channel->server_name = mr_strdup(options->server_name);
    if (options->header_name != NULL) {
        channel->header_name = mr_strdup(options->header_name);
        channel->header_value = mr_strdup(options->header_value);
    }
    mr_status status = split_targets(channel, options->targets, err);
    if (status == MR_OK && channel->message_bytes > MR_RPC_MESSAGE_BYTES_MAX)
        status = mr_fail(err, MR_ERR_LIMIT, "messages of %zu bytes, at most %d",
                         channel->message_bytes, MR_RPC_MESSAGE_BYTES_MAX);
    if (status == MR_OK)
        status = mr_rpc_files_open(&channel->files, &options->security, false, err);
    if (status != MR_OK) {
        mr_rpc_channel_close(channel);
        return status;
    }
    channel->renew_at_ns = mr_now_ns() + (int64_t)RENEW_EVERY_MS * NS_OF_MS;
    *out = channel;
    return MR_OK;
}

void mr_rpc_channel_close(mr_rpc_channel *channel) {
    if (channel == NULL) return;
    assert(channel->calls == NULL);
    for (size_t i = 0; i < channel->count; i++) {
        if (channel->channels[i] != NULL) grpc_channel_destroy(channel->channels[i]);
        free(channel->names[i]);
    }
    mr_rpc_files_close(&channel->files);
    pthread_mutex_destroy(&channel->lock);
    free(channel->server_name);
    free(channel->header_name);
    free(channel->header_value);
    free(channel);
    mr_rpc_library_close();
}

void mr_rpc_channel_cancel(mr_rpc_channel *channel) {
    pthread_mutex_lock(&channel->lock);
    channel->is_cancelled = true;
    for (active *one = channel->calls; one != NULL; one = one->next)
        grpc_call_cancel(one->call, NULL);
    pthread_mutex_unlock(&channel->lock);
}

void mr_rpc_channel_rotate(mr_rpc_channel *channel) {
    pthread_mutex_lock(&channel->lock);
    channel->current = (channel->current + 1) % channel->count;
    pthread_mutex_unlock(&channel->lock);
}

size_t mr_rpc_channel_target(mr_rpc_channel *channel) {
    pthread_mutex_lock(&channel->lock);
    const size_t current = channel->current;
    pthread_mutex_unlock(&channel->lock);
    return current;
}

/* Another call may have found out the same and moved on already. */
static void leave_target(mr_rpc_channel *channel, size_t target) {
    pthread_mutex_lock(&channel->lock);
    if (channel->current == target) channel->current = (target + 1) % channel->count;
    pthread_mutex_unlock(&channel->lock);
}

/* New certificates mean new connections; calls under way keep theirs. Holds the lock. */
static void renew(mr_rpc_channel *channel) {
    const int64_t now = mr_now_ns();
    if (now < channel->renew_at_ns) return;
    channel->renew_at_ns = now + (int64_t)RENEW_EVERY_MS * NS_OF_MS;
    if (!mr_rpc_files_renew(&channel->files)) return;
    for (size_t i = 0; i < channel->count; i++) {
        if (channel->channels[i] != NULL) grpc_channel_destroy(channel->channels[i]);
        channel->channels[i] = NULL;
    }
}

/* Makes a call on the current target and links it in. False: the channel is cancelled. */
static bool begin_call(mr_rpc_channel *channel, active *one, grpc_completion_queue *queue,
                       const char *path, int64_t deadline_ns, size_t *target) {
    pthread_mutex_lock(&channel->lock);
    const bool is_open = !channel->is_cancelled;
    if (is_open) {
        renew(channel);
        *target = channel->current;
        if (channel->channels[*target] == NULL)
            channel->channels[*target] = make_channel(channel, channel->names[*target]);
        const grpc_slice method = grpc_slice_from_copied_string(path);
        one->call =
            grpc_channel_create_call(channel->channels[*target], NULL, GRPC_PROPAGATE_DEFAULTS,
                                     queue, method, NULL, mr_rpc_time(deadline_ns), NULL);
        grpc_slice_unref(method);
        one->next = channel->calls;
        one->link = &channel->calls;
        if (one->next != NULL) one->next->link = &one->next;
        channel->calls = one;
    }
    pthread_mutex_unlock(&channel->lock);
    return is_open;
}

static void end_call(mr_rpc_channel *channel, active *one) {
    pthread_mutex_lock(&channel->lock);
    *one->link = one->next;
    if (one->next != NULL) one->next->link = one->link;
    pthread_mutex_unlock(&channel->lock);
    grpc_call_unref(one->call);
}

static mr_status cancelled(mr_err *err) {
    return mr_fail(err, MR_ERR_CANCELLED, "the connection was closed on our side");
}

/* ---- what calls and streams share: the outputs of batches ---- */

typedef struct {
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice details;
} outcome;

static void outcome_init(outcome *o) {
    memset(o, 0, sizeof(*o));
    grpc_metadata_array_init(&o->initial);
    grpc_metadata_array_init(&o->trailing);
    o->details = grpc_empty_slice();
}

static void outcome_free(outcome *o) {
    grpc_metadata_array_destroy(&o->initial);
    grpc_metadata_array_destroy(&o->trailing);
    grpc_slice_unref(o->details);
}

static void start(grpc_call *call, const grpc_op *ops, size_t count, void *tag) {
    const grpc_call_error error = grpc_call_start_batch(call, ops, count, tag, NULL);
    assert(error == GRPC_CALL_OK); /* our own misuse is the only reason */
    (void)error;
}

static void start_status(grpc_call *call, outcome *o, void *tag) {
    grpc_op op = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    op.data.recv_status_on_client.trailing_metadata = &o->trailing;
    op.data.recv_status_on_client.status = &o->code;
    op.data.recv_status_on_client.status_details = &o->details;
    start(call, &op, 1, tag);
}

/* Without patience a call fails as soon as its target is known not to be reachable. */
static void start_headers(const mr_rpc_channel *channel, grpc_call *call, bool is_patient,
                          void *tag) {
    grpc_metadata header = {0};
    grpc_op op = {.op = GRPC_OP_SEND_INITIAL_METADATA};

    if (is_patient)
        op.flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                   GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    if (channel->header_name != NULL) {
        header.key = grpc_slice_from_copied_string(channel->header_name);
        header.value = grpc_slice_from_copied_string(channel->header_value);
        op.data.send_initial_metadata.count = 1;
        op.data.send_initial_metadata.metadata = &header;
    }
    start(call, &op, 1, tag);
    if (channel->header_name != NULL) {
        grpc_slice_unref(header.key);
        grpc_slice_unref(header.value);
    }
}

typedef enum { DONE, FAILED, LATE } waited;

static waited wait_for(grpc_completion_queue *queue, void *tag, int64_t deadline_ns) {
    const grpc_event event =
        grpc_completion_queue_pluck(queue, tag, mr_rpc_time(deadline_ns), NULL);
    if (event.type != GRPC_OP_COMPLETE) return LATE;
    return event.success != 0 ? DONE : FAILED;
}

/* Cancels what is late: then it ends at once. */
static waited wait_or_cancel(grpc_completion_queue *queue, grpc_call *call, void *tag,
                             int64_t deadline_ns) {
    waited w = wait_for(queue, tag, deadline_ns);
    if (w != LATE) return w;
    grpc_call_cancel(call, NULL);
    return wait_for(queue, tag, MR_RPC_NO_DEADLINE) == DONE ? DONE : LATE;
}

static void close_queue(grpc_completion_queue *queue) {
    grpc_completion_queue_shutdown(queue);
    grpc_completion_queue_destroy(queue);
}

/* ---- unary calls ---- */

typedef struct {
    mr_rpc_channel *channel;
    const char *path;
    const void *request;
    size_t bytes;
    int64_t deadline_ns, headers_by_ns;
    bool is_patient; /* a target that refuses is tried again until headers_by_ns */
} question;

/* One attempt. reply->was_sent tells whether another may follow. */
static mr_status ask_once(const question *q, size_t *target, mr_rpc_reply *reply, mr_err *err) {
    grpc_completion_queue *queue = grpc_completion_queue_create_for_pluck(NULL);
    grpc_byte_buffer *answer = NULL;
    active one = {0};
    outcome end;
    char headers, rest, status_tag;
    mr_status status;

    *reply = (mr_rpc_reply){0};
    if (!begin_call(q->channel, &one, queue, q->path, q->deadline_ns, target)) {
        close_queue(queue);
        return cancelled(err);
    }
    outcome_init(&end);
    start_status(one.call, &end, &status_tag);
    start_headers(q->channel, one.call, q->is_patient, &headers);
    const waited w = wait_or_cancel(queue, one.call, &headers, q->headers_by_ns);
    reply->was_sent = w == DONE;
    if (reply->was_sent) {
        grpc_byte_buffer *request = mr_rpc_pack(q->request, q->bytes);
        grpc_op ops[4] = {{0}};
        ops[0].op = GRPC_OP_SEND_MESSAGE;
        ops[0].data.send_message.send_message = request;
        ops[1].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        ops[2].op = GRPC_OP_RECV_INITIAL_METADATA;
        ops[2].data.recv_initial_metadata.recv_initial_metadata = &end.initial;
        ops[3].op = GRPC_OP_RECV_MESSAGE;
        ops[3].data.recv_message.recv_message = &answer;
        start(one.call, ops, 4, &rest);
        grpc_byte_buffer_destroy(request);
        wait_or_cancel(queue, one.call, &rest, q->deadline_ns);
    }
    /* the status comes with the deadline at the latest; half a second for the library's timers */
    wait_or_cancel(queue, one.call, &status_tag, q->deadline_ns + 500 * (int64_t)NS_OF_MS);
    reply->code = (int)end.code;
    if (w == LATE)
        status = mr_fail(err, MR_ERR_UNAVAILABLE, "%s: not connected in time",
                         q->channel->names[*target]);
    else if (end.code == GRPC_STATUS_CANCELLED && mr_now_ns() >= q->headers_by_ns)
        status = mr_fail(err, MR_ERR_TIMEOUT, "%s: no answer to %s in time",
                         q->channel->names[*target], q->path);
    else
        status = mr_rpc_fail(err, (int)end.code, end.details, &end.trailing,
                             q->channel->names[*target], q->path);
    if (status == MR_OK) {
        if (answer != NULL) reply->data = mr_rpc_unpack(answer, &reply->bytes);
        if (reply->data == NULL)
            status = mr_fail(err, MR_ERR_FORMAT, "%s: %s came without an answer that can be read",
                             q->channel->names[*target], q->path);
    }
    if (answer != NULL) grpc_byte_buffer_destroy(answer);
    outcome_free(&end);
    end_call(q->channel, &one);
    close_queue(queue);
    return status;
}

static bool is_cancelled(mr_rpc_channel *channel) {
    pthread_mutex_lock(&channel->lock);
    const bool yes = channel->is_cancelled;
    pthread_mutex_unlock(&channel->lock);
    return yes;
}

mr_status mr_rpc_ask(mr_rpc_channel *channel, const char *path, const void *request, size_t bytes,
                     int64_t deadline_ns, mr_rpc_reply *reply, mr_err *err) {
    mr_rpc_reply unused;
    mr_rpc_reply *into = reply != NULL ? reply : &unused;
    question q = {.channel = channel, .path = path, .request = request, .bytes = bytes};
    mr_status status = MR_OK;

    *into = (mr_rpc_reply){0};
    if (bytes > channel->message_bytes)
        return mr_fail(err, MR_ERR_LIMIT, "a request of %zu bytes, at most %zu", bytes,
                       channel->message_bytes);
    assert(deadline_ns != MR_RPC_NO_DEADLINE);
    q.deadline_ns = deadline_ns;
    /* One quick look at every target; when none can be reached, the last attempt is a patient one:
     * it waits for the next connection, which nobody else here would drive. */
    for (size_t attempt = 0; attempt <= channel->count; attempt++) {
        const int64_t now = mr_now_ns();
        const int64_t connect_by = now + (int64_t)channel->connect_ms * NS_OF_MS;
        size_t target = 0;
        if (now >= deadline_ns) {
            if (attempt == 0) status = mr_fail(err, MR_ERR_TIMEOUT, "no time is left for %s", path);
            break;
        }
        q.headers_by_ns = connect_by < deadline_ns ? connect_by : deadline_ns;
        q.is_patient = attempt == channel->count;
        status = ask_once(&q, &target, into, err);
        if (status == MR_OK || is_cancelled(channel)) break;
        if (status != MR_ERR_UNAVAILABLE && status != MR_ERR_TIMEOUT) break;
        leave_target(channel, target);
        if (into->was_sent) break;
    }
    if (status != MR_OK && is_cancelled(channel)) status = cancelled(err);
    if (reply == NULL) free(unused.data);
    return status;
}

/* ---- streams ---- */

struct mr_rpc_stream {
    mr_rpc_channel *channel;
    active one;
    grpc_completion_queue *queue;
    outcome end;
    grpc_byte_buffer *incoming;
    size_t target;
    int64_t connect_by_ns;
    bool is_headers_done, is_reading, is_status_known, is_write_pending, is_ended;
    /* tags: their addresses only */
    char headers_tag, initial_tag, status_tag, read_tag, write_tag, end_tag;
};

mr_status mr_rpc_stream_open(mr_rpc_stream **out, mr_rpc_channel *channel, const char *path,
                             int64_t deadline_ns, mr_err *err) {
    mr_rpc_stream *stream = mr_alloc(sizeof(*stream));

    *out = NULL;
    stream->channel = channel;
    stream->connect_by_ns = mr_now_ns() + (int64_t)channel->connect_ms * NS_OF_MS;
    stream->queue = grpc_completion_queue_create_for_pluck(NULL);
    if (!begin_call(channel, &stream->one, stream->queue, path, deadline_ns, &stream->target)) {
        close_queue(stream->queue);
        free(stream);
        return cancelled(err);
    }
    outcome_init(&stream->end);
    start_status(stream->one.call, &stream->end, &stream->status_tag);
    start_headers(channel, stream->one.call, true, &stream->headers_tag);
    grpc_op initial = {.op = GRPC_OP_RECV_INITIAL_METADATA};
    initial.data.recv_initial_metadata.recv_initial_metadata = &stream->end.initial;
    start(stream->one.call, &initial, 1, &stream->initial_tag);
    *out = stream;
    return MR_OK;
}

static mr_status write_failed(const mr_rpc_stream *stream, mr_err *err) {
    return mr_fail(err, MR_ERR_UNAVAILABLE, "%s: the stream has ended",
                   stream->channel->names[stream->target]);
}

/* Whatever was written before must be out; also the headers. */
static mr_status settle_writes(mr_rpc_stream *stream, int64_t deadline_ns, mr_err *err) {
    if (!stream->is_headers_done) {
        const bool is_short = deadline_ns < stream->connect_by_ns;
        const waited w = wait_for(stream->queue, &stream->headers_tag,
                                  is_short ? deadline_ns : stream->connect_by_ns);
        if (w == LATE) {
            if (!is_short) leave_target(stream->channel, stream->target);
            return mr_fail(err, is_short ? MR_ERR_TIMEOUT : MR_ERR_UNAVAILABLE,
                           "%s: not connected in time", stream->channel->names[stream->target]);
        }
        stream->is_headers_done = true;
        if (w == FAILED) return write_failed(stream, err);
    }
    if (stream->is_write_pending) {
        const waited w = wait_for(stream->queue, &stream->write_tag, deadline_ns);
        if (w == LATE)
            return mr_fail(err, MR_ERR_TIMEOUT, "%s: it does not take what is written",
                           stream->channel->names[stream->target]);
        stream->is_write_pending = false;
        if (w == FAILED) return write_failed(stream, err);
    }
    return MR_OK;
}

mr_status mr_rpc_stream_write(mr_rpc_stream *stream, const void *data, size_t bytes,
                              int64_t deadline_ns, mr_err *err) {
    if (bytes > stream->channel->message_bytes)
        return mr_fail(err, MR_ERR_LIMIT, "a message of %zu bytes, at most %zu", bytes,
                       stream->channel->message_bytes);
    const mr_status status = settle_writes(stream, deadline_ns, err);
    if (status != MR_OK) return status;
    grpc_byte_buffer *buffer = mr_rpc_pack(data, bytes);
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = buffer;
    start(stream->one.call, &op, 1, &stream->write_tag);
    stream->is_write_pending = true;
    grpc_byte_buffer_destroy(buffer);
    return settle_writes(stream, deadline_ns, err);
}

mr_status mr_rpc_stream_end_writes(mr_rpc_stream *stream, int64_t deadline_ns, mr_err *err) {
    const mr_status status = settle_writes(stream, deadline_ns, err);
    if (status != MR_OK || stream->is_ended) return status;
    const grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    stream->is_ended = true; /* its tag is taken when the stream is closed */
    start(stream->one.call, &op, 1, &stream->end_tag);
    return MR_OK;
}

/* The stream is over: why? */
static mr_status tell_end(mr_rpc_stream *stream, int *code, mr_err *err) {
    if (!stream->is_status_known)
        wait_or_cancel(stream->queue, stream->one.call, &stream->status_tag,
                       mr_now_ns() + 1000 * (int64_t)NS_OF_MS);
    stream->is_status_known = true;
    if (code != NULL) *code = (int)stream->end.code;
    if (is_cancelled(stream->channel)) return cancelled(err);
    const mr_status status =
        mr_rpc_fail(err, (int)stream->end.code, stream->end.details, &stream->end.trailing,
                    stream->channel->names[stream->target], "stream");
    if (status == MR_ERR_UNAVAILABLE) leave_target(stream->channel, stream->target);
    return status;
}

mr_status mr_rpc_stream_read(mr_rpc_stream *stream, uint8_t **data, size_t *bytes,
                             int64_t deadline_ns, int *code, mr_err *err) {
    *data = NULL;
    *bytes = 0;
    if (code != NULL) *code = 0;
    if (stream->is_status_known) return tell_end(stream, code, err);
    if (!stream->is_reading) {
        grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
        op.data.recv_message.recv_message = &stream->incoming;
        start(stream->one.call, &op, 1, &stream->read_tag);
        stream->is_reading = true;
    }
    if (wait_for(stream->queue, &stream->read_tag, deadline_ns) == LATE)
        return mr_fail(err, MR_ERR_TIMEOUT, "%s: nothing came in time",
                       stream->channel->names[stream->target]);
    stream->is_reading = false;
    if (stream->incoming == NULL) return tell_end(stream, code, err);
    *data = mr_rpc_unpack(stream->incoming, bytes);
    grpc_byte_buffer_destroy(stream->incoming);
    stream->incoming = NULL;
    if (*data == NULL)
        return mr_fail(err, MR_ERR_FORMAT, "%s: a message that cannot be read",
                       stream->channel->names[stream->target]);
    return MR_OK;
}

void mr_rpc_stream_cancel(mr_rpc_stream *stream) {
    grpc_call_cancel(stream->one.call, NULL);
}

size_t mr_rpc_stream_target(const mr_rpc_stream *stream) {
    return stream->target;
}

void mr_rpc_stream_close(mr_rpc_stream *stream) {
    if (stream == NULL) return;
    grpc_completion_queue *queue = stream->queue;

    grpc_call_cancel(stream->one.call, NULL); /* does nothing to one that has ended */
    if (!stream->is_headers_done) wait_for(queue, &stream->headers_tag, MR_RPC_NO_DEADLINE);
    if (stream->is_write_pending) wait_for(queue, &stream->write_tag, MR_RPC_NO_DEADLINE);
    if (stream->is_ended) wait_for(queue, &stream->end_tag, MR_RPC_NO_DEADLINE);
    if (stream->is_reading) wait_for(queue, &stream->read_tag, MR_RPC_NO_DEADLINE);
    wait_for(queue, &stream->initial_tag, MR_RPC_NO_DEADLINE);
    if (!stream->is_status_known) wait_for(queue, &stream->status_tag, MR_RPC_NO_DEADLINE);
    if (stream->incoming != NULL) grpc_byte_buffer_destroy(stream->incoming);
    outcome_free(&stream->end);
    end_call(stream->channel, &stream->one);
    close_queue(queue);
    free(stream);
}

#else
typedef int mr_rpc_client_is_not_built;
#endif
