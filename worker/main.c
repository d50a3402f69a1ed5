/* main.c - memrack-worker: loads the dense weights (of its pipeline stage), reaches the memshards
 * and the next stage, runs steps.
 *
 * Threads: the main thread opens everything, then waits for a signal; the step thread owns the
 * engine (with a team of compute threads under it), a serving thread the links of coordinators, one
 * more the link to the next stage. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/base/sizes.h"
#include "common/net/fabric_choice.h"
#include "common/net/process.h"
#include "common/net/registry.h"
#include "common/ops/team.h"
#include "worker/member.h"
#include "worker/recorder.h"
#include "worker/serve.h"
#include "worker/shards.h"
#include "worker/stage.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char component[] = "memrack-worker";

typedef struct {
    const char *model, *registry, *listen, *isa, *numeric, *stage_text, *blocks_text, *next;
    mr_text_list memshards;
    int64_t threads, kv_blocks, step_tokens, retrieval_timeout_ms, connect_timeout_ms, ready_fd;
    const char *group, *row_cache, *fabric, *record, *record_limit;
    int64_t spin_us;
    mr_agent_settings agent;
    const char *key_file;
    bool two_trips, shards_select, require_rdma, is_keyed;
    uint32_t stage, stages, block_first, block_count;
} settings;

/* "A<mark>B", both whole numbers up to a million. */
static bool parse_pair(uint32_t *a, uint32_t *b, const char *text, char mark) {
    char *end;
    if (text[0] < '0' || text[0] > '9') return false;
    const unsigned long first = strtoul(text, &end, 10);
    if (*end != mark || end[1] < '0' || end[1] > '9') return false;
    const unsigned long second = strtoul(end + 1, &end, 10);
    *a = (uint32_t)first;
    *b = (uint32_t)second;
    return *end == 0 && first <= 1000000 && second <= 1000000;
}

static mr_status check_stage(settings *s, mr_err *err) {
    s->stages = 1;
    if (s->stage_text && (!parse_pair(&s->stage, &s->stages, s->stage_text, '/') ||
                          s->stage >= s->stages || s->stages > MR_MAX_STAGES))
        return mr_fail(
            err, MR_ERR_ARGUMENT,
            "--stage '%.40s': I/N is wanted, stage I of N counted from 0 (0/3, 1/3, 2/3)",
            s->stage_text);
    if (s->blocks_text && (!parse_pair(&s->block_first, &s->block_count, s->blocks_text, ':') ||
                           s->block_count <= s->block_first))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--blocks '%.40s': A:B is wanted, blocks A up to but not B (0:12)",
                       s->blocks_text);
    if (s->blocks_text) s->block_count -= s->block_first;
    const bool is_last = s->stage + 1 == s->stages;
    if (s->next && is_last)
        return mr_fail(err, MR_ERR_ARGUMENT, "--next: no stage follows stage %u of %u", s->stage,
                       s->stages);
    if (!s->next && !is_last && !s->agent.cluster)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "stage %u of %u hands its hidden states on: --next says where stage %u is",
                       s->stage, s->stages, s->stage + 1);
    return MR_OK;
}

static mr_status check(settings *s, mr_err *err) {
    if (!s->model && !s->agent.cluster)
        return mr_fail(err, MR_ERR_ARGUMENT, "--model is missing; try --help");
    if (s->agent.cluster && (s->registry || s->memshards.count || s->next))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--cluster says where memshards and stages are: no --registry, --memshard "
                       "or --next then");
    if (s->registry && s->memshards.count > 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "--registry names the memshards: no --memshard then");
    if (s->memshards.count > MR_MAX_MEMSHARDS)
        return mr_fail(err, MR_ERR_LIMIT, "%u memshards; at most %d", s->memshards.count,
                       MR_MAX_MEMSHARDS);
    return check_stage(s, err);
}

static const char summary[] =
    "Runs steps of a model for coordinators; its tables lie on the memshards.\n"
    "Example: memrack-worker --model models/demo --memshard 127.0.0.1:7001 "
    "--memshard 127.0.0.1:7002\n\n"
    "A model too large or too slow for one worker is cut into stages, each with a "
    "range of blocks;\ncoordinators talk to stage 0. Two stages, in any order:\n"
    "  memrack-worker --model M --registry R --stage 1/2 --listen 10.0.0.2:7100\n"
    "  memrack-worker --model M --registry R --stage 0/2 --next 10.0.0.2:7100\n"
    "In a cluster stages find each other:\n"
    "  memrack-worker --cluster etcd:10.0.0.1:2379 --model M --group g0 --stage 0/2";

