/* Goal: one memshard holds cells of several models and grids that come and go while it answers, and
 * no answer is ever wrong: it is the rows, or a sentence that sends the asker elsewhere.
 * Method: golden models loaded from their directories into one shard behind a real server; rows are
 * gathered and compared with the files. Deadlines, cancelling and waiting are driven by hand over a
 * socket pair, so that nothing depends on timing. The last test loads and unloads while three
 * threads ask (for the thread sanitizer, too). */
#include "common/base/hash.h"
#include "common/base/log.h"
#include "common/net/link.h"
#include "memshard/holdings.h"
#include "tests/unit/net_test.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>

enum { MODELS = 3, ROWS_ASKED = 24, ASKERS = 3, STRESS_MS = 1200 };

static struct {
    char path[MODELS][512];
    mr_model *model[MODELS];
    mr_manifest manifest[MODELS];
    mr_mapping values[MODELS]; /* of layer 0's table, whole */
} w;

static int open_world(void **state) {
    static const char *const names[MODELS] = {"v1_ive4_skip", "v2_glu_kx2_e4", "memory_plus"};
    mr_err err = {{0}};
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        snprintf(w.path[i], sizeof(w.path[i]), "%s/tests/golden/%s", MR_SOURCE_DIR, names[i]);
        if (mr_model_open(&w.model[i], w.path[i], &err) != MR_OK) fail_msg("%s", err.text);
        assert_int_equal(mr_manifest_load(&w.manifest[i], w.model[i], NULL, NULL, &err), MR_OK);
        const mr_tensor *t =
            mr_model_table(w.model[i], mr_model_memory(w.model[i], 0)->table)->values;
        assert_int_equal(mr_tensor_map(&w.values[i], w.model[i], t, 0, t->bytes, &err), MR_OK);
    }
    return 0;
}

static int close_world(void **state) {
    (void)state;
    for (int i = 0; i < MODELS; i++) {
        mr_mapping_close(&w.values[i]);
        mr_manifest_free(&w.manifest[i]);
        mr_model_close(w.model[i]);
    }
    return 0;
}

static const mr_table_shape *table_of(int model) {
    return mr_model_table(w.model[model], mr_model_memory(w.model[model], 0)->table);
}

/* --- loading ---------------------------------------------------------------------------------- */

static mr_load_order order_of(int model, mr_grid grid, const uint32_t *cells, uint32_t count) {
    return (mr_load_order){.source = w.path[model],
                           .digest = w.manifest[model].digest,
                           .grid = grid,
                           .cells = cells,
                           .cell_count = count};
}

static void load(mr_memshard *shard, int model, mr_grid grid, uint32_t cell) {
    mr_err err;
    const mr_load_order order = order_of(model, grid, &cell, 1);
    if (mr_memshard_load_now(shard, &order, NULL, NULL, &err) != MR_OK) fail_msg("%s", err.text);
}

static mr_memshard *open_shard(void) {
    mr_memshard *shard;
    mr_err err;
    assert_int_equal(mr_memshard_open_empty(&shard, NULL, &err), MR_OK);
    return shard;
}

static mr_server *serve(mr_memshard *shard, uint32_t threads) {
    mr_server *server;
    mr_err err;
    mr_server_options options = {.address = "127.0.0.1:0", .threads = threads};
    mr_memshard_serve_options(shard, &options);
    assert_int_equal(mr_server_open(&server, &options, &err), MR_OK);
    return server;
}

/* --- asking ----------------------------------------------------------------------------------- */

