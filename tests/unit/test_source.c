/* Goal: what an address serves is believed only where the manifest's checksums agree, cuts cost
 * nothing but time, and nothing that a server does makes us wait for ever.
 * Method: a golden model behind a small HTTP server in this process that misbehaves on order. */
#include "common/model/source.h"

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef enum {
    HONEST,
    CUT,          /* every body ends after 300 kB */
    WRONG_ONCE,   /* one flipped bit, the first time */
    WRONG_ALWAYS, /* and every time */
    NO_RANGES,    /* 200 and the whole file */
    BUSY,         /* every second answer is 503 */
    DOWN,         /* only 500 */
    SILENT,       /* accepts, and says nothing */
    SHIFTED,      /* Content-Range from another byte than asked for */
} mood;

static struct {
    char folder[64], cache[64], address[64];
    int listener;
    pthread_t thread;
    _Atomic int mood, requests;
    atomic_bool is_closing;
    char *file[3];
    size_t bytes[3];
} w;
static const char *const names[3] = {"config.json", "model.safetensors", "memrack-manifest.json"};

static void send_all(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        const ssize_t put = send(fd, data, bytes, MSG_NOSIGNAL);
        if (put <= 0) return;
        data += put;
        bytes -= (size_t)put;
    }
}

static void answer(int fd, int which, unsigned long long first, unsigned long long last,
                   bool has_range) {
    char head[256];
    const int how = w.mood, number = w.requests++;
    if (how == DOWN || (how == BUSY && number % 2 == 0)) {
        const char *busy = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        send_all(fd, busy, strlen(busy));
        return;
    }
    if (how == NO_RANGES) has_range = false;
    if (!has_range) {
        first = 0;
        last = w.bytes[which] - 1;
    }
    if (last >= w.bytes[which]) last = w.bytes[which] - 1;
    size_t bytes = (size_t)(last - first + 1);
    if (has_range)
        snprintf(head, sizeof(head),
                 "HTTP/1.1 206 Partial\r\nContent-Range: bytes %llu-%llu/%zu\r\nContent-Length: "
                 "%zu\r\nConnection: close\r\n\r\n",
                 how == SHIFTED ? first + 1 : first, last, w.bytes[which], bytes);
    else
        snprintf(head, sizeof(head),
                 "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", bytes);
    send_all(fd, head, strlen(head));
    if (how == CUT && bytes > 300000) bytes = 300000;
    char *copy = mr_alloc(bytes);
    memcpy(copy, w.file[which] + first, bytes);
    if (which == 1 && bytes > 100000 && (how == WRONG_ONCE || how == WRONG_ALWAYS)) {
        copy[bytes - 7] ^= 1;
        if (how == WRONG_ONCE) w.mood = HONEST;
    }
    send_all(fd, copy, bytes);
    free(copy);
}

static void serve_one(int fd) {
    char request[4096];
    size_t have = 0;
    while (have < sizeof(request) - 1) {
        const ssize_t got = recv(fd, request + have, sizeof(request) - 1 - have, 0);
        if (got <= 0) return;
        have += (size_t)got;
        request[have] = '\0';
        if (strstr(request, "\r\n\r\n")) break;
    }
    if (w.mood == SILENT) {
        while (w.mood == SILENT && !w.is_closing) usleep(10000);
        return;
    }
    unsigned long long first = 0, last = 0;
    const char *range = strstr(request, "Range: bytes=");
    const bool has_range = range && sscanf(range, "Range: bytes=%llu-%llu", &first, &last) == 2;
    for (int i = 0; i < 3; i++) {
        char *wanted = mr_format("GET /models/m/%s?key=a ", names[i]);
        const bool is_it = strncmp(request, wanted, strlen(wanted)) == 0;
        free(wanted);
        if (!is_it) continue;
        answer(fd, i, first, last, has_range);
        return;
    }
    const char *none = "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    send_all(fd, none, strlen(none));
}

static void *serve(void *context) {
    (void)context;
    for (;;) {
        const int fd = accept(w.listener, NULL, NULL);
        if (fd < 0) return NULL;
        if (!w.is_closing) serve_one(fd);
        close(fd);
        if (w.is_closing) return NULL;
    }
}

static void load(int which, const char *path) {
    assert_int_equal(mr_file_read(&w.file[which], &w.bytes[which], path, 1 << 30, NULL), MR_OK);
}

