/* openai.c - see openai.h. Each field has one row in a table: what to do with it. */
#include "coordinator/openai.h"

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/openai_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { CONTAINERS_MAX = 65536, LOST_WAIT_MAX_MS = 600000 };

/* --- errors ----------------------------------------------------------------------------------- */

bool openai_refuse(mr_api_error *error, const char *param, const char *format, ...) {
    va_list args;
    char text[MR_ERR_TEXT_BYTES];
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    *error = (mr_api_error){.http = 400, .type = "invalid_request_error"};
    snprintf(error->param, sizeof(error->param), "%s", param);
    mr_fail(&error->message, MR_ERR_ARGUMENT, "%s", text);
    return false;
}

int mr_api_error_of(mr_api_error *out, mr_status status, const char *sentence) {
    *out = (mr_api_error){.http = 500, .type = "server_error"};
    mr_fail(&out->message, status, "%s", sentence);
    switch (status) {
    case MR_ERR_ARGUMENT: /* the others that sound like it are the worker's word on our frames */
        out->http = 400;
        out->type = "invalid_request_error";
        break;
    case MR_ERR_LIMIT:
        out->http = 429;
        out->type = "rate_limit_error";
        out->code = "queue_full";
        break;
    case MR_ERR_UNAVAILABLE:
    case MR_ERR_TIMEOUT:
    case MR_ERR_IO:
    case MR_ERR_CANCELLED:
        out->http = 503;
        out->type = "service_unavailable_error";
        break;
    default:
        break;
    }
    return out->http;
}

/* From a sentence that the JSON getters or the tokenizer worded. */
bool openai_refuse_as(mr_api_error *error, const char *param, const mr_err *err) {
    openai_refuse(error, param, "%s", err->text);
    if (strstr(err->text, "model's context has")) error->code = "context_length_exceeded";
    return false;
}

/* --- fields ----------------------------------------------------------------------------------- */

typedef enum {
    HONOURED,   /* read by its own function below */
    IGNORED,    /* known, and of no effect on the answer */
    ONLY_NULL,  /* refused unless null */
    ONLY_ZERO,  /* refused unless null or 0 */
    ONLY_ONE,   /* refused unless null or 1 */
    ONLY_FALSE, /* refused unless null or false */
    ONLY_EMPTY, /* refused unless null, {} or [] */
} rule;

typedef struct {
    const char *name;
    rule rule;
} field;

static const field common_fields[] = {
    {"model", HONOURED},
    {"max_tokens", HONOURED},
    {"temperature", HONOURED},
    {"top_p", HONOURED},
    {"top_k", HONOURED},
    {"min_p", HONOURED},
    {"n", HONOURED},
    {"seed", HONOURED},
    {"stop", HONOURED},
    {"stream", HONOURED},
    {"stream_options", HONOURED},
    {"logprobs", HONOURED},
    {"ignore_eos", HONOURED},
    {"stop_token_ids", HONOURED},
    {"memrack", HONOURED},
    {"user", IGNORED},
    {"frequency_penalty", ONLY_ZERO},
    {"presence_penalty", ONLY_ZERO},
    {"repetition_penalty", ONLY_ONE},
    {"logit_bias", ONLY_EMPTY},
    {"min_tokens", ONLY_ZERO},
    {"use_beam_search", ONLY_FALSE},
    {"length_penalty", ONLY_ONE},
    {"guided_json", ONLY_NULL},
    {"guided_regex", ONLY_NULL},
    {"guided_choice", ONLY_NULL},
    {"guided_grammar", ONLY_NULL},
    {"structured_outputs", ONLY_NULL},
    {"grammar", ONLY_NULL},
};
static const field completion_fields[] = {
    {"prompt", HONOURED},
    {"echo", HONOURED},
    {"best_of", HONOURED},
    {"suffix", HONOURED},
};
static const field chat_fields[] = {
    {"messages", HONOURED},
    {"max_completion_tokens", HONOURED},
    {"top_logprobs", HONOURED},
    {"response_format", HONOURED},
    {"tool_choice", HONOURED},
    {"modalities", HONOURED},
    {"tools", HONOURED},
    {"documents", HONOURED},
    {"chat_template_kwargs", HONOURED},
    {"add_generation_prompt", HONOURED},
    {"continue_final_message", HONOURED},
    {"chat_template", ONLY_NULL},
    {"functions", ONLY_EMPTY},
    {"function_call", ONLY_NULL},
    {"audio", ONLY_NULL},
    {"prediction", ONLY_NULL},
    {"reasoning_effort", ONLY_NULL},
    {"verbosity", ONLY_NULL},
    {"web_search_options", ONLY_NULL},
    {"store", ONLY_FALSE},
    {"metadata", IGNORED},
    {"parallel_tool_calls", IGNORED},
    {"service_tier", IGNORED},
    {"prompt_cache_key", IGNORED},
    {"safety_identifier", IGNORED},
};

