/* view_map.c - the records of maps, models and owners as text and back; see view.h.
 *
 *   map:   {"schema":1, "digest":..., "epoch":3, "grid":[2, 4], "members":["m0", "m1"],
 *           "cells":[[0, 1], [1], ...]}       one list of member indices for each cell
 *   model: {"schema":1, "name":"demo", "epoch":2, "active":"v2", "previous":"v1", "versions":[
 *           {"version":"v2", "digest":..., "source":..., "grid":[2, 4], "replicas":2}]}
 *   owner: {"schema":1, "group":"g0", "coordinator":"c0", "epoch":1}
 *
 * A map names each member once and then counts, which keeps 65,536 cells with three replicas within
 * one record. */
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/view_impl.h"

#include <stdlib.h>
#include <string.h>

/* --- maps ------------------------------------------------------------------------------------- */

void mr_map_record_free(mr_map_record *m) {
    if (!m || atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) > 0) return;
    for (uint32_t i = 0; i < m->name_count; i++) free(m->names[i]);
    free(m->names);
    free(m->replica_first);
    free(m->replicas);
    free(m);
}

const mr_map_record *mr_map_record_retain(const mr_map_record *record) {
    mr_map_record *m = (mr_map_record *)(uintptr_t)record;
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return record;
}

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The place of the text in ascending names, or UINT32_MAX. */
static uint32_t find_name(char *const *names, uint32_t count, const char *text) {
    char *const *found = bsearch(&text, names, count, sizeof(*names), compare_texts);
    return found ? (uint32_t)(found - names) : UINT32_MAX;
}

/* The cell ends at replica_first[cell + 1], which is set. */
static mr_status check_cell(const mr_map_record *m, uint32_t cell, mr_err *err) {
    const uint32_t first = m->replica_first[cell], end = m->replica_first[cell + 1];
    const uint32_t count = m->replica_first[m->grid_rows * m->grid_columns];
    if (end <= first || end > count)
        return mr_fail(err, MR_ERR_FORMAT, "cell %u has no replica", cell);
    if (end - first > MR_MAX_REPLICAS)
        return mr_fail(err, MR_ERR_LIMIT, "cell %u has %u replicas; at most %d", cell, end - first,
                       MR_MAX_REPLICAS);
    for (uint32_t i = first; i < end; i++)
        for (uint32_t j = i + 1; j < end; j++)
            if (m->replicas[i] == m->replicas[j]) /* names are there once */
                return mr_fail(err, MR_ERR_FORMAT, "cell %u has the replica '%s' twice", cell,
                               m->replicas[i]);
    return MR_OK;
}

mr_status mr_map_record_make(mr_map_record **out, const mr_digest *digest, uint64_t epoch,
                             uint32_t grid_rows, uint32_t grid_columns,
                             const uint32_t *replica_first, const char *const *replicas,
                             mr_err *err) {
    *out = NULL;
    mr_status status = mr_grid_check(grid_rows, grid_columns, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "map");
    if (epoch < 1 || epoch > INT64_MAX)
        return mr_fail(err, MR_ERR_RANGE, "map: epoch %llu", (unsigned long long)epoch);
    const uint32_t cells = grid_rows * grid_columns, count = replica_first[cells];
    if (replica_first[0] != 0 || count > (uint64_t)cells * MR_MAX_REPLICAS)
        return mr_fail(err, MR_ERR_RANGE, "map: %u replicas of %u cells", count, cells);
    mr_map_record *m = mr_alloc(sizeof(*m));
    m->digest = *digest;
    m->epoch = epoch;
    m->grid_rows = grid_rows;
    m->grid_columns = grid_columns;
    m->replica_first = mr_alloc_array(cells + 1u, sizeof(*m->replica_first));
    m->replicas = mr_alloc_array(count + 1u, sizeof(*m->replicas));
    memcpy(m->replica_first, replica_first, (cells + 1u) * sizeof(*replica_first));
    const char **sorted = mr_alloc_array(count + 1u, sizeof(*sorted));
    if (count > 0) memcpy(sorted, replicas, count * sizeof(*sorted));
    qsort(sorted, count, sizeof(*sorted), compare_texts);
    m->names = mr_alloc_array(MR_MAX_MEMBERS, sizeof(*m->names));
    for (uint32_t i = 0; i < count && status == MR_OK; i++) {
        if (i > 0 && strcmp(sorted[i], sorted[i - 1]) == 0) continue;
        if (m->name_count == MR_MAX_MEMBERS)
            status = mr_fail(err, MR_ERR_LIMIT, "more than %d members", MR_MAX_MEMBERS);
        else
            status = mr_id_check(sorted[i], "member", err);
        if (status == MR_OK) m->names[m->name_count++] = mr_strdup(sorted[i]);
    }
    free(sorted);
    for (uint32_t i = 0; i < count && status == MR_OK; i++)
        m->replicas[i] = m->names[find_name(m->names, m->name_count, replicas[i])];
    for (uint32_t cell = 0; cell < cells && status == MR_OK; cell++)
        status = check_cell(m, cell, err);
    m->names = mr_realloc_array(m->names, m->name_count + 1u, sizeof(*m->names));
    if (status == MR_OK) {
        *out = m;
        return MR_OK;
    }
    mr_map_record_free(m);
    return mr_fail_prefix(err, status, "map");
}

