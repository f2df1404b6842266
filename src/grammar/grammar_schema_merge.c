/* Objects and arrays of JSON Schema: all members of a conjunction merged into one layout. See grammar_schema.h. */
#include <stdio.h>
#include <string.h>

#include "grammar/grammar_schema.h"

enum { MAX_COUNTED = 2000, MAX_PATTERNS = 5 };

/* ---- objects ------------------------------------------------------------------------------------------------------------ */

typedef struct object_property {
    const char *name;
    size_t n_name;
    bool required, forbidden;
    const expr *text; /* "name": value */
} object_property;

typedef struct object_layout {
    schema_compiler *c;
    const conjunction *k;
    object_property *properties;
    size_t n, capacity;
    const char *patterns[MAX_PATTERNS]; /* of patternProperties, each once */
    const fa *pattern_automata[MAX_PATTERNS];
    size_t n_patterns;
    bool closed; /* nobody says additionalProperties, and properties are declared: others are left out */
    uint32_t min, max;
} object_layout;

static object_property *find_property(object_layout *o, const char *name) {
    for (size_t i = 0; i < o->n; i++)
        if (strcmp(o->properties[i].name, name) == 0) return &o->properties[i];
    return NULL;
}

static object_property *add_property(object_layout *o, const char *name) {
    object_property *p = find_property(o, name);
    if (p || !grammar_work(o->c->b, 4 + o->n / 4)) return p;
    if (o->n == o->capacity) {
        const size_t capacity = o->capacity ? 2 * o->capacity : 8;
        object_property *grown = grammar_alloc(o->c->b, capacity, sizeof *grown);
        if (grown == NULL) return NULL;
        if (o->n) memcpy(grown, o->properties, o->n * sizeof *grown);
        o->properties = grown;
        o->capacity = capacity;
    }
    o->properties[o->n] = (object_property){.name = name, .n_name = strlen(name)};
    return &o->properties[o->n++];
}

static void find_patterns(object_layout *o) {
    for (size_t i = 0; i < o->k->n; i++) {
        const char *pattern;
        json_t *value;
        if (o->k->members[i].negated) continue;
        json_object_foreach(json_object_get(o->k->members[i].schema, "patternProperties"), pattern, value) {
            size_t p = 0;
            while (p < o->n_patterns && strcmp(o->patterns[p], pattern)) p++;
            if (p < o->n_patterns) continue;
            if (p == MAX_PATTERNS) {
                grammar_schema_fail(o->c, WEIR_E_UNSUPPORTED, o->k->members[i].schema,
                                    "more than %d patternProperties on one object are not supported", MAX_PATTERNS);
                return;
            }
            o->patterns[p] = pattern;
            o->pattern_automata[p] = grammar_string_pattern(o->c, pattern, strlen(pattern));
            if (o->c->b->code) grammar_schema_fail(o->c, o->c->b->code, o->k->members[i].schema, "pattern");
            o->n_patterns++;
        }
    }
}

/* What the members say of the value under a key that matches the patterns of `matches` (a bit each); `name` may be NULL (not
 * declared). Returns false if the key is not allowed. */
static bool value_conjunction(object_layout *o, const char *name, unsigned matches, conjunction *out) {
    bool mentioned = false;
    for (size_t i = 0; i < o->k->n; i++) {
        const json_t *schema = o->k->members[i].schema,
                     *own = json_object_get(json_object_get(schema, "properties"), name ? name : "");
        const json_t *additional = json_object_get(schema, "additionalProperties"),
                     *patterns = json_object_get(schema, "patternProperties");
        if (o->k->members[i].negated) continue;
        bool here = false;
        if (name && own) {
            here = true;
            grammar_schema_add(o->c, out, own, false, -1);
        }
        for (size_t p = 0; p < o->n_patterns; p++) {
            const json_t *value = matches >> p & 1 ? json_object_get(patterns, o->patterns[p]) : NULL;
            here = here || value;
            if (value) grammar_schema_add(o->c, out, value, false, -1);
        }
        if (!here && additional) grammar_schema_add(o->c, out, additional, false, -1);
        mentioned = mentioned || here || additional;
    }
    for (size_t i = 0; i < out->n; i++)
        if (json_is_false(out->members[i].schema)) return false;
    return name || mentioned || !o->closed;
}

