/* Goal: a memshard answers the same bits however the table is cut, and never answers a request that
 * does not fit its model, its cells or its accumulators.
 * Method: random tables in memory, one layer of each kind; every grid's partial sums, added as
 * integers, are compared with plain loops written here. Then one thing is spoilt per case. */
#include "common/base/log.h"
#include "common/ops/gate.h"
#include "memshard/serve.h"
#include "tests/unit/net_test.h"

#include <fenv.h>
#include <math.h>
#include <stdio.h>

enum {
    ROWS = 57,
    WIDTH = 24,
    WIDTH2 = 20,
    PRE = 12, /* table 0: f32; table 1: bf16 with pre-values */
    LAYERS = 4,
    TOKENS = 3,
    K = 7,
    SLOTS = 4,
};

static struct {
    float values0[ROWS * WIDTH];
    uint16_t values1[ROWS * WIDTH2], pre1[ROWS * PRE];
    uint8_t odd[sizeof(float) * ROWS * WIDTH + 1];
    mr_table_shape tables[2];
    mr_table_facts facts[2];
    mr_memory_layer layers[LAYERS];
    const mr_table_shape *table_list[2];
    const mr_memory_layer *layer_list[LAYERS];
    mr_store_source source;
    uint32_t count[TOKENS], row[TOKENS * K];
    uint8_t slot[TOKENS * K];
    float score[2][TOKENS * K], x[TOKENS * PRE];
    int e[TOKENS], d[TOKENS];
} w;

static float in_range(uint64_t *seed) {
    return (float)test_random(seed) * 0x1p-30f - 1.0f;
}

static mr_status map_memory(const void *context, mr_mapping *out, uint32_t table, bool pre,
                            uint64_t first, uint64_t bytes, mr_err *err) {
    (void)err;
    const uint8_t *all[2][2] = {{(const uint8_t *)w.values0, NULL},
                                {(const uint8_t *)w.values1, (const uint8_t *)w.pre1}};
    assert_non_null(all[table][pre]);
    if (context && table == 0) { /* a file whose data begins at an odd offset */
        memcpy(w.odd + 1, w.values0, sizeof(w.values0));
        *out = (mr_mapping){.data = w.odd + 1 + first};
    } else
        *out = (mr_mapping){.data = all[table][pre] + first};
    assert_true(first + bytes <= w.tables[table].rows * (pre     ? PRE * 2
                                                         : table ? WIDTH2 * 2
                                                                 : WIDTH * 4));
    return MR_OK;
}

static int make_world(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < ROWS * WIDTH; i++) w.values0[i] = in_range(&seed);
    for (int i = 0; i < ROWS * WIDTH2; i++) w.values1[i] = mr_f32_to_bf16(in_range(&seed));
    for (int i = 0; i < ROWS * PRE; i++) w.pre1[i] = mr_f32_to_bf16(in_range(&seed));
    w.tables[0] = (mr_table_shape){.rows = ROWS, .width = WIDTH, .storage = {MR_F32, 0}};
    w.tables[1] = (mr_table_shape){.rows = ROWS,
                                   .width = WIDTH2,
                                   .pre_width = PRE,
                                   .storage = {MR_BF16, 0},
                                   .pre_storage = {MR_BF16, 0}};
    w.facts[0] = (mr_table_facts){.value_max = 1, .value_rms = 0.5, .accumulator_bits = 32};
    w.facts[1] = (mr_table_facts){
        .value_max = 1, .value_rms = 0.5, .pre_norm_max = sqrt(PRE), .accumulator_bits = 64};
    const mr_memory_layer plain = {
        .entries = K, .rank = 1, .cores = 1, .slots = 1, .slots_out = 1, .reach_rows = ROWS};
    for (int i = 0; i < LAYERS; i++) w.layers[i] = plain;
    w.layers[0].cores = 2; /* v1: two cores, four slots */
    w.layers[0].slots = w.layers[0].slots_out = SLOTS;
    w.layers[1].table = w.layers[2].table = w.layers[3].table = 1;
    w.layers[1].gated = w.layers[1].gelu = true; /* v2: gate through GELU */
    w.layers[2].gated = true;                    /* v2: the dot itself, four slots */
    w.layers[2].slots = w.layers[2].slots_out = SLOTS;
    for (int i = 0; i < 2; i++) w.table_list[i] = &w.tables[i];
    for (int i = 0; i < LAYERS; i++) w.layer_list[i] = &w.layers[i];
    w.source = (mr_store_source){.layers = w.layer_list,
                                 .tables = w.table_list,
                                 .facts = w.facts,
                                 .layer_count = LAYERS,
                                 .table_count = 2,
                                 .map = map_memory};
    for (int t = 0; t < TOKENS; t++) w.count[t] = K;
    for (int j = 0; j < TOKENS * K; j++) {
        w.row[j] = test_random(&seed) % ROWS;
        w.slot[j] = (uint8_t)(test_random(&seed) % SLOTS);
        w.score[0][j] = in_range(&seed);
        w.score[1][j] = in_range(&seed);
    }
    for (int i = 0; i < TOKENS * PRE; i++) w.x[i] = in_range(&seed);
    for (int t = 0; t < TOKENS; t++) {
        assert_true(mr_exponent_of(&w.d[t], sqrt(PRE) * sqrt(PRE)));
        assert_true(mr_exponent_of(&w.e[t], K * sqrt(PRE) * sqrt(PRE)));
    }
    return 0;
}

