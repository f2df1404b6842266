/* GGUF files with one fault each: the parser must name the code, the place and the reason, read nothing outside the bytes and
 * leave no object behind. The faults are fields of a sound file that are overwritten, or cuts; a few need a builder of their
 * own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "fault/gguf_builder.h"

/* A small sound file with one key of every shape and tensors of three types. */
static void build_sound(gguf_builder *b) {
    static const char *const words[3] = {"one", "two", "three"};
    gguf_builder_init(b);
    gguf_builder_string(b, "general.architecture", "test");
    gguf_builder_u32(b, "general.alignment", 32);
    gguf_builder_u32(b, "number", 7);
    gguf_builder_bool(b, "flag", true);
    gguf_builder_string(b, "text", "some text");
    gguf_builder_strings(b, "words", words, 3);
    gguf_builder_array(b, "flags", GGUF_BOOL, "\0\1\1\0", 4, 1);
    gguf_builder_array(b, "floats", GGUF_FLOAT32, (float[]){0.5f, -1.0f}, 2, sizeof(float));
    gguf_builder_raw(b, "wide", GGUF_UINT64, "\1\2\3\4\5\6\7\010", 8);
    gguf_builder_add_tensor(b, "first", QUANT_F32, 2, (uint64_t[]){8, 4});
    gguf_builder_add_tensor(b, "second", QUANT_Q4_0, 2, (uint64_t[]){64, 2});
    gguf_builder_add_tensor(b, "third", QUANT_Q6_K, 3, (uint64_t[]){256, 1, 2});
}

typedef enum field {
    AT_FILE, /* from the start of the file; the subject is not used */
    AT_KEY,  /* the length of the key `subject` */
    AT_KEY_TYPE,
    AT_VALUE,
    AT_TENSOR, /* the length of the name of the tensor `subject` */
    AT_N_DIMS,
    AT_DIMS,
    AT_TENSOR_TYPE,
    AT_OFFSET,
    AT_DATA,
} field;

static size_t field_at(gguf_builder *b, field where, const char *subject) {
    const gguf_builder_key *k = where >= AT_KEY && where <= AT_VALUE ? gguf_builder_find_key(b, subject) : NULL;
    const gguf_builder_tensor *t = where >= AT_TENSOR ? gguf_builder_find_tensor(b, subject) : NULL;
    assert_true(where == AT_FILE || k || t);
    switch (where) {
    case AT_FILE:
        return 0;
    case AT_KEY:
        return k->key_at;
    case AT_KEY_TYPE:
        return k->type_at;
    case AT_VALUE:
        return k->value_at;
    case AT_TENSOR:
        return t->name_at;
    case AT_N_DIMS:
        return t->n_dims_at;
    case AT_DIMS:
        return t->dims_at;
    case AT_TENSOR_TYPE:
        return t->type_at;
    case AT_OFFSET:
        return t->offset_at;
    case AT_DATA:
        return t->data_at;
    }
    return 0;
}

/* Parses a copy of exactly these bytes (so that a sanitizer sees any read beyond them) and checks the refusal. */
static void expect_refusal(const char *what, const void *bytes, size_t n_bytes, int code, const char *place,
                           const char *message) {
    unsigned char *exact = malloc(n_bytes ? n_bytes : 1);
    assert_non_null(exact);
    if (n_bytes) memcpy(exact, bytes, n_bytes);
    gguf *g = (gguf *)exact; /* anything but NULL: a refusal must reset it */
    weir_error err = {0};
    int rc = gguf_parse(&g, n_bytes ? exact : NULL, n_bytes, "bad.gguf", &err);
    if (rc != code || err.code != code || g != NULL || !strstr(err.place, place) || !strstr(err.message, message)) {
        fail_msg("%s: got %d at \"%s\": \"%s\"; expected %d at \"%s\": \"%s\"", what, rc, err.place, err.message, code, place,
                 message);
    }
    assert_non_null(strstr(err.place, "bad.gguf"));
    free(exact);
}

#define HUGE 0xffffffffffffffffu

typedef struct overwrite_case {
    const char *what;
    field where;
    const char *subject;
    size_t delta, width;
    uint64_t value;
    int code;
    const char *place, *message;
} overwrite_case;

