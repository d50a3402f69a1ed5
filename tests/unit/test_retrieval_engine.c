/* test_retrieval_engine.c - whole models over every way of asking for their tables.
 *
 * Goal: logits are the same bits whether the worker selects or the shards do, with and without a
 * row cache, over a link in this process or a route of servers, and shards that do not select are
 * asked by ids instead. Method: golden models; the logits of a prompt, each compared with the
 * plainest way. */
#include "common/base/mem.h"
#include "common/net/fabric_choice.h"
#include "memshard/serve.h"
#include "tests/unit/net_test.h"
#include "worker/engine.h"

#include <stdio.h>

enum { PROMPT = 24, BLOCKS = 8, SERVERS = 2 };

static struct {
    mr_model *model;
    mr_manifest manifest;
    float *expected, *logits; /* [PROMPT][columns] */
    uint32_t columns;
} w;

static void load(const char *name) {
    char path[512];
    mr_err err = {{0}};
    snprintf(path, sizeof(path), "%s/tests/golden/%s", MR_SOURCE_DIR, name);
    if (mr_model_open(&w.model, path, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_manifest_load(&w.manifest, w.model, NULL, NULL, &err), MR_OK);
    w.columns = mr_model_config(w.model)->head_rows;
    w.expected = mr_alloc_array((size_t)PROMPT * w.columns, sizeof(float));
    w.logits = mr_alloc_array((size_t)PROMPT * w.columns, sizeof(float));
}

static void unload(void) {
    free(w.expected);
    free(w.logits);
    mr_manifest_free(&w.manifest);
    mr_model_close(w.model);
}

static void keep_logits(void *context, uint32_t sequence, uint32_t position, const float *logits,
                        uint32_t columns) {
    (void)sequence;
    assert_int_equal(columns, w.columns);
    memcpy((float *)context + (size_t)position * columns, logits, columns * sizeof(float));
}

/* Four steps, so that a row cache has something to find. */
static mr_status prompt(mr_engine *engine, float *out, mr_wire_done_more *sum, mr_err *err) {
    int32_t tokens[PROMPT];
    uint32_t blocks[BLOCKS];
    uint64_t seed = 9;
    *sum = (mr_wire_done_more){0};
    for (uint32_t i = 0; i < BLOCKS; i++) blocks[i] = i;
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(test_random(&seed) % mr_model_config(w.model)->vocab_size);
    for (uint32_t at = 0; at < PROMPT; at += PROMPT / 4) {
        const mr_wire_sequence sequence = {.position = at,
                                           .token_count = PROMPT / 4,
                                           .block_count = BLOCKS,
                                           .flags = MR_SEQUENCE_LOGITS,
                                           .top_p = 1};
        const mr_step step = {.sequence_count = 1,
                              .token_count = PROMPT / 4,
                              .block_count = BLOCKS,
                              .sequences = &sequence,
                              .tokens = tokens + at,
                              .blocks = blocks};
        const mr_step_sink sink = {.logits = keep_logits, .context = out};
        const mr_status status = mr_engine_step(engine, &step, &sink, NULL, err);
        if (status != MR_OK) return status;
        sum->cache_hits += mr_engine_last(engine)->more.cache_hits;
        sum->degraded += mr_engine_last(engine)->more.degraded;
    }
    return MR_OK;
}

static mr_engine_options base_options(void) {
    return (mr_engine_options){.model = w.model,
                               .manifest = &w.manifest,
                               .threads = 1,
                               .kv_blocks = BLOCKS,
                               .step_tokens_max = PROMPT,
                               .step_sequences_max = 2};
}

typedef struct {
    mr_grid grid;
    bool keys, topk;
    uint64_t row_cache_bytes;
} way;

/* Over one memshard in this process; false: some logit differs. */
static bool agrees(const way *how, float *out, mr_wire_done_more *sum) {
    mr_memshard *shard;
    mr_engine *engine;
    mr_err err = {{0}};
    assert_int_equal(mr_memshard_open(&shard, w.model, &w.manifest, NULL, how->grid, 0, 1, &err),
                     MR_OK);
    if (how->keys && mr_memshard_open_keys(shard, w.model, &err) != MR_OK) fail_msg("%s", err.text);
    mr_link *link = mr_link_loop(mr_memshard_handle, shard, "loop");
    mr_engine_options options = base_options();
    options.shards = &link;
    options.shard_count = 1;
    options.grid = how->grid;
    options.topk = how->topk;
    options.row_cache_bytes = how->row_cache_bytes;
    if (mr_engine_open(&engine, &options, &err) != MR_OK) fail_msg("%s", err.text);
    if (prompt(engine, out, sum, &err) != MR_OK) fail_msg("%s", err.text);
    mr_engine_close(engine);
    mr_memshard_close(shard);
    return memcmp(out, w.expected, (size_t)PROMPT * w.columns * sizeof(float)) == 0;
}

static void over_ways(const char *name, bool is_cached) {
    const way plain = {{1, 1}, false, false, 0};
    const way others[] = {{{3, 1}, true, true, 0},  /* the shard selects */
                          {{2, 2}, true, true, 0},  /* where it can: gates need whole rows */
                          {{2, 1}, false, true, 0}, /* it has no keys: asked by ids */
                          {{2, 1}, false, false, 4 << 20}}; /* hot rows stay here */
    mr_wire_done_more sum;
    load(name);
    agrees(&plain, w.expected, &sum);
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (!agrees(&others[i], w.logits, &sum)) fail_msg("%s: way %zu differs", name, i);
        assert_int_equal(sum.degraded, 0);
    }
    assert_true((sum.cache_hits > 0) == is_cached);
    unload();
}