static int parse(settings *s, int argc, char **argv) {
    *s = (settings){.listen = "127.0.0.1:0",
                    .retrieval_timeout_ms = 500,
                    .connect_timeout_ms = 10000,
                    .ready_fd = -1};
    const mr_option options[] = {
        {"model", 'm', MR_OPT_TEXT, &s->model, 0, 0, "DIR", "the model's directory"},
        {"registry", 'r', MR_OPT_TEXT, &s->registry, 0, 0, "FILE",
         "static registry file that names the memshards"},
        {"memshard", 's', MR_OPT_LIST, &s->memshards, 0, 0, "ADDR",
         "a memshard; give it once for each, in any order"},
        {"listen", 'l', MR_OPT_TEXT, &s->listen, 0, 0, "ADDR",
         "host:port (port 0: any) or unix:PATH (127.0.0.1:0)"},
        {"threads", 't', MR_OPT_INT, &s->threads, 0, MR_MAX_THREADS, "N",
         "compute threads (0: one per core)"},
        {"kv-blocks", 0, MR_OPT_INT, &s->kv_blocks, 0, 1 << 30, "N",
         "KV cache blocks of 16 tokens (0: 16 contexts or 1 GiB)"},
        {"step-tokens", 0, MR_OPT_INT, &s->step_tokens, 0, MR_MAX_STEP_TOKENS, "N",
         "most tokens of one step (0: 512)"},
        {"stage", 0, MR_OPT_TEXT, &s->stage_text, 0, 0, "I/N",
         "be stage I of a pipeline of N, from 0/N to N-1/N (0/1: the whole model)"},
        {"next", 0, MR_OPT_TEXT, &s->next, 0, 0, "ADDR",
         "where the next stage listens; every stage but the last needs it"},
        {"blocks", 0, MR_OPT_TEXT, &s->blocks_text, 0, 0, "A:B",
         "compute blocks A up to but not B (those that balance the stages)"},
        {"numeric", 0, MR_OPT_TEXT, &s->numeric, 0, 0, "KIND",
         "exact, or fast: bf16 products where the processor has them (exact)"},
        {"isa", 0, MR_OPT_TEXT, &s->isa, 0, 0, "NAME", "ref, avx2, avx512, neon (the best)"},
        {"retrieval-timeout-ms", 0, MR_OPT_INT, &s->retrieval_timeout_ms, 10, 60000, "MS",
         "a memshard silent for so long fails the step (500)"},
        {"connect-timeout-ms", 0, MR_OPT_INT, &s->connect_timeout_ms, 10, 600000, "MS",
         "how long to wait for memshards and next stage at the start (10000)"},
        MR_AGENT_OPTIONS(&s->agent),
        {"group", 0, MR_OPT_TEXT, &s->group, 0, 0, "NAME",
         "in a cluster: the pipeline this stage belongs to (the member's id)"},
        {"row-cache", 0, MR_OPT_TEXT, &s->row_cache, 0, 0, "BYTES",
         "keep hot rows of layers without a gate here, such as 256MiB (none)"},
        {"record", 0, MR_OPT_TEXT, &s->record, 0, 0, "FILE",
         "write the row ids that are asked for, for `memrack replay`; never prompts or scores"},
        {"record-limit", 0, MR_OPT_TEXT, &s->record_limit, 0, 0, "BYTES",
         "most bytes of that file; what comes later is dropped (1GiB)"},
        {"shards-select", 0, MR_OPT_FLAG, &s->shards_select, 0, 0, NULL,
         "send queries instead of row ids to memshards that hold the keys"},
        {"fabric", 0, MR_OPT_TEXT, &s->fabric, 0, 0, "KIND",
         "to memshards of a cluster: auto, tcp, shm or rdma (auto)"},
        {"require-rdma", 0, MR_OPT_FLAG, &s->require_rdma, 0, 0, NULL,
         "refuse any other fabric than RDMA"},
        {"mac", 0, MR_OPT_FLAG, &s->is_keyed, 0, 0, NULL,
         "every frame to and from memshards carries a MAC (needs TLS)"},
        {"session-key-file", 0, MR_OPT_TEXT, &s->key_file, 0, 0, "FILE",
         "64 hex digits: MACs with this key instead"},
        {"spin-us", 0, MR_OPT_INT, &s->spin_us, 0, 1000, "US",
         "look for answers so long before sleeping; costs a core (0)"},
        {"two-trips", 0, MR_OPT_FLAG, &s->two_trips, 0, 0, NULL,
         "gate on the worker even where one trip would do"},
        {"ready-fd", 0, MR_OPT_INT, &s->ready_fd, 0, 1 << 20, "FD",
         "write the address to this descriptor when ready"},
        {0}};
    const mr_command_spec spec = {
        .usage = "memrack-worker --model DIR [--registry FILE | --memshard ADDR .. | --cluster "
                 "WHERE] [options]",
        .summary = summary,
        .options = options};
    mr_err err = {{0}};
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    if (status == MR_OK) status = check(s, &err);
    return status == MR_OK ? -1 : mr_process_fail(component, status, &err);
}

