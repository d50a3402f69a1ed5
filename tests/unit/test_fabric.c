/* Goal: frames arrive whole, in order and aligned over both kinds of link, whatever the pieces they
 * travel in; garbage ends a link with a sentence; every wait ends at its deadline.
 * Method: socket pairs whose other end is written by hand, and loop links with a small handler. */
#include "common/net/address.h"
#include "common/net/session.h"
#include "tests/unit/net_test.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static mr_link *pair(int *other) {
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    *other = fds[1];
    return mr_link_from_fd(fds[0], "peer");
}

/* Payload bytes that tell frames apart. */
static uint8_t expected(uint64_t request, uint32_t at) {
    return (uint8_t)(request * 31 + at * 7);
}

static bool queue_frame(mr_link *link, uint64_t request, uint32_t bytes) {
    const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = request};
    uint8_t *room = mr_link_begin(link, &header, bytes);
    if (!room) return false;
    assert_int_equal((uintptr_t)room % 8, 0);
    for (uint32_t i = 0; i < bytes; i++) room[i] = expected(request, i);
    mr_link_end(link);
    return true;
}

static void check_frame(const mr_frame *frame, uint64_t request, uint32_t bytes) {
    assert_int_equal(frame->header->request, request);
    assert_int_equal(frame->header->payload_bytes, bytes);
    assert_int_equal((uintptr_t)frame->payload % 8, 0);
    assert_int_equal((uintptr_t)frame->header % 8, 0);
    for (uint32_t i = 0; i < bytes; i++) assert_int_equal(frame->payload[i], expected(request, i));
}

static uint32_t odd_size(uint64_t request) {
    static const uint32_t sizes[] = {
        0, 1, 7, 8, 9, 64, 1000, 4097, 65536, 200001, MR_MAX_FRAME_BYTES};
    return sizes[request % (sizeof(sizes) / sizeof(sizes[0]))];
}

static void test_stream_carries_many_frames(void **state) {
    (void)state;
    int other;
    mr_err err;
    mr_frame frame;
    mr_link *a = pair(&other), *b = mr_link_from_fd(other, "b");
    uint64_t sent = 0, received = 0;
    const int64_t deadline = after_ms(20000);
    while (received < 200) {
        while (sent < 200 && sent < received + 30 && queue_frame(a, sent, odd_size(sent))) sent++;
        mr_status status = mr_link_flush(a, &err);
        assert_true(status == MR_OK || status == MR_ERR_AGAIN);
        while ((status = mr_link_receive(b, &frame, &err)) == MR_OK) {
            check_frame(&frame, received, odd_size(received));
            received++;
        }
        assert_int_equal(status, MR_ERR_AGAIN);
        assert_true(mr_now_ns() < deadline);
    }
    assert_int_equal(mr_link_bytes_sent(a), mr_link_bytes_received(b));
    assert_false(mr_link_wants_write(a));
    mr_link_close(a);
    assert_int_equal(mr_link_receive(b, &frame, &err), MR_ERR_UNAVAILABLE);
    assert_sentence(err, "b: the connection was closed");
    assert_int_equal(mr_link_receive(b, &frame, &err), MR_ERR_UNAVAILABLE); /* stays final */
    assert_sentence(err, "closed");
    mr_link_close(b);
}

static void test_stream_takes_single_bytes(void **state) {
    (void)state;
    int fd;
    mr_err err;
    mr_frame frame;
    mr_link *link = pair(&fd);
    for (uint64_t request = 1; request <= 3; request++) {
        const mr_wire_header header = {.magic = MR_WIRE_MAGIC,
                                       .version = 1,
                                       .type = MR_FRAME_POOLED,
                                       .payload_bytes = 5,
                                       .request = request};
        uint8_t bytes[sizeof(header) + 5];
        memcpy(bytes, &header, sizeof(header));
        for (uint32_t i = 0; i < 5; i++) bytes[sizeof(header) + i] = expected(request, i);
        for (size_t i = 0; i < sizeof(bytes); i++) {
            assert_int_equal(mr_link_receive(link, &frame, &err), MR_ERR_AGAIN);
            assert_int_equal(write(fd, bytes + i, 1), 1);
        }
        assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
        check_frame(&frame, request, 5);
    }
    mr_link_close(link);
    close(fd);
}

