/* file.h - whole files: read with a bound, map read-only, replace atomically.
 * Only regular files (or links to them) are opened: a FIFO or a device in a model folder is refused
 * at once instead of being waited for. */
#ifndef MR_BASE_FILE_H
#define MR_BASE_FILE_H
#include "common/base/status.h"

#include <stddef.h>
#include <stdint.h>

/* *out is owned by the caller and ends with an extra zero byte. A missing file is MR_ERR_IO; one
 * larger than bytes_max is MR_ERR_LIMIT. */
mr_status mr_file_read(char **out, size_t *bytes, const char *path, size_t bytes_max, mr_err *err);

typedef struct {
    const uint8_t *data; /* NULL for an empty file */
    uint64_t bytes;
    int64_t mtime_ns;
} mr_file_map;
mr_status mr_file_map_open(mr_file_map *out, const char *path, mr_err *err);
void mr_file_map_close(mr_file_map *map);

/* Writes to a temporary file beside path, syncs it, then renames it over path. */
mr_status mr_file_write(const char *path, const void *data, size_t bytes, mr_err *err);

/* mkdir -p. */
mr_status mr_make_directories(const char *path, mr_err *err);

#endif
