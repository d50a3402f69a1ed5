/* main.c - memrack-sim: runs seeds of the whole-cluster simulation, some of them twice, shared out
 * over child processes. A seed that fails is named with how to run it again. */
#include "common/base/log.h"
#include "tests/sim/world.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { JOBS_MAX = 64, SEED_SECONDS = 120, TWICE_EVERY = 10 };

/* Written by the children, read by the parent. */
typedef struct {
    uint64_t at[JOBS_MAX]; /* the seed under way */
    uint32_t done[JOBS_MAX], twice[JOBS_MAX], requests[JOBS_MAX], exact[JOBS_MAX], failed[JOBS_MAX],
        lost[JOBS_MAX], degraded[JOBS_MAX], faults[JOBS_MAX], switches[JOBS_MAX], loads[JOBS_MAX],
        unloads[JOBS_MAX], drafted[JOBS_MAX], accepted[JOBS_MAX];
} shared;

typedef struct {
    uint64_t first, last;
    uint32_t jobs;
} settings;

/* What the processes log belongs to the trace of a verbose run only. */
void mr_log_setup(const char *component, mr_log_level level, int plain_text) {
    (void)component, (void)level, (void)plain_text;
}
void mr_log(mr_log_level level, const char *format, ...) {
    va_list list;
    if (!sim_is_verbose || level > MR_LOG_INFO) return;
    fprintf(stderr, "%12.6f   %s: ", (double)sim_now() / 1e9,
            sim_current() ? sim_process_name(sim_own()) : "-");
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, "\n");
}

static void run_seed(shared *s, uint32_t job, uint64_t seed, bool is_only) {
    s->at[job] = seed;
    alarm(SEED_SECONDS);
    const sim_outcome o = sim_world_run(seed);
    s->done[job]++;
    s->requests[job] += o.requests;
    s->exact[job] += o.exact;
    s->failed[job] += o.failed;
    s->lost[job] += o.lost;
    s->degraded[job] += o.degraded;
    s->faults[job] += o.faults;
    s->switches[job] += (uint32_t)o.switches;
    s->loads[job] += (uint32_t)o.loads;
    s->unloads[job] += (uint32_t)o.unloads;
    s->drafted[job] += (uint32_t)o.drafted;
    s->accepted[job] += (uint32_t)o.accepted;
    if (is_only || sim_is_verbose)
        printf("seed %llu: trace %016llx, %.1f s, %u faults, %u requests: %u exact, %u failed, %u "
               "lost with their coordinator, %u degraded; map %llu\n",
               (unsigned long long)seed, (unsigned long long)o.hash, o.seconds, o.faults,
               o.requests, o.exact, o.failed, o.lost, o.degraded, (unsigned long long)o.map_epoch);
    if (!is_only && seed % TWICE_EVERY != 0) return;
    alarm(SEED_SECONDS);
    const sim_outcome again = sim_world_run(seed);
    s->twice[job]++;
    if (again.hash == o.hash) return;
    printf("seed %llu FAILED: it is not the same twice: trace %016llx, then %016llx\n",
           (unsigned long long)seed, (unsigned long long)o.hash, (unsigned long long)again.hash);
    fflush(stdout);
    _exit(1);
}

static void run_job(const settings *o, shared *s, uint32_t job, uint64_t from) {
    for (uint64_t seed = from; seed <= o->last; seed += o->jobs)
        run_seed(s, job, seed, o->first == o->last);
    fflush(stdout);
    _exit(0);
}

static pid_t start(const settings *o, shared *s, uint32_t job, uint64_t from) {
    fflush(stdout);
    s->at[job] = from;
    const pid_t pid = fork();
    if (pid == 0) run_job(o, s, job, from);
    return pid;
}

/* Returns how many seeds failed. */
static uint32_t run_all(const settings *o, shared *s, const char *program) {
    pid_t pids[JOBS_MAX] = {0};
    uint32_t running = 0, failures = 0;
    for (uint32_t j = 0; j < o->jobs; j++)
        if (o->first + j <= o->last) {
            pids[j] = start(o, s, j, o->first + j);
            running++;
        }
    while (running > 0) {
        int state;
        const pid_t pid = waitpid(-1, &state, 0);
        uint32_t j = 0;
        while (j < o->jobs && pids[j] != pid) j++;
        if (pid < 0 || j == o->jobs) continue;
        running--;
        if (WIFEXITED(state) && WEXITSTATUS(state) == 0) continue;
        failures++;
        if (WIFSIGNALED(state))
            printf("seed %llu FAILED: %s\n", (unsigned long long)s->at[j],
                   WTERMSIG(state) == SIGALRM ? "it does not come to an end"
                                              : strsignal(WTERMSIG(state)));
        printf("seed %llu: run it again with %s --seeds %llu --verbose\n",
               (unsigned long long)s->at[j], program, (unsigned long long)s->at[j]);
        if (s->at[j] + o->jobs > o->last || failures >= 20) continue;
        pids[j] = start(o, s, j, s->at[j] + o->jobs);
        running++;
    }
    return failures;
}

static uint32_t sum(const uint32_t *of) {
    uint32_t all = 0;
    for (uint32_t i = 0; i < JOBS_MAX; i++) all += of[i];
    return all;
}

static int usage(void) {
    printf(
        "usage: memrack-sim [--seeds A[:B]] [--jobs N] [--verbose] [--lone-stages] [--any-wipe]\n"
        "    [--stale-records]\n"
        "Simulates whole clusters, one for each seed from A to B (1:100), in N processes.\n");
    return 2;
}

int main(int argc, char **argv) {
    settings o = {1, 100, (uint32_t)sysconf(_SC_NPROCESSORS_ONLN)};
    for (int i = 1; i < argc; i++) {
        char *end = NULL;
        if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc) {
            o.first = o.last = strtoull(argv[++i], &end, 10);
            if (*end == ':') o.last = strtoull(end + 1, &end, 10);
            if (*end != '\0' || o.last < o.first) return usage();
        } else if (strcmp(argv[i], "--jobs") == 0 && i + 1 < argc)
            o.jobs = (uint32_t)strtoul(argv[++i], &end, 10);
        else if (strcmp(argv[i], "--verbose") == 0)
            sim_is_verbose = true;
        else if (strcmp(argv[i], "--lone-stages") == 0)
            sim_stages_die_alone = true;
        else if (strcmp(argv[i], "--any-wipe") == 0)
            sim_wipes_at_any_time = true;
        else if (strcmp(argv[i], "--stale-records") == 0)
            sim_stale_records_count = true;
        else
            return usage();
    }
    if (o.jobs == 0 || o.jobs > JOBS_MAX) o.jobs = JOBS_MAX;
    if (sim_is_verbose) o.jobs = 1;
    shared *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED) return 1;
    signal(SIGPIPE, SIG_IGN);
    sim_truth_open();
    const uint32_t failures = run_all(&o, s, argv[0]);
    printf("%u faults; %u requests: %u exact, %u failed as they may, %u lost with their "
           "coordinator, %u degraded; %u map switches, %u loads, %u unloads; %u of %u guessed "
           "tokens right; %u seeds run twice\n",
           sum(s->faults), sum(s->requests), sum(s->exact), sum(s->failed), sum(s->lost),
           sum(s->degraded), sum(s->switches), sum(s->loads), sum(s->unloads), sum(s->accepted),
           sum(s->drafted), sum(s->twice));
    printf("seeds %llu to %llu: %u passed, %u failed\n", (unsigned long long)o.first,
           (unsigned long long)o.last, sum(s->done), failures);
    return failures == 0 ? 0 : 1;
}
