/* Goal: the listening side serves many links at once, ends those that send garbage with a sentence
 * and leaves the others alone; it stops cleanly and leaks nothing (the sanitizers watch).
 * Method: a server in this process whose handler echoes; peers over TCP and over Unix sockets, some
 * of them raw sockets that write whatever they like. */
#include "common/base/log.h"
#include "common/net/address.h"
#include "common/net/server.h"
#include "common/net/session.h"
#include "tests/unit/net_test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct {
    atomic_int handled, closed;
} counts;

static void echo(void *context, mr_link *reply, const mr_frame *frame) {
    counts *c = context;
    atomic_fetch_add(&c->handled, 1);
    if (frame->header->type == MR_FRAME_STEP) {
        mr_session_refuse(reply, frame->header->request, MR_ERR_FORMAT, "no steps here");
        return;
    }
    const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = frame->header->request};
    mr_link_send(reply, &header, frame->payload, frame->header->payload_bytes);
}

static void note_closed(void *context, mr_link *link) {
    (void)link;
    atomic_fetch_add(&((counts *)context)->closed, 1);
}

static mr_server *open_server(counts *c, uint32_t threads, uint32_t idle_ms) {
    mr_server *server;
    mr_err err;
    static const mr_wire_cell cells[] = {{0}, {2}};
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .threads = threads,
                                       .role = MR_ROLE_MEMSHARD,
                                       .digest = {{1, 2, 3}},
                                       .welcome_tail = cells,
                                       .welcome_tail_bytes = sizeof(cells),
                                       .cell_count = 2,
                                       .grid_rows = 3,
                                       .grid_columns = 1,
                                       .handler = echo,
                                       .link_closed = note_closed,
                                       .context = c,
                                       .idle_timeout_ms = idle_ms};
    *c = (counts){0};
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    return server;
}

static mr_link *open_link(const mr_server *server) {
    mr_link *link;
    mr_err err;
    uint8_t welcome[128];
    size_t bytes;
    mr_welcome_view view;
    const mr_session_hello hello = {
        .role = MR_ROLE_WORKER, .role_wanted = MR_ROLE_MEMSHARD, .digest = {{1, 2, 3}}};
    assert_int_equal(mr_link_connect(&link, mr_server_address(server), after_ms(2000), &err),
                     MR_OK);
    if (mr_session_open(link, &hello, after_ms(2000), welcome, sizeof(welcome), &bytes, &err) !=
        MR_OK)
        fail_msg("%s", err.text);
    assert_int_equal(mr_welcome_check(&view, welcome, bytes, &err), MR_OK);
    assert_int_equal(view.fixed->cell_count, 2);
    assert_int_equal(view.cells[1].cell, 2);
    return link;
}

static void receive(mr_link *link, mr_frame *frame) {
    mr_err err;
    mr_status status;
    while ((status = mr_link_receive(link, frame, &err)) == MR_ERR_AGAIN)
        assert_int_equal(mr_links_wait(&link, 1, after_ms(5000)), MR_OK);
    if (status != MR_OK) fail_msg("%s", err.text);
}

static void ask(mr_link *link, uint64_t request, uint32_t bytes) {
    static const uint8_t zeros[4096];
    mr_err err;
    mr_frame frame;
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = request};
    mr_link_send(link, &header, zeros, bytes);
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
    receive(link, &frame);
    assert_int_equal(frame.header->type, MR_FRAME_POOLED);
    assert_int_equal(frame.header->request, request);
    assert_int_equal(frame.header->payload_bytes, bytes);
}

/* --- several models, and frames that are put aside -------------------------------------------- */

enum { ASIDE_MAX = 64 };
static _Thread_local struct {
    mr_link *link;
    uint64_t request;
} aside[ASIDE_MAX];
static _Thread_local uint32_t aside_count;

static void put_aside(void *context, mr_link *reply, const mr_frame *frame) {
    counts *c = context;
    assert_true(mr_link_seen_ns(reply) > 0);
    if (mr_link_is_crowded(reply) && aside_count < ASIDE_MAX) {
        aside[aside_count].link = reply;
        aside[aside_count++].request = frame->header->request;
        atomic_fetch_add(&c->closed, 1);
        return;
    }
    atomic_fetch_add(&c->handled, 1);
    const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = frame->header->request};
    mr_link_send(reply, &header, mr_link_digest(reply), sizeof(mr_digest));
}

