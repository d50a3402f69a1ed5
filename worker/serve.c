/* serve.c - mr_worker_open of serve.h: models, clients, and the serving thread's callbacks.
 *
 * The serving thread owns the links: it checks frames, queues steps and moves answers from a
 * client's outbox into its link. See serve_impl.h for the other parts. */
#include "worker/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/session.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Room from the start: how much waits depends on how fast others read, and a warm step allocates
 * nothing. */
enum { OUTBOX_BYTES_MIN = 256 << 10 };

/* --- outboxes (lock held) --------------------------------------------------------------------- */

uint8_t *mr_outbox_put(mr_outbox *box, const mr_wire_header *header, uint32_t payload_bytes) {
    const size_t bytes = mr_parcel_bytes(payload_bytes), held = mr_outbox_bytes(box);
    const mr_parcel parcel = {.header = *header, .payload_bytes = payload_bytes};
    if (box->room - box->used < bytes) {
        if (held > 0) memmove(box->bytes, box->bytes + box->taken, held);
        box->taken = 0;
        box->used = held;
        if (box->room < held + bytes) {
            const size_t twice = 2 * (held + bytes);
            box->room = twice > OUTBOX_BYTES_MIN ? twice : OUTBOX_BYTES_MIN;
            box->bytes = mr_realloc_array(box->bytes, box->room, 1);
        }
    }
    uint8_t *room = box->bytes + box->used;
    memcpy(room, &parcel, sizeof(parcel));
    box->used += bytes;
    return room + sizeof(parcel);
}

void mr_outbox_move(mr_outbox *box, mr_link *link) {
    while (box->taken < box->used) {
        mr_parcel parcel;
        memcpy(&parcel, box->bytes + box->taken, sizeof(parcel));
        void *room = mr_link_begin(link, &parcel.header, parcel.payload_bytes);
        if (!room) return;
        if (parcel.payload_bytes > 0)
            memcpy(room, box->bytes + box->taken + sizeof(parcel), parcel.payload_bytes);
        mr_link_end(link);
        box->taken += mr_parcel_bytes(parcel.payload_bytes);
    }
}

/* --- clients and models (lock held) ----------------------------------------------------------- */

mr_client *mr_worker_client(mr_worker *w, uint64_t number) {
    for (uint32_t i = 0; i < w->client_count; i++)
        if (w->clients[i].number == number) return &w->clients[i];
    return NULL;
}

mr_client *mr_worker_client_of(mr_worker *w, const mr_link *link) {
    for (uint32_t i = 0; i < w->client_count; i++)
        if (w->clients[i].link == link) return &w->clients[i];
    return NULL;
}

mr_served_model *mr_worker_model(mr_worker *w, const mr_digest *digest) {
    for (uint32_t i = 0; i < w->model_count; i++)
        if (memcmp(&w->models[i]->digest, digest, sizeof(*digest)) == 0) return w->models[i];
    return NULL;
}

void mr_worker_wait(mr_worker *w) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += MR_LOOK_EVERY_MS * 1000000l;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&w->changed, &w->lock, &until);
}

bool mr_worker_wait_room(mr_worker *w, uint64_t client, uint32_t payload_bytes) {
    size_t held_before = SIZE_MAX;
    int64_t deadline = 0;
    while (!atomic_load(&w->stop)) {
        const mr_client *c = mr_worker_client(w, client);
        if (!c) return false;
        const size_t held = mr_outbox_bytes(&c->out);
        if (held + mr_parcel_bytes(payload_bytes) <= MR_OUTBOX_BYTES_MAX) return true;
        if (held < held_before) deadline = mr_now_ns() + MR_STUCK_MS * 1000000ll;
        held_before = held;
        if (mr_now_ns() >= deadline) return false;
        mr_worker_wait(w);
    }
    return false;
}

void mr_worker_put_error(mr_worker *w, uint64_t client, uint64_t request, mr_status status,
                         const char *sentence) {
    const mr_wire_header header = {.type = MR_FRAME_ERROR, .request = request, .status = status};
    const size_t bytes = strnlen(sentence, MR_ERR_TEXT_BYTES - 1);
    mr_client *c = mr_worker_client(w, client);
    if (!c) return;
    uint8_t *room = mr_outbox_put(&c->out, &header, (uint32_t)bytes);
    if (bytes > 0) memcpy(room, sentence, bytes);
}

/* --- the serving thread ----------------------------------------------------------------------- */

