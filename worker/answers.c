/* answers.c - see answers.h. */
#include "worker/answers.h"

#include "common/base/log.h"

#include <string.h>

typedef struct {
    const mr_answer_sink *sink;
    const mr_step_view *view;
    uint64_t request;
    bool is_lost; /* the sink took no more */
} report;

static uint8_t *begin(report *r, uint16_t type, size_t payload_bytes) {
    const mr_wire_header header = {.type = type, .request = r->request};
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
        const mr_wire_logits fixed = {.id = r->view->sequences[sequence].id,
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
    memcpy(room, sampled, sizeof(*sampled));
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

void mr_answer_step(mr_engine *engine, uint64_t request, const mr_step_view *view,
                    const mr_answer_sink *sink) {
    report r = {.sink = sink, .view = view, .request = request};
    const mr_step step = {.sequence_count = view->sequence_count,
                          .token_count = view->token_count,
                          .block_count = view->block_count,
                          .sequences = view->sequences,
                          .tokens = view->tokens,
                          .blocks = view->blocks};
    const mr_step_sink reports = {.logits = send_logits, .sampled = send_sampled, .context = &r};
    mr_wire_done done = {0};
    mr_err err = {{0}};
    const mr_status status = mr_engine_step(engine, &step, &reports, &done, &err);
    if (r.is_lost) mr_log_warn("answers of a step were lost: its coordinator does not take them");
    if (status != MR_OK) {
        mr_log_warn("step failed: %s", err.text);
        mr_answer_error(request, status, err.text, sink);
        return;
    }
    uint8_t *room = begin(&r, MR_FRAME_DONE, sizeof(done));
    if (!room) return;
    memcpy(room, &done, sizeof(done));
    sink->end(sink->context, true);
}
