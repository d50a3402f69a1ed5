/* serve_steps.c - the step thread: takes one job after the other, runs it, and answers, or hands
 * its hidden states to the next stage and goes on. See serve_impl.h. */
#include "worker/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/ops/team.h"

#include <string.h>

/* Waits for room in the client's outbox. NULL: it left, does not read, or the worker ends. */
static void *begin_answer(void *context, const mr_wire_header *header, uint32_t payload_bytes) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    const bool has_room = mr_worker_wait_room(w, w->answer_client, payload_bytes);
    pthread_mutex_unlock(&w->lock);
    w->answer = *header;
    w->answer_bytes = payload_bytes;
    return has_room ? w->answer_payload : NULL;
}

static void end_answer(void *context, bool urgent) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    mr_client *c = mr_worker_client(w, w->answer_client);
    if (c) {
        uint8_t *room = mr_outbox_put(&c->out, &w->answer, w->answer_bytes);
        if (w->answer_bytes > 0) memcpy(room, w->answer_payload, w->answer_bytes);
    }
    pthread_mutex_unlock(&w->lock);
    if (urgent) mr_server_wake(w->server);
}

/* A stage that others follow. It does not begin what nobody can end. */
static mr_status run_and_hand_on(mr_worker *w, const mr_job *job, const mr_answer_task *task,
                                 mr_err *err) {
    const int64_t began = mr_now_ns();
    const mr_step_sink sink = {0};
    const mr_step step = mr_answer_make_step(task);
    pthread_mutex_lock(&w->lock);
    mr_status status = mr_next_is_up(job->model->next, err);
    pthread_mutex_unlock(&w->lock);
    if (status == MR_OK)
        status = mr_answer_status(mr_engine_step(job->model->engine, &step, &sink, NULL, err));
    if (status == MR_OK) status = mr_next_send(job->model->next, job, began, err);
    if (status != MR_OK) mr_log_warn("step failed: %s", err->text);
    return status;
}

static mr_status run_job(mr_worker *w, const mr_job *job, const mr_answer_sink *sink, mr_err *err) {
    const mr_wire_header header = {.magic = MR_WIRE_MAGIC,
                                   .version = job->version,
                                   .type = job->is_stage ? MR_FRAME_STAGE : MR_FRAME_STEP,
                                   .payload_bytes = job->payload_bytes,
                                   .request = job->request};
    const mr_frame frame = {&header, job->payload};
    mr_step_view view;
    if (job->missing > 0)
        return mr_fail(err, MR_ERR_TIMEOUT,
                       "the hidden states of %u of the step's tokens did not come within %d ms",
                       job->missing, MR_STAGED_MS);
    if (mr_now_ns() > job->expires_ns)
        return mr_fail(err, MR_ERR_TIMEOUT, "the step waited longer than its asker");
    const mr_status status = mr_step_check(&view, &frame, err); /* again: for the view */
    if (status != MR_OK) return status;
    const mr_engine_part *part = mr_engine_get_part(job->model->engine);
    const mr_answer_task task = {.request = job->request,
                                 .version = job->version,
                                 .deadline_ns = job->expires_ns == INT64_MAX ? 0 : job->expires_ns,
                                 .view = &view,
                                 .hidden = job->is_stage ? job->hidden[MR_HIDDEN_STREAM] : NULL,
                                 .pending =
                                     part->pending_in >= 0 ? job->hidden[MR_HIDDEN_PENDING] : NULL};
    if (job->model->next) return run_and_hand_on(w, job, &task, err);
    mr_answer_step(job->model->engine, &task, sink);
    return MR_OK;
}

/* Lock held, given up meanwhile. A model is not removed while it has users. */
static void take_routes(mr_worker *w) {
    for (uint32_t i = 0; i < w->model_count; i++) {
        mr_served_model *m = w->models[i];
        if (!m->has_route) continue;
        mr_route route = m->route;
        mr_err err;
        m->has_route = false;
        m->route = (mr_route){0};
        m->users++;
        pthread_mutex_unlock(&w->lock);
        if (mr_engine_set_route(m->engine, &route, &err) != MR_OK)
            mr_log_warn("the new route to the memshards is not taken: %s", err.text);
        mr_route_free(&route);
        pthread_mutex_lock(&w->lock);
        m->map_epoch = mr_engine_route_epoch(m->engine);
        m->users--;
        pthread_cond_broadcast(&w->changed);
        i = UINT32_MAX; /* the list may have changed: from the start */
    }
}

void *mr_worker_run_steps(void *argument) {
    mr_worker *w = argument;
    const mr_answer_sink sink = {begin_answer, end_answer, w};
    mr_float_environment();
    pthread_mutex_lock(&w->lock);
    while (!atomic_load(&w->stop)) {
        take_routes(w);
        mr_job *job = mr_jobs_next(w);
        if (!job && mr_jobs_wait_for_hidden(w)) {
            mr_worker_wait(w);
            continue;
        }
        if (!job) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        w->answer_client = job->client;
        pthread_mutex_unlock(&w->lock);
        mr_err err = {{0}};
        const int64_t began = mr_now_ns();
        const mr_status status = run_job(w, job, &sink, &err);
        if (status != MR_OK) mr_answer_error(job->request, status, err.text, &sink);
        pthread_mutex_lock(&w->lock);
        job->model->map_epoch = mr_engine_route_epoch(job->model->engine);
        mr_stats_step(w, job->model->engine, mr_now_ns() - began, status);
        mr_jobs_release(w, job);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}
