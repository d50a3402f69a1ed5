/* retrieval_test.h - what the tests of the worker's retrieval share: tables in memory, memshards in
 * child processes that can be killed, stopped, slowed down or made to talk nonsense, and the right
 * answer to any request, from one memshard that holds everything over a loop link. */
#ifndef MR_TESTS_UNIT_RETRIEVAL_TEST_H
#define MR_TESTS_UNIT_RETRIEVAL_TEST_H
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/server.h"
#include "common/ops/gate.h"
#include "common/ops/team.h"
#include "memshard/holdings.h"
#include "tests/unit/net_test.h"
#include "worker/retrieval.h"

#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    TEST_ROWS = 301,
    TEST_WIDTH = 24,
    TEST_WIDTH2 = 20,
    TEST_PRE = 12, /* table 0: f32; table 1: bf16 with pre-values */
    TEST_LAYERS = 4,
    TEST_TOKENS = 5,
    TEST_K = 16,
    TEST_SLOTS = 4,
    TEST_OUT = TEST_TOKENS * TEST_SLOTS * TEST_WIDTH,
    TEST_SHARDS_MAX = 8,
};

static struct {
    float values0[TEST_ROWS * TEST_WIDTH];
    uint16_t values1[TEST_ROWS * TEST_WIDTH2], pre1[TEST_ROWS * TEST_PRE];
    mr_table_shape tables[2];
    mr_table_facts facts[2];
    mr_memory_layer layers[TEST_LAYERS];
    const mr_table_shape *table_list[2];
    const mr_memory_layer *layer_list[TEST_LAYERS];
    mr_store_source source;
    mr_digest digest;
    mr_memshard *whole;
    mr_retrieval *truth;
} world;

static inline float test_in_range(uint64_t *seed) {
    return (float)test_random(seed) * 0x1p-30f - 1.0f;
}

static inline mr_status test_map(const void *context, mr_mapping *out, uint32_t table, bool pre,
                                 uint64_t first, uint64_t bytes, mr_err *err) {
    const uint8_t *all[2][2] = {{(const uint8_t *)world.values0, NULL},
                                {(const uint8_t *)world.values1, (const uint8_t *)world.pre1}};
    (void)context, (void)bytes, (void)err;
    *out = (mr_mapping){.data = all[table][pre] + first};
    return MR_OK;
}

/* Rows are asked for as a skewed model would: a few of them often. */
typedef struct {
    uint32_t layer;
    uint32_t row[TEST_TOKENS * TEST_K];
    uint8_t slot[TEST_TOKENS * TEST_K];
    float score[2 * TEST_TOKENS * TEST_K], x[TEST_TOKENS * TEST_PRE];
    int16_t e[TEST_TOKENS], d[TEST_TOKENS];
    mr_retrieval_request request;
} test_ask;

static inline void test_ask_make(test_ask *a, uint32_t layer, bool two_trips, uint64_t *seed) {
    const mr_memory_layer *l = &world.layers[layer];
    const mr_table_shape *t = &world.tables[l->table];
    const uint32_t all = TEST_TOKENS * TEST_K;
    a->layer = layer;
    for (uint32_t j = 0; j < all; j++) {
        const uint32_t hot = test_random(seed) % 4;
        a->row[j] = test_random(seed) % (hot ? 20 : TEST_ROWS);
        a->slot[j] = (uint8_t)(l->slots_out > 1 ? test_random(seed) % TEST_SLOTS : 0);
    }
    for (uint32_t j = 0; j < l->cores * all; j++) a->score[j] = test_in_range(seed);
    for (uint32_t j = 0; j < TEST_TOKENS * TEST_PRE; j++) a->x[j] = test_in_range(seed);
    for (uint32_t i = 0; i < TEST_TOKENS; i++) {
        int e, d;
        assert_true(mr_exponent_of(&d, TEST_PRE));
        assert_true(mr_exponent_of(&e, l->gated ? TEST_K * TEST_PRE : TEST_K));
        a->e[i] = (int16_t)e;
        a->d[i] = (int16_t)d;
    }
    a->request = (mr_retrieval_request){.layer = layer,
                                        .tokens = TEST_TOKENS,
                                        .entries = TEST_K,
                                        .cores = l->cores,
                                        .slots = l->slots_out,
                                        .width = t->width,
                                        .pre_width = t->pre_width,
                                        .table_rows = TEST_ROWS,
                                        .accumulator_bits = world.facts[l->table].accumulator_bits,
                                        .gated = l->gated,
                                        .gelu = l->gelu,
                                        .two_trips = two_trips,
                                        .table = l->table,
                                        .storage = t->storage,
                                        .row = a->row,
                                        .slot = a->slot,
                                        .score = a->score,
                                        .x = a->x,
                                        .value_exponent = a->e,
                                        .dot_exponent = a->d};
}

