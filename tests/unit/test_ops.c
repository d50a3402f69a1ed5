/* test_ops.c - every kernel on every backend this processor has, against the plain loops.
 *
 * Goal: a backend is the reference, bit for bit. Method: shapes that straddle every boundary the
 * fast paths have (vector widths, panels, cores, slots, tails), values of all magnitudes the
 * contract allows, both storage types. Elementary functions are compared with the C library's
 * double ones. */
#include "common/ops/cpu/backends.h"
#include "common/ops/dense.h"
#include "common/ops/gate.h"
#include "common/ops/math.h"
#include "common/ops/packed.h"
#include "common/ops/philox.h"
#include "common/ops/slice.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

static uint32_t state = 1;
static uint32_t next_u32(void) {
    const uint32_t counter[4] = {state++, 0, 0, 0}, key[2] = {7, 11};
    uint32_t out[4];
    mr_philox(out, counter, key);
    return out[0];
}
static float next_float(void) {
    return (float)(int32_t)next_u32() * 0x1p-31f;
}
static uint32_t below(uint32_t n) {
    return next_u32() % n;
}

enum { BACKENDS = 3 };
static const mr_ops *backend(int i) { /* NULL: not on this processor */
    static const char *const names[BACKENDS] = {"avx2", "avx512", "neon"};
    return mr_ops_find(names[i]);
}

typedef struct {
    uint8_t *data;
    mr_rows rows;
} table;

/* Rows first_row.. with a stride wider than the slice, and one byte off alignment when `odd`. The
 * last row ends with the memory. skip: blocks only. */
static table make_table(mr_storage_type type, uint32_t rows, uint32_t columns, uint32_t skip,
                        int odd) {
    const mr_storage storage = mr_storage_of(type);
    const bool has_blocks = storage.block != 0 && storage.block != MR_WHOLE_ROW;
    if (!has_blocks) skip = 0;
    /* the last block goes on behind the slice, or ends with the row */
    const uint32_t all = skip + columns + (has_blocks ? below(5) : 0);
    const size_t row_bytes = (size_t)mr_storage_bytes(storage, all);
    const size_t stride = row_bytes + 3 * below(2) * (mr_element_bits(storage.element) / 4);
    table t = {malloc((rows - 1) * stride + row_bytes + (size_t)odd), {0}};
    float *value = malloc(all * sizeof(float));
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *row = t.data + odd + r * stride;
        const float wide = ldexpf(1, (int)below(20) - 10);
        for (uint32_t c = 0; c < all; c++)
            value[c] = below(9) ? next_float() * wide * ldexpf(1, -(int)below(12)) : 0;
        mr_storage_encode(row, value, storage, all, NULL);
        if (storage.element == MR_I8) row[row_bytes - 1] = 0x80; /* no encoder writes it */
    }
    free(value);
    t.rows = (mr_rows){.data = t.data + odd,
                       .storage = storage,
                       .row_first = 100,
                       .row_count = rows,
                       .stride = stride,
                       .columns = columns,
                       .skip = skip};
    return t;
}

