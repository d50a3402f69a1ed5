/* Goal: a cell of a table stored in any type gives the numbers of its columns, and nothing else,
 * whether it is mapped, copied, tiered or comes from a peer; it sums like the whole row.
 * Method: tables of odd widths in a real file, written with mr_storage_encode; every cell of
 * several grids, one column a slice among them, against the whole rows decoded; sums of all slices
 * against those of whole rows; real servers for peers, and a flipped bit. */
#include "common/base/checksum.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/server.h"
#include "memshard/holdings.h"
#include "memshard/store_peer.h"
#include "memshard/tier.h"

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
#include <unistd.h>

enum { ROWS = 301, WIDTH = 150, PRE = 45, FIRST = 1000, CHUNK = 1024 };

static const mr_grid grids[] = {{1, 1}, {3, 1}, {1, 2}, {2, 7}, {5, 3}, {1, WIDTH}, {1, 200}};

static struct {
    char path[64];
    uint8_t *bytes;
    mr_table_shape table;
    mr_memory_layer layer;
    mr_table_facts facts;
    const mr_table_shape *tables[1];
    const mr_memory_layer *layers[1];
    uint64_t offset[2], side_bytes[2];
    uint32_t *crc[2];
    mr_store_source source;
} w;

static uint32_t width_of(bool pre) {
    return pre ? w.table.pre_width : w.table.width;
}
static mr_storage storage_of(bool pre) {
    return pre ? w.table.pre_storage : w.table.storage;
}
static uint64_t row_bytes(bool pre) {
    return mr_storage_bytes(storage_of(pre), width_of(pre));
}

static mr_status map_file(const void *context, mr_mapping *out, uint32_t table, bool pre,
                          uint64_t first, uint64_t bytes, mr_err *err) {
    (void)context, (void)table, (void)err;
    assert_true(first + bytes <= w.side_bytes[pre]);
    const int fd = open(w.path, O_RDONLY | O_CLOEXEC);
    const uint64_t start = w.offset[pre] + first, from = start / 4096 * 4096;
    void *base = mmap(NULL, start + bytes - from, PROT_READ, MAP_SHARED, fd, (off_t)from);
    close(fd);
    assert_true(base != MAP_FAILED);
    *out = (mr_mapping){(uint8_t *)base + (start - from), base, start + bytes - from};
    return MR_OK;
}

static bool checks_of(const void *context, mr_checks *out, uint32_t table, bool pre) {
    (void)context, (void)table;
    *out = (mr_checks){w.crc[pre], w.side_bytes[pre], CHUNK};
    return true;
}

static bool file_of(const void *context, mr_file_part *out, uint32_t table, bool pre) {
    (void)context, (void)table;
    *out = (mr_file_part){w.path, w.offset[pre]};
    return true;
}

/* What slice.h promises, said once more: the bytes of a row that columns [first, first + count)
 * need. */
static uint32_t expected_slice(uint8_t *out, const uint8_t *row, bool pre, uint32_t first,
                               uint32_t count) {
    uint32_t bytes = 0;
    const uint64_t all = row_bytes(pre);
    const mr_storage_type type = mr_storage_type_of(storage_of(pre));
    const uint32_t unit = type == MR_STORE_F32 ? 4 : 2;
    if (count == 0) return 0;
    switch (type) {
    case MR_STORE_INT8:
    case MR_STORE_FP8:
        memcpy(out, row, 4);
        memcpy(out + 4, row + 4 + first, count);
        return 4 + count;
    case MR_STORE_INT8_BLOCK:
    case MR_STORE_INT4:
    case MR_STORE_FP8_BLOCK: {
        const uint32_t block = type == MR_STORE_FP8_BLOCK ? 128 : 32;
        const uint32_t size = type == MR_STORE_FP8_BLOCK ? 132 : type == MR_STORE_INT4 ? 18 : 34;
        for (uint32_t b = first / block; b * block < first + count; b++) {
            const uint64_t left = all - (uint64_t)b * size;
            const uint32_t take = left < size ? (uint32_t)left : size;
            memcpy(out + bytes, row + (size_t)b * size, take);
            bytes += take;
        }
        return bytes;
    }
    default:
        memcpy(out, row + (size_t)first * unit, (size_t)count * unit);
        return count * unit;
    }
}

static const uint8_t *file_row(bool pre, uint64_t row) {
    return w.bytes + w.offset[pre] + row * row_bytes(pre);
}

