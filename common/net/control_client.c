/* control_client.c - the asking half of the control service; see control.h. */
#include "common/net/control_impl.h"

#ifdef MR_HAVE_CONTROL
#include "common/base/clock.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

struct mr_control_client {
    mr_rpc_channel *channel;
    char *who; /* for sentences */
};

struct mr_control_reader {
    mr_rpc_stream *stream;
    uint32_t answers;
    bool is_degraded;
};

mr_status mr_control_client_open(mr_control_client **out, const mr_control_client_options *o,
                                 mr_err *err) {
    *out = NULL;
    mr_control_client *c = mr_alloc(sizeof(*c));
    const bool is_named = o->role != 0 && o->id;
    char *name = is_named ? mr_format("%s.%s", mr_control_role_name(o->role), o->id) : NULL;
    c->who = is_named ? mr_format("%s '%s' at %s", mr_control_role_name(o->role), o->id, o->address)
                      : mr_strdup(o->address);
    const mr_rpc_channel_options options = {.targets = o->address,
                                            .security = o->security,
                                            .server_name = o->security.is_plain ? NULL : name,
                                            .message_bytes = MR_CONTROL_MESSAGE_BYTES};
    const mr_status status = mr_rpc_channel_open(&c->channel, &options, err);
    free(name);
    if (status == MR_OK) {
        *out = c;
        return MR_OK;
    }
    free(c->who);
    free(c);
    return status;
}

void mr_control_client_cancel(mr_control_client *client) {
    mr_rpc_channel_cancel(client->channel);
}

void mr_control_client_close(mr_control_client *client) {
    if (!client) return;
    mr_rpc_channel_close(client->channel);
    free(client->who);
    free(client);
}

/* --- one answer ------------------------------------------------------------------------------- */

/* Takes packed over. reply->data is the caller's. */
static mr_status ask(mr_control_client *c, const char *path, mr_packed packed, int64_t deadline_ns,
                     mr_rpc_reply *reply, mr_err *err) {
    *reply = (mr_rpc_reply){0};
    const mr_status status =
        mr_rpc_ask(c->channel, path, packed.data, packed.bytes, deadline_ns, reply, err);
    free(packed.data);
    return status;
}

static mr_status named(const mr_control_client *c, mr_status status, mr_err *err) {
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "%s", c->who);
}

mr_status mr_control_join(mr_control_client *c, const char *cluster, const char *leader,
                          uint64_t leader_epoch, mr_member **member, int64_t deadline_ns,
                          mr_err *err) {
    mr_rpc_reply reply;
    mr_member *got = NULL;
    if (member) *member = NULL;
    mr_status status = ask(c, MR_CONTROL_PATH "Join", mr_pack_join(cluster, leader, leader_epoch),
                           deadline_ns, &reply, err);
    if (status == MR_OK) status = mr_unpack_join_reply(&got, reply.data, reply.bytes, err);
    free(reply.data);
    if (member)
        *member = got;
    else
        mr_member_free(got);
    return named(c, status, err);
}

static mr_status ask_for_nothing(mr_control_client *c, const char *path, mr_packed packed,
                                 int64_t deadline_ns, mr_err *err) {
    mr_rpc_reply reply;
    mr_status status = ask(c, path, packed, deadline_ns, &reply, err);
    if (status == MR_OK) status = mr_unpack_empty(reply.data, reply.bytes, err);
    free(reply.data);
    return named(c, status, err);
}

mr_status mr_control_unload(mr_control_client *c, const mr_control_unload_order *order,
                            int64_t deadline_ns, mr_err *err) {
    return ask_for_nothing(c, MR_CONTROL_PATH "Unload", mr_pack_unload(order), deadline_ns, err);
}

mr_status mr_control_drain(mr_control_client *c, const mr_drain_order *order, int64_t deadline_ns,
                           mr_err *err) {
    return ask_for_nothing(c, MR_CONTROL_PATH "Drain", mr_pack_drain(order), deadline_ns, err);
}

mr_status mr_control_look(mr_control_client *c, mr_control_status *out, mr_member **member,
                          int64_t deadline_ns, mr_err *err) {
    mr_rpc_reply reply;
    mr_member *got = NULL;
    *out = (mr_control_status){0};
    if (member) *member = NULL;
    mr_status status = ask(c, MR_CONTROL_PATH "Status", mr_pack_empty(), deadline_ns, &reply, err);
    if (status == MR_OK) status = mr_unpack_status(out, &got, reply.data, reply.bytes, err);
    free(reply.data);
    if (member)
        *member = got;
    else
        mr_member_free(got);
    return named(c, status, err);
}

mr_status mr_control_session_key(mr_control_client *c, mr_role role, const char *id,
                                 mr_control_key *out, int64_t deadline_ns, mr_err *err) {
    mr_rpc_reply reply;
    *out = (mr_control_key){0};
    mr_status status = ask(c, MR_CONTROL_PATH "SessionKey", mr_pack_key_request(role, id),
                           deadline_ns, &reply, err);
    if (status == MR_OK) status = mr_unpack_key(out, reply.data, reply.bytes, err);
    if (reply.data) explicit_bzero(reply.data, reply.bytes);
    free(reply.data);
    return named(c, status, err);
}

