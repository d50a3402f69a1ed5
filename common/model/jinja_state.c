/* jinja_state.c - the arena of a parse or a render, its bounds, and how errors leave. */
#include "common/model/jinja_value.h"

#include "common/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_BLOCK_BYTES = 16 << 10, LARGEST_BLOCK_BYTES = 1 << 20 };

/* A large piece gets a block of its own behind the first one, which goes on being filled. */
static jinja_block *add_block(jinja_state *s, size_t bytes) {
    size_t room = s->bytes < LARGEST_BLOCK_BYTES ? s->bytes : LARGEST_BLOCK_BYTES;
    if (room < FIRST_BLOCK_BYTES) room = FIRST_BLOCK_BYTES;
    const bool is_large = bytes > room / 4;
    if (is_large) room = bytes;
    if (room > MR_MAX_JINJA_BYTES || s->bytes + room > MR_MAX_JINJA_BYTES)
        jinja_fail(s, MR_ERR_LIMIT, "it needs more than %d MiB of memory",
                   MR_MAX_JINJA_BYTES >> 20);
    jinja_block *block = malloc(sizeof(*block) + room);
    if (!block) jinja_fail(s, MR_ERR_NOMEM, "no memory for %zu bytes", room);
    block->used = 0;
    block->room = room;
    s->bytes += room;
    if (is_large && s->blocks) {
        block->next = s->blocks->next;
        s->blocks->next = block;
    } else {
        block->next = s->blocks;
        s->blocks = block;
    }
    return block;
}

void *jinja_alloc_raw(jinja_state *s, size_t bytes) {
    if (bytes > MR_MAX_JINJA_BYTES) bytes = (size_t)MR_MAX_JINJA_BYTES + 1; /* refused below */
    bytes = (bytes + 15) & ~(size_t)15;
    jinja_block *block = s->blocks;
    if (!block || block->room - block->used < bytes) block = add_block(s, bytes);
    void *data = block->data + block->used;
    block->used += bytes;
    return data;
}

void *jinja_alloc(jinja_state *s, size_t bytes) {
    void *data = jinja_alloc_raw(s, bytes);
    memset(data, 0, bytes);
    return data;
}

void *jinja_alloc_array(jinja_state *s, size_t count, size_t bytes) {
    uint64_t all;
    if (mr_mul_overflows(count, bytes, &all)) all = (uint64_t)MR_MAX_JINJA_BYTES + 1;
    return jinja_alloc(s, all);
}

void jinja_state_free(jinja_state *s) {
    while (s->blocks) {
        jinja_block *next = s->blocks->next;
        free(s->blocks);
        s->blocks = next;
    }
}

void jinja_fail_bare(jinja_state *s, mr_status status, const char *text) {
    s->status = mr_fail(s->err, status, "%s", text);
    longjmp(s->escape, 1);
}

void jinja_fail(jinja_state *s, mr_status status, const char *format, ...) {
    char text[MR_ERR_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    s->status = mr_fail(s->err, status, "line %u of the chat template: %s", s->line, text);
    longjmp(s->escape, 1);
}

void jinja_spend(jinja_state *s, uint64_t steps) {
    s->steps += steps;
    if (s->steps > s->steps_max)
        jinja_fail(s, MR_ERR_LIMIT, "it takes more than %llu steps",
                   (unsigned long long)s->steps_max);
}

void jinja_enter(jinja_state *s) {
    if (s->depth >= MR_MAX_JINJA_DEPTH)
        jinja_fail(s, MR_ERR_LIMIT, "it is nested more than %d levels deep", MR_MAX_JINJA_DEPTH);
    s->depth++;
}
