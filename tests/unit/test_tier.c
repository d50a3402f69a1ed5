/* Goal: rows out of a tier are the bits of the file, with any budget, engine and number of threads;
 * what cannot be read, or is not what it was, is an error; the scrubber finds rot wherever it sits.
 * Method: a table of several times the budget in a real file, random requests with repeats from
 * several threads; then the file is cut, and bits are flipped in the file and in memory. */
#include "common/base/clock.h"
#include "common/base/log.h"
#include "memshard/scrub.h"
#include "memshard/store_guard.h"
#include "memshard/tier.h"
#include "tests/unit/store_test.h"

#include <pthread.h>

static const char *const engines[] = {"uring", "pread"};

/* NULL: this system refuses the engine. */
static mr_tier *open_tier(const char *engine, uint64_t budget) {
    const mr_tier_options options = {.budget_bytes = budget, .engine = engine, .threads = 4};
    mr_tier *tier;
    mr_err err = {{0}};
    const mr_status status = mr_tier_open(&tier, &options, &err);
    if (status == MR_ERR_UNSUPPORTED && strcmp(engine, "uring") == 0) {
        print_message("    skipped: %s\n", err.text);
        return NULL;
    }
    if (status != MR_OK) fail_msg("%s", err.text);
    assert_string_equal(mr_tier_engine_name(tier), engine);
    return tier;
}

static mr_held *open_cell(const file_table *f, mr_tier *tier, mr_grid grid, uint32_t cell) {
    const mr_cell_options options = {.tier = tier};
    mr_held *held;
    mr_err err = {{0}};
    if (mr_held_open(&held, &f->source, grid, cell, &options, &err) != MR_OK)
        fail_msg("%s", err.text);
    return held;
}

typedef struct {
    const file_table *f;
    const mr_held *held;
    uint32_t seed, rounds;
} reader;

/* Requests of 1 to 600 rows, half of them out of a hot hundred. */
static void *read_rows(void *context) {
    reader *r = context;
    const mr_cell *cell = mr_held_cell(r->held, 0);
    const uint32_t first = (uint32_t)cell->span.rows.first;
    const uint32_t count = (uint32_t)cell->span.rows.count;
    mr_fetch_scratch scratch[2] = {{0}};
    uint32_t row[600], random = r->seed;
    for (uint32_t round = 0; round < r->rounds; round++) {
        random = random * 1664525u + 1013904223u;
        const uint32_t entries = 1 + (random >> 8) % 600;
        for (uint32_t j = 0; j < entries; j++) {
            random = random * 1664525u + 1013904223u;
            row[j] = first + (random >> 8) % (random >> 31 ? count : 100);
        }
        if (round % 4 == 0) mr_cell_prefetch(cell, row, entries);
        for (int pre = 0; pre < 2; pre++)
            expect_fetched(r->f, cell, pre, row, entries, &scratch[pre]);
    }
    for (int pre = 0; pre < 2; pre++) mr_fetch_scratch_free(&scratch[pre]);
    return NULL;
}

static void test_rows_are_those_of_the_file(void **state) {
    file_table *f = *state;
    static const mr_grid grids[] = {{1, 1}, {3, 1}, {2, 4}};
    for (int e = 0; e < 2; e++)
        for (size_t g = 0; g < sizeof(grids) / sizeof(grids[0]); g++) {
            mr_tier *tier = open_tier(engines[e], MR_TIER_BUDGET_MIN);
            if (!tier) continue;
            const uint32_t cell = grids[g].row_groups * grids[g].width_slices - 1;
            mr_held *held = open_cell(f, tier, grids[g], cell);
            pthread_t threads[3];
            reader readers[3];
            for (uint32_t i = 0; i < 3; i++) {
                readers[i] = (reader){f, held, i + 1, 40};
                assert_int_equal(pthread_create(&threads[i], NULL, read_rows, &readers[i]), 0);
            }
            for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
            mr_tier_counters c;
            mr_tier_count(tier, &c);
            assert_true(c.hits > 0 && c.misses > 0 && c.reads > 0);
            assert_true(c.reads <= c.misses + c.prefetched);
            assert_true(c.resident_bytes <= c.budget_bytes);
            assert_int_equal(c.failures, 0);
            if (g == 0) {
                assert_true(c.file_bytes > 3 * c.budget_bytes);
                assert_true(c.evicted > 0);
            }
            mr_held_close(held);
            mr_tier_count(tier, &c);
            assert_int_equal(c.resident_bytes, 0);
            assert_int_equal(c.file_bytes, 0);
            mr_tier_close(tier);
        }
}