static void test_every_way_gives_the_same_logits(void **state) {
    (void)state;
    over_ways("v1_ive4_skip", true);
    over_ways("v2_glu_kx2_e4", false); /* all layers have gates */
    over_ways("pkm", true);
    over_ways("memory_plus", true);
}

/* --- a route of servers ----------------------------------------------------------------------- */

static void over_a_route(bool over_ucx) {
    const way plain = {{1, 1}, false, false, 0};
    mr_memshard *shards[SERVERS];
    mr_server *servers[SERVERS];
    mr_route_peer peers[SERVERS];
    uint32_t first[] = {0, 2, 4}, replicas[] = {0, 1, 1, 0};
    mr_wire_done_more sum;
    mr_engine *engine;
    mr_err err = {{0}};
    load("v2_demo_share05");
    agrees(&plain, w.expected, &sum);
    for (uint32_t i = 0; i < SERVERS; i++) { /* both hold both cells */
        assert_int_equal(
            mr_memshard_open(&shards[i], w.model, &w.manifest, NULL, (mr_grid){2, 1}, 0, 1, &err),
            MR_OK);
        mr_server_options options = {.address = "127.0.0.1:0",
                                     .ucx = over_ucx ? "127.0.0.1:0" : NULL};
        mr_memshard_serve_options(shards[i], &options);
        assert_int_equal(mr_server_open(&servers[i], &options, &err), MR_OK);
        peers[i] = (mr_route_peer){.id = mr_format("s%u", i),
                                   .address = mr_strdup(mr_server_address(servers[i])),
                                   .ucx = over_ucx ? mr_strdup(mr_server_ucx(servers[i])) : NULL,
                                   .machine = mr_strdup(mr_machine_id())};
    }
    mr_route route = {.digest = w.manifest.digest,
                      .epoch = 5,
                      .grid = {2, 1},
                      .peers = peers,
                      .peer_count = SERVERS,
                      .replica_first = first,
                      .replicas = replicas};
    mr_engine_options options = base_options();
    options.route = &route;
    if (mr_engine_open(&engine, &options, &err) != MR_OK) fail_msg("%s", err.text);
    if (mr_engine_reach(engine, after_ms(5000), &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_engine_route_epoch(engine), 5);
    for (uint32_t round = 0; round < 4; round++) {
        if (prompt(engine, w.logits, &sum, &err) != MR_OK) fail_msg("%s", err.text);
        assert_memory_equal(w.logits, w.expected, (size_t)PROMPT * w.columns * sizeof(float));
        if (round == 1) mr_server_close(servers[0]); /* the other one goes on alone */
        if (round != 2) continue;
        route.epoch = 6; /* and a newer map says so */
        first[1] = 1, first[2] = 2;
        replicas[0] = 1, replicas[1] = 1;
        assert_int_equal(mr_engine_set_route(engine, &route, &err), MR_OK);
        assert_int_equal(mr_engine_route_epoch(engine), 6);
    }
    mr_engine_close(engine);
    mr_server_close(servers[1]);
    for (uint32_t i = 0; i < SERVERS; i++) {
        mr_memshard_close(shards[i]);
        mr_route_peer_free(&peers[i]);
    }
    unload();
}

static void test_an_engine_over_a_route(void **state) {
    (void)state;
    over_a_route(false);
}

static void test_an_engine_over_shared_memory(void **state) {
    mr_err err;
    (void)state;
    if (mr_fabric_check_ucx(&err) != MR_OK) {
        print_message("%s\n", err.text);
        skip();
    }
    over_a_route(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_way_gives_the_same_logits),
                                       cmocka_unit_test(test_an_engine_over_a_route),
                                       cmocka_unit_test(test_an_engine_over_shared_memory)};
    return cmocka_run_group_tests_name("engines and their shards", tests, NULL, NULL);
}
