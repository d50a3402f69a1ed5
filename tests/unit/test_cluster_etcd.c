/* test_cluster_etcd.c - clusters on a real etcd that loses leases, data and its process, and whose
 * keys somebody fills with rubbish; and clusters of a static file. */
#include "tests/unit/cluster_test.h"

#ifdef MR_HAVE_ETCD
#include "common/base/limits.h"
#include "tests/unit/etcd_test.h"

#include <stdatomic.h>

static etcd_servers servers;
static etcd_client *client;
static char *where;

static int begin_all(void **state) {
    (void)state;
    client = etcd_servers_start(&servers, 1);
    where = mr_format("etcd:%s", servers.endpoints);
    return 0;
}
static int end_all(void **state) {
    (void)state;
    etcd_close(client);
    etcd_servers_end(&servers);
    free(where);
    return 0;
}

static mr_cluster *open_as(const char *name, const char *folder, int64_t ms) {
    const mr_cluster_options options = {
        .where = where, .name = name, .state_folder = folder, .lease_s = 2};
    mr_err err = {{0}};
    mr_cluster *cluster;
    check_ok(mr_cluster_open(&cluster, &options, after_ms(ms), &err));
    return cluster;
}

/* 0: not in the view, 1: not listed, 2: listed */
static int seen(mr_cluster *cluster, mr_role role, const char *id) {
    const mr_view *view = mr_cluster_view(cluster);
    const mr_member *member = mr_view_member(view, role, id);
    const int found = member == NULL ? 0 : member->is_listed ? 2 : 1;
    mr_view_release(view);
    return found;
}
static uint64_t map_epoch(mr_cluster *cluster, uint8_t number, bool is_next) {
    const mr_view *view = mr_cluster_view(cluster);
    const mr_digest digest = test_digest(number);
    const mr_map_record *map =
        is_next ? mr_view_next_map(view, &digest) : mr_view_map(view, &digest);
    const uint64_t epoch = map != NULL ? map->epoch : 0;
    mr_view_release(view);
    return epoch;
}
static uint64_t model_epoch(mr_cluster *cluster) {
    const mr_view *view = mr_cluster_view(cluster);
    const mr_model_record *model = mr_view_model(view, "demo");
    const uint64_t epoch = model != NULL ? model->epoch : 0;
    mr_view_release(view);
    return epoch;
}
static bool is_led_by(mr_cluster *cluster, const char *id, uint64_t *epoch) {
    const mr_view *view = mr_cluster_view(cluster);
    const bool yes = view->leader != NULL && strcmp(view->leader, id) == 0;
    *epoch = view->leader_epoch;
    mr_view_release(view);
    return yes;
}

static void announce(mr_cluster *cluster, mr_role role, const char *id) {
    const mr_member member = test_member(role, id, 1000);
    mr_cluster_announce(cluster, &member);
}

static int64_t lease_of(const char *key) {
    const etcd_query query = {.key = etcd_text(key)};
    mr_err err = {{0}};
    etcd_list *list;
    check_ok(etcd_get(client, &query, after_ms(3000), &list, &err));
    const int64_t lease = list->count > 0 ? list->kvs[0].lease : 0;
    etcd_list_free(list);
    return lease;
}

