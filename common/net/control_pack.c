/* control_pack.c - see control_impl.h.
 *
 * protobuf-c builds a tree out of whatever well-formed bytes it gets: a million empty texts or
 * unknown fields included. It therefore allocates from a budget in proportion to the message, and
 * what it built is judged here before anybody uses it. */
#include "common/net/control_impl.h"

#ifdef MR_HAVE_CONTROL
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "proto/control.pb-c.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BUDGET_PER_BYTE = 8, BUDGET_BASE = 64 << 10, BLOCK_COST = 32, LOST_WAIT_MS_MAX = 3600000 };

/* --- trees ------------------------------------------------------------------------------------ */

static void *budget_alloc(void *data, size_t bytes) {
    size_t *left = data;
    if (bytes > *left || BLOCK_COST > *left - bytes) return NULL;
    *left -= bytes + BLOCK_COST;
    return malloc(bytes ? bytes : 1);
}

static void budget_free(void *data, void *block) {
    (void)data;
    free(block);
}

static mr_status unpack(mr_message *m, const ProtobufCMessageDescriptor *descriptor,
                        const uint8_t *data, size_t bytes, mr_err *err) {
    size_t left = bytes * BUDGET_PER_BYTE + BUDGET_BASE;
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &left};
    *m = (mr_message){0};
    if (bytes > MR_CONTROL_MESSAGE_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "a control message of %zu bytes; at most %d", bytes,
                       MR_CONTROL_MESSAGE_BYTES);
    m->root = protobuf_c_message_unpack(descriptor, &allocator, bytes, data);
    if (m->root) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "a control message that is no %s", descriptor->short_name);
}

void mr_message_free(mr_message *m) {
    size_t left = 0;
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &left};
    if (m->root) protobuf_c_message_free_unpacked(m->root, &allocator);
    free(m->extra[0]);
    free(m->extra[1]);
    *m = (mr_message){0};
}

static mr_packed pack(const void *message) {
    mr_packed out;
    const size_t bytes = protobuf_c_message_get_packed_size(message);
    out.data = mr_alloc(bytes + 1);
    out.bytes = protobuf_c_message_pack(message, out.data);
    return out;
}

static char *text_of(const char *text) {
    return (char *)(uintptr_t)(text ? text : "");
}

static ProtobufCBinaryData bytes_of(const void *data, size_t bytes) {
    return (ProtobufCBinaryData){bytes, (uint8_t *)(uintptr_t)data};
}

static mr_status take_digest(mr_digest *out, const ProtobufCBinaryData *data, mr_err *err) {
    if (data->len != sizeof(out->bytes))
        return mr_fail(err, MR_ERR_FORMAT, "a digest of %zu bytes; it has 32", data->len);
    memcpy(out->bytes, data->data, sizeof(out->bytes));
    return MR_OK;
}

/* Ascending, so none twice; below `cells` where that is not 0. */
static mr_status check_cells(const uint32_t *list, size_t count, uint32_t cells, mr_err *err) {
    if (count > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_LIMIT, "an order of %zu cells; at most %d", count, MR_MAX_CELLS);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && list[i] <= list[i - 1])
            return mr_fail(err, MR_ERR_FORMAT, "an order's cells are not ascending at cell %u",
                           list[i]);
        if (list[i] >= (cells ? cells : MR_MAX_CELLS))
            return mr_fail(err, MR_ERR_RANGE, "an order for cell %u, which the grid does not have",
                           list[i]);
    }
    return MR_OK;
}

/* What a human reads; bytes that are no text become harmless. */
static void take_sentence(char *out, size_t room, const char *text) {
    mr_err shown;
    mr_fail(&shown, MR_OK, "%s", text);
    const size_t bytes = strnlen(shown.text, room - 1);
    memcpy(out, shown.text, bytes);
    out[bytes] = '\0';
}

/* --- joining ---------------------------------------------------------------------------------- */

