/* cmd_logits.c - `memrack logits`: the engine as a function from token ids to logits. What every
 * comparison with another implementation goes through. */
#include "cli/cli.h"
#include "cli/embedded.h"
#include "cli/logits_io.h"

#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "worker/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *input, *output, *connect, *batch_with, *grid, *isa, *numeric;
    int64_t threads, prefill_chunk, decode_from, stages;
    bool trace;
} arguments;

/* Output tensors of one memory layer or MoE block. */
typedef struct {
    uint32_t indices, rows, scores, pre_score, input, output;
} traced;

typedef struct {
    mr_embedded cluster;
    const arguments *a;
    mr_id_matrix ids, beside;
    uint32_t *positions; /* [sequences] next position of each */
    uint32_t sequences;  /* ids.batch, then beside.batch */
    uint32_t first;      /* first sequence of the group being run */
    mr_writer *writer;
    uint32_t logits;
    traced *memories, *blocks;
    mr_status status; /* of writing, inside callbacks */
    mr_err err;
    /* the step under way */
    mr_wire_sequence *step_sequences;
    int32_t *step_tokens;
    uint32_t *step_blocks;
    uint32_t *step_of;   /* [step sequence] which sequence */
    uint32_t *token_row; /* [step token] row in [B*T], or UINT32_MAX for sequences beside */
} job;

enum { GROUP_TOKENS = 1 << 15, STEP_TOKENS = 512, STEP_SEQUENCES = 64 };

static const mr_id_matrix *matrix_of(const job *j, uint32_t sequence, uint32_t *row) {
    if (sequence < j->ids.batch) {
        *row = sequence;
        return &j->ids;
    }
    *row = sequence - j->ids.batch;
    return &j->beside;
}

static void put(job *j, uint32_t tensor, uint64_t offset, const void *data, size_t bytes) {
    if (j->status == MR_OK)
        j->status = mr_writer_put(j->writer, tensor, offset, data, bytes, &j->err);
}

/* --- what the step reports -------------------------------------------------------------------- */

static void on_logits(void *context, uint32_t sequence, uint32_t position, const float *logits,
                      uint32_t columns) {
    job *j = context;
    const uint32_t b = j->step_of[sequence];
    if (b >= j->ids.batch) return;
    const uint64_t bytes = (uint64_t)columns * sizeof(float);
    put(j, j->logits, ((uint64_t)b * j->ids.tokens + position) * bytes, logits, (size_t)bytes);
}

static void put_wide(job *j, uint32_t tensor, uint32_t row, const uint32_t *values,
                     uint32_t count) {
    int64_t wide[MR_MAX_MEM_ENTRIES];
    for (uint32_t i = 0; i < count; i++) wide[i] = values[i];
    put(j, tensor, (uint64_t)row * count * 8, wide, count * sizeof(*wide));
}

static void on_memory(void *context, const mr_memory_trace *m) {
    job *j = context;
    const traced *out = &j->memories[m->layer];
    const uint32_t k = m->entries, d = mr_model_config(j->cluster.model)->d_model;
    const size_t all = (size_t)m->tokens * k;
    float *scores = mr_alloc_array((size_t)k * m->cores, sizeof(float));
    for (uint32_t t = 0; t < m->tokens; t++) {
        const uint32_t row = j->token_row[t];
        if (row == UINT32_MAX) continue;
        for (uint32_t e = 0; e < k; e++)
            for (uint32_t c = 0; c < m->cores; c++)
                scores[(size_t)e * m->cores + c] = m->score[c * all + (size_t)t * k + e];
        put_wide(j, out->indices, row, m->index + (size_t)t * k, k);
        put_wide(j, out->rows, row, m->row + (size_t)t * k, k);
        put(j, out->scores, (uint64_t)row * k * m->cores * 4, scores, (size_t)k * m->cores * 4);
        if (m->pre) put(j, out->pre_score, (uint64_t)row * k * 4, m->pre + (size_t)t * k, k * 4ull);
        put(j, out->input, (uint64_t)row * d * 4, m->input + (size_t)t * d, d * 4ull);
        put(j, out->output, (uint64_t)row * d * 4, m->output + (size_t)t * d, d * 4ull);
    }
    free(scores);
}

