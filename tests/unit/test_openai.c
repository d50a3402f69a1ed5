/* Goal: every documented field is honoured or refused by name; no body crashes the parsers.
 * Method: tables of bodies with a part of the sentence each gets; good bodies looked at inside;
 * replies parsed back with jansson. */
#include "common/base/json.h"
#include "coordinator/openai_reply.h"
#include "tests/unit/served_for_test.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static mr_served *served;
static mr_serving *serving;
static mr_models *models;

static int setup(void **state) {
    (void)state;
    served = served_for_test(512);
    serving = mr_serving_borrow(served);
    models = mr_models_open();
    mr_models_set(models, &serving, 1);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    mr_models_close(models);
    mr_serving_release(serving);
    mr_served_close(served);
    return 0;
}

typedef struct {
    const char *body, *sentence; /* sentence NULL: taken */
} row;

static void check_row(bool is_chat, const char *body, size_t bytes, const char *sentence) {
    mr_api_call call;
    mr_api_error error = {0};
    const bool good = mr_openai_parse(&call, models, is_chat, body, bytes, &error);
    if (good != (sentence == NULL))
        fail_msg("%.200s: %s", body, good ? "was taken" : error.message.text);
    if (good)
        mr_api_call_free(&call);
    else {
        if (!strstr(error.message.text, sentence))
            fail_msg("%.200s\n gives '%s', expected '%s'", body, error.message.text, sentence);
        assert_true(error.http == 400 || error.http == 404);
    }
}

static void check_rows(bool is_chat, const row *rows, size_t count) {
    for (size_t i = 0; i < count; i++)
        check_row(is_chat, rows[i].body, strlen(rows[i].body), rows[i].sentence);
}

static void test_bodies_that_are_no_request(void **state) {
    (void)state;
    static const row rows[] = {
        {"", "not valid JSON"},
        {"nonsense", "not valid JSON"},
        {"{\"prompt\":\"x\"", "not valid JSON"},
        {"{\"prompt\":\"x\"} trailing", "not valid JSON"},
        {"\xef\xbb\xbf{\"prompt\":\"x\"}", "not valid JSON"},
        {"[]", "must be a JSON object, not an array"},
        {"null", "not valid JSON"},
        {"7", "not valid JSON"},
        {"{\"prompt\":\"x\",\"prompt\":\"y\"}", "duplicate"},
        {"{\"prompt\":\"\\ud800\"}", "not valid JSON"},
        {"{\"prompt\":\"\\udc00x\"}", "not valid JSON"},
        {"{\"prompt\":\"\xff\"}", "not valid JSON"},
        {"{\"prompt\":\"\xc0\x80\"}", "not valid JSON"},
        {"{\"prompt\":\"\xe2\x82\"}", "not valid JSON"},
        {"{\"prompt\":\"x\",\"temperature\":NaN}", "not valid JSON"},
        {"{\"prompt\":\"x\",\"temperature\":1e999}", "not valid JSON"},
        {"{\"prompt\":\"x\",\"n\":99999999999999999999}", "not valid JSON"},
    };
    check_rows(false, rows, sizeof(rows) / sizeof(rows[0]));
}