static inline mr_status test_run(mr_retrieval *r, const test_ask *a, float *out, mr_err *err) {
    memset(out, 0, TEST_OUT * sizeof(*out));
    const mr_status status = mr_retrieval_begin(r, &a->request, err);
    return status == MR_OK ? mr_retrieval_finish(r, out, NULL, err) : status;
}

/* Runs it and compares every bit. */
static inline void test_check(mr_retrieval *r, const test_ask *a) {
    float out[TEST_OUT], expected[TEST_OUT];
    mr_err err = {{0}};
    if (test_run(world.truth, a, expected, &err) != MR_OK) fail_msg("truth: %s", err.text);
    if (test_run(r, a, out, &err) != MR_OK) fail_msg("%s", err.text);
    assert_memory_equal(out, expected, sizeof(out));
}

static inline mr_retrieval_options test_options(void) {
    return (mr_retrieval_options){.digest = world.digest,
                                  .timeout_ms = 500,
                                  .tokens_max = TEST_TOKENS,
                                  .entries_max = TEST_K,
                                  .cores_max = 2,
                                  .slots_width_max = TEST_SLOTS * TEST_WIDTH,
                                  .layers = TEST_LAYERS,
                                  .tables = 2,
                                  .seed = 7};
}

static inline int make_world(void **state) {
    mr_err err = {{0}};
    uint64_t seed = 5;
    (void)state;
    mr_float_environment();
    for (int i = 0; i < TEST_ROWS * TEST_WIDTH; i++) world.values0[i] = test_in_range(&seed);
    for (int i = 0; i < TEST_ROWS * TEST_WIDTH2; i++)
        world.values1[i] = mr_f32_to_bf16(test_in_range(&seed));
    for (int i = 0; i < TEST_ROWS * TEST_PRE; i++)
        world.pre1[i] = mr_f32_to_bf16(test_in_range(&seed));
    world.tables[0] =
        (mr_table_shape){.rows = TEST_ROWS, .width = TEST_WIDTH, .storage = {MR_F32, 0}};
    world.tables[1] = (mr_table_shape){.rows = TEST_ROWS,
                                       .width = TEST_WIDTH2,
                                       .pre_width = TEST_PRE,
                                       .storage = {MR_BF16, 0},
                                       .pre_storage = {MR_BF16, 0}};
    world.facts[0] = (mr_table_facts){.value_max = 1, .value_rms = 0.5, .accumulator_bits = 32};
    world.facts[1] = (mr_table_facts){
        .value_max = 1, .value_rms = 0.5, .pre_norm_max = sqrt(TEST_PRE), .accumulator_bits = 64};
    for (int i = 0; i < TEST_LAYERS; i++)
        world.layers[i] = (mr_memory_layer){.entries = TEST_K,
                                            .rank = 1,
                                            .cores = 1,
                                            .slots = 1,
                                            .slots_out = 1,
                                            .reach_rows = TEST_ROWS};
    world.layers[0].cores = 2;
    world.layers[0].slots = world.layers[0].slots_out = TEST_SLOTS;
    world.layers[1].table = world.layers[2].table = world.layers[3].table = 1;
    world.layers[1].gated = world.layers[1].gelu = true;
    world.layers[2].gated = true;
    world.layers[2].slots = world.layers[2].slots_out = TEST_SLOTS;
    for (int i = 0; i < 2; i++) world.table_list[i] = &world.tables[i];
    for (int i = 0; i < TEST_LAYERS; i++) world.layer_list[i] = &world.layers[i];
    world.source = (mr_store_source){.layers = world.layer_list,
                                     .tables = world.table_list,
                                     .facts = world.facts,
                                     .layer_count = TEST_LAYERS,
                                     .table_count = 2,
                                     .map = test_map};
    memset(world.digest.bytes, 0x5a, sizeof(world.digest.bytes));
    assert_int_equal(
        mr_memshard_open_source(&world.whole, &world.source, NULL, (mr_grid){1, 1}, 0, 1, &err),
        MR_OK);
    mr_link *link = mr_link_loop(mr_memshard_handle, world.whole, "whole");
    mr_retrieval_options options = test_options();
    options.links = &link;
    options.count = 1;
    options.grid = (mr_grid){1, 1};
    assert_int_equal(mr_retrieval_open(&world.truth, &options, &err), MR_OK);
    return 0;
}

