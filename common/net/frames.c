/* frames.c - checks of headers, sessions and steps; retrieval has a file of its own
 * (frames_retrieve.c). See frames.h.
 *
 * The order is always the same: the fixed part is there, its counts give a size (in 64 bits, where
 * no product of two 32-bit counts can overflow), the size is the payload's, and only then is
 * anything behind the fixed part read. */
#include "common/net/frames.h"

#include "common/base/limits.h"

#include <math.h>
#include <string.h>

const char *mr_frame_name(uint16_t type) {
    static const char *const names[] = {
        [MR_FRAME_HELLO] = "HELLO",       [MR_FRAME_WELCOME] = "WELCOME",
        [MR_FRAME_REFUSE] = "REFUSE",     [MR_FRAME_PING] = "PING",
        [MR_FRAME_PONG] = "PONG",         [MR_FRAME_ERROR] = "ERROR",
        [MR_FRAME_ECHO] = "ECHO",         [MR_FRAME_ECHOED] = "ECHOED",
        [MR_FRAME_RETRIEVE] = "RETRIEVE", [MR_FRAME_POOLED] = "POOLED",
        [MR_FRAME_DOTS] = "DOTS",         [MR_FRAME_ROWS] = "ROWS",
        [MR_FRAME_TOPK] = "TOPK",         [MR_FRAME_CHOSEN] = "CHOSEN",
        [MR_FRAME_CANCEL] = "CANCEL",     [MR_FRAME_PREFETCH] = "PREFETCH",
        [MR_FRAME_STEP] = "STEP",         [MR_FRAME_SAMPLED] = "SAMPLED",
        [MR_FRAME_LOGITS] = "LOGITS",     [MR_FRAME_DONE] = "DONE",
        [MR_FRAME_STAGE] = "STAGE",       [MR_FRAME_HIDDEN] = "HIDDEN",
    };
    const char *name = type < sizeof(names) / sizeof(names[0]) ? names[type] : NULL;
    return name ? name : "unknown";
}

uint16_t mr_frame_version(uint16_t type) {
    const bool is_new = type == MR_FRAME_ECHO || type == MR_FRAME_ECHOED ||
                        (type >= MR_FRAME_TOPK && type <= MR_FRAME_PREFETCH) ||
                        type == MR_FRAME_STAGE || type == MR_FRAME_HIDDEN;
    return is_new ? 2 : 1;
}

static bool is_known(uint16_t type) {
    return strcmp(mr_frame_name(type), "unknown") != 0;
}

static bool is_zero(const uint8_t *bytes, size_t count) {
    uint8_t all = 0;
    for (size_t i = 0; i < count; i++) all |= bytes[i];
    return all == 0;
}

static mr_status check_version(const mr_wire_header *header, uint16_t version, mr_err *err) {
    if (header->type == MR_FRAME_HELLO || header->type == MR_FRAME_REFUSE) {
        if (header->version > 0) return MR_OK;
        return mr_fail(err, MR_ERR_FORMAT, "a frame of version 0: versions begin at 1");
    }
    if (version != 0 && header->version != version)
        return mr_fail(err, MR_ERR_FORMAT, "a frame of version %u in a session of version %u",
                       header->version, version);
    if (header->version < MR_WIRE_VERSION_MIN || header->version > MR_WIRE_VERSION)
        return mr_fail(err, MR_ERR_FORMAT, "a frame of version %u; this build speaks %d to %d",
                       header->version, MR_WIRE_VERSION_MIN, MR_WIRE_VERSION);
    return MR_OK;
}

mr_status mr_frame_check_header(const mr_wire_header *header, uint16_t version, mr_err *err) {
    if (header->magic != MR_WIRE_MAGIC)
        return mr_fail(err, MR_ERR_FORMAT, "not a Memrack frame: it starts with %08x, not %08x",
                       header->magic, (unsigned)MR_WIRE_MAGIC);
    if (!is_known(header->type))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a frame of unknown type %u", header->type);
    const mr_status status = check_version(header, version, err);
    if (status != MR_OK) return status;
    if (header->version < mr_frame_version(header->type))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a %s frame in a session of version %u",
                       mr_frame_name(header->type), header->version);
    if (header->payload_bytes > MR_MAX_FRAME_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "a %s frame of %u bytes; %d is the most",
                       mr_frame_name(header->type), header->payload_bytes, MR_MAX_FRAME_BYTES);
    const bool has_mac = header->flags & MR_FRAME_HAS_MAC;
    if (has_mac && header->version < 2)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a %s frame with a MAC: version %u has no keys",
                       mr_frame_name(header->type), header->version);
    if (header->flags & ~(uint32_t)MR_FRAME_HAS_MAC)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a %s frame with unknown flags %x",
                       mr_frame_name(header->type), header->flags);
    if (header->reserved != 0 || (!has_mac && !is_zero(header->mac, sizeof(header->mac))))
        return mr_fail(err, MR_ERR_FORMAT, "a %s frame whose reserved bytes are not zero",
                       mr_frame_name(header->type));
    if (header->status > 0 || header->status < MR_ERR_STALE)
        return mr_fail(err, MR_ERR_FORMAT, "a %s frame with the unknown status %d",
                       mr_frame_name(header->type), header->status);
    return MR_OK;
}

