/* Goal: links over UCX carry the same frames as others, say what carries them, and neither hang nor
 * grow when the other side dies, stops, never reads or was never there.
 * Method: a server of its own process (this program again, as a child that is killed and stopped)
 * and one in this process; without UCX: that every way in says so. */
#include "common/base/mem.h"
#include "common/net/fabric_choice.h"
#include "common/net/keys.h"
#include "common/net/server.h"
#include "tests/unit/net_test.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void refuse_all(void *context, mr_link *reply, const mr_frame *frame) {
    (void)context;
    mr_link_send_error(reply, frame->header->request, MR_ERR_UNSUPPORTED, "echoes only");
}

static mr_status open_server(mr_server **out, uint32_t threads, mr_keys *keys, mr_err *err) {
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .ucx = "127.0.0.1:0",
                                       .threads = threads,
                                       .role = MR_ROLE_WORKER,
                                       .welcome_tail = &(mr_wire_worker_info){0},
                                       .welcome_tail_bytes = sizeof(mr_wire_worker_info),
                                       .handler = refuse_all,
                                       .keys = keys};
    return mr_server_open(out, &options, err);
}

/* --- the child -------------------------------------------------------------------------------- */

static int serve_child(void) {
    mr_server *server;
    mr_err err;
    if (open_server(&server, 1, NULL, &err) != MR_OK) {
        fprintf(stderr, "child: %s\n", err.text);
        return 1;
    }
    printf("%s %s\n", mr_server_address(server), mr_server_ucx(server));
    fflush(stdout);
    char sink;
    while (read(0, &sink, 1) > 0) continue; /* until the parent goes */
    mr_server_close(server);
    return 0;
}

typedef struct {
    pid_t pid;
    int stdin_fd;
    char tcp[64], ucx[64];
} child;

static child start_child(void) {
    int to[2], from[2];
    char line[256] = {0};
    child c = {0};
    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(from), 0);
    c.pid = fork();
    if (c.pid == 0) {
        prctl(PR_SET_PDEATHSIG,
              SIGKILL); /* a test that fails leaves nobody behind, stopped or not */
        dup2(to[0], 0);
        dup2(from[1], 1);
        close(to[0]), close(to[1]), close(from[0]), close(from[1]);
        execl("/proc/self/exe", "test_ucx", "--child", (char *)NULL);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    c.stdin_fd = to[1];
    FILE *file = fdopen(from[0], "r");
    assert_non_null(fgets(line, sizeof(line), file));
    fclose(file);
    assert_int_equal(sscanf(line, "%63s %63s", c.tcp, c.ucx), 2);
    return c;
}

