/* pool.cuh - pooling and gate dots: rows are far apart in memory, so the work is to have many bytes
 * on their way.
 *
 * A block of four warps makes one slot of one token and 32 lanes' worth of columns, 16 bytes a
 * lane. 32 entries at a time are looked at together: a ballot finds those of the slot, the warps
 * deal them out, and each asks for four rows before it adds any. The warps' sums are integers, so
 * that their order is free; they meet in shared memory. Slices whose rows do not allow 16-byte
 * loads, or whose lanes would straddle two cores, take a plain kernel with one column a thread. */
#ifndef MR_OPS_CUDA_POOL_CUH
#define MR_OPS_CUDA_POOL_CUH
#include "common/ops/cuda/device.h"

enum { POOL_WARPS = 4, POOL_THREADS = POOL_WARPS * MR_WARP, POOL_AHEAD = 4, LANE_BYTES = 16 };

typedef struct {
    uint32_t word[4];
} mr_lane16;

static __device__ __forceinline__ mr_lane16 load16(const uint8_t *at) {
    mr_lane16 lane;
#ifdef MR_CUDA_EMULATOR
    memcpy(&lane, at, sizeof(lane));
#else
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(lane.word[0]), "=r"(lane.word[1]), "=r"(lane.word[2]), "=r"(lane.word[3])
                 : "l"(at));
#endif
    return lane;
}

/* Element i of a lane: one of 8 bf16 or of 4 f32. */
static __device__ __forceinline__ float lane_element(const mr_lane16 *lane, int is_bf16, int i) {
    if (!is_bf16) return mr_float_of_bits(lane->word[i]);
    return mr_float_of_bits(i & 1 ? lane->word[i / 2] & 0xffff0000u : lane->word[i / 2] << 16);
}

/* The bits of mask that are this warp's: every POOL_WARPS-th. */
static __device__ __forceinline__ uint32_t own_bits(uint32_t mask, uint32_t warp) {
    uint32_t own = 0, rank = 0;
    for (; mask; mask &= mask - 1, rank++)
        if (rank % POOL_WARPS == warp) own |= mask & (0u - mask);
    return own;
}

