/* truth.c - see truth.h. */
#include "tests/sim/truth.h"

#include "common/base/limits.h"
#include "common/ops/team.h"
#include "tests/sim/sim.h"
#include "worker/engine.h"

#include <stdio.h>
#include <string.h>

static sim_model models[SIM_MODELS] = {{.name = "v2_glu_kx2_e4"},
                                       {.name = "v1_ive4_skip"},
                                       {.name = "memory_plus"},
                                       {.name = "dense"}};

sim_model *sim_model_at(uint32_t index) {
    return &models[index];
}

mr_status sim_open_tables(void *context, mr_table_source *out, const mr_load_order *order,
                          mr_progress progress, void *progress_context, mr_err *err) {
    (void)context, (void)progress, (void)progress_context;
    for (uint32_t i = 0; i < SIM_MODELS; i++) {
        sim_model *m = &models[i];
        if (!m->tables || memcmp(&m->manifest.digest, &order->digest, sizeof(mr_digest)) != 0)
            continue;
        *out = (mr_table_source){.tables = mr_model_tables_source(m->tables),
                                 .digest = m->manifest.digest,
                                 .model = m->model};
        return MR_OK;
    }
    return mr_fail(err, MR_ERR_ARGUMENT, "no such model");
}

/* --- the undisturbed run ---------------------------------------------------------------------- */

static void keep_token(void *context, uint32_t sequence, const mr_wire_sampled *sampled,
                       const mr_wire_logprob *top) {
    (void)sequence, (void)top;
    *(int32_t *)context = sampled->token;
}

static void run(mr_engine *engine, sim_ask *ask, uint32_t choice) {
    mr_err err = {{0}};
    int32_t all[SIM_PROMPT_MAX + SIM_ANSWER_MAX], token = 0;
    uint32_t count = ask->prompt_count, done_count = 0;
    const uint32_t blocks[] = {0, 1, 2, 3, 4, 5, 6, 7};
    memcpy(all, ask->prompt, count * sizeof(*all));
    for (uint32_t i = 0; i < ask->new_tokens; i++) {
        mr_wire_done done;
        const mr_wire_sequence sequence = {.id = 1,
                                           .position = done_count,
                                           .token_count = count - done_count,
                                           .block_count = (count + MR_KV_BLOCK_TOKENS - 1) /
                                                          MR_KV_BLOCK_TOKENS,
                                           .flags = MR_SEQUENCE_SAMPLE,
                                           .temperature = ask->temperature,
                                           .top_p = 1,
                                           .seed = ask->seed,
                                           .choice = choice,
                                           .output_position = i};
        const mr_step step = {.sequence_count = 1,
                              .token_count = sequence.token_count,
                              .block_count = sequence.block_count,
                              .sequences = &sequence,
                              .tokens = all + done_count,
                              .blocks = blocks};
        const mr_step_sink sink = {.sampled = keep_token, .context = &token};
        if (mr_engine_step(engine, &step, &sink, &done, &err) != MR_OK)
            sim_fail("the undisturbed run: %s", err.text);
        done_count = count;
        all[count++] = ask->answer[choice][i] = token;
    }
}

/* Prompts begin alike in groups, so that caches of prefixes have something to do. */
static void make_ask(sim_ask *ask, uint32_t model, uint32_t index) {
    uint64_t random = 77 + model * 1000 + index;
    ask->prompt_count = 1 + (index * 29 + model * 7) % SIM_PROMPT_MAX;
    ask->new_tokens = 2 + (index * 5 + model) % (SIM_ANSWER_MAX - 1);
    ask->choices = index % 6 == 5 ? SIM_CHOICES : 1;
    ask->temperature = index % 3 == 0 ? 0 : 0.9f;
    ask->seed = 1000 + index;
    for (uint32_t i = 0; i < ask->prompt_count; i++) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        const uint32_t own = (uint32_t)(random >> 33) % 280;
        ask->prompt[i] = (int32_t)(i < 33 ? (i * 31 + index % 3 * 17) % 280 : own);
    }
}

static mr_status open_model(sim_model *m, uint32_t index, mr_err *err) {
    char path[512];
    mr_memshard *shard = NULL;
    mr_engine *engine = NULL;
    mr_link *link = NULL;
    snprintf(path, sizeof(path), "%s/tests/golden/%s", MR_SOURCE_DIR, m->name);
    mr_status status = mr_model_open(&m->model, path, err);
    if (status == MR_OK) status = mr_manifest_load(&m->manifest, m->model, NULL, NULL, err);
    const bool has_tables = status == MR_OK && mr_model_table_count(m->model) > 0;
    if (has_tables) {
        status = mr_model_tables_open(&m->tables, m->model, &m->manifest, err);
        if (status == MR_OK)
            status =
                mr_memshard_open(&shard, m->model, &m->manifest, NULL, (mr_grid){1, 1}, 0, 1, err);
        if (status == MR_OK) link = mr_link_loop(mr_memshard_handle, shard, "truth");
    }
    const mr_engine_options options = {.model = m->model,
                                       .manifest = &m->manifest,
                                       .threads = 1,
                                       .kv_blocks = 8,
                                       .step_tokens_max = 64,
                                       .step_sequences_max = 4,
                                       .shards = &link,
                                       .shard_count = has_tables ? 1 : 0};
    if (status == MR_OK) status = mr_engine_open(&engine, &options, err);
    if (status != MR_OK) return status;
    for (uint32_t t = 0; t < mr_model_table_count(m->model); t++) {
        const mr_table_shape *shape = mr_model_table(m->model, t);
        m->table_bytes += shape->values->bytes + (shape->pre_values ? shape->pre_values->bytes : 0);
    }
    m->block_count = mr_model_config(m->model)->n_layers;
    for (uint32_t i = 0; i < SIM_ASKS; i++) {
        make_ask(&m->asks[i], index, i);
        for (uint32_t k = 0; k < m->asks[i].choices; k++) run(engine, &m->asks[i], k);
    }
    mr_engine_close(engine);
    mr_memshard_close(shard);
    return MR_OK;
}

void sim_truth_open(void) {
    mr_err err = {{0}};
    mr_float_environment();
    for (uint32_t i = 0; i < SIM_MODELS; i++)
        if (open_model(&models[i], i, &err) != MR_OK)
            sim_fail("model %s: %s", models[i].name, err.text);
}
