/* holdings.c - see holdings.h.
 *
 * What is held is one immutable snapshot behind an atomic pointer. A request pins the snapshot it
 * works with in its seat; a change builds the next one, swaps the pointer, waits until no seat pins
 * the old one, and only then frees what the new one lacks. Cells and homes are shared by snapshots
 * and belong to the list of homes; the mutex `changes` guards that list and makes changes take
 * turns. Loading happens outside of it. */
#include "memshard/holdings.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "memshard/serve_impl.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool is_zero(const mr_digest *digest) {
    static const mr_digest none;
    return memcmp(digest, &none, sizeof(none)) == 0;
}

static bool same_digest(const mr_digest *a, const mr_digest *b) {
    return memcmp(a, b, sizeof(*a)) == 0;
}

static bool same_grid(mr_grid a, mr_grid b) {
    return a.row_groups == b.row_groups && a.width_slices == b.width_slices;
}

static uint32_t cells_of(mr_grid grid) {
    return grid.row_groups * grid.width_slices;
}

const mr_model_held *mr_snapshot_find(const mr_snapshot *held, const mr_digest *digest,
                                      mr_grid grid) {
    const bool any_model = is_zero(digest), any_grid = grid.row_groups == 0;
    for (uint32_t i = 0; i < held->count; i++) {
        const mr_model_held *m = held->models[i];
        if ((any_model || same_digest(&m->digest, digest)) &&
            (any_grid || same_grid(m->grid, grid)))
            return m;
    }
    return NULL;
}

/* --- snapshots -------------------------------------------------------------------------------- */

static void free_model(mr_model_held *m) {
    if (!m) return;
    free(m->cell_ids);
    free(m->by_cell);
    free(m);
}

/* The cells of home: those of old (may be NULL) with added put in, without those that `gone` marks
 * (may be NULL). NULL when none are left. */
static mr_model_held *make_model(mr_home *home, const mr_model_held *old, mr_held **added,
                                 uint32_t added_count, const bool *gone) {
    const uint32_t all = cells_of(home->grid);
    mr_model_held *m = mr_alloc(sizeof(*m));
    *m = (mr_model_held){.home = home,
                         .tables = home->source.tables,
                         .digest = home->source.digest,
                         .grid = home->grid,
                         .keys = home->keys,
                         .bytes = home->key_bytes};
    m->by_cell = mr_alloc_array(all, sizeof(mr_held *));
    for (uint32_t c = 0; old && c < all; c++)
        if (!gone || !gone[c]) m->by_cell[c] = old->by_cell[c];
    for (uint32_t i = 0; i < added_count; i++) m->by_cell[added[i]->id] = added[i];
    for (uint32_t c = 0; c < all; c++) m->cell_count += m->by_cell[c] != NULL;
    if (m->cell_count == 0) {
        free_model(m);
        return NULL;
    }
    m->cell_ids = mr_alloc_array(m->cell_count, sizeof(*m->cell_ids));
    uint32_t used = 0;
    for (uint32_t c = 0; c < all; c++)
        if (m->by_cell[c]) {
            m->cell_ids[used++] = c;
            m->bytes += m->by_cell[c]->bytes;
        }
    return m;
}

/* Requests are short, so this waits little; a request that began later pins the new snapshot. */
static void wait_for_users(const mr_memshard *shard, const mr_snapshot *old) {
    for (uint32_t i = 0; i < MR_SEATS; i++)
        while (atomic_load(&shard->seats[i].pinned) == old)
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
}

/* Puts `now` in the place of `before`; either may be NULL. When this returns nobody uses the old
 * snapshot. Under `changes`. */
static void publish(mr_memshard *shard, mr_model_held *before, mr_model_held *now) {
    mr_snapshot *old = atomic_load(&shard->held);
    const uint32_t room = old->count + 1;
    mr_snapshot *next = mr_alloc(sizeof(*next) + room * sizeof(mr_model_held *));
    for (uint32_t i = 0; i < old->count; i++)
        if (old->models[i] != before)
            next->models[next->count++] = old->models[i];
        else if (now)
            next->models[next->count++] = now;
    if (!before && now) next->models[next->count++] = now;
    atomic_store(&shard->held, next);
    wait_for_users(shard, old);
    free(old);
    free_model(before);
}

