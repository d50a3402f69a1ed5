/* core_step.c - steps: how one is written, what its answers do, and what happens when it fails. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/frames.h"

#include <assert.h>
#include <string.h>

enum {
    PAUSE_MIN_MS = 20, /* before a step that failed is run again, then twice as long */
    PAUSE_MAX_MS = 200,
    DEGRADED_MS = 1000, /* for so long after a failure steps that may degrade do so at once */
    STALE_MS = 1000,    /* a group that has seen another owner is left alone */
    DEGRADING_KIND = 1, /* of sequences whose request may degrade */
};
#define MS 1000000ll

/* --- sending a step --------------------------------------------------------------------------- */

static void write_sequence(mr_wire_sequence *out, const mr_plan_entry *entry) {
    const core_answer *answer = entry->owner;
    const mr_request *r = answer->live->request;
    *out = (mr_wire_sequence){
        .id = entry->id,
        .position = entry->position,
        .token_count = entry->token_count,
        .block_count = entry->block_count,
        .flags = (entry->samples ? MR_SEQUENCE_SAMPLE : 0u) | (r->logits ? MR_SEQUENCE_LOGITS : 0u),
        .temperature = r->temperature,
        .top_p = r->top_p,
        .min_p = r->min_p,
        .top_k = r->top_k,
        .seed = r->seed,
        .choice = answer->index % r->choices,
        .output_position = answer->generated,
        .logprobs = r->logprobs ? r->top_logprobs : 0,
        .drafted = entry->drafted,
    };
}

static void write_step(uint8_t *payload, const mr_plan *plan, uint32_t flags) {
    const mr_wire_step fixed = {plan->count, plan->tokens, plan->blocks, flags};
    uint8_t *at = payload;
    memcpy(at, &fixed, sizeof(fixed));
    at += sizeof(fixed);
    for (uint32_t i = 0; i < plan->count; i++, at += sizeof(mr_wire_sequence)) {
        mr_wire_sequence sequence;
        write_sequence(&sequence, &plan->entries[i]);
        memcpy(at, &sequence, sizeof(sequence));
    }
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        memcpy(at, entry->tokens, entry->token_count * sizeof(int32_t));
        at += entry->token_count * sizeof(int32_t);
    }
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        memcpy(at, entry->blocks, entry->block_count * sizeof(uint32_t));
        at += entry->block_count * sizeof(uint32_t);
    }
}

static void count_cached(mr_core *core, core_answer *answer) {
    core_live *live = answer->live;
    const uint32_t cached = mr_sequence_cached_tokens(answer->sequence);
    mr_count(&core->metrics.cached_tokens, cached);
    /* clients are told of prompts only: each once, and not of what an answer of ours left */
    if (!answer->is_counted && answer->index % live->request->choices == 0)
        live->cached += cached < answer->prompt_count ? cached : answer->prompt_count;
    answer->is_noted = answer->is_counted = true;
}

/* What changes when a step goes out: requests that begin, answers that await a token. */
static void note_step(mr_core *core, const mr_plan *plan) {
    for (uint32_t i = 0; i < plan->count; i++) {
        core_answer *answer = plan->entries[i].owner;
        answer->result_count = 0;
        answer->step_logits = 0;
        if (!answer->is_noted) count_cached(core, answer);
        if (answer->live->is_started) continue;
        core_count_out(core, answer->live, false);
        mr_observe(&core->metrics.queued, mr_now_ns() - answer->live->submitted_ns);
    }
}

