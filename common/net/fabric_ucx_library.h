/* fabric_ucx_library.h - inside of common/net/fabric_ucx*: UCX as a table of its functions, and the
 * one context of this process.
 * Threads: any. */
#ifndef MR_NET_FABRIC_UCX_LIBRARY_H
#define MR_NET_FABRIC_UCX_LIBRARY_H
#include "common/base/status.h"

#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>

/* Of shared memory: an answer of 8 KiB and its headers is one message. */
enum { MR_UCX_SEGMENT_BYTES = 16640 };

#define UCX_CALLS(X)                                                                               \
    X(ucp_init_version)                                                                            \
    X(ucp_cleanup)                                                                                 \
    X(ucp_config_read)                                                                             \
    X(ucp_config_modify)                                                                           \
    X(ucp_config_release)                                                                          \
    X(ucp_worker_create)                                                                           \
    X(ucp_worker_destroy)                                                                          \
    X(ucp_worker_progress)                                                                         \
    X(ucp_worker_get_efd)                                                                          \
    X(ucp_worker_arm)                                                                              \
    X(ucp_worker_set_am_recv_handler)                                                              \
    X(ucp_listener_create)                                                                         \
    X(ucp_listener_query)                                                                          \
    X(ucp_listener_reject)                                                                         \
    X(ucp_listener_destroy)                                                                        \
    X(ucp_conn_request_query)                                                                      \
    X(ucp_ep_create)                                                                               \
    X(ucp_ep_flush_nbx)                                                                            \
    X(ucp_ep_close_nbx)                                                                            \
    X(ucp_ep_print_info)                                                                           \
    X(ucp_am_send_nbx)                                                                             \
    X(ucp_request_check_status)                                                                    \
    X(ucp_request_free)

typedef struct {
#define UCX_MEMBER(name) __typeof__(&name) name;
    UCX_CALLS(UCX_MEMBER)
#undef UCX_MEMBER
    __typeof__(&ucs_status_string) ucs_status_string;
    __typeof__(&ucs_global_opts_set_value) ucs_global_opts_set_value;
} mr_ucx_calls;
extern mr_ucx_calls mr_ucx; /* set once mr_ucx_acquire or mr_ucx_check succeeded */

/* The context lives as long as somebody has acquired it. */
mr_status mr_ucx_acquire(ucp_context_h *out, mr_err *err);
void mr_ucx_release(void);

#endif
