/* fabric_choice.c - see fabric_choice.h. */
#include "common/net/fabric_choice.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/fabric_ucx.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SPIN_US_MAX = 1000000 };

/* --- this machine ----------------------------------------------------------------------------- */

/* The first line of a small file of the kernel's; "" when there is none. */
static void read_line(char *out, size_t room, const char *path) {
    out[0] = '\0';
    FILE *file = fopen(path, "re");
    if (!file) return;
    if (!fgets(out, (int)room, file)) out[0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    fclose(file);
}

static unsigned long long identity_of(const char *path, bool is_mount) {
    struct stat st;
    if (stat(path, &st) != 0) return 0;
    return is_mount ? (unsigned long long)st.st_dev : (unsigned long long)st.st_ino;
}

static char machine[33];
static void find_machine(void) {
    char boot[64], host[256] = {0}, text[512], digits[MR_DIGEST_TEXT_BYTES];
    read_line(boot, sizeof(boot), "/proc/sys/kernel/random/boot_id");
    if (!boot[0]) gethostname(host, sizeof(host) - 1); /* no /proc: at least the host is told */
    snprintf(text, sizeof(text), "%s %s %llx %llx %llx", boot, host,
             identity_of("/proc/self/ns/pid", false), identity_of("/proc/self/ns/ipc", false),
             identity_of("/dev/shm", true));
    const mr_digest digest = mr_sha256_of(text, strlen(text));
    mr_digest_text(&digest, digits);
    memcpy(machine, digits, sizeof(machine) - 1);
}

const char *mr_machine_id(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_machine);
    return machine;
}

static bool is_port_active(const char *device) {
    char path[512], line[64];
    snprintf(path, sizeof(path), "/sys/class/infiniband/%s/ports", device);
    DIR *ports = opendir(path);
    bool active = false;
    for (const struct dirent *e; ports && !active && (e = readdir(ports)) != NULL;) {
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof(path), "/sys/class/infiniband/%.128s/ports/%.64s/state", device,
                 e->d_name);
        read_line(line, sizeof(line), path);
        active = strstr(line, "ACTIVE") != NULL; /* "4: ACTIVE" */
    }
    if (ports) closedir(ports);
    return active;
}

bool mr_fabric_has_verbs(void) {
    DIR *devices = opendir("/sys/class/infiniband");
    bool found = false;
    for (const struct dirent *e; devices && !found && (e = readdir(devices)) != NULL;)
        found = e->d_name[0] != '.' && is_port_active(e->d_name);
    if (devices) closedir(devices);
    return found;
}

mr_status mr_fabric_check_ucx(mr_err *err) {
    return mr_ucx_check(err);
}

void mr_fabric_set_devices(const char *devices) {
    mr_ucx_set_devices(devices);
}

/* --- spinning --------------------------------------------------------------------------------- */

static atomic_uint spin_us_now;

void mr_fabric_set_spin(uint32_t spin_us) {
    atomic_store_explicit(&spin_us_now, spin_us < SPIN_US_MAX ? spin_us : SPIN_US_MAX,
                          memory_order_relaxed);
}

uint32_t mr_fabric_spin(void) {
    return atomic_load_explicit(&spin_us_now, memory_order_relaxed);
}

uint32_t mr_fabric_cores(void) {
    cpu_set_t set;
    char line[64];
    long long quota, period;
    uint32_t cores = 1;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) cores = (uint32_t)CPU_COUNT(&set);
    read_line(line, sizeof(line), "/sys/fs/cgroup/cpu.max");
    if (sscanf(line, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
        const uint32_t whole = (uint32_t)(quota / period);
        if (whole < cores) cores = whole;
    }
    return cores > 0 ? cores : 1;
}

bool mr_fabric_spin_if_spare(uint32_t busy_threads, uint32_t spin_us) {
    const bool spare = mr_fabric_cores() > busy_threads;
    mr_fabric_set_spin(spare ? spin_us : 0);
    return spare;
}

/* --- choosing --------------------------------------------------------------------------------- */

