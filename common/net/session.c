/* session.c - see session.h and the end of fabric.h. */
#include "common/net/session.h"

#include "common/base/limits.h"
#include "common/net/frames.h"
#include "common/net/keys.h"
#include "common/net/link.h"

#include <string.h>

const char *mr_role_name(uint16_t role) {
    static const char *const names[] = {"nobody", "client", "coordinator", "worker", "memshard"};
    return role < sizeof(names) / sizeof(names[0]) ? names[role] : "unknown role";
}

uint16_t mr_version_choose(uint16_t own_min, uint16_t own_max, uint16_t peer_min,
                           uint16_t peer_max) {
    const uint16_t low = own_min > peer_min ? own_min : peer_min;
    const uint16_t high = own_max < peer_max ? own_max : peer_max;
    return low <= high ? high : 0;
}

static bool is_unset(const mr_digest *digest) {
    static const mr_digest none;
    return memcmp(digest, &none, sizeof(none)) == 0;
}

static mr_status refuse_digest(const mr_digest *own, const mr_digest *asked, mr_err *err) {
    char here[MR_DIGEST_TEXT_BYTES], there[MR_DIGEST_TEXT_BYTES];
    mr_digest_text(own, here);
    mr_digest_text(asked, there);
    return mr_fail(err, MR_ERR_MISMATCH,
                   "the model here has digest %.12s..., the one asked for %.12s...", here, there);
}

/* --- the listening side ----------------------------------------------------------------------- */

void mr_session_refuse(mr_link *link, uint64_t request, mr_status status, const char *sentence) {
    const mr_wire_header header = {.type = MR_FRAME_REFUSE, .request = request, .status = status};
    if (link->is_refused) return;
    link->is_refused = true;
    mr_link_send(link, &header, sentence, (uint32_t)strnlen(sentence, MR_ERR_TEXT_BYTES - 1));
}

static mr_status judge(uint16_t *version, const mr_frame *frame, const mr_session_offer *offer,
                       mr_err *err) {
    const mr_wire_hello *hello;
    mr_digest asked;
    const uint16_t own_min = offer->version_max ? offer->version_min : MR_WIRE_VERSION_MIN;
    const uint16_t own_max = offer->version_max ? offer->version_max : MR_WIRE_VERSION;
    if (frame->header->type != MR_FRAME_HELLO)
        return mr_fail(err, MR_ERR_FORMAT, "a %s frame before HELLO",
                       mr_frame_name(frame->header->type));
    const mr_status status = mr_hello_check(&hello, frame, err);
    if (status != MR_OK) return status;
    *version = mr_version_choose(own_min, own_max, hello->version_min, hello->version_max);
    if (*version == 0)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "no common version: this %s speaks %u to %u, the %s asking %u to %u",
                       mr_role_name((uint16_t)offer->role), own_min, own_max,
                       mr_role_name(hello->role), hello->version_min, hello->version_max);
    if (hello->role_wanted != (uint16_t)offer->role)
        return mr_fail(err, MR_ERR_MISMATCH, "this is a %s, not a %s",
                       mr_role_name((uint16_t)offer->role), mr_role_name(hello->role_wanted));
    if (hello->frame_bytes_max < MR_MAX_FRAME_BYTES)
        return mr_fail(
            err, MR_ERR_MISMATCH, "the %s asking takes frames of %u bytes; version %u has %d",
            mr_role_name(hello->role), hello->frame_bytes_max, *version, MR_MAX_FRAME_BYTES);
    memcpy(asked.bytes, hello->digest, sizeof(asked.bytes));
    if (!is_unset(&asked) && memcmp(&asked, &offer->digest, sizeof(asked)) != 0)
        return refuse_digest(&offer->digest, &asked, err);
    return MR_OK;
}

/* The key of a keyed HELLO; key->id is 0 where the session has none. */
static mr_status judge_key(mr_session_key *key, const mr_frame *frame,
                           const mr_session_offer *offer, mr_err *err) {
    const mr_wire_hello *hello = (const void *)frame->payload;
    const char *own = mr_role_name((uint16_t)offer->role);
    uint64_t id;
    *key = (mr_session_key){0};
    if (!(hello->flags & MR_HELLO_KEYED)) {
        if (!offer->keys || !offer->is_key_required) return MR_OK;
        return mr_fail(err, MR_ERR_MISMATCH, "this %s takes keyed sessions only", own);
    }
    if (!offer->keys)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "this %s has no session keys; a keyed session was "
                       "asked for",
                       own);
    memcpy(&id, hello->nonce, sizeof(id));
    if (id == 0 || !mr_keys_find(offer->keys, id, key))
        return mr_fail(err, MR_ERR_STALE, "session key %016llx is not known here, or has expired",
                       (unsigned long long)id);
    if (mr_hello_verify(key, frame->header, hello)) return MR_OK;
    mr_key_wipe(key);
    return mr_fail(err, MR_ERR_MISMATCH, "a HELLO whose MAC is wrong for session key %016llx",
                   (unsigned long long)id);
}

