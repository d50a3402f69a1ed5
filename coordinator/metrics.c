/* metrics.c - see metrics.h. The three gauges that gateways look at, and the latencies, also appear
 * under the names vLLM uses, so that dashboards and autoscalers made for it work unchanged. */
#include "coordinator/core.h"

#include <math.h>
#include <stdio.h>

/* Upper bounds in seconds: a factor of about 2.5, from a millisecond to ten minutes. */
static const double bounds[MR_HISTOGRAM_BUCKETS] = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120, 600};

static uint64_t get(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

void mr_observe(mr_histogram *h, int64_t ns) {
    int at = 0;
    if (ns < 0) ns = 0;
    while (at < MR_HISTOGRAM_BUCKETS && (double)ns > bounds[at] * 1e9) at++;
    mr_count(&h->bucket[at], 1);
    mr_count(&h->sum_ns, (uint64_t)ns);
}

static void head(mr_text *out, const char *name, const char *type, const char *help) {
    mr_text_format(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(mr_text *out, const char *name, const char *type, const char *help,
                const _Atomic uint64_t *value) {
    head(out, name, type, help);
    mr_text_format(out, "%s %llu\n", name, (unsigned long long)get(value));
}

static void seconds(mr_text *out, const char *name, const char *help,
                    const _Atomic uint64_t *value_ns) {
    head(out, name, "counter", help);
    mr_text_format(out, "%s %.9g\n", name, (double)get(value_ns) * 1e-9);
}

static void histogram(mr_text *out, const char *name, const char *help, const mr_histogram *h) {
    uint64_t total = 0;
    head(out, name, "histogram", help);
    for (int i = 0; i < MR_HISTOGRAM_BUCKETS; i++) {
        total += get(&h->bucket[i]);
        mr_text_format(out, "%s_bucket{le=\"%g\"} %llu\n", name, bounds[i],
                       (unsigned long long)total);
    }
    total += get(&h->bucket[MR_HISTOGRAM_BUCKETS]);
    mr_text_format(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.9g\n%s_count %llu\n", name,
                   (unsigned long long)total, name, (double)get(&h->sum_ns) * 1e-9, name,
                   (unsigned long long)total);
}

static void write_requests(mr_text *out, const mr_metrics *m) {
    static const char *const outcomes[MR_OUTCOME_COUNT] = {"stop",    "length", "cancelled",
                                                           "refused", "busy",   "failed"};
    head(out, "memrack_requests_total", "counter", "Requests by how they ended.");
    for (int i = 0; i < MR_OUTCOME_COUNT; i++)
        mr_text_format(out, "memrack_requests_total{outcome=\"%s\"} %llu\n", outcomes[i],
                       (unsigned long long)get(&m->requests[i]));
    head(out, "memrack_http_responses_total", "counter", "HTTP responses by class.");
    for (int i = 2; i < 6; i++)
        mr_text_format(out, "memrack_http_responses_total{class=\"%dxx\"} %llu\n", i,
                       (unsigned long long)get(&m->http_responses[i]));
    one(out, "memrack_http_connections_open", "gauge", "Open client connections.",
        &m->connections_open);
    one(out, "memrack_http_connections_total", "counter", "Accepted client connections.",
        &m->connections);
    one(out, "memrack_http_connections_refused_total", "counter", "Connections beyond the maximum.",
        &m->connections_refused);
    one(out, "memrack_request_unknown_fields_total", "counter",
        "Fields of request bodies that were ignored.", &m->unknown_fields);
    one(out, "memrack_prompt_tokens_total", "counter", "Prompt tokens taken.", &m->prompt_tokens);
    one(out, "memrack_generated_tokens_total", "counter", "Tokens sampled.", &m->generated_tokens);
}

static void write_steps(mr_text *out, const mr_metrics *m) {
    one(out, "memrack_worker_up", "gauge", "Worker groups that are up.", &m->worker_up);
    one(out, "memrack_worker_reconnects_total", "counter", "Sessions opened after the first.",
        &m->reconnects);
    one(out, "memrack_steps_total", "counter", "Steps that were committed.", &m->steps);
    one(out, "memrack_step_failures_total", "counter", "Steps that failed.", &m->step_failures);
    one(out, "memrack_step_tokens_total", "counter", "Tokens of committed steps.", &m->step_tokens);
    seconds(out, "memrack_step_seconds_total", "Time the worker spent in steps.", &m->step_ns);
    seconds(out, "memrack_retrieval_wait_seconds_total",
            "Time of it spent waiting for memory shards.", &m->retrieval_wait_ns);
    head(out, "memrack_retrieval_bytes_total", "counter", "Bytes to and from memory shards.");
    mr_text_format(out,
                   "memrack_retrieval_bytes_total{direction=\"up\"} %llu\n"
                   "memrack_retrieval_bytes_total{direction=\"down\"} %llu\n",
                   (unsigned long long)get(&m->retrieval_bytes_up),
                   (unsigned long long)get(&m->retrieval_bytes_down));
}

static void write_load(mr_text *out, const mr_metrics *m) {
    const uint64_t blocks = get(&m->kv_blocks);
    const double use = blocks ? (double)get(&m->kv_blocks_used) / (double)blocks : 0;
    static const char *const kv[] = {"memrack_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"};
    one(out, "memrack_requests_waiting", "gauge", "Answers in line.", &m->waiting);
    one(out, "memrack_requests_running", "gauge", "Answers being written.", &m->running);
    one(out, "memrack_kv_blocks", "gauge", "KV blocks of the worker.", &m->kv_blocks);
    one(out, "memrack_kv_blocks_used", "gauge", "KV blocks in use.", &m->kv_blocks_used);
    one(out, "vllm:num_requests_waiting", "gauge", "As memrack_requests_waiting.", &m->waiting);
    one(out, "vllm:num_requests_running", "gauge", "As memrack_requests_running.", &m->running);
    for (int i = 0; i < 2; i++) {
        head(out, kv[i], "gauge", "Share of KV blocks in use, 0 to 1.");
        mr_text_format(out, "%s %.6g\n", kv[i], use);
    }
    histogram(out, "memrack_time_to_first_token_seconds", "From submission to the first token.",
              &m->first_token);
    histogram(out, "memrack_inter_token_latency_seconds", "Between tokens of an answer.",
              &m->inter_token);
    histogram(out, "memrack_request_seconds", "From submission to the end.", &m->whole_request);
    histogram(out, "memrack_queue_seconds", "From submission to the first step.", &m->queued);
    histogram(out, "vllm:time_to_first_token_seconds", "As memrack_time_to_first_token_seconds.",
              &m->first_token);
    histogram(out, "vllm:inter_token_latency_seconds", "As memrack_inter_token_latency_seconds.",
              &m->inter_token);
    histogram(out, "vllm:e2e_request_latency_seconds", "As memrack_request_seconds.",
              &m->whole_request);
}

/* A label's value with its quotes. */
static void label(mr_text *out, const char *value) {
    mr_text_add(out, "\"", 1);
    for (const char *c = value; *c; c++) {
        if (*c == '\\' || *c == '"') mr_text_add(out, "\\", 1);
        if (*c == '\n')
            mr_text_add_string(out, "\\n");
        else
            mr_text_add(out, c, 1);
    }
    mr_text_add(out, "\"", 1);
}

static void write_cluster(mr_text *out, const mr_metrics *m) {
    one(out, "memrack_steps_outstanding", "gauge", "Micro-batches in the hands of workers.",
        &m->steps_out);
    one(out, "memrack_step_retries_total", "counter",
        "Steps that failed for want of rows and were run again, or whose requests gave up.",
        &m->step_retries);
    one(out, "memrack_failovers_total", "counter", "Requests whose group was lost under way.",
        &m->failovers);
    one(out, "memrack_forwarded_total", "counter", "Requests handed to another coordinator.",
        &m->forwarded);
    one(out, "memrack_degraded_steps_total", "counter", "Steps with rows counted as zero.",
        &m->degraded_steps);
    one(out, "memrack_degraded_requests_total", "counter", "Requests with such a step.",
        &m->degraded_requests);
    one(out, "memrack_cached_prompt_tokens_total", "counter",
        "Prompt tokens found in the KV cache.", &m->cached_tokens);
    one(out, "memrack_speculation_drafted_tokens_total", "counter",
        "Guessed tokens that steps verified.", &m->drafted_tokens);
    one(out, "memrack_speculation_accepted_tokens_total", "counter", "Of these, right ones.",
        &m->accepted_tokens);
    one(out, "memrack_speculation_steps_total", "counter", "Steps with guessed tokens.",
        &m->verifying_steps);
    one(out, "memrack_retrieval_hedges_total", "counter", "Retrievals sent to a second replica.",
        &m->hedges);
    one(out, "memrack_retrieval_resends_total", "counter", "Retrievals sent again on suspicion.",
        &m->resends);
    one(out, "memrack_row_cache_hits_total", "counter", "Rows found in workers' caches.",
        &m->cache_hits);
    one(out, "memrack_row_cache_misses_total", "counter", "Rows asked for.", &m->cache_misses);
    head(out, "memrack_layer_wait_seconds_total", "counter",
         "Time workers waited for memory shards, by memory layer.");
    for (uint64_t i = 0; i < get(&m->layers) && i < MR_LAYER_SERIES; i++)
        mr_text_format(out, "memrack_layer_wait_seconds_total{layer=\"%llu\"} %.9g\n",
                       (unsigned long long)i, (double)get(&m->layer_wait_ns[i]) * 1e-9);
}

void mr_metrics_write(mr_text *out, const mr_metrics *m, const char *const *models,
                      uint32_t model_count) {
    head(out, "memrack_info", "gauge", "Version and models.");
    for (uint32_t i = 0; i < model_count; i++) {
        mr_text_add_string(out, "memrack_info{version=\"" MR_VERSION "\",model=");
        label(out, models[i]);
        mr_text_add_string(out, "} 1\n");
    }
    write_requests(out, m);
    write_steps(out, m);
    write_cluster(out, m);
    write_load(out, m);
}

static uint64_t figure_of(const mr_group_look *g, int which) {
    const uint64_t figures[] = {g->state == MR_GROUP_UP,
                                g->outstanding,
                                g->waiting,
                                g->running,
                                g->queued_tokens,
                                g->kv_blocks,
                                g->kv_blocks_used,
                                g->kv_blocks_idle,
                                g->steps,
                                g->step_failures,
                                g->losses};
    return figures[which];
}

void mr_group_metrics_write(mr_text *out, const mr_group_look *groups, uint32_t count) {
    static const char *const series[][3] = {
        {"memrack_group_up", "gauge", "1 while the group takes requests."},
        {"memrack_group_steps_outstanding", "gauge", "Micro-batches in flight."},
        {"memrack_group_waiting", "gauge", "Answers in line."},
        {"memrack_group_running", "gauge", "Answers being written."},
        {"memrack_group_queued_tokens", "gauge", "Tokens still to be computed."},
        {"memrack_group_kv_blocks", "gauge", "KV blocks."},
        {"memrack_group_kv_blocks_used", "gauge", "KV blocks in use."},
        {"memrack_group_kv_blocks_idle", "gauge", "KV blocks kept for their prefixes."},
        {"memrack_group_steps_total", "counter", "Steps that were committed."},
        {"memrack_group_step_failures_total", "counter", "Steps that failed."},
        {"memrack_group_losses_total", "counter", "Times the group was lost."},
    };
    for (int i = 0; i < (int)(sizeof(series) / sizeof(series[0])); i++) {
        head(out, series[i][0], series[i][1], series[i][2]);
        for (uint32_t g = 0; g < count; g++) {
            mr_text_format(out, "%s{group=", series[i][0]);
            label(out, groups[g].name);
            mr_text_format(out, "} %llu\n", (unsigned long long)figure_of(&groups[g], i));
        }
    }
}
