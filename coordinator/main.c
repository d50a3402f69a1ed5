/* main.c - memrack-coordinator: HTTP in front, worker groups behind.
 *
 * Threads: the core's loop, the HTTP server, and this one, which waits for the worker, says so, and
 * then for the end. SIGTERM or SIGINT finishes what is under way; a second one ends at once. */
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/options.h"
#include "common/model/manifest.h"
#include "coordinator/conductor.h"
#include "coordinator/front.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *model, *host, *name, *lost;
    mr_text_list workers;
    int64_t port, ready_fd, max_queue, max_connections, step_timeout_ms, drain_timeout_s;
    int64_t worker_wait_ms, silence_ms, lost_wait_ms, replace_after_s;
    mr_agent_settings agent;
    mr_draft_settings speculation;
    bool allow_same_host;
} arguments;

typedef struct {
    mr_model *model;
    mr_manifest manifest;
    mr_served *served;
    mr_core *core;
    mr_front *front;
    mr_conductor *conductor; /* NULL: no cluster */
} program;

static mr_front *_Atomic front_to_stop;
static atomic_bool is_stopping;

static void on_signal(int number) {
    mr_front *front = front_to_stop;
    (void)number;
    is_stopping = true;
    if (front) mr_front_stop(front);
}

static mr_status parse(arguments *a, int argc, char **argv, mr_err *err) {
    const mr_option options[] = {
        {"model", 'm', MR_OPT_TEXT, &a->model, 0, 0, "DIR", "model folder (without --cluster)"},
        {"worker", 'w', MR_OPT_LIST, &a->workers, 0, 0, "ADDR",
         "a worker group: host:port or unix:PATH of its first stage; may be given several times"},
        {"host", 0, MR_OPT_TEXT, &a->host, 0, 0, "HOST", "address to listen on; 127.0.0.1"},
        {"port", 'p', MR_OPT_INT, &a->port, 0, 65535, "N", "port to listen on, 0 for any; 8080"},
        {"name", 0, MR_OPT_TEXT, &a->name, 0, 0, "NAME", "model name for clients; the folder's"},
        {"max-queue", 0, MR_OPT_INT, &a->max_queue, 1, MR_MAX_QUEUED_REQUESTS, "N",
         "requests that may wait, then 429; 256"},
        {"max-connections", 0, MR_OPT_INT, &a->max_connections, 1, MR_MAX_HTTP_CONNECTIONS, "N",
         "open client connections, then 503; 1024"},
        {"step-timeout-ms", 0, MR_OPT_INT, &a->step_timeout_ms, 100, 600000, "N",
         "a worker whose step makes no progress for so long is lost; 60000"},
        {"silence-ms", 0, MR_OPT_INT, &a->silence_ms, 50, 600000, "N",
         "a worker that answers no ping for so long is lost; 1000"},
        {"worker-wait-ms", 0, MR_OPT_INT, &a->worker_wait_ms, 1, 600000, "N",
         "how long requests wait while no worker is there, then 503; 5000"},
        {"on-lost-partition", 0, MR_OPT_TEXT, &a->lost, 0, 0, "WHAT",
         "fail, wait or degrade, where a request does not say; wait"},
        {"lost-wait-ms", 0, MR_OPT_INT, &a->lost_wait_ms, 1, 600000, "N",
         "how long a request waits for a lost partition, then 503; 2000"},
        MR_DRAFT_SETTINGS(&a->speculation),
        MR_AGENT_OPTIONS(&a->agent),
        {"allow-same-host", 0, MR_OPT_FLAG, &a->allow_same_host, 0, 0, NULL,
         "in a cluster: replicas may share a machine, for tests on one"},
        {"replace-after", 0, MR_OPT_INT, &a->replace_after_s, 1, 86400, "S",
         "in a cluster: a memshard gone for so long is replaced; 30"},
        {"drain-timeout", 0, MR_OPT_INT, &a->drain_timeout_s, 1, 3600, "S",
         "seconds for answers under way after SIGTERM; 30"},
        {"ready-fd", 0, MR_OPT_INT, &a->ready_fd, 0, 1 << 20, "FD",
         "write the address and a line break there once the worker answers"},
        {0}};
    const mr_command_spec spec = {
        "memrack-coordinator (--model DIR --worker ADDR .. | --cluster WHERE) [options]",
        "Takes OpenAI-shaped requests over HTTP and has them answered by worker groups.\n"
        "example: memrack-coordinator --model models/demo --worker 127.0.0.1:7600 --port 8080\n"
        "         memrack-coordinator --cluster etcd:10.0.0.1:2379 --host 10.0.0.2 "
        "--plain-control",
        options, 0, 0};
    const char *positional[1];
    int count;
    const mr_status status = mr_options_parse(&spec, argc, argv, positional, &count, err);
    if (status != MR_OK) return status;
    if (a->workers.count > MR_MAX_GROUPS)
        return mr_fail(err, MR_ERR_ARGUMENT, "%u workers; at most %d", a->workers.count,
                       MR_MAX_GROUPS);
    if (a->agent.cluster && (a->model || a->workers.count > 0))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--cluster says which models and workers there are: no --model, --worker");
    if (!a->agent.cluster && (!a->model || a->workers.count == 0))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--model and --worker, or --cluster, are needed; try --help");
    return MR_OK;
}

static mr_status parse_policy(mr_lost_policy *out, const char *name, mr_err *err) {
    static const char *const names[] = {"fail", "wait", "degrade"};
    *out = MR_LOST_DEFAULT;
    for (int i = 0; name && i < 3; i++)
        if (strcmp(name, names[i]) == 0) *out = (mr_lost_policy)(MR_LOST_FAIL + i);
    if (!name || *out != MR_LOST_DEFAULT) return MR_OK;
    return mr_fail(err, MR_ERR_ARGUMENT, "--on-lost-partition is fail, wait or degrade, not '%s'",
                   name);
}

