/* A Jinja interpreter for chat templates: the language of Jinja 3.1 with the settings of Hugging Face transformers (trim_blocks,
 * lstrip_blocks, loop controls, the generation tag, autoescape off, an immutable sandbox).
 *
 * Owns compiled templates and the bounds of a rendering. Knows nothing of models, tokens or requests. A compiled template is
 * immutable: any number of threads may render it at once, each rendering has its own memory. */
#ifndef WEIR_CHAT_JINJA_H
#define WEIR_CHAT_JINJA_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "weir/weir_error.h"

typedef struct jinja_template jinja_template;

typedef struct jinja_options {
    uint64_t max_steps;      /* units of work: about one for a node evaluated, an item visited, 16 bytes copied; 0 = 20 million */
    size_t max_memory_bytes; /* of one rendering; 0 = 128 MiB and 16 times the size of the variables */
    size_t max_output_bytes; /* 0 = 64 MiB */
    const struct tm *now;    /* what strftime_now sees; NULL = the present local time */
} jinja_options;

/* A name and a text that a rendering sees when the variables lack that name. */
typedef struct jinja_default {
    const char *name, *text;
} jinja_default;

/* Compiles source[n_bytes]. Errors: WEIR_E_FORMAT (place has line and column), WEIR_E_LIMIT (nesting or size), WEIR_E_NOMEM. */
int jinja_compile(jinja_template **out, const char *source, size_t n_bytes, weir_error *err);
void jinja_template_close(jinja_template **t); /* accepts NULL */
/* Renders with the members of the JSON object json[n_bytes] as variables and defaults[n_defaults] for those that are absent.
 * `options` may be NULL. The caller frees *text with free(). Errors: WEIR_E_INVALID (the JSON; raise_exception with its message;
 * a type, security or undefined error with the line), WEIR_E_LIMIT, WEIR_E_NOMEM. Any thread. */
int jinja_render(const jinja_template *t, const char *json, size_t n_bytes, const jinja_default *defaults, size_t n_defaults,
                 const jinja_options *options, char **text, size_t *text_bytes, weir_error *err);

#endif
