/* metrics.c - see metrics.h. The three gauges that gateways look at, and the latencies, also appear
 * under the names vLLM uses, so that dashboards and autoscalers made for it work unchanged. */
#include "coordinator/metrics.h"

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
    one(out, "memrack_worker_up", "gauge", "1 while the worker's session is open.", &m->worker_up);
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

void mr_metrics_write(mr_text *out, const mr_metrics *m, const char *model) {
    head(out, "memrack_info", "gauge", "Version and model.");
    mr_text_add_string(out, "memrack_info{version=\"" MR_VERSION "\",model=\"");
    for (const char *c = model; *c; c++) {
        if (*c == '\\' || *c == '"') mr_text_add(out, "\\", 1);
        if (*c == '\n')
            mr_text_add_string(out, "\\n");
        else
            mr_text_add(out, c, 1);
    }
    mr_text_add_string(out, "\"} 1\n");
    write_requests(out, m);
    write_steps(out, m);
    write_load(out, m);
}