static void answer_aside(void *context, uint32_t lane) {
    (void)context;
    for (uint32_t i = 0; i < aside_count; i++) {
        const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = aside[i].request};
        assert_int_equal(mr_link_lane(aside[i].link), lane);
        mr_link_send(aside[i].link, &header, mr_link_digest(aside[i].link), sizeof(mr_digest));
    }
    aside_count = 0;
}

static mr_status offer_two(void *context, const mr_wire_hello *hello, mr_session_offer *out,
                           mr_err *err) {
    static const mr_wire_cell cells[] = {{0}, {1}};
    (void)context;
    if (hello->digest[0] != 1 && hello->digest[0] != 2)
        return mr_fail(err, MR_ERR_MISMATCH, "no such model here");
    memcpy(out->digest.bytes, hello->digest, sizeof(out->digest));
    out->grid_rows = 2;
    out->grid_columns = 1;
    out->cell_count = hello->digest[0];
    out->tail = cells;
    out->tail_bytes = out->cell_count * (uint32_t)sizeof(cells[0]);
    return MR_OK;
}

static mr_link *open_model(const mr_server *server, uint8_t model, mr_status expected) {
    mr_link *link;
    mr_err err;
    uint8_t welcome[128];
    size_t bytes;
    mr_welcome_view view;
    const mr_session_hello hello = {
        .role = MR_ROLE_WORKER, .role_wanted = MR_ROLE_MEMSHARD, .digest = {{model}}};
    assert_int_equal(mr_link_connect(&link, mr_server_address(server), after_ms(2000), &err),
                     MR_OK);
    assert_int_equal(
        mr_session_open(link, &hello, after_ms(2000), welcome, sizeof(welcome), &bytes, &err),
        expected);
    if (expected != MR_OK) {
        assert_non_null(strstr(err.text, "no such model here"));
        mr_link_close(link);
        return NULL;
    }
    assert_int_equal(mr_welcome_check(&view, welcome, bytes, &err), MR_OK);
    assert_int_equal(view.fixed->cell_count, model);
    return link;
}

static void test_models_by_digest_and_rounds(void **state) {
    (void)state;
    counts c = {0};
    mr_server *server;
    mr_err err;
    mr_frame frame;
    mr_link *links[2];
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .threads = 2,
                                       .role = MR_ROLE_MEMSHARD,
                                       .handler = put_aside,
                                       .offer = offer_two,
                                       .round_over = answer_aside,
                                       .context = &c};
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    open_model(server, 3, MR_ERR_MISMATCH);
    for (uint8_t i = 0; i < 2; i++) links[i] = open_model(server, i + 1, MR_OK);
    for (int round = 0; round < 20; round++)
        for (uint32_t i = 0; i < 2; i++) { /* 40 frames at once: most find the link crowded */
            bool seen[40] = {false};
            for (uint64_t r = 0; r < 40; r++) {
                const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = r};
                mr_link_send(links[i], &header, NULL, 0);
            }
            assert_int_equal(mr_link_flush(links[i], &err), MR_OK);
            for (int r = 0; r < 40; r++) {
                receive(links[i], &frame);
                assert_true(frame.header->request < 40 && !seen[frame.header->request]);
                seen[frame.header->request] = true;
                assert_int_equal(frame.payload[0], i + 1); /* its session's model */
            }
        }
    assert_int_equal(atomic_load(&c.handled) + atomic_load(&c.closed), 20 * 2 * 40);
    assert_true(atomic_load(&c.closed) > 0);
    for (int i = 0; i < 2; i++) mr_link_close(links[i]);
    mr_server_close(server);
}

static void test_answers_and_pings(void **state) {
    (void)state;
    counts c;
    mr_err err;
    mr_frame frame;
    mr_server *server = open_server(&c, 2, 0);
    mr_link *a = open_link(server), *b = open_link(server);
    for (uint64_t i = 0; i < 50; i++) {
        ask(a, i, (uint32_t)i * 8);
        ask(b, i, 4096);
    }
    const mr_wire_header ping = {.type = MR_FRAME_PING, .request = 77};
    mr_link_send(a, &ping, NULL, 0);
    assert_int_equal(mr_link_flush(a, &err), MR_OK);
    receive(a, &frame);
    assert_int_equal(frame.header->type, MR_FRAME_PONG);
    assert_int_equal(frame.header->request, 77);
    assert_int_equal(mr_server_links(server), 2);
    mr_link_close(a);
    ask(b, 1, 8);
    mr_server_close(server);
    assert_int_equal(atomic_load(&c.closed), 2);
    assert_int_equal(mr_link_receive(b, &frame, &err), MR_ERR_AGAIN); /* nothing was left */
    assert_int_equal(mr_links_wait(&b, 1, after_ms(2000)), MR_OK);
    assert_int_equal(mr_link_receive(b, &frame, &err), MR_ERR_UNAVAILABLE);
    mr_link_close(b);
}

