/* http_parse.h - the head of an HTTP/1.x request, and chunked bodies: pure functions over bytes.
 *
 * Strict on purpose. What two readers could read differently is refused: bare line feeds, folded
 * lines, control characters, spaces before a colon, two lengths, a length beside a transfer
 * encoding, any coding but chunked. Every part has a bound. Fuzzed by tests/fuzz/fuzz_http_body.c.
 */
#ifndef MR_COORDINATOR_HTTP_PARSE_H
#define MR_COORDINATOR_HTTP_PARSE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    MR_HTTP_GET = 1,
    MR_HTTP_HEAD,
    MR_HTTP_POST,
    MR_HTTP_OTHER, /* a well-formed method of no use here */
} mr_http_method;

enum { MR_HTTP_PATH_BYTES = 1024 };

typedef struct {
    mr_http_method method;
    char path[MR_HTTP_PATH_BYTES]; /* without query, percent-decoded, zero-terminated */
    bool keeps_alive;
    bool expects_continue;
    bool is_chunked;
    bool has_length;
    uint64_t content_bytes;
    bool is_json; /* Content-Type names JSON, or is absent */
} mr_http_head;

/* Returns 0: more bytes are needed; 200: *out is filled and *head_bytes of data are the head; else
 * the status code to refuse with, and *reason one sentence (static). */
int mr_http_parse_head(mr_http_head *out, const char *data, size_t bytes, size_t *head_bytes,
                       const char **reason);

/* A chunked body as it comes. Starts as {0}. */
typedef struct {
    enum {
        MR_CHUNK_SIZE, /* reading a size line */
        MR_CHUNK_DATA,
        MR_CHUNK_DATA_END, /* CR LF after data */
        MR_CHUNK_TRAILER,
        MR_CHUNK_DONE,
        MR_CHUNK_BAD
    } state;
    uint64_t left;       /* of the current chunk */
    uint32_t line_bytes; /* of the current line */
    uint32_t digits;
    uint32_t trailer_bytes;
    bool after_cr, in_extension;
} mr_http_chunks;

/* Reads from data until it is used up, a piece of body was found, or the body ended. Returns the
 * bytes consumed; *body (into data) and *body_bytes are the piece, 0 bytes if none. */
size_t mr_http_read_chunk(mr_http_chunks *chunks, const char *data, size_t bytes, const char **body,
                          size_t *body_bytes);

#endif
