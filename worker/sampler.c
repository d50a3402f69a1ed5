/* sampler.c - from logits to a token.
 *
 * Order of the filters: temperature, top-k, top-p, min-p, then a draw. The draw's number comes from
 * Philox keyed by the seed with (choice, output position) as counter, so neither the batch nor a
 * restart can shift it. Candidates are ordered by logit, ties by lower id; only ids below
 * vocab_size take part. Sums run in double in that order. */
#include "worker/engine_impl.h"

#include "common/ops/math.h"
#include "common/ops/philox.h"

#include <math.h>

typedef struct {
    const float *logits;
    uint32_t vocab;
    float largest;
    double log_sum; /* log of the sum of e^(logit - largest) */
} distribution;

static bool measure(distribution *out, const float *logits, uint32_t vocab) {
    float largest = logits[0];
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        if (!isfinite(logits[i])) return false;
        if (logits[i] > largest) largest = logits[i];
    }
    for (uint32_t i = 0; i < vocab; i++) sum += (double)mr_exp(logits[i] - largest);
    *out = (distribution){logits, vocab, largest, mr_ln(sum)};
    return true;
}

static float logprob_of(const distribution *d, uint32_t token) {
    return (float)((double)d->logits[token] - (double)d->largest - d->log_sum);
}

/* In [0, 1). */
static double draw(const mr_wire_sequence *s) {
    const uint32_t counter[4] = {s->output_position, s->choice, 0, 0};
    const uint32_t key[2] = {(uint32_t)s->seed, (uint32_t)(s->seed >> 32)};
    uint32_t out[4];
    mr_philox(out, counter, key);
    return (double)(((uint64_t)out[0] << 21) ^ (out[1] >> 11)) * 0x1p-53;
}

typedef struct {
    uint32_t count; /* candidates kept */
    double mass;    /* of their weights e^((logit - largest) / temperature) */
} kept;

static double weight_of(const distribution *d, const mr_wire_sequence *s, uint32_t token) {
    return (double)mr_exp((d->logits[token] - d->largest) / s->temperature);
}

/* How many of the first n candidates survive; *enough: more candidates could not change it. */
static kept filter(const distribution *d, const mr_wire_sequence *s, const uint32_t *candidates,
                   uint32_t n, double total, bool *enough) {
    kept k = {0, 0};
    *enough = false;
    for (uint32_t i = 0; i < n; i++) {
        const double weight = weight_of(d, s, candidates[i]);
        if ((i > 0 && s->top_p < 1.0f && k.mass >= (double)s->top_p * total) ||
            (i > 0 && weight < (double)s->min_p)) { /* the best has weight 1 */
            *enough = true;
            return k;
        }
        k.mass += weight;
        k.count++;
    }
    return k;
}

static double total_weight(const distribution *d, const mr_wire_sequence *s,
                           const uint32_t *candidates, uint32_t n) {
    double total = 0;
    for (uint32_t i = 0; i < n; i++) total += weight_of(d, s, candidates ? candidates[i] : i);
    return total;
}

static uint32_t pick(mr_engine *e, const distribution *d, const mr_wire_sequence *s) {
    const uint32_t limit = s->top_k && s->top_k < d->vocab ? s->top_k : d->vocab;
    uint32_t *candidates = e->b.candidates;
    const bool cut = limit < d->vocab; /* top-k: its mass is known once all of it is ordered */
    uint32_t n = cut || limit < 64 ? limit : 64;
    double total = cut ? -1 : total_weight(d, s, NULL, d->vocab);
    bool enough;
    kept k;
    for (;;) { /* a short ordered list mostly suffices */
        e->ops->select(candidates, d->logits, d->vocab, n, e->b.select_scratch);
        if (cut) total = total_weight(d, s, candidates, n);
        k = filter(d, s, candidates, n, total, &enough);
        if (enough || n == limit) break;
        n = limit / 16 < n ? limit : n * 16;
    }
    const double aim = draw(s) * k.mass;
    double sum = 0;
    for (uint32_t i = 0; i < k.count; i++) {
        sum += weight_of(d, s, candidates[i]);
        if (sum > aim) return candidates[i];
    }
    return candidates[k.count - 1];
}

mr_status mr_sample(mr_engine *e, const mr_wire_sequence *s, const float *logits,
                    mr_wire_sampled *out, mr_wire_logprob *top, mr_err *err) {
    distribution d;
    uint32_t token, *candidates = e->b.candidates;
    if (!measure(&d, logits, e->config->vocab_size))
        return mr_fail(err, MR_ERR_RANGE, "a logit is not a finite number");
    if (s->temperature <= 0) {
        e->ops->select(candidates, logits, d.vocab, 1, e->b.select_scratch);
        token = candidates[0];
    } else
        token = pick(e, &d, s);
    *out =
        (mr_wire_sampled){.id = s->id, .token = (int32_t)token, .logprob = logprob_of(&d, token)};
    out->top_count = s->logprobs < d.vocab ? s->logprobs : d.vocab;
    if (out->top_count == 0) return MR_OK;
    e->ops->select(candidates, logits, d.vocab, out->top_count, e->b.select_scratch);
    for (uint32_t i = 0; i < out->top_count; i++)
        top[i] = (mr_wire_logprob){(int32_t)candidates[i], logprob_of(&d, candidates[i])};
    return MR_OK;
}
