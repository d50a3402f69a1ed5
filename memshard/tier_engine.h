/* tier_engine.h - how a tier reads: io_uring (tier_uring.c) or threads (tier_pread.c). Internal to
 * the tier.
 *
 * submit takes ops over; done is called once for each, from a thread of the engine, with the bytes
 * read or a negative errno. Threads: submit from any. close once nothing is in flight. */
#ifndef MR_MEMSHARD_TIER_ENGINE_H
#define MR_MEMSHARD_TIER_ENGINE_H
#include "common/base/status.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>

enum { MR_TIER_OP_BLOCKS = 16, MR_TIER_OPS = 512 };

typedef struct mr_tier_op mr_tier_op;
struct mr_tier_op {
    int fd;
    uint32_t count; /* blocks, neighbours in the file */
    uint64_t offset;
    struct iovec room[MR_TIER_OP_BLOCKS];
    uint32_t slot[MR_TIER_OP_BLOCKS];
    uint32_t tries;
    _Atomic uint32_t handed; /* orders filling before completion where the kernel stands between */
    mr_tier_op *next;
};

typedef void (*mr_tier_done)(void *context, mr_tier_op *op, int64_t result);

typedef struct mr_tier_engine mr_tier_engine;
struct mr_tier_engine {
    const char *name;
    void (*submit)(mr_tier_engine *engine, mr_tier_op *first); /* a list through next */
    void (*close)(mr_tier_engine *engine);
};

mr_status mr_tier_pread_open(mr_tier_engine **out, uint32_t threads, mr_tier_done done,
                             void *context, mr_err *err);
/* MR_ERR_UNSUPPORTED where this build or this system has none. */
mr_status mr_tier_uring_open(mr_tier_engine **out, mr_tier_done done, void *context, mr_err *err);

#endif
