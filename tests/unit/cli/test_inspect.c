/* `weir inspect`: what text and JSON say about a file, and that nothing in a file reaches the terminal as it is. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/utf8.h"
#include "cli/inspect.h"
#include "fault/gguf_builder.h"

/* Builds, parses and renders; the caller frees the text. */
static char *render(gguf_builder *b, inspect_options options) {
    buf file = BUF_INIT, out = BUF_INIT;
    gguf *g = NULL;
    weir_error err = {0};
    assert_true(gguf_builder_finish(b, &file));
    if (gguf_parse(&g, file.data, file.n_bytes, "dir/model.gguf", &err) != 0) fail_msg("%s: %s", err.place, err.message);
    assert_int_equal(inspect_render(g, &options, &out, &err), 0);
    gguf_close(&g);
    buf_free(&file);
    gguf_builder_free(b);
    size_t n_bytes = 0;
    char *text = buf_take(&out, &n_bytes);
    assert_non_null(text);
    assert_true(utf8_valid(text, n_bytes) && strlen(text) == n_bytes && n_bytes > 0 && text[n_bytes - 1] == '\n');
    return text;
}

static void assert_has(const char *text, const char *wanted) {
    if (text == NULL || strstr(text, wanted) == NULL) fail_msg("\"%s\" is not in:\n%s", wanted, text ? text : "(nothing)");
}

static void build_small(gguf_builder *b) {
    static const char *const words[] = {"a", "b", "c", "d", "e", "f", "g", "last"};
    gguf_builder_init(b);
    gguf_builder_string(b, "general.name", "Small One");
    gguf_builder_u32(b, "general.file_type", 15);
    gguf_builder_f32(b, "theta", 1000000.0f);
    gguf_builder_f32(b, "epsilon", 1e-5f);
    gguf_builder_bool(b, "flag", false);
    gguf_builder_strings(b, "words", words, 8);
    gguf_builder_array(b, "three", GGUF_INT8, "\1\xff\3", 3, 1);
    gguf_builder_raw(b, "huge", GGUF_UINT64, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    gguf_builder_add_tensor(b, "matrix", QUANT_Q8_0, 2, (uint64_t[]){64, 3});
    gguf_builder_add_tensor(b, "norm", QUANT_F32, 1, (uint64_t[]){64});
}

static void test_text(void **state) {
    (void)state;
    gguf_builder b;
    build_small(&b);
    char *text = render(&b, (inspect_options){0});
    assert_has(text, "dir/model.gguf\n");
    assert_has(text, "GGUF version 3, Q4_K_M, ");
    assert_has(text, "8 keys, 2 tensors, 256 values");
    assert_has(text, "\"Small One\"");
    assert_has(text, " 1000000\n");
    assert_has(text, " 1e-05\n");
    assert_has(text, " false\n");
    assert_has(text, " 18446744073709551615\n");
    assert_has(text, "string[8]        [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", ...]");
    assert_has(text, "int8[3]          [1, -1, 3]");
    assert_has(text, "Q8_0            1              192              204    8.500");
    assert_has(text, "total           2              256              460   14.375");
    assert_null(strstr(text, "64 x 3"));
    free(text);
    build_small(&b);
    text = render(&b, (inspect_options){.tensors = true, .full = true});
    assert_has(text, "64 x 3");
    assert_has(text, "\"last\"]");
    free(text);
}

static void test_json(void **state) {
    (void)state;
    gguf_builder b;
    build_small(&b);
    char *text = render(&b, (inspect_options){.json = true, .tensors = true});
    json_error_t error;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) fail_msg("%s in %s", error.text, text);
    json_t *metadata = json_object_get(root, "metadata"), *words = json_object_get(metadata, "words");
    assert_string_equal(json_string_value(json_object_get(root, "file_type")), "Q4_K_M");
    assert_int_equal(json_integer_value(json_object_get(root, "n_values")), 256);
    assert_int_equal(json_integer_value(json_object_get(root, "tensor_bytes")), 460);
    assert_int_equal(json_object_size(metadata), 8);
    assert_string_equal(json_string_value(json_object_get(json_object_get(metadata, "general.name"), "value")), "Small One");
    assert_string_equal(json_string_value(json_object_get(words, "item_type")), "string");
    assert_int_equal(json_integer_value(json_object_get(words, "n_items")), 8);
    assert_int_equal(json_array_size(json_object_get(words, "value")), 6);
    assert_string_equal(json_string_value(json_object_get(json_object_get(metadata, "huge"), "value")), "18446744073709551615");
    const json_t *matrix = json_array_get(json_object_get(root, "tensors"), 0);
    assert_string_equal(json_string_value(json_object_get(matrix, "name")), "matrix");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(matrix, "shape"), 0)), 64);
    assert_int_equal(json_integer_value(json_object_get(matrix, "n_bytes")), 204);
    assert_int_equal(json_array_size(json_object_get(root, "types")), 2);
    json_decref(root);
    free(text);
    build_small(&b);
    text = render(&b, (inspect_options){.json = true});
    root = json_loads(text, 0, &error);
    assert_non_null(root);
    assert_null(json_object_get(root, "tensors"));
    json_decref(root);
    free(text);
}

