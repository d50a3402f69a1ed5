/* Goal: no frame, however hostile, is read past its end or taken for good; every refusal says why.
 * Method: build a good frame of each type, then spoil one thing per case; buffers are exactly as
 * large as the payload, so that the address sanitizer sees a read behind it. */
#include "common/base/file.h"
#include "tests/unit/net_test.h"

#include <math.h>
#include <stdio.h>

static mr_wire_header good_header(void) {
    return (mr_wire_header){.magic = MR_WIRE_MAGIC, .version = 1, .type = MR_FRAME_PING};
}

static void test_header(void **state) {
    (void)state;
    mr_err err;
    mr_wire_header h = good_header();
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_OK);
    assert_int_equal(mr_frame_check_header(&h, 0, &err), MR_OK);

    h.magic = 0x4b524d31; /* the other endianness */
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_FORMAT);
    assert_sentence(err, "not a Memrack frame");
    h = good_header();
    h.version = 0;
    assert_int_equal(mr_frame_check_header(&h, 0, &err), MR_ERR_FORMAT);
    h.version = MR_WIRE_VERSION + 1;
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_FORMAT);
    assert_int_equal(mr_frame_check_header(&h, 0, &err), MR_ERR_FORMAT);
    h.type = MR_FRAME_HELLO; /* tells its version by itself */
    assert_int_equal(mr_frame_check_header(&h, 0, &err), MR_OK);
    const uint16_t unknown[] = {0, 9, 15, 24, 38, 0xffff};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        h = good_header();
        h.type = unknown[i];
        assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_UNSUPPORTED);
        assert_sentence(err, "unknown type");
    }
    const uint32_t sizes[] = {MR_MAX_FRAME_BYTES + 1, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        h = good_header();
        h.payload_bytes = sizes[i];
        assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_LIMIT);
    }
    h = good_header();
    h.flags = MR_FRAME_HAS_MAC;
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "MAC");
    for (uint32_t bit = 1; bit < 32; bit++) {
        h.flags = 1u << bit;
        assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_UNSUPPORTED);
    }
    h = good_header();
    h.mac[15] = 1;
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_FORMAT);
    h = good_header();
    h.reserved = 1ull << 63;
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_FORMAT);
    h = good_header();
    h.status = 1;
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_FORMAT);
    h.status = MR_ERR_STALE - 1;
    assert_int_equal(mr_frame_check_header(&h, 1, &err), MR_ERR_FORMAT);
}

/* --- retrieval -------------------------------------------------------------------------------- */

static const mr_wire_retrieve pool = {.layer = 1,
                                      .cell = 2,
                                      .mode = MR_RETRIEVE_POOL,
                                      .accumulator_bits = 32,
                                      .tokens = 3,
                                      .entries = 7,
                                      .core_first = 1,
                                      .cores = 2,
                                      .slots = 4};
static const mr_wire_retrieve gated = {.mode = MR_RETRIEVE_GATED_POOL,
                                       .accumulator_bits = 64,
                                       .tokens = 3,
                                       .entries = 7,
                                       .cores = 1,
                                       .slots = 1,
                                       .gelu = 1,
                                       .x_columns = 5};
static const mr_wire_retrieve dot = {
    .mode = MR_RETRIEVE_DOT, .accumulator_bits = 64, .tokens = 2, .entries = 3, .x_columns = 3};
static const mr_wire_retrieve gather = {.mode = MR_RETRIEVE_GATHER, .tokens = 1, .entries = 9};

static mr_status check_payload(const void *payload, uint32_t bytes, mr_err *err) {
    test_frame f;
    mr_retrieve_view view;
    memset(err, 0, sizeof(*err));
    frame_make(&f, MR_FRAME_RETRIEVE, payload, bytes);
    const mr_status status = mr_retrieve_check(&view, &f.frame, err);
    if (status != MR_OK) assert_true(err->text[0] != '\0' && view.fixed == NULL);
    frame_free(&f);
    return status;
}

static void test_retrieve_layout(void **state) {
    (void)state;
    mr_err err;
    const mr_wire_retrieve *all[] = {&pool, &gated, &dot, &gather};
    for (size_t i = 0; i < 4; i++) {
        mr_retrieve_layout to;
        uint8_t *payload = retrieve_make(all[i], &to);
        assert_int_equal(to.bytes % 8, 0);
        assert_int_equal(to.count, sizeof(mr_wire_retrieve));
        assert_true((to.slot != 0) == (all[i]->slots > 1));
        assert_true((to.weight != 0) == (all[i]->cores > 0));
        assert_int_equal(check_payload(payload, to.bytes, &err), MR_OK);
        for (uint32_t cut = 0; cut < to.bytes; cut++) /* every truncation is refused */
            assert_int_equal(check_payload(payload, cut, &err), MR_ERR_FORMAT);
        free(payload);
    }
}

