/* Goal: orders and requests arrive as they were given, from those who may give them, and whatever
 * else arrives is refused with a sentence while the service goes on.
 * Method: the real service over loopback, plain and with certificates made on the spot; servers and
 * clients that lie, on the same rpc layer. */
#include "common/net/control.h"
#include "tests/unit/rpc_test.h"
#ifdef MR_TEST_HAVE_CONTROL
#include "common/base/limits.h"
#include "common/net/control_impl.h"

#include <pthread.h>

#define assert_sentence(err, part)                                                                 \
    do {                                                                                           \
        if (!strstr((err).text, part)) fail_msg("'%s' lacks '%s'", (err).text, part);              \
    } while (0)

static const mr_rpc_security plain = {.is_plain = true};
static const mr_digest some_digest = {{7, 7, 7}};
/* --- a member --------------------------------------------------------------------------------- */

typedef struct {
    mr_control_server *server;
    char address[32];
    char leader[80];
    atomic_int loads, cancelled, unloads, drains, streams;
    atomic_bool hold, refuse;
    char last_name[80], last_peer[80];
    uint32_t last_cells[8], last_cell_count;
    mr_control_stream *stream; /* of "held" */
    mr_generation seen;        /* numbers only */
    int32_t seen_tokens[8], seen_generated[8];
    uint32_t seen_counts[8];
    bool seen_complete[8];
} member;

static mr_member *describe(void *context) {
    (void)context;
    static const char text[] =
        "{\"schema\":1,\"role\":\"memshard\",\"id\":\"m0\",\"state\":\"ready\",\"address\":"
        "\"10.0.0.1:7001\",\"machine\":\"k\",\"host\":\"h0\",\"capacity_bytes\":1000,"
        "\"incarnation\":5,\"wire\":[1,2],\"map_epoch\":0}";
    mr_member *m;
    mr_err err;
    if (mr_member_parse(&m, text, strlen(text), "it", &err) != MR_OK) fail_msg("%s", err.text);
    return m;
}

static mr_status join(void *context, const char *leader, uint64_t epoch, mr_err *err) {
    member *m = context;
    snprintf(m->leader, sizeof(m->leader), "%s/%llu", leader, (unsigned long long)epoch);
    return m->refuse ? mr_fail(err, MR_ERR_UNAVAILABLE, "not now") : MR_OK;
}

static void status(void *context, mr_control_status *out) {
    (void)context;
    out->requests = 12;
    out->requests_per_s = 2.5;
    out->p99_us = 99;
    out->etcd_is_up = true;
    strcpy(out->transport, "tcp");
    out->counter_count = 2;
    strcpy(out->counters[0].name, "hits");
    out->counters[0].value = 0.75;
    strcpy(out->counters[1].name, "misses");
}

static mr_status session_key(void *context, mr_role role, const char *id, mr_control_key *out,
                             mr_err *err) {
    (void)context, (void)err;
    *out = (mr_control_key){.key_id = 77, .valid_s = 3600, .is_required = role == MR_ROLE_WORKER};
    memset(out->key, id[0], sizeof(out->key));
    return MR_OK;
}

static mr_status load(void *context, mr_control_job *job, const mr_control_load_order *o,
                      mr_err *err) {
    member *m = context;
    snprintf(m->last_name, sizeof(m->last_name), "%s", o->name);
    snprintf(m->last_peer, sizeof(m->last_peer), "%s", o->peer_count ? o->peers[0] : "");
    m->last_cell_count = o->cell_count < 8 ? o->cell_count : 8;
    if (o->cell_count) memcpy(m->last_cells, o->cells, m->last_cell_count * sizeof(*o->cells));
    atomic_fetch_add(&m->loads, 1);
    mr_control_job_progress(job, "half\nway", 0.5);
    while (m->hold && !mr_control_job_is_cancelled(job)) sleep_ms(5);
    if (mr_control_job_is_cancelled(job)) {
        atomic_fetch_add(&m->cancelled, 1);
        return mr_fail(err, MR_ERR_CANCELLED, "the leader left");
    }
    return m->refuse ? mr_fail(err, MR_ERR_NOMEM, "cell 3 does not fit") : MR_OK;
}

static mr_status unload(void *context, mr_control_job *job, const mr_control_unload_order *o,
                        mr_err *err) {
    member *m = context;
    (void)job;
    atomic_fetch_add(&m->unloads, 1);
    m->last_cell_count = o->cell_count;
    return m->refuse ? mr_fail(err, MR_ERR_STALE, "a map needs it") : MR_OK;
}

