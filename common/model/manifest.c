/* manifest.c - manifests as files: read as untrusted input, written, found; see manifest.h. */
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/manifest_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANIFEST_VERSION = 2, CHUNK_BYTES_MIN = 4096, CHUNK_BYTES_MAX = 64 << 20 };

static uint64_t cells_of(const mr_manifest *m) {
    return (uint64_t)m->grid.row_groups * m->grid.width_slices;
}

static uint64_t chunks_of(const mr_manifest *m, const mr_tensor *t) {
    return mr_chunk_count(t->bytes, m->chunk_bytes);
}

void mr_manifest_init(mr_manifest *out, const mr_model *model, mr_grid grid) {
    *out = (mr_manifest){.table_count = mr_model_table_count(model),
                         .grid = grid,
                         .chunk_bytes = MR_CHUNK_BYTES,
                         .tensor_count = mr_model_tensor_count(model)};
    out->tables = mr_alloc_array(out->table_count, sizeof(*out->tables));
    out->crc = mr_alloc_array(out->tensor_count, sizeof(*out->crc));
    for (uint32_t i = 0; i < out->tensor_count; i++)
        out->crc[i] = mr_alloc_array(chunks_of(out, mr_model_tensor(model, i)), sizeof(uint32_t));
    if (cells_of(out) == 0) return;
    for (uint32_t i = 0; i < out->table_count; i++)
        for (int pre = 0; pre < 2; pre++)
            if (pre == 0 || mr_model_table(model, i)->pre_values)
                out->tables[i].cell_crc[pre] = mr_alloc_array(cells_of(out), sizeof(uint32_t));
}

void mr_manifest_free(mr_manifest *manifest) {
    for (uint32_t i = 0; i < manifest->tensor_count && manifest->crc; i++) free(manifest->crc[i]);
    for (uint32_t i = 0; i < manifest->table_count && manifest->tables; i++)
        for (int pre = 0; pre < 2; pre++) free(manifest->tables[i].cell_crc[pre]);
    free(manifest->crc);
    free(manifest->tables);
    *manifest = (mr_manifest){0};
}

mr_checks mr_manifest_checks(const mr_manifest *manifest, const mr_model *model,
                             const mr_tensor *tensor) {
    return (mr_checks){.crc =
                           manifest->crc ? manifest->crc[tensor - mr_model_tensor(model, 0)] : NULL,
                       .bytes = tensor->bytes,
                       .chunk_bytes = manifest->chunk_bytes};
}

bool mr_manifest_cell_check(uint32_t *out, const mr_manifest *manifest, mr_grid grid,
                            uint32_t table, bool pre_values, uint32_t cell) {
    if (grid.row_groups != manifest->grid.row_groups ||
        grid.width_slices != manifest->grid.width_slices || table >= manifest->table_count ||
        cell >= cells_of(manifest) || !manifest->tables[table].cell_crc[pre_values])
        return false;
    *out = manifest->tables[table].cell_crc[pre_values][cell];
    return true;
}

/* What a manifest must fit where the files' times say nothing: SHA-256 over the configuration and
 * every tensor's name, type, shape and place. */
static mr_digest layout_of(const mr_model *model) {
    mr_sha256 *hash = mr_sha256_open();
    char *path = mr_format("%s/config.json", mr_model_directory(model)), *text = NULL;
    size_t bytes;
    if (mr_file_read(&text, &bytes, path, MR_MAX_CONFIG_BYTES, NULL) == MR_OK)
        mr_sha256_add(hash, text, bytes);
    free(text);
    free(path);
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        const char *file = strrchr(mr_model_file(model, t), '/') + 1;
        mr_sha256_add(hash, t->name, strlen(t->name) + 1);
        mr_sha256_add(hash, mr_dtype_name(t->dtype), strlen(mr_dtype_name(t->dtype)) + 1);
        mr_sha256_add(hash, t->shape, t->dims * sizeof(t->shape[0]));
        mr_sha256_add(hash, file, strlen(file) + 1);
        mr_sha256_add(hash, &t->offset, sizeof(t->offset));
    }
    return mr_sha256_close(hash);
}

