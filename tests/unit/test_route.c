/* test_route.c - routes out of a cluster's view.
 *
 * Goal: each cell's replicas are those of the map that are members with an address, in the map's
 * order, each peer once; what is missing is left out or said.
 * Method: views made of records' texts, as a process would have them. */
#include "tests/unit/net_test.h"
#include "worker/route.h"

#include <stdio.h>

static const mr_digest digest = {{1, 2, 3}};

static mr_member *member(const char *id, mr_role role, char *address) {
    mr_member *m = calloc(1, sizeof(*m));
    m->id = strdup(id);
    m->role = role;
    m->state = MR_MEMBER_READY;
    m->address = address ? strdup(address) : NULL;
    m->machine = strdup("here");
    return m;
}

static void free_member(mr_member *m) {
    free(m->id);
    free(m->address);
    free(m->machine);
    free(m);
}

static void test_replicas_are_members_in_the_maps_order(void **state) {
    static char *replicas[] = {"b", "a", "gone", "c", "b", "gone", "mute"};
    static uint32_t first[] = {0, 2, 4, 5, 7};
    mr_map_record map = {.digest = digest,
                         .epoch = 9,
                         .grid_rows = 2,
                         .grid_columns = 2,
                         .replica_first = first,
                         .replicas = replicas};
    mr_map_record *maps[] = {&map};
    mr_member *members[] = {member("a", MR_ROLE_MEMSHARD, "10.0.0.1:7000"),
                            member("b", MR_ROLE_MEMSHARD, "10.0.0.2:7000"),
                            member("c", MR_ROLE_MEMSHARD, "unix:/tmp/c"),
                            member("mute", MR_ROLE_MEMSHARD, NULL)};
    const mr_view view = {.members = members, .member_count = 4, .maps = maps, .map_count = 1};
    mr_route route;
    mr_err err;
    (void)state;
    assert_int_equal(mr_route_of_view(&route, &view, &digest, &err), MR_OK);
    assert_true(route.epoch == 9 && route.grid.row_groups == 2 && route.grid.width_slices == 2);
    assert_int_equal(route.peer_count, 3);
    assert_string_equal(route.peers[0].id, "b"); /* as they are met */
    assert_string_equal(route.peers[0].address, "10.0.0.2:7000");
    assert_string_equal(route.peers[1].id, "a");
    assert_string_equal(route.peers[2].address, "unix:/tmp/c");
    static const uint32_t expected_first[] = {0, 2, 3, 4, 4}, expected[] = {0, 1, 2, 0};
    assert_memory_equal(route.replica_first, expected_first, sizeof(expected_first));
    assert_memory_equal(route.replicas, expected, sizeof(expected)); /* cell 3 has none */
    mr_route_free(&route);
    mr_route_free(&route); /* empty now */
    for (int i = 0; i < 4; i++) free_member(members[i]);
}

static void test_a_model_without_a_map_is_said(void **state) {
    const mr_view view = {0};
    mr_route route;
    mr_err err;
    (void)state;
    assert_int_equal(mr_route_of_view(&route, &view, &digest, &err), MR_ERR_UNAVAILABLE);
    assert_sentence(err, "no table map");
    assert_sentence(err, "010203");
    mr_route_free(&route);
}

static void test_addresses_make_a_route(void **state) {
    static const char *const addresses[] = {"h:1", "h:2", "h:3"};
    mr_route route;
    (void)state;
    mr_route_of_addresses(&route, addresses, 3, (mr_grid){5, 1}, &digest);
    assert_int_equal(route.peer_count, 3);
    assert_string_equal(route.peers[2].id, "2");
    assert_string_equal(route.peers[2].address, "h:3");
    for (uint32_t c = 0; c < 5; c++) {
        assert_int_equal(route.replica_first[c], c);
        assert_int_equal(route.replicas[c], c % 3);
    }
    assert_int_equal(mr_route_cells(&route), 5);
    mr_route_free(&route);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replicas_are_members_in_the_maps_order),
        cmocka_unit_test(test_a_model_without_a_map_is_said),
        cmocka_unit_test(test_addresses_make_a_route)};
    return cmocka_run_group_tests_name("routes", tests, NULL, NULL);
}
