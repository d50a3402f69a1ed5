/* cmd_replay.c - `memrack replay`: what would recorded retrievals cost with other shards, another
 * grid, a tier, a cache? The recorded row ids are asked for again with made-up scores (a recording
 * has none; sums take as long whatever their terms), one retrieval at a time, as a worker does. */
#include "cli/cli.h"
#include "cli/cluster_find.h"
#include "cli/replay.h"
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/model.h"
#include "common/model/product_keys.h"
#include "common/net/fabric_choice.h"
#include "common/ops/team.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SAMPLES_MAX = 1 << 24 };

typedef struct {
    const char *model, *make, *recording;
    mr_replay_target_options target;
    double speed;
    int64_t passes, batch, seed;
    bool is_json, two_trips;
} arguments;

typedef struct {
    const arguments *a;
    const mr_model *model;
    const mr_manifest *manifest;
    mr_replay_target target;
    mr_replay_facts facts;
    float *score, *x, *out; /* made up; [cores][tokens * entries], [tokens][pre_width] */
    size_t score_count, x_count, out_count;
    int16_t exponent[MR_MAX_STEP_TOKENS], dot_exponent[MR_MAX_STEP_TOKENS];
    uint8_t *no_slot;
    size_t no_slot_count;
    int64_t *sample; /* [sample_count] */
    size_t sample_count, sample_room;
    int64_t busy_ns, late_ns; /* asking; behind the recorded times, at most */
    mr_retrieval_stats stats;
    mr_tier_counters tier;
    uint64_t tokens, rows;
} replay;

/* --- one retrieval ---------------------------------------------------------------------------- */

static void grow(float **data, size_t *have, size_t want, bool is_made_up) {
    uint64_t state = 7;
    if (want <= *have) return;
    *data = mr_realloc_array(*data, want, sizeof(float));
    for (size_t i = 0; is_made_up && i < want; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        (*data)[i] = (float)(state >> 40) * 0x1p-24f - 0.5f;
    }
    *have = want;
}

static mr_status fill_request(replay *p, mr_retrieval_request *q, const mr_recorded *r,
                              mr_err *err) {
    const mr_memory_layer *l = mr_model_memory(p->model, r->layer);
    const mr_table_shape *table = mr_model_table(p->model, l->table);
    const mr_table_facts *facts = &p->manifest->tables[l->table];
    const size_t all = (size_t)r->tokens * r->entries;
    grow(&p->score, &p->score_count, all * l->cores, true);
    grow(&p->x, &p->x_count, (size_t)r->tokens * table->pre_width, true);
    grow(&p->out, &p->out_count, (size_t)r->tokens * l->slots_out * table->width, false);
    if (!r->slot && all > p->no_slot_count) {
        free(p->no_slot);
        p->no_slot = mr_alloc(p->no_slot_count = all);
    }
    *q = (mr_retrieval_request){.layer = r->layer,
                                .tokens = r->tokens,
                                .entries = r->entries,
                                .cores = l->cores,
                                .slots = l->slots_out,
                                .width = table->width,
                                .pre_width = table->pre_width,
                                .table_rows = table->rows,
                                .accumulator_bits = facts->accumulator_bits,
                                .gated = l->gated,
                                .gelu = l->gelu,
                                .two_trips = p->a->two_trips,
                                .table = l->table,
                                .storage = table->storage,
                                .row = r->row,
                                .slot = r->slot ? r->slot : p->no_slot,
                                .score = p->score,
                                .x = p->x,
                                .value_exponent = p->exponent,
                                .dot_exponent = p->dot_exponent};
    return mr_product_exponents(p->exponent, p->dot_exponent, l, facts, p->score, r->tokens, p->x,
                                table->pre_width, err);
}

