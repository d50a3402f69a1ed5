/* gemm_loop.h - products with packed weights, written once for all vector widths. A file that
 * includes it has defined LANES, TILE_VECTORS, vf (floats) and vi (integers) of so many lanes, and
 * the small functions v_* below on them; it is built with the flags of its instruction set.
 *
 * Work is counted in vectors of outputs: vector g holds outputs [g * LANES, + LANES). A tile is
 * `rows` rows of x times `vectors` such vectors (TILE_VECTORS of them), its sums in registers, each
 * one chain over K. K is walked in chunks, so that a chunk of a panel stays in the first-level
 * cache while all rows use it; between chunks the sums wait in y, and nothing is added in another
 * order. */
#ifndef MR_OPS_CPU_GEMM_LOOP_H
#define MR_OPS_CPU_GEMM_LOOP_H
#include "common/ops/packed.h"

#define INLINE static inline __attribute__((always_inline))

enum { IN_PANEL = MR_PANEL / LANES };

typedef struct {
    float *y;
    const uint8_t *x; /* rows of whatever the tile reads */
    size_t y_stride, x_bytes;
    const mr_packed *w;
    uint32_t vector;     /* the first of the tile */
    uint32_t begin, end; /* of K */
    /* Weights `ahead` bytes further on are asked for at the turn of this tile among those that read
     * the same ones. */
    uint32_t turn, turns; /* a power of two; a turn beyond: never */
    size_t ahead;
} tile;

INLINE uint32_t outputs_left(const tile *t, uint32_t v) {
    const uint32_t column = (t->vector + v) * LANES;
    return t->w->n > column ? t->w->n - column : 0;
}

/* Where vector v of a tile begins in its panel, elements of `bits` bits a place of K. */
INLINE const uint8_t *vector_at(const tile *t, uint32_t v, uint32_t bytes) {
    const uint32_t g = t->vector + v;
    return (const uint8_t *)t->w->data +
           g / IN_PANEL * mr_packed_panel_bytes(t->w->element, t->w->k) +
           (size_t)(g % IN_PANEL) * LANES * bytes;
}

INLINE vf scale_of(const tile *t, uint32_t v, uint32_t block) {
    const uint32_t g = t->vector + v;
    const uint32_t blocks = mr_packed_scale_blocks(t->w->block, t->w->k);
    const size_t at =
        ((size_t)(g / IN_PANEL) * blocks + block) * MR_PANEL + (size_t)(g % IN_PANEL) * LANES;
    return t->w->block == MR_QUANT_BLOCK ? v_widen_f16((const uint16_t *)t->w->scales + at)
                                         : v_load((const float *)t->w->scales + at);
}

INLINE vf sum_so_far(const tile *t, uint32_t row, uint32_t v) {
    if (t->begin == 0) return v_set(0);
    const float *y = t->y + row * t->y_stride + (size_t)(t->vector + v) * LANES;
    return v_load_first(y, outputs_left(t, v));
}

INLINE void keep_sum(const tile *t, uint32_t row, uint32_t v, vf sum) {
    float *y = t->y + row * t->y_stride + (size_t)(t->vector + v) * LANES;
    v_store_first(y, outputs_left(t, v), sum);
}

/* Before and after the walk over K sums lie in memory, and these are calls: written out for every
 * tile they would be most of the code and nearly all of the time to compile it. */
static __attribute__((noinline)) void load_sums(vf *sum, const tile *t, uint32_t rows,
                                                uint32_t vectors, bool from_zero) {
    for (uint32_t i = 0; i < rows * vectors; i++)
        sum[i] = from_zero ? v_set(0) : sum_so_far(t, i / vectors, i % vectors);
}

/* --- f32, bf16, f16, f8: x is fp32 ------------------------------------------------------------ */

