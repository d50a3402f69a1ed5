/* keys.c - see keys.h. Ciphers and randomness are libcrypto's. */
#include "common/net/keys.h"

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/mem.h"
#include "common/net/frames.h"
#include "common/net/link.h"

#include <assert.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MAC_BYTES = 16, IV_BYTES = 12, FILE_BYTES_MAX = 4096 };

/* --- keys ------------------------------------------------------------------------------------- */

mr_status mr_key_make(mr_session_key *out, mr_err *err) {
    *out = (mr_session_key){0};
    do {
        if (RAND_bytes((unsigned char *)&out->id, sizeof(out->id)) != 1 ||
            RAND_bytes(out->bytes, MR_KEY_BYTES) != 1)
            return mr_fail(err, MR_ERR_IO, "a session key: the system gives no random bytes");
    } while (out->id == 0);
    return MR_OK;
}

void mr_key_wipe(mr_session_key *key) {
    OPENSSL_cleanse(key, sizeof(*key));
}

static void hmac(uint8_t out[32], const uint8_t key[MR_KEY_BYTES], const void *data, size_t bytes) {
    unsigned int length = 0;
    const unsigned char *made = HMAC(EVP_sha256(), key, MR_KEY_BYTES, data, bytes, out, &length);
    assert(made && length == 32);
}

static uint64_t id_of(const uint8_t key[MR_KEY_BYTES]) {
    static const char label[] = "memrack key id";
    uint8_t digest[32];
    uint64_t id;
    hmac(digest, key, label, sizeof(label));
    memcpy(&id, digest, sizeof(id));
    return id ? id : 1;
}

mr_status mr_key_load(mr_session_key *out, const char *path, mr_err *err) {
    char *text;
    size_t bytes;
    mr_digest digits; /* 64 hex digits, as a digest's text */
    *out = (mr_session_key){0};
    const mr_status status = mr_file_read(&text, &bytes, path, FILE_BYTES_MAX, err);
    if (status != MR_OK) return status;
    const size_t before = strspn(text, " \t\r\n"), count = strcspn(text + before, " \t\r\n");
    const bool is_alone = text[before + count + strspn(text + before + count, " \t\r\n")] == '\0';
    text[before + count] = '\0';
    for (char *c = text + before; *c; c++)
        if (*c >= 'A' && *c <= 'F') *c = (char)(*c - 'A' + 'a');
    const bool good = is_alone && mr_digest_parse(&digits, text + before) == 0;
    OPENSSL_cleanse(text, bytes);
    free(text);
    if (!good)
        return mr_fail(err, MR_ERR_FORMAT, "%s: a session key is 64 hex digits and nothing else",
                       path);
    memcpy(out->bytes, digits.bytes, MR_KEY_BYTES);
    out->id = id_of(out->bytes);
    OPENSSL_cleanse(&digits, sizeof(digits));
    return MR_OK;
}

/* --- the store -------------------------------------------------------------------------------- */

typedef struct {
    mr_session_key key;
    int64_t expires_ns;
} entry;

struct mr_keys {
    pthread_mutex_t lock; /* guards all below: sessions are opened rarely and briefly */
    entry *entries;       /* [count], in no order */
    uint32_t count, room;
};

mr_keys *mr_keys_open(void) {
    mr_keys *keys = mr_alloc(sizeof(*keys));
    pthread_mutex_init(&keys->lock, NULL);
    return keys;
}

void mr_keys_close(mr_keys *keys) {
    if (!keys) return;
    if (keys->entries) OPENSSL_cleanse(keys->entries, keys->room * sizeof(entry));
    free(keys->entries);
    pthread_mutex_destroy(&keys->lock);
    free(keys);
}

/* Lock held on entry of these three. */
static void drop_entry(mr_keys *keys, uint32_t index) {
    keys->entries[index] = keys->entries[--keys->count];
    OPENSSL_cleanse(&keys->entries[keys->count], sizeof(entry));
}

static void drop_expired(mr_keys *keys) {
    const int64_t now = mr_now_ns();
    for (uint32_t i = keys->count; i-- > 0;)
        if (keys->entries[i].expires_ns && keys->entries[i].expires_ns <= now) drop_entry(keys, i);
}

