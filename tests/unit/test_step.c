/* test_step.c - the engine as a library: steps of many sequences.
 *
 * Goal: what a sequence samples does not depend on who shares its steps, how its prompt was cut, or
 * how many threads there are, nor on guesses verified along with it; bad steps are refused and harm
 * nobody; a warm step allocates nothing. Method: golden models, a memshard over a loop link, and a
 * malloc that counts. */
#include "memshard/serve.h"
#include "worker/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 0
static atomic_uint allocations;
#else
#define COUNTS_ALLOCATIONS 1
static atomic_uint allocations;
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *malloc(size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, bytes);
}
void *realloc(void *old, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(old, bytes);
}
#endif

enum { BLOCKS = 64, LENGTH = 40 };

typedef struct {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shard;
    mr_engine *engine;
} cluster;

/* In place: the engine borrows the manifest from it. */
static void make(cluster *c, const char *name, uint32_t threads, mr_grid grid) {
    *c = (cluster){0};
    mr_err err = {{0}};
    mr_link *link = NULL;
    char path[512];
    snprintf(path, sizeof(path), "%s/tests/golden/%s", MR_SOURCE_DIR, name);
    if (mr_model_open(&c->model, path, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_manifest_load(&c->manifest, c->model, NULL, NULL, &err), MR_OK);
    mr_engine_options options = {.model = c->model,
                                 .manifest = &c->manifest,
                                 .threads = threads,
                                 .kv_blocks = BLOCKS,
                                 .step_tokens_max = 64,
                                 .step_sequences_max = 8,
                                 .grid = grid};
    if (mr_model_memory_count(c->model) > 0) {
        assert_int_equal(
            mr_memshard_open(&c->shard, c->model, &c->manifest, NULL, grid, 0, 1, &err), MR_OK);
        link = mr_link_loop(mr_memshard_handle, c->shard, "loop");
        options.shards = &link;
        options.shard_count = 1;
    }
    if (mr_engine_open(&c->engine, &options, &err) != MR_OK) fail_msg("%s", err.text);
    if (c->shard) mr_memshard_set_team(c->shard, mr_engine_team(c->engine));
}

static void end(cluster *c) {
    mr_engine_close(c->engine);
    mr_memshard_close(c->shard);
    mr_manifest_free(&c->manifest);
    mr_model_close(c->model);
}

/* Up to four sequences that sample, each with its own blocks. */
typedef struct {
    int32_t tokens[LENGTH];
    uint32_t known, done; /* tokens there are; of those, committed */
    uint64_t seed;
} sequence;

typedef struct {
    sequence *all[4];
} company;

static void on_sampled(void *context, uint32_t index, const mr_wire_sampled *s,
                       const mr_wire_logprob *top) {
    company *c = context;
    sequence *q = c->all[s->id];
    (void)index;
    (void)top;
    if (q->known < LENGTH) q->tokens[q->known++] = s->token;
}

/* One step: each sequence feeds at most `chunk` tokens and samples when it has fed all it knows. */
static mr_status step(cluster *c, company *who, uint32_t count, uint32_t chunk, mr_err *err) {
    mr_wire_sequence sequences[4];
    int32_t tokens[64];
    uint32_t blocks[16], used = 0, block_count = 0, active = 0;
    for (uint32_t i = 0; i < count; i++) {
        sequence *q = who->all[i];
        if (q->done >= LENGTH) continue;
        uint32_t n = q->known - q->done < chunk ? q->known - q->done : chunk;
        sequences[active++] =
            (mr_wire_sequence){.id = i,
                               .position = q->done,
                               .token_count = n,
                               .block_count = 3,
                               .flags = q->done + n == q->known ? MR_SEQUENCE_SAMPLE : 0,
                               .temperature = 0.9f,
                               .top_p = 0.9f,
                               .seed = q->seed,
                               .output_position = q->known};
        for (uint32_t k = 0; k < n; k++) tokens[used++] = q->tokens[q->done + k];
        for (uint32_t k = 0; k < 3; k++) blocks[block_count++] = 4 * i + k + 1;
        q->done += n;
    }
    if (active == 0) return MR_ERR_CANCELLED;
    const mr_step s = {.sequence_count = active,
                       .token_count = used,
                       .block_count = block_count,
                       .sequences = sequences,
                       .tokens = tokens,
                       .blocks = blocks};
    const mr_step_sink sink = {.sampled = on_sampled, .context = who};
    return mr_engine_step(c->engine, &s, &sink, NULL, err);
}

static sequence prompt(uint32_t length, uint64_t seed) {
    sequence q = {.known = length, .seed = seed};
    for (uint32_t i = 0; i < length; i++) q.tokens[i] = (int32_t)((i * 29 + seed * 7) % 280);
    return q;
}

static const char *const models[] = {"v2_glu_kx2_e4", "v1_ive4_skip", "memory_plus", "pkm",
                                     "moe_topk_norm"};

static void test_company_does_not_matter(void **state) {
    (void)state;
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        mr_err err = {{0}};
        sequence alone = prompt(11, 3);
        cluster c;
        make(&c, models[m], 1, (mr_grid){1, 1});
        company one = {{&alone}};
        while (step(&c, &one, 1, 64, &err) == MR_OK) {
        }
        end(&c);
        cluster d;
        make(&d, models[m], 3, (mr_grid){2, 3});
        sequence crowd[4] = {prompt(11, 3), prompt(17, 1), prompt(2, 2), prompt(9, 9)};
        company all = {{&crowd[0], &crowd[1], &crowd[2], &crowd[3]}};
        uint32_t round = 0;
        mr_status status;
        while ((status = step(&d, &all, 4, 1 + round++ % 5, &err)) == MR_OK) {
        }
        if (status != MR_ERR_CANCELLED) fail_msg("%s", err.text);
        end(&d);
        assert_memory_equal(alone.tokens, crowd[0].tokens, sizeof(alone.tokens));
    }
}

