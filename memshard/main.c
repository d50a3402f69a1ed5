/* main.c - memrack-memshard: holds its cells of a model's tables and answers retrieval.
 *
 * It says what it will hold before it maps or reads any of it, then that it is ready and where.
 * Threads: the main thread opens everything, then waits for a signal; serving threads do the rest.
 */
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/base/sizes.h"
#include "common/model/source.h"
#include "common/net/fabric_choice.h"
#include "common/net/process.h"
#include "common/net/server.h"
#include "common/ops/team.h"
#include "memshard/member.h"
#include "memshard/serve.h"
#include "memshard/setup.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char component[] = "memrack-memshard";

typedef struct {
    const char *model, *grid, *listen, *isa;
    const char *ucx, *capacity, *tier_ram, *cache_folder, *header_file, *key_file;
    const char *netrc_file;
    int64_t index, of, threads, ready_fd, spin_us, source_timeout_s;
    int64_t scrub_mib_s, gpu;
    bool keys, is_key_required, no_verify, no_ucx;
    mr_agent_settings agent;
} settings;

static int parse(settings *s, int argc, char **argv) {
    *s = (settings){.grid = "1x1",
                    .listen = "127.0.0.1:0",
                    .of = 1,
                    .threads = 2,
                    .scrub_mib_s = 32,
                    .gpu = -1,
                    .ready_fd = -1};
    const mr_option options[] = {
        {"model", 'm', MR_OPT_TEXT, &s->model, 0, 0, "DIR|URL",
         "the model's directory, or the http(s) address of one"},
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
        MR_AGENT_OPTIONS(&s->agent),
        {"capacity", 0, MR_OPT_TEXT, &s->capacity, 0, 0, "BYTES",
         "in a cluster: what this shard may hold, such as 400GiB (the memory that is free)"},
        {"tier-ram", 0, MR_OPT_TEXT, &s->tier_ram, 0, 0, "BYTES",
         "leave rows in their files and keep the hot ones in so much memory"},
        {"cache-folder", 0, MR_OPT_TEXT, &s->cache_folder, 0, 0, "DIR",
         "where models fetched from addresses are kept"},
        {"header-file", 0, MR_OPT_TEXT, &s->header_file, 0, 0, "FILE",
         "lines \"Name: value\" sent with every fetch"},
        {"netrc-file", 0, MR_OPT_TEXT, &s->netrc_file, 0, 0, "FILE",
         "user names and passwords for addresses (not in a cluster)"},
        {"source-timeout", 0, MR_OPT_INT, &s->source_timeout_s, 1, 1e6, "S",
         "for one range of a file, retries included (21600; not in a cluster)"},
        {"no-verify", 0, MR_OPT_FLAG, &s->no_verify, 0, 0, NULL,
         "do not compare rows with their checksums when they are loaded"},
        {"scrub-mib-s", 0, MR_OPT_INT, &s->scrub_mib_s, 0, 1 << 20, "N",
         "compare what is held with its checksums, N MiB a second; 0: never (32)"},
        {"ucx", 0, MR_OPT_TEXT, &s->ucx, 0, 0, "ADDR",
         "also listen on UCX here: shared memory, RDMA (in a cluster: as --listen, any port)"},
        {"no-ucx", 0, MR_OPT_FLAG, &s->no_ucx, 0, 0, NULL, "TCP only"},
        {"spin-us", 0, MR_OPT_INT, &s->spin_us, 0, 1000, "US",
         "look for news so long before sleeping; costs a core (0)"},
        {"session-key-file", 0, MR_OPT_TEXT, &s->key_file, 0, 0, "FILE",
         "64 hex digits: sessions may be keyed with it"},
        {"require-keys", 0, MR_OPT_FLAG, &s->is_key_required, 0, 0, NULL,
         "refuse sessions without a key: every frame carries a MAC"},
        {"gpu", 0, MR_OPT_INT, &s->gpu, 0, 63, "N", "pool on GPU N: rows go to its memory too"},
        {"isa", 0, MR_OPT_TEXT, &s->isa, 0, 0, "NAME", "ref, avx2, avx512, neon (the best)"},
        {"ready-fd", 0, MR_OPT_INT, &s->ready_fd, 0, 1 << 20, "FD",
         "write the address to this descriptor when ready"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack-memshard (--model DIR | --cluster WHERE) [options]",
        .summary =
            "Holds cells of a model's tables and answers retrieval: cells I, I + M, .. of a\n"
            "folder, or in a cluster those that its leader says.\n"
            "Example: memrack-memshard --model models/demo --grid 2x1 --index 0 --of 2\n"
            "         memrack-memshard --cluster etcd:10.0.0.1:2379 --listen 10.0.0.2:7100 "
            "--set a --plain-control",
        .options = options};
    mr_err err = {{0}};
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    if (status == MR_OK && !s->model == !s->agent.cluster)
        status =
            mr_fail(&err, MR_ERR_ARGUMENT, "either --model or --cluster is needed; try --help");
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

/* --- serving ---------------------------------------------------------------------------------- */

static mr_status load_key(const settings *s, mr_keys *keys, mr_err *err) {
    mr_session_key key;
    if (!s->key_file) return MR_OK;
    mr_status status = mr_key_load(&key, s->key_file, err);
    if (status == MR_OK) status = mr_keys_add(keys, &key, 0, err);
    mr_key_wipe(&key);
    return status;
}

/* UCX wants an address with a port of its own; where it cannot be had, TCP is enough. */
static mr_status open_server(mr_server **out, const settings *s, mr_memshard *shard, mr_keys *keys,
                             const char *ucx, mr_err *err) {
    mr_server_options options = {.address = s->listen,
                                 .threads = (uint32_t)s->threads,
                                 .ucx = ucx,
                                 .keys = keys,
                                 .is_key_required = s->is_key_required};
    mr_memshard_serve_options(shard, &options);
    return mr_server_open(out, &options, err);
}

static mr_status serve(const settings *s, mr_memshard *shard, mr_err *err) {
    mr_server *server;
    mr_keys *keys = mr_keys_open();
    mr_status status = load_key(s, keys, err);
    if (status == MR_OK) status = open_server(&server, s, shard, keys, s->ucx, err);
    if (status == MR_OK) {
        mr_process_ready(mr_server_address(server), (int)s->ready_fd);
        mr_process_wait();
        mr_server_close(server);
    }
    mr_keys_close(keys);
    return status;
}

static void leave(void *context) {
    (void)context;
    kill(getpid(), SIGTERM);
}

/* The host of --listen, any port; NULL: UCX is not to be had, or not wanted. Owned. */
static char *ucx_address(const settings *s) {
    mr_err why;
    const char *colon = strrchr(s->listen, ':');
    if (s->ucx) return mr_strdup(s->ucx);
    if (s->no_ucx || strncmp(s->listen, "unix:", 5) == 0 || !colon) return NULL;
    if (mr_fabric_check_ucx(&why) != MR_OK) {
        mr_log_info("no UCX, TCP only: %s", why.text);
        return NULL;
    }
    return mr_format("%.*s:0", (int)(colon - s->listen), s->listen);
}

static mr_status join(const settings *s, mr_setup *setup, uint64_t capacity,
                      mr_memshard_member **member, mr_err *err) {
    mr_server *server = NULL;
    char *ucx = ucx_address(s);
    const mr_memshard_member_options options = {.agent = &s->agent,
                                                .setup = setup,
                                                .capacity_bytes = capacity,
                                                .keys = s->keys,
                                                .leave = leave};
    mr_status status = mr_memshard_member_open(member, &options, err);
    mr_keys *keys = *member ? mr_agent_keys(mr_memshard_member_agent(*member)) : NULL;
    if (status == MR_OK) status = load_key(s, keys, err);
    if (status == MR_OK) status = open_server(&server, s, mr_setup_shard(setup), keys, ucx, err);
    if (status == MR_OK) {
        mr_memshard_member_start(*member, mr_server_address(server), mr_server_ucx(server));
        mr_process_ready(mr_server_address(server), (int)s->ready_fd);
        mr_process_wait();
        mr_memshard_member_leave(*member); /* first: nobody is sent here any more */
    }
    mr_server_close(server);
    free(ucx);
    return status;
}

static void cells_changed(void *context) {
    mr_memshard_member *const *member = context;
    if (*member) mr_memshard_member_changed(*member);
}

static mr_setup_options setup_of(const settings *s, const mr_ops *ops, mr_gpu *gpu,
                                 uint64_t tier_bytes) {
    return (mr_setup_options){.ops = ops,
                              .gpu = gpu,
                              .tier_bytes = tier_bytes,
                              .no_verify = s->no_verify,
                              .scrub_bytes_s =
                                  s->scrub_mib_s ? (uint64_t)s->scrub_mib_s << 20 : UINT64_MAX,
                              .opener.source = {.cache_folder = s->cache_folder,
                                                .header_file = s->header_file,
                                                .netrc_file = s->netrc_file,
                                                .total_s = (uint32_t)s->source_timeout_s}};
}

static mr_status run_member(const settings *s, const mr_ops *ops, mr_gpu *gpu, uint64_t tier_bytes,
                            mr_err *err) {
    mr_setup *setup;
    mr_memshard_member *member = NULL;
    uint64_t capacity = mr_memory_available();
    mr_status status = MR_OK;
    if (s->capacity) status = mr_bytes_parse(&capacity, s->capacity, "--capacity", err);
    if (status != MR_OK) return status;
    mr_setup_options options = setup_of(s, ops, gpu, tier_bytes);
    options.changed = cells_changed;
    options.context = &member;
    status = mr_setup_open(&setup, &options, err);
    if (status != MR_OK) return status;
    status = join(s, setup, capacity, &member, err);
    mr_setup_close(setup);
    mr_memshard_member_close(member);
    return status;
}

/* Cells index, index + of, .. of the model. */
static mr_status load_static(const settings *s, mr_setup *setup, mr_grid grid, mr_err *err) {
    const uint32_t all = grid.row_groups * grid.width_slices;
    uint32_t *cells = mr_alloc_array(all, sizeof(*cells)), count = 0;
    for (uint32_t c = (uint32_t)s->index; c < all; c += (uint32_t)s->of) cells[count++] = c;
    const mr_load_order order = {
        .source = s->model, .grid = grid, .cells = cells, .cell_count = count, .keys = s->keys};
    const mr_status status = mr_setup_load(setup, &order, NULL, NULL, err);
    free(cells);
    return status;
}

static mr_status plan_static(const settings *s, mr_grid grid, mr_err *err) {
    mr_source *source;
    mr_store_plan plan;
    const mr_source_options options = {.cache_folder = s->cache_folder,
                                       .header_file = s->header_file,
                                       .netrc_file = s->netrc_file,
                                       .total_s = (uint32_t)s->source_timeout_s};
    mr_status status = mr_source_open(&source, s->model, &options, err);
    if (status != MR_OK) return status;
    const mr_model *model = mr_source_model(source);
    if (mr_model_table_count(model) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "%s has no memory layers: a memshard would hold nothing", s->model);
    if (status == MR_OK)
        status = mr_memshard_plan(&plan, model, mr_source_manifest(source), grid,
                                  (uint32_t)s->index, (uint32_t)s->of, err);
    if (status == MR_OK) print_plan(s, &plan);
    mr_source_close(source);
    return status;
}

static mr_status run_static(const settings *s, const mr_ops *ops, mr_gpu *gpu, uint64_t tier_bytes,
                            mr_err *err) {
    mr_setup *setup;
    mr_grid grid;
    mr_status status = mr_grid_parse(&grid, s->grid, err);
    if (status == MR_OK) status = plan_static(s, grid, err);
    if (status != MR_OK) return status;
    const mr_setup_options options = setup_of(s, ops, gpu, tier_bytes);
    status = mr_setup_open(&setup, &options, err);
    if (status != MR_OK) return status;
    status = load_static(s, setup, grid, err);
    if (status == MR_OK) status = serve(s, mr_setup_shard(setup), err);
    mr_setup_close(setup);
    return status;
}

static mr_status run(const settings *s, mr_err *err) {
    mr_gpu *gpu = NULL;
    uint64_t tier_bytes = 0;
    const mr_ops *ops = mr_ops_find(s->isa);
    if (!ops)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--isa %s: this processor or build has no such kernels", s->isa);
    mr_status status =
        s->tier_ram ? mr_bytes_parse(&tier_bytes, s->tier_ram, "--tier-ram", err) : MR_OK;
    if (status == MR_OK && s->tier_ram && s->gpu >= 0)
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "--gpu and --tier-ram: rows are in a GPU or in files, not both");
    if (status == MR_OK && s->gpu >= 0) status = mr_gpu_open(&gpu, (uint32_t)s->gpu, err);
    if (status != MR_OK) return status;
    if (gpu) mr_log_info("rows go to %s", mr_gpu_name(gpu));
    mr_fabric_set_spin((uint32_t)s->spin_us);
    status = s->agent.cluster ? run_member(s, ops, gpu, tier_bytes, err)
                              : run_static(s, ops, gpu, tier_bytes, err);
    mr_gpu_close(gpu);
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
