/* frames_retrieve.c - the layout and the checks of retrieval frames. See frames.h.
 *
 * The arrays of a request are laid out once, here, for the sender and for the receiver. All sums
 * run in 64 bits: with counts below 2^32 and at most MR_MAX_CORES rows of weights none can
 * overflow. */
#include "common/net/frames.h"

#include "common/base/limits.h"

#include <string.h>

static mr_status check_common(const mr_wire_retrieve *f, mr_err *err) {
    if (f->tokens == 0 || f->tokens > MR_MAX_STEP_TOKENS)
        return mr_fail(err, MR_ERR_LIMIT, "a RETRIEVE of %u tokens; 1 to %d are taken", f->tokens,
                       MR_MAX_STEP_TOKENS);
    if (f->layer >= MR_MAX_LAYERS || f->cell >= MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_RANGE, "a RETRIEVE for layer %u and cell %u", f->layer, f->cell);
    if (f->x_columns > MR_MAX_D_MODEL)
        return mr_fail(err, MR_ERR_LIMIT, "a RETRIEVE with x of %u columns; at most %d",
                       f->x_columns, MR_MAX_D_MODEL);
    return MR_OK;
}

static mr_status check_pool(const mr_wire_retrieve *f, mr_err *err) {
    const bool gated = f->mode == MR_RETRIEVE_GATED_POOL;
    if (f->accumulator_bits != 64 && (gated || f->accumulator_bits != 32))
        return mr_fail(err, MR_ERR_RANGE, "a %spool RETRIEVE with sums of %u bits",
                       gated ? "gated " : "", f->accumulator_bits);
    if (f->slots == 0 || f->slots > MR_MAX_SLOTS)
        return mr_fail(err, MR_ERR_LIMIT, "a RETRIEVE with %u slots; 1 to %d are taken", f->slots,
                       MR_MAX_SLOTS);
    if (f->cores == 0 || (uint32_t)f->core_first + f->cores > MR_MAX_CORES)
        return mr_fail(err, MR_ERR_LIMIT, "a RETRIEVE with %u cores from %u; there are at most %d",
                       f->cores, f->core_first, MR_MAX_CORES);
    if (gated ? (f->gelu > 1 || f->x_columns == 0) : (f->gelu != 0 || f->x_columns != 0))
        return mr_fail(err, MR_ERR_FORMAT, "a %spool RETRIEVE with gelu %u and x of %u columns",
                       gated ? "gated " : "", f->gelu, f->x_columns);
    return MR_OK;
}

static mr_status check_weightless(const mr_wire_retrieve *f, mr_err *err) {
    const bool dot = f->mode == MR_RETRIEVE_DOT;
    const char *name = dot ? "dot" : "gather";
    if (f->accumulator_bits != (dot ? 64 : 0))
        return mr_fail(err, MR_ERR_RANGE, "a %s RETRIEVE with sums of %u bits", name,
                       f->accumulator_bits);
    if (f->slots > 1 || f->cores != 0 || f->core_first != 0 || f->gelu != 0)
        return mr_fail(err, MR_ERR_FORMAT, "a %s RETRIEVE with slots %u, cores %u from %u, gelu %u",
                       name, f->slots, f->cores, f->core_first, f->gelu);
    if (dot != (f->x_columns != 0))
        return mr_fail(err, MR_ERR_FORMAT, "a %s RETRIEVE with x of %u columns", name,
                       f->x_columns);
    return MR_OK;
}

/* Notes where an array begins, then steps over it and its padding. */
static void place(uint32_t *offset, uint64_t *at, uint64_t count, uint32_t element_bytes) {
    *offset = *at > UINT32_MAX ? 0 : (uint32_t)*at;
    *at = (*at + count * element_bytes + 7) & ~7ull;
}