/* --- what must come out, by plain loops ------------------------------------------------------- */

static float value_at(uint32_t table, uint32_t row, uint32_t column) {
    return table ? mr_bf16_to_f32(w.values1[row * WIDTH2 + column])
                 : w.values0[row * WIDTH + column];
}

static int64_t expected_dot(int t, int j) {
    int64_t dot = 0;
    for (int c = 0; c < PRE; c++) {
        const float x = ldexpf(w.x[t * PRE + c], 62 - w.d[t]);
        dot += llrintf(x * mr_bf16_to_f32(w.pre1[w.row[j] * PRE + (uint32_t)c]));
    }
    return dot;
}

static float expected_weight(uint32_t layer, uint32_t core, int t, int j) {
    const mr_memory_layer *l = &w.layers[layer];
    float score = w.score[core][j];
    if (l->gated)
        score = mr_gate_weight(mr_dot_to_float(expected_dot(t, j), w.d[t]), score, l->gelu);
    return ldexpf(score, (int)w.facts[l->table].accumulator_bits - 2 - w.e[t]);
}

/* [token][slot][column] */
static void expected_sums(uint32_t layer, int64_t *sums) {
    const mr_memory_layer *l = &w.layers[layer];
    const uint32_t width = w.tables[l->table].width;
    memset(sums, 0, sizeof(*sums) * TOKENS * l->slots_out * width);
    for (int t = 0; t < TOKENS; t++)
        for (int j = t * K; j < (t + 1) * K; j++)
            for (uint32_t c = 0; c < width; c++) {
                const float weight = expected_weight(layer, c / (width / l->cores), t, j);
                const uint32_t slot = l->slots_out > 1 ? w.slot[j] : 0;
                sums[((uint32_t)t * l->slots_out + slot) * width + c] +=
                    llrintf(weight * value_at(l->table, w.row[j], c));
            }
}

/* --- asking ----------------------------------------------------------------------------------- */

typedef struct {
    uint32_t layer; /* whose weights are sent, whatever fixed claims */
    mr_wire_retrieve fixed;
    uint32_t count[TOKENS], source[TOKENS * K]; /* entry -> index in the world's arrays */
    mr_cell_span span;
} question;

/* The entries that fall into a cell, and the fixed part that asks for them. */
static question question_of(uint32_t layer, uint16_t mode, mr_grid grid, uint32_t cell) {
    const mr_memory_layer *l = &w.layers[layer];
    const mr_table_shape *table = &w.tables[l->table];
    question q = {.layer = layer, .span = mr_cell_span_of(table, grid, cell)};
    uint32_t entries = 0;
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t j = t * K; j < (t + 1) * K; j++)
            if (w.row[j] - q.span.rows.first < q.span.rows.count) {
                q.source[entries++] = j;
                q.count[t]++;
            }
    const bool pools = mode == MR_RETRIEVE_POOL || mode == MR_RETRIEVE_GATED_POOL;
    const uint32_t per_core = table->width / l->cores;
    q.fixed = (mr_wire_retrieve){.layer = layer,
                                 .cell = cell,
                                 .mode = mode,
                                 .tokens = TOKENS,
                                 .entries = entries,
                                 .slots = pools ? (uint16_t)l->slots_out : 1};
    if (mode != MR_RETRIEVE_GATHER) q.fixed.accumulator_bits = 64;
    if (pools) {
        q.fixed.accumulator_bits = (uint16_t)w.facts[l->table].accumulator_bits;
        q.fixed.core_first = (uint16_t)(q.span.column_first / per_core);
        q.fixed.cores = (uint16_t)((q.span.column_first + q.span.columns - 1) / per_core + 1 -
                                   q.fixed.core_first);
    }
    if (mode == MR_RETRIEVE_GATED_POOL) q.fixed.gelu = l->gelu;
    if (mode == MR_RETRIEVE_GATED_POOL || mode == MR_RETRIEVE_DOT)
        q.fixed.x_columns = q.span.pre_columns;
    return q;
}

