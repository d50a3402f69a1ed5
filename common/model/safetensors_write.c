/* safetensors_write.c - see safetensors_write.h.
 *
 * A file is 8 bytes of header length, the JSON header padded with spaces to a multiple of 8, then
 * the data without gaps. Space is reserved at begin: a full disk is reported before the first hour
 * of work, not after it. */
#include "common/model/safetensors_write.h"

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/limits.h"
#include "common/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char *name;
    mr_dtype dtype;
    uint32_t dims;
    uint64_t shape[MR_MAX_TENSOR_DIMS];
    uint64_t bytes;
    uint32_t file;
    bool is_aligned;
    uint64_t offset; /* in the data part; after begin, in the file */
    atomic_uint_least64_t put;
} out_tensor;

typedef struct {
    char *path, *temporary;
    int fd;
    uint64_t data_bytes;
} out_file;

struct mr_writer {
    out_tensor *tensors;
    uint32_t tensor_count, tensor_room;
    json_t *names; /* set of declared names */
    uint64_t data_bytes;
    out_file *files;
    uint32_t file_count;
    char *index_path; /* NULL: no index */
};

mr_writer *mr_writer_new(void) {
    mr_writer *writer = mr_alloc(sizeof(*writer));
    writer->names = json_object();
    assert(writer->names);
    return writer;
}

void mr_writer_free(mr_writer *writer) {
    if (!writer) return;
    for (uint32_t i = 0; i < writer->file_count; i++) {
        out_file *file = &writer->files[i];
        if (file->fd >= 0) {
            close(file->fd);
            unlink(file->temporary);
        }
        free(file->path);
        free(file->temporary);
    }
    for (uint32_t i = 0; i < writer->tensor_count; i++) free(writer->tensors[i].name);
    json_decref(writer->names);
    free(writer->index_path);
    free(writer->files);
    free(writer->tensors);
    free(writer);
}

mr_status mr_writer_declare(mr_writer *writer, uint32_t *out, const char *name, mr_dtype dtype,
                            uint32_t dims, const uint64_t *shape, mr_err *err) {
    uint64_t bytes = mr_dtype_bytes(dtype);
    uint64_t total;

    assert(!writer->files);
    if (dims > MR_MAX_TENSOR_DIMS || writer->tensor_count >= MR_MAX_TENSORS)
        return mr_fail(err, MR_ERR_LIMIT, "tensor %s: at most %d dimensions and %d tensors", name,
                       MR_MAX_TENSOR_DIMS, MR_MAX_TENSORS);
    for (uint32_t i = 0; i < dims; i++)
        if (mr_mul_overflows(bytes, shape[i], &bytes))
            return mr_fail(err, MR_ERR_RANGE, "tensor %s: its size does not fit 64 bits", name);
    if (mr_add_overflows(writer->data_bytes, bytes, &total) || total > INT64_MAX / 2)
        return mr_fail(err, MR_ERR_RANGE, "tensor %s: the file would not fit 62 bits", name);
    if (strlen(name) > MR_MAX_TENSOR_NAME_BYTES || json_object_get(writer->names, name) ||
        json_object_set_new(writer->names, name, json_null()) != 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "tensor name %s is a repeat, too long or not UTF-8",
                       name);
    if (writer->tensor_count == writer->tensor_room) {
        writer->tensor_room = writer->tensor_room ? 2 * writer->tensor_room : 64;
        writer->tensors =
            mr_realloc_array(writer->tensors, writer->tensor_room, sizeof(*writer->tensors));
    }
    out_tensor *tensor = &writer->tensors[writer->tensor_count];
    memset(tensor, 0, sizeof(*tensor));
    tensor->name = mr_strdup(name);
    tensor->dtype = dtype;
    tensor->dims = dims;
    for (uint32_t i = 0; i < dims; i++) tensor->shape[i] = shape[i];
    tensor->bytes = bytes;
    writer->data_bytes = total;
    *out = writer->tensor_count++;
    return MR_OK;
}

void mr_writer_align(mr_writer *writer, uint32_t tensor) {
    assert(!writer->files && tensor < writer->tensor_count);
    assert(writer->tensors[tensor].bytes % MR_WRITER_ALIGN == 0);
    writer->tensors[tensor].is_aligned = true;
}

