/* step.c - one step through the model; read this first.
 *
 * All new tokens of all sequences go through a block together: matrix products see one tall input,
 * attention walks each sequence's own KV blocks. A memory layer begins its retrieval where it reads
 * and ends it where its output is added, so whatever lies between hides the trip. */
#include "worker/engine_impl.h"

#include "common/base/clock.h"
#include "common/ops/dense.h"

#include <assert.h>
#include <string.h>

typedef struct {
    mr_engine *e;
    const float *x;
    float *y;
    size_t x_stride, y_stride, prepared_bytes;
    const mr_packed *w;
    uint32_t m;
} product;

static void run_product(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const product *p = context;
    (void)member;
    p->e->ops->gemm(p->y, p->y_stride, p->x, p->x_stride, p->e->b.prepared, p->m, p->w, first,
                    count);
}

static void prepare_rows(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const product *p = context;
    (void)member;
    p->e->ops->prepare(p->e->b.prepared + first * p->prepared_bytes, p->x + first * p->x_stride,
                       p->x_stride, count, p->w);
}

enum { WORK_TO_SHARE = 1 << 16 }; /* a few microseconds */

void mr_engine_run(mr_engine *e, mr_team_task task, void *context, uint32_t items, uint64_t work) {
    if (work >= WORK_TO_SHARE)
        mr_team_run(e->team, task, context, items);
    else if (items > 0)
        task(context, 0, 0, items);
}

void mr_engine_gemm(mr_engine *e, float *y, size_t y_stride, const float *x, size_t x_stride,
                    uint32_t m, const mr_packed *w) {
    product p = {e, x, y, x_stride, y_stride, e->ops->prepared_bytes(w), w, m};
    if (p.prepared_bytes) mr_engine_run(e, prepare_rows, &p, m, 4ull * m * w->k);
    mr_engine_run(e, run_product, &p, (w->n + MR_PANEL - 1) / MR_PANEL, (uint64_t)m * w->n * w->k);
}

void mr_engine_norm(const mr_engine *e, float *y, const float *x, const float *w, uint32_t n) {
    if (e->config->norm == MR_NORM_RMS)
        mr_rms_norm(y, x, w, n, e->config->norm_eps);
    else
        mr_layer_norm(y, x, w, n, e->config->norm_eps);
}

typedef struct {
    mr_engine *e;
    const mr_step *step;
    const float *weight; /* of a norm */
    float *to;
    const float *from;
} rows_work;

static void norm_rows(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const rows_work *w = context;
    const uint32_t d = w->e->config->d_model;
    (void)member;
    for (size_t t = first; t < (size_t)first + count; t++)
        mr_engine_norm(w->e, w->to + t * d, w->from + t * d, w->weight, d);
}

static void norm_all(mr_engine *e, float *to, const float *from, const float *weight,
                     uint32_t rows) {
    rows_work w = {.e = e, .weight = weight, .to = to, .from = from};
    mr_engine_run(e, norm_rows, &w, rows, 4ull * rows * e->config->d_model);
}

typedef struct {
    float *y;
    const float *bias;
    uint32_t n;
} bias_work;

static void bias_rows(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const bias_work *w = context;
    (void)member;
    for (size_t t = first; t < (size_t)first + count; t++) mr_add(w->y + t * w->n, w->bias, w->n);
}

void mr_engine_bias(mr_engine *e, float *y, const float *bias, uint32_t m, uint32_t n) {
    bias_work w = {y, bias, n};
    if (bias) mr_engine_run(e, bias_rows, &w, m, (uint64_t)m * n);
}

static void add_rows(mr_engine *e, const float *x, uint32_t rows) {
    mr_add(e->b.x, x, rows * e->config->d_model);
}

/* --- checks ----------------------------------------------------------------------------------- */

