/* core_request.c - the life of a request: sequences in a group, tokens, answers, the end.
 *
 * A request keeps the tokens of its answers, so that it can go on in any group of its model: there
 * prompt and tokens together are what is computed first, and the next token has the same place in
 * the answer, hence the same random numbers. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* --- the end ---------------------------------------------------------------------------------- */

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

/* Takes its sequence out of the group. */
static void unschedule(core_answer *answer) {
    if (answer->sequence) mr_scheduler_remove(answer->live->group->scheduler, answer->sequence);
    answer->sequence = NULL;
    free(answer->joined);
    answer->joined = NULL;
}

void core_close_answer(core_answer *answer) {
    unschedule(answer);
    mr_stream_close(answer->stream);
    answer->stream = NULL;
    mr_draft_close(answer->draft);
    answer->draft = NULL;
    free(answer->results);
    answer->results = NULL;
    answer->is_complete = true;
}

void core_detach(core_live *live) {
    for (uint32_t i = 0; i < live->answer_count; i++) unschedule(&live->answers[i]);
    live->group = NULL;
    live->held_until_ns = 0;
}

static void unlink_live(mr_core *core, core_live *live) {
    if (live->previous)
        live->previous->next = live->next;
    else
        core->first = live->next;
    if (live->next) live->next->previous = live->previous;
}

void core_end(mr_core *core, core_live *live, mr_status status, const char *sentence) {
    mr_request *r = live->request;
    core_group *group = live->group;
    for (uint32_t i = 0; i < live->answer_count; i++) {
        core_close_answer(&live->answers[i]);
        mr_token_list_free(&live->answers[i].tokens);
    }
    if (live->forward_id) core->forwarder.cancel(core->forwarder.context, live->forward_id);
    unlink_live(core, live);
    core_count_out(core, live, true);
    mr_count(&core->metrics.requests[outcome_of(live, status)], 1);
    if (live->is_degraded) mr_count(&core->metrics.degraded_requests, 1);
    mr_observe(&core->metrics.whole_request, mr_now_ns() - live->submitted_ns);
    if (group) core_show_load(core, group);
    const mr_event end = {
        .is_end = true,
        .token = -1,
        .status = status,
        .sentence = sentence,
        .prompt_tokens = r->tokens.count,
        .generated_tokens = live->generated,
        .cached_tokens = live->cached,
        .speculation = live->speculation,
        .is_degraded = live->is_degraded,
        .logits = status == MR_OK ? live->logits : NULL,
        .logit_columns = live->logit_columns,
    };
    if (status != MR_OK) free(live->logits);
    r->sink(r->context, &end);
    mr_request_free(r);
    free(live->answers);
    free(live);
}

/* --- whether a group can take it -------------------------------------------------------------- */

static const mr_served *served_of(const core_live *live) {
    return live->request->model ? live->request->model->served : NULL;
}

/* info NULL: not known; what the model has counts alone. */
static uint32_t context_of(const mr_core *core, const core_live *live,
                           const mr_wire_worker_info *info) {
    const mr_served *served = served_of(live);
    const uint32_t model = served ? served->context_tokens : core->context_tokens;
    const uint32_t worker = info ? info->context_tokens : MR_MAX_CONTEXT;
    return model != 0 && model < worker ? model : worker;
}

static mr_status check_prompt(const mr_core *core, const core_group *group, const core_live *live,
                              const int32_t *tokens, uint32_t count, mr_err *err) {
    const mr_request *r = live->request;
    const uint32_t context = context_of(core, live, &group->info);
    const uint32_t room = r->logits ? context : context - 1;
    if (count == 0) return mr_fail(err, MR_ERR_ARGUMENT, "the prompt has no tokens");
    if (count > room)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "the prompt has %u tokens; this model's context has %u%s", count, context,
                       r->logits ? "" : ", of which one must be left for the answer");
    for (uint32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= group->info.vocab_size)
            return mr_fail(err, MR_ERR_ARGUMENT, "token %d is not in the vocabulary of %u",
                           tokens[i], group->info.vocab_size);
    const uint64_t all = (uint64_t)count + (r->logits ? 0 : r->new_tokens - 1);
    return mr_scheduler_fits(group->scheduler, all < context ? all : context, err);
}