static void check_pool(mr_storage_type type, uint32_t columns, uint32_t column_first,
                       uint32_t core_columns, uint32_t slots, int bits) {
    enum { TOKENS = 3, ROWS = 50, ENTRIES = 23 };
    table t = make_table(type, ROWS, columns, below(2) * below(128), (int)below(2));
    const uint32_t count[TOKENS] = {9, 0, 14};
    uint32_t row[ENTRIES];
    uint8_t slot[ENTRIES];
    const uint32_t core_first = column_first / core_columns;
    const uint32_t cores = (column_first + columns - 1) / core_columns - core_first + 1;
    float *weight = malloc(cores * ENTRIES * sizeof(float));
    for (uint32_t i = 0; i < ENTRIES; i++) {
        row[i] = 100 + below(ROWS);
        slot[i] = (uint8_t)below(slots);
    }
    for (uint32_t i = 0; i < cores * ENTRIES; i++)
        weight[i] = next_float() * (bits == 32 ? 0x1p14f : ldexpf(1, 4 + (int)below(46)));
    const mr_pool_args args = {
        t.rows, TOKENS,  ENTRIES, count,        row,          slots > 1 ? slot : NULL,
        weight, ENTRIES, slots,   column_first, core_columns, core_first};
    const size_t cells = (size_t)TOKENS * slots * columns;
    int64_t *want = calloc(cells, 8), *got = calloc(cells, 8);
    for (int b = 0; b < BACKENDS; b++) {
        if (!backend(b)) continue;
        memset(want, 0x11, cells * 8); /* added to, not overwritten */
        memset(got, 0x11, cells * 8);
        if (bits == 32) {
            mr_ops_ref.pool32((int32_t *)want, &args);
            backend(b)->pool32((int32_t *)got, &args);
        } else {
            mr_ops_ref.pool64(want, &args);
            backend(b)->pool64(got, &args);
        }
        assert_memory_equal(want, got, cells * 8);
    }
    free(want);
    free(got);
    free(weight);
    free(t.data);
}

static void test_pool(void **unused) {
    static const uint32_t widths[] = {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 192, 260, 600};
    (void)unused;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++)
        for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++)
            for (int bits = 32; bits <= 64; bits += 32) {
                check_pool(type, widths[w], 0, widths[w], 1, bits);
                check_pool(type, widths[w], below(40), 1 + below(40), 1, bits);
                check_pool(type, widths[w], below(40), 16, 4, bits);
            }
}

/* Slices of any cut: each decodes to its own columns, and all of them make the row again. */
static void test_slices(void **unused) {
    static const uint32_t widths[] = {1, 2, 31, 32, 33, 127, 128, 129, 300};
    (void)unused;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++)
        for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++)
            for (uint32_t slices = 1; slices <= widths[w] + 1; slices += 1 + slices / 4) {
                const uint32_t width = widths[w];
                const mr_storage storage = mr_storage_of(type);
                const size_t bytes = (size_t)mr_storage_bytes(storage, width);
                uint8_t *row = malloc(bytes), *again = calloc(bytes, 1), *part = malloc(bytes);
                float *value = malloc(width * sizeof(float)), *got = malloc(width * sizeof(float));
                for (uint32_t c = 0; c < width; c++) value[c] = next_float();
                mr_storage_encode(row, value, storage, width, NULL);
                mr_storage_decode(value, row, storage, width, 0, width);
                for (uint32_t i = 0; i < slices; i++) {
                    const uint32_t first = width * i / slices;
                    const uint32_t count = width * (i + 1) / slices - first;
                    const mr_row_slice s = mr_row_slice_of(storage, width, first, count);
                    assert_true(s.bytes <= bytes && s.columns == count);
                    assert_int_equal(s.bytes == 0, count == 0);
                    mr_row_slice_take(part, row, &s);
                    mr_storage_decode(got, part, storage, s.skip + count, s.skip, count);
                    assert_memory_equal(got, value + first, count * sizeof(float));
                    mr_row_slice_put(again, part, &s);
                }
                assert_memory_equal(again, row, bytes);
                free(row);
                free(again);
                free(part);
                free(value);
                free(got);
            }
}

static void test_gate_dot(void **unused) {
    static const uint32_t widths[] = {1, 3, 8, 16, 21, 32, 48, 77, 300};
    (void)unused;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++)
        for (mr_storage_type type = 0; type < MR_STORE_COUNT; type++) {
            enum { ENTRIES = 11 };
            table t = make_table(type, 20, widths[w], below(200), 0);
            const uint32_t count[2] = {5, 6};
            uint32_t row[ENTRIES];
            float *x = malloc(2 * (widths[w] + 2) * sizeof(float));
            for (uint32_t i = 0; i < ENTRIES; i++) row[i] = 100 + below(20);
            for (uint32_t i = 0; i < 2 * (widths[w] + 2); i++)
                x[i] = next_float() * ldexpf(1, (int)below(48));
            const mr_gate_args args = {t.rows, 2, ENTRIES, count, row, x, widths[w] + 2};
            int64_t want[ENTRIES], got[ENTRIES];
            mr_ops_ref.gate_dot(want, &args);
            for (int b = 0; b < BACKENDS; b++) {
                if (!backend(b)) continue;
                backend(b)->gate_dot(got, &args);
                assert_memory_equal(want, got, sizeof(want));
            }
            free(x);
            free(t.data);
        }
}

