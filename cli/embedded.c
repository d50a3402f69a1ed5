/* embedded.c - see embedded.h. */
#include "cli/embedded.h"

#include "cli/cli.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "worker/stage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

mr_status mr_embedded_ops(const mr_ops **out, const char *isa, mr_err *err) {
    *out = mr_ops_find(isa);
    if (*out) return MR_OK;
    return mr_fail(
        err, MR_ERR_ARGUMENT,
        "--isa '%.20s' is not one of ref, avx2, avx512, neon, or this processor lacks it", isa);
}

/* What the process will hold, before it allocates it; refused when memory is short. */
static mr_status check_memory(const mr_engine_options *options, bool quiet, mr_err *err) {
    mr_engine_memory m;
    const mr_status status = mr_engine_plan(&m, options, err);
    if (status != MR_OK) return status;
    const uint64_t own = m.weight_bytes + m.kv_bytes + m.buffer_bytes + m.index_bytes;
    const uint64_t free_bytes =
        (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t total = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (!quiet && isatty(STDERR_FILENO))
        fprintf(stderr,
                "memory: weights %.1f MiB, KV cache %.1f MiB, shuffle indices %.1f MiB, buffers "
                "%.1f MiB; tables mapped: %.1f MiB\n",
                (double)m.weight_bytes / 0x1p20, (double)m.kv_bytes / 0x1p20,
                (double)m.index_bytes / 0x1p20, (double)m.buffer_bytes / 0x1p20,
                (double)m.table_bytes / 0x1p20);
    if (own > total)
        return mr_fail(err, MR_ERR_NOMEM,
                       "this model needs %.2f GiB beside its tables; this machine has %.2f GiB "
                       "(%.2f free). Fewer --kv-blocks need less",
                       (double)own / 0x1p30, (double)total / 0x1p30, (double)free_bytes / 0x1p30);
    return MR_OK;
}

static mr_status open_stage(mr_embedded *out, const mr_embedded_options *o,
                            mr_engine_options *engine, mr_err *err) {
    mr_block_range blocks;
    mr_link *link = NULL;
    mr_status status = mr_stage_range(&blocks, out->model, engine, err);
    if (status == MR_OK) status = check_memory(engine, o->quiet, err);
    if (status != MR_OK) return status;
    engine->shard_count = 0;
    if (mr_stage_reads_memory(out->model, blocks)) {
        link = mr_link_loop(mr_memshard_handle, out->shard, "memshard in this process");
        engine->shards = &link;
        engine->shard_count = 1;
    }
    status = mr_engine_open(&out->engines[engine->stage], engine, err);
    if (status != MR_OK) mr_link_close(link);
    return status;
}

static mr_status open_engines(mr_embedded *out, const mr_embedded_options *o,
                              mr_engine_options *engine, mr_err *err) {
    mr_status status = MR_OK;
    if (mr_model_memory_count(out->model) > 0)
        status = mr_memshard_open(&out->shard, out->model, &out->manifest, engine->ops,
                                  engine->grid, 0, 1, err);
    out->stages = engine->stages = o->stages ? o->stages : 1;
    out->engines = mr_alloc_array(out->stages, sizeof(mr_engine *));
    for (uint32_t i = 0; i < out->stages && status == MR_OK; i++) {
        engine->stage = i;
        status = open_stage(out, o, engine, err);
    }
    if (status != MR_OK) return status;
    out->engine = out->engines[0];
    if (out->shard) mr_memshard_set_team(out->shard, mr_engine_team(out->engine));
    return MR_OK;
}

mr_status mr_embedded_open(mr_embedded *out, const mr_embedded_options *o, mr_err *err) {
    mr_engine_options engine = {.threads = o->threads,
                                .kv_blocks = o->kv_blocks,
                                .step_tokens_max = o->step_tokens_max,
                                .step_sequences_max = o->step_sequences_max,
                                .two_trips = o->two_trips,
                                .grid = {1, 1}};
    *out = (mr_embedded){.model = o->model};
    mr_status status = mr_embedded_ops(&engine.ops, o->isa, err);
    if (status == MR_OK) engine.ops = mr_ops_choose(o->isa, o->numeric);
    if (!engine.ops && status == MR_OK)
        status = mr_fail(err, MR_ERR_ARGUMENT, "--numeric '%.20s' is neither exact nor fast",
                         o->numeric);
    if (status == MR_OK && o->grid) status = mr_grid_parse(&engine.grid, o->grid, err);
    if (status == MR_OK && !out->model)
        status = mr_model_open(&out->model, o->model_directory, err);
    if (status == MR_OK)
        status = mr_manifest_load(&out->manifest, out->model, o->quiet ? NULL : mr_cli_progress,
                                  NULL, err);
    engine.model = out->model;
    engine.manifest = &out->manifest;
    if (status == MR_OK) status = open_engines(out, o, &engine, err);
    if (status != MR_OK) mr_embedded_close(out);
    return status;
}

void mr_embedded_close(mr_embedded *embedded) {
    for (uint32_t i = 0; i < embedded->stages; i++) mr_engine_close(embedded->engines[i]);
    free(embedded->engines);
    mr_memshard_close(embedded->shard);
    mr_manifest_free(&embedded->manifest);
    mr_model_close(embedded->model);
    *embedded = (mr_embedded){0};
}

mr_status mr_embedded_step(mr_embedded *embedded, const mr_step *step, const mr_step_sink *sink,
                           mr_err *err) {
    return mr_stages_step(embedded->engines, embedded->stages, step, sink, NULL, err);
}
