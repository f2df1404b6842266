/* Validation of a value that stands in the schema itself (enum, const, names of properties): which of them do the other
 * keywords let through? All keywords that the compiler knows, on values that are small. Recursion is bounded by `depth`. */
#include <math.h>
#include <string.h>

#include "base/utf8.h"
#include "grammar/grammar_schema.h"

enum { MAX_VALID_DEPTH = 64 };

bool grammar_schema_equal(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) == json_number_value(b);
    if (json_typeof(a) != json_typeof(b)) return false;
    if (json_is_array(a)) {
        bool equal = json_array_size(a) == json_array_size(b);
        for (size_t i = 0; i < json_array_size(a) && equal; i++)
            equal = grammar_schema_equal(json_array_get(a, i), json_array_get(b, i));
        return equal;
    }
    if (!json_is_object(a)) return json_equal(a, b);
    const char *key;
    json_t *value;
    if (json_object_size(a) != json_object_size(b)) return false;
    json_object_foreach((json_t *)a, key, value) {
        const json_t *other = json_object_get(b, key);
        if (other == NULL || !grammar_schema_equal(value, other)) return false;
    }
    return true;
}

static unsigned type_of(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_NULL:
        return TYPE_NULL;
    case JSON_TRUE:
    case JSON_FALSE:
        return TYPE_BOOLEAN;
    case JSON_OBJECT:
        return TYPE_OBJECT;
    case JSON_ARRAY:
        return TYPE_ARRAY;
    case JSON_STRING:
        return TYPE_STRING;
    case JSON_INTEGER:
        return TYPE_INTEGER;
    default:
        return floor(json_real_value(value)) == json_real_value(value) ? TYPE_INTEGER : TYPE_FRACTION;
    }
}

/* How many of the schemas of a list hold, or a failure. */
static int count_valid(schema_compiler *c, const json_t *list, const json_t *value, int depth) {
    int n = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const int valid = grammar_schema_valid(c, json_array_get(list, i), value, depth + 1);
        if (valid < 0) return valid;
        n += valid;
    }
    return n;
}

static int valid_applicators(schema_compiler *c, const json_t *schema, const json_t *value, int depth) {
    const json_t *reference = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    const json_t *any = json_object_get(schema, "anyOf"), *one = json_object_get(schema, "oneOf");
    const json_t *negated = json_object_get(schema, "not"), *condition = json_object_get(schema, "if");
    int result;
    if (reference) {
        const json_t *target = grammar_schema_resolve(c, schema, reference);
        if (target == NULL) return c->b->code;
        if ((result = grammar_schema_valid(c, target, value, depth + 1)) <= 0) return result;
    }
    if (all) {
        if ((result = count_valid(c, all, value, depth)) < 0) return result;
        if ((size_t)result != json_array_size(all)) return 0;
    }
    if (any && (result = count_valid(c, any, value, depth)) <= 0) return result;
    if (one && (result = count_valid(c, one, value, depth)) != 1 && !(c->positive_only && result > 0))
        return result < 0 ? result : 0;
    if (c->positive_only) return 1;
    if (negated && (result = grammar_schema_valid(c, negated, value, depth + 1)) != 0) return result < 0 ? result : 0;
    if (condition) {
        if ((result = grammar_schema_valid(c, condition, value, depth + 1)) < 0) return result;
        const json_t *then = json_object_get(schema, result ? "then" : "else");
        if (then && (result = grammar_schema_valid(c, then, value, depth + 1)) <= 0) return result;
    }
    return 1;
}

static bool valid_number(const json_t *schema, const json_t *value) {
    const double x = json_number_value(value);
    const json_t *limit;
    if ((limit = json_object_get(schema, "minimum")) && x < json_number_value(limit)) return false;
    if ((limit = json_object_get(schema, "maximum")) && x > json_number_value(limit)) return false;
    if ((limit = json_object_get(schema, "exclusiveMinimum")) && x <= json_number_value(limit)) return false;
    if ((limit = json_object_get(schema, "exclusiveMaximum")) && x >= json_number_value(limit)) return false;
    if ((limit = json_object_get(schema, "multipleOf")) && json_number_value(limit) > 0) {
        const double ratio = x / json_number_value(limit);
        if (fabs(ratio - nearbyint(ratio)) > 1e-9 * (1 + fabs(ratio))) return false;
    }
    return true;
}

static int valid_string(schema_compiler *c, const json_t *schema, const json_t *value) {
    const char *text = json_string_value(value);
    const size_t n_bytes = json_string_length(value), n = utf8_count(text, n_bytes);
    if (n < grammar_schema_count(c, schema, "minLength", 0) || n > grammar_schema_count(c, schema, "maxLength", NO_BOUND))
        return 0;
    if (json_object_get(schema, "pattern") == NULL && json_object_get(schema, "format") == NULL) return 1;
    conjunction k = {0};
    grammar_schema_add(c, &k, schema, false, -1);
    const fa *contents = grammar_string_contents(c, &k);
    if (c->b->code) return c->b->code;
    buf escaped = BUF_INIT;
    grammar_json_escape(&escaped, text, n_bytes);
    const bool accepted = contents == NULL || grammar_fa_accepts(contents, escaped.data ? escaped.data : "", escaped.n_bytes);
    buf_free(&escaped);
    return accepted;
}

