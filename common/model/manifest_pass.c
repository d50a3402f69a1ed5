/* manifest_pass.c - the pass that makes a manifest: it reads every byte once, hashes, checks that
 * every float is finite, and takes the tables' maxima and all checksums on the way. */
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/manifest_impl.h"
#include "common/ops/slice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PASS_BYTES = 8 << 20 };

typedef struct {
    const mr_model *model;
    mr_manifest *manifest;
    mr_sha256 *hash;
    mr_progress progress;
    void *progress_context;
    uint64_t done_bytes, total_bytes;
} pass;

/* Which part a tensor has: role 1: values of table `table`, 2: its pre-values, 0: neither. */
typedef struct {
    int role;
    mr_table_facts *facts;
    mr_storage storage; /* of a table, as the rest */
    uint64_t rows, row_bytes;
    uint32_t width;
} part;

/* What one chunk of floats adds. */
typedef struct {
    uint32_t max_bits; /* of |value|, as fp32 bits: integers order like floats */
    double square_sum;
} chunk_facts;

static chunk_facts look_f32(const uint8_t *data, uint64_t count) {
    chunk_facts facts = {0, 0};
    double sums[8] = {0};
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits;
        float value;
        memcpy(&bits, data + 4 * i, sizeof(bits));
        memcpy(&value, data + 4 * i, sizeof(value));
        bits &= 0x7fffffffu;
        if (bits > facts.max_bits) facts.max_bits = bits;
        sums[i & 7] += (double)value * (double)value;
    }
    for (int i = 0; i < 8; i++) facts.square_sum += sums[i];
    return facts;
}

static chunk_facts look_bf16(const uint8_t *data, uint64_t count) {
    chunk_facts facts = {0, 0};
    double sums[8] = {0};
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, data + 2 * i, sizeof(half));
        const uint32_t bits = (uint32_t)(half & 0x7fffu) << 16;
        const double value = (double)mr_bf16_to_f32(half);
        if (bits > facts.max_bits) facts.max_bits = bits;
        sums[i & 7] += value * value;
    }
    for (int i = 0; i < 8; i++) facts.square_sum += sums[i];
    return facts;
}

static part part_of(const pass *p, const mr_tensor *t) {
    for (uint32_t i = 0; i < mr_model_table_count(p->model); i++) {
        const mr_table_shape *shape = mr_model_table(p->model, i);
        mr_table_facts *facts = &p->manifest->tables[i];
        const int role = shape->values == t ? 1 : shape->pre_values == t ? 2 : 0;
        if (role == 0) continue;
        part is = {.role = role, .facts = facts, .rows = shape->rows};
        is.storage = role == 1 ? shape->storage : shape->pre_storage;
        is.width = role == 1 ? shape->width : shape->pre_width;
        is.row_bytes = mr_storage_bytes(is.storage, is.width);
        return is;
    }
    return (part){0};
}

static mr_status refuse_non_finite(const pass *p, const mr_tensor *t, const uint8_t *data,
                                   mr_element element, uint64_t first, uint64_t count,
                                   mr_err *err) {
    const part is = part_of(p, t);
    const uint64_t columns = is.role ? is.width : t->dims ? t->shape[t->dims - 1] : 1;
    for (uint64_t i = 0; i < count; i++) {
        const float value = mr_element_at(data, element, i);
        if (isfinite(value)) continue;
        return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s holds %f at row %llu, column %llu",
                       mr_model_file(p->model, t), t->name, (double)value,
                       (unsigned long long)((first + i) / columns),
                       (unsigned long long)((first + i) % columns));
    }
    return MR_OK;
}

/* The largest norm of the rows of one pre-value tensor: rows are short, so one at a time. */
static double largest_norm(const uint8_t *data, mr_element element, uint64_t rows,
                           uint64_t columns) {
    double largest = 0;
    for (uint64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (uint64_t c = 0; c < columns; c++) {
            const double value = (double)mr_element_at(data, element, r * columns + c);
            sum += value * value;
        }
        if (sum > largest) largest = sum;
    }
    return sqrt(largest);
}

