/* front.c - see front.h. A `call` is one request on its way: made when its body is parsed, freed
 * when the core has said its end event, so that the core's thread never finds it gone. */
#include "coordinator/front.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "coordinator/openai_reply.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    PING_MS = 5000,
    INBOX_MAX = 1 << 17,
    DRAIN_TIMEOUT_MS = 30000,
    LOGGED_NAMES_MAX = 16,
    GROUPS_SHOWN_MAX = MR_MAX_GROUPS + 1
};

typedef struct call call;
struct call {
    call *next, *previous;
    mr_front *front;
    mr_exchange *exchange; /* NULL: the client is gone */
    uint64_t id;           /* the core's */
    mr_serving *model;     /* held */
    mr_reply_head head;
    mr_reply_answer *answers; /* [answer_count] */
    mr_text *echoes;          /* [prompt_count] or NULL */
    uint32_t answer_count, prompt_count;
    uint32_t batch, tokens;    /* of a logits request */
    bool is_logits, has_begun; /* has_begun: the stream */
    int64_t spoke_ns;
};

/* An event, copied for the way from the core's thread. */
typedef struct news {
    struct news *next;
    call *call;
    mr_event event;
} news;

struct mr_front {
    mr_models *models;
    mr_core *core;
    mr_http *http;
    call *first;
    atomic_int stops;
    int64_t drain_timeout_ms, stop_since_ns;
    pthread_mutex_t lock; /* guards the inbox */
    news *inbox, **inbox_end;
    uint32_t inbox_count;
    char logged[LOGGED_NAMES_MAX][MR_FIELD_NAME_BYTES]; /* unknown fields the log has seen */
    uint32_t logged_count;
};

/* --- from the core ---------------------------------------------------------------------------- */

static bool on_core_event(void *context, const mr_event *event) {
    call *c = context;
    mr_front *front = c->front;
    const size_t entry_bytes = event->entry_count * sizeof(*event->entries);
    const char *text = event->is_end ? event->sentence : event->text;
    const size_t bytes = event->is_end ? strlen(event->sentence) : event->bytes;
    uint8_t *room = mr_alloc(sizeof(news) + entry_bytes + bytes + 1);
    news *n = (void *)room;
    *n = (news){.call = c, .event = *event};
    if (entry_bytes) memcpy(room + sizeof(news), event->entries, entry_bytes);
    memcpy(room + sizeof(news) + entry_bytes, text, bytes);
    n->event.entries = (void *)(room + sizeof(news));
    n->event.text = n->event.sentence = (char *)room + sizeof(news) + entry_bytes;
    n->event.bytes = bytes;

    pthread_mutex_lock(&front->lock);
    const bool is_full = front->inbox_count >= INBOX_MAX && !event->is_end;
    if (!is_full) {
        *front->inbox_end = n;
        front->inbox_end = &n->next;
        front->inbox_count++;
    }
    pthread_mutex_unlock(&front->lock);
    if (is_full)
        free(n);
    else
        mr_http_wake(front->http);
    return !is_full;
}

static news *take_inbox(mr_front *front) {
    pthread_mutex_lock(&front->lock);
    news *list = front->inbox;
    front->inbox = NULL;
    front->inbox_end = &front->inbox;
    front->inbox_count = 0;
    pthread_mutex_unlock(&front->lock);
    return list;
}

/* --- calls ------------------------------------------------------------------------------------ */

static void free_call(call *c) {
    if (c->previous)
        c->previous->next = c->next;
    else
        c->front->first = c->next;
    if (c->next) c->next->previous = c->previous;
    for (uint32_t i = 0; i < c->answer_count; i++) {
        mr_text_free(&c->answers[i].text);
        free(c->answers[i].entries);
    }
    for (uint32_t i = 0; c->echoes && i < c->prompt_count; i++) mr_text_free(&c->echoes[i]);
    mr_serving_release(c->model);
    free(c->answers);
    free(c->echoes);
    free(c);
}

