/* manifest.h - what must be known of a model's tables before the first sum: digest, maxima, norms.
 *
 * Computed by one streaming pass over the files at first load, kept as memrack-manifest.json beside
 * the model or, where that cannot be written, in $XDG_CACHE_HOME/memrack (or ~/.cache/memrack)
 * under the model's fingerprint. A kept manifest counts only while the fingerprint matches. A
 * non-finite table element is refused with its tensor, row and column. */
#ifndef MR_MODEL_MANIFEST_H
#define MR_MODEL_MANIFEST_H
#include "common/model/model.h"

typedef struct {
    double value_max; /* Vmax: largest |value| of the whole table */
    double value_rms;
    double pre_norm_max;       /* Pmax: largest norm of a pre-value row; 0 without pre-values */
    uint32_t accumulator_bits; /* 32 or 64: 64 if gated or Vmax > 64 rms */
} mr_table_facts;

typedef struct {
    mr_digest digest; /* SHA-256 over names, types, shapes and bytes of all tensors, and config */
    uint32_t table_count;
    mr_table_facts *tables; /* [table_count] */
} mr_manifest;

/* fraction in [0, 1]; called now and then during the pass. May be NULL. */
typedef void (*mr_progress)(void *context, const char *what, double fraction);

mr_status mr_manifest_load(mr_manifest *out, const mr_model *model, mr_progress progress,
                           void *context, mr_err *err);
void mr_manifest_free(mr_manifest *manifest);

#endif