static const field *find_field(const field *fields, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(fields[i].name, name) == 0) return &fields[i];
    return NULL;
}

#define COUNT(fields) (sizeof(fields) / sizeof((fields)[0]))

static bool obeys(rule r, const json_t *value) {
    switch (r) {
    case ONLY_NULL:
        return false;
    case ONLY_ZERO:
        return json_is_number(value) && json_number_value(value) == 0;
    case ONLY_ONE:
        return json_is_number(value) && json_number_value(value) == 1;
    case ONLY_FALSE:
        return json_is_false(value);
    case ONLY_EMPTY:
        return (json_is_object(value) && json_object_size(value) == 0) ||
               (json_is_array(value) && json_array_size(value) == 0);
    default:
        return true;
    }
}

/* Names come from clients: only printable ASCII of them is kept. */
static void keep_name(char out[MR_FIELD_NAME_BYTES], const char *name) {
    size_t i = 0;
    for (; name[i] && i + 1 < MR_FIELD_NAME_BYTES; i++)
        out[i] =
            name[i] > 0x20 && name[i] < 0x7f && name[i] != '"' && name[i] != '\\' ? name[i] : '?';
    out[i] = '\0';
}

static bool check_fields(mr_api_call *call, const json_t *root, mr_api_error *error) {
    const char *name;
    json_t *value;
    const field *own = call->is_chat ? chat_fields : completion_fields;
    const size_t own_count = call->is_chat ? COUNT(chat_fields) : COUNT(completion_fields);
    json_object_foreach((json_t *)(uintptr_t)root, name, value) {
        const field *f = find_field(common_fields, COUNT(common_fields), name);
        if (!f) f = find_field(own, own_count, name);
        if (!f) {
            keep_name(call->unknown_name, name);
            call->unknown_fields++;
        } else if (!json_is_null(value) && !obeys(f->rule, value))
            return openai_refuse(error, name, "%s is not supported by this server", name);
    }
    return true;
}

/* --- numbers ---------------------------------------------------------------------------------- */

static bool read_int(int64_t *out, const json_t *root, const char *name, int64_t min, int64_t max,
                     mr_api_error *error) {
    mr_err err;
    return mr_json_int(out, root, name, min, max, &err) == MR_OK ||
           openai_refuse_as(error, name, &err);
}

static bool read_float(float *out, const json_t *root, const char *name, double max,
                       mr_api_error *error) {
    mr_err err;
    double value = (double)*out;
    if (mr_json_double(&value, root, name, 0, max, &err) != MR_OK)
        return openai_refuse_as(error, name, &err);
    *out = (float)value;
    return true;
}

static bool read_bool(bool *out, const json_t *root, const char *name, mr_api_error *error) {
    mr_err err;
    return mr_json_bool(out, root, name, &err) == MR_OK || openai_refuse_as(error, name, &err);
}

static bool read_length(mr_api_call *call, const mr_served *served, const json_t *root,
                        mr_api_error *error) {
    /* Chat answers end by themselves; completions often do not, so OpenAI gives them 16 tokens. */
    int64_t limit = call->is_chat ? served->context_tokens : 16, other = 0;
    if (!read_int(&limit, root, "max_tokens", 1, MR_MAX_CONTEXT, error)) return false;
    if (call->is_chat && !read_int(&other, root, "max_completion_tokens", 1, MR_MAX_CONTEXT, error))
        return false;
    call->request->new_tokens = (uint32_t)(other > 0 ? other : limit);
    return true;
}

