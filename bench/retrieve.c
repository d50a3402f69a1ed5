/* retrieve.c - retrievals as a worker makes them, against memshards in processes of their own: how
 * many a second, how long, and what of that is the fabric's and what the rows'.
 *
 * The table is made up and lies in memory that all processes share; rows are drawn by Zipf's law of
 * --skew. --shards row groups, each held by --replicas memshards with one serving thread, are asked
 * through worker/retrieval.h over --fabric. In turn with that, in the same run: a bare ping-pong of
 * one request's bytes on the same fabric (bare_pair.h), and the same retrievals from a shard in
 * this process, whose handler is timed: the shards' own work. --mode gather asks for whole rows, in
 * frames, as the row cache does. --mode topk needs --model: product keys are not made up.
 * With --spin-us every side looks for so long before it sleeps; the bare shm pair always looks.
 * Memshards are children of a nursery, a process without threads that can start others in
 * their place. --fault kill or stop measures something else: what a replica that is killed or
 * stopped adds to the retrieval that notices, and to those after it.
 * One CSV line; --help says the columns. Threads: this one, those of the memshards, and the two
 * with which a retrieval connects. */
#include "bench/bare_pair.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/options.h"
#include "common/model/manifest.h"
#include "common/model/product_keys.h"
#include "common/net/fabric_choice.h"
#include "common/net/frames.h"
#include "common/ops/gate.h"
#include "common/ops/team.h"
#include "memshard/holdings.h"
#include "worker/retrieval.h"

#include <math.h>
#include <stdio.h>

enum { VARIANTS = 64, SAMPLES_MAX = 1 << 20, PROCESSES_MAX = 16, ROUNDS_MAX = 99, ADDRESS = 256 };

typedef struct {
    const char *fabric, *mode, *model, *fault;
    int64_t tokens, entries, width, rows, slots, shards, replicas, spin_us, rounds;
    double skew, seconds;
    bool is_gated, is_topk, is_gather;
} settings;

typedef struct {
    settings s;
    /* what is asked */
    mr_model *model; /* topk */
    mr_manifest manifest;
    mr_table_shape table;
    mr_memory_layer layer;
    mr_table_facts facts;
    const mr_table_shape *table_list[1];
    const mr_memory_layer *layer_list[1];
    mr_store_source source;
    mr_digest digest;
    uint16_t *values, *pre; /* bf16 */
    mr_grid grid;
    uint32_t *row[VARIANTS];
    uint8_t *slot;
    float *score, *x, *query, *out;
    uint32_t query_columns;
    int16_t *exponent, *dot_exponent;
    /* whom */
    pid_t child[PROCESSES_MAX];
    char address[PROCESSES_MAX][ADDRESS];
    uint32_t children;
    int nursery;
    uint64_t epoch; /* of the route */
    pid_t nursery_pid;
    mr_retrieval *far, *near;
    mr_link *link; /* gather */
    mr_memshard *shard;
    int64_t handled_ns; /* in the handler, since it was last set to 0 */
    int64_t *sample;
} bench;

static uint64_t state = 88172645463325252u;
static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}
static float in_range(void) {
    return (float)(next_random() >> 40) * 0x1p-23f - 1.0f;
}

/* --- what is asked ---------------------------------------------------------------------------- */

static mr_status map_table(const void *context, mr_mapping *out, uint32_t table, bool pre,
                           uint64_t first, uint64_t bytes, mr_err *err) {
    const bench *b = context;
    (void)table, (void)bytes, (void)err;
    *out = (mr_mapping){.data = (const uint8_t *)(pre ? b->pre : b->values) + first};
    return MR_OK;
}

static uint16_t *shared_rows(uint64_t elements) {
    uint16_t *data =
        mmap(NULL, elements * 2, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) abort();
    for (uint64_t i = 0; i < elements; i += 2) {
        const uint64_t bits = next_random(); /* magnitudes from 2^-3 to 1 */
        data[i] = (uint16_t)((bits & 0x807f) | 0x3e00 | (bits >> 16 & 0x80));
        data[i + 1] = (uint16_t)((bits >> 32 & 0x807f) | 0x3e00);
    }
    return data;
}

static uint64_t zipf(double skew, uint64_t count) {
    const double u = (double)(next_random() >> 11) * 0x1p-53, n = (double)count;
    if (skew == 0) return next_random() % count;
    const double rank = pow(u * (pow(n + 1, 1 - skew) - 1) + 1, 1 / (1 - skew));
    const uint64_t found = rank < 1 ? 0 : (uint64_t)rank - 1;
    return found < count ? found : count - 1;
}

