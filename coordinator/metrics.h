/* metrics.h - counters of the coordinator and their Prometheus text.
 *
 * Every series is one relaxed atomic: any thread may add, the page is read while they do, and no
 * figure depends on another. Label values are ours only (outcomes, fields we know), never a
 * client's words, so that nobody can make series. Times are seconds, on the monotonic clock. */
#ifndef MR_COORDINATOR_METRICS_H
#define MR_COORDINATOR_METRICS_H
#include "common/model/tokenizer_text.h"

#include <stdatomic.h>
#include <stdint.h>

enum {
    MR_HISTOGRAM_BUCKETS = 16,
    MR_LAYER_SERIES = 64, /* memory layers with a series of their own; the last has all beyond */
};

typedef struct {
    _Atomic uint64_t bucket[MR_HISTOGRAM_BUCKETS + 1]; /* the last one: beyond all bounds */
    _Atomic uint64_t sum_ns;
} mr_histogram;

typedef enum {
    MR_OUTCOME_STOP,      /* ended by itself or at a stop string */
    MR_OUTCOME_LENGTH,    /* at max_tokens */
    MR_OUTCOME_CANCELLED, /* the client went away */
    MR_OUTCOME_REFUSED,   /* asked for what cannot be (4xx) */
    MR_OUTCOME_BUSY,      /* 429 */
    MR_OUTCOME_FAILED,    /* 5xx */
    MR_OUTCOME_COUNT
} mr_outcome;

typedef struct {
    _Atomic uint64_t requests[MR_OUTCOME_COUNT];
    _Atomic uint64_t prompt_tokens, generated_tokens;
    _Atomic uint64_t steps, step_tokens, step_failures;
    _Atomic uint64_t retrieval_bytes_up, retrieval_bytes_down;
    _Atomic uint64_t retrieval_wait_ns, step_ns;
    _Atomic uint64_t reconnects, failovers, step_retries, forwarded;
    _Atomic uint64_t degraded_steps, degraded_requests;
    _Atomic uint64_t cached_tokens; /* prompt tokens that were not computed again */
    _Atomic uint64_t drafted_tokens, accepted_tokens, verifying_steps; /* of speculation */
    _Atomic uint64_t hedges, resends, cache_hits, cache_misses; /* of retrieval, in workers */
    _Atomic uint64_t layer_wait_ns[MR_LAYER_SERIES];
    _Atomic uint64_t layers;            /* how many of them are in use */
    _Atomic uint64_t unknown_fields;    /* of request bodies, ignored */
    _Atomic uint64_t http_responses[6]; /* by hundreds: [2] 2xx ... */
    _Atomic uint64_t connections, connections_refused;
    _Atomic uint64_t connections_open;
    /* gauges, stored by the core's thread */
    _Atomic uint64_t waiting, running, kv_blocks, kv_blocks_used, steps_out;
    _Atomic uint64_t worker_up; /* groups */
    mr_histogram first_token, inter_token, whole_request, queued;
} mr_metrics;

static inline void mr_count(_Atomic uint64_t *counter, uint64_t by) {
    atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}
static inline void mr_gauge(_Atomic uint64_t *gauge, uint64_t value) {
    atomic_store_explicit(gauge, value, memory_order_relaxed);
}
void mr_observe(mr_histogram *histogram, int64_t ns);

/* Appends the whole page but for the groups. models: for the info series; escaped here. */
void mr_metrics_write(mr_text *out, const mr_metrics *metrics, const char *const *models,
                      uint32_t model_count);

#endif
