/* Goal: whatever comes and goes, and whenever a leader dies, the controller brings a cluster to
 * where every cell of every wanted model is held by as many members as asked for, never switches to
 * a map with a hole, and never takes a cell away that a map still gives to its holder. Method: a
 * small cluster of records in memory that carries the actions out, with a clock of its own; in the
 * random cases members die, return empty, drain and join, and the leader is replaced between any
 * two turns. */
#include "coordinator/controller.h"
#include "coordinator/ownership.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MEMBERS = 6, CELLS = 12, TURN_MS = 500 };

typedef struct {
    bool is_alive, is_listed, is_draining;
    bool held[2][CELLS]; /* of model 0 and 1 */
    int64_t died_ns;
} member;

typedef struct {
    const mr_view *view;
    member members[MEMBERS];
    int64_t now_ns;
    mr_controller *controller;
    uint32_t replicas;
    uint32_t switches, loads, unloads;
    uint64_t random;
} world;

static uint32_t roll(world *w, uint32_t bound) {
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(w->random >> 33) % bound;
}

static mr_digest digest_of(uint32_t model) {
    mr_digest d = {{0}};
    memset(d.bytes, (int)model + 1, sizeof(d.bytes));
    return d;
}

static uint32_t model_of(const mr_digest *digest) {
    return digest->bytes[0] - 1u;
}

static void put_members(world *w, mr_view_builder *b) {
    mr_err err;
    for (uint32_t i = 0; i < MEMBERS; i++) {
        member *m = &w->members[i];
        char id[16], host[16], address[32];
        uint32_t cells[2][CELLS], counts[2] = {0, 0}, used = 0;
        mr_holding holdings[2];
        if (!m->is_listed) {
            mr_view_set_listed(b, MR_ROLE_MEMSHARD, (snprintf(id, sizeof(id), "m%u", i), id),
                               false);
            continue;
        }
        snprintf(id, sizeof(id), "m%u", i);
        snprintf(host, sizeof(host), "h%u", i);
        snprintf(address, sizeof(address), "10.0.0.%u:7000", i + 1);
        for (uint32_t k = 0; k < 2; k++) {
            for (uint32_t c = 0; c < CELLS; c++)
                if (m->held[k][c]) cells[k][counts[k]++] = c;
            if (counts[k] > 0)
                holdings[used++] = (mr_holding){.digest = digest_of(k),
                                                .grid_rows = CELLS,
                                                .grid_columns = 1,
                                                .cells = cells[k],
                                                .cell_count = counts[k],
                                                .bytes = 1000u * counts[k]};
        }
        const mr_member made = {.id = id,
                                .role = MR_ROLE_MEMSHARD,
                                .state = m->is_draining ? MR_MEMBER_DRAINING : MR_MEMBER_READY,
                                .is_listed = true,
                                .address = address,
                                .machine = host,
                                .host = host,
                                .zone = (char[]){""},
                                .set = (char[]){""},
                                .numeric_class = (char[]){""},
                                .capacity_bytes = 1 << 20,
                                .incarnation = 1,
                                .wire_min = 1,
                                .wire_max = 2,
                                .holdings = holdings,
                                .holding_count = used};
        mr_member *copy;
        if (mr_member_copy(&copy, &made, &err) != MR_OK) fail_msg("%s", err.text);
        if (mr_view_put_member(b, copy, &err) != MR_OK) fail_msg("%s", err.text);
    }
}

static void refresh(world *w) {
    mr_view_builder *b = mr_view_builder_open(w->view, "test");
    put_members(w, b);
    mr_view_release(w->view);
    w->view = mr_view_publish(b);
}

