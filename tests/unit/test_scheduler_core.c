/* Goal: every request submitted to the core ends exactly once, with the right tokens or a reason.
 * Method: a scripted fake worker (fake_worker.h) that echoes prompts from its KV blocks, so that
 * any mistake in batching shows; failures at chosen steps; waits bounded by ten seconds. */
#include "tests/unit/core_client.h"

static void test_one_answer(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, NULL);
    client *c = client_new();
    mr_request *r = request_for(c, "hello world, hello memory", 200);
    const size_t count = r->tokens.count;
    r->new_tokens = (uint32_t)count;
    submit(core, c, r);
    client_wait(c);
    assert_int_equal(c->status, MR_OK);
    assert_string_equal(mr_text_string(&c->text[0]), "hello world, hello memory");
    assert_int_equal(c->finish[0], MR_FINISH_LENGTH);
    assert_int_equal(c->generated_tokens, count);
    assert_int_equal(c->prompt_tokens, count);
    client_free(c);
    finish(core, w);
}

static void test_many_answers_at_once(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, NULL);
    w->delay_ms = 1;
    client *all[40];
    for (int i = 0; i < 40; i++) {
        char prompt[200];
        all[i] = client_new();
        snprintf(
            prompt, sizeof(prompt), "request number %d says %.*s", i, 3 + i * 2,
            "the quick brown fox jumps over the lazy dog and back again until the evening comes");
        mr_request *r = request_for(all[i], prompt, 0);
        r->new_tokens = (uint32_t)r->tokens.count;
        r->choices = 1 + (uint32_t)i % 3;
        submit(core, all[i], r);
    }
    for (int i = 0; i < 40; i++) {
        client_wait(all[i]);
        assert_int_equal(all[i]->status, MR_OK);
        for (uint32_t choice = 0; choice < 1 + (uint32_t)i % 3; choice++) {
            const mr_token_list *t = &all[i]->tokens[choice];
            for (size_t k = 0; k + choice < t->count; k++)
                assert_int_equal(t->items[k], all[i]->tokens[0].items[k + choice]);
        }
        client_free(all[i]);
    }
    assert_true(w->largest_batch > 3);
    finish(core, w);
}

static void test_stops(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, NULL);
    client *c = client_new();
    mr_request *r = request_for(c, "one two three four", 50);
    const char *const stop[] = {"three"};
    const size_t bytes[] = {5};
    r->stops = mr_stop_set_open(stop, bytes, 1);
    r->logprobs = true;
    r->top_logprobs = 3;
    submit(core, c, r);
    client_wait(c);
    assert_string_equal(mr_text_string(&c->text[0]), "one two ");
    assert_int_equal(c->finish[0], MR_FINISH_STOP);
    assert_true(c->entries > 0);
    client_free(c);
    c = client_new();
    r = request_for(c, "one two<|end|> three", 50);
    r->stop_ids[r->stop_id_count++] = 2;
    submit(core, c, r);
    client_wait(c);
    assert_string_equal(mr_text_string(&c->text[0]), "one two");
    assert_int_equal(c->finish[0], MR_FINISH_STOP);
    client_free(c);
    finish(core, w);
}

static void test_what_can_never_run_is_refused(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, &(mr_core_options){.context_tokens = 100});
    static const char *const sentences[] = {"has no tokens", "context has 100", "token 700 is not",
                                            "token -1 is not", "logits are"};
    for (int i = 0; i < 5; i++) {
        client *c = client_new();
        mr_request *r = request_for(c, "x", 5);
        if (i == 0) r->tokens.count = r->prompt_tokens[0] = 0;
        for (int k = 0; i == 1 && k < 99; k++) mr_token_list_add(&r->tokens, 5);
        if (i == 1) r->prompt_tokens[0] = 100;
        if (i == 2) r->tokens.items[0] = FAKE_VOCAB;
        if (i == 3) r->tokens.items[0] = -1;
        if (i == 4) {
            r->logits = true;
            int32_t many[100] = {0};
            for (int k = 0; k < 2000; k++) mr_request_add_prompt(r, many, 100);
        }
        submit(core, c, r);
        client_wait(c);
        assert_int_equal(c->status, MR_ERR_ARGUMENT);
        if (!strstr(c->err.text, sentences[i])) fail_msg("%s", c->err.text);
        client_free(c);
    }
    finish(core, w);
}

