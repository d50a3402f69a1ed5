/* prober.c - see prober.h. */
#include "coordinator/prober.h"

#include "common/base/clock.h"
#include "common/base/mem.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { THREADS = 4, PERIOD_MS = 250, PATIENCE_MS = 500 };

typedef struct {
    mr_role role;
    char *id, *address;
    mr_control_client *client;
    int64_t next_ns, answered_ns, asked_ns; /* asked_ns: first asked since it last answered */
    bool is_busy, is_gone;                  /* gone: freed when it is no longer busy */
    mr_control_counter *counters;
    uint32_t counter_count;
} probe;

struct mr_prober {
    mr_rpc_security security;
    char *files[3];
    pthread_t threads[THREADS];
    uint32_t thread_count;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    probe **probes;
    uint32_t count;
    bool is_ending;
};

static void free_probe(probe *p) {
    mr_control_client_close(p->client);
    free(p->id);
    free(p->address);
    free(p->counters);
    free(p);
}

/* The one that is due first; *when: how long to wait otherwise. */
static probe *next_due(mr_prober *r, int64_t *when) {
    probe *best = NULL;
    for (uint32_t i = 0; i < r->count; i++)
        if (!r->probes[i]->is_busy && (!best || r->probes[i]->next_ns < best->next_ns))
            best = r->probes[i];
    *when = best ? best->next_ns : mr_now_ns() + PERIOD_MS * 1000000ll;
    return best && best->next_ns <= mr_now_ns() ? best : NULL;
}

/* Without the lock; the probe is busy meanwhile. */
static bool ask(const mr_prober *r, probe *p, mr_control_status *status) {
    mr_err err;
    if (!p->client) {
        const mr_control_client_options options = {.address = p->address,
                                                   .security = r->security,
                                                   .role = r->security.is_plain ? 0 : p->role,
                                                   .id = p->id};
        if (mr_control_client_open(&p->client, &options, &err) != MR_OK) return false;
    }
    return mr_control_look(p->client, status, NULL, mr_now_ns() + PATIENCE_MS * 1000000ll, &err) ==
           MR_OK;
}

static void take(probe *p, bool has_answered, const mr_control_status *status) {
    const int64_t now = mr_now_ns();
    p->next_ns = now + PERIOD_MS * 1000000ll;
    if (!has_answered) return;
    p->answered_ns = now;
    p->asked_ns = 0;
    p->counters = mr_realloc_array(p->counters, status->counter_count + 1, sizeof(*p->counters));
    memcpy(p->counters, status->counters, status->counter_count * sizeof(*p->counters));
    p->counter_count = status->counter_count;
}

static void *run(void *context) {
    mr_prober *r = context;
    mr_control_status *status = mr_alloc(sizeof(*status));
    pthread_mutex_lock(&r->lock);
    while (!r->is_ending) {
        int64_t when;
        probe *p = next_due(r, &when);
        if (!p) {
            const struct timespec until = {.tv_sec = (time_t)(when / 1000000000),
                                           .tv_nsec = (long)(when % 1000000000)};
            pthread_cond_timedwait(&r->changed, &r->lock, &until);
            continue;
        }
        p->is_busy = true;
        if (p->asked_ns == 0) p->asked_ns = mr_now_ns();
        pthread_mutex_unlock(&r->lock);
        const bool has_answered = ask(r, p, status);
        pthread_mutex_lock(&r->lock);
        p->is_busy = false;
        if (p->is_gone)
            free_probe(p);
        else
            take(p, has_answered, status);
    }
    pthread_mutex_unlock(&r->lock);
    free(status);
    return NULL;
}

