/* Helpers that filters, tests, methods and functions share for reading their arguments. Internal to the interpreter. */
#ifndef WEIR_CHAT_JINJA_BUILTIN_H
#define WEIR_CHAT_JINJA_BUILTIN_H

#include "chat/jinja_value.h"

typedef struct builtin_table {
    const jinja_builtin *rows;
    size_t n;
} builtin_table;

/* The row called name[n_bytes], or NULL. */
const jinja_builtin *builtin_find(const builtin_table *table, const char *name, size_t n_bytes);
/* An optional integer; `what` names it in the error. */
int argument_int(render *r, const value *argument, const char *what, int64_t missing, int64_t *out);
/* A text; anything but a string is WEIR_E_INVALID. */
int argument_text(render *r, const value *argument, const char *what, value *out);
static inline bool argument_truth(const value *argument, bool missing) {
    return argument->type == V_MISSING ? missing : value_truth(argument);
}
static inline bool argument_given(const value *argument) { return argument->type != V_MISSING && argument->type != V_NONE; }

/* Follows a dotted attribute ("a.b.0", an integer, or none) as filters do. */
int attribute_path(render *r, const value *object, const value *path, value *out);
/* A string in lower case unless `case_sensitive`; other values as they are. */
int fold_case(render *r, const value *v, bool case_sensitive, value *out);

/* Filters over lists, in a file of their own. */
extern const builtin_table list_filters;
/* text.replace(old, new, count) */
int text_replace(render *r, const value *text, const value *old, const value *new, int64_t count, value *out);
/* text.splitlines() */
int text_split_lines(render *r, const value *text, bool keep_ends, value *out);

#endif
