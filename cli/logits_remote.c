/* logits_remote.c - `memrack logits --connect`: asks a running coordinator's /memrack/v1/logits.
 *
 * The answer is u32 batch, tokens, columns, then f32 [batch][tokens][columns], all little endian.
 * It is written to the output as it comes, so that it need not fit in memory. */
#include "cli/logits_io.h"

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_BYTES = 12, TIMEOUT_S = 600, CONNECT_TIMEOUT_S = 5, SENTENCE_BYTES = 2048 };

typedef struct {
    const mr_id_matrix *ids;
    mr_writer *writer; /* NULL: the answer is dropped */
    const char *output;
    uint32_t tensor;
    uint8_t header[HEADER_BYTES];
    size_t header_have;
    uint64_t written, expected;
    char sentence[SENTENCE_BYTES]; /* body of an error answer */
    size_t sentence_have;
    mr_status status;
    mr_err err;
    CURL *curl;
    char *body;
} transfer;

static void start_output(transfer *t) {
    uint32_t shape[3];
    memcpy(shape, t->header, sizeof(shape));
    if (shape[0] != t->ids->batch || shape[1] != t->ids->tokens || shape[2] == 0 ||
        shape[2] > MR_MAX_VOCAB) {
        t->status = mr_fail(&t->err, MR_ERR_FORMAT,
                            "the answer has shape [%u, %u, %u], asked were [%u, %u]", shape[0],
                            shape[1], shape[2], t->ids->batch, t->ids->tokens);
        return;
    }
    const uint64_t dims[3] = {shape[0], shape[1], shape[2]};
    t->expected = dims[0] * dims[1] * dims[2] * sizeof(float);
    if (!t->writer) return;
    t->status = mr_writer_declare(t->writer, &t->tensor, "logits", MR_DTYPE_F32, 3, dims, &t->err);
    if (t->status == MR_OK) t->status = mr_writer_begin_file(t->writer, t->output, &t->err);
}

static size_t on_body(char *data, size_t size, size_t count, void *context) {
    transfer *t = context;
    const size_t bytes = size * count;
    size_t at = 0;
    long code = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200) {
        const size_t room = sizeof(t->sentence) - 1 - t->sentence_have;
        memcpy(t->sentence + t->sentence_have, data, bytes < room ? bytes : room);
        t->sentence_have += bytes < room ? bytes : room;
        return bytes;
    }
    while (at < bytes && t->header_have < HEADER_BYTES)
        t->header[t->header_have++] = (uint8_t)data[at++];
    if (t->header_have == HEADER_BYTES && t->expected == 0 && t->status == MR_OK) start_output(t);
    if (t->status != MR_OK) return 0;
    if (bytes == at) return bytes;
    if (t->written + (bytes - at) > t->expected) {
        t->status = mr_fail(&t->err, MR_ERR_FORMAT, "the answer is longer than it says");
        return 0;
    }
    if (t->writer)
        t->status = mr_writer_put(t->writer, t->tensor, t->written, data + at, bytes - at, &t->err);
    t->written += bytes - at;
    return t->status == MR_OK ? bytes : 0;
}

