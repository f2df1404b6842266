/* JSON Schema: references, alternatives, types; see grammar_schema.h. Conjunctions wait in a queue to be compiled, so that the
 * depth of a document costs no stack; the expansion of one conjunction is bounded in depth and number of alternatives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "grammar/grammar_schema.h"

enum { MAX_ALTERNATIVES = 400, MAX_EXPANSION = 400, MAX_SCHEMA_BYTES = 4 << 20, MAX_POINTER_DEPTH = 64 };

/* ---- places ------------------------------------------------------------------------------------------------------------- */

/* The JSON pointer of `wanted` below `at`, appended to place; false if it is not there. */
static bool find_place(const json_t *at, const json_t *wanted, buf *place, int depth) {
    if (at == wanted) return true;
    if (depth > MAX_POINTER_DEPTH) return false;
    const size_t n_before = place->n_bytes;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)at, key, value) {
        buf_putc(place, '/');
        for (const char *p = key; *p; p++) buf_printf(place, *p == '~' ? "~0" : *p == '/' ? "~1" : "%c", *p);
        if (find_place(value, wanted, place, depth + 1)) return true;
        place->n_bytes = n_before;
    }
    for (size_t i = 0; i < json_array_size(at); i++) {
        buf_printf(place, "/%zu", i);
        if (find_place(json_array_get(at, i), wanted, place, depth + 1)) return true;
        place->n_bytes = n_before;
    }
    return false;
}

void grammar_schema_fail(schema_compiler *c, int code, const json_t *schema, const char *format, ...) {
    buf place = BUF_INIT;
    char message[400];
    if (c->b->code && !(c->b->err && c->b->err->place[0] == '\0')) return;
    const bool found = schema && !json_is_boolean(schema) && find_place(c->root, schema, &place, 0) && place.n_bytes;
    if (c->b->code) { /* noted without a place, by a part that knows none: add it */
        if (found) snprintf(c->b->err->place, sizeof c->b->err->place, "%.*s", (int)place.n_bytes, place.data);
        buf_free(&place);
        return;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    buf_putc(&place, '\0');
    grammar_fail(c->b, code, found && !place.failed ? place.data : NULL, "%s", message);
    buf_free(&place);
}

/* ---- keywords ----------------------------------------------------------------------------------------------------------- */

/* Words that constrain values of these types and are not understood, unless their value says nothing. */
static const struct {
    const char *name;
    unsigned types;
} unsupported[] = {
    {"$dynamicRef", TYPE_ANY},
    {"$recursiveRef", TYPE_ANY},
    {"unevaluatedItems", TYPE_ARRAY},
    {"uniqueItems", TYPE_ARRAY},
    {"maxContains", TYPE_ARRAY},
    {"minContains", TYPE_ARRAY},
    {"dependencies", TYPE_OBJECT},
    {"dependentSchemas", TYPE_OBJECT},
    {"dependentRequired", TYPE_OBJECT},
    {"extends", TYPE_ANY},
    {"disallow", TYPE_ANY},
    {"contentSchema", 0},
};

static bool says_nothing(const char *name, const json_t *value) {
    if (strcmp(name, "uniqueItems") == 0) return json_is_false(value);
    if (strcmp(name, "unevaluatedItems") == 0) return json_is_true(value);
    if (strcmp(name, "minContains") == 0) return json_is_integer(value) && json_integer_value(value) == 1;
    return json_is_object(value) && json_object_size(value) == 0;
}

static void check_keywords(schema_compiler *c, const json_t *schema, unsigned types) {
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++) {
        const json_t *value = json_object_get(schema, unsupported[i].name);
        if (value == NULL || !(unsupported[i].types & types) || says_nothing(unsupported[i].name, value)) continue;
        if (strcmp(unsupported[i].name, "uniqueItems") == 0 && grammar_schema_count(c, schema, "maxItems", NO_BOUND) <= 1)
            continue;
        grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema, "the keyword %s is not supported", unsupported[i].name);
    }
}

