/* cmd_plan.c - `memrack plan`: what a model will need and cost on a rack that is only described. */
#include "cli/cli.h"
#include "cli/plan_model.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    int64_t nodes, replicas, batch, context;
    double dram_gib, hbm_gib, nic_gbps, latency_us, read_gbs, rows_per_s;
    bool as_json;
} plan_options;

static const char *human(char out[32], double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++) bytes /= 1024;
    snprintf(out, 32, unit ? "%.2f %s" : "%.0f %s", bytes, units[unit]);
    return out;
}

/* One table and gate are as another: layers of equal traffic are told of once. */
static void print_layers(const mr_plan_subject *s, const mr_plan_choice *best, uint32_t shards) {
    char text[32], raw[32];
    printf("\nbytes of one token in a memory layer, pooled over %ux%u (and as raw rows)\n",
           best->grid_rows, best->grid_columns);
    for (uint32_t i = 0, same; i < s->layer_count; i += same) {
        const mr_plan_traffic t = mr_plan_pooled(s, i, best->grid_rows, best->grid_columns),
                              g = mr_plan_gathered(s, i, shards);
        for (same = 1; i + same < s->layer_count; same++) {
            const mr_plan_traffic o =
                mr_plan_pooled(s, i + same, best->grid_rows, best->grid_columns);
            if (o.up != t.up || o.down != t.down) break;
        }
        char name[32];
        snprintf(name, sizeof(name), same > 1 ? "layers %u to %u" : "layer %u", i, i + same - 1);
        printf("  %-16s %s, in %u trip%s (%s)\n", name, human(text, t.up + t.down), t.trips,
               t.trips > 1 ? "s" : "", human(raw, g.up + g.down));
    }
}

static void print_choices(const mr_plan *p) {
    char text[32];
    printf("\n  %-12s %12s %7s %8s %12s %12s %12s\n", "grid", "bytes/token", "trips", "slice",
           "waited", "step", "tokens/s");
    for (uint32_t i = 0; i < p->choice_count; i++) {
        const mr_plan_choice *c = &p->choices[i];
        char grid[32];
        snprintf(grid, sizeof(grid), c->is_gather ? "raw rows" : "%ux%u", c->grid_rows,
                 c->grid_columns);
        printf("%s %-12s %12s %7u %6.0f B %9.0f us %9.0f us %12.0f\n", i == 0 ? "*" : " ", grid,
               human(text, c->token_bytes), c->trips, c->slice_bytes_min, c->wait_us, c->step_us,
               c->tokens_per_s);
    }
}

static void print_plan(const mr_plan_subject *s, const mr_plan_rack *r, const mr_plan *p) {
    char a[32], b[32];
    printf("model        %s: %u blocks, %u memory layers\n", s->name, s->blocks, s->layer_count);
    printf("rack         %u nodes, %u of them hold a copy of the tables, %u cop%s\n", r->nodes,
           p->shards, r->replicas, r->replicas > 1 ? "ies" : "y");
    printf("worker       %s of %s: weights %s", human(a, (double)p->worker_bytes),
           human(b, (double)r->hbm_bytes), p->fits_hbm ? "" : "DO NOT FIT: ");
    printf("%s, ", human(a, (double)(s->dense_bytes + s->expert_bytes)));
    printf("keys %s, ", human(a, (double)s->key_bytes));
    printf("index %s, KV %s\n", human(a, (double)s->index_bytes), human(b, (double)p->kv_bytes));
    if (s->layer_count == 0) {
        printf("step         %.0f us at batch %u: no memory layers\n", p->dense_us, r->batch);
        return;
    }
    printf("memshard     %s of %s on each node%s\n", human(a, (double)p->memshard_bytes),
           human(b, (double)r->dram_bytes), p->fits_dram ? "" : ": DOES NOT FIT");
    if (!p->fits_dram)
        printf("             the tables (%s a copy) need %u nodes of this size\n",
               human(a, (double)s->table_bytes), p->nodes_wanted);
    printf("step         %.0f us of dense work at batch %u\n", p->dense_us, r->batch);
    const mr_plan_choice *best = &p->choices[0];
    if (best->is_gather && p->choice_count > 1) best++;
    print_layers(s, best, p->shards);
    print_choices(p);
    printf("\n* best. A model of the rack, not a measurement: frame headers (96 bytes, shared by a "
           "batch)\n  and queueing are left out. 'memrack selftest --fabric' measures the real "
           "latency.\n");
}

static json_t *choice_to_json(const mr_plan_choice *c) {
    return json_pack("{s:[i,i], s:b, s:f, s:i, s:f, s:f, s:f, s:f}", "grid", (int)c->grid_rows,
                     (int)c->grid_columns, "raw_rows", (int)c->is_gather, "bytes_per_token",
                     c->token_bytes, "trips", (int)c->trips, "slice_bytes_min", c->slice_bytes_min,
                     "waited_us", c->wait_us, "step_us", c->step_us, "tokens_per_s",
                     c->tokens_per_s);
}