/* The part of the snapshot that home has, or NULL. Under `changes`. */
static mr_model_held *part_of(const mr_memshard *shard, const mr_home *home) {
    const mr_snapshot *held = atomic_load(&shard->held);
    for (uint32_t i = 0; i < held->count; i++)
        if (held->models[i]->home == home) return held->models[i];
    return NULL;
}

/* --- homes ------------------------------------------------------------------------------------ */

static void free_keys(mr_product_keys *keys, uint32_t count) {
    for (uint32_t i = 0; keys && i < count; i++) mr_product_keys_free(&keys[i]);
    free(keys);
}

static void close_source(mr_table_source *source) {
    if (source->close) source->close(source);
}

/* Under `changes`. */
static void drop_home(mr_memshard *shard, mr_home *home) {
    if (--home->uses > 0) return;
    mr_home **at = &shard->homes;
    while (*at != home) at = &(*at)->next;
    *at = home->next;
    free_keys(home->keys, home->source.tables->layer_count);
    close_source(&home->source);
    free(home);
}

static mr_home *find_home(mr_memshard *shard, const mr_digest *digest, mr_grid grid) {
    mr_home *home = shard->homes;
    while (home && !(same_digest(&home->source.digest, digest) && same_grid(home->grid, grid)))
        home = home->next;
    if (home) home->uses++;
    return home;
}

/* Takes the source over: closed when a home for it was there already. Used once more by the caller.
 */
static mr_home *add_home(mr_memshard *shard, mr_table_source *source, mr_grid grid) {
    pthread_mutex_lock(&shard->changes);
    mr_home *home = find_home(shard, &source->digest, grid);
    const bool is_new = !home;
    if (is_new) {
        home = mr_alloc(sizeof(*home));
        *home = (mr_home){.uses = 1, .grid = grid, .source = *source, .next = shard->homes};
        shard->homes = home;
    }
    pthread_mutex_unlock(&shard->changes);
    if (!is_new) close_source(source);
    return home;
}

static mr_status check_digest(const mr_table_source *source, const mr_load_order *order,
                              mr_err *err) {
    char is[MR_DIGEST_TEXT_BYTES], wanted[MR_DIGEST_TEXT_BYTES];
    if (is_zero(&order->digest) || same_digest(&source->digest, &order->digest)) return MR_OK;
    mr_digest_text(&source->digest, is);
    mr_digest_text(&order->digest, wanted);
    return mr_fail(err, MR_ERR_MISMATCH,
                   "%s has a model with digest %.12s...; %.12s... was to be loaded", order->source,
                   is, wanted);
}

/* --- loading ---------------------------------------------------------------------------------- */

typedef struct {
    mr_memshard *shard;
    const mr_load_order *order;
    mr_progress progress;
    void *context;
    mr_home *home;
    uint32_t *cells; /* [count]: those that are not held yet */
    uint32_t count;
    mr_held **opened; /* [opened_count] */
    uint32_t opened_count;
    mr_product_keys *keys;
    mr_store_plan plan; /* of cells, and keys */
    uint64_t key_bytes;
} load;

static void tell(const load *l, const char *what, double fraction) {
    if (l->progress) l->progress(l->context, what, fraction);
}

static mr_status check_order(const mr_load_order *order, mr_err *err) {
    const uint64_t all = (uint64_t)order->grid.row_groups * order->grid.width_slices;
    if (all == 0 || all > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_ARGUMENT, "a grid of %ux%u cells; 1 to %d are possible",
                       order->grid.row_groups, order->grid.width_slices, MR_MAX_CELLS);
    if (order->cell_count == 0 && !order->keys)
        return mr_fail(err, MR_ERR_ARGUMENT, "an order to load nothing");
    for (uint32_t i = 0; i < order->cell_count; i++)
        if (order->cells[i] >= all)
            return mr_fail(err, MR_ERR_RANGE, "cell %u: a grid of %ux%u has %llu cells",
                           order->cells[i], order->grid.row_groups, order->grid.width_slices,
                           (unsigned long long)all);
    return MR_OK;
}

