/* A tiny model of a family (gguf_builder_family) in a file, opened on an instruction-set level. For cmocka tests. */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include <stdlib.h>

#include "fault/gguf_builder.h"
#include "weir/weir.h"

static inline void tiny_model_write(const char *path, const char *family) {
    gguf_builder b;
    gguf_builder_init(&b);
    assert_true(gguf_builder_family(&b, family));
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
}

/* level: "reference", "avx2", "avx512" (or what this CPU has below it), or NULL: the best. */
static inline weir_model *tiny_model_open(const char *path, const char *level) {
    weir_model *m = NULL;
    weir_error err = {0};
    if (level) setenv("WEIR_CPU_LEVEL", level, 1);
    if (weir_model_open(&m, path, NULL, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return m;
}

#endif
