/* serve_next.c - the link to the next stage of a model's pipeline: one thread that connects, keeps
 * the link alive, sends what the step thread put into the outbox, and passes answers back.
 *
 * A step that was handed on is a flight: its client's number and request, and the counters of this
 * stage, to which those of the later ones are added. The link's end fails every flight. Silence is
 * only held against the next stage while this thread looks: a ping is answered by the other side's
 * serving thread whatever its step thread does. */
#include "worker/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    CONNECT_MS = 500,
    RETRY_MS = 100,
    NEXT_OUTBOX_BYTES_MAX = 16 << 20,
    FLIGHT_MS = 60000, /* of a step whose asker stated no budget */
    WELCOME_BYTES_MAX = 4096,
};

typedef struct {
    bool is_used;
    uint16_t version;
    uint64_t here; /* request number at the next stage */
    uint64_t client, request;
    int64_t began_ns, expires_ns;
    mr_engine_account account; /* of this stage; wait_ns points at the flight's own */
    uint64_t *wait_ns;         /* [memory_count] */
} flight;

struct mr_next {
    mr_served_model *model;
    mr_worker *worker;
    pthread_t thread;
    bool has_thread;
    int wake; /* eventfd: something changed that the thread should look at */
    atomic_bool stop;

    /* under the worker's lock */
    char *address;    /* NULL: nowhere */
    uint64_t version; /* of the address: grows with every change */
    bool is_up;
    uint64_t session; /* grows with every connection */
    mr_err why;       /* is_up is false: the reason */
    mr_outbox out;
    flight flights[MR_WORKER_STEPS_QUEUED];
    uint64_t next_request;
};

static void wake(mr_next *n) {
    const uint64_t one = 1;
    const ssize_t put = write(n->wake, &one, sizeof(one));
    (void)put; /* full: it is awake already */
}

/* --- flights (lock held) ---------------------------------------------------------------------- */

static void end_flight(mr_next *n, flight *f) {
    f->is_used = false;
    n->model->steps--;
    pthread_cond_broadcast(&n->worker->changed);
}

static void fail_flight(mr_next *n, flight *f, mr_status status, const char *sentence) {
    mr_worker_put_error(n->worker, f->client, f->request, status, sentence);
    end_flight(n, f);
}

static flight *find_flight(mr_next *n, uint64_t here) {
    for (uint32_t i = 0; i < MR_WORKER_STEPS_QUEUED; i++)
        if (n->flights[i].is_used && n->flights[i].here == here) return &n->flights[i];
    return NULL;
}

static flight *new_flight(mr_next *n) {
    for (uint32_t i = 0; i < MR_WORKER_STEPS_QUEUED; i++)
        if (!n->flights[i].is_used) return &n->flights[i];
    return NULL;
}

/* "stage 1 of 3 at ADDR" */
static mr_status name_stage(const mr_next *n, const char *address, mr_status status, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(n->model->engine);
    return mr_fail_prefix(err, status, "stage %u of %u at %s", part->stage + 1, part->stages,
                          address ? address : "no address");
}

/* --- sending (the step thread) ---------------------------------------------------------------- */

mr_status mr_next_is_up(mr_next *n, mr_err *err) {
    if (n->is_up) return MR_OK;
    mr_fail(err, MR_ERR_UNAVAILABLE, "%s", n->why.text);
    return MR_ERR_UNAVAILABLE;
}

static bool all_finite(const float *values, size_t count) {
    bool good = true;
    for (size_t i = 0; i < count; i++) good &= isfinite(values[i]) != 0;
    return good;
}

static uint32_t budget_left(int64_t expires_ns) {
    if (expires_ns == INT64_MAX) return 0;
    const int64_t left = (expires_ns - mr_now_ns()) / 1000;
    return left < 1 ? 1 : left > UINT32_MAX ? UINT32_MAX : (uint32_t)left;
}

