/* Goal: a map that keeps every rule whatever the cluster, moves little when members come and go,
 * and says which limit stands in the way where none is possible.
 * Method: named clusters for the rules, then hundreds of random ones, all checked by code that
 * shares nothing with the planner. */
#include "coordinator/placement.h"
#include "common/base/mem.h"
#include "tests/unit/net_test.h"

#include <stdio.h>

static const mr_digest digest_a = {{0xaa}}, digest_b = {{0xbb}};

typedef struct {
    const char *id, *host, *zone, *set;
    uint64_t capacity;
} shard;

static mr_member *make_member(const shard *s) {
    mr_member *m = mr_alloc(sizeof(*m));
    m->id = mr_strdup(s->id);
    m->role = MR_ROLE_MEMSHARD;
    m->state = MR_MEMBER_READY;
    m->is_listed = true;
    m->address = mr_strdup("h:1");
    m->machine = mr_strdup("k");
    m->host = mr_strdup(s->host);
    m->zone = mr_strdup(s->zone);
    m->set = mr_strdup(s->set);
    m->numeric_class = mr_strdup("");
    m->capacity_bytes = s->capacity;
    m->wire_min = m->wire_max = 2;
    return m;
}

static void add(mr_view_builder *b, const char *id, const char *host, const char *zone,
                const char *set, uint64_t capacity) {
    mr_err err;
    const shard s = {id, host, zone, set, capacity};
    assert_int_equal(mr_view_put_member(b, make_member(&s), &err), MR_OK);
}

/* m00, m01, ...: each on a host of its own. */
static const mr_view *even_cluster(uint32_t count, uint64_t capacity) {
    mr_view_builder *b = mr_view_builder_open(NULL, "t");
    for (uint32_t i = 0; i < count; i++) {
        char id[16], host[16];
        snprintf(id, sizeof(id), "m%02u", i);
        snprintf(host, sizeof(host), "h%02u", i);
        add(b, id, host, "", "", capacity);
    }
    return mr_view_publish(b);
}

static mr_placement_model model_of(uint32_t rows, uint32_t columns, uint32_t replicas) {
    return (mr_placement_model){.digest = digest_a,
                                .grid_rows = rows,
                                .grid_columns = columns,
                                .replicas = replicas,
                                .table_bytes = 100ull * rows * columns};
}

/* --- the checker ------------------------------------------------------------------------------ */

static bool holds(const mr_map_record *map, uint32_t cell, const char *id) {
    for (uint32_t i = map->replica_first[cell]; i < map->replica_first[cell + 1]; i++)
        if (strcmp(map->replicas[i], id) == 0) return true;
    return false;
}

static uint32_t zones_of(const mr_view *view) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < view->member_count; i++) {
        bool is_new = view->members[i]->state != MR_MEMBER_DRAINING;
        for (uint32_t j = 0; j < i && is_new; j++)
            is_new = view->members[j]->state == MR_MEMBER_DRAINING ||
                     strcmp(view->members[j]->zone, view->members[i]->zone) != 0;
        count += is_new;
    }
    return count;
}

static void check_pair(const mr_member *x, const mr_member *y, bool same_host, bool zones) {
    assert_string_not_equal(x->id, y->id);
    if (!same_host) assert_string_not_equal(x->host, y->host);
    if (zones) assert_string_not_equal(x->zone, y->zone);
    if (*x->set) assert_string_not_equal(x->set, y->set);
}

static void check_rules(const mr_view *view, const mr_map_record *map, const mr_map_record *before,
                        uint64_t cell_bytes, uint32_t replicas, bool same_host) {
    const uint32_t cells = map->grid_rows * map->grid_columns;
    const bool zones = replicas > 1 && zones_of(view) >= replicas;
    uint64_t *used = mr_alloc_array(view->member_count, sizeof(*used));
    for (uint32_t c = 0; c < cells; c++) {
        const uint32_t first = map->replica_first[c], end = map->replica_first[c + 1];
        assert_int_equal(end - first, replicas);
        for (uint32_t i = first; i < end; i++) {
            const mr_member *m = mr_view_member(view, MR_ROLE_MEMSHARD, map->replicas[i]);
            assert_non_null(m);
            assert_int_not_equal(m->state, MR_MEMBER_DRAINING);
            if (!m->is_listed) assert_true(before && holds(before, c, m->id));
            for (uint32_t j = first; j < i; j++)
                check_pair(m, mr_view_member(view, MR_ROLE_MEMSHARD, map->replicas[j]), same_host,
                           zones);
        }
    }
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        for (uint32_t c = 0; c < cells; c++)
            if (holds(map, c, m->id) ||
                (before && m->state != MR_MEMBER_DRAINING && holds(before, c, m->id)))
                used[i] += cell_bytes;
        assert_true(used[i] <= m->capacity_bytes);
    }
    free(used);
}