static void test_prompts(void **state) {
    (void)state;
    static const row rows[] = {
        {"{}", "prompt is missing"},
        {"{\"prompt\":null}", "prompt is missing"},
        {"{\"prompt\":\"\"}", "the prompt is empty"},
        {"{\"prompt\":[]}", "the prompt is empty"},
        {"{\"prompt\":[\"a\",\"\"]}", "the prompt is empty"},
        {"{\"prompt\":[[]]}", "prompt[0] has no tokens"},
        {"{\"prompt\":7}", "prompt must be a string or an array, not an integer"},
        {"{\"prompt\":{}}", "not an object"},
        {"{\"prompt\":[\"a\",7]}", "prompt[1] must be a string or an array of token ids"},
        {"{\"prompt\":[1,\"a\"]}", "prompt[0][1] must be a token id, not a string"},
        {"{\"prompt\":[1,2.0]}", "must be a token id"},
        {"{\"prompt\":[1,-1]}", "token -1, which is not in the vocabulary of 700"},
        {"{\"prompt\":[700]}", "token 700"},
        {"{\"prompt\":[[1],[9223372036854775807]]}", "prompt[1] has token 9223372036854775807"},
        {"{\"prompt\":\"x\"}", NULL},
        {"{\"prompt\":\"a\\u0000b\"}", NULL},
        {"{\"prompt\":[\"x\",\"y\"]}", NULL},
        {"{\"prompt\":[1,2,3]}", NULL},
        {"{\"prompt\":[[1],[2,3],\"text\"]}", NULL},
        {"{\"model\":\"test-model\",\"prompt\":\"x\",\"user\":\"u\"}", NULL},
        {"{\"model\":\"gpt-4\",\"prompt\":\"x\"}", "'gpt-4' does not exist"},
        {"{\"model\":7,\"prompt\":\"x\"}", "model must be a string"},
    };
    check_rows(false, rows, sizeof(rows) / sizeof(rows[0]));
}

static void test_numbers(void **state) {
    (void)state;
    static const char *const fields[] = {"n", "max_tokens", "top_k", "seed", "logprobs", "best_of"};
    /* -1, 0, 2^31, 2^63, 0.5, "5", null, [] : what each field says, '+' taken, '-' refused */
    static const char *const values[] = {"-1",  "0",     "2147483648", "9223372036854775808",
                                         "0.5", "\"5\"", "null",       "[]"};
    static const char *const verdicts[] = {"------+-", "------+-", "++----+-",
                                           "+++---+-", "-+----+-", "------+-"};
    for (size_t f = 0; f < 6; f++)
        for (size_t v = 0; v < 8; v++) {
            mr_api_call call;
            mr_api_error error;
            char *body = mr_format("{\"prompt\":\"x\",\"%s\":%s}", fields[f], values[v]);
            const bool good = mr_openai_parse(&call, models, false, body, strlen(body), &error);
            if (good != (verdicts[f][v] == '+')) fail_msg("%s: %d", body, good);
            if (good)
                mr_api_call_free(&call);
            else if (v != 3)
                assert_string_equal(error.param, fields[f]);
            free(body);
        }
    static const row rows[] = {
        {"{\"prompt\":\"x\",\"temperature\":-0.1}", "temperature is -0.1"},
        {"{\"prompt\":\"x\",\"temperature\":2.5}", "must lie in [0, 2]"},
        {"{\"prompt\":\"x\",\"temperature\":\"1\"}", "must be a number, not a string"},
        {"{\"prompt\":\"x\",\"temperature\":-0.0}", NULL},
        {"{\"prompt\":\"x\",\"top_p\":1.5}", "top_p is 1.5"},
        {"{\"prompt\":\"x\",\"min_p\":-1}", "min_p is -1"},
        {"{\"prompt\":\"x\",\"n\":129}", "n is 129"},
        {"{\"prompt\":[\"x\",\"y\",\"z\"],\"n\":128}", "384 answers"},
        {"{\"prompt\":\"x\",\"best_of\":2}", "best_of is 2 and n is 1"},
        {"{\"prompt\":\"x\",\"best_of\":2,\"n\":2}", NULL},
        {"{\"prompt\":\"x\",\"max_tokens\":4194305}", "max_tokens is 4194305"},
        {"{\"prompt\":\"x\",\"max_tokens\":4194304}", NULL},
        {"{\"prompt\":\"x\",\"n\":128,\"logprobs\":20,\"max_tokens\":10000}",
         "could be larger than 64 MiB"},
        {"{\"prompt\":\"x\",\"n\":128,\"logprobs\":20,\"max_tokens\":10000,\"stream\":true}", NULL},
    };
    check_rows(false, rows, sizeof(rows) / sizeof(rows[0]));
}

