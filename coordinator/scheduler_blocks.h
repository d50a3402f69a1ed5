/* scheduler_blocks.h - inside of the scheduler: KV blocks, counted, and found again by their
 * tokens.
 *
 * A block is free, held by sequences (counted), or idle: held by nobody, but its tokens are known,
 * so that a prompt that begins with them need not compute them again. Idle blocks are given away
 * when no free one is left, the one that was idle longest first.
 * Full blocks whose content is sure are published under (chain, tokens): the chain is the number of
 * the published block before it, 0 for the first. Numbers are never used twice and tokens are
 * compared one by one, so a match is exact whatever the hash does; the seed only keeps clients from
 * choosing tokens that collide.
 * Threads: one owner. */
#ifndef MR_COORDINATOR_SCHEDULER_BLOCKS_H
#define MR_COORDINATOR_SCHEDULER_BLOCKS_H
#include <stdint.h>

typedef struct kv_pool kv_pool;

kv_pool *kv_pool_open(uint32_t count, uint64_t seed);
void kv_pool_close(kv_pool *pool);

uint32_t kv_pool_available(const kv_pool *pool); /* free and idle ones */
uint32_t kv_pool_idle(const kv_pool *pool);

/* How many leading blocks of `tokens` (blocks_max * 16 of them) are published. blocks may be NULL;
 * *idle: how many of them are idle; *chain: the number of the last one. Nothing is taken. */
uint32_t kv_pool_match(const kv_pool *pool, const int32_t *tokens, uint32_t blocks_max,
                       uint32_t *blocks, uint32_t *idle, uint64_t *chain);

void kv_pool_hold(kv_pool *pool, uint32_t block); /* one more holder of a published block */
uint32_t kv_pool_take(kv_pool *pool);             /* an empty one; there must be one available */
void kv_pool_release(kv_pool *pool, uint32_t block);

/* The block holds these 16 tokens behind `chain`. Returns the number of the block that stands for
 * them from now on: this one, or an equal one published before. */
uint64_t kv_pool_publish(kv_pool *pool, uint32_t block, uint64_t chain, const int32_t *tokens);

#endif
