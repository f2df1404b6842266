/* Writing GGUF files: what is written is read back; what cannot be written is refused and leaves nothing behind. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "fault/gguf_builder.h"
#include "gguf/gguf_write.h"

typedef struct fixture {
    char folder[64], path[96];
    gguf_writer *w;
    weir_error err;
} fixture;

static void start(fixture *f) {
    memset(f, 0, sizeof *f);
    strcpy(f->folder, "/tmp/weir-write-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->path, sizeof f->path, "%s/out.gguf", f->folder);
    if (gguf_writer_open(&f->w, f->path, &f->err) != 0) fail_msg("%s: %s", f->err.place, f->err.message);
}

static size_t files_in(const char *folder) {
    DIR *d = opendir(folder);
    assert_non_null(d);
    size_t n = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Closes the writer; nothing but the finished file, if there is one, may be left. */
static void end(fixture *f, bool finished) {
    gguf_writer_close(&f->w);
    assert_null(f->w);
    gguf_writer_close(&f->w);
    assert_int_equal(files_in(f->folder), finished);
    if (finished) assert_int_equal(unlink(f->path), 0);
    assert_int_equal(rmdir(f->folder), 0);
}

static void tensor(fixture *f, const char *name, quant_type type, uint32_t n_dims, const uint64_t *dims) {
    gguf_writer_tensor(f->w, name, strlen(name), n_dims, dims, quant_format_of(type));
}

#define SUCCEED(f, call)                                                                                                       \
    do {                                                                                                                       \
        if ((call) != 0) fail_msg("%s: %s", (f)->err.place, (f)->err.message);                                                 \
    } while (0)

static void assert_same_value(const gguf_key_value *a, const gguf_key_value *b) {
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->item_type, b->item_type);
    assert_int_equal(a->n_items, b->n_items);
    for (uint64_t i = 0; i < a->n_items; i++) {
        if (a->strings) {
            assert_int_equal(a->strings[i].n_bytes, b->strings[i].n_bytes);
            assert_memory_equal(a->strings[i].text, b->strings[i].text, a->strings[i].n_bytes);
            continue;
        }
        size_t width = gguf_value_type_bytes(a->item_type);
        assert_memory_equal(a->data + i * width, b->data + i * width, width);
    }
}

static void test_numbers_and_texts(void **state) {
    (void)state;
    fixture f;
    start(&f);
    gguf_writer_string(f.w, "general.architecture", "llama");
    gguf_writer_u32(f.w, "u32", 4000000000u);
    gguf_writer_u64(f.w, "u64", 1ull << 40);
    gguf_writer_i32(f.w, "i32", -7);
    gguf_writer_f32(f.w, "f32", 0.1f);
    gguf_writer_bool(f.w, "yes", true);
    gguf_writer_u32(f.w, "twice", 1);
    gguf_writer_strings(f.w, "words", (gguf_string[]){{"a", 1}, {"", 0}, {"\xff\0b", 3}}, 3);
    gguf_writer_strings(f.w, "no words", NULL, 0);
    gguf_writer_array(f.w, "shorts", GGUF_INT16, (int16_t[]){1, -2}, 2);
    gguf_writer_string(f.w, "twice", "the last");
    SUCCEED(&f, gguf_writer_begin(f.w, &f.err));
    SUCCEED(&f, gguf_writer_finish(f.w, &f.err));
    gguf *g;
    SUCCEED(&f, gguf_open(&g, f.path, &f.err));
    assert_int_equal(gguf_version(g), 3);
    assert_int_equal(gguf_n_key_values(g), 10);
    assert_int_equal(gguf_file_bytes(g), gguf_writer_file_bytes(f.w));
    uint32_t u32 = 0;
    float f32 = 0;
    bool yes = false;
    int64_t i64 = 0;
    gguf_string text;
    assert_int_equal(gguf_get_u32(g, "u32", &u32, NULL), 1);
    assert_true(u32 == 4000000000u);
    assert_int_equal(gguf_item_i64(gguf_find(g, "u64"), 0, &i64), 1);
    assert_true(i64 == 1ll << 40);
    assert_int_equal(gguf_item_i64(gguf_find(g, "i32"), 0, &i64), 1);
    assert_int_equal(i64, -7);
    assert_int_equal(gguf_get_f32(g, "f32", &f32, NULL), 1);
    assert_true(f32 == 0.1f);
    assert_int_equal(gguf_get_bool(g, "yes", &yes, NULL), 1);
    assert_true(yes);
    assert_int_equal(gguf_get_string(g, "twice", &text, NULL), 1);
    assert_memory_equal(text.text, "the last", 8);
    assert_memory_equal(gguf_key_value_at(g, 6)->key.text, "twice", 5); /* in the place of the first */
    const gguf_key_value *words = gguf_find(g, "words");
    assert_int_equal(words->n_items, 3);
    assert_memory_equal(words->strings[2].text, "\xff\0b", 3);
    assert_int_equal(gguf_find(g, "no words")->n_items, 0);
    assert_int_equal(gguf_item_i64(gguf_find(g, "shorts"), 1, &i64), 1);
    assert_int_equal(i64, -2);
    gguf_close(&g);
    end(&f, true);
}

