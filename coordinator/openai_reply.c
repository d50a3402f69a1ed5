/* openai_reply.c - see openai_reply.h. */
#include "coordinator/openai_reply.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static const char degraded_mark[] = ",\"memrack\":{\"degraded\":true}";

void mr_reply_string(mr_text *out, const char *text, size_t bytes) {
    size_t plain = 0;
    mr_text_add(out, "\"", 1);
    for (size_t i = 0; i < bytes; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) continue;
        mr_text_add(out, text + plain, i - plain);
        plain = i + 1;
        if (c == '\n')
            mr_text_add(out, "\\n", 2);
        else if (c == '"' || c == '\\')
            mr_text_format(out, "\\%c", c);
        else
            mr_text_format(out, "\\u%04x", c);
    }
    mr_text_add(out, text + plain, bytes - plain);
    mr_text_add(out, "\"", 1);
}

static void add_name(mr_text *out, const char *text) {
    mr_reply_string(out, text, strlen(text));
}

void mr_reply_head_init(mr_reply_head *out, const mr_serving *model, const mr_api_call *call) {
    uint8_t random[12] = {0};
    const ssize_t got = getrandom(random, sizeof(random), GRND_NONBLOCK);
    (void)got;
    *out = (mr_reply_head){.model = model,
                           .created = (int64_t)time(NULL),
                           .is_chat = call->is_chat,
                           .is_stream = call->is_stream,
                           .include_usage = call->include_usage,
                           .logprobs = call->logprobs,
                           .tells_speculation = call->tells_speculation};
    int at = snprintf(out->id, sizeof(out->id), "%s", call->is_chat ? "chatcmpl-" : "cmpl-");
    for (size_t i = 0; i < sizeof(random); i++)
        at += snprintf(out->id + at, sizeof(out->id) - (size_t)at, "%02x", random[i]);
}

static void begin(mr_text *out, const mr_reply_head *head) {
    const char *object = !head->is_chat    ? "text_completion"
                         : head->is_stream ? "chat.completion.chunk"
                                           : "chat.completion";
    mr_text_format(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", head->id,
                   object, (long long)head->created);
    add_name(out, head->model->name);
    mr_text_add_string(out, ",\"choices\":[");
}

static void add_own_usage(mr_text *out, const mr_reply_head *head, const mr_reply_figures *f) {
    const mr_speculation *s = &f->speculation;
    if (!head->tells_speculation) {
        if (f->is_degraded) mr_text_add_string(out, degraded_mark);
        return;
    }
    mr_text_format(out,
                   ",\"memrack\":{%s\"speculation\":{\"steps\":%llu,\"drafted_tokens\":%llu,"
                   "\"accepted_tokens\":%llu}}",
                   f->is_degraded ? "\"degraded\":true," : "", (unsigned long long)s->steps,
                   (unsigned long long)s->drafted, (unsigned long long)s->accepted);
}

static void add_usage(mr_text *out, const mr_reply_head *head, const mr_reply_figures *f) {
    mr_text_format(out,
                   "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
                   (unsigned long long)f->prompt_tokens, (unsigned long long)f->generated_tokens,
                   (unsigned long long)(f->prompt_tokens + f->generated_tokens),
                   (unsigned long long)f->cached_tokens);
    add_own_usage(out, head, f);
}

static void add_finish(mr_text *out, mr_finish finish) {
    static const char *const names[] = {"null", "\"stop\"", "\"length\""};
    mr_text_format(out, "\"finish_reason\":%s", names[finish]);
}

/* --- log probabilities ------------------------------------------------------------------------ */

static void add_logprob(mr_text *out, float logprob) {
    mr_text_format(out, "%.9g", isfinite(logprob) ? (double)logprob : -9999.0);
}

static void add_token(mr_text *out, const mr_served *served, int32_t token) {
    size_t bytes = 0;
    const char *text =
        served->tokenizer ? mr_tokenizer_bytes(served->tokenizer, token, &bytes) : "";
    if (mr_utf8_valid(text, bytes)) {
        mr_reply_string(out, text, bytes);
        return;
    }
    mr_text_add_string(out, "\"bytes:");
    for (size_t i = 0; i < bytes; i++) mr_text_format(out, "\\\\x%02x", (unsigned)(uint8_t)text[i]);
    mr_text_add(out, "\"", 1);
}