mr_status mr_retrieve_lay_out(mr_retrieve_layout *out, const mr_wire_retrieve *f, mr_err *err) {
    *out = (mr_retrieve_layout){0};
    mr_status status = check_common(f, err);
    if (status != MR_OK) return status;
    if (f->mode < MR_RETRIEVE_POOL || f->mode > MR_RETRIEVE_GATHER_PRE)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "a RETRIEVE of unknown mode %u", f->mode);
    const bool gated = f->mode == MR_RETRIEVE_GATED_POOL;
    const bool pools = gated || f->mode == MR_RETRIEVE_POOL;
    status = pools ? check_pool(f, err) : check_weightless(f, err);
    if (status != MR_OK) return status;

    mr_retrieve_layout to = {0};
    uint64_t at = sizeof(*f);
    place(&to.count, &at, f->tokens, sizeof(uint32_t));
    place(&to.row, &at, f->entries, sizeof(uint32_t));
    if (pools && f->slots > 1) place(&to.slot, &at, f->entries, sizeof(uint8_t));
    if (pools) place(&to.weight, &at, (uint64_t)f->cores * f->entries, sizeof(float));
    if (gated) place(&to.value_exponent, &at, f->tokens, sizeof(int16_t));
    if (gated) place(&to.dot_exponent, &at, f->tokens, sizeof(int16_t));
    if (f->x_columns > 0) place(&to.x, &at, (uint64_t)f->tokens * f->x_columns, sizeof(float));
    if (at > MR_MAX_FRAME_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "a RETRIEVE of %llu bytes; a frame has at most %d",
                       (unsigned long long)at, MR_MAX_FRAME_BYTES);
    to.bytes = (uint32_t)at;
    *out = to;
    return MR_OK;
}

/* Finite means that the exponent is not all ones; or-ing the verdicts keeps the loop free of
 * branches. */
static bool all_finite(const float *value, size_t count) {
    uint32_t bad = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &value[i], sizeof(bits));
        bad |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u);
    }
    return bad == 0;
}

static bool exponents_fit(const int16_t *exponent, uint32_t count) {
    bool good = true;
    for (uint32_t i = 0; i < count; i++)
        good &= exponent[i] >= MR_WIRE_EXPONENT_MIN && exponent[i] <= MR_WIRE_EXPONENT_MAX;
    return good;
}

static mr_status check_entries(const mr_retrieve_view *v, mr_err *err) {
    const mr_wire_retrieve *f = v->fixed;
    uint64_t sum = 0;
    for (uint32_t t = 0; t < f->tokens; t++) {
        if (v->count[t] > MR_MAX_MEM_ENTRIES)
            return mr_fail(err, MR_ERR_LIMIT, "token %u of a RETRIEVE has %u entries; at most %d",
                           t, v->count[t], MR_MAX_MEM_ENTRIES);
        sum += v->count[t];
    }
    if (sum != f->entries)
        return mr_fail(err, MR_ERR_FORMAT, "a RETRIEVE of %u entries whose tokens have %llu",
                       f->entries, (unsigned long long)sum);
    for (uint32_t j = 0; v->slot && j < f->entries; j++)
        if (v->slot[j] >= f->slots)
            return mr_fail(err, MR_ERR_RANGE, "entry %u of a RETRIEVE is for slot %u of %u", j,
                           v->slot[j], f->slots);
    return MR_OK;
}

