/* `weir inspect --check`: whether what a GGUF file holds makes sense, beyond what parsing it has proven: every value finite and
 * in range, a consistent vocabulary, a chat template that renders, tensors that fit the architecture. Main thread; starts and
 * ends threads of its own. */
#ifndef WEIR_CLI_INSPECT_CHECK_H
#define WEIR_CLI_INSPECT_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "gguf/gguf.h"

enum { INSPECT_MAX_FINDINGS = 100 };

typedef struct inspect_finding {
    bool warning; /* odd, but no reason not to use the file */
    weir_error what;
} inspect_finding;

typedef struct inspect_findings {
    inspect_finding items[INSPECT_MAX_FINDINGS]; /* later ones are only counted */
    size_t n_items;
    uint64_t n_problems, n_warnings;
    uint64_t n_tensors, n_values; /* looked at, value by value */
} inspect_findings;

typedef struct inspect_check_options {
    int n_threads;                                             /* at least 1 */
    void (*progress)(void *user, uint64_t done, uint64_t all); /* in values, on the calling thread; may be NULL */
    void *user;
} inspect_check_options;

/* Fills *out. A tensor's problem names the tensor, the row and column of the first bad value and its block's offset in the
 * file. Errors: WEIR_E_NOMEM, WEIR_E_INTERNAL (threads); a bad file is no error. */
int inspect_check(gguf *g, const inspect_check_options *options, inspect_findings *out, weir_error *err);
/* Appends the findings to `out`, ending in a newline. Text: a line each. JSON: {"file", "n_problems", "n_warnings",
 * "n_tensors", "n_values", "findings": [{"kind": "problem" or "warning", "place", "message"}]}. */
void inspect_check_render(const gguf *g, const inspect_findings *findings, bool json, buf *out);

#endif
