/* test_retrieval_replicas.c - retrieval over replicated memshards in processes of their own.
 *
 * Goal: the same bits whatever the grid, the number of shards and of replicas, which replica
 * answers, what lies in the row cache, and while routes change; what cannot be answered is said in
 * a sentence, or counts as zero where that was allowed. Method: every answer is compared with one
 * memshard that holds everything. */
#include "tests/unit/retrieval_test.h"

static void test_same_bits_over_grids_and_replicas(void **state) {
    static const struct {
        mr_grid grid;
        uint32_t parts, replicas;
    } all[] = {{{1, 1}, 1, 2}, {{2, 1}, 2, 1}, {{3, 2}, 2, 2}, {{1, 4}, 3, 1}, {{5, 3}, 2, 3}};
    uint64_t seed = 11;
    (void)state;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        test_cluster c;
        test_cluster_start(&c, all[i].grid, all[i].parts, all[i].replicas);
        mr_retrieval *r = test_open_route(&c.route);
        for (uint32_t layer = 0; layer < TEST_LAYERS; layer++)
            for (uint32_t round = 0; round < 6; round++) {
                test_ask a;
                test_ask_make(&a, layer, round & 1, &seed);
                test_check(r, &a);
            }
        mr_retrieval_close(r);
        test_cluster_end(&c);
    }
}

static void test_replicas_share_the_work(void **state) {
    test_cluster c;
    uint64_t seed = 12;
    (void)state;
    test_cluster_start(&c, (mr_grid){8, 1}, 1, 2);
    mr_retrieval *r = test_open_route(&c.route);
    test_warm(r, 100, &seed);
    const unsigned first = atomic_load(&c.shards[0].control->requests);
    const unsigned second = atomic_load(&c.shards[1].control->requests);
    /* the faster one gets more, whatever made the other one slow; but neither gets all */
    assert_true(first > 0 && second > 0);
    const mr_retrieval_stats stats = mr_retrieval_take_stats(r);
    assert_true(stats.requests <= first + second);
    assert_true(stats.layers == TEST_LAYERS && stats.layer_wait_ns[0] > 0);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

static void garbage(test_manner manner) {
    test_cluster c;
    uint64_t seed = 13;
    mr_err err;
    test_ask a;
    float out[TEST_OUT];
    test_cluster_start(&c, (mr_grid){2, 1}, 1, 2);
    mr_retrieval *r = test_open_route(&c.route);
    atomic_store(&c.shards[0].control->manner, manner);
    uint32_t resends = 0; /* the other replica answers, and nothing wrong is believed */
    for (const int64_t end = after_ms(8000); resends == 0 && mr_now_ns() < end;) {
        test_warm(r, 40, &seed);
        resends += mr_retrieval_take_stats(r).resends;
    }
    assert_true(resends > 0);
    atomic_store(&c.shards[1].control->manner, manner);
    test_ask_make(&a, 0, false, &seed);
    const int64_t began = mr_now_ns();
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - began < 1500000000);
    assert_sentence(err, "shard-1");
    atomic_store(&c.shards[0].control->manner, MANNER_GOOD);
    atomic_store(&c.shards[1].control->manner, MANNER_GOOD);
    mr_status status = MR_ERR_UNAVAILABLE; /* they are connected again, and believed again */
    for (int64_t end = after_ms(5000); status != MR_OK && mr_now_ns() < end; test_sleep_us(1000))
        status = test_run(r, &a, out, &err);
    if (status != MR_OK) fail_msg("%s", err.text);
    test_warm(r, 20, &seed);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

static void test_answers_of_a_wrong_size_are_not_believed(void **state) {
    (void)state;
    garbage(MANNER_SHORT);
}

static void test_bytes_that_are_no_frame_end_the_link(void **state) {
    (void)state;
    garbage(MANNER_JUNK);
}

/* --- routes ----------------------------------------------------------------------------------- */

typedef struct {
    test_cluster *cluster;
    const mr_route *newer;
    uint32_t asked;
} route_source;

static const mr_route *newer_route(void *context, uint64_t epoch) {
    route_source *s = context;
    (void)epoch;
    if (++s->asked < 3) return NULL; /* it takes a moment until somebody knows */
    for (uint32_t i = 0; i < s->cluster->parts; i++)
        atomic_store(&s->cluster->shards[i].control->manner, MANNER_STALE);
    return s->newer;
}

/* Epoch 3 is in use and replicas 0 hold nothing any more; epoch 4 names replicas 1. */
static void test_a_stale_route_is_replaced_within_the_step(void **state) {
    test_cluster c;
    uint64_t seed = 14;
    mr_route old, newer;
    test_ask a;
    float out[TEST_OUT];
    mr_err err;
    (void)state;
    test_cluster_start(&c, (mr_grid){2, 2}, 2, 2);
    test_route(&old, &c, 0, 1, 3);
    test_route(&newer, &c, 1, 2, 4);
    route_source source = {&c, &newer, 0};
    mr_retrieval_options options = test_options();
    options.route = &old;
    options.newer_route = newer_route;
    options.newer_context = &source;
    mr_retrieval *r = test_open(&options);
    test_warm(r, 8, &seed);
    for (uint32_t i = 0; i < c.parts; i++) atomic_store(&c.shards[i].control->manner, MANNER_STALE);
    test_ask_make(&a, 1, false, &seed);
    test_check(r, &a);
    assert_int_equal(mr_retrieval_epoch(r), 4);
    assert_true(source.asked >= 3);
    test_warm(r, 8, &seed);
    mr_retrieval_close(r);

    options.newer_route = NULL; /* nobody knows better: said at once, by its own status */
    r = test_open(&options);
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_STALE);
    assert_sentence(err, "too old");
    mr_retrieval_close(r);
    mr_route_free(&old);
    mr_route_free(&newer);
    test_cluster_end(&c);
}

