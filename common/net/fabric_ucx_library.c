/* fabric_ucx_library.c - loading UCX, and the settings that must not be left to its defaults.
 *
 * It is loaded when it is first asked for, not linked: loading takes 40 ms and installs handlers of
 * fatal signals, which are put back, and a machine without it runs the same programs. */
#include "common/net/fabric_ucx.h"

#ifdef MR_HAVE_UCX

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/fabric_choice.h"
#include "common/net/fabric_ucx_library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

mr_ucx_calls mr_ucx;

/* Guards all of this struct: loading, and the context that all engines of the process share. */
static struct {
    pthread_mutex_t lock;
    bool was_tried, is_loaded;
    ucp_context_h context;
    uint32_t users; /* engines */
    char *devices;
} library = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Lock held on entry. UCX catches fatal signals and prints what it makes of them; ours stay. */
static void load_library(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGHUP, SIGUSR2};
    enum { COUNT = sizeof(signals) / sizeof(signals[0]) };
    struct sigaction before[COUNT];
    library.was_tried = true;
    for (int i = 0; i < COUNT; i++) sigaction(signals[i], NULL, &before[i]);
    void *ucp = dlopen("libucp.so.0", RTLD_NOW | RTLD_LOCAL);
    void *ucs = dlopen("libucs.so.0", RTLD_NOW | RTLD_LOCAL);
    for (int i = 0; i < COUNT; i++) sigaction(signals[i], &before[i], NULL);
    if (!ucp || !ucs) return;
    bool good = true;
#define UCX_FIND(from, name)                                                                       \
    mr_ucx.name = (__typeof__(mr_ucx.name))dlsym(from, #name);                                     \
    good &= mr_ucx.name != NULL;
#define UCX_FIND_UCP(name) UCX_FIND(ucp, name)
    UCX_CALLS(UCX_FIND_UCP)
    UCX_FIND(ucs, ucs_status_string)
    UCX_FIND(ucs, ucs_global_opts_set_value)
    library.is_loaded = good;
    if (good && !getenv("UCX_LOG_LEVEL")) mr_ucx.ucs_global_opts_set_value("LOG_LEVEL", "fatal");
}

enum { SHM_FREE_BYTES_MIN = 32 << 20 };

static bool has_room_in_shm(void) {
    struct statvfs fs;
    return statvfs("/dev/shm", &fs) == 0 &&
           (uint64_t)fs.f_bavail * fs.f_frsize >= SHM_FREE_BYTES_MIN;
}

/* What UCX's own defaults would get wrong. Shared memory is not used beside error handling unless
 * told (it then goes over TCP's loopback without a word); tcp stays for finding each other. */
static void set_options(ucp_config_t *config) {
    const bool verbs = mr_fabric_has_verbs();
    const char *transports = has_room_in_shm() ? verbs ? "posix,rc,ud,tcp" : "posix,tcp"
                             : verbs           ? "rc,ud,tcp"
                                               : "tcp";
    const struct {
        const char *name, *value;
    } options[] = {{"TLS", transports},        {"MM_ERROR_HANDLING", "y"},
                   {"RNDV_THRESH", "inf"},     {"MAX_EAGER_RAILS", "1"},
                   {"MAX_RNDV_RAILS", "1"},    {"MM_SEG_SIZE", "16640"},
                   {"MM_FIFO_SIZE", "256"}, /* two windows of one link: full, it must be polled */
                   {"MM_RX_BUFS_GROW", "128"}, {"NET_DEVICES", library.devices}};
    _Static_assert(MR_UCX_SEGMENT_BYTES == 16640, "as the text above");
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        if (!options[i].value) continue;
        const ucs_status_t set =
            mr_ucx.ucp_config_modify(config, options[i].name, options[i].value);
        if (set != UCS_OK)
            mr_log_warn("UCX: the option %s=%s was refused: %s", options[i].name, options[i].value,
                        mr_ucx.ucs_status_string(set));
    }
}

/* Lock held on entry. */
static mr_status open_context(mr_err *err) {
    ucp_config_t *config;
    ucs_status_t status = mr_ucx.ucp_config_read(NULL, NULL, &config);
    if (status == UCS_OK) {
        const ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES |
                                                   UCP_PARAM_FIELD_MT_WORKERS_SHARED,
                                     .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
                                     .mt_workers_shared = 1};
        set_options(config);
        status = mr_ucx.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config,
                                         &library.context);
        mr_ucx.ucp_config_release(config);
    }
    if (status == UCS_OK) return MR_OK;
    library.context = NULL;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "UCX cannot start: %s",
                   mr_ucx.ucs_status_string(status));
}

/* Lock held on entry. */
static mr_status check_loaded(mr_err *err) {
    if (!library.was_tried) load_library();
    if (library.is_loaded) return MR_OK;
    return mr_fail(
        err, MR_ERR_UNSUPPORTED,
        "UCX is not installed on this machine (Debian: libucx0): no shared memory and no "
        "RDMA");
}

mr_status mr_ucx_check(mr_err *err) {
    pthread_mutex_lock(&library.lock);
    const mr_status status = check_loaded(err);
    pthread_mutex_unlock(&library.lock);
    return status;
}

void mr_ucx_set_devices(const char *devices) {
    pthread_mutex_lock(&library.lock);
    free(library.devices);
    library.devices = devices ? mr_strdup(devices) : NULL;
    pthread_mutex_unlock(&library.lock);
}

mr_status mr_ucx_acquire(ucp_context_h *out, mr_err *err) {
    pthread_mutex_lock(&library.lock);
    mr_status status = check_loaded(err);
    if (status == MR_OK && !library.context) status = open_context(err);
    if (status == MR_OK) library.users++;
    *out = library.context;
    pthread_mutex_unlock(&library.lock);
    return status;
}

void mr_ucx_release(void) {
    pthread_mutex_lock(&library.lock);
    if (--library.users == 0) {
        mr_ucx.ucp_cleanup(library.context);
        library.context = NULL;
    }
    pthread_mutex_unlock(&library.lock);
}

#endif
