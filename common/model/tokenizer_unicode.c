/* tokenizer_unicode.c - see tokenizer_unicode.h.
 *
 * Nearly all text is in its normal form already. A bit per code point says which characters could
 * be changed, reordered or melt into the one before them; only the short stretches around such
 * characters are taken apart and put together again, everything else is copied. */
#include "common/model/tokenizer_unicode.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum {
    PLANES_END = 0x30000, /* beyond, no character has a decomposition or a combining class */
    PAIR_SLOTS = 4096,    /* about 950 pairs compose */
    PARTS_MAX = 32,       /* of one decomposition; 18 in Unicode */
    HANGUL_FIRST = 0xac00,
    HANGUL_COUNT = 11172,
    LEAD_FIRST = 0x1100,
    LEAD_COUNT = 19,
    VOWEL_FIRST = 0x1161,
    VOWEL_COUNT = 21,
    TRAIL_FIRST = 0x11a7, /* one before the first */
    TRAIL_COUNT = 28,
};

typedef struct {
    uint64_t pair; /* first << 32 | second; 0: free */
    uint32_t composed;
} pair_slot;

struct tokenizer_form {
    bool compatible, compose;
    uint64_t busy[PLANES_END / 64];
    pair_slot pairs[PAIR_SLOTS];
};

/* --- characters ------------------------------------------------------------------------------- */

uint32_t tokenizer_character(const char *text, size_t length) {
    const uint8_t *u = (const uint8_t *)text;
    if (length == 1) return u[0];
    if (length == 2) return (u[0] & 31u) << 6 | (u[1] & 63u);
    if (length == 3) return (u[0] & 15u) << 12 | (u[1] & 63u) << 6 | (u[2] & 63u);
    return (u[0] & 7u) << 18 | (u[1] & 63u) << 12 | (u[2] & 63u) << 6 | (u[3] & 63u);
}

