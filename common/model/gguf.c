/* gguf.c - see gguf.h.
 *
 * The header is taken in order through one window of 64 KiB, so that a file of any size costs its
 * keys and tensor entries and no more. Every length is compared with what is left of the file
 * before it moves the position; how far the header may reach has a limit of its own. */
#include "common/model/gguf.h"

#include "common/base/mem.h"
#include "common/model/tokenizer_text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WINDOW_BYTES = 64 << 10 };

struct mr_gguf {
    char *what;
    int fd;              /* -1: in memory */
    const uint8_t *head; /* in memory: the first head_bytes bytes */
    uint64_t head_bytes, file_bytes;
    uint64_t alignment;
    mr_gguf_value *values;
    uint32_t value_count;
    mr_gguf_tensor *tensors; /* by offset */
    mr_gguf_tensor **by_name;
    uint32_t tensor_count;
    uint64_t window_first, window_bytes; /* the part of the file in window */
    uint8_t window[WINDOW_BYTES];
};

static const struct {
    const char *name;
    uint32_t bytes; /* of one number; 0: not a number */
} kinds[MR_GGUF_KIND_COUNT] = {
    [MR_GGUF_U8] = {"u8", 1},       [MR_GGUF_I8] = {"i8", 1},     [MR_GGUF_U16] = {"u16", 2},
    [MR_GGUF_I16] = {"i16", 2},     [MR_GGUF_U32] = {"u32", 4},   [MR_GGUF_I32] = {"i32", 4},
    [MR_GGUF_F32] = {"f32", 4},     [MR_GGUF_BOOL] = {"bool", 1}, [MR_GGUF_TEXT] = {"string", 0},
    [MR_GGUF_ARRAY] = {"array", 0}, [MR_GGUF_U64] = {"u64", 8},   [MR_GGUF_I64] = {"i64", 8},
    [MR_GGUF_F64] = {"f64", 8},
};

/* --- bytes ------------------------------------------------------------------------------------ */

