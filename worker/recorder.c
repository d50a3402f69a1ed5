/* recorder.c - see recorder.h. */
#include "worker/recorder.h"

#include "common/base/checksum.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WRITE_EVERY_MS = 50, VERSION = 1, LOCK_TRIES = 64 };
static const char magic[8] = "MRreplay";
static const char sentence[] =
    "Row ids and slots that memory layers asked for, with layer and time, for `memrack replay`. "
    "No prompts, no tokens, no scores, no answers.\n";

typedef struct {
    uint8_t *data;
    size_t used;
    uint64_t records;
} half;

struct mr_recorder {
    pthread_mutex_t lock; /* of all but fd and the thread; held for the time of a copy */
    pthread_cond_t stopped;
    pthread_t thread;
    int fd;
    int64_t began_ns;
    half halves[2];
    uint32_t active; /* the half that put fills */
    uint64_t bytes, bytes_max;
    uint64_t records, dropped;
    _Atomic uint64_t missed; /* dropped without the lock */
    uint32_t dropped_before; /* the next record */
    bool is_stopping, is_broken;
};

uint64_t mr_recorded_model(const mr_digest *digest) {
    uint64_t model;
    memcpy(&model, digest->bytes, sizeof(model));
    return model;
}

/* --- the format ------------------------------------------------------------------------------- */

void mr_recording_header(uint8_t out[MR_RECORDING_HEADER_BYTES]) {
    const uint32_t numbers[2] = {VERSION, MR_RECORDING_HEADER_BYTES};
    _Static_assert(sizeof(magic) + sizeof(numbers) + sizeof(sentence) <= MR_RECORDING_HEADER_BYTES,
                   "the header has room for its sentence");
    memset(out, 0, MR_RECORDING_HEADER_BYTES);
    memcpy(out, magic, sizeof(magic));
    memcpy(out + sizeof(magic), numbers, sizeof(numbers));
    memcpy(out + sizeof(magic) + sizeof(numbers), sentence, sizeof(sentence) - 1);
}

static uint64_t payload_bytes(uint64_t all, bool has_slots) {
    return (all * (has_slots ? 5 : 4) + 7) / 8 * 8;
}

size_t mr_record_bytes(const mr_recorded *what) {
    const uint64_t all = (uint64_t)what->tokens * what->entries;
    return sizeof(mr_record_head) + payload_bytes(all, what->slot != NULL);
}

void mr_record_encode(uint8_t *out, const mr_recorded *what) {
    const size_t all = (size_t)what->tokens * what->entries, bytes = mr_record_bytes(what);
    mr_record_head head = {.mark = MR_RECORD_MARK,
                           .model = what->model,
                           .at_ns = what->at_ns,
                           .layer = what->layer,
                           .tokens = what->tokens,
                           .entries = what->entries,
                           .has_slots = what->slot != NULL,
                           .dropped = what->dropped,
                           .bytes = (uint32_t)(bytes - sizeof(head))};
    memset(out + bytes - 8, 0, 8);
    memcpy(out + sizeof(head), what->row, all * sizeof(uint32_t));
    if (what->slot) memcpy(out + sizeof(head) + all * sizeof(uint32_t), what->slot, all);
    memcpy(out, &head, sizeof(head));
    head.crc = mr_crc32c(0, out + 8, bytes - 8);
    memcpy(out, &head, 8);
}

mr_status mr_recording_open(mr_recording *out, const char *path, mr_err *err) {
    uint32_t numbers[2];
    *out = (mr_recording){.at = MR_RECORDING_HEADER_BYTES};
    mr_status status = mr_file_map_open(&out->map, path, err);
    if (status != MR_OK) return status;
    if (out->map.bytes < MR_RECORDING_HEADER_BYTES || memcmp(out->map.data, magic, sizeof(magic)))
        status = mr_fail(err, MR_ERR_FORMAT, "%s is no recording of retrievals", path);
    if (status == MR_OK) {
        memcpy(numbers, out->map.data + sizeof(magic), sizeof(numbers));
        if (numbers[0] != VERSION || numbers[1] != MR_RECORDING_HEADER_BYTES)
            status = mr_fail(err, MR_ERR_UNSUPPORTED,
                             "%s is a recording of version %u; this program reads version %d", path,
                             numbers[0], VERSION);
    }
    if (status != MR_OK) mr_recording_close(out);
    return status;
}

