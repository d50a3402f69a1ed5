/* jinja_unicode.c - see jinja_unicode.h. */
#include "common/model/jinja_unicode.h"

#include "common/model/tokenizer_text.h"

size_t jinja_char_at(const char *text, size_t bytes, uint32_t *character) {
    const uint8_t *t = (const uint8_t *)text;
    size_t length;
    if (t[0] < 0x80) {
        *character = t[0];
        return 1;
    }
    if (mr_utf8_step(text, bytes < 4 ? bytes : 4, &length) != MR_UTF8_VALID) {
        *character = JINJA_BAD_BYTE + t[0];
        return 1;
    }
    if (length == 2)
        *character = (t[0] & 0x1fu) << 6 | (t[1] & 0x3fu);
    else if (length == 3)
        *character = (t[0] & 0x0fu) << 12 | (t[1] & 0x3fu) << 6 | (t[2] & 0x3fu);
    else
        *character =
            (t[0] & 0x07u) << 18 | (t[1] & 0x3fu) << 12 | (t[2] & 0x3fu) << 6 | (t[3] & 0x3fu);
    return length;
}

size_t jinja_char_before(const char *text, size_t end) {
    uint32_t character;
    for (size_t back = 2; back <= 4 && back <= end; back++) {
        if (((uint8_t)text[end - back] & 0xc0) == 0x80) continue;
        if (jinja_char_at(text + end - back, back, &character) == back) return end - back;
        break;
    }
    return end - 1;
}

size_t jinja_char_put(char out[4], uint32_t c) {
    if (c < 0x80 || c >= JINJA_BAD_BYTE) {
        out[0] = (char)(uint8_t)c; /* a byte outside UTF-8: as it was */
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

size_t jinja_char_count(const char *text, size_t bytes) {
    size_t count = 0;
    for (size_t at = 0; at < bytes; count++) {
        uint32_t character;
        at += jinja_char_at(text + at, bytes - at, &character);
    }
    return count;
}

size_t jinja_char_offset(const char *text, size_t bytes, size_t index) {
    size_t at = 0;
    for (; at < bytes && index > 0; index--) {
        uint32_t character;
        at += jinja_char_at(text + at, bytes - at, &character);
    }
    return at;
}

uint32_t jinja_char_flags(uint32_t character) {
    size_t low = 0, high = jinja_char_ranges_count;
    if (character < 0x80) return jinja_ascii_flags[character];
    if (character >= JINJA_BAD_BYTE) return 0;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (jinja_char_ranges[middle] >> 5 <= character)
            low = middle;
        else
            high = middle;
    }
    return jinja_char_kinds[jinja_char_ranges[low] & 31];
}

static size_t convert(uint32_t out[3], uint32_t c, const jinja_case_run *runs, size_t run_count,
                      const jinja_case_special *special, size_t special_count) {
    size_t low = 0, high = special_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (special[middle].from < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < special_count && special[low].from == c) {
        size_t n = 0;
        for (; n < 3 && special[low].to[n]; n++) out[n] = special[low].to[n];
        return n;
    }
    for (low = 0, high = run_count; low < high;) { /* the first run that ends at c or later */
        const size_t middle = low + (high - low) / 2;
        if (runs[middle].last < c)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == run_count || runs[low].first > c || (c - runs[low].first) % runs[low].step) return 0;
    out[0] = (uint32_t)((int32_t)c + runs[low].distance);
    return 1;
}

size_t jinja_char_convert(uint32_t out[3], uint32_t c, jinja_case to) {
    size_t count = 0;
    if (c < 0x80) {
        const bool is_upper = c >= 'A' && c <= 'Z', is_lower = c >= 'a' && c <= 'z';
        out[0] = to == JINJA_TO_LOWER ? c + (is_upper ? 32 : 0) : c - (is_lower ? 32 : 0);
        return 1;
    }
    if (to == JINJA_TO_TITLE)
        count = convert(out, c, jinja_title, jinja_title_count, jinja_title_special,
                        jinja_title_special_count);
    if (count == 0 && to != JINJA_TO_LOWER)
        count = convert(out, c, jinja_upper, jinja_upper_count, jinja_upper_special,
                        jinja_upper_special_count);
    if (to == JINJA_TO_LOWER)
        count = convert(out, c, jinja_lower, jinja_lower_count, jinja_lower_special,
                        jinja_lower_special_count);
    if (count > 0) return count;
    out[0] = c;
    return 1;
}
