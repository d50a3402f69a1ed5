/* session.h - opening a session, the side that listens. The side that connects calls
 * mr_session_open() of fabric.h.
 *
 * HELLO states a range of versions; the highest that both speak is chosen. Roles must meet, the
 * digests must be equal unless the asker left its own at zero. A refusal says both sides' values.
 * A keyed HELLO must carry a good MAC; one with a key that is not known (any more) is refused as
 * stale: the asker fetches a newer key and tries again. */
#ifndef MR_NET_SESSION_H
#define MR_NET_SESSION_H
#include "common/net/fabric.h"

typedef struct {
    uint16_t version_min, version_max; /* 0, 0: those of this build */
    mr_role role;
    mr_digest digest;
    const void *tail; /* what follows mr_wire_welcome: cells or worker info */
    uint32_t tail_bytes;
    uint32_t cell_count, grid_rows, grid_columns;
    struct mr_keys *keys; /* keyed sessions are taken with these (keys.h); NULL: none are */
    bool is_key_required; /* and no others */
} mr_session_offer;

/* The highest version in both ranges; 0 when they do not meet. */
uint16_t mr_version_choose(uint16_t own_min, uint16_t own_max, uint16_t peer_min,
                           uint16_t peer_max);

/* Answers a HELLO on reply with WELCOME (MR_OK) or REFUSE (the reason, which err holds too; the
 * caller flushes what it can and closes). A frame that is no HELLO is refused as well. */
mr_status mr_session_answer(mr_link *reply, const mr_frame *frame, const mr_session_offer *offer,
                            mr_err *err);

/* Ends a link for what its peer sent: queues REFUSE with the sentence, once; mr_server closes the
 * link when it is written. A handler calls this for a frame that no honest peer sends. */
void mr_session_refuse(mr_link *link, uint64_t request, mr_status status, const char *sentence);

const char *mr_role_name(uint16_t role); /* "memshard" */

#endif
