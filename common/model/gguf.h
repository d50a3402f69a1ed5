/* gguf.h - the header of a GGUF file, read as hostile input: metadata and tensor entries.
 *
 * A file is: "GGUF", u32 version, u64 tensors, u64 keys; the keys with typed values; the tensors'
 * names, dimensions, types and offsets; padding; data. Versions 2 and 3, little endian. As in the
 * reader that comes with the format, tensors follow each other with nothing but padding between.
 * Arrays and texts stay in the file and are read when asked for, so that memory does not grow with
 * a vocabulary; all sizes are 64-bit and every sum and product is checked before it is used.
 * Threads: open and close from one thread; a file is used by one thread at a time. */
#ifndef MR_MODEL_GGUF_H
#define MR_MODEL_GGUF_H
#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/gguf_blocks.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mr_gguf mr_gguf;

typedef enum {
    MR_GGUF_U8 = 0,
    MR_GGUF_I8 = 1,
    MR_GGUF_U16 = 2,
    MR_GGUF_I16 = 3,
    MR_GGUF_U32 = 4,
    MR_GGUF_I32 = 5,
    MR_GGUF_F32 = 6,
    MR_GGUF_BOOL = 7,
    MR_GGUF_TEXT = 8,
    MR_GGUF_ARRAY = 9,
    MR_GGUF_U64 = 10,
    MR_GGUF_I64 = 11,
    MR_GGUF_F64 = 12,
    MR_GGUF_KIND_COUNT
} mr_gguf_kind;

typedef struct {
    char *key;
    mr_gguf_kind kind, item; /* item: of an array's items, else as kind */
    uint64_t count;          /* items of an array, bytes of a text, 1 */
    uint64_t offset;         /* of the first item, byte or number in the file */
} mr_gguf_value;

typedef struct {
    char *name;
    const mr_block_format *format;
    uint32_t dims;                           /* 1 to 4 */
    uint64_t shape[MR_MAX_GGUF_TENSOR_DIMS]; /* C order: the row length is the last one */
    uint64_t offset, bytes;                  /* in the file */
} mr_gguf_tensor;

/* On failure *out is NULL and err names the file. */
mr_status mr_gguf_open(mr_gguf **out, const char *path, mr_err *err);
/* The first head_bytes bytes of a file of file_bytes bytes, borrowed until close. */
mr_status mr_gguf_parse(mr_gguf **out, const uint8_t *head, uint64_t head_bytes,
                        uint64_t file_bytes, const char *what, mr_err *err);
void mr_gguf_close(mr_gguf *file); /* NULL is fine */

const char *mr_gguf_name(const mr_gguf *file); /* as given to open */
uint32_t mr_gguf_value_count(const mr_gguf *file);
const mr_gguf_value *mr_gguf_value_at(const mr_gguf *file, uint32_t index); /* sorted by key */
const mr_gguf_value *mr_gguf_find(const mr_gguf *file, const char *key);    /* NULL: not there */
uint32_t mr_gguf_tensor_count(const mr_gguf *file);
const mr_gguf_tensor *mr_gguf_tensor_at(const mr_gguf *file, uint32_t index); /* by offset */
const mr_gguf_tensor *mr_gguf_find_tensor(const mr_gguf *file, const char *name);

/* Getters: a missing key leaves *out as it was; a wrong kind or a number outside [min, max] is an
 * error that names the key. An array of equal numbers counts as that number (per-layer values). */
mr_status mr_gguf_u64(uint64_t *out, mr_gguf *file, const char *key, uint64_t min, uint64_t max,
                      mr_err *err);
mr_status mr_gguf_double(double *out, mr_gguf *file, const char *key, double min, double max,
                         mr_err *err); /* never NaN */
mr_status mr_gguf_bool(bool *out, mr_gguf *file, const char *key, mr_err *err);
/* *out: valid UTF-8 without zero bytes, owned; at most bytes_max bytes. */
mr_status mr_gguf_text(char **out, mr_gguf *file, const char *key, size_t bytes_max, mr_err *err);

/* Walks the items of an array in order, as often as begun. */
typedef struct {
    mr_gguf *file;
    const mr_gguf_value *value;
    uint64_t index, at; /* of the next item */
    char *text;         /* the last text item */
    size_t room;
} mr_gguf_cursor;

void mr_gguf_items_begin(mr_gguf_cursor *out, mr_gguf *file, const mr_gguf_value *array);
void mr_gguf_items_end(mr_gguf_cursor *cursor);
/* Any bytes, with a zero added; borrowed until the next call. Beyond the end: an error. */
mr_status mr_gguf_next_text(mr_gguf_cursor *cursor, const char **text, size_t *bytes,
                            size_t bytes_max, mr_err *err);
mr_status mr_gguf_next_number(mr_gguf_cursor *cursor, double *out, mr_err *err);

/* Bytes [first, first + bytes) of a tensor, which must lie in it. */
mr_status mr_gguf_read(mr_gguf *file, const mr_gguf_tensor *tensor, uint64_t first, void *to,
                       size_t bytes, mr_err *err);

#endif
