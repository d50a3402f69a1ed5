/* scrub.h - a thread that reads the rows held here again and again, slowly, and compares them with
 * their checksums, so that rot in a file or in memory is found before it is believed.
 *
 * A cell that fails, here or by a fault under its mapping, is marked bad (its answers are errors
 * from then on) and handed to on_bad once, to be closed and loaded again from somewhere.
 * Threads: add, remove and count from any thread; on_bad runs in the scrubber's thread. */
#ifndef MR_MEMSHARD_SCRUB_H
#define MR_MEMSHARD_SCRUB_H
#include "memshard/store.h"

typedef struct mr_scrub mr_scrub;

/* held was marked bad. It may be removed from the scrubber in here, and must be before it closes;
 * waiting for its readers belongs elsewhere. */
typedef void (*mr_scrub_bad)(void *context, mr_held *held, const mr_err *why);

typedef struct {
    uint64_t bytes_per_second; /* 0: 32 MiB */
    uint32_t pause_ms;         /* between two passes over everything; 0: a minute */
    mr_tier *tier;             /* whose kept blocks are compared as well; NULL: none */
    mr_scrub_bad on_bad;       /* NULL: only logged */
    void *context;
} mr_scrub_options;

mr_status mr_scrub_open(mr_scrub **out, const mr_scrub_options *options, mr_err *err);
void mr_scrub_close(mr_scrub *scrub); /* NULL is fine */
void mr_scrub_add(mr_scrub *scrub, mr_held *held);
/* Returns once the scrubber has its hands off held (a chunk's time at most). Unknown: nothing. */
void mr_scrub_remove(mr_scrub *scrub, mr_held *held);

typedef struct {
    uint64_t chunks, bytes, passes;
    uint64_t failures;        /* cells found bad */
    uint64_t memory_failures; /* blocks of the tier found wrong in memory, and dropped */
} mr_scrub_counters;
void mr_scrub_count(mr_scrub *scrub, mr_scrub_counters *out);

#endif
