/* roundtrip.c - what does a retrieval cost beyond the fabric it travels on?
 *
 * Against a memshard, one request at a time: a pooled gather of --tokens tokens of one memory
 * layer's first cell. The memshard is one that runs already (--connect), or a child of this process
 * with one serving thread, over --fabric tcp, unix or shm, with a MAC on every frame if --mac. In
 * turn with it, in the same run: a bare ping-pong of the same number of bytes each way on the same
 * fabric (a socket whose other end only reads and writes; for shm two processes that copy the bytes
 * in and out of a shared page and look for each other's flag), and the shard's own work alone (the
 * same frames through an in-process link). What the round trip needs beyond the last two is what
 * the frames, the session and the waiting cost. With --spin-us both sides of all of them look for
 * so long before they sleep; the bare shm ping-pong always looks.
 * One CSV line on stdout; --help says the columns. Threads: this one; the other ends are child
 * processes. */
#include "bench/bare_pair.h"
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/model/manifest.h"
#include "common/net/fabric_choice.h"
#include "common/net/frames.h"
#include "common/net/keys.h"
#include "common/net/server.h"
#include "common/ops/team.h"
#include "memshard/serve.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VARIANTS = 64, SAMPLES_MAX = 200000, WELCOME_BYTES = 1 << 16 };

typedef struct {
    mr_wire_retrieve fixed;
    mr_retrieve_layout layout;
    uint8_t *payload[VARIANTS]; /* the same request for other random rows */
    uint32_t answer_bytes;
    uint16_t answer_type;
} question;

typedef struct {
    double p50_us, p99_us, per_second;
} timing;

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static timing timing_of(int64_t *sample, uint32_t count) {
    int64_t total = 0;
    for (uint32_t i = 0; i < count; i++) total += sample[i];
    qsort(sample, count, sizeof(*sample), by_size);
    return (timing){(double)sample[count / 2] / 1e3, (double)sample[count - 1 - count / 100] / 1e3,
                    (double)count * 1e9 / (double)total};
}

static mr_status make_question(question *q, const mr_model *model, const mr_manifest *manifest,
                               mr_grid grid, uint32_t tokens, mr_err *err) {
    const mr_memory_layer *layer = mr_model_memory(model, 0);
    const mr_table_shape *table = mr_model_table(model, layer->table);
    const mr_cell_span cell = mr_cell_span_of(table, grid, 0);
    const uint32_t core_columns = table->width / layer->cores;
    const uint32_t last_core = (cell.column_first + cell.columns - 1) / core_columns;
    uint64_t state = 0x9e3779b97f4a7c15u;
    *q = (question){0};
    q->fixed = (mr_wire_retrieve){.mode = MR_RETRIEVE_POOL,
                                  .accumulator_bits =
                                      (uint16_t)manifest->tables[layer->table].accumulator_bits,
                                  .tokens = tokens,
                                  .entries = tokens * layer->entries,
                                  .core_first = (uint16_t)(cell.column_first / core_columns),
                                  .slots = (uint16_t)layer->slots_out};
    q->fixed.cores = (uint16_t)(last_core - q->fixed.core_first + 1);
    mr_status status = mr_retrieve_lay_out(&q->layout, &q->fixed, err);
    if (status == MR_OK)
        status = mr_retrieve_answer_bytes(&q->answer_bytes, &q->fixed, cell.columns,
                                          mr_storage_bytes(table->storage, cell.columns), err);
    if (status != MR_OK) return status;
    q->answer_type = mr_retrieve_answer_type(&q->fixed);
    for (int v = 0; v < VARIANTS; v++) {
        uint8_t *p = q->payload[v] = mr_alloc(q->layout.bytes);
        memcpy(p, &q->fixed, sizeof(q->fixed));
        for (uint32_t t = 0; t < tokens; t++)
            memcpy(p + q->layout.count + 4 * t, &layer->entries, 4);
        for (uint32_t j = 0; j < q->fixed.entries; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            const uint32_t row = (uint32_t)(cell.rows.first + (state >> 32) % cell.rows.count);
            memcpy(p + q->layout.row + 4 * j, &row, 4);
            if (q->layout.slot) p[q->layout.slot + j] = (uint8_t)((state >> 20) % q->fixed.slots);
        }
        for (uint32_t j = 0; j < q->fixed.entries * q->fixed.cores; j++) {
            const float weight = 1.0f + (float)(j % 5);
            memcpy(p + q->layout.weight + 4 * (size_t)j, &weight, 4);
        }
    }
    return MR_OK;
}

