/* scheduler_blocks.c - see scheduler_blocks.h. Everything is an index into one array of blocks:
 * nothing is allocated after opening. */
#include "coordinator/scheduler_blocks.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = MR_KV_BLOCK_TOKENS };
static const uint32_t NONE = UINT32_MAX;

typedef struct {
    uint32_t holders;
    uint32_t next_in_bucket;
    uint32_t older, newer;  /* among the idle ones */
    uint64_t number, chain; /* number 0: not published */
    int32_t tokens[BLOCK];
} kv_block;

struct kv_pool {
    uint32_t count, free_count, idle_count;
    uint32_t *free_blocks;
    kv_block *blocks;
    uint32_t *buckets; /* block + 1, so that zeroed memory is an empty table */
    uint32_t bucket_mask;
    uint32_t oldest, newest; /* idle ones */
    uint64_t next_number, seed;
};

kv_pool *kv_pool_open(uint32_t count, uint64_t seed) {
    kv_pool *pool = mr_alloc(sizeof(*pool));
    uint32_t buckets = 1;
    while (buckets < count && buckets < 1u << 30) buckets *= 2;
    pool->count = pool->free_count = count;
    pool->seed = seed;
    pool->next_number = 1;
    pool->oldest = pool->newest = NONE;
    pool->bucket_mask = buckets - 1;
    pool->buckets = mr_alloc_array(buckets, sizeof(*pool->buckets));
    pool->blocks = mr_alloc_array(count, sizeof(*pool->blocks));
    pool->free_blocks = mr_alloc_array(count, sizeof(*pool->free_blocks));
    for (uint32_t i = 0; i < count; i++)
        pool->free_blocks[i] = count - 1 - i; /* the first to go is block 0 */
    return pool;
}

void kv_pool_close(kv_pool *pool) {
    if (!pool) return;
    free(pool->buckets);
    free(pool->blocks);
    free(pool->free_blocks);
    free(pool);
}

uint32_t kv_pool_available(const kv_pool *pool) {
    return pool->free_count + pool->idle_count;
}

uint32_t kv_pool_idle(const kv_pool *pool) {
    return pool->idle_count;
}

/* --- by tokens -------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) {
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    return x ^ (x >> 32);
}

static uint32_t *bucket_of(const kv_pool *pool, uint64_t chain, const int32_t *tokens) {
    uint64_t hash = mix(chain ^ pool->seed);
    for (int i = 0; i < BLOCK; i += 2)
        hash = mix(hash ^ ((uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]));
    return &pool->buckets[hash & pool->bucket_mask];
}

static uint32_t find(const kv_pool *pool, uint64_t chain, const int32_t *tokens) {
    uint32_t at = *bucket_of(pool, chain, tokens);
    while (at != 0) {
        const kv_block *b = &pool->blocks[at - 1];
        if (b->chain == chain && memcmp(b->tokens, tokens, sizeof(b->tokens)) == 0) return at - 1;
        at = b->next_in_bucket;
    }
    return NONE;
}

uint32_t kv_pool_match(const kv_pool *pool, const int32_t *tokens, uint32_t blocks_max,
                       uint32_t *blocks, uint32_t *idle, uint64_t *chain) {
    uint32_t count = 0;
    *chain = 0;
    *idle = 0;
    for (; count < blocks_max; count++) {
        const uint32_t block = find(pool, *chain, tokens + (size_t)count * BLOCK);
        if (block == NONE) break;
        *chain = pool->blocks[block].number;
        *idle += pool->blocks[block].holders == 0;
        if (blocks) blocks[count] = block;
    }
    return count;
}

uint64_t kv_pool_publish(kv_pool *pool, uint32_t block, uint64_t chain, const int32_t *tokens) {
    kv_block *b = &pool->blocks[block];
    assert(b->holders > 0 && b->number == 0);
    const uint32_t same = find(pool, chain, tokens);
    if (same != NONE) return pool->blocks[same].number;
    uint32_t *bucket = bucket_of(pool, chain, tokens);
    b->number = pool->next_number++;
    b->chain = chain;
    memcpy(b->tokens, tokens, sizeof(b->tokens));
    b->next_in_bucket = *bucket;
    *bucket = block + 1;
    return b->number;
}

static void forget(kv_pool *pool, uint32_t block) {
    kv_block *b = &pool->blocks[block];
    uint32_t *at = bucket_of(pool, b->chain, b->tokens);
    while (*at != block + 1) at = &pool->blocks[*at - 1].next_in_bucket;
    *at = b->next_in_bucket;
    b->number = 0;
}

/* --- holders ---------------------------------------------------------------------------------- */

static void leave_idle(kv_pool *pool, uint32_t block) {
    const kv_block *b = &pool->blocks[block];
    if (b->older == NONE)
        pool->oldest = b->newer;
    else
        pool->blocks[b->older].newer = b->newer;
    if (b->newer == NONE)
        pool->newest = b->older;
    else
        pool->blocks[b->newer].older = b->older;
    pool->idle_count--;
}

static void become_idle(kv_pool *pool, uint32_t block) {
    kv_block *b = &pool->blocks[block];
    b->older = pool->newest;
    b->newer = NONE;
    if (pool->newest == NONE)
        pool->oldest = block;
    else
        pool->blocks[pool->newest].newer = block;
    pool->newest = block;
    pool->idle_count++;
}

void kv_pool_hold(kv_pool *pool, uint32_t block) {
    kv_block *b = &pool->blocks[block];
    assert(b->number != 0);
    if (b->holders++ == 0) leave_idle(pool, block);
}

uint32_t kv_pool_take(kv_pool *pool) {
    uint32_t block;
    assert(kv_pool_available(pool) > 0);
    if (pool->free_count > 0)
        block = pool->free_blocks[--pool->free_count];
    else {
        block = pool->oldest;
        leave_idle(pool, block);
        forget(pool, block);
    }
    pool->blocks[block].holders = 1;
    return block;
}

void kv_pool_release(kv_pool *pool, uint32_t block) {
    kv_block *b = &pool->blocks[block];
    assert(b->holders > 0);
    if (--b->holders > 0) return;
    if (b->number != 0)
        become_idle(pool, block);
    else
        pool->free_blocks[pool->free_count++] = block;
}
