/* duplicates.c - what is a row that several tokens of a batch ask for worth?
 *
 * Rows are drawn from a table much larger than the last-level cache, evenly or by Zipf's law. Each
 * batch is pooled in three ways, in turn: as it comes (token by token: the accumulator of a token
 * stays in the first cache, a row asked for again is in a cache if it was used not long ago);
 * packed (each distinct row is copied once, then pooled from the copy); and row by row (entries
 * sorted by row: each row is loaded once and added for each of its users). All give the same sums.
 * The time to find the duplicates is part of the last two. Rates are per second of processor time.
 * One CSV line a skew on stdout; --help says the columns. */
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/model/random_fill.h"
#include "common/ops/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { WAYS = 3, BATCHES_MAX = 64 };

typedef struct {
    const mr_ops *ops;
    mr_rows rows;
    uint32_t tokens, per_token, slots, entries, batches;
    uint32_t *row[BATCHES_MAX]; /* [entries] */
    uint8_t *slot;              /* [entries] */
    uint32_t *count;            /* [tokens] */
    float *weight;              /* [entries] */
    int32_t *acc[WAYS];         /* [tokens][slots][columns] */
    uint8_t *packed;            /* [entries] rows */
    uint32_t *table;            /* hash of rows to places, [table_mask + 1] */
    uint32_t table_mask;
    uint32_t *place, *first_of; /* [entries] */
    uint64_t *order;            /* [entries] row << 32 | entry */
    uint64_t *order_room;
} bench;

static size_t acc_bytes(const bench *b) {
    return (size_t)b->tokens * b->slots * b->rows.columns * sizeof(int32_t);
}

static mr_pool_args args_of(const bench *b, const mr_rows *rows, const uint32_t *row) {
    return (mr_pool_args){.rows = *rows,
                          .tokens = b->tokens,
                          .entries = b->entries,
                          .count = b->count,
                          .row = row,
                          .slot = b->slots > 1 ? b->slot : NULL,
                          .weight = b->weight,
                          .weight_stride = b->entries,
                          .slots = b->slots,
                          .core_columns = b->rows.columns};
}

static void as_it_comes(bench *b, const uint32_t *row, int32_t *acc) {
    const mr_pool_args args = args_of(b, &b->rows, row);
    b->ops->pool32(acc, &args);
}

/* place[j]: which of the distinct rows entry j asks for. Returns how many there are. */
static uint32_t find_distinct(bench *b, const uint32_t *row) {
    uint32_t distinct = 0;
    memset(b->table, 0xff, (b->table_mask + 1ull) * sizeof(*b->table));
    for (uint32_t j = 0; j < b->entries; j++) {
        uint32_t at = row[j] * 2654435761u & b->table_mask;
        while (b->table[at] != UINT32_MAX && b->first_of[b->table[at]] != row[j])
            at = (at + 1) & b->table_mask;
        if (b->table[at] == UINT32_MAX) {
            b->first_of[distinct] = row[j];
            b->table[at] = distinct++;
        }
        b->place[j] = b->table[at];
    }
    return distinct;
}

static void packed(bench *b, const uint32_t *row, int32_t *acc) {
    const uint32_t distinct = find_distinct(b, row);
    const size_t bytes = b->rows.stride;
    const uint8_t *from = b->rows.data;
    mr_rows rows = b->rows;
    for (uint32_t i = 0; i < distinct; i++) {
        const uint32_t later = b->first_of[i + 8 < distinct ? i + 8 : i];
        for (size_t line = 0; line < bytes; line += 64)
            __builtin_prefetch(from + later * bytes + line, 0, 2);
        memcpy(b->packed + i * bytes, from + b->first_of[i] * bytes, bytes);
    }
    rows.data = b->packed;
    rows.row_count = distinct;
    const mr_pool_args args = args_of(b, &rows, b->place);
    b->ops->pool32(acc, &args);
}

static void sort_by_row(bench *b, const uint32_t *row) {
    for (uint32_t j = 0; j < b->entries; j++) b->order[j] = (uint64_t)row[j] << 32 | j;
    for (uint32_t shift = 32; shift < 64; shift += 8) { /* radix sort */
        uint32_t start[257] = {0};
        for (uint32_t j = 0; j < b->entries; j++) start[(b->order[j] >> shift & 255) + 1]++;
        for (uint32_t i = 0; i < 256; i++) start[i + 1] += start[i];
        for (uint32_t j = 0; j < b->entries; j++)
            b->order_room[start[b->order[j] >> shift & 255]++] = b->order[j];
        uint64_t *swap = b->order;
        b->order = b->order_room;
        b->order_room = swap;
    }
}

