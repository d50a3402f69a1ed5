/* geometry.h - from a configuration and tensor shapes to the geometry of every memory layer, and
 * the list of tensors an architecture must have. Internal to common/model. */
#ifndef MR_MODEL_GEOMETRY_H
#define MR_MODEL_GEOMETRY_H
#include "common/model/model.h"

typedef const mr_tensor *(*mr_tensor_finder)(const void *context, const char *name);

typedef struct {
    mr_tensor_finder find;
    const void *context;
    const mr_config *config;
    mr_table_shape *tables; /* [memory_count] room */
    uint32_t table_count;
    mr_memory_layer *layers; /* [memory_count] room */
    /* each one that was asked for; columns: how many numbers a row has, once known, else 0 */
    void (*mark)(void *mark_context, const mr_tensor *tensor, uint64_t columns);
    void *mark_context;
    /* Stands for a matrix that is stored as panels (panels.h) and has no rows: [shape[0]][shape[1]]
     */
    const mr_tensor *(*invent)(void *mark_context, const char *name, const uint64_t shape[2]);
} mr_geometry;

/* Checks every tensor of the architecture and fills tables and layers. */
mr_status mr_geometry_check(mr_geometry *g, mr_err *err);

#endif