static void test_retrieve_fixed_part(void **state) {
    (void)state;
    mr_retrieve_layout to;
    mr_err err;
    mr_wire_retrieve f;
#define REFUSED(base, field, value, why)                                                           \
    f = base;                                                                                      \
    f.field = value;                                                                               \
    assert_int_equal(mr_retrieve_lay_out(&to, &f, &err), why);                                     \
    assert_int_equal(to.bytes, 0)
    REFUSED(pool, mode, 0, MR_ERR_UNSUPPORTED);
    REFUSED(pool, mode, 6, MR_ERR_UNSUPPORTED);
    REFUSED(pool, mode, 0xffff, MR_ERR_UNSUPPORTED);
    REFUSED(pool, accumulator_bits, 0, MR_ERR_RANGE);
    REFUSED(pool, accumulator_bits, 16, MR_ERR_RANGE);
    REFUSED(gated, accumulator_bits, 32, MR_ERR_RANGE);
    REFUSED(dot, accumulator_bits, 32, MR_ERR_RANGE);
    REFUSED(gather, accumulator_bits, 64, MR_ERR_RANGE);
    REFUSED(pool, tokens, 0, MR_ERR_LIMIT);
    REFUSED(pool, tokens, MR_MAX_STEP_TOKENS + 1, MR_ERR_LIMIT);
    REFUSED(pool, tokens, 0xffffffff, MR_ERR_LIMIT);
    REFUSED(pool, entries, 0xffffffff, MR_ERR_LIMIT);
    REFUSED(gather, entries, 0x40000000, MR_ERR_LIMIT);
    REFUSED(pool, layer, 0xffffffff, MR_ERR_RANGE);
    REFUSED(pool, cell, MR_MAX_CELLS, MR_ERR_RANGE);
    REFUSED(pool, slots, 0, MR_ERR_LIMIT);
    REFUSED(pool, slots, 257, MR_ERR_LIMIT);
    REFUSED(pool, cores, 0, MR_ERR_LIMIT);
    REFUSED(pool, cores, 16, MR_ERR_LIMIT); /* from 1 */
    REFUSED(pool, core_first, 0xffff, MR_ERR_LIMIT);
    REFUSED(pool, gelu, 1, MR_ERR_FORMAT);
    REFUSED(pool, x_columns, 1, MR_ERR_FORMAT);
    REFUSED(gated, gelu, 2, MR_ERR_FORMAT);
    REFUSED(gated, x_columns, 0, MR_ERR_FORMAT);
    REFUSED(gated, x_columns, 0xffffffff, MR_ERR_LIMIT);
    REFUSED(dot, x_columns, 0, MR_ERR_FORMAT);
    REFUSED(dot, cores, 1, MR_ERR_FORMAT);
    REFUSED(gather, slots, 2, MR_ERR_FORMAT);
    REFUSED(gather, x_columns, 4, MR_ERR_FORMAT);
#undef REFUSED
}

static void test_retrieve_arrays(void **state) {
    (void)state;
    mr_retrieve_layout to;
    mr_err err;
    uint8_t *payload = retrieve_make(&pool, &to);
    uint32_t *count = (void *)(payload + to.count);
    count[0]++;
    assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_FORMAT);
    assert_sentence(err, "whose tokens have 8");
    count[0] = 0xffffffff; /* sums that wrap around to the right number */
    count[1] = 5;
    count[2] = 3;
    assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_LIMIT);
    free(payload);

    payload = retrieve_make(&pool, &to);
    payload[to.slot + 6] = 4;
    assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_RANGE);
    assert_sentence(err, "slot 4 of 4");
    free(payload);

    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 4; i++) {
        payload = retrieve_make(&pool, &to);
        float *weight = (void *)(payload + to.weight);
        weight[0] = 1e-40f; /* denormal numbers are fine */
        assert_int_equal(check_payload(payload, to.bytes, &err), MR_OK);
        weight[13] = bad[i];
        assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_RANGE);
        free(payload);
        payload = retrieve_make(&gated, &to);
        ((float *)(void *)(payload + to.x))[14] = bad[i];
        assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_RANGE);
        free(payload);
    }
    const int16_t exponents[] = {-61, 91, INT16_MIN, INT16_MAX};
    for (size_t i = 0; i < 4; i++) {
        payload = retrieve_make(&gated, &to);
        ((int16_t *)(void *)(payload + to.value_exponent))[2] = exponents[i];
        assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_RANGE);
        free(payload);
        payload = retrieve_make(&gated, &to);
        ((int16_t *)(void *)(payload + to.dot_exponent))[0] = exponents[i];
        assert_int_equal(check_payload(payload, to.bytes, &err), MR_ERR_RANGE);
        free(payload);
    }
}

