/* gpu.h - rows in the memory of a GPU, pooled there by the CUDA module (cuda/api.h).
 *
 * The module is a library, memrack-cuda.so beside the program or where MEMRACK_CUDA_MODULE says; it
 * is opened when a GPU is asked for, so that nothing here needs CUDA to build or to start. Sums are
 * those of the CPU, bit for bit (ops.h). No GPU has run this yet: docs/PERFORMANCE.md.
 * Threads: open and close from one; rows are immutable; a lane belongs to one thread at a time. */
#ifndef MR_OPS_GPU_H
#define MR_OPS_GPU_H
#include "common/base/status.h"
#include "common/ops/ops.h"

typedef struct mr_gpu mr_gpu;
typedef struct mr_gpu_rows mr_gpu_rows; /* a table slice on the device */
typedef struct mr_gpu_lane mr_gpu_lane; /* a stream and its room */

/* MR_ERR_UNSUPPORTED: no module, no driver or no such device, with the reason. */
mr_status mr_gpu_open(mr_gpu **out, uint32_t index, mr_err *err);
void mr_gpu_close(mr_gpu *gpu); /* after all that was made with it; NULL is fine */
const char *mr_gpu_name(const mr_gpu *gpu);
uint64_t mr_gpu_free_bytes(const mr_gpu *gpu); /* when asked */

/* f32 and bf16 rows can go there. */
bool mr_gpu_takes(const mr_rows *rows);
mr_status mr_gpu_rows_open(mr_gpu_rows **out, mr_gpu *gpu, const mr_rows *rows, mr_err *err);
void mr_gpu_rows_close(mr_gpu_rows *rows); /* NULL is fine */

mr_status mr_gpu_lane_open(mr_gpu_lane **out, mr_gpu *gpu, mr_err *err);
void mr_gpu_lane_close(mr_gpu_lane *lane); /* NULL is fine */

/* As mr_ops.pool32 and pool64 (bits 32 or 64) and gate_dot, with args->rows as they were when they
 * went to the device; acc and dot are written, not added to. Waits until it is done. */
mr_status mr_gpu_pool(mr_gpu_lane *lane, const mr_gpu_rows *rows, void *acc, uint32_t bits,
                      const mr_pool_args *args, mr_err *err);
mr_status mr_gpu_gate_dot(mr_gpu_lane *lane, const mr_gpu_rows *rows, int64_t *dot,
                          const mr_gate_args *args, mr_err *err);

#endif
