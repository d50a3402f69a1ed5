/* clock.h - monotonic time. Intervals are only ever taken between readings of one process.
 *
 * The cluster simulation (tests/sim) puts a clock of its own in place before anything else runs;
 * everywhere else the source stays NULL and a reading is one call of the C library. */
#ifndef MR_BASE_CLOCK_H
#define MR_BASE_CLOCK_H
#include <stddef.h>
#include <stdint.h>
#include <time.h>

extern int64_t (*mr_clock_source)(void); /* NULL: the machine's */

static inline int64_t mr_now_ns(void) {
    struct timespec now;
    if (__builtin_expect(mr_clock_source != NULL, 0)) return mr_clock_source();
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#endif
