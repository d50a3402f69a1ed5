/* view_member.c - the records of members as text and back; see view.h.
 *
 *   {"schema":1, "role":"memshard", "id":"m0", "state":"ready", "address":"10.0.0.1:7001",
 *    "ucx":..., "control":..., "http":..., "machine":..., "host":..., "zone":..., "set":...,
 *    "numeric_class":..., "verbs":false, "capacity_bytes":..., "incarnation":..., "wire":[1, 2],
 *    "map_epoch":..., "holdings":[{"digest":..., "grid":[2, 4], "cells":[0, [2, 5]], "bytes":...}],
 *    "stages":[{"digest":..., "group":..., "stage":0, "stages":1, "blocks":[0, 16]}]}
 *
 * Runs of cells are written as [first, last], so that the record of a shard that holds thousands
 * stays small. */
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/view_impl.h"

#include <stdlib.h>
#include <string.h>

static const char *const role_names[] = {"nobody", "client", "coordinator", "worker", "memshard"};
static const char *const state_names[] = {"unknown", "loading", "ready", "draining"};
enum { ROLES = 5, STATES = 4 };

const char *mr_member_state_name(mr_member_state state) {
    return state_names[(unsigned)state < STATES ? (unsigned)state : 0];
}

void mr_member_free(mr_member *m) {
    if (!m || atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) > 0) return;
    char *const texts[] = {m->id,   m->address, m->ucx,  m->control, m->http,
                           m->host, m->machine, m->zone, m->set,     m->numeric_class};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) free(texts[i]);
    for (uint32_t i = 0; i < m->holding_count; i++) free(m->holdings[i].cells);
    for (uint32_t i = 0; i < m->stage_count; i++) free(m->stages[i].group);
    free(m->holdings);
    free(m->stages);
    free(m);
}

const mr_member *mr_member_retain(const mr_member *member) {
    mr_member *m = (mr_member *)(uintptr_t)member;
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return member;
}

