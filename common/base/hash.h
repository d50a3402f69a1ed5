/* hash.h - SHA-256 (OpenSSL's libcrypto, which uses the processor's instructions). */
#ifndef MR_BASE_HASH_H
#define MR_BASE_HASH_H
#include <stddef.h>
#include <stdint.h>

typedef struct mr_sha256 mr_sha256;
typedef struct {
    uint8_t bytes[32];
} mr_digest;

mr_sha256 *mr_sha256_open(void);
void mr_sha256_add(mr_sha256 *hash, const void *data, size_t bytes);
mr_digest mr_sha256_close(mr_sha256 *hash); /* frees hash */
mr_digest mr_sha256_of(const void *data, size_t bytes);

enum { MR_DIGEST_TEXT_BYTES = 65 };
void mr_digest_text(const mr_digest *digest, char text[MR_DIGEST_TEXT_BYTES]);
int mr_digest_parse(mr_digest *out, const char *text); /* 0 on success, -1 when not 64 hex digits */

#endif