/* A whole model, copied: every value and tensor is the same; data comes in pieces of odd sizes. */
static void copy_model(const gguf *g, fixture *f) {
    gguf_writer_copy_all(f->w, g);
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        gguf_writer_tensor(f->w, t->name.text, t->name.n_bytes, t->n_dims, t->dims, t->format);
    }
    SUCCEED(f, gguf_writer_begin(f->w, &f->err));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        for (size_t at = 0, n; at < t->n_bytes; at += n) {
            n = t->n_bytes - at < 1001 ? t->n_bytes - at : 1001;
            SUCCEED(f, gguf_writer_data(f->w, t->data + at, n, &f->err));
        }
    }
    assert_int_equal(access(f->path, F_OK), -1); /* no file before it is whole */
    SUCCEED(f, gguf_writer_finish(f->w, &f->err));
}

static void check_copy(uint32_t alignment) {
    fixture f;
    start(&f);
    gguf_builder b;
    buf file = BUF_INIT;
    gguf_builder_init(&b);
    gguf_builder_llama(&b, NULL);
    gguf_builder_u32(&b, "split.count", 1);
    gguf_builder_add_tensor(&b, "odd", QUANT_F32, 1, (uint64_t[]){3});
    gguf_builder_add_tensor(&b, "scalar", QUANT_F32, 0, NULL);
    if (alignment) {
        gguf_builder_u32(&b, "general.alignment", alignment);
        b.alignment = alignment;
    }
    assert_true(gguf_builder_finish(&b, &file));
    gguf *g, *copy;
    SUCCEED(&f, gguf_parse(&g, file.data, file.n_bytes, "model", &f.err));
    copy_model(g, &f);
    SUCCEED(&f, gguf_open(&copy, f.path, &f.err));
    assert_int_equal(gguf_n_key_values(copy), gguf_n_key_values(g) - 1);
    assert_null(gguf_find(copy, "split.count"));
    for (size_t i = 0, k = 0; i < gguf_n_key_values(g); i++) {
        const gguf_key_value *kv = gguf_key_value_at(g, i);
        if (kv->key.n_bytes == 11 && memcmp(kv->key.text, "split.count", 11) == 0) continue;
        const gguf_key_value *other = gguf_key_value_at(copy, k++);
        assert_int_equal(kv->key.n_bytes, other->key.n_bytes);
        assert_memory_equal(kv->key.text, other->key.text, kv->key.n_bytes);
        assert_same_value(kv, other);
    }
    assert_int_equal(gguf_n_tensors(copy), gguf_n_tensors(g));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i), *other = gguf_tensor_at(copy, i);
        assert_int_equal(t->name.n_bytes, other->name.n_bytes);
        assert_memory_equal(t->name.text, other->name.text, t->name.n_bytes);
        assert_int_equal(t->n_dims, other->n_dims);
        assert_memory_equal(t->dims, other->dims, sizeof t->dims);
        assert_ptr_equal(t->format, other->format);
        assert_memory_equal(t->data, other->data, t->n_bytes);
        assert_int_equal(other->file_offset % (alignment ? alignment : 32), 0);
    }
    assert_int_equal(gguf_file_bytes(copy), gguf_writer_file_bytes(f.w));
    assert_int_equal(gguf_file_bytes(copy) % (alignment ? alignment : 32), 0);
    gguf_close(&copy);
    gguf_close(&g);
    buf_free(&file);
    gguf_builder_free(&b);
    end(&f, true);
}

static void test_copies_a_model(void **state) {
    (void)state;
    check_copy(0);
    check_copy(8);
    check_copy(16384);
}

static void refuse(fixture *f, const char *place, const char *message) {
    assert_int_equal(gguf_writer_begin(f->w, &f->err), WEIR_E_INVALID);
    if (!strstr(f->err.place, place) || !strstr(f->err.message, message)) fail_msg("%s: %s", f->err.place, f->err.message);
    end(f, false);
}

