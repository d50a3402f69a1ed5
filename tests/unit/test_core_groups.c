/* Goal: whatever happens to worker groups, a request gets the tokens it would have got anyway, or
 * one clear reason within its bounds. Method: cores with several fake workers (fake_worker.h),
 * which echo prompts out of their KV blocks, so that the right answer is known; groups are lost,
 * stopped, taken away and refused in the middle of answers. */
#include "coordinator/router.h"
#include "tests/unit/core_client.h"

enum { MS = 1000000 };

typedef struct {
    fake_worker *worker;
    char name[32], path[64], address[80];
} home;

static home home_open(const char *name) {
    home h = {.worker = fake_worker_new()};
    snprintf(h.name, sizeof(h.name), "%s", name);
    snprintf(h.path, sizeof(h.path), "/tmp/mr-groups-%ld-%s.sock", (long)getpid(), name);
    snprintf(h.address, sizeof(h.address), "unix:%s", h.path);
    unlink(h.path);
    return h;
}

static void home_listen(const home *h) {
    fake_worker_listen(h->worker, h->path);
}

static void home_close(home *h) {
    assert_int_equal(h->worker->wrong, 0);
    fake_worker_stop(h->worker);
    unlink(h->path);
}

static mr_core *open_empty(const mr_core_options *more) {
    mr_core *core;
    mr_err err = {{0}};
    mr_core_options o = more ? *more : (mr_core_options){0};
    o.tokenizer = tokenizer;
    if (mr_core_open(&core, &o, &err) != MR_OK) fail_msg("%s", err.text);
    return core;
}

static void set_homes(mr_core *core, const home *homes, uint32_t count, uint32_t stages,
                      uint64_t epoch) {
    mr_group_spec specs[4];
    for (uint32_t i = 0; i < count; i++)
        specs[i] = (mr_group_spec){
            .name = homes[i].name, .address = homes[i].address, .stages = stages, .epoch = epoch};
    mr_core_set_groups(core, specs, count);
}

static uint32_t groups_up(mr_core *core, mr_group_look looks[8]) {
    uint32_t up = 0;
    const uint32_t count = mr_core_groups(core, looks, 8);
    for (uint32_t i = 0; i < count; i++) up += looks[i].state == MR_GROUP_UP;
    return up;
}

static void wait_up(mr_core *core, uint32_t count) {
    mr_group_look looks[8];
    for (int i = 0; groups_up(core, looks) != count; i++) {
        if (i > 1000) fail_msg("not %u groups up", count);
        usleep(10000);
    }
}

/* Answers begin with the prompt itself; choice c with what comes c tokens later. */
static void check_echo(client *c, const char *prompt, uint32_t choices) {
    mr_token_list ids = {0};
    client_wait(c);
    if (c->status != MR_OK) fail_msg("%s", c->err.text);
    mr_tokenizer_encode(tokenizer, prompt, strlen(prompt), NULL, &ids, NULL);
    for (uint32_t k = 0; k < choices; k++)
        for (size_t i = 0; i < c->tokens[k].count; i++)
            assert_int_equal(c->tokens[k].items[i], ids.items[(i + k) % ids.count]);
    assert_true(c->tokens[0].count > 0);
    mr_token_list_free(&ids);
}

static const char text[] = "the quick brown fox jumps over the lazy dog and back again until the "
                           "evening comes and everyone has gone home to their supper";

enum { MANY = 12 };
typedef struct {
    client *clients[MANY];
    char prompts[MANY][200];
} crowd;

static void crowd_submit(crowd *all, mr_core *core, uint32_t new_tokens) {
    for (int i = 0; i < MANY; i++) {
        all->clients[i] = client_new();
        snprintf(all->prompts[i], sizeof(all->prompts[i]), "%.*s of %d", 10 + i * 5, text, i / 2);
        mr_request *r = request_for(all->clients[i], all->prompts[i], new_tokens);
        r->choices = 1 + (uint32_t)i % 3;
        submit(core, all->clients[i], r);
    }
}

