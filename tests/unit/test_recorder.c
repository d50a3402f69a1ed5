/* test_recorder.c - recordings of retrievals.
 *
 * Goal: what is put is read again, ids and slots to the byte; a file that is cut or changed
 * anywhere is refused with a sentence and never misread; a full buffer or file drops and counts
 * and does not wait; the file says of itself what it holds. Method: real files in a temporary
 * folder, every length and every byte of a small one. */
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "tests/unit/net_test.h"
#include "worker/recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 3, ENTRIES = 5, ALL = TOKENS * ENTRIES, PUT = 4 };
static char path[64], spoilt[64];
static uint32_t rows[ALL];
static uint8_t slots[ALL];

static mr_recorded sample(uint32_t layer) {
    return (mr_recorded){.model = 0x1122334455667788u,
                         .layer = layer,
                         .tokens = TOKENS,
                         .entries = ENTRIES,
                         .row = rows,
                         .slot = layer % 2 ? slots : NULL};
}

static int make_names(void **state) {
    (void)state;
    mr_log_setup("test", MR_LOG_ERROR, 1);
    snprintf(path, sizeof(path), "/tmp/mr-test-recorder-%ld", (long)getpid());
    snprintf(spoilt, sizeof(spoilt), "/tmp/mr-test-recorder-%ld.bad", (long)getpid());
    for (uint32_t i = 0; i < ALL; i++) {
        rows[i] = i * 2654435761u;
        slots[i] = (uint8_t)(i * 7);
    }
    return 0;
}

static int remove_files(void **state) {
    (void)state;
    unlink(path);
    unlink(spoilt);
    return 0;
}

/* A put that meets the writer drops: it is made again. */
static void put_surely(mr_recorder *recorder, const mr_recorded *what) {
    const uint64_t before = mr_recorder_count(recorder).records;
    while (mr_recorder_count(recorder).records == before) mr_recorder_put(recorder, what);
}

static void write_sample(void) {
    mr_recorder *recorder;
    mr_err err;
    assert_int_equal(mr_recorder_open(&recorder, path, 0, &err), MR_OK);
    for (uint32_t i = 0; i < PUT; i++) {
        const mr_recorded r = sample(i);
        put_surely(recorder, &r);
    }
    assert_int_equal(mr_recorder_count(recorder).records, PUT);
    mr_recorder_close(recorder);
}

/* How many good records there are before the end or a sentence. */
static uint32_t read_all(const char *from, mr_status *status) {
    mr_recording recording;
    mr_recorded r;
    mr_err err = {{0}};
    bool is_end = false;
    uint32_t count = 0;
    *status = mr_recording_open(&recording, from, &err);
    if (*status != MR_OK) {
        assert_true(err.text[0] != 0);
        return 0;
    }
    for (;;) {
        *status = mr_recording_next(&recording, &r, &is_end, &err);
        if (*status != MR_OK || is_end) break;
        assert_int_equal(r.layer, count);
        assert_int_equal(r.model, 0x1122334455667788u);
        assert_memory_equal(r.row, rows, sizeof(rows));
        assert_int_equal(r.slot != NULL, count % 2 == 1);
        if (r.slot) assert_memory_equal(r.slot, slots, sizeof(slots));
        count++;
    }
    if (*status != MR_OK) assert_true(err.text[0] != 0);
    mr_recording_close(&recording);
    return count;
}

static void what_is_put_is_read(void **state) {
    mr_status status;
    char *text;
    size_t bytes;
    mr_err err;
    (void)state;
    write_sample();
    assert_int_equal(read_all(path, &status), PUT);
    assert_int_equal(status, MR_OK);
    assert_int_equal(mr_file_read(&text, &bytes, path, 1 << 20, &err), MR_OK);
    assert_non_null(memmem(text, bytes, "No prompts, no tokens, no scores", 32));
    free(text);
}