/* Lock held. */
static mr_status put_stage(mr_next *n, const mr_job *job, int64_t began_ns, uint64_t *here,
                           mr_err *err) {
    const mr_engine_account *account = mr_engine_last(n->model->engine);
    const mr_status status = mr_next_is_up(n, err);
    if (status != MR_OK) return status;
    flight *f = new_flight(n);
    if (!f)
        return mr_fail(err, MR_ERR_LIMIT, "%d steps are at the next stage already",
                       MR_WORKER_STEPS_QUEUED);
    uint64_t *wait_ns = f->wait_ns;
    if (account->more.layers > 0)
        memcpy(wait_ns, account->wait_ns, account->more.layers * sizeof(*wait_ns));
    *f = (flight){.is_used = true,
                  .version = job->version,
                  .here = ++n->next_request,
                  .client = job->client,
                  .request = job->request,
                  .began_ns = began_ns,
                  .expires_ns = job->expires_ns != INT64_MAX ? job->expires_ns
                                                             : mr_now_ns() + FLIGHT_MS * 1000000ll,
                  .account = *account,
                  .wait_ns = wait_ns};
    f->account.wait_ns = wait_ns;
    *here = f->here;
    n->model->steps++;
    const mr_wire_header header = {.type = MR_FRAME_STAGE,
                                   .request = f->here,
                                   .epoch = job->epoch,
                                   .budget_us = budget_left(job->expires_ns)};
    uint8_t *room = mr_outbox_put(&n->out, &header, job->payload_bytes);
    memcpy(room, job->payload, job->payload_bytes);
    if (account->more.degraded > 0) {
        mr_wire_step fixed;
        memcpy(&fixed, room, sizeof(fixed));
        fixed.flags |= MR_STEP_DEGRADED;
        memcpy(room, &fixed, sizeof(fixed));
    }
    return MR_OK;
}

/* Lock held; waits for room. false: the session ended, and with it the flight. */
static bool put_piece(mr_next *n, uint64_t session, uint64_t here, const mr_wire_hidden *fixed,
                      const float *values) {
    const size_t bytes = (size_t)fixed->tokens * fixed->columns * sizeof(float);
    const mr_wire_header header = {.type = MR_FRAME_HIDDEN, .request = here};
    while (n->is_up && n->session == session && !atomic_load(&n->worker->stop) &&
           mr_outbox_bytes(&n->out) + sizeof(*fixed) + bytes > NEXT_OUTBOX_BYTES_MAX)
        mr_worker_wait(n->worker);
    if (!n->is_up || n->session != session || atomic_load(&n->worker->stop)) return false;
    uint8_t *room = mr_outbox_put(&n->out, &header, (uint32_t)(sizeof(*fixed) + bytes));
    memcpy(room, fixed, sizeof(*fixed));
    memcpy(room + sizeof(*fixed), values, bytes);
    return true;
}

/* Lock held. */
static bool put_hidden(mr_next *n, uint64_t session, uint64_t here, uint32_t tokens,
                       const float *values, mr_hidden_kind kind) {
    const mr_engine_part *part = mr_engine_get_part(n->model->engine);
    const uint32_t most =
        (uint32_t)((MR_MAX_FRAME_BYTES - sizeof(mr_wire_hidden)) / (part->columns * sizeof(float)));
    for (uint32_t first = 0; first < tokens; first += most) {
        const mr_wire_hidden fixed = {
            .kind = (uint16_t)kind,
            .kinds = part->pending_out < 0 ? 1 : 3,
            .token_first = first,
            .tokens = tokens - first < most ? tokens - first : most,
            .columns = part->columns,
            .layer = kind == MR_HIDDEN_PENDING ? part->pending_out : -1,
            .block = part->blocks.first + part->blocks.count,
        };
        if (!put_piece(n, session, here, &fixed, values + (size_t)first * part->columns))
            return false;
        wake(n);
    }
    return true;
}

mr_status mr_next_send(mr_next *n, const mr_job *job, int64_t began_ns, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(n->model->engine);
    const mr_engine_output output = mr_engine_hidden(n->model->engine);
    const size_t all = (size_t)job->tokens * part->columns;
    uint64_t here = 0;
    if (!all_finite(output.hidden, all) || (output.pending && !all_finite(output.pending, all)))
        return mr_fail(err, MR_ERR_RANGE,
                       "the hidden states after block %u are not all finite numbers",
                       part->blocks.first + part->blocks.count - 1);
    pthread_mutex_lock(&n->worker->lock);
    const uint64_t session = n->session;
    const mr_status status = put_stage(n, job, began_ns, &here, err);
    if (status == MR_OK) {
        wake(n);
        if (put_hidden(n, session, here, job->tokens, output.hidden, MR_HIDDEN_STREAM) &&
            output.pending)
            put_hidden(n, session, here, job->tokens, output.pending, MR_HIDDEN_PENDING);
    }
    pthread_mutex_unlock(&n->worker->lock);
    return status;
}

