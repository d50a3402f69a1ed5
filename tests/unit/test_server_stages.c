/* test_server_stages.c - a pipeline of three listening workers in this process.
 *
 * Goal: steps that go from stage to stage give the bits of the whole model; steps of disjoint
 * sequences overlap; a next stage that closes or falls silent fails what it owes within a second
 * and is found again; older owners are refused; hostile frames end their own link; models come and
 * go; a warm pipeline allocates nothing.
 * Method: a golden model cut inside both of its skip windows, Unix sockets, a malloc that counts.
 */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/address.h"
#include "common/net/frames.h"
#include "common/net/keys.h"
#include "common/net/server.h"
#include "common/net/session.h"
#include "memshard/serve.h"
#include "tests/unit/net_test.h"
#include "worker/serve.h"
#include "worker/stage.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static atomic_uint allocations;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 0
#else
#define COUNTS_ALLOCATIONS 1
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *malloc(size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, bytes);
}
void *realloc(void *old, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(old, bytes);
}
#endif

enum { STAGES = 3, LENGTH = 30, BLOCKS = 32, COLUMNS_MAX = 1024, D = 64 };
static const uint32_t first_block[STAGES + 1] = {0, 2, 4, 6}; /* windows 1:2 and 3:5 are cut */

static struct {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shard;
    mr_engine *whole, *engines[STAGES];
    mr_worker *workers[STAGES];
    char address[STAGES][64];
    uint32_t columns;
    float *expected; /* [LENGTH][columns] */
} w;

static int32_t token_at(uint32_t position) {
    return (int32_t)(position * 31 % 250);
}

static void keep(void *context, uint32_t sequence, uint32_t position, const float *logits,
                 uint32_t columns) {
    (void)sequence;
    memcpy((float *)context + (size_t)position * columns, logits, columns * sizeof(float));
}

static mr_status open_engine(mr_engine **out, uint32_t stage, uint32_t stages, mr_err *err) {
    mr_link *link = mr_link_loop(mr_memshard_handle, w.shard, "loop");
    mr_engine_options o = {.model = w.model,
                           .manifest = &w.manifest,
                           .threads = 1,
                           .kv_blocks = BLOCKS,
                           .step_tokens_max = 64,
                           .step_sequences_max = 8,
                           .shards = &link,
                           .shard_count = 1,
                           .stage = stage,
                           .stages = stages};
    if (stages > 1) {
        o.block_first = first_block[stage];
        o.block_count = first_block[stage + 1] - first_block[stage];
    }
    return mr_engine_open(out, &o, err);
}

static void open_worker(uint32_t stage) {
    mr_err err = {{0}};
    if (mr_worker_open(&w.workers[stage], w.engines[stage], w.manifest.digest, w.address[stage],
                       &err) != MR_OK)
        fail_msg("%s", err.text);
}

static void connect_stage(uint32_t stage, const char *address) {
    mr_err err = {{0}};
    assert_int_equal(mr_worker_set_next(w.workers[stage], w.manifest.digest, address, &err), MR_OK);
    if (mr_worker_wait_next(w.workers[stage], w.manifest.digest, after_ms(5000), &err) != MR_OK)
        fail_msg("%s", err.text);
}

static int open_world(void **state) {
    mr_err err = {{0}};
    (void)state;
    if (mr_model_open(&w.model, MR_SOURCE_DIR "/tests/golden/v1_ive4_skip", &err) != MR_OK ||
        mr_manifest_load(&w.manifest, w.model, NULL, NULL, &err) != MR_OK ||
        mr_memshard_open(&w.shard, w.model, &w.manifest, NULL, (mr_grid){1, 1}, 0, 1, &err) !=
            MR_OK ||
        open_engine(&w.whole, 0, 1, &err) != MR_OK) {
        print_error("%s\n", err.text);
        return -1;
    }
    w.columns = mr_model_config(w.model)->head_rows;
    w.expected = mr_alloc_array((size_t)LENGTH * w.columns, sizeof(float));
    mr_wire_sequence s = {.token_count = LENGTH, .block_count = 2, .flags = 2, .top_p = 1};
    int32_t tokens[LENGTH];
    const uint32_t blocks[2] = {0, 1};
    for (uint32_t i = 0; i < LENGTH; i++) tokens[i] = token_at(i);
    const mr_step step = {.sequence_count = 1,
                          .token_count = LENGTH,
                          .block_count = 2,
                          .sequences = &s,
                          .tokens = tokens,
                          .blocks = blocks};
    const mr_step_sink sink = {.logits = keep, .context = w.expected};
    if (mr_engine_step(w.whole, &step, &sink, NULL, &err) != MR_OK) return -1;
    for (uint32_t i = 0; i < STAGES; i++) {
        if (open_engine(&w.engines[i], i, STAGES, &err) != MR_OK) return -1;
        snprintf(w.address[i], sizeof(w.address[i]), "unix:/tmp/mr-stage-%d-%u", (int)getpid(), i);
    }
    return 0;
}

