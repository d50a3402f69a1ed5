/* product_keys.h - the product keys of a memory layer: loading them, and from normed queries to the
 * chosen rows, their scores and the exponents of the sums.
 *
 * One implementation for whoever scores: the worker, or a memshard that was asked to (TOPK). Both
 * get the same bits, for any batch and any number of threads. Formulas: docs/MODELS.md.
 * Threads: keys are immutable after open. A search belongs to one thread; it shares its loops out
 * through `run`.
 * Memory: keys own what they hold and borrow the layer from the model. */
#ifndef MR_MODEL_PRODUCT_KEYS_H
#define MR_MODEL_PRODUCT_KEYS_H
#include "common/model/manifest.h"
#include "common/ops/ops.h"
#include "common/ops/team.h"

#include <stdatomic.h>

/* Keys are normalised where the official code normalises them, and lie as one packed matrix per
 * head and side: output n * R + r, input kdim. */
typedef struct {
    const mr_memory_layer *layer;
    uint64_t table_rows;
    uint32_t groups;   /* query groups: a query is [groups][2][kdim] */
    bool own_queries;  /* a query for each head; else two heads share one */
    bool softmax;      /* over the knn scores of a head (pkm, memory_plus) */
    mr_packed *keys;   /* [heads][2] */
    float *core;       /* [cores][heads][R][R] or NULL */
    float *u, *v;      /* [heads][R] or NULL */
    uint32_t *shuffle; /* [n * n] or NULL */
} mr_product_keys;

/* *out is zeroed; free after a failure too. */
mr_status mr_product_keys_open(mr_product_keys *out, const mr_model *model, uint32_t layer,
                               mr_err *err);
void mr_product_keys_free(mr_product_keys *keys);
/* What open will hold: keys and cores; shuffle indices. */
void mr_product_keys_plan(uint64_t *key_bytes, uint64_t *index_bytes, const mr_model *model,
                          uint32_t layer);

enum { MR_SCORE_TILE = 16 }; /* tokens whose key scores are in memory at once */

/* The search of a batch. entries: K of the layer. */
typedef struct {
    const mr_ops *ops;
    const mr_product_keys *keys;
    uint32_t tokens;
    const float *query; /* [tokens][groups * 2 * kdim], normed */
    /* Room. */
    float *key_score;     /* [MR_SCORE_TILE][2][n * R]: mr_key_score_floats() */
    uint8_t *scratch;     /* [members of run][scratch_bytes], 64-byte aligned */
    size_t scratch_bytes; /* >= mr_product_key_scratch(), a multiple of 64 */
    /* Results: index before, row and slot after the layer's offset. */
    uint32_t *index, *row; /* [tokens][entries] */
    uint8_t *slot;         /* [tokens][entries]; all 0 where slots_out is 1 */
    float *score;          /* [cores][tokens * entries] */
    /* Runs a loop of about `work` multiply-adds; member < those scratch has room for. */
    void (*run)(void *context, mr_team_task task, void *argument, uint32_t items, uint64_t work);
    void *run_context;
    /* Its own. */
    uint32_t head, token_first; /* of the tile being scored */
    atomic_uint bad_token;      /* a token with a score that is no number, or UINT32_MAX */
} mr_key_search;

size_t mr_product_key_scratch(const mr_memory_layer *layer); /* bytes; a multiple of 64 */
size_t mr_key_score_floats(const mr_memory_layer *layer);
/* MR_ERR_RANGE: a score is not finite. */
mr_status mr_key_search_run(mr_key_search *search, mr_err *err);

/* Exponents that bound the sums (and a gated layer's dots) of each token, from all its K scores and
 * the table's facts; never from what one shard holds. x: [tokens][pre_width], gated only.
 * MR_ERR_RANGE: a bound is out of range. */
mr_status mr_product_exponents(int16_t *value_exponent, int16_t *dot_exponent,
                               const mr_memory_layer *layer, const mr_table_facts *facts,
                               const float *score, uint32_t tokens, const float *x,
                               uint32_t pre_width, mr_err *err);

/* --- inside: the top-k of one token and head (product_keys_select.c) ------------------------- */

typedef struct {
    const mr_ops *ops;
    const mr_product_keys *keys;
    uint32_t head;
    const float *row_score, *column_score; /* [n * R] */
    uint8_t *scratch;                      /* mr_product_key_scratch() bytes */
} mr_product_key_query;
/* index[knn]: I * n + J, best first. score: core m at score[m * core_stride + entry]. false: a
 * score is not a number. */
bool mr_product_key_select(uint32_t *index, float *score, size_t core_stride,
                           const mr_product_key_query *query);

#endif
