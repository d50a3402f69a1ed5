/* cluster_table.c - see cluster_table.h. */
#include "cli/cluster_table.h"

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/mem.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ASK_MS = 500, THREADS = 16, CELLS_BYTES = 40, MODEL_BYTES = 24 };

typedef struct {
    const mr_member *member; /* of the view held */
    mr_control_status status;
    mr_member *self; /* its own record, as it answers; NULL: it did not */
    mr_err err;
} row;

struct mr_cluster_table {
    mr_cluster *cluster;
    mr_rpc_security security;
    const mr_view *view;
    row *rows;
    uint32_t count;
    atomic_uint next;
    uint32_t lines_drawn, troubles;
};

mr_cluster_table *mr_cluster_table_open(mr_cluster *cluster, const mr_agent_settings *tls) {
    mr_cluster_table *t = mr_alloc(sizeof(*t));
    t->cluster = cluster;
    t->security = (mr_rpc_security){.is_plain = true};
    if (tls && tls->ca) t->security = (mr_rpc_security){tls->ca, tls->cert, tls->key, false};
    return t;
}

static void forget(mr_cluster_table *t) {
    for (uint32_t i = 0; i < t->count; i++) mr_member_free(t->rows[i].self);
    free(t->rows);
    mr_view_release(t->view);
    t->rows = NULL;
    t->view = NULL;
    t->count = 0;
}

void mr_cluster_table_close(mr_cluster_table *t) {
    if (!t) return;
    forget(t);
    free(t);
}

/* --- asking ----------------------------------------------------------------------------------- */

static void ask(const mr_cluster_table *t, row *r) {
    mr_control_client *client;
    const mr_control_client_options options = {.address = r->member->control,
                                               .security = t->security,
                                               .role = t->security.is_plain ? 0 : r->member->role,
                                               .id = r->member->id};
    if (!r->member->control) {
        mr_fail(&r->err, MR_ERR_UNAVAILABLE, "no control service");
        return;
    }
    if (mr_control_client_open(&client, &options, &r->err) != MR_OK) return;
    mr_control_look(client, &r->status, &r->self, mr_now_ns() + ASK_MS * 1000000ll, &r->err);
    mr_control_client_close(client);
}

static void *ask_some(void *context) {
    mr_cluster_table *t = context;
    for (uint32_t i; (i = atomic_fetch_add(&t->next, 1)) < t->count;) ask(t, &t->rows[i]);
    return NULL;
}

static void refresh(mr_cluster_table *t) {
    pthread_t threads[THREADS];
    uint32_t started = 0;
    forget(t);
    t->view = mr_cluster_view(t->cluster);
    t->count = t->view->member_count;
    t->rows = mr_alloc_array(t->count, sizeof(*t->rows));
    for (uint32_t i = 0; i < t->count; i++) t->rows[i].member = t->view->members[i];
    atomic_store(&t->next, 0);
    while (started < THREADS && started < t->count &&
           pthread_create(&threads[started], NULL, ask_some, t) == 0)
        started++;
    if (started == 0) ask_some(t);
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
}

/* --- showing ---------------------------------------------------------------------------------- */

static const char *role_name(mr_role role) {
    switch (role) {
    case MR_ROLE_COORDINATOR:
        return "coordinator";
    case MR_ROLE_WORKER:
        return "worker";
    case MR_ROLE_MEMSHARD:
        return "memshard";
    case MR_ROLE_CLIENT:
        break;
    }
    return "client";
}

static const char *model_name(const mr_view *view, const mr_digest *digest,
                              char room[MODEL_BYTES]) {
    for (uint32_t i = 0; i < view->model_count; i++)
        for (uint32_t v = 0; v < view->models[i]->version_count; v++)
            if (memcmp(&view->models[i]->versions[v].digest, digest, sizeof(*digest)) == 0)
                return view->models[i]->name;
    char text[MR_DIGEST_TEXT_BYTES];
    mr_digest_text(digest, text);
    snprintf(room, MODEL_BYTES, "%.12s", text);
    return room;
}

/* "0-3,7 of 2x4"; long lists are cut with how many there are. */
static void describe_holding(const mr_holding *h, char *out, size_t room) {
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < h->cell_count;) {
        uint32_t end = i;
        while (end + 1 < h->cell_count && h->cells[end + 1] == h->cells[end] + 1) end++;
        char piece[32];
        if (end > i)
            snprintf(piece, sizeof(piece), "%s%u-%u", i ? "," : "", h->cells[i], h->cells[end]);
        else
            snprintf(piece, sizeof(piece), "%s%u", i ? "," : "", h->cells[i]);
        if (used + strlen(piece) + 16 > room) {
            snprintf(out, room, "%u cells", h->cell_count);
            used = strlen(out);
            break;
        }
        memcpy(out + used, piece, strlen(piece) + 1);
        used += strlen(piece);
        i = end + 1;
    }
    snprintf(out + used, room - used, " of %ux%u", h->grid_rows, h->grid_columns);
}

