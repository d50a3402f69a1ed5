/* Goal: `memrack plan` counts the bytes that are really sent, and what it prefers makes sense.
 * Method: the published shapes against figures worked out by hand; the formulas against the layout
 * of real frames; the rack turned this way and that. */
#include "cli/plan_model.h"
#include "tests/unit/net_test.h"

#include <math.h>

static mr_plan_subject subject_of(const char *preset) {
    mr_shape shape;
    mr_plan_subject s = {0};
    mr_err err = {{0}};
    if (mr_preset_find(&shape, preset, &err) != MR_OK ||
        mr_plan_subject_of_shape(&s, &shape, &err) != MR_OK)
        fail_msg("%s", err.text);
    return s;
}

static void near(const char *what, double found, double wanted, double part) {
    print_message("%s: %.1f kB (%.1f)\n", what, found / 1e3, wanted / 1e3);
    if (fabs(found - wanted) > wanted * part) fail_msg("%s: %.0f, not %.0f", what, found, wanted);
}

static double total(mr_plan_traffic t) {
    return t.up + t.down;
}

/* Rows of 1024 bf16, 84 of them, 4 slots: the figures of the papers' shapes on 8 shards. */
static void test_v1(void **state) {
    (void)state;
    mr_plan_subject s = subject_of("ultramem-1.6b-x12");
    assert_int_equal(s.layers[0].entries, 84);
    assert_int_equal(s.tables[0].width, 1024);
    near("v1 raw rows", mr_plan_gathered(&s, 0, 8).down, 172e3, 0.01);
    near("v1 row split", total(mr_plan_pooled(&s, 0, 8, 1)), 132e3, 0.01);
    near("v1 width split", total(mr_plan_pooled(&s, 0, 1, 8)), 22e3, 0.04);
    assert_int_equal(mr_plan_pooled(&s, 0, 1, 8).trips, 1);
    mr_plan_subject_free(&s);
}

/* K 128, rows 768 + 384, gated. With one of the 8 shards on the worker's host an eighth of it does
 * not travel. */
static void test_v2(void **state) {
    (void)state;
    mr_plan_subject s = subject_of("ultramemv2-1b-7b");
    const mr_memory_layer *l = &s.layers[0];
    assert_int_equal(l->entries, 128);
    assert_true(l->gated);
    assert_int_equal(s.tables[0].width, 768);
    assert_int_equal(s.tables[0].pre_width, 384);
    const mr_plan_traffic rows = mr_plan_pooled(&s, 0, 8, 1), columns = mr_plan_pooled(&s, 0, 1, 8);
    print_message("v2: %u cores, %u slots, %u of the answer\n", l->cores, l->slots, l->slots_out);
    near("v2 row split, 7 of 8 remote", total(rows) * 7 / 8, 55e3, 0.06);
    print_message("v2 width split: %.1f kB up, %.1f kB down\n", columns.up / 1e3,
                  columns.down / 1e3);
    assert_true(total(columns) < total(rows) * 0.6);
    assert_int_equal(rows.trips, 1);
    assert_int_equal(columns.trips, 2);
    mr_plan_subject_free(&s);
}

/* The frames of one batch and layer, laid out as they are sent. */
static double frame_bytes(const mr_wire_retrieve *fixed) {
    mr_retrieve_layout layout;
    mr_err err = {{0}};
    if (mr_retrieve_lay_out(&layout, fixed, &err) != MR_OK) fail_msg("%s", err.text);
    return layout.bytes - (double)sizeof(*fixed);
}

static void test_against_frames(void **state) {
    (void)state;
    enum { TOKENS = 32 };
    mr_plan_subject s = subject_of("ultramem-1.6b-x12");
    const mr_memory_layer *l = &s.layers[0];
    mr_wire_retrieve pool = {.mode = MR_RETRIEVE_POOL,
                             .accumulator_bits = 32,
                             .tokens = TOKENS,
                             .entries = TOKENS * 84,
                             .cores = 1,
                             .slots = (uint16_t)l->slots_out};
    near("v1 width split, up", mr_plan_pooled(&s, 0, 1, 8).up, frame_bytes(&pool) * 8 / TOKENS,
         0.01);
    pool.entries = TOKENS * 84 / 8;
    pool.cores = (uint16_t)l->cores;
    near("v1 row split, up", mr_plan_pooled(&s, 0, 8, 1).up, frame_bytes(&pool) * 8 / TOKENS, 0.01);
    mr_plan_subject_free(&s);
    s = subject_of("ultramemv2-1b-7b");
    l = &s.layers[0];
    const mr_wire_retrieve gated = {.mode = MR_RETRIEVE_GATED_POOL,
                                    .accumulator_bits = 64,
                                    .tokens = TOKENS,
                                    .entries = TOKENS * 128 / 8,
                                    .cores = (uint16_t)l->cores,
                                    .slots = (uint16_t)l->slots_out,
                                    .gelu = 1,
                                    .x_columns = 384};
    near("v2 row split, up", mr_plan_pooled(&s, 0, 8, 1).up, frame_bytes(&gated) * 8 / TOKENS,
         0.01);
    const mr_wire_retrieve dot = {.mode = MR_RETRIEVE_DOT,
                                  .accumulator_bits = 64,
                                  .tokens = TOKENS,
                                  .entries = TOKENS * 128,
                                  .x_columns = 48};
    const mr_wire_retrieve second = {.mode = MR_RETRIEVE_POOL,
                                     .accumulator_bits = 64,
                                     .tokens = TOKENS,
                                     .entries = TOKENS * 128,
                                     .cores = 1,
                                     .slots = (uint16_t)l->slots_out};
    near("v2 width split, up", mr_plan_pooled(&s, 0, 1, 8).up,
         (frame_bytes(&dot) + frame_bytes(&second)) * 8 / TOKENS, 0.01);
    near("v2 width split, down", mr_plan_pooled(&s, 0, 1, 8).down, 128 * 8 * 8 + 768 * 8, 0.01);
    mr_plan_subject_free(&s);
}

