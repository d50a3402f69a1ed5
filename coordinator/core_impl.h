/* core_impl.h - what the core's files share. Everything here belongs to the core's thread, but the
 * part of mr_core under `lock`.
 *
 *   core.c       opening, the inbox, submit and cancel
 *   core_step.c  requests becoming sequences, steps, their results
 *   core_link.c  the link: frames in and out, the watchdog, connecting again */
#ifndef MR_COORDINATOR_CORE_IMPL_H
#define MR_COORDINATOR_CORE_IMPL_H
#include "coordinator/core.h"
#include "coordinator/scheduler.h"

#include <event2/event.h>
#include <pthread.h>

typedef struct core_live core_live;

/* One answer being written. */
typedef struct {
    core_live *live;
    uint32_t index;
    uint64_t id; /* what frames name */
    const int32_t *prompt;
    uint32_t prompt_count, new_tokens, generated;
    mr_sequence *sequence; /* NULL once complete */
    mr_stream *stream;
    int64_t last_token_ns;
    bool is_sampled; /* the step that is out has sampled it: */
    mr_token_entry result;
    uint64_t step_logits; /* how many have come in the step that is out */
} core_answer;

struct core_live {
    core_live *next, *previous;
    mr_request *request;
    uint64_t id;
    core_answer *answers; /* [answer_count] */
    uint32_t answer_count, left;
    bool is_started; /* no longer counted as waiting */
    bool is_long;    /* some answer ended at its length */
    uint64_t generated;
    int64_t submitted_ns;
    float *logits;
};

typedef enum { CORE_SUBMIT, CORE_CANCEL, CORE_LINK, CORE_STOP } core_kind;

typedef struct core_message {
    struct core_message *next;
    core_kind kind;
    uint64_t id;
    mr_request *request;
    int64_t submitted_ns;
    mr_link *link; /* a new session, and what the worker said */
    mr_wire_worker_info info;
} core_message;

struct mr_core {
    /* opened once, then read only */
    const mr_tokenizer *tokenizer;
    char *address; /* NULL: embedded */
    mr_digest digest;
    uint32_t context_tokens, queue_max, step_timeout_ms, silence_timeout_ms;
    pthread_t thread;
    int wake_fd;
    mr_metrics metrics;

    /* guards what other threads see: inbox, state, waiting */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* the worker came or went, or closing began */
    core_message *inbox, **inbox_end;
    bool is_up, is_draining, is_closing;
    mr_err down_reason;
    mr_wire_worker_info info;
    uint64_t next_id;
    uint32_t waiting_requests, live_requests;
    uint64_t waiting_tokens;

    /* the core's thread only */
    struct event_base *base;
    struct event *wake_event, *read_event, *write_event, *watchdog, *heartbeat;
    mr_link *link;
    mr_scheduler *scheduler; /* NULL before the first session */
    core_live *first;
    const mr_plan *step; /* the one that is out */
    uint64_t step_id;
    uint64_t next_answer_id;
    int64_t heard_ns; /* when the last frame came */
    pthread_t connector;
    bool has_connector;
    bool is_stopping;
};

/* core.c */
void core_post(mr_core *core, core_message *message); /* takes it over; any thread */
void core_set_state(mr_core *core, bool is_up, const mr_wire_worker_info *info, const char *reason);
void core_count_out(mr_core *core, core_live *live, bool has_ended);

/* core_step.c */
void core_take(mr_core *core, core_message *message);
void core_end(mr_core *core, core_live *live, mr_status status, const char *sentence);
void core_end_all(mr_core *core, mr_status status, const char *sentence);
void core_pump(mr_core *core); /* sends the next step if none is out */
mr_status core_sampled(mr_core *core, const mr_frame *frame, mr_err *err);
mr_status core_logits(mr_core *core, const mr_frame *frame, mr_err *err);
mr_status core_done(mr_core *core, const mr_frame *frame, mr_err *err);
void core_step_failed(mr_core *core, mr_status status, const char *sentence);

/* core_link.c */
mr_status core_open_session(mr_core *core, mr_link *link, mr_wire_worker_info *info,
                            int64_t deadline_ns, mr_err *err);
void core_use_link(mr_core *core, mr_link *link, const mr_wire_worker_info *info);
void core_flush(mr_core *core);
void core_link_failed(mr_core *core, mr_status status, const char *sentence);
void core_drop_link(mr_core *core);
void core_arm_watchdog(mr_core *core, bool on);
void core_on_heartbeat(evutil_socket_t fd, short what, void *context);
void core_connect(mr_core *core); /* starts the helper thread */

#endif