/* Gives every tensor its file, in declared order. */
static uint32_t assign_files(mr_writer *writer, uint64_t file_bytes_max) {
    uint32_t file = 0;
    uint64_t used = 0;
    for (uint32_t i = 0; i < writer->tensor_count; i++) {
        out_tensor *tensor = &writer->tensors[i];
        if (file_bytes_max > 0 && used > 0 && used + tensor->bytes > file_bytes_max) {
            file++;
            used = 0;
        }
        tensor->file = file;
        used += tensor->bytes;
    }
    return file + 1;
}

static void place_tensor(json_t *header, out_tensor *tensor, uint64_t *offset) {
    json_t *shape = json_array();
    for (uint32_t d = 0; d < tensor->dims; d++)
        json_array_append_new(shape, json_integer((json_int_t)tensor->shape[d]));
    json_object_set_new(header, tensor->name,
                        json_pack("{s:s, s:o, s:[I,I]}", "dtype", mr_dtype_name(tensor->dtype),
                                  "shape", shape, "data_offsets", (json_int_t)*offset,
                                  (json_int_t)(*offset + tensor->bytes)));
    tensor->offset = *offset;
    *offset += tensor->bytes;
}

/* Places the tensors of a file, aligned ones first, then widest elements first, and returns its
 * JSON header (caller owns). */
static json_t *place_tensors(mr_writer *writer, uint32_t file) {
    uint64_t offset = 0;
    json_t *header = json_object();
    json_object_set_new(header, "__metadata__", json_pack("{s:s}", "format", "pt"));
    for (uint32_t width = 16; width >= 1; width /= 2)
        for (uint32_t i = 0; i < writer->tensor_count; i++) {
            out_tensor *tensor = &writer->tensors[i];
            const uint32_t own = tensor->is_aligned ? 16 : mr_dtype_bytes(tensor->dtype);
            if (tensor->file == file && own == width) place_tensor(header, tensor, &offset);
        }
    writer->files[file].data_bytes = offset;
    return header;
}

static bool has_aligned(const mr_writer *writer, uint32_t file) {
    for (uint32_t i = 0; i < writer->tensor_count; i++)
        if (writer->tensors[i].file == file && writer->tensors[i].is_aligned) return true;
    return false;
}

static mr_status write_at(const out_file *file, uint64_t offset, const void *data, size_t bytes,
                          mr_err *err) {
    const char *from = data;
    while (bytes > 0) {
        const ssize_t put = pwrite(file->fd, from, bytes, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0)
            return mr_fail(err, MR_ERR_IO, "write %s: %s", file->temporary, strerror(errno));
        from += put;
        offset += (uint64_t)put;
        bytes -= (size_t)put;
    }
    return MR_OK;
}

static mr_status open_file(mr_writer *writer, uint32_t index, mr_err *err) {
    mr_status status;
    out_file *file = &writer->files[index];
    json_t *header = place_tensors(writer, index);
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    assert(text);
    const size_t text_bytes = strlen(text);
    const size_t unit = has_aligned(writer, index) ? MR_WRITER_ALIGN : 8;
    const size_t padded = (8 + text_bytes + unit - 1) / unit * unit - 8;
    char *start = mr_alloc(8 + padded);
    for (int i = 0; i < 8; i++) start[i] = (char)(padded >> (8 * i) & 0xff);
    memcpy(start + 8, text, text_bytes);
    memset(start + 8 + text_bytes, ' ', padded - text_bytes);
    free(text);

    const uint64_t total = 8 + padded + file->data_bytes;
    file->temporary = mr_format("%s.tmp-%ld", file->path, (long)getpid());
    file->fd = open(file->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file->fd < 0) {
        status = mr_fail(err, MR_ERR_IO, "create %s: %s", file->temporary, strerror(errno));
        goto free_start;
    }
    if (fallocate(file->fd, 0, 0, (off_t)total) != 0 &&
        (errno != EOPNOTSUPP || ftruncate(file->fd, (off_t)total) != 0)) {
        status = mr_fail(err, MR_ERR_IO, "reserve %llu bytes for %s: %s", (unsigned long long)total,
                         file->path, strerror(errno));
        goto free_start;
    }
    status = write_at(file, 0, start, 8 + padded, err);
    for (uint32_t i = 0; i < writer->tensor_count; i++)
        if (writer->tensors[i].file == index) writer->tensors[i].offset += 8 + padded;
free_start:
    free(start);
    return status;
}

