/* render.c - renders templates for the scripts beside it. One JSON object a line on stdin:
 * {"template": TEXT, "variables": {...}, "now": SECONDS}; one on stdout: {"text": TEXT, "spans":
 * [[first, bytes], ...]} or {"error": SENTENCE, "status": NAME}. Messages, tools and documents are
 * what a user wrote. */
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/model/jinja.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VARIABLES_MAX = 256 };

static json_t *failure(mr_status status, const mr_err *err) {
    return json_pack("{s:s, s:s}", "error", err->text, "status", mr_status_name(status));
}

static json_t *render(const mr_jinja *jinja, const json_t *variables, int64_t now) {
    mr_jinja_variable list[VARIABLES_MAX];
    mr_jinja_output out;
    mr_err err;
    size_t count = 0;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)variables, name, value) {
        if (count == VARIABLES_MAX) break;
        const bool is_messages = strcmp(name, "messages") == 0;
        const bool is_user = strcmp(name, "tools") == 0 || strcmp(name, "documents") == 0;
        list[count++] = (mr_jinja_variable){name, value,
                                            is_messages ? MR_JINJA_MESSAGES
                                            : is_user   ? MR_JINJA_USER
                                                        : MR_JINJA_OURS};
    }
    const mr_status status =
        mr_jinja_render(&out, jinja, list, count, now, MR_MAX_JINJA_STEPS, &err);
    if (status != MR_OK) return failure(status, &err);
    json_t *spans = json_array();
    for (uint32_t i = 0; i < out.span_count; i++)
        json_array_append_new(spans, json_pack("[I, I]", (json_int_t)out.spans[i].first,
                                               (json_int_t)out.spans[i].bytes));
    json_t *text = json_stringn(mr_text_string(&out.text), out.text.bytes);
    mr_jinja_output_free(&out);
    return json_pack("{s:o, s:o}", "text", text ? text : json_null(), "spans", spans);
}

static json_t *answer(const char *line, size_t bytes) {
    json_t *request, *out;
    mr_jinja *jinja;
    mr_err err;
    mr_status status = mr_json_parse(&request, line, bytes, "the line", &err);
    if (status != MR_OK) return failure(status, &err);
    const json_t *template = json_object_get(request, "template");
    status =
        mr_jinja_parse(&jinja, json_string_value(template), json_string_length(template), &err);
    out = status == MR_OK ? render(jinja, json_object_get(request, "variables"),
                                   json_integer_value(json_object_get(request, "now")))
                          : failure(status, &err);
    mr_jinja_close(jinja);
    json_decref(request);
    return out;
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t bytes;
    while ((bytes = getline(&line, &room, stdin)) > 0) {
        json_t *out = answer(line, (size_t)bytes);
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(out);
    }
    free(line);
    return 0;
}
