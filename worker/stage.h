/* stage.h - a model cut into pipeline stages: where, what crosses each cut, and a pipeline run in
 * one process.
 *
 * Stages are ranges of blocks. A cut inside a skip window makes the stage that asked for the memory
 * finish it and hand its output on beside the hidden states, to be added where it belongs: the same
 * additions in the same order, so the answers are the same bits wherever the cuts lie.
 * Threads: pure functions, but for mr_stages_step (the engines' thread). */
#ifndef MR_WORKER_STAGE_H
#define MR_WORKER_STAGE_H
#include "worker/engine.h"

/* Fills out[stages], the same in every process that has the model: balanced by the bytes of dense
 * weights and the work of memory layers. Of all cuts whose slowest stage is at most a quarter above
 * the best, one with the fewest cuts inside skip windows. MR_ERR_ARGUMENT: more stages than blocks.
 */
mr_status mr_stage_cut(mr_block_range *out, const mr_model *model, uint32_t stages, mr_err *err);

/* The blocks of one stage: of the cut, or block_first and block_count where the latter is not 0. */
mr_status mr_stage_range(mr_block_range *out, const mr_model *model,
                         const mr_engine_options *options, mr_err *err);

/* Whether a memory layer that matters is read in the range: its stage needs memshards. */
bool mr_stage_reads_memory(const mr_model *model, mr_block_range range);

/* at[n_layers]: the memory layer that reads at each block, or -1; added[memory_count]: whether its
 * output reaches the residual stream (docs/MODELS.md: one slot, overwritten by a new reading). */
void mr_stage_schedule(int32_t *at, bool *added, const mr_model *model);

/* The memory layer whose output is under way from block - 1 into block, or -1. */
int32_t mr_stage_pending(const mr_model *model, uint32_t block);

/* One step through all stages in this thread; as mr_engine_step. */
mr_status mr_stages_step(mr_engine *const *stages, uint32_t count, const mr_step *step,
                         const mr_step_sink *sink, mr_wire_done *done, mr_err *err);

#endif
