/* scrub.c - see scrub.h. */
#include "memshard/scrub.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "memshard/tier.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    LOOK_EVERY_MS = 100, /* for faults, whatever the pace */
    TIER_BLOCKS = 64,    /* compared in one go */
    BEHIND_MS_MAX = 1000 /* a slow disk is not made up for by a burst */
};

typedef struct {
    mr_held *held;
    bool is_reported;
} entry;

struct mr_scrub {
    mr_scrub_options options;
    pthread_mutex_t lock; /* guards all below but the thread's own room */
    pthread_cond_t changed;
    pthread_t thread;
    bool is_closing;
    entry *entries;
    uint32_t count, room;
    mr_held *in_hand; /* what the thread reads right now */
    mr_scrub_counters counters;
    void *buffer; /* the thread's */
    size_t buffer_bytes;
};

/* Sleeps until then or until closing. Lock held on entry. */
static void wait_until(mr_scrub *s, int64_t then_ns) {
    const struct timespec then = {.tv_sec = then_ns / 1000000000, .tv_nsec = then_ns % 1000000000};
    while (!s->is_closing && mr_now_ns() < then_ns)
        pthread_cond_timedwait(&s->changed, &s->lock, &then);
}

/* Lock held on entry, and let go of meanwhile. */
static void report(mr_scrub *s, uint32_t i) {
    mr_held *held = s->entries[i].held;
    mr_err why = {{0}};
    s->entries[i].is_reported = true;
    s->counters.failures++;
    s->in_hand = held;
    pthread_mutex_unlock(&s->lock);
    mr_held_check(held, &why);
    mr_log_error("%s", why.text);
    if (s->options.on_bad) s->options.on_bad(s->options.context, held, &why);
    pthread_mutex_lock(&s->lock);
    s->in_hand = NULL;
    pthread_cond_broadcast(&s->changed);
}

/* Reports whatever went bad since. Lock held on entry. */
static void look_for_bad(mr_scrub *s) {
    for (uint32_t i = 0; i < s->count; i++)
        if (!s->entries[i].is_reported && !mr_held_is_good(s->entries[i].held)) {
            report(s, i);
            i = UINT32_MAX; /* the list may have changed */
        }
}

/* While waiting for the pace, faults are looked for. Lock held on entry. */
static void pace(mr_scrub *s, int64_t then_ns) {
    for (;;) {
        look_for_bad(s);
        const int64_t now = mr_now_ns(), look = now + LOOK_EVERY_MS * 1000000ll;
        if (s->is_closing || now >= then_ns) return;
        wait_until(s, then_ns < look ? then_ns : look);
    }
}

/* O_DIRECT reads want whole pages. */
static bool make_room(mr_scrub *s, size_t bytes) {
    if (bytes <= s->buffer_bytes) return true;
    if (s->buffer) munmap(s->buffer, s->buffer_bytes);
    s->buffer_bytes = 0;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    s->buffer = memory == MAP_FAILED ? NULL : memory;
    if (s->buffer) s->buffer_bytes = bytes;
    return s->buffer != NULL;
}

/* One piece of held; false at its end, or when it is bad. Lock held on entry, let go of meanwhile.
 */
static bool step(mr_scrub *s, mr_held *held, mr_scrub_cursor *cursor, int64_t *next_ns) {
    uint64_t bytes = 0;
    uint32_t wrong = 0;
    s->in_hand = held;
    pthread_mutex_unlock(&s->lock);
    mr_status status = MR_ERR_CANCELLED;
    if (make_room(s, mr_held_scrub_room(held)))
        status = mr_held_scrub(held, cursor, s->buffer, &bytes, NULL);
    if (s->options.tier) wrong = mr_tier_scrub(s->options.tier, TIER_BLOCKS);
    pthread_mutex_lock(&s->lock);
    s->in_hand = NULL;
    pthread_cond_broadcast(&s->changed);
    s->counters.chunks += bytes > 0;
    s->counters.bytes += bytes;
    s->counters.memory_failures += wrong;
    const int64_t now = mr_now_ns();
    if (*next_ns < now - BEHIND_MS_MAX * 1000000ll) *next_ns = now - BEHIND_MS_MAX * 1000000ll;
    *next_ns += (int64_t)((double)bytes * 1e9 / (double)s->options.bytes_per_second);
    return status == MR_OK;
}