static void row_by_row(bench *b, const uint32_t *row, int32_t *acc) {
    static const uint32_t one = 1;
    const size_t bytes = b->rows.stride;
    mr_pool_args args = args_of(b, &b->rows, row);
    sort_by_row(b, row);
    args.tokens = args.entries = 1;
    args.count = &one;
    args.slot = NULL;
    args.slots = 1;
    for (uint32_t i = 0; i < b->entries; i++) {
        const uint32_t j = (uint32_t)b->order[i];
        const uint32_t later = row[(uint32_t)b->order[i + 12 < b->entries ? i + 12 : i]];
        for (size_t line = 0; line < bytes; line += 64)
            __builtin_prefetch((const uint8_t *)b->rows.data + later * bytes + line, 0, 2);
        const uint32_t slot = b->slots > 1 ? b->slot[j] : 0;
        args.row = row + j;
        args.weight = b->weight + j;
        b->ops->pool32(acc + ((size_t)j / b->per_token * b->slots + slot) * b->rows.columns, &args);
    }
}

/* --- what is asked for ------------------------------------------------------------------------ */

/* The rank of a draw u in [0, 1) of Zipf's law over rows, by its continuous form. */
static uint64_t rank_of(double u, double skew, uint64_t rows) {
    const double n = (double)rows;
    double x = u * n;
    if (skew > 0) x = pow(u * (pow(n, 1 - skew) - 1) + 1, 1 / (1 - skew)) - 1;
    return x < n ? (uint64_t)x : rows - 1;
}

static double fill(bench *b, double skew) {
    uint64_t seed = 7, distinct = 0;
    for (uint32_t i = 0; i < b->batches; i++) {
        for (uint32_t j = 0; j < b->entries; j++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            const uint64_t rank = rank_of((double)(seed >> 11) * 0x1p-53, skew, b->rows.row_count);
            b->row[i][j] = (uint32_t)(rank * 0x9E3779B1ull % b->rows.row_count); /* anywhere */
        }
        distinct += find_distinct(b, b->row[i]);
    }
    return 1 - (double)distinct / ((double)b->entries * b->batches);
}

/* Of this thread's own time: a busy machine shall not count. */
static int64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static double rate(bench *b, int way, double seconds) {
    static void (*const ways[WAYS])(bench *, const uint32_t *, int32_t *) = {as_it_comes, packed,
                                                                             row_by_row};
    uint64_t done = 0;
    uint32_t i = 0;
    const int64_t began = cpu_ns(), end = began + (int64_t)(seconds * 1e9);
    do {
        memset(b->acc[way], 0, acc_bytes(b));
        ways[way](b, b->row[i++ % b->batches], b->acc[way]);
        done += b->entries;
    } while (cpu_ns() < end);
    return (double)done * 1e3 / (double)(cpu_ns() - began);
}

static int measure(bench *b, double skew, double seconds) {
    double best[WAYS] = {0};
    const double duplicates = fill(b, skew);
    for (int way = 0; way < WAYS; way++) rate(b, way, 0.001); /* one batch at least: the first */
    for (int way = 0; way < WAYS; way++) {
        memset(b->acc[way], 0, acc_bytes(b));
        rate(b, way, 0);
        if (memcmp(b->acc[way], b->acc[0], acc_bytes(b)) != 0) {
            fprintf(stderr, "bench_duplicates: way %d gives other sums\n", way);
            return 1;
        }
    }
    for (int round = 0; round < 5; round++)
        for (int way = 0; way < WAYS; way++) {
            const double now = rate(b, way, seconds / 5);
            if (now > best[way]) best[way] = now;
        }
    printf("%s,%zu,%u,%u,%u,%.1f,%.3f,%.2f,%.2f,%.2f\n", b->ops->name,
           b->rows.columns * (size_t)mr_element_bytes(b->rows.storage.element), b->tokens,
           b->per_token, b->slots, skew, duplicates, best[0], best[1], best[2]);
    return 0;
}