static void test_links_are_kept_over_routes(void **state) {
    test_cluster c;
    uint64_t seed = 15;
    mr_route only, wrong;
    mr_err err;
    (void)state;
    test_cluster_start(&c, (mr_grid){2, 1}, 2, 2);
    mr_retrieval *r = test_open_route(&c.route);
    test_warm(r, 8, &seed);
    const uint64_t answers = mr_retrieval_peer_look(r, 0).answers;
    test_route(&only, &c, 0, 1, 1);
    assert_int_equal(mr_retrieval_set_route(r, &only, &err), MR_OK);
    assert_int_equal(mr_retrieval_peer_count(r), 2);
    assert_true(mr_retrieval_peer_look(r, 0).is_connected); /* without a moment's pause */
    assert_true(mr_retrieval_peer_look(r, 0).answers >= answers);
    test_warm(r, 8, &seed);
    assert_int_equal(mr_retrieval_set_route(r, &c.route, &err), MR_OK); /* epoch 0: older */
    assert_int_equal(mr_retrieval_peer_count(r), 2);
    wrong = only;
    wrong.grid = (mr_grid){1, 2};
    assert_int_equal(mr_retrieval_set_route(r, &wrong, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "grid 1x2 where 2x1");
    test_warm(r, 8, &seed);
    mr_retrieval_close(r);
    mr_route_free(&only);
    test_cluster_end(&c);
}

/* --- lost partitions -------------------------------------------------------------------------- */

/* The bits of a retrieval in which rows of row group `lost` weigh nothing. */
static void expect_without(const test_ask *a, mr_grid grid, uint32_t lost, float *out) {
    test_ask without = *a;
    mr_err err;
    const mr_span rows = mr_grid_part(TEST_ROWS, grid.row_groups, lost);
    without.request.row = without.row;
    without.request.score = without.score;
    for (uint32_t j = 0; j < TEST_TOKENS * TEST_K; j++)
        for (uint32_t m = 0; m < a->request.cores; m++)
            if (without.row[j] - rows.first < rows.count)
                without.score[m * TEST_TOKENS * TEST_K + j] = 0;
    assert_int_equal(test_run(world.truth, &without, out, &err), MR_OK);
}

/* Cell 1 of 3x1 and all slices of row group 1 of 3x2 lie on shards that die. */
static void lose_a_partition(mr_grid grid, uint32_t parts) {
    test_cluster c;
    uint64_t seed = 16;
    test_ask a;
    float out[TEST_OUT], expected[TEST_OUT];
    mr_err err;
    test_cluster_start(&c, grid, parts, 1);
    mr_retrieval *r = test_open_route(&c.route);
    test_warm(r, 8, &seed);
    for (uint32_t w = 0; w < grid.width_slices; w++)
        kill(c.shards[(grid.width_slices + w) % parts].pid, SIGKILL);
    test_sleep_us(20000);
    test_ask_make(&a, 0, false, &seed);
    int64_t began = mr_now_ns();
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - began < 400000000);
    assert_sentence(err, "cell");
    assert_sentence(err, "shard-");
    began = mr_now_ns();
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - began < 200000000); /* at once, now that it is known */
    mr_retrieval_take_stats(r);
    for (uint32_t layer = 0; layer < TEST_LAYERS; layer++) {
        mr_retrieval_start_step(r, &(mr_retrieval_step){.may_degrade = true});
        test_ask_make(&a, layer, grid.width_slices > 1, &seed);
        if (test_run(r, &a, out, &err) != MR_OK) fail_msg("%s", err.text);
        assert_true(mr_retrieval_take_stats(r).degraded > 0);
        expect_without(&a, grid, 1, expected);
        assert_memory_equal(out, expected, sizeof(out));
    }
    mr_retrieval_start_step(r, &(mr_retrieval_step){0});
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_UNAVAILABLE);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