/* The names of the record in the order of the text; they borrow from it. */
static mr_status take_names(const char ***out, size_t *count, const json_t *root, mr_err *err) {
    const json_t *list;
    *out = NULL;
    mr_status status = mr_need_array(&list, root, "members", 1, MR_MAX_MEMBERS, err);
    if (status != MR_OK) return status;
    *count = json_array_size(list);
    const char **names = mr_alloc_array(*count, sizeof(*names));
    const char **sorted = mr_alloc_array(*count, sizeof(*sorted));
    for (size_t i = 0; i < *count && status == MR_OK; i++) {
        const json_t *item = json_array_get(list, i);
        if (json_is_string(item) && strlen(json_string_value(item)) == json_string_length(item))
            status = mr_id_check(names[i] = sorted[i] = json_string_value(item), "member", err);
        else
            status = mr_fail(err, MR_ERR_FORMAT, "'members' holds %s; they are names",
                             mr_json_type_name(item));
    }
    if (status == MR_OK) qsort(sorted, *count, sizeof(*sorted), compare_texts);
    for (size_t i = 1; i < *count && status == MR_OK; i++)
        if (strcmp(sorted[i], sorted[i - 1]) == 0)
            status = mr_fail(err, MR_ERR_FORMAT, "member '%s' is named twice", sorted[i]);
    free(sorted);
    *out = names;
    return status;
}

/* All cells' lists, as mr_map_record_make wants them; both arrays are the caller's to free. */
static mr_status take_replicas(uint32_t **first, const char ***replicas, const json_t *list,
                               const char *const *names, size_t name_count, mr_err *err) {
    const size_t cells = json_array_size(list);
    size_t total = 0;
    for (size_t c = 0; c < cells; c++) {
        const size_t count = json_array_size(json_array_get(list, c)); /* 0 where it is none */
        if (count < 1 || count > MR_MAX_REPLICAS)
            return mr_fail(err, MR_ERR_FORMAT, "cell %zu must be a list of 1 to %d replicas", c,
                           MR_MAX_REPLICAS);
        total += count;
    }
    *first = mr_alloc_array(cells + 1, sizeof(**first));
    *replicas = mr_alloc_array(total, sizeof(**replicas));
    uint32_t at = 0;
    for (size_t c = 0; c < cells; c++) {
        const json_t *cell = json_array_get(list, c);
        for (size_t i = 0; i < json_array_size(cell); i++) {
            const json_t *item = json_array_get(cell, i);
            const json_int_t index = json_integer_value(item);
            if (!json_is_integer(item) || index < 0 || (size_t)index >= name_count)
                return mr_fail(err, MR_ERR_RANGE,
                               "cell %zu names a member by something other than 0 to %zu", c,
                               name_count - 1);
            (*replicas)[at++] = names[index];
        }
        (*first)[c + 1] = at;
    }
    return MR_OK;
}

