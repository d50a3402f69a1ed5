/* tier_pread.c - the tier's engine for systems that refuse io_uring: threads that call preadv. */
#include "common/base/mem.h"
#include "memshard/tier_engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct {
    mr_tier_engine base;
    mr_tier_done done;
    void *context;
    pthread_mutex_t lock; /* guards the queue and is_closing */
    pthread_cond_t work;
    mr_tier_op *head, **tail;
    bool is_closing;
    uint32_t thread_count;
    pthread_t threads[];
} engine;

static void *serve(void *context) {
    engine *e = context;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        while (!e->head && !e->is_closing) pthread_cond_wait(&e->work, &e->lock);
        mr_tier_op *op = e->head;
        if (!op) break;
        e->head = op->next;
        if (!e->head) e->tail = &e->head;
        pthread_mutex_unlock(&e->lock);
        ssize_t got;
        do got = preadv(op->fd, op->room, (int)op->count, (off_t)op->offset);
        while (got < 0 && errno == EINTR);
        e->done(e->context, op, got < 0 ? -errno : got);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

static void submit(mr_tier_engine *base, mr_tier_op *first) {
    engine *e = (engine *)base;
    mr_tier_op *last = first;
    while (last->next) last = last->next;
    pthread_mutex_lock(&e->lock);
    *e->tail = first;
    e->tail = &last->next;
    if (first == last)
        pthread_cond_signal(&e->work);
    else
        pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
}

static void close_engine(mr_tier_engine *base) {
    engine *e = (engine *)base;
    pthread_mutex_lock(&e->lock);
    e->is_closing = true;
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i < e->thread_count; i++) pthread_join(e->threads[i], NULL);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

mr_status mr_tier_pread_open(mr_tier_engine **out, uint32_t threads, mr_tier_done done,
                             void *context, mr_err *err) {
    engine *e = mr_alloc(sizeof(*e) + threads * sizeof(e->threads[0]));
    *out = NULL;
    e->base = (mr_tier_engine){.name = "pread", .submit = submit, .close = close_engine};
    e->done = done;
    e->context = context;
    e->tail = &e->head;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, NULL);
    while (e->thread_count < threads &&
           pthread_create(&e->threads[e->thread_count], NULL, serve, e) == 0)
        e->thread_count++;
    if (e->thread_count == 0) {
        close_engine(&e->base);
        return mr_fail(err, MR_ERR_NOMEM, "no thread can be started to read rows");
    }
    *out = &e->base;
    return MR_OK;
}
