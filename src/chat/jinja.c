/* Compiling and rendering as a whole: bounds, memory, variables. See jinja.h. */
#include "chat/jinja.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "chat/jinja_eval.h"

enum {
    MAX_SOURCE_BYTES = 4 << 20,
    MAX_TREE_BYTES = 256 << 20,
    DEFAULT_STEPS = 20000000,
    DEFAULT_MEMORY = 128 << 20,
    DEFAULT_OUTPUT = 64 << 20,
    N_ATOM_SLOTS = 256,
};

/* Line ends become \n, and one at the very end is dropped. */
static size_t normalise(char *out, const char *source, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (source[i] == '\r' && i + 1 < n && source[i + 1] == '\n') continue;
        out[k++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (k && out[k - 1] == '\n') k--;
    out[k] = '\0';
    return k;
}

static int compile(jinja_template *t, const char *source, size_t n_bytes, weir_error *err) {
    char *text = arena_alloc(&t->memory, n_bytes + 1);
    t->n_atom_slots = N_ATOM_SLOTS;
    t->atoms = arena_array(&t->memory, N_ATOM_SLOTS, sizeof *t->atoms);
    FAIL_IF(text == NULL || t->atoms == NULL, err, WEIR_E_NOMEM, "template", "out of memory while compiling the template");
    t->n_bytes = normalise(text, source, n_bytes);
    t->source = text;
    arena scratch = ARENA_INIT;
    scratch.limit_bytes = MAX_TREE_BYTES;
    token_list tokens = {0};
    int result = jinja_tokenize(t, &scratch, &tokens, err);
    if (result >= 0) result = jinja_parse(t, &tokens, err);
    arena_free(&scratch);
    return result;
}

int jinja_compile(jinja_template **out, const char *source, size_t n_bytes, weir_error *err) {
    *out = NULL;
    FAIL_IF(n_bytes > MAX_SOURCE_BYTES, err, WEIR_E_LIMIT, "template", "%zu bytes of template; at most %d are accepted",
            n_bytes, MAX_SOURCE_BYTES);
    FAIL_IF(!utf8_valid(source, n_bytes), err, WEIR_E_FORMAT, "template", "the template is not valid UTF-8");
    jinja_template *t = calloc(1, sizeof *t);
    FAIL_IF(t == NULL, err, WEIR_E_NOMEM, "template", "out of memory while compiling the template");
    t->memory.limit_bytes = MAX_TREE_BYTES;
    int result = compile(t, source, n_bytes, err);
    if (result < 0) {
        jinja_template_close(&t);
        return result;
    }
    *out = t;
    return 0;
}

void jinja_template_close(jinja_template **t) {
    if (*t == NULL) return;
    arena_free(&(*t)->memory);
    free(*t);
    *t = NULL;
}

static int read_variables(render *r, const char *json, size_t n_bytes, const jinja_default *defaults, size_t n_defaults) {
    value variables;
    TRY(json_read(r, json, n_bytes, "variables", &variables));
    FAIL_IF(variables.type != V_DICT, r->err, WEIR_E_INVALID, "variables", "expected a JSON object, got %s",
            value_type_name(&variables));
    r->variables = variables.dict;
    for (size_t i = 0; i < n_defaults; i++) {
        value name = value_literal(defaults[i].name), text = value_literal(defaults[i].text);
        if (dict_find_text(r->variables, name.text, name.n_bytes) == NULL) TRY(dict_set(r, r->variables, &name, &text));
    }
    return 0;
}

static int run(render *r, const char *json, size_t n_bytes, const jinja_default *defaults, size_t n_defaults, char **text,
               size_t *text_bytes) {
    text_sink sink = SINK(r);
    TRY(read_variables(r, json, n_bytes, defaults, n_defaults));
    TRY(scope_new(r, NULL, &r->root));
    r->scope = r->root;
    r->out = &sink;
    int result = exec_list(r, &r->source->body);
    if (result < 0) return result;
    if (sink.failed) return sink.failed;
    char *copy = malloc(sink.n + 1);
    FAIL_IF(copy == NULL, r->err, WEIR_E_NOMEM, "template", "out of memory for %zu bytes of rendered text", sink.n);
    if (sink.n) memcpy(copy, sink.data, sink.n);
    copy[sink.n] = '\0';
    *text = copy;
    if (text_bytes) *text_bytes = sink.n;
    return 0;
}

int jinja_render(const jinja_template *t, const char *json, size_t n_bytes, const jinja_default *defaults, size_t n_defaults,
                 const jinja_options *options, char **text, size_t *text_bytes, weir_error *err) {
    static const jinja_options none = {0};
    const jinja_options *o = options ? options : &none;
    size_t from_variables;
    *text = NULL;
    if (text_bytes) *text_bytes = 0;
    if (!checked_mul(n_bytes, 16, &from_variables) || !checked_add(from_variables, DEFAULT_MEMORY, &from_variables))
        FAIL(err, WEIR_E_LIMIT, "variables", "%zu bytes of JSON are too many", n_bytes);
    render r = {
        .err = err,
        .source = t,
        .now = o->now,
        .max_steps = o->max_steps ? o->max_steps : DEFAULT_STEPS + n_bytes,
        .max_output_bytes = o->max_output_bytes ? o->max_output_bytes : DEFAULT_OUTPUT,
        .memory = {.limit_bytes = o->max_memory_bytes ? o->max_memory_bytes : from_variables},
    };
    int result = run(&r, json, n_bytes, defaults, n_defaults, text, text_bytes);
    arena_free(&r.memory);
    return result;
}