mr_packed mr_pack_empty(void) {
    const Memrack__Control__Empty message = MEMRACK__CONTROL__EMPTY__INIT;
    return pack(&message);
}

mr_status mr_unpack_empty(const uint8_t *data, size_t bytes, mr_err *err) {
    mr_message m;
    const mr_status status = unpack(&m, &memrack__control__empty__descriptor, data, bytes, err);
    mr_message_free(&m);
    return status;
}

mr_packed mr_pack_join(const char *cluster, const char *leader, uint64_t leader_epoch) {
    Memrack__Control__JoinRequest message = MEMRACK__CONTROL__JOIN_REQUEST__INIT;
    message.cluster = text_of(cluster);
    message.leader = text_of(leader);
    message.leader_epoch = leader_epoch;
    return pack(&message);
}

mr_status mr_unpack_join(mr_message *m, const char **cluster, const char **leader,
                         uint64_t *leader_epoch, const uint8_t *data, size_t bytes, mr_err *err) {
    mr_status status = unpack(m, &memrack__control__join_request__descriptor, data, bytes, err);
    if (status != MR_OK) return status;
    const Memrack__Control__JoinRequest *r = m->root;
    status = mr_id_check(r->cluster, "cluster", err);
    if (status == MR_OK) status = mr_id_check(r->leader, "leader", err);
    *cluster = r->cluster;
    *leader = r->leader;
    *leader_epoch = r->leader_epoch;
    return status;
}

mr_packed mr_pack_join_reply(const char *member) {
    Memrack__Control__JoinReply message = MEMRACK__CONTROL__JOIN_REPLY__INIT;
    message.member = bytes_of(member, strlen(member));
    return pack(&message);
}

static mr_status take_member(mr_member **out, const ProtobufCBinaryData *text, mr_err *err) {
    return mr_member_parse(out, (const char *)(text->data ? text->data : (const uint8_t *)""),
                           text->len, "the member's record", err);
}

mr_status mr_unpack_join_reply(mr_member **member, const uint8_t *data, size_t bytes, mr_err *err) {
    mr_message m;
    *member = NULL;
    mr_status status = unpack(&m, &memrack__control__join_reply__descriptor, data, bytes, err);
    if (status == MR_OK)
        status = take_member(member, &((const Memrack__Control__JoinReply *)m.root)->member, err);
    mr_message_free(&m);
    return status;
}

/* --- loading ---------------------------------------------------------------------------------- */

mr_packed mr_pack_load(const mr_control_load_order *o) {
    Memrack__Control__LoadRequest message = MEMRACK__CONTROL__LOAD_REQUEST__INIT;
    message.leader_epoch = o->leader_epoch;
    message.name = text_of(o->name);
    message.digest = bytes_of(o->digest.bytes, sizeof(o->digest.bytes));
    message.source = text_of(o->source);
    message.grid_rows = o->grid_rows;
    message.grid_columns = o->grid_columns;
    message.n_cells = o->cell_count;
    message.cells = (uint32_t *)(uintptr_t)o->cells;
    message.group = text_of(o->group);
    message.stage = o->stage;
    message.stages = o->stages;
    message.n_peers = o->peer_count;
    message.peers = (char **)(uintptr_t)o->peers;
    return pack(&message);
}