/* Weights of inputs k and k + 1 for one vector; k is even. */
INLINE void two_weights(vf w[2], const uint8_t *at, uint32_t k, mr_element element) {
    if (element == MR_BF16) {
        v_split_bf16(&w[0], &w[1], at + (size_t)(k / 2) * MR_PANEL * 4);
    } else if (element == MR_F32) {
        w[0] = v_load((const float *)(const void *)at + (size_t)k * MR_PANEL);
        w[1] = v_load((const float *)(const void *)at + (size_t)(k + 1) * MR_PANEL);
    } else if (element == MR_F16) {
        w[0] = v_widen_f16((const uint16_t *)(const void *)at + (size_t)k * MR_PANEL);
        w[1] = v_widen_f16((const uint16_t *)(const void *)at + (size_t)(k + 1) * MR_PANEL);
    } else {
        w[0] = v_widen_f8(at + (size_t)k * MR_PANEL);
        w[1] = v_widen_f8(at + (size_t)(k + 1) * MR_PANEL);
    }
}

INLINE vf one_weight(const uint8_t *at, uint32_t k, mr_element element) {
    if (element == MR_BF16) {
        vf w[2];
        two_weights(w, at, k, element);
        return w[0];
    }
    if (element == MR_F32) return v_load((const float *)(const void *)at + (size_t)k * MR_PANEL);
    if (element == MR_F16)
        return v_widen_f16((const uint16_t *)(const void *)at + (size_t)k * MR_PANEL);
    return v_widen_f8(at + (size_t)k * MR_PANEL);
}

INLINE uint32_t place_bytes(mr_element element) { /* between outputs */
    return element == MR_F8 ? 1 : element == MR_F16 ? 2 : 4;
}

static __attribute__((noinline)) void keep_chain(const tile *t, uint32_t row, uint32_t v, vf sum) {
    if (t->w->block == MR_TILE_BLOCK)
        sum = v_fma(sum, scale_of(t, v, t->begin / MR_TILE_BLOCK), sum_so_far(t, row, v));
    else if (t->w->block == MR_WHOLE_ROW && t->end == t->w->k)
        sum = v_mul(sum, scale_of(t, v, 0));
    keep_sum(t, row, v, sum);
}

static __attribute__((noinline)) void keep_chains(const tile *t, uint32_t rows, uint32_t vectors,
                                                  const vf *sum) {
    for (uint32_t i = 0; i < rows * vectors; i++) keep_chain(t, i / vectors, i % vectors, sum[i]);
}

/* Asks for the lines of a tile's panels that will be read `ahead` bytes on. */
INLINE void ask_ahead(const tile *t, const uint8_t *const *at, uint32_t vectors, uint32_t unit,
                      size_t bytes) {
    if ((unit & (t->turns - 1)) != t->turn) return;
#pragma GCC unroll 4
    for (uint32_t v = 0; v < vectors; v += IN_PANEL)
#pragma GCC unroll 16
        for (size_t b = 0; b < bytes; b += 64) v_ask(at[v] + unit * bytes + t->ahead + b);
}

INLINE float input_of(const tile *t, uint32_t rows, uint32_t i, uint32_t k) {
    const float *x = (const float *)(const void *)t->x;
    return rows == 1 ? x[k] : x[i * SLAB_COLUMNS + k - t->begin];
}

