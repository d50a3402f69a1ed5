/* decode.c - how many tokens a second does the engine prefill and decode, all roles in one process?
 *
 * Random prompts of --prompt tokens are prefilled, then --tokens steps decode greedily for --batch
 * sequences at once, as `memrack serve` does it: the worker's engine over a loop link to a memshard
 * that holds every cell. Also reported: what the weights read in a decode step amount to, and the
 * rate at which this machine reads memory in a row, measured in the same run; their quotient is the
 * time a step cannot be shorter than. One CSV line on stdout; --help says the columns.
 * Threads: this one; the engine has its own team. */
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/base/options.h"
#include "common/ops/team.h"
#include "memshard/serve.h"
#include "worker/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STEPS_MAX = 4096 };

typedef struct {
    const char *model, *numeric;
    bool cpu_time;
    int64_t batch, prompt, tokens, threads;
} settings;

/* Of the run: the wall's, or what this thread has computed (for one thread on a busy machine). */
static bool uses_cpu_time;

static int64_t clock_ns(void) {
    struct timespec t;
    if (!uses_cpu_time) return mr_now_ns();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

typedef struct {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shard;
    mr_engine *engine;
    mr_engine_memory memory;
} host;

static mr_status open_host(host *h, const settings *s, uint32_t blocks_each, mr_err *err) {
    mr_link *link = NULL;
    mr_status status = mr_model_open(&h->model, s->model, err);
    if (status == MR_OK) status = mr_manifest_load(&h->manifest, h->model, NULL, NULL, err);
    if (status != MR_OK) return status;
    mr_engine_options options = {.ops = mr_ops_choose(NULL, s->numeric),
                                 .model = h->model,
                                 .manifest = &h->manifest,
                                 .threads = (uint32_t)s->threads,
                                 .kv_blocks = blocks_each * (uint32_t)s->batch,
                                 .step_sequences_max = (uint32_t)s->batch,
                                 .grid = {1, 1}};
    if (mr_model_memory_count(h->model) > 0) {
        status = mr_memshard_open(&h->shard, h->model, &h->manifest, NULL, options.grid, 0, 1, err);
        if (status != MR_OK) return status;
        link = mr_link_loop(mr_memshard_handle, h->shard, "here");
        options.shards = &link;
        options.shard_count = 1;
    }
    status = mr_engine_plan(&h->memory, &options, err);
    if (status == MR_OK) status = mr_engine_open(&h->engine, &options, err);
    if (status != MR_OK)
        mr_link_close(link);
    else if (h->shard)
        mr_memshard_set_team(h->shard, mr_engine_team(h->engine));
    return status;
}

static void close_host(host *h) {
    mr_engine_close(h->engine);
    mr_memshard_close(h->shard);
    mr_manifest_free(&h->manifest);
    mr_model_close(h->model);
}

typedef struct {
    mr_wire_sequence *sequences;
    int32_t *tokens, *sampled;
    uint32_t *blocks;
    uint32_t batch, blocks_each;
} batch_state;

static void on_sampled(void *context, uint32_t sequence, const mr_wire_sampled *sampled,
                       const mr_wire_logprob *top) {
    (void)top;
    ((batch_state *)context)->sampled[sequence] = sampled->token;
}

/* One step in which every sequence of [first, first + count) gets `each` tokens. */
static mr_status step(host *h, batch_state *b, uint32_t first, uint32_t count, uint32_t position,
                      uint32_t each, mr_wire_done *done, mr_err *err) {
    for (uint32_t i = 0; i < count; i++)
        b->sequences[i] = (mr_wire_sequence){.id = first + i,
                                             .position = position,
                                             .token_count = each,
                                             .block_count = b->blocks_each,
                                             .flags = MR_SEQUENCE_SAMPLE,
                                             .top_p = 1};
    const mr_step now = {.sequence_count = count,
                         .token_count = count * each,
                         .block_count = count * b->blocks_each,
                         .sequences = b->sequences,
                         .tokens = b->tokens,
                         .blocks = b->blocks + (size_t)first * b->blocks_each};
    b->sampled += first;
    const mr_step_sink sink = {.sampled = on_sampled, .context = b};
    const mr_status status = mr_engine_step(h->engine, &now, &sink, done, err);
    b->sampled -= first;
    return status;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* GB/s of reading weights in a row with the engine's threads: the sum keeps the loads alive. */
typedef struct {
    const uint64_t *words;
    size_t each;
    uint64_t sum[MR_MAX_THREADS];
} reading;

static void read_part(void *context, uint32_t member, uint32_t first, uint32_t count) {
    reading *r = context;
    uint64_t sum = 0;
    for (size_t i = first * r->each; i < (first + count) * r->each; i++) sum += r->words[i];
    r->sum[member] += sum;
}

static double read_rate(mr_engine *engine) {
    enum { PARTS = 64 };
    const size_t bytes = 512u << 20;
    static reading r;
    void *data;
    mr_team *team = mr_engine_team(engine);
    if (mr_try_alloc(&data, bytes, 1, "read buffer", NULL) != MR_OK) return 0;
    memset(data, 1, bytes);
    r.words = data;
    r.each = bytes / sizeof(uint64_t) / PARTS;
    double best = 0;
    for (int i = 0; i < 4; i++) {
        const int64_t begin = clock_ns();
        mr_team_run(team, read_part, &r, PARTS);
        const double rate = (double)bytes / (double)(clock_ns() - begin);
        if (rate > best) best = rate;
    }
    free(data);
    return best;
}

static mr_status prefill(host *h, batch_state *b, uint32_t prompt, double *seconds, mr_err *err) {
    const uint32_t vocab = mr_model_config(h->model)->vocab_size;
    uint64_t state = 12345;
    mr_wire_done done;
    const int64_t begin = clock_ns();
    for (uint32_t s = 0; s < b->batch; s++)
        for (uint32_t at = 0; at < prompt;) {
            const uint32_t each = prompt - at < 512 ? prompt - at : 512;
            for (uint32_t i = 0; i < each; i++) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                b->tokens[i] = (int32_t)((state >> 33) % vocab);
            }
            const mr_status status = step(h, b, s, 1, at, each, &done, err);
            if (status != MR_OK) return status;
            at += each;
        }
    *seconds = (double)(clock_ns() - begin) * 1e-9;
    return MR_OK;
}

static mr_status measure(host *h, const settings *s, batch_state *b, mr_err *err) {
    static double steps[STEPS_MAX];
    double prefill_seconds = 0, all = 0, waited = 0;
    mr_wire_done done;
    const uint32_t prompt = (uint32_t)s->prompt, tokens = (uint32_t)s->tokens;
    mr_status status = prefill(h, b, prompt < 16 ? prompt : 16, &prefill_seconds, err); /* warm */
    if (status == MR_OK) status = prefill(h, b, prompt, &prefill_seconds, err);
    for (uint32_t i = 0; i < tokens && status == MR_OK; i++) {
        memcpy(b->tokens, b->sampled, b->batch * sizeof(*b->tokens));
        const int64_t begin = clock_ns();
        status = step(h, b, 0, b->batch, prompt + i, 1, &done, err);
        steps[i] = (double)(clock_ns() - begin) * 1e-9;
        all += steps[i];
        waited += (double)done.retrieval_wait_ns * 1e-9;
    }
    if (status != MR_OK) return status;
    qsort(steps, tokens, sizeof(*steps), by_value);
    const double rate = read_rate(h->engine);
    const double weights = (double)h->memory.weight_bytes;
    printf("%u,%lld,%lld,%lld,%.1f,%.2f,%.2f,%.2f,%.1f,%.2f,%.2f,%.2f\n",
           mr_team_size(mr_engine_team(h->engine)), (long long)s->batch, (long long)s->prompt,
           (long long)s->tokens, (double)s->batch * prompt / prefill_seconds,
           (double)s->batch * tokens / all, steps[tokens / 2] * 1e3, steps[tokens - 1] * 1e3,
           100 * waited / all, weights / 1e9, rate, weights / rate / 1e6);
    return MR_OK;
}

static mr_status run(const settings *s, mr_err *err) {
    host h = {0};
    const uint32_t blocks_each =
        (uint32_t)((s->prompt + s->tokens + MR_KV_BLOCK_TOKENS - 1) / MR_KV_BLOCK_TOKENS);
    batch_state b = {.batch = (uint32_t)s->batch, .blocks_each = blocks_each};
    b.sequences = mr_alloc_array(b.batch, sizeof(*b.sequences));
    b.tokens = mr_alloc_array(b.batch > 512 ? b.batch : 512, sizeof(*b.tokens));
    b.sampled = mr_alloc_array(b.batch, sizeof(*b.sampled));
    b.blocks = mr_alloc_array((size_t)b.batch * blocks_each, sizeof(*b.blocks));
    for (uint32_t i = 0; i < b.batch * blocks_each; i++) b.blocks[i] = i;
    mr_status status = open_host(&h, s, blocks_each, err);
    if (status == MR_OK) status = measure(&h, s, &b, err);
    close_host(&h);
    free(b.sequences);
    free(b.tokens);
    free(b.sampled);
    free(b.blocks);
    return status;
}

int main(int argc, char **argv) {
    settings s = {.batch = 1, .prompt = 128, .tokens = 32};
    const mr_option options[] = {
        {"model", 0, MR_OPT_TEXT, &s.model, 0, 0, "DIR", "the model"},
        {"batch", 0, MR_OPT_INT, &s.batch, 1, 64, "N", "sequences decoded together (1)"},
        {"prompt", 0, MR_OPT_INT, &s.prompt, 1, 1 << 20, "N", "prompt tokens of each (128)"},
        {"tokens", 0, MR_OPT_INT, &s.tokens, 1, STEPS_MAX, "N", "tokens decoded of each (32)"},
        {"numeric", 0, MR_OPT_TEXT, &s.numeric, 0, 0, "KIND", "exact or fast (exact)"},
        {"cpu-time", 0, MR_OPT_FLAG, &s.cpu_time, 0, 0, NULL,
         "count what this thread computes, not time that passes: for --threads 1"},
        {"threads", 0, MR_OPT_INT, &s.threads, 0, MR_MAX_THREADS, "N", "threads (0: all cores)"},
        {0}};
    const mr_command_spec spec = {
        "bench_decode --model DIR [options]",
        "Prints threads,batch,prompt,tokens,prefill_tok_s,decode_tok_s,step_p50_ms,step_max_ms,\n"
        "retrieval_wait_percent,weights_gb,read_gb_s,weights_read_ms.",
        options, 0, 0};
    mr_err err = {{0}};
    int count;
    mr_status status = mr_options_parse(&spec, argc, argv, NULL, &count, &err);
    if (status == MR_ERR_CANCELLED) return 0;
    if (status == MR_OK && !s.model) status = mr_fail(&err, MR_ERR_ARGUMENT, "--model is needed");
    uses_cpu_time = s.cpu_time;
    mr_float_environment();
    if (status == MR_OK) status = run(&s, &err);
    if (status == MR_OK) return 0;
    fprintf(stderr, "bench_decode: %s\n", err.text);
    return 1;
}