static mr_map_record *place(const mr_view *view, const mr_placement_model *model, bool same_host,
                            mr_placement *figures) {
    mr_err err = {{0}};
    mr_placement p;
    const mr_placement_options options = {.allow_same_host = same_host};
    if (mr_placement_compute(&p, view, model, 1, 0, &options, &err) != MR_OK)
        fail_msg("%s", err.text);
    if (figures) *figures = p;
    return p.map;
}

/* The view with this map as the current one; takes the view and the map over. */
static const mr_view *with_map(const mr_view *view, mr_map_record *map) {
    mr_err err = {{0}};
    mr_view_builder *b = mr_view_builder_open(view, "t");
    if (mr_view_put_map(b, map, &err) != MR_OK) fail_msg("%s", err.text);
    mr_view_release(view);
    return mr_view_publish(b);
}

/* --- named clusters --------------------------------------------------------------------------- */

static void test_balance_and_repeat(void **state) {
    (void)state;
    mr_placement figures;
    for (uint32_t members = 1; members <= 9; members++)
        for (uint32_t replicas = 1; replicas <= 3 && replicas <= members; replicas++) {
            const mr_view *view = even_cluster(members, 1 << 20);
            const mr_placement_model model = model_of(3, 8, replicas);
            mr_map_record *map = place(view, &model, false, &figures),
                          *again = place(view, &model, false, NULL);
            check_rules(view, map, NULL, 100, replicas, false);
            assert_true(figures.cells_max - figures.cells_min <= 1);
            assert_int_equal(map->epoch, 1);
            assert_int_equal(figures.moved_cells, 24 * replicas);
            char *a = mr_map_record_dump(map), *b = mr_map_record_dump(again);
            assert_string_equal(a, b);
            free(a);
            free(b);
            mr_map_record_free(again);
            view = with_map(view, map);
            assert_null(place(view, &model, false, NULL)); /* it is as it should be */
            mr_view_release(view);
        }
}

static void test_weights(void **state) {
    (void)state;
    mr_view_builder *b = mr_view_builder_open(NULL, "t");
    add(b, "a", "h0", "", "", 100000);
    add(b, "b", "h1", "", "", 200000);
    add(b, "c", "h2", "", "", 300000);
    add(b, "d", "h3", "", "", 0); /* no capacity: nothing */
    const mr_view *view = mr_view_publish(b);
    const mr_placement_model model = model_of(60, 1, 1);
    mr_map_record *map = place(view, &model, false, NULL);
    uint32_t count[3] = {0};
    for (uint32_t c = 0; c < 60; c++)
        for (uint32_t m = 0; m < 3; m++) count[m] += holds(map, c, view->members[m]->id);
    assert_int_equal(count[0], 10);
    assert_int_equal(count[1], 20);
    assert_int_equal(count[2], 30);
    mr_map_record_free(map);
    mr_view_release(view);
}

