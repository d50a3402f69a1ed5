/* Goal: a cell holds exactly its rows, whichever way it is cut; no byte that is not the manifest's
 * is ever taken in; a file cut short under a mapping is an error and not the end of the process.
 * Method: a table in a real file; every cell of several grids against the file's bytes; then bits
 * are flipped and the file is cut at chosen places. */
#include "common/base/log.h"
#include "memshard/store_guard.h"
#include "tests/unit/store_test.h"

#include <pthread.h>

static void test_crc32c(void **state) {
    (void)state;
    uint8_t bytes[64];
    assert_int_equal(mr_crc32c(0, "123456789", 9), 0xe3069283u); /* RFC 3720 and others */
    memset(bytes, 0, 32);
    assert_int_equal(mr_crc32c(0, bytes, 32), 0x8a9136aau);
    memset(bytes, 0xff, 32);
    assert_int_equal(mr_crc32c(0, bytes, 32), 0x62a8ab43u);
    for (int i = 0; i < 64; i++) bytes[i] = (uint8_t)(i * 37);
    for (size_t cut = 0; cut <= 64; cut++)
        assert_int_equal(mr_crc32c(mr_crc32c(0, bytes, cut), bytes + cut, 64 - cut),
                         mr_crc32c(0, bytes, 64));
    assert_int_equal(mr_crc32c(0, NULL, 0), 0);
}

static void expect_cell(const file_table *f, const mr_cell *cell) {
    mr_fetch_scratch scratch = {0};
    for (int pre = 0; pre < 2; pre++) {
        const uint32_t first = (uint32_t)cell->span.rows.first;
        const uint32_t count = (uint32_t)cell->span.rows.count;
        uint32_t *row = mr_alloc_array(count, sizeof(*row));
        for (uint32_t i = 0; i < count; i++) row[i] = first + count - 1 - i;
        expect_fetched(f, cell, pre, row, count, &scratch);
        free(row);
    }
    mr_fetch_scratch_free(&scratch);
}

static void test_every_cell_of_every_grid(void **state) {
    file_table *f = *state;
    static const mr_grid grids[] = {{1, 1}, {3, 1}, {7, 2}, {1, 4}, {2, 13}, {64, 1}};
    for (size_t g = 0; g < sizeof(grids) / sizeof(grids[0]); g++) {
        uint64_t rows = 0;
        for (uint32_t c = 0; c < grids[g].row_groups * grids[g].width_slices; c++) {
            mr_held *held;
            mr_store_plan plan;
            mr_err err = {{0}};
            if (mr_held_open(&held, &f->source, grids[g], c, NULL, &err) != MR_OK)
                fail_msg("%s", err.text);
            assert_int_equal(mr_held_plan(&plan, &f->source, grids[g], c, NULL, &err), MR_OK);
            assert_int_equal(held->bytes, plan.mapped_bytes + plan.kept_bytes);
            expect_cell(f, mr_held_cell(held, 0));
            assert_null(mr_held_cell(held, 1));
            rows += mr_held_cell(held, 0)->span.rows.count;
            mr_held_close(held);
        }
        assert_int_equal(rows, (uint64_t)FILE_ROWS * grids[g].width_slices);
    }
    mr_held *held;
    mr_err err;
    assert_int_equal(mr_held_open(&held, &f->source, (mr_grid){2, 1}, 2, NULL, &err), MR_ERR_RANGE);
    assert_null(held);
}

/* Every flip inside the chunks a cell touches is refused, by name; those outside do not matter. */
static void test_flipped_bits_are_refused_at_load(void **state) {
    file_table *f = *state;
    static const mr_grid grids[] = {{4, 1}, {4, 2}};
    uint32_t random = 7, refused = 0, taken = 0;
    for (int round = 0; round < 200; round++) {
        const mr_grid grid = grids[round % 2];
        random = random * 1664525u + 1013904223u;
        const uint64_t at = FILE_OFFSET + random % (FILE_BYTES - FILE_OFFSET);
        const bool pre = at >= file_side_offset(true);
        const uint64_t in_side = at - file_side_offset(pre);
        const uint32_t cell = grid.width_slices; /* of the second row group */
        const mr_cell_span span = mr_cell_span_of(&f->table, grid, cell);
        const uint64_t row_bytes = pre ? FILE_PRE * 2 : FILE_WIDTH * 4;
        const uint64_t first = span.rows.first * row_bytes / FILE_CHUNK * FILE_CHUNK;
        const uint64_t end = ((span.rows.first + span.rows.count) * row_bytes + FILE_CHUNK - 1) /
                             FILE_CHUNK * FILE_CHUNK;
        mr_held *held;
        mr_err err = {{0}};
        file_table_flip(f, at);
        const mr_status status = mr_held_open(&held, &f->source, grid, cell, NULL, &err);
        if (in_side >= first && in_side < end) {
            assert_int_equal(status, MR_ERR_FORMAT);
            assert_non_null(strstr(err.text, f->path));
            assert_non_null(
                strstr(err.text, pre ? "pre-values of rows" : "table 0, values of rows"));
            refused++;
        } else {
            assert_int_equal(status, MR_OK);
            expect_cell(f, mr_held_cell(held, 0));
            mr_held_close(held);
            taken++;
        }
        file_table_flip(f, at);
    }
    assert_true(refused > 20 && taken > 20);
    file_table_flip(f, FILE_OFFSET + 5);
    const mr_cell_options trusting = {.no_verify = true};
    mr_held *held;
    mr_err err;
    assert_int_equal(mr_held_open(&held, &f->source, (mr_grid){1, 1}, 0, &trusting, &err), MR_OK);
    mr_held_close(held);
}

