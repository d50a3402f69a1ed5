/* convert.h - a model written again in other storage types: tensor by tensor, with a bounded part
 * of one in memory.
 *
 * What is converted: the matrices of attention, feed-forward, experts and memory values, head and
 * embedding to `dense`, the tables to `tables`. What chooses stays as it is (routers, queries,
 * keys, cores), as do norms, biases and indices. A matrix that is used transposed (w2 of the
 * official experts) stays floats where codes are asked for, unless it is packed: codes share scales
 * along K. Threads: call from one; the team works on rows. */
#ifndef MR_MODEL_CONVERT_H
#define MR_MODEL_CONVERT_H
#include "common/model/manifest.h"
#include "common/ops/team.h"

typedef struct {
    mr_storage_type dense, tables; /* MR_STORE_COUNT: as they are */
    bool pack;                     /* matrices as panels (panels.h) */
    const char *const *keep;       /* [keep_count] tensors and matrices whose names contain one of
                                      these are not converted */
    uint32_t keep_count;
    uint64_t file_bytes_max; /* of a shard; 0: 4 GiB */
    mr_team *team;
    mr_progress progress; /* or NULL */
    void *context;
} mr_convert_options;

typedef struct {
    uint64_t bytes_before, bytes_after;              /* of all tensors */
    uint32_t converted, kept_transposed, from_codes; /* tensors; from_codes: by way of floats */
} mr_convert_report;

/* Writes the model into directory, which is not there yet or empty: config.json, weights, a
 * manifest and copies of the small files beside them. All of it appears at once, or nothing. */
mr_status mr_convert(mr_convert_report *out, const mr_model *model, const char *directory,
                     const mr_convert_options *options, mr_err *err);

#endif
