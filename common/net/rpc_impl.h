/* rpc_impl.h - inside of the rpc layer: what its server and its client share. Nobody else includes
 * it. */
#ifndef MR_NET_RPC_IMPL_H
#define MR_NET_RPC_IMPL_H
#ifdef MR_HAVE_GRPC
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/rpc.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/status.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <pthread.h>

#define MR_RPC_STATUS_KEY "memrack-status" /* trailing metadata: our own status as a number */

#define INTEGER_ARG(name, number)                                                                  \
    { .type = GRPC_ARG_INTEGER, .key = (char *)(name), .value.integer = (number) }

void mr_rpc_library_open(void); /* counted, as grpc_init */
void mr_rpc_library_close(void);

grpc_status_code mr_rpc_code_of(mr_status status);
mr_status mr_rpc_status_of(int code);
/* The status and sentence that a finished client call tells; metadata may hold our own status. */
mr_status mr_rpc_fail(mr_err *err, int code, grpc_slice details,
                      const grpc_metadata_array *trailing, const char *who, const char *path);

gpr_timespec mr_rpc_time(int64_t deadline_ns);
grpc_byte_buffer *mr_rpc_pack(const void *data, size_t bytes);
/* An owned copy, never NULL for a message that is there; NULL: it cannot be read (compressed). */
uint8_t *mr_rpc_unpack(grpc_byte_buffer *buffer, size_t *bytes);

/* Certificate files, read again when they change. */
typedef struct {
    char *ca_path, *cert_path, *key_path; /* NULL: not given */
    char *ca, *cert, *key;                /* PEM, as last read well */
    char stamps[256];                     /* of the files when they were read */
    bool is_plain;
} mr_rpc_files;
/* First read; a client may lack cert and key. Checks that they parse, fit and are valid now. */
mr_status mr_rpc_files_open(mr_rpc_files *files, const mr_rpc_security *security, bool is_server,
                            mr_err *err);
/* True: they have changed and were read again. Files that are not good are left, with a log line
 * for each change, and the old ones stay in use. */
bool mr_rpc_files_renew(mr_rpc_files *files);
void mr_rpc_files_close(mr_rpc_files *files);

#endif
#endif