static bool cell_check(const void *context, uint32_t *out, mr_grid grid, uint32_t table, bool pre,
                       uint32_t cell) {
    uint8_t slice[4 * WIDTH];
    const mr_cell_span span = mr_cell_span_of(&w.table, grid, cell);
    (void)context, (void)table;
    *out = 0;
    for (uint64_t r = span.rows.first; r < span.rows.first + span.rows.count; r++)
        *out = mr_crc32c(*out, slice,
                         expected_slice(slice, file_row(pre, r), pre,
                                        pre ? span.pre_column_first : span.column_first,
                                        pre ? span.pre_columns : span.columns));
    return true;
}

static void open_table(mr_storage_type type, mr_storage_type pre_type) {
    uint32_t random = 99 + (uint32_t)type;
    float value[WIDTH];
    memset(&w, 0, sizeof(w));
    snprintf(w.path, sizeof(w.path), "/tmp/memrack-types-XXXXXX");
    close(mkstemp(w.path));
    w.table = (mr_table_shape){.rows = ROWS,
                               .width = WIDTH,
                               .pre_width = PRE,
                               .storage = mr_storage_of(type),
                               .pre_storage = mr_storage_of(pre_type)};
    w.offset[0] = FIRST;
    w.side_bytes[0] = ROWS * row_bytes(false);
    w.offset[1] = w.offset[0] + w.side_bytes[0] + 3;
    w.side_bytes[1] = ROWS * row_bytes(true);
    const size_t bytes = (size_t)(w.offset[1] + w.side_bytes[1]);
    w.bytes = mr_alloc(bytes);
    for (int pre = 0; pre < 2; pre++) {
        for (uint64_t r = 0; r < ROWS; r++) {
            for (uint32_t c = 0; c < width_of(pre); c++) {
                random = random * 1664525u + 1013904223u;
                value[c] = (float)(int32_t)random * 0x1p-31f;
            }
            mr_storage_encode((void *)(uintptr_t)file_row(pre, r), value, storage_of(pre),
                              width_of(pre), NULL);
        }
        const uint64_t chunks = mr_chunk_count(w.side_bytes[pre], CHUNK);
        w.crc[pre] = mr_alloc_array(chunks, sizeof(uint32_t));
        for (uint64_t i = 0; i < chunks; i++) {
            const uint64_t left = w.side_bytes[pre] - i * CHUNK;
            w.crc[pre][i] =
                mr_crc32c(0, w.bytes + w.offset[pre] + i * CHUNK, left < CHUNK ? left : CHUNK);
        }
    }
    assert_int_equal(mr_file_write(w.path, w.bytes, bytes, NULL), MR_OK);
    w.facts = (mr_table_facts){
        .value_max = 1.01, .value_rms = 0.6, .pre_norm_max = 8, .accumulator_bits = 64};
    w.layer = (mr_memory_layer){.heads = 1,
                                .knn = 8,
                                .entries = 8,
                                .cores = 1,
                                .rank = 1,
                                .reach_rows = ROWS,
                                .slots = 1,
                                .slots_out = 1,
                                .gated = true};
    w.tables[0] = &w.table;
    w.layers[0] = &w.layer;
    w.source = (mr_store_source){.tables = w.tables,
                                 .layers = w.layers,
                                 .facts = &w.facts,
                                 .table_count = 1,
                                 .layer_count = 1,
                                 .map = map_file,
                                 .checks = checks_of,
                                 .cell_check = cell_check,
                                 .file = file_of};
}

static void close_table(void) {
    unlink(w.path);
    free(w.bytes);
    free(w.crc[0]);
    free(w.crc[1]);
}

