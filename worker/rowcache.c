/* rowcache.c - see rowcache.h. An open-addressed index of row -> slot with backward-shift deletion,
 * a slab of rows, a reference bit per slot for the clock, and a count-min sketch of four rows. */
#include "worker/rowcache.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

enum {
    ROWS_MIN = 16, /* a smaller share is not worth a look-up */
    SKETCH_ROWS = 4,
    COUNT_MAX = 15,
    ADMIT_MIN = 2, /* uses before a row may come into a cache that has room */
    AGE_FACTOR = 10,
};
static const uint32_t EMPTY = UINT32_MAX;

struct mr_rowcache_table {
    uint32_t width, row_bytes, slots, used, hand;
    mr_storage storage;
    uint8_t *data;    /* [slots][row_bytes] */
    uint32_t *row;    /* [slots] */
    uint8_t *touched; /* [slots] */
    uint32_t *index;  /* [index_mask + 1] slot, or EMPTY */
    uint32_t index_mask;
    uint8_t *sketch; /* [SKETCH_ROWS][sketch_mask + 1] */
    uint32_t sketch_mask;
    uint64_t uses, age_at;
};

struct mr_rowcache {
    uint64_t share_bytes;
    uint32_t table_count;
    mr_rowcache_table **tables;
    bool *is_refused;
};

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
    return x ^ (x >> 33);
}

mr_rowcache *mr_rowcache_open(uint64_t bytes, uint32_t tables, uint32_t shares) {
    mr_rowcache *c = mr_alloc(sizeof(*c));
    c->share_bytes = bytes / (shares ? shares : 1);
    c->table_count = tables;
    c->tables = mr_alloc_array(tables, sizeof(*c->tables));
    c->is_refused = mr_alloc_array(tables, sizeof(*c->is_refused));
    return c;
}

static void free_table(mr_rowcache_table *t) {
    if (!t) return;
    free(t->data);
    free(t->row);
    free(t->touched);
    free(t->index);
    free(t->sketch);
    free(t);
}

void mr_rowcache_close(mr_rowcache *cache) {
    if (!cache) return;
    for (uint32_t i = 0; i < cache->table_count; i++) free_table(cache->tables[i]);
    free(cache->tables);
    free(cache->is_refused);
    free(cache);
}

static uint32_t power_above(uint64_t count) {
    uint32_t power = 64;
    while (power < count && power < 1u << 31) power *= 2;
    return power;
}

/* A row costs its bytes, its place in the index (two of 4 bytes: half full), its name and marks,
 * and the sketch (four bytes for each of the four rows of counters). */
static mr_rowcache_table *make_table(uint64_t bytes, uint32_t width, mr_storage format,
                                     uint64_t table_rows) {
    const uint64_t row_bytes = mr_storage_bytes(format, width);
    uint64_t slots = bytes / (row_bytes + 5 + 16 + 16);
    if (slots > table_rows) slots = table_rows;
    if (slots > 1u << 28) slots = 1u << 28;
    if (slots < ROWS_MIN) return NULL;
    mr_rowcache_table *t = mr_alloc(sizeof(*t));
    void *data, *row = NULL, *touched = NULL, *index = NULL, *sketch = NULL;
    t->index_mask = power_above(2 * slots) - 1;
    t->sketch_mask = power_above(2 * slots) - 1;
    mr_status status = mr_try_alloc_raw(&data, slots, row_bytes, "row cache", NULL);
    if (status == MR_OK) status = mr_try_alloc(&row, slots, sizeof(*t->row), "row cache", NULL);
    if (status == MR_OK) status = mr_try_alloc(&touched, slots, 1, "row cache", NULL);
    if (status == MR_OK)
        status = mr_try_alloc(&index, t->index_mask + 1ull, sizeof(uint32_t), "row cache", NULL);
    if (status == MR_OK)
        status = mr_try_alloc(&sketch, t->sketch_mask + 1ull, SKETCH_ROWS, "row cache", NULL);
    t->data = data;
    t->row = row;
    t->touched = touched;
    t->index = index;
    t->sketch = sketch;
    if (status != MR_OK) {
        free_table(t);
        return NULL;
    }
    memset(index, 0xff, (t->index_mask + 1ull) * sizeof(uint32_t));
    t->width = width;
    t->storage = format;
    t->row_bytes = (uint32_t)row_bytes;
    t->slots = (uint32_t)slots;
    t->age_at = slots * AGE_FACTOR;
    return t;
}

