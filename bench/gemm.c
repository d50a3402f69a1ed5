/* gemm.c - how fast is one product with packed weights, for every storage type and batch?
 *
 * A matrix of --columns outputs and --depth inputs, several copies of it so that weights come from
 * memory and not from a cache, is multiplied with 1, 4, 16, 64 and 512 rows by --threads threads,
 * as the engine does it (prepare, then panels over the team). Beside each row of the table stands
 * what the machine gives in the same run: the rate at which it reads memory in a row, and the rate
 * of independent fused multiply-adds. Minimum of --rounds. Threads: this one and the team. */
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/ops/packed.h"
#include "common/ops/team.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 512 };

typedef struct {
    const char *backend;
    int64_t columns, depth, threads, rounds, copies;
} settings;

typedef struct {
    const mr_ops *ops;
    mr_packed w;
    float *x, *y;
    uint8_t *prepared;
    size_t prepared_bytes;
    uint32_t m;
} product;

static void prepare(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const product *p = context;
    (void)member;
    p->ops->prepare(p->prepared + first * p->prepared_bytes, p->x + (size_t)first * p->w.k, p->w.k,
                    count, &p->w);
}

static void multiply(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const product *p = context;
    (void)member;
    p->ops->gemm(p->y, p->w.n, p->x, p->w.k, p->prepared, p->m, &p->w, first, count);
}

typedef struct {
    const uint64_t *words;
    size_t each;
    uint64_t sum[MR_MAX_THREADS];
} reading;

static void read_part(void *context, uint32_t member, uint32_t first, uint32_t count) {
    reading *r = context;
    uint64_t sum = 0;
    for (size_t i = first * r->each; i < (first + count) * r->each; i++) sum += r->words[i];
    r->sum[member] += sum;
}

static double read_rate(mr_team *team, int64_t rounds) {
    enum { PARTS = 64 };
    const size_t bytes = 256u << 20;
    static reading r;
    double best = 0;
    uint64_t *data = mr_alloc_array(bytes, 1);
    memset(data, 1, bytes);
    r.words = data;
    r.each = bytes / sizeof(uint64_t) / PARTS;
    for (int64_t i = 0; i < rounds; i++) {
        const int64_t begin = mr_now_ns();
        mr_team_run(team, read_part, &r, PARTS);
        const double rate = (double)bytes / (double)(mr_now_ns() - begin);
        if (rate > best) best = rate;
    }
    free(data);
    return best;
}

/* The storage type's own codes of small random numbers; all copies alike. */
static void fill(const mr_packed *w, mr_storage storage, uint64_t bytes, int64_t copies) {
    const uint64_t row_bytes = mr_storage_bytes(storage, w->k);
    float *x = mr_alloc_array(w->k, sizeof(float));
    const float tiles[256] = {0};
    uint8_t *row = mr_alloc_array(row_bytes, 1);
    uint64_t state = 1;
    mr_packed_clear(w);
    for (uint32_t n = 0; n < w->n; n++) {
        if (n < 64) {
            for (uint32_t k = 0; k < w->k; k++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                x[k] = (float)(int32_t)(state >> 32) * 0x1p-33f;
            }
            mr_storage_encode(row, x, storage, w->k, storage.block == MR_TILE_BLOCK ? tiles : NULL);
        }
        mr_packed_put_row(w, n, row, storage);
    }
    for (int64_t i = 1; i < copies; i++)
        memcpy((uint8_t *)(uintptr_t)w->data + (uint64_t)i * bytes, w->data, bytes);
    free(x);
    free(row);
}

