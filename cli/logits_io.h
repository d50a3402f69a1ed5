/* logits_io.h - the files of `memrack logits`: token ids in, logits and traces out. */
#ifndef MR_CLI_LOGITS_IO_H
#define MR_CLI_LOGITS_IO_H
#include "common/base/hash.h"
#include "common/model/model.h"
#include "common/model/safetensors_write.h"

typedef struct {
    int64_t *ids; /* [batch][tokens], owned */
    uint32_t batch, tokens;
} mr_id_matrix;

/* The tensor input_ids, I64 [B,T], of a safetensors file (others are ignored). Ids must lie in
 * [0, id_count), T in [1, context]. id_count 0: not checked here. */
mr_status mr_ids_read(mr_id_matrix *out, const char *path, uint32_t id_count, uint32_t context,
                      mr_err *err);
void mr_ids_free(mr_id_matrix *ids);

/* SHA-256 over a tensor's bytes in a finished file. */
mr_status mr_tensor_digest(mr_digest *out, const char *path, const char *tensor, mr_err *err);

/* `--connect`: logits [batch][tokens][columns] of a running cluster go to tensor `logits` of a file
 * written at output. beside (may be NULL): sequences sent at the same time, answers dropped. */
mr_status mr_logits_remote(const char *address, const mr_id_matrix *ids, const mr_id_matrix *beside,
                           uint32_t prefill_chunk, uint32_t decode_from, const char *output,
                           mr_err *err);

#endif