INLINE void float_tile(const tile *t, const uint32_t rows, const uint32_t vectors,
                       const mr_element element) {
    const size_t pair_bytes = (size_t)MR_PANEL * mr_element_bits(element) / 4;
    const uint8_t *at[8];
    vf sum[SUMS], w[8][2], kept[SUMS];
#pragma GCC unroll 8
    for (uint32_t v = 0; v < vectors; v++) at[v] = vector_at(t, v, place_bytes(element));
    load_sums(kept, t, rows, vectors, t->w->block == MR_TILE_BLOCK);
#pragma GCC unroll 24
    for (uint32_t i = 0; i < rows * vectors; i++) sum[i] = kept[i];
    uint32_t k = t->begin;
    for (; k + 2 <= t->end; k += 2) {
        ask_ahead(t, at, vectors, k / 2, pair_bytes);
#pragma GCC unroll 8
        for (uint32_t v = 0; v < vectors; v++) two_weights(w[v], at[v], k, element);
#pragma GCC unroll 12
        for (uint32_t i = 0; i < rows; i++) {
            const vf a = v_set(input_of(t, rows, i, k));
#pragma GCC unroll 8
            for (uint32_t v = 0; v < vectors; v++)
                sum[i * vectors + v] = v_fma(a, w[v][0], sum[i * vectors + v]);
        }
#pragma GCC unroll 12
        for (uint32_t i = 0; i < rows; i++) {
            const vf a = v_set(input_of(t, rows, i, k + 1));
#pragma GCC unroll 8
            for (uint32_t v = 0; v < vectors; v++)
                sum[i * vectors + v] = v_fma(a, w[v][1], sum[i * vectors + v]);
        }
    }
    if (k < t->end)
#pragma GCC unroll 24
        for (uint32_t i = 0; i < rows * vectors; i++)
            sum[i] = v_fma(v_set(input_of(t, rows, i / vectors, k)),
                           one_weight(at[i % vectors], k, element), sum[i]);
#pragma GCC unroll 24
    for (uint32_t i = 0; i < rows * vectors; i++) kept[i] = sum[i];
    keep_chains(t, rows, vectors, kept);
}

/* --- int8, int4: x is codes (mr_quantize_rows) ------------------------------------------------ */

INLINE int32_t word_at(const uint8_t *at) {
    int32_t word;
    memcpy(&word, at, sizeof(word));
    return word;
}

/* The exact sums of 32 inputs from `first` on. Weights are stored without sign: the caller takes
 * v_offset off. */
INLINE void dot_block(vi dot[CODE_SUMS], const tile *t, const uint8_t *const *at, uint32_t first,
                      const uint32_t rows, const uint32_t vectors, const mr_element element) {
    const size_t step = (size_t)MR_PANEL * 4;
#pragma GCC unroll 12
    for (uint32_t i = 0; i < rows * vectors; i++) dot[i] = v_set_i(0);
    if (element == MR_I8) {
#pragma GCC unroll 8
        for (uint32_t q = 0; q < 8; q++) {
            vi w[4];
#pragma GCC unroll 4
            for (uint32_t v = 0; v < vectors; v++) w[v] = v_load_i8(at[v] + (first / 4 + q) * step);
#pragma GCC unroll 12
            for (uint32_t i = 0; i < rows * vectors; i++)
                dot[i] = v_dot4(dot[i], w[i % vectors],
                                v_set_i(word_at(t->x + i / vectors * t->x_bytes + first + 4 * q)));
        }
        return;
    }
#pragma GCC unroll 4
    for (uint32_t q = 0; q < 4; q++) {
        vi low[4], high[4];
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++) {
            const vi both = v_load_i(at[v] + (first / 8 + q) * step);
            low[v] = v_low_nibbles(both);
            high[v] = v_high_nibbles(both);
        }
#pragma GCC unroll 12
        for (uint32_t i = 0; i < rows * vectors; i++) {
            const uint8_t *x = t->x + i / vectors * t->x_bytes + first + 4 * q;
            dot[i] = v_dot4(dot[i], low[i % vectors], v_set_i(word_at(x)));
            dot[i] = v_dot4(dot[i], high[i % vectors], v_set_i(word_at(x + 16)));
        }
    }
}

static __attribute__((noinline)) void keep_codes(const tile *t, uint32_t rows, uint32_t vectors,
                                                 const vf *sum) {
    const bool scaled = t->w->block == MR_WHOLE_ROW && t->end >= t->w->k;
    for (uint32_t i = 0; i < rows * vectors; i++) {
        const vf y = scaled ? v_mul(sum[i], scale_of(t, i % vectors, 0)) : sum[i];
        keep_sum(t, i / vectors, i % vectors, y);
    }
}

