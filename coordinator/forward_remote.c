/* forward_remote.c - see forward_remote.h. */
#include "coordinator/forward_remote.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    SEND_MS = 1500,
    READ_MS = 1000,
    TRIES_MAX = MR_MAX_QUEUED_REQUESTS,
    STACK_BYTES = 512 << 10
};

/* One request at one owner. Owned by its thread. */
typedef struct try {
    struct try *next, *previous;
    mr_remote *remote;
    uint64_t id;
    char *owner, *address;
    mr_generation generation; /* its arrays are ours: */
    int32_t *tokens, *generated;
    uint32_t *prompt_tokens, *generated_tokens;
    bool *is_complete;
    mr_control_reader *reader; /* under the remote's lock: cancel needs it */
    bool is_cancelled;
}
try;

struct mr_remote {
    char *self;
    const mr_view *(*view)(void *context);
    void *context;
    mr_rpc_security security;
    char *files[3];
    mr_core *core;
    pthread_mutex_t lock; /* guards what follows, and of tries what cancel touches */
    pthread_cond_t changed;
    try *first;
    uint32_t count;
    bool is_stopping;
};

mr_remote *mr_remote_open(const mr_remote_options *o) {
    mr_remote *r = mr_alloc(sizeof(*r));
    const char *files[] = {o->security.ca_file, o->security.cert_file, o->security.key_file};
    r->self = mr_strdup(o->self);
    r->view = o->view;
    r->context = o->context;
    for (int i = 0; i < 3; i++) r->files[i] = files[i] ? mr_strdup(files[i]) : NULL;
    r->security = (mr_rpc_security){r->files[0], r->files[1], r->files[2], o->security.is_plain};
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    return r;
}

void mr_remote_set_core(mr_remote *remote, mr_core *core) {
    remote->core = core;
}

/* --- who owns groups of a model --------------------------------------------------------------- */

static bool is_of(const mr_stage_record *stage, const mr_digest *digest) {
    static const mr_digest none;
    return stage->stage == 0 && (!digest || memcmp(digest, &none, sizeof(none)) == 0 ||
                                 memcmp(&stage->digest, digest, sizeof(*digest)) == 0);
}

/* The coordinator that owns the group, if it is another one that can be asked. */
static const mr_member *owner_of(const mr_remote *r, const mr_view *view, const char *group) {
    const mr_owner_record *owner = mr_view_owner(view, group);
    if (!owner || strcmp(owner->coordinator, r->self) == 0) return NULL;
    const mr_member *member = mr_view_member(view, MR_ROLE_COORDINATOR, owner->coordinator);
    return member && member->control ? member : NULL;
}

/* The turn-th of them, going round; NULL: there is none. Borrowed from the view. */
static const mr_member *find_owner(const mr_remote *r, const mr_view *view, const mr_digest *digest,
                                   uint64_t turn) {
    const mr_member *owners[MR_MAX_GROUPS];
    uint32_t count = 0;
    for (uint32_t m = 0; m < view->member_count; m++) {
        const mr_member *worker = view->members[m];
        if (worker->role != MR_ROLE_WORKER) continue;
        for (uint32_t s = 0; s < worker->stage_count && count < MR_MAX_GROUPS; s++) {
            if (!is_of(&worker->stages[s], digest)) continue;
            owners[count] = owner_of(r, view, worker->stages[s].group);
            count += owners[count] != NULL;
        }
    }
    return count > 0 ? owners[turn % count] : NULL;
}

static bool reaches(void *context, const mr_digest *digest) {
    mr_remote *r = context;
    pthread_mutex_lock(&r->lock);
    const bool is_stopping = r->is_stopping;
    pthread_mutex_unlock(&r->lock);
    if (is_stopping) return false;
    const mr_view *view = r->view(r->context);
    const bool has_owner = find_owner(r, view, digest, 0) != NULL;
    mr_view_release(view);
    return has_owner;
}

/* --- a try ------------------------------------------------------------------------------------ */

static void free_try(try *t) {
    free(t->owner);
    free(t->address);
    free(t->tokens);
    free(t->generated);
    free(t->prompt_tokens);
    free(t->generated_tokens);
    free(t->is_complete);
    free(t);
}

