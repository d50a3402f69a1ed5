/* forward.c - see forward.h. A try is known to both sides; what one side says reaches the other
 * after a delay, in order, or never; an owner that cannot be heard for a while is given up. */
#include "tests/sim/forward.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { PATIENCE_MS = 1500, LOOK_MS = 300 };

typedef struct try try;

struct sim_forwarder {
    sim_node *node;
    uint32_t incarnation;
    sim_client *client;
    mr_core *core;
    bool is_stopped;
    try *tries;
};

struct try {
    try *next;
    sim_forwarder *home; /* NULL: not waited for any more */
    uint64_t id, remote_id;
    sim_node *from, *to;
    uint32_t to_incarnation;
    mr_request *request;    /* until it is submitted over there */
    bool is_there, is_over; /* submitted; its end was told over there */
    uint32_t under_way;     /* events of ours in the list */
    uint64_t said, heard;   /* events sent back, and arrived: in order */
    int64_t last_ns, unheard_ns;
};

static uint32_t all_tries;

bool sim_forwarders_are_idle(void) {
    return all_tries == 0;
}

static bool is_alive_there(const try *t) {
    return t->to->process && t->to->incarnation == t->to_incarnation && t->to->coordinator;
}

static void let_go(try *t) {
    if (t->home || t->under_way > 0 || (t->is_there && !t->is_over)) return;
    mr_request_free(t->request);
    free(t);
    all_tries--;
}

/* It is not waited for here any more. */
static void leave_home(try *t) {
    if (!t->home) return;
    try **at = &t->home->tries;
    while (*at != t) at = &(*at)->next;
    *at = t->next;
    t->home = NULL;
}

typedef struct {
    try *t;
    mr_forward_event event;
} message;

static void tell(try *t, const mr_forward_event *event) {
    if (!t->home || t->home->is_stopped) return;
    mr_core_forwarded(t->home->core, event);
    if (t->from->process) sim_process_touch(t->from->process);
    if (event->is_end) leave_home(t);
}

static void bring_back(void *context, uint64_t number) {
    message *m = context;
    try *t = m->t;
    const bool is_cut = t->home && !sim_node_answers(t->from, t->to) && is_alive_there(t);
    if (is_cut || number != t->heard) { /* held back, or behind one that is */
        sim_at(sim_now() + (is_cut ? 20 * SIM_MS : SIM_MS), bring_back, m, number);
        return;
    }
    t->heard++;
    t->under_way--;
    tell(t, &m->event);
    free(m);
    let_go(t);
}

static void send_back(try *t, const mr_forward_event *event) {
    message *m = mr_alloc(sizeof(*m));
    *m = (message){.t = t, .event = *event};
    m->event.id = t->id;
    int64_t when = sim_now() + sim_between(100, 1500) * 1000;
    if (when < t->last_ns) when = t->last_ns;
    t->last_ns = when;
    t->under_way++;
    sim_at(when, bring_back, m, t->said++);
}

/* In the owner's core, as gateway.c has it. */
static bool on_event(void *context, const mr_event *e) {
    try *t = context;
    mr_forward_event event = {.is_degraded = e->is_degraded};
    if (sim_process_is_dead(sim_own())) { /* the dead say nothing */
        t->is_over |= e->is_end;
        if (e->is_end) let_go(t);
        return true;
    }
    if (e->is_end) {
        event.is_end = true;
        event.status = e->status;
        mr_fail(&event.sentence, e->status, "%s", e->sentence);
        t->is_over = true;
        send_back(t, &event);
        return true;
    }
    if (e->token < 0) return true;
    event.answer = e->answer;
    event.entry.token = e->token;
    if (e->entry_count > 0) event.entry = e->entries[e->entry_count - 1];
    send_back(t, &event);
    return true;
}

static void give_up(try *t, const char *why) {
    mr_forward_event end = {.id = t->id, .is_end = true, .status = MR_ERR_UNAVAILABLE};
    mr_fail(&end.sentence, MR_ERR_UNAVAILABLE, "%s", why);
    tell(t, &end);
}

static void arrive(void *context, uint64_t number) {
    try *t = context;
    mr_err err = {{0}};
    (void)number;
    t->under_way--;
    mr_core *core =
        is_alive_there(t) && sim_node_answers(t->from, t->to) ? sim_coordinator_core(t->to) : NULL;
    if (t->home && core) {
        t->request->context = t;
        if (mr_core_submit(core, t->request, &t->remote_id, &err) == MR_OK) {
            t->request = NULL;
            t->is_there = true;
            sim_process_touch(t->to->process);
        } else
            give_up(t, err.text);
    } else if (t->home)
        give_up(t, "the owner does not answer");
    let_go(t);
}

