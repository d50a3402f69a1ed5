/* replay.h - parts of `memrack replay`: a recording made sure of or made up, and the shards it is
 * replayed against. Threads: one. */
#ifndef MR_CLI_REPLAY_H
#define MR_CLI_REPLAY_H
#include "common/base/options.h"
#include "common/model/manifest.h"
#include "common/net/agent.h"
#include "memshard/serve.h"
#include "memshard/tier.h"
#include "worker/recorder.h"
#include "worker/retrieval.h"
#include "worker/shards.h"

/* --- the recording (replay_trace.c) ----------------------------------------------------------- */

typedef struct {
    uint64_t retrievals, others; /* of this model; of another one */
    uint64_t rows, distinct;     /* asked for; and how many there are, each retrieval by itself */
    uint64_t tokens, dropped;
    uint32_t layers; /* of the model that occur */
    int64_t span_ns;
} mr_replay_facts;

/* Reads all of it: every record whole, its checksum right, its shape and ids those of the model. */
mr_status mr_replay_check(mr_replay_facts *out, mr_recording *recording, const mr_model *model,
                          const mr_digest *digest, mr_err *err);

/* "zipf:SKEW:TOKENS", batch tokens a step: writes a recording of every memory layer. */
mr_status mr_replay_make(const char *path, const char *spec, uint32_t batch, uint64_t seed,
                         const mr_model *model, const mr_digest *digest, mr_err *err);

/* --- the shards (replay_target.c) ------------------------------------------------------------- */

typedef struct {
    mr_agent_settings where; /* .cluster is set where is_cluster */
    bool is_cluster;
    mr_text_list memshards;
    const char *grid, *tier_ram, *row_cache, *fabric;
    int64_t spin_us;
    const mr_model *model;
    const mr_manifest *manifest;
} mr_replay_target_options;

typedef struct {
    mr_retrieval *retrieval;
    mr_grid grid;
    mr_tier *tier;      /* in this process, where one was asked for */
    mr_memshard *shard; /* in this process */
    uint64_t cache_bytes;
    struct mr_replay_dial *dial;
} mr_replay_target;

mr_status mr_replay_target_open(mr_replay_target *out, const mr_replay_target_options *options,
                                mr_err *err);
void mr_replay_target_close(mr_replay_target *target);

#endif
