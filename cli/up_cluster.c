/* up_cluster.c - `memrack up`: a cluster around a real etcd, all on this machine.
 *
 * etcd first; then every other process at once, each finding the others through etcd; then the
 * model's record is put there, and the leader has the memshards load. A process that dies is
 * started again, after a second and then less and less often; requests go on meanwhile wherever a
 * replica or another worker is left.
 * Threads: the one thread of `memrack up`; the table asks members in threads of its own. */
#include "cli/up.h"

#include "cli/cluster_find.h"
#include "cli/cluster_table.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/file.h"
#include "common/net/address.h"
#include "common/net/cluster.h"
#include "memshard/store.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ETCD_TRIES = 3,
    ETCD_READY_S = 20,
    RESTART_MIN_MS = 1000,
    RESTART_MAX_MS = 30000,
    STEADY_MS = 60000, /* a process that lived so long begins again with the short pause */
    LOOK_EVERY_MS = 200,
    TABLE_EVERY_MS = 1000,
};

typedef struct {
    mr_up_arguments arguments;
    const char *role;
    uint32_t id;
    int64_t started_ns, restart_ns; /* restart_ns: 0, or when it is started again */
    int pause_ms;
} process;

typedef struct {
    mr_up *up;
    process *processes; /* [count]; [0] is etcd */
    mr_child *children; /* [count] */
    uint32_t count;
    uint32_t shard_count, coordinator_first;
    char *where; /* "etcd:127.0.0.1:PORT" */
    mr_cluster *cluster;
} run;

/* --- etcd ------------------------------------------------------------------------------------- */

/* A port that was free a moment ago; etcd takes no port 0. */
static mr_status free_port(char **out, mr_err *err) {
    int fd;
    const mr_status status = mr_address_listen(&fd, out, "127.0.0.1:0", 1, err);
    if (status == MR_OK) close(fd);
    return status;
}

static char *find_in_path(const char *program) {
    const char *path = getenv("PATH");
    for (const char *at = path; at && *at;) {
        const size_t bytes = strcspn(at, ":");
        char *full = mr_format("%.*s/%s", (int)bytes, at, program);
        if (access(full, X_OK) == 0) return full;
        free(full);
        at += bytes + (at[bytes] == ':');
    }
    return NULL;
}

static mr_status etcd_arguments(run *r, mr_err *err) {
    mr_up_arguments *list = &r->processes[0].arguments;
    char *client = NULL, *peer = NULL;
    char *program = find_in_path("etcd");
    if (!program)
        return mr_fail(err, MR_ERR_UNAVAILABLE,
                       "etcd is not installed (Debian: etcd-server); --static needs none");
    mr_status status = free_port(&client, err);
    if (status == MR_OK) status = free_port(&peer, err);
    if (status == MR_OK) {
        char *folder = mr_format("%s/etcd", r->up->run_folder);
        char *client_url = mr_format("http://%s", client), *peer_url = mr_format("http://%s", peer);
        char *members = mr_format("up=%s", peer_url);
        mr_up_arguments_free(list);
        *list = (mr_up_arguments){.count = 1};
        list->items[0] = mr_strdup(program);
        mr_up_add(list, "--name", "up");
        mr_up_add(list, "--data-dir", folder);
        mr_up_add(list, "--listen-client-urls", client_url);
        mr_up_add(list, "--advertise-client-urls", client_url);
        mr_up_add(list, "--listen-peer-urls", peer_url);
        mr_up_add(list, "--initial-advertise-peer-urls", peer_url);
        mr_up_add(list, "--initial-cluster", members);
        free(r->where);
        r->where = mr_format("etcd:%s", client);
        free(members);
        free(peer_url);
        free(client_url);
        free(folder);
    }
    free(peer);
    free(client);
    free(program);
    return status;
}