/* A request that was begun elsewhere brings answers: they must be some of its own. */
static mr_status check_resumed(const mr_request *r, mr_err *err) {
    uint64_t sum = 0;
    if (!r->resumed_tokens) return MR_OK;
    for (uint32_t i = 0; i < r->prompt_count * r->choices; i++) {
        sum += r->resumed_tokens[i];
        if (r->resumed_tokens[i] >= r->new_tokens && !(r->is_complete && r->is_complete[i]))
            return mr_fail(err, MR_ERR_ARGUMENT, "answer %u has all its tokens already", i);
    }
    for (size_t i = 0; i < r->resumed.count; i++)
        if (r->resumed.items[i] < 0)
            return mr_fail(err, MR_ERR_ARGUMENT, "token %d is none", r->resumed.items[i]);
    return sum == r->resumed.count
               ? MR_OK
               : mr_fail(err, MR_ERR_ARGUMENT, "the answers so far have %llu tokens, but %zu came",
                         (unsigned long long)sum, r->resumed.count);
}

mr_status core_check(mr_core *core, const core_group *group, const core_live *live, mr_err *err) {
    const mr_request *r = live->request;
    const int32_t *tokens = r->tokens.items;
    const uint64_t columns = group->info.logit_columns;
    const uint64_t bytes = (uint64_t)r->tokens.count * columns * sizeof(float);
    if (r->logits && bytes > MR_MAX_LOGITS_BYTES)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "%zu positions of %u logits are %llu bytes; one answer has at most %d",
                       r->tokens.count, group->info.logit_columns, (unsigned long long)bytes,
                       MR_MAX_LOGITS_BYTES);
    for (uint32_t p = 0; p < r->prompt_count; p++) {
        const mr_status status = check_prompt(core, group, live, tokens, r->prompt_tokens[p], err);
        if (status != MR_OK) return status;
        tokens += r->prompt_tokens[p];
    }
    if (live->logits && live->logit_columns != columns) /* it began with other figures */
        return mr_fail(err, MR_ERR_UNAVAILABLE, "the worker group %s has other logits",
                       group->name);
    return check_resumed(r, err);
}

/* --- answers ---------------------------------------------------------------------------------- */

static uint32_t longest_answer(const mr_core *core, const core_live *live,
                               const mr_wire_worker_info *info, uint32_t prompt_tokens) {
    const mr_request *r = live->request;
    const uint32_t context = context_of(core, live, info);
    const uint32_t room = context > prompt_tokens ? context - prompt_tokens : 0;
    return r->logits ? 0 : r->new_tokens < room ? r->new_tokens : room;
}

/* Whether text stands before the answer: what the prompt spells, or tokens told elsewhere. */
static bool goes_on(const mr_request *r, const mr_tokenizer *tokenizer, uint32_t index,
                    const int32_t *prompt, uint32_t count) {
    if (r->resumed_tokens && r->resumed_tokens[index] > 0) return true;
    for (uint32_t i = 0; r->continues && tokenizer && i < count; i++)
        if (!mr_tokenizer_is_special(tokenizer, prompt[i])) return true;
    return false;
}

static void open_answer(mr_core *core, core_live *live, uint32_t index, const int32_t *prompt,
                        uint32_t count, uint32_t new_tokens) {
    const mr_request *r = live->request;
    const mr_served *served = served_of(live);
    core_answer *answer = &live->answers[index];
    *answer = (core_answer){.live = live,
                            .index = index,
                            .id = core->next_answer_id++,
                            .prompt = prompt,
                            .prompt_count = count,
                            .new_tokens = new_tokens,
                            .speculate = core_speculate(core, r)};
    answer->results = mr_alloc_array(1 + answer->speculate, sizeof(*answer->results));
    const mr_tokenizer *tokenizer = served ? served->tokenizer : core->tokenizer;
    if (r->is_forwarded) tokenizer = NULL;
    if (!r->logits)
        answer->stream = mr_stream_open(tokenizer, r->stops, r->logprobs,
                                        goes_on(r, tokenizer, index, prompt, count));
}

