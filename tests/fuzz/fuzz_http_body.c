/* fuzz_http_body.c - any bytes as a request: head, chunked body, and the bodies of all endpoints.
 *
 * The first byte chooses. 'h': an HTTP head, and what follows it as a chunked body, read whole and
 * in pieces, which must agree. 'c', 't', 'l' (and anything else): the body of completions, chat or
 * logits. A request that is taken must be one the core can run; a refusal must have a sentence. */
#include "common/base/mem.h"
#include "coordinator/http_parse.h"
#include "coordinator/openai_reply.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static mr_served served;
static mr_models *models;

static void open_served(void) {
    static const char json[] =
        "{\"added_tokens\":[{\"id\":4,\"content\":\"<|end|>\",\"special\":true}],"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"model\":{"
        "\"vocab\":"
        "{\"a\":0,\"b\":1,\"ab\":2,\"?\":3},\"merges\":[\"a b\"],\"unk_token\":\"?\"}}";
    if (mr_tokenizer_parse(&served.tokenizer, json, sizeof(json) - 1, "fixed", NULL) != MR_OK)
        abort();
    served.chat = mr_chat_template_of(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
        "'<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}");
    served.name = mr_strdup("m");
    served.context_tokens = 64;
    served.vocab_size = 5;
    served.temperature = served.top_p = 1;
    mr_serving *serving = mr_serving_borrow(&served);
    models = mr_models_open();
    mr_models_set(models, &serving, 1);
    mr_serving_release(serving);
}

static void check_request(const mr_api_call *call) {
    const mr_request *r = call->request;
    size_t total = 0;
    assert(r->prompt_count >= 1 && r->choices >= 1 && r->new_tokens >= 1);
    assert(r->prompt_count * r->choices <= MR_MAX_REQUEST_SEQUENCES);
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        assert(r->prompt_tokens[i] >= 1 && r->prompt_tokens[i] <= served.context_tokens);
        total += r->prompt_tokens[i];
    }
    assert(total == r->tokens.count);
    for (size_t i = 0; i < total; i++) assert(r->tokens.items[i] >= 0 && r->tokens.items[i] < 5);
    assert(r->temperature >= 0 && r->temperature <= 2 && r->top_p >= 0 && r->top_p <= 1);
    assert(r->top_logprobs <= MR_MAX_LOGPROBS && r->stop_id_count <= MR_MAX_STOP_IDS);
}

static void check_error(const mr_api_error *error) {
    mr_text json = {0};
    json_t *root;
    assert(error->http >= 400 && error->http < 500 && error->message.text[0]);
    mr_reply_error(&json, error);
    if (!(root = json_loadb(json.data, json.bytes, 0, NULL))) abort();
    json_decref(root);
    mr_text_free(&json);
}

static void read_chunks(const char *data, size_t bytes, size_t step, mr_text *out, int *state) {
    mr_http_chunks chunks = {0};
    for (size_t at = 0; at < bytes;) {
        const char *piece;
        size_t piece_bytes;
        const size_t have = bytes - at < step ? bytes - at : step;
        const size_t used = mr_http_read_chunk(&chunks, data + at, have, &piece, &piece_bytes);
        assert(used <= have && piece_bytes <= used);
        mr_text_add(out, piece, piece_bytes);
        at += used;
        if (chunks.state == MR_CHUNK_DONE || chunks.state == MR_CHUNK_BAD) break;
        assert(used > 0);
    }
    *state = (int)chunks.state;
}

static void parse_http(const char *data, size_t bytes) {
    mr_http_head head;
    size_t head_bytes;
    const char *reason;
    int whole_state, cut_state;
    const int code = mr_http_parse_head(&head, data, bytes, &head_bytes, &reason);
    assert(code == 0 || code == 200 || (code >= 400 && code < 600 && *reason));
    if (code != 200) return;
    assert(head_bytes <= bytes && strlen(head.path) < MR_HTTP_PATH_BYTES && head.path[0]);
    mr_text whole = {0}, cut = {0};
    read_chunks(data + head_bytes, bytes - head_bytes, SIZE_MAX, &whole, &whole_state);
    read_chunks(data + head_bytes, bytes - head_bytes, 1, &cut, &cut_state);
    assert(whole_state == cut_state && whole.bytes == cut.bytes);
    assert(memcmp(mr_text_string(&whole), mr_text_string(&cut), cut.bytes) == 0);
    mr_text_free(&whole);
    mr_text_free(&cut);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    mr_api_call call;
    mr_api_error error;
    if (!served.tokenizer) open_served();
    if (bytes == 0) return 0;
    const char *body = (const char *)data + 1;
    if (data[0] == 'h') {
        parse_http(body, bytes - 1);
        return 0;
    }
    const bool good = data[0] == 'l'
                          ? mr_logits_parse(&call, models, body, bytes - 1, &error)
                          : mr_openai_parse(&call, models, data[0] == 't', body, bytes - 1, &error);
    if (!good) {
        check_error(&error);
        return 0;
    }
    check_request(&call);
    mr_api_call_free(&call);
    return 0;
}