/* Keywords whose value must be of one form. */
static void check_forms(schema_compiler *c, const json_t *schema) {
    static const struct {
        const char *name;
        char form; /* o: object, a: non-empty array, l: any array, s: schema, t: schema or array of schemas */
    } forms[] = {{"properties", 'o'},
                 {"patternProperties", 'o'},
                 {"$defs", 'o'},
                 {"definitions", 'o'},
                 {"allOf", 'a'},
                 {"anyOf", 'a'},
                 {"oneOf", 'a'},
                 {"enum", 'l'},
                 {"required", 'l'},
                 {"prefixItems", 'l'},
                 {"items", 't'},
                 {"additionalProperties", 's'},
                 {"propertyNames", 's'},
                 {"not", 's'},
                 {"if", 's'},
                 {"then", 's'},
                 {"else", 's'},
                 {"contains", 's'},
                 {"additionalItems", 's'}};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        const json_t *value = json_object_get(schema, forms[i].name);
        const bool is_schema = json_is_object(value) || json_is_boolean(value);
        const char form = forms[i].form;
        const bool ok = value == NULL || (form == 'o' && json_is_object(value)) ||
                        (form == 'a' && json_array_size(value) > 0) || (form == 'l' && json_is_array(value)) ||
                        (form == 's' && is_schema) || (form == 't' && (is_schema || json_is_array(value)));
        if (!ok)
            grammar_schema_fail(c, WEIR_E_FORMAT, schema, "%s must be %s", forms[i].name,
                                form == 'o'   ? "an object"
                                : form == 'a' ? "an array that is not empty"
                                : form == 'l' ? "an array"
                                              : "a schema");
    }
    const json_t *required = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_is_string(json_array_get(required, i)))
            grammar_schema_fail(c, WEIR_E_FORMAT, schema, "required must be an array of strings");
}

unsigned grammar_schema_types(schema_compiler *c, const json_t *schema) {
    static const struct {
        const char *name;
        unsigned types;
    } names[] = {{"null", TYPE_NULL},     {"boolean", TYPE_BOOLEAN}, {"object", TYPE_OBJECT}, {"array", TYPE_ARRAY},
                 {"number", TYPE_NUMBER}, {"integer", TYPE_INTEGER}, {"string", TYPE_STRING}};
    const json_t *type = json_object_get(schema, "type");
    if (type == NULL) return TYPE_ANY;
    unsigned types = 0;
    const size_t n = json_is_array(type) ? json_array_size(type) : 1;
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_is_array(type) ? json_array_get(type, i) : type);
        unsigned found = 0;
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
            if (name && strcmp(name, names[k].name) == 0) found = names[k].types;
        if (!found)
            grammar_schema_fail(c, WEIR_E_FORMAT, schema,
                                "unknown type \"%.40s\"; null, boolean, object, array, number, integer and string are known",
                                name ? name : "?");
        types |= found;
    }
    return types;
}

uint32_t grammar_schema_count(schema_compiler *c, const json_t *schema, const char *keyword, uint32_t absent) {
    const json_t *value = json_object_get(schema, keyword);
    if (value == NULL) return absent;
    const double number = json_number_value(value);
    if (!json_is_number(value) || number < 0 || number != (double)(int64_t)number) {
        grammar_schema_fail(c, WEIR_E_FORMAT, schema, "%s must be an integer that is not negative", keyword);
        return absent;
    }
    return number >= NO_BOUND ? NO_BOUND - (strncmp(keyword, "min", 3) == 0) : (uint32_t)number;
}

/* ---- references --------------------------------------------------------------------------------------------------------- */

/* One step of a JSON pointer, unescaped, in out[capacity]; NULL if it is too long. Advances *p over it. */
static const char *pointer_step(const char **p, char *out, size_t capacity) {
    size_t n = 0;
    for (; **p && **p != '/'; (*p)++) {
        char byte = **p;
        unsigned hex;
        if (byte == '%' && sscanf(*p + 1, "%2x", &hex) == 1) byte = (char)hex, *p += 2;
        if (byte == '~' && ((*p)[1] == '0' || (*p)[1] == '1')) byte = *++*p == '0' ? '~' : '/';
        if (n + 1 >= capacity) return NULL;
        out[n++] = byte;
    }
    out[n] = '\0';
    return out;
}

static const json_t *find_anchor(const json_t *at, const char *name, int depth) {
    const char *key, *anchor = json_string_value(json_object_get(at, "$anchor"));
    json_t *value;
    const json_t *found = NULL;
    if (anchor && strcmp(anchor, name) == 0) return at;
    if (depth > MAX_POINTER_DEPTH) return NULL;
    json_object_foreach((json_t *)at, key, value) if (found == NULL) found = find_anchor(value, name, depth + 1);
    for (size_t i = 0; i < json_array_size(at) && found == NULL; i++)
        found = find_anchor(json_array_get(at, i), name, depth + 1);
    return found;
}

