/* local.c - see local.h. */
#include "cli/local.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "worker/serve.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { KV_BYTES_WANTED_MAX = 1 << 30, STEP_TIMEOUT_MS = 600000 };

struct mr_local {
    mr_embedded embedded;
    mr_served *served;
    mr_core *core;
    mr_link *worker_link;
    pthread_t worker;
    bool has_worker;
    atomic_bool stop;
};

static void *run_worker(void *context) {
    mr_local *local = context;
    mr_err err;
    mr_worker_serve_link(local->embedded.engine, local->embedded.manifest.digest,
                         local->worker_link, &local->stop, &err);
    return NULL;
}

/* As many contexts as are wanted, but no more than a GiB of them, and never less than one. */
static uint32_t choose_kv_blocks(const mr_model *model, uint32_t answers) {
    const mr_config *c = mr_model_config(model);
    const uint64_t block_bytes =
        2ull * c->n_layers * c->n_kv_heads * c->head_dim * sizeof(float) * MR_KV_BLOCK_TOKENS;
    const uint64_t context = (c->context_tokens + MR_KV_BLOCK_TOKENS - 1ull) / MR_KV_BLOCK_TOKENS;
    uint64_t blocks = context * (answers ? answers : 1);
    const uint64_t most = block_bytes ? KV_BYTES_WANTED_MAX / block_bytes : blocks;
    if (blocks > most) blocks = most;
    return (uint32_t)(blocks > context ? blocks : context);
}

static mr_status start(mr_local *local, const mr_local_options *o, const mr_draft_options *draft,
                       mr_err *err) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return mr_fail(err, MR_ERR_IO, "socket pair: %s", strerror(errno));
    mr_link *link = mr_link_from_fd(pair[0], "embedded worker");
    local->worker_link = mr_link_from_fd(pair[1], "coordinator in this process");
    local->has_worker = pthread_create(&local->worker, NULL, run_worker, local) == 0;
    if (!local->has_worker) {
        mr_link_close(link);
        return mr_fail(err, MR_ERR_IO, "no thread for the worker");
    }
    const mr_core_options core = {.link = link,
                                  .digest = local->embedded.manifest.digest,
                                  .tokenizer = local->served->tokenizer,
                                  .context_tokens = local->served->context_tokens,
                                  .queue_max = o->queue_max,
                                  .step_timeout_ms = STEP_TIMEOUT_MS,
                                  .draft = *draft};
    return mr_core_open(&local->core, &core, err);
}

mr_status mr_local_open(mr_local **out, const mr_local_options *options, mr_err *err) {
    mr_local *local = mr_alloc(sizeof(*local));
    mr_embedded_options embedded = options->embedded;
    mr_draft_options draft;
    *out = NULL;
    mr_status status = mr_draft_settings_read(&draft, &options->speculation, err);
    if (status == MR_OK) status = mr_model_open(&embedded.model, embedded.model_directory, err);
    if (status == MR_OK && embedded.kv_blocks == 0)
        embedded.kv_blocks = choose_kv_blocks(embedded.model, options->answers_wanted);
    if (status == MR_OK) status = mr_embedded_open(&local->embedded, &embedded, err);
    if (status == MR_OK)
        status = mr_served_open(&local->served, local->embedded.model, options->name, err);
    if (status == MR_OK) status = start(local, options, &draft, err);
    if (status != MR_OK) {
        mr_local_close(local);
        return status;
    }
    *out = local;
    return MR_OK;
}

void mr_local_close(mr_local *local) {
    if (!local) return;
    mr_core_close(local->core);
    local->stop = true;
    if (local->has_worker) pthread_join(local->worker, NULL);
    mr_link_close(local->worker_link);
    mr_served_close(local->served);
    mr_embedded_close(&local->embedded);
    free(local);
}

mr_core *mr_local_core(mr_local *local) {
    return local->core;
}
const mr_served *mr_local_served(const mr_local *local) {
    return local->served;
}

/* --- sampling options ------------------------------------------------------------------------- */

void mr_local_sampling_init(mr_local_sampling *out) {
    *out = (mr_local_sampling){
        .temperature = -1, .top_p = -1, .min_p = -1, .top_k = -1, .seed = -1, .max_tokens = 128};
}

mr_status mr_local_sampling_check(const mr_local_sampling *s, mr_err *err) {
    if (s->stops.count > MR_MAX_STOP_STRINGS)
        return mr_fail(err, MR_ERR_ARGUMENT, "--stop is given %u times; at most %d", s->stops.count,
                       MR_MAX_STOP_STRINGS);
    for (uint32_t i = 0; i < s->stops.count; i++) {
        const size_t bytes = strlen(s->stops.items[i]);
        if (bytes == 0 || bytes > MR_MAX_STOP_BYTES || !mr_utf8_valid(s->stops.items[i], bytes))
            return mr_fail(err, MR_ERR_ARGUMENT, "--stop takes 1 to %d bytes of UTF-8 text",
                           MR_MAX_STOP_BYTES);
    }
    return MR_OK;
}