mr_status mr_fabric_parse(mr_fabric_kind *out, const char *text, mr_err *err) {
    static const char *const names[] = {"auto", "tcp", "shm", "rdma"};
    *out = MR_FABRIC_AUTO;
    for (int i = 0; i < 4; i++)
        if (!strcmp(text, names[i])) {
            *out = (mr_fabric_kind)i;
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_ARGUMENT, "fabric '%.40s': auto, tcp, shm or rdma", text);
}

mr_status mr_fabric_choose(mr_fabric_kind *out, const mr_fabric_peer *peer,
                           const mr_fabric_policy *policy, const char *own_machine, bool own_verbs,
                           mr_err *err) {
    const char *name = peer->tcp ? peer->tcp : peer->ucx ? peer->ucx : "the peer";
    const mr_fabric_kind kind = policy->kind;
    const bool is_near = peer->ucx && peer->machine && !strcmp(peer->machine, own_machine);
    const bool has_rdma = peer->ucx && peer->has_verbs && own_verbs;
    *out = MR_FABRIC_TCP;
    if (policy->require_rdma) {
        *out = MR_FABRIC_RDMA;
        if (kind == MR_FABRIC_TCP || kind == MR_FABRIC_SHM)
            return mr_fail(err, MR_ERR_ARGUMENT, "RDMA is required and another fabric asked for");
        if (has_rdma) return MR_OK;
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: RDMA is required, but %s", name,
                       !own_verbs         ? "this host has no RDMA device with an active port"
                       : !peer->has_verbs ? "the peer has no RDMA device with an active port"
                                          : "the peer does not listen on UCX");
    }
    if (is_near && (kind == MR_FABRIC_AUTO || kind == MR_FABRIC_SHM))
        *out = MR_FABRIC_SHM;
    else if (has_rdma && (kind == MR_FABRIC_AUTO || kind == MR_FABRIC_RDMA))
        *out = MR_FABRIC_RDMA;
    return MR_OK;
}

static mr_status connect_ucx(mr_link **out, const mr_fabric_peer *peer, const char *wanted,
                             int64_t deadline_ns, mr_err *err) {
    const mr_status status = mr_ucx_connect(out, peer->ucx, deadline_ns, err);
    if (status != MR_OK) return status;
    const char *got = mr_link_transport(*out);
    if (!strcmp(got, wanted)) return MR_OK;
    mr_link_close(*out);
    *out = NULL;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: UCX offers %s where %s was wanted", peer->ucx, got,
                   wanted);
}

mr_status mr_link_connect_best(mr_link **out, const mr_fabric_peer *peer,
                               const mr_fabric_policy *policy, int64_t deadline_ns, mr_err *err) {
    mr_fabric_kind kind;
    *out = NULL;
    mr_status status =
        mr_fabric_choose(&kind, peer, policy, mr_machine_id(), mr_fabric_has_verbs(), err);
    if (status != MR_OK) return status;
    mr_err why = {{0}};
    if (kind != MR_FABRIC_TCP) {
        const int64_t now = mr_now_ns();
        const bool may_fall_back = !policy->require_rdma && peer->tcp;
        const int64_t until =
            may_fall_back && deadline_ns > now ? now + (deadline_ns - now) / 2 : deadline_ns;
        status = connect_ucx(out, peer, kind == MR_FABRIC_SHM ? "shm" : "rdma", until, &why);
        if (status == MR_OK) return MR_OK;
        if (!may_fall_back) return mr_fail(err, status, "%s", why.text);
    }
    if (!peer->tcp)
        return mr_fail(err, MR_ERR_ARGUMENT, "%s: there is no TCP address",
                       peer->ucx ? peer->ucx : "the peer");
    status = mr_link_connect(out, peer->tcp, deadline_ns, err);
    /* Not for a peer that is gone: it would be said at every attempt. */
    if (status == MR_OK && why.text[0])
        mr_log_warn("%s: %s; going on over %s", peer->tcp, why.text, mr_link_transport(*out));
    return status;
}