const json_t *grammar_schema_resolve(schema_compiler *c, const json_t *schema, const json_t *reference) {
    const char *text = json_string_value(reference), *id = json_string_value(json_object_get(c->root, "$id"));
    char step[512];
    if (text == NULL) {
        grammar_schema_fail(c, WEIR_E_FORMAT, schema, "$ref must be a string");
        return NULL;
    }
    const char *at_text = text;
    const size_t n_id = id ? strcspn(id, "#") : 0;
    if (n_id && strncmp(text, id, n_id) == 0 && (text[n_id] == '#' || text[n_id] == '\0')) at_text += n_id;
    if (*at_text != '#' && *at_text != '\0') {
        grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema,
                            "$ref \"%.100s\" is not supported: only references within the schema are", text);
        return NULL;
    }
    const char *p = *at_text ? at_text + 1 : at_text;
    const json_t *at = *p && *p != '/' ? find_anchor(c->root, p, 0) : c->root;
    while (at && *p == '/') {
        p++;
        const char *name = pointer_step(&p, step, sizeof step);
        if (name == NULL)
            at = NULL;
        else if (json_is_array(at))
            at = *name >= '0' && *name <= '9' ? json_array_get(at, (size_t)strtoull(name, NULL, 10)) : NULL;
        else
            at = json_object_get(at, name);
    }
    if (at == NULL || !(json_is_object(at) || json_is_boolean(at))) {
        grammar_schema_fail(c, WEIR_E_FORMAT, schema, "$ref \"%.100s\" does not lead to a schema", text);
        return NULL;
    }
    return at;
}

/* ---- conjunctions ------------------------------------------------------------------------------------------------------- */

void grammar_schema_add(schema_compiler *c, conjunction *k, const json_t *schema, bool negated, int parent) {
    if (json_is_boolean(schema) && json_is_true(schema) != negated) return;
    if (json_is_object(schema) && json_object_size(schema) == 0 && !negated) return;
    if (k->n == k->capacity) {
        const size_t capacity = k->capacity ? 2 * k->capacity : 4;
        schema_member *grown = grammar_alloc(c->b, capacity, sizeof *grown);
        if (grown == NULL) return;
        if (k->n) memcpy(grown, k->members, k->n * sizeof *grown);
        k->members = grown;
        k->capacity = capacity;
    }
    if (grammar_work(c->b, 1)) k->members[k->n++] = (schema_member){schema, negated, parent};
}

static int compare_members(const void *a, const void *b) {
    const schema_member *x = a, *y = b;
    if (x->schema != y->schema) return (uintptr_t)x->schema < (uintptr_t)y->schema ? -1 : 1;
    return (int)x->negated - (int)y->negated;
}

const expr *grammar_schema_value(schema_compiler *c, const conjunction *k) {
    conjunction key = {0};
    for (size_t i = 0; i < k->n; i++) grammar_schema_add(c, &key, k->members[i].schema, k->members[i].negated, -1);
    if (c->b->code) return grammar_nothing();
    if (key.n) qsort(key.members, key.n, sizeof *key.members, compare_members);
    size_t n = 0;
    for (size_t i = 0; i < key.n; i++)
        if (n == 0 || compare_members(&key.members[n - 1], &key.members[i])) key.members[n++] = key.members[i];
    key.n = n;
    if (!grammar_work(c->b, 4 + c->n_rules / 4)) return grammar_nothing();
    for (size_t i = 0; i < c->n_rules; i++) {
        const conjunction *other = &c->rules[i].key;
        bool same = other->n == n;
        for (size_t m = 0; m < n && same; m++) same = compare_members(&other->members[m], &key.members[m]) == 0;
        if (same) return grammar_call(c->b, c->rules[i].rule);
    }
    if (c->n_rules == c->capacity) {
        const size_t capacity = c->capacity ? 2 * c->capacity : 32;
        compiled_conjunction *grown = grammar_alloc(c->b, capacity, sizeof *grown);
        if (grown == NULL) return grammar_nothing();
        if (c->n_rules) memcpy(grown, c->rules, c->n_rules * sizeof *grown);
        c->rules = grown;
        c->capacity = capacity;
    }
    /* The members stay in their order for the compilation, which follows that of declarations. */
    conjunction ordered = {0};
    for (size_t i = 0; i < k->n; i++) grammar_schema_add(c, &ordered, k->members[i].schema, k->members[i].negated, -1);
    c->rules[c->n_rules] = (compiled_conjunction){key, ordered, grammar_rule_new(c->b, NULL)};
    return grammar_call(c->b, c->rules[c->n_rules++].rule);
}

