/* selftest_cluster.c - `memrack selftest --cluster`: do all coordinators of a running cluster, and
 * one process that holds the whole model, give the same answers?
 *
 * Fixed prompts of token ids, of several lengths, each answered greedily and by seeded sampling,
 * with log probabilities, are sent to every server side by side: whatever runs together, whichever
 * workers and replicas answer, every token and every printed digit must be equal. The engine of
 * this process is a server like the others, on a port of this machine's loopback. The digest is
 * SHA-256 over all answers, so that it can be compared between clusters and between days.
 * Threads: one, and one more for the server in this process. */
#include "cli/cluster_find.h"
#include "cli/local.h"
#include "cli/selftest.h"
#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/model/tokenizer_text.h"
#include "coordinator/front.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROMPTS = 8,
    MODES = 2, /* greedy, seeded */
    CASES = PROMPTS * MODES,
    SERVERS_MAX = 64,
    TOP = 3,
    TOGETHER_MAX = 32,
    CONNECT_S = 5,
    VOCABULARY_DEFAULT = 256,
};
static const uint32_t lengths[PROMPTS] = {1, 2, 7, 16, 17, 33, 64, 130};

typedef struct {
    char *url, *name; /* name: for sentences */
} server;

/* One answer, as one line of text a token: what is compared. */
typedef struct {
    CURL *curl;
    const server *from;
    char *request;
    mr_text reply, lines;
    uint32_t tokens;
} asked;

typedef struct {
    const mr_selftest_cluster_options *o;
    server servers[SERVERS_MAX];
    uint32_t count, vocabulary, context;
    mr_text expected[CASES];
    bool is_known;
    struct curl_slist *headers;
    /* in this process */
    mr_local *local;
    mr_front *front;
    pthread_t thread;
    bool has_thread;
} selftest;

/* --- whom to ask ------------------------------------------------------------------------------ */

static void add_server(selftest *t, const char *url, const char *name) {
    server *s = &t->servers[t->count++];
    s->url = mr_strdup(url);
    s->name = mr_strdup(name);
    for (size_t n = strlen(s->url); n > 0 && s->url[n - 1] == '/';) s->url[--n] = '\0';
}

static mr_status find_coordinators(selftest *t, mr_err *err) {
    mr_cluster *cluster;
    mr_status status = mr_cluster_find(&cluster, &t->o->where, NULL, err);
    if (status != MR_OK) return status;
    const mr_view *view = mr_cluster_view(cluster);
    for (uint32_t i = 0; i < view->member_count && t->count < SERVERS_MAX; i++) {
        const mr_member *m = view->members[i];
        if (m->role != MR_ROLE_COORDINATOR || !m->http || m->state != MR_MEMBER_READY) continue;
        char *url = mr_format("http://%s", m->http), *name = mr_format("%s (%s)", m->id, m->http);
        add_server(t, url, name);
        free(url);
        free(name);
    }
    mr_view_release(view);
    mr_cluster_close(cluster);
    if (t->count == (t->local ? 1 : 0))
        status =
            mr_fail(err, MR_ERR_UNAVAILABLE, "the cluster has no coordinator that serves HTTP");
    return status;
}

static void *run_front(void *front) {
    mr_front_run(front);
    return NULL;
}

static mr_status start_local(selftest *t, mr_err *err) {
    const mr_local_options options = {
        .embedded = {.model_directory = t->o->model, .threads = (uint32_t)t->o->threads},
        .name = t->o->name,
        .queue_max = CASES * SERVERS_MAX,
        .answers_wanted = CASES};
    mr_status status = mr_local_open(&t->local, &options, err);
    if (status != MR_OK) return status;
    const mr_front_options front = {.served = mr_local_served(t->local),
                                    .core = mr_local_core(t->local)};
    status = mr_front_open(&t->front, &front, err);
    if (status != MR_OK) return status;
    t->has_thread = pthread_create(&t->thread, NULL, run_front, t->front) == 0;
    if (!t->has_thread) return mr_fail(err, MR_ERR_IO, "no thread for the server");
    char *url = mr_format("http://%s", mr_front_address(t->front));
    add_server(t, url, "one process");
    free(url);
    if (t->vocabulary == 0) t->vocabulary = mr_local_served(t->local)->vocab_size;
    return MR_OK;
}