static void expect_refusal(const void *bytes, size_t count, mr_status status, const char *why) {
    int fd;
    mr_err err;
    mr_frame frame;
    mr_link *link = pair(&fd);
    assert_int_equal(write(fd, bytes, count), (ssize_t)count);
    assert_int_equal(mr_links_wait(&link, 1, after_ms(1000)), MR_OK);
    assert_int_equal(mr_link_receive(link, &frame, &err), status);
    assert_sentence(err, why);
    assert_int_equal(mr_link_receive(link, &frame, &err), status);
    assert_null(mr_link_begin(link, &(mr_wire_header){.type = MR_FRAME_PING}, 0));
    assert_int_equal(mr_link_flush(link, &err), status);
    mr_link_close(link);
    close(fd);
}

static void test_stream_refuses_garbage(void **state) {
    (void)state;
    const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: scanner/1.0\r\n\r\n";
    expect_refusal(http, sizeof(http), MR_ERR_FORMAT, "not a Memrack frame");
    const uint8_t zeros[64] = {0};
    expect_refusal(zeros, sizeof(zeros), MR_ERR_FORMAT, "not a Memrack frame");
    mr_wire_header h = {.magic = MR_WIRE_MAGIC, .version = 1, .type = MR_FRAME_PING};
    h.payload_bytes = 0xffffffff;
    expect_refusal(&h, sizeof(h), MR_ERR_LIMIT, "4294967295 bytes");
    h.payload_bytes = MR_MAX_FRAME_BYTES + 1;
    expect_refusal(&h, sizeof(h), MR_ERR_LIMIT, "is the most");
    h.payload_bytes = 0;
    h.type = 99;
    expect_refusal(&h, sizeof(h), MR_ERR_UNSUPPORTED, "unknown type 99");
    h.type = MR_FRAME_PING;
    h.flags = 0x80000000;
    expect_refusal(&h, sizeof(h), MR_ERR_UNSUPPORTED, "unknown flags");
}

static void test_stream_ends_in_the_middle(void **state) {
    (void)state;
    int fd;
    mr_err err;
    mr_frame frame;
    mr_link *link = pair(&fd);
    const mr_wire_header h = {
        .magic = MR_WIRE_MAGIC, .version = 1, .type = MR_FRAME_POOLED, .payload_bytes = 100};
    assert_int_equal(write(fd, &h, sizeof(h)), sizeof(h));
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_ERR_AGAIN);
    close(fd);
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_ERR_UNAVAILABLE);
    assert_sentence(err, "in the middle of a frame");
    mr_link_close(link);
}

static void test_backlog_is_bounded(void **state) {
    (void)state;
    int fd;
    mr_err err;
    uint32_t queued = 0;
    mr_link *link = pair(&fd);
    while (queue_frame(link, queued, MR_MAX_FRAME_BYTES)) queued++;
    assert_true(queued >= 32 && queued <= MR_MAX_LINK_BACKLOG_BYTES / MR_MAX_FRAME_BYTES);
    assert_int_equal(mr_link_flush(link, &err), MR_ERR_AGAIN);
    close(fd); /* and a peer that goes away is an error, not a signal */
    assert_int_equal(mr_link_flush(link, &err), MR_ERR_UNAVAILABLE);
    mr_link_close(link);
}

static void test_wait_sees_frames_that_are_here(void **state) {
    (void)state;
    int fd;
    mr_err err;
    mr_frame frame;
    mr_link *link = pair(&fd), *links[3] = {NULL, link, NULL};
    const int64_t before = mr_now_ns();
    assert_int_equal(mr_links_wait(links, 3, after_ms(30)), MR_ERR_TIMEOUT);
    assert_true(mr_now_ns() - before >= 29000000 && mr_now_ns() - before < 2000000000);
    assert_int_equal(mr_links_wait(links, 3, 0), MR_ERR_TIMEOUT); /* a deadline in the past */
    const mr_wire_header two[2] = {{.magic = MR_WIRE_MAGIC, .version = 1, .type = MR_FRAME_PONG},
                                   {.magic = MR_WIRE_MAGIC, .version = 1, .type = MR_FRAME_PONG}};
    assert_int_equal(write(fd, two, sizeof(two)), sizeof(two));
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
    assert_int_equal(mr_links_wait(links, 3, after_ms(1000)), MR_OK); /* the socket is empty now */
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
    assert_int_equal(mr_links_wait(links, 3, after_ms(10)), MR_ERR_TIMEOUT);
    close(fd);
    assert_int_equal(mr_links_wait(links, 3, after_ms(1000)), MR_OK); /* to learn of the end */
    mr_link_close(link);
}