static const overwrite_case overwrites[] = {
    {"magic", AT_FILE, 0, 0, 4, 0x12345678, WEIR_E_FORMAT, "byte 0", "instead of \"GGUF\""},
    {"byte-swapped magic", AT_FILE, 0, 0, 4, 0x47475546, WEIR_E_FORMAT, "byte 0", "byte-swapped"},
    {"GGJT magic", AT_FILE, 0, 0, 4, 0x67676a74, WEIR_E_FORMAT, "byte 0", "before GGUF"},
    {"GGML magic", AT_FILE, 0, 0, 4, 0x67676d6c, WEIR_E_FORMAT, "byte 0", "before GGUF"},
    {"ZIP magic", AT_FILE, 0, 0, 4, 0x04034b50, WEIR_E_FORMAT, "byte 0", "ZIP archive"},
    {"gzip magic", AT_FILE, 0, 0, 2, 0x8b1f, WEIR_E_FORMAT, "byte 0", "gzip"},
    {"version 0", AT_FILE, 0, 4, 4, 0, WEIR_E_UNSUPPORTED, "byte 4", "version 0"},
    {"version 1", AT_FILE, 0, 4, 4, 1, WEIR_E_UNSUPPORTED, "byte 4", "version 1"},
    {"version 4", AT_FILE, 0, 4, 4, 4, WEIR_E_UNSUPPORTED, "byte 4", "versions 2 and 3 are read"},
    {"big endian", AT_FILE, 0, 4, 4, 0x03000000, WEIR_E_UNSUPPORTED, "byte 4", "big-endian"},
    {"tensor count, all ones", AT_FILE, 0, 8, 8, HUGE, WEIR_E_FORMAT, "byte 8", "18446744073709551615 tensors do not fit"},
    {"tensor count, 2^32", AT_FILE, 0, 8, 8, 1ull << 32, WEIR_E_FORMAT, "byte 8", "4294967296 tensors do not fit"},
    {"one tensor too many", AT_FILE, 0, 8, 8, 4, WEIR_E_FORMAT, "byte", "a tensor's name is empty"},
    {"key count, all ones", AT_FILE, 0, 16, 8, HUGE, WEIR_E_FORMAT, "byte 16",
     "18446744073709551615 key-value pairs do not fit"},
    {"key count, 2^63", AT_FILE, 0, 16, 8, 1ull << 63, WEIR_E_FORMAT, "byte 16", "key-value pairs do not fit"},
    {"one key too many", AT_FILE, 0, 16, 8, 10, WEIR_E_FORMAT, "byte", "ends inside a tensor's name"},
    {"empty key", AT_KEY, "number", 0, 8, 0, WEIR_E_FORMAT, "byte", "a key is empty"},
    {"key length, all ones", AT_KEY, "number", 0, 8, HUGE, WEIR_E_FORMAT, "byte", "ends inside a key"},
    {"key length beyond the file", AT_KEY, "number", 0, 8, 100000, WEIR_E_FORMAT, "byte", "100000 bytes needed"},
    {"value type 13", AT_KEY_TYPE, "number", 0, 4, 13, WEIR_E_FORMAT, "key 'number'", "value type 13 does not exist"},
    {"value type, all ones", AT_KEY_TYPE, "number", 0, 4, 0xffffffff, WEIR_E_FORMAT, "key 'number'", "value type 4294967295"},
    {"bool 2", AT_VALUE, "flag", 0, 1, 2, WEIR_E_FORMAT, "key 'flag'", "a bool is 2"},
    {"bool 255 in an array", AT_VALUE, "flags", 14, 1, 255, WEIR_E_FORMAT, "key 'flags'", "a bool is 255"},
    {"string length, all ones", AT_VALUE, "text", 0, 8, HUGE, WEIR_E_FORMAT, "key 'text'", "ends inside string 0 of 1"},
    {"string length beyond the file", AT_VALUE, "text", 0, 8, 1 << 20, WEIR_E_FORMAT, "key 'text'", "1048576 bytes needed"},
    {"array of arrays", AT_VALUE, "floats", 0, 4, 9, WEIR_E_UNSUPPORTED, "key 'floats'", "array of arrays"},
    {"array of type 77", AT_VALUE, "floats", 0, 4, 77, WEIR_E_FORMAT, "key 'floats'", "value type 77 does not exist"},
    {"array count, all ones", AT_VALUE, "floats", 4, 8, HUGE, WEIR_E_FORMAT, "key 'floats'", "values do not fit"},
    {"array count that wraps to 8 bytes", AT_VALUE, "floats", 4, 8, 0x4000000000000002u, WEIR_E_FORMAT, "key 'floats'",
     "do not fit"},
    {"array of strings, all ones", AT_VALUE, "words", 4, 8, HUGE, WEIR_E_FORMAT, "key 'words'", "strings do not fit"},
    {"array of strings that wraps", AT_VALUE, "words", 4, 8, 0x1000000000000001u, WEIR_E_FORMAT, "key 'words'",
     "strings do not fit"},
    {"second string of an array", AT_VALUE, "words", 23, 8, HUGE, WEIR_E_FORMAT, "key 'words'", "ends inside string 1 of 3"},
    {"alignment 0", AT_VALUE, "general.alignment", 0, 4, 0, WEIR_E_FORMAT, "general.alignment", "alignment 0"},
    {"alignment 4", AT_VALUE, "general.alignment", 0, 4, 4, WEIR_E_FORMAT, "general.alignment", "power of two"},
    {"alignment 48", AT_VALUE, "general.alignment", 0, 4, 48, WEIR_E_FORMAT, "general.alignment", "power of two"},
    {"alignment 2^31", AT_VALUE, "general.alignment", 0, 4, 1u << 31, WEIR_E_FORMAT, "general.alignment", "2147483648"},
    {"alignment as a float", AT_KEY_TYPE, "general.alignment", 0, 4, GGUF_FLOAT32, WEIR_E_FORMAT, "general.alignment",
     "float32"},
    {"alignment larger than that of the data", AT_VALUE, "general.alignment", 0, 4, 64, WEIR_E_FORMAT, "tensor 'third'",
     "multiple of the alignment 64"},
    {"empty tensor name", AT_TENSOR, "first", 0, 8, 0, WEIR_E_FORMAT, "byte", "name is empty"},
    {"tensor name of 128 bytes", AT_TENSOR, "first", 0, 8, 128, WEIR_E_FORMAT, "byte", "128 bytes; the limit is 127"},
    {"tensor name, all ones", AT_TENSOR, "second", 0, 8, HUGE, WEIR_E_FORMAT, "byte", "ends inside a tensor's name"},
    {"5 dimensions", AT_N_DIMS, "first", 0, 4, 5, WEIR_E_FORMAT, "tensor 'first'", "5 dimensions; the limit is 4"},
    {"dimensions, all ones", AT_N_DIMS, "first", 0, 4, 0xffffffff, WEIR_E_FORMAT, "tensor 'first'", "4294967295 dimensions"},
    {"dimension 0", AT_DIMS, "first", 8, 8, 0, WEIR_E_FORMAT, "tensor 'first'", "dimension 1 is 0"},
    {"dimension, all ones", AT_DIMS, "first", 0, 8, HUGE, WEIR_E_FORMAT, "tensor 'first'", "too many values"},
    {"dimensions whose product wraps", AT_DIMS, "third", 8, 8, 1ull << 56, WEIR_E_FORMAT, "tensor 'third'", "too many values"},
    {"2^62 values of 4 bytes", AT_DIMS, "first", 8, 8, 1ull << 59, WEIR_E_FORMAT, "tensor 'first'", "does not fit in 64 bits"},
    {"rows of 63 values in blocks of 32", AT_DIMS, "second", 0, 8, 63, WEIR_E_FORMAT, "tensor 'second'", "blocks of 32"},
    {"rows of 32 values in blocks of 256", AT_DIMS, "third", 0, 8, 32, WEIR_E_FORMAT, "tensor 'third'", "Q6_K"},
    {"more rows than data", AT_DIMS, "third", 8, 8, 1000, WEIR_E_FORMAT, "tensor 'third'", "beyond the end"},
    {"offset 1", AT_OFFSET, "second", 0, 8, 1, WEIR_E_FORMAT, "tensor 'second'", "not a multiple of the alignment"},
    {"offset beyond the file", AT_OFFSET, "second", 0, 8, 1 << 20, WEIR_E_FORMAT, "tensor 'second'",
     "beyond the end of the file"},
    {"offset that wraps", AT_OFFSET, "second", 0, 8, HUGE - 31, WEIR_E_FORMAT, "tensor 'second'", "beyond the end of the file"},
    {"offset at the end", AT_OFFSET, "first", 0, 8, 640, WEIR_E_FORMAT, "tensor 'first'", "beyond the end of the file"},
    {"same data twice", AT_OFFSET, "second", 0, 8, 0, WEIR_E_FORMAT, "tensor 'second'", "overlaps that of tensor 'first'"},
    {"data that begins inside another", AT_OFFSET, "third", 0, 8, 160, WEIR_E_FORMAT, "tensor 'third'",
     "overlaps that of tensor 'second'"},
    {"data that ends inside another", AT_DIMS, "first", 8, 8, 5, WEIR_E_FORMAT, "tensor 'second'",
     "overlaps that of tensor 'first'"},
};