static void crowd_check(crowd *all) {
    for (int i = 0; i < MANY; i++) {
        check_echo(all->clients[i], all->prompts[i], 1 + (uint32_t)i % 3);
        assert_int_equal(all->clients[i]->finish[0], MR_FINISH_LENGTH);
        client_free(all->clients[i]);
    }
}

static void await_steps(const fake_worker *w, uint32_t steps) {
    for (int i = 0; w->steps < steps; i++) {
        if (i > 2000) fail_msg("only %u steps", (unsigned)w->steps);
        usleep(5000);
    }
}

static void close_core(mr_core *core) {
    assert_int_equal(mr_core_live_requests(core), 0);
    mr_core_close(core);
}

static void test_streams_outlive_their_group(void **state) {
    (void)state;
    for (int how = 0; how < 3; how++) {
        home h[2] = {home_open("a"), home_open("b")};
        crowd all;
        for (int i = 0; i < 2; i++) h[i].worker->delay_ms = 2;
        if (how == 0) h[0].worker->hang_up_at = 12;
        home_listen(&h[0]);
        home_listen(&h[1]);
        mr_core *core = open_empty(&(mr_core_options){.silence_timeout_ms = 300});
        set_homes(core, h, 2, 0, 0);
        wait_up(core, 2);
        crowd_submit(&all, core, 30);
        if (how > 0) await_steps(h[0].worker, 8);
        if (how == 1) h[0].worker->mute = true; /* as if stopped */
        if (how == 2) set_homes(core, h + 1, 1, 0, 0);
        crowd_check(&all);
        assert_true(mr_core_metrics(core)->failovers > 0);
        assert_true(h[1].worker->steps > 0);
        close_core(core);
        for (int i = 0; i < 2; i++) home_close(&h[i]);
    }
}

static void test_a_newer_owner_ends_ours(void **state) {
    (void)state;
    home h[2] = {home_open("a"), home_open("b")};
    crowd all;
    mr_group_look looks[8];
    for (int i = 0; i < 2; i++) {
        h[i].worker->delay_ms = 2;
        home_listen(&h[i]);
    }
    mr_core *core = open_empty(NULL);
    set_homes(core, h, 2, 0, 5);
    wait_up(core, 2);
    crowd_submit(&all, core, 20);
    await_steps(h[0].worker, 4);
    h[0].worker->owner_epoch = 6;
    crowd_check(&all);
    mr_core_groups(core, looks, 8);
    assert_int_equal(looks[0].state, MR_GROUP_STALE);
    assert_non_null(strstr(looks[0].reason.text, "another coordinator owns this group"));
    set_homes(core, h, 2, 0, 7); /* ours again */
    wait_up(core, 2);
    assert_int_equal(mr_core_groups(core, looks, 8), 2);
    assert_int_equal(looks[0].epoch, 7);
    crowd_submit(&all, core, 5);
    crowd_check(&all);
    close_core(core);
    for (int i = 0; i < 2; i++) home_close(&h[i]);
}

