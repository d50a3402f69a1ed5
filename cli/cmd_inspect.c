/* cmd_inspect.c - `memrack inspect`: what a model is, what a token touches, what each role will
 * hold. */
#include "cli/cli.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/grid.h"
#include "common/model/manifest.h"
#include "common/model/rows.h"
#include "common/model/matrices.h"
#include "worker/engine.h"
#include "worker/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Elements and bytes of a kind of tensor. */
typedef struct {
    uint64_t elements, bytes;
} amount;

typedef struct {
    amount dense, experts, keys, shuffle, tables;
    uint64_t token_dense, token_experts, token_keys, token_shuffle, token_rows, token_kv;
} facts;

static void add(amount *a, const mr_tensor *t) {
    a->elements += mr_tensor_numbers(t);
    a->bytes += t->bytes;
}

/* Numbers of a table tensor; 0: it is none. A row of scales and codes has other bytes. */
static uint64_t table_elements(const mr_model *model, const mr_tensor *t) {
    for (uint32_t i = 0; i < mr_model_table_count(model); i++) {
        const mr_table_shape *shape = mr_model_table(model, i);
        if (shape->values == t) return shape->rows * shape->width;
        if (shape->pre_values == t) return shape->rows * shape->pre_width;
    }
    return 0;
}

static facts gather(const mr_model *model) {
    const mr_config *c = mr_model_config(model);
    facts f = {0};
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        uint32_t index;
        bool is_memory;
        const mr_tensor_kind kind = mr_tensor_kind_of(&index, &is_memory, t->name);
        if (kind == MR_TENSOR_UNUSED || (kind == MR_TENSOR_HEAD && c->tied)) continue;
        const uint64_t numbers = table_elements(model, t);
        if (numbers > 0) {
            f.tables.elements += numbers;
            f.tables.bytes += t->bytes;
        } else if (kind == MR_TENSOR_SHUFFLE)
            add(&f.shuffle, t);
        else if (kind == MR_TENSOR_KEYS)
            add(&f.keys, t);
        else if (kind == MR_TENSOR_EXPERT)
            add(&f.experts, t);
        else
            add(&f.dense, t);
    }
    /* the embedding: one row, but where it is the head, too */
    const bool is_head = c->tied && !c->quant.is_packed;
    f.token_dense = f.dense.bytes - (is_head ? 0 : mr_model_embedding(model)->bytes);
    if (c->moe) f.token_experts = f.experts.bytes / c->experts * c->experts_per_token;
    f.token_keys = f.keys.bytes;
    for (uint32_t i = 0; i < c->memory_count; i++) {
        const mr_memory_layer *l = mr_model_memory(model, i);
        const mr_table_shape *t = mr_model_table(model, l->table);
        f.token_rows += (uint64_t)l->entries * (mr_storage_bytes(t->storage, t->width) +
                                                mr_storage_bytes(t->pre_storage, t->pre_width));
        if (l->shuffled) f.token_shuffle += 4ull * l->entries;
    }
    f.token_kv = 2ull * c->n_layers * c->n_kv_heads * c->head_dim * sizeof(float);
    return f;
}