/* One sequence; every step verifies the true continuation, spoilt from the wrong_at-th on. */
typedef struct {
    const sequence *truth;
    const float *logprob;
    uint32_t at, got;
} verifier;

static void on_verified(void *context, uint32_t index, const mr_wire_sampled *s,
                        const mr_wire_logprob *top) {
    verifier *v = context;
    (void)index;
    const uint32_t at = v->at + v->got++;
    assert_true(at < LENGTH);
    assert_int_equal(s->token, v->truth->tokens[at]);
    assert_true(memcmp(&s->logprob, &v->logprob[at], sizeof(float)) == 0);
    assert_int_equal(s->top_count, 2);
    assert_true(top[0].logprob >= top[1].logprob);
}

typedef struct {
    sequence q;
    float logprob[LENGTH];
} plain_run;

static void on_plain(void *context, uint32_t index, const mr_wire_sampled *s,
                     const mr_wire_logprob *top) {
    plain_run *r = context;
    (void)index, (void)top;
    r->logprob[r->q.known] = s->logprob;
    r->q.tokens[r->q.known++] = s->token;
}

/* Feeds tokens [from, to), the last `drafted` of them guesses. */
static void run_sequence(cluster *c, const int32_t *tokens, uint32_t from, uint32_t to,
                         uint32_t drafted, const mr_step_sink *sink, uint32_t prompt_count) {
    mr_err err = {{0}};
    const uint32_t blocks[3] = {5, 2, 9};
    const mr_wire_sequence s = {.id = 8,
                                .position = from,
                                .token_count = to - from,
                                .block_count = 3,
                                .flags = MR_SEQUENCE_SAMPLE,
                                .temperature = 0.8f,
                                .top_p = 0.95f,
                                .seed = 4,
                                .output_position = to - drafted - prompt_count,
                                .logprobs = 2,
                                .drafted = drafted};
    const mr_step step = {.sequence_count = 1,
                          .token_count = to - from,
                          .block_count = 3,
                          .sequences = &s,
                          .tokens = tokens + from,
                          .blocks = blocks};
    if (mr_engine_step(c->engine, &step, sink, NULL, &err) != MR_OK) fail_msg("%s", err.text);
}

