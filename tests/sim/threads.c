/* threads.c - what the programs call by the names of the C library: threads, locks, clocks, waits,
 * connect and chance.
 *
 * These definitions stand before those of the C library for the whole program, its shared libraries
 * included (libevent waits here, too). Outside of a world, and in the scheduler, they are what they
 * always were. Locks stay the C library's own: a fiber that finds one taken lets others run. */
#include "tests/sim/sim.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int64_t to_ns(const struct timespec *time) {
    return (int64_t)time->tv_sec * SIM_S + time->tv_nsec;
}

static int64_t after(const struct timespec *wait) {
    return wait ? sim_now() + to_ns(wait) : INT64_MAX;
}

/* --- threads ---------------------------------------------------------------------------------- */

int pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *argument) {
    (void)attributes;
    if (!sim_current()) return EAGAIN; /* nothing here has threads of the system */
    *out = (pthread_t)(uintptr_t)sim_start(sim_own(), run, argument);
    return 0;
}

int pthread_join(pthread_t thread, void **result) {
    sim_fiber *fiber = (sim_fiber *)(uintptr_t)thread;
    while (!sim_has_ended(fiber, result)) sim_park(fiber, NULL, 0, INT64_MAX);
    return 0;
}

int pthread_mutex_lock(pthread_mutex_t *mutex) {
    int code;
    while ((code = pthread_mutex_trylock(mutex)) == EBUSY)
        if (sim_current())
            sim_sleep(2000);
        else if (sim_is_running())
            sim_fail("the scheduler finds a lock taken");
    return code;
}

static int wait_for(pthread_cond_t *condition, pthread_mutex_t *mutex, int64_t deadline_ns) {
    if (!sim_current()) return EINVAL;
    pthread_mutex_unlock(mutex);
    const bool is_woken = deadline_ns > sim_now() && sim_park(condition, NULL, 0, deadline_ns);
    pthread_mutex_lock(mutex);
    return is_woken ? 0 : ETIMEDOUT;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *until) {
    return wait_for(condition, mutex, to_ns(until));
}

int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) {
    return wait_for(condition, mutex, INT64_MAX);
}

int pthread_cond_signal(pthread_cond_t *condition) {
    if (sim_is_running()) sim_wake(condition, false);
    return 0;
}

int pthread_cond_broadcast(pthread_cond_t *condition) {
    if (sim_is_running()) sim_wake(condition, true);
    return 0;
}

int sched_yield(void) {
    if (sim_current()) sim_sleep(1000);
    return 0;
}

/* --- time ------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *out) {
    if (!sim_is_running() || clock == CLOCK_PROCESS_CPUTIME_ID || clock == CLOCK_THREAD_CPUTIME_ID)
        return (int)syscall(SYS_clock_gettime, clock, out);
    int64_t now = sim_read_clock();
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now += 1700000000 * SIM_S;
    *out = (struct timespec){.tv_sec = (time_t)(now / SIM_S), .tv_nsec = (long)(now % SIM_S)};
    return 0;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *out = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    return 0;
}

int nanosleep(const struct timespec *wait, struct timespec *left) {
    if (!sim_current()) return (int)syscall(SYS_nanosleep, wait, left);
    sim_sleep(to_ns(wait));
    return 0;
}

/* --- waiting for descriptors ------------------------------------------------------------------ */

int ppoll(struct pollfd *set, nfds_t count, const struct timespec *wait, const sigset_t *mask) {
    if (!sim_current()) return (int)syscall(SYS_ppoll, set, count, wait, mask, 8ul);
    const int64_t deadline = after(wait);
    for (;;) {
        const int ready = sim_real_poll(set, (uint32_t)count);
        if (ready != 0 || sim_now() >= deadline) return ready;
        sim_park(NULL, set, (uint32_t)count, deadline);
    }
}

int poll(struct pollfd *set, nfds_t count, int wait_ms) {
    const struct timespec wait = {.tv_sec = wait_ms / 1000,
                                  .tv_nsec = (long)(wait_ms % 1000) * 1000000};
    return ppoll(set, count, wait_ms < 0 ? NULL : &wait, NULL);
}

int epoll_wait(int epoll, struct epoll_event *out, int most, int wait_ms) {
    if (!sim_current()) return (int)syscall(SYS_epoll_pwait, epoll, out, most, wait_ms, NULL, 8ul);
    const int64_t deadline = wait_ms < 0 ? INT64_MAX : sim_now() + wait_ms * SIM_MS;
    for (;;) {
        const int ready = (int)syscall(SYS_epoll_pwait, epoll, out, most, 0, NULL, 8ul);
        if (ready != 0 || sim_now() >= deadline) return ready;
        struct pollfd set = {.fd = epoll, .events = POLLIN};
        sim_park(NULL, &set, 1, deadline);
    }
}

/* --- the rest --------------------------------------------------------------------------------- */

int connect(int fd, const struct sockaddr *name, socklen_t bytes) {
    if (!sim_current() || name->sa_family != AF_UNIX)
        return (int)syscall(SYS_connect, fd, name, bytes);
    const int code =
        sim_net_connect(fd, ((const struct sockaddr_un *)(const void *)name)->sun_path);
    errno = code;
    return code == 0 ? 0 : -1;
}

ssize_t getrandom(void *out, size_t bytes, unsigned flags) {
    if (!sim_is_running()) return syscall(SYS_getrandom, out, bytes, flags);
    for (size_t i = 0; i < bytes; i++) ((uint8_t *)out)[i] = (uint8_t)(sim_draw() >> 24);
    return (ssize_t)bytes;
}