/* M processes a replica set on one machine, as `memrack up` starts them. */
static void test_one_machine(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_view_builder *b = mr_view_builder_open(NULL, "t");
    for (uint32_t i = 0; i < 6; i++) {
        char id[16];
        snprintf(id, sizeof(id), "m%u", i);
        add(b, id, "here", "", i < 3 ? "r0" : "r1", 1 << 20);
    }
    const mr_view *view = mr_view_publish(b);
    const mr_placement_model model = model_of(4, 3, 2), three = model_of(4, 3, 3);
    mr_placement p;
    const mr_placement_options strict = {0}, loose = {.allow_same_host = true};
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "2 hosts; the memshards lie on 1");
    assert_null(p.map);
    assert_int_equal(mr_placement_compute(&p, view, &three, 1, 0, &loose, &err), MR_ERR_LIMIT);
    assert_sentence(err, "3 replica sets");
    mr_map_record *map = place(view, &model, true, &p);
    check_rules(view, map, NULL, 100, 2, true);
    assert_int_equal(p.cells_min, 4);
    assert_int_equal(p.cells_max, 4);
    mr_map_record_free(map);
    const mr_placement_options fewer = {.allow_fewer_replicas = true};
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &fewer, &err), MR_OK);
    assert_int_equal(p.short_replicas, 12);
    mr_placement_free(&p);
    mr_view_release(view);
}

static void test_sentences(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_placement p;
    const mr_placement_options strict = {0};
    const mr_view *view = even_cluster(3, 1000);
    mr_placement_model model = model_of(40, 1, 1);
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "capacity: 1 replicas of the tables need 4000 bytes");
    model = model_of(1, 1, 1);
    model.table_bytes = 2000;
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "finer grid");
    model = model_of(2, 1, 4);
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "4 memshards; there are 3");
    mr_view_builder *b = mr_view_builder_open(view, "t");
    for (uint32_t i = 0; i < 3; i++) {
        mr_member *m;
        assert_int_equal(mr_member_copy(&m, view->members[i], &err), MR_OK);
        m->state = MR_MEMBER_DRAINING;
        assert_int_equal(mr_view_put_member(b, m, &err), MR_OK);
    }
    mr_view_release(view);
    view = mr_view_publish(b);
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "drain");
    mr_view_release(view);

    b = mr_view_builder_open(NULL, "t"); /* zones: as many as replicas, but one has no room */
    add(b, "a", "h0", "z0", "", 100000);
    add(b, "b", "h1", "z0", "", 100000);
    add(b, "c", "h2", "z1", "", 100);
    view = mr_view_publish(b);
    model = model_of(10, 1, 2);
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "2 zones");
    mr_view_release(view);
    model.replicas = 0;
    view = even_cluster(1, 1000);
    assert_int_equal(mr_placement_compute(&p, view, &model, 1, 0, &strict, &err), MR_ERR_RANGE);
    mr_view_release(view);
}

/* Labels that cross: the heaviest first choice leaves no second. */
static void test_crossing_labels(void **state) {
    (void)state;
    for (uint64_t heavy = 1; heavy <= 64; heavy *= 4) {
        mr_view_builder *b = mr_view_builder_open(NULL, "t");
        add(b, "a", "h1", "", "s1", 10000 * heavy);
        add(b, "b", "h1", "", "s2", 10000);
        add(b, "c", "h2", "", "s1", 10000);
        const mr_view *view = mr_view_publish(b);
        const mr_placement_model model = model_of(20, 1, 2);
        mr_map_record *map = place(view, &model, false, NULL);
        check_rules(view, map, NULL, 100, 2, false);
        for (uint32_t c = 0; c < 20; c++) assert_false(holds(map, c, "a"));
        mr_map_record_free(map);
        mr_view_release(view);
    }
}

static void test_models_share_capacity(void **state) {
    (void)state;
    mr_err err = {{0}};
    const mr_view *view = even_cluster(4, 1000); /* 40 cells of 100 bytes in all */
    mr_placement_model models[2] = {model_of(24, 1, 1), model_of(16, 1, 1)};
    models[1].digest = digest_b;
    const mr_placement_options strict = {0};
    mr_placement p;
    assert_int_equal(mr_placement_compute(&p, view, models, 2, 0, &strict, &err), MR_OK);
    view = with_map(view, p.map);
    if (mr_placement_compute(&p, view, models, 2, 1, &strict, &err) != MR_OK)
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < 4; i++) {
        const char *id = view->members[i]->id;
        uint32_t cells = 0;
        for (uint32_t c = 0; c < 24; c++) cells += holds(view->maps[0], c, id);
        for (uint32_t c = 0; c < 16; c++) cells += holds(p.map, c, id);
        assert_int_equal(cells, 10);
    }
    mr_placement_free(&p);
    models[1] = model_of(17, 1, 1);
    models[1].digest = digest_b;
    assert_int_equal(mr_placement_compute(&p, view, models, 2, 1, &strict, &err), MR_ERR_LIMIT);
    assert_sentence(err, "capacity");
    mr_view_release(view);
}

