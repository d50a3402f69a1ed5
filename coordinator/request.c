/* request.c - see request.h. */
#include "coordinator/request.h"

#include "common/base/mem.h"
#include "coordinator/models.h"

#include <assert.h>
#include <stdlib.h>

mr_request *mr_request_new(void) {
    mr_request *request = mr_alloc(sizeof(*request));
    request->choices = 1;
    request->new_tokens = 1;
    request->top_p = 1;
    return request;
}

void mr_request_add_prompt(mr_request *request, const int32_t *tokens, size_t count) {
    assert(count <= UINT32_MAX);
    request->prompt_tokens = mr_realloc_array(request->prompt_tokens, request->prompt_count + 1u,
                                              sizeof(*request->prompt_tokens));
    request->prompt_tokens[request->prompt_count++] = (uint32_t)count;
    for (size_t i = 0; i < count; i++) mr_token_list_add(&request->tokens, tokens[i]);
}

void mr_request_free(mr_request *request) {
    if (!request) return;
    mr_token_list_free(&request->tokens);
    free(request->prompt_tokens);
    mr_stop_set_close(request->stops);
    mr_token_list_free(&request->resumed);
    free(request->resumed_tokens);
    free(request->is_complete);
    mr_serving_release(request->model);
    free(request);
}
