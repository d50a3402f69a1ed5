/* safetensors.c - see safetensors.h. */
#include "common/model/safetensors.h"

#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static mr_status parse_shape(mr_tensor *t, const json_t *shape, const char *what, mr_err *err) {
    if (!json_is_array(shape))
        return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s: shape is %s, not an array", what,
                       t->name, mr_json_type_name(shape));
    const size_t dims = json_array_size(shape);
    if (dims > MR_MAX_TENSOR_DIMS)
        return mr_fail(err, MR_ERR_LIMIT,
                       "%s: tensor %.200s has %zu dimensions, at most %d are read", what, t->name,
                       dims, MR_MAX_TENSOR_DIMS);
    t->dims = (uint32_t)dims;
    uint64_t elements = 1;
    for (size_t i = 0; i < dims; i++) {
        const json_t *item = json_array_get(shape, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0)
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s: tensor %.200s: shape holds something other than a size", what,
                           t->name);
        t->shape[i] = (uint64_t)json_integer_value(item);
        if (mr_mul_overflows(elements, t->shape[i], &elements))
            return mr_fail(err, MR_ERR_RANGE,
                           "%s: tensor %.200s: the product of its shape overflows", what, t->name);
    }
    if (mr_mul_overflows(elements, mr_dtype_bytes(t->dtype), &t->bytes))
        return mr_fail(err, MR_ERR_RANGE, "%s: tensor %.200s: its size in bytes overflows", what,
                       t->name);
    return MR_OK;
}

static mr_status parse_tensor(mr_tensor *t, const char *name, const json_t *entry,
                              uint64_t data_start, uint64_t data_bytes, const char *what,
                              mr_err *err) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (strlen(name) > MR_MAX_TENSOR_NAME_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: a tensor name is longer than %d bytes", what,
                       MR_MAX_TENSOR_NAME_BYTES);
    t->name = mr_strdup(name);
    if (!json_is_object(entry) || !dtype)
        return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s has no dtype", what, name);
    if (mr_dtype_parse(&t->dtype, dtype) != 0)
        return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s: unknown dtype '%.40s'", what, name,
                       dtype);
    const mr_status status = parse_shape(t, json_object_get(entry, "shape"), what, err);
    if (status != MR_OK) return status;
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: tensor %.200s: data_offsets must be two ascending integers", what,
                       name);
    const uint64_t first = (uint64_t)json_integer_value(begin);
    const uint64_t last = (uint64_t)json_integer_value(end);
    if (last > data_bytes)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: tensor %.200s ends at byte %llu of %llu: the file is cut short or the "
                       "offset wrong",
                       what, name, (unsigned long long)last, (unsigned long long)data_bytes);
    if (last - first != t->bytes)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: tensor %.200s: its shape needs %llu bytes, its offsets hold %llu", what,
                       name, (unsigned long long)t->bytes, (unsigned long long)(last - first));
    t->offset = data_start + first;
    return MR_OK;
}

static int by_offset(const void *a, const void *b) {
    const mr_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static mr_status check_cover(mr_safetensors *f, uint64_t file_bytes, const char *what,
                             mr_err *err) {
    uint64_t at = f->data_start;
    if (f->count > 1) qsort(f->tensors, f->count, sizeof(*f->tensors), by_offset);
    for (uint32_t i = 0; i < f->count; i++) {
        const mr_tensor *t = &f->tensors[i];
        if (t->offset < at)
            return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s overlaps another one", what,
                           t->name);
        if (t->offset > at)
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s: %llu bytes before tensor %.200s belong to nothing", what,
                           (unsigned long long)(t->offset - at), t->name);
        at = t->offset + t->bytes;
    }
    if (at != file_bytes)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %llu bytes after the last tensor belong to nothing",
                       what, (unsigned long long)(file_bytes - at));
    return MR_OK;
}