static void test_requests_wait_for_a_group_but_not_forever(void **state) {
    (void)state;
    home h = home_open("a");
    mr_err err;
    uint64_t id;
    mr_core *core = open_empty(&(mr_core_options){.worker_wait_ms = 400});
    mr_request *r = mr_request_new();
    assert_int_equal(mr_core_submit(core, r, &id, &err), MR_ERR_UNAVAILABLE);
    assert_non_null(strstr(err.text, "no worker group is known"));
    mr_request_free(r);
    set_homes(core, &h, 1, 0, 0);
    mr_group_look looks[8];
    while (mr_core_groups(core, looks, 8) == 0) usleep(1000);
    client *c = client_new();
    const int64_t start = mr_now_ns();
    submit(core, c, request_for(c, text, 5));
    client_wait(c);
    assert_int_equal(c->status, MR_ERR_UNAVAILABLE);
    assert_non_null(strstr(c->err.text, "No such file"));
    assert_true(mr_now_ns() - start > 350 * MS && mr_now_ns() - start < 1500 * MS);
    client_free(c);
    mr_core_close(core);
    core = open_empty(&(mr_core_options){.worker_wait_ms = 8000});
    set_homes(core, &h, 1, 0, 0);
    while (mr_core_groups(core, looks, 8) == 0) usleep(1000);
    c = client_new();
    submit(core, c, request_for(c, text, 5));
    usleep(50000);
    home_listen(&h); /* now it comes */
    check_echo(c, text, 1);
    client_free(c);
    close_core(core);
    home_close(&h);
}

static void test_a_request_that_kills_workers_is_given_up(void **state) {
    (void)state;
    home h = home_open("a");
    mr_core *core = open_empty(NULL);
    h.worker->hang_up_always = true;
    home_listen(&h);
    set_homes(core, &h, 1, 0, 0);
    wait_up(core, 1);
    client *c = client_new();
    submit(core, c, request_for(c, text, 5));
    client_wait(c);
    assert_int_equal(c->status, MR_ERR_UNAVAILABLE);
    client_free(c);
    h.worker->hang_up_always = false;
    wait_up(core, 1);
    c = client_new();
    submit(core, c, request_for(c, text, 5));
    check_echo(c, text, 1);
    client_free(c);
    close_core(core);
    home_close(&h);
}

static client *with_policy(mr_core *core, mr_lost_policy lost, uint32_t wait_ms) {
    client *c = client_new();
    mr_request *r = request_for(c, text, 12);
    r->lost = lost;
    r->has_lost_wait = wait_ms > 0;
    r->lost_wait_ms = wait_ms;
    submit(core, c, r);
    return c;
}

static void test_lost_rows_by_policy(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, &(mr_core_options){.lost_wait_ms = 5000});
    w->rows_lost = true;
    client *fails = with_policy(core, MR_LOST_FAIL, 0);
    client *waits = with_policy(core, MR_LOST_DEFAULT, 0);
    client *tires = with_policy(core, MR_LOST_WAIT, 150);
    client *degrades = with_policy(core, MR_LOST_DEGRADE, 0);
    client_wait(fails);
    assert_int_equal(fails->status, MR_ERR_UNAVAILABLE);
    assert_string_equal(fails->err.text, "memshard 1 of 2 is gone");
    check_echo(degrades, text, 1);
    assert_true(degrades->is_degraded && degrades->finished_degraded);
    client_wait(tires);
    assert_int_equal(tires->status, MR_ERR_UNAVAILABLE);
    assert_int_equal(waits->ends, 0);
    w->rows_lost = false;
    check_echo(waits, text, 1);
    assert_false(waits->is_degraded);
    mr_metrics *m = mr_core_metrics(core);
    assert_true(m->step_retries > 3 && m->degraded_steps > 0);
    assert_int_equal(m->degraded_requests, 1);
    client_free(fails);
    client_free(waits);
    client_free(tires);
    client_free(degrades);
    finish(core, w);
}

static void test_degraded_blocks_are_not_shared(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, NULL);
    w->rows_lost = true;
    client *c = with_policy(core, MR_LOST_DEGRADE, 0);
    check_echo(c, text, 1);
    client_free(c);
    w->rows_lost = false;
    usleep(10000);
    for (int i = 0; i < 2; i++) {
        c = with_policy(core, MR_LOST_DEFAULT, 0);
        check_echo(c, text, 1);
        if (i == 0) assert_int_equal(c->cached_tokens, 0);
        if (i == 1) assert_true(c->cached_tokens >= 16);
        client_free(c);
    }
    finish(core, w);
}

