/* serve_impl.h - the parts of a listening worker, shared by the serve*.c files only.
 *
 *   serve.c        opening, models, the serving thread's callbacks
 *   serve_jobs.c   steps that wait, and the hidden states they wait for
 *   serve_steps.c  the step thread
 *   serve_next.c   one thread for each model whose next stage is elsewhere
 *
 * One mutex guards the queue, the models, the list of clients and all outboxes; it is never held
 * while a step or a system call runs. A client is found by its number, which is never used twice:
 * answers to one that left find nobody. */
#ifndef MR_WORKER_SERVE_IMPL_H
#define MR_WORKER_SERVE_IMPL_H
#include "common/base/latency.h"
#include "common/base/limits.h"
#include "common/net/frames.h"
#include "common/net/server.h"
#include "worker/answers.h"
#include "worker/serve.h"

#include <pthread.h>

enum {
    MR_OUTBOX_BYTES_MAX = 8 << 20, /* of one client, before the step waits for it to read */
    MR_STUCK_MS = 10000,           /* a reader that does not move for so long loses the rest */
    MR_LOOK_EVERY_MS = 50,
    MR_STAGED_MS = 5000, /* hidden states of a step that are not all there by then */
    MR_JOBS = MR_WORKER_STEPS_QUEUED + 2, /* those that wait, one under way, one being taken in */
};

/* Frames that wait to be put into a link: parcels in bytes[taken, used). */
typedef struct {
    mr_wire_header header;
    uint32_t payload_bytes, reserved; /* the payload follows, padded to 8 bytes */
} mr_parcel;
_Static_assert(sizeof(mr_parcel) % 8 == 0, "payloads stay aligned");

typedef struct {
    uint8_t *bytes;
    size_t room, taken, used;
} mr_outbox;

static inline size_t mr_parcel_bytes(uint32_t payload_bytes) {
    return sizeof(mr_parcel) + (((size_t)payload_bytes + 7) & ~(size_t)7);
}
static inline size_t mr_outbox_bytes(const mr_outbox *box) {
    return box->used - box->taken;
}
/* Room for one frame's payload at the end; the parcel counts as put. */
uint8_t *mr_outbox_put(mr_outbox *box, const mr_wire_header *header, uint32_t payload_bytes);
/* Moves parcels into the link until it takes no more. */
void mr_outbox_move(mr_outbox *box, mr_link *link);

typedef struct {
    uint64_t number;
    mr_link *link;
    mr_outbox out;
} mr_client;

typedef struct mr_next mr_next;

typedef struct {
    mr_worker *worker;
    mr_engine *engine;
    mr_digest digest;
    mr_wire_worker_info info;
    uint64_t map_epoch; /* of the engine's route */
    mr_route route;     /* to be taken by the step thread, if has_route */
    bool has_route;
    uint64_t epoch;      /* the highest owner's seen */
    uint64_t cut_before; /* clients of lower numbers count on a next stage that is gone: cut off */
    mr_err cut_why;
    uint32_t steps;  /* that wait or are under way, here or behind */
    uint32_t users;  /* threads inside mr_worker_wait_next and the like */
    bool is_leaving; /* takes no new steps */
    mr_next *next;   /* NULL on the last stage */
} mr_served_model;

/* A step between its arrival and the end of its computing. */
typedef struct {
    mr_served_model *model;
    uint64_t client, request, epoch;
    uint16_t version; /* of the client's session */
    bool is_stage, is_used;
    uint8_t *payload; /* kept from job to job, as are the hidden states */
    size_t payload_room;
    uint32_t payload_bytes, tokens;
    int64_t expires_ns;  /* nobody waits for it after that; INT64_MAX: not stated */
    int64_t complete_ns; /* when its hidden states must be there */
    uint32_t missing;    /* tokens of all kinds */
    float *hidden[2];    /* by mr_hidden_kind: [tokens][columns] */
    size_t hidden_room[2];
    uint64_t seen[2][MR_MAX_STEP_TOKENS / 64]; /* which tokens came */
} mr_job;

