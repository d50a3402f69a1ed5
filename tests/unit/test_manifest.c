/* Goal: a manifest is right, is found again, and is not believed when it is not what it should be.
 * Method: a golden model in a folder of its own; the sums against plain loops; then its text is
 * spoilt in one place per case. */
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/manifest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    char folder[64];
    char *path; /* of the manifest */
    mr_model *model;
} w;

static void copy_file(const char *name) {
    char *from = mr_format("%s/tests/golden/v2_demo_share05/%s", MR_SOURCE_DIR, name);
    char *to = mr_format("%s/%s", w.folder, name), *data;
    size_t bytes;
    assert_int_equal(mr_file_read(&data, &bytes, from, 1 << 30, NULL), MR_OK);
    assert_int_equal(mr_file_write(to, data, bytes, NULL), MR_OK);
    free(data);
    free(from);
    free(to);
}

static int setup(void **state) {
    (void)state;
    snprintf(w.folder, sizeof(w.folder), "/tmp/memrack-manifest-XXXXXX");
    assert_non_null(mkdtemp(w.folder));
    copy_file("config.json");
    copy_file("model.safetensors");
    w.path = mr_format("%s/memrack-manifest.json", w.folder);
    mr_err err;
    assert_int_equal(mr_model_open(&w.model, w.folder, &err), MR_OK);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    mr_model_close(w.model);
    static const char *const names[] = {"config.json", "model.safetensors",
                                        "memrack-manifest.json"};
    for (int i = 0; i < 3; i++) {
        char *path = mr_format("%s/%s", w.folder, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(w.folder);
    free(w.path);
    return 0;
}

static mr_manifest make(mr_grid grid) {
    mr_manifest m;
    mr_err err = {{0}};
    if (mr_manifest_make(&m, w.model, grid, NULL, NULL, &err) != MR_OK) fail_msg("%s", err.text);
    return m;
}

/* Rows of a cell's slice, one after the other. */
static uint32_t cell_crc(const mr_tensor *t, mr_grid grid, uint32_t cell) {
    mr_mapping map;
    mr_err err;
    uint32_t crc = 0;
    assert_int_equal(mr_tensor_map(&map, w.model, t, 0, t->bytes, &err), MR_OK);
    const uint64_t element = mr_dtype_bytes(t->dtype);
    const mr_span rows = mr_grid_part(t->shape[0], grid.row_groups, cell / grid.width_slices);
    const mr_span columns = mr_grid_part(t->shape[1], grid.width_slices, cell % grid.width_slices);
    for (uint64_t r = rows.first; r < rows.first + rows.count; r++)
        crc = mr_crc32c(crc, map.data + (r * t->shape[1] + columns.first) * element,
                        (size_t)(columns.count * element));
    mr_mapping_close(&map);
    return crc;
}

static void test_sums_are_those_of_the_files(void **state) {
    (void)state;
    const mr_grid grid = {5, 3};
    mr_manifest m = make(grid);
    for (uint32_t i = 0; i < mr_model_tensor_count(w.model); i++) {
        const mr_tensor *t = mr_model_tensor(w.model, i);
        const mr_checks checks = mr_manifest_checks(&m, w.model, t);
        mr_mapping map;
        mr_err err;
        uint64_t bad;
        assert_int_equal(mr_tensor_map(&map, w.model, t, 0, t->bytes, &err), MR_OK);
        const mr_chunk_range all = mr_chunks_around(&checks, 0, t->bytes);
        assert_int_equal(all.bytes, t->bytes);
        assert_true(mr_chunks_match(&checks, &all, map.data, &bad));
        mr_mapping_close(&map);
    }
    for (uint32_t cell = 0; cell < 15; cell++)
        for (int pre = 0; pre < 2; pre++) {
            const mr_table_shape *t = mr_model_table(w.model, 0);
            uint32_t crc;
            assert_true(mr_manifest_cell_check(&crc, &m, grid, 0, pre, cell));
            assert_int_equal(crc, cell_crc(pre ? t->pre_values : t->values, grid, cell));
        }
    uint32_t crc;
    assert_false(mr_manifest_cell_check(&crc, &m, (mr_grid){5, 1}, 0, false, 0));
    assert_false(mr_manifest_cell_check(&crc, &m, grid, 0, false, 15));
    assert_false(mr_manifest_cell_check(&crc, &m, grid, 1, false, 0));
    mr_manifest_free(&m);
}

static void expect_same(const mr_manifest *a, const mr_manifest *b) {
    assert_memory_equal(&a->digest, &b->digest, sizeof(a->digest));
    assert_memory_equal(&a->grid, &b->grid, sizeof(a->grid));
    for (uint32_t i = 0; i < a->table_count; i++) {
        assert_memory_equal(&a->tables[i].value_max, &b->tables[i].value_max, 3 * sizeof(double));
        assert_int_equal(a->tables[i].accumulator_bits, b->tables[i].accumulator_bits);
    }
    for (uint32_t i = 0; i < a->tensor_count; i++)
        assert_memory_equal(a->crc[i], b->crc[i],
                            sizeof(uint32_t) *
                                mr_chunk_count(mr_model_tensor(w.model, i)->bytes, a->chunk_bytes));
}

static uint32_t passes;
static void count_pass(void *context, const char *what, double fraction) {
    (void)context, (void)what;
    passes += fraction == 1.0;
}

static void test_it_is_kept_and_found(void **state) {
    (void)state;
    mr_manifest first, again;
    mr_err err = {{0}};
    passes = 0;
    assert_int_equal(mr_manifest_load(&first, w.model, count_pass, NULL, &err), MR_OK);
    assert_int_equal(passes, 1);
    assert_int_equal(mr_manifest_load(&again, w.model, count_pass, NULL, &err), MR_OK);
    assert_int_equal(passes, 1);
    expect_same(&first, &again);
    mr_manifest_free(&again);
    mr_manifest split = make((mr_grid){2, 2});
    assert_int_equal(mr_manifest_write(&split, w.model, w.path, &err), MR_OK);
    assert_int_equal(mr_manifest_load(&again, w.model, count_pass, NULL, &err), MR_OK);
    assert_int_equal(passes, 1);
    expect_same(&split, &again);
    assert_memory_equal(&first.digest, &again.digest, sizeof(first.digest));
    assert_memory_equal(split.tables[0].cell_crc[0], again.tables[0].cell_crc[0], 16);
    mr_manifest_free(&first);
    mr_manifest_free(&again);
    /* one of another version is made anew */
    char *text;
    size_t bytes;
    assert_int_equal(mr_file_read(&text, &bytes, w.path, 1 << 20, &err), MR_OK);
    char *version = strstr(text, "\"version\": 2");
    assert_non_null(version);
    version[11] = '1';
    assert_int_equal(mr_file_write(w.path, text, bytes, &err), MR_OK);
    free(text);
    assert_int_equal(mr_manifest_load(&again, w.model, count_pass, NULL, &err), MR_OK);
    assert_int_equal(passes, 2);
    assert_int_equal(again.grid.row_groups, 0);
    mr_manifest_free(&again);
    mr_manifest_free(&split);
}

/* from is replaced by to, which may be longer or shorter; NULL: the text ends there. */
static void spoil(const char *good, const char *from, const char *to) {
    const char *at = strstr(good, from);
    assert_non_null(at);
    char *text = to ? mr_format("%.*s%s%s", (int)(at - good), good, to, at + strlen(from))
                    : mr_format("%.*s", (int)(at - good), good);
    assert_int_equal(mr_file_write(w.path, text, strlen(text), NULL), MR_OK);
    free(text);
}

static void test_spoilt_manifests_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *why;
    } cases[] = {
        {"\"version\": 2", "\"version\": 3", "it has version 3"},
        {"\"version\": 2", "\"version\": \"2\"", "version"},
        {"\"chunk_bytes\": 1048576", "\"chunk_bytes\": 0", "chunk_bytes"},
        {"\"chunk_bytes\": 1048576", "\"chunk_bytes\": 4096", "chunks of 4096 bytes"},
        {"\"chunk_bytes\": 1048576", "\"chunk_bytes\": -1", "chunk_bytes"},
        {"\"digest\": \"", "\"digest\": \"zz", "digest must be 64"},
        {"\"layout\": \"", "\"layout\": \"0", "layout must be 64"},
        {"\"grid\": \"2x2\"", "\"grid\": \"0x2\"", "0x2"},
        {"\"grid\": \"2x2\"", "\"grid\": \"99999x99999\"", "99999"},
        {"\"grid\": \"2x2\"", "\"grid\": \"2x3\"", "checksums of cells"},
        {"\"cells\": \"", "\"cells\": \"00000000", "checksums of cells"},
        {"\"pre_cells\": \"", "\"other\": \"", "there are no checksums of cells"},
        {"\"accumulator_bits\": 64", "\"accumulator_bits\": 32", "do not follow"},
        {"\"value_rms\": ", "\"value_rms\": 1e30, \"x\": ", "value_rms"},
        {"\"value_max\": ", "\"value_max\": -1, \"x\": ", "value_max"},
        {"\"tables\": [", "\"tables\": [{}, ", "it has 2 tables"},
        {"\"checksums\": {", "\"checksums\": {\"other\": \"00000000\",", "checksums of"},
        {"\"transformer.wte.weight\": \"", "\"transformer.wte.weight\": \"0",
         "digits of checksums"},
        {"\"transformer.wte.weight\": \"", "\"transformer.wte.weight\": \"g", "wte"},
        {"\"tables\"", NULL, "memrack-manifest.json"},
    };
    mr_err err = {{0}};
    char *good;
    size_t bytes;
    mr_manifest m = make((mr_grid){2, 2}), read;
    assert_int_equal(mr_manifest_write(&m, w.model, w.path, &err), MR_OK);
    assert_int_equal(mr_file_read(&good, &bytes, w.path, 1 << 20, &err), MR_OK);
    assert_int_equal(mr_manifest_read(&read, w.model, w.path, &err), MR_OK);
    expect_same(&m, &read);
    mr_manifest_free(&read);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        spoil(good, cases[i].from, cases[i].to);
        err.text[0] = '\0';
        assert_int_not_equal(mr_manifest_read(&read, w.model, w.path, &err), MR_OK);
        if (!strstr(err.text, cases[i].why))
            fail_msg("case %zu: '%s' does not say '%s'", i, err.text, cases[i].why);
        assert_null(read.tables);
    }
    memset(good + bytes / 2, 0, bytes / 2); /* a tail of zeros */
    assert_int_equal(mr_file_write(w.path, good, bytes, NULL), MR_OK);
    assert_int_not_equal(mr_manifest_read(&read, w.model, w.path, &err), MR_OK);
    free(good);
    mr_manifest_free(&m);
}

int main(void) {
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_sums_are_those_of_the_files),
        IN_FOLDER(test_it_is_kept_and_found),
        IN_FOLDER(test_spoilt_manifests_are_refused),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