static void test_known_fields_are_honoured_or_refused_by_name(void **state) {
    (void)state;
    static const row rows[] = {
        {"{\"prompt\":\"x\",\"frequency_penalty\":0.5}", "frequency_penalty is not supported"},
        {"{\"prompt\":\"x\",\"frequency_penalty\":0}", NULL},
        {"{\"prompt\":\"x\",\"presence_penalty\":0.0}", NULL},
        {"{\"prompt\":\"x\",\"presence_penalty\":-1}", "presence_penalty is not supported"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"5\":1}}", "logit_bias is not supported"},
        {"{\"prompt\":\"x\",\"logit_bias\":{}}", NULL},
        {"{\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix is not supported"},
        {"{\"prompt\":\"x\",\"suffix\":null}", NULL},
        {"{\"prompt\":\"x\",\"echo\":true}", NULL},
        {"{\"prompt\":\"x\",\"echo\":1}", "echo must be true or false"},
        {"{\"prompt\":\"x\",\"echo\":true,\"logprobs\":2}", "echo together with logprobs"},
        {"{\"prompt\":\"x\",\"guided_regex\":\"(a+)+\"}", "guided_regex is not supported"},
        {"{\"prompt\":\"x\",\"grammar\":\"x\"}", "grammar is not supported"},
        {"{\"prompt\":\"x\",\"stream_options\":{}}", "stream is not true"},
        {"{\"prompt\":\"x\",\"stream\":true,\"stream_options\":[]}", "must be an object"},
        {"{\"prompt\":\"x\",\"stream\":\"yes\"}", "stream must be true or false"},
        {"{\"prompt\":\"x\",\"stop\":7}", "stop must be a string or an array"},
        {"{\"prompt\":\"x\",\"stop\":[7]}", "stop[0] must be a string"},
        {"{\"prompt\":\"x\",\"stop\":\"\"}", "stop[0] has 0 bytes"},
        {"{\"prompt\":\"x\",\"stop\":[]}", NULL},
        {"{\"prompt\":\"x\",\"stop\":null}", NULL},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[700]}", "stop_token_ids[0] is not a token"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[5,6]}", NULL},
        {"{\"prompt\":\"x\",\"some_new_field\":{\"a\":[1]}}", NULL},
    };
    check_rows(false, rows, sizeof(rows) / sizeof(rows[0]));
}

