/* store_test.h - a table in a file of its own, as a source of cells, for the tests of the store,
 * the tier and the scrubber. Values [ROWS][WIDTH] f32 lie at an offset that is no multiple of a
 * page. */
#ifndef MR_TESTS_UNIT_STORE_TEST_H
#define MR_TESTS_UNIT_STORE_TEST_H
#include "common/base/file.h"
#include "common/base/mem.h"
#include "memshard/store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FILE_ROWS = 20011,
    FILE_WIDTH = 40,
    FILE_PRE = 12,
    FILE_OFFSET = 120,
    FILE_CHUNK = 4096,
    FILE_VALUE_BYTES = FILE_ROWS * FILE_WIDTH * 4,
    FILE_PRE_BYTES = FILE_ROWS * FILE_PRE * 2,
    FILE_BYTES = FILE_OFFSET + FILE_VALUE_BYTES + FILE_PRE_BYTES,
};

typedef struct {
    char path[64];
    uint8_t *bytes; /* of the whole file, as written */
    mr_table_shape table;
    const mr_table_shape *list[1];
    mr_table_facts facts;
    uint32_t *crc[2];
    uint64_t map_calls;
    mr_store_source source;
} file_table;

static inline uint64_t file_side_offset(bool pre) {
    return FILE_OFFSET + (pre ? FILE_VALUE_BYTES : 0);
}
static inline uint64_t file_side_bytes(bool pre) {
    return pre ? FILE_PRE_BYTES : FILE_VALUE_BYTES;
}

static inline mr_status file_table_map(const void *context, mr_mapping *out, uint32_t table,
                                       bool pre, uint64_t first, uint64_t bytes, mr_err *err) {
    const file_table *f = context;
    assert_int_equal(table, 0);
    assert_true(first + bytes <= file_side_bytes(pre));
    ((file_table *)(uintptr_t)context)->map_calls++;
    *out = (mr_mapping){0};
    const int fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "open %s", f->path);
    const uint64_t start = file_side_offset(pre) + first, from = start / 4096 * 4096;
    void *base = mmap(NULL, start + bytes - from, PROT_READ, MAP_SHARED, fd, (off_t)from);
    close(fd);
    assert_true(base != MAP_FAILED);
    *out = (mr_mapping){(uint8_t *)base + (start - from), base, start + bytes - from};
    return MR_OK;
}

static inline bool file_table_checks(const void *context, mr_checks *out, uint32_t table,
                                     bool pre) {
    (void)table;
    *out = (mr_checks){((const file_table *)context)->crc[pre], file_side_bytes(pre), FILE_CHUNK};
    return true;
}

static inline bool file_table_file(const void *context, mr_file_part *out, uint32_t table,
                                   bool pre) {
    (void)table;
    *out = (mr_file_part){((const file_table *)context)->path, file_side_offset(pre)};
    return true;
}

static inline void file_table_write(const file_table *f) {
    assert_int_equal(mr_file_write(f->path, f->bytes, FILE_BYTES, NULL), MR_OK);
}

static inline file_table *file_table_open(void) {
    file_table *f = mr_alloc(sizeof(*f));
    uint32_t random = 12345;
    snprintf(f->path, sizeof(f->path), "/tmp/memrack-table-XXXXXX");
    close(mkstemp(f->path));
    f->bytes = mr_alloc(FILE_BYTES);
    float *values = (float *)(void *)(f->bytes + FILE_OFFSET);
    for (int i = 0; i < FILE_ROWS * FILE_WIDTH; i++) {
        random = random * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)random * 0x1p-31f;
    }
    uint16_t *pre = (uint16_t *)(void *)(f->bytes + file_side_offset(true));
    for (int i = 0; i < FILE_ROWS * FILE_PRE; i++) {
        random = random * 1664525u + 1013904223u;
        pre[i] = mr_f32_to_bf16((float)(int32_t)random * 0x1p-31f);
    }
    file_table_write(f);
    for (int side = 0; side < 2; side++) {
        const uint64_t bytes = file_side_bytes(side), chunks = mr_chunk_count(bytes, FILE_CHUNK);
        f->crc[side] = mr_alloc_array(chunks, sizeof(uint32_t));
        for (uint64_t i = 0; i < chunks; i++) {
            const uint64_t left = bytes - i * FILE_CHUNK;
            f->crc[side][i] = mr_crc32c(0, f->bytes + file_side_offset(side) + i * FILE_CHUNK,
                                        left < FILE_CHUNK ? left : FILE_CHUNK);
        }
    }
    f->table = (mr_table_shape){.rows = FILE_ROWS,
                                .width = FILE_WIDTH,
                                .pre_width = FILE_PRE,
                                .storage = {MR_F32, 0},
                                .pre_storage = {MR_BF16, 0}};
    f->facts = (mr_table_facts){
        .value_max = 1, .value_rms = 0.6, .pre_norm_max = 4, .accumulator_bits = 64};
    f->list[0] = &f->table;
    f->source = (mr_store_source){.tables = f->list,
                                  .facts = &f->facts,
                                  .table_count = 1,
                                  .map = file_table_map,
                                  .context = f,
                                  .checks = file_table_checks,
                                  .file = file_table_file};
    return f;
}

static inline void file_table_close(file_table *f) {
    unlink(f->path);
    for (int side = 0; side < 2; side++) free(f->crc[side]);
    free(f->bytes);
    free(f);
}

/* Flips one bit of the file in place, without touching its size or what has it mapped. */
static inline void file_table_flip(const file_table *f, uint64_t at) {
    const int fd = open(f->path, O_RDWR | O_CLOEXEC);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

/* What row `row` of the slice of span must be, in the file as it was written. */
static inline const uint8_t *file_table_row(const file_table *f, const mr_cell_span *span, bool pre,
                                            uint64_t row) {
    return f->bytes + file_side_offset(pre) +
           (pre ? (row * FILE_PRE + span->pre_column_first) * 2
                : (row * FILE_WIDTH + span->column_first) * 4);
}

/* Fetches and compares every entry with the file. */
static inline void expect_fetched(const file_table *f, const mr_cell *cell, bool pre,
                                  const uint32_t *row, uint32_t entries,
                                  mr_fetch_scratch *scratch) {
    mr_err err = {{0}};
    mr_rows rows;
    const uint32_t *ids;
    const mr_status status = mr_cell_fetch(cell, pre, row, entries, scratch, &rows, &ids, &err);
    if (status != MR_OK) fail_msg("fetch: %s", err.text);
    const size_t element = pre ? 2 : 4;
    assert_int_equal(rows.columns, pre ? cell->span.pre_columns : cell->span.columns);
    for (uint32_t j = 0; j < entries; j++) {
        assert_true(ids[j] - rows.row_first < rows.row_count);
        assert_memory_equal((const uint8_t *)rows.data + (ids[j] - rows.row_first) * rows.stride,
                            file_table_row(f, &cell->span, pre, row[j]), rows.columns * element);
    }
    assert_int_equal(mr_held_check(cell->held, &err), MR_OK);
}

#endif
