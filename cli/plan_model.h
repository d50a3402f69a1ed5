/* plan_model.h - the byte and time model behind `memrack plan`: from a model's shapes and a
 * described rack to bytes, memory and time, for every grid that fits.
 *
 * Bytes are those of the frames as they are sent (proto/wire.h), without their headers: 96 bytes a
 * frame, which a batch shares. Times are a model, not a measurement: what is read is divided by the
 * bandwidth it is read at, a trip costs its latency and its bytes on the worker's NIC, and what a
 * layer's window covers is not waited for.
 * Threads: plain values. Memory: a subject is owned; mr_plan_subject_free. */
#ifndef MR_CLI_PLAN_MODEL_H
#define MR_CLI_PLAN_MODEL_H
#include "common/model/model.h"
#include "common/model/presets.h"

enum { MR_PLAN_SLICE_BYTES_MIN = 256, MR_PLAN_CHOICES = 64 };

/* What is known of a model: from a directory or from a preset's shape. */
typedef struct {
    char name[128];
    uint32_t blocks, context_tokens;
    uint64_t dense_bytes, token_dense_bytes; /* held; read in a step whatever the batch */
    uint64_t expert_bytes;                   /* held by the worker too */
    uint32_t experts, experts_per_token;
    uint64_t key_bytes, index_bytes; /* product keys; shuffle index as u32 */
    uint64_t kv_token_bytes, table_bytes;
    mr_table_shape *tables; /* [table_count] owned; tensors are not set */
    uint32_t table_count;
    mr_memory_layer *layers; /* [layer_count] owned */
    uint32_t layer_count;
} mr_plan_subject;

mr_status mr_plan_subject_open(mr_plan_subject *out, const char *directory, mr_err *err);
mr_status mr_plan_subject_of_shape(mr_plan_subject *out, const mr_shape *shape, mr_err *err);
void mr_plan_subject_free(mr_plan_subject *subject);

typedef struct {
    uint32_t nodes;              /* that run memshards */
    uint32_t replicas;           /* of every cell */
    uint64_t dram_bytes;         /* of a node, for tables */
    uint64_t hbm_bytes;          /* of the worker, for weights, keys, index and KV */
    double nic_gbps, latency_us; /* gigabits a second of a node's NIC; one round trip */
    double read_gbs;             /* gigabytes a second the worker reads its weights at */
    double rows_per_s;           /* rows a memshard node pools in a second */
    uint32_t batch;
    uint32_t context_tokens; /* KV of each sequence that a step reads */
} mr_plan_rack;

/* Of one token and one memory layer. */
typedef struct {
    double up, down; /* bytes the worker sends and gets */
    uint32_t trips;
    double rows; /* read by the busiest shard */
} mr_plan_traffic;

/* grid_rows x grid_columns cells, each on a shard of its own; pooled. */
mr_plan_traffic mr_plan_pooled(const mr_plan_subject *subject, uint32_t layer, uint32_t grid_rows,
                               uint32_t grid_columns);
/* The rows themselves, from `shards` shards of whole rows. */
mr_plan_traffic mr_plan_gathered(const mr_plan_subject *subject, uint32_t layer, uint32_t shards);

typedef struct {
    uint32_t grid_rows, grid_columns;
    bool is_gather;
    double token_bytes;     /* all layers */
    double slice_bytes_min; /* narrowest slice of a value row */
    uint32_t trips;         /* of a step, one after the other */
    double wait_us, step_us, tokens_per_s;
} mr_plan_choice;

typedef struct {
    mr_plan_choice choices[MR_PLAN_CHOICES]; /* best first */
    uint32_t choice_count;
    uint32_t shards; /* of one copy of the tables */
    uint64_t memshard_bytes, worker_bytes, kv_bytes;
    double dense_us; /* of a step, memory layers apart */
    bool fits_dram, fits_hbm;
    uint32_t nodes_wanted; /* for the tables */
} mr_plan;

/* MR_ERR_ARGUMENT: fewer nodes than replicas. */
mr_status mr_plan_make(mr_plan *out, const mr_plan_subject *subject, const mr_plan_rack *rack,
                       mr_err *err);

#endif