bool mr_member_holds(const mr_member *m, const mr_digest *digest, uint32_t cell) {
    for (uint32_t i = 0; i < m->holding_count; i++) {
        const mr_holding *h = &m->holdings[i];
        if (memcmp(&h->digest, digest, sizeof(*digest)) != 0) continue;
        uint32_t low = 0, high = h->cell_count;
        while (low < high) {
            const uint32_t middle = low + (high - low) / 2;
            if (h->cells[middle] < cell)
                low = middle + 1;
            else
                high = middle;
        }
        if (low < h->cell_count && h->cells[low] == cell) return true;
    }
    return false;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* The index of the text under key in names; 0 is never a good one. */
static mr_status need_name(uint32_t *out, const json_t *root, const char *key,
                           const char *const *names, uint32_t first, uint32_t count, mr_err *err) {
    const char *text = NULL;
    const mr_status status = mr_json_string(&text, root, key, err);
    if (status != MR_OK) return status;
    for (uint32_t i = first; text && i < count; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = i;
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_FORMAT, "%s '%.40s' is not known", key, text ? text : "");
}

static mr_status take_address(char **out, const json_t *root, const char *key, bool may_be_unix,
                              mr_err *err) {
    const char *text = NULL;
    mr_status status = mr_json_string(&text, root, key, err);
    if (status != MR_OK || !text) return status;
    status = mr_peer_address_check(text, may_be_unix, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "'%s'", key);
    *out = mr_strdup(text);
    return MR_OK;
}

static mr_status take_label(char **out, const json_t *root, const char *key, bool may_be_empty,
                            mr_err *err) {
    const char *text = "";
    mr_status status = mr_json_string(&text, root, key, err);
    if (status == MR_OK) status = mr_label_check(text, key, err);
    if (status != MR_OK) return status;
    if (!*text && !may_be_empty) return mr_fail(err, MR_ERR_FORMAT, "'%s' is missing", key);
    *out = mr_strdup(text);
    return MR_OK;
}

static mr_status cell_number(uint32_t *out, const json_t *value, uint32_t cells, mr_err *err) {
    const json_int_t number = json_integer_value(value); /* 0 where it is none */
    if (!json_is_integer(value) || number < 0 || number >= (json_int_t)cells)
        return mr_fail(err, MR_ERR_RANGE, "a cell must be an integer below %u", cells);
    *out = (uint32_t)number;
    return MR_OK;
}

/* One item: a cell, or [first, last]; ascending and without repetition over the whole list. */
static mr_status take_cells(mr_holding *h, const json_t *item, uint32_t cells, mr_err *err) {
    uint32_t first = 0, last = 0;
    mr_status status;
    if (json_is_array(item)) {
        if (json_array_size(item) != 2)
            return mr_fail(err, MR_ERR_FORMAT, "a run of cells is [first, last]");
        status = cell_number(&first, json_array_get(item, 0), cells, err);
        if (status == MR_OK) status = cell_number(&last, json_array_get(item, 1), cells, err);
    } else {
        status = cell_number(&first, item, cells, err);
        last = first;
    }
    if (status != MR_OK) return status;
    if (last < first || (h->cell_count > 0 && first <= h->cells[h->cell_count - 1]))
        return mr_fail(err, MR_ERR_FORMAT, "cells are not ascending at cell %u", first);
    for (uint32_t cell = first; cell <= last; cell++) h->cells[h->cell_count++] = cell;
    return MR_OK;
}

static mr_status take_holding(mr_member *m, const mr_record_text *t, const json_t *item,
                              mr_err *err) {
    static const char *const known[] = {"digest", "grid", "cells", "bytes", NULL};
    const json_t *list;
    mr_holding *h = &m->holdings[m->holding_count++];
    mr_status status = mr_record_keys(t, item, known, err);
    if (status == MR_OK) status = mr_need_digest(&h->digest, item, "digest", err);
    if (status == MR_OK) status = mr_need_grid(&h->grid_rows, &h->grid_columns, item, err);
    if (status == MR_OK) status = mr_need_u64(&h->bytes, item, "bytes", 0, INT64_MAX, err);
    if (status == MR_OK) status = mr_need_array(&list, item, "cells", 1, MR_MAX_CELLS, err);
    if (status != MR_OK) return status;
    for (const mr_holding *other = m->holdings; other < h; other++)
        if (memcmp(&other->digest, &h->digest, sizeof(h->digest)) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "the same digest twice");
    const uint32_t cells = h->grid_rows * h->grid_columns;
    h->cells = mr_alloc_array(cells, sizeof(*h->cells));
    for (size_t i = 0; i < json_array_size(list) && status == MR_OK; i++)
        status = take_cells(h, json_array_get(list, i), cells, err);
    h->cells = mr_realloc_array(h->cells, h->cell_count + 1u, sizeof(*h->cells));
    return status;
}

static mr_status take_blocks(mr_stage_record *s, const json_t *item, mr_err *err) {
    const json_t *pair;
    const mr_status status = mr_need_array(&pair, item, "blocks", 2, 2, err);
    if (status != MR_OK) return status;
    const json_t *a = json_array_get(pair, 0), *b = json_array_get(pair, 1);
    const json_int_t first = json_integer_value(a), count = json_integer_value(b);
    if (!json_is_integer(a) || !json_is_integer(b) || first < 0 || first >= MR_MAX_LAYERS ||
        count < 1 || count > MR_MAX_LAYERS - first)
        return mr_fail(err, MR_ERR_RANGE, "'blocks' must be [first, count] within %d blocks",
                       MR_MAX_LAYERS);
    s->block_first = (uint32_t)first;
    s->block_count = (uint32_t)count;
    return MR_OK;
}

static mr_status take_stage(mr_member *m, const mr_record_text *t, const json_t *item,
                            mr_err *err) {
    static const char *const known[] = {"digest", "group", "stage", "stages", "blocks", NULL};
    mr_stage_record *s = &m->stages[m->stage_count++];
    mr_status status = mr_record_keys(t, item, known, err);
    if (status == MR_OK) status = mr_need_digest(&s->digest, item, "digest", err);
    if (status == MR_OK) status = mr_need_id(&s->group, item, "group", err);
    if (status == MR_OK) status = mr_need_u32(&s->stages, item, "stages", 1, MR_MAX_STAGES, err);
    if (status == MR_OK) status = mr_need_u32(&s->stage, item, "stage", 0, s->stages - 1, err);
    if (status == MR_OK) status = take_blocks(s, item, err);
    if (status != MR_OK) return status;
    for (const mr_stage_record *other = m->stages; other < s; other++)
        if (memcmp(&other->digest, &s->digest, sizeof(s->digest)) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "the same digest twice");
    return MR_OK;
}

static mr_status take_lists(mr_member *m, const mr_record_text *t, mr_err *err) {
    const json_t *holdings, *stages;
    mr_status status = mr_need_array(&holdings, t->root, "holdings", 0, MR_MAX_MODELS, err);
    if (status == MR_OK) status = mr_need_array(&stages, t->root, "stages", 0, MR_MAX_MODELS, err);
    if (status != MR_OK) return status;
    const size_t held = json_array_size(holdings), served = json_array_size(stages);
    if (held > 0 && m->role != MR_ROLE_MEMSHARD)
        return mr_fail(err, MR_ERR_FORMAT, "'holdings' belong to memshards");
    if (served > 0 && m->role != MR_ROLE_WORKER)
        return mr_fail(err, MR_ERR_FORMAT, "'stages' belong to workers");
    if (held > 0) m->holdings = mr_alloc_array(held, sizeof(*m->holdings));
    if (served > 0) m->stages = mr_alloc_array(served, sizeof(*m->stages));
    for (size_t i = 0; i < held; i++) {
        status = take_holding(m, t, json_array_get(holdings, i), err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "holding %zu", i);
    }
    for (size_t i = 0; i < served; i++) {
        status = take_stage(m, t, json_array_get(stages, i), err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "stage record %zu", i);
    }
    return MR_OK;
}

static mr_status take_addresses(mr_member *m, const json_t *root, mr_err *err) {
    mr_status status = take_address(&m->address, root, "address", true, err);
    if (status == MR_OK) status = take_address(&m->ucx, root, "ucx", false, err);
    if (status == MR_OK) status = take_address(&m->control, root, "control", false, err);
    if (status == MR_OK) status = take_address(&m->http, root, "http", false, err);
    if (status != MR_OK) return status;
    if (m->role == MR_ROLE_COORDINATOR && (m->address || m->ucx))
        return mr_fail(err, MR_ERR_FORMAT, "a coordinator has no data-plane address");
    if (m->role != MR_ROLE_COORDINATOR && m->http)
        return mr_fail(err, MR_ERR_FORMAT, "'http' belongs to coordinators");
    if (m->role != MR_ROLE_COORDINATOR && !m->address)
        return mr_fail(err, MR_ERR_FORMAT, "'address' is missing");
    return MR_OK;
}

static mr_status take_wire(mr_member *m, const json_t *root, mr_err *err) {
    const json_t *pair;
    const mr_status status = mr_need_array(&pair, root, "wire", 2, 2, err);
    if (status != MR_OK) return status;
    const json_int_t min = json_integer_value(json_array_get(pair, 0)),
                     max = json_integer_value(json_array_get(pair, 1));
    if (min < 1 || max < min || max > UINT16_MAX)
        return mr_fail(err, MR_ERR_RANGE, "'wire' must be the lowest and the highest version");
    m->wire_min = (uint32_t)min;
    m->wire_max = (uint32_t)max;
    return MR_OK;
}

static mr_status take_all(mr_member *m, const mr_record_text *t, mr_err *err) {
    const json_t *root = t->root;
    uint32_t role = 0, state = 0;
    mr_status status = need_name(&role, root, "role", role_names, MR_ROLE_COORDINATOR, ROLES, err);
    m->role = (mr_role)role;
    if (status == MR_OK) status = mr_need_id(&m->id, root, "id", err);
    if (status == MR_OK) status = need_name(&state, root, "state", state_names, 1, STATES, err);
    m->state = (mr_member_state)state;
    if (status == MR_OK) status = take_addresses(m, root, err);
    if (status == MR_OK) status = take_label(&m->machine, root, "machine", false, err);
    if (status == MR_OK) status = take_label(&m->host, root, "host", false, err);
    if (status == MR_OK) status = take_label(&m->zone, root, "zone", true, err);
    if (status == MR_OK) status = take_label(&m->set, root, "set", true, err);
    if (status == MR_OK) status = take_label(&m->numeric_class, root, "numeric_class", true, err);
    if (status == MR_OK) status = mr_json_bool(&m->has_verbs, root, "verbs", err);
    if (status == MR_OK)
        status = mr_need_u64(&m->capacity_bytes, root, "capacity_bytes", 0, INT64_MAX, err);
    if (status == MR_OK)
        status = mr_need_u64(&m->incarnation, root, "incarnation", 0, INT64_MAX, err);
    if (status == MR_OK) status = take_wire(m, root, err);
    if (status == MR_OK) status = mr_need_u64(&m->map_epoch, root, "map_epoch", 0, INT64_MAX, err);
    if (status == MR_OK) status = take_lists(m, t, err);
    return status;
}

mr_status mr_member_parse(mr_member **out, const char *text, size_t bytes, const char *what,
                          mr_err *err) {
    static const char *const known[] = {
        "role",        "id",      "state", "address",       "ucx",       "control",
        "http",        "host",    "set",   "numeric_class", "verbs",     "capacity_bytes",
        "incarnation", "machine", "zone",  "wire",          "map_epoch", "holdings",
        "stages",      NULL};
    mr_record_text t;
    *out = NULL;
    mr_status status = mr_record_open(&t, text, bytes, known, what, err);
    if (status != MR_OK) return status;
    mr_member *m = mr_alloc(sizeof(*m));
    m->is_listed = true;
    status = take_all(m, &t, err);
    json_decref(t.root);
    if (status == MR_OK) {
        *out = m;
        return MR_OK;
    }
    mr_member_free(m);
    return mr_fail_prefix(err, status, "%s", what);
}

/* --- writing ---------------------------------------------------------------------------------- */

static json_t *cells_to_json(const mr_holding *h) {
    json_t *list = json_array();
    for (uint32_t i = 0, end; i < h->cell_count; i = end) {
        for (end = i + 1; end < h->cell_count && h->cells[end] == h->cells[end - 1] + 1;) end++;
        if (end - i < 3)
            for (uint32_t j = i; j < end; j++)
                json_array_append_new(list, json_integer(h->cells[j]));
        else
            json_array_append_new(
                list, json_pack("[I,I]", (json_int_t)h->cells[i], (json_int_t)h->cells[end - 1]));
    }
    return list;
}

static json_t *lists_to_json(json_t *root, const mr_member *m) {
    json_t *holdings = json_array(), *stages = json_array();
    int bad = 0;
    for (uint32_t i = 0; i < m->holding_count; i++) {
        const mr_holding *h = &m->holdings[i];
        bad |= json_array_append_new(
            holdings, json_pack("{s:o, s:[I,I], s:o, s:o}", "digest", mr_record_digest(&h->digest),
                                "grid", (json_int_t)h->grid_rows, (json_int_t)h->grid_columns,
                                "cells", cells_to_json(h), "bytes", mr_record_number(h->bytes)));
    }
    for (uint32_t i = 0; i < m->stage_count; i++) {
        const mr_stage_record *s = &m->stages[i];
        bad |= json_array_append_new(
            stages, json_pack("{s:o, s:s, s:I, s:I, s:[I,I]}", "digest",
                              mr_record_digest(&s->digest), "group", s->group ? s->group : "",
                              "stage", (json_int_t)s->stage, "stages", (json_int_t)s->stages,
                              "blocks", (json_int_t)s->block_first, (json_int_t)s->block_count));
    }
    if (m->holding_count > 0) bad |= json_object_set(root, "holdings", holdings);
    if (m->stage_count > 0) bad |= json_object_set(root, "stages", stages);
    json_decref(holdings);
    json_decref(stages);
    if (!bad) return root;
    json_decref(root);
    return NULL;
}

char *mr_member_dump(const mr_member *m) {
    json_t *root = json_pack(
        "{s:i, s:s, s:s, s:s, s:s*, s:s*, s:s*, s:s*, s:s*, s:s*, s:s*, s:s*, s:s*, s:b, s:o, s:o, "
        "s:[I,I], s:o}",
        "schema", MR_RECORD_SCHEMA, "role",
        role_names[(unsigned)m->role < ROLES ? (unsigned)m->role : 0], "id", m->id ? m->id : "",
        "state", mr_member_state_name(m->state), "address", m->address, "ucx", m->ucx, "control",
        m->control, "http", m->http, "machine", m->machine, "host", m->host, "zone", m->zone, "set",
        m->set, "numeric_class", m->numeric_class, "verbs", (int)m->has_verbs, "capacity_bytes",
        mr_record_number(m->capacity_bytes), "incarnation", mr_record_number(m->incarnation),
        "wire", (json_int_t)m->wire_min, (json_int_t)m->wire_max, "map_epoch",
        mr_record_number(m->map_epoch));
    return root ? mr_record_write(lists_to_json(root, m)) : NULL;
}

mr_status mr_member_copy(mr_member **out, const mr_member *member, mr_err *err) {
    *out = NULL;
    char *text = mr_member_dump(member);
    if (!text)
        return mr_fail(err, MR_ERR_FORMAT, "member '%.64s': its record cannot be written",
                       member->id ? member->id : "");
    const mr_status status = mr_member_parse(out, text, strlen(text), "the member's record", err);
    free(text);
    if (status == MR_OK) (*out)->is_listed = member->is_listed;
    return status;
}
