/* manifest_impl.h - what the files of the manifest share. Internal to common/model. */
#ifndef MR_MODEL_MANIFEST_IMPL_H
#define MR_MODEL_MANIFEST_IMPL_H
#include "common/model/manifest.h"

/* Room for everything, zeroed. */
void mr_manifest_init(mr_manifest *out, const mr_model *model, mr_grid grid);

/* The accumulator rule of docs/ARCHITECTURE.md: fixed per table, never by grid or device. */
uint32_t mr_accumulator_bits(const mr_table_shape *shape, const mr_table_facts *facts);

#endif