static void test_a_marked_cell_answers_errors(void **state) {
    file_table *f = *state;
    mr_held *held;
    mr_rows rows;
    const uint32_t row[1] = {0}, *ids;
    mr_fetch_scratch scratch = {0};
    mr_err err = {{0}}, why = {"the first reason"}, later = {"a later reason"};
    assert_int_equal(mr_held_open(&held, &f->source, (mr_grid){1, 1}, 0, NULL, &err), MR_OK);
    mr_held_mark_bad(held, &why);
    mr_held_mark_bad(held, &later);
    assert_int_equal(
        mr_cell_fetch(mr_held_cell(held, 0), false, row, 1, &scratch, &rows, &ids, &err),
        MR_ERR_IO);
    assert_non_null(strstr(err.text, "the first reason"));
    mr_held_close(held);
}

typedef struct {
    const mr_cell *cell;
    double sum;
} reader;

/* Reads every value, as a kernel would. */
static void *read_all(void *context) {
    reader *r = context;
    const float *values = r->cell->values.data;
    for (uint64_t i = 0; i < r->cell->values.row_count * r->cell->values.stride / 4; i++)
        r->sum += (double)values[i];
    return NULL;
}

static void test_a_file_cut_short_under_the_mapping(void **state) {
    file_table *f = *state;
    mr_held *held, *other;
    mr_rows rows;
    mr_err err = {{0}};
    const uint32_t row[1] = {FILE_ROWS - 1}, *ids;
    mr_fetch_scratch scratch = {0};
    const mr_grid grid = {2, 1};
    mr_guard_install(); /* the test framework has a handler of its own */
    assert_int_equal(mr_held_open(&held, &f->source, grid, 1, NULL, &err), MR_OK);
    assert_int_equal(mr_held_open(&other, &f->source, grid, 0, NULL, &err), MR_OK);
    assert_int_equal(truncate(f->path, FILE_OFFSET + FILE_VALUE_BYTES * 3 / 4), 0);
    reader readers[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        readers[i] = (reader){mr_held_cell(held, 0), 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &readers[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    assert_int_equal(mr_held_check(held, &err), MR_ERR_IO);
    assert_non_null(strstr(err.text, "became shorter"));
    assert_int_equal(
        mr_cell_fetch(mr_held_cell(held, 0), false, row, 1, &scratch, &rows, &ids, &err),
        MR_ERR_IO);
    reader first = {mr_held_cell(other, 0), 0};
    read_all(&first);
    assert_int_equal(mr_held_check(other, &err), MR_OK); /* its rows are still there */
    mr_held_close(held);
    mr_held_close(other);
    /* and a file that is short before it is read */
    for (uint32_t w = 1; w <= 2; w++) {
        assert_int_not_equal(mr_held_open(&held, &f->source, (mr_grid){1, w}, 0, NULL, &err),
                             MR_OK);
        assert_non_null(strstr(err.text, f->path));
    }
}

static void test_guards_are_reused(void **state) {
    (void)state;
    uint8_t memory[64];
    _Atomic uint32_t flag = 0;
    const int first = mr_guard_add(memory, sizeof(memory), &flag);
    assert_true(first >= 0);
    mr_guard_remove(first);
    for (int i = 0; i < 10000; i++) {
        const int slot = mr_guard_add(memory, sizeof(memory), &flag);
        assert_int_equal(slot, first);
        mr_guard_remove(slot);
    }
    assert_int_equal(mr_guard_add(NULL, 10, &flag), -1);
    mr_guard_remove(-1);
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
        cmocka_unit_test(test_crc32c),
        IN_FILE(test_every_cell_of_every_grid),
        IN_FILE(test_flipped_bits_are_refused_at_load),
        IN_FILE(test_a_marked_cell_answers_errors),
        IN_FILE(test_a_file_cut_short_under_the_mapping),
        cmocka_unit_test(test_guards_are_reused),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
