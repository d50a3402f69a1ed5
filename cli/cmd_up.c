/* cmd_up.c - `memrack up MODEL`: the real processes of a cluster on this machine, started in order,
 * shown, watched, and ended together.
 *
 * The manifest is computed here once, so that the processes find it. Memshards come first, then the
 * registry file that names them, then a worker, then a coordinator: each waits for the one before.
 * A memshard that dies is reported and the others go on, answering errors that name it; without its
 * worker or its coordinator a cluster has no purpose and ends. */
#include "cli/cli.h"

#include "cli/up_process.h"
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/registry.h"
#include "memshard/serve.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GRACE_MS = 3000, LOG_LINES = 8, TEXT_BYTES = 64 };

typedef struct {
    const char *model, *grid, *host, *isa;
    int64_t memshards, threads, port, kv_blocks, ready_timeout_s;
} settings;

/* The cluster: memshards first, then the worker, then the coordinator. */
typedef struct {
    settings s;
    mr_model *model;
    mr_manifest manifest;
    mr_store_plan *plans; /* [memshards] */
    char *grid;           /* as given, or Mx1 */
    char *programs;       /* folder of our executables */
    char *run_folder;     /* NULL until made */
    mr_registry registry;
    mr_child *children;
    uint32_t shard_count, child_count; /* children: started so far */
    int signals;
} cluster;

static int parse(settings *s, int argc, char **argv) {
    *s = (settings){.host = "127.0.0.1", .memshards = 2, .port = 8080, .ready_timeout_s = 300};
    const mr_option options[] = {
        {"memshards", 'm', MR_OPT_INT, &s->memshards, 1, MR_MAX_MEMSHARDS, "M",
         "memshard processes (2)"},
        {"grid", 'g', MR_OPT_TEXT, &s->grid, 0, 0, "GxW",
         "row groups x width slices of the tables (Mx1)"},
        {"threads", 't', MR_OPT_INT, &s->threads, 0, MR_MAX_THREADS, "N",
         "compute threads of the worker (0: cores that memshards leave, at least half)"},
        {"port", 'p', MR_OPT_INT, &s->port, 0, 65535, "P", "HTTP port; 0: any (8080)"},
        {"host", 0, MR_OPT_TEXT, &s->host, 0, 0, "HOST", "HTTP address (127.0.0.1)"},
        {"kv-blocks", 0, MR_OPT_INT, &s->kv_blocks, 0, 1 << 30, "N",
         "KV cache blocks of 16 tokens (0: 16 contexts or 1 GiB)"},
        {"isa", 0, MR_OPT_TEXT, &s->isa, 0, 0, "NAME", "ref, avx2 or avx512 (the best there is)"},
        {"ready-timeout", 0, MR_OPT_INT, &s->ready_timeout_s, 1, 86400, "S",
         "seconds the processes may take to start (300)"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack up MODEL [options]",
        .summary = "Starts memshards, a worker and a coordinator as processes of this machine and\n"
                   "shows them; Ctrl-C ends them. Example: memrack up models/demo --memshards 2",
        .options = options,
        .positional_min = 1,
        .positional_max = 1};
    int count;
    return mr_cli_parse(&spec, argc, argv, &s->model, &count);
}

/* --- before anything starts ------------------------------------------------------------------- */

/* All or nothing: every shard's split and their sum are checked before the first process starts. */
static mr_status plan_shards(cluster *c, mr_err *err) {
    mr_grid grid;
    mr_store_plan all = {0};
    c->shard_count = mr_model_table_count(c->model) > 0 ? (uint32_t)c->s.memshards : 0;
    c->grid =
        c->s.grid ? mr_strdup(c->s.grid) : mr_format("%ux1", c->shard_count ? c->shard_count : 1);
    mr_status status = mr_grid_parse(&grid, c->grid, err);
    if (status != MR_OK) return status;
    c->plans = mr_alloc_array(c->shard_count, sizeof(*c->plans));
    for (uint32_t i = 0; i < c->shard_count; i++) {
        mr_store_plan *p = &c->plans[i];
        status = mr_memshard_plan(p, c->model, &c->manifest, grid, i, c->shard_count, err);
        if (status != MR_OK) return status;
        all.mapped_bytes += p->mapped_bytes;
        all.kept_bytes += p->kept_bytes;
    }
    if (c->shard_count == 0)
        fprintf(stderr, "memrack up: %s has no memory layers: starting no memshards\n", c->s.model);
    status = mr_store_fits(&all, mr_memory_available(), err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "all memshards together");
}

static mr_status find_programs(cluster *c, mr_err *err) {
    static const char *const names[] = {"memrack-memshard", "memrack-worker",
                                        "memrack-coordinator"};
    char self[4096];
    const ssize_t bytes = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (bytes <= 0) return mr_fail(err, MR_ERR_IO, "/proc/self/exe: %s", strerror(errno));
    self[bytes] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) *slash = '\0';
    c->programs = mr_strdup(self);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char *path = mr_format("%s/%s", self, names[i]);
        const int code = access(path, X_OK) == 0 ? 0 : errno;
        free(path);
        if (code != 0)
            return mr_fail(err, MR_ERR_IO, "%s must lie beside memrack in %s: %s", names[i], self,
                           strerror(code));
    }
    return MR_OK;
}