static void put_model(world *w, uint32_t model, uint64_t epoch) {
    mr_err err;
    char name[8];
    snprintf(name, sizeof(name), "n%u", model);
    mr_model_version version = {.version = (char[]){"v1"},
                                .digest = digest_of(model),
                                .source = (char[]){"/models/x"},
                                .grid_rows = CELLS,
                                .grid_columns = 1,
                                .replicas = w->replicas};
    const mr_model_record record = {.name = name,
                                    .epoch = epoch,
                                    .active = version.version,
                                    .versions = &version,
                                    .version_count = 1};
    mr_model_record *copy;
    mr_view_builder *b = mr_view_builder_open(w->view, "test");
    if (mr_model_record_copy(&copy, &record, &err) != MR_OK) fail_msg("%s", err.text);
    if (mr_view_put_model(b, copy, &err) != MR_OK) fail_msg("%s", err.text);
    mr_view_release(w->view);
    w->view = mr_view_publish(b);
}

static double silent_s(void *context, const mr_member *m) {
    const world *w = context;
    const member *at = &w->members[atoi(m->id + 1)];
    return at->is_alive ? 0 : (double)(w->now_ns - at->died_ns) / 1e9;
}

static uint64_t table_bytes(void *context, const mr_model_version *version) {
    (void)context, (void)version;
    return CELLS * 1000;
}

static bool map_gives(const mr_map_record *map, uint32_t cell, const char *id) {
    for (uint32_t r = map ? map->replica_first[cell] : 0; map && r < map->replica_first[cell + 1];
         r++)
        if (strcmp(map->replicas[r], id) == 0) return true;
    return false;
}

/* Nobody can know of a death before it is noticed. */
static bool has_or_just_died(const world *w, const char *id, const mr_digest *digest,
                             uint32_t cell) {
    const member *m = &w->members[atoi(id + 1)];
    return m->held[model_of(digest)][cell] ||
           (!m->is_alive && w->now_ns - m->died_ns <= 3500 * 1000000ll);
}

static void carry_out(world *w, const mr_action *a) {
    mr_err err;
    mr_view_builder *b = mr_view_builder_open(w->view, "test");
    member *m = a->member ? &w->members[atoi(a->member + 1)] : NULL;
    const mr_map_record *next = mr_view_next_map(w->view, &a->digest);
    switch (a->kind) {
    case MR_ACT_PUT_NEXT_MAP:
        if (mr_view_put_next_map(b, (mr_map_record *)(uintptr_t)mr_map_record_retain(a->map),
                                 &err) != MR_OK)
            fail_msg("%s", err.text);
        break;
    case MR_ACT_SWITCH_MAP:
        assert_non_null(next);
        assert_int_equal(next->epoch, a->epoch);
        for (uint32_t cell = 0; cell < CELLS; cell++)
            for (uint32_t r = next->replica_first[cell]; r < next->replica_first[cell + 1]; r++)
                assert_true(has_or_just_died(w, next->replicas[r], &a->digest, cell));
        if (mr_view_put_map(b, (mr_map_record *)(uintptr_t)mr_map_record_retain(next), &err) !=
            MR_OK)
            fail_msg("%s", err.text);
        w->switches++;
        break;
    case MR_ACT_DELETE_MAP:
        mr_view_remove_map(b, &a->digest);
        mr_view_remove_next_map(b, &a->digest);
        break;
    case MR_ACT_LOAD:
        w->loads++;
        for (uint32_t i = 0; m->is_alive && i < a->cell_count; i++)
            m->held[model_of(&a->digest)][a->cells[i]] = true;
        break;
    case MR_ACT_UNLOAD:
        w->unloads++;
        for (uint32_t i = 0; i < a->cell_count; i++) {
            assert_false(map_gives(mr_view_map(w->view, &a->digest), a->cells[i], a->member));
            assert_false(map_gives(mr_view_next_map(w->view, &a->digest), a->cells[i], a->member));
            m->held[model_of(&a->digest)][a->cells[i]] = false;
        }
        break;
    case MR_ACT_REPORT_DEAD:
        assert_false(m->is_alive);
        mr_view_remove_member(b, a->role, a->member);
        break;
    }
    mr_view_release(w->view);
    w->view = mr_view_publish(b);
}

static const mr_controller_options quick = {.replace_after_ms = 4000, .unload_after_ms = 1000};