static void members_see_each_other_come_change_and_go(void **state) {
    (void)state;
    mr_cluster *a = open_as("one", NULL, 3000), *b = open_as("one", NULL, 3000);
    mr_cluster *other = open_as("two", NULL, 3000);
    announce(a, MR_ROLE_MEMSHARD, "m0");
    announce(b, MR_ROLE_WORKER, "w0");
    check_soon(seen(b, MR_ROLE_MEMSHARD, "m0") == 2 && seen(a, MR_ROLE_WORKER, "w0") == 2, 3000);
    mr_member changed = test_member(MR_ROLE_MEMSHARD, "m0", 1000);
    changed.state = MR_MEMBER_DRAINING;
    mr_cluster_announce(a, &changed);
    const mr_view *view = NULL;
    const int64_t until = after_ms(3000);
    for (bool is_draining = false; !is_draining; sleep_ms(5)) {
        mr_view_release(view);
        view = mr_cluster_view(b);
        is_draining = mr_view_member(view, MR_ROLE_MEMSHARD, "m0")->state == MR_MEMBER_DRAINING;
        assert_true(mr_now_ns() < until);
    }
    mr_view_release(view);
    assert_int_equal(seen(other, MR_ROLE_MEMSHARD, "m0"), 0); /* clusters are apart */
    assert_true(mr_cluster_look(b).is_up);
    assert_true(mr_cluster_look(b).lease_ttl_s > 0);

    mr_cluster_report_dead(b, MR_ROLE_MEMSHARD, "m0"); /* listed: stays */
    sleep_ms(100);
    assert_int_equal(seen(b, MR_ROLE_MEMSHARD, "m0"), 2);
    mr_cluster_close(a);
    check_soon(seen(b, MR_ROLE_MEMSHARD, "m0") == 1, 3000);
    mr_cluster_report_dead(b, MR_ROLE_MEMSHARD, "m0");
    check_soon(seen(b, MR_ROLE_MEMSHARD, "m0") == 0, 3000);
    mr_cluster_close(b);
    mr_cluster_close(other);
}

static void one_leads_and_maps_are_switched_by_it_alone(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint64_t epoch, later;
    mr_cluster *a = open_as("lead", NULL, 3000), *b = open_as("lead", NULL, 3000);
    mr_map_record *first = test_map(1, 1, "m0"), *second = test_map(1, 2, "m1");
    const mr_digest digest = test_digest(1);
    mr_model_record model = test_model(1);

    mr_cluster_campaign(a, "c0");
    check_soon(is_led_by(b, "c0", &epoch) && is_led_by(a, "c0", &epoch), 3000);
    mr_cluster_campaign(b, "c1");
    check_soon(mr_cluster_put_next_map(a, first, after_ms(3000), &err) == MR_OK, 3000);
    assert_int_equal(mr_cluster_put_next_map(b, second, after_ms(3000), &err), MR_ERR_STALE);
    check_soon(map_epoch(b, 1, true) == 1, 3000);
    assert_int_equal(map_epoch(b, 1, false), 0);
    assert_int_equal(mr_cluster_switch_map(a, &digest, 7, after_ms(3000), &err), MR_ERR_STALE);
    check_ok(mr_cluster_switch_map(a, &digest, 1, after_ms(3000), &err));
    check_ok(mr_cluster_switch_map(a, &digest, 1, after_ms(3000), &err)); /* done already */
    check_soon(map_epoch(b, 1, false) == 1 && map_epoch(b, 1, true) == 0, 3000);
    assert_int_equal(mr_cluster_put_next_map(a, first, after_ms(3000), &err), MR_ERR_STALE);

    check_ok(mr_cluster_put_model(b, &model, after_ms(3000), &err));
    check_ok(mr_cluster_put_model(a, &model, after_ms(3000), &err)); /* the very same */
    model.epoch = 3;
    assert_int_equal(mr_cluster_put_model(b, &model, after_ms(3000), &err), MR_ERR_STALE);
    const mr_owner_record owner = {.group = "g0", .coordinator = "c0", .epoch = 1};
    const mr_owner_record rival = {.group = "g0", .coordinator = "c1", .epoch = 1};
    check_ok(mr_cluster_claim(a, &owner, after_ms(3000), &err));
    assert_int_equal(mr_cluster_claim(b, &rival, after_ms(3000), &err), MR_ERR_STALE);

    mr_cluster_close(a); /* takes its leadership away */
    check_soon(is_led_by(b, "c1", &later), 5000);
    assert_true(later > epoch);
    check_soon(mr_cluster_put_next_map(b, second, after_ms(3000), &err) == MR_OK, 3000);
    check_ok(mr_cluster_delete_map(b, &digest, after_ms(3000), &err));
    check_ok(mr_cluster_delete_model(b, "demo", after_ms(3000), &err));
    check_soon(map_epoch(b, 1, false) == 0 && map_epoch(b, 1, true) == 0 && model_epoch(b) == 0,
               3000);
    mr_cluster_close(b);
    mr_map_record_free(first);
    mr_map_record_free(second);
}

/* What a loss of all data must not change, before and after. */
typedef struct {
    mr_cluster *a, *b, *leader;
    uint64_t leader_epoch;
} full;

