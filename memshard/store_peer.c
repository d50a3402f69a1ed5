/* store_peer.c - see store_peer.h. */
#include "memshard/store_peer.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/fabric.h"
#include "common/net/frames.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    WINDOW = 4, /* requests on their way */
    TIMEOUT_MS = 5000,
    ROUNDS = 4,
    PAUSE_MS = 200, /* after a round over all peers */
    PEERS_MAX = MR_MAX_REPLICAS,
};

struct mr_peer_tables {
    mr_store_source source;
    mr_peer_options options;
    char *text; /* the addresses, cut at their commas */
    const char *address[PEERS_MAX];
    uint32_t address_count, at; /* the peer in use */
    mr_link *link;              /* NULL: none */
    mr_grid grid;               /* of link */
    uint64_t next_request;
    uint32_t *row; /* [rows of a frame] */
};

/* One call of copy. */
typedef struct {
    mr_peer_tables *p;
    uint8_t *out;
    size_t stride_bytes, slice_bytes;
    uint32_t layer, cell, rows_at_once;
    bool pre_values;
    mr_span rows;
    uint64_t done, asked;   /* rows; done: all before are there */
    uint64_t first_request; /* the one for row `done` */
    bool is_there[WINDOW];  /* of the requests from first_request on: its rows have come */
} copying;

static uint32_t timeout_ms(const mr_peer_tables *p) {
    return p->options.timeout_ms ? p->options.timeout_ms : TIMEOUT_MS;
}

static int64_t deadline_ns(const mr_peer_tables *p) {
    return mr_now_ns() + (int64_t)timeout_ms(p) * 1000000;
}

static void hang_up(mr_peer_tables *p) {
    mr_link_close(p->link);
    p->link = NULL;
    p->at = (p->at + 1) % p->address_count;
}

static mr_status call(mr_peer_tables *p, mr_grid grid, mr_err *err) {
    const mr_session_hello hello = {
        .role = MR_ROLE_MEMSHARD, .role_wanted = MR_ROLE_MEMSHARD, .digest = p->options.digest};
    mr_wire_welcome welcome;
    size_t bytes;
    if (p->link && p->grid.row_groups == grid.row_groups &&
        p->grid.width_slices == grid.width_slices)
        return MR_OK;
    mr_link_close(p->link);
    p->link = NULL;
    p->grid = grid;
    mr_status status = mr_link_connect(&p->link, p->address[p->at], deadline_ns(p), err);
    if (status != MR_OK) return status;
    mr_link_set_grid(p->link, (mr_link_grid){grid.row_groups, grid.width_slices});
    status =
        mr_session_open(p->link, &hello, deadline_ns(p), &welcome, sizeof(welcome), &bytes, err);
    if (status == MR_OK && (bytes < sizeof(welcome) || welcome.grid_rows != grid.row_groups ||
                            welcome.grid_columns != grid.width_slices))
        status = mr_fail(err, MR_ERR_MISMATCH, "%s holds no cells of grid %ux%u", p->address[p->at],
                         grid.row_groups, grid.width_slices);
    if (status == MR_OK && welcome.version < 2 && MR_WIRE_VERSION >= 2)
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "%s speaks version 1, which copies no cells",
                         p->address[p->at]);
    return status;
}

static uint64_t rows_of(const copying *c, uint64_t first) {
    const uint64_t left = c->rows.count - first;
    return left < c->rows_at_once ? left : c->rows_at_once;
}

static mr_status ask(copying *c, mr_err *err) {
    mr_peer_tables *p = c->p;
    const uint32_t rows = (uint32_t)rows_of(c, c->asked);
    const mr_wire_retrieve fixed = {.layer = c->layer,
                                    .cell = c->cell,
                                    .mode =
                                        c->pre_values ? MR_RETRIEVE_GATHER_PRE : MR_RETRIEVE_GATHER,
                                    .tokens = 1,
                                    .entries = rows};
    mr_retrieve_layout to;
    mr_status status = mr_retrieve_lay_out(&to, &fixed, err);
    if (status != MR_OK) return status;
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE, .request = p->next_request};
    uint8_t *payload = mr_link_begin(p->link, &header, to.bytes);
    if (!payload)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "%s takes no requests", mr_link_peer(p->link));
    memset(payload, 0, to.bytes);
    memcpy(payload, &fixed, sizeof(fixed));
    memcpy(payload + to.count, &rows, sizeof(rows));
    for (uint32_t i = 0; i < rows; i++) p->row[i] = (uint32_t)(c->rows.first + c->asked + i);
    memcpy(payload + to.row, p->row, rows * sizeof(*p->row));
    mr_link_end(p->link);
    p->next_request++;
    c->asked += rows;
    return MR_OK;
}