/* --- answers (the link's thread) -------------------------------------------------------------- */

/* This stage's counters and those of all later ones. */
static void merge_done(flight *f, const mr_done_view *done) {
    mr_engine_account *a = &f->account;
    a->done.step_ns = (uint64_t)(mr_now_ns() - f->began_ns);
    a->done.retrieval_wait_ns += done->fixed->retrieval_wait_ns;
    a->done.retrieval_bytes_up += done->fixed->retrieval_bytes_up;
    a->done.retrieval_bytes_down += done->fixed->retrieval_bytes_down;
    if (!done->more) return;
    a->more.hedges += done->more->hedges;
    a->more.resends += done->more->resends;
    a->more.degraded += done->more->degraded;
    a->more.cache_hits += done->more->cache_hits;
    a->more.cache_misses += done->more->cache_misses;
    if (done->more->stage_ns_max_us > a->more.stage_ns_max_us)
        a->more.stage_ns_max_us = done->more->stage_ns_max_us;
    for (uint32_t i = 0; i < a->more.layers && i < done->more->layers; i++)
        f->wait_ns[i] += done->wait_ns[i];
}

/* Lock held. */
static void pass_on(mr_next *n, flight *f, const mr_frame *frame) {
    mr_wire_header header = {
        .type = frame->header->type, .request = f->request, .status = frame->header->status};
    const bool is_done = header.type == MR_FRAME_DONE;
    const uint32_t bytes = is_done ? mr_answer_done_bytes(f->version, f->account.more.layers)
                                   : frame->header->payload_bytes;
    const bool has_room = mr_worker_wait_room(n->worker, f->client, bytes);
    mr_client *c = has_room ? mr_worker_client(n->worker, f->client) : NULL;
    if (!c) return; /* it left, or reads nothing: what it misses it will not count */
    uint8_t *room = mr_outbox_put(&c->out, &header, bytes);
    if (is_done)
        mr_answer_put_done(room, f->version, &f->account);
    else if (bytes > 0)
        memcpy(room, frame->payload, bytes);
}

static mr_status take_answer(mr_next *n, const mr_frame *frame, mr_err *err) {
    mr_done_view done;
    const uint16_t type = frame->header->type;
    mr_status status = mr_frame_check(frame, err);
    if (status != MR_OK || type == MR_FRAME_PONG) return status;
    if (type == MR_FRAME_REFUSE) return mr_frame_error(frame, err);
    if (type != MR_FRAME_SAMPLED && type != MR_FRAME_LOGITS && type != MR_FRAME_DONE &&
        type != MR_FRAME_ERROR)
        return mr_fail(err, MR_ERR_FORMAT, "a %s frame where answers of a step were expected",
                       mr_frame_name(type));
    pthread_mutex_lock(&n->worker->lock);
    flight *f = find_flight(n, frame->header->request);
    if (f) { /* else it took too long and was answered already */
        if (type == MR_FRAME_DONE && mr_done_check(&done, frame, err) == MR_OK)
            merge_done(f, &done);
        pass_on(n, f, frame);
        if (type == MR_FRAME_DONE || type == MR_FRAME_ERROR) end_flight(n, f);
    }
    pthread_mutex_unlock(&n->worker->lock);
    return MR_OK;
}

/* --- the link's thread ------------------------------------------------------------------------ */

static bool is_wanted(mr_next *n, uint64_t version) {
    pthread_mutex_lock(&n->worker->lock);
    const bool wanted = n->version == version && !atomic_load(&n->stop);
    pthread_mutex_unlock(&n->worker->lock);
    return wanted;
}

