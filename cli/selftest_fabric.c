/* selftest_fabric.c - `memrack selftest --fabric`: how long do bytes take between these hosts?
 *
 * ECHO frames in an ordinary session, so that what is measured is what retrieval travels on: the
 * same framing, the same waiting, the same MACs. Without addresses a child process serves them on
 * this machine over every fabric there is.
 *
 * The prediction beside it is the byte model that `memrack plan` uses:
 *   round trip = latency + (bytes up + bytes down) / bandwidth        one request under way
 *   rate       = min(under way / round trip, bandwidth / larger of the two)
 * with 64 bytes of header each way. Latency and bandwidth are usual ones of the transport unless
 * given; where a prediction is far off, it is the network, or this model, that needs a look. */
#include "cli/selftest.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/fabric_choice.h"
#include "common/net/keys.h"
#include "common/net/server.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SAMPLES_MAX = 1 << 20, WELCOME_BYTES = 1 << 19, UNDER_WAY_MAX = 64, ADDRESS_BYTES = 300 };
#define WAIT_NS 5000000000ll

typedef struct {
    uint32_t up, down, under_way;
} shape;
static const shape shapes[] = {
    {8, 8, 1},          {2048, 8192, 1},    {2048, 8192, 8},     {2048, 8192, 64},
    {16384, 131072, 1}, {16384, 131072, 8}, {65536, 1 << 20, 1},
};

/* --- the prediction --------------------------------------------------------------------------- */

typedef struct {
    double latency_us, gigabytes_s;
} pipe_model;

/* Usual ones: sockets of one machine wake a sleeping thread on each side; a 25 Gbit/s Ethernet is
 * taken for a TCP address that is not this machine's; a 100 Gbit/s NIC for RDMA. */
static pipe_model model_of(const char *transport, bool is_local,
                           const mr_selftest_fabric_options *o) {
    pipe_model m = {60, 3};
    if (!strcmp(transport, "tcp")) m = is_local ? (pipe_model){40, 2} : (pipe_model){60, 3};
    if (!strcmp(transport, "unix")) m = (pipe_model){30, 3};
    if (!strcmp(transport, "shm")) m = (pipe_model){4, 5};
    if (!strcmp(transport, "rdma")) m = (pipe_model){5, 12};
    if (o->latency_us > 0) m.latency_us = o->latency_us;
    if (o->gigabytes_s > 0) m.gigabytes_s = o->gigabytes_s;
    return m;
}

static double predict_us(pipe_model m, const shape *s) {
    const double bytes = (double)s->up + s->down + 2 * sizeof(mr_wire_header);
    return m.latency_us + bytes / (m.gigabytes_s * 1e3);
}

static double predict_rate(pipe_model m, const shape *s) {
    const double larger = (s->up > s->down ? s->up : s->down) + (double)sizeof(mr_wire_header);
    const double by_time = s->under_way * 1e6 / predict_us(m, s);
    const double by_bytes = m.gigabytes_s * 1e9 / larger;
    return by_time < by_bytes ? by_time : by_bytes;
}

/* --- measuring -------------------------------------------------------------------------------- */

typedef struct {
    double p50_us, p99_us, per_second;
} timing;

