/* status.c - wording failures safely: whatever bytes a hostile file or peer put into the arguments,
 * the sentence stays one printable line. */
#include "common/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Control characters become '?'. Bytes above 127 stay: they may be UTF-8 of a path. A cut in the
 * middle of a character at the end of the buffer is harmless to every reader we have. */
static void make_printable(char *text) {
    for (; *text; text++) {
        const unsigned char byte = (unsigned char)*text;
        if (byte < 0x20 || byte == 0x7f) *text = '?';
    }
}

mr_status mr_fail(mr_err *err, mr_status status, const char *format, ...) {
    if (!err) return status;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    make_printable(err->text);
    return status;
}

mr_status mr_fail_prefix(mr_err *err, mr_status status, const char *format, ...) {
    if (!err) return status;
    char tail[MR_ERR_TEXT_BYTES];
    memcpy(tail, err->text, sizeof(tail));
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    size_t used = strlen(err->text);
    for (const char *from = ": "; *from && used + 1 < sizeof(err->text); from++)
        err->text[used++] = *from;
    for (const char *from = tail; *from && used + 1 < sizeof(err->text); from++)
        err->text[used++] = *from;
    err->text[used] = '\0';
    make_printable(err->text);
    return status;
}

const char *mr_status_name(mr_status status) {
    switch (status) {
    case MR_OK:
        return "ok";
    case MR_ERR_IO:
        return "io";
    case MR_ERR_FORMAT:
        return "format";
    case MR_ERR_RANGE:
        return "range";
    case MR_ERR_UNSUPPORTED:
        return "unsupported";
    case MR_ERR_ARGUMENT:
        return "argument";
    case MR_ERR_NOMEM:
        return "no memory";
    case MR_ERR_LIMIT:
        return "limit";
    case MR_ERR_TIMEOUT:
        return "timeout";
    case MR_ERR_UNAVAILABLE:
        return "unavailable";
    case MR_ERR_MISMATCH:
        return "mismatch";
    case MR_ERR_CANCELLED:
        return "cancelled";
    case MR_ERR_AGAIN:
        return "again";
    case MR_ERR_STALE:
        return "stale";
    }
    return "unknown";
}