static uint8_t *payload_of(const question *q, mr_retrieve_layout *to) {
    const mr_wire_retrieve *f = &q->fixed;
    mr_err err;
    if (mr_retrieve_lay_out(to, f, &err) != MR_OK) fail_msg("%s", err.text);
    uint8_t *payload = calloc(1, to->bytes);
    memcpy(payload, f, sizeof(*f));
    memcpy(payload + to->count, q->count, sizeof(q->count));
    for (uint32_t i = 0; i < f->entries; i++) {
        const uint32_t j = q->source[i];
        ((uint32_t *)(void *)(payload + to->row))[i] = w.row[j];
        if (to->slot) payload[to->slot + i] = w.slot[j];
        for (uint32_t core = 0; core < f->cores; core++)
            ((float *)(void *)(payload + to->weight))[core * f->entries + i] =
                f->mode == MR_RETRIEVE_GATED_POOL
                    ? w.score[f->core_first + core][j]
                    : expected_weight(q->layer, f->core_first + core, (int)(j / K), (int)j);
    }
    for (uint32_t t = 0; t < TOKENS && to->x; t++) {
        if (to->value_exponent) {
            ((int16_t *)(void *)(payload + to->value_exponent))[t] = (int16_t)w.e[t];
            ((int16_t *)(void *)(payload + to->dot_exponent))[t] = (int16_t)w.d[t];
        }
        for (uint32_t c = 0; c < f->x_columns; c++)
            ((float *)(void *)(payload + to->x))[t * f->x_columns + c] =
                ldexpf(w.x[t * PRE + q->span.pre_column_first + c],
                       f->mode == MR_RETRIEVE_DOT ? 62 - w.d[t] : 0);
    }
    return payload;
}

/* Sends the payload and gives the one answer; it lives until the link is used again. */
static mr_frame exchange(mr_link *link, const void *payload, uint32_t bytes) {
    mr_frame frame;
    mr_err err = {{0}};
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = 42};
    mr_link_send(link, &header, payload, bytes);
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
    if (mr_link_receive(link, &frame, &err) != MR_OK) fail_msg("no answer: %s", err.text);
    assert_int_equal(frame.header->request, 42);
    return frame;
}

static mr_frame ask(mr_link *link, const question *q) {
    mr_retrieve_layout to;
    mr_err err = {{0}};
    uint32_t bytes;
    uint8_t *payload = payload_of(q, &to);
    const mr_frame frame = exchange(link, payload, to.bytes);
    free(payload);
    const mr_table_shape *table = &w.tables[w.layers[q->fixed.layer].table];
    assert_int_equal(mr_retrieve_answer_bytes(&bytes, &q->fixed, q->span.columns,
                                              mr_storage_bytes(table->storage, q->span.columns),
                                              &err),
                     MR_OK);
    if (mr_answer_check(&frame, mr_retrieve_answer_type(&q->fixed), bytes, &err) != MR_OK)
        fail_msg("layer %u cell %u: %s", q->fixed.layer, q->fixed.cell, err.text);
    return frame;
}

/* --- the same bits from every grid ------------------------------------------------------------ */

static void add_pooled(const mr_frame *frame, const question *q, int64_t *sums) {
    const mr_memory_layer *l = &w.layers[q->fixed.layer];
    const uint32_t width = w.tables[l->table].width, columns = q->span.columns;
    for (uint32_t i = 0; i < TOKENS * l->slots_out; i++)
        for (uint32_t c = 0; c < columns; c++) {
            const size_t at = (size_t)i * columns + c;
            sums[i * width + q->span.column_first + c] +=
                q->fixed.accumulator_bits == 32
                    ? ((const int32_t *)(const void *)frame->payload)[at]
                    : ((const int64_t *)(const void *)frame->payload)[at];
        }
}

