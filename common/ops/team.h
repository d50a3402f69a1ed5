/* team.h - a team of threads that runs one loop at a time.
 *
 * mr_team_run cuts [0, items) into contiguous chunks that the members claim, and returns when all
 * are done; the caller's thread is member 0. Which thread computes what never changes a result:
 * kernels split over outputs only. Members spin briefly for the next loop, then sleep.
 * Threads: one thread at a time calls run. Every member runs round-to-nearest with FTZ and DAZ off.
 */
#ifndef MR_OPS_TEAM_H
#define MR_OPS_TEAM_H
#include "common/base/status.h"

#include <stdint.h>

typedef struct mr_team mr_team;
typedef void (*mr_team_task)(void *context, uint32_t member, uint32_t first, uint32_t count);

mr_status mr_team_open(mr_team **out, uint32_t threads, mr_err *err); /* 0: one per core allowed */
void mr_team_close(mr_team *team);
uint32_t mr_team_size(const mr_team *team);
void mr_team_run(mr_team *team, mr_team_task task, void *context, uint32_t items);

/* Round to nearest even, denormals kept: whatever the thread inherited. */
void mr_float_environment(void);

#endif