static void end_child(child *c, int signal_number) {
    int status;
    close(c->stdin_fd);
    if (signal_number) kill(c->pid, signal_number);
    assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
    if (!signal_number) assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* --- asking ----------------------------------------------------------------------------------- */

static mr_status open_session(mr_link *link, const mr_session_key *key, mr_err *err) {
    uint8_t welcome[256];
    size_t bytes;
    const mr_session_hello hello = {.role = MR_ROLE_CLIENT, .role_wanted = MR_ROLE_WORKER};
    mr_link_set_key(link, key);
    return mr_session_open(link, &hello, after_ms(5000), welcome, sizeof(welcome), &bytes, err);
}

static mr_link *open_link(const char *place, const mr_session_key *key) {
    mr_link *link;
    mr_err err = {{0}};
    char address[96];
    snprintf(address, sizeof(address), "ucx:%s", place);
    if (mr_link_connect(&link, address, after_ms(5000), &err) != MR_OK) fail_msg("%s", err.text);
    if (open_session(link, key, &err) != MR_OK) fail_msg("%s", err.text);
    return link;
}

static bool put_echo(mr_link *link, uint64_t request, uint32_t up, uint32_t down) {
    const mr_wire_header header = {.type = MR_FRAME_ECHO, .request = request};
    mr_wire_echo *echo = mr_link_begin(link, &header, up);
    if (!echo) return false;
    memset(echo, 0x5a, up);
    *echo = (mr_wire_echo){.reply_bytes = down};
    mr_link_end(link);
    return true;
}

static mr_status take_echo(mr_link *link, uint64_t request, uint32_t down, int64_t deadline_ns,
                           mr_err *err) {
    mr_frame frame;
    for (;;) {
        mr_status status = mr_link_flush(link, err);
        if (status != MR_OK && status != MR_ERR_AGAIN) return status;
        status = mr_link_receive(link, &frame, err);
        if (status == MR_OK) {
            assert_int_equal(frame.header->type, MR_FRAME_ECHOED);
            assert_int_equal(frame.header->request, request);
            assert_int_equal(frame.header->payload_bytes, down);
            for (uint32_t i = 0; i < down; i += 97) assert_int_equal(frame.payload[i], 0);
            return MR_OK;
        }
        if (status != MR_ERR_AGAIN) return status;
        if (mr_links_wait(&link, 1, deadline_ns) != MR_OK)
            return mr_fail(err, MR_ERR_TIMEOUT, "no answer");
    }
}

static void ask(mr_link *link, uint64_t request, uint32_t up, uint32_t down) {
    mr_err err;
    assert_true(put_echo(link, request, up, down));
    if (take_echo(link, request, down, after_ms(10000), &err) != MR_OK) fail_msg("%s", err.text);
}

static uint32_t size_of(uint64_t request) {
    static const uint32_t sizes[] = {
        8, 9, 64, 1000, 8192, 16384, 65537, 300001, MR_MAX_FRAME_BYTES};
    return sizes[request % (sizeof(sizes) / sizeof(sizes[0]))];
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_another_process(void **state) {
    (void)state;
    child c = start_child();
    mr_link *link = open_link(c.ucx, NULL);
    ask(link, 1, 8, 8);
    assert_string_equal(mr_link_transport(link), "shm");
    assert_int_equal(mr_link_fd(link), -1);
    for (uint64_t i = 0; i < 200; i++) ask(link, i, 8 + (uint32_t)i * 16, 8192);
    /* Many at once, of all sizes: more than the window, in both directions. */
    uint64_t sent = 0, received = 0;
    mr_err err;
    while (received < 60) {
        while (sent < 60 && sent < received + 20 &&
               put_echo(link, sent, size_of(sent), size_of(sent + 1)))
            sent++;
        if (take_echo(link, received, size_of(received + 1), after_ms(10000), &err) != MR_OK)
            fail_msg("%s", err.text);
        received++;
    }
    assert_true(mr_link_bytes_received(link) > 1000000);
    mr_link_close(link);
    link = open_link(c.ucx, NULL); /* and the server takes another */
    ask(link, 5, 8, 100000);
    mr_link_close(link);
    end_child(&c, 0);
}

static void test_peer_is_killed(void **state) {
    (void)state;
    mr_err err;
    mr_frame frame;
    child c = start_child();
    mr_link *link = open_link(c.ucx, NULL), *idle = open_link(c.ucx, NULL);
    ask(link, 1, 8, 8);
    end_child(&c, SIGKILL);
    const int64_t begin = mr_now_ns();
    put_echo(link, 2, 8, 8);
    assert_int_equal(take_echo(link, 2, 8, after_ms(5000), &err), MR_ERR_UNAVAILABLE);
    assert_sentence(err, "ucx:127.0.0.1");
    mr_status status;
    while ((status = mr_link_receive(idle, &frame, &err)) == MR_ERR_AGAIN)
        assert_int_equal(mr_links_wait(&idle, 1, after_ms(5000)), MR_OK);
    assert_int_equal(status, MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - begin < 3000000000);
    mr_link_close(link);
    mr_link_close(idle);
    mr_link *again;
    char address[96];
    snprintf(address, sizeof(address), "ucx:%s", c.ucx);
    assert_int_equal(mr_link_connect(&again, address, after_ms(3000), &err), MR_ERR_UNAVAILABLE);
    assert_null(again);
}

static void test_peer_is_stopped(void **state) {
    (void)state;
    mr_err err;
    child c = start_child();
    mr_link *link = open_link(c.ucx, NULL);
    ask(link, 1, 8, 8);
    int stopped;
    assert_int_equal(kill(c.pid, SIGSTOP), 0);
    assert_int_equal(waitpid(c.pid, &stopped, WUNTRACED), c.pid);
    int64_t begin = mr_now_ns();
    put_echo(link, 2, 8, 8);
    assert_int_equal(take_echo(link, 2, 8, after_ms(100), &err), MR_ERR_TIMEOUT);
    assert_true(mr_now_ns() - begin < 1500000000);
    /* Nor does it cost memory without end, */
    uint64_t queued = 0;
    while (put_echo(link, queued, MR_MAX_FRAME_BYTES, 8)) {
        queued++;
        const mr_status flushed = mr_link_flush(link, &err);
        assert_true(flushed == MR_OK || flushed == MR_ERR_AGAIN);
    }
    assert_true(queued * MR_MAX_FRAME_BYTES < 2ull * MR_MAX_LINK_BACKLOG_BYTES);
    /* a wait that costs a core, */
    struct timespec cpu[2];
    uint32_t rounds = 0; /* what UCX itself still has room for leaves */
    while (mr_links_wait(&link, 1, after_ms(100)) == MR_OK && rounds++ < 1000)
        mr_link_flush(link, &err);
    assert_true(rounds < 1000);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu[0]);
    assert_int_equal(mr_links_wait(&link, 1, after_ms(300)), MR_ERR_TIMEOUT);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu[1]);
    const int64_t used =
        (cpu[1].tv_sec - cpu[0].tv_sec) * 1000000000ll + cpu[1].tv_nsec - cpu[0].tv_nsec;
    assert_true(used < 150000000);
    begin = mr_now_ns();
    mr_link_close(link); /* or an end that waits for it. */
    assert_true(mr_now_ns() - begin < 2500000000);
    mr_link *late;
    char address[96];
    snprintf(address, sizeof(address), "ucx:%s", c.ucx);
    begin = mr_now_ns();
    assert_int_equal(mr_link_connect(&late, address, after_ms(200), &err), MR_ERR_TIMEOUT);
    assert_true(mr_now_ns() - begin < 3000000000);
    kill(c.pid, SIGCONT);
    end_child(&c, SIGKILL);
}