static void *copied(const void *from, size_t count, size_t bytes) {
    void *to = mr_alloc_array(count ? count : 1, bytes);
    if (count) memcpy(to, from, count * bytes);
    return to;
}

static void copy_answers(try *t, const mr_forward_job *job) {
    size_t total = 0;
    for (uint32_t i = 0; i < job->answer_count; i++) total += job->answers[i].count;
    t->generated = mr_alloc_array(total + 1, sizeof(*t->generated));
    t->generated_tokens = mr_alloc_array(job->answer_count, sizeof(*t->generated_tokens));
    total = 0;
    for (uint32_t i = 0; i < job->answer_count; i++) {
        const mr_token_list *a = &job->answers[i];
        t->generated_tokens[i] = (uint32_t)a->count;
        if (a->count) memcpy(t->generated + total, a->items, a->count * sizeof(int32_t));
        total += a->count;
    }
    t->generation.generated_count = total;
}

static try *new_try(mr_remote *remote, const mr_forward_job *job, const mr_member *owner) {
    const mr_request *r = job->request;
    try *t = mr_alloc(sizeof(*t));
    t->remote = remote;
    t->id = job->id;
    t->owner = mr_strdup(owner->id);
    t->address = mr_strdup(owner->control);
    copy_answers(t, job);
    t->tokens = copied(r->tokens.items, r->tokens.count, sizeof(*t->tokens));
    t->prompt_tokens = copied(r->prompt_tokens, r->prompt_count, sizeof(*t->prompt_tokens));
    t->is_complete = copied(job->is_complete, job->answer_count, sizeof(*t->is_complete));
    mr_generation *g = &t->generation;
    *g = (mr_generation){.model = "",
                         .has_digest = true,
                         .digest = job->digest,
                         .tokens = t->tokens,
                         .token_count = r->tokens.count,
                         .prompt_tokens = t->prompt_tokens,
                         .prompt_count = r->prompt_count,
                         .choices = r->choices,
                         .generated = t->generated,
                         .generated_count = g->generated_count,
                         .generated_tokens = t->generated_tokens,
                         .is_complete = t->is_complete,
                         .new_tokens = r->new_tokens,
                         .temperature = r->temperature,
                         .top_p = r->top_p,
                         .min_p = r->min_p,
                         .top_k = r->top_k,
                         .seed = r->seed,
                         .logprobs = r->logprobs,
                         .top_logprobs = r->top_logprobs,
                         .stop_id_count = r->stop_id_count,
                         .lost = (mr_control_lost)r->lost,
                         .has_lost_wait = r->has_lost_wait,
                         .lost_wait_ms = r->lost_wait_ms,
                         .has_speculate = r->has_speculate,
                         .speculate = r->speculate};
    memcpy(g->stop_ids, r->stop_ids, r->stop_id_count * sizeof(int32_t));
    return t;
}

static void post(const try *t, const mr_generation_event *e) {
    mr_forward_event event = {.id = t->id,
                              .is_end = e->is_end,
                              .answer = e->answer,
                              .status = e->status,
                              .is_degraded = e->is_degraded};
    event.entry =
        (mr_token_entry){.token = e->token, .logprob = e->logprob, .top_count = e->top_count};
    for (uint32_t i = 0; i < e->top_count; i++)
        event.entry.top[i] = (mr_wire_logprob){e->top_tokens[i], e->top_logprobs[i]};
    mr_fail(&event.sentence, e->status, "%s", e->sentence);
    mr_core_forwarded(t->remote->core, &event);
}

/* false: cancelled meanwhile. */
static bool keep_reader(try *t, mr_control_reader *reader) {
    pthread_mutex_lock(&t->remote->lock);
    t->reader = reader;
    const bool go_on = !t->is_cancelled;
    pthread_mutex_unlock(&t->remote->lock);
    return go_on;
}

