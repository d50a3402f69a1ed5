/* shards.c - see shards.h. */
#include "worker/shards.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "common/net/frames.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RETRY_MS = 100, WELCOME_BYTES_MAX = sizeof(mr_wire_welcome) + 4 * MR_MAX_CELLS };

static mr_status connect_patiently(mr_link **out, const char *address, int64_t deadline_ns,
                                   mr_err *err) {
    for (;;) {
        const mr_status status = mr_link_connect(out, address, deadline_ns, err);
        if (status != MR_ERR_UNAVAILABLE || mr_now_ns() + RETRY_MS * 1000000ll >= deadline_ns)
            return status;
        nanosleep(&(struct timespec){.tv_nsec = RETRY_MS * 1000000l}, NULL);
    }
}

/* The shard's index is its first cell; all of its cells must follow from it. */
static mr_status check_cells(uint32_t *index, const mr_welcome_view *w, uint32_t count,
                             mr_err *err) {
    const uint32_t all = w->fixed->grid_rows * w->fixed->grid_columns;
    if (w->fixed->cell_count == 0) return mr_fail(err, MR_ERR_MISMATCH, "holds no cells");
    *index = w->cells[0].cell;
    const uint32_t expected = *index < count ? (all - *index + count - 1) / count : 0;
    bool good = w->fixed->cell_count == expected;
    for (uint32_t i = 0; good && i < expected; i++) good = w->cells[i].cell == *index + i * count;
    if (good) return MR_OK;
    return mr_fail(err, MR_ERR_MISMATCH,
                   "holds %u of the %u cells of grid %ux%u, from cell %u: not those of one of %u "
                   "memshards",
                   w->fixed->cell_count, all, w->fixed->grid_rows, w->fixed->grid_columns, *index,
                   count);
}

static mr_status add(mr_shards *s, mr_link *link, const char *address, const mr_welcome_view *w,
                     mr_err *err) {
    const mr_grid grid = {w->fixed->grid_rows, w->fixed->grid_columns};
    uint32_t index = 0;
    if (s->grid.row_groups == 0) s->grid = grid;
    if (grid.row_groups != s->grid.row_groups || grid.width_slices != s->grid.width_slices)
        return mr_fail(err, MR_ERR_MISMATCH, "has grid %ux%u, others have %ux%u", grid.row_groups,
                       grid.width_slices, s->grid.row_groups, s->grid.width_slices);
    const mr_status status = check_cells(&index, w, s->count, err);
    if (status != MR_OK) return status;
    if (s->links[index])
        return mr_fail(err, MR_ERR_MISMATCH, "holds cell %u, which %s holds too", index,
                       s->addresses[index]);
    s->links[index] = link;
    s->addresses[index] = mr_strdup(address);
    return MR_OK;
}

static mr_status open_one(mr_shards *s, const char *address, mr_digest digest, int64_t deadline_ns,
                          uint8_t *welcome, mr_err *err) {
    const mr_session_hello hello = {MR_ROLE_WORKER, MR_ROLE_MEMSHARD, digest};
    mr_welcome_view view;
    mr_link *link;
    size_t bytes;
    mr_status status = connect_patiently(&link, address, deadline_ns, err);
    if (status != MR_OK) return status;
    status = mr_session_open(link, &hello, deadline_ns, welcome, WELCOME_BYTES_MAX, &bytes, err);
    if (status == MR_OK) status = mr_welcome_check(&view, welcome, bytes, err);
    if (status == MR_OK) {
        status = add(s, link, address, &view, err);
        if (status != MR_OK) mr_fail_prefix(err, status, "memshard %s", address);
    }
    if (status != MR_OK) mr_link_close(link);
    return status;
}

mr_status mr_shards_connect(mr_shards *out, const char *const *addresses, uint32_t count,
                            mr_digest digest, int64_t deadline_ns, mr_err *err) {
    mr_status status = MR_OK;
    *out = (mr_shards){.count = count,
                       .links = mr_alloc_array(count, sizeof(*out->links)),
                       .addresses = mr_alloc_array(count, sizeof(*out->addresses))};
    uint8_t *welcome = mr_alloc(WELCOME_BYTES_MAX);
    for (uint32_t i = 0; status == MR_OK && i < count; i++)
        status = open_one(out, addresses[i], digest, deadline_ns, welcome, err);
    free(welcome);
    if (status != MR_OK) mr_shards_free(out, true);
    return status; /* count distinct indices below count: every cell is held */
}

void mr_shards_free(mr_shards *shards, bool close_links) {
    for (uint32_t i = 0; i < shards->count; i++) {
        if (close_links) mr_link_close(shards->links[i]);
        free(shards->addresses[i]);
    }
    free(shards->links);
    free(shards->addresses);
    *shards = (mr_shards){0};
}