static void test_hot_rows_stay_and_rows_are_read_once(void **state) {
    file_table *f = *state;
    mr_tier *tier = open_tier("pread", MR_TIER_BUDGET_MIN);
    mr_held *held = open_cell(f, tier, (mr_grid){1, 1}, 0);
    const mr_cell *cell = mr_held_cell(held, 0);
    mr_fetch_scratch scratch = {0};
    mr_tier_counters before, after;
    uint32_t hot[200], same[500];
    for (uint32_t i = 0; i < 200; i++) hot[i] = i * 25;
    for (uint32_t i = 0; i < 500; i++) same[i] = 19000 + i % 2;
    mr_tier_count(tier, &before);
    expect_fetched(f, cell, false, same, 500, &scratch);
    mr_tier_count(tier, &after);
    assert_true(after.misses - before.misses <= 2);
    assert_true(after.hits + after.misses - before.hits - before.misses <= 4);
    assert_int_equal(after.reads - before.reads, 1); /* neighbours: one read */
    for (int i = 0; i < 3; i++) expect_fetched(f, cell, false, hot, 200, &scratch);
    for (uint32_t sweep = 0; sweep < FILE_ROWS; sweep += 100) { /* a cold scan in between */
        uint32_t cold[100], count = 0;
        while (count < 100 && sweep + count < FILE_ROWS) {
            cold[count] = sweep + count;
            count++;
        }
        expect_fetched(f, cell, false, cold, count, &scratch);
        expect_fetched(f, cell, false, hot, 200, &scratch);
    }
    mr_tier_count(tier, &before);
    expect_fetched(f, cell, false, hot, 200, &scratch);
    mr_tier_count(tier, &after);
    assert_int_equal(after.misses, before.misses);
    mr_cell_prefetch(cell, same, 500);
    const int64_t until = mr_now_ns() + 5000000000;
    do {
        usleep(1000);
        mr_tier_count(tier, &after);
    } while (after.reads == before.reads && mr_now_ns() < until);
    const uint64_t misses = after.misses;
    expect_fetched(f, cell, false, same, 2, &scratch);
    mr_tier_count(tier, &after);
    assert_int_equal(after.misses, misses);
    const uint32_t outside[2] = {FILE_ROWS, UINT32_MAX};
    mr_cell_prefetch(cell, outside, 2); /* ids of a peer are not to be trusted */
    mr_fetch_scratch_free(&scratch);
    mr_held_close(held);
    mr_tier_close(tier);
}

static void expect_refused(mr_held *held, uint32_t row, const char *why) {
    mr_err err = {{0}};
    mr_rows rows;
    const uint32_t *ids;
    mr_fetch_scratch scratch = {0};
    assert_int_equal(
        mr_cell_fetch(mr_held_cell(held, 0), false, &row, 1, &scratch, &rows, &ids, &err),
        MR_ERR_IO);
    if (!strstr(err.text, why)) fail_msg("'%s' does not say '%s'", err.text, why);
    mr_fetch_scratch_free(&scratch);
}

static void test_what_cannot_be_read_is_an_error(void **state) {
    file_table *f = *state;
    for (int e = 0; e < 2; e++) {
        mr_tier *tier = open_tier(engines[e], MR_TIER_BUDGET_MIN);
        if (!tier) continue;
        file_table_write(f);
        mr_held *cut = open_cell(f, tier, (mr_grid){1, 1}, 0);
        mr_held *rotten = open_cell(f, tier, (mr_grid){1, 1}, 0);
        file_table_flip(f, FILE_OFFSET + 5000ull * FILE_WIDTH * 4 + 17);
        expect_refused(rotten, 5000, "not what it was at load");
        expect_refused(rotten, 5000, "is bad"); /* marked: no second try */
        assert_int_equal(truncate(f->path, FILE_OFFSET + FILE_VALUE_BYTES / 2), 0);
        expect_refused(cut, FILE_ROWS - 1, "became shorter");
        assert_false(mr_held_is_good(cut));
        mr_tier_counters c;
        mr_tier_count(tier, &c);
        assert_true(c.failures >= 2);
        mr_held_close(cut);
        mr_held_close(rotten);
        mr_tier_close(tier);
    }
}

static void test_options_that_do_not_work(void **state) {
    (void)state;
    mr_tier *tier;
    mr_err err = {{0}};
    mr_tier_options o = {.budget_bytes = MR_TIER_BUDGET_MIN - 1};
    assert_int_equal(mr_tier_open(&tier, &o, &err), MR_ERR_ARGUMENT);
    assert_null(tier);
    o = (mr_tier_options){.budget_bytes = MR_TIER_BUDGET_MIN, .engine = "tape"};
    assert_int_equal(mr_tier_open(&tier, &o, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "uring and pread"));
    o.engine = NULL;
    assert_int_equal(mr_tier_open(&tier, &o, &err), MR_OK);
    mr_tier_close(tier);
}

/* --- the scrubber ----------------------------------------------------------------------------- */

typedef struct {
    mr_scrub *scrub;
    _Atomic uint32_t calls;
    mr_held *held;
    mr_err why;
} found;

static void on_bad(void *context, mr_held *held, const mr_err *why) {
    found *f = context;
    f->held = held;
    f->why = *why;
    mr_scrub_remove(f->scrub, held);
    atomic_fetch_add(&f->calls, 1);
}

static mr_scrub *open_scrub(found *f, mr_tier *tier) {
    const mr_scrub_options options = {.bytes_per_second = 1ull << 30,
                                      .pause_ms = 1,
                                      .tier = tier,
                                      .on_bad = on_bad,
                                      .context = f};
    mr_err err;
    memset(f, 0, sizeof(*f));
    assert_int_equal(mr_scrub_open(&f->scrub, &options, &err), MR_OK);
    return f->scrub;
}

