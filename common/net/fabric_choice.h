/* fabric_choice.h - which fabric a peer is reached over, and how its links wait.
 *
 *   same machine (equal machine ids)   UCX shared memory
 *   RDMA verbs on both sides           UCX over verbs. Nobody has run this project on a NIC with
 *                                      RDMA yet: `memrack selftest --fabric` measures it where
 *                                      there is one.
 *   else                               TCP
 *
 * What was chosen and cannot be had falls back to TCP with one logged line, unless RDMA is
 * required: then there is an error and never another fabric. A Unix socket address is a choice of
 * its own and is taken as it is.
 * Threads: any; the settings are for the whole process and are made before its first link. */
#ifndef MR_NET_FABRIC_CHOICE_H
#define MR_NET_FABRIC_CHOICE_H
#include "common/net/fabric.h"

typedef enum {
    MR_FABRIC_AUTO = 0,
    MR_FABRIC_TCP,
    MR_FABRIC_SHM, /* shared memory where the machine is the same, else TCP */
    MR_FABRIC_RDMA /* verbs where both sides have them, else TCP; not shared memory */
} mr_fabric_kind;

typedef struct {
    mr_fabric_kind kind;
    bool require_rdma; /* MR_ERR_UNSUPPORTED or MR_ERR_UNAVAILABLE rather than anything else */
} mr_fabric_policy;

typedef struct {
    const char *tcp;     /* "host:port" or "unix:PATH"; NULL: none */
    const char *ucx;     /* "host:port"; NULL: none */
    const char *machine; /* as mr_machine_id() of the peer's process; NULL: unknown */
    bool has_verbs;
} mr_fabric_peer;

/* "auto", "tcp", "shm" or "rdma". */
mr_status mr_fabric_parse(mr_fabric_kind *out, const char *text, mr_err *err);

/* What mr_link_connect_best tries first: MR_FABRIC_TCP, _SHM or _RDMA. own_machine and own_verbs
 * are of this process. */
mr_status mr_fabric_choose(mr_fabric_kind *out, const mr_fabric_peer *peer,
                           const mr_fabric_policy *policy, const char *own_machine, bool own_verbs,
                           mr_err *err);
mr_status mr_link_connect_best(mr_link **out, const mr_fabric_peer *peer,
                               const mr_fabric_policy *policy, int64_t deadline_ns, mr_err *err);

/* Equal for processes that can share memory: the kernel's boot, the namespaces of processes and of
 * shared memory. Owned by the process; never empty. */
const char *mr_machine_id(void);
bool mr_fabric_has_verbs(void);             /* an RDMA device here has an active port */
mr_status mr_fabric_check_ucx(mr_err *err); /* MR_OK where UCX is built in and installed */

/* Network devices for UCX, as its UCX_NET_DEVICES ("mlx5_0:1,eth0"); NULL: all. */
void mr_fabric_set_devices(const char *devices);

/* How long waiting looks for news before it sleeps: 0, the default, sleeps at once. Looking costs a
 * core for as long, so only spin where one is to spare. */
void mr_fabric_set_spin(uint32_t spin_us);
uint32_t mr_fabric_spin(void);
/* Processors this process may use (affinity and the cgroup's quota). */
uint32_t mr_fabric_cores(void);
/* Sets the spin where there are more cores than threads that compute and wait, all processes of
 * this machine together as far as the caller knows; else sets it to 0. Returns whether it spins. */
bool mr_fabric_spin_if_spare(uint32_t busy_threads, uint32_t spin_us);

#endif
