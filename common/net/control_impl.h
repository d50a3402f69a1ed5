/* control_impl.h - messages of the control service as bytes and back; see control.h.
 *
 * Unpacked structs borrow from an mr_message, which holds what protobuf-c made of the bytes.
 * Unpacking checks everything; what it fills is within all limits. */
#ifndef MR_NET_CONTROL_IMPL_H
#define MR_NET_CONTROL_IMPL_H
#include "common/net/control.h"

#define MR_CONTROL_PATH "/memrack.control.Member/"
#define MR_GATEWAY_PATH "/memrack.control.Gateway/Generate"
enum { MR_CONTROL_MESSAGE_BYTES = 24 << 20 };

typedef struct {
    void *root;     /* of protobuf-c, or NULL */
    void *extra[2]; /* arrays of ours */
} mr_message;
void mr_message_free(mr_message *m);

typedef struct {
    uint8_t *data; /* owned */
    size_t bytes;
} mr_packed;

mr_packed mr_pack_empty(void);
mr_packed mr_pack_join(const char *cluster, const char *leader, uint64_t leader_epoch);
mr_status mr_unpack_join(mr_message *m, const char **cluster, const char **leader,
                         uint64_t *leader_epoch, const uint8_t *data, size_t bytes, mr_err *err);
mr_packed mr_pack_join_reply(const char *member);
mr_status mr_unpack_join_reply(mr_member **member, const uint8_t *data, size_t bytes, mr_err *err);

mr_packed mr_pack_load(const mr_control_load_order *order);
mr_status mr_unpack_load(mr_message *m, mr_control_load_order *order, const uint8_t *data,
                         size_t bytes, mr_err *err);
mr_packed mr_pack_progress(const char *what, double fraction, bool is_ready);
mr_status mr_unpack_progress(char what[MR_CONTROL_TEXT_BYTES], double *fraction, bool *is_ready,
                             const uint8_t *data, size_t bytes, mr_err *err);

mr_packed mr_pack_unload(const mr_control_unload_order *order);
mr_status mr_unpack_unload(mr_message *m, mr_control_unload_order *order, const uint8_t *data,
                           size_t bytes, mr_err *err);
mr_packed mr_pack_drain(const mr_drain_order *order);
mr_status mr_unpack_drain(mr_drain_order *order, const uint8_t *data, size_t bytes, mr_err *err);
mr_status mr_unpack_empty(const uint8_t *data, size_t bytes, mr_err *err);

mr_packed mr_pack_status(const mr_control_status *status, const char *member);
mr_status mr_unpack_status(mr_control_status *out, mr_member **member, const uint8_t *data,
                           size_t bytes, mr_err *err);
mr_packed mr_pack_key_request(mr_role role, const char *id);
mr_status mr_unpack_key_request(mr_message *m, mr_role *role, const char **id, const uint8_t *data,
                                size_t bytes, mr_err *err);
mr_packed mr_pack_key(const mr_control_key *key);
mr_status mr_unpack_key(mr_control_key *out, const uint8_t *data, size_t bytes, mr_err *err);

mr_packed mr_pack_generation(const mr_generation *g);
mr_status mr_unpack_generation(mr_message *m, mr_generation *g, const uint8_t *data, size_t bytes,
                               mr_err *err);
mr_packed mr_pack_event(const mr_generation_event *event);
/* answers: of the generation. */
mr_status mr_unpack_event(mr_generation_event *out, uint32_t answers, const uint8_t *data,
                          size_t bytes, mr_err *err);

const char *mr_control_role_name(mr_role role); /* "worker"; "" for none */

#endif
