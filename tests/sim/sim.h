/* sim.h - the machine under a simulated cluster: one clock, threads, waits, a network.
 *
 * Every process of the cluster runs its real code in this one program. What it would get from the
 * C library and the kernel is given by the simulation instead, under the same names (threads.c):
 * pthread_create and its locks, clock_gettime, nanosleep, poll, epoll_wait, connect, getrandom. So
 * every thread is a fiber here; only one runs at a time, until it waits; what runs next is decided
 * by an ordered list of events and by chance from one seed. Between events the clock jumps.
 *
 * Sockets and event descriptors are real ones. connect() is led through the simulated network
 * (net.c), which moves the bytes of every connection with delays and under faults; listening,
 * accepting, sending, receiving and epoll sets are the kernel's, which does all of it at once and
 * in order where nothing else runs.
 *
 * Threads: one. Functions marked (fiber) may wait; all others never do. */
#ifndef MR_TESTS_SIM_SIM_H
#define MR_TESTS_SIM_SIM_H
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_MS 1000000ll
#define SIM_S 1000000000ll

typedef struct sim_process sim_process;
typedef struct sim_fiber sim_fiber;

/* --- the world of one seed (schedule.c) ------------------------------------------------------- */

void sim_begin(uint64_t seed);
void sim_end(void); /* every fiber must have ended */
int64_t sim_now(void);
void sim_run_until(int64_t when_ns);
uint64_t sim_trace_hash(void);
/* Part of the trace, and printed where that is wanted. */
void sim_trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern bool sim_is_verbose;
/* Something is wrong: the seed has failed, which ends the program once the reason is printed. */
_Noreturn void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint32_t sim_roll(uint32_t bound); /* [0, bound) */
bool sim_chance(double probability);
int64_t sim_between(int64_t least, int64_t most);

void sim_at(int64_t when_ns, void (*call)(void *context, uint64_t number), void *context,
            uint64_t number);

/* --- processes -------------------------------------------------------------------------------- */

enum { SIM_HOSTS = 24 };

sim_process *sim_process_new(const char *name, uint32_t host);
const char *sim_process_name(const sim_process *process);
uint32_t sim_process_host(const sim_process *process);
bool sim_process_runs(const sim_process *process); /* neither stopped nor dead */
void sim_process_stop(sim_process *process);       /* SIGSTOP */
void sim_process_continue(sim_process *process);
/* Everything it does takes so many times longer than usual. */
void sim_process_set_slowness(sim_process *process, uint32_t times);
/* SIGKILL as others see it: its connections end (or, where its host went down with it, fall
 * silent). Its fibers run on, cut off from everybody, so that `reap` can close what they use. */
void sim_process_kill(sim_process *process, bool is_silent);
bool sim_process_is_dead(const sim_process *process);
void sim_process_touch(sim_process *process); /* something happened that its waits may be for */
void sim_spawn(sim_process *process, void (*run)(void *context), void *context);
void sim_sleep(int64_t ns); /* (fiber) */

/* --- for threads.c and net.c ------------------------------------------------------------------ */

bool sim_is_running(void);    /* a world is there */
sim_fiber *sim_current(void); /* NULL: the scheduler itself */
sim_process *sim_own(void);   /* of the current fiber */
int64_t sim_read_clock(void); /* and moves it a little, so that nobody polls for ever */
sim_fiber *sim_start(sim_process *process, void *(*run)(void *), void *context);
bool sim_has_ended(const sim_fiber *fiber, void **result);
/* Until sim_wake, a descriptor of the set is ready, or the deadline (INT64_MAX: none). false: the
 * deadline has come. address: what is waited for; set: NULL or borrowed. */
bool sim_park(const void *address, struct pollfd *set, uint32_t count, int64_t deadline_ns);
void sim_wake(const void *address, bool all);
int sim_real_poll(struct pollfd *set, uint32_t count);
uint64_t sim_draw(void);

/* --- the network (net.c) ---------------------------------------------------------------------- */

void sim_net_open(void);
void sim_net_close(void);
const char *sim_net_folder(void); /* where all paths begin */
/* A public path, behind which a process listens at a path of its own for as long as it lives.
 * Returned texts are owned by the network. */
const char *sim_net_path(const char *name);
const char *sim_net_listen(sim_process *process, const char *public_path);
int sim_net_connect(int fd, const char *public_path); /* (fiber) 0 or errno */
bool sim_net_pump(void);                              /* takes what was written */
void sim_net_drop(sim_process *process, bool is_silent);
void sim_net_break(uint32_t which);                        /* one connection, if there is any */
void sim_net_cut(uint32_t from, uint32_t to, bool is_cut); /* of hosts, one way */
bool sim_net_is_cut(uint32_t from, uint32_t to);
void sim_net_set_latency(uint32_t host, int64_t ns); /* more than usual; 0: as usual */

#endif
