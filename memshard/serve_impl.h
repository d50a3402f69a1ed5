/* serve_impl.h - a memshard's parts, shared by the files that serve requests only.
 *
 * serve.c takes frames and answers them, serve_pool.c does RETRIEVE, topk.c does TOPK. A request in
 * work has a seat: room that grows to the largest request and is kept. */
#ifndef MR_MEMSHARD_SERVE_IMPL_H
#define MR_MEMSHARD_SERVE_IMPL_H
#include "common/model/product_keys.h"
#include "common/net/frames.h"
#include "memshard/serve.h"

#include <stdatomic.h>

enum { MR_SEATS = 64, MR_SEAT_BYTES_MAX = 1 << 29 };

typedef struct {
    atomic_bool is_taken;
    void *memory;
    size_t bytes;
    mr_fetch_scratch fetched[2]; /* values, pre-values */
} mr_seat;

struct mr_memshard {
    const mr_ops *ops;
    mr_team *team; /* borrowed; NULL: the calling thread alone */
    mr_store_source source;
    mr_store store;
    uint64_t bytes;
    mr_product_keys *keys;          /* [layer_count], all of them; or NULL */
    _Atomic int64_t quiet_until_ns; /* refusals are logged once a second at most */
    mr_seat seats[MR_SEATS];
    mr_model_tables *tables; /* owned; NULL when the source is the caller's */
};

/* One request, resolved: everything points into the frame, the seat, the model or the store. */
typedef struct {
    mr_retrieve_view view;
    const mr_memory_layer *layer;
    const mr_table_shape *table;
    const mr_table_facts *facts;
    const mr_cell *cell;
    uint32_t core_columns;
    uint32_t answer_bytes;
    mr_rows values, pre_values; /* what to compute with, */
    const uint32_t *value_row;  /* and the ids in there, [entries] */
    const uint32_t *pre_row;
} mr_request;

/* Asked for with what came: the frame's header and where the answer goes. */
typedef struct {
    mr_memshard *shard;
    mr_seat *seat;
    mr_link *reply;
    const mr_wire_header *header;
} mr_asked;

/* Room for one request, contents undefined; NULL and a sentence when there is none. */
void *mr_seat_room(mr_seat *seat, size_t bytes, mr_err *err);
/* Begins the answer: all that may be refused was done before, but for rows that go bad under the
 * arithmetic: end takes that answer back. */
void *mr_answer_begin(const mr_asked *asked, uint16_t type, uint32_t bytes, mr_err *err);
mr_status mr_answer_end(const mr_asked *asked, const mr_request *q, mr_err *err);

/* Layer, table and, unless cell is MR_NO_CELL, the cell. */
#define MR_NO_CELL UINT32_MAX
mr_status mr_request_find(mr_request *q, const mr_asked *asked, uint32_t layer, uint32_t cell,
                          mr_err *err);
/* The cores whose columns the cell has: those weights are sent for. */
mr_status mr_request_cores(const mr_request *q, uint16_t *first, uint16_t *count, mr_err *err);

/* The rows a request needs, from wherever its cell keeps them. */
mr_status mr_request_fetch(mr_request *q, mr_seat *seat, bool values, bool pre_values, mr_err *err);
/* One trip: x gets its scale, the dots become gates, the gates and scores weights, in room. */
size_t mr_gate_bytes(const mr_wire_retrieve *f);
mr_status mr_request_gate(const mr_memshard *shard, const mr_request *q, void *room,
                          const float **weight, mr_err *err);
mr_status mr_request_check_sums(const mr_request *q, const float *weight, mr_err *err);
void mr_request_pool(const mr_memshard *shard, const mr_request *q, const float *weight, void *sums,
                     size_t bytes);

mr_status mr_answer_retrieve(const mr_asked *asked, mr_request *q, mr_err *err);
mr_status mr_answer_topk(const mr_asked *asked, const mr_topk_view *view, mr_err *err);

#endif