static mr_status ask_once(mr_link *link, const question *q, uint64_t number, mr_err *err) {
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = number};
    mr_frame frame;
    void *payload = mr_link_begin(link, &header, q->layout.bytes);
    if (!payload) return mr_fail(err, MR_ERR_LIMIT, "the link's backlog is full");
    memcpy(payload, q->payload[number % VARIANTS], q->layout.bytes);
    mr_link_end(link);
    const int64_t deadline = mr_now_ns() + 5000000000;
    for (;;) {
        mr_status status = mr_link_flush(link, err);
        if (status == MR_OK || status == MR_ERR_AGAIN) status = mr_link_receive(link, &frame, err);
        if (status == MR_OK) return mr_answer_check(&frame, q->answer_type, q->answer_bytes, err);
        if (status != MR_ERR_AGAIN) return status;
        status = mr_links_wait(&link, 1, deadline);
        if (status != MR_OK) return mr_fail(err, status, "no answer within 5 s");
    }
}

static mr_status time_link(timing *out, mr_link *link, const question *q, double seconds,
                           int64_t *sample, mr_err *err) {
    uint32_t count = 0;
    const int64_t until = mr_now_ns() + (int64_t)(seconds * 1e9);
    for (uint64_t number = 1; count < SAMPLES_MAX && mr_now_ns() < until; number++) {
        const int64_t begin = mr_now_ns();
        const mr_status status = ask_once(link, q, number, err);
        if (status != MR_OK) return status;
        sample[count++] = mr_now_ns() - begin;
    }
    *out = timing_of(sample, count);
    return MR_OK;
}

/* --- the bare ping-pong ----------------------------------------------------------------------- */

static mr_status time_bare(timing *out, bare_pair *p, double seconds, int64_t *sample,
                           mr_err *err) {
    uint32_t count = 0;
    const int64_t until = mr_now_ns() + (int64_t)(seconds * 1e9);
    while (count < SAMPLES_MAX && mr_now_ns() < until) {
        const int64_t begin = mr_now_ns();
        if (!ask_bare(p))
            return mr_fail(err, MR_ERR_IO, "the bare pair broke: %s", strerror(errno));
        sample[count++] = mr_now_ns() - begin;
    }
    *out = timing_of(sample, count);
    return MR_OK;
}

/* --- a memshard of its own -------------------------------------------------------------------- */

typedef struct {
    const char *model, *address, *fabric, *grid;
    int64_t tokens, rounds, spin_us;
    double seconds;
    bool mac;
    mr_session_key key;
} settings;

enum { ADDRESS_BYTES = 300 };

/* In the child: writes its address, then serves until it is killed. */
static mr_status serve(const settings *s, int report, mr_err *err) {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shard;
    mr_server *server;
    mr_grid grid;
    char path[ADDRESS_BYTES];
    const bool is_shm = !strcmp(s->fabric, "shm"), is_unix = !strcmp(s->fabric, "unix");
    mr_keys *keys = mr_keys_open();
    snprintf(path, sizeof(path), "unix:/tmp/mr-bench-%ld.sock", (long)getpid());
    mr_status status = mr_grid_parse(&grid, s->grid, err);
    if (status == MR_OK && s->mac) status = mr_keys_add(keys, &s->key, 0, err);
    if (status == MR_OK) status = mr_model_open(&model, s->model, err);
    if (status == MR_OK) status = mr_manifest_load(&manifest, model, NULL, NULL, err);
    if (status == MR_OK)
        status = mr_memshard_open(&shard, model, &manifest, NULL, grid, 0,
                                  grid.row_groups * grid.width_slices, err);
    if (status != MR_OK) return status;
    const mr_wire_cell cell = {0};
    const mr_server_options options = {.address = is_unix ? path : "127.0.0.1:0",
                                       .ucx = is_shm ? "127.0.0.1:0" : NULL,
                                       .role = MR_ROLE_MEMSHARD,
                                       .digest = manifest.digest,
                                       .welcome_tail = &cell,
                                       .welcome_tail_bytes = sizeof(cell),
                                       .cell_count = 1,
                                       .grid_rows = grid.row_groups,
                                       .grid_columns = grid.width_slices,
                                       .handler = mr_memshard_handle,
                                       .context = shard,
                                       .keys = keys,
                                       .is_key_required = s->mac};
    status = mr_server_open(&server, &options, err);
    if (status != MR_OK) return status;
    dprintf(report, "%s%s\n", is_shm ? "ucx:" : "",
            is_shm ? mr_server_ucx(server) : mr_server_address(server));
    close(report);
    for (;;) pause();
}

