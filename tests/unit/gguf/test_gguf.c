/* Reading sound GGUF files: values of every type, look-ups, tensors, split models, and text made printable. Refusals of bad
 * files are in tests/fault/test_bad_gguf.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/utf8.h"
#include "fault/gguf_builder.h"

typedef struct fixture {
    gguf_builder b;
    buf file;
    gguf *g;
} fixture;

static void start(fixture *f) {
    f->file = BUF_INIT;
    f->g = NULL;
    gguf_builder_init(&f->b);
}

static const gguf *parse(fixture *f) {
    assert_true(gguf_builder_finish(&f->b, &f->file));
    weir_error err = {0};
    if (gguf_parse(&f->g, f->file.data, f->file.n_bytes, "test.gguf", &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return f->g;
}

static void end(fixture *f) {
    gguf_close(&f->g);
    assert_null(f->g);
    gguf_close(&f->g); /* twice is allowed */
    gguf_builder_free(&f->b);
    buf_free(&f->file);
}

static void test_empty_file_of_version_2(void **state) {
    (void)state;
    fixture f;
    start(&f);
    f.b.version = 2;
    const gguf *g = parse(&f);
    assert_int_equal(gguf_version(g), 2);
    assert_int_equal(gguf_n_parts(g), 1);
    assert_int_equal(gguf_n_key_values(g), 0);
    assert_int_equal(gguf_n_tensors(g), 0);
    assert_int_equal(gguf_file_bytes(g), 24);
    assert_string_equal(gguf_path(g), "test.gguf");
    assert_null(gguf_find(g, "general.architecture"));
    assert_null(gguf_find_tensor(g, "output.weight"));
    assert_null(gguf_key_value_at(g, 0));
    assert_null(gguf_tensor_at(g, 0));
    assert_string_equal(gguf_file_type_name(g), "unknown");
    end(&f);
}

/* One key of each type of number, with the value -2 (or 254, for unsigned ones: all bits but the last). */
static void test_numbers(void **state) {
    (void)state;
    static const struct {
        const char *key;
        gguf_value_type type;
        const char *bytes;
        size_t n_bytes;
        int i64; /* the result of reading as an integer: 1 or an error */
        int64_t value;
        int u32;
        double number;
    } rows[] = {
        {"u8", GGUF_UINT8, "\xfe", 1, 1, 254, 1, 254},
        {"i8", GGUF_INT8, "\xfe", 1, 1, -2, WEIR_E_FORMAT, -2},
        {"u16", GGUF_UINT16, "\xfe\xff", 2, 1, 65534, 1, 65534},
        {"i16", GGUF_INT16, "\xfe\xff", 2, 1, -2, WEIR_E_FORMAT, -2},
        {"u32", GGUF_UINT32, "\xfe\xff\xff\xff", 4, 1, 4294967294, 1, 4294967294.0},
        {"i32", GGUF_INT32, "\xfe\xff\xff\xff", 4, 1, -2, WEIR_E_FORMAT, -2},
        {"u64", GGUF_UINT64, "\xff\0\0\0\1\0\0\0", 8, 1, 4294967551, WEIR_E_FORMAT, 4294967551.0},
        {"i64", GGUF_INT64, "\xfe\xff\xff\xff\xff\xff\xff\xff", 8, 1, -2, WEIR_E_FORMAT, -2},
        {"huge", GGUF_UINT64, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, WEIR_E_FORMAT, 0, WEIR_E_FORMAT, 18446744073709551615.0},
        {"f32", GGUF_FLOAT32, "\0\0\0\xc0", 4, WEIR_E_FORMAT, 0, WEIR_E_FORMAT, -2},
        {"f64", GGUF_FLOAT64, "\0\0\0\0\0\0\0\xc0", 8, WEIR_E_FORMAT, 0, WEIR_E_FORMAT, -2},
    };
    enum { N_ROWS = sizeof rows / sizeof rows[0] };
    fixture f;
    start(&f);
    for (size_t i = 0; i < N_ROWS; i++) gguf_builder_raw(&f.b, rows[i].key, rows[i].type, rows[i].bytes, rows[i].n_bytes);
    const gguf *g = parse(&f);
    for (size_t i = 0; i < N_ROWS; i++) {
        const gguf_key_value *kv = gguf_find(g, rows[i].key);
        assert_non_null(kv);
        assert_int_equal(kv->type, rows[i].type);
        assert_int_equal(kv->n_items, 1);
        assert_null(kv->strings);
        int64_t integer = 99;
        double number = 99;
        uint32_t small = 99;
        float single = 99;
        bool flag = true;
        gguf_string text = {0};
        assert_int_equal(gguf_item_i64(kv, 0, &integer), rows[i].i64);
        assert_true(integer == (rows[i].i64 == 1 ? rows[i].value : 99));
        assert_int_equal(gguf_item_f64(kv, 0, &number), 1);
        assert_true(number == rows[i].number);
        assert_int_equal(gguf_item_i64(kv, 1, &integer), 0);
        assert_int_equal(gguf_item_f64(kv, 1, &number), 0);
        weir_error err = {0};
        assert_int_equal(gguf_get_u32(g, rows[i].key, &small, &err), rows[i].u32);
        assert_true(small == (rows[i].u32 == 1 ? (uint32_t)rows[i].value : 99));
        assert_int_equal(err.code, rows[i].u32 == 1 ? 0 : WEIR_E_FORMAT);
        assert_int_equal(gguf_get_f32(g, rows[i].key, &single, NULL), 1);
        assert_true(single == (float)rows[i].number);
        assert_int_equal(gguf_get_bool(g, rows[i].key, &flag, NULL), WEIR_E_FORMAT);
        assert_int_equal(gguf_get_string(g, rows[i].key, &text, NULL), WEIR_E_FORMAT);
    }
    end(&f);
}