static unsigned matching_patterns(object_layout *o, const char *name) {
    unsigned matches = 0;
    buf escaped = BUF_INIT;
    grammar_json_escape(&escaped, name, strlen(name));
    for (size_t p = 0; p < o->n_patterns; p++)
        if (grammar_fa_accepts(o->pattern_automata[p], escaped.data ? escaped.data : "", escaped.n_bytes)) matches |= 1u << p;
    buf_free(&escaped);
    return matches;
}

/* Whether propertyNames of all members let the name through. */
static bool name_allowed(object_layout *o, const char *name) {
    bool allowed = true;
    json_t *value = json_string(name);
    for (size_t i = 0; i < o->k->n && value && allowed && o->c->b->code == 0; i++) {
        const json_t *names = json_object_get(o->k->members[i].schema, "propertyNames");
        if (names && !o->k->members[i].negated) allowed = grammar_schema_valid(o->c, names, value, 0) > 0;
    }
    json_decref(value);
    return allowed;
}

/* Excluded members that speak of one property only: the property must be there and break them, or must be absent. */
static void exclude_members(object_layout *o, const object_property *p, conjunction *value) {
    for (size_t i = 0; i < o->k->n; i++) {
        const json_t *s = o->k->members[i].schema;
        if (!o->k->members[i].negated) continue;
        const json_t *own = json_object_get(json_object_get(s, "properties"), p->name),
                     *required = json_object_get(s, "required");
        if (own)
            grammar_schema_add(o->c, value, own, true, -1);
        else if (json_array_size(required) == 1 && strcmp(json_string_value(json_array_get(required, 0)), p->name) == 0)
            grammar_schema_add(o->c, value, json_false(), false, -1);
    }
}

/* Refuses exclusions that exclude_members cannot express; adds the properties that they make required. */
static void check_exclusions(object_layout *o) {
    for (size_t i = 0; i < o->k->n && o->c->b->code == 0; i++) {
        const json_t *s = o->k->members[i].schema, *properties = json_object_get(s, "properties"),
                     *required = json_object_get(s, "required");
        if (!o->k->members[i].negated) continue;
        bool simple = true;
        const char *key, *name = NULL;
        json_t *value;
        json_object_foreach((json_t *)s, key, value) simple =
            simple && (strcmp(key, "type") == 0 || strcmp(key, "properties") == 0 || strcmp(key, "required") == 0 ||
                       strcmp(key, "title") == 0 || strcmp(key, "description") == 0);
        const size_t n_properties = json_object_size(properties), n_required = json_array_size(required);
        json_object_foreach((json_t *)properties, key, value) name = key;
        if (n_required == 1 && n_properties == 1)
            simple = simple && strcmp(json_string_value(json_array_get(required, 0)), name) == 0;
        else
            simple = simple && n_properties + n_required == 1;
        if (!simple) {
            grammar_schema_fail(o->c, WEIR_E_UNSUPPORTED, s,
                                "cannot tell that not, oneOf or if excludes this schema here; give the alternatives a "
                                "required property with different const values");
            return;
        }
        object_property *p = add_property(o, name ? name : json_string_value(json_array_get(required, 0)));
        /* Without the property the excluded schema would hold. */
        if (p && n_required == 0) p->required = true;
    }
}

static void collect_properties(object_layout *o) {
    bool declares = false, silent = true;
    for (size_t i = 0; i < o->k->n; i++) {
        const json_t *schema = o->k->members[i].schema;
        const char *name;
        json_t *value;
        if (o->k->members[i].negated) continue;
        json_object_foreach(json_object_get(schema, "properties"), name, value) {
            if (!json_is_object(value) && !json_is_boolean(value))
                grammar_schema_fail(o->c, WEIR_E_FORMAT, schema, "the property \"%.60s\" must be a schema", name);
            declares = true;
            add_property(o, name);
        }
        declares = declares || o->n_patterns;
        const json_t *unevaluated = json_object_get(schema, "unevaluatedProperties");
        if (unevaluated && !json_is_boolean(unevaluated))
            grammar_schema_fail(o->c, WEIR_E_UNSUPPORTED, schema,
                                "the keyword unevaluatedProperties is supported as true or false only");
        if (json_is_false(unevaluated) && i > 0 && json_object_get(schema, "additionalProperties") == NULL)
            grammar_schema_fail(o->c, WEIR_E_UNSUPPORTED, schema,
                                "the keyword unevaluatedProperties is supported in the outermost schema of an object only");
        silent = silent && json_object_get(schema, "additionalProperties") == NULL && !json_is_true(unevaluated);
        declares = declares || json_is_false(unevaluated);
        const uint32_t min = grammar_schema_count(o->c, schema, "minProperties", 0),
                       max = grammar_schema_count(o->c, schema, "maxProperties", NO_BOUND);
        if (min > o->min) o->min = min;
        if (max < o->max) o->max = max;
    }
    o->closed = silent && declares && o->min <= o->n + (o->n_patterns ? NO_BOUND / 2 : 0);
    for (size_t i = 0; i < o->k->n; i++) {
        const json_t *required = json_object_get(o->k->members[i].schema, "required");
        for (size_t r = 0; r < json_array_size(required) && !o->k->members[i].negated; r++) {
            object_property *p = add_property(o, json_string_value(json_array_get(required, r)));
            if (p) p->required = true;
        }
    }
}

