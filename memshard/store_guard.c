/* store_guard.c - see store_guard.h. Slots lie in blocks that are never freed or moved, so that the
 * handler can walk them whatever other threads do. */
#include "memshard/store_guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK_SLOTS = 1024, BLOCKS = MR_GUARDS_MAX / BLOCK_SLOTS };

typedef struct {
    _Atomic uintptr_t base; /* 0: free or being changed */
    _Atomic size_t bytes;
    _Atomic(_Atomic uint32_t *) flag;
} slot;

static _Atomic(slot *) blocks[BLOCKS];
static _Atomic int used_slots; /* all in use lie below */
static int *free_slots, free_count, free_room;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the free list and growth */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction before;
static uintptr_t page_bytes;

static void pass_on(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
        return;
    }
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
        return;
    }
    signal(number, SIG_DFL); /* the instruction runs again and ends the process */
}

/* Zero pages from at on. The bare system call: a library's mmap may be somebody's wrapper. */
static bool put_zeros(uintptr_t at, size_t bytes) {
    const long put = syscall(SYS_mmap, at, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0L);
    return put == (long)at;
}

/* Only async-signal-safe calls. */
static void on_fault(int number, siginfo_t *info, void *context) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    const int used = atomic_load_explicit(&used_slots, memory_order_acquire);
    for (int i = 0; i < used; i++) {
        slot *s =
            &atomic_load_explicit(&blocks[i / BLOCK_SLOTS], memory_order_acquire)[i % BLOCK_SLOTS];
        const uintptr_t base = atomic_load_explicit(&s->base, memory_order_acquire);
        const size_t bytes = atomic_load_explicit(&s->bytes, memory_order_relaxed);
        if (base == 0 || at < base || at - base >= bytes) continue;
        _Atomic uint32_t *flag = atomic_load_explicit(&s->flag, memory_order_relaxed);
        const uintptr_t first = at / page_bytes * page_bytes;
        const uintptr_t end = (base + bytes + page_bytes - 1) / page_bytes * page_bytes;
        uint32_t good = 0;
        atomic_compare_exchange_strong(flag, &good, 1);
        if (put_zeros(first, end - first)) return;
        break;
    }
    pass_on(number, info, context);
}

void mr_guard_install(void) {
    struct sigaction old, action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &old);
    if (!(old.sa_flags & SA_SIGINFO) || old.sa_sigaction != on_fault) before = old;
}

/* A free slot's number, or -1. lock held on entry. */
static int take_slot(void) {
    if (free_count > 0) return free_slots[--free_count];
    const int next = atomic_load(&used_slots);
    if (next == MR_GUARDS_MAX) return -1;
    if (!atomic_load(&blocks[next / BLOCK_SLOTS])) {
        slot *block = calloc(BLOCK_SLOTS, sizeof(*block));
        if (!block) return -1;
        atomic_store(&blocks[next / BLOCK_SLOTS], block);
    }
    atomic_store_explicit(&used_slots, next + 1, memory_order_release);
    return next;
}

int mr_guard_add(void *base, size_t bytes, _Atomic uint32_t *flag) {
    if (!base || bytes == 0) return -1;
    pthread_once(&once, mr_guard_install);
    pthread_mutex_lock(&lock);
    const int number = take_slot();
    if (number >= 0) {
        slot *s = &atomic_load(&blocks[number / BLOCK_SLOTS])[number % BLOCK_SLOTS];
        atomic_store_explicit(&s->bytes, bytes, memory_order_relaxed);
        atomic_store_explicit(&s->flag, flag, memory_order_relaxed);
        atomic_store_explicit(&s->base, (uintptr_t)base, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
    return number;
}

void mr_guard_remove(int number) {
    if (number < 0) return;
    pthread_mutex_lock(&lock);
    slot *s = &atomic_load(&blocks[number / BLOCK_SLOTS])[number % BLOCK_SLOTS];
    atomic_store(&s->base, 0);
    if (free_count == free_room) {
        const int room = free_room ? free_room * 2 : 64;
        int *more = realloc(free_slots, (size_t)room * sizeof(*more));
        if (more) {
            free_slots = more;
            free_room = room;
        }
    }
    if (free_count < free_room) free_slots[free_count++] = number;
    pthread_mutex_unlock(&lock);
}
