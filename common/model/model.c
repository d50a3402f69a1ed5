/* model.c - see model.h. One safetensors file or several with an index; the tensors of all files in
 * one array sorted by name, so that a lookup is a binary search. */
#include "common/model/model.h"

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/mem.h"
#include "common/model/geometry.h"
#include "common/model/panels.h"
#include "common/model/rows.h"
#include "common/model/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct mr_model {
    char *directory, *name;
    mr_config config;
    char **files;
    uint32_t file_count;
    mr_tensor *tensors; /* sorted by name */
    bool *used;         /* [tensor_count] the architecture asked for it */
    uint32_t tensor_count;
    mr_tensor **absent; /* stored as panels; sorted by name once all are known */
    uint32_t absent_count;
    pthread_mutex_t *maps_lock; /* guards maps */
    mr_mapping *maps;           /* [file_count] of whole files, where somebody borrowed */
    mr_table_shape *tables;
    uint32_t table_count;
    mr_memory_layer *layers;
    mr_digest fingerprint;
    mr_model_fetch fetch; /* NULL: the files are whole */
    void *fetch_context;
};

static int by_name(const void *a, const void *b) {
    return strcmp(((const mr_tensor *)a)->name, ((const mr_tensor *)b)->name);
}

/* Adds the tensors of one file; their names move into the model. */
static mr_status add_file(mr_model *m, const char *file, mr_sha256 *hash, mr_err *err) {
    mr_safetensors header;
    char *path = mr_format("%s/%s", m->directory, file);
    const mr_status status = mr_safetensors_open(&header, path, hash, err);
    if (status != MR_OK) {
        free(path);
        return status;
    }
    m->files = mr_realloc_array(m->files, m->file_count + 1, sizeof(*m->files));
    m->files[m->file_count] = path;
    m->tensors =
        mr_realloc_array(m->tensors, (size_t)m->tensor_count + header.count, sizeof(*m->tensors));
    for (uint32_t i = 0; i < header.count; i++) {
        m->tensors[m->tensor_count] = header.tensors[i];
        m->tensors[m->tensor_count++].file = m->file_count;
    }
    m->file_count++;
    free(header.tensors);
    return MR_OK;
}

/* Only plain names: a shard lies beside its index. */
static bool is_plain_name(const char *name) {
    return *name && *name != '.' && !strchr(name, '/') && strlen(name) < 256;
}

static mr_status check_index(const mr_model *m, const json_t *map, mr_err *err) {
    const char *name;
    json_t *file;
    json_object_foreach((json_t *)(uintptr_t)map, name, file) {
        const mr_tensor *t = mr_model_find(m, name);
        if (!t)
            return mr_fail(err, MR_ERR_FORMAT,
                           "the index names tensor %.200s, which no shard holds", name);
        const char *slash = strrchr(m->files[t->file], '/');
        if (strcmp(slash + 1, json_string_value(file)) != 0)
            return mr_fail(err, MR_ERR_FORMAT,
                           "the index says tensor %.200s is in %.100s, it is in %.100s", name,
                           json_string_value(file), slash + 1);
    }
    if (json_object_size(map) != m->tensor_count)
        return mr_fail(err, MR_ERR_FORMAT, "the index names %zu tensors, its shards hold %u",
                       json_object_size(map), m->tensor_count);
    return MR_OK;
}

static mr_status sort_tensors(mr_model *m, mr_err *err) {
    if (m->tensor_count > 1) qsort(m->tensors, m->tensor_count, sizeof(*m->tensors), by_name);
    for (uint32_t i = 1; i < m->tensor_count; i++)
        if (strcmp(m->tensors[i - 1].name, m->tensors[i].name) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "tensor %.200s is in two files", m->tensors[i].name);
    return MR_OK;
}

