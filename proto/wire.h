/* wire.h - the data plane's frames: fixed-size little-endian structs, every size asserted.
 *
 * A frame is an mr_wire_header followed by payload_bytes bytes. A session opens with HELLO from the
 * one who connects and WELCOME or REFUSE from the one who listens; nothing else is answered before.
 * Never a pointer, never a length that is not checked against payload_bytes before it is used:
 * common/net/frames.h holds the checkers, which every receiver calls, in release builds too.
 *
 * Shapes are written [a][b] row-major. Arrays follow their struct directly, in the order given,
 * each starting at a multiple of its element size or padded to 8 bytes where "pad8" is written. */
#ifndef MR_PROTO_WIRE_H
#define MR_PROTO_WIRE_H
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames travel as they lie in memory");

enum {
    MR_WIRE_MAGIC = 0x314b524d, /* "MRK1" */
    MR_WIRE_VERSION = 2,        /* N: what this build speaks best */
    MR_WIRE_VERSION_MIN = 1,    /* N - 1; what only version 2 has is marked (2) below */
};

typedef enum {
    MR_FRAME_HELLO = 1,
    MR_FRAME_WELCOME = 2,
    MR_FRAME_REFUSE = 3, /* payload: one sentence; the sender closes */
    MR_FRAME_PING = 4,   /* empty; answered by PONG with the same request */
    MR_FRAME_PONG = 5,
    MR_FRAME_ERROR = 6,  /* payload: one sentence; status is the mr_status; answers one request */
    MR_FRAME_ECHO = 7,   /* (2) mr_wire_echo and any bytes; answered by the server itself */
    MR_FRAME_ECHOED = 8, /* (2) as many bytes as were wanted: what `selftest --fabric` measures */

    MR_FRAME_RETRIEVE = 16, /* worker -> memshard: mr_wire_retrieve */
    MR_FRAME_POOLED = 17,   /* i32 or i64 [tokens][slots][columns of the cell] */
    MR_FRAME_DOTS = 18,     /* i64 [entries] */
    MR_FRAME_ROWS = 19,     /* raw value elements [entries][columns of the cell], storage dtype */
    MR_FRAME_TOPK = 20,     /* (2) worker -> memshard: mr_wire_topk: queries in */
    MR_FRAME_CHOSEN = 21,   /* (2) answers TOPK where ids were wanted: mr_wire_chosen layout */
    MR_FRAME_CANCEL = 22,   /* (2) empty; the request of that number is not waited for any more: it
                             * may be dropped unanswered, or answered all the same */
    MR_FRAME_PREFETCH = 23, /* (2) mr_wire_prefetch: rows that will be asked for; never answered */

    MR_FRAME_STEP = 32,    /* coordinator -> worker: mr_wire_step */
    MR_FRAME_SAMPLED = 33, /* worker -> coordinator: mr_wire_sampled, of sampling sequences */
    MR_FRAME_LOGITS = 34,  /* mr_wire_logits: a piece of one position's row */
    MR_FRAME_DONE = 35,    /* mr_wire_done: the step is committed; the last frame of its request */
    MR_FRAME_STAGE = 36,   /* (2) stage -> next stage: a STEP payload; HIDDEN frames follow */
    MR_FRAME_HIDDEN = 37,  /* (2) mr_wire_hidden: a piece of the hidden states of a STAGE */
} mr_frame_type;