static void test_a_lost_partition_fails_or_counts_as_zero(void **state) {
    (void)state;
    lose_a_partition((mr_grid){3, 1}, 3);
    lose_a_partition((mr_grid){3, 2}, 6);
}

static void test_a_partition_comes_back(void **state) {
    test_cluster c;
    uint64_t seed = 17;
    test_ask a;
    float out[TEST_OUT];
    mr_err err;
    (void)state;
    test_cluster_start(&c, (mr_grid){2, 1}, 2, 1);
    mr_retrieval *r = test_open_route(&c.route);
    test_warm(r, 8, &seed);
    kill(c.shards[1].pid, SIGKILL);
    waitpid(c.shards[1].pid, NULL, 0);
    test_ask_make(&a, 3, false, &seed);
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_UNAVAILABLE);
    char address[128];
    memcpy(address, c.shards[1].address, sizeof(address));
    test_shard_start(&c.shards[1], c.grid, 1, 2, address);
    mr_status status = MR_ERR_UNAVAILABLE;
    const int64_t began = mr_now_ns();
    while (status != MR_OK && mr_now_ns() - began < 5000000000) {
        status = test_run(r, &a, out, &err);
        test_sleep_us(5000);
    }
    assert_int_equal(status, MR_OK);
    assert_true(mr_now_ns() - began < 2000000000);
    test_warm(r, 8, &seed);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

static void test_the_steps_deadline_is_kept(void **state) {
    test_cluster c;
    uint64_t seed = 18;
    test_ask a;
    float out[TEST_OUT];
    mr_err err;
    (void)state;
    test_cluster_start(&c, (mr_grid){1, 1}, 1, 1);
    mr_retrieval *r = test_open_route(&c.route);
    test_warm(r, 8, &seed);
    atomic_store(&c.shards[0].control->delay_us, 400000);
    atomic_store(&c.shards[0].control->manner, MANNER_SLOW);
    test_ask_make(&a, 0, false, &seed);
    const int64_t began = mr_now_ns();
    mr_retrieval_start_step(r, &(mr_retrieval_step){.deadline_ns = began + 50000000});
    assert_int_equal(test_run(r, &a, out, &err), MR_ERR_TIMEOUT);
    assert_sentence(err, "deadline");
    const int64_t took = mr_now_ns() - began;
    assert_true(took >= 50000000 && took < 300000000);
    mr_retrieval_close(r);
    test_cluster_end(&c);
}

/* --- the row cache ---------------------------------------------------------------------------- */

static void test_the_row_cache_changes_no_bit(void **state) {
    static const mr_grid grids[] = {{1, 1}, {3, 2}, {1, 5}};
    uint64_t seed = 19;
    (void)state;
    for (size_t g = 0; g < sizeof(grids) / sizeof(grids[0]); g++)
        for (uint64_t bytes = 8 << 10; bytes <= 1 << 20; bytes *= 16) {
            test_cluster c;
            test_cluster_start(&c, grids[g], 1, 2);
            mr_retrieval_options options = test_options();
            options.route = &c.route;
            options.row_cache_bytes = bytes;
            mr_retrieval *r = test_open(&options);
            for (uint32_t i = 0; i < 80; i++) { /* all layers, gated ones past the cache */
                test_ask a;
                test_ask_make(&a, i % TEST_LAYERS, false, &seed);
                test_check(r, &a);
            }
            const mr_retrieval_stats stats = mr_retrieval_take_stats(r);
            assert_int_equal(stats.cache_hits + stats.cache_misses, 40 * TEST_TOKENS * TEST_K);
            assert_true(stats.cache_hits > 0);
            if (bytes > 1 << 16) assert_true(stats.cache_hits > stats.cache_misses);
            mr_retrieval_close(r);
            test_cluster_end(&c);
        }
}