static void *room(size_t count, size_t bytes) {
    void *out;
    mr_err err;
    if (mr_try_alloc(&out, count, bytes, "the benchmark", &err) == MR_OK) return out;
    fprintf(stderr, "bench_duplicates: %s\n", err.text);
    exit(1);
}

static void prepare(bench *b, uint64_t table_bytes) {
    uint64_t seed = 3;
    void *table =
        mmap(NULL, table_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED) {
        perror("bench_duplicates: table");
        exit(1);
    }
    madvise(table, table_bytes, MADV_HUGEPAGE);
    for (uint64_t i = 0; i < table_bytes / 2; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        ((uint16_t *)table)[i] = mr_f32_to_bf16((float)(int32_t)(seed >> 32) * 0x1p-31f);
    }
    b->rows.data = table;
    b->entries = b->tokens * b->per_token;
    b->batches = 1 + (1u << 18) / b->entries;
    if (b->batches > BATCHES_MAX) b->batches = BATCHES_MAX;
    for (uint32_t i = 0; i < b->batches; i++) b->row[i] = room(b->entries, sizeof(uint32_t));
    for (b->table_mask = 1; b->table_mask < 2 * b->entries;) b->table_mask = 2 * b->table_mask + 1;
    b->table = room(b->table_mask + 1ull, sizeof(*b->table));
    b->slot = room(b->entries, 1);
    b->count = room(b->tokens, sizeof(*b->count));
    b->weight = room(b->entries, sizeof(*b->weight));
    b->place = room(b->entries, sizeof(*b->place));
    b->first_of = room(b->entries, sizeof(*b->first_of));
    b->order = room(b->entries, sizeof(*b->order));
    b->order_room = room(b->entries, sizeof(*b->order));
    b->packed = room(b->entries, b->rows.stride);
    for (int way = 0; way < WAYS; way++) b->acc[way] = room(acc_bytes(b), 1);
    for (uint32_t t = 0; t < b->tokens; t++) b->count[t] = b->per_token;
    for (uint32_t j = 0; j < b->entries; j++) {
        b->slot[j] = (uint8_t)(j % b->slots);
        b->weight[j] = (float)(j % 1000) * 1e3f + 1;
    }
}

int main(int argc, char **argv) {
    const char *isa = NULL;
    int64_t mib = 1024, width = 1024, tokens = 32, k = 84, slots = 1;
    double seconds = 0.5;
    const mr_option options[] = {
        {"width", 0, MR_OPT_INT, &width, 1, 1 << 16, "N", "bf16 elements of a row (1024)"},
        {"table-mib", 0, MR_OPT_INT, &mib, 1, 1 << 20, "N", "size of the table (1024)"},
        {"tokens", 0, MR_OPT_INT, &tokens, 1, 4096, "N", "tokens of a batch (32)"},
        {"entries", 0, MR_OPT_INT, &k, 1, 1024, "N", "rows a token reads (84)"},
        {"slots", 0, MR_OPT_INT, &slots, 1, 16, "N", "expansion slots (1)"},
        {"seconds", 0, MR_OPT_DOUBLE, &seconds, 0.01, 60, "S", "for each way and skew (0.5)"},
        {"isa", 0, MR_OPT_TEXT, &isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon (the best there is)"},
        {0}};
    const mr_command_spec spec = {
        "bench_duplicates [options]",
        "Prints isa,row_bytes,tokens,entries,slots,skew,duplicates,as_it_comes_mrows_s,\n"
        "packed_mrows_s,row_by_row_mrows_s (best of 5) for skews 0, 0.8 and 1.2.",
        options, 0, 0};
    int count;
    mr_err err = {{0}};
    const mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    bench b = {.ops = mr_ops_find(isa),
               .rows = {.storage = {MR_BF16, 0},
                        .row_count = ((uint64_t)mib << 20) / ((uint64_t)width * 2),
                        .stride = (size_t)width * 2,
                        .columns = (uint32_t)width},
               .tokens = (uint32_t)tokens,
               .per_token = (uint32_t)k,
               .slots = (uint32_t)slots};
    if (status != MR_OK || !b.ops) {
        fprintf(stderr, "bench_duplicates: %s\n", status == MR_OK ? "no such --isa" : err.text);
        return 2;
    }
    prepare(&b, (uint64_t)mib << 20);
    const double skews[] = {0, 0.8, 1.2};
    for (int i = 0; i < 3; i++)
        if (measure(&b, skews[i], seconds) != 0) return 1;
    return 0;
}