static void expire_flights(mr_next *n) {
    const int64_t now = mr_now_ns();
    bool any = false;
    pthread_mutex_lock(&n->worker->lock);
    for (uint32_t i = 0; i < MR_WORKER_STEPS_QUEUED; i++) {
        flight *f = &n->flights[i];
        if (!f->is_used || now < f->expires_ns) continue;
        mr_err err;
        mr_fail(&err, MR_ERR_TIMEOUT, "the step was not answered in time");
        name_stage(n, n->address, MR_ERR_TIMEOUT, &err);
        fail_flight(n, f, MR_ERR_TIMEOUT, err.text);
        any = true;
    }
    pthread_mutex_unlock(&n->worker->lock);
    if (any) mr_server_wake(n->worker->server);
}

/* Waits for the link, the eventfd (link NULL: only that), or the time. */
static void sleep_on(mr_next *n, mr_link *link, int64_t until_ns) {
    struct pollfd set[2] = {{.fd = n->wake, .events = POLLIN}};
    if (link)
        set[1] =
            (struct pollfd){.fd = mr_link_fd(link),
                            .events = (short)(POLLIN | (mr_link_wants_write(link) ? POLLOUT : 0))};
    const int64_t left = until_ns - mr_now_ns(), wait = left > 0 ? left : 0;
    const struct timespec time = {.tv_sec = (time_t)(wait / 1000000000),
                                  .tv_nsec = (long)(wait % 1000000000)};
    if (ppoll(set, link ? 2 : 1, &time, NULL) <= 0 || !(set[0].revents & POLLIN)) return;
    uint64_t count;
    const ssize_t got = read(n->wake, &count, sizeof(count));
    (void)got;
}

typedef struct {
    int64_t heard_ns, pinged_ns; /* pinged 0: no ping is open */
    uint64_t moved;              /* bytes sent when output last had to wait; 0: it did not */
} pulse;

static mr_status receive_all(mr_next *n, mr_link *link, pulse *p, mr_err *err) {
    bool any = false;
    mr_status status;
    mr_frame frame;
    while ((status = mr_link_receive(link, &frame, err)) == MR_OK) {
        *p = (pulse){.heard_ns = mr_now_ns(), .moved = p->moved};
        any = true;
        status = take_answer(n, &frame, err);
        if (status != MR_OK) break;
    }
    if (any) mr_server_wake(n->worker->server);
    return status == MR_ERR_AGAIN ? MR_OK : status;
}

static mr_status send_all(mr_next *n, mr_link *link, pulse *p, mr_err *err) {
    pthread_mutex_lock(&n->worker->lock);
    if (mr_outbox_bytes(&n->out) > 0 && !mr_link_wants_write(link)) {
        mr_outbox_move(&n->out, link);
        pthread_cond_broadcast(&n->worker->changed);
    }
    pthread_mutex_unlock(&n->worker->lock);
    const mr_status status = mr_link_flush(link, err);
    if (status != MR_OK && status != MR_ERR_AGAIN) return status;
    /* A peer that takes what waited for it is alive, though its answers may wait behind. */
    const uint64_t sent = mr_link_bytes_sent(link);
    if (p->moved > 0 && sent > p->moved) *p = (pulse){.heard_ns = mr_now_ns()};
    p->moved = status == MR_ERR_AGAIN ? sent : 0;
    return MR_OK;
}

static mr_status check_pulse(mr_link *link, pulse *p, mr_err *err) {
    const int64_t now = mr_now_ns();
    if (p->pinged_ns == 0 && now - p->heard_ns >= MR_WORKER_PING_MS * 1000000ll) {
        mr_link_send(link, &(mr_wire_header){.type = MR_FRAME_PING}, NULL, 0);
        mr_link_flush(link, NULL); /* a failure shows at the next receive */
        p->pinged_ns = now;
    }
    const int64_t patience = (MR_WORKER_NEXT_LOST_MS - MR_WORKER_PING_MS) * 1000000ll;
    if (p->pinged_ns == 0 || now - p->pinged_ns < patience) return MR_OK;
    return mr_fail(err, MR_ERR_UNAVAILABLE, "it has not answered for %d ms",
                   (int)((now - p->heard_ns) / 1000000));
}