/* NULL: refused, with the sentence in err. cells: how many the WELCOME names. */
static mr_link *open_session(const mr_server *server, mr_digest digest, mr_grid grid,
                             uint32_t *cells, mr_err *err) {
    static _Thread_local uint8_t welcome[4096];
    const mr_session_hello hello = {
        .role = MR_ROLE_WORKER, .role_wanted = MR_ROLE_MEMSHARD, .digest = digest};
    mr_link *link;
    size_t bytes;
    mr_welcome_view view;
    assert_int_equal(mr_link_connect(&link, mr_server_address(server), after_ms(5000), err), MR_OK);
    mr_link_set_grid(link, (mr_link_grid){grid.row_groups, grid.width_slices});
    if (mr_session_open(link, &hello, after_ms(5000), welcome, sizeof(welcome), &bytes, err) !=
        MR_OK) {
        mr_link_close(link);
        return NULL;
    }
    assert_int_equal(mr_welcome_check(&view, welcome, bytes, err), MR_OK);
    if (grid.row_groups > 0) assert_int_equal(view.fixed->grid_rows, grid.row_groups);
    *cells = view.fixed->cell_count;
    return link;
}

static mr_link *must_open(const mr_server *server, int model, mr_grid grid) {
    mr_err err = {{0}};
    uint32_t cells;
    mr_link *link = open_session(server, w.manifest[model].digest, grid, &cells, &err);
    if (!link) fail_msg("%s", err.text);
    return link;
}

/* Row ids of a cell made from a sequence of tokens, as an address-agnostic asker makes them. */
static void hashed_rows(uint32_t *row, mr_span rows, uint64_t seed) {
    for (uint32_t i = 0; i < ROWS_ASKED; i++) {
        const uint64_t gram[3] = {seed, i, seed ^ i};
        uint64_t hash = 1469598103934665603ull;
        for (size_t b = 0; b < sizeof(gram); b++)
            hash = (hash ^ ((const uint8_t *)gram)[b]) * 1099511628211ull;
        row[i] = (uint32_t)(rows.first + hash % rows.count);
    }
}

typedef struct {
    mr_wire_retrieve fixed;
    uint32_t count[2]; /* padded */
    uint32_t row[ROWS_ASKED];
} gather;

static gather gather_of(int model, mr_grid grid, uint32_t cell, uint64_t seed) {
    gather g = {
        .fixed = {.cell = cell, .mode = MR_RETRIEVE_GATHER, .tokens = 1, .entries = ROWS_ASKED},
        .count = {ROWS_ASKED}};
    hashed_rows(g.row, mr_cell_span_of(table_of(model), grid, cell).rows, seed);
    return g;
}

static void send_gather(mr_link *link, const gather *g, uint64_t request, uint32_t budget_us) {
    mr_err err;
    const mr_wire_header header = {
        .type = MR_FRAME_RETRIEVE, .request = request, .epoch = 5, .budget_us = budget_us};
    mr_link_send(link, &header, g, sizeof(*g));
    assert_int_equal(mr_link_flush(link, &err), MR_OK);
}

static mr_frame receive(mr_link *link) {
    mr_frame frame;
    mr_err err;
    mr_status status;
    while ((status = mr_link_receive(link, &frame, &err)) == MR_ERR_AGAIN)
        if (mr_links_wait(&link, 1, after_ms(10000)) != MR_OK) fail_msg("no answer");
    if (status != MR_OK) fail_msg("%s", err.text);
    return frame;
}

static bool rows_match(const mr_frame *frame, int model, mr_grid grid, const gather *g) {
    const mr_table_shape *table = table_of(model);
    const mr_cell_span span = mr_cell_span_of(table, grid, g->fixed.cell);
    const size_t element = mr_element_bytes(table->storage.element), bytes = span.columns * element;
    if (frame->header->type != MR_FRAME_ROWS || frame->header->payload_bytes < ROWS_ASKED * bytes)
        return false;
    for (uint32_t i = 0; i < ROWS_ASKED; i++)
        if (memcmp(frame->payload + i * bytes,
                   w.values[model].data +
                       ((size_t)g->row[i] * table->width + span.column_first) * element,
                   bytes) != 0)
            return false;
    return true;
}

/* MR_OK and the right rows, or the error's status. */
static mr_status ask(mr_link *link, int model, mr_grid grid, uint32_t cell) {
    static _Atomic uint64_t next = 1;
    mr_err err = {{0}};
    const uint64_t request = atomic_fetch_add(&next, 1);
    const gather g = gather_of(model, grid, cell, request);
    send_gather(link, &g, request, 0);
    const mr_frame frame = receive(link);
    assert_int_equal(frame.header->request, request);
    if (frame.header->type == MR_FRAME_ERROR) return mr_frame_error(&frame, &err);
    assert_true(rows_match(&frame, model, grid, &g));
    return MR_OK;
}

