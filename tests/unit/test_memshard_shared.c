/* Goal: rows that several requests of a round ask for are read once, and each asker gets what it
 * would have got alone.
 * Method: a golden model's cells in a tier, whose counters tell what was read from the file. One
 * asker alone in one shard; in another, fresh one, three askers for the same rows (each also twice
 * in its own request) put aside in one round: the same bytes read, the same sums, exact to the bit.
 */
#include "common/base/log.h"
#include "common/net/link.h"
#include "memshard/holdings.h"
#include "memshard/tier.h"
#include "tests/unit/net_test.h"

#include <stdio.h>
#include <sys/socket.h>

enum { ASKERS = 3, ROWS = 40, TOKENS = 2, LANE = 210 };

static struct {
    char path[512];
    mr_model *model;
    mr_manifest manifest;
    const mr_table_shape *table;
    uint32_t row[ROWS]; /* both tokens ask for all of them */
    uint32_t answer_bytes;
} w;

typedef struct {
    mr_tier *tier;
    mr_memshard *shard;
    mr_link *served[ASKERS], *asker[ASKERS];
} world;

static void open_world(world *x) {
    mr_err err = {{0}};
    const mr_tier_options tier = {.budget_bytes = 8 << 20, .engine = "pread", .threads = 2};
    assert_int_equal(mr_tier_open(&x->tier, &tier, &err), MR_OK);
    assert_int_equal(mr_memshard_open_empty(&x->shard, NULL, &err), MR_OK);
    mr_memshard_set_cell_options(x->shard, &(mr_cell_options){.tier = x->tier});
    const uint32_t cell = 0;
    const mr_load_order order = {.source = w.path,
                                 .digest = w.manifest.digest,
                                 .grid = {1, 1},
                                 .cells = &cell,
                                 .cell_count = 1};
    if (mr_memshard_load_now(x->shard, &order, NULL, NULL, &err) != MR_OK) fail_msg("%s", err.text);
    for (int i = 0; i < ASKERS; i++) {
        int fds[2];
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
        x->served[i] = mr_link_from_fd(fds[0], "asker");
        x->asker[i] = mr_link_from_fd(fds[1], "shard");
        x->served[i]->version = x->asker[i]->version = MR_WIRE_VERSION;
        x->served[i]->digest = w.manifest.digest;
        x->served[i]->lane = LANE;
        x->served[i]->seen_ns = mr_now_ns();
    }
}

static void close_world(world *x) {
    for (int i = 0; i < ASKERS; i++) {
        mr_link_close(x->served[i]);
        mr_link_close(x->asker[i]);
    }
    mr_memshard_close(x->shard);
    mr_tier_close(x->tier);
}

static void ask(world *x, int asker, bool crowded) {
    const mr_memory_layer *l = mr_model_memory(w.model, 0);
    const mr_wire_retrieve fixed = {.mode = MR_RETRIEVE_POOL,
                                    .accumulator_bits =
                                        (uint16_t)w.manifest.tables[l->table].accumulator_bits,
                                    .tokens = TOKENS,
                                    .entries = TOKENS * ROWS,
                                    .cores = (uint16_t)l->cores,
                                    .slots = (uint16_t)l->slots_out};
    mr_retrieve_layout at;
    mr_err err = {{0}};
    test_frame f;
    uint8_t *payload = retrieve_make(&fixed, &at);
    for (uint32_t j = 0; j < fixed.entries; j++) {
        ((uint32_t *)(void *)(payload + at.row))[j] = w.row[j % ROWS];
        for (uint32_t m = 0; m < l->cores; m++)
            ((float *)(void *)(payload + at.weight))[m * fixed.entries + j] =
                (float)(j * 77 % 100) * 1e4f - 3e5f;
    }
    assert_int_equal(mr_retrieve_answer_bytes(&w.answer_bytes, &fixed, w.table->width,
                                              mr_storage_bytes(w.table->storage, w.table->width),
                                              &err),
                     MR_OK);
    frame_make(&f, MR_FRAME_RETRIEVE, payload, at.bytes);
    x->served[asker]->is_crowded = crowded;
    mr_memshard_handle(x->shard, x->served[asker], &f.frame);
    frame_free(&f);
    free(payload);
}

static uint8_t *answer_of(world *x, int asker) {
    mr_frame frame;
    mr_err err = {{0}};
    mr_status status;
    assert_int_equal(mr_link_flush(x->served[asker], &err), MR_OK);
    while ((status = mr_link_receive(x->asker[asker], &frame, &err)) == MR_ERR_AGAIN)
        assert_int_equal(mr_links_wait(&x->asker[asker], 1, after_ms(5000)), MR_OK);
    assert_int_equal(status, MR_OK);
    if (mr_answer_check(&frame, MR_FRAME_POOLED, w.answer_bytes, &err) != MR_OK)
        fail_msg("%s", err.text);
    uint8_t *out = malloc(w.answer_bytes);
    memcpy(out, frame.payload, w.answer_bytes);
    return out;
}

static void test_rows_are_read_once(void **state) {
    (void)state;
    mr_err err = {{0}};
    world alone, together;
    mr_tier_counters one, three;
    uint64_t seed = 9;
    snprintf(w.path, sizeof(w.path), "%s/tests/golden/v1_ive4_skip", MR_SOURCE_DIR);
    assert_int_equal(mr_model_open(&w.model, w.path, &err), MR_OK);
    assert_int_equal(mr_manifest_load(&w.manifest, w.model, NULL, NULL, &err), MR_OK);
    w.table = mr_model_table(w.model, mr_model_memory(w.model, 0)->table);
    for (int j = 0; j < ROWS; j++) w.row[j] = (uint32_t)(test_random(&seed) % w.table->rows);

    open_world(&alone);
    ask(&alone, 0, false);
    uint8_t *expected = answer_of(&alone, 0);
    mr_tier_count(alone.tier, &one);
    assert_true(one.read_bytes > 0);

    open_world(&together);
    for (int i = 0; i < ASKERS; i++) ask(&together, i, i < 2);
    assert_int_equal(mr_memshard_look(together.shard).queue_depth, ASKERS);
    mr_memshard_round_over(together.shard, LANE);
    for (int i = 0; i < ASKERS; i++) {
        uint8_t *got = answer_of(&together, i);
        assert_memory_equal(got, expected, w.answer_bytes);
        free(got);
    }
    mr_tier_count(together.tier, &three);
    assert_int_equal(three.read_bytes, one.read_bytes);
    assert_int_equal(mr_memshard_look(together.shard).together, ASKERS - 1);

    /* In memory the same sums. */
    mr_memshard *shard;
    assert_int_equal(
        mr_memshard_open(&shard, w.model, &w.manifest, NULL, (mr_grid){1, 1}, 0, 1, &err), MR_OK);
    mr_memshard *tiered = alone.shard;
    alone.shard = shard;
    ask(&alone, 0, false);
    uint8_t *got = answer_of(&alone, 0);
    assert_memory_equal(got, expected, w.answer_bytes);
    mr_memshard_close(shard);
    alone.shard = tiered;
    free(got);
    free(expected);
    close_world(&alone);
    close_world(&together);
    mr_manifest_free(&w.manifest);
    mr_model_close(w.model);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows_are_read_once)};
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
