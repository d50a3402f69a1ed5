/* Goal: no frame of version 2 can make its receiver read beyond it, whatever its counts say, and
 * both sides of a TOPK agree on every offset.
 * Method: good frames, every truncation of them, hostile counts one at a time, random bytes. */
#include "tests/unit/net_test.h"

#include <math.h>

static mr_status check_any(uint16_t type, const void *payload, uint32_t bytes, mr_err *err) {
    test_frame f;
    memset(err, 0, sizeof(*err));
    frame_make(&f, type, payload, bytes);
    const mr_status status = mr_frame_check(&f.frame, err);
    if (status != MR_OK) assert_true(err->text[0] != '\0');
    frame_free(&f);
    return status;
}

static void every_cut_is_refused(uint16_t type, const void *payload, uint32_t bytes) {
    mr_err err;
    assert_int_equal(check_any(type, payload, bytes, &err), MR_OK);
    for (uint32_t cut = 0; cut < bytes; cut++)
        assert_int_equal(check_any(type, payload, cut, &err), MR_ERR_FORMAT);
}

#define REFUSED(type, whole, field, value)                                                         \
    do {                                                                                           \
        mr_err why;                                                                                \
        const __typeof__((whole).field) kept = (whole).field;                                      \
        (whole).field = (value);                                                                   \
        if (check_any(type, &(whole), sizeof(whole), &why) == MR_OK)                               \
            fail_msg("took " #field " = " #value);                                                 \
        (whole).field = kept;                                                                      \
    } while (0)

static void test_types_of_version_2(void **state) {
    (void)state;
    mr_err err;
    static const uint16_t new_types[] = {MR_FRAME_ECHO,   MR_FRAME_ECHOED, MR_FRAME_TOPK,
                                         MR_FRAME_CHOSEN, MR_FRAME_CANCEL, MR_FRAME_PREFETCH,
                                         MR_FRAME_STAGE,  MR_FRAME_HIDDEN};
    uint32_t known = 0, fresh = 0;
    for (uint16_t type = 0; type < 100; type++) {
        mr_wire_header h = {.magic = MR_WIRE_MAGIC, .version = 1, .type = type};
        const bool in_1 = mr_frame_check_header(&h, 1, &err) == MR_OK;
        h.version = 2;
        const bool in_2 = mr_frame_check_header(&h, 2, &err) == MR_OK;
        assert_true(in_2 || !in_1);
        known += in_2;
        if (!in_2 || in_1) continue;
        assert_int_equal(type, new_types[fresh++]);
        assert_int_equal(mr_frame_version(type), 2);
    }
    assert_int_equal(known, 22);
    assert_int_equal(fresh, 8);
    mr_wire_header h = {.magic = MR_WIRE_MAGIC,
                        .version = 2,
                        .type = MR_FRAME_PING,
                        .flags = MR_FRAME_HAS_MAC,
                        .mac = {1}};
    assert_int_equal(mr_frame_check_header(&h, 2, &err), MR_OK); /* its link proves the MAC */
    h.version = 1;
    assert_int_equal(mr_frame_check_header(&h, 0, &err), MR_ERR_UNSUPPORTED);
    h.version = 2;
    h.flags = 0;
    assert_int_equal(mr_frame_check_header(&h, 2, &err), MR_ERR_FORMAT); /* bytes nobody claims */
}

static void test_echo(void **state) {
    (void)state;
    mr_err err;
    struct {
        mr_wire_echo fixed;
        uint8_t bytes[24];
    } echo = {.fixed.reply_bytes = MR_MAX_FRAME_BYTES};
    assert_int_equal(check_any(MR_FRAME_ECHO, &echo, 8, &err), MR_OK);
    assert_int_equal(check_any(MR_FRAME_ECHO, &echo, 13, &err), MR_OK); /* any bytes behind it */
    for (uint32_t cut = 0; cut < 8; cut++)
        assert_int_equal(check_any(MR_FRAME_ECHO, &echo, cut, &err), MR_ERR_FORMAT);
    REFUSED(MR_FRAME_ECHO, echo, fixed.reply_bytes, MR_MAX_FRAME_BYTES + 1);
    REFUSED(MR_FRAME_ECHO, echo, fixed.reply_bytes, 0xffffffff);
    REFUSED(MR_FRAME_ECHO, echo, fixed.reserved, 1);
}

static void test_topk(void **state) {
    (void)state;
    mr_err err;
    struct {
        mr_wire_topk fixed;
        float query[2][3]; /* 24 bytes: no padding */
        float x[2][1];
    } topk = {.fixed = {.layer = 1,
                        .cell = 2,
                        .wants = MR_TOPK_POOLED,
                        .accumulator_bits = 64,
                        .tokens = 2,
                        .query_columns = 3,
                        .x_columns = 1},
              .query = {{1, 2, 3}, {4, 5, 6}},
              .x = {{7}, {8}}};
    every_cut_is_refused(MR_FRAME_TOPK, &topk, sizeof(topk));
    mr_topk_layout at;
    assert_int_equal(mr_topk_lay_out(&at, &topk.fixed, &err), MR_OK);
    assert_int_equal(at.query, 32);
    assert_int_equal(at.x, 56);
    assert_int_equal(at.bytes, sizeof(topk));
    REFUSED(MR_FRAME_TOPK, topk, fixed.tokens, 0);
    REFUSED(MR_FRAME_TOPK, topk, fixed.tokens, 3);
    REFUSED(MR_FRAME_TOPK, topk, fixed.tokens, MR_MAX_STEP_TOKENS + 1);
    REFUSED(MR_FRAME_TOPK, topk, fixed.tokens, 0xffffffff);
    REFUSED(MR_FRAME_TOPK, topk, fixed.query_columns, 0);
    REFUSED(MR_FRAME_TOPK, topk, fixed.query_columns, 0xffffffff);
    REFUSED(MR_FRAME_TOPK, topk, fixed.query_columns, 0x80000003);
    REFUSED(MR_FRAME_TOPK, topk, fixed.x_columns, 0);
    REFUSED(MR_FRAME_TOPK, topk, fixed.x_columns, 0x40000001); /* times eight wraps around */
    REFUSED(MR_FRAME_TOPK, topk, fixed.wants, 0);
    REFUSED(MR_FRAME_TOPK, topk, fixed.wants, 3);
    REFUSED(MR_FRAME_TOPK, topk, fixed.accumulator_bits, 16);
    REFUSED(MR_FRAME_TOPK, topk, fixed.layer, MR_MAX_LAYERS);
    REFUSED(MR_FRAME_TOPK, topk, fixed.cell, MR_MAX_CELLS);
    REFUSED(MR_FRAME_TOPK, topk, fixed.reserved[1], 1);
    REFUSED(MR_FRAME_TOPK, topk, query[1][2], NAN);
    REFUSED(MR_FRAME_TOPK, topk, x[1][0], INFINITY);
}

/* Every array begins where the one before it ends, on eight bytes. */
static void test_topk_answers(void **state) {
    (void)state;
    mr_err err;
    mr_topk_answer_layout at;
    assert_int_equal(mr_chosen_lay_out(&at, 3, 5, 2, 4, &err), MR_OK);
    assert_int_equal(at.row, 0);
    assert_int_equal(at.slot, 64);   /* 15 rows of 4 bytes, padded */
    assert_int_equal(at.score, 80);  /* 15 slots, padded */
    assert_int_equal(at.index, 200); /* 2 x 15 scores */
    assert_int_equal(at.bytes, 264);
    assert_int_equal(mr_chosen_lay_out(&at, 3, 5, 2, 1, &err), MR_OK);
    assert_int_equal(at.slot, 0);
    assert_int_equal(at.bytes, 248);
    assert_int_equal(mr_chosen_lay_out(&at, MR_MAX_STEP_TOKENS, MR_MAX_MEM_ENTRIES, 16, 4, &err),
                     MR_ERR_LIMIT);
    assert_int_equal(mr_chosen_lay_out(&at, 0xffffffff, 0xffffffff, 1, 1, &err), MR_ERR_LIMIT);
    assert_int_equal(at.bytes, 0);

    const mr_wire_topk fixed = {.tokens = 3, .accumulator_bits = 32};
    assert_int_equal(mr_topk_pooled_lay_out(&at, &fixed, 2, 5, &err), MR_OK);
    assert_int_equal(at.value_exponent, 120);
    assert_int_equal(at.bytes, 128);
    assert_int_equal(mr_topk_pooled_lay_out(&at, &fixed, 256, 1 << 20, &err), MR_ERR_LIMIT);
}

static void test_prefetch(void **state) {
    (void)state;
    struct {
        mr_wire_prefetch fixed;
        uint32_t row[4]; /* three and padding */
    } prefetch = {.fixed = {.layer = 1, .cell = 1, .rows = 3}};
    every_cut_is_refused(MR_FRAME_PREFETCH, &prefetch, sizeof(prefetch));
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.rows, 0);
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.rows, 5);
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.rows, 0xffffffff);
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.rows, 0x40000003);
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.layer, MR_MAX_LAYERS);
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.cell, MR_MAX_CELLS);
    REFUSED(MR_FRAME_PREFETCH, prefetch, fixed.reserved, 1);
}

