/* mem.c - see mem.h. */
#include "common/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(size_t bytes) {
    fprintf(stderr, "memrack: out of memory (%zu bytes)\n", bytes);
    abort();
}

void *mr_alloc(size_t bytes) {
    return mr_alloc_array(1, bytes);
}

void *mr_alloc_array(size_t count, size_t bytes) {
    if (count == 0 || bytes == 0) count = bytes = 1;
    void *memory = calloc(count, bytes);
    if (!memory) die(bytes);
    return memory;
}

void *mr_realloc_array(void *old, size_t count, size_t bytes) {
    if (count == 0 || bytes == 0) count = bytes = 1;
    void *memory = reallocarray(old, count, bytes);
    if (!memory) die(bytes);
    return memory;
}

char *mr_strdup(const char *text) {
    return mr_strndup(text, strlen(text));
}

char *mr_strndup(const char *text, size_t bytes) {
    char *copy = mr_alloc(bytes + 1);
    memcpy(copy, text, bytes);
    return copy;
}

char *mr_format(const char *format, ...) {
    va_list args;
    char *text = NULL;
    va_start(args, format);
    const int bytes = vasprintf(&text, format, args);
    va_end(args);
    if (bytes < 0) die(0);
    return text;
}

static mr_status try_alloc(void **out, size_t *rounded, size_t count, size_t bytes,
                           const char *what, mr_err *err) {
    uint64_t total;
    *out = NULL;
    if (mr_mul_overflows(count, bytes, &total) || total > SIZE_MAX - 64)
        return mr_fail(err, MR_ERR_NOMEM, "%s: %zu x %zu bytes is more than an address can reach",
                       what, count, bytes);
    if (total == 0) total = 64;
    *rounded = ((size_t)total + 63) / 64 * 64;
    if (posix_memalign(out, 64, *rounded) != 0) {
        *out = NULL;
        return mr_fail(err, MR_ERR_NOMEM, "%s: no memory for %zu bytes", what, *rounded);
    }
    return MR_OK;
}

mr_status mr_try_alloc(void **out, size_t count, size_t bytes, const char *what, mr_err *err) {
    size_t rounded = 0;
    const mr_status status = try_alloc(out, &rounded, count, bytes, what, err);
    if (status == MR_OK) memset(*out, 0, rounded);
    return status;
}

mr_status mr_try_alloc_raw(void **out, size_t count, size_t bytes, const char *what, mr_err *err) {
    size_t rounded = 0;
    return try_alloc(out, &rounded, count, bytes, what, err);
}
