/* Goal: a peer of the version before this one works in either role, and is sent nothing it does not
 * know; a version that is not common is refused with both sides' values.
 * Method: the version 1 side is written here by hand, byte for byte as version 1 had it: a client
 * against a real server, and a listening side against a real link. */
#include "common/net/address.h"
#include "common/net/server.h"
#include "common/net/session.h"
#include "tests/unit/net_test.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

/* As version 1 laid them out. */
typedef struct {
    uint32_t magic;
    uint16_t version, type;
    uint32_t payload_bytes, flags;
    uint64_t request, epoch;
    uint32_t budget_us;
    int32_t status;
    uint8_t zero[24];
} old_header;
typedef struct {
    uint16_t version_min, version_max, role, role_wanted;
    uint32_t frame_bytes_max, zero;
    uint8_t digest[32], zeros[16];
} old_hello;
typedef struct {
    uint16_t version, role;
    uint32_t frame_bytes_max;
    uint8_t digest[32], zeros[16];
    uint32_t cell_count, grid_rows, grid_columns, zero;
} old_welcome;
_Static_assert(sizeof(old_header) == 64 && sizeof(old_hello) == 64 && sizeof(old_welcome) == 72,
               "as in version 1");

static old_header header_of(uint16_t type, uint32_t bytes) {
    return (old_header){.magic = 0x314b524d, .version = 1, .type = type, .payload_bytes = bytes};
}

static void put(int fd, const void *data, size_t bytes) {
    assert_int_equal(send(fd, data, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
}

/* false: the other side closed. */
static bool take(int fd, void *data, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&wait, 1, 5000), 1);
        const ssize_t got = recv(fd, (uint8_t *)data + at, bytes - at, 0);
        if (got <= 0) return false;
        at += (size_t)got;
    }
    return true;
}

static void check_old(const old_header *h, uint16_t type) {
    static const uint8_t zeros[24];
    assert_int_equal(h->magic, 0x314b524d);
    assert_int_equal(h->version, 1);
    assert_int_equal(h->type, type);
    assert_int_equal(h->flags, 0);
    assert_memory_equal(h->zero, zeros, sizeof(zeros));
}

/* --- a client of version 1 -------------------------------------------------------------------- */

/* Answers with a waiting time, which version 1 has no word for. */
static void pool(void *context, mr_link *reply, const mr_frame *frame) {
    static const int32_t sums[2] = {3, 4};
    const mr_wire_header header = {
        .type = MR_FRAME_POOLED, .request = frame->header->request, .budget_us = 77};
    *(uint16_t *)context = mr_link_version(reply);
    mr_link_send(reply, &header, sums, sizeof(sums));
}

static mr_server *open_server(uint16_t *seen) {
    mr_server *server;
    mr_err err;
    static const mr_wire_cell cells[] = {{0}};
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .role = MR_ROLE_MEMSHARD,
                                       .welcome_tail = cells,
                                       .welcome_tail_bytes = sizeof(cells),
                                       .cell_count = 1,
                                       .grid_rows = 1,
                                       .grid_columns = 1,
                                       .handler = pool,
                                       .context = seen};
    if (mr_server_open(&server, &options, &err) != MR_OK) fail_msg("%s", err.text);
    return server;
}

static int connect_old(const mr_server *server) {
    int fd;
    mr_err err;
    if (mr_address_connect(&fd, mr_server_address(server), after_ms(2000), &err) != MR_OK)
        fail_msg("%s", err.text);
    const old_header header = header_of(MR_FRAME_HELLO, sizeof(old_hello));
    const old_hello hello = {.version_min = 1,
                             .version_max = 1,
                             .role = MR_ROLE_WORKER,
                             .role_wanted = MR_ROLE_MEMSHARD,
                             .frame_bytes_max = 1 << 20};
    put(fd, &header, sizeof(header));
    put(fd, &hello, sizeof(hello));
    return fd;
}

static void test_old_client(void **state) {
    (void)state;
    uint16_t seen = 0;
    old_header header;
    old_welcome welcome;
    uint32_t cell;
    int32_t sums[2];
    mr_server *server = open_server(&seen);
    const int fd = connect_old(server);
    assert_true(take(fd, &header, sizeof(header)));
    check_old(&header, MR_FRAME_WELCOME);
    assert_int_equal(header.payload_bytes, sizeof(welcome) + sizeof(cell));
    assert_true(take(fd, &welcome, sizeof(welcome)) && take(fd, &cell, sizeof(cell)));
    assert_int_equal(welcome.version, 1);
    assert_int_equal(welcome.zero, 0);
    for (uint64_t i = 1; i <= 3; i++) {
        header = header_of(MR_FRAME_RETRIEVE, 0);
        header.request = i;
        put(fd, &header, sizeof(header));
        assert_true(take(fd, &header, sizeof(header)));
        check_old(&header, MR_FRAME_POOLED);
        assert_int_equal(header.request, i);
        assert_int_equal(header.budget_us, 0);
        assert_true(take(fd, sums, sizeof(sums)));
        assert_int_equal(sums[1], 4);
    }
    assert_int_equal(seen, 1);
    header = header_of(MR_FRAME_PING, 0);
    put(fd, &header, sizeof(header));
    assert_true(take(fd, &header, sizeof(header)));
    check_old(&header, MR_FRAME_PONG);
    header = header_of(MR_FRAME_ECHO, 8); /* which version 1 does not have */
    put(fd, &header, sizeof(header));
    put(fd, &(mr_wire_echo){.reply_bytes = 8}, 8);
    assert_true(take(fd, &header, sizeof(header)));
    check_old(&header, MR_FRAME_REFUSE);
    char sentence[512] = {0};
    assert_true(header.payload_bytes < sizeof(sentence));
    assert_true(take(fd, sentence, header.payload_bytes));
    if (!strstr(sentence, "ECHO frame in a session of version 1")) fail_msg("'%s'", sentence);
    assert_false(take(fd, &header, 1));
    close(fd);
    mr_server_close(server);
}

