/* safetensors_write.h - writes safetensors without holding a tensor: declare all, then put bytes.
 *
 * All tensors are declared first, so that the header is known and the file has its full size (and
 * the disk its space) before the first byte of data. Data may then be put in any order and in
 * pieces of any size; tensors lie sorted by element size (I64 first), so that everything is aligned
 * to its size. Nothing appears under its final name before mr_writer_finish() has seen every byte:
 * files are written beside their destination and renamed, the index last.
 * Threads: declare, begin and finish from one; mr_writer_put may be called from several at once.
 *
 *     mr_writer *writer = mr_writer_new();
 *     mr_writer_declare(writer, &logits, "logits", MR_DTYPE_F32, 3, (uint64_t[]){b, t, v}, err);
 *     mr_writer_begin_file(writer, "OUT.safetensors", err);
 *     mr_writer_put(writer, logits, offset, data, bytes, err);  (as often as it takes)
 *     mr_writer_finish(writer, err);
 *     mr_writer_free(writer);  (unfinished: leaves no file behind) */
#ifndef MR_MODEL_SAFETENSORS_WRITE_H
#define MR_MODEL_SAFETENSORS_WRITE_H
#include "common/base/status.h"
#include "common/model/dtype.h"

#include <stddef.h>
#include <stdint.h>

typedef struct mr_writer mr_writer;

mr_writer *mr_writer_new(void);
void mr_writer_free(mr_writer *writer); /* NULL is fine */

/* *out: the tensor's number, for put. name is copied; it must be UTF-8 and not declared before.
 * Sizes are checked; a tensor may be empty. Only before begin. */
mr_status mr_writer_declare(mr_writer *writer, uint32_t *out, const char *name, mr_dtype dtype,
                            uint32_t dims, const uint64_t *shape, mr_err *err);

/* Before begin: a declared tensor lies at a multiple of MR_WRITER_ALIGN bytes of its file, for
 * those who map it. Its size must be a multiple too. */
enum { MR_WRITER_ALIGN = 64 };
void mr_writer_align(mr_writer *writer, uint32_t tensor);

/* One file at path. */
mr_status mr_writer_begin_file(mr_writer *writer, const char *path, mr_err *err);
/* directory/model.safetensors or, where the data is larger than file_bytes_max (0: never),
 * model-0000i-of-0000n.safetensors and model.safetensors.index.json, tensors in declared order. A
 * single tensor above file_bytes_max gets a file of its own. The directory exists. */
mr_status mr_writer_begin_directory(mr_writer *writer, const char *directory,
                                    uint64_t file_bytes_max, mr_err *err);

uint64_t mr_writer_tensor_bytes(const mr_writer *writer, uint32_t tensor);
uint64_t mr_writer_data_bytes(const mr_writer *writer); /* of all tensors, without headers */
uint32_t mr_writer_file_count(const mr_writer *writer); /* after begin */

/* Bytes [offset, offset + bytes) of a tensor, little endian, C order. Bytes outside the tensor are
 * a caller's bug and assert. Each byte is to be put once. */
mr_status mr_writer_put(mr_writer *writer, uint32_t tensor, uint64_t offset, const void *data,
                        size_t bytes, mr_err *err);

/* Refuses when bytes are missing; otherwise syncs and renames. */
mr_status mr_writer_finish(mr_writer *writer, mr_err *err);

#endif
