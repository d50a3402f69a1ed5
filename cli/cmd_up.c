/* cmd_up.c - `memrack up MODEL`: the real processes of a cluster on this machine, started, shown,
 * watched, and ended together.
 *
 * Here is what both ways share: options, the manifest (computed once, so that the processes find
 * it), the folder of the run. up_cluster.c starts a cluster around a real etcd, up_static.c one
 * without. */
#include "cli/cli.h"

#include "cli/up.h"
#include "cli/up_hosts.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/chat_template.h"
#include "common/net/address.h"

#include <errno.h>
#include <ftw.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int parse(mr_up_settings *s, int argc, char **argv) {
    *s = (mr_up_settings){.host = "127.0.0.1",
                          .name = "default",
                          .ssh = "ssh -o BatchMode=yes",
                          .memshards = 2,
                          .replicas = 1,
                          .workers = 1,
                          .stages = 1,
                          .coordinators = 1,
                          .port = 8080,
                          .ready_timeout_s = 300};
    const mr_option options[] = {
        {"memshards", 'm', MR_OPT_INT, &s->memshards, 1, MR_MAX_MEMSHARDS, "M",
         "memshard processes of each replica set (2)"},
        {"replicas", 'r', MR_OPT_INT, &s->replicas, 1, MR_MAX_REPLICAS, "R",
         "replica sets: every part of the tables is held R times (1)"},
        {"workers", 'w', MR_OPT_INT, &s->workers, 1, MR_MAX_GROUPS, "N",
         "worker groups that share the requests (1)"},
        {"stages", 's', MR_OPT_INT, &s->stages, 1, MR_MAX_STAGES, "P",
         "pipeline stages of each worker group, a process each (1)"},
        {"coordinators", 'c', MR_OPT_INT, &s->coordinators, 1, 16, "C",
         "coordinators, on ports one after the other (1)"},
        {"grid", 'g', MR_OPT_TEXT, &s->grid, 0, 0, "GxW",
         "row groups x width slices of the tables (Mx1)"},
        {"threads", 't', MR_OPT_INT, &s->threads, 0, MR_MAX_THREADS, "N",
         "compute threads of a worker (0: cores that memshards leave, at least half)"},
        {"port", 'p', MR_OPT_INT, &s->port, 0, 65535, "P", "HTTP port; 0: any (8080)"},
        {"host", 0, MR_OPT_TEXT, &s->host, 0, 0, "HOST", "HTTP address (127.0.0.1)"},
        {"kv-blocks", 0, MR_OPT_INT, &s->kv_blocks, 0, 1 << 30, "N",
         "KV cache blocks of 16 tokens (0: 16 contexts or 1 GiB)"},
        {"numeric", 0, MR_OPT_TEXT, &s->numeric, 0, 0, "KIND",
         "exact, or fast: bf16 products where the processor has them (exact)"},
        {"isa", 0, MR_OPT_TEXT, &s->isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon (the best there is)"},
        MR_DRAFT_SETTINGS(&s->speculation),
        {"name", 0, MR_OPT_TEXT, &s->name, 0, 0, "NAME",
         "name of this cluster, for `memrack status` and `memrack down` (default)"},
        {"fabric", 0, MR_OPT_TEXT, &s->fabric, 0, 0, "KIND",
         "between workers and memshards: auto, tcp or shm (auto: shared memory)"},
        {"run-folder", 0, MR_OPT_TEXT, &s->run_folder, 0, 0, "DIR",
         "logs and etcd's data (a temporary folder, removed at the end)"},
        {"table", 0, MR_OPT_TEXT, &s->table, 0, 0, "WHEN",
         "live table: auto, always, never (auto: on a terminal)"},
        {"static", 0, MR_OPT_FLAG, &s->is_static, 0, 0, NULL,
         "without etcd: one worker, one replica, fixed places"},
        {"no-restart", 0, MR_OPT_FLAG, &s->no_restart, 0, 0, NULL,
         "do not start dead processes again"},
        {"hosts", 0, MR_OPT_TEXT, &s->hosts, 0, 0, "FILE",
         "print the commands for these hosts instead of starting anything here"},
        {"run", 0, MR_OPT_FLAG, &s->is_run, 0, 0, NULL, "with --hosts: start them over ssh"},
        {"ssh", 0, MR_OPT_TEXT, &s->ssh, 0, 0, "COMMAND",
         "with --run: how a host is reached (ssh -o BatchMode=yes)"},
        {"ready-timeout", 0, MR_OPT_INT, &s->ready_timeout_s, 1, 86400, "S",
         "seconds the processes may take to start (300)"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack up MODEL [options]",
        .summary =
            "Starts a cluster on this machine - etcd, memshards, workers, a coordinator - and\n"
            "shows it; Ctrl-C ends it.\n"
            "Example: memrack up models/demo --memshards 2 --replicas 2 --stages 2\n"
            "Without etcd:    memrack up models/demo --static\n"
            "Across machines: memrack up models/demo --hosts rack.hosts",
        .options = options,
        .positional_min = 1,
        .positional_max = 1};
    int count;
    return mr_cli_parse(&spec, argc, argv, &s->model, &count);
}

static mr_status check(const mr_up_settings *s, mr_err *err) {
    mr_draft_options draft;
    const mr_status status = mr_draft_settings_read(&draft, &s->speculation, err);
    if (status != MR_OK) return status;
    if (s->is_static && (s->replicas > 1 || s->workers > 1 || s->stages > 1 || s->coordinators > 1))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--static has one worker, one stage, one replica and one coordinator; "
                       "leave --static out for more");
    if (s->memshards * s->replicas > MR_MAX_MEMSHARDS)
        return mr_fail(err, MR_ERR_LIMIT, "%lld x %lld memshards; at most %d",
                       (long long)s->memshards, (long long)s->replicas, MR_MAX_MEMSHARDS);
    if (s->fabric && strcmp(s->fabric, "auto") != 0 && strcmp(s->fabric, "tcp") != 0 &&
        strcmp(s->fabric, "shm") != 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "--fabric %s: auto, tcp or shm on one machine",
                       s->fabric);
    if (s->table && strcmp(s->table, "auto") != 0 && strcmp(s->table, "always") != 0 &&
        strcmp(s->table, "never") != 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "--table %s: auto, always or never", s->table);
    return MR_OK;
}