/* The size must be exactly what the counts say. */
static mr_status check_bytes(const char *what, uint64_t need, size_t have, mr_err *err) {
    if (need == have) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "%s of %zu bytes; its counts make it %llu", what, have,
                   (unsigned long long)need);
}

static mr_status check_fixed(const char *what, size_t need, size_t have, mr_err *err) {
    if (have >= need) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "%s of %zu bytes is cut short: its fixed part has %zu", what,
                   have, need);
}

/* --- sessions --------------------------------------------------------------------------------- */

mr_status mr_hello_check(const mr_wire_hello **out, const mr_frame *frame, mr_err *err) {
    const mr_wire_hello *hello = (const void *)frame->payload;
    *out = NULL;
    const mr_status status =
        check_bytes("a HELLO", sizeof(*hello), frame->header->payload_bytes, err);
    if (status != MR_OK) return status;
    if (hello->version_min == 0 || hello->version_min > hello->version_max)
        return mr_fail(err, MR_ERR_FORMAT, "a HELLO with versions from %u to %u",
                       hello->version_min, hello->version_max);
    if (hello->role < MR_ROLE_CLIENT || hello->role > MR_ROLE_MEMSHARD ||
        hello->role_wanted < MR_ROLE_CLIENT || hello->role_wanted > MR_ROLE_MEMSHARD)
        return mr_fail(err, MR_ERR_FORMAT, "a HELLO from role %u to role %u: roles are 1 to 4",
                       hello->role, hello->role_wanted);
    /* A later version may give further flags a meaning: only one that speaks no more than we do
     * must not set them. */
    const uint32_t known = hello->version_max >= 2 ? MR_HELLO_KEYED : 0;
    if (hello->version_max <= MR_WIRE_VERSION &&
        ((hello->flags & ~known) ||
         (!(hello->flags & MR_HELLO_KEYED) && !is_zero(hello->nonce, sizeof(hello->nonce)))))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "a HELLO with flags %x or a nonce that version %u does not have",
                       hello->flags, hello->version_max);
    if (hello->version_max <= MR_WIRE_VERSION &&
        !(hello->flags & MR_HELLO_KEYED) != !(frame->header->flags & MR_FRAME_HAS_MAC))
        return mr_fail(err, MR_ERR_FORMAT, "a HELLO that is keyed without a MAC, or the reverse");
    *out = hello;
    return MR_OK;
}

static mr_status check_cells(const mr_wire_welcome *w, const mr_wire_cell *cells, mr_err *err) {
    const uint64_t all = (uint64_t)w->grid_rows * w->grid_columns;
    if (all == 0 || all > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_RANGE, "a WELCOME with a grid of %ux%u", w->grid_rows,
                       w->grid_columns);
    for (uint32_t i = 0; i < w->cell_count; i++)
        if (cells[i].cell >= all || (i > 0 && cells[i].cell <= cells[i - 1].cell))
            return mr_fail(err, MR_ERR_RANGE,
                           "a WELCOME whose cell %u is %u: cells ascend and lie below %llu", i,
                           cells[i].cell, (unsigned long long)all);
    return MR_OK;
}

mr_status mr_welcome_check(mr_welcome_view *out, const void *payload, size_t bytes, mr_err *err) {
    const mr_wire_welcome *w = payload;
    *out = (mr_welcome_view){0};
    mr_status status = check_fixed("a WELCOME", sizeof(*w), bytes, err);
    if (status != MR_OK) return status;
    const bool is_worker = w->role == MR_ROLE_WORKER;
    if (w->cell_count > MR_MAX_CELLS || (w->cell_count > 0 && w->role != MR_ROLE_MEMSHARD))
        return mr_fail(err, MR_ERR_RANGE, "a WELCOME from role %u with %u cells", w->role,
                       w->cell_count);
    status = check_bytes("a WELCOME",
                         sizeof(*w) + (is_worker ? sizeof(mr_wire_worker_info) : 0) +
                             (uint64_t)w->cell_count * sizeof(mr_wire_cell),
                         bytes, err);
    if (status != MR_OK) return status;
    if (w->reserved != 0 || (w->version < 2 && !is_zero(w->nonce, sizeof(w->nonce))))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a WELCOME whose reserved bytes are not zero");
    const void *tail = w + 1;
    if (w->role == MR_ROLE_MEMSHARD) {
        status = check_cells(w, tail, err);
        if (status != MR_OK) return status;
        out->cells = tail;
    }
    if (is_worker) out->worker_info = tail;
    out->fixed = w;
    return MR_OK;
}

