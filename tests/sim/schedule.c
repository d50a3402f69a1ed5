/* schedule.c - what happens next: the clock, the list of events, fibers and processes.
 *
 * A fiber runs until it waits. It goes on a little later than what it waited for, by chance and by
 * its process's slowness, so that a seed is one interleaving out of many. */
#include "tests/sim/sim.h"

#include "common/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { STACK_BYTES = 1 << 20, STACKS_KEPT = 256, READING_NS = 40, JITTER_NS = 15000 };

typedef struct {
    int64_t when_ns;
    uint64_t order;
    void (*call)(void *context, uint64_t number);
    void *context;
    uint64_t number;
} event;

struct sim_fiber {
    sim_fiber *next; /* of all */
    sim_process *process;
    ucontext_t context;
    void *stack;
    void *(*run)(void *);
    void *argument, *result;
    uint64_t turn; /* how often it has gone on: events of an earlier wait are void */
    const void *address;
    struct pollfd *set;
    uint32_t set_count;
    bool is_waiting, is_waking, is_timed_out, has_ended, is_held;
};

struct sim_process {
    sim_process *next;
    char name[32];
    uint32_t host, slowness;
    bool is_stopped, is_dead, is_touched;
};

bool sim_is_verbose;

static struct {
    bool is_running;
    uint64_t seed, random, order, hash;
    int64_t now;
    event *heap;
    uint32_t count, room;
    sim_fiber *fibers, **fibers_end, *current, *ended; /* ended: events may still name them */
    sim_process *processes;
    ucontext_t scheduler;
} s;

static void *stacks[STACKS_KEPT];
static uint32_t stack_count;

/* --- chance and trace ------------------------------------------------------------------------- */

uint64_t sim_draw(void) {
    uint64_t z = s.random += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

uint32_t sim_roll(uint32_t bound) {
    return (uint32_t)((sim_draw() >> 32) * bound >> 32);
}

bool sim_chance(double probability) {
    return (double)(sim_draw() >> 11) * 0x1p-53 < probability;
}

int64_t sim_between(int64_t least, int64_t most) {
    return least + (int64_t)(sim_draw() % (uint64_t)(most - least + 1));
}

static void add_to_hash(const char *text) {
    for (; *text; text++) s.hash = (s.hash ^ (uint8_t)*text) * 1099511628211ull;
}

void sim_trace(const char *format, ...) {
    char text[512];
    va_list list;
    const int used = snprintf(text, sizeof(text), "%12.6f ", (double)s.now / 1e9);
    va_start(list, format);
    vsnprintf(text + used, sizeof(text) - (size_t)used, format, list);
    va_end(list);
    const char *folder = sim_net_folder(); /* another one every time */
    for (char *at; (at = strstr(text, folder)) != NULL;)
        memmove(at, at + strlen(folder), strlen(at + strlen(folder)) + 1);
    add_to_hash(text);
    if (sim_is_verbose) fprintf(stderr, "%s\n", text);
}

void sim_fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stdout, "seed %llu FAILED at %.6f s: ", (unsigned long long)s.seed,
            (double)s.now / 1e9);
    vfprintf(stdout, format, list);
    fprintf(stdout, "\n");
    va_end(list);
    fflush(stdout);
    _exit(1);
}

uint64_t sim_trace_hash(void) {
    return s.hash;
}

/* --- events ----------------------------------------------------------------------------------- */

static bool is_before(const event *a, const event *b) {
    return a->when_ns != b->when_ns ? a->when_ns < b->when_ns : a->order < b->order;
}

void sim_at(int64_t when_ns, void (*call)(void *, uint64_t), void *context, uint64_t number) {
    if (s.count == s.room) {
        s.room = s.room ? 2 * s.room : 1024;
        s.heap = mr_realloc_array(s.heap, s.room, sizeof(*s.heap));
    }
    const event e = {when_ns < s.now ? s.now : when_ns, s.order++, call, context, number};
    uint32_t at = s.count++;
    for (; at > 0 && is_before(&e, &s.heap[(at - 1) / 2]); at = (at - 1) / 2)
        s.heap[at] = s.heap[(at - 1) / 2];
    s.heap[at] = e;
}