/* --- movement --------------------------------------------------------------------------------- */

static const mr_view *without(const mr_view *view, const char *id) {
    mr_view_builder *b = mr_view_builder_open(view, "t");
    assert_true(mr_view_remove_member(b, MR_ROLE_MEMSHARD, id));
    mr_view_release(view);
    return mr_view_publish(b);
}

static const mr_view *with_one(const mr_view *view, const char *id, const char *host,
                               uint64_t capacity) {
    mr_view_builder *b = mr_view_builder_open(view, "t");
    add(b, id, host, "", "", capacity);
    mr_view_release(view);
    return mr_view_publish(b);
}

/* A newcomer gets its share and nothing else moves; what a leaver had moves and nothing else. */
static void test_movement(void **state) {
    (void)state;
    for (uint32_t members = 2; members <= 16; members++)
        for (uint32_t replicas = 1; replicas <= 2 && replicas < members; replicas++) {
            const mr_placement_model model = model_of(16, 16, replicas);
            mr_placement join, leave;
            const mr_view *view = even_cluster(members, 1 << 20);
            view = with_map(view, place(view, &model, false, NULL));
            view = with_one(view, "n", "hn", 1 << 20);
            mr_map_record *map = place(view, &model, false, &join);
            check_rules(view, map, view->maps[0], 100, replicas, false);
            const uint32_t share = 256 * replicas / (members + 1);
            assert_true(join.moved_cells >= share && join.moved_cells <= share + 1);
            assert_true(join.cells_max - join.cells_min <= 1);
            assert_int_equal(map->epoch, 2);
            view = with_map(view, map);
            uint32_t had = 0;
            for (uint32_t c = 0; c < 256; c++) had += holds(view->maps[0], c, "m00");
            view = without(view, "m00");
            map = place(view, &model, false, &leave);
            check_rules(view, map, view->maps[0], 100, replicas, false);
            assert_true(leave.moved_cells >= had && leave.moved_cells <= had + had / 8 + 2);
            assert_true(leave.cells_max - leave.cells_min <= 1);
            if (replicas == 2 && (members == 4 || members == 16))
                print_message("%u memshards: join moves %u of %u cells (share %u), leave %u (had "
                              "%u)\n",
                              members, join.moved_cells, 256 * replicas, share, leave.moved_cells,
                              had);
            mr_map_record_free(map);
            mr_view_release(view);
        }
}

/* Members come and go fifty times: balance must not wear off, and no rule break. */
static void test_long_history(void **state) {
    (void)state;
    uint64_t random = 7;
    const mr_placement_model model = model_of(8, 16, 2);
    const mr_view *view = even_cluster(6, 1 << 20);
    view = with_map(view, place(view, &model, false, NULL));
    uint32_t moved = 0, ideal = 0;
    for (uint32_t round = 0; round < 50; round++) {
        char id[16], host[16];
        snprintf(id, sizeof(id), "n%u", round);
        snprintf(host, sizeof(host), "hn%u", round);
        if (view->member_count < 4 || (view->member_count < 9 && test_random(&random) % 2)) {
            view = with_one(view, id, host, 1 << 20);
            ideal += 256 / view->member_count;
        } else {
            const uint32_t which = test_random(&random) % view->member_count;
            const char *gone = view->members[which]->id;
            for (uint32_t c = 0; c < 128; c++) ideal += holds(view->maps[0], c, gone);
            view = without(view, gone);
        }
        mr_placement p;
        mr_map_record *map = place(view, &model, false, &p);
        assert_non_null(map);
        check_rules(view, map, view->maps[0], 100, 2, false);
        assert_true(p.cells_max - p.cells_min <= 2);
        moved += p.moved_cells;
        view = with_map(view, map);
    }
    print_message("fifty changes: %u cells moved, ideally %u\n", moved, ideal);
    assert_true(moved <= ideal + ideal / 10);
    mr_view_release(view);
}

