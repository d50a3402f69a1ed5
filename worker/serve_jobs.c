/* serve_jobs.c - steps that wait: STEP and STAGE frames are copied into jobs, HIDDEN frames into
 * the job they belong to. Jobs keep their memory, the one used last is used next. Threads: see
 * serve_impl.h. */
#include "worker/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

void mr_jobs_init(mr_worker *w) {
    for (uint32_t i = 0; i < MR_JOBS; i++) w->idle[w->idle_count++] = MR_JOBS - 1 - i;
}

void mr_jobs_free(mr_worker *w) {
    for (uint32_t i = 0; i < MR_JOBS; i++) {
        free(w->jobs[i].payload);
        free(w->jobs[i].hidden[0]);
        free(w->jobs[i].hidden[1]);
    }
}

static void put_back(mr_worker *w, mr_job *job) {
    w->idle[w->idle_count++] = (uint32_t)(job - w->jobs);
    job->is_used = false;
}

void mr_jobs_release(mr_worker *w, mr_job *job) {
    job->model->steps--;
    put_back(w, job);
    pthread_cond_broadcast(&w->changed);
}

/* Takes out of the queue every job for which `is_doomed` says so. */
static void drop_jobs(mr_worker *w, bool (*is_doomed)(mr_worker *, const mr_job *, const void *),
                      const void *context) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < w->job_count; i++) {
        mr_job *job = &w->jobs[w->order[i]];
        if (is_doomed(w, job, context))
            mr_jobs_release(w, job);
        else
            w->order[kept++] = w->order[i];
    }
    w->job_count = kept;
}

static bool is_clients(mr_worker *w, const mr_job *job, const void *context) {
    (void)w;
    return job->client == *(const uint64_t *)context;
}

void mr_jobs_drop_client(mr_worker *w, uint64_t client) {
    drop_jobs(w, is_clients, &client);
}

/* --- owners ----------------------------------------------------------------------------------- */

static mr_status fail_stale(const mr_served_model *m, uint64_t epoch, mr_err *err) {
    return mr_fail(err, MR_ERR_STALE,
                   "the step's owner has epoch %llu; an owner with epoch %llu took over",
                   (unsigned long long)epoch, (unsigned long long)m->epoch);
}

static bool is_older(mr_worker *w, const mr_job *job, const void *context) {
    const mr_served_model *m = context;
    mr_err err;
    if (job->model != m || job->epoch >= m->epoch) return false;
    fail_stale(m, job->epoch, &err);
    mr_worker_put_error(w, job->client, job->request, MR_ERR_STALE, err.text);
    return true;
}

static mr_status check_owner(mr_worker *w, mr_served_model *m, uint64_t epoch, mr_err *err) {
    if (epoch < m->epoch) return fail_stale(m, epoch, err);
    if (epoch == m->epoch) return MR_OK;
    m->epoch = epoch;
    drop_jobs(w, is_older, m);
    mr_server_wake(w->server);
    return MR_OK;
}

/* --- STEP and STAGE --------------------------------------------------------------------------- */

static size_t hidden_kinds(const mr_job *job) {
    const mr_engine_part *part = mr_engine_get_part(job->model->engine);
    return !job->is_stage ? 0 : part->pending_in < 0 ? 1 : 2;
}

static mr_status grow_hidden(mr_worker *w, mr_job *job, uint32_t kind, size_t floats, mr_err *err) {
    const size_t have = job->hidden_room[kind] * sizeof(float), need = floats * sizeof(float);
    if (have >= need) return MR_OK;
    for (uint32_t i = 0; i < w->idle_count && w->staged_bytes - have + need > MR_MAX_STAGED_BYTES;
         i++) { /* what jobs that rest have kept */
        mr_job *rests = &w->jobs[w->idle[i]];
        for (uint32_t k = 0; k < 2; k++) {
            w->staged_bytes -= rests->hidden_room[k] * sizeof(float);
            free(rests->hidden[k]);
            rests->hidden[k] = NULL;
            rests->hidden_room[k] = 0;
        }
    }
    if (w->staged_bytes - have + need > MR_MAX_STAGED_BYTES)
        return mr_fail(err, MR_ERR_LIMIT,
                       "hidden states of %zu MiB wait at this stage already; %d are the most",
                       w->staged_bytes >> 20, MR_MAX_STAGED_BYTES >> 20);
    void *room;
    const mr_status status = mr_try_alloc_raw(&room, need, 1, "hidden states", err);
    if (status != MR_OK) return status;
    free(job->hidden[kind]);
    job->hidden[kind] = room;
    job->hidden_room[kind] = floats;
    w->staged_bytes += need - have;
    return MR_OK;
}

