/* core_client.h - what tests of the core share: a client that counts what it is told, requests for
 * texts, a core with one fake worker behind a socket pair. */
#ifndef MR_TESTS_CORE_CLIENT_H
#define MR_TESTS_CORE_CLIENT_H
#include "coordinator/core.h"
#include "tests/unit/fake_worker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static mr_tokenizer *tokenizer;

static inline int setup(void **state) {
    (void)state;
    return mr_tokenizer_open(&tokenizer, MR_SOURCE_DIR "/tests/tokenizer/gpt2.json", NULL) == MR_OK
               ? 0
               : -1;
}

static inline int teardown(void **state) {
    (void)state;
    mr_tokenizer_close(tokenizer);
    return 0;
}

/* What a request's sink saw. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    mr_token_list tokens[16];
    mr_text text[16];
    mr_finish finish[16];
    uint32_t entries, ends, events;
    mr_status status;
    mr_err err;
    uint64_t prompt_tokens, generated_tokens, cached_tokens;
    bool is_degraded, finished_degraded;
    float *logits;
    bool refuse; /* the sink says it cannot keep up */
    uint64_t id;
} client;

static inline bool client_sink(void *context, const mr_event *e) {
    client *c = context;
    pthread_mutex_lock(&c->lock);
    c->events++;
    if (e->is_end) {
        c->ends++;
        c->status = e->status;
        mr_fail(&c->err, MR_OK, "%s", e->sentence);
        c->prompt_tokens = e->prompt_tokens;
        c->generated_tokens = e->generated_tokens;
        c->cached_tokens = e->cached_tokens;
        c->is_degraded = e->is_degraded;
        c->logits = e->logits;
    } else {
        if (e->token >= 0) mr_token_list_add(&c->tokens[e->answer], e->token);
        mr_text_add(&c->text[e->answer], e->text, e->bytes);
        c->entries += e->entry_count;
        if (e->finish != MR_FINISH_NONE) {
            c->finish[e->answer] = e->finish;
            c->finished_degraded |= e->is_degraded;
        }
    }
    const bool go_on = !c->refuse;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return go_on;
}

static inline client *client_new(void) {
    client *c = mr_alloc(sizeof(*c));
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    return c;
}

static inline void client_wait(client *c) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    pthread_mutex_lock(&c->lock);
    while (c->ends == 0)
        if (pthread_cond_timedwait(&c->changed, &c->lock, &until) != 0) fail_msg("no end event");
    pthread_mutex_unlock(&c->lock);
    assert_int_equal(c->ends, 1);
}

static inline void client_free(client *c) {
    for (int i = 0; i < 16; i++) {
        mr_token_list_free(&c->tokens[i]);
        mr_text_free(&c->text[i]);
    }
    free(c->logits);
    free(c);
}

static inline mr_request *request_for(client *c, const char *prompt, uint32_t new_tokens) {
    mr_request *r = mr_request_new();
    mr_token_list ids = {0};
    assert_int_equal(mr_tokenizer_encode(tokenizer, prompt, strlen(prompt), NULL, &ids, NULL),
                     MR_OK);
    mr_request_add_prompt(r, ids.items, ids.count);
    mr_token_list_free(&ids);
    r->new_tokens = new_tokens;
    r->sink = client_sink;
    r->context = c;
    return r;
}

static inline void submit(mr_core *core, client *c, mr_request *r) {
    mr_err err = {{0}};
    if (mr_core_submit(core, r, &c->id, &err) != MR_OK) fail_msg("%s", err.text);
}

static inline mr_core *open_core(fake_worker *w, const mr_core_options *more) {
    mr_core *core;
    mr_err err = {{0}};
    mr_core_options o = more ? *more : (mr_core_options){0};
    o.link = fake_worker_start(w);
    o.tokenizer = tokenizer;
    if (mr_core_open(&core, &o, &err) != MR_OK) fail_msg("%s", err.text);
    return core;
}

static inline void finish(mr_core *core, fake_worker *w) {
    assert_int_equal(mr_core_live_requests(core), 0);
    mr_core_close(core);
    assert_int_equal(w->wrong, 0);
    fake_worker_stop(w);
}

#endif