static int close_world(void **state) {
    (void)state;
    for (uint32_t i = 0; i < STAGES; i++) mr_engine_close(w.engines[i]);
    mr_engine_close(w.whole);
    mr_memshard_close(w.shard);
    mr_manifest_free(&w.manifest);
    mr_model_close(w.model);
    free(w.expected);
    return 0;
}

static int open_pipeline(void **state) {
    (void)state;
    for (uint32_t i = STAGES; i-- > 0;) open_worker(i);
    for (uint32_t i = STAGES - 1; i-- > 0;) connect_stage(i, w.address[i + 1]);
    return 0;
}

static int close_pipeline(void **state) {
    (void)state;
    for (uint32_t i = 0; i < STAGES; i++) mr_worker_close(w.workers[i]);
    memset(w.workers, 0, sizeof(w.workers));
    return 0;
}

/* --- a coordinator ---------------------------------------------------------------------------- */

static mr_link *open_link(const char *address, mr_role role, const mr_digest *digest) {
    _Alignas(8) uint8_t welcome[256];
    mr_link *link;
    mr_welcome_view view;
    size_t bytes;
    mr_err err = {{0}};
    const mr_session_hello hello = {.role = role, .role_wanted = MR_ROLE_WORKER, .digest = *digest};
    if (mr_link_connect(&link, address, after_ms(2000), &err) != MR_OK ||
        mr_session_open(link, &hello, after_ms(2000), welcome, sizeof(welcome), &bytes, &err) !=
            MR_OK ||
        mr_welcome_check(&view, welcome, bytes, &err) != MR_OK)
        fail_msg("%s", err.text);
    return link;
}

static mr_link *open_first(void) {
    return open_link(w.address[0], MR_ROLE_COORDINATOR, &w.manifest.digest);
}

/* A session ends with the next stage it counted on: what that one had in its cache may be gone. */
static void close_ended(mr_link *link) {
    mr_frame frame;
    mr_err err;
    mr_status status;
    while ((status = mr_link_receive(link, &frame, &err)) == MR_OK || status == MR_ERR_AGAIN)
        if (status == MR_ERR_AGAIN)
            assert_int_equal(mr_links_wait(&link, 1, after_ms(3000)), MR_OK);
        else
            assert_int_equal(frame.header->type, MR_FRAME_REFUSE);
    mr_link_close(link);
}

/* Nobody gets a session with the first stage while a later one is away; the sentence says which. */
static void expect_gap(const char *address) {
    uint8_t welcome[256];
    mr_link *link;
    size_t bytes;
    mr_err err = {{0}};
    const mr_session_hello hello = {MR_ROLE_COORDINATOR, MR_ROLE_WORKER, w.manifest.digest};
    assert_int_equal(mr_link_connect(&link, w.address[0], after_ms(2000), &err), MR_OK);
    assert_int_equal(
        mr_session_open(link, &hello, after_ms(2000), welcome, sizeof(welcome), &bytes, &err),
        MR_ERR_UNAVAILABLE);
    assert_non_null(strstr(err.text, "stage 1 of 3"));
    assert_non_null(strstr(err.text, address));
    mr_link_close(link);
}

typedef struct {
    mr_wire_step fixed;
    mr_wire_sequence sequence;
    int32_t tokens[LENGTH];
} step_payload;

