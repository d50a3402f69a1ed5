/* test_rpc.c - the rpc layer against itself and against peers that hang, leave, lie or are not who
 * they say: real sockets, real certificates, a real stopped process. */
#include "tests/unit/rpc_test.h"
#include "common/net/rpc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/prctl.h>

#ifdef MR_TEST_HAVE_GRPC

/* ---- the server of most tests ---- */

typedef struct {
    mr_rpc_server *server;
    char target[32];
    mr_rpc_call *held; /* by "hold", for the test to end */
    atomic_int holding, left, sent, stopped;
    char peer_name[64];
    bool peer_is_verified;
} fixture;

static void echo(void *context, mr_rpc_call *call, const uint8_t *request, size_t bytes) {
    (void)context;
    mr_rpc_answer(call, request, bytes);
}

static void refuse_it(void *context, mr_rpc_call *call, const uint8_t *request, size_t bytes) {
    (void)context;
    mr_err err;
    assert_true(bytes == 1);
    mr_rpc_finish(call, mr_fail(&err, (mr_status) - (int)request[0], "a sentence of its own"),
                  &err);
}

static void note_left(void *context) {
    fixture *f = context;
    atomic_fetch_add(&f->left, 1);
}

static void hold(void *context, mr_rpc_call *call, const uint8_t *request, size_t bytes) {
    fixture *f = context;
    (void)request, (void)bytes;
    f->held = call;
    mr_rpc_call_watch(call, note_left, f);
    atomic_fetch_add(&f->holding, 1);
}

/* Sends numbered messages of the asked size, as many as asked, from a thread of its own. */
typedef struct {
    fixture *f;
    mr_rpc_call *call;
    uint32_t count, bytes;
} stream_job;

static void *send_stream(void *context) {
    stream_job *job = context;
    uint8_t *data = calloc(1, job->bytes + 4);
    mr_status status = MR_OK;
    for (uint32_t i = 0; i < job->count && status == MR_OK; i++) {
        memcpy(data, &i, 4);
        status = mr_rpc_send(job->call, data, job->bytes, after_ms(8000), NULL);
        if (status == MR_OK) atomic_fetch_add(&job->f->sent, 1);
    }
    mr_err err = {{0}};
    if (status != MR_OK) mr_fail(&err, status, "stopped early");
    mr_rpc_finish(job->call, status, &err);
    atomic_store(&job->f->stopped, status == MR_OK ? 1 : 2);
    free(data);
    free(job);
    return NULL;
}

static void stream(void *context, mr_rpc_call *call, const uint8_t *request, size_t bytes) {
    stream_job *job = calloc(1, sizeof(*job));
    pthread_t thread;
    assert_true(bytes == 8);
    memcpy(&job->count, request, 4);
    memcpy(&job->bytes, request + 4, 4);
    job->f = context;
    job->call = call;
    assert_int_equal(pthread_create(&thread, NULL, send_stream, job), 0);
    pthread_detach(thread);
}

static void who(void *context, mr_rpc_call *call, const uint8_t *request, size_t bytes) {
    fixture *f = context;
    const mr_rpc_peer peer = mr_rpc_call_peer(call);
    (void)request, (void)bytes;
    f->peer_is_verified = peer.is_verified;
    snprintf(f->peer_name, sizeof(f->peer_name), "%s", peer.common_name);
    char *san = mr_format("%s.test", peer.common_name);
    const bool has = mr_rpc_peer_has_name(&peer, san) && mr_rpc_peer_has_name(&peer, "127.0.0.1");
    free(san);
    mr_rpc_answer(call, has ? "names" : "none", has ? 5 : 4);
}

static mr_status serve(fixture *f, const char *address, mr_rpc_security security, uint32_t calls,
                       mr_err *err) {
    const mr_rpc_method methods[] = {
        {"/test.T/Echo", false, echo, f}, {"/test.T/Refuse", false, refuse_it, f},
        {"/test.T/Hold", false, hold, f}, {"/test.T/Stream", true, stream, f},
        {"/test.T/Who", false, who, f},
    };
    const mr_rpc_server_options options = {.address = address,
                                           .security = security,
                                           .methods = methods,
                                           .method_count = 5,
                                           .message_bytes = 1 << 20,
                                           .calls = calls,
                                           .keepalive_ms = 1000};
    const mr_status status = mr_rpc_server_open(&f->server, &options, err);
    if (status == MR_OK)
        snprintf(f->target, sizeof(f->target), "127.0.0.1:%d", mr_rpc_server_port(f->server));
    return status;
}

