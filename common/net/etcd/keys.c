/* keys.c - libetcd: reading, writing and deleting keys, and transactions of these. */
#include "common/net/etcd/etcd_impl.h"

#include <stdlib.h>
#include <string.h>

static const etcd_method range_method = {"/etcdserverpb.KV/Range",
                                         &etcdserverpb__range_response__descriptor, true};
static const etcd_method put_method = {"/etcdserverpb.KV/Put",
                                       &etcdserverpb__put_response__descriptor, false};
static const etcd_method delete_method = {"/etcdserverpb.KV/DeleteRange",
                                          &etcdserverpb__delete_range_response__descriptor, false};
static const etcd_method txn_method = {"/etcdserverpb.KV/Txn",
                                       &etcdserverpb__txn_response__descriptor, false};
static const etcd_method compact_method = {"/etcdserverpb.KV/Compact",
                                           &etcdserverpb__compaction_response__descriptor, false};

ProtobufCBinaryData etcd_binary(etcd_bytes bytes) {
    return (ProtobufCBinaryData){bytes.bytes, (uint8_t *)bytes.data};
}

ProtobufCBinaryData etcd_prefix_end(etcd_bytes key) {
    uint8_t *end = mr_alloc(key.bytes + 1);
    size_t bytes = key.bytes;

    if (bytes > 0) memcpy(end, key.data, bytes);
    while (bytes > 0 && end[bytes - 1] == 0xff) bytes--;
    if (bytes > 0)
        end[bytes - 1]++;
    else
        bytes = 1; /* "\0": to the end of all keys */
    return (ProtobufCBinaryData){bytes, end};
}

/* All keys begin with nothing: then the first one possible is asked from. */
static ProtobufCBinaryData range_start(etcd_bytes key, bool is_prefix) {
    static uint8_t zero[1];
    if (is_prefix && key.bytes == 0) return (ProtobufCBinaryData){1, zero};
    return etcd_binary(key);
}

static char *take_bytes(const ProtobufCBinaryData *data) {
    return mr_strndup(data->data != NULL ? (const char *)data->data : "", data->len);
}

void etcd_kv_take(etcd_kv *out, const Etcdserverpb__KeyValue *kv) {
    *out = (etcd_kv){.key = take_bytes(&kv->key),
                     .value = take_bytes(&kv->value),
                     .key_bytes = kv->key.len,
                     .value_bytes = kv->value.len,
                     .create_revision = kv->create_revision,
                     .mod_revision = kv->mod_revision,
                     .version = kv->version,
                     .lease = kv->lease};
}

void etcd_kv_clear(etcd_kv *kv) {
    free(kv->key);
    free(kv->value);
    *kv = (etcd_kv){0};
}

etcd_list *etcd_list_of(const Etcdserverpb__RangeResponse *response) {
    etcd_list *list = mr_alloc(sizeof(*list));

    if (response->header != NULL) {
        list->revision = response->header->revision;
        list->cluster_id = response->header->cluster_id;
    }
    list->total = response->count;
    list->has_more = response->more != 0;
    list->kvs = mr_alloc_array(response->n_kvs + 1, sizeof(*list->kvs));
    for (size_t i = 0; i < response->n_kvs; i++)
        etcd_kv_take(&list->kvs[list->count++], response->kvs[i]);
    return list;
}

void etcd_list_free(etcd_list *list) {
    if (list == NULL) return;
    for (size_t i = 0; i < list->count; i++) etcd_kv_clear(&list->kvs[i]);
    free(list->kvs);
    free(list);
}

mr_status etcd_get(etcd_client *client, const etcd_query *query, int64_t deadline_ns,
                   etcd_list **out, mr_err *err) {
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    ProtobufCMessage *answer;

    *out = NULL;
    request.key = range_start(query->key, query->is_prefix);
    if (query->is_prefix) request.range_end = etcd_prefix_end(query->key);
    char *after = NULL;
    if (query->is_prefix && query->after.bytes > 0) { /* the zero behind the copy is the next key */
        after = mr_strndup(query->after.data, query->after.bytes);
        request.key = (ProtobufCBinaryData){query->after.bytes + 1, (uint8_t *)after};
    }
    request.limit = query->limit;
    request.revision = query->revision;
    request.keys_only = query->keys_only;
    request.serializable = query->is_local;
    const mr_status status =
        etcd_ask(client, &range_method, &request.base, deadline_ns, &answer, NULL, err);
    free(request.range_end.data);
    free(after);
    if (status != MR_OK) return status;
    *out = etcd_list_of((const Etcdserverpb__RangeResponse *)answer);
    etcd_free_message(answer);
    return MR_OK;
}