typedef struct {
    uint32_t magic;         /* MR_WIRE_MAGIC */
    uint16_t version;       /* of the session; HELLO carries the sender's highest */
    uint16_t type;          /* mr_frame_type */
    uint32_t payload_bytes; /* <= MR_MAX_FRAME_BYTES */
    uint32_t flags;         /* MR_FRAME_HAS_MAC; other bits are zero or refused */
    uint64_t request;       /* chosen by the asker, echoed in every answer */
    uint64_t epoch;         /* retrieval: of the table map the asker uses; STEP and STAGE: of the
                             * group's owner; 0 in a static cluster, and never stale there. (2) Of a
                             * HELLO to a memshard: the grid wanted, rows << 32 | columns; 0: any */
    uint32_t budget_us;     /* asking: time the asker still waits, 0: not stated. Answers of
                             * retrieval (2): time the request waited before it was worked on */
    int32_t status;         /* answers: 0 or an mr_status */
    uint8_t mac[16];        /* zero unless flagged; version 1 refuses the flag. (2) AES-256-GMAC
                             * over header (mac zero) and payload, see common/net/keys.h */
    uint64_t reserved;      /* zero */
} mr_wire_header;
_Static_assert(sizeof(mr_wire_header) == 64, "one cache line");
enum { MR_FRAME_HAS_MAC = 1 };

/* --- session opening -------------------------------------------------------------------------- */

typedef enum {
    MR_ROLE_CLIENT = 1,
    MR_ROLE_COORDINATOR = 2,
    MR_ROLE_WORKER = 3,
    MR_ROLE_MEMSHARD = 4
} mr_role;

typedef struct {
    uint16_t version_min, version_max;
    uint16_t role; /* of the sender */
    uint16_t role_wanted;
    uint32_t frame_bytes_max; /* largest payload the sender takes */
    uint32_t flags;           /* mr_hello_flag; zero in version 1 */
    uint8_t digest[32];       /* of the model; all zero: whatever the other has */
    uint8_t nonce[16];        /* (2) keyed: key id (8 bytes), the sender's salt (8); else zero */
} mr_wire_hello;
_Static_assert(sizeof(mr_wire_hello) == 64, "fixed");

enum { MR_HELLO_KEYED = 1 }; /* (2) every frame after WELCOME carries a MAC, both ways */

/* (2) A server takes this in any state of an open session. */
typedef struct {
    uint32_t reply_bytes; /* <= MR_MAX_FRAME_BYTES */
    uint32_t reserved;    /* zero */
} mr_wire_echo;
_Static_assert(sizeof(mr_wire_echo) == 8, "fixed");

/* A WELCOME payload is mr_wire_welcome, then by role: memshard: mr_wire_cell [cell_count];
 * worker: mr_wire_worker_info. */
typedef struct {
    uint16_t version; /* chosen: the highest both speak */
    uint16_t role;
    uint32_t frame_bytes_max;
    uint8_t digest[32];
    uint8_t nonce[16];
    uint32_t cell_count; /* memshard only, else 0 */
    uint32_t grid_rows, grid_columns;
    uint32_t reserved;
} mr_wire_welcome;
_Static_assert(sizeof(mr_wire_welcome) == 72, "fixed");

typedef struct {
    uint32_t cell; /* row group * grid_columns + width slice */
} mr_wire_cell;

typedef struct {
    uint32_t vocab_size, logit_columns; /* columns >= vocab_size are never sampled */
    uint32_t context_tokens;
    uint32_t kv_blocks, kv_block_tokens;
    uint32_t step_tokens_max, step_sequences_max;
    uint16_t stage, stages; /* (2) of the pipeline; 0, 0 in version 1: the whole model */
} mr_wire_worker_info;
_Static_assert(sizeof(mr_wire_worker_info) == 32, "fixed");

/* --- retrieval -------------------------------------------------------------------------------- */

typedef enum {
    MR_RETRIEVE_POOL = 1,       /* weights are scaled: acc += rn(fl32(weight * value)) */
    MR_RETRIEVE_GATED_POOL = 2, /* one trip: raw scores, x, e and d; the shard gates (whole rows) */
    MR_RETRIEVE_DOT = 3,        /* first of two trips: x' = x * 2^(62-d), answers partial dots */
    MR_RETRIEVE_GATHER = 4,     /* the rows themselves: the cell's slice of each as it is stored,
                                   side by side (common/ops/slice.h) */
    MR_RETRIEVE_GATHER_PRE = 5, /* (2) the pre-value rows: for a memshard that copies a cell */
} mr_retrieve_mode;

