/* matrices.h - what a model's tensors are for: its dense matrices and vectors by role, each made of
 * parts of tensors, whatever the checkpoint calls them.
 *
 * Nobody but matrices.c knows tensor names of matrices and vectors (geometry*.c checks that the
 * tensors are there, with their shapes, when a model is opened; names of the memory layers' keys
 * and cores are product_keys.c's). Threads: everything only reads. */
#ifndef MR_MODEL_MATRICES_H
#define MR_MODEL_MATRICES_H
#include "common/model/model.h"

typedef enum {
    MR_MATRIX_NONE, /* before the first */
    /* of a block */
    MR_MATRIX_ATT_PROJ,    /* query | key | value */
    MR_MATRIX_ATTN_OUT,    /* */
    MR_MATRIX_FF_PROJ,     /* up | gate */
    MR_MATRIX_FF_OUT,      /* */
    MR_MATRIX_ROUTER,      /* where the block has experts: these instead of FF_ */
    MR_MATRIX_EXPERT_GATE, /* of one expert */
    MR_MATRIX_EXPERT_UP,
    MR_MATRIX_EXPERT_DOWN,
    MR_MATRIX_SHARED_PROJ, /* the shared expert: up | gate */
    MR_MATRIX_SHARED_OUT,
    MR_MATRIX_SHARED_GATE, /* one output */
    /* of a memory layer */
    MR_MATRIX_QUERY_PROJ,
    MR_MATRIX_PRE_PROJ,
    MR_MATRIX_VALUE_PROJ,
    MR_MATRIX_SILU_PROJ,
    /* of the model */
    MR_MATRIX_HEAD,
} mr_matrix_role;

typedef struct {
    mr_matrix_role role;
    uint32_t index; /* block or memory layer; 0 for the head */
    uint32_t expert;
} mr_matrix_id;

/* Rows [row_first, row_first + rows) of a tensor with two dimensions. transposed: its rows are
 * inputs, its columns outputs. */
typedef struct {
    const mr_tensor *tensor;
    uint64_t row_first;
    uint32_t rows;
    bool transposed;
} mr_matrix_part;

enum { MR_MATRIX_PARTS_MAX = 4 };

typedef struct {
    mr_matrix_id id;
    char name[64];                             /* "blocks.3.att_proj", "blocks.0.experts.7.up" */
    uint32_t n, k;                             /* outputs, inputs */
    mr_matrix_part parts[MR_MATRIX_PARTS_MAX]; /* one after the other along n */
    uint32_t part_count;
} mr_matrix;

/* The model has this matrix (mr_matrix_next names it): asserts. */
void mr_matrix_of(mr_matrix *out, const mr_model *model, mr_matrix_id id);
/* From {0} to the first matrix, then from one to the next; false after the last. By blocks, then by
 * memory layers, then the head. */
bool mr_matrix_next(const mr_model *model, mr_matrix_id *id);
bool mr_matrix_exists(const mr_model *model, mr_matrix_id id);

typedef enum {
    MR_VECTOR_ATTN_NORM,
    MR_VECTOR_FF_NORM,
    MR_VECTOR_Q_NORM,
    MR_VECTOR_K_NORM,
    MR_VECTOR_ATT_BIAS, /* query | key | value */
    MR_VECTOR_ATTN_OUT_BIAS,
    MR_VECTOR_FF_BIAS, /* up | gate */
    MR_VECTOR_FF_OUT_BIAS,
    MR_VECTOR_FINAL_NORM, /* of the model */
    MR_VECTOR_QUERY_BIAS, /* of a memory layer, as are those below */
    MR_VECTOR_QUERY_NORM,
    MR_VECTOR_SILU_BIAS,
    MR_VECTOR_VALUE_BIAS,
} mr_vector_role;

enum { MR_VECTOR_PARTS_MAX = 3 };

/* The tensors a vector is made of, one after the other; returns how many, 0 where the model has no
 * such vector. */
uint32_t mr_vector_of(const mr_tensor *parts[MR_VECTOR_PARTS_MAX], const mr_model *model,
                      mr_vector_role role, uint32_t index);

/* A memory layer's own tensor, "keys" or the like; NULL where it has none. */
const mr_tensor *mr_memory_tensor(const mr_model *model, uint32_t layer, const char *suffix);

/* transformer.wte.weight, or what stands for it: [head_rows][d_model]. */
const mr_tensor *mr_model_embedding(const mr_model *model);

/* A head that is in the files although it is tied to the embedding, or NULL. */
const mr_tensor *mr_model_spare_head(const mr_model *model);

/* What a tensor of a checked model is, by its name. */
typedef enum {
    MR_TENSOR_DENSE,
    MR_TENSOR_EMBEDDING,
    MR_TENSOR_HEAD, /* lm_head.weight: without effect where the head is tied */
    MR_TENSOR_EXPERT,
    MR_TENSOR_KEYS,    /* product keys */
    MR_TENSOR_SHUFFLE, /* shuffle_index */
    MR_TENSOR_UNUSED   /* in the file, without effect */
} mr_tensor_kind;
/* index: the block (of a memory layer's tensor: the layer, and *is_memory); UINT32_MAX for those of
 * the whole model. Tables are dense to it: ask the model for them. */
mr_tensor_kind mr_tensor_kind_of(uint32_t *index, bool *is_memory, const char *name);

#endif