static mr_status map_of_json(mr_map_record **out, const json_t *root, mr_err *err) {
    const json_t *list;
    mr_digest digest;
    uint64_t epoch;
    uint32_t rows, columns, *first = NULL;
    size_t name_count = 0;
    const char **names = NULL, **replicas = NULL;
    mr_status status = mr_need_digest(&digest, root, "digest", err);
    if (status == MR_OK) status = mr_need_u64(&epoch, root, "epoch", 1, INT64_MAX, err);
    if (status == MR_OK) status = mr_need_grid(&rows, &columns, root, err);
    if (status == MR_OK) status = mr_need_array(&list, root, "cells", 1, MR_MAX_CELLS, err);
    if (status != MR_OK) return status;
    const size_t cells = (size_t)rows * columns;
    if (json_array_size(list) != cells)
        return mr_fail(err, MR_ERR_FORMAT, "%zu cells in a grid of %ux%u", json_array_size(list),
                       rows, columns);
    status = take_names(&names, &name_count, root, err);
    if (status == MR_OK) status = take_replicas(&first, &replicas, list, names, name_count, err);
    if (status == MR_OK)
        status = mr_map_record_make(out, &digest, epoch, rows, columns, first, replicas, err);
    free(names);
    free(replicas);
    free(first);
    return status;
}

mr_status mr_map_record_parse(mr_map_record **out, const char *text, size_t bytes, const char *what,
                              mr_err *err) {
    static const char *const known[] = {"digest", "epoch", "grid", "members", "cells", NULL};
    mr_record_text t;
    *out = NULL;
    mr_status status = mr_record_open(&t, text, bytes, known, what, err);
    if (status != MR_OK) return status;
    status = map_of_json(out, t.root, err);
    json_decref(t.root);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "%s", what);
}

char *mr_map_record_dump(const mr_map_record *m) {
    json_t *names = json_array(), *list = json_array();
    for (uint32_t i = 0; i < m->name_count; i++)
        json_array_append_new(names, json_string(m->names[i]));
    const uint32_t cells = m->grid_rows * m->grid_columns;
    for (uint32_t c = 0; c < cells; c++) {
        json_t *cell = json_array();
        for (uint32_t i = m->replica_first[c]; i < m->replica_first[c + 1]; i++)
            json_array_append_new(cell,
                                  json_integer(find_name(m->names, m->name_count, m->replicas[i])));
        json_array_append_new(list, cell);
    }
    return mr_record_write(json_pack(
        "{s:i, s:o, s:o, s:[I,I], s:o, s:o}", "schema", MR_RECORD_SCHEMA, "digest",
        mr_record_digest(&m->digest), "epoch", mr_record_number(m->epoch), "grid",
        (json_int_t)m->grid_rows, (json_int_t)m->grid_columns, "members", names, "cells", list));
}

/* --- models ----------------------------------------------------------------------------------- */

void mr_model_record_free(mr_model_record *m) {
    if (!m || atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) > 0) return;
    for (uint32_t i = 0; i < m->version_count; i++) {
        free(m->versions[i].version);
        free(m->versions[i].source);
        free(m->versions[i].table_bytes_of_cell);
    }
    free(m->versions);
    free(m->name);
    free(m->active);
    free(m->previous);
    free(m);
}

const mr_model_record *mr_model_record_retain(const mr_model_record *record) {
    mr_model_record *m = (mr_model_record *)(uintptr_t)record;
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    return record;
}