/* Which of the cells are to be opened, each once. */
static void find_missing(load *l) {
    bool *held = mr_alloc_array(cells_of(l->order->grid), sizeof(*held));
    l->cells = mr_alloc_array(l->order->cell_count + 1ull, sizeof(*l->cells));
    pthread_mutex_lock(&l->shard->changes);
    const mr_model_held *part = part_of(l->shard, l->home);
    for (uint32_t i = 0; part && i < part->cell_count; i++) held[part->cell_ids[i]] = true;
    pthread_mutex_unlock(&l->shard->changes);
    for (uint32_t i = 0; i < l->order->cell_count; i++) {
        const uint32_t cell = l->order->cells[i];
        if (!held[cell]) l->cells[l->count++] = cell;
        held[cell] = true;
    }
    free(held);
}

static bool wants_keys(const load *l) {
    return l->order->keys && !l->home->keys; /* set by loads only, which take turns */
}

static mr_status plan_keys(load *l, mr_err *err) {
    const mr_model *model = l->home->source.model;
    if (!model)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: product keys cannot be read from here",
                       l->order->source);
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++) {
        uint64_t keys, index;
        mr_product_keys_plan(&keys, &index, model, i);
        l->key_bytes += keys + index;
    }
    l->plan.kept_bytes += l->key_bytes;
    return MR_OK;
}

/* All of it, before any of it. Rows mapped from files count as available memory for as long as
 * nothing else wants it, so those held already are added to what is needed. */
static mr_status check_memory(load *l, mr_err *err) {
    for (uint32_t i = 0; i < l->count; i++) {
        mr_store_plan one;
        const mr_status status = mr_held_plan(&one, l->home->source.tables, l->order->grid,
                                              l->cells[i], &l->shard->cell_options, err);
        if (status != MR_OK) return status;
        l->plan.mapped_bytes += one.mapped_bytes;
        l->plan.kept_bytes += one.kept_bytes;
    }
    if (wants_keys(l)) {
        const mr_status status = plan_keys(l, err);
        if (status != MR_OK) return status;
    }
    mr_store_plan all = l->plan;
    pthread_mutex_lock(&l->shard->changes);
    all.mapped_bytes += l->shard->mapped_bytes;
    pthread_mutex_unlock(&l->shard->changes);
    return mr_store_fits(&all, mr_memory_available(), err);
}

static mr_status open_cells(load *l, mr_err *err) {
    mr_status status = MR_OK;
    l->opened = mr_alloc_array(l->count + 1ull, sizeof(*l->opened));
    for (uint32_t i = 0; i < l->count && status == MR_OK; i++) {
        tell(l, "loading cells", (double)i / l->count);
        if (atomic_load(&l->shard->is_closing))
            return mr_fail(err, MR_ERR_CANCELLED, "this memshard is closing");
        status = mr_held_open(&l->opened[i], l->home->source.tables, l->order->grid, l->cells[i],
                              &l->shard->cell_options, err);
        if (status == MR_OK) l->opened_count++;
    }
    return status;
}

static mr_status open_keys(load *l, mr_err *err) {
    const mr_model *model = l->home->source.model;
    const uint32_t layers = mr_model_memory_count(model);
    mr_status status = MR_OK;
    l->keys = mr_alloc_array(layers, sizeof(*l->keys));
    for (uint32_t i = 0; i < layers && status == MR_OK; i++) {
        tell(l, "loading product keys", (double)i / layers);
        status = mr_product_keys_open(&l->keys[i], model, i, err);
    }
    return status;
}