/* As rpc does: a peer that is not heard from for a while has lost the call. */
static void look(void *context, uint64_t number) {
    try *t = context;
    (void)number;
    t->under_way--;
    if (t->home) {
        const bool is_heard = is_alive_there(t) && sim_node_answers(t->from, t->to);
        const bool own_runs = t->from->process && sim_process_runs(t->from->process);
        if (is_heard || !own_runs)
            t->unheard_ns = 0;
        else if (t->unheard_ns == 0)
            t->unheard_ns = sim_now();
        if ((t->unheard_ns != 0 && sim_now() - t->unheard_ns > PATIENCE_MS * SIM_MS) ||
            (!is_alive_there(t) && !t->is_over))
            give_up(t, "the owner is lost");
    }
    if (t->home) {
        t->under_way++;
        sim_at(sim_now() + LOOK_MS * SIM_MS, look, t, 0);
    }
    let_go(t);
}

/* --- the forwarder ---------------------------------------------------------------------------- */

static sim_node *find_owner(const sim_forwarder *f, const mr_digest *digest) {
    const mr_view *view = sim_client_view(f->client);
    sim_node *found[SIM_WORKERS_MAX];
    uint32_t count = 0;
    (void)digest; /* there is one model */
    for (uint32_t i = 0; i < view->owner_count && count < SIM_WORKERS_MAX; i++) {
        const char *id = view->owners[i]->coordinator;
        sim_node *n = sim_node_find(MR_ROLE_COORDINATOR, id);
        if (n && strcmp(id, f->node->id) != 0 && mr_view_member(view, MR_ROLE_COORDINATOR, id))
            found[count++] = n;
    }
    return count > 0 ? found[sim_roll(count)] : NULL;
}

static bool reaches(void *context, const mr_digest *digest) {
    const sim_forwarder *f = context;
    return !f->is_stopped && find_owner(f, digest) != NULL;
}

static mr_request *copy_request(const mr_forward_job *job) {
    const mr_request *from = job->request;
    mr_request *r = mr_request_new();
    const int32_t *at = from->tokens.items;
    for (uint32_t p = 0; p < from->prompt_count; at += from->prompt_tokens[p++])
        mr_request_add_prompt(r, at, from->prompt_tokens[p]);
    r->choices = from->choices;
    r->new_tokens = from->new_tokens;
    r->temperature = from->temperature;
    r->top_p = from->top_p;
    r->seed = from->seed;
    r->lost = from->lost;
    r->is_forwarded = true;
    r->digest = job->digest;
    r->resumed_tokens = mr_alloc_array(job->answer_count, sizeof(uint32_t));
    r->is_complete = mr_alloc_array(job->answer_count, sizeof(bool));
    for (uint32_t i = 0; i < job->answer_count; i++) {
        r->is_complete[i] = job->is_complete[i];
        r->resumed_tokens[i] = (uint32_t)job->answers[i].count;
        for (size_t k = 0; k < job->answers[i].count; k++)
            mr_token_list_add(&r->resumed, job->answers[i].items[k]);
    }
    r->sink = on_event;
    return r;
}

static mr_status submit(void *context, const mr_forward_job *job, mr_err *err) {
    sim_forwarder *f = context;
    sim_node *to = find_owner(f, &job->digest);
    if (!to || f->is_stopped)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "no other coordinator has this model");
    try *t = mr_alloc(sizeof(*t));
    *t = (try){.next = f->tries,
               .home = f,
               .id = job->id,
               .from = f->node,
               .to = to,
               .to_incarnation = to->incarnation,
               .request = copy_request(job),
               .under_way = 2};
    f->tries = t;
    all_tries++;
    sim_trace("%s passes a request on to %s", f->node->id, to->id);
    sim_at(sim_now() + sim_between(100, 1500) * 1000, arrive, t, 0);
    sim_at(sim_now() + LOOK_MS * SIM_MS, look, t, 0);
    return MR_OK;
}

static void cancel(void *context, uint64_t id) {
    sim_forwarder *f = context;
    for (try *t = f->tries; t; t = t->next) {
        if (t->id != id) continue;
        mr_core *core =
            t->is_there && !t->is_over && is_alive_there(t) ? sim_coordinator_core(t->to) : NULL;
        leave_home(t);
        if (core && sim_node_answers(t->from, t->to)) {
            mr_core_cancel(core, t->remote_id);
            sim_process_touch(t->to->process);
        }
        let_go(t);
        return;
    }
}

sim_forwarder *sim_forwarder_open(sim_node *node, sim_client *client) {
    sim_forwarder *f = mr_alloc(sizeof(*f));
    *f = (sim_forwarder){.node = node, .client = client};
    return f;
}

void sim_forwarder_set_core(sim_forwarder *f, mr_core *core) {
    f->core = core;
}

mr_forwarder sim_forwarder_of(sim_forwarder *f) {
    return (mr_forwarder){reaches, submit, cancel, f};
}

void sim_forwarder_stop(sim_forwarder *f) {
    f->is_stopped = true;
}

void sim_forwarder_close(sim_forwarder *f) {
    while (f->tries) {
        try *t = f->tries;
        leave_home(t);
        let_go(t);
    }
    free(f);
}