static void make_ids(bench *b) {
    const size_t all = (size_t)b->s.tokens * b->layer.entries;
    for (int v = 0; v < VARIANTS; v++) {
        b->row[v] = mr_alloc_array(all, sizeof(uint32_t));
        for (size_t j = 0; j < all; j++) /* hot rows lie scattered */
            b->row[v][j] = (uint32_t)(zipf(b->s.skew, b->table.rows) * 2654435761u % b->table.rows);
    }
    b->slot = mr_alloc(all);
    b->score = mr_alloc_array(all * b->layer.cores, sizeof(float));
    for (size_t j = 0; j < all; j++) b->slot[j] = (uint8_t)(next_random() % b->layer.slots_out);
    for (size_t j = 0; j < all * b->layer.cores; j++) b->score[j] = in_range();
    b->x = mr_alloc_array((size_t)b->s.tokens * (b->table.pre_width + 1), sizeof(float));
    for (size_t j = 0; j < (size_t)b->s.tokens * b->table.pre_width; j++) b->x[j] = in_range();
    b->out = mr_alloc_array((size_t)b->s.tokens * b->layer.slots_out * b->table.width, 4);
    b->exponent = mr_alloc_array((size_t)b->s.tokens, 2);
    b->dot_exponent = mr_alloc_array((size_t)b->s.tokens, 2);
    for (int64_t t = 0; t < b->s.tokens; t++) {
        int e = 0, d = 0;
        mr_exponent_of(&d, b->facts.pre_norm_max * sqrt(b->table.pre_width));
        mr_exponent_of(&e, b->layer.entries * (b->layer.gated ? 4.0 * b->table.pre_width : 1.0));
        b->exponent[t] = (int16_t)e;
        b->dot_exponent[t] = (int16_t)d;
    }
}

static void make_world(bench *b) {
    const settings *s = &b->s;
    b->table = (mr_table_shape){
        .rows = (uint64_t)s->rows, .width = (uint32_t)s->width, .storage = {MR_BF16, 0}};
    b->facts = (mr_table_facts){.value_max = 1, .value_rms = 0.5, .accumulator_bits = 32};
    b->layer = (mr_memory_layer){.entries = (uint32_t)s->entries,
                                 .rank = 1,
                                 .cores = 1,
                                 .slots = (uint32_t)s->slots,
                                 .slots_out = (uint32_t)s->slots,
                                 .reach_rows = (uint64_t)s->rows};
    b->values = shared_rows((uint64_t)s->rows * (uint64_t)s->width);
    if (s->is_gated) {
        b->table.pre_width = (uint32_t)s->width / 2;
        b->table.pre_storage = (mr_storage){MR_BF16, 0};
        b->facts.accumulator_bits = 64;
        b->facts.pre_norm_max = sqrt(b->table.pre_width);
        b->layer.gated = b->layer.gelu = true;
        b->pre = shared_rows(b->table.rows * b->table.pre_width);
    }
    b->table_list[0] = &b->table;
    b->layer_list[0] = &b->layer;
    b->source = (mr_store_source){.layers = b->layer_list,
                                  .tables = b->table_list,
                                  .facts = &b->facts,
                                  .layer_count = 1,
                                  .table_count = 1,
                                  .map = map_table,
                                  .context = b};
    memset(b->digest.bytes, 0x77, sizeof(b->digest.bytes));
}

static mr_status open_world(bench *b, mr_err *err) {
    b->grid = (mr_grid){(uint32_t)b->s.shards, 1};
    if (!b->s.is_topk) {
        make_world(b);
        make_ids(b);
        return MR_OK;
    }
    mr_status status = mr_model_open(&b->model, b->s.model, err);
    if (status == MR_OK) status = mr_manifest_load(&b->manifest, b->model, NULL, NULL, err);
    if (status != MR_OK) return status;
    if (mr_model_memory_count(b->model) == 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "%s has no memory layers", b->s.model);
    b->layer = *mr_model_memory(b->model, 0);
    b->table = *mr_model_table(b->model, b->layer.table);
    b->facts = b->manifest.tables[b->layer.table];
    b->digest = b->manifest.digest;
    make_ids(b);
    mr_product_keys keys;
    status = mr_product_keys_open(&keys, b->model, 0, err);
    const uint32_t columns = b->query_columns = keys.groups * 2 * b->layer.key_dim;
    mr_product_keys_free(&keys);
    if (status != MR_OK) return status;
    b->query = mr_alloc_array((size_t)b->s.tokens * columns, sizeof(float));
    for (size_t j = 0; j < (size_t)b->s.tokens * columns; j++) b->query[j] = in_range();
    return MR_OK;
}