/* Names that propertyNames lists are properties like declared ones, each at most once. */
static void add_listed_names(object_layout *o) {
    for (size_t i = 0; i < o->k->n; i++) {
        const json_t *names = json_object_get(o->k->members[i].schema, "propertyNames"),
                     *listed = json_object_get(names, "enum");
        const json_t *constant = json_object_get(names, "const");
        if (o->k->members[i].negated || (listed == NULL && constant == NULL)) continue;
        const size_t n = constant ? 1 : json_array_size(listed);
        for (size_t v = 0; v < n; v++) {
            const json_t *name = constant ? constant : json_array_get(listed, v);
            conjunction value = {0};
            if (!json_is_string(name) || find_property(o, json_string_value(name))) continue;
            if (value_conjunction(o, NULL, matching_patterns(o, json_string_value(name)), &value))
                add_property(o, json_string_value(name));
        }
    }
}

static void compile_properties(object_layout *o) {
    schema_compiler *c = o->c;
    for (size_t i = 0; i < o->n && c->b->code == 0; i++) {
        object_property *p = &o->properties[i];
        conjunction value = {0};
        p->forbidden = !value_conjunction(o, p->name, matching_patterns(o, p->name), &value) || !name_allowed(o, p->name);
        exclude_members(o, p, &value);
        if (p->forbidden) continue;
        p->text =
            grammar_seq4(c->b, grammar_json_string(c, p->name, p->n_name), c->colon, grammar_schema_value(c, &value), NULL);
    }
}

/* Canonical contents of the keys that are not declared and match exactly the patterns of `matches`. */
static const fa *other_keys(object_layout *o, unsigned matches) {
    schema_compiler *c = o->c;
    grammar_builder *b = c->b;
    expr_list names = {0};
    conjunction constraint = {0};
    const fa *keys =
        grammar_regular(b, grammar_repeat(b, grammar_any_content(c, false), 0, NO_BOUND)); /* many parsers refuse NUL in keys */
    for (size_t i = 0; i < o->n; i++) {
        buf escaped = BUF_INIT;
        grammar_json_escape(&escaped, o->properties[i].name, o->properties[i].n_name);
        grammar_list_add(b, &names, grammar_literal(b, escaped.data ? escaped.data : "", escaped.n_bytes));
        buf_free(&escaped);
    }
    if (names.n) keys = grammar_subtract(b, keys, grammar_regular(b, grammar_alt(b, &names)));
    for (size_t p = 0; p < o->n_patterns; p++)
        keys = matches >> p & 1 ? grammar_intersect(b, keys, o->pattern_automata[p])
                                : grammar_subtract(b, keys, o->pattern_automata[p]);
    for (size_t i = 0; i < o->k->n; i++) {
        const json_t *schema = json_object_get(o->k->members[i].schema, "propertyNames");
        if (schema == NULL || o->k->members[i].negated) continue;
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)schema, key,
                            value) if (strcmp(key, "type") && strcmp(key, "pattern") && strcmp(key, "format") &&
                                       strcmp(key, "minLength") && strcmp(key, "maxLength") && strcmp(key, "enum") &&
                                       strcmp(key, "const") && strcmp(key, "title") && strcmp(key, "description"))
            grammar_schema_fail(c, WEIR_E_UNSUPPORTED, schema, "the keyword %.40s in propertyNames is not supported", key);
        if (json_is_false(schema) || json_object_get(schema, "enum") || json_object_get(schema, "const") ||
            !(grammar_schema_types(c, schema) & TYPE_STRING))
            return NULL;
        grammar_schema_add(c, &constraint, schema, false, -1);
        const uint32_t min = grammar_schema_count(c, schema, "minLength", 0),
                       max = grammar_schema_count(c, schema, "maxLength", NO_BOUND);
        if (min || max != NO_BOUND)
            keys = grammar_intersect(b, keys, grammar_regular(b, grammar_repeat(b, grammar_any_content(c, true), min, max)));
    }
    if (constraint.n) {
        const fa *allowed = grammar_string_contents(c, &constraint);
        if (allowed) keys = grammar_intersect(b, keys, allowed);
    }
    return keys;
}