static void grow(mr_keys *keys) {
    const uint32_t room = keys->room ? 2 * keys->room : 16;
    entry *entries = mr_alloc_array(room, sizeof(entry));
    if (keys->entries) {
        memcpy(entries, keys->entries, keys->count * sizeof(entry));
        OPENSSL_cleanse(keys->entries, keys->room * sizeof(entry));
    }
    free(keys->entries);
    keys->entries = entries;
    keys->room = room;
}

mr_status mr_keys_add(mr_keys *keys, const mr_session_key *key, int64_t expires_ns, mr_err *err) {
    mr_status status = MR_OK;
    uint32_t at = 0;
    pthread_mutex_lock(&keys->lock);
    drop_expired(keys);
    while (at < keys->count && keys->entries[at].key.id != key->id) at++;
    if (at == MR_MAX_SESSION_KEYS)
        status = mr_fail(err, MR_ERR_LIMIT, "there are %d session keys already; one must expire",
                         MR_MAX_SESSION_KEYS);
    if (status == MR_OK) {
        if (at == keys->room) grow(keys);
        if (at == keys->count) keys->count++;
        keys->entries[at] = (entry){*key, expires_ns};
    }
    pthread_mutex_unlock(&keys->lock);
    return status;
}

void mr_keys_remove(mr_keys *keys, uint64_t id) {
    pthread_mutex_lock(&keys->lock);
    for (uint32_t i = keys->count; i-- > 0;)
        if (keys->entries[i].key.id == id) drop_entry(keys, i);
    pthread_mutex_unlock(&keys->lock);
}

bool mr_keys_find(mr_keys *keys, uint64_t id, mr_session_key *out) {
    bool found = false;
    pthread_mutex_lock(&keys->lock);
    drop_expired(keys);
    for (uint32_t i = 0; i < keys->count && !found; i++) {
        found = keys->entries[i].key.id == id;
        if (found) *out = keys->entries[i].key;
    }
    pthread_mutex_unlock(&keys->lock);
    return found;
}

uint32_t mr_keys_count(mr_keys *keys) {
    pthread_mutex_lock(&keys->lock);
    drop_expired(keys);
    const uint32_t count = keys->count;
    pthread_mutex_unlock(&keys->lock);
    return count;
}

/* --- MACs ------------------------------------------------------------------------------------- */

typedef struct {
    EVP_CIPHER_CTX *cipher; /* keyed once; each frame only sets its IV */
    uint64_t number;        /* of the next frame */
} direction;

struct mr_seal {
    direction out, in;
};

static EVP_CIPHER_CTX *open_cipher(const uint8_t key[32]) {
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    if (!cipher) return NULL;
    if (EVP_EncryptInit_ex(cipher, EVP_aes_256_gcm(), NULL, key, NULL) == 1) return cipher;
    EVP_CIPHER_CTX_free(cipher);
    return NULL;
}

/* GMAC is GCM with nothing to encrypt: all bytes are "additional data". */
static bool make_mac(uint8_t mac[MAC_BYTES], EVP_CIPHER_CTX *cipher, uint64_t number,
                     const mr_wire_header *header, const void *payload) {
    mr_wire_header plain = *header;
    uint8_t iv[IV_BYTES] = {0};
    int done;
    memset(plain.mac, 0, sizeof(plain.mac));
    memcpy(iv + 4, &number, sizeof(number));
    return EVP_EncryptInit_ex(cipher, NULL, NULL, NULL, iv) == 1 &&
           EVP_EncryptUpdate(cipher, NULL, &done, (const uint8_t *)&plain, sizeof(plain)) == 1 &&
           (plain.payload_bytes == 0 ||
            EVP_EncryptUpdate(cipher, NULL, &done, payload, (int)plain.payload_bytes) == 1) &&
           EVP_EncryptFinal_ex(cipher, mac, &done) == 1 &&
           EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, MAC_BYTES, mac) == 1;
}