static void test_text_bools_and_arrays(void **state) {
    (void)state;
    static const char *const words[] = {"", "two", "three\n"};
    fixture f;
    start(&f);
    gguf_builder_bool(&f.b, "yes", true);
    gguf_builder_bool(&f.b, "no", false);
    gguf_builder_string(&f.b, "text", "naïve");
    gguf_builder_string(&f.b, "nothing", "");
    gguf_builder_strings(&f.b, "words", words, 3);
    gguf_builder_strings(&f.b, "no words", NULL, 0);
    gguf_builder_array(&f.b, "shorts", GGUF_INT16, (int16_t[]){1, -300, 7}, 3, 2);
    gguf_builder_array(&f.b, "flags", GGUF_BOOL, "\1\0", 2, 1);
    gguf_builder_raw(&f.b, "1e300", GGUF_FLOAT64, &(double){1e300}, 8);
    gguf_builder_array(&f.b, "one", GGUF_UINT32, (uint32_t[]){5}, 1, 4);
    const gguf *g = parse(&f);
    bool flag = false;
    gguf_string text;
    int64_t integer = 0;
    double number = 0;
    uint32_t small;
    weir_error err = {0};
    assert_int_equal(gguf_get_bool(g, "yes", &flag, NULL), 1);
    assert_true(flag);
    assert_int_equal(gguf_get_bool(g, "no", &flag, NULL), 1);
    assert_false(flag);
    assert_int_equal(gguf_get_bool(g, "absent", &flag, NULL), 0);
    assert_int_equal(gguf_get_string(g, "text", &text, NULL), 1);
    assert_int_equal(text.n_bytes, strlen("naïve"));
    assert_memory_equal(text.text, "naïve", text.n_bytes);
    assert_int_equal(gguf_get_string(g, "nothing", &text, NULL), 1);
    assert_int_equal(text.n_bytes, 0);
    assert_int_equal(gguf_get_u32(g, "yes", &small, NULL), WEIR_E_FORMAT);
    assert_int_equal(gguf_get_u32(g, "one", &small, &err), WEIR_E_FORMAT); /* an array of one is not a number */
    assert_non_null(strstr(err.place, "key 'one'"));
    assert_string_equal(err.message, "an array of uint32 where an integer is expected");
    assert_int_equal(gguf_get_f32(g, "1e300", &(float){0}, &err), WEIR_E_FORMAT);
    assert_string_equal(err.message, "1e+300 is beyond the range of a float32");
    assert_int_equal(gguf_get_f32(g, "text", &(float){0}, &err), WEIR_E_FORMAT);
    assert_string_equal(err.message, "a value of type string where a number is expected");
    const gguf_key_value *kv = gguf_find(g, "words");
    assert_int_equal(kv->type, GGUF_ARRAY);
    assert_int_equal(kv->item_type, GGUF_STRING);
    assert_int_equal(kv->n_items, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(kv->strings[i].n_bytes, strlen(words[i]));
        assert_memory_equal(kv->strings[i].text, words[i], strlen(words[i]));
    }
    assert_int_equal(gguf_item_i64(kv, 0, &integer), WEIR_E_FORMAT);
    assert_int_equal(gguf_item_f64(kv, 0, &number), WEIR_E_FORMAT);
    assert_int_equal(gguf_find(g, "no words")->n_items, 0);
    kv = gguf_find(g, "shorts");
    assert_int_equal(gguf_item_i64(kv, 1, &integer), 1);
    assert_int_equal(integer, -300);
    assert_int_equal(gguf_item_f64(kv, 2, &number), 1);
    assert_true(number == 7);
    assert_int_equal(gguf_item_i64(kv, 3, &integer), 0);
    assert_int_equal(gguf_item_i64(kv, UINT64_MAX, &integer), 0);
    kv = gguf_find(g, "flags");
    assert_int_equal(gguf_item_i64(kv, 0, &integer), 1);
    assert_int_equal(integer, 1);
    end(&f);
}

