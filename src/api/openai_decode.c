/* Typed members of a JSON object; see openai_decode.h. */
#include "api/openai_decode.h"

#include <math.h>

const json_t *openai_member(const json_t *object, const char *name) {
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

const char *openai_type_name(const json_t *value) {
    static const char *const names[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array", [JSON_STRING] = "a string", [JSON_INTEGER] = "an integer",
        [JSON_REAL] = "a number",    [JSON_TRUE] = "true",      [JSON_FALSE] = "false",     [JSON_NULL] = "null",
    };
    return value ? names[json_typeof(value)] : "nothing";
}

static const json_t *typed(const json_t *object, const char *name, json_type type, const char *wanted, openai_error *error) {
    const json_t *value = openai_member(object, name);
    if (!value || json_typeof(value) == type) return value;
    openai_error_add(error, 400, "invalid_type", name, "'%s' must be %s, not %s", name, wanted, openai_type_name(value));
    return NULL;
}

const json_t *openai_get_string(const json_t *object, const char *name, openai_error *error) {
    return typed(object, name, JSON_STRING, "a string", error);
}

const json_t *openai_get_array(const json_t *object, const char *name, openai_error *error) {
    return typed(object, name, JSON_ARRAY, "an array", error);
}

const json_t *openai_get_object(const json_t *object, const char *name, openai_error *error) {
    return typed(object, name, JSON_OBJECT, "an object", error);
}

bool openai_get_bool(const json_t *object, const char *name, bool *out, openai_error *error) {
    const json_t *value = openai_member(object, name);
    if (!value) return false;
    if (!json_is_boolean(value)) {
        openai_error_add(error, 400, "invalid_type", name, "'%s' must be true or false, not %s", name, openai_type_name(value));
        return false;
    }
    *out = json_is_true(value);
    return true;
}

bool openai_to_integer(const json_t *value, int64_t *out) {
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    double real = json_is_real(value) ? json_real_value(value) : NAN;
    /* 2^63 as a double is the first value that does not fit. */
    if (!(real >= -0x1p63 && real < 0x1p63) || real != trunc(real)) return false;
    *out = (int64_t)real;
    return true;
}

bool openai_get_integer(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out, openai_error *error) {
    const json_t *value = openai_member(object, name);
    int64_t integer = 0;
    if (!value) return false;
    bool whole = openai_to_integer(value, &integer);
    bool too_large = !whole && json_is_real(value) && fabs(json_real_value(value)) >= 0x1p63;
    if (!whole && !too_large) {
        openai_error_add(error, 400, "invalid_type", name, "'%s' must be an integer, not %s", name,
                         json_is_real(value) ? "a fraction" : openai_type_name(value));
        return false;
    }
    if (too_large || integer < min || integer > max) {
        openai_error_add(error, 400, "invalid_value", name, "'%s' must be an integer from %lld to %lld, not %.17g", name,
                         (long long)min, (long long)max, json_number_value(value));
        return false;
    }
    *out = integer;
    return true;
}

bool openai_get_number(const json_t *object, const char *name, double min, double max, bool above, double *out,
                       openai_error *error) {
    const json_t *value = openai_member(object, name);
    if (!value) return false;
    if (!json_is_number(value)) {
        openai_error_add(error, 400, "invalid_type", name, "'%s' must be a number, not %s", name, openai_type_name(value));
        return false;
    }
    double number = json_number_value(value);
    if (!(above ? number > min : number >= min) || !(number <= max)) {
        openai_error_add(error, 400, "invalid_value", name, "'%s' must be a number %s %g and at most %g, not %g", name,
                         above ? "above" : "of at least", min, max, number);
        return false;
    }
    *out = number;
    return true;
}