/* --- models and cells that come and go -------------------------------------------------------- */

static const mr_grid two_rows = {2, 1}, sliced = {2, 3};

static void test_cells_come_and_go(void **state) {
    (void)state;
    mr_err err = {{0}};
    uint32_t cells;
    mr_memshard *shard = open_shard();
    mr_server *server = serve(shard, 2);
    assert_null(open_session(server, w.manifest[0].digest, (mr_grid){0}, &cells, &err));
    assert_non_null(strstr(err.text, "holds nothing yet"));
    mr_link *any = open_session(server, (mr_digest){{0}}, (mr_grid){0}, &cells, &err);
    assert_non_null(any); /* whoever asks for nothing in particular may ask how it is */
    assert_int_equal(cells, 0);
    assert_int_equal(ask(any, 0, two_rows, 0), MR_ERR_STALE);

    load(shard, 0, two_rows, 0);
    mr_link *first = must_open(server, 0, (mr_grid){0});
    assert_int_equal(ask(first, 0, two_rows, 0), MR_OK);
    assert_int_equal(ask(first, 0, two_rows, 1), MR_ERR_STALE);
    load(shard, 0, two_rows, 1);
    assert_int_equal(ask(first, 0, two_rows, 1), MR_OK);

    /* A second model, and the first in another grid: each session sees its own. */
    assert_null(open_session(server, w.manifest[1].digest, (mr_grid){0}, &cells, &err));
    assert_non_null(strstr(err.text, "holds no cells of the model"));
    load(shard, 1, two_rows, 1);
    load(shard, 0, sliced, 4);
    mr_link *second = must_open(server, 1, (mr_grid){0});
    mr_link *other_grid = must_open(server, 0, sliced);
    assert_null(open_session(server, w.manifest[1].digest, sliced, &cells, &err));
    assert_non_null(strstr(err.text, "in the grid asked for"));
    for (int i = 0; i < 10; i++) {
        assert_int_equal(ask(first, 0, two_rows, (uint32_t)i % 2), MR_OK);
        assert_int_equal(ask(second, 1, two_rows, 1), MR_OK);
        assert_int_equal(ask(other_grid, 0, sliced, 4), MR_OK);
        assert_int_equal(ask(other_grid, 0, sliced, 1), MR_ERR_STALE);
    }
    mr_holding *holdings;
    uint32_t count;
    mr_memshard_describe(shard, &holdings, &count);
    assert_int_equal(count, 3);
    assert_int_equal(holdings[0].cell_count, 2);
    assert_int_equal(holdings[0].cells[1], 1);
    assert_int_equal(holdings[2].grid_columns, 3);
    assert_int_equal(holdings[2].cells[0], 4);
    const uint64_t bytes = holdings[0].bytes + holdings[1].bytes + holdings[2].bytes;
    mr_holdings_free(holdings, count);
    assert_int_equal(mr_memshard_look(shard).bytes_held, bytes);

    mr_memshard_unload(shard, &w.manifest[0].digest, two_rows, &(uint32_t){0}, 1);
    assert_int_equal(ask(first, 0, two_rows, 0), MR_ERR_STALE);
    assert_int_equal(ask(first, 0, two_rows, 1), MR_OK);
    mr_memshard_unload(shard, &w.manifest[0].digest, (mr_grid){0}, NULL, 0);
    assert_int_equal(ask(first, 0, two_rows, 1), MR_ERR_STALE);
    assert_int_equal(ask(other_grid, 0, sliced, 4), MR_ERR_STALE);
    assert_int_equal(ask(second, 1, two_rows, 1), MR_OK);
    load(shard, 0, two_rows, 1); /* and back: the session was never closed */
    assert_int_equal(ask(first, 0, two_rows, 1), MR_OK);
    const mr_memshard_stats stats = mr_memshard_look(shard);
    assert_int_equal(stats.models, 2);
    assert_int_equal(stats.cells, 2);
    assert_true(stats.stale >= 13 && stats.requests > 40 && stats.window_requests > 0);
    assert_true(stats.p50_us <= stats.p99_us);
    mr_link *links[] = {any, first, second, other_grid};
    for (int i = 0; i < 4; i++) mr_link_close(links[i]);
    mr_server_close(server);
    mr_memshard_close(shard);
}