/* Feeds bytes [at, at + bytes) to the checksums of the chunks they lie in. */
static void pass_chunks(const pass *p, const mr_tensor *t, uint64_t at, const uint8_t *data,
                        uint64_t bytes) {
    uint32_t *crc = p->manifest->crc[t - mr_model_tensor(p->model, 0)];
    const uint32_t chunk_bytes = p->manifest->chunk_bytes;
    while (bytes > 0) {
        const uint64_t chunk = at / chunk_bytes, left = (chunk + 1) * chunk_bytes - at;
        const uint64_t piece = left < bytes ? left : bytes;
        crc[chunk] = mr_crc32c(crc[chunk], data, (size_t)piece);
        at += piece;
        data += piece;
        bytes -= piece;
    }
}

/* Whole rows, from row `first` on, to the checksums of the cells they are cut into. */
static void pass_cells(const pass *p, const part *is, uint64_t first, const uint8_t *data,
                       uint64_t rows) {
    const mr_grid grid = p->manifest->grid;
    uint32_t *crc = is->facts->cell_crc[is->role - 1];
    if (!crc) return;
    for (uint32_t w = 0; w < grid.width_slices; w++) {
        const mr_span span = mr_grid_part(is->width, grid.width_slices, w);
        const mr_row_slice slice =
            mr_row_slice_of(is->storage, is->width, (uint32_t)span.first, (uint32_t)span.count);
        for (uint64_t r = 0; r < rows; r++) {
            const uint8_t *row = data + r * is->row_bytes;
            const uint32_t group = mr_grid_part_of(is->rows, grid.row_groups, first + r);
            uint32_t *cell = &crc[group * grid.width_slices + w];
            *cell = mr_crc32c(*cell, row, slice.head_bytes);
            *cell =
                mr_crc32c(*cell, row + slice.body_first, (size_t)slice.bytes - slice.head_bytes);
        }
    }
}

static void take_facts(const part *is, double value_max, double norm) {
    if (is->role == 1 && value_max > is->facts->value_max) is->facts->value_max = value_max;
    if (is->role == 2 && norm > is->facts->pre_norm_max) is->facts->pre_norm_max = norm;
}

static mr_status pass_floats(pass *p, const mr_tensor *t, const part *is, mr_element element,
                             const uint8_t *data, uint64_t first, uint64_t count,
                             double *square_sum, mr_err *err) {
    const chunk_facts chunk = element == MR_F32 ? look_f32(data, count) : look_bf16(data, count);
    if (chunk.max_bits >= 0x7f800000u)
        return refuse_non_finite(p, t, data, element, first, count, err);
    float largest;
    memcpy(&largest, &chunk.max_bits, sizeof(largest));
    *square_sum += chunk.square_sum;
    take_facts(is, (double)largest,
               is->role == 2 ? largest_norm(data, element, count / is->width, is->width) : 0);
    return MR_OK;
}

/* Rows of a table in any storage, as numbers. */
static mr_status pass_rows(pass *p, const mr_tensor *t, const part *is, const uint8_t *data,
                           uint64_t first, uint64_t rows, double *square_sum, mr_err *err) {
    mr_status status = MR_OK;
    float *value = mr_alloc_array(is->width, sizeof(*value));
    for (uint64_t r = 0; r < rows && status == MR_OK; r++) {
        mr_storage_decode(value, data + r * is->row_bytes, is->storage, is->width, 0, is->width);
        const chunk_facts row = look_f32((const uint8_t *)value, is->width);
        float largest;
        memcpy(&largest, &row.max_bits, sizeof(largest));
        if (row.max_bits >= 0x7f800000u)
            status = refuse_non_finite(p, t, (const uint8_t *)value, MR_F32,
                                       (first + r) * is->width, is->width, err);
        *square_sum += row.square_sum;
        take_facts(is, (double)largest, sqrt(row.square_sum));
    }
    free(value);
    return status;
}

