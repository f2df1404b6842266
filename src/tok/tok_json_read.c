/* Reading members of tokenizer.json with messages that name the place, and the lists of steps. Owns no vocabulary. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "tok/tok_json_internal.h"

size_t json_enter(json_reader *r, const char *key, size_t index) {
    const size_t before = r->n_path, room = sizeof r->path - before;
    const int n = key ? snprintf(r->path + before, room, "%s%s", before ? "." : "", key)
                      : snprintf(r->path + before, room, "[%zu]", index);
    r->n_path = n < 0 ? before : before + ((size_t)n < room ? (size_t)n : room - 1);
    return before;
}

void json_leave(json_reader *r, size_t before) {
    r->path[r->n_path = before] = '\0';
}

int json_fail(json_reader *r, int code, const char *key, const char *format, ...) {
    char place[sizeof r->path + 96];
    va_list args;
    snprintf(place, sizeof place, "tokenizer.json: %s%s%s", r->path, key && r->n_path ? "." : "", key ? key : "");
    va_start(args, format);
    error_setv(r->err, code, place, format, args);
    va_end(args);
    return r->code = code;
}

static const char *type_name(const json_t *value) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer", "a number", "true", "false", "null"};
    return value ? names[json_typeof(value)] : "missing";
}

int json_read_bool(json_reader *r, const json_t *object, const char *key, bool *out) {
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value)) return 0;
    if (!json_is_boolean(value)) return json_fail(r, WEIR_E_FORMAT, key, "is %s; expected true or false", type_name(value));
    *out = json_is_true(value);
    return 1;
}

int json_read_size(json_reader *r, const json_t *object, const char *key, size_t low, size_t high, size_t *out) {
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value)) return 0;
    const json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 0 || (uint64_t)n < low || (uint64_t)n > high)
        return json_fail(r, WEIR_E_FORMAT, key, "is no integer from %zu to %zu", low, high);
    *out = (size_t)n;
    return 1;
}

int json_read_text(json_reader *r, const json_t *object, const char *key, tok_string *out) {
    const json_t *value = json_object_get(object, key);
    if (value == NULL || json_is_null(value)) return 0;
    if (!json_is_string(value)) return json_fail(r, WEIR_E_FORMAT, key, "is %s; expected a string", type_name(value));
    *out = (tok_string){json_string_value(value), json_string_length(value)};
    return 1;
}

int json_need_text(json_reader *r, const json_t *object, const char *key, tok_string *out) {
    const int found = json_read_text(r, object, key, out);
    return found ? found : json_fail(r, WEIR_E_FORMAT, key, "is missing; expected a string");
}

int json_read_char(json_reader *r, const json_t *object, const char *key, tok_string *out) {
    const int found = json_read_text(r, object, key, out);
    if (found <= 0) return found;
    uint32_t c;
    if (out->n_bytes == 0 || utf8_decode(out->text, out->n_bytes, &c) != out->n_bytes)
        return json_fail(r, WEIR_E_FORMAT, key, "is not exactly one character");
    return 1;
}

int json_keep(json_reader *r, tok_string *text) {
    const char *copy = arena_strndup(r->memory, text->text ? text->text : "", text->n_bytes);
    if (copy == NULL) return json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
    text->text = copy;
    return 0;
}

int json_read_type(json_reader *r, const json_t *object, const char **out) {
    tok_string type;
    if (!json_is_object(object)) return json_fail(r, WEIR_E_FORMAT, NULL, "is %s; expected an object", type_name(object));
    TRY(json_need_text(r, object, "type", &type));
    *out = type.text;
    return 0;
}

json_step *json_add_step(json_reader *r, json_steps *steps) {
    if (steps->n == JSON_MAX_STEPS) {
        json_fail(r, WEIR_E_LIMIT, NULL, "more than %d steps", JSON_MAX_STEPS);
        return NULL;
    }
    if (steps->n == steps->capacity) {
        const size_t capacity = steps->capacity ? steps->capacity * 2 : 4;
        json_step *grown = realloc(steps->steps, capacity * sizeof *grown);
        if (grown == NULL) {
            json_fail(r, WEIR_E_NOMEM, NULL, "out of memory");
            return NULL;
        }
        steps->steps = grown;
        steps->capacity = capacity;
    }
    json_step *s = &steps->steps[steps->n++];
    memset(s, 0, sizeof *s);
    return s;
}

void json_steps_free(json_steps *steps) {
    for (size_t i = 0; i < steps->n; i++) pcre2_code_free(steps->steps[i].code);
    free(steps->steps);
    *steps = (json_steps){0};
}

static int unknown_kind(json_reader *r, const char *type, const json_step_kind *kinds, size_t n_kinds, const char *what) {
    buf known = {.limit = 400};
    for (size_t i = 0; i < n_kinds; i++)
        if (kinds[i].read) buf_printf(&known, "%s%s", known.n_bytes ? ", " : "", kinds[i].type);
    json_fail(r, WEIR_E_UNSUPPORTED, "type", "the %s '%.40s' is not supported; supported are %s and Sequence", what, type,
              known.data ? known.data : "");
    buf_free(&known);
    return WEIR_E_UNSUPPORTED;
}

int json_read_steps(json_reader *r, const json_t *object, json_steps *out, const json_step_kind *kinds, size_t n_kinds,
                    const char *list, const char *what, int depth) {
    const char *type;
    if (object == NULL || json_is_null(object)) return 0;
    TRY(json_read_type(r, object, &type));
    if (strcmp(type, "Sequence") != 0) {
        for (size_t i = 0; i < n_kinds; i++)
            if (kinds[i].read && strcmp(kinds[i].type, type) == 0) return kinds[i].read(r, object, out);
        return unknown_kind(r, type, kinds, n_kinds, what);
    }
    const json_t *items = json_object_get(object, list), *item;
    if (!json_is_array(items)) return json_fail(r, WEIR_E_FORMAT, list, "is %s; expected an array", type_name(items));
    if (depth == JSON_MAX_DEPTH) return json_fail(r, WEIR_E_LIMIT, NULL, "Sequences nest deeper than %d", JSON_MAX_DEPTH);
    size_t i;
    const size_t whole = json_enter(r, list, 0);
    json_array_foreach(items, i, item) {
        const size_t before = json_enter(r, NULL, i);
        TRY(json_read_steps(r, item, out, kinds, n_kinds, list, what, depth + 1));
        json_leave(r, before);
    }
    json_leave(r, whole);
    return 0;
}
