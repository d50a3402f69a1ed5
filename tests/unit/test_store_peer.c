/* Goal: a cell copied from memshards that hold it is the cell, whatever happens to them meanwhile;
 * rows that are not the manifest's are never taken.
 * Method: a golden model with pre-values behind real servers; copies over every grid cell compared
 * with the file; then peers that are gone, silent, that hold other cells, and that lie. */
#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/server.h"
#include "memshard/store_peer.h"
#include "memshard/store_source.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const mr_grid grid = {2, 2};

static struct {
    char folder[64];
    mr_model *model;
    mr_manifest manifest;
    mr_model_tables *tables;
    mr_memshard *shard;
    mr_server *server;
} w;

static void run(char *command) {
    assert_int_equal(system(command), 0);
    free(command);
}

static int start(void **state) {
    (void)state;
    mr_err err = {{0}};
    snprintf(w.folder, sizeof(w.folder), "/tmp/memrack-peer-XXXXXX");
    assert_non_null(mkdtemp(w.folder));
    run(mr_format("cp %s/tests/golden/v2_demo_share05/config.json "
                  "%s/tests/golden/v2_demo_share05/model.safetensors %s",
                  MR_SOURCE_DIR, MR_SOURCE_DIR, w.folder));
    assert_int_equal(mr_model_open(&w.model, w.folder, &err), MR_OK);
    assert_int_equal(mr_manifest_make(&w.manifest, w.model, grid, NULL, NULL, &err), MR_OK);
    char *path = mr_format("%s/memrack-manifest.json", w.folder);
    assert_int_equal(mr_manifest_write(&w.manifest, w.model, path, &err), MR_OK);
    free(path);
    assert_int_equal(mr_model_tables_open(&w.tables, w.model, &w.manifest, &err), MR_OK);
    assert_int_equal(mr_memshard_open(&w.shard, w.model, &w.manifest, NULL, grid, 0, 1, &err),
                     MR_OK);
    mr_server_options options = {.address = "127.0.0.1:0", .threads = 2};
    mr_memshard_serve_options(w.shard, &options);
    assert_int_equal(mr_server_open(&w.server, &options, &err), MR_OK);
    return 0;
}

static int stop(void **state) {
    (void)state;
    mr_server_close(w.server);
    mr_memshard_close(w.shard);
    mr_model_tables_close(w.tables);
    mr_manifest_free(&w.manifest);
    mr_model_close(w.model);
    run(mr_format("rm -r %s", w.folder));
    return 0;
}

static mr_peer_tables *open_peers(const char *addresses) {
    const mr_peer_options options = {
        .addresses = addresses, .digest = w.manifest.digest, .timeout_ms = 300, .rounds = 2};
    mr_peer_tables *peers;
    mr_err err = {{0}};
    if (mr_peer_tables_open(&peers, mr_model_tables_source(w.tables), &options, &err) != MR_OK)
        fail_msg("%s", err.text);
    return peers;
}

/* Every element of both sides against the model's file. */
static void expect_cell(const mr_cell *cell) {
    const mr_table_shape *shape = mr_model_table(w.model, 0);
    mr_err err;
    for (int pre = 0; pre < 2; pre++) {
        const mr_tensor *t = pre ? shape->pre_values : shape->values;
        const mr_rows *rows = pre ? &cell->pre_values : &cell->values;
        const size_t element = mr_element_bytes(rows->storage.element);
        const uint32_t first = pre ? cell->span.pre_column_first : cell->span.column_first;
        mr_mapping map;
        assert_int_equal(mr_tensor_map(&map, w.model, t, 0, t->bytes, &err), MR_OK);
        assert_true(rows->row_count > 0 && rows->columns > 0);
        for (uint64_t r = 0; r < rows->row_count; r++)
            assert_memory_equal((const uint8_t *)rows->data + r * rows->stride,
                                map.data + ((rows->row_first + r) * t->shape[1] + first) * element,
                                rows->columns * element);
        mr_mapping_close(&map);
    }
}

static void expect_copied(const char *addresses, uint32_t cell) {
    mr_peer_tables *peers = open_peers(addresses);
    mr_held *held;
    mr_err err = {{0}};
    if (mr_held_open(&held, mr_peer_tables_source(peers), grid, cell, NULL, &err) != MR_OK)
        fail_msg("%s", err.text);
    expect_cell(mr_held_cell(held, 0));
    mr_held_close(held);
    mr_peer_tables_close(peers);
}

static void test_every_cell_of_a_peer(void **state) {
    (void)state;
    for (uint32_t cell = 0; cell < 4; cell++) expect_copied(mr_server_address(w.server), cell);
}

static int silent_listener(char address[128]) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(at.sun_path, sizeof(at.sun_path), "%s/silent", w.folder);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(fd, 64), 0);
    snprintf(address, 128, "unix:%s", at.sun_path);
    return fd;
}

static void expect_refused(const mr_peer_tables *peers, mr_grid wanted, uint32_t cell,
                           const char *why) {
    mr_held *held;
    mr_err err = {{0}};
    const int64_t begin = mr_now_ns();
    assert_int_not_equal(
        mr_held_open(&held, mr_peer_tables_source(peers), wanted, cell, NULL, &err), MR_OK);
    assert_null(held);
    if (!strstr(err.text, why) || strchr(err.text, '\n'))
        fail_msg("'%s' does not say '%s'", err.text, why);
    assert_true(mr_now_ns() - begin < 10000000000);
}