static void test_hidden(void **state) {
    (void)state;
    mr_err err;
    struct {
        mr_wire_hidden fixed;
        float values[2][2];
    } hidden = {.fixed = {.kinds = 1, .token_first = 7, .tokens = 2, .columns = 2, .layer = -1}};
    every_cut_is_refused(MR_FRAME_HIDDEN, &hidden, sizeof(hidden));
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.tokens, 0);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.tokens, 3);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.tokens, 0xffffffff);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.token_first, 0xffffffff);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.token_first, MR_MAX_STEP_TOKENS - 1);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.columns, 0);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.columns, 0x40000002);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.kind, 1); /* not announced */
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.kind, 40);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.kinds, 0);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.kinds, 5);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.layer, 0); /* a stream belongs to no layer */
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.layer, -2);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.block, MR_MAX_LAYERS);
    REFUSED(MR_FRAME_HIDDEN, hidden, values[1][1], NAN);
    hidden.fixed.kind = MR_HIDDEN_PENDING;
    hidden.fixed.kinds = 3;
    hidden.fixed.layer = 4;
    assert_int_equal(check_any(MR_FRAME_HIDDEN, &hidden, sizeof(hidden), &err), MR_OK);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.layer, -1);
    REFUSED(MR_FRAME_HIDDEN, hidden, fixed.layer, MR_MAX_LAYERS);
}

