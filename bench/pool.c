/* pool.c - how fast are rows pooled, measured against only reading them?
 *
 * A table much larger than the last-level cache is filled once. Then three things run in turn over
 * the same random row ids, round by round: the product's pool32 (weigh, convert, add into int32); a
 * plain loop that adds up the bytes of the same rows, one row after the other; and the same with
 * four rows side by side. Both loops use the widest loads of the same instruction set and the
 * prefetch that suits them best, found by trying. What limits all of them is how many cache lines a
 * core can have on their way; the ratios say what the arithmetic costs on top. One CSV line on
 * stdout (bench/pool.py adds machine and commit); --help says the columns.
 * Threads: --threads workers, each with its own ids and accumulators; they share only the table. */
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/model/random_fill.h"
#include "common/ops/ops.h"
#include "common/ops/team.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { IDS = 1 << 19, THREADS_MAX = 64, ROUNDS_MAX = 99 };

typedef struct {
    const mr_ops *ops;
    mr_rows rows;
    uint32_t tokens, entries_per_token, slots;
    double seconds;
    bool huge, alone;
} bench;

/* Adds up the bytes of GROUP or one rows as 64-bit words, asking line by line for as many later
 * rows: into the first-level cache or into the second. One at a time is the plain loop; GROUP at a
 * time keeps more lines under way. */
enum { GROUP = 4 };
typedef uint64_t (*reader)(const uint8_t *const row[GROUP], const uint8_t *const next[GROUP],
                           size_t bytes);

#define LINE_LOOP(ROWS, HINT, ...)                                                                 \
    for (; at + 64 <= bytes; at += 64)                                                             \
        for (int i = 0; i < ROWS; i++) {                                                           \
            __builtin_prefetch(next[i] + at, 0, HINT);                                             \
            __VA_ARGS__                                                                            \
        }
#define READER(NAME, TARGET, ROWS, HINT, BEGIN, LINE, END)                                         \
    TARGET static uint64_t NAME(const uint8_t *const row[GROUP], const uint8_t *const next[GROUP], \
                                size_t bytes) {                                                    \
        size_t at = 0;                                                                             \
        uint64_t sum = 0;                                                                          \
        BEGIN LINE_LOOP(ROWS, HINT, LINE)                                                          \
            END for (; at < bytes; at++) for (int i = 0; i < ROWS; i++) sum += row[i][at];         \
        return sum;                                                                                \
    }