static void publish_load(load *l) {
    mr_memshard *shard = l->shard;
    pthread_mutex_lock(&shard->changes);
    if (l->keys) {
        l->home->keys = l->keys;
        l->home->key_bytes = l->key_bytes;
    }
    mr_model_held *before = part_of(shard, l->home);
    mr_model_held *now = make_model(l->home, before, l->opened, l->opened_count, NULL);
    if (!before && now) l->home->uses++;
    if (before || now) publish(shard, before, now);
    shard->mapped_bytes += l->plan.mapped_bytes;
    for (uint32_t i = 0; shard->scrub && i < l->opened_count; i++)
        mr_scrub_add(shard->scrub, l->opened[i]);
    pthread_mutex_unlock(&shard->changes);
}

static mr_status run_load(load *l, mr_err *err) {
    find_missing(l);
    mr_status status = check_memory(l, err);
    if (status == MR_OK) status = open_cells(l, err);
    if (status == MR_OK && wants_keys(l)) status = open_keys(l, err);
    if (status == MR_OK) {
        if (l->opened_count > 0 || l->keys) publish_load(l);
        tell(l, "ready", 1.0);
    } else {
        for (uint32_t i = 0; i < l->opened_count; i++) mr_held_close(l->opened[i]);
        free_keys(l->keys, l->home->source.tables->layer_count);
    }
    free(l->opened);
    free(l->cells);
    return status;
}

static void note_load(load *l, mr_status status) {
    char text[MR_DIGEST_TEXT_BYTES];
    mr_memshard *shard = l->shard;
    if (status != MR_OK) {
        atomic_fetch_add(&shard->counts.failed_loads, 1);
        return;
    }
    atomic_fetch_add(&shard->counts.loads, 1);
    if (shard->is_static) return;
    mr_digest_text(&l->home->source.digest, text);
    mr_log_info(
        "model %.12s...: %u cells of grid %ux%u loaded, %llu bytes%s", text, l->count,
        l->order->grid.row_groups, l->order->grid.width_slices,
        (unsigned long long)(l->plan.mapped_bytes + l->plan.kept_bytes + l->plan.tiered_bytes),
        l->keys ? ", with the product keys" : "");
}

/* source NULL: opened here unless its model is held. Under `loading`. */
static mr_status load_from(mr_memshard *shard, mr_table_source *source, const mr_load_order *order,
                           mr_progress progress, void *context, mr_err *err) {
    load l = {.shard = shard, .order = order, .progress = progress, .context = context};
    mr_table_source opened = {0};
    mr_status status = check_order(order, err);
    if (status == MR_OK && !source && !is_zero(&order->digest)) {
        pthread_mutex_lock(&shard->changes);
        l.home = find_home(shard, &order->digest, order->grid);
        pthread_mutex_unlock(&shard->changes);
    }
    if (status == MR_OK && !source && !l.home) {
        status = shard->opener(shard->opener_context, &opened, order, progress, context, err);
        if (status == MR_OK) source = &opened;
    }
    if (status == MR_OK && source) status = check_digest(source, order, err);
    if (status == MR_OK && source) l.home = add_home(shard, source, order->grid);
    if (status != MR_OK) {
        if (source) close_source(source);
        atomic_fetch_add(&shard->counts.failed_loads, 1);
        return status;
    }
    status = run_load(&l, err);
    note_load(&l, status);
    pthread_mutex_lock(&shard->changes);
    drop_home(shard, l.home);
    pthread_mutex_unlock(&shard->changes);
    return status;
}

mr_status mr_memshard_adopt(mr_memshard *shard, mr_table_source *source, const mr_load_order *order,
                            mr_progress progress, void *context, mr_err *err) {
    pthread_mutex_lock(&shard->loading);
    const mr_status status = load_from(shard, source, order, progress, context, err);
    pthread_mutex_unlock(&shard->loading);
    return status;
}

