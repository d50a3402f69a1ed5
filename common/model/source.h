/* source.h - where a model comes from: a directory, or an HTTP(S) address that serves its files.
 *
 * From an address the manifest comes first (it must have been written by `memrack split`), then
 * config.json and the headers of the safetensors files. The files are made in a local folder with
 * the same sizes and no content; the bytes of a tensor are fetched when they are mapped for the
 * first time: only the ranges asked for, widened to whole chunks of the manifest. Every chunk is
 * compared with its checksum before it counts as there; what an earlier start fetched is found by
 * its checksum and not fetched again. A transfer that is cut goes on at the byte where it was cut,
 * after a growing pause; wrong bytes are fetched once more, then refused. At most a chunk is held
 * in memory, and every wait has an end.
 * Threads: open and close from one thread. Models fetch from any thread, one range at a time. */
#ifndef MR_MODEL_SOURCE_H
#define MR_MODEL_SOURCE_H
#include "common/model/manifest.h"

#include <stdatomic.h>

typedef struct mr_source mr_source;

typedef struct {
    /* Where fetched files are kept, in a folder named by the model's digest. NULL:
     * $XDG_CACHE_HOME/memrack/models or ~/.cache/memrack/models. */
    const char *cache_folder;
    const char *header_file;         /* lines "Name: value" sent with every request; NULL: none */
    const char *netrc_file;          /* NULL: none */
    const char *ca_file;             /* NULL: the system's */
    mr_digest digest;                /* the model wanted; all zero: any */
    bool with_texts;                 /* the tokenizer's files too, where there are any */
    uint32_t stall_s;                /* a transfer this long without 1 KiB/s is cut; 0: 15 */
    uint32_t total_s;                /* for one range, retries and pauses together; 0: 6 hours */
    uint32_t tries;                  /* in a row without a byte of progress; 0: 8 */
    const atomic_bool *is_cancelled; /* looked at while waiting; NULL: never */
    mr_progress progress;            /* of a manifest that has to be made (directories) */
    void *progress_context;
} mr_source_options;

typedef struct {
    uint64_t requests, bytes, retries, wrong_chunks; /* bytes: of bodies */
    uint64_t fetched_chunks, found_chunks;           /* found: there from an earlier start */
} mr_source_counters;

/* where: a directory, http://HOST/PATH or https://HOST/PATH (a folder; what follows a '?' goes with
 * every file, as signed addresses want it). options NULL: defaults. */
mr_status mr_source_open(mr_source **out, const char *where, const mr_source_options *options,
                         mr_err *err);
void mr_source_close(mr_source *source); /* NULL is fine; closes the model, too */

mr_model *mr_source_model(const mr_source *source);
const mr_manifest *mr_source_manifest(const mr_source *source);
void mr_source_count(mr_source *source, mr_source_counters *out);
bool mr_source_is_address(const char *where); /* http:// or https:// */

#endif