static void check_layer(mr_link **links, uint32_t shards, mr_grid grid, uint32_t layer,
                        uint16_t mode) {
    static int64_t sums[TOKENS * SLOTS * WIDTH], expected[TOKENS * SLOTS * WIDTH];
    int64_t dots[TOKENS * K] = {0};
    const mr_table_shape *table = &w.tables[w.layers[layer].table];
    memset(sums, 0, sizeof(sums));
    for (uint32_t cell = 0; cell < grid.row_groups * grid.width_slices; cell++) {
        const question q = question_of(layer, mode, grid, cell);
        if (q.span.columns == 0 && mode != MR_RETRIEVE_DOT) continue;
        if (q.span.pre_columns == 0 && mode == MR_RETRIEVE_DOT) continue;
        const mr_frame frame = ask(links[cell % shards], &q);
        if (mode == MR_RETRIEVE_POOL || mode == MR_RETRIEVE_GATED_POOL)
            add_pooled(&frame, &q, sums);
        for (uint32_t i = 0; mode == MR_RETRIEVE_DOT && i < q.fixed.entries; i++)
            dots[q.source[i]] += ((const int64_t *)(const void *)frame.payload)[i];
        for (uint32_t i = 0; mode == MR_RETRIEVE_GATHER && i < q.fixed.entries; i++)
            for (uint32_t c = 0; c < q.span.columns; c++)
                assert_true(
                    mr_element_at(frame.payload, table->storage.element, i * q.span.columns + c) ==
                    value_at(w.layers[layer].table, w.row[q.source[i]], q.span.column_first + c));
    }
    if (mode == MR_RETRIEVE_DOT)
        for (int j = 0; j < TOKENS * K; j++) assert_int_equal(dots[j], expected_dot(j / K, j));
    if (mode == MR_RETRIEVE_POOL || mode == MR_RETRIEVE_GATED_POOL) {
        expected_sums(layer, expected);
        assert_memory_equal(sums, expected,
                            sizeof(*sums) * TOKENS * w.layers[layer].slots_out * table->width);
    }
}

static void check_grid(mr_grid grid, uint32_t shards, const mr_ops *ops) {
    mr_memshard *shard[16];
    mr_link *links[16];
    mr_err err;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < shards; i++) {
        if (mr_memshard_open_source(&shard[i], &w.source, ops, grid, i, shards, &err) != MR_OK)
            fail_msg("%s", err.text);
        links[i] = mr_link_loop(mr_memshard_handle, shard[i], "shard");
        bytes += mr_memshard_bytes(shard[i]);
    }
    assert_int_equal(bytes, sizeof(w.values0) + sizeof(w.values1) + sizeof(w.pre1));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        check_layer(links, shards, grid, layer, MR_RETRIEVE_POOL);
        check_layer(links, shards, grid, layer, MR_RETRIEVE_GATHER);
        if (w.layers[layer].gated) check_layer(links, shards, grid, layer, MR_RETRIEVE_DOT);
        if (w.layers[layer].gated && grid.width_slices == 1)
            check_layer(links, shards, grid, layer, MR_RETRIEVE_GATED_POOL);
    }
    for (uint32_t i = 0; i < shards; i++) {
        mr_link_close(links[i]);
        mr_memshard_close(shard[i]);
    }
}

static void test_every_grid_gives_the_same_bits(void **state) {
    (void)state;
    const mr_grid grids[] = {{1, 1}, {2, 1}, {3, 1}, {8, 1},  {57, 1}, {64, 1},
                             {1, 2}, {1, 3}, {2, 4}, {3, 24}, {2, 30}, {8, 5}};
    const char *names[] = {"ref", "avx2", "avx512", "neon"};
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
        const mr_ops *ops = mr_ops_find(names[n]);
        for (size_t i = 0; ops && i < sizeof(grids) / sizeof(grids[0]); i++)
            for (uint32_t shards = 1; shards <= 16; shards += shards < 3 ? 1 : 5)
                if (shards <= grids[i].row_groups * grids[i].width_slices)
                    check_grid(grids[i], shards, ops);
    }
    w.source.context = &w; /* data at odd addresses is kept, not mapped */
    check_grid((mr_grid){2, 1}, 2, &mr_ops_ref);
    w.source.context = NULL;
}

/* --- refusals --------------------------------------------------------------------------------- */

static void expect_error(mr_link *link, const question *q, mr_status status, const char *why) {
    mr_retrieve_layout to;
    mr_err err;
    uint8_t *payload = payload_of(q, &to);
    const mr_frame frame = exchange(link, payload, to.bytes);
    free(payload);
    assert_int_equal(frame.header->type, MR_FRAME_ERROR);
    assert_int_equal(mr_frame_error(&frame, &err), status);
    assert_sentence(err, why);
}