static mr_status open_sharded(mr_model *m, const char *path, mr_sha256 *hash, mr_err *err) {
    json_t *root, *file;
    const char *name;
    mr_status status = mr_json_load(&root, path, MR_MAX_CONFIG_BYTES, err);
    if (status != MR_OK) return status;
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        status =
            mr_fail(err, MR_ERR_FORMAT, "%s: weight_map must be an object of tensor: file", path);
        goto done;
    }
    json_object_foreach((json_t *)(uintptr_t)map, name, file) {
        const char *text = json_string_value(file);
        if (!text || !is_plain_name(text)) {
            status = mr_fail(err, MR_ERR_FORMAT,
                             "%s: tensor %.200s: a shard is a plain file name beside the index",
                             path, name);
            goto done;
        }
        bool known = false;
        for (uint32_t i = 0; i < m->file_count; i++)
            known |= strcmp(strrchr(m->files[i], '/') + 1, text) == 0;
        if (known) continue;
        if (m->file_count >= MR_MAX_MODEL_FILES)
            status =
                mr_fail(err, MR_ERR_LIMIT, "%s names more than %d files", path, MR_MAX_MODEL_FILES);
        else
            status = add_file(m, text, hash, err);
        if (status != MR_OK) goto done;
    }
    status = sort_tensors(m, err);
    if (status == MR_OK) status = check_index(m, map, err);
done:
    json_decref(root);
    return status;
}

static mr_status open_tensors(mr_model *m, mr_sha256 *hash, mr_err *err) {
    char *single = mr_format("%s/model.safetensors", m->directory);
    char *index = mr_format("%s/model.safetensors.index.json", m->directory);
    mr_status status;
    if (access(index, F_OK) == 0 && access(single, F_OK) != 0)
        status = open_sharded(m, index, hash, err);
    else {
        status = add_file(m, "model.safetensors", hash, err);
        if (status == MR_OK) status = sort_tensors(m, err);
    }
    free(single);
    free(index);
    return status;
}

static mr_status open_config(mr_model *m, mr_sha256 *hash, mr_err *err) {
    char *path = mr_format("%s/config.json", m->directory), *text = NULL;
    size_t bytes;
    mr_status status = mr_file_read(&text, &bytes, path, MR_MAX_CONFIG_BYTES, err);
    if (status == MR_OK) {
        mr_sha256_add(hash, text, bytes);
        status = mr_config_parse(&m->config, text, bytes, path, err);
    }
    free(text);
    free(path);
    return status;
}

static const mr_tensor *find_stored(const mr_model *model, const char *name) {
    const mr_tensor wanted = {.name = (char *)(uintptr_t)name};
    if (model->tensor_count == 0) return NULL;
    return bsearch(&wanted, model->tensors, model->tensor_count, sizeof(wanted), by_name);
}

static const mr_tensor *find_for_geometry(const void *context, const char *name) {
    return find_stored(context, name);
}

static const mr_tensor *invent(void *context, const char *name, const uint64_t shape[2]) {
    mr_model *m = context;
    mr_tensor *t = mr_alloc(sizeof(*t));
    *t = (mr_tensor){.name = mr_strdup(name),
                     .dtype = MR_DTYPE_F32,
                     .dims = 2,
                     .shape = {shape[0], shape[1]},
                     .file = MR_NO_FILE,
                     .columns = shape[1]};
    m->absent = mr_realloc_array(m->absent, m->absent_count + 1ull, sizeof(*m->absent));
    m->absent[m->absent_count++] = t;
    return t;
}

static int by_name_of(const void *a, const void *b) {
    return by_name(*(mr_tensor *const *)a, *(mr_tensor *const *)b);
}

/* Of a packed model: every matrix has its panels, and the embedding its rows. */
static mr_status check_panels(mr_model *m, mr_err *err) {
    const mr_tensor *data, *scales;
    mr_storage format;
    mr_matrix matrix;
    if (m->absent_count > 1) qsort(m->absent, m->absent_count, sizeof(*m->absent), by_name_of);
    if (mr_model_embedding(m)->file == MR_NO_FILE)
        return mr_fail(err, MR_ERR_FORMAT, "tensor %s is missing", mr_model_embedding(m)->name);
    for (mr_matrix_id id = {0}; mr_matrix_next(m, &id);) {
        mr_matrix_of(&matrix, m, id);
        const mr_status status = mr_panels_find(&format, &data, &scales, m, &matrix, err);
        if (status != MR_OK) return status;
        m->used[data - m->tensors] = true;
        if (scales) m->used[scales - m->tensors] = true;
    }
    return MR_OK;
}