/* --- loads that cannot be --------------------------------------------------------------------- */

static mr_status open_huge(void *context, mr_table_source *out, const mr_load_order *order,
                           mr_progress progress, void *progress_context, mr_err *err) {
    static mr_table_shape table = {.rows = 1u << 31, .width = 1 << 16, .storage = {MR_F32, 0}};
    static const mr_table_shape *tables[] = {&table};
    static const mr_store_source source = {.tables = tables, .table_count = 1};
    (void)context, (void)progress, (void)progress_context, (void)err;
    *out = (mr_table_source){.tables = &source, .digest = order->digest};
    return MR_OK;
}

static void test_loads_that_are_refused(void **state) {
    (void)state;
    mr_err err = {{0}};
    const uint32_t cells[] = {0, 1, 2};
    mr_memshard *shard = open_shard();
    load(shard, 0, two_rows, 0);
    const uint64_t bytes = mr_memshard_look(shard).bytes_held;
    mr_load_order order = order_of(0, two_rows, cells, 3);
    assert_int_equal(mr_memshard_load_now(shard, &order, NULL, NULL, &err), MR_ERR_RANGE);
    assert_non_null(strstr(err.text, "cell 2"));
    order = order_of(0, two_rows, cells, 1);
    order.source = w.path[1];
    order.digest.bytes[0] ^= 1;
    assert_int_equal(mr_memshard_load_now(shard, &order, NULL, NULL, &err), MR_ERR_MISMATCH);
    assert_non_null(strstr(err.text, "was to be loaded"));
    order.source = "no/such/folder";
    assert_int_not_equal(mr_memshard_load_now(shard, &order, NULL, NULL, &err), MR_OK);
    assert_non_null(strstr(err.text, "no/such/folder"));
    order.source = MR_SOURCE_DIR "/tests/golden/dense";
    assert_int_equal(mr_memshard_load_now(shard, &order, NULL, NULL, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "no memory layers"));
    order.grid = (mr_grid){0, 1};
    assert_int_equal(mr_memshard_load(shard, &order, &(mr_load_watch){0}, &err), MR_ERR_ARGUMENT);
    /* More than the machine has: both figures, and what was held is held. */
    mr_memshard_set_opener(shard, open_huge, NULL);
    order.grid = two_rows;
    assert_int_equal(mr_memshard_load_now(shard, &order, NULL, NULL, &err), MR_ERR_NOMEM);
    assert_non_null(strstr(err.text, "available"));
    assert_int_equal(mr_memshard_look(shard).bytes_held, bytes);
    assert_int_equal(mr_memshard_look(shard).failed_loads, 5);
    mr_memshard_close(shard);
}

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t told, done;
    double last;
    mr_status status[8];
} watched;

static void on_progress(void *context, const char *what, double fraction) {
    watched *x = context;
    assert_non_null(what);
    pthread_mutex_lock(&x->mutex);
    x->told++;
    x->last = fraction;
    pthread_mutex_unlock(&x->mutex);
}

static void on_done(void *context, mr_status status, const mr_err *err) {
    watched *x = context;
    if (status != MR_OK) assert_true(strlen(err->text) > 0);
    pthread_mutex_lock(&x->mutex);
    x->status[x->done++] = status;
    pthread_cond_signal(&x->changed);
    pthread_mutex_unlock(&x->mutex);
}

