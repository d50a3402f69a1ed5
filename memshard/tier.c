/* tier.c - see tier.h. One mutex guards the table of blocks; reading a device, comparing and
 * copying happen outside of it, on blocks that are pinned.
 *
 * A block's life: EMPTY, LOADING while an op has it, READY, or FAILED, which leaves the table at
 * once and becomes EMPTY with its last reader. A reader never waits for anything but reads under
 * way, with a deadline, and holds no block while it waits for room: so readers cannot wait for each
 * other in a ring. */
#include "memshard/tier.h"

#include "common/base/checksum.h"
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "memshard/tier_engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BLOCK = MR_TIER_BLOCK_BYTES,
    FILES_MAX = MR_MAX_CELLS * 2,
    ROUND = 256, /* blocks a reader holds at a time */
    PREFETCH_OPS_LEFT = MR_TIER_OPS / 2,
    READ_TRIES = 2,
    SLOT_COST = 64, /* bytes of bookkeeping, counted in the budget */
};
#define NONE UINT32_MAX

typedef enum { EMPTY, LOADING, READY, FAILED } slot_state;

typedef struct {
    uint64_t block; /* of the file */
    uint32_t file, pins, next;
    uint8_t state, was_used;
    int32_t code; /* FAILED: an errno; 0: its checksum */
} slot;

typedef struct {
    char *path; /* NULL: free */
    int fd;
    bool is_direct;
    uint64_t first, bytes, block_first;
    uint32_t *crc;    /* [blocks], of the part of each that was added; NULL: nothing was learned */
    uint64_t learned; /* up to here, from `first` on */
    uint32_t loading; /* slots */
} tier_file;

struct mr_tier {
    mr_tier_engine *engine;
    uint32_t timeout_ms, slot_count, bucket_mask, hand, scrub_hand;
    uint8_t *memory;
    size_t memory_bytes;
    slot *slots;
    uint32_t *buckets;
    tier_file *files;
    uint32_t file_count, file_room;
    mr_tier_op *ops, *free_ops;
    uint32_t free_op_count;
    pthread_mutex_t lock; /* guards all but the blocks' bytes */
    pthread_cond_t changed;
    mr_tier_counters counters;
};

static uint8_t *bytes_of(const mr_tier *t, uint32_t s) {
    return t->memory + (size_t)s * BLOCK;
}

static uint32_t *bucket_of(const mr_tier *t, uint32_t file, uint64_t block) {
    const uint64_t key = (block * 0x9e3779b97f4a7c15ull) ^ (file * 0xc2b2ae3d27d4eb4full);
    return &t->buckets[(key ^ key >> 29) & t->bucket_mask];
}

/* --- the table of blocks: lock held on entry -------------------------------------------------- */

static uint32_t find(const mr_tier *t, uint32_t file, uint64_t block) {
    uint32_t s = *bucket_of(t, file, block);
    while (s != NONE && (t->slots[s].block != block || t->slots[s].file != file))
        s = t->slots[s].next;
    return s;
}

static void unlink_slot(mr_tier *t, uint32_t s) {
    uint32_t *at = bucket_of(t, t->slots[s].file, t->slots[s].block);
    while (*at != s) at = &t->slots[*at].next;
    *at = t->slots[s].next;
}

/* An unpinned block that was not asked for since the hand came by, taken out; NONE: all are in
 * use. */
static uint32_t take_slot(mr_tier *t) {
    for (uint64_t step = 0; step < 2ull * t->slot_count; step++) {
        const uint32_t s = t->hand;
        slot *one = &t->slots[s];
        t->hand = s + 1 == t->slot_count ? 0 : s + 1;
        if (one->state == EMPTY && one->pins == 0) return s;
        if (one->state != READY || one->pins > 0) continue;
        if (one->was_used) {
            one->was_used = 0;
            continue;
        }
        unlink_slot(t, s);
        one->state = EMPTY;
        t->counters.evicted++;
        t->counters.resident_bytes -= BLOCK;
        return s;
    }
    return NONE;
}

static void begin_load(mr_tier *t, uint32_t s, uint32_t file, uint64_t block) {
    uint32_t *bucket = bucket_of(t, file, block);
    t->slots[s] = (slot){.block = block, .file = file, .next = *bucket, .state = LOADING};
    *bucket = s;
    t->files[file].loading++;
}