static bool read_choices(mr_api_call *call, const json_t *root, mr_api_error *error) {
    int64_t n = 1, best_of = 0;
    if (!read_int(&n, root, "n", 1, MR_MAX_CHOICES, error)) return false;
    if (!call->is_chat && !read_int(&best_of, root, "best_of", 1, MR_MAX_CHOICES, error))
        return false;
    if (best_of > 0 && best_of != n)
        return openai_refuse(error, "best_of",
                             "best_of is %lld and n is %lld: only equal ones are supported",
                             (long long)best_of, (long long)n);
    call->request->choices = (uint32_t)n;
    return true;
}

static bool read_logprobs(mr_api_call *call, const json_t *root, mr_api_error *error) {
    int64_t top = -1;
    if (!call->is_chat) {
        if (!read_int(&top, root, "logprobs", 0, MR_MAX_LOGPROBS, error)) return false;
        call->logprobs = top >= 0;
    } else {
        if (!read_bool(&call->logprobs, root, "logprobs", error) ||
            !read_int(&top, root, "top_logprobs", 0, MR_MAX_LOGPROBS, error))
            return false;
        if (top > 0 && !call->logprobs)
            return openai_refuse(error, "top_logprobs",
                                 "top_logprobs is set, but logprobs is not true");
    }
    call->request->logprobs = call->logprobs;
    call->request->top_logprobs = top > 0 ? (uint32_t)top : 0;
    return true;
}

static bool read_sampling(mr_api_call *call, const mr_served *served, const json_t *root,
                          mr_api_error *error) {
    mr_request *r = call->request;
    int64_t top_k = served->top_k, seed = 0;
    r->temperature = (float)served->temperature;
    r->top_p = (float)served->top_p;
    if (!read_float(&r->temperature, root, "temperature", 2, error) ||
        !read_float(&r->top_p, root, "top_p", 1, error) ||
        !read_float(&r->min_p, root, "min_p", 1, error) ||
        !read_int(&top_k, root, "top_k", -1, MR_MAX_VOCAB, error))
        return false;
    r->top_k = top_k > 0 ? (uint32_t)top_k : 0; /* -1 and 0: all */
    const json_t *given = json_object_get(root, "seed");
    if (!given || json_is_null(given)) {
        const ssize_t got = getrandom(&r->seed, sizeof(r->seed), GRND_NONBLOCK);
        (void)got;
        return true;
    }
    if (!read_int(&seed, root, "seed", INT64_MIN, INT64_MAX, error)) return false;
    r->seed = (uint64_t)seed;
    return true;
}

/* --- stops ------------------------------------------------------------------------------------ */

static bool read_stop_strings(mr_api_call *call, const json_t *root, mr_api_error *error) {
    const json_t *stop = json_object_get(root, "stop");
    const char *strings[MR_MAX_STOP_STRINGS];
    size_t bytes[MR_MAX_STOP_STRINGS];
    if (!stop || json_is_null(stop)) return true;
    const bool is_one = json_is_string(stop);
    const size_t count = is_one ? 1 : json_array_size(stop);
    if (!is_one && !json_is_array(stop))
        return openai_refuse(error, "stop", "stop must be a string or an array of strings, not %s",
                             mr_json_type_name(stop));
    if (count > MR_MAX_STOP_STRINGS)
        return openai_refuse(error, "stop", "stop has %zu strings; at most %d are taken", count,
                             MR_MAX_STOP_STRINGS);
    for (size_t i = 0; i < count; i++) {
        const json_t *one = is_one ? stop : json_array_get(stop, i);
        strings[i] = json_string_value(one);
        bytes[i] = json_string_length(one);
        if (!strings[i])
            return openai_refuse(error, "stop", "stop[%zu] must be a string, not %s", i,
                                 mr_json_type_name(one));
        if (bytes[i] == 0 || bytes[i] > MR_MAX_STOP_BYTES)
            return openai_refuse(error, "stop", "stop[%zu] has %zu bytes; 1 to %d are taken", i,
                                 bytes[i], MR_MAX_STOP_BYTES);
    }
    if (count > 0) call->request->stops = mr_stop_set_open(strings, bytes, (uint32_t)count);
    return true;
}