typedef struct {
    mr_packed w;
    uint8_t *rows; /* the same weights, row by row */
    size_t row_bytes;
} matrix;

static matrix make_matrix(mr_storage storage, uint32_t n, uint32_t k) {
    matrix made = {.w = {.element = storage.element, .block = storage.block, .n = n, .k = k},
                   .row_bytes = (size_t)mr_storage_bytes(storage, k)};
    float *x = malloc(k * sizeof(float)), tiles[16];
    made.w.data = aligned_alloc(64, (mr_packed_data_bytes(storage.element, n, k) + 63) / 64 * 64);
    made.w.scales = calloc(1, mr_packed_scale_bytes(storage.block, n, k) + 1);
    made.rows = malloc(n * made.row_bytes);
    mr_packed_clear(&made.w);
    for (int i = 0; i < 16; i++) tiles[i] = 0.004f + 0.001f * (float)i;
    for (uint32_t row = 0; row < n; row++) {
        for (uint32_t i = 0; i < k; i++) x[i] = next_float();
        uint8_t *to = made.rows + row * made.row_bytes;
        mr_storage_encode(to, x, storage, k, storage.block == MR_TILE_BLOCK ? tiles : NULL);
        mr_packed_put_row(&made.w, row, to, storage);
    }
    free(x);
    return made;
}

static void free_matrix(matrix *made) {
    free((void *)(uintptr_t)made->w.data);
    free((void *)(uintptr_t)made->w.scales);
    free(made->rows);
}

/* The way that processors with AVX-512 but without VNNI multiply codes, or with NEON but without
 * SDOT. */
static void check_without_dots(const float *want, float *got, size_t stride, const void *prepared,
                               uint32_t m, const mr_packed *w) {
    if (w->element != MR_I8 && w->element != MR_I4) return;
    memset(got, 0, m * stride * sizeof(float));
#if defined(__aarch64__)
    mr_neon_gemm_codes(got, stride, prepared, m, w, 0, mr_packed_panels(w));
#elif defined(__x86_64__)
    if (mr_ops_find("avx512") == NULL) return;
    mr_avx512_gemm_codes(got, stride, prepared, m, w, 0, mr_packed_panels(w));
#else
    return;
#endif
    assert_memory_equal(want, got, m * stride * sizeof(float));
}

/* Also: a row of y is the same for every M, and equals a double sum over the stored numbers: to
 * fp32 accuracy where x stays fp32, to half a step of x's codes (1/254 of the largest of 32) where
 * it does not. */
