/* process.c - see process.h. */
#include "common/net/process.h"

#include "common/base/log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static sigset_t end_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    return set;
}

void mr_process_begin(const char *component) {
    const sigset_t set = end_signals();
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    mr_log_setup(component, MR_LOG_INFO, isatty(STDERR_FILENO));
    setvbuf(stdout, NULL, _IOLBF, 0); /* a log file shows each line when it is written */
}

void mr_process_ready(const char *address, int ready_fd) {
    printf("ready %s\n", address);
    fflush(stdout);
    if (ready_fd < 0) return;
    char line[512];
    const int bytes = snprintf(line, sizeof(line), "%s\n", address);
    if (bytes < 0 || bytes >= (int)sizeof(line) || write(ready_fd, line, (size_t)bytes) != bytes)
        mr_log_warn("cannot say on descriptor %d that this process is ready: %s", ready_fd,
                    strerror(errno));
    close(ready_fd);
}

int mr_process_wait(void) {
    const sigset_t set = end_signals();
    int number = 0;
    while (sigwait(&set, &number) != 0) continue;
    mr_log_info("ending: %s", strsignal(number));
    return number;
}

int mr_process_fail(const char *component, mr_status status, const mr_err *err) {
    fprintf(stderr, "%s: %s\n", component, err->text);
    return status == MR_ERR_ARGUMENT ? 2 : 1;
}