static int by_size(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static mr_status send_one(mr_link *link, const shape *s, uint64_t number, mr_err *err) {
    const mr_wire_header header = {.type = MR_FRAME_ECHO, .request = number};
    mr_wire_echo *echo = mr_link_begin(link, &header, s->up);
    if (!echo) return mr_fail(err, MR_ERR_LIMIT, "the link's backlog is full");
    memset(echo, 0, s->up);
    echo->reply_bytes = s->down;
    mr_link_end(link);
    return MR_OK;
}

/* The next answer; answers come in the order of the questions. */
static mr_status take_one(mr_link *link, const shape *s, uint64_t number, mr_err *err) {
    mr_frame frame;
    const int64_t deadline = mr_now_ns() + WAIT_NS;
    for (;;) {
        mr_status status = mr_link_flush(link, err);
        if (status == MR_OK || status == MR_ERR_AGAIN) status = mr_link_receive(link, &frame, err);
        if (status == MR_OK) {
            if (frame.header->type == MR_FRAME_ECHOED && frame.header->request == number &&
                frame.header->payload_bytes == s->down)
                return MR_OK;
            return mr_fail(err, MR_ERR_FORMAT, "%s answers an ECHO with something else",
                           mr_link_peer(link));
        }
        if (status != MR_ERR_AGAIN) return status;
        status = mr_links_wait(&link, 1, deadline);
        if (status != MR_OK)
            return mr_fail(err, status, "%s: no answer within 5 s", mr_link_peer(link));
    }
}

static mr_status measure(timing *out, mr_link *link, const shape *s, double seconds,
                         int64_t *sample, mr_err *err) {
    int64_t sent_ns[UNDER_WAY_MAX];
    uint64_t sent = 0, received = 0;
    uint32_t count = 0;
    mr_status status = MR_OK;
    const int64_t begin = mr_now_ns(), until = begin + (int64_t)(seconds * 1e9);
    bool goes_on = true;
    while (goes_on || received < sent) {
        while (goes_on && sent < received + s->under_way) {
            sent_ns[sent % UNDER_WAY_MAX] = mr_now_ns();
            status = send_one(link, s, sent++, err);
            if (status != MR_OK) return status;
        }
        status = take_one(link, s, received, err);
        if (status != MR_OK) return status;
        const int64_t now = mr_now_ns();
        if (count < SAMPLES_MAX) sample[count++] = now - sent_ns[received % UNDER_WAY_MAX];
        received++;
        goes_on = now < until;
    }
    const double took = (double)(mr_now_ns() - begin);
    qsort(sample, count, sizeof(*sample), by_size);
    *out = (timing){(double)sample[count / 2] / 1e3, (double)sample[count - 1 - count / 100] / 1e3,
                    (double)received * 1e9 / took};
    return MR_OK;
}

/* Who listens there says so by refusing the other role. */
static mr_status open_link(mr_link **out, const char *address, const mr_session_key *key,
                           mr_err *err) {
    static const mr_role roles[] = {MR_ROLE_MEMSHARD, MR_ROLE_WORKER};
    mr_status status = MR_OK;
    *out = NULL;
    uint8_t *welcome = mr_alloc(WELCOME_BYTES);
    for (int i = 0; i < 2 && !*out; i++) {
        size_t bytes;
        const mr_session_hello hello = {.role = MR_ROLE_CLIENT, .role_wanted = roles[i]};
        const int64_t deadline = mr_now_ns() + WAIT_NS;
        status = mr_link_connect(out, address, deadline, err);
        if (status != MR_OK) break;
        mr_link_set_key(*out, key);
        status = mr_session_open(*out, &hello, deadline, welcome, WELCOME_BYTES, &bytes, err);
        if (status == MR_OK && mr_link_version(*out) < 2)
            status = mr_fail(err, MR_ERR_UNSUPPORTED,
                             "%s speaks version 1, which has no ECHO: it is older than this test",
                             address);
        if (status == MR_OK) break;
        mr_link_close(*out);
        *out = NULL;
        if (status != MR_ERR_MISMATCH) break;
    }
    free(welcome);
    return status;
}

static mr_status measure_address(const char *address, bool is_local,
                                 const mr_selftest_fabric_options *o, const mr_session_key *key,
                                 bool *was_rdma, int64_t *sample, mr_err *err) {
    mr_link *link;
    mr_status status = open_link(&link, address, key, err);
    if (status != MR_OK) return status;
    const shape warm = {2048, 8192, 4};
    timing t;
    status = measure(&t, link, &warm, 0.02, sample, err);
    const char *transport = mr_link_transport(link);
    const pipe_model model = model_of(transport, is_local, o);
    if (!strcmp(transport, "rdma")) *was_rdma = true;
    printf("\n%s over %s%s; predicted with %.0f us and %.1f GB/s\n", address, transport,
           mr_link_is_keyed(link) ? ", keyed" : "", model.latency_us, model.gigabytes_s);
    printf("%10s %10s %6s %10s %10s %12s %14s %14s\n", "bytes up", "down", "out", "p50 us",
           "p99 us", "requests/s", "predicted us", "predicted /s");
    for (size_t i = 0; status == MR_OK && i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const shape *s = &shapes[i];
        status = measure(&t, link, s, o->seconds, sample, err);
        if (status != MR_OK) break;
        char predicted[32] = "-";
        if (s->under_way == 1) snprintf(predicted, sizeof(predicted), "%.1f", predict_us(model, s));
        printf("%10u %10u %6u %10.1f %10.1f %12.0f %14s %14.0f\n", s->up, s->down, s->under_way,
               t.p50_us, t.p99_us, t.per_second, predicted, predict_rate(model, s));
        fflush(stdout);
    }
    mr_link_close(link);
    return status;
}

/* --- an echo server of its own ---------------------------------------------------------------- */

typedef struct {
    pid_t pid;
    int hold; /* closing it ends the child */
    int count;
    char addresses[3][ADDRESS_BYTES];
} echo_child;

static void refuse_all(void *context, mr_link *reply, const mr_frame *frame) {
    (void)context;
    mr_link_send_error(reply, frame->header->request, MR_ERR_UNSUPPORTED,
                       "this is an echo server: it takes ECHO and PING");
}

static mr_status open_echo(mr_server **out, const char *address, const char *ucx, mr_keys *keys,
                           mr_err *err) {
    static const mr_wire_worker_info none;
    const mr_server_options options = {.address = address,
                                       .ucx = ucx,
                                       .role = MR_ROLE_WORKER,
                                       .welcome_tail = &none,
                                       .welcome_tail_bytes = sizeof(none),
                                       .handler = refuse_all,
                                       .keys = keys};
    return mr_server_open(out, &options, err);
}

/* In the child. Writes the addresses, then serves until the parent goes. */
static int run_child(int report, int hold, const mr_session_key *key) {
    mr_server *tcp = NULL, *local = NULL;
    mr_err err, none;
    mr_keys *keys = mr_keys_open();
    char *path = mr_format("unix:/tmp/memrack-selftest-%ld.sock", (long)getpid());
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    mr_status status = key ? mr_keys_add(keys, key, 0, &err) : MR_OK;
    const char *ucx = mr_fabric_check_ucx(&none) == MR_OK ? "127.0.0.1:0" : NULL;
    if (status == MR_OK) status = open_echo(&tcp, "127.0.0.1:0", ucx, keys, &err);
    if (status != MR_OK && ucx) status = open_echo(&tcp, "127.0.0.1:0", NULL, keys, &err);
    if (status == MR_OK) status = open_echo(&local, path, NULL, keys, &err);
    if (status == MR_OK) {
        FILE *file = fdopen(report, "w");
        fprintf(file, "%s\n%s\n", mr_server_address(tcp), mr_server_address(local));
        if (mr_server_ucx(tcp)) fprintf(file, "ucx:%s\n", mr_server_ucx(tcp));
        fclose(file);
        char byte;
        while (read(hold, &byte, 1) > 0 || errno == EINTR) continue;
    } else {
        fprintf(stderr, "memrack selftest: echo server: %s\n", err.text);
    }
    mr_server_close(local);
    mr_server_close(tcp);
    mr_keys_close(keys);
    free(path);
    return status == MR_OK ? 0 : 1;
}

/* Before this process has threads of its own. */
static mr_status start_child(echo_child *c, const mr_session_key *key, mr_err *err) {
    int report[2], hold[2];
    *c = (echo_child){.pid = -1, .hold = -1};
    if (pipe(report) != 0 || pipe(hold) != 0)
        return mr_fail(err, MR_ERR_IO, "pipe: %s", strerror(errno));
    fflush(stdout);
    c->pid = fork();
    if (c->pid == 0) {
        close(report[0]);
        close(hold[1]);
        _exit(run_child(report[1], hold[0], key));
    }
    close(report[1]);
    close(hold[0]);
    c->hold = hold[1];
    if (c->pid < 0) return mr_fail(err, MR_ERR_IO, "fork: %s", strerror(errno));
    FILE *file = fdopen(report[0], "r");
    while (c->count < 3 && fgets(c->addresses[c->count], ADDRESS_BYTES, file)) {
        c->addresses[c->count][strcspn(c->addresses[c->count], "\n")] = '\0';
        c->count++;
    }
    fclose(file);
    return c->count > 0 ? MR_OK : mr_fail(err, MR_ERR_UNAVAILABLE, "the echo server did not start");
}

static void end_child(echo_child *c) {
    if (c->hold >= 0) close(c->hold);
    if (c->pid <= 0) return;
    for (int i = 0; i < 300; i++) {
        if (waitpid(c->pid, NULL, WNOHANG) != 0) return;
        usleep(10000);
    }
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

/* --- all together ----------------------------------------------------------------------------- */

static void say_what_was_not(bool was_rdma) {
    mr_err why = {{0}};
    if (mr_fabric_check_ucx(&why) != MR_OK)
        printf("\nShared memory and RDMA were not exercised: %s\n", why.text);
    else if (!was_rdma)
        printf("\nRDMA was not exercised: %s. Nothing measured here says anything about it.\n",
               mr_fabric_has_verbs()
                   ? "no address was reached over verbs; name another host's ucx: "
                     "address"
                   : "this host has no RDMA device with an active port");
    else
        printf("\nRDMA was exercised.\n");
}

mr_status mr_selftest_fabric(const mr_selftest_fabric_options *o, mr_err *err) {
    echo_child child = {.pid = -1, .hold = -1};
    mr_session_key key;
    bool was_rdma = false;
    mr_status status = o->key_file ? mr_key_load(&key, o->key_file, err) : MR_OK;
    if (status != MR_OK) return status;
    const mr_session_key *used = o->key_file ? &key : NULL;
    /* Two threads wait for each other where both sides are here. */
    if (o->spin_us >= 0)
        mr_fabric_set_spin((uint32_t)o->spin_us);
    else
        mr_fabric_spin_if_spare(o->address_count > 0 ? 1 : 2, 50);
    if (o->address_count == 0) status = start_child(&child, used, err);
    printf(
        "%u processors, waiting looks for %u us before it sleeps, machine %s, RDMA devices: %s\n",
        mr_fabric_cores(), mr_fabric_spin(), mr_machine_id(),
        mr_fabric_has_verbs() ? "yes" : "none");
    int64_t *sample = mr_alloc_array(SAMPLES_MAX, sizeof(*sample));
    const int count = o->address_count > 0 ? o->address_count : child.count;
    for (int i = 0; status == MR_OK && i < count; i++)
        status = measure_address(o->address_count > 0 ? o->addresses[i] : child.addresses[i],
                                 o->address_count == 0, o, used, &was_rdma, sample, err);
    free(sample);
    end_child(&child);
    if (status != MR_OK) return status;
    say_what_was_not(was_rdma);
    if (o->require_rdma && !was_rdma)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "RDMA is required and was not exercised");
    return MR_OK;
}
