/* store_source.h - a memshard's tables from wherever its order says: a directory, an HTTP(S)
 * address, or peers that hold the cells.
 *
 *   DIRECTORY                        as it lies there
 *   http://.. https://..             ranges of the files, kept in the cache folder (source.h)
 *   peer:ADDRESS[,ADDRESS..];WHERE   rows from the peers; configuration, headers and manifest from
 *                                    WHERE, a directory or an address (store_peer.h)
 *
 * mr_store_opener_open is an mr_source_opener (holdings.h) with an mr_store_opener as its context.
 * Threads: as the openers of holdings.h; the opener itself is only read. */
#ifndef MR_MEMSHARD_STORE_SOURCE_H
#define MR_MEMSHARD_STORE_SOURCE_H
#include "common/model/source.h"
#include "memshard/holdings.h"

typedef struct {
    mr_source_options source; /* digest, progress and cancellation come with the order */
    uint32_t peer_timeout_ms; /* 0: the default */
} mr_store_opener;

mr_status mr_store_opener_open(void *opener, mr_table_source *out, const mr_load_order *order,
                               mr_progress progress, void *progress_context, mr_err *err);

#endif
