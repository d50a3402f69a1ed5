/* replay_target.c - the shards a recording is replayed against: of a running cluster, named ones,
 * or one in this process that holds every cell, with its rows in memory or behind a tier. */
#include "cli/replay.h"

#include "cli/cluster_find.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/sizes.h"
#include "common/model/model.h"
#include "common/net/fabric_choice.h"
#include "memshard/holdings.h"

#include <stdlib.h>

enum { REACH_S = 10, TIMEOUT_MS = 2000 };

struct mr_replay_dial {
    mr_fabric_policy policy;
};

/* What the largest layer needs. */
static void fill_sizes(mr_retrieval_options *out, const mr_model *model) {
    uint32_t cached = 0;
    out->tokens_max = MR_MAX_STEP_TOKENS;
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++) {
        const mr_memory_layer *l = mr_model_memory(model, i);
        const uint32_t width = mr_model_table(model, l->table)->width * l->slots_out;
        if (l->entries > out->entries_max) out->entries_max = l->entries;
        if (l->cores > out->cores_max) out->cores_max = l->cores;
        if (width > out->slots_width_max) out->slots_width_max = width;
        cached += !l->gated;
    }
    out->layers = mr_model_memory_count(model);
    out->tables = mr_model_table_count(model);
    out->cached_tables = cached && out->tables > 1 ? cached : cached ? 1 : 0;
}

static mr_status open_tiered(mr_replay_target *t, const mr_replay_target_options *o, mr_err *err) {
    const uint32_t count = t->grid.row_groups * t->grid.width_slices;
    uint64_t budget = 0;
    mr_status status = mr_bytes_parse(&budget, o->tier_ram, "--tier-ram", err);
    if (status == MR_OK)
        status = mr_tier_open(&t->tier, &(mr_tier_options){.budget_bytes = budget}, err);
    if (status == MR_OK) status = mr_memshard_open_empty(&t->shard, NULL, err);
    if (status != MR_OK) return status;
    const mr_cell_options cells = {.tier = t->tier};
    mr_memshard_set_cell_options(t->shard, &cells);
    uint32_t *all = mr_alloc_array(count, sizeof(*all));
    for (uint32_t i = 0; i < count; i++) all[i] = i;
    const mr_load_order order = {.source = mr_model_directory(o->model),
                                 .digest = o->manifest->digest,
                                 .grid = t->grid,
                                 .cells = all,
                                 .cell_count = count};
    status = mr_memshard_load_now(t->shard, &order, NULL, NULL, err);
    free(all);
    return status;
}

static mr_status open_here(mr_replay_target *t, const mr_replay_target_options *o,
                           mr_retrieval_options *options, mr_err *err) {
    t->grid = (mr_grid){1, 1};
    mr_status status = o->grid ? mr_grid_parse(&t->grid, o->grid, err) : MR_OK;
    if (status == MR_OK && o->tier_ram)
        status = open_tiered(t, o, err);
    else if (status == MR_OK)
        status = mr_memshard_open(&t->shard, o->model, o->manifest, NULL, t->grid, 0, 1, err);
    if (status != MR_OK) return status;
    mr_link *link = mr_link_loop(mr_memshard_handle, t->shard, "memshard in this process");
    options->grid = t->grid;
    options->links = &link;
    options->count = 1;
    status = mr_retrieval_open(&t->retrieval, options, err);
    if (status != MR_OK) mr_link_close(link);
    return status;
}

static mr_status open_named(mr_replay_target *t, const mr_replay_target_options *o,
                            mr_retrieval_options *options, mr_err *err) {
    mr_shards shards;
    mr_status status =
        mr_shards_connect(&shards, o->memshards.items, o->memshards.count, o->manifest->digest,
                          mr_now_ns() + REACH_S * 1000000000ll, err);
    if (status != MR_OK) return status;
    options->grid = t->grid = shards.grid;
    options->links = shards.links;
    options->addresses = (const char *const *)shards.addresses;
    options->count = shards.count;
    status = mr_retrieval_open(&t->retrieval, options, err);
    mr_shards_free(&shards, status != MR_OK);
    return status;
}

/* In a helper thread of the retrieval. */
static mr_status dial(void *context, mr_link **out, const mr_route_peer *peer, int64_t deadline_ns,
                      mr_err *err) {
    const struct mr_replay_dial *d = context;
    const mr_fabric_peer where = {.tcp = peer->address,
                                  .ucx = peer->ucx,
                                  .machine = peer->machine,
                                  .has_verbs = peer->has_verbs};
    return mr_link_connect_best(out, &where, &d->policy, deadline_ns, err);
}

static mr_status open_cluster(mr_replay_target *t, const mr_replay_target_options *o,
                              mr_retrieval_options *options, mr_err *err) {
    mr_cluster *cluster;
    mr_route route = {0};
    mr_status status = mr_cluster_find(&cluster, &o->where, NULL, err);
    if (status != MR_OK) return status;
    const mr_view *view = mr_cluster_view(cluster);
    status = mr_route_of_view(&route, view, &o->manifest->digest, err);
    if (status == MR_OK) {
        t->grid = route.grid;
        options->route = &route;
        options->dial = dial;
        options->dial_context = t->dial;
        status = mr_retrieval_open(&t->retrieval, options, err);
    }
    if (status == MR_OK)
        status = mr_retrieval_reach(t->retrieval, mr_now_ns() + REACH_S * 1000000000ll, err);
    mr_route_free(&route);
    mr_view_release(view);
    mr_cluster_close(cluster);
    return status;
}

mr_status mr_replay_target_open(mr_replay_target *out, const mr_replay_target_options *o,
                                mr_err *err) {
    mr_retrieval_options options = {.digest = o->manifest->digest,
                                    .timeout_ms = TIMEOUT_MS,
                                    .seed = 1,
                                    .spin_ns = o->spin_us * 1000};
    mr_status status = MR_OK;
    *out = (mr_replay_target){.dial = mr_alloc(sizeof(struct mr_replay_dial))};
    fill_sizes(&options, o->model);
    if (o->row_cache) status = mr_bytes_parse(&out->cache_bytes, o->row_cache, "--row-cache", err);
    if (status == MR_OK && o->fabric)
        status = mr_fabric_parse(&out->dial->policy.kind, o->fabric, err);
    options.row_cache_bytes = out->cache_bytes;
    if (status == MR_OK && o->is_cluster)
        status = open_cluster(out, o, &options, err);
    else if (status == MR_OK)
        status = o->memshards.count > 0 ? open_named(out, o, &options, err)
                                        : open_here(out, o, &options, err);
    if (status != MR_OK) mr_replay_target_close(out);
    return status;
}

void mr_replay_target_close(mr_replay_target *target) {
    mr_retrieval_close(target->retrieval);
    mr_memshard_close(target->shard);
    mr_tier_close(target->tier);
    free(target->dial);
    *target = (mr_replay_target){0};
}