static void on_gone(void *context) {
    call *c = context;
    c->exchange = NULL;
    mr_core_cancel(c->front->core, c->id);
}

static void reply_error(mr_exchange *x, const mr_api_error *error, const char *extra) {
    mr_text json = {0};
    mr_reply_error(&json, error);
    mr_exchange_reply(x, error->http, "application/json", extra, json.data, json.bytes);
    mr_text_free(&json);
}

static void reply_status(mr_exchange *x, mr_status status, const char *sentence) {
    mr_api_error error;
    mr_text json = {0};
    mr_api_error_of(&error, status, sentence);
    if (strstr(sentence, "model's context has")) error.code = "context_length_exceeded";
    mr_reply_error(&json, &error);
    mr_exchange_reply(x, error.http, "application/json",
                      error.http == 429 || error.http == 503 ? "Retry-After: 1\r\n" : NULL,
                      json.data, json.bytes);
    mr_text_free(&json);
}

/* Sends text on the call's stream, which begins with it. */
static void stream_text(call *c, const mr_text *text) {
    if (!c->exchange) return;
    if (!c->has_begun) mr_exchange_begin_stream(c->exchange, "text/event-stream; charset=utf-8");
    c->has_begun = true;
    c->spoke_ns = mr_now_ns();
    if (mr_exchange_send(c->exchange, mr_text_string(text), text->bytes)) return;
    c->exchange = NULL;
    mr_core_cancel(c->front->core, c->id);
}

static void keep_entries(mr_reply_answer *a, const mr_event *e) {
    if (e->entry_count == 0) return;
    if (a->entry_count + e->entry_count > a->entry_room) {
        a->entry_room = 2 * a->entry_room + e->entry_count;
        a->entries = mr_realloc_array(a->entries, a->entry_room, sizeof(*a->entries));
    }
    memcpy(a->entries + a->entry_count, e->entries, e->entry_count * sizeof(*a->entries));
    a->entry_count += e->entry_count;
}

/* What comes before an answer's first text: chat's role, or the echoed prompt. */
static void begin_answer(call *c, uint32_t answer, mr_text *out) {
    const mr_text *echo =
        c->echoes ? &c->echoes[answer / (c->answer_count / c->prompt_count)] : NULL;
    if (c->head.is_stream && c->head.is_chat) mr_reply_role(out, &c->head, answer);
    if (!echo) return;
    if (c->head.is_stream)
        mr_reply_part(out, &c->head, answer, mr_text_string(echo), echo->bytes, NULL, 0,
                      MR_FINISH_NONE, false);
    else
        mr_text_add(&c->answers[answer].text, mr_text_string(echo), echo->bytes);
}

static void take_part(call *c, const mr_event *e) {
    mr_text chunk = {0};
    mr_reply_answer *a = &c->answers[e->answer];
    const bool is_first = a->entry_room == 0 && !a->finish && a->text.room == 0;
    if (is_first) {
        begin_answer(c, e->answer, &chunk);
        mr_text_add(&a->text, "", 0); /* it has begun */
    }
    if (e->finish != MR_FINISH_NONE) a->finish = e->finish;
    if (!c->head.is_stream) {
        mr_text_add(&a->text, e->text, e->bytes);
        keep_entries(a, e);
    } else if (e->bytes > 0 || e->entry_count > 0 || e->finish != MR_FINISH_NONE)
        mr_reply_part(&chunk, &c->head, e->answer, e->text, e->bytes, e->entries, e->entry_count,
                      e->finish, e->is_degraded);
    if (chunk.bytes > 0) stream_text(c, &chunk);
    mr_text_free(&chunk);
}

static mr_reply_figures figures_of(const mr_event *e) {
    return (mr_reply_figures){e->prompt_tokens, e->generated_tokens, e->cached_tokens,
                              e->speculation, e->is_degraded};
}