/* --- as text ---------------------------------------------------------------------------------- */

/* Eight digits a checksum, one after the other. */
static json_t *checks_to_json(const uint32_t *crc, uint64_t count) {
    static const char digits[] = "0123456789abcdef";
    char *text = mr_alloc_array(count * 8 + 1, 1), *to = text;
    for (uint64_t i = 0; i < count; i++)
        for (int shift = 28; shift >= 0; shift -= 4) *to++ = digits[crc[i] >> shift & 15];
    json_t *out = json_stringn(text, (size_t)count * 8);
    free(text);
    return out;
}

static int digit_of(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static mr_status checks_from_json(uint32_t *crc, uint64_t count, const json_t *text,
                                  const char *what, mr_err *err) {
    const char *from = json_string_value(text);
    if (!from) return mr_fail(err, MR_ERR_FORMAT, "there are no checksums of %.200s", what);
    if (json_string_length(text) != count * 8)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%zu digits of checksums of %.200s, which has %llu blocks of 8 each",
                       json_string_length(text), what, (unsigned long long)count);
    for (uint64_t i = 0; i < count; i++) {
        crc[i] = 0;
        for (int d = 0; d < 8; d++, from++) {
            const int digit = digit_of(*from);
            if (digit < 0)
                return mr_fail(err, MR_ERR_FORMAT, "a checksum of %.200s is not in hexadecimal",
                               what);
            crc[i] = crc[i] << 4 | (uint32_t)digit;
        }
    }
    return MR_OK;
}

static json_t *facts_to_json(const mr_manifest *m, const mr_table_facts *f) {
    json_t *out =
        json_pack("{s:f, s:f, s:f, s:i}", "value_max", f->value_max, "value_rms", f->value_rms,
                  "pre_norm_max", f->pre_norm_max, "accumulator_bits", (int)f->accumulator_bits);
    static const char *const names[2] = {"cells", "pre_cells"};
    for (int pre = 0; pre < 2; pre++)
        if (f->cell_crc[pre])
            json_object_set_new(out, names[pre], checks_to_json(f->cell_crc[pre], cells_of(m)));
    return out;
}

static json_t *to_json(const mr_manifest *m, const mr_model *model) {
    char digest[MR_DIGEST_TEXT_BYTES], fingerprint[MR_DIGEST_TEXT_BYTES],
        layout[MR_DIGEST_TEXT_BYTES], grid[32];
    const mr_digest key = mr_model_fingerprint(model), place = layout_of(model);
    json_t *tables = json_array(), *checks = json_object();
    mr_digest_text(&m->digest, digest);
    mr_digest_text(&key, fingerprint);
    mr_digest_text(&place, layout);
    for (uint32_t i = 0; i < m->table_count; i++)
        json_array_append_new(tables, facts_to_json(m, &m->tables[i]));
    for (uint32_t i = 0; i < m->tensor_count; i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        json_object_set_new(checks, t->name, checks_to_json(m->crc[i], chunks_of(m, t)));
    }
    json_t *out =
        json_pack("{s:i, s:s, s:s, s:s, s:i, s:o, s:o}", "version", MANIFEST_VERSION, "fingerprint",
                  fingerprint, "layout", layout, "digest", digest, "chunk_bytes",
                  (int)m->chunk_bytes, "tables", tables, "checksums", checks);
    if (cells_of(m) > 0) {
        snprintf(grid, sizeof(grid), "%ux%u", m->grid.row_groups, m->grid.width_slices);
        json_object_set_new(out, "grid", json_string(grid));
    }
    return out;
}