static void test_peers_that_are_gone_or_silent(void **state) {
    (void)state;
    char silent[128], all[512];
    const int fd = silent_listener(silent);
    snprintf(all, sizeof(all), "127.0.0.1:1,unix:%s/nothing,%s,%s", w.folder, silent,
             mr_server_address(w.server));
    expect_copied(all, 3);
    snprintf(all, sizeof(all), "127.0.0.1:1,%s", silent);
    mr_peer_tables *peers = open_peers(all);
    expect_refused(peers, grid, 0, "no peer gives cell 0 of grid 2x2");
    mr_peer_tables_close(peers);
    close(fd);
    peers = open_peers(mr_server_address(w.server));
    expect_refused(peers, (mr_grid){4, 1}, 0, "4x1"); /* neither held there nor in the manifest */
    mr_peer_tables_close(peers);
}

/* A folder with one flipped bit in the last row, served by a shard that does not verify. */
static mr_server *start_liar(mr_memshard **liar, mr_model **model, mr_model_tables **tables,
                             mr_store_source *trusting) {
    mr_server *server;
    mr_err err = {{0}};
    const uint32_t cells[4] = {0, 1, 2, 3};
    char *folder = mr_format("%s/liar", w.folder), *text;
    char *file = mr_format("%s/model.safetensors", folder);
    size_t bytes;
    const mr_tensor *t = mr_model_table(w.model, 0)->values;
    run(mr_format("mkdir %s && cp %s/config.json %s/model.safetensors %s", folder, w.folder,
                  w.folder, folder));
    assert_int_equal(mr_file_read(&text, &bytes, file, 1 << 30, &err), MR_OK);
    text[t->offset + t->bytes - 1] ^= 1;
    assert_int_equal(mr_file_write(file, text, bytes, &err), MR_OK);
    assert_int_equal(mr_model_open(model, folder, &err), MR_OK);
    assert_int_equal(mr_model_tables_open(tables, *model, &w.manifest, &err), MR_OK);
    *trusting = *mr_model_tables_source(*tables);
    trusting->checks = NULL;
    mr_table_source source = {.tables = trusting, .digest = w.manifest.digest};
    const mr_load_order order = {
        .digest = w.manifest.digest, .grid = grid, .cells = cells, .cell_count = 4};
    assert_int_equal(mr_memshard_open_empty(liar, NULL, &err), MR_OK);
    assert_int_equal(mr_memshard_adopt(*liar, &source, &order, NULL, NULL, &err), MR_OK);
    mr_server_options options = {.address = "127.0.0.1:0", .threads = 1};
    mr_memshard_serve_options(*liar, &options);
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    free(text);
    free(file);
    free(folder);
    return server;
}

static void test_a_peer_that_lies(void **state) {
    (void)state;
    mr_memshard *liar;
    mr_model *model;
    mr_model_tables *tables;
    mr_store_source trusting;
    mr_server *server = start_liar(&liar, &model, &tables, &trusting);
    char both[256];
    expect_copied(mr_server_address(server), 0); /* its other cells are good */
    mr_peer_tables *peers = open_peers(mr_server_address(server));
    expect_refused(peers, grid, 3, "do not match the manifest's checksum");
    mr_peer_tables_close(peers);
    snprintf(both, sizeof(both), "%s,%s", mr_server_address(server), mr_server_address(w.server));
    expect_copied(both, 3); /* once more, from the next one */
    mr_server_close(server);
    mr_memshard_close(liar);
    mr_model_tables_close(tables);
    mr_model_close(model);
}

static void test_orders_for_peers(void **state) {
    (void)state;
    mr_store_opener opener = {.peer_timeout_ms = 300};
    mr_table_source source;
    mr_err err = {{0}};
    const uint32_t cells[2] = {1, 2};
    mr_load_order order = {
        .digest = w.manifest.digest, .grid = grid, .cells = cells, .cell_count = 2};
    static const char *const bad[] = {"peer:", "peer:;x", "peer:127.0.0.1:1", "peer:127.0.0.1:1;"};
    for (int i = 0; i < 4; i++) {
        order.source = bad[i];
        assert_int_equal(mr_store_opener_open(&opener, &source, &order, NULL, NULL, &err),
                         MR_ERR_ARGUMENT);
        assert_non_null(strstr(err.text, "a peer gives rows only"));
    }
    char *where = mr_format("peer:%s;%s", mr_server_address(w.server), w.folder);
    order.source = where;
    mr_memshard *shard;
    assert_int_equal(mr_memshard_open_empty(&shard, NULL, &err), MR_OK);
    mr_memshard_set_opener(shard, mr_store_opener_open, &opener);
    if (mr_memshard_load_now(shard, &order, NULL, NULL, &err) != MR_OK) fail_msg("%s", err.text);
    mr_holding *holding;
    uint32_t count;
    mr_memshard_describe(shard, &holding, &count);
    assert_int_equal(count, 1);
    assert_int_equal(holding[0].cell_count, 2);
    mr_holdings_free(holding, count);
    mr_memshard_close(shard);
    order.digest.bytes[0] ^= 1;
    assert_int_equal(mr_store_opener_open(&opener, &source, &order, NULL, NULL, &err),
                     MR_ERR_MISMATCH);
    free(where);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cell_of_a_peer),
        cmocka_unit_test(test_peers_that_are_gone_or_silent),
        cmocka_unit_test(test_a_peer_that_lies),
        cmocka_unit_test(test_orders_for_peers),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, start, stop);
}