static mr_status ask(replay *p, const mr_recorded *r, mr_err *err) {
    mr_retrieval_request request;
    mr_status status = fill_request(p, &request, r, err);
    const int64_t began = mr_now_ns();
    if (status == MR_OK) status = mr_retrieval_begin(p->target.retrieval, &request, err);
    if (status == MR_OK) status = mr_retrieval_finish(p->target.retrieval, p->out, NULL, err);
    const int64_t took = mr_now_ns() - began;
    p->busy_ns += took;
    p->tokens += r->tokens;
    p->rows += (uint64_t)r->tokens * r->entries;
    if (p->sample_count < p->sample_room) p->sample[p->sample_count++] = took;
    return status;
}

/* Until the recorded time, by the clock of a replay that is `speed` times as fast. */
static void await_time(replay *p, int64_t began_ns, int64_t at_ns) {
    const int64_t due = began_ns + (int64_t)((double)at_ns / p->a->speed), now = mr_now_ns();
    if (now - due > p->late_ns) p->late_ns = now - due;
    if (now >= due) return;
    const struct timespec pause = {(due - now) / 1000000000, (due - now) % 1000000000};
    nanosleep(&pause, NULL);
}

static mr_status replay_all(replay *p, mr_recording *recording, mr_err *err) {
    const uint64_t ours = mr_recorded_model(&p->manifest->digest);
    mr_status status = MR_OK;
    for (int64_t pass = 0; pass < p->a->passes && status == MR_OK; pass++) {
        const int64_t began = mr_now_ns();
        bool is_end = false;
        mr_recorded r;
        mr_recording_rewind(recording);
        for (;;) {
            status = mr_recording_next(recording, &r, &is_end, err);
            if (status != MR_OK || is_end) break;
            if (r.model != ours) continue;
            if (p->a->speed > 0) await_time(p, began, r.at_ns);
            status = ask(p, &r, err);
            if (status != MR_OK) break;
        }
    }
    p->stats = mr_retrieval_take_stats(p->target.retrieval);
    if (p->target.tier) mr_tier_count(p->target.tier, &p->tier);
    return status;
}

/* --- the report ------------------------------------------------------------------------------- */