/* NAME[grouped][level - 1] */
#define READERS(NAME, TARGET, BEGIN, LINE, END)                                                    \
    READER(NAME##_one_l1, TARGET, 1, 3, BEGIN, LINE, END)                                          \
    READER(NAME##_one_l2, TARGET, 1, 2, BEGIN, LINE, END)                                          \
    READER(NAME##_group_l1, TARGET, GROUP, 3, BEGIN, LINE, END)                                    \
    READER(NAME##_group_l2, TARGET, GROUP, 2, BEGIN, LINE, END)                                    \
    static const reader NAME[2][2] = {{NAME##_one_l1, NAME##_one_l2},                              \
                                      {NAME##_group_l1, NAME##_group_l2}};

#define WORDS_LINE                                                                                 \
    uint64_t word[8];                                                                              \
    memcpy(word, row[i] + at, 64);                                                                 \
    for (int w = 0; w < 8; w++) sum += word[w];
READERS(read_words, , , WORDS_LINE, )

#if defined(__x86_64__)
#define AVX512_LINE total = _mm512_add_epi64(total, _mm512_loadu_si512(row[i] + at));
#define AVX512_BEGIN __m512i total = _mm512_setzero_si512();
#define AVX512_END sum = (uint64_t)_mm512_reduce_add_epi64(total);
READERS(read_avx512, __attribute__((target("avx512f"))), AVX512_BEGIN, AVX512_LINE, AVX512_END)

#define AVX2_HALF(AT) _mm256_loadu_si256((const __m256i *)(const void *)(row[i] + (AT)))
#define AVX2_LINE                                                                                  \
    total = _mm256_add_epi64(total, _mm256_add_epi64(AVX2_HALF(at), AVX2_HALF(at + 32)));
#define AVX2_BEGIN __m256i total = _mm256_setzero_si256();
#define AVX2_END                                                                                   \
    uint64_t part[4];                                                                              \
    _mm256_storeu_si256((__m256i *)(void *)part, total);                                           \
    for (int w = 0; w < 4; w++) sum += part[w];
READERS(read_avx2, __attribute__((target("avx2"))), AVX2_BEGIN, AVX2_LINE, AVX2_END)
#endif

/* How the reading loop goes about it. */
typedef struct {
    int grouped, level; /* level: cache asked into, 1 or 2 */
    uint32_t ahead;     /* rows between asking and reading */
} manner;

typedef struct {
    const bench *bench;
    pthread_barrier_t *barrier;
    manner manner; /* of reading; level 0: pool instead */
    uint32_t *id;
    float *weight;
    uint32_t *count;
    uint8_t *slot;
    int32_t *acc;
    uint64_t rows_done, sum;
    int64_t began_ns, ended_ns;
} lane;

static reader reader_of(const mr_ops *ops, manner m) {
#if defined(__x86_64__)
    if (strcmp(ops->name, "avx512") == 0) return read_avx512[m.grouped][m.level - 1];
    if (strcmp(ops->name, "avx2") == 0) return read_avx2[m.grouped][m.level - 1];
#endif
    (void)ops;
    return read_words[m.grouped][m.level - 1];
}

static const uint8_t *row_at(const mr_rows *rows, uint32_t id) {
    const size_t row_bytes = rows->stride;
    return (const uint8_t *)rows->data + (size_t)id * row_bytes;
}

static void read_rows(lane *self, uint32_t first, uint32_t count) {
    const bench *b = self->bench;
    const manner m = self->manner;
    const reader read = reader_of(b->ops, m);
    const uint32_t step = m.grouped ? GROUP : 1;
    const size_t bytes = b->rows.stride;
    for (uint32_t j = first; j + step <= first + count; j += step) {
        const uint8_t *row[GROUP], *next[GROUP];
        for (uint32_t i = 0; i < step; i++) {
            const uint32_t later = j + i + m.ahead;
            row[i] = row_at(&b->rows, self->id[j + i]);
            next[i] = row_at(&b->rows, self->id[later < IDS ? later : j + i]);
        }
        self->sum += read(row, next, bytes);
    }
}

static void pool_rows(lane *self, uint32_t first, uint32_t count) {
    const bench *b = self->bench;
    const size_t acc_bytes = (size_t)b->tokens * b->slots * b->rows.columns * sizeof(int32_t);
    const mr_pool_args args = {.rows = b->rows,
                               .tokens = b->tokens,
                               .entries = count,
                               .count = self->count,
                               .row = self->id + first,
                               .slot = b->slots > 1 ? self->slot + first : NULL,
                               .weight = self->weight,
                               .weight_stride = count,
                               .slots = b->slots,
                               .core_columns = b->rows.columns};
    memset(self->acc, 0, acc_bytes);
    b->ops->pool32(self->acc, &args);
    self->sum += (uint64_t)self->acc[0];
}

static void *run_lane(void *argument) {
    lane *self = argument;
    const bench *b = self->bench;
    const uint32_t call = b->tokens * b->entries_per_token;
    mr_float_environment();
    pthread_barrier_wait(self->barrier);
    self->began_ns = self->ended_ns = mr_now_ns();
    const int64_t until = self->began_ns + (int64_t)(b->seconds * 1e9);
    self->rows_done = 0;
    for (uint32_t first = 0; self->ended_ns < until;) {
        for (int i = 0; i < 8; i++) {
            if (self->manner.level == 0)
                pool_rows(self, first, call);
            else
                read_rows(self, first, call);
            first = first + 2 * call <= IDS ? first + call : 0;
            self->rows_done += call;
        }
        self->ended_ns = mr_now_ns();
    }
    return NULL;
}

/* Rows per second of all threads together. */
static double rate(lane *lanes, uint32_t threads, manner m) {
    pthread_t handle[THREADS_MAX];
    pthread_barrier_t barrier;
    double rows = 0;
    int64_t first = INT64_MAX, last = 0;
    pthread_barrier_init(&barrier, NULL, threads);
    for (uint32_t i = 0; i < threads; i++) {
        lanes[i].barrier = &barrier;
        lanes[i].manner = m;
        if (pthread_create(&handle[i], NULL, run_lane, &lanes[i]) != 0) abort();
    }
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(handle[i], NULL);
        rows += (double)lanes[i].rows_done;
        if (lanes[i].began_ns < first) first = lanes[i].began_ns;
        if (lanes[i].ended_ns > last) last = lanes[i].ended_ns;
    }
    pthread_barrier_destroy(&barrier);
    return rows / ((double)(last - first) * 1e-9);
}

static void open_lane(lane *self, const bench *b, uint32_t index) {
    const uint32_t call = b->tokens * b->entries_per_token;
    uint64_t state = 0x9e3779b97f4a7c15u * (index + 1);
    *self = (lane){.bench = b};
    self->id = mr_alloc_array(IDS, sizeof(*self->id));
    self->slot = mr_alloc(IDS);
    self->weight = mr_alloc_array(call, sizeof(*self->weight));
    self->count = mr_alloc_array(b->tokens, sizeof(*self->count));
    self->acc = mr_alloc_array((size_t)b->tokens * b->slots * b->rows.columns, sizeof(*self->acc));
    for (uint32_t i = 0; i < IDS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self->id[i] = (uint32_t)((state >> 20) % b->rows.row_count);
        self->slot[i] = (uint8_t)((state >> 8) % b->slots);
    }
    for (uint32_t i = 0; i < call; i++)
        self->weight[i] = (float)(i % 7 + 1) * 0x1p18f; /* sums stay far below 2^31 */
    for (uint32_t i = 0; i < b->tokens; i++) self->count[i] = b->entries_per_token;
}

static void close_lane(lane *self) {
    free(self->id);
    free(self->slot);
    free(self->weight);
    free(self->count);
    free(self->acc);
}

/* Some thousand rows, repeated: enough for reading. */
static void fill_table(void *table, const mr_rows *rows) {
    enum { ROWS = 1 << 12 };
    const mr_random random = mr_random_for(1, "table");
    float *value = mr_alloc_array(rows->columns, sizeof(*value));
    for (uint64_t row = 0; row < rows->row_count; row++) {
        uint8_t *to = (uint8_t *)table + row * rows->stride;
        if (row >= ROWS) {
            memcpy(to, to - ROWS * rows->stride, rows->stride);
            continue;
        }
        mr_random_normal(value, &random, row * rows->columns, rows->columns, 0, 1);
        mr_storage_encode(to, value, rows->storage, rows->columns, NULL);
    }
    free(value);
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof(*values), by_size);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* What suits a reading loop best: the cache to ask into and the distance in rows. */
static manner tune(lane *lanes, uint32_t threads, size_t row_bytes, int grouped) {
    static const uint32_t distance_bytes[] = {2048, 4096, 8192, 16384, 32768};
    manner best = {grouped, 1, GROUP};
    double best_rate = 0;
    for (int level = 1; level <= 2; level++)
        for (size_t i = 0; i < sizeof(distance_bytes) / sizeof(distance_bytes[0]); i++) {
            const manner m = {grouped, level, (uint32_t)(distance_bytes[i] / row_bytes) + GROUP};
            const double now = rate(lanes, threads, m);
            if (now <= best_rate) continue;
            best_rate = now;
            best = m;
        }
    return best;
}

static void measure(const bench *b, uint32_t threads, int rounds, uint64_t table_bytes) {
    static lane lanes[THREADS_MAX];
    double pools[ROUNDS_MAX], plains[ROUNDS_MAX], groups[ROUNDS_MAX], to_plain[ROUNDS_MAX],
        to_group[ROUNDS_MAX];
    const manner pooling = {0};
    const size_t row_bytes = b->rows.stride;
    for (uint32_t i = 0; i < threads; i++) open_lane(&lanes[i], b, i);
    const manner plain = b->alone ? pooling : tune(lanes, threads, row_bytes, 0);
    const manner group = b->alone ? pooling : tune(lanes, threads, row_bytes, 1);
    rate(lanes, threads, pooling);
    for (int i = 0; i < rounds; i++) {
        pools[i] = rate(lanes, threads, pooling);
        plains[i] = b->alone ? pools[i] : rate(lanes, threads, plain);
        groups[i] = b->alone ? pools[i] : rate(lanes, threads, group);
        to_plain[i] = pools[i] / plains[i];
        to_group[i] = pools[i] / groups[i];
    }
    const double pool = median(pools, rounds);
    printf("%s,%s,%u,%zu,%.0f,%s,%u,%u,%u,%u,%.3f,%.3f,%.3f,L%d+%u,%.3f,L%d+%u,%.3f,%.3f\n",
           b->ops->name, mr_storage_name(mr_storage_type_of(b->rows.storage)), b->rows.columns,
           row_bytes, (double)table_bytes / (1 << 20), b->huge ? "huge" : "4k", threads, b->tokens,
           b->entries_per_token, b->slots, pool / 1e6, pool * (double)row_bytes / 1e9,
           median(plains, rounds) / 1e6, plain.level, plain.ahead, median(groups, rounds) / 1e6,
           group.level, group.ahead, median(to_plain, rounds), median(to_group, rounds));
    for (uint32_t i = 0; i < threads; i++) close_lane(&lanes[i]);
}

int main(int argc, char **argv) {
    const char *isa = NULL, *element = "bf16";
    int64_t mib = 2048, width = 1024, threads = 1, tokens = 16, k = 84, slots = 1, rounds = 5;
    double seconds = 0.3;
    bool small_pages = false, alone = false;
    const mr_option options[] = {
        {"element", 0, MR_OPT_TEXT, &element, 0, 0, "TYPE",
         "a storage type: f32, bf16, int8, .. (bf16)"},
        {"width", 0, MR_OPT_INT, &width, 1, 1 << 16, "N", "elements of a row (1024)"},
        {"table-mib", 0, MR_OPT_INT, &mib, 1, 1 << 20, "N", "size of the table (2048)"},
        {"threads", 0, MR_OPT_INT, &threads, 1, THREADS_MAX, "N", "threads (1)"},
        {"tokens", 0, MR_OPT_INT, &tokens, 1, 1024, "N", "tokens a call (16)"},
        {"entries", 0, MR_OPT_INT, &k, 1, 256, "N", "rows a token reads (84)"},
        {"slots", 0, MR_OPT_INT, &slots, 1, 16, "N", "expansion slots (1)"},
        {"rounds", 0, MR_OPT_INT, &rounds, 1, ROUNDS_MAX, "N", "rounds of both (5)"},
        {"seconds", 0, MR_OPT_DOUBLE, &seconds, 0.01, 60, "S", "length of a round (0.3)"},
        {"isa", 0, MR_OPT_TEXT, &isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon (the best there is)"},
        {"small-pages", 0, MR_OPT_FLAG, &small_pages, 0, 0, NULL, "do not ask for huge pages"},
        {"alone", 0, MR_OPT_FLAG, &alone, 0, 0, NULL,
         "only pool: the reading loops are not run, their columns repeat it"},
        {0}};
    const mr_command_spec spec = {
        "bench_pool [options]",
        "Prints isa,element,width,row_bytes,table_mib,pages,threads,tokens,entries,slots,\n"
        "pool_mrows_s,pool_gb_s,plain_mrows_s,plain_prefetch,grouped_mrows_s,grouped_prefetch,\n"
        "pool_to_plain,pool_to_grouped (medians).",
        options, 0, 0};
    int count;
    mr_err err = {{0}};
    const mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    const mr_ops *ops = mr_ops_find(isa);
    mr_storage_type type = MR_STORE_BF16;
    if (status == MR_OK && (!ops || mr_storage_parse(&type, element) != 0))
        mr_fail(&err, MR_ERR_ARGUMENT, "no such --isa on this processor, or --element");
    if (tokens * k > IDS / 2) mr_fail(&err, MR_ERR_ARGUMENT, "tokens x entries is too large");
    if (err.text[0]) {
        fprintf(stderr, "bench_pool: %s\n", err.text);
        return 2;
    }
    bench b = {.ops = ops,
               .tokens = (uint32_t)tokens,
               .entries_per_token = (uint32_t)k,
               .slots = (uint32_t)slots,
               .seconds = seconds,
               .huge = !small_pages,
               .alone = alone};
    const mr_storage storage = mr_storage_of(type);
    const uint64_t table_bytes = (uint64_t)mib << 20;
    const size_t row_bytes = (size_t)mr_storage_bytes(storage, (uint64_t)width);
    b.rows = (mr_rows){.storage = storage,
                       .row_count = table_bytes / row_bytes,
                       .stride = row_bytes,
                       .columns = (uint32_t)width};
    void *table =
        mmap(NULL, table_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED) {
        perror("bench_pool: table");
        return 1;
    }
    madvise(table, table_bytes, small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    b.rows.data = table;
    fill_table(table, &b.rows);
    measure(&b, (uint32_t)threads, (int)rounds, table_bytes);
    munmap(table, table_bytes);
    return 0;
}
