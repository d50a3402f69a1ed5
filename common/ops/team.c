/* team.c - see team.h. The generation counter announces a loop, `left` counts members still in it.
 * The mutex guards only sleeping and waking: a member that found nothing to do for a while. */
#include "common/ops/team.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SPINS = 4000 };

struct mr_team {
    pthread_t *threads; /* [size - 1] */
    uint32_t size;
    bool spin; /* a core for each member */
    mr_team_task task;
    void *context;
    uint32_t items;
    atomic_uint generation, left;
    atomic_bool stop;
    pthread_mutex_t mutex; /* guards the two conditions below */
    pthread_cond_t started, finished;
    atomic_uint started_members; /* hands out member numbers at start */
};

void mr_float_environment(void) {
    fesetround(FE_TONEAREST);
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() & ~(0x8000u | 0x0040u)); /* flush to zero, denormals are zero */
#endif
}

static inline void relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

static void run_part(mr_team *t, uint32_t member) {
    const uint32_t first = (uint32_t)((uint64_t)t->items * member / t->size);
    const uint32_t end = (uint32_t)((uint64_t)t->items * (member + 1) / t->size);
    if (end > first) t->task(t->context, member, first, end - first);
}

static void wait_for_loop(mr_team *t, unsigned seen) {
    for (int i = 0; t->spin && i < SPINS; i++) {
        if (atomic_load_explicit(&t->generation, memory_order_acquire) != seen) return;
        relax();
    }
    pthread_mutex_lock(&t->mutex);
    while (atomic_load(&t->generation) == seen) pthread_cond_wait(&t->started, &t->mutex);
    pthread_mutex_unlock(&t->mutex);
}

static void *member_main(void *argument) {
    mr_team *t = argument;
    const uint32_t member = atomic_fetch_add(&t->started_members, 1) + 1;
    unsigned seen = 0;
    mr_float_environment();
    for (;;) {
        wait_for_loop(t, seen);
        seen = atomic_load_explicit(&t->generation, memory_order_acquire);
        if (atomic_load(&t->stop)) return NULL;
        run_part(t, member);
        if (atomic_fetch_sub_explicit(&t->left, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&t->mutex);
            pthread_cond_signal(&t->finished);
            pthread_mutex_unlock(&t->mutex);
        }
    }
}

static uint32_t allowed_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
    const int count = CPU_COUNT(&set);
    return count < 1 ? 1 : (uint32_t)count;
}

static void announce(mr_team *t) {
    pthread_mutex_lock(&t->mutex);
    atomic_fetch_add_explicit(&t->generation, 1, memory_order_release);
    pthread_cond_broadcast(&t->started);
    pthread_mutex_unlock(&t->mutex);
}

static void stop_members(mr_team *t, uint32_t count) {
    atomic_store(&t->stop, true);
    announce(t);
    for (uint32_t i = 0; i < count; i++) pthread_join(t->threads[i], NULL);
}

static void free_team(mr_team *t) {
    pthread_cond_destroy(&t->started);
    pthread_cond_destroy(&t->finished);
    pthread_mutex_destroy(&t->mutex);
    free(t->threads);
    free(t);
}

mr_status mr_team_open(mr_team **out, uint32_t threads, mr_err *err) {
    const uint32_t cores = allowed_cores();
    *out = NULL;
    if (threads == 0) threads = cores < MR_MAX_THREADS ? cores : MR_MAX_THREADS;
    if (threads > MR_MAX_THREADS)
        return mr_fail(err, MR_ERR_LIMIT, "%u threads asked for, at most %d", threads,
                       MR_MAX_THREADS);
    mr_team *t = mr_alloc(sizeof(*t));
    t->size = threads;
    t->spin = threads <= cores;
    t->threads = mr_alloc_array(threads, sizeof(*t->threads));
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->started, NULL);
    pthread_cond_init(&t->finished, NULL);
    mr_float_environment();
    for (uint32_t i = 0; i + 1 < threads; i++)
        if (pthread_create(&t->threads[i], NULL, member_main, t) != 0) {
            stop_members(t, i);
            free_team(t);
            return mr_fail(err, MR_ERR_LIMIT, "thread %u of %u could not be started", i + 2,
                           threads);
        }
    *out = t;
    return MR_OK;
}

void mr_team_close(mr_team *team) {
    if (!team) return;
    stop_members(team, team->size - 1);
    free_team(team);
}

uint32_t mr_team_size(const mr_team *team) {
    return team->size;
}

void mr_team_run(mr_team *t, mr_team_task task, void *context, uint32_t items) {
    if (t->size == 1 || items <= 1) {
        if (items > 0) task(context, 0, 0, items);
        return;
    }
    t->task = task;
    t->context = context;
    t->items = items;
    atomic_store_explicit(&t->left, t->size - 1, memory_order_release);
    announce(t);
    run_part(t, 0);
    for (int i = 0; t->spin && i < SPINS; i++) {
        if (atomic_load_explicit(&t->left, memory_order_acquire) == 0) return;
        relax();
    }
    pthread_mutex_lock(&t->mutex);
    while (atomic_load_explicit(&t->left, memory_order_acquire) != 0)
        pthread_cond_wait(&t->finished, &t->mutex);
    pthread_mutex_unlock(&t->mutex);
}
