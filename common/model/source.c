/* source.c - see source.h. */
#include "common/model/source.h"

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/source_http.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD_BYTES = 64 << 10, TEXT_BYTES_MAX = MR_MAX_TOKENIZER_BYTES };

struct mr_source {
    mr_source_options options;
    mr_http *http; /* NULL: a directory */
    char *folder;
    mr_model *model;
    mr_manifest manifest;
    bool **there;         /* [tensor][chunk]: compared, in the local file */
    pthread_mutex_t lock; /* guards http, there, chunk and counters */
    uint8_t *chunk;       /* [chunk_bytes] the one being fetched */
    mr_source_counters counters;
};

bool mr_source_is_address(const char *where) {
    return strncmp(where, "http://", 7) == 0 || strncmp(where, "https://", 8) == 0;
}

/* --- small files ------------------------------------------------------------------------------ */

typedef struct {
    char *data;
    size_t bytes, room, bytes_max;
} text;

static mr_status take_text(void *context, const uint8_t *data, size_t bytes, mr_err *err) {
    text *t = context;
    if (bytes > t->bytes_max - t->bytes)
        return mr_fail(err, MR_ERR_LIMIT, "it is larger than the %zu bytes allowed", t->bytes_max);
    if (t->room - t->bytes < bytes + 1) {
        t->room = (t->room + bytes + 1) * 2;
        t->data = mr_realloc_array(t->data, t->room, 1);
    }
    memcpy(t->data + t->bytes, data, bytes);
    t->bytes += bytes;
    t->data[t->bytes] = '\0';
    return MR_OK;
}

/* *out is owned and ends with a zero. is_missing (may be NULL): 404 is no error, *out is NULL. */
static mr_status get_text(mr_source *s, char **out, size_t *bytes, const char *file, uint64_t first,
                          uint64_t wanted, uint64_t *file_bytes, bool *is_missing, size_t bytes_max,
                          mr_err *err) {
    text t = {.bytes_max = bytes_max};
    mr_http_range range = {
        .file = file, .first = first, .bytes = wanted, .sink = take_text, .context = &t};
    *out = NULL;
    *bytes = 0;
    const mr_status status = mr_http_get_all(s->http, &range, &s->counters, err);
    if (is_missing) *is_missing = status != MR_OK && range.is_missing;
    if (file_bytes) *file_bytes = range.file_bytes;
    if (status != MR_OK) {
        free(t.data);
        return is_missing && *is_missing ? MR_OK : status;
    }
    *out = t.data ? t.data : mr_strdup("");
    *bytes = t.bytes;
    return MR_OK;
}

/* Fetches a file whole into the folder. */
static mr_status keep_text(mr_source *s, const char *file, size_t bytes_max, bool is_optional,
                           mr_err *err) {
    char *data;
    size_t bytes;
    bool is_missing;
    mr_status status = get_text(s, &data, &bytes, file, 0, UINT64_MAX, NULL,
                                is_optional ? &is_missing : NULL, bytes_max, err);
    if (status != MR_OK || !data) return status;
    char *path = mr_format("%s/%s", s->folder, file);
    status = mr_file_write(path, data, bytes, err);
    free(path);
    free(data);
    return status;
}

/* --- safetensors files without their data ----------------------------------------------------- */

static mr_status make_sparse(const char *path, const char *head, size_t head_bytes,
                             uint64_t file_bytes, mr_err *err) {
    mr_status status = MR_OK;
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "create %s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0 ||
        ((uint64_t)st.st_size != file_bytes && ftruncate(fd, (off_t)file_bytes) != 0) ||
        pwrite(fd, head, head_bytes, 0) != (ssize_t)head_bytes)
        status = mr_fail(err, MR_ERR_IO, "write %s: %s", path, strerror(errno));
    close(fd);
    return status;
}

/* The header in one request, or two where it is long. */
static mr_status keep_header(mr_source *s, const char *file, bool *is_missing, mr_err *err) {
    char *head, *more = NULL;
    size_t bytes, more_bytes = 0;
    uint64_t file_bytes, length = 0;
    mr_status status =
        get_text(s, &head, &bytes, file, 0, HEAD_BYTES, &file_bytes, is_missing, HEAD_BYTES, err);
    if (status != MR_OK || !head) return status;
    memcpy(&length, head, bytes < sizeof(length) ? bytes : sizeof(length));
    if (file_bytes == UINT64_MAX || file_bytes >= INT64_MAX)
        status = mr_fail(err, MR_ERR_FORMAT, "%s: the server does not say how long it is", file);
    else if (bytes < 8 || length > MR_MAX_SAFETENSORS_HEADER_BYTES || 8 + length > file_bytes)
        status = mr_fail(err, MR_ERR_FORMAT, "%s is not a safetensors file", file);
    else if (8 + length > bytes) {
        status = get_text(s, &more, &more_bytes, file, bytes, 8 + length - bytes, NULL, NULL,
                          MR_MAX_SAFETENSORS_HEADER_BYTES, err);
        if (status == MR_OK && bytes + more_bytes != 8 + length)
            status = mr_fail(err, MR_ERR_FORMAT, "%s: its header is cut short", file);
    }
    if (status == MR_OK) {
        const size_t all = 8 + (size_t)length;
        char *path = mr_format("%s/%s", s->folder, file);
        head = mr_realloc_array(head, all > bytes ? all : bytes, 1);
        if (more) memcpy(head + bytes, more, more_bytes);
        status = make_sparse(path, head, all, file_bytes, err);
        free(path);
    }
    free(more);
    free(head);
    return status;
}