static char *request_body(const mr_id_matrix *ids, uint32_t prefill_chunk, uint32_t decode_from) {
    json_t *rows = json_array();
    for (uint32_t b = 0; b < ids->batch; b++) {
        json_t *row = json_array();
        for (uint32_t i = 0; i < ids->tokens; i++)
            json_array_append_new(row, json_integer(ids->ids[(size_t)b * ids->tokens + i]));
        json_array_append_new(rows, row);
    }
    json_t *root = json_pack("{s:o}", "input_ids", rows);
    if (prefill_chunk) json_object_set_new(root, "prefill_chunk", json_integer(prefill_chunk));
    if (decode_from) json_object_set_new(root, "decode_from", json_integer(decode_from));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

static void prepare(transfer *t, const char *url, const mr_id_matrix *ids, uint32_t prefill_chunk,
                    uint32_t decode_from, struct curl_slist *headers) {
    t->ids = ids;
    t->body = request_body(ids, prefill_chunk, decode_from);
    t->curl = curl_easy_init();
    curl_easy_setopt(t->curl, CURLOPT_URL, url);
    curl_easy_setopt(t->curl, CURLOPT_POSTFIELDS, t->body);
    curl_easy_setopt(t->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(t->body));
    curl_easy_setopt(t->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(t->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(t->curl, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->curl, CURLOPT_TIMEOUT, (long)TIMEOUT_S);
    curl_easy_setopt(t->curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_TIMEOUT_S);
    curl_easy_setopt(t->curl, CURLOPT_PROXY, "");
    curl_easy_setopt(t->curl, CURLOPT_NOSIGNAL, 1L);
}

static mr_status judge(transfer *t, CURLcode code, const char *address, mr_err *err) {
    long http = 0;
    json_t *root = NULL;
    if (t->status != MR_OK) return mr_fail(err, t->status, "%s", t->err.text);
    if (code != CURLE_OK)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "%s: %s", address, curl_easy_strerror(code));
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &http);
    if (http != 200) {
        mr_status status;
        const char *message = t->sentence;
        if (mr_json_parse(&root, t->sentence, t->sentence_have, "answer", NULL) == MR_OK) {
            const char *text =
                json_string_value(json_object_get(json_object_get(root, "error"), "message"));
            if (text) message = text;
        }
        status = mr_fail(err, http < 500 ? MR_ERR_ARGUMENT : MR_ERR_UNAVAILABLE,
                         "%s answered %ld: %s", address, http, message);
        json_decref(root);
        return status;
    }
    if (t->expected == 0 || t->written != t->expected)
        return mr_fail(err, MR_ERR_FORMAT, "%s: the answer ended after %llu of %llu bytes", address,
                       (unsigned long long)t->written, (unsigned long long)t->expected);
    return MR_OK;
}

static mr_status run(transfer *transfers, int count, const char *address, mr_err *err) {
    CURLM *multi = curl_multi_init();
    CURLcode codes[2] = {CURLE_OK, CURLE_OK};
    int running = 1, queued;
    CURLMsg *message;
    for (int i = 0; i < count; i++) curl_multi_add_handle(multi, transfers[i].curl);
    while (running) {
        curl_multi_perform(multi, &running);
        if (running) curl_multi_poll(multi, NULL, 0, 1000, NULL);
    }
    while ((message = curl_multi_info_read(multi, &queued)))
        for (int i = 0; i < count; i++)
            if (message->msg == CURLMSG_DONE && message->easy_handle == transfers[i].curl)
                codes[i] = message->data.result;
    mr_status status = MR_OK;
    for (int i = 0; i < count && status == MR_OK; i++)
        status = judge(&transfers[i], codes[i], address, err);
    for (int i = 0; i < count; i++) curl_multi_remove_handle(multi, transfers[i].curl);
    curl_multi_cleanup(multi);
    return status;
}

mr_status mr_logits_remote(const char *address, const mr_id_matrix *ids, const mr_id_matrix *beside,
                           uint32_t prefill_chunk, uint32_t decode_from, const char *output,
                           mr_err *err) {
    transfer transfers[2] = {0};
    const int count = beside ? 2 : 1;
    const char *scheme = strncmp(address, "http://", 7) == 0 || strncmp(address, "https://", 8) == 0
                             ? ""
                             : "http://";
    char *url = mr_format("%s%s%smemrack/v1/logits", scheme, address,
                          address[0] && address[strlen(address) - 1] == '/' ? "" : "/");
    curl_global_init(CURL_GLOBAL_DEFAULT);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = curl_slist_append(headers, "Expect:");
    transfers[0].writer = mr_writer_new();
    transfers[0].output = output;
    prepare(&transfers[0], url, ids, prefill_chunk, decode_from, headers);
    if (beside) prepare(&transfers[1], url, beside, prefill_chunk, decode_from, headers);
    mr_status status = run(transfers, count, address, err);
    if (status == MR_OK) status = mr_writer_finish(transfers[0].writer, err);
    mr_writer_free(transfers[0].writer);
    for (int i = 0; i < count; i++) {
        curl_easy_cleanup(transfers[i].curl);
        free(transfers[i].body);
    }
    curl_slist_free_all(headers);
    curl_global_cleanup();
    free(url);
    return status;
}