static void test_micro_batches(void **state) {
    (void)state;
    for (uint32_t stages = 1; stages <= 3; stages += 2) {
        home h = home_open("a");
        crowd all;
        h.worker->stages = stages;
        h.worker->lag = 8;
        home_listen(&h);
        mr_core *core = open_empty(NULL);
        set_homes(core, &h, 1, 0, 0);
        wait_up(core, 1);
        mr_group_look looks[8];
        mr_core_groups(core, looks, 8);
        assert_int_equal(looks[0].stages, stages);
        crowd_submit(&all, core, 20);
        crowd_check(&all);
        assert_int_equal(h.worker->most_out, stages);
        close_core(core);
        home_close(&h);
    }
}

static void test_known_prefixes_decide_where_to(void **state) {
    (void)state;
    home h[2] = {home_open("a"), home_open("b")};
    for (int i = 0; i < 2; i++) home_listen(&h[i]);
    mr_core *core = open_empty(NULL);
    set_homes(core, h, 2, 0, 0);
    wait_up(core, 2);
    client *c = client_new();
    submit(core, c, request_for(c, text, 5));
    check_echo(c, text, 1);
    assert_int_equal(c->cached_tokens, 0);
    client_free(c);
    const int first = h[0].worker->steps > 0 ? 0 : 1;
    for (int i = 0; i < 6; i++) {
        char prompt[300];
        snprintf(prompt, sizeof(prompt), "%s, number %d", text, i);
        c = client_new();
        submit(core, c, request_for(c, prompt, 5));
        check_echo(c, prompt, 1);
        assert_true(c->cached_tokens >= 16);
        client_free(c);
    }
    assert_int_equal(h[1 - first].worker->steps, 0);
    assert_true(mr_core_metrics(core)->cached_tokens >= 6 * 16);
    close_core(core);
    for (int i = 0; i < 2; i++) home_close(&h[i]);
}

static void test_router(void **state) {
    (void)state;
    const mr_route_choice idle[] = {{0, 0}, {0, 0}, {0, 0}};
    for (uint32_t turn = 0; turn < 6; turn++)
        assert_int_equal(mr_router_choose(idle, 3, turn), turn % 3);
    const mr_route_choice busy[] = {{500, 0}, {100, 0}, {300, 0}};
    assert_int_equal(mr_router_choose(busy, 3, 0), 1);
    const mr_route_choice known[] = {{500, 0}, {100, 0}, {300, 160}};
    assert_int_equal(mr_router_choose(known, 3, 0), 2);
    const mr_route_choice overloaded[] = {{500, 0}, {100, 0}, {500, 160}};
    assert_int_equal(mr_router_choose(overloaded, 3, 0), 1);
    const mr_route_choice both[] = {{500, 160}, {400, 160}, {300, 0}};
    assert_int_equal(mr_router_choose(both, 3, 0), 1);
}

/* --- forwarding ------------------------------------------------------------------------------- */

/* Another coordinator in the same process: what gRPC brings it, this brings it. */
typedef struct {
    mr_core *from, *to;
    atomic_bool reaches;
    uint64_t remote_id;
} relay;

static bool relay_reaches(void *context, const mr_digest *digest) {
    (void)digest;
    return ((relay *)context)->reaches;
}

typedef struct {
    relay *relay;
    uint64_t id;
} relay_try;

static bool relay_sink(void *context, const mr_event *e) {
    relay_try *t = context;
    mr_forward_event event = {.id = t->id,
                              .is_end = e->is_end,
                              .answer = e->answer,
                              .status = e->status,
                              .is_degraded = e->is_degraded};
    if (e->is_end) mr_fail(&event.sentence, MR_OK, "%s", e->sentence);
    event.entry.token = e->token;
    if (e->is_end || e->token >= 0) mr_core_forwarded(t->relay->from, &event);
    if (e->is_end) free(t);
    return true;
}