/* Bytes [at, at + bytes) of the file; the caller has compared them with file_bytes. */
static mr_status read_at(mr_gguf *f, uint64_t at, void *to, size_t bytes, mr_err *err) {
    if (f->fd < 0) {
        if (at > f->head_bytes || bytes > f->head_bytes - at)
            return mr_fail(err, MR_ERR_FORMAT, "%s: byte %llu is not there", f->what,
                           (unsigned long long)at);
        memcpy(to, f->head + at, bytes);
        return MR_OK;
    }
    for (size_t have = 0; have < bytes;) {
        const ssize_t got = pread(f->fd, (uint8_t *)to + have, bytes - have, (off_t)(at + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return mr_fail(err, MR_ERR_IO, "read %s: %s", f->what,
                           got < 0 ? strerror(errno) : "it became shorter while being read");
        have += (size_t)got;
    }
    return MR_OK;
}

/* The same through the window, for what is read in order and in small pieces. */
static mr_status read_small(mr_gguf *f, uint64_t at, void *to, size_t bytes, mr_err *err) {
    if (bytes > WINDOW_BYTES) return read_at(f, at, to, bytes, err);
    if (at < f->window_first || at + bytes > f->window_first + f->window_bytes) {
        const uint64_t end = f->fd < 0 ? f->head_bytes : f->file_bytes;
        uint64_t fill = end > at ? end - at : 0;
        if (fill > WINDOW_BYTES) fill = WINDOW_BYTES;
        if (fill < bytes) return read_at(f, at, to, bytes, err);
        f->window_bytes = 0;
        const mr_status status = read_at(f, at, f->window, (size_t)fill, err);
        if (status != MR_OK) return status;
        f->window_first = at;
        f->window_bytes = fill;
    }
    memcpy(to, f->window + (at - f->window_first), bytes);
    return MR_OK;
}

typedef struct {
    mr_gguf *file;
    uint64_t at;
} header;

static mr_status take(header *h, void *to, uint64_t bytes, const char *part, mr_err *err) {
    const mr_gguf *f = h->file;
    if (bytes > f->file_bytes - h->at)
        return mr_fail(err, MR_ERR_FORMAT, "%s ends inside %s: it is cut short or not what it says",
                       f->what, part);
    if (bytes > (uint64_t)MR_MAX_GGUF_METADATA_BYTES - h->at)
        return mr_fail(err, MR_ERR_LIMIT,
                       "%s: the header is longer than %d bytes, more are not "
                       "read",
                       f->what, MR_MAX_GGUF_METADATA_BYTES);
    mr_status status = MR_OK;
    if (to) status = read_small(h->file, h->at, to, (size_t)bytes, err);
    h->at += bytes;
    return status;
}

static mr_status take_u32(header *h, uint32_t *out, const char *part, mr_err *err) {
    uint8_t b[4];
    const mr_status status = take(h, b, sizeof(b), part, err);
    if (status == MR_OK)
        *out = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    return status;
}

static mr_status take_u64(header *h, uint64_t *out, const char *part, mr_err *err) {
    uint32_t low, high;
    mr_status status = take_u32(h, &low, part, err);
    if (status == MR_OK) status = take_u32(h, &high, part, err);
    if (status == MR_OK) *out = low | (uint64_t)high << 32;
    return status;
}

/* A key or a tensor's name: owned, never empty, without zero bytes. */
static mr_status take_name(header *h, char **out, const char *part, mr_err *err) {
    uint64_t bytes = 0;
    mr_status status = take_u64(h, &bytes, part, err);
    if (status != MR_OK) return status;
    if (bytes == 0 || bytes > MR_MAX_GGUF_KEY_BYTES)
        return mr_fail(err, MR_ERR_LIMIT, "%s: %s has %llu bytes, 1 to %d are read", h->file->what,
                       part, (unsigned long long)bytes, MR_MAX_GGUF_KEY_BYTES);
    char *name = mr_alloc((size_t)bytes + 1);
    status = take(h, name, bytes, part, err);
    if (status == MR_OK && strlen(name) != bytes)
        status = mr_fail(err, MR_ERR_FORMAT, "%s: %s has a zero byte in it", h->file->what, part);
    if (status == MR_OK)
        *out = name;
    else
        free(name);
    return status;
}

/* --- metadata --------------------------------------------------------------------------------- */

static mr_status skip_text(header *h, uint64_t *bytes, const char *key, mr_err *err) {
    mr_status status = take_u64(h, bytes, key, err);
    if (status == MR_OK) status = take(h, NULL, *bytes, key, err);
    return status;
}

static mr_status take_kind(header *h, mr_gguf_kind *out, const char *key, mr_err *err) {
    uint32_t kind = 0;
    const mr_status status = take_u32(h, &kind, key, err);
    if (status != MR_OK) return status;
    if (kind >= MR_GGUF_KIND_COUNT)
        return mr_fail(err, MR_ERR_FORMAT, "%s: key %.200s has type %u, which is unknown",
                       h->file->what, key, kind);
    *out = (mr_gguf_kind)kind;
    return MR_OK;
}

static mr_status take_array(header *h, mr_gguf_value *v, mr_err *err) {
    const char *what = h->file->what;
    mr_status status = take_kind(h, &v->item, v->key, err);
    if (status == MR_OK) status = take_u64(h, &v->count, v->key, err);
    if (status != MR_OK) return status;
    if (v->item == MR_GGUF_ARRAY)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s: key %.200s is an array of arrays; these are "
                       "not read",
                       what, v->key);
    const uint32_t least = v->item == MR_GGUF_TEXT ? 8 : kinds[v->item].bytes;
    if (v->count > (h->file->file_bytes - h->at) / least)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: key %.200s claims %llu items, more than the file "
                       "can hold",
                       what, v->key, (unsigned long long)v->count);
    v->offset = h->at;
    if (v->item != MR_GGUF_TEXT) return take(h, NULL, v->count * least, v->key, err);
    for (uint64_t i = 0, bytes; i < v->count && status == MR_OK; i++)
        status = skip_text(h, &bytes, v->key, err);
    return status;
}

static mr_status take_value(header *h, mr_gguf_value *v, mr_err *err) {
    mr_status status = take_name(h, &v->key, "a key", err);
    if (status == MR_OK) status = take_kind(h, &v->kind, v->key, err);
    if (status != MR_OK) return status;
    v->item = v->kind;
    v->count = 1;
    if (v->kind == MR_GGUF_ARRAY) return take_array(h, v, err);
    if (v->kind == MR_GGUF_TEXT) {
        v->offset = h->at + 8;
        return skip_text(h, &v->count, v->key, err);
    }
    v->offset = h->at;
    return take(h, NULL, kinds[v->kind].bytes, v->key, err);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const mr_gguf_value *)a)->key, ((const mr_gguf_value *)b)->key);
}