mr_status mr_frame_error(const mr_frame *frame, mr_err *err) {
    const uint32_t bytes = frame->header->payload_bytes;
    const mr_status status = (mr_status)frame->header->status;
    if (bytes == 0 || bytes >= MR_ERR_TEXT_BYTES || memchr(frame->payload, 0, bytes))
        return mr_fail(err, MR_ERR_FORMAT, "a %s frame of %u bytes that is no sentence",
                       mr_frame_name(frame->header->type), bytes);
    mr_fail(err, status, "%.*s", (int)bytes, (const char *)frame->payload);
    return status == MR_OK || status == MR_ERR_AGAIN ? MR_ERR_FORMAT : status;
}

/* --- steps ------------------------------------------------------------------------------------ */

mr_status mr_step_bytes(uint32_t *out, uint32_t sequences, uint32_t tokens, uint32_t blocks,
                        mr_err *err) {
    *out = 0;
    if (sequences == 0 || sequences > MR_MAX_STEP_SEQUENCES || tokens > MR_MAX_STEP_TOKENS)
        return mr_fail(err, MR_ERR_LIMIT, "a step of %u sequences and %u tokens; at most %d and %d",
                       sequences, tokens, MR_MAX_STEP_SEQUENCES, MR_MAX_STEP_TOKENS);
    const uint64_t bytes = sizeof(mr_wire_step) + (uint64_t)sequences * sizeof(mr_wire_sequence) +
                           (uint64_t)tokens * sizeof(int32_t) + (uint64_t)blocks * sizeof(uint32_t);
    if (bytes > MR_MAX_FRAME_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "a step of %llu bytes; a frame has at most %d",
                       (unsigned long long)bytes, MR_MAX_FRAME_BYTES);
    *out = (uint32_t)bytes;
    return MR_OK;
}

static bool is_fraction(float value) {
    return value >= 0 && value <= 1;
} /* false for NaN */

static mr_status check_drafted(const mr_wire_sequence *s, uint32_t index, uint16_t version,
                               mr_err *err) {
    if (s->drafted == 0) return MR_OK;
    if (version < 2 || !(s->flags & MR_SEQUENCE_SAMPLE))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "sequence %u of the step has %u drafted tokens %s",
                       index, s->drafted, version < 2 ? "in version 1" : "and samples nothing");
    if (s->drafted >= s->token_count || s->drafted > MR_MAX_DRAFT_TOKENS)
        return mr_fail(err, MR_ERR_RANGE,
                       "sequence %u of the step has %u drafted tokens of %u; at most %d", index,
                       s->drafted, s->token_count, MR_MAX_DRAFT_TOKENS);
    return MR_OK;
}

static mr_status check_sequence(const mr_wire_sequence *s, uint32_t index, uint16_t version,
                                mr_err *err) {
    const uint64_t end = (uint64_t)s->position + s->token_count;
    const uint64_t blocks = (end + MR_KV_BLOCK_TOKENS - 1) / MR_KV_BLOCK_TOKENS;
    if (s->token_count == 0 || end > MR_MAX_CONTEXT)
        return mr_fail(err, MR_ERR_RANGE, "sequence %u of the step has %u tokens from position %u",
                       index, s->token_count, s->position);
    if (s->block_count < blocks)
        return mr_fail(err, MR_ERR_RANGE, "sequence %u of the step has %u KV blocks and needs %llu",
                       index, s->block_count, (unsigned long long)blocks);
    if (s->flags & ~(uint32_t)(MR_SEQUENCE_SAMPLE | MR_SEQUENCE_LOGITS))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "sequence %u of the step has unknown flags %x",
                       index, s->flags);
    if (!(s->temperature >= 0) || isinf(s->temperature) || !is_fraction(s->top_p) ||
        !is_fraction(s->min_p))
        return mr_fail(err, MR_ERR_RANGE,
                       "sequence %u of the step has temperature %g, top_p %g, min_p %g", index,
                       (double)s->temperature, (double)s->top_p, (double)s->min_p);
    if (s->logprobs > MR_MAX_LOGPROBS)
        return mr_fail(err, MR_ERR_LIMIT,
                       "sequence %u of the step asks for %u logprobs; at most %d", index,
                       s->logprobs, MR_MAX_LOGPROBS);
    return check_drafted(s, index, version, err);
}

