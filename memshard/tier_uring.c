/* tier_uring.c - the tier's engine over io_uring: whoever asks submits, one thread takes what is
 * done. Probed at run time: containers often refuse the system calls. */
#include "common/base/mem.h"
#include "memshard/tier_engine.h"

#ifdef MR_HAVE_URING
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    mr_tier_engine base;
    mr_tier_done done;
    void *context;
    struct io_uring ring;
    pthread_mutex_t lock; /* guards the submission side of the ring */
    pthread_t thread;
} engine;

/* Ends at the first completion without an op. */
static void *take_done(void *context) {
    engine *e = context;
    for (;;) {
        struct io_uring_cqe *cqe;
        const int code = io_uring_wait_cqe(&e->ring, &cqe);
        if (code == -EINTR) continue;
        if (code < 0) return NULL;
        mr_tier_op *op = io_uring_cqe_get_data(cqe);
        const int result = cqe->res;
        io_uring_cqe_seen(&e->ring, cqe);
        if (!op) return NULL;
        (void)atomic_load_explicit(&op->handed, memory_order_acquire);
        e->done(e->context, op, result);
    }
}

/* The ring has room for all ops there are, so an entry is there once what waits is submitted. */
static struct io_uring_sqe *entry(engine *e) {
    struct io_uring_sqe *sqe;
    while (!(sqe = io_uring_get_sqe(&e->ring))) io_uring_submit(&e->ring);
    return sqe;
}

static void submit(mr_tier_engine *base, mr_tier_op *first) {
    engine *e = (engine *)base;
    pthread_mutex_lock(&e->lock);
    for (mr_tier_op *op = first, *next; op; op = next) {
        next = op->next; /* done may reuse op as soon as it is submitted */
        struct io_uring_sqe *sqe = entry(e);
        io_uring_prep_readv(sqe, op->fd, op->room, op->count, op->offset);
        io_uring_sqe_set_data(sqe, op);
        atomic_store_explicit(&op->handed, 1, memory_order_release);
    }
    while (io_uring_sq_ready(&e->ring) > 0) {
        const int code = io_uring_submit(&e->ring);
        if (code < 0 && code != -EINTR && code != -EAGAIN && code != -EBUSY) break;
    }
    pthread_mutex_unlock(&e->lock);
}

static void close_engine(mr_tier_engine *base) {
    engine *e = (engine *)base;
    pthread_mutex_lock(&e->lock);
    struct io_uring_sqe *sqe = entry(e);
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, NULL);
    io_uring_submit(&e->ring);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    io_uring_queue_exit(&e->ring);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

mr_status mr_tier_uring_open(mr_tier_engine **out, mr_tier_done done, void *context, mr_err *err) {
    *out = NULL;
    engine *e = mr_alloc(sizeof(*e));
    const int code = io_uring_queue_init(MR_TIER_OPS, &e->ring, 0);
    if (code < 0) {
        free(e);
        return mr_fail(err, MR_ERR_UNSUPPORTED, "io_uring is refused here: %s", strerror(-code));
    }
    e->base = (mr_tier_engine){.name = "uring", .submit = submit, .close = close_engine};
    e->done = done;
    e->context = context;
    pthread_mutex_init(&e->lock, NULL);
    if (pthread_create(&e->thread, NULL, take_done, e) != 0) {
        io_uring_queue_exit(&e->ring);
        pthread_mutex_destroy(&e->lock);
        free(e);
        return mr_fail(err, MR_ERR_NOMEM, "no thread can be started to read rows");
    }
    *out = &e->base;
    return MR_OK;
}
#else
mr_status mr_tier_uring_open(mr_tier_engine **out, mr_tier_done done, void *context, mr_err *err) {
    (void)done, (void)context;
    *out = NULL;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "this build has no io_uring (liburing was missing)");
}
#endif
