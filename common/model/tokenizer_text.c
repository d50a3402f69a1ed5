/* tokenizer_text.c - see tokenizer_text.h. */
#include "common/model/tokenizer_text.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void reserve(mr_text *text, size_t more) {
    assert(more < SIZE_MAX / 4 && text->bytes < SIZE_MAX / 4);
    const size_t needed = text->bytes + more + 1;
    if (needed <= text->room) return;
    size_t room = text->room ? text->room : 64;
    while (room < needed) room *= 2;
    text->data = mr_realloc_array(text->data, room, 1);
    text->room = room;
}

void mr_text_add(mr_text *text, const char *data, size_t bytes) {
    reserve(text, bytes);
    if (bytes) memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
}

void mr_text_add_string(mr_text *text, const char *string) {
    mr_text_add(text, string, strlen(string));
}

void mr_text_format(mr_text *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int bytes = vsnprintf(NULL, 0, format, args);
    va_end(args);
    assert(bytes >= 0);
    reserve(text, (size_t)bytes);
    va_start(args, format);
    vsnprintf(text->data + text->bytes, (size_t)bytes + 1, format, args);
    va_end(args);
    text->bytes += (size_t)bytes;
}

void mr_text_drop(mr_text *text, size_t bytes) {
    assert(bytes <= text->bytes);
    if (bytes == 0) return;
    memmove(text->data, text->data + bytes, text->bytes - bytes + 1);
    text->bytes -= bytes;
}

void mr_text_clear(mr_text *text) {
    text->bytes = 0;
    if (text->data) text->data[0] = '\0';
}

void mr_text_free(mr_text *text) {
    free(text->data);
    *text = (mr_text){0};
}

const char *mr_text_string(const mr_text *text) {
    return text->data ? text->data : "";
}

/* How many bytes a character of this first byte has, and the bounds of its second byte; 0: none. */
static size_t character_bytes(uint8_t first, uint8_t *low, uint8_t *high) {
    *low = 0x80;
    *high = 0xbf;
    if (first < 0x80) return 1;
    if (first < 0xc2) return 0;
    if (first < 0xe0) return 2;
    if (first < 0xf0) {
        if (first == 0xe0) *low = 0xa0;
        if (first == 0xed) *high = 0x9f;
        return 3;
    }
    if (first > 0xf4) return 0;
    if (first == 0xf0) *low = 0x90;
    if (first == 0xf4) *high = 0x8f;
    return 4;
}

mr_utf8_kind mr_utf8_step(const char *text, size_t bytes, size_t *length) {
    uint8_t low, high;
    const size_t wanted = character_bytes((uint8_t)text[0], &low, &high);
    *length = 1;
    if (wanted == 0) return MR_UTF8_INVALID;
    for (size_t i = 1; i < wanted; i++) {
        *length = i;
        if (i == bytes) return MR_UTF8_CUT;
        const uint8_t byte = (uint8_t)text[i];
        if (byte < low || byte > high) return MR_UTF8_INVALID;
        low = 0x80;
        high = 0xbf;
    }
    *length = wanted;
    return MR_UTF8_VALID;
}

bool mr_utf8_valid(const char *text, size_t bytes) {
    for (size_t at = 0, length; at < bytes; at += length)
        if (mr_utf8_step(text + at, bytes - at, &length) != MR_UTF8_VALID) return false;
    return true;
}

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

void mr_detokenizer_push(mr_detokenizer *state, const char *bytes, size_t count, mr_text *out) {
    for (size_t i = 0; i < count; i++) {
        state->pending[state->count++] = bytes[i];
        while (state->count > 0) {
            size_t length;
            const mr_utf8_kind kind = mr_utf8_step(state->pending, state->count, &length);
            if (kind == MR_UTF8_CUT) break;
            if (kind == MR_UTF8_VALID)
                mr_text_add(out, state->pending, length);
            else
                mr_text_add(out, replacement, sizeof(replacement) - 1);
            state->count -= (uint32_t)length;
            memmove(state->pending, state->pending + length, state->count);
        }
    }
}

void mr_detokenizer_finish(mr_detokenizer *state, mr_text *out) {
    if (state->count > 0) mr_text_add(out, replacement, sizeof(replacement) - 1);
    state->count = 0;
}