/* --- what both ways share --------------------------------------------------------------------- */

static mr_status find_programs(mr_up *up, mr_err *err) {
    static const char *const names[] = {"memrack-memshard", "memrack-worker",
                                        "memrack-coordinator"};
    char self[4096];
    const ssize_t bytes = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (bytes <= 0) return mr_fail(err, MR_ERR_IO, "/proc/self/exe: %s", strerror(errno));
    self[bytes] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) *slash = '\0';
    up->programs = mr_strdup(self);
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

static mr_status make_folder(mr_up *up, mr_err *err) {
    if (up->s.run_folder) {
        up->run_folder = mr_strdup(up->s.run_folder);
        return mr_make_directories(up->run_folder, err);
    }
    const char *temporary = getenv("TMPDIR");
    char *folder = mr_format("%s/memrack-up-XXXXXX", temporary && *temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) {
        const mr_status status = mr_fail(err, MR_ERR_IO, "create %s: %s", folder, strerror(errno));
        free(folder);
        return status;
    }
    up->run_folder = folder;
    return MR_OK;
}

static mr_status prepare(mr_up *up, mr_err *err) {
    mr_grid grid;
    mr_status status = find_programs(up, err);
    if (status == MR_OK) status = mr_model_open(&up->model, up->s.model, err);
    if (status == MR_OK)
        status = mr_manifest_load(&up->manifest, up->model, mr_cli_progress, NULL, err);
    if (status != MR_OK) return status;
    const bool has_tables = mr_model_table_count(up->model) > 0;
    up->grid = up->s.grid ? mr_strdup(up->s.grid)
                          : mr_format("%lldx1", has_tables ? (long long)up->s.memshards : 1);
    status = mr_grid_parse(&grid, up->grid, err);
    if (status == MR_OK) status = make_folder(up, err);
    return status == MR_OK ? mr_signals_open(&up->signals, err) : status;
}

void mr_up_program(mr_up_arguments *list, const mr_up *up, const char *role) {
    *list = (mr_up_arguments){.count = 1};
    list->items[0] = mr_format("%s/memrack-%s", up->programs, role);
}