/* etcd says nothing through a pipe: it is ready when its port answers. */
static mr_status wait_for_etcd(run *r, mr_err *err) {
    const int64_t deadline = mr_now_ns() + ETCD_READY_S * 1000000000ll;
    for (;;) {
        int fd;
        mr_err reason;
        const int64_t attempt = mr_now_ns() + 200000000;
        if (mr_address_connect(&fd, r->where + strlen("etcd:"), attempt, &reason) == MR_OK) {
            close(fd);
            return MR_OK;
        }
        const int signal_number = mr_signals_wait(r->up->signals, mr_now_ns() + 50000000);
        if (signal_number != 0 && signal_number != SIGCHLD)
            return mr_fail(err, MR_ERR_CANCELLED, "ended by signal %d", signal_number);
        if (mr_children_reap(r->children, 1))
            return mr_fail(err, MR_ERR_UNAVAILABLE, "etcd ended at once; see %s",
                           r->children[0].log_path);
        if (mr_now_ns() >= deadline)
            return mr_fail(err, MR_ERR_TIMEOUT, "etcd does not answer within %d s", ETCD_READY_S);
    }
}

static mr_status start(run *r, uint32_t index, mr_err *err) {
    process *p = &r->processes[index];
    mr_child_free(&r->children[index]);
    p->started_ns = mr_now_ns();
    p->restart_ns = 0;
    return mr_child_start(&r->children[index], p->role, p->id, r->up->run_folder,
                          (const char *const *)p->arguments.items, index > 0, err);
}

static mr_status start_etcd(run *r, mr_err *err) {
    mr_status status = MR_ERR_IO;
    r->processes[0].role = "etcd";
    for (int i = 0; i < ETCD_TRIES; i++) { /* somebody else may have taken the port meanwhile */
        status = etcd_arguments(r, err);
        if (status == MR_OK) status = start(r, 0, err);
        if (status == MR_OK) status = wait_for_etcd(r, err);
        if (status != MR_ERR_UNAVAILABLE || r->children[0].pid > 0) break;
    }
    return status;
}

/* --- the others ------------------------------------------------------------------------------- */

static process *add_process(run *r, const char *role, uint32_t id, const char *name) {
    process *p = &r->processes[r->count++];
    *p = (process){.role = role, .id = id, .pause_ms = RESTART_MIN_MS};
    mr_up_program(&p->arguments, r->up, role);
    mr_up_add(&p->arguments, "--cluster", r->where);
    mr_up_add(&p->arguments, "--cluster-name", r->up->s.name);
    mr_up_add(&p->arguments, "--id", name);
    mr_up_add(&p->arguments, "--plain-control", "");
    char *state = mr_format("%s/state-%s", r->up->run_folder, name);
    mr_up_add(&p->arguments, "--state-folder", state);
    free(state);
    return p;
}

static void add_memshards(run *r) {
    const mr_up_settings *s = &r->up->s;
    const uint64_t share = mr_memory_available() / (r->shard_count ? r->shard_count : 1);
    for (uint32_t i = 0; i < r->shard_count; i++) {
        char set[32], name[32];
        snprintf(set, sizeof(set), "r%u", i / (uint32_t)s->memshards);
        snprintf(name, sizeof(name), "m%u", i);
        process *p = add_process(r, "memshard", i, name);
        mr_up_add(&p->arguments, "--set", set);
        if (s->fabric && strcmp(s->fabric, "tcp") == 0) mr_up_add(&p->arguments, "--no-ucx", "");
        mr_up_add(&p->arguments, "--isa", s->isa);
        mr_up_add_number(&p->arguments, "--capacity", (int64_t)share);
    }
}