static mr_request *make_request(const mr_served *served, const mr_token_list *prompt,
                                const mr_local_sampling *s) {
    mr_request *r = mr_request_new();
    const bool own = served->has_sampling;
    const double temperature = s->temperature >= 0 ? s->temperature
                               : own               ? served->temperature
                                                   : 0.8;
    const double top_p = s->top_p >= 0 ? s->top_p : own ? served->top_p : 0.95;
    const double min_p = s->min_p >= 0 ? s->min_p : own ? 0 : 0.05;
    const int64_t top_k = s->top_k >= 0 ? s->top_k : own ? served->top_k : 40;
    size_t bytes[MR_MAX_STOP_STRINGS];
    mr_request_add_prompt(r, prompt->items, prompt->count);
    r->new_tokens = (uint32_t)s->max_tokens;
    r->temperature = (float)temperature;
    r->top_p = (float)top_p;
    r->min_p = (float)min_p;
    r->top_k = (uint32_t)top_k;
    r->seed = (uint64_t)s->seed;
    if (s->seed < 0 && getrandom(&r->seed, sizeof(r->seed), GRND_NONBLOCK) > 0)
        r->seed >>= 12; /* short enough to be typed again, and exact as a JSON number */
    for (uint32_t i = 0; i < s->stops.count; i++) bytes[i] = strlen(s->stops.items[i]);
    if (s->stops.count > 0) r->stops = mr_stop_set_open(s->stops.items, bytes, s->stops.count);
    memcpy(r->stop_ids, served->stop_ids, sizeof(served->stop_ids));
    r->stop_id_count = served->stop_id_count;
    return r;
}

/* --- one answer ------------------------------------------------------------------------------- */

typedef struct {
    pthread_mutex_t lock; /* guards what the core's thread writes: */
    pthread_cond_t changed;
    mr_text fresh; /* text not handed out yet */
    bool has_ended;
    mr_status status;
    mr_err err;
    int64_t first_ns;
    mr_local_answer *answer;
} watcher;

static bool on_event(void *context, const mr_event *event) {
    watcher *w = context;
    pthread_mutex_lock(&w->lock);
    if (event->is_end) {
        w->has_ended = true;
        w->status = event->status;
        mr_fail(&w->err, event->status, "%s", event->sentence);
        w->answer->prompt_tokens = event->prompt_tokens;
        w->answer->generated_tokens = event->generated_tokens;
    } else {
        if (w->first_ns == 0) w->first_ns = mr_now_ns();
        mr_text_add(&w->fresh, event->text, event->bytes);
        if (event->finish != MR_FINISH_NONE) w->answer->finish = event->finish;
    }
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return true;
}

static volatile sig_atomic_t interrupts;

static void on_interrupt(int number) {
    (void)number;
    interrupts++;
}

/* Until the end event; text is passed on outside the lock, so that a slow terminal holds nobody. */
static void watch(watcher *w, mr_core *core, uint64_t id,
                  void (*on_text)(const char *text, size_t bytes)) {
    for (bool ended = false; !ended;) {
        mr_text part;
        pthread_mutex_lock(&w->lock);
        if (w->fresh.bytes == 0 && !w->has_ended) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 50000000;
            if (until.tv_nsec >= 1000000000) {
                until.tv_nsec -= 1000000000;
                until.tv_sec++;
            }
            pthread_cond_timedwait(&w->changed, &w->lock, &until);
        }
        part = w->fresh;
        w->fresh = (mr_text){0};
        ended = w->has_ended;
        pthread_mutex_unlock(&w->lock);
        mr_text_add(&w->answer->text, mr_text_string(&part), part.bytes);
        if (on_text && part.bytes > 0) on_text(mr_text_string(&part), part.bytes);
        mr_text_free(&part);
        if (interrupts > 0 && !w->answer->interrupted) {
            w->answer->interrupted = true;
            mr_core_cancel(core, id);
        }
    }
}

mr_status mr_local_generate(mr_local_answer *out, mr_local *local, const mr_token_list *prompt,
                            const mr_local_sampling *sampling,
                            void (*on_text)(const char *text, size_t bytes), mr_err *err) {
    watcher w = {.answer = out};
    struct sigaction before;
    const struct sigaction ours = {.sa_handler = on_interrupt};
    uint64_t id;
    const int64_t start_ns = mr_now_ns();
    mr_request *r = make_request(local->served, prompt, sampling);
    *out = (mr_local_answer){.seed = r->seed};
    r->sink = on_event;
    r->context = &w;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.changed, NULL);
    interrupts = 0;
    sigaction(SIGINT, &ours, &before);
    mr_status status = mr_core_submit(local->core, r, &id, err);
    if (status == MR_OK) {
        watch(&w, local->core, id, on_text);
        status = w.status;
        if (out->interrupted && status == MR_ERR_CANCELLED) status = MR_OK;
        if (status != MR_OK) mr_fail(err, status, "%s", w.err.text);
    } else
        mr_request_free(r);
    sigaction(SIGINT, &before, NULL);
    out->seconds = (double)(mr_now_ns() - start_ns) * 1e-9;
    out->first_token_seconds = w.first_ns ? (double)(w.first_ns - start_ns) * 1e-9 : 0;
    pthread_mutex_destroy(&w.lock);
    pthread_cond_destroy(&w.changed);
    return status;
}