static void test_loads_in_the_background(void **state) {
    (void)state;
    mr_err err = {{0}};
    watched x = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    const mr_load_watch watch = {on_progress, on_done, &x};
    const uint32_t cells[] = {0, 1, 2, 3, 4, 5};
    mr_memshard *shard = open_shard();
    mr_load_order order = order_of(0, sliced, cells, 6);
    order.keys = true;
    assert_int_equal(mr_memshard_load(shard, &order, &watch, &err), MR_OK);
    order.digest.bytes[0] ^= 1;
    assert_int_equal(mr_memshard_load(shard, &order, &watch, &err), MR_OK);
    order = order_of(0, sliced, cells + 2, 2); /* there already by then */
    assert_int_equal(mr_memshard_load(shard, &order, &watch, &err), MR_OK);
    pthread_mutex_lock(&x.mutex);
    while (x.done < 3) pthread_cond_wait(&x.changed, &x.mutex);
    pthread_mutex_unlock(&x.mutex);
    assert_int_equal(x.status[0], MR_OK);
    assert_int_equal(x.status[1], MR_ERR_MISMATCH);
    assert_int_equal(x.status[2], MR_OK);
    assert_true(x.told >= 8 && x.last == 1.0);
    assert_int_equal(mr_memshard_look(shard).cells, 6);
    for (int i = 0; i < 4; i++) /* closing ends them: done or cancelled, but told */
        assert_int_equal(mr_memshard_load(shard, &order, &watch, &err), MR_OK);
    mr_memshard_close(shard);
    assert_int_equal(x.done, 7);
}

/* --- waiting, deadlines, cancelling ----------------------------------------------------------- */

enum { LANE = 200 };

/* The shard's end of a session, as a server hands it over, and the asker's end. */
static void open_pair(mr_link **served, mr_link **asker, int model, int64_t seen_ns, bool crowded) {
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    *served = mr_link_from_fd(fds[0], "asker");
    *asker = mr_link_from_fd(fds[1], "shard");
    (*served)->version = (*asker)->version = MR_WIRE_VERSION;
    (*served)->digest = w.manifest[model].digest;
    (*served)->lane = LANE;
    (*served)->seen_ns = seen_ns;
    (*served)->is_crowded = crowded;
}

static void hand_over(mr_memshard *shard, mr_link *served, uint16_t type, uint64_t request,
                      uint32_t budget_us, const void *payload, uint32_t bytes) {
    test_frame f;
    frame_make(&f, type, payload, bytes);
    f.header.request = request;
    f.header.epoch = 5;
    f.header.budget_us = budget_us;
    mr_memshard_handle(shard, served, &f.frame);
    frame_free(&f); /* what waits is a copy */
}

static mr_frame answer_to(mr_link *served, mr_link *asker, uint64_t request) {
    mr_err err;
    const mr_status status = mr_link_flush(served, &err);
    assert_true(status == MR_OK || status == MR_ERR_AGAIN); /* the socket is full of answers */
    const mr_frame frame = receive(asker);
    assert_int_equal(frame.header->request, request);
    return frame;
}

