/* rpc_test.h - what the tests of rpc and etcd share: certificates made on the spot by the openssl
 * command, child processes of the test itself, folders that go away. */
#ifndef MR_TESTS_RPC_TEST_H
#define MR_TESTS_RPC_TEST_H
#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/base/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static inline int64_t after_ms(int64_t ms) {
    return mr_now_ns() + ms * 1000000;
}
static inline void sleep_ms(int64_t ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

#define check_ok(call)                                                                             \
    do {                                                                                           \
        const mr_status status_ = (call);                                                          \
        if (status_ != MR_OK) fail_msg("%s: %s: %s", #call, mr_status_name(status_), err.text);    \
    } while (0)

/* A condition that must come true within some milliseconds. */
#define check_soon(condition, ms)                                                                  \
    do {                                                                                           \
        const int64_t until_ = after_ms(ms);                                                       \
        while (!(condition) && mr_now_ns() < until_) sleep_ms(2);                                  \
        if (!(condition)) fail_msg("not within %d ms: %s", (int)(ms), #condition);                 \
    } while (0)

static inline char *test_folder(void) {
    char path[] = "/tmp/memrack-test-XXXXXX";
    assert_non_null(mkdtemp(path));
    return mr_strdup(path);
}
static inline void test_folder_remove(char *folder) {
    char *command = mr_format("rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
    free(command);
    free(folder);
}

static inline void run(const char *format, const char *folder, const char *a, const char *b) {
    char command[2048];
    snprintf(command, sizeof(command), "cd '%s' && exec 2>openssl.log; ", folder);
    const size_t used = strlen(command);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(command + used, sizeof(command) - used, format, a, b, a, a, a, a);
#pragma GCC diagnostic pop
    if (system(command) != 0) fail_msg("failed: %s", command);
}

/* FOLDER/NAME.crt and NAME.key of a new authority. */
static inline void make_authority(const char *folder, const char *name) {
    run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        " -keyout %1$s.key -out %1$s.crt -subj '/CN=authority %1$s'",
        folder, name, "");
}
/* FOLDER/NAME.crt and NAME.key, signed by an authority: localhost, 127.0.0.1 and its own name. */
static inline void make_certificate(const char *folder, const char *name, const char *authority) {
    run("openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        " -keyout %1$s.key.new -out %1$s.csr -subj '/CN=%1$s' && "
        "echo 'subjectAltName=DNS:localhost,DNS:%1$s.test,IP:127.0.0.1' > %1$s.ext && "
        "openssl x509 -req -in %1$s.csr -CA %2$s.crt -CAkey %2$s.key -CAcreateserial -days 2"
        " -extfile %1$s.ext -out %1$s.crt.new && mv %1$s.key.new %1$s.key && "
        "mv %1$s.crt.new %1$s.crt",
        folder, name, authority);
}

static inline bool have_program(const char *name) {
    char *command = mr_format("command -v %s >/dev/null 2>&1", name);
    const bool is_there = system(command) == 0;
    free(command);
    return is_there;
}

/* A port that nobody uses right now. */
static inline int free_port(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, bytes), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    close(fd);
    return ntohs(address.sin_port);
}

static inline int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0) return fd;
    close(fd);
    return -1;
}

/* Returns when it stands still. */
static inline void stop_child(pid_t child) {
    int status;
    assert_int_equal(kill(child, SIGSTOP), 0);
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(WIFSTOPPED(status));
}

/* A dead child leaves nothing behind. */
static inline void end_child(pid_t *child) {
    if (*child <= 0) return;
    kill(*child, SIGKILL);
    waitpid(*child, NULL, 0);
    *child = 0;
}

#endif