static mr_status drain(void *context, mr_control_job *job, const mr_drain_order *o, mr_err *err) {
    member *m = context;
    (void)job, (void)err;
    atomic_fetch_add(&m->drains, o->ends ? 100 : (int)o->timeout_s);
    return MR_OK;
}

static mr_status generate(void *context, mr_control_stream *stream, const mr_generation *g,
                          mr_err *err) {
    member *m = context;
    if (m->refuse) return mr_fail(err, MR_ERR_LIMIT, "too many requests");
    m->seen = *g;
    for (size_t i = 0; i < g->token_count && i < 8; i++) m->seen_tokens[i] = g->tokens[i];
    for (size_t i = 0; i < g->generated_count && i < 8; i++) m->seen_generated[i] = g->generated[i];
    for (uint32_t i = 0; i < g->prompt_count * g->choices && i < 8; i++) {
        m->seen_counts[i] = g->generated_tokens ? g->generated_tokens[i] : 0;
        m->seen_complete[i] = g->is_complete && g->is_complete[i];
    }
    m->stream = stream;
    atomic_fetch_add(&m->streams, 1);
    return MR_OK;
}

static void member_open(member *m, mr_rpc_security security) {
    mr_err err = {{0}};
    *m = (member){0};
    const mr_control_server_options options = {
        .address = "127.0.0.1:0",
        .cluster = "demo",
        .security = security,
        .handlers = {join, describe, status, session_key, load, unload, drain, generate, m}};
    check_ok(mr_control_server_open(&m->server, &options, &err));
    snprintf(m->address, sizeof(m->address), "127.0.0.1:%d", mr_control_server_port(m->server));
}

static mr_control_client *client_to(const member *m, mr_rpc_security security) {
    mr_control_client *c;
    mr_err err = {{0}};
    const mr_control_client_options options = {.address = m->address, .security = security};
    check_ok(mr_control_client_open(&c, &options, &err));
    return c;
}

static const uint32_t cells[] = {0, 2, 3};
static const char *const peers[] = {"10.0.0.2:7001"};

static mr_control_load_order good_load(uint64_t epoch) {
    return (mr_control_load_order){.leader_epoch = epoch,
                                   .name = "demo",
                                   .digest = some_digest,
                                   .source = "/models/demo",
                                   .grid_rows = 2,
                                   .grid_columns = 2,
                                   .cells = cells,
                                   .cell_count = 3,
                                   .peers = peers,
                                   .peer_count = 1};
}

/* --- orders ----------------------------------------------------------------------------------- */

static void test_orders(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    member_open(&m, plain);
    mr_control_client *c = client_to(&m, plain);
    mr_member *record;
    check_ok(mr_control_join(c, "demo", "c0", 5, &record, after_ms(5000), &err));
    assert_string_equal(record->id, "m0");
    assert_string_equal(m.leader, "c0/5");
    mr_member_free(record);
    check_ok(mr_control_join(c, "demo", "c0", 5, NULL, after_ms(5000), &err));
    assert_int_equal(mr_control_join(c, "other", "c0", 6, &record, after_ms(5000), &err),
                     MR_ERR_MISMATCH);
    assert_sentence(err, "cluster 'demo'");
    assert_null(record);
    assert_int_equal(mr_control_join(c, "demo", "c/0", 6, NULL, after_ms(5000), &err),
                     MR_ERR_FORMAT);
    assert_int_equal(mr_control_join(c, "demo", "c9", 4, NULL, after_ms(5000), &err), MR_ERR_STALE);
    assert_sentence(err, "epoch 4; 5 was seen");
    assert_int_equal(mr_control_server_leader_epoch(m.server), 5);

    const mr_control_unload_order unload_it = {
        .leader_epoch = 6, .digest = some_digest, .cells = cells, .cell_count = 3};
    check_ok(mr_control_unload(c, &unload_it, after_ms(5000), &err));
    assert_int_equal(m.last_cell_count, 3);
    const mr_control_load_order late = good_load(5);
    assert_int_equal(mr_control_load(c, &late, NULL, NULL, 0, after_ms(5000), &err), MR_ERR_STALE);
    m.refuse = true;
    assert_int_equal(mr_control_unload(c, &unload_it, after_ms(5000), &err), MR_ERR_STALE);
    assert_sentence(err, "a map needs it");
    m.refuse = false;
    check_ok(mr_control_drain(c, &(mr_drain_order){.timeout_s = 7}, after_ms(5000), &err));
    check_ok(mr_control_drain(c, &(mr_drain_order){.ends = true}, after_ms(5000), &err));
    assert_int_equal(m.drains, 107);
    mr_control_status *figures = mr_alloc(sizeof(*figures));
    check_ok(mr_control_look(c, figures, &record, after_ms(5000), &err));
    assert_int_equal(figures->requests, 12);
    assert_true(figures->etcd_is_up && figures->requests_per_s == 2.5);
    assert_int_equal(figures->counter_count, 2);
    assert_string_equal(figures->counters[0].name, "hits");
    assert_true(figures->counters[0].value == 0.75);
    mr_member_free(record);
    free(figures);
    mr_control_key key;
    assert_int_equal(mr_control_session_key(c, MR_ROLE_WORKER, "w", &key, after_ms(5000), &err),
                     MR_ERR_UNSUPPORTED);
    assert_sentence(err, "over TLS only");
    mr_control_client_close(c);
    mr_control_server_close(m.server);
}