static void add_bytes(mr_text *out, const mr_served *served, int32_t token) {
    size_t bytes = 0;
    const char *text =
        served->tokenizer ? mr_tokenizer_bytes(served->tokenizer, token, &bytes) : "";
    mr_text_add(out, "[", 1);
    for (size_t i = 0; i < bytes; i++)
        mr_text_format(out, "%s%u", i ? "," : "", (unsigned)(uint8_t)text[i]);
    mr_text_add(out, "]", 1);
}

static void add_chat_token(mr_text *out, const mr_served *served, int32_t token, float logprob) {
    mr_text_add_string(out, "{\"token\":");
    add_token(out, served, token);
    mr_text_add_string(out, ",\"logprob\":");
    add_logprob(out, logprob);
    mr_text_add_string(out, ",\"bytes\":");
    add_bytes(out, served, token);
}

static void add_chat_logprobs(mr_text *out, const mr_served *served, const mr_token_entry *entries,
                              uint32_t count) {
    mr_text_add_string(out, "{\"content\":[");
    for (uint32_t i = 0; i < count; i++) {
        const mr_token_entry *e = &entries[i];
        if (i) mr_text_add(out, ",", 1);
        add_chat_token(out, served, e->token, e->logprob);
        mr_text_add_string(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < e->top_count; k++) {
            if (k) mr_text_add(out, ",", 1);
            add_chat_token(out, served, e->top[k].token, e->top[k].logprob);
            mr_text_add(out, "}", 1);
        }
        mr_text_add_string(out, "]}");
    }
    mr_text_add_string(out, "],\"refusal\":null}");
}

static void add_top(mr_text *out, const mr_served *served, const mr_token_entry *e) {
    mr_text_add(out, "{", 1);
    for (uint32_t k = 0; k < e->top_count; k++) {
        if (k) mr_text_add(out, ",", 1);
        add_token(out, served, e->top[k].token);
        mr_text_add(out, ":", 1);
        add_logprob(out, e->top[k].logprob);
    }
    mr_text_add(out, "}", 1);
}

