/* gguf_import.h - a GGUF file becomes a model directory with Hugging Face names.
 *
 * Written are config.json, safetensors, and what the file holds of a tokenizer: tokenizer.json,
 * tokenizer_config.json (with the chat template) and generation_config.json. Q8_0 and Q4_0 rows
 * keep their very bytes where the caller wants that; everything else becomes a float type. The
 * directory is made under a temporary name and renamed when it is whole.
 * Threads: one call is one thread. Memory: some MiB and the tokenizer, whatever the file's size. */
#ifndef MR_MODEL_GGUF_IMPORT_H
#define MR_MODEL_GGUF_IMPORT_H
#include "common/base/status.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { MR_IMPORT_KEEP, MR_IMPORT_F32, MR_IMPORT_BF16, MR_IMPORT_F16 } mr_import_dtype;

typedef struct {
    const char *file, *directory;
    mr_import_dtype dtype; /* of matrices; vectors stay f32 unless kept */
    bool no_tokenizer;
    uint64_t file_bytes_max; /* of one safetensors file; 0: no limit */
    void (*progress)(void *context, const char *what, double fraction); /* may be NULL */
    void *context;
    const volatile sig_atomic_t *interrupted; /* may be NULL; nonzero: stop and clean up */
} mr_import_options;

typedef struct {
    char model_type[32], architecture[32];  /* Hugging Face's and the file's */
    char tokenizer[32];                     /* "gpt2 (llama-bpe)"; empty: none was written */
    char rounded_types[64];                 /* block types of the rounded tensors, "Q4_K Q6_K" */
    uint32_t tensors, files, block_tensors; /* written; of them with their blocks kept */
    uint32_t rounded_tensors;               /* of them that lost bits */
    double rounded_most;                    /* largest relative change of a value */
    uint64_t bytes, f32_bytes;              /* written; had --dtype f32 been asked for */
} mr_import_report;

/* Refuses a directory that exists and is not empty. On failure nothing is left behind. */
mr_status mr_gguf_import(const mr_import_options *options, mr_import_report *report, mr_err *err);

#endif
