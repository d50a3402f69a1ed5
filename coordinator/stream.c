/* stream.c - see stream.h. */
#include "coordinator/stream.h"

#include "common/base/mem.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* next[i]: the longest proper prefix that is also a suffix of the first i bytes. */
typedef struct {
    char *text;
    uint32_t bytes;
    uint32_t *next; /* [bytes + 1] */
} stop_string;

struct mr_stop_set {
    uint32_t count;
    stop_string strings[MR_MAX_STOP_STRINGS];
};

struct mr_stream {
    const mr_stop_set *stops;
    bool logprobs, stopped;
    mr_decoder *decoder; /* NULL: tokens have no text */
    mr_text held;        /* characters not handed out yet */
    uint64_t held_first; /* where held begins in the answer */
    uint64_t characters; /* of the answer so far, held ones too */
    size_t scanned;      /* of held: already seen by the automata */
    size_t ready;        /* of held: handed out by the last call, dropped by the next */
    uint32_t matched[MR_MAX_STOP_STRINGS];
    mr_token_entry *entries; /* waiting for their text; the first `given` were handed out */
    uint32_t entry_count, entry_room, given;
};

mr_stop_set *mr_stop_set_open(const char *const *strings, const size_t *bytes, uint32_t count) {
    mr_stop_set *set = mr_alloc(sizeof(*set));
    assert(count <= MR_MAX_STOP_STRINGS);
    set->count = count;
    for (uint32_t s = 0; s < count; s++) {
        stop_string *stop = &set->strings[s];
        assert(bytes[s] > 0 && bytes[s] <= MR_MAX_STOP_BYTES);
        stop->bytes = (uint32_t)bytes[s];
        stop->text = mr_strndup(strings[s], bytes[s]);
        stop->next = mr_alloc_array(bytes[s] + 1, sizeof(*stop->next));
        for (uint32_t i = 1, k = 0; i < stop->bytes; i++) {
            while (k > 0 && stop->text[i] != stop->text[k]) k = stop->next[k];
            if (stop->text[i] == stop->text[k]) k++;
            stop->next[i + 1] = k;
        }
    }
    return set;
}

void mr_stop_set_close(mr_stop_set *set) {
    if (!set) return;
    for (uint32_t s = 0; s < set->count; s++) {
        free(set->strings[s].text);
        free(set->strings[s].next);
    }
    free(set);
}

mr_stream *mr_stream_open(const mr_tokenizer *tokenizer, const mr_stop_set *stops, bool logprobs,
                          bool continues) {
    mr_stream *stream = mr_alloc(sizeof(*stream));
    if (tokenizer)
        stream->decoder = mr_decoder_open(tokenizer, &(mr_decode_options){.continues = continues});
    stream->stops = stops;
    stream->logprobs = logprobs;
    return stream;
}

void mr_stream_close(mr_stream *stream) {
    if (!stream) return;
    mr_decoder_close(stream->decoder);
    mr_text_free(&stream->held);
    free(stream->entries);
    free(stream);
}

/* Feeds one byte to all automata; returns the bytes of the stop string it completes, or 0. */
static uint32_t follow(mr_stream *stream, char byte) {
    uint32_t hit = 0;
    for (uint32_t s = 0; s < stream->stops->count; s++) {
        const stop_string *stop = &stream->stops->strings[s];
        uint32_t k = stream->matched[s];
        while (k > 0 && byte != stop->text[k]) k = stop->next[k];
        if (byte == stop->text[k]) k++;
        if (k == stop->bytes) {
            if (k > hit) hit = k;
            k = stop->next[k];
        }
        stream->matched[s] = k;
    }
    return hit;
}

/* Scans new text; returns how many bytes of held are safe. */
static size_t scan(mr_stream *stream) {
    if (!stream->stops) return stream->held.bytes;
    for (; stream->scanned < stream->held.bytes; stream->scanned++) {
        const uint32_t hit = follow(stream, stream->held.data[stream->scanned]);
        if (hit == 0) continue;
        stream->stopped = true;
        return stream->scanned + 1 - hit;
    }
    uint32_t longest = 0;
    for (uint32_t s = 0; s < stream->stops->count; s++)
        if (stream->matched[s] > longest) longest = stream->matched[s];
    return stream->held.bytes - longest;
}

static void forget_given(mr_stream *stream) {
    mr_text_drop(&stream->held, stream->ready);
    stream->held_first += stream->ready;
    stream->scanned -= stream->scanned < stream->ready ? stream->scanned : stream->ready;
    stream->ready = 0;
    stream->entry_count -= stream->given;
    if (stream->given && stream->entry_count)
        memmove(stream->entries, stream->entries + stream->given,
                stream->entry_count * sizeof(*stream->entries));
    stream->given = 0;
}

/* Hands out `safe` bytes and the entries whose text is out. At a stop, a token that only begins
 * before the cut still counts; at any other end all remaining ones do. */
static mr_stream_part give(mr_stream *stream, size_t safe, bool end) {
    const uint64_t until = stream->held_first + safe;
    uint32_t given = 0;
    while (given < stream->entry_count) {
        const mr_token_entry *entry = &stream->entries[given];
        const bool out = entry->end_byte <= until;
        const bool begun = stream->stopped && entry->first_byte < until;
        if (!out && !begun && (!end || stream->stopped)) break;
        given++;
    }
    stream->given = given;
    stream->ready = safe;
    return (mr_stream_part){mr_text_string(&stream->held), safe, stream->entries, given,
                            stream->stopped};
}

static void keep_entry(mr_stream *stream, const mr_token_entry *entry, uint64_t first_byte,
                       uint64_t text_offset) {
    if (!stream->logprobs) return;
    if (stream->entry_count == stream->entry_room) {
        stream->entry_room = stream->entry_room ? 2 * stream->entry_room : 4;
        stream->entries =
            mr_realloc_array(stream->entries, stream->entry_room, sizeof(*stream->entries));
    }
    mr_token_entry *kept = &stream->entries[stream->entry_count++];
    *kept = *entry;
    kept->text_offset = text_offset;
    kept->first_byte = first_byte;
    kept->end_byte = stream->held_first + stream->held.bytes;
}

/* Of held, from first to end. */
static void count_characters(mr_stream *stream, size_t first, size_t end) {
    for (size_t i = first; i < end; i++)
        stream->characters += ((uint8_t)stream->held.data[i] & 0xc0) != 0x80;
}

mr_stream_part mr_stream_push(mr_stream *stream, const mr_token_entry *entry) {
    size_t owed = 0; /* text of earlier tokens that this one made certain */
    assert(!stream->stopped);
    forget_given(stream);
    const size_t before = stream->held.bytes;
    if (stream->decoder) owed = mr_decoder_push(stream->decoder, entry->token, &stream->held);
    count_characters(stream, before, before + owed);
    const uint64_t characters = stream->characters;
    count_characters(stream, before + owed, stream->held.bytes);
    keep_entry(stream, entry, stream->held_first + before + owed, characters);
    const size_t safe = scan(stream);
    return give(stream, safe, stream->stopped);
}

mr_stream_part mr_stream_finish(mr_stream *stream) {
    forget_given(stream);
    if (stream->stopped) return (mr_stream_part){"", 0, NULL, 0, true};
    if (stream->decoder) mr_decoder_flush(stream->decoder, &stream->held);
    const size_t safe = scan(stream); /* a completed U+FFFD may end a stop string */
    return give(stream, stream->stopped ? safe : stream->held.bytes, true);
}
