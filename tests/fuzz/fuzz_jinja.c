/* fuzz_jinja.c - a chat template from anywhere, rendered with a small conversation: no crash, no
 * endless run, and spans that lie within the text, one after the other. */
#include "common/model/jinja.h"

#include <assert.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static json_t *conversation(void) {
    static const char text[] = "[{\"role\":\"system\",\"content\":\"be "
                               "brief\"},{\"role\":\"user\",\"content\":\"  <|x|> \\u00e9 1 "
                               "\"},{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{"
                               "\"type\":\"function\",\"function\":"
                               "{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,null,true]}}}]},{"
                               "\"role\":\"tool\",\"content\":\"7\"}]";
    json_t *root = NULL;
    mr_err err;
    const mr_status status = mr_json_parse(&root, text, sizeof(text) - 1, "conversation", &err);
    assert(status == MR_OK);
    return root;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static json_t *messages;
    mr_jinja *jinja;
    mr_jinja_output out;
    mr_err err = {{0}};
    if (!messages) messages = conversation();
    if (mr_jinja_parse(&jinja, (const char *)data, size, &err) != MR_OK) {
        assert(!jinja && err.text[0]);
        return 0;
    }
    const mr_jinja_variable variables[] = {{"messages", messages, MR_JINJA_MESSAGES},
                                           {"tools", messages, MR_JINJA_USER}};
    if (mr_jinja_render(&out, jinja, variables, 2, 1700000000, 20000, &err) == MR_OK) {
        size_t end = 0;
        for (uint32_t i = 0; i < out.span_count; i++) {
            assert(out.spans[i].first >= end && out.spans[i].bytes > 0);
            end = out.spans[i].first + out.spans[i].bytes;
        }
        assert(end <= out.text.bytes);
        mr_jinja_output_free(&out);
    } else
        assert(err.text[0]);
    mr_jinja_close(jinja);
    return 0;
}
