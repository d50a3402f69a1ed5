/* Goal: a memshard that scores the product keys itself gives the bits a scoring worker gets.
 * Method: every golden model runs a step in a worker that traces its memory layers (inputs, chosen
 * rows, scores, outputs). The same queries go to memshards as TOPK: chosen entries must be the
 * worker's, and the sums of all cells of a grid, finished as a worker finishes them, must give the
 * layer's output bit for bit - over grids, numbers of shards, instruction sets and teams. */
#include "common/base/log.h"
#include "common/model/pack.h"
#include "common/ops/dense.h"
#include "common/ops/gate.h"
#include "memshard/serve.h"
#include "tests/unit/net_test.h"
#include "worker/trace.h"
#include "worker/weights.h"

#include <stdio.h>

enum { TOKENS = 37, LAYERS_MAX = 8, SHARDS_MAX = 4, BLOCKS = 16 };

static const char *const cases[] = {"memory_plus",   "pkm",           "v1_head2_full_e1",
                                    "v1_ive4_skip",  "v1_ive4_touch", "v2_demo_share05",
                                    "v2_glu_kx2_e1", "v2_glu_kx2_e4", "v2_peer_share05"};

typedef struct {
    float *input, *output, *score, *query, *x; /* query, x: as the worker makes them from input */
    uint32_t *index, *row;
} traced;

static struct {
    mr_model *model;
    mr_manifest manifest;
    mr_weights weights;
    traced layers[LAYERS_MAX];
    uint32_t layer_count;
} w;

static void *copy(const void *from, size_t bytes) {
    void *to = malloc(bytes);
    assert_non_null(to);
    memcpy(to, from, bytes);
    return to;
}

static void on_memory(void *context, const mr_memory_trace *t) {
    (void)context;
    const size_t d = mr_model_config(w.model)->d_model, all = (size_t)t->tokens * t->entries;
    traced *to = &w.layers[t->layer];
    assert_int_equal(t->tokens, TOKENS);
    to->input = copy(t->input, t->tokens * d * sizeof(float));
    to->output = copy(t->output, t->tokens * d * sizeof(float));
    to->score = copy(t->score, all * t->cores * sizeof(float));
    to->index = copy(t->index, all * sizeof(uint32_t));
    to->row = copy(t->row, all * sizeof(uint32_t));
}

static float *times(const mr_packed *matrix, const float *x, uint32_t tokens) {
    float *y = malloc(((size_t)tokens * matrix->n + 1) * sizeof(float));
    mr_ops_ref.gemm(y, matrix->n, x, matrix->k, NULL, tokens, matrix, 0, mr_packed_panels(matrix));
    return y;
}

static void make_queries(uint32_t layer) {
    const mr_memory_weights *m = &w.weights.memories[layer];
    const mr_config *c = mr_model_config(w.model);
    const uint32_t kdim = mr_model_memory(w.model, layer)->key_dim;
    traced *t = &w.layers[layer];
    t->query = times(&m->query_proj, t->input, TOKENS);
    for (uint32_t i = 0; i < TOKENS && m->query_bias; i++)
        mr_add(t->query + (size_t)i * m->query_proj.n, m->query_bias, m->query_proj.n);
    for (uint32_t i = 0; i < TOKENS * m->query_proj.n / kdim && m->query_norm; i++) {
        float *part = t->query + (size_t)i * kdim;
        if (c->norm == MR_NORM_RMS)
            mr_rms_norm(part, part, m->query_norm, kdim, c->norm_eps);
        else
            mr_layer_norm(part, part, m->query_norm, kdim, c->norm_eps);
    }
    if (mr_model_memory(w.model, layer)->gated) t->x = times(&m->pre_proj, t->input, TOKENS);
}