typedef struct {
    int count;
    bool stop;
    char what[MR_CONTROL_TEXT_BYTES];
    double fraction;
} seen_progress;

static bool note_progress(void *context, const char *what, double fraction) {
    seen_progress *p = context;
    p->count++;
    if (p->count == 1) {
        snprintf(p->what, sizeof(p->what), "%s", what);
        p->fraction = fraction;
    }
    return !p->stop;
}

static void test_loads(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    member_open(&m, plain);
    mr_control_client *c = client_to(&m, plain);
    seen_progress p = {0};
    mr_control_load_order o = good_load(1);
    check_ok(mr_control_load(c, &o, note_progress, &p, 2000, after_ms(8000), &err));
    assert_string_equal(p.what, "half?way");
    assert_true(p.fraction == 0.5 && p.count >= 2);
    assert_string_equal(m.last_name, "demo");
    assert_string_equal(m.last_peer, "10.0.0.2:7001");
    assert_int_equal(m.last_cells[2], 3);
    m.refuse = true;
    assert_int_equal(mr_control_load(c, &o, NULL, NULL, 0, after_ms(5000), &err), MR_ERR_NOMEM);
    assert_sentence(err, "cell 3 does not fit");
    m.refuse = false;
    /* Long loads speak up by themselves. */
    m.hold = true;
    p = (seen_progress){0};
    assert_int_equal(mr_control_load(c, &o, note_progress, &p, 1500, after_ms(1800), &err),
                     MR_ERR_TIMEOUT);
    assert_true(p.count >= 3);
    check_soon(m.cancelled == 1, 3000);
    p = (seen_progress){.stop = true};
    assert_int_equal(mr_control_load(c, &o, note_progress, &p, 0, after_ms(5000), &err),
                     MR_ERR_CANCELLED);
    check_soon(m.cancelled == 2, 3000);
    /* A stage, and closing while it loads. */
    o = (mr_control_load_order){.leader_epoch = 2,
                                .name = "demo",
                                .source = "peer",
                                .group = "g0",
                                .stage = 1,
                                .stages = 2};
    m.hold = false;
    check_ok(mr_control_load(c, &o, NULL, NULL, 0, after_ms(5000), &err));
    mr_control_client_close(c);
    mr_control_server_close(m.server);
}

typedef struct {
    mr_control_client *client;
    mr_status status;
} load_job;

static void *load_in_thread(void *context) {
    load_job *job = context;
    mr_err err;
    const mr_control_load_order o = good_load(1);
    job->status = mr_control_load(job->client, &o, NULL, NULL, 0, after_ms(10000), &err);
    return NULL;
}

static void test_too_many_and_close(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    member_open(&m, plain);
    m.hold = true;
    mr_control_client *c = client_to(&m, plain);
    pthread_t threads[MR_CONTROL_JOBS];
    load_job jobs[MR_CONTROL_JOBS];
    for (int i = 0; i < MR_CONTROL_JOBS; i++) {
        jobs[i] = (load_job){c, MR_OK};
        assert_int_equal(pthread_create(&threads[i], NULL, load_in_thread, &jobs[i]), 0);
    }
    check_soon(m.loads == MR_CONTROL_JOBS, 5000);
    const mr_control_load_order o = good_load(1);
    assert_int_equal(mr_control_load(c, &o, NULL, NULL, 0, after_ms(5000), &err), MR_ERR_LIMIT);
    assert_sentence(err, "orders are being carried out");
    mr_control_server_close(m.server); /* all loads are cancelled, and waited for */
    assert_int_equal(m.cancelled, MR_CONTROL_JOBS);
    for (int i = 0; i < MR_CONTROL_JOBS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_not_equal(jobs[i].status, MR_OK);
    }
    mr_control_client_close(c);
}

