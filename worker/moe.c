/* moe.c - the mixture-of-experts FFN: softmax router, top-k without drops, experts computed whole,
 * their outputs added in expert order so that grouping never shows. */
#include "worker/engine_impl.h"

#include "common/ops/dense.h"
#include "common/ops/math.h"

#include <math.h>
#include <string.h>

static bool route(mr_engine *e, uint32_t t) {
    const mr_config *c = e->config;
    const uint32_t k = c->experts_per_token;
    float *p = e->b.router + (size_t)t * c->experts;
    uint32_t *index = e->b.expert_index + (size_t)t * k;
    float *weight = e->b.expert_weight + (size_t)t * k, sum = 0;
    mr_softmax(p, c->experts);
    if (!e->ops->select(index, p, c->experts, k, e->b.select_scratch)) return false;
    for (uint32_t i = 0; i < k; i++) {
        weight[i] = p[index[i]];
        sum = sum + weight[i];
    }
    if (c->moe_renormalize)
        for (uint32_t i = 0; i < k; i++) weight[i] = weight[i] / sum;
    return isfinite(sum);
}

/* All tokens of one expert at once; results go to the token's place for that choice. */
static void run_expert(mr_engine *e, const mr_expert *expert, uint32_t id, uint32_t tokens) {
    const mr_config *c = e->config;
    const uint32_t k = c->experts_per_token, d = c->d_model, hidden = c->expert_hidden;
    uint32_t count = 0;
    for (uint32_t i = 0; i < tokens * k; i++)
        if (e->b.expert_index[i] == id) e->b.expert_slots[count++] = i;
    if (count == 0) return;
    for (uint32_t i = 0; i < count; i++)
        memcpy(e->b.expert_x + (size_t)i * d, e->b.f + (size_t)(e->b.expert_slots[i] / k) * d,
               d * sizeof(float));
    mr_engine_gemm(e, e->b.expert_gate, hidden, e->b.expert_x, d, count, &expert->gate);
    mr_engine_gemm(e, e->b.expert_up, hidden, e->b.expert_x, d, count, &expert->up);
    mr_silu_multiply(e->b.expert_gate, e->b.expert_gate, e->b.expert_up, count * hidden);
    mr_engine_gemm(e, e->b.expert_x, d, e->b.expert_gate, hidden, count, &expert->down);
    for (uint32_t i = 0; i < count; i++)
        memcpy(e->b.expert_out + (size_t)e->b.expert_slots[i] * d, e->b.expert_x + (size_t)i * d,
               d * sizeof(float));
}

/* Adds a token's expert outputs by ascending expert. */
static void combine(mr_engine *e, uint32_t t) {
    const mr_config *c = e->config;
    const uint32_t k = c->experts_per_token, d = c->d_model;
    const uint32_t *index = e->b.expert_index + (size_t)t * k;
    float *out = e->b.out + (size_t)t * d;
    memset(out, 0, d * sizeof(float));
    for (uint32_t done = 0, last = 0; done < k; done++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < k; i++)
            if ((done == 0 || index[i] > last) && (best == UINT32_MAX || index[i] < index[best]))
                best = i;
        const float weight = e->b.expert_weight[(size_t)t * k + best];
        const float *one = e->b.expert_out + ((size_t)t * k + best) * d;
        for (uint32_t i = 0; i < d; i++) out[i] = out[i] + weight * one[i];
        last = index[best];
    }
}

/* Every token's share of the shared expert: sigmoid(f . gate) times its output. */
static mr_status add_shared(mr_engine *e, const mr_block_weights *w, uint32_t tokens, mr_err *err) {
    const uint32_t d = e->config->d_model;
    mr_engine_gemm(e, e->b.shared_gate, 1, e->b.f, d, tokens, &w->shared_gate);
    const mr_status status =
        mr_engine_swiglu(e, e->b.expert_x, tokens, &w->shared_proj, NULL, &w->shared_out, err);
    for (size_t t = 0; t < tokens && status == MR_OK; t++) {
        const float gate = 1.0f / (1.0f + mr_exp(-e->b.shared_gate[t]));
        const float *one = e->b.expert_x + t * d;
        float *out = e->b.out + t * d;
        for (uint32_t i = 0; i < d; i++) out[i] = out[i] + gate * one[i];
    }
    return status;
}

mr_status mr_moe(mr_engine *e, uint32_t block, uint32_t tokens, mr_err *err) {
    const mr_config *c = e->config;
    const mr_block_weights *weights = &e->weights.blocks[block];
    mr_engine_gemm(e, e->b.router, c->experts, e->b.f, c->d_model, tokens, &weights->router);
    for (uint32_t t = 0; t < tokens; t++)
        if (!route(e, t))
            return mr_fail(err, MR_ERR_RANGE, "block %u: a router score is not a finite number",
                           block);
    for (uint32_t id = 0; id < c->experts; id++) run_expert(e, &weights->experts[id], id, tokens);
    for (uint32_t t = 0; t < tokens; t++) combine(e, t);
    if (c->shared_hidden) {
        const mr_status status = add_shared(e, weights, tokens, err);
        if (status != MR_OK) return status;
    }
    if (e->trace && e->trace->moe) {
        const mr_moe_trace trace = {.block = block,
                                    .tokens = tokens,
                                    .experts = c->experts_per_token,
                                    .index = e->b.expert_index,
                                    .weight = e->b.expert_weight,
                                    .input = e->b.f,
                                    .output = e->b.out};
        e->trace->moe(e->trace->context, &trace);
    }
    return MR_OK;
}
