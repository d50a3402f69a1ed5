/* orders.c - see orders.h. */
#include "coordinator/orders.h"

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    ORDERS_MAX = 256, /* under way, or failed a moment ago */
    PAUSE_MS = 2000,
    SEEN_MS = 500, /* until the member's record says what it has done */
    SILENCE_MS = 10000,
    UNLOAD_MS = 60000,
    JOIN_MS = 3000,
};
#define LOAD_NS (24ll * 3600 * 1000000000)

typedef struct {
    mr_orders *orders;
    pthread_t thread;
    mr_control_client *client;
    char *member;
    mr_digest digest;
    mr_control_load_order load; /* texts and cells owned */
    uint64_t leader_epoch;
    char *cluster, *leader;  /* of a join; else NULL */
    bool is_unload, is_done; /* under the lock */
    int64_t again_ns;        /* once done: not given again before */
} order;

struct mr_orders {
    mr_rpc_security security;
    char *files[3];
    void (*done)(void *context);
    void *context;
    pthread_mutex_t lock; /* guards is_done and again_ns of orders */
    order *items[ORDERS_MAX];
    uint32_t count;
};

mr_orders *mr_orders_open(const mr_rpc_security *security, void (*done)(void *context),
                          void *context) {
    mr_orders *o = mr_alloc(sizeof(*o));
    const char *const files[3] = {security->ca_file, security->cert_file, security->key_file};
    for (int i = 0; i < 3; i++) o->files[i] = files[i] ? mr_strdup(files[i]) : NULL;
    o->security = (mr_rpc_security){o->files[0], o->files[1], o->files[2], security->is_plain};
    o->done = done;
    o->context = context;
    pthread_mutex_init(&o->lock, NULL);
    return o;
}

static void free_order(order *w) {
    pthread_join(w->thread, NULL);
    mr_control_client_close(w->client);
    free(w->member);
    free(w->cluster);
    free(w->leader);
    free((char *)(uintptr_t)w->load.name);
    free((char *)(uintptr_t)w->load.source);
    free((uint32_t *)(uintptr_t)w->load.cells);
    free(w);
}

void mr_orders_close(mr_orders *o) {
    if (!o) return;
    for (uint32_t i = 0; i < o->count; i++) mr_control_client_cancel(o->items[i]->client);
    for (uint32_t i = 0; i < o->count; i++) free_order(o->items[i]);
    for (int i = 0; i < 3; i++) free(o->files[i]);
    pthread_mutex_destroy(&o->lock);
    free(o);
}

/* --- carrying one out ------------------------------------------------------------------------- */

static void *run(void *context) {
    order *w = context;
    mr_orders *o = w->orders;
    mr_err err = {{0}};
    mr_status status;
    if (w->cluster)
        status = mr_control_join(w->client, w->cluster, w->leader, w->leader_epoch, NULL,
                                 mr_now_ns() + JOIN_MS * 1000000ll, &err);
    else if (w->is_unload) {
        const mr_control_unload_order unload = {.leader_epoch = w->leader_epoch,
                                                .digest = w->digest,
                                                .cells = w->load.cells,
                                                .cell_count = w->load.cell_count};
        status = mr_control_unload(w->client, &unload, mr_now_ns() + UNLOAD_MS * 1000000ll, &err);
    } else
        status = mr_control_load(w->client, &w->load, NULL, NULL, SILENCE_MS, mr_now_ns() + LOAD_NS,
                                 &err);
    if (status != MR_OK && status != MR_ERR_CANCELLED)
        mr_log_warn("%s %s %u cells: %s", w->member,
                    w->cluster     ? "joining with"
                    : w->is_unload ? "unloading"
                                   : "loading",
                    w->load.cell_count, err.text);
    pthread_mutex_lock(&o->lock);
    w->is_done = true;
    w->again_ns = mr_now_ns() + (status == MR_OK ? SEEN_MS : PAUSE_MS) * 1000000ll;
    pthread_mutex_unlock(&o->lock);
    if (o->done) o->done(o->context);
    return NULL;
}