/* --- messages that make no sense -------------------------------------------------------------- */

static void test_bad_loads(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    member_open(&m, plain);
    mr_control_client *c = client_to(&m, plain);
    static const uint32_t twice[] = {1, 1}, down[] = {2, 1}, beyond[] = {4};
    static const char *const wild[] = {"169.254.169.254:80"};
    const char *peers_65[65];
    for (size_t i = 0; i < 65; i++) peers_65[i] = "h:1";
    mr_control_load_order bad[16];
    const char *why[16] = {"ascending", "ascending",  "grid",   "grid",   "grid",  "cells",
                           "cells",     "model",      "source", "source", "stage", "stage",
                           "group",     "link-local", "peers",  "grid"};
    for (size_t i = 0; i < 16; i++) bad[i] = good_load(1);
    bad[0].cells = twice, bad[0].cell_count = 2;
    bad[1].cells = down, bad[1].cell_count = 2;
    bad[2].cells = beyond, bad[2].cell_count = 1;
    bad[3].grid_rows = 0;
    bad[4].grid_rows = bad[4].grid_columns = UINT32_MAX;
    bad[5].cell_count = 0; /* neither cells nor a group */
    bad[6].group = "g";    /* both */
    bad[7].name = "../etc";
    bad[8].source = "";
    bad[9].source = "gopher://x/";
    for (size_t i = 10; i < 13; i++) bad[i].cell_count = 0, bad[i].group = "g", bad[i].stages = 2;
    bad[10].stage = 2;
    bad[11].stages = 1000;
    bad[12].group = "g g";
    bad[13].peers = wild;
    bad[14].peers = peers_65, bad[14].peer_count = 65;
    bad[15].grid_rows = 65536, bad[15].grid_columns = 65536;
    for (size_t i = 0; i < 16; i++) {
        if (mr_control_load(c, &bad[i], NULL, NULL, 0, after_ms(5000), &err) == MR_OK)
            fail_msg("took load %zu", i);
        assert_sentence(err, why[i]);
    }
    assert_int_equal(m.loads, 0);
    const mr_control_load_order good = good_load(1);
    check_ok(mr_control_load(c, &good, NULL, NULL, 0, after_ms(5000), &err));
    mr_control_client_close(c);
    mr_control_server_close(m.server);
}

/* Bytes that are no message, too short a digest, a million empty texts: refused, and nothing of it
 * stays. */
static void test_bad_bytes(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    member_open(&m, plain);
    mr_rpc_channel *raw;
    const mr_rpc_channel_options options = {.targets = m.address, .security = plain};
    check_ok(mr_rpc_channel_open(&raw, &options, &err));
    static const char *const paths[] = {MR_CONTROL_PATH "Join", MR_CONTROL_PATH "Unload",
                                        MR_CONTROL_PATH "Drain", MR_CONTROL_PATH "Status",
                                        MR_CONTROL_PATH "SessionKey"};
    uint8_t *bomb = malloc(1 << 20), *unknown = malloc(1 << 20);
    assert_non_null(bomb);
    assert_non_null(unknown);
    for (size_t i = 0; i < 1 << 20; i += 2) {
        bomb[i] = 0x5a; /* field 11, empty: a peer of a load, a counter of a status */
        bomb[i + 1] = 0;
        unknown[i] = 0x7a; /* field 15, unknown */
        unknown[i + 1] = 0;
    }
    static const uint8_t junk[] = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    static const uint8_t cut[] = "\x0a\x7f"
                                 "short",
                         short_digest[] = "\x12\x03"
                                          "abc";
    for (size_t i = 0; i < 5; i++) {
        assert_int_not_equal(mr_rpc_ask(raw, paths[i], junk, 12, after_ms(5000), NULL, &err),
                             MR_OK);
        assert_int_not_equal(mr_rpc_ask(raw, paths[i], cut, 7, after_ms(5000), NULL, &err), MR_OK);
        assert_int_not_equal(
            mr_rpc_ask(raw, paths[i], unknown, 1 << 20, after_ms(5000), NULL, &err), MR_OK);
    }
    assert_int_equal(mr_rpc_ask(raw, paths[1], short_digest, 5, after_ms(5000), NULL, &err),
                     MR_ERR_FORMAT);
    assert_sentence(err, "digest of 3 bytes");
    mr_message tree;
    mr_control_load_order order;
    assert_int_equal(mr_unpack_load(&tree, &order, bomb, 1 << 20, &err), MR_ERR_FORMAT);
    mr_message_free(&tree);
    assert_int_equal(m.unloads + m.drains, 0);
    mr_control_client *c = client_to(&m, plain);
    check_ok(mr_control_join(c, "demo", "c0", 1, NULL, after_ms(5000), &err));
    mr_control_client_close(c);
    mr_rpc_channel_close(raw);
    mr_control_server_close(m.server);
    free(bomb), free(unknown);
}

