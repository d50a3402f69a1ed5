/* convert_rows.c - numbers of one storage type as another, by way of floats; see convert.h.
 *
 * The work is cut in groups of 128 rows counted from the tensor's first, because tiles share their
 * scales in them; so a row's codes do not depend on which rows are asked for. */
#include "common/base/mem.h"
#include "common/model/convert_impl.h"
#include "common/model/rows.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    uint8_t *to;
    mr_storage format;
    size_t row_bytes;
    mr_tensor_rows rows;      /* whole groups around what is wanted */
    uint64_t first, count;    /* wanted, of the tensor */
    float *floats;            /* [members][2 * columns] */
    uint8_t *joined;          /* [members][row_bytes of the source] */
    uint32_t tiles;           /* of a row */
    float *tile_scale;        /* [members][tiles] */
    atomic_int_least64_t bad; /* 1 + row of the tensor with a number that cannot be stored */
} row_job;

static uint32_t tiles_of(mr_storage format, uint32_t columns) {
    return format.block == MR_TILE_BLOCK ? (columns + MR_TILE_BLOCK - 1) / MR_TILE_BLOCK : 0;
}

static void tile_scales(float *scale, const row_job *j, float *x, uint64_t first, uint64_t end) {
    for (uint32_t b = 0; b < j->tiles; b++) scale[b] = 0;
    for (uint64_t row = first; row < end; row++) {
        mr_tensor_rows_floats(x, &j->rows, row - j->rows.first);
        for (uint32_t i = 0; i < j->rows.columns; i++) {
            const float magnitude = fabsf(x[i]);
            if (magnitude > scale[i / MR_TILE_BLOCK]) scale[i / MR_TILE_BLOCK] = magnitude;
        }
    }
    for (uint32_t b = 0; b < j->tiles; b++) scale[b] /= 448.0f;
}

