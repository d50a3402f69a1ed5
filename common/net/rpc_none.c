/* rpc_none.c - the rpc layer of a build without gRPC: every open is refused and says why, so
 * nothing behind an open can be reached. */
#include "common/net/rpc.h"

#ifndef MR_HAVE_GRPC
static mr_status refuse(mr_err *err) {
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "this build has no gRPC (Debian: libgrpc-dev): only static clusters work");
}

mr_status mr_rpc_server_open(mr_rpc_server **out, const mr_rpc_server_options *options,
                             mr_err *err) {
    (void)options;
    *out = NULL;
    return refuse(err);
}
void mr_rpc_server_close(mr_rpc_server *server) {
    (void)server;
}
int mr_rpc_server_port(const mr_rpc_server *server) {
    (void)server;
    return 0;
}
mr_rpc_peer mr_rpc_call_peer(mr_rpc_call *call) {
    (void)call;
    return (mr_rpc_peer){.address = "", .common_name = ""};
}
bool mr_rpc_peer_has_name(const mr_rpc_peer *peer, const char *name) {
    (void)peer, (void)name;
    return false;
}
int64_t mr_rpc_call_deadline_ns(const mr_rpc_call *call) {
    (void)call;
    return 0;
}
bool mr_rpc_call_is_cancelled(mr_rpc_call *call) {
    (void)call;
    return true;
}
void mr_rpc_call_watch(mr_rpc_call *call, void (*notify)(void *context), void *context) {
    (void)call, (void)notify, (void)context;
}
void mr_rpc_answer(mr_rpc_call *call, const void *data, size_t bytes) {
    (void)call, (void)data, (void)bytes;
}
mr_status mr_rpc_send(mr_rpc_call *call, const void *data, size_t bytes, int64_t deadline_ns,
                      mr_err *err) {
    (void)call, (void)data, (void)bytes, (void)deadline_ns;
    return refuse(err);
}
void mr_rpc_finish(mr_rpc_call *call, mr_status status, const mr_err *err) {
    (void)call, (void)status, (void)err;
}

mr_status mr_rpc_channel_open(mr_rpc_channel **out, const mr_rpc_channel_options *options,
                              mr_err *err) {
    (void)options;
    *out = NULL;
    return refuse(err);
}
void mr_rpc_channel_cancel(mr_rpc_channel *channel) {
    (void)channel;
}
void mr_rpc_channel_close(mr_rpc_channel *channel) {
    (void)channel;
}
void mr_rpc_channel_rotate(mr_rpc_channel *channel) {
    (void)channel;
}
size_t mr_rpc_channel_target(mr_rpc_channel *channel) {
    (void)channel;
    return 0;
}
mr_status mr_rpc_ask(mr_rpc_channel *channel, const char *path, const void *request, size_t bytes,
                     int64_t deadline_ns, mr_rpc_reply *reply, mr_err *err) {
    (void)channel, (void)path, (void)request, (void)bytes, (void)deadline_ns;
    if (reply != NULL) *reply = (mr_rpc_reply){0};
    return refuse(err);
}
mr_status mr_rpc_stream_open(mr_rpc_stream **out, mr_rpc_channel *channel, const char *path,
                             int64_t deadline_ns, mr_err *err) {
    (void)channel, (void)path, (void)deadline_ns;
    *out = NULL;
    return refuse(err);
}
mr_status mr_rpc_stream_write(mr_rpc_stream *stream, const void *data, size_t bytes,
                              int64_t deadline_ns, mr_err *err) {
    (void)stream, (void)data, (void)bytes, (void)deadline_ns;
    return refuse(err);
}
mr_status mr_rpc_stream_end_writes(mr_rpc_stream *stream, int64_t deadline_ns, mr_err *err) {
    (void)stream, (void)deadline_ns;
    return refuse(err);
}
mr_status mr_rpc_stream_read(mr_rpc_stream *stream, uint8_t **data, size_t *bytes,
                             int64_t deadline_ns, int *code, mr_err *err) {
    (void)stream, (void)deadline_ns, (void)code;
    *data = NULL;
    *bytes = 0;
    return refuse(err);
}
void mr_rpc_stream_cancel(mr_rpc_stream *stream) {
    (void)stream;
}
size_t mr_rpc_stream_target(const mr_rpc_stream *stream) {
    (void)stream;
    return 0;
}
void mr_rpc_stream_close(mr_rpc_stream *stream) {
    (void)stream;
}
#else
typedef int mr_rpc_none_is_not_built;
#endif
