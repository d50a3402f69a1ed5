/* core_step.c - requests becoming sequences, steps being built, and what comes of them. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/frames.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* --- the life of a request -------------------------------------------------------------------- */

static mr_outcome outcome_of(const core_live *live, mr_status status) {
    switch (status) {
    case MR_OK:
        return live->is_long ? MR_OUTCOME_LENGTH : MR_OUTCOME_STOP;
    case MR_ERR_CANCELLED:
        return MR_OUTCOME_CANCELLED;
    case MR_ERR_ARGUMENT:
        return MR_OUTCOME_REFUSED;
    default:
        return MR_OUTCOME_FAILED;
    }
}

static void show_load(mr_core *core) {
    if (!core->scheduler) return;
    const mr_scheduler_state now = mr_scheduler_look(core->scheduler);
    mr_gauge(&core->metrics.waiting, now.waiting);
    mr_gauge(&core->metrics.running, now.running);
    mr_gauge(&core->metrics.kv_blocks_used, now.kv_blocks_used);
}

static void close_answer(mr_core *core, core_answer *answer) {
    if (answer->sequence) mr_scheduler_remove(core->scheduler, answer->sequence);
    answer->sequence = NULL;
    mr_stream_close(answer->stream);
    answer->stream = NULL;
}

void core_end(mr_core *core, core_live *live, mr_status status, const char *sentence) {
    mr_request *r = live->request;
    for (uint32_t i = 0; i < live->answer_count; i++) close_answer(core, &live->answers[i]);
    if (live->previous)
        live->previous->next = live->next;
    else
        core->first = live->next;
    if (live->next) live->next->previous = live->previous;
    core_count_out(core, live, true);
    mr_count(&core->metrics.requests[outcome_of(live, status)], 1);
    mr_observe(&core->metrics.whole_request, mr_now_ns() - live->submitted_ns);
    show_load(core);
    const mr_event end = {
        .is_end = true,
        .token = -1,
        .status = status,
        .sentence = sentence,
        .prompt_tokens = r->tokens.count,
        .generated_tokens = live->generated,
        .logits = status == MR_OK ? live->logits : NULL,
        .logit_columns = core->info.logit_columns,
    };
    if (status != MR_OK) free(live->logits);
    r->sink(r->context, &end);
    mr_request_free(r);
    free(live->answers);
    free(live);
}

void core_end_all(mr_core *core, mr_status status, const char *sentence) {
    while (core->first) core_end(core, core->first, status, sentence);
}

static uint32_t context_of(const mr_core *core) {
    const uint32_t model = core->context_tokens, worker = core->info.context_tokens;
    return model != 0 && model < worker ? model : worker;
}

static mr_status check_prompt(const mr_core *core, const mr_request *r, const int32_t *tokens,
                              uint32_t count, mr_err *err) {
    const uint32_t context = context_of(core), room = r->logits ? context : context - 1;
    if (count == 0) return mr_fail(err, MR_ERR_ARGUMENT, "the prompt has no tokens");
    if (count > room)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "the prompt has %u tokens; this model's context has %u%s", count, context,
                       r->logits ? "" : ", of which one must be left for the answer");
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= core->info.vocab_size)
            return mr_fail(err, MR_ERR_ARGUMENT, "token %d is not in the vocabulary of %u",
                           tokens[i], core->info.vocab_size);
    const uint32_t answer = r->logits ? 0 : r->new_tokens - 1;
    const uint64_t all = (uint64_t)count + answer;
    return mr_scheduler_fits(core->scheduler, all < context ? all : context, err);
}

