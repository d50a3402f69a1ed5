/* rpc.c - what the server and the client of the rpc layer share: statuses, buffers, the library.
 *
 * A status crosses the wire as the nearest gRPC code, so that foreign peers and tools understand
 * it, and exactly as a number in the trailing metadata, because several of ours map to one code. */
#include "common/net/rpc_impl.h"

#ifdef MR_HAVE_GRPC
#include "common/base/log.h"

#include <grpc/support/log.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The library reports every failed handshake: a line a second is enough to know. */
static void log_line(gpr_log_func_args *args) {
    static _Atomic int64_t next_ns;
    int64_t due = atomic_load(&next_ns);
    const int64_t now = mr_now_ns();

    if (args->severity != GPR_LOG_SEVERITY_ERROR) {
        mr_log_debug("grpc: %s", args->message);
    } else if (now >= due && atomic_compare_exchange_strong(&next_ns, &due, now + 1000000000)) {
        mr_log_warn("grpc: %s", args->message);
    }
}

static pthread_once_t log_once = PTHREAD_ONCE_INIT;
static void log_setup(void) {
    gpr_set_log_function(log_line);
}

void mr_rpc_library_open(void) {
    pthread_once(&log_once, log_setup);
    grpc_init();
}

void mr_rpc_library_close(void) {
    grpc_shutdown();
}

static const struct {
    mr_status status;
    grpc_status_code code;
} statuses[] = {
    /* of several statuses with one code, the first is what a foreign peer's code means to us */
    {MR_OK, GRPC_STATUS_OK},
    {MR_ERR_CANCELLED, GRPC_STATUS_CANCELLED},
    {MR_ERR_IO, GRPC_STATUS_INTERNAL},
    {MR_ERR_IO, GRPC_STATUS_UNKNOWN},
    {MR_ERR_ARGUMENT, GRPC_STATUS_INVALID_ARGUMENT},
    {MR_ERR_ARGUMENT, GRPC_STATUS_NOT_FOUND},
    {MR_ERR_ARGUMENT, GRPC_STATUS_PERMISSION_DENIED},
    {MR_ERR_ARGUMENT, GRPC_STATUS_UNAUTHENTICATED},
    {MR_ERR_TIMEOUT, GRPC_STATUS_DEADLINE_EXCEEDED},
    {MR_ERR_STALE, GRPC_STATUS_FAILED_PRECONDITION},
    {MR_ERR_STALE, GRPC_STATUS_ABORTED},
    {MR_ERR_STALE, GRPC_STATUS_ALREADY_EXISTS},
    {MR_ERR_MISMATCH, GRPC_STATUS_FAILED_PRECONDITION},
    {MR_ERR_LIMIT, GRPC_STATUS_RESOURCE_EXHAUSTED},
    {MR_ERR_NOMEM, GRPC_STATUS_RESOURCE_EXHAUSTED},
    {MR_ERR_RANGE, GRPC_STATUS_OUT_OF_RANGE},
    {MR_ERR_UNSUPPORTED, GRPC_STATUS_UNIMPLEMENTED},
    {MR_ERR_UNAVAILABLE, GRPC_STATUS_UNAVAILABLE},
    {MR_ERR_AGAIN, GRPC_STATUS_UNAVAILABLE},
    {MR_ERR_FORMAT, GRPC_STATUS_DATA_LOSS},
};
enum { STATUSES = sizeof(statuses) / sizeof(statuses[0]) };

grpc_status_code mr_rpc_code_of(mr_status status) {
    for (size_t i = 0; i < STATUSES; i++)
        if (statuses[i].status == status) return statuses[i].code;
    return GRPC_STATUS_UNKNOWN;
}

mr_status mr_rpc_status_of(int code) {
    for (size_t i = 0; i < STATUSES; i++)
        if ((int)statuses[i].code == code) return statuses[i].status;
    return MR_ERR_IO;
}

/* Our own status, when the peer told one that goes with its code. */
static mr_status own_status(int code, const grpc_metadata_array *trailing) {
    for (size_t i = 0; i < trailing->count; i++) {
        const grpc_metadata *m = &trailing->metadata[i];
        char text[8] = {0};
        if (grpc_slice_str_cmp(m->key, MR_RPC_STATUS_KEY) != 0) continue;
        if (GRPC_SLICE_LENGTH(m->value) >= sizeof(text)) continue;
        memcpy(text, GRPC_SLICE_START_PTR(m->value), GRPC_SLICE_LENGTH(m->value));
        const mr_status status = (mr_status)atoi(text);
        if (status != MR_OK && (int)mr_rpc_code_of(status) == code) return status;
    }
    return MR_OK;
}

mr_status mr_rpc_fail(mr_err *err, int code, grpc_slice details,
                      const grpc_metadata_array *trailing, const char *who, const char *path) {
    const mr_status own = own_status(code, trailing);
    const int length = (int)(GRPC_SLICE_LENGTH(details) < 400 ? GRPC_SLICE_LENGTH(details) : 400);

    if (code == GRPC_STATUS_OK) return MR_OK;
    if (length == 0)
        return mr_fail(err, mr_rpc_status_of(code), "%s: %s: status %d", who, path, code);
    if (own != MR_OK) /* the peer's sentence is for the reader as it is */
        return mr_fail(err, own, "%.*s", length, (const char *)GRPC_SLICE_START_PTR(details));
    return mr_fail(err, mr_rpc_status_of(code), "%s: %.*s", who, length,
                   (const char *)GRPC_SLICE_START_PTR(details));
}

gpr_timespec mr_rpc_time(int64_t deadline_ns) {
    if (deadline_ns == MR_RPC_NO_DEADLINE) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos(deadline_ns - mr_now_ns(), GPR_TIMESPAN));
}

grpc_byte_buffer *mr_rpc_pack(const void *data, size_t bytes) {
    grpc_slice slice = grpc_slice_malloc(bytes);
    if (bytes > 0) memcpy(GRPC_SLICE_START_PTR(slice), data, bytes);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

uint8_t *mr_rpc_unpack(grpc_byte_buffer *buffer, size_t *bytes) {
    grpc_byte_buffer_reader reader;
    *bytes = 0;
    /* nothing compressed is agreed on; what says it is could grow without bound */
    if (buffer->type != GRPC_BB_RAW || buffer->data.raw.compression != GRPC_COMPRESS_NONE)
        return NULL;
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) return NULL;
    uint8_t *data = mr_alloc(grpc_byte_buffer_length(buffer) + 1);
    grpc_slice slice;
    while (grpc_byte_buffer_reader_next(&reader, &slice)) {
        memcpy(data + *bytes, GRPC_SLICE_START_PTR(slice), GRPC_SLICE_LENGTH(slice));
        *bytes += GRPC_SLICE_LENGTH(slice);
        grpc_slice_unref(slice);
    }
    grpc_byte_buffer_reader_destroy(&reader);
    return data;
}

#else
typedef int mr_rpc_is_not_built; /* rpc_none.c takes its place */
#endif
