/* hash.c - SHA-256 by libcrypto: a hash function is not ours to write. */
#include "common/base/hash.h"

#include "common/base/mem.h"

#include <assert.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

struct mr_sha256 {
    EVP_MD_CTX *context;
};

mr_sha256 *mr_sha256_open(void) {
    mr_sha256 *hash = mr_alloc(sizeof(*hash));
    hash->context = EVP_MD_CTX_new();
    assert(hash->context && EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) == 1);
    return hash;
}

void mr_sha256_add(mr_sha256 *hash, const void *data, size_t bytes) {
    const int ok = EVP_DigestUpdate(hash->context, data, bytes);
    assert(ok == 1);
}

mr_digest mr_sha256_close(mr_sha256 *hash) {
    mr_digest digest;
    const int ok = EVP_DigestFinal_ex(hash->context, digest.bytes, NULL);
    assert(ok == 1);
    EVP_MD_CTX_free(hash->context);
    free(hash);
    return digest;
}

mr_digest mr_sha256_of(const void *data, size_t bytes) {
    mr_sha256 *hash = mr_sha256_open();
    mr_sha256_add(hash, data, bytes);
    return mr_sha256_close(hash);
}

void mr_digest_text(const mr_digest *digest, char text[MR_DIGEST_TEXT_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof(digest->bytes); i++) {
        text[2 * i] = digits[digest->bytes[i] >> 4];
        text[2 * i + 1] = digits[digest->bytes[i] & 15];
    }
    text[64] = '\0';
}

static int nibble(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

int mr_digest_parse(mr_digest *out, const char *text) {
    if (strlen(text) != 64) return -1;
    for (size_t i = 0; i < 32; i++) {
        const int high = nibble(text[2 * i]), low = nibble(text[2 * i + 1]);
        if (high < 0 || low < 0) return -1;
        out->bytes[i] = (uint8_t)(high * 16 + low);
    }
    return 0;
}