static mr_status facts_from_json(mr_manifest *out, uint32_t i, const json_t *table,
                                 const mr_table_shape *shape, mr_err *err) {
    static const char *const names[2] = {"cells", "pre_cells"};
    mr_table_facts *f = &out->tables[i];
    mr_status status = mr_json_double(&f->value_max, table, "value_max", 0, 3.5e38, err);
    if (status == MR_OK)
        status = mr_json_double(&f->value_rms, table, "value_rms", 0, f->value_max * 1.001, err);
    if (status == MR_OK)
        status = mr_json_double(&f->pre_norm_max, table, "pre_norm_max", 0, 1e300, err);
    if (status == MR_OK)
        status = mr_json_u32(&f->accumulator_bits, table, "accumulator_bits", 32, 64, err);
    if (status == MR_OK && f->accumulator_bits != mr_accumulator_bits(shape, f))
        status = mr_fail(err, MR_ERR_FORMAT, "accumulators of %u bits do not follow from the rest",
                         f->accumulator_bits);
    for (int pre = 0; pre < 2 && status == MR_OK; pre++)
        if (f->cell_crc[pre])
            status = checks_from_json(f->cell_crc[pre], cells_of(out),
                                      json_object_get(table, names[pre]), "cells", err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "table %u", i);
}

static mr_status digest_from_json(mr_digest *out, const json_t *root, const char *key,
                                  mr_err *err) {
    const char *text = json_string_value(json_object_get(root, key));
    if (!text || mr_digest_parse(out, text) != 0)
        return mr_fail(err, MR_ERR_FORMAT, "%s must be 64 hexadecimal digits", key);
    return MR_OK;
}

/* Version, grid and chunk size: what the rest is read by. */
static mr_status head_from_json(mr_grid *grid, uint32_t *chunk_bytes, const json_t *root,
                                mr_err *err) {
    int64_t version = 0;
    const char *text = NULL;
    *grid = (mr_grid){0, 0};
    *chunk_bytes = 0;
    if (!json_is_object(root))
        return mr_fail(err, MR_ERR_FORMAT, "a manifest is an object, this is %s",
                       mr_json_type_name(root));
    mr_status status = mr_json_int(&version, root, "version", 0, INT32_MAX, err);
    if (status == MR_OK && version != MANIFEST_VERSION)
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "it has version %lld, this build reads %d",
                         (long long)version, MANIFEST_VERSION);
    if (status == MR_OK)
        status =
            mr_json_u32(chunk_bytes, root, "chunk_bytes", CHUNK_BYTES_MIN, CHUNK_BYTES_MAX, err);
    if (status == MR_OK && *chunk_bytes != MR_CHUNK_BYTES)
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "chunks of %u bytes; this build reads %d",
                         *chunk_bytes, MR_CHUNK_BYTES);
    if (status == MR_OK) status = mr_json_string(&text, root, "grid", err);
    return status == MR_OK && text ? mr_grid_parse(grid, text, err) : status;
}

static mr_status from_json(mr_manifest *out, const json_t *root, const mr_model *model,
                           mr_err *err) {
    mr_grid grid;
    uint32_t chunk_bytes;
    mr_status status = head_from_json(&grid, &chunk_bytes, root, err);
    if (status != MR_OK) return status;
    mr_manifest_init(out, model, grid);
    const json_t *tables = json_object_get(root, "tables");
    const json_t *checks = json_object_get(root, "checksums");
    status = digest_from_json(&out->digest, root, "digest", err);
    if (status == MR_OK && json_array_size(tables) != out->table_count)
        status = mr_fail(err, MR_ERR_FORMAT, "it has %zu tables, the model %u",
                         json_array_size(tables), out->table_count);
    for (uint32_t i = 0; i < out->table_count && status == MR_OK; i++)
        status = facts_from_json(out, i, json_array_get(tables, i), mr_model_table(model, i), err);
    if (status == MR_OK && json_object_size(checks) != out->tensor_count)
        status = mr_fail(err, MR_ERR_FORMAT, "it has checksums of %zu tensors, the model has %u",
                         json_object_size(checks), out->tensor_count);
    for (uint32_t i = 0; i < out->tensor_count && status == MR_OK; i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        status = checks_from_json(out->crc[i], chunks_of(out, t), json_object_get(checks, t->name),
                                  t->name, err);
    }
    if (status != MR_OK) mr_manifest_free(out);
    return status;
}