static void test_what_waits(void **state) {
    (void)state;
    mr_err err;
    mr_link *served[2], *asker[2];
    mr_memshard *shard = open_shard();
    load(shard, 0, two_rows, 0);
    load(shard, 0, two_rows, 1);
    const int64_t second_ago = mr_now_ns() - 1000000000;
    for (int i = 0; i < 2; i++) open_pair(&served[i], &asker[i], 0, second_ago, true);
    gather g[6];
    for (uint32_t i = 0; i < 6; i++) g[i] = gather_of(0, two_rows, i % 2, i + 100);
    /* Two askers, two cells, in turns: worked on by cell; 2 is cancelled, 3 is too late. */
    for (uint32_t i = 0; i < 6; i++)
        hand_over(shard, served[i % 3 == 0], MR_FRAME_RETRIEVE, i, i == 3 ? 900000 : 3000000000u,
                  &g[i], sizeof(g[i]));
    assert_int_equal(mr_memshard_look(shard).queue_depth, 6);
    hand_over(shard, served[0], MR_FRAME_CANCEL, 2, 0, NULL, 0);
    hand_over(shard, served[1], MR_FRAME_CANCEL, 4, 0, NULL, 0); /* not its own: nothing happens */
    mr_memshard_round_over(shard, LANE + 1);
    assert_int_equal(mr_queue_bytes(&served[0]->out) + mr_queue_bytes(&served[1]->out), 0);
    mr_memshard_round_over(shard, LANE);
    const uint64_t expected[2][3] = {{4, 1, 5}, {0, 3, 0}};
    for (int link = 0; link < 2; link++)
        for (int i = 0; i < 3 - link; i++) {
            const uint64_t request = expected[link][i];
            const mr_frame frame = answer_to(served[link], asker[link], request);
            assert_true(frame.header->budget_us >= 1000000); /* what it waited */
            if (request == 3)
                assert_int_equal(mr_frame_error(&frame, &err), MR_ERR_TIMEOUT);
            else
                assert_true(rows_match(&frame, 0, two_rows, &g[request]));
        }
    mr_memshard_stats stats = mr_memshard_look(shard);
    assert_int_equal(stats.queue_depth, 0);
    assert_int_equal(stats.cancelled, 1);
    assert_int_equal(stats.expired, 1);
    assert_int_equal(stats.together, 3);
    assert_int_equal(stats.requests, 5);

    /* A link that goes takes its requests along; more than fit are worked off at once. */
    for (uint32_t i = 0; i < 5; i++)
        hand_over(shard, served[i % 2], MR_FRAME_RETRIEVE, i, 0, &g[i], sizeof(g[i]));
    mr_memshard_link_closed(shard, served[1]);
    mr_link_close(served[1]);
    mr_link_close(asker[1]);
    mr_memshard_round_over(shard, LANE);
    for (uint32_t i = 0; i < 5; i += 2)
        answer_to(served[0], asker[0], (uint64_t[]){0, 0, 2, 0, 4}[i]);
    for (uint32_t i = 0; i < 200; i++)
        hand_over(shard, served[0], MR_FRAME_RETRIEVE, 7, 0, &g[0], sizeof(g[0]));
    assert_in_range(mr_memshard_look(shard).queue_depth, 1, 32);
    mr_memshard_round_over(shard, LANE);
    for (uint32_t i = 0; i < 200; i++) answer_to(served[0], asker[0], 7);

    /* One that comes alone does not wait; version 1 is told no waiting time. */
    served[0]->is_crowded = false;
    served[0]->version = asker[0]->version = 1;
    hand_over(shard, served[0], MR_FRAME_RETRIEVE, 8, 0, &g[0], sizeof(g[0]));
    assert_int_equal(answer_to(served[0], asker[0], 8).header->budget_us, 0);
    /* What is no request ends the link even when it would have waited. */
    served[0]->is_crowded = true;
    hand_over(shard, served[0], MR_FRAME_RETRIEVE, 9, 0, &g[0], sizeof(g[0]) - 8);
    assert_int_equal(answer_to(served[0], asker[0], 9).header->type, MR_FRAME_REFUSE);
    mr_link_close(served[0]);
    mr_link_close(asker[0]);
    mr_memshard_close(shard);
}

static void test_prefetch_is_a_wish(void **state) {
    (void)state;
    mr_link *served, *asker;
    mr_err err;
    struct {
        mr_wire_prefetch fixed;
        uint32_t row[ROWS_ASKED];
    } wish = {.fixed = {.layer = 0, .cell = 1, .rows = ROWS_ASKED}};
    mr_memshard *shard = open_shard();
    load(shard, 0, two_rows, 1);
    open_pair(&served, &asker, 0, 0, false);
    const gather g = gather_of(0, two_rows, 1, 77);
    memcpy(wish.row, g.row, sizeof(wish.row));
    hand_over(shard, served, MR_FRAME_PREFETCH, 1, 0, &wish, sizeof(wish));
    wish.row[3] = UINT32_MAX; /* a wish for what is not here is no error */
    hand_over(shard, served, MR_FRAME_PREFETCH, 2, 0, &wish, sizeof(wish));
    wish.fixed.cell = 0;
    hand_over(shard, served, MR_FRAME_PREFETCH, 3, 0, &wish, sizeof(wish));
    wish.fixed.layer = 99;
    hand_over(shard, served, MR_FRAME_PREFETCH, 4, 0, &wish, sizeof(wish));
    assert_int_equal(mr_queue_bytes(&served->out), 0); /* never answered */
    assert_int_equal(mr_memshard_look(shard).prefetched, 4 * ROWS_ASKED);
    hand_over(shard, served, MR_FRAME_RETRIEVE, 5, 1000, &g, sizeof(g));
    const mr_frame frame = answer_to(served, asker, 5);
    assert_true(rows_match(&frame, 0, two_rows, &g));
    hand_over(shard, served, MR_FRAME_PREFETCH, 6, 0, &wish, sizeof(wish) - 8);
    const mr_frame refused = answer_to(served, asker, 6);
    assert_int_equal(refused.header->type, MR_FRAME_REFUSE);
    assert_int_equal(mr_frame_error(&refused, &err), MR_ERR_FORMAT);
    mr_link_close(served);
    mr_link_close(asker);
    mr_memshard_close(shard);
}

