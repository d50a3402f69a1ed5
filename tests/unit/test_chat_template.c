/* Goal: a conversation becomes exactly the text the model was trained on, or a refusal.
 * Method: short templates with outputs written out by hand; folders with odd files. Whole templates
 * of published models are compared by test_chat_shapes. */
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/chat_template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char demo[] = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + "
                           "message['content'] + '<|end|>' }}{% endfor %}{% if "
                           "add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
static const char talk[] = "[{\"role\":\"user\",\"content\":\"hi <|end|>\"},"
                           "{\"role\":\"assistant\",\"content\":\"yo\"}]";

typedef struct {
    const char *messages, *tools, *variables;
    bool generation, continues;
} request;

static json_t *parsed(const char *json) {
    json_t *root = NULL;
    if (json) assert_int_equal(mr_json_parse(&root, json, strlen(json), "json", NULL), MR_OK);
    return root;
}

static mr_status render(mr_chat_prompt *out, const mr_chat_template *chat, const request *r,
                        mr_err *err) {
    json_t *messages = parsed(r->messages), *tools = parsed(r->tools),
           *variables = parsed(r->variables);
    const mr_chat_input in = {.messages = messages,
                              .tools = tools,
                              .variables = variables,
                              .generation = r->generation,
                              .continues = r->continues};
    const mr_status status = mr_chat_template_render(out, chat, &in, err);
    json_decref(messages);
    json_decref(tools);
    json_decref(variables);
    return status;
}

static void renders(const char *text, const request *r, const char *wanted) {
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    mr_chat_template *chat = mr_chat_template_of(text);
    if (render(&prompt, chat, r, &err) != MR_OK) fail_msg("%s", err.text);
    assert_string_equal(mr_text_string(&prompt.text), wanted);
    mr_chat_prompt_free(&prompt);
    mr_chat_template_close(chat);
}

static void refuses(const mr_chat_template *chat, const request *r, mr_status status,
                    const char *sentence) {
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    const mr_status got = render(&prompt, chat, r, &err);
    if (got != status || !strstr(err.text, sentence))
        fail_msg("%s: %s", mr_status_name(got), err.text);
    assert_null(prompt.text.data);
}

static void refuses_with(const char *text, const request *r, mr_status status,
                         const char *sentence) {
    mr_chat_template *chat = mr_chat_template_of(text);
    refuses(chat, r, status, sentence);
    mr_chat_template_close(chat);
}

static void test_prompt_and_spans(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    mr_chat_template *chat = mr_chat_template_of(demo);
    assert_int_equal(render(&prompt, chat, &(request){.messages = talk}, &err), MR_OK);
    assert_int_equal(prompt.literal_count, 2);
    assert_memory_equal(prompt.text.data + prompt.literal[0].first, "hi <|end|>", 10);
    assert_int_equal(prompt.literal[0].bytes, 10);
    assert_memory_equal(prompt.text.data + prompt.literal[1].first, "yo", 2);
    mr_chat_prompt_free(&prompt);
    mr_chat_template_close(chat);
    renders(demo, &(request){.messages = talk, .generation = true},
            "<|user|>hi <|end|><|end|><|assistant|>yo<|end|><|assistant|>");
}

static void test_refusals(void **state) {
    (void)state;
    const request r = {.messages = talk};
    refuses_with(NULL, &r, MR_ERR_UNSUPPORTED, "no chat_template: use completions");
    refuses_with("{% for x %}", &r, MR_ERR_UNSUPPORTED,
                 "this model's template cannot be used: line 1 of the chat template");
    refuses_with("{{ raise_exception('No ' ~ messages[0].role) }}", &r, MR_ERR_ARGUMENT, "No user");
    refuses_with("{{ messages[0].x.y }}", &r, MR_ERR_FORMAT, "has no attribute 'x'");
    refuses_with(demo, &(request){.messages = talk, .tools = "[{}]"}, MR_ERR_ARGUMENT,
                 "no place for tools");
    refuses_with(demo, &(request){.messages = "[]"}, MR_ERR_ARGUMENT, "no messages");
    refuses_with(demo, &(request){.messages = "[7]"}, MR_ERR_ARGUMENT, "messages[0] must be");
    refuses_with(demo, &(request){.messages = talk, .variables = "{\"tools\":1}"}, MR_ERR_ARGUMENT,
                 "cannot set tools");
}