static mr_status check_sequence(const mr_engine *e, const mr_wire_sequence *s, mr_err *err) {
    const uint64_t end = (uint64_t)s->position + s->token_count;
    if (s->token_count == 0)
        return mr_fail(err, MR_ERR_RANGE, "a sequence of a step has no tokens");
    if (end > e->config->context_tokens)
        return mr_fail(err, MR_ERR_RANGE, "a sequence reaches position %llu; the context has %u",
                       (unsigned long long)end, e->config->context_tokens);
    if ((uint64_t)s->block_count * MR_KV_BLOCK_TOKENS < end)
        return mr_fail(err, MR_ERR_RANGE, "%u KV blocks do not hold %llu tokens", s->block_count,
                       (unsigned long long)end);
    if (!(s->temperature >= 0 && s->temperature <= 1e6f) || !(s->top_p > 0 && s->top_p <= 1) ||
        !(s->min_p >= 0 && s->min_p <= 1) || s->logprobs > MR_MAX_LOGPROBS)
        return mr_fail(err, MR_ERR_RANGE, "a sampling parameter is out of range");
    if (s->drafted >= s->token_count)
        return mr_fail(err, MR_ERR_RANGE, "all %u tokens of a sequence are drafted", s->drafted);
    return MR_OK;
}

static mr_status check_step(const mr_engine *e, const mr_step *step, mr_err *err) {
    uint64_t tokens = 0, blocks = 0;
    if (step->sequence_count == 0 || step->token_count == 0)
        return mr_fail(err, MR_ERR_RANGE, "a step without tokens");
    if (step->sequence_count > e->step_sequences_max || step->token_count > e->step_tokens_max)
        return mr_fail(err, MR_ERR_LIMIT, "a step of %u sequences and %u tokens; at most %u and %u",
                       step->sequence_count, step->token_count, e->step_sequences_max,
                       e->step_tokens_max);
    for (uint32_t i = 0; i < step->sequence_count; i++) {
        const mr_status status = check_sequence(e, &step->sequences[i], err);
        if (status != MR_OK) return status;
        tokens += step->sequences[i].token_count;
        blocks += step->sequences[i].block_count;
    }
    if (tokens != step->token_count || blocks != step->block_count)
        return mr_fail(err, MR_ERR_FORMAT, "a step's tokens or blocks do not add up");
    for (uint32_t i = 0; i < step->token_count; i++)
        if (step->tokens[i] < 0 || (uint32_t)step->tokens[i] >= e->config->head_rows)
            return mr_fail(err, MR_ERR_RANGE, "token id %d is outside [0, %u)", step->tokens[i],
                           e->config->head_rows);
    for (uint32_t i = 0; i < step->block_count; i++)
        if (step->blocks[i] >= e->kv_blocks)
            return mr_fail(err, MR_ERR_RANGE, "KV block %u; there are %u", step->blocks[i],
                           e->kv_blocks);
    if (!step->hidden != (e->part.stage == 0) || !step->pending != (e->part.pending_in < 0))
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "stage %u of %u starts from %s hidden states and %s memory output",
                       e->part.stage, e->part.stages, e->part.stage > 0 ? "" : "no",
                       e->part.pending_in >= 0 ? "a" : "no");
    return MR_OK;
}

/* --- parts of a step -------------------------------------------------------------------------- */

static void place_tokens(mr_engine *e, const mr_step *step) {
    uint32_t t = 0, block = 0;
    for (uint32_t i = 0; i < step->sequence_count; i++) {
        e->b.block_first[i] = block;
        block += step->sequences[i].block_count;
        for (uint32_t j = 0; j < step->sequences[i].token_count; j++, t++) {
            e->b.sequence[t] = i;
            e->b.position[t] = step->sequences[i].position + j;
        }
    }
}

/* What a step starts from: rows of the embedding, or what the stage before gave. */
static void embed_rows(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const rows_work *w = context;
    mr_engine *e = w->e;
    const uint32_t d = e->config->d_model, half = e->config->head_dim / 2;
    (void)member;
    for (size_t t = first; t < (size_t)first + count; t++) {
        if (w->step->hidden)
            memcpy(e->b.x + t * d, w->step->hidden + t * d, d * sizeof(float));
        else
            mr_tensor_rows_floats(e->b.x + t * d, &e->weights.embedding,
                                  (uint64_t)w->step->tokens[t]);
        mr_rope_angles(e->b.cosine + t * half, e->b.sine + t * half, e->rope_frequency, half,
                       e->b.position[t]);
    }
}