static void end(selftest *t) {
    if (t->has_thread) {
        mr_front_stop(t->front);
        pthread_join(t->thread, NULL);
    }
    mr_local_close(t->local);
    mr_front_close(t->front);
    for (uint32_t i = 0; i < t->count; i++) {
        free(t->servers[i].url);
        free(t->servers[i].name);
    }
    for (int i = 0; i < CASES; i++) mr_text_free(&t->expected[i]);
    curl_slist_free_all(t->headers);
}

/* --- asking ----------------------------------------------------------------------------------- */

static size_t take_reply(char *data, size_t size, size_t count, void *context) {
    asked *a = context;
    if (a->reply.bytes + size * count > MR_MAX_REPLY_BYTES) return 0;
    mr_text_add(&a->reply, data, size * count);
    return size * count;
}

/* request NULL: a GET. */
static void prepare(selftest *t, asked *a, const server *from, const char *path, char *request) {
    char *url = mr_format("%s%s", from->url, path);
    a->from = from;
    a->request = request;
    a->curl = curl_easy_init();
    curl_easy_setopt(a->curl, CURLOPT_URL, url);
    if (request) {
        curl_easy_setopt(a->curl, CURLOPT_POSTFIELDS, request);
        curl_easy_setopt(a->curl, CURLOPT_HTTPHEADER, t->headers);
    }
    curl_easy_setopt(a->curl, CURLOPT_WRITEFUNCTION, take_reply);
    curl_easy_setopt(a->curl, CURLOPT_WRITEDATA, a);
    curl_easy_setopt(a->curl, CURLOPT_TIMEOUT, (long)t->o->timeout_s);
    curl_easy_setopt(a->curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(a->curl, CURLOPT_PROXY, "");
    curl_easy_setopt(a->curl, CURLOPT_NOSIGNAL, 1L);
    free(url);
}

static void release(asked *a) {
    curl_easy_cleanup(a->curl);
    free(a->request);
    mr_text_free(&a->reply);
    mr_text_free(&a->lines);
    *a = (asked){0};
}

/* The body of an answer with status 200. */
static mr_status judge(json_t **out, const asked *a, CURLcode code, mr_err *err) {
    long http = 0;
    json_t *root = NULL;
    if (code != CURLE_OK)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "%s: %s", a->from->name, curl_easy_strerror(code));
    curl_easy_getinfo(a->curl, CURLINFO_RESPONSE_CODE, &http);
    const mr_status status =
        mr_json_parse(&root, mr_text_string(&a->reply), a->reply.bytes, a->from->name, err);
    if (http == 200) {
        *out = root;
        return status;
    }
    const char *message =
        json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    mr_fail(err, MR_ERR_UNAVAILABLE, "%s answered %ld: %s", a->from->name, http,
            message ? message : "no reason was given");
    json_decref(root);
    return MR_ERR_UNAVAILABLE;
}