mr_status mr_retrieve_check(mr_retrieve_view *out, const mr_frame *frame, mr_err *err) {
    const mr_wire_retrieve *f = (const void *)frame->payload;
    const uint32_t have = frame->header->payload_bytes;
    mr_retrieve_layout to;
    *out = (mr_retrieve_view){0};
    if (have < sizeof(*f))
        return mr_fail(err, MR_ERR_FORMAT,
                       "a RETRIEVE of %u bytes is cut short: its fixed part has %zu", have,
                       sizeof(*f));
    mr_status status = mr_retrieve_lay_out(&to, f, err);
    if (status != MR_OK) return status;
    if (have != to.bytes)
        return mr_fail(err, MR_ERR_FORMAT, "a RETRIEVE of %u bytes; its counts make it %u", have,
                       to.bytes);
    const uint8_t *base = frame->payload;
    const mr_retrieve_view v = {
        .fixed = f,
        .count = (const void *)(base + to.count),
        .row = (const void *)(base + to.row),
        .slot = to.slot ? base + to.slot : NULL,
        .weight = to.weight ? (const void *)(base + to.weight) : NULL,
        .value_exponent = to.value_exponent ? (const void *)(base + to.value_exponent) : NULL,
        .dot_exponent = to.dot_exponent ? (const void *)(base + to.dot_exponent) : NULL,
        .x = to.x ? (const void *)(base + to.x) : NULL,
    };
    status = check_entries(&v, err);
    if (status != MR_OK) return status;
    if (v.weight && !all_finite(v.weight, (size_t)f->cores * f->entries))
        return mr_fail(err, MR_ERR_RANGE, "a RETRIEVE with a weight that is not finite");
    if (v.x && !all_finite(v.x, (size_t)f->tokens * f->x_columns))
        return mr_fail(err, MR_ERR_RANGE, "a RETRIEVE with an x that is not finite");
    if (v.value_exponent &&
        (!exponents_fit(v.value_exponent, f->tokens) || !exponents_fit(v.dot_exponent, f->tokens)))
        return mr_fail(err, MR_ERR_RANGE, "a RETRIEVE with an exponent outside [%d, %d]",
                       MR_WIRE_EXPONENT_MIN, MR_WIRE_EXPONENT_MAX);
    *out = v;
    return MR_OK;
}

/* --- answers ---------------------------------------------------------------------------------- */

uint16_t mr_retrieve_answer_type(const mr_wire_retrieve *f) {
    if (f->mode == MR_RETRIEVE_DOT) return MR_FRAME_DOTS;
    return mr_retrieve_gathers(f) ? MR_FRAME_ROWS : MR_FRAME_POOLED;
}

mr_status mr_retrieve_answer_bytes(uint32_t *out, const mr_wire_retrieve *f, uint32_t columns,
                                   uint64_t slice_bytes, mr_err *err) {
    uint64_t bytes = (uint64_t)f->entries * sizeof(int64_t);
    bool over = false;
    if (mr_retrieve_gathers(f)) {
        over = __builtin_mul_overflow((uint64_t)f->entries, slice_bytes, &bytes);
    } else if (f->mode != MR_RETRIEVE_DOT) {
        over = __builtin_mul_overflow((uint64_t)f->tokens * f->slots, columns, &bytes) ||
               __builtin_mul_overflow(bytes, (uint64_t)f->accumulator_bits / 8, &bytes);
    }
    *out = 0;
    if (over || bytes > MR_MAX_FRAME_BYTES)
        return mr_fail(
            err, MR_ERR_LIMIT,
            "a RETRIEVE of %u tokens and %u entries whose answer is larger than a frame's "
            "%d bytes",
            f->tokens, f->entries, MR_MAX_FRAME_BYTES);
    *out = (uint32_t)bytes;
    return MR_OK;
}

mr_status mr_answer_check(const mr_frame *frame, uint16_t type, uint32_t bytes, mr_err *err) {
    const mr_wire_header *header = frame->header;
    if (header->type == MR_FRAME_ERROR || header->type == MR_FRAME_REFUSE)
        return mr_frame_error(frame, err);
    if (header->type != type)
        return mr_fail(err, MR_ERR_FORMAT, "answered %s where %s was asked for",
                       mr_frame_name(header->type), mr_frame_name(type));
    if (header->payload_bytes != bytes)
        return mr_fail(err, MR_ERR_FORMAT, "answered a %s of %u bytes where %u were asked for",
                       mr_frame_name(type), header->payload_bytes, bytes);
    return MR_OK;
}