mr_rowcache_table *mr_rowcache_use(mr_rowcache *cache, uint32_t table, uint32_t width,
                                   mr_storage format, uint64_t table_rows) {
    if (!cache || table >= cache->table_count || cache->is_refused[table]) return NULL;
    if (!cache->tables[table]) {
        cache->tables[table] = make_table(cache->share_bytes, width, format, table_rows);
        cache->is_refused[table] = cache->tables[table] == NULL;
    }
    return cache->tables[table];
}

/* --- the sketch ------------------------------------------------------------------------------- */

static uint8_t *counter(const mr_rowcache_table *t, uint64_t hash, uint32_t i) {
    const uint32_t at = (uint32_t)(hash + i * ((hash >> 32) | 1)) & t->sketch_mask;
    return &t->sketch[(size_t)i * (t->sketch_mask + 1ull) + at];
}

static uint32_t uses_of(const mr_rowcache_table *t, uint32_t row) {
    const uint64_t hash = mix(row + 1ull);
    uint32_t least = COUNT_MAX;
    for (uint32_t i = 0; i < SKETCH_ROWS; i++)
        if (*counter(t, hash, i) < least) least = *counter(t, hash, i);
    return least;
}

static void count_use(mr_rowcache_table *t, uint32_t row) {
    const uint64_t hash = mix(row + 1ull);
    for (uint32_t i = 0; i < SKETCH_ROWS; i++)
        if (*counter(t, hash, i) < COUNT_MAX) ++*counter(t, hash, i);
    if (++t->uses < t->age_at) return;
    t->uses = 0;
    for (size_t i = 0; i < SKETCH_ROWS * (t->sketch_mask + 1ull); i++) t->sketch[i] /= 2;
}

/* --- the index -------------------------------------------------------------------------------- */

static uint32_t home_of(const mr_rowcache_table *t, uint32_t row) {
    return (uint32_t)mix(row) & t->index_mask;
}

/* The place of row, or the empty one where it would be put. */
static uint32_t place_of(const mr_rowcache_table *t, uint32_t row) {
    uint32_t at = home_of(t, row);
    while (t->index[at] != EMPTY && t->row[t->index[at]] != row) at = (at + 1) & t->index_mask;
    return at;
}

static void forget(mr_rowcache_table *t, uint32_t row) {
    uint32_t hole = place_of(t, row);
    for (uint32_t at = (hole + 1) & t->index_mask; t->index[at] != EMPTY;
         at = (at + 1) & t->index_mask) {
        const uint32_t home = home_of(t, t->row[t->index[at]]);
        if (((at - home) & t->index_mask) < ((at - hole) & t->index_mask)) continue;
        t->index[hole] = t->index[at];
        hole = at;
    }
    t->index[hole] = EMPTY;
}

uint32_t mr_rowcache_find(mr_rowcache_table *t, uint32_t row) {
    count_use(t, row);
    const uint32_t slot = t->index[place_of(t, row)];
    if (slot != EMPTY) t->touched[slot] = 1;
    return slot;
}

/* The clock's next victim, without moving the hand: rows touched since it last passed stay. */
static uint32_t victim_of(const mr_rowcache_table *t) {
    for (uint32_t i = 0, at = t->hand; i < 64; i++, at = at + 1 == t->slots ? 0 : at + 1)
        if (!t->touched[at]) return at;
    return t->hand;
}

bool mr_rowcache_wants(const mr_rowcache_table *t, uint32_t row) {
    const uint32_t uses = uses_of(t, row);
    if (t->used < t->slots) return uses >= ADMIT_MIN;
    return uses > uses_of(t, t->row[victim_of(t)]);
}

static uint32_t take_slot(mr_rowcache_table *t) {
    if (t->used < t->slots) return t->used++;
    const uint32_t victim = victim_of(t);
    while (t->hand != victim) {
        t->touched[t->hand] = 0;
        t->hand = t->hand + 1 == t->slots ? 0 : t->hand + 1;
    }
    t->touched[victim] = 0;
    t->hand = victim + 1 == t->slots ? 0 : victim + 1;
    forget(t, t->row[victim]);
    return victim;
}

void mr_rowcache_put(mr_rowcache_table *t, uint32_t row, const void *data) {
    if (t->index[place_of(t, row)] != EMPTY) return;
    const uint32_t slot = take_slot(t);
    memcpy(t->data + (size_t)slot * t->row_bytes, data, t->row_bytes);
    t->row[slot] = row;
    t->touched[slot] = 0;
    t->index[place_of(t, row)] = slot;
}

mr_rows mr_rowcache_rows(const mr_rowcache_table *t) {
    return (mr_rows){.data = t->data,
                     .storage = t->storage,
                     .row_first = 0,
                     .row_count = t->slots,
                     .stride = t->row_bytes,
                     .columns = t->width};
}

uint32_t mr_rowcache_held(const mr_rowcache_table *t) {
    return t->used;
}