/* From WELCOME on every frame is sealed. */
static mr_status seal_answer(mr_link *reply, mr_wire_welcome *welcome, mr_session_key *key,
                             const mr_frame *frame, mr_err *err) {
    mr_session_key salt;
    if (key->id == 0) return MR_OK;
    const mr_status status = mr_key_make(&salt, err);
    if (status != MR_OK) return status;
    memcpy(welcome->nonce, &key->id, sizeof(key->id));
    memcpy(welcome->nonce + sizeof(key->id), salt.bytes, sizeof(welcome->nonce) - sizeof(key->id));
    reply->seal =
        mr_seal_open(key, frame->header, (const void *)frame->payload, welcome->nonce, true);
    mr_key_wipe(key);
    return reply->seal ? MR_OK : mr_fail(err, MR_ERR_NOMEM, "this build's libcrypto has no GMAC");
}

mr_status mr_session_answer(mr_link *reply, const mr_frame *frame, const mr_session_offer *offer,
                            mr_err *err) {
    uint16_t version = 0;
    const uint64_t request = frame->header->request;
    mr_session_key key = {0};
    mr_status status = judge(&version, frame, offer, err);
    if (status == MR_OK) status = judge_key(&key, frame, offer, err);
    if (status == MR_OK && key.id != 0 && version < 2)
        status = mr_fail(err, MR_ERR_MISMATCH, "a keyed session needs version 2");
    if (status != MR_OK) {
        mr_key_wipe(&key);
        mr_session_refuse(reply, request, status, err->text);
        return status;
    }
    reply->version = version;
    reply->digest = offer->digest;
    reply->grid = (mr_link_grid){offer->grid_rows, offer->grid_columns};
    const mr_wire_header header = {.type = MR_FRAME_WELCOME, .request = request};
    mr_wire_welcome welcome = {
        .version = version,
        .role = (uint16_t)offer->role,
        .frame_bytes_max = MR_MAX_FRAME_BYTES,
        .cell_count = offer->cell_count,
        .grid_rows = offer->grid_rows,
        .grid_columns = offer->grid_columns,
    };
    memcpy(welcome.digest, offer->digest.bytes, sizeof(welcome.digest));
    status = seal_answer(reply, &welcome, &key, frame, err);
    if (status != MR_OK) {
        mr_session_refuse(reply, request, status, err->text);
        return status;
    }
    uint8_t *room = mr_link_begin(reply, &header, (uint32_t)sizeof(welcome) + offer->tail_bytes);
    if (!room) return mr_fail(err, MR_ERR_NOMEM, "no memory for a WELCOME");
    memcpy(room, &welcome, sizeof(welcome));
    if (offer->tail_bytes > 0) memcpy(room + sizeof(welcome), offer->tail, offer->tail_bytes);
    mr_link_end(reply);
    return MR_OK;
}

/* --- the side that connects ------------------------------------------------------------------- */

/* HELLO as it was sent: a keyed session's keys depend on it. */
typedef struct {
    mr_wire_header header;
    mr_wire_hello hello;
} sent_hello;

/* What a keyed HELLO has more: the key's id, a salt and the MAC, which covers all of it. */
static mr_status sign_hello(sent_hello *sent, const mr_session_key *key, mr_err *err) {
    mr_session_key salt;
    const mr_status status = mr_key_make(&salt, err);
    if (status != MR_OK) return status;
    sent->hello.version_min = 2;
    sent->hello.flags = MR_HELLO_KEYED;
    memcpy(sent->hello.nonce, &key->id, sizeof(key->id));
    memcpy(sent->hello.nonce + sizeof(key->id), salt.bytes,
           sizeof(sent->hello.nonce) - sizeof(key->id));
    mr_hello_sign(key, &sent->header, &sent->hello);
    return MR_OK;
}

static mr_status send_hello(sent_hello *sent, mr_link *link, const mr_session_hello *h,
                            int64_t deadline_ns, mr_err *err) {
    const mr_wire_header header = {
        .type = MR_FRAME_HELLO,
        .epoch = (uint64_t)link->grid.rows << 32 | link->grid.columns,
    };
    mr_wire_hello hello = {
        .version_min = MR_WIRE_VERSION_MIN,
        .version_max = MR_WIRE_VERSION,
        .role = (uint16_t)h->role,
        .role_wanted = (uint16_t)h->role_wanted,
        .frame_bytes_max = MR_MAX_FRAME_BYTES,
    };
    memcpy(hello.digest, h->digest.bytes, sizeof(hello.digest));
    sent_hello *room = mr_link_begin(link, &header, sizeof(hello));
    if (!room) return mr_fail(err, MR_ERR_NOMEM, "no memory for a HELLO");
    room = (void *)((uint8_t *)room - sizeof(mr_wire_header));
    memcpy(&sent->header, &room->header, sizeof(sent->header));
    sent->hello = hello;
    const mr_status sealed = link->key ? sign_hello(sent, link->key, err) : MR_OK;
    memcpy(room, sent, sizeof(*sent));
    mr_link_end(link);
    if (sealed != MR_OK) return sealed;
    for (;;) {
        mr_status status = mr_link_flush(link, err);
        if (status != MR_ERR_AGAIN) return status;
        status = mr_links_wait(&link, 1, deadline_ns);
        if (status != MR_OK)
            return mr_fail(err, status, "%s does not take our HELLO", mr_link_peer(link));
    }
}

