/* peers_connect.c - connecting without holding up a step: a few helper threads and a mailbox.
 *
 * A peer that does not answer its handshake keeps a helper busy until the deadline, so those that
 * failed before wait behind those that did not: asking order is the caller's, and a caller asks for
 * a failing peer ever more rarely. With a connect function of the caller's there are no threads:
 * it is called at once. The mutex guards the two lists and the ending flag. */
#include "worker/peers.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { HELPERS = 4 };

typedef struct job {
    struct job *next;
    mr_route_peer where;
    mr_grid grid;
    int64_t patience_ns;
    mr_connected result;
} job;

typedef struct {
    job *first, **end;
} list;

struct mr_connector {
    mr_digest digest;
    mr_peer_connect connect;
    void *context; /* of connect; our own for the default one */
    mr_peer_dial dial;
    void *dial_context;
    bool is_inline;
    pthread_t helpers[HELPERS];
    uint32_t helper_count;
    pthread_mutex_t mutex;
    pthread_cond_t asked;
    bool is_ending;
    list todo, done;
    atomic_uint done_count; /* so that nobody takes the mutex to find nothing */
};

static void push(list *l, job *j) {
    j->next = NULL;
    *l->end = j;
    l->end = &j->next;
}

static job *pop(list *l) {
    job *j = l->first;
    if (!j) return NULL;
    l->first = j->next;
    if (!l->first) l->end = &l->first;
    return j;
}

static void free_job(job *j) {
    mr_link_close(j->result.link);
    mr_route_peer_free(&j->where);
    free(j);
}

static mr_status connect_and_open(void *context, mr_link **out, mr_wire_welcome *welcome,
                                  const mr_route_peer *peer, const mr_session_hello *hello,
                                  mr_grid grid, int64_t deadline_ns, mr_err *err) {
    const mr_connector *c = context;
    size_t bytes;
    const mr_fabric_peer where = {peer->address, peer->ucx, peer->machine, peer->has_verbs};
    const mr_fabric_policy any = {0};
    mr_status status = c->dial ? c->dial(c->dial_context, out, peer, deadline_ns, err)
                               : mr_link_connect_best(out, &where, &any, deadline_ns, err);
    if (status != MR_OK) return status;
    mr_link_set_grid(*out, (mr_link_grid){grid.row_groups, grid.width_slices});
    status = mr_session_open(*out, hello, deadline_ns, welcome, sizeof(*welcome), &bytes, err);
    if (status == MR_OK) return MR_OK;
    mr_link_close(*out);
    *out = NULL;
    return status;
}

static void run_job(const mr_connector *c, job *j) {
    const mr_session_hello hello = {MR_ROLE_WORKER, MR_ROLE_MEMSHARD, c->digest};
    j->result.status = c->connect(c->context, &j->result.link, &j->result.welcome, &j->where,
                                  &hello, j->grid, mr_now_ns() + j->patience_ns, &j->result.err);
    if (j->result.status != MR_OK) j->result.link = NULL;
}

typedef struct {
    const mr_connector *connector;
    job *job;
} errand;

static void *run_errand(void *argument) {
    const errand *e = argument;
    run_job(e->connector, e->job);
    return NULL;
}

/* UCX links that one thread connected share an engine and belong to one thread together. So each
 * is connected by a thread of its own, and may be handed over by itself. */
static void run_apart(const mr_connector *c, job *j) {
    errand e = {c, j};
    pthread_t thread;
    if (!j->where.ucx)
        run_job(c, j);
    else if (pthread_create(&thread, NULL, run_errand, &e) == 0)
        pthread_join(thread, NULL);
    else
        j->result.status =
            mr_fail(&j->result.err, MR_ERR_NOMEM, "no thread could be started to connect it");
}

static void *help(void *argument) {
    mr_connector *c = argument;
    pthread_mutex_lock(&c->mutex);
    while (!c->is_ending) {
        job *j = pop(&c->todo);
        if (!j) {
            pthread_cond_wait(&c->asked, &c->mutex);
            continue;
        }
        pthread_mutex_unlock(&c->mutex);
        run_apart(c, j);
        pthread_mutex_lock(&c->mutex);
        push(&c->done, j);
        atomic_fetch_add(&c->done_count, 1);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

mr_connector *mr_connector_open(mr_digest digest, mr_peer_connect connect, void *context,
                                mr_peer_dial dial, void *dial_context) {
    mr_connector *c = mr_alloc(sizeof(*c));
    c->digest = digest;
    c->connect = connect ? connect : connect_and_open;
    c->context = connect ? context : c;
    c->dial = dial;
    c->dial_context = dial_context;
    c->is_inline = connect != NULL;
    c->todo.end = &c->todo.first;
    c->done.end = &c->done.first;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->asked, NULL);
    return c;
}

void mr_connector_close(mr_connector *c) {
    if (!c) return;
    pthread_mutex_lock(&c->mutex);
    c->is_ending = true;
    pthread_cond_broadcast(&c->asked);
    pthread_mutex_unlock(&c->mutex);
    for (uint32_t i = 0; i < c->helper_count; i++) pthread_join(c->helpers[i], NULL);
    for (job *j = pop(&c->todo); j; j = pop(&c->todo)) free_job(j);
    for (job *j = pop(&c->done); j; j = pop(&c->done)) free_job(j);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->asked);
    free(c);
}

/* Signals are for the main thread. */
static void start_helpers(mr_connector *c) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (c->helper_count < HELPERS &&
           pthread_create(&c->helpers[c->helper_count], NULL, help, c) == 0)
        c->helper_count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void mr_connector_ask(mr_connector *c, uint64_t ticket, const mr_route_peer *where, mr_grid grid,
                      int64_t patience_ns) {
    job *j = mr_alloc(sizeof(*j));
    mr_route_peer_copy(&j->where, where);
    j->grid = grid;
    j->patience_ns = patience_ns;
    j->result.ticket = ticket;
    if (!c->is_inline && c->helper_count == 0) start_helpers(c);
    const bool here = c->is_inline || c->helper_count == 0;
    if (c->is_inline)
        run_job(c, j);
    else if (here)
        j->result.status =
            mr_fail(&j->result.err, MR_ERR_NOMEM, "no thread could be started to connect it");
    pthread_mutex_lock(&c->mutex);
    push(here ? &c->done : &c->todo, j);
    pthread_cond_signal(&c->asked);
    pthread_mutex_unlock(&c->mutex);
    if (here) atomic_fetch_add(&c->done_count, 1);
}

bool mr_connector_take(mr_connector *c, mr_connected *out) {
    if (atomic_load(&c->done_count) == 0) return false;
    pthread_mutex_lock(&c->mutex);
    job *j = pop(&c->done);
    pthread_mutex_unlock(&c->mutex);
    if (!j) return false;
    atomic_fetch_sub(&c->done_count, 1);
    *out = j->result;
    j->result.link = NULL;
    free_job(j);
    return true;
}
