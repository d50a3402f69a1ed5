/* product_keys_select.c - product-key top-k: from key scores of both sides to the best pairs.
 *
 * TDQKR (UltraMem, arXiv 2411.12364, section 3; docs/MODELS.md): each side's R scores are collapsed
 * by the rank-1 vectors u, v to pick knn rows and knn columns, then every pair of those is scored
 * with all cores and the best knn by the sum over cores are kept. With R = M = 1, u = v = 1 and
 * sums instead of products this is the plain product-key search of PKM and Memory+ (arXiv
 * 1907.05242).
 *
 * Ties go to the lower key index, then to the lower virtual index: candidates are sorted by index
 * before pairing, so that a pair's place grows with its virtual index. */
#include "common/model/product_keys.h"
#include "common/ops/dense.h"

#include <math.h>
#include <string.h>

typedef struct {
    float *collapsed;         /* [n] */
    uint32_t *rows, *columns; /* [knn] */
    uint64_t *heap;           /* [max(n, knn^2) bounded by k + 32] */
    float *left;              /* [knn][M][R] row scores through the cores */
    float *sum;               /* [knn * knn] */
    float *parts;             /* [M][knn * knn] */
    uint32_t *best;           /* [knn] */
} room;

static size_t lay_out(room *out, const mr_memory_layer *l, uint8_t *base) {
    const size_t knn = l->knn, pairs = knn * knn;
    size_t used = 0;
#define PLACE(field, count)                                                                        \
    do {                                                                                           \
        if (base) out->field = (void *)(base + used);                                              \
        used += ((count) * sizeof(*out->field) + 63) / 64 * 64;                                    \
    } while (0)
    PLACE(heap, knn + 32);
    PLACE(collapsed, l->keys_per_side);
    PLACE(rows, knn);
    PLACE(columns, knn);
    PLACE(best, knn);
    PLACE(left, knn * l->cores * l->rank);
    PLACE(sum, pairs);
    PLACE(parts, l->cores * pairs);
#undef PLACE
    return used;
}

size_t mr_product_key_scratch(const mr_memory_layer *layer) {
    room unused = {0};
    return lay_out(&unused, layer, NULL);
}

/* Heap sort: the C library's qsort may allocate. */
static void sort_ascending(uint32_t *x, uint32_t n) {
    for (uint32_t end = n, start = n / 2; end > 1;) {
        uint32_t value, at;
        if (start > 0)
            value = x[at = --start];
        else {
            value = x[--end];
            x[end] = x[0];
            at = 0;
        }
        for (uint32_t child; (child = 2 * at + 1) < end; at = child) {
            if (child + 1 < end && x[child + 1] > x[child]) child++;
            if (x[child] <= value) break;
            x[at] = x[child];
        }
        x[at] = value;
    }
}

/* knn best keys of one side, in ascending order of index. */
static bool best_keys(uint32_t *out, const mr_product_key_query *q, const room *r,
                      const float *score, const float *direction) {
    const mr_memory_layer *l = q->keys->layer;
    const float *collapsed = score;
    if (direction) {
        for (uint32_t n = 0; n < l->keys_per_side; n++) {
            float sum = 0;
            for (uint32_t i = 0; i < l->rank; i++)
                sum = sum + score[(size_t)n * l->rank + i] * direction[i];
            r->collapsed[n] = sum;
        }
        collapsed = r->collapsed;
    }
    if (!q->ops->select(out, collapsed, l->keys_per_side, l->knn, r->heap)) return false;
    sort_ascending(out, l->knn);
    return true;
}

/* parts[m][pair] and their sum, for the plain sum of both sides. */
static void pair_sums(const mr_product_key_query *q, const room *r) {
    const uint32_t knn = q->keys->layer->knn;
    for (uint32_t i = 0; i < knn; i++)
        for (uint32_t j = 0; j < knn; j++)
            r->sum[(size_t)i * knn + j] = q->row_score[r->rows[i]] + q->column_score[r->columns[j]];
    memcpy(r->parts, r->sum, (size_t)knn * knn * sizeof(float));
}

/* S_m[i][j] = sum over r, t of s1[I_i][r] core_m[r][t] s2[J_j][t], the sum over r first. */
static void pair_products(const mr_product_key_query *q, const room *r) {
    const mr_memory_layer *l = q->keys->layer;
    const uint32_t knn = l->knn, rank = l->rank;
    const size_t pairs = (size_t)knn * knn, core_size = (size_t)rank * rank;
    for (uint32_t m = 0; m < l->cores; m++) {
        const float *core = q->keys->core + ((size_t)m * l->heads + q->head) * core_size;
        for (uint32_t i = 0; i < knn; i++)
            for (uint32_t t = 0; t < rank; t++) {
                float sum = 0;
                for (uint32_t s = 0; s < rank; s++)
                    sum = sum + q->row_score[(size_t)r->rows[i] * rank + s] * core[s * rank + t];
                r->left[((size_t)i * l->cores + m) * rank + t] = sum;
            }
    }
    for (uint32_t i = 0; i < knn; i++)
        for (uint32_t j = 0; j < knn; j++) {
            const float *column = q->column_score + (size_t)r->columns[j] * rank;
            float total = 0;
            for (uint32_t m = 0; m < l->cores; m++) {
                const float *left = r->left + ((size_t)i * l->cores + m) * rank;
                float sum = 0;
                for (uint32_t t = 0; t < rank; t++) sum = sum + left[t] * column[t];
                r->parts[m * pairs + (size_t)i * knn + j] = sum;
                total = m == 0 ? sum : total + sum;
            }
            r->sum[(size_t)i * knn + j] = total;
        }
}

bool mr_product_key_select(uint32_t *index, float *score, size_t core_stride,
                           const mr_product_key_query *q) {
    const mr_memory_layer *l = q->keys->layer;
    const uint32_t knn = l->knn;
    const size_t pairs = (size_t)knn * knn;
    const float *u = q->keys->u ? q->keys->u + (size_t)q->head * l->rank : NULL;
    const float *v = q->keys->v ? q->keys->v + (size_t)q->head * l->rank : NULL;
    room r = {0};
    lay_out(&r, l, q->scratch);
    if (!best_keys(r.rows, q, &r, q->row_score, u)) return false;
    if (!best_keys(r.columns, q, &r, q->column_score, v)) return false;
    if (u)
        pair_products(q, &r);
    else
        pair_sums(q, &r);
    if (!q->ops->select(r.best, r.sum, (uint32_t)pairs, knn, r.heap)) return false;
    for (uint32_t e = 0; e < knn; e++) {
        const uint32_t pair = r.best[e];
        index[e] = r.rows[pair / knn] * l->keys_per_side + r.columns[pair % knn];
        for (uint32_t m = 0; m < l->cores; m++) {
            const float part = r.parts[m * pairs + pair];
            if (!isfinite(part)) return false;
            score[m * core_stride + e] = part;
        }
    }
    if (q->keys->softmax) mr_softmax(score, knn);
    return true;
}
