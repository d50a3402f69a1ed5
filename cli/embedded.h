/* embedded.h - a whole cluster in one process: model, manifest, one memshard that holds every cell,
 * and an engine (or one for each pipeline stage) that reaches it over a loop link. What `logits`,
 * `generate`, `chat` and `serve` run. Threads: open and close from one thread. */
#ifndef MR_CLI_EMBEDDED_H
#define MR_CLI_EMBEDDED_H
#include "memshard/serve.h"
#include "worker/engine.h"

typedef struct {
    const char *model_directory;
    mr_model *model;          /* already opened: taken over, whatever happens; NULL: opened here */
    uint32_t threads;         /* 0: one per core */
    const char *isa;          /* NULL: the best */
    const char *numeric;      /* exact or fast; NULL: exact */
    const char *grid;         /* NULL: 1x1 */
    uint32_t kv_blocks;       /* 0: the engine's default */
    uint32_t step_tokens_max; /* 0: the engine's default */
    uint32_t step_sequences_max;
    uint32_t stages; /* pipeline stages, one after the other in the caller's thread; 0: 1 */
    bool two_trips;
    bool quiet; /* no progress bar, no line about memory */
} mr_embedded_options;

typedef struct {
    mr_model *model;
    mr_manifest manifest;
    mr_memshard *shard;  /* NULL without memory layers */
    mr_engine *engine;   /* engines[0]: the whole model where stages is 1 */
    mr_engine **engines; /* [stages] */
    uint32_t stages;
} mr_embedded;

mr_status mr_embedded_open(mr_embedded *out, const mr_embedded_options *options, mr_err *err);
void mr_embedded_close(mr_embedded *embedded);

/* One step through all stages; as mr_engine_step. */
mr_status mr_embedded_step(mr_embedded *embedded, const mr_step *step, const mr_step_sink *sink,
                           mr_err *err);

/* ops by name; the sentence lists what this processor has. */
mr_status mr_embedded_ops(const mr_ops **out, const char *isa, mr_err *err);

#endif