/* A tensor of a type that does not exist is in the directory, without a size; its place is checked all the same. */
static void test_unknown_types(void **state) {
    static const struct {
        const char *tensor, *name;
        uint32_t type;
    } cases[] = {{"first", "Q4_2", 4}, {"second", "Q4_0_4_4", 31}, {"third", "type 99", 99}, {"third", "type 4294967295", 0xffffffff}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_builder b;
        buf file = BUF_INIT;
        gguf *g = NULL;
        weir_error err = {0};
        build_sound(&b);
        assert_true(gguf_builder_finish(&b, &file));
        assert_true(gguf_builder_patch(&file, field_at(&b, AT_TENSOR_TYPE, cases[i].tensor), 4, cases[i].type));
        if (gguf_parse(&g, file.data, file.n_bytes, "odd.gguf", &err) != 0) fail_msg("%s: %s", err.place, err.message);
        const gguf_tensor *t = gguf_find_tensor(g, cases[i].tensor);
        assert_non_null(t);
        assert_string_equal(t->format->name, cases[i].name);
        assert_int_equal((uint32_t)t->format->type, cases[i].type);
        assert_true(t->format->dequantise == NULL && t->format->quantise == NULL && t->format->block_bytes == 0);
        assert_int_equal(t->n_bytes, 0);
        const uint64_t rooms[] = {128, 96, 420}; /* up to the alignment of the next one, or the end */
        assert_int_equal(t->room_bytes, rooms[strcmp(cases[i].tensor, "first") == 0 ? 0 : strcmp(cases[i].tensor, "second") == 0 ? 1 : 2]);
        gguf_close(&g);
        const size_t offset_at = field_at(&b, AT_OFFSET, cases[i].tensor);
        const bool is_first = strcmp(cases[i].tensor, "first") == 0;
        assert_true(gguf_builder_patch(&file, offset_at, 8, 640 + 4096));
        expect_refusal("beyond the end", file.data, file.n_bytes, WEIR_E_FORMAT, cases[i].tensor, "beyond the end of the file");
        assert_true(gguf_builder_patch(&file, offset_at, 8, is_first ? 256 : 32));
        expect_refusal("inside another", file.data, file.n_bytes, WEIR_E_FORMAT, cases[i].tensor, "overlaps");
        assert_true(gguf_builder_patch(&file, offset_at, 8, is_first ? 128 : 0));
        expect_refusal("where another begins", file.data, file.n_bytes, WEIR_E_FORMAT, "tensor", "overlaps");
        buf_free(&file);
        gguf_builder_free(&b);
    }
}

