/* Which format each tensor of a model gets when the model is quantised to a type such as Q4_K_M: the usual mixes, as
 * llama-quantize makes them, in one table. Owns: names of types, rules. Knows nothing of how values are quantised. Pure
 * functions; any thread. */
#ifndef WEIR_QUANT_MIX_H
#define WEIR_QUANT_MIX_H

#include "gguf/gguf.h"

typedef struct quant_mix quant_mix;

/* A format for the tensors whose name matches a pattern (PCRE2, found anywhere in the name, in any case). */
typedef struct quant_override {
    const char *pattern;
    const quant_format *format;
} quant_override;

typedef struct quant_mix_options {
    bool pure;                              /* the type's own format for all tensors */
    bool leave_output;                      /* output.weight stays as it is */
    bool has_imatrix;                       /* some rules are for models quantised without one */
    const quant_format *output, *embedding; /* instead of what the rules say; NULL = the rules */
    const quant_override *overrides;        /* the first that matches counts, before the rules */
    size_t n_overrides;
} quant_mix_options;

/* By the name of a type ("Q4_K_M", "q4_k" for the usual mix of that format, "COPY" to leave all tensors as they are) or its
 * number in general.file_type; NULL if there is none. Static storage. */
const quant_mix *quant_mix_named(const char *name);
/* The types one after the other, in the order of their numbers; NULL after the last. */
const quant_mix *quant_mix_at(size_t i);
const char *quant_mix_name(const quant_mix *m);
/* The number in general.file_type; -1 for COPY, which keeps the file's own. */
int32_t quant_mix_file_type(const quant_mix *m);
/* The format that most of the matrices get; NULL for COPY. */
const quant_format *quant_mix_format(const quant_mix *m);

/* Why a tensor got its format. */
typedef enum quant_reason {
    QUANT_REASON_TYPE,     /* the type's own */
    QUANT_REASON_RULE,     /* a rule of the mix */
    QUANT_REASON_OPTION,   /* an option says so */
    QUANT_REASON_FALLBACK, /* its rows are no multiple of the wanted format's blocks */
    QUANT_REASON_KEPT,     /* norms, biases, routers and other small tensors stay as they are */
} quant_reason;

typedef struct quant_choice {
    const quant_format *format;
    quant_reason reason;
} quant_choice;

/* Fills choices[gguf_n_tensors(g)]. Errors: WEIR_E_INVALID (a pattern cannot be compiled), WEIR_E_FORMAT (a key of the model),
 * and WEIR_E_NOMEM. */
int quant_mix_choose(const gguf *g, const quant_mix *m, const quant_mix_options *options, quant_choice *choices,
                     weir_error *err);

#endif