static void test_tensors(void **state) {
    (void)state;
    fixture f;
    start(&f);
    gguf_builder_add_tensor(&f.b, "scalar", QUANT_F32, 0, NULL);
    gguf_builder_fill(gguf_builder_add_tensor(&f.b, "matrix", QUANT_F32, 2, (uint64_t[]){3, 5}), 1, 0, 1);
    gguf_builder_add_tensor(&f.b, "blocks", QUANT_Q4_K, 3, (uint64_t[]){512, 2, 3});
    gguf_builder_add_tensor(&f.b, "size only", QUANT_I64, 4, (uint64_t[]){2, 2, 2, 2});
    const gguf *g = parse(&f);
    assert_int_equal(gguf_n_tensors(g), 4);
    const gguf_tensor *t = gguf_find_tensor(g, "scalar");
    assert_int_equal(t->n_values, 1);
    assert_int_equal(t->n_bytes, 4);
    t = gguf_find_tensor(g, "matrix");
    assert_ptr_equal(t, gguf_tensor_at(g, 1));
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 3);
    assert_int_equal(t->dims[1], 5);
    assert_int_equal(t->dims[2], 1);
    assert_int_equal(t->dims[3], 1);
    assert_int_equal(t->n_values, 15);
    assert_int_equal(t->n_bytes, 60);
    assert_int_equal(t->file_offset % 32, 0);
    assert_ptr_equal(t->data, (const unsigned char *)f.file.data + t->file_offset);
    assert_memory_equal(t->data, gguf_builder_find_tensor(&f.b, "matrix")->data, 60);
    t = gguf_find_tensor(g, "blocks");
    assert_string_equal(t->format->name, "Q4_K");
    assert_int_equal(t->n_bytes, 12 * 144);
    assert_string_equal(gguf_file_type_name(g), "Q4_K"); /* no general.file_type: the type of most bytes */
    t = gguf_find_tensor(g, "size only");
    assert_null(t->format->dequantise);
    assert_int_equal(t->n_bytes, 128);
    assert_null(gguf_find_tensor(g, "matri"));
    assert_null(gguf_find_tensor(g, "matrixx"));
    assert_null(gguf_find_tensor(g, ""));
    end(&f);
}