static int start(void **state) {
    (void)state;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    mr_model *model;
    mr_manifest manifest;
    mr_err err;
    snprintf(w.folder, sizeof(w.folder), "/tmp/memrack-source-XXXXXX");
    assert_non_null(mkdtemp(w.folder));
    char *golden = mr_format("%s/tests/golden/v2_demo_share05", MR_SOURCE_DIR);
    char *path = mr_format("%s/memrack-manifest.json", w.folder);
    assert_int_equal(mr_model_open(&model, golden, &err), MR_OK);
    assert_int_equal(mr_manifest_make(&manifest, model, (mr_grid){2, 1}, NULL, NULL, &err), MR_OK);
    assert_int_equal(mr_manifest_write(&manifest, model, path, &err), MR_OK);
    load(2, path);
    free(path);
    for (int i = 0; i < 2; i++) {
        path = mr_format("%s/%s", golden, names[i]);
        load(i, path);
        free(path);
    }
    mr_manifest_free(&manifest);
    mr_model_close(model);
    free(golden);
    w.listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(w.listener, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(w.listener, 16), 0);
    getsockname(w.listener, (struct sockaddr *)&at, &size);
    snprintf(w.address, sizeof(w.address), "http://127.0.0.1:%d/models/m/?key=a",
             ntohs(at.sin_port));
    assert_int_equal(pthread_create(&w.thread, NULL, serve, NULL), 0);
    return 0;
}

static int stop(void **state) {
    (void)state;
    w.is_closing = true;
    shutdown(w.listener, SHUT_RDWR);
    pthread_join(w.thread, NULL);
    close(w.listener);
    for (int i = 0; i < 3; i++) free(w.file[i]);
    char *command = mr_format("rm -r %s", w.folder);
    assert_int_equal(system(command), 0);
    free(command);
    return 0;
}

/* Each test gets a cache of its own. */
static int fresh(void **state) {
    (void)state;
    static int number;
    snprintf(w.cache, sizeof(w.cache), "%.40s/%d", w.folder, number++);
    w.mood = HONEST;
    w.requests = 0;
    return 0;
}

static mr_status open_source(mr_source **out, mr_err *err) {
    const mr_source_options options = {
        .cache_folder = w.cache, .stall_s = 1, .total_s = 10, .tries = 3};
    return mr_source_open(out, w.address, &options, err);
}

/* Maps all of a table and compares it with the file. */
static mr_status read_table(const mr_source *source, mr_err *err) {
    const mr_model *model = mr_source_model(source);
    const mr_tensor *t = mr_model_table(model, 0)->values;
    mr_mapping map;
    const mr_status status = mr_tensor_map(&map, model, t, 0, t->bytes, err);
    if (status != MR_OK) return status;
    assert_memory_equal(map.data, w.file[1] + t->offset, t->bytes);
    mr_mapping_close(&map);
    return MR_OK;
}

