/* core_impl.h - what the core's files share. Everything here belongs to the core's thread, but the
 * part of mr_core under `lock` and what of a group says so.
 *
 *   core.c          opening, the inbox, submit and cancel, looks
 *   core_groups.c   groups that come, change and go; which one a request goes to; all deadlines
 *   core_link.c     a group's link: frames in and out, connecting again
 *   core_request.c  requests becoming sequences, tokens becoming answers, forwarded ones
 *   core_step.c     steps, their results and failures
 *   core_draft.c    guesses that go along with a step (draft.h) */
#ifndef MR_COORDINATOR_CORE_IMPL_H
#define MR_COORDINATOR_CORE_IMPL_H
#include "common/base/limits.h"
#include "coordinator/core.h"
#include "coordinator/draft.h"
#include "coordinator/models.h"
#include "coordinator/scheduler.h"

#include <event2/event.h>
#include <pthread.h>

typedef struct core_live core_live;
typedef struct core_group core_group;

/* One answer being written. */
typedef struct {
    core_live *live;
    uint32_t index;
    uint64_t id; /* what frames name */
    const int32_t *prompt;
    uint32_t prompt_count, new_tokens;
    uint32_t generated;    /* tokens so far, those of before it came here included */
    mr_token_list tokens;  /* them */
    int32_t *joined;       /* prompt and tokens, of a sequence that goes on here; or NULL */
    mr_sequence *sequence; /* NULL: complete, or in no group */
    mr_stream *stream;     /* NULL once complete */
    int64_t last_token_ns;
    bool is_complete;
    bool is_noted, is_counted; /* its cached tokens: in this group, and for the client */
    uint32_t result_count;     /* tokens the step that is out has sampled: */
    mr_token_entry *results;   /* [1 + speculate] */
    uint32_t speculate;        /* most tokens drafted for it in a step */
    mr_draft *draft;           /* its text; NULL: none drafted yet */
    uint64_t step_logits;      /* how many have come in the step that is out */
} core_answer;

struct core_live {
    core_live *next, *previous;
    mr_request *request;
    uint64_t id;
    mr_digest digest;     /* pinned */
    core_group *group;    /* NULL: none at the moment */
    uint64_t forward_id;  /* of the try under way in another coordinator; 0: none */
    core_answer *answers; /* [answer_count] once it has been in a group */
    uint32_t answer_count, left;
    bool is_started; /* no longer counted as waiting */
    bool is_long;    /* some answer ended at its length */
    bool is_degraded;
    mr_lost_policy lost;
    uint32_t lost_wait_ms;
    uint64_t generated, cached;
    mr_speculation speculation;
    int64_t submitted_ns;
    int64_t wait_until_ns;     /* without a group, how long; 0: it has one */
    int64_t trouble_ns;        /* since when its steps fail; 0: they do not */
    int64_t held_until_ns;     /* its held sequences; 0: none */
    uint32_t pause_ms;         /* the last one between tries */
    uint64_t failed_step;      /* the last that failed it */
    uint64_t generated_before; /* the last loss of a group */
    uint32_t losses;           /* of groups, without a token in between */
    float *logits;
    uint32_t logit_columns;
};

typedef struct {
    const mr_plan *plan;
    uint64_t id;
    int64_t sent_ns;
    uint32_t drafted; /* tokens of it */
    bool may_degrade, is_degraded;
} core_step;

/* Figures other threads read. */
typedef struct {
    _Atomic uint64_t outstanding, waiting, running, queued_tokens, kv_blocks, kv_blocks_used,
        kv_blocks_idle, steps, step_failures, losses;
} core_face;

struct core_group {
    core_group *next; /* in the core's list, which changes under lock, or among the leaving */
    char *name, *address, *version; /* address NULL: embedded; version changes under lock */
    mr_digest digest;
    uint32_t stages_wanted;

    /* under the core's lock */
    uint64_t epoch;
    uint32_t stages;
    mr_group_state state;
    mr_err reason; /* why it is not up */
    bool is_removed;

    core_face face;

    mr_link *link;
    uint16_t wire_version;
    struct event *read_event, *write_event;
    void *door; /* what their callbacks are called with */
    mr_wire_worker_info info;
    mr_scheduler *scheduler; /* NULL without a link */
    core_step steps[MR_MAX_STAGES];
    uint32_t steps_max, steps_out;
    int64_t heard_ns, pinged_ns; /* when the last frame came, and the last ping went */
    int64_t progress_ns;         /* of the steps that are out */
    int64_t degrade_until_ns;    /* steps that may degrade do not try without first */
    int64_t stale_until_ns;      /* it has seen another owner */
    mr_draft_cost cost;          /* of its steps */
    uint32_t draftless_steps;    /* so many steps do without drafts */
    bool has_been_up;
    pthread_t connector;
    bool has_connector;
};

typedef enum {
    CORE_SUBMIT,
    CORE_CANCEL,
    CORE_LINK,
    CORE_GROUPS,
    CORE_FORWARDED,
    CORE_STOP
} core_kind;

typedef struct core_message {
    struct core_message *next;
    core_kind kind;
    uint64_t id;
    mr_request *request;
    int64_t submitted_ns;
    core_group *group; /* CORE_LINK: whose connector is done */
    mr_link *link;     /* a new session, and what the worker said; NULL: given up */
    uint16_t wire_version;
    mr_wire_worker_info info;
    core_group *groups; /* CORE_GROUPS: new ones, not opened yet */
    mr_forward_event *event;
} core_message;