/* false: the group is lost. */
static bool send_step(mr_core *core, core_group *group, const mr_plan *plan) {
    uint32_t bytes;
    mr_err err = {{0}};
    const int64_t now = mr_now_ns();
    core_step *step = &group->steps[group->steps_out++];
    *step = (core_step){.plan = plan,
                        .id = ++core->step_id,
                        .sent_ns = now,
                        .may_degrade = plan->kind == DEGRADING_KIND && group->wire_version >= 2 &&
                                       now < group->degrade_until_ns};
    if (group->steps_out == 1) group->progress_ns = now;
    step->drafted = core_draft(core, group, plan);
    note_step(core, plan);
    const mr_wire_header header = {.type = MR_FRAME_STEP,
                                   .request = step->id,
                                   .epoch = group->epoch,
                                   .budget_us = core->step_timeout_ms * 1000u};
    const mr_status status = mr_step_bytes(&bytes, plan->count, plan->tokens, plan->blocks, &err);
    assert(status == MR_OK); /* the scheduler keeps to these limits */
    uint8_t *payload = mr_link_begin(group->link, &header, bytes);
    if (!payload) {
        core_group_lost(core, group, MR_ERR_LIMIT, "the worker takes no more frames");
        return false;
    }
    write_step(payload, plan, step->may_degrade ? MR_STEP_MAY_DEGRADE : 0);
    mr_link_end(group->link);
    core_due(core, group->progress_ns + core->step_timeout_ms * MS);
    return true;
}

void core_pump(mr_core *core, core_group *group) {
    bool has_sent = false;
    if (!group->link || core->is_stopping) return;
    while (group->steps_out < group->steps_max) {
        const mr_plan *plan = mr_scheduler_plan(group->scheduler);
        if (!plan) break;
        if (!send_step(core, group, plan)) return;
        has_sent = true;
    }
    core_show_load(core, group);
    if (has_sent) core_flush(core, group);
}

/* --- results ---------------------------------------------------------------------------------- */

core_step *core_find_step(core_group *group, uint64_t id) {
    for (uint32_t i = 0; i < group->steps_out; i++)
        if (group->steps[i].id == id) return &group->steps[i];
    return NULL;
}

/* It is not out any more; returns what it was. */
static core_step take_step(core_group *group, core_step *step) {
    const core_step taken = *step;
    const uint32_t at = (uint32_t)(step - group->steps);
    memmove(step, step + 1, (--group->steps_out - at) * sizeof(*step));
    return taken;
}

/* *out is NULL for a sequence that has been removed since the step went out. */
static mr_status find_entry(const core_step *step, uint64_t id, const mr_plan_entry **out,
                            mr_err *err) {
    *out = NULL;
    for (uint32_t i = 0; i < step->plan->count; i++)
        if (step->plan->entries[i].id == id) {
            if (step->plan->entries[i].sequence) *out = &step->plan->entries[i];
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_FORMAT,
                   "the worker answers for a sequence that was not in the step");
}

/* The worker samples up to the first token that is not the drafted one. */
static bool has_all_samples(const mr_plan_entry *entry) {
    const core_answer *answer = entry->owner;
    const uint32_t count = answer->result_count;
    if (!entry->samples || count == 0) return !entry->samples;
    const uint32_t first = entry->token_count - entry->drafted; /* drafted token */
    return count > entry->drafted ||
           answer->results[count - 1].token != entry->tokens[first + count - 1];
}

mr_status core_sampled(core_group *group, core_step *step, const mr_frame *frame, mr_err *err) {
    mr_sampled_view view;
    const mr_plan_entry *entry;
    mr_status status = mr_sampled_check(&view, frame, err);
    if (status == MR_OK) status = find_entry(step, view.fixed->id, &entry, err);
    if (status != MR_OK) return status;
    if (group->wire_version >= 2 && (view.fixed->flags & MR_SAMPLED_DEGRADED))
        step->is_degraded = true;
    if (!entry) return MR_OK;
    if (has_all_samples(entry) || (uint32_t)view.fixed->token >= group->info.vocab_size)
        return mr_fail(err, MR_ERR_FORMAT, "the worker sampled token %d where it should not have",
                       view.fixed->token);
    core_answer *answer = entry->owner;
    mr_token_entry *result = &answer->results[answer->result_count++];
    *result = (mr_token_entry){.token = view.fixed->token,
                               .logprob = view.fixed->logprob,
                               .top_count = view.fixed->top_count};
    memcpy(result->top, view.top, view.fixed->top_count * sizeof(*view.top));
    return MR_OK;
}