mr_status mr_memshard_load_now(mr_memshard *shard, const mr_load_order *order, mr_progress progress,
                               void *context, mr_err *err) {
    return mr_memshard_adopt(shard, NULL, order, progress, context, err);
}

mr_status mr_memshard_open_keys(mr_memshard *shard, const mr_model *model, mr_err *err) {
    pthread_mutex_lock(&shard->changes);
    mr_home *home = shard->homes;
    if (home) {
        home->uses++;
        home->source.model = model;
    }
    pthread_mutex_unlock(&shard->changes);
    if (!home) return mr_fail(err, MR_ERR_ARGUMENT, "keys of what model? None is held");
    const mr_load_order order = {.source = "", .grid = home->grid, .keys = true};
    pthread_mutex_lock(&shard->loading);
    load l = {.shard = shard, .order = &order, .home = home};
    const mr_status status = run_load(&l, err);
    pthread_mutex_unlock(&shard->loading);
    pthread_mutex_lock(&shard->changes);
    drop_home(shard, home);
    pthread_mutex_unlock(&shard->changes);
    return status;
}

/* --- sources ---------------------------------------------------------------------------------- */

typedef struct {
    mr_model *model;
    mr_manifest manifest;
    mr_model_tables *tables;
} directory;

static void close_directory(mr_table_source *source) {
    directory *d = source->own;
    mr_model_tables_close(d->tables);
    mr_manifest_free(&d->manifest);
    mr_model_close(d->model);
    free(d);
}

static mr_status open_directory(void *context, mr_table_source *out, const mr_load_order *order,
                                mr_progress progress, void *progress_context, mr_err *err) {
    directory *d = mr_alloc(sizeof(*d));
    (void)context;
    *out = (mr_table_source){.close = close_directory, .own = d};
    mr_status status = mr_model_open(&d->model, order->source, err);
    if (status == MR_OK && mr_model_table_count(d->model) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT,
                         "%s has no memory layers: a memshard would hold nothing", order->source);
    if (status == MR_OK)
        status = mr_manifest_load(&d->manifest, d->model, progress, progress_context, err);
    if (status == MR_OK) status = mr_model_tables_open(&d->tables, d->model, &d->manifest, err);
    if (status != MR_OK) {
        close_directory(out);
        return status;
    }
    out->tables = mr_model_tables_source(d->tables);
    out->digest = d->manifest.digest;
    out->model = d->model;
    return MR_OK;
}

void mr_memshard_set_opener(mr_memshard *shard, mr_source_opener opener, void *context) {
    shard->opener = opener ? opener : open_directory;
    shard->opener_context = context;
}

void mr_memshard_set_cell_options(mr_memshard *shard, const mr_cell_options *options) {
    shard->cell_options = *options;
}

void mr_memshard_seal(mr_memshard *shard, bool is_sealed) {
    shard->is_static = is_sealed;
}

void mr_memshard_set_scrub(mr_memshard *shard, mr_scrub *scrub) {
    shard->scrub = scrub;
}

/* --- unloading -------------------------------------------------------------------------------- */

static uint64_t mapped_bytes_of(const mr_memshard *shard, const mr_held *held) {
    mr_store_plan plan;
    const mr_status status =
        mr_held_plan(&plan, held->source, held->grid, held->id, &shard->cell_options, NULL);
    return status == MR_OK ? plan.mapped_bytes : 0;
}

/* Under `changes`. false: none of them was held. */
static bool unload_part(mr_memshard *shard, mr_model_held *part, const uint32_t *cells,
                        uint32_t count) {
    const uint32_t all = cells_of(part->grid);
    mr_home *home = part->home;
    bool *gone = mr_alloc_array(all, sizeof(*gone));
    mr_held **freed = mr_alloc_array(all, sizeof(mr_held *));
    uint32_t freed_count = 0;
    for (uint32_t c = 0; c < all; c++) gone[c] = count == 0;
    for (uint32_t i = 0; i < count; i++)
        if (cells[i] < all) gone[cells[i]] = true;
    for (uint32_t c = 0; c < all; c++)
        if (gone[c] && part->by_cell[c]) freed[freed_count++] = part->by_cell[c];
    if (freed_count > 0) {
        mr_model_held *now = make_model(home, part, NULL, 0, gone);
        publish(shard, part, now);
        for (uint32_t i = 0; i < freed_count; i++) {
            shard->mapped_bytes -= mapped_bytes_of(shard, freed[i]);
            if (shard->scrub) mr_scrub_remove(shard->scrub, freed[i]);
            mr_held_close(freed[i]);
        }
        atomic_fetch_add(&shard->counts.unloads, 1);
        if (!now) drop_home(shard, home);
    }
    free(freed);
    free(gone);
    return freed_count > 0;
}