static void test_answers_end_with_the_context(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, &(mr_core_options){.context_tokens = 40});
    client *c = client_new();
    mr_request *r = request_for(c, "abc", 1000000);
    const size_t count = r->tokens.count;
    submit(core, c, r);
    client_wait(c);
    assert_int_equal(c->status, MR_OK);
    assert_int_equal(c->generated_tokens, 40 - count);
    assert_int_equal(c->finish[0], MR_FINISH_LENGTH);
    client_free(c);
    finish(core, w);
}

static void test_a_failed_step_fails_only_its_requests(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->error_at = 3;
    w->error_status = MR_ERR_RANGE;
    mr_core *core = open_core(w, NULL);
    client *c = client_new();
    submit(core, c, request_for(c, "some words here", 50));
    client_wait(c);
    assert_int_equal(c->status, MR_ERR_RANGE);
    assert_string_equal(c->err.text, "memshard 1 of 2 is gone");
    client *d = client_new();
    submit(core, d, request_for(d, "some words here", 5));
    client_wait(d);
    assert_int_equal(d->status, MR_OK);
    client_free(c);
    client_free(d);
    finish(core, w);
}

static void broken_worker(fake_worker *w, uint32_t timeout_ms, const char *sentence) {
    mr_err err;
    mr_core *core = open_core(w, &(mr_core_options){.step_timeout_ms = timeout_ms});
    client *c[3];
    w->delay_ms = 30; /* so that all three are in before it happens */
    for (int i = 0; i < 3; i++) {
        c[i] = client_new();
        submit(core, c[i], request_for(c[i], "some words here", 50));
    }
    const int64_t start = mr_now_ns();
    for (int i = 0; i < 3; i++) {
        client_wait(c[i]);
        assert_int_equal(c[i]->status, MR_ERR_UNAVAILABLE);
        if (!strstr(c[i]->err.text, sentence)) fail_msg("%s", c[i]->err.text);
        client_free(c[i]);
    }
    assert_true(mr_now_ns() - start < 3000000000ll);
    assert_int_equal(mr_core_health(core, &err), MR_ERR_UNAVAILABLE);
    assert_non_null(strstr(err.text, sentence));
    uint64_t id;
    mr_request *r = mr_request_new();
    assert_int_equal(mr_core_submit(core, r, &id, &err), MR_ERR_UNAVAILABLE);
    mr_request_free(r);
    finish(core, w);
}

static void test_a_silent_worker_is_a_dead_one(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->silent_at = 4;
    broken_worker(w, 300, "has not gone on with its step for 0.3 s");
}

static void test_a_lost_worker_fails_everyone(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->hang_up_at = 4;
    broken_worker(w, 5000, "connection was closed");
}

static void test_a_worker_that_talks_nonsense_is_dropped(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->garbage_at = 4;
    broken_worker(w, 5000, "unexpected POOLED");
}

static void test_connecting_again(void **state) {
    (void)state;
    char path[64], address[80];
    mr_err err = {{0}};
    mr_core *core;
    snprintf(path, sizeof(path), "/tmp/mr-core-%ld.sock", (long)getpid());
    snprintf(address, sizeof(address), "unix:%s", path);
    unlink(path);
    const mr_core_options o = {
        .worker_address = address, .tokenizer = tokenizer, .silence_timeout_ms = 400};
    assert_int_equal(mr_core_open(&core, &o, &err), MR_OK);
    assert_int_equal(mr_core_wait_ready(core, mr_now_ns() + 50000000, &err), MR_ERR_TIMEOUT);
    fake_worker *w = fake_worker_new();
    w->hang_up_at = 2;
    fake_worker_listen(w, path);
    if (mr_core_wait_ready(core, mr_now_ns() + 10000000000ll, &err) != MR_OK)
        fail_msg("%s", err.text);
    client *c = client_new();
    mr_request *r = request_for(c, "some words", 9);
    r->new_tokens = (uint32_t)r->tokens.count;
    submit(core, c, r);
    client_wait(c); /* it went on behind the first token */
    assert_int_equal(c->status, MR_OK);
    assert_string_equal(mr_text_string(&c->text[0]), "some words");
    client_free(c);
    assert_int_equal(mr_core_metrics(core)->reconnects, 1);
    usleep(600000); /* pings are answered: nothing happens */
    assert_int_equal(mr_core_health(core, &err), MR_OK);
    w->mute = true; /* stopped while nobody asks anything */
    for (int i = 0; mr_core_health(core, &err) == MR_OK; i++) {
        if (i > 300) fail_msg("a silent worker is not noticed");
        usleep(10000);
    }
    assert_non_null(strstr(err.text, "silent"));
    finish(core, w);
    unlink(path);
}