/* --- loads ------------------------------------------------------------------------------------ */

/* Opens a stream and sends its one request. A server that has refused already may make the writing
 * fail; why it did comes with the reading. */
static mr_status start(mr_rpc_stream **out, mr_control_client *c, const char *path,
                       mr_packed packed, int64_t stream_deadline_ns, int64_t deadline_ns,
                       mr_err *err) {
    mr_status status = mr_rpc_stream_open(out, c->channel, path, stream_deadline_ns, err);
    if (status == MR_OK)
        status = mr_rpc_stream_write(*out, packed.data, packed.bytes, deadline_ns, err);
    if (status == MR_OK) status = mr_rpc_stream_end_writes(*out, deadline_ns, err);
    free(packed.data);
    if (status == MR_OK || !*out || status == MR_ERR_TIMEOUT) return status;
    uint8_t *data = NULL;
    size_t bytes;
    const mr_status why = mr_rpc_stream_read(*out, &data, &bytes, deadline_ns, NULL, err);
    free(data);
    return why != MR_OK ? why : mr_fail(err, status, "the connection was lost");
}

static int64_t sooner(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static mr_status read_progress(mr_rpc_stream *stream, mr_load_progress progress, void *context,
                               uint32_t silence_ms, int64_t deadline_ns, mr_err *err) {
    bool is_ready = false;
    for (;;) {
        uint8_t *data = NULL;
        size_t bytes = 0;
        char what[MR_CONTROL_TEXT_BYTES];
        double fraction;
        const int64_t until =
            silence_ms ? sooner(deadline_ns, mr_now_ns() + silence_ms * 1000000ll) : deadline_ns;
        mr_status status = mr_rpc_stream_read(stream, &data, &bytes, until, NULL, err);
        if (status == MR_ERR_TIMEOUT && until < deadline_ns)
            return mr_fail(err, MR_ERR_TIMEOUT, "load: silent for %u ms", silence_ms);
        if (status != MR_OK) return status;
        if (!data)
            return is_ready ? MR_OK
                            : mr_fail(err, MR_ERR_FORMAT, "load: ended without being ready");
        bool was_ready = is_ready;
        status = mr_unpack_progress(what, &fraction, &is_ready, data, bytes, err);
        free(data);
        is_ready |= was_ready;
        if (status != MR_OK) return status;
        if (progress && !progress(context, what, fraction))
            return mr_fail(err, MR_ERR_CANCELLED, "load: given up");
    }
}

mr_status mr_control_load(mr_control_client *c, const mr_control_load_order *order,
                          mr_load_progress progress, void *context, uint32_t silence_ms,
                          int64_t deadline_ns, mr_err *err) {
    mr_rpc_stream *stream = NULL;
    mr_status status = start(&stream, c, MR_CONTROL_PATH "Load", mr_pack_load(order), deadline_ns,
                             deadline_ns, err);
    if (status == MR_OK)
        status = read_progress(stream, progress, context, silence_ms, deadline_ns, err);
    mr_rpc_stream_close(stream);
    return named(c, status, err);
}

/* --- generations ------------------------------------------------------------------------------ */

mr_status mr_control_generate(mr_control_reader **out, mr_control_client *c,
                              const mr_generation *request, int64_t deadline_ns, mr_err *err) {
    mr_control_reader *r = mr_alloc(sizeof(*r));
    const mr_packed packed = mr_pack_generation(request);
    *out = NULL;
    r->answers = request->prompt_count * request->choices;
    mr_status status;
    if (packed.bytes <= MR_CONTROL_MESSAGE_BYTES)
        status =
            start(&r->stream, c, MR_GATEWAY_PATH, packed, MR_RPC_NO_DEADLINE, deadline_ns, err);
    else {
        status = mr_fail(err, MR_ERR_LIMIT, "a request of %zu bytes; at most %d", packed.bytes,
                         MR_CONTROL_MESSAGE_BYTES);
        free(packed.data);
    }
    if (status == MR_OK) {
        *out = r;
        return MR_OK;
    }
    mr_rpc_stream_close(r->stream);
    free(r);
    return named(c, status, err);
}

mr_status mr_control_read(mr_control_reader *r, mr_generation_event *event, int64_t deadline_ns,
                          mr_err *err) {
    uint8_t *data = NULL;
    size_t bytes = 0;
    memset(event, 0, sizeof(*event));
    mr_status status = mr_rpc_stream_read(r->stream, &data, &bytes, deadline_ns, NULL, err);
    if (status != MR_OK) return status;
    if (data)
        status = mr_unpack_event(event, r->answers, data, bytes, err);
    else
        event->is_end = true; /* there was no room for the last event */
    free(data);
    r->is_degraded |= event->is_degraded;
    event->is_degraded = r->is_degraded;
    return status;
}

void mr_control_reader_cancel(mr_control_reader *reader) {
    mr_rpc_stream_cancel(reader->stream);
}

void mr_control_reader_close(mr_control_reader *reader) {
    if (!reader) return;
    mr_rpc_stream_close(reader->stream);
    free(reader);
}
#endif
