/* checksum.h - CRC32C (Castagnoli), and checksums of a file's tensor in chunks of one size.
 *
 * Against rot, torn files and wrong bytes of a server, not against an enemy: a model's identity is
 * the SHA-256 digest of its manifest. Uses the processor's instruction where there is one. */
#ifndef MR_BASE_CHECKSUM_H
#define MR_BASE_CHECKSUM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Start with 0; a running value may be fed again: crc(crc(0, a), b) = crc(0, ab). */
uint32_t mr_crc32c(uint32_t crc, const void *data, size_t bytes);

enum { MR_CHUNK_BYTES = 1 << 20 };

/* Chunk i is bytes [i * chunk_bytes, ..) of a tensor of `bytes` bytes; the last may be short. */
typedef struct {
    const uint32_t *crc; /* [mr_chunk_count(bytes, chunk_bytes)], borrowed; NULL: not known */
    uint64_t bytes;
    uint32_t chunk_bytes;
} mr_checks;

static inline uint64_t mr_chunk_count(uint64_t bytes, uint32_t chunk_bytes) {
    return bytes / chunk_bytes + (bytes % chunk_bytes != 0);
}

/* A range widened to whole chunks, within the tensor; first + bytes <= checks->bytes. */
typedef struct {
    uint64_t first, bytes;             /* of the tensor */
    uint64_t chunk_first, chunk_count; /* that cover it */
} mr_chunk_range;
mr_chunk_range mr_chunks_around(const mr_checks *checks, uint64_t first, uint64_t bytes);

/* data: the bytes of range. true: all good; else *bad is the first chunk that is not. */
bool mr_chunks_match(const mr_checks *checks, const mr_chunk_range *range, const uint8_t *data,
                     uint64_t *bad);

#endif