static void test_drain_and_unlisted(void **state) {
    (void)state;
    mr_err err = {{0}};
    const mr_placement_model model = model_of(4, 8, 2);
    const mr_view *view = even_cluster(5, 1 << 20);
    view = with_map(view, place(view, &model, false, NULL));
    mr_view_builder *b = mr_view_builder_open(view, "t");
    mr_member *m;
    assert_int_equal(mr_member_copy(&m, view->members[1], &err), MR_OK);
    m->state = MR_MEMBER_DRAINING;
    assert_int_equal(mr_view_put_member(b, m, &err), MR_OK);
    assert_true(mr_view_set_listed(b, MR_ROLE_MEMSHARD, "m03", false));
    mr_view_release(view);
    view = mr_view_publish(b);
    mr_map_record *map = place(view, &model, false, NULL);
    check_rules(view, map, view->maps[0], 100, 2, false);
    uint32_t kept = 0;
    for (uint32_t c = 0; c < 32; c++) {
        assert_false(holds(map, c, "m01"));
        kept += holds(map, c, "m03");
    }
    assert_true(kept >= 12);
    mr_map_record_free(map);
    mr_view_release(view);
}

/* The members change while a next map is being loaded: what is loaded already is not given up. */
static void test_change_while_loading(void **state) {
    (void)state;
    mr_err err = {{0}};
    const mr_placement_model model = model_of(16, 4, 1);
    const mr_view *view = even_cluster(4, 1 << 20);
    view = with_map(view, place(view, &model, false, NULL));
    view = with_one(view, "n1", "hn1", 1 << 20);
    mr_map_record *next = place(view, &model, false, NULL);
    mr_view_builder *b = mr_view_builder_open(view, "t");
    assert_int_equal(mr_view_put_next_map(b, next, &err), MR_OK);
    mr_view_release(view);
    view = mr_view_publish(b);
    assert_null(place(view, &model, false, NULL));
    view = with_one(view, "n2", "hn2", 1 << 20);
    mr_map_record *map = place(view, &model, false, NULL);
    assert_int_equal(map->epoch, 3);
    uint32_t kept = 0, had = 0;
    for (uint32_t c = 0; c < 64; c++) {
        had += holds(view->next_maps[0], c, "n1");
        kept += holds(view->next_maps[0], c, "n1") && holds(map, c, "n1");
    }
    assert_true(had >= 12 && kept + 3 >= had);
    mr_map_record_free(map);
    mr_view_release(view);
}

/* --- random clusters -------------------------------------------------------------------------- */

/* Whether any map exists where replicas only have to lie on different hosts: each host can hold a
 * cell once, so it counts for at most all cells, and by wrapping around nothing else matters. */
static bool is_possible(const mr_view *view, const mr_placement_model *model, uint64_t cell_bytes) {
    const uint64_t cells = (uint64_t)model->grid_rows * model->grid_columns;
    uint64_t room = 0;
    for (uint32_t i = 0; i < view->member_count; i++) {
        const char *host = view->members[i]->host;
        uint64_t of_host = 0;
        bool is_first = true;
        for (uint32_t j = 0; j < view->member_count; j++)
            if (strcmp(view->members[j]->host, host) == 0) {
                is_first &= j >= i;
                of_host += view->members[j]->capacity_bytes / cell_bytes;
            }
        if (is_first) room += of_host < cells ? of_host : cells;
    }
    return room >= cells * model->replicas;
}