static bool hello_mac(uint8_t mac[MAC_BYTES], const mr_session_key *key,
                      const mr_wire_header *header, const mr_wire_hello *hello) {
    struct {
        char label[16];
        uint8_t nonce[16];
    } from = {.label = "memrack hello"};
    uint8_t derived[32];
    memcpy(from.nonce, hello->nonce, sizeof(from.nonce));
    hmac(derived, key->bytes, &from, sizeof(from));
    EVP_CIPHER_CTX *cipher = open_cipher(derived);
    OPENSSL_cleanse(derived, sizeof(derived));
    const bool good = cipher && make_mac(mac, cipher, 0, header, hello);
    EVP_CIPHER_CTX_free(cipher);
    return good;
}

void mr_hello_sign(const mr_session_key *key, mr_wire_header *header, const mr_wire_hello *hello) {
    uint8_t mac[MAC_BYTES];
    header->flags |= MR_FRAME_HAS_MAC;
    const bool good = hello_mac(mac, key, header, hello);
    assert(good);
    memcpy(header->mac, mac, sizeof(header->mac));
}

bool mr_hello_verify(const mr_session_key *key, const mr_wire_header *header,
                     const mr_wire_hello *hello) {
    uint8_t mac[MAC_BYTES];
    return (header->flags & MR_FRAME_HAS_MAC) && hello_mac(mac, key, header, hello) &&
           CRYPTO_memcmp(mac, header->mac, MAC_BYTES) == 0;
}

mr_seal *mr_seal_open(const mr_session_key *key, const mr_wire_header *header,
                      const mr_wire_hello *hello, const uint8_t welcome_nonce[16], bool is_server) {
    struct {
        char label[16];
        mr_wire_header header;
        mr_wire_hello hello;
        uint8_t nonce[16];
    } from = {.header = *header, .hello = *hello};
    uint8_t asker[32], server[32];
    memcpy(from.nonce, welcome_nonce, sizeof(from.nonce));
    memcpy(from.label, "memrack asker", 14);
    hmac(asker, key->bytes, &from, sizeof(from));
    memcpy(from.label, "memrack serve", 14);
    hmac(server, key->bytes, &from, sizeof(from));
    mr_seal *seal = mr_alloc(sizeof(*seal));
    seal->out.cipher = open_cipher(is_server ? server : asker);
    seal->in.cipher = open_cipher(is_server ? asker : server);
    OPENSSL_cleanse(asker, sizeof(asker));
    OPENSSL_cleanse(server, sizeof(server));
    if (seal->out.cipher && seal->in.cipher) return seal;
    mr_seal_close(seal);
    return NULL;
}

void mr_seal_close(mr_seal *seal) {
    if (!seal) return;
    EVP_CIPHER_CTX_free(seal->out.cipher);
    EVP_CIPHER_CTX_free(seal->in.cipher);
    free(seal);
}

void mr_seal_sign(mr_seal *seal, mr_wire_header *header, const void *payload) {
    uint8_t mac[MAC_BYTES];
    header->flags |= MR_FRAME_HAS_MAC;
    const bool good = make_mac(mac, seal->out.cipher, seal->out.number++, header, payload);
    assert(good);
    memcpy(header->mac, mac, sizeof(header->mac));
}

mr_status mr_seal_check(mr_seal *seal, const mr_frame *frame, mr_err *err) {
    uint8_t mac[MAC_BYTES];
    const mr_wire_header *header = frame->header;
    if (!(header->flags & MR_FRAME_HAS_MAC))
        return mr_fail(err, MR_ERR_FORMAT, "a %s frame without a MAC in a keyed session",
                       mr_frame_name(header->type));
    if (!make_mac(mac, seal->in.cipher, seal->in.number, header, frame->payload))
        return mr_fail(err, MR_ERR_NOMEM, "a MAC could not be computed");
    if (CRYPTO_memcmp(mac, header->mac, MAC_BYTES) != 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "a %s frame whose MAC is wrong: changed, repeated, out of order or made "
                       "with another key",
                       mr_frame_name(header->type));
    seal->in.number++;
    return MR_OK;
}

/* --- links ------------------------------------------------------------------------------------ */

void mr_link_set_key(mr_link *link, const mr_session_key *key) {
    if (link->key) {
        mr_key_wipe(link->key);
        free(link->key);
        link->key = NULL;
    }
    if (!key) return;
    link->key = mr_alloc(sizeof(*link->key));
    *link->key = *key;
}

bool mr_link_is_keyed(const mr_link *link) {
    return link->seal != NULL;
}
