/* test_stage.c - a model cut into pipeline stages, all in this process.
 *
 * Goal: wherever a model is cut, its logits are the same bits as those of the whole model, through
 * prefill in chunks and decoding; a stage holds only its part; cuts are balanced and avoid skip
 * windows.
 * Method: every golden model, every way to cut it in two and three, over one memshard. */
#include "common/base/mem.h"
#include "memshard/serve.h"
#include "worker/stage.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH = 37, BLOCKS = 16, STAGES_MAX = 4 };

static const char *const all_models[] = {
    "dense",         "memory_plus",     "moe_topk_norm",     "moe_topk_raw",    "pkm",
    "v1_ive4_skip",  "v1_ive4_touch",   "v1_head2_full_e1",  "v2_demo_share05", "v2_glu_kx2_e1",
    "v2_glu_kx2_e4", "v2_peer_share05", "hf_mistral_window", "hf_olmo2",        "hf_qwen2_moe",
};

typedef struct {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shard;
    mr_engine *stages[STAGES_MAX];
    uint32_t count;
} pipeline;

static void open_model(pipeline *p, const char *name) {
    mr_err err = {{0}};
    char path[512];
    *p = (pipeline){0};
    snprintf(path, sizeof(path), "%s/tests/golden/%s", MR_SOURCE_DIR, name);
    if (mr_model_open(&p->model, path, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_manifest_load(&p->manifest, p->model, NULL, NULL, &err), MR_OK);
    if (mr_model_memory_count(p->model) > 0)
        assert_int_equal(
            mr_memshard_open(&p->shard, p->model, &p->manifest, NULL, (mr_grid){1, 1}, 0, 1, &err),
            MR_OK);
}

static void close_stages(pipeline *p) {
    for (uint32_t i = 0; i < p->count; i++) mr_engine_close(p->stages[i]);
    p->count = 0;
}

static void close_model(pipeline *p) {
    close_stages(p);
    mr_memshard_close(p->shard);
    mr_manifest_free(&p->manifest);
    mr_model_close(p->model);
}

static mr_engine_options options_of(const pipeline *p, uint32_t stage, uint32_t stages) {
    return (mr_engine_options){.model = p->model,
                               .manifest = &p->manifest,
                               .threads = 1,
                               .kv_blocks = BLOCKS,
                               .step_tokens_max = 32,
                               .step_sequences_max = 4,
                               .stage = stage,
                               .stages = stages};
}

/* first[count]: where each stage begins. */
static void open_stages(pipeline *p, const uint32_t *first, uint32_t count) {
    const uint32_t all = mr_model_config(p->model)->n_layers;
    for (uint32_t i = 0; i < count; i++) {
        mr_err err = {{0}};
        mr_link *link = NULL;
        mr_engine_options o = options_of(p, i, count);
        o.block_first = first[i];
        o.block_count = (i + 1 < count ? first[i + 1] : all) - first[i];
        if (mr_stage_reads_memory(p->model, (mr_block_range){o.block_first, o.block_count})) {
            link = mr_link_loop(mr_memshard_handle, p->shard, "loop");
            o.shards = &link;
            o.shard_count = 1;
        }
        if (mr_engine_open(&p->stages[i], &o, &err) != MR_OK) fail_msg("%s", err.text);
    }
    p->count = count;
}

typedef struct {
    float *logits; /* [2][LENGTH][columns] */
    uint32_t columns;
} answer;

static void keep(void *context, uint32_t sequence, uint32_t position, const float *logits,
                 uint32_t columns) {
    answer *a = context;
    memcpy(a->logits + ((size_t)sequence * LENGTH + position) * columns, logits,
           columns * sizeof(float));
}

/* Two sequences side by side: 11 tokens, 16, then one by one. */
static void run(pipeline *p, answer *a) {
    mr_err err = {{0}};
    const uint32_t blocks[] = {3, 1, 7, 2, 9, 4};
    a->columns = mr_model_config(p->model)->head_rows;
    a->logits = mr_alloc_array(2ull * LENGTH * a->columns, sizeof(float));
    for (uint32_t at = 0, count; at < LENGTH; at += count) {
        int32_t tokens[32];
        mr_wire_sequence s[2];
        count = at == 0 ? 11 : at == 11 ? 16 : 1;
        for (uint32_t i = 0; i < 2; i++) {
            s[i] = (mr_wire_sequence){.id = i,
                                      .position = at,
                                      .token_count = count,
                                      .block_count = 3,
                                      .flags = MR_SEQUENCE_LOGITS,
                                      .top_p = 1};
            for (uint32_t t = 0; t < count; t++)
                tokens[i * count + t] = (int32_t)((at + t) * 31 + i * 17) % 96;
        }
        const mr_step step = {.sequence_count = 2,
                              .token_count = 2 * count,
                              .block_count = 6,
                              .sequences = s,
                              .tokens = tokens,
                              .blocks = blocks};
        const mr_step_sink sink = {.logits = keep, .context = a};
        if (mr_stages_step(p->stages, p->count, &step, &sink, NULL, &err) != MR_OK)
            fail_msg("%s", err.text);
    }
}

static uint32_t same_bits(pipeline *p, const answer *whole, const uint32_t *first, uint32_t count) {
    answer got;
    uint32_t cut_windows = 0;
    open_stages(p, first, count);
    for (uint32_t i = 0; i < count; i++) {
        const mr_engine_part *part = mr_engine_get_part(p->stages[i]);
        assert_int_equal(part->pending_in < 0, i == 0 || mr_stage_pending(p->model, first[i]) < 0);
        cut_windows += part->pending_in >= 0;
    }
    run(p, &got);
    assert_int_equal(got.columns, whole->columns);
    assert_memory_equal(got.logits, whole->logits, 2ull * LENGTH * got.columns * sizeof(float));
    free(got.logits);
    close_stages(p);
    return cut_windows;
}

static void test_every_cut_gives_the_same_bits(void **state) {
    (void)state;
    uint32_t windows = 0;
    for (size_t m = 0; m < sizeof(all_models) / sizeof(all_models[0]); m++) {
        pipeline p;
        answer whole;
        open_model(&p, all_models[m]);
        const uint32_t all = mr_model_config(p.model)->n_layers;
        open_stages(&p, (uint32_t[]){0}, 1);
        run(&p, &whole);
        close_stages(&p);
        for (uint32_t b = 1; b < all; b++) {
            windows += same_bits(&p, &whole, (uint32_t[]){0, b}, 2);
            for (uint32_t c = b + 1; c < all; c++)
                windows += same_bits(&p, &whole, (uint32_t[]){0, b, c}, 3);
        }
        free(whole.logits);
        close_model(&p);
    }
    assert_true(windows > 20); /* cuts inside skip windows did occur */
}

/* --- cutting ---------------------------------------------------------------------------------- */

static void test_cuts(void **state) {
    (void)state;
    mr_err err = {{0}};
    for (size_t m = 0; m < sizeof(all_models) / sizeof(all_models[0]); m++) {
        pipeline p;
        mr_block_range cut[MR_MAX_STAGES];
        open_model(&p, all_models[m]);
        const uint32_t all = mr_model_config(p.model)->n_layers;
        for (uint32_t stages = 1; stages <= all; stages++) {
            uint32_t next = 0;
            assert_int_equal(mr_stage_cut(cut, p.model, stages, &err), MR_OK);
            for (uint32_t i = 0; i < stages; i++) {
                assert_int_equal(cut[i].first, next);
                assert_true(cut[i].count > 0);
                next += cut[i].count;
            }
            assert_int_equal(next, all);
        }
        assert_int_equal(mr_stage_cut(cut, p.model, all + 1, &err), MR_ERR_ARGUMENT);
        assert_int_equal(mr_stage_cut(cut, p.model, 0, &err), MR_ERR_ARGUMENT);
        close_model(&p);
    }
    pipeline p; /* windows 1:2 and 3:5 of 6 blocks: between them is the place */
    mr_block_range cut[2];
    open_model(&p, "v1_ive4_skip");
    assert_int_equal(mr_stage_cut(cut, p.model, 2, &err), MR_OK);
    assert_int_equal(cut[1].first, 3);
    assert_int_equal(mr_stage_pending(p.model, 3), -1);
    assert_int_equal(mr_stage_pending(p.model, 2), 0);
    assert_int_equal(mr_stage_pending(p.model, 4), 1);
    assert_int_equal(mr_stage_pending(p.model, 5), 1);
    assert_int_equal(mr_stage_pending(p.model, 6), -1);
    close_model(&p);
    open_model(&p, "v1_ive4_touch"); /* 1:3/3:5: the first one is overwritten, never added */
    assert_int_equal(mr_stage_pending(p.model, 2), -1);
    assert_int_equal(mr_stage_pending(p.model, 4), 1);
    close_model(&p);
}

static void test_plans_tell_the_truth(void **state) {
    (void)state;
    mr_err err = {{0}};
    for (size_t m = 0; m < sizeof(all_models) / sizeof(all_models[0]); m++) {
        pipeline p;
        mr_engine_memory whole, sum = {0};
        open_model(&p, all_models[m]);
        mr_engine_options o = options_of(&p, 0, 1);
        assert_int_equal(mr_engine_plan(&whole, &o, &err), MR_OK);
        for (uint32_t i = 0; i < 3; i++) {
            mr_engine_memory one;
            o = options_of(&p, i, 3);
            assert_int_equal(mr_engine_plan(&one, &o, &err), MR_OK);
            assert_true(one.kv_bytes < whole.kv_bytes && one.weight_bytes < whole.weight_bytes);
            sum.weight_bytes += one.weight_bytes;
            sum.index_bytes += one.index_bytes;
            sum.kv_bytes += one.kv_bytes;
        }
        assert_int_equal(sum.weight_bytes, whole.weight_bytes);
        assert_int_equal(sum.index_bytes, whole.index_bytes);
        assert_int_equal(sum.kv_bytes, whole.kv_bytes);
        close_model(&p);
    }
}

/* --- what is refused -------------------------------------------------------------------------- */

static void test_bad_parts_are_refused(void **state) {
    (void)state;
    mr_err err = {{0}};
    pipeline p;
    mr_block_range range;
    open_model(&p, "dense"); /* four blocks */
    const struct {
        uint32_t stage, stages, first, count;
    } bad[] = {{1, 1, 0, 0}, {2, 2, 0, 0}, {0, 5, 0, 0},          {0, 2, 1, 2},
               {1, 2, 0, 4}, {0, 2, 0, 4}, {1, 2, 3, UINT32_MAX}, {1, 3, 2, 2}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        mr_engine_options o = options_of(&p, bad[i].stage, bad[i].stages);
        mr_engine *engine;
        o.block_first = bad[i].first;
        o.block_count = bad[i].count;
        assert_int_equal(mr_stage_range(&range, p.model, &o, &err), MR_ERR_ARGUMENT);
        assert_int_equal(mr_engine_open(&engine, &o, &err), MR_ERR_ARGUMENT);
        assert_null(engine);
    }
    open_stages(&p, (uint32_t[]){0, 2}, 2);
    const mr_wire_sequence s = {.token_count = 1, .block_count = 1, .top_p = 1};
    const int32_t token = 5;
    const uint32_t block = 0;
    float hidden[64] = {0};
    mr_step step = {.sequence_count = 1,
                    .token_count = 1,
                    .block_count = 1,
                    .sequences = &s,
                    .tokens = &token,
                    .blocks = &block};
    const mr_step_sink sink = {0};
    assert_int_equal(mr_engine_step(p.stages[1], &step, &sink, NULL, &err), MR_ERR_ARGUMENT);
    step.hidden = hidden;
    assert_int_equal(mr_engine_step(p.stages[0], &step, &sink, NULL, &err), MR_ERR_ARGUMENT);
    assert_int_equal(mr_engine_step(p.stages[1], &step, &sink, NULL, &err), MR_OK);
    step.pending = hidden;
    assert_int_equal(mr_engine_step(p.stages[1], &step, &sink, NULL, &err), MR_ERR_ARGUMENT);
    close_model(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut_gives_the_same_bits),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_plans_tell_the_truth),
        cmocka_unit_test(test_bad_parts_are_refused),
    };
    return cmocka_run_group_tests_name("stage", tests, NULL, NULL);
}