/* ---- alternatives ------------------------------------------------------------------------------------------------------- */

typedef struct expansion {
    schema_compiler *c;
    expr_list out; /* of the values of each alternative */
    size_t n_alternatives;
} expansion;

static void compile_alternative(expansion *x, const conjunction *k);
static void expand(expansion *x, conjunction k, size_t next, int stage, int depth);

/* Whether the member is already among those that brought it. */
static bool is_circular(const conjunction *k, size_t i) {
    for (int p = k->members[i].parent; p >= 0; p = k->members[p].parent)
        if (k->members[p].schema == k->members[i].schema && !json_is_boolean(k->members[i].schema)) return true;
    return false;
}

static conjunction copy_of(schema_compiler *c, const conjunction *k) {
    conjunction copy = {0};
    for (size_t i = 0; i < k->n; i++)
        grammar_schema_add(c, &copy, k->members[i].schema, k->members[i].negated, k->members[i].parent);
    return copy;
}

/* Goes on with each schema of `list` in turn; with `exclusive` the others must not hold. */
static void expand_choice(expansion *x, const conjunction *k, size_t next, int stage, int depth, const json_t *list,
                          bool exclusive) {
    for (size_t i = 0; i < json_array_size(list) && x->c->b->code == 0; i++) {
        conjunction with = copy_of(x->c, k);
        grammar_schema_add(x->c, &with, json_array_get(list, i), false, (int)next);
        for (size_t j = 0; j < json_array_size(list) && exclusive; j++)
            if (j != i) grammar_schema_add(x->c, &with, json_array_get(list, j), true, (int)next);
        expand(x, with, next, stage, depth + 1);
    }
}

static void expand_condition(expansion *x, const conjunction *k, size_t next, int stage, int depth, const json_t *schema) {
    static const char *const consequences[] = {"then", "else"};
    for (int holds = 1; holds >= 0; holds--) {
        const json_t *consequence = json_object_get(schema, consequences[!holds]);
        conjunction with = copy_of(x->c, k);
        grammar_schema_add(x->c, &with, json_object_get(schema, "if"), !holds, (int)next);
        if (consequence) grammar_schema_add(x->c, &with, consequence, false, (int)next);
        expand(x, with, next, stage, depth + 1);
    }
}

/* Resolves what member `next` and those after it bring in: references, allOf and not as further members; anyOf, oneOf and if,
 * in three stages, as a choice. */
static void expand(expansion *x, conjunction k, size_t next, int stage, int depth) {
    schema_compiler *c = x->c;
    if (depth > MAX_EXPANSION || k.n > MAX_EXPANSION)
        grammar_fail(c->b, WEIR_E_LIMIT, NULL, "too complex: more than %d schemas hold for one value", MAX_EXPANSION);
    for (; next < k.n && grammar_work(c->b, 8); next++, stage = 0) {
        const json_t *schema = k.members[next].schema, *list;
        if (k.members[next].negated) continue; /* looked into only where it is excluded */
        if (json_is_boolean(schema)) return;   /* false */
        if (stage == 0) {
            if (is_circular(&k, next))
                grammar_schema_fail(c, WEIR_E_FORMAT, schema, "the schema refers to itself for the same value");
            check_forms(c, schema);
            const json_t *reference = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf"),
                         *negated = json_object_get(schema, "not");
            if (reference && c->b->code == 0) {
                const json_t *target = grammar_schema_resolve(c, schema, reference);
                if (target) grammar_schema_add(c, &k, target, false, (int)next);
            }
            for (size_t i = 0; i < json_array_size(all); i++) {
                if (!json_is_object(json_array_get(all, i)) && !json_is_boolean(json_array_get(all, i)))
                    grammar_schema_fail(c, WEIR_E_FORMAT, schema, "allOf must hold schemas");
                grammar_schema_add(c, &k, json_array_get(all, i), false, (int)next);
            }
            if (negated) grammar_schema_add(c, &k, negated, true, (int)next);
            if (c->b->code) return;
        }
        if (stage <= 1 && (list = json_object_get(schema, "anyOf"))) {
            expand_choice(x, &k, next, 2, depth, list, false);
            return;
        }
        if (stage <= 2 && (list = json_object_get(schema, "oneOf"))) {
            expand_choice(x, &k, next, 3, depth, list, true);
            return;
        }
        if (stage <= 3 && json_object_get(schema, "if") &&
            (json_object_get(schema, "then") || json_object_get(schema, "else"))) {
            expand_condition(x, &k, next, 4, depth, schema);
            return;
        }
    }
    if (c->b->code) return;
    if (++x->n_alternatives > MAX_ALTERNATIVES)
        grammar_fail(c->b, WEIR_E_LIMIT, NULL, "too complex: more than %d alternatives for one value", MAX_ALTERNATIVES);
    else
        compile_alternative(x, &k);
}

