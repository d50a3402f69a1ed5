/* up_process.h - the child processes of `memrack up`: started, waited for, watched, ended.
 *
 * A child has a process group of its own, so that Ctrl-C reaches only us and we end the others in
 * order; and it is killed by the system when we die, so that none is left behind. Its output goes
 * to a log file in the run folder; it says that it is ready, and where, through a pipe.
 * Threads: the one thread of `memrack up`. Signals come as reads from a descriptor, never as
 * handlers. */
#ifndef MR_CLI_UP_PROCESS_H
#define MR_CLI_UP_PROCESS_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MR_CHILD_ADDRESS_BYTES = 256, MR_CHILD_ARGUMENTS_MAX = 40 };

typedef struct {
    const char *role; /* "memshard" */
    uint32_t id;
    pid_t pid;       /* 0: not started, or reaped */
    int wait_status; /* as of waitpid, once reaped */
    bool is_dead;
    int ready;                         /* read end of its pipe; -1 once it spoke */
    char line[MR_CHILD_ADDRESS_BYTES]; /* what came through the pipe so far */
    size_t line_bytes;
    char address[MR_CHILD_ADDRESS_BYTES]; /* empty until it is ready */
    char *log_path;                       /* owned */
} mr_child;

/* Blocks SIGINT, SIGTERM, SIGHUP and SIGCHLD for this process and gives a descriptor that reads
 * them. */
mr_status mr_signals_open(int *out_fd, mr_err *err);

/* arguments: program first, NULL at the end; "--ready-fd 3" is added where the program is ours. */
mr_status mr_child_start(mr_child *child, const char *role, uint32_t id, const char *run_folder,
                         const char *const *arguments, bool is_ours, mr_err *err);

/* Waits until all of them are ready. MR_ERR_UNAVAILABLE: one ended first (err names it and gives
 * its last words). MR_ERR_CANCELLED: we were asked to end. */
mr_status mr_children_wait_ready(mr_child *children, uint32_t count, int signals,
                                 int64_t deadline_ns, mr_err *err);

/* Reaps what has ended. Returns a child that died since the last call, or NULL. */
mr_child *mr_children_reap(mr_child *children, uint32_t count);
/* Waits for a signal; returns its number, or 0 at the deadline (INT64_MAX: none). */
int mr_signals_wait(int signals, int64_t deadline_ns);

/* "was killed by signal 9 (Killed)" or "ended with status 1"; and the last lines of its log. */
void mr_child_describe_end(const mr_child *child, char *out, size_t room);
void mr_child_print_log_tail(const mr_child *child, int lines);

/* SIGTERM to all, SIGKILL to those still there after grace_ms or when asked to end again. */
void mr_children_end(mr_child *children, uint32_t count, int signals, int64_t grace_ms);
void mr_child_free(mr_child *child);

#endif
