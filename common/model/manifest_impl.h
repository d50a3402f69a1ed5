/* manifest_impl.h - what the files of the manifest share. Internal to common/model. */
#ifndef MR_MODEL_MANIFEST_IMPL_H
#define MR_MODEL_MANIFEST_IMPL_H
#include "common/model/manifest.h"

/* Room for everything, zeroed. */
void mr_manifest_init(mr_manifest *out, const mr_model *model, mr_grid grid);

/* The accumulator rule of docs/ARCHITECTURE.md: fixed per table, never by grid or device. */
uint32_t mr_accumulator_bits(const mr_table_shape *shape, const mr_table_facts *facts);

/* manifest_codes.c: rows of a tensor that is neither F32 nor BF16, whole ones from row `first` on:
 * refuses numbers that are not finite, whatever they are stored as. Types that hold no numbers are
 * passed over. */
mr_status mr_check_codes(const mr_model *model, const mr_tensor *tensor, const uint8_t *data,
                         uint64_t first, uint64_t rows, mr_err *err);

#endif