/* As in model.c: a name that stays in the folder. */
static bool is_plain_name(const char *name) {
    return name && *name && *name != '.' && !strchr(name, '/') && !strpbrk(name, "?#%\r\n\\") &&
           strlen(name) < 256;
}

static mr_status keep_sharded(mr_source *s, const char *index, mr_err *err) {
    json_t *root, *file, *seen = json_object();
    const char *tensor;
    char *path = mr_format("%s/%s", s->folder, index);
    mr_status status = mr_json_load(&root, path, MR_MAX_CONFIG_BYTES, err);
    free(path);
    if (status != MR_OK) {
        json_decref(seen);
        return status;
    }
    json_object_foreach(json_object_get(root, "weight_map"), tensor, file) {
        const char *name = json_string_value(file);
        if (!is_plain_name(name))
            status = mr_fail(err, MR_ERR_FORMAT,
                             "%s: tensor %.200s: a shard is a plain file name beside the index",
                             index, tensor);
        else if (!json_object_get(seen, name)) {
            json_object_set_new(seen, name, json_true());
            status = json_object_size(seen) > MR_MAX_MODEL_FILES
                         ? mr_fail(err, MR_ERR_LIMIT, "%s names more than %d files", index,
                                   MR_MAX_MODEL_FILES)
                         : keep_header(s, name, NULL, err);
        }
        if (status != MR_OK) break;
    }
    json_decref(seen);
    json_decref(root);
    return status;
}

static mr_status keep_headers(mr_source *s, mr_err *err) {
    static const char index[] = "model.safetensors.index.json";
    bool is_missing;
    mr_status status = keep_header(s, "model.safetensors", &is_missing, err);
    if (status != MR_OK || !is_missing) return status;
    status = keep_text(s, index, MR_MAX_CONFIG_BYTES, false, err);
    return status == MR_OK ? keep_sharded(s, index, err) : status;
}

/* --- ranges of tensors ------------------------------------------------------------------------ */

/* Chunks [chunk, end) of a tensor on their way: `have` bytes of the first one are in s->chunk. */
typedef struct {
    mr_source *source;
    const mr_tensor *tensor;
    mr_checks checks;
    bool *there;
    uint64_t chunk, end;
    size_t have;
    int fd;
    bool is_wrong; /* the chunk that just came */
} chunks;

static size_t chunk_size(const chunks *c, uint64_t chunk) {
    const uint64_t left = c->checks.bytes - chunk * c->checks.chunk_bytes;
    return (size_t)(left < c->checks.chunk_bytes ? left : c->checks.chunk_bytes);
}

static mr_status end_chunk(chunks *c, mr_err *err) {
    const size_t bytes = chunk_size(c, c->chunk);
    const uint64_t at = c->tensor->offset + c->chunk * c->checks.chunk_bytes;
    c->have = 0;
    if (mr_crc32c(0, c->source->chunk, bytes) != c->checks.crc[c->chunk]) {
        c->is_wrong = true;
        c->source->counters.wrong_chunks++;
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %.200s, bytes %llu to %llu: what the server sends does not match "
                       "the manifest's checksum",
                       c->tensor->name, (unsigned long long)(c->chunk * c->checks.chunk_bytes),
                       (unsigned long long)(c->chunk * c->checks.chunk_bytes + bytes - 1));
    }
    for (size_t done = 0; done < bytes;) {
        const ssize_t put =
            pwrite(c->fd, c->source->chunk + done, bytes - done, (off_t)(at + done));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            return mr_fail(err, MR_ERR_IO, "write %s: %s",
                           mr_model_file(c->source->model, c->tensor),
                           put < 0 ? strerror(errno) : "no room");
        done += (size_t)put;
    }
    c->there[c->chunk++] = true;
    c->source->counters.fetched_chunks++;
    return MR_OK;
}