/* Several serving threads, keyed sessions, spinning: all in this process. */
static void test_threads_and_keys(void **state) {
    (void)state;
    mr_err err;
    mr_server *server;
    mr_session_key key;
    mr_link *links[6];
    mr_keys *keys = mr_keys_open();
    assert_int_equal(mr_key_make(&key, &err), MR_OK);
    assert_int_equal(mr_keys_add(keys, &key, 0, &err), MR_OK);
    if (open_server(&server, 3, keys, &err) != MR_OK) fail_msg("%s", err.text);
    mr_fabric_set_spin(50);
    for (int i = 0; i < 6; i++) links[i] = open_link(mr_server_ucx(server), i % 2 ? &key : NULL);
    for (uint64_t round = 0; round < 30; round++) {
        for (int i = 0; i < 6; i++) assert_true(put_echo(links[i], round, 64, size_of(round)));
        for (int i = 5; i >= 0; i--)
            if (take_echo(links[i], round, size_of(round), after_ms(10000), &err) != MR_OK)
                fail_msg("link %d: %s", i, err.text);
    }
    mr_fabric_set_spin(0);
    mr_link *tcp;
    assert_int_equal(mr_link_connect(&tcp, mr_server_address(server), after_ms(2000), &err), MR_OK);
    assert_string_equal(mr_link_transport(tcp), "tcp");
    if (open_session(tcp, &key, &err) != MR_OK) fail_msg("%s", err.text);
    ask(tcp, 1, 8, 8192); /* both fabrics beside each other in one wait */
    put_echo(tcp, 7, 8, 8);
    assert_int_equal(mr_link_flush(tcp, &err), MR_OK);
    mr_link *both[] = {links[0], tcp};
    assert_int_equal(mr_links_wait(both, 2, after_ms(3000)), MR_OK);
    if (take_echo(tcp, 7, 8, after_ms(3000), &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_links_wait(both, 2, after_ms(30)), MR_ERR_TIMEOUT);
    put_echo(links[0], 9, 8, 8);
    assert_int_equal(mr_link_flush(links[0], &err), MR_OK);
    assert_int_equal(mr_links_wait(both, 2, after_ms(3000)), MR_OK);
    if (take_echo(links[0], 9, 8, after_ms(3000), &err) != MR_OK) fail_msg("%s", err.text);
    mr_link_close(tcp);
    for (int i = 0; i < 5; i++) mr_link_close(links[i]);
    mr_server_close(server); /* with one link open: its other side learns of it */
    mr_frame frame;
    mr_status status;
    while ((status = mr_link_receive(links[5], &frame, &err)) == MR_ERR_AGAIN)
        assert_int_equal(mr_links_wait(&links[5], 1, after_ms(5000)), MR_OK);
    assert_int_equal(status, MR_ERR_UNAVAILABLE);
    mr_link_close(links[5]);
    mr_keys_close(keys);
}

static void test_refusals_arrive(void **state) {
    (void)state;
    mr_err err;
    mr_server *server;
    mr_session_key key;
    mr_link *link;
    char address[96];
    if (open_server(&server, 1, NULL, &err) != MR_OK) fail_msg("%s", err.text);
    snprintf(address, sizeof(address), "ucx:%s", mr_server_ucx(server));
    assert_int_equal(mr_key_make(&key, &err), MR_OK);
    assert_int_equal(mr_link_connect(&link, address, after_ms(3000), &err), MR_OK);
    assert_int_equal(open_session(link, &key, &err), MR_ERR_MISMATCH);
    assert_sentence(err, "no session keys");
    mr_link_close(link);
    mr_server_close(server);
}

static void test_without_ucx(void **state) {
    (void)state;
    mr_err err;
    mr_link *link;
    mr_server *server;
    assert_int_equal(mr_link_connect(&link, "ucx:127.0.0.1:9", after_ms(100), &err),
                     MR_ERR_UNSUPPORTED);
    assert_null(link);
    assert_sentence(err, "UCX");
    assert_int_equal(open_server(&server, 1, NULL, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "UCX");
}

int main(int argc, char **argv) {
    mr_err err;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_another_process), cmocka_unit_test(test_peer_is_killed),
        cmocka_unit_test(test_peer_is_stopped), cmocka_unit_test(test_threads_and_keys),
        cmocka_unit_test(test_refusals_arrive),
    };
    const struct CMUnitTest none[] = {cmocka_unit_test(test_without_ucx)};
    if (argc > 1 && !strcmp(argv[1], "--child")) return serve_child();
    if (mr_fabric_check_ucx(&err) == MR_OK) return cmocka_run_group_tests(tests, NULL, NULL);
    fprintf(stderr, "only what is said without UCX is tested: %s\n", err.text);
    return cmocka_run_group_tests(none, NULL, NULL);
}