/* One turn; some of the actions may be lost with the leader. Returns how many there were. */
static uint32_t turn(world *w, bool is_unsteady) {
    const mr_controller_input input = {.view = mr_view_retain(w->view),
                                       .now_ns = w->now_ns,
                                       .silent_s = silent_s,
                                       .table_bytes = table_bytes,
                                       .context = w};
    const mr_actions *list = mr_controller_decide(w->controller, &input);
    const uint32_t count = list->count;
    for (uint32_t i = 0; i < count; i++) {
        if (is_unsteady && roll(w, 4) == 0) break;
        carry_out(w, &list->items[i]);
    }
    mr_view_release(input.view);
    if (is_unsteady && roll(w, 6) == 0) { /* another leader, who knows nothing but the view */
        mr_controller_close(w->controller);
        w->controller = mr_controller_open(&quick);
    }
    w->now_ns += TURN_MS * 1000000ll;
    refresh(w);
    return count;
}

static void settle(world *w) {
    uint32_t quiet = 0;
    for (uint32_t i = 0; i < 400 && quiet < 24; i++) quiet = turn(w, false) == 0 ? quiet + 1 : 0;
    assert_true(quiet >= 24);
}

static void check_served(world *w, uint32_t model) {
    const mr_digest digest = digest_of(model);
    const mr_map_record *map = mr_view_map(w->view, &digest);
    assert_non_null(map);
    assert_null(mr_view_next_map(w->view, &digest));
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        assert_int_equal(map->replica_first[cell + 1] - map->replica_first[cell], w->replicas);
        for (uint32_t r = map->replica_first[cell]; r < map->replica_first[cell + 1]; r++) {
            const member *m = &w->members[atoi(map->replicas[r] + 1)];
            assert_true(m->is_alive && !m->is_draining && m->held[model][cell]);
        }
    }
}

static void begin(world *w, uint32_t alive, uint32_t replicas, uint64_t seed) {
    *w = (world){.replicas = replicas, .now_ns = 1000000000, .random = seed};
    w->view = mr_view_publish(mr_view_builder_open(NULL, "test"));
    for (uint32_t i = 0; i < alive; i++) w->members[i].is_alive = w->members[i].is_listed = true;
    w->controller = mr_controller_open(&quick);
    refresh(w);
}

static void end(world *w) {
    mr_controller_close(w->controller);
    mr_view_release(w->view);
}

static void kill_member(world *w, uint32_t i) {
    w->members[i].is_alive = w->members[i].is_listed = false;
    w->members[i].died_ns = w->now_ns;
    memset(w->members[i].held, 0, sizeof(w->members[i].held));
}

static void start_member(world *w, uint32_t i) {
    w->members[i].is_alive = w->members[i].is_listed = true;
    w->members[i].is_draining = false;
}

static void a_model_is_placed_loaded_and_switched(void **state) {
    (void)state;
    world w;
    begin(&w, 4, 2, 1);
    put_model(&w, 0, 1);
    settle(&w);
    check_served(&w, 0);
    assert_int_equal(w.switches, 1); /* not once for each member that came */
    assert_int_equal(w.unloads, 0);
    end(&w);
}

static void a_short_absence_moves_nothing(void **state) {
    (void)state;
    world w;
    begin(&w, 4, 2, 1);
    put_model(&w, 0, 1);
    settle(&w);
    kill_member(&w, 1);
    refresh(&w);
    for (int i = 0; i < 4; i++) turn(&w, false); /* 2 s of 4 */
    assert_int_equal(w.switches, 1);
    start_member(&w, 1); /* empty: it is filled again where it was */
    refresh(&w);
    settle(&w);
    check_served(&w, 0);
    assert_int_equal(w.switches, 1);
    end(&w);
}

static void a_long_absence_is_made_good(void **state) {
    (void)state;
    world w;
    begin(&w, 4, 2, 1);
    put_model(&w, 0, 1);
    settle(&w);
    kill_member(&w, 1);
    refresh(&w);
    settle(&w);
    check_served(&w, 0);
    assert_int_equal(w.switches, 2);
    start_member(&w, 1);
    refresh(&w);
    settle(&w);
    check_served(&w, 0);
    end(&w);
}