static void test_requests_that_do_not_fit(void **state) {
    (void)state;
    mr_err err;
    mr_memshard *shard;
    const mr_grid grid = {2, 2};
    assert_int_equal(mr_memshard_open_source(&shard, &w.source, NULL, grid, 0, 2, &err), MR_OK);
    assert_int_equal(mr_memshard_cell_count(shard), 2);
    assert_int_equal(mr_memshard_cells(shard)[1], 2);
    mr_link *link = mr_link_loop(mr_memshard_handle, shard, "worker");
    const question good = question_of(0, MR_RETRIEVE_POOL, grid, 0);
    question q;
#define REFUSED(field, value, status, why)                                                         \
    q = good;                                                                                      \
    q.fixed.field = value;                                                                         \
    expect_error(link, &q, status, why)
    ask(link, &good);
    REFUSED(layer, LAYERS, MR_ERR_RANGE, "the model has 4 memory layers");
    REFUSED(layer, 1023, MR_ERR_RANGE, "memory layers");
    REFUSED(cell, 1, MR_ERR_RANGE, "cell 1 of grid 2x2 is not held here");
    REFUSED(cell, 65535, MR_ERR_RANGE, "not held here");
    REFUSED(cell, 2, MR_ERR_RANGE, "is not in cell 2");
    REFUSED(core_first, 1, MR_ERR_MISMATCH, "has cores 0 to 0");
    REFUSED(slots, 5, MR_ERR_MISMATCH, "answers 4 slots");
    REFUSED(accumulator_bits, 64, MR_ERR_MISMATCH, "sums in 32 bits");
#undef REFUSED
    q = question_of(1, MR_RETRIEVE_GATED_POOL, grid, 0); /* half a pre-value row */
    expect_error(link, &q, MR_ERR_MISMATCH, "whole pre-value row");
    q = question_of(1, MR_RETRIEVE_DOT, grid, 0);
    q.fixed.x_columns--;
    expect_error(link, &q, MR_ERR_MISMATCH, "pre-value columns");
    q = question_of(1, MR_RETRIEVE_DOT, grid, 0);
    q.fixed.layer = 0;
    expect_error(link, &q, MR_ERR_MISMATCH, "not gated");
    ask(link, &good);
    mr_link_close(link);
    mr_memshard_close(shard);
}

static void test_rows_and_sums_out_of_bounds(void **state) {
    (void)state;
    mr_err err;
    mr_memshard *shard;
    mr_retrieve_layout to;
    mr_frame frame;
    const mr_grid grid = {2, 1};
    assert_int_equal(mr_memshard_open_source(&shard, &w.source, NULL, grid, 1, 2, &err), MR_OK);
    mr_link *link = mr_link_loop(mr_memshard_handle, shard, "worker");
    const question q = question_of(0, MR_RETRIEVE_POOL, grid, 1);
    const uint32_t first = (uint32_t)q.span.rows.first;
    const uint32_t bad_rows[] = {0, first - 1, ROWS, 0x80000000u, 0xffffffffu};
    for (size_t i = 0; i < sizeof(bad_rows) / sizeof(bad_rows[0]); i++) {
        uint8_t *payload = payload_of(&q, &to);
        ((uint32_t *)(void *)(payload + to.row))[q.fixed.entries - 1] = bad_rows[i];
        frame = exchange(link, payload, to.bytes);
        assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
        assert_sentence(err, "is not in cell 1");
        free(payload);
    }
    const float bad_weights[] = {0x1p31f, -0x1p31f, 3e38f};
    for (size_t i = 0; i < sizeof(bad_weights) / sizeof(bad_weights[0]); i++) {
        uint8_t *payload = payload_of(&q, &to);
        ((float *)(void *)(payload + to.weight))[0] = bad_weights[i];
        frame = exchange(link, payload, to.bytes);
        assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
        assert_sentence(err, "32-bit sums hold");
        free(payload);
    }
    question g = question_of(1, MR_RETRIEVE_GATED_POOL, grid, 1);
    uint8_t *payload = payload_of(&g, &to);
    ((float *)(void *)(payload + to.x))[0] = 1e30f;
    frame = exchange(link, payload, to.bytes);
    assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
    assert_sentence(err, "64-bit dots hold");
    free(payload);
    payload = payload_of(&g, &to);
    ((int16_t *)(void *)(payload + to.value_exponent))[0] = -60; /* too small for these weights */
    for (uint32_t t = 0; t < TOKENS; t++)
        ((int16_t *)(void *)(payload + to.value_exponent))[t] = -60;
    frame = exchange(link, payload, to.bytes);
    assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
    assert_sentence(err, "64-bit sums hold");
    free(payload);
    mr_link_close(link);
    mr_memshard_close(shard);
}

