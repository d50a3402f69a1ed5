/* answers.h - one step run, its results cut into frames; shared by both doors of serve.h.
 * Threads: the one that runs steps. */
#ifndef MR_WORKER_ANSWERS_H
#define MR_WORKER_ANSWERS_H
#include "common/net/frames.h"
#include "worker/engine.h"

/* Where frames go. begin gives room for a payload, or NULL when the peer is gone or stuck: then the
 * rest of the step's frames are dropped. end hands the frame over; urgent: the peer should see it
 * soon, not only with the step's last frame. */
typedef struct {
    void *(*begin)(void *context, const mr_wire_header *header, uint32_t payload_bytes);
    void (*end)(void *context, bool urgent);
    void *context;
} mr_answer_sink;

/* A step that ends here: on the whole model, or on the last stage. */
typedef struct {
    uint64_t request;
    uint16_t version; /* of the asker's session: bounds what an answer may say */
    const mr_step_view *view;
    const float *hidden, *pending; /* as in mr_step */
    int64_t deadline_ns;           /* as in mr_step */
} mr_answer_task;

mr_step mr_answer_make_step(const mr_answer_task *task);
void mr_answer_step(mr_engine *engine, const mr_answer_task *task, const mr_answer_sink *sink);
void mr_answer_error(uint64_t request, mr_status status, const char *sentence,
                     const mr_answer_sink *sink);

/* STALE tells a coordinator that another one owns the group. A route to the memshards that is too
 * old is something else: the step may be run again. */
static inline mr_status mr_answer_status(mr_status of_step) {
    return of_step == MR_ERR_STALE ? MR_ERR_UNAVAILABLE : of_step;
}

/* Payload of DONE: with wait_ns (more->layers of them) from version 2 on. */
uint32_t mr_answer_done_bytes(uint16_t version, uint32_t layers);
void mr_answer_put_done(uint8_t *room, uint16_t version, const mr_engine_account *account);

#endif