static void a_draining_member_is_emptied(void **state) {
    (void)state;
    world w;
    begin(&w, 5, 2, 1);
    put_model(&w, 0, 1);
    put_model(&w, 1, 1);
    settle(&w);
    w.members[2].is_draining = true;
    refresh(&w);
    settle(&w);
    check_served(&w, 0);
    check_served(&w, 1);
    for (uint32_t cell = 0; cell < CELLS; cell++)
        assert_false(w.members[2].held[0][cell] || w.members[2].held[1][cell]);
    end(&w);
}

static void a_removed_model_is_unloaded_and_a_joining_member_gets_its_share(void **state) {
    (void)state;
    world w;
    begin(&w, 3, 1, 1);
    put_model(&w, 0, 1);
    put_model(&w, 1, 1);
    settle(&w);
    mr_view_builder *b = mr_view_builder_open(w.view, "test");
    mr_view_remove_model(b, "n1");
    mr_view_release(w.view);
    w.view = mr_view_publish(b);
    start_member(&w, 3);
    refresh(&w);
    settle(&w);
    check_served(&w, 0);
    const mr_digest gone = digest_of(1);
    assert_null(mr_view_map(w.view, &gone));
    uint32_t share = 0;
    for (uint32_t cell = 0; cell < CELLS; cell++) {
        share += w.members[3].held[0][cell];
        for (uint32_t i = 0; i < MEMBERS; i++) assert_false(w.members[i].held[1][cell]);
    }
    assert_int_equal(share, CELLS / 4);
    end(&w);
}

static void what_is_impossible_is_said(void **state) {
    (void)state;
    world w;
    begin(&w, 2, 3, 1);
    put_model(&w, 0, 1);
    for (int i = 0; i < 8; i++) turn(&w, false);
    const mr_controller_input input = {.view = w.view,
                                       .now_ns = w.now_ns,
                                       .silent_s = silent_s,
                                       .table_bytes = table_bytes,
                                       .context = &w};
    const mr_actions *list = mr_controller_decide(w.controller, &input);
    assert_int_equal(list->count, 0);
    assert_int_equal(list->complaint_count, 1);
    assert_non_null(strstr(list->complaints[0], "model n0 v1"));
    end(&w);
}

static void any_history_ends_well(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        world w;
        begin(&w, 4, 1 + seed % 2, seed);
        put_model(&w, 0, 1);
        for (int i = 0; i < 120; i++) {
            const uint32_t who = roll(&w, MEMBERS), what = roll(&w, 12);
            if (i == 40) put_model(&w, 1, 1);
            if (what == 0 && w.members[who].is_alive) kill_member(&w, who);
            if (what == 1 && !w.members[who].is_alive) start_member(&w, who);
            if (what == 2) w.members[who].is_draining = !w.members[who].is_draining;
            refresh(&w);
            turn(&w, true);
        }
        for (uint32_t i = 0; i < MEMBERS; i++) start_member(&w, i);
        refresh(&w);
        settle(&w);
        check_served(&w, 0);
        check_served(&w, 1);
        end(&w);
    }
}

/* --- owners ----------------------------------------------------------------------------------- */

typedef struct {
    double silent[3], unheard;
} witness;

static double coordinator_silent(void *context, const mr_member *m) {
    return ((witness *)context)->silent[atoi(m->id + 1)];
}
static double worker_unheard(void *context, const mr_member *m) {
    (void)m;
    return ((witness *)context)->unheard;
}

static void put_one(mr_view_builder *b, mr_role role, const char *id, uint32_t stage,
                    uint32_t stages) {
    mr_err err;
    mr_stage_record record = {.digest = digest_of(0),
                              .group = (char[]){"g0"},
                              .stage = stage,
                              .stages = stages,
                              .block_count = 1};
    const bool is_worker = role == MR_ROLE_WORKER;
    const mr_member made = {.id = (char *)(uintptr_t)id,
                            .role = role,
                            .state = MR_MEMBER_READY,
                            .is_listed = true,
                            .address = is_worker ? (char[]){"10.0.0.1:7000"} : NULL,
                            .control = (char[]){"10.0.0.1:7001"},
                            .machine = (char[]){"x"},
                            .host = (char[]){"x"},
                            .zone = (char[]){""},
                            .set = (char[]){""},
                            .numeric_class = is_worker ? (char[]){"avx2"} : (char[]){""},
                            .incarnation = 1,
                            .wire_min = 1,
                            .wire_max = 2,
                            .stages = is_worker ? &record : NULL,
                            .stage_count = is_worker};
    mr_member *copy;
    if (mr_member_copy(&copy, &made, &err) != MR_OK) fail_msg("%s", err.text);
    if (mr_view_put_member(b, copy, &err) != MR_OK) fail_msg("%s", err.text);
}