/* Every row of the cell, in an order of its own, twice some of them. */
static void expect_cell(const mr_cell *cell) {
    mr_fetch_scratch scratch = {0};
    mr_err err = {{0}};
    for (int pre = 0; pre < 2; pre++) {
        const uint32_t first = pre ? cell->span.pre_column_first : cell->span.column_first;
        const uint32_t columns = pre ? cell->span.pre_columns : cell->span.columns;
        uint32_t row[ROWS + 5];
        const uint32_t *id, count = (uint32_t)cell->span.rows.count;
        mr_rows rows;
        float want[WIDTH], got[WIDTH];
        for (uint32_t i = 0; i < count + 5; i++)
            row[i] = (uint32_t)cell->span.rows.first + i * 7 % count;
        if (columns == 0) continue;
        if (mr_cell_fetch(cell, pre, row, count + 5, &scratch, &rows, &id, &err) != MR_OK)
            fail_msg("%s", err.text);
        assert_int_equal(rows.columns, columns);
        for (uint32_t i = 0; i < count + 5; i++) {
            const uint8_t *at = (const uint8_t *)rows.data + (id[i] - rows.row_first) * rows.stride;
            uint8_t slice[4 * WIDTH];
            const uint32_t bytes =
                expected_slice(slice, file_row(pre, row[i]), pre, first, columns);
            assert_memory_equal(at, slice, bytes);
            mr_storage_decode(want, file_row(pre, row[i]), storage_of(pre), width_of(pre), first,
                              columns);
            mr_storage_decode(got, at, rows.storage, rows.skip + columns, rows.skip, columns);
            assert_memory_equal(want, got, columns * sizeof(float));
        }
    }
    mr_fetch_scratch_free(&scratch);
}

/* Adds the sums of some rows of the cell to its columns of acc, and their dots to dot. */
static void add_sums(const mr_cell *cell, int64_t *acc, int64_t *dot) {
    enum { N = 6 };
    const uint32_t all[N] = {0, 100, ROWS - 1, 77, 100, 150}, *ids, *pre_ids;
    mr_fetch_scratch scratch[2] = {{0}};
    uint32_t row[N], place[N], count = 0;
    int64_t out[N];
    float weight[N], x[PRE];
    for (uint32_t i = 0; i < N; i++) {
        if (all[i] - cell->span.rows.first >= cell->span.rows.count) continue;
        weight[count] = (float)(i + 1) * 0x1.23p40f;
        place[count] = i;
        row[count++] = all[i];
    }
    for (uint32_t c = 0; c < PRE; c++) x[c] = (float)(c + 1) * 0x1.77p30f;
    mr_pool_args pool = {.tokens = 1, .entries = count, .count = &count, .slots = 1};
    mr_gate_args gate = {.tokens = 1, .entries = count, .count = &count, .x_stride = PRE};
    assert_int_equal(mr_cell_fetch(cell, false, row, count, &scratch[0], &pool.rows, &ids, NULL),
                     MR_OK);
    assert_int_equal(mr_cell_fetch(cell, true, row, count, &scratch[1], &gate.rows, &pre_ids, NULL),
                     MR_OK);
    pool.row = ids;
    pool.weight = weight;
    pool.weight_stride = count;
    pool.core_columns = WIDTH;
    pool.column_first = cell->span.column_first;
    gate.row = pre_ids;
    gate.x = x + cell->span.pre_column_first;
    const mr_ops *ops = mr_ops_find(NULL);
    if (count > 0 && cell->span.columns > 0) ops->pool64(acc + cell->span.column_first, &pool);
    if (count > 0 && cell->span.pre_columns > 0) {
        ops->gate_dot(out, &gate);
        for (uint32_t i = 0; i < count; i++) dot[place[i]] += out[i];
    }
    for (int i = 0; i < 2; i++) mr_fetch_scratch_free(&scratch[i]);
}

static mr_held *open_cell(const mr_store_source *source, mr_grid grid, uint32_t cell,
                          mr_tier *tier) {
    const mr_cell_options options = {.tier = tier};
    mr_held *held;
    mr_store_plan plan;
    mr_err err = {{0}};
    if (mr_held_open(&held, source, grid, cell, &options, &err) != MR_OK) fail_msg("%s", err.text);
    assert_int_equal(mr_held_plan(&plan, source, grid, cell, &options, &err), MR_OK);
    assert_int_equal(held->bytes, plan.mapped_bytes + plan.kept_bytes + plan.tiered_bytes);
    return held;
}

static void scrub_all(mr_held *held) {
    mr_scrub_cursor cursor = {0};
    mr_err err = {{0}};
    uint64_t bytes;
    void *room = aligned_alloc(4096, mr_held_scrub_room(held) / 4096 * 4096 + 8192);
    mr_status status = MR_OK;
    while (status == MR_OK) status = mr_held_scrub(held, &cursor, room, &bytes, &err);
    if (status != MR_ERR_CANCELLED) fail_msg("%s", err.text);
    free(room);
}