static void describe(const mr_cluster_table *t, const mr_member *m, char *model, char *part,
                     uint64_t *bytes) {
    char room[MODEL_BYTES];
    strcpy(model, "-");
    strcpy(part, "-");
    *bytes = 0;
    if (m->holding_count > 0) {
        snprintf(model, MODEL_BYTES, "%.20s%s", model_name(t->view, &m->holdings[0].digest, room),
                 m->holding_count > 1 ? " +" : "");
        describe_holding(&m->holdings[0], part, CELLS_BYTES);
        for (uint32_t i = 0; i < m->holding_count; i++) *bytes += m->holdings[i].bytes;
    } else if (m->stage_count > 0) {
        const mr_stage_record *s = &m->stages[0];
        snprintf(model, MODEL_BYTES, "%.20s%s", model_name(t->view, &s->digest, room),
                 m->stage_count > 1 ? " +" : "");
        snprintf(part, CELLS_BYTES, "%.16s stage %u/%u", s->group, s->stage, s->stages);
    } else if (m->role == MR_ROLE_COORDINATOR && t->view->leader &&
               strcmp(t->view->leader, m->id) == 0)
        strcpy(part, "leader");
}

static const char *human(uint64_t bytes, char room[16]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    snprintf(room, 16, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return room;
}

static void print_row(mr_cluster_table *t, const row *r, FILE *out) {
    const mr_member *m = r->self ? r->self : r->member;
    char model[MODEL_BYTES], part[CELLS_BYTES], size[16], p50[16] = "-", p99[16] = "-",
                                                          rate[16] = "-";
    uint64_t bytes;
    const char *state = !r->self                ? "silent"
                        : !r->member->is_listed ? "unlisted"
                                                : mr_member_state_name(m->state);
    describe(t, m, model, part, &bytes);
    if (r->status.bytes_held > bytes) bytes = r->status.bytes_held;
    if (r->self && r->status.requests_per_s > 0)
        snprintf(rate, sizeof(rate), "%.1f", r->status.requests_per_s);
    if (r->self && r->status.p99_us > 0) {
        snprintf(p50, sizeof(p50), "%u", r->status.p50_us);
        snprintf(p99, sizeof(p99), "%u", r->status.p99_us);
    }
    if (strcmp(state, "ready") != 0) t->troubles++;
    fprintf(out, "%-11s %-16.16s %-9s %-16.16s %-28.28s %11s %9s %7s %7s  %s\n", role_name(m->role),
            m->id, state, model, part, bytes ? human(bytes, size) : "-", rate, p50, p99,
            r->status.transport[0] ? r->status.transport : "-");
}

/* Cells of current maps without a live holder. */
static void print_holes(mr_cluster_table *t, FILE *out) {
    for (uint32_t i = 0; i < t->view->map_count; i++) {
        const mr_map_record *map = t->view->maps[i];
        const uint32_t cells = map->grid_rows * map->grid_columns;
        char room[MODEL_BYTES];
        uint32_t holes = 0;
        for (uint32_t cell = 0; cell < cells; cell++) {
            bool is_held = false;
            for (uint32_t r = map->replica_first[cell]; r < map->replica_first[cell + 1]; r++)
                for (uint32_t k = 0; k < t->count; k++)
                    is_held |= t->rows[k].self && t->rows[k].self->role == MR_ROLE_MEMSHARD &&
                               strcmp(t->rows[k].self->id, map->replicas[r]) == 0 &&
                               mr_member_holds(t->rows[k].self, &map->digest, cell);
            holes += !is_held;
        }
        if (holes == 0) continue;
        fprintf(out, "model %s: %u of %u cells have no live replica\n",
                model_name(t->view, &map->digest, room), holes, cells);
        t->troubles++;
    }
    for (uint32_t i = 0; i < t->view->next_map_count; i++) {
        char room[MODEL_BYTES];
        fprintf(out, "model %s: map %" PRIu64 " is being loaded\n",
                model_name(t->view, &t->view->next_maps[i]->digest, room),
                t->view->next_maps[i]->epoch);
    }
}

static uint32_t print_all(mr_cluster_table *t, FILE *out) {
    const mr_cluster_health health = mr_cluster_look(t->cluster);
    uint32_t lines = 2;
    t->troubles = 0;
    fprintf(out, "cluster %s: leader %s%s\n", t->view->cluster,
            t->view->leader ? t->view->leader : "none",
            mr_cluster_is_static(t->cluster) ? ", static"
            : health.is_up                   ? ""
                                             : ", etcd does not answer: membership stands still");
    fprintf(out, "%-11s %-16s %-9s %-16s %-28s %11s %9s %7s %7s  %s\n", "role", "id", "state",
            "model", "part", "bytes", "req/s", "p50 us", "p99 us", "transport");
    for (uint32_t i = 0; i < t->count; i++, lines++) print_row(t, &t->rows[i], out);
    const uint32_t troubles = t->troubles;
    print_holes(t, out);
    lines += t->view->next_map_count + (t->troubles - troubles);
    return lines;
}

void mr_cluster_table_print(mr_cluster_table *t, FILE *out) {
    refresh(t);
    print_all(t, out);
    fflush(out);
}

void mr_cluster_table_redraw(mr_cluster_table *t, FILE *out) {
    char *text = NULL;
    size_t bytes = 0;
    refresh(t);
    FILE *page = open_memstream(&text, &bytes); /* in one write, so that it does not flicker */
    if (!page) return;
    if (t->lines_drawn) fprintf(page, "\033[%uA\033[J", t->lines_drawn);
    t->lines_drawn = print_all(t, page);
    fclose(page);
    fwrite(text, 1, bytes, out);
    fflush(out);
    free(text);
}

uint32_t mr_cluster_table_troubles(const mr_cluster_table *t) {
    return t->troubles;
}

/* --- for programs ----------------------------------------------------------------------------- */

static json_t *row_to_json(const row *r) {
    const mr_member *m = r->self ? r->self : r->member;
    char *record = mr_member_dump(m);
    json_t *member = record ? json_loads(record, 0, NULL) : json_object();
    json_t *counters = json_object();
    free(record);
    for (uint32_t i = 0; i < r->status.counter_count; i++)
        json_object_set_new(counters, r->status.counters[i].name,
                            json_real(r->status.counters[i].value));
    return json_pack("{s:o, s:b, s:b, s:I, s:f, s:i, s:i, s:I, s:s, s:o}", "member", member,
                     "answers", r->self != NULL, "listed", (int)r->member->is_listed, "requests",
                     (json_int_t)r->status.requests, "requests_per_s", r->status.requests_per_s,
                     "p50_us", (int)r->status.p50_us, "p99_us", (int)r->status.p99_us, "bytes_held",
                     (json_int_t)r->status.bytes_held, "transport", r->status.transport, "counters",
                     counters);
}

void mr_cluster_table_json(mr_cluster_table *t, FILE *out) {
    refresh(t);
    json_t *members = json_array(), *maps = json_array(), *models = json_array();
    for (uint32_t i = 0; i < t->count; i++)
        json_array_append_new(members, row_to_json(&t->rows[i]));
    for (uint32_t i = 0; i < t->view->map_count; i++) {
        char *text = mr_map_record_dump(t->view->maps[i]);
        if (text) json_array_append_new(maps, json_loads(text, 0, NULL));
        free(text);
    }
    for (uint32_t i = 0; i < t->view->model_count; i++) {
        char *text = mr_model_record_dump(t->view->models[i]);
        if (text) json_array_append_new(models, json_loads(text, 0, NULL));
        free(text);
    }
    json_t *owners = json_object();
    for (uint32_t i = 0; i < t->view->owner_count; i++)
        json_object_set_new(owners, t->view->owners[i]->group,
                            json_pack("{s:s, s:I}", "coordinator", t->view->owners[i]->coordinator,
                                      "epoch", (json_int_t)t->view->owners[i]->epoch));
    const mr_cluster_health health = mr_cluster_look(t->cluster);
    json_t *root = json_pack("{s:s, s:s?, s:b, s:i, s:o, s:o, s:o, s:o}", "cluster",
                             t->view->cluster, "leader", t->view->leader, "etcd_up",
                             (int)health.is_up, "next_maps", (int)t->view->next_map_count,
                             "members", members, "models", models, "maps", maps, "owners", owners);
    if (root) json_dumpf(root, out, JSON_INDENT(1));
    fprintf(out, "\n");
    json_decref(root);
}
