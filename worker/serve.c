/* serve.c - mr_worker_open of serve.h: a serving thread and a step thread.
 *
 * The serving thread owns the links: it checks STEP frames, copies them into the queue and moves
 * answers from a client's outbox into its link. The step thread owns the engine: it takes one step
 * after the other and puts the answers into the outbox of the client that asked. One mutex guards
 * the queue, the list of clients and their outboxes; it is never held while a step or a system call
 * runs. A client is found by its number, which is never used twice: answers to one that left find
 * nobody. */
#include "worker/serve.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/server.h"
#include "common/net/session.h"
#include "common/ops/team.h"
#include "worker/answers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    OUTBOX_BYTES_MAX = 8 << 20, /* of one client, before the step waits for it to read */
    STUCK_MS = 10000,
    LOOK_EVERY_MS = 50,
};

typedef struct {
    mr_wire_header header;
    uint32_t payload_bytes, reserved; /* the payload follows, padded to 8 bytes */
} parcel;
_Static_assert(sizeof(parcel) % 8 == 0, "payloads stay aligned");

typedef struct {
    uint64_t number;
    mr_link *link;
    uint8_t *outbox; /* parcels in [taken, used) */
    size_t room, taken, used;
} client;

typedef struct {
    uint64_t client, request;
    uint8_t *payload; /* owned */
    uint32_t payload_bytes;
    int64_t expires_ns; /* nobody waits for it after that; INT64_MAX: not stated */
} job;

struct mr_worker {
    mr_engine *engine;
    mr_server *server;
    pthread_t step_thread;
    bool has_thread;
    atomic_bool stop;
    pthread_mutex_t lock; /* guards what follows up to the blank line */
    pthread_cond_t changed;
    job jobs[MR_WORKER_STEPS_QUEUED]; /* a ring */
    uint32_t job_first, job_count;
    client *clients; /* [client_count] */
    uint32_t client_count;
    uint64_t next_number;

    /* step thread only: the answer between begin and end */
    uint64_t answer_client;
    parcel answer;
    uint8_t *answer_payload; /* MR_MAX_FRAME_BYTES */
};

/* --- clients (lock held) ---------------------------------------------------------------------- */

static client *find_number(mr_worker *w, uint64_t number) {
    for (uint32_t i = 0; i < w->client_count; i++)
        if (w->clients[i].number == number) return &w->clients[i];
    return NULL;
}

static client *find_link(mr_worker *w, const mr_link *link) {
    for (uint32_t i = 0; i < w->client_count; i++)
        if (w->clients[i].link == link) return &w->clients[i];
    return NULL;
}

static client *find_or_add(mr_worker *w, mr_link *link) {
    client *c = find_link(w, link);
    if (c) return c;
    w->clients = mr_realloc_array(w->clients, w->client_count + 1, sizeof(*w->clients));
    c = &w->clients[w->client_count++];
    *c = (client){.number = ++w->next_number, .link = link};
    return c;
}

static size_t parcel_bytes(uint32_t payload_bytes) {
    return sizeof(parcel) + (((size_t)payload_bytes + 7) & ~(size_t)7);
}

static void put_parcel(client *c, const parcel *p, const uint8_t *payload) {
    const size_t bytes = parcel_bytes(p->payload_bytes), held = c->used - c->taken;
    if (c->room - c->used < bytes) {
        if (held > 0) memmove(c->outbox, c->outbox + c->taken, held);
        c->taken = 0;
        c->used = held;
        if (c->room < held + bytes) {
            c->room = 2 * (held + bytes);
            c->outbox = mr_realloc_array(c->outbox, c->room, 1);
        }
    }
    memcpy(c->outbox + c->used, p, sizeof(*p));
    if (p->payload_bytes > 0) memcpy(c->outbox + c->used + sizeof(*p), payload, p->payload_bytes);
    c->used += bytes;
}

/* --- the step thread -------------------------------------------------------------------------- */

/* Until now + LOOK_EVERY_MS; the caller looks again at what it waits for. */
static void wait_a_little(mr_worker *w) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_EVERY_MS * 1000000l;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&w->changed, &w->lock, &until);
}

/* Waits for room in the client's outbox. NULL: it left, does not read, or the worker ends. */
static void *begin_answer(void *context, const mr_wire_header *header, uint32_t payload_bytes) {
    mr_worker *w = context;
    size_t held_before = SIZE_MAX;
    int64_t deadline = 0;
    bool has_room = false;
    pthread_mutex_lock(&w->lock);
    while (!atomic_load(&w->stop)) {
        const client *c = find_number(w, w->answer_client);
        if (!c) break;
        const size_t held = c->used - c->taken;
        has_room = held + parcel_bytes(payload_bytes) <= OUTBOX_BYTES_MAX;
        if (has_room) break;
        if (held < held_before) deadline = mr_now_ns() + STUCK_MS * 1000000ll;
        held_before = held;
        if (mr_now_ns() >= deadline) break;
        wait_a_little(w);
    }
    pthread_mutex_unlock(&w->lock);
    w->answer = (parcel){.header = *header, .payload_bytes = payload_bytes};
    return has_room ? w->answer_payload : NULL;
}

static void end_answer(void *context, bool urgent) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    client *c = find_number(w, w->answer_client);
    if (c) put_parcel(c, &w->answer, w->answer_payload);
    pthread_mutex_unlock(&w->lock);
    if (urgent) mr_server_wake(w->server);
}

