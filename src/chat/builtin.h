/* Chat templates by name, for models that carry none or a broken one. Static storage; any thread. */
#ifndef WEIR_CHAT_BUILTIN_H
#define WEIR_CHAT_BUILTIN_H

#include <stddef.h>

/* The Jinja source of a well-known format ("chatml", "llama3", ...); NULL for a name that is not known. */
const char *chat_builtin_template(const char *name);
/* The names in the order of their bytes, by index; NULL after the last. */
const char *chat_builtin_name(size_t index);

#endif
