/* geometry_impl.h - what the lists of tensors are checked with. Internal to geometry*.c. */
#ifndef MR_MODEL_GEOMETRY_IMPL_H
#define MR_MODEL_GEOMETRY_IMPL_H
#include "common/model/geometry.h"

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const mr_status try_status = (call);                                                       \
        if (try_status != MR_OK) return try_status;                                                \
    } while (0)

/* What a tensor may be: floats; indices; a matrix in any row format, or one of floats only. */
enum { FLOATS, INDEX, MATRIX, FLOAT_MATRIX };
enum { MR_GEOMETRY_NAME_BYTES = 128 };

#define SHAPE(...)                                                                                 \
    (sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t)), (const uint64_t[]) {                   \
        __VA_ARGS__                                                                                \
    }

/* The tensor must be there with exactly this shape. */
mr_status mr_geometry_need(mr_geometry *g, const mr_tensor **out, int kind, const char *name,
                           uint32_t dims, const uint64_t *shape, mr_err *err);
/* values and, where pre_width is not 0, pre-values of table `index`. */
mr_status mr_geometry_set_table(mr_geometry *g, uint32_t index, const char *values, uint64_t rows,
                                uint64_t width, const char *pre_values, uint64_t pre_width,
                                mr_err *err);
mr_status mr_geometry_check_selection(const mr_memory_layer *l, uint32_t i, mr_err *err);
/* Memory layer i as far as the configuration tells: one slot, one core, all rows. */
mr_memory_layer mr_geometry_plain_layer(const mr_config *c, uint32_t i);
/* geometry_hf.c: the Hugging Face families. */
mr_status mr_geometry_check_hf(mr_geometry *g, mr_err *err);

#endif
