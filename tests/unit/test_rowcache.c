/* test_rowcache.c - the cache of hot rows by itself.
 *
 * Goal: a slot always holds the row it is said to hold, whatever comes and goes; the budget is
 * kept; rows asked for often displace those that are not, and a scan displaces nothing. Method:
 * rows whose elements tell their number; a skewed stream of uses. */
#include "tests/unit/net_test.h"
#include "worker/rowcache.h"

enum { WIDTH = 8, TABLE_ROWS = 100000 };

static void fill(float *row, uint32_t number) {
    for (uint32_t c = 0; c < WIDTH; c++) row[c] = (float)(number * 16 + c);
}

static void check_slot(const mr_rowcache_table *t, uint32_t slot, uint32_t number) {
    float expected[WIDTH];
    const mr_rows rows = mr_rowcache_rows(t);
    fill(expected, number);
    assert_true(slot < rows.row_count);
    assert_memory_equal((const float *)rows.data + slot * WIDTH, expected, sizeof(expected));
}

/* One use, as a retrieval makes it: 1 when it was there. */
static uint32_t use(mr_rowcache_table *t, uint32_t number) {
    float row[WIDTH];
    const uint32_t slot = mr_rowcache_find(t, number);
    if (slot != UINT32_MAX) {
        check_slot(t, slot, number);
        return 1;
    }
    if (mr_rowcache_wants(t, number)) {
        fill(row, number);
        mr_rowcache_put(t, number, row);
    }
    return 0;
}

/* Half of all uses go to 100 rows. */
static uint32_t skewed(uint64_t *seed) {
    return test_random(seed) & 1 ? test_random(seed) % 100 * 977 : test_random(seed) % TABLE_ROWS;
}

static void test_slots_hold_what_they_are_said_to(void **state) {
    uint64_t seed = 3;
    (void)state;
    mr_rowcache *cache = mr_rowcache_open(16 << 10, 2, 1);
    mr_rowcache_table *t = mr_rowcache_use(cache, 1, WIDTH, (mr_storage){MR_F32, 0}, TABLE_ROWS);
    assert_non_null(t);
    const mr_rows rows = mr_rowcache_rows(t);
    assert_true(rows.row_count * (WIDTH * 4 + 5) <= 16 << 10);
    assert_true(rows.row_count > 100);
    uint32_t hits = 0;
    for (int i = 0; i < 200000; i++) {
        hits += use(t, skewed(&seed));
        assert_true(mr_rowcache_held(t) <= rows.row_count);
    }
    assert_true(hits > 80000); /* of 100000 hot uses */
    mr_rowcache_close(cache);
}

static void test_a_scan_displaces_nothing_hot(void **state) {
    uint64_t seed = 4;
    (void)state;
    mr_rowcache *cache = mr_rowcache_open(16 << 10, 1, 1);
    mr_rowcache_table *t = mr_rowcache_use(cache, 0, WIDTH, (mr_storage){MR_F32, 0}, TABLE_ROWS);
    for (int i = 0; i < 20000; i++) use(t, skewed(&seed));
    uint32_t before = 0, after = 0;
    for (uint32_t i = 0; i < 100; i++) before += use(t, i * 977);
    for (uint32_t i = 0; i < 1500; i++) use(t, 50001 + i); /* each once */
    for (uint32_t i = 0; i < 100; i++) after += use(t, i * 977);
    assert_true(before > 90 && after >= before - 5);
    mr_rowcache_close(cache);
}

static void test_the_hot_rows_of_another_time_come_in(void **state) {
    (void)state;
    mr_rowcache *cache = mr_rowcache_open(8 << 10, 1, 1);
    mr_rowcache_table *t = mr_rowcache_use(cache, 0, WIDTH, (mr_storage){MR_F32, 0}, TABLE_ROWS);
    const uint32_t room = (uint32_t)mr_rowcache_rows(t).row_count;
    for (uint32_t i = 0; i < 20 * room; i++) use(t, i % room);
    uint32_t hits = 0;
    for (uint32_t i = 0; i < 60 * room; i++) {
        const uint32_t hit = use(t, 40000 + i % (room / 2));
        if (i >= 58 * room) hits += hit;
    }
    assert_true(hits > room); /* of 2 x room */
    mr_rowcache_close(cache);
}

static void test_small_budgets_are_no_cache(void **state) {
    (void)state;
    mr_rowcache *cache = mr_rowcache_open(1 << 10, 4, 4);
    assert_null(mr_rowcache_use(cache, 0, 1024, (mr_storage){MR_BF16, 0}, TABLE_ROWS));
    assert_null(
        mr_rowcache_use(cache, 4, WIDTH, (mr_storage){MR_F32, 0}, TABLE_ROWS)); /* no such table */
    assert_null(mr_rowcache_use(NULL, 0, WIDTH, (mr_storage){MR_F32, 0}, TABLE_ROWS));
    mr_rowcache_close(cache);
    cache = mr_rowcache_open(1 << 20, 1, 1); /* never more slots than rows */
    assert_int_equal(
        mr_rowcache_rows(mr_rowcache_use(cache, 0, WIDTH, (mr_storage){MR_F32, 0}, 40)).row_count,
        40);
    mr_rowcache_close(cache);
    mr_rowcache_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_slots_hold_what_they_are_said_to),
                                       cmocka_unit_test(test_a_scan_displaces_nothing_hot),
                                       cmocka_unit_test(test_the_hot_rows_of_another_time_come_in),
                                       cmocka_unit_test(test_small_budgets_are_no_cache)};
    return cmocka_run_group_tests_name("row cache", tests, NULL, NULL);
}