/* key: "fingerprint" or "layout", which must be `wanted`. */
static mr_status read_by(mr_manifest *out, const mr_model *model, const char *path, const char *key,
                         const mr_digest *wanted, mr_err *err) {
    json_t *root;
    mr_digest found;
    *out = (mr_manifest){0};
    mr_status status = mr_json_load(&root, path, MR_MAX_MANIFEST_BYTES, err);
    if (status != MR_OK) return status;
    status = from_json(out, root, model, err);
    if (status == MR_OK) status = digest_from_json(&found, root, key, err);
    if (status == MR_OK && memcmp(&found, wanted, sizeof(found)) != 0)
        status = mr_fail(err, MR_ERR_MISMATCH, "it belongs to other files");
    json_decref(root);
    if (status == MR_OK) return MR_OK;
    mr_manifest_free(out);
    return mr_fail_prefix(err, status, "manifest %s", path);
}

mr_status mr_manifest_read(mr_manifest *out, const mr_model *model, const char *path, mr_err *err) {
    const mr_digest layout = layout_of(model);
    return read_by(out, model, path, "layout", &layout, err);
}

mr_status mr_manifest_write(const mr_manifest *manifest, const mr_model *model, const char *path,
                            mr_err *err) {
    json_t *root = to_json(manifest, model);
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS); /* doubles with 17 digits */
    json_decref(root);
    if (!text) return mr_fail(err, MR_ERR_NOMEM, "no memory for the manifest's text");
    const size_t bytes = strlen(text);
    const mr_status status =
        bytes > MR_MAX_MANIFEST_BYTES
            ? mr_fail(err, MR_ERR_LIMIT, "a manifest of %zu bytes, more than the %d allowed", bytes,
                      MR_MAX_MANIFEST_BYTES)
            : mr_file_write(path, text, bytes, err);
    free(text);
    return status;
}

/* --- where it is kept ------------------------------------------------------------------------- */

static char *cache_folder(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache) return mr_format("%s/memrack", cache);
    if (home && *home) return mr_format("%s/.cache/memrack", home);
    return mr_format("/tmp/memrack-cache");
}

/* false: not there, not ours, or stale; the pass is then made anew. */
static bool read_kept(mr_manifest *out, const mr_model *model, const char *path) {
    const mr_digest fingerprint = mr_model_fingerprint(model);
    mr_err err = {{0}};
    if (access(path, F_OK) != 0) return false;
    const mr_status status = read_by(out, model, path, "fingerprint", &fingerprint, &err);
    if (status != MR_OK && status != MR_ERR_MISMATCH)
        mr_log_warn("the model is read again: %s", err.text);
    return status == MR_OK;
}

static void keep(const mr_manifest *m, const mr_model *model, const char *beside,
                 const char *cached) {
    if (mr_manifest_write(m, model, beside, NULL) == MR_OK) return;
    char *folder = cache_folder();
    mr_err err = {{0}};
    if (mr_make_directories(folder, &err) != MR_OK ||
        mr_manifest_write(m, model, cached, &err) != MR_OK)
        mr_log_warn("the manifest could not be kept, the next start reads the model again: %s",
                    err.text);
    free(folder);
}

mr_status mr_manifest_load(mr_manifest *out, const mr_model *model, mr_progress progress,
                           void *context, mr_err *err) {
    char fingerprint[MR_DIGEST_TEXT_BYTES];
    const mr_digest key = mr_model_fingerprint(model);
    mr_status status = MR_OK;
    mr_digest_text(&key, fingerprint);
    char *folder = cache_folder();
    char *beside = mr_format("%s/memrack-manifest.json", mr_model_directory(model));
    char *cached = mr_format("%s/%s.json", folder, fingerprint);
    *out = (mr_manifest){0};
    if (mr_model_is_fetched(model))
        status = mr_manifest_read(out, model, beside, err);
    else if (!read_kept(out, model, beside) && !read_kept(out, model, cached)) {
        status = mr_manifest_make(out, model, (mr_grid){0, 0}, progress, context, err);
        if (status == MR_OK) keep(out, model, beside, cached);
    }
    free(folder);
    free(beside);
    free(cached);
    return status;
}