static void test_queue_cancel_and_drain(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->delay_ms = 5;
    mr_core *core = open_core(w, &(mr_core_options){.queue_max = 4});
    client *c[40];
    mr_err err = {{0}};
    int taken = 0, refused = 0;
    for (int i = 0; i < 40; i++) {
        c[i] = client_new();
        mr_request *r = request_for(c[i], "a rather long story about nothing", 400);
        if (mr_core_submit(core, r, &c[i]->id, &err) == MR_OK)
            taken++;
        else {
            refused++;
            assert_non_null(strstr(err.text, "waiting already"));
            mr_request_free(r);
            client_free(c[i]);
            c[i] = NULL;
        }
    }
    assert_true(taken >= 4 && refused > 0);
    for (int i = 0; i < 40; i++)
        if (c[i]) mr_core_cancel(core, c[i]->id);
    for (int i = 0; i < 40; i++) {
        if (!c[i]) continue;
        client_wait(c[i]);
        assert_int_equal(c[i]->status, MR_ERR_CANCELLED);
        client_free(c[i]);
    }
    mr_core_cancel(core, 123456);
    client *slow = client_new();
    slow->refuse = true;
    submit(core, slow, request_for(slow, "words", 400));
    client_wait(slow);
    assert_int_equal(slow->status, MR_ERR_CANCELLED);
    client_free(slow);
    client *last = client_new();
    submit(core, last, request_for(last, "words", 10));
    mr_core_drain(core);
    mr_request *r = mr_request_new();
    uint64_t id;
    assert_int_equal(mr_core_submit(core, r, &id, &err), MR_ERR_UNAVAILABLE);
    mr_request_free(r);
    client_wait(last);
    assert_int_equal(last->status, MR_OK);
    client_free(last);
    finish(core, w);
}

static void test_closing_ends_what_is_left(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->silent_at = 2;
    mr_core *core = open_core(w, NULL);
    client *c = client_new();
    submit(core, c, request_for(c, "words", 10));
    while (w->steps < 2) usleep(1000);
    client *d = client_new();
    submit(core, d, request_for(d, "words", 10));
    mr_core_close(core);
    client_wait(c);
    client_wait(d);
    assert_int_equal(c->status, MR_ERR_UNAVAILABLE);
    assert_int_equal(d->status, MR_ERR_UNAVAILABLE);
    client_free(c);
    client_free(d);
    fake_worker_stop(w);
}

static void test_logits(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, NULL);
    client *c = client_new();
    mr_request *r = mr_request_new();
    int32_t ids[2][50];
    for (int b = 0; b < 2; b++) {
        for (int t = 0; t < 50; t++) ids[b][t] = b * 100 + t;
        mr_request_add_prompt(r, ids[b], 50);
    }
    r->logits = true;
    r->chunk_tokens = 7;
    r->single_from = 40;
    r->sink = client_sink;
    r->context = c;
    submit(core, c, r);
    client_wait(c);
    assert_int_equal(c->status, MR_OK);
    for (int b = 0; b < 2; b++)
        for (int t = 0; t < 50; t++)
            for (int v = 0; v < FAKE_COLUMNS; v += 37)
                assert_true(c->logits[(b * 50 + t) * FAKE_COLUMNS + v] ==
                            (float)ids[b][t] * 1000.0f + (float)v);
    client_free(c);
    finish(core, w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_answer),
        cmocka_unit_test(test_many_answers_at_once),
        cmocka_unit_test(test_stops),
        cmocka_unit_test(test_what_can_never_run_is_refused),
        cmocka_unit_test(test_answers_end_with_the_context),
        cmocka_unit_test(test_a_failed_step_fails_only_its_requests),
        cmocka_unit_test(test_a_silent_worker_is_a_dead_one),
        cmocka_unit_test(test_a_lost_worker_fails_everyone),
        cmocka_unit_test(test_a_worker_that_talks_nonsense_is_dropped),
        cmocka_unit_test(test_connecting_again),
        cmocka_unit_test(test_queue_cancel_and_drain),
        cmocka_unit_test(test_closing_ends_what_is_left),
        cmocka_unit_test(test_logits),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