static mr_status take_chunks(void *context, const uint8_t *data, size_t bytes, mr_err *err) {
    chunks *c = context;
    mr_status status = MR_OK;
    while (bytes > 0 && status == MR_OK) {
        const size_t left = chunk_size(c, c->chunk) - c->have, piece = bytes < left ? bytes : left;
        memcpy(c->source->chunk + c->have, data, piece);
        c->have += piece;
        data += piece;
        bytes -= piece;
        if (piece == left) status = end_chunk(c, err);
    }
    return status;
}

/* Local bytes first: an earlier start, or another process, may have fetched them. */
static bool is_kept(chunks *c, uint64_t chunk) {
    const size_t bytes = chunk_size(c, chunk);
    size_t have = 0;
    while (have < bytes) {
        const ssize_t got =
            pread(c->fd, c->source->chunk + have, bytes - have,
                  (off_t)(c->tensor->offset + chunk * c->checks.chunk_bytes + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        have += (size_t)got;
    }
    if (mr_crc32c(0, c->source->chunk, bytes) != c->checks.crc[chunk]) return false;
    c->there[chunk] = true;
    c->source->counters.found_chunks++;
    return true;
}

/* Chunks [c->chunk, c->end), all missing, in one transfer; a chunk that came wrong is asked for
 * once more. */
static mr_status fetch_run(chunks *c, mr_err *err) {
    mr_source *s = c->source;
    uint64_t wrong = UINT64_MAX;
    for (;;) {
        const uint64_t first = c->chunk * c->checks.chunk_bytes;
        const uint64_t end = (c->end - 1) * c->checks.chunk_bytes + chunk_size(c, c->end - 1);
        const char *file = strrchr(mr_model_file(s->model, c->tensor), '/') + 1;
        mr_http_range range = {.file = file,
                               .first = c->tensor->offset + first,
                               .bytes = end - first,
                               .sink = take_chunks,
                               .context = c};
        c->have = 0;
        c->is_wrong = false;
        const mr_status status = mr_http_get_all(s->http, &range, &s->counters, err);
        if (status == MR_OK && c->chunk == c->end) return MR_OK;
        if (status == MR_OK)
            return mr_fail(err, MR_ERR_FORMAT, "%s: the server's file became shorter", file);
        if (!c->is_wrong || c->chunk == wrong) return status;
        wrong = c->chunk;
        mr_log_warn("once more: %s", err ? err->text : "a chunk came wrong");
    }
}

static mr_status fetch_locked(mr_source *s, const mr_tensor *tensor, uint64_t first, uint64_t bytes,
                              mr_err *err) {
    const ptrdiff_t index = tensor - mr_model_tensor(s->model, 0);
    const char *path = mr_model_file(s->model, tensor);
    chunks c = {.source = s,
                .tensor = tensor,
                .checks = mr_manifest_checks(&s->manifest, s->model, tensor),
                .there = s->there[index]};
    const mr_chunk_range range = mr_chunks_around(&c.checks, first, bytes);
    const uint64_t end = range.chunk_first + range.chunk_count;
    uint64_t at = range.chunk_first;
    mr_status status = MR_OK;
    while (at < end && c.there[at]) at++;
    if (at == end) return MR_OK;
    c.fd = open(path, O_RDWR | O_CLOEXEC);
    if (c.fd < 0) return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno));
    while (at < end && status == MR_OK) {
        if (c.there[at] || is_kept(&c, at)) {
            at++;
            continue;
        }
        c.chunk = at++;
        while (at < end && !c.there[at] && !is_kept(&c, at)) at++;
        c.end = at;
        status = fetch_run(&c, err);
    }
    close(c.fd);
    return status;
}

static mr_status fetch(void *context, const mr_tensor *tensor, uint64_t first, uint64_t bytes,
                       mr_err *err) {
    mr_source *s = context;
    pthread_mutex_lock(&s->lock);
    const mr_status status = fetch_locked(s, tensor, first, bytes, err);
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* --- open and close --------------------------------------------------------------------------- */

static char *cache_folder(const mr_source_options *options) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (options->cache_folder) return mr_strdup(options->cache_folder);
    if (cache && *cache) return mr_format("%s/memrack/models", cache);
    if (home && *home) return mr_format("%s/.cache/memrack/models", home);
    return mr_strdup("/tmp/memrack-cache/models");
}

/* The digest that a manifest claims names the folder; the rest of it is read once the model's
 * headers are there. */