static mr_status prepare(cluster *c, mr_err *err) {
    mr_status status = find_programs(c, err);
    if (status == MR_OK) status = mr_model_open(&c->model, c->s.model, err);
    if (status == MR_OK)
        status = mr_manifest_load(&c->manifest, c->model, mr_cli_progress, NULL, err);
    if (status == MR_OK) status = plan_shards(c, err);
    if (status != MR_OK) return status;
    const char *temporary = getenv("TMPDIR");
    char *folder = mr_format("%s/memrack-up-XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) {
        status = mr_fail(err, MR_ERR_IO, "create %s: %s", folder, strerror(errno));
        free(folder);
        return status;
    }
    c->run_folder = folder;
    c->children = mr_alloc_array(c->shard_count + 2, sizeof(*c->children));
    c->registry = (mr_registry){.cluster = mr_strdup("local"),
                                .model = mr_strdup(c->s.model),
                                .grid = mr_strdup(c->grid),
                                .digest = c->manifest.digest};
    return mr_signals_open(&c->signals, err);
}

/* --- starting --------------------------------------------------------------------------------- */

typedef struct {
    const char *items[MR_CHILD_ARGUMENTS_MAX + 1];
    uint32_t count;
} argument_list;

static void add(argument_list *list, const char *name, const char *value) {
    if (!value || list->count + 2 > MR_CHILD_ARGUMENTS_MAX) return;
    list->items[list->count++] = name;
    list->items[list->count++] = value;
}

static const char *number(char text[TEXT_BYTES], int64_t value) {
    snprintf(text, TEXT_BYTES, "%" PRId64, value);
    return text;
}

static mr_status start(cluster *c, const char *role, uint32_t id, argument_list *list,
                       mr_err *err) {
    char *program = mr_format("%s/memrack-%s", c->programs, role);
    list->items[0] = program;
    const mr_status status =
        mr_child_start(&c->children[c->child_count++], role, id, c->run_folder, list->items, err);
    free(program);
    return status;
}

static mr_status wait_ready(cluster *c, mr_err *err) {
    return mr_children_wait_ready(c->children, c->child_count, c->signals,
                                  mr_now_ns() + c->s.ready_timeout_s * 1000000000, err);
}

static mr_status start_memshards(cluster *c, mr_err *err) {
    mr_status status = MR_OK;
    char index[TEXT_BYTES], of[TEXT_BYTES];
    for (uint32_t i = 0; status == MR_OK && i < c->shard_count; i++) {
        argument_list list = {.count = 1};
        add(&list, "--model", c->s.model);
        add(&list, "--grid", c->grid);
        add(&list, "--index", number(index, i));
        add(&list, "--of", number(of, c->shard_count));
        add(&list, "--isa", c->s.isa);
        status = start(c, "memshard", i, &list, err);
    }
    if (status == MR_OK) status = wait_ready(c, err);
    for (uint32_t i = 0; status == MR_OK && i < c->shard_count; i++)
        mr_members_add(&c->registry.memshards, c->children[i].address);
    return status;
}

static mr_status save_registry(cluster *c, mr_err *err) {
    char *path = mr_format("%s/registry.json", c->run_folder);
    const mr_status status = mr_registry_save(&c->registry, path, err);
    free(path);
    return status;
}