static mr_status take_values(header *h, uint64_t count, mr_err *err) {
    mr_gguf *f = h->file;
    if (count > MR_MAX_GGUF_KEYS)
        return mr_fail(err, MR_ERR_LIMIT, "%s claims %llu keys, at most %d are read", f->what,
                       (unsigned long long)count, MR_MAX_GGUF_KEYS);
    f->values = mr_alloc_array((size_t)count + 1, sizeof(*f->values));
    while (f->value_count < count) {
        const mr_status status = take_value(h, &f->values[f->value_count++], err);
        if (status != MR_OK) return status;
    }
    if (count > 1) qsort(f->values, (size_t)count, sizeof(*f->values), by_key);
    for (uint32_t i = 1; i < f->value_count; i++)
        if (strcmp(f->values[i - 1].key, f->values[i].key) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "%s: key %.200s is there twice", f->what,
                           f->values[i].key);
    return MR_OK;
}

/* --- tensors ---------------------------------------------------------------------------------- */

static mr_status take_shape(header *h, mr_gguf_tensor *t, mr_err *err) {
    const char *what = h->file->what;
    uint64_t elements = 1, reversed[MR_MAX_GGUF_TENSOR_DIMS];
    mr_status status = take_u32(h, &t->dims, t->name, err);
    if (status != MR_OK) return status;
    if (t->dims < 1 || t->dims > MR_MAX_GGUF_TENSOR_DIMS)
        return mr_fail(err, MR_ERR_LIMIT, "%s: tensor %.200s has %u dimensions, 1 to %d are read",
                       what, t->name, t->dims, MR_MAX_GGUF_TENSOR_DIMS);
    for (uint32_t i = 0; i < t->dims; i++) {
        status = take_u64(h, &reversed[i], t->name, err);
        if (status != MR_OK) return status;
        if (reversed[i] == 0)
            return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s is empty", what, t->name);
        if (mr_mul_overflows(elements, reversed[i], &elements) || elements > INT64_MAX)
            return mr_fail(err, MR_ERR_RANGE,
                           "%s: tensor %.200s: the product of its shape overflows", what, t->name);
    }
    for (uint32_t i = 0; i < t->dims; i++) t->shape[i] = reversed[t->dims - 1 - i];
    t->bytes = elements; /* until the type is known */
    return MR_OK;
}

static mr_status take_tensor(header *h, mr_gguf_tensor *t, mr_err *err) {
    const char *what = h->file->what;
    uint32_t type = 0;
    mr_status status = take_name(h, &t->name, "a tensor's name", err);
    if (status == MR_OK) status = take_shape(h, t, err);
    if (status == MR_OK) status = take_u32(h, &type, t->name, err);
    if (status == MR_OK) status = take_u64(h, &t->offset, t->name, err);
    if (status != MR_OK) return status;
    t->format = mr_block_find(type);
    if (!t->format)
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: tensor %.200s has type %u, which is unknown",
                       what, t->name, type);
    if (t->shape[t->dims - 1] % t->format->elements != 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%s: tensor %.200s: rows of %llu elements are not whole %s blocks of %u",
                       what, t->name, (unsigned long long)t->shape[t->dims - 1], t->format->name,
                       t->format->elements);
    if (mr_mul_overflows(t->bytes / t->format->elements, t->format->bytes, &t->bytes))
        return mr_fail(err, MR_ERR_RANGE, "%s: tensor %.200s: its size in bytes overflows", what,
                       t->name);
    return MR_OK;
}

static int by_offset(const void *a, const void *b) {
    const mr_gguf_tensor *x = a, *y = b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static int by_tensor_name(const void *a, const void *b) {
    return strcmp((*(mr_gguf_tensor *const *)a)->name, (*(mr_gguf_tensor *const *)b)->name);
}

static mr_status index_names(mr_gguf *f, mr_err *err) {
    f->by_name = mr_alloc_array((size_t)f->tensor_count + 1, sizeof(mr_gguf_tensor *));
    for (uint32_t i = 0; i < f->tensor_count; i++) f->by_name[i] = &f->tensors[i];
    if (f->tensor_count > 1)
        qsort(f->by_name, f->tensor_count, sizeof(mr_gguf_tensor *), by_tensor_name);
    for (uint32_t i = 1; i < f->tensor_count; i++)
        if (strcmp(f->by_name[i - 1]->name, f->by_name[i]->name) == 0)
            return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s is there twice", f->what,
                           f->by_name[i]->name);
    return MR_OK;
}