static full begin_full(const char *name) {
    mr_err err = {{0}};
    full f = {open_as(name, NULL, 3000), open_as(name, NULL, 3000), open_as(name, NULL, 3000), 0};
    mr_model_record model = test_model(1);
    mr_map_record *map = test_map(1, 1, "m0");
    const mr_digest digest = test_digest(1);
    announce(f.a, MR_ROLE_MEMSHARD, "m0");
    announce(f.b, MR_ROLE_WORKER, "w0");
    mr_cluster_campaign(f.leader, "c0");
    check_soon(is_led_by(f.leader, "c0", &f.leader_epoch), 3000);
    check_soon(mr_cluster_put_next_map(f.leader, map, after_ms(3000), &err) == MR_OK, 3000);
    check_ok(mr_cluster_switch_map(f.leader, &digest, 1, after_ms(3000), &err));
    check_ok(mr_cluster_put_model(f.leader, &model, after_ms(3000), &err));
    check_soon(model_epoch(f.b) == 1 && map_epoch(f.b, 1, false) == 1 &&
                   seen(f.b, MR_ROLE_MEMSHARD, "m0") == 2 && model_epoch(f.leader) == 1 &&
                   map_epoch(f.leader, 1, false) == 1,
               3000);
    mr_map_record_free(map);
    return f;
}

static void end_full(const full *f, const char *name) {
    uint64_t epoch;
    char *prefix = mr_format("/memrack/%s/", name);
    /* all is back: members by themselves, the leader by an election, the rest by the leader */
    check_soon(is_led_by(f->b, "c0", &epoch) && epoch > f->leader_epoch, 8000);
    check_soon(seen(f->b, MR_ROLE_MEMSHARD, "m0") == 2 && seen(f->a, MR_ROLE_WORKER, "w0") == 2,
               8000);
    check_soon(count_keys(client, prefix) == 6, 14000);
    assert_int_equal(model_epoch(f->b), 1);
    assert_int_equal(map_epoch(f->b, 1, false), 1);
    mr_cluster_close(f->a);
    mr_cluster_close(f->b);
    mr_cluster_close(f->leader);
    free(prefix);
}

static void a_mass_delete_evicts_nobody(void **state) {
    (void)state;
    mr_err err = {{0}};
    const full f = begin_full("mass");
    check_ok(etcd_delete(client, etcd_text("/memrack/mass/"), true, after_ms(3000), NULL, &err));
    for (int i = 0; i < 20; i++, sleep_ms(10)) {
        assert_true(seen(f.b, MR_ROLE_MEMSHARD, "m0") >= 1);
        assert_int_equal(model_epoch(f.b), 1);
        assert_int_equal(map_epoch(f.b, 1, false), 1);
    }
    end_full(&f, "mass");
}

static void a_wiped_etcd_evicts_nobody(void **state) {
    (void)state;
    const full f = begin_full("wipe");
    etcd_server_kill(&servers, 0);
    etcd_server_wipe(&servers, 0);
    etcd_server_start(&servers, 0);
    for (int i = 0; i < 20; i++, sleep_ms(10)) {
        assert_true(seen(f.b, MR_ROLE_MEMSHARD, "m0") >= 1);
        assert_int_equal(map_epoch(f.b, 1, false), 1);
    }
    etcd_check_up(client, 8000);
    end_full(&f, "wipe");
}

static void a_lost_lease_is_replaced(void **state) {
    (void)state;
    mr_err err = {{0}};
    static const char key[] = "/memrack/lease/members/memshard/m0";
    mr_cluster *a = open_as("lease", NULL, 3000), *b = open_as("lease", NULL, 3000);
    announce(a, MR_ROLE_MEMSHARD, "m0");
    check_soon(seen(b, MR_ROLE_MEMSHARD, "m0") == 2, 3000);
    const int64_t lease = lease_of(key);
    assert_int_not_equal(lease, 0);
    check_ok(etcd_lease_revoke(client, lease, after_ms(3000), &err));
    check_soon(lease_of(key) != 0 && lease_of(key) != lease, 5000);
    check_soon(seen(b, MR_ROLE_MEMSHARD, "m0") == 2, 3000);
    /* somebody overwrites our record: ours comes back; a newer process of our name may stay */
    put_text(client, key, "{}");
    check_soon(lease_of(key) != 0, 5000);
    mr_member newer = test_member(MR_ROLE_MEMSHARD, "m0", 2000);
    char *text = mr_member_dump(&newer);
    put_text(client, key, text);
    sleep_ms(500);
    assert_int_equal(lease_of(key), 0);
    free(text);
    mr_cluster_close(a);
    mr_cluster_close(b);
}