static void end_stream(call *c, const mr_event *e) {
    mr_text chunk = {0};
    const mr_reply_figures figures = figures_of(e);
    if (e->status != MR_OK) {
        mr_api_error error;
        mr_api_error_of(&error, e->status, e->sentence);
        mr_text_add_string(&chunk, "data: ");
        mr_reply_error(&chunk, &error);
        mr_text_add_string(&chunk, "\n\n");
    } else if (c->head.include_usage)
        mr_reply_usage(&chunk, &c->head, &figures);
    mr_text_add_string(&chunk, "data: [DONE]\n\n");
    stream_text(c, &chunk);
    mr_text_free(&chunk);
    if (c->exchange) mr_exchange_end_stream(c->exchange);
}

static void end_whole(call *c, mr_event *e) {
    mr_text json = {0};
    if (c->is_logits) {
        const uint32_t shape[3] = {c->batch, c->tokens, e->logit_columns};
        mr_exchange_reply_large(c->exchange, "application/octet-stream", shape, sizeof(shape),
                                e->logits,
                                (size_t)c->batch * c->tokens * e->logit_columns * sizeof(float));
        e->logits = NULL;
        return;
    }
    const mr_reply_figures figures = figures_of(e);
    mr_reply_whole(&json, &c->head, c->answers, c->answer_count, &figures);
    mr_exchange_reply(c->exchange, 200, "application/json", NULL, json.data, json.bytes);
    mr_text_free(&json);
}

static void take_news(news *n) {
    call *c = n->call;
    if (!n->event.is_end) {
        if (c->exchange && !c->is_logits) take_part(c, &n->event);
        return;
    }
    if (c->exchange) {
        if (c->has_begun || (c->head.is_stream && n->event.status == MR_OK))
            end_stream(c, &n->event);
        else if (n->event.status != MR_OK)
            reply_status(c->exchange, n->event.status, n->event.sentence);
        else
            end_whole(c, &n->event);
    }
    free(n->event.logits);
    free_call(c);
}

static void drain_inbox(mr_front *front) {
    news *list = take_inbox(front);
    while (list) {
        news *n = list;
        list = list->next;
        take_news(n);
        free(n);
    }
}

/* --- requests --------------------------------------------------------------------------------- */

static void note_unknown(mr_front *front, const mr_api_call *api) {
    if (api->unknown_fields == 0) return;
    mr_count(&mr_core_metrics(front->core)->unknown_fields, api->unknown_fields);
    for (uint32_t i = 0; i < front->logged_count; i++)
        if (strcmp(front->logged[i], api->unknown_name) == 0) return;
    if (front->logged_count == LOGGED_NAMES_MAX) return;
    memcpy(front->logged[front->logged_count++], api->unknown_name, MR_FIELD_NAME_BYTES);
    mr_log_info("a request has fields this server does not know, such as '%s': they are ignored",
                api->unknown_name);
}

static call *new_call(mr_front *front, mr_exchange *x, mr_api_call *api) {
    call *c = mr_alloc(sizeof(*c));
    const mr_request *r = api->request;
    c->front = front;
    c->exchange = x;
    c->prompt_count = r->prompt_count;
    c->is_logits = r->logits;
    c->batch = r->prompt_count;
    c->tokens = r->prompt_tokens[0];
    c->answer_count = r->prompt_count * r->choices;
    c->answers = mr_alloc_array(c->answer_count, sizeof(*c->answers));
    c->echoes = api->prompt_text;
    api->prompt_text = NULL;
    c->spoke_ns = mr_now_ns();
    c->model = mr_serving_hold(r->model);
    mr_reply_head_init(&c->head, c->model, api);
    c->next = front->first;
    if (front->first) front->first->previous = c;
    front->first = c;
    return c;
}

static void submit(mr_front *front, mr_exchange *x, mr_api_call *api) {
    mr_err err = {{0}};
    call *c = new_call(front, x, api);
    api->request->sink = on_core_event;
    api->request->context = c;
    const mr_status status = mr_core_submit(front->core, api->request, &c->id, &err);
    if (status == MR_OK) {
        api->request = NULL;
        mr_exchange_on_gone(x, on_gone, c);
    } else {
        mr_metrics *m = mr_core_metrics(front->core);
        mr_count(&m->requests[status == MR_ERR_LIMIT ? MR_OUTCOME_BUSY : MR_OUTCOME_FAILED], 1);
        free_call(c);
        reply_status(x, status, err.text);
    }
    mr_api_call_free(api);
}