static mr_retrieval_request request_of(const bench *b, uint32_t number) {
    mr_retrieval_request q = {.tokens = (uint32_t)b->s.tokens,
                              .entries = b->layer.entries,
                              .cores = b->layer.cores,
                              .slots = b->layer.slots_out,
                              .width = b->table.width,
                              .pre_width = b->table.pre_width,
                              .table_rows = b->table.rows,
                              .accumulator_bits = b->facts.accumulator_bits,
                              .gated = b->layer.gated,
                              .gelu = b->layer.gelu,
                              .table = b->layer.table,
                              .storage = b->table.storage,
                              .row = b->row[number % VARIANTS],
                              .slot = b->slot,
                              .score = b->score,
                              .x = b->x,
                              .value_exponent = b->exponent,
                              .dot_exponent = b->dot_exponent};
    if (b->s.is_topk) {
        q.query = b->query;
        q.query_columns = b->query_columns;
    }
    return q;
}

/* --- memshards -------------------------------------------------------------------------------- */

/* Cells index, index + count, .. */
static mr_status hold(bench *b, mr_memshard **out, uint32_t index, uint32_t count, mr_err *err) {
    uint32_t cells[PROCESSES_MAX], held = 0;
    mr_status status;
    if (b->s.is_topk) {
        status = mr_memshard_open(out, b->model, &b->manifest, NULL, b->grid, index, count, err);
        return status == MR_OK ? mr_memshard_open_keys(*out, b->model, err) : status;
    }
    for (uint32_t c = index; c < b->grid.row_groups; c += count) cells[held++] = c;
    mr_table_source source = {.tables = &b->source, .digest = b->digest};
    const mr_load_order order = {
        .digest = b->digest, .grid = b->grid, .cells = cells, .cell_count = held};
    status = mr_memshard_open_empty(out, NULL, err);
    return status == MR_OK ? mr_memshard_adopt(*out, &source, &order, NULL, NULL, err) : status;
}

static void serve(bench *b, uint32_t index, int report) {
    mr_err err = {{0}};
    mr_memshard *shard;
    mr_server *server;
    char path[ADDRESS];
    const bool is_shm = !strcmp(b->s.fabric, "shm"), is_unix = !strcmp(b->s.fabric, "unix");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(path, sizeof(path), "unix:/tmp/mr-bench-%ld.sock", (long)getpid());
    mr_status status = hold(b, &shard, index, (uint32_t)b->s.shards, &err);
    mr_server_options options = {.address = is_unix ? path : "127.0.0.1:0",
                                 .ucx = is_shm ? "127.0.0.1:0" : NULL};
    if (status == MR_OK) {
        mr_memshard_serve_options(shard, &options);
        status = mr_server_open(&server, &options, &err);
    }
    if (status != MR_OK) {
        fprintf(stderr, "bench_retrieve: memshard: %s\n", err.text);
        _exit(1);
    }
    dprintf(report, "%s%s\n", is_shm ? "ucx:" : "",
            is_shm ? mr_server_ucx(server) : mr_server_address(server));
    for (;;) pause();
}

/* --- the nursery ------------------------------------------------------------------------------ */

typedef struct {
    pid_t pid;
    char address[ADDRESS];
} born;

static bool read_line(int fd, char line[ADDRESS]) {
    size_t have = 0;
    while (have < ADDRESS - 1 && read(fd, line + have, 1) == 1 && line[have] != '\n') have++;
    line[have] = '\0';
    return have > 0;
}

/* Starts a memshard for each number that comes. */
static void run_nursery(bench *b, int fd) {
    born all[PROCESSES_MAX] = {0};
    uint32_t i;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGCHLD, SIG_IGN);
    while (read(fd, &i, sizeof(i)) == sizeof(i) && i < PROCESSES_MAX) {
        int report[2];
        if (pipe(report) != 0) break;
        if (!strncmp(all[i].address, "unix:", 5)) unlink(all[i].address + 5);
        all[i].pid = fork();
        if (all[i].pid == 0) serve(b, i % (uint32_t)b->s.shards, report[1]);
        close(report[1]);
        if (!read_line(report[0], all[i].address)) all[i].pid = 0;
        close(report[0]);
        if (write(fd, &all[i], sizeof(all[i])) != sizeof(all[i])) break;
    }
    _exit(0);
}