/* `count` tokens from `position` of the sequence whose KV blocks are 2 * lane and the next. */
static uint32_t make_step(uint8_t *out, uint32_t lane, uint32_t position, uint32_t count) {
    step_payload p = {{.sequences = 1, .tokens = count, .blocks = 2},
                      {.id = lane,
                       .position = position,
                       .token_count = count,
                       .block_count = 2,
                       .flags = MR_SEQUENCE_LOGITS | MR_SEQUENCE_SAMPLE,
                       .top_p = 1},
                      {0}};
    const uint32_t blocks[2] = {2 * lane, 2 * lane + 1};
    const size_t head = sizeof(p.fixed) + sizeof(p.sequence) + count * sizeof(int32_t);
    for (uint32_t i = 0; i < count; i++) p.tokens[i] = token_at(position + i);
    memcpy(out, &p, head);
    memcpy(out + head, blocks, sizeof(blocks));
    return (uint32_t)(head + sizeof(blocks));
}

static void send_frame(mr_link *link, uint16_t type, uint64_t request, uint64_t epoch,
                       const void *payload, uint32_t bytes) {
    mr_err err = {{0}};
    const mr_wire_header header = {.type = type, .request = request, .epoch = epoch};
    mr_link_send(link, &header, payload, bytes);
    if (mr_link_flush(link, &err) != MR_OK) fail_msg("%s", err.text);
}

static void send_step(mr_link *link, uint64_t request, uint64_t epoch, uint32_t lane,
                      uint32_t position, uint32_t count) {
    uint8_t payload[sizeof(step_payload) + 8];
    const uint32_t bytes = make_step(payload, lane, position, count);
    send_frame(link, MR_FRAME_STEP, request, epoch, payload, bytes);
}

static void receive(mr_link *link, mr_frame *frame) {
    mr_err err = {{0}};
    mr_status status;
    while ((status = mr_link_receive(link, frame, &err)) == MR_ERR_AGAIN)
        if (mr_links_wait(&link, 1, after_ms(10000)) != MR_OK) fail_msg("no frame within 10 s");
    if (status != MR_OK) fail_msg("%s", err.text);
    if (mr_frame_check(frame, &err) != MR_OK) fail_msg("%s", err.text);
}

/* Takes a step's answers; logits must be those of the whole model. */
static mr_done_view check_step(mr_link *link, uint64_t request, uint32_t count) {
    mr_frame frame;
    mr_err err = {{0}};
    uint32_t rows = 0, sampled = 0;
    for (;;) {
        receive(link, &frame);
        if (frame.header->type == MR_FRAME_ERROR) {
            mr_frame_error(&frame, &err);
            fail_msg("%s", err.text);
        }
        assert_int_equal(frame.header->request, request);
        if (frame.header->type == MR_FRAME_DONE) break;
        if (frame.header->type == MR_FRAME_SAMPLED) {
            mr_sampled_view view;
            assert_int_equal(mr_sampled_check(&view, &frame, &err), MR_OK);
            assert_int_equal(view.fixed->flags, 0);
            sampled++;
            continue;
        }
        mr_logits_view view;
        assert_int_equal(mr_logits_check(&view, &frame, &err), MR_OK);
        assert_memory_equal(view.columns,
                            w.expected + (size_t)view.fixed->position * w.columns +
                                view.fixed->column_first,
                            view.fixed->columns * sizeof(float));
        rows++;
    }
    assert_int_equal(rows, count);
    assert_int_equal(sampled, 1);
    mr_done_view done;
    assert_int_equal(mr_done_check(&done, &frame, &err), MR_OK);
    return done;
}

static mr_status receive_error(mr_link *link, uint64_t request, mr_err *err) {
    mr_frame frame;
    receive(link, &frame);
    if (frame.header->type != MR_FRAME_ERROR)
        fail_msg("a %s frame, not an error", mr_frame_name(frame.header->type));
    assert_int_equal(frame.header->request, request);
    return mr_frame_error(&frame, err);
}

/* --- what a pipeline must do ------------------------------------------------------------------ */

static void test_same_bits(void **state) {
    (void)state;
    mr_link *link = open_first();
    uint64_t request = 100;
    for (uint32_t at = 0, count; at < LENGTH; at += count, request++) {
        count = at == 0 ? 7 : at == 7 ? 12 : 1;
        send_step(link, request, 0, 3, at, count);
        const mr_done_view done = check_step(link, request, count);
        assert_non_null(done.more);
        assert_int_equal(done.more->layers, 2);
        assert_true(done.fixed->step_ns >= 1000ull * done.more->stage_ns_max_us);
        assert_true(done.fixed->step_ns > 0 && done.fixed->retrieval_bytes_up > 0);
        assert_int_equal(done.fixed->retrieval_wait_ns, done.wait_ns[0] + done.wait_ns[1]);
    }
    mr_link_close(link);
}