static mr_status check_load(const Memrack__Control__LoadRequest *r, mr_err *err) {
    const bool has_grid = r->grid_rows || r->grid_columns;
    mr_status status = mr_id_check(r->name, "model", err);
    if (status == MR_OK) status = mr_source_check(r->source, err);
    if (status != MR_OK) return status;
    if ((r->n_cells > 0) == (r->group[0] != '\0'))
        return mr_fail(err, MR_ERR_FORMAT,
                       "a load is of cells (a memshard's) or of a stage of a group (a worker's)");
    if (r->n_cells > 0 || has_grid) {
        if (r->grid_rows < 1 || r->grid_columns < 1 ||
            (uint64_t)r->grid_rows * r->grid_columns > MR_MAX_CELLS)
            return mr_fail(err, MR_ERR_RANGE, "a load for a grid of %ux%u", r->grid_rows,
                           r->grid_columns);
        status = check_cells(r->cells, r->n_cells, r->grid_rows * r->grid_columns, err);
    }
    if (status == MR_OK && r->group[0]) status = mr_id_check(r->group, "group", err);
    if (status != MR_OK) return status;
    if (r->group[0] && (r->stages < 1 || r->stages > MR_MAX_STAGES || r->stage >= r->stages))
        return mr_fail(err, MR_ERR_RANGE, "a load of stage %u of %u", r->stage, r->stages);
    if (r->n_peers > MR_CONTROL_PEERS)
        return mr_fail(err, MR_ERR_LIMIT, "a load with %zu peers; at most %d", r->n_peers,
                       MR_CONTROL_PEERS);
    for (size_t i = 0; i < r->n_peers && status == MR_OK; i++)
        status = mr_peer_address_check(r->peers[i], true, err);
    return status;
}

mr_status mr_unpack_load(mr_message *m, mr_control_load_order *o, const uint8_t *data, size_t bytes,
                         mr_err *err) {
    *o = (mr_control_load_order){0};
    mr_status status = unpack(m, &memrack__control__load_request__descriptor, data, bytes, err);
    if (status != MR_OK) return status;
    const Memrack__Control__LoadRequest *r = m->root;
    status = take_digest(&o->digest, &r->digest, err);
    if (status == MR_OK) status = check_load(r, err);
    if (status != MR_OK) return status;
    o->leader_epoch = r->leader_epoch;
    o->name = r->name;
    o->source = r->source;
    o->grid_rows = r->grid_rows;
    o->grid_columns = r->grid_columns;
    o->cells = r->cells;
    o->cell_count = (uint32_t)r->n_cells;
    o->group = r->group;
    o->stage = r->stage;
    o->stages = r->stages;
    o->peers = (const char *const *)r->peers;
    o->peer_count = (uint32_t)r->n_peers;
    return MR_OK;
}

mr_packed mr_pack_progress(const char *what, double fraction, bool is_ready) {
    Memrack__Control__LoadProgress message = MEMRACK__CONTROL__LOAD_PROGRESS__INIT;
    message.what = text_of(what);
    message.fraction = fraction;
    message.is_ready = is_ready;
    return pack(&message);
}

mr_status mr_unpack_progress(char what[MR_CONTROL_TEXT_BYTES], double *fraction, bool *is_ready,
                             const uint8_t *data, size_t bytes, mr_err *err) {
    mr_message m;
    const mr_status status =
        unpack(&m, &memrack__control__load_progress__descriptor, data, bytes, err);
    if (status == MR_OK) {
        const Memrack__Control__LoadProgress *r = m.root;
        take_sentence(what, MR_CONTROL_TEXT_BYTES, r->what);
        *fraction = r->fraction >= 0 && r->fraction <= 1 ? r->fraction : r->fraction > 1;
        *is_ready = r->is_ready;
    }
    mr_message_free(&m);
    return status;
}

/* --- unloading, draining ---------------------------------------------------------------------- */

mr_packed mr_pack_unload(const mr_control_unload_order *o) {
    Memrack__Control__UnloadRequest message = MEMRACK__CONTROL__UNLOAD_REQUEST__INIT;
    message.leader_epoch = o->leader_epoch;
    message.digest = bytes_of(o->digest.bytes, sizeof(o->digest.bytes));
    message.n_cells = o->cell_count;
    message.cells = (uint32_t *)(uintptr_t)o->cells;
    return pack(&message);
}

