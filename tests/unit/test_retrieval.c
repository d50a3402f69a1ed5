/* test_retrieval.c - the worker's side of retrieval when its peers misbehave.
 *
 * Goal: a memshard that is silent, gone, or talks nonsense fails the step with a sentence that
 * names it, inside the deadline, and the next step starts clean. Method: the other end of a socket
 * pair. */
#include "common/base/clock.h"
#include "common/net/frames.h"
#include "worker/retrieval.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TIMEOUT_MS = 100, TOKENS = 2, ENTRIES = 3, WIDTH = 4 };

static const uint32_t rows[TOKENS * ENTRIES] = {0, 5, 9, 9, 1, 2};
static const uint8_t slots[TOKENS * ENTRIES];
static const float scores[TOKENS * ENTRIES] = {0.5f, 0.25f, -1, 1, 1, 1};
static const int16_t exponents[TOKENS] = {2, 2};

static const mr_retrieval_request request = {.layer = 3,
                                             .tokens = TOKENS,
                                             .entries = ENTRIES,
                                             .cores = 1,
                                             .slots = 1,
                                             .width = WIDTH,
                                             .table_rows = 10,
                                             .accumulator_bits = 32,
                                             .row = rows,
                                             .slot = slots,
                                             .score = scores,
                                             .value_exponent = exponents};

static mr_retrieval *make(mr_link *link) {
    mr_retrieval *r;
    mr_err err;
    mr_link *links[1] = {link};
    const mr_retrieval_options options = {.links = links,
                                          .count = 1,
                                          .grid = {1, 1},
                                          .timeout_ms = TIMEOUT_MS,
                                          .tokens_max = TOKENS,
                                          .entries_max = ENTRIES,
                                          .cores_max = 1,
                                          .slots_width_max = WIDTH};
    assert_int_equal(mr_retrieval_open(&r, &options, &err), MR_OK);
    return r;
}

static mr_retrieval *make_pair(mr_link **other) {
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    *other = mr_link_from_fd(fds[1], "test");
    return make(mr_link_from_fd(fds[0], "memshard"));
}

static void test_a_silent_shard_times_out(void **state) {
    mr_link *other;
    mr_retrieval *r = make_pair(&other);
    mr_err err;
    float out[TOKENS * WIDTH];
    (void)state;
    const int64_t began = mr_now_ns();
    assert_int_equal(mr_retrieval_begin(r, &request, &err), MR_OK);
    assert_int_equal(mr_retrieval_finish(r, out, NULL, &err), MR_ERR_TIMEOUT);
    const int64_t took_ms = (mr_now_ns() - began) / 1000000;
    assert_true(took_ms >= TIMEOUT_MS - 5 && took_ms < 20 * TIMEOUT_MS);
    assert_non_null(strstr(err.text, "memshard 0"));
    assert_non_null(strstr(err.text, "memory layer 3"));
    assert_non_null(strstr(err.text, "100 ms"));
    mr_retrieval_close(r);
    mr_link_close(other);
}

static void test_a_closed_shard_fails_at_once(void **state) {
    mr_link *other;
    mr_retrieval *r = make_pair(&other);
    mr_err err;
    float out[TOKENS * WIDTH];
    (void)state;
    assert_int_equal(mr_retrieval_begin(r, &request, &err), MR_OK);
    mr_link_close(other);
    const int64_t began = mr_now_ns();
    assert_int_equal(mr_retrieval_finish(r, out, NULL, &err), MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - began < 10 * TIMEOUT_MS * 1000000ll); /* the status says why */
    assert_non_null(strstr(err.text, "memshard 0"));
    mr_retrieval_close(r);
}

/* What the loop link's other side answers with. */
typedef enum { GOOD, SHORT, WRONG_TYPE, REFUSED, TWICE, STALE } manner;
static manner how;
static uint64_t last_request;