typedef enum { COMPLETIONS, CHAT, LOGITS } endpoint;

static void on_post(mr_front *front, mr_exchange *x, endpoint which) {
    size_t bytes;
    mr_api_call api;
    mr_api_error error;
    const char *body = mr_exchange_body(x, &bytes);
    if (!mr_exchange_head(x)->is_json) {
        error = (mr_api_error){.http = 415, .type = "invalid_request_error"};
        mr_fail(&error.message, MR_ERR_ARGUMENT, "send Content-Type: application/json");
        reply_error(x, &error, NULL);
        return;
    }
    const bool good =
        which == LOGITS ? mr_logits_parse(&api, front->models, body, bytes, &error)
                        : mr_openai_parse(&api, front->models, which == CHAT, body, bytes, &error);
    if (!good) {
        mr_count(&mr_core_metrics(front->core)->requests[MR_OUTCOME_REFUSED], 1);
        reply_error(x, &error, NULL);
        return;
    }
    note_unknown(front, &api);
    submit(front, x, &api);
}

static void reply_text(mr_exchange *x, int code, const char *type, mr_text *text) {
    mr_exchange_reply(x, code, type, NULL, mr_text_string(text), text->bytes);
    mr_text_free(text);
}

static void drop_models(mr_serving **models, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) mr_serving_release(models[i]);
}

static void on_root(mr_front *front, mr_exchange *x) {
    mr_serving *models[MR_MAX_MODELS];
    mr_text text = {0};
    const uint32_t count = mr_models_list(front->models, models);
    mr_text_format(&text, "memrack %s serves ", MR_VERSION);
    for (uint32_t i = 0; i < count; i++)
        mr_text_format(&text, "%s%s", i ? ", " : "", models[i]->name);
    mr_text_format(&text,
                   "%s: POST to /v1/chat/completions or /v1/completions as with OpenAI's API; see "
                   "/v1/models, /health and /metrics.\n",
                   count ? "" : "no model yet");
    drop_models(models, count);
    reply_text(x, 200, "text/plain; charset=utf-8", &text);
}

static void write_group(mr_text *out, const mr_group_look *g) {
    static const char *const states[] = {"connecting", "up", "stale"};
    mr_text_add_string(out, "{\"name\":");
    mr_reply_string(out, g->name, strlen(g->name));
    mr_text_format(out,
                   ",\"state\":\"%s\",\"stages\":%u,\"outstanding\":%u,\"waiting\":%llu,"
                   "\"running\":%llu,\"queued_tokens\":%llu,\"epoch\":%llu",
                   states[g->state], g->stages, g->outstanding, (unsigned long long)g->waiting,
                   (unsigned long long)g->running, (unsigned long long)g->queued_tokens,
                   (unsigned long long)g->epoch);
    if (g->version[0]) {
        mr_text_add_string(out, ",\"version\":");
        mr_reply_string(out, g->version, strlen(g->version));
    }
    if (g->state != MR_GROUP_UP) {
        mr_text_add_string(out, ",\"reason\":");
        mr_reply_string(out, g->reason.text, strlen(g->reason.text));
    }
    mr_text_add(out, "}", 1);
}

static void reply_state(mr_front *front, mr_exchange *x, mr_status status, const mr_err *err) {
    mr_text text = {0};
    mr_group_look *groups = mr_alloc_array(GROUPS_SHOWN_MAX, sizeof(*groups));
    const uint32_t count = mr_core_groups(front->core, groups, GROUPS_SHOWN_MAX);
    mr_text_add_string(&text, status == MR_OK ? "{\"status\":\"ok\""
                                              : "{\"status\":\"unavailable\",\"reason\":");
    if (status != MR_OK) mr_reply_string(&text, err->text, strlen(err->text));
    mr_text_add_string(&text, ",\"groups\":[");
    for (uint32_t i = 0; i < count; i++) {
        if (i) mr_text_add(&text, ",", 1);
        write_group(&text, &groups[i]);
    }
    mr_text_add_string(&text, "]}\n");
    free(groups);
    reply_text(x, status == MR_OK ? 200 : 503, "application/json", &text);
}