static mr_status pass_tensor(pass *p, const mr_tensor *t, mr_err *err) {
    mr_element element;
    mr_status status = MR_OK;
    double square_sum = 0;
    const part is = part_of(p, t);
    const bool floats =
        mr_dtype_element(&element, t->dtype) == 0 && (element == MR_F32 || element == MR_BF16);
    const uint64_t row_bytes =
        t->dims ? t->shape[t->dims - 1] * mr_dtype_bytes(t->dtype) : mr_dtype_bytes(t->dtype);
    uint64_t chunk_bytes = row_bytes ? PASS_BYTES / row_bytes * row_bytes : PASS_BYTES;
    if (chunk_bytes == 0) chunk_bytes = row_bytes;
    mr_sha256_add(p->hash, t->name, strlen(t->name) + 1);
    mr_sha256_add(p->hash, mr_dtype_name(t->dtype), strlen(mr_dtype_name(t->dtype)) + 1);
    mr_sha256_add(p->hash, t->shape, t->dims * sizeof(t->shape[0]));
    for (uint64_t at = 0; at < t->bytes && status == MR_OK; at += chunk_bytes) {
        const uint64_t bytes = t->bytes - at < chunk_bytes ? t->bytes - at : chunk_bytes;
        mr_mapping map;
        status = mr_tensor_map(&map, p->model, t, at, bytes, err);
        if (status != MR_OK) break;
        mr_sha256_add(p->hash, map.data, (size_t)bytes);
        pass_chunks(p, t, at, map.data, bytes);
        if (floats)
            status = pass_floats(p, t, &is, element, map.data, at / mr_element_bytes(element),
                                 bytes / mr_element_bytes(element), &square_sum, err);
        else if (is.role)
            status = pass_rows(p, t, &is, map.data, at / is.row_bytes, bytes / is.row_bytes,
                               &square_sum, err);
        else if (row_bytes)
            status = mr_check_codes(p->model, t, map.data, at / row_bytes, bytes / row_bytes, err);
        if (status == MR_OK && is.role)
            pass_cells(p, &is, at / is.row_bytes, map.data, bytes / is.row_bytes);
        mr_mapping_close(&map);
        p->done_bytes += bytes;
        if (p->progress)
            p->progress(p->progress_context, "reading the model once",
                        (double)p->done_bytes / (double)p->total_bytes);
    }
    if (status == MR_OK && is.role == 1 && t->bytes > 0)
        is.facts->value_rms = sqrt(square_sum / ((double)is.rows * is.width));
    return status;
}

uint32_t mr_accumulator_bits(const mr_table_shape *shape, const mr_table_facts *facts) {
    if (shape->pre_values) return 64;
    return facts->value_max > 64 * facts->value_rms ? 64 : 32;
}

/* The configuration belongs to the digest: the same weights under another top-k answer otherwise.
 */
static mr_status hash_config(pass *p, mr_err *err) {
    char *path = mr_format("%s/config.json", mr_model_directory(p->model)), *text = NULL;
    size_t bytes;
    const mr_status status = mr_file_read(&text, &bytes, path, MR_MAX_CONFIG_BYTES, err);
    if (status == MR_OK) mr_sha256_add(p->hash, text, bytes);
    free(text);
    free(path);
    return status;
}

mr_status mr_manifest_make(mr_manifest *out, const mr_model *model, mr_grid grid,
                           mr_progress progress, void *context, mr_err *err) {
    pass p = {.model = model, .manifest = out, .progress = progress, .progress_context = context};
    mr_manifest_init(out, model, grid);
    p.hash = mr_sha256_open();
    mr_status status = hash_config(&p, err);
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++)
        p.total_bytes += mr_model_tensor(model, i)->bytes;
    for (uint32_t i = 0; i < mr_model_tensor_count(model) && status == MR_OK; i++)
        status = pass_tensor(&p, mr_model_tensor(model, i), err);
    for (uint32_t i = 0; i < out->table_count; i++)
        out->tables[i].accumulator_bits =
            mr_accumulator_bits(mr_model_table(model, i), &out->tables[i]);
    out->digest = mr_sha256_close(p.hash);
    if (status != MR_OK) mr_manifest_free(out);
    return status;
}