static void check_grids(mr_tier *tier, size_t count) {
    int64_t whole[WIDTH] = {0}, whole_dot[6] = {0};
    for (size_t g = 0; g < count; g++) {
        int64_t acc[WIDTH] = {0}, dot[6] = {0};
        for (uint32_t c = 0; c < grids[g].row_groups * grids[g].width_slices; c++) {
            mr_held *held = open_cell(&w.source, grids[g], c, tier);
            expect_cell(mr_held_cell(held, 0));
            scrub_all(held);
            add_sums(mr_held_cell(held, 0), acc, dot);
            mr_held_close(held);
        }
        if (g == 0) {
            memcpy(whole, acc, sizeof(whole));
            memcpy(whole_dot, dot, sizeof(whole_dot));
        }
        assert_memory_equal(whole, acc, sizeof(whole));
        assert_memory_equal(whole_dot, dot, sizeof(whole_dot));
    }
}

static void test_cells_in_memory(void **state) {
    (void)state;
    for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++) {
        open_table(type, (type + 3) % MR_STORE_COUNT);
        check_grids(NULL, sizeof(grids) / sizeof(grids[0]));
        close_table();
    }
}

static void test_cells_in_a_tier(void **state) {
    (void)state;
    for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++) {
        const mr_tier_options options = {
            .budget_bytes = MR_TIER_BUDGET_MIN, .engine = "pread", .threads = 2};
        mr_tier *tier;
        mr_err err = {{0}};
        assert_int_equal(mr_tier_open(&tier, &options, &err), MR_OK);
        open_table(type, (type + 5) % MR_STORE_COUNT);
        check_grids(tier, 5);
        close_table();
        mr_tier_close(tier);
    }
}

static mr_server *serve(mr_memshard **shard, mr_grid grid) {
    mr_table_source source = {.tables = &w.source, .digest = {{7}}};
    uint32_t cells[256];
    mr_server *server;
    mr_err err = {{0}};
    for (uint32_t i = 0; i < grid.row_groups * grid.width_slices; i++) cells[i] = i;
    const mr_load_order order = {.digest = {{7}},
                                 .grid = grid,
                                 .cells = cells,
                                 .cell_count = grid.row_groups * grid.width_slices};
    assert_int_equal(mr_memshard_open_empty(shard, NULL, &err), MR_OK);
    if (mr_memshard_adopt(*shard, &source, &order, NULL, NULL, &err) != MR_OK)
        fail_msg("%s", err.text);
    mr_server_options options = {.address = "127.0.0.1:0", .threads = 1};
    mr_memshard_serve_options(*shard, &options);
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    return server;
}

static void test_cells_of_a_peer(void **state) {
    (void)state;
    for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++) {
        const mr_grid grid = type % 2 ? (mr_grid){2, 7} : (mr_grid){1, 3};
        mr_memshard *shard;
        mr_peer_tables *peers;
        mr_err err = {{0}};
        open_table(type, (type + 1) % MR_STORE_COUNT);
        mr_server *server = serve(&shard, grid);
        const mr_peer_options options = {
            .addresses = mr_server_address(server), .digest = {{7}}, .timeout_ms = 2000};
        assert_int_equal(mr_peer_tables_open(&peers, &w.source, &options, &err), MR_OK);
        for (uint32_t c = 0; c < grid.row_groups * grid.width_slices; c++) {
            mr_held *held = open_cell(mr_peer_tables_source(peers), grid, c, NULL);
            expect_cell(mr_held_cell(held, 0));
            mr_held_close(held);
        }
        mr_peer_tables_close(peers);
        mr_server_close(server);
        mr_memshard_close(shard);
        close_table();
    }
}

/* A flipped bit of a scale or a code is refused at load, whichever slice needs it. */
static void test_flipped_bits(void **state) {
    (void)state;
    for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++) {
        open_table(type, MR_STORE_BF16);
        const uint64_t at = w.offset[0] + 150 * row_bytes(false) + type;
        w.bytes[at] ^= 0x20;
        assert_int_equal(
            mr_file_write(w.path, w.bytes, (size_t)(w.offset[1] + w.side_bytes[1]), NULL), MR_OK);
        for (uint32_t slice = 0; slice < 3; slice++) {
            mr_held *held;
            mr_err err = {{0}};
            assert_int_equal(mr_held_open(&held, &w.source, (mr_grid){1, 3}, slice, NULL, &err),
                             MR_ERR_FORMAT);
            assert_non_null(strstr(err.text, "table 0, values of rows"));
        }
        close_table();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells_in_memory),
        cmocka_unit_test(test_cells_in_a_tier),
        cmocka_unit_test(test_cells_of_a_peer),
        cmocka_unit_test(test_flipped_bits),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