static const char *human(char out[32], uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(out, 32, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
    return out;
}

static void print_windows(const mr_config *c) {
    uint32_t sliding = 0, window = 0;
    for (uint32_t b = 0; b < c->n_layers; b++)
        if (mr_config_window(c, b)) {
            sliding++;
            window = mr_config_window(c, b);
        }
    if (sliding)
        printf("sliding window   %u tokens in %u of %u blocks\n", window, sliding, c->n_layers);
}

static void print_architecture(const mr_model *model) {
    const mr_config *c = mr_model_config(model);
    printf("model            %s\n", mr_model_name(model));
    if (c->family != MR_FAMILY_OFFICIAL) printf("family           %s\n", mr_family_name(c->family));
    printf("blocks           %u x %s, d_model %u, %u heads of %u (%u for keys and values)\n",
           c->n_layers, c->moe ? "moe" : "sequential", c->d_model, c->n_heads, c->head_dim,
           c->n_kv_heads);
    printf("norm             %s%s, eps %g%s; rope theta %g%s; context %u tokens\n",
           c->norm == MR_NORM_RMS     ? "rms"
           : c->norm == MR_NORM_LAYER ? "layer"
                                      : "layer without weights",
           c->norm_after ? " after each part" : "", (double)c->norm_eps,
           c->qk_norm ? ", on queries and keys too" : "", c->rope_theta,
           c->rope_scaling.kind == MR_ROPE_LINEAR   ? ", scaled linearly"
           : c->rope_scaling.kind == MR_ROPE_LLAMA3 ? ", scaled as llama3"
                                                    : "",
           c->context_tokens);
    print_windows(c);
    printf("vocabulary       %u ids, head of %u rows, %s\n", c->vocab_size, c->head_rows,
           c->tied ? "tied" : "untied");
    printf("stored as        %s%s\n",
           mr_storage_name(mr_storage_type_of(mr_weights_storage(model))),
           c->quant.is_packed ? ", in panels that workers map" : "");
    if (c->moe)
        printf("experts          %u of width %u, %u a token%s\n", c->experts, c->expert_hidden,
               c->experts_per_token, c->moe_renormalize ? ", weights renormalised" : "");
    if (c->shared_hidden) printf("shared expert    swiglu, %u inner, gated\n", c->shared_hidden);
    if (mr_config_has_dense(c)) printf("feed-forward     swiglu, %u inner\n", c->mlp_hidden / 2);
    if (c->memory_count == 0) return;
    const mr_memory_layer *l = mr_model_memory(model, 0);
    printf("memory           %s, %u layers (read:added", mr_memory_kind_name(c->memory),
           c->memory_count);
    for (uint32_t i = 0; i < c->memory_count && i < 12; i++)
        printf(" %u:%u", c->insertions[i].source, c->insertions[i].destination);
    printf("%s)\n", c->memory_count > 12 ? " ..." : "");
    printf("                 %u heads x top-%u, %u keys a side of %u, rank %u, %u cores, %u "
           "slots%s%s\n",
           l->heads, l->knn, l->keys_per_side, l->key_dim, l->rank, l->cores, l->slots,
           l->gated ? ", gated by pre-values" : "", l->gelu ? " through GELU" : "");
    for (uint32_t i = 0; i < mr_model_table_count(model); i++) {
        const mr_table_shape *t = mr_model_table(model, i);
        const char *name = mr_storage_name(mr_storage_type_of(t->storage));
        const char *pre = mr_storage_name(mr_storage_type_of(t->pre_storage));
        const bool differs = t->pre_width > 0 && strcmp(name, pre) != 0;
        printf("table %-10u %llu rows of %u%s%.0u %s%s%s\n", i, (unsigned long long)t->rows,
               t->width, t->pre_width ? " + " : "", t->pre_width, name, differs ? " + " : "",
               differs ? pre : "");
    }
}

static void print_amount(const char *name, const amount *a) {
    char text[32];
    if (a->elements == 0) return;
    printf("  %-14s %15llu  %s\n", name, (unsigned long long)a->elements, human(text, a->bytes));
}

static void print_facts(const facts *f) {
    char text[32];
    const amount all = {f->dense.elements + f->experts.elements + f->keys.elements +
                            f->tables.elements,
                        f->dense.bytes + f->experts.bytes + f->keys.bytes + f->tables.bytes};
    printf("\nparameters\n");
    print_amount("dense", &f->dense);
    print_amount("experts", &f->experts);
    print_amount("product keys", &f->keys);
    print_amount("value tables", &f->tables);
    print_amount("together", &all);
    print_amount("shuffle index", &f->shuffle);
    printf("\nbytes one token touches (batch 1, as stored)\n");
    printf("  %-14s %s\n", "dense", human(text, f->token_dense));
    if (f->token_experts) printf("  %-14s %s\n", "experts", human(text, f->token_experts));
    if (f->token_keys) printf("  %-14s %s\n", "product keys", human(text, f->token_keys));
    if (f->token_rows) printf("  %-14s %s\n", "table rows", human(text, f->token_rows));
    if (f->token_shuffle) printf("  %-14s %s\n", "shuffle index", human(text, f->token_shuffle));
    printf("  %-14s %s a token of context\n", "KV cache", human(text, f->token_kv));
}

static void print_roles(const mr_engine_memory *m, uint32_t shards) {
    char text[32];
    printf("\nmemory by role\n");
    printf("  worker         %s weights and keys", human(text, m->weight_bytes));
    printf(", %s shuffle index", human(text, m->index_bytes));
    printf(", %s KV cache", human(text, m->kv_bytes));
    printf(", %s buffers\n", human(text, m->buffer_bytes));
    if (m->table_bytes == 0) return;
    printf("  memshard       %s", human(text, m->table_bytes / shards));
    printf(" of tables each (%u of them; --memshards N for others)\n", shards);
    printf("  one process    %s",
           human(text, m->weight_bytes + m->index_bytes + m->kv_bytes + m->buffer_bytes));
    printf(" and the tables mapped from the file\n");
}

static void print_json(const mr_model *model, const facts *f, const mr_engine_memory *m) {
    const mr_config *c = mr_model_config(model);
    json_t *root =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:{s:I, s:I, s:I, s:I, s:I}, s:{s:I, s:I, s:I, s:I, "
                  "s:I, s:I}, s:{s:I, s:I, s:I, s:I, s:I}}",
                  "model", mr_model_name(model), "memory", mr_memory_kind_name(c->memory), "layers",
                  (int)c->n_layers, "memory_layers", (int)c->memory_count, "context",
                  (int)c->context_tokens, "parameters", "dense", (json_int_t)f->dense.elements,
                  "experts", (json_int_t)f->experts.elements, "keys", (json_int_t)f->keys.elements,
                  "shuffle_index", (json_int_t)f->shuffle.elements, "tables",
                  (json_int_t)f->tables.elements, "bytes_per_token", "dense",
                  (json_int_t)f->token_dense, "experts", (json_int_t)f->token_experts, "keys",
                  (json_int_t)f->token_keys, "rows", (json_int_t)f->token_rows, "shuffle_index",
                  (json_int_t)f->token_shuffle, "kv_per_context_token", (json_int_t)f->token_kv,
                  "bytes_held", "weights", (json_int_t)m->weight_bytes, "shuffle_index",
                  (json_int_t)m->index_bytes, "kv", (json_int_t)m->kv_bytes, "buffers",
                  (json_int_t)m->buffer_bytes, "tables", (json_int_t)m->table_bytes);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    puts(text);
    free(text);
    json_decref(root);
}

int mr_cmd_inspect(int argc, char **argv) {
    bool as_json = false;
    int64_t shards = 2;
    const char *directory;
    int count;
    const mr_option options[] = {
        {"json", 0, MR_OPT_FLAG, &as_json, 0, 0, NULL, "print one JSON object"},
        {"memshards", 0, MR_OPT_INT, &shards, 1, MR_MAX_MEMSHARDS, "N",
         "show what each of N memshards holds (default 2)"},
        {0}};
    const mr_command_spec spec = {
        "memrack inspect MODEL [options]",
        "Shows what a model is, how many parameters it has, how many bytes one token touches,\n"
        "and how much memory each role will hold. Reads headers only.\n\n"
        "  memrack inspect models/demo",
        options, 1, 1};
    mr_model *model;
    mr_engine_memory memory;
    mr_err err = {{0}};
    const int code = mr_cli_parse(&spec, argc, argv, &directory, &count);
    if (code >= 0) return code;
    mr_status status = mr_model_open(&model, directory, &err);
    if (status != MR_OK) return mr_cli_fail("inspect", status, &err);
    const mr_engine_options engine = {.model = model};
    status = mr_engine_plan(&memory, &engine, &err);
    if (status == MR_OK) {
        const facts f = gather(model);
        if (as_json)
            print_json(model, &f, &memory);
        else {
            print_architecture(model);
            print_facts(&f);
            print_roles(&memory, (uint32_t)shards);
        }
    }
    mr_model_close(model);
    return status == MR_OK ? 0 : mr_cli_fail("inspect", status, &err);
}
