/* Goal: the fabric a peer is reached over is the one the documents say, and where RDMA is required
 * nothing else is ever taken instead.
 * Method: the decision by itself for every kind of peer; then real links to a server in this
 * process, over what this machine has. */
#include "common/net/fabric_choice.h"
#include "common/net/server.h"
#include "tests/unit/net_test.h"

static const char here[] = "0123456789abcdef", there[] = "fedcba9876543210";

static mr_status choose(mr_fabric_kind *out, const char *machine, bool has_ucx, bool verbs,
                        bool own_verbs, mr_fabric_policy policy, mr_err *err) {
    const mr_fabric_peer peer = {.tcp = "10.0.0.1:7600",
                                 .ucx = has_ucx ? "10.0.0.1:7601" : NULL,
                                 .machine = machine,
                                 .has_verbs = verbs};
    return mr_fabric_choose(out, &peer, &policy, here, own_verbs, err);
}

static void test_choice(void **state) {
    (void)state;
    mr_err err;
    mr_fabric_kind kind;
    static const struct {
        const char *machine;
        bool ucx, verbs, own_verbs;
        mr_fabric_kind asked, expected;
    } cases[] = {
        {here, true, false, false, MR_FABRIC_AUTO, MR_FABRIC_SHM},
        {here, true, true, true, MR_FABRIC_AUTO, MR_FABRIC_SHM},
        {here, true, true, true, MR_FABRIC_RDMA, MR_FABRIC_RDMA},
        {here, true, false, false, MR_FABRIC_TCP, MR_FABRIC_TCP},
        {here, true, false, false, MR_FABRIC_RDMA, MR_FABRIC_TCP},
        {here, false, true, true, MR_FABRIC_AUTO, MR_FABRIC_TCP}, /* it does not listen on UCX */
        {there, true, true, true, MR_FABRIC_AUTO, MR_FABRIC_RDMA},
        {there, true, true, false, MR_FABRIC_AUTO, MR_FABRIC_TCP},
        {there, true, false, true, MR_FABRIC_AUTO, MR_FABRIC_TCP},
        {there, true, true, true, MR_FABRIC_SHM, MR_FABRIC_TCP},
        {NULL, true, true, true, MR_FABRIC_AUTO, MR_FABRIC_RDMA},
        {NULL, true, false, false, MR_FABRIC_AUTO, MR_FABRIC_TCP},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const mr_status status =
            choose(&kind, cases[i].machine, cases[i].ucx, cases[i].verbs, cases[i].own_verbs,
                   (mr_fabric_policy){.kind = cases[i].asked}, &err);
        if (status != MR_OK || kind != cases[i].expected) fail_msg("case %zu: %d", i, (int)kind);
    }
}

static void test_required_rdma(void **state) {
    (void)state;
    mr_err err;
    mr_fabric_kind kind;
    const mr_fabric_policy must = {.require_rdma = true};
    assert_int_equal(choose(&kind, there, true, true, true, must, &err), MR_OK);
    assert_int_equal(kind, MR_FABRIC_RDMA);
    assert_int_equal(choose(&kind, here, true, true, true, must, &err), MR_OK);
    assert_int_equal(kind, MR_FABRIC_RDMA); /* not even shared memory */
    assert_int_equal(choose(&kind, there, true, true, false, must, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "this host has no RDMA device");
    assert_int_equal(choose(&kind, there, true, false, true, must, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "the peer has no RDMA device");
    assert_int_equal(choose(&kind, there, false, true, true, must, &err), MR_ERR_UNSUPPORTED);
    assert_sentence(err, "does not listen on UCX");
    const mr_fabric_policy odd = {.kind = MR_FABRIC_TCP, .require_rdma = true};
    assert_int_equal(choose(&kind, there, true, true, true, odd, &err), MR_ERR_ARGUMENT);
}

static void test_words(void **state) {
    (void)state;
    mr_err err;
    mr_fabric_kind kind;
    assert_int_equal(mr_fabric_parse(&kind, "rdma", &err), MR_OK);
    assert_int_equal(kind, MR_FABRIC_RDMA);
    assert_int_equal(mr_fabric_parse(&kind, "auto", &err), MR_OK);
    assert_int_equal(kind, MR_FABRIC_AUTO);
    assert_int_equal(mr_fabric_parse(&kind, "infiniband", &err), MR_ERR_ARGUMENT);
    assert_sentence(err, "infiniband");
    assert_int_equal(strlen(mr_machine_id()), 32);
    assert_string_equal(mr_machine_id(), mr_machine_id());
    assert_true(mr_fabric_cores() >= 1);
    assert_false(mr_fabric_spin_if_spare(1 << 20, 100));
    assert_int_equal(mr_fabric_spin(), 0);
    assert_int_equal(mr_fabric_spin_if_spare(0, 100), true);
    assert_int_equal(mr_fabric_spin(), 100);
    mr_fabric_set_spin(0);
}

static void refuse_all(void *context, mr_link *reply, const mr_frame *frame) {
    (void)context;
    mr_link_send_error(reply, frame->header->request, MR_ERR_UNSUPPORTED, "echoes only");
}

static const char *transport_of(const mr_fabric_peer *peer, mr_fabric_policy policy) {
    mr_link *link;
    mr_err err;
    if (mr_link_connect_best(&link, peer, &policy, after_ms(5000), &err) != MR_OK)
        fail_msg("%s", err.text);
    const char *transport = mr_link_transport(link);
    mr_link_close(link);
    return transport;
}

static void test_real_links(void **state) {
    (void)state;
    mr_err err;
    mr_server *server;
    mr_link *link;
    const bool has_ucx = mr_fabric_check_ucx(&err) == MR_OK;
    const mr_server_options options = {.address = "127.0.0.1:0",
                                       .ucx = has_ucx ? "127.0.0.1:0" : NULL,
                                       .role = MR_ROLE_MEMSHARD,
                                       .handler = refuse_all};
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    mr_fabric_peer peer = {
        .tcp = mr_server_address(server), .ucx = mr_server_ucx(server), .machine = mr_machine_id()};
    const mr_fabric_policy any = {0}, tcp = {.kind = MR_FABRIC_TCP}, must = {.require_rdma = true};
    assert_string_equal(transport_of(&peer, any), has_ucx ? "shm" : "tcp");
    assert_string_equal(transport_of(&peer, tcp), "tcp");
    if (!mr_fabric_has_verbs()) {
        assert_int_equal(mr_link_connect_best(&link, &peer, &must, after_ms(2000), &err),
                         MR_ERR_UNSUPPORTED);
        assert_null(link);
        assert_sentence(err, "RDMA is required");
    }
    peer.machine = there; /* another host: nothing but TCP is left */
    assert_string_equal(transport_of(&peer, any), "tcp");
    peer.tcp = NULL;
    assert_int_equal(mr_link_connect_best(&link, &peer, &any, after_ms(2000), &err),
                     MR_ERR_ARGUMENT);
    mr_server_close(server);
    /* A peer that is not there is not looked for over the next fabric. */
    peer = (mr_fabric_peer){.tcp = "127.0.0.1:1", .ucx = "127.0.0.1:1", .machine = mr_machine_id()};
    assert_int_equal(mr_link_connect_best(&link, &peer, &any, after_ms(2000), &err),
                     MR_ERR_UNAVAILABLE);
    assert_null(link);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_required_rdma),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_real_links),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