mr_status mr_unpack_unload(mr_message *m, mr_control_unload_order *o, const uint8_t *data,
                           size_t bytes, mr_err *err) {
    *o = (mr_control_unload_order){0};
    mr_status status = unpack(m, &memrack__control__unload_request__descriptor, data, bytes, err);
    if (status != MR_OK) return status;
    const Memrack__Control__UnloadRequest *r = m->root;
    status = take_digest(&o->digest, &r->digest, err);
    if (status == MR_OK) status = check_cells(r->cells, r->n_cells, 0, err);
    if (status != MR_OK) return status;
    o->leader_epoch = r->leader_epoch;
    o->cells = r->cells;
    o->cell_count = (uint32_t)r->n_cells;
    return MR_OK;
}

mr_packed mr_pack_drain(const mr_drain_order *o) {
    Memrack__Control__DrainRequest message = MEMRACK__CONTROL__DRAIN_REQUEST__INIT;
    message.timeout_s = o->timeout_s;
    message.ends = o->ends;
    return pack(&message);
}

mr_status mr_unpack_drain(mr_drain_order *o, const uint8_t *data, size_t bytes, mr_err *err) {
    mr_message m;
    *o = (mr_drain_order){0};
    mr_status status = unpack(&m, &memrack__control__drain_request__descriptor, data, bytes, err);
    if (status == MR_OK) {
        const Memrack__Control__DrainRequest *r = m.root;
        o->timeout_s = r->timeout_s;
        o->ends = r->ends;
        if (r->timeout_s > 86400)
            status =
                mr_fail(err, MR_ERR_RANGE, "a drain of %u seconds; at most a day", r->timeout_s);
    }
    mr_message_free(&m);
    return status;
}

/* --- status ----------------------------------------------------------------------------------- */

mr_packed mr_pack_status(const mr_control_status *s, const char *member) {
    Memrack__Control__StatusReply message = MEMRACK__CONTROL__STATUS_REPLY__INIT;
    const uint32_t count =
        s->counter_count < MR_CONTROL_COUNTERS ? s->counter_count : MR_CONTROL_COUNTERS;
    Memrack__Control__Counter *counters = mr_alloc_array(count + 1u, sizeof(*counters)),
                              **list = mr_alloc_array(count + 1u, sizeof(*list));
    for (uint32_t i = 0; i < count; i++) {
        memrack__control__counter__init(&counters[i]);
        counters[i].name = text_of(s->counters[i].name);
        counters[i].value = s->counters[i].value;
        list[i] = &counters[i];
    }
    message.member = bytes_of(member, strlen(member));
    message.requests = s->requests;
    message.requests_per_s = s->requests_per_s;
    message.p50_us = s->p50_us;
    message.p99_us = s->p99_us;
    message.bytes_held = s->bytes_held;
    message.transport = text_of(s->transport);
    message.map_epoch = s->map_epoch;
    message.etcd_is_up = s->etcd_is_up;
    message.degraded = s->degraded;
    message.n_counters = count;
    message.counters = list;
    const mr_packed packed = pack(&message);
    free(counters);
    free(list);
    return packed;
}

static mr_status take_counters(mr_control_status *out, const Memrack__Control__StatusReply *r,
                               mr_err *err) {
    if (r->n_counters > MR_CONTROL_COUNTERS)
        return mr_fail(err, MR_ERR_LIMIT, "a status with %zu counters; at most %d", r->n_counters,
                       MR_CONTROL_COUNTERS);
    for (size_t i = 0; i < r->n_counters; i++) {
        const Memrack__Control__Counter *c = r->counters[i];
        mr_control_counter *to = &out->counters[out->counter_count++];
        const mr_status status = mr_id_check(c->name, "counter", err);
        if (status != MR_OK) return status;
        if (strlen(c->name) >= sizeof(to->name) || !isfinite(c->value))
            return mr_fail(err, MR_ERR_FORMAT, "counter '%s' is too long or no number", c->name);
        strcpy(to->name, c->name);
        to->value = c->value;
    }
    return MR_OK;
}