/* A server that answers with whatever it was told. */
typedef struct {
    mr_rpc_server *server;
    char address[32];
    const char *text;
    size_t bytes;
    mr_rpc_call *held;
    bool says_nothing;
} liar;

static void lie(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    liar *l = context;
    (void)data, (void)bytes;
    if (l->says_nothing)
        l->held = call;
    else
        mr_rpc_answer(call, l->text, l->bytes);
}

static void lie_on(void *context, mr_rpc_call *call, const uint8_t *data, size_t bytes) {
    liar *l = context;
    (void)data, (void)bytes;
    if (l->says_nothing) {
        l->held = call;
        return;
    }
    mr_rpc_send(call, l->text, l->bytes, after_ms(1000), NULL);
    mr_rpc_finish(call, MR_OK, NULL);
}

static void test_lying_server(void **state) {
    (void)state;
    mr_err err = {{0}};
    liar l = {0};
    const mr_rpc_method methods[] = {{MR_CONTROL_PATH "Join", false, lie, &l},
                                     {MR_CONTROL_PATH "Load", true, lie_on, &l},
                                     {MR_CONTROL_PATH "Status", false, lie, &l},
                                     {MR_GATEWAY_PATH, true, lie_on, &l}};
    const mr_rpc_server_options options = {
        .address = "127.0.0.1:0", .security = plain, .methods = methods, .method_count = 4};
    check_ok(mr_rpc_server_open(&l.server, &options, &err));
    snprintf(l.address, sizeof(l.address), "127.0.0.1:%d", mr_rpc_server_port(l.server));
    mr_control_client *c;
    const mr_control_client_options to = {.address = l.address, .security = plain};
    check_ok(mr_control_client_open(&c, &to, &err));
    mr_control_status *figures = mr_alloc(sizeof(*figures));
    const mr_control_load_order o = good_load(1);
    static const struct {
        const char *text;
        size_t bytes;
    } lies[] = {{"", 0}, {"\xff", 1}, {"\x0a\x02{}", 4}, {"\x19\0\0\0\0\0\0\xf8\x7f", 9}};
    for (size_t i = 0; i < 4; i++) {
        l.text = lies[i].text;
        l.bytes = lies[i].bytes;
        mr_member *record;
        assert_int_equal(mr_control_join(c, "demo", "c0", 1, &record, after_ms(5000), &err),
                         MR_ERR_FORMAT);
        assert_null(record);
        assert_int_equal(mr_control_look(c, figures, NULL, after_ms(5000), &err), MR_ERR_FORMAT);
        if (i < 3)
            assert_int_not_equal(mr_control_load(c, &o, NULL, NULL, 0, after_ms(5000), &err),
                                 MR_OK);
    }
    const int32_t token = 1;
    const uint32_t count = 1;
    const mr_generation g = {.tokens = &token,
                             .token_count = 1,
                             .prompt_tokens = &count,
                             .prompt_count = 1,
                             .choices = 1,
                             .new_tokens = 1};
    mr_control_reader *r;
    mr_generation_event event;
    static const char *const events[] = {"\x08\x05", "\x10\x01", "\x18\x01\xff"}; /* 3rd: cut */
    for (size_t i = 0; i < 3; i++) {
        l.text = events[i];
        l.bytes = strlen(events[i]);
        check_ok(mr_control_generate(&r, c, &g, after_ms(5000), &err));
        assert_int_equal(mr_control_read(r, &event, after_ms(5000), &err), MR_ERR_FORMAT);
        mr_control_reader_close(r);
    }
    l.says_nothing = true; /* as a stopped process */
    const int64_t start = mr_now_ns();
    assert_int_equal(mr_control_load(c, &o, NULL, NULL, 300, after_ms(20000), &err),
                     MR_ERR_TIMEOUT);
    assert_sentence(err, "silent for 300 ms");
    assert_true(mr_now_ns() - start < 3000000000ll);
    check_soon(l.held != NULL, 2000);
    mr_rpc_finish(l.held, MR_ERR_CANCELLED, NULL);
    free(figures);
    mr_control_client_close(c);
    mr_rpc_server_close(l.server);
}