/* One step of TOKENS tokens in a worker that scores. */
static void open_case(const char *name) {
    char path[512];
    mr_err err = {{0}};
    mr_memshard *shard;
    mr_engine *engine;
    memset(&w, 0, sizeof(w));
    snprintf(path, sizeof(path), "%s/tests/golden/%s", MR_SOURCE_DIR, name);
    if (mr_model_open(&w.model, path, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_manifest_load(&w.manifest, w.model, NULL, NULL, &err), MR_OK);
    assert_int_equal(mr_weights_open(&w.weights, w.model,
                                     (mr_block_range){0, mr_model_config(w.model)->n_layers}, NULL,
                                     NULL, &err),
                     MR_OK);
    w.layer_count = mr_model_memory_count(w.model);
    assert_in_range(w.layer_count, 1, LAYERS_MAX);
    assert_int_equal(
        mr_memshard_open(&shard, w.model, &w.manifest, NULL, (mr_grid){1, 1}, 0, 1, &err), MR_OK);
    mr_link *link = mr_link_loop(mr_memshard_handle, shard, "loop");
    const mr_engine_options options = {.model = w.model,
                                       .manifest = &w.manifest,
                                       .threads = 1,
                                       .kv_blocks = BLOCKS,
                                       .step_tokens_max = 64,
                                       .step_sequences_max = 8,
                                       .grid = {1, 1},
                                       .shards = &link,
                                       .shard_count = 1};
    if (mr_engine_open(&engine, &options, &err) != MR_OK) fail_msg("%s", err.text);
    const mr_trace trace = {.memory = on_memory};
    mr_engine_set_trace(engine, &trace);
    const mr_wire_sequence sequence = {
        .id = 1, .token_count = TOKENS, .block_count = 3, .top_p = 1};
    const uint32_t blocks[] = {0, 1, 2};
    int32_t tokens[TOKENS];
    uint64_t seed = 11;
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(test_random(&seed) % mr_model_config(w.model)->vocab_size);
    const mr_step step = {.sequence_count = 1,
                          .token_count = TOKENS,
                          .block_count = 3,
                          .sequences = &sequence,
                          .tokens = tokens,
                          .blocks = blocks};
    mr_wire_done done;
    if (mr_engine_step(engine, &step, &(mr_step_sink){0}, &done, &err) != MR_OK)
        fail_msg("%s", err.text);
    mr_engine_close(engine);
    mr_memshard_close(shard);
    for (uint32_t i = 0; i < w.layer_count; i++) {
        assert_non_null(w.layers[i].input);
        make_queries(i);
    }
}

static void close_case(void) {
    for (uint32_t i = 0; i < w.layer_count; i++) {
        traced *t = &w.layers[i];
        void *all[] = {t->input, t->output, t->score, t->query, t->x, t->index, t->row};
        for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) free(all[k]);
    }
    mr_weights_close(&w.weights, w.model);
    mr_manifest_free(&w.manifest);
    mr_model_close(w.model);
}

/* --- asking ----------------------------------------------------------------------------------- */

static mr_wire_topk topk_of(uint32_t layer, uint32_t cell, uint16_t wants, uint32_t tokens) {
    const mr_memory_layer *l = mr_model_memory(w.model, layer);
    const bool pools = wants == MR_TOPK_POOLED;
    return (mr_wire_topk){
        .layer = layer,
        .cell = cell,
        .wants = wants,
        .accumulator_bits = pools ? (uint16_t)w.manifest.tables[l->table].accumulator_bits : 0,
        .tokens = tokens,
        .query_columns = w.weights.memories[layer].query_proj.n,
        .x_columns = pools && l->gated ? mr_model_table(w.model, l->table)->pre_width : 0};
}

