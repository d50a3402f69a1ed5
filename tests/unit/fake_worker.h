/* fake_worker.h - a worker without a model: it speaks the wire, keeps token ids in its KV blocks,
 * and answers a prompt with the prompt itself, token by token (choice c begins c tokens later).
 *
 * Because it only knows what the blocks it is told about hold, a wrong block table, position or
 * token shows as a wrong answer. Scripts make it fail, fall silent or hang up at a step.
 * Logits of a position are: column v = token * 1000 + v. */
#ifndef MR_TESTS_FAKE_WORKER_H
#define MR_TESTS_FAKE_WORKER_H
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/fabric.h"
#include "common/net/frames.h"
#include "common/net/session.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FAKE_VOCAB = 700, FAKE_COLUMNS = 704, FAKE_BLOCKS = 64, FAKE_CONTEXT = 512 };

typedef struct {
    /* set before the start, or by the test's thread at any time; counted from 1, 0: never */
    atomic_uint error_at, silent_at, hang_up_at, garbage_at, delay_ms;
    atomic_int error_status;    /* of error_at and rows_lost; 0: UNAVAILABLE */
    atomic_bool mute;           /* as if it were stopped */
    atomic_bool hang_up_always; /* at every step */
    atomic_bool rows_lost;      /* steps fail; those that may degrade go through, and say so */
    atomic_uint owner_epoch;    /* steps of a lower one are stale */
    atomic_bool drafts_fail;    /* steps with drafted tokens do, with error_status */
    atomic_bool says_too_much;  /* one SAMPLED more than it should */
    atomic_uint version;        /* of the wire, the highest it speaks; 0: this build's */
    atomic_uint drafted;        /* tokens so far */
    atomic_uint stages;         /* what it says of itself */
    atomic_uint lag;            /* so many steps are done before the first is answered */
    atomic_uint most_out;       /* steps in its hands at a time */
    atomic_uint steps, wrong;   /* wrong: steps that broke the rules */
    atomic_uint largest_batch;
    atomic_bool stop;
    pthread_t thread;
    int fd, listen_fd; /* one of them is -1 */
    int32_t cache[FAKE_BLOCKS][MR_KV_BLOCK_TOKENS];
} fake_worker;

static inline int32_t *fake_slot(fake_worker *w, const uint32_t *blocks, uint32_t position) {
    const uint32_t block = blocks[position / MR_KV_BLOCK_TOKENS];
    if (block >= FAKE_BLOCKS) abort();
    return &w->cache[block][position % MR_KV_BLOCK_TOKENS];
}

static inline void fake_logits(mr_link *link, uint64_t request, const mr_wire_sequence *s,
                               uint32_t position, int32_t token) {
    const mr_wire_header header = {.type = MR_FRAME_LOGITS, .request = request};
    for (uint32_t first = 0; first < FAKE_COLUMNS; first += FAKE_COLUMNS / 2) {
        const uint32_t columns = FAKE_COLUMNS / 2;
        uint8_t *room = mr_link_begin(link, &header,
                                      (uint32_t)(sizeof(mr_wire_logits) + columns * sizeof(float)));
        if (!room) return;
        const mr_wire_logits fixed = {s->id, position, first, columns, 0};
        memcpy(room, &fixed, sizeof(fixed));
        for (uint32_t v = 0; v < columns; v++) {
            const float value = (float)token * 1000.0f + (float)(first + v);
            memcpy(room + sizeof(fixed) + v * sizeof(float), &value, sizeof(value));
        }
        mr_link_end(link);
    }
}