static mr_status make_folder(mr_source *s, mr_err *err) {
    static const char name[] = "memrack-manifest.json";
    char *data, digest_text[MR_DIGEST_TEXT_BYTES];
    size_t bytes;
    json_t *root;
    mr_digest digest = {{0}};
    static const mr_digest any;
    mr_status status =
        get_text(s, &data, &bytes, name, 0, UINT64_MAX, NULL, NULL, MR_MAX_MANIFEST_BYTES, err);
    if (status != MR_OK)
        return mr_fail_prefix(err, status,
                              "a model at an address needs the manifest that memrack "
                              "split writes");
    status = mr_json_parse(&root, data, bytes, name, err);
    if (status == MR_OK) {
        const char *claimed = json_string_value(json_object_get(root, "digest"));
        if (!claimed || mr_digest_parse(&digest, claimed) != 0)
            status = mr_fail(err, MR_ERR_FORMAT, "%s: digest must be 64 hexadecimal digits", name);
        else if (memcmp(&s->options.digest, &any, sizeof(any)) != 0 &&
                 memcmp(&s->options.digest, &digest, sizeof(digest)) != 0)
            status = mr_fail(err, MR_ERR_MISMATCH,
                             "the model there has digest %.16s.., another one "
                             "is wanted",
                             claimed);
        json_decref(root);
    }
    if (status == MR_OK) {
        char *parent = cache_folder(&s->options);
        mr_digest_text(&digest, digest_text);
        s->folder = mr_format("%s/%.32s", parent, digest_text);
        free(parent);
        status = mr_make_directories(s->folder, err);
    }
    if (status == MR_OK) {
        char *path = mr_format("%s/%s", s->folder, name);
        status = mr_file_write(path, data, bytes, err);
        free(path);
    }
    free(data);
    return status;
}

static mr_status open_address(mr_source *s, const char *address, mr_err *err) {
    static const char *const texts[] = {"tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json"};
    mr_status status = mr_http_files_open(&s->http, address, &s->options, err);
    if (status == MR_OK) status = make_folder(s, err);
    if (status == MR_OK) status = keep_text(s, "config.json", MR_MAX_CONFIG_BYTES, false, err);
    for (int i = 0; i < 3 && s->options.with_texts && status == MR_OK; i++)
        status = keep_text(s, texts[i], TEXT_BYTES_MAX, true, err);
    if (status == MR_OK) status = keep_headers(s, err);
    if (status == MR_OK) status = mr_model_open(&s->model, s->folder, err);
    if (status != MR_OK) return status;
    mr_model_set_fetch(s->model, fetch, s);
    status = mr_manifest_load(&s->manifest, s->model, NULL, NULL, err);
    if (status != MR_OK) return status;
    s->chunk = mr_alloc(s->manifest.chunk_bytes);
    s->there = mr_alloc_array(s->manifest.tensor_count, sizeof(*s->there));
    for (uint32_t i = 0; i < s->manifest.tensor_count; i++)
        s->there[i] = mr_alloc_array(
            mr_chunk_count(mr_model_tensor(s->model, i)->bytes, s->manifest.chunk_bytes), 1);
    return MR_OK;
}

static mr_status open_directory(mr_source *s, const char *directory, mr_err *err) {
    static const mr_digest any;
    mr_status status = mr_model_open(&s->model, directory, err);
    if (status == MR_OK)
        status = mr_manifest_load(&s->manifest, s->model, s->options.progress,
                                  s->options.progress_context, err);
    if (status == MR_OK && memcmp(&s->options.digest, &any, sizeof(any)) != 0 &&
        memcmp(&s->options.digest, &s->manifest.digest, sizeof(any)) != 0)
        status =
            mr_fail(err, MR_ERR_MISMATCH, "%s holds another model than the one wanted", directory);
    return status;
}

mr_status mr_source_open(mr_source **out, const char *where, const mr_source_options *options,
                         mr_err *err) {
    mr_source *s = mr_alloc(sizeof(*s));
    *out = NULL;
    if (options) s->options = *options;
    pthread_mutex_init(&s->lock, NULL);
    const mr_status status =
        mr_source_is_address(where) ? open_address(s, where, err) : open_directory(s, where, err);
    if (status != MR_OK) {
        mr_source_close(s);
        return status;
    }
    *out = s;
    return MR_OK;
}

void mr_source_close(mr_source *source) {
    if (!source) return;
    for (uint32_t i = 0; source->there && i < source->manifest.tensor_count; i++)
        free(source->there[i]);
    mr_manifest_free(&source->manifest);
    mr_model_close(source->model);
    mr_http_files_close(source->http);
    pthread_mutex_destroy(&source->lock);
    free(source->there);
    free(source->chunk);
    free(source->folder);
    free(source);
}

mr_model *mr_source_model(const mr_source *source) {
    return source->model;
}
const mr_manifest *mr_source_manifest(const mr_source *source) {
    return &source->manifest;
}
void mr_source_count(mr_source *source, mr_source_counters *out) {
    pthread_mutex_lock(&source->lock);
    *out = source->counters;
    pthread_mutex_unlock(&source->lock);
}