mr_status mr_step_check(mr_step_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_step *fixed = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    uint32_t need;
    *out = (mr_step_view){0};
    mr_status status = check_fixed("a STEP", sizeof(*fixed), have, err);
    if (status != MR_OK) return status;
    status = mr_step_bytes(&need, fixed->sequences, fixed->tokens, fixed->blocks, err);
    if (status != MR_OK) return status;
    status = check_bytes("a STEP", need, have, err);
    if (status != MR_OK) return status;
    const bool is_stage = frame->header->type == MR_FRAME_STAGE;
    const uint32_t known = MR_STEP_MAY_DEGRADE | (is_stage ? (uint32_t)MR_STEP_DEGRADED : 0u);
    if ((fixed->flags & ~known) || (frame->header->version < 2 && fixed->flags != 0))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a STEP with unknown flags %x", fixed->flags);

    const mr_wire_sequence *sequences = (const void *)(fixed + 1);
    uint64_t tokens = 0, blocks = 0;
    for (uint32_t i = 0; i < fixed->sequences; i++) {
        status = check_sequence(&sequences[i], i, frame->header->version, err);
        if (status != MR_OK) return status;
        tokens += sequences[i].token_count;
        blocks += sequences[i].block_count;
    }
    if (tokens != fixed->tokens || blocks != fixed->blocks)
        return mr_fail(err, MR_ERR_FORMAT,
                       "a STEP of %u tokens and %u blocks whose sequences have %llu and %llu",
                       fixed->tokens, fixed->blocks, (unsigned long long)tokens,
                       (unsigned long long)blocks);
    const int32_t *ids = (const void *)(sequences + fixed->sequences);
    *out = (mr_step_view){fixed->sequences,
                          fixed->tokens,
                          fixed->blocks,
                          fixed->flags,
                          sequences,
                          ids,
                          (const void *)(ids + fixed->tokens)};
    return MR_OK;
}

mr_status mr_sampled_check(mr_sampled_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_sampled *fixed = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    *out = (mr_sampled_view){0};
    mr_status status = check_fixed("a SAMPLED", sizeof(*fixed), have, err);
    if (status != MR_OK) return status;
    if (fixed->top_count > MR_MAX_LOGPROBS || (fixed->flags & ~(uint32_t)MR_SAMPLED_DEGRADED) ||
        (frame->header->version < 2 && fixed->flags != 0))
        return mr_fail(err, MR_ERR_FORMAT, "a SAMPLED with %u logprobs (at most %d) and flags %x",
                       fixed->top_count, MR_MAX_LOGPROBS, fixed->flags);
    status = check_bytes("a SAMPLED",
                         sizeof(*fixed) + (uint64_t)fixed->top_count * sizeof(mr_wire_logprob),
                         have, err);
    if (status != MR_OK) return status;
    const mr_wire_logprob *top = (const void *)(fixed + 1);
    bool bad = fixed->token < 0 || isnan(fixed->logprob);
    for (uint32_t i = 0; i < fixed->top_count; i++)
        bad |= top[i].token < 0 || isnan(top[i].logprob);
    if (bad)
        return mr_fail(err, MR_ERR_RANGE, "a SAMPLED with a negative token or a logprob of NaN");
    *out = (mr_sampled_view){fixed, top};
    return MR_OK;
}

uint32_t mr_logits_columns_max(void) {
    return (MR_MAX_FRAME_BYTES - (uint32_t)sizeof(mr_wire_logits)) / (uint32_t)sizeof(float);
}

mr_status mr_logits_check(mr_logits_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_logits *fixed = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    *out = (mr_logits_view){0};
    mr_status status = check_fixed("a LOGITS", sizeof(*fixed), have, err);
    if (status != MR_OK) return status;
    status = check_bytes("a LOGITS", sizeof(*fixed) + (uint64_t)fixed->columns * sizeof(float),
                         have, err);
    if (status != MR_OK) return status;
    const uint64_t end = (uint64_t)fixed->column_first + fixed->columns;
    if (fixed->reserved != 0 || end > 2ull * MR_MAX_VOCAB)
        return mr_fail(err, MR_ERR_RANGE, "a LOGITS of columns from %u to %llu",
                       fixed->column_first, (unsigned long long)end);
    *out = (mr_logits_view){fixed, (const void *)(fixed + 1)};
    return MR_OK;
}

