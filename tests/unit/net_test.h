/* net_test.h - what the tests of the data plane share: frames of any shape, good and spoilt. */
#ifndef MR_TESTS_UNIT_NET_TEST_H
#define MR_TESTS_UNIT_NET_TEST_H
#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/net/fabric.h"
#include "common/net/frames.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

static inline int64_t after_ms(int64_t ms) {
    return mr_now_ns() + ms * 1000000;
}

/* A frame in memory of exactly its size, so that a sanitizer sees a read behind it. */
typedef struct {
    mr_wire_header header;
    uint8_t *payload;
    mr_frame frame;
} test_frame;

static inline void frame_make(test_frame *f, uint16_t type, const void *payload, uint32_t bytes) {
    memset(f, 0, sizeof(*f));
    f->header = (mr_wire_header){
        .magic = MR_WIRE_MAGIC, .version = MR_WIRE_VERSION, .type = type, .payload_bytes = bytes};
    f->payload = malloc(bytes ? bytes : 1);
    assert_non_null(f->payload);
    if (bytes > 0) memcpy(f->payload, payload, bytes);
    f->frame = (mr_frame){&f->header, f->payload};
}

static inline void frame_free(test_frame *f) {
    free(f->payload);
}

/* A RETRIEVE payload of the given fixed part with zeros behind it, its counts even over tokens. */
static inline uint8_t *retrieve_make(const mr_wire_retrieve *fixed, mr_retrieve_layout *to) {
    mr_err err = {{0}};
    const mr_status status = mr_retrieve_lay_out(to, fixed, &err);
    if (status != MR_OK) fail_msg("lay out: %s", err.text);
    uint8_t *payload = calloc(1, to->bytes);
    assert_non_null(payload);
    memcpy(payload, fixed, sizeof(*fixed));
    uint32_t *count = (void *)(payload + to->count);
    for (uint32_t t = 0; t < fixed->tokens; t++)
        count[t] = fixed->entries / fixed->tokens + (t < fixed->entries % fixed->tokens);
    return payload;
}

static inline uint32_t test_random(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33);
}

#define assert_sentence(err, part)                                                                 \
    do {                                                                                           \
        if (!strstr((err).text, part)) fail_msg("'%s' lacks '%s'", (err).text, part);              \
    } while (0)

#endif