static void test_frames_that_end_the_link(void **state) {
    (void)state;
    mr_err err;
    mr_memshard *shard;
    mr_frame frame;
    mr_retrieve_layout to;
    assert_int_equal(mr_memshard_open_source(&shard, &w.source, NULL, (mr_grid){1, 1}, 0, 1, &err),
                     MR_OK);
    const question q = question_of(0, MR_RETRIEVE_POOL, (mr_grid){1, 1}, 0);
    for (int round = 0; round < 3; round++) {
        mr_link *link = mr_link_loop(mr_memshard_handle, shard, "worker");
        uint8_t *payload = payload_of(&q, &to);
        if (round == 0) ((float *)(void *)(payload + to.weight))[3] = NAN;
        if (round == 1) to.bytes -= 8;
        mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = 42};
        if (round == 2) header.type = MR_FRAME_STEP;
        mr_link_send(link, &header, payload, to.bytes);
        free(payload);
        assert_int_equal(mr_link_flush(link, &err), MR_OK);
        assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
        assert_int_equal(frame.header->type, MR_FRAME_REFUSE);
        assert_int_not_equal(mr_frame_error(&frame, &err), MR_OK);
        mr_link_close(link);
    }
    mr_link *link = mr_link_loop(mr_memshard_handle, shard, "worker");
    for (uint32_t cell = 0; cell < 2; cell++) { /* any map's epoch */
        const mr_wire_header mapped = {.type = MR_FRAME_RETRIEVE, .epoch = 3};
        uint8_t *payload = payload_of(&q, &to);
        ((mr_wire_retrieve *)(void *)payload)->cell = cell;
        mr_link_send(link, &mapped, payload, to.bytes);
        free(payload);
        assert_int_equal(mr_link_flush(link, &err), MR_OK);
        assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
        assert_int_equal(frame.header->epoch, cell == 0 ? 3 : 0);
        assert_int_equal(frame.header->type, cell == 0 ? MR_FRAME_POOLED : MR_FRAME_ERROR);
        if (cell == 1) assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
    }
    mr_link_close(link);
    mr_memshard_close(shard);
}

static void test_splits_that_do_not_work(void **state) {
    (void)state;
    mr_err err;
    mr_memshard *shard;
    mr_store_plan plan;
    assert_int_equal(mr_memshard_open_source(&shard, &w.source, NULL, (mr_grid){1, 1}, 0, 2, &err),
                     MR_ERR_ARGUMENT);
    assert_sentence(err, "smallest grid that fits is 2x1");
    assert_int_equal(mr_store_plan_of(&plan, &w.source, (mr_grid){1, 4}, 0, 5, &err),
                     MR_ERR_ARGUMENT);
    assert_sentence(err, "2x4");
    assert_int_equal(mr_store_plan_of(&plan, &w.source, (mr_grid){2, 1}, 2, 2, &err),
                     MR_ERR_ARGUMENT);
    assert_int_equal(mr_store_plan_of(&plan, &w.source, (mr_grid){0, 1}, 0, 1, &err),
                     MR_ERR_ARGUMENT);
    assert_int_equal(mr_store_plan_of(&plan, &w.source, (mr_grid){65536, 65536}, 0, 1, &err),
                     MR_ERR_ARGUMENT);
    assert_int_equal(mr_store_plan_of(&plan, &w.source, (mr_grid){2, 1}, 0, 2, &err), MR_OK);
    assert_int_equal(mr_store_fits(&plan, plan.mapped_bytes, &err), MR_OK);
    assert_int_equal(mr_store_fits(&plan, plan.mapped_bytes - 1, &err), MR_ERR_NOMEM);
    assert_sentence(err, "use more memshards");
    assert_true(mr_memory_available() > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_grid_gives_the_same_bits),
        cmocka_unit_test(test_requests_that_do_not_fit),
        cmocka_unit_test(test_rows_and_sums_out_of_bounds),
        cmocka_unit_test(test_frames_that_end_the_link),
        cmocka_unit_test(test_splits_that_do_not_work),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, make_world, NULL);
}