static void test_chat_fields_are_honoured_or_refused_by_name(void **state) {
    (void)state;
#define MSG "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
    static const row chat[] = {
        {"{" MSG "}", NULL},
        {"{" MSG ",\"max_completion_tokens\":5,\"top_logprobs\":3,\"logprobs\":true}", NULL},
        {"{" MSG ",\"top_logprobs\":3}", "logprobs is not true"},
        {"{" MSG ",\"logprobs\":5}", "logprobs must be true or false"},
        {"{" MSG ",\"max_completion_tokens\":0}", "max_completion_tokens is 0"},
        {"{" MSG ",\"tools\":[]}", NULL},
        {"{" MSG ",\"tools\":[{\"type\":\"function\"}]}", "no place for tools"},
        {"{" MSG ",\"tools\":{}}", "tools must be an array"},
        {"{" MSG ",\"tools\":[7]}", "tools[0] must be an object"},
        {"{" MSG ",\"tools\":[{}],\"tool_choice\":\"none\"}", NULL},
        {"{" MSG ",\"tool_choice\":\"none\"}", NULL},
        {"{" MSG ",\"tool_choice\":\"auto\"}", NULL},
        {"{" MSG ",\"tool_choice\":\"required\"}", "tool_choice is supported as"},
        {"{" MSG ",\"tool_choice\":{\"type\":\"function\"}}", "tool_choice is supported as"},
        {"{" MSG ",\"documents\":[{\"text\":\"x\"}]}", "no place for documents"},
        {"{" MSG ",\"chat_template_kwargs\":{\"enable_thinking\":false}}", NULL},
        {"{" MSG ",\"chat_template_kwargs\":{\"messages\":[]}}", "cannot set messages"},
        {"{" MSG ",\"chat_template_kwargs\":7}", "chat_template_kwargs must be an object"},
        {"{" MSG ",\"chat_template\":\"x\"}", "chat_template is not supported"},
        {"{" MSG ",\"add_generation_prompt\":false}", NULL},
        {"{" MSG ",\"continue_final_message\":true}", NULL},
        {"{" MSG ",\"continue_final_message\":true,\"add_generation_prompt\":true}", "exclude"},
        {"{" MSG ",\"response_format\":{\"type\":\"text\"}}", NULL},
        {"{" MSG ",\"response_format\":{\"type\":\"json_object\"}}", "response_format"},
        {"{" MSG ",\"response_format\":{}}", "response_format"},
        {"{" MSG ",\"modalities\":[\"text\"]}", NULL},
        {"{" MSG ",\"modalities\":[\"audio\"]}", "modalities"},
        {"{" MSG ",\"reasoning_effort\":\"high\"}", "reasoning_effort is not supported"},
        {"{" MSG ",\"store\":true}", "store is not supported"},
        {"{" MSG ",\"metadata\":{\"a\":\"b\"}}", NULL},
        {"{}", "messages is missing"},
        {"{\"messages\":[]}", "messages is empty"},
        {"{\"messages\":{}}", "messages must be an array"},
        {"{\"messages\":[7]}", "messages[0] must be an object"},
        {"{\"messages\":[{\"content\":\"x\"}]}", "messages[0].role must be a string"},
        {"{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content must be a string"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "content must be a string"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":\"1\"}]}", NULL},
        {"{\"messages\":[{\"role\":\"a|>\",\"content\":\"x\"}]}", "role 'a|>'"},
        {"{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}", NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]}",
         NULL},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "only text is supported"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[1]}]}",
         "messages[0].tool_calls[0] must be an object"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]}]}", NULL},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}]}",
         "has no attribute 'content'"},
    };
    check_rows(true, chat, sizeof(chat) / sizeof(chat[0]));
}

static void test_large_bodies(void **state) {
    (void)state;
    mr_text body = {0};
    mr_text_add_string(&body, "{\"prompt\":\"");
    for (int i = 0; i < 1 << 20; i++) mr_text_add_string(&body, "ab ");
    mr_text_add_string(&body, "\"}");
    check_row(false, body.data, body.bytes, "model's context has 512");
    mr_text_clear(&body);
    mr_text_add_string(&body, "{\"prompt\":[1");
    for (int i = 0; i < 1 << 20; i++) mr_text_add_string(&body, ",1");
    mr_text_add_string(&body, "]}");
    check_row(false, body.data, body.bytes, "prompt[0] has 1048577 tokens");
    mr_text_clear(&body);
    for (int i = 0; i < 100000; i++) mr_text_add_string(&body, "[");
    check_row(false, body.data, body.bytes, "arrays and objects");
    mr_text_clear(&body);
    for (int i = 0; i < 1000; i++) mr_text_add_string(&body, "[");
    check_row(false, body.data, body.bytes, "nests deeper");
    mr_text_clear(&body);
    mr_text_add_string(&body, "{\"prompt\":\"x\",\"stop\":[\"a\"");
    for (int i = 0; i < 10000; i++) mr_text_add_string(&body, ",\"a\"");
    mr_text_add_string(&body, "]}");
    check_row(false, body.data, body.bytes, "stop has 10001 strings");
    mr_text_clear(&body);
    mr_text_add_string(&body, "{\"prompt\":[\"a\"");
    for (int i = 0; i < 256; i++) mr_text_add_string(&body, ",\"a\"");
    mr_text_add_string(&body, "]}");
    check_row(false, body.data, body.bytes, "257 prompts");
    mr_text_free(&body);
}

