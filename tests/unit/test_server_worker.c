/* Goal: a worker answers steps over a socket exactly as its engine does in the same process, serves
 * several coordinators, and outlives those that leave or misbehave.
 * Method: the engine of a golden model over two memshards, reached through both doors of
 * worker/serve.h; its logits are compared with a direct call. */
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/server.h"
#include "common/net/session.h"
#include "memshard/serve.h"
#include "tests/unit/net_test.h"
#include "worker/serve.h"
#include "worker/shards.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SHARDS = 2, TOKENS = 5 };

static struct {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shards[SHARDS];
    mr_server *servers[SHARDS];
    mr_engine *engine;
    uint32_t columns;
    float *expected; /* [TOKENS][columns] */
} w;

typedef struct {
    mr_wire_step fixed;
    mr_wire_sequence sequence;
    int32_t tokens[TOKENS];
    uint32_t blocks[1];
} step_payload;

static step_payload make_step(uint64_t id) {
    return (step_payload){{.sequences = 1, .tokens = TOKENS, .blocks = 1},
                          {.id = id,
                           .token_count = TOKENS,
                           .block_count = 1,
                           .flags = MR_SEQUENCE_SAMPLE | MR_SEQUENCE_LOGITS,
                           .top_p = 1,
                           .logprobs = 2},
                          {1, 2, 3, 4, 5},
                          {0}};
}

static void keep_logits(void *context, uint32_t sequence, uint32_t position, const float *logits,
                        uint32_t columns) {
    (void)sequence;
    memcpy((float *)context + (size_t)position * columns, logits, columns * sizeof(float));
}