mr_status core_logits(core_group *group, core_step *step, const mr_frame *frame, mr_err *err) {
    mr_logits_view view;
    const mr_plan_entry *entry;
    mr_status status = mr_logits_check(&view, frame, err);
    if (status == MR_OK) status = find_entry(step, view.fixed->id, &entry, err);
    if (status != MR_OK || !entry) return status;
    core_answer *answer = entry->owner;
    const uint64_t columns = group->info.logit_columns;
    const mr_wire_logits *l = view.fixed;
    if (!answer->live->logits || l->position < entry->position ||
        l->position >= entry->position + entry->token_count ||
        (uint64_t)l->column_first + l->columns > columns)
        return mr_fail(err, MR_ERR_FORMAT, "the worker sent logits that were not asked for");
    const uint64_t row =
        (uint64_t)(answer->prompt - answer->live->request->tokens.items) + l->position;
    memcpy(answer->live->logits + row * columns + l->column_first, view.columns,
           l->columns * sizeof(float));
    answer->step_logits += l->columns;
    return MR_OK;
}

static bool has_all_results(const core_group *group, const mr_plan_entry *entry) {
    if (!entry->sequence) return true;
    const core_answer *answer = entry->owner;
    if (!has_all_samples(entry)) return false;
    return !answer->live->logits ||
           answer->step_logits == (uint64_t)entry->token_count * group->info.logit_columns;
}

static void count_done(mr_core *core, core_group *group, const mr_plan *plan,
                       const mr_done_view *done) {
    mr_metrics *m = &core->metrics;
    const mr_wire_done_more *more = done->more;
    mr_count(&m->steps, 1);
    mr_count(&group->face.steps, 1);
    mr_count(&m->step_tokens, plan->tokens);
    mr_count(&m->step_ns, done->fixed->step_ns);
    mr_count(&m->retrieval_wait_ns, done->fixed->retrieval_wait_ns);
    mr_count(&m->retrieval_bytes_up, done->fixed->retrieval_bytes_up);
    mr_count(&m->retrieval_bytes_down, done->fixed->retrieval_bytes_down);
    if (!more) return;
    mr_count(&m->hedges, more->hedges);
    mr_count(&m->resends, more->resends);
    mr_count(&m->cache_hits, more->cache_hits);
    mr_count(&m->cache_misses, more->cache_misses);
    for (uint32_t i = 0; i < more->layers; i++)
        mr_count(&m->layer_wait_ns[i < MR_LAYER_SERIES ? i : MR_LAYER_SERIES - 1],
                 done->wait_ns[i]);
    const uint64_t layers = more->layers < MR_LAYER_SERIES ? more->layers : MR_LAYER_SERIES;
    if (layers > atomic_load_explicit(&m->layers, memory_order_relaxed))
        mr_gauge(&m->layers, layers);
}

/* The steps of these requests work again; degraded ones are marked before their token is told. */
static void note_success(const mr_plan *plan, bool is_degraded) {
    for (uint32_t i = 0; i < plan->count; i++) {
        if (!plan->entries[i].sequence) continue;
        core_live *live = ((core_answer *)plan->entries[i].owner)->live;
        live->is_degraded |= is_degraded;
        live->trouble_ns = 0;
        live->pause_ms = 0;
    }
}

/* The tokens a step has sampled for an answer, until it ends. */
static void take_results(mr_core *core, const mr_plan_entry *entry) {
    core_answer *answer = entry->owner;
    const uint32_t count = answer->result_count;
    for (uint32_t i = 0; i < count && entry->sequence; i++)
        core_take_token(core, answer, &answer->results[i]);
}