static mr_status bear(bench *b, uint32_t i, mr_err *err) {
    born one;
    if (write(b->nursery, &i, sizeof(i)) != sizeof(i) ||
        recv(b->nursery, &one, sizeof(one), MSG_WAITALL) != sizeof(one) || one.pid == 0)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "a memshard did not start");
    b->child[i] = one.pid;
    memcpy(b->address[i], one.address, ADDRESS);
    return MR_OK;
}

static mr_status start_memshards(bench *b, mr_err *err) {
    int pair[2];
    mr_status status = MR_OK;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return mr_fail(err, MR_ERR_IO, "socket pair: %s", strerror(errno));
    b->nursery_pid = fork();
    if (b->nursery_pid == 0) {
        close(pair[0]);
        run_nursery(b, pair[1]);
    }
    close(pair[1]);
    b->nursery = pair[0];
    while (status == MR_OK && b->children < (uint32_t)(b->s.shards * b->s.replicas))
        status = bear(b, b->children++, err);
    return status;
}

static void stop_memshards(bench *b) {
    if (b->nursery_pid > 0) {
        kill(b->nursery_pid, SIGKILL);
        waitpid(b->nursery_pid, NULL, 0); /* its children die with it */
    }
    for (uint32_t i = 0; i < b->children; i++)
        if (!strncmp(b->address[i], "unix:", 5)) unlink(b->address[i] + 5);
}

/* --- asking ----------------------------------------------------------------------------------- */

static void handle_timed(void *context, mr_link *reply, const mr_frame *frame) {
    bench *b = context;
    const int64_t began = mr_now_ns();
    mr_memshard_handle(b->shard, reply, frame);
    b->handled_ns += mr_now_ns() - began;
}

static mr_retrieval_options options_of(const bench *b) {
    return (mr_retrieval_options){.digest = b->digest,
                                  .grid = b->grid,
                                  .timeout_ms = 5000,
                                  .tokens_max = (uint32_t)b->s.tokens,
                                  .entries_max = b->layer.entries,
                                  .cores_max = b->layer.cores,
                                  .slots_width_max = b->layer.slots_out * b->table.width,
                                  .layers = 1,
                                  .tables = 1,
                                  .seed = 3,
                                  .spin_ns = b->s.spin_us * 1000};
}

static void make_route(mr_route *out, const bench *b) {
    const char *addresses[PROCESSES_MAX];
    const uint32_t shards = (uint32_t)b->s.shards, replicas = (uint32_t)b->s.replicas;
    for (uint32_t i = 0; i < b->children; i++) addresses[i] = b->address[i];
    mr_route_of_addresses(out, addresses, b->children, b->grid, &b->digest);
    free(out->replica_first);
    free(out->replicas);
    out->epoch = b->epoch;
    out->replica_first = mr_alloc_array(shards + 1ull, sizeof(uint32_t));
    out->replicas = mr_alloc_array((size_t)shards * replicas, sizeof(uint32_t));
    for (uint32_t c = 0; c < shards; c++) {
        for (uint32_t k = 0; k < replicas; k++) out->replicas[c * replicas + k] = k * shards + c;
        out->replica_first[c + 1] = (c + 1) * replicas;
    }
}

static mr_status open_far(bench *b, mr_err *err) {
    mr_route route;
    make_route(&route, b);
    mr_retrieval_options options = options_of(b);
    options.route = &route;
    mr_status status = mr_retrieval_open(&b->far, &options, err);
    mr_route_free(&route);
    if (status == MR_OK) status = mr_retrieval_reach(b->far, mr_now_ns() + 5000000000, err);
    return status;
}

static mr_status open_near(bench *b, mr_err *err) {
    mr_retrieval_options options = options_of(b);
    mr_status status = hold(b, &b->shard, 0, 1, err);
    if (status != MR_OK) return status;
    mr_link *link = mr_link_loop(handle_timed, b, "here");
    options.links = &link;
    options.count = 1;
    return mr_retrieval_open(&b->near, &options, err);
}