static int open_world(void **state) {
    (void)state;
    mr_err err = {{0}};
    const mr_grid grid = {SHARDS, 1};
    const char *addresses[SHARDS];
    mr_shards links;
#define MUST(call)                                                                                 \
    do {                                                                                           \
        if ((call) != MR_OK) {                                                                     \
            print_error("%s\n", err.text);                                                         \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)
    MUST(mr_model_open(&w.model, MR_SOURCE_DIR "/tests/golden/v2_glu_kx2_e4", &err));
    MUST(mr_manifest_load(&w.manifest, w.model, NULL, NULL, &err));
    for (uint32_t i = 0; i < SHARDS; i++) {
        MUST(mr_memshard_open(&w.shards[i], w.model, &w.manifest, NULL, grid, i, SHARDS, &err));
        const mr_wire_cell cell = {i};
        const mr_server_options options = {.address = "127.0.0.1:0",
                                           .role = MR_ROLE_MEMSHARD,
                                           .digest = w.manifest.digest,
                                           .welcome_tail = &cell,
                                           .welcome_tail_bytes = sizeof(cell),
                                           .cell_count = 1,
                                           .grid_rows = SHARDS,
                                           .grid_columns = 1,
                                           .handler = mr_memshard_handle,
                                           .context = w.shards[i]};
        MUST(mr_server_open(&w.servers[i], &options, &err));
        addresses[SHARDS - 1 - i] = mr_server_address(w.servers[i]); /* in the wrong order */
    }
    MUST(mr_shards_connect(&links, addresses, SHARDS, w.manifest.digest, after_ms(2000), &err));
    const mr_engine_options options = {.model = w.model,
                                       .manifest = &w.manifest,
                                       .threads = 1,
                                       .grid = links.grid,
                                       .shards = links.links,
                                       .addresses = (const char *const *)links.addresses,
                                       .shard_count = SHARDS,
                                       .retrieval_timeout_ms = 5000};
    MUST(mr_engine_open(&w.engine, &options, &err));
    mr_shards_free(&links, false);
    mr_wire_worker_info info;
    mr_engine_info(w.engine, &info);
    w.columns = info.logit_columns;
    w.expected = mr_alloc_array((size_t)TOKENS * w.columns, sizeof(float));
    const step_payload p = make_step(1);
    const mr_step step = {.sequence_count = 1,
                          .token_count = TOKENS,
                          .block_count = 1,
                          .sequences = &p.sequence,
                          .tokens = p.tokens,
                          .blocks = p.blocks};
    const mr_step_sink sink = {.logits = keep_logits, .context = w.expected};
    mr_wire_done done;
    MUST(mr_engine_step(w.engine, &step, &sink, &done, &err));
    return 0;
}

static int close_world(void **state) {
    (void)state;
    mr_engine_close(w.engine);
    for (uint32_t i = 0; i < SHARDS; i++) {
        mr_server_close(w.servers[i]);
        mr_memshard_close(w.shards[i]);
    }
    mr_manifest_free(&w.manifest);
    mr_model_close(w.model);
    free(w.expected);
    return 0;
}

static void greet(mr_link *link) {
    uint8_t welcome[256];
    size_t bytes;
    mr_err err;
    mr_welcome_view view;
    const mr_session_hello hello = {MR_ROLE_COORDINATOR, MR_ROLE_WORKER, w.manifest.digest};
    if (mr_session_open(link, &hello, after_ms(2000), welcome, sizeof(welcome), &bytes, &err) !=
        MR_OK)
        fail_msg("%s", err.text);
    assert_int_equal(mr_welcome_check(&view, welcome, bytes, &err), MR_OK);
    assert_int_equal(view.worker_info->logit_columns, w.columns);
    assert_int_equal(view.worker_info->kv_block_tokens, MR_KV_BLOCK_TOKENS);
}

static void receive(mr_link *link, mr_frame *frame) {
    mr_err err;
    mr_status status;
    while ((status = mr_link_receive(link, frame, &err)) == MR_ERR_AGAIN)
        assert_int_equal(mr_links_wait(&link, 1, after_ms(20000)), MR_OK);
    if (status != MR_OK) fail_msg("%s", err.text);
}

static void send_step(mr_link *link, uint64_t request, const step_payload *p) {
    mr_err err;
    const mr_wire_header header = {.type = MR_FRAME_STEP, .request = request};
    mr_link_send(link, &header, p, sizeof(*p));
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
}

/* Takes the frames of one step up to DONE. */
static void check_step(mr_link *link, uint64_t request, uint64_t id) {
    mr_err err = {{0}};
    mr_frame frame;
    uint32_t rows = 0, sampled = 0;
    for (;;) {
        receive(link, &frame);
        assert_int_equal(frame.header->request, request);
        if (mr_frame_check(&frame, &err) != MR_OK) fail_msg("%s", err.text);
        if (frame.header->type == MR_FRAME_DONE) break;
        if (frame.header->type == MR_FRAME_SAMPLED) {
            mr_sampled_view view;
            assert_int_equal(mr_sampled_check(&view, &frame, &err), MR_OK);
            assert_int_equal(view.fixed->id, id);
            assert_int_equal(view.fixed->top_count, 2);
            sampled++;
            continue;
        }
        mr_logits_view view;
        if (frame.header->type == MR_FRAME_ERROR) {
            mr_frame_error(&frame, &err);
            fail_msg("%s", err.text);
        }
        assert_int_equal(frame.header->type, MR_FRAME_LOGITS);
        assert_int_equal(mr_logits_check(&view, &frame, &err), MR_OK);
        assert_int_equal(view.fixed->id, id);
        assert_memory_equal(view.columns,
                            w.expected + (size_t)view.fixed->position * w.columns +
                                view.fixed->column_first,
                            view.fixed->columns * sizeof(float));
        rows++;
    }
    assert_int_equal(rows, TOKENS);
    assert_int_equal(sampled, 1);
}

/* --- embedded --------------------------------------------------------------------------------- */

typedef struct {
    mr_link *link;
    atomic_bool stop;
    mr_status status;
} embedded;

static void *serve_link(void *argument) {
    embedded *e = argument;
    mr_err err;
    e->status = mr_worker_serve_link(w.engine, w.manifest.digest, e->link, &e->stop, &err);
    return NULL;
}

static void test_embedded(void **state) {
    (void)state;
    for (int round = 0; round < 2; round++) {
        int fds[2];
        pthread_t thread;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        embedded e = {.link = mr_link_from_fd(fds[0], "coordinator")};
        mr_link *link = mr_link_from_fd(fds[1], "worker");
        assert_int_equal(pthread_create(&thread, NULL, serve_link, &e), 0);
        greet(link);
        for (uint64_t i = 0; i < 3; i++) {
            const step_payload p = make_step(i);
            send_step(link, i, &p);
            check_step(link, i, i);
        }
        if (round == 0)
            atomic_store(&e.stop, true);
        else {
            mr_link_close(link);
            link = NULL;
        }
        pthread_join(thread, NULL);
        assert_int_equal(e.status, MR_OK);
        mr_link_close(link);
        mr_link_close(e.link);
    }
}

/* --- listening -------------------------------------------------------------------------------- */

static mr_link *open_link(const mr_worker *worker) {
    mr_link *link;
    mr_err err;
    if (mr_link_connect(&link, mr_worker_address(worker), after_ms(2000), &err) != MR_OK)
        fail_msg("%s", err.text);
    greet(link);
    return link;
}

static void test_several_coordinators(void **state) {
    (void)state;
    mr_err err;
    mr_frame frame;
    mr_worker *worker;
    assert_int_equal(mr_worker_open(&worker, w.engine, w.manifest.digest, "127.0.0.1:0", &err),
                     MR_OK);
    mr_link *a = open_link(worker), *b = open_link(worker), *gone = open_link(worker);
    for (uint64_t i = 0; i < 10; i++) {
        const step_payload p = make_step(i);
        send_step(a, i, &p);
        send_step(gone, i, &p);
        send_step(b, 100 + i, &p);
    }
    mr_link_close(gone); /* leaves with its steps waiting or under way */
    for (uint64_t i = 0; i < 10; i++) {
        check_step(a, i, i);
        check_step(b, 100 + i, i);
    }
    step_payload bad = make_step(1);
    bad.blocks[0] = 0xffffffff; /* well formed, but beyond the engine's KV cache */
    send_step(a, 50, &bad);
    receive(a, &frame);
    assert_int_equal(frame.header->type, MR_FRAME_ERROR);
    assert_int_equal(frame.header->request, 50);
    assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
    bad = make_step(1);
    bad.fixed.tokens = 9; /* not even well formed: the link ends */
    send_step(b, 51, &bad);
    receive(b, &frame);
    assert_int_equal(frame.header->type, MR_FRAME_REFUSE);
    mr_link_close(b);
    const step_payload p = make_step(3);
    send_step(a, 52, &p);
    check_step(a, 52, 3);
    mr_link_close(a);
    mr_worker_close(worker);
}

static void test_queue_is_bounded(void **state) {
    (void)state;
    mr_err err;
    mr_frame frame;
    mr_worker *worker;
    uint32_t refused = 0, done = 0;
    assert_int_equal(mr_worker_open(&worker, w.engine, w.manifest.digest, "127.0.0.1:0", &err),
                     MR_OK);
    mr_link *link = open_link(worker);
    enum { STEPS = 3 * MR_WORKER_STEPS_QUEUED };
    step_payload p = make_step(1);
    p.sequence.flags = 0;
    for (uint64_t i = 0; i < STEPS; i++) {
        const mr_wire_header header = {.type = MR_FRAME_STEP, .request = i};
        mr_link_send(link, &header, &p, sizeof(p));
    }
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
    while (refused + done < STEPS) {
        receive(link, &frame);
        if (frame.header->type == MR_FRAME_ERROR) {
            assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_LIMIT);
            refused++;
        } else
            done++;
    }
    assert_true(done >= MR_WORKER_STEPS_QUEUED);
    for (uint64_t i = 0; i < 20; i++) send_step(link, i, &p); /* closed with steps waiting */
    mr_worker_close(worker);
    mr_link_close(link);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embedded),
        cmocka_unit_test(test_several_coordinators),
        cmocka_unit_test(test_queue_is_bounded),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, open_world, close_world);
}
