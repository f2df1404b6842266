/* Memory runs out at the first, second, third, ... allocation while a model file is read: each time a described refusal, no
 * object and nothing leaked (the sanitizer looks), until there is enough. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "fault/gguf_builder.h"

/* The linker sends every allocation of the tested code through these (--wrap). */
void *__real_malloc(size_t n_bytes);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t n_bytes);
void *__wrap_malloc(size_t n_bytes);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t n_bytes);

static long until_failure = -1; /* allocations that still succeed; -1 = all */

static bool fails_now(void) {
    if (until_failure < 0) return false;
    if (until_failure == 0) return true; /* and from here on all of them: memory stays scarce */
    until_failure--;
    return false;
}

void *__wrap_malloc(size_t n_bytes) {
    return fails_now() ? NULL : __real_malloc(n_bytes);
}
void *__wrap_calloc(size_t count, size_t size) {
    return fails_now() ? NULL : __real_calloc(count, size);
}
void *__wrap_realloc(void *p, size_t n_bytes) {
    return fails_now() ? NULL : __real_realloc(p, n_bytes);
}

typedef int (*open_fn)(gguf **out, void *what, weir_error *err);

/* Returns how many allocations the whole thing takes. */
static long exhaust(open_fn open_it, void *what) {
    enum { MAX_ALLOCATIONS = 10000 };
    for (long n = 0; n < MAX_ALLOCATIONS; n++) {
        gguf *g = (gguf *)what;
        weir_error err = {0};
        until_failure = n;
        int rc = open_it(&g, what, &err);
        until_failure = -1;
        if (rc == 0) {
            gguf_close(&g);
            return n;
        }
        assert_int_equal(rc, WEIR_E_NOMEM);
        assert_int_equal(err.code, WEIR_E_NOMEM);
        assert_true(err.message[0] != '\0');
        assert_null(g);
    }
    fail_msg("still fails with %d allocations", (int)MAX_ALLOCATIONS);
    return -1;
}

static int parse_bytes(gguf **out, void *what, weir_error *err) {
    const buf *file = what;
    return gguf_parse(out, file->data, file->n_bytes, "tiny.gguf", err);
}

static void test_parse(void **state) {
    (void)state;
    gguf_builder b;
    buf file = BUF_INIT;
    gguf_builder_init(&b);
    gguf_builder_llama(&b, NULL);
    assert_true(gguf_builder_finish(&b, &file));
    assert_true(exhaust(parse_bytes, &file) >= 3);
    buf_free(&file);
    gguf_builder_free(&b);
}

static int open_path(gguf **out, void *what, weir_error *err) {
    return gguf_open(out, what, err);
}

static void write_part(const char *path, uint32_t number, const char *tensor) {
    gguf_builder b;
    gguf_builder_init(&b);
    gguf_builder_u32(&b, "split.no", number);
    gguf_builder_u32(&b, "split.count", 2);
    gguf_builder_add_tensor(&b, tensor, QUANT_F32, 1, (uint64_t[]){1000});
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
}

static void test_split_model(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    char folder[256], first[320], second[320];
    snprintf(folder, sizeof folder, "%s/weir-nomem-XXXXXX", base && base[0] ? base : P_tmpdir);
    assert_non_null(mkdtemp(folder));
    snprintf(first, sizeof first, "%s/m-00001-of-00002.gguf", folder);
    snprintf(second, sizeof second, "%s/m-00002-of-00002.gguf", folder);
    write_part(first, 0, "a");
    write_part(second, 1, "b");
    assert_true(exhaust(open_path, first) >= 6);
    unlink(first);
    unlink(second);
    rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parse), cmocka_unit_test(test_split_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
