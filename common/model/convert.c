/* convert.c - see convert.h: what becomes of every tensor, and the stream from one to the other. */
#include "common/model/convert.h"

#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/model/convert_impl.h"
#include "common/model/panels.h"
#include "common/model/rows.h"
#include "common/model/safetensors_write.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLAB_BYTES = 16 << 20 };

/* One tensor of the result, or a matrix and its scales. */
typedef struct {
    const mr_tensor *tensor; /* NULL: a matrix */
    mr_matrix_id matrix;
    mr_storage format; /* of rows and panels; the tensor's bytes are copied where is_copied */
    bool is_copied;
    uint32_t out, scales; /* the writer's numbers */
} item;

typedef struct {
    const mr_model *model;
    const mr_convert_options *o;
    mr_convert_report *report;
    mr_writer *writer;
    item *items;
    uint32_t count;
    mr_quant_config quant; /* of the result */
    uint64_t done_bytes;
    bool *keep_met; /* [keep_count] */
} job;

/* --- what becomes of what --------------------------------------------------------------------- */

static bool is_kept(job *j, const char *name) {
    for (uint32_t i = 0; i < j->o->keep_count; i++)
        if (strstr(name, j->o->keep[i])) {
            j->keep_met[i] = true;
            return true;
        }
    return false;
}

static bool converts(mr_matrix_role role) {
    return role != MR_MATRIX_ROUTER && role != MR_MATRIX_SHARED_GATE &&
           role != MR_MATRIX_QUERY_PROJ;
}

/* What one of its numbers' homes says of a tensor. */
typedef struct {
    bool is_matrix, is_dense, is_transposed, is_table;
    bool is_scales; /* go with the tensor they belong to */
} use;

static use *uses_of(const mr_model *model) {
    use *uses = mr_alloc_array(mr_model_tensor_count(model) + 1ull, sizeof(*uses));
    const mr_tensor *base = mr_model_tensor(model, 0);
    for (mr_matrix_id id = {0}; mr_matrix_next(model, &id);) {
        mr_matrix m;
        mr_matrix_of(&m, model, id);
        for (uint32_t i = 0; i < m.part_count; i++) {
            use *u = &uses[m.parts[i].tensor - base];
            u->is_matrix = true;
            u->is_dense |= converts(id.role);
            u->is_transposed |= m.parts[i].transposed;
        }
    }
    const mr_tensor *spare = mr_model_spare_head(model); /* is and stays the embedding */
    uses[mr_model_embedding(model) - base].is_dense = true;
    if (spare) uses[spare - base].is_dense = true;
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++)
        if (base[i].scales) uses[base[i].scales - base].is_scales = true;
    for (uint32_t i = 0; i < mr_model_table_count(model); i++) {
        const mr_table_shape *t = mr_model_table(model, i);
        uses[t->values - base].is_table = true;
        if (t->pre_values) uses[t->pre_values - base].is_table = true;
    }
    return uses;
}

static mr_dtype dtype_of(mr_storage format) {
    if (format.block) return MR_DTYPE_U8;
    return format.element == MR_F32    ? MR_DTYPE_F32
           : format.element == MR_BF16 ? MR_DTYPE_BF16
                                       : MR_DTYPE_F16;
}

/* Says in config.json what a U8 tensor of the result is. */
static void name_type(job *j, const char *name, mr_storage format) {
    mr_quant_config *q = &j->quant;
    const mr_storage_type type = mr_storage_type_of(format);
    if (format.block == 0 || type == (mr_tensor_is_table(name) ? q->tables : q->weights)) return;
    q->overrides = mr_realloc_array(q->overrides, q->override_count + 1ull, sizeof(*q->overrides));
    q->overrides[q->override_count++] = (mr_quant_override){mr_strdup(name), type};
}

static mr_status declare(job *j, uint32_t *out, const char *name, mr_dtype dtype,
                         const uint64_t shape[2], bool is_aligned, mr_err *err) {
    const mr_status status = mr_writer_declare(j->writer, out, name, dtype, 2, shape, err);
    if (status == MR_OK && is_aligned) mr_writer_align(j->writer, *out);
    return status;
}