static void test_overwritten(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof overwrites / sizeof overwrites[0]; i++) {
        const overwrite_case *c = &overwrites[i];
        gguf_builder b;
        buf file = BUF_INIT;
        build_sound(&b);
        assert_true(gguf_builder_finish(&b, &file));
        assert_true(gguf_builder_patch(&file, field_at(&b, c->where, c->subject) + c->delta, c->width, c->value));
        expect_refusal(c->what, file.data, file.n_bytes, c->code, c->place, c->message);
        buf_free(&file);
        gguf_builder_free(&b);
    }
}

typedef struct cut_case {
    const char *what;
    field where;
    const char *subject;
    size_t delta;
    const char *place, *message;
} cut_case;

static const cut_case cuts[] = {
    {"nothing", AT_FILE, 0, 0, "byte 0", "the file is empty"},
    {"one byte", AT_FILE, 0, 1, "byte 0", "not a GGUF file"},
    {"magic only", AT_FILE, 0, 4, "byte 4", "ends inside the version"},
    {"half a version", AT_FILE, 0, 6, "byte 4", "ends inside the version"},
    {"no counts", AT_FILE, 0, 8, "byte 8", "ends inside the header"},
    {"one count", AT_FILE, 0, 16, "byte 16", "ends inside the header"},
    {"header only", AT_FILE, 0, 24, "byte 16", "9 key-value pairs do not fit in the 0 bytes left"},
    {"in the length of the last key", AT_KEY, "wide", 3, "byte", "ends inside a key"},
    {"in the text of the last key", AT_KEY, "wide", 10, "byte", "4 bytes needed, 2 left"},
    {"before a type", AT_KEY_TYPE, "wide", 0, "key 'wide'", "ends inside the type"},
    {"in a number", AT_VALUE, "wide", 5, "key 'wide'", "1 values do not fit in the 5 bytes left"},
    {"in the head of an array", AT_VALUE, "floats", 7, "key 'floats'", "ends inside the head of an array"},
    {"in the name of a tensor", AT_TENSOR, "third", 9, "byte", "ends inside a tensor's name"},
    {"before the dimensions", AT_DIMS, "third", 0, "tensor 'third'", "ends inside the dimensions"},
    {"in the type of a tensor", AT_TENSOR_TYPE, "third", 2, "tensor 'third'", "ends inside the tensor type"},
    {"in the offset of a tensor", AT_OFFSET, "third", 7, "tensor 'third'", "ends inside the offset of a tensor"},
    {"before the padding", AT_OFFSET, "third", 8, "byte", "ends before the data of its 3 tensors"},
    {"before the data", AT_DATA, "first", 0, "tensor 'first'", "beyond the end of the file"},
    {"in the last tensor", AT_DATA, "third", 419, "tensor 'third'", "beyond the end of the file"},
};