static bool read_stop_ids(mr_api_call *call, const mr_served *served, const json_t *root,
                          mr_api_error *error) {
    mr_request *r = call->request;
    bool ignore_eos = false;
    const json_t *ids = json_object_get(root, "stop_token_ids");
    size_t i;
    json_t *id;
    if (!read_bool(&ignore_eos, root, "ignore_eos", error)) return false;
    for (uint32_t k = 0; !ignore_eos && k < served->stop_id_count; k++)
        r->stop_ids[r->stop_id_count++] = served->stop_ids[k];
    if (!ids || json_is_null(ids)) return true;
    if (!json_is_array(ids))
        return openai_refuse(error, "stop_token_ids", "stop_token_ids must be an array, not %s",
                             mr_json_type_name(ids));
    json_array_foreach(ids, i, id) {
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= (json_int_t)served->vocab_size)
            return openai_refuse(error, "stop_token_ids",
                                 "stop_token_ids[%zu] is not a token of this vocabulary", i);
        if (r->stop_id_count == MR_MAX_STOP_IDS)
            return openai_refuse(error, "stop_token_ids", "more than %d stop tokens",
                                 MR_MAX_STOP_IDS);
        r->stop_ids[r->stop_id_count++] = (int32_t)value;
    }
    return true;
}

/* --- the rest --------------------------------------------------------------------------------- */

/* Puts the model's active version into the request, which keeps it. */
static bool read_model(mr_api_call *call, mr_models *models, const json_t *root,
                       mr_api_error *error) {
    mr_serving *all[MR_MAX_MODELS];
    const json_t *model = json_object_get(root, "model");
    const char *name = json_string_value(model);
    if (!json_is_object(root))
        return openai_refuse(error, "", "the body must be a JSON object, not %s",
                             mr_json_type_name(root));
    if (model && !json_is_null(model) && !name)
        return openai_refuse(error, "model", "model must be a string, not %s",
                             mr_json_type_name(model));
    call->request->model = mr_models_find(models, name);
    if (call->request->model) return true;
    const uint32_t count = mr_models_list(models, all);
    const bool is_unsaid = !name && count > 0;
    const char *only = count == 1 ? all[0]->name : NULL;
    if (is_unsaid)
        openai_refuse(error, "model", "model must name one of the %u models here", count);
    else if (only)
        openai_refuse(error, "model", "the model '%.100s' does not exist; this server has '%.100s'",
                      name, only);
    else
        openai_refuse(error, "model", "the model '%.100s' does not exist; /v1/models lists %u",
                      name ? name : "", count);
    for (uint32_t i = 0; i < count; i++) mr_serving_release(all[i]);
    if (is_unsaid) return false;
    error->http = 404;
    error->code = "model_not_found";
    return false;
}

/* memrack: {"on_lost_partition": "fail" | "wait" | "degrade", "wait_ms": N, "speculate": N}. */
static bool read_memrack(mr_api_call *call, const json_t *root, mr_api_error *error) {
    static const char *const policies[] = {"", "fail", "wait", "degrade"};
    mr_request *r = call->request;
    json_t *own = json_object_get(root, "memrack"), *value;
    const char *name;
    int64_t wait_ms = -1, speculate = -1;
    if (!own || json_is_null(own)) return true;
    if (!json_is_object(own))
        return openai_refuse(error, "memrack", "memrack must be an object, not %s",
                             mr_json_type_name(own));
    json_object_foreach(own, name, value) {
        if (strcmp(name, "on_lost_partition") == 0) {
            for (int i = MR_LOST_FAIL; i <= MR_LOST_DEGRADE; i++)
                if (json_is_string(value) && strcmp(json_string_value(value), policies[i]) == 0)
                    r->lost = (mr_lost_policy)i;
            if (r->lost == MR_LOST_DEFAULT)
                return openai_refuse(error, "memrack.on_lost_partition",
                                     "memrack.on_lost_partition must be \"fail\", \"wait\" or "
                                     "\"degrade\"");
        } else if (strcmp(name, "wait_ms") != 0 && strcmp(name, "speculate") != 0)
            return openai_refuse(error, "memrack",
                                 "memrack has on_lost_partition, wait_ms and speculate, and "
                                 "nothing else");
    }
    if (!read_int(&speculate, own, "speculate", 0, MR_MAX_DRAFT_TOKENS, error)) return false;
    r->has_speculate = call->tells_speculation = speculate >= 0;
    r->speculate = speculate >= 0 ? (uint32_t)speculate : 0;
    if (!read_int(&wait_ms, own, "wait_ms", 0, LOST_WAIT_MAX_MS, error)) return false;
    if (wait_ms >= 0 && r->lost == MR_LOST_FAIL)
        return openai_refuse(error, "memrack.wait_ms",
                             "memrack.wait_ms is set, but on_lost_partition is \"fail\"");
    r->has_lost_wait = wait_ms >= 0;
    r->lost_wait_ms = wait_ms >= 0 ? (uint32_t)wait_ms : 0;
    return true;
}