/* Whether it answers at all. */
static void on_health(mr_front *front, mr_exchange *x) {
    mr_err err = {{0}};
    const mr_status status = mr_core_health(front->core, &err);
    reply_state(front, x, status, &err);
}

/* Whether it should get new requests. */
static void on_ready(mr_front *front, mr_exchange *x) {
    mr_serving *models[MR_MAX_MODELS];
    mr_err err = {{0}};
    const uint32_t count = mr_models_list(front->models, models);
    mr_status status = mr_core_health(front->core, &err);
    drop_models(models, count);
    if (status == MR_OK && count == 0)
        status = mr_fail(&err, MR_ERR_UNAVAILABLE, "no model is served yet");
    if (mr_core_is_draining(front->core))
        status = mr_fail(&err, MR_ERR_UNAVAILABLE, "the coordinator is shutting down");
    reply_state(front, x, status, &err);
}

static void on_metrics(mr_front *front, mr_exchange *x) {
    mr_text text = {0};
    mr_serving *models[MR_MAX_MODELS];
    const char *names[MR_MAX_MODELS];
    mr_group_look *groups = mr_alloc_array(GROUPS_SHOWN_MAX, sizeof(*groups));
    const uint32_t group_count = mr_core_groups(front->core, groups, GROUPS_SHOWN_MAX);
    const uint32_t count = mr_models_list(front->models, models);
    for (uint32_t i = 0; i < count; i++) names[i] = models[i]->name;
    mr_metrics_write(&text, mr_core_metrics(front->core), names, count);
    mr_group_metrics_write(&text, groups, group_count);
    drop_models(models, count);
    free(groups);
    reply_text(x, 200, "text/plain; version=0.0.4; charset=utf-8", &text);
}

static void on_models(mr_front *front, mr_exchange *x) {
    mr_serving *models[MR_MAX_MODELS];
    mr_text text = {0};
    const uint32_t count = mr_models_list(front->models, models);
    mr_reply_models(&text, models, count);
    drop_models(models, count);
    reply_text(x, 200, "application/json", &text);
}

static void on_completions(mr_front *front, mr_exchange *x) {
    on_post(front, x, COMPLETIONS);
}
static void on_chat(mr_front *front, mr_exchange *x) {
    on_post(front, x, CHAT);
}
static void on_logits(mr_front *front, mr_exchange *x) {
    on_post(front, x, LOGITS);
}

static const struct {
    const char *path;
    bool is_post;
    void (*handle)(mr_front *front, mr_exchange *x);
} routes[] = {
    {"/v1/completions", true, on_completions},
    {"/v1/chat/completions", true, on_chat},
    {"/memrack/v1/logits", true, on_logits},
    {"/v1/models", false, on_models},
    {"/health", false, on_health},
    {"/readyz", false, on_ready},
    {"/metrics", false, on_metrics},
    {"/", false, on_root},
};