static bool wait_for(found *f, uint64_t passes, uint32_t calls) {
    const int64_t until = mr_now_ns() + 20000000000;
    mr_scrub_counters c;
    do {
        mr_scrub_count(f->scrub, &c);
        if (c.passes >= passes && atomic_load(&f->calls) >= calls) return true;
        usleep(1000);
    } while (mr_now_ns() < until);
    return false;
}

static void test_the_scrubber_finds_rot(void **state) {
    file_table *f = *state;
    static const mr_grid mapped = {1, 1}, copied = {1, 2};
    mr_tier *tier = open_tier("pread", MR_TIER_BUDGET_MIN);
    found seen;
    mr_err err;
    for (int kind = 0; kind < 3; kind++) { /* mapped, copied, tiered */
        mr_held *held;
        file_table_write(f);
        const mr_cell_options options = {.tier = kind == 2 ? tier : NULL};
        assert_int_equal(
            mr_held_open(&held, &f->source, kind == 1 ? copied : mapped, 0, &options, &err), MR_OK);
        open_scrub(&seen, tier);
        mr_scrub_add(seen.scrub, held);
        assert_true(wait_for(&seen, 2, 0));
        assert_int_equal(atomic_load(&seen.calls), 0);
        assert_true(mr_held_is_good(held));
        if (kind == 1)
            ((uint8_t *)mr_held_cell(held, 0)->side[1].copy)[100] ^= 1;
        else
            file_table_flip(f, FILE_OFFSET + FILE_VALUE_BYTES - 3);
        assert_true(wait_for(&seen, 0, 1));
        assert_ptr_equal(seen.held, held);
        assert_non_null(strstr(seen.why.text, "not what it was at load"));
        assert_int_equal(mr_held_check(held, &err), MR_ERR_IO);
        mr_scrub_counters c;
        mr_scrub_count(seen.scrub, &c);
        assert_true(c.failures == 1 && c.chunks >= 4 && c.bytes > 100000);
        assert_int_equal(atomic_load(&seen.calls), 1);
        mr_scrub_close(seen.scrub);
        mr_held_close(held);
    }
    mr_tier_close(tier);
}

static void test_the_scrubber_mends_kept_blocks(void **state) {
    file_table *f = *state;
    mr_tier *tier = open_tier("pread", MR_TIER_BUDGET_MIN);
    mr_held *held = open_cell(f, tier, (mr_grid){1, 1}, 0);
    reader all = {f, held, 3, 20};
    read_rows(&all);
    assert_int_equal(mr_tier_scrub(tier, 100000), 0);
    mr_tier_spoil_for_test(tier);
    assert_int_equal(mr_tier_scrub(tier, 100000), 1);
    assert_int_equal(mr_tier_scrub(tier, 100000), 0);
    read_rows(&all);
    mr_held_close(held);
    mr_tier_close(tier);
}

static void test_the_scrubber_reports_faults_and_keeps_its_pace(void **state) {
    file_table *f = *state;
    found seen;
    mr_held *held;
    mr_err err;
    mr_guard_install();
    const mr_scrub_options slow = {.bytes_per_second = 400000, .on_bad = on_bad, .context = &seen};
    memset(&seen, 0, sizeof(seen));
    assert_int_equal(mr_held_open(&held, &f->source, (mr_grid){1, 1}, 0, NULL, &err), MR_OK);
    assert_int_equal(mr_scrub_open(&seen.scrub, &slow, &err), MR_OK);
    mr_scrub_add(seen.scrub, held);
    const int64_t begin = mr_now_ns();
    usleep(500000);
    mr_scrub_counters c;
    mr_scrub_count(seen.scrub, &c);
    /* a second's worth may be made up for where the machine was busy */
    assert_true(c.bytes > 0 && (double)c.bytes < 4e5 * ((double)(mr_now_ns() - begin) / 1e9 + 2));
    assert_int_equal(truncate(f->path, 4096), 0);
    volatile float sum = ((const float *)mr_held_cell(held, 0)->values.data)[FILE_WIDTH * 100];
    (void)sum; /* a request touches what is gone */
    assert_true(wait_for(&seen, 0, 1));
    assert_non_null(strstr(seen.why.text, "became shorter"));
    mr_scrub_close(seen.scrub);
    mr_held_close(held);
}

static int setup(void **state) {
    *state = file_table_open();
    return 0;
}
static int teardown(void **state) {
    file_table_close(*state);
    return 0;
}

int main(void) {
#define IN_FILE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_FILE(test_rows_are_those_of_the_file),
        IN_FILE(test_hot_rows_stay_and_rows_are_read_once),
        IN_FILE(test_what_cannot_be_read_is_an_error),
        cmocka_unit_test(test_options_that_do_not_work),
        IN_FILE(test_the_scrubber_finds_rot),
        IN_FILE(test_the_scrubber_mends_kept_blocks),
        IN_FILE(test_the_scrubber_reports_faults_and_keeps_its_pace),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
