/* core_groups.c - worker groups that come, change and go, which of them a request goes to, and
 * every deadline of the core.
 *
 * There is one timer. When it goes off everything that is due by mr_now_ns() is done, and it is set
 * to what is due next; whoever makes something due earlier says so with core_due(). */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "coordinator/router.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

enum {
    PING_MS = 250,
    STALE_PAUSE_MS = 1000, /* a group that has seen another owner is left alone for so long */
    LOSSES_MAX = 4,        /* of groups in a row, after which a request is given up */
    RETRY_MS = 100,        /* between tries to bring a waiting request somewhere */
    LATE_MS = 200,         /* a timer so late says that we were stopped, not the others */
};
#define MS 1000000ll

/* --- groups as they are seen ------------------------------------------------------------------ */

core_group *core_group_new(const mr_group_spec *spec) {
    core_group *group = mr_alloc(sizeof(*group));
    group->name = mr_strdup(spec->name);
    group->address = spec->address ? mr_strdup(spec->address) : NULL;
    group->version = mr_strdup(spec->version ? spec->version : "");
    group->digest = spec->digest;
    group->epoch = spec->epoch;
    group->stages_wanted = spec->stages;
    group->stages = spec->stages ? spec->stages : 1;
    group->state = MR_GROUP_CONNECTING;
    return group;
}

void core_group_free(mr_core *core, core_group *group) {
    (void)core;
    core_drop_link(group);
    mr_scheduler_close(group->scheduler);
    free(group->name);
    free(group->address);
    free(group->version);
    free(group);
}

/* Lock held. */
static void count_groups(mr_core *core) {
    core->groups_up = core->groups_hoped = 0;
    for (const core_group *g = core->groups; g; g = g->next) {
        core->groups_up += g->state == MR_GROUP_UP;
        core->groups_hoped += g->address != NULL;
    }
    mr_gauge(&core->metrics.worker_up, core->groups_up);
    pthread_cond_broadcast(&core->changed);
}

void core_group_add(mr_core *core, core_group *group) {
    pthread_mutex_lock(&core->lock);
    core_group **at = &core->groups;
    while (*at) at = &(*at)->next;
    group->next = NULL;
    *at = group;
    count_groups(core);
    pthread_mutex_unlock(&core->lock);
}

/* Any thread. */
void core_group_say(mr_core *core, core_group *group, mr_group_state state, const char *reason) {
    pthread_mutex_lock(&core->lock);
    group->state = state;
    mr_fail(&group->reason, MR_ERR_UNAVAILABLE, "%s", reason);
    if (state != MR_GROUP_UP) core->down_reason = group->reason;
    count_groups(core);
    pthread_mutex_unlock(&core->lock);
}

void core_show_load(mr_core *core, core_group *group) {
    mr_metrics *m = &core->metrics;
    uint64_t all[5] = {0};
    mr_scheduler_state now = {0};
    if (group->scheduler) now = mr_scheduler_look(group->scheduler);
    mr_gauge(&group->face.outstanding, group->steps_out);
    mr_gauge(&group->face.waiting, now.waiting);
    mr_gauge(&group->face.running, now.running);
    mr_gauge(&group->face.queued_tokens, now.queued_tokens);
    mr_gauge(&group->face.kv_blocks, now.kv_blocks);
    mr_gauge(&group->face.kv_blocks_used, now.kv_blocks_used);
    mr_gauge(&group->face.kv_blocks_idle, now.kv_blocks_idle);
    for (core_group *g = core->groups; g; g = g->next) {
        const _Atomic uint64_t *figures[] = {&g->face.waiting, &g->face.running, &g->face.kv_blocks,
                                             &g->face.kv_blocks_used, &g->face.outstanding};
        for (int i = 0; i < 5; i++)
            all[i] += atomic_load_explicit(figures[i], memory_order_relaxed);
    }
    mr_gauge(&m->waiting, all[0]);
    mr_gauge(&m->running, all[1]);
    mr_gauge(&m->kv_blocks, all[2]);
    mr_gauge(&m->kv_blocks_used, all[3]);
    mr_gauge(&m->steps_out, all[4]);
}

/* --- which group ------------------------------------------------------------------------------ */

static bool is_zero(const mr_digest *digest) {
    static const mr_digest none;
    return memcmp(digest, &none, sizeof(none)) == 0;
}