/* Room for an order to member about digest; false: one is there, or there is no room. */
static bool make_room(mr_orders *o, const char *member, const mr_digest *digest) {
    bool is_free = true;
    for (uint32_t i = 0; i < o->count;) {
        order *w = o->items[i];
        pthread_mutex_lock(&o->lock);
        const bool is_over = w->is_done && mr_now_ns() >= w->again_ns;
        pthread_mutex_unlock(&o->lock);
        if (is_over) {
            o->items[i] = o->items[--o->count];
            free_order(w);
            continue;
        }
        if (strcmp(w->member, member) == 0 && memcmp(&w->digest, digest, sizeof(*digest)) == 0)
            is_free = false;
        i++;
    }
    return is_free && o->count < ORDERS_MAX;
}

static order *new_order(mr_orders *o, const mr_member *member, const mr_digest *digest,
                        const uint32_t *cells, uint32_t cell_count) {
    mr_err err;
    if (!member->control || !make_room(o, member->id, digest)) return NULL;
    order *w = mr_alloc(sizeof(*w));
    const mr_control_client_options options = {.address = member->control,
                                               .security = o->security,
                                               .role = o->security.is_plain ? 0 : member->role,
                                               .id = member->id};
    if (mr_control_client_open(&w->client, &options, &err) != MR_OK) {
        mr_log_warn("%s: %s", member->id, err.text);
        free(w);
        return NULL;
    }
    uint32_t *copy = mr_alloc_array(cell_count, sizeof(*copy));
    if (cell_count > 0) memcpy(copy, cells, cell_count * sizeof(*copy));
    w->orders = o;
    w->member = mr_strdup(member->id);
    w->digest = *digest;
    w->load.cells = copy;
    w->load.cell_count = cell_count;
    return w;
}

static void start(mr_orders *o, order *w) {
    if (pthread_create(&w->thread, NULL, run, w) == 0) {
        o->items[o->count++] = w;
        return;
    }
    mr_log_error("no thread for an order to %s", w->member);
    mr_control_client_close(w->client);
    free(w->member);
    free((uint32_t *)(uintptr_t)w->load.cells);
    free((char *)(uintptr_t)w->load.name);
    free((char *)(uintptr_t)w->load.source);
    free(w->cluster);
    free(w->leader);
    free(w);
}

void mr_orders_load(mr_orders *o, const mr_member *member, const mr_control_load_order *load) {
    order *w = new_order(o, member, &load->digest, load->cells, load->cell_count);
    if (!w) return;
    const uint32_t *cells = w->load.cells;
    w->load = *load;
    w->load.cells = cells;
    w->load.name = mr_strdup(load->name);
    w->load.source = mr_strdup(load->source);
    w->load.group = "";
    w->load.peers = NULL;
    w->load.peer_count = 0;
    mr_log_info("%s is to load %u cells of %s", member->id, load->cell_count, load->name);
    start(o, w);
}

void mr_orders_unload(mr_orders *o, const mr_member *member,
                      const mr_control_unload_order *unload) {
    order *w = new_order(o, member, &unload->digest, unload->cells, unload->cell_count);
    if (!w) return;
    w->is_unload = true;
    w->leader_epoch = unload->leader_epoch;
    mr_log_info("%s is to unload %u cells", member->id, unload->cell_count);
    start(o, w);
}

bool mr_orders_join(mr_orders *o, const mr_member *member, const char *cluster, const char *leader,
                    uint64_t leader_epoch) {
    static const mr_digest none;
    order *w = new_order(o, member, &none, NULL, 0);
    if (!w) return false;
    w->cluster = mr_strdup(cluster);
    w->leader = mr_strdup(leader);
    w->leader_epoch = leader_epoch;
    start(o, w);
    return true;
}