static inline void fake_say(mr_link *link, uint64_t request, const mr_wire_sequence *s,
                            int32_t token, uint32_t flags) {
    const mr_wire_header header = {.type = MR_FRAME_SAMPLED, .request = request};
    uint8_t room[sizeof(mr_wire_sampled) + MR_MAX_LOGPROBS * sizeof(mr_wire_logprob)];
    const mr_wire_sampled fixed = {s->id, token, -0.5f, s->logprobs, flags};
    memcpy(room, &fixed, sizeof(fixed));
    for (uint32_t i = 0; i < s->logprobs; i++) {
        const mr_wire_logprob top = {(token + (int32_t)i) % FAKE_VOCAB, -0.5f - (float)i};
        memcpy(room + sizeof(fixed) + i * sizeof(top), &top, sizeof(top));
    }
    mr_link_send(link, &header, room,
                 (uint32_t)(sizeof(fixed) + s->logprobs * sizeof(mr_wire_logprob)));
}

/* tokens: of the sequence in this step. */
static inline void fake_sample(fake_worker *w, mr_link *link, uint64_t request,
                               const mr_wire_sequence *s, const int32_t *tokens,
                               const uint32_t *blocks, uint32_t flags) {
    const uint32_t first = s->token_count - s->drafted;              /* drafted token */
    const uint32_t known = s->position + first - s->output_position; /* the prompt's */
    int32_t token = 0;
    for (uint32_t i = 0; i <= s->drafted; i++) {
        const uint32_t at = s->output_position + i + s->choice + (uint32_t)(s->seed % 1000);
        token = *fake_slot(w, blocks, at % known);
        fake_say(link, request, s, token, flags);
        if (i < s->drafted && tokens[first + i] != token) break;
    }
    if (w->says_too_much) fake_say(link, request, s, token, flags);
}

static inline void fake_step(fake_worker *w, mr_link *link, const mr_frame *frame) {
    mr_step_view step;
    mr_err err;
    const uint64_t request = frame->header->request;
    const uint32_t number = atomic_fetch_add(&w->steps, 1) + 1;
    if (mr_step_check(&step, frame, &err) != MR_OK) {
        atomic_fetch_add(&w->wrong, 1);
        mr_link_send_error(link, request, MR_ERR_FORMAT, err.text);
        return;
    }
    if (number == w->silent_at) return;
    if (frame->header->epoch < w->owner_epoch) {
        mr_link_send_error(link, request, MR_ERR_STALE, "another coordinator owns this group");
        return;
    }
    const uint32_t flags =
        w->rows_lost && (step.flags & MR_STEP_MAY_DEGRADE) ? MR_SAMPLED_DEGRADED : 0;
    uint32_t drafted = 0;
    for (uint32_t i = 0; i < step.sequence_count; i++) drafted += step.sequences[i].drafted;
    atomic_fetch_add(&w->drafted, drafted);
    if ((drafted > 0 && w->drafts_fail) || number == w->error_at || (w->rows_lost && flags == 0)) {
        mr_link_send_error(link, request, w->error_status ? w->error_status : MR_ERR_UNAVAILABLE,
                           "memshard 1 of 2 is gone");
        return;
    }
    if (number == w->garbage_at) {
        const mr_wire_header header = {.type = MR_FRAME_POOLED, .request = request};
        mr_link_send(link, &header, "12345678", 8);
        return;
    }
    if (w->delay_ms) usleep(w->delay_ms * 1000);
    if (step.sequence_count > w->largest_batch) w->largest_batch = step.sequence_count;
    const int32_t *tokens = step.tokens;
    const uint32_t *blocks = step.blocks;
    for (uint32_t i = 0; i < step.sequence_count; i++) {
        const mr_wire_sequence *s = &step.sequences[i];
        for (uint32_t t = 0; t < s->token_count; t++) {
            *fake_slot(w, blocks, s->position + t) = tokens[t];
            if (s->flags & MR_SEQUENCE_LOGITS)
                fake_logits(link, request, s, s->position + t, tokens[t]);
        }
        if (s->flags & MR_SEQUENCE_SAMPLE) fake_sample(w, link, request, s, tokens, blocks, flags);
        tokens += s->token_count;
        blocks += s->block_count;
    }
    const mr_wire_header header = {.type = MR_FRAME_DONE, .request = request};
    const mr_wire_done done = {1000, 10, 20, 30};
    mr_link_send(link, &header, &done, sizeof(done));
}