static void an_owner_is_replaced_only_on_the_word_of_two(void **state) {
    (void)state;
    mr_err err;
    mr_group_place places[MR_MAX_GROUPS];
    witness seen = {{0.1, 0.1, 0.1}, -1};
    mr_view_builder *b = mr_view_builder_open(NULL, "test");
    put_one(b, MR_ROLE_COORDINATOR, "c0", 0, 0);
    put_one(b, MR_ROLE_COORDINATOR, "c1", 0, 0);
    put_one(b, MR_ROLE_COORDINATOR, "c2", 0, 0);
    put_one(b, MR_ROLE_WORKER, "w0", 0, 2);
    const mr_view *view = mr_view_publish(b);
    mr_ownership_input in = {.view = view,
                             .self = "c0",
                             .is_etcd_up = true,
                             .silent_s = coordinator_silent,
                             .owner_silent_s = worker_unheard,
                             .context = &seen};
    assert_int_equal(mr_ownership_decide(places, &in), 0); /* half a pipeline */
    b = mr_view_builder_open(view, "test");
    mr_view_release(view);
    put_one(b, MR_ROLE_WORKER, "w1", 1, 2);
    view = in.view = mr_view_publish(b);
    const char *ids[3] = {"c0", "c1", "c2"};
    uint32_t claims = 0, winner = 0;
    for (uint32_t i = 0; i < 3; i++) {
        in.self = ids[i];
        assert_int_equal(mr_ownership_decide(places, &in), 1);
        if (places[0].is_claimable) winner = i;
        claims += places[0].is_claimable;
    }
    assert_int_equal(claims, 1); /* all agree on who */

    const mr_owner_record owner = {
        .group = (char[]){"g0"}, .coordinator = (char *)(uintptr_t)ids[winner], .epoch = 4};
    char *text = mr_owner_record_dump(&owner);
    mr_owner_record *record;
    assert_int_equal(mr_owner_record_parse(&record, text, strlen(text), "owner", &err), MR_OK);
    free(text);
    b = mr_view_builder_open(view, "test");
    mr_view_release(view);
    assert_int_equal(mr_view_put_owner(b, record, &err), MR_OK);
    view = in.view = mr_view_publish(b);
    in.self = ids[winner];
    mr_ownership_decide(places, &in);
    assert_true(places[0].is_mine && places[0].epoch == 4 && !places[0].is_claimable);

    for (int round = 0; round < 5; round++) {
        seen.silent[winner] = round == 0 || round == 4 ? 0.2 : 5; /* a cut between two of us: */
        seen.unheard = round == 1 ? 0.1 : 5;                      /* the worker still hears him */
        in.is_etcd_up = round != 2;
        claims = 0;
        for (uint32_t i = 0; i < 3; i++) {
            in.self = ids[i];
            mr_ownership_decide(places, &in);
            if (i != winner) claims += places[0].is_claimable;
        }
        assert_int_equal(claims, round == 3); /* both agree and etcd is there */
    }
    mr_view_release(view);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_is_placed_loaded_and_switched),
        cmocka_unit_test(a_short_absence_moves_nothing),
        cmocka_unit_test(a_long_absence_is_made_good),
        cmocka_unit_test(a_draining_member_is_emptied),
        cmocka_unit_test(a_removed_model_is_unloaded_and_a_joining_member_gets_its_share),
        cmocka_unit_test(what_is_impossible_is_said),
        cmocka_unit_test(any_history_ends_well),
        cmocka_unit_test(an_owner_is_replaced_only_on_the_word_of_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
