/* See error.h. */
#include "base/error.h"

#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

static const struct {
    int code;
    const char *name, *text;
    int http_status;
} error_table[] = {
#define ERROR_ROW(name, value, text, status) {value, #name, text, status},
    WEIR_ERROR_TABLE(ERROR_ROW)
#undef ERROR_ROW
};

#define N_ERRORS (sizeof error_table / sizeof error_table[0])

const char *weir_code_text(int code) {
    for (size_t i = 0; i < N_ERRORS; i++)
        if (error_table[i].code == code) return error_table[i].text;
    return "unknown error";
}

const char *weir_code_name(int code) {
    for (size_t i = 0; i < N_ERRORS; i++)
        if (error_table[i].code == code) return error_table[i].name;
    return "E_UNKNOWN";
}

int weir_code_http_status(int code) {
    for (size_t i = 0; i < N_ERRORS; i++)
        if (error_table[i].code == code) return error_table[i].http_status;
    return 500;
}

/* snprintf cuts at a byte; a half code point would make the error text invalid in JSON. */
static void cut_at_code_point(char *text, int wanted, size_t capacity) {
    if (wanted < 0 || (size_t)wanted < capacity) return;
    size_t n = strlen(text);
    text[utf8_complete_prefix(text, n)] = '\0';
}

int error_setv(weir_error *err, int code, const char *place, const char *format, va_list args) {
    if (err == NULL) return code;
    err->code = code;
    cut_at_code_point(err->place, snprintf(err->place, sizeof err->place, "%s", place ? place : ""), sizeof err->place);
    cut_at_code_point(err->message, vsnprintf(err->message, sizeof err->message, format, args), sizeof err->message);
    return code;
}

int error_set(weir_error *err, int code, const char *place, const char *format, ...) {
    va_list args;
    va_start(args, format);
    error_setv(err, code, place, format, args);
    va_end(args);
    return code;
}
