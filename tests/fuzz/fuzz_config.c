/* fuzz_config.c - any bytes as config.json: a configuration that holds together, or a sentence. */
#include "common/base/log.h"
#include "common/model/config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    mr_config c;
    mr_err err = {{0}};
    mr_log_setup("fuzz", MR_LOG_ERROR, 1);
    if (mr_config_parse(&c, (const char *)data, bytes, "config.json", &err) != MR_OK) {
        assert(strncmp(err.text, "config.json", 11) == 0 && !c.insertions && !c.windows &&
               !c.dense_blocks && c.d_model == 0);
        return 0;
    }
    assert(c.n_heads > 0 && c.head_dim * c.n_heads == c.query_width && c.head_dim % 2 == 0);
    assert(c.n_kv_heads > 0 && c.n_heads % c.n_kv_heads == 0);
    assert(c.vocab_size > 0 && c.head_rows >= c.vocab_size && c.head_rows <= MR_MAX_VOCAB);
    assert(c.mlp_hidden > 0 && c.mlp_hidden % 2 == 0);
    assert((c.memory == MR_MEMORY_NONE) == (c.memory_count == 0));
    assert(!c.moe || (c.experts_per_token >= 1 && c.experts_per_token <= c.experts));
    assert(c.family != MR_FAMILY_OFFICIAL || c.query_width == c.d_model);
    assert(c.eos_count <= MR_MAX_EOS_TOKENS);
    float *frequency = malloc(c.head_dim / 2 * sizeof(float));
    mr_config_rope(frequency, &c);
    for (uint32_t i = 0; i < c.head_dim / 2; i++) assert(frequency[i] >= 0 && frequency[i] <= 1);
    free(frequency);
    for (uint32_t i = 0; i < c.memory_count; i++) assert(c.insertions[i].source < c.n_layers);
    if (c.memory != MR_MEMORY_NONE)
        assert(c.mem_head * c.mem_knn <= MR_MAX_MEM_ENTRIES && c.mem_knum > 0 && c.mem_vdim > 0);
    mr_config_free(&c);
    return 0;
}
