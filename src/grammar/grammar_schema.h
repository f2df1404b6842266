/* What the files of the JSON Schema compiler share.
 *
 * The unit of compilation is a conjunction: a set of schemas of the document that a value must all satisfy, and of schemas that
 * it must not satisfy. References and allOf only add members; anyOf, oneOf and if split a conjunction into alternatives. What
 * is left are members whose other keywords say something about one type of value each, and those are compiled together: this is
 * how allOf, siblings of $ref, and properties that several members declare are merged. */
#ifndef WEIR_GRAMMAR_SCHEMA_H
#define WEIR_GRAMMAR_SCHEMA_H

#include <jansson.h>

#include "grammar/grammar_internal.h"

enum {
    TYPE_NULL = 1,
    TYPE_BOOLEAN = 2,
    TYPE_OBJECT = 4,
    TYPE_ARRAY = 8,
    TYPE_FRACTION = 16,
    TYPE_INTEGER = 32,
    TYPE_STRING = 64,
    TYPE_NUMBER = TYPE_FRACTION | TYPE_INTEGER,
    TYPE_ANY = 127,
};

typedef struct schema_member {
    const json_t *schema; /* an object or false */
    bool negated;         /* the value must not satisfy it */
    int parent;           /* the member that brought this one, -1 = given */
} schema_member;

typedef struct conjunction {
    schema_member *members;
    size_t n, capacity;
} conjunction;

typedef struct compiled_conjunction {
    conjunction key;     /* sorted, each once */
    conjunction ordered; /* as given: properties come in the order of declaration */
    uint32_t rule;
} compiled_conjunction;

typedef struct schema_compiler {
    grammar_builder *b;
    const json_t *root;
    compiled_conjunction *rules; /* in order of their making; those from next_rule on are not compiled yet */
    size_t n_rules, capacity, next_rule;
    bool positive_only; /* grammar_schema_valid: leave out not and if, read oneOf as anyOf */
    const expr *string, *integer, *number, *separator, *colon; /* shared */
    const fa *one_char; /* of a string, with every escape */
    uint32_t n_unrolled; /* characters of strings of bounded length that have states of their own */
} schema_compiler;

/* Notes a failure with the JSON pointer of `schema` as place. */
void grammar_schema_fail(schema_compiler *c, int code, const json_t *schema, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void grammar_schema_add(schema_compiler *c, conjunction *k, const json_t *schema, bool negated, int parent);
/* The rule for the values that satisfy k, compiled later if it is new. */
const expr *grammar_schema_value(schema_compiler *c, const conjunction *k);
/* The schema that a $ref names; NULL after noting a failure. */
const json_t *grammar_schema_resolve(schema_compiler *c, const json_t *schema, const json_t *reference);
/* The TYPE_ bits that a schema's own `type` allows. */
unsigned grammar_schema_types(schema_compiler *c, const json_t *schema);
/* A non-negative integer keyword, or `absent`. */
uint32_t grammar_schema_count(schema_compiler *c, const json_t *schema, const char *keyword, uint32_t absent);
/* 1 = valid, 0 = not, negative = a failure was noted. */
int grammar_schema_valid(schema_compiler *c, const json_t *schema, const json_t *value, int depth);
bool grammar_schema_equal(const json_t *a, const json_t *b); /* as JSON Schema compares: 1.0 equals 1 */

/* The text of a value, compact or with one space after separators. */
const expr *grammar_json_value(schema_compiler *c, const json_t *value);
/* A string with quotes, canonically escaped; and without quotes, as bytes (to be freed with buf_free). */
const expr *grammar_json_string(schema_compiler *c, const char *text, size_t n_bytes);
void grammar_json_escape(buf *out, const char *text, size_t n_bytes);

/* Expressions of the values of one type that satisfy the conjunction (no references, no alternatives left). */
const expr *grammar_schema_string(schema_compiler *c, const conjunction *k);
const expr *grammar_schema_number(schema_compiler *c, const conjunction *k, bool integer);
const expr *grammar_schema_object(schema_compiler *c, const conjunction *k);
const expr *grammar_schema_array(schema_compiler *c, const conjunction *k);
/* The canonical contents (without quotes) of the strings of a conjunction; NULL: no constraint, or after a failure. */
const fa *grammar_string_contents(schema_compiler *c, const conjunction *k);
/* The contents that a pattern finds a match in. */
const fa *grammar_string_pattern(schema_compiler *c, const char *pattern, size_t n_bytes);
/* One character of a string in its canonical form. */
const expr *grammar_any_content(schema_compiler *c, bool with_nul);
bool grammar_fa_accepts(const fa *a, const char *bytes, size_t n_bytes); /* deterministic */

#endif