/* Latencies of two windows that take turns: who looks adds up the current one and the one before.
 */
typedef struct {
    mr_worker_stats sums; /* counters only */
    int64_t window[2];
    uint32_t latency[2][MR_LATENCY_STEPS];
} mr_step_record;

struct mr_worker {
    mr_worker_options options;
    mr_server *server;
    pthread_t step_thread;
    bool has_thread;
    atomic_bool stop;
    mr_wire_worker_info offered; /* serving thread only */

    pthread_mutex_t lock; /* guards what follows up to the blank line */
    pthread_cond_t changed;
    mr_job jobs[MR_JOBS];
    uint32_t order[MR_JOBS]; /* [job_count] jobs that wait, in order */
    uint32_t idle[MR_JOBS];  /* [idle_count] jobs free to use, the warmest last */
    uint32_t job_count, idle_count;
    size_t staged_bytes; /* of all hidden rooms */
    mr_client *clients;  /* [client_count] */
    uint32_t client_count;
    uint64_t next_number;
    mr_served_model *models[MR_MAX_MODELS]; /* [model_count], the oldest first */
    uint32_t model_count;
    mr_step_record record;

    /* step thread only: the answer between begin and end */
    uint64_t answer_client;
    mr_wire_header answer;
    uint32_t answer_bytes;
    uint8_t *answer_payload; /* MR_MAX_FRAME_BYTES */
};

/* Lock held. */
mr_client *mr_worker_client(mr_worker *w, uint64_t number);
mr_client *mr_worker_client_of(mr_worker *w, const mr_link *link); /* NULL: not known yet */
mr_served_model *mr_worker_model(mr_worker *w, const mr_digest *digest);
/* Until now + MR_LOOK_EVERY_MS at most; the caller looks again at what it waits for. */
void mr_worker_wait(mr_worker *w);
/* Waits for room in the client's outbox. false: it left, does not read, or the worker ends. */
bool mr_worker_wait_room(mr_worker *w, uint64_t client, uint32_t payload_bytes);
/* Puts an ERROR into the client's outbox, if it is still there. */
void mr_worker_put_error(mr_worker *w, uint64_t client, uint64_t request, mr_status status,
                         const char *sentence);

/* serve_jobs.c; the lock is taken inside unless stated. */
mr_status mr_jobs_take_step(mr_worker *w, mr_link *link, const mr_frame *frame,
                            const mr_step_view *view, mr_err *err);
/* A failure ends the session. */
mr_status mr_jobs_take_hidden(mr_worker *w, mr_link *link, const mr_frame *frame, mr_err *err);
/* Lock held: the first job that can run (or is too late), NULL: none. Out of the queue. */
mr_job *mr_jobs_next(mr_worker *w);
bool mr_jobs_wait_for_hidden(const mr_worker *w);        /* lock held: some job does */
void mr_jobs_release(mr_worker *w, mr_job *job);         /* lock held: it was run */
void mr_jobs_drop_client(mr_worker *w, uint64_t client); /* lock held */
void mr_jobs_init(mr_worker *w);
void mr_jobs_free(mr_worker *w);

/* serve_stats.c; lock held: a step of this engine has ended. */
void mr_stats_step(mr_worker *w, const mr_engine *engine, int64_t took_ns, mr_status status);

/* serve_steps.c */
void *mr_worker_run_steps(void *worker);

/* serve_next.c. A step that goes on at the next stage: begin puts STAGE into the outbox; then the
 * hidden states; the answers find their way themselves. */
mr_status mr_next_open(mr_next **out, mr_served_model *model, mr_err *err);
void mr_next_close(mr_next *next);                    /* NULL is fine; lock not held */
void mr_next_set(mr_next *next, const char *address); /* lock held */
/* Lock held: fills err with why it is not. */
mr_status mr_next_is_up(mr_next *next, mr_err *err);
/* Step thread, lock not held. A failure was not answered. */
mr_status mr_next_send(mr_next *next, const mr_job *job, int64_t began_ns, mr_err *err);

#endif
