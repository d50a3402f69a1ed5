/* cmd_serve.c - `memrack serve MODEL`: every role in this process behind one HTTP port. */
#include "cli/cli.h"
#include "cli/local.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "coordinator/front.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

typedef struct {
    const char *host, *name, *grid, *isa, *numeric;
    int64_t port, threads, kv_blocks, step_tokens, step_sequences, max_queue, max_connections;
    int64_t ready_fd;
    bool two_trips;
    mr_draft_settings speculation;
} arguments;

static mr_front *_Atomic front_to_stop;

static void on_signal(int number) {
    mr_front *front = front_to_stop;
    (void)number;
    if (front) mr_front_stop(front);
}

static int run(const char *command, const char *model, const arguments *a) {
    mr_err err = {{0}};
    mr_local *local;
    mr_front *front = NULL;
    const mr_local_options options = {
        .embedded = {.model_directory = model,
                     .threads = (uint32_t)a->threads,
                     .isa = a->isa,
                     .numeric = a->numeric,
                     .grid = a->grid,
                     .kv_blocks = (uint32_t)a->kv_blocks,
                     .step_tokens_max = (uint32_t)a->step_tokens,
                     .step_sequences_max = (uint32_t)a->step_sequences,
                     .two_trips = a->two_trips},
        .name = a->name,
        .queue_max = (uint32_t)a->max_queue,
        .speculation = a->speculation,
        .answers_wanted = 16,
    };
    mr_status status = mr_local_open(&local, &options, &err);
    if (status != MR_OK) return mr_cli_fail(command, status, &err);
    const mr_front_options http = {.served = mr_local_served(local),
                                   .core = mr_local_core(local),
                                   .http = {.host = a->host,
                                            .port = (uint16_t)a->port,
                                            .connections_max = (uint32_t)a->max_connections}};
    status = mr_front_open(&front, &http, &err);
    if (status == MR_OK) {
        front_to_stop = front;
        signal(SIGTERM, on_signal);
        signal(SIGINT, on_signal);
        mr_log_info("http://%s serves %s; try:\n  curl http://%s/v1/completions -H 'Content-Type: "
                    "application/json' -d '{\"prompt\":\"hello\",\"max_tokens\":32}'",
                    mr_front_address(front), mr_local_served(local)->name, mr_front_address(front));
        if (a->ready_fd >= 0) dprintf((int)a->ready_fd, "%s\n", mr_front_address(front));
        mr_front_run(front);
        front_to_stop = NULL;
        mr_log_info("ended");
    }
    mr_local_close(local); /* the core first: its last events go to the front */
    mr_front_close(front);
    return status == MR_OK ? 0 : mr_cli_fail(command, status, &err);
}

int mr_cmd_serve(int argc, char **argv) {
    arguments a = {.port = 8080, .max_queue = 256, .max_connections = 1024, .ready_fd = -1};
    const mr_option options[] = {
        {"host", 0, MR_OPT_TEXT, &a.host, 0, 0, "HOST",
         "address to listen on; 127.0.0.1 (0.0.0.0: everyone)"},
        {"port", 'p', MR_OPT_INT, &a.port, 0, 65535, "N", "port, 0 for any; 8080"},
        {"name", 0, MR_OPT_TEXT, &a.name, 0, 0, "NAME", "model name for clients; the folder's"},
        {"threads", 't', MR_OPT_INT, &a.threads, 0, MR_MAX_THREADS, "N",
         "compute threads; 0: one per core"},
        {"grid", 0, MR_OPT_TEXT, &a.grid, 0, 0, "GxW", "cut the tables; 1x1 (answers are equal)"},
        {"numeric", 0, MR_OPT_TEXT, &a.numeric, 0, 0, "KIND",
         "exact, or fast: bf16 products where the processor has them (exact)"},
        {"isa", 0, MR_OPT_TEXT, &a.isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon; the best there is"},
        {"two-trips", 0, MR_OPT_FLAG, &a.two_trips, 0, 0, NULL, "gate rows on the worker"},
        {"kv-blocks", 0, MR_OPT_INT, &a.kv_blocks, 0, 1 << 24, "N",
         "KV cache in blocks of 16 tokens; 0: up to 16 contexts or 1 GiB"},
        {"step-tokens", 0, MR_OPT_INT, &a.step_tokens, 0, MR_MAX_STEP_TOKENS, "N",
         "most tokens of a step; 0: the engine's own"},
        {"step-sequences", 0, MR_OPT_INT, &a.step_sequences, 0, MR_MAX_STEP_SEQUENCES, "N",
         "most answers written at once; 0: the engine's own"},
        MR_DRAFT_SETTINGS(&a.speculation),
        {"max-queue", 0, MR_OPT_INT, &a.max_queue, 1, MR_MAX_QUEUED_REQUESTS, "N",
         "requests that may wait, then 429; 256"},
        {"max-connections", 0, MR_OPT_INT, &a.max_connections, 1, MR_MAX_HTTP_CONNECTIONS, "N",
         "open client connections, then 503; 1024"},
        {"ready-fd", 0, MR_OPT_INT, &a.ready_fd, 0, 1 << 20, "FD",
         "write the address and a line break there when ready"},
        {0}};
    const mr_command_spec spec = {
        "memrack serve MODEL [options]",
        "Serves a model over an OpenAI-shaped HTTP API, all roles in this process.\n"
        "example: memrack serve models/demo --port 8080\n"
        "         curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: "
        "application/json' \\\n"
        "              -d '{\"messages\":[{\"role\":\"user\",\"content\":\"define river\"}]}'",
        options, 1, 1};
    const char *model;
    int count;
    const int code = mr_cli_parse(&spec, argc, argv, &model, &count);
    return code >= 0 ? code : run(argv[0], model, &a);
}