/* --- generations ------------------------------------------------------------------------------ */

static const int32_t tokens[] = {5, 6, 7}, generated[] = {8, 9, 10};
static const uint32_t prompt_tokens[] = {2, 1}, generated_tokens[] = {1, 0, 2, 0};
static const bool complete[] = {true, false, false, true};

static mr_generation good_generation(void) {
    return (mr_generation){.model = "demo",
                           .has_digest = true,
                           .digest = some_digest,
                           .tokens = tokens,
                           .token_count = 3,
                           .prompt_tokens = prompt_tokens,
                           .prompt_count = 2,
                           .choices = 2,
                           .generated = generated,
                           .generated_count = 3,
                           .generated_tokens = generated_tokens,
                           .is_complete = complete,
                           .new_tokens = 16,
                           .temperature = 0.75f,
                           .top_p = 0.5f,
                           .min_p = 0.25f,
                           .top_k = 40,
                           .seed = UINT64_MAX,
                           .logprobs = true,
                           .top_logprobs = 2,
                           .stop_ids = {3, 4},
                           .stop_id_count = 2,
                           .lost = MR_CONTROL_LOST_DEGRADE,
                           .has_lost_wait = true,
                           .lost_wait_ms = 1500,
                           .has_speculate = true,
                           .speculate = 6};
}

static void check_seen(const member *m) {
    const mr_generation g = good_generation(), *s = &m->seen;
    assert_memory_equal(&s->digest, &g.digest, sizeof(g.digest));
    assert_true(s->temperature == g.temperature && s->top_p == g.top_p && s->min_p == g.min_p);
    assert_true(s->seed == g.seed && s->logprobs && s->lost == g.lost && s->has_lost_wait);
    assert_true(s->lost_wait_ms == 1500 && s->has_speculate && s->speculate == 6);
    assert_true(s->stop_ids[1] == 4 && s->top_k == 40 && s->new_tokens == 16);
    assert_memory_equal(m->seen_tokens, tokens, sizeof(tokens));
    assert_memory_equal(m->seen_generated, generated, sizeof(generated));
    assert_memory_equal(m->seen_counts, generated_tokens, sizeof(generated_tokens));
    assert_memory_equal(m->seen_complete, complete, sizeof(complete));
}

static void test_generation(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    member_open(&m, plain);
    mr_control_client *c = client_to(&m, plain);
    mr_control_reader *r;
    const mr_generation g = good_generation();
    check_ok(mr_control_generate(&r, c, &g, after_ms(5000), &err));
    check_soon(m.streams == 1, 3000);
    check_seen(&m);
    mr_generation_event event = {.answer = 3,
                                 .token = 11,
                                 .logprob = -1.5f,
                                 .top_count = 2,
                                 .top_tokens = {11, 12},
                                 .top_logprobs = {-1.5f, -2}};
    check_ok(mr_control_stream_send(m.stream, &event, &err));
    event =
        (mr_generation_event){.answer = 1, .token = -1, .is_complete = true, .is_degraded = true};
    check_ok(mr_control_stream_send(m.stream, &event, &err));
    check_ok(mr_control_read(r, &event, after_ms(5000), &err));
    assert_int_equal(event.answer, 3);
    assert_int_equal(event.token, 11);
    assert_int_equal(event.top_tokens[1], 12);
    assert_true(event.logprob == -1.5f && event.top_logprobs[1] == -2 && !event.is_end);
    check_ok(mr_control_read(r, &event, after_ms(5000), &err));
    assert_true(event.is_complete && event.token == -1 && event.is_degraded);
    assert_int_equal(mr_control_read(r, &event, after_ms(50), &err), MR_ERR_TIMEOUT);
    mr_fail(&err, MR_ERR_UNAVAILABLE, "the group is lost");
    mr_control_stream_end(m.stream, MR_ERR_UNAVAILABLE, false, &err);
    check_ok(mr_control_read(r, &event, after_ms(5000), &err));
    assert_true(event.is_end && event.is_degraded && event.status == MR_ERR_UNAVAILABLE);
    assert_string_equal(event.sentence, "the group is lost");
    mr_control_reader_close(r);

    m.refuse = true; /* refused at once: the sentence comes with the first read, or before */
    mr_status status = mr_control_generate(&r, c, &g, after_ms(5000), &err);
    if (status == MR_OK) {
        status = mr_control_read(r, &event, after_ms(5000), &err);
        mr_control_reader_close(r);
    }
    assert_int_equal(status, MR_ERR_LIMIT);
    assert_sentence(err, "too many requests");
    mr_control_client_close(c);
    mr_control_server_close(m.server);
}