static mr_status offer_model(void *context, const mr_wire_hello *hello, mr_session_offer *out,
                             mr_err *err) {
    static const mr_digest any;
    mr_worker *w = context;
    mr_digest wanted;
    mr_status status = MR_OK;
    memcpy(wanted.bytes, hello->digest, sizeof(wanted.bytes));
    pthread_mutex_lock(&w->lock);
    const mr_served_model *m = mr_worker_model(w, &wanted);
    if (w->model_count == 1 || (w->model_count > 1 && memcmp(&wanted, &any, sizeof(any)) == 0))
        m = w->models[0]; /* the session refuses another digest, naming both */
    if (m) {
        w->offered = m->info;
        out->digest = m->digest;
        out->tail = &w->offered;
        out->tail_bytes = sizeof(w->offered);
        /* A pipeline with a gap is none: whoever asks goes elsewhere, and comes back later. */
        if (m->next) status = mr_next_is_up(m->next, err);
    } else {
        char text[MR_DIGEST_TEXT_BYTES];
        mr_digest_text(&wanted, text);
        status =
            mr_fail(err, w->model_count > 0 ? MR_ERR_MISMATCH : MR_ERR_UNAVAILABLE,
                    "none of the %u models loaded here has digest %.12s...", w->model_count, text);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

static void handle(void *context, mr_link *reply, const mr_frame *frame) {
    mr_worker *w = context;
    mr_step_view view;
    mr_err err = {{0}};
    const uint16_t type = frame->header->type;
    mr_status status;
    if (type == MR_FRAME_STEP || type == MR_FRAME_STAGE)
        status = mr_step_check(&view, frame, &err);
    else if (type == MR_FRAME_HIDDEN)
        status = mr_jobs_take_hidden(w, reply, frame, &err);
    else
        status = mr_fail(&err, MR_ERR_UNSUPPORTED, "a worker does not answer %s frames",
                         mr_frame_name(type));
    if (status != MR_OK) {
        mr_log_warn("%s: refused: %s", mr_link_peer(reply), err.text);
        mr_session_refuse(reply, frame->header->request, status, err.text);
        return;
    }
    if (type == MR_FRAME_HIDDEN) return;
    status = mr_jobs_take_step(w, reply, frame, &view, &err);
    if (status != MR_OK) mr_link_send_error(reply, frame->header->request, status, err.text);
}

static void move_answers(void *context, mr_link *link) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    mr_client *c = mr_worker_client_of(w, link);
    if (c && mr_outbox_bytes(&c->out) > 0) {
        mr_outbox_move(&c->out, link);
        pthread_cond_broadcast(&w->changed);
    }
    const mr_served_model *m = c ? mr_worker_model(w, mr_link_digest(link)) : NULL;
    if (m && c->number < m->cut_before)
        mr_session_refuse(link, 0, MR_ERR_UNAVAILABLE, m->cut_why.text);
    pthread_mutex_unlock(&w->lock);
}

static void forget_client(void *context, mr_link *link) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    mr_client *c = mr_worker_client_of(w, link);
    if (c) {
        mr_jobs_drop_client(w, c->number);
        free(c->out.bytes);
        *c = w->clients[--w->client_count];
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
}

/* --- models ----------------------------------------------------------------------------------- */

static void free_model(mr_served_model *m) {
    mr_next_close(m->next);
    mr_route_free(&m->route);
    free(m);
}

mr_status mr_worker_add(mr_worker *w, mr_engine *engine, mr_digest digest, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(engine);
    mr_served_model *m = mr_alloc(sizeof(*m));
    mr_status status = MR_OK;
    m->worker = w;
    m->engine = engine;
    m->digest = digest;
    m->map_epoch = mr_engine_route_epoch(engine);
    mr_engine_info(engine, &m->info);
    if (part->stage + 1 < part->stages) status = mr_next_open(&m->next, m, err);
    pthread_mutex_lock(&w->lock);
    if (status == MR_OK && mr_worker_model(w, &digest))
        status = mr_fail(err, MR_ERR_ARGUMENT, "the model is loaded in this worker already");
    if (status == MR_OK && w->model_count == MR_MAX_MODELS)
        status = mr_fail(err, MR_ERR_LIMIT, "%d models in one worker already", MR_MAX_MODELS);
    if (status == MR_OK) w->models[w->model_count++] = m;
    pthread_mutex_unlock(&w->lock);
    if (status != MR_OK) free_model(m);
    return status;
}

static mr_status fail_no_model(mr_err *err) {
    return mr_fail(err, MR_ERR_ARGUMENT, "no such model is loaded in this worker");
}

mr_status mr_worker_remove(mr_worker *w, mr_digest digest, int64_t deadline_ns, mr_err *err) {
    pthread_mutex_lock(&w->lock);
    mr_served_model *m = mr_worker_model(w, &digest);
    if (!m || m->is_leaving) {
        pthread_mutex_unlock(&w->lock);
        return fail_no_model(err);
    }
    m->is_leaving = true;
    while ((m->steps > 0 || m->users > 0) && mr_now_ns() < deadline_ns) mr_worker_wait(w);
    if (m->steps > 0 || m->users > 0) {
        m->is_leaving = false;
        const uint32_t steps = m->steps;
        pthread_mutex_unlock(&w->lock);
        return mr_fail(err, MR_ERR_TIMEOUT, "%u steps of the model are still under way", steps);
    }
    uint32_t at = 0;
    while (w->models[at] != m) at++;
    memmove(&w->models[at], &w->models[at + 1], (--w->model_count - at) * sizeof(w->models[0]));
    pthread_mutex_unlock(&w->lock);
    free_model(m);
    return MR_OK;
}

static mr_status fail_no_next(mr_err *err) {
    return mr_fail(err, MR_ERR_ARGUMENT,
                   "no such model is loaded here, or no stage of its pipeline follows this one");
}

mr_status mr_worker_set_next(mr_worker *w, mr_digest digest, const char *address, mr_err *err) {
    mr_status status = MR_OK;
    pthread_mutex_lock(&w->lock);
    const mr_served_model *m = mr_worker_model(w, &digest);
    if (m && m->next)
        mr_next_set(m->next, address);
    else
        status = fail_no_next(err);
    pthread_mutex_unlock(&w->lock);
    return status;
}

mr_status mr_worker_wait_next(mr_worker *w, mr_digest digest, int64_t deadline_ns, mr_err *err) {
    mr_status status;
    pthread_mutex_lock(&w->lock);
    mr_served_model *m = mr_worker_model(w, &digest);
    if (!m || !m->next) {
        status = fail_no_next(err);
    } else {
        m->users++;
        while ((status = mr_next_is_up(m->next, err)) != MR_OK && !m->is_leaving &&
               mr_now_ns() < deadline_ns)
            mr_worker_wait(w);
        m->users--;
        pthread_cond_broadcast(&w->changed);
        if (status != MR_OK) status = MR_ERR_TIMEOUT;
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

mr_status mr_worker_set_route(mr_worker *w, mr_digest digest, mr_route *route, mr_err *err) {
    mr_status status = MR_OK;
    pthread_mutex_lock(&w->lock);
    mr_served_model *m = mr_worker_model(w, &digest);
    if (!m) {
        status = fail_no_model(err);
    } else {
        mr_route_free(&m->route);
        m->route = *route;
        m->has_route = true;
        *route = (mr_route){0};
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

mr_status mr_worker_look(mr_worker *w, mr_digest digest, mr_worker_state *out, mr_err *err) {
    mr_err why = {{0}};
    mr_status status = MR_OK;
    *out = (mr_worker_state){0};
    pthread_mutex_lock(&w->lock);
    const mr_served_model *m = mr_worker_model(w, &digest);
    if (m) {
        out->owner_epoch = m->epoch;
        out->map_epoch = m->map_epoch;
        out->steps = m->steps;
        out->has_next = m->next != NULL;
        out->is_next_up = m->next && mr_next_is_up(m->next, &why) == MR_OK;
        memcpy(out->next_why, why.text, sizeof(out->next_why));
    } else {
        status = fail_no_model(err);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

/* --- open and close --------------------------------------------------------------------------- */

static void init_lock(mr_worker *w) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&w->lock, NULL);
}

static mr_status start_step_thread(mr_worker *w, mr_err *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = pthread_create(&w->step_thread, NULL, mr_worker_run_steps, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    w->has_thread = code == 0;
    if (code != 0) return mr_fail(err, MR_ERR_NOMEM, "start the step thread: %s", strerror(code));
    return MR_OK;
}

mr_status mr_worker_open(mr_worker **out, mr_engine *engine, mr_digest digest, const char *address,
                         mr_err *err) {
    const mr_worker_options options = {.address = address, .engine = engine, .digest = digest};
    return mr_worker_open_with(out, &options, err);
}

mr_status mr_worker_open_with(mr_worker **out, const mr_worker_options *o, mr_err *err) {
    *out = NULL;
    mr_worker *w = mr_alloc(sizeof(*w));
    w->options = *o;
    w->answer_payload = mr_alloc(MR_MAX_FRAME_BYTES);
    init_lock(w);
    mr_jobs_init(w);
    const mr_server_options options = {
        .address = o->address,
        .threads = 1,
        .role = MR_ROLE_WORKER,
        .keys = o->keys,
        .is_key_required = o->is_key_required,
        .handler = handle,
        .offer = offer_model,
        .writable = move_answers,
        .link_closed = forget_client,
        .context = w,
    };
    mr_status status = o->engine ? mr_worker_add(w, o->engine, o->digest, err) : MR_OK;
    pthread_mutex_lock(&w->lock); /* callbacks wait until the server is known to them */
    if (status == MR_OK) status = mr_server_open(&w->server, &options, err);
    pthread_mutex_unlock(&w->lock);
    if (status == MR_OK) status = start_step_thread(w, err);
    if (status != MR_OK) {
        mr_worker_close(w);
        return status;
    }
    *out = w;
    return MR_OK;
}

const char *mr_worker_address(const mr_worker *worker) {
    return mr_server_address(worker->server);
}

void mr_worker_close(mr_worker *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    atomic_store(&w->stop, true);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (w->has_thread) pthread_join(w->step_thread, NULL);
    for (uint32_t i = 0; i < w->model_count; i++) mr_next_close(w->models[i]->next);
    mr_server_close(w->server); /* drops every link, and with it its jobs and outbox */
    for (uint32_t i = 0; i < w->client_count; i++) free(w->clients[i].out.bytes);
    for (uint32_t i = 0; i < w->model_count; i++) {
        w->models[i]->next = NULL;
        free_model(w->models[i]);
    }
    mr_jobs_free(w);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->clients);
    free(w->answer_payload);
    free(w);
}