/* What one lane adds up: ELEMENTS columns from `column` on, of one core. */
#define MR_POOL_KERNEL(NAME, SUM, ROUND, ACC, IS_BF16, ELEMENTS)                                   \
    MR_KERNEL(NAME, mr_cuda_pool) {                                                                \
        __shared__ SUM part[POOL_WARPS][MR_WARP * ELEMENTS];                                       \
        const uint32_t lane = threadIdx.x % MR_WARP, warp = threadIdx.x / MR_WARP;                 \
        const uint32_t token = blockIdx.x / a.slots, slot = blockIdx.x % a.slots;                  \
        const uint32_t column = (blockIdx.y * MR_WARP + lane) * ELEMENTS;                          \
        const int inside = column < a.rows.columns;                                                \
        const uint32_t core =                                                                      \
            inside ? (a.column_first + column) / a.core_columns - a.core_first : 0;                \
        const float *weight = a.weight + core * a.weight_stride;                                   \
        const uint8_t *data = (const uint8_t *)a.rows.data + (uint64_t)column * (IS_BF16 ? 2 : 4); \
        const uint32_t end = a.first[token + 1];                                                   \
        SUM sum[ELEMENTS];                                                                         \
        for (int i = 0; i < ELEMENTS; i++) sum[i] = 0;                                             \
        for (uint32_t base = a.first[token]; base < end; base += MR_WARP) {                        \
            const uint32_t entry = base + lane;                                                    \
            const int taken = entry < end && (!a.slot || a.slot[entry] == slot);                   \
            const uint32_t row = taken ? a.row[entry] : 0;                                         \
            uint32_t own = own_bits(__ballot_sync(0xffffffffu, taken), warp);                      \
            while (own) {                                                                          \
                mr_lane16 value[POOL_AHEAD];                                                       \
                float factor[POOL_AHEAD];                                                          \
                int count = 0;                                                                     \
                for (; count < POOL_AHEAD && own; count++, own &= own - 1) {                       \
                    const int from = __ffs((int)own) - 1;                                          \
                    const uint64_t id = __shfl_sync(0xffffffffu, row, from);                       \
                    factor[count] = weight[base + (uint32_t)from];                                 \
                    if (inside)                                                                    \
                        value[count] =                                                             \
                            load16(data + (id - a.rows.row_first) * a.rows.stride_bytes);          \
                }                                                                                  \
                for (int r = 0; inside && r < count; r++)                                          \
                    for (int i = 0; i < ELEMENTS; i++)                                             \
                        sum[i] +=                                                                  \
                            ROUND(__fmul_rn(factor[r], lane_element(&value[r], IS_BF16, i)));      \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < ELEMENTS; i++) part[warp][lane * ELEMENTS + i] = sum[i];               \
        __syncthreads();                                                                           \
        SUM *out = a.ACC + ((uint64_t)token * a.slots + slot) * a.rows.columns;                    \
        for (uint32_t c = threadIdx.x; c < MR_WARP * ELEMENTS; c += POOL_THREADS) {                \
            const uint32_t at = blockIdx.y * MR_WARP * ELEMENTS + c;                               \
            SUM total = 0;                                                                         \
            for (int w = 0; w < POOL_WARPS; w++) total += part[w][c];                              \
            if (at < a.rows.columns) out[at] += total;                                             \
        }                                                                                          \
    }

MR_POOL_KERNEL(pool32_f32, int32_t, __float2int_rn, acc32, 0, 4)
MR_POOL_KERNEL(pool32_bf16, int32_t, __float2int_rn, acc32, 1, 8)
MR_POOL_KERNEL(pool64_f32, int64_t, __float2ll_rn, acc64, 0, 4)
MR_POOL_KERNEL(pool64_bf16, int64_t, __float2ll_rn, acc64, 1, 8)

/* Any alignment, any cores: one column a thread. */
MR_KERNEL(pool_any, mr_cuda_pool) {
    const uint32_t token = blockIdx.x / a.slots, slot = blockIdx.x % a.slots;
    const uint32_t column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= a.rows.columns) return;
    const uint32_t core = (a.column_first + column) / a.core_columns - a.core_first;
    const float *weight = a.weight + core * a.weight_stride;
    int64_t sum = 0;
    for (uint32_t j = a.first[token]; j < a.first[token + 1]; j++) {
        if (a.slot && a.slot[j] != slot) continue;
        const uint8_t *row = (const uint8_t *)a.rows.data +
                             (uint64_t)(a.row[j] - a.rows.row_first) * a.rows.stride_bytes;
        const float product = __fmul_rn(weight[j], mr_row_element(row, a.rows.is_bf16, column));
        sum += a.acc32 ? (int64_t)__float2int_rn(product) : __float2ll_rn(product);
    }
    const uint64_t at = ((uint64_t)token * a.slots + slot) * a.rows.columns + column;
    if (a.acc32)
        a.acc32[at] += (int32_t)sum;
    else
        a.acc64[at] += sum;
}

/* A warp an entry. The token of an entry is found by bisection: tokens are few. */
MR_KERNEL(dot_entries, mr_cuda_dot) {
    const uint32_t lane = threadIdx.x % MR_WARP;
    const uint32_t entry = blockIdx.x * POOL_WARPS + threadIdx.x / MR_WARP;
    uint32_t token = 0, above = a.tokens;
    int64_t sum = 0;
    if (entry >= a.entries) return; /* whole warps */
    while (above - token > 1) {
        const uint32_t middle = token + (above - token) / 2;
        if (a.first[middle] <= entry)
            token = middle;
        else
            above = middle;
    }
    const uint8_t *row = (const uint8_t *)a.rows.data +
                         (uint64_t)(a.row[entry] - a.rows.row_first) * a.rows.stride_bytes;
    const float *x = a.x + token * a.x_stride;
    for (uint32_t c = lane; c < a.rows.columns; c += MR_WARP)
        sum += __float2ll_rn(__fmul_rn(x[c], mr_row_element(row, a.rows.is_bf16, c)));
    for (int step = MR_WARP / 2; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) a.dot[entry] = sum;
}

/* --- gates ------------------------------------------------------------------------------------ */