typedef struct {
    float *ffn; /* [rows][2 * half]: first half the value, second half the gate */
    uint32_t half;
} silu_work;

static void silu_rows(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const silu_work *w = context;
    (void)member;
    for (size_t t = first; t < (size_t)first + count; t++) {
        float *row = w->ffn + t * 2 * w->half;
        mr_silu_multiply(row, row + w->half, row, w->half);
    }
}

mr_status mr_engine_swiglu(mr_engine *e, float *y, uint32_t tokens, const mr_packed *proj,
                           const float *proj_bias, const mr_packed *out, mr_err *err) {
    const uint32_t d = e->config->d_model, hidden = proj->n;
    silu_work work = {e->b.ffn, hidden / 2};
    mr_engine_gemm(e, e->b.ffn, hidden, e->b.f, d, tokens, proj);
    mr_engine_bias(e, e->b.ffn, proj_bias, tokens, hidden);
    if (e->retrieval) {
        const mr_status status = mr_retrieval_progress(e->retrieval, err);
        if (status != MR_OK) return status;
    }
    mr_engine_run(e, silu_rows, &work, tokens, 16ull * tokens * hidden);
    mr_engine_gemm(e, y, d, e->b.ffn, hidden, tokens, out);
    return MR_OK;
}

static mr_status feed_forward(mr_engine *e, uint32_t block, uint32_t tokens, mr_err *err) {
    const mr_config *c = e->config;
    const mr_block_weights *w = &e->weights.blocks[block];
    if (!mr_config_has_ffn(c, block)) return MR_OK;
    const mr_status status =
        mr_config_is_moe(c, block)
            ? mr_moe(e, block, tokens, err)
            : mr_engine_swiglu(e, e->b.out, tokens, &w->ff_proj, w->ff_bias, &w->ff_out, err);
    if (status != MR_OK) return status;
    mr_engine_bias(e, e->b.out, w->ff_out_bias, tokens, c->d_model);
    if (c->norm_after) norm_all(e, e->b.out, e->b.out, w->ff_norm, tokens);
    add_rows(e, e->b.out, tokens);
    return MR_OK;
}

/* The memory layer under way, or -1: at most one, as in the official code (docs/MODELS.md). output
 * is there when the stage before finished it. */
typedef struct {
    int32_t layer;
    const float *output;
} pending_memory;

/* Ends the retrieval under way; what it waited and met goes to the step's account. */
static mr_status finish_memory(mr_engine *e, uint32_t layer, uint32_t tokens, mr_err *err) {
    const mr_status status = mr_memory_finish(e, layer, tokens, err);
    const mr_retrieval_stats stats = mr_retrieval_take_stats(e->retrieval);
    e->wait_ns[layer] += stats.wait_ns;
    e->account.done.retrieval_wait_ns += stats.wait_ns;
    e->account.done.retrieval_bytes_up += stats.bytes_up;
    e->account.done.retrieval_bytes_down += stats.bytes_down;
    e->account.more.hedges += stats.hedges;
    e->account.more.resends += stats.resends;
    e->account.more.degraded += stats.degraded;
    e->account.more.cache_hits += (uint32_t)stats.cache_hits;
    e->account.more.cache_misses += (uint32_t)stats.cache_misses;
    return status;
}

static mr_status read_memory(mr_engine *e, pending_memory *p, uint32_t block, uint32_t tokens,
                             mr_err *err) {
    const int32_t layer = e->memory_at[block];
    if (layer < 0 || !(e->memory_added[layer] || e->trace)) return MR_OK;
    const mr_status status = mr_memory_begin(e, (uint32_t)layer, e->b.f, tokens, err);
    if (status != MR_OK) return status;
    if (e->memory_added[layer]) {
        p->layer = layer;
        return MR_OK;
    }
    /* traced only: nobody adds it later */
    return finish_memory(e, (uint32_t)layer, tokens, err);
}