static void test_roles(void **state) {
    (void)state;
    refuses_with(demo, &(request){.messages = "[{\"role\":\"user|><|end\",\"content\":\"x\"}]"},
                 MR_ERR_ARGUMENT, "messages[0] has role 'user|><|end'");
    refuses_with(demo, &(request){.messages = "[{\"role\":\"\",\"content\":\"x\"}]"},
                 MR_ERR_ARGUMENT, "a role is 1 to 64 letters");
    static const char developer[] = "[{\"role\":\"developer\",\"content\":\"x\"}]";
    renders(demo, &(request){.messages = developer}, "<|system|>x<|end|>");
    renders("{{ messages[0].role }}{% if messages[0].role == 'developer' %}!{% endif %}",
            &(request){.messages = developer}, "developer!");
}

static void test_content_in_parts(void **state) {
    (void)state;
    static const char parts[] = "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a "
                                "\"},{\"type\":\"text\",\"text\":\"b\"}]}]";
    renders(demo, &(request){.messages = parts}, "<|user|>a b<|end|>");
    renders("{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}",
            &(request){.messages = parts}, "[a ][b]");
}

static void test_fields_that_are_null(void **state) {
    (void)state;
    renders("{{ messages[0].content is defined }}{{ messages[0].name is defined }}",
            &(request){.messages = "[{\"role\":\"user\",\"content\":null,\"name\":\"x\"}]"},
            "FalseTrue");
    renders("{{ messages[0].reasoning_content }}{{ messages[0].thinking }}",
            &(request){.messages = "[{\"role\":\"assistant\",\"reasoning\":\"r\"}]"}, "rr");
    renders("{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
            &(request){.messages = talk}, "TrueTrueTrue");
}

static void test_arguments_of_calls(void **state) {
    (void)state;
    static const char calls[] =
        "[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"function\","
        "\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}}]}]";
    renders("{{ messages[0].tool_calls[0].function.arguments | tojson }}",
            &(request){.messages = calls}, "{\"a\": 1}");
    renders("{{ '```' + messages[0].tool_calls[0].function.arguments }}",
            &(request){.messages = calls}, "```{\"a\": 1}");
    refuses_with("{{ 1 + messages[0].tool_calls[0].function.arguments }}",
                 &(request){.messages = calls}, MR_ERR_FORMAT, "'int' and 'dict'");
}

static void test_continuing_the_last_message(void **state) {
    (void)state;
    static const char open_end[] = "[{\"role\":\"user\",\"content\":\"hi\"},"
                                   "{\"role\":\"assistant\",\"content\":\"The \"}]";
    renders(demo, &(request){.messages = open_end, .continues = true},
            "<|user|>hi<|end|><|assistant|>The ");
    renders("{% for m in messages %}{{ m.content | trim }}<|end|>{% endfor %}",
            &(request){.messages = open_end, .continues = true}, "hi<|end|>The");
    refuses_with("{{ messages[0].content }}", &(request){.messages = open_end, .continues = true},
                 MR_ERR_ARGUMENT, "cannot be continued");
    refuses_with(demo, &(request){.messages = open_end, .continues = true, .generation = true},
                 MR_ERR_ARGUMENT, "exclude each other");
}

static void test_variables_are_what_a_user_wrote(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    mr_chat_template *chat = mr_chat_template_of("<s>{{ style }}{{ 1 if thinks }}");
    const request r = {.messages = talk, .variables = "{\"style\":\"<s>\",\"thinks\":true}"};
    assert_int_equal(render(&prompt, chat, &r, &err), MR_OK);
    assert_string_equal(mr_text_string(&prompt.text), "<s><s>1");
    assert_int_equal(prompt.literal_count, 1);
    assert_int_equal(prompt.literal[0].first, 3);
    mr_chat_prompt_free(&prompt);
    mr_chat_template_close(chat);
}

/* --- folders ---------------------------------------------------------------------------------- */

typedef struct {
    const char *name, *text;
} entry;