static void test_refuses(void **state) {
    (void)state;
    fixture f;
    start(&f);
    gguf_writer_u32(f.w, "", 1);
    gguf_writer_u32(f.w, "fine", 1);
    refuse(&f, "key ''", "1 to 65535 bytes");
    start(&f);
    tensor(&f, "t", QUANT_Q8_0, 2, (uint64_t[]){33, 2});
    refuse(&f, "tensor 't'", "blocks");
    start(&f);
    tensor(&f, "t", QUANT_F32, 2, (uint64_t[]){4, 0});
    refuse(&f, "tensor 't'", "empty");
    start(&f);
    tensor(&f, "t", QUANT_F32, 4, (uint64_t[]){1u << 20, 1u << 20, 1u << 20, 16});
    refuse(&f, "tensor 't'", "too large");
    start(&f);
    for (int i = 0; i < 5; i++) tensor(&f, (char[]){'a', (char)i, 0}, QUANT_F32, 2, (uint64_t[]){1ull << 30, 1ull << 30});
    tensor(&f, "b", QUANT_F32, 2, (uint64_t[]){1ull << 31, 1ull << 30});
    refuse(&f, "out.gguf", "too large");
    start(&f);
    tensor(&f, "same", QUANT_F32, 1, (uint64_t[]){4});
    tensor(&f, "same", QUANT_F32, 1, (uint64_t[]){8});
    refuse(&f, "tensor 'same'", "more than once");
    start(&f);
    gguf_writer_u32(f.w, "general.alignment", 24);
    refuse(&f, "out.gguf", "power of two");
    start(&f);
    gguf_writer_array(f.w, "a", GGUF_STRING, NULL, 1);
    refuse(&f, "key 'a'", "array of numbers");
}

static void test_data_must_fit(void **state) {
    (void)state;
    fixture f;
    start(&f);
    static const float values[8];
    assert_int_equal(gguf_writer_data(f.w, values, 4, &f.err), WEIR_E_INVALID); /* not begun */
    tensor(&f, "one", QUANT_F32, 1, (uint64_t[]){3});
    tensor(&f, "two", QUANT_F32, 1, (uint64_t[]){1});
    SUCCEED(&f, gguf_writer_begin(f.w, &f.err));
    SUCCEED(&f, gguf_writer_data(f.w, values, 8, &f.err));
    assert_int_equal(gguf_writer_data(f.w, values, 8, &f.err), WEIR_E_INVALID);
    assert_non_null(strstr(f.err.place, "tensor 'one'"));
    SUCCEED(&f, gguf_writer_data(f.w, values, 4, &f.err));
    assert_int_equal(gguf_writer_finish(f.w, &f.err), WEIR_E_INVALID);
    assert_non_null(strstr(f.err.message, "1 tensors"));
    SUCCEED(&f, gguf_writer_data(f.w, values, 4, &f.err));
    assert_int_equal(gguf_writer_data(f.w, values, 4, &f.err), WEIR_E_INVALID);
    end(&f, false); /* not finished: nothing is left */
}

/* A file of the name that is there already stays until the new one is whole, and then gives way. */
static void test_replaces(void **state) {
    (void)state;
    fixture f;
    start(&f);
    FILE *old = fopen(f.path, "w");
    assert_non_null(old);
    fputs("old", old);
    fclose(old);
    gguf_writer_u32(f.w, "k", 1);
    SUCCEED(&f, gguf_writer_begin(f.w, &f.err));
    gguf *g;
    assert_int_equal(gguf_open(&g, f.path, &f.err), WEIR_E_FORMAT);
    SUCCEED(&f, gguf_writer_finish(f.w, &f.err));
    SUCCEED(&f, gguf_open(&g, f.path, &f.err));
    gguf_close(&g);
    end(&f, true);
}

static void test_bad_destinations(void **state) {
    (void)state;
    gguf_writer *w;
    weir_error err = {0};
    assert_int_equal(gguf_writer_open(&w, "/tmp", &err), WEIR_E_IO);
    assert_null(w);
    assert_non_null(strstr(err.message, "directory"));
    assert_int_equal(gguf_writer_open(&w, "/dev/null", &err), WEIR_E_IO);
    assert_non_null(strstr(err.message, "not a regular file"));
    assert_int_equal(gguf_writer_open(&w, "/nonexistent/out.gguf", &err), WEIR_E_IO);
    assert_non_null(strstr(err.place, "/nonexistent/out.gguf"));
}

/* A file size limit stands in for a full disk: begin says so, and nothing is left. */
static void test_full_disk(void **state) {
    (void)state;
    fixture f;
    start(&f);
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 4096;
    signal(SIGXFSZ, SIG_IGN);
    tensor(&f, "t", QUANT_F32, 1, (uint64_t[]){4096});
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = gguf_writer_begin(f.w, &f.err);
    static const float values[4096];
    if (rc == 0) rc = gguf_writer_data(f.w, values, sizeof values, &f.err); /* a file system that cannot reserve */
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rc, WEIR_E_IO);
    assert_non_null(strstr(f.err.place, "out.gguf"));
    end(&f, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_and_texts), cmocka_unit_test(test_copies_a_model),
        cmocka_unit_test(test_refuses),           cmocka_unit_test(test_data_must_fit),
        cmocka_unit_test(test_replaces),          cmocka_unit_test(test_bad_destinations),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