static void check_gemm(mr_storage storage, uint32_t m, uint32_t n, uint32_t k) {
    matrix made = make_matrix(storage, n, k);
    const mr_packed w = made.w;
    const uint32_t panels = mr_packed_panels(&w);
    const size_t stride = n + 5, prepared_bytes = mr_ops_ref.prepared_bytes(&w);
    float *x = malloc((size_t)m * (k + 1) * sizeof(float));
    float *want = calloc(m * stride, sizeof(float)), *got = calloc(m * stride, sizeof(float));
    uint8_t *prepared = calloc(1, m * prepared_bytes + 1), *again = malloc(m * prepared_bytes + 1);
    for (size_t i = 0; i < (size_t)m * (k + 1); i++) x[i] = next_float();
    mr_ops_ref.prepare(prepared, x, k + 1, m, &w);
    mr_ops_ref.gemm(want, stride, x, k + 1, prepared, m, &w, 0, panels);
    for (int b = 0; b < BACKENDS; b++) {
        if (!backend(b)) continue;
        const mr_ops *ops = backend(b);
        assert_int_equal(ops->prepared_bytes(&w), prepared_bytes);
        memset(got, 0, m * stride * sizeof(float));
        memset(again, 0, m * prepared_bytes);
        ops->prepare(again, x, k + 1, m, &w);
        assert_memory_equal(again, prepared, m * prepared_bytes);
        ops->gemm(got, stride, x, k + 1, prepared, m, &w, 0, panels);
        assert_memory_equal(want, got, m * stride * sizeof(float));
        for (uint32_t row = 0; row < m; row++) /* one row alone: the same chain */
            ops->gemm(got + row * stride, stride, x + row * (k + 1), k + 1,
                      prepared + row * prepared_bytes, 1, &w, 0, panels);
        assert_memory_equal(want, got, m * stride * sizeof(float));
    }
    float *row = malloc(k * sizeof(float));
    for (uint32_t column = 0; column < n; column++) {
        double sum = 0, slack = 1e-5 * sqrt(k + 1.0);
        mr_storage_decode(row, made.rows + column * made.row_bytes, storage, k, 0, k);
        for (uint32_t i = 0; i < k; i++) {
            assert_true(row[i] == mr_packed_at(&w, column, i));
            sum += (double)x[i] * (double)row[i];
            if (prepared_bytes) slack += fabs((double)row[i]) / 253;
        }
        assert_true(fabs(sum - (double)want[column]) < slack);
    }
    check_without_dots(want, got, stride, prepared, m, &w);
    free(row);
    free(prepared);
    free(again);
    free_matrix(&made);
    free(x);
    free(want);
    free(got);
}

static void test_gemm(void **unused) {
    static const uint32_t rows[] = {1, 2, 3, 5, 7, 8, 9, 13}, columns[] = {1, 31, 32, 33, 129, 200};
    (void)unused;
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < 6; j++)
            for (int type = 0; type < MR_STORE_COUNT; type++)
                check_gemm(mr_storage_of((mr_storage_type)type), rows[i], columns[j],
                           1 + below(i % 2 ? 90 : 300));
    for (int type = 0; type < MR_STORE_COUNT; type++) { /* several chunks of K, many rows */
        const mr_storage storage = mr_storage_of((mr_storage_type)type);
        check_gemm(storage, 70, 65, 515);
        check_gemm(storage, 100, 40, 257);
        for (uint32_t m = 1; m < 30; m += 1 + below(3))
            check_gemm(storage, m, 1 + below(70), 240 + below(800));
    }
}

/* VDPBF16PS as plain steps: denormals are zero, before and after each. */
static float flush(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static float bf16_chain(const float *x, const mr_packed *w, uint32_t n) {
    float sum = 0;
    for (uint32_t k = 0; k < w->k; k += 2) {
        float a[2] = {0}, b[2] = {0};
        for (uint32_t j = 0; j < 2 && k + j < w->k; j++) {
            a[j] = flush(mr_bf16_to_f32(mr_f32_to_bf16(x[k + j])));
            b[j] = flush(mr_packed_at(w, n, k + j));
        }
        sum = flush(fmaf(a[0], b[0], flush(fmaf(a[1], b[1], flush(sum)))));
    }
    return sum;
}

/* The class of avx512bf16: an emulation gives its bits, for every number of rows. */
static void test_gemm_bf16_class(void **unused) {
    static const uint32_t rows[] = {1, 2, 3, 7, 12, 13, 25, 70};
    const mr_ops *ops = mr_ops_find("avx512bf16");
    (void)unused;
    if (!ops) return; /* not this processor */
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t m = rows[i], n = 1 + below(150), k = 1 + below(i % 2 ? 700 : 90);
        matrix made = make_matrix(mr_storage_of(MR_STORE_BF16), n, k);
        const size_t bytes = ops->prepared_bytes(&made.w);
        float *x = malloc((size_t)m * k * sizeof(float)), *y = calloc((size_t)m * n, sizeof(float));
        uint8_t *prepared = malloc(m * bytes);
        for (size_t j = 0; j < (size_t)m * k; j++)
            x[j] = next_float() * (below(20) ? 1.0f : ldexpf(1, -100 - (int)below(40)));
        ops->prepare(prepared, x, k, m, &made.w);
        ops->gemm(y, n, x, k, prepared, m, &made.w, 0, mr_packed_panels(&made.w));
        for (uint32_t row = 0; row < m; row++)
            for (uint32_t column = 0; column < n; column++) {
                const float want = bf16_chain(x + (size_t)row * k, &made.w, column);
                assert_memory_equal(&want, y + (size_t)row * n + column, sizeof(want));
            }
        free(prepared);
        free(x);
        free(y);
        free_matrix(&made);
    }
}

