/* setup.c - see setup.h. */
#include "memshard/setup.h"

#include "common/base/log.h"
#include "common/base/mem.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BAD_MAX = 64, AGAIN_S = 5 };

/* A cell to be taken away. */
typedef struct {
    mr_digest digest;
    mr_grid grid;
    uint32_t cell;
} bad_cell;

struct mr_setup {
    mr_memshard *shard;
    mr_tier *tier;
    mr_scrub *scrub;
    mr_store_opener opener;
    void (*changed)(void *context);
    void *context;

    /* what a static shard holds; has_order is set before the thread can need it */
    mr_load_order order;
    char *source;
    uint32_t *cells;
    bool has_order;

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t woken;
    bad_cell bad[BAD_MAX];
    uint32_t bad_count;
    bool is_ending;
};

/* --- bad cells -------------------------------------------------------------------------------- */

/* The scrubber's thread. One too many is found again by the next pass. */
static void on_bad(void *context, mr_held *held, const mr_err *why) {
    mr_setup *s = context;
    mr_holding *holdings;
    uint32_t count;
    (void)why;
    mr_memshard_describe(s->shard, &holdings, &count);
    pthread_mutex_lock(&s->lock);
    for (uint32_t i = 0; i < count && s->bad_count < BAD_MAX; i++)
        if (holdings[i].grid_rows == held->grid.row_groups &&
            holdings[i].grid_columns == held->grid.width_slices)
            s->bad[s->bad_count++] =
                (bad_cell){.digest = holdings[i].digest, .grid = held->grid, .cell = held->id};
    pthread_cond_signal(&s->woken);
    pthread_mutex_unlock(&s->lock);
    mr_holdings_free(holdings, count);
}

/* false: the setup is ending. */
static bool pause_s(mr_setup *s, int seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += seconds;
    pthread_mutex_lock(&s->lock);
    int waited = 0;
    while (!s->is_ending && waited == 0)
        waited = pthread_cond_timedwait(&s->woken, &s->lock, &until);
    const bool goes_on = !s->is_ending;
    pthread_mutex_unlock(&s->lock);
    return goes_on;
}

/* A cell whose model has the same grid as a bad one's may be taken away with it: it is loaded again
 * like the bad one. */
static void replace(mr_setup *s, const bad_cell *bad) {
    mr_err err;
    if (s->has_order) mr_memshard_seal(s->shard, false);
    mr_memshard_unload(s->shard, &bad->digest, bad->grid, &bad->cell, 1);
    mr_log_warn("cell %u of grid %ux%u was taken away", bad->cell, bad->grid.row_groups,
                bad->grid.width_slices);
    if (s->changed) s->changed(s->context);
    while (s->has_order) {
        mr_load_order again = s->order;
        again.cells = &bad->cell;
        again.cell_count = 1;
        if (mr_memshard_load_now(s->shard, &again, NULL, NULL, &err) == MR_OK) {
            mr_log_info("cell %u was loaded again", bad->cell);
            mr_memshard_seal(s->shard, true);
            return;
        }
        mr_log_error("cell %u cannot be loaded again: %s", bad->cell, err.text);
        if (!pause_s(s, AGAIN_S)) return;
    }
}

static void *run(void *context) {
    mr_setup *s = context;
    pthread_mutex_lock(&s->lock);
    while (!s->is_ending) {
        if (s->bad_count == 0) {
            pthread_cond_wait(&s->woken, &s->lock);
            continue;
        }
        const bad_cell bad = s->bad[--s->bad_count];
        pthread_mutex_unlock(&s->lock);
        replace(s, &bad);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* --- opening ---------------------------------------------------------------------------------- */

static mr_status open_parts(mr_setup *s, const mr_setup_options *o, mr_err *err) {
    mr_status status = mr_memshard_open_empty(&s->shard, o->ops, err);
    if (status == MR_OK && o->tier_bytes > 0)
        status = mr_tier_open(&s->tier, &(mr_tier_options){.budget_bytes = o->tier_bytes}, err);
    const mr_scrub_options scrub = {
        .bytes_per_second = o->scrub_bytes_s, .tier = s->tier, .on_bad = on_bad, .context = s};
    if (status == MR_OK && o->scrub_bytes_s != UINT64_MAX)
        status = mr_scrub_open(&s->scrub, &scrub, err);
    if (status != MR_OK) return status;
    const mr_cell_options cells = {.tier = s->tier, .gpu = o->gpu, .no_verify = o->no_verify};
    mr_memshard_set_cell_options(s->shard, &cells);
    mr_memshard_set_scrub(s->shard, s->scrub);
    mr_memshard_set_opener(s->shard, mr_store_opener_open, &s->opener);
    s->has_thread = pthread_create(&s->thread, NULL, run, s) == 0;
    return s->has_thread ? MR_OK : mr_fail(err, MR_ERR_IO, "no thread for bad cells");
}

mr_status mr_setup_open(mr_setup **out, const mr_setup_options *o, mr_err *err) {
    pthread_condattr_t monotonic;
    mr_setup *s = mr_alloc(sizeof(*s));
    s->opener = o->opener;
    s->changed = o->changed;
    s->context = o->context;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->woken, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *out = NULL;
    const mr_status status = open_parts(s, o, err);
    if (status != MR_OK) {
        mr_setup_close(s);
        return status;
    }
    *out = s;
    return MR_OK;
}

void mr_setup_close(mr_setup *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->is_ending = true;
    pthread_cond_broadcast(&s->woken);
    pthread_mutex_unlock(&s->lock);
    if (s->has_thread) pthread_join(s->thread, NULL);
    mr_memshard_close(s->shard); /* takes its cells from the scrubber and the tier */
    mr_scrub_close(s->scrub);
    mr_tier_close(s->tier);
    pthread_cond_destroy(&s->woken);
    pthread_mutex_destroy(&s->lock);
    free(s->source);
    free(s->cells);
    free(s);
}

mr_memshard *mr_setup_shard(mr_setup *s) {
    return s->shard;
}

mr_status mr_setup_load(mr_setup *s, const mr_load_order *order, mr_progress progress,
                        void *context, mr_err *err) {
    s->source = mr_strdup(order->source);
    s->cells = mr_alloc_array(order->cell_count, sizeof(*s->cells));
    memcpy(s->cells, order->cells, order->cell_count * sizeof(*s->cells));
    s->order = *order;
    s->order.source = s->source;
    s->order.cells = s->cells;
    const mr_status status = mr_memshard_load_now(s->shard, &s->order, progress, context, err);
    if (status == MR_OK) {
        mr_memshard_seal(s->shard, true);
        pthread_mutex_lock(&s->lock);
        s->has_order = true;
        pthread_mutex_unlock(&s->lock);
    }
    return status;
}

void mr_setup_count(mr_setup *s, mr_scrub_counters *scrub, mr_tier_counters *tier) {
    *scrub = (mr_scrub_counters){0};
    *tier = (mr_tier_counters){0};
    if (s->scrub) mr_scrub_count(s->scrub, scrub);
    if (s->tier) mr_tier_count(s->tier, tier);
}