mr_status mr_unpack_status(mr_control_status *out, mr_member **member, const uint8_t *data,
                           size_t bytes, mr_err *err) {
    mr_message m;
    *out = (mr_control_status){0};
    *member = NULL;
    mr_status status = unpack(&m, &memrack__control__status_reply__descriptor, data, bytes, err);
    if (status == MR_OK) {
        const Memrack__Control__StatusReply *r = m.root;
        if (!isfinite(r->requests_per_s) || r->requests_per_s < 0)
            status = mr_fail(err, MR_ERR_FORMAT, "a status with a rate that is no number");
        if (status == MR_OK) status = mr_label_check(r->transport, "transport", err);
        if (status == MR_OK && strlen(r->transport) >= sizeof(out->transport))
            status = mr_fail(err, MR_ERR_FORMAT, "a status with a transport that is too long");
        if (status == MR_OK) status = take_counters(out, r, err);
        if (status == MR_OK) status = take_member(member, &r->member, err);
        if (status == MR_OK) {
            out->requests = r->requests;
            out->requests_per_s = r->requests_per_s;
            out->p50_us = r->p50_us;
            out->p99_us = r->p99_us;
            out->bytes_held = r->bytes_held;
            out->map_epoch = r->map_epoch;
            out->etcd_is_up = r->etcd_is_up;
            out->degraded = r->degraded;
            strcpy(out->transport, r->transport);
        }
    }
    mr_message_free(&m);
    return status;
}

/* --- session keys ----------------------------------------------------------------------------- */

static const char *const role_names[] = {"", "client", "coordinator", "worker", "memshard"};

const char *mr_control_role_name(mr_role role) {
    return (unsigned)role <= MR_ROLE_MEMSHARD ? role_names[role] : "";
}

mr_packed mr_pack_key_request(mr_role role, const char *id) {
    Memrack__Control__SessionKeyRequest message = MEMRACK__CONTROL__SESSION_KEY_REQUEST__INIT;
    message.role = text_of(mr_control_role_name(role));
    message.id = text_of(id);
    return pack(&message);
}

mr_status mr_unpack_key_request(mr_message *m, mr_role *role, const char **id, const uint8_t *data,
                                size_t bytes, mr_err *err) {
    mr_status status =
        unpack(m, &memrack__control__session_key_request__descriptor, data, bytes, err);
    if (status != MR_OK) return status;
    const Memrack__Control__SessionKeyRequest *r = m->root;
    *role = 0;
    for (mr_role at = MR_ROLE_CLIENT; at <= MR_ROLE_MEMSHARD; at++)
        if (strcmp(r->role, role_names[at]) == 0) *role = at;
    if (*role == 0) return mr_fail(err, MR_ERR_FORMAT, "role '%.40s' is not known", r->role);
    *id = r->id;
    return mr_id_check(r->id, "id", err);
}

mr_packed mr_pack_key(const mr_control_key *key) {
    Memrack__Control__SessionKeyReply message = MEMRACK__CONTROL__SESSION_KEY_REPLY__INIT;
    message.key_id = key->key_id;
    if (key->key_id) message.key = bytes_of(key->key, sizeof(key->key));
    message.valid_s = key->valid_s;
    message.is_required = key->is_required;
    return pack(&message);
}

mr_status mr_unpack_key(mr_control_key *out, const uint8_t *data, size_t bytes, mr_err *err) {
    mr_message m;
    *out = (mr_control_key){0};
    mr_status status =
        unpack(&m, &memrack__control__session_key_reply__descriptor, data, bytes, err);
    if (status == MR_OK) {
        const Memrack__Control__SessionKeyReply *r = m.root;
        if (r->key.len != (r->key_id ? sizeof(out->key) : 0))
            status = mr_fail(err, MR_ERR_FORMAT, "a session key of %zu bytes", r->key.len);
        else {
            if (r->key_id) {
                memcpy(out->key, r->key.data, sizeof(out->key));
                explicit_bzero(r->key.data, r->key.len);
            }
            out->key_id = r->key_id;
            out->valid_s = r->valid_s;
            out->is_required = r->is_required;
        }
    }
    mr_message_free(&m);
    return status;
}

