/* source_http.h - byte ranges of files at an HTTP(S) address. Internal to common/model.
 *
 * Threads: one at a time. */
#ifndef MR_MODEL_SOURCE_HTTP_H
#define MR_MODEL_SOURCE_HTTP_H
#include "common/model/source.h"

typedef struct mr_http mr_http;

mr_status mr_http_files_open(mr_http **out, const char *address, const mr_source_options *options,
                             mr_err *err);
void mr_http_files_close(mr_http *http); /* NULL is fine */

/* Takes `bytes` bytes of the body; anything but MR_OK ends the transfer and is handed on. */
typedef mr_status (*mr_http_sink)(void *context, const uint8_t *data, size_t bytes, mr_err *err);

typedef struct {
    const char *file;      /* beside the others at the address */
    uint64_t first, bytes; /* bytes UINT64_MAX: to the end */
    int64_t deadline_ns;   /* of this transfer */
    mr_http_sink sink;
    void *context;
    uint64_t got;        /* out: how many went to the sink */
    uint64_t file_bytes; /* out: of the whole file; UINT64_MAX: not said */
    bool is_final;       /* out: trying again would not help */
    bool is_missing;     /* out: 404 or 410 */
} mr_http_range;

/* One request, no retries. MR_OK: all of it came, or all there is of the file. */
mr_status mr_http_get(mr_http *http, mr_http_range *range, mr_err *err);

/* get again and again: goes on where it was cut. A pause of 0.1 s to 5 s before each try. */
mr_status mr_http_get_all(mr_http *http, mr_http_range *range, mr_source_counters *counters,
                          mr_err *err);

#endif
