/* See worker_wire.h. */
#include "api/worker_wire.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

static bool ends_a_client(const char *text, size_t n_bytes) {
    static const char *const marks[] = {"[DONE]", "[CANCELLED]", "[ERROR]"};
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        size_t n = strlen(marks[i]);
        if (n <= n_bytes && memcmp(text, marks[i], n) == 0) return true;
    }
    return false;
}

void worker_write_string(buf *out, const char *text, size_t n_bytes) {
    static const char short_escapes[32] = {['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    size_t from = 0;
    buf_putc(out, '"');
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool mark = c == '[' && ends_a_client(text + i, n_bytes - i);
        if (c >= 0x20 && c != '"' && c != '\\' && !mark) continue;
        buf_append(out, text + from, i - from);
        from = i + 1;
        if (c < 0x20 && short_escapes[c]) buf_printf(out, "\\%c", short_escapes[c]);
        else if (c < 0x20 || mark) buf_printf(out, "\\u%04x", c);
        else buf_printf(out, "\\%c", c);
    }
    buf_append(out, text + from, n_bytes - from);
    buf_putc(out, '"');
}

void worker_format_float(char out[WORKER_FLOAT_BYTES], float value) {
    char text[32], digits[16];
    if (!isfinite(value)) {
        snprintf(out, WORKER_FLOAT_BYTES, "%s", isnan(value) ? "NaN" : value < 0 ? "-inf" : "inf");
        return;
    }
    for (int precision = 0; precision <= 8; precision++) { /* 9 significant digits always suffice */
        snprintf(text, sizeof text, "%.*e", precision, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    /* d.ddde±x becomes digits and the place of the point. */
    int n = 0;
    const char *p = text;
    bool negative = *p == '-';
    for (p += negative; *p != 'e'; p++)
        if (*p != '.') digits[n++] = *p;
    int point = atoi(p + 1) + 1;
    while (n > 1 && digits[n - 1] == '0') n--;
    char *o = out;
    if (negative) *o++ = '-';
    if (point <= 0) {
        *o++ = '0', *o++ = '.';
        for (int i = point; i < 0; i++) *o++ = '0';
    }
    for (int i = 0; i < n; i++) {
        if (i == point && point > 0) *o++ = '.';
        *o++ = digits[i];
    }
    for (int i = n; i < point; i++) *o++ = '0';
    *o = '\0';
    if (value == 0) strcpy(out, negative ? "-0" : "0");
}

bool worker_uuid(char out[WORKER_UUID_BYTES]) {
    unsigned char b[16];
    if (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b) return false;
    b[6] = (unsigned char)((b[6] & 0x0F) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3F) | 0x80);
    snprintf(out, WORKER_UUID_BYTES, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3],
             b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
    return true;
}

/* ---- frames ----------------------------------------------------------------------------------------------------------- */

void worker_write_started(buf *out, const char *job_id, const char *model) {
    char now[48];
    clock_rfc3339(now, sizeof now, 0, "Z");
    buf_puts(out, "data: {\"type\":\"started\",\"job_id\":");
    worker_write_string(out, job_id, strlen(job_id));
    buf_puts(out, ",\"model\":");
    worker_write_string(out, model, strlen(model));
    buf_printf(out, ",\"started_at\":\"%s\"}\n\n", now);
}

void worker_write_error(buf *out, const char *code, const char *message) {
    buf_printf(out, "data: {\"type\":\"error\",\"code\":\"%s\",\"message\":", code);
    worker_write_string(out, message, strlen(message));
    buf_puts(out, "}\n\n");
}

const char *worker_error_code(int code) {
    static const struct {
        int code;
        const char *text;
    } codes[] = {
        {WEIR_E_CANCELLED, "CANCELLED"},     {WEIR_E_CLOSED, "CANCELLED"},        {WEIR_E_TIMEOUT, "TIMEOUT"},
        {WEIR_E_NOMEM, "VRAM_OOM"},          {WEIR_E_CONTEXT, "INVALID_REQUEST"}, {WEIR_E_INVALID, "INVALID_REQUEST"},
        {WEIR_E_LIMIT, "INVALID_REQUEST"},
    };
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (codes[i].code == code) return codes[i].text;
    return "GENERATION_ERROR";
}

static const char *stop_reason(weir_stop_reason reason) {
    static const char *const names[] = {
        [WEIR_STOP_NONE] = "ERROR", [WEIR_STOP_EOS] = "EOS", [WEIR_STOP_LENGTH] = "MAX_TOKENS", [WEIR_STOP_SEQUENCE] = "STOP_SEQUENCE"};
    return names[reason];
}

void worker_write_event(buf *out, const weir_event *event) {
    switch (event->type) {
    case WEIR_EVENT_TOKEN:
        buf_puts(out, "data: {\"type\":\"token\",\"t\":");
        worker_write_string(out, event->text, event->text_bytes);
        buf_printf(out, ",\"i\":%u}\n\n", event->index);
        break;
    case WEIR_EVENT_END:
        buf_printf(out, "data: {\"type\":\"end\",\"tokens_out\":%d,\"decode_time_ms\":%lld,\"stop_reason\":\"%s\"", event->timings.n_output,
                   (long long)(event->timings.decode_us / 1000), stop_reason(event->stop_reason));
        if (event->stop_text) {
            buf_puts(out, ",\"stop_sequence_matched\":");
            worker_write_string(out, event->stop_text, strlen(event->stop_text));
        }
        buf_puts(out, "}\n\n");
        break;
    case WEIR_EVENT_ERROR:
        worker_write_error(out, worker_error_code(event->code), event->message ? event->message : weir_code_text(event->code));
        break;
    }
}