static mr_status check_request(mr_core *core, const mr_request *r, mr_err *err) {
    if (core->is_stopping)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
    if (!core->link) {
        const mr_status why = mr_core_health(core, err);
        return why != MR_OK ? why : mr_fail(err, MR_ERR_UNAVAILABLE, "the worker is not connected");
    }
    const int32_t *tokens = r->tokens.items;
    const uint64_t bytes = (uint64_t)r->tokens.count * core->info.logit_columns * sizeof(float);
    if (r->logits && bytes > MR_MAX_LOGITS_BYTES)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "%zu positions of %u logits are %llu bytes; one answer has at most %d",
                       r->tokens.count, core->info.logit_columns, (unsigned long long)bytes,
                       MR_MAX_LOGITS_BYTES);
    for (uint32_t p = 0; p < r->prompt_count; p++) {
        const mr_status status = check_prompt(core, r, tokens, r->prompt_tokens[p], err);
        if (status != MR_OK) return status;
        tokens += r->prompt_tokens[p];
    }
    return MR_OK;
}

static void add_answer(mr_core *core, core_live *live, uint32_t index, const int32_t *prompt,
                       uint32_t count, mr_sequence **leader) {
    const mr_request *r = live->request;
    core_answer *answer = &live->answers[index];
    const uint32_t room = context_of(core) - count;
    *answer = (core_answer){.live = live,
                            .index = index,
                            .id = core->next_answer_id++,
                            .prompt = prompt,
                            .prompt_count = count,
                            .new_tokens = r->logits              ? 0
                                          : r->new_tokens < room ? r->new_tokens
                                                                 : room};
    if (!r->logits) answer->stream = mr_stream_open(core->tokenizer, r->stops, r->logprobs);
    answer->sequence = mr_scheduler_add(core->scheduler, &(mr_sequence_spec){
                                                             .id = answer->id,
                                                             .owner = answer,
                                                             .prompt = prompt,
                                                             .prompt_count = count,
                                                             .new_tokens = answer->new_tokens,
                                                             .chunk_tokens = r->chunk_tokens,
                                                             .single_from = r->single_from,
                                                             .uncached = r->logits,
                                                             .shares = !*leader && r->choices > 1,
                                                             .leader = *leader,
                                                         });
    if (!*leader) *leader = answer->sequence;
}

void core_take(mr_core *core, core_message *message) {
    mr_err err = {{0}};
    mr_request *r = message->request;
    core_live *live = mr_alloc(sizeof(*live));
    live->request = r;
    live->id = message->id;
    live->submitted_ns = message->submitted_ns;
    live->next = core->first;
    if (core->first) core->first->previous = live;
    core->first = live;
    const mr_status status = check_request(core, r, &err);
    if (status != MR_OK) {
        core_end(core, live, status, err.text);
        return;
    }
    const int32_t *prompt = r->tokens.items;
    live->answer_count = live->left = r->prompt_count * r->choices;
    live->answers = mr_alloc_array(live->answer_count, sizeof(*live->answers));
    if (r->logits) { /* bounded by check_request; zero pages until they are filled */
        live->logits = calloc(r->tokens.count * core->info.logit_columns, sizeof(float));
        if (!live->logits) {
            live->answer_count = 0;
            core_end(core, live, MR_ERR_NOMEM, "no memory for the logits asked for");
            return;
        }
    }
    for (uint32_t p = 0; p < r->prompt_count; p++) {
        mr_sequence *leader = NULL;
        for (uint32_t c = 0; c < r->choices; c++)
            add_answer(core, live, p * r->choices + c, prompt, r->prompt_tokens[p], &leader);
        prompt += r->prompt_tokens[p];
    }
    mr_count(&core->metrics.prompt_tokens, r->tokens.count);
}

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
    };
}