/* The shortest context of all servers bounds the prompts. */
static mr_status look_at_models(selftest *t, mr_err *err) {
    for (uint32_t i = 0; i < t->count; i++) {
        asked a = {0};
        json_t *root = NULL;
        prepare(t, &a, &t->servers[i], "/v1/models", NULL);
        mr_status status = judge(&root, &a, curl_easy_perform(a.curl), err);
        json_t *data = json_object_get(root, "data"), *model = NULL, *found = NULL;
        size_t at;
        json_array_foreach(data, at, model) {
            const char *id = json_string_value(json_object_get(model, "id"));
            if (!t->o->name || (id && !strcmp(id, t->o->name))) found = model;
        }
        const json_int_t length = json_integer_value(json_object_get(found, "max_model_len"));
        if (status == MR_OK && !t->o->name && json_array_size(data) > 1)
            status = mr_fail(err, MR_ERR_ARGUMENT, "%s serves %zu models: --model-name says which",
                             t->servers[i].name, json_array_size(data));
        else if (status == MR_OK && length < 2)
            status =
                mr_fail(err, MR_ERR_UNAVAILABLE, "%s serves no such model yet", t->servers[i].name);
        if (status == MR_OK && (t->context == 0 || length < (json_int_t)t->context))
            t->context = (uint32_t)length;
        json_decref(root);
        release(&a);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

/* Numbers by position (splitmix64), so that every run on every machine asks the same. */
static uint32_t token_at(const selftest *t, uint32_t prompt, uint32_t position) {
    uint64_t x = (prompt + 1) * 0x9e3779b97f4a7c15u + position * 0xd1342543de82ef95u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((x ^ x >> 31) % t->vocabulary);
}

static char *make_request(const selftest *t, uint32_t number) {
    const uint32_t prompt = number / MODES;
    const bool is_seeded = number % MODES == 1;
    uint32_t tokens = (uint32_t)t->o->tokens, length = lengths[prompt];
    if (tokens >= t->context) tokens = t->context - 1;
    if (length > t->context - tokens) length = t->context - tokens;
    json_t *ids = json_array();
    for (uint32_t i = 0; i < length; i++)
        json_array_append_new(ids, json_integer(token_at(t, prompt, i)));
    json_t *root = json_pack("{s:o, s:i, s:i, s:b, s:f, s:I}", "prompt", ids, "max_tokens",
                             (int)tokens, "logprobs", TOP, "ignore_eos", 1, "temperature",
                             is_seeded ? 0.9 : 0.0, "seed", (json_int_t)(1000 + number));
    if (is_seeded) json_object_set_new(root, "top_p", json_real(0.95));
    if (t->o->name) json_object_set_new(root, "model", json_string(t->o->name));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

/* --- what came -------------------------------------------------------------------------------- */

/* Numbers as they were printed: nine digits say every fp32. */
static void add_number(mr_text *out, const json_t *value) {
    mr_text_format(out, " %.9g", json_number_value(value));
}

static mr_status read_lines(asked *a, const json_t *root, mr_err *err) {
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *logprobs = json_object_get(choice, "logprobs");
    const json_t *tokens = json_object_get(logprobs, "tokens"),
                 *numbers = json_object_get(logprobs, "token_logprobs"),
                 *tops = json_object_get(logprobs, "top_logprobs");
    const size_t count = json_array_size(tokens);
    if (count == 0 || json_array_size(numbers) != count || json_array_size(tops) != count)
        return mr_fail(err, MR_ERR_FORMAT, "%s: an answer without log probabilities",
                       a->from->name);
    if (json_object_get(root, "memrack"))
        return mr_fail(err, MR_ERR_UNAVAILABLE,
                       "%s gave a degraded answer: a part of the tables was away", a->from->name);
    for (size_t i = 0; i < count; i++) {
        const char *token = json_string_value(json_array_get(tokens, i)), *key;
        json_t *value;
        mr_text_add_string(&a->lines, token ? token : "?");
        add_number(&a->lines, json_array_get(numbers, i));
        json_object_foreach(json_array_get(tops, i), key, value) {
            mr_text_format(&a->lines, " %s", key);
            add_number(&a->lines, value);
        }
        mr_text_add(&a->lines, "", 1); /* ends with a zero: tokens may have line breaks */
    }
    a->tokens = (uint32_t)count;
    return MR_OK;
}

static mr_status read_answer(asked *a, CURLcode code, mr_err *err) {
    json_t *root = NULL;
    mr_status status = judge(&root, a, code, err);
    if (status == MR_OK) status = read_lines(a, root, err);
    json_decref(root);
    return status;
}

static mr_status ask_all(selftest *t, asked *all, mr_err *err) {
    CURLM *multi = curl_multi_init();
    int running = 1, queued;
    CURLMsg *message;
    mr_status status = MR_OK;
    curl_multi_setopt(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)TOGETHER_MAX);
    for (uint32_t i = 0; i < t->count * CASES; i++) curl_multi_add_handle(multi, all[i].curl);
    while (running) {
        curl_multi_perform(multi, &running);
        if (running) curl_multi_poll(multi, NULL, 0, 1000, NULL);
    }
    while ((message = curl_multi_info_read(multi, &queued)))
        for (uint32_t i = 0; i < t->count * CASES && status == MR_OK; i++)
            if (message->msg == CURLMSG_DONE && message->easy_handle == all[i].curl)
                status = read_answer(&all[i], message->data.result, err);
    for (uint32_t i = 0; i < t->count * CASES; i++) curl_multi_remove_handle(multi, all[i].curl);
    curl_multi_cleanup(multi);
    return status;
}

/* --- comparing -------------------------------------------------------------------------------- */

static void describe_case(char *out, size_t bytes, uint32_t number) {
    snprintf(out, bytes, "prompt %u (%u tokens, %s)", number / MODES + 1, lengths[number / MODES],
             number % MODES ? "seeded" : "greedy");
}

static mr_status differ(const mr_text *expected, const asked *a, uint32_t number, mr_err *err) {
    char what[64];
    const char *left = mr_text_string(expected), *right = mr_text_string(&a->lines);
    const char *left_end = left + expected->bytes, *right_end = right + a->lines.bytes;
    uint32_t token = 0;
    while (left < left_end && right < right_end && !strcmp(left, right)) {
        left += strlen(left) + 1;
        right += strlen(right) + 1;
        token++;
    }
    describe_case(what, sizeof(what), number);
    return mr_fail(err, MR_ERR_MISMATCH,
                   "%s differs at %s, token %u: '%.80s' is not the first answer's '%.80s'",
                   a->from->name, what, token, right < right_end ? right : "the end",
                   left < left_end ? left : "the end");
}

static mr_status compare(selftest *t, asked *answers, mr_err *err) {
    for (uint32_t i = 0; i < CASES; i++) {
        mr_text *e = &t->expected[i];
        if (!t->is_known) mr_text_add(e, answers[i].lines.data, answers[i].lines.bytes);
        if (e->bytes != answers[i].lines.bytes ||
            memcmp(e->data, answers[i].lines.data, e->bytes) != 0)
            return differ(e, &answers[i], i, err);
    }
    t->is_known = true;
    return MR_OK;
}

static void print_server(const selftest *t, int64_t round, const asked *answers) {
    char text[MR_DIGEST_TEXT_BYTES];
    mr_sha256 *hash = mr_sha256_open();
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < CASES; i++) {
        mr_sha256_add(hash, answers[i].lines.data, answers[i].lines.bytes);
        tokens += answers[i].tokens;
    }
    const mr_digest digest = mr_sha256_close(hash);
    mr_digest_text(&digest, text);
    printf("round %lld of %lld  %-32s  %s  %d answers, %llu tokens\n", (long long)round,
           (long long)t->o->rounds, answers[0].from->name, text, CASES, (unsigned long long)tokens);
}

static mr_status run_round(selftest *t, int64_t round, mr_err *err) {
    asked *all = mr_alloc_array((size_t)t->count * CASES, sizeof(*all));
    const int64_t began = mr_now_ns();
    for (uint32_t s = 0; s < t->count; s++)
        for (uint32_t i = 0; i < CASES; i++)
            prepare(t, &all[s * CASES + i], &t->servers[s], "/v1/completions", make_request(t, i));
    mr_status status = ask_all(t, all, err);
    for (uint32_t s = 0; s < t->count && status == MR_OK; s++) {
        print_server(t, round, &all[s * CASES]);
        status = compare(t, &all[s * CASES], err);
    }
    if (status == MR_OK)
        printf("round %lld of %lld  equal, %.2f s\n", (long long)round, (long long)t->o->rounds,
               (double)(mr_now_ns() - began) / 1e9);
    fflush(stdout);
    for (uint32_t i = 0; i < t->count * CASES; i++) release(&all[i]);
    free(all);
    return status;
}

mr_status mr_selftest_cluster(const mr_selftest_cluster_options *options, mr_err *err) {
    selftest t = {.o = options, .vocabulary = (uint32_t)options->vocabulary};
    mr_status status = MR_OK;
    if (options->server_count >= SERVERS_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "%d servers; at most %d", options->server_count,
                       SERVERS_MAX - 1);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    t.headers = curl_slist_append(NULL, "Content-Type: application/json");
    t.headers = curl_slist_append(t.headers, "Expect:");
    if (options->model) status = start_local(&t, err);
    for (int i = 0; i < options->server_count; i++)
        add_server(&t, options->servers[i], options->servers[i]);
    if (status == MR_OK && options->server_count == 0) status = find_coordinators(&t, err);
    if (t.vocabulary == 0) t.vocabulary = VOCABULARY_DEFAULT;
    if (status == MR_OK) status = look_at_models(&t, err);
    for (int64_t round = 1; round <= options->rounds && status == MR_OK; round++)
        status = run_round(&t, round, err);
    if (status == MR_OK && t.count == 1)
        printf("one server, compared with itself only: --model DIR compares it with one process\n");
    end(&t);
    curl_global_cleanup();
    return status;
}