static void add_workers(run *r) {
    const mr_up_settings *s = &r->up->s;
    const uint32_t all = (uint32_t)(s->workers * s->stages);
    for (uint32_t i = 0; i < all; i++) {
        const uint32_t group = i / (uint32_t)s->stages, stage = i % (uint32_t)s->stages;
        char name[32], text[32], part[32];
        snprintf(name, sizeof(name), "w%u", i);
        snprintf(text, sizeof(text), "g%u", group);
        snprintf(part, sizeof(part), "%u/%u", stage, (uint32_t)s->stages);
        process *p = add_process(r, "worker", i, name);
        mr_up_add(&p->arguments, "--model", s->model);
        mr_up_add(&p->arguments, "--group", text);
        mr_up_add(&p->arguments, "--stage", part);
        mr_up_add(&p->arguments, "--fabric", s->fabric);
        mr_up_add_number(&p->arguments, "--threads",
                         mr_up_worker_threads(r->up, all, r->shard_count));
        mr_up_add_number(&p->arguments, "--kv-blocks", s->kv_blocks);
        mr_up_add(&p->arguments, "--isa", s->isa);
        mr_up_add(&p->arguments, "--numeric", s->numeric);
    }
}

static void add_coordinators(run *r) {
    const mr_up_settings *s = &r->up->s;
    r->coordinator_first = r->count;
    for (uint32_t i = 0; i < (uint32_t)s->coordinators; i++) {
        char name[32];
        snprintf(name, sizeof(name), "c%u", i);
        process *p = add_process(r, "coordinator", i, name);
        mr_up_add(&p->arguments, "--host", s->host);
        mr_up_add_number(&p->arguments, "--port", s->port == 0 ? 0 : s->port + i);
        mr_up_add(&p->arguments, "--allow-same-host", "");
        mr_up_add_speculation(&p->arguments, r->up);
    }
}

static mr_status put_model(run *r, mr_err *err) {
    char source[PATH_MAX];
    mr_grid grid;
    mr_status status = mr_grid_parse(&grid, r->up->grid, err);
    if (status != MR_OK) return status;
    if (!realpath(r->up->s.model, source))
        return mr_fail(err, MR_ERR_IO, "%s: %s", r->up->s.model, strerror(errno));
    char version[] = "v1", *name = mr_strdup(mr_model_name(r->up->model));
    mr_model_version only = {.version = version,
                             .digest = r->up->manifest.digest,
                             .source = source,
                             .grid_rows = grid.row_groups,
                             .grid_columns = grid.width_slices,
                             .replicas = (uint32_t)r->up->s.replicas};
    mr_model_record record = {
        .name = name, .epoch = 1, .active = version, .versions = &only, .version_count = 1};
    const int64_t deadline = mr_now_ns() + 10000000000ll;
    status = mr_cluster_put_model(r->cluster, &record, deadline, err);
    free(name);
    return status;
}

/* Until the current map of the model is there: every cell is held. */
static mr_status wait_for_tables(run *r, mr_err *err) {
    const int64_t deadline = mr_now_ns() + r->up->s.ready_timeout_s * 1000000000;
    for (;;) {
        const mr_view *view = mr_cluster_view(r->cluster);
        const bool is_there = mr_view_map(view, &r->up->manifest.digest) != NULL;
        mr_view_release(view);
        if (is_there) return MR_OK;
        const int number = mr_signals_wait(r->up->signals, mr_now_ns() + 100000000);
        if (number != 0 && number != SIGCHLD)
            return mr_fail(err, MR_ERR_CANCELLED, "ended by signal %d", number);
        if (mr_now_ns() >= deadline)
            return mr_fail(
                err, MR_ERR_TIMEOUT,
                "the memshards have not loaded the tables in time; see %s/coordinator-0.log",
                r->up->run_folder);
    }
}

/* Whether a request would be served wherever it comes: every coordinator is there and every group
 * has one that schedules it. Of the coordinators' pipes only those of owners speak up; one without
 * a group of its own forwards. */