static mr_status plan_tensor(job *j, const mr_tensor *t, const use *u, mr_err *err) {
    item *it = &j->items[j->count];
    const mr_storage_type wanted = u->is_table   ? j->o->tables
                                   : u->is_dense ? j->o->dense
                                                 : MR_STORE_COUNT;
    const bool kept = is_kept(j, t->name);
    *it = (item){.tensor = t, .format = t->storage};
    if (wanted != MR_STORE_COUNT && !kept) {
        const mr_storage to = mr_storage_of(wanted);
        if (u->is_transposed && to.block)
            j->report->kept_transposed++;
        else
            it->format = to;
    }
    it->is_copied = mr_storage_same(it->format, t->storage) && !t->scales;
    j->count++;
    if (it->is_copied) {
        if (t->columns && t->storage.block) name_type(j, t->name, t->storage);
        return mr_writer_declare(j->writer, &it->out, t->name, t->dtype, t->dims, t->shape, err);
    }
    j->report->converted++;
    j->report->from_codes += t->storage.block && !mr_storage_same(it->format, t->storage);
    name_type(j, t->name, it->format);
    const uint64_t columns =
        it->format.block ? mr_storage_bytes(it->format, t->columns) : t->columns;
    return declare(j, &it->out, t->name, dtype_of(it->format), (uint64_t[]){t->shape[0], columns},
                   false, err);
}

static mr_status plan_matrix(job *j, mr_matrix_id id, mr_err *err) {
    item *it = &j->items[j->count++];
    mr_matrix m;
    char name[sizeof(m.name) + 8];
    mr_matrix_of(&m, j->model, id);
    const mr_storage before = mr_matrix_storage(j->model, &m);
    bool kept = is_kept(j, m.name);
    for (uint32_t i = 0; i < m.part_count; i++) kept |= is_kept(j, m.parts[i].tensor->name);
    *it = (item){.matrix = id, .format = before};
    if (j->o->dense != MR_STORE_COUNT && converts(id.role) && !kept)
        it->format = mr_storage_of(j->o->dense);
    if (!mr_storage_same(it->format, before)) {
        j->report->converted++;
        j->report->from_codes += before.block != 0;
    }
    name_type(j, m.name, it->format);
    const mr_panel_shape shape = mr_panel_shape_of(it->format, m.n, m.k);
    mr_status status = declare(j, &it->out, m.name, shape.data_type, shape.data, true, err);
    if (status != MR_OK || shape.scales[0] == 0) return status;
    snprintf(name, sizeof(name), "%s.scales", m.name);
    return declare(j, &it->scales, name, shape.scale_type, shape.scales, true, err);
}

static mr_status plan(job *j, mr_err *err) {
    const mr_model *model = j->model;
    const uint32_t tensors = mr_model_tensor_count(model);
    uint32_t matrices = 0;
    mr_status status = MR_OK;
    for (mr_matrix_id id = {0}; mr_matrix_next(model, &id);) matrices++;
    j->items = mr_alloc_array(tensors + matrices + 1ull, sizeof(*j->items));
    use *uses = uses_of(model);
    for (uint32_t i = 0; i < tensors && status == MR_OK; i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        if (uses[i].is_scales) continue;
        if (j->o->pack && uses[i].is_matrix && t != mr_model_embedding(model)) continue;
        status = plan_tensor(j, t, &uses[i], err);
    }
    if (j->o->pack)
        for (mr_matrix_id id = {0}; status == MR_OK && mr_matrix_next(model, &id);)
            status = plan_matrix(j, id, err);
    free(uses);
    for (uint32_t i = 0; i < j->o->keep_count && status == MR_OK; i++)
        if (!j->keep_met[i])
            status = mr_fail(err, MR_ERR_ARGUMENT, "no tensor has '%.100s' in its name, to keep it",
                             j->o->keep[i]);
    return status;
}

/* --- the stream ------------------------------------------------------------------------------- */

static void progress(job *j, uint64_t bytes) {
    j->done_bytes += bytes;
    const uint64_t all = mr_writer_data_bytes(j->writer);
    if (j->o->progress && all)
        j->o->progress(j->o->context, "converting", (double)j->done_bytes / (double)all);
}

static mr_status copy_tensor(job *j, const item *it, mr_err *err) {
    const mr_tensor *t = it->tensor;
    for (uint64_t at = 0; at < t->bytes; at += SLAB_BYTES) {
        const uint64_t bytes = t->bytes - at < SLAB_BYTES ? t->bytes - at : SLAB_BYTES;
        mr_mapping map;
        mr_status status = mr_tensor_map(&map, j->model, t, at, bytes, err);
        if (status != MR_OK) return status;
        status = mr_writer_put(j->writer, it->out, at, map.data, (size_t)bytes, err);
        mr_mapping_close(&map);
        if (status != MR_OK) return status;
        progress(j, bytes);
    }
    return MR_OK;
}