/* --- generations ------------------------------------------------------------------------------ */

static const char *const lost_names[] = {"", "fail", "wait", "degrade"};

mr_packed mr_pack_generation(const mr_generation *g) {
    Memrack__Control__GenerateRequest r = MEMRACK__CONTROL__GENERATE_REQUEST__INIT;
    const uint32_t answers = g->prompt_count * g->choices;
    protobuf_c_boolean *complete = mr_alloc_array(answers + 1u, sizeof(*complete));
    for (uint32_t i = 0; i < answers && g->is_complete; i++) complete[i] = g->is_complete[i];
    r.model = text_of(g->model);
    if (g->has_digest) r.digest = bytes_of(g->digest.bytes, sizeof(g->digest.bytes));
    r.n_tokens = g->token_count;
    r.tokens = (int32_t *)(uintptr_t)g->tokens;
    r.n_prompt_tokens = g->prompt_count;
    r.prompt_tokens = (uint32_t *)(uintptr_t)g->prompt_tokens;
    r.n_generated = g->generated_tokens ? g->generated_count : 0;
    r.generated = (int32_t *)(uintptr_t)g->generated;
    r.n_generated_tokens = g->generated_tokens ? answers : 0;
    r.generated_tokens = (uint32_t *)(uintptr_t)g->generated_tokens;
    r.n_complete = g->is_complete ? answers : 0;
    r.complete = complete;
    r.choices = g->choices;
    r.new_tokens = g->new_tokens;
    r.temperature = g->temperature;
    r.top_p = g->top_p;
    r.min_p = g->min_p;
    r.top_k = g->top_k;
    r.seed = g->seed;
    r.logprobs = g->logprobs;
    r.top_logprobs = g->top_logprobs;
    r.n_stop_ids = g->stop_id_count;
    r.stop_ids = (int32_t *)(uintptr_t)g->stop_ids;
    r.lost_partition = text_of(lost_names[(unsigned)g->lost & 3]);
    r.has_lost_wait = g->has_lost_wait;
    r.lost_wait_ms = g->lost_wait_ms;
    r.has_speculate = g->has_speculate;
    r.speculate = g->speculate;
    const mr_packed packed = pack(&r);
    free(complete);
    return packed;
}

static mr_status check_tokens(const int32_t *tokens, size_t count, mr_err *err) {
    if (count > MR_CONTROL_TOKENS)
        return mr_fail(err, MR_ERR_LIMIT, "a request of %zu tokens; at most %d", count,
                       MR_CONTROL_TOKENS);
    for (size_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= MR_MAX_VOCAB)
            return mr_fail(err, MR_ERR_RANGE, "a request with token %d", tokens[i]);
    return MR_OK;
}

static mr_status check_sum(const uint32_t *counts, size_t count, uint32_t least, size_t total,
                           const char *what, mr_err *err) {
    uint64_t sum = 0;
    bool is_short = false;
    for (size_t i = 0; i < count; i++) {
        sum += counts[i];
        is_short |= counts[i] < least;
    }
    if (sum == total && !is_short) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "a request whose %s do not add up to %zu tokens", what,
                   total);
}

