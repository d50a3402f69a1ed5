/* member.h - a worker as a member of a cluster: serves stages of models, follows the cluster's maps
 * and the addresses of next stages, and leaves without losing a step.
 *
 * Threads: open, start and close from the main thread; orders come in threads of the control
 * service, views in the agent's. */
#ifndef MR_WORKER_MEMBER_H
#define MR_WORKER_MEMBER_H
#include "common/net/agent.h"
#include "common/net/fabric_choice.h"
#include "worker/serve.h"

typedef struct mr_worker_member mr_worker_member;

typedef struct {
    const mr_agent_settings *agent; /* borrowed until close */
    const char *listen;             /* borrowed until close */
    /* Of every engine: ops, threads, kv_blocks, step limits, retrieval timeout, row cache, spin. */
    mr_engine_options engine;
    mr_fabric_policy fabric; /* to the memshards */
    bool is_keyed;           /* sessions to memshards carry MACs; keys come over control, TLS */
    const mr_session_key *static_key; /* instead: the same file on both sides; copied; or NULL */
    int64_t connect_timeout_ms;       /* how long the first model waits for its map */
    void (*leave)(void *context);     /* drained and asked to end; from any thread */
    void *context;
} mr_worker_member_options;

mr_status mr_worker_member_open(mr_worker_member **out, const mr_worker_member_options *options,
                                mr_err *err);
/* Loads a stage; the member may serve several models. Any thread, one after the other. */
typedef struct {
    const char *source; /* a model folder, or an address that serves one */
    const char *group;
    uint32_t stage, stages;
    uint32_t block_first, block_count; /* 0, 0: as mr_stage_cut says */
    mr_digest digest;                  /* zero: whatever the source has */
} mr_worker_load;
mr_status mr_worker_member_load(mr_worker_member *member, const mr_worker_load *load,
                                mr_progress progress, void *context, mr_err *err);
/* Announces it as ready. */
void mr_worker_member_start(mr_worker_member *member);
void mr_worker_member_close(mr_worker_member *member); /* NULL is fine */
const char *mr_worker_member_id(const mr_worker_member *member);
const char *mr_worker_member_address(mr_worker_member *member);

#endif