/* Whole rows of cell 0, as the row cache asks for them. */
static mr_status gather(bench *b, mr_link *link, uint32_t number, mr_err *err) {
    const mr_span rows = mr_grid_part(b->table.rows, b->grid.row_groups, 0);
    const mr_wire_retrieve fixed = {.mode = MR_RETRIEVE_GATHER,
                                    .tokens = 1,
                                    .entries = b->layer.entries * (uint32_t)b->s.tokens};
    mr_retrieve_layout layout;
    uint32_t answer_bytes = 0;
    mr_frame frame;
    mr_status status = mr_retrieve_lay_out(&layout, &fixed, err);
    if (status == MR_OK)
        status = mr_retrieve_answer_bytes(&answer_bytes, &fixed, b->table.width,
                                          mr_storage_bytes(b->table.storage, b->table.width), err);
    if (status != MR_OK) return status;
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = number + 1};
    uint8_t *p = mr_link_begin(link, &header, layout.bytes);
    if (!p) return mr_fail(err, MR_ERR_LIMIT, "the link's backlog is full");
    memset(p, 0, layout.bytes);
    memcpy(p, &fixed, sizeof(fixed));
    memcpy(p + layout.count, &fixed.entries, 4);
    for (uint32_t j = 0; j < fixed.entries; j++) {
        const uint32_t row = b->row[number % VARIANTS][j] % (uint32_t)rows.count;
        memcpy(p + layout.row + 4 * j, &row, 4);
    }
    mr_link_end(link);
    for (;;) {
        status = mr_link_flush(link, err);
        if (status == MR_OK || status == MR_ERR_AGAIN) status = mr_link_receive(link, &frame, err);
        if (status == MR_OK)
            return mr_answer_check(&frame, mr_retrieve_answer_type(&fixed), answer_bytes, err);
        if (status != MR_ERR_AGAIN) return status;
        status = mr_links_wait(&link, 1, mr_now_ns() + 5000000000);
        if (status != MR_OK) return mr_fail(err, status, "no answer within 5 s");
    }
}

typedef struct {
    double p50, p99, p999, per_second, work_p50;
} timing;

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static timing timing_of(int64_t *sample, uint32_t count) {
    int64_t total = 0;
    for (uint32_t i = 0; i < count; i++) total += sample[i];
    qsort(sample, count, sizeof(*sample), by_size);
    return (timing){.p50 = (double)sample[count / 2] / 1e3,
                    .p99 = (double)sample[count - 1 - count / 100] / 1e3,
                    .p999 = (double)sample[count - 1 - count / 1000] / 1e3,
                    .per_second = (double)count * 1e9 / (double)total};
}

/* r NULL: gathers over link. Half of the samples' room is for the handler's times. */
static mr_status time_asking(bench *b, timing *out, mr_retrieval *r, mr_link *link, mr_err *err) {
    uint32_t count = 0;
    int64_t *work = b->sample + SAMPLES_MAX;
    const int64_t until = mr_now_ns() + (int64_t)(b->s.seconds * 1e9);
    while (count < SAMPLES_MAX && mr_now_ns() < until) {
        const mr_retrieval_request request = request_of(b, count);
        b->handled_ns = 0;
        const int64_t began = mr_now_ns();
        mr_status status = r ? mr_retrieval_begin(r, &request, err) : gather(b, link, count, err);
        if (status == MR_OK && r) status = mr_retrieval_finish(r, b->out, NULL, err);
        if (status != MR_OK) return status;
        work[count] = b->handled_ns;
        b->sample[count++] = mr_now_ns() - began;
    }
    *out = timing_of(b->sample, count);
    out->work_p50 = timing_of(work, count).p50;
    return MR_OK;
}

static mr_status time_bare(bench *b, timing *out, bare_pair *pair, mr_err *err) {
    uint32_t count = 0;
    const int64_t until = mr_now_ns() + (int64_t)(b->s.seconds * 1e9);
    while (count < SAMPLES_MAX && mr_now_ns() < until) {
        const int64_t began = mr_now_ns();
        if (!ask_bare(pair)) return mr_fail(err, MR_ERR_IO, "the bare pair broke");
        b->sample[count++] = mr_now_ns() - began;
    }
    *out = timing_of(b->sample, count);
    return MR_OK;
}

/* --- faults ----------------------------------------------------------------------------------- */

enum { BEFORE = 400, NOTICING = 40, AFTER = 100, PAUSE_US = 300, RECOVER_MS = 3000 };

static mr_status one_step(bench *b, int64_t *took, uint32_t number, mr_err *err) {
    const mr_retrieval_request request = request_of(b, number);
    const struct timespec pause = {.tv_nsec = PAUSE_US * 1000}; /* what a step computes meanwhile */
    nanosleep(&pause, NULL);
    const int64_t began = mr_now_ns();
    mr_status status = mr_retrieval_begin(b->far, &request, err);
    if (status == MR_OK) status = mr_retrieval_finish(b->far, b->out, NULL, err);
    *took = mr_now_ns() - began;
    return status;
}

static mr_retrieval_peer peer_of(const bench *b, uint32_t child) {
    for (uint32_t i = 0; i < mr_retrieval_peer_count(b->far); i++) {
        const mr_retrieval_peer p = mr_retrieval_peer_look(b->far, i);
        if (!strcmp(p.address, b->address[child])) return p;
    }
    return (mr_retrieval_peer){0};
}