static void test_file_type(void **state) {
    (void)state;
    static const struct {
        uint32_t number;
        const char *name;
    } rows[] = {{0, "F32"}, {15, "Q4_K_M"}, {7, "Q8_0"}, {41, "Q2_0"}, {4, "F16"}, {1024, "F16"}, {UINT32_MAX, "F16"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        fixture f;
        start(&f);
        gguf_builder_u32(&f.b, "general.file_type", rows[i].number);
        gguf_builder_add_tensor(&f.b, "t", QUANT_F16, 1, (uint64_t[]){4});
        assert_string_equal(gguf_file_type_name(parse(&f)), rows[i].name);
        end(&f);
    }
}

static void test_alignment_and_gaps(void **state) {
    (void)state;
    fixture f;
    start(&f);
    f.b.alignment = 4096;
    gguf_builder_u32(&f.b, "general.alignment", 4096);
    gguf_builder_add_tensor(&f.b, "a", QUANT_F32, 1, (uint64_t[]){1});
    gguf_builder_add_tensor(&f.b, "b", QUANT_F32, 1, (uint64_t[]){1});
    const gguf *g = parse(&f);
    assert_int_equal(gguf_find_tensor(g, "a")->file_offset, 4096);
    assert_int_equal(gguf_find_tensor(g, "b")->file_offset, 8192);
    end(&f);
    /* Neither the order of the data nor gaps between it matter. */
    start(&f);
    gguf_builder_add_tensor(&f.b, "late", QUANT_F32, 1, (uint64_t[]){8});
    gguf_builder_add_tensor(&f.b, "early", QUANT_F32, 1, (uint64_t[]){8});
    gguf_builder_add_tensor(&f.b, "padding", QUANT_F32, 1, (uint64_t[]){100});
    gguf_builder_find_tensor(&f.b, "late")->offset_given = true;
    gguf_builder_find_tensor(&f.b, "late")->offset = 64;
    gguf_builder_find_tensor(&f.b, "early")->offset_given = true;
    gguf_builder_find_tensor(&f.b, "early")->offset = 0;
    gguf_builder_find_tensor(&f.b, "padding")->offset_given = true;
    gguf_builder_find_tensor(&f.b, "padding")->offset = 32;
    gguf_builder_reshape(&f.b, "padding", 1, (uint64_t[]){8});
    g = parse(&f);
    assert_true(gguf_find_tensor(g, "late")->file_offset == gguf_find_tensor(g, "early")->file_offset + 64);
    end(&f);
}

static void test_many_names(void **state) {
    (void)state;
    enum { N = 1000 };
    fixture f;
    char name[32];
    start(&f);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "blk.%d.weight", i * 7919 % N);
        gguf_builder_add_tensor(&f.b, name, QUANT_F32, 1, (uint64_t[]){(uint64_t)(i * 7919 % N) + 1});
        gguf_builder_u32(&f.b, name, (uint32_t)(i * 7919 % N));
    }
    const gguf *g = parse(&f);
    for (uint32_t i = 0; i < N; i++) {
        uint32_t value = UINT32_MAX;
        snprintf(name, sizeof name, "blk.%u.weight", i);
        assert_int_equal(gguf_find_tensor(g, name)->dims[0], i + 1);
        assert_int_equal(gguf_get_u32(g, name, &value, NULL), 1);
        assert_int_equal(value, i);
    }
    assert_null(gguf_find_tensor(g, "blk.1000.weight"));
    end(&f);
}