static void note_left(void *context) {
    atomic_fetch_add((atomic_int *)context, 1);
}

/* The reader is slow, then gone: the sender never waits, is told, and ends. */
static void test_slow_reader(void **state) {
    (void)state;
    mr_err err = {{0}};
    member m;
    atomic_int left = 0;
    member_open(&m, plain);
    mr_control_client *c = client_to(&m, plain);
    mr_control_reader *r;
    const mr_generation g = good_generation();
    check_ok(mr_control_generate(&r, c, &g, after_ms(5000), &err));
    check_soon(m.streams == 1, 3000);
    mr_control_stream_watch(m.stream, note_left, &left);
    mr_generation_event event = {.answer = 0, .token = 1, .top_count = 20};
    mr_status status = MR_OK;
    uint32_t sent = 0;
    const int64_t until = after_ms(10000);
    while (status == MR_OK && mr_now_ns() < until) {
        status = mr_control_stream_send(m.stream, &event, &err);
        sent += status == MR_OK;
    }
    assert_int_equal(status, MR_ERR_AGAIN);
    uint32_t received = 0;
    while (mr_control_read(r, &event, after_ms(300), &err) == MR_OK) received++;
    assert_int_equal(received, sent);
    check_soon(left > 0, 3000); /* there is room again */
    mr_control_reader_cancel(r);
    check_soon(mr_control_stream_is_cancelled(m.stream), 3000);
    assert_int_equal(mr_control_stream_send(m.stream, &event, &err), MR_ERR_CANCELLED);
    mr_control_stream_end(m.stream, MR_ERR_CANCELLED, false, &err);
    mr_control_reader_close(r);
    mr_control_client_close(c);
    mr_control_server_close(m.server);
}

static void test_bad_generations(void **state) {
    (void)state;
    mr_err err = {{0}};
    static const int32_t negative[] = {5, -6, 7}, huge[] = {5, 1 << 30, 7};
    static const uint32_t none[] = {3, 0}, short_sum[] = {1, 1}, wraps[] = {4294967295u, 4};
    mr_generation bad[15];
    for (size_t i = 0; i < 15; i++) bad[i] = good_generation();
    bad[0].tokens = negative;
    bad[1].tokens = huge;
    bad[2].prompt_tokens = none;
    bad[3].prompt_tokens = short_sum;
    bad[4].prompt_tokens = wraps;
    bad[5].choices = 0;
    bad[6].choices = 129, bad[6].is_complete = NULL, bad[6].generated_tokens = NULL;
    bad[7].generated_count = 2;
    bad[8].temperature = -1;
    bad[9].top_p = 0.0f / 0.0f;
    bad[10].new_tokens = 0;
    bad[11].top_logprobs = 21;
    bad[12].lost_wait_ms = UINT32_MAX;
    bad[13].model = "a b", bad[14].speculate = MR_MAX_DRAFT_TOKENS + 1;
    for (size_t i = 0; i < 15; i++) {
        const mr_packed packed = mr_pack_generation(&bad[i]);
        mr_message m;
        mr_generation g;
        err.text[0] = '\0';
        if (mr_unpack_generation(&m, &g, packed.data, packed.bytes, &err) == MR_OK)
            fail_msg("took generation %zu", i);
        assert_true(strlen(err.text) > 8);
        mr_message_free(&m);
        free(packed.data);
    }
}

/* --- who may ---------------------------------------------------------------------------------- */

typedef struct {
    char *ca, *cert, *key;
} files;

static mr_rpc_security identity(const char *folder, const char *name, files *f) {
    make_certificate(folder, name, "ca");
    f->ca = mr_format("%s/ca.crt", folder);
    f->cert = mr_format("%s/%s.crt", folder, name);
    f->key = mr_format("%s/%s.key", folder, name);
    return (mr_rpc_security){.ca_file = f->ca, .cert_file = f->cert, .key_file = f->key};
}

static void files_free(files *f) {
    free(f->ca);
    free(f->cert);
    free(f->key);
}

static mr_status ask_load(const member *m, mr_rpc_security security, int64_t ms, mr_err *err) {
    mr_control_client *c = client_to(m, security);
    const mr_control_load_order o = good_load(1);
    const mr_status status = mr_control_load(c, &o, NULL, NULL, 0, after_ms(ms), err);
    mr_control_client_close(c);
    return status;
}