/* More frames than one turn takes, more bytes than the sockets hold. */
static void test_many_outstanding(void **state) {
    (void)state;
    counts c;
    mr_err err;
    mr_frame frame;
    enum { FRAMES = 3000, BYTES = 16 << 10 };
    mr_server *server = open_server(&c, 1, 0);
    mr_link *link = open_link(server);
    uint64_t sent = 0, received = 0;
    const int64_t deadline = after_ms(30000);
    while (received < FRAMES) {
        const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = sent};
        void *room;
        while (sent < FRAMES && (room = mr_link_begin(link, &header, BYTES)) != NULL) {
            memset(room, (int)sent, BYTES);
            memcpy(room, &sent, sizeof(sent));
            mr_link_end(link);
            sent++;
        }
        mr_status status = mr_link_flush(link, &err);
        assert_true(status == MR_OK || status == MR_ERR_AGAIN);
        while ((status = mr_link_receive(link, &frame, &err)) == MR_OK) {
            assert_memory_equal(frame.payload, &received, sizeof(received));
            received++;
        }
        assert_int_equal(status, MR_ERR_AGAIN);
        if (received < FRAMES) assert_int_equal(mr_links_wait(&link, 1, deadline), MR_OK);
    }
    mr_link_close(link);
    mr_server_close(server);
    assert_int_equal(atomic_load(&c.handled), FRAMES);
}

/* --- hostile peers ---------------------------------------------------------------------------- */

/* Writes bytes, then reads until the server closes. The last frame must be a refusal with why. */
static void expect_end(const mr_server *server, const void *bytes, size_t count, bool after_hello,
                       mr_status expected, const char *why) {
    mr_link *link;
    mr_err err = {{0}}, sentence = {{0}};
    mr_frame frame;
    bool refused = false;
    if (after_hello)
        link = open_link(server);
    else
        assert_int_equal(mr_link_connect(&link, mr_server_address(server), after_ms(1000), &err),
                         MR_OK);
    assert_int_equal(send(mr_link_fd(link), bytes, count, MSG_NOSIGNAL), (ssize_t)count);
    for (;;) {
        const mr_status status = mr_link_receive(link, &frame, &err);
        if (status == MR_ERR_AGAIN) {
            assert_int_equal(mr_links_wait(&link, 1, after_ms(3000)), MR_OK);
            continue;
        }
        if (status != MR_OK) break;
        assert_int_equal(frame.header->type, MR_FRAME_REFUSE);
        assert_int_equal(mr_frame_error(&frame, &sentence), expected);
        refused = true;
    }
    assert_true(refused);
    assert_sentence(sentence, why);
    mr_link_close(link);
}

static void test_hostile_frames(void **state) {
    (void)state;
    counts c;
    mr_server *server = open_server(&c, 2, 0);
    mr_link *good = open_link(server);
    const char http[] = "GET /metrics HTTP/1.0\r\n\r\n";
    expect_end(server, http, sizeof(http) - 1, false, MR_ERR_FORMAT, "not a Memrack frame");
    expect_end(server, http, sizeof(http) - 1, true, MR_ERR_FORMAT, "not a Memrack frame");
    char *noise = malloc(200000);
    uint64_t seed = 3;
    for (int i = 0; i < 200000; i++) noise[i] = (char)test_random(&seed);
    expect_end(server, noise, 200000, false, MR_ERR_FORMAT, "not a Memrack frame");
    free(noise);
    mr_wire_header h = {
        .magic = MR_WIRE_MAGIC, .version = MR_WIRE_VERSION, .type = MR_FRAME_RETRIEVE};
    expect_end(server, &h, sizeof(h), false, MR_ERR_FORMAT, "RETRIEVE frame before HELLO");
    h.payload_bytes = 0xffffffff;
    expect_end(server, &h, sizeof(h), true, MR_ERR_LIMIT, "4294967295 bytes");
    h.type = MR_FRAME_HELLO;
    h.payload_bytes = 5000;
    expect_end(server, &h, sizeof(h), false, MR_ERR_LIMIT, "before the session is open");
    struct {
        mr_wire_header header;
        mr_wire_hello hello;
    } hello = {{.magic = MR_WIRE_MAGIC, .version = 1, .type = MR_FRAME_HELLO, .payload_bytes = 64},
               {.version_min = 1,
                .version_max = 1,
                .role = MR_ROLE_WORKER,
                .role_wanted = MR_ROLE_MEMSHARD,
                .frame_bytes_max = MR_MAX_FRAME_BYTES}};
    expect_end(server, &hello, sizeof(hello), true, MR_ERR_FORMAT, "second HELLO");
    hello.hello.version_min = MR_WIRE_VERSION + 1;
    hello.hello.version_max = MR_WIRE_VERSION + 2;
    hello.header.version = MR_WIRE_VERSION + 2;
    expect_end(server, &hello, sizeof(hello), false, MR_ERR_MISMATCH, "no common version");
    hello.hello.version_min = hello.hello.version_max = 0;
    expect_end(server, &hello, sizeof(hello), false, MR_ERR_FORMAT, "versions from 0 to 0");
    hello.hello.version_min = hello.hello.version_max = 1;
    hello.hello.digest[0] = 9;
    expect_end(server, &hello, sizeof(hello), false, MR_ERR_MISMATCH, "090000000000...");
    h = (mr_wire_header){.magic = MR_WIRE_MAGIC, .version = MR_WIRE_VERSION, .type = MR_FRAME_STEP};
    expect_end(server, &h, sizeof(h), true, MR_ERR_FORMAT, "no steps here");
    h.flags = MR_FRAME_HAS_MAC;
    expect_end(server, &h, sizeof(h), true, MR_ERR_UNSUPPORTED, "MAC");
    ask(good, 5, 64); /* none of which disturbed this one */
    mr_link_close(good);
    mr_server_close(server);
}