static void test_retrieve_answers(void **state) {
    (void)state;
    uint32_t bytes;
    mr_err err;
    assert_int_equal(mr_retrieve_answer_bytes(&bytes, &pool, 10, 20, &err), MR_OK);
    assert_int_equal(bytes, 3 * 4 * 10 * 4);
    assert_int_equal(mr_retrieve_answer_bytes(&bytes, &dot, 10, 20, &err), MR_OK);
    assert_int_equal(bytes, 3 * 8);
    assert_int_equal(mr_retrieve_answer_bytes(&bytes, &gather, 10, 20, &err), MR_OK);
    assert_int_equal(bytes, 9 * 10 * 2);
    mr_wire_retrieve large = pool;
    large.tokens = 4096;
    large.slots = 256;
    assert_int_equal(mr_retrieve_answer_bytes(&bytes, &large, 0xffffffff, 0xffffffff, &err),
                     MR_ERR_LIMIT);
    assert_int_equal(bytes, 0);
    large = gather;
    large.entries = 0xffffffff;
    assert_int_equal(mr_retrieve_answer_bytes(&bytes, &large, 0xffffffff, 0xffffffff, &err),
                     MR_ERR_LIMIT);

    test_frame f;
    frame_make(&f, MR_FRAME_POOLED, "12345678", 8);
    assert_int_equal(mr_answer_check(&f.frame, MR_FRAME_POOLED, 8, &err), MR_OK);
    assert_int_equal(mr_answer_check(&f.frame, MR_FRAME_POOLED, 4, &err), MR_ERR_FORMAT);
    assert_int_equal(mr_answer_check(&f.frame, MR_FRAME_DOTS, 8, &err), MR_ERR_FORMAT);
    frame_free(&f);
    frame_make(&f, MR_FRAME_ERROR, "row 9 is not here", 17);
    f.header.status = MR_ERR_RANGE;
    assert_int_equal(mr_answer_check(&f.frame, MR_FRAME_POOLED, 8, &err), MR_ERR_RANGE);
    assert_string_equal(err.text, "row 9 is not here");
    f.header.status = 0; /* an error that claims to be none */
    assert_int_equal(mr_answer_check(&f.frame, MR_FRAME_POOLED, 8, &err), MR_ERR_FORMAT);
    frame_free(&f);
}

/* --- sessions --------------------------------------------------------------------------------- */

static mr_status check_any(uint16_t type, const void *payload, uint32_t bytes, mr_err *err) {
    test_frame f;
    memset(err, 0, sizeof(*err));
    frame_make(&f, type, payload, bytes);
    const mr_status status = mr_frame_check(&f.frame, err);
    if (status != MR_OK) assert_true(err->text[0] != '\0');
    frame_free(&f);
    return status;
}

static void test_hello(void **state) {
    (void)state;
    mr_err err;
    const mr_wire_hello good = {.version_min = 1,
                                .version_max = 1,
                                .role = MR_ROLE_WORKER,
                                .role_wanted = MR_ROLE_MEMSHARD,
                                .frame_bytes_max = MR_MAX_FRAME_BYTES};
    mr_wire_hello h = good;
    assert_int_equal(check_any(MR_FRAME_HELLO, &h, sizeof(h), &err), MR_OK);
    for (uint32_t cut = 0; cut < sizeof(h); cut++)
        assert_int_equal(check_any(MR_FRAME_HELLO, &h, cut, &err), MR_ERR_FORMAT);
    h.version_min = h.version_max = 0;
    assert_int_equal(check_any(MR_FRAME_HELLO, &h, sizeof(h), &err), MR_ERR_FORMAT);
    h.version_min = 2;
    h.version_max = 1;
    assert_int_equal(check_any(MR_FRAME_HELLO, &h, sizeof(h), &err), MR_ERR_FORMAT);
    h = good;
    h.role = 5;
    assert_int_equal(check_any(MR_FRAME_HELLO, &h, sizeof(h), &err), MR_ERR_FORMAT);
    h = good;
    h.nonce[3] = 1;
    assert_int_equal(check_any(MR_FRAME_HELLO, &h, sizeof(h), &err), MR_ERR_UNSUPPORTED);
    h.version_max = MR_WIRE_VERSION + 1; /* who speaks a later one may have a use for it */
    assert_int_equal(check_any(MR_FRAME_HELLO, &h, sizeof(h), &err), MR_OK);
}