static void test_tiny_llama(void **state) {
    (void)state;
    fixture f;
    start(&f);
    gguf_builder_llama(&f.b, NULL);
    const gguf *g = parse(&f);
    assert_int_equal(gguf_find(g, "tokenizer.ggml.tokens")->n_items, GGUF_BUILDER_LLAMA_VOCAB);
    assert_int_equal(gguf_n_tensors(g), 3 + 2 * 9);
    assert_int_equal(gguf_find_tensor(g, "blk.1.ffn_down.weight")->dims[0], 128);
    end(&f);
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

typedef struct folder {
    char path[256], first[320], second[320], third[320];
} folder;

static int make_folder(void **state) {
    const char *base = getenv("TMPDIR");
    folder *d = calloc(1, sizeof *d);
    if (d == NULL) return -1;
    snprintf(d->path, sizeof d->path, "%s/weir-gguf-XXXXXX", base && base[0] ? base : P_tmpdir);
    *state = d;
    if (mkdtemp(d->path) == NULL) return -1;
    snprintf(d->first, sizeof d->first, "%s/model-00001-of-00003.gguf", d->path);
    snprintf(d->second, sizeof d->second, "%s/model-00002-of-00003.gguf", d->path);
    snprintf(d->third, sizeof d->third, "%s/model-00003-of-00003.gguf", d->path);
    return 0;
}

static int remove_folder(void **state) {
    folder *d = *state;
    unlink(d->first);
    unlink(d->second);
    unlink(d->third);
    int rc = rmdir(d->path);
    free(d);
    return rc;
}

static uint64_t write_part(const char *path, uint32_t number, const char *const *tensors, size_t n_tensors) {
    gguf_builder b;
    gguf_builder_init(&b);
    if (number == 0) gguf_builder_string(&b, "general.name", "split");
    gguf_builder_raw(&b, "split.no", GGUF_UINT16, (uint8_t[]){(uint8_t)number, 0}, 2);
    gguf_builder_raw(&b, "split.count", GGUF_UINT16, "\3\0", 2);
    gguf_builder_raw(&b, "split.tensors.count", GGUF_INT32, "\3\0\0\0", 4);
    for (size_t i = 0; i < n_tensors; i++) {
        gguf_builder_tensor *t = gguf_builder_add_tensor(&b, tensors[i], QUANT_F32, 1, (uint64_t[]){4});
        gguf_builder_fill(t, number, (float)number, 0);
    }
    buf file = BUF_INIT;
    assert_true(gguf_builder_finish(&b, &file));
    uint64_t n_bytes = file.n_bytes;
    buf_free(&file);
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
    return n_bytes;
}

/* The first part may hold metadata only, as tools write it. */
static void test_split(void **state) {
    folder *d = *state;
    uint64_t n_bytes = write_part(d->first, 0, NULL, 0);
    n_bytes += write_part(d->second, 1, (const char *const[]){"b", "a"}, 2);
    n_bytes += write_part(d->third, 2, (const char *const[]){"c"}, 1);
    gguf *g = NULL;
    weir_error err = {0};
    if (gguf_open(&g, d->first, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    assert_int_equal(gguf_n_parts(g), 3);
    assert_int_equal(gguf_file_bytes(g), n_bytes);
    assert_string_equal(gguf_path(g), d->first);
    assert_int_equal(gguf_n_tensors(g), 3);
    assert_non_null(gguf_find(g, "general.name"));
    static const struct {
        const char *name;
        uint16_t part;
    } rows[] = {{"a", 1}, {"b", 1}, {"c", 2}};
    gguf_will_need(g, NULL, 0);
    for (size_t i = 0; i < 3; i++) {
        const gguf_tensor *t = gguf_find_tensor(g, rows[i].name);
        assert_non_null(t);
        assert_int_equal(t->part, rows[i].part);
        float value;
        memcpy(&value, t->data, sizeof value);
        assert_true(value == (float)rows[i].part);
    }
    gguf_dont_need(g, NULL, 0);
    float again; /* what was given back is read from the file again */
    memcpy(&again, gguf_find_tensor(g, "c")->data, sizeof again);
    assert_true(again == 2);
    gguf_close(&g);
}

/* A file that says it is the only part needs no special name. */
static void test_single_part(void **state) {
    folder *d = *state;
    gguf_builder b;
    gguf_builder_init(&b);
    gguf_builder_u32(&b, "split.no", 0);
    gguf_builder_u32(&b, "split.count", 0);
    gguf_builder_add_tensor(&b, "t", QUANT_F32, 1, (uint64_t[]){4});
    assert_true(gguf_builder_write(&b, d->third));
    gguf_builder_free(&b);
    gguf *g = NULL;
    assert_int_equal(gguf_open(&g, d->third, NULL), 0);
    assert_int_equal(gguf_n_parts(g), 1);
    assert_int_equal(gguf_n_tensors(g), 1);
    gguf_close(&g);
}

/* ---- printable text --------------------------------------------------------------------------------------------------- */

static void test_printable(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n_bytes;
        const char *expected;
    } rows[] = {
        {"", 0, ""},
        {"blk.0.attn_q.weight", 19, "blk.0.attn_q.weight"},
        {"naïve 日本 🙂", 18, "naïve 日本 🙂"},
        {"a\nb\tc\rd\\e", 9, "a\\nb\\tc\\rd\\\\e"},
        {"\033[31mred\007\177", 10, "\\x1b[31mred\\x07\\x7f"},
        {"nul\0nul", 7, "nul\\x00nul"},
        {"\xff\xc3", 2, "\\xff\\xc3"},
        {"\xe2\x82z", 3, "\\xe2\\x82z"},
        {"\xed\xa0\x80", 3, "\\xed\\xa0\\x80"}, /* a surrogate */
        {"\xc2\x9b", 2, "\\u{9b}"},             /* CSI as one character */
        {"a\xe2\x80\xae"
         "b",
         5, "a\\u{202e}b"}, /* writes backwards from here on */
        {"\xef\xbb\xbfx", 4, "\\u{feff}x"},
        {"\xef\xbf\xbd", 3, "\xef\xbf\xbd"}, /* U+FFFD itself is sound */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char out[64];
        size_t n = gguf_printable((gguf_string){rows[i].bytes, rows[i].n_bytes}, out, sizeof out);
        assert_string_equal(out, rows[i].expected);
        assert_int_equal(n, strlen(rows[i].expected));
    }
}

/* At every capacity: ends in NUL, is well-formed, fits, and has "..." if and only if it was cut (and there is room). */
static void test_printable_cut(void **state) {
    (void)state;
    gguf_string s = {"日本\n🙂\xff"
                     "abc",
                     15};
    char whole[64], out[64];
    size_t n_whole = gguf_printable(s, whole, sizeof whole);
    assert_int_equal(gguf_printable(s, out, 0), 0);
    for (size_t capacity = 1; capacity <= sizeof out; capacity++) {
        memset(out, 'X', sizeof out);
        size_t n = gguf_printable(s, out, capacity);
        assert_true(n < capacity && out[n] == '\0' && strlen(out) == n);
        assert_true(utf8_valid(out, n));
        if (capacity < sizeof out) assert_true(out[capacity] == 'X');
        if (n_whole < capacity) {
            assert_string_equal(out, whole);
        } else if (capacity > 3) {
            assert_string_equal(out + n - 3, "...");
            assert_memory_equal(out, whole, n - 3);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_file_of_version_2),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_text_bools_and_arrays),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_file_type),
        cmocka_unit_test(test_alignment_and_gaps),
        cmocka_unit_test(test_many_names),
        cmocka_unit_test(test_tiny_llama),
        cmocka_unit_test_setup_teardown(test_split, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_single_part, make_folder, remove_folder),
        cmocka_unit_test(test_printable),
        cmocka_unit_test(test_printable_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