static mr_status convert_tensor(job *j, const item *it, mr_err *err) {
    const mr_tensor *t = it->tensor;
    const uint64_t row_bytes = mr_storage_bytes(it->format, t->columns);
    uint64_t slab = SLAB_BYTES / (row_bytes ? row_bytes : 1) / MR_TILE_BLOCK * MR_TILE_BLOCK;
    mr_status status = MR_OK;
    if (slab == 0) slab = MR_TILE_BLOCK;
    if (slab > t->shape[0]) slab = t->shape[0];
    uint8_t *rows = mr_alloc_array((size_t)slab + 1, (size_t)row_bytes);
    for (uint64_t row = 0; row < t->shape[0] && status == MR_OK; row += slab) {
        const uint64_t count = t->shape[0] - row < slab ? t->shape[0] - row : slab;
        status = mr_convert_rows(rows, it->format, j->model, t, row, count, j->o->team, err);
        if (status == MR_OK)
            status = mr_writer_put(j->writer, it->out, row * row_bytes, rows,
                                   (size_t)(count * row_bytes), err);
        progress(j, count * row_bytes);
    }
    free(rows);
    return status;
}

/* What is left of a tensor behind its last panel. */
static mr_status put_padding(job *j, uint32_t tensor, uint64_t at, mr_err *err) {
    const uint64_t bytes = mr_writer_tensor_bytes(j->writer, tensor) - at;
    uint8_t *zeros = mr_alloc(bytes + 1);
    const mr_status status = mr_writer_put(j->writer, tensor, at, zeros, (size_t)bytes, err);
    free(zeros);
    return status;
}

static mr_status put_slab(job *j, const item *it, const mr_matrix *m, const mr_packed *w,
                          uint32_t first, mr_err *err) {
    const uint64_t panel = first / MR_PANEL;
    const uint64_t data_bytes = mr_packed_data_bytes(w->element, w->n, w->k);
    const uint64_t scale_bytes = mr_packed_scale_bytes(w->block, w->n, w->k);
    const uint64_t panels = (w->n + MR_PANEL - 1) / MR_PANEL;
    mr_packed_clear(w);
    mr_status status = mr_convert_panels(w, j->model, m, first, w->n, j->o->team, err);
    if (status == MR_OK)
        status = mr_writer_put(j->writer, it->out, panel * (data_bytes / panels), w->data,
                               (size_t)data_bytes, err);
    if (status == MR_OK && scale_bytes)
        status = mr_writer_put(j->writer, it->scales, panel * (scale_bytes / panels), w->scales,
                               (size_t)scale_bytes, err);
    progress(j, data_bytes + scale_bytes);
    return status;
}

static mr_status convert_matrix(job *j, const item *it, mr_err *err) {
    mr_matrix m;
    mr_matrix_of(&m, j->model, it->matrix);
    const uint64_t panel_bytes = mr_packed_panel_bytes(it->format.element, m.k);
    uint64_t slab = SLAB_BYTES / panel_bytes * MR_PANEL / MR_TILE_BLOCK * MR_TILE_BLOCK;
    void *data = NULL, *scales = NULL;
    if (slab == 0) slab = MR_TILE_BLOCK;
    if (slab > m.n) slab = m.n;
    mr_packed w = {
        .element = it->format.element, .block = it->format.block, .n = (uint32_t)slab, .k = m.k};
    mr_status status =
        mr_try_alloc(&data, (size_t)mr_packed_data_bytes(w.element, slab, m.k), 1, "panels", err);
    if (status == MR_OK)
        status = mr_try_alloc(&scales, (size_t)mr_packed_scale_bytes(w.block, slab, m.k) + 1, 1,
                              "scales", err);
    w.data = data;
    w.scales = scales;
    for (uint32_t n = 0; n < m.n && status == MR_OK; n += (uint32_t)slab) {
        w.n = m.n - n < slab ? m.n - n : (uint32_t)slab;
        status = put_slab(j, it, &m, &w, n, err);
    }
    free(data);
    free(scales);
    const uint64_t used = mr_packed_data_bytes(it->format.element, m.n, m.k);
    return status == MR_OK ? put_padding(j, it->out, used, err) : status;
}