static bool read_stream(mr_api_call *call, const json_t *root, mr_api_error *error) {
    const json_t *options = json_object_get(root, "stream_options");
    if (!read_bool(&call->is_stream, root, "stream", error)) return false;
    if (!options || json_is_null(options)) return true;
    if (!json_is_object(options))
        return openai_refuse(error, "stream_options", "stream_options must be an object, not %s",
                             mr_json_type_name(options));
    if (!call->is_stream)
        return openai_refuse(error, "stream_options",
                             "stream_options is set, but stream is not true");
    return read_bool(&call->include_usage, options, "include_usage", error);
}

/* A word of `value` that must be one of two for us to honour it. */
static bool allow_word(const json_t *value, const char *word) {
    return !value || json_is_null(value) ||
           (json_is_string(value) && strcmp(json_string_value(value), word) == 0);
}

static bool check_chat_only(const json_t *root, mr_api_error *error) {
    const json_t *format = json_object_get(root, "response_format");
    const json_t *modalities = json_object_get(root, "modalities");
    if (format && !json_is_null(format) &&
        (!json_is_object(format) || !json_object_get(format, "type") ||
         !allow_word(json_object_get(format, "type"), "text")))
        return openai_refuse(error, "response_format", "response_format is supported as text only");
    const json_t *choice = json_object_get(root, "tool_choice");
    if (!allow_word(choice, "none") && !allow_word(choice, "auto"))
        return openai_refuse(error, "tool_choice",
                             "tool_choice is supported as \"none\" and \"auto\" only: answers are "
                             "not forced into calls");
    if (modalities && !json_is_null(modalities) &&
        (json_array_size(modalities) != 1 || !allow_word(json_array_get(modalities, 0), "text")))
        return openai_refuse(error, "modalities", "modalities is supported as [\"text\"] only");
    return true;
}

static bool check_completion_only(mr_api_call *call, const json_t *root, mr_api_error *error) {
    const json_t *suffix = json_object_get(root, "suffix");
    if (suffix && !json_is_null(suffix) &&
        !(json_is_string(suffix) && json_string_length(suffix) == 0))
        return openai_refuse(error, "suffix", "suffix is not supported by this server");
    if (!read_bool(&call->echo, root, "echo", error)) return false;
    if (call->echo && call->logprobs)
        return openai_refuse(error, "echo", "echo together with logprobs is not supported");
    return true;
}

/* The whole answer, if it is not streamed, must fit. A rough bound: 16 bytes of JSON a token, and
 * 80 for each log probability. */
