/* store_peer.h - cells copied from memshards that hold them: their rows come as answers to GATHER.
 *
 * What a model is (configuration, headers, manifest) comes from a directory or an address as ever
 * (source.h); only rows come from peers. The manifest must hold the checksums of the cells of the
 * grid that is wanted: a copied side is compared as a whole, and what does not match is fetched
 * once more, from another peer where there is one, then refused. Peers are asked in turn: one that
 * is gone, silent or answers an error is left for the next, and the copy goes on at the row where
 * it stopped. At most WINDOW answers are on their way.
 * Threads: one at a time. */
#ifndef MR_MEMSHARD_STORE_PEER_H
#define MR_MEMSHARD_STORE_PEER_H
#include "memshard/store.h"

typedef struct mr_peer_tables mr_peer_tables;

typedef struct {
    const char *addresses;           /* "host:port,unix:PATH,..", tried in turn */
    mr_digest digest;                /* of the model */
    uint32_t timeout_ms;             /* of a connection's opening, and of silence; 0: 5000 */
    uint32_t rounds;                 /* over all peers without a row of progress; 0: 4 */
    const atomic_bool *is_cancelled; /* looked at between answers; NULL: never */
} mr_peer_options;

/* base says what the tables are, and is borrowed until close. */
mr_status mr_peer_tables_open(mr_peer_tables **out, const mr_store_source *base,
                              const mr_peer_options *options, mr_err *err);
const mr_store_source *mr_peer_tables_source(const mr_peer_tables *tables);
void mr_peer_tables_close(mr_peer_tables *tables); /* NULL is fine */

#endif