/* --- shards that select ----------------------------------------------------------------------- */

static int16_t told_exponent[2];
static mr_status told_status;

static void select_frame(void *context, mr_link *reply, const mr_frame *frame) {
    const uint32_t which = *(const uint32_t *)context;
    mr_topk_view view;
    mr_topk_answer_layout at;
    mr_err err;
    assert_int_equal(mr_topk_check(&view, frame, &err), MR_OK);
    if (told_status != MR_OK) {
        mr_link_send_error(reply, frame->header->request, told_status, "no keys are held here");
        return;
    }
    const uint32_t columns = 4, tokens = view.fixed->tokens;
    assert_int_equal(mr_topk_pooled_lay_out(&at, view.fixed, 1, columns, &err), MR_OK);
    uint8_t answer[256] = {0};
    assert_true(at.bytes <= sizeof(answer));
    for (uint32_t t = 0; t < tokens; t++) {
        ((int16_t *)(void *)(answer + at.value_exponent))[t] = told_exponent[which];
        for (uint32_t i = 0; i < columns; i++)
            ((int32_t *)(void *)answer)[t * columns + i] = (int32_t)view.query[t * 2] << 20;
    }
    const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = frame->header->request};
    mr_link_send(reply, &header, answer, at.bytes);
}

static void test_shards_that_select_must_agree(void **state) {
    static const uint32_t which[2] = {0, 1};
    mr_link *links[2];
    mr_retrieval *r;
    mr_err err;
    float out[8];
    static const float query[4] = {3, 0, 5, 0};
    (void)state;
    for (uint32_t i = 0; i < 2; i++)
        links[i] = mr_link_loop(select_frame, (void *)(uintptr_t)&which[i], "selecting");
    mr_retrieval_options options = test_options();
    options.links = links;
    options.count = 2;
    options.grid = (mr_grid){2, 1};
    assert_int_equal(mr_retrieval_open(&r, &options, &err), MR_OK);
    const mr_retrieval_request request = {.layer = 1,
                                          .tokens = 2,
                                          .entries = 4,
                                          .cores = 1,
                                          .slots = 1,
                                          .width = 4,
                                          .table_rows = 10,
                                          .accumulator_bits = 32,
                                          .query = query,
                                          .query_columns = 2};
    told_exponent[0] = told_exponent[1] = 3;
    assert_int_equal(mr_retrieval_begin(r, &request, &err), MR_OK);
    assert_int_equal(mr_retrieval_finish(r, out, NULL, &err), MR_OK);
    for (int i = 0; i < 8; i++) /* two cells, exponent 3 */
        assert_true(out[i] == ldexpf(2 * (float)(i < 4 ? 3 : 5), 20 + 3 - 30));
    told_exponent[1] = 4;
    mr_status status = mr_retrieval_begin(r, &request, &err);
    if (status == MR_OK) status = mr_retrieval_finish(r, out, NULL, &err);
    assert_int_equal(status, MR_ERR_MISMATCH);
    assert_sentence(err, "different keys");
    told_status = MR_ERR_UNSUPPORTED;
    assert_int_equal(mr_retrieval_begin(r, &request, &err), MR_OK); /* said by finish only */
    assert_int_equal(mr_retrieval_progress(r, &err), MR_OK);
    assert_int_equal(mr_retrieval_finish(r, out, NULL, &err), MR_ERR_UNSUPPORTED);
    mr_retrieval_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_over_grids_and_replicas),
        cmocka_unit_test(test_replicas_share_the_work),
        cmocka_unit_test(test_answers_of_a_wrong_size_are_not_believed),
        cmocka_unit_test(test_bytes_that_are_no_frame_end_the_link),
        cmocka_unit_test(test_a_stale_route_is_replaced_within_the_step),
        cmocka_unit_test(test_links_are_kept_over_routes),
        cmocka_unit_test(test_a_lost_partition_fails_or_counts_as_zero),
        cmocka_unit_test(test_a_partition_comes_back),
        cmocka_unit_test(test_the_steps_deadline_is_kept),
        cmocka_unit_test(test_the_row_cache_changes_no_bit),
        cmocka_unit_test(test_shards_that_select_must_agree)};
    return cmocka_run_group_tests_name("retrieval over replicas", tests, make_world, end_world);
}