/* --- a server of version 1 -------------------------------------------------------------------- */

typedef struct {
    int listener;
    uint16_t version; /* that it chooses */
    uint32_t frames;  /* it saw after HELLO */
    bool is_clean;    /* all of them as version 1 has them */
} old_server;

/* Refuses nothing: what it sees is looked at afterwards. */
static void *run_old_server(void *argument) {
    old_server *s = argument;
    old_header header;
    mr_wire_hello hello;
    uint8_t sink[4096];
    const int fd = accept(s->listener, NULL, NULL);
    if (!take(fd, &header, sizeof(header)) || !take(fd, &hello, sizeof(hello))) return NULL;
    /* What version 1 demanded of a HELLO by a newer peer. */
    s->is_clean = header.type == MR_FRAME_HELLO && header.flags == 0 && hello.version_min <= 1 &&
                  hello.version_max >= 1;
    const old_welcome welcome = {
        .version = s->version, .role = MR_ROLE_WORKER, .frame_bytes_max = 1 << 20};
    const uint8_t info[32] = {0};
    header = header_of(MR_FRAME_WELCOME, sizeof(welcome) + sizeof(info));
    put(fd, &header, sizeof(header));
    put(fd, &welcome, sizeof(welcome));
    put(fd, info, sizeof(info));
    while (take(fd, &header, sizeof(header))) {
        s->frames++;
        if (header.version != 1 || header.flags != 0 || header.type > MR_FRAME_DONE ||
            header.payload_bytes > sizeof(sink) || !take(fd, sink, header.payload_bytes)) {
            s->is_clean = false;
            break;
        }
        const mr_wire_done done = {.step_ns = 5};
        header = header_of(MR_FRAME_DONE, sizeof(done));
        put(fd, &header, sizeof(header));
        put(fd, &done, sizeof(done));
    }
    close(fd);
    return NULL;
}

static mr_status open_at_old(mr_link **out, old_server *s, pthread_t *thread, mr_err *err) {
    char *bound;
    uint8_t welcome[256];
    size_t bytes;
    assert_int_equal(mr_address_listen(&s->listener, &bound, "127.0.0.1:0", 4, err), MR_OK);
    assert_int_equal(fcntl(s->listener, F_SETFL, 0), 0);
    assert_int_equal(pthread_create(thread, NULL, run_old_server, s), 0);
    assert_int_equal(mr_link_connect(out, bound, after_ms(2000), err), MR_OK);
    free(bound);
    const mr_session_hello hello = {.role = MR_ROLE_COORDINATOR, .role_wanted = MR_ROLE_WORKER};
    return mr_session_open(*out, &hello, after_ms(2000), welcome, sizeof(welcome), &bytes, err);
}

static void test_old_server(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_frame frame;
    mr_link *link;
    pthread_t thread;
    mr_done_view done;
    old_server s = {.version = 1};
    if (open_at_old(&link, &s, &thread, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_link_version(link), 1);
    for (int i = 0; i < 2; i++) {
        mr_link_send(link, &(mr_wire_header){.type = MR_FRAME_PING, .budget_us = 9}, NULL, 0);
        assert_int_equal(mr_link_flush(link, &err), MR_OK);
        while (mr_link_receive(link, &frame, &err) == MR_ERR_AGAIN)
            assert_int_equal(mr_links_wait(&link, 1, after_ms(2000)), MR_OK);
        assert_int_equal(mr_done_check(&done, &frame, &err), MR_OK);
        assert_null(done.more);
    }
    /* Our own slip is caught here, not by the peer. */
    mr_link_send(link, &(mr_wire_header){.type = MR_FRAME_CANCEL}, NULL, 0);
    assert_int_equal(mr_link_flush(link, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "a CANCEL frame cannot be sent in a session of version 1");
    mr_link_close(link);
    pthread_join(thread, NULL);
    assert_true(s.is_clean);
    assert_int_equal(s.frames, 2);
    close(s.listener);
}

static void test_a_version_nobody_has(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_link *link;
    pthread_t thread;
    old_server s = {.version = 3};
    assert_int_equal(open_at_old(&link, &s, &thread, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "chose version 3; this build speaks 1 to 2");
    mr_link_close(link);
    pthread_join(thread, NULL);
    close(s.listener);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_old_client),
        cmocka_unit_test(test_old_server),
        cmocka_unit_test(test_a_version_nobody_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
