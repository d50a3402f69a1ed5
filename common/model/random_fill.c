/* random_fill.c - see random_fill.h.
 *
 * Normal numbers come from one 32-bit word each: the upper 12 bits choose one of 4096 equally
 * likely intervals of the normal distribution, the lower 20 the place inside it. That is a table of
 * 16 KiB instead of a logarithm and a cosine per number: filling a table of 20 billion elements is
 * then bound by the disk. */
#include "common/model/random_fill.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

enum { QUANTILES = 4096, FEISTEL_ROUNDS = 6, BATCH = 4 };

static float quantile[QUANTILES + 1];
static pthread_once_t quantile_once = PTHREAD_ONCE_INIT;

/* Normal quantile by bisection on erfc: slow, exact to the last float bit, done 2048 times. */
static double quantile_of(double p) {
    double low = -9, high = 0;
    for (int i = 0; i < 60; i++) {
        const double middle = 0.5 * (low + high);
        if (0.5 * erfc(-middle * 0.70710678118654752440) < p)
            low = middle;
        else
            high = middle;
    }
    return 0.5 * (low + high);
}

static void fill_quantiles(void) {
    quantile[0] = (float)quantile_of(2.5e-5); /* beyond 4.06 the tail is cut; its mean stays */
    for (int i = 1; i < QUANTILES / 2; i++) quantile[i] = (float)quantile_of(i / (double)QUANTILES);
    quantile[QUANTILES / 2] = 0;
    for (int i = 0; i < QUANTILES / 2; i++) quantile[QUANTILES - i] = -quantile[i];
}

mr_random mr_random_for(uint64_t seed, const char *name) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
    return (mr_random){{(uint32_t)seed, (uint32_t)(seed >> 32)},
                       {(uint32_t)hash, (uint32_t)(hash >> 32)}};
}

/* BATCH generators side by side, so that the compiler can use vectors. */
static void philox_batch(uint32_t out[4][BATCH], const uint32_t key_in[2]) {
    uint32_t key[2] = {key_in[0], key_in[1]};
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < BATCH; i++) {
            const uint64_t p0 = (uint64_t)0xD2511F53u * out[0][i];
            const uint64_t p1 = (uint64_t)0xCD9E8D57u * out[2][i];
            const uint32_t x1 = out[1][i], x3 = out[3][i];
            out[0][i] = (uint32_t)(p1 >> 32) ^ x1 ^ key[0];
            out[1][i] = (uint32_t)p1;
            out[2][i] = (uint32_t)(p0 >> 32) ^ x3 ^ key[1];
            out[3][i] = (uint32_t)p0;
        }
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
}

void mr_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t lanes[4][BATCH];
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < BATCH; i++) lanes[j][i] = counter[j];
    philox_batch(lanes, key);
    for (int j = 0; j < 4; j++) out[j] = lanes[j][0];
}

/* words[16]: those of elements 16 * batch .. 16 * batch + 15. */
static void words_of(uint32_t words[4 * BATCH], const mr_random *random, uint64_t batch) {
    uint32_t lanes[4][BATCH];
    for (int i = 0; i < BATCH; i++) {
        const uint64_t block = batch * BATCH + (uint64_t)i;
        lanes[0][i] = (uint32_t)block;
        lanes[1][i] = (uint32_t)(block >> 32);
        lanes[2][i] = random->name[0];
        lanes[3][i] = random->name[1];
    }
    philox_batch(lanes, random->key);
    memcpy(words, lanes, sizeof(lanes));
}

static float normal_of(uint32_t word) {
    const uint32_t interval = word >> 20;
    const float part = (float)(word & 0xfffffu) * 0x1p-20f;
    const float low = quantile[interval];
    return low + (quantile[interval + 1] - low) * part;
}

void mr_random_normal(float *out, const mr_random *random, uint64_t first, size_t count, float mean,
                      float spread) {
    enum { STEP = 4 * BATCH };
    uint32_t words[STEP];
    pthread_once(&quantile_once, fill_quantiles);
    for (size_t done = 0; done < count;) {
        const uint64_t at = first + done;
        const size_t skip = (size_t)(at % STEP);
        const size_t take = count - done < STEP - skip ? count - done : STEP - skip;
        words_of(words, random, at / STEP);
        for (size_t i = 0; i < take; i++)
            out[done + i] = mean + spread * normal_of(words[skip + i]);
        done += take;
    }
}

static uint64_t mix(uint64_t x) { /* splitmix64's finisher */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* (a, b) -> (b, a + F(b) mod side) is one-to-one whatever F is; Philox only gives F its keys. */
void mr_random_permutation(int64_t *out, const mr_random *random, uint64_t side, uint64_t first,
                           size_t count) {
    uint64_t key[FEISTEL_ROUNDS];
    for (uint32_t round = 0; round < FEISTEL_ROUNDS; round++) {
        const uint32_t counter[4] = {round, 0, random->name[0], random->name[1]};
        uint32_t words[4];
        mr_philox(words, counter, random->key);
        key[round] = (uint64_t)words[0] << 32 | words[1];
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t a = (first + i) / side, b = (first + i) % side;
        for (int round = 0; round < FEISTEL_ROUNDS; round++) {
            const uint64_t next = (a + mix(b + key[round]) % side) % side;
            a = b;
            b = next;
        }
        out[i] = (int64_t)(a * side + b);
    }
}