/* Keys, names and values that try to drive the terminal or to break out of JSON. */
static void build_hostile(gguf_builder *b) {
    gguf_builder_init(b);
    gguf_builder_string(b, "\033]0;title\007\"},{", "\033[2J\n\"quoted\" \\ \xff\xe2\x80\xae end");
    gguf_builder_string(b, "\xff", "one key");
    gguf_builder_string(b, "\xfe", "another key");
    gguf_builder_raw(b, "nan", GGUF_FLOAT32, "\0\0\xc0\x7f", 4);
    gguf_builder_raw(b, "inf", GGUF_FLOAT64, "\0\0\0\0\0\0\xf0\xff", 8);
    gguf_builder_add_tensor(b, "\033[31m\"name\"\n", QUANT_F32, 0, NULL);
}

static void test_unknown_type(void **state) {
    (void)state;
    gguf_builder b;
    for (int json = 0; json < 2; json++) {
        build_small(&b);
        gguf_builder_find_tensor(&b, "matrix")->type = (quant_type)5;
        gguf_builder_find_tensor(&b, "norm")->type = (quant_type)77;
        char *text = render(&b, (inspect_options){.tensors = true, .json = json});
        assert_has(text, "tensor type 5 is Q4_3, which ggml gave up before GGUF; it is not supported, the nearest supported type is Q4_1");
        assert_has(text, "tensor type 77 is not known; supported are F32 F16");
        assert_has(text, json ? "\"type\": \"type 77\", \"n_tensors\": 1, \"n_values\": 64, \"n_bytes\": null, \"room_bytes\": 256"
                              : "type 77         1               64                ?        ?");
        if (!json) assert_has(text, "first in matrix; the file has room for 9.333 bits a value, padding included");
        free(text);
    }
}

static void test_hostile(void **state) {
    (void)state;
    for (int flags = 0; flags < 8; flags++) {
        gguf_builder b;
        build_hostile(&b);
        inspect_options options = {.json = flags & 1, .tensors = flags & 2, .full = flags & 4};
        char *text = render(&b, options);
        for (const char *c = text; *c; c++) assert_true(((unsigned char)*c >= 0x20 && *c != 0x7f) || *c == '\n');
        if (options.json) {
            json_error_t error;
            json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
            if (root == NULL) fail_msg("%s in %s", error.text, text);
            json_t *metadata = json_object_get(root, "metadata");
            assert_int_equal(json_object_size(metadata), 5);
            assert_string_equal(json_string_value(json_object_get(json_object_get(metadata, "nan"), "value")), "nan");
            assert_string_equal(json_string_value(json_object_get(json_object_get(metadata, "inf"), "value")), "-inf");
            const char *value =
                json_string_value(json_object_get(json_object_get(metadata, "\\x1b]0;title\\x07\"},{"), "value"));
            assert_string_equal(value, "\033[2J\n\"quoted\" \\ \xef\xbf\xbd\xe2\x80\xae end");
            json_decref(root);
        } else {
            assert_has(text, "\\x1b[2J\\n\"quoted\" \\\\ \\xff\\u{202e} end");
        }
        free(text);
    }
}

static void test_long_string(void **state) {
    (void)state;
    char prose[2001];
    for (int full = 0; full < 2; full++) {
        gguf_builder b;
        memset(prose, 'p', 2000);
        prose[2000] = '\0';
        gguf_builder_init(&b);
        gguf_builder_string(&b, "tokenizer.chat_template", prose);
        char *text = render(&b, (inspect_options){.full = full});
        if (full) {
            assert_has(text, prose);
        } else {
            assert_has(text, "ppp...\" (2000 bytes)");
            assert_true(strlen(text) < 1000);
        }
        free(text);
    }
}

static void test_no_memory(void **state) {
    (void)state;
    gguf_builder b;
    buf file = BUF_INIT;
    build_small(&b);
    assert_true(gguf_builder_finish(&b, &file));
    gguf *g = NULL;
    assert_int_equal(gguf_parse(&g, file.data, file.n_bytes, "m.gguf", NULL), 0);
    for (size_t limit = 1; limit < 2000; limit += 37) {
        for (int flags = 0; flags < 4; flags++) {
            buf out = {.limit = limit};
            weir_error err = {0};
            inspect_options options = {.json = flags & 1, .tensors = flags & 2};
            int rc = inspect_render(g, &options, &out, &err);
            assert_true(rc == 0 || (rc == WEIR_E_NOMEM && err.code == WEIR_E_NOMEM));
            if (limit < 300) assert_int_equal(rc, WEIR_E_NOMEM);
            buf_free(&out);
        }
    }
    gguf_close(&g);
    buf_free(&file);
    gguf_builder_free(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),        cmocka_unit_test(test_json),      cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_long_string), cmocka_unit_test(test_no_memory), cmocka_unit_test(test_unknown_type),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