static mr_status relay_submit(void *context, const mr_forward_job *job, mr_err *err) {
    relay *way = context;
    relay_try *t = mr_alloc(sizeof(*t));
    mr_request *r = mr_request_new();
    *t = (relay_try){way, job->id};
    mr_request_add_prompt(r, job->request->tokens.items, job->request->tokens.count);
    r->new_tokens = job->request->new_tokens;
    r->resumed_tokens = mr_alloc_array(job->answer_count, sizeof(uint32_t));
    assert_int_equal(job->answer_count, 1);
    r->resumed_tokens[0] = (uint32_t)job->answers[0].count;
    for (size_t i = 0; i < job->answers[0].count; i++)
        mr_token_list_add(&r->resumed, job->answers[0].items[i]);
    r->sink = relay_sink;
    r->context = t;
    const mr_status status = mr_core_submit(way->to, r, &way->remote_id, err);
    if (status == MR_OK) return MR_OK;
    mr_request_free(r);
    free(t);
    return status;
}

static void relay_cancel(void *context, uint64_t id) {
    relay *way = context;
    (void)id;
    mr_core_cancel(way->to, way->remote_id);
}

static void test_forwarded_requests_go_on_at_home(void **state) {
    (void)state;
    relay r = {.reaches = true};
    const mr_forwarder forwarder = {relay_reaches, relay_submit, relay_cancel, &r};
    fake_worker *w = fake_worker_new();
    mr_core *far = open_core(w, NULL);
    mr_core *near = open_empty(&(mr_core_options){.forwarder = &forwarder});
    r.from = near;
    r.to = far;
    client *c = client_new();
    submit(near, c, request_for(c, text, 20));
    check_echo(c, text, 1);
    assert_int_equal(c->tokens[0].count, 20);
    assert_true(c->text[0].bytes > 10);
    client_free(c);
    w->delay_ms = 5; /* lost in the middle; the rest comes from a group of our own */
    w->hang_up_at = w->steps + 8;
    c = client_new();
    submit(near, c, request_for(c, text, 30));
    await_steps(w, w->hang_up_at - 3);
    r.reaches = false;
    home h = home_open("a");
    home_listen(&h);
    set_homes(near, &h, 1, 0, 0);
    check_echo(c, text, 1);
    assert_int_equal(c->tokens[0].count, 30);
    assert_true(h.worker->steps > 0);
    client_free(c);
    close_core(near);
    finish(far, w);
    home_close(&h);
}

static void test_groups_change_under_load(void **state) {
    (void)state;
    home h[3] = {home_open("a"), home_open("b"), home_open("c")};
    crowd all;
    for (int i = 0; i < 3; i++) {
        h[i].worker->delay_ms = 1;
        home_listen(&h[i]);
    }
    mr_core *core = open_empty(NULL);
    set_homes(core, h, 2, 1, 0);
    wait_up(core, 2);
    crowd_submit(&all, core, 40);
    for (int i = 0; i < 12; i++) {
        set_homes(core, h + i % 3, 1 + (uint32_t)(i % 3 == 0), 1 + (uint32_t)i % 2, 0);
        usleep(20000);
    }
    crowd_check(&all);
    close_core(core);
    for (int i = 0; i < 3; i++) home_close(&h[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_outlive_their_group),
        cmocka_unit_test(test_a_newer_owner_ends_ours),
        cmocka_unit_test(test_requests_wait_for_a_group_but_not_forever),
        cmocka_unit_test(test_a_request_that_kills_workers_is_given_up),
        cmocka_unit_test(test_lost_rows_by_policy),
        cmocka_unit_test(test_degraded_blocks_are_not_shared),
        cmocka_unit_test(test_micro_batches),
        cmocka_unit_test(test_known_prefixes_decide_where_to),
        cmocka_unit_test(test_router),
        cmocka_unit_test(test_forwarded_requests_go_on_at_home),
        cmocka_unit_test(test_groups_change_under_load),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
