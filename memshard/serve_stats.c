/* serve_stats.c - counts and latencies of a memshard, without a lock on the way of a request.
 *
 * Latencies go into a histogram of the seat, four buckets to an octave of microseconds, in two
 * windows that take turns: who reads adds up the current one and the one before. */
#include "common/base/clock.h"
#include "memshard/serve_impl.h"

static const int64_t window_ns = MR_LATENCY_WINDOW_S * 1000000000ll;

static void add(_Atomic uint32_t *to) { /* one writer */
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

void mr_stats_note(mr_seat *seat, int64_t now_ns, int64_t latency_ns) {
    const int64_t window = now_ns / window_ns;
    const uint32_t at = (uint32_t)(window & 1);
    if (atomic_load_explicit(&seat->window[at], memory_order_relaxed) != window) {
        for (uint32_t i = 0; i < MR_LATENCY_STEPS; i++)
            atomic_store_explicit(&seat->latency[at][i], 0, memory_order_relaxed);
        atomic_store_explicit(&seat->window[at], window, memory_order_release);
    }
    add(&seat->latency[at][mr_latency_step_of(latency_ns > 0 ? (uint64_t)latency_ns / 1000 : 0)]);
    atomic_store_explicit(&seat->requests,
                          atomic_load_explicit(&seat->requests, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

mr_memshard_stats mr_memshard_look(mr_memshard *shard) {
    mr_memshard_stats s = {
        .refused = atomic_load(&shard->counts.refused),
        .stale = atomic_load(&shard->counts.stale),
        .expired = atomic_load(&shard->counts.expired),
        .cancelled = atomic_load(&shard->counts.cancelled),
        .together = atomic_load(&shard->counts.together),
        .prefetched = atomic_load(&shard->counts.prefetched),
        .loads = atomic_load(&shard->counts.loads),
        .unloads = atomic_load(&shard->counts.unloads),
        .failed_loads = atomic_load(&shard->counts.failed_loads),
        .queue_depth = atomic_load(&shard->counts.queue_depth),
    };
    uint64_t latency[MR_LATENCY_STEPS] = {0};
    const int64_t now = mr_now_ns(), window = now / window_ns;
    for (uint32_t i = 0; i < MR_SEATS; i++) {
        mr_seat *seat = &shard->seats[i];
        s.requests += atomic_load_explicit(&seat->requests, memory_order_relaxed);
        for (uint32_t at = 0; at < 2; at++) {
            const int64_t is = atomic_load_explicit(&seat->window[at], memory_order_acquire);
            if (is != window && is != window - 1) continue;
            for (uint32_t b = 0; b < MR_LATENCY_STEPS; b++)
                latency[b] += atomic_load_explicit(&seat->latency[at][b], memory_order_relaxed);
        }
    }
    for (uint32_t b = 0; b < MR_LATENCY_STEPS; b++) s.window_requests += latency[b];
    s.window_s = (double)(now % window_ns) * 1e-9 + MR_LATENCY_WINDOW_S;
    s.p50_us = mr_latency_quantile(latency, s.window_requests, 50);
    s.p99_us = mr_latency_quantile(latency, s.window_requests, 99);
    const mr_snapshot *held;
    mr_seat *seat = mr_seat_take(shard, MR_SEATS - 1, &held);
    s.models = held->count;
    for (uint32_t i = 0; i < held->count; i++) {
        s.cells += held->models[i]->cell_count;
        s.bytes_held += held->models[i]->bytes;
    }
    mr_seat_give(seat);
    return s;
}