/* Answers may come in any order within the window. */
static mr_status take(copying *c, const mr_frame *frame, mr_err *err) {
    const uint64_t ahead = frame->header->request - c->first_request;
    if (ahead >= c->p->next_request - c->first_request || c->is_there[ahead])
        return mr_fail(err, MR_ERR_FORMAT, "an answer to request %llu, which nobody asked",
                       (unsigned long long)frame->header->request);
    const uint64_t first = c->done + ahead * c->rows_at_once, rows = rows_of(c, first);
    mr_status status =
        mr_answer_check(frame, MR_FRAME_ROWS, (uint32_t)(rows * c->slice_bytes), err);
    if (status != MR_OK) return status;
    for (uint64_t i = 0; i < rows; i++)
        memcpy(c->out + (first + i) * c->stride_bytes, frame->payload + i * c->slice_bytes,
               c->slice_bytes);
    c->is_there[ahead] = true;
    while (c->is_there[0]) {
        c->done += rows_of(c, c->done);
        c->first_request++;
        memmove(c->is_there, c->is_there + 1, sizeof(c->is_there) - sizeof(c->is_there[0]));
        c->is_there[WINDOW - 1] = false;
    }
    return MR_OK;
}

static bool is_cancelled(const mr_peer_tables *p) {
    return p->options.is_cancelled && atomic_load(p->options.is_cancelled);
}

/* From row `done` on, over the peer in use. */
static mr_status copy_from_peer(copying *c, mr_grid grid, mr_err *err) {
    mr_peer_tables *p = c->p;
    mr_frame frame;
    mr_status status = call(p, grid, err);
    c->asked = c->done;
    c->first_request = p->next_request;
    memset(c->is_there, 0, sizeof(c->is_there));
    while (status == MR_OK && c->done < c->rows.count) {
        while (status == MR_OK && c->asked < c->rows.count &&
               p->next_request - c->first_request < WINDOW)
            status = ask(c, err);
        if (status != MR_OK) break;
        status = mr_link_flush(p->link, err);
        if (status != MR_OK && status != MR_ERR_AGAIN) break;
        status = mr_link_receive(p->link, &frame, err);
        const int64_t until = deadline_ns(p);
        while (status == MR_ERR_AGAIN) {
            if (is_cancelled(p)) return mr_fail(err, MR_ERR_CANCELLED, "not wanted any more");
            status = mr_links_wait(&p->link, 1, until);
            if (status != MR_OK) break;
            mr_link_flush(p->link, NULL);
            status = mr_link_receive(p->link, &frame, err);
        }
        if (status == MR_ERR_TIMEOUT)
            status = mr_fail(err, status, "%s was silent for %u ms", mr_link_peer(p->link),
                             timeout_ms(p));
        if (status == MR_OK) status = take(c, &frame, err);
    }
    return status;
}

static mr_status find_layer(uint32_t *out, const mr_store_source *source, uint32_t table,
                            mr_err *err) {
    for (uint32_t i = 0; i < source->layer_count; i++)
        if (source->layers[i]->table == table) {
            *out = i;
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "no layer uses table %u", table);
}

