/* manifest.h - what must be known of a model's tables before the first sum: digest, maxima, norms,
 * and checksums of every tensor's bytes, so that no part of a file is used that is not what it was.
 *
 * Computed by one streaming pass over the files at first load or by `memrack split`, kept as
 * memrack-manifest.json beside the model or, where that cannot be written, in
 * $XDG_CACHE_HOME/memrack (or ~/.cache/memrack) under the model's fingerprint. A kept manifest
 * counts only while the fingerprint matches; one that is not well-formed is named in the log and
 * made anew. Manifests of version 1 had no checksums and are made anew. A model that is fetched
 * from a source (source.h) must bring its manifest, which then is held against the tensors' names,
 * types, shapes and places instead. A non-finite table element is refused with its tensor, row and
 * column. */
#ifndef MR_MODEL_MANIFEST_H
#define MR_MODEL_MANIFEST_H
#include "common/base/checksum.h"
#include "common/model/grid.h"
#include "common/model/model.h"

typedef struct {
    double value_max; /* Vmax: largest |value| of the whole table */
    double value_rms;
    double pre_norm_max;       /* Pmax: largest norm of a pre-value row; 0 without pre-values */
    uint32_t accumulator_bits; /* 32 or 64: 64 if gated or Vmax > 64 rms */
    /* [cells of the manifest's grid] CRC32C of a cell's values and pre-values, row after row of its
     * slice; NULL where the manifest has no grid */
    uint32_t *cell_crc[2];
} mr_table_facts;

typedef struct {
    mr_digest digest; /* SHA-256 over names, types, shapes and bytes of all tensors, and config */
    uint32_t table_count;
    mr_table_facts *tables; /* [table_count] */
    mr_grid grid;           /* the one `memrack split` was given; 0 x 0: none */
    uint32_t chunk_bytes;
    uint32_t tensor_count;
    uint32_t **crc; /* [tensor_count][chunks], in the model's order */
} mr_manifest;

/* fraction in [0, 1]; called now and then during the pass. May be NULL. */
typedef void (*mr_progress)(void *context, const char *what, double fraction);

mr_status mr_manifest_load(mr_manifest *out, const mr_model *model, mr_progress progress,
                           void *context, mr_err *err);
void mr_manifest_free(mr_manifest *manifest);

/* The pass itself, whatever is kept; grid 0 x 0: without cells. */
mr_status mr_manifest_make(mr_manifest *out, const mr_model *model, mr_grid grid,
                           mr_progress progress, void *context, mr_err *err);
mr_status mr_manifest_write(const mr_manifest *manifest, const mr_model *model, const char *path,
                            mr_err *err);
/* Untrusted text, held against the model's tensors. */
mr_status mr_manifest_read(mr_manifest *out, const mr_model *model, const char *path, mr_err *err);

/* Checksums of a tensor of model; borrowed from the manifest. */
mr_checks mr_manifest_checks(const mr_manifest *manifest, const mr_model *model,
                             const mr_tensor *tensor);
/* false: not known for this grid. */
bool mr_manifest_cell_check(uint32_t *out, const mr_manifest *manifest, mr_grid grid,
                            uint32_t table, bool pre_values, uint32_t cell);

#endif