INLINE void code_tile(const tile *t, const uint32_t rows, const uint32_t vectors,
                      const mr_element element) {
    const size_t depth = mr_packed_depth(element, t->w->k);
    const size_t block_bytes = (size_t)MR_PANEL * 4 * mr_element_bits(element);
    const bool by_row = t->w->block == MR_WHOLE_ROW;
    const uint8_t *at[4];
    vf sum[CODE_SUMS], kept[CODE_SUMS];
    vi dot[CODE_SUMS];
#pragma GCC unroll 4
    for (uint32_t v = 0; v < vectors; v++) at[v] = vector_at(t, v, 4);
    load_sums(kept, t, rows, vectors, false);
#pragma GCC unroll 12
    for (uint32_t i = 0; i < rows * vectors; i++) sum[i] = kept[i];
    for (uint32_t first = t->begin; first < t->end; first += 32) {
        vf scale[4];
        ask_ahead(t, at, vectors, first / 32, block_bytes);
        dot_block(dot, t, at, first, rows, vectors, element);
#pragma GCC unroll 4
        for (uint32_t v = 0; v < vectors; v++)
            scale[v] = by_row ? v_set(1) : scale_of(t, v, first / 32);
#pragma GCC unroll 6
        for (uint32_t i = 0; i < rows; i++) {
            const uint8_t *facts = t->x + i * t->x_bytes + depth + first / 8;
            const vi offset = v_offset(word_at(facts + depth / 8), element);
            float d;
            memcpy(&d, facts, sizeof(d));
#pragma GCC unroll 4
            for (uint32_t v = 0; v < vectors; v++) {
                const vf both = by_row ? v_set(d) : v_mul(v_set(d), scale[v]);
                const uint32_t at_sum = i * vectors + v;
                sum[at_sum] = v_fma(v_to_float(v_sub_i(dot[at_sum], offset)), both, sum[at_sum]);
            }
        }
    }
#pragma GCC unroll 12
    for (uint32_t i = 0; i < rows * vectors; i++) kept[i] = sum[i];
    keep_codes(t, rows, vectors, kept);
}

/* --- the walk over panels, chunks of K and rows ----------------------------------------------- */

typedef struct {
    tile t;
    uint32_t m, rows_most; /* rows of y; of a tile */
    uint32_t end, vector_end;
    uint32_t chunk;
    bool copies; /* x goes through a slab whose rows do not fall into one cache set */
} walk;

typedef void (*tile_function)(const tile *t, uint32_t rows);

/* All rows of x for one chunk of K and the vectors [from, to). */
INLINE void walk_rows(walk *k, const uint8_t *x, uint32_t rows, uint32_t from, uint32_t to,
                      float *y, tile_function run, bool ask) {
    const uint32_t tiles = (rows + k->rows_most - 1) / k->rows_most;
    for (uint32_t g = from; g < to; g += TILE_VECTORS)
        for (uint32_t i = 0, row = 0; i < tiles; i++) {
            const uint32_t take = (rows - row + tiles - i - 1) / (tiles - i);
            tile t = k->t;
            t.vector = g;
            t.x = x + row * k->t.x_bytes;
            t.y = y + row * k->t.y_stride;
            t.turns = tiles >= 4 ? 4 : tiles >= 2 ? 2 : 1;
            t.turn = ask && g % IN_PANEL == 0 ? i : UINT32_MAX;
            run(&t, take);
            row += take;
        }
}

/* Copies columns [begin, end) of so many rows, so that rows do not fall into one cache set. */
INLINE void copy_rows(float *slab, const uint8_t *x, size_t x_bytes, uint32_t rows, uint32_t begin,
                      uint32_t end) {
    for (uint32_t i = 0; i < rows; i++)
        memcpy(slab + (size_t)i * SLAB_COLUMNS, x + i * x_bytes + begin * sizeof(float),
               (end - begin) * sizeof(float));
}