static mr_status check_shape(const Memrack__Control__GenerateRequest *r, mr_err *err) {
    if (r->n_prompt_tokens < 1 || r->n_prompt_tokens > MR_MAX_PROMPTS || r->choices < 1 ||
        r->choices > MR_MAX_CHOICES || r->n_prompt_tokens * r->choices > MR_MAX_REQUEST_SEQUENCES)
        return mr_fail(err, MR_ERR_LIMIT, "a request of %zu prompts with %u choices",
                       r->n_prompt_tokens, r->choices);
    const size_t answers = r->n_prompt_tokens * r->choices;
    if ((r->n_generated_tokens != 0 && r->n_generated_tokens != answers) ||
        (r->n_complete != 0 && r->n_complete != answers))
        return mr_fail(err, MR_ERR_FORMAT, "a request of %zu answers that tells of %zu and %zu",
                       answers, r->n_generated_tokens, r->n_complete);
    mr_status status = check_tokens(r->tokens, r->n_tokens, err);
    if (status == MR_OK) status = check_tokens(r->generated, r->n_generated, err);
    if (status == MR_OK)
        status = check_sum(r->prompt_tokens, r->n_prompt_tokens, 1, r->n_tokens, "prompts", err);
    if (status == MR_OK)
        status = check_sum(r->generated_tokens, r->n_generated_tokens, 0, r->n_generated, "answers",
                           err);
    return status;
}

static bool is_within(float value, float most) {
    return value >= 0 && value <= most; /* false for NaN */
}

static mr_status check_sampling(const Memrack__Control__GenerateRequest *r, mr_err *err) {
    if (!is_within(r->temperature, 2) || !is_within(r->top_p, 1) || !is_within(r->min_p, 1) ||
        r->top_k > MR_MAX_VOCAB)
        return mr_fail(err, MR_ERR_RANGE,
                       "a request with temperature %g, top_p %g, min_p %g, top_k %u",
                       (double)r->temperature, (double)r->top_p, (double)r->min_p, r->top_k);
    if (r->new_tokens < 1 || r->new_tokens > MR_MAX_CONTEXT)
        return mr_fail(err, MR_ERR_RANGE, "a request for %u new tokens", r->new_tokens);
    if (r->top_logprobs > MR_MAX_LOGPROBS || r->n_stop_ids > MR_CONTROL_STOP_IDS)
        return mr_fail(err, MR_ERR_LIMIT, "a request with %u logprobs and %zu stop ids",
                       r->top_logprobs, r->n_stop_ids);
    if (r->lost_wait_ms > LOST_WAIT_MS_MAX)
        return mr_fail(err, MR_ERR_RANGE, "a request that waits %u ms for lost rows",
                       r->lost_wait_ms);
    if (r->speculate > MR_MAX_DRAFT_TOKENS)
        return mr_fail(err, MR_ERR_LIMIT, "a request with %u drafted tokens a step", r->speculate);
    return check_tokens(r->stop_ids, r->n_stop_ids, err);
}

mr_status mr_unpack_generation(mr_message *m, mr_generation *g, const uint8_t *data, size_t bytes,
                               mr_err *err) {
    *g = (mr_generation){0};
    mr_status status = unpack(m, &memrack__control__generate_request__descriptor, data, bytes, err);
    if (status != MR_OK) return status;
    const Memrack__Control__GenerateRequest *r = m->root;
    uint32_t lost = 0;
    while (lost < 4 && strcmp(r->lost_partition, lost_names[lost]) != 0) lost++;
    if (lost == 4)
        return mr_fail(err, MR_ERR_FORMAT, "lost_partition '%.40s' is not known",
                       r->lost_partition);
    if (r->model[0]) status = mr_id_check(r->model, "model", err);
    if (status == MR_OK && r->digest.len > 0) status = take_digest(&g->digest, &r->digest, err);
    if (status == MR_OK) status = check_shape(r, err);
    if (status == MR_OK) status = check_sampling(r, err);
    if (status != MR_OK) return status;
    bool *complete = mr_alloc_array(r->n_complete + 1, sizeof(*complete));
    for (size_t i = 0; i < r->n_complete; i++) complete[i] = r->complete[i] != 0;
    m->extra[0] = complete;
    g->has_digest = r->digest.len > 0;
    g->model = r->model;
    g->tokens = r->tokens;
    g->token_count = r->n_tokens;
    g->prompt_tokens = r->prompt_tokens;
    g->prompt_count = (uint32_t)r->n_prompt_tokens;
    g->choices = r->choices;
    g->generated = r->generated;
    g->generated_count = r->n_generated;
    g->generated_tokens = r->n_generated_tokens ? r->generated_tokens : NULL;
    g->is_complete = r->n_complete ? complete : NULL;
    g->new_tokens = r->new_tokens;
    g->temperature = r->temperature;
    g->top_p = r->top_p;
    g->min_p = r->min_p;
    g->top_k = r->top_k;
    g->seed = r->seed;
    g->logprobs = r->logprobs;
    g->top_logprobs = r->top_logprobs;
    for (size_t i = 0; i < r->n_stop_ids; i++) g->stop_ids[i] = r->stop_ids[i];
    g->stop_id_count = (uint32_t)r->n_stop_ids;
    g->lost = (mr_control_lost)lost;
    g->has_lost_wait = r->has_lost_wait;
    g->lost_wait_ms = r->lost_wait_ms;
    g->has_speculate = r->has_speculate;
    g->speculate = r->speculate;
    return MR_OK;
}