static event take_first(void) {
    const event first = s.heap[0], last = s.heap[--s.count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= s.count) break;
        if (child + 1 < s.count && is_before(&s.heap[child + 1], &s.heap[child])) child++;
        if (!is_before(&s.heap[child], &last)) break;
        s.heap[at] = s.heap[child];
        at = child;
    }
    s.heap[at] = last;
    return first;
}

/* --- fibers ----------------------------------------------------------------------------------- */

static void *new_stack(void) {
    if (stack_count > 0) return stacks[--stack_count];
    uint8_t *at = mmap(NULL, STACK_BYTES + 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED || mprotect(at, 4096, PROT_NONE) != 0) sim_fail("no memory for a stack");
    return at;
}

static void free_stack(void *stack) {
    if (stack_count < STACKS_KEPT)
        stacks[stack_count++] = stack;
    else
        munmap(stack, STACK_BYTES + 4096);
}

static void go_on(void *context, uint64_t turn);

static void wake_fiber(sim_fiber *f) {
    if (f->is_waking || f->has_ended) return;
    f->is_waking = true;
    const int64_t slow = f->process->slowness;
    sim_at(s.now + 500 + sim_between(0, JITTER_NS) * slow, go_on, f, f->turn);
}

static void begin(unsigned high, unsigned low) {
    sim_fiber *f = (sim_fiber *)(uintptr_t)((uint64_t)high << 32 | low);
    f->result = f->run(f->argument);
    f->has_ended = true;
    swapcontext(&f->context, &s.scheduler);
}

sim_fiber *sim_start(sim_process *process, void *(*run)(void *), void *context) {
    sim_fiber *f = mr_alloc(sizeof(*f));
    *f = (sim_fiber){.process = process, .run = run, .argument = context, .stack = new_stack()};
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = (uint8_t *)f->stack + 4096;
    f->context.uc_stack.ss_size = STACK_BYTES;
    const uint64_t address = (uintptr_t)f;
    makecontext(&f->context, (void (*)(void))begin, 2, (unsigned)(address >> 32),
                (unsigned)address);
    *s.fibers_end = f;
    s.fibers_end = &f->next;
    f->is_waiting = true;
    wake_fiber(f);
    return f;
}

static void unlink_fiber(sim_fiber *f) {
    sim_fiber **at = &s.fibers;
    while (*at != f) at = &(*at)->next;
    *at = f->next;
    if (!f->next) s.fibers_end = at;
    free_stack(f->stack);
    f->stack = NULL;
    f->next = s.ended;
    s.ended = f;
}

bool sim_has_ended(const sim_fiber *fiber, void **result) {
    if (fiber->has_ended && result) *result = fiber->result;
    return fiber->has_ended;
}

static void go_on(void *context, uint64_t turn) {
    sim_fiber *f = context;
    if (f->turn != turn || f->has_ended) return;
    if (f->process->is_stopped) {
        f->is_held = true; /* until SIGCONT */
        return;
    }
    f->turn++;
    f->is_waiting = f->is_waking = f->is_held = false;
    s.current = f;
    swapcontext(&s.scheduler, &f->context);
    s.current = NULL;
    f->process->is_touched = true;
    if (!f->has_ended) return;
    f->turn++;
    unlink_fiber(f);
    sim_wake(f, true);
}

static void time_out(void *context, uint64_t turn) {
    sim_fiber *f = context;
    if (f->turn != turn || f->has_ended || f->is_waking) return;
    f->is_timed_out = true;
    wake_fiber(f);
}

bool sim_park(const void *address, struct pollfd *set, uint32_t count, int64_t deadline_ns) {
    sim_fiber *f = s.current;
    assert(f);
    f->address = address;
    f->set = set;
    f->set_count = count;
    f->is_timed_out = false;
    f->is_waiting = true;
    if (deadline_ns != INT64_MAX) sim_at(deadline_ns, time_out, f, f->turn);
    swapcontext(&f->context, &s.scheduler);
    f->address = NULL;
    f->set = NULL;
    return !f->is_timed_out;
}

void sim_wake(const void *address, bool all) {
    for (sim_fiber *f = s.fibers; f; f = f->next) {
        if (!f->is_waiting || f->is_waking || f->address != address) continue;
        wake_fiber(f);
        if (!all) return;
    }
}

