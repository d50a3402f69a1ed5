/* control_none.c - the control service of a build without gRPC or protobuf-c: every open is refused
 * and says why, so nothing behind an open can be reached. */
#include "common/net/control.h"

#ifndef MR_HAVE_CONTROL
static mr_status refuse(mr_err *err) {
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "this build has no control service (Debian: libgrpc-dev, libprotobuf-c-dev, "
                   "protobuf-c-compiler): only static clusters work");
}

mr_status mr_control_server_open(mr_control_server **out, const mr_control_server_options *options,
                                 mr_err *err) {
    (void)options;
    *out = NULL;
    return refuse(err);
}
void mr_control_server_close(mr_control_server *server) {
    (void)server;
}
int mr_control_server_port(const mr_control_server *server) {
    (void)server;
    return 0;
}
uint64_t mr_control_server_leader_epoch(const mr_control_server *server) {
    (void)server;
    return 0;
}
bool mr_control_job_is_cancelled(mr_control_job *job) {
    (void)job;
    return true;
}
void mr_control_job_progress(mr_control_job *job, const char *what, double fraction) {
    (void)job, (void)what, (void)fraction;
}
mr_status mr_control_stream_send(mr_control_stream *stream, const mr_generation_event *event,
                                 mr_err *err) {
    (void)stream, (void)event;
    return refuse(err);
}
bool mr_control_stream_is_cancelled(mr_control_stream *stream) {
    (void)stream;
    return true;
}
void mr_control_stream_watch(mr_control_stream *stream, void (*notify)(void *context),
                             void *context) {
    (void)stream, (void)notify, (void)context;
}
void mr_control_stream_end(mr_control_stream *stream, mr_status status, bool is_degraded,
                           const mr_err *err) {
    (void)stream, (void)status, (void)is_degraded, (void)err;
}

mr_status mr_control_client_open(mr_control_client **out, const mr_control_client_options *options,
                                 mr_err *err) {
    (void)options;
    *out = NULL;
    return refuse(err);
}
void mr_control_client_cancel(mr_control_client *client) {
    (void)client;
}
void mr_control_client_close(mr_control_client *client) {
    (void)client;
}
mr_status mr_control_join(mr_control_client *client, const char *cluster, const char *leader,
                          uint64_t leader_epoch, mr_member **member, int64_t deadline_ns,
                          mr_err *err) {
    (void)client, (void)cluster, (void)leader, (void)leader_epoch, (void)deadline_ns;
    if (member) *member = NULL;
    return refuse(err);
}
mr_status mr_control_load(mr_control_client *client, const mr_control_load_order *order,
                          mr_load_progress progress, void *context, uint32_t silence_ms,
                          int64_t deadline_ns, mr_err *err) {
    (void)client, (void)order, (void)progress, (void)context, (void)silence_ms, (void)deadline_ns;
    return refuse(err);
}
mr_status mr_control_unload(mr_control_client *client, const mr_control_unload_order *order,
                            int64_t deadline_ns, mr_err *err) {
    (void)client, (void)order, (void)deadline_ns;
    return refuse(err);
}
mr_status mr_control_drain(mr_control_client *client, const mr_drain_order *order,
                           int64_t deadline_ns, mr_err *err) {
    (void)client, (void)order, (void)deadline_ns;
    return refuse(err);
}
mr_status mr_control_look(mr_control_client *client, mr_control_status *out, mr_member **member,
                          int64_t deadline_ns, mr_err *err) {
    (void)client, (void)deadline_ns;
    *out = (mr_control_status){0};
    if (member) *member = NULL;
    return refuse(err);
}
mr_status mr_control_session_key(mr_control_client *client, mr_role role, const char *id,
                                 mr_control_key *out, int64_t deadline_ns, mr_err *err) {
    (void)client, (void)role, (void)id, (void)deadline_ns;
    *out = (mr_control_key){0};
    return refuse(err);
}
mr_status mr_control_generate(mr_control_reader **out, mr_control_client *client,
                              const mr_generation *request, int64_t deadline_ns, mr_err *err) {
    (void)client, (void)request, (void)deadline_ns;
    *out = NULL;
    return refuse(err);
}
mr_status mr_control_read(mr_control_reader *reader, mr_generation_event *event,
                          int64_t deadline_ns, mr_err *err) {
    (void)reader, (void)deadline_ns;
    *event = (mr_generation_event){0};
    return refuse(err);
}
void mr_control_reader_cancel(mr_control_reader *reader) {
    (void)reader;
}
void mr_control_reader_close(mr_control_reader *reader) {
    (void)reader;
}
#else
typedef int mr_control_is_there; /* a file must declare something */
#endif