/* Tells all events but a failure to read, which is returned. */
static mr_status read_all(try *t, mr_control_reader *reader, mr_err *err) {
    mr_generation_event event;
    for (;;) {
        const mr_status status =
            mr_control_read(reader, &event, mr_now_ns() + READ_MS * 1000000ll, err);
        if (status == MR_ERR_TIMEOUT) continue; /* nothing to say: rpc notices a dead owner */
        if (status != MR_OK) return status;
        if (event.is_end || event.token >= 0) post(t, &event);
        if (event.is_end) return MR_OK;
    }
}

static mr_status ask_owner(try *t, mr_err *err) {
    mr_control_client *client;
    mr_control_reader *reader = NULL;
    const mr_control_client_options options = {.address = t->address,
                                               .security = t->remote->security,
                                               .role = MR_ROLE_COORDINATOR,
                                               .id = t->owner};
    mr_status status = mr_control_client_open(&client, &options, err);
    if (status != MR_OK) return status;
    status = mr_control_generate(&reader, client, &t->generation, mr_now_ns() + SEND_MS * 1000000ll,
                                 err);
    if (status == MR_OK && !keep_reader(t, reader)) status = MR_ERR_CANCELLED;
    if (status == MR_OK) status = read_all(t, reader, err);
    keep_reader(t, NULL);
    mr_control_reader_close(reader);
    mr_control_client_close(client);
    return status;
}

static void *run_try(void *context) {
    try *t = context;
    mr_remote *r = t->remote;
    mr_err err = {{0}};
    const mr_status status = ask_owner(t, &err);
    if (status != MR_OK) { /* whatever it was: this owner does not answer it */
        mr_generation_event end = {.is_end = true, .status = MR_ERR_UNAVAILABLE};
        memcpy(end.sentence, err.text, sizeof(end.sentence));
        post(t, &end);
    }
    pthread_mutex_lock(&r->lock);
    if (t->previous)
        t->previous->next = t->next;
    else
        r->first = t->next;
    if (t->next) t->next->previous = t->previous;
    r->count--;
    free_try(t);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* Lock held. */
static mr_status start_try(mr_remote *r, try *t, mr_err *err) {
    pthread_attr_t attributes;
    pthread_t thread;
    if (r->is_stopping || r->count == TRIES_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "%u requests are forwarded already", r->count);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int code = pthread_create(&thread, &attributes, run_try, t);
    pthread_attr_destroy(&attributes);
    if (code != 0) return mr_fail(err, MR_ERR_NOMEM, "no thread for a forwarded request");
    t->next = r->first;
    if (r->first) r->first->previous = t;
    r->first = t;
    r->count++;
    return MR_OK;
}

static mr_status submit(void *context, const mr_forward_job *job, mr_err *err) {
    mr_remote *r = context;
    const mr_view *view = r->view(r->context);
    const mr_member *owner = find_owner(r, view, &job->digest, job->id);
    try *t = owner ? new_try(r, job, owner) : NULL;
    mr_view_release(view);
    if (!t) return mr_fail(err, MR_ERR_UNAVAILABLE, "no other coordinator has this model");
    pthread_mutex_lock(&r->lock);
    const mr_status status = start_try(r, t, err);
    pthread_mutex_unlock(&r->lock);
    if (status != MR_OK) free_try(t);
    return status;
}

/* Lock held. */
static void cancel_try(try *t) {
    t->is_cancelled = true;
    if (t->reader) mr_control_reader_cancel(t->reader);
}

static void cancel(void *context, uint64_t id) {
    mr_remote *r = context;
    pthread_mutex_lock(&r->lock);
    for (try *t = r->first; t; t = t->next)
        if (t->id == id) cancel_try(t);
    pthread_mutex_unlock(&r->lock);
}

mr_forwarder mr_remote_forwarder(mr_remote *remote) {
    return (mr_forwarder){reaches, submit, cancel, remote};
}

void mr_remote_stop(mr_remote *r) {
    pthread_mutex_lock(&r->lock);
    r->is_stopping = true;
    for (try *t = r->first; t; t = t->next) cancel_try(t);
    while (r->count > 0) pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

void mr_remote_close(mr_remote *r) {
    if (!r) return;
    mr_remote_stop(r);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    for (int i = 0; i < 3; i++) free(r->files[i]);
    free(r->self);
    free(r);
}
