/* log.c - see log.h. Plain text ("memrack: warning: ...") suits a person at a terminal. */
#include "common/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    const char *component;
    mr_log_level level;
    int plain;
} setup = {"memrack", MR_LOG_INFO, 1};

void mr_log_setup(const char *component, mr_log_level level, int plain_text) {
    setup.component = component;
    setup.level = level;
    setup.plain = plain_text;
}

static size_t escape(char *out, size_t room, const char *text) {
    size_t used = 0;
    for (; *text && used + 7 < room; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            out[used++] = '\\';
            out[used++] = (char)c;
        } else if (c < 0x20 || c == 0x7f)
            used += (size_t)snprintf(out + used, room - used, "\\u%04x", c);
        else
            out[used++] = (char)c;
    }
    out[used] = '\0';
    return used;
}

void mr_log(mr_log_level level, const char *format, ...) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    if (level > setup.level) return;
    char text[1024], escaped[2048], line[2304];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    escape(escaped, sizeof(escaped), text);
    int bytes;
    if (setup.plain) {
        if (level <= MR_LOG_WARN)
            bytes =
                snprintf(line, sizeof(line), "%s: %s: %s\n", setup.component, names[level], text);
        else
            bytes = snprintf(line, sizeof(line), "%s: %s\n", setup.component, text);
    } else {
        struct timespec now;
        struct tm date;
        char stamp[32];
        clock_gettime(CLOCK_REALTIME, &now);
        gmtime_r(&now.tv_sec, &date);
        strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &date);
        bytes = snprintf(
            line, sizeof(line),
            "{\"ts\":\"%s.%03ldZ\",\"level\":\"%s\",\"component\":\"%s\",\"event\":\"%s\"}\n",
            stamp, now.tv_nsec / 1000000, names[level], setup.component, escaped);
    }
    if (bytes < 0) return;
    if ((size_t)bytes >= sizeof(line)) bytes = (int)sizeof(line) - 1;
    const ssize_t put = write(STDERR_FILENO, line, (size_t)bytes);
    (void)put; /* a log that cannot be written has nobody to tell */
}
