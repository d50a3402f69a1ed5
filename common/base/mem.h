/* mem.h - allocation. Small start-up pieces abort when memory is gone; large ones return a status.
 * All memory of these functions is freed with free(). Sizes are checked for overflow. */
#ifndef MR_BASE_MEM_H
#define MR_BASE_MEM_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *mr_alloc(size_t bytes);                     /* zeroed; aborts when memory is gone */
void *mr_alloc_array(size_t count, size_t bytes); /* zeroed; aborts on overflow or no memory */
void *mr_realloc_array(void *old, size_t count, size_t bytes); /* new part is not zeroed; aborts */
char *mr_strdup(const char *text);
char *mr_strndup(const char *text, size_t bytes); /* copies bytes, adds a terminator */
char *mr_format(const char *format, ...)
    __attribute__((format(printf, 1, 2))); /* owned by caller */

/* Zeroed and aligned to 64 bytes, for weights, caches and buffers; *out is NULL on failure and err
 * says what (a noun, "KV cache") needed how much. */
mr_status mr_try_alloc(void **out, size_t count, size_t bytes, const char *what, mr_err *err);

/* The same without the zeroing, for what is written before it is read. */
mr_status mr_try_alloc_raw(void **out, size_t count, size_t bytes, const char *what, mr_err *err);

static inline bool mr_mul_overflows(uint64_t a, uint64_t b, uint64_t *out) {
    return __builtin_mul_overflow(a, b, out);
}
static inline bool mr_add_overflows(uint64_t a, uint64_t b, uint64_t *out) {
    return __builtin_add_overflow(a, b, out);
}

#endif