static void on_moe(void *context, const mr_moe_trace *m) {
    job *j = context;
    const traced *out = &j->blocks[m->block];
    const uint32_t k = m->experts, d = mr_model_config(j->cluster.model)->d_model;
    for (uint32_t t = 0; t < m->tokens; t++) {
        const uint32_t row = j->token_row[t];
        if (row == UINT32_MAX) continue;
        put_wide(j, out->indices, row, m->index + (size_t)t * k, k);
        put(j, out->scores, (uint64_t)row * k * 4, m->weight + (size_t)t * k, k * 4ull);
        put(j, out->input, (uint64_t)row * d * 4, m->input + (size_t)t * d, d * 4ull);
        put(j, out->output, (uint64_t)row * d * 4, m->output + (size_t)t * d, d * 4ull);
    }
}

/* --- declaring the output --------------------------------------------------------------------- */

static void declare(job *j, uint32_t *out, const char *format, uint32_t index, mr_dtype dtype,
                    uint32_t dims, const uint64_t *shape) {
    char name[64];
    if (j->status != MR_OK) return;
    snprintf(name, sizeof(name), format[0] == 'm' ? "memory.%u.%s" : "moe.%u.%s", index,
             format + 1);
    j->status = mr_writer_declare(j->writer, out, name, dtype, dims, shape, &j->err);
}

static void declare_trace(job *j) {
    const mr_config *c = mr_model_config(j->cluster.model);
    const uint64_t n = (uint64_t)j->ids.batch * j->ids.tokens, d = c->d_model;
    const bool softmax = mr_memory_is_plain(c->memory);
    j->memories = mr_alloc_array(c->memory_count, sizeof(*j->memories));
    j->blocks = mr_alloc_array(c->n_layers, sizeof(*j->blocks));
    for (uint32_t i = 0; i < c->memory_count; i++) {
        const mr_memory_layer *l = mr_model_memory(j->cluster.model, i);
        const uint64_t k[3] = {n, l->entries, l->cores}, wide[2] = {n, d};
        traced *t = &j->memories[i];
        declare(j, &t->indices, "mindices", i, MR_DTYPE_I64, 2, k);
        declare(j, &t->rows, "mrows", i, MR_DTYPE_I64, 2, k);
        declare(j, &t->scores, "mscores", i, MR_DTYPE_F32, softmax ? 2 : 3, k);
        if (l->gated) declare(j, &t->pre_score, "mpre_score", i, MR_DTYPE_F32, 2, k);
        declare(j, &t->input, "minput", i, MR_DTYPE_F32, 2, wide);
        declare(j, &t->output, "moutput", i, MR_DTYPE_F32, 2, wide);
    }
    for (uint32_t b = 0; b < c->n_layers; b++) {
        if (!mr_config_is_moe(c, b)) continue;
        const uint64_t k[2] = {n, c->experts_per_token}, wide[2] = {n, d};
        traced *t = &j->blocks[b];
        declare(j, &t->indices, "bindices", b, MR_DTYPE_I64, 2, k);
        declare(j, &t->scores, "bweights", b, MR_DTYPE_F32, 2, k);
        declare(j, &t->input, "binput", b, MR_DTYPE_F32, 2, wide);
        declare(j, &t->output, "boutput", b, MR_DTYPE_F32, 2, wide);
    }
}

static mr_status open_output(job *j, mr_err *err) {
    const uint64_t shape[3] = {j->ids.batch, j->ids.tokens,
                               mr_model_config(j->cluster.model)->head_rows};
    j->writer = mr_writer_new();
    j->status = mr_writer_declare(j->writer, &j->logits, "logits", MR_DTYPE_F32, 3, shape, &j->err);
    if (j->a->trace) declare_trace(j);
    if (j->status == MR_OK) j->status = mr_writer_begin_file(j->writer, j->a->output, &j->err);
    return j->status == MR_OK ? MR_OK : mr_fail(err, j->status, "%s", j->err.text);
}