static void mark_used(void *context, const mr_tensor *tensor, uint64_t columns) {
    mr_model *m = context;
    m->used[tensor - m->tensors] = true;
    if (tensor->scales) m->used[tensor->scales - m->tensors] = true;
    if (columns) m->tensors[tensor - m->tensors].columns = columns;
}

static mr_status check_architecture(mr_model *m, mr_err *err) {
    const uint32_t memories = m->config.memory_count;
    m->tables = mr_alloc_array(memories, sizeof(*m->tables));
    m->layers = mr_alloc_array(memories, sizeof(*m->layers));
    m->used = mr_alloc_array(m->tensor_count, sizeof(*m->used));
    mr_geometry geometry = {.find = find_for_geometry,
                            .context = m,
                            .config = &m->config,
                            .tables = m->tables,
                            .layers = m->layers,
                            .mark = mark_used,
                            .mark_context = m,
                            .invent = invent};
    mr_status status = mr_tensors_classify(m->tensors, m->tensor_count, &m->config.quant, err);
    if (status == MR_OK) status = mr_geometry_check(&geometry, err);
    if (status == MR_OK && m->config.quant.is_packed) status = check_panels(m, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "%s", m->directory);
    m->table_count = geometry.table_count;
    for (uint32_t i = 0; i < m->tensor_count; i++)
        if (!m->used[i])
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "%s: tensor %.200s has no place in this architecture (config.json may "
                           "not fit the weights)",
                           m->directory, m->tensors[i].name);
    return MR_OK;
}

static char *name_of(const char *directory) {
    char resolved[PATH_MAX];
    const char *path = realpath(directory, resolved) ? resolved : directory;
    const char *slash = strrchr(path, '/');
    return mr_strdup(slash && slash[1] ? slash + 1 : path);
}

