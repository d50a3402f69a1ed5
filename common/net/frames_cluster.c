/* frames_cluster.c - layout and checks of the frames that came with version 2: scoring at the
 * shard, prefetching, hidden states between stages, echoes. See frames.h; the order of checks is
 * that of frames.c. */
#include "common/net/frames.h"

#include "common/base/limits.h"

#include <math.h>

static mr_status cut_short(const char *what, size_t have, mr_err *err) {
    return mr_fail(err, MR_ERR_FORMAT, "%s of %zu bytes is cut short", what, have);
}

static mr_status wrong_size(const char *what, uint64_t need, size_t have, mr_err *err) {
    return mr_fail(err, MR_ERR_FORMAT, "%s of %zu bytes; its counts make it %llu", what, have,
                   (unsigned long long)need);
}

static bool all_finite(const float *value, size_t count) {
    bool good = true;
    for (size_t i = 0; i < count; i++) good &= isfinite(value[i]) != 0;
    return good;
}

/* Notes where an array begins, then steps over it and its padding. */
static void place(uint32_t *offset, uint64_t *at, uint64_t count, uint32_t element_bytes) {
    *offset = *at > UINT32_MAX ? 0 : (uint32_t)*at;
    *at = (*at + count * element_bytes + 7) & ~7ull;
}

static mr_status check_frame_bytes(const char *what, uint64_t bytes, mr_err *err) {
    if (bytes <= MR_MAX_FRAME_BYTES) return MR_OK;
    return mr_fail(err, MR_ERR_LIMIT, "%s of %llu bytes; a frame has at most %d", what,
                   (unsigned long long)bytes, MR_MAX_FRAME_BYTES);
}

mr_status mr_echo_check(const mr_wire_echo **out, const mr_frame *frame, mr_err *err) {
    const mr_wire_echo *echo = (const void *)frame->payload;
    *out = NULL;
    if (frame->header->payload_bytes < sizeof(*echo))
        return cut_short("an ECHO", frame->header->payload_bytes, err);
    if (echo->reply_bytes > MR_MAX_FRAME_BYTES || echo->reserved != 0)
        return mr_fail(err, MR_ERR_LIMIT, "an ECHO that wants %u bytes back; at most %d",
                       echo->reply_bytes, MR_MAX_FRAME_BYTES);
    *out = echo;
    return MR_OK;
}

/* --- scoring at the shard --------------------------------------------------------------------- */

mr_status mr_topk_lay_out(mr_topk_layout *out, const mr_wire_topk *f, mr_err *err) {
    *out = (mr_topk_layout){0};
    if (f->tokens == 0 || f->tokens > MR_MAX_STEP_TOKENS)
        return mr_fail(err, MR_ERR_LIMIT, "a TOPK of %u tokens; 1 to %d are taken", f->tokens,
                       MR_MAX_STEP_TOKENS);
    if (f->layer >= MR_MAX_LAYERS || f->cell >= MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_RANGE, "a TOPK for layer %u and cell %u", f->layer, f->cell);
    if (f->wants != MR_TOPK_IDS && f->wants != MR_TOPK_POOLED)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a TOPK that wants %u: 1 is ids, 2 sums", f->wants);
    const bool pools = f->wants == MR_TOPK_POOLED;
    if (pools ? f->accumulator_bits != 32 && f->accumulator_bits != 64 : f->accumulator_bits != 0)
        return mr_fail(err, MR_ERR_RANGE, "a TOPK with sums of %u bits", f->accumulator_bits);
    if (f->query_columns == 0 || f->query_columns > MR_MAX_D_MODEL ||
        f->x_columns > MR_MAX_D_MODEL || (!pools && f->x_columns != 0))
        return mr_fail(err, MR_ERR_LIMIT, "a TOPK with queries of %u columns and x of %u",
                       f->query_columns, f->x_columns);
    if (f->reserved[0] != 0 || f->reserved[1] != 0)
        return mr_fail(err, MR_ERR_FORMAT, "a TOPK whose reserved bytes are not zero");
    mr_topk_layout to = {0};
    uint64_t at = sizeof(*f);
    place(&to.query, &at, (uint64_t)f->tokens * f->query_columns, sizeof(float));
    if (f->x_columns > 0) place(&to.x, &at, (uint64_t)f->tokens * f->x_columns, sizeof(float));
    const mr_status status = check_frame_bytes("a TOPK", at, err);
    if (status != MR_OK) return status;
    to.bytes = (uint32_t)at;
    *out = to;
    return MR_OK;
}

