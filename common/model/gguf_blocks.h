/* gguf_blocks.h - the block formats of GGUF tensors and their values as floats.
 *
 * A row of a tensor is a whole number of blocks; a block holds a fixed number of elements in a
 * fixed number of bytes, little endian. Decoding is what the format means, exactly: every product
 * of scale and code fits a float, and where a minimum is subtracted it is rounded once. */
#ifndef MR_MODEL_GGUF_BLOCKS_H
#define MR_MODEL_GGUF_BLOCKS_H
#include <stdint.h>

enum { /* numbers of the types that are named elsewhere */
       MR_BLOCK_F32 = 0,
       MR_BLOCK_F16 = 1,
       MR_BLOCK_Q4_0 = 2,
       MR_BLOCK_Q8_0 = 8,
       MR_BLOCK_BF16 = 30,
       MR_BLOCK_ELEMENTS_MAX = 256,
       MR_BLOCK_BYTES_MAX = 292
};

typedef struct {
    uint32_t type; /* number in the file */
    const char *name;
    uint32_t elements, bytes;                         /* of a block */
    void (*decode)(float *out, const uint8_t *block); /* NULL: known by name only */
} mr_block_format;

const mr_block_format *mr_block_find(uint32_t type); /* NULL: no such type is known */
/* out: [count * format->elements]; format->decode is there. */
void mr_block_decode(float *out, const mr_block_format *format, const uint8_t *blocks,
                     uint64_t count);

float mr_block_half(const uint8_t *at); /* the f16 at these two bytes */

#endif
