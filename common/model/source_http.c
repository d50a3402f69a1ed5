/* source_http.c - see source_http.h. libcurl's easy interface: one connection that is kept. */
#include "common/model/source_http.h"

#include "common/base/clock.h"
#include "common/base/file.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
    CONNECT_TIMEOUT_S = 10,
    STALL_S = 15,
    TOTAL_S = 6 * 3600,
    TRIES = 8,
    PAUSE_MS_MIN = 100,
    PAUSE_MS_MAX = 5000,
    REDIRECTS_MAX = 5,
    HEADER_FILE_BYTES_MAX = 64 << 10,
    POLL_MS = 50, /* for is_cancelled */
};

struct mr_http {
    CURL *curl;
    struct curl_slist *headers;
    char *base, *query; /* query: with its '?', or "" */
    mr_source_options options;
    char error[CURL_ERROR_SIZE];
    mr_http_range *range; /* of the transfer under way */
    mr_status status;     /* the sink's, or ours */
    mr_err err;
};

static bool is_cancelled(const mr_http *http) {
    return http->options.is_cancelled && atomic_load(http->options.is_cancelled);
}

/* --- one transfer ----------------------------------------------------------------------------- */

/* "Content-Range: bytes 0-99/1234" */
static size_t on_header(char *data, size_t size, size_t count, void *context) {
    mr_http *http = context;
    static const char name[] = "content-range:";
    const size_t bytes = size * count;
    char line[160];
    if (bytes >= sizeof(name) && bytes < sizeof(line) &&
        strncasecmp(data, name, sizeof(name) - 1) == 0) {
        memcpy(line, data, bytes);
        line[bytes] = '\0';
        unsigned long long first, last, all;
        if (sscanf(line + sizeof(name) - 1, " bytes %llu-%llu/%llu", &first, &last, &all) == 3) {
            const mr_http_range *r = http->range;
            if (first != r->first + r->got)
                http->status =
                    mr_fail(&http->err, MR_ERR_FORMAT, "the server sends bytes from %llu, not %llu",
                            first, (unsigned long long)(r->first + r->got));
            http->range->file_bytes = all;
        }
    }
    return http->status == MR_OK ? bytes : 0;
}

/* An answer to the whole file serves a range at its beginning. */
static mr_status check_code(mr_http *http) {
    mr_http_range *r = http->range;
    long code = 0;
    curl_off_t length = -1;
    curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code == 206 || r->file_bytes != UINT64_MAX) return MR_OK;
    curl_easy_getinfo(http->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (length >= 0) r->file_bytes = (uint64_t)length;
    if (r->first + r->got == 0) return MR_OK;
    r->is_final = true;
    return mr_fail(&http->err, MR_ERR_UNSUPPORTED, "the server ignores byte ranges");
}

static size_t on_body(char *data, size_t size, size_t count, void *context) {
    mr_http *http = context;
    mr_http_range *r = http->range;
    const uint64_t left = r->bytes - r->got;
    size_t bytes = size * count;
    if (http->status == MR_OK) http->status = check_code(http);
    if (http->status != MR_OK) return 0;
    if (bytes > left) bytes = (size_t)left;
    http->status = r->sink(r->context, (const uint8_t *)data, bytes, &http->err);
    if (http->status != MR_OK) {
        r->is_final = true;
        return 0;
    }
    r->got += bytes;
    return bytes < size * count ? 0 : bytes;
}

static int on_progress(void *context, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up) {
    (void)total, (void)now, (void)up_total, (void)up;
    return is_cancelled(context);
}

static mr_status refuse_code(mr_http *http, long code, const char *file, mr_err *err) {
    mr_http_range *r = http->range;
    r->is_missing = code == 404 || code == 410;
    r->is_final = code >= 400 && code < 500 && code != 408 && code != 425 && code != 429;
    return mr_fail(err, MR_ERR_IO, "%s/%s: the server answers %ld%s", http->base, file, code,
                   r->is_missing                ? " (not found)"
                   : code == 401 || code == 403 ? " (not allowed)"
                   : code == 416                ? " (no such range)"
                                                : "");
}

static void prepare(mr_http *http, const mr_http_range *r, const char *url) {
    char range[64] = "";
    const uint64_t first = r->first + r->got;
    const int64_t left_ms = (r->deadline_ns - mr_now_ns()) / 1000000;
    if (r->bytes != UINT64_MAX)
        snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)first,
                 (unsigned long long)(r->first + r->bytes - 1));
    else if (first > 0)
        snprintf(range, sizeof(range), "%llu-", (unsigned long long)first);
    curl_easy_setopt(http->curl, CURLOPT_URL, url);
    curl_easy_setopt(http->curl, CURLOPT_RANGE, *range ? range : NULL);
    curl_easy_setopt(http->curl, CURLOPT_TIMEOUT_MS, (long)(left_ms > 1 ? left_ms : 1));
    http->error[0] = '\0';
    http->status = MR_OK;
}