static inline int end_world(void **state) {
    (void)state;
    mr_retrieval_close(world.truth);
    mr_memshard_close(world.whole);
    return 0;
}

/* --- memshards in child processes ------------------------------------------------------------- */

typedef enum { MANNER_GOOD, MANNER_SLOW, MANNER_SHORT, MANNER_JUNK, MANNER_STALE } test_manner;

/* Shared with the child. */
typedef struct {
    atomic_int manner, delay_us, every; /* SLOW: each every-th answer is delayed */
    atomic_uint requests;
} test_control;

typedef struct {
    pid_t pid;
    char address[128];
    test_control *control;
} test_shard;

typedef struct {
    mr_memshard *shard;
    test_control *control;
} test_served;

static inline void test_sleep_us(int64_t us) {
    nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, NULL);
}

static inline void test_serve_frame(void *context, mr_link *reply, const mr_frame *frame) {
    const test_served *s = context;
    const mr_wire_header *h = frame->header;
    if (h->type != MR_FRAME_RETRIEVE) {
        mr_memshard_handle(s->shard, reply, frame);
        return;
    }
    const unsigned number = atomic_fetch_add(&s->control->requests, 1);
    const mr_wire_header pooled = {.type = MR_FRAME_POOLED, .request = h->request};
    const int every = atomic_load(&s->control->every);
    switch ((test_manner)atomic_load(&s->control->manner)) {
    case MANNER_GOOD:
        break;
    case MANNER_SLOW:
        if (every == 0 || number % (unsigned)every == 0)
            test_sleep_us(atomic_load(&s->control->delay_us));
        break;
    case MANNER_SHORT:
        mr_link_send(reply, &pooled, "12345678", 8);
        return;
    case MANNER_JUNK: { /* bytes that are no frame at all */
        ssize_t put = write(mr_link_fd(reply), "HTTP/1.1 200 OK\r\n\r\n", 19);
        (void)put;
        return;
    }
    case MANNER_STALE:
        mr_link_send_error(reply, h->request, MR_ERR_STALE, "the cell is not held here any more");
        return;
    }
    mr_memshard_handle(s->shard, reply, frame);
}

static inline mr_status test_offer(void *context, const mr_wire_hello *hello, mr_session_offer *out,
                                   mr_err *err) {
    return mr_memshard_offer(((const test_served *)context)->shard, hello, out, err);
}
static inline void test_round_over(void *context, uint32_t lane) {
    mr_memshard_round_over(((const test_served *)context)->shard, lane);
}
static inline void test_link_closed(void *context, mr_link *link) {
    mr_memshard_link_closed(((const test_served *)context)->shard, link);
}

static inline mr_status test_hold(mr_memshard **out, mr_grid grid, uint32_t index, uint32_t count,
                                  mr_err *err) {
    uint32_t cells[64], held = 0;
    for (uint32_t c = index; c < grid.row_groups * grid.width_slices; c += count) cells[held++] = c;
    mr_table_source source = {.tables = &world.source, .digest = world.digest};
    const mr_load_order order = {
        .digest = world.digest, .grid = grid, .cells = cells, .cell_count = held};
    const mr_status status = mr_memshard_open_empty(out, NULL, err);
    return status == MR_OK ? mr_memshard_adopt(*out, &source, &order, NULL, NULL, err) : status;
}

static inline void test_serve(int ready, test_control *control, mr_grid grid, uint32_t index,
                              uint32_t count, const char *listen) {
    mr_err err = {{0}};
    test_served s = {.control = control};
    mr_server *server;
    mr_float_environment();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    mr_log_setup("test", MR_LOG_ERROR, 1);
    if (test_hold(&s.shard, grid, index, count, &err) != MR_OK) _exit(2);
    mr_server_options options = {.address = listen};
    mr_memshard_serve_options(s.shard, &options);
    options.context = &s;
    options.handler = test_serve_frame;
    options.offer = test_offer;
    options.round_over = test_round_over;
    options.link_closed = test_link_closed;
    if (mr_server_open(&server, &options, &err) != MR_OK) _exit(3);
    const char *address = mr_server_address(server);
    const ssize_t put = write(ready, address, strlen(address) + 1);
    if (put <= 0) _exit(4);
    for (;;) pause();
}