/* Many steps sent before the first answer is read: each client's come back in order. */
static void test_steps_overlap(void **state) {
    (void)state;
    mr_link *a = open_first(), *b = open_first(), *gone = open_first();
    for (uint32_t lane = 0; lane < 8; lane++) {
        send_step(a, lane, 0, lane, 0, LENGTH - 1);
        send_step(b, 50 + lane, 0, 8 + lane, 0, LENGTH - 1);
        send_step(gone, 70 + lane, 0, 8 + lane, 0, LENGTH - 1);
        send_step(a, 20 + lane, 0, lane, LENGTH - 1, 1);
    }
    mr_link_close(gone);
    for (uint32_t lane = 0; lane < 8; lane++) {
        check_step(a, lane, LENGTH - 1);
        check_step(a, 20 + lane, 1);
        check_step(b, 50 + lane, LENGTH - 1);
    }
    mr_link_close(a);
    mr_link_close(b);
}

static void test_warm_pipeline_allocates_nothing(void **state) {
    (void)state;
    mr_link *link = open_first();
    unsigned before = 0;
    for (int round = 0; round < 40; round++) {
        if (round == 20) before = atomic_load(&allocations);
        for (uint32_t lane = 0; lane < 3; lane++) send_step(link, lane, 0, lane, 0, 16);
        for (uint32_t lane = 0; lane < 3; lane++) check_step(link, lane, 16);
        send_step(link, 9, 0, 0, 16, 1);
        check_step(link, 9, 1);
    }
    if (COUNTS_ALLOCATIONS) assert_int_equal(atomic_load(&allocations), before);
    mr_link_close(link);
}

static void test_owners(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_link *old = open_first(), *new = open_first();
    send_step(old, 1, 0, 0, 0, 4);
    check_step(old, 1, 4);
    send_step(old, 2, 5, 0, 0, 4);
    check_step(old, 2, 4);
    send_step(new, 3, 4, 1, 0, 4);
    assert_int_equal(receive_error(new, 3, &err), MR_ERR_STALE);
    send_step(new, 4, 0, 1, 0, 4); /* epoch 0 is stale once there was another */
    assert_int_equal(receive_error(new, 4, &err), MR_ERR_STALE);
    for (uint64_t i = 0; i < 30; i++) send_step(old, 10 + i, 5, 0, 0, LENGTH);
    send_step(new, 5, 6, 1, 0, LENGTH);
    check_step(new, 5, LENGTH);
    uint32_t stale = 0, done = 0;
    while (stale + done < 30) { /* those under way end; those that waited are dropped */
        mr_frame frame;
        receive(old, &frame);
        if (frame.header->type == MR_FRAME_ERROR) {
            assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_STALE);
            assert_non_null(strstr(err.text, "6"));
            stale++;
        }
        done += frame.header->type == MR_FRAME_DONE;
    }
    assert_true(stale > 0);
    send_step(old, 60, 5, 0, 0, 4);
    assert_int_equal(receive_error(old, 60, &err), MR_ERR_STALE);
    mr_link *direct = open_link(w.address[2], MR_ROLE_WORKER, &w.manifest.digest);
    uint8_t payload[sizeof(step_payload) + 8];
    const uint32_t bytes = make_step(payload, 0, 0, 4);
    send_frame(direct, MR_FRAME_STAGE, 1, 5, payload, bytes); /* every stage remembers */
    assert_int_equal(receive_error(direct, 1, &err), MR_ERR_STALE);
    mr_link_close(direct);
    mr_link_close(old);
    mr_link_close(new);
}

/* --- a next stage that fails ------------------------------------------------------------------ */

static void test_next_stage_closes_and_returns(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_link *link = open_first();
    send_step(link, 1, 0, 0, 0, LENGTH);
    check_step(link, 1, LENGTH);
    mr_worker_close(w.workers[1]);
    w.workers[1] = NULL;
    const int64_t began = mr_now_ns();
    close_ended(link);
    assert_true(mr_now_ns() - began < 1000000000);
    expect_gap(w.address[1]);
    open_worker(1);
    expect_gap(w.address[1]); /* 1 is back or not, but 1 has no stage 2 yet */
    connect_stage(1, w.address[2]);
    assert_int_equal(mr_worker_wait_next(w.workers[0], w.manifest.digest, after_ms(5000), &err),
                     MR_OK);
    link = open_first();
    send_step(link, 4, 0, 0, 0, LENGTH);
    check_step(link, 4, LENGTH);
    mr_link_close(link);
}