static const mr_rpc_security plain = {.is_plain = true};

static mr_rpc_channel *channel_to(const char *targets, mr_rpc_security security) {
    mr_err err = {{0}};
    mr_rpc_channel *channel;
    const mr_rpc_channel_options options = {.targets = targets,
                                            .security = security,
                                            .message_bytes = 1 << 20,
                                            .keepalive_ms = 1000,
                                            .connect_ms = 700};
    check_ok(mr_rpc_channel_open(&channel, &options, &err));
    return channel;
}

static fixture *begin(mr_rpc_channel **channel) {
    fixture *f = calloc(1, sizeof(*f));
    mr_err err = {{0}};
    check_ok(serve(f, "127.0.0.1:0", plain, 0, &err));
    *channel = channel_to(f->target, plain);
    return f;
}
static void end(fixture *f, mr_rpc_channel *channel) {
    mr_rpc_channel_close(channel);
    mr_rpc_server_close(f->server);
    free(f);
}

static mr_status ask_echo(mr_rpc_channel *channel, int64_t ms, mr_err *err) {
    mr_rpc_reply reply;
    const mr_status status =
        mr_rpc_ask(channel, "/test.T/Echo", "hello", 5, after_ms(ms), &reply, err);
    if (status == MR_OK) {
        assert_int_equal(reply.bytes, 5);
        assert_memory_equal(reply.data, "hello", 5);
    }
    free(reply.data);
    return status;
}

/* ---- calls ---- */

static void unary_calls_answer(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    mr_err err = {{0}};
    mr_rpc_reply reply;

    for (int i = 0; i < 50; i++) check_ok(ask_echo(channel, 3000, &err));
    check_ok(mr_rpc_ask(channel, "/test.T/Echo", NULL, 0, after_ms(3000), &reply, &err));
    assert_int_equal(reply.bytes, 0);
    free(reply.data);
    const size_t large = 1000000;
    uint8_t *data = malloc(large);
    for (size_t i = 0; i < large; i++) data[i] = (uint8_t)(i * 31 >> 3);
    check_ok(mr_rpc_ask(channel, "/test.T/Echo", data, large, after_ms(3000), &reply, &err));
    assert_int_equal(reply.bytes, large);
    assert_memory_equal(reply.data, data, large);
    assert_true(reply.was_sent);
    free(reply.data);
    free(data);
    end(f, channel);
}

static void every_status_crosses_with_its_sentence(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    for (int s = 1; s <= 13; s++) {
        mr_err err = {{0}};
        const uint8_t number = (uint8_t)s;
        mr_rpc_reply reply;
        const mr_status status =
            mr_rpc_ask(channel, "/test.T/Refuse", &number, 1, after_ms(3000), &reply, &err);
        assert_int_equal(status, -s);
        assert_string_equal(err.text, "a sentence of its own");
        assert_null(reply.data);
        assert_int_not_equal(reply.code, 0);
    }
    mr_err err = {{0}};
    assert_int_equal(mr_rpc_ask(channel, "/test.T/Nothing", "", 0, after_ms(3000), NULL, &err),
                     MR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "no such method"));
    end(f, channel);
}