void mr_recording_close(mr_recording *recording) {
    mr_file_map_close(&recording->map);
    *recording = (mr_recording){0};
}

void mr_recording_rewind(mr_recording *recording) {
    recording->at = MR_RECORDING_HEADER_BYTES;
    recording->records = 0;
}

/* Of a record whose head and length are good. */
static mr_status check_record(const mr_recording *r, const mr_record_head *head, mr_err *err) {
    const uint64_t all = (uint64_t)head->tokens * head->entries;
    if (head->tokens == 0 || head->tokens > MR_MAX_STEP_TOKENS || head->entries == 0 ||
        head->entries > MR_MAX_MEM_ENTRIES || head->has_slots > 1 || head->at_ns < 0 ||
        head->bytes != payload_bytes(all, head->has_slots))
        return mr_fail(err, MR_ERR_FORMAT,
                       "record %llu says %u tokens of %u entries in %u bytes, which cannot be",
                       (unsigned long long)r->records, head->tokens, head->entries, head->bytes);
    if (mr_crc32c(0, r->map.data + r->at + 8, sizeof(*head) - 8 + head->bytes) != head->crc)
        return mr_fail(err, MR_ERR_FORMAT, "record %llu is spoilt: its checksum does not match",
                       (unsigned long long)r->records);
    return MR_OK;
}

mr_status mr_recording_next(mr_recording *r, mr_recorded *out, bool *is_end, mr_err *err) {
    const uint64_t left = r->map.bytes - r->at;
    const uint8_t *data = r->map.data + r->at;
    mr_record_head head;
    *is_end = left == 0;
    if (*is_end) return MR_OK;
    if (left >= sizeof(head)) memcpy(&head, data, sizeof(head));
    if (left >= sizeof(head) && head.mark != MR_RECORD_MARK)
        return mr_fail(err, MR_ERR_FORMAT, "no record begins at byte %llu, after %llu good ones",
                       (unsigned long long)r->at, (unsigned long long)r->records);
    if (left < sizeof(head) || head.bytes > left - sizeof(head))
        return mr_fail(err, MR_ERR_FORMAT, "the recording is cut off inside record %llu",
                       (unsigned long long)r->records);
    const mr_status status = check_record(r, &head, err);
    if (status != MR_OK) return status;
    const size_t all = (size_t)head.tokens * head.entries;
    *out = (mr_recorded){.model = head.model,
                         .at_ns = head.at_ns,
                         .layer = head.layer,
                         .tokens = head.tokens,
                         .entries = head.entries,
                         .dropped = head.dropped,
                         .row = (const uint32_t *)(const void *)(data + sizeof(head)),
                         .slot = head.has_slots ? data + sizeof(head) + 4 * all : NULL};
    r->at += sizeof(head) + head.bytes;
    r->records++;
    return MR_OK;
}

/* --- recording -------------------------------------------------------------------------------- */

static bool write_all(mr_recorder *r, const uint8_t *data, size_t bytes) {
    while (bytes > 0) {
        const ssize_t done = write(r->fd, data, bytes);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return false;
        data += done;
        bytes -= (size_t)done;
    }
    return true;
}

/* With the lock held, which it lets go of while it writes. */
static void write_half(mr_recorder *r) {
    half *full = &r->halves[r->active];
    if (full->used == 0) return;
    r->active ^= 1;
    pthread_mutex_unlock(&r->lock);
    const bool is_good = write_all(r, full->data, full->used);
    if (!is_good) mr_log_warn("the recording ends here: %s", strerror(errno));
    pthread_mutex_lock(&r->lock);
    if (!is_good) {
        r->is_broken = true;
        r->records -= full->records;
        r->dropped += full->records;
    }
    full->used = 0;
    full->records = 0;
}