static mr_status write_weights(job *j, const char *directory, mr_err *err) {
    const uint64_t most = j->o->file_bytes_max ? j->o->file_bytes_max : 4 * MR_GIB;
    mr_status status = mr_writer_begin_directory(j->writer, directory, most, err);
    for (uint32_t i = 0; i < j->count && status == MR_OK; i++) {
        const item *it = &j->items[i];
        status = !it->tensor     ? convert_matrix(j, it, err)
                 : it->is_copied ? copy_tensor(j, it, err)
                                 : convert_tensor(j, it, err);
    }
    return status == MR_OK ? mr_writer_finish(j->writer, err) : status;
}

/* --- the folder ------------------------------------------------------------------------------- */

static mr_status check_target(const char *directory, mr_err *err) {
    struct stat st;
    if (stat(directory, &st) != 0) {
        if (errno == ENOENT) return MR_OK;
        return mr_fail(err, MR_ERR_IO, "%s: %s", directory, strerror(errno));
    }
    DIR *folder = opendir(directory);
    if (!folder) return mr_fail(err, MR_ERR_IO, "%s: %s", directory, strerror(errno));
    uint32_t entries = 0;
    while (readdir(folder)) entries++;
    closedir(folder);
    if (entries > 2)
        return mr_fail(err, MR_ERR_ARGUMENT, "%s is there and not empty; nothing was written",
                       directory);
    return MR_OK;
}

static mr_status write_manifest(job *j, const char *directory, mr_err *err) {
    mr_manifest manifest;
    mr_model *model;
    mr_status status = mr_model_open(&model, directory, err);
    if (status != MR_OK) return status;
    char *path = mr_format("%s/memrack-manifest.json", directory);
    status = mr_manifest_make(&manifest, model, (mr_grid){0}, j->o->progress, j->o->context, err);
    if (status == MR_OK) {
        status = mr_manifest_write(&manifest, model, path, err);
        mr_manifest_free(&manifest);
    }
    free(path);
    mr_model_close(model);
    return status;
}

static mr_status write_all(job *j, const char *directory, mr_err *err) {
    mr_status status = mr_make_directories(directory, err);
    if (status == MR_OK) status = write_weights(j, directory, err);
    if (status == MR_OK) status = mr_convert_config(j->model, directory, &j->quant, err);
    if (status == MR_OK)
        status = mr_convert_copy_files(mr_model_directory(j->model), directory, err);
    return status == MR_OK ? write_manifest(j, directory, err) : status;
}

mr_status mr_convert(mr_convert_report *out, const mr_model *model, const char *directory,
                     const mr_convert_options *options, mr_err *err) {
    job j = {.model = model, .o = options, .report = out};
    *out = (mr_convert_report){0};
    if (mr_model_config(model)->quant.is_packed)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s is packed; convert the model it was packed from",
                       mr_model_directory(model));
    mr_status status = check_target(directory, err);
    if (status != MR_OK) return status;
    j.quant.is_packed = options->pack;
    j.quant.weights = j.quant.tables = MR_STORE_COUNT;
    if (options->dense != MR_STORE_COUNT && mr_storage_of(options->dense).block)
        j.quant.weights = options->dense;
    if (options->tables != MR_STORE_COUNT && mr_storage_of(options->tables).block)
        j.quant.tables = options->tables;
    j.writer = mr_writer_new();
    j.keep_met = mr_alloc_array(options->keep_count + 1ull, sizeof(bool));
    int bytes = (int)strlen(directory);
    while (bytes > 1 && directory[bytes - 1] == '/') bytes--;
    char *partial = mr_format("%.*s.partial-%ld", bytes, directory, (long)getpid());
    status = plan(&j, err);
    if (status == MR_OK) status = write_all(&j, partial, err);
    out->bytes_after = mr_writer_data_bytes(j.writer);
    mr_writer_free(j.writer);
    if (status == MR_OK && rename(partial, directory) != 0)
        status =
            mr_fail(err, MR_ERR_IO, "rename %s to %s: %s", partial, directory, strerror(errno));
    if (status != MR_OK) mr_convert_remove(partial);
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++)
        out->bytes_before += mr_model_tensor(model, i)->bytes;
    mr_quant_config_free(&j.quant);
    free(j.items);
    free(j.keep_met);
    free(partial);
    return status;
}