static void hostile_sizes_are_refused(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    mr_err err = {{0}};
    const size_t large = (1 << 20) + 1;
    uint8_t *data = calloc(1, large);
    /* our own side refuses before anything is sent */
    assert_int_equal(mr_rpc_ask(channel, "/test.T/Echo", data, large, after_ms(3000), NULL, &err),
                     MR_ERR_LIMIT);
    /* a client with other limits is refused by the server */
    mr_rpc_channel *wide;
    const mr_rpc_channel_options options = {
        .targets = f->target, .security = plain, .message_bytes = 8 << 20};
    check_ok(mr_rpc_channel_open(&wide, &options, &err));
    assert_int_equal(mr_rpc_ask(wide, "/test.T/Echo", data, large, after_ms(3000), NULL, &err),
                     MR_ERR_LIMIT);
    check_ok(ask_echo(wide, 3000, &err)); /* others are unaffected */
    /* headers without end, frames of other protocols, a length prefix of 4 GiB */
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    static const struct {
        const char *data;
        size_t bytes;
    } junk[] = {{"GET / HTTP/1.1\r\n\r\n", 18},
                {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x01\x04\0\0\0\1", 33},
                {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 28},
                {preface, sizeof(preface) - 1}};
    for (size_t i = 0; i < sizeof(junk) / sizeof(junk[0]); i++) {
        const int fd = connect_to(mr_rpc_server_port(f->server));
        assert_true(fd >= 0);
        assert_true(write(fd, junk[i].data, junk[i].bytes) > 0);
        for (int k = 0; k < 64; k++)
            if (send(fd, data, 16384, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
        close(fd);
    }
    check_ok(ask_echo(channel, 3000, &err));
    free(data);
    mr_rpc_channel_close(wide);
    end(f, channel);
}

static void deadlines_hold(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    mr_err err = {{0}};
    const int64_t before = mr_now_ns();
    assert_int_equal(mr_rpc_ask(channel, "/test.T/Hold", "", 0, after_ms(300), NULL, &err),
                     MR_ERR_TIMEOUT);
    assert_true(mr_now_ns() - before < 1500 * 1000000ll);
    assert_true(mr_now_ns() - before >= 290 * 1000000ll);
    check_soon(atomic_load(&f->left) == 1, 2000); /* the server hears of it */
    assert_true(mr_rpc_call_is_cancelled(f->held));
    mr_rpc_answer(f->held, "late", 4);
    assert_int_equal(mr_rpc_ask(channel, "/test.T/Echo", "", 0, mr_now_ns() - 1, NULL, &err),
                     MR_ERR_TIMEOUT);
    check_ok(ask_echo(channel, 3000, &err));
    end(f, channel);
}

typedef struct {
    mr_rpc_channel *channel;
    mr_status status;
    mr_err err;
} asker;
static void *ask_hold(void *context) {
    asker *a = context;
    a->status = mr_rpc_ask(a->channel, "/test.T/Hold", "", 0, after_ms(8000), NULL, &a->err);
    return NULL;
}

static void a_cancelled_channel_lets_everybody_go(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    asker a = {.channel = channel};
    pthread_t thread;
    mr_err err = {{0}};
    assert_int_equal(pthread_create(&thread, NULL, ask_hold, &a), 0);
    check_soon(atomic_load(&f->holding) == 1, 3000);
    mr_rpc_channel_cancel(channel);
    pthread_join(thread, NULL);
    assert_int_equal(a.status, MR_ERR_CANCELLED);
    assert_int_equal(ask_echo(channel, 1000, &err), MR_ERR_CANCELLED);
    check_soon(atomic_load(&f->left) == 1, 2000);
    mr_rpc_finish(f->held, MR_ERR_CANCELLED, NULL);
    end(f, channel);
}

static void a_server_closes_over_calls_still_held(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    asker a = {.channel = channel};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, ask_hold, &a), 0);
    check_soon(atomic_load(&f->holding) == 1, 3000);
    mr_rpc_server_close(f->server);
    pthread_join(thread, NULL);
    assert_true(a.status == MR_ERR_CANCELLED || a.status == MR_ERR_UNAVAILABLE);
    assert_true(mr_rpc_call_is_cancelled(f->held));
    assert_int_equal(mr_rpc_send(f->held, "x", 1, 0, NULL), MR_ERR_CANCELLED);
    mr_rpc_answer(f->held, "too late", 8); /* frees what is left of the server */
    mr_rpc_channel_close(channel);
    free(f);
}

static void too_many_calls_are_refused(void **state) {
    (void)state;
    fixture *f = calloc(1, sizeof(*f));
    mr_err err = {{0}};
    pthread_t thread;
    check_ok(serve(f, "127.0.0.1:0", plain, 1, &err));
    mr_rpc_channel *one = channel_to(f->target, plain), *two = channel_to(f->target, plain);
    asker a = {.channel = one};
    assert_int_equal(pthread_create(&thread, NULL, ask_hold, &a), 0);
    check_soon(atomic_load(&f->holding) == 1, 3000);
    check_soon(ask_echo(two, 3000, &err) == MR_ERR_LIMIT, 6000); /* a busy machine connects late */
    mr_rpc_answer(f->held, "", 0);
    pthread_join(thread, NULL);
    assert_int_equal(a.status, MR_OK);
    check_soon(ask_echo(two, 3000, &err) == MR_OK, 3000); /* counted until the last tag is back */
    mr_rpc_channel_close(one);
    end(f, two);
}

/* ---- streams ---- */

static mr_rpc_stream *ask_stream(mr_rpc_channel *channel, uint32_t count, uint32_t bytes) {
    mr_rpc_stream *s;
    mr_err err = {{0}};
    const uint32_t request[2] = {count, bytes};
    check_ok(mr_rpc_stream_open(&s, channel, "/test.T/Stream", MR_RPC_NO_DEADLINE, &err));
    check_ok(mr_rpc_stream_write(s, request, 8, after_ms(3000), &err));
    check_ok(mr_rpc_stream_end_writes(s, after_ms(3000), &err));
    return s;
}

static void streams_arrive_in_order_and_end(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    mr_err err = {{0}};
    mr_rpc_stream *s = ask_stream(channel, 5000, 100);
    uint8_t *data;
    size_t bytes;
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t number;
        check_ok(mr_rpc_stream_read(s, &data, &bytes, after_ms(3000), NULL, &err));
        assert_non_null(data);
        assert_int_equal(bytes, 100);
        memcpy(&number, data, 4);
        assert_int_equal(number, i);
        free(data);
    }
    for (int twice = 0; twice < 2; twice++) {
        check_ok(mr_rpc_stream_read(s, &data, &bytes, after_ms(3000), NULL, &err));
        assert_null(data);
    }
    mr_rpc_stream_close(s);
    check_soon(atomic_load(&f->stopped) == 1, 2000);
    end(f, channel);
}