/* One group each, named worker0, worker1 and so on. */
static void set_workers(const program *p, const arguments *a) {
    mr_group_spec groups[MR_MAX_GROUPS];
    char names[MR_MAX_GROUPS][24];
    for (uint32_t i = 0; i < a->workers.count; i++) {
        snprintf(names[i], sizeof(names[i]), "worker%u", i);
        groups[i] = (mr_group_spec){
            .name = names[i], .address = a->workers.items[i], .digest = p->manifest.digest};
    }
    mr_core_set_groups(p->core, groups, a->workers.count);
}

static mr_status open_model(program *p, const arguments *a, mr_err *err) {
    mr_status status = mr_model_open(&p->model, a->model, err);
    if (status == MR_OK) status = mr_manifest_load(&p->manifest, p->model, NULL, NULL, err);
    return status == MR_OK ? mr_served_open(&p->served, p->model, a->name, err) : status;
}

static void on_drain(void *context, bool ends) {
    program *p = context;
    mr_core_drain(p->core);
    if (ends) kill(getpid(), SIGTERM);
}

static mr_status open_program(program *p, const arguments *a, mr_err *err) {
    const mr_conductor_options conductor = {.agent = &a->agent,
                                            .allow_same_host = a->allow_same_host,
                                            .replace_after_s = a->replace_after_s,
                                            .drain = on_drain,
                                            .context = p};
    mr_status status = a->agent.cluster ? mr_conductor_open(&p->conductor, &conductor, err)
                                        : open_model(p, a, err);
    if (status != MR_OK) return status;
    mr_core_options core = {.digest = p->manifest.digest,
                            .silence_timeout_ms = (uint32_t)a->silence_ms,
                            .worker_wait_ms = (uint32_t)a->worker_wait_ms,
                            .lost_wait_ms = (uint32_t)a->lost_wait_ms,
                            .tokenizer = p->served ? p->served->tokenizer : NULL,
                            .context_tokens = p->served ? p->served->context_tokens : 0,
                            .queue_max = (uint32_t)a->max_queue,
                            .step_timeout_ms = (uint32_t)a->step_timeout_ms};
    const mr_forwarder forwarder =
        p->conductor ? mr_conductor_forwarder(p->conductor) : (mr_forwarder){0};
    core.forwarder = p->conductor ? &forwarder : NULL;
    status = parse_policy(&core.lost, a->lost, err);
    if (status == MR_OK) status = mr_draft_settings_read(&core.draft, &a->speculation, err);
    if (status == MR_OK) status = mr_core_open(&p->core, &core, err);
    if (status != MR_OK) return status;
    if (!p->conductor) set_workers(p, a);
    const mr_front_options front = {.served = p->served,
                                    .core = p->core,
                                    .http = {.host = a->host,
                                             .port = (uint16_t)a->port,
                                             .connections_max = (uint32_t)a->max_connections},
                                    .drain_timeout_ms = (uint32_t)a->drain_timeout_s * 1000};
    status = mr_front_open(&p->front, &front, err);
    if (status == MR_OK && p->conductor) mr_conductor_start(p->conductor, p->core, p->front);
    return status;
}

static void close_program(program *p) {
    front_to_stop = NULL;
    mr_conductor_stop(p->conductor);
    mr_core_close(p->core);
    mr_conductor_close(p->conductor);
    mr_front_close(p->front);
    mr_served_close(p->served);
    mr_manifest_free(&p->manifest);
    mr_model_close(p->model);
}

static void *run_front(void *context) {
    mr_front_run(context);
    is_stopping = true;
    return NULL;
}

/* Waits for the worker; a refusal that waiting cannot cure is in the log every now and then. */
static void announce(const program *p, int64_t ready_fd) {
    mr_err err;
    while (!is_stopping) {
        if (mr_core_wait_ready(p->core, mr_now_ns() + 200000000, &err) != MR_OK) continue;
        mr_log_info("ready: http://%s serves %s", mr_front_address(p->front),
                    p->served ? p->served->name : "its cluster's models");
        if (ready_fd >= 0) dprintf((int)ready_fd, "%s\n", mr_front_address(p->front));
        return;
    }
}

int main(int argc, char **argv) {
    arguments a = {.port = 8080,
                   .ready_fd = -1,
                   .max_queue = 256,
                   .max_connections = 1024,
                   .step_timeout_ms = 60000,
                   .silence_ms = 1000,
                   .worker_wait_ms = 5000,
                   .lost_wait_ms = 2000,
                   .drain_timeout_s = 30};
    program p = {0};
    mr_err err = {{0}};
    pthread_t thread;
    signal(SIGPIPE, SIG_IGN);
    mr_log_setup("coordinator", MR_LOG_INFO, isatty(STDERR_FILENO));
    mr_status status = parse(&a, argc, argv, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    if (status == MR_OK) status = open_program(&p, &a, &err);
    if (status == MR_OK) {
        front_to_stop = p.front;
        signal(SIGTERM, on_signal);
        signal(SIGINT, on_signal);
        if (pthread_create(&thread, NULL, run_front, p.front) != 0)
            status = mr_fail(&err, MR_ERR_IO, "no thread for HTTP");
    }
    if (status != MR_OK) {
        fprintf(stderr, "memrack-coordinator: %s\n", err.text);
        close_program(&p);
        return status == MR_ERR_ARGUMENT ? 2 : 1;
    }
    mr_log_info("listening on http://%s", mr_front_address(p.front));
    announce(&p, a.ready_fd);
    pthread_join(thread, NULL);
    close_program(&p);
    mr_log_info("ended");
    return 0;
}