/* The registry was written for one model: another one's shards would only be refused later. */
static mr_status check_registry(const mr_registry *r, const mr_manifest *manifest, mr_err *err) {
    char here[MR_DIGEST_TEXT_BYTES], there[MR_DIGEST_TEXT_BYTES];
    if (memcmp(&r->digest, &manifest->digest, sizeof(r->digest)) == 0) return MR_OK;
    mr_digest_text(&manifest->digest, here);
    mr_digest_text(&r->digest, there);
    return mr_fail(err, MR_ERR_MISMATCH,
                   "the registry is for model digest %.12s..., this model has %.12s...", there,
                   here);
}

static mr_status reach_shards(mr_shards *out, const settings *s, const mr_model *model,
                              const mr_manifest *manifest, mr_block_range blocks, mr_err *err) {
    mr_registry registry = {0};
    mr_status status = MR_OK;
    const char *const *addresses = s->memshards.items;
    uint32_t count = s->memshards.count;
    *out = (mr_shards){0};
    if (s->registry) {
        status = mr_registry_load(&registry, s->registry, err);
        if (status == MR_OK) status = check_registry(&registry, manifest, err);
        addresses = (const char *const *)registry.memshards.addresses;
        count = registry.memshards.count;
    }
    const bool has_memory = mr_model_memory_count(model) > 0;
    const bool reads_memory = mr_stage_reads_memory(model, blocks);
    if (status == MR_OK && has_memory != (count > 0))
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         has_memory ? "%s has memory layers: name its memshards"
                                    : "%s has no memory layers: it needs no memshards",
                         s->model);
    if (status == MR_OK && reads_memory)
        status = mr_shards_connect(out, addresses, count, manifest->digest,
                                   mr_now_ns() + s->connect_timeout_ms * 1000000, err);
    mr_registry_free(&registry);
    return status;
}

static mr_status print_plan(const mr_engine_options *options, mr_block_range blocks, mr_err *err) {
    mr_engine_memory m;
    const mr_status status = mr_engine_plan(&m, options, err);
    if (status != MR_OK) return status;
    if (options->stages > 1)
        printf("worker: stage %u of %u: blocks %u to %u\n", options->stage, options->stages,
               blocks.first, blocks.first + blocks.count - 1);
    printf("worker: will hold %.1f MiB: weights %.1f, KV cache %.1f, buffers %.1f, shuffle indices "
           "%.1f; "
           "%u memshards\n",
           (double)(m.weight_bytes + m.kv_bytes + m.buffer_bytes + m.index_bytes) / (double)MR_MIB,
           (double)m.weight_bytes / (double)MR_MIB, (double)m.kv_bytes / (double)MR_MIB,
           (double)m.buffer_bytes / (double)MR_MIB, (double)m.index_bytes / (double)MR_MIB,
           options->shard_count);
    return MR_OK;
}

static mr_status serve(const settings *s, mr_engine *engine, mr_digest digest, mr_err *err) {
    mr_worker *worker;
    mr_status status = mr_worker_open(&worker, engine, digest, s->listen, err);
    if (status != MR_OK) return status;
    if (s->next) {
        status = mr_worker_set_next(worker, digest, s->next, err);
        if (status == MR_OK)
            status = mr_worker_wait_next(worker, digest,
                                         mr_now_ns() + s->connect_timeout_ms * 1000000, err);
        if (status != MR_OK) {
            mr_worker_close(worker);
            return status;
        }
    }
    mr_process_ready(mr_worker_address(worker), (int)s->ready_fd);
    mr_process_wait();
    mr_worker_close(worker);
    return MR_OK;
}

/* --- in a cluster ----------------------------------------------------------------------------- */

static void leave(void *context) {
    (void)context;
    kill(getpid(), SIGTERM);
}