static void run_job(mr_worker *w, const job *j) {
    const mr_answer_sink sink = {begin_answer, end_answer, w};
    const mr_wire_header header = {.magic = MR_WIRE_MAGIC,
                                   .version = MR_WIRE_VERSION,
                                   .type = MR_FRAME_STEP,
                                   .payload_bytes = j->payload_bytes,
                                   .request = j->request};
    const mr_frame frame = {&header, j->payload};
    mr_step_view view;
    mr_err err = {{0}};
    w->answer_client = j->client;
    const mr_status status = mr_step_check(&view, &frame, &err); /* again: for the view */
    if (status != MR_OK)
        mr_answer_error(j->request, status, err.text, &sink);
    else if (mr_now_ns() > j->expires_ns)
        mr_answer_error(j->request, MR_ERR_TIMEOUT, "the step waited longer than its asker", &sink);
    else
        mr_answer_step(w->engine, j->request, &view, &sink);
}

static void *run_steps(void *argument) {
    mr_worker *w = argument;
    mr_float_environment();
    pthread_mutex_lock(&w->lock);
    while (!atomic_load(&w->stop)) {
        if (w->job_count == 0) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        job j = w->jobs[w->job_first];
        w->job_first = (w->job_first + 1) % MR_WORKER_STEPS_QUEUED;
        w->job_count--;
        pthread_mutex_unlock(&w->lock);
        run_job(w, &j);
        free(j.payload);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* --- the serving thread ----------------------------------------------------------------------- */

static mr_status queue_step(mr_worker *w, mr_link *link, const mr_frame *frame, mr_err *err) {
    const mr_wire_header *h = frame->header;
    mr_status status = MR_OK;
    pthread_mutex_lock(&w->lock);
    if (w->job_count == MR_WORKER_STEPS_QUEUED) {
        status = mr_fail(err, MR_ERR_LIMIT, "%d steps wait for this worker already",
                         MR_WORKER_STEPS_QUEUED);
    } else {
        job *j = &w->jobs[(w->job_first + w->job_count++) % MR_WORKER_STEPS_QUEUED];
        *j = (job){.client = find_or_add(w, link)->number,
                   .request = h->request,
                   .payload = mr_alloc(h->payload_bytes),
                   .payload_bytes = h->payload_bytes,
                   .expires_ns = h->budget_us ? mr_now_ns() + h->budget_us * 1000ll : INT64_MAX};
        memcpy(j->payload, frame->payload, h->payload_bytes);
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return status;
}

static void handle(void *context, mr_link *reply, const mr_frame *frame) {
    mr_worker *w = context;
    mr_step_view view;
    mr_err err = {{0}};
    mr_status status;
    if (frame->header->type != MR_FRAME_STEP)
        status = mr_fail(&err, MR_ERR_UNSUPPORTED, "a worker does not answer %s frames",
                         mr_frame_name(frame->header->type));
    else
        status = mr_step_check(&view, frame, &err);
    if (status != MR_OK) {
        mr_log_warn("%s: refused: %s", mr_link_peer(reply), err.text);
        mr_session_refuse(reply, frame->header->request, status, err.text);
        return;
    }
    status = queue_step(w, reply, frame, &err);
    if (status != MR_OK) mr_link_send_error(reply, frame->header->request, status, err.text);
}

static void move_answers(void *context, mr_link *link) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    client *c = find_link(w, link);
    while (c && c->taken < c->used) {
        parcel p;
        memcpy(&p, c->outbox + c->taken, sizeof(p));
        void *room = mr_link_begin(link, &p.header, p.payload_bytes);
        if (!room) break;
        if (p.payload_bytes > 0) memcpy(room, c->outbox + c->taken + sizeof(p), p.payload_bytes);
        mr_link_end(link);
        c->taken += parcel_bytes(p.payload_bytes);
    }
    if (c) pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void forget_client(void *context, mr_link *link) {
    mr_worker *w = context;
    pthread_mutex_lock(&w->lock);
    client *c = find_link(w, link);
    if (c) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < w->job_count; i++) {
            const job j = w->jobs[(w->job_first + i) % MR_WORKER_STEPS_QUEUED];
            if (j.client == c->number)
                free(j.payload);
            else
                w->jobs[(w->job_first + kept++) % MR_WORKER_STEPS_QUEUED] = j;
        }
        w->job_count = kept;
        free(c->outbox);
        *c = w->clients[--w->client_count];
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
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

mr_status mr_worker_open(mr_worker **out, mr_engine *engine, mr_digest digest, const char *address,
                         mr_err *err) {
    mr_wire_worker_info info;
    *out = NULL;
    mr_worker *w = mr_alloc(sizeof(*w));
    w->engine = engine;
    w->answer_payload = mr_alloc(MR_MAX_FRAME_BYTES);
    init_lock(w);
    mr_engine_info(engine, &info);
    const mr_server_options options = {
        .address = address,
        .threads = 1,
        .role = MR_ROLE_WORKER,
        .digest = digest,
        .welcome_tail = &info,
        .welcome_tail_bytes = sizeof(info),
        .handler = handle,
        .writable = move_answers,
        .link_closed = forget_client,
        .context = w,
    };
    mr_status status = mr_server_open(&w->server, &options, err);
    if (status == MR_OK) {
        const int code = pthread_create(&w->step_thread, NULL, run_steps, w);
        w->has_thread = code == 0;
        if (code != 0)
            status = mr_fail(err, MR_ERR_NOMEM, "start the step thread: %s", strerror(code));
    }
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
    mr_server_close(w->server); /* drops every link, and with it its jobs and outbox */
    for (uint32_t i = 0; i < w->job_count; i++)
        free(w->jobs[(w->job_first + i) % MR_WORKER_STEPS_QUEUED].payload);
    for (uint32_t i = 0; i < w->client_count; i++) free(w->clients[i].outbox);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->clients);
    free(w->answer_payload);
    free(w);
}