/* ---- exclusion ---------------------------------------------------------------------------------------------------------- */

/* Whether the two can be shown to have no value in common: `k` as generated, `other` as the standard reads it. Types, listed
 * values, and properties that one requires and both constrain, or the other never has. */
static bool never_both(schema_compiler *c, const conjunction *k, unsigned types, const json_t *other, int depth);

static const json_t *listed_values(const json_t *schema, json_t **single) {
    const json_t *constant = json_object_get(schema, "const");
    if (constant == NULL) return json_object_get(schema, "enum");
    *single = json_pack("[O]", constant);
    return *single;
}

/* Whether the schemas, one of which lists its values, exclude each other. */
static bool lists_apart(schema_compiler *c, const json_t *a, const json_t *b) {
    json_t *single = NULL;
    const json_t *values = listed_values(a, &single);
    bool apart = values != NULL;
    for (size_t i = 0; i < json_array_size(values) && apart; i++)
        apart = grammar_schema_valid(c, b, json_array_get(values, i), 0) == 0;
    json_decref(single);
    return apart;
}

static bool requires_name(const json_t *schema, const char *name) {
    const json_t *required = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *other = json_string_value(json_array_get(required, i));
        if (other && strcmp(other, name) == 0) return true;
    }
    return false;
}

static bool k_requires(const conjunction *k, const char *name) {
    for (size_t i = 0; i < k->n; i++)
        if (!k->members[i].negated && requires_name(k->members[i].schema, name)) return true;
    return false;
}

/* Whether objects of k, as they are generated, may have the property. */
static bool k_may_have(const conjunction *k, const char *name) {
    bool declares = false, open = false;
    for (size_t i = 0; i < k->n; i++) {
        const json_t *s = k->members[i].schema;
        if (k->members[i].negated) continue;
        if (json_object_get(json_object_get(s, "properties"), name) || requires_name(s, name)) return true;
        declares = declares || json_object_size(json_object_get(s, "properties"));
        const json_t *additional = json_object_get(s, "additionalProperties");
        if (json_is_false(additional) && json_object_size(json_object_get(s, "patternProperties")) == 0) return false;
        open = open || additional || json_object_get(s, "patternProperties") || json_object_get(s, "propertyNames");
    }
    return open || !declares;
}

static bool objects_apart(schema_compiler *c, const conjunction *k, const json_t *other, int depth) {
    const json_t *required = json_object_get(other, "required"), *properties = json_object_get(other, "properties");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (name && !k_may_have(k, name)) return true;
    }
    const char *name;
    json_t *theirs;
    json_object_foreach((json_t *)properties, name, theirs) {
        if (!k_requires(k, name) && !requires_name(other, name)) continue;
        conjunction ours = {0};
        for (size_t i = 0; i < k->n; i++) {
            const json_t *own = json_object_get(json_object_get(k->members[i].schema, "properties"), name);
            if (own && !k->members[i].negated) grammar_schema_add(c, &ours, own, false, -1);
        }
        if (never_both(c, &ours, TYPE_ANY, theirs, depth + 1)) return true;
    }
    if (json_is_false(json_object_get(other, "additionalProperties")) &&
        json_object_size(json_object_get(other, "patternProperties")) == 0)
        for (size_t m = 0; m < k->n; m++) {
            const json_t *names = json_object_get(k->members[m].schema, "required");
            for (size_t i = 0; i < json_array_size(names) && !k->members[m].negated; i++)
                if (json_object_get(properties, json_string_value(json_array_get(names, i))) == NULL) return true;
        }
    return false;
}