mr_status mr_model_open(mr_model **out, const char *directory, mr_err *err) {
    struct stat st;
    *out = NULL;
    if (stat(directory, &st) != 0)
        return mr_fail(err, MR_ERR_IO, "model %s: %s", directory, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return mr_fail(
            err, MR_ERR_ARGUMENT,
            "model %s is not a folder; a model is a folder with config.json and *.safetensors",
            directory);
    mr_model *m = mr_alloc(sizeof(*m));
    m->directory = mr_strdup(directory);
    m->name = name_of(directory);
    mr_sha256 *hash = mr_sha256_open();
    mr_status status = open_config(m, hash, err);
    if (status == MR_OK) status = open_tensors(m, hash, err);
    m->fingerprint = mr_sha256_close(hash);
    if (status == MR_OK) status = check_architecture(m, err);
    m->maps = mr_alloc_array(m->file_count, sizeof(*m->maps));
    m->maps_lock = mr_alloc(sizeof(*m->maps_lock));
    pthread_mutex_init(m->maps_lock, NULL);
    if (status != MR_OK) {
        mr_model_close(m);
        return status;
    }
    *out = m;
    return MR_OK;
}

void mr_model_close(mr_model *model) {
    if (!model) return;
    for (uint32_t i = 0; i < model->tensor_count; i++) free(model->tensors[i].name);
    for (uint32_t i = 0; i < model->file_count; i++) free(model->files[i]);
    mr_config_free(&model->config);
    for (uint32_t i = 0; i < model->absent_count; i++) {
        free(model->absent[i]->name);
        free(model->absent[i]);
    }
    for (uint32_t i = 0; model->maps && i < model->file_count; i++)
        mr_mapping_close(&model->maps[i]);
    if (model->maps_lock) pthread_mutex_destroy(model->maps_lock);
    free(model->maps_lock);
    free(model->maps);
    free(model->absent);
    free(model->tensors);
    free(model->files);
    free(model->used);
    free(model->tables);
    free(model->layers);
    free(model->directory);
    free(model->name);
    free(model);
}

const mr_config *mr_model_config(const mr_model *model) {
    return &model->config;
}
const char *mr_model_directory(const mr_model *model) {
    return model->directory;
}
const char *mr_model_name(const mr_model *model) {
    return model->name;
}
uint32_t mr_model_tensor_count(const mr_model *model) {
    return model->tensor_count;
}
const mr_tensor *mr_model_tensor(const mr_model *model, uint32_t index) {
    return &model->tensors[index];
}
const char *mr_model_file(const mr_model *model, const mr_tensor *tensor) {
    return model->files[tensor->file];
}
uint32_t mr_model_table_count(const mr_model *model) {
    return model->table_count;
}
const mr_table_shape *mr_model_table(const mr_model *model, uint32_t table) {
    return &model->tables[table];
}
uint32_t mr_model_memory_count(const mr_model *model) {
    return model->config.memory_count;
}
const mr_memory_layer *mr_model_memory(const mr_model *model, uint32_t layer) {
    return &model->layers[layer];
}
mr_digest mr_model_fingerprint(const mr_model *model) {
    return model->fingerprint;
}

void mr_model_set_fetch(mr_model *model, mr_model_fetch fetch, void *context) {
    model->fetch = fetch;
    model->fetch_context = context;
}
bool mr_model_is_fetched(const mr_model *model) {
    return model->fetch != NULL;
}

const mr_tensor *mr_model_find(const mr_model *model, const char *name) {
    const mr_tensor wanted = {.name = (char *)(uintptr_t)name}, *key = &wanted;
    const mr_tensor *stored = find_stored(model, name);
    if (stored || model->absent_count == 0) return stored;
    mr_tensor *const *absent =
        bsearch(&key, model->absent, model->absent_count, sizeof(*model->absent), by_name_of);
    return absent ? *absent : NULL;
}

mr_status mr_tensor_map(mr_mapping *out, const mr_model *model, const mr_tensor *tensor,
                        uint64_t first, uint64_t bytes, mr_err *err) {
    struct stat st;
    *out = (mr_mapping){0};
    if (bytes == 0) return MR_OK;
    assert(tensor->file != MR_NO_FILE);
    if (model->fetch) {
        const mr_status status = model->fetch(model->fetch_context, tensor, first, bytes, err);
        if (status != MR_OK) return status;
    }
    const char *path = mr_model_file(model, tensor);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno));
    const uint64_t start = tensor->offset + first;
    if (fstat(fd, &st) != 0 || (uint64_t)st.st_size < start + bytes) {
        close(fd);
        return mr_fail(err, MR_ERR_IO, "%s became shorter since it was opened", path);
    }
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t from = start / page * page;
    void *base = mmap(NULL, (size_t)(start + bytes - from), PROT_READ, MAP_SHARED, fd, (off_t)from);
    const int code = errno;
    close(fd); /* the mapping keeps the file alive */
    if (base == MAP_FAILED)
        return mr_fail(err, MR_ERR_IO, "map %llu bytes of %s: %s", (unsigned long long)bytes, path,
                       strerror(code));
    *out = (mr_mapping){.data = (const uint8_t *)base + (start - from),
                        .base = base,
                        .base_bytes = (size_t)(start + bytes - from)};
    return MR_OK;
}

void mr_mapping_close(mr_mapping *mapping) {
    if (mapping->base) munmap(mapping->base, mapping->base_bytes);
    *mapping = (mr_mapping){0};
}

mr_status mr_tensor_borrow(const void **out, const mr_model *model, const mr_tensor *tensor,
                           mr_err *err) {
    mr_mapping part; /* fetches what is not there yet, and sees a file that became shorter */
    mr_status status = mr_tensor_map(&part, model, tensor, 0, tensor->bytes, err);
    if (status != MR_OK) return status;
    mr_mapping_close(&part);
    pthread_mutex_lock(model->maps_lock);
    mr_mapping *map = &model->maps[tensor->file];
    if (!map->base) {
        mr_file_map file;
        status = mr_file_map_open(&file, mr_model_file(model, tensor), err);
        if (status == MR_OK)
            *map = (mr_mapping){.data = file.data,
                                .base = (void *)(uintptr_t)file.data,
                                .base_bytes = (size_t)file.bytes};
    }
    if (status == MR_OK && tensor->offset + tensor->bytes > map->base_bytes)
        status = mr_fail(err, MR_ERR_IO, "%s became shorter since it was opened",
                         mr_model_file(model, tensor));
    if (status == MR_OK) *out = map->data + tensor->offset;
    pthread_mutex_unlock(model->maps_lock);
    return status;
}