/* --- loop ------------------------------------------------------------------------------------- */

/* Answers each frame with one of the same request; a request of 999 is answered twice. */
static void echo(void *context, mr_link *reply, const mr_frame *frame) {
    (*(uint32_t *)context)++;
    const uint64_t request = frame->header->request;
    check_frame(frame, request, frame->header->payload_bytes);
    assert_true(queue_frame(reply, request, odd_size(request + 1)));
    if (request == 999) mr_link_send_error(reply, request, MR_ERR_RANGE, "too much");
}

static void test_loop_answers(void **state) {
    (void)state;
    mr_err err;
    mr_frame frame;
    uint32_t handled = 0;
    mr_link *link = mr_link_loop(echo, &handled, "shard 0");
    assert_int_equal(mr_link_fd(link), -1);
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_ERR_AGAIN);
    uint64_t received = 0, sent = 0;
    while (received < 100) {
        while (sent < 100 && sent < received + 40 && queue_frame(link, sent, odd_size(sent)))
            sent++;
        const mr_status status = mr_link_flush(link, &err);
        assert_true(status == MR_OK || status == MR_ERR_AGAIN);
        assert_int_equal(mr_links_wait(&link, 1, after_ms(100)), MR_OK);
        while (mr_link_receive(link, &frame, &err) == MR_OK) {
            check_frame(&frame, received, odd_size(received + 1));
            received++;
        }
    }
    assert_int_equal(handled, 100);
    queue_frame(link, 999, 8);
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
    assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
    assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_RANGE);
    assert_string_equal(err.text, "too much");
    assert_int_equal(mr_links_wait(&link, 1, after_ms(5)), MR_ERR_TIMEOUT);
    mr_link_close(link);
}

/* --- addresses -------------------------------------------------------------------------------- */

