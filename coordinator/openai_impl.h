/* openai_impl.h - what openai.c and openai_prompt.c share. All return false with *error filled. */
#ifndef MR_COORDINATOR_OPENAI_IMPL_H
#define MR_COORDINATOR_OPENAI_IMPL_H
#include "coordinator/openai.h"

bool openai_refuse(mr_api_error *error, const char *param, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The same from a sentence worded elsewhere. */
bool openai_refuse_as(mr_api_error *error, const char *param, const mr_err *err);

/* prompt: a string, strings, token ids, or arrays of token ids. */
bool openai_read_prompt(mr_api_call *call, const mr_served *served, const json_t *root,
                        mr_api_error *error);
bool openai_read_messages(mr_api_call *call, const mr_served *served, const json_t *root,
                          mr_api_error *error);
/* input_ids: rows of token ids, all of one length. */
bool openai_read_rows(mr_api_call *call, const mr_served *served, const json_t *rows,
                      mr_api_error *error);

#endif