/* Room for a job's payload and hidden states; the job is out of the idle list. */
static mr_status fill_job(mr_worker *w, mr_job *job, const mr_frame *frame, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(job->model->engine);
    const uint32_t bytes = frame->header->payload_bytes;
    if (job->payload_room < bytes) {
        free(job->payload);
        job->payload_room = 0;
        void *room;
        const mr_status status = mr_try_alloc_raw(&room, bytes, 1, "a step", err);
        job->payload = room;
        if (status != MR_OK) return status;
        job->payload_room = bytes;
    }
    memcpy(job->payload, frame->payload, bytes);
    job->payload_bytes = bytes;
    job->missing = 0;
    for (uint32_t kind = 0; kind < hidden_kinds(job); kind++) {
        const mr_status status =
            grow_hidden(w, job, kind, (size_t)job->tokens * part->columns, err);
        if (status != MR_OK) return status;
        job->missing += job->tokens;
        memset(job->seen[kind], 0, sizeof(job->seen[kind]));
    }
    return MR_OK;
}

static mr_status check_place(const mr_served_model *m, const mr_wire_header *h,
                             const mr_step_view *view, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(m->engine);
    if (m->is_leaving)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "the model is being unloaded from this worker");
    if (h->type == MR_FRAME_STEP && part->stage > 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "this worker is stage %u of %u: steps go to stage 0",
                       part->stage, part->stages);
    if (h->type == MR_FRAME_STAGE && part->stage == 0)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "this worker is stage 0 of %u: no stage comes before it", part->stages);
    if (view->token_count > part->step_tokens_max)
        return mr_fail(err, MR_ERR_LIMIT, "a step of %u tokens; at most %u here", view->token_count,
                       part->step_tokens_max);
    return MR_OK;
}

static mr_client *find_or_add_client(mr_worker *w, mr_link *link) {
    mr_client *c = mr_worker_client_of(w, link);
    if (c) return c;
    w->clients = mr_realloc_array(w->clients, w->client_count + 1, sizeof(*w->clients));
    c = &w->clients[w->client_count++];
    *c = (mr_client){.number = ++w->next_number, .link = link};
    return c;
}

static mr_status queue_job(mr_worker *w, mr_link *link, const mr_frame *frame,
                           const mr_step_view *view, mr_err *err) {
    const mr_wire_header *h = frame->header;
    mr_served_model *m = mr_worker_model(w, mr_link_digest(link));
    const int64_t now = mr_now_ns();
    if (!m)
        return mr_fail(err, MR_ERR_UNAVAILABLE,
                       "the model of this session is no longer loaded here");
    mr_status status = check_place(m, h, view, err);
    if (status == MR_OK) status = check_owner(w, m, h->epoch, err);
    if (status != MR_OK) return status;
    if (w->job_count == MR_WORKER_STEPS_QUEUED)
        return mr_fail(err, MR_ERR_LIMIT, "%d steps wait for this worker already",
                       MR_WORKER_STEPS_QUEUED);
    mr_job *job = &w->jobs[w->idle[--w->idle_count]];
    job->model = m;
    job->is_used = true;
    job->client = find_or_add_client(w, link)->number;
    job->request = h->request;
    job->epoch = h->epoch;
    job->version = h->version;
    job->is_stage = h->type == MR_FRAME_STAGE;
    job->tokens = view->token_count;
    job->expires_ns = h->budget_us ? now + h->budget_us * 1000ll : INT64_MAX;
    job->complete_ns = now + MR_STAGED_MS * 1000000ll;
    status = fill_job(w, job, frame, err);
    if (status != MR_OK) {
        put_back(w, job);
        return status;
    }
    m->steps++;
    w->order[w->job_count++] = (uint32_t)(job - w->jobs);
    pthread_cond_broadcast(&w->changed);
    return MR_OK;
}

