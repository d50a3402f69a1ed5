/* up_process.c - see up_process.h. */
#include "cli/up_process.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum { READY_FD = 3, LOG_TAIL_BYTES = 4096, POLL_MAX_MS = 1000 };

static sigset_t our_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    return set;
}

mr_status mr_signals_open(int *out_fd, mr_err *err) {
    const sigset_t set = our_signals();
    sigprocmask(SIG_BLOCK, &set, NULL);
    *out_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (*out_fd < 0) return mr_fail(err, MR_ERR_IO, "signalfd: %s", strerror(errno));
    return MR_OK;
}

static int next_signal(int signals) {
    struct signalfd_siginfo info;
    if (read(signals, &info, sizeof(info)) != sizeof(info)) return 0;
    return (int)info.ssi_signo;
}

/* Milliseconds for poll until a deadline, never longer than POLL_MAX_MS. */
static int poll_ms(int64_t deadline_ns) {
    const int64_t left = (deadline_ns - mr_now_ns()) / 1000000 + 1;
    if (left <= 0) return 0;
    return left < POLL_MAX_MS ? (int)left : POLL_MAX_MS;
}

int mr_signals_wait(int signals, int64_t deadline_ns) {
    for (;;) {
        const int number = next_signal(signals);
        if (number != 0 || mr_now_ns() >= deadline_ns) return number;
        struct pollfd set = {.fd = signals, .events = POLLIN};
        poll(&set, 1, deadline_ns == INT64_MAX ? -1 : poll_ms(deadline_ns));
    }
}

/* --- starting --------------------------------------------------------------------------------- */

/* In the child: only calls that are safe between fork and exec. */
static void become(char *const *arguments, pid_t parent, int log, int ready) {
    const sigset_t set = our_signals();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127); /* it died before we asked to be told */
    setpgid(0, 0);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    if (ready == READY_FD)
        fcntl(ready, F_SETFD, 0);
    else
        dup2(ready, READY_FD); /* the copy is not closed by exec */
    execv(arguments[0], arguments);
    static const char sentence[] = "the program cannot be started\n";
    const ssize_t put = write(STDERR_FILENO, sentence, sizeof(sentence) - 1);
    (void)put;
    _exit(127);
}

mr_status mr_child_start(mr_child *child, const char *role, uint32_t id, const char *run_folder,
                         const char *const *arguments, bool is_ours, mr_err *err) {
    static const char ready_option[] = "--ready-fd", ready_value[] = "3";
    const char *full[MR_CHILD_ARGUMENTS_MAX + 3];
    int pipe_fds[2], count = 0;
    mr_status status = MR_OK;
    *child = (mr_child){.role = role, .id = id, .ready = -1};
    child->log_path = mr_format("%s/%s-%u.log", run_folder, role, id);
    while (arguments[count] && count < MR_CHILD_ARGUMENTS_MAX) {
        full[count] = arguments[count];
        count++;
    }
    if (is_ours) {
        full[count++] = ready_option;
        full[count++] = ready_value;
    }
    full[count] = NULL;
    const int log = open(child->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0) return mr_fail(err, MR_ERR_IO, "create %s: %s", child->log_path, strerror(errno));
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        status = mr_fail(err, MR_ERR_IO, "pipe: %s", strerror(errno));
        goto close_log;
    }
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0) become((char *const *)(uintptr_t)full, parent, log, pipe_fds[1]);
    close(pipe_fds[1]);
    if (pid < 0) {
        status = mr_fail(err, MR_ERR_IO, "start %s %u: %s", role, id, strerror(errno));
        close(pipe_fds[0]);
        goto close_log;
    }
    child->pid = pid;
    child->ready = pipe_fds[0];
    fcntl(child->ready, F_SETFL, O_NONBLOCK);
close_log:
    close(log);
    return status;
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* Its address ends with a line break. */
static void read_ready(mr_child *c) {
    const ssize_t got =
        read(c->ready, c->line + c->line_bytes, sizeof(c->line) - 1 - c->line_bytes);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got > 0) c->line_bytes += (size_t)got;
    char *end = memchr(c->line, '\n', c->line_bytes);
    if (!end && got > 0 && c->line_bytes < sizeof(c->line) - 1) return;
    if (end) {
        *end = '\0';
        snprintf(c->address, sizeof(c->address), "%s", c->line);
    }
    close(c->ready); /* spoke, or will never */
    c->ready = -1;
}

mr_child *mr_children_reap(mr_child *children, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        mr_child *c = &children[i];
        if (c->pid == 0 || waitpid(c->pid, &c->wait_status, WNOHANG) != c->pid) continue;
        c->pid = 0;
        c->is_dead = true;
        return c;
    }
    return NULL;
}

