/* test_etcd_cluster.c - libetcd against three real members, of which the leader is killed, the
 * leader is stopped, two are lost, and against one that speaks only TLS. */
#ifdef MR_HAVE_ETCD
#include "tests/unit/etcd_test.h"

#include <stdatomic.h>

/* The member that says so in its metrics; -1: none does. */
static int find_leader(const etcd_servers *s) {
    static const char ask[] = "GET /metrics HTTP/1.0\r\n\r\n";
    const struct timeval limit = {.tv_sec = 1};
    for (int i = 0; i < s->count; i++) {
        char *text = calloc(1, 1 << 20);
        size_t bytes = 0;
        const int fd = s->pid[i] > 0 ? connect_to(s->client_port[i]) : -1;
        if (fd >= 0) {
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
            assert_true(write(fd, ask, sizeof(ask) - 1) > 0);
            for (ssize_t n; (n = read(fd, text + bytes, (1 << 20) - 1 - bytes)) > 0;)
                bytes += (size_t)n;
            close(fd);
        }
        const bool is_leader = strstr(text, "\netcd_server_is_leader 1\n") != NULL;
        free(text);
        if (is_leader) return i;
    }
    return -1;
}

/* Writes may fail while a leader is elected: then only reading tells, or doing it again. */
static bool try_put(etcd_client *client, const char *key, const char *value) {
    return etcd_put(client, etcd_text(key), etcd_text(value), 0, after_ms(600), NULL, NULL) ==
           MR_OK;
}

static void note_gone(void *context) {
    atomic_fetch_add((atomic_int *)context, 1);
}

static void a_lost_leader_loses_nothing(void **state) {
    (void)state;
    if (!have_etcd()) skip();
    etcd_servers s;
    mr_err err = {{0}};
    watched w;
    etcd_lease *lease;
    atomic_int gone = 0;
    etcd_client *client = etcd_servers_start(&s, 3);
    etcd_watch *watch = watch_prefix(client, "k/", &w);
    check_soon(watched_get(&w, &w.connects) >= 1, 5000);
    check_ok(etcd_lease_open(&lease, client, 3, note_gone, &gone, after_ms(5000), &err));
    check_ok(etcd_put(client, etcd_text("k/leased"), etcd_text("v"), etcd_lease_id(lease),
                      after_ms(5000), NULL, &err));
    put_text(client, "k/1", "before");

    int leader = -1;
    check_soon((leader = find_leader(&s)) >= 0, 5000);
    etcd_server_kill(&s, leader);
    int64_t before = mr_now_ns();
    check_soon(try_put(client, "k/1", "killed"), 8000);
    print_message("leader killed: %.2f s until a write is done\n",
                  (double)(mr_now_ns() - before) * 1e-9);
    assert_int_equal(count_keys(client, "k/"), 2);
    etcd_server_start(&s, leader);
    check_soon(strcmp(w.last_value, "killed") == 0, 8000); /* the watch went on */

    check_soon((leader = find_leader(&s)) >= 0, 8000);
    sleep_ms(500); /* the one started again has caught up */
    stop_child(s.pid[leader]);
    before = mr_now_ns();
    check_soon(try_put(client, "k/1", "stopped"), 12000);
    print_message("leader stopped: %.2f s until a write is done\n",
                  (double)(mr_now_ns() - before) * 1e-9);
    check_soon(strcmp(w.last_value, "stopped") == 0, 12000);
    assert_int_equal(count_keys(client, "k/leased"), 1); /* kept alive all the time */
    assert_int_equal(atomic_load(&gone), 0);
    assert_int_equal(watched_get(&w, &w.lists), 1);
    assert_false(w.is_out_of_order);
    kill(s.pid[leader], SIGCONT);
    etcd_lease_close(lease, after_ms(3000));
    etcd_watch_close(watch);
    etcd_close(client);
    etcd_servers_end(&s);
}

static void without_a_quorum_calls_fail_in_time_and_recover(void **state) {
    (void)state;
    if (!have_etcd()) skip();
    etcd_servers s;
    mr_err err = {{0}};
    etcd_list *list;
    const etcd_query query = {.key = etcd_text("q")};
    etcd_client *client = etcd_servers_start(&s, 3);
    put_text(client, "q", "1");
    etcd_server_kill(&s, 0);
    etcd_server_kill(&s, 1);
    const int64_t before = mr_now_ns();
    assert_int_not_equal(etcd_get(client, &query, after_ms(1500), &list, &err), MR_OK);
    assert_null(list);
    assert_int_not_equal(
        etcd_put(client, etcd_text("q"), etcd_text("2"), 0, after_ms(1500), NULL, &err), MR_OK);
    assert_true(mr_now_ns() - before < 5000 * 1000000ll);
    etcd_server_start(&s, 1);
    check_soon(try_put(client, "q", "3"), 10000);
    check_ok(etcd_get(client, &query, after_ms(3000), &list, &err));
    assert_string_equal(list->kvs[0].value, "3");
    etcd_list_free(list);
    etcd_close(client);
    etcd_servers_end(&s);
}

static void only_known_clients_reach_etcd_over_tls(void **state) {
    (void)state;
    if (!have_etcd()) skip();
    if (!have_program("openssl")) {
        print_message("skipped: no openssl command to make certificates with\n");
        skip();
    }
    etcd_servers s;
    mr_err err = {{0}};
    etcd_client *client;
    etcd_servers_prepare(&s, 1);
    s.is_tls = true;
    make_authority(s.folder, "ours");
    make_authority(s.folder, "theirs");
    make_certificate(s.folder, "server", "ours");
    make_certificate(s.folder, "client", "ours");
    make_certificate(s.folder, "stranger", "theirs");
    etcd_server_start(&s, 0);
#define PATH(name) mr_format("%s/%s", s.folder, name)
    char *paths[] = {PATH("ours.crt"),   PATH("client.crt"),   PATH("client.key"),
                     PATH("theirs.crt"), PATH("stranger.crt"), PATH("stranger.key")};
    etcd_options options = {
        .endpoints = s.endpoints, .ca_file = paths[0], .cert_file = paths[1], .key_file = paths[2]};
    check_ok(etcd_open(&client, &options, &err));
    etcd_check_up(client, 8000);
    put_text(client, "tls", "yes");
    etcd_close(client);

    const etcd_options refused[] = {
        {.endpoints = s.endpoints, .ca_file = paths[0]},
        {.endpoints = s.endpoints,
         .ca_file = paths[0],
         .cert_file = paths[4],
         .key_file = paths[5]},
        {.endpoints = s.endpoints,
         .ca_file = paths[3],
         .cert_file = paths[1],
         .key_file = paths[2]},
        {.endpoints = s.endpoints},
    };
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const etcd_query query = {.key = etcd_text("tls")};
        etcd_list *list;
        check_ok(etcd_open(&client, &refused[i], &err));
        const mr_status status = etcd_get(client, &query, after_ms(700), &list, &err);
        if (status != MR_ERR_UNAVAILABLE && status != MR_ERR_TIMEOUT)
            fail_msg("case %zu: %s", i, mr_status_name(status));
        etcd_close(client);
    }
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) free(paths[i]);
    etcd_servers_end(&s);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lost_leader_loses_nothing),
        cmocka_unit_test(without_a_quorum_calls_fail_in_time_and_recover),
        cmocka_unit_test(only_known_clients_reach_etcd_over_tls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
#include <stdio.h>
int main(void) {
    puts("skipped: built without gRPC or protobuf-c");
    return 0;
}
#endif