/* Threads that wait for each other lose far more to a core they share with a memshard than they
 * gain by being one more. */
static int64_t worker_threads(const cluster *c) {
    cpu_set_t allowed;
    if (c->s.threads > 0) return c->s.threads;
    const int cores =
        sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    const int half = cores / 2 > 0 ? cores / 2 : 1, left = cores - (int)c->shard_count;
    return left > half ? left : half;
}

static mr_status start_worker(cluster *c, mr_err *err) {
    char threads[TEXT_BYTES], blocks[TEXT_BYTES];
    char *registry = mr_format("%s/registry.json", c->run_folder);
    argument_list list = {.count = 1};
    add(&list, "--model", c->s.model);
    add(&list, "--registry", registry);
    add(&list, "--threads", number(threads, worker_threads(c)));
    add(&list, "--kv-blocks", number(blocks, c->s.kv_blocks));
    add(&list, "--isa", c->s.isa);
    mr_status status = start(c, "worker", 0, &list, err);
    free(registry);
    if (status == MR_OK) status = wait_ready(c, err);
    if (status == MR_OK) mr_members_add(&c->registry.workers, c->children[c->shard_count].address);
    return status;
}

static mr_status start_coordinator(cluster *c, mr_err *err) {
    char port[TEXT_BYTES];
    argument_list list = {.count = 1};
    add(&list, "--model", c->s.model);
    add(&list, "--worker", c->children[c->shard_count].address);
    add(&list, "--host", c->s.host);
    add(&list, "--port", number(port, c->s.port));
    mr_status status = start(c, "coordinator", 0, &list, err);
    if (status == MR_OK) status = wait_ready(c, err);
    if (status == MR_OK)
        mr_members_add(&c->registry.coordinators, c->children[c->shard_count + 1].address);
    return status;
}

static mr_status start_all(cluster *c, mr_err *err) {
    mr_status status = start_memshards(c, err);
    if (status == MR_OK) status = save_registry(c, err);
    if (status == MR_OK) status = start_worker(c, err);
    if (status == MR_OK) status = start_coordinator(c, err);
    return status == MR_OK ? save_registry(c, err) : status;
}

/* --- showing ---------------------------------------------------------------------------------- */

/* "cells 0 2 4 .. 8 of 2x5": a shard's cells are evenly spaced. */
static void describe_cells(const cluster *c, uint32_t shard, char *out, size_t room) {
    const uint32_t count = c->plans[shard].cell_count, step = c->shard_count;
    if (count == 1)
        snprintf(out, room, "cell %u", shard);
    else if (count == 2)
        snprintf(out, room, "cells %u, %u", shard, shard + step);
    else
        snprintf(out, room, "cells %u, %u .. %u", shard, shard + step, shard + (count - 1) * step);
}

/* A model with a chat template answers chats; any other continues a text. */
static bool has_chat_template(const cluster *c) {
    json_t *root = NULL;
    char *path = mr_format("%s/tokenizer_config.json", c->s.model);
    const bool found = mr_json_load(&root, path, MR_MAX_CONFIG_BYTES, NULL) == MR_OK &&
                       json_is_string(json_object_get(root, "chat_template"));
    json_decref(root);
    free(path);
    return found;
}

static void show_example(const cluster *c, const char *address) {
    const bool chats = has_chat_template(c);
    printf("  curl http://%s/v1/%s -H 'Content-Type: application/json' \\\n"
           "       -d '{\"model\": \"%s\", %s, \"max_tokens\": 32}'\n",
           address, chats ? "chat/completions" : "completions", mr_model_name(c->model),
           chats ? "\"messages\": [{\"role\": \"user\", \"content\": \"define river\"}]"
                 : "\"prompt\": \"Once upon a time\"");
}