static void test_addresses(void **state) {
    (void)state;
    mr_err err;
    const char *good[] = {"127.0.0.1:0", "localhost:65535", "[::1]:80", "unix:/tmp/x"};
    const char *bad[] = {"",           "host",
                         ":80",        "host:",
                         "host:70000", "host:-1",
                         "host:0x10",  "host:8 ",
                         "::1:80",     "unix:",
                         "[::1]80",    "host:+5",
                         "[]:80",      "host:99999999999999999999"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(mr_address_check(good[i], &err), MR_OK);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (mr_address_check(bad[i], &err) != MR_ERR_ARGUMENT) fail_msg("took '%s'", bad[i]);
    char large[10 << 10];
    memset(large, 'a', sizeof(large) - 4);
    memcpy(large + sizeof(large) - 4, ":80", 4);
    assert_int_equal(mr_address_check(large, &err), MR_ERR_ARGUMENT);
    memcpy(large, "unix:", 5);
    assert_int_equal(mr_address_check(large, &err), MR_ERR_ARGUMENT);
}

static void test_connect(void **state) {
    (void)state;
    mr_err err;
    mr_link *link;
    int fd;
    char *bound;
    assert_int_equal(mr_address_listen(&fd, &bound, "127.0.0.1:0", 1, &err), MR_OK);
    assert_int_equal(mr_link_connect(&link, bound, after_ms(1000), &err), MR_OK);
    assert_string_equal(mr_link_peer(link), bound);
    mr_link_close(link);
    close(fd);
    assert_int_equal(mr_link_connect(&link, bound, after_ms(1000), &err), MR_ERR_UNAVAILABLE);
    assert_null(link);
    assert_sentence(err, "refused");
    free(bound);
    assert_int_equal(mr_link_connect(&link, "unix:/nonexistent/x", after_ms(1000), &err),
                     MR_ERR_UNAVAILABLE);

    char path[64];
    snprintf(path, sizeof(path), "unix:/tmp/mr-test-%ld.sock", (long)getpid());
    assert_int_equal(mr_address_listen(&fd, &bound, path, 1, &err), MR_OK);
    int second;
    char *again;
    assert_int_equal(mr_address_listen(&second, &again, path, 1, &err), MR_ERR_IO); /* in use */
    close(fd);
    free(bound);
    assert_int_equal(mr_address_listen(&fd, &bound, path, 1, &err), MR_OK); /* stale: replaced */
    close(fd);
    free(bound);
    unlink(path + 5);
}

/* --- sessions --------------------------------------------------------------------------------- */

static void test_versions(void **state) {
    (void)state;
    assert_int_equal(mr_version_choose(1, 1, 1, 1), 1);
    assert_int_equal(mr_version_choose(1, 1, 0, 0), 0);
    assert_int_equal(mr_version_choose(1, 1, 1, 2), 1); /* N - 1 of a newer peer */
    assert_int_equal(mr_version_choose(1, 1, 2, 3), 0);
    assert_int_equal(mr_version_choose(2, 3, 1, 2), 2);
    assert_int_equal(mr_version_choose(2, 3, 2, 3), 3);
    assert_int_equal(mr_version_choose(2, 3, 3, 9), 3);
    assert_int_equal(mr_version_choose(2, 3, 4, 9), 0);
}

static mr_session_offer offer_of(uint8_t digest_byte) {
    mr_session_offer offer = {.role = MR_ROLE_MEMSHARD, .grid_rows = 1, .grid_columns = 1};
    memset(offer.digest.bytes, digest_byte, sizeof(offer.digest.bytes));
    return offer;
}

static void answer_session(void *context, mr_link *reply, const mr_frame *frame) {
    mr_err err;
    mr_session_answer(reply, frame, context, &err);
}

static mr_status open_session(mr_session_offer *offer, const mr_session_hello *hello, mr_err *err) {
    uint8_t welcome[128];
    size_t bytes;
    mr_link *link = mr_link_loop(answer_session, offer, "shard");
    const mr_status status =
        mr_session_open(link, hello, after_ms(100), welcome, sizeof(welcome), &bytes, err);
    if (status == MR_OK) {
        mr_welcome_view view;
        assert_int_equal(mr_welcome_check(&view, welcome, bytes, err), MR_OK);
        assert_int_equal(view.fixed->version, MR_WIRE_VERSION);
    }
    mr_link_close(link);
    return status;
}

static void test_session(void **state) {
    (void)state;
    mr_err err;
    mr_session_offer offer = offer_of(0xab);
    mr_session_hello hello = {.role = MR_ROLE_WORKER, .role_wanted = MR_ROLE_MEMSHARD};
    assert_int_equal(open_session(&offer, &hello, &err), MR_OK); /* any digest */
    hello.digest = offer.digest;
    assert_int_equal(open_session(&offer, &hello, &err), MR_OK);
    hello.digest.bytes[0] = 0xcd;
    assert_int_equal(open_session(&offer, &hello, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "abababababab...");
    assert_sentence(err, "cdababababab...");
    hello.digest = offer.digest;
    hello.role_wanted = MR_ROLE_WORKER;
    assert_int_equal(open_session(&offer, &hello, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "this is a memshard, not a worker");
    hello.role_wanted = MR_ROLE_MEMSHARD;
    offer.version_min = MR_WIRE_VERSION + 1;
    offer.version_max = MR_WIRE_VERSION + 2;
    assert_int_equal(open_session(&offer, &hello, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "this memshard speaks");
    offer.version_min = 1;
    offer.version_max = MR_WIRE_VERSION + 1; /* a newer peer: one version is common */
    assert_int_equal(open_session(&offer, &hello, &err), MR_OK);
}

static void test_session_needs_an_answer(void **state) {
    (void)state;
    int fd;
    mr_err err;
    uint8_t welcome[128];
    size_t bytes;
    mr_link *link = pair(&fd);
    const mr_session_hello hello = {.role = MR_ROLE_WORKER, .role_wanted = MR_ROLE_MEMSHARD};
    const int64_t before = mr_now_ns();
    assert_int_equal(
        mr_session_open(link, &hello, after_ms(30), welcome, sizeof(welcome), &bytes, &err),
        MR_ERR_TIMEOUT);
    assert_sentence(err, "does not answer our HELLO");
    assert_true(mr_now_ns() - before < 2000000000);
    mr_link_close(link);
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_carries_many_frames),
        cmocka_unit_test(test_stream_takes_single_bytes),
        cmocka_unit_test(test_stream_refuses_garbage),
        cmocka_unit_test(test_stream_ends_in_the_middle),
        cmocka_unit_test(test_backlog_is_bounded),
        cmocka_unit_test(test_wait_sees_frames_that_are_here),
        cmocka_unit_test(test_loop_answers),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_connect),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_session),
        cmocka_unit_test(test_session_needs_an_answer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