/* Turns offsets into the data into offsets into the file; refuses gaps, overlaps and cuts. */
static mr_status place_tensors(mr_gguf *f, uint64_t data_start, mr_err *err) {
    uint64_t at = 0;
    const uint64_t mask = f->alignment - 1;
    if (f->tensor_count > 1) qsort(f->tensors, f->tensor_count, sizeof(*f->tensors), by_offset);
    for (uint32_t i = 0; i < f->tensor_count; i++) {
        mr_gguf_tensor *t = &f->tensors[i];
        const uint64_t start = (at + mask) & ~mask;
        if (t->offset & mask)
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s: tensor %.200s starts at byte %llu, which is "
                           "not a multiple of the alignment %llu",
                           f->what, t->name, (unsigned long long)t->offset,
                           (unsigned long long)f->alignment);
        if (t->offset < start)
            return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %.200s overlaps another one", f->what,
                           t->name);
        if (t->offset > start)
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s: %llu bytes before tensor %.200s belong to nothing", f->what,
                           (unsigned long long)(t->offset - start), t->name);
        const uint64_t left = f->file_bytes < data_start ? 0 : f->file_bytes - data_start;
        if (t->offset > left || t->bytes > left - t->offset)
            return mr_fail(err, MR_ERR_FORMAT,
                           "%s: tensor %.200s ends beyond the file's %llu "
                           "bytes: the file is cut short",
                           f->what, t->name, (unsigned long long)f->file_bytes);
        at = t->offset + t->bytes;
        t->offset += data_start;
    }
    if (f->tensor_count > 0 && f->file_bytes - data_start > at + mask)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %llu bytes after the last tensor belong to nothing",
                       f->what, (unsigned long long)(f->file_bytes - data_start - at));
    return MR_OK;
}

static mr_status take_tensors(header *h, uint64_t count, mr_err *err) {
    mr_gguf *f = h->file;
    enum { LEAST_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };
    if (count > MR_MAX_TENSORS)
        return mr_fail(err, MR_ERR_LIMIT, "%s claims %llu tensors, at most %d are read", f->what,
                       (unsigned long long)count, MR_MAX_TENSORS);
    if (count > (f->file_bytes - h->at) / LEAST_BYTES)
        return mr_fail(err, MR_ERR_FORMAT, "%s claims %llu tensors, more than the file can hold",
                       f->what, (unsigned long long)count);
    f->tensors = mr_alloc_array((size_t)count + 1, sizeof(*f->tensors));
    while (f->tensor_count < count) {
        const mr_status status = take_tensor(h, &f->tensors[f->tensor_count++], err);
        if (status != MR_OK) return status;
    }
    const uint64_t mask = f->alignment - 1;
    mr_status status = place_tensors(f, (h->at + mask) & ~mask, err);
    if (status == MR_OK) status = index_names(f, err);
    return status;
}

/* --- the whole -------------------------------------------------------------------------------- */

static mr_status check_magic(const mr_gguf *f, uint32_t magic, mr_err *err) {
    if (magic == 0x46554747) return MR_OK; /* "GGUF" */
    if (magic == 0x67676d6c || magic == 0x67676d66 || magic == 0x67676a74 || magic == 0x67676c61)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s is a GGML file from before GGUF; these are not "
                       "read",
                       f->what);
    return mr_fail(err, MR_ERR_FORMAT, "%s is not a GGUF file", f->what);
}

static mr_status check_version(const mr_gguf *f, uint32_t version, mr_err *err) {
    if (version == 2 || version == 3) return MR_OK;
    if ((version & 0xffff) == 0 && version != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s is a big-endian GGUF file; only little-endian "
                       "ones are read",
                       f->what);
    return mr_fail(err, MR_ERR_UNSUPPORTED, "%s is GGUF version %u; versions 2 and 3 are read",
                   f->what, version);
}

