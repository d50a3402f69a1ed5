/* jinja_string.c - strings that know which of their bytes a user wrote. */
#include "common/model/jinja_value.h"

#include <string.h>

enum { FIRST_STORE_BYTES = 128, SMALLEST_STORE_BYTES = 48 };

jinja_string *jinja_string_of(jinja_state *s, const char *data, size_t bytes, bool user) {
    jinja_string *string = jinja_alloc(s, sizeof(*string));
    string->data = data;
    string->bytes = bytes;
    string->origin = user ? JINJA_USER : JINJA_OURS;
    return string;
}

jinja_value jinja_string_literal(jinja_state *s, const char *text) {
    return jinja_text(jinja_string_of(s, text, strlen(text), false));
}

const jinja_string *jinja_string_part(jinja_state *s, const jinja_string *from, size_t first,
                                      size_t bytes) {
    if (first == 0 && bytes == from->bytes) return from;
    jinja_string *part = jinja_alloc(s, sizeof(*part));
    *part = *from;
    part->data = from->data + first;
    part->marks = from->marks ? from->marks + first : NULL;
    part->bytes = bytes;
    return part;
}

bool jinja_string_is(const jinja_string *string, const char *text) {
    return strlen(text) == string->bytes && memcmp(string->data, text, string->bytes) == 0;
}

bool jinja_string_equal(const jinja_string *a, const jinja_string *b) {
    return a->bytes == b->bytes && (a->bytes == 0 || memcmp(a->data, b->data, a->bytes) == 0);
}

int jinja_string_compare(const jinja_string *a, const jinja_string *b) {
    const size_t least = a->bytes < b->bytes ? a->bytes : b->bytes;
    const int order = least > 0 ? memcmp(a->data, b->data, least) : 0;
    if (order != 0) return order < 0 ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes;
}

size_t jinja_string_find(jinja_state *s, const jinja_string *in, const jinja_string *what,
                         size_t from) {
    if (from > in->bytes || what->bytes > in->bytes - from) return SIZE_MAX;
    if (what->bytes == 0) return from;
    const char *at = memmem(in->data + from, in->bytes - from, what->data, what->bytes);
    jinja_spend_bytes(s, at ? (size_t)(at - in->data) - from : in->bytes - from);
    return at ? (size_t)(at - in->data) : SIZE_MAX;
}

/* --- growing ---------------------------------------------------------------------------------- */

static void grow(jinja_state *s, jinja_store *store, size_t more) {
    if (store->used + more <= store->room) return;
    if (store->used + more > MR_MAX_JINJA_OUTPUT_BYTES)
        jinja_fail(s, MR_ERR_LIMIT, "it makes a text of more than %d MiB",
                   MR_MAX_JINJA_OUTPUT_BYTES >> 20);
    size_t room = store->room > 0 ? store->room : FIRST_STORE_BYTES;
    while (room < store->used + more) room *= 2;
    char *data = jinja_alloc_raw(s, room);
    if (store->used > 0) memcpy(data, store->data, store->used);
    store->data = data;
    if (store->marks) {
        uint8_t *marks = jinja_alloc_raw(s, room);
        memcpy(marks, store->marks, store->used);
        store->marks = marks;
    }
    store->room = room;
    jinja_spend_bytes(s, store->used);
}

/* What follows is of another origin than what there is. */
static void begin_marks(jinja_state *s, jinja_store *store, jinja_origin so_far) {
    if (store->marks) return;
    store->marks = jinja_alloc_raw(s, store->room);
    memset(store->marks, so_far == JINJA_USER, store->used);
}

/* Appends; origin: of what there is, when it is not empty. */
static void append(jinja_state *s, jinja_store *store, jinja_origin *origin, const char *data,
                   const uint8_t *marks, jinja_origin of, size_t bytes) {
    if (bytes == 0) return;
    jinja_spend_bytes(s, bytes);
    grow(s, store, bytes);
    if (store->used == 0 && of != JINJA_MIXED)
        *origin = of;
    else if (*origin != of || of == JINJA_MIXED) {
        begin_marks(s, store, *origin);
        *origin = JINJA_MIXED;
    }
    memcpy(store->data + store->used, data, bytes);
    if (store->marks && marks)
        memcpy(store->marks + store->used, marks, bytes);
    else if (store->marks)
        memset(store->marks + store->used, of == JINJA_USER, bytes);
    store->used += bytes;
}

void jinja_add(jinja_state *s, jinja_builder *b, const char *data, size_t bytes, bool user) {
    append(s, &b->store, &b->origin, data, NULL, user ? JINJA_USER : JINJA_OURS, bytes);
}

void jinja_add_text(jinja_state *s, jinja_builder *b, const char *text) {
    jinja_add(s, b, text, strlen(text), false);
}

void jinja_add_part(jinja_state *s, jinja_builder *b, const jinja_string *string, size_t first,
                    size_t bytes) {
    append(s, &b->store, &b->origin, string->data + first,
           string->marks ? string->marks + first : NULL, (jinja_origin)string->origin, bytes);
}

void jinja_add_string(jinja_state *s, jinja_builder *b, const jinja_string *string) {
    jinja_add_part(s, b, string, 0, string->bytes);
}

void jinja_add_char(jinja_state *s, jinja_builder *b, uint32_t character, bool user) {
    char spelled[4];
    const size_t bytes = jinja_char_put(spelled, character);
    jinja_add(s, b, spelled, bytes, user);
}

void jinja_add_repeated(jinja_state *s, jinja_builder *b, const jinja_string *string,
                        size_t count) {
    if (string->bytes == 0) return;
    if (count > MR_MAX_JINJA_OUTPUT_BYTES / string->bytes)
        jinja_fail(s, MR_ERR_LIMIT, "it makes a text of more than %d MiB",
                   MR_MAX_JINJA_OUTPUT_BYTES >> 20);
    for (size_t i = 0; i < count; i++) jinja_add_string(s, b, string);
}

const jinja_string *jinja_built(jinja_state *s, const jinja_builder *b) {
    jinja_string *string = jinja_alloc(s, sizeof(*string));
    string->data = b->store.data ? b->store.data : "";
    string->bytes = b->store.used;
    string->origin = (uint8_t)b->origin;
    string->marks = b->origin == JINJA_MIXED ? b->store.marks : NULL;
    return string;
}

const jinja_string *jinja_concat(jinja_state *s, const jinja_string *a, const jinja_string *b) {
    if (b->bytes == 0) return a;
    if (a->bytes == 0) return b;
    jinja_store *store = a->store;
    jinja_origin origin = (jinja_origin)a->origin;
    if (!store || a->data + a->bytes != store->data + store->used ||
        store->room - store->used < b->bytes) {
        store = jinja_alloc(s, sizeof(*store));
        append(s, store, &origin, a->data, a->marks, (jinja_origin)a->origin, a->bytes);
        if (a->bytes + b->bytes >= SMALLEST_STORE_BYTES) grow(s, store, a->bytes + b->bytes);
    } else if (store->marks) {
        origin = JINJA_MIXED; /* as the whole store, of which a may be a part of one origin */
    }
    const size_t first = store->used - a->bytes;
    append(s, store, &origin, b->data, b->marks, (jinja_origin)b->origin, b->bytes);
    jinja_string *both = jinja_alloc(s, sizeof(*both));
    both->data = store->data + first;
    both->bytes = a->bytes + b->bytes;
    both->origin = (uint8_t)origin;
    both->marks = origin == JINJA_MIXED ? store->marks + first : NULL;
    both->store = store;
    return both;
}
