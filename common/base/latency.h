/* latency.h - latencies in buckets: 0 to 7 us each, then four to an octave. What memshards and
 * workers keep for a window of time and show as quantiles. Pure functions. */
#ifndef MR_BASE_LATENCY_H
#define MR_BASE_LATENCY_H
#include <stdint.h>

enum { MR_LATENCY_STEPS = 128 }; /* buckets; the last one takes all that is longer */

static inline uint32_t mr_latency_step_of(uint64_t us) {
    if (us < 8) return (uint32_t)us;
    const uint32_t octave = 63u - (uint32_t)__builtin_clzll(us);
    const uint32_t step = 8 + (octave - 3) * 4 + (uint32_t)((us >> (octave - 2)) & 3);
    return step < MR_LATENCY_STEPS ? step : MR_LATENCY_STEPS - 1;
}

/* The largest latency of a bucket. */
static inline uint64_t mr_latency_step_end(uint32_t step) {
    if (step < 8) return step;
    const uint32_t octave = 3 + (step - 8) / 4, quarter = (step - 8) % 4;
    return ((4ull + quarter + 1) << (octave - 2)) - 1;
}

/* In us, of `all` latencies counted in buckets; 0 where there are none. */
static inline uint32_t mr_latency_quantile(const uint64_t count[MR_LATENCY_STEPS], uint64_t all,
                                           uint32_t percent) {
    uint64_t seen = 0;
    const uint64_t wanted = (all * percent + 99) / 100;
    for (uint32_t i = 0; i < MR_LATENCY_STEPS && all > 0; i++) {
        seen += count[i];
        if (seen < wanted) continue;
        const uint64_t end = mr_latency_step_end(i);
        return end < UINT32_MAX ? (uint32_t)end : UINT32_MAX;
    }
    return all > 0 ? UINT32_MAX : 0;
}

#endif