void mr_memshard_unload(mr_memshard *shard, const mr_digest *digest, mr_grid grid,
                        const uint32_t *cells, uint32_t count) {
    pthread_mutex_lock(&shard->changes);
    for (bool again = true; again;) {
        const mr_snapshot *held = atomic_load(&shard->held);
        again = false;
        for (uint32_t i = 0; i < held->count; i++) {
            mr_model_held *part = held->models[i];
            if (!same_digest(&part->digest, digest)) continue;
            if (grid.row_groups != 0 && !same_grid(part->grid, grid)) continue;
            again = unload_part(shard, part, cells, count);
            if (again) break; /* `held` is gone */
        }
    }
    pthread_mutex_unlock(&shard->changes);
}

/* --- in the background ------------------------------------------------------------------------ */

enum { ORDERS_MAX = 64 };

typedef struct {
    mr_load_order order;
    mr_load_watch watch;
} ordered;

struct mr_loader {
    mr_memshard *shard;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards the orders */
    pthread_cond_t came;
    ordered orders[ORDERS_MAX]; /* a ring */
    uint32_t first, count;
};

static void free_order(mr_load_order *order) {
    free((void *)(uintptr_t)order->source);
    free((void *)(uintptr_t)order->cells);
}

static void carry_out(mr_memshard *shard, ordered *o) {
    mr_err err = {{0}};
    mr_status status;
    if (atomic_load(&shard->is_closing))
        status = mr_fail(&err, MR_ERR_CANCELLED, "this memshard is closing");
    else
        status = mr_memshard_load_now(shard, &o->order, o->watch.progress, o->watch.context, &err);
    if (o->watch.done) o->watch.done(o->watch.context, status, &err);
    free_order(&o->order);
}

static void *run_loader(void *argument) {
    struct mr_loader *l = argument;
    for (;;) {
        pthread_mutex_lock(&l->mutex);
        while (l->count == 0 && !atomic_load(&l->shard->is_closing))
            pthread_cond_wait(&l->came, &l->mutex);
        if (l->count == 0) {
            pthread_mutex_unlock(&l->mutex);
            return NULL;
        }
        ordered next = l->orders[l->first];
        l->first = (l->first + 1) % ORDERS_MAX;
        l->count--;
        pthread_mutex_unlock(&l->mutex);
        carry_out(l->shard, &next);
    }
}