static bool numbers_apart(const conjunction *k, const json_t *other) {
    for (size_t i = 0; i < k->n; i++) {
        const json_t *pair[2] = {k->members[i].schema, other};
        for (int swap = 0; swap < 2 && !k->members[i].negated; swap++) {
            const json_t *max = json_object_get(pair[swap], "maximum"), *emax = json_object_get(pair[swap], "exclusiveMaximum");
            const json_t *min = json_object_get(pair[!swap], "minimum"),
                         *emin = json_object_get(pair[!swap], "exclusiveMinimum");
            if (max && min && json_number_value(max) < json_number_value(min)) return true;
            if (max && emin && json_number_value(max) <= json_number_value(emin)) return true;
            if (emax && min && json_number_value(emax) <= json_number_value(min)) return true;
            if (emax && emin && json_number_value(emax) <= json_number_value(emin)) return true;
        }
    }
    return false;
}

static bool counts_apart(schema_compiler *c, const conjunction *k, const json_t *other, const char *min, const char *max) {
    for (size_t i = 0; i < k->n; i++) {
        const json_t *s = k->members[i].schema;
        if (k->members[i].negated) continue;
        if (grammar_schema_count(c, s, max, NO_BOUND) < grammar_schema_count(c, other, min, 0)) return true;
        if (grammar_schema_count(c, other, max, NO_BOUND) < grammar_schema_count(c, s, min, 0)) return true;
    }
    return false;
}

static bool never_both(schema_compiler *c, const conjunction *k, unsigned types, const json_t *other, int depth) {
    enum { MAX_DEPTH = 12 };
    if (json_is_boolean(other)) return json_is_false(other);
    if (depth > MAX_DEPTH || !grammar_work(c->b, 16)) return false;
    const json_t *reference = json_object_get(other, "$ref"), *list;
    if (reference) {
        const json_t *target = grammar_schema_resolve(c, other, reference);
        if (target && never_both(c, k, types, target, depth + 1)) return true;
    }
    for (size_t i = 0; i < k->n; i++) {
        const json_t *s = k->members[i].schema, *inner = json_object_get(s, "$ref");
        if (k->members[i].negated) continue;
        types &= grammar_schema_types(c, s);
        if (lists_apart(c, s, other)) return true;
        /* What k excludes is not known to be left out yet: this is what is being asked. */
        c->positive_only = true;
        const bool apart = lists_apart(c, other, s);
        c->positive_only = false;
        if (apart) return true;
        if (inner && depth < MAX_DEPTH) {
            conjunction one = {0};
            const json_t *target = grammar_schema_resolve(c, s, inner);
            if (target) grammar_schema_add(c, &one, target, false, -1);
            if (target && never_both(c, &one, types, other, depth + 1)) return true;
        }
    }
    if ((list = json_object_get(other, "allOf")))
        for (size_t i = 0; i < json_array_size(list); i++)
            if (never_both(c, k, types, json_array_get(list, i), depth + 1)) return true;
    for (int which = 0; which < 2; which++)
        if ((list = json_object_get(other, which ? "oneOf" : "anyOf"))) {
            bool all = true;
            for (size_t i = 0; i < json_array_size(list) && all; i++)
                all = never_both(c, k, types, json_array_get(list, i), depth + 1);
            if (all) return true;
        }
    types &= grammar_schema_types(c, other);
    for (unsigned bit = 1; bit <= TYPE_STRING && c->b->code == 0; bit <<= 1) {
        if (!(types & bit)) continue;
        bool apart = false;
        if (bit == TYPE_OBJECT)
            apart = objects_apart(c, k, other, depth) || counts_apart(c, k, other, "minProperties", "maxProperties");
        else if (bit & TYPE_NUMBER)
            apart = numbers_apart(k, other);
        else if (bit == TYPE_ARRAY)
            apart = counts_apart(c, k, other, "minItems", "maxItems");
        else if (bit == TYPE_STRING) {
            apart = counts_apart(c, k, other, "minLength", "maxLength");
            if (!apart && (json_object_get(other, "pattern") || json_object_get(other, "format"))) {
                conjunction theirs = {0};
                grammar_schema_add(c, &theirs, other, false, -1);
                const fa *ours = grammar_string_contents(c, k);
                apart = ours && grammar_fa_is_empty(grammar_intersect(c->b, ours, grammar_string_contents(c, &theirs)));
            }
        }
        if (!apart) return false;
    }
    return c->b->code == 0;
}