mr_status mr_topk_check(mr_topk_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_topk *f = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    mr_topk_layout at;
    *out = (mr_topk_view){0};
    if (have < sizeof(*f)) return cut_short("a TOPK", have, err);
    const mr_status status = mr_topk_lay_out(&at, f, err);
    if (status != MR_OK) return status;
    if (at.bytes != have) return wrong_size("a TOPK", at.bytes, have, err);
    const float *query = (const void *)(frame->payload + at.query);
    const float *x = at.x ? (const void *)(frame->payload + at.x) : NULL;
    if (!all_finite(query, (size_t)f->tokens * f->query_columns) ||
        (x && !all_finite(x, (size_t)f->tokens * f->x_columns)))
        return mr_fail(err, MR_ERR_RANGE, "a TOPK with a query or x that is not finite");
    *out = (mr_topk_view){f, query, x};
    return MR_OK;
}

mr_status mr_chosen_lay_out(mr_topk_answer_layout *out, uint32_t tokens, uint32_t entries,
                            uint32_t cores, uint32_t slots, mr_err *err) {
    const uint64_t all = (uint64_t)tokens * entries;
    mr_topk_answer_layout to = {0};
    uint64_t at = 0;
    place(&to.row, &at, all, sizeof(uint32_t));
    if (slots > 1) place(&to.slot, &at, all, sizeof(uint8_t));
    place(&to.score, &at, all * cores, sizeof(float));
    place(&to.index, &at, all, sizeof(uint32_t));
    *out = (mr_topk_answer_layout){0};
    const mr_status status = check_frame_bytes("a CHOSEN", at, err);
    if (status != MR_OK) return status;
    to.bytes = (uint32_t)at;
    *out = to;
    return MR_OK;
}

mr_status mr_topk_pooled_lay_out(mr_topk_answer_layout *out, const mr_wire_topk *fixed,
                                 uint32_t slots, uint32_t columns, mr_err *err) {
    mr_topk_answer_layout to = {0};
    uint32_t sums;
    uint64_t at = 0;
    place(&sums, &at, (uint64_t)fixed->tokens * slots * columns, fixed->accumulator_bits / 8u);
    place(&to.value_exponent, &at, fixed->tokens, sizeof(int16_t));
    *out = (mr_topk_answer_layout){0};
    const mr_status status = check_frame_bytes("the answer to a TOPK", at, err);
    if (status != MR_OK) return status;
    to.bytes = (uint32_t)at;
    *out = to;
    return MR_OK;
}

mr_status mr_prefetch_check(mr_prefetch_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_prefetch *f = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    *out = (mr_prefetch_view){0};
    if (have < sizeof(*f)) return cut_short("a PREFETCH", have, err);
    const uint64_t need = sizeof(*f) + (((uint64_t)f->rows * sizeof(uint32_t) + 7) & ~7ull);
    if (need != have) return wrong_size("a PREFETCH", need, have, err);
    if (f->layer >= MR_MAX_LAYERS || f->cell >= MR_MAX_CELLS || f->reserved != 0)
        return mr_fail(err, MR_ERR_RANGE, "a PREFETCH for layer %u and cell %u", f->layer, f->cell);
    *out = (mr_prefetch_view){f, (const void *)(f + 1)};
    return MR_OK;
}

/* --- between stages --------------------------------------------------------------------------- */

mr_status mr_hidden_check(mr_hidden_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_hidden *f = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    *out = (mr_hidden_view){0};
    if (have < sizeof(*f)) return cut_short("a HIDDEN", have, err);
    if (f->kind > MR_HIDDEN_PENDING || f->kinds > 3 || !(f->kinds & (1u << f->kind)))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a HIDDEN of kind %u among %x", f->kind, f->kinds);
    if (f->tokens == 0 || (uint64_t)f->token_first + f->tokens > MR_MAX_STEP_TOKENS ||
        f->columns == 0 || f->columns > MR_MAX_D_MODEL)
        return mr_fail(err, MR_ERR_RANGE, "a HIDDEN of %u tokens from %u with %u columns",
                       f->tokens, f->token_first, f->columns);
    if (f->layer < -1 || f->layer >= MR_MAX_LAYERS || f->block >= MR_MAX_LAYERS ||
        (f->kind == MR_HIDDEN_PENDING) != (f->layer >= 0))
        return mr_fail(err, MR_ERR_RANGE, "a HIDDEN of kind %u for memory layer %d, block %u",
                       f->kind, f->layer, f->block);
    const uint64_t need = sizeof(*f) + (uint64_t)f->tokens * f->columns * sizeof(float);
    if (need != have) return wrong_size("a HIDDEN", need, have, err);
    const float *values = (const void *)(f + 1);
    if (!all_finite(values, (size_t)f->tokens * f->columns))
        return mr_fail(err, MR_ERR_RANGE, "a HIDDEN with a value that is not finite");
    *out = (mr_hidden_view){f, values};
    return MR_OK;
}