static mr_status copy(const void *context, void *out, size_t stride_bytes, uint32_t table,
                      bool pre_values, mr_grid grid, uint32_t cell, mr_span rows, mr_err *err) {
    mr_peer_tables *p = (mr_peer_tables *)(uintptr_t)context;
    const mr_table_shape *shape = p->source.tables[table];
    const mr_cell_span span = mr_cell_span_of(shape, grid, cell);
    copying c = {.p = p,
                 .out = out,
                 .stride_bytes = stride_bytes,
                 .cell = cell,
                 .pre_values = pre_values,
                 .rows = rows};
    const mr_row_slice slice =
        pre_values ? mr_row_slice_of(shape->pre_storage, shape->pre_width, span.pre_column_first,
                                     span.pre_columns)
                   : mr_row_slice_of(shape->storage, shape->width, span.column_first, span.columns);
    c.slice_bytes = (size_t)slice.bytes;
    const size_t room = MR_MAX_FRAME_BYTES / 2, row_bytes = c.slice_bytes + sizeof(uint32_t);
    c.rows_at_once = room > row_bytes ? (uint32_t)(room / row_bytes) : 1;
    mr_status status = find_layer(&c.layer, &p->source, table, err);
    if (status != MR_OK) return status;
    free(p->row);
    p->row = mr_alloc_array(c.rows_at_once, sizeof(*p->row));
    const uint32_t tries = p->address_count * (p->options.rounds ? p->options.rounds : ROUNDS);
    for (uint32_t failed = 0;;) {
        const uint64_t before = c.done;
        mr_err why = {{0}};
        status = copy_from_peer(&c, grid, &why);
        if (status == MR_OK) return MR_OK;
        failed = c.done > before ? 1 : failed + 1;
        mr_log_info("copying cell %u from %s: %s", cell, p->address[p->at], why.text);
        char text[MR_MAX_ADDRESS_BYTES];
        strncpy(text, p->address[p->at], sizeof(text) - 1);
        text[sizeof(text) - 1] = '\0';
        hang_up(p);
        if (failed >= tries || status == MR_ERR_CANCELLED || is_cancelled(p)) {
            if (err) *err = why;
            return mr_fail_prefix(err, status, "no peer gives cell %u of grid %ux%u; %.100s last",
                                  cell, grid.row_groups, grid.width_slices, text);
        }
        if (failed % p->address_count == 0)
            nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000}, NULL);
    }
}

static void again(const void *context) {
    mr_peer_tables *p = (mr_peer_tables *)(uintptr_t)context;
    if (p->link) hang_up(p);
}

static bool no_file(const void *context, mr_file_part *out, uint32_t table, bool pre_values) {
    const mr_peer_tables *p = context;
    (void)table, (void)pre_values;
    *out = (mr_file_part){.path = p->address[p->at]};
    return true;
}

/* The base's own callbacks want the base's context. */
static bool base_cell_check(const void *context, uint32_t *out, mr_grid grid, uint32_t table,
                            bool pre_values, uint32_t cell) {
    const mr_peer_tables *p = context;
    const mr_store_source *base = p->source.base;
    return base->cell_check && base->cell_check(base->context, out, grid, table, pre_values, cell);
}

mr_status mr_peer_tables_open(mr_peer_tables **out, const mr_store_source *base,
                              const mr_peer_options *options, mr_err *err) {
    char *one, *rest;
    *out = NULL;
    mr_peer_tables *p = mr_alloc(sizeof(*p));
    p->options = *options;
    p->text = mr_strdup(options->addresses);
    for (one = strtok_r(p->text, ",", &rest); one; one = strtok_r(NULL, ",", &rest)) {
        if (p->address_count == PEERS_MAX || strlen(one) >= MR_MAX_ADDRESS_BYTES) {
            mr_peer_tables_close(p);
            return mr_fail(err, MR_ERR_LIMIT, "at most %d peers of %d bytes each", PEERS_MAX,
                           MR_MAX_ADDRESS_BYTES);
        }
        p->address[p->address_count++] = one;
    }
    if (p->address_count == 0) {
        mr_peer_tables_close(p);
        return mr_fail(err, MR_ERR_ARGUMENT, "no peer to copy cells from");
    }
    p->source = (mr_store_source){.layers = base->layers,
                                  .tables = base->tables,
                                  .facts = base->facts,
                                  .layer_count = base->layer_count,
                                  .table_count = base->table_count,
                                  .context = p,
                                  .cell_check = base_cell_check,
                                  .file = no_file,
                                  .copy = copy,
                                  .again = again,
                                  .base = base};
    *out = p;
    return MR_OK;
}

const mr_store_source *mr_peer_tables_source(const mr_peer_tables *tables) {
    return &tables->source;
}

void mr_peer_tables_close(mr_peer_tables *tables) {
    if (!tables) return;
    mr_link_close(tables->link);
    free(tables->row);
    free(tables->text);
    free(tables);
}