static bool are_served(run *r, const mr_view *view) {
    char name[32];
    for (uint32_t i = r->coordinator_first; i < r->count; i++) {
        snprintf(name, sizeof(name), "c%u", r->processes[i].id);
        const mr_member *m = mr_view_member(view, MR_ROLE_COORDINATOR, name);
        if (!m || !m->http || m->state != MR_MEMBER_READY) return false;
        snprintf(r->children[i].address, sizeof(r->children[i].address), "%s", m->http);
    }
    for (uint32_t g = 0; g < (uint32_t)r->up->s.workers; g++) {
        snprintf(name, sizeof(name), "g%u", g);
        if (!mr_view_owner(view, name)) return false;
    }
    return true;
}

static mr_status wait_for_coordinators(run *r, int64_t deadline_ns, mr_err *err) {
    for (;;) {
        const mr_view *view = mr_cluster_view(r->cluster);
        const bool is_served = are_served(r, view);
        mr_view_release(view);
        if (is_served) return MR_OK;
        const int number = mr_signals_wait(r->up->signals, mr_now_ns() + 50000000);
        if (number != 0 && number != SIGCHLD)
            return mr_fail(err, MR_ERR_CANCELLED, "ended by signal %d", number);
        const mr_child *dead = mr_children_reap(r->children, r->count);
        if (dead)
            return mr_fail(err, MR_ERR_UNAVAILABLE, "%s %u ended before it was ready; see %s",
                           dead->role, dead->id, dead->log_path);
        if (mr_now_ns() >= deadline_ns)
            return mr_fail(err, MR_ERR_TIMEOUT,
                           "the coordinators have not taken the worker groups in time; see "
                           "%s/coordinator-0.log",
                           r->up->run_folder);
    }
}

static mr_status start_all(run *r, mr_err *err) {
    const mr_up_settings *s = &r->up->s;
    r->count = 1;
    mr_status status = start_etcd(r, err);
    if (status != MR_OK) return status;
    const mr_cluster_options options = {.where = r->where, .name = s->name};
    status = mr_cluster_open(&r->cluster, &options, mr_now_ns() + 10000000000ll, err);
    if (status == MR_OK) status = put_model(r, err);
    if (status != MR_OK) return status;
    add_memshards(r);
    add_workers(r);
    add_coordinators(r);
    for (uint32_t i = 1; status == MR_OK && i < r->count; i++) status = start(r, i, err);
    const int64_t deadline = mr_now_ns() + s->ready_timeout_s * 1000000000;
    if (status == MR_OK)
        status = mr_children_wait_ready(r->children + 1, r->coordinator_first - 1, r->up->signals,
                                        deadline, err);
    if (status == MR_OK) status = wait_for_coordinators(r, deadline, err);
    if (status == MR_OK && r->shard_count > 0) status = wait_for_tables(r, err);
    for (uint32_t i = 0; status == MR_ERR_UNAVAILABLE && i < r->count; i++)
        if (r->children[i].is_dead) mr_child_print_log_tail(&r->children[i], MR_UP_LOG_LINES);
    if (status == MR_OK) mr_cluster_note_write(s->name, r->where);
    return status;
}

/* --- watching --------------------------------------------------------------------------------- */

static void plan_restart(run *r, mr_child *dead, int64_t pid) {
    process *p = &r->processes[dead - r->children];
    const int64_t now = mr_now_ns();
    if (WIFEXITED(dead->wait_status) && WEXITSTATUS(dead->wait_status) == 0) {
        fprintf(stderr, "memrack up: %s %u has ended in order; it is not started again\n", p->role,
                p->id);
        return;
    }
    mr_up_report_death(dead, pid);
    if (r->up->s.no_restart) return;
    if (now - p->started_ns > STEADY_MS * 1000000ll) p->pause_ms = RESTART_MIN_MS;
    p->restart_ns = now + p->pause_ms * 1000000ll;
    fprintf(stderr, "memrack up: %s %u is started again in %.0f s\n", p->role, p->id,
            p->pause_ms / 1000.0);
    p->pause_ms = p->pause_ms * 2 < RESTART_MAX_MS ? p->pause_ms * 2 : RESTART_MAX_MS;
}

