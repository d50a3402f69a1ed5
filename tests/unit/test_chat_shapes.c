/* Goal: templates shaped like those of published models render as in Hugging Face's transformers.
 * Method: tests/chat_templates/templates with conversations.json; expected/ is what transformers
 * made of them (make_expected.py). Words that only users wrote must be marked as theirs. */
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/chat_template.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FOLDER MR_SOURCE_DIR "/tests/chat_templates"

enum { NOW = 1753920000, MAX_BYTES = 1 << 20, LEAST_TEMPLATES = 39, LEAST_TEXTS = 500 };

typedef struct {
    uint32_t templates, texts, refusals;
    json_t *conversations;
} tally;

/* A model's folder with this template and two special tokens. */
static mr_chat_template *open_template(const char *path) {
    static const char config[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}";
    char directory[] = "/tmp/mr-shapes-XXXXXX";
    char *text;
    size_t bytes;
    mr_chat_template *chat;
    mr_err err;
    assert_int_equal(mr_file_read(&text, &bytes, path, MAX_BYTES, &err), MR_OK);
    assert_non_null(mkdtemp(directory));
    char *jinja = mr_format("%s/chat_template.jinja", directory);
    char *tokens = mr_format("%s/tokenizer_config.json", directory);
    assert_int_equal(mr_file_write(jinja, text, bytes, NULL), MR_OK);
    assert_int_equal(mr_file_write(tokens, config, strlen(config), NULL), MR_OK);
    assert_int_equal(mr_chat_template_open(&chat, directory, &err), MR_OK);
    unlink(jinja);
    unlink(tokens);
    rmdir(directory);
    free(jinja);
    free(tokens);
    free(text);
    if (mr_chat_template_check(chat, &err) != MR_OK) fail_msg("%s: %s", path, err.text);
    return chat;
}

static mr_status render(mr_chat_prompt *out, const mr_chat_template *chat, const json_t *c,
                        mr_err *err) {
    const json_t *generation = json_object_get(c, "generation");
    const mr_chat_input in = {.messages = json_object_get(c, "messages"),
                              .tools = json_object_get(c, "tools"),
                              .documents = json_object_get(c, "documents"),
                              .variables = json_object_get(c, "variables"),
                              .generation = !generation || json_is_true(generation),
                              .continues = json_is_true(json_object_get(c, "continues")),
                              .now = NOW};
    return mr_chat_template_render(out, chat, &in, err);
}

/* Spans are ascending, apart, and inside; and nothing that only users wrote lies outside. */
static void check_spans(const mr_chat_prompt *prompt, const char *what) {
    static const char *const users_only[] = {"Obey", "Köln", "日本語", "indented"};
    size_t end = 0;
    for (uint32_t i = 0; i < prompt->literal_count; i++) {
        assert_true(prompt->literal[i].first >= end && prompt->literal[i].bytes > 0);
        end = prompt->literal[i].first + prompt->literal[i].bytes;
    }
    assert_true(end <= prompt->text.bytes);
    for (size_t k = 0; k < sizeof(users_only) / sizeof(users_only[0]); k++) {
        const char *at = mr_text_string(&prompt->text);
        while ((at = strstr(at, users_only[k])) != NULL) {
            const size_t first = (size_t)(at - prompt->text.data);
            bool inside = false;
            for (uint32_t i = 0; i < prompt->literal_count && !inside; i++)
                inside = first >= prompt->literal[i].first &&
                         first + strlen(users_only[k]) <=
                             prompt->literal[i].first + prompt->literal[i].bytes;
            if (!inside) fail_msg("%s: '%s' is not known as a user's", what, users_only[k]);
            at++;
        }
    }
}

static void compare(tally *t, const char *what, const mr_chat_template *chat, const json_t *c,
                    const json_t *wanted) {
    mr_chat_prompt prompt;
    mr_err err = {{0}};
    const json_t *text = json_object_get(wanted, "text");
    const char *sentence = json_string_value(json_object_get(wanted, "raises"));
    const mr_status status = render(&prompt, chat, c, &err);
    if (sentence) {
        if (status != MR_ERR_ARGUMENT || strcmp(err.text, sentence) != 0)
            fail_msg("%s: %s instead of: %s", what, err.text, sentence);
        t->refusals++;
    } else if (!text) {
        if (status != MR_ERR_FORMAT && status != MR_ERR_LIMIT)
            fail_msg("%s: transformers fails", what);
        t->refusals++;
    } else {
        if (status != MR_OK) fail_msg("%s: %s", what, err.text);
        if (json_string_length(text) != prompt.text.bytes ||
            memcmp(json_string_value(text), mr_text_string(&prompt.text), prompt.text.bytes) != 0)
            fail_msg("%s:\n%s\ninstead of\n%s", what, mr_text_string(&prompt.text),
                     json_string_value(text));
        check_spans(&prompt, what);
        mr_chat_prompt_free(&prompt);
        t->texts++;
    }
}

static void compare_template(tally *t, const char *name, size_t bytes) {
    char *path = mr_format(FOLDER "/templates/%.*s.jinja", (int)bytes, name);
    char *answers = mr_format(FOLDER "/expected/%.*s.json", (int)bytes, name);
    json_t *expected, *wanted;
    const char *key;
    mr_err err;
    mr_chat_template *chat = open_template(path);
    assert_int_equal(mr_json_load(&expected, answers, MAX_BYTES, &err), MR_OK);
    json_object_foreach(expected, key, wanted) {
        char *what = mr_format("%.*s with %s", (int)bytes, name, key);
        compare(t, what, chat, json_object_get(t->conversations, key), wanted);
        free(what);
    }
    json_decref(expected);
    mr_chat_template_close(chat);
    free(path);
    free(answers);
    t->templates++;
}

static void test_shapes_of_published_templates(void **state) {
    (void)state;
    tally t = {0};
    mr_err err;
    const struct dirent *entry;
    assert_int_equal(mr_json_load(&t.conversations, FOLDER "/conversations.json", MAX_BYTES, &err),
                     MR_OK);
    DIR *folder = opendir(FOLDER "/templates");
    assert_non_null(folder);
    while ((entry = readdir(folder)) != NULL) {
        const char *end = strstr(entry->d_name, ".jinja");
        if (end) compare_template(&t, entry->d_name, (size_t)(end - entry->d_name));
    }
    closedir(folder);
    json_decref(t.conversations);
    printf("%u templates, %u texts, %u refusals\n", t.templates, t.texts, t.refusals);
    assert_true(t.templates >= LEAST_TEMPLATES && t.texts >= LEAST_TEXTS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes_of_published_templates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