/* Once, when it is known what a worker can do. */
static mr_status open_answers(mr_core *core, core_live *live, const mr_wire_worker_info *info,
                              mr_err *err) {
    const mr_request *r = live->request;
    const int32_t *prompt = r->tokens.items, *resumed = r->resumed.items;
    if (live->answers) return MR_OK;
    if (r->logits) { /* bounded by core_check; zero pages until they are filled */
        live->logit_columns = info->logit_columns;
        live->logits = calloc(r->tokens.count * live->logit_columns, sizeof(float));
        if (!live->logits) return mr_fail(err, MR_ERR_NOMEM, "no memory for the logits asked for");
    }
    live->answer_count = live->left = r->prompt_count * r->choices;
    live->answers = mr_alloc_array(live->answer_count, sizeof(*live->answers));
    for (uint32_t i = 0; i < live->answer_count; i++) {
        const uint32_t p = i / r->choices, count = r->prompt_tokens[p];
        open_answer(core, live, i, prompt, count, longest_answer(core, live, info, count));
        core_answer *answer = &live->answers[i];
        for (uint32_t k = 0; r->resumed_tokens && k < r->resumed_tokens[i]; k++)
            mr_token_list_add(&answer->tokens, *resumed++);
        answer->generated = (uint32_t)answer->tokens.count;
        if (r->is_complete && r->is_complete[i]) {
            core_close_answer(answer);
            live->left--;
        }
        if (i % r->choices == r->choices - 1) prompt += count;
    }
    mr_count(&core->metrics.prompt_tokens, r->tokens.count);
    return live->left > 0 ? MR_OK
                          : mr_fail(err, MR_ERR_ARGUMENT, "all answers are complete already");
}

static void schedule(core_group *group, core_answer *answer, mr_sequence **leader) {
    const core_live *live = answer->live;
    const mr_request *r = live->request;
    mr_sequence_spec spec = {
        .id = answer->id,
        .owner = answer,
        .prompt = answer->prompt,
        .prompt_count = answer->prompt_count + answer->generated,
        .new_tokens = answer->new_tokens - answer->generated,
        .chunk_tokens = r->chunk_tokens,
        .single_from = r->single_from,
        .kind = live->lost == MR_LOST_DEGRADE,
        .uncached = r->logits,
    };
    if (answer->generated > 0) { /* it goes on here */
        answer->joined = mr_alloc_array(spec.prompt_count, sizeof(*answer->joined));
        memcpy(answer->joined, answer->prompt, answer->prompt_count * sizeof(int32_t));
        memcpy(answer->joined + answer->prompt_count, answer->tokens.items,
               answer->generated * sizeof(int32_t));
        spec.prompt = answer->joined;
    } else if (r->choices > 1) {
        spec.shares = !*leader;
        spec.leader = *leader;
    }
    answer->is_noted = false;
    answer->sequence = mr_scheduler_add(group->scheduler, &spec);
    if (spec.shares) *leader = answer->sequence;
}

mr_status core_attach(mr_core *core, core_group *group, core_live *live, mr_err *err) {
    mr_sequence *leader = NULL;
    mr_status status = open_answers(core, live, &group->info, err);
    for (uint32_t i = 0; status == MR_OK && i < live->answer_count; i++) {
        const core_answer *a = &live->answers[i];
        if (a->is_complete) continue;
        if (!live->request->logits && a->generated >= a->new_tokens)
            return mr_fail(err, MR_ERR_ARGUMENT, "the answer so far fills the context already");
        const uint32_t more = a->new_tokens ? a->new_tokens - 1 : 0;
        status = mr_scheduler_fits(group->scheduler, (uint64_t)a->prompt_count + more, err);
    }
    if (status != MR_OK) return status;
    live->group = group;
    live->trouble_ns = 0;
    core->has_moved = true;
    for (uint32_t i = 0; i < live->answer_count; i++) {
        core_answer *answer = &live->answers[i];
        if (i % live->request->choices == 0) leader = NULL;
        if (!answer->is_complete) schedule(group, answer, &leader);
    }
    return MR_OK;
}

static bool has_digest(const mr_serving *model) {
    static const mr_digest none;
    return model && memcmp(&model->digest, &none, sizeof(none)) != 0;
}

void core_take(mr_core *core, core_message *message) {
    const mr_request *r = message->request;
    core_live *live = mr_alloc(sizeof(*live));
    live->request = message->request;
    live->id = message->id;
    live->submitted_ns = message->submitted_ns;
    live->digest = has_digest(r->model) ? r->model->digest
                   : r->is_forwarded    ? r->digest
                                        : core->digest;
    live->lost = r->lost == MR_LOST_DEFAULT ? core->lost : r->lost;
    live->lost_wait_ms = r->has_lost_wait ? r->lost_wait_ms : core->lost_wait_ms;
    live->next = core->first;
    if (core->first) core->first->previous = live;
    core->first = live;
    core_route(core, live);
}