/* What is not a number, infinite, next to nothing or all zero has a form all backends agree on. */
static void test_quantize_odd_values(void **unused) {
    enum { K = 200, ROWS = 60 };
    static const float odd[] = {NAN, INFINITY, -INFINITY, 0x1p-140f, 1e38f, 0, -0.0f, 3e-39f};
    const mr_packed w = {.element = MR_I8, .block = MR_WHOLE_ROW, .n = 1, .k = K};
    const size_t bytes = mr_quantized_bytes(K);
    float x[ROWS * K];
    uint8_t *want = calloc(ROWS, bytes), *got = calloc(ROWS, bytes);
    (void)unused;
    for (uint32_t i = 0; i < ROWS * K; i++)
        x[i] = i / K % 3 == 2 ? odd[i / K % 8] * (i % 2 ? 1.0f : 0.25f)
               : below(30)    ? next_float()
                              : odd[below(8)];
    mr_quantize_rows(want, x, K, ROWS, K);
    for (int b = 0; b < BACKENDS; b++) {
        if (!backend(b)) continue;
        backend(b)->prepare(got, x, K, ROWS, &w);
        assert_memory_equal(want, got, ROWS * bytes);
    }
    free(want);
    free(got);
}

/* Narrowing and widening: every code comes back, and what lies between goes to the nearer one. */
static void test_small_floats(void **unused) {
    (void)unused;
    assert_true(mr_f16_to_f32(0x3c00) == 1.0f && mr_f16_to_f32(0x0001) == 0x1p-24f);
    assert_true(mr_f16_to_f32(0x7bff) == 65504.0f && isinf(mr_f16_to_f32(0xfc00)));
    assert_true(mr_f8_to_f32(0x38) == 1.0f && mr_f8_to_f32(0x01) == 0x1p-9f);
    assert_true(mr_f8_to_f32(0x7e) == 448.0f && isnan(mr_f8_to_f32(0xff)));
    for (uint32_t code = 0; code < 0x7c00; code++) {
        const float value = mr_f16_to_f32((uint16_t)code);
        const float next = code < 0x7bff ? mr_f16_to_f32((uint16_t)(code + 1)) : 65536.0f;
        const float middle = value + (next - value) / 2; /* exact: one bit more */
        assert_true(next > value);
        assert_int_equal(mr_f32_to_f16(value), code);
        assert_int_equal(mr_f32_to_f16(-value), code | 0x8000u);
        assert_int_equal(mr_f32_to_f16(middle), code + (code & 1));
        assert_int_equal(mr_f32_to_f16(nextafterf(middle, 0)), code);
        assert_int_equal(mr_f32_to_f16(nextafterf(middle, INFINITY)), code + 1);
    }
    for (uint32_t code = 0; code < 0x7e; code++) {
        const float value = mr_f8_to_f32((uint8_t)code), next = mr_f8_to_f32((uint8_t)(code + 1));
        const float middle = value + (next - value) / 2;
        assert_true(next > value);
        assert_int_equal(mr_f32_to_f8(value), code);
        assert_int_equal(mr_f32_to_f8(-value), code | 0x80u);
        assert_int_equal(mr_f32_to_f8(middle), code + (code & 1));
        assert_int_equal(mr_f32_to_f8(nextafterf(middle, 0)), code);
        assert_int_equal(mr_f32_to_f8(nextafterf(middle, INFINITY)), code + 1);
    }
    assert_int_equal(mr_f32_to_f8(1e9f), 0x7e);
    assert_true(isnan(mr_f8_to_f32(mr_f32_to_f8(NAN))) && isnan(mr_f16_to_f32(mr_f32_to_f16(NAN))));
}