static mr_status open_with(const entry *files, size_t count, mr_chat_template **out, mr_err *err) {
    char directory[] = "/tmp/mr-chat-XXXXXX";
    assert_non_null(mkdtemp(directory));
    char *more = mr_format("%s/additional_chat_templates", directory);
    assert_int_equal(mkdir(more, 0700), 0);
    for (size_t i = 0; i < count; i++) {
        char *path = mr_format("%s/%s", directory, files[i].name);
        assert_int_equal(mr_file_write(path, files[i].text, strlen(files[i].text), NULL), MR_OK);
        free(path);
    }
    const mr_status status = mr_chat_template_open(out, directory, err);
    for (size_t i = 0; i < count; i++) {
        char *path = mr_format("%s/%s", directory, files[i].name);
        unlink(path);
        free(path);
    }
    rmdir(more);
    rmdir(directory);
    free(more);
    return status;
}

static void opens(const entry *files, size_t count, const request *r, const char *wanted) {
    mr_chat_template *chat;
    mr_chat_prompt prompt;
    mr_err err = {{0}};
    assert_int_equal(open_with(files, count, &chat, &err), MR_OK);
    if (render(&prompt, chat, r, &err) != MR_OK) fail_msg("%s", err.text);
    assert_string_equal(mr_text_string(&prompt.text), wanted);
    mr_chat_prompt_free(&prompt);
    mr_chat_template_close(chat);
}

static void test_files(void **state) {
    (void)state;
    const request plain = {.messages = talk}, with_tools = {.messages = talk, .tools = "[{}]"};
    static const entry list[] = {
        {"tokenizer_config.json",
         "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"tools {{ tools|length }}\"},7,"
         "{\"name\":\"default\",\"template\":\"{{ bos_token }}{{ eos_token }}{{ pad_token }}\"}],"
         "\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},\"pad_token\":null}"}};
    opens(list, 1, &plain, "<s></s>");
    opens(list, 1, &with_tools, "tools 1");
    static const entry files[] = {
        {"chat_template.jinja", "{{ bos_token }}{{ messages|length }}\n"},
        {"additional_chat_templates/tool_use.jinja", "{{ tools|length }} tools"},
        {"tokenizer_config.json", "{\"chat_template\":\"other\"}"},
        {"special_tokens_map.json", "{\"bos_token\":\"<b>\"}"}};
    opens(files, 4, &plain, "<b>2");
    opens(files, 4, &with_tools, "1 tools");
    opens(files + 2, 1, &plain, "other");
}

static void test_odd_files(void **state) {
    (void)state;
    const request r = {.messages = talk};
    mr_chat_template *chat;
    mr_err err = {{0}};
    assert_int_equal(open_with(NULL, 0, &chat, &err), MR_OK);
    refuses(chat, &r, MR_ERR_UNSUPPORTED, "no chat_template");
    mr_chat_template_close(chat);
    static const entry cut[] = {{"tokenizer_config.json", "{"}};
    assert_int_equal(open_with(cut, 1, &chat, &err), MR_ERR_FORMAT);
    assert_null(chat);
    static const entry number[] = {{"tokenizer_config.json", "{\"chat_template\":7}"}};
    assert_int_equal(open_with(number, 1, &chat, &err), MR_OK);
    refuses(chat, &r, MR_ERR_UNSUPPORTED, "no chat_template");
    mr_chat_template_close(chat);
    static const entry broken[] = {{"chat_template.jinja", "{% if %}"}};
    assert_int_equal(open_with(broken, 1, &chat, &err), MR_OK);
    assert_int_equal(mr_chat_template_check(chat, &err), MR_ERR_UNSUPPORTED);
    refuses(chat, &r, MR_ERR_UNSUPPORTED, "expected an expression, found '%}'");
    mr_chat_template_close(chat);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt_and_spans),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_roles),
        cmocka_unit_test(test_content_in_parts),
        cmocka_unit_test(test_fields_that_are_null),
        cmocka_unit_test(test_arguments_of_calls),
        cmocka_unit_test(test_continuing_the_last_message),
        cmocka_unit_test(test_variables_are_what_a_user_wrote),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_odd_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
