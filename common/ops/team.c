/* team.c - see team.h.
 *
 * A loop is cut into a few chunks per member, and whoever is awake claims the next one: a member
 * that the system has put aside costs the others its share of work, not a wait for its return. The
 * ticket holds generation, number of chunks and next chunk in one word, so that a claim can only
 * succeed in the loop it was meant for; task, context and items are read after a claim, when the
 * loop cannot end before this chunk is done. The mutex guards only sleeping and waking. */
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

enum { SPINS = 2000, CHUNKS_PER_MEMBER = 4 };
_Static_assert(MR_MAX_THREADS *CHUNKS_PER_MEMBER < 1 << 16, "chunks fit their field");

/* generation << 32 | chunks << 16 | next */
typedef _Atomic uint64_t ticket;

struct mr_team {
    pthread_t *threads; /* [size - 1] */
    uint32_t size;
    bool spin; /* a core for each member */
    mr_team_task task;
    void *context;
    uint32_t items, chunks;
    _Alignas(64) ticket ticket;
    _Alignas(64) atomic_uint done; /* chunks of this loop */
    _Alignas(64) atomic_uint sleepers, started_members;
    atomic_bool stop, owner_sleeps;
    pthread_mutex_t mutex;
    pthread_cond_t started, finished;
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

static inline uint32_t generation_of(uint64_t t) {
    return (uint32_t)(t >> 32);
}

/* Does chunks of the loop of this generation until none is left to claim. */
static void work(mr_team *t, uint32_t member, uint32_t generation) {
    uint64_t now = atomic_load(&t->ticket);
    for (;;) {
        const uint32_t chunks = (uint32_t)(now >> 16) & 0xffff, next = (uint32_t)now & 0xffff;
        if (generation_of(now) != generation || next >= chunks) return;
        if (!atomic_compare_exchange_weak(&t->ticket, &now, now + 1)) continue;
        const uint32_t first = (uint32_t)((uint64_t)t->items * next / chunks);
        const uint32_t end = (uint32_t)((uint64_t)t->items * (next + 1) / chunks);
        if (end > first) t->task(t->context, member, first, end - first);
        if (atomic_fetch_add(&t->done, 1) + 1 == chunks && atomic_load(&t->owner_sleeps)) {
            pthread_mutex_lock(&t->mutex);
            pthread_cond_signal(&t->finished);
            pthread_mutex_unlock(&t->mutex);
        }
        now = atomic_load(&t->ticket);
    }
}

static void wait_for_loop(mr_team *t, uint32_t seen) {
    for (int i = 0; t->spin && i < SPINS; i++) {
        if (generation_of(atomic_load_explicit(&t->ticket, memory_order_acquire)) != seen) return;
        relax();
    }
    pthread_mutex_lock(&t->mutex);
    atomic_fetch_add(&t->sleepers, 1);
    while (generation_of(atomic_load(&t->ticket)) == seen)
        pthread_cond_wait(&t->started, &t->mutex);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->mutex);
}

static void *member_main(void *argument) {
    mr_team *t = argument;
    const uint32_t member = atomic_fetch_add(&t->started_members, 1) + 1;
    uint32_t seen = 0;
    mr_float_environment();
    for (;;) {
        wait_for_loop(t, seen);
        seen = generation_of(atomic_load(&t->ticket));
        if (atomic_load(&t->stop)) return NULL;
        work(t, member, seen);
    }
}

static uint32_t allowed_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
    const int count = CPU_COUNT(&set);
    return count < 1 ? 1 : (uint32_t)count;
}

/* Opens a new generation with so many chunks. The sleepers are looked at after the ticket is out,
 * and they look at the ticket after they have counted themselves: one of the two sees the other. */
static uint32_t announce(mr_team *t, uint32_t chunks) {
    const uint32_t generation = generation_of(atomic_load(&t->ticket)) + 1;
    atomic_store(&t->ticket, (uint64_t)generation << 32 | (uint64_t)chunks << 16);
    if (atomic_load(&t->sleepers) > 0) {
        pthread_mutex_lock(&t->mutex);
        pthread_cond_broadcast(&t->started);
        pthread_mutex_unlock(&t->mutex);
    }
    return generation;
}

static void stop_members(mr_team *t, uint32_t count) {
    atomic_store(&t->stop, true);
    announce(t, 0);
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
    void *memory;
    *out = NULL;
    if (threads == 0) threads = cores < MR_MAX_THREADS ? cores : MR_MAX_THREADS;
    if (threads > MR_MAX_THREADS)
        return mr_fail(err, MR_ERR_LIMIT, "%u threads asked for, at most %d", threads,
                       MR_MAX_THREADS);
    const mr_status status = mr_try_alloc(&memory, 1, sizeof(mr_team), "thread team", err);
    if (status != MR_OK) return status;
    mr_team *t = memory;
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

static void wait_for_members(mr_team *t, uint32_t chunks) {
    for (int i = 0; t->spin && i < SPINS; i++) {
        if (atomic_load_explicit(&t->done, memory_order_acquire) == chunks) return;
        relax();
    }
    pthread_mutex_lock(&t->mutex);
    atomic_store(&t->owner_sleeps, true);
    while (atomic_load(&t->done) != chunks) pthread_cond_wait(&t->finished, &t->mutex);
    atomic_store(&t->owner_sleeps, false);
    pthread_mutex_unlock(&t->mutex);
}

void mr_team_run(mr_team *t, mr_team_task task, void *context, uint32_t items) {
    if (t->size == 1 || items <= 1) {
        if (items > 0) task(context, 0, 0, items);
        return;
    }
    const uint32_t most = t->size * CHUNKS_PER_MEMBER;
    const uint32_t chunks = items < most ? items : most;
    t->task = task;
    t->context = context;
    t->items = items;
    atomic_store(&t->done, 0);
    work(t, 0, announce(t, chunks));
    wait_for_members(t, chunks);
}