static void test_random_clusters(void **state) {
    (void)state;
    uint64_t random = 42;
    uint32_t placed = 0, refused = 0, missed = 0;
    for (uint32_t trial = 0; trial < 400; trial++) {
        mr_err err = {{0}};
        const uint32_t members = 1 + test_random(&random) % 12, tight = test_random(&random) % 3;
        const mr_placement_model model =
            model_of(1 + test_random(&random) % 8, 1 + test_random(&random) % 8,
                     1 + test_random(&random) % 3);
        const uint32_t cells = model.grid_rows * model.grid_columns;
        mr_view_builder *b = mr_view_builder_open(NULL, "t");
        for (uint32_t i = 0; i < members; i++) {
            char id[16], host[16];
            snprintf(id, sizeof(id), "m%02u", i);
            snprintf(host, sizeof(host), "h%u", test_random(&random) % (members + 1));
            const uint32_t most = tight == 0 ? 4 * cells : 3 * cells * model.replicas / members + 2;
            add(b, id, host, "", "", 100ull * (1 + test_random(&random) % most));
        }
        const mr_view *view = mr_view_publish(b);
        const mr_placement_options strict = {0};
        mr_placement p;
        const mr_status status = mr_placement_compute(&p, view, &model, 1, 0, &strict, &err);
        const bool possible = is_possible(view, &model, 100);
        if (status == MR_OK) {
            assert_true(possible);
            check_rules(view, p.map, NULL, 100, model.replicas, false);
            placed++;
        } else {
            assert_int_equal(status, MR_ERR_LIMIT);
            assert_true(err.text[0] != '\0');
            refused++;
            missed += possible;
        }
        mr_placement_free(&p);
        mr_view_release(view);
    }
    print_message("random clusters: %u placed, %u refused, %u of them possible\n", placed, refused,
                  missed);
    assert_true(placed > 100 && refused > 50);
    assert_int_equal(missed, 0);
}

/* Zones and sets at random, with changes: rules hold after every one of them. */
static void test_random_labels(void **state) {
    (void)state;
    uint64_t random = 99;
    uint32_t placed = 0;
    for (uint32_t trial = 0; trial < 200; trial++) {
        mr_err err = {{0}};
        const uint32_t members = 3 + test_random(&random) % 14;
        const mr_placement_model model =
            model_of(1 + test_random(&random) % 6, 6, 1 + test_random(&random) % 3);
        const bool same_host = test_random(&random) % 2;
        mr_view_builder *b = mr_view_builder_open(NULL, "t");
        for (uint32_t i = 0; i < members; i++) {
            char id[16], host[16], zone[16], set[16] = "";
            const uint32_t h = test_random(&random) % (members / 2 + 2);
            snprintf(id, sizeof(id), "m%02u", i);
            snprintf(host, sizeof(host), "h%u", h);
            snprintf(zone, sizeof(zone), "z%u", h % 4);
            if (test_random(&random) % 2) snprintf(set, sizeof(set), "s%u", i % 5);
            add(b, id, host, zone, set, 100ull * (20 + test_random(&random) % 200));
        }
        const mr_view *view = mr_view_publish(b);
        const mr_placement_options options = {.allow_same_host = same_host};
        for (uint32_t change = 0; change < 3; change++) {
            mr_placement p;
            if (mr_placement_compute(&p, view, &model, 1, 0, &options, &err) != MR_OK) break;
            if (p.map) {
                check_rules(view, p.map, view->map_count ? view->maps[0] : NULL, 100,
                            model.replicas, same_host);
                view = with_map(view, p.map);
                placed++;
            }
            view = without(view, view->members[test_random(&random) % view->member_count]->id);
        }
        mr_view_release(view);
    }
    print_message("random labels: %u maps\n", placed);
    assert_true(placed > 150);
}

/* A large cluster is placed within seconds, not minutes. */
static void test_large(void **state) {
    (void)state;
    const mr_view *view = even_cluster(96, 1ull << 40);
    const mr_placement_model model = model_of(256, 64, 2);
    mr_placement p;
    const int64_t start = mr_now_ns();
    mr_map_record *map = place(view, &model, false, &p);
    view = with_map(view, map);
    view = with_one(view, "n", "hn", 1ull << 40);
    map = place(view, &model, false, &p);
    print_message("96 memshards, 16384 cells x 2: %.0f ms, %u cells move to one more\n",
                  (double)(mr_now_ns() - start) / 1e6, p.moved_cells);
    assert_true(p.moved_cells >= 337 && p.moved_cells <= 338);
    mr_map_record_free(map);
    mr_view_release(view);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balance_and_repeat),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_one_machine),
        cmocka_unit_test(test_sentences),
        cmocka_unit_test(test_crossing_labels),
        cmocka_unit_test(test_models_share_capacity),
        cmocka_unit_test(test_movement),
        cmocka_unit_test(test_long_history),
        cmocka_unit_test(test_drain_and_unlisted),
        cmocka_unit_test(test_change_while_loading),
        cmocka_unit_test(test_random_clusters),
        cmocka_unit_test(test_random_labels),
        cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