static void add_completion_logprobs(mr_text *out, const mr_served *served,
                                    const mr_token_entry *entries, uint32_t count) {
    static const char *const names[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset"};
    for (int list = 0; list < 4; list++) {
        mr_text_format(out, "%s\"%s\":[", list ? "," : "{", names[list]);
        for (uint32_t i = 0; i < count; i++) {
            const mr_token_entry *e = &entries[i];
            if (i) mr_text_add(out, ",", 1);
            if (list == 0)
                add_token(out, served, e->token);
            else if (list == 1)
                add_logprob(out, e->logprob);
            else if (list == 2)
                add_top(out, served, e);
            else
                mr_text_format(out, "%llu", (unsigned long long)e->text_offset);
        }
        mr_text_add(out, "]", 1);
    }
    mr_text_add(out, "}", 1);
}

static void add_logprobs(mr_text *out, const mr_reply_head *head, const mr_token_entry *entries,
                         uint32_t count) {
    mr_text_add_string(out, "\"logprobs\":");
    if (!head->logprobs)
        mr_text_add_string(out, "null");
    else if (head->is_chat)
        add_chat_logprobs(out, head->model->served, entries, count);
    else
        add_completion_logprobs(out, head->model->served, entries, count);
    mr_text_add(out, ",", 1);
}

/* --- answers ---------------------------------------------------------------------------------- */

void mr_reply_whole(mr_text *out, const mr_reply_head *head, const mr_reply_answer *answers,
                    uint32_t count, const mr_reply_figures *figures) {
    begin(out, head);
    for (uint32_t i = 0; i < count; i++) {
        const mr_reply_answer *a = &answers[i];
        mr_text_format(out, "%s{\"index\":%u,%s", i ? "," : "", i,
                       head->is_chat ? "\"message\":{\"role\":\"assistant\",\"content\":"
                                     : "\"text\":");
        mr_reply_string(out, mr_text_string(&a->text), a->text.bytes);
        mr_text_add_string(out, head->is_chat ? ",\"refusal\":null}," : ",");
        add_logprobs(out, head, a->entries, a->entry_count);
        add_finish(out, a->finish);
        mr_text_add(out, "}", 1);
    }
    mr_text_add_string(out, "],\"usage\":");
    add_usage(out, head, figures);
    mr_text_add(out, "}", 1);
}

static void begin_chunk(mr_text *out, const mr_reply_head *head) {
    mr_text_add_string(out, "data: ");
    begin(out, head);
}

static void end_chunk(mr_text *out, const mr_reply_head *head, bool is_degraded) {
    mr_text_add_string(out, head->include_usage ? "],\"usage\":null" : "]");
    if (is_degraded) mr_text_add_string(out, degraded_mark);
    mr_text_add_string(out, "}\n\n");
}

void mr_reply_role(mr_text *out, const mr_reply_head *head, uint32_t answer) {
    begin_chunk(out, head);
    mr_text_format(out,
                   "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                   "\"logprobs\":null,\"finish_reason\":null}",
                   answer);
    end_chunk(out, head, false);
}

void mr_reply_part(mr_text *out, const mr_reply_head *head, uint32_t answer, const char *text,
                   size_t bytes, const mr_token_entry *entries, uint32_t entry_count,
                   mr_finish finish, bool is_degraded) {
    begin_chunk(out, head);
    mr_text_format(out, "{\"index\":%u,", answer);
    if (!head->is_chat) {
        mr_text_add_string(out, "\"text\":");
        mr_reply_string(out, text, bytes);
    } else if (bytes > 0 || finish == MR_FINISH_NONE) {
        mr_text_add_string(out, "\"delta\":{\"content\":");
        mr_reply_string(out, text, bytes);
        mr_text_add(out, "}", 1);
    } else
        mr_text_add_string(out, "\"delta\":{}");
    mr_text_add(out, ",", 1);
    if (entry_count > 0)
        add_logprobs(out, head, entries, entry_count);
    else
        mr_text_add_string(out, "\"logprobs\":null,");
    add_finish(out, finish);
    mr_text_add(out, "}", 1);
    end_chunk(out, head, is_degraded && finish != MR_FINISH_NONE);
}

void mr_reply_usage(mr_text *out, const mr_reply_head *head, const mr_reply_figures *figures) {
    begin_chunk(out, head);
    mr_text_add_string(out, "],\"usage\":");
    add_usage(out, head, figures);
    mr_text_add_string(out, "}\n\n");
}

void mr_reply_error(mr_text *out, const mr_api_error *error) {
    const char *text = error->message.text;
    mr_text lossy = {0};
    mr_detokenizer state = {0}; /* a sentence may quote, or be cut, in the middle of a character */
    mr_detokenizer_push(&state, text, strlen(text), &lossy);
    mr_detokenizer_finish(&state, &lossy);
    mr_text_add_string(out, "{\"error\":{\"message\":");
    mr_reply_string(out, mr_text_string(&lossy), lossy.bytes);
    mr_text_format(out, ",\"type\":\"%s\",\"param\":", error->type);
    if (error->param[0])
        add_name(out, error->param);
    else
        mr_text_add_string(out, "null");
    mr_text_add_string(out, ",\"code\":");
    if (error->code)
        add_name(out, error->code);
    else
        mr_text_add_string(out, "null");
    mr_text_add_string(out, "}}");
    mr_text_free(&lossy);
}

void mr_reply_model(mr_text *out, const mr_serving *model) {
    mr_text_add_string(out, "{\"id\":");
    add_name(out, model->name);
    mr_text_format(out,
                   ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"memrack\","
                   "\"max_model_len\":%u}",
                   (long long)model->served->created, model->served->context_tokens);
}

void mr_reply_models(mr_text *out, mr_serving *const *models, uint32_t count) {
    mr_text_add_string(out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < count; i++) {
        if (i) mr_text_add(out, ",", 1);
        mr_reply_model(out, models[i]);
    }
    mr_text_add_string(out, "]}");
}