/* Followed by:
 *   u32 count[tokens] pad8          entries of each token; their sum is `entries`
 *   u32 row[entries] pad8           global row ids, all inside the cell's row group
 *   u8  slot[entries] pad8          only where slots > 1 (pool modes)
 *   f32 weight[cores][entries] pad8 pool: scaled weights; gated pool: raw scores; else absent
 *   i16 value_exponent[tokens] pad8 gated pool only: e
 *   i16 dot_exponent[tokens] pad8   gated pool only: d
 *   f32 x[tokens][x_columns] pad8   gated pool: x (all pre-value columns); dot: x' of this cell's
 *                                   pre-value columns */
typedef struct {
    uint32_t layer; /* memory layer, in map order */
    uint32_t cell;
    uint16_t mode;             /* mr_retrieve_mode */
    uint16_t accumulator_bits; /* 32 or 64 (pool modes), 64 for dots, 0 for gather */
    uint32_t tokens, entries;
    uint16_t core_first, cores; /* the cores whose columns this cell holds, and only those */
    uint16_t slots;             /* answered slots per token */
    uint16_t gelu;              /* gated pool: 1 = GELU on the dot */
    uint32_t x_columns;
} mr_wire_retrieve;
_Static_assert(sizeof(mr_wire_retrieve) == 32, "fixed");

/* (2) A shard that holds all keys of the layer scores them itself: the same bits as a worker would
 * get. It selects all K entries, derives e (and d) from all of them, then pools only the rows of
 * the cell. Followed by:
 *   f32 query[tokens][query_columns] pad8   normed queries, as the worker's own selection reads
 * them f32 x[tokens][x_columns] pad8           gated layers where pooled sums are wanted Answered
 * by POOLED: the sums as for RETRIEVE, pad8, then i16 value_exponent[tokens] pad8 (each shard
 * derives the same); or by CHOSEN: u32 row[tokens][K] pad8, u8 slot[tokens][K] pad8 (only where
 * slots > 1), f32 score[cores][tokens * K] pad8, u32 index[tokens][K] pad8. */
typedef struct {
    uint32_t layer;
    uint32_t cell;  /* of the pooled rows; ignored where ids are wanted */
    uint16_t wants; /* mr_topk_wants */
    uint16_t accumulator_bits;
    uint32_t tokens, query_columns, x_columns;
    uint32_t reserved[2]; /* zero */
} mr_wire_topk;
_Static_assert(sizeof(mr_wire_topk) == 32, "fixed");
typedef enum { MR_TOPK_IDS = 1, MR_TOPK_POOLED = 2 } mr_topk_wants;

/* (2) Followed by u32 row[rows] pad8. Ids come from wherever the asker has them: a selection, or
 * hashes of tokens known before the step begins. */
typedef struct {
    uint32_t layer, cell, rows, reserved;
} mr_wire_prefetch;
_Static_assert(sizeof(mr_wire_prefetch) == 16, "fixed");

/* --- steps ------------------------------------------------------------------------------------ */

enum {
    MR_SEQUENCE_SAMPLE = 1, /* sample one token after the last of this step */
    MR_SEQUENCE_LOGITS = 2, /* send the logits of every position of this step */
};

typedef struct {
    uint64_t id;
    uint32_t position;    /* of the first token of this step */
    uint32_t token_count; /* >= 1 */
    uint32_t block_count; /* KV blocks of the sequence: >= ceil((position + token_count) / 16) */
    uint32_t flags;
    float temperature; /* 0: greedy */
    float top_p, min_p;
    uint32_t top_k; /* 0: all */
    uint64_t seed;
    uint32_t choice;          /* which of the n answers: part of the generator's key */
    uint32_t output_position; /* 0 for the first sampled token: the generator's counter */
    uint32_t logprobs;        /* how many alternatives to report, 0..MR_MAX_LOGPROBS */
    uint32_t drafted;         /* (2) the last so many tokens are guesses, to be verified; 0 in
                               * version 1, and where nothing is sampled */
} mr_wire_sequence;
_Static_assert(sizeof(mr_wire_sequence) == 64, "fixed");