struct mr_core {
    /* opened once, then read only */
    const mr_tokenizer *tokenizer;
    mr_digest digest;
    uint32_t context_tokens, queue_max, step_timeout_ms, silence_timeout_ms, worker_wait_ms;
    mr_lost_policy lost;
    uint32_t lost_wait_ms;
    mr_forwarder forwarder;
    bool has_forwarder;
    uint64_t hash_seed;
    mr_drafts *drafts;  /* NULL: no speculation; what is in there belongs to the core's thread */
    uint32_t speculate; /* most tokens drafted for any answer in a step */
    pthread_t thread;
    int wake_fd;
    mr_metrics metrics;

    /* guards what other threads see: inbox, groups, waiting */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a group came or went, or closing began */
    core_message *inbox, **inbox_end;
    core_group *groups; /* the core's thread alone changes the list, and so reads it without lock */
    uint32_t groups_up, groups_hoped; /* hoped: have an address to connect to */
    bool is_draining, is_closing;
    mr_err down_reason; /* of the last group that went or did not come */
    mr_wire_worker_info info;
    uint64_t next_id;
    uint32_t waiting_requests, live_requests;
    uint64_t waiting_tokens;

    /* the core's thread only */
    struct event_base *base;
    struct event *wake_event, *timer;
    int64_t timer_ns;    /* when it goes off; INT64_MAX: not armed */
    core_group *leaving; /* removed, their connectors not done */
    core_live *first;
    uint64_t step_id, next_answer_id, next_forward_id, turn;
    bool is_stopping;
    bool are_groups_given; /* by mr_core_set_groups */
    bool has_moved;        /* a request came into a group */
};

/* core.c */
void core_post(mr_core *core, core_message *message); /* takes it over; any thread */
void core_count_out(mr_core *core, core_live *live, bool has_ended);

/* core_groups.c */
core_group *core_group_new(const mr_group_spec *spec);
void core_group_free(mr_core *core, core_group *group);
void core_group_add(mr_core *core, core_group *group);
void core_group_say(mr_core *core, core_group *group, mr_group_state state, const char *reason);
void core_group_up(mr_core *core, core_group *group);
void core_group_lost(mr_core *core, core_group *group, mr_status status, const char *sentence);
void core_group_linked(mr_core *core, core_message *message);
void core_take_groups(mr_core *core, core_group *list);
void core_route(mr_core *core,
                core_live *live); /* into a group, elsewhere, or to wait; or ends it */
/* Tried again soon, until it has waited worker_wait_ms. */
void core_wait_for_group(mr_core *core, core_live *live);
void core_say_down(mr_core *core, const mr_err *reason);
void core_pump_all(mr_core *core);
void core_show_load(mr_core *core, core_group *group);
void core_due(mr_core *core, int64_t when_ns); /* the timer goes off then, or before */
void core_on_timer(evutil_socket_t fd, short what, void *context);

/* core_link.c */
mr_status core_open_session(const core_group *group, mr_link *link, mr_wire_worker_info *info,
                            uint16_t *version, int64_t deadline_ns, mr_err *err);
/* MR_OK: the group is up; else the link is closed. */
mr_status core_use_link(mr_core *core, core_group *group, mr_link *link, uint16_t version,
                        const mr_wire_worker_info *info, mr_err *err);
void core_flush(mr_core *core, core_group *group);
void core_drop_link(core_group *group);
void core_ping(mr_core *core, core_group *group);
void core_connect(mr_core *core, core_group *group); /* starts the helper thread */

/* core_request.c */
void core_take(mr_core *core, core_message *message);
void core_end(mr_core *core, core_live *live, mr_status status, const char *sentence);
mr_status core_check(mr_core *core, const core_group *group, const core_live *live, mr_err *err);
mr_status core_attach(mr_core *core, core_group *group, core_live *live, mr_err *err);
void core_detach(core_live *live);
mr_status core_forward(mr_core *core, core_live *live, mr_err *err);
void core_take_forwarded(mr_core *core, const mr_forward_event *event);
/* May end the request. */
void core_take_token(mr_core *core, core_answer *answer, const mr_token_entry *result);
void core_close_answer(core_answer *answer);

/* core_draft.c */
uint32_t core_speculate(const mr_core *core, const mr_request *request);    /* most tokens a step */
uint32_t core_draft(mr_core *core, core_group *group, const mr_plan *plan); /* how many it added */
void core_count_drafts(mr_core *core, core_group *group, const core_step *done);
/* The step failed; true: it is run again without guesses before anybody hears of it. */
bool core_forgives_drafts(core_group *group, const core_step *step);

/* core_step.c */
void core_pump(mr_core *core, core_group *group);          /* sends what may be out */
core_step *core_find_step(core_group *group, uint64_t id); /* NULL: none */
mr_status core_sampled(core_group *group, core_step *step, const mr_frame *frame, mr_err *err);
mr_status core_logits(core_group *group, core_step *step, const mr_frame *frame, mr_err *err);
mr_status core_done(mr_core *core, core_group *group, core_step *step, const mr_frame *frame,
                    mr_err *err);
void core_step_failed(mr_core *core, core_group *group, core_step *step, mr_status status,
                      const char *sentence);

#endif
