/* served_for_test.h - something to serve without a model: the gpt2 test tokenizer with the demo
 * model's chat template, whose role tokens that vocabulary half knows. */
#ifndef MR_TESTS_SERVED_FOR_TEST_H
#define MR_TESTS_SERVED_FOR_TEST_H
#include "common/base/mem.h"
#include "coordinator/served.h"

#include <stdlib.h>

static inline mr_served *served_for_test(uint32_t context_tokens) {
    mr_served *s = mr_alloc(sizeof(*s));
    mr_err err = {{0}};
    if (mr_tokenizer_open(&s->tokenizer, MR_SOURCE_DIR "/tests/tokenizer/gpt2.json", &err) != MR_OK)
        abort();
    s->chat = mr_chat_template_of(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
        "'<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}");
    s->name = mr_strdup("test-model");
    s->context_tokens = context_tokens;
    s->vocab_size = mr_tokenizer_count(s->tokenizer);
    s->created = 1700000000;
    s->temperature = s->top_p = 1;
    s->stop_ids[s->stop_id_count++] = 2; /* <|end|> */
    return s;
}

#endif