static void test_welcome(void **state) {
    (void)state;
    mr_err err;
    struct {
        mr_wire_welcome fixed;
        mr_wire_cell cells[2];
    } shard = {{.version = 1,
                .role = MR_ROLE_MEMSHARD,
                .cell_count = 2,
                .grid_rows = 2,
                .grid_columns = 2},
               {{1}, {3}}};
    assert_int_equal(check_any(MR_FRAME_WELCOME, &shard, sizeof(shard), &err), MR_OK);
    for (uint32_t cut = 0; cut < sizeof(shard); cut++)
        assert_int_equal(check_any(MR_FRAME_WELCOME, &shard, cut, &err), MR_ERR_FORMAT);
    shard.cells[1].cell = 1; /* the same cell twice */
    assert_int_equal(check_any(MR_FRAME_WELCOME, &shard, sizeof(shard), &err), MR_ERR_RANGE);
    shard.cells[1].cell = 4;
    assert_int_equal(check_any(MR_FRAME_WELCOME, &shard, sizeof(shard), &err), MR_ERR_RANGE);
    shard.cells[1].cell = 3;
    shard.fixed.grid_rows = shard.fixed.grid_columns = 0x10000;
    assert_int_equal(check_any(MR_FRAME_WELCOME, &shard, sizeof(shard), &err), MR_ERR_RANGE);
    shard.fixed.cell_count = 0xffffffff;
    assert_int_equal(check_any(MR_FRAME_WELCOME, &shard, sizeof(shard), &err), MR_ERR_RANGE);
    const mr_wire_welcome bare = {.version = 1, .role = MR_ROLE_WORKER};
    assert_int_equal(check_any(MR_FRAME_WELCOME, &bare, sizeof(bare), &err), MR_ERR_FORMAT);
}

/* --- steps ------------------------------------------------------------------------------------ */

typedef struct {
    mr_wire_step fixed;
    mr_wire_sequence sequences[2];
    int32_t tokens[3];
    uint32_t blocks[3];
} step_payload;

static step_payload good_step(void) {
    return (step_payload){
        {.sequences = 2, .tokens = 3, .blocks = 3},
        {{.id = 1, .position = 16, .token_count = 1, .block_count = 2, .top_p = 1},
         {.id = 2, .token_count = 2, .block_count = 1, .temperature = 0.7f, .top_p = 0.9f}},
        {5, 6, 7},
        {0, 1, 2}};
}

static void test_step(void **state) {
    (void)state;
    mr_err err;
    step_payload s = good_step();
    test_frame f;
    mr_step_view view;
    frame_make(&f, MR_FRAME_STEP, &s, sizeof(s));
    assert_int_equal(mr_step_check(&view, &f.frame, &err), MR_OK);
    assert_int_equal(view.tokens[2], 7);
    assert_int_equal(view.blocks[0], 0);
    assert_int_equal(view.blocks[2], 2);
    frame_free(&f);
    for (uint32_t cut = 0; cut < sizeof(s); cut++)
        assert_int_not_equal(check_any(MR_FRAME_STEP, &s, cut, &err), MR_OK);
#define REFUSED(field, value)                                                                      \
    s = good_step();                                                                               \
    s.field = value;                                                                               \
    assert_int_not_equal(check_any(MR_FRAME_STEP, &s, sizeof(s), &err), MR_OK)
    REFUSED(fixed.sequences, 0);
    REFUSED(fixed.sequences, 0xffffffff);
    REFUSED(fixed.tokens, 0xffffffff);
    REFUSED(fixed.blocks, 0xffffffff);
    REFUSED(fixed.flags, 2);
    REFUSED(sequences[0].token_count, 0);
    REFUSED(sequences[0].token_count, 2);
    REFUSED(sequences[0].position, 0xffffffff);
    REFUSED(sequences[0].position, 32); /* needs three blocks */
    REFUSED(sequences[1].block_count, 0);
    REFUSED(sequences[1].block_count, 0xffffffff);
    REFUSED(sequences[1].flags, 4);
    REFUSED(sequences[1].drafted, 1); /* where nothing is sampled */
    REFUSED(sequences[1].temperature, NAN);
    REFUSED(sequences[1].temperature, -1);
    REFUSED(sequences[1].temperature, INFINITY);
    REFUSED(sequences[1].top_p, NAN);
    REFUSED(sequences[1].top_p, 1.5f);
    REFUSED(sequences[1].min_p, -0.5f);
    REFUSED(sequences[1].logprobs, MR_MAX_LOGPROBS + 1);
#undef REFUSED
    uint32_t bytes;
    assert_int_equal(mr_step_bytes(&bytes, 1, 1, 0xffffffff, &err), MR_ERR_LIMIT);
    assert_int_equal(mr_step_bytes(&bytes, 2, 3, 3, &err), MR_OK);
    assert_int_equal(bytes, sizeof(s));
}

