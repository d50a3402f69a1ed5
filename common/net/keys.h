/* keys.h - keyed sessions: who may open one, and a MAC on every frame of it.
 *
 * A session key is 32 bytes and an id that both sides know: handed out over the control channel
 * (Member.SessionKey of control.proto, mutual TLS), or the same file on both sides. HELLO states
 * the id and a salt of the asker and carries a MAC under the key; WELCOME brings the server's salt.
 * From both salts each direction gets a key of its own:
 *
 *   HELLO        key = HMAC-SHA256(session key, "memrack hello" | nonce), IV 0
 *   each way     key = HMAC-SHA256(session key, direction | HELLO as sent | WELCOME's nonce),
 *                IV = number of the frame in its direction, from 0 (WELCOME is the server's first)
 *   MAC          AES-256-GMAC, 16 bytes, over the header with mac zero, then the payload
 *
 * The number is not sent: a frame that is flipped, replayed, put out of order or left out does not
 * verify, and the link ends. Frames are authenticated, not hidden. A key that expires ends no
 * session; it opens no new one. No key ever reaches a log or a sentence; ids may.
 * Threads: a store may be used from any thread; a seal belongs to its link. */
#ifndef MR_NET_KEYS_H
#define MR_NET_KEYS_H
#include "common/net/fabric.h"

enum { MR_KEY_BYTES = 32, MR_MAX_SESSION_KEYS = 4096 };

typedef struct mr_session_key {
    uint64_t id;
    uint8_t bytes[MR_KEY_BYTES];
} mr_session_key;

/* A fresh random key with a random id that is not 0. MR_ERR_IO: no randomness to be had. */
mr_status mr_key_make(mr_session_key *out, mr_err *err);
/* Reads 64 hex digits (blanks around them are fine); the id is derived from the key, so that two
 * processes with the same file agree. */
mr_status mr_key_load(mr_session_key *out, const char *path, mr_err *err);
void mr_key_wipe(mr_session_key *key);

/* Every later mr_session_open on this link is keyed with it; NULL: not keyed. Copied, and wiped
 * with the link. */
void mr_link_set_key(mr_link *link, const mr_session_key *key);
bool mr_link_is_keyed(const mr_link *link); /* its session is open and carries MACs */

/* --- the listening side's store --------------------------------------------------------------- */

typedef struct mr_keys mr_keys;

mr_keys *mr_keys_open(void);
void mr_keys_close(mr_keys *keys); /* NULL is fine */
/* expires_ns: on mr_now_ns()'s clock, 0: never. A key of the same id is replaced. MR_ERR_LIMIT when
 * MR_MAX_SESSION_KEYS are there that have not expired. */
mr_status mr_keys_add(mr_keys *keys, const mr_session_key *key, int64_t expires_ns, mr_err *err);
void mr_keys_remove(mr_keys *keys, uint64_t id);
bool mr_keys_find(mr_keys *keys, uint64_t id, mr_session_key *out); /* false: none, or expired */
uint32_t mr_keys_count(mr_keys *keys);                              /* that have not expired */

/* --- for session.c and fabric.c --------------------------------------------------------------- */

typedef struct mr_seal mr_seal; /* MACs of one side of one session */

void mr_hello_sign(const mr_session_key *key, mr_wire_header *header, const mr_wire_hello *hello);
bool mr_hello_verify(const mr_session_key *key, const mr_wire_header *header,
                     const mr_wire_hello *hello);
/* NULL when the cipher cannot be had. */
mr_seal *mr_seal_open(const mr_session_key *key, const mr_wire_header *header,
                      const mr_wire_hello *hello, const uint8_t welcome_nonce[16], bool is_server);
void mr_seal_close(mr_seal *seal); /* NULL is fine */
/* Flags the next frame sent and puts its MAC into the header. */
void mr_seal_sign(mr_seal *seal, mr_wire_header *header, const void *payload);
/* The next frame received. */
mr_status mr_seal_check(mr_seal *seal, const mr_frame *frame, mr_err *err);

#endif