/* Opens a session like stage 1, then neither reads nor writes: as if it were stopped. */
static void *play_dead(void *argument) {
    const int listener = *(int *)argument;
    mr_err err = {{0}};
    const int fd = accept(listener, NULL, NULL);
    mr_link *link = mr_link_from_fd(fd, "stage 0");
    mr_wire_worker_info info;
    mr_engine_info(w.engines[1], &info);
    const mr_session_offer offer = {.role = MR_ROLE_WORKER,
                                    .digest = w.manifest.digest,
                                    .tail = &info,
                                    .tail_bytes = sizeof(info)};
    mr_frame frame;
    while (mr_link_receive(link, &frame, &err) == MR_ERR_AGAIN)
        mr_links_wait(&link, 1, after_ms(1000));
    mr_session_answer(link, &frame, &offer, &err);
    mr_link_flush(link, &err);
    return link;
}

static void test_silent_next_stage(void **state) {
    (void)state;
    mr_err err = {{0}};
    char path[64], *real;
    int listener;
    pthread_t thread;
    void *dead;
    snprintf(path, sizeof(path), "unix:/tmp/mr-stage-%d-dead", (int)getpid());
    assert_int_equal(mr_address_listen(&listener, &real, path, 4, &err), MR_OK);
    fcntl(listener, F_SETFL, 0);
    mr_link *link = open_first();
    assert_int_equal(pthread_create(&thread, NULL, play_dead, &listener), 0);
    connect_stage(0, path);
    pthread_join(thread, &dead);
    const int64_t began = mr_now_ns();
    send_step(link, 1, 0, 0, 0, LENGTH);
    send_step(link, 2, 0, 1, 0, LENGTH);
    for (uint64_t i = 1; i <= 2; i++) {
        assert_int_equal(receive_error(link, i, &err), MR_ERR_UNAVAILABLE);
        assert_non_null(strstr(err.text, "stage 1 of 3"));
        assert_non_null(strstr(err.text, path));
    }
    const double took = (double)(mr_now_ns() - began) / 1e9;
    if (took > 1.0) fail_msg("noticed after %.2f s", took);
    close_ended(link);
    connect_stage(0, w.address[1]);
    link = open_first();
    send_step(link, 3, 0, 0, 0, LENGTH);
    check_step(link, 3, LENGTH);
    mr_link_close(dead);
    mr_link_close(link);
    close(listener);
    unlink(real + 5);
    free(real);
}

/* --- hostile frames --------------------------------------------------------------------------- */

typedef struct {
    mr_wire_hidden fixed;
    float values[8 * D];
} hidden_payload;

/* Pieces for stage 1: four tokens of both kinds are a whole. */
static hidden_payload make_hidden(uint16_t kind, uint32_t first, uint32_t tokens) {
    hidden_payload p = {{.kind = kind,
                         .kinds = 3,
                         .token_first = first,
                         .tokens = tokens,
                         .columns = D,
                         .layer = kind ? 0 : -1,
                         .block = 2},
                        {0}};
    return p;
}

static void send_hidden(mr_link *link, uint64_t request, const hidden_payload *p) {
    send_frame(link, MR_FRAME_HIDDEN, request, 0, p,
               (uint32_t)(sizeof(p->fixed) + (size_t)p->fixed.tokens * p->fixed.columns * 4));
}

static mr_link *open_second(uint64_t request) {
    mr_link *link = open_link(w.address[1], MR_ROLE_WORKER, &w.manifest.digest);
    uint8_t payload[sizeof(step_payload) + 8];
    const uint32_t bytes = make_step(payload, 0, 0, 4);
    send_frame(link, MR_FRAME_STAGE, request, 0, payload, bytes);
    return link;
}

static void expect_refusal(mr_link *link) {
    mr_frame frame;
    mr_err err = {{0}};
    receive(link, &frame);
    assert_int_equal(frame.header->type, MR_FRAME_REFUSE);
    mr_frame_error(&frame, &err);
    assert_true(strlen(err.text) > 10);
    mr_link_close(link);
}