static void test_what_a_request_becomes(void **state) {
    (void)state;
    static const char body[] =
        "{\"prompt\":[\"hello\",[1,2]],\"n\":3,\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.9,"
        "\"min_p\":0.1,\"top_k\":-1,\"seed\":-5,\"stop\":[\"x\",\"yy\"],\"logprobs\":4,"
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"stop_token_ids\":[9],"
        "\"new_thing\":1,\"other\\u00e9\":2}";
    mr_api_call call;
    mr_api_error error;
    assert_true(mr_openai_parse(&call, models, false, body, sizeof(body) - 1, &error));
    const mr_request *r = call.request;
    assert_int_equal(r->prompt_count, 2);
    assert_int_equal(r->prompt_tokens[1], 2);
    assert_int_equal(r->choices, 3);
    assert_int_equal(r->new_tokens, 7);
    assert_true(r->temperature == 0.5f && r->top_p == 0.9f && r->min_p == 0.1f);
    assert_int_equal(r->top_k, 0);
    assert_true(r->seed == (uint64_t)-5);
    assert_true(r->logprobs && call.is_stream && call.include_usage && r->stops);
    assert_int_equal(r->top_logprobs, 4);
    assert_int_equal(r->stop_id_count, 2);
    assert_int_equal(call.unknown_fields, 2);
    mr_api_call_free(&call);
    static const char chat[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a<|end|>\"}],"
                               "\"ignore_eos\":true}";
    assert_true(mr_openai_parse(&call, models, true, chat, sizeof(chat) - 1, &error));
    int ends = 0;
    for (size_t i = 0; i < call.request->tokens.count; i++)
        ends += call.request->tokens.items[i] == 2;
    assert_int_equal(ends, 1); /* the template's, not the user's */
    assert_int_equal(call.request->stop_id_count, 0);
    assert_int_equal(call.request->new_tokens, 512);
    mr_api_call_free(&call);
}

static void test_logits_bodies(void **state) {
    (void)state;
    static const row rows[] = {
        {"{}", "input_ids must be an array of arrays"},
        {"{\"input_ids\":[]}", "not empty"},
        {"{\"input_ids\":[[]]}", "has no tokens"},
        {"{\"input_ids\":[[1],[1,2]]}", "input_ids[1] has 2 tokens, the first row has 1"},
        {"{\"input_ids\":[[1,700]]}", "token 700"},
        {"{\"input_ids\":[1]}", "input_ids[0] must be an array"},
        {"{\"input_ids\":[[1]],\"prefill_chunk\":-1}", "prefill_chunk is -1"},
        {"{\"input_ids\":[[1,2],[3,4]],\"prefill_chunk\":1,\"decode_from\":1}", NULL},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        mr_api_call call;
        mr_api_error error;
        const bool good =
            mr_logits_parse(&call, models, rows[i].body, strlen(rows[i].body), &error);
        assert_int_equal(good, rows[i].sentence == NULL);
        if (good)
            mr_api_call_free(&call);
        else if (!strstr(error.message.text, rows[i].sentence))
            fail_msg("%s", error.message.text);
    }
}

static json_t *parsed(mr_text *text, size_t skip) {
    json_t *root;
    mr_err err = {{0}};
    if (mr_json_parse(&root, text->data + skip, text->bytes - skip, "reply", &err) != MR_OK)
        fail_msg("%s: %s", err.text, text->data);
    mr_text_free(text);
    return root;
}

static void check_degraded(json_t *root) {
    assert_true(json_is_true(json_object_get(json_object_get(root, "memrack"), "degraded")));
    json_decref(root);
}

static void test_lost_partitions(void **state) {
    (void)state;
    static const row rows[] = {
        {"{\"prompt\":\"x\",\"memrack\":7}", "memrack must be an object, not"},
        {"{\"prompt\":\"x\",\"memrack\":{\"on_lost_partition\":\"hope\"}}", "must be \"fail\""},
        {"{\"prompt\":\"x\",\"memrack\":{\"on_lost_partition\":null}}", "must be \"fail\""},
        {"{\"prompt\":\"x\",\"memrack\":{\"wait\":5}}", "and nothing else"},
        {"{\"prompt\":\"x\",\"memrack\":{\"wait_ms\":-1}}", "wait_ms"},
        {"{\"prompt\":\"x\",\"memrack\":{\"wait_ms\":1.5}}", "wait_ms"},
        {"{\"prompt\":\"x\",\"memrack\":{\"on_lost_partition\":\"fail\",\"wait_ms\":5}}",
         "is \"fail\""},
        {"{\"prompt\":\"x\",\"memrack\":{}}", NULL},
        {"{\"prompt\":\"x\",\"memrack\":null}", NULL},
    };
    static const char body[] =
        "{\"prompt\":\"x\",\"memrack\":{\"wait_ms\":0,\"on_lost_partition\":\"degrade\"}}";
    mr_api_call call;
    mr_api_error error;
    check_rows(false, rows, sizeof(rows) / sizeof(rows[0]));
    assert_true(mr_openai_parse(&call, models, false, body, sizeof(body) - 1, &error));
    assert_int_equal(call.request->lost, MR_LOST_DEGRADE);
    assert_true(call.request->has_lost_wait);
    assert_int_equal(call.request->lost_wait_ms, 0);
    mr_api_call_free(&call);
}

static void test_several_models(void **state) {
    (void)state;
    static const char named[] = "{\"prompt\":\"x\",\"model\":\"second\"}",
                      none[] = "{\"prompt\":\"x\"}";
    const mr_digest digest = {{7}};
    mr_serving *two[] = {serving, mr_serving_new("second", "v2", &digest, served_for_test(64))};
    mr_api_call call;
    mr_api_error error;
    mr_models_set(models, two, 2);
    assert_true(mr_openai_parse(&call, models, false, named, sizeof(named) - 1, &error));
    assert_ptr_equal(call.request->model, two[1]);
    mr_models_set(models, &serving, 1); /* replaced while a request of it is under way */
    mr_serving_release(two[1]);
    assert_int_equal(call.request->model->served->context_tokens, 64);
    mr_api_call_free(&call);
    assert_false(mr_openai_parse(&call, models, false, named, sizeof(named) - 1, &error));
    assert_int_equal(error.http, 404);
    assert_string_equal(error.code, "model_not_found");
    mr_models_set(models, (mr_serving *[]){serving, serving}, 2);
    assert_false(mr_openai_parse(&call, models, false, none, sizeof(none) - 1, &error));
    assert_int_equal(error.http, 400);
    mr_models_set(models, &serving, 1);
}

static void test_speculation(void **state) {
    (void)state;
    static const row rows[] = {
        {"{\"prompt\":\"x\",\"memrack\":{\"speculate\":-1}}", "speculate"},
        {"{\"prompt\":\"x\",\"memrack\":{\"speculate\":33}}", "speculate"},
        {"{\"prompt\":\"x\",\"memrack\":{\"speculate\":2.5}}", "speculate"},
        {"{\"prompt\":\"x\",\"memrack\":{\"speculate\":true}}", "speculate"},
        {"{\"prompt\":\"x\",\"memrack\":{\"speculate\":0}}", NULL},
    };
    static const char body[] = "{\"prompt\":\"x\",\"memrack\":{\"speculate\":5}}";
    static const char silent[] = "{\"prompt\":\"x\"}";
    mr_api_call call;
    mr_api_error error;
    check_rows(false, rows, sizeof(rows) / sizeof(rows[0]));
    assert_true(mr_openai_parse(&call, models, false, silent, sizeof(silent) - 1, &error));
    assert_false(call.request->has_speculate || call.tells_speculation);
    mr_api_call_free(&call);
    assert_true(mr_openai_parse(&call, models, false, body, sizeof(body) - 1, &error));
    assert_true(call.request->has_speculate && call.request->speculate == 5);
    for (int degraded = 0; degraded < 2; degraded++) {
        mr_reply_head head;
        mr_text out = {0};
        mr_reply_head_init(&head, serving, &call);
        const mr_reply_figures figures = {3, 2, 1, {4, 9, 7}, degraded};
        mr_reply_usage(&out, &head, &figures);
        json_t *root = parsed(&out, 6);
        const json_t *own = json_object_get(root, "memrack");
        const json_t *told = json_object_get(own, "speculation");
        assert_int_equal(json_is_true(json_object_get(own, "degraded")), degraded);
        assert_int_equal(json_integer_value(json_object_get(told, "steps")), 4);
        assert_int_equal(json_integer_value(json_object_get(told, "drafted_tokens")), 9);
        assert_int_equal(json_integer_value(json_object_get(told, "accepted_tokens")), 7);
        json_decref(root);
    }
    mr_api_call_free(&call);
}

static void test_replies_are_valid_json(void **state) {
    (void)state;
    mr_token_entry entries[2] = {{.token = 5, .logprob = -0.25f, .top_count = 2},
                                 {.token = 6, .logprob = -INFINITY, .text_offset = 1}};
    const char high = (char)0xe2;
    entries[0].top[0] = (mr_wire_logprob){mr_tokenizer_find(served->tokenizer, &high, 1), -1};
    entries[0].top[1] = (mr_wire_logprob){mr_tokenizer_find(served->tokenizer, "\n", 1), -2};
    static const char odd[] = "\"quoted\" \\ \n\t\x01 caf\xc3\xa9";
    for (int chat = 0; chat < 2; chat++) {
        const mr_api_call call = {.is_chat = chat, .logprobs = true, .include_usage = true};
        mr_reply_head head;
        mr_text out = {0};
        mr_reply_head_init(&head, serving, &call);
        const mr_reply_figures figures = {3, 2, 1, .is_degraded = true};
        mr_reply_answer answer = {.entries = entries, .entry_count = 2, .finish = MR_FINISH_STOP};
        mr_text_add_string(&answer.text, odd);
        mr_reply_whole(&out, &head, &answer, 1, &figures);
        json_t *root = parsed(&out, 0);
        const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
        const json_t *text = chat ? json_object_get(json_object_get(choice, "message"), "content")
                                  : json_object_get(choice, "text");
        assert_string_equal(json_string_value(text), odd);
        assert_int_equal(
            json_integer_value(json_object_get(json_object_get(root, "usage"), "total_tokens")), 5);
        const json_t *details =
            json_object_get(json_object_get(root, "usage"), "prompt_tokens_details");
        assert_int_equal(json_integer_value(json_object_get(details, "cached_tokens")), 1);
        check_degraded(root);
        head.is_stream = true;
        mr_reply_part(&out, &head, 0, odd, strlen(odd), entries, 2, MR_FINISH_LENGTH, true);
        check_degraded(parsed(&out, 6));
        mr_reply_role(&out, &head, 1);
        json_decref(parsed(&out, 6));
        mr_reply_usage(&out, &head, &figures);
        check_degraded(parsed(&out, 6));
        mr_text_free(&answer.text);
    }
    mr_api_error error;
    mr_text out = {0};
    assert_int_equal(mr_api_error_of(&error, MR_ERR_LIMIT, "cut \xe2\x82"), 429);
    mr_reply_error(&out, &error);
    json_decref(parsed(&out, 0));
    mr_reply_models(&out, (mr_serving *[]){serving, serving}, 2);
    json_decref(parsed(&out, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bodies_that_are_no_request),
        cmocka_unit_test(test_lost_partitions),
        cmocka_unit_test(test_speculation),
        cmocka_unit_test(test_several_models),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_known_fields_are_honoured_or_refused_by_name),
        cmocka_unit_test(test_chat_fields_are_honoured_or_refused_by_name),
        cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_what_a_request_becomes),
        cmocka_unit_test(test_logits_bodies),
        cmocka_unit_test(test_replies_are_valid_json),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