static void a_slow_reader_stops_the_sender_not_the_memory(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    mr_err err = {{0}};
    mr_rpc_stream *s = ask_stream(channel, 400, 100000); /* 40 MB in all */
    check_soon(atomic_load(&f->sent) > 0, 2000);
    sleep_ms(500);
    const int sent = atomic_load(&f->sent);
    assert_true(sent < 200); /* the backlog and the windows of the connection, no more */
    uint8_t *data;
    size_t bytes;
    int seen = 0;
    for (;; seen++) {
        check_ok(mr_rpc_stream_read(s, &data, &bytes, after_ms(5000), NULL, &err));
        if (data == NULL) break;
        free(data);
    }
    assert_int_equal(seen, 400);
    mr_rpc_stream_close(s);
    check_soon(atomic_load(&f->stopped) == 1, 2000);
    end(f, channel);
}

static void *cancel_later(void *context) {
    sleep_ms(200);
    mr_rpc_stream_cancel(context);
    return NULL;
}

static void a_stream_is_cancelled_from_another_thread(void **state) {
    (void)state;
    mr_rpc_channel *channel;
    fixture *f = begin(&channel);
    mr_err err = {{0}};
    pthread_t thread;
    uint8_t *data;
    size_t bytes;
    mr_rpc_stream *s;
    int code;
    check_ok(mr_rpc_stream_open(&s, channel, "/test.T/Hold", MR_RPC_NO_DEADLINE, &err));
    check_ok(mr_rpc_stream_write(s, "x", 1, after_ms(3000), &err));
    assert_int_equal(mr_rpc_stream_read(s, &data, &bytes, after_ms(100), NULL, &err),
                     MR_ERR_TIMEOUT); /* and it goes on */
    assert_int_equal(pthread_create(&thread, NULL, cancel_later, s), 0);
    const int64_t before = mr_now_ns();
    assert_int_equal(mr_rpc_stream_read(s, &data, &bytes, after_ms(5000), &code, &err),
                     MR_ERR_CANCELLED);
    assert_true(mr_now_ns() - before < 2000 * 1000000ll);
    assert_int_equal(code, 1);
    pthread_join(thread, NULL);
    mr_rpc_stream_close(s);
    check_soon(atomic_load(&f->left) == 1, 2000);
    mr_rpc_finish(f->held, MR_ERR_CANCELLED, NULL);
    /* a sender learns it as well */
    s = ask_stream(channel, 1000, 100000);
    check_ok(mr_rpc_stream_read(s, &data, &bytes, after_ms(3000), NULL, &err));
    free(data);
    mr_rpc_stream_close(s);
    check_soon(atomic_load(&f->stopped) == 2, 3000);
    end(f, channel);
}