/* The replica that is asked most. */
static uint32_t choose_victim(const bench *b, const uint64_t *asked_before) {
    uint32_t victim = 0;
    uint64_t most = 0;
    for (uint32_t i = 0; i < b->children; i++) {
        const uint64_t asked = peer_of(b, i).requests - asked_before[i];
        if (asked > most) most = asked;
        if (asked == most) victim = i;
    }
    return victim;
}

/* Another one in its place, and the route that says so. */
static mr_status replace(bench *b, uint32_t victim, mr_err *err) {
    mr_route route;
    mr_status status = bear(b, victim, err);
    if (status != MR_OK) return status;
    b->epoch++;
    make_route(&route, b);
    status = mr_retrieval_set_route(b->far, &route, err);
    mr_route_free(&route);
    return status;
}

static mr_status recover(bench *b, uint32_t victim, mr_err *err) {
    const int64_t until = mr_now_ns() + RECOVER_MS * 1000000ll;
    mr_status status = MR_OK;
    bool is_back = false;
    if (!strcmp(b->s.fault, "kill"))
        status = replace(b, victim, err);
    else
        kill(b->child[victim], SIGCONT);
    for (uint32_t i = 0; status == MR_OK && !is_back && mr_now_ns() < until; i++) {
        int64_t took;
        status = one_step(b, &took, i, err);
        const mr_retrieval_peer p = peer_of(b, victim);
        is_back = p.is_connected && !p.is_suspected && i >= AFTER;
    }
    return status == MR_OK && !is_back ? mr_fail(err, MR_ERR_TIMEOUT, "no memshard came back")
                                       : status;
}

typedef struct {
    double p50, p99, added, after;
} shock; /* us */