/* listen NULL: a port of the system's choice. Waits until it serves. */
static inline void test_shard_start(test_shard *s, mr_grid grid, uint32_t index, uint32_t count,
                                    const char *listen) {
    int ready[2];
    if (!s->control) {
        s->control = mmap(NULL, sizeof(*s->control), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(s->control != MAP_FAILED);
    }
    assert_int_equal(pipe(ready), 0);
    s->pid = fork();
    assert_true(s->pid >= 0);
    if (s->pid == 0) {
        close(ready[0]);
        test_serve(ready[1], s->control, grid, index, count, listen ? listen : "127.0.0.1:0");
    }
    close(ready[1]);
    const ssize_t got = read(ready[0], s->address, sizeof(s->address));
    close(ready[0]);
    if (got <= 0) fail_msg("the memshard's process did not start");
}

/* Stopped when this returns; SIGKILL: dead, or about to be. */
static inline void test_signal(pid_t pid, int number) {
    int status;
    assert_int_equal(kill(pid, number), 0);
    if (number != SIGSTOP) return;
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
}

static inline void test_shard_end(test_shard *s) {
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
    }
    if (s->control) munmap(s->control, sizeof(*s->control));
    *s = (test_shard){0};
}

/* M x R memshards: replica k of part i is shards[k * M + i]. */
typedef struct {
    mr_grid grid;
    uint32_t parts, replicas;
    test_shard shards[TEST_SHARDS_MAX];
    mr_route route;
} test_cluster;

/* Of the replicas [first, end) of each part. */
static inline void test_route(mr_route *out, const test_cluster *c, uint32_t first, uint32_t end,
                              uint64_t epoch) {
    const uint32_t cells = c->grid.row_groups * c->grid.width_slices, each = end - first;
    *out = (mr_route){.digest = world.digest,
                      .epoch = epoch,
                      .grid = c->grid,
                      .peer_count = c->parts * each,
                      .peers = mr_alloc_array(c->parts * each, sizeof(mr_route_peer)),
                      .replica_first = mr_alloc_array(cells + 1, sizeof(uint32_t)),
                      .replicas = mr_alloc_array(cells * each, sizeof(uint32_t))};
    for (uint32_t i = 0; i < out->peer_count; i++)
        out->peers[i] =
            (mr_route_peer){.id = mr_format("shard-%u", first * c->parts + i),
                            .address = mr_strdup(c->shards[first * c->parts + i].address)};
    for (uint32_t cell = 0; cell < cells; cell++) {
        out->replica_first[cell + 1] = (cell + 1) * each;
        for (uint32_t k = 0; k < each; k++)
            out->replicas[cell * each + k] = k * c->parts + cell % c->parts;
    }
}

static inline void test_cluster_start(test_cluster *c, mr_grid grid, uint32_t parts,
                                      uint32_t replicas) {
    *c = (test_cluster){.grid = grid, .parts = parts, .replicas = replicas};
    for (uint32_t k = 0; k < replicas; k++)
        for (uint32_t i = 0; i < parts; i++)
            test_shard_start(&c->shards[k * parts + i], grid, i, parts, NULL);
    test_route(&c->route, c, 0, replicas, 0);
}

static inline void test_cluster_end(test_cluster *c) {
    for (uint32_t i = 0; i < TEST_SHARDS_MAX; i++) test_shard_end(&c->shards[i]);
    mr_route_free(&c->route);
}

static inline mr_retrieval *test_open(const mr_retrieval_options *options) {
    mr_err err = {{0}};
    mr_retrieval *r;
    if (mr_retrieval_open(&r, options, &err) != MR_OK) fail_msg("%s", err.text);
    if (mr_retrieval_reach(r, after_ms(5000), &err) != MR_OK) fail_msg("%s", err.text);
    return r;
}

/* All peers connected, not only one of each cell. */
static inline void test_reach_all(mr_retrieval *r) {
    mr_err err;
    for (int64_t end = after_ms(5000);;) {
        bool all = true;
        mr_retrieval_reach(r, after_ms(1), &err);
        for (uint32_t i = 0; i < mr_retrieval_peer_count(r); i++)
            all &= mr_retrieval_peer_look(r, i).is_connected;
        if (all) return;
        if (mr_now_ns() > end) fail_msg("not all memshards are connected");
        test_sleep_us(1000);
    }
}

static inline mr_retrieval *test_open_route(const mr_route *route) {
    mr_retrieval_options options = test_options();
    options.route = route;
    mr_retrieval *r = test_open(&options);
    test_reach_all(r);
    return r;
}

/* Enough requests for latencies to be known. */
static inline void test_warm(mr_retrieval *r, uint32_t rounds, uint64_t *seed) {
    test_ask a;
    for (uint32_t i = 0; i < rounds; i++) {
        test_ask_make(&a, i % TEST_LAYERS, false, seed);
        test_check(r, &a);
    }
}

#endif