/* ---- one alternative ---------------------------------------------------------------------------------------------------- */

/* The members that say something about values of one type: those given, and of those excluded the ones that could hold. */
static conjunction members_for(schema_compiler *c, const conjunction *k, unsigned type) {
    conjunction out = {0};
    conjunction positive = {0};
    for (size_t i = 0; i < k->n; i++)
        if (!k->members[i].negated) grammar_schema_add(c, &positive, k->members[i].schema, false, -1);
    for (size_t i = 0; i < k->n && c->b->code == 0; i++) {
        const schema_member m = k->members[i];
        if (m.negated && never_both(c, &positive, type, m.schema, 0)) continue;
        grammar_schema_add(c, &out, m.schema, m.negated, -1);
    }
    return out;
}

/* If some member lists its values, adds those that all members let through, and returns true. */
static bool add_listed(expansion *x, const conjunction *k) {
    schema_compiler *c = x->c;
    for (size_t i = 0; i < k->n; i++) {
        json_t *single = NULL;
        const json_t *values = k->members[i].negated ? NULL : listed_values(k->members[i].schema, &single);
        if (values == NULL) continue;
        for (size_t v = 0; v < json_array_size(values) && c->b->code == 0; v++) {
            const json_t *value = json_array_get(values, v);
            bool fits = true;
            for (size_t m = 0; m < k->n && fits && c->b->code == 0; m++)
                fits = (grammar_schema_valid(c, k->members[m].schema, value, 0) > 0) != k->members[m].negated;
            if (fits && c->b->code == 0) grammar_list_add(c->b, &x->out, grammar_json_value(c, value));
        }
        json_decref(single);
        return true;
    }
    return false;
}

/* A member that is excluded for null or booleans must say false of them all. */
static bool allows_simple(schema_compiler *c, const conjunction *k, const json_t *value) {
    for (size_t i = 0; i < k->n && c->b->code == 0; i++)
        if (k->members[i].negated && grammar_schema_valid(c, k->members[i].schema, value, 0) != 0) return false;
    return true;
}

static void add_simple(expansion *x, const conjunction *k, json_t *value, const char *text) {
    if (allows_simple(x->c, k, value)) grammar_list_add(x->c->b, &x->out, grammar_text(x->c->b, text));
}

/* Whether one of the excluded schemas holds for every value of that type. */
static bool type_excluded(schema_compiler *c, const conjunction *k, unsigned type) {
    for (size_t i = 0; i < k->n; i++) {
        const json_t *s = k->members[i].schema;
        if (!k->members[i].negated) continue;
        if (json_is_true(s) || json_object_size(s) == 0) return true;
        if (json_object_size(s) == 1 && json_object_get(s, "type") && (grammar_schema_types(c, s) & type) == type) return true;
    }
    return false;
}

static void compile_alternative(expansion *x, const conjunction *k) {
    static const unsigned order[] = {TYPE_OBJECT, TYPE_ARRAY, TYPE_STRING, TYPE_NUMBER, TYPE_BOOLEAN, TYPE_NULL};
    schema_compiler *c = x->c;
    unsigned types = TYPE_ANY;
    if (add_listed(x, k)) return;
    for (size_t i = 0; i < k->n; i++)
        if (!k->members[i].negated) types &= grammar_schema_types(c, k->members[i].schema);
    for (size_t i = 0; i < k->n; i++)
        if (!k->members[i].negated) check_keywords(c, k->members[i].schema, types);
    for (size_t i = 0; i < sizeof order / sizeof order[0] && c->b->code == 0; i++) {
        const unsigned type = types & order[i];
        if (!type) continue;
        if (type == TYPE_NULL) {
            add_simple(x, k, json_null(), "null");
        } else if (type == TYPE_BOOLEAN) {
            add_simple(x, k, json_true(), "true");
            add_simple(x, k, json_false(), "false");
        } else {
            const conjunction members = members_for(c, k, type);
            if (type_excluded(c, &members, type) || c->b->code) continue;
            const expr *e = type == TYPE_OBJECT   ? grammar_schema_object(c, &members)
                            : type == TYPE_ARRAY  ? grammar_schema_array(c, &members)
                            : type == TYPE_STRING ? grammar_schema_string(c, &members)
                                                  : grammar_schema_number(c, &members, type == TYPE_INTEGER);
            grammar_list_add(c->b, &x->out, e);
        }
    }
}