mr_status etcd_put(etcd_client *client, etcd_bytes key, etcd_bytes value, int64_t lease,
                   int64_t deadline_ns, int64_t *revision, mr_err *err) {
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    ProtobufCMessage *answer;

    request.key = etcd_binary(key);
    request.value = etcd_binary(value);
    request.lease = lease;
    const mr_status status =
        etcd_ask(client, &put_method, &request.base, deadline_ns, &answer, NULL, err);
    if (status != MR_OK) return status;
    const Etcdserverpb__PutResponse *put = (const Etcdserverpb__PutResponse *)answer;
    if (revision != NULL) *revision = put->header != NULL ? put->header->revision : 0;
    etcd_free_message(answer);
    return MR_OK;
}

mr_status etcd_delete(etcd_client *client, etcd_bytes key, bool is_prefix, int64_t deadline_ns,
                      int64_t *deleted, mr_err *err) {
    Etcdserverpb__DeleteRangeRequest request = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    ProtobufCMessage *answer;

    request.key = range_start(key, is_prefix);
    if (is_prefix) request.range_end = etcd_prefix_end(key);
    const mr_status status =
        etcd_ask(client, &delete_method, &request.base, deadline_ns, &answer, NULL, err);
    free(request.range_end.data);
    if (status != MR_OK) return status;
    if (deleted != NULL) *deleted = ((const Etcdserverpb__DeleteRangeResponse *)answer)->deleted;
    etcd_free_message(answer);
    return MR_OK;
}

mr_status etcd_compact(etcd_client *client, int64_t revision, int64_t deadline_ns, mr_err *err) {
    Etcdserverpb__CompactionRequest request = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    ProtobufCMessage *answer;

    request.revision = revision;
    request.physical = 1;
    const mr_status status =
        etcd_ask(client, &compact_method, &request.base, deadline_ns, &answer, NULL, err);
    etcd_free_message(answer);
    return status;
}

/* ---- transactions ---- */

/* A request with everything it points to. */
typedef struct {
    Etcdserverpb__TxnRequest request;
    Etcdserverpb__Compare *compares;
    Etcdserverpb__RequestOp *ops; /* [then + otherwise] */
    union op_room {
        Etcdserverpb__RangeRequest range;
        Etcdserverpb__PutRequest put;
        Etcdserverpb__DeleteRangeRequest delete;
    } * rooms;
} txn_build;

static void build_compare(Etcdserverpb__Compare *to, const etcd_compare *from) {
    static const Etcdserverpb__Compare__CompareResult results[] = {
        [ETCD_EQUAL] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL,
        [ETCD_GREATER] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER,
        [ETCD_LESS] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS,
        [ETCD_NOT_EQUAL] = ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL};

    etcdserverpb__compare__init(to);
    to->key = etcd_binary(from->key);
    to->result = results[from->relation];
    to->target = (Etcdserverpb__Compare__CompareTarget)from->target; /* the same order */
    /* the cases of the union follow the targets: version is 4 */
    to->target_union_case =
        (Etcdserverpb__Compare__TargetUnionCase)(ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION +
                                                 (int)from->target);
    if (from->target == ETCD_VALUE)
        to->value = etcd_binary(from->value);
    else
        to->version = from->number; /* all numbers share one place */
}