/* --- running ---------------------------------------------------------------------------------- */

static uint32_t blocks_for(uint32_t tokens) {
    return (tokens + MR_KV_BLOCK_TOKENS - 1) / MR_KV_BLOCK_TOKENS;
}

/* How many tokens a sequence would like to put into the next step. */
static uint32_t next_tokens(const job *j, uint32_t position, uint32_t length, uint32_t room) {
    uint32_t count = length - position;
    const uint32_t decode_from = (uint32_t)j->a->decode_from;
    if (decode_from && position >= decode_from)
        count = 1;
    else if (decode_from && position + count > decode_from)
        count = decode_from - position;
    if (j->a->prefill_chunk && count > j->a->prefill_chunk) count = (uint32_t)j->a->prefill_chunk;
    return count < room ? count : room;
}

/* One step over the group [first, end); false: nothing was left to do. */
static bool build_step(job *j, uint32_t end, mr_step *step) {
    uint32_t tokens = 0, blocks = 0, sequences = 0, block_base = 0;
    for (uint32_t s = j->first; s < end && tokens < STEP_TOKENS && sequences < STEP_SEQUENCES;
         s++) {
        uint32_t row;
        const mr_id_matrix *m = matrix_of(j, s, &row);
        const uint32_t own_blocks = blocks_for(m->tokens), base = block_base;
        block_base += own_blocks;
        if (j->positions[s] >= m->tokens) continue;
        const uint32_t count = next_tokens(j, j->positions[s], m->tokens, STEP_TOKENS - tokens);
        j->step_sequences[sequences] = (mr_wire_sequence){.id = s,
                                                          .position = j->positions[s],
                                                          .token_count = count,
                                                          .block_count = own_blocks,
                                                          .flags = MR_SEQUENCE_LOGITS,
                                                          .top_p = 1};
        j->step_of[sequences++] = s;
        for (uint32_t i = 0; i < count; i++, tokens++) {
            const uint32_t position = j->positions[s] + i;
            j->step_tokens[tokens] = (int32_t)m->ids[(size_t)row * m->tokens + position];
            j->token_row[tokens] = m == &j->ids ? row * m->tokens + position : UINT32_MAX;
        }
        for (uint32_t i = 0; i < own_blocks; i++) j->step_blocks[blocks++] = base + i;
        j->positions[s] += count;
    }
    *step = (mr_step){.sequence_count = sequences,
                      .token_count = tokens,
                      .block_count = blocks,
                      .sequences = j->step_sequences,
                      .tokens = j->step_tokens,
                      .blocks = j->step_blocks};
    return tokens > 0;
}

/* Sequences run in groups whose KV fits; those beside go along with every group's steps. */
static uint32_t group_end(const job *j, uint32_t first, uint32_t *kv_blocks) {
    uint32_t tokens = 0, end = first;
    *kv_blocks = 0;
    while (end < j->sequences && end - first < STEP_SEQUENCES) {
        uint32_t row;
        const mr_id_matrix *m = matrix_of(j, end, &row);
        if (end > first && tokens + m->tokens > GROUP_TOKENS) break;
        tokens += m->tokens;
        *kv_blocks += blocks_for(m->tokens);
        end++;
    }
    return end;
}

static mr_status run_all(job *j, mr_err *err) {
    const mr_step_sink sink = {.logits = on_logits, .context = j};
    uint64_t done = 0;
    const uint64_t total =
        (uint64_t)j->ids.batch * j->ids.tokens + (uint64_t)j->beside.batch * j->beside.tokens;
    while (j->first < j->sequences) {
        uint32_t unused;
        mr_step step;
        const uint32_t end = group_end(j, j->first, &unused);
        while (build_step(j, end, &step)) {
            const mr_status status = mr_embedded_step(&j->cluster, &step, &sink, err);
            if (status != MR_OK) return status;
            if (j->status != MR_OK) return mr_fail(err, j->status, "%s", j->err.text);
            done += step.token_count;
            mr_cli_progress(NULL, "computing logits", (double)done / (double)total);
        }
        j->first = end;
    }
    return MR_OK;
}