/* A member with a key that is not declared; grammar_nothing if there is none. */
static const expr *other_members(object_layout *o) {
    schema_compiler *c = o->c;
    expr_list list = {0};
    const bool was_regular = c->b->regular;
    for (unsigned matches = 0; matches < 1u << o->n_patterns && c->b->code == 0; matches++) {
        conjunction value = {0};
        if (!value_conjunction(o, NULL, matches, &value)) continue;
        c->b->regular = true;
        const fa *keys = other_keys(o, matches);
        c->b->regular = was_regular;
        if (c->b->code || grammar_fa_is_empty(keys)) continue;
        const expr *key =
            grammar_seq4(c->b, grammar_text(c->b, "\""), grammar_automaton(c->b, keys), grammar_text(c->b, "\""), NULL);
        grammar_list_add(c->b, &list, grammar_seq4(c->b, key, c->colon, grammar_schema_value(c, &value), NULL));
    }
    return grammar_alt(c->b, &list);
}

/* Node (i, n): the first i declared properties are decided, n members (at most n_counts - 1) are written. */
static const expr *lay_out_object(object_layout *o, const expr *others) {
    grammar_builder *b = o->c->b;
    const uint32_t top = o->max != NO_BOUND ? o->max : o->min > 1 ? o->min : 1, n_counts = top + 1;
    if ((size_t)n_counts * (o->n + 1) > MAX_COUNTED * 64 || top > MAX_COUNTED) {
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: minProperties or maxProperties over %d", MAX_COUNTED);
        return grammar_nothing();
    }
    expr_graph g = {.n_nodes = GRAPH_FIRST + (uint32_t)(o->n + 1) * n_counts};
    const expr *close = grammar_text(b, "}");
    grammar_graph_edge(b, &g, GRAPH_START, GRAPH_FIRST, grammar_text(b, "{"));
    for (uint32_t i = 0; i <= o->n; i++) {
        const bool last = i == o->n;
        const expr *member = last ? others : o->properties[i].forbidden ? NULL : o->properties[i].text;
        const expr *later = member ? grammar_seq4(b, o->c->separator, member, NULL, NULL) : NULL;
        for (uint32_t n = 0; n < n_counts && b->code == 0; n++) {
            const uint32_t from = GRAPH_FIRST + i * n_counts + n, more = n < top ? n + 1 : top;
            const uint32_t next_row = last ? i : i + 1;
            const bool room = o->max == NO_BOUND || n < o->max;
            if (member && room && member->kind != EXPR_NOTHING)
                grammar_graph_edge(b, &g, from, GRAPH_FIRST + next_row * n_counts + more, n ? later : member);
            if (!last && !o->properties[i].required)
                grammar_graph_edge(b, &g, from, GRAPH_FIRST + (i + 1) * n_counts + n, grammar_empty());
            if (last && n >= o->min) grammar_graph_edge(b, &g, from, GRAPH_END, close);
        }
    }
    return grammar_graph(b, &g);
}

const expr *grammar_schema_object(schema_compiler *c, const conjunction *k) {
    object_layout o = {.c = c, .k = k, .max = NO_BOUND};
    find_patterns(&o);
    if (c->b->code == 0) collect_properties(&o);
    if (c->b->code == 0) check_exclusions(&o);
    if (c->b->code == 0) add_listed_names(&o);
    if (c->b->code == 0) compile_properties(&o);
    if (c->b->code) return grammar_nothing();
    return lay_out_object(&o, other_members(&o));
}

/* ---- arrays ------------------------------------------------------------------------------------------------------------- */

typedef struct array_layout {
    schema_compiler *c;
    const conjunction *k;
    uint32_t n_prefix, min, max;
    const json_t *contains;
} array_layout;

static const json_t *prefix_of(const json_t *schema) {
    const json_t *prefix = json_object_get(schema, "prefixItems"), *items = json_object_get(schema, "items");
    return prefix ? prefix : json_is_array(items) ? items : NULL;
}