/* What was encoded is near what comes back; parts of a row decode as the whole does. */
static void test_storage(void **unused) {
    (void)unused;
    for (int type = 0; type < MR_STORE_COUNT; type++) {
        const mr_storage storage = mr_storage_of((mr_storage_type)type);
        mr_storage_type back;
        assert_int_equal(mr_storage_parse(&back, mr_storage_name((mr_storage_type)type)), 0);
        assert_int_equal(back, type);
        assert_int_equal(mr_storage_type_of(storage), type);
        for (uint32_t columns = 1; columns < 300; columns += 1 + below(40)) {
            const uint32_t first = below(columns), count = 1 + below(columns - first);
            const float tile[3] = {1 / 448.0f, 1 / 448.0f, 1 / 448.0f};
            float x[300], whole[300], part[300];
            uint8_t *row = malloc(mr_storage_bytes(storage, columns));
            for (uint32_t i = 0; i < columns; i++) x[i] = next_float();
            mr_storage_encode(row, x, storage, columns,
                              storage.block == MR_TILE_BLOCK ? tile : NULL);
            mr_storage_decode(whole, row, storage, columns, 0, columns);
            mr_storage_decode(part, row, storage, columns, first, count);
            assert_memory_equal(part, whole + first, count * sizeof(float));
            const float bound = type == MR_STORE_F32       ? 0
                                : type == MR_STORE_INT4    ? 0.2f
                                : storage.element == MR_F8 ? 0.04f
                                                           : 0.005f;
            for (uint32_t i = 0; i < columns; i++) assert_true(fabsf(whole[i] - x[i]) <= bound);
            free(row);
        }
    }
    mr_storage_type none;
    assert_int_equal(mr_storage_parse(&none, "int7"), -1);
}

/* Blocks of keys and values into running softmaxes; scores of all sizes, some not finite. */
static void test_attend(void **unused) {
    enum { HEADS = 3, DIM_MAX = 256, BLOCKS = 3 };
    static const uint32_t dims[] = {16, 64, 128, 256, 8, 40, 100, 80};
    static float query[HEADS * DIM_MAX], keys[16 * DIM_MAX], values[16 * DIM_MAX];
    (void)unused;
    for (int round = 0; round < 200; round++) {
        const uint32_t dim = dims[round % 8];
        mr_attention_state want_state[HEADS], got_state[BACKENDS][HEADS];
        float want[HEADS * DIM_MAX] = {0}, got[BACKENDS][HEADS * DIM_MAX] = {{0}};
        const float size = ldexpf(1, (int)below(12) - 4);
        for (int h = 0; h < HEADS; h++)
            for (int b = -1; b < BACKENDS; b++)
                (b < 0 ? want_state : got_state[b])[h] = (mr_attention_state){-INFINITY, 0};
        for (uint32_t i = 0; i < HEADS * dim; i++) query[i] = next_float() * size;
        for (int block = 0; block < BLOCKS; block++) {
            const uint32_t count = block < BLOCKS - 1 && round % 2 ? 16 : 1 + below(16);
            for (uint32_t i = 0; i < 16 * dim; i++) {
                keys[i] = next_float();
                values[i] = next_float();
            }
            if (round % 50 == 7) keys[below(count * dim)] = INFINITY;
            mr_ops_ref.attend(want_state, want, query, HEADS, keys, values, count, dim, 0.125f);
            for (int b = 0; b < BACKENDS; b++) {
                if (!backend(b)) continue;
                backend(b)->attend(got_state[b], got[b], query, HEADS, keys, values, count, dim,
                                   0.125f);
                for (int h = 0; h < HEADS; h++) {
                    const mr_attention_state w = want_state[h], g = got_state[b][h];
                    if (w.sum != w.sum) { /* no number: its sign may differ */
                        assert_true(g.sum != g.sum);
                        continue;
                    }
                    assert_memory_equal(&w, &g, sizeof(w));
                    assert_memory_equal(want + (size_t)h * dim, got[b] + (size_t)h * dim,
                                        dim * sizeof(float));
                }
            }
        }
    }
}

