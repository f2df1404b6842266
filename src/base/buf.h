/* A growable byte buffer with a sticky out-of-memory flag: append without checking, check once at the end.
 * Always NUL-terminated once something was appended (the NUL is not counted). Owned by one thread. */
#ifndef WEIR_BASE_BUF_H
#define WEIR_BASE_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct buf {
    char *data; /* NULL while nothing was appended */
    size_t n_bytes, capacity;
    size_t limit; /* most bytes it may hold; 0 = no limit; beyond it `failed` is set as for out of memory */
    bool failed;  /* an append did not fit; the content is then incomplete */
} buf;

#define BUF_INIT ((buf){0})

void buf_free(buf *b);                                      /* back to BUF_INIT; keeps the limit */
void buf_clear(buf *b);                                     /* empty, keeps the memory; clears `failed` */
bool buf_reserve(buf *b, size_t extra);                     /* room for `extra` more bytes; false = failed */
void buf_append(buf *b, const void *bytes, size_t n_bytes); /* `bytes` must not point into b */
void buf_puts(buf *b, const char *text);
void buf_putc(buf *b, char c);
void buf_printf(buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first n bytes (n <= n_bytes). */
void buf_consume(buf *b, size_t n);
/* Hands the NUL-terminated memory to the caller, who frees it with free(); NULL if failed (the memory is freed then). */
char *buf_take(buf *b, size_t *n_bytes);

#endif