static void test_drafted_tokens(void **state) {
    (void)state;
    mr_err err;
    test_frame f;
    mr_step_view view;
    struct {
        mr_wire_step fixed;
        mr_wire_sequence sequence;
        int32_t tokens[MR_MAX_DRAFT_TOKENS + 4];
        uint32_t blocks[4];
    } s = {.fixed = {1, MR_MAX_DRAFT_TOKENS + 4, 4, 0},
           .sequence = {.token_count = MR_MAX_DRAFT_TOKENS + 4,
                        .block_count = 4,
                        .flags = MR_SEQUENCE_SAMPLE,
                        .top_p = 1,
                        .drafted = MR_MAX_DRAFT_TOKENS}};
    frame_make(&f, MR_FRAME_STEP, &s, sizeof(s));
    assert_int_equal(mr_step_check(&view, &f.frame, &err), MR_OK);
    assert_int_equal(view.sequences[0].drafted, MR_MAX_DRAFT_TOKENS);
    f.header.version = 1; /* which has no such thing */
    assert_int_equal(mr_step_check(&view, &f.frame, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "in version 1");
    frame_free(&f);
    const uint32_t bad[] = {MR_MAX_DRAFT_TOKENS + 1, MR_MAX_DRAFT_TOKENS + 4, UINT32_MAX};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        s.sequence.drafted = bad[i];
        assert_int_equal(check_any(MR_FRAME_STEP, &s, sizeof(s), &err), MR_ERR_RANGE);
        assert_sentence(err, "drafted tokens");
    }
    s.sequence.drafted = 1;
    s.sequence.flags = MR_SEQUENCE_LOGITS;
    assert_int_equal(check_any(MR_FRAME_STEP, &s, sizeof(s), &err), MR_ERR_UNSUPPORTED);
}

static void test_step_answers(void **state) {
    (void)state;
    mr_err err;
    struct {
        mr_wire_sampled fixed;
        mr_wire_logprob top[2];
    } sampled = {{.id = 1, .token = 4, .logprob = -1, .top_count = 2}, {{4, -1}, {5, -2}}};
    assert_int_equal(check_any(MR_FRAME_SAMPLED, &sampled, sizeof(sampled), &err), MR_OK);
    sampled.fixed.top_count = 1;
    assert_int_equal(check_any(MR_FRAME_SAMPLED, &sampled, sizeof(sampled), &err), MR_ERR_FORMAT);
    sampled.fixed.top_count = 0xffffffff;
    assert_int_equal(check_any(MR_FRAME_SAMPLED, &sampled, sizeof(sampled), &err), MR_ERR_FORMAT);
    sampled.fixed.top_count = 2;
    sampled.top[1].logprob = NAN;
    assert_int_equal(check_any(MR_FRAME_SAMPLED, &sampled, sizeof(sampled), &err), MR_ERR_RANGE);

    struct {
        mr_wire_logits fixed;
        float columns[2];
    } logits = {{.columns = 2}, {1, 2}};
    assert_int_equal(check_any(MR_FRAME_LOGITS, &logits, sizeof(logits), &err), MR_OK);
    logits.fixed.columns = 0x40000002; /* times four wraps around to eight */
    assert_int_equal(check_any(MR_FRAME_LOGITS, &logits, sizeof(logits), &err), MR_ERR_FORMAT);
    logits.fixed.columns = 2;
    logits.fixed.column_first = 0xfffffffe;
    assert_int_equal(check_any(MR_FRAME_LOGITS, &logits, sizeof(logits), &err), MR_ERR_RANGE);
    assert_true(sizeof(mr_wire_logits) + 4ull * mr_logits_columns_max() <= MR_MAX_FRAME_BYTES);

    const mr_wire_done done = {.step_ns = 1};
    assert_int_equal(check_any(MR_FRAME_DONE, &done, sizeof(done), &err), MR_OK);
    assert_int_equal(check_any(MR_FRAME_DONE, &done, sizeof(done) - 1, &err), MR_ERR_FORMAT);
    assert_int_equal(check_any(MR_FRAME_PING, "x", 1, &err), MR_ERR_FORMAT);
    assert_int_equal(check_any(MR_FRAME_DOTS, "1234567", 7, &err), MR_ERR_FORMAT);
    assert_int_equal(check_any(MR_FRAME_ERROR, "", 0, &err), MR_ERR_FORMAT);
    assert_int_equal(check_any(MR_FRAME_REFUSE, "a\0b", 3, &err), MR_ERR_FORMAT);
}