/* --- all at once ------------------------------------------------------------------------------ */

typedef struct {
    const mr_server *server;
    int model;
    atomic_bool *stop;
    uint64_t good, stale;
} asking;

static void *keep_asking(void *argument) {
    asking *a = argument;
    mr_link *link = must_open(a->server, a->model, (mr_grid){0});
    for (uint32_t i = 0; !atomic_load(a->stop); i++) {
        const mr_status status = ask(link, a->model, two_rows, i % 2);
        assert_true(status == MR_OK || status == MR_ERR_STALE);
        if (status == MR_OK)
            a->good++;
        else
            a->stale++;
    }
    mr_link_close(link);
    return NULL;
}

static void test_changes_while_asked(void **state) {
    (void)state;
    atomic_bool stop = false;
    pthread_t threads[ASKERS];
    asking askers[ASKERS];
    uint64_t seed = 3;
    mr_scrub *scrub;
    mr_err err;
    mr_memshard *shard = open_shard();
    assert_int_equal(mr_scrub_open(&scrub,
                                   &(mr_scrub_options){.bytes_per_second = 1u << 30, .pause_ms = 1},
                                   &err),
                     MR_OK);
    mr_memshard_set_scrub(shard, scrub);
    for (int i = 0; i < MODELS; i++) load(shard, i, two_rows, 0);
    mr_server *server = serve(shard, 2);
    for (int i = 0; i < ASKERS; i++) {
        askers[i] = (asking){.server = server, .model = i % MODELS, .stop = &stop};
        assert_int_equal(pthread_create(&threads[i], NULL, keep_asking, &askers[i]), 0);
    }
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    for (const int64_t end = after_ms(STRESS_MS); mr_now_ns() < end;) {
        const int model = (int)(test_random(&seed) % MODELS);
        const uint32_t cell = test_random(&seed) % 2;
        if (test_random(&seed) % 2)
            load(shard, model, two_rows, cell);
        else
            mr_memshard_unload(shard, &w.manifest[model].digest, two_rows, &cell, 1);
        mr_memshard_look(shard);
        mr_holding *holdings;
        uint32_t count;
        mr_memshard_describe(shard, &holdings, &count);
        mr_holdings_free(holdings, count);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < ASKERS; i++) {
        pthread_join(threads[i], NULL);
        assert_true(askers[i].good > 0 && askers[i].stale > 0);
    }
    mr_server_close(server);
    mr_memshard_close(shard);
    mr_scrub_counters scrubbed;
    mr_scrub_count(scrub, &scrubbed);
    assert_true(scrubbed.chunks > 0 && scrubbed.failures == 0);
    mr_scrub_close(scrub);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells_come_and_go),
        cmocka_unit_test(test_loads_that_are_refused),
        cmocka_unit_test(test_loads_in_the_background),
        cmocka_unit_test(test_what_waits),
        cmocka_unit_test(test_prefetch_is_a_wish),
        cmocka_unit_test(test_changes_while_asked),
    };
    mr_log_setup("test", MR_LOG_ERROR, 1);
    return cmocka_run_group_tests(tests, open_world, close_world);
}
