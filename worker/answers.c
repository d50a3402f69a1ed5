/* answers.c - see answers.h. */
#include "worker/answers.h"

#include "common/base/log.h"

#include <string.h>

typedef struct {
    const mr_answer_sink *sink;
    const mr_answer_task *task;
    mr_engine *engine;
    bool is_lost; /* the sink took no more */
} report;

static uint8_t *begin(report *r, uint16_t type, size_t payload_bytes) {
    const mr_wire_header header = {.type = type, .request = r->task->request};
    if (r->is_lost) return NULL;
    uint8_t *room = r->sink->begin(r->sink->context, &header, (uint32_t)payload_bytes);
    r->is_lost = room == NULL;
    return room;
}

/* A row of logits may be larger than a frame. */
static void send_logits(void *context, uint32_t sequence, uint32_t position, const float *logits,
                        uint32_t columns) {
    report *r = context;
    const uint32_t most = mr_logits_columns_max();
    for (uint32_t first = 0; first < columns; first += most) {
        const uint32_t count = columns - first < most ? columns - first : most;
        const mr_wire_logits fixed = {.id = r->task->view->sequences[sequence].id,
                                      .position = position,
                                      .column_first = first,
                                      .columns = count};
        uint8_t *room = begin(r, MR_FRAME_LOGITS, sizeof(fixed) + (size_t)count * sizeof(float));
        if (!room) return;
        memcpy(room, &fixed, sizeof(fixed));
        memcpy(room + sizeof(fixed), logits + first, (size_t)count * sizeof(float));
        r->sink->end(r->sink->context, true);
    }
}

static void send_sampled(void *context, uint32_t sequence, const mr_wire_sampled *sampled,
                         const mr_wire_logprob *top) {
    report *r = context;
    (void)sequence; /* sampled->id says it */
    const size_t top_bytes = (size_t)sampled->top_count * sizeof(*top);
    uint8_t *room = begin(r, MR_FRAME_SAMPLED, sizeof(*sampled) + top_bytes);
    if (!room) return;
    mr_wire_sampled marked = *sampled;
    const bool degraded =
        (r->task->view->flags & MR_STEP_DEGRADED) || mr_engine_last(r->engine)->more.degraded > 0;
    if (degraded && r->task->version >= 2) marked.flags |= MR_SAMPLED_DEGRADED;
    memcpy(room, &marked, sizeof(marked));
    if (top_bytes > 0) memcpy(room + sizeof(*sampled), top, top_bytes);
    r->sink->end(r->sink->context, false);
}

void mr_answer_error(uint64_t request, mr_status status, const char *sentence,
                     const mr_answer_sink *sink) {
    const mr_wire_header header = {.type = MR_FRAME_ERROR, .request = request, .status = status};
    const size_t bytes = strnlen(sentence, MR_ERR_TEXT_BYTES - 1);
    void *room = sink->begin(sink->context, &header, (uint32_t)bytes);
    if (!room) return;
    memcpy(room, sentence, bytes);
    sink->end(sink->context, true);
}

uint32_t mr_answer_done_bytes(uint16_t version, uint32_t layers) {
    const size_t more = sizeof(mr_wire_done_more) + layers * sizeof(uint64_t);
    return (uint32_t)(sizeof(mr_wire_done) + (version < 2 ? 0 : more));
}

void mr_answer_put_done(uint8_t *room, uint16_t version, const mr_engine_account *account) {
    memcpy(room, &account->done, sizeof(account->done));
    if (version < 2) return;
    room += sizeof(account->done);
    memcpy(room, &account->more, sizeof(account->more));
    if (account->more.layers > 0)
        memcpy(room + sizeof(account->more), account->wait_ns,
               account->more.layers * sizeof(uint64_t));
}

mr_step mr_answer_make_step(const mr_answer_task *task) {
    const mr_step_view *view = task->view;
    return (mr_step){.sequence_count = view->sequence_count,
                     .token_count = view->token_count,
                     .block_count = view->block_count,
                     .sequences = view->sequences,
                     .tokens = view->tokens,
                     .blocks = view->blocks,
                     .hidden = task->hidden,
                     .pending = task->pending,
                     .flags = view->flags,
                     .deadline_ns = task->deadline_ns};
}

void mr_answer_step(mr_engine *engine, const mr_answer_task *task, const mr_answer_sink *sink) {
    report r = {.sink = sink, .task = task, .engine = engine};
    const mr_step step = mr_answer_make_step(task);
    const mr_step_sink reports = {.logits = send_logits, .sampled = send_sampled, .context = &r};
    mr_err err = {{0}};
    const mr_status status = mr_engine_step(engine, &step, &reports, NULL, &err);
    if (r.is_lost) mr_log_warn("answers of a step were lost: its coordinator does not take them");
    if (status != MR_OK) {
        mr_log_warn("step failed: %s", err.text);
        mr_answer_error(task->request, mr_answer_status(status), err.text, sink);
        return;
    }
    const mr_engine_account *account = mr_engine_last(engine);
    uint8_t *room =
        begin(&r, MR_FRAME_DONE, mr_answer_done_bytes(task->version, account->more.layers));
    if (!room) return;
    mr_answer_put_done(room, task->version, account);
    sink->end(sink->context, true);
}
