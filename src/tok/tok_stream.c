/* Streaming UTF-8: see tok.h. */
#include <string.h>

#include "base/utf8.h"
#include "tok/tok.h"

/* Appends text[n_bytes] with ill-formed sequences replaced. */
static void append_repaired(buf *out, const char *text, size_t n_bytes) {
    size_t good = 0; /* begin of the well-formed run that is not yet appended */
    for (size_t at = 0; at < n_bytes;) {
        uint32_t c;
        const size_t length = utf8_decode(text + at, n_bytes - at, &c);
        if (c == UTF8_REPLACEMENT && !utf8_valid(text + at, length)) {
            buf_append(out, text + good, at - good);
            buf_append(out, "\xef\xbf\xbd", 3);
            good = at + length;
        }
        at += length;
    }
    buf_append(out, text + good, n_bytes - good);
}

void tok_stream_push(tok_stream *s, const char *bytes, size_t n_bytes, buf *out) {
    /* The held bytes are completed first: one more at a time, until they are whole or ill-formed. */
    while (s->n_held > 0 && n_bytes > 0) {
        char window[sizeof s->held + 1];
        memcpy(window, s->held, s->n_held);
        window[s->n_held] = *bytes;
        const size_t n = s->n_held + 1, complete = utf8_complete_prefix(window, n);
        bytes++;
        n_bytes--;
        append_repaired(out, window, complete);
        s->n_held = n - complete;
        memcpy(s->held, window + complete, s->n_held);
    }
    const size_t complete = utf8_complete_prefix(bytes, n_bytes);
    append_repaired(out, bytes, complete);
    if (n_bytes > complete) {
        s->n_held = n_bytes - complete;
        memcpy(s->held, bytes + complete, s->n_held);
    }
}

void tok_stream_finish(tok_stream *s, buf *out) {
    append_repaired(out, s->held, s->n_held);
    s->n_held = 0;
}
