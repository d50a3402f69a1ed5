/* Goal: a keyed session takes no frame that its peer did not send, in its place, once; who has no
 * key gets a sentence and no session; no key shows in a sentence.
 * Method: a real server; between it and the link a relay that reads whole frames and changes,
 * repeats, swaps or drops one of them. */
#include "common/base/file.h"
#include "common/net/address.h"
#include "common/net/keys.h"
#include "common/net/server.h"
#include "common/net/session.h"
#include "tests/unit/net_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FRAMES = 6, WELCOME_BYTES = 256 };

static void refuse_all(void *context, mr_link *reply, const mr_frame *frame) {
    (void)context;
    mr_link_send_error(reply, frame->header->request, MR_ERR_UNSUPPORTED, "echoes only");
}

static mr_server *open_server(mr_keys *keys, bool is_required) {
    mr_server *server;
    mr_err err;
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .role = MR_ROLE_WORKER,
                                       .welcome_tail = &(mr_wire_worker_info){0},
                                       .welcome_tail_bytes = sizeof(mr_wire_worker_info),
                                       .handler = refuse_all,
                                       .keys = keys,
                                       .is_key_required = is_required};
    if (mr_server_open(&server, &options, &err) != MR_OK) fail_msg("%s", err.text);
    return server;
}

static mr_status open_session(mr_link *link, const mr_session_key *key, mr_err *err) {
    uint8_t welcome[WELCOME_BYTES];
    size_t bytes;
    const mr_session_hello hello = {.role = MR_ROLE_CLIENT, .role_wanted = MR_ROLE_WORKER};
    mr_link_set_key(link, key);
    return mr_session_open(link, &hello, after_ms(3000), welcome, sizeof(welcome), &bytes, err);
}

static mr_status connect_and_open(mr_link **out, const mr_server *server, const mr_session_key *key,
                                  mr_err *err) {
    mr_link *link;
    if (mr_link_connect(&link, mr_server_address(server), after_ms(2000), err) != MR_OK)
        fail_msg("%s", err->text);
    const mr_status status = open_session(link, key, err);
    if (status != MR_OK) {
        mr_link_close(link);
        link = NULL;
    }
    *out = link;
    return status;
}

static void put_echo(mr_link *link, uint64_t request, uint32_t up, uint32_t down) {
    const mr_wire_header header = {.type = MR_FRAME_ECHO, .request = request};
    mr_wire_echo *echo = mr_link_begin(link, &header, up);
    assert_non_null(echo);
    memset(echo, 0x5a, up);
    *echo = (mr_wire_echo){.reply_bytes = down};
    mr_link_end(link);
}

static mr_status take_echo(mr_link *link, uint64_t request, uint32_t down, mr_err *err) {
    mr_frame frame;
    mr_status status = mr_link_flush(link, err);
    while (status == MR_OK || status == MR_ERR_AGAIN) {
        status = mr_link_receive(link, &frame, err);
        if (status == MR_OK) {
            if (frame.header->type == MR_FRAME_REFUSE) return mr_frame_error(&frame, err);
            assert_int_equal(frame.header->type, MR_FRAME_ECHOED);
            assert_int_equal(frame.header->request, request);
            assert_int_equal(frame.header->payload_bytes, down);
            return MR_OK;
        }
        if (status == MR_ERR_AGAIN && mr_links_wait(&link, 1, after_ms(3000)) != MR_OK)
            return mr_fail(err, MR_ERR_TIMEOUT, "no answer");
    }
    return status;
}

/* --- the store and the file ------------------------------------------------------------------- */