typedef struct {
    mr_cuda_gate work;
    const double *erf_value, *erf_slope; /* device copies of math.h's tables */
} mr_gate_launch;

static __device__ __forceinline__ float power_of_two(int power) {
    return mr_float_of_bits((uint32_t)(power + 127) << 23);
}

/* The operations of mr_gelu and mr_erf, one by one; the module is built without contraction. */
static __device__ float device_gelu(float x, const double *value, const double *slope) {
    const double y =
        0.5 * (double)x * (1.0 + mr_erf_of((double)x * 0.70710678118654752, value, slope));
    return (float)y;
}

MR_KERNEL(gate_entries, mr_gate_launch) {
    const uint32_t entry = blockIdx.x * blockDim.x + threadIdx.x;
    const mr_cuda_gate g = a.work;
    uint32_t token = 0, above = g.tokens;
    if (entry >= g.entries) return;
    while (above - token > 1) {
        const uint32_t middle = token + (above - token) / 2;
        if (g.first[middle] <= entry)
            token = middle;
        else
            above = middle;
    }
    const float dot =
        __fmul_rn(__ll2float_rn(g.dot[entry]), power_of_two(g.dot_exponent[token] - 62));
    const float gate = g.is_gelu ? device_gelu(dot, a.erf_value, a.erf_slope) : dot;
    for (uint32_t core = 0; core < g.cores; core++) {
        const uint64_t at = (uint64_t)core * g.entries + entry;
        g.weight[at] =
            __fmul_rn(__fmul_rn(gate, g.score[at]), power_of_two(62 - g.value_exponent[token]));
    }
}

/* --- launches --------------------------------------------------------------------------------- */

/* Whether every lane's 16 bytes are aligned, inside the slice, and of one core. */
static int pool_is_wide(const mr_cuda_pool *w, uint32_t elements) {
    return (uint64_t)(uintptr_t)w->rows.data % LANE_BYTES == 0 &&
           w->rows.stride_bytes % LANE_BYTES == 0 && w->rows.columns % elements == 0 &&
           w->core_columns % elements == 0 && w->column_first % elements == 0;
}

static void launch_pool(cudaStream_t stream, const mr_cuda_pool *w) {
    const uint32_t elements = w->rows.is_bf16 ? 8 : 4;
    const uint32_t blocks = w->tokens * w->slots;
    if (!pool_is_wide(w, elements)) {
        const uint32_t tiles = (w->rows.columns + POOL_THREADS - 1) / POOL_THREADS;
        MR_LAUNCH(pool_any, mr_cuda_pool, blocks, tiles, POOL_THREADS, stream, *w);
        return;
    }
    const uint32_t tile = MR_WARP * elements, tiles = (w->rows.columns + tile - 1) / tile;
    if (w->acc32 && w->rows.is_bf16)
        MR_LAUNCH(pool32_bf16, mr_cuda_pool, blocks, tiles, POOL_THREADS, stream, *w);
    else if (w->acc32)
        MR_LAUNCH(pool32_f32, mr_cuda_pool, blocks, tiles, POOL_THREADS, stream, *w);
    else if (w->rows.is_bf16)
        MR_LAUNCH(pool64_bf16, mr_cuda_pool, blocks, tiles, POOL_THREADS, stream, *w);
    else
        MR_LAUNCH(pool64_f32, mr_cuda_pool, blocks, tiles, POOL_THREADS, stream, *w);
}

static void launch_dot(cudaStream_t stream, const mr_cuda_dot *w) {
    const uint32_t blocks = (w->entries + POOL_WARPS - 1) / POOL_WARPS;
    MR_LAUNCH(dot_entries, mr_cuda_dot, blocks, 1, POOL_THREADS, stream, *w);
}

static void launch_gate(cudaStream_t stream, const mr_cuda_gate *w, const double *erf_value,
                        const double *erf_slope) {
    const mr_gate_launch launch = {*w, erf_value, erf_slope};
    MR_LAUNCH(gate_entries, mr_gate_launch, (w->entries + POOL_THREADS - 1) / POOL_THREADS, 1,
              POOL_THREADS, stream, launch);
}

#endif
