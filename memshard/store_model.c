/* store_model.c - a model's tables as a source of cells; see store.h. */
#include "common/base/mem.h"
#include "memshard/store.h"

#include <stdlib.h>

struct mr_model_tables {
    mr_store_source source;
    const mr_model *model;
    const mr_manifest *manifest;
    const mr_memory_layer **layers;
    const mr_table_shape **tables;
};

static const mr_tensor *tensor_of(const mr_model_tables *t, uint32_t table, bool pre_values) {
    const mr_table_shape *shape = t->tables[table];
    return pre_values ? shape->pre_values : shape->values;
}

static mr_status map_tensor(const void *context, mr_mapping *out, uint32_t table, bool pre_values,
                            uint64_t first, uint64_t bytes, mr_err *err) {
    const mr_model_tables *t = context;
    return mr_tensor_map(out, t->model, tensor_of(t, table, pre_values), first, bytes, err);
}

static bool file_of(const void *context, mr_file_part *out, uint32_t table, bool pre_values) {
    const mr_model_tables *t = context;
    const mr_tensor *tensor = tensor_of(t, table, pre_values);
    if (!tensor) return false;
    *out = (mr_file_part){.path = mr_model_file(t->model, tensor), .offset = tensor->offset};
    return true;
}

static bool checks_of(const void *context, mr_checks *out, uint32_t table, bool pre_values) {
    const mr_model_tables *t = context;
    const mr_tensor *tensor = tensor_of(t, table, pre_values);
    if (!tensor) return false;
    *out = mr_manifest_checks(t->manifest, t->model, tensor);
    return out->crc != NULL;
}

static bool cell_check_of(const void *context, uint32_t *out, mr_grid grid, uint32_t table,
                          bool pre_values, uint32_t cell) {
    const mr_model_tables *t = context;
    return mr_manifest_cell_check(out, t->manifest, grid, table, pre_values, cell);
}

mr_status mr_model_tables_open(mr_model_tables **out, const mr_model *model,
                               const mr_manifest *manifest, mr_err *err) {
    const uint32_t layer_count = mr_model_memory_count(model);
    const uint32_t table_count = mr_model_table_count(model);
    *out = NULL;
    if (manifest->table_count != table_count)
        return mr_fail(err, MR_ERR_MISMATCH, "the manifest has %u tables and the model %u",
                       manifest->table_count, table_count);
    mr_model_tables *t = mr_alloc(sizeof(*t));
    t->model = model;
    t->manifest = manifest;
    t->layers = mr_alloc_array(layer_count, sizeof(*t->layers));
    t->tables = mr_alloc_array(table_count, sizeof(*t->tables));
    for (uint32_t i = 0; i < layer_count; i++) t->layers[i] = mr_model_memory(model, i);
    for (uint32_t i = 0; i < table_count; i++) t->tables[i] = mr_model_table(model, i);
    t->source = (mr_store_source){.layers = t->layers,
                                  .tables = t->tables,
                                  .facts = manifest->tables,
                                  .layer_count = layer_count,
                                  .table_count = table_count,
                                  .map = map_tensor,
                                  .context = t,
                                  .checks = checks_of,
                                  .cell_check = cell_check_of,
                                  .is_fetched = mr_model_is_fetched(model),
                                  .file = file_of};
    *out = t;
    return MR_OK;
}

const mr_store_source *mr_model_tables_source(const mr_model_tables *tables) {
    return &tables->source;
}

void mr_model_tables_close(mr_model_tables *tables) {
    if (!tables) return;
    free(tables->layers);
    free(tables->tables);
    free(tables);
}
