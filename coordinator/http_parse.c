/* http_parse.c - see http_parse.h. */
#include "coordinator/http_parse.h"

#include "common/base/limits.h"

#include <string.h>
#include <strings.h>

enum { METHOD_BYTES_MAX = 16, LINE_BYTES_MAX = 256, TRAILER_BYTES_MAX = 4096 };

typedef struct {
    const char *at, *end;
} span;

static size_t length(span s) {
    return (size_t)(s.end - s.at);
}

static bool is_token(char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static bool equals(span s, const char *word) {
    return length(s) == strlen(word) && strncasecmp(s.at, word, length(s)) == 0;
}

static int refuse(int code, const char **reason, const char *sentence) {
    *reason = sentence;
    return code;
}

/* The end of the head: the first empty line. 0: not there yet. */
static size_t find_end(const char *data, size_t bytes) {
    const char *found = memmem(data, bytes, "\r\n\r\n", 4);
    return found ? (size_t)(found - data) + 4 : 0;
}

static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* target: /path?query, or an absolute form whose authority is left aside. */
static int read_target(mr_http_head *out, span target, const char **reason) {
    size_t used = 0;
    if (length(target) > 7 && strncasecmp(target.at, "http://", 7) == 0) {
        const char *slash = memchr(target.at + 7, '/', length(target) - 7);
        if (!slash) return refuse(400, reason, "the request target has no path");
        target.at = slash;
    }
    if (length(target) == 0 || (*target.at != '/' && !equals(target, "*")))
        return refuse(400, reason, "the request target must be a path");
    for (const char *c = target.at; c < target.end && *c != '?'; c++) {
        char byte = *c;
        if (byte == '#') return refuse(400, reason, "the request target has a fragment");
        if (byte == '%') {
            const int high = target.end - c > 2 ? hex(c[1]) : -1;
            const int low = high >= 0 ? hex(c[2]) : -1;
            if (low < 0) return refuse(400, reason, "the path has a broken percent escape");
            byte = (char)(high * 16 + low);
            if (byte == '\0') return refuse(400, reason, "the path holds a NUL character");
            c += 2;
        }
        if (used + 1 == sizeof(out->path)) return refuse(414, reason, "the path is too long");
        out->path[used++] = byte;
    }
    out->path[used] = '\0';
    return 200;
}

static mr_http_method method_of(span word) {
    if (length(word) == 3 && memcmp(word.at, "GET", 3) == 0) return MR_HTTP_GET;
    if (length(word) == 4 && memcmp(word.at, "HEAD", 4) == 0) return MR_HTTP_HEAD;
    if (length(word) == 4 && memcmp(word.at, "POST", 4) == 0) return MR_HTTP_POST;
    return MR_HTTP_OTHER;
}

static int read_request_line(mr_http_head *out, span line, const char **reason) {
    const char *c = line.at;
    while (c < line.end && is_token(*c)) c++;
    const span method = {line.at, c};
    if (length(method) == 0 || length(method) > METHOD_BYTES_MAX || c == line.end || *c != ' ')
        return refuse(400, reason, "the request line does not begin with a method");
    const span rest = {c + 1, line.end};
    const char *space = memchr(rest.at, ' ', length(rest));
    if (!space) return refuse(400, reason, "the request line has no HTTP version");
    const span target = {rest.at, space}, version = {space + 1, line.end};
    for (c = target.at; c < target.end; c++)
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7f)
            return refuse(400, reason, "the request target has characters that must be escaped");
    if (length(version) != 8 || memcmp(version.at, "HTTP/", 5) != 0)
        return refuse(400, reason, "the request line has no HTTP version");
    if (memcmp(version.at, "HTTP/1.1", 8) != 0 && memcmp(version.at, "HTTP/1.0", 8) != 0)
        return refuse(505, reason, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    out->keeps_alive = version.at[7] == '1'; /* one request per connection of HTTP/1.0 */
    out->method = method_of(method);
    return read_target(out, target, reason);
}

static int read_length(mr_http_head *out, span value, const char **reason) {
    uint64_t number = 0;
    if (out->has_length) return refuse(400, reason, "Content-Length is given twice");
    if (length(value) == 0) return refuse(400, reason, "Content-Length is empty");
    for (const char *c = value.at; c < value.end; c++) {
        if (*c < '0' || *c > '9') return refuse(400, reason, "Content-Length is not a number");
        if (number > (UINT64_MAX - 9) / 10) return refuse(413, reason, "the body is too large");
        number = number * 10 + (uint64_t)(*c - '0');
    }
    out->has_length = true;
    out->content_bytes = number;
    return 200;
}

/* Whether one of the comma-separated words of value is word. */
static bool lists(span value, const char *word) {
    while (value.at < value.end) {
        const char *comma = memchr(value.at, ',', length(value));
        span item = {value.at, comma ? comma : value.end};
        value.at = comma ? comma + 1 : value.end;
        while (item.at < item.end && (*item.at == ' ' || *item.at == '\t')) item.at++;
        while (item.end > item.at && (item.end[-1] == ' ' || item.end[-1] == '\t')) item.end--;
        if (equals(item, word)) return true;
    }
    return false;
}

static int read_field(mr_http_head *out, span name, span value, const char **reason) {
    if (equals(name, "content-length")) return read_length(out, value, reason);
    if (equals(name, "transfer-encoding")) {
        if (out->is_chunked || !equals(value, "chunked"))
            return refuse(501, reason, "the only transfer encoding taken is chunked");
        out->is_chunked = true;
    } else if (equals(name, "connection")) {
        if (lists(value, "close"))
            out->keeps_alive = false;
        else if (lists(value, "keep-alive"))
            out->keeps_alive = true;
    } else if (equals(name, "expect")) {
        if (!equals(value, "100-continue"))
            return refuse(417, reason, "the expectation is not understood");
        out->expects_continue = true;
    } else if (equals(name, "content-type")) {
        static const char *const types[] = {"application/json", "text/json"};
        const char *end = memchr(value.at, ';', length(value));
        span type = {value.at, end ? end : value.end};
        while (type.end > type.at && type.end[-1] == ' ') type.end--;
        out->is_json = equals(type, types[0]) || equals(type, types[1]);
    } else if (equals(name, "content-encoding")) {
        if (!equals(value, "identity"))
            return refuse(415, reason, "compressed bodies are not taken");
    }
    return 200;
}

static int read_line(mr_http_head *out, span line, const char **reason) {
    const char *colon = memchr(line.at, ':', length(line));
    if (*line.at == ' ' || *line.at == '\t') return refuse(400, reason, "a header line is folded");
    if (!colon || colon == line.at) return refuse(400, reason, "a header line has no name");
    const span name = {line.at, colon};
    for (const char *c = name.at; c < name.end; c++)
        if (!is_token(*c)) return refuse(400, reason, "a header name has odd characters");
    span value = {colon + 1, line.end};
    while (value.at < value.end && (*value.at == ' ' || *value.at == '\t')) value.at++;
    while (value.end > value.at && (value.end[-1] == ' ' || value.end[-1] == '\t')) value.end--;
    for (const char *c = value.at; c < value.end; c++)
        if (((unsigned char)*c < 0x20 && *c != '\t') || *c == 0x7f)
            return refuse(400, reason, "a header value has control characters");
    return read_field(out, name, value, reason);
}

/* Garbage is refused before a whole head has come: a line feed without its carriage return, a line
 * that begins with no method. */
static int check_beginning(const char *data, size_t bytes, const char **reason) {
    for (size_t i = 0; i < bytes && data[i] != ' ' && data[i] != '\r'; i++)
        if (!is_token(data[i]) || i >= METHOD_BYTES_MAX)
            return refuse(400, reason, "the request line does not begin with a method");
    for (const char *c = data; (c = memchr(c, '\n', (size_t)(data + bytes - c))) != NULL; c++)
        if (c == data || c[-1] != '\r') return refuse(400, reason, "lines must end with CR LF");
    return 0;
}

int mr_http_parse_head(mr_http_head *out, const char *data, size_t bytes, size_t *head_bytes,
                       const char **reason) {
    size_t skip = 0, fields = 0;
    *out = (mr_http_head){.is_json = true};
    *head_bytes = 0;
    *reason = "";
    if (bytes >= 2 && data[0] == '\r' && data[1] == '\n') skip = 2; /* after a sloppy body */
    data += skip;
    bytes -= skip;
    const size_t end = find_end(data, bytes);
    int code = check_beginning(data, end ? end : bytes, reason);
    if (code != 0) return code;
    if ((end ? end : bytes) > MR_MAX_HTTP_HEADER_BYTES)
        return refuse(431, reason, "the request's head is too large");
    if (end == 0) return 0;
    const char *at = data, *stop = data + end - 2;
    for (bool first = true; at < stop; first = false) {
        const char *line_end = memmem(at, (size_t)(stop - at), "\r\n", 2);
        const span line = {at, line_end ? line_end : stop};
        if (length(line) == 0) return refuse(400, reason, "the request is empty");
        if (!first && ++fields > MR_MAX_HTTP_HEADERS)
            return refuse(431, reason, "the request has too many header lines");
        code = first ? read_request_line(out, line, reason) : read_line(out, line, reason);
        if (code != 200) return code;
        at = line.end + 2;
    }
    if (out->is_chunked && out->has_length)
        return refuse(400, reason, "both Content-Length and Transfer-Encoding are given");
    *head_bytes = skip + end;
    return 200;
}

static void bad_chunk(mr_http_chunks *c) {
    c->state = MR_CHUNK_BAD;
}

static void read_size_byte(mr_http_chunks *c, char byte) {
    if (++c->line_bytes > LINE_BYTES_MAX) {
        bad_chunk(c);
        return;
    }
    if (c->after_cr) {
        if (byte != '\n' || c->digits == 0) {
            bad_chunk(c);
            return;
        }
        c->state = c->left > 0 ? MR_CHUNK_DATA : MR_CHUNK_TRAILER;
        c->line_bytes = 0;
        c->after_cr = c->in_extension = false;
        c->digits = 0;
        return;
    }
    if (byte == '\r')
        c->after_cr = true;
    else if (c->in_extension) {
        if ((unsigned char)byte < 0x20 && byte != '\t') bad_chunk(c);
    } else if (byte == ';')
        c->in_extension = true;
    else {
        const int digit = hex(byte);
        if (digit < 0 || ++c->digits > 8)
            bad_chunk(c); /* 8 digits: far beyond any body taken */
        else
            c->left = c->left * 16 + (uint64_t)digit;
    }
}

static void read_end_byte(mr_http_chunks *c, char byte) {
    if (!c->after_cr) {
        if (byte == '\r')
            c->after_cr = true;
        else
            bad_chunk(c);
        return;
    }
    c->after_cr = false;
    if (byte == '\n')
        c->state = MR_CHUNK_SIZE;
    else
        bad_chunk(c);
}

/* Trailer lines are read past; an empty line ends them. */
static void read_trailer_byte(mr_http_chunks *c, char byte) {
    if (++c->trailer_bytes > TRAILER_BYTES_MAX) {
        bad_chunk(c);
        return;
    }
    if (c->after_cr) {
        c->after_cr = false;
        if (byte != '\n')
            bad_chunk(c);
        else if (c->line_bytes == 0)
            c->state = MR_CHUNK_DONE;
        c->line_bytes = 0;
    } else if (byte == '\r')
        c->after_cr = true;
    else if (byte == '\n')
        bad_chunk(c);
    else
        c->line_bytes++;
}

size_t mr_http_read_chunk(mr_http_chunks *c, const char *data, size_t bytes, const char **body,
                          size_t *body_bytes) {
    size_t at = 0;
    *body = data;
    *body_bytes = 0;
    while (at < bytes && c->state != MR_CHUNK_DONE && c->state != MR_CHUNK_BAD) {
        switch (c->state) {
        case MR_CHUNK_SIZE:
            read_size_byte(c, data[at++]);
            break;
        case MR_CHUNK_DATA: {
            const size_t have = bytes - at, piece = have < c->left ? have : (size_t)c->left;
            *body = data + at;
            *body_bytes = piece;
            c->left -= piece;
            if (c->left == 0) c->state = MR_CHUNK_DATA_END;
            return at + piece;
        }
        case MR_CHUNK_DATA_END:
            read_end_byte(c, data[at++]);
            break;
        case MR_CHUNK_TRAILER:
            read_trailer_byte(c, data[at++]);
            break;
        case MR_CHUNK_DONE:
        case MR_CHUNK_BAD:
            break;
        }
    }
    return at;
}