static mr_status read_alignment(mr_gguf *f, mr_err *err) {
    f->alignment = 32;
    const mr_gguf_value *v = mr_gguf_find(f, "general.alignment");
    if (v && v->kind != MR_GGUF_U32)
        return mr_fail(err, MR_ERR_FORMAT, "%s: general.alignment is %s, not u32", f->what,
                       kinds[v->kind].name);
    mr_status status =
        mr_gguf_u64(&f->alignment, f, "general.alignment", 1, MR_MAX_GGUF_ALIGNMENT, err);
    if (status == MR_OK && (f->alignment & (f->alignment - 1)) != 0)
        status = mr_fail(err, MR_ERR_RANGE, "%s: general.alignment %llu is not a power of two",
                         f->what, (unsigned long long)f->alignment);
    return status;
}

static mr_status parse(mr_gguf *f, mr_err *err) {
    header h = {f, 0};
    uint32_t magic = 0, version = 0;
    uint64_t tensors = 0, values = 0;
    if (f->file_bytes < 24)
        return mr_fail(err, MR_ERR_FORMAT, "%s has %llu bytes: too short for a GGUF file", f->what,
                       (unsigned long long)f->file_bytes);
    mr_status status = take_u32(&h, &magic, "the header", err);
    if (status == MR_OK) status = check_magic(f, magic, err);
    if (status == MR_OK) status = take_u32(&h, &version, "the header", err);
    if (status == MR_OK) status = check_version(f, version, err);
    if (status == MR_OK) status = take_u64(&h, &tensors, "the header", err);
    if (status == MR_OK) status = take_u64(&h, &values, "the header", err);
    if (status == MR_OK) status = take_values(&h, values, err);
    if (status == MR_OK) status = read_alignment(f, err);
    if (status == MR_OK) status = take_tensors(&h, tensors, err);
    return status;
}

mr_status mr_gguf_parse(mr_gguf **out, const uint8_t *head, uint64_t head_bytes,
                        uint64_t file_bytes, const char *what, mr_err *err) {
    mr_gguf *f = mr_alloc(sizeof(*f));
    f->what = mr_strdup(what);
    f->fd = -1;
    f->head = head;
    f->head_bytes = head_bytes;
    f->file_bytes = file_bytes;
    const mr_status status = parse(f, err);
    *out = status == MR_OK ? f : NULL;
    if (status != MR_OK) mr_gguf_close(f);
    return status;
}

mr_status mr_gguf_open(mr_gguf **out, const char *path, mr_err *err) {
    struct stat st;
    *out = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return mr_fail(err, MR_ERR_IO, "%s is not a regular file", path);
    }
    mr_gguf *f = mr_alloc(sizeof(*f));
    f->what = mr_strdup(path);
    f->fd = fd;
    f->file_bytes = (uint64_t)st.st_size;
    const mr_status status = parse(f, err);
    if (status == MR_OK)
        *out = f;
    else
        mr_gguf_close(f);
    return status;
}

void mr_gguf_close(mr_gguf *f) {
    if (!f) return;
    for (uint32_t i = 0; i < f->value_count; i++) free(f->values[i].key);
    for (uint32_t i = 0; i < f->tensor_count; i++) free(f->tensors[i].name);
    if (f->fd >= 0) close(f->fd);
    free(f->by_name);
    free(f->tensors);
    free(f->values);
    free(f->what);
    free(f);
}

/* --- asking ----------------------------------------------------------------------------------- */

const char *mr_gguf_name(const mr_gguf *f) {
    return f->what;
}
uint32_t mr_gguf_value_count(const mr_gguf *f) {
    return f->value_count;
}
const mr_gguf_value *mr_gguf_value_at(const mr_gguf *f, uint32_t index) {
    return &f->values[index];
}
uint32_t mr_gguf_tensor_count(const mr_gguf *f) {
    return f->tensor_count;
}
const mr_gguf_tensor *mr_gguf_tensor_at(const mr_gguf *f, uint32_t index) {
    return &f->tensors[index];
}

const mr_gguf_value *mr_gguf_find(const mr_gguf *f, const char *key) {
    const mr_gguf_value wanted = {.key = (char *)(uintptr_t)key};
    return f->value_count ? bsearch(&wanted, f->values, f->value_count, sizeof(*f->values), by_key)
                          : NULL;
}

const mr_gguf_tensor *mr_gguf_find_tensor(const mr_gguf *f, const char *name) {
    const mr_gguf_tensor wanted = {.name = (char *)(uintptr_t)name}, *at = &wanted;
    if (f->tensor_count == 0) return NULL;
    mr_gguf_tensor **found =
        bsearch(&at, f->by_name, f->tensor_count, sizeof(mr_gguf_tensor *), by_tensor_name);
    return found ? *found : NULL;
}