static mr_status ask_key(const member *m, mr_rpc_security security, mr_role role, const char *id,
                         mr_control_key *key, mr_err *err) {
    mr_control_client *c = client_to(m, security);
    const mr_status status = mr_control_session_key(c, role, id, key, after_ms(8000), err);
    mr_control_client_close(c);
    return status;
}

static void test_identities(void **state) {
    (void)state;
    if (!have_program("openssl")) skip();
    mr_err err = {{0}};
    char *folder = test_folder();
    make_authority(folder, "ca");
    files f[5];
    const mr_rpc_security shard = identity(folder, "memshard.m0", &f[0]),
                          leader = identity(folder, "coordinator.c0", &f[1]),
                          worker = identity(folder, "worker.w0", &f[2]),
                          anybody = identity(folder, "rack7", &f[3]),
                          operator_ = identity(folder, "client.ann", &f[4]);
    member m;
    member_open(&m, shard);
    check_ok(ask_load(&m, leader, 8000, &err));
    check_ok(ask_load(&m, anybody, 8000, &err)); /* of the authority, for no member in particular */
    assert_int_equal(ask_load(&m, worker, 8000, &err), MR_ERR_ARGUMENT);
    assert_sentence(err, "no coordinator by its certificate");
    assert_int_equal(ask_load(&m, operator_, 8000, &err), MR_ERR_ARGUMENT);
    const mr_rpc_security nobody = {.ca_file = f[0].ca};
    assert_int_not_equal(ask_load(&m, nobody, 1000, &err), MR_OK);
    assert_int_not_equal(ask_load(&m, plain, 1000, &err), MR_OK);
    assert_int_equal(m.loads, 2);

    mr_control_key key;
    check_ok(ask_key(&m, worker, MR_ROLE_WORKER, "w0", &key, &err));
    assert_int_equal(key.key_id, 77);
    assert_int_equal(key.key[31], 'w');
    assert_true(key.is_required);
    assert_int_equal(ask_key(&m, worker, MR_ROLE_WORKER, "w1", &key, &err), MR_ERR_ARGUMENT);
    assert_int_equal(ask_key(&m, leader, MR_ROLE_WORKER, "w0", &key, &err), MR_ERR_ARGUMENT);
    assert_int_equal(key.key_id, 0);

    mr_control_client *c = client_to(&m, leader);
    assert_int_equal(mr_control_join(c, "demo", "c1", 2, NULL, after_ms(8000), &err),
                     MR_ERR_ARGUMENT);
    check_ok(mr_control_join(c, "demo", "c0", 2, NULL, after_ms(8000), &err));
    mr_control_client_close(c);
    c = client_to(&m, operator_);
    check_ok(mr_control_drain(c, &(mr_drain_order){.timeout_s = 1}, after_ms(8000), &err));
    mr_control_client_close(c);

    /* The asking side wants to know whom it speaks to, too. */
    mr_control_client_options to = {
        .address = m.address, .security = leader, .role = MR_ROLE_MEMSHARD, .id = "m0.test"};
    check_ok(mr_control_client_open(&c, &to, &err));
    check_ok(mr_control_join(c, "demo", "c0", 2, NULL, after_ms(8000), &err));
    mr_control_client_close(c);
    to.id = "m1.test";
    check_ok(mr_control_client_open(&c, &to, &err));
    assert_int_not_equal(mr_control_join(c, "demo", "c0", 2, NULL, after_ms(1500), &err), MR_OK);
    assert_sentence(err, "memshard 'm1.test'");
    mr_control_client_close(c);
    mr_control_server_close(m.server);
    for (size_t i = 0; i < 5; i++) files_free(&f[i]);
    test_folder_remove(folder);
}
#endif

/* --- epochs ----------------------------------------------------------------------------------- */

static void test_fence(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_fence fence = {0};
    check_ok(mr_fence_check(&fence, 0, &err));
    check_ok(mr_fence_check(&fence, 3, &err));
    check_ok(mr_fence_check(&fence, 3, &err));
    assert_int_equal(mr_fence_check(&fence, 2, &err), MR_ERR_STALE);
    assert_int_equal(mr_fence_check(&fence, 0, &err), MR_ERR_STALE);
    check_ok(mr_fence_check(&fence, UINT64_MAX, &err));
    assert_true(mr_fence_highest(&fence) == UINT64_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fence),
#ifdef MR_TEST_HAVE_CONTROL
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_loads),
        cmocka_unit_test(test_too_many_and_close),
        cmocka_unit_test(test_bad_loads),
        cmocka_unit_test(test_bad_bytes),
        cmocka_unit_test(test_lying_server),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_bad_generations),
        cmocka_unit_test(test_identities),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