mr_status mr_jobs_take_step(mr_worker *w, mr_link *link, const mr_frame *frame,
                            const mr_step_view *view, mr_err *err) {
    pthread_mutex_lock(&w->lock);
    const mr_status status = queue_job(w, link, frame, view, err);
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* --- HIDDEN ----------------------------------------------------------------------------------- */

static mr_job *find_stage(mr_worker *w, const mr_link *link, uint64_t request) {
    const mr_client *c = mr_worker_client_of(w, link);
    for (uint32_t i = 0; c && i < w->job_count; i++) {
        mr_job *job = &w->jobs[w->order[i]];
        if (job->is_stage && job->client == c->number && job->request == request) return job;
    }
    return NULL;
}

static mr_status check_hidden(const mr_job *job, const mr_wire_hidden *f, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(job->model->engine);
    const uint32_t kinds = part->pending_in < 0 ? 1 : 3;
    const int32_t layer = f->kind == MR_HIDDEN_PENDING ? part->pending_in : -1;
    if (f->block != part->blocks.first || f->columns != part->columns || f->kinds != kinds ||
        f->layer != layer)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "hidden states for block %u: %u columns, kinds %x, memory layer %d; this "
                       "stage begins with block %u: %u columns, kinds %x, memory layer %d",
                       f->block, f->columns, f->kinds, f->layer, part->blocks.first, part->columns,
                       kinds, layer);
    if (f->token_first + f->tokens > job->tokens)
        return mr_fail(err, MR_ERR_RANGE, "hidden states of tokens %u to %u; the step has %u",
                       f->token_first, f->token_first + f->tokens, job->tokens);
    for (uint32_t t = f->token_first; t < f->token_first + f->tokens; t++)
        if (job->seen[f->kind][t / 64] >> (t % 64) & 1)
            return mr_fail(err, MR_ERR_RANGE, "hidden states of token %u came twice", t);
    return MR_OK;
}

mr_status mr_jobs_take_hidden(mr_worker *w, mr_link *link, const mr_frame *frame, mr_err *err) {
    mr_hidden_view view;
    mr_status status = mr_hidden_check(&view, frame, err);
    if (status != MR_OK) return status;
    const mr_wire_hidden *f = view.fixed;
    pthread_mutex_lock(&w->lock);
    mr_job *job = find_stage(w, link, frame->header->request);
    if (job) { /* else its STAGE was answered with an error, or is too late */
        status = check_hidden(job, f, err);
        if (status == MR_OK) {
            memcpy(job->hidden[f->kind] + (size_t)f->token_first * f->columns, view.values,
                   (size_t)f->tokens * f->columns * sizeof(float));
            for (uint32_t t = f->token_first; t < f->token_first + f->tokens; t++)
                job->seen[f->kind][t / 64] |= 1ull << (t % 64);
            job->missing -= f->tokens;
            if (job->missing == 0) pthread_cond_broadcast(&w->changed);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* --- the step thread's side ------------------------------------------------------------------- */

bool mr_jobs_wait_for_hidden(const mr_worker *w) {
    return w->job_count > 0; /* those that do not were taken */
}

/* Steps of one client stay in order: one that lacks hidden states holds back those behind it. */
static bool is_held_back(const mr_worker *w, uint32_t place) {
    const mr_job *job = &w->jobs[w->order[place]];
    for (uint32_t i = 0; i < place; i++) {
        const mr_job *before = &w->jobs[w->order[i]];
        if (before->missing > 0 && before->client == job->client) return true;
    }
    return false;
}

mr_job *mr_jobs_next(mr_worker *w) {
    const int64_t now = w->job_count > 0 ? mr_now_ns() : 0;
    for (uint32_t i = 0; i < w->job_count; i++) {
        mr_job *job = &w->jobs[w->order[i]];
        if (job->missing > 0 && now < job->complete_ns) continue;
        if (job->missing == 0 && is_held_back(w, i)) continue;
        memmove(&w->order[i], &w->order[i + 1], (--w->job_count - i) * sizeof(w->order[0]));
        return job;
    }
    return NULL;
}
