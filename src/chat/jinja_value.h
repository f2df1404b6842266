/* Values of the Jinja interpreter and the state of one rendering.
 *
 * A value is 16 bytes: a tag and an immediate or a pointer into the rendering's arena (or into the compiled template, which
 * outlives it). Nothing is freed before the rendering ends. Semantics, texts and messages follow Python, whose types these are.
 * Functions return 0 or a negative weir_code described in the rendering's error. One thread per rendering. */
#ifndef WEIR_CHAT_JINJA_VALUE_H
#define WEIR_CHAT_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"
#include "chat/jinja.h"

typedef enum value_type {
    V_MISSING, /* an argument that was not given; never seen by a template */
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STRING,
    V_LIST,
    V_TUPLE,
    V_VIEW,     /* dict_keys, dict_values, dict_items: a list with `flags` saying which */
    V_ITERATOR, /* a generator: a list that is consumed */
    V_RANGE,
    V_DICT,
    V_NAMESPACE,
    V_MACRO,
    V_METHOD,
    V_FUNCTION,
    V_LOOP,
    V_CYCLER,
    V_JOINER,
    V_SELF,
    V_BLOCK,
} value_type;

enum {
    VALUE_SAFE = 1,     /* string: markup that autoescape leaves alone */
    VALUE_INTEGRAL = 1, /* float: an integer beyond 64 bits; exact as long as a double is */
    VALUE_KEYS = 0,     /* view: what it shows */
    VALUE_VALUES = 1,
    VALUE_ITEMS = 2,
    VALUE_GROUP = 1, /* tuple: (grouper, list) of groupby */
};

typedef struct value value;
typedef struct value_list value_list;
typedef struct value_dict value_dict;
typedef struct value_range value_range;
typedef struct value_method value_method;
typedef struct value_undefined value_undefined;
typedef struct jinja_macro jinja_macro;
typedef struct jinja_loop jinja_loop;
typedef struct jinja_block jinja_block;
typedef struct jinja_builtin jinja_builtin;
typedef struct value_cycler value_cycler;

struct value {
    uint8_t type, flags;
    uint32_t n_bytes; /* of a string */
    union {
        bool boolean;
        int64_t integer;
        double real;
        const char *text; /* not NUL-terminated */
        value_list *list;
        value_dict *dict; /* also of a namespace */
        value_range *range;
        value_method *method;
        value_undefined *undefined;
        jinja_macro *macro;
        jinja_loop *loop;
        const jinja_block *block;
        const jinja_builtin *function;
        value_cycler *cycler; /* also of a joiner */
    };
};

struct value_list {
    value *items;
    size_t n, capacity;
    size_t position;   /* of an iterator: items taken */
    const char *label; /* of an iterator: what printing shows */
};

typedef struct dict_entry {
    value key, item;
    uint64_t hash;
} dict_entry;

struct value_dict {
    dict_entry *entries; /* in order of insertion */
    size_t n, capacity;
    uint32_t *slots; /* open addressing, entry + 1; NULL while the dict is small */
    size_t n_slots;
};

struct value_range {
    int64_t start, stop, step, n;
};

struct value_method {
    value self;
    const jinja_builtin *builtin;
};

struct value_cycler {
    value *items; /* of a joiner: the separator */
    size_t n, position;
};

struct value_undefined {
    const char *hint; /* the whole message, or NULL */
    value object;     /* what lacks `name`, or V_MISSING for a variable */
    value name;
};

typedef struct keyword_argument {
    value name; /* a string */
    value item;
} keyword_argument;

typedef struct call_arguments {
    value *items;
    size_t n;
    keyword_argument *keywords;
    size_t n_keywords;
} call_arguments;

typedef struct growing_text {
    char *data;
    size_t n, capacity;
} growing_text;

typedef struct render render;
struct render {
    arena memory;
    weir_error *err;
    uint64_t steps, max_steps;
    size_t max_output_bytes;
    int depth;          /* nested evaluations and comparisons */
    uint32_t line;      /* of the statement being run */
    bool autoescape;
    value_dict *variables;
    const struct tm *now;
    const jinja_template *source;
    struct scope *root, *scope;
    struct text_sink *out;
    growing_text growing[4]; /* concatenations that may be continued in place */
    unsigned next_growing;
};

/* One filter, test, method or function. `argv` has an entry for each name of `parameters` (V_MISSING where not given). */
typedef int (*builtin_fn)(render *r, const value *self, const value *argv, const call_arguments *all, value *out);
struct jinja_builtin {
    const char *name;
    builtin_fn fn;
    const char *parameters; /* names divided by blanks; "*" = takes any arguments itself */
    uint8_t n_required;
};

enum { BUILTIN_MAX_PARAMETERS = 8, VALUE_MAX_DEPTH = 1000 };

/* ---- bounds and memory ---- */