/* ---- peers that go ---- */

/* The test itself, started again as a plain server on a port. */
static pid_t start_child(int port) {
    char number[16];
    snprintf(number, sizeof(number), "%d", port);
    const pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "test_rpc", "serve", number, (char *)NULL);
        _exit(127);
    }
    assert_true(child > 0);
    return child;
}

static void hung_and_killed_peers_are_left(void **state) {
    (void)state;
    mr_err err = {{0}};
    const int ports[2] = {free_port(), free_port()};
    pid_t children[2] = {start_child(ports[0]), start_child(ports[1])};
    char targets[64];
    snprintf(targets, sizeof(targets), "127.0.0.1:%d,127.0.0.1:%d", ports[0], ports[1]);
    mr_rpc_channel *channel = channel_to(targets, plain);
    check_soon(ask_echo(channel, 1000, &err) == MR_OK, 5000);
    while (mr_rpc_channel_target(channel) != 0) mr_rpc_channel_rotate(channel);
    check_soon(ask_echo(channel, 1000, &err) == MR_OK, 5000);
    assert_int_equal(mr_rpc_channel_target(channel), 0);

    /* stopped while connected: the call that is under way is lost, the next goes elsewhere */
    stop_child(children[0]);
    int64_t before = mr_now_ns();
    const mr_status status = ask_echo(channel, 800, &err);
    assert_true(status == MR_ERR_TIMEOUT || status == MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - before < 1800 * 1000000ll);
    before = mr_now_ns();
    check_ok(ask_echo(channel, 3000, &err));
    assert_int_equal(mr_rpc_channel_target(channel), 1);
    /* stopped before connecting: the handshake never comes, the request was never sent */
    mr_rpc_channel *fresh = channel_to(targets, plain);
    check_ok(ask_echo(fresh, 4000, &err));
    assert_true(mr_now_ns() - before < 3500 * 1000000ll);
    mr_rpc_channel_close(fresh);
    kill(children[0], SIGCONT);

    /* killed: nobody listens, the request goes to the other one unharmed */
    end_child(&children[1]);
    check_soon(ask_echo(channel, 3000, &err) == MR_OK, 5000);
    end_child(&children[0]);
    before = mr_now_ns();
    assert_int_equal(ask_echo(channel, 5000, &err), MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - before < 3000 * 1000000ll);
    mr_rpc_channel_close(channel);
}

static void a_stream_from_a_hung_server_ends_by_keepalive(void **state) {
    (void)state;
    mr_err err = {{0}};
    const int port = free_port();
    pid_t child = start_child(port);
    char target[32];
    uint8_t *data;
    size_t bytes;
    mr_rpc_stream *s;
    snprintf(target, sizeof(target), "127.0.0.1:%d", port);
    mr_rpc_channel *channel = channel_to(target, plain);
    check_soon(ask_echo(channel, 1000, &err) == MR_OK, 5000);
    check_ok(mr_rpc_stream_open(&s, channel, "/test.T/Hold", MR_RPC_NO_DEADLINE, &err));
    check_ok(mr_rpc_stream_write(s, "x", 1, after_ms(2000), &err));
    stop_child(child);
    assert_int_equal(mr_rpc_stream_read(s, &data, &bytes, after_ms(6000), NULL, &err),
                     MR_ERR_UNAVAILABLE);
    mr_rpc_stream_close(s);
    end_child(&child);
    mr_rpc_channel_close(channel);
}

/* ---- who is who ---- */

typedef struct {
    char ca[128], cert[128], key[128];
} paths;