static void write_step(uint8_t *payload, const mr_plan *plan) {
    const mr_wire_step fixed = {plan->count, plan->tokens, plan->blocks, 0};
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

/* What changes when a step goes out: requests that begin, answers that await a token. */
static void note_step(mr_core *core, const mr_plan *plan) {
    for (uint32_t i = 0; i < plan->count; i++) {
        core_answer *answer = plan->entries[i].owner;
        answer->is_sampled = false;
        answer->step_logits = 0;
        if (answer->live->is_started) continue;
        core_count_out(core, answer->live, false);
        mr_observe(&core->metrics.queued, mr_now_ns() - answer->live->submitted_ns);
    }
}

void core_pump(mr_core *core) {
    uint32_t bytes;
    mr_err err = {{0}};
    if (!core->link || core->step || core->is_stopping) return;
    const mr_plan *plan = mr_scheduler_plan(core->scheduler);
    show_load(core);
    if (!plan) return;
    core->step = plan;
    core->step_id++;
    note_step(core, plan);
    const mr_wire_header header = {.type = MR_FRAME_STEP,
                                   .request = core->step_id,
                                   .budget_us = core->step_timeout_ms * 1000u};
    const mr_status status = mr_step_bytes(&bytes, plan->count, plan->tokens, plan->blocks, &err);
    assert(status == MR_OK); /* the scheduler keeps to these limits */
    uint8_t *payload = mr_link_begin(core->link, &header, bytes);
    if (!payload) {
        core_link_failed(core, MR_ERR_LIMIT, "the worker takes no more frames");
        return;
    }
    write_step(payload, plan);
    mr_link_end(core->link);
    core_arm_watchdog(core, true);
    core_flush(core);
}

/* --- results ---------------------------------------------------------------------------------- */

/* *out is NULL for a sequence that has been removed since the step went out. */
static mr_status find_entry(const mr_core *core, uint64_t id, const mr_plan_entry **out,
                            mr_err *err) {
    *out = NULL;
    for (uint32_t i = 0; i < core->step->count; i++)
        if (core->step->entries[i].id == id) {
            if (core->step->entries[i].sequence) *out = &core->step->entries[i];
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_FORMAT,
                   "the worker answers for a sequence that was not in the step");
}

mr_status core_sampled(mr_core *core, const mr_frame *frame, mr_err *err) {
    mr_sampled_view view;
    const mr_plan_entry *entry;
    mr_status status = mr_sampled_check(&view, frame, err);
    if (status == MR_OK) status = find_entry(core, view.fixed->id, &entry, err);
    if (status != MR_OK || !entry) return status;
    if (!entry->samples || (uint32_t)view.fixed->token >= core->info.vocab_size)
        return mr_fail(err, MR_ERR_FORMAT, "the worker sampled token %d where it should not have",
                       view.fixed->token);
    core_answer *answer = entry->owner;
    answer->is_sampled = true;
    answer->result = (mr_token_entry){.token = view.fixed->token,
                                      .logprob = view.fixed->logprob,
                                      .top_count = view.fixed->top_count};
    memcpy(answer->result.top, view.top, view.fixed->top_count * sizeof(*view.top));
    return MR_OK;
}

mr_status core_logits(mr_core *core, const mr_frame *frame, mr_err *err) {
    mr_logits_view view;
    const mr_plan_entry *entry;
    mr_status status = mr_logits_check(&view, frame, err);
    if (status == MR_OK) status = find_entry(core, view.fixed->id, &entry, err);
    if (status != MR_OK || !entry) return status;
    core_answer *answer = entry->owner;
    const uint64_t columns = core->info.logit_columns;
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

static bool is_stop_id(const mr_request *r, int32_t token) {
    for (uint32_t i = 0; i < r->stop_id_count; i++)
        if (r->stop_ids[i] == token) return true;
    return false;
}

static bool tell(core_answer *answer, int32_t token, const mr_stream_part *part, mr_finish finish) {
    const mr_request *r = answer->live->request;
    const mr_event event = {
        .answer = answer->index,
        .token = token,
        .text = part->text,
        .bytes = part->bytes,
        .entries = part->entries,
        .entry_count = part->entry_count,
        .finish = finish,
    };
    return r->sink(r->context, &event);
}

static void observe_token(mr_core *core, core_answer *answer) {
    const int64_t now = mr_now_ns();
    if (answer->last_token_ns != 0)
        mr_observe(&core->metrics.inter_token, now - answer->last_token_ns);
    else if (answer->live->generated == 0)
        mr_observe(&core->metrics.first_token, now - answer->live->submitted_ns);
    answer->last_token_ns = now;
    answer->generated++;
    answer->live->generated++;
    mr_count(&core->metrics.generated_tokens, 1);
}

/* A token has come: text, stop, length. May end the whole request. */
static void take_token(mr_core *core, core_answer *answer) {
    core_live *live = answer->live;
    const int32_t token = answer->result.token;
    mr_finish finish = MR_FINISH_NONE;
    mr_stream_part part = {"", 0, NULL, 0, false};
    bool is_read = true;
    observe_token(core, answer);
    if (is_stop_id(live->request, token))
        finish = MR_FINISH_STOP;
    else {
        part = mr_stream_push(answer->stream, &answer->result);
        if (part.stopped)
            finish = MR_FINISH_STOP;
        else if (answer->generated == answer->new_tokens)
            finish = MR_FINISH_LENGTH;
        is_read = tell(answer, token, &part, part.stopped ? finish : MR_FINISH_NONE);
    }
    if (finish != MR_FINISH_NONE && !part.stopped && is_read) {
        part = mr_stream_finish(answer->stream);
        if (part.stopped) finish = MR_FINISH_STOP;
        is_read = tell(answer, -1, &part, finish);
    }
    if (!is_read) {
        core_end(core, live, MR_ERR_CANCELLED, "the reader cannot keep up with its stream");
        return;
    }
    if (finish == MR_FINISH_NONE) {
        mr_sequence_append(answer->sequence, token);
        return;
    }
    if (finish == MR_FINISH_LENGTH) live->is_long = true;
    close_answer(core, answer);
    if (--live->left == 0) core_end(core, live, MR_OK, "");
}

static bool has_all_results(const mr_core *core, const mr_plan_entry *entry) {
    if (!entry->sequence) return true;
    const core_answer *answer = entry->owner;
    if (entry->samples && !answer->is_sampled) return false;
    return !answer->live->logits ||
           answer->step_logits == (uint64_t)entry->token_count * core->info.logit_columns;
}

mr_status core_done(mr_core *core, const mr_frame *frame, mr_err *err) {
    mr_done_view view;
    const mr_plan *plan = core->step;
    const mr_status status = mr_done_check(&view, frame, err);
    if (status != MR_OK) return status;
    const mr_wire_done *done = view.fixed;
    for (uint32_t i = 0; i < plan->count; i++)
        if (!has_all_results(core, &plan->entries[i]))
            return mr_fail(err, MR_ERR_FORMAT, "the worker ended a step without all its results");
    core_arm_watchdog(core, false);
    mr_metrics *m = &core->metrics;
    mr_count(&m->steps, 1);
    mr_count(&m->step_tokens, plan->tokens);
    mr_count(&m->step_ns, done->step_ns);
    mr_count(&m->retrieval_wait_ns, done->retrieval_wait_ns);
    mr_count(&m->retrieval_bytes_up, done->retrieval_bytes_up);
    mr_count(&m->retrieval_bytes_down, done->retrieval_bytes_down);
    core->step = NULL;
    mr_scheduler_commit(core->scheduler, plan, false);
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        if (!entry->sequence) continue; /* gone: with its request, maybe a moment ago */
        core_answer *answer = entry->owner;
        if (entry->samples)
            take_token(core, answer);
        else if (answer->live->logits &&
                 entry->position + entry->token_count == answer->prompt_count) {
            core_live *live = answer->live;
            close_answer(core, answer);
            if (--live->left == 0) core_end(core, live, MR_OK, "");
        }
    }
    return MR_OK;
}

/* The worker could not run the step: everyone in it is told why, the others go on. */
void core_step_failed(mr_core *core, mr_status status, const char *sentence) {
    const mr_plan *plan = core->step;
    mr_count(&core->metrics.step_failures, 1);
    core_arm_watchdog(core, false);
    core->step = NULL;
    mr_scheduler_abandon(core->scheduler, plan);
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        if (!entry->sequence) continue;
        core_answer *answer = entry->owner;
        core_end(core, answer->live, status, sentence);
    }
}