static void an_outage_changes_nothing_and_starts_are_possible(void **state) {
    (void)state;
    mr_err err = {{0}};
    char *folder = test_folder();
    mr_cluster *a = open_as("out", folder, 3000), *none;
    mr_model_record model = test_model(1);
    announce(a, MR_ROLE_MEMSHARD, "m0");
    check_ok(mr_cluster_put_model(a, &model, after_ms(3000), &err));
    check_soon(seen(a, MR_ROLE_MEMSHARD, "m0") == 2 && model_epoch(a) == 1, 3000);
    char *kept = mr_format("%s/view-out.json", folder);
    check_soon(access(kept, F_OK) == 0, 3000);
    sleep_ms(1100); /* everything is written within a second */

    stop_child(servers.pid[0]); /* hangs, as after a lost packet: worse than a closed port */
    int64_t before = mr_now_ns();
    const mr_status status = mr_cluster_put_model(a, &model, after_ms(500), &err);
    assert_true(status == MR_ERR_TIMEOUT || status == MR_ERR_UNAVAILABLE);
    assert_true(mr_now_ns() - before < 2000 * 1000000ll);
    assert_false(mr_cluster_look(a).is_up);
    assert_true(mr_cluster_look(a).silent_s > 0);
    sleep_ms(2500); /* longer than the lease */
    assert_int_equal(seen(a, MR_ROLE_MEMSHARD, "m0"), 2);
    mr_cluster *b = open_as("out", folder, 8000); /* from disk */
    assert_int_equal(seen(b, MR_ROLE_MEMSHARD, "m0"), 2);
    assert_int_equal(model_epoch(b), 1);
    const mr_cluster_options options = {.where = where, .name = "out"};
    assert_int_equal(mr_cluster_open(&none, &options, after_ms(500), &err), MR_ERR_UNAVAILABLE);
    assert_non_null(strstr(err.text, "kept"));
    assert_null(none);
    kill(servers.pid[0], SIGCONT);
    check_soon(mr_cluster_look(a).is_up && mr_cluster_look(b).is_up, 12000);
    check_soon(seen(b, MR_ROLE_MEMSHARD, "m0") == 2, 5000);
    before = mr_now_ns();
    mr_cluster_close(a);
    mr_cluster_close(b);
    assert_true(mr_now_ns() - before < 4000 * 1000000ll);
    free(kept);
    test_folder_remove(folder);
}

