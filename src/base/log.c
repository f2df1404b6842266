/* See log.h. */
#include "base/log.h"

#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

/* Lines up to PIPE_BUF bytes reach a pipe whole or not at all, so they never interleave and never arrive in part. */
enum { LINE_CAPACITY = 4096 };

static struct {
    int fd;
    bool json;
    log_level level;
} config = {.fd = STDERR_FILENO, .json = false, .level = LOG_INFO};
static atomic_ulong n_dropped;

typedef struct line {
    char bytes[LINE_CAPACITY];
    size_t n;
} line;

void log_setup(int fd, bool json, log_level level) {
    config.fd = fd;
    config.json = json;
    config.level = level;
}

uint64_t log_dropped(void) { return atomic_load(&n_dropped); }

static void put(line *l, const char *text, size_t n) {
    if (n > sizeof l->bytes - 2 - l->n) n = sizeof l->bytes - 2 - l->n;
    memcpy(l->bytes + l->n, text, n);
    l->n += n;
}

static void puts_(line *l, const char *text) { put(l, text, strlen(text)); }

/* Control characters would let logged text forge lines; in JSON the quote and backslash are escaped too. */
static void put_escaped(line *l, const char *text, bool json) {
    for (const char *s = text; *s; s++) {
        unsigned char c = (unsigned char)*s;
        char escaped[8];
        if (c < 0x20 || c == 0x7F) {
            snprintf(escaped, sizeof escaped, "\\u%04x", c);
            puts_(l, escaped);
        } else {
            if (json && (c == '"' || c == '\\')) put(l, "\\", 1);
            put(l, s, 1);
        }
    }
}

static void put_number(line *l, double value) {
    char text[40];
    if (!isfinite(value)) snprintf(text, sizeof text, "null");
    else if (value == floor(value) && fabs(value) < 1e15) snprintf(text, sizeof text, "%.0f", value);
    else snprintf(text, sizeof text, "%.6g", value);
    puts_(l, text);
}

static void emit(line *l) {
    l->bytes[l->n++] = '\n';
    /* The descriptor may be blocking and shared with others, so its flags are left alone: ask for room instead. */
    struct pollfd ready = {.fd = config.fd, .events = POLLOUT};
    if (poll(&ready, 1, 0) != 1 || !(ready.revents & POLLOUT) || write(config.fd, l->bytes, l->n) < 0)
        atomic_fetch_add(&n_dropped, 1);
}

void log_event(log_level level, const char *message, const log_field *fields, size_t n_fields) {
    static const char *const names[] = {"ERROR", "WARN", "INFO", "DEBUG"};
    if (level > config.level) return;
    line l = {.n = 0};
    char stamp[48];
    clock_rfc3339(stamp, sizeof stamp, 3, "Z");
    if (config.json) {
        puts_(&l, "{\"timestamp\":\"");
        puts_(&l, stamp);
        puts_(&l, "\",\"level\":\"");
        puts_(&l, names[level]);
        puts_(&l, "\",\"message\":\"");
        put_escaped(&l, message, true);
        puts_(&l, "\"");
    } else {
        puts_(&l, stamp);
        puts_(&l, " ");
        puts_(&l, names[level]);
        puts_(&l, " ");
        put_escaped(&l, message, false);
    }
    for (size_t i = 0; i < n_fields; i++) {
        if (l.n > LINE_CAPACITY - 512) break;
        puts_(&l, config.json ? ",\"" : " ");
        puts_(&l, fields[i].key);
        puts_(&l, config.json ? "\":" : "=");
        if (fields[i].text == NULL) {
            put_number(&l, fields[i].number);
        } else {
            char clipped[256];
            snprintf(clipped, sizeof clipped, "%s", fields[i].text);
            /* In the human form only where a reader, or a program, would not see where the value ends. */
            const bool quoted = config.json || strpbrk(clipped, " \"=");
            if (quoted) puts_(&l, "\"");
            put_escaped(&l, clipped, quoted);
            if (quoted) puts_(&l, "\"");
        }
    }
    if (config.json) {
        if (l.n > sizeof l.bytes - 3) l.n = sizeof l.bytes - 3;
        l.bytes[l.n++] = '}';
    }
    emit(&l);
}

void log_write(log_level level, const char *format, ...) {
    char message[1024];
    if (level > config.level) return;
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    log_event(level, message, NULL, 0);
}
