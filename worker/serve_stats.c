/* serve_stats.c - counts and latencies of a listening worker. See serve_impl.h.
 *
 * Latencies fall into buckets, four to an octave of microseconds. */
#include "worker/serve_impl.h"

#include "common/base/clock.h"

#include <string.h>

static const int64_t window_ns = 10ll * 1000000000;

/* 0 to 7 us each, then four to an octave. */
static uint32_t bucket_of(uint64_t us) {
    if (us < 8) return (uint32_t)us;
    const uint32_t octave = 63u - (uint32_t)__builtin_clzll(us);
    const uint32_t bucket = 8 + (octave - 3) * 4 + (uint32_t)((us >> (octave - 2)) & 3);
    return bucket < MR_STEP_BUCKETS ? bucket : MR_STEP_BUCKETS - 1;
}

/* The largest latency of a bucket. */
static uint64_t bucket_end(uint32_t bucket) {
    if (bucket < 8) return bucket;
    const uint32_t octave = 3 + (bucket - 8) / 4, quarter = (bucket - 8) % 4;
    return ((4ull + quarter + 1) << (octave - 2)) - 1;
}

void mr_stats_step(mr_worker *w, const mr_engine *engine, int64_t took_ns, mr_status status) {
    mr_step_record *r = &w->record;
    const int64_t now = mr_now_ns(), window = now / window_ns;
    const uint32_t at = (uint32_t)(window & 1);
    if (r->window[at] != window) {
        memset(r->latency[at], 0, sizeof(r->latency[at]));
        r->window[at] = window;
    }
    r->latency[at][bucket_of(took_ns > 0 ? (uint64_t)took_ns / 1000 : 0)]++;
    r->sums.steps++;
    r->sums.step_ns = now;
    if (status != MR_OK) {
        r->sums.failures++;
        return;
    }
    const mr_engine_account *account = mr_engine_last(engine);
    r->sums.degraded += account->more.degraded > 0;
    r->sums.hedges += account->more.hedges;
    r->sums.resends += account->more.resends;
    r->sums.cache_hits += account->more.cache_hits;
    r->sums.cache_misses += account->more.cache_misses;
    r->sums.retrieval_wait_ns += account->done.retrieval_wait_ns;
}

static uint32_t quantile(const uint64_t *latency, uint64_t all, uint64_t percent) {
    uint64_t seen = 0;
    const uint64_t wanted = (all * percent + 99) / 100;
    for (uint32_t i = 0; i < MR_STEP_BUCKETS && all > 0; i++) {
        seen += latency[i];
        if (seen < wanted) continue;
        const uint64_t end = bucket_end(i);
        return end < UINT32_MAX ? (uint32_t)end : UINT32_MAX;
    }
    return 0;
}

void mr_worker_measure(mr_worker *w, mr_worker_stats *out) {
    uint64_t latency[MR_STEP_BUCKETS] = {0}, all = 0;
    const int64_t now = mr_now_ns(), window = now / window_ns;
    int64_t began = now;
    pthread_mutex_lock(&w->lock);
    *out = w->record.sums;
    for (uint32_t at = 0; at < 2; at++) {
        if (w->record.window[at] != window && w->record.window[at] != window - 1) continue;
        if (w->record.window[at] * window_ns < began) began = w->record.window[at] * window_ns;
        for (uint32_t i = 0; i < MR_STEP_BUCKETS; i++) {
            latency[i] += w->record.latency[at][i];
            all += w->record.latency[at][i];
        }
    }
    pthread_mutex_unlock(&w->lock);
    out->steps_per_s = now > began ? (double)all * 1e9 / (double)(now - began) : 0;
    out->p50_us = quantile(latency, all, 50);
    out->p99_us = quantile(latency, all, 99);
    out->heard_ns = mr_server_heard_ns(w->server);
}