static mr_frame ask(mr_link *link, const mr_wire_topk *fixed, uint32_t first) {
    mr_topk_layout at;
    mr_frame frame;
    mr_err err = {{0}};
    const traced *t = &w.layers[fixed->layer % w.layer_count];
    const mr_wire_header header = {.type = MR_FRAME_TOPK, .request = 7, .epoch = 3};
    if (mr_topk_lay_out(&at, fixed, &err) != MR_OK) fail_msg("%s", err.text);
    uint8_t *payload = calloc(1, at.bytes);
    const size_t from =
        (size_t)first * w.weights.memories[fixed->layer % w.layer_count].query_proj.n;
    memcpy(payload, fixed, sizeof(*fixed));
    memcpy(payload + at.query, t->query + from,
           (size_t)fixed->tokens * fixed->query_columns * sizeof(float));
    if (fixed->x_columns > 0)
        memcpy(payload + at.x, t->x + (size_t)first * fixed->x_columns,
               (size_t)fixed->tokens * fixed->x_columns * sizeof(float));
    mr_link_send(link, &header, payload, at.bytes);
    free(payload);
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
    if (mr_link_receive(link, &frame, &err) != MR_OK) fail_msg("no answer: %s", err.text);
    assert_int_equal(frame.header->request, 7);
    return frame;
}

static void expect(const mr_frame *frame, uint16_t type, uint32_t bytes) {
    mr_err err = {{0}};
    if (frame->header->type != type) {
        mr_frame_error(frame, &err);
        fail_msg("%s instead of %s: %s", mr_frame_name(frame->header->type), mr_frame_name(type),
                 err.text);
    }
    assert_int_equal(frame->header->payload_bytes, bytes);
    assert_int_equal(frame->header->epoch, 3);
}

/* --- the worker's choice ---------------------------------------------------------------------- */

static void check_chosen(mr_link *link, uint32_t layer, uint32_t first, uint32_t tokens) {
    const mr_memory_layer *l = mr_model_memory(w.model, layer);
    const traced *t = &w.layers[layer];
    const mr_wire_topk fixed = topk_of(layer, 0, MR_TOPK_IDS, tokens);
    const size_t all = (size_t)tokens * l->entries, from = (size_t)first * l->entries;
    mr_topk_answer_layout at;
    mr_err err;
    assert_int_equal(mr_chosen_lay_out(&at, tokens, l->entries, l->cores, l->slots_out, &err),
                     MR_OK);
    const mr_frame frame = ask(link, &fixed, first);
    expect(&frame, MR_FRAME_CHOSEN, at.bytes);
    assert_memory_equal(frame.payload + at.row, t->row + from, all * sizeof(uint32_t));
    assert_memory_equal(frame.payload + at.index, t->index + from, all * sizeof(uint32_t));
    for (uint32_t m = 0; m < l->cores; m++)
        assert_memory_equal(frame.payload + at.score + m * all * sizeof(float),
                            t->score + (size_t)m * TOKENS * l->entries + from, all * sizeof(float));
    for (size_t j = 0; j < all && at.slot; j++)
        assert_int_equal(frame.payload[at.slot + j], t->index[from + j] / l->reach_rows);
}

/* --- the worker's output ---------------------------------------------------------------------- */

/* What memory.c does with the sums. */
static void check_output(uint32_t layer, const float *pooled) {
    const mr_memory_layer *l = mr_model_memory(w.model, layer);
    const mr_memory_weights *m = &w.weights.memories[layer];
    const mr_config *c = mr_model_config(w.model);
    const uint32_t width = mr_model_table(w.model, l->table)->width;
    const size_t floats = (size_t)TOKENS * l->slots_out * width;
    float *sums = copy(pooled, floats * sizeof(float)), *output = sums;
    if (c->memory == MR_MEMORY_PLUS) {
        float *silu = times(&m->silu_proj, w.layers[layer].input, TOKENS);
        for (size_t t = 0; t < TOKENS; t++)
            mr_silu_multiply(sums + t * width, silu + t * width, sums + t * width, width);
        free(silu);
    }
    if (c->memory != MR_MEMORY_PKM) {
        output = times(&m->value_proj, sums, TOKENS);
        free(sums);
    }
    assert_memory_equal(output, w.layers[layer].output, TOKENS * c->d_model * sizeof(float));
    free(output);
}

