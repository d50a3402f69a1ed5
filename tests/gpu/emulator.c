/* emulator.c - see emulator.h: threads of a block as coroutines over ucontext. */
#include "tests/gpu/emulator.h"

#include <pthread.h>
#include <ucontext.h>

enum { THREADS_MAX = 256, STACK_BYTES = 64 << 10, LANES = 32 };

typedef enum { RUNS, AT_BLOCK_BARRIER, AT_WARP_MEETING, ENDED } state_kind;

typedef struct {
    ucontext_t context;
    state_kind state;
    uint64_t given, got;
    uint32_t from;
    bool is_ballot;
} coroutine;

mr_emulated_index threadIdx, blockIdx, blockDim;

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER; /* guards all of this */
static coroutine threads[THREADS_MAX];
static char stacks[THREADS_MAX][STACK_BYTES];
static ucontext_t scheduler;
static uint32_t current;
static void (*running_kernel)(const void *);
static const void *running_arguments;

static void enter(void) {
    running_kernel(running_arguments);
    threads[current].state = ENDED;
    swapcontext(&threads[current].context, &scheduler);
}

static void wait_as(state_kind state) {
    const uint32_t self = current;
    threads[self].state = state;
    swapcontext(&threads[self].context, &scheduler);
}

void __syncthreads(void) {
    wait_as(AT_BLOCK_BARRIER);
}

uint64_t mr_emulate_exchange(uint64_t value, uint32_t from) {
    coroutine *self = &threads[current];
    self->given = value;
    self->from = from;
    self->is_ballot = false;
    wait_as(AT_WARP_MEETING);
    return self->got;
}

uint32_t mr_emulate_ballot(int taken) {
    coroutine *self = &threads[current];
    self->given = taken != 0;
    self->is_ballot = true;
    wait_as(AT_WARP_MEETING);
    return (uint32_t)self->got;
}

/* Lets a warp go on when all of it that still runs has met for the same thing. */
static bool release_warp(uint32_t first, uint32_t end) {
    uint32_t meeting = 0, alive = 0, ballot = 0, kinds = 0;
    for (uint32_t i = first; i < end; i++) {
        alive += threads[i].state != ENDED;
        if (threads[i].state != AT_WARP_MEETING) continue;
        meeting++;
        kinds |= 1u << threads[i].is_ballot;
        if (threads[i].given && threads[i].is_ballot) ballot |= 1u << (i - first);
    }
    if (meeting == 0 || meeting != alive) return false;
    assert(kinds != 3); /* a kernel whose lanes meet for different things would hang a GPU */
    for (uint32_t i = first; i < end; i++) {
        coroutine *t = &threads[i];
        if (t->state != AT_WARP_MEETING) continue;
        t->got = t->is_ballot ? ballot : threads[first + t->from % LANES].given;
    }
    for (uint32_t i = first; i < end; i++)
        if (threads[i].state == AT_WARP_MEETING) threads[i].state = RUNS;
    return true;
}

static bool release_block(uint32_t count) {
    bool any = false;
    for (uint32_t i = 0; i < count; i++) {
        if (threads[i].state == ENDED) continue;
        if (threads[i].state != AT_BLOCK_BARRIER) return false;
        any = true;
    }
    for (uint32_t i = 0; i < count; i++)
        if (threads[i].state == AT_BLOCK_BARRIER) threads[i].state = RUNS;
    return any;
}

static void run_block(uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        getcontext(&threads[i].context);
        threads[i].context.uc_stack.ss_sp = stacks[i];
        threads[i].context.uc_stack.ss_size = STACK_BYTES;
        threads[i].context.uc_link = &scheduler;
        threads[i].state = RUNS;
        makecontext(&threads[i].context, enter, 0);
    }
    for (;;) {
        bool ran = false;
        for (current = 0; current < count; current++) {
            if (threads[current].state != RUNS) continue;
            threadIdx = (mr_emulated_index){current, 0};
            swapcontext(&scheduler, &threads[current].context);
            ran = true;
        }
        for (uint32_t first = 0; first < count; first += LANES)
            ran |= release_warp(first, first + LANES < count ? first + LANES : count);
        ran |= release_block(count);
        if (!ran) break;
    }
    for (uint32_t i = 0; i < count; i++) assert(threads[i].state == ENDED); /* else: a deadlock */
}

void mr_emulate(void (*kernel)(const void *), const void *arguments, uint32_t blocks_x,
                uint32_t blocks_y, uint32_t count) {
    assert(count <= THREADS_MAX);
    pthread_mutex_lock(&one_at_a_time);
    running_kernel = kernel;
    running_arguments = arguments;
    blockDim = (mr_emulated_index){count, 1};
    for (uint32_t y = 0; y < blocks_y; y++)
        for (uint32_t x = 0; x < blocks_x; x++) {
            blockIdx = (mr_emulated_index){x, y};
            run_block(count);
        }
    pthread_mutex_unlock(&one_at_a_time);
}