static uint32_t index_of(const mr_scrub *s, const mr_held *held) {
    uint32_t i = 0;
    while (i < s->count && s->entries[i].held != held) i++;
    return i;
}

static void *run(void *context) {
    mr_scrub *s = context;
    pthread_mutex_lock(&s->lock);
    int64_t next_ns = mr_now_ns();
    while (!s->is_closing) {
        for (uint32_t i = 0; i < s->count && !s->is_closing; i++) {
            mr_held *held = s->entries[i].held;
            mr_scrub_cursor cursor = {0};
            while (!s->is_closing && index_of(s, held) < s->count &&
                   step(s, held, &cursor, &next_ns))
                pace(s, next_ns);
            look_for_bad(s);
        }
        const uint32_t pause_ms = s->count > 0 ? s->options.pause_ms : LOOK_EVERY_MS;
        s->counters.passes += s->count > 0;
        pace(s, mr_now_ns() + (int64_t)pause_ms * 1000000);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

mr_status mr_scrub_open(mr_scrub **out, const mr_scrub_options *options, mr_err *err) {
    pthread_condattr_t monotonic;
    mr_scrub *s = mr_alloc(sizeof(*s));
    *out = NULL;
    s->options = *options;
    if (s->options.bytes_per_second == 0) s->options.bytes_per_second = 32 * MR_MIB;
    if (s->options.pause_ms == 0) s->options.pause_ms = 60 * 1000;
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (pthread_create(&s->thread, NULL, run, s) != 0) {
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
        free(s);
        return mr_fail(err, MR_ERR_NOMEM, "no thread can be started to scrub");
    }
    *out = s;
    return MR_OK;
}

void mr_scrub_close(mr_scrub *scrub) {
    if (!scrub) return;
    pthread_mutex_lock(&scrub->lock);
    scrub->is_closing = true;
    pthread_cond_broadcast(&scrub->changed);
    pthread_mutex_unlock(&scrub->lock);
    pthread_join(scrub->thread, NULL);
    if (scrub->buffer) munmap(scrub->buffer, scrub->buffer_bytes);
    pthread_cond_destroy(&scrub->changed);
    pthread_mutex_destroy(&scrub->lock);
    free(scrub->entries);
    free(scrub);
}

void mr_scrub_add(mr_scrub *scrub, mr_held *held) {
    pthread_mutex_lock(&scrub->lock);
    if (scrub->count == scrub->room) {
        scrub->room = scrub->room ? scrub->room * 2 : 16;
        scrub->entries = mr_realloc_array(scrub->entries, scrub->room, sizeof(*scrub->entries));
    }
    scrub->entries[scrub->count++] = (entry){.held = held};
    pthread_cond_broadcast(&scrub->changed);
    pthread_mutex_unlock(&scrub->lock);
}

void mr_scrub_remove(mr_scrub *scrub, mr_held *held) {
    pthread_mutex_lock(&scrub->lock);
    const uint32_t i = index_of(scrub, held);
    if (i < scrub->count) {
        scrub->count--;
        for (uint32_t k = i; k < scrub->count; k++) scrub->entries[k] = scrub->entries[k + 1];
    }
    while (scrub->in_hand == held && !pthread_equal(pthread_self(), scrub->thread))
        pthread_cond_wait(&scrub->changed, &scrub->lock);
    pthread_mutex_unlock(&scrub->lock);
}

void mr_scrub_count(mr_scrub *scrub, mr_scrub_counters *out) {
    pthread_mutex_lock(&scrub->lock);
    *out = scrub->counters;
    pthread_mutex_unlock(&scrub->lock);
}
