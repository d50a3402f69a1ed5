/* requests.c - what clients ask and get. Every token is compared with the undisturbed run's as it
 * comes; every end is held against what the request's policy allows. */
#include "common/base/mem.h"
#include "tests/sim/world.h"

#include <stdlib.h>
#include <string.h>

enum {
    ASKS_MAX = 1024,
    BOUND_MS = 30000,   /* of any request, in a coordinator that runs */
    PATIENCE_MS = 2900, /* a waiting request does not give up before */
};

typedef struct {
    const sim_ask *ask;
    sim_node *at;
    uint32_t incarnation;
    mr_lost_policy lost;
    uint64_t id;
    uint32_t got[SIM_CHOICES];
    int32_t wrong_at; /* of a request that may degrade: where it left the truth; -1: nowhere */
    bool must_succeed, is_cancelled, is_degraded, has_ended, is_lost;
    int64_t began_ns;
    mr_status status;
} asked;

static asked *all;
static uint32_t count;
static bool had_faults;

static void take_token(asked *a, const mr_event *e) {
    const sim_ask *ask = a->ask;
    if (e->answer >= ask->choices || a->got[e->answer] >= ask->new_tokens)
        sim_fail("request %llu: a token too many", (unsigned long long)a->id);
    const uint32_t at = a->got[e->answer]++;
    if (e->token == ask->answer[e->answer][at]) return;
    if (a->lost == MR_LOST_DEGRADE) {
        if (a->wrong_at < 0) a->wrong_at = (int32_t)at;
        return;
    }
    sim_fail("request %llu: token %u of answer %u is %d, should be %d", (unsigned long long)a->id,
             at, e->answer, e->token, ask->answer[e->answer][at]);
}

static void check_success(const asked *a) {
    for (uint32_t i = 0; i < a->ask->choices; i++)
        if (a->got[i] != a->ask->new_tokens)
            sim_fail("request %llu ended well after %u of %u tokens", (unsigned long long)a->id,
                     a->got[i], a->ask->new_tokens);
    if (a->is_degraded && a->lost != MR_LOST_DEGRADE)
        sim_fail("request %llu is marked as degraded, which it did not allow",
                 (unsigned long long)a->id);
    if (a->wrong_at >= 0 && !a->is_degraded)
        sim_fail("request %llu: token %d is wrong, and no mark says so", (unsigned long long)a->id,
                 a->wrong_at);
}

static void check_failure(const asked *a, const char *sentence) {
    const int64_t lasted = sim_now() - a->began_ns;
    if (a->is_cancelled && a->status == MR_ERR_CANCELLED) return;
    const bool may_pass = a->status == MR_ERR_UNAVAILABLE || a->status == MR_ERR_TIMEOUT;
    if (a->must_succeed || !had_faults)
        sim_fail("request %llu failed where nothing was wrong any more: %s",
                 (unsigned long long)a->id, sentence);
    if (!may_pass)
        sim_fail("request %llu failed with status %d: %s", (unsigned long long)a->id,
                 (int)a->status, sentence);
    if (a->lost != MR_LOST_FAIL && lasted < PATIENCE_MS * SIM_MS)
        sim_fail("request %llu was to wait, and failed after %.3f s: %s", (unsigned long long)a->id,
                 (double)lasted / 1e9, sentence);
}

static bool on_event(void *context, const mr_event *e) {
    asked *a = context;
    if (a->has_ended) sim_fail("request %llu: an event after its end", (unsigned long long)a->id);
    if (sim_process_is_dead(sim_own())) { /* its client sees the connection end */
        a->has_ended |= e->is_end;
        a->is_lost = true;
        return true;
    }
    if (!e->is_end) {
        if (e->token >= 0) take_token(a, e);
        return true;
    }
    a->has_ended = true;
    a->status = e->status;
    a->is_degraded = e->is_degraded;
    sim_trace("request %llu at %s ends: %d %s", (unsigned long long)a->id, a->at->id,
              (int)e->status, e->sentence);
    if (e->status == MR_OK)
        check_success(a);
    else
        check_failure(a, e->sentence);
    return true;
}

void sim_request_make(sim_node *at, mr_lost_policy lost, bool must_succeed) {
    mr_err err = {{0}};
    mr_core *core = sim_coordinator_core(at);
    if (!core || count == ASKS_MAX) return;
    const sim_ask *ask = &sim_cluster.model->asks[sim_roll(SIM_ASKS)];
    asked *a = &all[count++];
    *a = (asked){.ask = ask,
                 .at = at,
                 .incarnation = at->incarnation,
                 .lost = lost,
                 .wrong_at = -1,
                 .must_succeed = must_succeed,
                 .began_ns = sim_now()};
    mr_request *r = mr_request_new();
    mr_request_add_prompt(r, ask->prompt, ask->prompt_count);
    r->choices = ask->choices;
    r->new_tokens = ask->new_tokens;
    r->temperature = ask->temperature;
    r->seed = ask->seed;
    r->lost = lost;
    r->digest = sim_cluster.model->manifest.digest;
    r->sink = on_event;
    r->context = a;
    const mr_status status = mr_core_submit(core, r, &a->id, &err);
    sim_trace("request %llu at %s begins: %d", (unsigned long long)a->id, at->id, (int)status);
    if (status != MR_OK) {
        mr_request_free(r);
        sim_fail("a request is refused: %s", err.text);
    }
    sim_process_touch(at->process);
}

void sim_requests_cancel_one(void) {
    for (uint32_t i = 0; i < count; i++) {
        asked *a = &all[i];
        mr_core *core = a->at->incarnation == a->incarnation ? sim_coordinator_core(a->at) : NULL;
        if (a->has_ended || a->is_cancelled || !core || sim_roll(3) != 0) continue;
        a->is_cancelled = true;
        mr_core_cancel(core, a->id);
        sim_process_touch(a->at->process);
        return;
    }
}

void sim_requests_check(void) {
    for (uint32_t i = 0; i < count; i++) {
        const asked *a = &all[i];
        const bool is_alive = a->at->process && a->at->incarnation == a->incarnation;
        if (a->has_ended || !is_alive || sim_now() - a->began_ns < BOUND_MS * SIM_MS) continue;
        sim_fail("request %llu at %s has not ended after %d s", (unsigned long long)a->id,
                 a->at->id, BOUND_MS / 1000);
    }
}

uint32_t sim_requests_open_count(void) {
    uint32_t open = 0;
    for (uint32_t i = 0; i < count; i++) open += !all[i].has_ended;
    return open;
}

void sim_requests_note_fault(void) {
    had_faults = true;
}

void sim_requests_count(sim_outcome *out) {
    for (uint32_t i = 0; i < count; i++) {
        const asked *a = &all[i];
        out->requests++;
        out->lost += a->is_lost;
        out->degraded += !a->is_lost && a->is_degraded;
        out->exact += !a->is_lost && a->status == MR_OK && !a->is_degraded;
        out->failed += !a->is_lost && a->status != MR_OK;
    }
}

void sim_requests_open(void) {
    all = mr_alloc_array(ASKS_MAX, sizeof(*all));
    count = 0;
    had_faults = false;
}

void sim_requests_close(void) {
    if (sim_requests_open_count() > 0) sim_fail("a request has no end after its core was closed");
    free(all);
}
