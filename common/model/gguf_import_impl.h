/* gguf_import_impl.h - what the parts of the import share: the model's numbers, what becomes of
 * each tensor, and the tokenizer's files. Internal to gguf_import*.c and gguf_tokenizer*.c. */
#ifndef MR_MODEL_GGUF_IMPORT_IMPL_H
#define MR_MODEL_GGUF_IMPORT_IMPL_H
#include "common/base/json.h"
#include "common/model/dtype.h"
#include "common/model/gguf.h"
#include "common/model/gguf_import.h"
#include "common/model/safetensors_write.h"

typedef enum {
    GGUF_LLAMA = 1, /* Llama 2 and 3, Mistral */
    GGUF_MIXTRAL = 2,
    GGUF_QWEN2 = 4,
    GGUF_QWEN3 = 8,
    GGUF_OLMO = 16,
    GGUF_OLMO2 = 32,
    GGUF_QWEN2MOE = 64,
    GGUF_QWEN3MOE = 128,
    GGUF_OLMOE = 256,
    GGUF_EVERY = 511,
    GGUF_MOE = GGUF_MIXTRAL | GGUF_QWEN2MOE | GGUF_QWEN3MOE | GGUF_OLMOE
} gguf_family;

/* All that config.json says; zero where a family has no such thing. */
typedef struct {
    gguf_family family;
    char arch[32]; /* general.architecture, the prefix of its keys */
    const char *model_type, *class_name;
    uint64_t layers, hidden, heads, kv_heads, head_dim, mlp, vocab, context, window;
    uint64_t experts, experts_used, expert_mlp, shared_mlp;
    double eps, theta, clip;
    bool tied, attention_bias, mlp_bias, norm_topk;
    json_t *rope_scaling; /* owned; NULL: none */
} gguf_model;

mr_status gguf_model_read(gguf_model *out, mr_gguf *file, mr_err *err);
void gguf_model_free(gguf_model *model);
/* The object of config.json without what the tensors decide; the caller owns it. */
json_t *gguf_model_config(const gguf_model *model, mr_gguf *file);

/* Finds the llama3 parameters whose factors are those of rope_freqs.weight, in *out (owned; NULL:
 * all factors are 1). Refuses factors that are not of that form. */
mr_status gguf_rope_from_factors(json_t **out, const float *factors, uint32_t count, double theta,
                                 mr_err *err);

/* One tensor to be written: rows [rows][columns] of a GGUF tensor from element first on. */
typedef struct {
    const mr_gguf_tensor *from;
    char *name;
    uint64_t first, rows, columns;
    uint64_t head_rows; /* > 0: rows come in heads of so many, to be put back in order */
    uint32_t dims;
    uint64_t shape[2]; /* in elements */
    mr_dtype dtype;    /* U8: the blocks as they are */
    uint32_t number;   /* the writer's */
} gguf_output;

typedef struct {
    gguf_output *items;
    uint32_t count, room;
} gguf_plan;

/* Every tensor of the model, checked, with its new name and type; every tensor of the file used. */
mr_status gguf_plan_make(gguf_plan *out, const gguf_model *model, const mr_gguf *file,
                         mr_import_dtype dtype, mr_err *err);
void gguf_plan_free(gguf_plan *plan);
/* Adds torch_dtype and quantization_config to config. */
void gguf_plan_describe(const gguf_plan *plan, json_t *config);

/* Writes all tensors; declares them first. */
mr_status gguf_copy_tensors(gguf_plan *plan, mr_gguf *file, const char *directory,
                            const mr_import_options *options, mr_import_report *report,
                            mr_err *err);

/* The tokenizer's files in memory; all owned. */
typedef struct {
    char name[32];                        /* for a report; empty: there is none */
    json_t *tokenizer, *tokenizer_config; /* NULL: there is none */
    json_t *generation_config;
} gguf_tokenizer;

/* On failure *out holds nothing. */
mr_status gguf_tokenizer_read(gguf_tokenizer *out, mr_gguf *file, const gguf_model *model,
                              bool no_tokenizer, mr_err *err);
mr_status gguf_tokenizer_write(const gguf_tokenizer *tokenizer, const char *directory, mr_err *err);
void gguf_tokenizer_free(gguf_tokenizer *tokenizer);

#endif