static void test_cut(void **state) {
    (void)state;
    gguf_builder b;
    buf file = BUF_INIT;
    build_sound(&b);
    assert_true(gguf_builder_finish(&b, &file));
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        size_t n_bytes = field_at(&b, cuts[i].where, cuts[i].subject) + cuts[i].delta;
        assert_true(n_bytes < file.n_bytes);
        expect_refusal(cuts[i].what, file.data, n_bytes, WEIR_E_FORMAT, cuts[i].place, cuts[i].message);
    }
    buf_free(&file);
    gguf_builder_free(&b);
}

/* Faults that change the layout of the file. */
static void same_key_twice(gguf_builder *b) {
    gguf_builder_repeat_key(b, "number");
}
static void same_tensor_twice(gguf_builder *b) {
    gguf_builder_add_tensor(b, "first", QUANT_F16, 1, (uint64_t[]){16});
}
static void long_key(gguf_builder *b) {
    char *key = malloc(65537);
    assert_non_null(key);
    memset(key, 'k', 65536);
    key[65536] = '\0';
    gguf_builder_u32(b, key, 1);
    free(key);
}
static void long_tensor_name(gguf_builder *b) {
    char name[129];
    memset(name, 't', 128);
    name[128] = '\0';
    gguf_builder_add_tensor(b, name, QUANT_F32, 1, (uint64_t[]){4});
}
static void alignment_as_text(gguf_builder *b) {
    gguf_builder_string(b, "general.alignment", "32");
}
static void alignment_as_bool(gguf_builder *b) {
    gguf_builder_bool(b, "general.alignment", true);
}
static void alignment_as_array(gguf_builder *b) {
    gguf_builder_array(b, "general.alignment", GGUF_UINT32, (uint32_t[]){32}, 1, 4);
}
static void alignment_too_wide(gguf_builder *b) {
    gguf_builder_raw(b, "general.alignment", GGUF_UINT64, "\0\0\0\0\1\0\0\0", 8);
}
static void key_with_escape_codes(gguf_builder *b) {
    gguf_builder_raw(b, "\033[2Jevil\n", 99, "", 0);
}
static void last_row_of_many_keys(gguf_builder *b) {
    for (int i = 0; i < 2000; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        gguf_builder_u32(b, key, (uint32_t)i);
    }
    gguf_builder_repeat_key(b, "k1234");
}
static void tensors_out_of_order(gguf_builder *b) {
    gguf_builder_tensor *t = gguf_builder_find_tensor(b, "first");
    t->offset_given = true;
    t->offset = 448; /* inside "third", which comes after it in the file */
}
static void version_2_with_fault(gguf_builder *b) {
    b->version = 2;
    gguf_builder_repeat_key(b, "text");
}

