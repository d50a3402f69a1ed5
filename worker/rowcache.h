/* rowcache.h - hot value rows kept at the worker.
 *
 * The sums of a retrieval are integers, so a row that is pooled here adds the same bits as one that
 * is pooled at its shard: the cache is exact. Rows are keyed by (table, row); tables are immutable,
 * so nothing is ever invalidated. Only whole value rows are kept: a gated layer needs its
 * pre-value rows as well and goes to the shards.
 *
 * A row is let in when a small sketch of recent use (4-bit counters that are halved now and then)
 * says it is asked for more often than the one it would replace; the one to go is found by a clock
 * hand. Each table has its equal share of the budget, made when the table is first used.
 * Threads: one at a time. Memory: all owned; nothing is allocated after a table's first use. */
#ifndef MR_WORKER_ROWCACHE_H
#define MR_WORKER_ROWCACHE_H
#include "common/base/status.h"
#include "common/ops/ops.h"

typedef struct mr_rowcache mr_rowcache;
typedef struct mr_rowcache_table mr_rowcache_table;

/* tables: one more than the highest index. shares: into how many the budget is cut. */
mr_rowcache *mr_rowcache_open(uint64_t bytes, uint32_t tables, uint32_t shares);
void mr_rowcache_close(mr_rowcache *cache); /* NULL is fine */

/* NULL: the share does not hold enough rows of this size to be of use, or memory is gone. */
mr_rowcache_table *mr_rowcache_use(mr_rowcache *cache, uint32_t table, uint32_t width,
                                   mr_storage format, uint64_t table_rows);

/* Counts one use of row. The slot it lies in, or UINT32_MAX. */
uint32_t mr_rowcache_find(mr_rowcache_table *t, uint32_t row);
/* After find said no: would it be let in? */
bool mr_rowcache_wants(const mr_rowcache_table *t, uint32_t row);
/* Copies one row as it is stored. */
void mr_rowcache_put(mr_rowcache_table *t, uint32_t row, const void *data);
/* All slots as table rows, for the kernels: row s is slot s. */
mr_rows mr_rowcache_rows(const mr_rowcache_table *t);
uint32_t mr_rowcache_held(const mr_rowcache_table *t); /* rows in it */

#endif
