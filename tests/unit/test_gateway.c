/* Goal: a client of one coordinator gets the same tokens from a worker group of another one, also
 * when that one is lost on the way; without any it gets a reason.
 * Method: two cores in this process, joined by real gRPC over the loopback: gateway.c at one end,
 * forward_remote.c at the other; fake workers, whose right answer is known. */
#include "coordinator/forward_remote.h"
#include "coordinator/gateway.h"
#include "tests/unit/core_client.h"

static const char text[] = "the quick brown fox jumps over the lazy dog and back again until the "
                           "evening comes";

/* The other coordinator. */
typedef struct {
    fake_worker *worker;
    mr_core *core;
    mr_control_server *server;
    char control[32];
} far_end;

/* What the near one sees of the cluster. */
typedef struct {
    mr_member coordinator, worker, *members[2];
    mr_stage_record stage;
    mr_owner_record owner, *owners[1];
    mr_view view;
} scene;

typedef struct {
    far_end far;
    scene scene;
    mr_remote *remote;
    mr_core *core;
} cluster;

static const mr_view *view_of(void *context) {
    return mr_view_retain(&((scene *)context)->view);
}

static void scene_set(scene *s, char *control) {
    static char far_name[] = "c1", group[] = "g", worker[] = "w1";
    s->coordinator = (mr_member){.id = far_name, .role = MR_ROLE_COORDINATOR, .control = control};
    s->stage.group = group;
    s->stage.stages = 1;
    s->worker =
        (mr_member){.id = worker, .role = MR_ROLE_WORKER, .stages = &s->stage, .stage_count = 1};
    s->owner = (mr_owner_record){.group = group, .coordinator = far_name, .epoch = 1};
    s->members[0] = &s->coordinator;
    s->members[1] = &s->worker;
    s->owners[0] = &s->owner;
    s->view.members = s->members;
    s->view.member_count = 2;
    s->view.owners = s->owners;
    s->view.owner_count = 1;
}

/* false: this build has no gRPC. */
static bool open_cluster(cluster *c) {
    mr_err err = {{0}};
    memset(c, 0, sizeof(*c));
    c->far.worker = fake_worker_new();
    c->far.core = open_core(c->far.worker, NULL);
    const mr_control_server_options serve = {
        .address = "127.0.0.1:0",
        .cluster = "test",
        .security = {.is_plain = true},
        .handlers = {.generate = mr_gateway_generate, .context = c->far.core}};
    const mr_status status = mr_control_server_open(&c->far.server, &serve, &err);
    if (status == MR_ERR_UNSUPPORTED) {
        finish(c->far.core, c->far.worker);
        return false;
    }
    if (status != MR_OK) fail_msg("%s", err.text);
    snprintf(c->far.control, sizeof(c->far.control), "127.0.0.1:%d",
             mr_control_server_port(c->far.server));
    scene_set(&c->scene, c->far.control);
    c->remote = mr_remote_open(&(mr_remote_options){
        .self = "c0", .view = view_of, .context = &c->scene, .security = {.is_plain = true}});
    const mr_forwarder forwarder = mr_remote_forwarder(c->remote);
    const mr_core_options o = {
        .tokenizer = tokenizer, .forwarder = &forwarder, .worker_wait_ms = 1000};
    if (mr_core_open(&c->core, &o, &err) != MR_OK) fail_msg("%s", err.text);
    mr_remote_set_core(c->remote, c->core);
    return true;
}

static void close_cluster(cluster *c) {
    assert_int_equal(mr_core_live_requests(c->core), 0);
    mr_remote_stop(c->remote);
    mr_core_close(c->core);
    mr_remote_close(c->remote);
    for (int i = 0; mr_core_live_requests(c->far.core) > 0; i++) { /* cancelled ones */
        if (i > 500) fail_msg("requests are left at the far end");
        usleep(10000);
    }
    finish(c->far.core, c->far.worker);
    mr_control_server_close(c->far.server);
}

