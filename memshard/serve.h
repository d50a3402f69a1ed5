/* serve.h - one memshard: the cells it holds, and the answers to retrieval frames.
 *
 * mr_memshard_handle() is an mr_frame_handler: the serving threads of a memrack-memshard process
 * call it, and so does a loop link where the tables live in the engine's own process. A frame no
 * honest worker sends ends its link (REFUSE); one that does not fit the model, the grid or this
 * shard is answered with ERROR and a sentence.
 * Threads: handle may run in any number of threads at once, all running round-to-nearest-even with
 * FTZ and DAZ off; the tables are immutable. open/close from one thread.
 * Memory: the answer is computed in the reply's own buffer. Gated pooling needs room for x, dots
 * and weights: a few scratch areas grow to the largest request and are kept. */
#ifndef MR_MEMSHARD_SERVE_H
#define MR_MEMSHARD_SERVE_H
#include "common/net/server.h"
#include "common/ops/team.h"
#include "memshard/store.h"

typedef struct mr_memshard mr_memshard;

/* ops NULL: the best of this processor. model and manifest are borrowed until close. Cell c of the
 * grid lies on shard c mod shard_count. */
mr_status mr_memshard_open(mr_memshard **out, const mr_model *model, const mr_manifest *manifest,
                           const mr_ops *ops, mr_grid grid, uint32_t shard_index,
                           uint32_t shard_count, mr_err *err);
/* The same over any source of tables. */
mr_status mr_memshard_open_source(mr_memshard **out, const mr_store_source *source,
                                  const mr_ops *ops, mr_grid grid, uint32_t shard_index,
                                  uint32_t shard_count, mr_err *err);
/* Holds the product keys of all memory layers beside the first model's cells: TOPK is answered
 * then. Refused with both figures where memory is short. */
mr_status mr_memshard_open_keys(mr_memshard *shard, const mr_model *model, mr_err *err);
void mr_memshard_close(mr_memshard *shard); /* NULL is fine */

/* What open would hold. */
mr_status mr_memshard_plan(mr_store_plan *out, const mr_model *model, const mr_manifest *manifest,
                           mr_grid grid, uint32_t shard_index, uint32_t shard_count, mr_err *err);

/* Lets handle share a request's tokens out over a team. Only for a shard reached over a loop link
 * by the thread that owns the team; NULL ends it. Borrowed. */
void mr_memshard_set_team(mr_memshard *shard, mr_team *team);

void mr_memshard_handle(void *shard, mr_link *reply, const mr_frame *frame);

/* The rest of a server's callbacks, and all of them put into options at once: sessions by digest
 * and grid, frames of a round worked on together, links that close. A server without round_over,
 * and a loop link, have every frame answered at once. */
mr_status mr_memshard_offer(void *shard, const mr_wire_hello *hello, mr_session_offer *out,
                            mr_err *err);
void mr_memshard_round_over(void *shard, uint32_t lane);
void mr_memshard_link_closed(void *shard, mr_link *link);
void mr_memshard_serve_options(mr_memshard *shard, mr_server_options *out);

uint64_t mr_memshard_bytes(mr_memshard *shard); /* of rows, however they are held, and keys */
/* Of a shard that does not change: one opened with all it holds. */
uint32_t mr_memshard_cell_count(mr_memshard *shard);
const uint32_t *mr_memshard_cells(mr_memshard *shard); /* ids, ascending */

#endif
