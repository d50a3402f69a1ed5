/* retrieval_answer.c - what is answered: frames checked and added up.
 *
 * An answer is believed only if a peer still owes it and it has the type and size that were asked
 * for. Three kinds of failure: the request's own (any replica would refuse it: the retrieval ends),
 * the peer's for this cell (another replica is asked), and the link's (the peer is lost). */
#include "worker/retrieval_impl.h"

#include "common/base/clock.h"
#include "common/net/frames.h"

#include <string.h>

enum { QUEUE_SHARE = 4 };

void mr_retrieval_fail(mr_retrieval *r, mr_status status, const mr_err *why) {
    if (r->failure != MR_OK) return;
    r->failure = status;
    r->why = *why;
}

static void blame(mr_retrieval *r, const mr_peer *peer, mr_status status, mr_err *err) {
    char name[MR_ERR_TEXT_BYTES];
    mr_fail_prefix(err, status, "%s (memory layer %u)", mr_peer_name(peer, name), r->q.layer);
    mr_retrieval_fail(r, status, err);
}

/* --- sums ------------------------------------------------------------------------------------- */

static void add_pooled(mr_retrieval *r, const mr_ask *a, const uint8_t *payload) {
    const mr_span columns = mr_part_columns(r, a->cell, r->q.width);
    const uint32_t rows = a->tokens * r->q.slots;
    const uint32_t n = (uint32_t)columns.count;
    for (uint32_t i = 0; i < rows; i++) {
        int64_t *out =
            r->acc + ((size_t)a->token_first * r->q.slots + i) * r->q.width + columns.first;
        if (r->q.accumulator_bits == 32) {
            const int32_t *in = (const int32_t *)(const void *)payload + (size_t)i * n;
            for (uint32_t c = 0; c < n; c++) out[c] += in[c];
        } else {
            const int64_t *in = (const int64_t *)(const void *)payload + (size_t)i * n;
            for (uint32_t c = 0; c < n; c++) out[c] = (int64_t)((uint64_t)out[c] + (uint64_t)in[c]);
        }
    }
}

static void add_dots(mr_retrieval *r, const mr_ask *a, const uint8_t *payload) {
    const mr_part part = mr_part_of(r, a->cell);
    const int64_t *in = (const int64_t *)(const void *)payload;
    const size_t first = (size_t)a->token_first * r->q.entries;
    const size_t end = first + (size_t)a->tokens * r->q.entries;
    for (size_t j = first; j < end; j++)
        if (r->q.row[j] - part.rows.first < part.rows.count)
            r->dots[j] = (int64_t)((uint64_t)r->dots[j] + (uint64_t)*in++);
}

/* Every shard derives the exponents from the same queries and keys: one that does not agree with
 * the others has other keys. */
static mr_status take_exponents(mr_retrieval *r, const mr_ask *a, const uint8_t *payload,
                                mr_err *err) {
    const uint32_t bytes = (a->tokens * (uint32_t)sizeof(int16_t) + 7) & ~7u;
    const int16_t *exponent = (const int16_t *)(const void *)(payload + a->answer_bytes - bytes);
    for (uint32_t t = 0; t < a->tokens; t++) {
        const uint32_t at = a->token_first + t;
        if (exponent[t] < MR_WIRE_EXPONENT_MIN || exponent[t] > MR_WIRE_EXPONENT_MAX)
            return mr_fail(err, MR_ERR_FORMAT, "answered an exponent of %d", exponent[t]);
        if (r->is_exponent_known[at] && r->exponent[at] != exponent[t])
            return mr_fail(err, MR_ERR_MISMATCH,
                           "derives exponent %d for token %u of cell %u, another memshard %d: they "
                           "hold different keys",
                           exponent[t], at, a->cell, r->exponent[at]);
        r->exponent[at] = exponent[t];
        r->is_exponent_known[at] = true;
    }
    return MR_OK;
}

/* --- failures --------------------------------------------------------------------------------- */

/* Whether another replica may do better. */
static bool is_of_the_peer(mr_status status) {
    switch (status) {
    case MR_ERR_STALE:
    case MR_ERR_UNAVAILABLE:
    case MR_ERR_LIMIT:
    case MR_ERR_NOMEM:
    case MR_ERR_TIMEOUT:
    case MR_ERR_IO:
    case MR_ERR_CANCELLED:
    case MR_ERR_AGAIN:
        return true;
    default:
        return false;
    }
}