static bool all_finite(const float *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* fp16 overflows, also as a scale; what other types hold is finite where x is. */
static bool still_finite(const uint8_t *row, mr_storage format, float *x, float *room,
                         uint32_t columns) {
    for (uint32_t i = 0; format.block == MR_QUANT_BLOCK && i < columns; i++)
        if (fabsf(x[i]) > 7 * 65504.0f) return false;
    if (format.element != MR_F16 && format.element != MR_BF16) return true;
    mr_storage_decode(room, row, format, columns, 0, columns);
    return all_finite(room, columns);
}

static void convert_group(row_job *j, uint32_t member, uint64_t group) {
    const uint32_t columns = j->rows.columns;
    float *x = j->floats + (size_t)member * 2 * columns;
    float *scale = j->tile_scale ? j->tile_scale + (size_t)member * j->tiles : NULL;
    const uint64_t rows_end = j->rows.first + j->rows.count, end = (group + 1) * MR_TILE_BLOCK;
    const uint64_t group_end = end < rows_end ? end : rows_end;
    const bool exact = mr_storage_same(j->format, mr_storage_common(j->format, j->rows.storage));
    uint8_t *room = j->joined + member * j->rows.row_bytes;
    if (scale && !exact) tile_scales(scale, j, x, group * MR_TILE_BLOCK, group_end);
    for (uint64_t row = group * MR_TILE_BLOCK; row < group_end; row++) {
        if (row < j->first || row >= j->first + j->count) continue;
        uint8_t *to = j->to + (row - j->first) * j->row_bytes;
        mr_tensor_rows_floats(x, &j->rows, row - j->rows.first);
        bool fits = all_finite(x, columns);
        if (exact) {
            const uint8_t *from = mr_tensor_rows_at(&j->rows, row - j->rows.first, room);
            mr_row_widen(to, j->format, from, j->rows.storage, columns, x + columns);
        } else if (fits) {
            mr_storage_encode(to, x, j->format, columns, scale);
            fits = still_finite(to, j->format, x, x + columns, columns);
        }
        if (!fits) atomic_store(&j->bad, (int64_t)row + 1);
    }
}

static void convert_groups(void *context, uint32_t member, uint32_t first, uint32_t count) {
    row_job *j = context;
    for (uint32_t i = first; i < first + count; i++)
        convert_group(j, member, j->rows.first / MR_TILE_BLOCK + i);
}

mr_status mr_convert_rows(uint8_t *to, mr_storage format, const mr_model *model,
                          const mr_tensor *tensor, uint64_t first, uint64_t count, mr_team *team,
                          mr_err *err) {
    row_job j = {.to = to, .format = format, .first = first, .count = count};
    const uint64_t begin = first / MR_TILE_BLOCK * MR_TILE_BLOCK;
    uint64_t end = (first + count + MR_TILE_BLOCK - 1) / MR_TILE_BLOCK * MR_TILE_BLOCK;
    if (end > tensor->shape[0]) end = tensor->shape[0];
    const mr_status status = mr_tensor_rows_open(&j.rows, model, tensor, begin, end - begin, err);
    if (status != MR_OK) return status;
    j.row_bytes = (size_t)mr_storage_bytes(format, j.rows.columns);
    j.tiles = tiles_of(format, j.rows.columns);
    j.floats = mr_alloc_array(2ull * mr_team_size(team) * j.rows.columns, sizeof(float));
    j.joined = mr_alloc_array(mr_team_size(team), j.rows.row_bytes);
    if (j.tiles) j.tile_scale = mr_alloc_array((size_t)mr_team_size(team) * j.tiles, sizeof(float));
    mr_team_run(team, convert_groups, &j,
                (uint32_t)((end - begin + MR_TILE_BLOCK - 1) / MR_TILE_BLOCK));
    mr_tensor_rows_close(&j.rows);
    free(j.tile_scale);
    free(j.joined);
    free(j.floats);
    const int64_t bad = atomic_load(&j.bad);
    if (bad == 0) return MR_OK;
    return mr_fail(err, MR_ERR_RANGE,
                   "tensor %.200s holds a number in row %lld that is not finite or does not fit %s",
                   tensor->name, (long long)bad - 1, mr_storage_name(mr_storage_type_of(format)));
}

/* --- panels ----------------------------------------------------------------------------------- */

typedef struct {
    const mr_packed *w;
    const uint8_t *rows; /* in the matrix's format */
    size_t row_bytes;
    uint32_t first; /* output of w of rows[0] */
    /* of a transposed part */
    mr_tensor_rows source;
    uint32_t column;   /* of the source, for the first output */
    float *floats;     /* [members][k] */
    uint8_t *encoded;  /* [members][row_bytes] */
    float *tile_scale; /* [groups of 128 outputs][tiles], counted from the source's column 0 */
    uint32_t tiles;
    atomic_bool is_bad;
} panel_job;

static void put_rows(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const panel_job *j = context;
    const mr_storage format = {j->w->element, j->w->block};
    (void)member;
    for (uint32_t i = first; i < first + count; i++)
        mr_packed_put_row(j->w, j->first + i, j->rows + i * j->row_bytes, format);
}

/* Rows of a part in the matrix's format, then into the panels. */
static mr_status put_straight(const mr_packed *w, const mr_model *model, const mr_matrix_part *part,
                              uint64_t row, uint32_t n, uint32_t count, mr_team *team,
                              mr_err *err) {
    const mr_storage format = {w->element, w->block};
    panel_job j = {.w = w, .first = n, .row_bytes = (size_t)mr_storage_bytes(format, w->k)};
    uint8_t *rows = mr_alloc_array(count, j.row_bytes);
    const mr_status status =
        mr_convert_rows(rows, format, model, part->tensor, row, count, team, err);
    j.rows = rows;
    if (status == MR_OK) mr_team_run(team, put_rows, &j, count);
    free(rows);
    return status;
}

/* Column `column` of a transposed part. */
static void gather(float *x, const panel_job *j, uint32_t column) {
    const mr_tensor_rows *r = &j->source;
    for (uint32_t i = 0; i < r->count; i++)
        mr_storage_decode(&x[i], r->data.data + i * r->stride, r->storage, r->columns, column, 1);
}

static void put_columns(void *context, uint32_t member, uint32_t first, uint32_t count) {
    panel_job *j = context;
    const mr_storage format = {j->w->element, j->w->block};
    float *x = j->floats + (size_t)member * j->w->k;
    uint8_t *row = j->encoded + (size_t)member * j->row_bytes;
    for (uint32_t i = first; i < first + count; i++) {
        const uint32_t group = (j->column + i) / MR_TILE_BLOCK;
        gather(x, j, j->column + i);
        if (!all_finite(x, j->w->k)) {
            j->is_bad = true;
            continue;
        }
        mr_storage_encode(row, x, format, j->w->k,
                          j->tiles ? j->tile_scale + (size_t)group * j->tiles : NULL);
        mr_packed_put_row(j->w, j->first + i, row, format);
        if (!still_finite(row, format, x, x, j->w->k)) j->is_bad = true;
    }
}

/* Of all groups of 128 outputs, from the whole part. */
static void transposed_tiles(panel_job *j) {
    const mr_tensor_rows *r = &j->source;
    const uint32_t groups = (r->columns + MR_TILE_BLOCK - 1) / MR_TILE_BLOCK;
    float *x = mr_alloc_array(r->columns, sizeof(*x));
    j->tile_scale = mr_alloc_array((size_t)groups * j->tiles, sizeof(float));
    for (uint32_t i = 0; i < r->count; i++) {
        mr_tensor_rows_floats(x, r, i);
        for (uint32_t c = 0; c < r->columns; c++) {
            float *scale = &j->tile_scale[c / MR_TILE_BLOCK * j->tiles + i / MR_TILE_BLOCK];
            if (fabsf(x[c]) / 448.0f > *scale) *scale = fabsf(x[c]) / 448.0f;
        }
    }
    free(x);
}

static mr_status put_transposed(const mr_packed *w, const mr_model *model,
                                const mr_matrix_part *part, uint32_t column, uint32_t n,
                                uint32_t count, mr_team *team, mr_err *err) {
    const mr_storage format = {w->element, w->block};
    panel_job j = {.w = w,
                   .first = n,
                   .column = column,
                   .row_bytes = (size_t)mr_storage_bytes(format, w->k),
                   .tiles = tiles_of(format, w->k)};
    const mr_status status =
        mr_tensor_rows_open(&j.source, model, part->tensor, part->row_first, part->rows, err);
    if (status != MR_OK) return status;
    j.floats = mr_alloc_array((size_t)mr_team_size(team) * w->k, sizeof(float));
    j.encoded = mr_alloc_array(mr_team_size(team), j.row_bytes);
    if (j.tiles) transposed_tiles(&j);
    mr_team_run(team, put_columns, &j, count);
    mr_tensor_rows_close(&j.source);
    free(j.tile_scale);
    free(j.encoded);
    free(j.floats);
    if (!j.is_bad) return MR_OK;
    return mr_fail(err, MR_ERR_RANGE,
                   "tensor %.200s holds a number that is not finite or does not fit %s",
                   part->tensor->name, mr_storage_name(mr_storage_type_of(format)));
}

mr_status mr_convert_panels(const mr_packed *w, const mr_model *model, const mr_matrix *matrix,
                            uint32_t first, uint32_t count, mr_team *team, mr_err *err) {
    uint32_t part_first = 0;
    for (uint32_t i = 0; i < matrix->part_count; i++) {
        const mr_matrix_part *part = &matrix->parts[i];
        const uint32_t n = part->transposed ? (uint32_t)part->tensor->columns : part->rows;
        const uint32_t from = first > part_first ? first : part_first;
        const uint32_t end = first + count < part_first + n ? first + count : part_first + n;
        if (from < end) {
            const uint32_t at = from - part_first;
            const mr_status status =
                part->transposed
                    ? put_transposed(w, model, part, at, from - first, end - from, team, err)
                    : put_straight(w, model, part, part->row_first + at, from - first, end - from,
                                   team, err);
            if (status != MR_OK) return status;
        }
        part_first += n;
    }
    return MR_OK;
}