mr_status mr_http_get(mr_http *http, mr_http_range *range, mr_err *err) {
    char *url = mr_format("%s/%s%s", http->base, range->file, http->query);
    long code = 0;
    http->range = range;
    range->is_final = range->is_missing = false;
    range->file_bytes = UINT64_MAX;
    prepare(http, range, url);
    const CURLcode result = curl_easy_perform(http->curl);
    free(url);
    curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &code);
    if (result == CURLE_HTTP_RETURNED_ERROR || code >= 400)
        return refuse_code(http, code, range->file, err);
    if (range->got == range->bytes) return MR_OK; /* cut by us, where the server sends on */
    if (is_cancelled(http)) {
        range->is_final = true;
        return mr_fail(err, MR_ERR_CANCELLED, "%s/%s: not wanted any more", http->base,
                       range->file);
    }
    if (http->status != MR_OK) {
        if (err) *err = http->err;
        return mr_fail_prefix(err, http->status, "%s/%s", http->base, range->file);
    }
    if (result != CURLE_OK)
        return mr_fail(err,
                       result == CURLE_OPERATION_TIMEDOUT ? MR_ERR_TIMEOUT : MR_ERR_UNAVAILABLE,
                       "%s/%s: %s", http->base, range->file,
                       *http->error ? http->error : curl_easy_strerror(result));
    if (range->bytes == UINT64_MAX || range->first + range->got == range->file_bytes) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT, "%s/%s: %llu bytes came, %llu were asked for", http->base,
                   range->file, (unsigned long long)range->got, (unsigned long long)range->bytes);
}

/* --- again ------------------------------------------------------------------------------------ */

static void pause_ms(const mr_http *http, uint32_t ms) {
    const int64_t until = mr_now_ns() + (int64_t)ms * 1000000;
    while (!is_cancelled(http) && mr_now_ns() < until)
        nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000}, NULL);
}

mr_status mr_http_get_all(mr_http *http, mr_http_range *range, mr_source_counters *counters,
                          mr_err *err) {
    const uint32_t tries = http->options.tries ? http->options.tries : TRIES;
    const uint32_t total_s = http->options.total_s ? http->options.total_s : TOTAL_S;
    const int64_t deadline = mr_now_ns() + (int64_t)total_s * 1000000000;
    uint32_t pause = PAUSE_MS_MIN;
    for (uint32_t failed = 0;;) {
        const uint64_t before = range->got;
        mr_err why = {{0}};
        range->deadline_ns = deadline;
        const mr_status status = mr_http_get(http, range, &why);
        counters->requests++;
        counters->bytes += range->got - before;
        if (status == MR_OK) return MR_OK;
        if (range->got > before) {
            failed = 0;
            pause = PAUSE_MS_MIN;
        }
        failed++;
        if (range->is_final || failed >= tries || mr_now_ns() >= deadline) {
            if (err) *err = why;
            if (range->is_final) return status;
            return mr_fail_prefix(err, status, "given up after %u tries without progress", failed);
        }
        mr_log_info("in %u ms again: %s", pause, why.text);
        counters->retries++;
        pause_ms(http, pause);
        pause = pause * 2 < PAUSE_MS_MAX ? pause * 2 : PAUSE_MS_MAX;
    }
}

/* --- open and close --------------------------------------------------------------------------- */

static mr_status read_headers(mr_http *http, mr_err *err) {
    char *text, *line, *rest;
    size_t bytes;
    if (!http->options.header_file) return MR_OK;
    const mr_status status =
        mr_file_read(&text, &bytes, http->options.header_file, HEADER_FILE_BYTES_MAX, err);
    if (status != MR_OK) return status;
    for (line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest))
        if (*line != '#' && strchr(line, ':'))
            http->headers = curl_slist_append(http->headers, line);
    free(text);
    return MR_OK;
}

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static void start_curl(void) {
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static void set_options(mr_http *http) {
    const mr_source_options *o = &http->options;
    CURL *c = http->curl;
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)REDIRECTS_MAX);
    curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_TIMEOUT_S);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1024L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)(o->stall_s ? o->stall_s : STALL_S));
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, http->error);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, http);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, http);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, http);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "memrack/" MR_VERSION);
    if (http->headers) curl_easy_setopt(c, CURLOPT_HTTPHEADER, http->headers);
    if (o->netrc_file) {
        curl_easy_setopt(c, CURLOPT_NETRC, (long)CURL_NETRC_OPTIONAL);
        curl_easy_setopt(c, CURLOPT_NETRC_FILE, o->netrc_file);
    }
    if (o->ca_file) curl_easy_setopt(c, CURLOPT_CAINFO, o->ca_file);
}

mr_status mr_http_files_open(mr_http **out, const char *address, const mr_source_options *options,
                             mr_err *err) {
    *out = NULL;
    pthread_once(&curl_once, start_curl);
    mr_http *http = mr_alloc(sizeof(*http));
    http->options = *options;
    const size_t base_bytes = strcspn(address, "?");
    http->base = mr_strndup(address, base_bytes);
    http->query = mr_strdup(address + base_bytes);
    for (char *end = http->base + base_bytes; end > http->base && end[-1] == '/';) *--end = '\0';
    mr_status status = read_headers(http, err);
    if (status == MR_OK) {
        http->curl = curl_easy_init();
        if (!http->curl) status = mr_fail(err, MR_ERR_NOMEM, "libcurl cannot be started");
    }
    if (status != MR_OK) {
        mr_http_files_close(http);
        return status;
    }
    set_options(http);
    *out = http;
    return MR_OK;
}

void mr_http_files_close(mr_http *http) {
    if (!http) return;
    if (http->curl) curl_easy_cleanup(http->curl);
    curl_slist_free_all(http->headers);
    free(http->base);
    free(http->query);
    free(http);
}