static void test_done_more(void **state) {
    (void)state;
    mr_err err;
    struct {
        mr_wire_done done;
        mr_wire_done_more more;
        uint64_t wait_ns[3];
    } done = {.more = {.layers = 3}};
    assert_int_equal(check_any(MR_FRAME_DONE, &done, sizeof(done), &err), MR_OK);
    REFUSED(MR_FRAME_DONE, done, more.layers, 2);
    REFUSED(MR_FRAME_DONE, done, more.layers, 0xffffffff);
    REFUSED(MR_FRAME_DONE, done, more.reserved, 1);
    assert_int_equal(check_any(MR_FRAME_DONE, &done, sizeof(mr_wire_done), &err), MR_OK);
    assert_int_equal(check_any(MR_FRAME_DONE, &done, sizeof(mr_wire_done) + 8, &err),
                     MR_ERR_FORMAT);
    test_frame f; /* version 1 had no more than the fixed part */
    frame_make(&f, MR_FRAME_DONE, &done, sizeof(done));
    f.header.version = 1;
    assert_int_equal(mr_frame_check(&f.frame, &err), MR_ERR_FORMAT);
    frame_free(&f);
}

static void test_random_payloads(void **state) {
    (void)state;
    static const uint16_t types[] = {MR_FRAME_ECHO,     MR_FRAME_TOPK,   MR_FRAME_CHOSEN,
                                     MR_FRAME_PREFETCH, MR_FRAME_HIDDEN, MR_FRAME_STAGE,
                                     MR_FRAME_DONE,     MR_FRAME_HELLO,  MR_FRAME_WELCOME};
    uint64_t seed = 11;
    uint8_t bytes[256];
    mr_err err;
    for (uint32_t round = 0; round < 20000; round++) {
        const uint32_t count = test_random(&seed) % sizeof(bytes);
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t r = test_random(&seed);
            bytes[i] = r % 5 ? 0 : (uint8_t)(r >> 8);
        }
        check_any(types[round % (sizeof(types) / sizeof(types[0]))], bytes, count, &err);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types_of_version_2),
        cmocka_unit_test(test_echo),
        cmocka_unit_test(test_topk),
        cmocka_unit_test(test_topk_answers),
        cmocka_unit_test(test_prefetch),
        cmocka_unit_test(test_hidden),
        cmocka_unit_test(test_done_more),
        cmocka_unit_test(test_random_payloads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