INLINE uint32_t chunk_end(const walk *k, uint32_t begin) {
    return k->end - begin < k->chunk ? k->end : begin + k->chunk;
}

/* Weights are read in a row, panel by panel: x lies in the cache as a whole. */
INLINE void walk_panels(walk *k, const uint8_t *x, size_t chunk_bytes, tile_function run) {
    const size_t chunk = (size_t)MR_PANEL * mr_element_bits(k->t.w->element) / 8 * k->chunk;
    k->t.ahead = k->m <= k->rows_most || chunk < AHEAD ? AHEAD : chunk;
    for (uint32_t from = k->t.vector; from < k->vector_end; from += IN_PANEL)
        for (uint32_t begin = 0, i = 0; begin < k->end; begin += k->chunk, i++) {
            k->t.begin = begin;
            k->t.end = chunk_end(k, begin);
            walk_rows(k, x + i * chunk_bytes, k->m, from, from + IN_PANEL, k->t.y, run, true);
        }
}

/* Groups of panels chunk by chunk: x is taken through the cache once for a group. */
INLINE void walk_groups(walk *k, float *slab, tile_function run) {
    const uint8_t *x = k->t.x;
    const size_t x_bytes = k->t.x_bytes;
    k->t.ahead = mr_packed_panel_bytes(k->t.w->element, k->t.w->k);
    if (slab) k->t.x_bytes = SLAB_COLUMNS * sizeof(float);
    for (uint32_t from = k->t.vector; from < k->vector_end; from += GROUP_PANELS * IN_PANEL) {
        const uint32_t left = k->vector_end - from, all = GROUP_PANELS * IN_PANEL;
        const uint32_t to = from + (left < all ? left : all);
        for (uint32_t begin = 0; begin < k->end; begin += k->chunk) {
            k->t.begin = begin;
            k->t.end = chunk_end(k, begin);
            if (!slab) {
                walk_rows(k, x, k->m, from, to, k->t.y, run, true);
                continue;
            }
            for (uint32_t row = 0; row < k->m; row += SLAB_ROWS) {
                const uint32_t rows = k->m - row < SLAB_ROWS ? k->m - row : SLAB_ROWS;
                copy_rows(slab, x + row * x_bytes, x_bytes, rows, begin, k->t.end);
                walk_rows(k, (const uint8_t *)slab, rows, from, to, k->t.y + row * k->t.y_stride,
                          run, row == 0);
            }
        }
    }
}

INLINE void walk_many(walk *k, tile_function run) {
    if (k->m * k->t.x_bytes <= X_BYTES_MOST)
        walk_panels(k, k->t.x, 0, run);
    else
        walk_groups(k, NULL, run);
}

/* x is fp32 and copied. */
static __attribute__((noinline)) void walk_copied(walk *k, tile_function run) {
    _Alignas(64) float slab[SLAB_FLOATS];
    const uint32_t chunks = (k->end + k->chunk - 1) / k->chunk;
    const size_t each = (size_t)k->m * SLAB_COLUMNS, x_bytes = k->t.x_bytes;
    if (chunks * each > SLAB_FLOATS) {
        walk_groups(k, slab, run);
        return;
    }
    for (uint32_t i = 0; i < chunks; i++)
        copy_rows(slab + i * each, k->t.x, x_bytes, k->m, i * k->chunk, chunk_end(k, i * k->chunk));
    k->t.x_bytes = SLAB_COLUMNS * sizeof(float);
    walk_panels(k, (const uint8_t *)slab, each * sizeof(float), run);
}

/* One row: `wide` vectors side by side as long as there are so many, K in one go. */
INLINE void walk_one(walk *k, uint32_t wide, tile_function run_wide, tile_function run) {
    tile t = k->t;
    t.turns = 1;
    t.ahead = AHEAD;
    while (t.vector < k->vector_end) {
        const bool is_wide = k->vector_end - t.vector >= wide;
        for (t.begin = 0; t.begin < k->end; t.begin = t.end) {
            t.end = k->end - t.begin < k->chunk ? k->end : t.begin + k->chunk;
            (is_wide ? run_wide : run)(&t, 1);
        }
        t.vector += is_wide ? wide : TILE_VECTORS;
    }
}

