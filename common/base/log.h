/* log.h - one JSON object per line on stderr: ts, level, component, event text.
 * Threads: any; a line is written with one write(). Prompts and secrets are never logged. */
#ifndef MR_BASE_LOG_H
#define MR_BASE_LOG_H

typedef enum { MR_LOG_ERROR, MR_LOG_WARN, MR_LOG_INFO, MR_LOG_DEBUG } mr_log_level;

void mr_log_setup(const char *component, mr_log_level level, int plain_text); /* from main only */
void mr_log(mr_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define mr_log_error(...) mr_log(MR_LOG_ERROR, __VA_ARGS__)
#define mr_log_warn(...) mr_log(MR_LOG_WARN, __VA_ARGS__)
#define mr_log_info(...) mr_log(MR_LOG_INFO, __VA_ARGS__)
#define mr_log_debug(...) mr_log(MR_LOG_DEBUG, __VA_ARGS__)

#endif