void sim_sleep(int64_t ns) {
    sim_park(NULL, NULL, 0, s.now + ns);
}

sim_fiber *sim_current(void) {
    return s.current;
}

sim_process *sim_own(void) {
    return s.current->process;
}

int64_t sim_read_clock(void) {
    if (s.current) s.now += READING_NS;
    return s.now;
}

/* --- processes -------------------------------------------------------------------------------- */

sim_process *sim_process_new(const char *name, uint32_t host) {
    sim_process *p = mr_alloc(sizeof(*p));
    *p = (sim_process){.next = s.processes, .host = host, .slowness = 1};
    snprintf(p->name, sizeof(p->name), "%s", name);
    s.processes = p;
    return p;
}

const char *sim_process_name(const sim_process *p) {
    return p->name;
}
uint32_t sim_process_host(const sim_process *p) {
    return p->host;
}
bool sim_process_runs(const sim_process *p) {
    return !p->is_stopped && !p->is_dead;
}
bool sim_process_is_dead(const sim_process *p) {
    return p->is_dead;
}
void sim_process_touch(sim_process *p) {
    p->is_touched = true;
}
void sim_process_set_slowness(sim_process *p, uint32_t times) {
    p->slowness = times;
}
void sim_process_stop(sim_process *p) {
    p->is_stopped = true;
}

void sim_process_continue(sim_process *p) {
    p->is_stopped = false;
    p->is_touched = true;
    for (sim_fiber *f = s.fibers; f; f = f->next)
        if (f->process == p && f->is_held) {
            f->is_held = f->is_waking = false;
            wake_fiber(f);
        }
}

void sim_process_kill(sim_process *p, bool is_silent) {
    p->is_dead = true;
    p->slowness = 1;
    sim_net_drop(p, is_silent);
    sim_process_continue(p);
}

typedef struct {
    void (*run)(void *);
    void *context;
} errand;

static void *run_errand(void *argument) {
    const errand e = *(errand *)argument;
    free(argument);
    e.run(e.context);
    return NULL;
}

void sim_spawn(sim_process *process, void (*run)(void *), void *context) {
    errand *e = mr_alloc(sizeof(*e));
    *e = (errand){run, context};
    sim_start(process, run_errand, e);
}

/* --- the loop --------------------------------------------------------------------------------- */

int sim_real_poll(struct pollfd *set, uint32_t count) {
    const struct timespec none = {0};
    return (int)syscall(SYS_ppoll, set, (unsigned long)count, &none, NULL, 0ul);
}

/* Fibers whose descriptors have become ready. */
static void look(void) {
    bool any = false;
    for (sim_process *p = s.processes; p; p = p->next) any |= p->is_touched;
    if (!any) return;
    for (sim_fiber *f = s.fibers; f; f = f->next)
        if (f->is_waiting && !f->is_waking && f->set && f->process->is_touched &&
            sim_real_poll(f->set, f->set_count) > 0)
            wake_fiber(f);
    for (sim_process *p = s.processes; p; p = p->next) p->is_touched = false;
}

void sim_run_until(int64_t when_ns) {
    assert(!s.current);
    for (;;) {
        sim_net_pump();
        look();
        if (s.count == 0 || s.heap[0].when_ns > when_ns) break;
        const event e = take_first();
        if (e.when_ns > s.now) s.now = e.when_ns;
        e.call(e.context, e.number);
    }
    if (when_ns > s.now) s.now = when_ns;
}

bool sim_is_running(void) {
    return s.is_running;
}

int64_t sim_now(void) {
    return s.now;
}

void sim_begin(uint64_t seed) {
    memset(&s, 0, sizeof(s));
    s.seed = seed;
    s.random = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
    s.hash = 1469598103934665603ull;
    s.now = 1000 * SIM_S;
    s.fibers_end = &s.fibers;
    s.is_running = true;
    sim_net_open();
}

void sim_end(void) {
    if (s.fibers)
        sim_fail("a thread of %s has not ended when everything was closed",
                 s.fibers->process->name);
    sim_net_close();
    while (s.processes) {
        sim_process *p = s.processes;
        s.processes = p->next;
        free(p);
    }
    while (s.ended) {
        sim_fiber *f = s.ended;
        s.ended = f->next;
        free(f);
    }
    free(s.heap);
    s.is_running = false;
}