static bool serves(const core_group *group, const mr_digest *digest) {
    return is_zero(&group->digest) || is_zero(digest) ||
           memcmp(&group->digest, digest, sizeof(*digest)) == 0;
}

/* The best group that can take it; NULL: *status and err say why not. MR_ERR_UNAVAILABLE: none is
 * there at the moment. */
static core_group *choose(mr_core *core, const core_live *live, mr_status *status, mr_err *err) {
    core_group *groups[MR_MAX_GROUPS + 1];
    mr_route_choice choices[MR_MAX_GROUPS + 1];
    uint32_t count = 0;
    const mr_request *r = live->request;
    *status = MR_ERR_UNAVAILABLE;
    for (core_group *g = core->groups; g && count <= MR_MAX_GROUPS; g = g->next) {
        if (!g->link || mr_now_ns() < g->stale_until_ns || !serves(g, &live->digest)) continue;
        const mr_status good = core_check(core, g, live, err);
        if (good != MR_OK) {
            *status = good;
            continue;
        }
        groups[count] = g;
        choices[count++] = (mr_route_choice){
            .queued_tokens = mr_scheduler_look(g->scheduler).queued_tokens,
            .cached_tokens =
                r->logits ? 0
                          : mr_scheduler_match(g->scheduler, r->tokens.items, r->prompt_tokens[0]),
        };
    }
    if (count == 0) return NULL;
    *status = MR_OK;
    return groups[mr_router_choose(choices, count, core->turn++)];
}

static bool may_come_back(const mr_core *core, const core_live *live) {
    for (const core_group *g = core->groups; g; g = g->next)
        if (g->address && serves(g, &live->digest)) return true;
    return false;
}

static bool may_forward(const mr_core *core, const core_live *live) {
    return core->has_forwarder && !live->request->logits && !live->request->is_forwarded;
}

/* Why no group of the request's model is there. */
static mr_err why_not(mr_core *core, const core_live *live) {
    pthread_mutex_lock(&core->lock);
    mr_err reason = core->down_reason;
    for (const core_group *g = core->groups; g; g = g->next)
        if (g->state != MR_GROUP_UP && serves(g, &live->digest)) reason = g->reason;
    pthread_mutex_unlock(&core->lock);
    return reason;
}

void core_say_down(mr_core *core, const mr_err *reason) {
    pthread_mutex_lock(&core->lock);
    core->down_reason = *reason;
    pthread_mutex_unlock(&core->lock);
}

/* No group at the moment: waits for one, if there is hope. Where groups are given from outside, one
 * that was taken away may come back under another name. */
void core_wait_for_group(mr_core *core, core_live *live) {
    const int64_t now = mr_now_ns();
    const bool has_hope = may_come_back(core, live) || may_forward(core, live) ||
                          (live->answers && core->are_groups_given);
    if (live->wait_until_ns == 0) live->wait_until_ns = now + core->worker_wait_ms * MS;
    if (now >= live->wait_until_ns || !has_hope) {
        const mr_err reason = why_not(core, live);
        core_end(core, live, MR_ERR_UNAVAILABLE, reason.text);
    } else
        core_due(core, now + RETRY_MS * MS < live->wait_until_ns ? now + RETRY_MS * MS
                                                                 : live->wait_until_ns);
}