static void add_cell(int64_t *sums, int16_t *exponents, mr_link *link, mr_grid grid, uint32_t layer,
                     uint32_t cell) {
    const mr_memory_layer *l = mr_model_memory(w.model, layer);
    const mr_table_shape *table = mr_model_table(w.model, l->table);
    const mr_cell_span span = mr_cell_span_of(table, grid, cell);
    const mr_wire_topk fixed = topk_of(layer, cell, MR_TOPK_POOLED, TOKENS);
    mr_topk_answer_layout at;
    mr_err err;
    assert_int_equal(mr_topk_pooled_lay_out(&at, &fixed, l->slots_out, span.columns, &err), MR_OK);
    const mr_frame frame = ask(link, &fixed, 0);
    expect(&frame, MR_FRAME_POOLED, at.bytes);
    for (uint32_t i = 0; i < TOKENS * l->slots_out; i++)
        for (uint32_t c = 0; c < span.columns; c++) {
            const size_t from = (size_t)i * span.columns + c;
            sums[(size_t)i * table->width + span.column_first + c] +=
                fixed.accumulator_bits == 32 ? ((const int32_t *)(const void *)frame.payload)[from]
                                             : ((const int64_t *)(const void *)frame.payload)[from];
        }
    if (cell == 0)
        memcpy(exponents, frame.payload + at.value_exponent, TOKENS * sizeof(int16_t));
    else /* whoever derives them, from all K entries: the same */
        assert_memory_equal(exponents, frame.payload + at.value_exponent, TOKENS * sizeof(int16_t));
}

static void check_pooled(mr_link **links, uint32_t shards, mr_grid grid, uint32_t layer) {
    const mr_memory_layer *l = mr_model_memory(w.model, layer);
    const uint32_t width = mr_model_table(w.model, l->table)->width;
    const size_t row = (size_t)l->slots_out * width;
    const int base = w.manifest.tables[l->table].accumulator_bits == 32 ? 30 : 62;
    int64_t *sums = calloc(TOKENS * row, sizeof(*sums));
    float *pooled = calloc(TOKENS * row, sizeof(*pooled));
    int16_t exponents[TOKENS];
    for (uint32_t cell = 0; cell < grid.row_groups * grid.width_slices; cell++)
        add_cell(sums, exponents, links[cell % shards], grid, layer, cell);
    for (size_t t = 0; t < TOKENS; t++)
        for (size_t c = 0; c < row; c++)
            pooled[t * row + c] =
                (float)sums[t * row + c] * mr_scale_exact(1.0f, exponents[t] - base);
    check_output(layer, pooled);
    free(sums);
    free(pooled);
}

static void check_grid(mr_grid grid, uint32_t shards, const mr_ops *ops, mr_team *team) {
    mr_memshard *shard[SHARDS_MAX];
    mr_link *links[SHARDS_MAX];
    mr_err err;
    for (uint32_t i = 0; i < shards; i++) {
        assert_int_equal(
            mr_memshard_open(&shard[i], w.model, &w.manifest, ops, grid, i, shards, &err), MR_OK);
        if (mr_memshard_open_keys(shard[i], w.model, &err) != MR_OK) fail_msg("%s", err.text);
        mr_memshard_set_team(shard[i], team);
        links[i] = mr_link_loop(mr_memshard_handle, shard[i], "shard");
    }
    for (uint32_t layer = 0; layer < w.layer_count; layer++) {
        for (uint32_t first = 0; first < TOKENS; first += 18) /* one, and more than a tile */
            check_chosen(links[first % shards], layer, first, TOKENS - first < 18 ? 1 : 18);
        if (!mr_model_memory(w.model, layer)->gated || grid.width_slices == 1)
            check_pooled(links, shards, grid, layer);
    }
    for (uint32_t i = 0; i < shards; i++) {
        mr_link_close(links[i]);
        mr_memshard_close(shard[i]);
    }
}

