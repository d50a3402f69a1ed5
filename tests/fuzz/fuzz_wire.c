/* fuzz_wire.c - any bytes on the data plane: cut into frames, checked, answered or refused.
 *
 * The first byte says how the rest is taken:
 *   0  bytes of a connection: through a socket in pieces, every frame through its checker
 *   1  one frame: u16 type, i32 status, then its payload, in memory of exactly its size
 *   2  the payload of a RETRIEVE, given to a small memshard
 *   3  the payload of a HELLO, answered as a memshard would
 *   4  a static registry file
 *   5  the payload of a TOPK; what it is answered with is laid out for the layer that follows it
 * What is refused must come with a sentence; what is answered must have the size that was asked. */
#include "common/base/log.h"
#include "common/net/frames.h"
#include "common/net/registry.h"
#include "common/net/session.h"
#include "memshard/serve.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { ROWS = 64, WIDTH = 12, PRE = 4, LAYERS = 2 };

/* --- a memshard of two tables: plain with two cores and four slots; gated
 * --------------------------- */

static float values[2][ROWS * WIDTH], pre_values[ROWS * PRE];

static mr_status map_memory(const void *context, mr_mapping *out, uint32_t table, bool pre,
                            uint64_t first, uint64_t bytes, mr_err *err) {
    (void)context, (void)bytes, (void)err;
    const float *from = pre ? pre_values : values[table];
    *out = (mr_mapping){.data = (const uint8_t *)from + first};
    return MR_OK;
}

static const mr_table_shape plain_table = {.rows = ROWS, .width = WIDTH, .storage = {MR_F32, 0}};
static const mr_table_shape gated_table = {.rows = ROWS,
                                           .width = WIDTH,
                                           .pre_width = PRE,
                                           .storage = {MR_F32, 0},
                                           .pre_storage = {MR_F32, 0}};
static const mr_table_facts facts[2] = {
    {.value_max = 1, .value_rms = 1, .accumulator_bits = 32},
    {.value_max = 1, .value_rms = 1, .pre_norm_max = 2, .accumulator_bits = 64}};
static const mr_memory_layer plain_layer = {.table = 0, .cores = 2, .slots = 4, .slots_out = 4};
static const mr_memory_layer gated_layer = {
    .table = 1, .cores = 1, .slots = 1, .slots_out = 1, .gated = true, .gelu = true};
static const mr_table_shape *const tables[2] = {&plain_table, &gated_table};
static const mr_memory_layer *const layers[LAYERS] = {&plain_layer, &gated_layer};

static mr_memshard *open_shard(void) {
    static const mr_store_source source = {.layers = layers,
                                           .tables = tables,
                                           .facts = facts,
                                           .layer_count = LAYERS,
                                           .table_count = 2,
                                           .map = map_memory};
    mr_memshard *shard;
    mr_err err;
    mr_log_setup("fuzz", MR_LOG_ERROR, 1);
    for (int i = 0; i < ROWS * WIDTH; i++)
        values[0][i] = values[1][i] = (float)(i % 17) / 16 - 0.5f;
    for (int i = 0; i < ROWS * PRE; i++) pre_values[i] = (float)(i % 7) / 8;
    const mr_status status =
        mr_memshard_open_source(&shard, &source, NULL, (mr_grid){2, 1}, 0, 1, &err);
    assert(status == MR_OK);
    return shard;
}

/* --- one frame, in memory of its own size
 * ----------------------------------------------------------- */

typedef struct {
    mr_wire_header header;
    uint8_t *payload;
    mr_frame frame;
} exact_frame;

static void make_frame(exact_frame *f, uint16_t type, int32_t status, const uint8_t *data,
                       size_t bytes) {
    if (bytes > MR_MAX_FRAME_BYTES) bytes = MR_MAX_FRAME_BYTES;
    f->header = (mr_wire_header){.magic = MR_WIRE_MAGIC,
                                 .version = MR_WIRE_VERSION,
                                 .type = type,
                                 .payload_bytes = (uint32_t)bytes,
                                 .request = 9,
                                 .status = status};
    f->payload = malloc(bytes ? bytes : 1);
    assert(f->payload);
    if (bytes > 0) memcpy(f->payload, data, bytes);
    f->frame = (mr_frame){&f->header, f->payload};
}

static void check(const mr_frame *frame) {
    mr_err err = {{0}};
    if (mr_frame_check(frame, &err) != MR_OK) assert(strlen(err.text) > 0);
}

typedef struct {
    mr_frame_handler handler;
    void *context;
    const mr_frame *frame;
} substitute;

/* The link's own frame is only the occasion: the handler gets the one of exact size. */
static void hand_over(void *context, mr_link *reply, const mr_frame *occasion) {
    const substitute *s = context;
    (void)occasion;
    s->handler(s->context, reply, s->frame);
}

/* Runs a handler on a frame and takes its one answer. */
static void answer(mr_frame_handler handler, void *context, const mr_frame *frame,
                   uint16_t expected_type, uint32_t expected_bytes) {
    substitute s = {handler, context, frame};
    mr_link *link = mr_link_loop(hand_over, &s, "peer");
    mr_frame got;
    mr_err err = {{0}};
    mr_link_send(link, &(mr_wire_header){.type = MR_FRAME_PING}, NULL, 0);
    mr_status status = mr_link_flush(link, &err);
    assert(status == MR_OK);
    status = mr_link_receive(link, &got, &err);
    assert(status == MR_OK && got.header->request == 9);
    check(&got);
    if (got.header->type == MR_FRAME_ERROR || got.header->type == MR_FRAME_REFUSE) {
        status = mr_frame_error(&got, &err);
        assert(status != MR_OK && strlen(err.text) > 0);
    } else if (expected_type != 0) {
        assert(mr_answer_check(&got, expected_type, expected_bytes, &err) == MR_OK);
    }
    assert(mr_link_receive(link, &got, &err) == MR_ERR_AGAIN);
    mr_link_close(link);
}