static void reap_and_restart(run *r, int64_t *pids) {
    for (mr_child *dead; (dead = mr_children_reap(r->children, r->count)) != NULL;)
        plan_restart(r, dead, pids[dead - r->children]);
    for (uint32_t i = 0; i < r->count; i++) {
        mr_err err;
        if (r->processes[i].restart_ns == 0 || mr_now_ns() < r->processes[i].restart_ns) continue;
        if (start(r, i, &err) != MR_OK) {
            mr_log_warn("%s", err.text);
            r->processes[i].restart_ns = mr_now_ns() + r->processes[i].pause_ms * 1000000ll;
        } else
            pids[i] = r->children[i].pid;
    }
}

static bool wants_live_table(const run *r) {
    const char *when = r->up->s.table ? r->up->s.table : "auto";
    if (strcmp(when, "auto") == 0) return isatty(STDOUT_FILENO);
    return strcmp(when, "always") == 0;
}

static void show(run *r) {
    const char *address = r->children[r->coordinator_first].address;
    mr_cluster_table *table = mr_cluster_table_open(r->cluster, NULL);
    mr_cluster_table_print(table, stdout);
    mr_cluster_table_close(table);
    printf("\nlogs: %s   etcd: %s\n", r->up->run_folder, r->where);
    for (uint32_t i = r->coordinator_first; i < r->count; i++)
        printf("serving http://%s   (Ctrl-C ends it)\n", r->children[i].address);
    printf("\n");
    mr_up_show_example(r->up, address);
    fflush(stdout);
}

/* Until we are asked to end. */
static mr_status watch(run *r) {
    int64_t *pids = mr_alloc_array(r->count, sizeof(*pids));
    mr_cluster_table *table = wants_live_table(r) ? mr_cluster_table_open(r->cluster, NULL) : NULL;
    int64_t next_table = mr_now_ns() + TABLE_EVERY_MS * 1000000ll;
    for (uint32_t i = 0; i < r->count; i++) pids[i] = r->children[i].pid;
    for (;;) {
        const int number = mr_signals_wait(r->up->signals, mr_now_ns() + LOOK_EVERY_MS * 1000000ll);
        if (number != 0 && number != SIGCHLD) break;
        reap_and_restart(r, pids);
        if (table && mr_now_ns() >= next_table) {
            mr_cluster_table_redraw(table, stdout);
            next_table = mr_now_ns() + TABLE_EVERY_MS * 1000000ll;
        }
    }
    mr_cluster_table_close(table);
    free(pids);
    return MR_OK;
}

mr_status mr_up_cluster(mr_up *up, mr_err *err) {
    const mr_up_settings *s = &up->s;
    const bool has_tables = mr_model_table_count(up->model) > 0;
    run r = {.up = up};
    r.shard_count = has_tables ? (uint32_t)(s->memshards * s->replicas) : 0;
    const size_t most = 1 + r.shard_count + (size_t)(s->workers * s->stages + s->coordinators);
    r.processes = mr_alloc_array(most, sizeof(*r.processes));
    r.children = mr_alloc_array(most, sizeof(*r.children));
    for (size_t i = 0; i < most; i++) r.children[i].ready = -1;
    mr_status status = start_all(&r, err);
    if (status == MR_OK) {
        show(&r);
        status = watch(&r);
        mr_cluster_note_remove(s->name);
    }
    /* etcd last: the others take their records away */
    mr_cluster_close(r.cluster);
    if (r.count > 1) mr_children_end(r.children + 1, r.count - 1, up->signals, MR_UP_GRACE_MS);
    if (r.count > 0) mr_children_end(r.children, 1, up->signals, MR_UP_GRACE_MS);
    for (uint32_t i = 0; i < r.count; i++) {
        mr_child_free(&r.children[i]);
        mr_up_arguments_free(&r.processes[i].arguments);
    }
    free(r.processes);
    free(r.children);
    free(r.where);
    return status;
}