static void handler(void *context, mr_link *reply, const mr_frame *frame) {
    int32_t sums[TOKENS * WIDTH];
    (void)context;
    for (int i = 0; i < TOKENS * WIDTH; i++) sums[i] = (i + 1) << 20;
    mr_wire_header header = {.type = MR_FRAME_POOLED, .request = frame->header->request};
    switch (how) {
    case SHORT:
        mr_link_send(reply, &header, sums, sizeof(sums) - 4);
        break;
    case WRONG_TYPE:
        header.type = MR_FRAME_DOTS;
        mr_link_send(reply, &header, sums, sizeof(sums));
        break;
    case REFUSED:
        mr_link_send_error(reply, header.request, MR_ERR_RANGE, "row 11 of 10");
        break;
    case STALE: /* an answer to a question of long ago comes first */
        header.request = last_request;
        mr_link_send(reply, &header, sums, 4);
        header.request = frame->header->request;
        mr_link_send(reply, &header, sums, sizeof(sums));
        break;
    case TWICE:
        mr_link_send(reply, &header, sums, sizeof(sums)); /* fallthrough */
    case GOOD:
        mr_link_send(reply, &header, sums, sizeof(sums));
        break;
    }
    last_request = frame->header->request;
}

static mr_status run(mr_retrieval *r, float *out, mr_err *err) {
    mr_status status = mr_retrieval_begin(r, &request, err);
    if (status == MR_OK) status = mr_retrieval_finish(r, out, NULL, err);
    return status;
}

static void check_good(const float *out) {
    for (int i = 0; i < TOKENS * WIDTH; i++) /* sum * 2^(e-30), e = 2 */
        assert_true(out[i] == (float)((i + 1) << 20) * 0x1p-28f);
}

static void test_answers_are_checked(void **state) {
    mr_retrieval *r = make(mr_link_loop(handler, NULL, "loop"));
    mr_err err;
    float out[TOKENS * WIDTH];
    (void)state;
    static const manner bad[] = {SHORT, WRONG_TYPE, REFUSED};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        how = bad[i];
        assert_int_not_equal(run(r, out, &err), MR_OK);
        assert_non_null(strstr(err.text, "memshard 0"));
        how = GOOD; /* the next step starts clean */
        assert_int_equal(run(r, out, &err), MR_OK);
        check_good(out);
    }
    static const manner tolerated[] = {TWICE, STALE, GOOD};
    for (size_t i = 0; i < sizeof(tolerated) / sizeof(tolerated[0]); i++) {
        how = tolerated[i];
        memset(out, 0, sizeof(out));
        assert_int_equal(run(r, out, &err), MR_OK);
        check_good(out);
    }
    mr_retrieval_close(r);
}

static void test_weights_that_are_no_numbers_are_not_sent(void **state) {
    mr_retrieval *r = make(mr_link_loop(handler, NULL, "loop"));
    mr_err err;
    float spoilt[TOKENS * ENTRIES] = {0};
    mr_retrieval_request q = request;
    (void)state;
    how = GOOD;
    q.score = spoilt;
    spoilt[4] = 3e38f; /* scaled it is infinite */
    assert_int_equal(mr_retrieval_begin(r, &q, &err), MR_ERR_RANGE);
    assert_non_null(strstr(err.text, "not finite"));
    spoilt[4] = 0;
    float out[TOKENS * WIDTH];
    assert_int_equal(mr_retrieval_begin(r, &q, &err), MR_OK);
    assert_int_equal(mr_retrieval_finish(r, out, NULL, &err), MR_OK);
    mr_retrieval_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_silent_shard_times_out),
        cmocka_unit_test(test_a_closed_shard_fails_at_once),
        cmocka_unit_test(test_answers_are_checked),
        cmocka_unit_test(test_weights_that_are_no_numbers_are_not_sent)};
    return cmocka_run_group_tests_name("retrieval", tests, NULL, NULL);
}