/* Adds the block to the last op where it is its neighbour, else to a new one. false: no op left. */
static bool plan_read(mr_tier *t, mr_tier_op **list, uint32_t s) {
    const slot *one = &t->slots[s];
    mr_tier_op *op = *list;
    const int fd = t->files[one->file].fd;
    if (!op || op->fd != fd || op->count == MR_TIER_OP_BLOCKS ||
        op->offset + (uint64_t)op->count * BLOCK != one->block * BLOCK) {
        if (!(op = t->free_ops)) return false;
        t->free_ops = op->next;
        t->free_op_count--;
        *op = (mr_tier_op){.fd = fd, .offset = one->block * BLOCK, .next = *list};
        *list = op;
    }
    op->room[op->count] = (struct iovec){bytes_of(t, s), BLOCK};
    op->slot[op->count++] = s;
    return true;
}

static void unpin(mr_tier *t, uint32_t s) {
    slot *one = &t->slots[s];
    assert(one->pins > 0);
    one->pins--;
    if (one->pins == 0 && one->state == FAILED) one->state = EMPTY;
}

/* --- a read is done --------------------------------------------------------------------------- */

/* The part of a block that was added: *at and *bytes within the block. */
static void part_of(const tier_file *f, uint64_t block, uint32_t *at, uint32_t *bytes) {
    const uint64_t start = block * BLOCK, end = f->first + f->bytes;
    const uint64_t from = start > f->first ? start : f->first;
    *at = (uint32_t)(from - start);
    *bytes = (uint32_t)((start + BLOCK < end ? start + BLOCK : end) - from);
}

static bool is_known(const tier_file *f, uint64_t block) {
    const uint64_t end = f->first + f->bytes, block_end = (block + 1) * BLOCK;
    return f->crc && f->learned >= (block_end < end ? block_end : end);
}

/* 0: good; an errno; EBADMSG: another content than was verified at load. */
static int32_t judge(const mr_tier *t, const mr_tier_op *op, uint32_t i, int64_t result) {
    const slot *one = &t->slots[op->slot[i]];
    const tier_file *f = &t->files[one->file];
    uint32_t at, bytes;
    if (result < 0) return (int32_t)-result;
    part_of(f, one->block, &at, &bytes);
    if (result < (int64_t)i * BLOCK + at + bytes) return ENODATA;
    if (is_known(f, one->block) &&
        mr_crc32c(0, bytes_of(t, op->slot[i]) + at, bytes) != f->crc[one->block - f->block_first])
        return EBADMSG;
    return 0;
}