static void cut_and_changed_files_are_refused(void **state) {
    mr_status status;
    char *text;
    size_t bytes;
    mr_err err;
    uint32_t whole = 0;
    (void)state;
    write_sample();
    assert_int_equal(mr_file_read(&text, &bytes, path, 1 << 20, &err), MR_OK);
    for (size_t i = 0; i < bytes; i++) { /* cut */
        assert_int_equal(mr_file_write(spoilt, text, i, &err), MR_OK);
        const uint32_t good = read_all(spoilt, &status);
        assert_true(good < PUT);
        whole += status == MR_OK;
    }
    assert_int_equal(whole, PUT); /* a cut between two records is no cut */
    for (size_t i = MR_RECORDING_HEADER_BYTES; i < bytes; i++) {
        text[i] = (char)(text[i] ^ 0x41);
        assert_int_equal(mr_file_write(spoilt, text, bytes, &err), MR_OK);
        text[i] = (char)(text[i] ^ 0x41);
        assert_true(read_all(spoilt, &status) < PUT);
        assert_int_equal(status, MR_ERR_FORMAT);
    }
    free(text);
}

/* The file's limit leaves room for one record; then a good one says how many are missing. */
static void what_finds_no_room_is_counted(void **state) {
    const mr_recorded r = sample(0);
    mr_recorder *recorder;
    mr_err err;
    mr_status status;
    (void)state;
    const uint64_t limit = MR_RECORDING_HEADER_BYTES + mr_record_bytes(&r) + 8;
    assert_int_equal(mr_recorder_open(&recorder, path, limit, &err), MR_OK);
    put_surely(recorder, &r);
    for (int i = 1; i < PUT; i++) mr_recorder_put(recorder, &r);
    const mr_recorder_counts counts = mr_recorder_count(recorder);
    assert_int_equal(counts.records, 1);
    assert_true(counts.dropped >= PUT - 1);
    mr_recorder_close(recorder);
    assert_int_equal(read_all(path, &status), 1);
    assert_int_equal(status, MR_OK);
}

/* More than both buffers hold, faster than it is written: nothing waits, all is accounted for. */
static void a_full_buffer_drops(void **state) {
    enum { MANY = 20000, WIDE = 4096 };
    uint32_t *wide = mr_alloc_array(WIDE, sizeof(*wide));
    const mr_recorded r = {.tokens = 1, .entries = WIDE, .row = wide};
    mr_recorder *recorder;
    mr_recording recording;
    mr_recorded back;
    mr_err err;
    bool is_end = false;
    uint64_t read = 0, missing = 0;
    (void)state;
    assert_int_equal(mr_recorder_open(&recorder, path, 0, &err), MR_OK);
    for (int i = 0; i < MANY; i++) mr_recorder_put(recorder, &r);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    put_surely(recorder, &r); /* says what is missing before it */
    const mr_recorder_counts counts = mr_recorder_count(recorder);
    assert_true(counts.records + counts.dropped >= MANY + 1);
    assert_true(counts.dropped > 0);
    mr_recorder_close(recorder);
    assert_int_equal(mr_recording_open(&recording, path, &err), MR_OK);
    while (mr_recording_next(&recording, &back, &is_end, &err) == MR_OK && !is_end) {
        read++;
        missing += back.dropped;
    }
    assert_true(is_end);
    assert_int_equal(read, counts.records);
    assert_int_equal(missing, counts.dropped);
    mr_recording_close(&recording);
    free(wide);
}

static void a_place_that_cannot_be_written_is_said(void **state) {
    mr_recorder *recorder;
    mr_recording recording;
    mr_err err = {{0}};
    (void)state;
    assert_int_equal(mr_recorder_open(&recorder, "/nowhere/file", 0, &err), MR_ERR_IO);
    assert_non_null(strstr(err.text, "/nowhere/file"));
    assert_int_not_equal(mr_recording_open(&recording, "/nowhere/file", &err), MR_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_put_is_read),
        cmocka_unit_test(cut_and_changed_files_are_refused),
        cmocka_unit_test(what_finds_no_room_is_counted),
        cmocka_unit_test(a_full_buffer_drops),
        cmocka_unit_test(a_place_that_cannot_be_written_is_said),
    };
    return cmocka_run_group_tests(tests, make_names, remove_files);
}
