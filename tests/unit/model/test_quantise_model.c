/* Quantising model files: the mixes, refusals, the file that comes out, and importance matrices of both forms. */
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
#include "model/quantise.h"

typedef struct fixture {
    gguf_builder b;
    buf file;
    gguf *g;
    weir_error err;
} fixture;

static void start(fixture *f) {
    memset(f, 0, sizeof *f);
    gguf_builder_init(&f->b);
}

static const gguf *parse(fixture *f) {
    assert_true(gguf_builder_finish(&f->b, &f->file));
    if (gguf_parse(&f->g, f->file.data, f->file.n_bytes, "in.gguf", &f->err) != 0)
        fail_msg("%s: %s", f->err.place, f->err.message);
    return f->g;
}

static void end(fixture *f) {
    gguf_close(&f->g);
    gguf_builder_free(&f->b);
    buf_free(&f->file);
}

/* ---- mixes ------------------------------------------------------------------------------------------------------------ */

/* A model of which only names and shapes count. */
static void add_shapes(gguf_builder *b, const char *architecture, uint32_t n_layer, uint32_t n_head_kv, uint32_t n_expert,
                       bool tied, uint64_t columns) {
    char key[96], name[96];
    gguf_builder_string(b, "general.architecture", architecture);
    const struct {
        const char *name;
        uint32_t value;
    } keys[] = {{"block_count", n_layer},
                {"attention.head_count", 8},
                {"attention.head_count_kv", n_head_kv},
                {"expert_count", n_expert}};
    for (size_t i = 0; i < 4; i++) {
        snprintf(key, sizeof key, "%s.%s", architecture, keys[i].name);
        gguf_builder_u32(b, key, keys[i].value);
    }
    uint64_t matrix[3] = {columns, 2, 3};
    static const char *const parts[] = {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"};
    gguf_builder_add_tensor(b, "token_embd.weight", QUANT_F32, 2, matrix);
    if (!tied) gguf_builder_add_tensor(b, "output.weight", QUANT_F32, 2, matrix);
    for (uint32_t i = 0; i < n_layer; i++) {
        for (size_t k = 0; k < sizeof parts / sizeof parts[0]; k++) {
            bool experts = n_expert && k >= 5;
            snprintf(name, sizeof name, "blk.%u.%s%s.weight", i, parts[k], experts ? "_exps" : "");
            gguf_builder_add_tensor(b, name, QUANT_F32, k == 0 ? 1 : experts ? 3 : 2, matrix);
        }
        if (n_expert == 0) continue;
        snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.weight", i);
        gguf_builder_add_tensor(b, name, QUANT_F32, 2, matrix);
    }
}

/* What each type makes of a tensor of an ordinary model with 16 layers (llama-quantize's own choices). */
static void test_mixes(void **state) {
    (void)state;
    static const struct {
        const char *mix, *architecture;
        uint32_t n_head_kv, n_expert;
        bool tied;
        const char *tensor, *format;
    } rows[] = {
        {"Q4_K_M", "llama", 4, 0, true, "token_embd.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "token_embd.weight", "Q4_K"},
        {"Q4_K_M", "llama", 4, 0, false, "output.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.0.attn_norm.weight", "F32"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.0.attn_v.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.1.ffn_down.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.2.ffn_down.weight", "Q4_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.4.ffn_down.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.13.attn_v.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.14.attn_v.weight", "Q6_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.12.attn_v.weight", "Q4_K"},
        {"Q4_K_M", "llama", 4, 0, false, "blk.3.attn_q.weight", "Q4_K"},
        {"Q4_K_M", "llama", 4, 8, false, "blk.3.attn_v.weight", "Q8_0"},
        {"Q4_K_M", "llama", 4, 8, false, "blk.3.attn_k.weight", "Q8_0"},
        {"Q4_K_M", "llama", 4, 8, false, "blk.3.attn_output.weight", "Q5_K"},
        {"Q4_K_M", "llama", 4, 8, false, "blk.0.ffn_gate_inp.weight", "F32"},
        {"Q4_K_M", "llama", 4, 8, false, "blk.0.ffn_down_exps.weight", "Q6_K"},
        {"Q4_K_M", "falcon", 4, 0, false, "output.weight", "Q8_0"},
        {"Q4_K_M", "falcon", 4, 0, false, "blk.0.ffn_down.weight", "Q6_K"},
        {"Q4_K_M", "falcon", 4, 0, false, "blk.15.ffn_down.weight", "Q5_K"},
        {"Q4_K", "llama", 4, 0, false, "blk.0.attn_v.weight", "Q6_K"},
        {"15", "llama", 4, 0, false, "blk.0.attn_v.weight", "Q6_K"},
        {"q4_k_s", "llama", 4, 0, false, "blk.3.attn_v.weight", "Q5_K"},
        {"q4_k_s", "llama", 4, 0, false, "blk.4.attn_v.weight", "Q4_K"},
        {"Q4_K_S", "llama", 4, 0, false, "blk.1.ffn_down.weight", "Q5_K"},
        {"Q5_K_M", "llama", 4, 0, false, "blk.4.attn_v.weight", "Q6_K"},
        {"Q5_K_S", "llama", 4, 0, false, "blk.4.attn_v.weight", "Q5_K"},
        {"Q3_K_M", "llama", 4, 0, false, "blk.1.attn_v.weight", "Q5_K"},
        {"Q3_K_M", "llama", 4, 0, false, "blk.2.attn_v.weight", "Q4_K"},
        {"Q3_K_M", "llama", 4, 0, false, "blk.0.ffn_down.weight", "Q5_K"},
        {"Q3_K_M", "llama", 4, 0, false, "blk.9.ffn_down.weight", "Q4_K"},
        {"Q3_K_M", "llama", 4, 0, false, "blk.9.attn_output.weight", "Q4_K"},
        {"Q3_K_L", "llama", 4, 0, false, "blk.9.attn_output.weight", "Q5_K"},
        {"Q3_K_S", "llama", 4, 0, false, "blk.9.attn_output.weight", "Q3_K"},
        {"Q2_K", "llama", 4, 0, false, "blk.9.attn_v.weight", "Q3_K"},
        {"Q2_K", "llama", 2, 0, false, "blk.9.attn_v.weight", "Q4_K"},
        {"Q2_K", "llama", 4, 0, false, "blk.9.ffn_down.weight", "Q3_K"},
        {"Q6_K", "llama", 4, 0, false, "blk.9.ffn_down.weight", "Q6_K"},
        {"Q8_0", "llama", 4, 0, false, "output.weight", "Q8_0"},
        {"Q4_0", "llama", 4, 0, false, "output.weight", "Q6_K"},
        {"IQ4_XS", "llama", 2, 0, false, "blk.9.attn_v.weight", "Q5_K"},
        {"IQ4_XS", "llama", 2, 0, false, "blk.1.ffn_down.weight", "Q5_K"},
        {"TQ2_0", "llama", 4, 0, false, "token_embd.weight", "Q4_K"},
        {"MXFP4_MOE", "llama", 4, 32, false, "blk.0.ffn_up_exps.weight", "MXFP4"},
        {"MXFP4_MOE", "llama", 4, 32, false, "blk.0.attn_q.weight", "Q8_0"},
        {"F16", "llama", 4, 0, false, "output.weight", "F16"},
        {"COPY", "llama", 4, 0, false, "output.weight", "F32"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        fixture f;
        start(&f);
        add_shapes(&f.b, rows[i].architecture, 16, rows[i].n_head_kv, rows[i].n_expert, rows[i].tied, 512);
        const gguf *g = parse(&f);
        quant_choice *choices = calloc(gguf_n_tensors(g), sizeof *choices);
        const quant_mix *m = quant_mix_named(rows[i].mix);
        assert_non_null(m);
        assert_non_null(choices);
        assert_int_equal(quant_mix_choose(g, m, &(quant_mix_options){0}, choices, &f.err), 0);
        const gguf_tensor *t = gguf_find_tensor(g, rows[i].tensor);
        assert_non_null(t);
        const char *name = choices[t - gguf_tensor_at(g, 0)].format->name;
        if (strcmp(name, rows[i].format) != 0) {
            fail_msg("%s: %s becomes %s; expected %s", rows[i].mix, rows[i].tensor, name, rows[i].format);
        }
        free(choices);
        end(&f);
    }
    assert_null(quant_mix_named("Q4_K_X"));
    assert_null(quant_mix_named("4"));
    assert_null(quant_mix_named("-1"));
    assert_null(quant_mix_named(""));
}

static const char *format_in(const fixture *f, const char *mix, const quant_mix_options *options, const char *tensor) {
    quant_choice choices[64];
    weir_error err = {0};
    assert_true(gguf_n_tensors(f->g) <= 64);
    if (quant_mix_choose(f->g, quant_mix_named(mix), options, choices, &err) != 0) fail_msg("%s: %s", err.place, err.message);
    return choices[gguf_find_tensor(f->g, tensor) - gguf_tensor_at(f->g, 0)].format->name;
}

static void test_options_and_fallbacks(void **state) {
    (void)state;
    fixture f;
    start(&f);
    add_shapes(&f.b, "llama", 4, 4, 0, false, 576); /* a multiple of 32, not of 256 */
    gguf_builder_add_tensor(&f.b, "blk.0.odd.weight", QUANT_F32, 2, (uint64_t[]){40, 2});
    parse(&f);
    quant_mix_options none = {0};
    assert_string_equal(format_in(&f, "Q4_K_S", &none, "blk.0.attn_q.weight"), "Q5_0");
    assert_string_equal(format_in(&f, "Q5_K_S", &none, "blk.0.attn_q.weight"), "Q5_1");
    assert_string_equal(format_in(&f, "Q6_K", &none, "blk.0.attn_q.weight"), "Q8_0");
    assert_string_equal(format_in(&f, "Q2_K", &none, "blk.0.attn_q.weight"), "Q4_0");
    assert_string_equal(format_in(&f, "IQ4_XS", &none, "blk.0.attn_q.weight"), "IQ4_NL");
    assert_string_equal(format_in(&f, "Q4_K_M", &none, "output.weight"), "Q8_0");
    assert_string_equal(format_in(&f, "Q4_K_M", &none, "blk.0.odd.weight"), "F16");
    const quant_format *q4_1 = quant_format_of(QUANT_Q4_1), *q8_0 = quant_format_of(QUANT_Q8_0);
    quant_mix_options pure = {.pure = true};
    assert_string_equal(format_in(&f, "Q4_0", &pure, "output.weight"), "Q4_0");
    quant_mix_options given = {.output = q4_1, .embedding = q8_0};
    assert_string_equal(format_in(&f, "Q4_0", &given, "output.weight"), "Q4_1");
    assert_string_equal(format_in(&f, "Q4_0", &given, "token_embd.weight"), "Q8_0");
    quant_mix_options leave = {.leave_output = true};
    assert_string_equal(format_in(&f, "Q4_0", &leave, "output.weight"), "F32");
    quant_override overrides[] = {{"ATTN_[qk]\\.", q8_0}, {"attn", q4_1}};
    quant_mix_options some = {.overrides = overrides, .n_overrides = 2};
    assert_string_equal(format_in(&f, "Q4_0", &some, "blk.0.attn_q.weight"), "Q8_0");
    assert_string_equal(format_in(&f, "Q4_0", &some, "blk.0.attn_v.weight"), "Q4_1");
    assert_string_equal(format_in(&f, "Q4_0", &some, "blk.0.attn_norm.weight"), "F32");
    quant_choice choices[64];
    overrides[0].pattern = "(";
    assert_int_equal(quant_mix_choose(f.g, quant_mix_named("Q4_0"), &some, choices, &f.err), WEIR_E_INVALID);
    assert_non_null(strstr(f.err.message, "not a regular expression"));
    end(&f);
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

static bool count_progress(void *user, size_t tensor, uint64_t done, uint64_t total) {
    (void)tensor;
    assert_true(done <= total);
    int *left = user;
    return (*left)-- > 0;
}

/* Quantises with so many threads; the file's bytes go to `out`. */
static int quantise(const fixture *f, const char *mix, bool requantise, const imatrix *im, int threads, int patience, buf *out,
                    weir_error *err) {
    char path[] = "/tmp/weir-quantise-XXXXXX";
    int fd = mkstemp(path), rc;
    assert_true(fd >= 0);
    quantise_plan plan;
    pool *p;
    assert_int_equal(pool_open(&p, threads, err), 0);
    rc = quantise_plan_make(&plan, f->g, quant_mix_named(mix), &(quant_mix_options){.has_imatrix = im}, requantise, im,
                            "im.dat", err);
    if (rc == 0) rc = quantise_run(&plan, path, p, count_progress, &patience, err);
    if (rc == 0) {
        FILE *file = fopen(path, "rb");
        char bytes[4096];
        for (size_t n; (n = fread(bytes, 1, sizeof bytes, file)) > 0;) buf_append(out, bytes, n);
        fclose(file);
        assert_int_equal(plan.out_bytes > 0, 1);
    }
    quantise_plan_free(&plan);
    pool_close(&p);
    close(fd);
    unlink(path);
    return rc;
}

static void start_llama(fixture *f) {
    start(f);
    gguf_builder_llama(&f->b, &(gguf_builder_llama_shape){2, 256, 4, 2, 512, 256, false});
    for (size_t i = 0; i < f->b.n_tensors; i++) {
        if (f->b.tensors[i].n_dims == 2) gguf_builder_fill(&f->b.tensors[i], (uint32_t)i + 1, 0, 0.1f);
    }
}

static void test_file(void **state) {
    (void)state;
    fixture f;
    start_llama(&f);
    gguf_builder_u32(&f.b, "general.file_type", 0);
    parse(&f);
    buf out = BUF_INIT, again = BUF_INIT;
    gguf *g;
    if (quantise(&f, "Q4_K_M", false, NULL, 1, 1000, &out, &f.err) != 0) fail_msg("%s: %s", f.err.place, f.err.message);
    assert_int_equal(quantise(&f, "Q4_K_M", false, NULL, 3, 1000, &again, &f.err), 0);
    assert_int_equal(out.n_bytes, again.n_bytes);
    assert_memory_equal(out.data, again.data, out.n_bytes); /* whatever the threads */
    assert_int_equal(gguf_parse(&g, out.data, out.n_bytes, "out.gguf", &f.err), 0);
    assert_string_equal(gguf_file_type_name(g), "Q4_K_M");
    uint32_t version = 0;
    assert_int_equal(gguf_get_u32(g, "general.quantization_version", &version, NULL), 1);
    assert_int_equal(version, 2);
    assert_int_equal(gguf_n_tensors(g), gguf_n_tensors(f.g));
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i), *from = gguf_tensor_at(f.g, i);
        assert_int_equal(t->n_values, from->n_values);
        float x, y[512];
        if (t->format->block_size > 512 || t->dims[0] > 512) continue;
        t->format->dequantise(t->data, y, t->dims[0] / (size_t)t->format->block_size);
        for (size_t k = 0; k < t->dims[0]; k++) {
            memcpy(&x, from->data + k * sizeof x, sizeof x);
            assert_true(y[k] - x < 0.02f && x - y[k] < 0.02f);
        }
    }
    /* The quantised file again: only when that is allowed; copying is always. */
    gguf *first = f.g;
    f.g = g;
    buf_clear(&again);
    assert_int_equal(quantise(&f, "Q4_0", false, NULL, 1, 1000, &again, &f.err), WEIR_E_INVALID);
    assert_non_null(strstr(f.err.message, "--allow-requantize"));
    assert_int_equal(quantise(&f, "COPY", false, NULL, 1, 1000, &again, &f.err), 0);
    assert_memory_equal(again.data, out.data, out.n_bytes);
    buf_clear(&again);
    assert_int_equal(quantise(&f, "F16", true, NULL, 2, 1000, &again, &f.err), 0);
    f.g = first;
    gguf_close(&g);
    buf_free(&out);
    buf_free(&again);
    end(&f);
}

static void test_refusals(void **state) {
    (void)state;
    fixture f;
    start_llama(&f);
    gguf_builder_tensor *t = gguf_builder_find_tensor(&f.b, "blk.1.ffn_up.weight");
    static const unsigned char nan_bytes[4] = {0, 0, 0xc0, 0x7f}, large[4] = {0, 0, 0, 0x48}; /* 131072 */
    memcpy(t->data + (256 * 5 + 7) * 4, nan_bytes, 4);
    parse(&f);
    buf out = BUF_INIT;
    assert_int_equal(quantise(&f, "Q8_0", false, NULL, 2, 1000, &out, &f.err), WEIR_E_FORMAT);
    assert_non_null(strstr(f.err.place, "blk.1.ffn_up.weight"));
    assert_non_null(strstr(f.err.message, "row 5"));
    gguf_close(&f.g);
    buf_clear(&f.file);
    memcpy(t->data + (256 * 5 + 7) * 4, large, 4);
    parse(&f);
    assert_int_equal(quantise(&f, "F16", false, NULL, 2, 1000, &out, &f.err), WEIR_E_FORMAT);
    assert_int_equal(quantise(&f, "BF16", false, NULL, 2, 1000, &out, &f.err), 0);
    assert_int_equal(quantise(&f, "IQ1_S", false, NULL, 2, 1000, &out, &f.err), WEIR_E_UNSUPPORTED);
    assert_non_null(strstr(f.err.message, "Q4_K"));
    assert_int_equal(quantise(&f, "Q8_0", false, NULL, 2, 3, &out, &f.err), WEIR_E_CANCELLED);
    gguf_close(&f.g);
    buf_clear(&f.file);
    t->type = (quant_type)31; /* nobody can say how many bytes there are to copy */
    parse(&f);
    assert_int_equal(quantise(&f, "COPY", true, NULL, 2, 1000, &out, &f.err), WEIR_E_UNSUPPORTED);
    assert_non_null(strstr(f.err.message, "Q4_0_4_4"));
    buf_free(&out);
    end(&f);
}

/* ---- importance matrices ---------------------------------------------------------------------------------------------- */

static void put(buf *b, const void *bytes, size_t n) {
    buf_append(b, bytes, n);
}
static void put_i32(buf *b, int32_t value) {
    put(b, &value, sizeof value);
}

static void put_entry(buf *b, const char *name, int32_t calls, const float *sums, int32_t n) {
    put_i32(b, (int32_t)strlen(name));
    put(b, name, strlen(name));
    put_i32(b, calls);
    put_i32(b, n);
    put(b, sums, (size_t)n * sizeof *sums);
}

static void make_binary(buf *b) {
    put_i32(b, 2);
    put_entry(b, "blk.1.attn_q.weight", 2, (float[]){2, 4, 0}, 3);
    put_entry(b, "blk.0.attn_q.weight", 0, (float[]){5, 6}, 2);
    put_i32(b, 9);
    put_i32(b, 4);
    put(b, "text", 4);
}

static void test_imatrix_binary(void **state) {
    (void)state;
    buf b = BUF_INIT;
    make_binary(&b);
    imatrix *im;
    weir_error err = {0};
    assert_int_equal(imatrix_parse(&im, b.data, b.n_bytes, "im.dat", &err), 0);
    assert_int_equal(imatrix_n_entries(im), 2);
    assert_string_equal(imatrix_at(im, 0)->name, "blk.0.attn_q.weight");
    const imatrix_entry *e = imatrix_find(im, "blk.1.attn_q.weight");
    assert_int_equal(e->n_values, 3);
    assert_true(e->means[0] == 1 && e->means[1] == 2 && e->means[2] == 0);
    assert_null(imatrix_find(im, "blk.2.attn_q.weight"));
    assert_int_equal(imatrix_n_chunks(im), 9);
    assert_string_equal(imatrix_dataset(im), "text");
    imatrix_close(&im);
    imatrix_close(&im);
    /* Cut anywhere but after a whole part it is refused; changed anywhere it does no harm. */
    size_t entries_end = b.n_bytes - 12;
    for (size_t n = 0; n < b.n_bytes; n++) {
        int rc = imatrix_parse(&im, b.data, n, "im.dat", &err);
        assert_int_equal(rc == 0, n == entries_end || n == entries_end + 4);
        if (rc < 0) assert_true(rc == WEIR_E_FORMAT && strstr(err.place, "im.dat"));
        imatrix_close(&im);
    }
    for (size_t i = 0; i < b.n_bytes; i++) {
        for (int bit = 0; bit < 8; bit++) {
            b.data[i] = (char)(b.data[i] ^ 1 << bit);
            (void)imatrix_parse(&im, b.data, b.n_bytes, "im.dat", &err);
            imatrix_close(&im);
            b.data[i] = (char)(b.data[i] ^ 1 << bit);
        }
    }
    buf_free(&b);
    assert_int_equal(imatrix_open(&im, "/nonexistent", &err), WEIR_E_IO);
    assert_null(im);
    assert_int_equal(imatrix_open(&im, "/tmp", &err), WEIR_E_IO);
}

static void test_imatrix_gguf(void **state) {
    (void)state;
    gguf_builder b;
    buf file = BUF_INIT;
    imatrix *im;
    weir_error err = {0};
    gguf_builder_init(&b);
    gguf_builder_string(&b, "general.type", "imatrix");
    gguf_builder_strings(&b, "imatrix.datasets", (const char *const[]){"prose", "code"}, 2);
    gguf_builder_u32(&b, "imatrix.chunk_count", 7);
    float sums[] = {2, 4, 6, 8, 10, 12}, counts[] = {2, 0};
    memcpy(gguf_builder_add_tensor(&b, "w.weight.in_sum2", QUANT_F32, 2, (uint64_t[]){3, 2})->data, sums, sizeof sums);
    gguf_builder_tensor *t = gguf_builder_add_tensor(&b, "w.weight.counts", QUANT_F32, 2, (uint64_t[]){1, 2});
    memcpy(t->data, counts, sizeof counts);
    assert_true(gguf_builder_finish(&b, &file));
    assert_int_equal(imatrix_parse(&im, file.data, file.n_bytes, "im.gguf", &err), 0);
    const imatrix_entry *e = imatrix_find(im, "w.weight");
    assert_int_equal(e->n_values, 6);
    assert_true(e->means[0] == 1 && e->means[2] == 3 && e->means[3] == 1 && e->means[5] == 1); /* an expert never chosen: 1 */
    assert_int_equal(imatrix_n_chunks(im), 7);
    assert_string_equal(imatrix_dataset(im), "prose");
    imatrix_close(&im);
    gguf_builder_drop_tensor(&b, "w.weight.counts");
    buf_clear(&file);
    assert_true(gguf_builder_finish(&b, &file));
    assert_int_equal(imatrix_parse(&im, file.data, file.n_bytes, "im.gguf", &err), WEIR_E_FORMAT);
    assert_non_null(strstr(err.message, "w.weight.counts"));
    gguf_builder_drop_tensor(&b, "w.weight.in_sum2");
    buf_clear(&file);
    assert_true(gguf_builder_finish(&b, &file));
    assert_int_equal(imatrix_parse(&im, file.data, file.n_bytes, "im.gguf", &err), WEIR_E_FORMAT);
    assert_non_null(strstr(err.message, "in_sum2"));
    gguf_builder_free(&b);
    buf_free(&file);
}

/* With an importance matrix the file says so and the important columns come nearer; one of the wrong size is refused. */
static void test_importance_is_used(void **state) {
    (void)state;
    fixture f;
    start_llama(&f);
    parse(&f);
    buf dat = BUF_INIT, with = BUF_INIT, without = BUF_INIT;
    float sums[256];
    for (int i = 0; i < 256; i++) sums[i] = i % 8 ? 0.01f : 10;
    put_i32(&dat, 1);
    put_entry(&dat, "blk.0.attn_q.weight", 1, sums, 256);
    imatrix *im;
    assert_int_equal(imatrix_parse(&im, dat.data, dat.n_bytes, "im.dat", &f.err), 0);
    assert_int_equal(quantise(&f, "Q3_K_S", false, im, 2, 1000, &with, &f.err), 0);
    assert_int_equal(quantise(&f, "Q3_K_S", false, NULL, 2, 1000, &without, &f.err), 0);
    imatrix_close(&im);
    double error[2] = {0, 0};
    for (int k = 0; k < 2; k++) {
        gguf *g;
        assert_int_equal(gguf_parse(&g, k ? with.data : without.data, k ? with.n_bytes : without.n_bytes, "out", &f.err), 0);
        assert_int_equal(gguf_find(g, "quantize.imatrix.entries_count") != NULL, k);
        const gguf_tensor *t = gguf_find_tensor(g, "blk.0.attn_q.weight"), *from = gguf_find_tensor(f.g, "blk.0.attn_q.weight");
        float y[256], x[256];
        t->format->dequantise(t->data, y, 1);
        memcpy(x, from->data, sizeof x);
        for (int i = 0; i < 256; i += 8) error[k] += (double)(x[i] - y[i]) * (double)(x[i] - y[i]);
        gguf_close(&g);
    }
    assert_true(error[1] < 0.8 * error[0]);
    buf_clear(&dat);
    put_i32(&dat, 1);
    put_entry(&dat, "blk.0.attn_q.weight", 1, sums, 255);
    assert_int_equal(imatrix_parse(&im, dat.data, dat.n_bytes, "im.dat", &f.err), 0);
    assert_int_equal(quantise(&f, "Q3_K_S", false, im, 2, 1000, &with, &f.err), WEIR_E_INVALID);
    assert_non_null(strstr(f.err.message, "255 values"));
    imatrix_close(&im);
    buf_free(&dat);
    buf_free(&with);
    buf_free(&without);
    end(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixes),
        cmocka_unit_test(test_options_and_fallbacks),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_imatrix_binary),
        cmocka_unit_test(test_imatrix_gguf),
        cmocka_unit_test(test_importance_is_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