void core_route(mr_core *core, core_live *live) {
    mr_err err = {{0}};
    mr_status status;
    if (core->is_stopping) {
        core_end(core, live, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
        return;
    }
    core_group *group = choose(core, live, &status, &err);
    if (group) {
        status = core_attach(core, group, live, &err);
        if (status == MR_OK) live->wait_until_ns = 0;
    } else if (status == MR_ERR_UNAVAILABLE && may_forward(core, live) &&
               core->forwarder.reaches(core->forwarder.context, &live->digest))
        status = core_forward(core, live, &err);
    if (status == MR_ERR_UNAVAILABLE)
        core_wait_for_group(core, live);
    else if (status != MR_OK)
        core_end(core, live, status, err.text);
}

static void route_waiting(mr_core *core) {
    for (core_live *live = core->first, *next; live; live = next) {
        next = live->next;
        if (!live->group && live->forward_id == 0) core_route(core, live);
    }
}

/* --- coming and going ------------------------------------------------------------------------- */

void core_group_up(mr_core *core, core_group *group) {
    pthread_mutex_lock(&core->lock);
    core->info = group->info;
    group->stages = group->steps_max;
    pthread_mutex_unlock(&core->lock);
    if (group->has_been_up) mr_count(&core->metrics.reconnects, 1);
    group->has_been_up = true;
    core_show_load(core, group);
    group->degrade_until_ns = 0;
    group->heard_ns = group->pinged_ns = mr_now_ns();
    if (group->address) core_due(core, group->heard_ns);
    if (group->heard_ns < group->stale_until_ns) return; /* watch_group looks after it */
    core_group_say(core, group, MR_GROUP_UP, "");
    route_waiting(core);
}

/* A request that loses one group after the other and gets no token may well be why. */
static bool is_unlucky(core_live *live) {
    if (live->generated != live->generated_before) live->losses = 0;
    live->generated_before = live->generated;
    return ++live->losses > LOSSES_MAX;
}

/* What was under way in the group goes on elsewhere, or waits. why NULL: nobody is to blame. */
static void move_requests(mr_core *core, core_group *group, const char *why) {
    for (core_live *live = core->first, *next; live; live = next) {
        next = live->next;
        if (live->group != group) continue;
        core_detach(live);
        if (!live->is_started) continue;
        mr_count(&core->metrics.failovers, 1);
        if (why && is_unlucky(live)) core_end(core, live, MR_ERR_UNAVAILABLE, why);
    }
    mr_scheduler_close(group->scheduler);
    group->scheduler = NULL;
    group->steps_out = 0;
    core_show_load(core, group);
    route_waiting(core);
}

void core_group_lost(mr_core *core, core_group *group, mr_status status, const char *sentence) {
    mr_err reason;
    mr_fail(&reason, status, "lost the worker: %s", sentence);
    mr_log_error("%s: %s", group->name, reason.text);
    mr_count(&core->metrics.step_failures, group->steps_out);
    mr_count(&group->face.step_failures, group->steps_out);
    mr_count(&group->face.losses, 1);
    core_drop_link(group);
    const bool is_stale = mr_now_ns() < group->stale_until_ns;
    core_group_say(core, group, is_stale ? MR_GROUP_STALE : MR_GROUP_CONNECTING, reason.text);
    if (group->address && !core->is_stopping) core_connect(core, group);
    move_requests(core, group, reason.text);
}

/* The group's connector is done: with a link, or because it was told to give up. */
void core_group_linked(mr_core *core, core_message *message) {
    core_group *group = message->group;
    mr_err err = {{0}};
    if (group->has_connector) pthread_join(group->connector, NULL);
    group->has_connector = false;
    if (group->is_removed) {
        core_group **at = &core->leaving;
        while (*at != group) at = &(*at)->next;
        *at = group->next;
        mr_link_close(message->link);
        core_group_free(core, group);
    } else if (core->is_stopping)
        mr_link_close(message->link);
    else if (message->link && core_use_link(core, group, message->link, message->wire_version,
                                            &message->info, &err) != MR_OK)
        core_group_lost(core, group, MR_ERR_IO, err.text);
}

static void remove_group(mr_core *core, core_group *group) {
    mr_log_info("the worker group %s is not ours any more", group->name);
    pthread_mutex_lock(&core->lock);
    core_group **at = &core->groups;
    while (*at != group) at = &(*at)->next;
    *at = group->next;
    group->next = NULL;
    group->is_removed = true; /* the connector looks here */
    mr_fail(&core->down_reason, MR_ERR_UNAVAILABLE, "the worker group %s has been taken away",
            group->name);
    count_groups(core);
    pthread_mutex_unlock(&core->lock);
    core_drop_link(group);
    move_requests(core, group, NULL);
    if (group->has_connector) {
        group->next = core->leaving;
        core->leaving = group;
    } else
        core_group_free(core, group);
}

static bool is_same(const core_group *a, const core_group *b) {
    return strcmp(a->name, b->name) == 0 && a->address && strcmp(a->address, b->address) == 0 &&
           memcmp(&a->digest, &b->digest, sizeof(a->digest)) == 0 &&
           a->stages_wanted == b->stages_wanted;
}

/* A group that stays: its owner's epoch may have grown, its model have got another name. */
static void update_group(mr_core *core, core_group *group, core_group *news) {
    pthread_mutex_lock(&core->lock);
    if (group->epoch != news->epoch) group->stale_until_ns = 0;
    group->epoch = news->epoch;
    char *old = group->version;
    group->version = news->version;
    news->version = old;
    pthread_mutex_unlock(&core->lock);
}

void core_take_groups(mr_core *core, core_group *list) {
    core->are_groups_given = true;
    for (core_group *g = core->groups, *next; g; g = next) {
        next = g->next;
        core_group *same = list;
        while (same && !is_same(g, same)) same = same->next;
        if (same)
            update_group(core, g, same);
        else if (g->address)
            remove_group(core, g);
    }
    while (list) {
        core_group *news = list, *old = core->groups;
        list = list->next;
        while (old && strcmp(old->name, news->name) != 0) old = old->next;
        if (old) { /* updated above; or the name of an embedded one, or twice in the list */
            core_group_free(core, news);
            continue;
        }
        core_group_add(core, news);
        core_group_say(core, news, MR_GROUP_CONNECTING, "the worker is not connected yet");
        core_connect(core, news);
    }
}

/* --- time ------------------------------------------------------------------------------------- */

void core_pump_all(mr_core *core) {
    do { /* a link that breaks here moves its requests, maybe to a group that had its turn */
        core->has_moved = false;
        for (core_group *g = core->groups; g; g = g->next) core_pump(core, g);
    } while (core->has_moved);
}

void core_due(mr_core *core, int64_t when_ns) {
    if (when_ns >= core->timer_ns) return;
    const int64_t now = mr_now_ns(), wait = when_ns > now ? (when_ns - now + 999) / 1000 : 0;
    const struct timeval tv = {.tv_sec = wait / 1000000, .tv_usec = wait % 1000000};
    core->timer_ns = when_ns;
    event_add(core->timer, &tv);
}

/* Silence, pings, and steps that do not go on. */
static void watch_group(mr_core *core, core_group *group, int64_t now) {
    mr_err err;
    const int64_t silence = core->silence_timeout_ms * MS;
    const int64_t period = silence / 4 < PING_MS * MS ? silence / 4 : PING_MS * MS;
    if (group->steps_out > 0 && now - group->progress_ns >= core->step_timeout_ms * MS) {
        mr_fail(&err, MR_ERR_TIMEOUT, "the worker %s has not gone on with its step for %.1f s",
                mr_link_peer(group->link), core->step_timeout_ms / 1000.0);
        core_group_lost(core, group, MR_ERR_TIMEOUT, err.text);
        return;
    }
    if (group->steps_out > 0) core_due(core, group->progress_ns + core->step_timeout_ms * MS);
    if (!group->address) return; /* an embedded worker is busy with its steps */
    if (now - group->heard_ns > silence) {
        mr_fail(&err, MR_ERR_TIMEOUT, "%s has been silent for %.1f s", mr_link_peer(group->link),
                core->silence_timeout_ms / 1000.0);
        core_group_lost(core, group, MR_ERR_TIMEOUT, err.text);
        return;
    }
    if (group->state == MR_GROUP_STALE && now >= group->stale_until_ns)
        core_group_say(core, group, MR_GROUP_UP, ""); /* tried again */
    if (now - group->pinged_ns >= period) {
        group->pinged_ns = now;
        core_ping(core, group);
    }
    core_due(core, group->pinged_ns + period);
}

/* Sequences whose pause is over; requests without a group. */
static void watch_requests(mr_core *core, int64_t now) {
    for (core_live *live = core->first, *next; live; live = next) {
        next = live->next;
        if (live->held_until_ns != 0 && now < live->held_until_ns)
            core_due(core, live->held_until_ns);
        else if (live->held_until_ns != 0) {
            live->held_until_ns = 0;
            for (uint32_t i = 0; i < live->answer_count; i++)
                if (live->answers[i].sequence) mr_sequence_hold(live->answers[i].sequence, false);
        }
        if (!live->group && live->forward_id == 0) core_route(core, live);
    }
}

void core_on_timer(evutil_socket_t fd, short what, void *context) {
    mr_core *core = context;
    const int64_t now = mr_now_ns();
    (void)fd;
    (void)what;
    const bool is_late = now - core->timer_ns > LATE_MS * MS;
    core->timer_ns = INT64_MAX;
    for (core_group *g = core->groups; g; g = g->next) {
        /* silence counts only while we listen: what came meanwhile is still to be read */
        if (is_late) g->heard_ns = g->progress_ns = now;
        if (g->link) watch_group(core, g, now);
    }
    watch_requests(core, now);
    core_pump_all(core);
}