static mr_status wait_answer(mr_link *link, mr_frame *frame, int64_t deadline_ns, mr_err *err) {
    for (;;) {
        mr_status status = mr_link_receive(link, frame, err);
        if (status != MR_ERR_AGAIN) return status;
        status = mr_links_wait(&link, 1, deadline_ns);
        if (status != MR_OK)
            return mr_fail(err, status, "%s does not answer our HELLO", mr_link_peer(link));
    }
}

static mr_status check_welcome(const mr_frame *frame, const mr_session_hello *h, uint16_t *version,
                               mr_err *err) {
    mr_welcome_view view;
    if (frame->header->type == MR_FRAME_REFUSE) return mr_frame_error(frame, err);
    if (frame->header->type != MR_FRAME_WELCOME)
        return mr_fail(err, MR_ERR_FORMAT, "answered HELLO with a %s frame",
                       mr_frame_name(frame->header->type));
    const mr_status status =
        mr_welcome_check(&view, frame->payload, frame->header->payload_bytes, err);
    if (status != MR_OK) return status;
    const mr_wire_welcome *w = view.fixed;
    if (w->version < MR_WIRE_VERSION_MIN || w->version > MR_WIRE_VERSION)
        return mr_fail(err, MR_ERR_MISMATCH, "chose version %u; this build speaks %d to %d",
                       w->version, MR_WIRE_VERSION_MIN, MR_WIRE_VERSION);
    if (w->role != (uint16_t)h->role_wanted)
        return mr_fail(err, MR_ERR_MISMATCH, "is a %s, not a %s", mr_role_name(w->role),
                       mr_role_name((uint16_t)h->role_wanted));
    if (w->frame_bytes_max < MR_MAX_FRAME_BYTES)
        return mr_fail(err, MR_ERR_MISMATCH, "takes frames of %u bytes; version %u has %d",
                       w->frame_bytes_max, w->version, MR_MAX_FRAME_BYTES);
    mr_digest theirs;
    memcpy(theirs.bytes, w->digest, sizeof(theirs.bytes));
    if (!is_unset(&h->digest) && memcmp(&theirs, &h->digest, sizeof(theirs)) != 0)
        return refuse_digest(&theirs, &h->digest, err);
    *version = w->version;
    return MR_OK;
}

/* A keyed WELCOME has the server's salt, and proves with its MAC that the server has the key. */
static mr_status open_seal(mr_link *link, const sent_hello *sent, const mr_frame *frame,
                           mr_err *err) {
    static const uint8_t none[16];
    const mr_wire_welcome *welcome = (const void *)frame->payload;
    const bool has_mac = frame->header->flags & MR_FRAME_HAS_MAC;
    if (!link->key) {
        if (!has_mac && memcmp(welcome->nonce, none, sizeof(none)) == 0) return MR_OK;
        return mr_fail(err, MR_ERR_FORMAT, "answered a HELLO without a key with a keyed WELCOME");
    }
    if (!has_mac || memcmp(welcome->nonce, &link->key->id, sizeof(link->key->id)) != 0)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "does not speak with our session key %016llx: it may have none",
                       (unsigned long long)link->key->id);
    link->seal = mr_seal_open(link->key, &sent->header, &sent->hello, welcome->nonce, false);
    if (!link->seal) return mr_fail(err, MR_ERR_NOMEM, "this build's libcrypto has no GMAC");
    return mr_seal_check(link->seal, frame, err);
}

mr_status mr_session_open(mr_link *link, const mr_session_hello *hello, int64_t deadline_ns,
                          void *welcome_bytes, size_t room, size_t *bytes, mr_err *err) {
    mr_frame frame;
    sent_hello sent = {0};
    uint16_t version = 0;
    *bytes = 0;
    mr_status status = send_hello(&sent, link, hello, deadline_ns, err);
    if (status != MR_OK) return status;
    status = wait_answer(link, &frame, deadline_ns, err);
    if (status != MR_OK) return status;
    status = check_welcome(&frame, hello, &version, err);
    if (status == MR_OK) status = open_seal(link, &sent, &frame, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "%s", mr_link_peer(link));
    link->version = version;
    *bytes = frame.header->payload_bytes;
    memcpy(welcome_bytes, frame.payload, *bytes < room ? *bytes : room);
    return MR_OK;
}