/* In vectors of 16 as one by one. */
static void test_silu(void **unused) {
    enum { N = 1000 };
    static float gate[N], value[N], y[N];
    (void)unused;
    for (int i = 0; i < N; i++) {
        gate[i] = next_float() * ldexpf(1, (int)below(10));
        value[i] = next_float();
    }
    gate[3] = INFINITY, gate[40] = -INFINITY, gate[5] = 0, gate[6] = -0.0f, gate[70] = 88.73f;
    gate[71] = -88.73f, gate[72] = 87.4f;
    mr_silu_multiply(y, gate, value, N);
    for (int i = 0; i < N; i++) {
        const float want = gate[i] / (1.0f + mr_exp(-gate[i])) * value[i];
        assert_true(want == y[i] || (want != want && y[i] != y[i]));
    }
    gate[9] = NAN;
    mr_silu_multiply(y, gate, value, N);
    assert_true(y[9] != y[9]);
}

static int worse(const float *s, uint32_t a, uint32_t b) { /* does a come after b? */
    return s[a] != s[b] ? s[a] < s[b] : a > b;
}

static void test_select(void **unused) {
    enum { N_MAX = 700 };
    (void)unused;
    for (int round = 0; round < 300; round++) {
        const uint32_t n = 1 + below(N_MAX), k = 1 + below(n < 80 ? n : 80);
        float score[N_MAX];
        uint32_t order[N_MAX], got[N_MAX];
        uint64_t scratch[N_MAX + 32];
        for (uint32_t i = 0; i < n; i++) {
            score[i] = round % 2 ? next_float() : (float)(int)below(9) - 4; /* many ties */
            if (below(50) == 0) score[i] = round % 3 ? -0.0f : 0.0f;
            if (below(90) == 0) score[i] = round % 3 ? INFINITY : -INFINITY;
            order[i] = i;
        }
        for (uint32_t i = 1; i < n; i++) /* insertion sort: stable and plainly right */
            for (uint32_t j = i; j > 0 && worse(score, order[j - 1], order[j]); j--) {
                const uint32_t t = order[j];
                order[j] = order[j - 1];
                order[j - 1] = t;
            }
        for (int b = -1; b < BACKENDS; b++) {
            const mr_ops *ops = b < 0 ? &mr_ops_ref : backend(b);
            if (!ops) continue;
            assert_true(ops->select(got, score, n, k, scratch));
            assert_memory_equal(order, got, k * sizeof(*got));
        }
        score[below(n)] = NAN;
        for (int b = -1; b < BACKENDS; b++) {
            const mr_ops *ops = b < 0 ? &mr_ops_ref : backend(b);
            if (ops) assert_false(ops->select(got, score, n, k, scratch));
        }
    }
}

static void test_elementary_functions(void **unused) {
    (void)unused;
    for (double x = -7; x < 7; x += 0.00091) assert_true(fabs(mr_erf(x) - erf(x)) < 1e-13);
    for (float x = -87; x < 88.5f; x += 0.0137f)
        assert_true(fabs((double)mr_exp(x) / exp((double)x) - 1) < 2.5e-7);
    assert_true(mr_exp(-200) == 0 && mr_exp(-INFINITY) == 0 && isinf(mr_exp(89)) &&
                isnan(mr_exp(NAN)));
    assert_true(mr_exp(0) == 1);
    for (double x = 0; x < 4e6; x += 97.13) {
        double s, c;
        mr_sin_cos(x, &s, &c);
        assert_true(fabs(s - sin(x)) < 1e-11 && fabs(c - cos(x)) < 1e-11);
    }
    for (double x = 1e-30; x < 1e30; x *= 1.37)
        assert_true(fabs(mr_ln(x) - log(x)) < 1e-13 * (1 + fabs(log(x))));
}