static bool check_size(const mr_api_call *call, const mr_served *served, mr_api_error *error) {
    const mr_request *r = call->request;
    const uint64_t answers = (uint64_t)r->prompt_count * r->choices;
    const uint64_t tokens =
        r->new_tokens < served->context_tokens ? r->new_tokens : served->context_tokens;
    const uint64_t each = 16 + (call->logprobs ? 80u + 80u * r->top_logprobs : 0);
    if (answers > MR_MAX_REQUEST_SEQUENCES)
        return openai_refuse(error, "n", "%u prompts with n = %u are %llu answers; at most %d",
                             r->prompt_count, r->choices, (unsigned long long)answers,
                             MR_MAX_REQUEST_SEQUENCES);
    if (!call->is_stream && answers * tokens * each > MR_MAX_REPLY_BYTES)
        return openai_refuse(error, "max_tokens",
                             "the answer could be larger than %d MiB: stream it, or ask for less",
                             MR_MAX_REPLY_BYTES >> 20);
    return true;
}

static bool read_all(mr_api_call *call, mr_models *models, const json_t *root,
                     mr_api_error *error) {
    if (!read_model(call, models, root, error)) return false;
    const mr_served *served = call->request->model->served;
    return check_fields(call, root, error) && read_memrack(call, root, error) &&
           read_stream(call, root, error) && read_choices(call, root, error) &&
           read_length(call, served, root, error) && read_sampling(call, served, root, error) &&
           read_logprobs(call, root, error) && read_stop_strings(call, root, error) &&
           read_stop_ids(call, served, root, error) &&
           (call->is_chat ? check_chat_only(root, error)
                          : check_completion_only(call, root, error)) &&
           (call->is_chat ? openai_read_messages(call, served, root, error)
                          : openai_read_prompt(call, served, root, error)) &&
           check_size(call, served, error);
}

/* jansson spends some 150 bytes on the smallest array: a body of brackets would become a gigabyte.
 */
static bool parse_body(json_t **out, const char *body, size_t bytes, mr_api_error *error) {
    mr_err err;
    size_t containers = 0;
    bool in_string = false;
    *out = NULL;
    for (size_t i = 0; i < bytes; i++) {
        if (in_string && body[i] == '\\')
            i++;
        else if (body[i] == '"')
            in_string = !in_string;
        else if (!in_string && (body[i] == '{' || body[i] == '['))
            containers++;
    }
    if (containers > CONTAINERS_MAX)
        return openai_refuse(error, "", "the body has %zu arrays and objects; at most %d",
                             containers, CONTAINERS_MAX);
    return mr_json_parse(out, body, bytes, "the body", &err) == MR_OK ||
           openai_refuse_as(error, "", &err);
}

bool mr_openai_parse(mr_api_call *out, mr_models *models, bool is_chat, const char *body,
                     size_t bytes, mr_api_error *error) {
    json_t *root;
    *out = (mr_api_call){.is_chat = is_chat, .request = mr_request_new()};
    out->request->continues = !is_chat;
    const bool good = parse_body(&root, body, bytes, error) && read_all(out, models, root, error);
    json_decref(root);
    if (!good) mr_api_call_free(out);
    return good;
}

static bool read_logits(mr_api_call *call, mr_models *models, const json_t *root,
                        mr_api_error *error) {
    int64_t chunk = 0, single = 0;
    call->request->logits = true;
    if (!read_model(call, models, root, error)) return false;
    const mr_served *served = call->request->model->served;
    if (!read_int(&chunk, root, "prefill_chunk", 0, MR_MAX_CONTEXT, error) ||
        !read_int(&single, root, "decode_from", 0, MR_MAX_CONTEXT, error))
        return false;
    call->request->chunk_tokens = (uint32_t)chunk;
    call->request->single_from = (uint32_t)single;
    return openai_read_rows(call, served, json_object_get(root, "input_ids"), error);
}

bool mr_logits_parse(mr_api_call *out, mr_models *models, const char *body, size_t bytes,
                     mr_api_error *error) {
    json_t *root;
    *out = (mr_api_call){.request = mr_request_new()};
    const bool good =
        parse_body(&root, body, bytes, error) && read_logits(out, models, root, error);
    json_decref(root);
    if (!good) mr_api_call_free(out);
    return good;
}

void mr_api_call_free(mr_api_call *call) {
    for (uint32_t i = 0; call->prompt_text && i < call->prompt_count; i++)
        mr_text_free(&call->prompt_text[i]);
    free(call->prompt_text);
    mr_request_free(call->request);
    *call = (mr_api_call){0};
}