mr_packed mr_pack_event(const mr_generation_event *e) {
    Memrack__Control__GenerateEvent r = MEMRACK__CONTROL__GENERATE_EVENT__INIT;
    r.answer = e->answer;
    r.token = e->token;
    r.logprob = e->logprob;
    r.n_top_tokens = r.n_top_logprobs = e->top_count;
    r.top_tokens = (int32_t *)(uintptr_t)e->top_tokens;
    r.top_logprobs = (float *)(uintptr_t)e->top_logprobs;
    r.is_end = e->is_end;
    r.is_complete = e->is_complete;
    r.status = e->status;
    r.sentence = text_of(e->sentence);
    r.is_degraded = e->is_degraded;
    return pack(&r);
}

static mr_status check_event(const Memrack__Control__GenerateEvent *r, uint32_t answers,
                             mr_err *err) {
    bool is_good = r->n_top_tokens == r->n_top_logprobs && r->n_top_tokens <= MR_CONTROL_LOGPROBS &&
                   !isnan(r->logprob) && r->status <= MR_OK && r->status >= MR_ERR_STALE;
    if (!r->is_end)
        is_good &= r->answer < answers && r->token >= (r->is_complete ? -1 : 0) &&
                   r->token < MR_MAX_VOCAB && r->status == MR_OK;
    for (size_t i = 0; i < r->n_top_tokens && is_good; i++)
        is_good =
            r->top_tokens[i] >= 0 && r->top_tokens[i] < MR_MAX_VOCAB && !isnan(r->top_logprobs[i]);
    return is_good ? MR_OK
                   : mr_fail(err, MR_ERR_FORMAT,
                             "an event of a generation that makes no sense (answer %u, token %d, "
                             "status %d)",
                             r->answer, r->token, r->status);
}

mr_status mr_unpack_event(mr_generation_event *out, uint32_t answers, const uint8_t *data,
                          size_t bytes, mr_err *err) {
    mr_message m;
    memset(out, 0, sizeof(*out));
    mr_status status = unpack(&m, &memrack__control__generate_event__descriptor, data, bytes, err);
    if (status == MR_OK) status = check_event(m.root, answers, err);
    if (status == MR_OK) {
        const Memrack__Control__GenerateEvent *r = m.root;
        out->is_end = r->is_end;
        out->answer = r->answer;
        out->token = r->token;
        out->is_complete = r->is_complete;
        out->logprob = r->logprob;
        out->top_count = (uint32_t)r->n_top_tokens;
        for (size_t i = 0; i < r->n_top_tokens; i++) {
            out->top_tokens[i] = r->top_tokens[i];
            out->top_logprobs[i] = r->top_logprobs[i];
        }
        out->is_degraded = r->is_degraded;
        out->status = (mr_status)r->status;
        take_sentence(out->sentence, sizeof(out->sentence), r->sentence);
    }
    mr_message_free(&m);
    return status;
}
#else
typedef int mr_no_control_messages; /* a file must declare something */
#endif
