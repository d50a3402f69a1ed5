/* api.h - what the CUDA module offers: one table of functions, found by name in a library that is
 * opened at run time (gpu.h). C on both sides; nothing of ours links against it.
 *
 * Pointers called device lie in the memory of the module's device. Work of one stream runs in the
 * order it was given; only sync waits. Functions return 0, or not and the thread's error() says
 * why in one sentence. The arithmetic is that of ops.h: pool, dot and select give the same bits as
 * every CPU backend, and so do key scores (one chain of fused multiply-adds over K). */
#ifndef MR_OPS_CUDA_API_H
#define MR_OPS_CUDA_API_H
#include <stdint.h>

enum { MR_CUDA_ABI = 1 };
#define MR_CUDA_SYMBOL "mr_cuda_module"

/* Rows of a table slice on the device: f32 or bf16 elements side by side. */
typedef struct {
    const void *data; /* device; row row_first */
    uint64_t row_first, stride_bytes;
    uint32_t columns;
    int32_t is_bf16;
} mr_cuda_rows;

/* As mr_pool_args. All pointers are device; acc32 or acc64 is NULL. */
typedef struct {
    mr_cuda_rows rows;
    uint32_t tokens, slots;
    const uint32_t *first; /* [tokens + 1] first entry of each token, then their number */
    const uint32_t *row;   /* [entries] */
    const uint8_t *slot;   /* [entries] or NULL */
    const float *weight;   /* [cores][weight_stride] */
    uint64_t weight_stride;
    uint32_t column_first, core_columns, core_first;
    int32_t *acc32; /* [tokens][slots][columns], added to */
    int64_t *acc64;
} mr_cuda_pool;

/* As mr_gate_args. */
typedef struct {
    mr_cuda_rows rows;
    uint32_t tokens, entries;
    const uint32_t *first, *row;
    const float *x; /* [tokens][x_stride] */
    uint64_t x_stride;
    int64_t *dot; /* [entries] */
} mr_cuda_dot;

/* Weights of a gated layer from its dots: as mr_gate_weight, then 2^(62 - e). */
typedef struct {
    uint32_t tokens, entries, cores;
    const uint32_t *first;
    const int64_t *dot;
    const int16_t *dot_exponent, *value_exponent; /* [tokens] */
    const float *score;                           /* [cores][entries] */
    float *weight;                                /* [cores][entries] */
    int32_t is_gelu;
} mr_cuda_gate;

/* y[m][n] = x . keys^T for f32 or bf16 panels as in mr_packed. */
typedef struct {
    const void *keys; /* device */
    int32_t is_bf16;
    uint32_t n, k, m;
    const float *x;
    float *y;
    uint64_t x_stride, y_stride;
} mr_cuda_scores;

/* The k best of each row of scores: as mr_ops.select. */
typedef struct {
    const float *score; /* [rows][stride] */
    uint64_t stride;
    uint32_t rows, n, k; /* k <= 1024 */
    uint32_t *index;     /* [rows][k] */
    uint32_t *bad;       /* [1]: set to 1 where a score is NaN */
} mr_cuda_select;

typedef struct {
    char name[128];
    uint64_t memory_bytes, free_bytes;
    uint32_t processors, major, minor;
} mr_cuda_facts;

typedef struct {
    uint32_t abi;
    const char *(*error)(void);
    int (*open)(void **device, int index); /* one per process and index */
    void (*close)(void *device);
    int (*describe)(void *device, mr_cuda_facts *out);
    int (*alloc)(void *device, void **out, uint64_t bytes);
    void (*release)(void *device, void *memory);
    int (*alloc_host)(void *device, void **out, uint64_t bytes); /* pinned */
    void (*release_host)(void *device, void *memory);
    int (*stream_open)(void *device, void **out);
    void (*stream_close)(void *stream);
    int (*sync)(void *stream);
    int (*upload)(void *stream, void *to, const void *from, uint64_t bytes);
    int (*download)(void *stream, void *to, const void *from, uint64_t bytes);
    int (*clear)(void *stream, void *memory, uint64_t bytes);
    int (*copy)(void *stream, void *to, const void *from, uint64_t bytes); /* on the device */
    int (*pool)(void *stream, const mr_cuda_pool *work);
    int (*dot)(void *stream, const mr_cuda_dot *work);
    int (*gate)(void *stream, const mr_cuda_gate *work);
    int (*scores)(void *stream, const mr_cuda_scores *work);
    int (*select)(void *stream, const mr_cuda_select *work);
    /* Milliseconds between two marks of a stream; mark 0 or 1. */
    int (*mark)(void *stream, int which);
    int (*elapsed)(void *stream, float *ms);
} mr_cuda_api;

typedef const mr_cuda_api *(*mr_cuda_module_function)(void);

#endif