static void test_hostile_frames(void **state) {
    (void)state;
    mr_err err = {{0}};
#define HOSTILE(change)                                                                            \
    do {                                                                                           \
        mr_link *bad = open_second(7);                                                             \
        hidden_payload p = make_hidden(0, 0, 2);                                                   \
        change;                                                                                    \
        send_hidden(bad, 7, &p);                                                                   \
        expect_refusal(bad);                                                                       \
    } while (0)
    HOSTILE(p.fixed.block = 3);
    HOSTILE(p.fixed.kinds = 1);
    HOSTILE(p.fixed.columns = D / 2);
    HOSTILE(p.fixed.token_first = 3);
    HOSTILE(p.fixed.token_first = UINT32_MAX);
    HOSTILE(p.fixed.layer = 0);
    HOSTILE(p = make_hidden(1, 0, 2); p.fixed.layer = 1);
    HOSTILE(p.values[5] = 0.0f / 0.0f);
    HOSTILE(send_hidden(bad, 7, &p)); /* twice */
    mr_link *link = open_second(1);
    hidden_payload piece = make_hidden(1, 1, 3); /* any order */
    send_hidden(link, 99, &piece);               /* of no step: not ours to judge */
    send_hidden(link, 1, &piece);
    piece = make_hidden(0, 2, 2);
    send_hidden(link, 1, &piece);
    piece = make_hidden(1, 0, 1);
    send_hidden(link, 1, &piece);
    piece = make_hidden(0, 0, 2);
    send_hidden(link, 1, &piece);
    mr_frame frame;
    do receive(link, &frame);
    while (frame.header->type != MR_FRAME_DONE);
    send_step(link, 2, 0, 0, 0, 4);
    assert_int_equal(receive_error(link, 2, &err), MR_ERR_ARGUMENT);
    mr_link *first = open_first();
    uint8_t payload[sizeof(step_payload) + 8];
    const uint32_t bytes = make_step(payload, 0, 0, 4);
    send_frame(first, MR_FRAME_STAGE, 3, 0, payload, bytes);
    assert_int_equal(receive_error(first, 3, &err), MR_ERR_ARGUMENT);
    mr_link *unfinished = open_second(4), *late = open_second(5);
    mr_link_close(unfinished); /* with its hidden states missing */
    send_step(first, 4, 0, 1, 0, LENGTH);
    check_step(first, 4, LENGTH); /* nobody waits behind others */
    assert_int_equal(receive_error(late, 5, &err), MR_ERR_TIMEOUT);
    mr_link_close(late);
    mr_link_close(link);
    mr_link_close(first);
}

/* --- partitions without a shard --------------------------------------------------------------- */

static void open_server(mr_server **out) {
    static const mr_wire_cell cell = {0};
    mr_err err = {{0}};
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .role = MR_ROLE_MEMSHARD,
                                       .digest = w.manifest.digest,
                                       .welcome_tail = &cell,
                                       .welcome_tail_bytes = sizeof(cell),
                                       .cell_count = 1,
                                       .grid_rows = 1,
                                       .grid_columns = 1,
                                       .handler = mr_memshard_handle,
                                       .context = w.shard};
    if (mr_server_open(out, &options, &err) != MR_OK) fail_msg("%s", err.text);
}

/* Sends one step with flags; counts SAMPLED frames that say they are degraded. */
static mr_status run_flagged(mr_link *link, uint32_t flags, uint32_t *degraded, mr_err *err) {
    uint8_t payload[sizeof(step_payload) + 8];
    const uint32_t bytes = make_step(payload, 0, 0, LENGTH);
    mr_frame frame;
    memcpy(payload + offsetof(mr_wire_step, flags), &flags, sizeof(flags));
    send_frame(link, MR_FRAME_STEP, 1, 0, payload, bytes);
    *degraded = 0;
    for (;;) {
        mr_sampled_view sampled;
        mr_done_view done;
        receive(link, &frame);
        if (frame.header->type == MR_FRAME_ERROR) return mr_frame_error(&frame, err);
        if (frame.header->type == MR_FRAME_SAMPLED &&
            mr_sampled_check(&sampled, &frame, err) == MR_OK)
            *degraded += sampled.fixed->flags & MR_SAMPLED_DEGRADED;
        if (frame.header->type != MR_FRAME_DONE) continue;
        assert_int_equal(mr_done_check(&done, &frame, err), MR_OK);
        assert_int_equal(done.more->degraded > 0, *degraded > 0);
        return MR_OK;
    }
}