/* Until the link fails or is not wanted any more (MR_OK). */
static mr_status pump(mr_next *n, mr_link *link, uint64_t version, mr_err *err) {
    pulse p = {.heard_ns = mr_now_ns()};
    while (is_wanted(n, version)) {
        mr_status status = send_all(n, link, &p, err);
        if (status == MR_OK) status = receive_all(n, link, &p, err);
        if (status == MR_OK) status = check_pulse(link, &p, err);
        if (status != MR_OK) return status;
        expire_flights(n);
        pthread_mutex_lock(&n->worker->lock);
        const bool more = mr_outbox_bytes(&n->out) > 0 && !mr_link_wants_write(link);
        pthread_mutex_unlock(&n->worker->lock);
        if (more) continue;
        const int64_t base = p.pinged_ns ? p.pinged_ns : p.heard_ns;
        const int64_t patience =
            p.pinged_ns ? MR_WORKER_NEXT_LOST_MS - MR_WORKER_PING_MS : MR_WORKER_PING_MS;
        sleep_on(n, link, base + patience * 1000000);
    }
    return MR_OK;
}

/* The next stage must be what this one's steps need. */
static mr_status check_welcome(const mr_next *n, const mr_welcome_view *view, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(n->model->engine);
    const mr_wire_worker_info *there = view->worker_info, *here = &n->model->info;
    if (!there || view->fixed->version < 2)
        return mr_fail(err, MR_ERR_MISMATCH, "it is no worker that speaks version 2");
    if (there->stage != part->stage + 1 || there->stages != part->stages)
        return mr_fail(err, MR_ERR_MISMATCH, "it is stage %u of %u of the model", there->stage,
                       there->stages);
    if (there->kv_blocks < here->kv_blocks || there->step_tokens_max < here->step_tokens_max ||
        there->step_sequences_max < here->step_sequences_max)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "it has %u KV blocks and takes steps of %u tokens and %u sequences; this "
                       "stage has %u, %u and %u",
                       there->kv_blocks, there->step_tokens_max, there->step_sequences_max,
                       here->kv_blocks, here->step_tokens_max, here->step_sequences_max);
    return MR_OK;
}

static mr_status connect_plainly(mr_link **out, const char *address, const mr_session_hello *hello,
                                 int64_t deadline_ns, void *welcome, size_t room, size_t *bytes,
                                 mr_err *err) {
    mr_status status = mr_link_connect(out, address, deadline_ns, err);
    if (status != MR_OK) return status;
    status = mr_session_open(*out, hello, deadline_ns, welcome, room, bytes, err);
    if (status == MR_OK) return MR_OK;
    mr_link_close(*out);
    *out = NULL;
    return status;
}

static mr_status reach(mr_next *n, mr_link **out, const char *address, mr_err *err) {
    const mr_session_hello hello = {MR_ROLE_WORKER, MR_ROLE_WORKER, n->model->digest};
    const int64_t deadline = mr_now_ns() + CONNECT_MS * 1000000ll;
    _Alignas(8) uint8_t welcome[WELCOME_BYTES_MAX];
    mr_welcome_view view;
    size_t bytes;
    const mr_worker_options *o = &n->worker->options;
    mr_status status = o->connect ? o->connect(o->connect_context, out, address, &hello, deadline,
                                               welcome, sizeof(welcome), &bytes, err)
                                  : connect_plainly(out, address, &hello, deadline, welcome,
                                                    sizeof(welcome), &bytes, err);
    if (status != MR_OK) {
        *out = NULL;
        return status;
    }
    status = mr_welcome_check(&view, welcome, bytes, err);
    if (status == MR_OK) status = check_welcome(n, &view, err);
    if (status == MR_OK) return MR_OK;
    mr_link_close(*out);
    *out = NULL;
    return status;
}

/* Lock held. Every step at the next stage fails with the sentence. */
static void go_down(mr_next *n, const mr_err *why) {
    n->is_up = false;
    if (why != &n->why) n->why = *why;
    n->out.taken = n->out.used = 0;
    for (uint32_t i = 0; i < MR_WORKER_STEPS_QUEUED; i++)
        if (n->flights[i].is_used) fail_flight(n, &n->flights[i], MR_ERR_UNAVAILABLE, why->text);
    pthread_cond_broadcast(&n->worker->changed);
}