static mr_status run_member(const settings *s, const mr_engine_options *engine, mr_err *err) {
    mr_worker_member *member;
    mr_fabric_policy policy = {.require_rdma = s->require_rdma};
    mr_session_key key = {0};
    mr_status status = s->fabric ? mr_fabric_parse(&policy.kind, s->fabric, err) : MR_OK;
    if (status == MR_OK && s->key_file) status = mr_key_load(&key, s->key_file, err);
    if (status != MR_OK) return status;
    const mr_worker_member_options options = {.agent = &s->agent,
                                              .listen = s->listen,
                                              .engine = *engine,
                                              .fabric = policy,
                                              .is_keyed = s->is_keyed,
                                              .static_key = s->key_file ? &key : NULL,
                                              .connect_timeout_ms = s->connect_timeout_ms,
                                              .leave = leave};
    status = mr_worker_member_open(&member, &options, err);
    mr_key_wipe(&key);
    if (status != MR_OK) return status;
    const mr_worker_load load = {.source = s->model,
                                 .group = s->group ? s->group : mr_worker_member_id(member),
                                 .stage = s->stage,
                                 .stages = s->stages,
                                 .block_first = s->block_first,
                                 .block_count = s->block_count};
    if (s->model) status = mr_worker_member_load(member, &load, NULL, NULL, err);
    if (status == MR_OK) {
        mr_worker_member_start(member);
        mr_process_ready(mr_worker_member_address(member), (int)s->ready_fd);
        mr_process_wait();
    }
    mr_worker_member_close(member);
    return status;
}

static mr_status run(const settings *s, mr_recorder *recorder, mr_err *err) {
    mr_model *model = NULL;
    mr_manifest manifest = {0};
    mr_engine *engine = NULL;
    mr_shards shards = {0};
    mr_block_range blocks;
    mr_engine_options options = {.ops = mr_ops_choose(s->isa, s->numeric),
                                 .threads = (uint32_t)s->threads,
                                 .kv_blocks = (uint32_t)s->kv_blocks,
                                 .step_tokens_max = (uint32_t)s->step_tokens,
                                 .two_trips = s->two_trips,
                                 .topk = s->shards_select,
                                 .spin_us = (uint32_t)s->spin_us,
                                 .recorder = recorder,
                                 .stage = s->stage,
                                 .stages = s->stages,
                                 .block_first = s->block_first,
                                 .block_count = s->block_count,
                                 .retrieval_timeout_ms = (uint32_t)s->retrieval_timeout_ms};
    if (!options.ops)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--isa %s: this processor or build has no such kernels, or --numeric %s is "
                       "neither exact nor fast",
                       s->isa ? s->isa : "(the best)", s->numeric ? s->numeric : "(exact)");
    mr_status status = MR_OK;
    if (s->row_cache)
        status = mr_bytes_parse(&options.row_cache_bytes, s->row_cache, "--row-cache", err);
    if (status == MR_OK && s->agent.cluster) return run_member(s, &options, err);
    if (status == MR_OK) status = mr_model_open(&model, s->model, err);
    if (status != MR_OK) return status;
    status = mr_stage_range(&blocks, model, &options, err);
    if (status == MR_OK) status = mr_manifest_load(&manifest, model, NULL, NULL, err);
    if (status != MR_OK) goto close_model;
    status = reach_shards(&shards, s, model, &manifest, blocks, err);
    if (status != MR_OK) goto free_manifest;
    options.model = model;
    options.manifest = &manifest;
    options.grid = shards.grid;
    options.shards = shards.links;
    options.addresses = (const char *const *)shards.addresses;
    options.shard_count = shards.count;
    status = print_plan(&options, blocks, err);
    if (status == MR_OK) status = mr_engine_open(&engine, &options, err);
    mr_shards_free(&shards, engine == NULL); /* an engine has taken the links over */
    if (status == MR_OK) status = serve(s, engine, manifest.digest, err);
    mr_engine_close(engine);
free_manifest:
    mr_manifest_free(&manifest);
close_model:
    mr_model_close(model);
    return status;
}

static mr_status open_recorder(mr_recorder **out, const settings *s, mr_err *err) {
    uint64_t limit = MR_GIB;
    mr_status status = MR_OK;
    if (!s->record) return MR_OK;
    if (s->record_limit) status = mr_bytes_parse(&limit, s->record_limit, "--record-limit", err);
    return status == MR_OK ? mr_recorder_open(out, s->record, limit, err) : status;
}

int main(int argc, char **argv) {
    settings s;
    mr_err err = {{0}};
    mr_process_begin(component);
    mr_float_environment();
    const int done = parse(&s, argc, argv);
    if (done >= 0) return done;
    mr_recorder *recorder = NULL;
    mr_status status = open_recorder(&recorder, &s, &err);
    if (status == MR_OK) status = run(&s, recorder, &err);
    mr_recorder_close(recorder);
    free(s.memshards.items);
    return status == MR_OK ? 0 : mr_process_fail(component, status, &err);
}
