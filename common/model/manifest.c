/* manifest.c - see manifest.h. One pass reads every byte once: it hashes, checks that every float
 * is finite, and takes the tables' maxima on the way. */
#include "common/model/manifest.h"

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MANIFEST_VERSION = 1, CHUNK_BYTES = 8 << 20 };

typedef struct {
    const mr_model *model;
    mr_manifest *manifest;
    mr_sha256 *hash;
    mr_progress progress;
    void *progress_context;
    uint64_t done_bytes, total_bytes;
} pass;

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

static mr_status refuse_non_finite(const pass *p, const mr_tensor *t, const uint8_t *data,
                                   mr_element element, uint64_t first, uint64_t count,
                                   mr_err *err) {
    const uint64_t columns = t->dims ? t->shape[t->dims - 1] : 1;
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

/* Which table's values (1) or pre-values (2) a tensor is; 0: neither. */
static int role_of(const pass *p, const mr_tensor *t, mr_table_facts **facts) {
    *facts = NULL;
    for (uint32_t i = 0; i < mr_model_table_count(p->model); i++) {
        const mr_table_shape *shape = mr_model_table(p->model, i);
        *facts = &p->manifest->tables[i];
        if (shape->values == t) return 1;
        if (shape->pre_values == t) return 2;
    }
    return 0;
}

static mr_status pass_floats(pass *p, const mr_tensor *t, mr_element element, const uint8_t *data,
                             uint64_t first, uint64_t count, double *square_sum, mr_err *err) {
    mr_table_facts *facts;
    const int role = role_of(p, t, &facts);
    const chunk_facts chunk = element == MR_F32 ? look_f32(data, count) : look_bf16(data, count);
    if (chunk.max_bits >= 0x7f800000u)
        return refuse_non_finite(p, t, data, element, first, count, err);
    *square_sum += chunk.square_sum;
    if (role == 1) {
        float largest;
        memcpy(&largest, &chunk.max_bits, sizeof(largest));
        if ((double)largest > facts->value_max) facts->value_max = (double)largest;
    } else if (role == 2) {
        const uint64_t columns = t->shape[1];
        const double norm = largest_norm(data, element, count / columns, columns);
        if (norm > facts->pre_norm_max) facts->pre_norm_max = norm;
    }
    return MR_OK;
}

static mr_status pass_tensor(pass *p, const mr_tensor *t, mr_err *err) {
    mr_element element;
    mr_status status = MR_OK;
    double square_sum = 0;
    const bool floats = mr_dtype_element(&element, t->dtype) == 0;
    const uint64_t row_bytes =
        t->dims ? t->shape[t->dims - 1] * mr_dtype_bytes(t->dtype) : mr_dtype_bytes(t->dtype);
    uint64_t chunk_bytes = row_bytes ? CHUNK_BYTES / row_bytes * row_bytes : CHUNK_BYTES;
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
        if (floats)
            status = pass_floats(p, t, element, map.data, at / mr_element_bytes(element),
                                 bytes / mr_element_bytes(element), &square_sum, err);
        mr_mapping_close(&map);
        p->done_bytes += bytes;
        if (p->progress)
            p->progress(p->progress_context, "reading the model once",
                        (double)p->done_bytes / (double)p->total_bytes);
    }
    mr_table_facts *facts;
    if (status == MR_OK && role_of(p, t, &facts) == 1 && t->bytes > 0)
        facts->value_rms = sqrt(square_sum / ((double)t->bytes / mr_element_bytes(element)));
    return status;
}

/* The accumulator rule of docs/ARCHITECTURE.md: fixed per table, never by grid or device. */
static uint32_t accumulator_bits(const mr_table_shape *shape, const mr_table_facts *facts) {
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

static mr_status stream(mr_manifest *out, const mr_model *model, mr_progress progress,
                        void *context, mr_err *err) {
    pass p = {.model = model, .manifest = out, .progress = progress, .progress_context = context};
    p.hash = mr_sha256_open();
    mr_status status = hash_config(&p, err);
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++)
        p.total_bytes += mr_model_tensor(model, i)->bytes;
    for (uint32_t i = 0; i < mr_model_tensor_count(model) && status == MR_OK; i++)
        status = pass_tensor(&p, mr_model_tensor(model, i), err);
    for (uint32_t i = 0; i < out->table_count; i++)
        out->tables[i].accumulator_bits =
            accumulator_bits(mr_model_table(model, i), &out->tables[i]);
    out->digest = mr_sha256_close(p.hash);
    return status;
}