static mr_status one_fault(bench *b, shock *out, mr_err *err) {
    int64_t before[BEFORE], after[AFTER], took, worst = 0;
    uint64_t asked[PROCESSES_MAX];
    mr_status status = MR_OK;
    for (uint32_t i = 0; i < b->children; i++) asked[i] = peer_of(b, i).requests;
    for (uint32_t i = 0; i < BEFORE && status == MR_OK; i++)
        status = one_step(b, &before[i], i, err);
    if (status != MR_OK) return status;
    const uint32_t victim = choose_victim(b, asked);
    kill(b->child[victim], !strcmp(b->s.fault, "kill") ? SIGKILL : SIGSTOP);
    for (uint32_t i = 0; i < NOTICING && status == MR_OK; i++) {
        status = one_step(b, &took, i, err);
        if (took > worst) worst = took;
    }
    for (uint32_t i = 0; i < AFTER && status == MR_OK; i++) status = one_step(b, &after[i], i, err);
    if (status != MR_OK) return status;
    const timing t = timing_of(before, BEFORE);
    out->p50 = t.p50;
    out->p99 = t.p99;
    out->added = (double)worst / 1e3 - t.p50;
    out->after = timing_of(after, AFTER).p50 - t.p50;
    return recover(b, victim, err);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
/* Of a member of structs that are all doubles. */
static double at_rank(const void *all, size_t stride, size_t offset, size_t count, size_t rank) {
    double values[ROUNDS_MAX];
    for (size_t i = 0; i < count; i++)
        memcpy(&values[i], (const char *)all + i * stride + offset, sizeof(double));
    qsort(values, count, sizeof(*values), by_value);
    return values[rank];
}

static mr_status measure_faults(bench *b, mr_err *err) {
    shock all[ROUNDS_MAX];
    const size_t n = (size_t)b->s.rounds;
    mr_status status = MR_OK;
    for (size_t i = 0; i < n && status == MR_OK; i++) status = one_fault(b, &all[i], err);
    if (status != MR_OK) return status;
#define RANK(field, rank) at_rank(all, sizeof(shock), offsetof(shock, field), n, rank)
    printf("%s,%s,%d,%d,%zu,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f\n", b->s.fabric, b->s.fault,
           (int)b->s.shards, (int)b->s.replicas, n, RANK(p50, n / 2), RANK(p99, n / 2),
           RANK(added, n / 2), RANK(added, n - 1 - n / 10), RANK(added, n - 1), RANK(after, n / 2),
           RANK(after, n - 1));
    return MR_OK;
}

/* --- all together ----------------------------------------------------------------------------- */

#define MIDDLE(all, field) at_rank(all, sizeof(timing), offsetof(timing, field), rounds, rounds / 2)

static void print(bench *b, const timing *far, const timing *bare, const timing *near,
                  const bare_pair *pair) {
    const size_t rounds = (size_t)b->s.rounds;
    const double p50 = MIDDLE(far, p50), ping = MIDDLE(bare, p50), work = MIDDLE(near, work_p50);
    printf("%s,%s,%d,%d,%d,%u,%u,%u,%.1f,%d,", b->s.fabric, b->s.mode, (int)b->s.shards,
           (int)b->s.replicas, (int)b->s.tokens, b->layer.entries, b->layer.slots_out,
           b->table.width * 2, b->s.skew, (int)b->s.spin_us);
    printf("%zu,%zu,%.0f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.2f\n", pair->up, pair->down,
           MIDDLE(far, per_second), p50, MIDDLE(far, p99), MIDDLE(far, p999), ping,
           MIDDLE(bare, p99), work, MIDDLE(near, p50), p50 - ping - work, p50 / (ping + work));
}

/* Bytes of one request and its answer, per cell: what the bare pair moves. */
static mr_status weigh(bench *b, bare_pair *pair, mr_err *err) {
    timing once;
    uint64_t up, down, requests = 1;
    const double seconds = b->s.seconds;
    b->s.seconds = 0.02;
    mr_status status = time_asking(b, &once, b->s.is_gather ? NULL : b->far, b->link, err);
    b->s.seconds = seconds;
    if (status != MR_OK) return status;
    if (b->s.is_gather) {
        const uint64_t rows = (uint64_t)b->layer.entries * (uint64_t)b->s.tokens;
        up = sizeof(mr_wire_header) + sizeof(mr_wire_retrieve) + 4 + 4 * rows;
        down = sizeof(mr_wire_header) + 2 * rows * b->table.width;
    } else {
        const mr_retrieval_stats stats = mr_retrieval_take_stats(b->far);
        up = stats.bytes_up;
        down = stats.bytes_down;
        requests = stats.requests ? stats.requests : 1;
    }
    *pair = (bare_pair){.fabric = b->s.fabric,
                        .up = up / requests,
                        .down = down / requests,
                        .spins = b->s.spin_us > 0,
                        .fd = -1};
    return MR_OK;
}

static mr_status measure(bench *b, mr_err *err) {
    timing far[ROUNDS_MAX], bare[ROUNDS_MAX], near[ROUNDS_MAX];
    bare_pair pair = {.fd = -1};
    mr_link *loop = b->s.is_gather ? mr_link_loop(handle_timed, b, "here") : NULL;
    b->sample = mr_alloc_array(2 * SAMPLES_MAX, sizeof(*b->sample));
    mr_status status = weigh(b, &pair, err);
    if (status == MR_OK) status = open_bare(&pair, err);
    for (int64_t i = 0; i < b->s.rounds && status == MR_OK; i++) {
        status = time_asking(b, &far[i], b->s.is_gather ? NULL : b->far, b->link, err);
        if (status == MR_OK) status = time_bare(b, &bare[i], &pair, err);
        if (status == MR_OK)
            status = time_asking(b, &near[i], b->s.is_gather ? NULL : b->near, loop, err);
    }
    if (status == MR_OK) print(b, far, bare, near, &pair);
    close_bare(&pair);
    mr_link_close(loop);
    return status;
}

static mr_status run(bench *b, mr_err *err) {
    uint8_t welcome[4096];
    size_t bytes;
    const int64_t deadline = mr_now_ns() + 10000000000;
    const mr_session_hello hello = {MR_ROLE_WORKER, MR_ROLE_MEMSHARD, b->digest};
    mr_status status = open_near(b, err);
    if (status == MR_OK && !b->s.is_gather) status = open_far(b, err);
    if (status == MR_OK && b->s.is_gather) {
        status = mr_link_connect(&b->link, b->address[0], deadline, err);
        if (status == MR_OK)
            status =
                mr_session_open(b->link, &hello, deadline, welcome, sizeof(welcome), &bytes, err);
    }
    if (status == MR_OK) status = b->s.fault ? measure_faults(b, err) : measure(b, err);
    mr_link_close(b->link);
    mr_retrieval_close(b->far);
    mr_retrieval_close(b->near);
    return status;
}

static mr_status check(settings *s, mr_err *err) {
    s->is_gated = !strcmp(s->mode, "gated");
    s->is_topk = !strcmp(s->mode, "topk");
    s->is_gather = !strcmp(s->mode, "gather");
    if (!s->is_gated && !s->is_topk && !s->is_gather && strcmp(s->mode, "pool") != 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "--mode is pool, gated, topk or gather");
    if (strcmp(s->fabric, "tcp") && strcmp(s->fabric, "unix") && strcmp(s->fabric, "shm"))
        return mr_fail(err, MR_ERR_ARGUMENT, "--fabric is tcp, unix or shm");
    if (s->is_topk != (s->model != NULL))
        return mr_fail(err, MR_ERR_ARGUMENT, "--mode topk and --model go together");
    if (s->fault &&
        ((strcmp(s->fault, "kill") && strcmp(s->fault, "stop")) || s->replicas < 2 || s->is_gather))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--fault is kill or stop, and needs --replicas 2 and retrievals");
    if (s->shards * s->replicas > PROCESSES_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "%d memshards; at most %d",
                       (int)(s->shards * s->replicas), PROCESSES_MAX);
    return !strcmp(s->fabric, "shm") ? mr_fabric_check_ucx(err) : MR_OK;
}

int main(int argc, char **argv) {
    static bench b;
    settings *s = &b.s;
    *s = (settings){.fabric = "tcp",
                    .mode = "pool",
                    .tokens = 1,
                    .entries = 84,
                    .width = 1024,
                    .rows = 1 << 16,
                    .slots = 1,
                    .shards = 1,
                    .replicas = 1,
                    .rounds = 3,
                    .seconds = 0.2};
    const mr_option options[] = {
        {"fabric", 0, MR_OPT_TEXT, &s->fabric, 0, 0, "NAME", "tcp, unix or shm (tcp)"},
        {"mode", 0, MR_OPT_TEXT, &s->mode, 0, 0, "NAME", "pool, gated, topk or gather (pool)"},
        {"model", 0, MR_OPT_TEXT, &s->model, 0, 0, "DIR", "of topk: its first memory layer"},
        {"tokens", 0, MR_OPT_INT, &s->tokens, 1, 512, "N", "tokens a retrieval (1)"},
        {"entries", 0, MR_OPT_INT, &s->entries, 1, 8192, "K", "rows a token (84)"},
        {"width", 0, MR_OPT_INT, &s->width, 2, 16384, "N", "bf16 columns of a row, even (1024)"},
        {"rows", 0, MR_OPT_INT, &s->rows, 16, 1 << 24, "N", "of the table (65536)"},
        {"slots", 0, MR_OPT_INT, &s->slots, 1, 16, "N", "expansion slots (1)"},
        {"skew", 0, MR_OPT_DOUBLE, &s->skew, 0, 4, "S", "of Zipf's law, not 1 (0: even)"},
        {"shards", 0, MR_OPT_INT, &s->shards, 1, PROCESSES_MAX, "M", "row groups (1)"},
        {"replicas", 0, MR_OPT_INT, &s->replicas, 1, PROCESSES_MAX, "R", "of each (1)"},
        {"spin-us", 0, MR_OPT_INT, &s->spin_us, 0, 1000000, "N",
         "look so long before sleeping (0)"},
        {"fault", 0, MR_OPT_TEXT, &s->fault, 0, 0, "NAME",
         "kill or stop a replica --rounds times; prints fabric,fault,shards,replicas,faults,p50_us,"
         "p99_us,added_p50_us,added_p90_us,added_max_us,after_p50_us,after_max_us"},
        {"rounds", 0, MR_OPT_INT, &s->rounds, 1, ROUNDS_MAX, "N", "of all three (3)"},
        {"seconds", 0, MR_OPT_DOUBLE, &s->seconds, 0.01, 60, "S", "length of a part (0.2)"},
        {0}};
    const mr_command_spec spec = {
        "bench_retrieve [options]",
        "Prints "
        "transport,mode,shards,replicas,tokens,entries,slots,row_bytes,skew,spin_us,bytes_up,"
        "bytes_down,\nretrievals_s,p50_us,p99_us,p999_us,bare_p50_us,bare_p99_us,work_p50_us,"
        "in_process_p50_us,rest_us,\nratio (p50 to bare + work).",
        options, 0, 0};
    mr_err err = {{0}};
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    mr_log_setup("bench", MR_LOG_WARN, 1);
    mr_float_environment();
    mr_fabric_set_spin((uint32_t)s->spin_us);
    if (status == MR_OK) status = check(s, &err);
    if (status == MR_OK) status = open_world(&b, &err);
    if (status == MR_OK) status = start_memshards(&b, &err); /* before we have threads */
    if (status == MR_OK) status = run(&b, &err);
    stop_memshards(&b);
    mr_memshard_close(b.shard);
    mr_manifest_free(&b.manifest);
    mr_model_close(b.model);
    if (status != MR_OK) fprintf(stderr, "bench_retrieve: %s\n", err.text);
    return status == MR_OK ? 0 : 1;
}
