/* convert_loss.h - what a model lost when it was converted: both run over the same tokens, one
 * after the other, and their logits are compared position by position. Threads: one. */
#ifndef MR_CLI_CONVERT_LOSS_H
#define MR_CLI_CONVERT_LOSS_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint32_t positions;
    double kl_mean, kl_p99, kl_max; /* of the second model's choice against the first's, nats */
    double top1_agreement;          /* share of positions */
    double logit_error_max;
    bool has_text; /* then: */
    double perplexity_before, perplexity_after;
} mr_convert_loss;

/* samples: a file of text, in which special tokens count; NULL: a built-in text where the model has
 * a tokenizer, else ids drawn from a fixed seed. threads: 0: one per core. */
mr_status mr_convert_loss_measure(mr_convert_loss *out, const char *before, const char *after,
                                  const char *samples, uint32_t threads, mr_err *err);

#endif
