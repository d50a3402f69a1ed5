/* recorder.h - what memory layers ask for, written to a file to be replayed (`memrack replay`), and
 * read again.
 *
 * A recording holds for each retrieval: the model (eight bytes of its digest), layer, time since
 * the recording began, row ids and slots. Never prompts, tokens of text, scores or answers; the
 * header of the file says so. Row ids still follow from what was asked: keep a recording as
 * private as a log of accesses.
 *
 *   256 bytes  header: magic, version, a sentence
 *   then       records, each mr_record_head, row u32 [tokens * entries], slot u8 [tokens *
 *              entries] where has_slots, zeros up to 8 bytes; little endian
 *
 * Recording never holds a step up: put copies into one of two buffers while a thread of the
 * recorder's writes the other. What finds no room, or comes after the file's limit or a failed
 * write, is dropped and counted; the next record says how many were.
 * Threads: put from any, the rest from one. Memory: two buffers. */
#ifndef MR_WORKER_RECORDER_H
#define MR_WORKER_RECORDER_H
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/status.h"

#include <stdbool.h>

typedef struct mr_recorder mr_recorder;

enum { MR_RECORDING_HEADER_BYTES = 256, MR_RECORDER_BUFFER_BYTES = 8 << 20 };

typedef struct {
    uint32_t mark; /* MR_RECORD_MARK */
    uint32_t crc;  /* CRC32C of all that follows */
    uint64_t model;
    int64_t at_ns; /* since the recording began */
    uint32_t layer, tokens, entries;
    uint32_t has_slots;
    uint32_t dropped; /* retrievals before this one that are not here */
    uint32_t bytes;   /* that follow, a multiple of 8 */
} mr_record_head;
#define MR_RECORD_MARK 0x6365524du /* "MRec" */
_Static_assert(sizeof(mr_record_head) == 48, "a part of the file format");

/* One retrieval. slot NULL: all 0. */
typedef struct {
    uint64_t model;
    int64_t at_ns;
    uint32_t layer, tokens, entries, dropped;
    const uint32_t *row; /* [tokens * entries] */
    const uint8_t *slot;
} mr_recorded;

uint64_t mr_recorded_model(const mr_digest *digest);

/* bytes_max: of the file; 0: no limit. An existing file is replaced. */
mr_status mr_recorder_open(mr_recorder **out, const char *path, uint64_t bytes_max, mr_err *err);
void mr_recorder_close(mr_recorder *recorder); /* writes what is left; NULL is fine */
/* at_ns and dropped are filled in here. Never waits. */
void mr_recorder_put(mr_recorder *recorder, const mr_recorded *what);

typedef struct {
    uint64_t records, dropped;
} mr_recorder_counts;
mr_recorder_counts mr_recorder_count(mr_recorder *recorder);

/* --- the format ------------------------------------------------------------------------------- */

void mr_recording_header(uint8_t out[MR_RECORDING_HEADER_BYTES]);
size_t mr_record_bytes(const mr_recorded *what); /* head and all; what->tokens * entries < 2^28 */
void mr_record_encode(uint8_t *out, const mr_recorded *what); /* mr_record_bytes() of it */

/* A file that is read record after record. Rows and slots are borrowed from it. */
typedef struct {
    mr_file_map map;
    uint64_t at, records;
} mr_recording;
mr_status mr_recording_open(mr_recording *out, const char *path, mr_err *err);
void mr_recording_close(mr_recording *recording);
/* *is_end: there is no other, *out is not filled. A record that is cut or spoilt is MR_ERR_FORMAT.
 */
mr_status mr_recording_next(mr_recording *recording, mr_recorded *out, bool *is_end, mr_err *err);
void mr_recording_rewind(mr_recording *recording);

#endif
