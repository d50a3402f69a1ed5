/* core_draft.c - guesses that go along with a step: whose, how many, and what became of them.
 *
 * Every answer that may speculate has its text in a mr_draft from its second token on, and a guess
 * is asked for in each of its steps, whether or not it is sent: that is how its worth is known. */
#include "coordinator/core_impl.h"

#include "common/base/clock.h"

#include <string.h>

enum { DRAFTLESS_STEPS = 64 }; /* after one that failed */

uint32_t core_speculate(const mr_core *core, const mr_request *r) {
    if (r->logits) return 0;
    return r->has_speculate && r->speculate < core->speculate ? r->speculate : core->speculate;
}

static void open_draft(mr_core *core, core_answer *answer) {
    uint64_t model;
    memcpy(&model, &answer->live->digest, sizeof(model));
    answer->draft = mr_draft_open(core->drafts, model, answer->prompt_count + answer->new_tokens);
    mr_draft_add(answer->draft, answer->prompt, answer->prompt_count);
    mr_draft_add(answer->draft, answer->tokens.items, answer->generated);
}

/* A guess for one entry; returns how many tokens of it go along. */
static uint32_t draft_one(mr_core *core, core_group *group, const mr_plan *plan, uint32_t index,
                          mr_draft_step *step) {
    const mr_plan_entry *entry = &plan->entries[index];
    core_answer *answer = entry->owner;
    uint32_t count = 0;
    if (entry->drafts_max == 0 || answer->speculate == 0) return 0;
    if (!answer->draft) open_draft(core, answer);
    const mr_draft_guess guess = mr_draft_next(answer->draft);
    const uint32_t most =
        entry->drafts_max < answer->speculate ? entry->drafts_max : answer->speculate;
    while (count < guess.count && count < most &&
           (uint32_t)guess.tokens[count] < group->info.vocab_size)
        count++;
    count = mr_draft_worth(&group->cost, step, count, guess.chance);
    if (count == 0) return 0;
    return mr_scheduler_draft(group->scheduler, plan, index, guess.tokens, count);
}

uint32_t core_draft(mr_core *core, core_group *group, const mr_plan *plan) {
    mr_draft_step step = {plan->tokens, plan->tokens};
    uint32_t drafted = 0;
    if (!core->drafts || group->wire_version < 2 || mr_now_ns() < group->degrade_until_ns) return 0;
    if (group->draftless_steps > 0) {
        group->draftless_steps--;
        return 0;
    }
    for (uint32_t i = 0; i < plan->count; i++) drafted += draft_one(core, group, plan, i, &step);
    return drafted;
}

/* The step's time is as it looks from here: the way to the worker and back is paid once, too. Only
 * of steps that sample at each of their tokens, as those with guesses do: a prompt's cost less. */
static void note_cost(core_group *group, const core_step *done) {
    const int64_t ns = mr_now_ns() - done->sent_ns;
    for (uint32_t i = 0; i < done->plan->count; i++) {
        const mr_plan_entry *entry = &done->plan->entries[i];
        if (!entry->samples || entry->token_count > 1 + entry->drafted) return;
    }
    mr_draft_cost_note(&group->cost, done->plan->tokens, ns > 0 ? (uint64_t)ns : 0);
}

void core_count_drafts(mr_core *core, core_group *group, const core_step *done) {
    const mr_plan *plan = done->plan;
    uint64_t drafted = 0, accepted = 0;
    if (!core->drafts) return;
    note_cost(group, done);
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *entry = &plan->entries[i];
        if (!entry->sequence || entry->drafted == 0) continue;
        const core_answer *answer = entry->owner;
        answer->live->speculation.steps++;
        answer->live->speculation.drafted += entry->drafted;
        answer->live->speculation.accepted += answer->result_count - 1;
        drafted += entry->drafted;
        accepted += answer->result_count - 1;
    }
    if (drafted == 0) return;
    mr_count(&core->metrics.verifying_steps, 1);
    mr_count(&core->metrics.drafted_tokens, drafted);
    mr_count(&core->metrics.accepted_tokens, accepted);
}

/* A wrong guess may need rows that nobody has, or lead where no number is finite: plain decoding
 * would never have gone there. */
bool core_forgives_drafts(core_group *group, const core_step *step) {
    if (step->drafted == 0) return false;
    group->draftless_steps = DRAFTLESS_STEPS;
    return true;
}
