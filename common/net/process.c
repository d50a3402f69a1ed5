/* process.c - see process.h. */
#include "common/net/process.h"

#include "common/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int signal_pipe[2] = {-1, -1};
static volatile sig_atomic_t is_ready;

static void on_signal(int number) {
    const int saved = errno;
    const unsigned char byte = (unsigned char)number;
    if (!is_ready) _exit(128 + number);
    const ssize_t put = write(signal_pipe[1], &byte, 1);
    (void)put; /* full: it knows already */
    errno = saved;
}

void mr_process_begin(const char *component) {
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    signal(SIGPIPE, SIG_IGN);
    mr_log_setup(component, MR_LOG_INFO, isatty(STDERR_FILENO));
    setvbuf(stdout, NULL, _IOLBF, 0); /* a log file shows each line when it is written */
    if (pipe2(signal_pipe, O_CLOEXEC) != 0) {
        mr_log_error("pipe: %s", strerror(errno));
        exit(1);
    }
    fcntl(signal_pipe[1], F_SETFL, O_NONBLOCK);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        sigaction(numbers[i], &action, NULL);
}

void mr_process_ready(const char *address, int ready_fd) {
    is_ready = 1;
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
    unsigned char number = 0;
    struct pollfd signalled = {.fd = signal_pipe[0], .events = POLLIN};
    while (poll(&signalled, 1, -1) != 1) continue; /* interrupted: by the handler itself */
    const ssize_t got = read(signal_pipe[0], &number, 1);
    (void)got;
    mr_log_info("ending: %s", strsignal(number));
    return number;
}

int mr_process_fail(const char *component, mr_status status, const mr_err *err) {
    fprintf(stderr, "%s: %s\n", component, err->text);
    return status == MR_ERR_ARGUMENT ? 2 : 1;
}
