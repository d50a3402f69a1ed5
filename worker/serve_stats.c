/* serve_stats.c - counts and latencies of a listening worker. See serve_impl.h. */
#include "worker/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/latency.h"

#include <string.h>

static const int64_t window_ns = 10ll * 1000000000;

void mr_stats_step(mr_worker *w, const mr_engine *engine, int64_t took_ns, mr_status status) {
    mr_step_record *r = &w->record;
    const int64_t now = mr_now_ns(), window = now / window_ns;
    const uint32_t at = (uint32_t)(window & 1);
    if (r->window[at] != window) {
        memset(r->latency[at], 0, sizeof(r->latency[at]));
        r->window[at] = window;
    }
    r->latency[at][mr_latency_step_of(took_ns > 0 ? (uint64_t)took_ns / 1000 : 0)]++;
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

void mr_worker_measure(mr_worker *w, mr_worker_stats *out) {
    uint64_t latency[MR_LATENCY_STEPS] = {0}, all = 0;
    const int64_t now = mr_now_ns(), window = now / window_ns;
    int64_t began = now;
    pthread_mutex_lock(&w->lock);
    *out = w->record.sums;
    for (uint32_t at = 0; at < 2; at++) {
        if (w->record.window[at] != window && w->record.window[at] != window - 1) continue;
        if (w->record.window[at] * window_ns < began) began = w->record.window[at] * window_ns;
        for (uint32_t i = 0; i < MR_LATENCY_STEPS; i++) {
            latency[i] += w->record.latency[at][i];
            all += w->record.latency[at][i];
        }
    }
    pthread_mutex_unlock(&w->lock);
    out->steps_per_s = now > began ? (double)all * 1e9 / (double)(now - began) : 0;
    out->p50_us = mr_latency_quantile(latency, all, 50);
    out->p99_us = mr_latency_quantile(latency, all, 99);
    out->heard_ns = mr_server_heard_ns(w->server);
}