/* Until the other side hangs up, the script says so, or stop. */
static inline void fake_serve(fake_worker *w, int fd) {
    const mr_wire_worker_info info = {.vocab_size = FAKE_VOCAB,
                                      .logit_columns = FAKE_COLUMNS,
                                      .context_tokens = FAKE_CONTEXT,
                                      .kv_blocks = FAKE_BLOCKS,
                                      .kv_block_tokens = MR_KV_BLOCK_TOKENS,
                                      .step_tokens_max = 64,
                                      .step_sequences_max = 8,
                                      .stages = (uint16_t)w->stages};
    const mr_session_offer offer = {.version_min = w->version ? MR_WIRE_VERSION_MIN : 0,
                                    .version_max = (uint16_t)w->version,
                                    .role = MR_ROLE_WORKER,
                                    .tail = &info,
                                    .tail_bytes = sizeof(info)};
    mr_link *link = mr_link_from_fd(fd, "fake coordinator");
    mr_frame frame;
    mr_err err;
    uint32_t unanswered = 0;
    bool has_waited = false;
    while (!w->stop) {
        const mr_status status = mr_link_receive(link, &frame, &err);
        if (status == MR_ERR_AGAIN) {
            if (unanswered > 0 && !has_waited) { /* maybe more steps come */
                usleep(2000);
                has_waited = true;
                continue;
            }
            has_waited = false;
            unanswered = 0;
            if (mr_link_flush(link, &err) == MR_ERR_IO) break;
            mr_links_wait(&link, 1, mr_now_ns() + 20000000);
            continue;
        }
        if (status != MR_OK) break;
        const mr_wire_header pong = {.type = MR_FRAME_PONG, .request = frame.header->request};
        if (w->mute) continue;
        if (frame.header->type == MR_FRAME_PING) mr_link_send(link, &pong, NULL, 0);
        if (frame.header->type == MR_FRAME_HELLO)
            mr_session_answer(link, &frame, &offer, &err);
        else if (frame.header->type == MR_FRAME_STEP) {
            if (w->hang_up_always || (w->hang_up_at && w->steps + 1 == w->hang_up_at)) {
                atomic_fetch_add(&w->steps, 1);
                break;
            }
            fake_step(w, link, &frame);
            unanswered++;
            has_waited = false;
            if (unanswered > w->most_out) w->most_out = unanswered;
            if (unanswered <= w->lag) continue;
        }
        unanswered = 0;
        mr_link_flush(link, &err);
    }
    mr_link_close(link);
}

static inline void *fake_run(void *context) {
    fake_worker *w = context;
    if (w->fd >= 0) fake_serve(w, w->fd);
    while (w->listen_fd >= 0 && !w->stop) {
        const int fd = accept(w->listen_fd, NULL, NULL);
        if (fd < 0) break;
        fake_serve(w, fd);
    }
    return NULL;
}

static inline fake_worker *fake_worker_new(void) {
    fake_worker *w = mr_alloc(sizeof(*w));
    w->fd = w->listen_fd = -1;
    return w;
}

/* Starts it behind a socket pair; the link is for the core. */
static inline mr_link *fake_worker_start(fake_worker *w) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) abort();
    w->fd = pair[0];
    if (pthread_create(&w->thread, NULL, fake_run, w) != 0) abort();
    return mr_link_from_fd(pair[1], "fake worker");
}

/* Starts it behind a Unix socket at path. */
static inline void fake_worker_listen(fake_worker *w, const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    unlink(path);
    w->listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(w->listen_fd, (struct sockaddr *)&address, sizeof(address)) != 0) abort();
    if (listen(w->listen_fd, 8) != 0) abort();
    if (pthread_create(&w->thread, NULL, fake_run, w) != 0) abort();
}

static inline void fake_worker_stop(fake_worker *w) {
    w->stop = true;
    if (w->listen_fd >= 0) shutdown(w->listen_fd, SHUT_RDWR);
    pthread_join(w->thread, NULL);
    if (w->listen_fd >= 0) close(w->listen_fd);
    free(w);
}

#endif