static const struct {
    const char *what;
    void (*edit)(gguf_builder *b);
    int code;
    const char *place, *message;
} edits[] = {
    {"same key twice", same_key_twice, WEIR_E_FORMAT, "key 'number'", "more than once"},
    {"same tensor twice", same_tensor_twice, WEIR_E_FORMAT, "tensor 'first'", "more than once"},
    {"key of 65536 bytes", long_key, WEIR_E_FORMAT, "key 'kkkk", "65536 bytes; the limit is 65535"},
    {"tensor name of 128 bytes", long_tensor_name, WEIR_E_FORMAT, "tensor 'tttt", "limit is 127"},
    {"alignment as text", alignment_as_text, WEIR_E_FORMAT, "general.alignment", "its type is string"},
    {"alignment as bool", alignment_as_bool, WEIR_E_FORMAT, "general.alignment", "its type is bool"},
    {"alignment as array", alignment_as_array, WEIR_E_FORMAT, "general.alignment", "its type is array"},
    {"alignment of 2^32", alignment_too_wide, WEIR_E_FORMAT, "general.alignment", "alignment 4294967296"},
    {"terminal codes in a key", key_with_escape_codes, WEIR_E_FORMAT, "key '\\x1b[2Jevil\\n'", "value type 99"},
    {"one repetition among 2000 keys", last_row_of_many_keys, WEIR_E_FORMAT, "key 'k1234'", "more than once"},
    {"overlap out of order", tensors_out_of_order, WEIR_E_FORMAT, "tensor 'first'", "overlaps that of tensor 'third'"},
    {"version 2 is checked alike", version_2_with_fault, WEIR_E_FORMAT, "key 'text'", "more than once"},
};

static void test_edited(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        gguf_builder b;
        buf file = BUF_INIT;
        build_sound(&b);
        edits[i].edit(&b);
        assert_true(gguf_builder_finish(&b, &file));
        expect_refusal(edits[i].what, file.data, file.n_bytes, edits[i].code, edits[i].place, edits[i].message);
        buf_free(&file);
        gguf_builder_free(&b);
    }
}

static void test_not_gguf(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n_bytes;
        const char *message;
    } files[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", 56, "Git LFS pointer"},
        {"<!DOCTYPE html><html><body>404</body></html>", 44, "web page"},
        {"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}", 27, "safetensors"},
        {"\x28\xb5\x2f\xfd\0\0\0\0", 8, "Zstandard"},
        {"\033[31mred", 8, "starts with \"\\x1b[31\""},
        {"hello", 5, "starts with \"hell\""},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        expect_refusal(files[i].message, files[i].bytes, files[i].n_bytes, WEIR_E_FORMAT, "byte 0", files[i].message);
    }
}

/* Counts that the bytes left would allow, but no model has. */
static void test_entry_limits(void **state) {
    (void)state;
    enum { N_BYTES = 24 + 25 * ((1 << 20) + 1) };
    buf file = BUF_INIT;
    assert_true(buf_reserve(&file, N_BYTES));
    memset(file.data, 0, N_BYTES);
    file.n_bytes = N_BYTES;
    memcpy(file.data, "GGUF\3", 5);
    assert_true(gguf_builder_patch(&file, 8, 8, (1 << 20) + 1));
    expect_refusal("tensors", file.data, file.n_bytes, WEIR_E_FORMAT, "byte 8", "1048577 tensors; the limit is 1048576");
    assert_true(gguf_builder_patch(&file, 16, 8, (1 << 20) + 1));
    expect_refusal("keys", file.data, file.n_bytes, WEIR_E_FORMAT, "byte 16", "1048577 key-value pairs; the limit is");
    buf_free(&file);
}