/* --- one function for each type ----------------------------------------------------------------
 */

/* A function for each number of rows: in one they would be compiled together, slowly. */
#define MR_TILE_FUNCTION(ROWS, TILE, ELEMENT)                                                      \
    static __attribute__((noinline)) void TILE##_##ELEMENT##_##ROWS(const tile *t) {               \
        TILE(t, ROWS, TILE_VECTORS, ELEMENT);                                                      \
    }
#define MR_TILE_CASE(ROWS, TILE, ELEMENT)                                                          \
    case ROWS:                                                                                     \
        TILE##_##ELEMENT##_##ROWS(t);                                                              \
        break;
#define MR_FLOAT_TILES(ELEMENT)                                                                    \
    MR_FLOAT_SIZES(MR_TILE_FUNCTION, float_tile, ELEMENT)                                          \
    static void tile_##ELEMENT(const tile *t, uint32_t rows) {                                     \
        switch (rows) { MR_FLOAT_SIZES(MR_TILE_CASE, float_tile, ELEMENT) }                        \
    }                                                                                              \
    static void wide_##ELEMENT(const tile *t, uint32_t rows) {                                     \
        (void)rows;                                                                                \
        float_tile(t, 1, FLOAT_WIDE, ELEMENT);                                                     \
    }
#define MR_CODE_TILES(ELEMENT)                                                                     \
    MR_CODE_SIZES(MR_TILE_FUNCTION, code_tile, ELEMENT)                                            \
    static void tile_##ELEMENT(const tile *t, uint32_t rows) {                                     \
        switch (rows) { MR_CODE_SIZES(MR_TILE_CASE, code_tile, ELEMENT) }                          \
    }                                                                                              \
    static void wide_##ELEMENT(const tile *t, uint32_t rows) {                                     \
        (void)rows;                                                                                \
        code_tile(t, 1, CODE_WIDE, ELEMENT);                                                       \
    }

INLINE void run_walk(walk *k, uint32_t wide, tile_function run_wide, tile_function run) {
    if (k->m == 1)
        walk_one(k, wide, run_wide, run);
    else if (k->copies)
        walk_copied(k, run);
    else
        walk_many(k, run);
}

INLINE walk make_walk(float *y, size_t y_stride, uint32_t m, const mr_packed *w,
                      uint32_t panel_first, uint32_t panel_count) {
    return (walk){.t = {.y = y, .y_stride = y_stride, .w = w, .vector = panel_first * IN_PANEL},
                  .m = m,
                  .vector_end = (panel_first + panel_count) * IN_PANEL,
                  .end = w->k};
}

/* Rows of x as codes; a block with what is not a finite number goes the slow way. */
INLINE void quantize(void *out, const float *x, size_t x_stride, uint32_t m, uint32_t k) {
    const size_t depth = mr_packed_depth(MR_I8, k), bytes = mr_quantized_bytes(k);
    for (uint32_t i = 0; i < m; i++, x += x_stride) {
        int8_t *codes = (int8_t *)out + i * bytes;
        uint8_t *d_at = (uint8_t *)codes + depth, *sum_at = d_at + depth / 32 * 4;
        for (uint32_t first = 0; first < depth; first += 32, d_at += 4, sum_at += 4) {
            const uint32_t count = k - first < 32 ? k - first : 32;
            float d;
            int32_t sum;
            if (count < 32 || !v_quantize(codes + first, &d, &sum, x + first))
                mr_quantize_block(codes + first, &d, &sum, x + first, count);
            memcpy(d_at, &d, sizeof(d));
            memcpy(sum_at, &sum, sizeof(sum));
        }
    }
}
#endif