static void expect_good(mood how) {
    mr_source *source;
    mr_source_counters c;
    mr_err err = {{0}};
    if (open_source(&source, &err) != MR_OK) fail_msg("%s", err.text);
    w.mood = how;
    if (read_table(source, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(read_table(source, &err), MR_OK);
    mr_source_count(source, &c);
    const uint64_t chunk_count =
        mr_chunk_count(mr_model_table(mr_source_model(source), 0)->values->bytes, MR_CHUNK_BYTES);
    assert_int_equal(c.fetched_chunks, chunk_count);
    mr_source_close(source);
    w.mood = HONEST;
    /* the next start finds what is there */
    assert_int_equal(open_source(&source, &err), MR_OK);
    assert_int_equal(read_table(source, &err), MR_OK);
    mr_source_count(source, &c);
    assert_int_equal(c.fetched_chunks, 0);
    assert_int_equal(c.found_chunks, chunk_count);
    mr_source_close(source);
}

static void test_only_what_is_asked_for_is_fetched(void **state) {
    (void)state;
    mr_source *source;
    mr_source_counters before, after;
    mr_err err = {{0}};
    mr_mapping map;
    if (open_source(&source, &err) != MR_OK) fail_msg("%s", err.text);
    const mr_model *model = mr_source_model(source);
    assert_int_equal(mr_source_manifest(source)->grid.row_groups, 2);
    mr_source_count(source, &before);
    const mr_tensor *t = mr_model_find(model, "transformer.blocks.0.att_proj.weight");
    assert_non_null(t);
    assert_int_equal(mr_tensor_map(&map, model, t, 0, t->bytes, &err), MR_OK);
    assert_memory_equal(map.data, w.file[1] + t->offset, t->bytes);
    mr_mapping_close(&map);
    mr_source_count(source, &after);
    assert_int_equal(after.requests, before.requests + 1);
    assert_int_equal(after.bytes, before.bytes + t->bytes);
    mr_source_close(source);
    expect_good(HONEST);
}

static void test_cuts_busy_servers_and_one_wrong_byte(void **state) {
    (void)state;
    static const mood moods[] = {CUT, BUSY, WRONG_ONCE};
    for (int i = 0; i < 3; i++) {
        fresh(NULL);
        expect_good(moods[i]);
    }
}

static void expect_bad(mood at_open, mood later, mr_status status, const char *why,
                       uint32_t seconds_max) {
    mr_source *source;
    mr_err err = {{0}};
    fresh(NULL);
    w.mood = at_open;
    const int64_t begin = mr_now_ns();
    mr_status got = open_source(&source, &err);
    if (at_open == HONEST) {
        assert_int_equal(got, MR_OK);
        w.mood = later;
        got = read_table(source, &err);
        assert_int_not_equal(got, MR_OK);
        mr_source_close(source);
    } else
        assert_null(source);
    w.mood = HONEST;
    if (got != status || !strstr(err.text, why) || strchr(err.text, '\n'))
        fail_msg("status %d: '%s' does not say '%s'", got, err.text, why);
    assert_true(mr_now_ns() - begin < (int64_t)seconds_max * 1000000000);
}

static void test_what_a_server_does_wrong_is_refused(void **state) {
    (void)state;
    expect_bad(HONEST, WRONG_ALWAYS, MR_ERR_FORMAT, "does not match the manifest's checksum", 3);
    expect_bad(HONEST, NO_RANGES, MR_ERR_UNSUPPORTED, "ignores byte ranges", 3);
    expect_bad(HONEST, DOWN, MR_ERR_IO, "the server answers 503", 3);
    expect_bad(HONEST, SHIFTED, MR_ERR_FORMAT, "the server sends bytes from", 3);
    expect_bad(HONEST, SILENT, MR_ERR_TIMEOUT, "given up after", 12);
    expect_bad(DOWN, DOWN, MR_ERR_IO, "memrack split", 3);
}

static void test_addresses_that_lead_nowhere(void **state) {
    (void)state;
    mr_source *source;
    mr_err err = {{0}};
    char address[96];
    fresh(NULL);
    mr_source_options options = {.cache_folder = w.cache, .tries = 2, .total_s = 5};
    snprintf(address, sizeof(address), "%.*s/nothing", (int)strcspn(w.address, "?"), w.address);
    assert_int_equal(mr_source_open(&source, address, &options, &err), MR_ERR_IO);
    assert_non_null(strstr(err.text, "404 (not found)"));
    assert_int_equal(mr_source_open(&source, "http://127.0.0.1:1/m", &options, &err),
                     MR_ERR_UNAVAILABLE);
    assert_int_equal(mr_source_open(&source, "/tmp/no-such-model-folder", &options, &err),
                     MR_ERR_IO);
    memset(options.digest.bytes, 7, sizeof(options.digest.bytes));
    assert_int_equal(mr_source_open(&source, w.address, &options, &err), MR_ERR_MISMATCH);
    const atomic_bool cancelled = true;
    options = (mr_source_options){.cache_folder = w.cache, .is_cancelled = &cancelled};
    assert_int_equal(mr_source_open(&source, w.address, &options, &err), MR_ERR_CANCELLED);
    assert_null(source);
}

/* A manifest of other files, or spoilt on the way, must not be taken. */
static void test_a_manifest_that_does_not_fit(void **state) {
    (void)state;
    mr_source *source;
    mr_err err = {{0}};
    fresh(NULL);
    char *at = strstr(w.file[2], "\"layout\": \"");
    assert_non_null(at);
    at[11] = at[11] == '0' ? '1' : '0';
    assert_int_equal(open_source(&source, &err), MR_ERR_MISMATCH);
    assert_non_null(strstr(err.text, "other files"));
    at[11] = 'x';
    assert_int_equal(open_source(&source, &err), MR_ERR_FORMAT);
    const size_t bytes = w.bytes[2];
    w.bytes[2] /= 2;
    assert_int_equal(open_source(&source, &err), MR_ERR_FORMAT);
    w.bytes[2] = bytes;
}

int main(void) {
#define FRESH(test) cmocka_unit_test_setup(test, fresh)
    const struct CMUnitTest tests[] = {
        FRESH(test_only_what_is_asked_for_is_fetched),
        FRESH(test_cuts_busy_servers_and_one_wrong_byte),
        FRESH(test_what_a_server_does_wrong_is_refused),
        FRESH(test_addresses_that_lead_nowhere),
        FRESH(test_a_manifest_that_does_not_fit), /* last: it spoils the manifest */
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, start, stop);
}