/* --- tokens ----------------------------------------------------------------------------------- */

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
        .is_degraded = answer->live->is_degraded,
    };
    return r->sink(r->context, &event);
}

static void observe_token(mr_core *core, core_answer *answer, int32_t token) {
    const int64_t now = mr_now_ns();
    if (answer->last_token_ns != 0)
        mr_observe(&core->metrics.inter_token, now - answer->last_token_ns);
    else if (answer->live->generated == 0)
        mr_observe(&core->metrics.first_token, now - answer->live->submitted_ns);
    answer->last_token_ns = now;
    answer->generated++;
    answer->live->generated++;
    mr_token_list_add(&answer->tokens, token);
    if (answer->draft) mr_draft_push(answer->draft, token);
    mr_count(&core->metrics.generated_tokens, 1);
}

/* A token has come: text, stop, length. */
void core_take_token(mr_core *core, core_answer *answer, const mr_token_entry *result) {
    core_live *live = answer->live;
    const int32_t token = result->token;
    mr_finish finish = MR_FINISH_NONE;
    mr_stream_part part = {"", 0, NULL, 0, false};
    bool is_read = true;
    observe_token(core, answer, token);
    if (is_stop_id(live->request, token)) {
        finish = MR_FINISH_STOP;
        if (live->request->is_forwarded) {
            part = mr_stream_push(answer->stream, result);
            is_read = tell(answer, token, &part, MR_FINISH_NONE);
        }
    } else {
        part = mr_stream_push(answer->stream, result);
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
        if (answer->sequence) mr_sequence_append(answer->sequence, token);
        return;
    }
    if (finish == MR_FINISH_LENGTH) live->is_long = true;
    core_close_answer(answer);
    if (--live->left == 0) core_end(core, live, MR_OK, "");
}

/* --- forwarded -------------------------------------------------------------------------------- */

mr_status core_forward(mr_core *core, core_live *live, mr_err *err) {
    mr_status status = open_answers(core, live, NULL, err);
    if (status != MR_OK) return status;
    mr_token_list *answers = mr_alloc_array(live->answer_count, sizeof(*answers));
    bool *is_complete = mr_alloc_array(live->answer_count, sizeof(*is_complete));
    for (uint32_t i = 0; i < live->answer_count; i++) {
        answers[i] = live->answers[i].tokens;
        is_complete[i] = live->answers[i].is_complete;
    }
    const mr_forward_job job = {.id = core->next_forward_id++,
                                .digest = live->digest,
                                .request = live->request,
                                .answers = answers,
                                .answer_count = live->answer_count,
                                .is_complete = is_complete};
    status = core->forwarder.submit(core->forwarder.context, &job, err);
    free(answers);
    free(is_complete);
    if (status != MR_OK) return MR_ERR_UNAVAILABLE; /* for the moment: it waits */
    live->forward_id = job.id;
    mr_count(&core->metrics.forwarded, 1);
    if (!live->is_started) core_count_out(core, live, false);
    return MR_OK;
}

/* The try is over before the answers are. */
static void take_forward_end(mr_core *core, core_live *live, const mr_forward_event *event) {
    live->forward_id = 0;
    switch (event->status) {
    case MR_OK:
    case MR_ERR_UNAVAILABLE:
    case MR_ERR_IO:
    case MR_ERR_TIMEOUT:
    case MR_ERR_STALE:
    case MR_ERR_CANCELLED: /* by its owner, who was shut down */
        mr_count(&core->metrics.failovers, 1);
        core_say_down(core, &event->sentence);
        core_wait_for_group(core, live); /* not at once: its owner may refuse as quickly again */
        return;
    default:
        core_end(core, live, event->status, event->sentence.text);
    }
}

void core_take_forwarded(mr_core *core, const mr_forward_event *event) {
    core_live *live = core->first;
    while (live && live->forward_id != event->id) live = live->next;
    if (!live || event->id == 0) return; /* of a try that is not waited for */
    live->is_degraded |= event->is_degraded;
    if (event->is_end) {
        take_forward_end(core, live, event);
        return;
    }
    if (event->answer >= live->answer_count || live->answers[event->answer].is_complete) return;
    live->wait_until_ns = 0;
    core_take_token(core, &live->answers[event->answer], &event->entry);
}