static void test_drafted_tokens_change_nothing(void **state) {
    enum { PROMPT = 9 };
    (void)state;
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        cluster c;
        make(&c, models[m], 2, (mr_grid){1, 2});
        plain_run plain = {.q = prompt(PROMPT, 5)};
        const mr_step_sink on_one = {.sampled = on_plain, .context = &plain};
        run_sequence(&c, plain.q.tokens, 0, PROMPT, 0, &on_one, PROMPT);
        while (plain.q.known < LENGTH)
            run_sequence(&c, plain.q.tokens, plain.q.known - 1, plain.q.known, 0, &on_one, PROMPT);
        for (uint32_t drafted = 1; drafted <= 20; drafted += 3)
            for (uint32_t right = 0; right <= drafted; right += 1 + drafted / 4) {
                /* right: of the drafted tokens so many are, then one is not */
                uint32_t known = PROMPT + 1, fed = PROMPT;
                while (known + drafted < LENGTH) {
                    int32_t tokens[LENGTH];
                    memcpy(tokens, plain.q.tokens, sizeof(tokens));
                    if (right < drafted) tokens[known + right] = (tokens[known + right] + 1) % 280;
                    verifier v = {.truth = &plain.q, .logprob = plain.logprob, .at = known};
                    const mr_step_sink sink = {.sampled = on_verified, .context = &v};
                    run_sequence(&c, tokens, fed, known + drafted, drafted, &sink, PROMPT);
                    assert_int_equal(v.got, right < drafted ? right + 1 : drafted + 1);
                    fed = known + right; /* what stands behind is written over */
                    known += v.got;
                }
            }
        end(&c);
    }
}

static void test_bad_steps_are_refused(void **state) {
    cluster c;
    mr_err err;
    make(&c, "v2_glu_kx2_e4", 1, (mr_grid){1, 1});
    const mr_wire_sequence good = {
        .token_count = 2, .block_count = 1, .top_p = 1, .flags = MR_SEQUENCE_SAMPLE};
    const int32_t tokens[2] = {1, 2}, unknown[2] = {1, 384}, negative[2] = {-1, 2};
    const uint32_t block[1] = {0}, far[1] = {BLOCKS};
    const mr_step_sink sink = {0};
    (void)state;
#define REFUSED(change, ids, kv, count)                                                            \
    do {                                                                                           \
        mr_wire_sequence s = good;                                                                 \
        change;                                                                                    \
        const mr_step bad = {.sequence_count = 1,                                                  \
                             .token_count = count,                                                 \
                             .block_count = 1,                                                     \
                             .sequences = &s,                                                      \
                             .tokens = ids,                                                        \
                             .blocks = kv};                                                        \
        assert_int_not_equal(mr_engine_step(c.engine, &bad, &sink, NULL, &err), MR_OK);            \
        assert_true(strlen(err.text) > 10);                                                        \
    } while (0)
    REFUSED(s.token_count = 0, tokens, block, 2);
    REFUSED(s.token_count = 3, tokens, block, 2);
    REFUSED(s.position = 15, tokens, block, 2); /* one block does not reach position 16 */
    REFUSED(s.position = UINT32_MAX, tokens, block, 2);
    REFUSED(s.block_count = 7, tokens, block, 2);
    REFUSED(s.top_p = 0, tokens, block, 2);
    REFUSED(s.temperature = -1, tokens, block, 2);
    REFUSED(s.temperature = 0.0f / 0.0f, tokens, block, 2);
    REFUSED(s.logprobs = 21, tokens, block, 2);
    REFUSED(s.drafted = 2, tokens, block, 2);
    REFUSED(s.drafted = UINT32_MAX, tokens, block, 2);
    REFUSED((void)0, unknown, block, 2);
    REFUSED((void)0, negative, block, 2);
    REFUSED((void)0, tokens, far, 2);
    const mr_step fine = {.sequence_count = 1,
                          .token_count = 2,
                          .block_count = 1,
                          .sequences = &good,
                          .tokens = tokens,
                          .blocks = block};
    assert_int_equal(mr_engine_step(c.engine, &fine, &sink, NULL, &err), MR_OK);
    end(&c);
}

static void test_a_warm_step_allocates_nothing(void **state) {
    (void)state;
    for (size_t m = 0; m < sizeof(models) / sizeof(models[0]); m++) {
        mr_err err = {{0}};
        cluster c;
        make(&c, models[m], 2, (mr_grid){2, 2});
        for (int warm = 0; warm < 2; warm++) {
            sequence q[2] = {prompt(20, 1), prompt(9, 2)};
            company two = {{&q[0], &q[1]}};
            const unsigned before = atomic_load(&allocations);
            while (step(&c, &two, 2, 16, &err) == MR_OK) {
            }
            if (warm && COUNTS_ALLOCATIONS) assert_int_equal(atomic_load(&allocations), before);
        }
        end(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_company_does_not_matter),
                                       cmocka_unit_test(test_drafted_tokens_change_nothing),
                                       cmocka_unit_test(test_bad_steps_are_refused),
                                       cmocka_unit_test(test_a_warm_step_allocates_nothing)};
    return cmocka_run_group_tests_name("step", tests, NULL, NULL);
}
