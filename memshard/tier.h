/* tier.h - rows that stay in their file: a bounded part of memory for the hot ones, the rest read
 * when asked for.
 *
 * The unit is a block of 4 KiB at a multiple of 4 KiB of a file. Blocks are kept by CLOCK: one that
 * was asked for again survives the hand once, one that was not is the first to go. A request's
 * misses are submitted together, neighbours as one read, past the page cache (O_DIRECT) where the
 * file system can; whoever asks for a block on its way waits for the same read. Two engines:
 * io_uring, and a pool of threads that call preadv where io_uring is missing or refused. What is
 * read is compared with checksums taken when the rows were verified at load, once more after a
 * second read; a block that stays wrong or unreadable is an error, never an answer.
 * Threads: every call from any thread; remove a file only when nobody reads it any more.
 * Memory: all of it is taken at open but for 4 bytes a block of each file. */
#ifndef MR_MEMSHARD_TIER_H
#define MR_MEMSHARD_TIER_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct mr_tier mr_tier;

typedef struct {
    uint64_t budget_bytes; /* of memory, at least MR_TIER_BUDGET_MIN */
    const char *engine;    /* "uring", "pread"; NULL: io_uring if it works here */
    uint32_t threads;      /* of the pread engine; 0: 16 */
    uint32_t timeout_ms;   /* of one read; 0: 5000 */
} mr_tier_options;

enum { MR_TIER_BLOCK_BYTES = 4096, MR_TIER_BUDGET_MIN = 1 << 20 };

mr_status mr_tier_open(mr_tier **out, const mr_tier_options *options, mr_err *err);
void mr_tier_close(mr_tier *tier); /* NULL is fine; all files are removed */
const char *mr_tier_engine_name(const mr_tier *tier);

/* Bytes [first, first + bytes) of a file may be read from now on, under the number *file. */
mr_status mr_tier_add(mr_tier *tier, uint32_t *file, const char *path, uint64_t first,
                      uint64_t bytes, mr_err *err);
/* The verified bytes from `at` (of the file) on, in ascending order without gaps, from `first` on:
 * later reads must give the same. */
void mr_tier_learn(mr_tier *tier, uint32_t file, uint64_t at, const void *data, uint64_t bytes);
void mr_tier_remove(mr_tier *tier, uint32_t file);

typedef struct {
    uint32_t file, bytes;
    uint64_t first; /* in the file; inside what was added */
    void *to;
} mr_tier_piece;
mr_status mr_tier_read(mr_tier *tier, const mr_tier_piece *pieces, uint32_t count, mr_err *err);
/* The same blocks, asked for early: nothing is waited for, and nothing is done when the engine is
 * busy. */
void mr_tier_prefetch(mr_tier *tier, const mr_tier_piece *pieces, uint32_t count);

/* From the file itself, past what is kept: for the scrubber. room: bytes + 2 blocks, aligned to
 * one; *data points into it. */
mr_status mr_tier_read_file(mr_tier *tier, uint32_t file, uint64_t first, uint32_t bytes,
                            void *room, const uint8_t **data, mr_err *err);
/* Compares up to `blocks` kept blocks with their checksums, going round; wrong ones are dropped, to
 * be read again. How many were wrong. */
uint32_t mr_tier_scrub(mr_tier *tier, uint32_t blocks);

typedef struct {
    uint64_t hits, misses;      /* blocks asked for: in memory or on their way; read for it */
    uint64_t reads, read_bytes; /* of the device */
    uint64_t prefetched, evicted, failures, memory_failures; /* blocks */
    uint64_t resident_bytes, budget_bytes;
    uint64_t file_bytes; /* of all files added */
    bool is_direct;      /* every file is read past the page cache */
} mr_tier_counters;
void mr_tier_count(mr_tier *tier, mr_tier_counters *out);

/* Flips a bit of one kept block whose checksum is known, as failing memory would. */
void mr_tier_spoil_for_test(mr_tier *tier);

#endif
