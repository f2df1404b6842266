/* One log line per call, human or JSON, never blocking: a line that a full pipe does not take at once is dropped and counted
 * (an orchestrator may pipe a worker's output and never read it). Any thread; lines are not interleaved. */
#ifndef WEIR_BASE_LOG_H
#define WEIR_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level;

typedef struct log_field {
    const char *key;
    const char *text; /* a string value, or NULL for a number */
    double number;
} log_field;

#define LOG_TEXT(k, v) ((log_field){.key = (k), .text = (v) ? (v) : ""})
#define LOG_NUMBER(k, v) ((log_field){.key = (k), .number = (double)(v)})

/* Where lines go (a file descriptor; default 2), their form and the least severe level that is written (default LOG_INFO).
 * Call before other threads start. */
void log_setup(int fd, bool json, log_level level);
void log_write(log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A message with structured fields: "message key=value ..." or members of the JSON object. */
void log_event(log_level level, const char *message, const log_field *fields, size_t n_fields);
uint64_t log_dropped(void);

#endif
