/* attention.c - rotary attention over the paged KV cache.
 *
 * A query walks the KV blocks from position 0 in blocks of MR_KV_BLOCK_TOKENS and reads keys and
 * values as the cache holds them, those of its own chunk too. Where the block of the model has a
 * sliding window it begins in the KV block of the oldest position it sees: the grid stays. Its
 * result is therefore the same however the prompt was cut and whoever shares the step. Softmax runs
 * online: one rescale per block. */
#include "worker/engine_impl.h"

#include "common/ops/dense.h"

#include <math.h>
#include <string.h>

typedef struct {
    mr_engine *e;
    const mr_step *step;
    uint32_t block; /* of the model */
    const mr_block_weights *weights;
    float scale;
    uint32_t window; /* positions a query sees, its own among them; 0: all */
} work;

/* Keys (which = 0) or values (1) of one KV block and head: [MR_KV_BLOCK_TOKENS][head_dim]. */
static float *cache_at(const mr_engine *e, uint32_t layer, uint32_t which, uint32_t kv_block,
                       uint32_t head) {
    const mr_config *c = e->config;
    const size_t place = ((size_t)(layer - e->blocks.first) * 2 + which) * e->kv_blocks + kv_block;
    const size_t block = place * c->n_kv_heads + head;
    return e->kv + block * MR_KV_BLOCK_TOKENS * c->head_dim;
}

static float clip(float x, float most) {
    return x > most ? most : x < -most ? -most : x;
}

/* Norms and rotates the heads of one token's queries or keys. */
static void prepare_heads(const mr_engine *e, float *x, uint32_t heads, const float *norm,
                          uint32_t token) {
    const mr_config *c = e->config;
    const uint32_t dim = c->head_dim, half = dim / 2;
    if (norm && c->qk_norm_full) mr_engine_norm(e, x, x, norm, heads * dim);
    for (uint32_t i = 0; c->clip_qkv > 0 && i < heads * dim; i++) x[i] = clip(x[i], c->clip_qkv);
    for (uint32_t h = 0; h < heads; h++, x += dim) {
        if (norm && !c->qk_norm_full) mr_engine_norm(e, x, x, norm, dim);
        mr_rope(x, e->b.cosine + (size_t)token * half, e->b.sine + (size_t)token * half, half);
    }
}

/* Items: tokens. Norms and rotates queries and keys, stores keys and values. */
static void store_tokens(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const work *w = context;
    mr_engine *e = w->e;
    const mr_config *c = e->config;
    const uint32_t dim = c->head_dim;
    const size_t stride = c->query_width + 2ull * c->n_kv_heads * dim;
    (void)member;
    for (uint32_t t = first; t < first + count; t++) {
        float *q = e->b.qkv + t * stride, *k = q + c->query_width,
              *v = k + (size_t)c->n_kv_heads * dim;
        const uint32_t position = e->b.position[t];
        const uint32_t *blocks = w->step->blocks + e->b.block_first[e->b.sequence[t]];
        const uint32_t kv_block = blocks[position / MR_KV_BLOCK_TOKENS];
        const size_t at = (size_t)(position % MR_KV_BLOCK_TOKENS) * dim;
        prepare_heads(e, q, c->n_heads, w->weights->q_norm, t);
        prepare_heads(e, k, c->n_kv_heads, w->weights->k_norm, t);
        for (uint32_t i = 0; c->clip_qkv > 0 && i < c->n_kv_heads * dim; i++)
            v[i] = clip(v[i], c->clip_qkv);
        for (uint32_t h = 0; h < c->n_kv_heads; h++) {
            memcpy(cache_at(e, w->block, 0, kv_block, h) + at, k + (size_t)h * dim,
                   dim * sizeof(float));
            memcpy(cache_at(e, w->block, 1, kv_block, h) + at, v + (size_t)h * dim,
                   dim * sizeof(float));
        }
    }
}

_Static_assert((int)MR_KV_BLOCK_TOKENS <= (int)MR_ATTEND_KEYS, "a KV block is one call");

/* Items: KV head x token. The query heads of a KV head read its blocks together, and the tokens of
 * a prompt follow each other, so that the blocks of a head stay in the cache. */
static void attend(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const work *w = context;
    mr_engine *e = w->e;
    const mr_config *c = e->config;
    const uint32_t dim = c->head_dim, group = c->n_heads / c->n_kv_heads;
    const size_t stride = c->query_width + 2ull * c->n_kv_heads * dim;
    mr_attention_state state[MR_MAX_HEADS];
    (void)member;
    for (uint32_t item = first; item < first + count; item++) {
        const uint32_t t = item % w->step->token_count, kv_head = item / w->step->token_count;
        const uint32_t length = e->b.position[t] + 1;
        const uint32_t *blocks = w->step->blocks + e->b.block_first[e->b.sequence[t]];
        const float *query = e->b.qkv + t * stride + (size_t)kv_head * group * dim;
        float *out = e->b.attention + (size_t)t * c->query_width + (size_t)kv_head * group * dim;
        memset(out, 0, (size_t)group * dim * sizeof(float));
        for (uint32_t g = 0; g < group; g++) state[g] = (mr_attention_state){-INFINITY, 0};
        const uint32_t oldest = w->window && length > w->window ? length - w->window : 0;
        for (uint32_t from = oldest - oldest % MR_KV_BLOCK_TOKENS; from < length;
             from += MR_KV_BLOCK_TOKENS) {
            const uint32_t left = length - from, skip = from < oldest ? oldest - from : 0;
            const uint32_t take = (left < MR_KV_BLOCK_TOKENS ? left : MR_KV_BLOCK_TOKENS) - skip;
            const uint32_t kv_block = blocks[from / MR_KV_BLOCK_TOKENS];
            const float *keys = cache_at(e, w->block, 0, kv_block, kv_head) + (size_t)skip * dim;
            const float *values = cache_at(e, w->block, 1, kv_block, kv_head) + (size_t)skip * dim;
            e->ops->attend(state, out, query, group, keys, values, take, dim, w->scale);
        }
        for (uint32_t g = 0; g < group; g++)
            for (uint32_t i = 0; i < dim; i++)
                out[(size_t)g * dim + i] = out[(size_t)g * dim + i] / state[g].sum;
    }
}

void mr_attention(mr_engine *e, const mr_step *step, uint32_t block) {
    work w = {.e = e,
              .step = step,
              .block = block,
              .weights = &e->weights.blocks[block],
              .scale = 1.0f / sqrtf((float)e->config->head_dim),
              .window = mr_config_window(e->config, block)};
    const mr_config *c = e->config;
    const uint64_t width = c->query_width + 2ull * c->n_kv_heads * c->head_dim;
    uint64_t pairs = 0; /* of query and key positions */
    for (uint32_t t = 0; t < step->token_count; t++) pairs += e->b.position[t] + 1;
    mr_engine_run(e, store_tokens, &w, step->token_count, 8 * step->token_count * width);
    mr_engine_run(e, attend, &w, step->token_count * c->n_kv_heads, 4 * pairs * c->query_width);
}