/* A URL's host is checked here already, so that no record points a shard to a metadata service. */
mr_status mr_source_check(const char *source, mr_err *err) {
    const size_t bytes = strnlen(source, MR_SOURCE_BYTES_MAX + 1);
    if (bytes < 1 || bytes > MR_SOURCE_BYTES_MAX)
        return mr_fail(err, MR_ERR_FORMAT, "'source' must have 1 to %d bytes", MR_SOURCE_BYTES_MAX);
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)source[i] < 0x20 || source[i] == 0x7f)
            return mr_fail(err, MR_ERR_FORMAT, "'source' holds control characters");
    const char *after = strstr(source, "://");
    if (!after || (size_t)(after - source) > 8) return MR_OK;
    if (strncmp(source, "http://", 7) != 0 && strncmp(source, "https://", 8) != 0 &&
        strncmp(source, "s3://", 5) != 0)
        return mr_fail(err, MR_ERR_FORMAT, "'source' %.80s is neither http, https nor s3", source);
    if (source[0] == 's') return MR_OK;
    const char *host = after + 3;
    const size_t host_bytes = strcspn(host, "/?#");
    const char *last_at = memrchr(host, '@', host_bytes);
    if (last_at) return mr_fail(err, MR_ERR_FORMAT, "'source' must not carry a password");
    char address[MR_MAX_ADDRESS_BYTES + 8];
    if (host_bytes < 1 || host_bytes >= MR_MAX_ADDRESS_BYTES)
        return mr_fail(err, MR_ERR_FORMAT, "'source' has a host of %zu bytes", host_bytes);
    memcpy(address, host, host_bytes);
    address[host_bytes] = '\0';
    const char *colon = strrchr(address, ':');
    if (!colon || (colon[1] && strchr(colon, ']'))) strcat(address, ":80");
    const mr_status status = mr_peer_address_check(address, false, err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "'source'");
}

static mr_status take_version(mr_model_record *m, const mr_record_text *t, const json_t *item,
                              mr_err *err) {
    static const char *const known[] = {"version", "digest", "source", "grid", "replicas", NULL};
    mr_model_version *v = &m->versions[m->version_count++];
    const char *source = "";
    mr_status status = mr_record_keys(t, item, known, err);
    if (status == MR_OK) status = mr_need_id(&v->version, item, "version", err);
    if (status == MR_OK) status = mr_need_digest(&v->digest, item, "digest", err);
    if (status == MR_OK) status = mr_json_string(&source, item, "source", err);
    if (status == MR_OK) status = mr_source_check(source, err);
    if (status == MR_OK) status = mr_need_grid(&v->grid_rows, &v->grid_columns, item, err);
    if (status == MR_OK)
        status = mr_need_u32(&v->replicas, item, "replicas", 1, MR_MAX_REPLICAS, err);
    if (status != MR_OK) return status;
    v->source = mr_strdup(source);
    for (const mr_model_version *other = m->versions; other < v; other++)
        if (strcmp(other->version, v->version) == 0 ||
            memcmp(&other->digest, &v->digest, sizeof(v->digest)) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "the version or its digest is there twice");
    return MR_OK;
}

/* *out is the name of a version of the record. */
static mr_status take_version_name(char **out, const mr_model_record *m, const json_t *root,
                                   const char *key, mr_err *err) {
    const mr_status status = mr_need_id(out, root, key, err);
    for (uint32_t i = 0; status == MR_OK && i < m->version_count; i++)
        if (strcmp(m->versions[i].version, *out) == 0) return MR_OK;
    return status != MR_OK ? status
                           : mr_fail(err, MR_ERR_FORMAT, "'%s' names no version: '%s'", key, *out);
}

static mr_status model_of_json(mr_model_record *m, const mr_record_text *t, mr_err *err) {
    const json_t *list;
    mr_status status = mr_need_id(&m->name, t->root, "name", err);
    if (status == MR_OK) status = mr_need_u64(&m->epoch, t->root, "epoch", 1, INT64_MAX, err);
    if (status == MR_OK) status = mr_need_array(&list, t->root, "versions", 1, MR_MAX_MODELS, err);
    if (status != MR_OK) return status;
    m->versions = mr_alloc_array(json_array_size(list), sizeof(*m->versions));
    for (size_t i = 0; i < json_array_size(list); i++) {
        status = take_version(m, t, json_array_get(list, i), err);
        if (status != MR_OK) return mr_fail_prefix(err, status, "version %zu", i);
    }
    status = take_version_name(&m->active, m, t->root, "active", err);
    const json_t *previous = json_object_get(t->root, "previous");
    if (status == MR_OK && previous && !json_is_null(previous))
        status = take_version_name(&m->previous, m, t->root, "previous", err);
    return status;
}