/* ---- the whole ---------------------------------------------------------------------------------------------------------- */

/* See grammar_compile_tagged. */
static uint32_t tagged_rule(grammar_builder *b, uint32_t value, const grammar_frame_tags *tags) {
    const expr *space = grammar_repeat(b, grammar_alt2(b, grammar_text(b, " "), grammar_text(b, "\n")), 0, 2);
    const expr *body = grammar_seq4(b, space, grammar_call(b, value), space, grammar_literal(b, tags->close, tags->n_close));
    const expr *whole = body;
    if (tags->open) {
        const expr *more = grammar_seq4(b, space, grammar_literal(b, tags->open, tags->n_open), body, NULL);
        whole = grammar_seq4(b, body, grammar_repeat(b, more, 0, NO_BOUND), NULL, NULL);
    }
    const uint32_t r = grammar_rule_new(b, "calls");
    grammar_rule_define(b, r, grammar_seq4(b, whole, space, NULL, NULL));
    return r;
}

static int compile_document(grammar_builder *b, const json_t *root, const grammar_frame_tags *tags, grammar **out) {
    schema_compiler c = {.b = b, .root = root};
    const expr *space = grammar_optional(b, grammar_text(b, " "));
    c.separator = grammar_seq4(b, grammar_text(b, ","), space, NULL, NULL);
    c.colon = grammar_seq4(b, grammar_text(b, ":"), space, NULL, NULL);
    conjunction start = {0};
    grammar_schema_add(&c, &start, root, false, -1);
    grammar_schema_value(&c, &start);
    while (c.next_rule < c.n_rules && b->code == 0) {
        const compiled_conjunction at = c.rules[c.next_rule++];
        expansion x = {.c = &c};
        expand(&x, copy_of(&c, &at.ordered), 0, 0, 0);
        grammar_rule_define(b, at.rule, grammar_alt(b, &x.out));
    }
    uint32_t start_rule = b->code ? 0 : c.rules[0].rule;
    if (tags && b->code == 0) start_rule = tagged_rule(b, start_rule, tags);
    return grammar_finish(b, start_rule, false, out);
}

static int compile_text(grammar **out, const char *text, size_t n_bytes, const grammar_frame_tags *tags, weir_error *err) {
    grammar_builder b;
    json_error_t error;
    *out = NULL;
    FAIL_IF(n_bytes > MAX_SCHEMA_BYTES, err, WEIR_E_LIMIT, NULL, "the schema has %zu bytes; at most %d are supported", n_bytes,
            MAX_SCHEMA_BYTES);
    json_t *root = json_loadb(text, n_bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    FAIL_IF(root == NULL, err, WEIR_E_FORMAT, NULL, "the schema is not JSON: line %d, column %d: %s", error.line, error.column,
            error.text);
    grammar_builder_init(&b, err);
    if (!json_is_object(root) && !json_is_boolean(root))
        grammar_fail(&b, WEIR_E_FORMAT, NULL, "a schema must be an object or a boolean");
    const int code = b.code ? b.code : compile_document(&b, root, tags, out);
    json_decref(root);
    grammar_builder_free(&b);
    return code;
}

int grammar_compile_json_schema(grammar **out, const char *text, size_t n_bytes, weir_error *err) {
    return compile_text(out, text, n_bytes, NULL, err);
}

int grammar_compile_tagged(grammar **out, const char *text, size_t n_bytes, const grammar_frame_tags *tags, weir_error *err) {
    return compile_text(out, text, n_bytes, tags, err);
}

int grammar_compile_json_object(grammar **out, weir_error *err) {
    static const char any_object[] = "{\"type\":\"object\"}";
    return compile_text(out, any_object, sizeof any_object - 1, NULL, err);
}