static void refuse_replica(mr_retrieval *r, mr_ask *a, const mr_peer *peer) {
    mr_peer **all = mr_replicas_of(r, a->cell);
    for (uint32_t i = 0; i < mr_replica_count(r, a->cell); i++)
        if (all[i] == peer) a->refused |= (uint16_t)(1u << i);
    if (a->attempt_count == 0 && !a->is_stranded) mr_ask_strand(r, a);
}

static void take_error(mr_retrieval *r, mr_peer *peer, mr_ask *a, const mr_frame *frame) {
    mr_err err;
    const mr_status status = mr_frame_error(frame, &err);
    peer->why = err;
    if (!is_of_the_peer(status)) {
        blame(r, peer, status, &err);
        return;
    }
    if (status == MR_ERR_STALE)
        a->is_stale = true;
    else
        mr_peer_failed(peer, mr_now_ns(), mr_retrieval_chance(r));
    refuse_replica(r, a, peer);
}

/* Something no honest memshard sends: whatever else it says is not believed either. */
static void take_garbage(mr_retrieval *r, mr_peer *peer, mr_ask *a, const mr_err *err) {
    refuse_replica(r, a, peer);
    mr_peer_lose(r, peer, err);
}

/* --- one frame -------------------------------------------------------------------------------- */

static void note_queue(mr_peer *peer, const mr_frame *frame) {
    if (peer->version < 2) return;
    const int64_t now_us = frame->header->budget_us, mean = peer->queue_us;
    peer->queue_us = (uint32_t)(mean + (now_us - mean) / QUEUE_SHARE);
}

static void take_answer(mr_retrieval *r, mr_peer *peer, mr_ask *a, const mr_attempt *attempt,
                        const mr_frame *frame) {
    const int64_t now = mr_now_ns(), took = now - attempt->sent_ns;
    mr_err err;
    mr_status status = mr_answer_check(frame, a->answer_type, a->answer_bytes, &err);
    if (status != MR_OK) {
        take_garbage(r, peer, a, &err);
        return;
    }
    if (a->mode == MR_ASK_TOPK) status = take_exponents(r, a, frame->payload, &err);
    if (status == MR_ERR_FORMAT) {
        take_garbage(r, peer, a, &err);
        return;
    }
    if (status != MR_OK) {
        blame(r, peer, status, &err);
        return;
    }
    if (a->answer_type == MR_FRAME_DOTS)
        add_dots(r, a, frame->payload);
    else
        add_pooled(r, a, frame->payload);
    mr_peer_answered(peer, attempt->work_bytes, took, now, !r->was_blind);
    note_queue(peer, frame);
    r->answers_taken++;
    mr_ask_close(r, a);
}

static void take_refusal(mr_retrieval *r, mr_peer *peer, const mr_frame *frame) {
    mr_err err;
    mr_frame_error(frame, &err);
    mr_peer_lose(r, peer, &err);
}

void mr_answer_take(mr_retrieval *r, mr_peer *peer, const mr_frame *frame) {
    const uint64_t request = frame->header->request, index = request - r->first_request;
    mr_attempt attempt;
    peer->is_heard = true;
    peer->silent_ns = 0;
    if (frame->header->type == MR_FRAME_REFUSE) {
        take_refusal(r, peer, frame);
        return;
    }
    if (frame->header->type == MR_FRAME_PONG) {
        peer->ping_ns = 0;
        return;
    }
    if (request & MR_REQUEST_FETCH) {
        mr_cache_take(r, peer, frame);
        return;
    }
    /* late: of a retrieval that was given up, or of an ask that another replica answered */
    if (request < r->first_request || index >= r->ask_count || !r->asks[index].is_open) return;
    mr_ask *a = &r->asks[index];
    if (!mr_ask_withdraw(r, a, peer, &attempt)) return;
    if (frame->header->type == MR_FRAME_ERROR)
        take_error(r, peer, a, frame);
    else
        take_answer(r, peer, a, &attempt, frame);
}
