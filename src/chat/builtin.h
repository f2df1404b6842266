/* Chat templates by name, for models that carry none or a broken one. Static storage; any thread. */
#ifndef WEIR_CHAT_BUILTIN_H
#define WEIR_CHAT_BUILTIN_H

#include <stddef.h>

/* The Jinja source of a well-known format ("chatml", "llama3", ...); NULL for a name that is not known. */
const char *chat_builtin_template(const char *name);
/* The names in alphabetical order, ended by NULL. */
const char *const *chat_builtin_names(void);

#endif
