/* status.h - the one status type, and the sentence that goes with a failure.
 *
 * Every fallible function returns mr_status. Those whose failure an operator or a client will hear
 * about also take an mr_err and leave one clear sentence in it: what was found, where, and what was
 * expected. The function that detects a failure words it; callers pass it on untouched or prefix
 * it. Threads: an mr_err belongs to its caller; nothing here is shared. */
#ifndef MR_BASE_STATUS_H
#define MR_BASE_STATUS_H

typedef enum {
    MR_OK = 0,
    MR_ERR_IO = -1,          /* the system refused: open, read, map, connect */
    MR_ERR_FORMAT = -2,      /* a file or a frame is not what it claims to be */
    MR_ERR_RANGE = -3,       /* a number lies outside its bounds */
    MR_ERR_UNSUPPORTED = -4, /* well-formed, understood, not implemented: refused by name */
    MR_ERR_ARGUMENT = -5,    /* a request or an option makes no sense */
    MR_ERR_NOMEM = -6,       /* the memory asked for is not there */
    MR_ERR_LIMIT = -7,       /* a maximum of limits.h was reached */
    MR_ERR_TIMEOUT = -8,     /* a deadline passed */
    MR_ERR_UNAVAILABLE = -9, /* a peer is gone or not ready */
    MR_ERR_MISMATCH = -10,   /* peers disagree: version, digest, grid */
    MR_ERR_CANCELLED = -11,  /* the one who asked went away */
    MR_ERR_AGAIN = -12,      /* nothing there yet; only from non-blocking calls */
    MR_ERR_STALE = -13,      /* asked with an older map, owner or session than the other side has */
} mr_status;

enum { MR_ERR_TEXT_BYTES = 512 };

typedef struct {
    char text[MR_ERR_TEXT_BYTES]; /* one sentence, no line break, always terminated */
} mr_err;

/* Puts the sentence into err (NULL: dropped) and returns status, so that a failure is one line:
 * return mr_fail(err, MR_ERR_IO, "open %s: %s", path, strerror(errno)).
 * Bytes that are not printable UTF-8 text are replaced, so that hostile names cannot forge lines.
 */
mr_status mr_fail(mr_err *err, mr_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "PREFIX: " before the sentence already in err; returns status. */
mr_status mr_fail_prefix(mr_err *err, mr_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

const char *mr_status_name(mr_status status); /* "format", "timeout", ...: for metrics and logs */

#endif