static mr_rpc_security security_of(paths *p, const char *folder, const char *ca, const char *name) {
    snprintf(p->ca, sizeof(p->ca), "%s/%s.crt", folder, ca);
    snprintf(p->cert, sizeof(p->cert), "%s/%s.crt", folder, name);
    snprintf(p->key, sizeof(p->key), "%s/%s.key", folder, name);
    return (mr_rpc_security){.ca_file = p->ca, .cert_file = p->cert, .key_file = p->key};
}

static void check_refused(const char *target, mr_rpc_security security, const char *why) {
    mr_err err = {{0}};
    mr_rpc_channel *channel = channel_to(target, security);
    const mr_status status = ask_echo(channel, 3000, &err);
    if (status != MR_ERR_UNAVAILABLE) fail_msg("%s: %s: %s", why, mr_status_name(status), err.text);
    mr_rpc_channel_close(channel);
}

static void only_known_certificates_are_served(void **state) {
    (void)state;
    if (!have_program("openssl")) {
        print_message("skipped: no openssl command to make certificates with\n");
        skip();
    }
    char *folder = test_folder();
    paths p[4];
    mr_err err = {{0}};
    fixture *f = calloc(1, sizeof(*f));
    make_authority(folder, "ours");
    make_authority(folder, "theirs");
    make_certificate(folder, "server", "ours");
    make_certificate(folder, "memshard-3", "ours");
    make_certificate(folder, "stranger", "theirs");
    check_ok(serve(f, "127.0.0.1:0", security_of(&p[0], folder, "ours", "server"), 0, &err));

    const mr_rpc_security good = security_of(&p[1], folder, "ours", "memshard-3");
    mr_rpc_channel *channel = channel_to(f->target, good);
    mr_rpc_reply reply;
    check_ok(mr_rpc_ask(channel, "/test.T/Who", "", 0, after_ms(4000), &reply, &err));
    assert_memory_equal(reply.data, "names", 5);
    free(reply.data);
    assert_true(f->peer_is_verified);
    assert_string_equal(f->peer_name, "memshard-3");

    check_refused(f->target, security_of(&p[2], folder, "ours", "stranger"), "signed by others");
    check_refused(f->target, (mr_rpc_security){.ca_file = p[0].ca}, "no client certificate");
    check_refused(f->target, security_of(&p[2], folder, "theirs", "memshard-3"), "wrong CA");
    check_refused(f->target, plain, "plain to a TLS server");
    mr_rpc_channel *other;
    const mr_rpc_channel_options options = {
        .targets = f->target, .security = good, .server_name = "coordinator-1.test"};
    check_ok(mr_rpc_channel_open(&other, &options, &err));
    assert_int_equal(ask_echo(other, 3000, &err), MR_ERR_UNAVAILABLE); /* not the server meant */
    mr_rpc_channel_close(other);
    check_soon(ask_echo(channel, 3000, &err) == MR_OK, 6000);
    end(f, channel);

    /* files that cannot be right are refused at once, each with its own sentence */
    fixture bad = {0};
    mr_rpc_security s = security_of(&p[3], folder, "ours", "server");
    s.key_file = p[1].key;
    assert_int_equal(serve(&bad, "127.0.0.1:0", s, 0, &err), MR_ERR_MISMATCH);
    assert_non_null(strstr(err.text, "does not belong"));
    s = security_of(&p[3], folder, "ours", "absent");
    assert_int_equal(serve(&bad, "127.0.0.1:0", s, 0, &err), MR_ERR_IO);
    assert_int_equal(serve(&bad, "127.0.0.1:0", (mr_rpc_security){0}, 0, &err), MR_ERR_ARGUMENT);
    s = security_of(&p[3], folder, "server", "server");
    s.is_plain = true;
    assert_int_equal(serve(&bad, "127.0.0.1:0", s, 0, &err), MR_ERR_ARGUMENT);
    test_folder_remove(folder);
}