static json_t *to_json(const mr_manifest *m, const mr_model *model) {
    char digest[MR_DIGEST_TEXT_BYTES], fingerprint[MR_DIGEST_TEXT_BYTES];
    const mr_digest key = mr_model_fingerprint(model);
    json_t *tables = json_array();
    mr_digest_text(&m->digest, digest);
    mr_digest_text(&key, fingerprint);
    for (uint32_t i = 0; i < m->table_count; i++)
        json_array_append_new(tables,
                              json_pack("{s:f, s:f, s:f, s:i}", "value_max", m->tables[i].value_max,
                                        "value_rms", m->tables[i].value_rms, "pre_norm_max",
                                        m->tables[i].pre_norm_max, "accumulator_bits",
                                        (int)m->tables[i].accumulator_bits));
    return json_pack("{s:i, s:s, s:s, s:o}", "version", MANIFEST_VERSION, "fingerprint",
                     fingerprint, "digest", digest, "tables", tables);
}

/* false: not there, not ours, or stale; the pass is then made anew. */
static bool from_json(mr_manifest *out, const json_t *root, const mr_model *model) {
    char fingerprint[MR_DIGEST_TEXT_BYTES];
    const mr_digest key = mr_model_fingerprint(model);
    const json_t *tables = json_object_get(root, "tables");
    const char *digest = json_string_value(json_object_get(root, "digest"));
    const char *kept = json_string_value(json_object_get(root, "fingerprint"));
    mr_digest_text(&key, fingerprint);
    if (json_integer_value(json_object_get(root, "version")) != MANIFEST_VERSION || !digest ||
        !kept || strcmp(kept, fingerprint) != 0 || mr_digest_parse(&out->digest, digest) != 0 ||
        json_array_size(tables) != out->table_count)
        return false;
    for (uint32_t i = 0; i < out->table_count; i++) {
        const json_t *table = json_array_get(tables, i);
        mr_table_facts *f = &out->tables[i];
        f->value_max = json_number_value(json_object_get(table, "value_max"));
        f->value_rms = json_number_value(json_object_get(table, "value_rms"));
        f->pre_norm_max = json_number_value(json_object_get(table, "pre_norm_max"));
        f->accumulator_bits =
            (uint32_t)json_integer_value(json_object_get(table, "accumulator_bits"));
        if (!(f->value_max >= 0 && f->value_max <= 3.5e38 && f->value_rms >= 0 &&
              f->value_rms <= f->value_max * 1.001 && f->pre_norm_max >= 0 &&
              isfinite(f->pre_norm_max)) ||
            f->accumulator_bits != accumulator_bits(mr_model_table(model, i), f))
            return false;
    }
    return true;
}

static char *cache_folder(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache) return mr_format("%s/memrack", cache);
    if (home && *home) return mr_format("%s/.cache/memrack", home);
    return mr_format("/tmp/memrack-cache");
}

static bool read_kept(mr_manifest *out, const mr_model *model, const char *path) {
    json_t *root;
    if (mr_json_load(&root, path, MR_MAX_CONFIG_BYTES, NULL) != MR_OK) return false;
    const bool good = from_json(out, root, model);
    json_decref(root);
    return good;
}

static void keep(const mr_manifest *m, const mr_model *model, const char *beside,
                 const char *cached) {
    json_t *root = to_json(m, model);
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS); /* doubles with 17 digits */
    json_decref(root);
    if (!text) return;
    if (mr_file_write(beside, text, strlen(text), NULL) != MR_OK) {
        char *folder = cache_folder();
        mr_err err = {{0}};
        if (mr_make_directories(folder, &err) != MR_OK ||
            mr_file_write(cached, text, strlen(text), &err) != MR_OK)
            mr_log_warn("the manifest could not be kept, the next start reads the model again: %s",
                        err.text);
        free(folder);
    }
    free(text);
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
    *out = (mr_manifest){.table_count = mr_model_table_count(model)};
    out->tables = mr_alloc_array(out->table_count, sizeof(*out->tables));
    if (!read_kept(out, model, beside) && !read_kept(out, model, cached)) {
        memset(out->tables, 0, out->table_count * sizeof(*out->tables));
        status = stream(out, model, progress, context, err);
        if (status == MR_OK)
            keep(out, model, beside, cached);
        else
            mr_manifest_free(out);
    }
    free(folder);
    free(beside);
    free(cached);
    return status;
}

void mr_manifest_free(mr_manifest *manifest) {
    free(manifest->tables);
    *manifest = (mr_manifest){0};
}