static void build_op(Etcdserverpb__RequestOp *to, union op_room *room, const etcd_op *from) {
    etcdserverpb__request_op__init(to);
    if (from->kind == ETCD_OP_PUT) {
        etcdserverpb__put_request__init(&room->put);
        room->put.key = etcd_binary(from->key);
        room->put.value = etcd_binary(from->value);
        room->put.lease = from->lease;
        to->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
        to->request_put = &room->put;
        return;
    }
    const ProtobufCBinaryData start = range_start(from->key, from->is_prefix);
    const ProtobufCBinaryData end =
        from->is_prefix ? etcd_prefix_end(from->key) : (ProtobufCBinaryData){0, NULL};
    if (from->kind == ETCD_OP_GET) {
        etcdserverpb__range_request__init(&room->range);
        room->range.key = start;
        room->range.range_end = end;
        to->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
        to->request_range = &room->range;
    } else {
        etcdserverpb__delete_range_request__init(&room->delete);
        room->delete.key = start;
        room->delete.range_end = end;
        to->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
        to->request_delete_range = &room->delete;
    }
}

static void build_txn(txn_build *b, const etcd_txn *txn) {
    const size_t ops = txn->then_count + txn->otherwise_count;

    etcdserverpb__txn_request__init(&b->request);
    b->compares = mr_alloc_array(txn->compare_count + 1, sizeof(*b->compares));
    b->ops = mr_alloc_array(ops + 1, sizeof(*b->ops));
    b->rooms = mr_alloc_array(ops + 1, sizeof(*b->rooms));
    b->request.compare = mr_alloc_array(txn->compare_count + 1, sizeof(*b->request.compare));
    b->request.success = mr_alloc_array(ops + 1, sizeof(*b->request.success));
    b->request.failure = b->request.success + txn->then_count;
    b->request.n_compare = txn->compare_count;
    b->request.n_success = txn->then_count;
    b->request.n_failure = txn->otherwise_count;
    for (size_t i = 0; i < txn->compare_count; i++) {
        build_compare(&b->compares[i], &txn->compares[i]);
        b->request.compare[i] = &b->compares[i];
    }
    for (size_t i = 0; i < ops; i++) {
        const etcd_op *from =
            i < txn->then_count ? &txn->then[i] : &txn->otherwise[i - txn->then_count];
        build_op(&b->ops[i], &b->rooms[i], from);
        b->request.success[i] = &b->ops[i];
    }
}

static void free_build(txn_build *b, size_t ops) {
    for (size_t i = 0; i < ops; i++) {
        if (b->ops[i].request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE)
            free(b->rooms[i].range.range_end.data);
        if (b->ops[i].request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE)
            free(b->rooms[i].delete.range_end.data);
    }
    free(b->compares);
    free(b->ops);
    free(b->rooms);
    free(b->request.compare);
    free(b->request.success);
}

static etcd_txn_result *take_result(const Etcdserverpb__TxnResponse *response) {
    etcd_txn_result *result = mr_alloc(sizeof(*result));

    result->has_succeeded = response->succeeded != 0;
    result->revision = response->header != NULL ? response->header->revision : 0;
    result->count = response->n_responses;
    result->lists = mr_alloc_array(result->count + 1, sizeof(etcd_list *));
    for (size_t i = 0; i < result->count; i++) {
        const Etcdserverpb__ResponseOp *op = response->responses[i];
        if (op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
            result->lists[i] = etcd_list_of(op->response_range);
    }
    return result;
}

void etcd_txn_result_free(etcd_txn_result *result) {
    if (result == NULL) return;
    for (size_t i = 0; i < result->count; i++) etcd_list_free(result->lists[i]);
    free(result->lists);
    free(result);
}

mr_status etcd_commit(etcd_client *client, const etcd_txn *txn, int64_t deadline_ns,
                      bool *has_succeeded, etcd_txn_result **result, mr_err *err) {
    ProtobufCMessage *answer;
    txn_build build;

    if (result != NULL) *result = NULL;
    if (has_succeeded != NULL) *has_succeeded = false;
    build_txn(&build, txn);
    const mr_status status =
        etcd_ask(client, &txn_method, &build.request.base, deadline_ns, &answer, NULL, err);
    free_build(&build, txn->then_count + txn->otherwise_count);
    if (status != MR_OK) return status;
    const Etcdserverpb__TxnResponse *response = (const Etcdserverpb__TxnResponse *)answer;
    if (has_succeeded != NULL) *has_succeeded = response->succeeded != 0;
    if (result != NULL) *result = take_result(response);
    etcd_free_message(answer);
    return MR_OK;
}