/* The seeds of fuzz_wire were laid out by a Python script from proto/wire.h: a second opinion. */
static void test_frames_of_another_hand(void **state) {
    (void)state;
    static const char *const names[] = {
        "hello",     "welcome", "refuse",        "error",          "ping",     "pool",
        "step",      "sampled", "logits",        "done",           "echo",     "echoed",
        "topk_ids",  "chosen",  "topk_pooled",   "cancel",         "prefetch", "stage",
        "done_more", "hello",   "hidden_stream", "hidden_pending", NULL};
    static const char *const retrievals[] = {"pool", "gated", "dot", "gather", NULL};
    char path[512];
    char *data;
    size_t bytes;
    mr_err err = {{0}};
    for (int i = 0; names[i]; i++) {
        test_frame f;
        uint16_t type;
        int32_t status;
        snprintf(path, sizeof(path), "%s/tests/fuzz/corpus/wire/frame_%s", MR_SOURCE_DIR, names[i]);
        assert_int_equal(mr_file_read(&data, &bytes, path, 1 << 20, &err), MR_OK);
        memcpy(&type, data + 1, sizeof(type));
        memcpy(&status, data + 3, sizeof(status));
        frame_make(&f, type, data + 7, (uint32_t)bytes - 7);
        f.header.status = status;
        if (mr_frame_check(&f.frame, &err) != MR_OK) fail_msg("%s: %s", names[i], err.text);
        frame_free(&f);
        free(data);
    }
    for (int i = 0; retrievals[i]; i++) {
        snprintf(path, sizeof(path), "%s/tests/fuzz/corpus/wire/retrieve_%s", MR_SOURCE_DIR,
                 retrievals[i]);
        assert_int_equal(mr_file_read(&data, &bytes, path, 1 << 20, &err), MR_OK);
        if (check_payload(data + 1, (uint32_t)bytes - 1, &err) != MR_OK)
            fail_msg("%s: %s", retrievals[i], err.text);
        free(data);
    }
}

/* Random bytes behind every type: the sanitizers watch; a refusal must come with a sentence. */
static void test_random_payloads(void **state) {
    (void)state;
    static const uint16_t types[] = {1, 2, 3, 4, 5, 6, 16, 17, 18, 19, 32, 33, 34, 35};
    uint64_t seed = 7;
    uint8_t bytes[256];
    mr_err err;
    for (int round = 0; round < 20000; round++) {
        const uint32_t count = test_random(&seed) % sizeof(bytes);
        for (uint32_t i = 0; i < count; i++) {
            const uint32_t r = test_random(&seed);
            bytes[i] = r % 4 ? 0 : (uint8_t)(r >> 8);
        }
        check_any(types[(uint32_t)round % 14], bytes, count, &err);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_retrieve_layout),
        cmocka_unit_test(test_retrieve_fixed_part),
        cmocka_unit_test(test_retrieve_arrays),
        cmocka_unit_test(test_retrieve_answers),
        cmocka_unit_test(test_hello),
        cmocka_unit_test(test_welcome),
        cmocka_unit_test(test_step),
        cmocka_unit_test(test_drafted_tokens),
        cmocka_unit_test(test_step_answers),
        cmocka_unit_test(test_frames_of_another_hand),
        cmocka_unit_test(test_random_payloads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