static void on_request(void *context, mr_exchange *x) {
    static const char models[] = "/v1/models/";
    mr_front *front = context;
    const mr_http_head *head = mr_exchange_head(x);
    mr_api_error error = {.http = 404, .type = "invalid_request_error", .code = "not_found"};
    for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
        if (strcmp(head->path, routes[i].path) != 0) continue;
        const bool is_read = head->method == MR_HTTP_GET || head->method == MR_HTTP_HEAD;
        if (routes[i].is_post ? head->method == MR_HTTP_POST : is_read) {
            routes[i].handle(front, x);
            return;
        }
        error.http = 405;
        error.code = NULL;
        mr_fail(&error.message, MR_ERR_ARGUMENT, "%s takes %s only", head->path,
                routes[i].is_post ? "POST" : "GET");
        reply_error(x, &error, routes[i].is_post ? "Allow: POST\r\n" : "Allow: GET, HEAD\r\n");
        return;
    }
    if (strncmp(head->path, models, sizeof(models) - 1) == 0) {
        const char *name = head->path + sizeof(models) - 1;
        mr_serving *model = mr_models_find(front->models, name);
        if (model && head->method != MR_HTTP_POST) {
            mr_text text = {0};
            mr_reply_model(&text, model);
            mr_serving_release(model);
            reply_text(x, 200, "application/json", &text);
            return;
        }
        mr_serving_release(model);
        error.code = "model_not_found";
        mr_fail(&error.message, MR_ERR_ARGUMENT,
                "the model '%.100s' does not exist; /v1/models lists those that do", name);
    } else
        mr_fail(&error.message, MR_ERR_ARGUMENT,
                "there is nothing at %.200s; GET / says what to do", head->path);
    reply_error(x, &error, NULL);
}

/* --- the loop's other calls ------------------------------------------------------------------- */

static void check_stop(mr_front *front) {
    const int stops = atomic_load(&front->stops);
    if (stops == 0) return;
    if (front->stop_since_ns == 0) {
        front->stop_since_ns = mr_now_ns();
        mr_core_drain(front->core);
    }
    if (mr_now_ns() - front->stop_since_ns > front->drain_timeout_ms * 1000000)
        mr_http_stop(front->http, true);
}

static void on_woken(void *context) {
    drain_inbox(context);
    check_stop(context);
}

static void on_tick(void *context) {
    mr_front *front = context;
    const int64_t now = mr_now_ns();
    mr_text ping = {0};
    mr_text_add_string(&ping, ": ping\n\n");
    for (call *c = front->first, *next; c; c = next) {
        next = c->next;
        if (c->exchange && c->head.is_stream && now - c->spoke_ns >= PING_MS * 1000000ll)
            stream_text(c, &ping);
    }
    mr_text_free(&ping);
    check_stop(front);
}

mr_status mr_front_open(mr_front **out, const mr_front_options *options, mr_err *err) {
    mr_front *front = mr_alloc(sizeof(*front));
    mr_http_options http = options->http;
    *out = NULL;
    front->models = mr_models_open();
    if (options->served) {
        mr_serving *only = mr_serving_borrow(options->served);
        mr_models_set(front->models, &only, 1);
        mr_serving_release(only);
    }
    front->core = options->core;
    front->inbox_end = &front->inbox;
    front->drain_timeout_ms =
        options->drain_timeout_ms ? options->drain_timeout_ms : DRAIN_TIMEOUT_MS;
    pthread_mutex_init(&front->lock, NULL);
    http.handler = on_request;
    http.woken = on_woken;
    http.tick = on_tick;
    http.context = front;
    http.metrics = mr_core_metrics(front->core);
    const mr_status status = mr_http_open(&front->http, &http, err);
    if (status != MR_OK) {
        mr_front_close(front);
        return status;
    }
    *out = front;
    return MR_OK;
}

void mr_front_set_models(mr_front *front, mr_serving *const *models, uint32_t count) {
    mr_models_set(front->models, models, count);
}

const char *mr_front_address(const mr_front *front) {
    return mr_http_address(front->http);
}

void mr_front_run(mr_front *front) {
    mr_http_run(front->http);
    mr_http_hang_up(front->http); /* whoever is left is not answered any more */
}

void mr_front_stop(mr_front *front) {
    const int before = atomic_fetch_add(&front->stops, 1);
    mr_http_stop(front->http, before > 0);
}

void mr_front_close(mr_front *front) {
    if (!front) return;
    drain_inbox(front);
    mr_http_close(front->http);
    mr_models_close(front->models);
    pthread_mutex_destroy(&front->lock);
    free(front);
}