static mr_status parse_object(mr_safetensors *out, const json_t *root, uint64_t file_bytes,
                              const char *what, mr_err *err) {
    const char *name;
    json_t *entry;
    const size_t entries = json_object_size(root);
    if (entries > MR_MAX_TENSORS)
        return mr_fail(err, MR_ERR_LIMIT, "%s names %zu tensors, at most %d are read", what,
                       entries, MR_MAX_TENSORS);
    out->tensors = mr_alloc_array(entries, sizeof(*out->tensors));
    json_object_foreach((json_t *)(uintptr_t)root, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        const mr_status status =
            parse_tensor(&out->tensors[out->count++], name, entry, out->data_start,
                         file_bytes - out->data_start, what, err);
        if (status != MR_OK) return status;
    }
    return check_cover(out, file_bytes, what, err);
}

mr_status mr_safetensors_parse(mr_safetensors *out, const uint8_t *head, uint64_t head_bytes,
                               uint64_t file_bytes, const char *what, mr_err *err) {
    uint64_t length;
    json_t *root;
    *out = (mr_safetensors){0};
    if (file_bytes < 8 || head_bytes < 8)
        return mr_fail(err, MR_ERR_FORMAT, "%s has %llu bytes: too short for a safetensors file",
                       what, (unsigned long long)file_bytes);
    memcpy(&length, head, sizeof(length));
    if (length > MR_MAX_SAFETENSORS_HEADER_BYTES)
        return mr_fail(
            err, MR_ERR_LIMIT,
            "%s claims a header of %llu bytes, at most %d are read: is it a safetensors file?",
            what, (unsigned long long)length, MR_MAX_SAFETENSORS_HEADER_BYTES);
    if (length < 2 || length > file_bytes - 8 || length > head_bytes - 8)
        return mr_fail(err, MR_ERR_FORMAT, "%s claims a header of %llu bytes in a file of %llu",
                       what, (unsigned long long)length, (unsigned long long)file_bytes);
    if (head[8] != '{')
        return mr_fail(err, MR_ERR_FORMAT, "%s: the header does not start with '{'", what);
    mr_status status = mr_json_parse(&root, (const char *)head + 8, (size_t)length, what, err);
    if (status != MR_OK) return status;
    out->data_start = 8 + length;
    status = parse_object(out, root, file_bytes, what, err);
    json_decref(root);
    if (status != MR_OK) mr_safetensors_free(out);
    return status;
}

/* Reads exactly bytes at offset 0. */
static mr_status read_head(int fd, uint8_t *data, size_t bytes, const char *path, mr_err *err) {
    for (size_t have = 0; have < bytes;) {
        const ssize_t got = pread(fd, data + have, bytes - have, (off_t)have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return mr_fail(err, MR_ERR_IO, "read %s: %s", path,
                           got < 0 ? strerror(errno) : "it became shorter while being read");
        have += (size_t)got;
    }
    return MR_OK;
}

mr_status mr_safetensors_open(mr_safetensors *out, const char *path, mr_sha256 *header_digest,
                              mr_err *err) {
    struct stat st;
    uint64_t length = 0;
    uint8_t *head = NULL;
    mr_status status;
    *out = (mr_safetensors){0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        status = mr_fail(err, MR_ERR_IO, "%s is not a regular file", path);
        goto close_fd;
    }
    const uint64_t file_bytes = (uint64_t)st.st_size;
    if (file_bytes >= 8) {
        status = read_head(fd, (uint8_t *)&length, sizeof(length), path, err);
        if (status != MR_OK) goto close_fd;
    }
    uint64_t head_bytes = file_bytes < 8 ? file_bytes : 8;
    if (length <= MR_MAX_SAFETENSORS_HEADER_BYTES && file_bytes >= 8 && length <= file_bytes - 8)
        head_bytes = 8 + length;
    head = mr_alloc(head_bytes);
    status = read_head(fd, head, (size_t)head_bytes, path, err);
    if (status == MR_OK)
        status = mr_safetensors_parse(out, head, head_bytes, file_bytes, path, err);
    if (status == MR_OK && header_digest) {
        const int64_t stamp[2] = {st.st_size,
                                  (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
        mr_sha256_add(header_digest, head, (size_t)head_bytes);
        mr_sha256_add(header_digest, stamp, sizeof(stamp));
    }
    free(head);
close_fd:
    close(fd);
    return status;
}

void mr_safetensors_free(mr_safetensors *file) {
    for (uint32_t i = 0; i < file->count; i++) free(file->tensors[i].name);
    free(file->tensors);
    *file = (mr_safetensors){0};
}
