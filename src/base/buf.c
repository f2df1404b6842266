/* See buf.h. */
#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

void buf_free(buf *b) {
    free(b->data);
    *b = (buf){.limit = b->limit};
}

void buf_clear(buf *b) {
    b->n_bytes = 0;
    b->failed = false;
    if (b->data) b->data[0] = '\0';
}

bool buf_reserve(buf *b, size_t extra) {
    size_t need;
    if (b->failed) return false;
    if (!checked_add(b->n_bytes, extra, &need) || !checked_add(need, 1, &need) || (b->limit && need - 1 > b->limit)) {
        b->failed = true;
        return false;
    }
    if (need <= b->capacity) return true;
    size_t grown = b->capacity + b->capacity / 2;
    if (grown < need) grown = need;
    if (grown < 64) grown = 64;
    char *data = realloc(b->data, grown);
    if (data == NULL) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->capacity = grown;
    return true;
}

void buf_append(buf *b, const void *bytes, size_t n_bytes) {
    if (!buf_reserve(b, n_bytes)) return;
    if (n_bytes) memcpy(b->data + b->n_bytes, bytes, n_bytes);
    b->n_bytes += n_bytes;
    b->data[b->n_bytes] = '\0';
}

void buf_puts(buf *b, const char *text) { buf_append(b, text, strlen(text)); }

void buf_putc(buf *b, char c) { buf_append(b, &c, 1); }

void buf_printf(buf *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !buf_reserve(b, (size_t)n)) {
        b->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(b->data + b->n_bytes, (size_t)n + 1, format, args);
    va_end(args);
    b->n_bytes += (size_t)n;
}

void buf_consume(buf *b, size_t n) {
    if (n == 0) return;
    memmove(b->data, b->data + n, b->n_bytes - n);
    b->n_bytes -= n;
    b->data[b->n_bytes] = '\0';
}

char *buf_take(buf *b, size_t *n_bytes) {
    if (!b->failed) buf_reserve(b, 0);
    if (b->failed) {
        buf_free(b);
        if (n_bytes) *n_bytes = 0;
        return NULL;
    }
    char *data = b->data;
    data[b->n_bytes] = '\0';
    if (n_bytes) *n_bytes = b->n_bytes;
    *b = (buf){.limit = b->limit};
    return data;
}