typedef struct {
    bool is_float, negative;
    uint64_t whole; /* magnitude of an integer */
    double real;    /* any number */
} number;

static mr_status read_number(mr_gguf *f, mr_gguf_kind kind, uint64_t offset, number *out,
                             mr_err *err) {
    uint8_t raw[8] = {0};
    uint64_t bits = 0;
    const uint32_t bytes = kinds[kind].bytes;
    const mr_status status = read_small(f, offset, raw, bytes, err);
    if (status != MR_OK) return status;
    for (uint32_t i = 0; i < bytes; i++) bits |= (uint64_t)raw[i] << (8 * i);
    *out = (number){.whole = bits, .real = (double)bits};
    if (kind == MR_GGUF_F32) {
        float value;
        memcpy(&value, raw, sizeof(value));
        *out = (number){.is_float = true, .real = (double)value};
    } else if (kind == MR_GGUF_F64) {
        memcpy(&out->real, raw, sizeof(out->real));
        out->is_float = true;
    } else if (kind == MR_GGUF_I8 || kind == MR_GGUF_I16 || kind == MR_GGUF_I32 ||
               kind == MR_GGUF_I64) {
        const uint64_t sign = 1ull << (8 * bytes - 1);
        if (bits & sign) {
            const uint64_t size = sign - (bits & (sign - 1));
            *out = (number){.negative = true, .whole = size, .real = -(double)size};
        }
    }
    return MR_OK;
}

/* The number of a key, or of an array whose numbers are all equal; *there is false without it. */
static mr_status find_number(mr_gguf *f, const char *key, number *out, bool *there, mr_err *err) {
    const mr_gguf_value *v = mr_gguf_find(f, key);
    *there = v != NULL;
    if (!v) return MR_OK;
    if (kinds[v->item].bytes == 0 || v->item == MR_GGUF_BOOL || v->count == 0)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is %s%s, not a number", f->what, key,
                       v->kind == MR_GGUF_ARRAY ? "an array of " : "a ", kinds[v->item].name);
    mr_status status = read_number(f, v->item, v->offset, out, err);
    for (uint64_t i = 1; i < v->count && status == MR_OK; i++) {
        number other;
        status = read_number(f, v->item, v->offset + i * kinds[v->item].bytes, &other, err);
        if (status == MR_OK && memcmp(&other.real, &out->real, sizeof(other.real)) != 0)
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "%s: %.200s differs between layers; this is "
                           "not supported",
                           f->what, key);
    }
    return status;
}

mr_status mr_gguf_u64(uint64_t *out, mr_gguf *f, const char *key, uint64_t min, uint64_t max,
                      mr_err *err) {
    number n = {0};
    bool there;
    const mr_status status = find_number(f, key, &n, &there, err);
    if (status != MR_OK || !there) return status;
    if (n.is_float)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is %g, not an integer", f->what, key,
                       n.real);
    if (n.negative || n.whole < min || n.whole > max)
        return mr_fail(err, MR_ERR_RANGE, "%s: %.200s is %s%llu; it must be %llu to %llu", f->what,
                       key, n.negative ? "-" : "", (unsigned long long)n.whole,
                       (unsigned long long)min, (unsigned long long)max);
    *out = n.whole;
    return MR_OK;
}

mr_status mr_gguf_double(double *out, mr_gguf *f, const char *key, double min, double max,
                         mr_err *err) {
    number n = {0};
    bool there;
    const mr_status status = find_number(f, key, &n, &there, err);
    if (status != MR_OK || !there) return status;
    if (!(n.real >= min && n.real <= max))
        return mr_fail(err, MR_ERR_RANGE, "%s: %.200s is %g; it must be %g to %g", f->what, key,
                       n.real, min, max);
    *out = n.real;
    return MR_OK;
}

mr_status mr_gguf_bool(bool *out, mr_gguf *f, const char *key, mr_err *err) {
    const mr_gguf_value *v = mr_gguf_find(f, key);
    uint8_t byte = 0;
    if (!v) return MR_OK;
    if (v->kind != MR_GGUF_BOOL)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is %s, not bool", f->what, key,
                       kinds[v->kind].name);
    const mr_status status = read_small(f, v->offset, &byte, 1, err);
    if (status != MR_OK) return status;
    if (byte > 1)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is neither true nor false", f->what, key);
    *out = byte == 1;
    return MR_OK;
}

