/* `weir inspect`: what is in a GGUF file, as text for people or JSON for programs. Formats only: the caller opens the file and
 * writes the result. Everything that comes from the file is made harmless to a terminal. Pure functions; any thread. */
#ifndef WEIR_CLI_INSPECT_H
#define WEIR_CLI_INSPECT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "gguf/gguf.h"

/* What running the model takes, found out by the caller. */
typedef struct inspect_memory {
    uint64_t weights_bytes, kv_token_bytes;
    uint64_t matmul_params, head_params, decode_bytes; /* of one token: as model_memory in model.h */
    uint64_t state_bytes; /* recurrent state of a sequence */
    int32_t n_ctx_train;
    const char *problem; /* why this program cannot run it; NULL when it can */
} inspect_memory;

typedef struct inspect_options {
    bool json;    /* one JSON object instead of text */
    bool tensors; /* list every tensor, not only the totals of each type */
    const inspect_memory *memory; /* may be NULL */
    bool full;    /* arrays and strings in full length; else arrays show 6 items, and text shows 96 characters of a string */
} inspect_options;

/* Appends to `out`, ending in a newline. Text: a summary, the metadata, the totals of each tensor type, the tensors if asked.
 * JSON: {"file", "version", "parts", "file_bytes", "file_type", "n_tensors", "n_values", "tensor_bytes", "metadata": {KEY:
 * {"type", "value"} or {"type": "array", "item_type", "n_items", "value"}}, "types": [{"type", "n_tensors", "n_values",
 * "n_bytes"}], "tensors": [{"name", "type", "shape", "n_values", "n_bytes", "offset", "part"}], "memory": {"weights_bytes",
 * "kv_token_bytes", "state_bytes", "matmul_params", "head_params", "decode_bytes", "n_ctx_train"} or {"problem"}} with "tensors"
 * only if asked and "memory" only if given.
 * Keys and names are as gguf_printable makes them; ill-formed UTF-8 in values becomes U+FFFD; numbers that JSON lacks or that
 * do not fit in 63 bits are strings ("nan", "inf", "-inf", "18446744073709551615"). Shapes have the row length first. Errors:
 * WEIR_E_NOMEM. */
int inspect_render(const gguf *g, const inspect_options *options, buf *out, weir_error *err);
/* Appends a JSON string; what is ill-formed in the text becomes U+FFFD. */
void inspect_put_json(buf *out, const char *text);

#endif