mr_prober *mr_prober_open(const mr_rpc_security *security) {
    pthread_condattr_t monotonic;
    mr_prober *r = mr_alloc(sizeof(*r));
    const char *const files[3] = {security->ca_file, security->cert_file, security->key_file};
    for (int i = 0; i < 3; i++) r->files[i] = files[i] ? mr_strdup(files[i]) : NULL;
    r->security = (mr_rpc_security){r->files[0], r->files[1], r->files[2], security->is_plain};
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    while (r->thread_count < THREADS &&
           pthread_create(&r->threads[r->thread_count], NULL, run, r) == 0)
        r->thread_count++;
    return r;
}

void mr_prober_close(mr_prober *r) {
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->is_ending = true;
    pthread_cond_broadcast(&r->changed);
    for (uint32_t i = 0; i < r->count; i++)
        if (r->probes[i]->client) mr_control_client_cancel(r->probes[i]->client);
    pthread_mutex_unlock(&r->lock);
    for (uint32_t i = 0; i < r->thread_count; i++) pthread_join(r->threads[i], NULL);
    for (uint32_t i = 0; i < r->count; i++) free_probe(r->probes[i]);
    free(r->probes);
    for (int i = 0; i < 3; i++) free(r->files[i]);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* --- who is asked ----------------------------------------------------------------------------- */

static probe *find(const mr_prober *r, mr_role role, const char *id) {
    for (uint32_t i = 0; i < r->count; i++)
        if (r->probes[i]->role == role && strcmp(r->probes[i]->id, id) == 0) return r->probes[i];
    return NULL;
}

static void drop(mr_prober *r, uint32_t index) {
    probe *p = r->probes[index];
    r->probes[index] = r->probes[--r->count];
    if (p->is_busy)
        p->is_gone = true;
    else
        free_probe(p);
}

static void follow_member(mr_prober *r, const mr_member *m) {
    probe *p = find(r, m->role, m->id);
    if (p && strcmp(p->address, m->control) == 0) return;
    int64_t answered = 0, asked = 0;
    if (p) { /* it has come back elsewhere */
        answered = p->answered_ns;
        asked = p->asked_ns;
        for (uint32_t i = 0; i < r->count; i++)
            if (r->probes[i] == p) {
                drop(r, i);
                break;
            }
    }
    p = mr_alloc(sizeof(*p));
    *p = (probe){.role = m->role,
                 .id = mr_strdup(m->id),
                 .address = mr_strdup(m->control),
                 .answered_ns = answered,
                 .asked_ns = asked};
    r->probes = mr_realloc_array(r->probes, r->count + 1, sizeof(*r->probes));
    r->probes[r->count++] = p;
}

void mr_prober_follow(mr_prober *r, const mr_view *view, mr_role role, const char *self) {
    pthread_mutex_lock(&r->lock);
    for (uint32_t i = 0; i < r->count;) {
        const mr_member *m = mr_view_member(view, r->probes[i]->role, r->probes[i]->id);
        if (m && m->control)
            i++;
        else
            drop(r, i);
    }
    for (uint32_t i = 0; i < view->member_count; i++) {
        const mr_member *m = view->members[i];
        if (!m->control || (m->role == role && strcmp(m->id, self) == 0)) continue;
        follow_member(r, m);
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

double mr_prober_silent_s(mr_prober *r, mr_role role, const char *id) {
    double silent = -1;
    pthread_mutex_lock(&r->lock);
    const probe *p = find(r, role, id);
    if (p && p->answered_ns)
        silent = (double)(mr_now_ns() - p->answered_ns) / 1e9;
    else if (p && p->asked_ns)
        silent = (double)(mr_now_ns() - p->asked_ns) / 1e9;
    pthread_mutex_unlock(&r->lock);
    return silent;
}

bool mr_prober_counter(mr_prober *r, mr_role role, const char *id, const char *name, double *out) {
    bool found = false;
    pthread_mutex_lock(&r->lock);
    const probe *p = find(r, role, id);
    for (uint32_t i = 0; p && i < p->counter_count && !found; i++)
        if (strcmp(p->counters[i].name, name) == 0) {
            *out = p->counters[i].value;
            found = true;
        }
    pthread_mutex_unlock(&r->lock);
    return found;
}
