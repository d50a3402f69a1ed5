/* main.c - memrack-memshard: holds its cells of a model's tables and answers retrieval.
 *
 * It says what it will hold before it maps or reads any of it, then that it is ready and where.
 * Threads: the main thread opens everything, then waits for a signal; serving threads do the rest.
 */
#include "common/base/options.h"
#include "common/net/process.h"
#include "common/net/server.h"
#include "common/ops/team.h"
#include "memshard/serve.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "memrack-memshard";

typedef struct {
    const char *model, *grid, *listen, *isa;
    int64_t index, of, threads, ready_fd;
    bool keys;
} settings;

static int parse(settings *s, int argc, char **argv) {
    *s = (settings){.grid = "1x1", .listen = "127.0.0.1:0", .of = 1, .threads = 2, .ready_fd = -1};
    const mr_option options[] = {
        {"model", 'm', MR_OPT_TEXT, &s->model, 0, 0, "DIR", "the model's directory"},
        {"grid", 'g', MR_OPT_TEXT, &s->grid, 0, 0, "GxW", "row groups x width slices (1x1)"},
        {"index", 'i', MR_OPT_INT, &s->index, 0, MR_MAX_MEMSHARDS - 1, "I",
         "which memshard this is, from 0 (0)"},
        {"of", 'n', MR_OPT_INT, &s->of, 1, MR_MAX_MEMSHARDS, "M",
         "how many memshards there are (1)"},
        {"listen", 'l', MR_OPT_TEXT, &s->listen, 0, 0, "ADDR",
         "host:port (port 0: any) or unix:PATH (127.0.0.1:0)"},
        {"threads", 't', MR_OPT_INT, &s->threads, 1, MR_MAX_THREADS, "N", "serving threads (2)"},
        {"keys", 'k', MR_OPT_FLAG, &s->keys, 0, 0, NULL,
         "hold all product keys too, so that workers may leave the scoring to this shard"},
        {"isa", 0, MR_OPT_TEXT, &s->isa, 0, 0, "NAME", "ref, avx2 or avx512 (the best there is)"},
        {"ready-fd", 0, MR_OPT_INT, &s->ready_fd, 0, 1 << 20, "FD",
         "write the address to this descriptor when ready"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack-memshard --model DIR [options]",
        .summary = "Holds cells I, I + M, .. of the tables' grid and answers retrieval.\n"
                   "Example: memrack-memshard --model models/demo --grid 2x1 --index 0 --of 2",
        .options = options};
    mr_err err = {{0}};
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    if (status == MR_OK && !s->model)
        status = mr_fail(&err, MR_ERR_ARGUMENT, "--model is missing; try --help");
    return status == MR_OK ? -1 : mr_process_fail(component, status, &err);
}

static void print_plan(const settings *s, const mr_store_plan *plan) {
    const uint64_t bytes = plan->mapped_bytes + plan->kept_bytes;
    printf("memshard %d of %d, grid %s: will hold %u cell%s, %llu rows, %llu bytes (%.1f MiB): "
           "%llu mapped from the files, %llu in memory of its own\n",
           (int)s->index, (int)s->of, s->grid, plan->cell_count, plan->cell_count == 1 ? "" : "s",
           (unsigned long long)plan->rows, (unsigned long long)bytes,
           (double)bytes / (double)MR_MIB, (unsigned long long)plan->mapped_bytes,
           (unsigned long long)plan->kept_bytes);
    fflush(stdout);
}

static mr_status serve(const settings *s, mr_memshard *shard, mr_err *err) {
    mr_server *server;
    mr_server_options options = {.address = s->listen, .threads = (uint32_t)s->threads};
    mr_memshard_serve_options(shard, &options);
    const mr_status status = mr_server_open(&server, &options, err);
    if (status != MR_OK) return status;
    mr_process_ready(mr_server_address(server), (int)s->ready_fd);
    mr_process_wait();
    mr_server_close(server);
    return MR_OK;
}

static mr_status run(const settings *s, mr_err *err) {
    mr_model *model = NULL;
    mr_manifest manifest = {0};
    mr_memshard *shard = NULL;
    mr_store_plan plan;
    mr_grid grid;
    const mr_ops *ops = mr_ops_find(s->isa);
    if (!ops)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--isa %s: this processor or build has no such kernels", s->isa);
    mr_status status = mr_grid_parse(&grid, s->grid, err);
    if (status != MR_OK) return status;
    status = mr_model_open(&model, s->model, err);
    if (status != MR_OK) return status;
    if (mr_model_table_count(model) == 0) {
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "%s has no memory layers: a memshard would hold nothing", s->model);
        goto close_model;
    }
    status = mr_manifest_load(&manifest, model, NULL, NULL, err);
    if (status != MR_OK) goto close_model;
    status =
        mr_memshard_plan(&plan, model, &manifest, grid, (uint32_t)s->index, (uint32_t)s->of, err);
    if (status != MR_OK) goto free_manifest;
    print_plan(s, &plan);
    status = mr_memshard_open(&shard, model, &manifest, ops, grid, (uint32_t)s->index,
                              (uint32_t)s->of, err);
    if (status != MR_OK) goto free_manifest;
    if (s->keys) status = mr_memshard_open_keys(shard, model, err);
    if (status == MR_OK) status = serve(s, shard, err);
    mr_memshard_close(shard);
free_manifest:
    mr_manifest_free(&manifest);
close_model:
    mr_model_close(model);
    return status;
}

int main(int argc, char **argv) {
    settings s;
    mr_err err = {{0}};
    mr_process_begin(component);
    mr_float_environment(); /* the serving threads inherit it */
    const int done = parse(&s, argc, argv);
    if (done >= 0) return done;
    const mr_status status = run(&s, &err);
    return status == MR_OK ? 0 : mr_process_fail(component, status, &err);
}