static void measure(const settings *s, product *p, mr_team *team, mr_storage_type type,
                    double rate) {
    const mr_storage storage = mr_storage_of(type);
    static const uint32_t rows[] = {1, 4, 16, 64, 512};
    p->w = (mr_packed){.element = storage.element,
                       .block = storage.block,
                       .n = (uint32_t)s->columns,
                       .k = (uint32_t)s->depth};
    const uint64_t bytes = mr_packed_data_bytes(storage.element, p->w.n, p->w.k);
    const uint64_t scales = mr_packed_scale_bytes(storage.block, p->w.n, p->w.k);
    uint8_t *data = aligned_alloc(64, (size_t)bytes * (size_t)s->copies);
    p->w.data = data;
    p->w.scales = mr_alloc_array(scales + 1, 1);
    fill(&p->w, storage, bytes, s->copies);
    p->prepared_bytes = p->ops->prepared_bytes(&p->w);
    p->prepared = aligned_alloc(64, ROWS_MAX * p->prepared_bytes + 64);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int64_t best = INT64_MAX;
        p->m = rows[i];
        for (int64_t round = 0; round < s->rounds; round++) {
            p->w.data = data + (uint64_t)(round % s->copies) * bytes;
            const int64_t begin = mr_now_ns();
            if (p->prepared_bytes) mr_team_run(team, prepare, p, p->m);
            mr_team_run(team, multiply, p, mr_packed_panels(&p->w));
            const int64_t took = mr_now_ns() - begin;
            if (took < best) best = took;
        }
        const double gb_s = (double)(bytes + scales) / (double)best;
        printf("%s,%s,%u,%u,%u,%u,%.1f,%.2f,%.2f,%.1f\n", p->ops->name, mr_storage_name(type),
               mr_team_size(team), p->m, p->w.n, p->w.k, (double)best * 1e-3, gb_s, gb_s / rate,
               2.0 * p->m * p->w.n * p->w.k / (double)best);
        fflush(stdout);
    }
    free(p->prepared);
    free(data);
    free((void *)(uintptr_t)p->w.scales);
}

int main(int argc, char **argv) {
    settings s = {.columns = 4096, .depth = 2048, .rounds = 12, .copies = 6};
    const mr_option options[] = {
        {"ops", 0, MR_OPT_TEXT, &s.backend, 0, 0, "NAME", "backend (the best there is)"},
        {"columns", 0, MR_OPT_INT, &s.columns, 32, 1 << 20, "N", "outputs (4096)"},
        {"depth", 0, MR_OPT_INT, &s.depth, 32, 32768, "N", "inputs (2048)"},
        {"threads", 0, MR_OPT_INT, &s.threads, 0, MR_MAX_THREADS, "N", "threads (0: all cores)"},
        {"rounds", 0, MR_OPT_INT, &s.rounds, 1, 1000, "N", "repetitions (12)"},
        {"copies", 0, MR_OPT_INT, &s.copies, 1, 64, "N", "copies of the matrix (6)"},
        {0}};
    const mr_command_spec spec = {
        "bench_gemm [options]",
        "Prints backend,storage,threads,rows,columns,depth,us,weights_gb_s,of_read_rate,gflop_s.",
        options, 0, 0};
    mr_err err = {{0}};
    mr_team *team = NULL;
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    product p = {.ops = mr_ops_find(s.backend)};
    if (status == MR_OK && !p.ops) status = mr_fail(&err, MR_ERR_ARGUMENT, "no such backend");
    if (status == MR_OK) status = mr_team_open(&team, (uint32_t)s.threads, &err);
    if (status != MR_OK) {
        fprintf(stderr, "bench_gemm: %s\n", err.text);
        return 1;
    }
    p.x = mr_alloc_array(ROWS_MAX * (uint64_t)s.depth, sizeof(float));
    p.y = mr_alloc_array(ROWS_MAX * (uint64_t)s.columns, sizeof(float));
    for (int64_t i = 0; i < ROWS_MAX * s.depth; i++) p.x[i] = (float)(i % 37) * 0.03f - 0.5f;
    const double rate = read_rate(team, s.rounds);
    printf("# reads memory at %.2f GB/s\n", rate);
    for (int type = 0; type < MR_STORE_COUNT; type++)
        measure(&s, &p, team, (mr_storage_type)type, rate);
    free(p.x);
    free(p.y);
    mr_team_close(team);
    return 0;
}