static void print_json(const mr_plan_subject *s, const mr_plan_rack *r, const mr_plan *p) {
    json_t *choices = json_array(), *layers = json_array();
    for (uint32_t i = 0; i < p->choice_count; i++)
        json_array_append_new(choices, choice_to_json(&p->choices[i]));
    const mr_plan_choice *best = &p->choices[p->choice_count > 1 && p->choices[0].is_gather];
    for (uint32_t i = 0; i < s->layer_count; i++) {
        const mr_plan_traffic t = mr_plan_pooled(s, i, best->grid_rows, best->grid_columns);
        json_array_append_new(layers, json_pack("{s:f, s:f, s:i}", "up", t.up, "down", t.down,
                                                "trips", (int)t.trips));
    }
    json_t *root = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:b, s:b, s:i, s:f, s:o, s:o}", "model", s->name,
        "nodes", (int)r->nodes, "replicas", (int)r->replicas, "batch", (int)r->batch, "shards",
        (int)p->shards, "memshard_bytes", (json_int_t)p->memshard_bytes, "worker_bytes",
        (json_int_t)p->worker_bytes, "kv_bytes", (json_int_t)p->kv_bytes, "fits_dram",
        (int)p->fits_dram, "fits_hbm", (int)p->fits_hbm, "nodes_wanted", (int)p->nodes_wanted,
        "dense_us", p->dense_us, "layers", layers, "choices", choices);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
    puts(text);
    free(text);
    json_decref(root);
}

static mr_status open_subject(mr_plan_subject *s, const char *model, mr_err *err) {
    mr_shape shape;
    char *config = mr_format("%s/config.json", model);
    const bool is_directory = access(config, F_OK) == 0;
    free(config);
    if (is_directory || strchr(model, '/')) return mr_plan_subject_open(s, model, err);
    const mr_status status = mr_preset_find(&shape, model, err);
    return status == MR_OK ? mr_plan_subject_of_shape(s, &shape, err) : status;
}

static mr_status run(const char *model, const plan_options *o, mr_err *err) {
    mr_plan_subject s;
    mr_plan p;
    mr_status status = open_subject(&s, model, err);
    if (status != MR_OK) return status;
    const uint32_t context =
        o->context ? (uint32_t)o->context : (s.context_tokens < 1024 ? s.context_tokens : 1024);
    const mr_plan_rack rack = {.nodes = (uint32_t)o->nodes,
                               .replicas = (uint32_t)o->replicas,
                               .dram_bytes = (uint64_t)(o->dram_gib * (double)MR_GIB),
                               .hbm_bytes = (uint64_t)(o->hbm_gib * (double)MR_GIB),
                               .nic_gbps = o->nic_gbps,
                               .latency_us = o->latency_us,
                               .read_gbs = o->read_gbs,
                               .rows_per_s = o->rows_per_s,
                               .batch = (uint32_t)o->batch,
                               .context_tokens = context};
    status = mr_plan_make(&p, &s, &rack, err);
    if (status == MR_OK && o->as_json) print_json(&s, &rack, &p);
    if (status == MR_OK && !o->as_json) print_plan(&s, &rack, &p);
    mr_plan_subject_free(&s);
    return status;
}

int mr_cmd_plan(int argc, char **argv) {
    plan_options o = {.nodes = 8,
                      .replicas = 1,
                      .batch = 32,
                      .dram_gib = 256,
                      .hbm_gib = 80,
                      .nic_gbps = 100,
                      .latency_us = 10,
                      .read_gbs = 2000,
                      .rows_per_s = 100e6};
    const char *model;
    int count;
    const mr_option options[] = {
        {"nodes", 0, MR_OPT_INT, &o.nodes, 1, MR_MAX_MEMSHARDS, "N",
         "nodes that run memshards (default 8)"},
        {"replicas", 0, MR_OPT_INT, &o.replicas, 1, MR_MAX_REPLICAS, "R",
         "copies of every cell (default 1)"},
        {"dram", 0, MR_OPT_DOUBLE, &o.dram_gib, 0.001, 1e6, "GIB",
         "memory of a node for tables (default 256)"},
        {"hbm", 0, MR_OPT_DOUBLE, &o.hbm_gib, 0.001, 1e6, "GIB",
         "memory of a worker, an accelerator's or a host's (default 80)"},
        {"nic-gbps", 0, MR_OPT_DOUBLE, &o.nic_gbps, 0.001, 1e5, "G",
         "gigabits a second of a node's NIC (default 100)"},
        {"latency-us", 0, MR_OPT_DOUBLE, &o.latency_us, 0.01, 1e6, "US",
         "one round trip between two nodes (default 10)"},
        {"batch", 0, MR_OPT_INT, &o.batch, 1, MR_MAX_STEP_SEQUENCES, "N",
         "sequences in a step (default 32)"},
        {"context", 0, MR_OPT_INT, &o.context, 1, MR_MAX_CONTEXT, "N",
         "tokens each of them has so far (default 1024, or the model's context)"},
        {"read-gbs", 0, MR_OPT_DOUBLE, &o.read_gbs, 0.1, 1e6, "G",
         "gigabytes a second a worker reads its memory at (default 2000)"},
        {"rows-per-s", 0, MR_OPT_DOUBLE, &o.rows_per_s, 1e3, 1e12, "N",
         "rows a node pools in a second (default 1e8)"},
        {"json", 0, MR_OPT_FLAG, &o.as_json, 0, 0, NULL, "print one JSON object"},
        {0}};
    const mr_command_spec spec = {
        "memrack plan MODEL [options]",
        "Predicts, for a rack that is only described, the memory of each node, the bytes a token\n"
        "costs, the time of a step, and the best grid. MODEL is a directory or a preset\n"
        "('memrack synth --list'). Reads headers only.\n\n"
        "  memrack plan ultramem-1.6b-x12 --nodes 8 --nic-gbps 100 --latency-us 10",
        options, 1, 1};
    mr_err err = {{0}};
    const int code = mr_cli_parse(&spec, argc, argv, &model, &count);
    if (code >= 0) return code;
    const mr_status status = run(model, &o, &err);
    return status == MR_OK ? 0 : mr_cli_fail("plan", status, &err);
}