static void test_silent_peers_are_dropped(void **state) {
    (void)state;
    counts c;
    mr_err err;
    mr_frame frame;
    mr_link *silent, *slow;
    mr_server *server = open_server(&c, 1, 100);
    mr_link *good = open_link(server);
    assert_int_equal(mr_link_connect(&silent, mr_server_address(server), after_ms(1000), &err),
                     MR_OK);
    assert_int_equal(mr_link_connect(&slow, mr_server_address(server), after_ms(1000), &err),
                     MR_OK);
    const uint32_t magic = MR_WIRE_MAGIC;
    assert_int_equal(write(mr_link_fd(slow), &magic, 4), 4);
    mr_link *both[] = {silent, slow};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mr_links_wait(&both[i], 1, after_ms(3000)), MR_OK);
        assert_int_equal(mr_link_receive(both[i], &frame, &err), MR_ERR_UNAVAILABLE);
        mr_link_close(both[i]);
    }
    ask(good, 1, 8); /* an open session may be idle for as long as it likes */
    mr_link_close(good);
    mr_server_close(server);
}

/* A peer that asks and never reads must not be read from without end, and must not stop others. */
static void test_peer_that_never_reads(void **state) {
    (void)state;
    counts c;
    mr_err err;
    mr_server *server = open_server(&c, 1, 0);
    mr_link *greedy = open_link(server), *good = open_link(server);
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE};
    for (int i = 0; i < 40; i++) {
        void *room = mr_link_begin(greedy, &header, MR_MAX_FRAME_BYTES);
        assert_non_null(room);
        memset(room, 0, MR_MAX_FRAME_BYTES);
        mr_link_end(greedy);
    }
    const int64_t until = after_ms(400);
    while (mr_now_ns() < until && mr_link_flush(greedy, &err) != MR_OK) usleep(1000);
    assert_true(mr_link_wants_write(greedy)); /* it was stopped */
    assert_true(atomic_load(&c.handled) < 30);
    ask(good, 3, 128);
    mr_link_close(greedy);
    ask(good, 4, 128);
    mr_link_close(good);
    mr_server_close(server);
}

static void test_links_are_bounded(void **state) {
    (void)state;
    counts c;
    mr_err err;
    mr_frame frame;
    mr_server *server = open_server(&c, 3, 20000);
    static mr_link *links[MR_MAX_LINKS_PER_SERVER];
    uint32_t opened = 0;
    /* This process holds both ends; where it may not open so many files, fewer will do. */
    while (opened < MR_MAX_LINKS_PER_SERVER &&
           mr_link_connect(&links[opened], mr_server_address(server), after_ms(2000), &err) ==
               MR_OK)
        opened++;
    if (opened == MR_MAX_LINKS_PER_SERVER) {
        mr_link *extra;
        assert_int_equal(mr_link_connect(&extra, mr_server_address(server), after_ms(2000), &err),
                         MR_OK);
        receive(extra, &frame);
        assert_int_equal(frame.header->type, MR_FRAME_REFUSE);
        assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_LIMIT);
        mr_link_close(extra);
    }
    for (uint32_t i = 0; i < opened; i++) mr_link_close(links[i]);
    for (int i = 0; i < 500 && mr_server_links(server) > 0; i++) usleep(10000);
    assert_int_equal(mr_server_links(server), 0);
    mr_link *good = open_link(server);
    ask(good, 1, 8);
    mr_link_close(good);
    mr_server_close(server);
}

