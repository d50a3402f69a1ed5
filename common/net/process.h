/* process.h - how the processes of a cluster begin, say that they are ready, and end.
 *
 * SIGTERM, SIGINT and SIGHUP end a process at once while it is still opening things: nothing is
 * lost. Once it is ready they are passed to mr_process_wait() through a pipe, and it ends in
 * order. A broken pipe is an error to handle, not a death.
 * Threads: the main thread. */
#ifndef MR_NET_PROCESS_H
#define MR_NET_PROCESS_H
#include "common/base/status.h"

/* component names the process in its log lines: plain text on a terminal, else JSON. */
void mr_process_begin(const char *component);

/* Prints "ready ADDRESS" and writes "ADDRESS\n" to ready_fd (-1: none), which is closed. */
void mr_process_ready(const char *address, int ready_fd);

/* After mr_process_ready: returns the signal that asked the process to end. */
int mr_process_wait(void);

/* Prints "COMPONENT: sentence" to stderr; returns the exit status: 2 for wrong usage, else 1. */
int mr_process_fail(const char *component, mr_status status, const mr_err *err);

#endif