static void test_store(void **state) {
    (void)state;
    mr_err err;
    mr_session_key a, b, got;
    mr_keys *keys = mr_keys_open();
    assert_int_equal(mr_key_make(&a, &err), MR_OK);
    assert_int_equal(mr_key_make(&b, &err), MR_OK);
    assert_true(a.id != b.id && memcmp(a.bytes, b.bytes, MR_KEY_BYTES) != 0);
    assert_int_equal(mr_keys_add(keys, &a, 0, &err), MR_OK);
    assert_int_equal(mr_keys_add(keys, &b, after_ms(20), &err), MR_OK);
    assert_true(mr_keys_find(keys, b.id, &got) && memcmp(&got, &b, sizeof(b)) == 0);
    assert_false(mr_keys_find(keys, a.id ^ b.id, &got));
    usleep(30000);
    assert_false(mr_keys_find(keys, b.id, &got)); /* expired */
    assert_int_equal(mr_keys_count(keys), 1);
    b.id = a.id;
    assert_int_equal(mr_keys_add(keys, &b, 0, &err), MR_OK); /* replaces */
    assert_true(mr_keys_find(keys, a.id, &got) && memcmp(&got, &b, sizeof(b)) == 0);
    mr_keys_remove(keys, a.id);
    assert_int_equal(mr_keys_count(keys), 0);
    for (uint64_t id = 1; id <= MR_MAX_SESSION_KEYS; id++) {
        a.id = id;
        assert_int_equal(mr_keys_add(keys, &a, 0, &err), MR_OK);
    }
    a.id = MR_MAX_SESSION_KEYS + 1;
    assert_int_equal(mr_keys_add(keys, &a, 0, &err), MR_ERR_LIMIT);
    mr_keys_close(keys);
}