static int by_time(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_us(const replay *p, double q) {
    if (p->sample_count == 0) return 0;
    const size_t at = (size_t)(q * (double)(p->sample_count - 1) + 0.5);
    return (double)p->sample[at] / 1e3;
}

static double share(uint64_t part, uint64_t rest) {
    return part + rest > 0 ? (double)part / (double)(part + rest) : 0;
}

typedef struct {
    const char *name, *text;
    double value;
    bool is_shown;
} figure;
enum { FIGURES_MAX = 24 };

static uint32_t list_figures(figure out[FIGURES_MAX], replay *p) {
    const mr_retrieval_stats *s = &p->stats;
    const double busy_s = (double)p->busy_ns / 1e9, layers = (double)p->facts.layers;
    const double tokens = (double)(p->tokens ? p->tokens : 1);
    qsort(p->sample, p->sample_count, sizeof(*p->sample), by_time);
    const bool has_cache = s->cache_hits + s->cache_misses > 0, has_tier = p->target.tier != NULL;
    const figure all[] = {
        {"retrievals", "retrievals", (double)p->sample_count, true},
        {"retrievals_per_second", "retrievals a second, one at a time",
         (double)p->sample_count / busy_s, true},
        {"requests_per_second", "requests to cells a second", (double)s->requests / busy_s, true},
        {"rows_per_second", "rows a second", (double)p->rows / busy_s, true},
        {"p50_us", "microseconds a retrieval, p50", quantile_us(p, 0.5), true},
        {"p99_us", "  p99", quantile_us(p, 0.99), true},
        {"p999_us", "  p99.9", quantile_us(p, 0.999), true},
        {"bytes_up_per_token", "bytes a token up, all recorded layers",
         (double)s->bytes_up / tokens * layers, true},
        {"bytes_down_per_token", "bytes a token down", (double)s->bytes_down / tokens * layers,
         true},
        {"duplicate_rate", "rows asked for more than once in their retrieval",
         1 - (double)p->facts.distinct / (double)p->facts.rows, true},
        {"row_cache_hit_rate", "row cache: hit rate", share(s->cache_hits, s->cache_misses),
         has_cache},
        {"tier_hit_rate", "tier: blocks found in memory", share(p->tier.hits, p->tier.misses),
         has_tier},
        {"tier_reads", "tier: reads of the device", (double)p->tier.reads, has_tier},
        {"tier_read_bytes", "tier: bytes read", (double)p->tier.read_bytes, has_tier},
        {"hedges", "hedged requests", s->hedges, s->hedges > 0},
        {"resends", "requests sent again", s->resends, s->resends > 0},
        {"late_ms", "behind the recorded times, at most, ms", (double)p->late_ns / 1e6,
         p->a->speed > 0},
        {"dropped_when_recorded", "retrievals the recording lacks", (double)p->facts.dropped,
         p->facts.dropped > 0},
        {"of_other_models", "retrievals of other models, left out", (double)p->facts.others,
         p->facts.others > 0},
    };
    const uint32_t count = sizeof(all) / sizeof(all[0]);
    memcpy(out, all, sizeof(all));
    return count;
}

static void report(replay *p) {
    figure all[FIGURES_MAX];
    const uint32_t count = list_figures(all, p);
    json_t *root = json_object();
    for (uint32_t i = 0; i < count; i++) {
        if (!all[i].is_shown) continue;
        if (p->a->is_json)
            json_object_set_new(root, all[i].name, json_real(all[i].value));
        else
            printf("%-50s %14.*f\n", all[i].text, all[i].value < 100 ? 3 : 0, all[i].value);
    }
    if (p->a->is_json) {
        char *text = json_dumps(root, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
        puts(text);
        free(text);
    }
    json_decref(root);
}

/* --- the command ------------------------------------------------------------------------------ */

static mr_status run_replay(replay *p, mr_err *err) {
    mr_recording recording;
    mr_replay_target_options target = p->a->target;
    mr_status status = mr_recording_open(&recording, p->a->recording, err);
    if (status != MR_OK) return status;
    status = mr_replay_check(&p->facts, &recording, p->model, &p->manifest->digest, err);
    if (status != MR_OK) {
        mr_fail_prefix(err, status, "%s", p->a->recording);
        goto close_recording;
    }
    target.model = p->model;
    target.manifest = p->manifest;
    status = mr_replay_target_open(&p->target, &target, err);
    if (status != MR_OK) goto close_recording;
    const uint64_t samples = p->facts.retrievals * (uint64_t)p->a->passes;
    p->sample_room = samples < SAMPLES_MAX ? samples : SAMPLES_MAX;
    p->sample = mr_alloc_array(p->sample_room, sizeof(*p->sample));
    status = replay_all(p, &recording, err);
    if (status == MR_OK) report(p);
    mr_replay_target_close(&p->target);
close_recording:
    mr_recording_close(&recording);
    free(p->sample);
    free(p->score);
    free(p->x);
    free(p->out);
    free(p->no_slot);
    return status;
}

static mr_status run(const arguments *a, mr_err *err) {
    mr_model *model;
    mr_manifest manifest = {0};
    mr_status status = mr_model_open(&model, a->model, err);
    if (status != MR_OK) return status;
    if (mr_model_memory_count(model) == 0)
        status = mr_fail(err, MR_ERR_ARGUMENT, "%s has no memory layers", a->model);
    if (status == MR_OK) status = mr_manifest_load(&manifest, model, mr_cli_progress, NULL, err);
    if (status == MR_OK && a->make) {
        status = mr_replay_make(a->recording, a->make, (uint32_t)a->batch, (uint64_t)a->seed, model,
                                &manifest.digest, err);
        if (status == MR_OK) printf("%s is written\n", a->recording);
    } else if (status == MR_OK) {
        replay *p = mr_alloc(sizeof(*p));
        p->a = a;
        p->model = model;
        p->manifest = &manifest;
        status = run_replay(p, err);
        free(p);
    }
    mr_manifest_free(&manifest);
    mr_model_close(model);
    return status;
}

static mr_status check(arguments *a, mr_err *err) {
    mr_replay_target_options *t = &a->target;
    t->is_cluster = t->where.cluster != NULL || t->where.name != NULL;
    if (!a->model) return mr_fail(err, MR_ERR_ARGUMENT, "--model is missing; try --help");
    if (t->memshards.count > MR_MAX_MEMSHARDS)
        return mr_fail(err, MR_ERR_LIMIT, "%u memshards; at most %d", t->memshards.count,
                       MR_MAX_MEMSHARDS);
    if (t->is_cluster && t->memshards.count > 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "--cluster or --memshard, not both");
    if ((t->is_cluster || t->memshards.count > 0) && (t->grid || t->tier_ram))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--grid and --tier-ram are of the shard in this process: not together with "
                       "--cluster or --memshard");
    return MR_OK;
}

int mr_cmd_replay(int argc, char **argv) {
    arguments a = {.passes = 1, .batch = 1, .seed = 1};
    mr_replay_target_options *t = &a.target;
    const mr_option options[] = {
        {"model", 'm', MR_OPT_TEXT, &a.model, 0, 0, "DIR", "the model's folder"},
        {"make", 0, MR_OPT_TEXT, &a.make, 0, 0, "zipf:SKEW:TOKENS",
         "make FILE up instead of replaying it: so many tokens in every layer"},
        {"batch", 0, MR_OPT_INT, &a.batch, 1, MR_MAX_STEP_TOKENS, "N",
         "with --make: tokens of a step (1)"},
        {"seed", 0, MR_OPT_INT, &a.seed, 0, 1e15, "N", "with --make: of its random numbers (1)"},
        {"memshard", 's', MR_OPT_LIST, &t->memshards, 0, 0, "ADDR",
         "ask running memshards; once for each, in any order"},
        MR_CLUSTER_FIND_OPTIONS(&t->where),
        {"grid", 'g', MR_OPT_TEXT, &t->grid, 0, 0, "GxW", "in this process: cut so (1x1)"},
        {"tier-ram", 0, MR_OPT_TEXT, &t->tier_ram, 0, 0, "BYTES",
         "in this process: rows stay in their files, the hot ones in so much memory"},
        {"row-cache", 0, MR_OPT_TEXT, &t->row_cache, 0, 0, "BYTES",
         "keep hot rows of layers without a gate on the asking side (none)"},
        {"fabric", 0, MR_OPT_TEXT, &t->fabric, 0, 0, "KIND",
         "to memshards of a cluster: auto, tcp, shm or rdma (auto)"},
        {"spin-us", 0, MR_OPT_INT, &t->spin_us, 0, 1000, "US",
         "look for answers so long before sleeping (0)"},
        {"two-trips", 0, MR_OPT_FLAG, &a.two_trips, 0, 0, NULL,
         "gate here where one trip would do"},
        {"speed", 0, MR_OPT_DOUBLE, &a.speed, 0, 1e6, "X",
         "keep to the recorded times, X times as fast (0: as fast as possible)"},
        {"passes", 0, MR_OPT_INT, &a.passes, 1, 1000000, "N", "replay it so often (1)"},
        {"json", 'j', MR_OPT_FLAG, &a.is_json, 0, 0, NULL, "figures as one JSON object"},
        {0}};
    const mr_command_spec spec = {
        "memrack replay FILE --model DIR [--memshard ADDR.. | --cluster WHERE] [options]",
        "Asks again for the rows that `memrack-worker --record FILE` saw, of other shards or of a\n"
        "shard in this process, and prints rates, times, bytes and hit rates. Recordings hold row\n"
        "ids, never prompts; scores are made up.\n"
        "Example: memrack replay trace --model models/demo --make zipf:0.8:1000\n"
        "         memrack replay trace --model models/demo --tier-ram 4MiB",
        options, 1, 1};
    mr_err err = {{0}};
    int count;
    const int done = mr_cli_parse(&spec, argc, argv, &a.recording, &count);
    if (done >= 0) return done;
    mr_float_environment();
    mr_fabric_set_spin((uint32_t)t->spin_us);
    mr_status status = check(&a, &err);
    if (status == MR_OK) status = run(&a, &err);
    free(t->memshards.items);
    return status == MR_OK ? 0 : mr_cli_fail(argv[0], status, &err);
}