static const mr_plan_rack rack = {.nodes = 8,
                                  .replicas = 1,
                                  .dram_bytes = 256ull << 30,
                                  .hbm_bytes = 80ull << 30,
                                  .nic_gbps = 100,
                                  .latency_us = 10,
                                  .read_gbs = 2000,
                                  .rows_per_s = 100e6,
                                  .batch = 32,
                                  .context_tokens = 1024};

static void test_choices(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_plan p;
    mr_plan_subject s = subject_of("ultramem-1.6b-x12");
    assert_int_equal(mr_plan_make(&p, &s, &rack, &err), MR_OK);
    assert_true(p.fits_dram && p.fits_hbm);
    assert_int_equal(p.shards, 8);
    assert_int_equal(p.choice_count, 5); /* 8x1, 4x2, 2x4, 1x8 and raw rows */
    for (uint32_t i = 0; i < p.choice_count; i++)
        assert_true(p.choices[i].slice_bytes_min >= MR_PLAN_SLICE_BYTES_MIN);
    mr_plan_rack slow = rack;
    slow.nic_gbps = 1; /* bytes are what counts: the width is split */
    assert_int_equal(mr_plan_make(&p, &s, &slow, &err), MR_OK);
    assert_int_equal(p.choices[0].grid_columns, 8);
    assert_false(p.choices[0].is_gather);
    const double step = p.choices[0].step_us;
    slow.latency_us = 1000;
    assert_int_equal(mr_plan_make(&p, &s, &slow, &err), MR_OK);
    assert_true(p.choices[0].step_us > step);
    mr_plan_rack small = rack;
    small.dram_bytes = 1ull << 30;
    small.replicas = 2;
    assert_int_equal(mr_plan_make(&p, &s, &small, &err), MR_OK);
    assert_int_equal(p.shards, 4);
    assert_false(p.fits_dram);
    assert_int_equal(p.nodes_wanted, 2 * ((s.table_bytes + (1ull << 30) - 1) >> 30));
    small.replicas = 9;
    assert_int_equal(mr_plan_make(&p, &s, &small, &err), MR_ERR_ARGUMENT);
    assert_sentence(err, "9 nodes or more");
    mr_plan_subject_free(&s);
    s = subject_of("ultramemv2-1b-7b"); /* two trips cost: with far shards one is better */
    mr_plan_rack far = rack;
    far.latency_us = 500;
    far.batch = 1;
    assert_int_equal(mr_plan_make(&p, &s, &far, &err), MR_OK);
    assert_int_equal(p.choices[0].grid_columns, 1);
    assert_int_equal(p.choices[0].trips, s.layer_count);
    mr_plan_subject_free(&s);
    s = subject_of("dense-1.6b"); /* no memory: nothing to choose */
    assert_int_equal(mr_plan_make(&p, &s, &rack, &err), MR_OK);
    assert_int_equal(p.choice_count, 0);
    assert_true(p.dense_us > 0);
    mr_plan_subject_free(&s);
}

/* A directory and a preset of the same numbers are the same subject. */
static void test_directory(void **state) {
    (void)state;
    mr_plan_subject s;
    mr_err err = {{0}};
    if (mr_plan_subject_open(&s, MR_SOURCE_DIR "/models/demo", &err) != MR_OK)
        fail_msg("%s", err.text);
    assert_true(s.layer_count > 0 && s.table_bytes > 0 && s.dense_bytes > s.key_bytes);
    assert_true(total(mr_plan_pooled(&s, 0, 2, 1)) > 0);
    mr_plan_subject_free(&s);
    assert_int_not_equal(mr_plan_subject_open(&s, "/nowhere", &err), MR_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v1),        cmocka_unit_test(test_v2),
        cmocka_unit_test(test_choices),   cmocka_unit_test(test_against_frames),
        cmocka_unit_test(test_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