static mr_status start_loader(mr_memshard *shard, mr_err *err) {
    sigset_t all, before;
    struct mr_loader *l = mr_alloc(sizeof(*l));
    l->shard = shard;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->came, NULL);
    sigfillset(&all); /* signals are for the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(&l->thread, NULL, run_loader, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        free(l);
        return mr_fail(err, MR_ERR_NOMEM, "start the loading thread: %s", strerror(code));
    }
    shard->loader = l;
    return MR_OK;
}

mr_status mr_memshard_load(mr_memshard *shard, const mr_load_order *order,
                           const mr_load_watch *watch, mr_err *err) {
    mr_status status = check_order(order, err);
    if (status != MR_OK) return status;
    pthread_mutex_lock(&shard->changes);
    if (!shard->loader) status = start_loader(shard, err);
    pthread_mutex_unlock(&shard->changes);
    if (status != MR_OK) return status;
    struct mr_loader *l = shard->loader;
    ordered o = {.order = *order, .watch = *watch};
    uint32_t *cells = mr_alloc_array(order->cell_count + 1ull, sizeof(*cells));
    if (order->cell_count > 0) memcpy(cells, order->cells, order->cell_count * sizeof(*cells));
    o.order.source = mr_strdup(order->source);
    o.order.cells = cells;
    pthread_mutex_lock(&l->mutex);
    if (l->count == ORDERS_MAX)
        status = mr_fail(err, MR_ERR_LIMIT, "%d loads wait already", ORDERS_MAX);
    else
        l->orders[(l->first + l->count++) % ORDERS_MAX] = o;
    pthread_cond_signal(&l->came);
    pthread_mutex_unlock(&l->mutex);
    if (status != MR_OK) free_order(&o.order);
    return status;
}

static void stop_loader(struct mr_loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->mutex);
    pthread_cond_signal(&l->came);
    pthread_mutex_unlock(&l->mutex);
    pthread_join(l->thread, NULL);
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->came);
    free(l);
}

/* --- open, close, describe -------------------------------------------------------------------- */

mr_status mr_memshard_open_empty(mr_memshard **out, const mr_ops *ops, mr_err *err) {
    void *seats;
    *out = NULL;
    const mr_status status = mr_try_alloc(&seats, MR_SEATS, sizeof(mr_seat), "seats", err);
    if (status != MR_OK) return status;
    mr_memshard *shard = mr_alloc(sizeof(*shard));
    shard->seats = seats;
    shard->ops = ops ? ops : mr_ops_find(NULL);
    shard->opener = open_directory;
    pthread_mutex_init(&shard->loading, NULL);
    pthread_mutex_init(&shard->changes, NULL);
    atomic_store(&shard->held, mr_alloc(sizeof(mr_snapshot)));
    *out = shard;
    return MR_OK;
}

void mr_memshard_close(mr_memshard *shard) {
    if (!shard) return;
    atomic_store(&shard->is_closing, true);
    stop_loader(shard->loader);
    for (uint32_t i = 0; i < MR_SEATS; i++) {
        assert(!atomic_load(&shard->seats[i].is_taken));
        free(shard->seats[i].memory);
        mr_gpu_lane_close(shard->seats[i].gpu);
        for (int side = 0; side < 2; side++) mr_fetch_scratch_free(&shard->seats[i].fetched[side]);
    }
    pthread_mutex_lock(&shard->changes);
    for (const mr_snapshot *held; (held = atomic_load(&shard->held))->count > 0;)
        unload_part(shard, held->models[0], NULL, 0);
    assert(!shard->homes);
    pthread_mutex_unlock(&shard->changes);
    free(atomic_load(&shard->held));
    mr_queue_free(shard);
    pthread_mutex_destroy(&shard->loading);
    pthread_mutex_destroy(&shard->changes);
    free(shard->seats);
    free(shard);
}

void mr_memshard_describe(mr_memshard *shard, mr_holding **out, uint32_t *count) {
    const mr_snapshot *held;
    mr_seat *seat = mr_seat_take(shard, MR_SEATS - 1, &held);
    *count = held->count;
    *out = mr_alloc_array(held->count + 1ull, sizeof(**out));
    for (uint32_t i = 0; i < held->count; i++) {
        const mr_model_held *m = held->models[i];
        uint32_t *cells = mr_alloc_array(m->cell_count, sizeof(*cells));
        memcpy(cells, m->cell_ids, m->cell_count * sizeof(*cells));
        (*out)[i] = (mr_holding){.digest = m->digest,
                                 .grid_rows = m->grid.row_groups,
                                 .grid_columns = m->grid.width_slices,
                                 .cells = cells,
                                 .cell_count = m->cell_count,
                                 .bytes = m->bytes};
    }
    mr_seat_give(seat);
}

void mr_holdings_free(mr_holding *holdings, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) free(holdings[i].cells);
    free(holdings);
}