/* Before this process has threads of its own. */
static mr_status start_memshard(const settings *s, char address[ADDRESS_BYTES], pid_t *child,
                                mr_err *err) {
    int report[2];
    if (pipe(report) != 0) return mr_fail(err, MR_ERR_IO, "pipe: %s", strerror(errno));
    *child = fork();
    if (*child == 0) {
        mr_err why = {{0}};
        close(report[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve(s, report[1], &why);
        fprintf(stderr, "bench_roundtrip: memshard: %s\n", why.text);
        _exit(1);
    }
    close(report[1]);
    FILE *file = fdopen(report[0], "r");
    const bool good = file && fgets(address, ADDRESS_BYTES, file);
    if (file) fclose(file);
    if (!good) return mr_fail(err, MR_ERR_UNAVAILABLE, "the memshard did not start");
    address[strcspn(address, "\n")] = '\0';
    return MR_OK;
}

/* --- all together ----------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double middle(double *values, size_t count) {
    qsort(values, count, sizeof(*values), by_value);
    return values[count / 2];
}

static mr_status measure(const settings *s, mr_link *link, mr_link *loop, const question *q,
                         mr_err *err) {
    enum { ROUNDS_MAX = 99 };
    double remote[ROUNDS_MAX], remote99[ROUNDS_MAX], bare[ROUNDS_MAX], bare99[ROUNDS_MAX],
        local[ROUNDS_MAX], ratio[ROUNDS_MAX];
    bare_pair pair = {.fabric = s->fabric,
                      .up = sizeof(mr_wire_header) + q->layout.bytes,
                      .down = sizeof(mr_wire_header) + q->answer_bytes,
                      .spins = s->spin_us > 0};
    int64_t *sample = mr_alloc_array(SAMPLES_MAX, sizeof(*sample));
    mr_status status = open_bare(&pair, err);
    const size_t rounds = (size_t)s->rounds;
    for (size_t i = 0; i < rounds && status == MR_OK; i++) {
        timing far = {0}, plain = {0}, near = {0};
        status = time_link(&far, link, q, s->seconds, sample, err);
        if (status == MR_OK) status = time_bare(&plain, &pair, s->seconds, sample, err);
        if (status == MR_OK) status = time_link(&near, loop, q, s->seconds / 2, sample, err);
        if (status != MR_OK) break;
        remote[i] = far.p50_us;
        remote99[i] = far.p99_us;
        bare[i] = plain.p50_us;
        bare99[i] = plain.p99_us;
        local[i] = near.p50_us;
        ratio[i] = far.p50_us / plain.p50_us;
    }
    if (status == MR_OK) {
        const double far = middle(remote, rounds), plain = middle(bare, rounds),
                     near = middle(local, rounds);
        if (!s->address)
            printf("%s,%s,%d,", mr_link_transport(link), s->mac ? "yes" : "no", (int)s->spin_us);
        printf("%u,%u,%u,%u,%zu,%zu,%.1f,%.1f,%.1f,%.1f,%.1f,%.2f,%.1f\n", q->fixed.tokens,
               q->fixed.entries, q->fixed.slots, q->fixed.accumulator_bits, pair.up, pair.down, far,
               middle(remote99, rounds), plain, middle(bare99, rounds), near, middle(ratio, rounds),
               far - plain - near);
    }
    close_bare(&pair);
    free(sample);
    return status;
}

static mr_status run(const settings *s, const char *address, mr_err *err) {
    static uint8_t welcome[WELCOME_BYTES];
    mr_model *model = NULL;
    mr_manifest manifest = {0};
    mr_memshard *shard = NULL;
    mr_link *link = NULL, *loop = NULL;
    question q = {0};
    size_t bytes;
    mr_welcome_view view;
    const int64_t deadline = mr_now_ns() + 5000000000;
    mr_status status = mr_model_open(&model, s->model, err);
    if (status != MR_OK) return status;
    if (mr_model_memory_count(model) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has no memory layers", s->model);
    if (status == MR_OK) status = mr_manifest_load(&manifest, model, NULL, NULL, err);
    if (status == MR_OK) status = mr_link_connect(&link, address, deadline, err);
    if (status == MR_OK && s->mac) mr_link_set_key(link, &s->key);
    const mr_session_hello hello = {MR_ROLE_WORKER, MR_ROLE_MEMSHARD, manifest.digest};
    if (status == MR_OK)
        status = mr_session_open(link, &hello, deadline, welcome, sizeof(welcome), &bytes, err);
    if (status == MR_OK) status = mr_welcome_check(&view, welcome, bytes, err);
    if (status != MR_OK) goto close_all;
    const mr_grid grid = {view.fixed->grid_rows, view.fixed->grid_columns};
    const uint32_t shards = grid.row_groups * grid.width_slices; /* this one holds cell 0 only */
    status = make_question(&q, model, &manifest, grid, (uint32_t)s->tokens, err);
    if (status == MR_OK)
        status = mr_memshard_open(&shard, model, &manifest, NULL, grid, 0, shards, err);
    if (status == MR_OK) {
        loop = mr_link_loop(mr_memshard_handle, shard, "here");
        status = measure(s, link, loop, &q, err);
    }
close_all:
    mr_link_close(loop);
    mr_memshard_close(shard);
    mr_link_close(link);
    for (int v = 0; v < VARIANTS; v++) free(q.payload[v]);
    mr_manifest_free(&manifest);
    mr_model_close(model);
    return status;
}

int main(int argc, char **argv) {
    settings s = {.tokens = 1, .rounds = 7, .seconds = 0.5, .fabric = "tcp", .grid = "1x1"};
    const mr_option options[] = {
        {"model", 0, MR_OPT_TEXT, &s.model, 0, 0, "DIR", "the model the memshard has"},
        {"connect", 0, MR_OPT_TEXT, &s.address, 0, 0, "ADDR",
         "of a running memshard with cell 0 (else one is started)"},
        {"fabric", 0, MR_OPT_TEXT, &s.fabric, 0, 0, "NAME", "tcp, unix or shm (tcp)"},
        {"grid", 0, MR_OPT_TEXT, &s.grid, 0, 0, "GxW", "of the memshard that is started (1x1)"},
        {"mac", 0, MR_OPT_FLAG, &s.mac, 0, 0, NULL, "a MAC on every frame"},
        {"spin-us", 0, MR_OPT_INT, &s.spin_us, 0, 1000000, "N", "look so long before sleeping (0)"},
        {"tokens", 0, MR_OPT_INT, &s.tokens, 1, 4096, "N", "tokens a request (1)"},
        {"rounds", 0, MR_OPT_INT, &s.rounds, 1, 99, "N", "rounds of all three (7)"},
        {"seconds", 0, MR_OPT_DOUBLE, &s.seconds, 0.01, 60, "S", "length of a round (0.5)"},
        {0}};
    const mr_command_spec spec = {
        "bench_roundtrip --model DIR [--connect ADDR | --fabric NAME] [options]",
        "Prints "
        "[transport,mac,spin_us,]tokens,rows,slots,accumulator_bits,bytes_up,bytes_down,retrieve_"
        "p50_us,\n"
        "retrieve_p99_us,bare_p50_us,bare_p99_us,shard_work_p50_us,retrieve_to_bare,rest_us.",
        options, 0, 0};
    mr_err err = {{0}};
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    if (status == MR_OK && !s.model)
        status = mr_fail(&err, MR_ERR_ARGUMENT, "--model is needed; try --help");
    if (status == MR_OK && s.address && s.mac)
        status = mr_fail(&err, MR_ERR_ARGUMENT, "--mac needs a memshard of its own");
    mr_float_environment();
    mr_fabric_set_spin((uint32_t)s.spin_us);
    char address[ADDRESS_BYTES] = {0};
    pid_t child = -1;
    if (status == MR_OK) status = mr_key_make(&s.key, &err);
    if (status == MR_OK && !s.address) status = start_memshard(&s, address, &child, &err);
    if (status == MR_OK) status = run(&s, s.address ? s.address : address, &err);
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    if (!s.address && strncmp(address, "unix:", 5) == 0) unlink(address + 5);
    if (status == MR_OK) return 0;
    fprintf(stderr, "bench_roundtrip: %s\n", err.text);
    return 1;
}