int render_fail(render *r, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
#define RAISE(r, ...) return render_fail((r), WEIR_E_INVALID, __VA_ARGS__)
/* Accounts for `n` units of work; WEIR_E_LIMIT when the budget is spent. */
int render_charge(render *r, size_t n);
/* Zeroed memory of the rendering for `count` items of `size` bytes. */
int render_alloc(render *r, size_t count, size_t size, void **out);
#define ALLOC(r, pointer, count) TRY(render_alloc((r), (count), sizeof *(pointer), (void **)&(pointer)))
/* Enters a nested evaluation; WEIR_E_LIMIT when too deep. Pair with `r->depth--` on success. */
int render_enter(render *r);

/* ---- text under construction ---- */

typedef struct text_sink {
    render *r;
    char *data;
    size_t n, capacity;
    int failed; /* sticky: the first error, reported by sink_finish */
} text_sink;

#define SINK(rendering) ((text_sink){.r = (rendering)})
void sink_append(text_sink *s, const char *text, size_t n_bytes);
void sink_puts(text_sink *s, const char *text);
void sink_putc(text_sink *s, char c);
void sink_code_point(text_sink *s, uint32_t code_point);
void sink_repeat(text_sink *s, const char *text, size_t n_bytes, size_t times);
void sink_printf(text_sink *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
int sink_finish(text_sink *s, value *out); /* the string */

/* ---- making values ---- */

static inline value value_none(void) { return (value){.type = V_NONE}; }
static inline value value_bool(bool b) { return (value){.type = V_BOOL, .boolean = b}; }
static inline value value_int(int64_t i) { return (value){.type = V_INT, .integer = i}; }
static inline value value_float(double f) { return (value){.type = V_FLOAT, .real = f}; }
static inline value value_text(const char *text, size_t n) {
    return (value){.type = V_STRING, .n_bytes = (uint32_t)n, .text = text};
}
/* Of a text that outlives the rendering. */
value value_literal(const char *text);
int value_copy_text(render *r, const char *text, size_t n, value *out);
int value_undefined_hint(render *r, value *out, const char *format, ...) __attribute__((format(printf, 3, 4)));
int value_undefined_name(render *r, const value *object, const value *name, value *out);
int list_new(render *r, value_type type, size_t capacity, value *out);
int list_push(render *r, value_list *l, value item);
/* A list value, or an iterator over the same items that prints as "<LABEL>". */
value list_as_iterator(value list, const char *label);
int dict_new(render *r, value *out);
int dict_set(render *r, value_dict *d, const value *key, const value *item);
/* *found is NULL when absent. WEIR_E_INVALID when the key cannot be hashed. */
int dict_find(render *r, const value_dict *d, const value *key, value **found);
value *dict_find_text(const value_dict *d, const char *text, size_t n_bytes);

/* ---- asking values ---- */

static inline bool is_string(const value *v) { return v->type == V_STRING; }
static inline bool is_undefined(const value *v) { return v->type == V_UNDEFINED; }
static inline bool is_listlike(const value *v) { return v->type >= V_LIST && v->type <= V_ITERATOR; }
/* An integer or a bool, in *out. */
bool value_as_int(const value *v, int64_t *out);
/* Any number, in *out. */
bool value_as_double(const value *v, double *out);
bool text_equals(const value *v, const char *text);
bool value_truth(const value *v);
const char *value_type_name(const value *v); /* Python's */
int value_raise_undefined(render *r, const value *v);
int value_equal(render *r, const value *a, const value *b, bool *out);
/* Python's ordering: *out < 0, 0, > 0; 2 for "unordered" (NaN). `op` is for the message. */
int value_order(render *r, const value *a, const value *b, const char *op, int *out);
int value_contains(render *r, const value *container, const value *item, bool *out);
int value_length(render *r, const value *v, int64_t *out);
bool value_iterable(const value *v);
/* All items as a list. Consumes iterators. */
int value_to_list(render *r, const value *v, value *out);
int value_hash(render *r, const value *v, uint64_t *out);
/* str() and repr(). */
int value_print(text_sink *s, const value *v);
int value_repr(text_sink *s, const value *v);
int value_to_text(render *r, const value *v, value *out); /* strings are returned as they are */
void value_repr_text(text_sink *s, const char *text, size_t n_bytes);
void sink_double(text_sink *s, double d); /* Python's repr */
int value_escape(render *r, const value *v, value *out); /* HTML; markup is left alone */
int value_concat(render *r, const value *a, const value *b, value *out); /* texts */
int value_slice(render *r, const value *v, const value *start, const value *stop, const value *step, value *out);

/* ---- the other parts of the interpreter ---- */

/* object.name and object[key]. */
int value_get_attribute(render *r, const value *object, const value *name, value *out);
int value_get_item(render *r, const value *object, const value *key, value *out);
int value_call(render *r, const value *callee, const call_arguments *arguments, value *out);
int builtin_call(render *r, const jinja_builtin *b, const value *self, const call_arguments *arguments, value *out);
const jinja_builtin *filter_find(const char *name, size_t n_bytes);
const jinja_builtin *test_find(const char *name, size_t n_bytes);
const jinja_builtin *function_find(const char *name, size_t n_bytes);
const jinja_builtin *method_find(const value *object, const char *name, size_t n_bytes);
/* A method that changes a list or dict, of those that templates use; NULL for the others. */
const jinja_builtin *mutator_find(const value *object, const value *name);
int dict_remove(render *r, value_dict *d, const value *key);
/* Runs `value is test(arguments)`. */
int test_call(render *r, const jinja_builtin *test, const value *v, const call_arguments *arguments, bool *out);

typedef enum binary_op { OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW } binary_op;
int value_arithmetic(render *r, binary_op op, const value *a, const value *b, value *out);
int value_negate(render *r, const value *v, value *out);

/* format % arguments */
int format_percent(render *r, const value *format, const value *arguments, value *out);
/* format.format(...): `arguments` positional and keyword, or all keywords from `mapping` when not NULL. */
int format_braces(render *r, const value *format, const call_arguments *arguments, const value_dict *mapping, value *out);
int format_time(render *r, const value *format, const struct tm *tm, value *out);

/* JSON text as json.dumps writes it. */
typedef struct json_style {
    bool ascii, sort_keys;
    bool indented;
    value indent; /* text of one level */
    value item_separator, key_separator;
} json_style;
int json_write(text_sink *s, const value *v, const json_style *style);
/* The value of a JSON text. `what` names it in messages. */
int json_read(render *r, const char *text, size_t n_bytes, const char *what, value *out);

#endif