static void renewed_certificates_are_read_again(void **state) {
    (void)state;
    if (!have_program("openssl")) {
        print_message("skipped: no openssl command to make certificates with\n");
        skip();
    }
    char *folder = test_folder();
    paths p[3];
    mr_err err = {{0}};
    fixture *f = calloc(1, sizeof(*f));
    make_authority(folder, "ours");
    make_authority(folder, "next");
    make_certificate(folder, "server", "ours");
    make_certificate(folder, "client", "ours");
    make_certificate(folder, "former", "ours");
    check_ok(serve(f, "127.0.0.1:0", security_of(&p[0], folder, "ours", "server"), 0, &err));
    const mr_rpc_security security = security_of(&p[1], folder, "ours", "client");
    mr_rpc_channel *old = channel_to(f->target, security);
    check_ok(ask_echo(old, 3000, &err));

    /* a broken renewal changes nothing */
    run("cp server.crt server.good && echo junk > server.crt", folder, "", "");
    mr_rpc_channel *channel = channel_to(f->target, security);
    check_ok(ask_echo(channel, 3000, &err));
    mr_rpc_channel_close(channel);

    /* now everything comes from the next authority, under the same file names */
    make_certificate(folder, "server", "next");
    make_certificate(folder, "client", "next");
    run("cp next.crt ours.crt.new && mv ours.crt.new ours.crt", folder, "", "");
    channel = channel_to(f->target, security);
    check_ok(ask_echo(channel, 3000, &err)); /* a new client, the server's new certificate */
    mr_rpc_channel_close(channel);
    sleep_ms(1100); /* the old channel looks once a second */
    check_soon(ask_echo(old, 3000, &err) == MR_OK, 4000);
    check_refused(f->target, security_of(&p[2], folder, "ours", "former"), "of the old authority");
    end(f, old);
    test_folder_remove(folder);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    mr_err err = {{0}};
    fixture f = {0}, second = {0};
    mr_rpc_channel *channel;
    check_ok(serve(&f, "127.0.0.1:0", plain, 0, &err));
    assert_int_equal(serve(&second, f.target, plain, 0, &err), MR_ERR_IO); /* the port is taken */
    assert_non_null(strstr(err.text, f.target));
    static const char *const targets[] = {
        "",   ",",          "host",  "host:",   "host:0",        "host:70000",
        ":1", "dns:///x:1", "a b:1", "host:+1", "host:1,,host:2"};
    for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
        const mr_rpc_channel_options options = {.targets = targets[i], .security = plain};
        if (mr_rpc_channel_open(&channel, &options, &err) != MR_ERR_ARGUMENT)
            fail_msg("accepted: \"%s\"", targets[i]);
        assert_null(channel);
    }
    mr_rpc_server_close(f.server);
}

static int serve_for_ever(const char *port) {
    fixture f = {0};
    mr_err err = {{0}};
    char address[32];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(address, sizeof(address), "127.0.0.1:%s", port);
    if (serve(&f, address, plain, 0, &err) != MR_OK) return 1;
    for (int s = 0; s < 60; s++) sleep_ms(1000); /* whatever happens to the test */
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0) return serve_for_ever(argv[2]);
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_calls_answer),
        cmocka_unit_test(every_status_crosses_with_its_sentence),
        cmocka_unit_test(hostile_sizes_are_refused),
        cmocka_unit_test(deadlines_hold),
        cmocka_unit_test(a_cancelled_channel_lets_everybody_go),
        cmocka_unit_test(a_server_closes_over_calls_still_held),
        cmocka_unit_test(too_many_calls_are_refused),
        cmocka_unit_test(streams_arrive_in_order_and_end),
        cmocka_unit_test(a_slow_reader_stops_the_sender_not_the_memory),
        cmocka_unit_test(a_stream_is_cancelled_from_another_thread),
        cmocka_unit_test(hung_and_killed_peers_are_left),
        cmocka_unit_test(a_stream_from_a_hung_server_ends_by_keepalive),
        cmocka_unit_test(only_known_certificates_are_served),
        cmocka_unit_test(renewed_certificates_are_read_again),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

static void a_build_without_grpc_says_so(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_rpc_server *server;
    mr_rpc_channel *channel;
    const mr_rpc_server_options serve = {.address = "127.0.0.1:0", .security = {.is_plain = true}};
    const mr_rpc_channel_options open = {.targets = "127.0.0.1:1", .security = {.is_plain = true}};
    assert_int_equal(mr_rpc_server_open(&server, &serve, &err), MR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "gRPC"));
    assert_int_equal(mr_rpc_channel_open(&channel, &open, &err), MR_ERR_UNSUPPORTED);
    assert_null(channel);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_build_without_grpc_says_so)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#endif