static void test_exponents(void **unused) {
    int e;
    (void)unused;
    assert_true(mr_exponent_of(&e, 1.0) && e == 1);
    assert_true(mr_exponent_of(&e, 0.999) && e == 0);
    assert_true(mr_exponent_of(&e, 0) && e == MR_EXPONENT_MIN);
    assert_true(mr_exponent_of(&e, 0x1p-100) && e == MR_EXPONENT_MIN);
    assert_true(mr_exponent_of(&e, 0x1p89) && e == 90);
    assert_false(mr_exponent_of(&e, 0x1p90));
    assert_false(mr_exponent_of(&e, INFINITY));
    assert_false(mr_exponent_of(&e, NAN));
    assert_false(mr_exponent_of(&e, -1));
    for (int power = -120; power <= 120; power += 7)
        assert_true(mr_scale_exact(1.5f, power) == ldexpf(1.5f, power));
    assert_true(fabsf(mr_gelu(1.0f) - 0.841344746f) < 1e-7f && mr_gelu(0) == 0);
    assert_true(fabsf(mr_gelu(-3.0f) + 0.00404969409f) < 1e-9f);
}

/* Salmon et al.'s known answers for philox4x32-10. */
static void test_philox_known_answers(void **unused) {
    const uint32_t zero[4] = {0}, ones[4] = {~0u, ~0u, ~0u, ~0u};
    const uint32_t want_zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    const uint32_t want_ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    uint32_t out[4];
    (void)unused;
    mr_philox(out, zero, zero);
    assert_memory_equal(out, want_zero, sizeof(out));
    mr_philox(out, ones, ones);
    assert_memory_equal(out, want_ones, sizeof(out));
}

static void test_norms_against_double(void **unused) {
    float x[77], w[77], rms[77], layer[77];
    double square = 0, mean = 0, variance = 0;
    (void)unused;
    for (int i = 0; i < 77; i++) {
        x[i] = next_float() + 0.3f;
        w[i] = next_float();
        square += (double)x[i] * (double)x[i];
        mean += (double)x[i] / 77;
    }
    for (int i = 0; i < 77; i++) variance += ((double)x[i] - mean) * ((double)x[i] - mean) / 77;
    mr_rms_norm(rms, x, w, 77, 1e-5f);
    mr_layer_norm(layer, x, w, 77, 1e-5f);
    for (int i = 0; i < 77; i++) {
        assert_true(fabs((double)rms[i] - (double)x[i] / sqrt(square / 77 + 1e-5) * (double)w[i]) <
                    1e-6);
        assert_true(fabs((double)layer[i] -
                         ((double)x[i] - mean) / sqrt(variance + 1e-5) * (double)w[i]) < 2e-6);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pool),
                                       cmocka_unit_test(test_slices),
                                       cmocka_unit_test(test_gate_dot),
                                       cmocka_unit_test(test_gemm),
                                       cmocka_unit_test(test_gemm_bf16_class),
                                       cmocka_unit_test(test_quantize_odd_values),
                                       cmocka_unit_test(test_attend),
                                       cmocka_unit_test(test_silu),
                                       cmocka_unit_test(test_small_floats),
                                       cmocka_unit_test(test_storage),
                                       cmocka_unit_test(test_select),
                                       cmocka_unit_test(test_exponents),
                                       cmocka_unit_test(test_elementary_functions),
                                       cmocka_unit_test(test_philox_known_answers),
                                       cmocka_unit_test(test_norms_against_double)};
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