static mr_status read_inputs(job *j, mr_err *err) {
    const mr_config *c = mr_model_config(j->cluster.model);
    mr_status status = mr_ids_read(&j->ids, j->a->input, c->head_rows, c->context_tokens, err);
    if (status == MR_OK && j->a->batch_with)
        status = mr_ids_read(&j->beside, j->a->batch_with, c->head_rows, c->context_tokens, err);
    j->sequences = j->ids.batch + j->beside.batch;
    return status;
}

/* The largest group decides the KV cache; the input is read before the model is loaded. */
static mr_status open_all(job *j, const char *model, mr_err *err) {
    uint32_t kv_blocks = 0, largest = 0;
    mr_status status = mr_model_open(&j->cluster.model, model, err);
    if (status == MR_OK) status = read_inputs(j, err);
    if (status != MR_OK) return status;
    for (uint32_t first = 0; first < j->sequences; first = group_end(j, first, &kv_blocks)) {
        group_end(j, first, &kv_blocks);
        if (kv_blocks > largest) largest = kv_blocks;
    }
    const mr_embedded_options options = {.model = j->cluster.model,
                                         .threads = (uint32_t)j->a->threads,
                                         .isa = j->a->isa,
                                         .numeric = j->a->numeric,
                                         .grid = j->a->grid,
                                         .kv_blocks = largest,
                                         .step_tokens_max = STEP_TOKENS,
                                         .step_sequences_max = STEP_SEQUENCES,
                                         .stages = (uint32_t)j->a->stages,
                                         .two_trips = j->a->trace};
    status = mr_embedded_open(&j->cluster, &options, err);
    if (status != MR_OK) return status;
    j->positions = mr_alloc_array(j->sequences, sizeof(*j->positions));
    j->step_sequences = mr_alloc_array(STEP_SEQUENCES, sizeof(*j->step_sequences));
    j->step_tokens = mr_alloc_array(STEP_TOKENS, sizeof(*j->step_tokens));
    j->step_blocks = mr_alloc_array(largest, sizeof(*j->step_blocks));
    j->step_of = mr_alloc_array(STEP_SEQUENCES, sizeof(*j->step_of));
    j->token_row = mr_alloc_array(STEP_TOKENS, sizeof(*j->token_row));
    return open_output(j, err);
}

static void close_all(job *j) {
    mr_writer_free(j->writer);
    mr_ids_free(&j->ids);
    mr_ids_free(&j->beside);
    free(j->positions);
    free(j->step_sequences);
    free(j->step_tokens);
    free(j->step_blocks);
    free(j->step_of);
    free(j->token_row);
    free(j->memories);
    free(j->blocks);
    mr_embedded_close(&j->cluster);
}

static mr_status compute_here(const arguments *a, const char *model, mr_err *err) {
    job j = {.a = a};
    mr_status status = open_all(&j, model, err);
    const mr_trace trace = {.memory = on_memory, .moe = on_moe, .context = &j};
    for (uint32_t i = 0; status == MR_OK && a->trace && i < j.cluster.stages; i++)
        mr_engine_set_trace(j.cluster.engines[i], &trace);
    if (status == MR_OK) status = run_all(&j, err);
    if (status == MR_OK) status = mr_writer_finish(j.writer, err);
    close_all(&j);
    return status;
}