static void show(const cluster *c) {
    printf("%-11s %3s %8s  %-22s %-34s %12s  %s\n", "role", "id", "pid", "address", "holds",
           "bytes", "state");
    for (uint32_t i = 0; i < c->child_count; i++) {
        const mr_child *child = &c->children[i];
        char holds[80] = "-", cells[48], bytes[TEXT_BYTES] = "-";
        if (i < c->shard_count) {
            const mr_store_plan *p = &c->plans[i];
            describe_cells(c, i, cells, sizeof(cells));
            snprintf(holds, sizeof(holds), "%s of %s, %" PRIu64 " rows", cells, c->grid, p->rows);
            number(bytes, (int64_t)(p->mapped_bytes + p->kept_bytes));
        }
        printf("%-11s %3u %8d  %-22s %-34s %12s  %s\n", child->role, child->id, (int)child->pid,
               child->address, holds, bytes, "ready");
    }
    const char *address = c->children[c->child_count - 1].address;
    printf("\nlogs and registry: %s\n", c->run_folder);
    printf("serving http://%s   (Ctrl-C ends it)\n\n", address);
    show_example(c, address);
    fflush(stdout);
}

/* --- watching --------------------------------------------------------------------------------- */

static void report_death(const mr_child *child, pid_t pid) {
    char how[128];
    mr_child_describe_end(child, how, sizeof(how));
    fprintf(stderr, "memrack up: %s %u (pid %d) %s; the end of %s:\n", child->role, child->id,
            (int)pid, how, child->log_path);
    mr_child_print_log_tail(child, LOG_LINES);
}

/* The worker keeps trying the address: whoever listens there again with the same cells is taken. */
static void show_restart(const cluster *c, uint32_t shard) {
    fprintf(stderr,
            "memrack up: the others go on; requests fail until it is started again:\n"
            "%s/memrack-memshard --model %s --grid %s --index %u --of %u --listen %s\n",
            c->programs, c->s.model, c->grid, shard, c->shard_count, c->children[shard].address);
}

/* Until we are asked to end (MR_OK), or the cluster has lost what it cannot do without. */
static mr_status watch(cluster *c, mr_err *err) {
    pid_t pids[MR_MAX_MEMSHARDS + 2];
    for (uint32_t i = 0; i < c->child_count; i++) pids[i] = c->children[i].pid;
    for (;;) {
        const int number_of_signal = mr_signals_wait(c->signals, INT64_MAX);
        if (number_of_signal != SIGCHLD) return MR_OK;
        for (mr_child *dead; (dead = mr_children_reap(c->children, c->child_count)) != NULL;) {
            const uint32_t index = (uint32_t)(dead - c->children);
            report_death(dead, pids[index]);
            if (index >= c->shard_count)
                return mr_fail(err, MR_ERR_UNAVAILABLE, "the %s is gone: ending the others",
                               dead->role);
            show_restart(c, index);
        }
    }
}

/* --- ending ----------------------------------------------------------------------------------- */

static void remove_folder(const char *folder) {
    DIR *dir = opendir(folder);
    if (!dir) return;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.') unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    rmdir(folder);
}

static void finish(cluster *c, bool keep_folder) {
    if (c->signals >= 0 && c->children)
        mr_children_end(c->children, c->child_count, c->signals, GRACE_MS);
    for (uint32_t i = 0; i < c->child_count; i++) mr_child_free(&c->children[i]);
    if (c->run_folder && !keep_folder) remove_folder(c->run_folder);
    if (c->signals >= 0) close(c->signals);
    mr_registry_free(&c->registry);
    mr_manifest_free(&c->manifest);
    mr_model_close(c->model);
    free(c->children);
    free(c->run_folder);
    free(c->programs);
    free(c->grid);
    free(c->plans);
}

int mr_cmd_up(int argc, char **argv) {
    cluster c = {.signals = -1};
    mr_err err = {{0}};
    const int done = parse(&c.s, argc, argv);
    if (done >= 0) return done;
    mr_status status = prepare(&c, &err);
    if (status == MR_OK) {
        status = start_all(&c, &err);
        for (uint32_t i = 0; status == MR_ERR_UNAVAILABLE && i < c.child_count; i++)
            if (c.children[i].is_dead) mr_child_print_log_tail(&c.children[i], LOG_LINES);
    }
    if (status == MR_OK) {
        show(&c);
        status = watch(&c, &err);
    }
    const bool failed = status != MR_OK && status != MR_ERR_CANCELLED;
    if (failed && c.run_folder) fprintf(stderr, "memrack up: logs are kept in %s\n", c.run_folder);
    finish(&c, failed);
    if (status == MR_ERR_CANCELLED) return 1;
    return failed ? mr_cli_fail("up", status, &err) : 0;
}