mr_status mr_done_check(mr_done_view *out, const mr_frame *frame, mr_err *err) {
    const uint32_t have = frame->header->payload_bytes;
    const mr_wire_done *fixed = (const void *)frame->payload;
    *out = (mr_done_view){0};
    if (have == sizeof(*fixed) || frame->header->version < 2) { /* all there is in version 1 */
        const mr_status whole = check_bytes("a DONE", sizeof(*fixed), have, err);
        if (whole != MR_OK) return whole;
        out->fixed = fixed;
        return MR_OK;
    }
    const mr_wire_done_more *more = (const void *)(fixed + 1);
    mr_status status = check_fixed("a DONE", sizeof(*fixed) + sizeof(*more), have, err);
    if (status == MR_OK && (more->layers > MR_MAX_LAYERS || more->reserved != 0))
        status = mr_fail(err, MR_ERR_RANGE, "a DONE of %u memory layers", more->layers);
    if (status == MR_OK)
        status = check_bytes(
            "a DONE", sizeof(*fixed) + sizeof(*more) + (uint64_t)more->layers * sizeof(uint64_t),
            have, err);
    if (status != MR_OK) return status;
    *out = (mr_done_view){fixed, more, (const void *)(more + 1)};
    return MR_OK;
}

/* --- any frame -------------------------------------------------------------------------------- */

static mr_status check_elements(const mr_frame *frame, uint32_t bytes, mr_err *err) {
    if (frame->header->payload_bytes % bytes == 0) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "a %s of %u bytes: not whole elements",
                   mr_frame_name(frame->header->type), frame->header->payload_bytes);
}

static mr_status check_sentence(const mr_frame *frame, mr_err *err) {
    mr_err sentence;
    const mr_status status = mr_frame_error(frame, &sentence);
    if (status == MR_ERR_FORMAT && frame->header->status != MR_ERR_FORMAT)
        return mr_fail(err, status, "%s", sentence.text);
    return MR_OK;
}

mr_status mr_frame_check(const mr_frame *frame, mr_err *err) {
    union {
        const mr_wire_hello *hello;
        mr_welcome_view welcome;
        mr_retrieve_view retrieve;
        mr_step_view step;
        mr_sampled_view sampled;
        mr_logits_view logits;
        mr_done_view done;
        mr_topk_view topk;
        mr_prefetch_view prefetch;
        mr_hidden_view hidden;
        const mr_wire_echo *echo;
    } view;
    switch ((mr_frame_type)frame->header->type) {
    case MR_FRAME_HELLO:
        return mr_hello_check(&view.hello, frame, err);
    case MR_FRAME_WELCOME:
        return mr_welcome_check(&view.welcome, frame->payload, frame->header->payload_bytes, err);
    case MR_FRAME_REFUSE:
    case MR_FRAME_ERROR:
        return check_sentence(frame, err);
    case MR_FRAME_PING:
    case MR_FRAME_PONG:
    case MR_FRAME_CANCEL:
        return check_bytes(mr_frame_name(frame->header->type), 0, frame->header->payload_bytes,
                           err);
    case MR_FRAME_RETRIEVE:
        return mr_retrieve_check(&view.retrieve, frame, err);
    case MR_FRAME_POOLED:
        return check_elements(frame, sizeof(int32_t), err);
    case MR_FRAME_CHOSEN: /* mr_chosen_check needs the layer */
        return check_elements(frame, sizeof(uint64_t), err);
    case MR_FRAME_TOPK:
        return mr_topk_check(&view.topk, frame, err);
    case MR_FRAME_PREFETCH:
        return mr_prefetch_check(&view.prefetch, frame, err);
    case MR_FRAME_ECHO:
        return mr_echo_check(&view.echo, frame, err);
    case MR_FRAME_ECHOED:
        return MR_OK;
    case MR_FRAME_HIDDEN:
        return mr_hidden_check(&view.hidden, frame, err);
    case MR_FRAME_DOTS:
        return check_elements(frame, sizeof(int64_t), err);
    case MR_FRAME_ROWS:
        return check_elements(frame, sizeof(uint16_t), err);
    case MR_FRAME_STAGE:
    case MR_FRAME_STEP:
        return mr_step_check(&view.step, frame, err);
    case MR_FRAME_SAMPLED:
        return mr_sampled_check(&view.sampled, frame, err);
    case MR_FRAME_LOGITS:
        return mr_logits_check(&view.logits, frame, err);
    case MR_FRAME_DONE:
        return mr_done_check(&view.done, frame, err);
    }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "a frame of unknown type %u", frame->header->type);
}
