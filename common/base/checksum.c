/* checksum.c - see checksum.h. */
#include "common/base/checksum.h"

#include <pthread.h>
#include <string.h>

enum { POLYNOMIAL_WORDS = 8 };
static const uint32_t polynomial = 0x82f63b78u; /* Castagnoli, bits reversed */
static uint32_t table[POLYNOMIAL_WORDS][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void make_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? polynomial : 0);
        table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int w = 1; w < POLYNOMIAL_WORDS; w++)
            table[w][i] = table[w - 1][i] >> 8 ^ table[0][table[w - 1][i] & 255];
}

/* Eight bytes a round, each through a table of its own. */
static uint32_t crc_by_table(uint32_t crc, const uint8_t *data, size_t bytes) {
    pthread_once(&table_once, make_table);
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof(word));
        word ^= crc;
        crc = 0;
        for (int w = 0; w < 8; w++) crc ^= table[7 - w][word >> 8 * w & 255];
    }
    for (; bytes > 0; data++, bytes--) crc = crc >> 8 ^ table[0][(crc ^ *data) & 255];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t
crc_by_instruction(uint32_t crc, const uint8_t *data, size_t bytes) {
    uint64_t sum = crc;
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof(word));
        sum = __builtin_ia32_crc32di(sum, word);
    }
    crc = (uint32_t)sum;
    for (; bytes > 0; data++, bytes--) crc = __builtin_ia32_crc32qi(crc, *data);
    return crc;
}
#endif

uint32_t mr_crc32c(uint32_t crc, const void *data, size_t bytes) {
    crc = ~crc;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return ~crc_by_instruction(crc, data, bytes);
#endif
    return ~crc_by_table(crc, data, bytes);
}

mr_chunk_range mr_chunks_around(const mr_checks *checks, uint64_t first, uint64_t bytes) {
    mr_chunk_range range = {.chunk_first = first / checks->chunk_bytes};
    range.first = range.chunk_first * checks->chunk_bytes;
    range.chunk_count = mr_chunk_count(first + bytes - range.first, checks->chunk_bytes);
    const uint64_t end = (range.chunk_first + range.chunk_count) * checks->chunk_bytes;
    range.bytes = (end < checks->bytes ? end : checks->bytes) - range.first;
    return range;
}

bool mr_chunks_match(const mr_checks *checks, const mr_chunk_range *range, const uint8_t *data,
                     uint64_t *bad) {
    for (uint64_t i = 0; i < range->chunk_count; i++) {
        const uint64_t at = i * checks->chunk_bytes, left = range->bytes - at;
        const size_t bytes = (size_t)(left < checks->chunk_bytes ? left : checks->chunk_bytes);
        if (mr_crc32c(0, data + at, bytes) == checks->crc[range->chunk_first + i]) continue;
        *bad = range->chunk_first + i;
        return false;
    }
    return true;
}