static void test_key_file(void **state) {
    (void)state;
    mr_err err;
    mr_session_key a, b;
    char path[64];
    const char digits[] = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
    snprintf(path, sizeof(path), "/tmp/mr-test-%ld.key", (long)getpid());
    assert_int_equal(mr_file_write(path, digits, 64, &err), MR_OK);
    if (mr_key_load(&a, path, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(a.bytes[1], 0x11);
    assert_int_equal(a.bytes[16], 0xff);
    char text[80];
    snprintf(text, sizeof(text), "  %s\n", digits);
    assert_int_equal(mr_file_write(path, text, strlen(text), &err), MR_OK);
    assert_int_equal(mr_key_load(&b, path, &err), MR_OK);
    assert_memory_equal(&a, &b, sizeof(a));
    assert_true(a.id != 0);
    const char *bad[] = {"", "00", "0011 2233", "zz112233445566778899aabbccddeeff"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(mr_file_write(path, bad[i], strlen(bad[i]), &err), MR_OK);
        assert_int_equal(mr_key_load(&b, path, &err), MR_ERR_FORMAT);
        assert_sentence(err, "64 hex digits");
    }
    snprintf(text, sizeof(text), "%s 00", digits);
    assert_int_equal(mr_file_write(path, text, strlen(text), &err), MR_OK);
    assert_int_equal(mr_key_load(&b, path, &err), MR_ERR_FORMAT);
    unlink(path);
    assert_int_equal(mr_key_load(&b, path, &err), MR_ERR_IO);
}

/* --- opening ---------------------------------------------------------------------------------- */

static void test_opening(void **state) {
    (void)state;
    mr_err err;
    mr_link *link;
    mr_session_key key, other;
    mr_keys *keys = mr_keys_open();
    assert_int_equal(mr_key_make(&key, &err), MR_OK);
    assert_int_equal(mr_key_make(&other, &err), MR_OK);
    assert_int_equal(mr_keys_add(keys, &key, 0, &err), MR_OK);
    mr_server *strict = open_server(keys, true), *mild = open_server(keys, false),
              *bare = open_server(NULL, false);

    assert_int_equal(connect_and_open(&link, strict, &key, &err), MR_OK);
    assert_true(mr_link_is_keyed(link));
    assert_int_equal(mr_link_version(link), 2);
    for (uint64_t i = 0; i < 50; i++) { /* sizes 8.. up to a whole frame, many frames a flush */
        put_echo(link, i, 8 + (uint32_t)i, i == 49 ? MR_MAX_FRAME_BYTES : (uint32_t)(i * i));
    }
    for (uint64_t i = 0; i < 50; i++)
        if (take_echo(link, i, i == 49 ? MR_MAX_FRAME_BYTES : (uint32_t)(i * i), &err) != MR_OK)
            fail_msg("%s", err.text);
    mr_link_close(link);

    assert_int_equal(connect_and_open(&link, strict, NULL, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "keyed sessions only");
    assert_int_equal(connect_and_open(&link, mild, NULL, &err), MR_OK);
    assert_false(mr_link_is_keyed(link));
    put_echo(link, 1, 8, 8);
    assert_int_equal(take_echo(link, 1, 8, &err), MR_OK);
    mr_link_close(link);
    assert_int_equal(connect_and_open(&link, mild, &key, &err), MR_OK);
    assert_true(mr_link_is_keyed(link));
    mr_link_close(link);
    assert_int_equal(connect_and_open(&link, strict, &other, &err), MR_ERR_STALE);
    assert_sentence(err, "not known here, or has expired");
    other.id = key.id; /* the right name with a wrong key */
    assert_int_equal(connect_and_open(&link, strict, &other, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "MAC is wrong");
    char digits[65];
    mr_digest shown;
    memcpy(shown.bytes, other.bytes, 32);
    mr_digest_text(&shown, digits);
    digits[8] = '\0';
    assert_null(strstr(err.text, digits));
    assert_int_equal(connect_and_open(&link, bare, &key, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "no session keys");
    mr_server_close(strict);
    mr_server_close(mild);
    mr_server_close(bare);
    mr_keys_close(keys);
}

/* Loop links take the same way through the same checks. */
static void answer_session(void *context, mr_link *reply, const mr_frame *frame) {
    mr_err err;
    if (frame->header->type == MR_FRAME_HELLO)
        mr_session_answer(reply, frame, context, &err);
    else
        mr_link_send(reply, &(mr_wire_header){.type = MR_FRAME_PONG}, NULL, 0);
}

static void test_loop(void **state) {
    (void)state;
    mr_err err;
    mr_frame frame;
    mr_session_key key;
    mr_session_offer offer = {.role = MR_ROLE_WORKER,
                              .tail = &(mr_wire_worker_info){0},
                              .tail_bytes = sizeof(mr_wire_worker_info),
                              .keys = mr_keys_open(),
                              .is_key_required = true};
    assert_int_equal(mr_key_make(&key, &err), MR_OK);
    assert_int_equal(mr_keys_add(offer.keys, &key, 0, &err), MR_OK);
    mr_link *link = mr_link_loop(answer_session, &offer, "here");
    if (open_session(link, &key, &err) != MR_OK) fail_msg("%s", err.text);
    for (int i = 0; i < 3; i++) {
        mr_link_send(link, &(mr_wire_header){.type = MR_FRAME_PING}, NULL, 0);
        assert_int_equal(mr_link_flush(link, &err), MR_OK);
        assert_int_equal(mr_link_receive(link, &frame, &err), MR_OK);
        assert_int_equal(frame.header->type, MR_FRAME_PONG);
    }
    mr_link_close(link);
    mr_keys_close(offer.keys);
}

/* --- the relay -------------------------------------------------------------------------------- */

typedef enum { PASS, FLIP, REPEAT, SWAP, DROP, STRIP } deed;

typedef struct {
    int from, to;
    deed what;
    uint32_t frame; /* which is done to, from 0: HELLO or WELCOME */
    uint32_t at;    /* FLIP: the byte */
} relay;

static bool move_all(int fd, uint8_t *data, size_t bytes, bool out) {
    while (bytes > 0) {
        const ssize_t done = out ? send(fd, data, bytes, MSG_NOSIGNAL) : read(fd, data, bytes);
        if (done <= 0) return false;
        data += done;
        bytes -= (size_t)done;
    }
    return true;
}

static void *run_relay(void *argument) {
    const relay *r = argument;
    static _Thread_local uint8_t frame[4096], held[4096];
    size_t held_bytes = 0;
    for (uint32_t number = 0;; number++) {
        mr_wire_header *header = (void *)frame;
        if (!move_all(r->from, frame, sizeof(*header), false)) break;
        if (!move_all(r->from, frame + sizeof(*header), header->payload_bytes, false)) break;
        const size_t bytes = sizeof(*header) + header->payload_bytes;
        const bool is_it = number == r->frame;
        if (is_it && r->what == DROP) continue;
        if (is_it && r->what == FLIP) frame[r->at] ^= 1;
        if (is_it && r->what == STRIP) {
            header->flags = 0;
            memset(header->mac, 0, sizeof(header->mac));
        }
        if (is_it && r->what == SWAP) {
            memcpy(held, frame, bytes);
            held_bytes = bytes;
            continue;
        }
        if (!move_all(r->to, frame, bytes, true)) break;
        if (is_it && r->what == REPEAT && !move_all(r->to, frame, bytes, true)) break;
        if (held_bytes > 0 && !move_all(r->to, held, held_bytes, true)) break;
        held_bytes = 0;
    }
    shutdown(r->to, SHUT_WR);
    return NULL;
}

/* Opens a session through two relays and sends FRAMES echoes. Returns the first failure. */
static mr_status through(const mr_server *server, const mr_session_key *key, relay up, relay down,
                         mr_err *err) {
    int fds[2], far;
    pthread_t threads[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(mr_address_connect(&far, mr_server_address(server), after_ms(1000), err),
                     MR_OK);
    assert_int_equal(fcntl(far, F_SETFL, 0), 0); /* the relay blocks */
    up.from = down.to = fds[1];
    up.to = down.from = far;
    assert_int_equal(pthread_create(&threads[0], NULL, run_relay, &up), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, run_relay, &down), 0);
    mr_link *link = mr_link_from_fd(fds[0], "server");
    mr_status status = open_session(link, key, err);
    for (uint64_t i = 0; status == MR_OK && i < FRAMES; i++) put_echo(link, i, 64, 256);
    for (uint64_t i = 0; status == MR_OK && i < FRAMES; i++) status = take_echo(link, i, 256, err);
    mr_link_close(link);
    shutdown(fds[1], SHUT_RDWR);
    shutdown(far, SHUT_RDWR);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    close(fds[1]);
    close(far);
    return status;
}

static void test_relay(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_session_key key;
    mr_keys *keys = mr_keys_open();
    assert_int_equal(mr_key_make(&key, &err), MR_OK);
    assert_int_equal(mr_keys_add(keys, &key, 0, &err), MR_OK);
    mr_server *server = open_server(keys, true);
    const relay pass = {.what = PASS};
    if (through(server, &key, pass, pass, &err) != MR_OK) fail_msg("%s", err.text);

    const relay deeds[] = {
        {.what = FLIP, .frame = 2, .at = 16}, /* request */
        {.what = FLIP, .frame = 2, .at = 24}, /* epoch */
        {.what = FLIP, .frame = 2, .at = 32}, /* budget */
        {.what = FLIP, .frame = 2, .at = 40}, /* mac */
        {.what = FLIP, .frame = 2, .at = 63}, /* reserved */
        {.what = FLIP, .frame = 2, .at = 64}, /* payload, first and last byte */
        {.what = FLIP, .frame = 2, .at = 127},
        {.what = REPEAT, .frame = 2},
        {.what = SWAP, .frame = 2},
        {.what = DROP, .frame = 2},
        {.what = STRIP, .frame = 2},
        {.what = FLIP, .frame = 1, .at = 100},
        {.what = FLIP, .frame = 0, .at = 70},  /* HELLO: role; WELCOME: role */
        {.what = FLIP, .frame = 0, .at = 127}, /* HELLO: the salt; WELCOME: digest or salt */
        {.what = STRIP, .frame = 0},
    };
    for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
        memset(&err, 0, sizeof(err));
        if (through(server, &key, deeds[i], pass, &err) == MR_OK)
            fail_msg("up: deed %zu passed", i);
        assert_true(err.text[0] != '\0');
        memset(&err, 0, sizeof(err));
        if (through(server, &key, pass, deeds[i], &err) == MR_OK)
            fail_msg("down: deed %zu passed", i);
        assert_true(err.text[0] != '\0');
    }
    through(server, &key, (relay){.what = REPEAT, .frame = 2}, pass, &err);
    assert_sentence(err, "MAC is wrong"); /* the server's REFUSE, itself with a good MAC */
    if (through(server, &key, pass, pass, &err) != MR_OK) fail_msg("%s", err.text);
    mr_server_close(server);
    mr_keys_close(keys);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store),   cmocka_unit_test(test_key_file),
        cmocka_unit_test(test_opening), cmocka_unit_test(test_loop),
        cmocka_unit_test(test_relay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