static void *run(void *context) {
    mr_recorder *r = context;
    pthread_mutex_lock(&r->lock);
    while (!r->is_stopping) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WRITE_EVERY_MS * 1000000l;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&r->stopped, &r->lock, &until);
        write_half(r);
    }
    write_half(r); /* what came while the last one was written */
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

mr_status mr_recorder_open(mr_recorder **out, const char *path, uint64_t bytes_max, mr_err *err) {
    uint8_t header[MR_RECORDING_HEADER_BYTES];
    mr_recorder *r = mr_alloc(sizeof(*r));
    *out = NULL;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->stopped, NULL);
    r->began_ns = mr_now_ns();
    r->bytes_max = bytes_max;
    r->bytes = sizeof(header);
    for (int i = 0; i < 2; i++) r->halves[i].data = mr_alloc(MR_RECORDER_BUFFER_BYTES);
    mr_recording_header(header);
    mr_status status = MR_OK;
    r->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (r->fd < 0 || !write_all(r, header, sizeof(header)))
        status = mr_fail(err, MR_ERR_IO, "%s: %s", path, strerror(errno));
    if (status == MR_OK && pthread_create(&r->thread, NULL, run, r) != 0)
        status = mr_fail(err, MR_ERR_IO, "no thread for the recorder");
    if (status == MR_OK) {
        *out = r;
        return MR_OK;
    }
    if (r->fd >= 0) close(r->fd);
    for (int i = 0; i < 2; i++) free(r->halves[i].data);
    free(r);
    return status;
}

void mr_recorder_close(mr_recorder *r) {
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->is_stopping = true;
    pthread_cond_signal(&r->stopped);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    const mr_recorder_counts counts = mr_recorder_count(r);
    mr_log_info("recorded %llu retrievals, dropped %llu", (unsigned long long)counts.records,
                (unsigned long long)counts.dropped);
    if (close(r->fd) != 0) mr_log_warn("the recording's file: %s", strerror(errno));
    for (int i = 0; i < 2; i++) free(r->halves[i].data);
    pthread_cond_destroy(&r->stopped);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* A few tries, never a wait: whoever holds the lock may be asleep. */
static bool try_lock(mr_recorder *r) {
    for (int i = 0; i < LOCK_TRIES; i++)
        if (pthread_mutex_trylock(&r->lock) == 0) return true;
    return false;
}

void mr_recorder_put(mr_recorder *r, const mr_recorded *what) {
    const size_t bytes = mr_record_bytes(what);
    mr_recorded record = *what;
    record.at_ns = mr_now_ns() - r->began_ns;
    if (!try_lock(r)) {
        r->missed++;
        return;
    }
    half *h = &r->halves[r->active];
    const uint64_t missed = atomic_exchange(&r->missed, 0);
    r->dropped_before += (uint32_t)missed;
    r->dropped += missed;
    if (r->is_broken || h->used + bytes > MR_RECORDER_BUFFER_BYTES ||
        (r->bytes_max > 0 && r->bytes + bytes > r->bytes_max)) {
        r->dropped++;
        r->dropped_before++;
    } else {
        record.dropped = r->dropped_before;
        mr_record_encode(h->data + h->used, &record);
        h->used += bytes;
        h->records++;
        r->bytes += bytes;
        r->records++;
        r->dropped_before = 0;
    }
    pthread_mutex_unlock(&r->lock);
}

mr_recorder_counts mr_recorder_count(mr_recorder *r) {
    pthread_mutex_lock(&r->lock);
    const mr_recorder_counts counts = {r->records, r->dropped + r->missed};
    pthread_mutex_unlock(&r->lock);
    return counts;
}