static mr_status compute_there(const arguments *a, mr_err *err) {
    mr_id_matrix ids, beside = {0};
    if (a->trace || a->grid || a->isa || a->threads || a->stages)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--trace, --table-grid, --stages, --isa and --threads are choices of the "
                       "process that computes; with --connect give them to the cluster");
    mr_status status = mr_ids_read(&ids, a->input, 0, MR_MAX_CONTEXT, err);
    if (status == MR_OK && a->batch_with)
        status = mr_ids_read(&beside, a->batch_with, 0, MR_MAX_CONTEXT, err);
    if (status == MR_OK)
        status =
            mr_logits_remote(a->connect, &ids, a->batch_with ? &beside : NULL,
                             (uint32_t)a->prefill_chunk, (uint32_t)a->decode_from, a->output, err);
    mr_ids_free(&ids);
    mr_ids_free(&beside);
    return status;
}

int mr_cmd_logits(int argc, char **argv) {
    arguments a = {0};
    const char *model[1] = {NULL};
    int models;
    const mr_option options[] = {
        {"input", 'i', MR_OPT_TEXT, &a.input, 0, 0, "FILE",
         "safetensors with input_ids, I64 [B,T]"},
        {"output", 'o', MR_OPT_TEXT, &a.output, 0, 0, "FILE", "where logits, F32 [B,T,V], go"},
        {"trace", 0, MR_OPT_FLAG, &a.trace, 0, 0, NULL,
         "also write what every memory layer and MoE block chose and gave"},
        {"threads", 't', MR_OPT_INT, &a.threads, 0, MR_MAX_THREADS, "N",
         "compute threads (default: one per core)"},
        {"prefill-chunk", 0, MR_OPT_INT, &a.prefill_chunk, 1, MR_MAX_CONTEXT, "N",
         "at most N tokens of a sequence per step"},
        {"decode-from", 0, MR_OPT_INT, &a.decode_from, 1, MR_MAX_CONTEXT, "N",
         "prefill N tokens, then one by one"},
        {"batch-with", 0, MR_OPT_TEXT, &a.batch_with, 0, 0, "FILE",
         "run these input_ids in the same steps, drop their logits"},
        {"table-grid", 0, MR_OPT_TEXT, &a.grid, 0, 0, "GxW",
         "cut tables into G row groups x W width slices (default 1x1)"},
        {"stages", 0, MR_OPT_INT, &a.stages, 1, MR_MAX_STAGES, "N",
         "cut the model into N pipeline stages, as workers do (default 1)"},
        {"connect", 0, MR_OPT_TEXT, &a.connect, 0, 0, "ADDR",
         "ask a running cluster at host:port instead of loading MODEL"},
        {"numeric", 0, MR_OPT_TEXT, &a.numeric, 0, 0, "KIND",
         "exact, or fast: bf16 products where the processor has them (exact)"},
        {"isa", 0, MR_OPT_TEXT, &a.isa, 0, 0, "NAME",
         "ref, avx2, avx512 or neon (default: the best here)"},
        {0}};
    const mr_command_spec spec = {
        "memrack logits MODEL --input IN.safetensors --output OUT.safetensors [options]",
        "Computes the logits of every position. The last line on stdout is the SHA-256 of their "
        "bytes;\n"
        "no option but --isa may change it.\n\n"
        "  memrack logits models/demo --input ids.safetensors --output out.safetensors --trace",
        options, 0, 1};
    mr_err err = {{0}};
    const int code = mr_cli_parse(&spec, argc, argv, model, &models);
    if (code >= 0) return code;
    mr_status status = MR_OK;
    if (!a.input || !a.output)
        status = mr_fail(&err, MR_ERR_ARGUMENT, "--input and --output are needed; try --help");
    else if (models == 0 && !a.connect)
        status = mr_fail(&err, MR_ERR_ARGUMENT,
                         "a MODEL folder or --connect ADDR is needed; try --help");
    mr_digest digest;
    if (status == MR_OK)
        status = a.connect ? compute_there(&a, &err) : compute_here(&a, model[0], &err);
    if (status == MR_OK) status = mr_tensor_digest(&digest, a.output, "logits", &err);
    if (status != MR_OK) return mr_cli_fail("logits", status, &err);
    char text[MR_DIGEST_TEXT_BYTES];
    mr_digest_text(&digest, text);
    printf("%s\n", text);
    return fflush(stdout) == 0 ? 0 : 1;
}