mr_status mr_gguf_text(char **out, mr_gguf *f, const char *key, size_t bytes_max, mr_err *err) {
    const mr_gguf_value *v = mr_gguf_find(f, key);
    if (!v) return MR_OK;
    if (v->kind != MR_GGUF_TEXT)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is %s, not a string", f->what, key,
                       kinds[v->kind].name);
    if (v->count > bytes_max)
        return mr_fail(err, MR_ERR_LIMIT, "%s: %.200s has %llu bytes, at most %zu are read",
                       f->what, key, (unsigned long long)v->count, bytes_max);
    char *text = mr_alloc((size_t)v->count + 1);
    mr_status status = read_small(f, v->offset, text, (size_t)v->count, err);
    if (status == MR_OK && (strlen(text) != v->count || !mr_utf8_valid(text, (size_t)v->count)))
        status = mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is not UTF-8 text", f->what, key);
    if (status == MR_OK)
        *out = text;
    else
        free(text);
    return status;
}

/* --- arrays and data -------------------------------------------------------------------------- */

void mr_gguf_items_begin(mr_gguf_cursor *out, mr_gguf *file, const mr_gguf_value *array) {
    *out = (mr_gguf_cursor){.file = file, .value = array, .at = array->offset};
}

void mr_gguf_items_end(mr_gguf_cursor *cursor) {
    free(cursor->text);
    *cursor = (mr_gguf_cursor){0};
}

static mr_status check_item(const mr_gguf_cursor *c, bool text, mr_err *err) {
    const mr_gguf_value *v = c->value;
    if (v->kind != MR_GGUF_ARRAY || (v->item == MR_GGUF_TEXT) != text)
        return mr_fail(err, MR_ERR_FORMAT, "%s: %.200s is %s%s, not an array of %s", c->file->what,
                       v->key, v->kind == MR_GGUF_ARRAY ? "an array of " : "a ",
                       kinds[v->item].name, text ? "strings" : "numbers");
    if (c->index >= v->count)
        return mr_fail(err, MR_ERR_RANGE, "%s: %.200s has %llu items, too few", c->file->what,
                       v->key, (unsigned long long)v->count);
    return MR_OK;
}

mr_status mr_gguf_next_text(mr_gguf_cursor *c, const char **text, size_t *bytes, size_t bytes_max,
                            mr_err *err) {
    uint8_t raw[8];
    uint64_t length = 0;
    mr_status status = check_item(c, true, err);
    if (status == MR_OK) status = read_small(c->file, c->at, raw, sizeof(raw), err);
    if (status != MR_OK) return status;
    for (int i = 0; i < 8; i++) length |= (uint64_t)raw[i] << (8 * i);
    if (length > bytes_max)
        return mr_fail(err, MR_ERR_LIMIT,
                       "%s: item %llu of %.200s has %llu bytes, at most %zu are "
                       "read",
                       c->file->what, (unsigned long long)c->index, c->value->key,
                       (unsigned long long)length, bytes_max);
    if (length + 1 > c->room) {
        c->room = (size_t)length + 256;
        c->text = mr_realloc_array(c->text, c->room, 1);
    }
    status = read_small(c->file, c->at + 8, c->text, (size_t)length, err);
    if (status != MR_OK) return status;
    c->text[length] = '\0';
    c->at += 8 + length;
    c->index++;
    *text = c->text;
    *bytes = (size_t)length;
    return MR_OK;
}

mr_status mr_gguf_next_number(mr_gguf_cursor *c, double *out, mr_err *err) {
    number n = {0};
    mr_status status = check_item(c, false, err);
    if (status == MR_OK) status = read_number(c->file, c->value->item, c->at, &n, err);
    if (status != MR_OK) return status;
    c->at += kinds[c->value->item].bytes;
    c->index++;
    *out = n.real;
    return MR_OK;
}

mr_status mr_gguf_read(mr_gguf *f, const mr_gguf_tensor *tensor, uint64_t first, void *to,
                       size_t bytes, mr_err *err) {
    if (first > tensor->bytes || bytes > tensor->bytes - first)
        return mr_fail(err, MR_ERR_RANGE, "%s: tensor %.200s has no bytes beyond %llu", f->what,
                       tensor->name, (unsigned long long)tensor->bytes);
    return read_at(f, tensor->offset + first, to, bytes, err);
}