static void check_echo(client *c, uint32_t choices, size_t count) {
    mr_token_list ids = {0};
    client_wait(c);
    if (c->status != MR_OK) fail_msg("%s", c->err.text);
    mr_tokenizer_encode(tokenizer, text, strlen(text), NULL, &ids, NULL);
    for (uint32_t k = 0; k < choices; k++) {
        assert_int_equal(c->tokens[k].count, count);
        for (size_t i = 0; i < count; i++)
            assert_int_equal(c->tokens[k].items[i], ids.items[(i + k) % ids.count]);
    }
    mr_token_list_free(&ids);
}

static void test_forwarded_answers(void **state) {
    (void)state;
    cluster c;
    if (!open_cluster(&c)) skip();
    mr_err err;
    assert_int_equal(mr_core_health(c.core, &err), MR_OK);
    client *one = client_new();
    mr_request *r = request_for(one, text, 20);
    r->choices = 3;
    r->logprobs = true;
    r->top_logprobs = 2;
    submit(c.core, one, r);
    check_echo(one, 3, 20);
    assert_int_equal(one->entries, 60);
    client_free(one);
    client *stops = client_new();
    r = request_for(stops, "one two three four", 50);
    const char *const stop[] = {"three"};
    const size_t bytes[] = {5};
    r->stops = mr_stop_set_open(stop, bytes, 1);
    submit(c.core, stops, r);
    client_wait(stops);
    assert_string_equal(mr_text_string(&stops->text[0]), "one two ");
    client_free(stops);
    client *ends = client_new();
    r = request_for(ends, "one two<|end|> three", 50);
    r->stop_ids[r->stop_id_count++] = 2;
    submit(c.core, ends, r);
    client_wait(ends);
    assert_string_equal(mr_text_string(&ends->text[0]), "one two");
    assert_int_equal(ends->finish[0], MR_FINISH_STOP);
    client_free(ends);
    close_cluster(&c);
}

static void test_cancelling_reaches_the_owner(void **state) {
    (void)state;
    cluster c;
    if (!open_cluster(&c)) skip();
    c.far.worker->delay_ms = 5;
    client *one = client_new();
    submit(c.core, one, request_for(one, text, 400));
    while (c.far.worker->steps < 5) usleep(1000);
    mr_core_cancel(c.core, one->id);
    client_wait(one);
    assert_int_equal(one->status, MR_ERR_CANCELLED);
    for (int i = 0; mr_core_live_requests(c.far.core) > 0; i++) {
        if (i > 500) fail_msg("the owner goes on");
        usleep(10000);
    }
    client_free(one);
    close_cluster(&c);
}

static void test_a_lost_owner(void **state) {
    (void)state;
    cluster c;
    char path[64], address[80];
    if (!open_cluster(&c)) skip();
    c.far.worker->delay_ms = 5;
    c.far.worker->hang_up_at = 8;
    snprintf(path, sizeof(path), "/tmp/mr-gateway-%ld.sock", (long)getpid());
    snprintf(address, sizeof(address), "unix:%s", path);
    client *one = client_new();
    submit(c.core, one, request_for(one, text, 30));
    while (c.far.worker->steps < 4) usleep(1000);
    fake_worker *own = fake_worker_new(); /* a group of our own comes up in time */
    fake_worker_listen(own, path);
    mr_core_set_groups(c.core, &(mr_group_spec){.name = "own", .address = address}, 1);
    check_echo(one, 1, 30);
    assert_true(own->steps > 0 && mr_core_metrics(c.core)->failovers > 0);
    client_free(one);
    mr_core_set_groups(c.core, NULL, 0);
    client *none = client_new();
    mr_err err;
    for (int i = 0; mr_core_groups(c.core, &(mr_group_look){0}, 1) > 0; i++) usleep(1000);
    mr_request *r = request_for(none, text, 5);
    if (mr_core_submit(c.core, r, &none->id, &err) == MR_OK) {
        client_wait(none);
        assert_int_equal(none->status, MR_ERR_UNAVAILABLE);
    } else
        mr_request_free(r);
    client_free(none);
    close_cluster(&c);
    fake_worker_stop(own);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forwarded_answers),
        cmocka_unit_test(test_cancelling_reaches_the_owner),
        cmocka_unit_test(test_a_lost_owner),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