/* --- answers from another thread -------------------------------------------------------------- */

typedef struct {
    mr_server *server;
    atomic_int ready; /* answers that may be sent now */
    int sent;         /* serving thread only */
} late_answers;

static void keep(void *context, mr_link *reply, const mr_frame *frame) {
    (void)context, (void)reply, (void)frame;
}

static void send_late(void *context, mr_link *link) {
    late_answers *late = context;
    for (; late->sent < atomic_load(&late->ready); late->sent++) {
        const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = (uint64_t)late->sent};
        mr_link_send(link, &header, NULL, 0);
    }
}

static void *make_ready(void *argument) {
    late_answers *late = argument;
    for (int i = 0; i < 20; i++) {
        atomic_fetch_add(&late->ready, 1);
        mr_server_wake(late->server);
        usleep(500);
    }
    return NULL;
}

static void test_answers_of_another_thread(void **state) {
    (void)state;
    mr_err err;
    mr_frame frame;
    late_answers late = {0};
    pthread_t thread;
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .role = MR_ROLE_MEMSHARD,
                                       .digest = {{1, 2, 3}},
                                       .handler = keep,
                                       .writable = send_late,
                                       .context = &late,
                                       .welcome_tail = (mr_wire_cell[]){{0}, {2}},
                                       .welcome_tail_bytes = 8,
                                       .cell_count = 2,
                                       .grid_rows = 3,
                                       .grid_columns = 1};
    assert_int_equal(mr_server_open(&late.server, &options, &err), MR_OK);
    mr_link *link = open_link(late.server);
    assert_int_equal(pthread_create(&thread, NULL, make_ready, &late), 0);
    for (uint64_t i = 0; i < 20; i++) {
        receive(link, &frame);
        assert_int_equal(frame.header->request, i);
    }
    pthread_join(thread, NULL);
    mr_link_close(link);
    mr_server_close(late.server);
}

static void test_unix_socket(void **state) {
    (void)state;
    mr_err err;
    mr_server *server;
    char address[64];
    counts c = {0};
    snprintf(address, sizeof(address), "unix:/tmp/mr-server-%ld.sock", (long)getpid());
    const mr_server_options options = {.address = address,
                                       .role = MR_ROLE_MEMSHARD,
                                       .digest = {{1, 2, 3}},
                                       .welcome_tail = (mr_wire_cell[]){{0}, {2}},
                                       .welcome_tail_bytes = 8,
                                       .cell_count = 2,
                                       .grid_rows = 3,
                                       .grid_columns = 1,
                                       .handler = echo,
                                       .context = &c};
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    assert_string_equal(mr_server_address(server), address);
    mr_link *link = open_link(server);
    ask(link, 1, 4096);
    mr_link_close(link);
    mr_server_close(server);
    assert_int_not_equal(access(address + 5, F_OK), 0); /* its file is gone with it */
}

static void test_bad_addresses(void **state) {
    (void)state;
    mr_err err;
    mr_server *server, *second;
    counts c;
    mr_server_options options = {.address = "127.0.0.1:http", .handler = keep};
    assert_int_equal(mr_server_open(&server, &options, &err), MR_ERR_ARGUMENT);
    options.address = "192.0.2.1:0"; /* of no interface here */
    assert_int_equal(mr_server_open(&server, &options, &err), MR_ERR_IO);
    server = open_server(&c, 1, 0);
    options.address = mr_server_address(server);
    assert_int_equal(mr_server_open(&second, &options, &err), MR_ERR_IO);
    assert_sentence(err, "in use");
    mr_server_close(server);
    mr_server_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_and_pings),
        cmocka_unit_test(test_models_by_digest_and_rounds),
        cmocka_unit_test(test_many_outstanding),
        cmocka_unit_test(test_hostile_frames),
        cmocka_unit_test(test_silent_peers_are_dropped),
        cmocka_unit_test(test_peer_that_never_reads),
        cmocka_unit_test(test_links_are_bounded),
        cmocka_unit_test(test_answers_of_another_thread),
        cmocka_unit_test(test_unix_socket),
        cmocka_unit_test(test_bad_addresses),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