static void test_the_worker_s_bits(void **state) {
    static const struct {
        mr_grid grid;
        uint32_t shards;
    } grids[] = {{{1, 1}, 1}, {{3, 1}, 2}, {{8, 1}, 4}, {{1, 3}, 2}, {{2, 5}, 3}};
    const char *const isas[] = {"ref", "avx2", "avx512", "neon"};
    mr_team *team;
    mr_err err;
    (void)state;
    assert_int_equal(mr_team_open(&team, 3, &err), MR_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        open_case(cases[i]);
        for (size_t g = 0; g < sizeof(grids) / sizeof(grids[0]); g++)
            for (size_t n = 0; n < sizeof(isas) / sizeof(isas[0]); n++) {
                const mr_ops *ops = mr_ops_find(isas[n]);
                if (ops && (g == 0 || n != 1))
                    check_grid(grids[g].grid, grids[g].shards, ops, g % 2 ? team : NULL);
            }
        close_case();
    }
    mr_team_close(team);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void refused(mr_link *link, const mr_wire_topk *fixed, mr_status status, const char *why) {
    mr_err err = {{0}};
    const mr_frame frame = ask(link, fixed, 0);
    assert_int_equal(frame.header->type, MR_FRAME_ERROR);
    assert_int_equal(mr_frame_error(&frame, &err), status);
    if (!strstr(err.text, why)) fail_msg("'%s' lacks '%s'", err.text, why);
}

static void test_what_does_not_fit(void **state) {
    mr_memshard *shard;
    mr_err err;
    (void)state;
    open_case("v2_glu_kx2_e4");
    const mr_grid grid = {2, 2};
    assert_int_equal(mr_memshard_open(&shard, w.model, &w.manifest, NULL, grid, 0, 2, &err), MR_OK);
    mr_link *link = mr_link_loop(mr_memshard_handle, shard, "worker");
    const mr_wire_topk ids = topk_of(0, 0, MR_TOPK_IDS, 2);
    const mr_wire_topk pooled = topk_of(0, 0, MR_TOPK_POOLED, 2);
    refused(link, &ids, MR_ERR_UNSUPPORTED, "does not hold all product keys of layer 0");
    const uint64_t bytes = mr_memshard_bytes(shard);
    assert_int_equal(mr_memshard_open_keys(shard, w.model, &err), MR_OK);
    assert_true(mr_memshard_bytes(shard) > bytes);
    check_chosen(link, 0, 0, 2);
    refused(link, &pooled, MR_ERR_MISMATCH, "needs whole rows");
    mr_wire_topk bad = ids;
    bad.query_columns--;
    refused(link, &bad, MR_ERR_MISMATCH, "columns; it has");
    bad = ids;
    bad.layer = 1000;
    refused(link, &bad, MR_ERR_RANGE, "memory layers");
    bad = pooled;
    bad.cell = 1;
    refused(link, &bad, MR_ERR_STALE, "cell 1 of grid 2x2 is not held here");
    bad = pooled;
    bad.accumulator_bits = 32;
    refused(link, &bad, MR_ERR_MISMATCH, "sums in 64 bits");
    bad = pooled;
    bad.x_columns = 0;
    refused(link, &bad, MR_ERR_MISMATCH, "takes an x of");
    const float kept = w.layers[0].query[0];
    w.layers[0].query[0] = 3e38f; /* finite, but no score that comes of it */
    w.layers[0].query[1] = 3e38f;
    refused(link, &ids, MR_ERR_RANGE, "not a finite number");
    w.layers[0].query[0] = kept;
    refused(link, &ids, MR_ERR_RANGE, "not a finite number");
    mr_link_close(link);
    mr_memshard_close(shard);
    close_case();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_worker_s_bits),
        cmocka_unit_test(test_what_does_not_fit),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    mr_float_environment();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