mr_status core_done(mr_core *core, core_group *group, core_step *step, const mr_frame *frame,
                    mr_err *err) {
    mr_done_view view;
    const mr_plan *plan = step->plan;
    const mr_status status = mr_done_check(&view, frame, err);
    if (status != MR_OK) return status;
    for (uint32_t i = 0; i < plan->count; i++)
        if (!has_all_results(group, &plan->entries[i]))
            return mr_fail(err, MR_ERR_FORMAT, "the worker ended a step without all its results");
    const core_step done = take_step(group, step);
    const bool is_degraded = done.is_degraded || (view.more && view.more->degraded > 0);
    count_done(core, group, plan, &view);
    core_count_drafts(core, group, &done);
    if (is_degraded) mr_count(&core->metrics.degraded_steps, 1);
    note_success(plan, is_degraded);
    mr_scheduler_commit(group->scheduler, plan, is_degraded);
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        if (!entry->sequence) continue; /* gone: with its request, maybe a moment ago */
        core_answer *answer = entry->owner;
        if (entry->samples)
            take_results(core, entry);
        else if (answer->live->logits &&
                 entry->position + entry->token_count == answer->prompt_count) {
            core_live *live = answer->live;
            core_close_answer(answer);
            if (--live->left == 0) core_end(core, live, MR_OK, "");
        }
    }
    return MR_OK;
}

/* --- failures --------------------------------------------------------------------------------- */

static bool may_pass(mr_status status) {
    return status == MR_ERR_UNAVAILABLE || status == MR_ERR_TIMEOUT || status == MR_ERR_STALE;
}

/* The request's step failed for want of rows: ends it, or lets it try again in a while. */
static void pause_or_end(mr_core *core, core_live *live, const core_step *step, mr_status status,
                         const char *sentence) {
    const int64_t now = mr_now_ns();
    if (status == MR_ERR_STALE) status = MR_ERR_UNAVAILABLE;
    if (live->failed_step == step->id) return; /* another answer of it was in this step */
    live->failed_step = step->id;
    if (live->trouble_ns == 0) live->trouble_ns = now;
    const int64_t end = live->trouble_ns + live->lost_wait_ms * MS;
    if (live->lost == MR_LOST_FAIL || now >= end) {
        core_end(core, live, status, sentence);
        return;
    }
    live->pause_ms = live->pause_ms == 0 ? PAUSE_MIN_MS : 2 * live->pause_ms;
    if (live->pause_ms > PAUSE_MAX_MS) live->pause_ms = PAUSE_MAX_MS;
    live->held_until_ns = now + live->pause_ms * MS < end ? now + live->pause_ms * MS : end;
    for (uint32_t i = 0; i < live->answer_count; i++)
        if (live->answers[i].sequence) mr_sequence_hold(live->answers[i].sequence, true);
    core_due(core, live->held_until_ns);
}

/* The worker could not run the step; sequences that are in no other one go on. */
void core_step_failed(mr_core *core, core_group *group, core_step *step, mr_status status,
                      const char *sentence) {
    mr_count(&core->metrics.step_failures, 1);
    mr_count(&group->face.step_failures, 1);
    if (status == MR_ERR_STALE && group->epoch != 0) { /* another coordinator owns it now */
        group->stale_until_ns = mr_now_ns() + STALE_MS * MS;
        core_group_lost(core, group, status, sentence);
        return;
    }
    const core_step failed = take_step(group, step);
    const mr_plan *plan = failed.plan;
    mr_scheduler_abandon(group->scheduler, plan);
    if (core_forgives_drafts(group, &failed)) {
        mr_count(&core->metrics.step_retries, 1);
        return;
    }
    if (may_pass(status)) mr_count(&core->metrics.step_retries, 1);
    const bool degrades = may_pass(status) && plan->kind == DEGRADING_KIND && !failed.may_degrade &&
                          group->wire_version >= 2;
    if (degrades) {
        group->degrade_until_ns = mr_now_ns() + DEGRADED_MS * MS;
        return; /* at once, and without the rows */
    }
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        if (!entry->sequence) continue;
        core_live *live = ((core_answer *)entry->owner)->live;
        if (may_pass(status))
            pause_or_end(core, live, &failed, status, sentence);
        else
            core_end(core, live, status, sentence);
    }
}
