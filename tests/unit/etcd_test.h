/* etcd_test.h - real etcd servers for tests: one or three members on free ports of the loopback,
 * to be killed, stopped, wiped and started again. All die with the test. */
#ifndef MR_TESTS_ETCD_TEST_H
#define MR_TESTS_ETCD_TEST_H
#include "common/net/etcd/etcd.h"
#include "tests/unit/rpc_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/prctl.h>

enum { SERVERS_MAX = 3 };

typedef struct {
    char *folder;
    int count;
    bool is_tls; /* FOLDER/ours.crt, server.crt, server.key */
    int client_port[SERVERS_MAX], peer_port[SERVERS_MAX];
    pid_t pid[SERVERS_MAX];
    char endpoints[128];
} etcd_servers;

static inline bool have_etcd(void) {
    if (have_program("etcd")) return true;
    print_message("skipped: no etcd installed (Debian: etcd-server)\n");
    return false;
}

/* The child of a process with threads: nothing but exec. */
static inline void etcd_exec(char *const *argv, const char *log, pid_t parent) {
    const int fd = open(log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(126);
    dup2(fd, 1);
    dup2(fd, 2);
    execvp(argv[0], argv);
    _exit(127);
}

static inline void etcd_server_start(etcd_servers *s, int i) {
    const char *scheme = s->is_tls ? "https" : "http";
    char cluster[256] = "";
    char *argv[40];
    int argc = 0;
    for (int k = 0; k < s->count; k++)
        snprintf(cluster + strlen(cluster), sizeof(cluster) - strlen(cluster),
                 "%sm%d=http://127.0.0.1:%d", k > 0 ? "," : "", k, s->peer_port[k]);
#define ARG(...) argv[argc++] = mr_format(__VA_ARGS__)
    ARG("etcd");
    ARG("--name=m%d", i);
    ARG("--data-dir=%s/m%d", s->folder, i);
    ARG("--listen-client-urls=%s://127.0.0.1:%d", scheme, s->client_port[i]);
    ARG("--advertise-client-urls=%s://127.0.0.1:%d", scheme, s->client_port[i]);
    ARG("--listen-peer-urls=http://127.0.0.1:%d", s->peer_port[i]);
    ARG("--initial-advertise-peer-urls=http://127.0.0.1:%d", s->peer_port[i]);
    ARG("--initial-cluster=%s", cluster);
    ARG("--heartbeat-interval=50");
    ARG("--election-timeout=300");
    ARG("--logger=zap");
    ARG("--log-outputs=stderr");
    if (s->is_tls) {
        ARG("--cert-file=%s/server.crt", s->folder);
        ARG("--key-file=%s/server.key", s->folder);
        ARG("--trusted-ca-file=%s/ours.crt", s->folder);
        ARG("--client-cert-auth");
    }
#undef ARG
    argv[argc] = NULL;
    char *log = mr_format("%s/m%d.log", s->folder, i);
    const pid_t parent = getpid();
    s->pid[i] = fork();
    if (s->pid[i] == 0) etcd_exec(argv, log, parent);
    assert_true(s->pid[i] > 0);
    for (int k = 0; k < argc; k++) free(argv[k]);
    free(log);
}

static inline void etcd_server_kill(etcd_servers *s, int i) {
    end_child(&s->pid[i]);
}

static inline void etcd_server_wipe(etcd_servers *s, int i) {
    char *command = mr_format("rm -rf '%s/m%d'", s->folder, i);
    assert_int_equal(system(command), 0);
    free(command);
}

static inline etcd_client *etcd_client_to(const char *endpoints) {
    const etcd_options options = {.endpoints = endpoints};
    mr_err err = {{0}};
    etcd_client *client;
    check_ok(etcd_open(&client, &options, &err));
    return client;
}

/* Answers with a quorum within some seconds. */
static inline void etcd_check_up(etcd_client *client, int64_t ms) {
    const etcd_query query = {.key = etcd_text("nothing")};
    mr_err err = {{0}};
    etcd_list *list;
    check_ok(etcd_get(client, &query, after_ms(ms), &list, &err));
    etcd_list_free(list);
}

static inline void etcd_servers_prepare(etcd_servers *s, int count) {
    *s = (etcd_servers){.folder = test_folder(), .count = count};
    for (int i = 0; i < count; i++) {
        s->client_port[i] = free_port();
        s->peer_port[i] = free_port();
        snprintf(s->endpoints + strlen(s->endpoints), sizeof(s->endpoints) - strlen(s->endpoints),
                 "%s127.0.0.1:%d", i > 0 ? "," : "", s->client_port[i]);
    }
}

static inline etcd_client *etcd_servers_start(etcd_servers *s, int count) {
    etcd_servers_prepare(s, count);
    for (int i = 0; i < count; i++) etcd_server_start(s, i);
    etcd_client *client = etcd_client_to(s->endpoints);
    etcd_check_up(client, 10000);
    return client;
}

static inline void etcd_servers_end(etcd_servers *s) {
    for (int i = 0; i < s->count; i++) etcd_server_kill(s, i);
    test_folder_remove(s->folder);
}

/* What a watch told, for the test to wait on. */
typedef struct {
    pthread_mutex_t lock;
    int lists, events, deletes, connects, disconnects;
    int listed_keys; /* of the last list */
    int64_t last_revision;
    char last_key[64], last_value[64];
    bool is_out_of_order;
} watched;

static inline void watched_listed(void *context, const etcd_list *list) {
    watched *w = context;
    pthread_mutex_lock(&w->lock);
    w->lists++;
    w->listed_keys = (int)list->count;
    w->last_revision = list->revision;
    pthread_mutex_unlock(&w->lock);
}
static inline void watched_changed(void *context, const etcd_event *events, size_t count,
                                   int64_t revision) {
    watched *w = context;
    pthread_mutex_lock(&w->lock);
    for (size_t i = 0; i < count; i++) {
        w->events++;
        w->deletes += events[i].is_delete;
        if (events[i].kv.mod_revision <= w->last_revision) w->is_out_of_order = true;
        w->last_revision = events[i].kv.mod_revision;
        snprintf(w->last_key, sizeof(w->last_key), "%s", events[i].kv.key);
        snprintf(w->last_value, sizeof(w->last_value), "%s", events[i].kv.value);
    }
    if (revision != w->last_revision) w->is_out_of_order = true;
    pthread_mutex_unlock(&w->lock);
}
static inline void watched_connected(void *context, bool is_connected) {
    watched *w = context;
    pthread_mutex_lock(&w->lock);
    if (is_connected)
        w->connects++;
    else
        w->disconnects++;
    pthread_mutex_unlock(&w->lock);
}
static inline int watched_get(watched *w, const int *field) {
    pthread_mutex_lock(&w->lock);
    const int value = *field;
    pthread_mutex_unlock(&w->lock);
    return value;
}
static inline etcd_watch *watch_prefix(etcd_client *client, const char *prefix, watched *w) {
    mr_err err = {{0}};
    etcd_watch *watch;
    *w = (watched){0};
    pthread_mutex_init(&w->lock, NULL);
    const etcd_watch_options options = {.key = etcd_text(prefix),
                                        .is_prefix = true,
                                        .listed = watched_listed,
                                        .changed = watched_changed,
                                        .connected = watched_connected,
                                        .context = w};
    check_ok(etcd_watch_open(&watch, client, &options, &err));
    return watch;
}

static inline void put_text(etcd_client *client, const char *key, const char *value) {
    mr_err err = {{0}};
    check_ok(etcd_put(client, etcd_text(key), etcd_text(value), 0, after_ms(5000), NULL, &err));
}
/* How many keys there are with this prefix; -1: etcd does not answer. */
static inline int count_keys(etcd_client *client, const char *prefix) {
    const etcd_query query = {.key = etcd_text(prefix), .is_prefix = true, .keys_only = true};
    etcd_list *list;
    if (etcd_get(client, &query, after_ms(5000), &list, NULL) != MR_OK) return -1;
    const int count = (int)list->count;
    etcd_list_free(list);
    return count;
}

#endif