enum {
    MR_STEP_MAY_DEGRADE = 1, /* (2) rows of a partition that has no live replica count as zero */
    MR_STEP_DEGRADED = 2,    /* (2) STAGE only: an earlier stage did count some as zero */
};

/* Followed by mr_wire_sequence[sequences], i32 token[tokens] (in sequence order), u32 block[blocks]
 * (in sequence order). */
typedef struct {
    uint32_t sequences, tokens, blocks;
    uint32_t flags; /* (2) mr_step_flag; zero in version 1 */
} mr_wire_step;
_Static_assert(sizeof(mr_wire_step) == 16, "fixed");

/* Of a sequence with drafted tokens the position before each of them is sampled like the last one,
 * output_position being that of the first. One SAMPLED each, in order of positions, up to and
 * including the first whose token is not the drafted one that follows it: what comes behind that
 * stands on a wrong guess, and the next step writes over it.
 * Followed by mr_wire_logprob[top_count]. logprob is the natural logarithm of the softmax over the
 * vocabulary at temperature 1, before any filter. */
typedef struct {
    uint64_t id;
    int32_t token;
    float logprob;
    uint32_t top_count;
    uint32_t flags; /* (2) MR_SAMPLED_DEGRADED; zero in version 1 */
} mr_wire_sampled;
_Static_assert(sizeof(mr_wire_sampled) == 24, "fixed");

enum { MR_SAMPLED_DEGRADED = 1 }; /* some rows of this step were counted as zero */

typedef struct {
    int32_t token;
    float logprob;
} mr_wire_logprob;

/* Followed by f32 [columns]. */
typedef struct {
    uint64_t id;
    uint32_t position, column_first, columns, reserved;
} mr_wire_logits;
_Static_assert(sizeof(mr_wire_logits) == 24, "fixed");

typedef struct {
    uint64_t step_ns, retrieval_wait_ns;
    uint64_t retrieval_bytes_up, retrieval_bytes_down;
} mr_wire_done;
_Static_assert(sizeof(mr_wire_done) == 32, "fixed");

/* (2) Follows mr_wire_done, itself followed by u64 wait_ns[layers]: the exposed wait of each memory
 * layer, over all stages. Counters are of this step. */
typedef struct {
    uint32_t layers;
    uint32_t hedges, resends, degraded; /* requests sent twice; after suspicion; answered as zero */
    uint32_t cache_hits, cache_misses;  /* rows of the worker's hot-row cache */
    uint32_t stage_ns_max_us;           /* the slowest stage's computing time */
    uint32_t reserved;
} mr_wire_done_more;
_Static_assert(sizeof(mr_wire_done_more) == 32, "fixed");

/* (2) STAGE carries the STEP payload as the coordinator sent it (and MR_STEP_DEGRADED); HIDDEN
 * frames with the same request bring what the next stage starts from, in any order, until all
 * tokens of every kind announced by `kinds` of the first one are there. Followed by f32
 * [tokens][columns]. The next stage answers as a worker answers a coordinator (SAMPLED, LOGITS,
 * DONE or ERROR), and each stage passes it on. */
typedef struct {
    uint16_t kind;  /* mr_hidden_kind */
    uint16_t kinds; /* bit set of 1 << kind: which kinds this STAGE has */
    uint32_t token_first, tokens, columns;
    int32_t layer;  /* pending: the memory layer whose output this is; else -1 */
    uint32_t block; /* the model's next block: the first one of the stage that is asked */
} mr_wire_hidden;
_Static_assert(sizeof(mr_wire_hidden) == 24, "fixed");
typedef enum { MR_HIDDEN_STREAM = 0, MR_HIDDEN_PENDING = 1 } mr_hidden_kind;

#endif