/* Stage 0 has no memshard: what it leaves out shows in what the last stage samples. Then a newer
 * route comes, and the answers are the whole ones again. */
static void test_degraded_steps(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_route route;
    mr_server *server;
    mr_engine *engine, *kept = w.engines[0];
    mr_worker_state look;
    uint32_t degraded;
    const char *nobody = "unix:/tmp/mr-stage-nobody";
    mr_route_of_addresses(&route, &nobody, 1, (mr_grid){1, 1}, &w.manifest.digest);
    const mr_engine_options o = {.model = w.model,
                                 .manifest = &w.manifest,
                                 .threads = 1,
                                 .kv_blocks = BLOCKS,
                                 .step_tokens_max = 64,
                                 .step_sequences_max = 8,
                                 .route = &route,
                                 .stages = STAGES,
                                 .block_count = first_block[1]};
    if (mr_engine_open(&engine, &o, &err) != MR_OK) fail_msg("%s", err.text);
    mr_route_free(&route);
    mr_worker_close(w.workers[0]);
    w.engines[0] = engine;
    open_worker(0);
    connect_stage(0, w.address[1]);
    mr_link *link = open_first();
    assert_int_equal(run_flagged(link, 0, &degraded, &err), MR_ERR_UNAVAILABLE);
    if (run_flagged(link, MR_STEP_MAY_DEGRADE, &degraded, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(degraded, 1);
    open_server(&server);
    const char *address = mr_server_address(server);
    mr_route_of_addresses(&route, &address, 1, (mr_grid){1, 1}, &w.manifest.digest);
    route.epoch = 4;
    assert_int_equal(mr_worker_set_route(w.workers[0], w.manifest.digest, &route, &err), MR_OK);
    assert_int_equal(route.peer_count, 0);
    do assert_int_equal(mr_worker_look(w.workers[0], w.manifest.digest, &look, &err), MR_OK);
    while (look.map_epoch != 4);
    assert_true(look.has_next && look.is_next_up);
    const int64_t until = after_ms(5000); /* it is connected in the background */
    while (run_flagged(link, 0, &degraded, &err) != MR_OK)
        if (mr_now_ns() > until) fail_msg("%s", err.text);
    assert_int_equal(degraded, 0);
    send_step(link, 2, 0, 0, 0, LENGTH);
    check_step(link, 2, LENGTH);
    mr_link_close(link);
    mr_worker_close(w.workers[0]);
    w.workers[0] = NULL;
    mr_engine_close(engine);
    mr_server_close(server);
    w.engines[0] = kept;
}

/* --- keys ------------------------------------------------------------------------------------- */

static mr_status connect_keyed(void *context, mr_link **out, const char *address,
                               const mr_session_hello *hello, int64_t deadline_ns, void *welcome,
                               size_t room, size_t *bytes, mr_err *err) {
    mr_status status = mr_link_connect(out, address, deadline_ns, err);
    if (status != MR_OK) return status;
    mr_link_set_key(*out, context);
    status = mr_session_open(*out, hello, deadline_ns, welcome, room, bytes, err);
    if (status != MR_OK) mr_link_close(*out);
    return status;
}

static void test_keyed_stages(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_session_key key;
    mr_keys *keys = mr_keys_open();
    assert_int_equal(mr_key_make(&key, &err), MR_OK);
    assert_int_equal(mr_keys_add(keys, &key, 0, &err), MR_OK);
    for (uint32_t i = STAGES; i-- > 0;) {
        const mr_worker_options o = {.address = w.address[i],
                                     .engine = w.engines[i],
                                     .digest = w.manifest.digest,
                                     .keys = keys,
                                     .is_key_required = i > 0,
                                     .connect = connect_keyed,
                                     .connect_context = &key};
        mr_worker_close(w.workers[i]);
        assert_int_equal(mr_worker_open_with(&w.workers[i], &o, &err), MR_OK);
    }
    for (uint32_t i = STAGES - 1; i-- > 0;) connect_stage(i, w.address[i + 1]);
    mr_link *link = open_first();
    send_step(link, 1, 0, 0, 0, LENGTH);
    check_step(link, 1, LENGTH);
    mr_worker_close(w.workers[0]); /* without the key: refused, with the reason */
    open_worker(0);
    assert_int_equal(mr_worker_set_next(w.workers[0], w.manifest.digest, w.address[1], &err),
                     MR_OK);
    assert_int_equal(mr_worker_wait_next(w.workers[0], w.manifest.digest, after_ms(400), &err),
                     MR_ERR_TIMEOUT);
    assert_non_null(strstr(err.text, "key"));
    for (uint32_t i = 0; i < STAGES; i++) mr_worker_close(w.workers[i]);
    memset(w.workers, 0, sizeof(w.workers));
    mr_link_close(link);
    mr_keys_close(keys);
}

/* --- models ----------------------------------------------------------------------------------- */

static void test_models_come_and_go(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_digest other = w.manifest.digest, third = other;
    mr_worker *worker;
    mr_engine *second;
    other.bytes[0] ^= 1;
    third.bytes[0] ^= 2;
    assert_int_equal(open_engine(&second, 0, 1, &err), MR_OK);
    assert_non_null(strchr(mr_engine_numeric_class(second), '/'));
    assert_int_equal(mr_worker_open(&worker, NULL, other, w.address[0], &err), MR_OK);
    assert_int_equal(mr_worker_add(worker, w.whole, w.manifest.digest, &err), MR_OK);
    assert_int_equal(mr_worker_add(worker, second, other, &err), MR_OK);
    assert_int_equal(mr_worker_add(worker, second, other, &err), MR_ERR_ARGUMENT);
    const char *address = mr_worker_address(worker);
    mr_link *a = open_link(address, MR_ROLE_COORDINATOR, &w.manifest.digest);
    mr_link *b = open_link(address, MR_ROLE_COORDINATOR, &other), *c;
    const mr_session_hello wrong = {
        .role = MR_ROLE_COORDINATOR, .role_wanted = MR_ROLE_WORKER, .digest = third};
    _Alignas(8) uint8_t welcome[256];
    size_t bytes;
    assert_int_equal(mr_link_connect(&c, address, after_ms(1000), &err), MR_OK);
    assert_int_not_equal(
        mr_session_open(c, &wrong, after_ms(1000), welcome, sizeof(welcome), &bytes, &err), MR_OK);
    assert_non_null(strstr(err.text, "none of the 2 models"));
    mr_link_close(c);
    for (uint64_t i = 0; i < 10; i++) {
        send_step(a, i, 0, 0, 0, LENGTH);
        send_step(b, i, 9, 0, 0, LENGTH); /* owners are each model's own */
    }
    assert_int_equal(mr_worker_remove(worker, third, after_ms(1000), &err), MR_ERR_ARGUMENT);
    assert_int_equal(mr_worker_remove(worker, other, after_ms(10000), &err), MR_OK);
    mr_engine_close(second);
    uint32_t ended = 0;
    while (ended < 10) { /* done, or refused because the model was leaving */
        mr_frame frame;
        receive(b, &frame);
        ended += frame.header->type == MR_FRAME_DONE || frame.header->type == MR_FRAME_ERROR;
    }
    for (uint64_t i = 0; i < 10; i++) check_step(a, i, LENGTH);
    send_step(b, 20, 9, 0, 0, 4);
    assert_int_equal(receive_error(b, 20, &err), MR_ERR_UNAVAILABLE);
    mr_link_close(a);
    mr_link_close(b);
    mr_worker_close(worker);
}

int main(void) {
#define PIPELINE(test) cmocka_unit_test_setup_teardown(test, open_pipeline, close_pipeline)
    const struct CMUnitTest tests[] = {
        PIPELINE(test_same_bits),
        PIPELINE(test_steps_overlap),
        PIPELINE(test_warm_pipeline_allocates_nothing),
        PIPELINE(test_owners),
        PIPELINE(test_next_stage_closes_and_returns),
        PIPELINE(test_silent_next_stage),
        PIPELINE(test_hostile_frames),
        PIPELINE(test_degraded_steps),
        PIPELINE(test_keyed_stages),
        cmocka_unit_test(test_models_come_and_go),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, open_world, close_world);
}