static int valid_array(schema_compiler *c, const json_t *schema, const json_t *value, int depth) {
    const size_t n = json_array_size(value);
    const json_t *items = json_object_get(schema, "items"), *prefix = json_object_get(schema, "prefixItems");
    const json_t *contains = json_object_get(schema, "contains");
    if (n < grammar_schema_count(c, schema, "minItems", 0) || n > grammar_schema_count(c, schema, "maxItems", NO_BOUND))
        return 0;
    if (json_is_array(items)) prefix = items, items = json_object_get(schema, "additionalItems");
    bool contained = contains == NULL;
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(value, i), *with = i < json_array_size(prefix) ? json_array_get(prefix, i) : items;
        int result = with ? grammar_schema_valid(c, with, item, depth + 1) : 1;
        if (result <= 0) return result;
        if (contains && (result = grammar_schema_valid(c, contains, item, depth + 1)) < 0) return result;
        contained = contained || result;
        for (size_t j = 0; j < i && json_is_true(json_object_get(schema, "uniqueItems")); j++)
            if (grammar_schema_equal(item, json_array_get(value, j))) return 0;
    }
    return contained;
}

static int valid_object(schema_compiler *c, const json_t *schema, const json_t *value, int depth) {
    const json_t *properties = json_object_get(schema, "properties"), *patterns = json_object_get(schema, "patternProperties");
    const json_t *additional = json_object_get(schema, "additionalProperties"), *required = json_object_get(schema, "required");
    const json_t *names = json_object_get(schema, "propertyNames");
    const size_t n = json_object_size(value);
    if (n < grammar_schema_count(c, schema, "minProperties", 0) ||
        n > grammar_schema_count(c, schema, "maxProperties", NO_BOUND))
        return 0;
    for (size_t i = 0; i < json_array_size(required); i++)
        if (json_object_get(value, json_string_value(json_array_get(required, i))) == NULL) return 0;
    const char *key, *pattern;
    json_t *member, *with;
    json_object_foreach((json_t *)value, key, member) {
        int result = 1;
        bool matched = false;
        json_t *name = json_string(key);
        if (names && name) result = grammar_schema_valid(c, names, name, depth + 1);
        json_decref(name);
        if (result <= 0) return result;
        if ((with = json_object_get(properties, key))) {
            matched = true;
            if ((result = grammar_schema_valid(c, with, member, depth + 1)) <= 0) return result;
        }
        json_object_foreach((json_t *)patterns, pattern, with) {
            const fa *a = grammar_string_pattern(c, pattern, strlen(pattern));
            if (c->b->code) return c->b->code;
            buf escaped = BUF_INIT;
            grammar_json_escape(&escaped, key, strlen(key));
            const bool here = grammar_fa_accepts(a, escaped.data ? escaped.data : "", escaped.n_bytes);
            buf_free(&escaped);
            matched = matched || here;
            if (here && (result = grammar_schema_valid(c, with, member, depth + 1)) <= 0) return result;
        }
        if (!matched && additional && (result = grammar_schema_valid(c, additional, member, depth + 1)) <= 0) return result;
    }
    return 1;
}

int grammar_schema_valid(schema_compiler *c, const json_t *schema, const json_t *value, int depth) {
    static const char *const unknown[] = {"$dynamicRef",      "$recursiveRef",     "unevaluatedProperties",
                                          "unevaluatedItems", "dependentRequired", "dependentSchemas",
                                          "dependencies",     "minContains",       "maxContains"};
    if (!grammar_work(c->b, 64)) return c->b->code;
    if (depth > MAX_VALID_DEPTH)
        return grammar_fail(c->b, WEIR_E_LIMIT, NULL, "schemas nested deeper than %d around an enum or const", MAX_VALID_DEPTH);
    if (json_is_boolean(schema)) return json_is_true(schema);
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        if (json_object_get(schema, unknown[i])) {
            grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema, "%s is not supported together with enum or const", unknown[i]);
            return c->b->code;
        }
    if (!(grammar_schema_types(c, schema) & type_of(value))) return c->b->code ? c->b->code : 0;
    const json_t *constant = json_object_get(schema, "const"), *values = json_object_get(schema, "enum");
    if (constant && !grammar_schema_equal(constant, value)) return 0;
    bool listed = values == NULL;
    for (size_t i = 0; i < json_array_size(values) && !listed; i++)
        listed = grammar_schema_equal(json_array_get(values, i), value);
    if (!listed) return 0;
    int result = valid_applicators(c, schema, value, depth);
    if (result <= 0) return result;
    if (json_is_number(value)) return valid_number(schema, value);
    if (json_is_string(value)) return valid_string(c, schema, value);
    if (json_is_array(value)) return valid_array(c, schema, value, depth);
    if (json_is_object(value)) return valid_object(c, schema, value, depth);
    return 1;
}