/* --- the five ways
 * ---------------------------------------------------------------------------------- */

static void take_connection(const uint8_t *data, size_t bytes) {
    int fds[2];
    mr_frame frame;
    mr_err err;
    if (bytes < 1 || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return;
    const size_t piece = 1 + data[0] * 4u;
    mr_link *link = mr_link_from_fd(fds[0], "peer");
    mr_status status = MR_ERR_AGAIN;
    for (size_t at = 1; at < bytes && status == MR_ERR_AGAIN; at += piece) {
        const size_t count = bytes - at < piece ? bytes - at : piece;
        if (write(fds[1], data + at, count) != (ssize_t)count) break;
        memset(&err, 0, sizeof(err));
        while ((status = mr_link_receive(link, &frame, &err)) == MR_OK) {
            assert((uintptr_t)frame.payload % 8 == 0);
            check(&frame);
        }
    }
    if (status != MR_ERR_AGAIN) assert(strlen(err.text) > 0);
    mr_link_close(link);
    close(fds[1]);
}

static void take_retrieve(const uint8_t *data, size_t bytes) {
    static mr_memshard *shard;
    exact_frame f;
    mr_retrieve_view view;
    uint32_t answer_bytes = 0;
    uint16_t type = 0;
    mr_err err;
    if (!shard) shard = open_shard();
    make_frame(&f, MR_FRAME_RETRIEVE, 0, data, bytes);
    if (mr_retrieve_check(&view, &f.frame, &err) == MR_OK &&
        mr_retrieve_answer_bytes(&answer_bytes, view.fixed, WIDTH, WIDTH * sizeof(float), &err) ==
            MR_OK)
        type = mr_retrieve_answer_type(view.fixed);
    answer(mr_memshard_handle, shard, &f.frame, type, answer_bytes);
    free(f.payload);
}

static void answer_session(void *context, mr_link *reply, const mr_frame *frame) {
    mr_err err = {{0}};
    if (mr_session_answer(reply, frame, context, &err) != MR_OK) assert(strlen(err.text) > 0);
}

static void take_hello(const uint8_t *data, size_t bytes) {
    static const mr_wire_cell cell = {1};
    mr_session_offer offer = {.role = MR_ROLE_MEMSHARD,
                              .digest = {{1, 2}},
                              .tail = &cell,
                              .tail_bytes = sizeof(cell),
                              .cell_count = 1,
                              .grid_rows = 2,
                              .grid_columns = 1};
    exact_frame f;
    make_frame(&f, MR_FRAME_HELLO, 0, data, bytes);
    answer(answer_session, &offer, &f.frame, MR_FRAME_WELCOME,
           sizeof(mr_wire_welcome) + sizeof(cell));
    free(f.payload);
}

/* Offsets that are laid out lie in order within the frame. */
static void take_topk(const uint8_t *data, size_t bytes) {
    uint32_t layer[4];
    mr_topk_answer_layout at;
    mr_topk_view view;
    exact_frame f;
    mr_err err = {{0}};
    if (bytes < sizeof(layer)) return;
    memcpy(layer, data, sizeof(layer));
    make_frame(&f, MR_FRAME_TOPK, 0, data + sizeof(layer), bytes - sizeof(layer));
    if (mr_topk_check(&view, &f.frame, &err) == MR_OK) {
        const uint32_t tokens = view.fixed->tokens;
        if (mr_chosen_lay_out(&at, tokens, layer[0], layer[1], layer[2], &err) == MR_OK)
            assert(at.bytes <= MR_MAX_FRAME_BYTES && at.row <= at.score && at.slot <= at.score &&
                   at.score <= at.index && at.index <= at.bytes);
        if (view.fixed->wants == MR_TOPK_POOLED &&
            mr_topk_pooled_lay_out(&at, view.fixed, layer[2], layer[3], &err) == MR_OK)
            assert(at.value_exponent + 2ull * tokens <= at.bytes && at.bytes <= MR_MAX_FRAME_BYTES);
    } else {
        assert(strlen(err.text) > 0);
    }
    free(f.payload);
}

static void take_registry(const uint8_t *data, size_t bytes) {
    mr_registry registry;
    mr_err err = {{0}};
    if (mr_registry_parse(&registry, (const char *)data, bytes, "input", &err) != MR_OK)
        assert(strlen(err.text) > 0);
    mr_registry_free(&registry);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    exact_frame f;
    uint16_t type;
    int32_t status;
    if (bytes < 1) return 0;
    const uint8_t way = *data++;
    bytes--;
    switch (way) {
    case 0:
        take_connection(data, bytes);
        break;
    case 1:
        if (bytes < sizeof(type) + sizeof(status)) return 0;
        memcpy(&type, data, sizeof(type));
        memcpy(&status, data + sizeof(type), sizeof(status));
        make_frame(&f, type, status, data + 6, bytes - 6);
        check(&f.frame);
        free(f.payload);
        break;
    case 2:
        take_retrieve(data, bytes);
        break;
    case 3:
        take_hello(data, bytes);
        break;
    case 4:
        take_registry(data, bytes);
        break;
    case 5:
        take_topk(data, bytes);
        break;
    default:
        break;
    }
    return 0;
}