mr_status mr_model_record_parse(mr_model_record **out, const char *text, size_t bytes,
                                const char *what, mr_err *err) {
    static const char *const known[] = {"name", "epoch", "versions", "active", "previous", NULL};
    mr_record_text t;
    *out = NULL;
    mr_status status = mr_record_open(&t, text, bytes, known, what, err);
    if (status != MR_OK) return status;
    mr_model_record *m = mr_alloc(sizeof(*m));
    status = model_of_json(m, &t, err);
    json_decref(t.root);
    if (status == MR_OK) {
        *out = m;
        return MR_OK;
    }
    mr_model_record_free(m);
    return mr_fail_prefix(err, status, "%s", what);
}

char *mr_model_record_dump(const mr_model_record *m) {
    json_t *list = json_array();
    int bad = 0;
    for (uint32_t i = 0; i < m->version_count; i++) {
        const mr_model_version *v = &m->versions[i];
        bad |= json_array_append_new(
            list, json_pack("{s:s, s:o, s:s, s:[I,I], s:I}", "version", v->version, "digest",
                            mr_record_digest(&v->digest), "source", v->source, "grid",
                            (json_int_t)v->grid_rows, (json_int_t)v->grid_columns, "replicas",
                            (json_int_t)v->replicas));
    }
    if (bad) {
        json_decref(list);
        return NULL;
    }
    return mr_record_write(json_pack("{s:i, s:s, s:o, s:s, s:s*, s:o}", "schema", MR_RECORD_SCHEMA,
                                     "name", m->name, "epoch", mr_record_number(m->epoch), "active",
                                     m->active, "previous", m->previous, "versions", list));
}

mr_status mr_model_record_copy(mr_model_record **out, const mr_model_record *record, mr_err *err) {
    *out = NULL;
    char *text = mr_model_record_dump(record);
    if (!text) return mr_fail(err, MR_ERR_FORMAT, "the model's record cannot be written");
    const mr_status status =
        mr_model_record_parse(out, text, strlen(text), "the model's record", err);
    free(text);
    return status;
}

/* --- owners ----------------------------------------------------------------------------------- */

void mr_owner_record_free(mr_owner_record *o) {
    if (!o || atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) > 0) return;
    free(o->group);
    free(o->coordinator);
    free(o);
}

const mr_owner_record *mr_owner_record_retain(const mr_owner_record *record) {
    mr_owner_record *o = (mr_owner_record *)(uintptr_t)record;
    atomic_fetch_add_explicit(&o->refs, 1, memory_order_relaxed);
    return record;
}

mr_status mr_owner_record_parse(mr_owner_record **out, const char *text, size_t bytes,
                                const char *what, mr_err *err) {
    static const char *const known[] = {"group", "coordinator", "epoch", NULL};
    mr_record_text t;
    *out = NULL;
    mr_status status = mr_record_open(&t, text, bytes, known, what, err);
    if (status != MR_OK) return status;
    mr_owner_record *o = mr_alloc(sizeof(*o));
    status = mr_need_id(&o->group, t.root, "group", err);
    if (status == MR_OK) status = mr_need_id(&o->coordinator, t.root, "coordinator", err);
    if (status == MR_OK) status = mr_need_u64(&o->epoch, t.root, "epoch", 1, INT64_MAX, err);
    json_decref(t.root);
    if (status == MR_OK) {
        *out = o;
        return MR_OK;
    }
    mr_owner_record_free(o);
    return mr_fail_prefix(err, status, "%s", what);
}

char *mr_owner_record_dump(const mr_owner_record *o) {
    return mr_record_write(json_pack("{s:i, s:s, s:s, s:o}", "schema", MR_RECORD_SCHEMA, "group",
                                     o->group, "coordinator", o->coordinator, "epoch",
                                     mr_record_number(o->epoch)));
}