void mr_up_add(mr_up_arguments *list, const char *name, const char *value) {
    if (!value || list->count + 2 > MR_CHILD_ARGUMENTS_MAX) return;
    list->items[list->count++] = mr_strdup(name);
    if (*value) list->items[list->count++] = mr_strdup(value);
}

void mr_up_add_number(mr_up_arguments *list, const char *name, int64_t value) {
    char text[32];
    snprintf(text, sizeof(text), "%lld", (long long)value);
    mr_up_add(list, name, text);
}

void mr_up_add_speculation(mr_up_arguments *list, const mr_up *up) {
    if (up->s.speculation.tokens_max > 0)
        mr_up_add_number(list, "--speculate", up->s.speculation.tokens_max);
    mr_up_add(list, "--draft", up->s.speculation.kind);
}

void mr_up_arguments_free(mr_up_arguments *list) {
    for (uint32_t i = 0; i < list->count; i++) free(list->items[i]);
    *list = (mr_up_arguments){0};
}

/* Threads that wait for each other lose far more to a core they share with a memshard than they
 * gain by being one more. */
int64_t mr_up_worker_threads(const mr_up *up, uint32_t count, uint32_t shards) {
    cpu_set_t allowed;
    if (up->s.threads > 0) return up->s.threads;
    const int cores =
        sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    const int half = cores / 2 > 0 ? cores / 2 : 1, left = cores - (int)shards;
    const int all = left > half ? left : half;
    return all / (int)count > 0 ? all / (int)count : 1;
}

/* A model with a chat template answers chats; any other continues a text. */
static bool has_chat_template(const mr_up *up) {
    mr_chat_template *chat;
    if (mr_chat_template_open(&chat, up->s.model, NULL) != MR_OK) return false;
    const bool has = mr_chat_template_check(chat, NULL) == MR_OK;
    mr_chat_template_close(chat);
    return has;
}

void mr_up_show_example(const mr_up *up, const char *address) {
    const bool chats = has_chat_template(up);
    printf("  curl http://%s/v1/%s -H 'Content-Type: application/json' \\\n"
           "       -d '{\"model\": \"%s\", %s, \"max_tokens\": 32}'\n",
           address, chats ? "chat/completions" : "completions", mr_model_name(up->model),
           chats ? "\"messages\": [{\"role\": \"user\", \"content\": \"define river\"}]"
                 : "\"prompt\": \"Once upon a time\"");
}

void mr_up_report_death(const mr_child *child, int64_t pid) {
    char how[128];
    mr_child_describe_end(child, how, sizeof(how));
    fprintf(stderr, "memrack up: %s %u (pid %lld) %s; the end of %s:\n", child->role, child->id,
            (long long)pid, how, child->log_path);
    mr_child_print_log_tail(child, MR_UP_LOG_LINES);
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *walk) {
    (void)st, (void)kind, (void)walk;
    return remove(path);
}

static void finish(mr_up *up, bool keep_folder) {
    if (up->run_folder && !keep_folder && !up->s.run_folder)
        nftw(up->run_folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (up->signals >= 0) close(up->signals);
    mr_manifest_free(&up->manifest);
    mr_model_close(up->model);
    free(up->run_folder);
    free(up->programs);
    free(up->grid);
}

int mr_cmd_up(int argc, char **argv) {
    mr_up up = {.signals = -1};
    mr_err err = {{0}};
    const int done = parse(&up.s, argc, argv);
    if (done >= 0) return done;
    mr_status status = check(&up.s, &err);
    if (status == MR_OK && up.s.hosts) {
        status = mr_up_hosts(&up.s, &err);
        return status == MR_OK ? 0 : mr_cli_fail("up", status, &err);
    }
    if (status == MR_OK) status = prepare(&up, &err);
    if (status == MR_OK)
        status = up.s.is_static ? mr_up_static(&up, &err) : mr_up_cluster(&up, &err);
    const bool failed = status != MR_OK && status != MR_ERR_CANCELLED;
    if (failed && up.run_folder)
        fprintf(stderr, "memrack up: logs are kept in %s\n", up.run_folder);
    finish(&up, failed);
    if (status == MR_ERR_CANCELLED) return 1;
    return failed ? mr_cli_fail("up", status, &err) : 0;
}
