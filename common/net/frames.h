/* frames.h - checks of every frame of proto/wire.h, and views into those that are good.
 *
 * Every receiver calls these before it reads a payload, in release builds too. A check proves that
 * all counts fit the bytes that came (64-bit, overflow checked), that reserved bits are zero,
 * modes are known and numbers finite; what depends on a model (rows of a cell, cores, vocabulary)
 * is checked by the one who has the model. Senders lay their payloads out with the same functions,
 * so that the two sides cannot disagree about an offset. A refusal is MR_ERR_FORMAT, MR_ERR_RANGE,
 * MR_ERR_LIMIT or MR_ERR_UNSUPPORTED and one sentence.
 * Threads: pure functions.
 * Memory: views borrow from the payload. */
#ifndef MR_NET_FRAMES_H
#define MR_NET_FRAMES_H
#include "common/net/fabric.h"

enum {
    MR_WIRE_EXPONENT_MIN = -60, /* of e and d; as MR_EXPONENT_MIN in common/ops/gate.h */
    MR_WIRE_EXPONENT_MAX = 90,
};

/* version: of the session, or 0 before it is open: any this build speaks. HELLO and REFUSE may come
 * in any version, because they are what tells. */
mr_status mr_frame_check_header(const mr_wire_header *header, uint16_t version, mr_err *err);

/* Any frame: the check of its type's payload. Answers of retrieval (POOLED, DOTS, ROWS) only need
 * whole elements here; mr_answer_check compares them with what was asked. */
mr_status mr_frame_check(const mr_frame *frame, mr_err *err);
const char *mr_frame_name(uint16_t type); /* "RETRIEVE", or "unknown" */
/* The first version of a session that has frames of this type. */
uint16_t mr_frame_version(uint16_t type);

/* --- sessions --------------------------------------------------------------------------------- */

typedef struct {
    const mr_wire_welcome *fixed;
    const mr_wire_cell *cells;              /* [fixed->cell_count]; memshard only */
    const mr_wire_worker_info *worker_info; /* worker only, else NULL */
} mr_welcome_view;

mr_status mr_hello_check(const mr_wire_hello **out, const mr_frame *frame, mr_err *err);
/* bytes as mr_session_open returned them. */
mr_status mr_welcome_check(mr_welcome_view *out, const void *payload, size_t bytes, mr_err *err);

/* ERROR and REFUSE: puts the peer's sentence into err and returns its status; a payload that is no
 * sentence gives MR_ERR_FORMAT. Never MR_OK. */
mr_status mr_frame_error(const mr_frame *frame, mr_err *err);

/* --- retrieval -------------------------------------------------------------------------------- */

/* Offsets from the start of the payload; 0 for an array the mode has not. */
typedef struct {
    uint32_t count, row, slot, weight, value_exponent, dot_exponent, x;
    uint32_t bytes; /* the whole payload */
} mr_retrieve_layout;

/* Checks the fixed part by itself and lays out what follows. Besides the bounds of limits.h:
 *   pool        accumulator_bits 32 or 64, slots and cores >= 1, gelu and x_columns 0
 *   gated pool  accumulator_bits 64, slots, cores and x_columns >= 1
 *   dot         accumulator_bits 64, slots 0 or 1, core_first, cores and gelu 0, x_columns >= 1
 *   gather      accumulator_bits 0, slots 0 or 1, core_first, cores, gelu and x_columns 0
 * tokens >= 1; entries may be 0. MR_ERR_LIMIT: the frame would be larger than MR_MAX_FRAME_BYTES.
 */
mr_status mr_retrieve_lay_out(mr_retrieve_layout *out, const mr_wire_retrieve *fixed, mr_err *err);

static inline bool mr_retrieve_gathers(const mr_wire_retrieve *fixed) {
    return fixed->mode == MR_RETRIEVE_GATHER || fixed->mode == MR_RETRIEVE_GATHER_PRE;
}

typedef struct {
    const mr_wire_retrieve *fixed;
    const uint32_t *count;         /* [tokens]; the sum is entries */
    const uint32_t *row;           /* [entries] */
    const uint8_t *slot;           /* [entries] < slots; NULL where slots is 1 */
    const float *weight;           /* [cores][entries], finite; NULL unless pooling */
    const int16_t *value_exponent; /* [tokens]; gated pool */
    const int16_t *dot_exponent;   /* [tokens]; gated pool */
    const float *x;                /* [tokens][x_columns], finite; gated pool and dot */
} mr_retrieve_view;

mr_status mr_retrieve_check(mr_retrieve_view *out, const mr_frame *frame, mr_err *err);

