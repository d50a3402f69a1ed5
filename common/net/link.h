/* link.h - inside of common/net: what a link is made of, shared by its homes and the session.
 *
 * A link has one output buffer and one input; both are byte queues that grow and are kept. The
 * stream home fills the input from its socket; the loop home has a twin, whose output buffer is the
 * link's input; the UCX home moves bytes between its messages and the same queues. All parsing is
 * in fabric.c, so all homes refuse the same garbage with the same sentence. */
#ifndef MR_NET_LINK_H
#define MR_NET_LINK_H
#include "common/net/fabric.h"

typedef struct {
    uint8_t *data; /* 64-byte aligned; NULL until first used */
    size_t room;
    size_t head, tail; /* bytes [head, tail) are queued */
} mr_queue;

typedef struct {
    /* Writes out what it can. MR_ERR_AGAIN: some is left. */
    mr_status (*flush)(mr_link *link, mr_err *err);
    /* Brings bytes into *input, which lacks at least `missing` for its next frame. */
    mr_status (*fill)(mr_link *link, size_t missing, mr_err *err);
    void (*close)(mr_link *link);
    /* Homes with an engine: there is something to fill from (if `reads`), or what waits to be
     * written can go on. */
    bool (*has_news)(const mr_link *link, bool reads);
} mr_link_home;

/* What moves the bytes of links that have no descriptor of their own. */
typedef struct mr_engine {
    int fd;                                     /* readable on news after arm said MR_OK */
    bool (*progress)(struct mr_engine *engine); /* true: something moved */
    mr_status (*arm)(struct mr_engine *engine); /* MR_ERR_AGAIN: there is news already */
} mr_engine;

struct mr_link {
    const mr_link_home *home;
    void *inner;       /* the home's own */
    mr_engine *engine; /* UCX; NULL: the descriptor tells all */
    const char *transport;
    int fd;               /* -1 for loop links and where there is an engine */
    uint16_t version;     /* of the session; 0 before it is open */
    uint32_t payload_max; /* a server lowers it until the session is open */
    bool is_refused;      /* REFUSE was queued: close once it is written */
    bool is_drained;      /* stream: the last read left the socket empty */
    mr_queue out, in;
    mr_queue *input;              /* &in, or the twin's out */
    size_t held_bytes;            /* left out already and not yet gone (UCX) */
    size_t handed;                /* bytes at the head of input that the last receive handed out */
    size_t begun_at, begun_bytes; /* the frame between begin and end: where it lies in out */
    bool is_begun;
    mr_status failure; /* final: every later call repeats it */
    mr_err why;
    uint64_t bytes_sent, bytes_received;
    char *peer;
    mr_digest digest; /* of the session's model */
    mr_link_grid grid;
    uint32_t lane;              /* the server's thread */
    int64_t seen_ns;            /* when that thread last looked */
    bool is_crowded;            /* and has more to hand over */
    struct mr_seal *seal;       /* MACs of a keyed session; NULL: none */
    struct mr_session_key *key; /* for the next session opened on it; owned, NULL: none */
    mr_link *twin;              /* loop: the end that the handler answers on */
    mr_frame_handler handler;
    void *context;
};

/* What a frame that came whole must still prove: its MAC, in a keyed session. Once for each frame,
 * in order. Before the session is open nothing is proved here: session.c does it. */
mr_status mr_link_admit(mr_link *link, const mr_frame *frame, mr_err *err);

mr_link *mr_link_new(const mr_link_home *home, int fd, const char *peer);

/* Room for `bytes` more at the tail: moves the queue down or grows it. false beyond limit_bytes or
 * when memory is gone; the queue is as it was. */
bool mr_queue_reserve(mr_queue *queue, size_t bytes, size_t limit_bytes);
static inline size_t mr_queue_bytes(const mr_queue *queue) {
    return queue->tail - queue->head;
}

/* The first frame of queue, checked as link's, moved to an 8-byte boundary. MR_ERR_AGAIN: *missing
 * more bytes are needed before it can be said. Nothing is taken off the queue. */
mr_status mr_queue_frame(mr_queue *queue, const mr_link *link, mr_frame *out, size_t *missing,
                         mr_err *err);
void mr_queue_drop(mr_queue *queue, size_t bytes);

/* The largest backlog at which one more answer of any size still has room. */
enum { MR_LINK_BACKLOG_SOFT_BYTES = 4 << 20 };
static inline bool mr_link_is_backlogged(const mr_link *link) {
    return mr_queue_bytes(&link->out) + link->held_bytes > MR_LINK_BACKLOG_SOFT_BYTES;
}

#endif