size_t tokenizer_put_character(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

size_t tokenizer_character_bytes(char first) {
    const uint8_t byte = (uint8_t)first;
    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

static bool is_within(const tokenizer_range *ranges, size_t count, uint32_t c) {
    size_t low = 0, high = count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (c > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && c >= ranges[low].first;
}

bool tokenizer_is_word(uint32_t c) {
    return is_within(tokenizer_words, tokenizer_words_count, c);
}

bool tokenizer_is_digit(uint32_t c) {
    if (c < 0x80) return c >= '0' && c <= '9';
    return is_within(tokenizer_digits, tokenizer_digits_count, c);
}

bool tokenizer_is_punctuation(uint32_t c) {
    return is_within(tokenizer_punctuation, tokenizer_punctuation_count, c);
}

bool tokenizer_is_accent(uint32_t c) {
    return c >= 0x300 && is_within(tokenizer_accents, tokenizer_accents_count, c);
}

bool tokenizer_is_space(uint32_t c) {
    if (c < 0x80) return (c >= 9 && c <= 13) || c == ' ';
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool tokenizer_has_young(const char *text, size_t bytes) {
    uint32_t above = 0, below = 0; /* between these two there is none: most texts stay there */
    for (size_t at = 0; at < bytes;) {
        const uint8_t byte = (uint8_t)text[at];
        if (byte < 0xe0) { /* there is none of two bytes */
            at++;
            continue;
        }
        const size_t length = byte < 0xf0 ? 3 : 4;
        const uint32_t c = tokenizer_character(text + at, length);
        at += length;
        if (c > above && c < below) continue;
        size_t next = 0;
        while (next < tokenizer_young_count && tokenizer_young[next].last < c) next++;
        if (next < tokenizer_young_count && tokenizer_young[next].first <= c) return true;
        above = next ? tokenizer_young[next - 1].last : 0;
        below = next < tokenizer_young_count ? tokenizer_young[next].first : UINT32_MAX;
    }
    return false;
}

size_t tokenizer_lower_case(uint32_t out[2], uint32_t c) {
    if (c < 0x80) {
        out[0] = c >= 'A' && c <= 'Z' ? c + 32 : c;
        return 1;
    }
    if (c == 0x130) { /* the only one that becomes two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
    for (size_t i = 0; i < tokenizer_lowers_count; i++) {
        const tokenizer_lower *l = &tokenizer_lowers[i];
        if (c >= l->first && c <= l->last) out[0] = (uint32_t)((int32_t)c + l->distance);
    }
    return 1;
}

/* --- growing text ----------------------------------------------------------------------------- */

void tokenizer_buffer_clear(tokenizer_buffer *buffer, size_t bytes_max) {
    buffer->bytes = 0;
    buffer->bytes_max = bytes_max;
    buffer->status = MR_OK;
}

void tokenizer_buffer_free(tokenizer_buffer *buffer) {
    free(buffer->data);
    free(buffer->origin);
    *buffer = (tokenizer_buffer){0};
}

static bool reserve(tokenizer_buffer *buffer, size_t bytes) {
    if (buffer->status != MR_OK) return false;
    if (bytes > buffer->bytes_max || buffer->bytes > buffer->bytes_max - bytes) {
        buffer->status = MR_ERR_LIMIT;
        return false;
    }
    const size_t needed = buffer->bytes + bytes;
    if (needed <= buffer->room && (!buffer->is_tracked || buffer->origin)) return true;
    size_t room = buffer->room ? buffer->room : 256;
    while (room < needed) room *= 2;
    char *data = realloc(buffer->data, room);
    if (data) buffer->data = data;
    uint32_t *origin = NULL;
    if (buffer->is_tracked) {
        origin = realloc(buffer->origin, room * sizeof(*origin));
        if (origin) buffer->origin = origin;
    }
    if (!data || (buffer->is_tracked && !origin)) {
        buffer->status = MR_ERR_NOMEM;
        return false;
    }
    buffer->room = room;
    return true;
}

void tokenizer_buffer_add(tokenizer_buffer *buffer, const char *data, size_t bytes,
                          const uint32_t *origin, uint32_t origin_of_all) {
    if (bytes == 0 || !reserve(buffer, bytes)) return;
    memcpy(buffer->data + buffer->bytes, data, bytes);
    if (buffer->is_tracked)
        for (size_t i = 0; i < bytes; i++)
            buffer->origin[buffer->bytes + i] = origin ? origin[i] : origin_of_all;
    buffer->bytes += bytes;
}

/* --- normal forms: the tables ----------------------------------------------------------------- */

static uint8_t combining_class(uint32_t c) {
    if (c < 0x300 || c >= PLANES_END) return 0;
    const int rank = utf8proc_get_property((utf8proc_int32_t)c)->combining_class;
    if (rank == 0 || is_within(tokenizer_inert, tokenizer_inert_count, c)) return 0;
    return (uint8_t)rank;
}

/* The full decomposition; the character itself where it has none. */
static size_t decompose(bool compatible, uint32_t c, uint32_t out[PARTS_MAX]) {
    utf8proc_int32_t parts[PARTS_MAX];
    int ignored = 0;
    out[0] = c;
    if (c < 0xa0 || c >= PLANES_END) return 1;
    if (c >= HANGUL_FIRST && c < HANGUL_FIRST + HANGUL_COUNT) {
        const uint32_t index = c - HANGUL_FIRST, trail = index % TRAIL_COUNT;
        out[0] = LEAD_FIRST + index / (VOWEL_COUNT * TRAIL_COUNT);
        out[1] = VOWEL_FIRST + index / TRAIL_COUNT % VOWEL_COUNT;
        out[2] = TRAIL_FIRST + trail;
        return trail ? 3 : 2;
    }
    const utf8proc_property_t *property = utf8proc_get_property((utf8proc_int32_t)c);
    if (property->decomp_seqindex == UINT16_MAX) return 1;
    if (is_within(tokenizer_inert, tokenizer_inert_count, c)) return 1;
    const int options = UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    const utf8proc_ssize_t count = utf8proc_decompose_char((utf8proc_int32_t)c, parts, PARTS_MAX,
                                                           (utf8proc_option_t)options, &ignored);
    if (count < 1 || count > PARTS_MAX) return 1;
    for (utf8proc_ssize_t i = 0; i < count; i++) out[i] = (uint32_t)parts[i];
    return (size_t)count;
}

static const pair_slot *pair_at(const tokenizer_form *form, uint64_t pair) {
    uint32_t at = (uint32_t)(pair * 0x9e3779b97f4a7c15u >> 40) % PAIR_SLOTS;
    while (form->pairs[at].pair != 0 && form->pairs[at].pair != pair) at = (at + 1) % PAIR_SLOTS;
    return &form->pairs[at];
}

/* What two neighbours melt into; 0: they stay two. */
static uint32_t composed(const tokenizer_form *form, uint32_t first, uint32_t second) {
    if (second < 0x300) return 0;
    if (first >= LEAD_FIRST && first < LEAD_FIRST + LEAD_COUNT && second >= VOWEL_FIRST &&
        second < VOWEL_FIRST + VOWEL_COUNT)
        return HANGUL_FIRST +
               ((first - LEAD_FIRST) * VOWEL_COUNT + second - VOWEL_FIRST) * TRAIL_COUNT;
    if (first >= HANGUL_FIRST && first < HANGUL_FIRST + HANGUL_COUNT &&
        (first - HANGUL_FIRST) % TRAIL_COUNT == 0 && second > TRAIL_FIRST &&
        second < TRAIL_FIRST + TRAIL_COUNT)
        return first + second - TRAIL_FIRST;
    return pair_at(form, (uint64_t)first << 32 | second)->composed;
}

static void set_busy(tokenizer_form *form, uint32_t c) {
    form->busy[c / 64] |= 1ull << c % 64;
}

static bool is_busy(const tokenizer_form *form, uint32_t c) {
    return c < PLANES_END && (form->busy[c / 64] >> c % 64 & 1) != 0;
}

/* Whether its parts melt into this very character again, and not into another of the same looks. */
static bool is_whole(uint32_t c, const uint32_t *parts, size_t count) {
    utf8proc_int32_t again[PARTS_MAX + 1]; /* room for a terminator */
    for (size_t i = 0; i < count; i++) again[i] = (utf8proc_int32_t)parts[i];
    const utf8proc_ssize_t left = utf8proc_normalize_utf32(
        again, (utf8proc_ssize_t)count, (utf8proc_option_t)(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    return left == 1 && (uint32_t)again[0] == c;
}

/* Pairs whose whole has `count` parts; shorter wholes are there already. */
static void add_pairs(tokenizer_form *form, size_t count) {
    uint32_t parts[PARTS_MAX];
    for (uint32_t c = 0xc0; c < PLANES_END; c++) {
        if (c >= HANGUL_FIRST && c < HANGUL_FIRST + HANGUL_COUNT) continue;
        const utf8proc_property_t *property = utf8proc_get_property((utf8proc_int32_t)c);
        if (property->decomp_seqindex == UINT16_MAX || property->comp_exclusion) continue;
        if (decompose(false, c, parts) != count || !is_whole(c, parts, count)) continue;
        uint32_t first = parts[0];
        for (size_t i = 1; i + 1 < count && first != 0; i++)
            first = composed(form, first, parts[i]);
        if (first == 0) continue;
        const uint64_t pair = (uint64_t)first << 32 | parts[count - 1];
        pair_slot *slot = &form->pairs[pair_at(form, pair) - form->pairs];
        *slot = (pair_slot){pair, c};
        set_busy(form, parts[count - 1]);
    }
}

tokenizer_form *tokenizer_form_open(bool compatible, bool compose) {
    uint32_t parts[PARTS_MAX];
    tokenizer_form *form = mr_alloc(sizeof(*form));
    form->compatible = compatible;
    form->compose = compose;
    if (compose) {
        for (size_t count = 2; count <= 4; count++) add_pairs(form, count);
        for (uint32_t c = VOWEL_FIRST; c < VOWEL_FIRST + VOWEL_COUNT; c++) set_busy(form, c);
        for (uint32_t c = TRAIL_FIRST + 1; c < TRAIL_FIRST + TRAIL_COUNT; c++) set_busy(form, c);
    }
    for (uint32_t c = 0xa0; c < PLANES_END; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        const size_t count = decompose(compatible, c, parts);
        uint32_t again = parts[0];
        for (size_t i = 1; i < count && compose && again != 0; i++)
            again = composed(form, again, parts[i]);
        const bool stays = compose ? again == c : count == 1 && parts[0] == c;
        if (!stays || combining_class(c) != 0) set_busy(form, c);
    }
    return form;
}

void tokenizer_form_close(tokenizer_form *form) {
    free(form);
}

/* --- normal forms: text ----------------------------------------------------------------------- */

typedef struct {
    uint32_t c, origin;
    uint8_t rank;
} part;

typedef struct {
    part *items, *spare;
    size_t count, room;
    bool failed;
} part_list;

static void add_part(part_list *list, uint32_t c, uint32_t origin) {
    if (list->count == list->room) {
        const size_t room = list->room ? 2 * list->room : 64;
        part *items = realloc(list->items, room * sizeof(part));
        if (items) list->items = items;
        part *spare = items ? realloc(list->spare, room * sizeof(part)) : NULL;
        if (spare) list->spare = spare;
        if (!items || !spare) {
            list->failed = true;
            return;
        }
        list->room = room;
    }
    list->items[list->count++] = (part){c, origin, combining_class(c)};
}

static void move(part *to, const part *from) { /* as in the reference, origins stay in order */
    to->c = from->c;
    to->rank = from->rank;
}

/* Stable by rank, in linear time: a hostile text is one long run of marks. */
static void order_run(part *run, part *spare, size_t count) {
    if (count < 24) {
        for (size_t i = 1; i < count; i++) {
            const part moved = run[i];
            size_t at = i;
            for (; at > 0 && run[at - 1].rank > moved.rank; at--) move(&run[at], &run[at - 1]);
            move(&run[at], &moved);
        }
        return;
    }
    size_t first[257] = {0};
    for (size_t i = 0; i < count; i++) first[run[i].rank + 1u]++;
    for (size_t rank = 0; rank < 256; rank++) first[rank + 1] += first[rank];
    for (size_t i = 0; i < count; i++) spare[first[run[i].rank]++] = run[i];
    for (size_t i = 0; i < count; i++) move(&run[i], &spare[i]);
}

static void order(part_list *list) {
    for (size_t at = 0; at < list->count;) {
        size_t end = at;
        while (end < list->count && list->items[end].rank != 0) end++;
        if (end - at > 1) order_run(list->items + at, list->spare, end - at);
        at = end + 1;
    }
}

static void compose(const tokenizer_form *form, part_list *list) {
    size_t used = 0, starter = SIZE_MAX;
    int last = -1; /* rank of the last part behind the starter; -1: none is there */
    for (size_t i = 0; i < list->count; i++) {
        const part now = list->items[i];
        if (starter != SIZE_MAX && (last < 0 || last < now.rank)) {
            const uint32_t whole = composed(form, list->items[starter].c, now.c);
            if (whole != 0) {
                list->items[starter].c = whole;
                continue;
            }
        }
        if (now.rank == 0) {
            starter = used;
            last = -1;
        } else
            last = now.rank;
        list->items[used++] = now;
    }
    list->count = used;
}

bool tokenizer_form_is_clean(const tokenizer_form *form, const char *text, size_t bytes) {
    const uint8_t *u = (const uint8_t *)text;
    const uint8_t quick = form->compatible || !form->compose ? 0xc2 : 0xcc; /* U+0080, U+0300 */
    for (size_t at = 0, length; at < bytes; at += length) {
        length = tokenizer_character_bytes(text[at]);
        if (u[at] >= quick && is_busy(form, tokenizer_character(text + at, length))) return false;
    }
    return true;
}

static void put_parts(const part_list *list, tokenizer_buffer *out) {
    char text[4];
    for (size_t i = 0; i < list->count; i++)
        tokenizer_buffer_add(out, text, tokenizer_put_character(text, list->items[i].c), NULL,
                             list->items[i].origin);
}

void tokenizer_form_apply(const tokenizer_form *form, const char *text, size_t bytes,
                          const uint32_t *origin, tokenizer_buffer *out) {
    part_list list = {0};
    uint32_t parts[PARTS_MAX];
    size_t copied = 0, before = 0; /* before: where the character before `at` begins */
    for (size_t at = 0, length; at < bytes && !list.failed;) {
        length = tokenizer_character_bytes(text[at]);
        if ((uint8_t)text[at] < 0xc2 || !is_busy(form, tokenizer_character(text + at, length))) {
            before = at;
            at += length;
            continue;
        }
        at = form->compose && before >= copied ? before : at; /* it may melt into that one */
        tokenizer_buffer_add(out, text + copied, at - copied, origin ? origin + copied : NULL, 0);
        list.count = 0;
        for (bool is_first = true; at < bytes; is_first = false, at += length) {
            length = tokenizer_character_bytes(text[at]);
            const uint32_t c = tokenizer_character(text + at, length);
            if (!is_first && !is_busy(form, c)) break;
            const size_t count = decompose(form->compatible, c, parts);
            for (size_t i = 0; i < count; i++) add_part(&list, parts[i], origin ? origin[at] : 0);
        }
        order(&list);
        if (form->compose) compose(form, &list);
        put_parts(&list, out);
        copied = before = at;
    }
    tokenizer_buffer_add(out, text + copied, bytes - copied, origin ? origin + copied : NULL, 0);
    if (list.failed && out->status == MR_OK) out->status = MR_ERR_NOMEM;
    free(list.items);
    free(list.spare);
}
