/* Goal: a conversation becomes exactly the text the model was trained on, or a refusal.
 * Method: the known templates' outputs written out by hand; folders with odd files. */
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/chat_template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char demo[] = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + "
                           "message['content'] + '<|end|>' }}{% endfor %}{% if "
                           "add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
static const char chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\\n' }}{% endif %}";
static const char chatml_lines[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}";
static const char qwen[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
    "'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' "
    "+ message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static const mr_chat_message talk[] = {{"user", "hi <|end|>", 10}, {"assistant", "yo", 2}};

static void renders(const char *text, bool generation, const char *wanted) {
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    mr_chat_template *chat = mr_chat_template_of(text);
    assert_int_equal(mr_chat_template_render(&prompt, chat, talk, 2, generation, &err), MR_OK);
    assert_string_equal(mr_text_string(&prompt.text), wanted);
    const mr_text_span last = prompt.literal[prompt.literal_count - 1];
    assert_memory_equal(prompt.text.data + last.first, "yo", last.bytes);
    mr_chat_prompt_free(&prompt);
    mr_chat_template_close(chat);
}

static void test_known_templates(void **state) {
    (void)state;
    renders(demo, true, "<|user|>hi <|end|><|end|><|assistant|>yo<|end|><|assistant|>");
    renders(demo, false, "<|user|>hi <|end|><|end|><|assistant|>yo<|end|>");
    static const char ml[] = "<|im_start|>user\nhi <|end|><|im_end|>\n<|im_start|>assistant\nyo"
                             "<|im_end|>\n<|im_start|>assistant\n";
    renders(chatml, true, ml);
    renders(chatml_lines, true, ml);
    char *with_system =
        mr_format("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n%s", ml);
    renders(qwen, true, with_system);
    free(with_system);
}

static void expect_refusal(const mr_chat_template *chat, const char *sentence) {
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    assert_int_equal(mr_chat_template_render(&prompt, chat, talk, 2, true, &err),
                     MR_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, sentence));
}

static void test_other_templates_are_refused_by_name(void **state) {
    (void)state;
    mr_chat_template *chat = mr_chat_template_of("{% for i in range(1000000000) %}x{% endfor %}");
    expect_refusal(chat, "{% for i in range(1000000000) %}");
    mr_chat_template_close(chat);
    chat = mr_chat_template_of(NULL);
    expect_refusal(chat, "no chat_template");
    mr_chat_template_close(chat);
}

static void test_roles(void **state) {
    (void)state;
    mr_err err = {{0}};
    mr_chat_prompt prompt;
    mr_chat_template *chat = mr_chat_template_of(demo);
    const mr_chat_message odd[] = {{"user|><|end", "x", 1}};
    assert_int_equal(mr_chat_template_render(&prompt, chat, odd, 1, true, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "messages[0] has role 'user|><|end'"));
    mr_chat_template_close(chat);
}

static mr_status open_with(const char *name, const char *json, mr_chat_template **out,
                           mr_err *err) {
    char directory[] = "/tmp/mr-chat-XXXXXX";
    assert_non_null(mkdtemp(directory));
    char *path = mr_format("%s/%s", directory, name);
    if (json) assert_int_equal(mr_file_write(path, json, strlen(json), NULL), MR_OK);
    const mr_status status = mr_chat_template_open(out, directory, err);
    unlink(path);
    rmdir(directory);
    free(path);
    return status;
}

static void test_files(void **state) {
    (void)state;
    mr_chat_template *chat;
    mr_err err = {{0}};
    assert_int_equal(open_with("nothing", NULL, &chat, &err), MR_OK);
    expect_refusal(chat, "no chat_template");
    mr_chat_template_close(chat);
    char *list = mr_format("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"x\"},7,"
                           "{\"name\":\"default\",\"template\":\"%s\"}]}",
                           demo);
    assert_int_equal(open_with("tokenizer_config.json", list, &chat, &err), MR_OK);
    assert_int_equal(mr_chat_template_check(chat, &err), MR_OK);
    mr_chat_template_close(chat);
    free(list);
    assert_int_equal(open_with("chat_template.jinja", chatml_lines, &chat, &err), MR_OK);
    assert_int_equal(mr_chat_template_check(chat, &err), MR_OK);
    mr_chat_template_close(chat);
    assert_int_equal(open_with("tokenizer_config.json", "{", &chat, &err), MR_ERR_FORMAT);
    assert_null(chat);
    assert_int_equal(open_with("tokenizer_config.json", "{\"chat_template\":7}", &chat, &err),
                     MR_OK);
    expect_refusal(chat, "no chat_template");
    mr_chat_template_close(chat);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_templates),
        cmocka_unit_test(test_other_templates_are_refused_by_name),
        cmocka_unit_test(test_roles),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