/* From a thread of the engine. The slots are LOADING and so are nobody else's. */
static void read_done(void *context, mr_tier_op *op, int64_t result) {
    mr_tier *t = context;
    int32_t codes[MR_TIER_OP_BLOCKS], worst = 0;
    for (uint32_t i = 0; i < op->count; i++) {
        codes[i] = judge(t, op, i, result);
        if (codes[i]) worst = codes[i];
    }
    if (worst && ++op->tries < READ_TRIES) {
        op->next = NULL;
        t->engine->submit(t->engine, op);
        return;
    }
    pthread_mutex_lock(&t->lock);
    t->counters.reads += op->tries + !worst;
    t->counters.read_bytes += result > 0 ? (uint64_t)result : 0;
    for (uint32_t i = 0; i < op->count; i++) {
        slot *one = &t->slots[op->slot[i]];
        t->files[one->file].loading--;
        one->state = READY;
        if (codes[i] == 0) {
            t->counters.resident_bytes += BLOCK;
            continue;
        }
        unlink_slot(t, op->slot[i]);
        one->state = one->pins ? FAILED : EMPTY;
        one->code = codes[i];
        t->counters.failures++;
    }
    op->next = t->free_ops;
    t->free_ops = op;
    t->free_op_count++;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

/* --- reading ---------------------------------------------------------------------------------- */

/* One block of one piece. */
typedef struct {
    uint32_t slot, at, bytes;
    uint8_t *to;
} part;

typedef struct {
    const mr_tier_piece *pieces;
    uint32_t count, piece; /* where the walk is */
    uint32_t done;         /* bytes of that piece */
} walk;

static bool walk_block(const walk *w, uint32_t *file, uint64_t *block, part *out) {
    if (w->piece == w->count) return false;
    const mr_tier_piece *p = &w->pieces[w->piece];
    const uint64_t first = p->first + w->done;
    *file = p->file;
    *block = first / BLOCK;
    out->at = (uint32_t)(first % BLOCK);
    const uint32_t left = p->bytes - w->done, room = BLOCK - out->at;
    out->bytes = left < room ? left : room;
    out->to = (uint8_t *)p->to + w->done;
    return true;
}

static void walk_on(walk *w, uint32_t bytes) {
    w->done += bytes;
    while (w->piece < w->count && w->done >= w->pieces[w->piece].bytes) {
        w->piece++;
        w->done = 0;
    }
}

/* Pins the next blocks, as many as there is room for, and plans the reads of those that are not
 * there. Lock held on entry. */
static uint32_t pin_round(mr_tier *t, walk *w, part *parts, mr_tier_op **list) {
    uint32_t count = 0, file;
    uint64_t block;
    while (count < ROUND && walk_block(w, &file, &block, &parts[count])) {
        uint32_t s = find(t, file, block);
        if (s != NONE) {
            t->slots[s].was_used = 1;
            t->counters.hits++;
        } else {
            if (!t->free_ops || (s = take_slot(t)) == NONE) break;
            begin_load(t, s, file, block);
            t->counters.misses++;
            const bool is_planned = plan_read(t, list, s);
            assert(is_planned);
        }
        t->slots[s].pins++;
        parts[count].slot = s;
        walk_on(w, parts[count++].bytes);
    }
    return count;
}

static struct timespec deadline_of(uint32_t timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    return until;
}

static mr_status refuse(const mr_tier *t, const slot *one, mr_err *err) {
    const tier_file *f = &t->files[one->file];
    return mr_fail(err, MR_ERR_IO, "%s, block at byte %llu: %s", f->path,
                   (unsigned long long)(one->block * BLOCK),
                   one->code == EBADMSG   ? "it is not what it was at load"
                   : one->code == ENODATA ? "the file became shorter"
                                          : strerror(one->code));
}

/* Until no block of the round is LOADING. Lock held on entry. */
static mr_status wait_round(mr_tier *t, const part *parts, uint32_t count,
                            const struct timespec *until, mr_err *err) {
    for (uint32_t i = 0; i < count; i++) {
        const slot *one = &t->slots[parts[i].slot];
        while (one->state == LOADING)
            if (pthread_cond_timedwait(&t->changed, &t->lock, until) == ETIMEDOUT &&
                one->state == LOADING)
                return mr_fail(err, MR_ERR_TIMEOUT, "%s: a read took more than %u ms",
                               t->files[one->file].path, t->timeout_ms);
        if (one->state == FAILED) return refuse(t, one, err);
    }
    return MR_OK;
}

mr_status mr_tier_read(mr_tier *tier, const mr_tier_piece *pieces, uint32_t count, mr_err *err) {
    walk w = {.pieces = pieces, .count = count};
    part parts[ROUND];
    mr_status status = MR_OK;
    struct timespec until = deadline_of(tier->timeout_ms);
    walk_on(&w, 0);
    pthread_mutex_lock(&tier->lock);
    while (w.piece < w.count && status == MR_OK) {
        mr_tier_op *list = NULL;
        const uint32_t pinned = pin_round(tier, &w, parts, &list);
        if (pinned == 0) { /* nothing is held here: others will make room */
            if (pthread_cond_timedwait(&tier->changed, &tier->lock, &until) == ETIMEDOUT)
                status =
                    mr_fail(err, MR_ERR_TIMEOUT, "no room for rows within %u ms", tier->timeout_ms);
            continue;
        }
        if (list) {
            pthread_mutex_unlock(&tier->lock);
            tier->engine->submit(tier->engine, list);
            pthread_mutex_lock(&tier->lock);
        }
        until = deadline_of(tier->timeout_ms);
        status = wait_round(tier, parts, pinned, &until, err);
        pthread_mutex_unlock(&tier->lock);
        for (uint32_t i = 0; i < pinned && status == MR_OK; i++)
            memcpy(parts[i].to, bytes_of(tier, parts[i].slot) + parts[i].at, parts[i].bytes);
        pthread_mutex_lock(&tier->lock);
        for (uint32_t i = 0; i < pinned; i++) unpin(tier, parts[i].slot);
        pthread_cond_broadcast(&tier->changed);
    }
    pthread_mutex_unlock(&tier->lock);
    return status;
}

void mr_tier_prefetch(mr_tier *tier, const mr_tier_piece *pieces, uint32_t count) {
    walk w = {.pieces = pieces, .count = count};
    mr_tier_op *list = NULL;
    uint32_t file, s;
    uint64_t block;
    part one;
    walk_on(&w, 0);
    pthread_mutex_lock(&tier->lock);
    while (tier->free_op_count > PREFETCH_OPS_LEFT && walk_block(&w, &file, &block, &one)) {
        if (find(tier, file, block) == NONE) {
            if ((s = take_slot(tier)) == NONE) break;
            begin_load(tier, s, file, block);
            tier->slots[s].was_used = 1; /* until it is asked for */
            tier->counters.prefetched++;
            const bool is_planned = plan_read(tier, &list, s);
            assert(is_planned);
        }
        walk_on(&w, one.bytes);
    }
    pthread_mutex_unlock(&tier->lock);
    if (list) tier->engine->submit(tier->engine, list);
}

/* --- files ------------------------------------------------------------------------------------ */

/* O_DIRECT where a read of the first block works that way. */
static int open_file(const char *path, uint64_t block, bool *is_direct) {
    void *room = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    *is_direct = false;
    if (fd >= 0 && posix_memalign(&room, BLOCK, BLOCK) == 0) {
        *is_direct = pread(fd, room, BLOCK, (off_t)(block * BLOCK)) > 0;
        free(room);
    }
    if (*is_direct) return fd;
    if (fd >= 0) close(fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    return fd;
}

static uint32_t free_file(mr_tier *t) {
    for (uint32_t i = 0; i < t->file_count; i++)
        if (!t->files[i].path) return i;
    return t->file_count < t->file_room ? t->file_count++ : NONE;
}

mr_status mr_tier_add(mr_tier *tier, uint32_t *file, const char *path, uint64_t first,
                      uint64_t bytes, mr_err *err) {
    struct stat st;
    bool is_direct;
    assert(bytes > 0);
    const uint64_t block_first = first / BLOCK,
                   blocks = (first + bytes - 1) / BLOCK - block_first + 1;
    const int fd = open_file(path, block_first, &is_direct);
    if (fd < 0) return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size < first + bytes) {
        close(fd);
        return mr_fail(err, MR_ERR_IO, "%s became shorter since it was opened", path);
    }
    void *crc;
    mr_status status = mr_try_alloc(&crc, blocks, sizeof(uint32_t), "checksums of blocks", err);
    if (status != MR_OK) {
        close(fd);
        return status;
    }
    pthread_mutex_lock(&tier->lock);
    const uint32_t i = free_file(tier);
    if (i != NONE) {
        tier->files[i] = (tier_file){.path = mr_strdup(path),
                                     .fd = fd,
                                     .is_direct = is_direct,
                                     .first = first,
                                     .bytes = bytes,
                                     .block_first = block_first,
                                     .crc = crc,
                                     .learned = first};
        tier->counters.file_bytes += bytes;
    }
    pthread_mutex_unlock(&tier->lock);
    if (i != NONE) {
        *file = i;
        return MR_OK;
    }
    free(crc);
    close(fd);
    return mr_fail(err, MR_ERR_LIMIT, "more than %d parts of files in one tier", FILES_MAX);
}

void mr_tier_learn(mr_tier *tier, uint32_t file, uint64_t at, const void *data, uint64_t bytes) {
    tier_file *f = &tier->files[file];
    const uint8_t *from = data;
    assert(at == f->learned && at + bytes <= f->first + f->bytes);
    while (bytes > 0) {
        const uint64_t block = at / BLOCK, left = (block + 1) * BLOCK - at;
        const uint64_t piece = left < bytes ? left : bytes;
        uint32_t *crc = &f->crc[block - f->block_first];
        *crc = mr_crc32c(*crc, from, (size_t)piece);
        at += piece;
        from += piece;
        bytes -= piece;
    }
    f->learned = at;
}

/* Reads under way are waited for: they write into our memory. */
void mr_tier_remove(mr_tier *tier, uint32_t file) {
    pthread_mutex_lock(&tier->lock);
    tier_file *f = &tier->files[file];
    const struct timespec until = deadline_of(tier->timeout_ms * 2);
    while (f->loading > 0 &&
           pthread_cond_timedwait(&tier->changed, &tier->lock, &until) != ETIMEDOUT) {
    }
    if (f->loading > 0) {
        mr_log_error("%s: reads never ended; its descriptor stays open", f->path);
        pthread_mutex_unlock(&tier->lock);
        return;
    }
    for (uint32_t s = 0; s < tier->slot_count; s++) {
        slot *one = &tier->slots[s];
        if (one->state != READY || one->file != file) continue;
        unlink_slot(tier, s);
        one->state = EMPTY;
        tier->counters.resident_bytes -= BLOCK;
    }
    tier->counters.file_bytes -= f->bytes;
    close(f->fd);
    free(f->path);
    free(f->crc);
    *f = (tier_file){0};
    pthread_mutex_unlock(&tier->lock);
}

/* --- scrubbing -------------------------------------------------------------------------------- */

mr_status mr_tier_read_file(mr_tier *tier, uint32_t file, uint64_t first, uint32_t bytes,
                            void *room, const uint8_t **data, mr_err *err) {
    const tier_file *f = &tier->files[file];
    const uint64_t from = first / BLOCK * BLOCK;
    const size_t wanted = (size_t)(first - from) + bytes;
    size_t have = 0;
    while (have < wanted) {
        const ssize_t got =
            pread(f->fd, (uint8_t *)room + have, (wanted - have + BLOCK - 1) / BLOCK * BLOCK,
                  (off_t)(from + have));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return mr_fail(err, MR_ERR_IO, "%s, at byte %llu: %s", f->path,
                           (unsigned long long)(from + have),
                           got < 0 ? strerror(errno) : "the file became shorter");
        have += (size_t)got;
        if (have < wanted && have % BLOCK != 0) /* the end of the file */
            return mr_fail(err, MR_ERR_IO, "%s became shorter", f->path);
    }
    *data = (const uint8_t *)room + (first - from);
    return MR_OK;
}

uint32_t mr_tier_scrub(mr_tier *tier, uint32_t blocks) {
    uint32_t wrong = 0;
    pthread_mutex_lock(&tier->lock);
    for (uint32_t i = 0; i < blocks && i < tier->slot_count; i++) {
        const uint32_t s = tier->scrub_hand;
        slot *one = &tier->slots[s];
        tier->scrub_hand = s + 1 == tier->slot_count ? 0 : s + 1;
        if (one->state != READY || !is_known(&tier->files[one->file], one->block)) continue;
        const tier_file *f = &tier->files[one->file];
        const uint32_t wanted = f->crc[one->block - f->block_first];
        uint32_t at, bytes;
        part_of(f, one->block, &at, &bytes);
        one->pins++;
        pthread_mutex_unlock(&tier->lock);
        const bool is_good = mr_crc32c(0, bytes_of(tier, s) + at, bytes) == wanted;
        pthread_mutex_lock(&tier->lock);
        if (!is_good) {
            unlink_slot(tier, s);
            one->state = FAILED;
            one->code = EBADMSG;
            tier->counters.resident_bytes -= BLOCK;
            tier->counters.memory_failures++;
            wrong++;
        }
        unpin(tier, s);
    }
    pthread_mutex_unlock(&tier->lock);
    return wrong;
}

void mr_tier_spoil_for_test(mr_tier *tier) {
    pthread_mutex_lock(&tier->lock);
    uint32_t s = 0;
    while (s < tier->slot_count &&
           (tier->slots[s].state != READY ||
            !is_known(&tier->files[tier->slots[s].file], tier->slots[s].block)))
        s++;
    assert(s < tier->slot_count);
    bytes_of(tier, s)[BLOCK / 2] ^= 4;
    pthread_mutex_unlock(&tier->lock);
}

void mr_tier_count(mr_tier *tier, mr_tier_counters *out) {
    pthread_mutex_lock(&tier->lock);
    *out = tier->counters;
    out->is_direct = true;
    for (uint32_t i = 0; i < tier->file_count; i++)
        out->is_direct &= !tier->files[i].path || tier->files[i].is_direct;
    pthread_mutex_unlock(&tier->lock);
}

/* --- open and close --------------------------------------------------------------------------- */

static mr_status open_engine(mr_tier *t, const mr_tier_options *o, mr_err *err) {
    const uint32_t threads = o->threads ? o->threads : 16;
    const bool any = !o->engine;
    mr_err why = {{0}};
    if (any || strcmp(o->engine, "uring") == 0) {
        const mr_status status = mr_tier_uring_open(&t->engine, read_done, t, &why);
        if (status == MR_OK) return MR_OK;
        if (!any) return mr_fail(err, status, "%s", why.text);
        mr_log_info("rows are read by a pool of %u threads: %s", threads, why.text);
    } else if (strcmp(o->engine, "pread") != 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "tier engine %.40s: there are uring and pread",
                       o->engine);
    return mr_tier_pread_open(&t->engine, threads, read_done, t, err);
}

static mr_status take_memory(mr_tier *t, uint64_t budget, mr_err *err) {
    const uint64_t slots = budget / (BLOCK + SLOT_COST);
    if (budget < MR_TIER_BUDGET_MIN || slots >= NONE / 2)
        return mr_fail(err, MR_ERR_ARGUMENT, "a tier of %llu bytes of memory: at least %d",
                       (unsigned long long)budget, MR_TIER_BUDGET_MIN);
    t->slot_count = (uint32_t)slots;
    uint32_t buckets = 1;
    while (buckets < t->slot_count) buckets *= 2;
    t->bucket_mask = buckets - 1;
    t->memory_bytes = (size_t)t->slot_count * BLOCK;
    void *memory =
        mmap(NULL, t->memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return mr_fail(err, MR_ERR_NOMEM, "no memory for a tier of %llu bytes",
                       (unsigned long long)budget);
    t->memory = memory;
    madvise(memory, t->memory_bytes, MADV_HUGEPAGE);
    t->slots = mr_alloc_array(t->slot_count, sizeof(*t->slots));
    t->buckets = mr_alloc_array(buckets, sizeof(*t->buckets));
    memset(t->buckets, 0xff, buckets * sizeof(*t->buckets));
    return MR_OK;
}

mr_status mr_tier_open(mr_tier **out, const mr_tier_options *options, mr_err *err) {
    pthread_condattr_t monotonic;
    mr_tier *t = mr_alloc(sizeof(*t));
    *out = NULL;
    t->timeout_ms = options->timeout_ms ? options->timeout_ms : 5000;
    t->counters.budget_bytes = options->budget_bytes;
    t->file_room = FILES_MAX;
    t->files = mr_alloc_array(t->file_room, sizeof(*t->files));
    t->ops = mr_alloc_array(MR_TIER_OPS, sizeof(*t->ops));
    for (int i = 0; i < MR_TIER_OPS; i++) {
        t->ops[i].next = t->free_ops;
        t->free_ops = &t->ops[i];
    }
    t->free_op_count = MR_TIER_OPS;
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&t->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    mr_status status = take_memory(t, options->budget_bytes, err);
    if (status == MR_OK) status = open_engine(t, options, err);
    if (status != MR_OK) {
        mr_tier_close(t);
        return status;
    }
    *out = t;
    return MR_OK;
}

void mr_tier_close(mr_tier *tier) {
    if (!tier) return;
    const struct timespec until = deadline_of(tier->timeout_ms * 2);
    pthread_mutex_lock(&tier->lock);
    while (tier->free_op_count < MR_TIER_OPS &&
           pthread_cond_timedwait(&tier->changed, &tier->lock, &until) != ETIMEDOUT) {
    }
    const bool is_idle = tier->free_op_count == MR_TIER_OPS;
    pthread_mutex_unlock(&tier->lock);
    if (!is_idle) { /* a device still writes into our memory */
        mr_log_error("reads of rows never ended; their memory is not given back");
        return;
    }
    if (tier->engine) tier->engine->close(tier->engine);
    for (uint32_t i = 0; i < tier->file_count; i++) {
        if (!tier->files[i].path) continue;
        close(tier->files[i].fd);
        free(tier->files[i].path);
        free(tier->files[i].crc);
    }
    if (tier->memory) munmap(tier->memory, tier->memory_bytes);
    pthread_cond_destroy(&tier->changed);
    pthread_mutex_destroy(&tier->lock);
    free(tier->slots);
    free(tier->buckets);
    free(tier->files);
    free(tier->ops);
    free(tier);
}

const char *mr_tier_engine_name(const mr_tier *tier) {
    return tier->engine->name;
}
