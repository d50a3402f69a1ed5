/* presets.h - named shapes of models that were published, as random models for tests and
 * benchmarks.
 *
 * A preset is a mr_shape; it can be scaled and every number overridden. From a shape follow the
 * text of config.json (checked by mr_config_parse itself, so that nothing is written that would be
 * refused) and the list of tensors, each with how its random values are drawn. Sources:
 * docs/MODELS.md. */
#ifndef MR_MODEL_PRESETS_H
#define MR_MODEL_PRESETS_H
#include "common/model/config.h"
#include "common/model/dtype.h"

enum { MR_INSERTION_TEXT_BYTES = 4096, MR_SYNTH_NAME_BYTES = 96, MR_SYNTH_RANK = 2 };

typedef struct {
    char name[48];
    uint32_t d_model, heads, kv_heads, layers;
    uint32_t mlp_hidden; /* rows of ff_proj */
    uint32_t vocab, context;
    bool tied;
    uint32_t experts, experts_per_token; /* 0: no MoE */
    mr_memory_kind memory;
    uint32_t knum, kdim, vdim, pre_vdim, knn, mem_heads;
    uint32_t key_expand, value_expand; /* kx of v2; E of v1 */
    double share_ratio;
    char insertions[MR_INSERTION_TEXT_BYTES]; /* mem_insert_way */
} mr_shape;

uint32_t mr_preset_count(void);
void mr_preset_at(mr_shape *out, uint32_t index);
/* An unknown name is MR_ERR_ARGUMENT and a sentence that says how to list the presets. */
mr_status mr_preset_find(mr_shape *out, const char *name, mr_err *err);

/* Multiplies the widths (d_model by whole heads, mlp, keys and values) and knum by factor; layers,
 * vocabulary, knn and heads of the memory stay. knn shrinks only where fewer keys are left. */
void mr_shape_scale(mr_shape *shape, double factor);
/* Sets the number of layers and moves the insertions with them; pairs that would be lost go, and
 * knn shrinks where the shared ring of v2 becomes too small. */
void mr_shape_set_layers(mr_shape *shape, uint32_t layers);
/* Sets d_model and, in proportion, the widths that follow from it (mlp; values of pkm,
 * memory_plus). heads: 0 keeps the size of a head where that divides, else the number of heads. */
void mr_shape_set_width(mr_shape *shape, uint32_t d_model, uint32_t heads);

/* config.json; owned by the caller. An impossible shape is refused with one sentence. */
mr_status mr_shape_config(char **out, const mr_shape *shape, mr_err *err);

/* What a tensor's random values look like. */
typedef enum {
    MR_FILL_NORMAL,      /* N(mean, spread^2) */
    MR_FILL_CONSTANT,    /* mean */
    MR_FILL_PERMUTATION, /* of 0 .. side^2 - 1, I64 */
    MR_FILL_TUCKER_U,    /* leading left singular vectors of the layer's summed cores */
    MR_FILL_TUCKER_V     /* right */
} mr_fill_kind;

typedef enum { MR_ROLE_DENSE, MR_ROLE_KEYS, MR_ROLE_INDEX, MR_ROLE_TABLE } mr_tensor_role;

typedef struct {
    char name[MR_SYNTH_NAME_BYTES];
    mr_tensor_role role;
    uint32_t dims;
    uint64_t shape[5];
    mr_fill_kind fill;
    float mean, spread;
    uint32_t layer; /* memory layer, for the Tucker vectors */
    uint64_t side;  /* permutation */
} mr_synth_tensor;

/* *out: owned array. The shape was accepted by mr_shape_config. */
void mr_shape_tensors(mr_synth_tensor **out, uint32_t *count, const mr_shape *shape);
uint64_t mr_synth_elements(const mr_synth_tensor *tensor);

typedef struct {
    uint64_t dense, keys, index, table; /* elements by role; dense includes the embedding */
} mr_shape_counts;
mr_shape_counts mr_shape_count(const mr_shape *shape);

#endif