/* paths: [count], taken over. */
static mr_status begin(mr_writer *writer, char **paths, uint32_t count, mr_err *err) {
    writer->files = mr_alloc_array(count, sizeof(*writer->files));
    writer->file_count = count;
    for (uint32_t i = 0; i < count; i++) {
        writer->files[i].path = paths[i];
        writer->files[i].fd = -1;
    }
    for (uint32_t i = 0; i < count; i++) {
        const mr_status status = open_file(writer, i, err);
        if (status != MR_OK) return status;
    }
    return MR_OK;
}

mr_status mr_writer_begin_file(mr_writer *writer, const char *path, mr_err *err) {
    assign_files(writer, 0);
    char *paths[1] = {mr_strdup(path)};
    return begin(writer, paths, 1, err);
}

mr_status mr_writer_begin_directory(mr_writer *writer, const char *directory,
                                    uint64_t file_bytes_max, mr_err *err) {
    const uint32_t count = assign_files(writer, file_bytes_max);
    if (count > MR_MAX_MODEL_FILES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: %u files of %llu bytes are more than the %d allowed",
                       directory, count, (unsigned long long)file_bytes_max, MR_MAX_MODEL_FILES);
    char **paths = mr_alloc_array(count, sizeof(*paths));
    if (count == 1)
        paths[0] = mr_format("%s/model.safetensors", directory);
    else {
        for (uint32_t i = 0; i < count; i++)
            paths[i] = mr_format("%s/model-%05u-of-%05u.safetensors", directory, i + 1, count);
        writer->index_path = mr_format("%s/model.safetensors.index.json", directory);
    }
    const mr_status status = begin(writer, paths, count, err);
    free(paths);
    return status;
}

uint64_t mr_writer_tensor_bytes(const mr_writer *writer, uint32_t tensor) {
    assert(tensor < writer->tensor_count);
    return writer->tensors[tensor].bytes;
}

uint64_t mr_writer_data_bytes(const mr_writer *writer) {
    return writer->data_bytes;
}

uint32_t mr_writer_file_count(const mr_writer *writer) {
    return writer->file_count;
}

mr_status mr_writer_put(mr_writer *writer, uint32_t tensor, uint64_t offset, const void *data,
                        size_t bytes, mr_err *err) {
    assert(writer->files && tensor < writer->tensor_count);
    out_tensor *to = &writer->tensors[tensor];
    assert(offset <= to->bytes && bytes <= to->bytes - offset);
    const mr_status status =
        write_at(&writer->files[to->file], to->offset + offset, data, bytes, err);
    if (status == MR_OK) atomic_fetch_add(&to->put, bytes);
    return status;
}

static mr_status write_index(const mr_writer *writer, mr_err *err) {
    json_t *map = json_object();
    for (uint32_t i = 0; i < writer->tensor_count; i++) {
        const out_tensor *tensor = &writer->tensors[i];
        const char *path = writer->files[tensor->file].path;
        json_object_set_new(map, tensor->name, json_string(strrchr(path, '/') + 1));
    }
    json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                              (json_int_t)writer->data_bytes, "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(2));
    json_decref(index);
    assert(text);
    const mr_status status = mr_file_write(writer->index_path, text, strlen(text), err);
    free(text);
    return status;
}

mr_status mr_writer_finish(mr_writer *writer, mr_err *err) {
    assert(writer->files);
    for (uint32_t i = 0; i < writer->tensor_count; i++) {
        const out_tensor *tensor = &writer->tensors[i];
        const uint64_t put = atomic_load(&tensor->put);
        if (put != tensor->bytes)
            return mr_fail(err, MR_ERR_FORMAT, "tensor %s: %llu of %llu bytes were written",
                           tensor->name, (unsigned long long)put,
                           (unsigned long long)tensor->bytes);
    }
    for (uint32_t i = 0; i < writer->file_count; i++) {
        const out_file *file = &writer->files[i];
        if (fsync(file->fd) != 0)
            return mr_fail(err, MR_ERR_IO, "write %s: %s", file->temporary, strerror(errno));
    }
    for (uint32_t i = 0; i < writer->file_count; i++) {
        out_file *file = &writer->files[i];
        if (rename(file->temporary, file->path) != 0)
            return mr_fail(err, MR_ERR_IO, "rename %s: %s", file->path, strerror(errno));
        const int fd = file->fd;
        file->fd = -1; /* free() no longer removes it */
        if (close(fd) != 0)
            return mr_fail(err, MR_ERR_IO, "write %s: %s", file->path, strerror(errno));
    }
    return writer->index_path ? write_index(writer, err) : MR_OK;
}