/* Bytes of the answer. columns: of the cell's part of a value row, summed by the pool modes;
 * slice_bytes: of a row of the cell as it is stored, which the gather modes hand out. MR_ERR_LIMIT
 * when it would not fit one frame. */
mr_status mr_retrieve_answer_bytes(uint32_t *out, const mr_wire_retrieve *fixed, uint32_t columns,
                                   uint64_t slice_bytes, mr_err *err);
/* POOLED, DOTS or ROWS: what the mode is answered with. */
uint16_t mr_retrieve_answer_type(const mr_wire_retrieve *fixed);
/* The asker's check of an answer. ERROR and REFUSE give the peer's status and sentence. */
mr_status mr_answer_check(const mr_frame *frame, uint16_t type, uint32_t bytes, mr_err *err);

/* --- steps ------------------------------------------------------------------------------------ */

/* As mr_step of worker/engine.h. */
typedef struct {
    uint32_t sequence_count, token_count, block_count;
    uint32_t flags;                    /* mr_step_flag */
    const mr_wire_sequence *sequences; /* [sequence_count] */
    const int32_t *tokens;             /* [token_count], in sequence order */
    const uint32_t *blocks;            /* [block_count], in sequence order */
} mr_step_view;

mr_status mr_step_check(mr_step_view *out, const mr_frame *frame, mr_err *err);
/* Payload bytes of a step; MR_ERR_LIMIT when it would not fit one frame. */
mr_status mr_step_bytes(uint32_t *out, uint32_t sequences, uint32_t tokens, uint32_t blocks,
                        mr_err *err);

typedef struct {
    const mr_wire_sampled *fixed;
    const mr_wire_logprob *top; /* [fixed->top_count] */
} mr_sampled_view;
mr_status mr_sampled_check(mr_sampled_view *out, const mr_frame *frame, mr_err *err);

typedef struct {
    const mr_wire_logits *fixed;
    const float *columns; /* [fixed->columns] */
} mr_logits_view;
mr_status mr_logits_check(mr_logits_view *out, const mr_frame *frame, mr_err *err);
/* The most columns one LOGITS frame carries; a longer row is cut. */
uint32_t mr_logits_columns_max(void);

typedef struct {
    const mr_wire_done *fixed;
    const mr_wire_done_more *more; /* NULL in version 1 */
    const uint64_t *wait_ns;       /* [more->layers] */
} mr_done_view;
mr_status mr_done_check(mr_done_view *out, const mr_frame *frame, mr_err *err);

/* --- version 2 -------------------------------------------------------------------------------- */

mr_status mr_echo_check(const mr_wire_echo **out, const mr_frame *frame, mr_err *err);

typedef struct {
    const mr_wire_topk *fixed;
    const float *query; /* [tokens][query_columns], finite */
    const float *x;     /* [tokens][x_columns], finite; NULL where x_columns is 0 */
} mr_topk_view;
typedef struct {
    uint32_t query, x; /* offsets; x 0 where there is none */
    uint32_t bytes;
} mr_topk_layout;
mr_status mr_topk_lay_out(mr_topk_layout *out, const mr_wire_topk *fixed, mr_err *err);
mr_status mr_topk_check(mr_topk_view *out, const mr_frame *frame, mr_err *err);

/* What a TOPK is answered with, laid out for both sides. CHOSEN: K entries a token. POOLED: sums
 * [tokens][slots][columns] of accumulator_bits, then exponents. */
typedef struct {
    uint32_t row, slot, score, index; /* CHOSEN; slot 0 where slots is 1 */
    uint32_t value_exponent;          /* POOLED */
    uint32_t bytes;
} mr_topk_answer_layout;
mr_status mr_chosen_lay_out(mr_topk_answer_layout *out, uint32_t tokens, uint32_t entries,
                            uint32_t cores, uint32_t slots, mr_err *err);
mr_status mr_topk_pooled_lay_out(mr_topk_answer_layout *out, const mr_wire_topk *fixed,
                                 uint32_t slots, uint32_t columns, mr_err *err);

typedef struct {
    const mr_wire_prefetch *fixed;
    const uint32_t *row; /* [fixed->rows] */
} mr_prefetch_view;
mr_status mr_prefetch_check(mr_prefetch_view *out, const mr_frame *frame, mr_err *err);

typedef struct {
    const mr_wire_hidden *fixed;
    const float *values; /* [tokens][columns] */
} mr_hidden_view;
mr_status mr_hidden_check(mr_hidden_view *out, const mr_frame *frame, mr_err *err);

#endif
