/* cluster_table.h - what people look at: one line for each process of a cluster, from its member
 * record and its own answer to Status. Used by `memrack up` and `memrack status`.
 *
 * Members are asked side by side, each for half a second at most: a dead one shows as "silent".
 * Threads: one caller; a few threads of its own while it asks. */
#ifndef MR_CLI_CLUSTER_TABLE_H
#define MR_CLI_CLUSTER_TABLE_H
#include "common/net/agent.h"

#include <stdio.h>

typedef struct mr_cluster_table mr_cluster_table;

/* tls: files of the operator's certificate; NULL: plain. Borrowed. */
mr_cluster_table *mr_cluster_table_open(mr_cluster *cluster, const mr_agent_settings *tls);
void mr_cluster_table_close(mr_cluster_table *table); /* NULL is fine */
void mr_cluster_table_print(mr_cluster_table *table, FILE *out);
void mr_cluster_table_redraw(mr_cluster_table *table, FILE *out); /* over the last one */
void mr_cluster_table_json(mr_cluster_table *table, FILE *out);
/* How many lines are not as they should be: silent, loading, draining, a cell without replica. */
uint32_t mr_cluster_table_troubles(const mr_cluster_table *table);

#endif