static mr_status add_memory(mr_engine *e, pending_memory *p, uint32_t block, uint32_t tokens,
                            mr_err *err) {
    if (p->layer < 0 || mr_model_memory(e->model, (uint32_t)p->layer)->destination != block)
        return MR_OK;
    if (!p->output) {
        const mr_status status = finish_memory(e, (uint32_t)p->layer, tokens, err);
        if (status != MR_OK) return status;
        p->output = e->m.output;
    }
    add_rows(e, p->output, tokens);
    *p = (pending_memory){-1, NULL};
    return MR_OK;
}

/* What the next stage takes. A skip window that is cut here ends its retrieval here. */
static mr_status hand_on(mr_engine *e, pending_memory *p, uint32_t tokens, mr_err *err) {
    assert(p->layer == e->part.pending_out);
    if (p->layer >= 0 && !p->output) {
        const mr_status status = finish_memory(e, (uint32_t)p->layer, tokens, err);
        if (status != MR_OK) return status;
        p->output = e->m.output;
    }
    e->output = (mr_engine_output){e->b.x, p->output};
    return MR_OK;
}

static mr_status run_block(mr_engine *e, const mr_step *step, uint32_t block, pending_memory *p,
                           mr_err *err) {
    const mr_config *c = e->config;
    const mr_block_weights *w = &e->weights.blocks[block];
    const uint32_t tokens = step->token_count;
    const uint32_t qkv = c->query_width + 2 * c->n_kv_heads * c->head_dim;
    const float *h = c->norm_after ? e->b.x : e->b.h;
    if (!c->norm_after) norm_all(e, e->b.h, e->b.x, w->attn_norm, tokens);
    mr_engine_gemm(e, e->b.qkv, qkv, h, c->d_model, tokens, &w->att_proj);
    mr_engine_bias(e, e->b.qkv, w->att_bias, tokens, qkv);
    mr_attention(e, step, block);
    mr_engine_gemm(e, e->b.out, c->d_model, e->b.attention, c->query_width, tokens, &w->attn_out);
    mr_engine_bias(e, e->b.out, w->attn_out_bias, tokens, c->d_model);
    if (c->norm_after) norm_all(e, e->b.out, e->b.out, w->attn_norm, tokens);
    add_rows(e, e->b.out, tokens);
    if (c->norm_after)
        memcpy(e->b.f, e->b.x, (size_t)tokens * c->d_model * sizeof(float));
    else
        norm_all(e, e->b.f, e->b.x, w->ff_norm, tokens);
    mr_status status = read_memory(e, p, block, tokens, err);
    if (status == MR_OK) status = feed_forward(e, block, tokens, err);
    if (status == MR_OK) status = add_memory(e, p, block, tokens, err);
    return status;
}

/* --- logits ----------------------------------------------------------------------------------- */

typedef struct {
    uint32_t sequence, token;
} wanted_row;

typedef struct {
    const mr_step *step;
    const mr_step_sink *sink;
    wanted_row rows[MR_LOGIT_ROWS];
    uint32_t count;
    uint32_t refuted; /* the sequence of which a drafted token has proved wrong; UINT32_MAX */
} reporting;

/* The last position, and those that drafted tokens follow. */
static bool samples_at(const mr_wire_sequence *s, uint32_t position) {
    return (s->flags & MR_SEQUENCE_SAMPLE) &&
           position + 1 + s->drafted >= s->position + s->token_count;
}

static mr_status sample_row(mr_engine *e, reporting *r, wanted_row row, const float *logits,
                            mr_err *err) {
    mr_wire_sequence s = r->step->sequences[row.sequence];
    const uint32_t end = s.position + s.token_count, next = e->b.position[row.token] + 1;
    mr_wire_sampled sampled;
    mr_wire_logprob top[MR_MAX_LOGPROBS];
    s.output_position += next + s.drafted - end;
    const mr_status status = mr_sample(e, &s, logits, &sampled, top, err);
    if (status != MR_OK) return status;
    if (next < end && r->step->tokens[row.token + 1] != sampled.token) r->refuted = row.sequence;
    if (r->sink->sampled) r->sink->sampled(r->sink->context, row.sequence, &sampled, top);
    return MR_OK;
}