/* The sound file itself is read, so that the refusals above mean something. */
static void test_sound(void **state) {
    (void)state;
    gguf_builder b;
    buf file = BUF_INIT;
    build_sound(&b);
    assert_true(gguf_builder_finish(&b, &file));
    weir_error err = {0};
    gguf *g = NULL;
    assert_int_equal(gguf_parse(&g, file.data, file.n_bytes, "sound.gguf", &err), 0);
    assert_int_equal(gguf_n_key_values(g), 9);
    assert_int_equal(gguf_n_tensors(g), 3);
    gguf_close(&g);
    buf_free(&file);
    gguf_builder_free(&b);
}

/* Whatever the length at which a file is cut, it is refused as malformed; at no length is anything read outside. */
static void test_every_length(void **state) {
    (void)state;
    gguf_builder b;
    buf file = BUF_INIT;
    build_sound(&b);
    assert_true(gguf_builder_finish(&b, &file));
    for (size_t n = 0; n < file.n_bytes; n++) expect_refusal("cut", file.data, n, WEIR_E_FORMAT, "bad.gguf", "");
    buf_free(&file);
    gguf_builder_free(&b);
}

/* Whatever single byte of the directory is changed, the file is either read or refused with a described error. */
static void test_every_byte(void **state) {
    (void)state;
    static const unsigned char flips[] = {0x01, 0x80, 0xff};
    gguf_builder b;
    buf file = BUF_INIT;
    build_sound(&b);
    assert_true(gguf_builder_finish(&b, &file));
    size_t directory_bytes = field_at(&b, AT_DATA, "first"), n_refused = 0;
    for (size_t at = 0; at < directory_bytes; at++) {
        for (size_t f = 0; f < sizeof flips; f++) {
            file.data[at] = (char)(file.data[at] ^ flips[f]);
            weir_error err = {0};
            gguf *g = NULL;
            int rc = gguf_parse(&g, file.data, file.n_bytes, "flipped.gguf", &err);
            if (rc == 0) {
                assert_non_null(g);
            } else {
                assert_true(rc == WEIR_E_FORMAT || rc == WEIR_E_UNSUPPORTED);
                assert_null(g);
                assert_int_equal(err.code, rc);
                assert_true(err.message[0] && strstr(err.place, "flipped.gguf"));
                n_refused++;
            }
            gguf_close(&g);
            file.data[at] = (char)(file.data[at] ^ flips[f]);
        }
    }
    assert_true(n_refused > directory_bytes);
    buf_free(&file);
    gguf_builder_free(&b);
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

static void expect_open_refusal(const char *path, int code, const char *place, const char *message) {
    gguf *g = NULL;
    weir_error err = {0};
    int rc = gguf_open(&g, path, &err);
    if (rc != code || err.code != code || g != NULL || !strstr(err.place, place) || !strstr(err.message, message)) {
        fail_msg("%s: got %d at \"%s\": \"%s\"; expected %d at \"%s\": \"%s\"", path, rc, err.place, err.message, code, place,
                 message);
    }
}

static const char *in_folder(const char *folder, const char *name) {
    static char ring[4][512];
    static unsigned next;
    char *path = ring[next++ % 4];
    snprintf(path, sizeof ring[0], "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *path, const char *bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, strlen(bytes), f), strlen(bytes));
    assert_int_equal(fclose(f), 0);
}

static void test_unreadable_files(void **state) {
    const char *folder = *state;
    expect_open_refusal(in_folder(folder, "missing.gguf"), WEIR_E_IO, "missing.gguf", "No such file");
    expect_open_refusal(folder, WEIR_E_IO, folder, "is a directory");
    expect_open_refusal("", WEIR_E_IO, "", "No such file");
    write_bytes(in_folder(folder, "empty.gguf"), "");
    expect_open_refusal(in_folder(folder, "empty.gguf"), WEIR_E_FORMAT, "empty.gguf", "the file is empty");
    write_bytes(in_folder(folder, "text.gguf"), "just text");
    expect_open_refusal(in_folder(folder, "text.gguf"), WEIR_E_FORMAT, "text.gguf", "not a GGUF file");
    assert_int_equal(mkfifo(in_folder(folder, "pipe.gguf"), 0600), 0);
    expect_open_refusal(in_folder(folder, "pipe.gguf"), WEIR_E_IO, "pipe.gguf", "not a regular file");
    expect_open_refusal("/dev/null", WEIR_E_IO, "/dev/null", "not a regular file");
    if (geteuid() == 0) {
        print_message("  skipped: a file without permission (root may read everything)\n");
    } else {
        write_bytes(in_folder(folder, "secret.gguf"), "GGUF");
        assert_int_equal(chmod(in_folder(folder, "secret.gguf"), 0), 0);
        expect_open_refusal(in_folder(folder, "secret.gguf"), WEIR_E_IO, "secret.gguf", "Permission denied");
    }
}

/* Writes one part of a split model, with one tensor. */
static void write_part(const char *path, uint32_t number, uint32_t count, uint32_t n_tensors, const char *tensor) {
    gguf_builder b;
    gguf_builder_init(&b);
    gguf_builder_u32(&b, "split.no", number);
    gguf_builder_u32(&b, "split.count", count);
    gguf_builder_u32(&b, "split.tensors.count", n_tensors);
    gguf_builder_add_tensor(&b, tensor, QUANT_F32, 1, (uint64_t[]){8});
    assert_true(gguf_builder_write(&b, path));
    gguf_builder_free(&b);
}

static void test_bad_parts(void **state) {
    const char *folder = *state;
    char first[512], second[512];
    snprintf(first, sizeof first, "%s/m-00001-of-00002.gguf", folder);
    snprintf(second, sizeof second, "%s/m-00002-of-00002.gguf", folder);
    write_part(first, 0, 2, 2, "a");
    expect_open_refusal(first, WEIR_E_IO, "m-00002-of-00002.gguf", "No such file");
    write_part(second, 1, 2, 2, "b");
    expect_open_refusal(second, WEIR_E_FORMAT, "m-00002-of-00002.gguf", "part 2 of a model in 2 parts; open the first");
    write_part(second, 1, 2, 2, "a");
    expect_open_refusal(first, WEIR_E_FORMAT, "tensor 'a'", "more than one part");
    write_part(second, 0, 2, 2, "b");
    expect_open_refusal(first, WEIR_E_FORMAT, "m-00002-of-00002.gguf", "says part 0 of 2");
    write_part(second, 1, 3, 2, "b");
    expect_open_refusal(first, WEIR_E_FORMAT, "m-00002-of-00002.gguf", "says part 1 of 3");
    write_bytes(second, "");
    expect_open_refusal(first, WEIR_E_FORMAT, "m-00002-of-00002.gguf", "the file is empty");
    write_part(second, 1, 2, 2, "b");
    write_part(first, 0, 2, 7, "a");
    expect_open_refusal(first, WEIR_E_FORMAT, "split.tensors.count", "says 7 tensors, but the 2 parts hold 2");
    write_part(first, 2, 2, 2, "a");
    expect_open_refusal(first, WEIR_E_FORMAT, "split.no", "part number 2");
    write_part(first, 0, 70000, 2, "a");
    expect_open_refusal(first, WEIR_E_FORMAT, "split.count", "70000 parts");
    write_part(in_folder(folder, "renamed.gguf"), 0, 2, 2, "a");
    expect_open_refusal(in_folder(folder, "renamed.gguf"), WEIR_E_FORMAT, "split.count", "-00001-of-00002.gguf");
    gguf_builder b;
    gguf_builder_init(&b);
    gguf_builder_string(&b, "split.count", "two");
    assert_true(gguf_builder_write(&b, first));
    gguf_builder_free(&b);
    expect_open_refusal(first, WEIR_E_FORMAT, "split.count", "an integer is expected");
}

static int make_folder(void **state) {
    const char *base = getenv("TMPDIR");
    char *folder = malloc(512);
    if (folder == NULL) return -1;
    snprintf(folder, 512, "%s/weir-bad-gguf-XXXXXX", base && base[0] ? base : P_tmpdir);
    *state = folder;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    static const char *const names[] = {
        "empty.gguf",  "text.gguf", "pipe.gguf", "secret.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf",
        "renamed.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unlink(in_folder(*state, names[i]));
    int rc = rmdir(*state);
    free(*state);
    return rc;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),
        cmocka_unit_test(test_overwritten),
        cmocka_unit_test(test_unknown_types),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_edited),
        cmocka_unit_test(test_not_gguf),
        cmocka_unit_test(test_entry_limits),
        cmocka_unit_test(test_every_length),
        cmocka_unit_test(test_every_byte),
        cmocka_unit_test_setup_teardown(test_unreadable_files, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_bad_parts, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