/* Puts everything bad we could think of; lower, map, member: good records in wrong places. */
static void put_rubbish(const char *lower, const char *large, const char *map_text,
                        const char *member) {
    const char *const junk[][2] = {
        {"models/demo", ""},
        {"models/demo", "not JSON"},
        {"models/demo", lower}, /* a lower epoch */
        {"models/demo", "{\"schema\":1,\"name\":5}"},
        {"models/other", lower}, /* another name */
        {"models/", lower},
        {"models/large", large},
        {"maps/xyz", map_text},
        {"maps/0000000000000000000000000000000000000000000000000000000000000000", map_text},
        {"members/memshard/m9", member},
        {"members/wizard/m0", member},
        {"members/memshard", member},
        {"members/memshard/m1", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["},
        {"members/memshard/m2", "{\"schema\":1}trailing"},
        {"owners/g", "null"},
        {"next/", "{}"},
        {"leader", "99999 evil"}, /* without a lease */
        {"leader.token", "99999999999999999999999"},
        {"unknown/key", "whatever"},
        {"", "the prefix itself"},
    };
    const size_t count = sizeof(junk) / sizeof(junk[0]);
    for (size_t i = 0; i < count; i++) {
        char *key = mr_format("/memrack/junk/%s", junk[i][0]);
        put_text(client, key, junk[i][1]);
        free(key);
    }
}

static void rubbish_in_etcd_is_refused_and_harms_nobody(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint64_t epoch;
    mr_cluster *a = open_as("junk", NULL, 3000);
    mr_model_record model = test_model(1);
    announce(a, MR_ROLE_MEMSHARD, "m0");
    mr_cluster_campaign(a, "c0");
    check_ok(mr_cluster_put_model(a, &model, after_ms(3000), &err));
    model.epoch = 2;
    check_soon(mr_cluster_put_model(a, &model, after_ms(3000), &err) == MR_OK, 3000);
    check_soon(model_epoch(a) == 2 && is_led_by(a, "c0", &epoch), 3000);

    model.epoch = 1;
    char *lower = mr_model_record_dump(&model);
    char *large = malloc((3 << 19) - 200);
    memset(large, 'x', (3 << 19) - 200);
    large[(3 << 19) - 201] = 0;
    mr_map_record *odd_map = test_map(2, 1, "m0");
    char *map_text = mr_map_record_dump(odd_map);
    const mr_member m0 = test_member(MR_ROLE_MEMSHARD, "m0", 5);
    char *member = mr_member_dump(&m0);
    put_rubbish(lower, large, map_text, member);
    check_soon(mr_cluster_look(a).refused_records >= 15, 5000);
    const mr_view *view = mr_cluster_view(a);
    assert_int_equal(view->member_count, 1);
    assert_int_equal(view->model_count, 1);
    assert_int_equal(view->map_count + view->next_map_count + view->owner_count, 0);
    mr_view_release(view);
    assert_int_equal(model_epoch(a), 2);
    check_soon(is_led_by(a, "c0", &epoch), 8000); /* the false leader is written over */
    announce(a, MR_ROLE_MEMSHARD, "m0");
    assert_int_equal(seen(a, MR_ROLE_MEMSHARD, "m0"), 2);

    /* one who comes now sees the same, with 1.5 MiB of rubbish under ten keys beside it */
    for (int i = 0; i < 10; i++) {
        char *key = mr_format("/memrack/junk/models/large%d", i);
        put_text(client, key, large);
        free(key);
    }
    mr_cluster *b = open_as("junk", NULL, 5000);
    assert_int_equal(seen(b, MR_ROLE_MEMSHARD, "m0"), 2);
    check_soon(model_epoch(b) == 2, 14000); /* the leader has put its own again */
    mr_cluster_close(a);
    mr_cluster_close(b);
    mr_map_record_free(odd_map);
    free(lower);
    free(large);
    free(map_text);
    free(member);
}

static void bad_options_are_refused(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_cluster *cluster;
    const mr_cluster_options bad[] = {{.where = "etcd:"},
                                      {.where = "etcd:nohost"},
                                      {.where = "etcds:127.0.0.1:2379"},
                                      {.where = "etcd:127.0.0.1:1", .name = "a/b"},
                                      {.where = "etcd:127.0.0.1:1", .name = ""}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const mr_status status = mr_cluster_open(&cluster, &bad[i], after_ms(300), &err);
        if (status == MR_OK || status == MR_ERR_UNAVAILABLE) fail_msg("accepted: case %zu", i);
        assert_null(cluster);
    }
}
#endif

/* ---- static files ---- */

static void a_static_file_is_read_and_never_changed(void **state) {
    (void)state;
    mr_err err = {{0}};
    char *folder = test_folder(), *path = mr_format("%s/view.json", folder);
    mr_view_builder *b = mr_view_builder_open(NULL, "fixed");
    const mr_member m0 = test_member(MR_ROLE_MEMSHARD, "m0", 1),
                    w0 = test_member(MR_ROLE_WORKER, "w0", 1);
    mr_member *copy;
    check_ok(mr_member_copy(&copy, &m0, &err));
    check_ok(mr_view_put_member(b, copy, &err));
    check_ok(mr_member_copy(&copy, &w0, &err));
    check_ok(mr_view_put_member(b, copy, &err));
    check_ok(mr_view_put_map(b, test_map(1, 4, "m0"), &err));
    check_ok(mr_view_put_next_map(b, test_map(1, 5, "m0"), &err));
    mr_view_set_listed(b, MR_ROLE_WORKER, "w0", false);
    mr_view_set_leader(b, "c0", 77);
    const mr_view *made = mr_view_publish(b);
    check_ok(mr_view_save(made, path, &err));
    mr_view_release(made);

    mr_cluster *cluster;
    mr_cluster_options options = {.where = path, .name = "fixed"};
    check_ok(mr_cluster_open(&cluster, &options, after_ms(100), &err));
    assert_true(mr_cluster_is_static(cluster));
    assert_true(mr_cluster_look(cluster).is_up);
    const mr_view *view = mr_cluster_view(cluster);
    const mr_digest digest = test_digest(1);
    assert_int_equal(view->member_count, 2);
    assert_true(mr_view_member(view, MR_ROLE_MEMSHARD, "m0")->is_listed);
    assert_false(mr_view_member(view, MR_ROLE_WORKER, "w0")->is_listed);
    assert_int_equal(mr_view_map(view, &digest)->epoch, 4);
    assert_int_equal(mr_view_next_map(view, &digest)->epoch, 5);
    assert_string_equal(view->leader, "c0");
    assert_int_equal(view->leader_epoch, 77);
    mr_view_release(view);
    mr_cluster_announce(cluster, &m0);
    mr_cluster_report_dead(cluster, MR_ROLE_WORKER, "w0");
    mr_cluster_campaign(cluster, "c1");
    const mr_model_record model = test_model(1);
    assert_int_equal(mr_cluster_put_model(cluster, &model, after_ms(100), &err),
                     MR_ERR_UNSUPPORTED);
    assert_int_equal(mr_cluster_switch_map(cluster, &digest, 5, after_ms(100), &err),
                     MR_ERR_UNSUPPORTED);
    mr_cluster_close(cluster);
    options.name = "other";
    assert_int_equal(mr_cluster_open(&cluster, &options, after_ms(100), &err), MR_ERR_MISMATCH);

    free(path);
    test_folder_remove(folder);
}

static void bad_static_files_are_refused(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_cluster *cluster;
    char *folder = test_folder(), *path = mr_format("%s/view.json", folder);
    mr_cluster_options options = {.where = path};
    static const char *const bad[] = {"",
                                      "[]",
                                      "{}",
                                      "{\"cluster\":5}",
                                      "{\"cluster\":\"a/b\"}",
                                      "{\"cluster\":\"a\",\"x\":1}",
                                      "{\"cluster\":\"a\",\"members\":{}}",
                                      "{\"cluster\":\"a\",\"members\":[5]}",
                                      "{\"cluster\":\"a\",\"leader_epoch\":-1}",
                                      "{\"cluster\":\"a\",\"cluster\":\"a\"}"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        FILE *file = fopen(path, "w");
        fputs(bad[i], file);
        fclose(file);
        const mr_status status = mr_cluster_open(&cluster, &options, after_ms(100), &err);
        if (status == MR_OK) fail_msg("accepted: %s", bad[i]);
        assert_non_null(strstr(err.text, path));
    }
    free(path);
    test_folder_remove(folder);
    options.where = "/nonexistent/view.json";
    assert_int_equal(mr_cluster_open(&cluster, &options, after_ms(100), &err), MR_ERR_IO);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest fixed[] = {cmocka_unit_test(a_static_file_is_read_and_never_changed),
                                       cmocka_unit_test(bad_static_files_are_refused)};
    const int failed = cmocka_run_group_tests(fixed, NULL, NULL);
#ifdef MR_HAVE_ETCD
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(members_see_each_other_come_change_and_go),
        cmocka_unit_test(one_leads_and_maps_are_switched_by_it_alone),
        cmocka_unit_test(a_mass_delete_evicts_nobody),
        cmocka_unit_test(a_wiped_etcd_evicts_nobody),
        cmocka_unit_test(a_lost_lease_is_replaced),
        cmocka_unit_test(an_outage_changes_nothing_and_starts_are_possible),
        cmocka_unit_test(rubbish_in_etcd_is_refused_and_harms_nobody),
        cmocka_unit_test(bad_options_are_refused),
    };
    if (have_etcd()) return failed + cmocka_run_group_tests(tests, begin_all, end_all);
#endif
    return failed;
}