static mr_status report_rows(mr_engine *e, reporting *r, mr_err *err) {
    const uint32_t d = e->config->d_model, columns = e->config->head_rows;
    for (uint32_t i = 0; i < r->count; i++)
        memcpy(e->b.logit_x + (size_t)i * d, e->b.x + (size_t)r->rows[i].token * d,
               d * sizeof(float));
    norm_all(e, e->b.logit_x, e->b.logit_x, e->weights.final_norm, r->count);
    mr_engine_gemm(e, e->b.logits, columns, e->b.logit_x, d, r->count, &e->weights.head);
    for (uint32_t i = 0; i < r->count; i++) {
        const wanted_row row = r->rows[i];
        const mr_wire_sequence *s = &r->step->sequences[row.sequence];
        const float *logits = e->b.logits + (size_t)i * columns;
        const uint32_t position = e->b.position[row.token];
        if ((s->flags & MR_SEQUENCE_LOGITS) && r->sink->logits)
            r->sink->logits(r->sink->context, row.sequence, position, logits, columns);
        if (!samples_at(s, position) || r->refuted == row.sequence) continue;
        const mr_status status = sample_row(e, r, row, logits, err);
        if (status != MR_OK) return status;
    }
    r->count = 0;
    return MR_OK;
}

static mr_status report(mr_engine *e, const mr_step *step, const mr_step_sink *sink, mr_err *err) {
    reporting r = {.step = step, .sink = sink, .refuted = UINT32_MAX};
    for (uint32_t t = 0; t < step->token_count; t++) {
        const uint32_t sequence = e->b.sequence[t];
        const mr_wire_sequence *s = &step->sequences[sequence];
        const bool is_sampled = samples_at(s, e->b.position[t]) && r.refuted != sequence;
        if (!(s->flags & MR_SEQUENCE_LOGITS) && !is_sampled) continue;
        r.rows[r.count++] = (wanted_row){sequence, t};
        if (r.count < MR_LOGIT_ROWS) continue;
        const mr_status status = report_rows(e, &r, err);
        if (status != MR_OK) return status;
    }
    return r.count ? report_rows(e, &r, err) : MR_OK;
}

static mr_status run_step(mr_engine *e, const mr_step *step, const mr_step_sink *sink,
                          mr_err *err) {
    pending_memory pending = {e->part.pending_in, step->pending};
    rows_work rows = {.e = e, .step = step};
    mr_status status = MR_OK;
    place_tokens(e, step);
    mr_engine_run(e, embed_rows, &rows, step->token_count,
                  8ull * step->token_count * e->config->d_model);
    for (uint32_t i = 0; i < e->blocks.count && status == MR_OK; i++)
        status = run_block(e, step, e->blocks.first + i, &pending, err);
    if (status != MR_OK) return status;
    return e->has_head ? report(e, step, sink, err) : hand_on(e, &pending, step->token_count, err);
}

mr_status mr_engine_step(mr_engine *e, const mr_step *step, const mr_step_sink *sink,
                         mr_wire_done *done, mr_err *err) {
    const int64_t began = mr_now_ns();
    mr_status status = check_step(e, step, err);
    if (status != MR_OK) return status;
    e->account.done = (mr_wire_done){0};
    e->account.more = (mr_wire_done_more){.layers = e->part.memory_count};
    memset(e->wait_ns, 0, e->part.memory_count * sizeof(*e->wait_ns));
    e->output = (mr_engine_output){NULL, NULL};
    const mr_retrieval_step bounds = {.deadline_ns = step->deadline_ns,
                                      .may_degrade = step->flags & MR_STEP_MAY_DEGRADE};
    if (e->retrieval) mr_retrieval_start_step(e->retrieval, &bounds);
    status = run_step(e, step, sink, err);
    if (status != MR_OK) {
        mr_retrieval_abandon(e->retrieval);
        if (e->retrieval) mr_retrieval_take_stats(e->retrieval); /* not the next step's */
    }
    e->account.done.step_ns = (uint64_t)(mr_now_ns() - began);
    e->account.more.stage_ns_max_us = (uint32_t)(e->account.done.step_ns / 1000);
    if (done) *done = e->account.done;
    return status;
}