/* The item at an index (n_prefix: any after the prefixes), which `contains` must hold of too if asked. */
static const expr *item_at(array_layout *a, uint32_t index, bool contained) {
    conjunction value = {0};
    for (size_t i = 0; i < a->k->n; i++) {
        const json_t *schema = a->k->members[i].schema, *prefix = prefix_of(schema), *items = json_object_get(schema, "items");
        if (json_is_array(items)) items = json_object_get(schema, "additionalItems");
        if (index < json_array_size(prefix)) items = json_array_get(prefix, index);
        if (items) grammar_schema_add(a->c, &value, items, false, -1);
    }
    if (contained) grammar_schema_add(a->c, &value, a->contains, false, -1);
    return grammar_schema_value(a->c, &value);
}

static void read_array(array_layout *a) {
    for (size_t i = 0; i < a->k->n; i++) {
        const json_t *schema = a->k->members[i].schema;
        if (a->k->members[i].negated) {
            grammar_schema_fail(a->c, WEIR_E_UNSUPPORTED, schema,
                                "the negation (not, oneOf or if) of a schema for arrays is not supported");
            return;
        }
        const uint32_t n = (uint32_t)json_array_size(prefix_of(schema));
        const uint32_t min = grammar_schema_count(a->c, schema, "minItems", 0),
                       max = grammar_schema_count(a->c, schema, "maxItems", NO_BOUND);
        const json_t *contains = json_object_get(schema, "contains");
        if (n > a->n_prefix) a->n_prefix = n;
        if (min > a->min) a->min = min;
        if (max < a->max) a->max = max;
        if (contains && a->contains)
            grammar_schema_fail(a->c, WEIR_E_UNSUPPORTED, schema, "the keyword contains is not supported twice for one array");
        if (contains) a->contains = contains;
    }
}

/* Node (i, found): i items written (n_counts - 1 stands for all from there on), found: one of them is what `contains` wants. */
static const expr *lay_out_counted(array_layout *a) {
    grammar_builder *b = a->c->b;
    uint32_t top = a->n_prefix > a->min ? a->n_prefix : a->min;
    if (a->max != NO_BOUND && a->max > top) top = a->max;
    if (top == 0) top = 1;
    const uint32_t layers = a->contains ? 2 : 1;
    if (top > MAX_COUNTED) {
        grammar_fail(b, WEIR_E_LIMIT, NULL, "too complex: contains or prefixItems with more than %d items", MAX_COUNTED);
        return grammar_nothing();
    }
    expr_graph g = {.n_nodes = GRAPH_FIRST + (top + 1) * layers};
    grammar_graph_edge(b, &g, GRAPH_START, GRAPH_FIRST, grammar_text(b, "["));
    for (uint32_t i = 0; i <= top && b->code == 0; i++) {
        const uint32_t next = i < top ? i + 1 : top;
        for (uint32_t layer = 0; layer < layers; layer++) {
            const uint32_t from = GRAPH_FIRST + i * layers + layer;
            if (i >= a->min && layer == layers - 1) grammar_graph_edge(b, &g, from, GRAPH_END, grammar_text(b, "]"));
            if (i >= a->max) continue;
            const expr *comma = i ? a->c->separator : grammar_empty();
            const uint32_t index = i < a->n_prefix ? i : a->n_prefix;
            grammar_graph_edge(b, &g, from, GRAPH_FIRST + next * layers + layer,
                               grammar_seq4(b, comma, item_at(a, index, false), NULL, NULL));
            if (layer + 1 < layers)
                grammar_graph_edge(b, &g, from, GRAPH_FIRST + next * layers + 1,
                                   grammar_seq4(b, comma, item_at(a, index, true), NULL, NULL));
        }
    }
    return grammar_graph(b, &g);
}

const expr *grammar_schema_array(schema_compiler *c, const conjunction *k) {
    grammar_builder *b = c->b;
    array_layout a = {.c = c, .k = k, .max = NO_BOUND};
    read_array(&a);
    if (b->code || a.min > a.max) return grammar_nothing();
    if (a.contains || a.n_prefix) return lay_out_counted(&a);
    const expr *open = grammar_text(b, "["), *close = grammar_text(b, "]");
    if (a.max == 0) return grammar_seq4(b, open, close, NULL, NULL);
    const expr *item = item_at(&a, 0, false), *next = grammar_seq4(b, c->separator, item, NULL, NULL);
    const expr *rest = grammar_repeat(b, next, a.min ? a.min - 1 : 0, a.max == NO_BOUND ? NO_BOUND : a.max - 1);
    const expr *items = grammar_seq4(b, item, rest, NULL, NULL);
    return grammar_seq4(b, open, a.min ? items : grammar_optional(b, items), close, NULL);
}
