/* Goal: hostile or clumsy HTTP gets a status code, never a crash, a hang or a held server; good
 * requests get what OpenAI's clients expect.
 * Method: the parser over tables; then a live server over the fake worker, spoken to through raw
 * sockets with receive timeouts. The long list of hostile inputs is tests/clients/http_hostile.py.
 */
#include "common/base/json.h"
#include "coordinator/front.h"
#include "tests/unit/fake_worker.h"
#include "tests/unit/served_for_test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

/* --- the parser ------------------------------------------------------------------------------- */

static int head_code(const char *data, mr_http_head *head) {
    size_t used;
    const char *reason;
    return mr_http_parse_head(head, data, strlen(data), &used, &reason);
}

static void test_heads(void **state) {
    (void)state;
    static const struct {
        const char *data;
        int code;
    } rows[] = {
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200},
        {"\r\nGET / HTTP/1.1\r\n\r\n", 200},
        {"GET http://other.example/health HTTP/1.1\r\n\r\n", 200},
        {"GET / HTTP/1.1\r\nHost: x\r\n", 0},
        {"GET", 0},
        {"", 0},
        {"GET /\r\n\r\n", 400},
        {"GET / HTTP/2.0\r\n\r\n", 505},
        {"GET / HTTP/1.1 \r\n\r\n", 400},
        {"GET  / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\nHost: x\n\n", 400},
        {"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n: x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nNoColon\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nA: b\x01\r\n\r\n", 400},
        {"GET /%00 HTTP/1.1\r\n\r\n", 400},
        {"GET /%zz HTTP/1.1\r\n\r\n", 400},
        {"GET /% HTTP/1.1\r\n\r\n", 400},
        {"GET x HTTP/1.1\r\n\r\n", 400},
        {"GET /a#b HTTP/1.1\r\n\r\n", 400},
        {"\x16\x03\x01\x02", 400}, /* TLS */
        {"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 400},
        {"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nContent-Length: 0x10\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413},
        {"POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n", 200}, /* refused later */
        {"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 501},
        {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
         501},
        {"POST / HTTP/1.1\r\nContent-Encoding: gzip\r\n\r\n", 415},
        {"POST / HTTP/1.1\r\nExpect: the-worst\r\n\r\n", 417},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        mr_http_head head;
        const int code = head_code(rows[i].data, &head);
        if (code != rows[i].code) fail_msg("%s: %d, expected %d", rows[i].data, code, rows[i].code);
    }
    mr_http_head head;
    assert_int_equal(head_code("GET http://h/v1/%6dodels?x=%00 HTTP/1.1\r\n\r\n", &head), 200);
    assert_string_equal(head.path, "/v1/models");
    assert_int_equal(head_code("POST / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", &head), 200);
    assert_false(head.keeps_alive);
    assert_int_equal(head_code("POST / HTTP/1.0\r\nContent-Type: text/plain\r\n\r\n", &head), 200);
    assert_false(head.keeps_alive || head.is_json);
}

static void test_heads_have_bounds(void **state) {
    (void)state;
    mr_http_head head;
    mr_text text = {0};
    mr_text_add_string(&text, "GET /");
    for (int i = 0; i < 2000; i++) mr_text_add_string(&text, "a");
    mr_text_add_string(&text, " HTTP/1.1\r\n\r\n");
    assert_int_equal(head_code(text.data, &head), 414);
    mr_text_clear(&text);
    mr_text_add_string(&text, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < 200; i++) mr_text_format(&text, "A%d: b\r\n", i);
    mr_text_add_string(&text, "\r\n");
    assert_int_equal(head_code(text.data, &head), 431);
    mr_text_clear(&text);
    mr_text_add_string(&text, "GET / HTTP/1.1\r\nA: ");
    for (int i = 0; i < 20000; i++) mr_text_add_string(&text, "a");
    assert_int_equal(head_code(text.data, &head), 431);
    mr_text_free(&text);
}

/* Decodes a chunked body fed `step` bytes at a time; -1: not whole, -2: bad. */
static int chunked(const char *data, size_t step, char *out) {
    mr_http_chunks chunks = {0};
    size_t used = 0;
    const size_t bytes = strlen(data);
    for (size_t at = 0; at < bytes;) {
        const char *piece;
        size_t piece_bytes, have = bytes - at < step ? bytes - at : step;
        at += mr_http_read_chunk(&chunks, data + at, have, &piece, &piece_bytes);
        memcpy(out + used, piece, piece_bytes);
        used += piece_bytes;
        if (chunks.state == MR_CHUNK_BAD) return -2;
        if (chunks.state == MR_CHUNK_DONE) return (int)used;
    }
    return -1;
}

static void test_chunks(void **state) {
    (void)state;
    static const struct {
        const char *data;
        int wanted;
    } rows[] = {
        {"3\r\nabc\r\n0\r\n\r\n", 3},
        {"3;name=\"v\"\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n", 5},
        {"00000003\r\nabc\r\n000\r\n\r\n", 3},
        {"0\r\n\r\n", 0},
        {"3\r\nab", -1},
        {"000000003\r\nabc\r\n0\r\n\r\n", -2},
        {"FFFFFFFFFFFFFFFF\r\n", -2},
        {"-1\r\n", -2},
        {"\r\n", -2},
        {"x\r\n", -2},
        {"3\nabc\r\n", -2},
        {"3\r\nabcd\r\n", -2},
        {"3 \r\nabc\r\n", -2},
        {"0\r\nA\n", -2},
    };
    char out[64];
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (size_t step = 1; step < 8; step++)
            assert_int_equal(chunked(rows[i].data, step, out), rows[i].wanted);
    assert_int_equal(chunked("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 2, out), 5);
    assert_memory_equal(out, "abcde", 5);
}

/* --- a live server ---------------------------------------------------------------------------- */

typedef struct {
    fake_worker *worker;
    mr_served *served;
    mr_core *core;
    mr_front *front;
    pthread_t thread;
    uint16_t port;
} server;

static void *run_front(void *context) {
    mr_front_run(context);
    return NULL;
}

static void start(server *s, const mr_http_options *http) {
    mr_err err = {{0}};
    s->served = served_for_test(FAKE_CONTEXT);
    s->worker = fake_worker_new();
    const mr_core_options core = {
        .link = fake_worker_start(s->worker),
        .tokenizer = s->served->tokenizer,
        .queue_max = 8,
        .lost = MR_LOST_FAIL,
    };
    assert_int_equal(mr_core_open(&s->core, &core, &err), MR_OK);
    mr_front_options front = {.served = s->served, .core = s->core, .drain_timeout_ms = 3000};
    if (http) front.http = *http;
    if (mr_front_open(&s->front, &front, &err) != MR_OK) fail_msg("%s", err.text);
    const char *colon = strrchr(mr_front_address(s->front), ':');
    s->port = (uint16_t)atoi(colon + 1);
    assert_int_equal(pthread_create(&s->thread, NULL, run_front, s->front), 0);
}

static void end(server *s) {
    const int64_t from = mr_now_ns();
    mr_front_stop(s->front);
    pthread_join(s->thread, NULL);
    assert_true(mr_now_ns() - from < 5000000000ll);
    mr_core_close(s->core);
    mr_front_close(s->front);
    mr_served_close(s->served);
    assert_int_equal(s->worker->wrong, 0);
    fake_worker_stop(s->worker);
}

static int dial(const server *s) {
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons(s->port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct timeval wait = {.tv_sec = 8};
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static void put(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        const ssize_t sent = send(fd, data, bytes, MSG_NOSIGNAL);
        if (sent <= 0) return;
        data += sent;
        bytes -= (size_t)sent;
    }
}

/* All that comes until the server closes. */
static void read_all(int fd, mr_text *out) {
    char piece[4096];
    ssize_t got;
    while ((got = recv(fd, piece, sizeof(piece), 0)) > 0) mr_text_add(out, piece, (size_t)got);
    if (got < 0 && errno != ECONNRESET)
        fail_msg("no end of the answer (%s): %s", strerror(errno), mr_text_string(out));
    close(fd);
}

static mr_text ask(const server *s, const char *request) {
    mr_text out = {0};
    const int fd = dial(s);
    put(fd, request, strlen(request));
    read_all(fd, &out);
    return out;
}

static mr_text post(const server *s, const char *path, const char *body) {
    char *request = mr_format("POST %s HTTP/1.1\r\nConnection: close\r\nContent-Type: "
                              "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                              path, strlen(body), body);
    const mr_text out = ask(s, request);
    free(request);
    return out;
}

static void expect(mr_text answer, int code, const char *part) {
    char status[32];
    snprintf(status, sizeof(status), "HTTP/1.1 %d ", code);
    if (strncmp(mr_text_string(&answer), status, strlen(status)) != 0 ||
        !strstr(mr_text_string(&answer), part))
        fail_msg("expected %d and '%s': %.600s", code, part, mr_text_string(&answer));
    mr_text_free(&answer);
}

#define GET(path) "GET " path " HTTP/1.1\r\nConnection: close\r\n\r\n"

static void test_routes(void **state) {
    (void)state;
    server s;
    start(&s, NULL);
    expect(ask(&s, GET("/")), 200, "/v1/chat/completions");
    expect(ask(&s, GET("/health")), 200, "\"ok\"");
    expect(ask(&s, "HEAD /health HTTP/1.1\r\nConnection: close\r\n\r\n"), 200, "Content-Length: ");
    expect(ask(&s, GET("/metrics")), 200, "memrack_kv_blocks 64");
    expect(ask(&s, GET("/v1/models")), 200, "\"test-model\"");
    expect(ask(&s, GET("/v1/models/test-model")), 200, "\"test-model\"");
    expect(ask(&s, GET("/v1/models/other")), 404, "model_not_found");
    expect(ask(&s, GET("/../etc/passwd")), 404, "there is nothing at");
    expect(ask(&s, GET("/v1/completions")), 405, "Allow: POST");
    expect(ask(&s, "DELETE /health HTTP/1.1\r\nConnection: close\r\n\r\n"), 405, "Allow: GET");
    expect(ask(&s, "GARBAGE\r\n\r\n"), 400, "request line");
    expect(post(&s, "/v1/completions", "{\"prompt\":\"\"}"), 400, "the prompt is empty");
    expect(post(&s, "/v1/completions", "{"), 400, "not valid JSON");
    expect(post(&s, "/v1/completions", "{\"prompt\":\"x\",\"model\":\"y\"}"), 404,
           "model_not_found");
    expect(ask(&s, "POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Type: "
                   "text/plain\r\nContent-Length: 2\r\n\r\n{}"),
           415, "application/json");
    expect(ask(&s, "POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"), 413,
           "at most 8 MiB");
    end(&s);
}

static void test_completions(void **state) {
    (void)state;
    server s;
    start(&s, NULL);
    expect(post(&s, "/v1/completions",
                "{\"prompt\":\"hello world\",\"seed\":0,\"max_tokens\":400,\"stop\":\"world\"}"),
           200, "\"text\":\"hello \",\"logprobs\":null,\"finish_reason\":\"stop\"");
    expect(post(&s, "/v1/completions",
                "{\"prompt\":\"hello "
                "world\",\"seed\":0,\"max_tokens\":400,\"stop\":\"world\",\"echo\":true}"),
           200, "\"text\":\"hello worldhello \"");
    expect(post(&s, "/v1/completions",
                "{\"prompt\":[[5,6,7],[8,9]],\"n\":2,\"max_tokens\":2,\"logprobs\":2,\"seed\":0}"),
           200, "\"index\":3");
    expect(
        post(&s, "/v1/completions",
             "{\"prompt\":\"one two three\",\"max_tokens\":300,\"stream\":true,\"stop\":\"three\","
             "\"stream_options\":{\"include_usage\":true}}"),
        200, "data: [DONE]");
    expect(post(&s, "/v1/chat/completions",
                "{\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}],\"max_tokens\":3,"
                "\"logprobs\":true,\"top_logprobs\":2}"),
           200, "\"message\":{\"role\":\"assistant\"");
    expect(post(&s, "/v1/chat/completions",
                "{\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}],\"max_tokens\":3,"
                "\"stream\":true}"),
           200, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    expect(post(&s, "/v1/completions", "{\"prompt\":[5,6,7],\"max_tokens\":600}"), 200,
           "\"finish_reason\":\"length\"");
    end(&s);
}

static void test_logits_endpoint(void **state) {
    (void)state;
    server s;
    start(&s, NULL);
    mr_text answer =
        post(&s, "/memrack/v1/logits", "{\"input_ids\":[[1,2,3],[4,5,6]],\"prefill_chunk\":2}");
    const char *body = strstr(answer.data, "\r\n\r\n") + 4;
    uint32_t shape[3];
    memcpy(shape, body, sizeof(shape));
    assert_int_equal(shape[0], 2);
    assert_int_equal(shape[1], 3);
    assert_int_equal(shape[2], FAKE_COLUMNS);
    assert_int_equal(answer.data + answer.bytes - body, 12 + 6 * FAKE_COLUMNS * 4);
    float last;
    memcpy(&last, answer.data + answer.bytes - 4, 4);
    assert_true(last == 6000.0f + FAKE_COLUMNS - 1);
    mr_text_free(&answer);
    expect(post(&s, "/memrack/v1/logits", "{\"input_ids\":[[9999]]}"), 400, "token 9999");
    end(&s);
}

static void test_one_connection_many_requests(void **state) {
    (void)state;
    server s;
    start(&s, NULL);
    const int fd = dial(&s);
    mr_text all = {0}, sent = {0};
    for (int i = 0; i < 50; i++) mr_text_add_string(&sent, "GET /health HTTP/1.1\r\n\r\n");
    mr_text_add_string(
        &sent,
        "POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        "10\r\n{\"prompt\":[5,6,7\r\n14\r\n],\"max_tokens\":2   }\r\n0\r\n\r\n" GET("/v1/models"));
    for (size_t i = 0; i < sent.bytes; i += 7)
        put(fd, sent.data + i, sent.bytes - i < 7 ? sent.bytes - i : 7);
    read_all(fd, &all);
    int answers = 0;
    for (const char *c = all.data; (c = strstr(c, "HTTP/1.1 200 OK")) != NULL; c++) answers++;
    assert_int_equal(answers, 52);
    mr_text_free(&all);
    mr_text_free(&sent);
    end(&s);
}

static void wait_until_idle(server *s) {
    for (int i = 0; mr_core_live_requests(s->core) > 0; i++) {
        if (i > 500) fail_msg("a request is still alive");
        usleep(10000);
    }
}

static void test_clients_that_leave(void **state) {
    (void)state;
    static const char body[] = "{\"prompt\":\"a long story\",\"max_tokens\":400,\"stream\":%s}";
    server s;
    start(&s, NULL);
    s.worker->delay_ms = 20;
    for (int i = 0; i < 6; i++) {
        char *text = mr_format(body, i % 2 ? "true" : "false");
        char *request = mr_format("POST /v1/completions HTTP/1.1\r\nContent-Length: %zu\r\n\r\n%s",
                                  strlen(text), text);
        const int fd = dial(&s);
        put(fd, request, strlen(request));
        usleep(i < 2 ? 0 : 60000);
        if (i % 3 == 0) shutdown(fd, SHUT_WR);
        if (i % 3 == 0) usleep(50000);
        close(fd);
        free(text);
        free(request);
    }
    wait_until_idle(&s);
    assert_true(mr_core_metrics(s.core)->requests[MR_OUTCOME_CANCELLED] >= 5);
    end(&s);
}

static void test_slow_and_too_many_clients(void **state) {
    (void)state;
    server s;
    start(&s, &(mr_http_options){.connections_max = 5,
                                 .head_timeout_ms = 400,
                                 .body_timeout_ms = 400,
                                 .idle_timeout_ms = 800});
    int fds[5];
    for (int i = 0; i < 5; i++) fds[i] = dial(&s);
    usleep(100000);
    mr_text full = ask(&s, "");
    expect(full, 503, "too many open connections");
    put(fds[0], "GET / HT", 8);
    put(fds[1], "POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc", 56);
    const int64_t from = mr_now_ns();
    for (int i = 0; i < 5; i++) {
        mr_text answer = {0};
        read_all(fds[i], &answer);
        if (i < 2)
            expect(answer, 408, "too long");
        else
            mr_text_free(&answer);
    }
    assert_true(mr_now_ns() - from < 4000000000ll);
    expect(ask(&s, GET("/health")), 200, "ok");
    end(&s);
}

static void test_errors_of_the_worker(void **state) {
    (void)state;
    server s;
    start(&s, NULL);
    s.worker->error_at = 1;
    expect(post(&s, "/v1/completions", "{\"prompt\":\"x\",\"stream\":true}"), 503,
           "memshard 1 of 2");
    s.worker->error_at = s.worker->steps + 3;
    expect(post(&s, "/v1/completions", "{\"prompt\":[5],\"stream\":true}"), 200,
           "data: {\"error\":{\"message\":\"memshard 1 of 2 is gone\"");
    s.worker->hang_up_at = s.worker->steps + 2;
    expect(post(&s, "/v1/completions", "{\"prompt\":\"x\"}"), 503, "lost the worker");
    expect(ask(&s, GET("/health")), 503, "lost the worker");
    expect(post(&s, "/v1/completions", "{\"prompt\":\"x\"}"), 503, "lost the worker");
    end(&s);
}

static void test_busy_and_stopping(void **state) {
    (void)state;
    static const char body[] = "{\"prompt\":\"a long story\",\"max_tokens\":490}";
    server s;
    int fds[60], busy = 0;
    start(&s, NULL);
    s.worker->delay_ms = 3;
    char *request = mr_format("POST /v1/completions HTTP/1.1\r\nConnection: close\r\n"
                              "Content-Length: %zu\r\n\r\n%s",
                              strlen(body), body);
    for (int i = 0; i < 60; i++) {
        fds[i] = dial(&s);
        put(fds[i], request, strlen(request));
    }
    usleep(300000);
    mr_front_stop(s.front); /* what is under way is finished, or cut after three seconds */
    for (int i = 0; i < 60; i++) {
        mr_text answer = {0};
        read_all(fds[i], &answer);
        if (strncmp(mr_text_string(&answer), "HTTP/1.1 429", 12) == 0) busy++;
        mr_text_free(&answer);
    }
    assert_true(busy > 0);
    free(request);
    end(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_heads_have_bounds),
        cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_routes),
        cmocka_unit_test(test_completions),
        cmocka_unit_test(test_logits_endpoint),
        cmocka_unit_test(test_one_connection_many_requests),
        cmocka_unit_test(test_clients_that_leave),
        cmocka_unit_test(test_slow_and_too_many_clients),
        cmocka_unit_test(test_errors_of_the_worker),
        cmocka_unit_test(test_busy_and_stopping),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
