/* random_fill.h - random numbers by position: element i of a tensor is a function of (seed, name,
 * i).
 *
 * Philox4x32-10 keyed by the seed, with the tensor's name and the element's block as counter, so
 * that any thread, order or chunk gives the same bytes. Only integer arithmetic, one table and one
 * fused order of float operations: the same bytes on every machine. */
#ifndef MR_MODEL_RANDOM_FILL_H
#define MR_MODEL_RANDOM_FILL_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t key[2];  /* seed */
    uint32_t name[2]; /* hash of the tensor's name */
} mr_random;

mr_random mr_random_for(uint64_t seed, const char *name);
void mr_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* out[i] = mean + spread * z(first + i); z follows the standard normal distribution, cut at 4.06.
 * */
void mr_random_normal(float *out, const mr_random *random, uint64_t first, size_t count, float mean,
                      float spread);

/* out[i] = image of first + i under a random permutation of 0 .. side^2 - 1; side < 2^32.
 * A Feistel network over pairs (a, b) of numbers below side, so nothing has to be stored. */
void mr_random_permutation(int64_t *out, const mr_random *random, uint64_t side, uint64_t first,
                           size_t count);

#endif