void mr_child_describe_end(const mr_child *child, char *out, size_t room) {
    const int s = child->wait_status;
    if (WIFSIGNALED(s))
        snprintf(out, room, "was killed by signal %d (%s)", WTERMSIG(s), strsignal(WTERMSIG(s)));
    else
        snprintf(out, room, "ended with status %d", WIFEXITED(s) ? WEXITSTATUS(s) : -1);
}

static uint32_t count_unready(const mr_child *children, uint32_t count, const mr_child **first) {
    uint32_t unready = 0;
    for (uint32_t i = count; i-- > 0;)
        if (children[i].address[0] == '\0') {
            unready++;
            *first = &children[i];
        }
    return unready;
}

/* One turn of waiting: signals and pipes. */
static mr_status wait_turn(mr_child *children, uint32_t count, int signals, int64_t deadline_ns,
                           mr_err *err) {
    struct pollfd set[count + 1];
    set[0] = (struct pollfd){.fd = signals, .events = POLLIN};
    for (uint32_t i = 0; i < count; i++)
        set[i + 1] = (struct pollfd){.fd = children[i].ready, .events = POLLIN};
    if (poll(set, count + 1, poll_ms(deadline_ns)) < 0 && errno != EINTR)
        return mr_fail(err, MR_ERR_IO, "poll: %s", strerror(errno));
    for (uint32_t i = 0; i < count; i++)
        if (children[i].ready >= 0) read_ready(&children[i]);
    for (int number; (number = next_signal(signals)) != 0;)
        if (number != SIGCHLD) return mr_fail(err, MR_ERR_CANCELLED, "ended by signal %d", number);
    const mr_child *dead = mr_children_reap(children, count);
    if (!dead) return MR_OK;
    char how[128];
    mr_child_describe_end(dead, how, sizeof(how));
    return mr_fail(err, MR_ERR_UNAVAILABLE, "%s %u %s before it was ready", dead->role, dead->id,
                   how);
}

mr_status mr_children_wait_ready(mr_child *children, uint32_t count, int signals,
                                 int64_t deadline_ns, mr_err *err) {
    const mr_child *first = NULL;
    while (count_unready(children, count, &first) > 0) {
        const mr_status status = wait_turn(children, count, signals, deadline_ns, err);
        if (status != MR_OK) return status;
        if (mr_now_ns() >= deadline_ns && count_unready(children, count, &first) > 0)
            return mr_fail(err, MR_ERR_TIMEOUT, "%s %u is not ready in time", first->role,
                           first->id);
    }
    return MR_OK;
}

/* --- ending ----------------------------------------------------------------------------------- */

void mr_child_print_log_tail(const mr_child *child, int lines) {
    char tail[LOG_TAIL_BYTES + 1];
    const int fd = open(child->log_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    const off_t end = lseek(fd, 0, SEEK_END);
    const off_t from = end > LOG_TAIL_BYTES ? end - LOG_TAIL_BYTES : 0;
    const ssize_t got = pread(fd, tail, LOG_TAIL_BYTES, from);
    close(fd);
    if (got <= 0) return;
    tail[got] = '\0';
    char *at = tail + got;
    if (at[-1] == '\n') *--at = '\0';
    for (int i = 0; i < lines && at > tail; i++) do
            at--;
        while (at > tail && *at != '\n');
    if (*at == '\n') at++;
    for (char *line = at; line && *line;) {
        char *next = strchr(line, '\n');
        if (next) *next++ = '\0';
        fprintf(stderr, "    %s-%u | %s\n", child->role, child->id, line);
        line = next;
    }
}

static uint32_t count_alive(const mr_child *children, uint32_t count) {
    uint32_t alive = 0;
    for (uint32_t i = 0; i < count; i++) alive += children[i].pid > 0;
    return alive;
}

static void signal_all(const mr_child *children, uint32_t count, int number) {
    for (uint32_t i = 0; i < count; i++)
        if (children[i].pid > 0) kill(children[i].pid, number);
}

void mr_children_end(mr_child *children, uint32_t count, int signals, int64_t grace_ms) {
    int64_t deadline_ns = mr_now_ns() + grace_ms * 1000000;
    bool is_killing = false;
    signal_all(children, count, SIGTERM);
    for (;;) {
        while (mr_children_reap(children, count)) continue;
        if (count_alive(children, count) == 0) return;
        const int number = mr_signals_wait(signals, deadline_ns);
        if (number == SIGCHLD || is_killing) {
            if (number == 0) return; /* killed and not gone: the system holds it */
            continue;
        }
        is_killing = true; /* the time is over, or we were asked a second time */
        signal_all(children, count, SIGKILL);
        deadline_ns = mr_now_ns() + grace_ms * 1000000;
    }
}

void mr_child_free(mr_child *child) {
    if (child->ready >= 0) close(child->ready);
    free(child->log_path);
    *child = (mr_child){.ready = -1};
}