/* One address from the first try to the end of one connection. */
static void serve_address(mr_next *n, const char *address, uint64_t version) {
    mr_err err = {{0}};
    mr_link *link;
    mr_status status = reach(n, &link, address, &err);
    bool was_up = false;
    if (status == MR_OK) {
        pthread_mutex_lock(&n->worker->lock);
        was_up = n->version == version;
        n->is_up = was_up;
        n->session++;
        pthread_cond_broadcast(&n->worker->changed);
        pthread_mutex_unlock(&n->worker->lock);
        if (was_up) {
            mr_log_info("connected to the next stage at %s", address);
            status = pump(n, link, version, &err);
        }
    }
    if (status == MR_OK) mr_fail(&err, MR_ERR_UNAVAILABLE, "the pipeline was changed");
    pthread_mutex_lock(&n->worker->lock);
    name_stage(n, address, MR_ERR_UNAVAILABLE, &err);
    if (was_up && !atomic_load(&n->stop)) mr_log_warn("%s", err.text);
    if (was_up) { /* a next stage that comes back may have begun anew, with nothing in its cache */
        n->model->cut_before = n->worker->next_number + 1;
        n->model->cut_why = err;
    }
    go_down(n, n->version == version ? &err : &n->why);
    pthread_mutex_unlock(&n->worker->lock);
    if (was_up) mr_server_wake(n->worker->server);
    mr_link_close(link);
}

static void *run(void *argument) {
    mr_next *n = argument;
    while (!atomic_load(&n->stop)) {
        pthread_mutex_lock(&n->worker->lock);
        char *address = n->address ? mr_strdup(n->address) : NULL;
        const uint64_t version = n->version;
        pthread_mutex_unlock(&n->worker->lock);
        if (address) serve_address(n, address, version);
        free(address);
        const int64_t until = mr_now_ns() + (address ? RETRY_MS : 3600 * 1000) * 1000000ll;
        while (is_wanted(n, version) && mr_now_ns() < until) sleep_on(n, NULL, until);
    }
    return NULL;
}

/* --- open and close --------------------------------------------------------------------------- */

mr_status mr_next_open(mr_next **out, mr_served_model *model, mr_err *err) {
    const mr_engine_part *part = mr_engine_get_part(model->engine);
    mr_next *n = mr_alloc(sizeof(*n));
    *out = NULL;
    n->model = model;
    n->worker = model->worker;
    n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    mr_fail(&n->why, MR_ERR_UNAVAILABLE, "stage %u of %u is not known yet", part->stage + 1,
            part->stages);
    for (uint32_t i = 0; i < MR_WORKER_STEPS_QUEUED; i++)
        n->flights[i].wait_ns = mr_alloc_array(part->memory_count + 1ull, sizeof(uint64_t));
    sigset_t all, before; /* signals are for the main thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code = n->wake < 0 ? errno : pthread_create(&n->thread, NULL, run, n);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    n->has_thread = code == 0;
    if (code != 0) {
        mr_next_close(n);
        return mr_fail(err, MR_ERR_NOMEM, "start the next stage's thread: %s", strerror(code));
    }
    *out = n;
    return MR_OK;
}

void mr_next_set(mr_next *n, const char *address) {
    const bool same =
        address && n->address ? strcmp(address, n->address) == 0 : !address && !n->address;
    if (same) return;
    free(n->address);
    n->address = address ? mr_strdup(address) : NULL;
    n->version++;
    n->is_up = false; /* what was sent fails when the thread sees it; nothing more is sent */
    mr_fail(&n->why, MR_ERR_UNAVAILABLE, "it is not connected yet");
    name_stage(n, n->address, MR_ERR_UNAVAILABLE, &n->why);
    wake(n);
}

void mr_next_close(mr_next *n) {
    if (!n) return;
    atomic_store(&n->stop, true);
    if (n->wake >= 0) wake(n);
    if (n->has_thread) pthread_join(n->thread, NULL);
    if (n->wake >= 0) close(n->wake);
    for (uint32_t i = 0; i < MR_WORKER_STEPS_QUEUED; i++) free(n->flights[i].wait_ns);
    free(n->out.bytes);
    free(n->address);
    free(n);
}
